"""The consume loop: what it does when things go wrong. The log is in memory, the database is real."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.errors import LogError
from adapters.kafka import KafkaLog, KafkaLogReader
from adapters.kafka_options import KafkaOptions
from adapters.sqlite_log import SqliteLog, SqliteLogOptions, SqliteLogReader
from broker import topics
from broker.consumers.loop import Batch, ConsumeLoop, Handler, LoopOptions, is_outage
from broker.ports import Clock, Log, LogReader
from broker.storage import database as database_module
from broker.storage import handled, ledger, quarantine
from broker.storage.database import Database
from schemas.record import LogRecord, Partition, PartitionExtent, PositionOutcome
from tests.conftest import Kafka
from tests.engines import create_topic
from tests.fakes import MemoryLog, MemoryLogReader
from tests.world import CASEY, World, hl7, open_world

TOPIC = topics.ATTENDANCES


@pytest.fixture
async def sqlite_world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(f"sqlite+aiosqlite:///{tmp_path / 'broker.sqlite'}", tmp_path) as opened:
        await opened.list_children(CASEY)
        yield opened


@pytest.fixture
async def log() -> AsyncIterator[MemoryLog]:
    made = MemoryLog(partitions=1)
    made.create_topic(TOPIC, 1)
    yield made
    await made.close()


@asynccontextmanager
async def consuming(
    world: World, log: MemoryLog, handler: Handler | None = None, records_max: int = 500
) -> AsyncIterator[ConsumeLoop]:
    reader = MemoryLogReader(log, topic=TOPIC, group="attendances")
    options = LoopOptions(group="attendances", records_max=records_max, poll_wait_s=0.02, contact_interval_s=0.05)
    loop = ConsumeLoop(reader, handler or world.consumer, world.database, world.clock, options)
    running = asyncio.create_task(loop.run())
    try:
        yield loop
    finally:
        loop.stop()
        await running


async def until(condition: Callable[[], object], limit_s: float = 20) -> None:
    async with asyncio.timeout(limit_s):
        while True:
            outcome = condition()
            if asyncio.iscoroutine(outcome):
                outcome = await outcome
            if outcome:
                return
            await asyncio.sleep(0.02)


async def send(log: MemoryLog, *messages: bytes) -> None:
    for message in messages:
        await log.append(TOPIC, key=b"k", value=message, headers={})


async def settled(world: World, log: MemoryLog) -> ledger.TopicLedger:
    async with world.database.reading() as connection:
        return await ledger.count_topic(connection, "attendances", TOPIC, await log.extents(TOPIC))


def has_settled(world: World, log: MemoryLog, count: int) -> Callable[[], object]:
    async def check() -> bool:
        counted = await settled(world, log)
        return counted.waiting == 0 and sum(counted.outcomes.values()) == count

    return check


class Troubled:
    """The real handler behind something that goes wrong."""

    def __init__(self, world: World, trouble: Callable[[Batch], None]) -> None:
        self._consumer = world.consumer
        self._trouble = trouble
        self.sizes: list[int] = []

    async def handle(self, batch: Batch) -> int:
        self.sizes.append(len(batch.records))
        self._trouble(batch)
        return await self._consumer.handle(batch)

    async def quarantine(self, batch: Batch, reason: str) -> int:
        return await self._consumer.quarantine(batch, reason)


async def test_an_outage_pauses_and_nothing_is_quarantined(sqlite_world: World, log: MemoryLog) -> None:
    left = [3]

    def away(_: Batch) -> None:
        if left[0]:
            left[0] -= 1
            raise ConnectionError

    await send(log, hl7())
    async with consuming(sqlite_world, log, Troubled(sqlite_world, away)):
        await until(has_settled(sqlite_world, log, 1))
    assert len(await sqlite_world.alerts()) == 1
    assert (await settled(sqlite_world, log)).outcomes == {"alerted": 1}


async def test_what_the_database_refuses_is_found_by_halving_and_costs_only_itself(
    sqlite_world: World, log: MemoryLog
) -> None:
    def refuse(batch: Batch) -> None:
        if any(b"POISON" in record.value for record in batch.records):
            raise DBAPIError("INSERT", None, ValueError("refused"))

    messages = [hl7(visit=f"V{number}") for number in range(7)]
    messages.insert(4, hl7(visit="V99", complaint="POISON"))
    await send(log, *messages)
    handler = Troubled(sqlite_world, refuse)
    async with consuming(sqlite_world, log, handler):
        await until(has_settled(sqlite_world, log, 8))
    assert handler.sizes[0] == 8
    assert (await settled(sqlite_world, log)).outcomes == {"alerted": 7, "quarantined": 1}
    async with sqlite_world.database.reading() as connection:
        [item] = await quarantine.list_open(connection, rows_max=10)
    assert (item.offset, item.reason) == (4, "refused_by_the_database")


async def test_a_batch_the_database_never_gets_done_in_time_is_halved_and_nothing_is_quarantined(
    sqlite_world: World, log: MemoryLog
) -> None:
    def too_much(batch: Batch) -> None:
        if len(batch.records) > 2:
            raise TimeoutError

    await send(log, *(hl7(visit=f"V{number}") for number in range(8)))
    handler = Troubled(sqlite_world, too_much)
    async with consuming(sqlite_world, log, handler):
        await until(has_settled(sqlite_world, log, 8))
    assert handler.sizes[:3] == [8, 8, 8]
    assert (await settled(sqlite_world, log)).outcomes == {"alerted": 8}


class Mute(MemoryLogReader):
    """A reader whose log answers every question, and that delivers nothing once it is mute."""

    is_mute = False

    async def poll(self, *, records_max: int, wait_s: float) -> dict[Partition, Sequence[LogRecord]]:
        """Nothing, as if there were nothing."""
        if self.is_mute:
            await asyncio.sleep(wait_s)
            return {}
        return await super().poll(records_max=records_max, wait_s=wait_s)


async def test_a_reader_that_delivers_nothing_of_what_the_log_holds_is_no_sign_of_life(
    sqlite_world: World, log: MemoryLog
) -> None:
    reader = Mute(log, topic=TOPIC, group="attendances")
    options = LoopOptions(group="attendances", poll_wait_s=0.02, contact_interval_s=0.05)
    loop = ConsumeLoop(reader, sqlite_world.consumer, sqlite_world.database, sqlite_world.clock, options)
    running = asyncio.create_task(loop.run())
    await send(log, hl7(visit="V1"))
    await until(has_settled(sqlite_world, log, 1))
    alive_at = loop.alive_at
    await until(lambda: loop.alive_at > alive_at)  # nothing waits: an answer of the log is life
    reader.is_mute = True
    await asyncio.sleep(0.2)  # the poll under way is over
    await send(log, hl7(visit="V2"))
    await asyncio.sleep(0.2)
    alive_at = loop.alive_at
    await asyncio.sleep(0.3)
    assert (loop.alive_at, loop.worked_at) == (alive_at, alive_at)
    reader.is_mute = False
    await until(has_settled(sqlite_world, log, 2))
    await until(lambda: loop.alive_at > alive_at)
    loop.stop()
    await running


async def test_after_an_unclean_stop_messages_run_alone_and_the_third_attempt_quarantines(
    sqlite_world: World, log: MemoryLog
) -> None:
    class Killed(BaseException):
        """The process dies: nothing of it runs any further."""

    def die(batch: Batch) -> None:
        if any(b"POISON" in record.value for record in batch.records):
            raise Killed

    await send(log, hl7(visit="V1"), hl7(visit="V2", complaint="POISON"), hl7(visit="V3"))
    for _ in range(3):
        handler = Troubled(sqlite_world, die)
        with pytest.raises(Killed):
            await _run_and_die(sqlite_world, log, handler)
    handler = Troubled(sqlite_world, die)
    async with consuming(sqlite_world, log, handler):
        await until(has_settled(sqlite_world, log, 3))
    assert set(handler.sizes) == {1}
    assert (await settled(sqlite_world, log)).outcomes == {"alerted": 2, "quarantined": 1}
    async with sqlite_world.database.reading() as connection:
        [item] = await quarantine.list_open(connection, rows_max=10)
    assert item.reason == "ended_the_process_repeatedly"


async def _run_and_die(world: World, log: MemoryLog, handler: Handler) -> None:
    reader = MemoryLogReader(log, topic=TOPIC, group="attendances")
    options = LoopOptions(group="attendances", poll_wait_s=0.02)
    await ConsumeLoop(reader, handler, world.database, world.clock, options).run()


async def test_after_a_clean_stop_batches_are_whole(sqlite_world: World, log: MemoryLog) -> None:
    await send(log, hl7(visit="V1"))
    async with consuming(sqlite_world, log):
        await until(has_settled(sqlite_world, log, 1))
    await send(log, hl7(visit="V2"), hl7(visit="V3"))
    handler = Troubled(sqlite_world, lambda _: None)
    async with consuming(sqlite_world, log, handler):
        await until(has_settled(sqlite_world, log, 3))
    assert handler.sizes == [2]


async def test_a_recreated_topic_is_noticed_and_read_from_its_beginning(sqlite_world: World, log: MemoryLog) -> None:
    await send(log, hl7(visit="V1"), hl7(visit="V2"))
    async with consuming(sqlite_world, log):
        await until(has_settled(sqlite_world, log, 2))
    log.delete_topic(TOPIC)
    log.create_topic(TOPIC, 1)
    await send(log, *(hl7(visit=f"V{number}") for number in range(3, 8)))
    async with consuming(sqlite_world, log):
        await until(has_settled(sqlite_world, log, 7))
    async with sqlite_world.database.reading() as connection:
        assert await handled.count_gaps(connection) == 1
    assert (await settled(sqlite_world, log)).balances
    assert len(await sqlite_world.alerts()) == 7


async def test_a_log_that_lost_records_is_a_gap_and_is_read_again(sqlite_world: World, log: MemoryLog) -> None:
    await send(log, hl7(visit="V1"))
    async with consuming(sqlite_world, log):
        await until(has_settled(sqlite_world, log, 1))
    async with sqlite_world.database.writing() as connection:
        await connection.execute(text("UPDATE stored_offsets SET next_offset = 50"))
    await send(log, hl7(visit="V2"))
    async with consuming(sqlite_world, log):
        await until(has_settled(sqlite_world, log, 3))
    async with sqlite_world.database.reading() as connection:
        assert await handled.count_gaps(connection) == 1
    assert (await settled(sqlite_world, log)).outcomes == {"alerted": 2, "ignored": 1}


class Sleeper(ConsumeLoop):
    """A worker that sleeps between asking the log and asking the database where it stands."""

    def __init__(
        self, reader: LogReader, handler: Handler, database: Database, clock: Clock, options: LoopOptions
    ) -> None:
        super().__init__(reader, handler, database, clock, options)
        self.asked: list[Mapping[Partition, PartitionExtent]] = []
        self.woken = asyncio.Event()

    async def on_assigned(self, extents: Mapping[Partition, PartitionExtent]) -> Mapping[Partition, int]:
        self.asked.append(extents)
        await self.woken.wait()
        return await super().on_assigned(extents)


def open_real_log(engine: str, topic: str, path: Path, server: Kafka) -> tuple[Log, Callable[[str], LogReader]]:
    """The log, and what opens a reader of a group of its own."""
    if engine == "sqlite":
        options = SqliteLogOptions(path=path / "log.sqlite", partitions=1)
        return SqliteLog(options), lambda group: SqliteLogReader(options, topic=topic, group=group, member=group)
    kafka = KafkaOptions(bootstrap_servers=server.bootstrap_servers)
    return KafkaLog(kafka), lambda name: KafkaLogReader(kafka, topic=topic, group=f"{topic}-{name}", member=name)


@pytest.mark.parametrize("engine", ["sqlite", "kafka"])
async def test_a_worker_that_slept_while_another_went_on_finds_no_gap(
    engine: str, sqlite_world: World, topic_name: str, tmp_path: Path, kafka_server: Kafka
) -> None:
    """Two groups of the log and one of the database: the other works on while the sleeper thinks it holds all."""
    world = sqlite_world
    log, open_reader = open_real_log(engine, topic_name, tmp_path, kafka_server)
    if isinstance(log, KafkaLog):
        await create_topic(kafka_server.bootstrap_servers, topic_name)
    options = LoopOptions(group="attendances", poll_wait_s=0.05)
    rest = (world.consumer, world.database, world.clock, options)
    sleeper, other = Sleeper(open_reader("sleeper"), *rest), ConsumeLoop(open_reader("other"), *rest)

    async def has_settled_all(count: int) -> bool:
        return len(await world.outcomes()) == count

    async def append(first: int, last: int) -> None:
        for number in range(first, last):
            await log.append(topic_name, key=b"k", value=hl7(visit=f"V{number}"), headers={})

    await append(0, 3)
    sleeping, working = asyncio.create_task(sleeper.run()), asyncio.create_task(other.run())
    await until(lambda: has_settled_all(3))
    await until(lambda: sleeper.asked)
    await append(3, 6)
    await until(lambda: has_settled_all(6))
    other.stop()
    await working
    sleeper.woken.set()
    await append(6, 7)
    await until(lambda: has_settled_all(7))
    sleeper.stop()
    await sleeping
    await log.close()
    assert [extents[Partition(topic_name, 0)].end for extents in sleeper.asked[:2]] in ([3, 6], [3, 7])
    assert await world.outcomes() == [PositionOutcome.ALERTED] * 7
    async with world.database.reading() as connection:
        assert await handled.count_gaps(connection) == 0
        [(_, _, place, _)] = await handled.load_all_places(connection)
    assert (place.next_offset, handled.GENERATION in place.log_id) == (7, False)


async def test_a_gap_is_a_place_that_stands_still_outside_two_answers_of_the_log(
    sqlite_world: World, log: MemoryLog
) -> None:
    database, partition = sqlite_world.database, Partition(TOPIC, 0)
    reader, options = MemoryLogReader(log, topic=TOPIC, group="attendances"), LoopOptions(group="attendances")
    loop = ConsumeLoop(reader, sqlite_world.consumer, database, sqlite_world.clock, options)
    await send(log, hl7())

    async def answer(end: int, stored: int) -> int | None:
        async with database.writing() as connection:
            await connection.execute(text(f"UPDATE stored_offsets SET next_offset = {stored}"))
        [extent] = (await log.extents(TOPIC)).values()
        found = {partition: msgspec.structs.replace(extent, end=end)}
        try:
            return (await loop.on_assigned(found))[partition]
        except LogError:
            return None

    assert await answer(end=1, stored=0) == 0
    assert await answer(end=1, stored=4) is None, "seen once"
    assert await answer(end=3, stored=5) is None, "another worker moved it: the second answer was the older"
    assert await answer(end=5, stored=5) == 5, "no gap, it was seen too early"
    assert await answer(end=4, stored=5) is None
    async with database.reading() as connection:
        assert await handled.count_gaps(connection) == 0
    assert await answer(end=4, stored=5) == 0, "a gap: read again from the beginning"
    async with database.reading() as connection:
        assert await handled.count_gaps(connection) == 1


class Away(Database):
    """A database whose writing fails while it is away."""

    is_away = True

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        if self.is_away:
            raise ConnectionError
        async with super().writing() as connection:
            yield connection


async def test_partitions_taken_after_an_outage_of_the_database_are_asked_for_anew(
    sqlite_world: World, log: MemoryLog
) -> None:
    database = Away(sqlite_world.database.url)
    reader, options = MemoryLogReader(log, topic=TOPIC, group="attendances"), LoopOptions(group="attendances")
    loop = Sleeper(reader, sqlite_world.consumer, database, sqlite_world.clock, options)
    loop.woken.set()
    running = asyncio.create_task(loop.run())
    await until(lambda: loop.asked)
    alive_at = loop.alive_at
    await send(log, hl7(visit="V1"), hl7(visit="V2"))
    await until(lambda: len(loop.asked) > 2)
    assert loop.alive_at > alive_at, "an outage is no silence"
    database.is_away = False
    await until(has_settled(sqlite_world, log, 2))
    loop.stop()
    await running
    await database.close()
    assert loop.asked[-1][Partition(TOPIC, 0)].end == 2


async def test_a_worker_that_slept_while_it_took_a_partition_does_not_set_the_group_back(
    sqlite_world: World, log: MemoryLog
) -> None:
    partition, now = Partition(TOPIC, 0), sqlite_world.clock.now()
    await send(log, hl7())
    async with consuming(sqlite_world, log):
        await until(has_settled(sqlite_world, log, 1))
    async with sqlite_world.database.reading() as connection:
        [seen] = (await handled.load_places(connection, "attendances", [partition])).values()
    await send(log, hl7(visit="V2"))
    async with consuming(sqlite_world, log):
        await until(has_settled(sqlite_world, log, 2))
    for known in (seen, None):
        with pytest.raises(handled.Fenced):
            async with sqlite_world.database.writing() as connection:
                await handled.take_partition(connection, "attendances", partition, seen, known=known, now=now)
    async with sqlite_world.database.reading() as connection:
        [(_, _, place, _)] = await handled.load_all_places(connection)
    assert (seen.next_offset, place.next_offset) == (1, 2)


async def test_a_database_restored_from_an_older_backup_loses_nothing(
    sqlite_world: World, log: MemoryLog, tmp_path: Path
) -> None:
    backup, live = tmp_path / "backup.sqlite", tmp_path / "broker.sqlite"
    await send(log, hl7(visit="V1"))
    async with consuming(sqlite_world, log):
        await until(has_settled(sqlite_world, log, 1))
    await _checkpoint(sqlite_world.database)
    shutil.copy(live, backup)
    await send(log, hl7(visit="V2"), hl7(visit="V3"))
    async with consuming(sqlite_world, log):
        await until(has_settled(sqlite_world, log, 3))
    ids = {alert.alert.alert_id for alert in await sqlite_world.alerts()}
    await sqlite_world.database.close()
    for name in ("broker.sqlite-wal", "broker.sqlite-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    shutil.copy(backup, live)

    async with open_world(f"sqlite+aiosqlite:///{live}", tmp_path) as restored:
        async with consuming(restored, log):
            await until(has_settled(restored, log, 3))
        assert {alert.alert.alert_id for alert in await restored.alerts()} == ids
        assert (await settled(restored, log)).balances


async def _checkpoint(database: Database) -> None:
    async with database.connecting() as connection:
        await connection.execute(text("COMMIT"))
        await connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))


async def test_a_database_set_back_under_a_running_consumer_is_taken_up_again(
    sqlite_world: World, log: MemoryLog
) -> None:
    await send(log, hl7(visit="V1"), hl7(visit="V2"))
    async with consuming(sqlite_world, log):
        await until(has_settled(sqlite_world, log, 2))
        async with sqlite_world.database.writing() as connection:
            await connection.execute(text("DELETE FROM handled_positions WHERE position = 1"))
            await connection.execute(text("UPDATE stored_offsets SET next_offset = 1"))
        await send(log, hl7(visit="V3"))
        await until(has_settled(sqlite_world, log, 3))
    assert await sqlite_world.outcomes() == [
        PositionOutcome.ALERTED,
        PositionOutcome.IGNORED,
        PositionOutcome.ALERTED,
    ]


async def test_a_member_that_lost_its_partition_lets_the_other_go_on(sqlite_world: World, log: MemoryLog) -> None:
    async with consuming(sqlite_world, log):
        await send(log, hl7(visit="V1"))
        await until(has_settled(sqlite_world, log, 1))
        async with consuming(sqlite_world, log):
            await send(log, *(hl7(visit=f"V{number}") for number in range(2, 20)))
            await until(has_settled(sqlite_world, log, 19))
    assert (await settled(sqlite_world, log)).outcomes == {"alerted": 19}


async def test_offsets_that_hold_no_record_are_counted_as_skipped(sqlite_world: World) -> None:
    first = sqlite_world.batch([hl7(visit="V1"), hl7(visit="V2")])
    partition = Partition(TOPIC, 0)
    await sqlite_world.take_partition()
    gapped = Batch(group=first.group, partition=partition, log_id=first.log_id, records=first.records[1:], expected=0)
    await sqlite_world.consumer.handle(gapped)
    async with sqlite_world.database.reading() as connection:
        [(_, _, place, _)] = await handled.load_all_places(connection)
    assert (place.next_offset, place.skipped) == (2, 1)


@pytest.mark.parametrize("statement", ["SELECT CAST('x' AS int)", "SELECT 1/0", "SELECT chr(0)"])
async def test_postgres_refusals_of_data_are_no_outage(postgres_url: str, statement: str) -> None:
    database = Database(postgres_url)
    with pytest.raises(DBAPIError) as refused:
        async with database.reading() as connection:
            await connection.execute(text(statement))
    assert not is_outage(refused.value)
    await database.close()


async def test_a_value_that_postgres_cannot_take_is_no_outage(postgres_url: str) -> None:
    database = Database(postgres_url)
    for value in (2**80, "NUL \x00 here", "surrogate \ud800"):
        with pytest.raises(Exception) as refused:
            async with database.writing() as connection:
                kind = "bigint" if isinstance(value, int) else "text"
                await connection.execute(text(f"SELECT CAST(:value AS {kind})"), {"value": value})
        assert not is_outage(refused.value), value
    await database.close()


async def test_a_postgres_that_is_not_there_is_an_outage() -> None:
    database = Database("postgresql+asyncpg://nobody@127.0.0.1:1/none")
    with pytest.raises(Exception) as refused:
        async with database.reading():
            pass
    assert is_outage(refused.value)
    await database.close()


@pytest.mark.parametrize(
    ("user", "database", "statement"),
    [
        ("postgres", "", "SELECT nothing FROM handled_markers"),
        ("postgres", "_missing", "SELECT 1"),
        ("nobody_we_know", "", "SELECT 1"),
    ],
)
async def test_a_postgres_that_is_not_set_up_says_nothing_about_the_data(
    postgres_url: str, user: str, database: str, statement: str
) -> None:
    opened = Database(postgres_url.replace("postgres@", f"{user}@") + database)
    with pytest.raises(DBAPIError) as refused:
        async with opened.reading() as connection:
            await connection.execute(text(statement))
    assert is_outage(refused.value)
    await opened.close()


async def test_a_locked_sqlite_is_an_outage(sqlite_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "SQLITE_BUSY_TIMEOUT_MS", 100)
    other = sqlite3.connect(sqlite_world.directory / "broker.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    impatient = Database(sqlite_world.database.url)
    with pytest.raises(Exception) as refused:
        async with impatient.writing() as connection:
            await connection.execute(text("DELETE FROM jobs"))
    other.execute("ROLLBACK")
    other.close()
    assert is_outage(refused.value)
    await impatient.close()
