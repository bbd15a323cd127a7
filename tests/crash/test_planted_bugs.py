"""The harness is believed because it notices bugs that are planted on purpose, each by the crash that brings it out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from sqlalchemy import text

from tests.conftest import Kafka
from tests.crash.bugs import BUGS
from tests.crash.harness import Blow, Scene, open_scene
from tests.crash.nursery import Nursery

MESSAGES = 50
STRIKES = 3
SOUND_IN_QUARANTINE = "sound messages are in quarantine"


@dataclass(frozen=True, kw_only=True)
class Trap:
    """The part that has the bug, the blow that brings it out, and what the harness may say then, one at least."""

    part: str
    blow: Blow
    verdicts: tuple[str, ...]
    quiet_s: float = 3.0
    """Nothing more is to be expected after so long without any change."""


TRAPS: Mapping[str, Trap] = MappingProxyType(
    {
        "offset-before-database": Trap(
            part="attendances", blow=Blow(point="attendance.marked", count=2), verdicts=("positions still wait",)
        ),
        "settled-before-sent": Trap(
            part="dispatch",
            blow=Blow(point="dispatcher.before_send", count=2),
            verdicts=("replies due at the department", "marked sent that nobody received: LOST"),
            quiet_s=5.0,
        ),
        "auto-commit": Trap(
            part="attendances",
            blow=Blow(point="attendance.before_commit", count=2),
            verdicts=("positions still wait",),
            quiet_s=6.0,
        ),
        "markers-forgotten": Trap(
            part="attendances",
            blow=Blow(point="intake.before_ack", count=10),
            verdicts=("messages counted twice",),
        ),
        "acknowledged-before-appended": Trap(
            part="intake", blow=Blow(point="intake.append_under_way", count=3), verdicts=("LOST",)
        ),
    }
)
UNIQUE_KEY_DROPPED = Trap(
    part="attendances", blow=Blow(point="intake.before_ack", count=10), verdicts=("messages counted twice",)
)


async def spring(scene: Scene, trap: Trap) -> None:
    """Strike, wait until nothing changes any more, and see that the harness calls it by its name.

    Whether a blow falls while the bug can show is a matter of luck on a busy machine: it may fall three times.
    """
    problems: list[str] = []
    for _ in range(STRIKES):
        await scene.strike([trap.blow], messages=MESSAGES)
        problems = await scene.at_rest(trap.quiet_s)
        if await scene.count_quarantined():
            problems = [*problems, SOUND_IN_QUARANTINE]
        if any(verdict in problem for problem in problems for verdict in trap.verdicts):
            return
    raise AssertionError(f"{trap.part} struck at {trap.blow} shows nothing of its bug: {problems}")


async def test_every_planted_bug_is_noticed(
    kafka_server: Kafka, postgres_url: str, tmp_path: Path, nursery: Nursery
) -> None:
    assert set(TRAPS) == set(BUGS)
    async with AsyncExitStack() as stack:
        scenes = {}
        for bug, trap in TRAPS.items():
            on_kafka = bug == "auto-commit"
            scene = open_scene(
                tmp_path / bug,
                nursery,
                bugs={trap.part: bug},
                kafka=kafka_server.bootstrap_servers if on_kafka else "",
                database_url=postgres_url if on_kafka else "",
            )
            scenes[bug] = await stack.enter_async_context(scene)
        async with asyncio.TaskGroup() as group:
            for bug, scene_of_bug in scenes.items():
                group.create_task(spring(scene_of_bug, TRAPS[bug]))


async def test_a_dropped_unique_key_is_noticed(postgres_url: str, tmp_path: Path, nursery: Nursery) -> None:
    async with open_scene(tmp_path, nursery, database_url=postgres_url) as scene:
        async with scene.database.writing() as connection:
            for table in ("handled_markers", "visit_messages"):
                await connection.execute(text(f"ALTER TABLE {table} DROP CONSTRAINT pk_{table}"))
        await spring(scene, UNIQUE_KEY_DROPPED)
