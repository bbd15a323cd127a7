"""Police incidents as JSON: everything wrong is said at once, without the value, and nothing unknown is passed over."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.incident_json import IncidentLimits, IncidentRefused, read_incident
from schemas.encompass import Change, IncidentWithdrawal, PoliceIncident, SchoolSource, SuppressedScope
from tests.house.test_schemas import differences, schema_named

RECEIVED = datetime(2026, 11, 21, 23, 0, tzinfo=UTC)
CHILD: dict[str, Any] = {
    "child_id": "C1",
    "family_name": "Tester",
    "given_name": "Casey",
    "birth_date": "2016-03-02",
    "nhs_number": "9990000018",
    "establishments": [{"source": "officer", "urn": "900001", "name": "Mill School"}],
    "authority": "706",
    "present": True,
    "childs_words": "They were shouting.",
}
INCIDENT: dict[str, Any] = {
    "message": "incident",
    "incident_id": "ZF1/2026/1042",
    "force": "ZF1",
    "version": 2,
    "change": "correction",
    "occurred_at": "2026-11-21T22:40:00Z",
    "reported_at": "2026-11-21T22:52:00+00:00",
    "location": "12 Mill Lane",
    "children": [CHILD],
    "adults": [{"relation": "parent", "family_name": "Tester"}],
    "risk_grade": "medium",
    "excluded_recipients": [{"name": "Jane Carter", "reason": "Sister.", "authoriser": "Insp 4471", "urn": "900001"}],
    "suppress": {"scope": "location", "reason": "refuge", "authoriser": "DI 7"},
}
WITHDRAWAL = {
    "message": "withdrawal",
    "incident_id": "ZF1/2026/1042",
    "force": "ZF1",
    "version": 3,
    "withdrawn_at": "2026-11-21T22:55:00Z",
    "reason": "Recorded twice.",
}


def read(content: object) -> Any:
    return read_incident(json.dumps(content).encode(), received_at=RECEIVED)


def problems(content: object) -> list[tuple[str, str]]:
    with pytest.raises(IncidentRefused) as refused:
        read(content)
    return [(problem.field, problem.advice) for problem in refused.value.problems]


def bent(path: str, value: object) -> dict[str, Any]:
    """The incident with one value changed; a path like ``children.0.urn``."""
    content: Any = copy.deepcopy(INCIDENT)
    *way, last = (int(step) if step.isdigit() else step for step in path.split("."))
    place = content
    for step in way:
        place = place[step]
    place[last] = value
    assert isinstance(content, dict)
    return content


def test_an_incident_is_read_whole() -> None:
    incident = read(INCIDENT)
    assert isinstance(incident, PoliceIncident)
    assert (incident.version, incident.change) == (2, Change.CORRECTION)
    assert incident.children[0].establishments[0].source is SchoolSource.OFFICER
    assert incident.suppress is not None and incident.suppress.scope is SuppressedScope.LOCATION
    assert incident.reported_at - incident.occurred_at == timedelta(minutes=12)
    schema = schema_named("police-incident.json")
    assert differences(schema, schema, INCIDENT) == []


@pytest.mark.parametrize(
    "written", ["2026-11-21t22:40:00z", "2026-11-21 22:40:00.123456789Z", "2026-11-21T23:40:00+01:00"]
)
def test_an_instant_may_be_written_in_every_way_of_rfc_3339(written: str) -> None:
    assert read(bent("occurred_at", written)).occurred_at.replace(microsecond=0) == datetime(
        2026, 11, 21, 22, 40, tzinfo=UTC
    )


def test_a_withdrawal_is_read_whole() -> None:
    withdrawal = read(WITHDRAWAL)
    assert isinstance(withdrawal, IncidentWithdrawal)
    assert (withdrawal.incident_id, withdrawal.version) == ("ZF1/2026/1042", 3)
    schema = schema_named("incident-withdrawal.json")
    assert differences(schema, schema, WITHDRAWAL) == []


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("message", "other", "message"),
        ("incident_id", "", "incident_id"),
        ("incident_id", "  ", "incident_id"),
        ("incident_id", "x" * 101, "incident_id"),
        ("incident_id", 7, "incident_id"),
        ("force", "Z\x001", "force"),
        ("version", 0, "version"),
        ("version", True, "version"),
        ("version", 10**9, "version"),
        ("version", 1, "change"),
        ("change", None, "change"),
        ("change", "withdrawn", "change"),
        ("occurred_at", "2026-11-21T22:41:00", "occurred_at"),
        ("occurred_at", "21/11/2026 22:40", "occurred_at"),
        ("occurred_at", 1763764800, "occurred_at"),
        ("occurred_at", "2026-11-21T22:53:00Z", "reported_at"),
        ("occurred_at", "1026-11-21T22:40:00Z", "occurred_at"),
        ("reported_at", "2026-11-21T23:11:00Z", "reported_at"),
        ("reported_at", None, "reported_at"),
        ("children", [], "children"),
        ("children", {}, "children"),
        ("children", [CHILD] * 31, "children"),
        ("children", [CHILD, CHILD], "children[1].child_id"),
        ("children.0", "Casey", "children[0]"),
        ("children.0.birth_date", "02/03/2016", "children[0].birth_date"),
        ("children.0.birth_date", "0016-03-02", "children[0].birth_date"),
        ("children.0.nhs_number", "9990000019", "children[0].nhs_number"),
        ("children.0.present", "yes", "children[0].present"),
        ("children.0.establishments.0.urn", "9001", "children[0].establishments[0].urn"),
        ("children.0.establishments.0.source", "neighbour", "children[0].establishments[0].source"),
        ("children.0.childs_words", "x" * 4001, "children[0].childs_words"),
        ("excluded_recipients.0.urn", "9001", "excluded_recipients[0].urn"),
        ("excluded_recipients.0.authoriser", "", "excluded_recipients[0].authoriser"),
        ("suppress.reason", None, "suppress.reason"),
    ],
)
def test_a_wrong_field_is_named_without_its_value(path: str, value: object, field: str) -> None:
    found = problems(bent(path, value))
    assert [name for name, _ in found] == [field]
    if isinstance(value, str) and value.strip():
        assert value not in str(found)


@pytest.mark.parametrize("path", ["supress", "children.0.exclude", "suppress.by"])
def test_a_field_that_is_not_known_is_refused_and_its_name_not_repeated(path: str) -> None:
    [(_, advice)] = problems(bent(path, "Casey"))
    assert "not known" in advice and path.rpartition(".")[2] not in advice.split()


def test_a_missing_authoriser_is_asked_for() -> None:
    assert problems(bent("suppress", {"scope": "notice", "reason": "other"})) == [("suppress.authoriser", "is missing")]


def test_all_that_is_wrong_is_said_at_once() -> None:
    content = bent("children.0.birth_date", "Casey") | {"force": None, "version": "one"}
    assert [field for field, _ in problems(content)] == ["force", "version", "children[0].birth_date"]
    many = INCIDENT | {"children": [{"child_id": ""}] * 30, "adults": [{}] * 30, "excluded_recipients": [{}] * 30}
    assert len(problems(many)) == IncidentLimits().problems_max


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"message": {}}', b'{"a": 1' + b" " * 300_000 + b"}"]
)
def test_what_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(IncidentRefused):
        read_incident(body, received_at=RECEIVED)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(value=values, name=st.sampled_from(sorted(INCIDENT)), of_child=st.sampled_from([*sorted(CHILD), None]))
def test_whatever_stands_in_a_field_it_is_read_or_refused(value: object, name: str, of_child: str | None) -> None:
    content = bent(f"children.0.{of_child}", value) if of_child else bent(name, value)
    try:
        read(content)
    except IncidentRefused as refused:
        assert refused.problems
