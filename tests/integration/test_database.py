"""The pool over PostgreSQL hands out no connection that the server has ended."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text

from broker.storage import database as storage
from broker.storage.database import Database, is_database_outage


async def end_backend(url: str, pid: int) -> None:
    """End a connection as an operator or a server that restarts does, and wait until it has ended."""
    other = Database(url)
    async with other.writing() as connection:
        await connection.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": pid})
    await other.close()


async def ask_pid(database: Database) -> int:
    """Which connection of the server answers."""
    async with database.reading() as connection:
        return int((await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one())


async def test_a_connection_that_is_known_to_have_ended_is_not_used_again(postgres_url: str) -> None:
    """At once, without the test that only those who have rested pass."""
    database, ended = Database(postgres_url, connections_max=1), asyncio.Event()
    async with database.reading() as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        raw.add_termination_listener(lambda _: ended.set())
    pid = await ask_pid(database)
    await end_backend(postgres_url, pid)
    async with asyncio.timeout(30):
        await ended.wait()
    assert await ask_pid(database) != pid
    await database.close()


async def test_one_that_has_rested_is_tested_before_it_is_used(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was just used is not: its end is an outage like any other, and the next is a new one."""
    database = Database(postgres_url, connections_max=1)

    async def end_unheard() -> int:
        """This event loop hears nothing of it: it stands still meanwhile."""
        pid = await ask_pid(database)
        with ThreadPoolExecutor(max_workers=1) as thread:
            thread.submit(asyncio.run, end_backend(postgres_url, pid)).result()
        return pid

    monkeypatch.setattr(storage, "RESTED_S", 60.0)
    pid = await end_unheard()
    with pytest.raises(Exception) as failed:
        await ask_pid(database)
    assert is_database_outage(failed.value)
    monkeypatch.setattr(storage, "RESTED_S", 0.0)
    assert await ask_pid(database) != pid
    pid = await end_unheard()
    assert await ask_pid(database) != pid
    await database.close()
