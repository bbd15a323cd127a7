"""Which schools could not be told as they should be, before a child of theirs is concerned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from enum import StrEnum

import msgspec

from schemas.encompass import (
    CalendarDays,
    ContactRole,
    DayKind,
    Establishment,
    EstablishmentStatus,
    SafeguardingContact,
)


class SchoolGap(StrEnum):
    """What is lacking at a school, the worst first."""

    NO_ROUTE = "no_route"
    """Nobody at all may be told."""
    NO_LEAD = "no_lead"
    """No lead whose entry is confirmed and who is trained: the duty rests on a deputy, or on nobody."""
    NOT_CONFIRMED = "not_confirmed"
    """An entry that nobody has confirmed for too long, or ever."""
    NOT_REACHED = "not_reached"
    """An e-mail or text message that says "sign in" did not arrive: the address may be wrong."""
    TRAINING_OUT_OF_DATE = "training_out_of_date"
    CALENDAR_MISSING = "calendar_missing"
    """No term is known: weekdays are taken for school days."""
    CALENDAR_EXPIRED = "calendar_expired"
    """The last term that is known has ended."""
    NO_TELEPHONE = "no_telephone"
    """When nobody has read by the bell there is no number to ring."""


class SchoolRules(msgspec.Struct, frozen=True, kw_only=True):
    """When an entry counts as out of date."""

    confirmed: timedelta = timedelta(days=400)
    """The shortest time of any force's policy: after it the person is told nothing."""
    trained: timedelta = timedelta(days=730)
    """Training of safeguarding leads is renewed at least every two years (Keeping children safe in education)."""


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is lacking. ``contact_id``: of whom; ``since``: since when it has been so, where that is known."""

    kind: SchoolGap
    contact_id: str | None = None
    since: date | None = None


def find_gaps(
    school: Establishment,
    contacts: Sequence[SafeguardingContact],
    days: Sequence[CalendarDays],
    on: date,
    rules: SchoolRules,
    *,
    unreached: Mapping[str, date],
) -> tuple[Gap, ...]:
    """Everything lacking at a school, nothing of one that is closed or merged. ``days``: its own, its authority's.

    ``unreached``: by contact since when what was sent to them has not arrived.
    """
    if school.status is not EstablishmentStatus.OPEN:
        return ()
    told = [contact for contact in contacts if contact.role is not ContactRole.OFFICE]
    ready = [each for each in told if _is_confirmed(each, on, rules) and each.trained_on is not None]
    gaps = []
    if not ready:
        gaps.append(Gap(kind=SchoolGap.NO_ROUTE))
    if not any(each.role is ContactRole.LEAD for each in ready):
        gaps.append(Gap(kind=SchoolGap.NO_LEAD))
    for each in told:
        if not _is_confirmed(each, on, rules):
            gaps.append(Gap(kind=SchoolGap.NOT_CONFIRMED, contact_id=each.contact_id, since=each.confirmed_on))
        if each.contact_id in unreached:
            since = unreached[each.contact_id]
            gaps.append(Gap(kind=SchoolGap.NOT_REACHED, contact_id=each.contact_id, since=since))
        if each.trained_on is None or on - each.trained_on > rules.trained:
            gaps.append(Gap(kind=SchoolGap.TRAINING_OUT_OF_DATE, contact_id=each.contact_id, since=each.trained_on))
    gaps += _find_calendar_gaps(school, days, on)
    if school.office_telephone is None:
        gaps.append(Gap(kind=SchoolGap.NO_TELEPHONE))
    return tuple(gaps)


def _is_confirmed(contact: SafeguardingContact, on: date, rules: SchoolRules) -> bool:
    return contact.confirmed_on is not None and timedelta(0) <= on - contact.confirmed_on <= rules.confirmed


def _find_calendar_gaps(school: Establishment, days: Sequence[CalendarDays], on: date) -> list[Gap]:
    ends = [
        each.last_on
        for each in days
        if each.kind is DayKind.TERM and each.authority == school.authority and each.urn in (None, school.urn)
    ]
    if not ends:
        return [Gap(kind=SchoolGap.CALENDAR_MISSING)]
    return [Gap(kind=SchoolGap.CALENDAR_EXPIRED, since=max(ends))] if max(ends) < on else []
