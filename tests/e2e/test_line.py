"""The straight line, as its users see it: the department sends, the worker and the department are told."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.conftest import Pair
from tests.system import WITHOUT_PAGES, open_system


async def test_a_day_goes_round_and_the_ledger_balances(pair: Pair, tmp_path: Path) -> None:
    async with open_system(tmp_path, database_url=pair.database_url, kafka=pair.kafka) as system:
        system.start(*WITHOUT_PAGES)
        await system.until_listening()
        await system.send_day(300)
        books = await system.until_settled()
        assert books.log_records == 300
        assert books.alerts_received == sum(books.alerts.values()) > 0
        assert books.replies_received > 0
        topic, alerts = await system.count()
        assert (topic.balances, topic.waiting, alerts.balances) == (True, 0, True)
        assert topic.offered == 300
