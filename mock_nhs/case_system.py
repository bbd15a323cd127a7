"""An authority's case management system: takes the signed webhook, verifies it, keeps each alert once.

The signature is the one of Standard Webhooks 1.0: ``webhook-signature`` holds ``v1,`` and the base64 of HMAC-SHA256
over ``id.timestamp.body``, verified here by code of its own. Answers: 200 kept (or kept before), 400 not an alert,
401 signature wrong or older than five minutes, 404 no such authority, 422 the alert is for another authority.

As a program: ``python -m mock_nhs.case_system --port 8081 --people DIR --record FILE``; an authority's webhook is
``/alerts/CODE``. Its journal has a line for every request: ``alert``, ``update``, ``withdrawal`` or ``coverage``, the
same with ``_repeated``, ``refused`` with the reason,
``failed_on_purpose`` with the fault, ``followed_redirect``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import csv
import hmac
import json
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from mock_nhs.faults import Faults, add_fault_argument, read_faults
from mock_nhs.http_listener import Answer, HttpServer, Request
from mock_nhs.journal import Journal, read_journal
from mock_nhs.town import read_secret

_REFUSALS: Final = (
    ("case.refuse_400", HTTPStatus.BAD_REQUEST),
    ("case.refuse_503", HTTPStatus.SERVICE_UNAVAILABLE),
    ("case.429_retry_after", HTTPStatus.TOO_MANY_REQUESTS),
    ("case.redirect", HTTPStatus.TEMPORARY_REDIRECT),
)


@dataclass(frozen=True, kw_only=True)
class CaseOptions:
    """How the system behaves."""

    secrets: Mapping[str, bytes]
    """The webhook secret of every authority it serves, by code."""
    host: str = "127.0.0.1"
    port: int = 0
    tolerance_s: int = 300
    idle_s: float = 60.0
    retry_after_s: int = 1
    """What the fault ``case.429_retry_after`` asks for."""
    slow_pause_s: float = 0.5
    """The pause of the fault ``case.slow``."""


class Refused(Exception):
    """A request that is not taken: its status, and a closed word for why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """An alert as the case system keeps it."""

    idempotency_key: str
    alert_id: str
    authority: str
    body: bytes

    @property
    def alert(self) -> dict[str, Any]:
        """The alert, as plain JSON."""
        content: dict[str, Any] = json.loads(self.body)
        return content


def verify_signature(request: Request, secret: bytes, *, now_s: float, tolerance_s: int) -> str:
    """The webhook's id when its signature is right and its time is near. Raises Refused."""
    headers = request.headers
    webhook_id, stamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not webhook_id or not (stamp.isascii() and stamp.isdigit()):
        raise Refused(HTTPStatus.UNAUTHORIZED, "unsigned")
    signed = f"{webhook_id}.{stamp}.".encode("latin-1") + request.body
    expected = hmac.digest(secret, signed, "sha256")
    if not any(
        hmac.compare_digest(expected, given) for given in _read_signatures(headers.get("webhook-signature", ""))
    ):
        raise Refused(HTTPStatus.UNAUTHORIZED, "wrong_signature")
    if abs(now_s - int(stamp)) > tolerance_s:
        raise Refused(HTTPStatus.UNAUTHORIZED, "old_signature")
    return webhook_id


def _read_signatures(header: str) -> list[bytes]:
    """The signatures of version 1 in a header that may hold several, separated by spaces."""
    found = []
    for item in header.split():
        version, _, encoded = item.partition(",")
        if version == "v1":
            try:
                found.append(base64.b64decode(encoded, validate=True))
            except binascii.Error:
                continue
    return found


KINDS: Final = {"withdrawn_at": "withdrawal", "noticed_at": "coverage", "notice_id": "update"}
"""What a message is, by the field that only it has; in this order."""


def read_alert(request: Request, webhook_id: str, authority: str) -> Receipt:
    """The alert in a verified request. Raises Refused."""
    try:
        content = json.loads(request.body)
        # What is said of a list is of no alert.
        alert_id, addressed = content.get("alert_id") or content["notice_id"], content["authority"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Refused(HTTPStatus.BAD_REQUEST, "not_an_alert") from None
    if addressed != authority:
        raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, "for_another_authority")
    return Receipt(idempotency_key=webhook_id, alert_id=alert_id, authority=authority, body=request.body)


class CaseSystem(HttpServer):
    """The HTTP server. ``receipts`` are the alerts kept since it was started, each once."""

    def __init__(
        self,
        options: CaseOptions,
        record: Path,
        faults: Faults | None = None,
        on_receipt: Callable[[Receipt], None] = lambda receipt: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """``record`` is the journal's file; a system that starts again remembers what it kept."""
        super().__init__(options.host, options.port, idle_s=options.idle_s, faults=faults or Faults())
        self._options = options
        self._journal = Journal(record)
        self._kept = {
            line["idempotency_key"]: line["body_digest"]
            for line in read_journal(record)
            if line["what"] in ("alert", *KINDS.values())
        }
        self._on_receipt = on_receipt
        self._clock = clock
        self.receipts: list[Receipt] = []

    async def stop(self) -> None:
        """Close every connection."""
        await super().stop()
        self._journal.close()

    async def _answer(self, request: Request) -> tuple[bytes, bool]:
        """The bytes to write, and whether the connection closes after them."""
        if request.path.startswith("/redirected/"):
            self._note("followed_redirect")
            return Answer(status=HTTPStatus.OK).as_bytes(), False
        if self._fails("case.drop_after_read"):
            return b"", True
        for fault, status in _REFUSALS:
            if self._fails(fault):
                return self._refuse_on_purpose(status).as_bytes(), False
        try:
            answer = self._take(request).as_bytes()
        except Refused as refused:
            self._note("refused", status=int(refused.status), reason=refused.reason)
            return Answer(status=refused.status, content={"reason": refused.reason}).as_bytes(), False
        if self._fails("case.slow"):
            await asyncio.sleep(self._options.slow_pause_s)
        if self._fails("case.drop_after_keep"):
            return b"", True
        if self._fails("case.half_response"):
            return answer[:20], True
        return answer, False

    def _refuse_unread(self, status: int) -> Answer:
        self._note("refused", status=int(status), reason="bad_request")
        return Answer(status=status, headers={"Connection": "close"})

    def _refuse_on_purpose(self, status: int) -> Answer:
        headers = {}
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            headers["Retry-After"] = str(self._options.retry_after_s)
        elif status == HTTPStatus.TEMPORARY_REDIRECT:
            headers["Location"] = f"{self.url}/redirected/here"
        return Answer(status=status, headers=headers)

    def _take(self, request: Request) -> Answer:
        """Verify and keep. Raises Refused."""
        room, _, authority = request.path.removeprefix("/").partition("/")
        secret = self._options.secrets.get(authority)
        if room != "alerts" or secret is None:
            raise Refused(HTTPStatus.NOT_FOUND, "no_such_authority")
        if request.method != "POST":
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "not_a_post")
        webhook_id = verify_signature(
            request, secret, now_s=self._clock().timestamp(), tolerance_s=self._options.tolerance_s
        )
        self._keep(read_alert(request, webhook_id, authority))
        return Answer(status=HTTPStatus.OK, content={"received": webhook_id})

    def _keep(self, receipt: Receipt) -> None:
        """Write the alert down; a repeat is known by its key, and should have the very bytes of the first."""
        digest = sha256(receipt.body).hexdigest()
        repeated = receipt.idempotency_key in self._kept
        first = self._kept.setdefault(receipt.idempotency_key, digest)
        alert = receipt.alert
        what = next((kind for name, kind in KINDS.items() if name in alert), "alert")
        self._note(
            f"{what}_repeated" if repeated else what,
            idempotency_key=receipt.idempotency_key,
            alert_id=receipt.alert_id,
            authority=receipt.authority,
            local_id=_read_local_id(alert),
            body_digest=digest,
            repeat_differs=first != digest,
        )
        if not repeated:
            self.receipts.append(receipt)
            self._on_receipt(receipt)

    def _note(self, what: str, **facts: str | int | bool) -> None:
        self._journal.write(what, at=self._clock().isoformat(), **facts)


def _read_local_id(alert: Mapping[str, Any]) -> str:
    child = alert.get("child")
    return str(child.get("local_id", "")) if isinstance(child, dict) else ""


def describe_receipt(receipt: Receipt) -> str:
    """An alert as the case system's screen shows it."""
    return f"authority {receipt.authority}: alert {receipt.alert_id} for {_read_local_id(receipt.alert)}"


def read_secrets(people: Path) -> dict[str, bytes]:
    """The authorities' webhook secrets from ``authorities.csv``."""
    with (people / "authorities.csv").open(newline="", encoding="utf-8") as file:
        return {row["code"]: read_secret(row["webhook_secret"]) for row in csv.DictReader(file)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="mock_nhs.case_system", description="Authorities' case systems.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="a free one if left out")
    parser.add_argument("--people", type=Path, required=True, metavar="DIR", help="what mock_nhs.town wrote")
    parser.add_argument("--record", type=Path, required=True, metavar="FILE", help="the journal, JSON lines")
    parser.add_argument("--seed", type=int, default=1, help="of faults armed with a share")
    parser.add_argument("--show", action="store_true", help="print every alert")
    add_fault_argument(parser)
    asyncio.run(_run(parser.parse_args(arguments)))


async def _run(given: argparse.Namespace) -> None:
    faults = read_faults(given.fault, seed=given.seed)
    system = CaseSystem(
        CaseOptions(secrets=read_secrets(given.people), host=given.host, port=given.port),
        given.record,
        faults,
        on_receipt=lambda receipt: print(describe_receipt(receipt), flush=True) if given.show else None,
    )
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    print(f"listening {given.host} {await system.start()}", flush=True)
    await stopping.wait()
    await system.stop()
    print(json.dumps({"alerts": len(system.receipts), "faults": +faults.fired}), flush=True)


if __name__ == "__main__":
    main()
