"""The straight line, as its users see it: the department sends, the worker and the department are told."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.conftest import Pair
from tests.system import ALL_PARTS, open_system


async def test_a_day_goes_round_and_the_ledger_balances(pair: Pair, tmp_path: Path) -> None:
    async with open_system(tmp_path, database_url=pair.database_url, kafka=pair.kafka, fhir=0.3) as system:
        system.start(*ALL_PARTS)
        await system.until_listening()
        await system.until_pages()
        await system.send_day(300)
        books = await system.until_settled()
        assert books.log_records == 300
        assert system.ed.answers["AA"] > 100 and system.ed.answers["202"] > 30
        assert books.alerts_received == sum(books.alerts.values()) > 0
        assert books.replies_received > 0
        topic, alerts = await system.count()
        assert (topic.balances, topic.waiting, alerts.balances) == (True, 0, True)
        assert topic.offered == 300
