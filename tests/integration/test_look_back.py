"""Invariant 5: a list change and a visit in flight cannot miss each other."""

from __future__ import annotations

import asyncio
import random
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import delete, text

from broker.consumers.attendance import AttendanceConsumer
from broker.consumers.loop import Batch
from broker.jobs.runner import JobOptions, JobRunner
from broker.list_upload import upload_children
from broker.storage import child_lists, handled, jobs
from broker.storage.handled import Place
from broker.storage.tables import AuthorityRow, table
from schemas.alert import ReplyOutcome
from schemas.record import LogRecord, Partition, PositionOutcome
from tests.world import CASEY, CHILDREN_COLUMNS, LOG_ID, World, hl7, open_world

PAIRS = 400


def _runner(world: World) -> JobRunner:
    return JobRunner(world.database, world.keyring, world.clock, world.rules, JobOptions())


async def _run_jobs(world: World) -> None:
    while await _runner(world).run_once():
        pass


async def test_scenario_q_a_child_listed_after_the_visit_is_found_once_and_marked_late(world: World) -> None:
    await world.receive(hl7())
    await world.list_children(CASEY)

    await _run_jobs(world)
    await _run_jobs(world)

    [alert] = await world.alerts()
    assert alert.alert.late
    assert "late" in alert.alert.reason
    assert [reply.outcome for reply in await world.replies()].count(ReplyOutcome.MATCH) == 1


async def test_an_old_visit_is_not_dug_up(world: World) -> None:
    await world.receive(hl7())
    world.clock.advance(world.rules.look_back * 1.01)
    await world.list_children(CASEY)
    await _run_jobs(world)
    assert await world.alerts() == []


async def test_a_late_alert_lists_every_plan(world: World) -> None:
    await world.receive(hl7())
    await world.list_children(CASEY, CASEY.replace("child_protection_plan", "looked_after_child"))
    await _run_jobs(world)
    [alert] = await world.alerts()
    assert len(alert.alert.plans) == 2


async def test_a_visit_whose_first_message_could_not_be_decided_is_found_by_what_its_second_says(world: World) -> None:
    """The visit's row was opened with what the first says, which is no part of the visit then."""
    await world.list_children(CASEY)
    authorities = table(AuthorityRow)
    async with world.database.writing() as connection:
        await connection.execute(delete(authorities).where(authorities.c.code == "706"))
    said_next = hl7(nhs_number="9990000026", given="ALMA", birth_date=date(2014, 5, 6))
    assert await world.receive(hl7(), said_next) == [PositionOutcome.QUARANTINED, PositionOutcome.NO_RECORD]

    alma = "L2,9990000026,Tester,Alma,2014-05-06,ZZ99 1AA,child_protection_plan,2026-01-10,,W7,East"
    await world.list_children(alma, authority="707")
    await _run_jobs(world)

    [alert] = await world.alerts("707")
    assert (alert.alert.late, alert.alert.child.nhs_number) == (True, "9990000026")


async def test_an_unchanged_list_leaves_no_work(world: World) -> None:
    assert (await world.list_children(CASEY)).changed == 1
    await _run_jobs(world)
    report = await world.list_children(CASEY)
    assert (report.changed, report.was_known) == (0, True)
    assert await _runner(world).run_once() == 0


async def test_the_job_waits_for_a_visit_that_began_after_the_list_change_and_could_not_see_it(
    postgres_url: str, tmp_path: Path
) -> None:
    """The narrow case: the visit's transaction is younger than the list change's, reads lists before that commits,
    and is still open when the job could run. A barrier taken from the list change's own transaction id misses it."""
    async with open_world(postgres_url, tmp_path) as world:
        owner, entry_id = "authority:706", "e1"
        async with world.database.writing() as listing:
            await listing.execute(text("SELECT pg_current_xact_id()"))
            async with world.database.writing() as visiting:
                await handled.mark_handled(visiting, [b"m1"], world.clock.now())
                unseen = await child_lists.load_entries(visiting, world.keyring, [entry_id])
                await jobs.add_jobs(listing, "look_back", [("j1", owner, entry_id)], world.clock.now())
                await listing.commit()
                assert unseen == []
                assert await _claim(world) == []
                assert await _claim(world) == []
            assert [job.id for job in await _claim(world)] == ["j1"]


async def _claim(world: World) -> list[jobs.ClaimedJob]:
    async with world.database.writing() as connection:
        await jobs.set_barriers(connection, world.clock.now())
    async with world.database.writing() as connection:
        return await jobs.claim_jobs(connection, jobs_max=10, lease=world.rules.escalation, now=world.clock.now())


async def test_400_racing_pairs_of_listed_and_attends_all_alert_once(postgres_url: str, tmp_path: Path) -> None:
    async with open_world(postgres_url, tmp_path) as world:
        working = asyncio.Event()
        runner = _runner(world)
        working_on = asyncio.create_task(_keep_running(runner, working))
        for start in range(0, PAIRS, 20):
            pairs = range(start, start + 20)
            await asyncio.gather(*(_race(world, pair) for pair in pairs))
        working.set()
        await working_on
        await _run_jobs(world)
        alerts = await world.alerts()
        assert len(alerts) == PAIRS
        assert len({alert.visit_id for alert in alerts}) == PAIRS
        late = sum(alert.alert.late for alert in alerts)
        # Both ways of being found must really have happened, or nothing raced.
        assert 0 < late < PAIRS


async def _keep_running(runner: JobRunner, until: asyncio.Event) -> None:
    while not until.is_set():
        await runner.run_once()
        await asyncio.sleep(0.005)


async def _race(world: World, pair: int) -> None:
    number = _nhs_number(pair)
    row = f"L{pair},{number},Tester,Casey,2015-03-02,,child_protection_plan,2026-01-10,,W1,North"
    file = f"{CHILDREN_COLUMNS}\n{row}\n".encode()
    message = hl7(nhs_number=number, visit=f"V{pair}", patient=f"K{pair}")

    async def list_child() -> None:
        await asyncio.sleep(random.random() * 0.01)
        await upload_children(
            world.database, world.keyring, world.clock, authority="706", file=file, uploaded_by="test"
        )

    async def attend() -> None:
        await asyncio.sleep(random.random() * 0.01)
        await _handle_alone(world, message, partition=pair + 1)

    await asyncio.gather(list_child(), attend())


async def _handle_alone(world: World, message: bytes, *, partition: int) -> None:
    """One message in a partition of its own, as another worker would handle it."""
    part = Partition("attendances", partition)
    async with world.database.writing() as connection:
        place = Place(log_id=LOG_ID, first_offset=0, next_offset=0, stopped_cleanly=True)
        await handled.take_partition(connection, "attendances", part, place, known=None, now=world.clock.now())
    record = LogRecord(partition=part, offset=0, key=None, value=message, headers={}, appended_at=world.clock.now())
    consumer = AttendanceConsumer(world.database, world.log, world.keyring, world.clock, world.rules)
    batch = Batch(group="attendances", partition=part, log_id=LOG_ID, records=[record], expected=0)
    await consumer.handle(batch)


def _nhs_number(pair: int) -> str:
    """The pair-th valid number of the 999 range."""
    found = -1
    for body in range(999000000, 999999999):
        check = (11 - sum(int(digit) * (10 - place) for place, digit in enumerate(str(body))) % 11) % 11
        if check != 10:
            found += 1
            if found == pair:
                return f"{body}{check}"
    raise AssertionError(pair)


RACES_OF_THREE = 24


async def test_a_merge_a_list_change_and_an_attendance_that_race_never_miss_each_other(
    postgres_url: str, tmp_path: Path
) -> None:
    """Three workers at once: a visit of somebody unknown, the merge into a child, and the list that has the child."""
    async with open_world(postgres_url, tmp_path) as world:
        for start in range(0, RACES_OF_THREE, 8):
            await asyncio.gather(
                *(_race_three(world, number) for number in range(start, start + 8)), _runner(world).run_once()
            )
        await _run_jobs(world)
        found = await world.alerts()
        assert len({alert.visit_id for alert in found}) == len(found) == RACES_OF_THREE
        assert {alert.withdrawn_at for alert in found} == {None}


async def _race_three(world: World, number: int) -> None:
    person, unknown, visit = f"M{number}", f"N{number}", f"W{number}"
    nhs_number = _nhs_number(1000 + number)
    row = CASEY.replace("L1", f"M{number}").replace("9990000018", nhs_number)
    file = f"{CHILDREN_COLUMNS}\n{row}\n".encode()
    attendance = hl7(patient=unknown, visit=visit, nhs_number="", family="UNKNOWN", given="CHILD", birth_date=None)
    merge = hl7("A40", patient=person, visit="", nhs_number=nhs_number) + f"MRG|{unknown}^^^RZ1^MR\r".encode()

    async def list_child() -> None:
        await asyncio.sleep(random.random() * 0.01)
        await upload_children(
            world.database, world.keyring, world.clock, authority="706", file=file, uploaded_by="test"
        )

    async def hear(message: bytes, partition: int) -> None:
        await asyncio.sleep(random.random() * 0.01)
        await _handle_alone(world, message, partition=partition)

    await asyncio.gather(list_child(), hear(attendance, 5000 + 2 * number), hear(merge, 5001 + 2 * number))


@pytest.mark.soak
async def test_4000_racing_pairs(postgres_url: str, tmp_path: Path) -> None:
    async with open_world(postgres_url, tmp_path) as world:
        for start in range(0, 4000, 20):
            await asyncio.gather(*(_race(world, pair) for pair in range(start, start + 20)), _runner(world).run_once())
        await _run_jobs(world)
        assert len({alert.visit_id for alert in await world.alerts()}) == len(await world.alerts())


async def test_an_entry_that_changes_again_while_its_look_back_waits_is_still_looked_back_for_from_the_first(
    world: World,
) -> None:
    await world.receive(hl7())
    world.clock.advance(world.rules.look_back * 0.9)
    await world.list_children(CASEY)
    world.clock.advance(world.rules.look_back * 0.2)
    await world.list_children(CASEY.replace(",North", ",South"))
    await _run_jobs(world)
    [alert] = await world.alerts()
    assert alert.alert.late
