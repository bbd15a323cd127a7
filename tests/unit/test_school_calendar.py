"""When a school must have been told: before the bell of its own next school day, over holidays and clock changes."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, time, timedelta

import pytest

from broker.domain.school_calendar import (
    Flag,
    NoticeTiming,
    SchoolCalendar,
    SchoolHours,
    bank_holidays,
    due_by,
    time_notice,
)
from broker.domain.visits import LONDON
from schemas.encompass import CalendarDays, DayKind
from schemas.identifiers import SchoolUrn

HOURS = SchoolHours()
DAY = timedelta(days=1)
URN = SchoolUrn("900001")


def days(kind: DayKind, first_on: date, last_on: date | None = None, urn: SchoolUrn | None = None) -> CalendarDays:
    return CalendarDays(authority="706", urn=urn, kind=kind, first_on=first_on, last_on=last_on or first_on)


AUTHORITY = (
    days(DayKind.TERM, date(2026, 9, 2), date(2026, 12, 18)),
    days(DayKind.HOLIDAY, date(2026, 10, 26), date(2026, 10, 30)),
    days(DayKind.TERM, date(2027, 1, 4), date(2027, 3, 25)),
    days(DayKind.HOLIDAY, date(2027, 2, 15), date(2027, 2, 19)),
    days(DayKind.TERM, date(2027, 4, 12), date(2027, 7, 21)),
    days(DayKind.HOLIDAY, date(2027, 5, 31), date(2027, 6, 4)),
)
CALENDAR = SchoolCalendar(AUTHORITY, ())


def london(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=LONDON)  # type: ignore[arg-type,misc]


def timed(known_at: datetime, calendar: SchoolCalendar = CALENDAR) -> NoticeTiming:
    return time_notice(known_at, calendar, HOURS)


def test_saturday_night_is_due_before_mondays_bell_and_sent_at_once() -> None:
    timing = timed(london(2026, 11, 21, 22, 40))
    assert timing.send_at == london(2026, 11, 21, 22, 40)
    assert timing.due_by == london(2026, 11, 23, 8, 15)
    assert (timing.remind_at, timing.flag, timing.calendar_is_assumed) == (None, None, False)


def test_an_incident_in_holidays_is_sent_at_once_and_again_on_return() -> None:
    timing = timed(london(2026, 10, 24, 23, 0))
    assert timing.send_at == london(2026, 10, 24, 23, 0)
    assert timing.school_day == date(2026, 11, 2)
    assert timing.due_by == london(2026, 11, 2, 8, 15)
    assert timing.remind_at == london(2026, 11, 2, 7, 30)
    summer = timed(london(2027, 7, 21, 20, 0), SchoolCalendar((*AUTHORITY, days(DayKind.TERM, date(2027, 9, 1))), ()))
    assert summer.remind_at == london(2027, 9, 1, 7, 30)


@pytest.mark.parametrize(
    ("known_at", "due", "flag"),
    [
        (london(2026, 11, 24, 0, 5), london(2026, 11, 24, 8, 15), Flag.BEFORE_THE_BELL),
        (london(2026, 11, 24, 7, 50), london(2026, 11, 24, 8, 15), Flag.BEFORE_THE_BELL),
        (london(2026, 11, 24, 8, 15), london(2026, 11, 24, 8, 30), Flag.BEFORE_THE_BELL),
        (london(2026, 11, 24, 8, 29), london(2026, 11, 24, 8, 30), Flag.BEFORE_THE_BELL),
        (london(2026, 11, 24, 8, 30), london(2026, 11, 25, 8, 15), Flag.DURING_SCHOOL),
        (london(2026, 11, 24, 14, 59), london(2026, 11, 25, 8, 15), Flag.DURING_SCHOOL),
        (london(2026, 11, 24, 15, 0), london(2026, 11, 25, 8, 15), None),
        (london(2026, 11, 22, 11, 0), london(2026, 11, 23, 8, 15), None),
    ],
)
def test_on_a_school_day_it_goes_at_once_and_is_flagged(known_at: datetime, due: datetime, flag: Flag | None) -> None:
    timing = timed(known_at)
    assert (timing.send_at, timing.due_by, timing.flag) == (known_at, due, flag)


def test_the_bell_stays_where_it_is_when_the_clocks_change() -> None:
    autumn = timed(london(2026, 10, 24, 22, 0), SchoolCalendar((days(DayKind.TERM, date(2026, 9, 1)),), ()))
    assert autumn.due_by == datetime(2026, 10, 26, 8, 15, tzinfo=UTC)
    spring = timed(datetime(2027, 3, 27, 23, 0, tzinfo=UTC), SchoolCalendar((), ()))
    assert spring.due_by == datetime(2027, 3, 30, 7, 15, tzinfo=UTC)  # the 29th is Easter Monday
    open_sunday = SchoolCalendar((*AUTHORITY, days(DayKind.OPEN, date(2026, 10, 25))), ())
    twice_one = [datetime(2026, 10, 25, hour, 30, tzinfo=UTC) for hour in (0, 1)]
    assert {timed(at, open_sunday).due_by for at in twice_one} == {datetime(2026, 10, 25, 8, 15, tzinfo=UTC)}


def test_inset_closure_and_bank_holiday_are_no_school_days_and_bring_a_reminder() -> None:
    for kind in (DayKind.INSET, DayKind.CLOSURE, DayKind.BANK_HOLIDAY):
        timing = timed(london(2026, 11, 22, 20, 0), SchoolCalendar((*AUTHORITY, days(kind, date(2026, 11, 23))), ()))
        assert timing.due_by == london(2026, 11, 24, 8, 15)
        assert timing.remind_at == london(2026, 11, 24, 7, 30)
    assert timed(london(2027, 5, 2, 20, 0)).school_day == date(2027, 5, 4)


def test_a_school_that_gives_its_own_terms_does_not_follow_the_authoritys() -> None:
    own = (
        days(DayKind.HOLIDAY, date(2026, 11, 2), date(2026, 11, 6), URN),
        days(DayKind.TERM, date(2026, 9, 7), date(2026, 12, 11), URN),
        days(DayKind.OPEN, date(2026, 11, 21), None, URN),
    )
    snow = days(DayKind.CLOSURE, date(2026, 11, 23))
    calendar = SchoolCalendar((*AUTHORITY, snow, days(DayKind.INSET, date(2026, 11, 24))), own)
    assert calendar.is_school_day(date(2026, 10, 26))  # the authority's half-term
    assert not calendar.is_school_day(date(2026, 11, 2))
    assert calendar.is_school_day(date(2026, 11, 21))
    assert not calendar.is_school_day(date(2026, 11, 23))
    assert calendar.is_school_day(date(2026, 11, 24))
    assert calendar.known_until == date(2026, 12, 11)
    next_year = days(DayKind.TERM, date(2027, 9, 1), date(2027, 12, 17))
    assert SchoolCalendar((*AUTHORITY, next_year), own).is_school_day(date(2027, 9, 1))


def test_without_a_calendar_weekdays_are_taken_and_said_to_be() -> None:
    nothing = SchoolCalendar((), ())
    assert nothing.known_until is None
    timing = timed(london(2026, 10, 24, 23, 0), nothing)
    assert timing.due_by == london(2026, 10, 26, 8, 15)
    assert timing.calendar_is_assumed
    assert not timed(london(2026, 12, 24, 23, 0), nothing).school_day.weekday() >= 5
    assert timed(london(2026, 12, 24, 23, 0), nothing).school_day == date(2026, 12, 29)


def test_beyond_its_last_term_a_calendar_has_expired() -> None:
    timing = timed(london(2027, 7, 24, 12, 0))
    assert timing.calendar_is_assumed
    assert timing.school_day == date(2027, 7, 26)
    assert not CALENDAR.is_known(date(2027, 7, 22))


def test_a_term_that_nobody_gave_is_no_holiday() -> None:
    no_spring = SchoolCalendar([span for span in AUTHORITY if span.first_on != date(2027, 1, 4)], ())
    timing = timed(london(2027, 1, 16, 22, 0), no_spring)
    assert timing.school_day == date(2027, 1, 18)
    assert timing.calendar_is_assumed


def test_the_bank_holidays_are_those_of_england() -> None:
    published = {
        2026: ("01-01", "04-03", "04-06", "05-04", "05-25", "08-31", "12-25", "12-28"),
        2027: ("01-01", "03-26", "03-29", "05-03", "05-31", "08-30", "12-27", "12-28"),
        2028: ("01-03", "04-14", "04-17", "05-01", "05-29", "08-28", "12-25", "12-26"),
    }
    for year, expected in published.items():
        assert bank_holidays(year) == {date.fromisoformat(f"{year}-{day}") for day in expected}
    assert bank_holidays(2022) >= {date(2022, 12, 26), date(2022, 12, 27), date(2022, 1, 3)}


# 50,000 instants in 30 calendars

INSTANTS = 50_000
CALENDARS = 30
FIRST, LAST = date(2025, 9, 1), date(2028, 8, 31)


def invent_calendar(seed: int) -> tuple[list[CalendarDays], set[date], set[date]]:
    """Three years of a school, one of which it may not have given, with the days of each kind written out."""
    draws = random.Random(seed)
    spans: list[CalendarDays] = []
    taught: set[date] = set()
    known: set[date] = set()
    for year in (2025, 2026, 2027):
        if seed % 3 == 0 and year == 2025 + seed // 3 % 3:
            continue
        terms = [
            (date(year, 9, draws.randint(1, 8)), date(year, 12, draws.randint(12, 22))),
            (date(year + 1, 1, draws.randint(2, 8)), date(year + 1, 3, draws.randint(20, 28))),
            (date(year + 1, 4, draws.randint(7, 20)), date(year + 1, 7, draws.randint(12, 24))),
        ]
        for first, last in terms:
            length = (last - first).days
            half = first + timedelta(days=length // 2)
            off = [half + DAY * step for step in range(5)]
            inset = [first + DAY * draws.randrange(length) for _ in range(draws.randrange(3))]
            closed = [first + DAY * draws.randrange(length) for _ in range(draws.randrange(2))]
            opened = [first + DAY * draws.randrange(length)] if seed % 4 == 0 else []
            spans.append(days(DayKind.TERM, first, last))
            spans.append(days(DayKind.HOLIDAY, off[0], off[-1]))
            spans += [days(DayKind.INSET, on) for on in inset] + [days(DayKind.CLOSURE, on) for on in closed]
            spans += [days(DayKind.OPEN, on) for on in opened]
            within = {first + DAY * step for step in range(length + 1)}
            taught |= {on for on in within if on.weekday() < 5} - {*off, *inset, *closed} - bank_holidays(first.year)
            taught |= {*opened}
        known |= {terms[0][0] + DAY * step for step in range((terms[2][1] - terms[0][0]).days + 1)}
        if any(on.year == year and on.month == 7 for on in known):
            known |= {date(year, 7, 1) + DAY * step for step in range((terms[0][0] - date(year, 7, 1)).days)}
    draws.shuffle(spans)
    return spans, taught, known


def next_days(taught: set[date], known: set[date]) -> list[date]:
    """The next school day on or after each day, walked backwards: another way than the code's."""
    found: list[date] = []
    following = LAST + 60 * DAY
    on = following
    while on >= FIRST:
        may_be = on not in known and on.weekday() < 5 and on not in bank_holidays(on.year)
        if on in taught or may_be:
            following = on
        found.append(following)
        on -= DAY
    return found[::-1]


def random_instants(count: int) -> list[datetime]:
    """All over three years, and thick around the nights in which the clocks change and around the bell."""
    draws = random.Random(13)
    start, length_s = datetime(2025, 9, 1, tzinfo=UTC), int((LAST - FIRST).total_seconds())
    found = [start + timedelta(seconds=draws.randrange(length_s)) for _ in range(count - 2 * (count // 8))]
    changes = (date(2025, 10, 26), date(2026, 3, 29), date(2026, 10, 25), date(2027, 3, 28), date(2027, 10, 31))
    for _ in range(count // 8):
        night = datetime.combine(draws.choice(changes), time(0), UTC)
        found.append(night + timedelta(seconds=draws.randrange(-7_200, 14_400)))
    for _ in range(count // 8):
        bell = datetime.combine(FIRST + DAY * draws.randrange((LAST - FIRST).days), time(8, 30), LONDON)
        found.append(bell.astimezone(UTC) + timedelta(seconds=draws.randrange(-1_200, 1_200)))
    return found


def test_nothing_is_due_on_a_day_without_school_and_no_bell_is_missed() -> None:
    instants = random_instants(INSTANTS)
    assert len(instants) == INSTANTS
    local = [at.astimezone(LONDON) for at in instants]
    places = [(at.date() - FIRST).days + (at.time() >= time(8, 30)) for at in local]
    for seed in range(CALENDARS):
        spans, taught, known = invent_calendar(seed)
        calendar = SchoolCalendar(spans, ())
        following = next_days(taught, known)
        bells = {on: datetime.combine(on, time(8, 30), LONDON).astimezone(UTC) for on in following}
        wrong = 0
        for at, place in zip(instants, places, strict=True):
            timing = time_notice(at, calendar, HOURS)
            bell = bells[following[place]]
            due = timing.due_by
            # The bell of the very next school day: none is skipped, none is on another day, none lies behind.
            wrong += not (at == timing.send_at < due <= bell and (bell - due == HOURS.margin or due == bell))
            wrong += timing.remind_at is not None and not at < timing.remind_at < due
        assert wrong == 0, seed


def test_every_incident_of_a_night_is_due_once_at_each_school() -> None:
    """From one bell to the next all instants have one deadline: two of them, or none, for one day is impossible."""
    at, last = datetime(2026, 10, 20, 12, tzinfo=UTC), datetime(2026, 11, 10, 12, tzinfo=UTC)
    deadlines: list[datetime] = []
    while at < last:
        day_due = due_by(at, CALENDAR, HOURS).astimezone(LONDON).date()
        deadline = datetime.combine(day_due, time(8, 30), LONDON)
        if not deadlines or deadlines[-1] != deadline:
            deadlines.append(deadline)
        at += timedelta(minutes=1)
    school_days = [date(2026, 10, 20) + DAY * step for step in range(1, 23)]
    expected = [on for on in school_days if CALENDAR.is_school_day(on)]
    assert [deadline.date() for deadline in deadlines] == expected
