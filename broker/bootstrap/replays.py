"""What asks for replays, on the engines of the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker import topics
from broker.bootstrap.engines import open_log
from broker.bootstrap.safety import load_keyring
from broker.clock import SystemClock
from broker.replay import Replayer
from broker.settings import Settings
from broker.storage.database import Database


@asynccontextmanager
async def open_replayer(settings: Settings, database: Database) -> AsyncIterator[Replayer]:
    """What asks for replays on the engines of the settings."""
    log_ = open_log(settings)
    try:
        yield Replayer(
            database,
            log_,
            load_keyring(settings),
            SystemClock(),
            topic=settings.name_on_log(topics.ATTENDANCES),
            group=settings.name_on_log(topics.ATTENDANCES_GROUP),
        )
    finally:
        await log_.close()
