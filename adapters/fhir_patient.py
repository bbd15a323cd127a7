"""Who a FHIR R4 Bundle is about: Patient, and the RelatedPerson who is the mother.

Sources: FHIR R4 Patient and RelatedPerson; UK Core Patient (identifier system and verification status).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from adapters.fhir_element import (
    Entries,
    Resource,
    child,
    children,
    codings,
    contained_in,
    is_of_v2_table,
    read_code,
    read_day,
    read_identifier,
    read_system,
    read_text,
    read_texts,
)
from adapters.fhir_guard import Element, FhirLimits, Finding
from adapters.hl7v2_patient import Patient
from schemas.attendance import NhsNumberProblem, PersonName
from schemas.identifiers import NhsNumber, parse_nhs_number

_SEXES: Final = {"male": "M", "female": "F", "other": "O", "unknown": "U"}
"""AdministrativeGender as HL7 v2 writes it (table 0001)."""


def read_patient(patient: Resource, entries: Entries, limits: FhirLimits, findings: list[Finding]) -> Patient:
    """Read Patient and who is its mother; what breaks a rule is added to ``findings``."""
    nhs_number, problem, status, local_id = _read_identifiers(patient, limits, findings)
    gender = read_code(patient.element, "gender").lower()
    if "gender" in patient.element and gender not in _SEXES:
        text = "the code is none of male, female, other and unknown"
        findings.append(Finding(severity="error", code="value", expression=f"{patient.expression}.gender", text=text))
    return Patient(
        nhs_number=nhs_number,
        nhs_number_problem=problem,
        nhs_number_status=status,
        mother_nhs_number=_read_mother(patient, entries, limits),
        local_id=local_id,
        names=_read_names(patient.element, limits),
        birth_date=read_day(patient.element, "birthDate"),
        sex=_SEXES.get(gender),
        postcode=_read_postcode(patient.element, limits),
    )


def read_link(
    patient: Resource, entries: Entries, limits: FhirLimits, own: str | None
) -> tuple[str | None, str | None]:
    """The sender's own id of the person, and the one that was joined into it (Patient.link; R4, 8.1.6.2).

    ``own`` is that of this Patient: the former one where the link says ``replaced-by``, which is followed. ``seealso``
    and ``refer`` join nobody: after an adoption they would lead from the new record to the old.
    """
    merge = next(_read_links(patient, entries, limits, own), None)
    return (own, None) if merge is None else (merge.survivor_id, merge.former_id)


class Merge(NamedTuple):
    """Two records of one sender that a link says are one."""

    survivor_id: str
    former_id: str
    survivor: Resource
    """What the Bundle says of the record that is left; only how it is named where the Bundle does not have it."""


def find_merges(entries: Entries, limits: FhirLimits) -> list[Merge]:
    """What the Patients of a Bundle say of each other, each pair of records once."""
    found: dict[tuple[str, str], Merge] = {}
    for patient in entries.of_kind("Patient"):
        own = _read_identifiers(patient, limits, [])[3]
        for merge in _read_links(patient, entries, limits, own):
            entries.read.add(patient.number)
            found.setdefault((merge.survivor_id, merge.former_id), merge)
    return list(found.values())


def _read_links(patient: Resource, entries: Entries, limits: FhirLimits, own: str | None) -> Iterator[Merge]:
    for link in children(patient.element, "link"):
        kind = read_code(link, "type").lower()
        if kind not in ("replaces", "replaced-by") or own is None:
            continue
        found = entries.follow(link, "other", patient)
        named = child(child(link, "other"), "identifier")
        other = found or Resource("Patient", {"identifier": [named]}, patient.number, patient.expression)
        other_id = _read_identifiers(other, limits, [])[3]
        if other.kind == "Patient" and other_id is not None and other_id != own:
            is_survivor = kind == "replaces"
            yield Merge(own, other_id, patient) if is_survivor else Merge(other_id, own, other)


def read_deceased(patient: Element) -> bool | None:
    """Patient.deceased[x]: a time says yes."""
    said = patient.get("deceasedBoolean")
    if isinstance(said, bool):
        return said
    return True if read_code(patient, "deceasedDateTime") else None


# --- names and addresses --------------------------------------------------------------------------------


def _read_names(patient: Element, limits: FhirLimits) -> tuple[PersonName, ...]:
    """Every name once, in order: also maiden and former ones, which lists may know the person by."""
    names: list[PersonName] = []
    for written in children(patient, "name")[: limits.names_max]:
        name = _read_name(written, limits.name_characters_max)
        if name is not None and name not in names:
            names.append(name)
    return tuple(names)


def _read_name(name: Element, characters_max: int) -> PersonName | None:
    """Family and given names; where both are missing, those in ``text``: ``Mr Casey TESTER``, ``TESTER, Casey``."""
    family = read_text(name, "family", characters_max) or " ".join(read_texts(name, "family", characters_max))
    given = " ".join(read_texts(name, "given", characters_max))[:characters_max]
    if not family and not given:
        text = read_text(name, "text", characters_max) or ""
        around = {word.strip("().") for part in ("prefix", "suffix") for word in read_texts(name, part, characters_max)}
        text = " ".join(word for word in text.split() if word.strip("().") not in around)
        first, comma, rest = text.partition(",")
        if not comma:
            rest, _, first = text.rpartition(" ")
        family, given = first.strip(), rest.strip()
    return PersonName(family[:characters_max], given) if family or given else None


def _read_postcode(patient: Element, limits: FhirLimits) -> str | None:
    """The first postcode in capitals, of an old address only if there is no other."""
    addresses = children(patient, "address")
    for address in sorted(addresses, key=lambda address: read_code(address, "use") == "old"):
        if postcode := read_text(address, "postalCode", limits.text_characters_max):
            return postcode.upper()
    return None


# --- identifiers ----------------------------------------------------------------------------------------

_NHS_NUMBER_OID: Final = "2.16.840.1.113883.2.1.4.1"
_NHS_WORDS: Final = frozenset({"NHS", "NH", "NHSNUMBER", "NHSNO", "NHSNUM", "NHSNBR", "NHSNMBR"})
_PUNCTUATION: Final = str.maketrans("", "", " .-_")
_SYSTEM_PARTS: Final = re.compile(r"[/:|#]")
_LOCAL_TYPES: Final = frozenset({"MR", "MRN", "PI"})

_STATUS_EXTENSION: Final = "nhsnumberverificationstatus"
_STATUS_WORDS: Final = {
    "number-present-and-verified": "01",
    "number-present-but-not-traced": "02",
    "trace-required": "03",
    "trace-attempted": "04",
    "trace-needs-to-be-resolved": "05",
    "trace-in-progress": "06",
    "number-not-present-and-trace-not-required": "07",
    "trace-postponed": "08",
}
"""The words of UKCore-NHSNumberVerificationStatus 2, as the numbers its version 1 and the England code system have."""

_Kind = Literal["nhs", "local", "other", "untyped"]


def read_nhs_number(element: Element) -> NhsNumber | None:
    """The first valid NHS number among the identifiers of an element that say they are one."""
    return _first_number(
        [(one, read_code(one, "value")) for one in children(element, "identifier") if _kind_of(one) == "nhs"]
    )[0]


def _kind_of(identifier: Element) -> _Kind:
    """The system decides; where there is none, the type (HL7 table 0203 and what converters write there)."""
    system = read_system(identifier)
    end = _SYSTEM_PARTS.split(system)[-1]
    if end == _NHS_NUMBER_OID or end.upper().translate(_PUNCTUATION) in _NHS_WORDS:
        return "nhs"
    types = {read_code(coding).upper().translate(_PUNCTUATION) for coding in codings(child(identifier, "type"))}
    if types & _LOCAL_TYPES:
        return "local"
    if system:
        return "other"
    if types & _NHS_WORDS:
        return "nhs"
    return "other" if child(identifier, "type") else "untyped"


def _read_identifiers(
    patient: Resource, limits: FhirLimits, findings: list[Finding]
) -> tuple[NhsNumber | None, NhsNumberProblem | None, str | None, str | None]:
    """The NHS number or why there is none, its status, and the sender's own id.

    The first valid number that says it is the NHS number, of those with use ``old`` only if there is no other; if
    none says so, the first valid one that says nothing of itself at all. The sender's own id is the first of type
    MR, MRN or PI, else the first that is not the NHS number.
    """
    ordered = sorted(
        enumerate(children(patient.element, "identifier")), key=lambda item: read_code(item[1], "use") == "old"
    )
    identifiers = []
    for position, identifier in ordered:
        value = read_identifier(identifier, "value", limits.identifier_characters_max)
        if value is None and read_code(identifier, "value"):
            expression = f"{patient.expression}.identifier[{position}].value"
            text = "the identifier is too long and was left out"
            findings.append(Finding(severity="error", code="value", expression=expression, text=text))
            continue
        identifiers.append((_kind_of(identifier), identifier, value))
    labelled = [(identifier, value) for kind, identifier, value in identifiers if kind == "nhs"]
    bare = [(identifier, value) for kind, identifier, value in identifiers if kind == "untyped"]
    is_labelled = any(value for _, value in labelled)
    number, chosen = _first_number(labelled if is_labelled else bare)
    status = next((found for found in map(_read_status, [chosen, *(one for one, _ in labelled)]) if found), None)
    others = [(kind, value) for kind, _, value in identifiers if kind != "nhs" and value and not _is(value, number)]
    local_id = next((value for kind, value in sorted(others, key=lambda other: other[0] != "local")), None)
    current = {parse_nhs_number(value or "") for one, value in labelled if read_code(one, "use") != "old"} - {None}
    if len(current) > 1:
        expression, text = f"{patient.expression}.identifier", "there are several NHS numbers; the first was taken"
        findings.append(Finding(severity="warning", code="business-rule", expression=expression, text=text))
    if number is not None:
        return number, None, status, local_id
    return None, NhsNumberProblem.INVALID if is_labelled else NhsNumberProblem.ABSENT, status, local_id


def _first_number(identifiers: list[tuple[Element, str | None]]) -> tuple[NhsNumber | None, Element]:
    """The first valid NHS number, and the Identifier it is in."""
    for identifier, value in identifiers:
        if value and (number := parse_nhs_number(value)):
            return number, identifier
    return None, {}


def _is(value: str, number: NhsNumber | None) -> bool:
    return number is not None and parse_nhs_number(value) == number


def _read_status(identifier: Element) -> str | None:
    """``01`` to ``08``, from any of the three code systems of the verification status."""
    for extension in children(identifier, "extension"):
        if _STATUS_EXTENSION not in read_code(extension, "url").lower().replace("-", ""):
            continue
        concepts = (child(extension, "valueCodeableConcept"), child(extension, "valueCoding"))
        codes = [read_code(coding).lower() for concept in concepts for coding in codings(concept)]
        for code in (*codes, read_code(extension, "valueCode").lower()):
            number = _STATUS_WORDS.get(code, code.zfill(2))
            if number in _STATUS_WORDS.values():
                return number
    return None


# --- the mother -----------------------------------------------------------------------------------------

_MOTHERS: Final = frozenset(
    {
        *("MTH", "NMTH", "GESTM", "NMTHF"),  # v3-RoleCode, and table 0063 which has the first
        *("72705000", "65656005"),  # SNOMED CT: mother, biological mother
    }
)
"""She who bore the child. Not a stepmother, adoptive or foster mother: an unborn child's plan is under her number."""
_MOTHER_WORDS: Final = frozenset({"MOTHER", "NATURAL MOTHER", "BIRTH MOTHER", "BIOLOGICAL MOTHER"})
_MOTHER_TABLES: Final = ("0063", "0131")
_RELATION_CHARACTERS_MAX: Final = 60


def _read_mother(patient: Resource, entries: Entries, limits: FhirLimits) -> NhsNumber | None:
    """The mother's NHS number: in her RelatedPerson, or in the Patient that is linked to that."""
    mothers = [relative for relative in _relatives_of(patient, entries) if _is_mother(relative.element)]
    linked = _find_linked(entries) if mothers else {}
    for relative in mothers:
        entries.read.add(relative.number)
        for person in (relative, *linked.get(relative.expression, ())):
            number = _read_identifiers(person, limits, [])[0]
            if number is not None:
                return number
    return None


def _relatives_of(patient: Resource, entries: Entries) -> Iterator[Resource]:
    """Each RelatedPerson of this patient; one that names no patient in the Bundle is taken for theirs."""
    contained = [part for holder in (patient, *entries.of_kind("Encounter")) for part in contained_in(holder)]
    for relative in (*entries.of_kind("RelatedPerson"), *contained):
        if relative.kind != "RelatedPerson":
            continue
        whose = entries.resolve(child(relative.element, "patient"), relative)
        if whose is None or whose.expression == patient.expression:
            yield relative


def _is_mother(relative: Element) -> bool:
    for relationship in children(relative, "relationship"):
        words = [read_text(relationship, "text", _RELATION_CHARACTERS_MAX)]
        for coding in codings(relationship):
            if read_code(coding).upper() in _MOTHERS:
                return True
            if any(is_of_v2_table(coding, table) for table in _MOTHER_TABLES) or not read_system(coding):
                words.append(read_code(coding))
            words.append(read_text(coding, "display", _RELATION_CHARACTERS_MAX))
        if any(word and word.upper() in _MOTHER_WORDS for word in words):
            return True
    return False


def _find_linked(entries: Entries) -> dict[str, list[Resource]]:
    """By each resource's FHIRPath, the Patients that say they are the same human being (Patient.link)."""
    linked: dict[str, list[Resource]] = {}
    for person in entries.of_kind("Patient"):
        for link in children(person.element, "link"):
            other = entries.resolve(child(link, "other"), person)
            if other is not None:
                linked.setdefault(other.expression, []).append(person)
    return linked
