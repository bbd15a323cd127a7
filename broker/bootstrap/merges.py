"""Who takes merges back, on the engines of the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker.bootstrap.engines import open_log
from broker.bootstrap.rules import rules_of
from broker.bootstrap.safety import load_keyring
from broker.clock import SystemClock
from broker.consumers.attendance import AttendanceConsumer
from broker.settings import Settings
from broker.storage.database import Database


@asynccontextmanager
async def open_consumer(settings: Settings, database: Database) -> AsyncIterator[AttendanceConsumer]:
    """The consumer, without a log that it follows."""
    log_ = open_log(settings)
    try:
        yield AttendanceConsumer(database, log_, load_keyring(settings), SystemClock(), rules_of(settings))
    finally:
        await log_.close()
