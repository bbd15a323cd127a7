"""Codes in plain words, instants as a person in London says them. For a reader who is tired."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Final

from markupsafe import Markup, escape

from broker.domain.patterns import PatternKind
from broker.domain.visits import LONDON, age_on, london_day
from schemas.alert import IdentityFact, ReplyOutcome
from schemas.attendance import Event
from schemas.child_list import PlanType
from schemas.coverage import CoverageReason
from schemas.directory import Role

_TELEPHONE: Final = re.compile(r"[+(]?[0-9][0-9 ()-]{4,30}", re.ASCII)

ARRIVAL_MODES: Final[Mapping[str, str]] = {
    "A": "By ambulance",
    "C": "By car",
    "F": "On foot",
    "H": "By helicopter",
    "P": "By public transport",
    "O": "Another way",
    "U": "Not known",
}
"""PV2-38, the UK table of the NHS ITK HL7 v2 specification."""

NHS_NUMBER_STATUSES: Final[Mapping[str, str]] = {
    "01": "The department has checked the NHS number.",
    "02": "The department has not checked the NHS number.",
    "03": "The department still has to check the NHS number.",
    "04": "The department checked the NHS number and found nobody, or more than one person.",
    "05": "The department checked the NHS number and found details that contradict each other.",
    "06": "The department is checking the NHS number.",
    "07": "The department says the NHS number need not be checked.",
    "08": "A baby under six weeks old: the NHS number is checked later.",
}
"""NHS Data Dictionary, NHS NUMBER STATUS INDICATOR CODE."""

EVENTS: Final[Mapping[Event, str]] = {
    Event.ADMITTED: "Admitted",
    Event.TRANSFERRED: "Moved to another place",
    Event.LEFT: "Left or discharged",
    Event.REGISTERED: "Registered",
    Event.PREADMITTED: "Expected to be admitted",
    Event.MADE_INPATIENT: "Became an inpatient",
    Event.MADE_OUTPATIENT: "Became an outpatient",
    Event.UPDATED: "Updated",
    Event.DEPARTING: "On the way to another place",
    Event.ARRIVING: "Arrived at another place",
    Event.ADMISSION_CANCELLED: "Admission cancelled",
    Event.TRANSFER_CANCELLED: "Move cancelled",
    Event.DISCHARGE_CANCELLED: "Discharge cancelled",
    Event.ADMISSION_PENDING: "Admission planned",
    Event.TRANSFER_PENDING: "Move planned",
    Event.DISCHARGE_PENDING: "Discharge planned",
    Event.PATIENT_MERGED: "Records joined",
    Event.LEAVE_BEGUN: "Went on leave",
    Event.LEAVE_ENDED: "Back from leave",
    Event.PENDING_DISCHARGE_CANCELLED: "Planned discharge cancelled",
    Event.PENDING_TRANSFER_CANCELLED: "Planned move cancelled",
    Event.PENDING_ADMISSION_CANCELLED: "Planned admission cancelled",
    Event.PERSON_ADDED: "Personal details recorded",
    Event.PERSON_DELETED: "Personal details deleted",
    Event.PERSON_UPDATED: "Personal details updated",
    Event.ARRIVAL_CANCELLED: "Arrival cancelled",
    Event.DEPARTURE_CANCELLED: "Departure cancelled",
    Event.PATIENT_IDS_MERGED: "Records joined",
    Event.PREADMISSION_CANCELLED: "Expected admission cancelled",
    Event.IDENTIFIERS_MERGED: "Records joined",
    Event.ACCOUNTS_MERGED: "Accounts joined",
    Event.IDENTIFIERS_MOVED: "Records moved to another person",
    Event.VISIT_MOVED: "Visit moved to another record",
    Event.VISITS_MERGED: "Two visits joined",
    Event.VISIT_RENUMBERED: "Visit given another number",
    Event.IDENTIFIERS_CHANGED: "Identifiers changed",
    Event.ALLERGIES_UPDATED: "Allergies updated",
    Event.LINKED: "Records joined",
    Event.PERSONS_MERGED: "Records joined",
    Event.ACCOUNT_IDS_MERGED: "Accounts joined",
    Event.PATIENT_ACCOUNT_IDS_MERGED: "Records joined",
    Event.UNLINKED: "Records parted again",
    Event.PERSON_IDS_MERGED: "Records joined",
    Event.ACCOUNT_MOVED: "Account moved to another record",
    Event.EXTERNAL_ID_CHANGED: "Identifiers changed",
}

PLAN_TYPES: Final[Mapping[PlanType, str]] = {
    PlanType.CHILD_PROTECTION: "Child protection plan",
    PlanType.LOOKED_AFTER: "Looked-after child",
    PlanType.UNBORN: "Unborn child protection plan",
}

OUTCOMES: Final[Mapping[ReplyOutcome, str]] = {
    ReplyOutcome.MATCH: "On a list",
    ReplyOutcome.NO_RECORD: "No record found",
    ReplyOutcome.IDENTITY_TO_BE_CHECKED: "Identity to be checked",
}

ROLES: Final[Mapping[Role, str]] = {
    Role.SOCIAL_WORKER: "Social worker",
    Role.DUTY_WORKER: "Duty worker",
    Role.LIST_OFFICER: "List officer",
    Role.CLINICIAN: "Clinician",
    Role.OPERATOR: "Operator",
    Role.SAFEGUARDING_LEAD: "Safeguarding lead",
    Role.ENCOMPASS_COORDINATOR: "Coordinator",
    Role.ENCOMPASS_HUB: "Hub officer",
}


PATTERN_KINDS: Final[Mapping[PatternKind, str]] = {
    PatternKind.VISITS: "Visits, with that of the alert",
    PatternKind.SITES: "Different sites, with that of the alert",
    PatternKind.LEFT_BEFORE_TREATMENT: "Earlier visits that ended before treatment",
    PatternKind.SIBLING_VISITS: "Visits of other children of the same household, as you recorded it",
}
COVERAGE_REASONS: Final[Mapping[CoverageReason, str]] = {
    CoverageReason.INVALIDATED: "Dead NHS number",
    CoverageReason.MISMATCH: "Details differ",
    CoverageReason.NOT_FOUND: "NHS number not found",
    CoverageReason.SUPERSEDED: "Superseded: new number needed",
    CoverageReason.NO_ROUTE: "Nobody to ask",
    CoverageReason.UNVERIFIED: "Not checked yet",
    CoverageReason.RESTRICTED: "Restricted person",
    CoverageReason.LIST_STALE: "List out of date",
}


def say_moment(instant: datetime) -> str:
    """``Saturday 14 February 2026, 03:12``; in the hour that comes twice, with BST or GMT behind it."""
    local = instant.astimezone(LONDON)
    twice = local.replace(fold=0).utcoffset() != local.replace(fold=1).utcoffset()
    return f"{local:%A} {local.day} {local:%B %Y, %H:%M}" + (f" {local:%Z}" if twice else "")


def say_day(day: date) -> str:
    """``14 February 2026``."""
    return f"{day.day} {day:%B %Y}"


def say_age(birth_date: date, now: datetime) -> str:
    """Age in words: years, for the first two years months or weeks."""
    on = london_day(now)
    years = age_on(birth_date, on)
    if years >= 2:
        return f"{years} years old"
    months = (on.year - birth_date.year) * 12 + on.month - birth_date.month - (on.day < birth_date.day)
    if months >= 3:
        return f"{months} months old"
    weeks = max(0, (on - birth_date).days // 7)
    return _count(weeks, "week") + " old"


def say_duration(length: timedelta) -> str:
    """A length of time as one would say it: ``4 minutes``, ``3 hours``, ``9 days``."""
    seconds = max(0, int(length.total_seconds()))
    if seconds < 60:
        return _count(seconds, "second")
    if seconds < 2 * 3600:
        return _count(seconds // 60, "minute")
    if seconds < 2 * 86400:
        return _count(seconds // 3600, "hour")
    return _count(seconds // 86400, "day")


def say_facts(facts: Sequence[IdentityFact]) -> str:
    """``NHS number, date of birth and name``."""
    words = [fact.value for fact in facts]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "nothing"


def say_arrival_mode(code: str | None) -> str:
    """How the person came; an unknown code is shown as the department wrote it."""
    return "Not said" if code is None else ARRIVAL_MODES.get(code, code)


def say_nhs_number_status(code: str | None) -> str:
    """What the department says of the NHS number it sent."""
    if code is None:
        return "The department does not say whether it has checked the NHS number."
    return NHS_NUMBER_STATUSES.get(code, f"The department sent a status that is not known here: {code}.")


def write_nhs_number(number: str) -> str:
    """In three groups, as it is read out: ``999 000 0018``."""
    return f"{number[:3]} {number[3:6]} {number[6:]}"


def show_moment(instant: datetime) -> Markup:
    """A moment as a ``time`` element."""
    return Markup('<time datetime="{}">{}</time>').format(instant.isoformat(), say_moment(instant))


def show_telephone(number: str) -> Markup:
    """A telephone number that a telephone can dial; anything else as plain text."""
    if not _TELEPHONE.fullmatch(number):
        return escape(number)
    dialled = "".join(character for character in number if character in "+0123456789")
    return Markup('<a class="telephone" href="tel:{}">{}</a>').format(dialled, number)


def upper_first(text: str) -> str:
    """The first letter in upper case, the others as they are: ``NHS number`` stays one."""
    return text[:1].upper() + text[1:]


def _count(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


FILTERS: Final[Mapping[str, Callable[..., str]]] = {
    "moment": show_moment,
    "day": say_day,
    "age": say_age,
    "duration": say_duration,
    "facts": say_facts,
    "arrival_mode": say_arrival_mode,
    "nhs_number_status": say_nhs_number_status,
    "nhs_number": write_nhs_number,
    "telephone": show_telephone,
    "plan_type": PLAN_TYPES.__getitem__,
    "outcome": OUTCOMES.__getitem__,
    "role": ROLES.__getitem__,
    "pattern_kind": PATTERN_KINDS.__getitem__,
    "coverage_reason": COVERAGE_REASONS.__getitem__,
    "upper_first": upper_first,
}
