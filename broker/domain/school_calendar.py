"""School days of an establishment, and by when its safeguarding lead must have been told.

The statute says as soon as reasonably practicable (section 49A, Domestic Abuse Act 2021), practice says before the next
school day starts. So a notice never waits: it leaves at once, and in holidays again on return. Local time is
Europe/London; the only thing that stands still for a clock change is the bell.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Final

import msgspec

from broker.domain.visits import LONDON
from schemas.encompass import CalendarDays, DayKind

_DAY: Final = timedelta(days=1)
_MONDAY_ORDINAL: Final = 1
"""``date.toordinal`` of a Monday: 1 January of the year 1."""
_SATURDAY: Final = 5
_SEPTEMBER: Final = 9
"""A school year begins in September."""


class SchoolHours(msgspec.Struct, frozen=True, kw_only=True):
    """When an establishment's day starts, and how notices are timed by it: whole minutes, Europe/London."""

    starts_at_local: time = time(8, 30)
    margin: timedelta = timedelta(minutes=15)
    """The notice is due so long before the start."""
    cut_off_local: time = time(15, 0)
    """Until then a school can still act on the same day."""
    reminder_lead: timedelta = timedelta(minutes=60)
    """How long before the start a notice sent in holidays is sent again."""


class Flag(StrEnum):
    """What the person who is told, and the force, should see at once."""

    BEFORE_THE_BELL = "before_the_bell"
    """The incident fell on a school day before its start: hardly time to read it."""
    DURING_SCHOOL = "during_school"
    """The incident fell in school hours: the child may be at school now."""


class NextSchoolDay(msgspec.Struct, frozen=True, kw_only=True):
    """A school day; ``is_assumed`` when the calendar does not reach so far and a weekday was taken for one."""

    on: date
    is_assumed: bool


class NoticeTiming(msgspec.Struct, frozen=True, kw_only=True):
    """When a notice is sent and due. Instants are aware UTC."""

    send_at: datetime
    """The instant of the incident itself: sending waits for nothing but a person's release."""
    due_by: datetime
    school_day: date
    """The day at whose start it is due."""
    remind_at: datetime | None
    """On the day of return, when the incident fell in holidays: a weekday without school lies between."""
    flag: Flag | None
    calendar_is_assumed: bool


class SchoolCalendar:
    """The school days of one establishment, worked out once.

    A stretch is known from the first to the last day of neighbouring terms; a gap longer than ``holiday_days_max`` is
    not a holiday but a term that nobody gave. Outside what is known every weekday that is neither
    a bank holiday nor closed counts, and is said to be assumed.
    """

    def __init__(
        self, authority_days: Iterable[CalendarDays], school_days: Iterable[CalendarDays], *, holiday_days_max: int = 80
    ) -> None:
        """``school_days`` are the establishment's own and go before the authority's, school year by school year."""
        days = tuple(_override(tuple(authority_days), tuple(school_days)))
        closed = (DayKind.BANK_HOLIDAY, DayKind.CLOSURE, DayKind.HOLIDAY, DayKind.INSET)
        self._closed = frozenset(_ordinals(days, *closed))
        opened = frozenset(_ordinals(days, DayKind.OPEN))
        terms = sorted(
            {(day.first_on.toordinal(), day.last_on.toordinal()) for day in days if day.kind is DayKind.TERM}
        )
        self._stretches = _join(terms, holiday_days_max)
        taught = {day for first, last in terms for day in range(first, last + 1) if self._may_be_taught(day)}
        self._school_days = sorted(taught | opened)

    @property
    def known_until(self) -> date | None:
        """The last day of the last term; None: there is no calendar."""
        return date.fromordinal(self._stretches[-1][1]) if self._stretches else None

    def is_known(self, on: date) -> bool:
        """Whether the terms given reach this day."""
        return self._stretch_end(on.toordinal()) is not None

    def is_school_day(self, on: date) -> bool:
        """Whether there is school, or, where the calendar does not reach, whether there may be."""
        day = on.toordinal()
        place = bisect_left(self._school_days, day)
        if place < len(self._school_days) and self._school_days[place] == day:
            return True
        return self._stretch_end(day) is None and self._may_be_taught(day)

    def next_school_day(self, on: date) -> NextSchoolDay:
        """The first school day on or after ``on``."""
        day = on.toordinal()
        place = bisect_left(self._school_days, day)
        given = self._school_days[place] if place < len(self._school_days) else None
        while day != given:
            end = self._stretch_end(day)
            if end is None:
                if self._may_be_taught(day):
                    return NextSchoolDay(on=date.fromordinal(day), is_assumed=True)
                day += 1
            else:
                # Nothing is taught in what is left of a known stretch before the next school day given.
                day = end + 1 if given is None or given > end else given
        return NextSchoolDay(on=date.fromordinal(day), is_assumed=False)

    def _may_be_taught(self, day: int) -> bool:
        return _is_weekday(day) and day not in self._closed and not _is_bank_holiday(day)

    def _stretch_end(self, day: int) -> int | None:
        return next((last for first, last in self._stretches if first <= day <= last), None)


def time_notice(known_at: datetime, calendar: SchoolCalendar, hours: SchoolHours) -> NoticeTiming:
    """When the notice of an incident that the force came to know at ``known_at`` (aware) is sent and due.

    The due instant always lies after ``known_at``. Between the margin and the bell it is the bell itself: later than
    one would wish, and the earliest that can still be kept.
    """
    assert known_at.utcoffset() is not None, "an instant has an offset"
    local = known_at.astimezone(LONDON)
    today, minute = local.date(), _minute_of_day(local)
    starts, cut_off = _minute_of_day(hours.starts_at_local), _minute_of_day(hours.cut_off_local)
    is_early = minute < starts
    found = calendar.next_school_day(today if is_early else today + _DAY)
    start, due_by, remind_at = _bell(found.on, hours)
    if due_by <= known_at:
        due_by = start
    is_holiday = found.on > today and _skips_a_weekday(today, found.on, calendar)
    flag = None
    if found.on == today:
        flag = Flag.BEFORE_THE_BELL
    elif starts <= minute < cut_off and calendar.is_school_day(today):
        flag = Flag.DURING_SCHOOL
    return NoticeTiming(
        send_at=known_at.astimezone(UTC),
        due_by=due_by,
        school_day=found.on,
        remind_at=remind_at if is_holiday else None,
        flag=flag,
        calendar_is_assumed=found.is_assumed,
    )


def due_by(known_at: datetime, calendar: SchoolCalendar, hours: SchoolHours) -> datetime:
    """The instant (UTC) before which the notice must have been sent."""
    return time_notice(known_at, calendar, hours).due_by


def _minute_of_day(clock: datetime | time) -> int:
    return clock.hour * 60 + clock.minute


def _skips_a_weekday(today: date, next_day: date, calendar: SchoolCalendar) -> bool:
    """Whether a weekday without school lies before ``next_day``, today counted."""
    first = today.toordinal() + calendar.is_school_day(today)
    return any(_is_weekday(day) for day in range(first, next_day.toordinal()))


def _is_weekday(day: int) -> bool:
    return (day - _MONDAY_ORDINAL) % 7 < _SATURDAY


@lru_cache(maxsize=8_192)
def _bell(on: date, hours: SchoolHours) -> tuple[datetime, datetime, datetime]:
    """Start, due and reminder of a school day, in UTC. Schools start far from the hour at which clocks change."""
    start = datetime.combine(on, hours.starts_at_local, LONDON).astimezone(UTC)
    return start, start - hours.margin, start - hours.reminder_lead


def _override(authority: tuple[CalendarDays, ...], school: tuple[CalendarDays, ...]) -> Iterator[CalendarDays]:
    """A school that gives terms of its own for a school year does not follow the authority's of that year; closures
    and bank holidays of the authority hold for everybody."""
    own_years = {_school_year(days.first_on) for days in school if days.kind is DayKind.TERM}
    for days in authority:
        follows_own = _school_year(days.first_on) in own_years
        if not follows_own or days.kind in (DayKind.CLOSURE, DayKind.BANK_HOLIDAY):
            yield days
    yield from school


def _school_year(on: date) -> int:
    """The year in which the school year of this day began, in September."""
    return on.year if on.month >= _SEPTEMBER else on.year - 1


def _ordinals(days: Iterable[CalendarDays], *kinds: DayKind) -> Iterator[int]:
    for span in days:
        if span.kind in kinds:
            yield from range(span.first_on.toordinal(), span.last_on.toordinal() + 1)


def _join(terms: list[tuple[int, int]], holiday_days_max: int) -> list[tuple[int, int]]:
    """Terms and the holidays between them as stretches that are known."""
    found: list[tuple[int, int]] = []
    for first, last in terms:
        if found and first - found[-1][1] - 1 <= holiday_days_max:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


# Bank holidays


@lru_cache(maxsize=4_096)
def _is_bank_holiday(day: int) -> bool:
    on = date.fromordinal(day)
    return on in bank_holidays(on.year)


@lru_cache(maxsize=64)
def bank_holidays(year: int) -> frozenset[date]:
    """Bank holidays in England of a year, by rule (Banking and Financial Dealings Act 1971, schedule 1; common law).

    Days proclaimed once, as for a coronation, come with the calendar. Those from Easter on assume the Gregorian rule.
    """
    easter = _easter_sunday(year)
    may, june, september = date(year, 5, 1), date(year, 6, 1), date(year, 9, 1)
    fixed = {
        _on_monday_if_weekend(date(year, 1, 1)),
        easter - 2 * _DAY,
        easter + _DAY,
        may + timedelta(days=-may.weekday() % 7),
        june - timedelta(days=june.weekday() or 7),
        september - timedelta(days=september.weekday() or 7),
    }
    return frozenset(fixed | _christmas(year))


def _on_monday_if_weekend(on: date) -> date:
    return on + timedelta(days=max(0, 7 - on.weekday())) if on.weekday() >= _SATURDAY else on


def _christmas(year: int) -> set[date]:
    """Two weekdays: what falls on a weekend is made good on the next weekday that is free."""
    found: set[date] = set()
    for on in (date(year, 12, 25), date(year, 12, 26)):
        if on.weekday() < _SATURDAY:
            found.add(on)
    substitute = date(year, 12, 27)
    while len(found) < 2:
        if substitute.weekday() < _SATURDAY:
            found.add(substitute)
        substitute += _DAY
    return found


def _easter_sunday(year: int) -> date:
    """By the anonymous Gregorian computus (Nature, 20 April 1876)."""
    golden, (century, rest) = year % 19, divmod(year, 100)
    leap, skipped = divmod(century, 4)
    moon = (century - (century + 8) // 25 + 1) // 3
    epact = (19 * golden + century - leap - moon + 15) % 30
    quarter, left = divmod(rest, 4)
    weekday = (32 + 2 * skipped + 2 * quarter - epact - left) % 7
    late = (golden + 11 * epact + 22 * weekday) // 451
    month, day = divmod(epact + weekday - 7 * late + 114, 31)
    return date(year, month, day + 1)
