"""The part that looks back and sees to what is past its limit, and to the mailbox of MESH where there is one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta

from broker import topics
from broker.bootstrap.engines import open_trimmed_log, open_watched_database
from broker.bootstrap.rules import notice_rules_of, rules_of
from broker.bootstrap.safety import load_keyring
from broker.bootstrap.tracing import open_tracing
from broker.clock import SystemClock
from broker.jobs.mesh_inbox import MeshInbox
from broker.jobs.retention import RetentionRules
from broker.jobs.runner import JobOptions, JobRunner
from broker.list_comparison import upload_options_of
from broker.settings import Settings


class JobsPart:
    """Who does the jobs, and beside it the mailbox: a MESH that does not answer holds up nothing else."""

    def __init__(self, runner: JobRunner, inbox: MeshInbox | None) -> None:
        self._runner = runner
        self._inbox = inbox

    @property
    def alive_at(self) -> float:
        """When the part last looked for work."""
        return self._runner.alive_at

    @property
    def worked_at(self) -> float:
        """When it last could."""
        return self._runner.worked_at

    def stop(self) -> None:
        """End after what is in hand. A message that is in hand is taken up again later."""
        self._runner.stop()

    async def run(self) -> None:
        """Work until stopped."""
        if self._inbox is None:
            await self._runner.run()
            return
        reading = asyncio.create_task(self._inbox.run())
        try:
            await self._runner.run()
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading


@asynccontextmanager
async def open_part(settings: Settings) -> AsyncIterator[JobsPart]:
    """Who does the jobs."""
    async with AsyncExitStack() as stack:
        database, log_, keyring = open_watched_database(settings), open_trimmed_log(settings), load_keyring(settings)
        stack.push_async_callback(database.close)
        if log_ is not None:
            stack.push_async_callback(log_.close)
        tracing = open_tracing(settings, database, keyring)
        if tracing is not None:
            stack.push_async_callback(tracing.close)
        runner = JobRunner(
            database,
            keyring,
            SystemClock(),
            rules_of(settings),
            JobOptions(
                lease=timedelta(seconds=settings.job_lease_s),
                hold_limit=timedelta(hours=settings.list_hold_hours),
                difference_limit=timedelta(days=settings.list_difference_days),
            ),
            tracing=tracing,
            notices=notice_rules_of(settings),
            retention=_retention_of(settings),
            log=log_,
            uploads=upload_options_of(settings),
        )
        inbox = None
        if settings.mesh_url:
            from broker.bootstrap.mesh import open_inbox

            inbox = await stack.enter_async_context(open_inbox(settings))
        yield JobsPart(runner, inbox)


def _retention_of(settings: Settings) -> RetentionRules:
    return RetentionRules(
        log=timedelta(days=settings.log_retention_days),
        no_record_replies=timedelta(days=settings.no_record_reply_days),
        incidents=timedelta(days=settings.incident_retention_days),
        groups=tuple(
            (settings.name_on_log(group), settings.name_on_log(topic))
            for group, topic in (
                (topics.ATTENDANCES_GROUP, topics.ATTENDANCES),
                (topics.REFERRALS_GROUP, topics.ATTENDANCES),
                (topics.ENCOMPASS_GROUP, topics.INCIDENTS),
            )
        ),
    )
