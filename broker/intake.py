"""Accept bytes, see who sent them and whether they can be understood, append them to the log, answer.

Touches no database: an attendance is accepted while the database is down. AA is said only after the log has the
message durably, also when it was not understood: then it goes to a person, and the department's feed goes on.
"""

from __future__ import annotations

import time
from typing import Final, Protocol

from adapters.errors import NotDurable, NotHl7, Unreadable
from adapters.hl7v2 import AckCode, ErrorCode, Header, NotAnAttendance, build_ack, read_attendance, read_header
from broker.keyring import Keyring
from broker.ports import Clock, Log
from broker.senders import Senders
from broker.telemetry import APPEND_SECONDS, MESSAGES_ACCEPTED, MESSAGES_REFUSED, LogEvent, log
from schemas.attendance import Attendance
from schemas.identifiers import parse_ods_code

RECORD_SEAL: Final = "log-record"
CONTENT_TYPE: Final = b"application/hl7-v2+er7"
EVENT_TYPE: Final = b"uk.cpis-broker.attendance.received.v1"


class Peer(Protocol):
    """Who is at the other end of the connection."""

    @property
    def host(self) -> str:
        """Address of the peer."""
        ...


class Intake:
    """The machine doors' common room."""

    def __init__(self, log_: Log, topic: str, keyring: Keyring, senders: Senders, clock: Clock) -> None:
        self._log = log_
        self._topic = topic
        self._keyring = keyring
        self._senders = senders
        self._clock = clock

    async def accept_hl7v2(self, message: bytes, peer: Peer) -> bytes | None:
        """Take one HL7 v2 message; the answer, or None when it could not be made durable: the sender resends."""
        try:
            header = read_header(message)
        except Unreadable as error:
            return self._refuse(None, error.reason, _refusal_of(error))
        sender = self._senders.admit(parse_ods_code(header.sender) or "", header.credential, peer.host)
        if sender is None:
            return self._refuse(header, "sender_not_permitted", ErrorCode.UNKNOWN_KEY)
        said, problem = _understand(message)
        if not await self._append(message, header, sender.code, said):
            return None
        if problem is None:
            return self._answer(header, "AA", "")
        log(LogEvent.MESSAGE_NOT_UNDERSTOOD, sender=sender.code, reason=problem)
        return self._answer(header, sender.not_understood.value, f"kept, not understood: {problem}")

    async def _append(self, message: bytes, header: Header, sender: str, said: Attendance | None) -> bool:
        message_id = self._keyring.marker(sender, header.control_id, message).hex()
        headers = {
            "content-type": CONTENT_TYPE,
            "ce_specversion": b"1.0",
            "ce_id": message_id.encode(),
            "ce_source": sender.encode(),
            "ce_type": EVENT_TYPE,
            "ce_time": self._clock.now().isoformat().encode(),
            "ce_keyid": self._keyring.current.encode(),
        }
        key = self._keyring.index("key", sender, _ordering_id(said) or message_id)
        value = self._keyring.seal(message, about=RECORD_SEAL)
        began = time.perf_counter()
        try:
            await self._log.append(self._topic, key=key, value=value, headers=headers)
        except NotDurable:
            log(LogEvent.MESSAGE_NOT_DURABLE, sender=sender)
            return False
        APPEND_SECONDS.observe(time.perf_counter() - began)
        MESSAGES_ACCEPTED.labels(door="mllp").inc()
        return True

    def _refuse(self, header: Header | None, reason: str, code: ErrorCode) -> bytes:
        MESSAGES_REFUSED.labels(reason=reason).inc()
        sender = parse_ods_code(header.sender) if header is not None else None
        log(LogEvent.MESSAGE_REFUSED, sender=sender, reason=reason)
        return self._answer(header, "AR", f"refused: {reason.replace('_', ' ')}", code)

    def _answer(
        self, header: Header | None, code: AckCode, text: str, error: ErrorCode = ErrorCode.INTERNAL_ERROR
    ) -> bytes:
        now = self._clock.now()
        control_id = self._keyring.derive_id("ack", header.control_id if header else "", now.isoformat())
        return build_ack(header, code=code, text=text, error_code=error, control_id=control_id[:20].upper(), at=now)


def _understand(message: bytes) -> tuple[Attendance | None, str | None]:
    """What the message says, or why it is not understood. What is no attendance is understood as such."""
    try:
        return read_attendance(message), None
    except NotAnAttendance:
        return None, None
    except Unreadable as error:
        return None, error.reason
    except Exception as error:
        return None, type(error).__name__


def _ordering_id(said: Attendance | None) -> str | None:
    """Messages of one patient keep their order; without a patient those of one visit."""
    return (said.local_patient_id or said.visit_number) if said is not None else None


def _refusal_of(error: Unreadable) -> ErrorCode:
    return ErrorCode.UNSUPPORTED_MESSAGE_TYPE if isinstance(error, NotHl7) else ErrorCode.DATA_TYPE
