"""FHIR R4 Bundles: attendances read. Pure; the bytes are never rewritten.

Sources: FHIR R4 (4.0.1) Bundle, MessageHeader and Encounter; UK Core; BaRS; Da Vinci Unsolicited Notifications.

What decides whether a person is attending is the Encounter, whatever the message is called. An Encounter that has
begun is a contact with unscheduled care: an emergency department's, and as much that of NHS 111 or the ambulance
service that stands in a BaRS ``servicerequest-request``, for these are settings in which CP-IS notifies. A
referral or a booking without one, or one that is only ``planned``, tells of somebody who may come some day: that is
no attendance, and a message of its own follows when they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from adapters.fhir_bundle import OpenBundle, open_bundle
from adapters.fhir_element import Resource, child, children, read_code, read_identifier, read_instant
from adapters.fhir_encounter import (
    choose_encounter,
    find_patient,
    read_arrival_mode,
    read_class,
    read_concept,
    read_disposition,
    read_event,
    read_place,
    read_visit_number,
)
from adapters.fhir_guard import (
    DEFAULT_LIMITS,
    FhirLimits,
    Finding,
    NotAnAttendanceBundle,
    UnreadableBundle,
    check_structure,
    read_json,
    refuse,
)
from adapters.fhir_organisation import read_ods_code, read_sender
from adapters.fhir_patient import Merge, find_merges, read_deceased, read_link, read_patient
from schemas.attendance import Attendance, Event

__all__ = [
    "DEFAULT_LIMITS",
    "FhirLimits",
    "FhirReading",
    "Finding",
    "NotAnAttendanceBundle",
    "UnreadableBundle",
    "read_bundle",
]


class FhirReading(msgspec.Struct, frozen=True, kw_only=True):
    """An attendance, and what is wrong with the Bundle it was read from."""

    attendance: Attendance
    findings: tuple[Finding, ...]
    bundle_id: str
    """Bundle.id, else Bundle.identifier, else empty."""


def read_bundle(body: bytes, limits: FhirLimits = DEFAULT_LIMITS) -> FhirReading:
    """Read what a Bundle says of one visit.

    A Bundle that breaks the rules of FHIR is read all the same if it says who came: ``is_degraded`` is set, and the
    findings name the elements. Raises NotAnAttendanceBundle when it tells of nobody attending, and UnreadableBundle
    with one of the reasons listed there. Nothing else is raised, whatever the bytes.
    """
    document, findings = read_json(body, limits)
    if not isinstance(document, dict):
        refuse("not_a_bundle", "structure", "Bundle", "the message is not a Bundle")
    bundle = open_bundle(document, limits, findings)
    attendance = _read_what_it_tells(bundle)
    parts = {number: entry for number in bundle.entries.read if isinstance(entry := bundle.parts[number], dict)}
    found = [*findings, *check_structure(bundle.element, parts, limits)]
    is_degraded = any(finding.severity == "error" for finding in found)
    return FhirReading(
        attendance=msgspec.structs.replace(attendance, is_degraded=is_degraded),
        findings=tuple(dict.fromkeys(found))[: limits.findings_max],
        bundle_id=bundle.id,
    )


def _read_what_it_tells(bundle: OpenBundle) -> Attendance:
    try:
        encounter = choose_encounter(bundle)
    except NotAnAttendanceBundle:
        # Nobody is attending; that two records are one is news of a person all the same.
        merges = find_merges(bundle.entries, bundle.limits)
        if not merges:
            raise
        return _read_merge(bundle, merges)
    patient = find_patient(bundle, encounter)
    bundle.entries.read.update((encounter.number, patient.number))
    return _read_attendance(bundle, encounter, patient)


def _read_merge(bundle: OpenBundle, merges: Sequence[Merge]) -> Attendance:
    """What A40 says: who is left, and under which number they were known before (Patient.link; R4, 8.1.6.2).

    Raises UnreadableBundle ``several_patients``: which is which of several merges, one message cannot say.
    """
    if len(merges) > 1:
        refuse("several_patients", "business-rule", "Bundle.entry", "the Patients are linked to several others")
    [merge] = merges
    patient = read_patient(merge.survivor, bundle.entries, bundle.limits, bundle.findings)
    message_at = _read_message_time(bundle)
    return Attendance(
        is_fhir=True,
        sender=read_sender(bundle) or "",
        control_id=_read_control_id(bundle),
        event=Event.IDENTIFIERS_MERGED,
        message_at=message_at,
        event_at=message_at or read_instant(child(merge.survivor.element, "meta"), "lastUpdated"),
        nhs_number=patient.nhs_number,
        nhs_number_problem=patient.nhs_number_problem,
        nhs_number_status=patient.nhs_number_status,
        mother_nhs_number=patient.mother_nhs_number,
        local_patient_id=merge.survivor_id,
        former_patient_id=merge.former_id,
        names=patient.names,
        birth_date=patient.birth_date,
        sex=patient.sex,
        postcode=patient.postcode,
        is_deceased=read_deceased(merge.survivor.element),
        is_test=_is_test(bundle),
    )


def _read_attendance(bundle: OpenBundle, encounter: Resource, whose: Resource) -> Attendance:
    """Raises UnreadableBundle ``no_identity``."""
    limits = bundle.limits
    patient = read_patient(whose, bundle.entries, limits, bundle.findings)
    if not patient.can_be_identified:
        refuse("no_identity", "required", whose.expression, "Patient has no identifier, and no name with a birth date")
    patient_class = read_class(encounter)
    event = read_event(bundle, encounter, patient_class)
    element = encounter.element
    period = child(element, "period")
    arrived_at, left_at = read_instant(period, "start"), read_instant(period, "end")
    message_at = _read_message_time(bundle)
    department, site = read_place(bundle, encounter)
    local_id, former_id = read_link(whose, bundle.entries, limits, patient.local_id)
    provider = read_ods_code(bundle, encounter, "serviceProvider")
    return Attendance(
        is_fhir=True,
        sender=read_sender(bundle) or provider or "",
        control_id=_read_control_id(bundle),
        event=event,
        message_at=message_at,
        event_at=message_at
        or read_instant(child(element, "meta"), "lastUpdated")
        or (left_at if event is Event.LEFT else None)
        or arrived_at,
        nhs_number=patient.nhs_number,
        nhs_number_problem=patient.nhs_number_problem,
        nhs_number_status=patient.nhs_number_status,
        mother_nhs_number=patient.mother_nhs_number,
        local_patient_id=local_id,
        former_patient_id=former_id,
        names=patient.names,
        birth_date=patient.birth_date,
        sex=patient.sex,
        postcode=patient.postcode,
        visit_number=read_visit_number(bundle, encounter),
        patient_class=patient_class,
        department=department,
        site=site or provider,
        arrived_at=arrived_at,
        left_at=left_at,
        arrival_mode=read_arrival_mode(encounter),
        complaint=read_concept(child(element, "reasonCode"), limits),
        disposition=read_disposition(encounter, limits),
        is_deceased=read_deceased(whose.element),
        is_test=_is_test(bundle),
    )


def _is_test(bundle: OpenBundle) -> bool:
    """Whether the Bundle or its header is labelled as test health data (v3-ActReason HTEST)."""
    elements = [bundle.element, *([bundle.header.element] if bundle.header else [])]
    metas = [child(each, "meta") for each in elements]
    labels = [label for meta in metas for label in (*children(meta, "security"), *children(meta, "tag"))]
    return any(read_code(label).upper() == "HTEST" for label in labels)


def _read_control_id(bundle: OpenBundle) -> str:
    """MessageHeader.id, else the Bundle's."""
    characters_max = bundle.limits.identifier_characters_max
    header = read_identifier(bundle.header.element, "id", characters_max) if bundle.header else None
    identifier = read_identifier(child(bundle.element, "identifier"), "value", characters_max)
    return header or identifier or bundle.id


def _read_message_time(bundle: OpenBundle) -> datetime | None:
    """When the message was put together: Bundle.timestamp, else the time its header or itself was last changed."""
    metas = [child(bundle.header.element, "meta")] if bundle.header else []
    metas.append(child(bundle.element, "meta"))
    changed = (read_instant(meta, "lastUpdated") for meta in metas)
    return read_instant(bundle.element, "timestamp") or next((instant for instant in changed if instant), None)
