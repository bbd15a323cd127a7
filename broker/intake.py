"""Accept bytes, see who sent them and whether they can be understood, append them to the log, answer.

Touches no database: an attendance is accepted while the database is down. Nothing is said to be kept before the log
has it durably. What is kept and not understood goes to a person, and the department's feed goes on.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from adapters.errors import NotAnAttendance, NotDurable, NotHl7, Unreadable
from adapters.fhir import Finding, NotAnAttendanceBundle, UnreadableBundle, read_bundle
from adapters.hl7v2 import AckCode, ErrorCode, Header, build_ack, read_header, read_ordering
from adapters.hl7v2_batch import is_batch, join_answers, split_batch
from broker.envelope import FHIR, HL7V2, Envelope, enclose
from broker.keyring import Keyring
from broker.ports import Clock, Log
from broker.senders import Senders
from broker.telemetry import APPEND_SECONDS, MESSAGES_ACCEPTED, MESSAGES_REFUSED, LogEvent, log
from schemas.attendance import Attendance
from schemas.directory import Sender
from schemas.identifiers import parse_ods_code


class Peer(Protocol):
    """Who is at the other end of the connection."""

    @property
    def host(self) -> str:
        """Address of the peer."""
        ...


class FhirAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a sender of a Bundle is told: an HTTP status, and what was found. ``message_id`` only when it is kept."""

    status: int
    message_id: str | None = None
    findings: tuple[Finding, ...] = ()


ACCEPTED: Final = 202
NOT_DURABLE: Final = 503
_REFUSALS: Final[Mapping[str, int]] = {
    "message_too_large": 413,
    "not_json": 400,
    "too_deep": 400,
    "duplicate_keys": 400,
    "not_a_bundle": 400,
    "unreadable_structure": 400,
}
"""HTTP status of what cannot be kept; 422 for everything that is JSON and a Bundle and still says nobody's name."""


class Intake:
    """The machine doors' common room."""

    def __init__(self, log_: Log, topic: str, keyring: Keyring, senders: Senders, clock: Clock) -> None:
        self._log = log_
        self._topic = topic
        self._keyring = keyring
        self._senders = senders
        self._clock = clock
        self._accepted = {door: MESSAGES_ACCEPTED.labels(door=door) for door in ("mllp", "fhir")}
        # An answer's own id (MSH-10) is never given twice, in 20 characters (v2.4, 2.16.9.10).
        self._answers_of = secrets.token_hex(5).upper()
        self._answers = itertools.count(1)

    async def accept_hl7v2(self, frame: bytes, peer: Peer) -> bytes | None:
        """Take the HL7 v2 messages of a frame; the answer, or None when one was not made durable: all are resent."""
        messages = split_batch(frame)
        if len(messages) == 1 and not is_batch(frame):
            return await self._accept_message(messages[0], peer)
        answers = await asyncio.gather(*(self._accept_message(message, peer) for message in messages))
        kept = [answer for answer in answers if answer is not None]
        if len(kept) < len(answers):
            return None
        return join_answers(kept, in_batch=is_batch(frame)) if len(kept) > 1 else kept[0]

    async def accept_fhir(self, body: bytes, sender: Sender) -> FhirAnswer:
        """Take one FHIR R4 Bundle of a sender that showed its credential."""
        said: Attendance | None = None
        try:
            # In a thread: a large Bundle must not hold up the others.
            reading = await asyncio.to_thread(read_bundle, body)
        except NotAnAttendanceBundle as error:
            control_id, findings = error.bundle_id, error.findings
        except UnreadableBundle as error:
            MESSAGES_REFUSED.labels(reason=error.reason).inc()
            log(LogEvent.MESSAGE_REFUSED, sender=sender.code, reason=error.reason)
            return FhirAnswer(status=_REFUSALS.get(error.reason, 422), findings=error.findings)
        else:
            said, findings = reading.attendance, reading.findings
            control_id = said.control_id
        envelope = self._enclose(body, sender.code, control_id, FHIR, said=said)
        if not await self._append(envelope, sender.code, door="fhir"):
            return FhirAnswer(status=NOT_DURABLE)
        if said is not None and said.is_degraded:
            log(LogEvent.MESSAGE_DEGRADED, sender=sender.code, count=len(findings))
        return FhirAnswer(status=ACCEPTED, message_id=envelope.message_id, findings=findings)

    async def _accept_message(self, message: bytes, peer: Peer) -> bytes | None:
        try:
            header = read_header(message)
        except Unreadable as error:
            return self._refuse(None, error.reason, _refusal_of(error))
        sender = self._senders.admit(parse_ods_code(header.sender) or "", header.credential, peer.host)
        if sender is None:
            return self._refuse(header, "sender_not_permitted", ErrorCode.UNKNOWN_KEY)
        ordering_id, problem = _understand(message, header)
        envelope = self._enclose(message, sender.code, header.control_id, HL7V2, ordering_id=ordering_id)
        if not await self._append(envelope, sender.code, door="mllp"):
            return None
        if problem is None:
            return self._answer(header, "AA", "")
        log(LogEvent.MESSAGE_NOT_UNDERSTOOD, sender=sender.code, reason=problem)
        return self._answer(header, sender.not_understood.value, f"kept, not understood: {problem}")

    def _enclose(
        self,
        body: bytes,
        sender: str,
        control_id: str,
        content_type: str,
        *,
        said: Attendance | None = None,
        ordering_id: str | None = None,
    ) -> Envelope:
        return enclose(
            self._keyring,
            body,
            sender=sender,
            control_id=control_id,
            said=said,
            content_type=content_type,
            at=self._clock.now(),
            ordering_id=ordering_id,
        )

    async def _append(self, envelope: Envelope, sender: str, *, door: str) -> bool:
        began = time.perf_counter()
        try:
            await self._log.append(self._topic, key=envelope.key, value=envelope.value, headers=envelope.headers)
        except NotDurable:
            log(LogEvent.MESSAGE_NOT_DURABLE, sender=sender)
            return False
        APPEND_SECONDS.observe(time.perf_counter() - began)
        self._accepted[door].inc()
        return True

    def _refuse(self, header: Header | None, reason: str, code: ErrorCode) -> bytes:
        MESSAGES_REFUSED.labels(reason=reason).inc()
        sender = self._senders.known(parse_ods_code(header.sender) or "") if header is not None else None
        log(LogEvent.MESSAGE_REFUSED, sender=sender, reason=reason)
        return self._answer(header, "AR", f"refused: {reason.replace('_', ' ')}", code)

    def _answer(
        self, header: Header | None, code: AckCode, text: str, error: ErrorCode = ErrorCode.INTERNAL_ERROR
    ) -> bytes:
        control_id = f"{self._answers_of}{next(self._answers):010X}"
        return build_ack(header, code=code, text=text, error_code=error, control_id=control_id, at=self._clock.now())


def _understand(message: bytes, header: Header) -> tuple[str | None, str | None]:
    """What orders the message, or why it is not understood. What is no attendance is understood as such."""
    try:
        return read_ordering(message, header), None
    except NotAnAttendance:
        return None, None
    except Unreadable as error:
        return None, error.reason
    except Exception as error:
        return None, type(error).__name__


def _refusal_of(error: Unreadable) -> ErrorCode:
    return ErrorCode.UNSUPPORTED_MESSAGE_TYPE if isinstance(error, NotHl7) else ErrorCode.DATA_TYPE
