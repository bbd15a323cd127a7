"""What is particular to the log on Apache Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

from adapters.errors import LogUnavailable, NotDurable
from adapters.kafka import KafkaLog, KafkaLogReader, ensure_topics
from adapters.kafka_options import KafkaOptions
from adapters.kafka_protocol import TopicsRequest
from schemas.record import Partition, PartitionExtent
from tests.contract.log_engines import (
    LIMIT_S,
    Diary,
    KafkaEngine,
    append_again,
    append_many,
    expect_gap,
    kafka_options,
    read_records,
    read_until,
    until,
)
from tests.engines import KafkaServer, free_port


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
    assert time.monotonic() - began_at < options.append_timeout_s + 10
    began_at = time.monotonic()
    with pytest.raises(LogUnavailable):
        await log.extents("topic")
    with pytest.raises(LogUnavailable):
        await reader.start(Diary())
    with pytest.raises(LogUnavailable):
        await ensure_topics(options, {"topic": 1}, replication_factor=1)
    assert time.monotonic() - began_at < 10
    await log.close()
    await reader.close()
