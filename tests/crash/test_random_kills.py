"""kill -9 at random moments, wherever the parts then are, under load."""

from __future__ import annotations

import asyncio
import random
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Kafka
from tests.crash.harness import RecordProperty, Scene, open_scene
from tests.crash.nursery import Nursery

PARTS = ("intake", "attendances", "attendances", "dispatch", "jobs")
VICTIMS = ("intake", "intake", "attendances", "attendances", "attendances", "attendances", "dispatch")
"""The dispatcher less often: what it held waits until its lease runs out; killed at once again, it sends nothing."""
UNLUCKY = {"CPIS_POISON_ATTEMPTS_MAX": "20"}
"""Killed so often, a message may be at hand three times without being the cause: here it is not taken for poison."""


@dataclass(frozen=True, kw_only=True)
class Storm:
    """How much is sent, how often is killed, and how long to wait between two kills."""

    messages: int
    kills: int
    pause_s_max: float


EMBEDDED = Storm(messages=5_000, kills=100, pause_s_max=0.6)
EMBEDDED_NIGHTLY = Storm(messages=5_000, kills=500, pause_s_max=0.6)
DISTRIBUTED = Storm(messages=400, kills=8, pause_s_max=1.6)
DISTRIBUTED_NIGHTLY = Storm(messages=5_000, kills=100, pause_s_max=6.0)


async def kill_at_random(scene: Scene, storm: Storm, draws: random.Random) -> None:
    """Kill one process after the other, wherever it is, and start each again at once."""
    for _ in range(storm.kills):
        await asyncio.sleep(draws.uniform(0.0, storm.pause_s_max))
        part = draws.choice(VICTIMS)
        running = scene.running(part)
        assert running, f"{part} ended by itself\n{scene.system.last_words()}"
        victim = draws.choice(running)
        victim.send_signal(signal.SIGKILL)
        assert await victim.wait(10) == -signal.SIGKILL, scene.system.last_words()
        scene.kills += 1
        scene.start(part)


async def weather(scene: Scene, storm: Storm, record_property: RecordProperty) -> None:
    """Send while parts are killed; then nothing may be lost, doubled or made up, and both laws must hold."""
    draws = random.Random(storm.kills)
    before = scene.repeats()
    async with asyncio.TaskGroup() as group:
        group.create_task(kill_at_random(scene, storm, draws))
        group.create_task(scene.offer(storm.messages, pace_s=storm.kills * storm.pause_s_max / 2 / storm.messages))
    books = await scene.catch_up()
    assert scene.kills == storm.kills
    assert books.acknowledged_by_sender == storm.messages <= books.log_records
    assert books.handled["quarantined"] == 0
    assert books.alerts_received > storm.messages / 100
    scene.judge_repeats(before, crashes=scene.started["dispatch"] - 1)
    topic, alerts = await scene.system.count()
    assert (topic.waiting, topic.balances, alerts.balances) == (0, True, True)
    await scene.verify_audit()
    record_property("crash", await scene.figures())


async def test_a_hundred_kills_in_five_thousand_messages(
    tmp_path: Path, nursery: Nursery, record_property: RecordProperty
) -> None:
    async with open_scene(tmp_path, nursery, parts=PARTS, settings=UNLUCKY) as scene:
        await weather(scene, EMBEDDED, record_property)


@pytest.mark.soak
async def test_kills_on_kafka_and_postgresql(
    kafka_server: Kafka, postgres_url: str, tmp_path: Path, nursery: Nursery, record_property: RecordProperty
) -> None:
    servers = kafka_server.bootstrap_servers
    async with open_scene(
        tmp_path, nursery, kafka=servers, database_url=postgres_url, parts=PARTS, settings=UNLUCKY
    ) as scene:
        await weather(scene, DISTRIBUTED, record_property)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_five_hundred_kills(tmp_path: Path, nursery: Nursery, record_property: RecordProperty) -> None:
    async with open_scene(tmp_path, nursery, parts=PARTS, settings=UNLUCKY) as scene:
        await weather(scene, EMBEDDED_NIGHTLY, record_property)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_a_hundred_kills_on_kafka_and_postgresql(
    kafka_server: Kafka, postgres_url: str, tmp_path: Path, nursery: Nursery, record_property: RecordProperty
) -> None:
    servers = kafka_server.bootstrap_servers
    async with open_scene(
        tmp_path, nursery, kafka=servers, database_url=postgres_url, parts=PARTS, settings=UNLUCKY
    ) as scene:
        await weather(scene, DISTRIBUTED_NIGHTLY, record_property)
