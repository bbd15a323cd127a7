"""From a record of the log to what its message says. Never raises: what cannot be read is that record's outcome."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from adapters.content import sniff_content
from adapters.errors import NotAnAttendance, Unreadable
from adapters.fhir import NotAnAttendanceBundle, read_bundle
from adapters.hl7v2 import read_attendance, read_header
from adapters.hl7v2_batch import split_batch
from broker.envelope import HL7V2, KEY_ID_HEADER, RECORD_SEAL, SOURCE_HEADER, Envelope, enclose
from broker.keyring import Keyring, KeyringError
from broker.storage.persons import derive_undone
from broker.storage.replays import Replaying
from schemas.attendance import Attendance, Event
from schemas.identifiers import BROKER_OWNER, OwnerId, organisation_owner, parse_ods_code
from schemas.record import LogRecord, Partition, PositionOutcome

PART_BYTES_MAX: Final = 4_000_000
"""Of one message of a batch: a record of the log takes no more, with room for the envelope."""


_find_code: Final = lru_cache(maxsize=256)(parse_ods_code)
"""Few send, and each of their messages says who."""


class ReadMessage(msgspec.Struct, kw_only=True):
    """One record, read before the transaction, and what becomes of it."""

    record: LogRecord
    body: bytes
    sender: str
    marker: bytes
    said: Attendance | None = None
    patients: tuple[bytes, ...] = ()
    """The blind indexes of the patients whom it names."""
    parts: Sequence[bytes] = ()
    """The messages of an HL7 v2 batch, each to be handled on its own."""
    replaying: Replaying | None = None
    """Set when a person asked for it to be handled again."""
    visit_id: str | None = None
    former_visit_id: str | None = None
    """The visit that the message says is this one."""
    outcome: PositionOutcome | None = None
    reason: str = ""
    detail: str = ""

    @property
    def control_id(self) -> str:
        """What stands beside sender and bytes in its marker."""
        return self.said.control_id if self.said is not None else ""

    @property
    def owner(self) -> OwnerId:
        """Who the position belongs to."""
        return organisation_owner(self.sender) if self.sender else BROKER_OWNER


def said_by(message: ReadMessage) -> Attendance:
    """What a message says that was understood."""
    assert message.said is not None
    return message.said


def read_record(keyring: Keyring, record: LogRecord) -> ReadMessage:
    """Open and read one record, by what its bytes are and not by what its headers say they are."""
    try:
        opened = _Opened(keyring, record, _open_body(keyring, record))
    except KeyringError:
        return leave_unread(keyring, record, "sealed_under_an_unknown_key")
    if sniff_content(opened.body) == "fhir":
        return _read_fhir(opened)
    parts = split_batch(opened.body)
    return _read_hl7v2(opened) if len(parts) == 1 else _take_apart(opened, parts)


def leave_unread(keyring: Keyring, record: LogRecord, reason: str, detail: str = "") -> ReadMessage:
    """One record for the quarantine: opened if it can be, and not read."""
    try:
        body = _open_body(keyring, record)
    except KeyringError:
        body = record.value
    return _set_aside(_Opened(keyring, record, body), Unreadable(reason, detail))


def part_records(keyring: Keyring, merge: Attendance, marker: bytes, now: datetime) -> ReadMessage:
    """What a person says who takes a merge back: the two are two people after all. No message of the log says it."""
    joined_at = merge.event_at or merge.message_at or now
    at = max(now, joined_at + timedelta(seconds=1))
    said = Attendance(
        sender=merge.sender,
        control_id="",
        event=Event.UNLINKED,
        message_at=at,
        event_at=at,
        local_patient_id=merge.local_patient_id,
        former_patient_id=merge.former_patient_id,
    )
    none = LogRecord(partition=Partition("", 0), offset=0, key=None, value=b"", headers={}, appended_at=now)
    undone = derive_undone(keyring, merge.sender, marker)
    return ReadMessage(record=none, body=b"", sender=merge.sender, marker=undone, said=said)


def enclose_parts(keyring: Keyring, message: ReadMessage, at: datetime) -> Iterator[Envelope]:
    """The messages of a batch as records of their own."""
    for part in message.parts:
        said, control_id = None, ""
        try:
            said = read_attendance(part)
            control_id = said.control_id
        except Exception:  # noqa: S110 - it is read again when its turn comes, and ends up where it belongs
            pass
        yield enclose(keyring, part, sender=message.sender, control_id=control_id, said=said, content_type=HL7V2, at=at)


class _Opened(NamedTuple):
    """A record and the message in it."""

    keyring: Keyring
    record: LogRecord
    body: bytes

    def read(self, sender: str, control_id: str) -> ReadMessage:
        """What is known of it once its sender and control id are."""
        marker = self.keyring.marker(sender, control_id, self.body)
        return ReadMessage(record=self.record, body=self.body, sender=sender, marker=marker)

    @property
    def source(self) -> str:
        """Who put the record on the log, by its own word; empty when it does not say."""
        return _find_code(bytes(self.record.headers.get(SOURCE_HEADER, b"")).decode("ascii", "replace")) or ""


def _read_hl7v2(opened: _Opened) -> ReadMessage:
    try:
        said = read_attendance(opened.body)
    except Exception as error:
        return _read_header_only(opened, error)
    return _understand(opened, said, _find_code(said.sender) or opened.source)


def _read_header_only(opened: _Opened, problem: Exception) -> ReadMessage:
    """What becomes of a message that is no attendance or cannot be read; its header may still say whose it is."""
    try:
        header = read_header(opened.body)
    except Unreadable as error:
        return _set_aside(opened, error)
    return _set_aside(opened, problem, sender=parse_ods_code(header.sender) or "", control_id=header.control_id)


def _read_fhir(opened: _Opened) -> ReadMessage:
    """Who sent a Bundle is what the door says, which saw the credential; only without that what the Bundle says."""
    try:
        said = read_bundle(opened.body).attendance
    except NotAnAttendanceBundle as error:
        return _set_aside(opened, error, control_id=error.bundle_id)
    except Exception as error:
        return _set_aside(opened, error)
    return _understand(opened, said, opened.source or parse_ods_code(said.sender) or "")


def _understand(opened: _Opened, said: Attendance, sender: str) -> ReadMessage:
    message = opened.read(sender, said.control_id)
    message.said = said if said.sender == sender else msgspec.structs.replace(said, sender=sender)
    return message


def _take_apart(opened: _Opened, parts: Sequence[bytes]) -> ReadMessage:
    if max(map(len, parts)) > PART_BYTES_MAX:
        # It came compressed and would not fit on the log by itself: a person has to look at it.
        return _set_aside(opened, Unreadable("part_too_large", "a message of the batch is too large by itself"))
    message = opened.read(opened.source, "")
    message.parts = parts
    message.outcome, message.reason = PositionOutcome.IGNORED, "taken_apart"
    return message


def _set_aside(opened: _Opened, problem: Exception, *, sender: str = "", control_id: str = "") -> ReadMessage:
    """What is no attendance is ignored; what cannot be read goes to a person."""
    message = opened.read(sender or opened.source, control_id)
    if isinstance(problem, NotAnAttendance):
        message.outcome, message.reason = PositionOutcome.IGNORED, problem.reason
    elif isinstance(problem, Unreadable):
        message.outcome, message.reason = PositionOutcome.QUARANTINED, problem.reason
        message.detail = problem.detail
    else:
        message.outcome, message.reason = PositionOutcome.QUARANTINED, "could_not_be_read"
        message.detail = type(problem).__name__
    return message


def _open_body(keyring: Keyring, record: LogRecord) -> bytes:
    return keyring.open(record.value, about=RECORD_SEAL) if KEY_ID_HEADER in record.headers else record.value
