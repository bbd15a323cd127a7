"""How long an entry of a list counts, and whether as current or as ended.

CP-IS shows a plan for some time after its end, and an unborn child's for a shorter one; a person's own entries end on
their eighteenth birthday; an entry that was deleted was an error and never counted.
"""

from __future__ import annotations

from datetime import date, timedelta
from enum import StrEnum

import msgspec

from broker.domain.visits import age_on
from schemas.child_list import ChildListEntry, PlanType

ADULT_AGE = 18


class Windows(msgspec.Struct, frozen=True, kw_only=True):
    """How long a plan is shown after the day it ended."""

    plan_days: int = 365
    unborn_days: int = 28


class Standing(StrEnum):
    """What an entry is worth on a day."""

    CURRENT = "current"
    ENDED = "ended"
    HIDDEN = "hidden"


def standing_on(entry: ChildListEntry, on: date, windows: Windows) -> Standing:
    """What ``entry`` is worth on a Europe/London day. The end date itself no longer counts as current."""
    is_unborn = entry.plan_type is PlanType.UNBORN
    if entry.deleted_on is not None or on < entry.start_on:
        return Standing.HIDDEN
    # The date of birth of an unborn child's entry is the mother's, whose age does not end it.
    if not is_unborn and age_on(entry.birth_date, on) >= ADULT_AGE:
        return Standing.HIDDEN
    if not entry.has_ended(on):
        return Standing.CURRENT
    assert entry.end_on is not None
    shown = timedelta(days=windows.unborn_days if is_unborn else windows.plan_days)
    return Standing.ENDED if on - entry.end_on <= shown else Standing.HIDDEN
