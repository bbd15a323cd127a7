"""Police incidents as CSV: a bad row costs its incident and no other, since it may exclude somebody."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.csv_rows import RowProblem
from adapters.errors import MalformedFile
from adapters.incident_csv import IncidentFileLimits, read_incidents
from schemas.encompass import IncidentWithdrawal, PoliceIncident, PoliceMessage, SuppressionReason

RECEIVED = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)
ROW = {
    "incident_id": "ZF1/1042",
    "force": "ZF1",
    "version": "1",
    "occurred_at": "2026-11-21 22:40",
    "reported_at": "2026-11-21T22:52:00Z",
    "child_id": "C1",
    "family_name": "Tester",
    "given_name": "Casey",
    "birth_date": "2016-03-02",
    "urn": "900001",
    "school_source": "officer",
    "present": "yes",
}
OTHER = ROW | {"incident_id": "ZF1/1043"}


def file_of(*rows: dict[str, str]) -> bytes:
    names = sorted({name for row in rows for name in row})
    text = io.StringIO()
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def read(*rows: dict[str, str]) -> list[tuple[int, PoliceMessage | RowProblem]]:
    return list(read_incidents(file_of(*rows), received_at=RECEIVED))


def only(*rows: dict[str, str]) -> PoliceIncident:
    [(_, incident)] = read(*rows)
    assert isinstance(incident, PoliceIncident), incident
    return incident


def problems(*rows: dict[str, str]) -> list[tuple[int, str]]:
    return [(number, found.field) for number, found in read(*rows) if isinstance(found, RowProblem)]


def taken(*rows: dict[str, str]) -> list[str]:
    return [found.incident_id for _, found in read(*rows) if not isinstance(found, RowProblem)]


def test_the_rows_of_an_incident_are_one_message() -> None:
    incident = only(
        ROW,
        ROW | {"urn": "900002", "school_source": "child"},
        {"child_id": "C1"}
        | {name: ROW[name] for name in ("incident_id", "force", "version", "occurred_at")}
        | {"reported_at": ROW["reported_at"], "urn": "900003", "school_source": "authority"},
        ROW | {"child_id": "C2", "given_name": "Robin", "urn": "", "school_source": "", "home_educated": "yes"},
        {**ROW, "excluded_name": "Jane Carter", "excluded_reason": "Sister", "excluded_authoriser": "Insp 1"},
    )
    casey, robin = incident.children
    assert [named.urn for named in casey.establishments] == ["900001", "900002", "900003"]
    assert (robin.home_educated, robin.establishments) == (True, ())
    assert [excluded.name for excluded in incident.excluded_recipients] == ["Jane Carter"]
    assert incident.occurred_at == datetime(2026, 11, 21, 22, 40, tzinfo=UTC)


def test_local_times_are_londons_and_the_hour_that_comes_twice_needs_its_offset() -> None:
    summer = {"occurred_at": "2026-07-21 22:40", "reported_at": "2026-07-21 22:52"}
    assert only(ROW | summer).occurred_at == datetime(2026, 7, 21, 21, 40, tzinfo=UTC)
    for local in ("2026-10-25 01:30", "2026-03-29 01:30"):
        assert problems(ROW | {"occurred_at": local, "reported_at": "2026-10-25 03:00"}) == [(2, "occurred_at")]
    assert only(ROW | {"occurred_at": "2026-10-25T01:30:00+01:00"}).occurred_at.hour in (0, 1)


def test_an_instant_that_cannot_be_read_is_answered_in_the_form_the_file_may_have() -> None:
    [(_, problem)] = read(ROW | {"occurred_at": "21/11/2026 22:40"})
    assert isinstance(problem, RowProblem)
    assert problem.advice.startswith("must be like 2026-11-21 22:40, London time,")


def test_a_bad_row_costs_its_whole_incident_and_no_other() -> None:
    excluding = ROW | {"child_id": "C2", "excluded_name": "Jane Carter", "excluded_reason": "Sister"}
    found = problems(ROW, excluding, OTHER)
    assert found == [(2, "incident_id"), (3, "excluded_authoriser")]
    assert taken(ROW, excluding, OTHER) == ["ZF1/1043"]


def test_a_bad_row_costs_every_version_of_its_incident() -> None:
    second = ROW | {"version": "2", "change": "correction", "present": "perhaps"}
    assert problems(ROW, second) == [(2, "incident_id"), (3, "present")]


def test_a_row_of_nobody_knows_which_incident_costs_those_beside_it() -> None:
    lost = ROW | {"incident_id": "", "excluded_name": "Jane Carter"}
    third = ROW | {"incident_id": "ZF1/1044"}
    assert taken(third, OTHER, lost, ROW) == ["ZF1/1044"]
    assert problems(third, OTHER, lost, ROW) == [(3, "incident_id"), (4, "incident_id"), (5, "incident_id")]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"version": "one"}, "version"),
        ({"version": "٢"}, "version"),
        ({"version": "2"}, "change"),
        ({"occurred_at": ""}, "occurred_at"),
        ({"occurred_at": "21/11/2026"}, "occurred_at"),
        ({"occurred_at": "2026-12-24"}, "occurred_at"),
        ({"occurred_at": "2026-11-21T22:40Z0"}, "occurred_at"),
        ({"birth_date": "02/03/2016"}, "birth_date"),
        ({"child_id": ""}, "child_id"),
        ({"urn": "9001"}, "urn"),
        ({"school_source": "neighbour"}, "school_source"),
        ({"school_source": ""}, "school_source"),
        ({"suppress_scope": "notice", "suppress_reason": "other"}, "suppress_authoriser"),
        ({"suppress_scope": "all", "suppress_reason": "other", "suppress_authoriser": "DI 7"}, "suppress_scope"),
        ({"adult_relation": "neighbour"}, "adult_relation"),
        ({"circumstances": "x" * 4001}, "circumstances"),
        ({"present": "maybe"}, "present"),
    ],
)
def test_a_wrong_column_is_named_without_its_value(change: dict[str, str], field: str) -> None:
    found = read(ROW | change)
    assert [(number, problem.field) for number, problem in found if isinstance(problem, RowProblem)] == [(2, field)]
    assert not any(len(value) > 3 and value in str(found) for value in change.values() if value != "other")


def columns_of(problem: object) -> list[str]:
    """The columns that a problem names."""
    assert isinstance(problem, RowProblem)
    _, *others = problem.advice.split("; ")
    return [problem.field, *(each.split()[0] for each in others)]


def test_every_wrong_column_of_a_row_is_told_at_once() -> None:
    wrong = {
        "present": "maybe",
        "version": "one",
        "birth_date": "5 April",
        "occurred_at": "21/11/2026",
        "reported_at": "",
    }
    (number, problem), (_, other) = read(ROW | wrong, ROW)
    assert isinstance(problem, RowProblem) and isinstance(other, RowProblem)
    assert (number, other.field) == (2, "incident_id")
    assert columns_of(problem) == ["present", "occurred_at", "reported_at", "version", "birth_date"]


def test_a_row_of_which_nobody_knows_whether_it_withdraws_is_told_of_its_other_columns_too() -> None:
    wrong = {"withdrawn": "perhaps", "version": "0", "birth_date": "5 April", "reported_at": ""}
    reporting = ROW | wrong | {"school_source": "neighbour"}
    withdrawing = {name: ROW[name] for name in ("incident_id", "force")} | {"withdrawn": "ja", "version": "2"}
    told = [
        columns_of(problem)
        for _, problem in read(reporting, withdrawing | {"withdrawn_at": "soon"}, ROW | {"withdrawn": "perhaps"})
    ]
    assert told == [
        ["withdrawn", "reported_at", "version", "birth_date", "school_source"],
        ["withdrawn", "withdrawn_at", "withdrawn_reason"],
        ["withdrawn"],
    ]


def test_what_another_row_of_the_incident_may_say_is_not_told_as_missing() -> None:
    """An adult takes a row of its own, which has neither a child nor what changed."""
    adult = dict.fromkeys(ROW, "") | {name: ROW[name] for name in ("incident_id", "force", "reported_at")}
    rows = [ROW | {"version": "2", "change": "update"}, adult | {"version": "2", "occurred_at": "x"}]
    assert columns_of(read(*rows)[1][1]) == ["occurred_at"]


def test_rows_that_say_different_things_of_one_incident_or_child_are_refused() -> None:
    assert problems(ROW, ROW | {"child_id": "C2", "reported_at": "2026-11-21T23:52:00Z"}) == [
        (2, "incident_id"),
        (3, "reported_at"),
    ]
    assert problems(ROW, ROW | {"birth_date": "2016-03-03"}) == [(2, "incident_id"), (3, "birth_date")]
    suppressing = {"suppress_scope": "notice", "suppress_reason": "other", "suppress_authoriser": "DI 7"}
    assert problems(ROW, ROW | {"child_id": "C2"} | suppressing) == [(2, "incident_id"), (3, "suppress_scope")]
    kept = only(ROW | suppressing, ROW | {"child_id": "C2"})
    assert kept.suppress is not None and kept.suppress.reason is SuppressionReason.OTHER


def test_a_withdrawal_is_one_row() -> None:
    [(_, withdrawal)] = read(
        {
            "incident_id": "ZF1/1042",
            "force": "ZF1",
            "version": "2",
            "withdrawn": "yes",
            "withdrawn_at": "2026-11-22 08:00",
            "withdrawn_reason": "Recorded twice.",
        }
    )
    assert isinstance(withdrawal, IncidentWithdrawal)
    assert withdrawal.withdrawn_at == datetime(2026, 11, 22, 8, 0, tzinfo=UTC)


def test_a_file_has_limits() -> None:
    for limits in (IncidentFileLimits(file_bytes_max=10), IncidentFileLimits(rows_max=1)):
        with pytest.raises(MalformedFile):
            read_incidents(file_of(ROW, OTHER), received_at=RECEIVED, limits=limits)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                name: st.sampled_from([value, "", "x"]) for name, value in {**ROW, "suppress_scope": "y"}.items()
            },
        ),
        min_size=1,
        max_size=5,
    )
)
def test_every_row_is_taken_or_told_of(rows: list[dict[str, str]]) -> None:
    whole = [ROW | row for row in rows]
    found = read(*whole)
    told = {number for number, each in found if isinstance(each, RowProblem)}
    firsts = {number for number, each in found if not isinstance(each, RowProblem)}
    keys = {number: (row["force"], row["incident_id"]) for number, row in enumerate(whole, 2)}
    assert told | firsts <= keys.keys()
    assert {keys[number] for number in keys.keys() - told} == {keys[number] for number in firsts}
