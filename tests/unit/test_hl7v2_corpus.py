"""Messages published by others, where they are at hand: who the patient is must come out as in the corpus's index."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from adapters.errors import Unreadable
from adapters.hl7v2 import read_attendance
from schemas.attendance import NhsNumberProblem

CORPUS = Path(__file__).resolve().parents[2].parent / "shared" / "corpus"

NO_PID_BY_THE_STANDARD = "hl7v2/247-rethinkhealt-hl7v2-ADT_A01.hl7"
"""Its segment is called PIDX. The index reads it as PID; a segment's name has three characters (v2.4, 2.7)."""


def _read_index() -> list[dict[str, str]]:
    index = CORPUS / "index.csv"
    if not index.exists():
        return []
    with index.open(encoding="utf-8", newline="") as lines:
        return [row for row in csv.DictReader(lines) if row["file"].startswith("hl7v2/")]


ROWS = _read_index()
ATTENDANCES = [
    row for row in ROWS if row["expect"].startswith("extract identity") and row["file"] != NO_PID_BY_THE_STANDARD
]
UNIDENTIFIED = [row for row in ROWS if row["expect"].startswith("ADT without usable identity")]
SEVERAL = [row for row in ROWS if row["expect"].startswith("split into")]


def _message(row: dict[str, str]) -> bytes:
    return (CORPUS / row["file"]).read_bytes()


def _name_of(row: dict[str, str]) -> tuple[str, str] | None:
    """Surname and first given name of the index's first repetition, which shows UTF-8 as Latin-1."""
    field = row["o_pid5"].encode("latin-1").decode("utf-8")
    component, repetition, escape, subcomponent = list(row["separators"].replace("\\\\", "\\")[1:5])
    family, given, *_ = [*field.split(repetition)[0].split(component), ""]
    name = tuple(
        part.split(subcomponent)[0]
        .replace(f"{escape}T{escape}", subcomponent)
        .replace(f"{escape}S{escape}", component)
        .replace("\0", "")
        .replace('""', "")
        for part in (family, given)
    )
    return (name[0], name[1]) if any(name) else None


if ROWS:

    @pytest.mark.parametrize("row", ATTENDANCES, ids=[row["file"] for row in ATTENDANCES])
    def test_who_the_patient_is_comes_out_as_in_the_index(row: dict[str, str]) -> None:
        attendance = read_attendance(_message(row))
        expected_numbers = set(row["o_nhs"].split())
        if expected_numbers:
            assert attendance.nhs_number in expected_numbers
        else:
            assert attendance.nhs_number is None
            assert attendance.nhs_number_problem is NhsNumberProblem.ABSENT
        birth_date = f"{attendance.birth_date:%Y%m%d}" if attendance.birth_date else ""
        assert birth_date == row["o_dob"][:8]
        name = _name_of(row)
        if name is None:
            assert attendance.names == ()
        else:
            first = attendance.names[0]
            assert (first.family, first.given[: len(name[1])]) == name

    @pytest.mark.parametrize("row", UNIDENTIFIED, ids=[row["file"] for row in UNIDENTIFIED])
    def test_what_identifies_nobody_goes_to_a_person(row: dict[str, str]) -> None:
        with pytest.raises(Unreadable) as caught:
            read_attendance(_message(row))
        assert caught.value.reason in ("no_pid", "no_identity", "no_event")

    @pytest.mark.parametrize("row", SEVERAL, ids=[row["file"] for row in SEVERAL])
    def test_several_messages_are_not_taken_for_one(row: dict[str, str]) -> None:
        with pytest.raises(Unreadable) as caught:
            read_attendance(_message(row))
        assert caught.value.reason == "several_messages"

    def test_a_segment_of_another_name_is_no_pid() -> None:
        with pytest.raises(Unreadable) as caught:
            read_attendance((CORPUS / NO_PID_BY_THE_STANDARD).read_bytes())
        assert caught.value.reason == "no_pid"

    @pytest.mark.parametrize("row", ROWS, ids=[row["file"] for row in ROWS])
    def test_no_file_raises_anything_else(row: dict[str, str]) -> None:
        try:
            read_attendance(_message(row))
        except Unreadable as error:
            assert error.reason
