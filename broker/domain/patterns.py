"""Patterns that an authority wishes to be named in an alert: they count what happened, and predict nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

import msgspec

from broker.domain.decision import Candidate
from schemas.child_list import PlanType

WORDS_LETTERS_MAX: Final = 300
COUNT_MAX: Final = 100
WINDOW_HOURS_MAX: Final = 366 * 24


class PatternKind(StrEnum):
    """What a rule counts, the visit of the alert included."""

    VISITS = "visits"
    """Visits to unscheduled care, at whichever site."""
    SITES = "sites"
    """Different sites."""
    LEFT_BEFORE_TREATMENT = "left_before_treatment"
    """Earlier visits, of which the authority was told, that ended before treatment."""
    SIBLING_VISITS = "sibling_visits"
    """Visits, of which the authority was told, of other children that it recorded as of the same household."""


class PatternRule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule as an authority worded it. ``count_min`` within ``window_h`` hours before the visit."""

    authority: str
    kind: PatternKind
    version: int
    count_min: int
    window_h: int
    words: str


class Met(msgspec.Struct, frozen=True, kw_only=True):
    """One visit: when, and to whom."""

    at: datetime
    organisation: str
    is_withheld: bool = False
    """The person was restricted then: nothing is counted by site (ADR 0040)."""


class Child(msgspec.Struct, frozen=True, kw_only=True):
    """Whom an alert is about, and the list entries it rests on."""

    nhs_number: str
    entry_ids: frozenset[str]


class BadWording(Exception):
    """A rule that cannot be kept; its text says what a rule needs."""


def compose_rule(authority: str, kind: str, *, count_min: int, window_h: int, words: str) -> PatternRule:
    """A rule as a person gave it, not numbered yet. Raises BadWording."""
    text = " ".join(words.split())
    if kind not in set(PatternKind):
        raise BadWording(f"a rule counts one of {', '.join(PatternKind)}")
    if not 0 < count_min <= COUNT_MAX or not 0 < window_h <= WINDOW_HOURS_MAX:
        raise BadWording(f"a rule counts 1 to {COUNT_MAX} in 1 to {WINDOW_HOURS_MAX} hours")
    if not text.isprintable() or not 0 < len(text) <= WORDS_LETTERS_MAX:
        raise BadWording(f"a rule has 1 to {WORDS_LETTERS_MAX} letters of words")
    return PatternRule(
        authority=authority, kind=PatternKind(kind), version=0, count_min=count_min, window_h=window_h, words=text
    )


def find_patterns(
    rules: Sequence[PatternRule],
    met: Sequence[Met],
    left_at: Sequence[datetime],
    siblings_at: Sequence[datetime],
    at: datetime,
) -> list[PatternRule]:
    """The rules that hold at ``at``, in their order; ``met`` has the visit itself too.

    Who came with the child may be registered a moment later: of ``siblings_at`` those count that were known, on
    either side of ``at``.
    """
    found = []
    for rule in rules:
        since = at - timedelta(hours=rule.window_h)
        near = [each for each in met if since < each.at <= at]
        match rule.kind:
            case PatternKind.VISITS:
                counted = len({(each.at, each.organisation) for each in near})
            case PatternKind.SITES:
                counted = len({each.organisation for each in near if not each.is_withheld})
            case PatternKind.LEFT_BEFORE_TREATMENT:
                counted = sum(since < each <= at for each in left_at)
            case PatternKind.SIBLING_VISITS:
                counted = sum(abs(each - at) < timedelta(hours=rule.window_h) for each in siblings_at)
        if counted >= rule.count_min:
            found.append(rule)
    return found


def find_siblings(child: Child, household: Sequence[Candidate]) -> list[str]:
    """The entries of a household that are another child's.

    The entry of an unborn child has the mother's number: her visit is no child's.
    """
    own = [each for each in household if each.entry_id in child.entry_ids]
    local_ids = {each.entry.local_id for each in own}
    numbers = {child.nhs_number, *(number for each in own for number in (each.entry.nhs_number, *each.aliases))}
    return [
        each.entry_id
        for each in household
        if each.entry.local_id not in local_ids
        and numbers.isdisjoint((each.entry.nhs_number, *each.aliases))
        and each.entry.plan_type is not PlanType.UNBORN
    ]


def word_patterns(found: Sequence[PatternRule]) -> str:
    """What an alert says of them: the authority's words, and which rule they are."""
    return "".join(
        f" {rule.words} (your rule {rule.kind.value.replace('_', ' ')}, version {rule.version})" for rule in found
    )
