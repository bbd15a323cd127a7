"""Asking for one child: the FHIR reads at a steady rate, beside a bare indexed select on the same database.

The web part runs as it is served. Questions leave at their own moments whether or not earlier ones are answered, so a
slow answer delays no question and hides in no average. A hit that notifies, a silent hit and a miss take turns with the
select; every hit that notifies is the first of its author, so each writes an alert.
"""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from itertools import count
from statistics import median

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks.door import percentile_ms, until_listening
from benchmarks.figures import Figure, Subject
from benchmarks.installation import Installation, Scale, close_first_look_backs
from broker import bootstrap
from broker.keyring import Keyring
from broker.storage.child_lists import index_nhs_number
from broker.storage.tables import ListEntry, table

QUESTIONS_A_SECOND = 200
CONNECTIONS = 32
WARM_UP_S = 2.0
ANSWER_S = 30.0
COMPARED = 100
"""Questions of each kind in one round."""
_HEAD_END = b"\r\n\r\n"


class Kind(StrEnum):
    """What is asked."""

    HIT = "a hit that notifies"
    SILENT = "a silent hit"
    MISS = "a miss"


class Line:
    """One connection that is kept open."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> None:
        """Send one question and read its whole answer. Raises AssertionError when it is not 200."""
        if self._streams is None or self._streams[0].at_eof():  # the server closes a line that rests
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(_HEAD_END)
        assert head.startswith(b"HTTP/1.1 200"), head[:40]
        length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))

    def close(self) -> None:
        """Close it."""
        if self._streams is not None:
            self._streams[1].close()


class Questions:
    """Requests of this town's sites about its people."""

    def __init__(self, installation: Installation) -> None:
        town = installation.town
        self._sites = [(site.code, site.credential) for site in town.town.sites]
        self._listed = [person.nhs_number for person in town.listed_children]
        known = set(self._listed)
        self._others = [person.nhs_number for person in town.attending if person.nhs_number not in known]
        self._numbers = count(1)
        self._random = random.Random(1)

    def listed(self) -> str:
        """Somebody who is on a list."""
        return self._random.choice(self._listed)

    def make(self, kind: Kind) -> bytes:
        """One request."""
        code, credential = self._random.choice(self._sites)
        number = self._random.choice(self._others) if kind is Kind.MISS else self.listed()
        basic = base64.b64encode(f"{code}:{credential}".encode()).decode()
        silent = "IsUnscheduledAccessEvent: false\r\n" if kind is Kind.SILENT else ""
        head = (
            f"GET /FHIR/R4/PatientFlag?patient={number} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Basic {basic}\r\n"
        )
        trace = next(self._numbers)
        return f"{head}TraceID: t{trace}\r\nNHSD-Session-URID: p{trace}\r\n{silent}\r\n".encode()


async def measure_asks(installation: Installation, scale: Scale, say: Callable[[str], None]) -> list[Figure]:
    """p50 and p99 of an answer at QUESTIONS_A_SECOND, of each kind, beside the select."""
    settings = installation.settings
    await close_first_look_backs(settings)
    database = bootstrap.open_database(settings)
    engine = create_async_engine(database.url, pool_size=CONNECTIONS, hide_parameters=True)
    lines = [Line(settings.http_port) for _ in range(CONNECTIONS)]
    try:
        installation.start("web")
        await until_listening(settings.http_port)
        return await _take_turns(installation, engine, lines, scale, say)
    except (TimeoutError, AssertionError, OSError, asyncio.IncompleteReadError) as error:
        raise AssertionError(f"{type(error).__name__}: {error}\n{installation.last_words()}") from error
    finally:
        for line in lines:
            line.close()
        await engine.dispose()
        await database.close()
        await installation.stop()


async def _take_turns(
    installation: Installation, engine: AsyncEngine, lines: Sequence[Line], scale: Scale, say: Callable[[str], None]
) -> list[Figure]:
    questions, keyring = Questions(installation), bootstrap.load_keyring(installation.settings)
    free: asyncio.Queue[Line] = asyncio.Queue()
    for line in lines:
        free.put_nowait(line)

    async def ask(kind: Kind) -> None:
        line = await free.get()
        try:
            await line.ask(questions.make(kind))
        finally:
            free.put_nowait(line)

    found: dict[tuple[str, Kind, Subject], list[float]] = {}
    for number in range(scale.rounds + 1):
        for kind in Kind:
            for subject in (Subject.PRODUCT, Subject.FLOOR):
                seconds = scale.door_s * 2 if number else WARM_UP_S
                work = _asking(ask, kind) if subject is Subject.PRODUCT else _selecting(engine, keyring, questions)
                times_s = await send_at_rate(work, seconds)
                if number:
                    p50_ms, p99_ms = percentile_ms(times_s, 50), percentile_ms(times_s, 99)
                    found.setdefault(("p50", kind, subject), []).append(p50_ms)
                    found.setdefault(("p99", kind, subject), []).append(p99_ms)
                    say(f"  round {number}  {kind:<20} {subject:<8} p50 {p50_ms:6.1f} ms  p99 {p99_ms:6.1f} ms")
    asked = [
        Figure(
            what=f"asked at {QUESTIONS_A_SECOND}/s, {kind}, {percent}",
            engines=installation.engines.name,
            subject=subject,
            unit="ms",
            rounds=tuple(rounds),
        )
        for (percent, kind, subject), rounds in found.items()
    ]
    return asked + await compare_kinds(ask, installation.engines.name, scale)


async def compare_kinds(ask: Callable[[Kind], Awaitable[None]], engines: str, scale: Scale) -> list[Figure]:
    """How much longer a hit takes than a miss, asked in turns and one at a time: what a clock would tell of a list."""
    differences: dict[Kind, list[float]] = {Kind.SILENT: [], Kind.HIT: []}
    for _ in range(scale.rounds):
        times_s: dict[Kind, list[float]] = {kind: [] for kind in Kind}
        for _ in range(COMPARED):
            for kind in Kind:
                began_at = time.perf_counter()
                await ask(kind)
                times_s[kind].append(time.perf_counter() - began_at)
        for kind, found in differences.items():
            found.append((median(times_s[kind]) - median(times_s[Kind.MISS])) * 1000)
    return [
        Figure(
            what=f"{kind} beside a miss, difference of the p50",
            engines=engines,
            subject=Subject.PRODUCT,
            unit="ms",
            rounds=tuple(rounds),
        )
        for kind, rounds in differences.items()
    ]


def _asking(ask: Callable[[Kind], Awaitable[None]], kind: Kind) -> Callable[[], Awaitable[None]]:
    return lambda: ask(kind)


def _selecting(engine: AsyncEngine, keyring: Keyring, questions: Questions) -> Callable[[], Awaitable[None]]:
    entries = table(ListEntry)

    async def read() -> None:
        index = index_nhs_number(keyring, questions.listed())
        async with engine.connect() as connection:
            assert (await connection.execute(select(entries).where(entries.c.nhs_index == index))).first() is not None

    return read


async def send_at_rate(work: Callable[[], Awaitable[None]], seconds: float) -> list[float]:
    """Begin ``work`` at the rate for so long; the time of each from the moment it was due, in seconds."""
    times_s: list[float] = []

    async def measure(due_at: float) -> None:
        async with asyncio.timeout(ANSWER_S):
            await work()
        times_s.append(time.perf_counter() - due_at)

    began_at = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(seconds * QUESTIONS_A_SECOND)):
            due_at = began_at + number / QUESTIONS_A_SECOND
            await asyncio.sleep(max(0.0, due_at - time.perf_counter()))
            tasks.create_task(measure(due_at))
    return times_s
