"""Who on a list cannot alert as they should, and why; when a list is late by its own habit; what a person can do."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import Final

import msgspec

from schemas.coverage import CoverageReason
from schemas.trace import Finding, Mismatch, NotFound, Restricted, Superseded, TraceField, TraceState

_INTERVALS_MIN: Final = 2
"""Fewer tell no habit."""
_OF_STATES: Final = {
    TraceState.INVALIDATED: CoverageReason.INVALIDATED,
    TraceState.MISMATCH: CoverageReason.MISMATCH,
    TraceState.NOT_FOUND: CoverageReason.NOT_FOUND,
    TraceState.SUPERSEDED: CoverageReason.SUPERSEDED,
    TraceState.RESTRICTED: CoverageReason.RESTRICTED,
}


class CoverageRules(msgspec.Struct, frozen=True, kw_only=True):
    """When something counts against an entry or a list."""

    unverified: timedelta = timedelta(days=7)
    """An entry that was not compared for so long is an item."""
    limit: timedelta = timedelta(hours=72)
    """An item nobody has mended goes to the duty desk."""
    habit_factor: float = 3.0
    """A list is late when it is older than so many of its usual intervals."""
    every: timedelta = timedelta(hours=1)
    """How often each list is counted, besides after changes."""
    is_tracing: bool = False
    """Whether a Personal Demographics Service is configured."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one current entry."""

    state: TraceState
    since: datetime
    """Since when the entry has the number, name and date of birth that it has."""
    is_linked: bool
    """The number that superseded its own is followed."""
    has_route: bool
    """There is a person who can be asked: the allocated worker, or somebody on duty."""


def assess_entry(identity: Identity, rules: CoverageRules, now: datetime) -> tuple[CoverageReason, ...]:
    """Everything that speaks against a current entry."""
    found = []
    if identity.state in _OF_STATES:
        found.append(_OF_STATES[identity.state])
    # Where nothing is ever traced, that is one fact for all, and no work for anybody.
    is_overdue = rules.is_tracing and now - identity.since > rules.unverified
    if identity.state is TraceState.UNVERIFIED and is_overdue:
        found.append(CoverageReason.UNVERIFIED)
    if not identity.has_route:
        found.append(CoverageReason.NO_ROUTE)
    return tuple(found)


def is_covered(identity: Identity) -> bool:
    """Whether the entry is known to alert: its number is known to be right, or is followed, and somebody is asked."""
    is_followed = identity.state is TraceState.SUPERSEDED and identity.is_linked
    return identity.has_route and (is_followed or identity.state in (TraceState.VERIFIED, TraceState.RESTRICTED))


def can_alert(identity: Identity) -> bool:
    """Whether the entry alerts by all that is known: nothing speaks against its valid number, and somebody is asked."""
    return is_covered(identity) or (identity.has_route and identity.state is TraceState.UNVERIFIED)


def find_habit(confirmed: Sequence[datetime]) -> timedelta | None:
    """The median interval between confirmations of a list, newest first; None when there are too few."""
    intervals = [(newer - older).total_seconds() for newer, older in pairwise(confirmed)]
    return timedelta(seconds=median(intervals)) if len(intervals) >= _INTERVALS_MIN else None


def is_late(confirmed: Sequence[datetime], now: datetime, *, limit: timedelta, factor: float) -> bool:
    """Whether a list is older than a limit and than its own habit. Without a habit the limit decides."""
    if not confirmed:
        return False
    age, habit = now - confirmed[0], find_habit(confirmed)
    return age > limit and (habit is None or age > habit * factor)


def advise(reason: CoverageReason, finding: Finding | None, *, is_linked: bool) -> str:
    """What is wrong, and what to do, in plain words without anything personal."""
    if reason is CoverageReason.MISMATCH:
        return _advise_mismatch(finding)
    if reason is CoverageReason.NOT_FOUND:
        is_ambiguous = isinstance(finding, NotFound) and finding.is_ambiguous
        several = " Several people have these details." if is_ambiguous else ""
        return f"The national record knows no such NHS number.{several} Check the number and list the right one."
    if reason is CoverageReason.SUPERSEDED:
        return _advise_superseded(finding, is_linked=is_linked)
    if reason is CoverageReason.RESTRICTED:
        return _RESTRICTED + (f" {_differs(finding.differs)}" if isinstance(finding, Restricted) else "")
    return _ADVICE[reason]


_RESTRICTED: Final = (
    "The national record is restricted: where this person lives must not become known. The national service (CP-IS) "
    "does not carry this person (CPR02); here the entry stays and alerts. Make sure that only the allocated worker "
    "and the duty desk can open the alert, then note this."
)
_ADVICE: Final = {
    CoverageReason.INVALIDATED: (
        "The NHS number is dead and nothing takes its place. This entry alerts no more. After an adoption leave it so, "
        "end the entry, and never look for the new number. Otherwise list the person under the right number."
    ),
    CoverageReason.NO_ROUTE: (
        "Nobody can be asked: the allocated worker cannot sign in, and nobody is on duty. Name another worker, or give "
        "a login to the duty desk."
    ),
    CoverageReason.UNVERIFIED: (
        "The entry has not been compared with the national record yet. It alerts, but a wrong number goes unseen. "
        "There is nothing to mend in the list: operators see why."
    ),
    CoverageReason.LIST_STALE: "The list is older than usual. Send the newest one, also when nothing has changed.",
}


def _advise_mismatch(finding: Finding | None) -> str:
    text = "The NHS number belongs to somebody whose details are not those of the list."
    if isinstance(finding, Mismatch):
        text += f" {_differs(finding.differs)}"
    return text + " Compare both, and list what is right."


def _advise_superseded(finding: Finding | None, *, is_linked: bool) -> str:
    text = "The NHS number was superseded by another: list the new one."
    if is_linked:
        return text + " Until then the entry is found under both."
    differs = finding.differs if isinstance(finding, Superseded) else ()
    return f"{text} It is not followed by itself. {_differs(differs)} Compare both: is it the same child?".replace(
        ".  ", ". "
    )


def _differs(fields: Sequence[TraceField]) -> str:
    """``The date of birth differs.``; nothing when nothing does."""
    if not fields:
        return ""
    words = [field.value for field in fields]
    joined = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    return f"The {joined} {'differs' if len(words) == 1 else 'differ'}."
