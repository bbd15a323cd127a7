"""The JSON Schemas that recipients are given describe what they are sent."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import Any

import msgspec
import pytest

from schemas.alert import ClinicianReply, IdentityFact, ListsSearched, PlanShown, ReplyOutcome
from schemas.attendance import PersonName
from schemas.child_list import PlanType
from tests.factories import make_alert, make_attendance, make_entry, make_reply
from tests.house.reference import GENERATED, ROOT

SCHEMAS = [path for path in GENERATED if path.startswith("schemas/json/")]
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "boolean": bool,
    "null": type(None),
}


def test_every_shipped_schema_is_made_from_the_code_and_current() -> None:
    assert sorted(str(path.relative_to(ROOT)) for path in (ROOT / "schemas" / "json").iterdir()) == sorted(SCHEMAS)
    for path in SCHEMAS:
        assert (ROOT / path).read_text(encoding="utf-8") == GENERATED[path](), path


def differences(whole: dict[str, Any], part: dict[str, Any], value: Any, at: str = "") -> list[str]:
    """What of a value a schema does not allow, for the words of JSON Schema that ours use."""
    if "$ref" in part:
        part = whole["$defs"][part["$ref"].rpartition("/")[2]]
    if "anyOf" in part:
        each = [differences(whole, choice, value, at) for choice in part["anyOf"]]
        return [] if not all(each) else each[0]
    if "type" in part and not isinstance(value, TYPES[part["type"]]):
        return [f"{at}: not {part['type']}"]
    found = []
    if "enum" in part and value not in part["enum"]:
        found.append(f"{at}: not in enum")
    if part.get("format") == "date-time" and datetime.fromisoformat(value).utcoffset() is None:
        found.append(f"{at}: no instant")
    if part.get("format") == "date":
        date.fromisoformat(value)
    if isinstance(value, dict):
        found += [f"{at}: without {name}" for name in part["required"] if name not in value]
        found += [f"{at}: with {name}" for name in value if name not in part["properties"]]
        for name, inner in value.items():
            found += differences(whole, part["properties"].get(name, {}), inner, f"{at}/{name}")
    if isinstance(value, list):
        for inner in value:
            found += differences(whole, part["items"], inner, f"{at}[]")
    return found


def schema_named(name: str) -> dict[str, Any]:
    """A shipped schema."""
    shipped: dict[str, Any] = json.loads((ROOT / "schemas" / "json" / name).read_text(encoding="utf-8"))
    return shipped


@pytest.mark.parametrize("late", [False, True])
def test_an_alert_as_it_is_sent_fits_its_schema(late: bool) -> None:
    schema = schema_named("social-care-alert.json")
    renamed = make_attendance(names=(PersonName(family="Former", given="Casey"),), nhs_number_status=None)
    ending = make_entry(plan_type=PlanType.LOOKED_AFTER, end_on=date(2027, 1, 1))
    for alert in (
        make_alert(make_attendance(), [make_entry()]),
        make_alert(renamed, [make_entry(), ending], late=late),
    ):
        assert differences(schema, schema, json.loads(msgspec.json.encode(alert))) == []


def test_a_reply_as_it_is_sent_fits_its_schema() -> None:
    schema = schema_named("clinician-reply.json")
    plan = PlanShown(
        plan_type=PlanType.UNBORN,
        start_on=date(2026, 1, 10),
        end_on=None,
        authority_name="Northfold Borough Council",
        office_telephone="01632 960101",
        emergency_telephone="01632 960102",
    )
    match = msgspec.structs.replace(
        make_reply(make_attendance(), ReplyOutcome.MATCH, plans=(plan,), authorities_told=("Northfold",)),
        differs=(IdentityFact.NAME,),
        lists=ListsSearched(authorities_searched=2, oldest_confirmed_at=datetime(2026, 2, 1, tzinfo=UTC)),
    )
    bare = make_reply(make_attendance(visit_number=None), ReplyOutcome.NO_RECORD)
    for reply in (match, bare):
        assert isinstance(reply, ClinicianReply)
        assert differences(schema, schema, json.loads(msgspec.json.encode(reply))) == []


def test_what_is_not_described_is_noticed() -> None:
    schema = schema_named("social-care-alert.json")
    alert = json.loads(msgspec.json.encode(make_alert(make_attendance(), [make_entry()])))
    bent = [
        alert | {"address": "1 Sample Street"},
        {name: value for name, value in alert.items() if name != "child"},
        alert | {"late": "yes"},
        alert | {"agrees": ["address"]},
        alert | {"raised_at": "2026-02-14T03:12:00"},
        alert | {"child": alert["child"] | {"sex": "2"}},
    ]
    assert all(differences(schema, schema, each) for each in bent)
