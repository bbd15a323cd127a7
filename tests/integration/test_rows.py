"""Rows written and asked for by the batch, on both databases."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from broker.storage import rows
from broker.storage.child_lists import select_listed
from broker.storage.database import Database
from broker.storage.directory import ensure_owners
from broker.storage.migrations import migrate
from broker.storage.rows import Row, Write, insert_new, insert_rows, is_among, update_rows, write_together
from broker.storage.tables import HandledMarker, Lane, Visit, VisitBlock, table
from schemas.identifiers import organisation_owner
from tests.world import World

AT = datetime(2026, 10, 25, 1, 30, 0, 250_000, tzinfo=UTC)
OWNER = organisation_owner("RX1")
MARKERS, VISITS, BLOCKS = table(HandledMarker), table(Visit), table(VisitBlock)


def marker(number: int) -> dict[str, object]:
    return {"marker": number.to_bytes(16, "big"), "handled_at": AT}


def visit(name: str, nhs_index: bytes | None) -> dict[str, object]:
    return {
        "id": name,
        "owner": OWNER,
        "sender": "RX1",
        "nhs_index": nhs_index,
        "opened_at": AT,
        "heard_at": AT.astimezone(timezone(timedelta(hours=1))),
    }


async def test_only_rows_that_were_not_there_are_new_however_many(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement takes so many values: beyond that there are several."""
    monkeypatch.setattr(rows, "SQLITE_VALUES_MAX", 10)
    async with world.database.writing() as connection:
        await insert_rows(connection, MARKERS, [marker(2), marker(13)])
        new = await insert_new(connection, MARKERS, [marker(number) for number in range(23)], key="marker")
        assert sorted(int.from_bytes(each, "big") for each in new) == [n for n in range(23) if n not in (2, 13)]
        assert await insert_new(connection, MARKERS, [marker(2)], key="marker") == []
        assert await insert_new(connection, MARKERS, [], key="marker") == []


async def test_several_writes_at_once_are_all_done_or_none(world: World) -> None:
    """Parents and children in one statement; what is set anew in another."""
    async with world.database.writing() as connection:
        await insert_rows(connection, MARKERS, [marker(1)])
        await ensure_owners(connection, [(OWNER, "Fenwick")])
    later = AT + timedelta(days=1)
    writes = [
        Write(VISITS, [visit("v1", None), visit("v2", b"2")]),
        Write(BLOCKS, [{"block": b"b", "visit_id": "v1", "owner": OWNER}], ignore_existing=True),
        Write(MARKERS, [{"marker": (1).to_bytes(16, "big"), "handled_at": later}], key="marker"),
        Write(table(Lane), []),
    ]
    async with world.database.writing() as connection:
        await write_together(connection, writes)
        await write_together(connection, [])
    async with world.database.reading() as connection:
        assert (await connection.execute(select(MARKERS.c.handled_at))).scalars().all() == [later]
        assert set((await connection.execute(select(VISITS.c.id))).scalars()) == {"v1", "v2"}
    with pytest.raises(IntegrityError):
        async with world.database.writing() as connection:
            await write_together(connection, [Write(VISITS, [visit("v3", None)]), Write(BLOCKS, [writes[1].rows[0]])])
    async with world.database.reading() as connection:
        assert set((await connection.execute(select(VISITS.c.id))).scalars()) == {"v1", "v2"}


async def test_a_row_that_is_there_stays_or_is_refused(world: World) -> None:
    changed = marker(1) | {"handled_at": AT + timedelta(days=1)}
    async with world.database.writing() as connection:
        await insert_rows(connection, MARKERS, [marker(1)])
        await insert_rows(connection, MARKERS, [changed, marker(2)], ignore_existing=True)
    with pytest.raises(IntegrityError):
        async with world.database.writing() as connection:
            await insert_rows(connection, MARKERS, [changed])
    async with world.database.reading() as connection:
        kept = {bytes(row.marker): row.handled_at for row in await connection.execute(select(MARKERS))}
    assert kept == {marker(1)["marker"]: AT, marker(2)["marker"]: AT}


async def test_values_come_back_as_they_were_and_change_where_the_key_says(world: World) -> None:
    async with world.database.writing() as connection:
        await ensure_owners(connection, [(OWNER, "A hospital")])
        await insert_rows(connection, VISITS, [visit("a", b"\x00\xff"), visit("b", None), visit("c", b"x")])
        changes: list[Row] = [
            {"id": "c", "nhs_index": None, "corrections": 2},
            {"id": "b", "nhs_index": b"n", "corrections": 1},
        ]
        await update_rows(connection, VISITS, changes, key="id")
        found = await connection.execute(
            select(VISITS).where(is_among(connection, VISITS.c.id, ["a", "b", "c"])).order_by(VISITS.c.id)
        )
        kept = [(row.id, row.nhs_index, row.corrections, row.opened_at, row.heard_at) for row in found]
    assert kept == [("a", b"\x00\xff", 0, AT, AT), ("b", b"n", 1, AT, AT), ("c", None, 2, AT, AT)]


async def test_a_naive_instant_is_refused(world: World) -> None:
    with pytest.raises(AssertionError, match="naive instant"):
        async with world.database.writing() as connection:
            await insert_rows(connection, MARKERS, [marker(1) | {"handled_at": AT.replace(tzinfo=None)}])


async def test_a_row_that_another_transaction_inserts_is_waited_for(world: World) -> None:
    async def insert_second() -> list[object]:
        async with world.database.writing() as connection:
            return await insert_new(connection, MARKERS, [marker(1), marker(2)], key="marker")

    async with world.database.writing() as connection:
        await insert_rows(connection, MARKERS, [marker(1)])
        second = asyncio.create_task(insert_second())
        done, _ = await asyncio.wait({second}, timeout=0.3)
        assert not done
    assert await second == [marker(2)["marker"]]


async def test_nobody_is_looked_for_by_going_through_a_whole_list(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    try:
        await migrate(database)
        async with database.reading() as connection:
            statement = str(select_listed("sqlite").compile(dialect=connection.dialect))
            values = (b"\0" * 16,) * statement.count("?")
            plan = [step.detail for step in await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]
    finally:
        await database.close()
    of_entries = [step for step in plan if "list_entries" in step]
    assert len(of_entries) == 3
    assert all(step.startswith("SEARCH") and "(nhs_index=?" in step for step in of_entries), of_entries
