"""The part that handles police incidents: a process, a group and a topic of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from broker import topics
from broker.bootstrap.engines import open_reader, open_watched_database, until_prepared
from broker.bootstrap.rules import notice_rules_of
from broker.bootstrap.safety import load_keyring
from broker.clock import SystemClock
from broker.consumers.encompass import EncompassConsumer
from broker.consumers.loop import ConsumeLoop, LoopOptions
from broker.settings import Settings


@asynccontextmanager
async def open_part(settings: Settings) -> AsyncIterator[ConsumeLoop]:
    """The consumer between log and database."""
    await until_prepared(settings)
    database = open_watched_database(settings)
    consumer = EncompassConsumer(
        database,
        load_keyring(settings),
        SystemClock(),
        notice_rules_of(settings),
        quarantined=timedelta(minutes=settings.escalation_minutes),
    )
    group = settings.name_on_log(topics.ENCOMPASS_GROUP)
    options = LoopOptions(
        group=group,
        records_max=settings.batch_records_max,
        poll_wait_s=settings.poll_wait_s,
        contact_interval_s=settings.contact_interval_s,
        poison_attempts_max=settings.poison_attempts_max,
    )
    reader = open_reader(settings, topic=settings.name_on_log(topics.INCIDENTS), group=group)
    try:
        yield ConsumeLoop(reader, consumer, database, SystemClock(), options)
    finally:
        await database.close()
