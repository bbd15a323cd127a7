"""The two flows of the broker: either goes on while the other is stopped or fed with poison, and catches up later."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from adapters.sqlite_log import SqliteLog, SqliteLogOptions
from broker.bootstrap import attendances, encompass
from broker.bootstrap.engines import open_database
from broker.bootstrap.ledger import count_encompass, count_ledger
from broker.bootstrap.parts import Part
from broker.settings import Settings
from broker.topics import ATTENDANCES, INCIDENTS
from tests.encompass import half_term
from tests.factories import make_settings
from tests.integration.test_encompass_part import furnish
from tests.world import hl7

OpenPart = Callable[[Settings], AbstractAsyncContextManager[Part]]
POISON = (b"\x00" * 64, b"MSH|^~\\&|" + b"\xff" * 200, b'{"resourceType": "Bundle", "entry": [[[', b"")


@asynccontextmanager
async def running(part: Part) -> AsyncIterator[None]:
    task = asyncio.create_task(part.run())
    yield
    part.stop()
    await task


async def settled(settings: Settings, topic: str, count: int) -> dict[str, int]:
    """What became of a topic, once so many messages have been handled."""
    database = open_database(settings)
    try:
        async with asyncio.timeout(20):
            while True:
                counted = await (count_ledger if topic == ATTENDANCES else count_encompass)(settings, database)
                assert counted[0].balances
                if sum(counted[0].outcomes.values()) >= count:
                    return dict(counted[0].outcomes)
                await asyncio.sleep(0.02)
    finally:
        await database.close()


async def test_either_flow_goes_on_while_the_other_is_stopped_and_poisoned(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    database = open_database(settings)
    await furnish(settings, database)
    await database.close()
    log = SqliteLog(SqliteLogOptions(path=tmp_path / "log.sqlite", partitions=settings.log_partitions))
    good = {
        ATTENDANCES: lambda number: hl7(visit=f"V{number}", control_id=f"C{number}"),
        INCIDENTS: lambda number: json.dumps(half_term(incident_id=f"ZF1/{number}", excluded_recipients=[])).encode(),
    }
    parts: dict[str, OpenPart] = {ATTENDANCES: attendances.open_part, INCIDENTS: encompass.open_part}
    for round_number, (living, stopped) in enumerate(((ATTENDANCES, INCIDENTS), (INCIDENTS, ATTENDANCES))):
        for number in range(3):
            for topic in parts:
                for body in (*POISON, good[topic](10 * round_number + number)):
                    await log.append(settings.name_on_log(topic), key=b"k", value=body, headers={})
        everything = 3 * (len(POISON) + 1) * (round_number + 1)
        async with parts[living](settings) as part, running(part):
            outcomes = await settled(settings, living, everything)
            assert sum(count for outcome, count in outcomes.items() if outcome not in ("quarantined", "ignored")) >= 3
            assert sum((await settled(settings, stopped, 0)).values()) == 3 * (len(POISON) + 1) * round_number
        async with parts[stopped](settings) as part, running(part):
            await settled(settings, stopped, everything)
    await log.close()
