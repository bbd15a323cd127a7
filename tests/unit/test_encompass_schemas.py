"""What schools are told, by type: no notice has a field for an address, and only the full one for a place."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from schemas.encompass import (
    SIGN_IN,
    FullNotice,
    MinimalNotice,
    PoliceIncident,
    SchoolNoticeNudge,
    SchoolNoticeWithdrawn,
    StandardNotice,
)
from schemas.identifiers import parse_school_urn

TOLD = (MinimalNotice, StandardNotice, FullNotice, SchoolNoticeWithdrawn, SchoolNoticeNudge)


def names_within(kind: type) -> set[str]:
    """Every name of a field anywhere in a schema."""
    found: set[str] = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            found.update(node.get("properties", {}))
            for inner in node.values():
                walk(inner)
        elif isinstance(node, list):
            for inner in node:
                walk(inner)

    walk(json.loads(msgspec.json.encode(msgspec.json.schema(kind))))
    return found


@pytest.mark.parametrize("kind", TOLD)
def test_no_school_can_be_told_an_address_a_risk_or_who_is_excluded(kind: type) -> None:
    never = {"address", "postcode", "nhs_number", "adults", "risk_grade", "excluded_recipients", "suppress", "sex"}
    assert names_within(kind) & never == set()
    assert names_within(PoliceIncident) & never == never - {"address"}


def test_each_profile_tells_what_the_one_before_does_not() -> None:
    minimal, standard, full = (names_within(kind) for kind in (MinimalNotice, StandardNotice, FullNotice))
    assert standard - minimal == {
        "force",
        "police_reference",
        "where",
        "spoken_to",
        "spoken_alone",
        "childs_words",
    }
    assert full - standard == {"location", "circumstances", "other_safeguarding"}


def test_a_nudge_says_sign_in_and_nothing_else() -> None:
    nudge = SchoolNoticeNudge(page="https://broker.example.org/")
    assert json.loads(msgspec.json.encode(nudge)) == {"page": "https://broker.example.org/", "wording": SIGN_IN}
    other = msgspec.json.encode({"page": "https://broker.example.org/", "wording": "It is about Casey."})
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(other, type=SchoolNoticeNudge)


@pytest.mark.parametrize(
    ("text", "urn"),
    [("900001", "900001"), (" 900001 ", "900001"), ("90001", None), ("012345", None), ("٩٠٠٠٠١", None), ("", None)],
)
def test_a_urn_has_six_digits(text: str, urn: str | None) -> None:
    assert parse_school_urn(text) == urn
