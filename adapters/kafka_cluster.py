"""Questions to a Kafka cluster that aiokafka's producer and consumer do not ask: topic ids, extents, odd batches."""

from __future__ import annotations

import asyncio
import random
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.errors import (
    KafkaError,
    LeaderNotAvailableError,
    NoError,
    NotLeaderForPartitionError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.record.default_records import _DefaultRecordBatchPy

from adapters.errors import LogUnavailable
from adapters.kafka_options import READ_COMMITTED, KafkaOptions
from adapters.kafka_protocol import LeaveRequest, TopicsRequest
from schemas.record import LogRecord, Partition, PartitionExtent

EARLIEST = -2
LATEST = -1
BATCH_PREFIX_BYTES = 12
TIMESTAMP_MS_MAX = 253_402_300_799_000  # the last second of the year 9999
RETRY_S = 0.05


class Topic(NamedTuple):
    """A topic's id and the broker that leads each partition (-1: none)."""

    name: str
    log_id: str
    leaders: Mapping[int, int]


class Cluster:
    """Questions to the cluster that aiokafka's producer and consumer do not ask. Connects when first used."""

    def __init__(self, options: KafkaOptions) -> None:
        self._options = options
        self._client: Any = None
        self._connecting = asyncio.Lock()

    async def find_topic(self, name: str) -> Topic | None:
        """What the cluster says of a topic, None when there is no such topic."""
        response = await self._ask_any(TopicsRequest(name))
        [(code, _name, topic_id, _is_internal, partitions, *_rest)] = response.topics
        if for_code(code) is UnknownTopicOrPartitionError:
            return None
        if code != NoError.errno:
            raise for_code(code)()
        if not any(topic_id):  # not told, or not yet: taken for an id it would be another topic
            raise LogUnavailable("Kafka does not say which topic this is")
        log_id = urlsafe_b64encode(topic_id).decode().rstrip("=")
        return Topic(name, log_id, {number: leader for _code, number, leader, *_rest in partitions})

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
            records = [] if batch.is_control_batch else [as_record(partition, record) for record in batch]
            if wanted := [record for record in records if record.offset >= offset]:
                return wanted
        return []

    async def leave_group(self, group: str, member: str) -> None:
        """Have the group give this member's partitions to others at once."""
        client = await self._connected()
        coordinator = await client.coordinator_lookup(CoordinationType.GROUP, group)
        await client.send(coordinator, LeaveRequest(group, member), group=ConnectionGroup.COORDINATION)

    async def close(self) -> None:
        """Disconnect."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    async def _find_offsets(self, topic: Topic, when: int) -> dict[int, int]:
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

    async def _ask_any(self, request: TopicsRequest) -> Any:
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


def as_record(partition: Partition, record: Any) -> LogRecord:
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
