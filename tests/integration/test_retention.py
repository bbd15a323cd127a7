"""What is not kept: who came and was on no list, what was said to nobody's name, and what the log had read."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import msgspec
from sqlalchemy import func, select

from adapters.sqlite_log import SqliteLog, SqliteLogOptions, SqliteLogReader
from broker.bootstrap.safety import check_safety
from broker.consumers.loop import Batch, ConsumeLoop, LoopOptions
from broker.jobs.retention import RetentionRules, trim_log
from broker.jobs.runner import JobOptions, JobRunner
from broker.settings import Environment
from broker.storage import handled, ledger, retention
from broker.storage.handled import Place
from broker.storage.tables import (
    Delivery,
    HandledMarker,
    HandledPosition,
    Reply,
    Visit,
    VisitBlock,
    VisitMessage,
    table,
)
from broker.topics import ATTENDANCES as TOPIC
from broker.topics import REFERRALS_GROUP
from schemas.record import Partition, PositionOutcome
from tests.factories import make_settings
from tests.world import CASEY, World, hl7


def stranger(visit: str = "V9", nhs_number: str = "9990000034", patient: str = "K9") -> bytes:
    return hl7(nhs_number=nhs_number, family="NOBODY", given="ALMA", visit=visit, patient=patient)


async def count(world: World, model: type, **where: object) -> int:
    found = table(model)
    statement = select(func.count()).select_from(found)
    for name, value in where.items():
        statement = statement.where(found.c[name] == value)
    async with world.database.reading() as connection:
        return int((await connection.execute(statement)).scalar_one())


async def run_jobs(world: World) -> None:
    runner = JobRunner(world.database, world.keyring, world.clock, world.rules, JobOptions())
    for _ in range(10):
        await runner.run_once()


async def test_who_was_on_no_list_is_reduced_to_keys_when_the_look_back_has_passed(world: World) -> None:
    await world.list_children(CASEY)
    message = stranger()
    unnumbered = stranger(visit="V8", nhs_number="", patient="K8")
    await world.receive(hl7(), message, unnumbered)
    await run_jobs(world)
    assert await count(world, VisitMessage) == 3
    world.clock.advance(world.rules.look_back + timedelta(hours=2))
    await run_jobs(world)

    assert await count(world, VisitMessage) == 1, "Casey's visit stays"
    assert await count(world, VisitBlock) == 0
    visits = table(Visit)
    async with world.database.reading() as connection:
        rows = (await connection.execute(select(visits).where(visits.c.reply_outcome != "match"))).all()
    assert len(rows) == 2
    for row in rows:
        assert (row.patient_index, row.nhs_index, row.birth_index, row.mother_index) == (None,) * 4
    assert (await count(world, HandledMarker), await count(world, HandledPosition)) == (3, 3)
    assert await world.receive(message) == [PositionOutcome.IGNORED], "the same bytes are still known"


async def test_a_later_message_of_a_reduced_visit_begins_it_anew(world: World) -> None:
    await world.receive(hl7())
    world.clock.advance(world.rules.look_back + timedelta(hours=2))
    await run_jobs(world)
    assert await count(world, VisitMessage) == 0
    await world.list_children(CASEY)
    await run_jobs(world)
    assert await world.receive(hl7("A08")) == [PositionOutcome.ALERTED]
    assert await count(world, Visit) == 1


async def test_a_look_back_that_waits_still_finds_who_came_before_its_list_changed(world: World) -> None:
    await world.receive(hl7())
    world.clock.advance(world.rules.look_back - timedelta(hours=1))
    await world.list_children(CASEY)
    world.clock.advance(timedelta(days=2))  # an outage of the jobs part
    runner = JobRunner(world.database, world.keyring, world.clock, world.rules, JobOptions())
    for _ in range(5):
        await runner._drop_old()
    assert await count(world, VisitMessage) == 1
    await run_jobs(world)
    [alert] = await world.alerts()
    assert alert.alert.late


async def test_a_visit_that_alerts_while_the_retention_looks_at_it_stays(world: World) -> None:
    """The look-back commits after the visit was found and before it is locked: PostgreSQL would not look again."""
    await world.receive(hl7())
    heard_before = world.clock.now() + timedelta(seconds=1)
    async with world.database.reading() as connection:
        found = await retention.find_reducible(connection, heard_before=heard_before, rows_max=10)
    assert len(found) == 1
    await world.list_children(CASEY)
    await world.run_jobs()
    assert len(await world.alerts()) == 1
    async with world.database.writing() as connection:
        assert await retention.reduce_found(connection, found, heard_before=heard_before) == []
    assert await count(world, VisitMessage) == 1


async def test_what_a_reply_said_that_found_nobody_is_dropped_once_it_is_sent(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7(), stranger())
    world.clock.advance(timedelta(days=8))
    await run_jobs(world)
    assert await count(world, Reply, sealed=b"") == 0, "it is still on its way"
    deliveries = table(Delivery)
    async with world.database.writing() as connection:
        await connection.execute(deliveries.update().values(state="sent"))
    world.clock.advance(timedelta(hours=2))
    await run_jobs(world)
    assert await count(world, Reply) == 2
    assert await count(world, Reply, sealed=b"", outcome="no_record_found") == 1
    assert [reply.outcome.value for reply in await world.replies()] == ["match"]
    async with world.database.reading() as connection:
        assert (await ledger.count_alerts(connection)).balances


async def test_the_embedded_log_drops_what_is_old_and_read_and_the_consumer_sees_no_gap(
    world: World, tmp_path: Path
) -> None:
    options = SqliteLogOptions(path=tmp_path / "log.sqlite", partitions=1)
    log = SqliteLog(options)
    partition = Partition(TOPIC, 0)
    try:
        await log.create_topic(TOPIC, 1)
        for _ in range(6):
            await log.append(TOPIC, key=b"k", value=stranger(), headers={})
        extent = (await log.extents(TOPIC))[partition]
        async with world.database.writing() as connection:
            place = Place(log_id=extent.log_id, first_offset=0, next_offset=0, stopped_cleanly=True)
            await handled.take_partition(connection, "attendances", partition, place, known=None, now=world.clock.now())
        records = await log.read_from(partition, 0, records_max=4)
        batch = Batch(group="attendances", partition=partition, log_id=extent.log_id, records=records, expected=0)
        await world.consumer.handle(batch)
        appended_at = records[0].appended_at
        rules = RetentionRules()
        late = appended_at + timedelta(days=15)
        assert await trim_log(world.database, log, rules, late) == 0, "Operation Encompass has never read it"
        other = msgspec.structs.replace(place, next_offset=3)
        async with world.database.writing() as connection:
            await handled.take_partition(connection, REFERRALS_GROUP, partition, other, known=None, now=late)
        assert await trim_log(world.database, log, rules, late) == 3, "... and now all but what it has yet to read"
        async with world.database.writing() as connection:
            read = msgspec.structs.replace(place, next_offset=4)
            await handled.take_partition(connection, REFERRALS_GROUP, partition, read, known=other, now=late)
        assert await trim_log(world.database, log, rules, appended_at + timedelta(days=13)) == 0
        assert await trim_log(world.database, log, rules, late) == 1
        assert (await log.extents(TOPIC))[partition].first == 4, "what nobody has read stays"
        async with world.database.reading() as connection:
            topic = await ledger.count_topic(connection, "attendances", TOPIC, await log.extents(TOPIC))
        assert (topic.offered, topic.waiting, topic.balances) == (6, 2, True)

        reader = SqliteLogReader(options, topic=TOPIC, group="attendances", member="m1")
        loop = ConsumeLoop(
            reader, world.consumer, world.database, world.clock, LoopOptions(group="attendances", poll_wait_s=0.01)
        )
        await reader.start(loop)
        while len(await world.outcomes()) < 6:
            await loop._turn()
        await reader.close()
        async with world.database.reading() as connection:
            assert await handled.count_gaps(connection) == 0
            topic = await ledger.count_topic(connection, "attendances", TOPIC, await log.extents(TOPIC))
        assert (topic.waiting, topic.balances) == (0, True)
    finally:
        await log.close()


def test_a_log_that_is_kept_shorter_than_the_longest_outage_is_not_safe(tmp_path: Path) -> None:
    kept = make_settings(tmp_path, environment=Environment.PRODUCTION, log_retention_days=7, longest_outage_days=7)
    assert any("CPIS_LOG_RETENTION_DAYS" in problem for problem in check_safety(kept))
    longer = make_settings(tmp_path, environment=Environment.PRODUCTION)
    assert not any("CPIS_LOG_RETENTION_DAYS" in problem for problem in check_safety(longer))
