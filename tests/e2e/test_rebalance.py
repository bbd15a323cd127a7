"""A storm of workers that join, leave and die: nothing lost, nothing doubled, and no partition waits for long."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest

from tests import ledger
from tests.e2e.scenes import (
    Played,
    Scene,
    Stage,
    accepted,
    end,
    play,
    query,
    sending,
    until_handled,
    until_ready,
)
from tests.system import System

pytestmark = [pytest.mark.alone, pytest.mark.timeout(400)]

PER_SECOND: Final = 30.0
STORM_S: Final = 30.0
SMALL_STORM_S: Final = 26.0
SOAK_STORM_S: Final = 120.0
WORKERS: Final = 4
PARTITIONS: Final = 12
SESSION_S: Final = 6
GAP_S: Final = 15.0
"""The longest that any partition may wait."""
DEATH_S: Final = 2.0 * SESSION_S
"""Between one death and the next: the group waits a whole session for each."""


@dataclass(kw_only=True)
class Finding:
    """What a storm was, and what it did."""

    books: ledger.Books | None = None
    gaps_s: dict[int, float] = field(default_factory=dict)
    """The longest time in which nothing of a partition was handled, by partition."""
    facts: dict[str, Any] = field(default_factory=dict)


async def storm_over_kafka(stage: Stage, directory: Path) -> Finding:
    """Twelve partitions in Kafka, sessions of six seconds."""
    async with stage.open_system(
        directory,
        database_url=stage.make_database(directory),
        kafka=stage.kafka.bootstrap_servers,
        CPIS_LOG_PARTITIONS=str(PARTITIONS),
        CPIS_KAFKA_SESSION_TIMEOUT_S=str(SESSION_S),
    ) as system:
        return await _weather(system, SOAK_STORM_S if stage.soak else STORM_S)


async def storm_over_embedded(stage: Stage, directory: Path) -> Finding:
    """Four partitions in a file, where members come and go by the locks of their processes."""
    async with stage.open_system(directory) as system:
        return await _weather(system, SOAK_STORM_S if stage.soak else SMALL_STORM_S)


async def _weather(system: System, storm_s: float) -> Finding:
    found = Finding()
    system.start("intake", "dispatch", "attendances", "attendances")
    async with sending(system, per_second=PER_SECOND):
        await until_ready(system, "intake", "dispatch", "attendances")
        await until_handled(system, 4 * PARTITIONS, limit_s=60)
        began_at = datetime.now(UTC)
        found.facts |= await _storm(system, storm_s)
        ended_at = datetime.now(UTC)
        await until_handled(system, accepted(system), limit_s=60)
        await asyncio.sleep(2)  # so that every partition has something after the storm as well
    found.gaps_s = await _measure_gaps(system, began_at, ended_at)
    found.books = await system.until_settled()
    return found


async def _storm(system: System, storm_s: float) -> dict[str, Any]:
    """Start, end and kill workers; one that has held partitions is always left. What happened, and how they ended."""
    draws = random.Random(storm_s)
    ends_at = time.monotonic() + storm_s
    leaving: dict[int, asyncio.Task[int]] = {}
    killed = joined = 0
    died_at = -DEATH_S
    while time.monotonic() < ends_at:
        await asyncio.sleep(draws.uniform(0.5, 2.0))
        present = [worker for worker in _workers(system) if worker.poll() is None and worker.pid not in leaving]
        candidates = [worker for worker in present if _has_worked(system, worker)]
        if len(present) < WORKERS and (len(candidates) < 2 or draws.random() < 0.5):
            system.start("attendances")
            joined += 1
        elif len(candidates) > 1:
            worker = draws.choice(candidates)
            dies = len(leaving) % 3 == 1 and time.monotonic() - died_at > DEATH_S
            died_at = time.monotonic() if dies else died_at
            leaving[worker.pid] = asyncio.create_task(end(worker, signal.SIGKILL if dies else signal.SIGTERM))
            killed += dies
    codes = await asyncio.gather(*leaving.values())
    return {"joined": joined, "killed": killed, "left": len(codes) - killed, "codes": sorted(set(codes))}


def _workers(system: System) -> list[subprocess.Popen[bytes]]:
    return system.parts["attendances"]


def _has_worked(system: System, worker: subprocess.Popen[bytes]) -> bool:
    number = _workers(system).index(worker)
    return '"partitions_assigned"' in (system.directory / f"attendances-{number}.log").read_text()


async def _measure_gaps(system: System, began_at: datetime, ended_at: datetime) -> dict[int, float]:
    """By partition, the longest time between two messages that begins or ends in the storm."""
    handled: dict[int, list[datetime]] = defaultdict(list)
    for partition, at in await query(system, "SELECT partition, handled_at FROM handled_positions ORDER BY handled_at"):
        instant = datetime.fromisoformat(at) if isinstance(at, str) else at
        handled[partition].append(instant if instant.tzinfo else instant.replace(tzinfo=UTC))
    return {
        partition: max(
            (later - earlier).total_seconds()
            for earlier, later in pairwise(instants)
            if later > began_at and earlier < ended_at
        )
        for partition, instants in sorted(handled.items())
    }


SCENES: Final[Mapping[str, Scene[Finding]]] = {
    "test_a_storm_over_twelve_kafka_partitions": storm_over_kafka,
    "test_a_storm_over_the_embedded_log": storm_over_embedded,
}


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Played[Finding]:
    """Every chosen scene of this module, played once.

    One after the other: workers that start in one storm would starve those of the other, on two cores for seconds.
    """
    return play(request, SCENES, tmp_path_factory.mktemp("rebalance"), limit_s=190, at_once=1)


@pytest.fixture
def finding(request: pytest.FixtureRequest, played: Played[Finding]) -> Finding:
    """What the scene of this test found; shown when the test fails, or with -s."""
    found = played[request.node.name]
    print({partition: round(gap_s, 1) for partition, gap_s in found.gaps_s.items()}, found.facts, sep="\n")
    return found


def assert_weathered(finding: Finding, partitions: int) -> None:
    """It was a storm; nothing lost, nothing doubled, nothing waiting, and no partition waited long."""
    assert finding.facts["joined"] >= 3
    assert finding.facts["left"] >= 2
    assert finding.facts["killed"] >= 1
    assert set(finding.facts["codes"]) <= {0, -signal.SIGKILL}, "who leaves in order ends in order"
    assert len(finding.gaps_s) == partitions
    assert max(finding.gaps_s.values()) <= GAP_S
    assert finding.books is not None
    assert not finding.books.problems
    assert "quarantined" not in finding.books.handled


def test_a_storm_over_twelve_kafka_partitions(finding: Finding) -> None:
    assert_weathered(finding, PARTITIONS)


def test_a_storm_over_the_embedded_log(finding: Finding) -> None:
    assert_weathered(finding, 4)
