"""When an authority's office answers the telephone: ``Mon-Thu 08:45-17:00 Fri 08:45-16:30``."""

from __future__ import annotations

import re
from datetime import time
from typing import Final

import msgspec

OFFICE_HOURS_USUAL: Final = "Mon-Fri 09:00-17:00"
_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_OPENING: Final = re.compile(r"([A-Za-z]{3})(?:-([A-Za-z]{3}))?\s+(\d\d:\d\d)-(\d\d:\d\d)(?:\s+|$)", re.ASCII)


class Opening(msgspec.Struct, frozen=True, kw_only=True):
    """One day of the week, Monday 0, from the one local time up to but excluding the other."""

    weekday: int
    opens_at: time
    closes_at: time


def parse_office_hours(text: str) -> tuple[Opening, ...] | None:
    """The hours, or None when they cannot be read: days that are not in order, or a time that is none."""
    found: list[Opening] = []
    rest = text.strip()
    while rest:
        part = _OPENING.match(rest)
        if part is None or (openings := _open_days(*part.groups())) is None:
            return None
        found += openings
        rest = rest[part.end() :]
    return tuple(found) or None


def _open_days(first: str, last: str | None, opens: str, closes: str) -> list[Opening] | None:
    try:
        begin, end = _DAYS.index(first.lower()), _DAYS.index((last or first).lower())
        opens_at, closes_at = time.fromisoformat(opens), time.fromisoformat(closes)
    except ValueError:
        return None
    if end < begin or closes_at <= opens_at:
        return None
    return [Opening(weekday=day, opens_at=opens_at, closes_at=closes_at) for day in range(begin, end + 1)]
