"""Systems ask about one person: PatientFlag, CareTeam and AuditEvent, by GET and by POST ``_search``.

The shapes, headers and error codes are the national services' (CP-IS consumer API, Patient Flags API). The system shows
its ODS code and credential (HTTP basic, RFC 7617), as at the doors, and names the person who asks with every request.
A question stands in a query string: nothing of an address ever reaches a log, and no answer repeats it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final
from urllib.parse import parse_qsl

from fastapi import Depends, FastAPI, Request, Response
from fastapi.routing import APIRoute
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute

from adapters.fhir_search import (
    NHS_NUMBER_SYSTEM,
    build_access_answer,
    build_care_team_answer,
    build_flag_answer,
    build_refusal,
)
from adapters.fhir_writer import FHIR_JSON, FLAG_CODE
from broker.senders import Senders, read_basic
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
PATHS: Final = frozenset(f"{BASE}/{name}{search}" for name in _ANSWERS for search in ("", "/_search"))
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


class Refusal(HTTPException):
    """A question that is not answered, with one of the codes above."""

    def __init__(self, code: str) -> None:
        super().__init__(_REFUSALS[code][0])
        self.code = code


def create_fhir_api(look_ups: LookUps, senders: Senders) -> FastAPI:
    """The application. Raises RuntimeError when a route asks for no credential."""
    api = FastAPI(
        title="cpis-broker FHIR reads",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(admit)],
    )
    api.state.look_ups, api.state.senders = look_ups, senders
    api.state.slots = asyncio.Semaphore(REQUESTS_MAX)
    for name in _ANSWERS:
        api.add_api_route(f"{BASE}/{name}", answer_get, methods=["GET"], response_model=None)
        api.add_api_route(f"{BASE}/{name}/_search", answer_post, methods=["POST"], response_model=None)
    check_guarded(api.routes)
    api.add_exception_handler(HTTPException, _answer_refusal)
    return api


def check_guarded(routes: Iterable[BaseRoute]) -> None:
    """Raise RuntimeError unless every route asks who is there."""
    for route in routes:
        if not isinstance(route, APIRoute) or not any(part.call is admit for part in route.dependant.dependencies):
            raise RuntimeError(f"{getattr(route, 'path', '')} asks for no credential")


async def admit(request: Request) -> None:
    """Let a known system in that says who asks. Raises Refusal, alike for every reason why it is not known."""
    senders: Senders = request.app.state.senders
    header = request.headers.get("authorization", "")
    code, credential = read_basic(header)
    if not header or not credential:
        raise Refusal("PRECONDITION_FAILED")
    site = parse_ods_code(code) or ""
    if senders.admit(site, credential, request.client.host if request.client else "") is None:
        MESSAGES_REFUSED.labels(reason="sender_not_permitted").inc()
        log(LogEvent.MESSAGE_REFUSED, sender=senders.known(site), reason="sender_not_permitted")
        raise Refusal("ACCESS_DENIED")
    if not _PLAIN.fullmatch(request.headers.get(TRACE_HEADER, "")):
        raise Refusal("PRECONDITION_FAILED")
    request.state.asker = Asker(
        organisation=site, person=_read_person(request), is_unscheduled=_read_unscheduled(request)
    )


async def answer_get(request: Request) -> Response:
    """Answer a question that stands in the query string."""
    return await _answer(request, request.scope["query_string"])


async def answer_post(request: Request) -> Response:
    """Answer a question that stands in a form."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise Refusal("UNSUPPORTED_MEDIA_TYPE")
    return await _answer(request, await _read_body(request))


async def _answer(request: Request, question: bytes) -> Response:
    nhs_number = _read_question(question)
    look_ups: LookUps = request.app.state.look_ups
    name = request.scope["route"].path.removeprefix(f"{BASE}/").removesuffix("/_search")
    try:
        async with request.app.state.slots:
            body = await look_ups.answer(request.state.asker, nhs_number, _ANSWERS[name])
    except UnknownSite:
        raise Refusal("ACCESS_DENIED") from None
    except Exception as error:
        log(LogEvent.CRASHED, part="fhir_api", error=type(error).__name__, at=innermost_line(error.__traceback__))
        raise Refusal("UNAVAILABLE" if _is_outage(error) else "INTERNAL_ERROR") from None
    return _respond(request, 200, body)


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


async def _answer_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    by_status = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}
    code = error.code if isinstance(error, Refusal) else by_status.get(error.status_code, "INTERNAL_ERROR")
    status, issue_type, words = _REFUSALS[code]
    return _respond(request, status, build_refusal(code, issue_type, words))


def _respond(request: Request, status: int, body: bytes) -> Response:
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    trace = request.headers.get(TRACE_HEADER, "")
    if _PLAIN.fullmatch(trace):
        headers[TRACE_HEADER] = trace
    return Response(body, status, headers, FHIR_JSON)


def _is_outage(error: Exception) -> bool:
    """Whether the database could not be asked, as opposed to having answered something unexpected."""
    is_cut_off = isinstance(error, DBAPIError) and error.connection_invalidated
    return is_cut_off or isinstance(error, OSError | PoolTimeout | OperationalError | InterfaceError)
