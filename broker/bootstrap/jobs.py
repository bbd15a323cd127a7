"""The part that looks back and sees to what is past its limit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from broker import topics
from broker.bootstrap.engines import open_trimmed_log, open_watched_database
from broker.bootstrap.rules import rules_of
from broker.bootstrap.safety import load_keyring
from broker.bootstrap.tracing import open_tracing
from broker.clock import SystemClock
from broker.jobs.retention import RetentionRules
from broker.jobs.runner import JobOptions, JobRunner
from broker.settings import Settings


@asynccontextmanager
async def open_part(settings: Settings) -> AsyncIterator[JobRunner]:
    """Who does the jobs."""
    database, log_ = open_watched_database(settings), open_trimmed_log(settings)
    retention = RetentionRules(
        log=timedelta(days=settings.log_retention_days),
        no_record_replies=timedelta(days=settings.no_record_reply_days),
        group=settings.name_on_log(topics.ATTENDANCES_GROUP),
        topic=settings.name_on_log(topics.ATTENDANCES),
    )
    options = JobOptions(lease=timedelta(seconds=settings.job_lease_s))
    keyring = load_keyring(settings)
    tracing = open_tracing(settings, database, keyring)
    try:
        yield JobRunner(
            database,
            keyring,
            SystemClock(),
            rules_of(settings),
            options,
            tracing=tracing,
            retention=retention,
            log=log_,
        )
    finally:
        if log_ is not None:
            await log_.close()
        if tracing is not None:
            await tracing.close()
        await database.close()
