"""FHIR R4 Bundles about synthetic people, in the shapes departments send. What is not said is made up plausibly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.factories import make_nhs_number

Element = dict[str, Any]

NHS_NUMBER_SYSTEM = "https://fhir.nhs.uk/Id/nhs-number"
ODS_SYSTEM = "https://fhir.nhs.uk/Id/ods-organization-code"
SITE_SYSTEM = "https://fhir.nhs.uk/Id/ods-site-code"
STATUS_URL = "https://fhir.hl7.org.uk/StructureDefinition/Extension-UKCore-NHSNumberVerificationStatus"
ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
ROLE_CODE = "http://terminology.hl7.org/CodeSystem/v3-RoleCode"
V2_0203 = "http://terminology.hl7.org/CodeSystem/v2-0203"
BARS_EVENTS = "https://fhir.nhs.uk/CodeSystem/message-events-bars"
DA_VINCI_EVENTS = "http://hl7.org/fhir/us/davinci-alerts/CodeSystem/notification-event"
V2_EVENTS = "http://terminology.hl7.org/CodeSystem/v2-0003"

NHS_NUMBER = make_nhs_number(1)
MOTHERS_NUMBER = make_nhs_number(2)
SENT_AT = "2026-02-14T03:08:00+00:00"


def make_identifier(
    value: str = NHS_NUMBER, *, system: str = NHS_NUMBER_SYSTEM, status: str = "", **more: Any
) -> Element:
    """An Identifier: of the NHS number, verified as ``status`` (a code) says, unless told otherwise."""
    identifier: Element = {"system": system, "value": value, **more}
    if status:
        coding = {"system": "https://fhir.hl7.org.uk/CodeSystem/UKCore-NHSNumberVerificationStatus", "code": status}
        identifier["extension"] = [{"url": STATUS_URL, "valueCodeableConcept": {"coding": [coding]}}]
    return identifier


def make_patient(**changes: Any) -> Element:
    """Casey Tester, a child; a change to None leaves the element out."""
    return _change(
        {
            "resourceType": "Patient",
            "id": "p1",
            "meta": {"profile": ["https://fhir.hl7.org.uk/StructureDefinition/UKCore-Patient"]},
            "identifier": [
                make_identifier(status="number-present-and-verified"),
                {
                    "system": "https://rz1.example.org/mrn",
                    "value": "K12345",
                    "type": {"coding": [{"system": V2_0203, "code": "MR"}]},
                },
            ],
            "name": [{"use": "official", "family": "Tester", "given": ["Casey", "Jo"]}],
            "gender": "female",
            "birthDate": "2015-03-02",
            "address": [{"use": "home", "line": ["1 Sample Street"], "postalCode": "zz99 3wz"}],
        },
        changes,
    )


def make_encounter(**changes: Any) -> Element:
    """Her visit to an emergency department, arrived; a change to None leaves the element out."""
    return _change(
        {
            "resourceType": "Encounter",
            "id": "e1",
            "meta": {"profile": ["https://fhir.hl7.org.uk/StructureDefinition/UKCore-Encounter"]},
            "identifier": [{"system": "https://rz1.example.org/visit", "value": "V778812"}],
            "status": "arrived",
            "class": {"system": ACT_CODE, "code": "EMER"},
            "subject": {"reference": "Patient/p1"},
            "period": {"start": "2026-02-14T03:07:00+00:00"},
            "reasonCode": [{"text": "Fall from height"}],
            "serviceProvider": {"reference": "Organization/o1"},
        },
        changes,
    )


def make_organisation(code: str = "RZ1", **changes: Any) -> Element:
    """The provider, by its ODS code."""
    identifier = [{"system": ODS_SYSTEM, "value": code}]
    return _change(
        {"resourceType": "Organization", "id": "o1", "identifier": identifier, "name": "Sample Trust"}, changes
    )


def make_header(code: str = "notification-admit", *, system: str = DA_VINCI_EVENTS, **changes: Any) -> Element:
    """A MessageHeader that names an event and focuses on her visit."""
    return _change(
        {
            "resourceType": "MessageHeader",
            "id": "m1",
            "eventCoding": {"system": system, "code": code},
            "sender": {"reference": "Organization/o1"},
            "source": {"name": "EDIS", "endpoint": "https://edis.example.org/fhir"},
            "focus": [{"reference": "Encounter/e1"}],
        },
        changes,
    )


def make_mother(**changes: Any) -> Element:
    """Her mother, as a RelatedPerson with an NHS number."""
    return _change(
        {
            "resourceType": "RelatedPerson",
            "id": "r1",
            "identifier": [make_identifier(MOTHERS_NUMBER)],
            "patient": {"reference": "Patient/p1"},
            "relationship": [{"coding": [{"system": ROLE_CODE, "code": "MTH"}]}],
        },
        changes,
    )


def make_bundle(*resources: Element, **changes: Any) -> Element:
    """A Bundle of these resources, each under its address: a message if it begins with a MessageHeader."""
    bundle_type = "message" if resources[0]["resourceType"] == "MessageHeader" else "collection"
    entries = [
        {"fullUrl": f"https://edis.example.org/fhir/{resource['resourceType']}/{resource['id']}", "resource": resource}
        for resource in resources
    ]
    return _change(
        {"resourceType": "Bundle", "id": "b1", "type": bundle_type, "timestamp": SENT_AT, "entry": entries}, changes
    )


def make_message(*others: Element, **encounter: Any) -> Element:
    """A message Bundle about her visit; ``encounter`` changes the Encounter."""
    return make_bundle(make_header(), make_encounter(**encounter), make_patient(), make_organisation(), *others)


def make_bars_message(event: str, resources: Sequence[Element], *, focus: str, reason: str = "new") -> Element:
    """A BaRS message: everything under urn:uuid, which is how it refers to itself."""
    header = make_header(
        event,
        system=BARS_EVENTS,
        meta={"profile": [f"https://fhir.nhs.uk/StructureDefinition/BARSMessageHeader-{event}"]},
        source={"name": "NHS 111", "endpoint": "https://fhir.nhs.uk/Id/dos-service-id|111"},
        destination=[{"endpoint": "https://fhir.nhs.uk/Id/dos-service-id|222"}],
        reason={"coding": [{"system": "https://fhir.nhs.uk/CodeSystem/message-reason-bars", "code": reason}]},
        focus=[{"reference": focus}],
    )
    bundle = make_bundle(header, *resources)
    bundle["meta"] = {"profile": ["https://fhir.nhs.uk/StructureDefinition/BARSBundleMessage"]}
    text = json.dumps(bundle)
    for number, resource in enumerate((header, *resources)):
        address = f"{resource['resourceType']}/{resource['id']}"
        urn = f"urn:uuid:00000000-0000-4000-8000-{number:012d}"
        text = text.replace(f"https://edis.example.org/fhir/{address}", urn).replace(f'"{address}"', f'"{urn}"')
    bars: Element = json.loads(text)
    return bars


def make_service_request(**changes: Any) -> Element:
    """A referral of her from NHS 111 to a department."""
    return _change(
        {
            "resourceType": "ServiceRequest",
            "id": "s1",
            "status": "active",
            "intent": "plan",
            "subject": {"reference": "Patient/p1"},
        },
        changes,
    )


def make_transaction(*resources: Element) -> Element:
    """A transaction that creates these resources."""
    bundle = make_bundle(*resources, type="transaction")
    for entry in bundle["entry"]:
        entry["request"] = {"method": "POST", "url": entry["resource"]["resourceType"]}
    return bundle


def encode(bundle: object) -> bytes:
    """The bytes a sender would send."""
    return json.dumps(bundle).encode()


def _change(element: Element, changes: Element) -> Element:
    return {name: value for name, value in {**element, **changes}.items() if value is not None}
