"""What a Log and a LogReader promise, stated once and held by every engine: memory, SQLite, Apache Kafka.

Run as a program, ``python -m tests.contract.test_log``, this file is a member of a consumer group in a process of
its own, which a test kills or stops with a signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import ssl
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from adapters.errors import LogGap, LogUnavailable, NotDurable
from adapters.kafka import KafkaLog, KafkaLogReader, ensure_topics
from adapters.kafka_options import KafkaOptions
from adapters.kafka_protocol import TopicsRequest
from adapters.sqlite_log import SqliteLog, SqliteLogOptions, SqliteLogReader
from broker.ports import Log, LogReader
from schemas.record import LogRecord, Partition, PartitionExtent
from tests.conftest import Kafka
from tests.engines import KafkaServer, free_port
from tests.fakes import MemoryLog, MemoryLogReader

Event = tuple[str, int, int, str]
"""What a member did: assigned, revoked or read; which partition; of a record its offset and value."""

LIMIT_S = 20.0


# A consumer that remembers


@dataclass
class Diary:
    """An Assignment that writes down what happens. ``starts`` are the stored offsets, which it moves as it reads.

    With ``from_end`` it starts every partition at its end instead.
    """

    from_end: bool = False
    starts: dict[Partition, int] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    extents: list[dict[Partition, PartitionExtent]] = field(default_factory=list)
    assigned: set[Partition] = field(default_factory=set)
    note: Callable[[Event], None] = lambda _event: None

    async def on_assigned(self, extents: Mapping[Partition, PartitionExtent]) -> Mapping[Partition, int]:
        assert not self.assigned & extents.keys(), "assigned twice"
        self.extents.append(dict(extents))
        self.assigned |= extents.keys()
        for partition in extents:
            self.write(("assigned", partition.number, 0, ""))
        return {
            partition: extent.end if self.from_end else self.starts.get(partition, extent.first)
            for partition, extent in extents.items()
        }

    async def on_revoked(self, partitions: Sequence[Partition]) -> None:
        assert self.assigned >= set(partitions), "revoked without having been assigned"
        self.assigned -= set(partitions)
        for partition in partitions:
            self.write(("revoked", partition.number, 0, ""))

    def take(self, found: Mapping[Partition, Sequence[LogRecord]]) -> list[LogRecord]:
        """Write down the records of a poll. None may be of a partition that is not assigned."""
        for partition, records in found.items():
            assert records, "a partition without records"
            assert partition in self.assigned, "a record of a partition that is not assigned"
            for record in records:
                self.write(("read", partition.number, record.offset, record.value.decode(errors="replace")[:40]))
            self.starts[partition] = records[-1].offset + 1
        return [record for records in found.values() for record in records]

    def write(self, event: Event) -> None:
        self.events.append(event)
        self.note(event)

    def values(self) -> list[str]:
        return [value for kind, _partition, _offset, value in self.events if kind == "read"]


async def read_until(
    reader: LogReader, diary: Diary, is_enough: Callable[[], bool], *, records_max: int = 100
) -> list[LogRecord]:
    """Poll until it is enough."""
    taken: list[LogRecord] = []
    async with asyncio.timeout(LIMIT_S):
        while not is_enough():
            taken += diary.take(await reader.poll(records_max=records_max, wait_s=0.1))
    return taken


async def read_records(reader: LogReader, diary: Diary, count: int) -> list[LogRecord]:
    taken: list[LogRecord] = []
    async with asyncio.timeout(LIMIT_S):
        while len(taken) < count:
            taken += diary.take(await reader.poll(records_max=100, wait_s=0.1))
    assert len(taken) == count
    return taken


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not is_so():  # noqa: ASYNC110  # what another process printed arrives in a list
            await asyncio.sleep(0.01)


# Members that can be killed and stopped


class Member(Protocol):
    """A member of a group that reads on its own. ``events`` is what it did."""

    events: list[Event]

    async def kill(self) -> None: ...
    async def pause(self) -> None: ...
    async def resume(self) -> None: ...


class ProcessMember:
    """A member in a process of its own: this file as a program."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.events: list[Event] = []
        self._process = process
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, settings: Mapping[str, object]) -> ProcessMember:
        command = [sys.executable, "-m", "tests.contract.test_log", json.dumps(settings)]
        return cls(await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE))

    async def kill(self) -> None:
        """SIGKILL."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._listening

    async def pause(self) -> None:
        """SIGSTOP."""
        self._process.send_signal(signal.SIGSTOP)

    async def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            kind, partition, offset, value = json.loads(line)
            self.events.append((kind, partition, offset, value))


class MemoryMember:
    """A member in this process. Paused, it does nothing until its group has given it up."""

    def __init__(self, log: MemoryLog, reader: MemoryLogReader, diary: Diary) -> None:
        self.events = diary.events
        self._log = log
        self._reader = reader
        self._polling = asyncio.Lock()
        self._running = asyncio.create_task(self._run(diary))

    async def kill(self) -> None:
        self._running.cancel()
        await asyncio.wait({self._running})
        self._reader.vanish()

    async def pause(self) -> None:
        await self._polling.acquire()
        self._log.expel(self._reader)

    async def resume(self) -> None:
        self._polling.release()

    async def _run(self, diary: Diary) -> None:
        await self._reader.start(diary)
        while True:
            async with self._polling:
                diary.take(await self._reader.poll(records_max=100, wait_s=0.05))


async def run_member(settings: Mapping[str, Any]) -> None:
    """Read for ever and print every event."""
    diary = Diary(from_end=settings["from"] == "end", note=lambda event: print(json.dumps(event), flush=True))
    topic, group, member = settings["topic"], settings["group"], settings["member"]
    reader: LogReader
    if "path" in settings:
        reader = SqliteLogReader(sqlite_options(Path(settings["path"])), topic=topic, group=group, member=member)
    else:
        options = kafka_options(settings["bootstrap_servers"], session_timeout_s=settings["session_timeout_s"])
        reader = KafkaLogReader(options, topic=topic, group=group, member=member)
    await reader.start(diary)
    while True:
        diary.take(await reader.poll(records_max=100, wait_s=0.1))


# The engines


class Engine(Protocol):
    """One engine, with what tests do to it. ``topic`` has four partitions and is new."""

    topic: str
    stopped_member_keeps_partitions: bool

    def open_log(self) -> Log: ...
    def open_reader(self, *, group: str = "group", member: str | None = None) -> LogReader: ...
    async def start_member(self, *, group: str = "group", from_end: bool = False) -> Member: ...
    async def make_topic(self) -> None: ...
    async def delete_topic(self) -> None: ...
    async def trim(self, partition: Partition, before: int) -> None: ...
    async def expel(self, reader: LogReader) -> None: ...
    def unreachable(self) -> contextlib.AbstractAsyncContextManager[None]: ...
    async def restart(self) -> None: ...
    async def close(self) -> None: ...


class Opened:
    """Closes what a test opened."""

    def __init__(self) -> None:
        self.topic = f"test-{uuid.uuid4().hex[:12]}"
        self._closing: list[Callable[[], Awaitable[None]]] = []

    def keep(self, close: Callable[[], Awaitable[None]]) -> None:
        self._closing.append(close)

    async def close(self) -> None:
        while self._closing:
            await self._closing.pop()()


class MemoryEngine(Opened):
    stopped_member_keeps_partitions = False

    def __init__(self) -> None:
        super().__init__()
        self._log = MemoryLog()

    def open_log(self) -> Log:
        return self._log

    def open_reader(self, *, group: str = "group", member: str | None = None) -> LogReader:
        return MemoryLogReader(self._log, topic=self.topic, group=group)

    async def start_member(self, *, group: str = "group", from_end: bool = False) -> Member:
        reader = MemoryLogReader(self._log, topic=self.topic, group=group)
        member = MemoryMember(self._log, reader, Diary(from_end=from_end))
        self.keep(member.kill)
        return member

    async def make_topic(self) -> None:
        self._log.create_topic(self.topic, 4)

    async def delete_topic(self) -> None:
        self._log.delete_topic(self.topic)

    async def trim(self, partition: Partition, before: int) -> None:
        self._log.trim(partition, before)

    async def expel(self, reader: LogReader) -> None:
        assert isinstance(reader, MemoryLogReader)
        self._log.expel(reader)

    @contextlib.asynccontextmanager
    async def unreachable(self) -> AsyncIterator[None]:
        self._log.is_reachable = False
        yield
        self._log.is_reachable = True

    async def restart(self) -> None:
        async with self.unreachable():
            await asyncio.sleep(0)


def sqlite_options(path: Path) -> SqliteLogOptions:
    return SqliteLogOptions(path=path, append_timeout_s=1.5, read_timeout_s=1.5, close_timeout_s=2.0)


class SqliteEngine(Opened):
    stopped_member_keeps_partitions = True

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.options = sqlite_options(directory / "log.sqlite3")
        self._operator = SqliteLog(self.options)
        self.keep(self._operator.close)

    def open_log(self) -> Log:
        log = SqliteLog(self.options)
        self.keep(log.close)
        return log

    def open_reader(self, *, group: str = "group", member: str | None = None) -> LogReader:
        reader = SqliteLogReader(self.options, topic=self.topic, group=group, member=member or "worker")
        self.keep(reader.close)
        return reader

    async def start_member(self, *, group: str = "group", from_end: bool = False) -> Member:
        settings = {
            "path": str(self.options.path),
            "topic": self.topic,
            "group": group,
            "member": "child",
            "from": "end" if from_end else "first",
        }
        member = await ProcessMember.start(settings)
        self.keep(member.kill)
        return member

    async def make_topic(self) -> None:
        await self._operator.create_topic(self.topic, 4)

    async def delete_topic(self) -> None:
        await self._operator.delete_topic(self.topic)

    async def trim(self, partition: Partition, before: int) -> None:
        await self._operator.trim(partition, before)

    async def expel(self, reader: LogReader) -> None:
        """Nothing takes the partitions of a living process."""

    @contextlib.asynccontextmanager
    async def unreachable(self) -> AsyncIterator[None]:
        """Another process never lets go of the writers' lock, and the file is not where it was."""
        path = self.options.path
        aside = path.with_name("aside")
        lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)
        path.rename(aside)
        yield
        aside.rename(path)
        os.close(lock)

    async def restart(self) -> None:
        """There is no server: what can be opened anew is opened by the test."""


def kafka_options(bootstrap_servers: str, *, session_timeout_s: float = 6.5) -> KafkaOptions:
    """The shortest session that a Kafka allows unless it is set up otherwise is 6 s."""
    return KafkaOptions(
        bootstrap_servers=bootstrap_servers,
        append_timeout_s=2.5,
        request_timeout_s=2.0,
        contact_timeout_s=1.5,
        session_timeout_s=session_timeout_s,
        heartbeat_s=0.3,
        rebalance_timeout_s=5.0,
        topic_check_s=0.3,
        metadata_age_max_s=1.0,
        close_timeout_s=2.0,
        fetch_wait_s=0.1,
    )


class KafkaEngine(Opened):
    stopped_member_keeps_partitions = False

    def __init__(self, server: Kafka, options: KafkaOptions) -> None:
        super().__init__()
        self.options = options
        self._server = server
        self._operator = KafkaLog(options)
        self.keep(self._operator.close)

    def open_log(self) -> Log:
        log = KafkaLog(self.options)
        self.keep(log.close)
        return log

    def open_reader(self, *, group: str = "group", member: str | None = None) -> LogReader:
        name = member or f"member-{uuid.uuid4().hex[:8]}"
        reader = KafkaLogReader(self.options, topic=self.topic, group=self.group(group), member=name)
        self.keep(reader.close)
        return reader

    def group(self, name: str) -> str:
        """Groups outlive a test."""
        return f"{self.topic}-{name}"

    async def start_member(self, *, group: str = "group", from_end: bool = False) -> Member:
        settings = {
            "bootstrap_servers": self.options.bootstrap_servers,
            "session_timeout_s": self.options.session_timeout_s,
            "topic": self.topic,
            "group": self.group(group),
            "member": "child",
            "from": "end" if from_end else "first",
        }
        member = await ProcessMember.start(settings)
        self.keep(member.kill)
        return member

    async def make_topic(self) -> None:
        await ensure_topics(self.options, {self.topic: 4}, replication_factor=1)

    async def delete_topic(self) -> None:
        async with self.operating() as admin:
            await admin.delete_topics([self.topic])
        async with asyncio.timeout(LIMIT_S):
            while await self._operator.extents(self.topic):  # noqa: ASYNC110  # Kafka tells only who asks
                await asyncio.sleep(0.02)

    async def trim(self, partition: Partition, before: int) -> None:
        async with self.operating() as admin:
            await admin.delete_records({TopicPartition(*partition): RecordsToDelete(before_offset=before)})

    async def expel(self, reader: LogReader) -> None:
        """Another process comes with the same name."""
        assert isinstance(reader, KafkaLogReader)
        impostor, diary = self.open_reader(member="expelled"), Diary()
        await impostor.start(diary)
        await read_until(impostor, diary, lambda: bool(diary.assigned))

    @contextlib.asynccontextmanager
    async def operating(self) -> AsyncIterator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.options.bootstrap_servers)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    @contextlib.asynccontextmanager
    async def unreachable(self) -> AsyncIterator[None]:
        """The server keeps its connections and answers nothing."""
        server = self._server
        assert isinstance(server, KafkaServer)
        server.pause()
        try:
            await until(lambda: is_stopped(server.pid))
            yield
        finally:
            server.resume()

    async def restart(self) -> None:
        assert isinstance(self._server, KafkaServer)
        await asyncio.to_thread(self._server.restart)


def is_stopped(pid: int) -> bool:
    """Whether every thread of a process has got its SIGSTOP: that takes a moment."""
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


def make_engine(request: pytest.FixtureRequest, server_fixture: str, session_timeout_s: float) -> Engine:
    if request.param == "memory":
        return MemoryEngine()
    if request.param == "sqlite":
        return SqliteEngine(request.getfixturevalue("tmp_path"))
    server = request.getfixturevalue(server_fixture)
    return KafkaEngine(server, kafka_options(server.bootstrap_servers, session_timeout_s=session_timeout_s))


@pytest.fixture(params=["memory", "sqlite", "kafka"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    """Each engine, with an empty topic of four partitions."""
    engine = make_engine(request, "kafka_server", 6.5)
    await engine.make_topic()
    yield engine
    await engine.close()


@pytest.fixture(scope="module")
def fragile_server() -> Iterator[KafkaServer]:
    """A Kafka of our own, for tests that stop it or whose members die: it allows short sessions."""
    server = KafkaServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(params=["memory", "sqlite", "kafka"])
async def fragile_engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    """Each engine, to be broken."""
    engine = make_engine(request, "fragile_server", 2.0)
    await engine.make_topic()
    yield engine
    await engine.close()


async def append_many(log: Log, topic: str, values: Sequence[str], *, key: bytes | None = None) -> None:
    for value in values:
        await log.append(topic, key=key, value=value.encode(), headers={})


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


# Appending


async def test_a_record_comes_back_exactly_as_it_was_appended(engine: Engine) -> None:
    log, reader, diary = engine.open_log(), engine.open_reader(), Diary()
    everything = bytes(range(256))
    headers = {"ce_id": b"", "content-type": b"application/hl7-v2+er7", "\u00e9": everything}
    appended = [
        await log.append(engine.topic, key=everything, value=everything * 3, headers=headers),
        await log.append(engine.topic, key=None, value=b"", headers={}),
        await log.append(engine.topic, key=b"", value=b"\r\n\x00", headers={"": b"\x00"}),
    ]
    await reader.start(diary)
    found = {(record.partition, record.offset): record for record in await read_records(reader, diary, 3)}
    assert found.keys() == set(appended)
    first, second, third = (found[place] for place in appended)
    assert (first.key, first.value, first.headers) == (everything, everything * 3, headers)
    assert (second.key, second.value, second.headers) == (None, b"", {})
    assert (third.key, third.value, third.headers) == (b"", b"\r\n\x00", {"": b"\x00"})
    assert all(abs(record.appended_at - datetime.now(UTC)) < timedelta(minutes=1) for record in found.values())


async def test_a_value_of_one_mebibyte_comes_back(engine: Engine) -> None:
    log, reader, diary = engine.open_log(), engine.open_reader(), Diary()
    value = os.urandom(1024 * 1024)
    await log.append(engine.topic, key=b"large", value=value, headers={"size": b"1 MiB"})
    await reader.start(diary)
    [record] = await read_records(reader, diary, 1)
    assert record.value == value


async def test_records_of_one_key_keep_their_order_while_many_tasks_append(engine: Engine) -> None:
    log, reader, diary = engine.open_log(), engine.open_reader(), Diary()

    async def append_in_order(task: int) -> list[tuple[Partition, int]]:
        key = b"key %d" % task
        return [
            await log.append(engine.topic, key=key, value=b"%d:%d" % (task, step), headers={}) for step in range(25)
        ]

    appended = await asyncio.gather(*(append_in_order(task) for task in range(7)))
    places = [place for of_task in appended for place in of_task]
    assert len(set(places)) == len(places), "two records in one place"
    for of_task in appended:
        assert len({partition for partition, _offset in of_task}) == 1, "one key, two partitions"
        assert of_task == sorted(of_task)
    await reader.start(diary)
    found = await read_records(reader, diary, 175)
    for task in range(7):
        values = [record.value for record in found if record.key == b"key %d" % task]
        assert values == [b"%d:%d" % (task, step) for step in range(25)]


async def test_records_without_a_key_spread_over_the_partitions(engine: Engine) -> None:
    log = engine.open_log()
    await append_many(log, engine.topic, names("r", 60))
    assert all(extent.end > 0 for extent in (await log.extents(engine.topic)).values())


async def test_extents_and_single_records_can_be_asked_for(engine: Engine) -> None:
    log = engine.open_log()
    assert await log.extents("no-such-topic") == {}
    assert await log.read(Partition("no-such-topic", 0), 0) is None
    empty = await log.extents(engine.topic)
    assert sorted(empty) == [Partition(engine.topic, number) for number in range(4)]
    assert {(extent.first, extent.end) for extent in empty.values()} == {(0, 0)}
    assert len({extent.log_id for extent in empty.values()}) == 1
    partition, offset = await log.append(engine.topic, key=b"k", value=b"one", headers={"h": b"1"})
    await log.append(engine.topic, key=b"k", value=b"two", headers={})
    extent = (await log.extents(engine.topic))[partition]
    assert (extent.first, extent.end, extent.log_id) == (0, 2, empty[partition].log_id)
    record = await log.read(partition, offset)
    assert record is not None
    assert (record.value, record.headers, record.partition, record.offset) == (b"one", {"h": b"1"}, partition, 0)
    assert await log.read(partition, 2) is None
    await engine.trim(partition, 1)
    assert (await log.extents(engine.topic))[partition].first == 1
    assert await log.read(partition, 0) is None


async def test_records_can_be_asked_for_in_order_from_an_offset_on(engine: Engine) -> None:
    log = engine.open_log()
    assert await log.read_from(Partition("no-such-topic", 0), 0, records_max=9) == []
    partition, _offset = await log.append(engine.topic, key=b"k", value=b"r0", headers={"h": b"1"})
    assert await log.read_from(partition, 1, records_max=9) == []
    await append_many(log, engine.topic, names("r", 30)[1:], key=b"k")
    found: list[LogRecord] = []
    while records := await log.read_from(partition, len(found), records_max=7):
        assert len(records) <= 7
        found += records
    assert [record.offset for record in found] == list(range(30))
    assert [record.value.decode() for record in found] == names("r", 30)
    assert found[0].headers == {"h": b"1"}
    assert found[12] == await log.read(partition, 12)
    await engine.trim(partition, 10)
    assert await log.read_from(partition, 9, records_max=7) == []
    assert [record.offset for record in await log.read_from(partition, 10, records_max=1)] == [10]


# Reading


async def test_a_reader_starts_where_the_assignment_says(engine: Engine) -> None:
    log = engine.open_log()
    await append_many(log, engine.topic, names("r", 10), key=b"k")
    partition = max(await log.extents(engine.topic), key=lambda place: place.number)
    partition, _offset = await log.append(engine.topic, key=b"k", value=b"r10", headers={})
    reader, diary = engine.open_reader(), Diary(starts={partition: 7})
    await reader.start(diary)
    assert [record.value for record in await read_records(reader, diary, 4)] == [b"r7", b"r8", b"r9", b"r10"]


async def test_progress_that_was_noted_does_not_decide_where_a_reader_starts(engine: Engine) -> None:
    log, first, diary = engine.open_log(), engine.open_reader(), Diary()
    await append_many(log, engine.topic, names("r", 5), key=b"k")
    await first.start(diary)
    found = await read_records(first, diary, 5)
    await first.note_progress({found[0].partition: 5})
    await first.close()
    second, again = engine.open_reader(), Diary(starts={found[0].partition: 2})
    await second.start(again)
    assert [record.offset for record in await read_records(second, again, 3)] == [2, 3, 4]


async def test_a_poll_returns_what_is_there_without_waiting_for_more(engine: Engine) -> None:
    log, reader, diary = engine.open_log(), engine.open_reader(), Diary()
    await reader.start(diary)
    await read_until(reader, diary, lambda: len(diary.assigned) == 4)
    await log.append(engine.topic, key=None, value=b"alone", headers={})
    began_at = time.monotonic()
    found = await reader.poll(records_max=500, wait_s=15)
    assert [record.value for record in diary.take(found)] == [b"alone"]
    assert time.monotonic() - began_at < 2


async def test_a_poll_notices_what_is_appended_while_it_waits(engine: Engine) -> None:
    log, reader, diary = engine.open_log(), engine.open_reader(), Diary()
    await reader.start(diary)
    await read_until(reader, diary, lambda: len(diary.assigned) == 4)
    polling = asyncio.create_task(reader.poll(records_max=500, wait_s=15))
    await asyncio.sleep(0.1)
    began_at = time.monotonic()
    await log.append(engine.topic, key=None, value=b"late", headers={})
    assert [record.value for record in diary.take(await polling)] == [b"late"]
    assert time.monotonic() - began_at < 1


async def test_a_poll_returns_nothing_once_it_has_waited(engine: Engine) -> None:
    reader, diary = engine.open_reader(), Diary()
    await reader.start(diary)
    await read_until(reader, diary, lambda: len(diary.assigned) == 4)
    began_at = time.monotonic()
    assert await reader.poll(records_max=10, wait_s=0.3) == {}
    assert 0.3 <= time.monotonic() - began_at < 1.5


async def test_a_poll_returns_no_more_records_than_asked_for(engine: Engine) -> None:
    log, reader, diary = engine.open_log(), engine.open_reader(), Diary()
    await append_many(log, engine.topic, names("r", 30))
    await reader.start(diary)
    async with asyncio.timeout(LIMIT_S):
        while len(diary.values()) < 30:
            assert len(diary.take(await reader.poll(records_max=7, wait_s=0.1))) <= 7
    assert sorted(diary.values()) == sorted(names("r", 30))


async def test_records_can_be_replayed(engine: Engine) -> None:
    log, reader, diary = engine.open_log(), engine.open_reader(), Diary()
    await append_many(log, engine.topic, names("r", 10), key=b"k")
    await reader.start(diary)
    first_time = await read_records(reader, diary, 10)
    await reader.seek(first_time[0].partition, 0)
    assert await read_records(reader, diary, 10) == first_time
    await reader.seek(first_time[0].partition, 8)
    assert await read_records(reader, diary, 2) == first_time[8:]


async def test_seeking_a_partition_that_is_not_assigned_does_nothing(engine: Engine) -> None:
    reader = engine.open_reader()
    await reader.seek(Partition(engine.topic, 0), 5)
    diary = Diary()
    await reader.start(diary)
    await reader.seek(Partition("another", 0), 5)
    await read_until(reader, diary, lambda: len(diary.assigned) == 4)
    assert await reader.poll(records_max=10, wait_s=0.2) == {}


async def test_a_poll_that_was_cancelled_loses_no_record(engine: Engine) -> None:
    log, reader, diary = engine.open_log(), engine.open_reader(), Diary()
    await reader.start(diary)
    await read_until(reader, diary, lambda: len(diary.assigned) == 4)
    appending = asyncio.create_task(append_many(log, engine.topic, names("r", 100), key=b"k"))
    async with asyncio.timeout(LIMIT_S):
        while len(diary.values()) < 100:
            polling = asyncio.create_task(reader.poll(records_max=3, wait_s=1))
            await asyncio.wait({polling}, timeout=0.003)
            polling.cancel()
            await asyncio.wait({polling})
            if not polling.cancelled():
                diary.take(polling.result())
    await appending
    assert diary.values() == names("r", 100)


async def test_what_a_cancelled_poll_had_fetched_is_forgotten_by_a_seek(engine: Engine) -> None:
    log, reader, diary = engine.open_log(), engine.open_reader(), Diary()
    await append_many(log, engine.topic, names("r", 5), key=b"k")
    await reader.start(diary)
    [first, *_] = await read_records(reader, diary, 5)
    polling = asyncio.create_task(reader.poll(records_max=100, wait_s=5))
    await asyncio.sleep(0.02)
    polling.cancel()
    await asyncio.wait({polling})
    await append_many(log, engine.topic, ["r5"], key=b"k")
    await asyncio.sleep(0.15)
    await reader.seek(first.partition, 0)
    assert [record.value.decode() for record in await read_records(reader, diary, 6)] == names("r", 6)


async def test_an_assignment_that_fails_is_asked_again(engine: Engine) -> None:
    class Failing(Diary):
        failures = 2

        async def on_assigned(self, extents: Mapping[Partition, PartitionExtent]) -> Mapping[Partition, int]:
            if self.failures:
                self.failures -= 1
                raise ConnectionError("the database is down")
            return await super().on_assigned(extents)

    log, reader, diary = engine.open_log(), engine.open_reader(), Failing()
    await append_many(log, engine.topic, ["one"])
    await reader.start(diary)
    failures = 0
    async with asyncio.timeout(LIMIT_S):
        while not diary.values():
            try:
                diary.take(await reader.poll(records_max=10, wait_s=0.1))
            except ConnectionError:
                failures += 1
    assert failures == 2
    assert diary.values() == ["one"]


# Groups


async def test_two_members_share_the_partitions_and_hand_over_in_order(engine: Engine) -> None:
    log, first, second = engine.open_log(), engine.open_reader(), engine.open_reader()
    story: list[tuple[str, Event]] = []
    stored: dict[Partition, int] = {}
    ones = Diary(starts=stored, note=lambda event: story.append(("first", event)))
    twos = Diary(starts=stored, note=lambda event: story.append(("second", event)))
    await append_many(log, engine.topic, names("a", 40))
    await first.start(ones)
    await read_records(first, ones, 40)
    assert len(ones.assigned) == 4

    await second.start(twos)
    is_shared = lambda: len(ones.assigned) == 2 and len(twos.assigned) == 2  # noqa: E731
    await asyncio.gather(read_until(first, ones, is_shared), read_until(second, twos, is_shared))
    assert ones.assigned.isdisjoint(twos.assigned)
    for partition in twos.assigned:
        taken_at = story.index(("second", ("assigned", partition.number, 0, "")))
        assert ("first", ("revoked", partition.number, 0, "")) in story[:taken_at]

    await append_many(log, engine.topic, names("b", 40))
    has_all = lambda: len(ones.values()) + len(twos.values()) == 80  # noqa: E731
    await asyncio.gather(read_until(first, ones, has_all), read_until(second, twos, has_all))
    assert sorted(ones.values() + twos.values()) == sorted(names("a", 40) + names("b", 40))
    assert len(twos.values()) > 0


async def test_who_leaves_hands_over_at_once(engine: Engine) -> None:
    log, first, second = engine.open_log(), engine.open_reader(), engine.open_reader()
    ones, twos = Diary(), Diary()
    await first.start(ones)
    await second.start(twos)
    is_shared = lambda: len(ones.assigned) == 2 and len(twos.assigned) == 2  # noqa: E731
    await asyncio.gather(read_until(first, ones, is_shared), read_until(second, twos, is_shared))
    await first.close()
    assert not ones.assigned, "work was to be finished before leaving"
    began_at = time.monotonic()
    await read_until(second, twos, lambda: len(twos.assigned) == 4)
    assert time.monotonic() - began_at < 4, "sooner than a session runs out"
    await append_many(log, engine.topic, names("r", 20))
    assert len(await read_records(second, twos, 20)) == 20


async def test_who_left_can_join_anew(engine: Engine) -> None:
    log, reader, diary = engine.open_log(), engine.open_reader(), Diary()
    await append_many(log, engine.topic, names("a", 20))
    await reader.start(diary)
    assert len(await read_records(reader, diary, 20)) == 20
    await reader.close()
    assert not diary.assigned
    await append_many(log, engine.topic, names("b", 20))
    again = Diary()
    await reader.start(again)
    await read_records(reader, again, 40)
    assert sorted(again.values()) == sorted(names("a", 20) + names("b", 20))
    assert sum((await reader.contact()).values()) == 40


async def test_groups_do_not_disturb_each_other(engine: Engine) -> None:
    log = engine.open_log()
    await append_many(log, engine.topic, names("r", 5))
    for group in ("attendances", "encompass"):
        reader, diary = engine.open_reader(group=group), Diary()
        await reader.start(diary)
        await read_records(reader, diary, 5)
        assert sorted(diary.values()) == names("r", 5)


async def test_noting_progress_never_fails_for_a_membership_that_was_lost(engine: Engine) -> None:
    log, reader, diary = engine.open_log(), engine.open_reader(member="expelled"), Diary()
    await append_many(log, engine.topic, ["one"])
    await reader.start(diary)
    [record] = await read_records(reader, diary, 1)
    await reader.note_progress({record.partition: 1})
    await engine.expel(reader)
    await reader.note_progress({record.partition: 1})
    await reader.note_progress({Partition("another", 3): 1})


async def test_after_a_crash_the_next_member_reads_again(fragile_engine: Engine) -> None:
    engine = fragile_engine
    log = engine.open_log()
    await append_many(log, engine.topic, names("r", 20))
    member = await engine.start_member()
    await until(lambda: len([event for event in member.events if event[0] == "read"]) == 20)
    await member.kill()
    reader, diary = engine.open_reader(), Diary()
    await reader.start(diary)
    await read_records(reader, diary, 20)
    assert sorted(diary.values()) == sorted(names("r", 20))


async def test_a_member_that_was_stopped_reads_nothing_that_was_taken_from_it(fragile_engine: Engine) -> None:
    engine = fragile_engine
    log = engine.open_log()
    zombie = await engine.start_member(from_end=True)
    await until(lambda: len([event for event in zombie.events if event[0] == "assigned"]) == 4)
    await append_many(log, engine.topic, names("before", 8))
    await until(lambda: len([event for event in zombie.events if event[0] == "read"]) == 8)
    await zombie.pause()
    seen = len(zombie.events)
    reader, diary = engine.open_reader(), Diary(from_end=True)
    await reader.start(diary)
    if engine.stopped_member_keeps_partitions:
        assert await reader.poll(records_max=10, wait_s=1) == {}
        assert not diary.assigned, "its locks outlive a stop"
    else:
        await read_until(reader, diary, lambda: len(diary.assigned) == 4)
        await append_many(log, engine.topic, names("meanwhile", 8))
        await read_records(reader, diary, 8)
    await zombie.resume()

    def zombie_has_two() -> bool:
        kinds = [event[0] for event in zombie.events]
        return "revoked" in kinds and kinds.count("assigned") - kinds.count("revoked") == 2

    await read_until(reader, diary, lambda: zombie_has_two() and len(diary.assigned) == 2)
    await append_many(log, engine.topic, names("after", 40))

    def read_by_zombie() -> list[str]:
        return [value for kind, _partition, _offset, value in zombie.events[seen:] if kind == "read"]

    def read_by_both() -> list[str]:
        return [value for value in read_by_zombie() + diary.values() if value.startswith("after")]

    await read_until(reader, diary, lambda: len(read_by_both()) >= 40)
    assert sorted(read_by_both()) == sorted(names("after", 40)), "each by one member"
    assert not any(value.startswith("meanwhile") for value in read_by_zombie())
    assert zombie.events[seen][0] == "revoked", "before anything else"


# Gaps


async def test_an_offset_outside_the_log_is_a_gap_until_another_is_sought(engine: Engine) -> None:
    log = engine.open_log()
    partition, _offset = await log.append(engine.topic, key=b"k", value=b"one", headers={})
    reader, diary = engine.open_reader(), Diary(starts={partition: 5})
    await reader.start(diary)
    await expect_gap(reader, diary)
    assert diary.extents[-1][partition].end == 1, "the assignment could have known"
    await expect_gap(reader, diary)
    await reader.seek(partition, 0)
    assert [record.value for record in await read_records(reader, diary, 1)] == [b"one"]


async def test_records_deleted_before_they_were_read_are_a_gap(engine: Engine) -> None:
    log = engine.open_log()
    await append_many(log, engine.topic, names("r", 10), key=b"k")
    partition, _offset = await log.append(engine.topic, key=b"k", value=b"r10", headers={})
    await engine.trim(partition, 6)
    reader, diary = engine.open_reader(), Diary(starts={partition: 3})
    await reader.start(diary)
    await expect_gap(reader, diary)
    assert diary.extents[-1][partition].first == 6, "the assignment could have known"
    await reader.seek(partition, 6)
    assert [record.offset for record in await read_records(reader, diary, 5)] == [6, 7, 8, 9, 10]


async def test_a_topic_that_was_made_again_is_noticed(engine: Engine) -> None:
    """By poll, as a gap, or because the partitions are assigned anew and their log is another."""
    log, reader, diary = engine.open_log(), engine.open_reader(), Diary()
    await append_many(log, engine.topic, names("old", 4))
    before = {extent.log_id for extent in (await log.extents(engine.topic)).values()}
    await reader.start(diary)
    await read_records(reader, diary, 4)
    for partition in diary.assigned:
        await reader.seek(partition, diary.starts.get(partition, 0))
    assert await reader.poll(records_max=100, wait_s=0.1) == {}
    await engine.delete_topic()
    await engine.make_topic()
    await append_many(log, engine.topic, names("new", 40))
    after = {extent.log_id for extent in (await log.extents(engine.topic)).values()}
    assert before.isdisjoint(after)

    def is_assigned_anew() -> bool:
        return {extent.log_id for extent in diary.extents[-1].values()} == after

    async with asyncio.timeout(LIMIT_S):
        with contextlib.suppress(LogGap):
            while not is_assigned_anew():
                await reader.poll(records_max=100, wait_s=0.1)
    await reader.close()
    second, again = engine.open_reader(), Diary()
    await second.start(again)
    await read_records(second, again, 40)
    assert {extent.log_id for extent in again.extents[-1].values()} == after


async def expect_gap(reader: LogReader, diary: Diary) -> None:
    with pytest.raises(LogGap):
        await read_until(reader, diary, lambda: False)


# A log that is not there


async def test_an_append_is_refused_in_time_while_the_log_is_not_there(fragile_engine: Engine) -> None:
    engine = fragile_engine
    log = engine.open_log()
    await append_many(log, engine.topic, ["before"])
    async with engine.unreachable():
        began_at = time.monotonic()
        outcomes = await asyncio.gather(
            *(log.append(engine.topic, key=None, value=b"during", headers={}) for _ in range(5)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [NotDurable] * 5
        assert time.monotonic() - began_at < 4
    await append_again(log, engine.topic)
    reader, diary = engine.open_reader(), Diary()
    await reader.start(diary)
    await read_until(reader, diary, lambda: {"before", "after"} <= set(diary.values()))


async def test_contact_tells_the_ends_and_fails_in_time_while_the_log_is_not_there(fragile_engine: Engine) -> None:
    engine = fragile_engine
    log, reader, diary = engine.open_log(), engine.open_reader(), Diary()
    partition, _offset = await log.append(engine.topic, key=b"k", value=b"one", headers={})
    await reader.start(diary)
    await read_records(reader, diary, 1)
    await log.append(engine.topic, key=b"k", value=b"two", headers={})
    assert await reader.contact() == {place: 2 if place == partition else 0 for place in diary.assigned}
    async with engine.unreachable():
        began_at = time.monotonic()
        with pytest.raises(LogUnavailable):
            await reader.contact()
        with pytest.raises(LogUnavailable):
            await log.extents(engine.topic)
        assert time.monotonic() - began_at < 5
    assert [record.value for record in await read_patiently(reader, diary)] == [b"two"]
    await reader.contact()


async def test_a_restart_loses_nothing_and_clients_go_on(fragile_engine: Engine) -> None:
    engine = fragile_engine
    log, reader, diary = engine.open_log(), engine.open_reader(), Diary()
    await append_many(log, engine.topic, names("before", 10))
    await reader.start(diary)
    await read_records(reader, diary, 10)
    ids = {extent.log_id for extent in (await log.extents(engine.topic)).values()}
    await engine.restart()
    await append_again(log, engine.topic)
    assert [record.value for record in await read_patiently(reader, diary)] == [b"after"]
    opened, second, again = engine.open_log(), engine.open_reader(group="second"), Diary()
    assert {extent.log_id for extent in (await opened.extents(engine.topic)).values()} == ids
    await second.start(again)
    await read_until(second, again, lambda: set(again.values()) == {*names("before", 10), "after"})


async def test_closing_ends_in_time_while_the_log_is_not_there(fragile_engine: Engine) -> None:
    engine = fragile_engine
    log, reader, diary = engine.open_log(), engine.open_reader(), Diary()
    await append_many(log, engine.topic, ["before"])
    await reader.start(diary)
    await read_records(reader, diary, 1)
    async with engine.unreachable():
        began_at = time.monotonic()
        with pytest.raises(NotDurable):
            await log.append(engine.topic, key=None, value=b"during", headers={})
        await log.close()
        await reader.close()
        assert time.monotonic() - began_at < 10
        assert not diary.assigned, "work was to be finished before leaving"


async def append_again(log: Log, topic: str) -> None:
    """As a sender does: until it is accepted."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                await log.append(topic, key=None, value=b"after", headers={})
            except NotDurable:
                continue
            return


async def read_patiently(reader: LogReader, diary: Diary) -> list[LogRecord]:
    """The next records, whatever goes wrong before."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            with contextlib.suppress(LogUnavailable):
                if taken := diary.take(await reader.poll(records_max=100, wait_s=0.1)):
                    return taken


# SQLite alone


@pytest.fixture
async def sqlite_engine(tmp_path: Path) -> AsyncIterator[SqliteEngine]:
    engine = SqliteEngine(tmp_path)
    await engine.make_topic()
    yield engine
    await engine.close()


@contextlib.contextmanager
def writers_locked_out(options: SqliteLogOptions) -> Iterator[None]:
    """What another process does that takes its time."""
    lock = os.open(options.path.with_name(f"{options.path.name}.lock"), os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield
    os.close(lock)


async def test_sqlite_appends_that_wait_at_the_same_time_share_a_commit(sqlite_engine: SqliteEngine) -> None:
    log = sqlite_engine.open_log()
    await append_many(log, sqlite_engine.topic, ["first"], key=b"k")
    with writers_locked_out(sqlite_engine.options):
        appends = [
            asyncio.create_task(log.append(sqlite_engine.topic, key=b"k", value=b"%d" % number, headers={}))
            for number in range(200)
        ]
        await asyncio.sleep(0.1)
        assert not any(append.done() for append in appends)
    places = await asyncio.gather(*appends)
    assert [offset for _partition, offset in places] == list(range(1, 201))
    records = [await log.read(partition, offset) for partition, offset in places]
    assert [record.value for record in records if record is not None] == [b"%d" % number for number in range(200)]
    assert len({record.appended_at for record in records if record is not None}) <= 2, "one instant for each commit"


async def test_sqlite_writers_take_turns_and_every_record_has_a_place(sqlite_engine: SqliteEngine) -> None:
    logs = [sqlite_engine.open_log() for _ in range(3)]

    async def append_some(log: Log, name: str) -> list[tuple[Partition, int]]:
        return [
            await log.append(sqlite_engine.topic, key=name.encode(), value=name.encode(), headers={}) for _ in range(40)
        ]

    tasks = [append_some(log, f"{number}:{task}") for number, log in enumerate(logs) for task in range(4)]
    places = [place for of_task in await asyncio.gather(*tasks) for place in of_task]
    extents = await logs[0].extents(sqlite_engine.topic)
    assert sorted(places) == [
        (partition, offset) for partition in sorted(extents) for offset in range(extents[partition].end)
    ]


async def test_sqlite_refuses_when_too_much_waits(tmp_path: Path) -> None:
    options = replace(sqlite_options(tmp_path / "log.sqlite3"), waiting_records_max=10, waiting_bytes_max=5000)
    log = SqliteLog(options)
    await append_many(log, "topic", ["first"])
    with writers_locked_out(options):
        taken = asyncio.create_task(log.append("topic", key=None, value=b"", headers={}))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(log.append("topic", key=None, value=b"", headers={})) for _ in range(10)]
        await asyncio.sleep(0)
        with pytest.raises(NotDurable, match="waiting_records_max"):
            await log.append("topic", key=None, value=b"", headers={})
    await asyncio.gather(taken, *waiting)
    with pytest.raises(NotDurable, match="waiting_bytes_max"):
        await log.append("topic", key=None, value=bytes(5000), headers={})
    await log.close()


async def test_sqlite_refuses_when_the_disk_is_full_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    log = SqliteLog(replace(sqlite_options(tmp_path / "log.sqlite3"), file_bytes_max=512 * 1024, trim_records_max=3))
    await log.create_topic("topic", 1)
    kept = 0
    with pytest.raises(NotDurable, match="SQLITE_FULL"):
        while True:
            await log.append("topic", key=None, value=bytes(20_000), headers={})
            kept += 1
    partition = Partition("topic", 0)
    assert (await log.extents("topic"))[partition].end == kept > 10
    assert await log.read(partition, kept - 1) is not None
    await log.trim(partition, kept // 2)
    assert await log.append("topic", key=None, value=bytes(20_000), headers={}) == (partition, kept)
    assert (await log.extents("topic"))[partition].first == kept // 2
    await log.close()


async def test_sqlite_keeps_nothing_in_a_file_that_was_deleted(sqlite_engine: SqliteEngine, tmp_path: Path) -> None:
    log, reader, diary = sqlite_engine.open_log(), sqlite_engine.open_reader(), Diary()
    await append_many(log, sqlite_engine.topic, ["before"])
    await reader.start(diary)
    await read_records(reader, diary, 1)
    path = sqlite_engine.options.path
    path.rename(tmp_path / "aside")
    with pytest.raises(NotDurable, match="ENOENT"):
        await log.append(sqlite_engine.topic, key=None, value=b"lost", headers={})
    with pytest.raises(LogUnavailable, match="ENOENT"):
        await reader.poll(records_max=10, wait_s=1)
    assert not path.exists(), "an empty log instead would hide the loss"
    (tmp_path / "aside").rename(path)
    await append_many(log, sqlite_engine.topic, ["after"])
    assert [record.value for record in await read_patiently(reader, diary)] == [b"after"]


async def test_sqlite_files_are_readable_by_their_owner_only(sqlite_engine: SqliteEngine) -> None:
    log, reader, diary = sqlite_engine.open_log(), sqlite_engine.open_reader(), Diary()
    await append_many(log, sqlite_engine.topic, ["one"])
    await reader.start(diary)
    await read_records(reader, diary, 1)
    files = [path for path in sqlite_engine.options.path.parent.rglob("*") if path.is_file()]
    assert len(files) >= 8
    assert {path.stat().st_mode & 0o077 for path in files} == {0}


async def test_sqlite_members_that_died_leave_no_files_behind(sqlite_engine: SqliteEngine) -> None:
    member = await sqlite_engine.start_member()
    await until(lambda: len(member.events) == 4)
    await member.kill()
    groups = sqlite_engine.options.path.with_name("log.sqlite3.groups")
    assert len(list(groups.rglob("member-*"))) == 1
    reader, diary = sqlite_engine.open_reader(), Diary()
    await reader.start(diary)
    await read_until(reader, diary, lambda: len(diary.assigned) == 4)
    assert len(list(groups.rglob("member-*"))) == 1
    await reader.close()
    assert list(groups.rglob("member-*")) == []


# Kafka alone


@pytest.fixture
async def kafka_engine(kafka_server: Kafka) -> AsyncIterator[KafkaEngine]:
    engine = KafkaEngine(kafka_server, kafka_options(kafka_server.bootstrap_servers))
    yield engine
    await engine.close()


async def test_kafka_clients_are_set_up_safely(kafka_engine: KafkaEngine) -> None:
    producer = AIOKafkaProducer(**kafka_engine.options.producer_settings())
    assert producer._sender._acks == -1, "-1 is all"
    assert producer._txn_manager is not None, "idempotent"
    assert producer._message_accumulator._linger_time == 0
    await producer.stop()
    consumer = AIOKafkaConsumer(**kafka_engine.options.consumer_settings("group", "worker 1"))
    assert consumer._enable_auto_commit is False
    assert consumer._auto_offset_reset == "none"
    assert consumer._group_instance_id == "worker 1"
    assert consumer._isolation_level == "read_committed"
    assert [assignor.name for assignor in consumer._partition_assignment_strategy] == ["roundrobin"]
    assert consumer._request_timeout_ms > consumer._rebalance_timeout_ms > consumer._session_timeout_ms / 2
    await consumer.stop()


async def test_kafka_options_ask_for_verified_tls_and_hide_passwords() -> None:
    options = KafkaOptions(
        bootstrap_servers="localhost:9",
        security_protocol="SASL_SSL",
        sasl_username="broker",
        sasl_password="not to be seen",
        tls_key_password="not to be seen either",
    )
    tls = options.client_settings()["ssl_context"]
    assert tls.check_hostname
    assert tls.verify_mode is ssl.CERT_REQUIRED
    assert "not to be seen" not in repr(options)
    with pytest.raises(ValueError, match="sasl_username"):
        KafkaOptions(bootstrap_servers="localhost:9", security_protocol="SASL_SSL")


async def test_kafka_contents_reach_no_log(kafka_engine: KafkaEngine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("aiokafka.conn").setLevel(logging.DEBUG)
    await kafka_engine.make_topic()
    log, reader, diary = kafka_engine.open_log(), kafka_engine.open_reader(), Diary()
    await log.append(kafka_engine.topic, key=b"PLANTED-KEY", value=b"PLANTED-VALUE", headers={"h": b"PLANTED-HEADER"})
    with pytest.raises(NotDurable):
        await log.append("no such topic", key=b"PLANTED-KEY", value=b"PLANTED-VALUE", headers={})
    await reader.start(diary)
    await read_records(reader, diary, 1)
    assert "aiokafka" in {record.name.partition(".")[0] for record in caplog.records}
    assert "PLANTED" not in caplog.text


async def test_kafka_topics_are_made_once(kafka_engine: KafkaEngine) -> None:
    await ensure_topics(kafka_engine.options, {kafka_engine.topic: 3}, replication_factor=1)
    log = kafka_engine.open_log()
    before = await log.extents(kafka_engine.topic)
    await ensure_topics(kafka_engine.options, {kafka_engine.topic: 5}, replication_factor=1)
    assert await log.extents(kafka_engine.topic) == before
    assert len(before) == 3
    with pytest.raises(LogUnavailable, match="InvalidReplicationFactor"):
        await ensure_topics(kafka_engine.options, {f"{kafka_engine.topic}-two": 1}, replication_factor=9)


async def test_kafka_tells_when_a_record_was_appended_whatever_its_sender_says(kafka_engine: KafkaEngine) -> None:
    await kafka_engine.make_topic()
    foreign = AIOKafkaProducer(bootstrap_servers=kafka_engine.options.bootstrap_servers)
    await foreign.start()
    await foreign.send_and_wait(kafka_engine.topic, b"old", timestamp_ms=1)
    await foreign.send_and_wait(kafka_engine.topic, None, key=b"no value", headers=[("h", None)])
    await foreign.stop()
    reader, diary = kafka_engine.open_reader(), Diary()
    await reader.start(diary)
    records = await read_records(reader, diary, 2)
    assert all(datetime.now(UTC) - record.appended_at < timedelta(minutes=1) for record in records)
    assert {(record.key, record.value, record.headers.get("h")) for record in records} == {
        (None, b"old", None),
        (b"no value", b"", b""),
    }


async def test_kafka_header_whose_name_is_no_text_stalls_nothing(kafka_engine: KafkaEngine) -> None:
    """A client in C can name a header with any bytes."""
    await ensure_topics(kafka_engine.options, {kafka_engine.topic: 1}, replication_factor=1)
    log, reader, diary = kafka_engine.open_log(), kafka_engine.open_reader(), Diary()
    await append_many(log, kafka_engine.topic, ["before"])
    await append_batch_with_bad_header(kafka_engine.options.bootstrap_servers, kafka_engine.topic)
    await append_many(log, kafka_engine.topic, ["after"])
    await reader.start(diary)
    records = await read_records(reader, diary, 5)
    assert [record.value for record in records] == [b"before", b"good", b"bad", b"good too", b"after"]
    assert [record.offset for record in records] == [0, 1, 2, 3, 4]
    assert records[2].headers == {"\\xff\\xfe--": b"value"}
    assert await log.read(Partition(kafka_engine.topic, 0), 2) == records[2]


async def append_batch_with_bad_header(bootstrap_servers: str, topic: str) -> None:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 10_000)
    builder.append(0, None, None, b"good", [])
    builder.append(1, None, None, b"bad", [("????", b"value")])
    builder.append(2, None, None, b"good too", [])
    batch = bytearray(bytes(builder.build()).replace(b"????", b"\xff\xfe--"))
    batch[17:21] = calc_crc32c(bytes(batch[21:])).to_bytes(4)
    client = AIOKafkaClient(bootstrap_servers=bootstrap_servers)
    await client.bootstrap()
    leader = client.get_random_node()
    asked = [(topic, [(0, bytes(batch))])]
    request = ProduceRequest(transactional_id=None, required_acks=-1, timeout=5000, topics=asked)
    response = await client.send(leader, request)
    await client.close()
    [(_topic, [(_partition, code, *_rest)])] = response.topics
    assert code == 0


async def test_kafka_records_of_an_aborted_transaction_are_not_read_and_leave_no_lag(kafka_engine: KafkaEngine) -> None:
    await ensure_topics(kafka_engine.options, {kafka_engine.topic: 1}, replication_factor=1)
    foreign = AIOKafkaProducer(
        bootstrap_servers=kafka_engine.options.bootstrap_servers, transactional_id=kafka_engine.topic
    )
    await foreign.start()
    async with foreign.transaction():
        await foreign.send(kafka_engine.topic, b"committed")
    with contextlib.suppress(ConnectionError):
        async with foreign.transaction():
            await foreign.send_and_wait(kafka_engine.topic, b"aborted")
            raise ConnectionError
    await foreign.stop()
    reader, diary = kafka_engine.open_reader(), Diary()
    await reader.start(diary)
    [record] = await read_records(reader, diary, 1)
    assert record.value == b"committed"
    place = record.partition
    async with asyncio.timeout(LIMIT_S):
        while (await reader.contact())[place] != record.offset + 1:
            assert await reader.poll(records_max=10, wait_s=0.1) == {}


async def test_kafka_producer_that_broke_is_replaced(kafka_engine: KafkaEngine) -> None:
    await kafka_engine.make_topic()
    events: list[str] = []
    log = KafkaLog(kafka_engine.options, on_event=lambda name, _details: events.append(name))
    await append_many(log, kafka_engine.topic, ["before"])
    log._producer._sender.sender_task.cancel()
    await asyncio.wait({log._producer._sender.sender_task})
    await append_many(log, kafka_engine.topic, ["after"])
    assert events == ["kafka_producer_replaced"]
    await log.close()


async def test_kafka_log_that_is_closed_while_kafka_is_away_leaves_nothing_behind(fragile_server: KafkaServer) -> None:
    """An idempotent producer goes on trying for ever by itself."""
    options = replace(kafka_options(fragile_server.bootstrap_servers), append_timeout_s=0.5, close_timeout_s=0.5)
    engine = KafkaEngine(fragile_server, options)
    await engine.make_topic()
    try:
        before = asyncio.all_tasks()
        log = engine.open_log()
        await append_again(log, engine.topic)
        async with engine.unreachable():
            outcomes = await asyncio.gather(
                *(log.append(engine.topic, key=None, value=bytes(100_000), headers={}) for _ in range(20)),
                return_exceptions=True,
            )
            assert {type(outcome) for outcome in outcomes} == {NotDurable}
            await log.close()
            await until(lambda: asyncio.all_tasks() <= before)
    finally:
        await engine.close()


async def test_kafka_reader_that_stood_still_without_losing_its_place_loses_no_record(
    fragile_server: KafkaServer,
) -> None:
    options = kafka_options(fragile_server.bootstrap_servers, session_timeout_s=4.0)
    engine = KafkaEngine(fragile_server, replace(options, heartbeat_s=1.3, contact_timeout_s=5.0))
    await engine.make_topic()
    log, reader, diary = engine.open_log(), engine.open_reader(), Diary()
    try:
        await reader.start(diary)
        await read_until(reader, diary, lambda: len(diary.assigned) == 4)
        for number in range(3):
            polling = asyncio.create_task(reader.poll(records_max=100, wait_s=0.3))
            appending = asyncio.create_task(log.append(engine.topic, key=b"k", value=b"%d" % number, headers={}))
            await asyncio.sleep(0)
            time.sleep(1.6)  # noqa: ASYNC251  # the event loop stands still, and with it the heartbeat
            diary.take(await polling)
            await appending
        await read_until(reader, diary, lambda: len(diary.values()) == 3)
        assert diary.values() == ["0", "1", "2"]
        assert [kind for kind, *_ in diary.events] == ["assigned"] * 4 + ["read"] * 3, "a member all the time"
    finally:
        await engine.close()


async def test_kafka_reader_that_stood_still_before_it_had_a_place_proves_its_membership_once_it_has_one(
    kafka_engine: KafkaEngine,
) -> None:
    class Failing(Diary):
        failures = 2

        async def on_assigned(self, extents: Mapping[Partition, PartitionExtent]) -> Mapping[Partition, int]:
            if self.failures:
                self.failures -= 1
                raise ConnectionError("the database is down")
            return await super().on_assigned(extents)

    await kafka_engine.make_topic()
    log, reader, diary = kafka_engine.open_log(), kafka_engine.open_reader(), Failing()
    assert isinstance(reader, KafkaLogReader)
    await append_many(log, kafka_engine.topic, ["one"])
    await reader.start(diary)
    with pytest.raises(ConnectionError):
        await read_until(reader, diary, lambda: False)
    reader._pulse._was_stopped = True
    with pytest.raises(ConnectionError):
        await read_until(reader, diary, lambda: False)
    assert reader._pulse.was_stopped(), "no commit without a place: nothing is proven"
    await read_records(reader, diary, 1)
    assert not reader._pulse.was_stopped()


async def test_kafka_that_does_not_say_which_topic_it_is_has_not_made_it_again(
    kafka_engine: KafkaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that has not heard of a topic's id yet says 0."""
    await kafka_engine.make_topic()
    log, reader, diary = kafka_engine.open_log(), kafka_engine.open_reader(), Diary()
    await append_many(log, kafka_engine.topic, ["one"])
    await reader.start(diary)
    await read_records(reader, diary, 1)
    send = AIOKafkaClient.send
    asked = 0

    async def answer_without_id(client: Any, node: Any, request: Any, **rest: Any) -> Any:
        nonlocal asked
        response = await send(client, node, request, **rest)
        if isinstance(request, TopicsRequest):
            asked += 1
            response.topics = [(code, name, bytes(16), *others) for code, name, _id, *others in response.topics]
        return response

    with monkeypatch.context() as changed:
        changed.setattr(AIOKafkaClient, "send", answer_without_id)
        with pytest.raises(LogUnavailable):
            await log.extents(kafka_engine.topic)
        seen = asked
        await read_until(reader, diary, lambda: asked > seen + 2)
    await append_many(log, kafka_engine.topic, ["two"])
    await read_records(reader, diary, 1)
    assert diary.values() == ["one", "two"]


async def test_kafka_reader_looks_whether_its_topic_is_still_the_same(kafka_engine: KafkaEngine) -> None:
    """Where a topic was deleted and made again faster than aiokafka looks, only its id differs."""
    await kafka_engine.make_topic()
    log, reader, diary = kafka_engine.open_log(), kafka_engine.open_reader(), Diary()
    partition, _offset = await log.append(kafka_engine.topic, key=b"k", value=b"one", headers={})
    await reader.start(diary)
    await read_records(reader, diary, 1)
    assert isinstance(reader, KafkaLogReader)
    reader._places[partition] = reader._places[partition]._replace(log_id="the one before")
    await expect_gap(reader, diary)
    await reader.seek(partition, 0)
    await read_records(reader, diary, 1)


async def test_kafka_that_was_never_there_is_said_so() -> None:
    options = kafka_options(f"127.0.0.1:{free_port()}")
    log = KafkaLog(options)
    reader = KafkaLogReader(options, topic="topic", group="group", member="worker")
    began_at = time.monotonic()
    with pytest.raises(NotDurable):  # an append waits for a Kafka that may be starting
        await log.append("topic", key=None, value=b"", headers={})
    assert time.monotonic() - began_at < options.append_timeout_s + 1
    began_at = time.monotonic()
    with pytest.raises(LogUnavailable):
        await log.extents("topic")
    with pytest.raises(LogUnavailable):
        await reader.start(Diary())
    with pytest.raises(LogUnavailable):
        await ensure_topics(options, {"topic": 1}, replication_factor=1)
    assert time.monotonic() - began_at < 2
    await log.close()
    await reader.close()


if __name__ == "__main__":
    asyncio.run(run_member(json.loads(sys.argv[1])))
