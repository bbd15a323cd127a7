"""Who hears of a police incident, and by when: versions, destinations, and what keeps a notice back.

Pure: the incident, the directory and the policy come as arguments. What the broker cannot decide goes to a person with
the clock running.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from enum import StrEnum
from typing import Final

import msgspec

from broker.domain.safeguarding import (
    ConflictSuggestion,
    Recipients,
    choose_recipients,
    find_unrecognised,
    suggest_conflicts,
)
from broker.domain.school_calendar import NoticeTiming, SchoolCalendar, SchoolHours, time_notice
from broker.domain.visits import age_on, london_day
from schemas.encompass import (
    EncompassPolicy,
    Establishment,
    EstablishmentStatus,
    ExcludedRecipient,
    IncidentChild,
    NamedEstablishment,
    PoliceIncident,
    PoliceMessage,
    Release,
    SafeguardingContact,
    SchoolSource,
    SuppressedScope,
    UnderSchoolAge,
)
from schemas.identifiers import SchoolUrn

ADULT_AGE: Final = 18
SCHOOL_AGE: Final = 4
"""Reception begins in the September after the fourth birthday (Operation Encompass applies from reception)."""
_SEPTEMBER: Final = 9

# Versions


class Reception(StrEnum):
    """What a message is beside what is known of its incident. Order of arrival is no promise."""

    FIRST = "first"
    AMENDS = "amends"
    REPEAT = "repeat"
    OLDER = "older"
    """A later version came before it: kept, without effect."""
    CONTRADICTS = "contradicts"
    """The same version, but saying something else: a person of the force must say which holds."""


def receive_version(known: PoliceMessage | None, arriving: PoliceMessage) -> Reception:
    """Judge a message against the newest one known of the same force and incident id."""
    if known is None:
        return Reception.FIRST
    assert (known.force, known.incident_id) == (arriving.force, arriving.incident_id), "two incidents are compared"
    if arriving.version > known.version:
        return Reception.AMENDS
    if arriving.version < known.version:
        return Reception.OLDER
    return Reception.REPEAT if arriving == known else Reception.CONTRADICTS


# Where each child is heard of


class Fate(StrEnum):
    """What becomes of a child, or of one of a child's establishments."""

    NOTICE = "notice"
    AUTHORITY_OFFICER = "authority_officer"
    LOOK_UP = "look_up"
    """A person finds the establishment; the clock runs."""
    ADULT = "adult"
    UNDER_SCHOOL_AGE = "under_school_age"


class LookUpReason(StrEnum):
    """Why a person has to look."""

    NOT_GIVEN = "not_given"
    PROBABLE = "probable"
    """Nobody said where, and an authority's list has pupils who may be the child."""
    NAME_ONLY = "name_only"
    UNKNOWN = "unknown"
    CLOSED = "closed"
    MERGED = "merged"
    AUTHORITY_NOT_GIVEN = "authority_not_given"
    """Home-educated, and nobody said where the child lives."""


class Destination(msgspec.Struct, frozen=True, kw_only=True):
    """Where one child is heard of. A child at several establishments has several."""

    child_id: str
    fate: Fate
    urn: SchoolUrn | None = None
    source: SchoolSource | None = None
    authority: str | None = None
    reason: LookUpReason | None = None
    suggested: SchoolUrn | None = None
    """For the person who looks: into which establishment the named one merged."""


def route_incident(
    incident: PoliceIncident, establishments: Mapping[SchoolUrn, Establishment], policy: EncompassPolicy
) -> tuple[Destination, ...]:
    """At least one destination for every child, present or not. Ages are those of the London day it happened."""
    on = london_day(incident.occurred_at)
    return tuple(
        destination
        for child in incident.children
        for destination in _route_child(child, on, establishments, policy.under_school_age)
    )


def _route_child(
    child: IncidentChild,
    on: date,
    establishments: Mapping[SchoolUrn, Establishment],
    under_school_age: UnderSchoolAge,
) -> list[Destination]:
    if child.birth_date is not None and age_on(child.birth_date, on) >= ADULT_AGE:
        return [Destination(child_id=child.child_id, fate=Fate.ADULT)]
    destinations = [_route_named(child.child_id, named, establishments) for named in _each_once(child.establishments)]
    if child.home_educated:
        destinations.append(_tell_officer(child))
    if destinations:
        return destinations
    if child.birth_date is None or is_school_age(child.birth_date, on):
        return [Destination(child_id=child.child_id, fate=Fate.LOOK_UP, reason=LookUpReason.NOT_GIVEN)]
    if under_school_age is UnderSchoolAge.AUTHORITY_OFFICER:
        return [_tell_officer(child)]
    return [Destination(child_id=child.child_id, fate=Fate.UNDER_SCHOOL_AGE)]


def is_school_age(birth_date: date, on: date) -> bool:
    """Whether reception has begun for a child born on ``birth_date``."""
    fourth = birth_date.year + SCHOOL_AGE
    begins = date(fourth + (birth_date.month >= _SEPTEMBER), _SEPTEMBER, 1)
    return on >= begins


def _each_once(establishments: Iterable[NamedEstablishment]) -> Iterable[NamedEstablishment]:
    """Two people may have named the same one."""
    urns: set[SchoolUrn] = set()
    for named in establishments:
        if named.urn is None or named.urn not in urns:
            yield named
        if named.urn is not None:
            urns.add(named.urn)


def _route_named(
    child_id: str, named: NamedEstablishment, establishments: Mapping[SchoolUrn, Establishment]
) -> Destination:
    known = establishments.get(named.urn) if named.urn is not None else None
    if known is not None and known.status is EstablishmentStatus.OPEN:
        return Destination(child_id=child_id, fate=Fate.NOTICE, urn=known.urn, source=named.source)
    if named.urn is None:
        reason = LookUpReason.NAME_ONLY if named.name else LookUpReason.NOT_GIVEN
    elif known is None:
        reason = LookUpReason.UNKNOWN
    else:
        reason = LookUpReason.MERGED if known.status is EstablishmentStatus.MERGED else LookUpReason.CLOSED
    return Destination(
        child_id=child_id,
        fate=Fate.LOOK_UP,
        urn=named.urn,
        source=named.source,
        reason=reason,
        suggested=known.merged_into if known is not None else None,
    )


def _tell_officer(child: IncidentChild) -> Destination:
    if child.authority is None:
        return Destination(child_id=child.child_id, fate=Fate.LOOK_UP, reason=LookUpReason.AUTHORITY_NOT_GIVEN)
    return Destination(child_id=child.child_id, fate=Fate.AUTHORITY_OFFICER, authority=child.authority)


# The plan of an incident


class Hold(StrEnum):
    """Why nothing leaves yet, or ever."""

    SUPPRESSED = "suppressed"
    AWAITS_COORDINATOR = "awaits_coordinator"
    EXCLUSION_NOT_RECOGNISED = "exclusion_not_recognised"
    """The force excludes somebody whom the directory does not have: to send might be to tell them."""


class EncompassDirectory(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the establishments that an incident may name."""

    establishments: Mapping[SchoolUrn, Establishment]
    contacts: Mapping[SchoolUrn, Sequence[SafeguardingContact]]
    calendars: Mapping[SchoolUrn, SchoolCalendar]
    default_hours: SchoolHours = SchoolHours()


class EstablishmentPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one establishment is to be told, of its own children only."""

    urn: SchoolUrn
    child_ids: tuple[str, ...]
    recipients: Recipients
    timing: NoticeTiming
    hold: Hold | None

    @property
    def has_route(self) -> bool:
        """Whether anybody can be told."""
        return bool(self.recipients.told)


class IncidentPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that follows from one version of an incident."""

    destinations: tuple[Destination, ...]
    establishments: tuple[EstablishmentPlan, ...]
    conflicts: tuple[ConflictSuggestion, ...]
    hold: Hold | None
    """Of what goes to the authority's officer and to the look-up queue. Looking up goes on meanwhile."""
    clock: NoticeTiming
    """For officer and look-up: an ordinary weekday's bell, until the establishment is known."""


def plan_incident(
    incident: PoliceIncident,
    directory: EncompassDirectory,
    policy: EncompassPolicy,
    *,
    at: datetime,
    is_released: bool = False,
) -> IncidentPlan:
    """Plan one version of an incident as of ``at``; ``is_released``: a person of the force let this version go."""
    on = london_day(at)
    destinations = route_incident(incident, directory.establishments, policy)
    children: dict[SchoolUrn, list[str]] = {}
    for destination in destinations:
        if destination.fate is Fate.NOTICE and destination.urn is not None:
            children.setdefault(destination.urn, []).append(destination.child_id)
    concerned = [contact for urn in children for contact in directory.contacts.get(urn, ())]
    hold = _hold_incident(incident, policy, is_released=is_released)
    unrecognised = () if is_released else find_unrecognised(incident.excluded_recipients, concerned)
    holds = {urn: hold or _hold_for(urn, unrecognised) for urn in children}
    return IncidentPlan(
        destinations=destinations,
        establishments=tuple(
            EstablishmentPlan(
                urn=urn,
                child_ids=tuple(ids),
                recipients=choose_recipients(directory.contacts.get(urn, ()), incident.excluded_recipients, on, policy),
                timing=_time_for(incident, urn, directory),
                hold=holds[urn],
            )
            for urn, ids in sorted(children.items())
        ),
        conflicts=suggest_conflicts(incident, concerned),
        hold=hold,
        clock=time_notice(incident.reported_at, SchoolCalendar((), ()), directory.default_hours),
    )


def _time_for(incident: PoliceIncident, urn: SchoolUrn, directory: EncompassDirectory) -> NoticeTiming:
    hours = directory.default_hours
    starts_at_local = directory.establishments[urn].starts_at_local
    if starts_at_local is not None:
        hours = msgspec.structs.replace(hours, starts_at_local=starts_at_local)
    return time_notice(incident.reported_at, directory.calendars.get(urn) or SchoolCalendar((), ()), hours)


def _hold_incident(incident: PoliceIncident, policy: EncompassPolicy, *, is_released: bool) -> Hold | None:
    if incident.suppress is not None and incident.suppress.scope is SuppressedScope.NOTICE:
        return Hold.SUPPRESSED
    if policy.release is Release.COORDINATOR and not is_released:
        return Hold.AWAITS_COORDINATOR
    return None


def _hold_for(urn: SchoolUrn, unrecognised: Sequence[ExcludedRecipient]) -> Hold | None:
    concerns = any(exclusion.urn in (None, urn) for exclusion in unrecognised)
    return Hold.EXCLUSION_NOT_RECOGNISED if concerns else None
