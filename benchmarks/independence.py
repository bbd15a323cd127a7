"""Two flows that must not feel each other: how soon one handles its messages while the other is in trouble.

The parts run as processes, as they are served. The watched flow gets messages at a steady rate, each timed from its
append to the moment at which what became of it stands in the database. The other flow rests, or is stopped, fed with
poison, or made slow (its process stands still half of the time); pairs of both are interleaved.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from statistics import median

from sqlalchemy import select

from benchmarks.door import percentile_ms
from benchmarks.figures import Figure, Subject
from benchmarks.installation import Installation, Scale
from broker import bootstrap
from broker.clock import SystemClock
from broker.directory_upload import DirectoryUpload
from broker.ports import Log
from broker.senders import FORCES_SNAPSHOT_NAME
from broker.storage.database import Database
from broker.storage.tables import HandledPosition, table
from broker.topics import ATTENDANCES, INCIDENTS
from mock_nhs.police import NightOptions, invent_night
from mock_nhs.schools import invent_schools, write_schools

PAIRS = 5
MESSAGES_A_SECOND = 13
"""The peak of all departments of England."""
PATIENCE_S = 60.0
STILL_S = 0.02
"""How long a slowed process stands still, and how long it then may run."""
TIMES_MAX, MORE_MS_MAX = 1.25, 50.0
POISON = (b"\x00" * 64, b"MSH|^~\\&|" + b"\xff" * 200, b'{"entry": [[[')
PARTS = {ATTENDANCES: "attendances", INCIDENTS: "encompass"}
STOPPED, POISONED, SLOWED = "stopped", "fed with poison", "slowed"


@dataclass
class Flows:
    """Both flows of one installation."""

    installation: Installation
    log: Log
    database: Database
    bodies: dict[str, Iterator[bytes]]
    run_s: float
    seen: dict[str, set[tuple[int, int]]] = field(default_factory=lambda: {ATTENDANCES: set(), INCIDENTS: set()})

    async def append(self, topic: str, body: bytes) -> tuple[int, int]:
        """Put a message on the log, as a foreign producer would; where it stands."""
        name = self.installation.settings.name_on_log(topic)
        partition, offset = await self.log.append(name, key=b"k", value=body, headers={})
        return partition.number, offset

    async def time_run(self, topic: str) -> float:
        """The 95th percentile of one run, in milliseconds."""
        waiting: dict[tuple[int, int], float] = {}
        took_s: list[float] = []
        feeding = asyncio.create_task(self._feed(topic, waiting))
        deadline = time.monotonic() + PATIENCE_S
        while not feeding.done() or waiting:
            assert time.monotonic() < deadline, f"{topic} stands still\n{self.installation.last_words()}"
            for place in await self._find_new(topic):
                if place in waiting:
                    took_s.append(time.perf_counter() - waiting.pop(place))
                    self.seen[topic].add(place)
            await asyncio.sleep(0.002)
        await feeding
        return percentile_ms(took_s, 95)

    async def _feed(self, topic: str, waiting: dict[tuple[int, int], float]) -> None:
        began_at = time.perf_counter()
        for number in range(round(self.run_s * MESSAGES_A_SECOND)):
            await asyncio.sleep(max(0.0, began_at + number / MESSAGES_A_SECOND - time.perf_counter()))
            sent_at = time.perf_counter()
            waiting[await self.append(topic, next(self.bodies[topic]))] = sent_at

    async def _find_new(self, topic: str) -> set[tuple[int, int]]:
        positions = table(HandledPosition).c
        name = self.installation.settings.name_on_log(topic)
        newest = select(positions.partition, positions.position).where(positions.topic == name)
        async with self.database.reading() as connection:
            rows = await connection.execute(newest.order_by(positions.handled_at.desc()).limit(200))
            return {(row.partition, row.position) for row in rows} - self.seen[topic]

    @asynccontextmanager
    async def trouble(self, kind: str, topic: str) -> AsyncIterator[None]:
        """Bring a flow into trouble, and out of it again."""
        part = PARTS[topic]
        process = self.installation.parts[part]
        if kind == STOPPED:
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, 25)
            yield
            self.installation.start(part)
            await self.time_run(topic)
            return
        task = asyncio.create_task(self._poison(topic) if kind == POISONED else _slow(process.pid))
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        process.send_signal(signal.SIGCONT)

    async def _poison(self, topic: str) -> None:
        for body in itertools.cycle(POISON):
            await self.append(topic, body)
            await asyncio.sleep(1 / MESSAGES_A_SECOND)


async def _slow(pid: int) -> None:
    for number in itertools.cycle((signal.SIGSTOP, signal.SIGCONT)):
        os.kill(pid, number)
        await asyncio.sleep(STILL_S)


async def measure_independence(installation: Installation, scale: Scale, say: Callable[[str], None]) -> list[Figure]:
    """How much later one flow is when the other is in trouble: at most 1.25 times, or 50 ms."""
    settings = installation.settings
    database, log_ = bootstrap.open_database(settings), bootstrap.open_log(settings)
    figures: list[Figure] = []
    try:
        flows = Flows(installation, log_, database, await _furnish(installation, database), 2 * scale.door_s)
        installation.start(*PARTS.values())
        for topic in PARTS:
            await flows.time_run(topic)
        for topic, other in ((ATTENDANCES, INCIDENTS), (INCIDENTS, ATTENDANCES)):
            for kind in (STOPPED, POISONED, SLOWED):
                figures += await _measure_pairs(flows, topic, other, kind, say)
    finally:
        await installation.stop()
        await log_.close()
        await database.close()
    return figures


async def _measure_pairs(flows: Flows, topic: str, other: str, kind: str, say: Callable[[str], None]) -> list[Figure]:
    rested, troubled = [], []
    for number in range(PAIRS):
        for is_in_trouble in (number % 2 == 0, number % 2 == 1):
            if is_in_trouble:
                async with flows.trouble(kind, other):
                    troubled.append(await flows.time_run(topic))
            else:
                rested.append(await flows.time_run(topic))
    before, after = median(rested), median(troubled)
    held = "holds" if after <= max(TIMES_MAX * before, before + MORE_MS_MAX) else "DOES NOT HOLD"
    say(f"  {topic} while {other} is {kind}: p95 {before:.0f} -> {after:.0f} ms, {held}")
    what, engines = f"{topic} while {other} is {kind}, p95", flows.installation.engines.name
    return [
        Figure(what=what, engines=engines, subject=subject, unit="ms", rounds=tuple(rounds))
        for subject, rounds in ((Subject.PRODUCT, troubled), (Subject.FLOOR, rested))
    ]


async def _furnish(installation: Installation, database: Database) -> dict[str, Iterator[bytes]]:
    """Import a force and its schools; the messages of both flows, without end."""
    settings, directory = installation.settings, installation.engines.directory / "town"
    town = installation.town.town
    leads = invent_schools([authority.code for authority in town.authorities])
    write_schools(leads, directory, datetime.now(UTC))
    keyring = bootstrap.load_keyring(settings)
    upload = DirectoryUpload(database, keyring, SystemClock(), demo_passwords=True, actor="bench", dry_run=False)
    await upload.load_forces((directory / "forces.csv").read_bytes(), settings.data_dir / FORCES_SNAPSHOT_NAME)
    await upload.load_schools((directory / "schools.csv").read_bytes())
    await upload.load_safeguarding_contacts((directory / "safeguarding-contacts.csv").read_bytes())
    department = installation.town.department(installation.town.attending, seed=7)
    night = invent_night(7, date(2026, 11, 21), [lead.school for lead in leads], NightOptions(incidents=200))

    said = [each.content for each in night if each.content["message"] == "incident"]

    def tell() -> Iterator[bytes]:
        for number in itertools.count():
            content = said[number % len(said)] | {"incident_id": f"ZF1/bench/{number}", "version": 1, "change": None}
            yield json.dumps(content).encode()

    return {ATTENDANCES: (department.next_message().body for _ in itertools.count()), INCIDENTS: tell()}
