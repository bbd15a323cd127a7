"""What takes in a force's file of incidents, on the log of the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker import topics
from broker.bootstrap.engines import open_log
from broker.bootstrap.safety import load_keyring
from broker.clock import SystemClock
from broker.incident_intake import IncidentIntake
from broker.settings import Settings


@asynccontextmanager
async def open_incident_intake(settings: Settings) -> AsyncIterator[IncidentIntake]:
    """The intake behind the door, for the command line."""
    log_ = open_log(settings)
    try:
        yield IncidentIntake(log_, settings.name_on_log(topics.INCIDENTS), load_keyring(settings), SystemClock())
    finally:
        await log_.close()
