"""The same messages again and in another order, and the whole log again: nobody hears anything a second time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from sqlalchemy import text

from mock_nhs.department import AdtMessage
from mock_nhs.mllp_link import LinkOptions, MllpLink
from tests import ledger
from tests.conftest import Kafka
from tests.crash.harness import CAUGHT_UP_S, Scene, open_scene
from tests.crash.nursery import Nursery
from tests.system import until

MESSAGES = 150
COPIES = 3
UNDONE = ("A11", "A13", "A40")
"""Cancelled, cancelled again, and merged with another record: every visit that is still open."""


async def send_copies(scene: Scene, messages: Sequence[AdtMessage], draws: random.Random) -> None:
    """Every message so many times, each time in another order over a connection of its own."""
    answers: Counter[str] = Counter()
    options = LinkOptions(host="127.0.0.1", port=scene.system.mllp_port)
    async with AsyncExitStack() as stack:
        links = [
            MllpLink(options, scene.system.faults, lambda _, code, __: answers.update([code])) for _ in range(COPIES)
        ]
        for link in links:
            link.start()
            stack.push_async_callback(link.stop)
            for message in draws.sample(messages, len(messages)):
                await link.offer(message)
        async with asyncio.timeout(CAUGHT_UP_S):
            await asyncio.gather(*(link.settle() for link in links))
    assert answers == {"AA": len(messages) * COPIES}


async def told(scene: Scene) -> tuple[Counter[str], int, int, int]:
    """Everything anybody was ever told: alerts by state, what arrived at either recipient, repeats."""
    books = await ledger.reckon(scene.system.sources())
    return books.alerts, books.alerts_received, books.replies_received, scene.repeats().total()


async def begin_again(scene: Scene) -> None:
    """Set the stored offsets back to the beginning, as they stand in an old backup."""
    async with scene.database.writing() as connection:
        await connection.execute(text("UPDATE stored_offsets SET next_offset = first_offset"))


async def has_read_all(scene: Scene) -> bool:
    topic, _ = await scene.system.count()
    return topic.waiting == 0


async def repeat_everything(scene: Scene) -> None:
    """The body of the tests below."""
    draws = random.Random(7)
    department = scene.system.department
    messages = [department.next_message() for _ in range(MESSAGES)]
    messages += [department.update(visit, event) for visit in department.open for event in UNDONE]
    for message in draws.sample(messages, len(messages)):
        await scene.system.ed.offer(message)
    first = await scene.catch_up()
    assert first.log_records == len(messages) > MESSAGES
    before = await told(scene)
    assert before[1] > 0

    await send_copies(scene, messages, draws)
    books = await scene.catch_up()
    assert books.log_records == len(messages) * (1 + COPIES)
    assert books.reasons["repeated"] == len(messages) * COPIES
    assert await told(scene) == before

    await scene.stop("attendances")
    await begin_again(scene)
    scene.start("attendances")
    await until(lambda: has_read_all(scene), limit_s=CAUGHT_UP_S, what="the end of the log")
    again = await scene.catch_up()
    assert again.handled == books.handled
    assert await told(scene) == before
    topic, alerts = await scene.system.count()
    assert topic.balances
    assert alerts.balances
    await scene.verify_audit()


async def test_copies_shuffled_and_replayed_from_the_beginning(tmp_path: Path, nursery: Nursery) -> None:
    async with open_scene(tmp_path, nursery) as scene:
        await repeat_everything(scene)


async def test_copies_shuffled_and_replayed_on_kafka_and_postgresql(
    kafka_server: Kafka, postgres_url: str, tmp_path: Path, nursery: Nursery
) -> None:
    servers = kafka_server.bootstrap_servers
    async with open_scene(tmp_path, nursery, kafka=servers, database_url=postgres_url) as scene:
        await repeat_everything(scene)
