"""Hear of new deliveries at once on PostgreSQL (LISTEN); elsewhere, and when the connection is lost, polling serves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from broker.storage.database import Database
from broker.storage.outbox import NOTIFY_CHANNEL

_RECONNECT_S = 5.0


async def listen_for_deliveries(database: Database, wake: Callable[[], None]) -> None:
    """Call ``wake`` whenever deliveries were added; runs until cancelled."""
    if database.is_sqlite:
        return
    while True:
        with contextlib.suppress(SQLAlchemyError, OSError):
            await _listen(database, wake)
        await asyncio.sleep(_RECONNECT_S)


async def _listen(database: Database, wake: Callable[[], None]) -> None:
    async with database.connecting() as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        lost = asyncio.Event()
        raw.add_termination_listener(lambda _: lost.set())
        await raw.add_listener(NOTIFY_CHANNEL, lambda *_: wake())
        wake()
        await lost.wait()
