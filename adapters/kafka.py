"""The distributed log: Apache Kafka 2.8 or newer, through aiokafka.

aiokafka's defaults are unsafe here. What is set instead, and held by tests: ``acks="all"`` with the idempotent
producer and no lingering; no automatic commits; ``auto_offset_reset="none"``; eager assignors; a
``group_instance_id`` per member; ``read_committed``.

Offsets come from the Assignment, never from Kafka: a partition is read once ``on_assigned`` has answered and its
offset was sought. Offsets committed by ``note_progress`` are for operators.

Topics are recognised by the id that Kafka gives each when it is made (KIP-516), which aiokafka does not ask for: see
``kafka_cluster`` and ``kafka_protocol``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
    NoError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    TopicAlreadyExistsError,
    for_code,
)

from adapters.errors import LogError, LogGap, LogUnavailable, NotDurable
from adapters.kafka_cluster import RETRY_S, Cluster, as_record
from adapters.kafka_options import RECORD_OVERHEAD_BYTES, KafkaOptions, milliseconds
from schemas.record import LogRecord, Partition, PartitionExtent

OnEvent = Callable[[str, Mapping[str, int | str]], None]

POLL_SLICE_S = 0.1


def _ignore_event(_name: str, _details: Mapping[str, int | str]) -> None:
    """What happens to events when nobody asked for them."""


class Assignment(Protocol):
    """What a reader calls when partitions come and go: the port of the same name."""

    async def on_assigned(self, extents: Mapping[Partition, PartitionExtent]) -> Mapping[Partition, int]:
        """Return the offset to read each newly assigned partition from."""
        ...

    async def on_revoked(self, partitions: Sequence[Partition]) -> None:
        """Finish or abandon work on these partitions."""
        ...


async def ensure_topics(
    options: KafkaOptions,
    topics: Mapping[str, int],
    *,
    replication_factor: int,
    settings: Mapping[str, str] | None = None,
) -> None:
    """Make the topics that do not exist, each with its number of partitions; those that exist stay as they are.

    ``settings`` are Kafka's topic settings, such as ``min.insync.replicas`` and ``retention.ms``. Returns once
    every partition of every topic has a leader. Raises LogUnavailable.
    """
    _keep_contents_out_of_logs()
    wanted = {
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(options.record_bytes_max + RECORD_OVERHEAD_BYTES),
        **(settings or {}),
    }
    async with _failing_as_unavailable(options.create_timeout_s):
        admin = AIOKafkaAdminClient(**options.client_settings())
        try:
            await admin.start()
            response = await admin.create_topics(
                [
                    NewTopic(name, partitions, replication_factor, topic_configs=wanted)
                    for name, partitions in topics.items()
                ]
            )
        finally:
            await admin.close()
        for _topic, code, *_ in response.topic_errors:
            if code not in (NoError.errno, TopicAlreadyExistsError.errno):
                raise for_code(code)()
        cluster = Cluster(options)
        try:
            for name in topics:
                while not await cluster.has_leaders(name):  # noqa: ASYNC110  # Kafka tells only who asks
                    await asyncio.sleep(RETRY_S)
        finally:
            await cluster.close()


class TopicDurability(NamedTuple):
    """What an acknowledged append rests on."""

    replicas: int
    """Copies of the partition that has the fewest."""
    replicas_in_step_min: int
    """``min.insync.replicas``: copies that must have an append before it is acknowledged."""
    flush_records: int
    """``flush.messages``: appends after which a broker writes to the disk; 1: each."""

    @property
    def survives_a_lost_broker(self) -> bool:
        """Acknowledged appends outlive one broker, or at least its power supply."""
        return (self.replicas >= 3 and self.replicas_in_step_min >= 2) or self.flush_records == 1


async def describe_durability(options: KafkaOptions, topic: str) -> TopicDurability:
    """Ask what a topic's appends rest on: ``acks=all`` on one broker is not durable. Raises LogUnavailable."""
    _keep_contents_out_of_logs()
    async with _failing_as_unavailable(options.start_timeout_s):
        admin = AIOKafkaAdminClient(**options.client_settings())
        try:
            await admin.start()
            [described] = await admin.describe_topics([topic])
            if described["error_code"] != NoError.errno:
                raise for_code(described["error_code"])()
            [answer] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
        finally:
            await admin.close()
    settings = {entry[0]: entry[1] for entry in answer.resources[0][4]}
    return TopicDurability(
        replicas=min(len(partition["replicas"]) for partition in described["partitions"]),
        replicas_in_step_min=int(settings["min.insync.replicas"]),
        flush_records=int(settings["flush.messages"]),
    )


class KafkaLog:
    """The append side of the log in Kafka. Connects when first used; use it from one event loop."""

    def __init__(self, options: KafkaOptions, *, on_event: OnEvent = _ignore_event) -> None:
        _keep_contents_out_of_logs()
        self._options = options
        self._on_event = on_event
        self._cluster = Cluster(options)
        self._producer: Any = None
        self._starting = asyncio.Lock()
        self._retired: set[asyncio.Task[None]] = set()
        self._appends = 0
        self._closed = False

    async def append(
        self, topic: str, *, key: bytes | None, value: bytes, headers: Mapping[str, bytes]
    ) -> tuple[Partition, int]:
        """Append one record and return where it stands, once all in-sync replicas have it.

        Raises NotDurable when that was not confirmed within ``append_timeout_s``, when ``appends_max`` are under
        way already, and when Kafka refuses.
        """
        if self._appends >= self._options.appends_max:
            raise NotDurable("appends_max appends are under way already")
        self._appends += 1
        try:
            async with asyncio.timeout(self._options.append_timeout_s):
                producer = await self._ready_producer()
                delivery = await producer.send(topic, value=value, key=key, headers=list(headers.items()))
                placed = await self._await_delivery(producer, delivery)
        except TimeoutError:
            raise NotDurable("Kafka did not confirm in time") from None
        except NotDurable:
            raise
        except Exception as error:  # whatever went wrong, it was not confirmed
            raise NotDurable(f"Kafka did not confirm: {type(error).__name__}") from None
        finally:
            self._appends -= 1
        if placed.offset < 0:  # confirmed as a repetition that Kafka no longer knows the place of
            raise NotDurable("Kafka did not say where the record stands")
        return Partition(placed.topic, placed.partition), placed.offset

    async def extents(self, topic: str) -> dict[Partition, PartitionExtent]:
        """What the log holds of each partition of ``topic``; nothing of an unknown one. Raises LogUnavailable."""
        async with _failing_as_unavailable(self._options.contact_timeout_s):
            return await self._cluster.extents(topic)

    async def read(self, partition: Partition, offset: int) -> LogRecord | None:
        """The record at ``offset``, or None when the log does not hold it. Raises LogUnavailable."""
        async with _failing_as_unavailable(self._options.contact_timeout_s):
            extent = (await self._cluster.extents(partition.topic)).get(partition)
            if extent is None or not extent.first <= offset < extent.end:
                return None
            batch = await self._cluster.fetch_batch(partition, offset)
        return batch[0] if batch and batch[0].offset == offset else None

    async def read_from(self, partition: Partition, offset: int, *, records_max: int) -> Sequence[LogRecord]:
        """The first records from ``offset`` on, of one batch; none when the log does not hold it.

        Raises LogUnavailable.
        """
        async with _failing_as_unavailable(self._options.contact_timeout_s):
            extent = (await self._cluster.extents(partition.topic)).get(partition)
            if extent is None or not extent.first <= offset < extent.end:
                return []
            batch = await self._cluster.fetch_batch(partition, offset)
        return batch[:records_max]

    async def close(self) -> None:
        """Deliver what was begun, as far as ``close_timeout_s`` allows, and disconnect."""
        if self._closed:
            return
        self._closed = True
        async with self._starting:
            if self._producer is not None:
                self._retire(self._producer)
        if self._retired:
            await asyncio.wait(self._retired)
        await self._cluster.close()

    async def _await_delivery(self, producer: Any, delivery: asyncio.Future[Any]) -> Any:
        """Where the record stands. A producer that gave a batch up is used no more.

        It leaves a hole in the sequence that Kafka holds an idempotent producer to: every later batch would be
        refused, for ever. aiokafka begins no new sequence by itself (KIP-360).
        """
        try:
            return await delivery
        except Exception:
            if self._producer is producer:
                self._on_event("kafka_producer_replaced", {})
                self._retire(producer)
            raise

    async def _ready_producer(self) -> Any:
        """The producer; a new one in place of one whose background task has ended, which never recovers."""
        if self._producer is not None and self._producer._sender.sender_task.done():
            self._on_event("kafka_producer_replaced", {})
            self._retire(self._producer)
        if self._producer is None:
            async with self._starting:
                while self._producer is None:
                    if self._closed:
                        raise NotDurable("the log is closed")
                    self._producer = await self._start_producer()
        return self._producer

    async def _start_producer(self) -> Any:
        """A new producer, or None after a moment when Kafka is not there: whoever appends may wait a little."""
        producer = AIOKafkaProducer(**self._options.producer_settings())
        try:
            await producer.start()
        except BaseException as error:
            await producer.stop()
            if not isinstance(error, KafkaConnectionError):
                raise
            await asyncio.sleep(RETRY_S)
            return None
        _calm(producer.client)
        return producer

    def _retire(self, producer: Any) -> None:
        """Have it deliver what it still can, while others are at work already."""
        self._producer = None
        task = asyncio.create_task(_end_producer(producer, self._options.close_timeout_s))
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)


class KafkaLogReader:
    """One member of a consumer group on one topic in Kafka. One task at a time may use it.

    ``on_assigned`` is called by ``poll``; ``on_revoked`` by a task in the background, as Kafka asks for it. They
    never overlap. From the moment a rebalance begins ``poll`` returns no records until it has ended.

    A process that was stopped for as long as its session lasts may have lost its partitions without knowing it:
    then ``poll`` returns nothing before the group's coordinator has accepted a commit from it.

    A LogGap stands until ``seek`` chooses another offset or the partition is assigned anew. That the topic was
    made again is looked for every ``topic_check_s``.
    """

    def __init__(
        self, options: KafkaOptions, *, topic: str, group: str, member: str, on_event: OnEvent = _ignore_event
    ) -> None:
        """``member`` is the name of this worker in the group, which no other worker may have."""
        _keep_contents_out_of_logs()
        self._options = options
        self._topic = topic
        self._group = group
        self._member = member
        self._on_event = on_event
        self._cluster = Cluster(options)
        self._consumer: Any = None
        self._assignment: Assignment | None = None
        self._calling = asyncio.Lock()
        self._assigned: frozenset[Partition] = frozenset()
        self._generation = 0
        self._places: dict[Partition, _Place] = {}
        self._gaps: dict[Partition, str] = {}
        self._revoke_failure: Exception | None = None
        self._fetching: asyncio.Task[Any] | None = None
        self._fetching_since = (0, 0)
        self._rewinds = 0
        self._pulse = _Pulse(options.session_timeout_s - 2 * options.heartbeat_s, options.heartbeat_s / 2)
        self._background: list[asyncio.Task[None]] = []
        self._stopping: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self, assignment: Assignment) -> None:
        """Join the group, after ``close`` anew; partitions are assigned by the polls that follow.

        Raises LogUnavailable.
        """
        self._assignment = assignment
        self._fetching = self._revoke_failure = None
        async with _failing_as_unavailable(self._options.start_timeout_s):
            await self._cluster.find_topic(self._topic)
            consumer = AIOKafkaConsumer(**self._options.consumer_settings(self._group, self._member))
            try:
                await consumer.start()
            except BaseException:
                await consumer.stop()
                raise
        self._consumer = consumer
        _calm(consumer._client)
        self._closed = False
        self._pulse.restart()
        consumer.subscribe([self._topic], listener=_Rebalances(self._on_revoked, self._on_assigned))
        self._background = [asyncio.create_task(self._pulse.beat()), asyncio.create_task(self._watch_topic())]

    async def poll(self, *, records_max: int, wait_s: float) -> dict[Partition, Sequence[LogRecord]]:
        """Records waiting, by partition in order; empty after ``wait_s`` when there are none.

        Raises LogUnavailable, and LogGap when a position is outside the log or the topic was made again.
        """
        deadline = time.monotonic() + wait_s
        while True:
            await self._settle()
            remaining_s = max(0.0, deadline - time.monotonic())
            found = await self._fetch(records_max, min(remaining_s, POLL_SLICE_S))
            if found or time.monotonic() >= deadline:
                return found

    async def seek(self, partition: Partition, offset: int) -> None:
        """Read ``partition`` from ``offset`` on; nothing happens when it is not assigned to this member."""
        if partition in self._assigned and partition in self._places:
            self._places[partition] = _Place(None, offset, offset)
            self._gaps.pop(partition, None)
            self._rewind([partition])

    async def note_progress(self, next_offsets: Mapping[Partition, int]) -> None:
        """Commit the group's offsets, for operators only. What fails is counted and otherwise ignored."""
        mine = {partition: offset for partition, offset in next_offsets.items() if partition in self._places}
        for partition, offset in mine.items():
            self._places[partition] = self._places[partition]._replace(noted=offset)
        try:
            async with asyncio.timeout(self._options.contact_timeout_s):
                await self._commit(mine)
        except (KafkaError, LogError, TimeoutError) as error:
            self._on_event("kafka_progress_not_noted", {"error": type(error).__name__})

    async def contact(self) -> Mapping[Partition, int]:
        """Ask Kafka, over the connection that records come by, where every assigned partition ends.

        A partition read to its end ends at the next offset to read, also where only markers of transactions
        follow. Raises LogUnavailable when there is no answer within ``contact_timeout_s``.
        """
        consumer = self._require_consumer()
        assigned = [TopicPartition(*partition) for partition in sorted(self._assigned & self._places.keys())]
        async with _failing_as_unavailable(self._options.contact_timeout_s):
            is_taken = self._fetching is None or not self._fetching.done()
            positions = [await consumer.position(place) for place in assigned]
            known = consumer.partitions_for_topic(self._topic) or {0}
            ends = await consumer.end_offsets(assigned or [TopicPartition(self._topic, min(known))])
        found: dict[Partition, int] = {}
        for place, position in zip(assigned, positions, strict=True):
            partition = Partition(*place)
            if partition in self._places:
                is_read = is_taken and position >= ends[place]
                found[partition] = self._places[partition].next if is_read else ends[place]
        return found

    async def close(self) -> None:
        """Have work finished by ``on_revoked``, then leave the group, as far as ``close_timeout_s`` allows."""
        if self._closed:
            return
        await self._on_revoked()
        self._closed = True
        for task in [*self._background, self._fetching]:
            if task is not None:
                await _end(task)
        if self._consumer is not None:
            await self._leave()
        await self._cluster.close()
        if self._revoke_failure is not None:
            raise self._revoke_failure

    async def _settle(self) -> None:
        """Do what has to be done before records may be read."""
        self._require_consumer()
        for task in self._background:
            if task.done():
                task.result()
        if self._revoke_failure is not None:
            failure, self._revoke_failure = self._revoke_failure, None
            raise failure
        if self._gaps:
            raise LogGap("; ".join(self._gaps.values()))
        if self._pulse.was_stopped():
            await self._prove_membership()
        if self._assigned - self._places.keys():
            await self._assign()

    async def _assign(self) -> None:
        """Ask where to read the partitions that the group has given us."""
        assert self._assignment is not None, "poll before start"
        generation = self._generation
        async with _failing_as_unavailable(self._options.contact_timeout_s):
            extents = await self._cluster.extents(self._topic)
        async with self._calling:
            new = (self._assigned & extents.keys()) - self._places.keys()
            if generation != self._generation or not new:
                return
            gained = {partition: extents[partition] for partition in sorted(new)}
            offsets = await self._assignment.on_assigned(gained)
            for partition, extent in gained.items():
                self._places[partition] = _Place(extent.log_id, offsets[partition], offsets[partition])
        self._rewind(gained)
        self._on_event("kafka_partitions_assigned", {"topic": self._topic, "count": len(gained)})

    def _on_assigned(self, places: Iterable[TopicPartition]) -> None:
        """The group gives us these partitions: the next poll asks where to read them."""
        self._generation += 1
        self._assigned = frozenset(Partition(place.topic, place.partition) for place in places)

    async def _on_revoked(self) -> None:
        """The group takes all partitions away, perhaps to give some back. ``poll`` returns nothing from now on."""
        self._generation += 1
        self._assigned = frozenset()
        async with self._calling:
            told = sorted(self._places)
            try:
                if told and self._assignment is not None:
                    await self._assignment.on_revoked(told)
            except Exception as error:  # aiokafka would log it and go on: the next poll raises it
                self._revoke_failure = error
            self._places.clear()
            self._gaps.clear()
        if told:
            self._on_event("kafka_partitions_revoked", {"topic": self._topic, "count": len(told)})

    async def _fetch(self, records_max: int, wait_s: float) -> dict[Partition, Sequence[LogRecord]]:
        """What aiokafka has by now, unless partitions or positions changed meanwhile.

        ``getmany`` waits as long as a rebalance takes, whatever its time limit, and counts wrongly when it is
        cancelled: so it runs in a task, which the next poll takes over.
        """
        if self._fetching is None:
            self._begin_fetch(records_max, wait_s)
        assert self._fetching is not None
        await asyncio.wait({self._fetching}, timeout=wait_s + POLL_SLICE_S)
        if not self._fetching.done():
            return {}
        fetching, self._fetching = self._fetching, None
        is_current = self._fetching_since == (self._generation, self._rewinds) and not self._pulse.was_stopped()
        try:
            fetched = fetching.result()
        except UnicodeDecodeError:
            self._rewind(self._places)
            return await self._fetch_tolerantly(records_max) if is_current else {}
        except KafkaError as error:
            self._rewind(self._places)
            if is_current or not isinstance(error, OffsetOutOfRangeError | NoOffsetForPartitionError):
                self._raise(error)
            return {}
        if not is_current:
            self._rewind(Partition(*place) for place in fetched)
            return {}
        return self._accept(fetched)

    def _begin_fetch(self, records_max: int, wait_s: float) -> None:
        ready = [TopicPartition(*partition) for partition in self._assigned & self._places.keys()]
        wanted = ready or [TopicPartition(self._topic, -1)]  # none at all would mean any
        getting = self._consumer.getmany(*wanted, timeout_ms=milliseconds(wait_s), max_records=records_max)
        self._fetching = asyncio.create_task(getting)
        self._fetching_since = (self._generation, self._rewinds)

    async def _fetch_tolerantly(self, records_max: int) -> dict[Partition, Sequence[LogRecord]]:
        """Read the next batch of each partition past aiokafka's consumer.

        A header's name somewhere is not UTF-8, as Kafka asks for. aiokafka fails on it, for ever and for every
        record of the same batch: one bad record must not stall a partition.
        """
        since = (self._generation, self._rewinds)
        found: dict[Partition, Sequence[LogRecord]] = {}
        async with _failing_as_unavailable(self._options.contact_timeout_s):
            for partition in sorted(self._assigned & self._places.keys()):
                batch = await self._cluster.fetch_batch(partition, self._places[partition].next)
                if batch and since == (self._generation, self._rewinds):
                    found[partition] = batch[:records_max]
        if since != (self._generation, self._rewinds):
            return {}
        for partition, records in found.items():
            self._places[partition] = self._places[partition]._replace(next=records[-1].offset + 1)
        self._rewind(found)
        self._on_event("kafka_header_not_utf8", {"topic": self._topic})
        return found

    def _raise(self, error: KafkaError) -> NoReturn:
        if isinstance(error, OffsetOutOfRangeError):
            for place, offset in error.args[0].items():
                self._gaps[Partition(*place)] = f"{place.topic}/{place.partition}: {offset} is outside the log"
            raise LogGap("; ".join(self._gaps.values())) from None
        raise LogUnavailable(f"Kafka cannot be read: {type(error).__name__}") from None

    def _accept(self, fetched: Mapping[TopicPartition, Sequence[Any]]) -> dict[Partition, Sequence[LogRecord]]:
        found: dict[Partition, Sequence[LogRecord]] = {}
        for place, records in fetched.items():
            partition = Partition(*place)
            wanted = [
                as_record(partition, record) for record in records if record.offset >= self._places[partition].next
            ]
            if wanted:
                found[partition] = wanted
                self._places[partition] = self._places[partition]._replace(next=wanted[-1].offset + 1)
        return found

    def _rewind(self, partitions: Iterable[Partition]) -> None:
        """Have aiokafka read from our positions, and forget what it has fetched already."""
        self._rewinds += 1
        for partition in partitions:
            if partition in self._assigned and partition in self._places:
                self._consumer.seek(TopicPartition(*partition), self._places[partition].next)

    async def _prove_membership(self) -> None:
        """Repeat the last commit: the coordinator accepts it from members only.

        Refused, aiokafka joins again, and that calls ``on_revoked``; until then nothing is ours. Without a place
        there is nothing to repeat, so nothing proven: it is asked for again once there is one.
        """
        if not self._places:
            return
        try:
            async with _failing_as_unavailable(self._options.contact_timeout_s):
                await self._commit({partition: place.noted for partition, place in self._places.items()})
        except _NotMember:
            self._generation += 1
            self._assigned = frozenset()
            self._on_event("kafka_membership_lost", {"topic": self._topic})
        self._pulse.restart()

    async def _commit(self, offsets: Mapping[Partition, int]) -> None:
        if offsets:
            consumer = self._require_consumer()
            try:
                await consumer.commit({TopicPartition(*partition): offset for partition, offset in offsets.items()})
            except (CommitFailedError, IllegalStateError) as error:
                raise _NotMember(type(error).__name__) from None

    async def _watch_topic(self) -> None:
        """Look whether the topic is still the one that offsets were given for."""
        while True:
            await asyncio.sleep(self._options.topic_check_s)
            since = (self._generation, self._rewinds)
            with contextlib.suppress(LogUnavailable):
                async with _failing_as_unavailable(self._options.contact_timeout_s):
                    topic = await self._cluster.find_topic(self._topic)
                if since == (self._generation, self._rewinds):
                    self._compare_topic("" if topic is None else topic.log_id)

    def _compare_topic(self, log_id: str) -> None:
        for partition, place in self._places.items():
            if place.log_id is None:
                self._places[partition] = place._replace(log_id=log_id)
            elif place.log_id != log_id:
                self._gaps[partition] = f"{partition.topic}/{partition.number}: the topic was deleted or made again"

    async def _leave(self) -> None:
        """aiokafka does not leave a group when it has a ``group_instance_id``: others would wait for the session."""
        share_s = self._options.close_timeout_s / 3
        self._stopping = asyncio.create_task(self._consumer.stop())
        await asyncio.wait({self._stopping}, timeout=share_s)
        with contextlib.suppress(LogUnavailable):
            async with _failing_as_unavailable(share_s):
                await self._cluster.leave_group(self._group, self._member)
        await asyncio.wait({self._stopping}, timeout=share_s)

    def _require_consumer(self) -> Any:
        if self._consumer is None or self._closed:
            raise LogUnavailable("the reader is not open")
        return self._consumer


class _Place(NamedTuple):
    """Where a reader is in a partition: the log it is for (None: whichever), and two offsets."""

    log_id: str | None
    next: int
    noted: int


class _NotMember(LogError):
    """The group does not know this member any more."""


class _Rebalances(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Passes what aiokafka says of a rebalance on."""

    def __init__(
        self,
        on_revoked: Callable[[], Coroutine[None, None, None]],
        on_assigned: Callable[[Iterable[TopicPartition]], None],
    ) -> None:
        self._on_revoked = on_revoked
        self._on_assigned = on_assigned

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._on_revoked()

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._on_assigned(assigned)


class _Pulse:
    """Notices afterwards that the process stood still: stopped by a signal, or its event loop blocked."""

    def __init__(self, limit_s: float, beat_s: float) -> None:
        self._limit_s = limit_s
        self._beat_s = beat_s
        self._beat_at = time.monotonic()
        self._was_stopped = False

    async def beat(self) -> None:
        """Show signs of life until cancelled."""
        while True:
            self.was_stopped()
            await asyncio.sleep(self._beat_s)

    def was_stopped(self) -> bool:
        """Whether it stood still for longer than the limit since ``restart``."""
        now = time.monotonic()
        self._was_stopped = self._was_stopped or now - self._beat_at > self._limit_s
        self._beat_at = now
        return self._was_stopped

    def restart(self) -> None:
        """Forget that it stood still."""
        self._beat_at = time.monotonic()
        self._was_stopped = False


def _calm(client: Any) -> None:
    """aiokafka asks for metadata again at once when no broker is there, hundreds of times a second."""
    ask = client._metadata_update

    async def ask_calmly(cluster: Any, topics: Any) -> bool:
        is_updated: bool = await ask(cluster, topics)
        if not is_updated:
            await asyncio.sleep(RETRY_S)
        return is_updated

    client._metadata_update = ask_calmly


async def _end_producer(producer: Any, limit_s: float) -> None:
    """Deliver what waits, then stop. An idempotent producer would try for ever, so its sender is ended in time."""
    stopping = asyncio.create_task(producer.stop())
    await asyncio.wait({stopping}, timeout=limit_s)
    if not stopping.done():
        sending = producer._sender.sender_task
        while not sending.done():  # cancelled once it still waits for each request on its way: once more for each
            sending.cancel()
            await asyncio.wait({sending}, timeout=POLL_SLICE_S)
        producer._message_accumulator.fail_all(KafkaError())
        await asyncio.wait({stopping}, timeout=limit_s)


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # looked at, so that asyncio does not complain that nobody did


@contextlib.asynccontextmanager
async def _failing_as_unavailable(limit_s: float) -> AsyncIterator[None]:
    """Say LogUnavailable for whatever Kafka's client raises, and when the time is up."""
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TimeoutError:
        raise LogUnavailable("Kafka did not answer in time") from None
    except (KafkaError, OSError) as error:
        raise LogUnavailable(f"Kafka did not answer: {type(error).__name__}") from None


def _keep_contents_out_of_logs() -> None:
    """At DEBUG aiokafka prints keys, values and whole requests: none of its loggers may be that talkative."""
    names = ["aiokafka", *(name for name in logging.root.manager.loggerDict if name.startswith("aiokafka."))]
    for logger in map(logging.getLogger, names):
        if logger.getEffectiveLevel() < logging.INFO:
            logger.setLevel(logging.INFO)
