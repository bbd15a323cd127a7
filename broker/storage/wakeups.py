"""Hear of new deliveries at once: from PostgreSQL by LISTEN, from SQLite by a look at whether its file has changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from broker.storage.database import Database
from broker.storage.outbox import NOTIFY_CHANNEL

_RECONNECT_S = 5.0
_WATCH_S = 0.025


async def listen_for_deliveries(database: Database, wake: Callable[[], None]) -> None:
    """Call ``wake`` whenever deliveries were added; runs until cancelled."""
    listen = _watch if database.is_sqlite else _listen
    while True:
        with contextlib.suppress(SQLAlchemyError, OSError):
            await listen(database, wake)
        await asyncio.sleep(_RECONNECT_S)


async def _watch(database: Database, wake: Callable[[], None]) -> None:
    """``data_version`` is another number once another connection has committed; asking for it reads no page."""
    async with database.connecting() as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        known = None
        while True:
            async with raw.execute("PRAGMA data_version") as cursor:
                (version,) = await cursor.fetchone()
            if version != known:
                known = version
                wake()
            await asyncio.sleep(_WATCH_S)


async def _listen(database: Database, wake: Callable[[], None]) -> None:
    async with database.connecting() as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        lost = asyncio.Event()
        raw.add_termination_listener(lambda _: lost.set())
        await raw.add_listener(NOTIFY_CHANNEL, lambda *_: wake())
        wake()
        await lost.wait()
