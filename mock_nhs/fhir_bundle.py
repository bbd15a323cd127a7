"""FHIR R4 as this side writes and reads it: an attendance in UK Core's shape out, the broker's reply in.

Written apart from the product's own reader and writer, so that two independent pieces of code must agree.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo

from mock_nhs.reply_book import Observation, Reply, find_problems

if TYPE_CHECKING:
    from mock_nhs.department import Visit

FHIR_JSON: Final = "application/fhir+json"
LONDON: Final = ZoneInfo("Europe/London")
_IDS: Final = UUID("2c1f7a54-5d0e-4f8e-9a55-0c8b7d6e5f41")
_UK_CORE: Final = "https://fhir.hl7.org.uk"
_NHS: Final = "https://fhir.nhs.uk"
_TERMINOLOGY: Final = "http://terminology.hl7.org/CodeSystem"
_STATUSES: Final = {"A04": "arrived", "A01": "in-progress", "A08": "in-progress", "A03": "finished"}
_REASONS: Final = {"A04": "admit", "A01": "admit", "A08": "edit", "A31": "edit", "A03": "discharge"}
_CLASSES: Final = {"E": ("EMER", "emergency"), "I": ("IMP", "inpatient encounter")}
_GENDERS: Final = {"1": "male", "2": "female"}

Element = dict[str, Any]


class NotAReply(Exception):
    """Bytes that are no reply of the broker. Never carries contents."""


def message_id(control_id: str) -> str:
    """The MessageHeader's id: the same for the same message."""
    return str(uuid5(_IDS, control_id))


# --- out ------------------------------------------------------------------------------------------------


def write_attendance(visit: Visit, *, site: str, event: str, control_id: str, at: datetime, readable: bool) -> bytes:
    """A message Bundle about a visit; about the person alone for A31. Unreadable is one without the Patient."""
    patient, organisation, encounter = (
        f"urn:uuid:{uuid5(_IDS, f'{control_id}/{name}')}" for name in ("patient", "organisation", "encounter")
    )
    header_id = message_id(control_id)
    focus = patient if event == "A31" else encounter
    resources: list[tuple[str, Element]] = [
        (f"urn:uuid:{header_id}", _header(site, event, focus=focus, organisation=organisation)),
        (organisation, _organisation(site)),
    ]
    if readable:
        resources.append((patient, _patient(visit, site)))
    if event != "A31":
        resources.append((encounter, _encounter(visit, site, event, patient=patient, organisation=organisation)))
    bundle: Element = {
        "resourceType": "Bundle",
        "id": str(uuid5(_IDS, f"{control_id}/bundle")),
        "meta": {"profile": [f"{_UK_CORE}/StructureDefinition/UKCore-Bundle"]},
        "type": "message",
        "timestamp": _instant(at),
        "entry": [
            {"fullUrl": url, "resource": {**resource, "id": url.removeprefix("urn:uuid:")}}
            for url, resource in resources
        ],
    }
    return json.dumps(bundle, ensure_ascii=False, separators=(",", ":")).encode()


def _header(site: str, event: str, *, focus: str, organisation: str) -> Element:
    return {
        "resourceType": "MessageHeader",
        "meta": {"profile": [f"{_UK_CORE}/StructureDefinition/UKCore-MessageHeader"]},
        "eventCoding": {"system": f"{_TERMINOLOGY}/v2-0003", "code": event},
        "sender": {"reference": organisation},
        "source": {"name": "EDIS", "software": "EDIS", "endpoint": f"https://{site.lower()}.example.org/FHIR/R4"},
        "reason": {"coding": [{"system": f"{_TERMINOLOGY}/message-reasons-encounter", "code": _REASONS[event]}]},
        "focus": [{"reference": focus}],
    }


def _organisation(site: str) -> Element:
    return {
        "resourceType": "Organization",
        "meta": {"profile": [f"{_UK_CORE}/StructureDefinition/UKCore-Organization"]},
        "identifier": [{"system": f"{_NHS}/Id/ods-organization-code", "value": site}],
        "name": f"{site} Hospital",
    }


def _patient(visit: Visit, site: str) -> Element:
    person = visit.person
    kind = {"coding": [{"system": f"{_TERMINOLOGY}/v2-0203", "code": "MR"}]}
    identifiers: list[Element] = [
        {"type": kind, "system": f"https://{site.lower()}.example.org/Id/patient", "value": visit.local_patient_id}
    ]
    if visit.nhs_number:
        identifiers.append(_nhs_number(visit.nhs_number, visit.number_status))
    return {
        "resourceType": "Patient",
        "meta": {"profile": [f"{_UK_CORE}/StructureDefinition/UKCore-Patient"]},
        "identifier": identifiers,
        "name": [{"use": "official", "family": visit.family_name, "given": person.given_name.split()}],
        "gender": _GENDERS.get(person.sex, "unknown"),
        "birthDate": person.birth_date.isoformat(),
        "address": [{"use": "home", "line": [person.address], "city": "Anytown", "postalCode": person.postcode}],
    }


def _nhs_number(nhs_number: str, status: str) -> Element:
    system = f"{_UK_CORE}/CodeSystem/UKCore-NHSNumberVerificationStatusEngland"
    extension = {
        "url": f"{_UK_CORE}/StructureDefinition/Extension-UKCore-NHSNumberVerificationStatus",
        "valueCodeableConcept": {"coding": [{"system": system, "code": status}]},
    }
    return {"extension": [extension], "system": f"{_NHS}/Id/nhs-number", "value": nhs_number}


def _encounter(visit: Visit, site: str, event: str, *, patient: str, organisation: str) -> Element:
    code, display = _CLASSES[visit.patient_class]
    kind = {"coding": [{"system": f"{_TERMINOLOGY}/v2-0203", "code": "VN"}]}
    period = {"start": _instant(visit.arrived_at)}
    if visit.left_at is not None:
        period["end"] = _instant(visit.left_at)
    return {
        "resourceType": "Encounter",
        "meta": {"profile": [f"{_UK_CORE}/StructureDefinition/UKCore-Encounter"]},
        "identifier": [{"type": kind, "system": f"https://{site.lower()}.example.org/Id/visit", "value": visit.number}],
        "status": _STATUSES[event],
        "class": {"system": f"{_TERMINOLOGY}/v3-ActCode", "code": code, "display": display},
        "subject": {"reference": patient},
        "period": period,
        "reasonCode": [{"text": visit.complaint}],
        "serviceProvider": {"reference": organisation},
    }


def _instant(at: datetime) -> str:
    return at.astimezone(LONDON).isoformat(timespec="seconds")


# --- in -------------------------------------------------------------------------------------------------


def read_reply_bundle(body: bytes, visits: Mapping[str, str]) -> Reply:
    """Read the broker's reply. ``visits`` gives the local patient id of every visit the department knows.

    Raises NotAReply when it is no message of that event, or has no result at all.
    """
    try:
        return _Reading(body).read(visits)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise NotAReply from None


class _Reading:
    """One Bundle, its resources by address."""

    def __init__(self, body: bytes) -> None:
        self._text = body.decode()
        bundle = json.loads(self._text)
        self._resources: dict[str, Element] = {entry["fullUrl"]: entry["resource"] for entry in bundle["entry"]}
        self._header: Element = bundle["entry"][0]["resource"]
        if bundle["type"] != "message" or self._header["eventCoding"]["code"] != "child-protection-check-reply":
            raise NotAReply

    def read(self, visits: Mapping[str, str]) -> Reply:
        check = self._follow(self._header["focus"][0])
        found = [*(_read_component(component) for component in check["component"]), *self._plans()]
        outcome = check["valueCodeableConcept"]["coding"][0]["code"]
        wording = "\n".join(each.value for each in found if each.code == "WORDING")
        visit_number = self._number(check.get("encounter"))
        local_patient_id = self._number(check.get("subject"))
        problems = find_problems(
            self._text,
            visits,
            visit_number=visit_number,
            local_patient_id=local_patient_id,
            outcome=outcome,
            wording=wording,
        )
        return Reply(
            control_id=self._header["id"],
            visit_number=visit_number,
            local_patient_id=local_patient_id,
            outcome=outcome,
            wording=wording,
            observations=tuple(each for each in found if each.code != "WORDING"),
            problems=(*problems, *self._problems_of_form()),
        )

    def _problems_of_form(self) -> Iterator[str]:
        """A reply says which message it answers, and where it came from."""
        if self._header.get("response", {}).get("code") != "ok":
            yield "answers_nothing"
        provenances = [each for each in self._resources.values() if each["resourceType"] == "Provenance"]
        answered = {entity["what"]["identifier"]["value"] for each in provenances for entity in each["entity"]}
        if self._header.get("response", {}).get("identifier") not in answered:
            yield "no_provenance"

    def _plans(self) -> Iterator[Observation]:
        """Each plan as HL7 v2 tells of it, so that a screen shows both alike."""
        flags = [each for each in self._resources.values() if each["resourceType"] == "Flag"]
        for number, flag in enumerate(flags, 1):
            plan = self._follow(flag["extension"][0]["valueReference"])
            team = self._follow(plan["careTeam"][0])
            telephones = {line["use"]: line["value"] for line in team["telecom"]}
            parts = (
                ("PLAN-TYPE", "Plan type", plan["category"][0]["coding"][0]["display"]),
                ("PLAN-START", "Plan start date", plan["period"]["start"]),
                ("PLAN-END", "Plan end date", plan["period"].get("end", "")),
                ("PLAN-AUTHORITY", "Responsible local authority", team["name"]),
                ("OFFICE-TELEPHONE", "Office hours telephone", telephones["work"]),
                ("EMERGENCY-TELEPHONE", "Emergency duty team telephone", telephones["mobile"]),
            )
            for code, name, value in parts:
                if value:
                    yield Observation(code=code, name=name, group=str(number), value=value)

    def _number(self, reference: Element | None) -> str:
        """The first identifier of what is referred to; empty when there is none."""
        if reference is None:
            return ""
        identifiers = self._follow(reference).get("identifier", [])
        return str(identifiers[0]["value"]) if identifiers else ""

    def _follow(self, reference: Element) -> Element:
        return self._resources[reference["reference"]]


def _read_component(component: Element) -> Observation:
    coding = component["code"]["coding"][0]
    [value] = (value for key, value in component.items() if key.startswith("value"))
    if isinstance(value, dict):
        value = f"{value['value']} {value['unit']}"
    return Observation(code=coding["code"], name=coding["display"], group="", value=str(value))
