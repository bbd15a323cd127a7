"""Patterns that an authority wishes to be named in an alert: they count what happened, and predict nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

import msgspec

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
    rules: Sequence[PatternRule], met: Sequence[Met], left_at: Sequence[datetime], at: datetime
) -> list[PatternRule]:
    """The rules that hold at ``at``, in their order; ``met`` has the visit itself too."""
    found = []
    for rule in rules:
        since = at - timedelta(hours=rule.window_h)
        visits = {(each.at, each.organisation) for each in met if since < each.at <= at}
        match rule.kind:
            case PatternKind.VISITS:
                counted = len(visits)
            case PatternKind.SITES:
                counted = len({organisation for _, organisation in visits})
            case PatternKind.LEFT_BEFORE_TREATMENT:
                counted = sum(since < each <= at for each in left_at)
        if counted >= rule.count_min:
            found.append(rule)
    return found


def word_patterns(found: Sequence[PatternRule]) -> str:
    """What an alert says of them: the authority's words, and which rule they are."""
    return "".join(
        f" {rule.words} (your rule {rule.kind.value.replace('_', ' ')}, version {rule.version})" for rule in found
    )
