"""Both conservation laws, counted on the engines of the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker import topics
from broker.bootstrap.engines import open_log

if TYPE_CHECKING:
    from broker.settings import Settings
    from broker.storage.database import Database
    from broker.storage.ledger import AlertLedger, NoticeLedger, TopicLedger


async def count_ledger(settings: Settings, database: Database) -> tuple[TopicLedger, AlertLedger]:
    """Count both conservation laws of attendances. Raises LogUnavailable."""
    from broker.storage import ledger

    topic = await _count(settings, database, topics.ATTENDANCES, topics.ATTENDANCES_GROUP)
    async with database.reading() as connection:
        return topic, await ledger.count_alerts(connection)


async def count_encompass(settings: Settings, database: Database) -> tuple[TopicLedger, NoticeLedger]:
    """Count both conservation laws of police incidents. Raises LogUnavailable."""
    from broker.storage import ledger

    topic = await _count(settings, database, topics.INCIDENTS, topics.ENCOMPASS_GROUP)
    async with database.reading() as connection:
        return topic, await ledger.count_notices(connection)


async def _count(settings: Settings, database: Database, topic: str, group: str) -> TopicLedger:
    from broker.storage import ledger

    name = settings.name_on_log(topic)
    log_ = open_log(settings)
    try:
        extents = await log_.extents(name)
    finally:
        await log_.close()
    async with database.reading() as connection:
        return await ledger.count_topic(connection, settings.name_on_log(group), name, extents)
