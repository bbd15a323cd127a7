"""What asks for replays, on the engines of the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from broker import topics
from broker.bootstrap.engines import open_log
from broker.bootstrap.safety import load_keyring
from broker.clock import SystemClock
from broker.envelope import INCIDENT_JSON, INCIDENT_TYPE
from broker.replay import Replayer
from broker.settings import Settings
from broker.storage.database import Database


@asynccontextmanager
async def open_replayers(settings: Settings, database: Database) -> AsyncIterator[Mapping[str, Replayer]]:
    """What asks for replays on the engines of the settings, by topic."""
    log_ = open_log(settings)
    keyring = load_keyring(settings)
    try:
        yield {
            topics.ATTENDANCES: Replayer(
                database,
                log_,
                keyring,
                SystemClock(),
                topic=settings.name_on_log(topics.ATTENDANCES),
                group=settings.name_on_log(topics.ATTENDANCES_GROUP),
            ),
            topics.INCIDENTS: Replayer(
                database,
                log_,
                keyring,
                SystemClock(),
                topic=settings.name_on_log(topics.INCIDENTS),
                group=settings.name_on_log(topics.ENCOMPASS_GROUP),
                content_type=INCIDENT_JSON,
                event_type=INCIDENT_TYPE,
            ),
        }
    finally:
        await log_.close()
