"""Two flows that must not feel each other: how soon one handles its messages while the other is in trouble.

The parts run as processes, as they are served. The watched flow gets messages at a steady rate, each timed from its
append to the moment at which what became of it stands in the database. The other flow rests, or is stopped, fed with
poison, or made slow (its process stands still half of the time). In each of five rounds the flow is watched once while
the other rests and once in each trouble, so that each trouble makes a pair; rounds begin with another one each time.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
from broker.storage.tables import StoredOffset, table
from broker.topics import ATTENDANCES, ATTENDANCES_GROUP, ENCOMPASS_GROUP, INCIDENTS
from mock_nhs.police import NightOptions, invent_night
from mock_nhs.schools import invent_schools, write_schools
from tests.engines import EngineError

PAIRS = 5
MESSAGES_A_SECOND = 13
"""The peak of all departments of England."""
PATIENCE_S = 60.0
POLL_S = 0.002
STILL_S = 0.02
"""How long a slowed process stands still, and how long it then may run."""
TIMES_MAX, MORE_MS_MAX = 1.25, 50.0
POISON = (b"\x00" * 64, b"MSH|^~\\&|" + b"\xff" * 200, b'{"entry": [[[')
PARTS = {ATTENDANCES: "attendances", INCIDENTS: "encompass"}
GROUPS = {ATTENDANCES: ATTENDANCES_GROUP, INCIDENTS: ENCOMPASS_GROUP}
RESTED, STOPPED, POISONED, SLOWED = "resting", "stopped", "fed with poison", "slowed"
KINDS = (RESTED, STOPPED, POISONED, SLOWED)


@dataclass
class Flows:
    """Both flows of one installation."""

    installation: Installation
    log: Log
    database: Database
    bodies: dict[str, Iterator[bytes]]
    run_s: float

    async def append(self, topic: str, body: bytes) -> tuple[int, int]:
        """Put a message on the log, as a foreign producer would; where it stands."""
        name = self.installation.settings.name_on_log(topic)
        partition, offset = await self.log.append(name, key=b"k", value=body, headers={})
        return partition.number, offset

    async def time_run(self, topic: str) -> float:
        """The 95th percentile of one run, in milliseconds. Raises StandsStill."""
        waiting: dict[tuple[int, int], float] = {}
        took_s: list[float] = []
        feeding = asyncio.create_task(self._feed(topic, waiting))
        deadline = time.monotonic() + self.run_s + PATIENCE_S
        try:
            while not feeding.done() or waiting:
                if time.monotonic() > deadline:
                    raise StandsStill(f"{topic} stands still\n{self.installation.last_words()}")
                handled = await self._find_next(topic)
                now = time.perf_counter()
                for place in [place for place in waiting if place[1] < handled.get(place[0], 0)]:
                    took_s.append(now - waiting.pop(place))
                await asyncio.sleep(POLL_S)
            await feeding
        finally:
            feeding.cancel()
        return percentile_ms(took_s, 95)

    async def catch_up(self, topic: str) -> None:
        """Wait until the flow has handled everything that stands on its log. Raises StandsStill."""
        partition, offset = await self.append(topic, next(self.bodies[topic]))
        deadline = time.monotonic() + PATIENCE_S
        while (await self._find_next(topic)).get(partition, 0) <= offset:
            if time.monotonic() > deadline:
                raise StandsStill(f"{topic} does not come back\n{self.installation.last_words()}")
            await asyncio.sleep(10 * POLL_S)

    async def _feed(self, topic: str, waiting: dict[tuple[int, int], float]) -> None:
        began_at = time.perf_counter()
        for number in range(round(self.run_s * MESSAGES_A_SECOND)):
            await asyncio.sleep(max(0.0, began_at + number / MESSAGES_A_SECOND - time.perf_counter()))
            sent_at = time.perf_counter()
            waiting[await self.append(topic, next(self.bodies[topic]))] = sent_at

    async def _find_next(self, topic: str) -> dict[int, int]:
        """By partition, the offset that the flow handles next. It moves in the transaction that handles a message."""
        offsets, settings = table(StoredOffset).c, self.installation.settings
        mine = (offsets.group_name == settings.name_on_log(GROUPS[topic]), offsets.topic == settings.name_on_log(topic))
        async with self.database.reading() as connection:
            rows = await connection.execute(select(offsets.partition, offsets.next_offset).where(*mine))
            return {row.partition: row.next_offset for row in rows}

    @asynccontextmanager
    async def trouble(self, kind: str, topic: str) -> AsyncIterator[None]:
        """Bring a flow into trouble, out of it again, and wait until it has caught up."""
        part = PARTS[topic]
        process = self.installation.parts[part]
        if kind == STOPPED:
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, 25)
            try:
                yield
            finally:
                self.installation.start(part)
        elif kind == RESTED:
            yield
        else:
            task = asyncio.create_task(self._poison(topic) if kind == POISONED else _slow(process.pid))
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                process.send_signal(signal.SIGCONT)
        await self.catch_up(topic)

    async def _poison(self, topic: str) -> None:
        for body in itertools.cycle(POISON):
            await self.append(topic, body)
            await asyncio.sleep(1 / MESSAGES_A_SECOND)


class StandsStill(EngineError):
    """A flow handles nothing any more: there is no figure."""


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
        flows = Flows(installation, log_, database, await _furnish(installation, database), 1.5 * scale.door_s)
        installation.start(*PARTS.values())
        for topic in PARTS:
            await flows.catch_up(topic)
            await flows.time_run(topic)
        for topic, other in ((ATTENDANCES, INCIDENTS), (INCIDENTS, ATTENDANCES)):
            figures += await _measure_flow(flows, topic, other, say)
    finally:
        await installation.stop()
        await log_.close()
        await database.close()
    return figures


async def _measure_flow(flows: Flows, topic: str, other: str, say: Callable[[str], None]) -> list[Figure]:
    """Rounds of one run at rest and one in each trouble, begun with another one each time."""
    rounds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(PAIRS):
        first = number % len(KINDS)
        for kind in KINDS[first:] + KINDS[:first]:
            async with flows.trouble(kind, other):
                rounds[kind].append(await flows.time_run(topic))
    figures = []
    for kind in KINDS[1:]:
        before, after = median(rounds[RESTED]), median(rounds[kind])
        over_ms = measure_excess_ms(rounds[RESTED], rounds[kind])
        held = "holds" if over_ms <= 0 else f"DOES NOT HOLD by {over_ms:.0f} ms"
        say(f"  {topic} while {other} is {kind}: p95 {before:.0f} -> {after:.0f} ms; of the pairs, {held}")
        what, engines = f"{topic} while {other} is {kind}, p95", flows.installation.engines.name
        figures += [
            Figure(what=what, engines=engines, subject=subject, unit="ms", rounds=tuple(rounds[of]))
            for subject, of in ((Subject.PRODUCT, kind), (Subject.FLOOR, RESTED))
        ]
    return figures


def measure_excess_ms(rested: Sequence[float], troubled: Sequence[float]) -> float:
    """By how much the median pair is over what it may be: 1.25 times its run at rest, or 50 ms more."""
    pairs = zip(rested, troubled, strict=True)
    return median(after - max(TIMES_MAX * before, before + MORE_MS_MAX) for before, after in pairs)


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
