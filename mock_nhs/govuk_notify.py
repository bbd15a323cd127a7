"""GOV.UK Notify, as one service's program sees it: ``/v2/notifications``.

``POST .../email`` and ``.../sms`` take a message under a JWT that the service's key has signed (HS256, issued within 30
seconds), with one of the service's templates and a value for its gap; every copy is kept, whatever its reference.
``GET`` lists them by ``reference``, the newest first, ``GET .../{id}`` shows one. Errors have the published shape.

What becomes of a message is known by its address, as for Notify's own test keys: ``perm-fail@simulator.notify`` and
07700 900002 end as ``permanent-failure``, ``temp-fail@simulator.notify`` and 07700 900003 as ``temporary-failure``,
every other as ``delivered``. With ``--course created,sending`` that is said first, one word each time that it is asked.

As a program: ``python -m mock_nhs.govuk_notify --port 8084 --api-key KEY --template ID:KIND --record FILE``, each
template once. Its journal has a line for every request: ``taken`` with the kind and the reference, ``refused`` with the
status and the reason, ``listed``, ``failed_on_purpose`` with the fault.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs
from uuid import uuid4

from mock_nhs.faults import Faults, add_fault_argument, read_faults
from mock_nhs.http_listener import Answer, HttpServer, Request
from mock_nhs.journal import Journal

PATH: Final = "/v2/notifications"
TOKEN_S_MAX: Final = 30
_TO: Final = {"email": "email_address", "sms": "phone_number"}
_EMAIL: Final = re.compile(r"[^@\s,;<>]+@[^@\s,;<>]+\.[^@\s,;<>]+", re.ASCII)
_FAILING: Final = {
    "perm-fail@simulator.notify": "permanent-failure",
    "temp-fail@simulator.notify": "temporary-failure",
    "7700900002": "permanent-failure",
    "7700900003": "temporary-failure",
}
_MOBILE: Final = re.compile(r"(?:\+44|0)7[0-9]{9}", re.ASCII)
_REFUSALS: Final = (
    ("notify.refuse_400", HTTPStatus.BAD_REQUEST, "BadRequestError"),
    ("notify.refuse_403", HTTPStatus.FORBIDDEN, "AuthError"),
    ("notify.refuse_429", HTTPStatus.TOO_MANY_REQUESTS, "RateLimitError"),
    ("notify.refuse_500", HTTPStatus.INTERNAL_SERVER_ERROR, "Exception"),
)


@dataclass(frozen=True, kw_only=True)
class NotifyOptions:
    """The service, and how this side behaves."""

    api_key: str
    """A name, the service's id and the secret, with hyphens between them."""
    templates: Mapping[str, str]
    """By id: ``email`` or ``sms``."""
    host: str = "127.0.0.1"
    port: int = 0
    course: tuple[str, ...] = ()
    """What is said of a message before its end, one word each time that it is asked: ``created``, ``sending``."""
    idle_s: float = 60.0
    slow_pause_s: float = 0.5
    """The pause of the fault ``notify.slow``."""


@dataclass(frozen=True, kw_only=True)
class Notification:
    """A message that was taken."""

    id: str
    kind: str
    to: str
    message: str
    reference: str
    status: str
    """What becomes of it at last."""
    asked: int = 0
    """How often somebody asked what became of it."""


@dataclass(kw_only=True)
class Refused(Exception):
    """A request that is not taken: its status, Notify's word for why, and what it says."""

    status: int
    error: str
    message: str = field(default="")


class GovukNotify(HttpServer):
    """Listens on loopback and keeps what it takes."""

    def __init__(
        self,
        options: NotifyOptions,
        faults: Faults | None = None,
        journal: Journal | None = None,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(options.host, options.port, idle_s=options.idle_s, faults=faults or Faults())
        self.kept: list[Notification] = []
        self.course = options.course
        self._options = options
        self._journal = journal
        self._clock = clock

    def fail(self, reference: str, status: str) -> None:
        """What was taken under this reference did not reach anybody: ``permanent-failure`` or another."""
        self.kept = [replace(each, status=status) if each.reference == reference else each for each in self.kept]

    def forget(self) -> None:
        """What was taken is not kept any longer: after seven days Notify knows nothing of it."""
        self.kept.clear()

    async def _answer(self, request: Request) -> tuple[bytes, bool]:
        """The bytes to write, and whether the connection closes after them."""
        try:
            self._check_token(request)
            if request.method == "GET":
                if self._fails("notify.refuse_listing"):
                    return _refuse(Refused(status=HTTPStatus.SERVICE_UNAVAILABLE, error="Exception")).as_bytes(), False
                if self._fails("notify.drop_listing"):
                    return b"", True
                return self._show(request).as_bytes(), False
            if self._fails("notify.drop_after_read"):
                return b"", True
            for fault, status, error in _REFUSALS:
                if self._fails(fault):
                    return _refuse(Refused(status=status, error=error)).as_bytes(), False
            taken = self._take(request)
        except Refused as refused:
            self._note("refused", status=int(refused.status), reason=refused.error)
            return _refuse(refused).as_bytes(), False
        self.kept.append(taken)
        self._note("taken", kind=taken.kind, reference=taken.reference)
        if self._fails("notify.slow"):
            await asyncio.sleep(self._options.slow_pause_s)
        if self._fails("notify.drop_after_keep"):
            return b"", True
        answer = Answer(status=HTTPStatus.CREATED, content=_describe(taken, "created")).as_bytes()
        if self._fails("notify.half_response"):
            return answer[:20], True
        return answer, False

    def _check_token(self, request: Request) -> None:
        """The JWT of RFC 7519: signed by the service's key with HS256, and issued just now. Raises Refused."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        parts = token.split(".")
        if scheme != "Bearer" or len(parts) != 3:
            raise Refused(status=HTTPStatus.UNAUTHORIZED, error="AuthError", message="Unauthorized: no token")
        service, secret = self._options.api_key[-73:-37], self._options.api_key[-36:]
        signature = hmac.new(secret.encode(), f"{parts[0]}.{parts[1]}".encode(), hashlib.sha256).digest()
        try:
            head, claims, given = json.loads(_decode(parts[0])), json.loads(_decode(parts[1])), _decode(parts[2])
            is_known = claims["iss"] == service and head["alg"] == "HS256" and head["typ"] == "JWT"
            age_s = self._clock().timestamp() - int(claims["iat"])
        except (ValueError, KeyError, TypeError, binascii.Error):
            raise Refused(status=HTTPStatus.FORBIDDEN, error="AuthError", message="Invalid token") from None
        if not is_known or not hmac.compare_digest(signature, given):
            raise Refused(status=HTTPStatus.FORBIDDEN, error="AuthError", message="Invalid token: signature")
        if abs(age_s) > TOKEN_S_MAX:
            raise Refused(status=HTTPStatus.FORBIDDEN, error="AuthError", message="Error: your system clock")

    def _take(self, request: Request) -> Notification:
        """Raises Refused."""
        kind = request.path.removeprefix(f"{PATH}/")
        if request.method != "POST" or kind not in _TO:
            raise Refused(status=HTTPStatus.NOT_FOUND, error="NoResultFound")
        try:
            said: Any = json.loads(request.body)
            to, template = str(said[_TO[kind]]), str(said["template_id"])
            message, reference = str(said["personalisation"]["message"]), str(said.get("reference", ""))
        except (ValueError, KeyError, TypeError):
            raise Refused(status=HTTPStatus.BAD_REQUEST, error="ValidationError") from None
        if self._options.templates.get(template) != kind:
            raise Refused(status=HTTPStatus.BAD_REQUEST, error="BadRequestError", message="Template not found")
        if not (_EMAIL if kind == "email" else _MOBILE).fullmatch(to):
            raise Refused(status=HTTPStatus.BAD_REQUEST, error="ValidationError", message="Not a valid recipient")
        status = _FAILING.get(to if kind == "email" else to[-10:], "delivered")
        return Notification(id=str(uuid4()), kind=kind, to=to, message=message, reference=reference, status=status)

    def _show(self, request: Request) -> Answer:
        """Raises Refused."""
        self._note("listed")
        if request.path == PATH:
            references = parse_qs(request.query).get("reference", [])
            found = [each for each in reversed(self.kept) if not references or each.reference in references]
            return Answer(status=HTTPStatus.OK, content={"notifications": self._ask(found), "links": {}})
        for each in self.kept:
            if request.path == f"{PATH}/{each.id}":
                return Answer(status=HTTPStatus.OK, content=self._ask([each])[0])
        raise Refused(status=HTTPStatus.NOT_FOUND, error="NoResultFound")

    def _ask(self, found: Sequence[Notification]) -> list[dict[str, Any]]:
        """As they stand; whoever asks again finds them one step further."""
        shown = [_describe(each, (*self.course, each.status)[min(each.asked, len(self.course))]) for each in found]
        ids = {each.id for each in found}
        self.kept = [replace(each, asked=each.asked + 1) if each.id in ids else each for each in self.kept]
        return shown

    def _refuse_unread(self, status: int) -> Answer:
        return _refuse(Refused(status=status, error="BadRequestError"))

    def _note(self, what: str, **facts: str | int) -> None:
        if self._journal is not None:
            self._journal.write(what, at=self._clock().isoformat(), **facts)


def _describe(kept: Notification, status: str) -> dict[str, Any]:
    return {
        "id": kept.id,
        "reference": kept.reference,
        "type": kept.kind,
        _TO[kept.kind]: kept.to,
        "body": kept.message,
        "status": status,
    }


def _refuse(refused: Refused) -> Answer:
    errors = [{"error": refused.error, "message": refused.message}]
    return Answer(status=refused.status, content={"status_code": int(refused.status), "errors": errors})


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="mock_nhs.govuk_notify", description="GOV.UK Notify.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="a free one if left out")
    parser.add_argument("--api-key", required=True, metavar="NAME-SERVICE-SECRET")
    parser.add_argument("--template", action="append", default=[], metavar="ID:KIND", help="email or sms")
    parser.add_argument("--course", default="", metavar="STATUS,STATUS", help="said of a message before its end")
    parser.add_argument("--record", type=Path, required=True, metavar="FILE", help="the journal, JSON lines")
    parser.add_argument("--seed", type=int, default=1, help="of faults armed with a share")
    add_fault_argument(parser)
    asyncio.run(_run(parser.parse_args(arguments)))


async def _run(given: argparse.Namespace) -> None:
    faults = read_faults(given.fault, seed=given.seed)
    templates = dict(text.rsplit(":", 1) for text in given.template)
    course = tuple(word for word in given.course.split(",") if word)
    options = NotifyOptions(api_key=given.api_key, templates=templates, host=given.host, port=given.port, course=course)
    service = GovukNotify(options, faults, Journal(given.record))
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    print(f"listening {given.host} {await service.start()}", flush=True)
    await stopping.wait()
    await service.stop()
    print(json.dumps({"taken": len(service.kept), "faults": +faults.fired}), flush=True)


if __name__ == "__main__":
    main()
