"""A second reader's opinion of messages published by others: hl7apy must read the same, or the table says why not.

hl7apy is slow and gives up easily, so no message is ever handled by it. Here it parses the segments that say who came.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.exceptions import HL7apyException
from hl7apy.parser import parse_message

from adapters.er7 import DEFAULT_LIMITS, decode_text, read_segments
from adapters.hl7v2 import read_attendance
from tests.corpus import read_bytes
from tests.unit.test_hl7v2_corpus import ATTENDANCES

_SEGMENTS = ("MSH", "EVN", "PID", "PV1")
_RESIDUE = "\x0b\x1c\r\n\t \ufeff"

EXPLAINED: Mapping[str, tuple[str, str]] = {
    "hl7v2/225-cosyte-hl7-ADT_A01_ADT_.hl7": (
        "UnsupportedVersion",
        "MSH-12 is 2.9, which hl7apy does not know; what we read stands where it has stood since 2.1",
    ),
    "hl7v2/243-rethinkhealt-hl7v2-ADT_A01.hl7": (
        "family given",
        "hl7apy leaves escape sequences as they stand; they mean the separators (v2.4, 2.10): the surname is DOE&SMITH",
    ),
    "hl7v2/249-rethinkhealt-hl7v2-ADT_A01.hl7": (
        "UnsupportedVersion",
        "MSH-12 is 1.0, which is no version of HL7 v2; the message is laid out as one all the same",
    ),
    "hl7v2/317-linuxforheal-hl7v2-fhir-con-ADT_A01.hl7": (
        "InvalidEncodingChars",
        "MSH-2 writes the escape character twice; no other character is in doubt, and nobody is lost for that",
    ),
    "hl7v2/585-google-simhospital-ADT_A01.hl7": (
        "family",
        "a NUL stands inside the surname; we leave control characters out, so that the name is found on a list",
    ),
    "hl7v2/589-google-simhospital-ADT_A01.hl7": (
        "family given",
        """the names are "", the HL7 null (v2.4, 2.8.2): none is known, and it is not somebody of that name""",
    ),
}
"""Rows read differently: the fields or hl7apy's error, and the reason."""


class Opinion(NamedTuple):
    """Who came, by one reader. Empty texts where the message says nothing."""

    identifiers: tuple[str, ...]
    """PID-3.1 of every repetition."""
    family: str
    given: str
    birth_date: str
    patient_class: str
    visit_number: str


def _read_ours(row: Mapping[str, str]) -> Opinion:
    message = read_bytes(row)
    said = read_attendance(message)
    text = decode_text(message).strip(_RESIDUE)
    read = read_segments(text[text.index("MSH") :], _SEGMENTS, DEFAULT_LIMITS)
    name = said.names[0] if said.names else None
    return Opinion(
        identifiers=tuple(read.clean(components[0]) or "" for components in read.repetitions("PID", 3)),
        family=name.family if name else "",
        given=name.given if name else "",
        birth_date=f"{said.birth_date:%Y%m%d}" if said.birth_date else "",
        patient_class=said.patient_class or "",
        visit_number=said.visit_number or "",
    )


def _read_theirs(row: Mapping[str, str]) -> Opinion | str:
    """hl7apy's reading, or the name of its error."""
    lines = re.split(r"[\r\n]+", decode_text(read_bytes(row)).strip(_RESIDUE))
    wanted: dict[str, str] = {}
    for line in lines:
        if line[:3] in _SEGMENTS:
            wanted.setdefault(line[:3], line)
    try:
        parsed: Any = parse_message(
            "\r".join(wanted.values()) + "\r", validation_level=VALIDATION_LEVEL.TOLERANT, find_groups=False
        )
        return Opinion(
            identifiers=tuple(_part(each, 1) for each in parsed.pid.pid_3),
            family=" ".join(_part(name, 1) for name in parsed.pid.pid_5[:1]),
            given=" ".join(filter(None, (_part(name, at) for name in parsed.pid.pid_5[:1] for at in (2, 3)))),
            birth_date=_part(parsed.pid.pid_7, 1)[:8],
            patient_class=_part(parsed.pv1.pv1_2, 1),
            visit_number=_part(parsed.pv1.pv1_19, 1),
        )
    except HL7apyException as error:
        return type(error).__name__


def _part(field: Any, number: int) -> str:
    """The first subcomponent of a component of a field."""
    marks = field.encoding_chars
    components = field.to_er7().split(marks["COMPONENT"])
    return components[number - 1].split(marks["SUBCOMPONENT"])[0] if number <= len(components) else ""


if ATTENDANCES:

    def test_hl7apy_reads_the_same_or_the_table_says_why_not() -> None:
        different = {}
        for row in ATTENDANCES:
            ours, theirs = _read_ours(row), _read_theirs(row)
            if isinstance(theirs, str):
                different[row["file"]] = theirs
            elif ours != theirs:
                different[row["file"]] = " ".join(
                    name for name, one, other in zip(Opinion._fields, ours, theirs, strict=True) if one != other
                )
        assert different == {file: fields for file, (fields, _) in EXPLAINED.items()}
