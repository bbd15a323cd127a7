"""Handled-markers, settled positions and stored offsets: exactly once in effect, whatever the log repeats."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import and_, bindparam, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.storage.database import upsert
from broker.storage.rows import insert_new, insert_rows
from broker.storage.tables import HandledMarker, HandledPosition, LogGapRow, PoisonAttempt, StoredOffset, table
from schemas.record import Partition, PartitionExtent

_markers, _positions, _offsets = table(HandledMarker), table(HandledPosition), table(StoredOffset)
_gaps, _attempts = table(LogGapRow), table(PoisonAttempt)


_MOVE: Final = (
    update(_offsets)
    .where(
        _offsets.c.group_name == bindparam("group"),
        _offsets.c.topic == bindparam("of_topic"),
        _offsets.c.partition == bindparam("number"),
        _offsets.c.next_offset == bindparam("expected"),
        _offsets.c.log_id == bindparam("of_log"),
    )
    .values(next_offset=bindparam("to"), skipped=_offsets.c.skipped + bindparam("passed"), updated_at=bindparam("now"))
)
GENERATION: Final = "+"
"""Between a log's own id and the number of times it was read again after a gap."""


class Fenced(Exception):
    """Another worker owns the partition now: roll back and let go of it."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a group reads on in one partition. ``first_offset`` is where it began to read this log."""

    log_id: str
    first_offset: int
    next_offset: int
    stopped_cleanly: bool
    skipped: int = 0
    """Offsets passed that held no record."""

    def is_on(self, log_id: str) -> bool:
        """Whether this is a place on that log: after a gap a log is read again as a new generation of itself."""
        return self.log_id.partition(GENERATION)[0] == log_id


async def mark_handled(connection: AsyncConnection, markers: Iterable[bytes], now: datetime) -> set[bytes]:
    """Write the markers, in sorted order so that two workers cannot deadlock; return those that are new."""
    rows = [{"marker": marker, "handled_at": now} for marker in sorted(set(markers))]
    return {bytes(marker) for marker in await insert_new(connection, _markers, rows, key="marker")}


async def settle_positions(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write what became of each position.

    One that is settled stays as it is: when stored offsets were set back, its messages are known as repeated.
    """
    await insert_rows(connection, _positions, rows, ignore_existing=True)


async def move_offset(
    connection: AsyncConnection,
    group: str,
    partition: Partition,
    *,
    log_id: str,
    expected: int,
    to: int,
    records: int,
    now: datetime,
) -> None:
    """Move the stored offset from ``expected``; raises Fenced when it does not stand there any more.

    Offsets that hold no record (Kafka's own transaction marks, of a foreign producer) are counted as skipped.
    """
    given = {
        "group": group,
        "of_topic": partition.topic,
        "number": partition.number,
        "expected": expected,
        "of_log": log_id,
        "to": to,
        "passed": to - expected - records,
        "now": now,
    }
    if (await connection.execute(_MOVE, given)).rowcount != 1:
        raise Fenced


async def load_places(
    connection: AsyncConnection, group: str, partitions: Iterable[Partition]
) -> dict[Partition, Place]:
    """Where the group stands in each of the partitions it has read before."""
    wanted = set(partitions)
    rows = await connection.execute(select(_offsets).where(_offsets.c.group_name == group))
    return {
        Partition(row.topic, row.partition): Place(
            log_id=row.log_id,
            first_offset=row.first_offset,
            next_offset=row.next_offset,
            stopped_cleanly=row.stopped_cleanly,
            skipped=row.skipped,
        )
        for row in rows
        if Partition(row.topic, row.partition) in wanted
    }


async def take_partition(
    connection: AsyncConnection, group: str, partition: Partition, place: Place, *, known: Place | None, now: datetime
) -> None:
    """Note that a worker reads the partition from ``place``, not stopped cleanly until it says so.

    ``known`` is the place as it was loaded, None where there was none. Raises Fenced when it is another by now: a
    worker that slept in between must not set the group back.
    """
    values = {
        "log_id": place.log_id,
        "first_offset": place.first_offset,
        "next_offset": place.next_offset,
        "skipped": place.skipped,
        "stopped_cleanly": False,
        "updated_at": now,
    }
    statement: Any
    if known is None:
        names = {"group_name": group, "topic": partition.topic, "partition": partition.number}
        statement = upsert(connection, _offsets).values(names | values).on_conflict_do_nothing()
    else:
        stands = and_(_offsets.c.next_offset == known.next_offset, _offsets.c.log_id == known.log_id)
        statement = update(_offsets).where(_is(group, partition), stands).values(values)
    if (await connection.execute(statement)).rowcount != 1:
        raise Fenced


async def note_clean_stop(
    connection: AsyncConnection, group: str, partition: Partition, next_offset: int, now: datetime
) -> None:
    """Note that the worker let go of the partition with nothing in flight."""
    await connection.execute(
        update(_offsets)
        .where(_is(group, partition), _offsets.c.next_offset == next_offset)
        .values(stopped_cleanly=True, updated_at=now)
    )


async def record_gap(
    connection: AsyncConnection,
    group: str,
    partition: Partition,
    *,
    place: Place,
    found: PartitionExtent,
    now: datetime,
) -> None:
    """Keep that the log did not hold what was expected."""
    await connection.execute(
        insert(_gaps).values(
            group_name=group,
            topic=partition.topic,
            partition=partition.number,
            stored_log_id=place.log_id,
            stored_offset=place.next_offset,
            found_log_id=found.log_id,
            found_first=found.first,
            found_end=found.end,
            noticed_at=now,
        )
    )


async def note_attempt(connection: AsyncConnection, partition: Partition, log_id: str, offset: int) -> int:
    """Count an attempt at one message before it is made; return the count."""
    values = {
        "topic": partition.topic,
        "log_id": log_id,
        "partition": partition.number,
        "position": offset,
        "attempts": 1,
    }
    statement = (
        upsert(connection, _attempts)
        .values(values)
        .on_conflict_do_update(
            index_elements=["topic", "log_id", "partition", "position"],
            set_={"attempts": _attempts.c.attempts + 1},
        )
        .returning(_attempts.c.attempts)
    )
    return int((await connection.execute(statement)).scalar_one())


async def count_outcomes(connection: AsyncConnection, topic: str) -> dict[tuple[str, str], int]:
    """Settled positions of a topic by (outcome, reason)."""
    rows = await connection.execute(
        select(_positions.c.outcome, _positions.c.reason, func.count())
        .where(_positions.c.topic == topic)
        .group_by(_positions.c.outcome, _positions.c.reason)
    )
    return {(outcome, reason): count for outcome, reason, count in rows}


async def load_all_places(connection: AsyncConnection) -> list[tuple[str, Partition, Place, datetime]]:
    """Every group's place in every partition, and when it last moved."""
    return [
        (
            row.group_name,
            Partition(row.topic, row.partition),
            Place(
                log_id=row.log_id,
                first_offset=row.first_offset,
                next_offset=row.next_offset,
                stopped_cleanly=row.stopped_cleanly,
                skipped=row.skipped,
            ),
            row.updated_at,
        )
        for row in await connection.execute(select(_offsets).order_by(_offsets.c.topic, _offsets.c.partition))
    ]


async def count_gaps(connection: AsyncConnection) -> int:
    """How often the log did not hold what was expected."""
    return int((await connection.execute(select(func.count()).select_from(_gaps))).scalar_one())


def _is(group: str, partition: Partition) -> Any:
    return and_(
        _offsets.c.group_name == group,
        _offsets.c.topic == partition.topic,
        _offsets.c.partition == partition.number,
    )
