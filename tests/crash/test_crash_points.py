"""kill -9 at every named point from the socket to the settled delivery."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import zip_longest
from pathlib import Path

import pytest

from tests.conftest import Kafka
from tests.crash.harness import Blow, RecordProperty, Scene, draw_blow, open_scene
from tests.crash.nursery import Nursery
from tests.crash.points import POINTS, find_owner

MESSAGES = 50
SEEDS = (1, 2, 3)
DISTRIBUTED_SEED = 4
NIGHTLY_SEEDS = range(100, 200)


def one_by_one(seed: int) -> list[list[Blow]]:
    """Each point by itself."""
    draws = random.Random(seed)
    return [[draw_blow(point, draws)] for point in POINTS]


def side_by_side(seed: int) -> list[list[Blow]]:
    """Every point once, and several parts dying in each round: harder on the broker, and quicker."""
    draws = random.Random(seed)
    parts = sorted({point.part for point in POINTS.values()})
    of_parts = [[name for name, point in POINTS.items() if point.part == part] for part in parts]
    for names in of_parts:
        draws.shuffle(names)
    return [[draw_blow(name, draws) for name in row if name] for row in zip_longest(*of_parts)]


async def crash_through(scene: Scene, rounds: Sequence[Sequence[Blow]], record_property: RecordProperty) -> None:
    """Strike every blow on one installation, judging after each round, and the whole at the end."""
    for blows in rounds:
        await scene.strike_and_judge(blows, messages=MESSAGES)
    struck = [blow for blows in rounds for blow in blows]
    assert sorted(blow.point for blow in struck) == sorted(POINTS)
    assert scene.kills == len(struck)
    topic, alerts = await scene.system.count()
    assert topic.balances
    assert alerts.balances
    await scene.verify_audit()
    record_property("crash", await scene.figures())


def test_every_named_point_is_a_function_of_the_product() -> None:
    assert len(POINTS) >= 14
    for point in POINTS.values():
        for target in point.targets:
            find_owner(target)


async def test_killed_at_every_point_nothing_is_lost_doubled_or_made_up(
    kafka_server: Kafka, postgres_url: str, tmp_path: Path, nursery: Nursery, record_property: RecordProperty
) -> None:
    """Three seeds on the embedded engines and one on Kafka and PostgreSQL, which mostly wait, at the same time."""
    async with AsyncExitStack() as stack:
        scenes = {
            seed: await stack.enter_async_context(open_scene(tmp_path / str(seed), nursery, seed=seed))
            for seed in SEEDS
        }
        distributed = open_scene(
            tmp_path / "distributed",
            nursery,
            seed=DISTRIBUTED_SEED,
            kafka=kafka_server.bootstrap_servers,
            database_url=postgres_url,
        )
        scenes[DISTRIBUTED_SEED] = await stack.enter_async_context(distributed)
        async with asyncio.TaskGroup() as group:
            for seed, scene in scenes.items():
                group.create_task(crash_through(scene, side_by_side(seed), record_property))


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", NIGHTLY_SEEDS)
async def test_killed_at_each_point_by_itself(
    seed: int, tmp_path: Path, nursery: Nursery, record_property: RecordProperty
) -> None:
    async with open_scene(tmp_path, nursery, seed=seed) as scene:
        await crash_through(scene, one_by_one(seed), record_property)


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_killed_at_each_point_by_itself_on_kafka_and_postgresql(
    kafka_server: Kafka, postgres_url: str, tmp_path: Path, nursery: Nursery, record_property: RecordProperty
) -> None:
    servers = kafka_server.bootstrap_servers
    async with open_scene(tmp_path, nursery, seed=5, kafka=servers, database_url=postgres_url) as scene:
        await crash_through(scene, one_by_one(5), record_property)
