"""The part that handles attendances."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from adapters import fhir_models
from broker import topics
from broker.bootstrap.engines import open_log, open_reader, open_watched_database, until_prepared
from broker.bootstrap.rules import rules_of
from broker.bootstrap.safety import load_keyring
from broker.clock import SystemClock
from broker.consumers.attendance import AttendanceConsumer
from broker.consumers.loop import ConsumeLoop, LoopOptions
from broker.settings import Settings

assert fhir_models, "loaded with the part, so that no Bundle waits for it"


@asynccontextmanager
async def open_part(settings: Settings) -> AsyncIterator[ConsumeLoop]:
    """The consumer between log and database."""
    await until_prepared(settings)
    database, log_ = open_watched_database(settings, inline=True), open_log(settings)
    consumer = AttendanceConsumer(database, log_, load_keyring(settings), SystemClock(), rules_of(settings))
    options = LoopOptions(
        group=settings.name_on_log(topics.ATTENDANCES_GROUP),
        records_max=settings.batch_records_max,
        poll_wait_s=settings.poll_wait_s,
        contact_interval_s=settings.contact_interval_s,
        poison_attempts_max=settings.poison_attempts_max,
    )
    reader = open_reader(
        settings, topic=settings.name_on_log(topics.ATTENDANCES), group=settings.name_on_log(topics.ATTENDANCES_GROUP)
    )
    try:
        yield ConsumeLoop(reader, consumer, database, SystemClock(), options)
    finally:
        await log_.close()
        await database.close()
