"""Which of an authority's telephones is answered at an instant: the office's, or the emergency duty team's."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, datetime, timedelta
from functools import cache
from typing import Final

from broker.domain.visits import LONDON
from schemas.directory import Authority
from schemas.office_hours import OFFICE_HOURS_USUAL, parse_office_hours

_MONDAY: Final = 0
_SATURDAY: Final = 5


def answered_telephone(authority: Authority, now: datetime, proclaimed: Collection[date] = ()) -> str:
    """The number to ring now. ``proclaimed`` are bank holidays that no rule gives, such as a coronation's."""
    if is_office_open(authority.office_hours, now, proclaimed):
        return authority.office_telephone
    return authority.emergency_telephone


def is_office_open(office_hours: str, now: datetime, proclaimed: Collection[date] = ()) -> bool:
    """Whether an office with these hours is open at an aware instant. On bank holidays none is."""
    local = now.astimezone(LONDON)
    if local.date() in proclaimed or local.date() in bank_holidays(local.year):
        return False
    openings = parse_office_hours(office_hours) or parse_office_hours(OFFICE_HOURS_USUAL) or ()
    at = local.timetz().replace(tzinfo=None)
    return any(each.weekday == local.weekday() and each.opens_at <= at < each.closes_at for each in openings)


@cache
def bank_holidays(year: int) -> frozenset[date]:
    """The bank holidays of England and Wales by rule (Banking and Financial Dealings Act 1971, schedule 1).

    Those at the turn of the year that fall on a weekend count on their own day and on the day in their place.
    """
    easter = easter_sunday(year)
    by_weekday = {
        easter - timedelta(days=2),
        easter + timedelta(days=1),
        _first_monday(date(year, 5, 1)),
        _first_monday(date(year, 5, 25)),
        _first_monday(date(year, 8, 25)),
    }
    kept: set[date] = set()
    for day in (date(year, 1, 1), date(year, 12, 25), date(year, 12, 26)):
        kept.add(day)
        if day.weekday() < _SATURDAY:
            continue
        instead = day
        while instead.weekday() >= _SATURDAY or instead in kept or instead == date(year, 12, 26):
            instead += timedelta(days=1)
        kept.add(instead)
    return frozenset(by_weekday | kept)


def easter_sunday(year: int) -> date:
    """Easter Sunday of the Gregorian calendar (the anonymous algorithm, Nature 1876)."""
    century, of_century = divmod(year, 100)
    leaps, rest = divmod(century, 4)
    moon = (19 * (year % 19) + century - leaps - (century - (century + 8) // 25 + 1) // 3 + 15) % 30
    sunday = (32 + 2 * rest + 2 * (of_century // 4) - moon - of_century % 4) % 7
    late = (year % 19 + 11 * moon + 22 * sunday) // 451
    month, day = divmod(moon + sunday - 7 * late + 114, 31)
    return date(year, month, day + 1)


def _first_monday(since: date) -> date:
    return since + timedelta(days=(_MONDAY - since.weekday()) % 7)
