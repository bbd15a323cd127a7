"""The embedded log: topics, partitions and offsets in one SQLite file, for several processes on one machine.

Durable. WAL with ``synchronous=FULL``: a commit returns once it is on the disk. Appends that wait at the same
time share one commit. Before a transaction, before opening and before closing a connection, a blocking ``flock``
on a file beside the log is taken in the database thread: writers queue instead of starving each other, and two
checkpoints never meet.

Groups. Members of a group need no heartbeats: each holds an ``flock`` on a file of its own, and who can be locked
is dead. Partition ``i`` belongs to the member of rank ``i % members``, and is read only under an ``flock`` on the
file of that group and partition. The kernel drops the locks of a killed process at once; a process that hangs
keeps them, so whoever runs a reader must watch that it polls.

Group offsets are not kept here: the consumer stores them with its work.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import itertools
import os
import secrets
import sqlite3
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol, TypeVar
from urllib.parse import quote

import msgspec

from adapters.errors import LogError, LogGap, LogUnavailable, NotDurable
from schemas.record import LogRecord, Partition, PartitionExtent

Result = TypeVar("Result")

SCHEMA_VERSION = 1
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE topic (name TEXT PRIMARY KEY, log_id TEXT NOT NULL UNIQUE) WITHOUT ROWID;
CREATE TABLE partition (
    slot INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice, also not after a topic was deleted
    topic TEXT NOT NULL REFERENCES topic (name),
    number INTEGER NOT NULL,
    first_offset INTEGER NOT NULL DEFAULT 0,
    end_offset INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, number)
);
CREATE TABLE record (
    place INTEGER PRIMARY KEY,  -- the partition's slot, then the offset: see _place
    key BLOB,
    value BLOB NOT NULL,
    headers BLOB NOT NULL,  -- MessagePack map of text to bytes
    appended_at_us INTEGER NOT NULL
);
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""

OFFSET_BITS = 40
OFFSET_MAX = (1 << OFFSET_BITS) - 1

_read_headers = msgspec.msgpack.Decoder(dict[str, bytes]).decode
_write_headers = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, kw_only=True)
class SqliteLogOptions:
    """Where the embedded log is, and its limits. ``partitions`` is for topics that their first append creates."""

    path: Path
    partitions: int = 4
    partitions_max: int = 256
    append_timeout_s: float = 10.0
    read_timeout_s: float = 5.0
    busy_timeout_s: float = 5.0
    close_timeout_s: float = 5.0
    record_bytes_max: int = 4 * 1024 * 1024
    waiting_records_max: int = 20_000
    waiting_bytes_max: int = 64 * 1024 * 1024
    commit_records_max: int = 1_000
    commit_bytes_max: int = 8 * 1024 * 1024
    poll_bytes_max: int = 16 * 1024 * 1024
    trim_records_max: int = 10_000
    file_bytes_max: int = 64 * 1024 * 1024 * 1024
    wal_bytes_max: int = 64 * 1024 * 1024
    idle_wait_s: float = 0.02
    rebalance_wait_s: float = 0.2


class Assignment(Protocol):
    """What a reader calls when partitions come and go: the port of the same name."""

    async def on_assigned(self, extents: Mapping[Partition, PartitionExtent]) -> Mapping[Partition, int]:
        """Return the offset to read each newly assigned partition from."""
        ...

    async def on_revoked(self, partitions: Sequence[Partition]) -> None:
        """Finish or abandon work on these partitions."""
        ...


@dataclass(slots=True)
class _Append:
    """One record waiting for its commit."""

    topic: str
    key: bytes | None
    value: bytes
    headers: bytes
    size_bytes: int
    placed: asyncio.Future[tuple[Partition, int]]


@dataclass(slots=True)
class _Tail:
    """The growing end of a partition."""

    slot: int
    number: int
    first: int
    end: int


class SqliteLog:
    """The append side of the embedded log. Use it from one event loop; several processes may have one each."""

    def __init__(self, options: SqliteLogOptions) -> None:
        self._options = options
        self._file = _LogFile(options)
        self._thread = _DatabaseThread("sqlite-log")
        self._waiting: deque[_Append] = deque()
        self._waiting_bytes = 0
        self._committing: asyncio.Task[None] | None = None
        self._unconfirmed: deque[tuple[float, asyncio.Future[tuple[Partition, int]]]] = deque()
        self._impatience: asyncio.TimerHandle | None = None
        self._closed = False

    async def append(
        self, topic: str, *, key: bytes | None, value: bytes, headers: Mapping[str, bytes]
    ) -> tuple[Partition, int]:
        """Append one record and return where it stands, once its commit is on the disk.

        Raises NotDurable when that was not confirmed within ``append_timeout_s``, when too much is waiting
        already, and when the record is larger than ``record_bytes_max``.
        """
        append = self._admit(topic, key, value, _write_headers(dict(headers)))
        self._waiting.append(append)
        self._waiting_bytes += append.size_bytes
        if self._committing is None or self._committing.done():
            self._committing = asyncio.create_task(self._commit_waiting())
        self._expect(append.placed)
        return await append.placed

    async def extents(self, topic: str) -> dict[Partition, PartitionExtent]:
        """What the log holds of each partition of ``topic``; nothing of an unknown one. Raises LogUnavailable."""
        return await self._ask(lambda: self._file.extents(topic))

    async def read(self, partition: Partition, offset: int) -> LogRecord | None:
        """The record at ``offset``, or None when the log does not hold it. Raises LogUnavailable."""
        return await self._ask(lambda: self._file.read(partition, offset))

    async def read_from(self, partition: Partition, offset: int, *, records_max: int) -> Sequence[LogRecord]:
        """The first records from ``offset`` on, at most ``poll_bytes_max``; none when the log does not hold it.

        Raises LogUnavailable.
        """
        return await self._ask(lambda: self._file.read_from(partition, offset, records_max))

    async def create_topic(self, topic: str, partitions: int) -> None:
        """Make an empty topic; nothing happens when it is there already. Raises LogUnavailable."""
        await self._ask(lambda: self._file.create_topic(topic, partitions))

    async def delete_topic(self, topic: str) -> None:
        """Delete a topic with its records. Made again, it has another ``log_id``. Raises LogUnavailable."""
        await self._ask(lambda: self._file.delete_topic(topic))

    async def trim(self, partition: Partition, before: int) -> None:
        """Delete the records of a partition below the offset ``before``. Raises LogUnavailable."""
        while await self._ask(lambda: self._file.trim(partition, before)):
            pass

    async def close(self) -> None:
        """Commit what waits, as far as ``close_timeout_s`` allows, and let go of the file."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._options.close_timeout_s):
                if self._committing is not None:
                    await self._committing
                await self._thread.run(self._file.close)
        self._thread.stop()

    def _admit(self, topic: str, key: bytes | None, value: bytes, headers: bytes) -> _Append:
        size_bytes = len(value) + len(headers) + len(key or b"")
        if self._closed:
            raise NotDurable("the log is closed")
        if size_bytes > self._options.record_bytes_max:
            raise NotDurable("the record is larger than record_bytes_max")
        if len(self._waiting) >= self._options.waiting_records_max:
            raise NotDurable("waiting_records_max records are waiting for their commit already")
        if self._waiting_bytes + size_bytes > self._options.waiting_bytes_max:
            raise NotDurable("waiting_bytes_max bytes are waiting for their commit already")
        placed = asyncio.get_running_loop().create_future()
        return _Append(topic, key, value, headers, size_bytes, placed)

    def _expect(self, placed: asyncio.Future[tuple[Partition, int]]) -> None:
        """Have it fail when its time is over. All have the same time, so one timer, for the eldest, is enough."""
        while self._unconfirmed and self._unconfirmed[0][1].done():
            self._unconfirmed.popleft()
        loop = asyncio.get_running_loop()
        self._unconfirmed.append((loop.time() + self._options.append_timeout_s, placed))
        if self._impatience is None:
            self._impatience = loop.call_at(self._unconfirmed[0][0], self._give_up)

    def _give_up(self) -> None:
        loop = asyncio.get_running_loop()
        self._impatience = None
        while self._unconfirmed and (self._unconfirmed[0][1].done() or self._unconfirmed[0][0] <= loop.time()):
            _, placed = self._unconfirmed.popleft()
            if not placed.done():
                placed.set_exception(NotDurable("the commit was not confirmed in time"))
        if self._unconfirmed:
            self._impatience = loop.call_at(self._unconfirmed[0][0], self._give_up)

    async def _commit_waiting(self) -> None:
        """Commit batch after batch until nothing waits."""
        while batch := self._next_batch():
            try:
                places = await self._thread.run(functools.partial(self._file.append, batch))
            except Exception as error:  # whatever went wrong, no sender may be left without an answer
                for append in batch:
                    if not append.placed.done():
                        append.placed.set_exception(NotDurable(f"the commit failed: {_reason(error)}"))
            else:
                for append, place in zip(batch, places, strict=True):
                    if not append.placed.done():
                        append.placed.set_result(place)

    def _next_batch(self) -> list[_Append]:
        """Take what waits, up to the limits of one commit. Appends whose caller has gone are dropped."""
        batch: list[_Append] = []
        batch_bytes = 0
        while self._waiting and len(batch) < self._options.commit_records_max:
            if batch and batch_bytes + self._waiting[0].size_bytes > self._options.commit_bytes_max:
                break
            append = self._waiting.popleft()
            self._waiting_bytes -= append.size_bytes
            if not append.placed.done():
                batch.append(append)
                batch_bytes += append.size_bytes
        return batch

    async def _ask(self, job: Callable[[], Result]) -> Result:
        if self._closed:
            raise LogUnavailable("the log is closed")
        return await _run_within(self._thread, job, self._options.read_timeout_s)


class SqliteLogReader:
    """One member of a consumer group on one topic of the embedded log. One task at a time may use it.

    ``poll`` also does the group's work: it notices members that came or went, at most every
    ``rebalance_wait_s``, and calls the Assignment. A LogGap stands until ``seek`` chooses another offset.
    """

    def __init__(self, options: SqliteLogOptions, *, topic: str, group: str, member: str) -> None:
        self._options = options
        self._topic = topic
        self._member = member
        groups = options.path.with_name(f"{options.path.name}.groups")
        self._directory = groups / _file_name(group, topic)
        self._open()
        self._assignment: Assignment | None = None
        self._positions: dict[int, int] = {}
        self._log_ids: dict[int, str | None] = {}
        self._balance_at = float("-inf")
        self._turn = 0
        self._closed = False

    async def start(self, assignment: Assignment) -> None:
        """Join the group, after ``close`` anew; partitions are taken by the polls that follow.

        Raises LogUnavailable.
        """
        self._assignment = assignment
        if self._closed:
            self._open()
            self._closed = False
        await self._ask(self._membership.join)

    async def poll(self, *, records_max: int, wait_s: float) -> dict[Partition, Sequence[LogRecord]]:
        """Records waiting, by partition in order; empty after ``wait_s`` when there are none.

        Raises LogUnavailable, and LogGap when a position is outside the log or the topic was made again.
        """
        deadline = time.monotonic() + wait_s
        while True:
            await self._balance()
            if found := await self._read_waiting(records_max):
                return found
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return {}
            await asyncio.sleep(min(self._options.idle_wait_s, remaining_s))

    async def seek(self, partition: Partition, offset: int) -> None:
        """Read ``partition`` from ``offset`` on; nothing happens when it is not assigned to this member."""
        if partition.number in self._positions:
            self._positions[partition.number] = offset
            self._log_ids[partition.number] = None

    async def note_progress(self, next_offsets: Mapping[Partition, int]) -> None:
        """Nothing: the embedded log keeps no group offsets, the store beside it does."""

    async def contact(self) -> Mapping[Partition, int]:
        """The end offset of every assigned partition, read from the file that the path names now.

        Raises LogUnavailable when that does not succeed within ``read_timeout_s``.
        """
        extents = await self._ask(lambda: self._file.extents(self._topic))
        return {partition: extent.end for partition, extent in extents.items() if partition.number in self._positions}

    async def close(self) -> None:
        """Have work finished by ``on_revoked``, then leave the group."""
        if self._closed:
            return
        try:
            if self._positions and self._assignment is not None:
                await self._assignment.on_revoked([Partition(self._topic, n) for n in sorted(self._positions)])
        finally:
            self._positions.clear()
            self._balance_at = float("-inf")
            self._closed = True
            with contextlib.suppress(LogUnavailable):
                await _run_within(self._thread, self._let_go, self._options.close_timeout_s)
            self._thread.stop()

    def _open(self) -> None:
        """Begin afresh: a job of the former thread may still be stuck in what it held."""
        self._file = _LogFile(self._options)
        self._membership = _Membership(self._directory, self._member)
        self._thread = _DatabaseThread("sqlite-log-reader")

    async def _balance(self) -> None:
        """Give up the partitions that belong to others now, and take those that belong to this member.

        What it did not finish, because it was cancelled or the Assignment raised, the next poll does again.
        """
        if time.monotonic() < self._balance_at:
            return
        wanted, held = await self._ask(self._survey)
        if held - wanted:
            await self._revoke(sorted(held - wanted))
        held = await self._ask(lambda: self._membership.take(wanted))
        if held - self._positions.keys():
            await self._assign(sorted(held - self._positions.keys()))
        self._balance_at = time.monotonic() + self._options.rebalance_wait_s

    async def _revoke(self, numbers: Sequence[int]) -> None:
        assert self._assignment is not None, "poll before start"
        told = [Partition(self._topic, number) for number in numbers if number in self._positions]
        if told:
            await self._assignment.on_revoked(told)
        for number in numbers:
            self._positions.pop(number, None)
        await self._ask(lambda: self._membership.release(numbers))

    async def _assign(self, numbers: Sequence[int]) -> None:
        assert self._assignment is not None, "poll before start"
        extents = await self._ask(lambda: self._file.extents(self._topic))
        gained = {place: extent for place, extent in extents.items() if place.number in numbers}
        offsets = await self._assignment.on_assigned(gained)
        for partition, extent in gained.items():
            self._positions[partition.number] = offsets[partition]
            self._log_ids[partition.number] = extent.log_id

    async def _read_waiting(self, records_max: int) -> dict[Partition, Sequence[LogRecord]]:
        if not self._positions:
            return {}
        order = sorted(self._positions)
        self._turn += 1
        order = order[self._turn % len(order) :] + order[: self._turn % len(order)]
        positions = {number: (self._positions[number], self._log_ids[number]) for number in order}
        log_id, found = await self._ask(lambda: self._file.read_waiting(self._topic, positions, records_max))
        self._log_ids.update(dict.fromkeys(order, log_id))
        for partition, records in found.items():
            self._positions[partition.number] = records[-1].offset + 1
        return found

    def _survey(self) -> tuple[set[int], set[int]]:
        """The partitions whose rank is this member's, and those it holds."""
        members = self._membership.live_members()
        rank = members.index(self._membership.name)
        numbers = (partition.number for partition in self._file.extents(self._topic))
        return {number for number in numbers if number % len(members) == rank}, self._membership.held()

    def _let_go(self) -> None:
        self._membership.leave()
        self._file.close()

    async def _ask(self, job: Callable[[], Result]) -> Result:
        if self._closed:
            raise LogUnavailable("the reader is closed")
        return await _run_within(self._thread, job, self._options.read_timeout_s)


class _LogFile:
    """The SQLite file. All methods run in one thread."""

    def __init__(self, options: SqliteLogOptions) -> None:
        self._options = options
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._lock: int | None = None
        self._round_robin = itertools.count()

    def append(self, batch: Sequence[_Append]) -> list[tuple[Partition, int]]:
        """Commit the batch and return where each record stands."""
        appended_at_us = time.time_ns() // 1_000
        topics: dict[str, list[_Tail]] = {}
        rows: list[tuple[int, bytes | None, bytes, bytes, int]] = []
        places: list[tuple[Partition, int]] = []
        grown: dict[int, _Tail] = {}
        with self._writing() as connection:
            for append in batch:
                tails = topics.get(append.topic)
                if tails is None:
                    tails = topics[append.topic] = self._find_tails(connection, append.topic)
                tail = tails[self._choose(append.key, len(tails))]
                rows.append((_place(tail.slot, tail.end), append.key, append.value, append.headers, appended_at_us))
                places.append((Partition(append.topic, tail.number), tail.end))
                tail.end += 1
                grown[tail.slot] = tail
            ends = [(tail.end, tail.slot) for tail in grown.values()]
            connection.executemany("INSERT INTO record VALUES (?, ?, ?, ?, ?)", rows)
            connection.executemany("UPDATE partition SET end_offset = ? WHERE slot = ?", ends)
        return places

    def extents(self, topic: str) -> dict[Partition, PartitionExtent]:
        with self._reading() as connection:
            log_id = _find_log_id(connection, topic)
            tails = _select_tails(connection, topic)
        return {
            Partition(topic, tail.number): PartitionExtent(log_id=log_id, first=tail.first, end=tail.end)
            for tail in tails
        }

    def read(self, partition: Partition, offset: int) -> LogRecord | None:
        with self._reading() as connection:
            tails = {tail.number: tail for tail in _select_tails(connection, partition.topic)}
            tail = tails.get(partition.number)
            if tail is None or not tail.first <= offset < tail.end:
                return None
            records = _select_records(connection, partition, tail, offset, records_max=1, bytes_max=0)
        return records[0]

    def read_from(self, partition: Partition, offset: int, records_max: int) -> list[LogRecord]:
        with self._reading() as connection:
            tails = {tail.number: tail for tail in _select_tails(connection, partition.topic)}
            tail = tails.get(partition.number)
            if tail is None or not tail.first <= offset < tail.end:
                return []
            bytes_max = self._options.poll_bytes_max
            return _select_records(connection, partition, tail, offset, records_max=records_max, bytes_max=bytes_max)

    def read_waiting(
        self, topic: str, positions: Mapping[int, tuple[int, str | None]], records_max: int
    ) -> tuple[str, dict[Partition, Sequence[LogRecord]]]:
        """The ``log_id``, and records from each position on, up to the limits, one partition after the other.

        A position is an offset and the ``log_id`` it was chosen for (None: any). Raises LogGap.
        """
        found: dict[Partition, Sequence[LogRecord]] = {}
        bytes_left = self._options.poll_bytes_max
        with self._reading() as connection:
            log_id = _find_log_id(connection, topic)
            tails = {tail.number: tail for tail in _select_tails(connection, topic)}
            for number, (offset, known_log_id) in positions.items():
                tail = tails.get(number)
                if tail is None or known_log_id not in (None, log_id):
                    raise LogGap(f"{topic}/{number}: the topic was deleted or made again")
                if not tail.first <= offset <= tail.end:
                    raise LogGap(f"{topic}/{number}: {offset} is outside {tail.first} to {tail.end}")
                if offset < tail.end and records_max > 0 and bytes_left > 0:
                    partition = Partition(topic, number)
                    records = _select_records(
                        connection, partition, tail, offset, records_max=records_max, bytes_max=bytes_left
                    )
                    found[partition] = records
                    records_max -= len(records)
                    bytes_left -= sum(len(record.value) for record in records)
        return log_id, found

    def create_topic(self, topic: str, partitions: int) -> None:
        if not 1 <= partitions <= self._options.partitions_max:
            raise LogUnavailable("a topic has between 1 and partitions_max partitions")
        with self._writing() as connection:
            if not _select_tails(connection, topic):
                _insert_topic(connection, topic, partitions)

    def delete_topic(self, topic: str) -> None:
        with self._writing() as connection:
            for tail in _select_tails(connection, topic):
                span = (_place(tail.slot, 0), _place(tail.slot, OFFSET_MAX))
                connection.execute("DELETE FROM record WHERE place BETWEEN ? AND ?", span)
            connection.execute("DELETE FROM partition WHERE topic = ?", (topic,))
            connection.execute("DELETE FROM topic WHERE name = ?", (topic,))

    def trim(self, partition: Partition, before: int) -> bool:
        """Delete up to ``trim_records_max`` records below ``before``; true when there are more of them."""
        with self._writing() as connection:
            tails = {tail.number: tail for tail in _select_tails(connection, partition.topic)}
            tail = tails.get(partition.number)
            if tail is None:
                return False
            before = min(before, tail.end)
            first = min(before, tail.first + self._options.trim_records_max)
            if first <= tail.first:
                return False
            span = (_place(tail.slot, tail.first), _place(tail.slot, first))
            connection.execute("DELETE FROM record WHERE place >= ? AND place < ?", span)
            connection.execute("UPDATE partition SET first_offset = ? WHERE slot = ?", (first, tail.slot))
        return first < before

    def close(self) -> None:
        """Close the connection, under the lock because the last one to close makes a checkpoint."""
        if self._connection is not None:
            with self._locked():
                self._disconnect()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _find_tails(self, connection: sqlite3.Connection, topic: str) -> list[_Tail]:
        return _select_tails(connection, topic) or _insert_topic(connection, topic, self._options.partitions)

    def _choose(self, key: bytes | None, partitions: int) -> int:
        """A stable hash of the key, so that records of one key keep their order; without a key, in turn."""
        return (next(self._round_robin) if key is None else zlib.crc32(key)) % partitions

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        connection = self._connected()
        with self._locked():
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                self._check_in_place()
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """One transaction, so that what is read fits together."""
        connection = self._connected()
        connection.execute("BEGIN")
        try:
            yield connection
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self._lock is None:
            path = self._options.path
            self._lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _connected(self) -> sqlite3.Connection:
        """A connection to the file that the path names now: it may have been put back from a backup."""
        if self._connection is None or _file_identity(self._options.path) != self._identity:
            self._connect()
        assert self._connection is not None
        return self._connection

    def _check_in_place(self) -> None:
        """What is committed to a file that was deleted or replaced is lost, though every call succeeds."""
        if _file_identity(self._options.path) != self._identity:
            raise FileNotFoundError(errno.ENOENT, "the log's file was deleted or replaced")

    def _connect(self) -> None:
        path = self._options.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._identity is not None and not path.exists():  # an empty new log would hide the loss
            raise FileNotFoundError(errno.ENOENT, "the log's file has gone")
        with self._locked():
            _create_private(path)
            identity = _file_identity(path)
            self._disconnect()
            self._connection = connection = sqlite3.connect(
                path, timeout=self._options.busy_timeout_s, isolation_level=None
            )
            self._identity = identity
            self._prepare(connection)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            assert _pragma(connection, "journal_mode") == "wal"
            assert _pragma(connection, "synchronous") == 2, "2 is FULL: a commit waits for the disk"
            pages_max = self._options.file_bytes_max // int(_pragma(connection, "page_size"))
            connection.execute(f"PRAGMA max_page_count = {pages_max}")
            connection.execute(f"PRAGMA journal_size_limit = {self._options.wal_bytes_max}")
            if _pragma(connection, "user_version") == 0:
                connection.executescript(SCHEMA)
            if _pragma(connection, "user_version") != SCHEMA_VERSION:
                raise sqlite3.NotSupportedError("the log's file was written by another version")
        except BaseException:
            self._disconnect()
            raise

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class _Membership:
    """A member's place in its group, in files and their locks. All methods run in one thread."""

    def __init__(self, directory: Path, member: str) -> None:
        self._directory = directory
        self._member = member
        self._own: int | None = None
        self._taken: dict[int, int] = {}
        self.name = ""

    def join(self) -> None:
        """Lock a new file of one's own. Whoever looks for the dead may have deleted it before it was locked."""
        self._directory.mkdir(parents=True, exist_ok=True)
        while self._own is None:
            self.name = f"member-{_file_name(self._member, secrets.token_hex(8))}"
            own = os.open(self._directory / self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(own, fcntl.LOCK_EX)
            if os.fstat(own).st_nlink:
                self._own = own
            else:
                os.close(own)

    def live_members(self) -> list[str]:
        """The names of all members whose process lives, this one included, sorted. The dead are removed."""
        if self._own is None or not os.fstat(self._own).st_nlink:
            raise FileNotFoundError(errno.ENOENT, "this member's file has gone, so that others do not see it")
        names = [path.name for path in self._directory.glob("member-*") if path.name != self.name]
        return sorted([self.name, *(name for name in names if self._is_alive(name))])

    def held(self) -> set[int]:
        """The partitions this member has locked."""
        return set(self._taken)

    def take(self, numbers: Iterable[int]) -> set[int]:
        """Lock these partitions and return all that are held now; another member may not have let go yet."""
        for number in set(numbers) - self._taken.keys():
            descriptor = os.open(self._directory / f"partition-{number}", os.O_RDWR | os.O_CREAT, 0o600)
            if _try_lock(descriptor, fcntl.LOCK_EX):
                self._taken[number] = descriptor
            else:
                os.close(descriptor)
        return self.held()

    def release(self, numbers: Iterable[int]) -> None:
        """Unlock these partitions."""
        for number in numbers:
            os.close(self._taken.pop(number))

    def leave(self) -> None:
        """Unlock everything."""
        self.release(list(self._taken))
        if self._own is not None:
            (self._directory / self.name).unlink(missing_ok=True)
            os.close(self._own)
            self._own = None

    def _is_alive(self, name: str) -> bool:
        path = self._directory / name
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            if not _try_lock(descriptor, fcntl.LOCK_SH):
                return True
            path.unlink(missing_ok=True)
            return False
        finally:
            os.close(descriptor)


class _DatabaseThread:
    """Runs jobs one after the other in a thread of its own, where a SQLite connection lives.

    It is a daemon: a job stuck in a lock that another process never releases must not keep this one alive.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    async def run(self, job: Callable[[], Result]) -> Result:
        """Run ``job`` there and return what it returns. When cancelled, the job still runs to its end."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Result] = loop.create_future()

        def work() -> None:
            try:
                deliver = functools.partial(_succeed, done, job())
            except BaseException as error:  # carried to whoever awaits
                deliver = functools.partial(_fail, done, error)
            with contextlib.suppress(RuntimeError):  # the loop has ended, so nobody waits
                loop.call_soon_threadsafe(deliver)

        self._jobs.put(work)
        return await done

    def stop(self) -> None:
        """End the thread once the jobs given so far are done."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (work := self._jobs.get()) is not None:
            work()


def _succeed(done: asyncio.Future[Result], result: Result) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[Result], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)


async def _run_within(thread: _DatabaseThread, job: Callable[[], Result], limit_s: float) -> Result:
    try:
        async with asyncio.timeout(limit_s):
            return await thread.run(job)
    except TimeoutError:
        raise LogUnavailable("the log's file did not answer in time") from None
    except (sqlite3.Error, OSError) as error:
        raise LogUnavailable(f"the log's file cannot be used: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """A word for what went wrong, never the error's own text."""
    if isinstance(error, LogError):
        return str(error)
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorname", type(error).__name__)
    if isinstance(error, OSError) and error.errno is not None:
        return errno.errorcode.get(error.errno, type(error).__name__)
    return type(error).__name__


def _place(slot: int, offset: int) -> int:
    """The row id of a record: one B-tree holds the records of every partition side by side, in their order."""
    assert 0 <= offset <= OFFSET_MAX
    return slot << OFFSET_BITS | offset


def _find_log_id(connection: sqlite3.Connection, topic: str) -> str:
    row = connection.execute("SELECT log_id FROM topic WHERE name = ?", (topic,)).fetchone()
    return str(row[0]) if row else ""


def _select_tails(connection: sqlite3.Connection, topic: str) -> list[_Tail]:
    """The partitions of a topic in the order of their numbers; none when there is no such topic."""
    statement = "SELECT slot, number, first_offset, end_offset FROM partition WHERE topic = ? ORDER BY number"
    return [_Tail(*row) for row in connection.execute(statement, (topic,))]


def _insert_topic(connection: sqlite3.Connection, topic: str, partitions: int) -> list[_Tail]:
    connection.execute("INSERT INTO topic VALUES (?, ?)", (topic, secrets.token_hex(16)))
    numbers = [(topic, number) for number in range(partitions)]
    connection.executemany("INSERT INTO partition (topic, number) VALUES (?, ?)", numbers)
    return _select_tails(connection, topic)


def _select_records(
    connection: sqlite3.Connection,
    partition: Partition,
    tail: _Tail,
    offset: int,
    *,
    records_max: int,
    bytes_max: int,
) -> list[LogRecord]:
    """At least one record from ``offset`` on, which the partition holds. Raises LogGap where rows are missing."""
    statement = (
        "SELECT place, key, value, headers, appended_at_us FROM record"
        " WHERE place >= ? AND place < ? ORDER BY place LIMIT ?"
    )
    span = (_place(tail.slot, offset), _place(tail.slot, tail.end), records_max)
    records: list[LogRecord] = []
    records_bytes = 0
    for place, key, value, headers, appended_at_us in connection.execute(statement, span):
        if place & OFFSET_MAX != offset + len(records):
            break
        records.append(
            LogRecord(
                partition=partition,
                offset=place & OFFSET_MAX,
                key=key,
                value=value,
                headers=_read_headers(headers),
                appended_at=datetime.fromtimestamp(appended_at_us / 1_000_000, UTC),
            )
        )
        records_bytes += len(value)
        if records_bytes >= bytes_max:
            break
    if not records:
        raise LogGap(f"{partition.topic}/{partition.number}: the record at {offset} is missing")
    return records


def _pragma(connection: sqlite3.Connection, name: str) -> str | int:
    value: str | int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def _create_private(path: Path) -> None:
    """Create the file for its owner only. One that exists is not touched: opening it would drop SQLite's locks."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def _file_identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _file_name(*names: str) -> str:
    """One file name for several names, whatever is in them."""
    return ",".join(quote(name, safe="") for name in names)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
