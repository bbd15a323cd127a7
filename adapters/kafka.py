"""The distributed log: Apache Kafka 2.8 or newer, through aiokafka.

aiokafka's defaults are unsafe here. What is set instead, and held by tests: ``acks="all"`` with the idempotent
producer and no lingering; no automatic commits; ``auto_offset_reset="none"``; eager assignors; a
``group_instance_id`` per member; ``read_committed``.

Offsets come from the Assignment, never from Kafka: a partition is read once ``on_assigned`` has answered and its
offset was sought. Offsets committed by ``note_progress`` are for operators.

Topics are recognised by the id that Kafka gives each when it is made (KIP-516), which aiokafka does not ask for:
the request is defined here, in aiokafka's own terms.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, Protocol

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    LeaderNotAvailableError,
    NoError,
    NoOffsetForPartitionError,
    NotLeaderForPartitionError,
    OffsetOutOfRangeError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    String,
    TaggedFields,
)
from aiokafka.record.default_records import _DefaultRecordBatchPy

from adapters.errors import LogError, LogGap, LogUnavailable, NotDurable
from schemas.record import LogRecord, Partition, PartitionExtent

OnEvent = Callable[[str, Mapping[str, int | str]], None]

EARLIEST = -2
LATEST = -1
READ_COMMITTED = 1
BATCH_PREFIX_BYTES = 12
TIMESTAMP_MS_MAX = 253_402_300_799_000  # the last second of the year 9999
RECORD_OVERHEAD_BYTES = 64 * 1024
POLL_SLICE_S = 0.1
RETRY_S = 0.05


def _ignore_event(_name: str, _details: Mapping[str, int | str]) -> None:
    """What happens to events when nobody asked for them."""


@dataclass(frozen=True, kw_only=True)
class KafkaOptions:
    """How to reach Kafka, and the limits.

    ``rebalance_timeout_s`` is what ``on_revoked`` may take at most. A request of a reader may take longer by
    ``request_timeout_s``: so long a reader needs to notice by itself that a connection has gone silent.
    """

    bootstrap_servers: str
    client_id: str = "cpis-broker"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    tls_authorities_path: Path | None = None
    tls_certificate_path: Path | None = None
    tls_key_path: Path | None = None
    tls_key_password: str | None = field(default=None, repr=False)
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    append_timeout_s: float = 10.0
    request_timeout_s: float = 4.0
    contact_timeout_s: float = 5.0
    start_timeout_s: float = 15.0
    close_timeout_s: float = 5.0
    create_timeout_s: float = 30.0
    session_timeout_s: float = 10.0
    heartbeat_s: float = 3.0
    rebalance_timeout_s: float = 20.0
    poll_interval_max_s: float = 300.0
    metadata_age_max_s: float = 30.0
    topic_check_s: float = 5.0
    appends_max: int = 20_000
    record_bytes_max: int = 4 * 1024 * 1024
    batch_bytes_max: int = 256 * 1024
    fetch_bytes_max: int = 16 * 1024 * 1024
    fetch_wait_s: float = 0.5

    def __post_init__(self) -> None:
        """Raises ValueError where limits contradict each other."""
        if self.session_timeout_s < 3 * self.heartbeat_s:
            raise ValueError("session_timeout_s must be at least three times heartbeat_s")
        if self.security_protocol.startswith("SASL") and not (self.sasl_username and self.sasl_password):
            raise ValueError("SASL needs sasl_username and sasl_password")

    def client_settings(self) -> dict[str, Any]:
        """What every aiokafka client is given."""
        return {
            "bootstrap_servers": self.bootstrap_servers,
            "client_id": self.client_id,
            "request_timeout_ms": _milliseconds(self.request_timeout_s),
            "metadata_max_age_ms": _milliseconds(self.metadata_age_max_s),
            "security_protocol": self.security_protocol,
            "ssl_context": self._make_tls() if self.security_protocol.endswith("SSL") else None,
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.sasl_username,
            "sasl_plain_password": self.sasl_password,
        }

    def producer_settings(self) -> dict[str, Any]:
        """Nothing is confirmed before every in-sync replica has it, and a retry never doubles or reorders."""
        return {
            **self.client_settings(),
            "acks": "all",
            "enable_idempotence": True,
            "linger_ms": 0,
            "max_request_size": self.record_bytes_max + RECORD_OVERHEAD_BYTES,
            "max_batch_size": self.batch_bytes_max,
        }

    def consumer_settings(self, group: str, member: str) -> dict[str, Any]:
        """A fetch returns what is there and waits only for the first byte.

        Joining waits for the slowest member's ``on_revoked``, so its request must be allowed to take longer.
        """
        return {
            **self.client_settings(),
            "enable_auto_commit": False,
            "auto_offset_reset": "none",
            "isolation_level": "read_committed",
            "fetch_min_bytes": 1,
            "fetch_max_wait_ms": _milliseconds(self.fetch_wait_s),
            "fetch_max_bytes": self.fetch_bytes_max,
            "max_partition_fetch_bytes": self.record_bytes_max + RECORD_OVERHEAD_BYTES,
            "group_id": group,
            "group_instance_id": member,
            "partition_assignment_strategy": (RoundRobinPartitionAssignor,),
            "request_timeout_ms": _milliseconds(self.rebalance_timeout_s + self.request_timeout_s),
            "session_timeout_ms": _milliseconds(self.session_timeout_s),
            "heartbeat_interval_ms": _milliseconds(self.heartbeat_s),
            "rebalance_timeout_ms": _milliseconds(self.rebalance_timeout_s),
            "max_poll_interval_ms": _milliseconds(self.poll_interval_max_s),
        }

    def _make_tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.tls_authorities_path)
        if self.tls_certificate_path is not None:
            context.load_cert_chain(self.tls_certificate_path, self.tls_key_path, self.tls_key_password)
        return context


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
        cluster = _Cluster(options)
        try:
            for name in topics:
                while not await cluster.has_leaders(name):  # noqa: ASYNC110  # Kafka tells only who asks
                    await asyncio.sleep(RETRY_S)
        finally:
            await cluster.close()


class KafkaLog:
    """The append side of the log in Kafka. Connects when first used; use it from one event loop."""

    def __init__(self, options: KafkaOptions, *, on_event: OnEvent = _ignore_event) -> None:
        _keep_contents_out_of_logs()
        self._options = options
        self._on_event = on_event
        self._cluster = _Cluster(options)
        self._producer: Any = None
        self._starting = asyncio.Lock()
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
                placed = await delivery
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

    async def close(self) -> None:
        """Deliver what was begun, as far as ``close_timeout_s`` allows, and disconnect."""
        if self._closed:
            return
        self._closed = True
        async with self._starting:
            producer, self._producer = self._producer, None
            if producer is not None:
                await _end_producer(producer, self._options.close_timeout_s)
        await self._cluster.close()

    async def _ready_producer(self) -> Any:
        """The producer; a new one in place of one whose background task has ended, which never recovers."""
        if self._producer is None or _is_broken(self._producer):
            async with self._starting:
                await self._replace_producer()
        return self._producer

    async def _replace_producer(self) -> None:
        if self._closed:
            raise NotDurable("the log is closed")
        if self._producer is not None and _is_broken(self._producer):
            broken, self._producer = self._producer, None
            self._on_event("kafka_producer_replaced", {})
            await _end_producer(broken, self._options.close_timeout_s)
        if self._producer is None:
            producer = AIOKafkaProducer(**self._options.producer_settings())
            try:
                await producer.start()
            except BaseException:
                await producer.stop()
                raise
            self._producer = producer


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
        self._cluster = _Cluster(options)
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
        getting = self._consumer.getmany(*wanted, timeout_ms=_milliseconds(wait_s), max_records=records_max)
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
                _as_record(partition, record) for record in records if record.offset >= self._places[partition].next
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

        Refused, aiokafka joins again, and that calls ``on_revoked``; until then nothing is ours.
        """
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


class _Topic(NamedTuple):
    """A topic's id and the broker that leads each partition (-1: none)."""

    name: str
    log_id: str
    leaders: Mapping[int, int]


class _Cluster:
    """Questions to the cluster that aiokafka's producer and consumer do not ask. Connects when first used."""

    def __init__(self, options: KafkaOptions) -> None:
        self._options = options
        self._client: Any = None
        self._connecting = asyncio.Lock()

    async def find_topic(self, name: str) -> _Topic | None:
        """What the cluster says of a topic, None when there is no such topic."""
        response = await self._ask_any(_TopicsRequest(name))
        [(code, _name, topic_id, _is_internal, partitions, *_rest)] = response.topics
        if for_code(code) is UnknownTopicOrPartitionError:
            return None
        if code != NoError.errno:
            raise for_code(code)()
        log_id = urlsafe_b64encode(topic_id).decode().rstrip("=")
        return _Topic(name, log_id, {number: leader for _code, number, leader, *_rest in partitions})

    async def has_leaders(self, name: str) -> bool:
        """Whether the topic is there and every partition has a leader."""
        topic = await self.find_topic(name)
        return topic is not None and -1 not in topic.leaders.values()

    async def extents(self, name: str) -> dict[Partition, PartitionExtent]:
        """What the cluster holds of each partition of a topic; nothing of an unknown one.

        Asks again while leaders change hands: limit the time.
        """
        while (topic := await self.find_topic(name)) is not None:
            try:
                firsts = await self._find_offsets(topic, EARLIEST)
                ends = await self._find_offsets(topic, LATEST)
            except (LeaderNotAvailableError, NotLeaderForPartitionError, UnknownTopicOrPartitionError):
                await asyncio.sleep(RETRY_S)
            else:
                return {
                    Partition(name, number): PartitionExtent(log_id=topic.log_id, first=first, end=ends[number])
                    for number, first in sorted(firsts.items())
                }
        return {}

    async def fetch_batch(self, partition: Partition, offset: int) -> list[LogRecord]:
        """The records from ``offset`` on of the batch it is in, read with every tolerance for text."""
        client = await self._connected()
        topic = await self.find_topic(partition.topic)
        leader = -1 if topic is None else topic.leaders.get(partition.number, -1)
        if leader == -1:
            raise LeaderNotAvailableError
        asked = [(partition.topic, [(partition.number, offset, self._options.fetch_bytes_max)])]
        response = await client.send(leader, FetchRequest(0, 1, self._options.fetch_bytes_max, READ_COMMITTED, asked))
        [(_name, [(_number, code, _end, *_rest, fetched)])] = response.topics
        if code != NoError.errno:
            raise for_code(code)()
        for batch in _split_batches(fetched):
            records = [] if batch.is_control_batch else [_as_record(partition, record) for record in batch]
            if wanted := [record for record in records if record.offset >= offset]:
                return wanted
        return []

    async def leave_group(self, group: str, member: str) -> None:
        """Have the group give this member's partitions to others at once."""
        client = await self._connected()
        coordinator = await client.coordinator_lookup(CoordinationType.GROUP, group)
        await client.send(coordinator, _LeaveRequest(group, member), group=ConnectionGroup.COORDINATION)

    async def close(self) -> None:
        """Disconnect."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    async def _find_offsets(self, topic: _Topic, when: int) -> dict[int, int]:
        client = await self._connected()
        offsets: dict[int, int] = {}
        for leader in set(topic.leaders.values()):
            if leader == -1:
                raise LeaderNotAvailableError
            asked = [(number, when) for number in topic.leaders if topic.leaders[number] == leader]
            response = await client.send(leader, OffsetRequest(-1, READ_COMMITTED, [(topic.name, asked)]))
            for _name, answers in response.topics:
                for number, code, _timestamp, offset in answers:
                    if code != NoError.errno:
                        raise for_code(code)()
                    offsets[number] = offset
        return offsets

    async def _ask_any(self, request: _TopicsRequest) -> Any:
        """Ask one broker after the other. When none answers, the next question begins from the bootstrap servers."""
        client = await self._connected()
        brokers = list(client.cluster.brokers())
        random.shuffle(brokers)
        failure: KafkaError | None = None
        for broker in brokers:
            try:
                return await client.send(broker.nodeId, request)
            except NotImplementedError:
                raise LogUnavailable("Kafka 2.8 or newer is needed: this one gives topics no ids") from None
            except KafkaError as error:
                failure = error
        await self.close()
        raise failure or LeaderNotAvailableError

    async def _connected(self) -> Any:
        async with self._connecting:
            if self._client is None:
                client = AIOKafkaClient(**self._options.client_settings())
                try:
                    await client.bootstrap()
                except BaseException:
                    await client.close()
                    raise
                self._client = client
            return self._client


class _TolerantText(bytearray):
    """Bytes that can be decoded whatever they are: what is not UTF-8 becomes a backslash and its number."""

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return _TolerantText(found) if isinstance(found, bytearray) else found

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return super().decode(encoding, "backslashreplace")


class _TolerantBatch(_DefaultRecordBatchPy):  # type: ignore[misc]  # aiokafka has no types
    """A record batch as Kafka keeps it, whose headers may have any name."""

    _buffer: bytearray

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer = _TolerantText(self._buffer)


def _split_batches(fetched: bytes) -> Iterator[_TolerantBatch]:
    """The whole batches of a fetch: it ends where its limit was reached. Each says its length after 8 bytes."""
    start = 0
    while start + BATCH_PREFIX_BYTES <= len(fetched):
        end = start + BATCH_PREFIX_BYTES + int.from_bytes(fetched[start + 8 : start + BATCH_PREFIX_BYTES])
        if end <= len(fetched):
            yield _TolerantBatch(fetched[start:end])
        start = end


class _Uuid(AbstractType):  # type: ignore[misc]  # aiokafka has no types
    """Sixteen bytes."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


class _TopicsResponseV11(Response):  # type: ignore[misc]  # aiokafka has no types
    """Metadata, version 11: the first to tell topic ids that every Kafka since 2.8 answers."""

    API_KEY = 3
    API_VERSION = 11
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString()),
                ("port", Int32),
                ("rack", CompactString()),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString()),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString()),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("number", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("in_sync", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _TopicsRequestV11(RequestStruct):  # type: ignore[misc]  # aiokafka has no types
    """Metadata, version 11."""

    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 11
    RESPONSE_TYPE = _TopicsResponseV11
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", CompactString()), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _TopicsRequest(Request[_TopicsRequestV11]):  # type: ignore[misc]  # aiokafka has no types
    """Asks what a topic is, without making it."""

    API_KEY = 3

    def __init__(self, name: str) -> None:
        self._name = name

    def build(self, request_struct_class: type[_TopicsRequestV11]) -> _TopicsRequestV11:
        return request_struct_class([(bytes(16), self._name, {})], False, False, {})


class _LeaveResponseV3(Response):  # type: ignore[misc]  # aiokafka has no types
    """LeaveGroup, version 3."""

    API_KEY = 13
    API_VERSION = 3
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("members", Array(("member_id", String()), ("group_instance_id", String()), ("error_code", Int16))),
    )


class _LeaveRequestV3(RequestStruct):  # type: ignore[misc]  # aiokafka has no types
    """LeaveGroup, version 3: the first that names members by their ``group_instance_id`` (KIP-345)."""

    API_KEY = 13
    API_VERSION = 3
    RESPONSE_TYPE = _LeaveResponseV3
    SCHEMA = Schema(
        ("group", String()),
        ("members", Array(("member_id", String()), ("group_instance_id", String()))),
    )


class _LeaveRequest(Request[_LeaveRequestV3]):  # type: ignore[misc]  # aiokafka has no types
    """Takes one member out of a group."""

    API_KEY = 13

    def __init__(self, group: str, member: str) -> None:
        self._group = group
        self._member = member

    def build(self, request_struct_class: type[_LeaveRequestV3]) -> _LeaveRequestV3:
        return request_struct_class(self._group, [("", self._member)])


def _as_record(partition: Partition, record: Any) -> LogRecord:
    """A foreign producer may repeat a header (the last counts), and leave values out (they become empty)."""
    timestamp_ms = min(max(record.timestamp, 0), TIMESTAMP_MS_MAX)
    return LogRecord(
        partition=partition,
        offset=record.offset,
        key=record.key,
        value=record.value or b"",
        headers={name: value or b"" for name, value in record.headers},
        appended_at=datetime.fromtimestamp(timestamp_ms / 1000, UTC),
    )


def _is_broken(producer: Any) -> bool:
    return bool(producer._sender.sender_task.done())


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


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
