"""Ports kept in memory: the same behaviour as the engines in one process, held to it by the same tests."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from adapters.errors import LogGap, LogUnavailable, NotDurable
from schemas.record import LogRecord, Partition, PartitionExtent

if TYPE_CHECKING:
    from broker.ports import Assignment, Clock, Log, LogReader

    def _prove_ports(log: MemoryLog, reader: MemoryLogReader, clock: ManualClock) -> tuple[Log, LogReader, Clock]:
        return log, reader, clock


class ManualClock:
    """A clock that stands until it is moved."""

    def __init__(self, now: datetime = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)) -> None:
        assert now.tzinfo is UTC
        self._now = now

    def now(self) -> datetime:
        """The instant it stands at, aware UTC."""
        return self._now

    def advance(self, by: timedelta) -> None:
        """Move it forward, or back when ``by`` is negative."""
        self._now += by

    def move_to(self, now: datetime) -> None:
        """Move it to this instant."""
        assert now.tzinfo is UTC
        self._now = now


class _MemoryTopic:
    def __init__(self, log_id: str, partitions: int) -> None:
        self.log_id = log_id
        self.records: list[list[LogRecord]] = [[] for _ in range(partitions)]
        self.first = [0] * partitions


class MemoryLog:
    """A log that one process shares. ``is_reachable = False`` makes it refuse as an engine that is down."""

    def __init__(self, *, partitions: int = 4) -> None:
        self.is_reachable = True
        self._partitions = partitions
        self._topics: dict[str, _MemoryTopic] = {}
        self._groups: dict[tuple[str, str], list[MemoryLogReader]] = {}
        self._log_ids = itertools.count(1)
        self._round_robin = itertools.count()
        self._changed = asyncio.Event()
        self._closed = False

    async def append(
        self, topic: str, *, key: bytes | None, value: bytes, headers: Mapping[str, bytes]
    ) -> tuple[Partition, int]:
        """Append one record and return where it stands. Raises NotDurable when closed or not reachable."""
        await asyncio.sleep(0)
        if self._closed or not self.is_reachable:
            raise NotDurable("the log is not there")
        if topic not in self._topics:
            self.create_topic(topic, self._partitions)
        records = self._topics[topic].records
        number = (next(self._round_robin) if key is None else zlib.crc32(key)) % len(records)
        partition = Partition(topic, number)
        offset = self._topics[topic].first[number] + len(records[number])
        record = LogRecord(
            partition=partition,
            offset=offset,
            key=key,
            value=value,
            headers=dict(headers),
            appended_at=datetime.now(UTC),
        )
        records[number].append(record)
        self._wake_readers()
        return partition, offset

    async def extents(self, topic: str) -> dict[Partition, PartitionExtent]:
        """What the log holds of each partition of ``topic``; nothing of an unknown one."""
        self._check()
        found = self._topics.get(topic)
        if found is None:
            return {}
        return {
            Partition(topic, number): PartitionExtent(log_id=found.log_id, first=first, end=first + len(records))
            for number, (first, records) in enumerate(zip(found.first, found.records, strict=True))
        }

    async def read(self, partition: Partition, offset: int) -> LogRecord | None:
        """The record at ``offset``, or None when the log does not hold it."""
        extent = (await self.extents(partition.topic)).get(partition)
        if extent is None or not extent.first <= offset < extent.end:
            return None
        return self.records_from(partition, offset)[0]

    async def read_from(self, partition: Partition, offset: int, *, records_max: int) -> Sequence[LogRecord]:
        """The first records from ``offset`` on; none when the log does not hold it."""
        extent = (await self.extents(partition.topic)).get(partition)
        if extent is None or not extent.first <= offset < extent.end:
            return []
        return self.records_from(partition, offset)[:records_max]

    def records_from(self, partition: Partition, offset: int) -> list[LogRecord]:
        """The records of a partition from an offset on that it holds."""
        found = self._topics[partition.topic]
        return found.records[partition.number][offset - found.first[partition.number] :]

    def create_topic(self, topic: str, partitions: int) -> None:
        """Make an empty topic; nothing happens when it is there already."""
        self._topics.setdefault(topic, _MemoryTopic(f"memory-{next(self._log_ids)}", partitions))

    def delete_topic(self, topic: str) -> None:
        """Delete a topic with its records. Made again, it has another ``log_id``."""
        self._topics.pop(topic, None)
        self._wake_readers()

    def trim(self, partition: Partition, before: int) -> None:
        """Delete the records of a partition below the offset ``before``."""
        found = self._topics[partition.topic]
        del found.records[partition.number][: before - found.first[partition.number]]
        found.first[partition.number] = before

    def expel(self, reader: MemoryLogReader) -> None:
        """What a group does to a member it has not heard of: others take its partitions, and it does not know."""
        reader.forget_membership()
        self.members_of(reader).remove(reader)
        self._wake_readers()

    def members_of(self, reader: MemoryLogReader) -> list[MemoryLogReader]:
        """The members of the reader's group, in the order they joined."""
        return self._groups.setdefault((reader.group, reader.topic), [])

    async def close(self) -> None:
        """Accept nothing more."""
        self._closed = True

    async def wait_for_change(self, limit_s: float) -> None:
        """Until something was appended or the group changed."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), limit_s)

    def _check(self) -> None:
        if self._closed or not self.is_reachable:
            raise LogUnavailable("the log is not there")

    def _wake_readers(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class MemoryLogReader:
    """One member of a consumer group on one topic of a MemoryLog."""

    def __init__(self, log: MemoryLog, *, topic: str, group: str) -> None:
        self.topic = topic
        self.group = group
        self._log = log
        self._assignment: Assignment | None = None
        self._held: set[int] = set()
        self._positions: dict[Partition, int] = {}
        self._log_ids: dict[Partition, str | None] = {}

    async def start(self, assignment: Assignment) -> None:
        """Join the group; partitions are taken by the polls that follow."""
        self._assignment = assignment
        self._log.members_of(self).append(self)

    async def poll(self, *, records_max: int, wait_s: float) -> dict[Partition, Sequence[LogRecord]]:
        """Records waiting, by partition in order; empty after ``wait_s``. Raises LogGap and LogUnavailable."""
        deadline = time.monotonic() + wait_s
        while True:
            await self._balance()
            if found := await self._read_waiting(records_max):
                return found
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                return {}
            await self._log.wait_for_change(min(remaining_s, 0.05))

    async def seek(self, partition: Partition, offset: int) -> None:
        """Read ``partition`` from ``offset`` on; nothing happens when it is not assigned to this member."""
        if partition in self._positions:
            self._positions[partition] = offset
            self._log_ids[partition] = None

    async def note_progress(self, next_offsets: Mapping[Partition, int]) -> None:
        """Nothing: a log in memory has no operators."""

    async def contact(self) -> Mapping[Partition, int]:
        """The end offset of every assigned partition. Raises LogUnavailable."""
        extents = await self._log.extents(self.topic)
        return {partition: extents[partition].end for partition in self._positions if partition in extents}

    async def close(self) -> None:
        """Have work finished by ``on_revoked``, then leave the group."""
        await self._revoke(set(self._held))
        self.vanish()

    def vanish(self) -> None:
        """Be gone without a word, as a killed process is."""
        self._held.clear()
        with contextlib.suppress(ValueError):
            self._log.members_of(self).remove(self)

    def forget_membership(self) -> None:
        """Hold nothing any more, without having been told."""
        self._held.clear()

    async def _balance(self) -> None:
        members = self._log.members_of(self)
        if self not in members:
            await self._revoke({partition.number for partition in self._positions})
            members.append(self)
        numbers = [partition.number for partition in await self._log.extents(self.topic)]
        wanted = {number for number in numbers if number % len(members) == members.index(self)}
        if self._held - wanted:
            await self._revoke(self._held - wanted)
        self._held |= wanted.difference(*(member._held for member in members if member is not self))
        gained = self._held - {partition.number for partition in self._positions}
        if gained:
            await self._assign(gained)

    async def _revoke(self, numbers: set[int]) -> None:
        assert self._assignment is not None, "poll before start"
        told = sorted(partition for partition in self._positions if partition.number in numbers)
        if told:
            await self._assignment.on_revoked(told)
        for partition in told:
            del self._positions[partition]
        self._held -= numbers

    async def _assign(self, numbers: set[int]) -> None:
        assert self._assignment is not None, "poll before start"
        extents = await self._log.extents(self.topic)
        gained = {partition: extent for partition, extent in extents.items() if partition.number in numbers}
        offsets = await self._assignment.on_assigned(gained)
        for partition, extent in gained.items():
            self._positions[partition] = offsets[partition]
            self._log_ids[partition] = extent.log_id

    async def _read_waiting(self, records_max: int) -> dict[Partition, Sequence[LogRecord]]:
        found: dict[Partition, Sequence[LogRecord]] = {}
        extents = await self._log.extents(self.topic)
        for partition, offset in sorted(self._positions.items(), key=lambda item: item[1]):
            extent = extents.get(partition)
            if extent is None or self._log_ids[partition] not in (None, extent.log_id):
                raise LogGap(f"{partition.topic}/{partition.number}: the topic was deleted or made again")
            if not extent.first <= offset <= extent.end:
                raise LogGap(f"{partition.topic}/{partition.number}: {offset} is outside the log")
            self._log_ids[partition] = extent.log_id
            records = self._log.records_from(partition, offset)[:records_max]
            if records:
                found[partition] = records
                records_max -= len(records)
        for partition, taken in found.items():
            self._positions[partition] = taken[-1].offset + 1
        return found
