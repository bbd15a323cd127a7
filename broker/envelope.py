"""A message on its way to the log: sealed bytes, headers that say where they are from, and the key that orders them.

Headers follow the Kafka binding of CloudEvents 1.0 in binary mode (``ce_*``). Foreign producers may leave them out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

import msgspec

from broker.keyring import Keyring
from schemas.attendance import Attendance

RECORD_SEAL: Final = "log-record"
KEY_ID_HEADER: Final = "ce_keyid"
SOURCE_HEADER: Final = "ce_source"
CONTENT_TYPE_HEADER: Final = "content-type"
HL7V2: Final = "application/hl7-v2+er7"
FHIR: Final = "application/fhir+json"
INCIDENT_JSON: Final = "application/json"
REPLAY_HEADER: Final = "cpis_replay"
"""The request of a person that a message be handled again."""
REPLAY_OF_HEADER: Final = "cpis_replay_of"
"""The position where the message was handled first: partition, offset and log id."""
EVENT_TYPE: Final = b"uk.cpis-broker.attendance.received.v1"
INCIDENT_TYPE: Final = b"uk.cpis-broker.incident.received.v1"
_PLACE: Final = re.compile(rb"([0-9]{1,9})/([0-9]{1,18})/([!-~]{1,200})")


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """One record about to be appended. ``message_id`` is what its sender is told."""

    message_id: str
    key: bytes
    value: bytes
    headers: dict[str, bytes]


def enclose(
    keyring: Keyring,
    body: bytes,
    *,
    sender: str,
    control_id: str,
    said: Attendance | None,
    content_type: str,
    at: datetime,
    ordering_id: str | None = None,
    event_type: bytes = EVENT_TYPE,
) -> Envelope:
    """Put a message as it was received into an envelope. The same message of the same sender has the same id.

    ``ordering_id``: what keeps messages in order, where it is not said of an attendance.
    """
    message_id = keyring.marker(sender, control_id, body).hex()
    headers = {
        CONTENT_TYPE_HEADER: content_type.encode(),
        "ce_specversion": b"1.0",
        "ce_id": message_id.encode(),
        SOURCE_HEADER: sender.encode(),
        "ce_type": event_type,
        "ce_time": at.isoformat().encode(),
        KEY_ID_HEADER: keyring.current.encode(),
    }
    return Envelope(
        message_id=message_id,
        key=keyring.index("key", sender, ordering_id or _ordering_id(said) or message_id),
        value=keyring.seal(body, about=RECORD_SEAL),
        headers=headers,
    )


def mark_replay(headers: Mapping[str, bytes], request_id: str, place: tuple[int, int, str]) -> dict[str, bytes]:
    """The headers of a message that a person asked to be handled again."""
    number, offset, log_id = place
    named = f"{number}/{offset}/{log_id}"
    return {**headers, REPLAY_HEADER: request_id.encode(), REPLAY_OF_HEADER: named.encode()}


def read_place(header: bytes) -> tuple[int, int, str] | None:
    """The position that a replay names: partition, offset and log id; None when it names none."""
    found = _PLACE.fullmatch(header)
    return (int(found[1]), int(found[2]), found[3].decode()) if found else None


def _ordering_id(said: Attendance | None) -> str | None:
    """Messages of one patient keep their order; without a patient those of one visit."""
    return (said.local_patient_id or said.visit_number) if said is not None else None
