"""FHIR published by others, where it is at hand: each file must end as the corpus's index says."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from adapters.errors import NotAnAttendance, Unreadable
from adapters.fhir import FhirReading, NotAnAttendanceBundle, UnreadableBundle, read_bundle
from schemas.attendance import NhsNumberProblem
from schemas.identifiers import parse_nhs_number

CORPUS = Path(__file__).resolve().parents[2].parent / "shared" / "corpus"


def _read_index() -> list[dict[str, str]]:
    index = CORPUS / "index.csv"
    if not index.exists():
        return []
    with index.open(encoding="utf-8", newline="") as lines:
        return [row for row in csv.DictReader(lines) if row["file"].startswith("fhir/")]


ROWS = _read_index()
VALID = [row for row in ROWS if row["expect"].startswith("valid R4")]
ATTENDANCES = {
    # The only files with an Encounter that has begun beside a Patient; the other Bundles have none, or a planned one.
    "209-nhsdigita-booking-and--Bundle_message.json",
    *(f"{number}-microsoft-fhir-convert-Bundle_batch.json" for number in (*range(448, 461), *range(463, 468))),
}
BARE_ENCOUNTERS = [row for row in VALID if row["file"].endswith("-Encounter.json")]
"""An Encounter by itself tells of somebody attending and not of whom: it is refused, not ignored."""


def _name(row: dict[str, str]) -> str:
    return row["file"].removeprefix("fhir/")


def _read(row: dict[str, str]) -> FhirReading:
    return read_bundle((CORPUS / row["file"]).read_bytes())


EXTRACTED = [row for row in VALID if _name(row) in ATTENDANCES]
IGNORED = [row for row in VALID if _name(row) not in ATTENDANCES and row not in BARE_ENCOUNTERS]
NONE = [row for row in ROWS if row["expect"].startswith("not an attendance")]
OTHER_VERSIONS = [row for row in ROWS if row["expect"].startswith("reject/quarantine (wrong FHIR version)")]

if ROWS:

    def test_every_file_has_one_of_the_ends() -> None:
        ends = [EXTRACTED, IGNORED, BARE_ENCOUNTERS, NONE, OTHER_VERSIONS]
        assert [len(end) for end in ends] == [19, 66, 13, 51, 5]
        assert sum(map(len, ends)) == len(ROWS)

    @pytest.mark.parametrize("row", EXTRACTED, ids=map(_name, EXTRACTED))
    def test_who_attends_is_read_from_a_valid_bundle(row: dict[str, str]) -> None:
        reading = _read(row)
        attendance = reading.attendance
        assert not attendance.is_degraded
        assert reading.findings == ()
        assert attendance.names[0].family
        assert attendance.birth_date is not None
        assert attendance.control_id
        # The index shows every ten digits under the NHS number's system; the one in BaRS's sample fails the check.
        labelled = row["o_nhs"].split()
        assert attendance.nhs_number == next(filter(None, map(parse_nhs_number, labelled)), None)
        expected = NhsNumberProblem.INVALID if labelled else NhsNumberProblem.ABSENT
        assert attendance.nhs_number_problem is expected
        assert attendance.local_patient_id or labelled

    @pytest.mark.parametrize("row", IGNORED, ids=map(_name, IGNORED))
    def test_what_tells_of_nobody_attending_is_ignored(row: dict[str, str]) -> None:
        with pytest.raises(NotAnAttendanceBundle):
            _read(row)

    @pytest.mark.parametrize("row", BARE_ENCOUNTERS, ids=map(_name, BARE_ENCOUNTERS))
    def test_an_encounter_without_a_bundle_is_refused(row: dict[str, str]) -> None:
        with pytest.raises(UnreadableBundle) as caught:
            _read(row)
        assert caught.value.reason == "not_a_bundle"

    @pytest.mark.parametrize("row", NONE, ids=map(_name, NONE))
    def test_answers_and_other_resources_are_no_attendances(row: dict[str, str]) -> None:
        with pytest.raises(Unreadable) as caught:
            _read(row)
        assert isinstance(caught.value, NotAnAttendance) or caught.value.reason == "bundle_type_not_accepted"

    @pytest.mark.parametrize("row", OTHER_VERSIONS, ids=map(_name, OTHER_VERSIONS))
    def test_another_version_is_never_read_in_part(row: dict[str, str]) -> None:
        with pytest.raises(UnreadableBundle) as caught:
            _read(row)
        assert caught.value.reason == "wrong_fhir_version"
