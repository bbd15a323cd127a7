"""The machine doors of HTTP: FHIR R4 messages and police incidents in.

They need no database. The first answers every error as a FHIR server does, the second in plain JSON. A system shows its
credential with every request (HTTP basic, RFC 7617): its ODS code, or the code of its force, and the credential it was
given. No route is without that rule. ``join_doors`` puts the doors and the pages behind one port.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn

import msgspec
from fastapi import Depends, FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from broker.envelope import INCIDENT_JSON
from broker.incident_intake import (
    INCIDENT_CSV,
    IncidentAnswer,
    IncidentFileAnswer,
    IncidentIntake,
)
from broker.intake import ACCEPTED, NOT_DURABLE, FhirAnswer, Intake
from broker.senders import Senders, read_basic
from broker.telemetry import MESSAGES_REFUSED, LogEvent, innermost_line, log
from schemas.directory import Sender
from schemas.identifiers import parse_ods_code

BASE: Final = "/FHIR/R4"
INCIDENTS: Final = "/incidents"
FHIR_JSON: Final = "application/fhir+json"
_CONTENT_TYPES: Final = frozenset({FHIR_JSON, "application/json"})
_ECHOED: Final = ("X-Request-Id", "X-Correlation-Id")
_ECHO: Final = re.compile(r"[A-Za-z0-9._-]{1,100}", re.ASCII)
_RETRY_AFTER_S: Final = "10"
_WORDS: Final[Mapping[int, tuple[str, str]]] = {
    400: ("structure", "The body is not a FHIR R4 Bundle in JSON."),
    401: ("login", "Show the ODS code and the credential of your organisation (HTTP basic authentication)."),
    404: ("not-found", "There is no such address. Post to /FHIR/R4/$process-message or to /FHIR/R4."),
    405: ("not-supported", "This address takes POST only."),
    408: ("timeout", "The body did not arrive in time; nothing was kept. Send it again."),
    413: ("too-long", "The body is larger than is taken here; nothing was kept."),
    415: ("not-supported", "Send FHIR R4 as JSON, uncompressed: Content-Type application/fhir+json. XML is not taken."),
    422: ("business-rule", "No attendance can be read in the Bundle; nothing was kept."),
    500: ("exception", "The broker failed on this request; nothing was kept. Send it again, and report it."),
    503: ("transient", "The message could not be made durable; nothing was kept. Send it again."),
}


_INCIDENT_WORDS: Final[Mapping[int, str]] = {
    400: "The request cannot be read.",
    401: "Show the code and the credential of your force (HTTP basic authentication).",
    404: "There is no such address. Post to /incidents.",
    405: "This address takes POST only.",
    408: "The body did not arrive in time; nothing was kept. Send it again.",
    413: "The body is larger than is taken here; nothing was kept.",
    415: "Send JSON or CSV, uncompressed: Content-Type application/json or text/csv.",
    422: "The message is not in order; nothing was kept. Mend it and send it again.",
    500: "The broker failed on this request; nothing was kept. Send it again, and report it.",
    503: "The message could not be made durable; nothing was kept. Send it again.",
}


class DoorLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one request may cost."""

    body_bytes_max: int = 4_000_000
    """Sealed, it must fit into one record of the log, else it could never be kept."""
    body_timeout_s: float = 30.0
    requests_max: int = 64
    """Bodies held at one time; others wait."""
    sender_requests_max: int = 16
    """... of one sender, so that one whose bodies come slowly does not keep the others waiting."""


def create_doors(intake: Intake, senders: Senders, limits: DoorLimits) -> FastAPI:
    """The doors. Raises RuntimeError when a route asks for no credential."""
    doors = _open_door("cpis-broker machine doors", intake, senders, limits)
    for path in (f"{BASE}/$process-message", BASE):
        doors.add_api_route(path, accept_bundle, methods=["POST"], response_model=None)
    check_guarded(doors.routes)
    doors.add_exception_handler(HTTPException, _answer_refusal)
    return doors


def create_incident_door(intake: IncidentIntake, forces: Senders, limits: DoorLimits) -> FastAPI:
    """The door for police incidents: credentials of forces, answers in plain JSON."""
    door = _open_door("cpis-broker door for police incidents", intake, forces, limits)
    door.add_api_route(INCIDENTS, accept_incident, methods=["POST"], response_model=None)
    check_guarded(door.routes)
    door.add_exception_handler(HTTPException, _answer_incident_refusal)
    return door


def _open_door(title: str, intake: Intake | IncidentIntake, senders: Senders, limits: DoorLimits) -> FastAPI:
    door = FastAPI(
        title=title,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        # A redirect would name the host that the request named.
        redirect_slashes=False,
        dependencies=[Depends(_admit)],
    )
    door.state.intake, door.state.senders, door.state.limits = intake, senders, limits
    door.state.slots = asyncio.Semaphore(limits.requests_max)
    door.state.slots_of = defaultdict(lambda: asyncio.Semaphore(limits.sender_requests_max))
    return door


def join_incident_door(door: ASGIApp, others: ASGIApp) -> ASGIApp:
    """The door for police incidents before all others."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        is_incident = scope["type"] == "http" and scope["path"] == INCIDENTS
        await (door if is_incident else others)(scope, receive, send)

    return serve


def join_doors(
    doors: ASGIApp, pages: ASGIApp, reads: ASGIApp | None = None, read_paths: Container[str] = ()
) -> ASGIApp:
    """All behind one port; the doors take what is under ``/FHIR/`` but ``read_paths``, which go to ``reads``."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if reads is not None and scope["type"] == "http" and scope["path"] in read_paths:
            await reads(scope, receive, send)
            return
        is_door = scope["type"] == "http" and scope["path"].startswith("/FHIR/")
        await (doors if is_door else pages)(scope, receive, send)

    return serve


def check_guarded(routes: Iterable[BaseRoute]) -> None:
    """Raise RuntimeError unless every route asks who is there."""
    for route in routes:
        if not isinstance(route, APIRoute) or not any(part.call is _admit for part in route.dependant.dependencies):
            raise RuntimeError(f"{getattr(route, 'path', '')} asks for no credential")


async def accept_bundle(request: Request) -> Response:
    """Take one Bundle: 202 once it is durably kept, with what was found wrong in it."""
    _check_content(request)
    intake: Intake = request.app.state.intake
    try:
        async with request.app.state.slots_of[request.state.sender.code], request.app.state.slots:
            body = await _read_body(request, request.app.state.limits)
            answer = await intake.accept_fhir(body, request.state.sender)
    except HTTPException:
        raise
    except Exception as error:
        log(LogEvent.CRASHED, part="doors", error=type(error).__name__, at=innermost_line(error.__traceback__))
        raise HTTPException(500) from None
    return _answer(request, answer)


async def accept_incident(request: Request) -> Response:
    """Take one police incident, its correction or its withdrawal, or a file of them: 202 once it is durably kept."""
    content_type = _check_content(request, frozenset({INCIDENT_JSON, INCIDENT_CSV}))
    intake: IncidentIntake = request.app.state.intake
    try:
        async with request.app.state.slots_of[request.state.sender.code], request.app.state.slots:
            body = await _read_body(request, request.app.state.limits)
            if content_type == INCIDENT_CSV:
                return _answer_file(request, await intake.accept_file(body, request.state.sender))
            answer = await intake.accept(body, request.state.sender)
    except HTTPException:
        raise
    except Exception as error:
        log(LogEvent.CRASHED, part="doors", error=type(error).__name__, at=innermost_line(error.__traceback__))
        raise HTTPException(500) from None
    return _answer_incident(answer)


def _answer_incident(answer: IncidentAnswer) -> Response:
    if answer.status == ACCEPTED:
        return _respond_plainly(ACCEPTED, {"message_id": answer.message_id})
    problems = [{"field": each.field, "advice": each.advice} for each in answer.problems]
    headers = {"Retry-After": _RETRY_AFTER_S} if answer.status == NOT_DURABLE else {}
    return _respond_plainly(answer.status, {"error": _INCIDENT_WORDS[answer.status], "problems": problems}, headers)


def _answer_file(request: Request, answer: IncidentFileAnswer) -> Response:
    """Every row that was not taken, and how to mend it; the incidents that were, by their first rows."""
    if answer.refused:
        log(LogEvent.MESSAGE_REFUSED, sender=request.state.sender.code, reason="incident_row_refused")
    if answer.status == NOT_DURABLE:
        log(LogEvent.MESSAGE_NOT_DURABLE, sender=request.state.sender.code)
    kept = [{"row": each.row, "message_id": each.message_id} for each in answer.kept]
    problems = [{"row": each.row, "field": each.field, "advice": each.advice} for each in answer.refused]
    content: dict[str, Any] = {"kept": kept, "problems": problems}
    if answer.status == NOT_DURABLE:
        words = "The file could not be kept as a whole. Send it again: what was kept counts once."
        return _respond_plainly(NOT_DURABLE, {"error": words, **content}, {"Retry-After": _RETRY_AFTER_S})
    if answer.status != ACCEPTED:
        content = {"error": "Nothing of the file was kept. Mend it and send it again.", **content}
    return _respond_plainly(answer.status, content)


async def _answer_incident_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code if error.status_code in _INCIDENT_WORDS else 400
    return _respond_plainly(status, {"error": _INCIDENT_WORDS[status], "problems": []}, error.headers or {})


def _respond_plainly(status: int, content: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    fixed = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(json.dumps(content).encode(), status, {**fixed, **(headers or {})}, INCIDENT_JSON)


async def _admit(request: Request) -> None:
    """Let a permitted sender in; raises HTTPException 401 for everybody else, alike for every reason."""
    senders: Senders = request.app.state.senders
    code, credential = read_basic(request.headers.get("authorization", ""))
    sender: Sender | None = senders.admit(
        parse_ods_code(code) or "", credential, request.client.host if request.client else ""
    )
    if sender is None:
        MESSAGES_REFUSED.labels(reason="sender_not_permitted").inc()
        log(LogEvent.MESSAGE_REFUSED, sender=senders.known(parse_ods_code(code) or ""), reason="sender_not_permitted")
        raise HTTPException(401, headers={"WWW-Authenticate": 'Basic realm="cpis-broker", charset="UTF-8"'})
    request.state.sender = sender


def _check_content(request: Request, taken: frozenset[str] = _CONTENT_TYPES) -> str:
    """What the body is said to be, if it is taken. Raises HTTPException."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if content_type not in taken or encoding not in ("", "identity"):
        _refuse(request, 415, "content_type_not_taken")
    return content_type


async def _read_body(request: Request, limits: DoorLimits) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:12]) > limits.body_bytes_max:
        _refuse(request, 413, "message_too_large")
    parts: list[bytes] = []
    received = 0
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            async for part in request.stream():
                received += len(part)
                if received > limits.body_bytes_max:
                    _refuse(request, 413, "message_too_large")
                parts.append(part)
    except TimeoutError:
        _refuse(request, 408, "body_too_slow")
    except ClientDisconnect:
        _refuse(request, 400, "connection_lost")
    return b"".join(parts)


def _refuse(request: Request, status: int, reason: str) -> NoReturn:
    """Count and raise the refusal of a sender that is known. Raises HTTPException."""
    MESSAGES_REFUSED.labels(reason=reason).inc()
    log(LogEvent.MESSAGE_REFUSED, sender=request.state.sender.code, reason=reason)
    # Who sends too slowly would otherwise hold the connection for as long as that goes on.
    raise HTTPException(status, headers={"Connection": "close"} if status == 408 else None)


def _answer(request: Request, answer: FhirAnswer) -> Response:
    issues = [_issue(finding.severity, finding.code, finding.text, finding.expression) for finding in answer.findings]
    if answer.status == ACCEPTED:
        kept = f"Kept as message {answer.message_id}."
        return _respond(request, ACCEPTED, [_issue("information", "informational", kept), *issues])
    code, words = _WORDS[answer.status]
    headers = {"Retry-After": _RETRY_AFTER_S} if answer.status == NOT_DURABLE else {}
    return _respond(request, answer.status, [_issue("error", code, words), *issues], headers)


async def _answer_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code if error.status_code in _WORDS else 400
    code, words = _WORDS[status]
    return _respond(request, status, [_issue("error", code, words)], error.headers or {})


def _respond(
    request: Request, status: int, issues: Sequence[Mapping[str, Any]], headers: Mapping[str, str] | None = None
) -> Response:
    """An OperationOutcome (R4, 2.29). Ids of the request come back only if they are plain words."""
    echoed = {
        name: request.headers[name]
        for name in _ECHOED
        if name in request.headers and _ECHO.fullmatch(request.headers[name])
    }
    body = json.dumps({"resourceType": "OperationOutcome", "issue": list(issues)}, ensure_ascii=False).encode()
    fixed = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(body, status, {**fixed, **echoed, **(headers or {})}, FHIR_JSON)


def _issue(severity: str, code: str, words: str, expression: str = "") -> dict[str, Any]:
    issue: dict[str, Any] = {"severity": severity, "code": code, "diagnostics": words}
    return {**issue, "expression": [expression]} if expression else issue
