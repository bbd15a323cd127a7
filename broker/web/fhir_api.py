"""Systems ask about one person: PatientFlag, CareTeam and AuditEvent, by GET and by POST ``_search``.

The shapes, headers and error codes are the national services' (CP-IS consumer API, Patient Flags API). The system shows
its ODS code and credential (HTTP basic, RFC 7617), as at the doors, and names the person who asks with every request.
A question stands in a query string: nothing of an address ever reaches a log, and no answer repeats it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapters.fhir_search import (
    NHS_NUMBER_SYSTEM,
    build_access_answer,
    build_care_team_answer,
    build_flag_answer,
    build_refusal,
)
from adapters.fhir_writer import FHIR_JSON, FLAG_CODE
from broker.senders import Senders, read_basic
from broker.storage.database import is_database_outage
from broker.telemetry import MESSAGES_REFUSED, LogEvent, innermost_line, log
from broker.web.look_up import Asker, LookUps, UnknownSite
from schemas.identifiers import NhsNumber, parse_nhs_number, parse_ods_code
from schemas.look_up import RecordShown

BASE: Final = "/FHIR/R4"
TRACE_HEADER: Final = "TraceID"
PERSON_HEADER: Final = "NHSD-Session-URID"
"""The person who asks, by the id of their role (CIS2); the national services read it from the token."""
UNSCHEDULED_HEADER: Final = "IsUnscheduledAccessEvent"
FORM: Final = "application/x-www-form-urlencoded"
QUESTION_BYTES_MAX: Final = 4096
BODY_TIMEOUT_S: Final = 10.0
REQUESTS_MAX: Final = 64
_PLAIN: Final = re.compile(r"[A-Za-z0-9._-]{1,100}", re.ASCII)
_ANSWERS: Final[Mapping[str, Callable[[RecordShown], bytes]]] = {
    "PatientFlag": build_flag_answer,
    "CareTeam": build_care_team_answer,
    "AuditEvent": build_access_answer,
}
_SEARCH: Final = "/_search"
PATHS: Final = frozenset(f"{BASE}/{name}{search}" for name in _ANSWERS for search in ("", _SEARCH))
_PATIENT: Final = frozenset({"patient", "patient:identifier"})
_REFUSALS: Final[Mapping[str, tuple[int, str, str]]] = {
    "INVALID_SEARCH_DATA": (
        400,
        "value",
        f"Ask with one patient: a valid NHS number, alone or behind {NHS_NUMBER_SYSTEM}|.",
    ),
    "PRECONDITION_FAILED": (
        400,
        "required",
        f"Send Authorization (HTTP basic), {TRACE_HEADER} and {PERSON_HEADER} as plain words of at most "
        f"100 characters, and {UNSCHEDULED_HEADER} as true or false or not at all.",
    ),
    "ACCESS_DENIED": (403, "forbidden", "The organisation, its credential or its address is not known here."),
    "NOT_FOUND": (404, "not-found", "There is no such address."),
    "METHOD_NOT_ALLOWED": (405, "not-supported", "Ask by GET, or by POST to _search."),
    "REQUEST_TIMEOUT": (408, "timeout", "The question did not arrive in time."),
    "TOO_LONG": (413, "too-long", "The question is longer than is taken here."),
    "UNSUPPORTED_MEDIA_TYPE": (415, "not-supported", f"POST a question as {FORM}."),
    "INTERNAL_ERROR": (500, "exception", "The broker failed on this question. This is no answer: ring if you worry."),
    "UNAVAILABLE": (503, "transient", "The lists cannot be asked now. This is no answer: ring if you are worried."),
}


class Refusal(Exception):
    """A question that is not answered, with one of the codes above."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class FhirReads:
    """The application (ASGI): one way in, on which a system shows who it is before anything that it says is read.

    A router and dependencies around so few addresses would take as long as the whole question.
    """

    def __init__(self, look_ups: LookUps, senders: Senders) -> None:
        self._look_ups = look_ups
        self._senders = senders
        self._slots = asyncio.Semaphore(REQUESTS_MAX)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive)
        try:
            response = await self._serve(request)
        except Refusal as refusal:
            response = _refuse(request, refusal.code)
        await response(scope, receive, send)

    async def _serve(self, request: Request) -> Response:
        path = request.scope["path"]
        if path not in PATHS:
            raise Refusal("NOT_FOUND")
        is_form = path.endswith(_SEARCH)
        if request.method != ("POST" if is_form else "GET"):
            raise Refusal("METHOD_NOT_ALLOWED")
        asker = self._admit(request)
        question = await _read_form(request) if is_form else request.scope["query_string"]
        write = _ANSWERS[path.removeprefix(f"{BASE}/").removesuffix(_SEARCH)]
        return _respond(request, 200, await self._answer(asker, _read_question(question), write))

    def _admit(self, request: Request) -> Asker:
        """Who asks. Raises Refusal, alike for every reason why a system is not known."""
        header = request.headers.get("authorization", "")
        code, credential = read_basic(header)
        if not header or not credential:
            raise Refusal("PRECONDITION_FAILED")
        site = parse_ods_code(code) or ""
        if self._senders.admit(site, credential, request.client.host if request.client else "") is None:
            MESSAGES_REFUSED.labels(reason="sender_not_permitted").inc()
            log(LogEvent.MESSAGE_REFUSED, sender=self._senders.known(site), reason="sender_not_permitted")
            raise Refusal("ACCESS_DENIED")
        if not _PLAIN.fullmatch(request.headers.get(TRACE_HEADER, "")):
            raise Refusal("PRECONDITION_FAILED")
        return Asker(organisation=site, person=_read_person(request), is_unscheduled=_read_unscheduled(request))

    async def _answer(self, asker: Asker, nhs_number: NhsNumber, write: Callable[[RecordShown], bytes]) -> bytes:
        try:
            async with self._slots:
                return await self._look_ups.answer(asker, nhs_number, write)
        except UnknownSite:
            raise Refusal("ACCESS_DENIED") from None
        except Exception as error:
            log(LogEvent.CRASHED, part="fhir_api", error=type(error).__name__, at=innermost_line(error.__traceback__))
            raise Refusal("UNAVAILABLE" if is_database_outage(error) else "INTERNAL_ERROR") from None


async def _read_form(request: Request) -> bytes:
    """A question that stands in a form."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise Refusal("UNSUPPORTED_MEDIA_TYPE")
    return await _read_body(request)


def _read_question(question: bytes) -> NhsNumber:
    """The NHS number that is asked about. Raises Refusal."""
    if len(question) > QUESTION_BYTES_MAX:
        raise Refusal("TOO_LONG")
    try:
        said = parse_qsl(question.decode("ascii"), keep_blank_values=True, max_num_fields=20, errors="strict")
    except ValueError:
        raise Refusal("INVALID_SEARCH_DATA") from None
    patients = [value for name, value in said if name in _PATIENT]
    codes = [value.rpartition("|")[2] for name, value in said if name == "code"]
    system, _, number = patients[0].rpartition("|") if len(patients) == 1 else ("", "", "")
    nhs_number = parse_nhs_number(number) if system in ("", NHS_NUMBER_SYSTEM) else None
    if nhs_number is None or any(code != FLAG_CODE for code in codes):
        raise Refusal("INVALID_SEARCH_DATA")
    return nhs_number


def _read_person(request: Request) -> str:
    person = request.headers.get(PERSON_HEADER, "")
    # The audit names it in clear: a number that could be a patient's has no business there.
    if not _PLAIN.fullmatch(person) or parse_nhs_number(person) is not None:
        raise Refusal("PRECONDITION_FAILED")
    return person


def _read_unscheduled(request: Request) -> bool | None:
    said = request.headers.get(UNSCHEDULED_HEADER)
    if said is None:
        return None
    if said.strip().lower() not in ("true", "false"):
        raise Refusal("PRECONDITION_FAILED")
    return said.strip().lower() == "true"


async def _read_body(request: Request) -> bytes:
    parts: list[bytes] = []
    received = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                received += len(part)
                if received > QUESTION_BYTES_MAX:
                    raise Refusal("TOO_LONG")
                parts.append(part)
    except (TimeoutError, ClientDisconnect):
        raise Refusal("REQUEST_TIMEOUT") from None
    return b"".join(parts)


def _refuse(request: Request, code: str) -> Response:
    status, issue_type, words = _REFUSALS[code]
    return _respond(request, status, build_refusal(code, issue_type, words))


def _respond(request: Request, status: int, body: bytes) -> Response:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    trace = request.headers.get(TRACE_HEADER, "")
    if _PLAIN.fullmatch(trace):
        headers[TRACE_HEADER] = trace
    return Response(body, status, headers, FHIR_JSON)
