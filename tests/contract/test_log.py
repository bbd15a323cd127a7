"""What a Log and a LogReader promise, stated once and held by every engine: memory, SQLite, Apache Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest

from adapters.errors import LogGap, LogUnavailable, NotDurable
from schemas.record import LogRecord, Partition, PartitionExtent
from tests.contract.log_engines import (
    LIMIT_S,
    Diary,
    Engine,
    Event,
    append_again,
    append_many,
    expect_gap,
    names,
    read_patiently,
    read_records,
    read_until,
    start_again,
    until,
)

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
    assert time.monotonic() - began_at < 10


async def test_a_poll_notices_what_is_appended_while_it_waits(engine: Engine) -> None:
    log, reader, diary = engine.open_log(), engine.open_reader(), Diary()
    await reader.start(diary)
    await read_until(reader, diary, lambda: len(diary.assigned) == 4)
    polling = asyncio.create_task(reader.poll(records_max=500, wait_s=15))
    await asyncio.sleep(0.1)
    began_at = time.monotonic()
    await log.append(engine.topic, key=None, value=b"late", headers={})
    assert [record.value for record in diary.take(await polling)] == [b"late"]
    assert time.monotonic() - began_at < 10


async def test_a_poll_returns_nothing_once_it_has_waited(engine: Engine) -> None:
    reader, diary = engine.open_reader(), Diary()
    await reader.start(diary)
    await read_until(reader, diary, lambda: len(diary.assigned) == 4)
    began_at = time.monotonic()
    assert await reader.poll(records_max=10, wait_s=0.3) == {}
    assert 0.3 <= time.monotonic() - began_at < 10


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
    await start_again(reader, diary)
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
