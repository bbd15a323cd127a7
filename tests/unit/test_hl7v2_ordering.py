"""What keeps a message in its place is read as ``read_attendance`` reads it, and refused as it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import hl7v2
from adapters.er7 import Hl7v2Limits
from adapters.errors import Unreadable
from adapters.hl7v2 import read_attendance, read_header, read_ordering
from schemas.attendance import Event
from tests.world import hl7

USUAL = hl7(control_id="C1")
MERGED = USUAL.replace(b"^A04^", b"^A40^") + b"MRG|K9^^^RZ1^MR\r"
PIECES = (b"|", b"^", b"~", b"\\", b"&", b"\r", b"\n", b'""', b"\rPID|1||K2^^^RZ1^MR", b"\rMSH|", b"\xe9", b"\xc3\xa9")
UNUSUAL = (
    USUAL,
    MERGED,
    MERGED.replace(b"^A40^", b"^A24^") + b"PID|2||K9^^^RZ1^MR\r",
    *(USUAL.replace(b"^A04^", f"^{event}^".encode()) for event in (*Event, "Z99", "")),
    *(USUAL.replace(b"\r", end) for end in (b"\n", b"\r\n", b"\r\r")),
    USUAL.replace(b"|ADT^", b"|ORU^"),
    USUAL.replace(b"|ADT^A04^ADT_A01|", b"|ADT|").replace(b"EVN|", b"EVN|A04"),
    USUAL.replace(b"|ADT^A04^ADT_A01|", b"|adt^a04|"),
    USUAL.replace(b"|", b"#"),
    USUAL.replace(b"^~\\&", b"^~"),
    USUAL.replace(b"\rPID|", b"\rPIDX|"),
    USUAL.replace(b"TESTER", b"T\xe9STER").replace(b"K12345", b"K\xe9"),
    USUAL.replace(b"K12345", "KÉ".encode()),
    USUAL.replace(b"K12345", b"K\\F\\1"),
    USUAL.replace(b"K12345", b'""'),
    USUAL.replace(b"^MR|", b"^NH|"),
    USUAL.replace(b"^MR|", b"^XX|"),
    USUAL.replace(b"K12345", b"K" * 300),
    USUAL.replace(b"|V1^", b"|" + b"V" * 300 + b"^"),
    USUAL.replace(b"K12345", b"~" * 3_000),
    USUAL.replace(b"TESTER", b"~" * 3_000),
    hl7(patient="", nhs_number=""),
    hl7(patient="", visit=""),
    USUAL.split(b"\rEVN")[0],
    USUAL.split(b"\rPV1")[0] + b"\x1c\r",
    USUAL.split(b"\rPID")[0] + b"\rPID|1||K1^^^RZ1^MR\t \x1c\r",
    USUAL + USUAL,
    USUAL + b"PV1|2\r",
    USUAL + b"PID|2||K9^^^RZ1^MR\r",
    USUAL + b"OBX|1\r" * 2_000,
    USUAL + b"NTE|" + b"x" * 1_048_576,
    USUAL + b"\r" * 1_048_576,
    b"\xef\xbb\xbf" + USUAL,
    b"\x0b" + USUAL,
    b"FHS|^~\\&|ED\rBHS|^~\\&|ED\r" + USUAL,
)


def _told_by(read: Callable[[], str | None]) -> tuple[str, str | None]:
    try:
        return "", read()
    except Unreadable as error:
        return error.reason, None


def _of_all(message: bytes) -> str | None:
    said = read_attendance(message)
    return said.local_patient_id or said.visit_number


def _check(message: bytes) -> None:
    try:
        header = read_header(message)
    except Unreadable:
        return
    assert _told_by(lambda: read_ordering(message, header)) == _told_by(lambda: _of_all(message))


@pytest.mark.parametrize("message", UNUSUAL)
def test_whatever_the_message_its_place_and_its_faults_are_those_of_the_whole(message: bytes) -> None:
    _check(message)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_mutated_message_has_the_place_and_the_faults_of_the_whole(data: st.DataObject) -> None:
    message = bytearray(data.draw(st.sampled_from((USUAL, MERGED))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(message)))
        piece = data.draw(st.one_of(st.binary(max_size=4), st.sampled_from(PIECES)))
        message[at : at + data.draw(st.integers(0, 4))] = piece
    _check(bytes(message))


def test_the_usual_message_is_not_read_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_message: bytes, _limits: Hl7v2Limits) -> None:
        raise AssertionError("it was read as a whole")

    monkeypatch.setattr(hl7v2, "read_attendance", fail)
    assert read_ordering(USUAL, read_header(USUAL)) == "K12345"
