"""The machine door for child lists: ``POST /child-lists/{authority}``, CSV or JSON in, the report out.

A system shows its authority's credential with every request, a list officer login and password (HTTP basic, RFC 7617).
The body goes to a sealed spool as it comes; it is never held whole.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from collections.abc import Mapping
from typing import Final

import msgspec
from fastapi import Depends, FastAPI, Request, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters.errors import MalformedFile
from broker.attempts import Attempts
from broker.landing import ListBlocked
from broker.list_answer import report_blocked, report_malformed
from broker.list_comparison import UnknownAuthority, upload_options_of
from broker.list_upload import upload_children
from broker.senders import digest_credential
from broker.spool import SealedSpool, SpoolFull
from broker.storage import directory
from broker.telemetry import LogEvent, innermost_line, log
from broker.web.auth import PasswordCheck
from broker.web.pages import Pages
from schemas.directory import Role
from schemas.identifiers import authority_owner, parse_ods_code
from schemas.upload import FileCode, UploadFormat, UploadKind, UploadReport, UploadState

PATH: Final = "/child-lists/{authority}"
_FORMATS: Final[Mapping[str, UploadFormat]] = {"text/csv": UploadFormat.CSV, "application/json": UploadFormat.JSON}
_UPLOADS_MAX: Final = 2
"""Lists that are read at one time; others wait."""
WORDS: Final[Mapping[int, str]] = {
    400: "kind must be changes or full, dry_run yes or no; or the connection was lost",
    401: "show the authority's code and credential, or a list officer's login and password (HTTP basic)",
    404: "there is no such address",
    405: "this address takes POST only",
    408: "the body did not arrive in time; nothing was loaded",
    413: "the body is larger than is taken here; nothing was loaded",
    415: "send text/csv or application/json, uncompressed",
    500: "the broker failed on this request; nothing was loaded",
    503: "the database does not answer; nothing was loaded: send it again",
}


def create_list_door(pages: Pages, check: PasswordCheck) -> FastAPI:
    """The door, beside the pages and with their surroundings."""
    door = FastAPI(
        title="cpis-broker child lists",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(_admit)],
    )
    door.state.attempts = Attempts()
    door.state.pages, door.state.check, door.state.slots = pages, check, asyncio.Semaphore(_UPLOADS_MAX)
    door.add_api_route(PATH, accept_list, methods=["POST"], response_model=None)
    door.add_exception_handler(HTTPException, _answer_refusal)
    return door


def join_list_door(door: ASGIApp, others: ASGIApp) -> ASGIApp:
    """Both behind one port; the door takes what is under ``/child-lists/``."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        is_door = scope["type"] == "http" and scope["path"].startswith("/child-lists/")
        await (door if is_door else others)(scope, receive, send)

    return serve


async def accept_list(request: Request, authority: str) -> Response:
    """Take one list; what became of it is the answer."""
    form, kind, dry_run = _read_wishes(request)
    pages: Pages = request.app.state.pages
    options = upload_options_of(pages.settings)
    try:
        async with request.app.state.slots:
            with SealedSpool(pages.keyring, bytes_max=options.bytes_max) as spool:
                await _read_body(request, spool, pages.settings.list_upload_timeout_s)
                report = await upload_children(
                    pages.database,
                    pages.keyring,
                    pages.clock,
                    authority=authority,
                    file=spool,
                    uploaded_by=request.state.sender,
                    kind=kind,
                    form=form,
                    dry_run=dry_run,
                    options=options,
                )
    except MalformedFile as error:
        report = report_malformed(authority, kind, error)
    except ListBlocked as error:
        return _respond(409, msgspec.json.encode(report_blocked(authority, kind, error)))
    except UnknownAuthority:
        raise HTTPException(401) from None
    except HTTPException:
        raise
    except (OSError, SQLAlchemyError) as error:
        log(LogEvent.CRASHED, part="lists", error=type(error).__name__, at=innermost_line(error.__traceback__))
        raise HTTPException(503, headers={"Retry-After": "10"}) from None
    except Exception as error:
        log(LogEvent.CRASHED, part="lists", error=type(error).__name__, at=innermost_line(error.__traceback__))
        raise HTTPException(500) from None
    return _respond(_find_status(report), msgspec.json.encode(report))


async def _admit(request: Request) -> None:
    """Let in who may send this authority's list; raises HTTPException 401 for everybody else, alike."""
    pages: Pages = request.app.state.pages
    authority = parse_ods_code(request.path_params.get("authority", "")) or ""
    login, password = _read_basic(request.headers.get("authorization", ""))
    attempts: Attempts = request.app.state.attempts
    host = request.client.host if request.client else ""
    if login == authority:
        is_genuine = attempts.may_try(host, authority) and await _is_genuine(pages, authority, password)
        attempts.note(host, authority, is_genuine=is_genuine)
        if is_genuine:
            request.state.sender = f"system:{authority}"
            return
    elif login:
        person = await request.app.state.check.find_program(pages, login, password)
        if person is not None and person.role is Role.LIST_OFFICER and person.owner == authority_owner(authority):
            request.state.sender = person.login
            return
    raise HTTPException(401, headers={"WWW-Authenticate": 'Basic realm="cpis-broker", charset="UTF-8"'})


async def _is_genuine(pages: Pages, authority: str, credential: str) -> bool:
    async with pages.database.reading() as connection:
        expected = await directory.find_list_credential(connection, authority)
    shown = digest_credential(pages.keyring, authority_owner(authority), credential.encode())
    return hmac.compare_digest(shown, expected or bytes(len(shown))) and expected is not None


def _read_basic(header: str) -> tuple[str, str]:
    scheme, _, encoded = header.partition(" ")
    try:
        login, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return (login, password) if scheme.lower() == "basic" else ("", "")


def _read_wishes(request: Request) -> tuple[UploadFormat, UploadKind, bool]:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if content_type not in _FORMATS or encoding not in ("", "identity"):
        raise HTTPException(415)
    kind, dry_run = request.query_params.get("kind", UploadKind.CHANGES), request.query_params.get("dry_run", "no")
    if kind not in {each.value for each in UploadKind} or dry_run not in ("yes", "no"):
        raise HTTPException(400)
    return _FORMATS[content_type], UploadKind(kind), dry_run == "yes"


async def _read_body(request: Request, spool: SealedSpool, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            async for piece in request.stream():
                spool.write(piece)
    except SpoolFull:
        raise HTTPException(413, headers={"Connection": "close"}) from None
    except TimeoutError:
        raise HTTPException(408, headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise HTTPException(400) from None


def _find_status(report: UploadReport) -> int:
    if report.state is UploadState.HELD:
        return 202
    if report.file_code in (FileCode.MALFORMED, FileCode.VERSION_NOT_SUPPORTED):
        return 400
    return 422 if report.file_code is FileCode.NONE_LOADED else 200


async def _answer_refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code if error.status_code in WORDS else 400
    return _respond(status, msgspec.json.encode({"problem": WORDS[status]}), error.headers or {})


def _respond(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> Response:
    fixed = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return Response(body, status, {**fixed, **(headers or {})}, "application/json")
