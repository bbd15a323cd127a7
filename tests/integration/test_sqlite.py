"""SQLite's connection: rows come back as from any other, and what waits for the file's lock holds nobody else up."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path
from threading import get_ident

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from broker.storage.database import Database
from broker.storage.sqlite import Connection


@pytest.fixture(params=[False, True], ids=["in a thread", "inline"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """A database with one small table."""
    opened = Database(f"sqlite+aiosqlite:///{tmp_path}/broker.sqlite", inline=request.param)
    async with opened.writing() as connection:
        await connection.execute(text("CREATE TABLE child (id INTEGER PRIMARY KEY, age INTEGER NOT NULL)"))
    yield opened
    await opened.close()


async def test_statements_answer_with_rows_counts_and_errors(database: Database) -> None:
    async with database.writing() as connection:
        added = text("INSERT INTO child (age) VALUES (:age) RETURNING id")
        assert (await connection.execute(added, {"age": 7})).scalar_one() == 1
        await connection.execute(text("INSERT INTO child (age) VALUES (:age)"), [{"age": 9}, {"age": 11}])
        grown = await connection.execute(text("UPDATE child SET age = age + 1 WHERE age > 8"))
        assert grown.rowcount == 2
    with pytest.raises(IntegrityError):
        async with database.writing() as connection:
            await connection.execute(text("DELETE FROM child"))
            await connection.execute(text("INSERT INTO child (age) VALUES (NULL)"))
    async with database.reading() as connection:
        found = await connection.execute(text("SELECT age FROM child ORDER BY id"))
        assert list(found.scalars()) == [7, 10, 12]


async def test_what_is_written_briefly_makes_no_journey_between_threads(database: Database) -> None:
    """Whoever asks waits for each of them, and the others on the loop as long."""
    async with database.writing_briefly() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        assert isinstance(raw, Connection)
        await raw.create_function("thread_now", 0, get_ident)
        assert (await connection.execute(text("SELECT thread_now()"))).scalar_one() == get_ident()
        await connection.execute(text("INSERT INTO child (age) VALUES (7)"))
    async with database.reading() as connection:
        assert (await connection.execute(text("SELECT age FROM child"))).scalar_one() == 7


async def test_who_waits_for_the_lock_stops_nobody_and_given_up_gives_it_back(
    database: Database, tmp_path: Path
) -> None:
    lock = os.open(tmp_path / "broker.sqlite.lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)

    async def write() -> None:
        async with database.writing() as connection:
            await connection.execute(text("INSERT INTO child (age) VALUES (1)"))

    waiting = asyncio.create_task(write())
    assert await database.answers()
    assert not waiting.done()
    waiting.cancel()
    os.close(lock)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(5):
        await write()
    other = os.open(tmp_path / "broker.sqlite.lock", os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)


async def test_the_lock_is_let_go_of_with_the_commit_and_not_when_the_writer_hears_of_it(
    database: Database, tmp_path: Path
) -> None:
    lock = os.open(tmp_path / "broker.sqlite.lock", os.O_RDWR)
    async with database._writer.connect() as connection:
        await connection.execute(text("INSERT INTO child (age) VALUES (1)"))
        with pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        await connection.commit()
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(lock)
