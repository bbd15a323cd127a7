"""The reply as a FHIR message Bundle: valid R4B, the same words and facts as the HL7 v2 reply, and nothing more."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fhir.resources.R4B.bundle import Bundle

from adapters.er7 import LONDON
from adapters.fhir_writer import build_reply_bundle
from adapters.hl7v2 import PLAN_TYPES, Observation, build_reply
from broker.domain.replies import word_reply
from schemas.alert import ClinicianReply, IdentityFact, ListsSearched, PlanShown, ReplyOutcome
from schemas.child_list import PlanType

AT = datetime(2026, 7, 14, 20, 15, 3, tzinfo=UTC)
BUNDLE_ID, HEADER_ID = "0b9a4a61-6f0e-5f9d-8c35-3f1c7d9b2a11", "5d2f0c3e-1b4a-5e6f-9a7b-8c9d0e1f2a3b"
ENDPOINT = "https://ed.example.org/FHIR/R4/$process-message"
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "fhir-reply.md"

LISTS = ListsSearched(
    authorities_searched=2,
    oldest_confirmed_at=AT - timedelta(days=9, minutes=5),
    own_authorities_missing=("708",),
    own_authorities_stale=("707",),
)
PLANS = (
    PlanShown(
        plan_type=PlanType.CHILD_PROTECTION,
        start_on=date(2026, 1, 2),
        end_on=None,
        authority_name="Northfold Borough Council",
        office_telephone="01632 960101",
        emergency_telephone="01632 960102",
    ),
    PlanShown(
        plan_type=PlanType.LOOKED_AFTER,
        start_on=date(2025, 1, 2),
        end_on=date(2026, 6, 30),
        has_ended=True,
        authority_name="Eastmere County Council",
        office_telephone="01632 960201",
        emergency_telephone="01632 960202",
    ),
)


def compose(outcome: ReplyOutcome, **changes: Any) -> ClinicianReply:
    """A reply as the broker would give it."""
    is_match = outcome is ReplyOutcome.MATCH
    differs = (IdentityFact.NAME,) if is_match else ()
    reply = ClinicianReply(
        reply_id="3f2b7c1d9e8a4b5c6d7e8f9012345678",
        organisation="RZ1",
        in_answer_to="7c9e6679-7425-40de-944b-e07fc1f90ae7",
        visit_number="V778812",
        local_patient_id="K12345",
        replied_at=AT,
        outcome=outcome,
        wording=word_reply(outcome, LISTS, AT, differs),
        plans=PLANS if is_match else (),
        differs=differs,
        authorities_told=("Northfold Borough Council", "Eastmere County Council") if is_match else (),
        lists=LISTS,
    )
    return msgspec.structs.replace(reply, **changes)


def write(reply: ClinicianReply, endpoint: str = ENDPOINT) -> bytes:
    return build_reply_bundle(
        reply, bundle_id=BUNDLE_ID, header_id=HEADER_ID, application="CPIS-BROKER", endpoint=endpoint, at=AT
    )


def resources(message: bytes, kind: str) -> list[dict[str, Any]]:
    entries = json.loads(message)["entry"]
    return [entry["resource"] for entry in entries if entry["resource"]["resourceType"] == kind]


def the(message: bytes, kind: str) -> dict[str, Any]:
    [resource] = resources(message, kind)
    return resource


def observed(message: bytes, code: Observation) -> list[Any]:
    """The values of the components with this code."""
    return [
        next(value for key, value in component.items() if key.startswith("value"))
        for component in the(message, "Observation")["component"]
        if component["code"]["coding"][0]["code"] == code.value[0]
    ]


MATCH = compose(ReplyOutcome.MATCH)
BARE = compose(
    ReplyOutcome.NO_RECORD,
    visit_number=None,
    local_patient_id=None,
    lists=ListsSearched(authorities_searched=0, oldest_confirmed_at=None),
)


@pytest.mark.parametrize("reply", [*map(compose, ReplyOutcome), BARE], ids=str)
def test_every_reply_is_valid_r4b_and_says_the_same_after_a_round_through_the_models(reply: ClinicianReply) -> None:
    message = write(reply)
    bundle = Bundle.model_validate_json(message)
    assert bundle.type == "message"
    assert json.loads(message)["entry"][0]["resource"]["resourceType"] == "MessageHeader"
    assert _instants_alike(json.loads(bundle.model_dump_json())) == _instants_alike(json.loads(message))


def _instants_alike(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _instants_alike(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_instants_alike(value) for value in tree]
    return tree.replace("+00:00", "Z") if isinstance(tree, str) else tree


@pytest.mark.parametrize(
    ("outcome", "wording"),
    [
        (
            ReplyOutcome.MATCH,
            "This person is on a local authority's child protection or looked-after list. Social care is told. "
            "Please check the identity: the name differs from the list.",
        ),
        (
            ReplyOutcome.NO_RECORD,
            "No record found; this does not mean the child is safe. 2 authorities' lists were searched, the oldest "
            "216 hours old. No list from this site's own authority 708. The list of this site's own authority 707 is "
            "out of date. The national Child Protection - Information Sharing service was not asked.",
        ),
        (
            ReplyOutcome.IDENTITY_TO_BE_CHECKED,
            "Identity to be checked: the details sent do not settle who this is. Please trace the NHS number, check "
            "the name and the date of birth, and send an update. This does not mean the child is safe.",
        ),
    ],
)
def test_each_outcome_has_its_code_its_exact_wording_and_what_it_rests_on(outcome: ReplyOutcome, wording: str) -> None:
    message = write(compose(outcome))
    [coding] = the(message, "Observation")["valueCodeableConcept"]["coding"]
    assert (coding["system"], coding["code"]) == ("urn:cpis-broker:outcome", outcome.value)
    assert observed(message, Observation.WORDING) == [wording]
    assert observed(message, Observation.LISTS_SEARCHED) == [2]
    assert observed(message, Observation.OLDEST_LIST_AT) == ["2026-07-05T20:10:03Z"]
    assert [age["value"] for age in observed(message, Observation.OLDEST_LIST_AGE)] == [216]
    assert observed(message, Observation.OWN_LIST_MISSING) == ["708"]
    assert observed(message, Observation.OWN_LIST_STALE) == ["707"]
    assert observed(message, Observation.NATIONAL_ASKED) == [False]
    assert observed(message, Observation.DIFFERS) == (["name"] if outcome is ReplyOutcome.MATCH else [])
    assert len(resources(message, "Flag")) == (2 if outcome is ReplyOutcome.MATCH else 0)


def test_each_plan_is_a_flag_with_its_care_plan_and_care_team() -> None:
    message = write(MATCH)
    by_url = {entry["fullUrl"]: entry["resource"] for entry in json.loads(message)["entry"]}
    shown = []
    for flag in resources(message, "Flag"):
        plan = by_url[flag["extension"][0]["valueReference"]["reference"]]
        team = by_url[plan["careTeam"][0]["reference"]]
        assert flag["code"]["coding"][0]["code"] == "child-protection-information-system-flag"
        assert plan["category"] == team["category"]
        assert flag["period"] == plan["period"] == team["period"]
        telephones = {line["use"]: line["value"] for line in team["telecom"]}
        concept, own = plan["category"][0]["coding"]
        shown.append((own["code"], concept["code"], flag["status"], plan["period"], team["name"], telephones))
    assert shown == [
        (
            "child_protection_plan",
            "342191000000101",
            "active",
            {"start": "2026-01-02"},
            "Northfold Borough Council",
            {"work": "01632 960101", "mobile": "01632 960102"},
        ),
        (
            "looked_after_child",
            "764841000000100",
            "inactive",
            {"start": "2025-01-02", "end": "2026-06-30"},
            "Eastmere County Council",
            {"work": "01632 960201", "mobile": "01632 960202"},
        ),
    ]


def test_the_telephone_that_is_answered_now_is_ranked_first() -> None:
    plan = msgspec.structs.replace(PLANS[0], telephone_now="01632 960102")
    telecom = the(write(compose(ReplyOutcome.MATCH, plans=(plan,))), "CareTeam")["telecom"]
    assert [(line["use"], line["rank"]) for line in telecom] == [("work", 2), ("mobile", 1)]


def test_the_header_answers_the_message_and_goes_to_the_sender_under_new_ids() -> None:
    message = write(MATCH)
    header = the(message, "MessageHeader")
    assert (json.loads(message)["id"], header["id"]) == (BUNDLE_ID, HEADER_ID)
    assert header["response"] == {"identifier": MATCH.in_answer_to, "code": "ok"}
    assert header["eventCoding"] == {"system": "urn:cpis-broker:message-event", "code": "child-protection-check-reply"}
    assert header["destination"][0]["endpoint"] == ENDPOINT
    assert header["source"]["endpoint"] == "urn:cpis-broker"


@pytest.mark.parametrize("control_id", ["MSG_1", "x" * 65, "two words", "é"])
def test_a_message_id_that_fhir_cannot_hold_is_named_by_the_provenance_alone(control_id: str) -> None:
    message = write(compose(ReplyOutcome.NO_RECORD, in_answer_to=control_id))
    Bundle.model_validate_json(message)
    assert "response" not in the(message, "MessageHeader")
    assert the(message, "Provenance")["entity"][0]["what"]["identifier"]["value"] == control_id


def test_the_provenance_names_the_broker_as_agent_and_the_message_received_as_entity() -> None:
    provenance = the(write(MATCH), "Provenance")
    assert provenance["target"] == [{"reference": f"urn:uuid:{HEADER_ID}"}]
    assert provenance["agent"][0]["who"]["identifier"]["value"] == "urn:cpis-broker"
    [entity] = provenance["entity"]
    assert entity["role"] == "source"
    assert entity["what"]["identifier"]["value"] == MATCH.in_answer_to
    assert entity["what"]["identifier"]["assigner"]["identifier"]["value"] == "RZ1"


@pytest.mark.parametrize("reply", [MATCH, BARE], ids=["match", "bare"])
def test_every_reference_leads_within_the_bundle_and_every_resource_is_led_to(reply: ClinicianReply) -> None:
    message = write(reply)
    entries = json.loads(message)["entry"]
    urls = [entry["fullUrl"] for entry in entries]
    assert len(set(urls)) == len(urls)
    assert all(entry["fullUrl"] == f"urn:uuid:{entry['resource']['id']}" for entry in entries)
    named = set(re.findall(r'"reference":"([^"]+)"', message.decode()))
    assert named <= set(urls)
    assert set(urls) - named == {f"urn:uuid:{the(message, 'Provenance')['id']}"}


def test_the_same_reply_is_always_written_alike_and_another_bundle_has_other_ids() -> None:
    assert write(MATCH) == write(MATCH)
    other = build_reply_bundle(
        MATCH, bundle_id=HEADER_ID, header_id=BUNDLE_ID, application="CPIS-BROKER", endpoint=ENDPOINT, at=AT
    )
    ids = [{entry["fullUrl"] for entry in json.loads(message)["entry"]} for message in (write(MATCH), other)]
    assert ids[0].isdisjoint(ids[1])


def test_the_patient_and_the_visit_are_known_by_the_departments_own_numbers_only() -> None:
    message = write(MATCH)
    patient, encounter = the(message, "Patient"), the(message, "Encounter")
    assert set(patient) == {"resourceType", "id", "identifier"}
    assert [each["value"] for each in (*patient["identifier"], *encounter["identifier"])] == ["K12345", "V778812"]
    assert set(the(write(BARE), "Patient")) == {"resourceType", "id"}
    assert resources(write(BARE), "Encounter") == []


def leaves(tree: Any) -> Iterator[str]:
    """Every value of a document, as text."""
    if isinstance(tree, dict):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from leaves(value)
    else:
        yield str(tree)


def contents_of(reply: Any) -> Iterator[Any]:
    """Every value a reply holds, by its path."""
    if isinstance(reply, msgspec.Struct):
        for name in reply.__struct_fields__:
            yield from contents_of(getattr(reply, name))
    elif isinstance(reply, tuple):
        for each in reply:
            yield from contents_of(each)
    else:
        yield reply


def in_words(value: Any, *, hl7: bool) -> Sequence[str]:
    """How a reply's value may be written."""
    if isinstance(value, datetime):
        local = value.astimezone(LONDON)
        return [f"{local:%Y%m%d%H%M%S%z}"] if hl7 else [value.isoformat().replace("+00:00", "Z")]
    if isinstance(value, date):
        return [f"{value:%Y%m%d}"] if hl7 else [value.isoformat()]
    if isinstance(value, bool):
        return ["N", "Y"] if hl7 else ["False", "True"]
    return [str(value)]


@pytest.mark.parametrize("outcome", list(ReplyOutcome))
def test_it_says_what_the_hl7_reply_says_field_by_field(outcome: ReplyOutcome) -> None:
    reply = compose(outcome)
    hl7 = build_reply(reply, sending_application="CPIS-BROKER", sending_facility="CPIS", control_id="C1", at=AT)
    values = set(re.split(r"[|^~\r]", hl7.decode()))
    written = set(leaves(json.loads(write(reply))))
    for value in contents_of(reply):
        if value is not None:
            assert values & set(in_words(value, hl7=True)), value
            assert written & set(in_words(value, hl7=False)), value


def test_nothing_is_written_but_what_the_reply_holds_and_the_words_of_the_format() -> None:
    """What differs between two replies of one shape is what they were given."""
    marked = msgspec.convert(_mark(msgspec.to_builtins(MATCH)), ClinicianReply)
    plain, other = leaves(json.loads(write(MATCH))), leaves(json.loads(write(marked)))
    held = {str(value) for value in msgspec.to_builtins(list(contents_of(MATCH)))}
    changed = {before for before, after in zip(plain, other, strict=True) if before != after}
    assert changed <= held
    assert {"K12345", "V778812", MATCH.wording, "01632 960102"} <= changed


def _mark(tree: Any) -> Any:
    """The same reply with every free text another."""
    fixed = {"plan_type", "has_ended", "outcome", "differs", "replied_at", "start_on", "end_on", "oldest_confirmed_at"}
    if isinstance(tree, dict):
        return {key: value if key in fixed else _mark(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_mark(value) for value in tree]
    return f"x{tree}" if isinstance(tree, str) else tree


EXAMPLE = compose(
    ReplyOutcome.MATCH,
    plans=PLANS[:1],
    authorities_told=("Northfold Borough Council",),
    lists=ListsSearched(
        authorities_searched=2,
        oldest_confirmed_at=AT - timedelta(hours=31),
        own_authorities_missing=("708",),
        own_authorities_stale=("707",),
    ),
)


def test_the_example_of_the_reference_is_what_the_code_writes() -> None:
    [example] = re.findall(r"```json\n(.*?)```", REFERENCE.read_text(encoding="utf-8"), re.S)
    assert json.loads(example) == json.loads(write(EXAMPLE))


def test_the_reference_explains_every_element_that_is_written_and_no_other() -> None:
    entries = [entry["resource"] for entry in json.loads(write(MATCH))["entry"]]
    written = {f"{each['resourceType']}.{name}" for each in entries for name in each} | {
        f"Bundle.{name}" for name in json.loads(write(MATCH))
    }
    explained = set(re.findall(r"`([A-Z][A-Za-z]+\.[a-zA-Z]+)`(?=[^|]*\|[^|]+\|)", _tables()))
    assert explained == {name for name in written if not name.endswith((".resourceType", ".id", ".entry"))} | {
        "Bundle.id",
        "MessageHeader.id",
    }


def test_the_reference_lists_every_component_as_the_code_has_it() -> None:
    rows = re.findall(r"^\| `([A-Z-]+)` \| `(value[A-Za-z]+)` \| ([^|]+?) \|", _tables(), re.M)
    components = the(write(MATCH), "Observation")["component"]
    written = {
        (coding["code"], next(key for key in component if key.startswith("value")), coding["display"])
        for component in components
        for coding in component["code"]["coding"]
    }
    assert set(rows) == written
    assert len(rows) == len(written)


def test_the_reference_names_the_codes_and_the_systems() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    systems = set(re.findall(r'"system":"(urn:cpis-broker[^"]*)"', write(MATCH).decode()))
    assert len(systems) == 5
    for word in (*systems, *(outcome.value for outcome in ReplyOutcome), *(kind.value for kind in PlanType)):
        assert f"`{word}`" in text
    for _, concept, _ in PLAN_TYPES.values():
        assert concept in text


def _tables() -> str:
    lines = REFERENCE.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if line.startswith("|"))


@pytest.mark.parametrize("plan_type", list(PlanType))
def test_every_plan_type_has_its_words(plan_type: PlanType) -> None:
    plan = msgspec.structs.replace(PLANS[0], plan_type=plan_type)
    message = write(compose(ReplyOutcome.MATCH, plans=(plan,)))
    assert the(message, "CarePlan")["category"][0]["coding"][1]["code"] == plan_type.value


def test_a_hostile_text_stays_a_text() -> None:
    hostile = '"}],"resourceType":"Patient\\\u2028\n|^~\\&'
    message = write(compose(ReplyOutcome.NO_RECORD, visit_number=hostile, wording=hostile, local_patient_id=hostile))
    Bundle.model_validate_json(message)
    assert observed(message, Observation.WORDING) == [hostile]
    assert the(message, "Patient")["identifier"][0]["value"] == hostile
