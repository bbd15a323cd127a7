"""The part that handles police incidents, as `serve --only encompass` opens it, on the embedded engines."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from adapters.sqlite_log import SqliteLog, SqliteLogOptions
from broker.bootstrap.encompass import open_part
from broker.bootstrap.engines import open_database
from broker.bootstrap.ledger import count_encompass
from broker.bootstrap.safety import load_keyring
from broker.clock import SystemClock
from broker.directory_upload import DirectoryUpload
from broker.settings import Settings
from broker.storage.database import Database
from broker.storage.ledger import NoticeLedger, TopicLedger
from broker.storage.migrations import migrate
from broker.topics import INCIDENTS
from tests.encompass import CONTACTS, FORCES, SCHOOLS, half_term
from tests.factories import make_settings


async def furnish(settings: Settings, database: Database) -> None:
    """Migrate, and import a force, schools and their people."""
    await migrate(database)
    keyring = load_keyring(settings)
    upload = DirectoryUpload(database, keyring, SystemClock(), demo_passwords=True, actor="test", dry_run=False)
    await upload.load_forces(FORCES.encode(), settings.data_dir / "forces.json")
    await upload.load_schools(SCHOOLS.encode())
    await upload.load_safeguarding_contacts(CONTACTS.encode())


async def until_counted(settings: Settings, database: Database, count: int) -> tuple[TopicLedger, NoticeLedger]:
    async with asyncio.timeout(20):
        while True:
            topic, notices = await count_encompass(settings, database)
            if sum(topic.outcomes.values()) == count:
                return topic, notices
            await asyncio.sleep(0.05)


async def test_the_part_begins_at_the_beginning_and_a_second_one_raises_nothing_new(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    database = open_database(settings)
    await furnish(settings, database)
    log = SqliteLog(SqliteLogOptions(path=tmp_path / "log.sqlite", partitions=settings.log_partitions))
    body = json.dumps(half_term()).encode()
    for expected in (1, 2):
        async with open_part(settings) as part:
            await log.append(settings.name_on_log(INCIDENTS), key=b"k", value=body, headers={})
            running = asyncio.create_task(part.run())
            topic, notices = await until_counted(settings, database, expected)
            part.stop()
            await running
        assert topic.balances and notices.balances
        assert notices.planned == 2
    assert topic.reasons == {"repeated": 1}
    await log.close()
    await database.close()
