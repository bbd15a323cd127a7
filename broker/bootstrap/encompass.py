"""The part of Operation Encompass: a process of its own, with a group for incidents and one for attendances."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from broker import topics
from broker.bootstrap.engines import open_reader, open_watched_database, until_prepared
from broker.bootstrap.rules import notice_rules_of
from broker.bootstrap.safety import load_keyring
from broker.clock import SystemClock
from broker.consumers.encompass import EncompassConsumer
from broker.consumers.loop import ConsumeLoop, Handler, LoopOptions
from broker.consumers.referral import ReferralConsumer
from broker.settings import Settings
from broker.storage.database import Database


class EncompassPart:
    """Both sources of Operation Encompass, each with a loop and a group of its own. One that fails ends the part."""

    def __init__(self, loops: Sequence[ConsumeLoop]) -> None:
        self._loops = loops

    @property
    def alive_at(self) -> float:
        """When the one that is silent longest last showed life (monotonic seconds)."""
        return min(loop.alive_at for loop in self._loops)

    @property
    def worked_at(self) -> float:
        """When the one that stands still longest last did its work (monotonic seconds)."""
        return min(loop.worked_at for loop in self._loops)

    def stop(self) -> None:
        """Finish the batches in hand and end ``run``."""
        for loop in self._loops:
            loop.stop()

    async def run(self) -> None:
        """Consume until stopped."""
        async with asyncio.TaskGroup() as running:
            for loop in self._loops:
                running.create_task(loop.run())


@asynccontextmanager
async def open_part(settings: Settings) -> AsyncIterator[EncompassPart]:
    """The consumers between log and database."""
    await until_prepared(settings)
    database = open_watched_database(settings, inline=True)
    given = (database, load_keyring(settings), SystemClock(), notice_rules_of(settings))
    quarantined = timedelta(minutes=settings.escalation_minutes)
    incidents = EncompassConsumer(*given, quarantined=quarantined)
    referrals = ReferralConsumer(*given, quarantined=quarantined, age_max=timedelta(days=settings.longest_outage_days))
    try:
        yield EncompassPart(
            (
                _open_loop(settings, database, incidents, topics.INCIDENTS, topics.ENCOMPASS_GROUP),
                _open_loop(settings, database, referrals, topics.ATTENDANCES, topics.REFERRALS_GROUP),
            )
        )
    finally:
        await database.close()


def _open_loop(settings: Settings, database: Database, handler: Handler, topic: str, group: str) -> ConsumeLoop:
    name = settings.name_on_log(group)
    options = LoopOptions(
        group=name,
        records_max=settings.batch_records_max,
        poll_wait_s=settings.poll_wait_s,
        contact_interval_s=settings.contact_interval_s,
        poison_attempts_max=settings.poison_attempts_max,
    )
    reader = open_reader(settings, topic=settings.name_on_log(topic), group=name)
    return ConsumeLoop(reader, handler, database, SystemClock(), options)
