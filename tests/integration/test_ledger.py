"""The first law: every position the log offered is waiting or settled, exactly once, whatever happens to the log."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from sqlalchemy import text

from broker.cli import audit
from broker.cli.screen import console
from broker.storage import handled, ledger
from broker.storage.handled import Place
from broker.storage.ledger import TopicLedger
from broker.topics import ATTENDANCES as TOPIC
from broker.topics import ATTENDANCES_GROUP as GROUP
from schemas.record import Partition, PartitionExtent
from tests.world import CASEY, LOG_ID, World, hl7

PARTITION = Partition(TOPIC, 0)


def extent(end: int, *, first: int = 0, log_id: str = LOG_ID) -> dict[Partition, PartitionExtent]:
    return {PARTITION: PartitionExtent(log_id=log_id, first=first, end=end)}


async def count(world: World, extents: Mapping[Partition, PartitionExtent]) -> TopicLedger:
    async with world.database.reading() as connection:
        return await ledger.count_topic(connection, GROUP, TOPIC, extents)


@pytest.fixture
async def busy(world: World) -> World:
    """Four messages settled: alerted, ignored as the same once more, quarantined, and no record found."""
    await world.list_children(CASEY)
    message = hl7()
    await world.receive(message, message, b"not HL7", hl7(nhs_number="9990000026", visit="V2"))
    return world


async def test_before_anybody_reads_everything_is_waiting(world: World) -> None:
    counted = await count(world, extent(7, first=2))
    assert (counted.offered, counted.waiting, counted.balances) == (5, 5, True)


async def test_what_is_settled_and_what_is_waiting_make_up_what_was_offered(busy: World) -> None:
    counted = await count(busy, extent(6))
    assert (counted.offered, counted.waiting, counted.skipped) == (6, 2, 0)
    assert counted.outcomes == {"alerted": 1, "ignored": 1, "no_record": 1, "quarantined": 1}
    assert sum(counted.reasons.values()) == 1
    assert counted.balances


async def test_what_the_log_has_forgotten_since_was_offered_all_the_same(busy: World) -> None:
    counted = await count(busy, extent(6, first=3))
    assert (counted.offered, counted.waiting, counted.balances) == (6, 2, True)


async def test_a_position_that_is_lost_is_noticed(busy: World) -> None:
    async with busy.database.writing() as connection:
        await connection.execute(text("DELETE FROM handled_positions WHERE position = 1"))
    assert not (await count(busy, extent(4))).balances


async def test_a_position_that_was_passed_over_is_noticed(busy: World) -> None:
    async with busy.database.writing() as connection:
        await connection.execute(text("UPDATE stored_offsets SET next_offset = next_offset + 1"))
    assert not (await count(busy, extent(6))).balances


async def test_offsets_without_a_record_are_counted_apart(busy: World) -> None:
    async with busy.database.writing() as connection:
        await connection.execute(text("UPDATE stored_offsets SET next_offset = next_offset + 2, skipped = 2"))
    counted = await count(busy, extent(6))
    assert (counted.skipped, counted.waiting, counted.balances) == (2, 0, True)


async def test_a_topic_that_was_made_again_balances_before_anybody_has_begun_to_read_it(busy: World) -> None:
    counted = await count(busy, extent(3, log_id="log-2"))
    assert (counted.offered, counted.waiting, counted.balances) == (7, 3, True)


async def test_a_topic_that_is_gone_leaves_what_was_settled(busy: World) -> None:
    counted = await count(busy, {})
    assert (counted.offered, counted.waiting, counted.balances) == (4, 0, True)


async def test_a_partition_that_came_later_is_waiting_as_a_whole(busy: World) -> None:
    later = {Partition(TOPIC, 1): PartitionExtent(log_id=LOG_ID, first=0, end=5)}
    counted = await count(busy, extent(4) | later)
    assert (counted.offered, counted.waiting, counted.balances) == (9, 5, True)


async def test_one_partition_that_is_read_again_after_a_gap_balances_beside_another(busy: World) -> None:
    """Its positions stand twice then: as settled before the gap, and as the log offers them again."""
    other = Partition(TOPIC, 1)
    async with busy.database.writing() as connection:
        settled = "INSERT INTO handled_positions SELECT topic, log_id, 1, position, owner, marker, visit_id, outcome, "
        await connection.execute(text(settled + "reason, handled_at, replay_id FROM handled_positions"))
        place = Place(log_id=LOG_ID, first_offset=0, next_offset=4, stopped_cleanly=True)
        await handled.take_partition(connection, GROUP, other, place, known=None, now=busy.clock.now())
        again = Place(log_id=f"{LOG_ID}+1", first_offset=0, next_offset=0, stopped_cleanly=True)
        known = (await handled.load_places(connection, GROUP, [PARTITION]))[PARTITION]
        await handled.take_partition(connection, GROUP, PARTITION, again, known=known, now=busy.clock.now())
    counted = await count(busy, extent(4) | {other: PartitionExtent(log_id=LOG_ID, first=0, end=5)})
    assert (counted.offered, counted.waiting, counted.balances) == (4 + 4 + 5, 4 + 1, True)


def test_of_an_incident_the_ledger_says_told_and_never_alerted() -> None:
    topic = TopicLedger(
        topic="police-incidents",
        offered=3,
        waiting=0,
        skipped=0,
        outcomes={"alerted": 2, "ignored": 1},
        reasons={"repeated": 1},
    )
    notices = ledger.NoticeLedger(planned=2, held=0, waiting=0, sent=1, acknowledged=1, withdrawn=0, unattended=0)
    with console.capture() as shown:
        audit._print_encompass(topic, notices)
    words = " ".join(shown.get().split())
    assert "+ told to a school or an officer │ 2" in words and "ignored: repeated │ 1" in words
    assert "alerted" not in words
