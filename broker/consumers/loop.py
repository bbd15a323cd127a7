"""The only consume loop: poll, hand over, move on. The stored offset decides where a group stands, never the log's.

What the loop promises (house invariants 3 and 4): the offset moves in the handler's transaction and only from where
this worker left it, so a worker that lost its partition cannot write; an outage of database or log pauses and never
quarantines; data that the database refuses halves the batch until the one message is found; after an unclean stop
messages run one at a time with the attempt noted beforehand.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Protocol

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.errors import LogError, LogGap
from broker.ports import Clock, LogReader
from broker.storage import handled
from broker.storage.database import Database, is_database_outage
from broker.storage.handled import GENERATION, Fenced, Place
from broker.telemetry import BATCH_SECONDS, LAG, LOG_GAPS, LogEvent, innermost_line, log
from schemas.record import LogRecord, Partition, PartitionExtent


class LoopOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the loop."""

    group: str
    records_max: int = 500
    poll_wait_s: float = 0.2
    contact_interval_s: float = 3.0
    retry_wait_s_max: float = 5.0
    poison_attempts_max: int = 3
    slow_turns_max: int = 3
    """A batch that the database did not get done in time so often is halved."""


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive records of one partition, to be handled in one transaction that moves the offset."""

    group: str
    partition: Partition
    log_id: str
    records: Sequence[LogRecord]
    expected: int

    @property
    def next_offset(self) -> int:
        """Where the group reads on when this batch is handled."""
        return self.records[-1].offset + 1

    async def move_offset(self, connection: AsyncConnection, now: datetime) -> None:
        """Move the group's stored offset behind this batch; raises Fenced when somebody else has moved it."""
        await handled.move_offset(
            connection,
            self.group,
            self.partition,
            log_id=self.log_id,
            expected=self.expected,
            to=self.next_offset,
            records=len(self.records),
            now=now,
        )


class Handler(Protocol):
    """What a flow does with its messages."""

    async def handle(self, batch: Batch) -> int:
        """Handle the batch in one transaction, return how many; raises Fenced when the partition is another's."""
        ...

    async def quarantine(self, batch: Batch, reason: str) -> int:
        """Keep the one record of the batch for a person, unhandled, and move the offset past it."""
        ...


class _AskAgain(LogError):
    """Partitions could not be taken with what the log said of them before. The next poll asks the log anew."""


class _Held(msgspec.Struct, kw_only=True):
    log_id: str
    next_offset: int
    careful: int
    """How many messages are still handled one at a time because the last worker did not stop cleanly."""
    is_wanted_back: bool = False


class ConsumeLoop:
    """One member of a consumer group. Is also the reader's Assignment: it says where to begin."""

    def __init__(
        self, reader: LogReader, handler: Handler, database: Database, clock: Clock, options: LoopOptions
    ) -> None:
        self._reader = reader
        self._handler = handler
        self._database = database
        self._clock = clock
        self._options = options
        self._held: dict[Partition, _Held] = {}
        self._doubted: dict[Partition, Place] = {}
        """Stored places that the log did not hold when it was asked last."""
        self._takes = 0
        """How often in a row taking partitions came to nothing."""
        self._stopping = asyncio.Event()
        self._busy = asyncio.Lock()
        self._next_contact_at = 0.0
        self._is_member = False
        self.alive_at = self.worked_at = self._progressed_at = time.monotonic()
        """When the loop last showed life, and when it last did its work or had none (monotonic seconds)."""

    def stop(self) -> None:
        """Finish the batch in hand and end ``run``."""
        self._stopping.set()

    async def run(self) -> None:
        """Consume until stopped. Ends by an error only on a bug; a log that is away is tried again."""
        try:
            while not self._stopping.is_set():
                await self._turn_or_wait()
            await self._release_all()
        except BaseException:
            # Not a clean stop: whoever reads on must be careful.
            self._held.clear()
            raise
        finally:
            await self._reader.close()

    async def on_assigned(self, extents: Mapping[Partition, PartitionExtent]) -> Mapping[Partition, int]:
        """Begin where the stored offset stands; without one at the beginning; at a gap say so and lose nothing.

        During an outage of the database it is not tried again here: the extents would grow old meanwhile, and the
        group could not take the partitions away.
        """
        try:
            taken = await self._take_all(extents)
        except Exception as error:
            if not is_outage(error) and not isinstance(error, Fenced):
                raise
            self._report_retry(error, self._takes + 1)
            raise _AskAgain(type(error).__name__) from None
        self._takes = 0
        self._held.update(taken)
        log(LogEvent.PARTITIONS_ASSIGNED, group=self._options.group, count=len(extents))
        return {partition: held.next_offset for partition, held in taken.items()}

    async def on_revoked(self, partitions: Sequence[Partition]) -> None:
        """Let the batch in hand end, then let go of the partitions."""
        log(LogEvent.PARTITIONS_REVOKED, group=self._options.group, count=len(partitions))
        for partition in partitions:
            if partition in self._held:
                self._held[partition].is_wanted_back = True
        async with self._busy:
            for partition in partitions:
                await self._release(partition)

    async def _turn_or_wait(self) -> None:
        try:
            if not self._is_member:
                await self._reader.start(self)
                self._is_member = True
            await self._turn()
        except (LogGap, Fenced) as error:
            log(LogEvent.REJOINED, group=self._options.group, error=type(error).__name__)
            await self._leave()
        except _AskAgain:
            self._takes += 1
            await self._pause(self._takes)
        except LogError as error:
            log(LogEvent.LOG_UNAVAILABLE, group=self._options.group, error=type(error).__name__)
            await self._pause(1)

    async def _turn(self) -> None:
        records = await self._reader.poll(records_max=self._options.records_max, wait_s=self._options.poll_wait_s)
        queue = deque(records.items())
        while queue:
            if self._stopping.is_set():
                return
            partition, waiting = queue.popleft()
            async with self._busy:
                rest = await self._handle_first(partition, waiting)
            if rest:
                # Messages that run one at a time take turns with those of other partitions.
                queue.append((partition, rest))
            await self._prove_alive()
        await self._reader.note_progress({part: self._held[part].next_offset for part in records if part in self._held})
        await self._prove_alive()

    async def _prove_alive(self) -> None:
        """Ask the log itself, now and then, where it ends; nothing else proves that this consumer works.

        Not an empty poll, for a consumer can stop silently. Not a handled batch, for it may have been fetched long
        ago. And while the log holds more than was handled, its answer only confirms what was handled last.
        """
        if time.monotonic() < self._next_contact_at:
            return
        self._next_contact_at = time.monotonic() + self._options.contact_interval_s
        try:
            ends = await self._reader.contact()
        except LogError as error:
            # What was fetched before is handled all the same.
            log(LogEvent.LOG_UNAVAILABLE, group=self._options.group, error=type(error).__name__)
            return
        lag = sum(max(0, end - self._held[part].next_offset) for part, end in ends.items() if part in self._held)
        LAG.labels(group=self._options.group).set(lag)
        proven_at = self._progressed_at if lag else time.monotonic()
        self.alive_at, self.worked_at = max(self.alive_at, proven_at), max(self.worked_at, proven_at)

    async def _handle_first(self, partition: Partition, waiting: Sequence[LogRecord]) -> Sequence[LogRecord]:
        """Handle one batch of what waits; returns the rest, nothing when the partition went away."""
        held = self._held.get(partition)
        if held is None:
            return []
        records = [record for record in waiting if record.offset >= held.next_offset]
        if not records:
            return []
        size = 1 if held.careful else len(records)
        batch = Batch(
            group=self._options.group,
            partition=partition,
            log_id=held.log_id,
            records=records[:size],
            expected=held.next_offset,
        )
        if not await self._handle(batch, held):
            return []
        held.careful = max(0, held.careful - size)
        held.next_offset = batch.next_offset
        return records[size:]

    async def _handle(self, batch: Batch, held: _Held) -> bool:
        """Handle one batch, come what may; False when it was not: we are stopping or the partition goes away."""
        act = partial(self._handler.handle, batch)
        if held.careful:
            attempts = await self._persist(held, partial(self._note_attempt, batch))
            if attempts is None:
                return False
            if attempts >= self._options.poison_attempts_max:
                act = partial(self._handler.quarantine, batch, "ended_the_process_repeatedly")
        try:
            with BATCH_SECONDS.time():
                return await self._persist(held, act, is_divisible=len(batch.records) > 1) is not None
        except Fenced:
            raise
        except Exception as error:
            return await self._divide(batch, held, error)

    async def _divide(self, batch: Batch, held: _Held, error: Exception) -> bool:
        """Something in the batch is refused whatever we do, or it is too much: let what is bad cost only itself."""
        log(
            LogEvent.BATCH_HALVED,
            group=batch.group,
            size=len(batch.records),
            error=type(error).__name__,
            at=innermost_line(error.__traceback__),
        )
        if len(batch.records) == 1:
            act = partial(self._handler.quarantine, batch, "refused_by_the_database")
            return await self._persist(held, act) is not None
        middle = len(batch.records) // 2
        first = msgspec.structs.replace(batch, records=batch.records[:middle])
        second = msgspec.structs.replace(batch, records=batch.records[middle:], expected=first.next_offset)
        return await self._handle(first, held) and await self._handle(second, held)

    async def _persist(
        self, held: _Held, act: Callable[[], Awaitable[int]], *, is_divisible: bool = False
    ) -> int | None:
        """Do it, however long database or log are away; None when we stop or the partition is wanted back."""
        turn = 0
        while not self._stopping.is_set() and not held.is_wanted_back:
            try:
                result = await act()
            except Exception as error:
                if not is_outage(error):
                    raise
                turn += 1
                self._report_retry(error, turn)
                if is_divisible and isinstance(error, TimeoutError) and turn >= self._options.slow_turns_max:
                    raise
                await self._pause(turn)
            else:
                self._progressed_at = time.monotonic()
                return result
        return None

    async def _note_attempt(self, batch: Batch) -> int:
        async with self._database.writing() as connection:
            return await handled.note_attempt(connection, batch.partition, batch.log_id, batch.records[0].offset)

    async def _take_all(self, extents: Mapping[Partition, PartitionExtent]) -> dict[Partition, _Held]:
        async with self._database.writing() as connection:
            places = await handled.load_places(connection, self._options.group, extents)
            self._look_twice(places, extents)
            return {
                partition: await self._take(connection, partition, places.get(partition), extent)
                for partition, extent in sorted(extents.items())
            }

    def _look_twice(self, places: Mapping[Partition, Place], extents: Mapping[Partition, PartitionExtent]) -> None:
        """Raise _AskAgain for a stored place outside the log unless it stood there before the log was asked.

        The extents are older than the places. Whoever sleeps between the two, stopped or starved, and loses the
        partition meanwhile, finds a place that another worker has moved past the end it knows of: that is no gap.
        The end of a log asked after the place was read can only be the newer of the two. So a gap is a place that is
        outside two answers of the log, and has not moved since before the second was asked for.
        """
        outside = {part: place for part, place in places.items() if not _continues(place, extents[part])}
        doubted, self._doubted = self._doubted, outside
        if any(doubted.get(partition) != place for partition, place in outside.items()):
            raise _AskAgain("the stored offset is not in the log")

    async def _take(
        self, connection: AsyncConnection, partition: Partition, known: Place | None, extent: PartitionExtent
    ) -> _Held:
        now = self._clock.now()
        if known is None:
            place = Place(
                log_id=extent.log_id, first_offset=extent.first, next_offset=extent.first, stopped_cleanly=True
            )
        elif _continues(known, extent):
            place = known
        else:
            self._report_gap(partition, known, extent)
            await handled.record_gap(connection, self._options.group, partition, place=known, found=extent, now=now)
            # Everything the log still holds is read again: the handled-markers keep it from counting twice.
            place = Place(
                log_id=_next_generation(known.log_id, extent.log_id),
                first_offset=extent.first,
                next_offset=extent.first,
                stopped_cleanly=known.stopped_cleanly,
            )
        if not place.stopped_cleanly:
            log(
                LogEvent.UNCLEAN_STOP,
                group=self._options.group,
                topic=partition.topic,
                partition=partition.number,
            )
        await handled.take_partition(connection, self._options.group, partition, place, known=known, now=now)
        return _Held(
            log_id=place.log_id,
            next_offset=place.next_offset,
            careful=0 if place.stopped_cleanly else self._options.records_max,
        )

    def _report_gap(self, partition: Partition, place: Place, extent: PartitionExtent) -> None:
        LOG_GAPS.inc()
        log(
            LogEvent.LOG_GAP,
            group=self._options.group,
            topic=partition.topic,
            partition=partition.number,
            stored=place.next_offset,
            first=extent.first,
            end=extent.end,
        )

    def _report_retry(self, error: Exception, turn: int) -> None:
        # The loop lives and says so: an outage of the database is not a silent stop, but no work either.
        self.alive_at = time.monotonic()
        log(LogEvent.BATCH_RETRIED, group=self._options.group, error=type(error).__name__, turn=turn)

    async def _leave(self) -> None:
        """Take the partitions anew: the stored offsets say where to go on, and a gap in the log is found and said."""
        self._is_member = False
        await self._release_all()
        await self._reader.close()
        await self._pause(1)

    async def _release_all(self) -> None:
        for partition in list(self._held):
            await self._release(partition)

    async def _release(self, partition: Partition) -> None:
        held = self._held.pop(partition, None)
        if held is None:
            return
        try:
            async with self._database.writing() as connection:
                await handled.note_clean_stop(
                    connection, self._options.group, partition, held.next_offset, self._clock.now()
                )
        except Exception as error:
            # Not noted is harmless: the next worker is careful for a while.
            log(LogEvent.BATCH_RETRIED, group=self._options.group, error=type(error).__name__, turn=0)

    async def _pause(self, turn: int) -> None:
        seconds = min(self._options.retry_wait_s_max, 0.05 * 2.0 ** min(turn, 10)) * random.uniform(0.5, 1.0)
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return


def is_outage(error: BaseException) -> bool:
    """Whether an error says that database or log are away or busy, and nothing about the data."""
    if isinstance(error, LogError):
        return not isinstance(error, LogGap)
    return is_database_outage(error)


def _continues(place: Place, extent: PartitionExtent) -> bool:
    return place.is_on(extent.log_id) and extent.first <= place.next_offset <= extent.end


def _next_generation(stored: str, found: str) -> str:
    """A name for the log after a gap: positions read again must not meet those settled before."""
    _, _, generation = stored.partition(GENERATION)
    return f"{found}{GENERATION}{int(generation or 0) + 1}"
