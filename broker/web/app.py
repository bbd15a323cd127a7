"""The pages as one application: every route, the gate before them, the headers around them, the errors after them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.announcement import Rules
from broker.incident_intake import IncidentIntake
from broker.keyring import Keyring
from broker.notices import NoticeRules
from broker.nudges import NudgeRules
from broker.ports import Clock
from broker.settings import Settings
from broker.storage.database import Database, is_database_outage
from broker.telemetry import LogEvent, innermost_line, log
from broker.web import (
    auth,
    child,
    clinician,
    coverage,
    force,
    history,
    hub,
    inbox,
    lists,
    operations,
    patterns,
    place,
    proof,
    reviews,
    school,
    sign_in,
)
from broker.web import pages as surroundings
from broker.web.auth import NotSignedIn, PasswordCheck
from broker.web.operations import Status
from broker.web.pages import PageLimits, Pages, pages_of

_ROUTES: Final[tuple[tuple[str, str, Callable[..., Any]], ...]] = (
    ("GET", "/", sign_in.go_home),
    ("GET", "/sign-in", sign_in.show_sign_in),
    ("POST", "/sign-in", sign_in.sign_in),
    ("POST", "/sign-out", sign_in.sign_out),
    ("GET", "/inbox", inbox.show_inbox),
    ("GET", "/alerts/{alert_id}", inbox.show_alert),
    ("POST", "/alerts/{alert_id}/acknowledge", inbox.acknowledge_alert),
    ("GET", "/alerts/{alert_id}/place", place.show_alert_place),
    ("GET", "/reviews", reviews.show_reviews),
    ("GET", "/reviews/{review_id}", reviews.show_review),
    ("GET", "/reviews/{review_id}/place", place.show_review_place),
    ("POST", "/reviews/{review_id}/confirm", reviews.confirm),
    ("POST", "/reviews/{review_id}/reject", reviews.reject),
    ("POST", "/reviews/{review_id}/undo", reviews.undo),
    ("GET", "/chronology", child.show_chronology_form),
    ("POST", "/chronology", child.show_chronology),
    ("POST", "/chronology/csv", child.export_chronology),
    ("GET", "/as-at", history.show_as_at_form),
    ("POST", "/as-at", history.show_as_at),
    ("GET", "/missed", history.show_missed),
    ("POST", "/missed/{missed_id}/settle", history.settle_missed),
    ("GET", "/coverage", coverage.show_coverage),
    ("POST", "/coverage/{item_id}/note", coverage.note_item),
    ("POST", "/coverage/{item_id}/part", coverage.part_numbers),
    ("GET", "/lists", lists.show_lists),
    ("POST", "/lists", lists.upload_list),
    ("POST", "/lists/held/{upload_id}/{decision}", lists.decide_hold),
    ("POST", "/lists/differences/{difference_id}", lists.decide_missing),
    ("GET", "/patterns", patterns.show_patterns),
    ("POST", "/patterns", patterns.word_rule),
    ("POST", "/patterns/{kind}/{version}/{step}", patterns.take_step),
    ("GET", "/school", school.show_school),
    ("POST", "/school/notices/{notice_id}/acknowledge", school.acknowledge_notice),
    ("POST", "/school/notices/{notice_id}/not-our-pupil", school.refuse_pupil),
    ("POST", "/school/notices/{notice_id}/record", school.write_record),
    ("GET", "/force", force.show_force),
    ("POST", "/force/incidents", force.upload_incidents),
    ("POST", "/force/tasks/{task_id}/release", force.release_incident),
    ("POST", "/force/tasks/{task_id}/place", force.place_child),
    ("POST", "/force/incidents/{incident_id}/suppress", force.suppress_incident),
    ("GET", "/force/report", proof.show_report),
    ("GET", "/force/report.csv", proof.download_report),
    ("GET", "/force/incidents/{incident_id}", proof.show_incident),
    ("GET", "/hub", hub.show_hub),
    ("POST", "/hub/tasks/{task_id}/release", hub.release_referral),
    ("POST", "/hub/tasks/{task_id}/place", force.place_child),
    ("POST", "/hub/attendances/{incident_id}/keep-back", force.suppress_incident),
    ("GET", "/encompass-tasks", force.show_tasks),
    ("GET", "/encompass-report", proof.show_report),
    ("GET", "/encompass-report.csv", proof.download_report),
    ("GET", "/encompass-schools", proof.show_schools),
    ("POST", "/encompass-tasks/{task_id}/settle", force.settle_task),
    ("GET", "/replies", clinician.show_replies),
    ("POST", "/replies/{reply_id}/seen", clinician.note_seen),
    ("GET", "/operations", operations.show_operations),
    ("GET", "/_ping", operations.ping),
    ("GET", "/_status", operations.show_status),
    ("GET", "/metrics", operations.show_metrics),
    ("GET", "/static/{name}", surroundings.show_static_file),
)

_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'none'; object-src 'none'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_TLS_ONLY: Final = {"Strict-Transport-Security": "max-age=31536000"}
FORM_BYTES_MAX: Final = 65_536
"""What a form with a file may have besides the file."""
_ERROR_PAGES: Final = frozenset({400, 403, 404, 405, 413, 500, 503})


def create_app(
    *,
    database: Database,
    keyring: Keyring,
    clock: Clock,
    settings: Settings,
    status: Callable[[], Awaitable[Status]],
    rules: Rules,
    limits: PageLimits | None = None,
    notice_rules: NoticeRules | None = None,
    incidents: IncidentIntake | None = None,
) -> FastAPI:
    """The pages. Raises RuntimeError when a route has no access rule, or a rule no route.

    Run it without an access log: paths and addresses are nobody's business.
    """
    # No /docs: its pages would load scripts from another site.
    app = FastAPI(
        title="cpis-broker", openapi_url=None, docs_url=None, redoc_url=None, dependencies=[Depends(auth.admit)]
    )
    limits = limits or PageLimits()
    app.state.pages = Pages(
        database=database,
        keyring=keyring,
        clock=clock,
        settings=settings,
        rules=rules,
        notice_rules=notice_rules or NoticeRules(nudges=NudgeRules(page=f"{settings.public_url}/school")),
        incidents=incidents,
        limits=limits,
        templates=surroundings.load_templates(),
        static_files=surroundings.load_static_files(),
    )
    app.state.password_check = PasswordCheck(settings, limits)
    app.state.status = status
    for method, path, endpoint in _ROUTES:
        app.add_api_route(path, endpoint, methods=[method], response_model=None)
    auth.check_access(app.routes, auth.ACCESS)
    app.add_exception_handler(NotSignedIn, _ask_to_sign_in)
    app.add_exception_handler(HTTPException, _show_refusal)
    app.add_exception_handler(RequestValidationError, _show_bad_request)
    app.add_middleware(
        Guard,
        headers=_HEADERS if settings.is_development else {**_HEADERS, **_TLS_ONLY},
        body_bytes_max=settings.http_body_bytes_max,
        file_bytes_max={
            auth.LIST_PATH: settings.list_upload_bytes_max + FORM_BYTES_MAX,
            auth.INCIDENTS_PATH: settings.fhir_bundle_bytes_max + FORM_BYTES_MAX,
        },
        program_answered_s=limits.program_answered_s,
    )
    return app


class Guard:
    """Around every request: the limits of its body and time, the headers of its answer, and an end to every error.

    An error leaves nothing of itself in the answer and only its class and place in the log.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        headers: Mapping[str, str],
        body_bytes_max: int,
        file_bytes_max: Mapping[str, int],
        program_answered_s: float,
    ) -> None:
        self._app = app
        self._headers = headers
        self._body_bytes_max = body_bytes_max
        self._file_bytes_max = file_bytes_max
        self._program_answered_s = program_answered_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers.update(self._headers)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        request = Request(scope, receive)
        try:
            bytes_max = self._file_bytes_max.get(request.url.path, self._body_bytes_max)
            if _declared_length(request) > bytes_max:
                await _draw_error(request, 413)(scope, receive, send_guarded)
                return
            # A page may wait for the database as long as that may take; whoever watches over us may not.
            async with asyncio.timeout(self._program_answered_s if request.url.path in auth.PROGRAMS else None):
                await self._app(scope, _limit(receive, bytes_max), send_guarded)
        except ClientDisconnect:
            return
        except Exception as error:
            log(LogEvent.CRASHED, part="web", error=type(error).__name__, at=innermost_line(error.__traceback__))
            if not started:
                response = _draw_error(request, 503 if is_database_outage(error) else 500)
                await response(scope, receive, send_guarded)


def _limit(receive: Receive, bytes_max: int) -> Receive:
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > bytes_max:
            raise HTTPException(413)
        return message

    return receive_limited


def _declared_length(request: Request) -> int:
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isascii() and declared.isdigit() else 0


async def _ask_to_sign_in(request: Request, _: Exception) -> Response:
    path = request.url.path
    if path in auth.PROGRAMS:
        headers = {"WWW-Authenticate": 'Basic realm="cpis-broker", charset="UTF-8"'}
        return PlainTextResponse("sign in\n", status_code=401, headers=headers)
    return sign_in.redirect_to_sign_in(path, is_lost=request.method != "GET" and path != "/sign-out")


async def _show_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _draw_error(request, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _show_bad_request(request: Request, _: Exception) -> Response:
    return _draw_error(request, 400)


def _draw_error(request: Request, status_code: int) -> Response:
    known = status_code if status_code in _ERROR_PAGES else 500
    response = pages_of(request).render(request, "error.html", status_code=status_code, error=known)
    if known == 503:
        response.headers["Retry-After"] = "10"
    return response
