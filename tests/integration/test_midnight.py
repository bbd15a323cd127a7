"""Scenario T: a child turns 18 tonight, and the clocks change tonight."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from broker.domain.visits import LONDON
from broker.storage.tables import AuditRow, table
from schemas.encompass import NoticeState, TaskKind
from schemas.record import PositionOutcome
from tests.encompass import Encompass, at_school, child, half_term, open_encompass
from tests.world import hl7

TERMS = """authority,urn,kind,first_date,last_date
706,,term,2026-03-02,2026-04-01
706,,term,2026-09-02,2026-12-18
"""
SPRING, AUTUMN = date(2026, 3, 29), date(2026, 10, 25)
LISTED = "L1,9990000018,Tester,Casey,{born},ZZ99 1AA,{plan},2025-01-10,,W1,North"


@pytest.mark.parametrize("sunday", [SPRING, AUTUMN], ids=["spring", "autumn"])
async def test_the_child_turns_18_and_the_clocks_change_tonight(world_url: str, tmp_path: Path, sunday: date) -> None:
    midnight = datetime.combine(sunday, time(0), LONDON).astimezone(UTC)
    async with open_encompass(world_url, tmp_path) as encompass:
        assert not (await encompass.upload("term_dates", TERMS)).refused
        await the_plan_stops_at_midnight(encompass, sunday, midnight)
        await nothing_is_due_twice_or_never(encompass, sunday, midnight)


async def the_plan_stops_at_midnight(encompass: Encompass, sunday: date, midnight: datetime) -> None:
    """The last minute of Saturday in London still alerts, the first of Sunday does not; both are answered."""
    world, born = encompass.world, sunday.replace(year=sunday.year - 18)
    world.clock.move_to(midnight - timedelta(hours=1))
    await world.list_children(LISTED.format(born=born.isoformat(), plan="looked_after_child"))
    for minutes, outcome in ((-1, PositionOutcome.ALERTED), (0, PositionOutcome.SILENT_BY_RULE)):
        at = midnight + timedelta(minutes=minutes)
        world.clock.move_to(at)
        local = at.astimezone(LONDON).replace(tzinfo=None)
        said = hl7(visit=f"V{minutes}", birth_date=born, at=local)
        assert await world.receive(said) == [outcome], minutes
    assert len(await world.alerts()) == 1


async def nothing_is_due_twice_or_never(encompass: Encompass, sunday: date, midnight: datetime) -> None:
    """Whoever is 17 when it happens is told of, whoever is 18 is not; the night's jobs send and ring once."""
    clock, born = encompass.world.clock, sunday.replace(year=sunday.year - 18)
    for number, at in enumerate((midnight - timedelta(minutes=1), midnight)):
        clock.move_to(at + timedelta(minutes=5))
        said = half_term(
            incident_id=f"ZF1/2026/000{number}",
            occurred_at=at.isoformat(),
            reported_at=(at + timedelta(minutes=4)).isoformat(),
            excluded_recipients=[],
            children=[child("k1", "Casey", birth_date=born.isoformat(), establishments=at_school("900001"))],
        )
        await encompass.receive(said)
    bell = datetime.combine(sunday + timedelta(days=1), time(8, 35), LONDON).astimezone(UTC)
    rung_at = None
    while clock.now() < bell + timedelta(hours=2):
        await encompass.run_jobs()
        await encompass.run_jobs()
        rings = [task for task in await encompass.tasks() if task.kind is TaskKind.RING_SCHOOL]
        assert len(rings) <= 1
        rung_at = rung_at or (clock.now() if rings else None)
        step = timedelta(minutes=95)
        clock.advance(step if clock.now() + step < bell else min(timedelta(minutes=5), abs(bell - clock.now()) or step))
        if rings and clock.now() > bell + timedelta(minutes=5):
            break
    assert rung_at == bell
    [notice] = (await encompass.notices()).values()
    assert notice.state is NoticeState.SENT and notice.due_by == bell
    audit = table(AuditRow).c
    async with encompass.world.database.reading() as connection:
        acts = list((await connection.execute(select(audit.action).where(audit.subject == notice.id))).scalars())
    assert acts.count("notice.sent") == 1 and acts.count("ring_school.asked") == 1
