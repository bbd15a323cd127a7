"""Every engine of a log, with what tests do to it, and members of groups that can be killed and stopped.

Run as a program, ``python -m tests.contract.log_engines``, this file is a member of a consumer group in a process of
its own, which a test kills or stops with a signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from adapters.errors import LogGap, LogUnavailable, NotDurable
from adapters.kafka import KafkaLog, KafkaLogReader, ensure_topics
from adapters.kafka_options import KafkaOptions
from adapters.sqlite_log import SqliteLog, SqliteLogOptions, SqliteLogReader
from broker.ports import Log, LogReader
from schemas.record import LogRecord, Partition, PartitionExtent
from tests.conftest import Kafka
from tests.engines import KafkaServer
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
        command = [sys.executable, "-m", "tests.contract.log_engines", json.dumps(settings)]
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


async def append_many(log: Log, topic: str, values: Sequence[str], *, key: bytes | None = None) -> None:
    for value in values:
        await log.append(topic, key=key, value=value.encode(), headers={})


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


async def expect_gap(reader: LogReader, diary: Diary) -> None:
    with pytest.raises(LogGap):
        await read_until(reader, diary, lambda: False)


async def append_again(log: Log, topic: str) -> None:
    """As a sender does: until it is accepted."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                await log.append(topic, key=None, value=b"after", headers={})
            except NotDurable:
                continue
            return


async def start_again(reader: LogReader, diary: Diary) -> None:
    """As a consumer does: until every partition has a leader again."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                await reader.start(diary)
            except LogUnavailable:
                await asyncio.sleep(0.05)
                continue
            return


async def read_patiently(reader: LogReader, diary: Diary) -> list[LogRecord]:
    """The next records, whatever goes wrong before."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            with contextlib.suppress(LogUnavailable):
                if taken := diary.take(await reader.poll(records_max=100, wait_s=0.1)):
                    return taken


if __name__ == "__main__":
    asyncio.run(run_member(json.loads(sys.argv[1])))
