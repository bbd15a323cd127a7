"""Both conservation laws, counted on the engines of the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker import topics
from broker.bootstrap.engines import open_log

if TYPE_CHECKING:
    from broker.settings import Settings
    from broker.storage.database import Database
    from broker.storage.ledger import AlertLedger, TopicLedger


async def count_ledger(settings: Settings, database: Database) -> tuple[TopicLedger, AlertLedger]:
    """Count both conservation laws. Raises LogUnavailable."""
    from broker.storage import ledger

    log_ = open_log(settings)
    try:
        extents = await log_.extents(settings.name_on_log(topics.ATTENDANCES))
    finally:
        await log_.close()
    async with database.reading() as connection:
        group, name = settings.name_on_log(topics.ATTENDANCES_GROUP), settings.name_on_log(topics.ATTENDANCES)
        topic = await ledger.count_topic(connection, group, name, extents)
        return topic, await ledger.count_alerts(connection)
