"""The reply to a department as a FHIR R4 message Bundle. docs/reference/fhir-reply.md explains every element.

Plans have the shape of the national Patient Flags API (Flag, CarePlan, CareTeam); everything else is one Observation
whose components have the codes of the HL7 v2 reply, so that both replies say the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid5

import msgspec

from adapters.hl7v2 import OUTCOMES, PLAN_TYPES, Observation
from schemas.alert import ClinicianReply, ListsSearched, PlanShown

FHIR_JSON: Final = "application/fhir+json"
BROKER_SYSTEM: Final = "urn:cpis-broker"
"""Who sends; the broker's own code systems stand below it."""
EVENT_SYSTEM: Final = f"{BROKER_SYSTEM}:message-event"
EVENT_CODE: Final = "child-protection-check-reply"
CHECK_SYSTEM: Final = f"{BROKER_SYSTEM}:check"
"""What is observed: the codes of OBX-3.1."""
CHECK_CODE: Final = "CHILD-PROTECTION-CHECK"
OUTCOME_SYSTEM: Final = f"{BROKER_SYSTEM}:outcome"
PLAN_TYPE_SYSTEM: Final = f"{BROKER_SYSTEM}:plan-type"
REPLY_SYSTEM: Final = f"{BROKER_SYSTEM}:reply"
ODS_SYSTEM: Final = "https://fhir.nhs.uk/Id/ods-organization-code"
FLAG_SYSTEM: Final = "https://fhir.nhs.uk/England/CodeSystem/England-FlagCategoryPatient"
FLAG_CODE: Final = "child-protection-information-system-flag"
FLAG_DETAIL: Final = "http://hl7.org/fhir/StructureDefinition/flag-detail"

_TERMINOLOGY: Final = "http://terminology.hl7.org/CodeSystem"
_FHIR_ID: Final = re.compile(r"[A-Za-z0-9\-.]{1,64}")
_ENCODER: Final = msgspec.json.Encoder()

Element = dict[str, Any]


def build_reply_bundle(
    reply: ClinicianReply, *, bundle_id: str, header_id: str, application: str, endpoint: str, at: datetime
) -> bytes:
    """Write the reply as a message Bundle (R4, 2.4), UTF-8 JSON.

    It says no more than the ORU^R01 does: the patient by the department's own number, the visit by its own number,
    no NHS number, name or date of birth. ``bundle_id`` and ``header_id`` are UUIDs; the ids within are derived from
    the first, so that the same reply is always written alike. ``endpoint`` is where it goes, ``application`` what
    the broker calls itself, ``at`` when the message was composed.
    """
    names = _Names(UUID(bundle_id))
    subject: Element = {"reference": names.urn("patient")}
    focus = [names.urn("check"), *(names.urn(f"flag/{number}") for number, _ in enumerate(reply.plans, 1))]
    header = _header(reply, application, endpoint, focus)
    resources = [
        (f"urn:uuid:{header_id}", header),
        (names.urn("check"), _check(reply, names, application)),
        (names.urn("patient"), _patient(reply)),
    ]
    if reply.visit_number:
        resources.append((names.urn("encounter"), _encounter(reply, reply.visit_number, subject)))
    for number, plan in enumerate(reply.plans, 1):
        resources += _plan(plan, number, names, subject)
    resources.append((names.urn("provenance"), _provenance(reply, header_id, application, at)))
    bundle: Element = {
        "resourceType": "Bundle",
        "id": bundle_id,
        "type": "message",
        "timestamp": at,
        "entry": [
            {"fullUrl": url, "resource": {**resource, "id": url.removeprefix("urn:uuid:")}}
            for url, resource in resources
        ],
    }
    return _ENCODER.encode(bundle)


class _Names:
    """The resources' own ids: what they are within the Bundle, under the Bundle's id."""

    def __init__(self, bundle_id: UUID) -> None:
        self._bundle_id = bundle_id
        self._urns: dict[str, str] = {}

    def urn(self, name: str) -> str:
        urn = self._urns.get(name)
        if urn is None:
            urn = self._urns[name] = f"urn:uuid:{uuid5(self._bundle_id, name)}"
        return urn


def _header(reply: ClinicianReply, application: str, endpoint: str, focus: Sequence[str]) -> Element:
    header: Element = {
        "resourceType": "MessageHeader",
        "eventCoding": {"system": EVENT_SYSTEM, "code": EVENT_CODE},
        "destination": [{"endpoint": endpoint, "receiver": _organisation(reply)}],
        "source": {"name": application, "software": "cpis-broker", "endpoint": BROKER_SYSTEM},
        "focus": [{"reference": url} for url in focus],
    }
    # The element's type is `id`: an MSH-10 of other characters can only be named by the Provenance.
    if _FHIR_ID.fullmatch(reply.in_answer_to):
        header["response"] = {"identifier": reply.in_answer_to, "code": "ok"}
    return header


def _check(reply: ClinicianReply, names: _Names, application: str) -> Element:
    outcome = _coding(OUTCOME_SYSTEM, reply.outcome.value, OUTCOMES[reply.outcome])
    check: Element = {
        "resourceType": "Observation",
        "identifier": [{"system": REPLY_SYSTEM, "value": reply.reply_id}],
        "status": "final",
        "code": {"coding": [_coding(CHECK_SYSTEM, CHECK_CODE, "Child protection check")]},
        "subject": {"reference": names.urn("patient")},
        "effectiveDateTime": reply.replied_at,
        "issued": reply.replied_at,
        "performer": [_broker(application)],
        "valueCodeableConcept": {"coding": [outcome]},
        "component": list(_components(reply)),
    }
    if reply.visit_number:
        check["encounter"] = {"reference": names.urn("encounter")}
    return check


def _components(reply: ClinicianReply) -> Iterator[Element]:
    yield _component(Observation.WORDING, "valueString", reply.wording)
    for fact in reply.differs:
        yield _component(Observation.DIFFERS, "valueString", fact.value)
    for authority in reply.authorities_told:
        yield _component(Observation.AUTHORITY_TOLD, "valueString", authority)
    yield from _searched(reply.lists, reply.replied_at)


def _searched(lists: ListsSearched, replied_at: datetime) -> Iterator[Element]:
    yield _component(Observation.LISTS_SEARCHED, "valueInteger", lists.authorities_searched)
    if lists.oldest_confirmed_at is not None:
        age_h = int((replied_at - lists.oldest_confirmed_at).total_seconds() // 3600)
        hours = {"value": age_h, "unit": "h", "system": "http://unitsofmeasure.org", "code": "h"}
        yield _component(Observation.OLDEST_LIST_AT, "valueDateTime", lists.oldest_confirmed_at)
        yield _component(Observation.OLDEST_LIST_AGE, "valueQuantity", hours)
    for authority in lists.own_authorities_missing:
        yield _component(Observation.OWN_LIST_MISSING, "valueString", authority)
    for authority in lists.own_authorities_stale:
        yield _component(Observation.OWN_LIST_STALE, "valueString", authority)
    yield _component(Observation.NATIONAL_ASKED, "valueBoolean", lists.national_service_asked)


def _component(observation: Observation, kind: str, value: object) -> Element:
    code, _, name = observation.value
    return {"code": {"coding": [_coding(CHECK_SYSTEM, code, name)]}, kind: value}


def _patient(reply: ClinicianReply) -> Element:
    if not reply.local_patient_id:
        return {"resourceType": "Patient"}
    kind = {"coding": [_coding(f"{_TERMINOLOGY}/v2-0203", "PI", "Patient internal identifier")]}
    identifier = {"type": kind, "value": reply.local_patient_id, "assigner": _organisation(reply)}
    return {"resourceType": "Patient", "identifier": [identifier]}


def _encounter(reply: ClinicianReply, visit_number: str, subject: Element) -> Element:
    kind = {"coding": [_coding(f"{_TERMINOLOGY}/v2-0203", "VN", "Visit number")]}
    return {
        "resourceType": "Encounter",
        "identifier": [{"type": kind, "value": visit_number, "assigner": _organisation(reply)}],
        "status": "unknown",
        "class": _coding(f"{_TERMINOLOGY}/v3-NullFlavor", "UNK", "Unknown"),
        "subject": subject,
    }


def _plan(plan: PlanShown, number: int, names: _Names, subject: Element) -> Sequence[tuple[str, Element]]:
    flag, care_plan, care_team = (names.urn(f"{name}/{number}") for name in ("flag", "care-plan", "care-team"))
    display, concept, concept_display = PLAN_TYPES[plan.plan_type]
    kinds = [
        _coding("http://snomed.info/sct", concept, concept_display),
        _coding(PLAN_TYPE_SYSTEM, plan.plan_type.value, display),
    ]
    period: Element = {"start": plan.start_on}
    if plan.end_on is not None:
        period["end"] = plan.end_on
    flag_code = {"coding": [_coding(FLAG_SYSTEM, FLAG_CODE)], "text": display}
    return (
        (
            flag,
            {
                "resourceType": "Flag",
                "extension": [{"url": FLAG_DETAIL, "valueReference": {"reference": care_plan}}],
                "status": "inactive" if plan.has_ended else "active",
                "code": flag_code,
                "subject": subject,
                "period": period,
            },
        ),
        (
            care_plan,
            {
                "resourceType": "CarePlan",
                "status": "completed" if plan.has_ended else "active",
                "intent": "plan",
                "category": [{"coding": kinds}],
                "subject": subject,
                "period": period,
                "careTeam": [{"reference": care_team}],
            },
        ),
        (care_team, _care_team(plan, kinds, period, subject)),
    )


def _care_team(plan: PlanShown, kinds: list[Element], period: Element, subject: Element) -> Element:
    """The authority and whom to ring: the emergency duty team is ``mobile``, as the national service has it."""
    telephones = (("work", plan.office_telephone), ("mobile", plan.emergency_telephone))
    return {
        "resourceType": "CareTeam",
        "category": [{"coding": kinds}],
        "name": plan.authority_name,
        "subject": subject,
        "period": period,
        "telecom": [_telephone(use, value, plan.telephone_now) for use, value in telephones],
    }


def _telephone(use: str, value: str, answered: str | None) -> Element:
    """``rank`` 1 is to be rung first (R4, 2.24.0.14): the one that is answered now."""
    telephone: Element = {"system": "phone", "value": value, "use": use}
    return {**telephone, "rank": 1 if value == answered else 2} if answered else telephone


def _provenance(reply: ClinicianReply, header_id: str, application: str, at: datetime) -> Element:
    """The broker made this message out of the one it received (R4, 6.3)."""
    received = {"identifier": {"value": reply.in_answer_to, "assigner": _organisation(reply)}}
    kind = {"coding": [_coding(f"{_TERMINOLOGY}/provenance-participant-type", "assembler", "Assembler")]}
    return {
        "resourceType": "Provenance",
        "target": [{"reference": f"urn:uuid:{header_id}"}],
        "recorded": at,
        "agent": [{"type": kind, "who": _broker(application)}],
        "entity": [{"role": "source", "what": received}],
    }


def _broker(application: str) -> Element:
    return {"identifier": {"system": "urn:ietf:rfc:3986", "value": BROKER_SYSTEM}, "display": application}


def _organisation(reply: ClinicianReply) -> Element:
    return {"identifier": {"system": ODS_SYSTEM, "value": reply.organisation}}


def _coding(system: str, code: str, display: str = "") -> Element:
    coding = {"system": system, "code": code}
    if display:
        coding["display"] = display
    return coding
