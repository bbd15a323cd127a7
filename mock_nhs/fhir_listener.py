"""A department's FHIR server: takes the broker's replies as message Bundles at ``/FHIR/R4/$process-message``.

A reply counts once however often it comes: the MessageHeader's id is what tells. What is wrong with a reply is
written down beside it, for the department answers 200 to all that it has kept.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from uuid import UUID

from mock_nhs.faults import Faults
from mock_nhs.fhir_bundle import FHIR_JSON, NotAReply, read_reply_bundle
from mock_nhs.http_listener import Answer, HttpServer, Request
from mock_nhs.journal import Journal
from mock_nhs.reply_book import Reply, ReplyBook

PATH: Final = "/FHIR/R4/$process-message"
_REFUSALS: Final = (
    ("ed.fhir.refuse_400", HTTPStatus.BAD_REQUEST),
    ("ed.fhir.refuse_503", HTTPStatus.SERVICE_UNAVAILABLE),
    ("ed.fhir.429_retry_after", HTTPStatus.TOO_MANY_REQUESTS),
    ("ed.fhir.redirect", HTTPStatus.TEMPORARY_REDIRECT),
)


@dataclass(frozen=True, kw_only=True)
class FhirListenerOptions:
    """How the server behaves."""

    host: str = "127.0.0.1"
    port: int = 0
    token: str = ""
    """The bearer token that it asks for; empty: none."""
    idle_s: float = 60.0
    retry_after_s: int = 1
    """What the fault ``ed.fhir.429_retry_after`` asks for."""
    slow_pause_s: float = 0.5
    """The pause of the fault ``ed.fhir.slow``."""


class Refused(Exception):
    """A request that is not taken: its status, and a closed word for why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class FhirListener(HttpServer):
    """Takes replies, keeps each once, answers with an OperationOutcome; or fails on purpose."""

    path = PATH

    def __init__(
        self,
        options: FhirListenerOptions,
        faults: Faults,
        journal: Journal,
        book: ReplyBook,
        visits: Mapping[str, str],
        *,
        on_request: Callable[[Request], None] = lambda request: None,
    ) -> None:
        """``on_request`` hears every request that was read whole."""
        super().__init__(options.host, options.port, idle_s=options.idle_s, faults=faults)
        self._options = options
        self._journal = journal
        self._book = book
        self._visits = visits
        self._on_request = on_request

    async def _answer(self, request: Request) -> tuple[bytes, bool]:
        """The bytes to write, and whether the connection closes after them."""
        self._on_request(request)
        fires = self.faults.fires
        if request.path.startswith("/redirected/"):
            self._note("followed_redirect")
            return _compose(HTTPStatus.OK, "informational").as_bytes(), False
        if fires("ed.fhir.drop_after_read"):
            return b"", True
        for fault, status in _REFUSALS:
            if fires(fault):
                return self._refuse_on_purpose(status).as_bytes(), False
        try:
            self._book.keep(self._take(request))
        except Refused as refused:
            return self._refuse(refused).as_bytes(), False
        if fires("ed.fhir.slow"):
            await asyncio.sleep(self._options.slow_pause_s)
        if fires("ed.fhir.drop_after_keep"):
            return b"", True
        answer = _compose(HTTPStatus.OK, "informational").as_bytes()
        if fires("ed.fhir.half_response"):
            return answer[:20], True
        return answer, False

    def _take(self, request: Request) -> Reply:
        """Check and read. Raises Refused."""
        if request.path != PATH:
            raise Refused(HTTPStatus.NOT_FOUND, "no_such_path")
        if request.method != "POST":
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "not_a_post")
        expected = f"Bearer {self._options.token}" if self._options.token else ""
        if not hmac.compare_digest(request.headers.get("authorization", "").encode(), expected.encode()):
            raise Refused(HTTPStatus.UNAUTHORIZED, "wrong_token")
        if request.headers.get("content-type", "").partition(";")[0] != FHIR_JSON:
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "not_fhir_json")
        for header in ("x-request-id", "x-correlation-id"):
            if not _is_uuid(request.headers.get(header, "")):
                raise Refused(HTTPStatus.BAD_REQUEST, "no_request_id")
        try:
            return read_reply_bundle(request.body, self._visits)
        except NotAReply:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "not_a_reply") from None

    def _refuse_unread(self, status: int) -> Answer:
        return self._refuse(Refused(status, "bad_request"))

    def _refuse(self, refused: Refused) -> Answer:
        self._note("reply_refused", status=int(refused.status), reason=refused.reason)
        return _compose(refused.status, "invalid", severity="error")

    def _refuse_on_purpose(self, status: int) -> Answer:
        headers = {}
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            headers["Retry-After"] = str(self._options.retry_after_s)
        elif status == HTTPStatus.TEMPORARY_REDIRECT:
            headers["Location"] = f"{self.origin}/redirected/here"
        return _compose(status, "transient", severity="error", headers=headers)

    def _note(self, what: str, **facts: str | int) -> None:
        self._journal.write(what, **facts)


def _compose(
    status: int, code: str, *, severity: str = "information", headers: Mapping[str, str] | None = None
) -> Answer:
    outcome = {"resourceType": "OperationOutcome", "issue": [{"severity": severity, "code": code}]}
    return Answer(status=status, content=outcome, headers={"Content-Type": FHIR_JSON, **(headers or {})})


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
