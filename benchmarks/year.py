"""A year of Operation Encompass, replayed in simulated time on the embedded database: is every deadline met?

The force of mock_nhs tells of eleven thousand incidents, with corrections, updates, repetitions and withdrawals, over a
school year with its holidays and both clock changes. The clock stands at each hour in turn: what came in it is handled,
and what is due of it is done. How long that takes says how far the broker is from its limit; that nothing is late, but
what was told late, is checked.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from pathlib import Path

from sqlalchemy import func, select

from benchmarks.figures import Figure, Subject
from benchmarks.installation import Scale
from broker.proof import Month, report_month
from broker.storage.tables import NoticeRow, table
from mock_nhs.police import Dispatch, NightOptions, School, invent_night
from tests.encompass import Encompass, open_encompass

FIRST_NIGHT = date(2025, 9, 1)
NIGHTS = 365
NIGHT_INCIDENTS = 30
SCHOOLS = 200
SEED = 11
LEAD = "Robin Reed"
RECORDS_MAX = 500
_FRIDAY = 4
_HOUR = timedelta(hours=1)
_TERMS = (
    ("2025-09-02", "2025-10-24"),
    ("2025-11-03", "2025-12-19"),
    ("2026-01-05", "2026-02-13"),
    ("2026-02-23", "2026-03-27"),
    ("2026-04-13", "2026-05-22"),
    ("2026-06-01", "2026-07-21"),
    ("2026-09-02", "2026-10-23"),
)


class DeadlineMissed(Exception):
    """A notice was late through no fault of the force's, or one was lost or doubled."""


def measure_year(scale: Scale, say: Callable[[str], None]) -> list[Figure]:
    """Incidents a second over the year. Raises DeadlineMissed."""
    with tempfile.TemporaryDirectory() as directory:
        return asyncio.run(_measure(scale, Path(directory), say))


async def _measure(scale: Scale, directory: Path, say: Callable[[str], None]) -> list[Figure]:
    schools = [
        School(urn=str(800_000 + place), name=f"School {place}", authority="706", lead_name=LEAD)
        for place in range(SCHOOLS)
    ]
    dispatches = list(_invent_year(schools, scale.incidents))
    async with open_encompass(f"sqlite+aiosqlite:///{directory / 'year.sqlite'}", directory) as encompass:
        await _furnish(encompass, schools)
        began_at = time.perf_counter()
        await replay_year(encompass, dispatches)
        took_s = time.perf_counter() - began_at
        counted = await check_deadlines(encompass)
    told = {each.content["incident_id"] for each in dispatches}
    say(f"  {len(told):,} incidents, {len(dispatches):,} messages in {took_s:.0f} s; notices: {dict(counted)}")
    rounds = (len(told) / took_s,)
    return [
        Figure(
            what="a year of incidents",
            engines="embedded",
            subject=Subject.PRODUCT,
            unit="incidents/s",
            rounds=rounds,
        )
    ]


def _invent_year(schools: Sequence[School], incidents: int) -> Iterator[Dispatch]:
    """As many incidents as asked for, on every night of the year, or on fewer of them but no less mixed; half as many
    again on those of Friday to Sunday."""
    every = max(1, NIGHTS * NIGHT_INCIDENTS // incidents)
    nights = [FIRST_NIGHT + timedelta(days=night) for night in range(0, NIGHTS, every)]
    weights = [1.5 if night.weekday() >= _FRIDAY else 1.0 for night in nights]
    done, reached = 0, 0.0
    for night, weight in zip(nights, weights, strict=True):
        reached += incidents * weight / sum(weights)
        options = NightOptions(incidents=round(reached) - done)
        done = round(reached)
        if options.incidents:
            yield from invent_night(SEED + night.toordinal(), night, schools, options)


async def _furnish(encompass: Encompass, schools: Sequence[School]) -> None:
    names = "".join(f"{each.urn},{each.name},school,{each.authority},01632 960405\n" for each in schools)
    contacts = "".join(
        f"{each.urn},{role},{role},{name},{mailbox}@{each.urn}.example.org,2025-08-20,2025-06-01\n"
        for each in schools
        for role, name, mailbox in (("lead", LEAD, "safeguarding"), ("deputy", "Alex Porter", "office"))
    )
    terms = "".join(f"706,,term,{first},{last}\n" for first, last in _TERMS)
    for kind, file in (
        ("schools", f"urn,name,kind,authority,office_telephone\n{names}"),
        ("safeguarding_contacts", f"urn,contact_id,role,name,mailbox,confirmed_date,trained_date\n{contacts}"),
        ("term_dates", f"authority,urn,kind,first_date,last_date\n{terms}"),
    ):
        report = await encompass.upload(kind, file)
        assert not report.refused, report.refused[:3]


async def replay_year(encompass: Encompass, dispatches: Sequence[Dispatch]) -> None:
    """From hour to hour in which something comes or is due: handle what came, then do what is due, until nothing is."""
    waiting = sorted(dispatches, key=lambda each: each.at)
    by_hour = {hour: list(group) for hour, group in groupby(waiting, key=lambda each: _hour_after(each.at))}
    ends_at = max(by_hour) + timedelta(days=45)
    hour: datetime | None = min(by_hour)
    while hour is not None and hour <= ends_at:
        encompass.world.clock.move_to(hour)
        came = by_hour.pop(hour, [])
        for first in range(0, len(came), RECORDS_MAX):
            await encompass.receive(*(each.body for each in came[first : first + RECORDS_MAX]))
        while await encompass.run_jobs():
            pass
        hour = min(filter(None, [min(by_hour, default=None), await _next_due(encompass)]), default=None)


async def _next_due(encompass: Encompass) -> datetime | None:
    async with encompass.world.database.reading() as connection:
        due_at: datetime | None = (await connection.execute(select(func.min(table(NoticeRow).c.next_at)))).scalar_one()
    return _hour_after(due_at) if due_at is not None else None


def _hour_after(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0) + _HOUR


async def check_deadlines(encompass: Encompass) -> Counter[str]:
    """Count what became of every notice of the year. Raises DeadlineMissed."""
    counted: Counter[str] = Counter()
    delays: Counter[str] = Counter()
    world = encompass.world
    seen: set[tuple[str, str]] = set()
    month = Month(FIRST_NIGHT.year, FIRST_NIGHT.month)
    while month <= Month(FIRST_NIGHT.year + 1, FIRST_NIGHT.month):
        async with world.database.reading() as connection:
            report = await report_month(connection, world.keyring, month, now=world.clock.now(), force="ZF1")
        counted.update(report.punctuality)
        delays.update(report.delays)
        keys = [(line.incident_id, line.urn) for line in report.lines]
        if len({*keys} | seen) != len(keys) + len(seen):
            raise DeadlineMissed("a notice is there twice")
        seen |= {*keys}
        month = month.following
    unexplained = {name: count for name, count in delays.items() if count and name != "told_late"}
    if unexplained or counted["not_sent"] or counted["not_due_yet"]:
        raise DeadlineMissed(f"{dict(counted)}, because of {unexplained}")
    return +counted
