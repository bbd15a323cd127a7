"""The part that looks back and sees to what is past its limit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from broker.bootstrap.engines import open_watched_database
from broker.bootstrap.rules import rules_of
from broker.bootstrap.safety import load_keyring
from broker.clock import SystemClock
from broker.jobs.runner import JobOptions, JobRunner
from broker.settings import Settings


@asynccontextmanager
async def open_part(settings: Settings) -> AsyncIterator[JobRunner]:
    """Who does the jobs."""
    database = open_watched_database(settings)
    options = JobOptions(lease=timedelta(seconds=settings.job_lease_s))
    try:
        yield JobRunner(database, load_keyring(settings), SystemClock(), rules_of(settings), options)
    finally:
        await database.close()
