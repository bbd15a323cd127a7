"""Messages that others published, as messages of departments of this side: another sender, another child, no more."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from broker import bootstrap
from broker.clock import SystemClock
from broker.directory_upload import DirectoryUpload
from broker.senders import SNAPSHOT_NAME
from mock_nhs.people import Person
from tests.system import System
from tests.unit.test_hl7v2_corpus import CORPUS

_HEADER = re.compile(rb"(?:\A|(?<=[\r\n\x0b\x1c]))MSH(?![A-Za-z0-9])[^\r\n\x1c]*")
_SENDER, _CREDENTIAL = 4, 8


@dataclass(frozen=True)
class Seat:
    """A department: the code it writes in MSH-4, and the credential it shows in MSH-8."""

    code: str
    credential: str


def seats(prefix: str, count: int) -> list[Seat]:
    """So many departments."""
    names = [f"{prefix}{number:03d}" for number in range(1, count + 1)]
    return [Seat(name, f"credential-of-{name}") for name in names]


async def register(system: System, departments: Sequence[Seat]) -> None:
    """Put departments into the directory, by the product's own import. They are answered on the page only."""
    settings = system.settings
    authorities = " ".join(authority.code for authority in system.town.authorities)
    lines = ["code,name,authorities,credential"]
    lines += [f"{seat.code},Hospital {seat.code},{authorities},{seat.credential}" for seat in departments]
    database, keyring = bootstrap.open_database(settings), bootstrap.load_keyring(settings)
    try:
        upload = DirectoryUpload(database, keyring, SystemClock(), demo_passwords=True, actor="test", dry_run=False)
        report = await upload.load_sites("\n".join(lines).encode(), settings.data_dir / SNAPSHOT_NAME)
        assert (report.loaded, report.refused) == (len(departments), ())
    finally:
        await database.close()


def read_bytes(row: Mapping[str, str]) -> bytes:
    """The file of a row of the corpus's index."""
    return (CORPUS / row["file"]).read_bytes()


def seat_sender(frame: bytes, seat: Seat) -> bytes:
    """The frame with this sender: MSH-4 and MSH-8 of each message are replaced, every other byte stays."""

    def reseat(header: re.Match[bytes]) -> bytes:
        field = header[0][3:4]
        fields = header[0].split(field)
        fields += [b""] * (_CREDENTIAL - len(fields))
        fields[_SENDER - 1], fields[_CREDENTIAL - 1] = seat.code.encode(), seat.credential.encode()
        return field.join(fields)

    return _HEADER.sub(reseat, frame)


def seat_child(message: bytes, child: Person, *, local_id: str, site: str, number_first: bool) -> bytes:
    """The message with this child: PID-3, PID-5 and PID-7 of the first PID are replaced, every other byte stays.

    They are written with the message's own separators. PID-3 holds the local id and the NHS number.
    """
    header = _HEADER.search(message)
    assert header is not None, "the message has no MSH"
    field, component, repetition = (header[0][at : at + 1] for at in (3, 4, 5))
    patient = re.search(rb"(?:\A|(?<=[\r\n]))PID" + re.escape(field) + rb"[^\r\n]*", message)
    assert patient is not None, "the message has no PID"
    fields = patient[0].split(field)
    fields += [b""] * (8 - len(fields))
    identifiers = [
        component.join((local_id.encode(), b"", b"", site.encode(), b"MR")),
        component.join((child.nhs_number.encode(), b"", b"", b"NHS", b"NH")),
    ]
    given, _, others = child.given_name.partition(" ")
    names = [name.encode() for name in (child.family_name, given, others)]
    assert not any(mark in name for name in names for mark in (field, component, repetition))
    fields[3] = repetition.join(reversed(identifiers) if number_first else identifiers)
    fields[5] = component.join(names)
    fields[7] = child.birth_date.strftime("%Y%m%d").encode()
    return message[: patient.start()] + field.join(fields) + message[patient.end() :]


def differing_fields(before: bytes, after: bytes) -> set[str]:
    """Which fields of MSH and PID differ between two messages, and ``else`` when anything else does."""
    former, latter = (re.split(rb"([\r\n]+)", text) for text in (before, after))
    if len(former) != len(latter):
        return {"else"}
    found: set[str] = set()
    for line, changed in zip(former, latter, strict=True):
        if line == changed:
            continue
        name = line.lstrip(b"\x0b")[:3]
        field = line.lstrip(b"\x0b")[3:4]
        parts = [text.split(field) if field else [text] for text in (line, changed)]
        length = max(map(len, parts))
        padded = [fields + [b""] * (length - len(fields)) for fields in parts]
        if name not in (b"MSH", b"PID"):
            return {"else"}
        shift = name == b"MSH"
        found |= {
            f"{name.decode()}-{number + shift}"
            for number, (old, new) in enumerate(zip(*padded, strict=True))
            if old != new
        }
    return found
