"""The Encounter of a FHIR R4 Bundle: which it is, whose, what happened, and where.

Sources: FHIR R4 Encounter, MessageHeader and Bundle (references, 2.36.4); UK Core Encounter; Da Vinci notifications.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final
from urllib.parse import parse_qs

from adapters.fhir_bundle import OpenBundle
from adapters.fhir_element import (
    Resource,
    child,
    children,
    codings,
    contained_in,
    is_of_v2_table,
    read_code,
    read_identifier,
    read_instant,
    read_system,
    read_text,
)
from adapters.fhir_guard import Element, FhirLimits, IssueCode, refuse
from adapters.fhir_organisation import find_ods_code
from adapters.fhir_patient import read_nhs_number
from schemas.attendance import Event

# --- which Encounter, which Patient ---------------------------------------------------------------------

_UNDER_WAY: Final = frozenset({"arrived", "triaged", "in-progress", "onleave"})
_CANCELLED: Final = frozenset({"cancelled", "entered-in-error"})
_STATUSES: Final = frozenset({*_UNDER_WAY, *_CANCELLED, "planned", "finished", "unknown"})
_BEGINNING: Final = datetime.min.replace(tzinfo=UTC)


def choose_encounter(bundle: OpenBundle) -> Resource:
    """The Encounter the message is about: what MessageHeader.focus names, else one under way, else the latest.

    A planned one is chosen only where the message's event says that the person has come all the same. Raises
    UnreadableBundle ``several_patients`` when those that are not planned belong to several people.
    """
    encounters = bundle.entries.of_kind("Encounter")
    if not encounters:
        bundle.ignore("Bundle.entry", "there is no Encounter: nobody is attending")
    begun = [encounter for encounter in encounters if _status_of(encounter) != "planned"]
    if not begun and _event_named(bundle) not in (Event.ADMITTED, Event.REGISTERED):
        bundle.ignore(f"{encounters[0].expression}.status", "the Encounter is only planned: nobody is attending yet")
    candidates = begun or encounters
    subjects = {key for encounter in candidates if (key := _subject_key(bundle, encounter)) is not None}
    if len(subjects) > 1:
        refuse("several_patients", "business-rule", "Bundle.entry", "the Encounters are of several patients")
    focused = _find_focus(bundle)
    return max(candidates, key=lambda encounter: (encounter.number in focused, *_rank(encounter)))


def _rank(encounter: Resource) -> tuple[int, datetime, int]:
    status = _status_of(encounter)
    began_at = read_instant(child(encounter.element, "period"), "start") or _BEGINNING
    precedence = 2 if status in _UNDER_WAY else 0 if status in _CANCELLED else 1
    return precedence, began_at, encounter.number


def _status_of(encounter: Resource) -> str:
    return read_code(encounter.element, "status").lower()


def _find_focus(bundle: OpenBundle) -> set[int]:
    """The entries MessageHeader.focus names, and the Encounters of the requests it names."""
    if bundle.header is None:
        return set()
    references = children(bundle.header.element, "focus")
    focused = [found for reference in references if (found := bundle.entries.resolve(reference, bundle.header))]
    numbers = {found.number for found in focused}
    if not any(found.kind == "Encounter" for found in focused):
        of_requests = [bundle.entries.resolve(child(found.element, "encounter"), found) for found in focused]
        numbers |= {found.number for found in of_requests if found}
    return numbers


def _subject_key(bundle: OpenBundle, encounter: Resource) -> str | None:
    """What tells the patients of several Encounters apart."""
    subject = child(encounter.element, "subject")
    found = bundle.entries.resolve(subject, encounter)
    if found is not None:
        return found.expression
    return read_nhs_number(_name_subject(subject)) or read_code(subject, "reference") or None


_SEARCH: Final = "Patient?"


def _name_subject(subject: Element) -> Element:
    """A Patient known by an identifier only, of a logical reference (R4, 2.3.0.5) or a conditional one (3.1.0.11)."""
    identifiers = children(subject, "identifier")
    query = read_code(subject, "reference").removeprefix(_SEARCH)
    if query != read_code(subject, "reference"):
        system, _, value = parse_qs(query).get("identifier", [""])[0].partition("|")
        identifiers.append({"system": system, "value": value})
    return {"resourceType": "Patient", "identifier": identifiers}


def find_patient(bundle: OpenBundle, encounter: Resource) -> Resource:
    """The Encounter's subject: a Patient of the Bundle, or contained, or one of whom only the NHS number is given.

    If the reference leads nowhere and there is one Patient only, it is that one. Raises UnreadableBundle
    ``no_patient`` and ``several_patients``.
    """
    subject = child(encounter.element, "subject")
    expression = f"{encounter.expression}.subject"
    found = bundle.entries.resolve(subject, encounter)
    if found is not None and found.kind == "Patient":
        return found
    contained = [part for part in contained_in(encounter) if part.kind == "Patient"]
    patients = bundle.entries.of_kind("Patient") or contained
    named = _name_subject(subject)
    if (carrier := next((patient for patient in patients if _carries(patient.element, named)), None)) is not None:
        return carrier
    if read_nhs_number(named) is not None:
        return _add_number(named, patients, Resource("Patient", named, encounter.number, expression))
    if not patients:
        refuse("no_patient", "required", expression, "no Patient can be found for the Encounter")
    if len(patients) > 1:
        refuse("several_patients", "business-rule", expression, "it is not clear which Patient the Encounter is of")
    bundle.add("required" if not subject else "value", expression, "the reference leads to no Patient")
    return patients[0]


def _carries(patient: Element, named: Element) -> bool:
    """Whether a Patient has one of the identifiers of another."""
    number = read_nhs_number(named)
    if number is not None and read_nhs_number(patient) == number:
        return True
    own = {(read_system(one), read_code(one, "value")) for one in children(patient, "identifier")}
    wanted = {(read_system(one), read_code(one, "value")) for one in children(named, "identifier")}
    return any(system and value for system, value in own & wanted)


def _add_number(named: Element, patients: Sequence[Resource], unsent: Resource) -> Resource:
    """The only Patient with the number it is named by, if it has none itself; else one of whom nothing more is sent."""
    if len(patients) != 1 or read_nhs_number(patients[0].element) is not None:
        return unsent
    identifiers = [*children(named, "identifier"), *children(patients[0].element, "identifier")]
    return patients[0]._replace(element={**patients[0].element, "identifier": identifiers})


# --- what happened --------------------------------------------------------------------------------------

_CLASSES: Final = {
    "EMER": "E",
    "IMP": "I",
    "ACUTE": "I",
    "NONAC": "I",
    "SS": "I",
    "OBSENC": "I",
    "AMB": "O",
    "PRENC": "P",
}
"""v3-ActCode as HL7 table 0004. An observation encounter is a stay on a ward; PRENC is one that was expected."""
_PATIENT_CLASSES: Final = frozenset("EIOPRBCNU")
_V2_EVENTS: Final = {event.value: event for event in Event}
_NOTIFICATIONS: Final = {"notification-discharge": Event.LEFT, "notification-transfer": Event.TRANSFERRED}


def _event_named(bundle: OpenBundle) -> Event | None:
    """The event MessageHeader.eventCoding names: that of an HL7 v2 feed (table 0003), or one of Da Vinci's.

    ``notification-admit`` is not among them: whether somebody was admitted or came to the department, the class
    of the Encounter says.
    """
    for coding in children(bundle.header.element, "eventCoding") if bundle.header else ():
        code = read_code(coding)
        if is_of_v2_table(coding, "0003") and code.upper() in _V2_EVENTS:
            return _V2_EVENTS[code.upper()]
        if code.lower() in _NOTIFICATIONS:
            return _NOTIFICATIONS[code.lower()]
    return None


def _reason_of(bundle: OpenBundle) -> str:
    """MessageHeader.reason: new, update or delete (BaRS message-reason-bars)."""
    reason = child(bundle.header.element, "reason") if bundle.header else {}
    return next((read_code(coding).lower() for coding in codings(reason)), "")


def read_event(bundle: OpenBundle, encounter: Resource, patient_class: str | None) -> Event:
    """The event as HL7 v2 would name it, by what the message calls it, else by the status.

    A cancelled Encounter is cancelled under any name. A status that is no status of R4 is taken for an arrival:
    better one too many than a child not seen.
    """
    status = _status_of(encounter)
    if status not in _STATUSES:
        code: IssueCode = "value" if "status" in encounter.element else "required"
        bundle.add(code, f"{encounter.expression}.status", "Encounter.status is no status of R4")
    if status in _CANCELLED or _reason_of(bundle) == "delete":
        return Event.ADMISSION_CANCELLED
    if (named := _event_named(bundle)) is not None:
        # Where the Encounter goes on it is the admission that was cancelled, and its patient is in the department.
        return Event.MADE_OUTPATIENT if named is Event.ADMISSION_CANCELLED and status in _UNDER_WAY else named
    if status == "finished":
        return Event.LEFT
    if patient_class == "I":
        return Event.ADMITTED
    return Event.UPDATED if _reason_of(bundle) == "update" else Event.REGISTERED


def read_class(encounter: Resource) -> str | None:
    """Encounter.class as HL7 table 0004; a code of neither system is None."""
    written = encounter.element.get("class")
    codes = [written] if isinstance(written, str) else []
    codes += [read_code(coding) for concept in children(encounter.element, "class") for coding in codings(concept)]
    for code in codes:
        known = code.strip().upper()[:40]
        if known in _CLASSES or known in _PATIENT_CLASSES:
            return _CLASSES.get(known, known)
    return None


# --- the visit, and where it is -----------------------------------------------------------------------


def read_visit_number(bundle: OpenBundle, encounter: Resource) -> str | None:
    """The first identifier of type VN, else the first; one that is too long is left out, and a finding says so."""
    visits: list[tuple[bool, str]] = []
    for position, identifier in enumerate(children(encounter.element, "identifier")):
        value = read_identifier(identifier, "value", bundle.limits.identifier_characters_max)
        if value is not None:
            is_visit = any(read_code(coding) == "VN" for coding in codings(child(identifier, "type")))
            visits.append((is_visit, value))
        elif read_code(identifier, "value"):
            expression = f"{encounter.expression}.identifier[{position}].value"
            bundle.add("value", expression, "the identifier is too long and was left out")
    return max(visits, key=lambda visit: visit[0])[1] if visits else None


def read_place(bundle: OpenBundle, encounter: Resource) -> tuple[str | None, str | None]:
    """Name and ODS site code of where the patient is: the active location, else the last that is not over."""
    places = children(encounter.element, "location")
    active = [place for place in places if read_code(place, "status") == "active"]
    going_on = [place for place in places if read_code(place, "status") not in ("completed", "planned", "reserved")]
    place = next(iter([*active, *going_on[::-1], *places[::-1]]), None)
    if place is None:
        return None, None
    found = bundle.entries.follow(place, "location", encounter)
    characters_max = bundle.limits.text_characters_max
    name = read_text(found.element, "name", characters_max) if found is not None else None
    shown = name or read_text(child(place, "location"), "display", characters_max)
    identifiers = children(found.element, "identifier") if found is not None else []
    return shown, find_ods_code([*identifiers, *children(child(place, "location"), "identifier")])


_ARRIVAL_MODES: Final = {
    "1048031000000100": "A",
    "1048041000000109": "A",
    "1048021000000102": "A",
    "1048051000000107": "H",
    "1048061000000105": "P",
}
"""ECDS arrival mode (SNOMED CT) as PV2-38 writes it, where both say the same; other codes stay as they are."""


def read_arrival_mode(encounter: Resource) -> str | None:
    """The extension encounter-modeOfArrival (HL7 table 0430), or another that speaks of arrival."""
    for extension in children(encounter.element, "extension"):
        if "arrival" not in read_code(extension, "url").lower():
            continue
        concepts = (child(extension, "valueCoding"), child(extension, "valueCodeableConcept"))
        codes = [read_code(coding) for concept in concepts for coding in codings(concept)]
        for code in (*codes, read_code(extension, "valueCode")):
            if code:
                return _ARRIVAL_MODES.get(code, code)
    return None


def read_concept(concept: Element, limits: FhirLimits) -> str | None:
    """A concept in words: its text, else what its first coding displays."""
    characters_max = limits.text_characters_max
    displays = (read_text(coding, "display", characters_max) for coding in codings(concept))
    return read_text(concept, "text", characters_max) or next((text for text in displays if text), None)


def read_disposition(encounter: Resource, limits: FhirLimits) -> str | None:
    """The code of the discharge disposition, else its words."""
    concept = child(child(encounter.element, "hospitalization"), "dischargeDisposition")
    codes = (read_code(coding) for coding in codings(concept))
    return next((code for code in codes if code), None) or read_concept(concept, limits)
