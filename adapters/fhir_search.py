"""Answers to who asks about one person, as FHIR R4 searchset Bundles. docs/reference/fhir-search.md explains them.

PatientFlag has the shape of the national Patient Flags API (Flag, CarePlan, CareTeam), CareTeam and AuditEvent that of
the CP-IS consumer API. What neither has a place for (who was told, how old the lists are, what a miss means) stands in
words in an OperationOutcome, which a searchset may hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final
from uuid import UUID, uuid5

import msgspec

from adapters.fhir_writer import BROKER_SYSTEM, FLAG_CODE, FLAG_DETAIL, FLAG_SYSTEM, ODS_SYSTEM, PLAN_TYPE_SYSTEM
from adapters.hl7v2 import PLAN_TYPES
from schemas.alert import PlanShown
from schemas.look_up import AccessShown, AuthorityNotified, PlanFound, RecordShown

NHS_NUMBER_SYSTEM: Final = "https://fhir.nhs.uk/Id/nhs-number"
FLAG_PROFILE: Final = "https://fhir.nhs.uk/England/StructureDefinition/England-Flag-PatientFlag"
ERROR_SYSTEM: Final = f"{BROKER_SYSTEM}:error"
ACCESS_SYSTEM: Final = f"{BROKER_SYSTEM}:access"
URI: Final = "urn:ietf:rfc:3986"
ANSWER_BYTES_STEP: Final = 65_536
"""Answers are filled up with spaces to a multiple of this: nobody on the way can tell by its size what it says."""
_ROLE_CLASS: Final = "http://terminology.hl7.org/CodeSystem/v3-RoleClass"
_EVENT_TYPE: Final = "http://terminology.hl7.org/CodeSystem/audit-event-type"
_ENCODER: Final = msgspec.json.Encoder()

Element = dict[str, Any]


def build_flag_answer(record: RecordShown) -> bytes:
    """Each plan as a Flag, with its CarePlan and CareTeam."""
    entries: list[Element] = []
    for number, found in enumerate(record.plans, 1):
        names = _Names(record, number)
        entries.append(_entry(names.urn("flag"), _flag(record, found, names), "match"))
        entries.append(_entry(names.urn("care-plan"), _care_plan(record, found, names), "include"))
        entries.append(_entry(names.urn("care-team"), _care_team(record, found), "include"))
    return _write(record, entries)


def build_care_team_answer(record: RecordShown) -> bytes:
    """Each plan as the CareTeam of its authority."""
    return _write(
        record,
        [
            _entry(_Names(record, number).urn("care-team"), _care_team(record, found), "match")
            for number, found in enumerate(record.plans, 1)
        ],
    )


def build_access_answer(record: RecordShown) -> bytes:
    """Each access as an AuditEvent, with who it was as a PractitionerRole."""
    entries: list[Element] = []
    for number, access in enumerate(record.accesses, 1):
        names = _Names(record, number)
        entries.append(_entry(names.urn("audit-event"), _audit_event(record, access, names), "match"))
        entries.append(_entry(names.urn("practitioner-role"), _practitioner_role(access), "include"))
    return _write(record, entries)


def build_refusal(code: str, issue_type: str, words: str) -> bytes:
    """Why a question is not answered; ``code`` is the national one. Never says what was asked."""
    coding = {"system": ERROR_SYSTEM, "code": code}
    issue = {"severity": "error", "code": issue_type, "details": {"coding": [coding]}, "diagnostics": words}
    return _fill_up(_ENCODER.encode({"resourceType": "OperationOutcome", "issue": [issue]}))


class _Names:
    """The ids of one plan's or one access's resources, under the person's."""

    def __init__(self, record: RecordShown, number: int) -> None:
        self._record_id, self._number = UUID(record.record_id), number

    def urn(self, kind: str) -> str:
        return f"urn:uuid:{uuid5(self._record_id, f'{kind}/{self._number}')}"


def _write(record: RecordShown, entries: Sequence[Element]) -> bytes:
    total = sum(entry["search"]["mode"] == "match" for entry in entries)
    outcome = {"resourceType": "OperationOutcome", "issue": [_note(words) for words in _notes(record)]}
    bundle: Element = {
        "resourceType": "Bundle",
        "type": "searchset",
        "timestamp": record.asked_at,
        "total": total,
        "entry": [*entries, _entry(f"urn:uuid:{uuid5(UUID(record.record_id), 'outcome')}", outcome, "outcome")],
    }
    return _fill_up(_ENCODER.encode(bundle))


def _fill_up(body: bytes) -> bytes:
    return body + b" " * (-len(body) % ANSWER_BYTES_STEP)


def _entry(url: str, resource: Element, mode: str) -> Element:
    return {
        "fullUrl": url,
        "resource": {**resource, "id": url.removeprefix("urn:uuid:")},
        "search": {"mode": mode},
    }


def _note(words: str) -> Element:
    return {"severity": "information", "code": "informational", "diagnostics": words}


def _notes(record: RecordShown) -> Iterator[str]:
    """What no resource has a place for; the first is for the screen, exactly."""
    yield record.wording
    for code in dict.fromkeys(found.authority for found in record.plans):
        found = next(each for each in record.plans if each.authority == code)
        yield _name_telephone(found)
    for notified in record.notified:
        yield _name_notified(notified)


def _name_telephone(found: PlanFound) -> str:
    plan = found.plan
    is_office = plan.telephone_now == plan.office_telephone
    who = "its office" if is_office else "its emergency duty team"
    list_ = (
        "never confirmed"
        if found.list_confirmed_at is None
        else f"confirmed at {found.list_confirmed_at:%Y-%m-%dT%H:%M:%SZ}"
    )
    return f"{plan.authority_name}: ring {plan.telephone_now} now ({who}). Its list was {list_}."


def _name_notified(notified: AuthorityNotified) -> str:
    what = "this look-up" if notified.is_look_up else "an attendance"
    answer = "not acknowledged yet"
    if notified.acknowledged_at is not None:
        answer = f"acknowledged at {notified.acknowledged_at:%Y-%m-%dT%H:%M:%SZ}"
    return f"{notified.authority_name} was told of {what} at {notified.told_at:%Y-%m-%dT%H:%M:%SZ}, {answer}."


def _flag(record: RecordShown, found: PlanFound, names: _Names) -> Element:
    flag: Element = {
        "resourceType": "Flag",
        "meta": {"profile": [FLAG_PROFILE]},
        "contained": [_provenance(record, found)],
        "extension": [{"url": FLAG_DETAIL, "valueReference": {"reference": names.urn("care-plan")}}],
        "status": "inactive" if found.plan.has_ended else "active",
        "code": {"coding": [_coding(FLAG_SYSTEM, FLAG_CODE)], "text": PLAN_TYPES[found.plan.plan_type][0]},
        "subject": _subject(record),
        "period": _period(found.plan),
    }
    return flag


def _provenance(record: RecordShown, found: PlanFound) -> Element:
    """The authority's list is where it comes from (R4, 6.3)."""
    return {
        "resourceType": "Provenance",
        "id": "provenance",
        "target": [{"reference": "#"}],
        "recorded": found.list_confirmed_at or record.asked_at,
        "agent": [{"who": _authority(found)}],
    }


def _care_plan(record: RecordShown, found: PlanFound, names: _Names) -> Element:
    return {
        "resourceType": "CarePlan",
        "status": "completed" if found.plan.has_ended else "active",
        "intent": "plan",
        "category": _category(found.plan),
        "subject": _subject(record),
        "period": _period(found.plan),
        "careTeam": [{"reference": names.urn("care-team")}],
    }


def _care_team(record: RecordShown, found: PlanFound) -> Element:
    """The authority: ``work`` is its office, ``mobile`` its emergency duty team, ``rank`` 1 who answers now."""
    plan = found.plan
    telephones = (("work", plan.office_telephone), ("mobile", plan.emergency_telephone))
    team: Element = {
        "resourceType": "CareTeam",
        "status": "inactive" if plan.has_ended else "active",
        "category": _category(plan),
        "name": plan.authority_name,
        "subject": _subject(record),
        "period": _period(plan),
        "managingOrganization": [_authority(found)],
        "telecom": [
            {"system": "phone", "value": value, "use": use, "rank": 1 if value == plan.telephone_now else 2}
            for use, value in telephones
        ],
    }
    if found.list_confirmed_at is not None:
        team["meta"] = {"lastUpdated": found.list_confirmed_at}
    return team


def _audit_event(record: RecordShown, access: AccessShown, names: _Names) -> Element:
    role = {"reference": names.urn("practitioner-role")}
    return {
        "resourceType": "AuditEvent",
        "type": _coding(_EVENT_TYPE, "rest", "RESTful Operation"),
        "action": "R",
        "recorded": access.at,
        "agent": [{"who": role, "requestor": True}],
        "source": {"observer": {"identifier": {"system": URI, "value": BROKER_SYSTEM}, "display": "cpis-broker"}},
        "entity": [
            {"what": role, "type": _coding(_ROLE_CLASS, "ASSIGNED", "assigned entity")},
            {"what": _subject(record), "type": _coding(_ROLE_CLASS, "PAT", "patient")},
        ],
    }


def _practitioner_role(access: AccessShown) -> Element:
    kind = "attended" if access.person is None else "looked_up"
    words = "The person attended" if access.person is None else "Looked up"
    return {
        "resourceType": "PractitionerRole",
        "practitioner": {"display": access.person or words},
        "organization": {
            "identifier": {"system": ODS_SYSTEM, "value": access.organisation},
            "display": access.organisation_name,
        },
        "code": [{"coding": [_coding(ACCESS_SYSTEM, kind, words)]}],
    }


def _category(plan: PlanShown) -> list[Element]:
    display, concept, concept_display = PLAN_TYPES[plan.plan_type]
    return [
        {
            "coding": [
                _coding("http://snomed.info/sct", concept, concept_display),
                _coding(PLAN_TYPE_SYSTEM, plan.plan_type.value, display),
            ]
        }
    ]


def _period(plan: PlanShown) -> Element:
    return {"start": plan.start_on} if plan.end_on is None else {"start": plan.start_on, "end": plan.end_on}


def _subject(record: RecordShown) -> Element:
    return {"type": "Patient", "identifier": {"system": NHS_NUMBER_SYSTEM, "value": record.nhs_number}}


def _authority(found: PlanFound) -> Element:
    return {"identifier": {"system": ODS_SYSTEM, "value": found.authority}, "display": found.plan.authority_name}


def _coding(system: str, code: str, display: str = "") -> Element:
    coding = {"system": system, "code": code}
    return {**coding, "display": display} if display else coding
