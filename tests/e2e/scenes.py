"""Scenes that mostly wait are played at the same time; what each of them found is told by a test of its own.

A scene is a coroutine that returns its findings. Those of a module are played once, before its first test, and only
those whose tests were chosen. What a scene raises is raised by its test.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import asyncpg
import pytest

from broker.liveness import PartStatus, is_ready, read_statuses
from broker.settings import Settings
from tests.conftest import Kafka
from tests.engines import PostgresServer
from tests.system import System, open_system, until

Found = TypeVar("Found")

NOT_READY_S = float(Settings.model_fields["silent_not_ready_s"].default)
RECOVERED_S = 30.0
"""Reconnected or ended, and back after an outage, by then."""
GRACE_S = 1.5
"""For looking: every twentieth of a second, on a machine where much else goes on."""
SERVED = "intake,attendances,dispatch"
"""Three parts under a supervisor."""


# Playing


@dataclass(frozen=True)
class Stage:
    """What all scenes of a module share."""

    request: pytest.FixtureRequest
    _setting_up: asyncio.Lock

    @asynccontextmanager
    async def open_system(
        self, directory: Path, *, database_url: str = "", kafka: str = "", **variables: str
    ) -> AsyncIterator[System]:
        """As tests.system.open_system. One installation is set up after the other: Alembic's context is global."""
        async with AsyncExitStack() as stack:
            async with self._setting_up:
                opening = open_system(
                    directory, database_url=database_url, kafka=kafka, seed=1, connections=2, fhir=0.0, **variables
                )
                system = await stack.enter_async_context(opening)
            yield system

    @property
    def kafka(self) -> Kafka:
        """The Kafka of this run: not to be stopped."""
        server: Kafka = self.request.getfixturevalue("kafka_server")
        return server

    @property
    def postgres(self) -> PostgresServer:
        """The PostgreSQL of this run: not to be stopped."""
        server: PostgresServer = self.request.getfixturevalue("postgres_server")
        return server

    @property
    def soak(self) -> bool:
        """Whether this is a soak-length run."""
        return bool(self.request.config.getoption("--soak"))

    def make_database(self, directory: Path) -> str:
        """The address of an empty database on the PostgreSQL of this run."""
        return self.postgres.create_database(f"{directory.name.replace('-', '_')}_{os.urandom(3).hex()}")


Scene = Callable[[Stage, Path], Awaitable[Found]]


@dataclass(frozen=True)
class Played(Generic[Found]):
    """What the scenes found, each by the name of its test."""

    ends: Mapping[str, Found | BaseException]

    def __getitem__(self, test: str) -> Found:
        end = self.ends[test]
        if isinstance(end, BaseException):
            raise end
        return end


def play(
    request: pytest.FixtureRequest,
    scenes: Mapping[str, Scene[Found]],
    directory: Path,
    *,
    limit_s: float,
    at_once: int = 20,
) -> Played[Found]:
    """Play those scenes whose tests were chosen, so many at once. ``scenes`` are by the names of their tests."""
    chosen = {item.name for item in request.session.items} & scenes.keys()
    stage, turns = Stage(request, asyncio.Lock()), asyncio.Semaphore(at_once)

    async def play_all() -> dict[str, Found | BaseException]:
        names = sorted(chosen)
        ends = await asyncio.gather(
            *(
                _play_one(scenes[name], stage, directory / f"scene_{number}", limit_s, turns)
                for number, name in enumerate(names)
            ),
            return_exceptions=True,
        )
        return dict(zip(names, ends, strict=True))

    return Played(asyncio.run(play_all()))


async def _play_one(
    scene: Scene[Found], stage: Stage, directory: Path, limit_s: float, turns: asyncio.Semaphore
) -> Found:
    directory.mkdir()
    async with turns, asyncio.timeout(limit_s):
        return await scene(stage, directory)


# What scenes do and look at


@asynccontextmanager
async def sending(system: System, *, per_second: float) -> AsyncIterator[None]:
    """The department sends all the time."""

    async def send() -> None:
        began = time.monotonic()
        sent = 0
        while True:
            await system.ed.offer(system.department.next_message())
            sent += 1
            await asyncio.sleep(max(0.0, began + sent / per_second - time.monotonic()))

    task = asyncio.create_task(send())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


def accepted(system: System) -> int:
    """How many messages the department was told are kept."""
    return system.ed.answers["AA"]


async def count_handled(system: System) -> int:
    """How many positions are settled, read with a plain driver."""
    [(count,)] = await query(system, "SELECT count(*) FROM handled_positions")
    return int(count)


async def query(system: System, statement: str) -> list[tuple[Any, ...]]:
    """Ask the system's database with a plain driver."""
    if system.database_url.startswith("sqlite"):
        with closing(sqlite3.connect(f"file:{urlsplit(system.database_url).path[1:]}?mode=ro", uri=True)) as connection:
            return connection.execute(statement).fetchall()
    connection = await asyncpg.connect(system.database_url.replace("+asyncpg", ""), timeout=5)
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()


async def until_handled(system: System, at_least: int, *, limit_s: float) -> float:
    """Wait until so many positions are settled; returns after how many seconds that was."""

    async def are_handled() -> bool:
        return await count_handled(system) >= at_least

    return await until(are_handled, limit_s=limit_s, what=f"{at_least} settled positions", every_s=0.2)


async def until_accepted(system: System, more: int, *, limit_s: float) -> float:
    """Wait until so many more messages were accepted; returns after how many seconds that was."""
    wanted = accepted(system) + more
    return await until(lambda: accepted(system) >= wanted, limit_s=limit_s, what=f"{more} more messages accepted")


def statuses(system: System, part: str) -> list[PartStatus]:
    """What the processes of a part last said of themselves."""
    return [status for status in read_statuses(system.directory / "broker") if status.part == part]


def part_is_ready(system: System, part: str) -> bool:
    """Whether every process of the part is ready, by the product's own limits."""
    found = [status for status in statuses(system, part) if status.state != "stopped"]
    return bool(found) and all(is_ready(status, now=time.time(), silent_s=NOT_READY_S) for status in found)


async def until_ready(system: System, *parts: str, limit_s: float = 100.0) -> float:
    """Wait until all these parts are ready; returns after how many seconds they were."""
    return await until(
        lambda: all(part_is_ready(system, part) for part in parts), limit_s=limit_s, what=f"{parts} ready"
    )


async def until_not_ready(system: System, part: str, *, limit_s: float = 30.0) -> float:
    """Wait until the part is not ready; returns after how many seconds it was not."""
    return await until(lambda: not part_is_ready(system, part), limit_s=limit_s, what=f"{part} not ready")


async def until_ended(process: subprocess.Popen[bytes], *, limit_s: float) -> float:
    """Wait until a process has ended; returns after how many seconds it had."""
    return await until(lambda: process.poll() is not None, limit_s=limit_s, what=f"the end of {process.args!r}")


async def end(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> int:
    """Send a signal and wait for the end without holding up the other scenes; returns the exit code."""
    process.send_signal(number)
    await until_ended(process, limit_s=40)
    assert process.returncode is not None
    return process.returncode


def exits(system: System, served: str, part: str) -> list[int]:
    """The exit codes of a part, as the supervisor of ``served`` noted them."""
    return [
        int(str(event["code"]))
        for event in system.log_events(served)
        if event.get("event") == "part_exited" and event.get("part") == part
    ]


async def until_exited(system: System, served: str, part: str) -> None:
    """Wait until the supervisor of ``served`` has noted the end of a part."""
    await until(lambda: bool(exits(system, served, part)), limit_s=40, what=f"the end of {part}", every_s=0.1)


def event_times(system: System, served: str, name: str, **facts: object) -> list[float]:
    """When an event with these facts was logged, in seconds since the epoch."""
    return [
        datetime.fromisoformat(str(event["timestamp"])).timestamp()
        for event in system.log_events(served)
        if event.get("event") == name and facts.items() <= event.items()
    ]


async def run_command(environment: Mapping[str, str], *arguments: str) -> tuple[int, str]:
    """Run ``cpis-broker`` in this environment; its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "broker", *arguments),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, printed.decode()


async def ask_health(system: System, *arguments: str) -> tuple[int, dict[str, bool]]:
    """What ``cpis-broker health`` says: its exit code, and who is ready."""
    code, printed = await run_command(system.environment, "health", "--json", *arguments)
    found: dict[str, bool] = json.loads(printed)
    return code, found
