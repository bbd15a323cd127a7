"""MLLP accept-to-ACK: the real intake as its own process beside a bare asyncio server on the same log.

Both servers run all the time; the senders of this process talk to one of them at a time, in turns. Every connection
sends one message, awaits its ACK, and sends the next.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import quantiles

from adapters.mllp import MllpOptions, MllpServer
from benchmarks.figures import Figure, Subject
from benchmarks.installation import Installation, Scale
from broker import bootstrap, topics
from broker.clock import SystemClock
from broker.intake import Intake
from broker.senders import SNAPSHOT_NAME, Senders
from broker.settings import Settings
from tests.engines import free_port

CONNECTIONS = (1, 8, 16)
ROUNDS = 3
WARM_UP_S = 0.5
START_S = 120.0
ANSWER_S = 30.0


async def measure_door(installation: Installation, scale: Scale, say: Callable[[str], None]) -> list[Figure]:
    """Messages a second and the time to the ACK of both servers, at each number of connections."""
    department = installation.town.department(installation.town.attending, seed=9)
    messages = [department.next_message().body for _ in range(2_000)]
    ports = {Subject.PRODUCT: installation.mllp_port, Subject.FLOOR: free_port()}
    installation.start("intake")
    installation.run("bare-door", "benchmarks.peers", "door", str(ports[Subject.FLOOR]), CPIS_KAFKA_PREFIX="bare.")
    figures: list[Figure] = []
    try:
        for port in ports.values():
            await until_listening(port)
            await send_for(WARM_UP_S, port, messages, connections=8)
        for connections in CONNECTIONS:
            say(f"  {_count(connections)}")
            laps = await _take_turns(ports, messages, connections, scale, say)
            figures += _figures(installation.engines.name, connections, laps)
    except TimeoutError as error:
        raise AssertionError(f"a door did not answer\n{installation.last_words()}") from error
    finally:
        await installation.stop()
    return figures


@dataclass(frozen=True, kw_only=True)
class Lap:
    """One round at one door."""

    per_second: float
    p50_ms: float
    p99_ms: float


async def _take_turns(
    ports: Mapping[Subject, int], messages: Sequence[bytes], connections: int, scale: Scale, say: Callable[[str], None]
) -> dict[Subject, list[Lap]]:
    laps: dict[Subject, list[Lap]] = {subject: [] for subject in ports}
    for number in range(ROUNDS):
        for subject in sorted(ports, reverse=bool(number % 2)):
            gc.collect()
            began_at = time.perf_counter()
            times_s = await send_for(scale.door_s, ports[subject], messages, connections=connections)
            lap = Lap(
                per_second=len(times_s) / (time.perf_counter() - began_at),
                p50_ms=percentile_ms(times_s, 50),
                p99_ms=percentile_ms(times_s, 99),
            )
            laps[subject].append(lap)
            say(f"    {subject:<8} {lap.per_second:>7,.0f}/s  p50 {lap.p50_ms:.2f} ms  p99 {lap.p99_ms:.2f} ms")
    return laps


def _figures(engines: str, connections: int, laps: Mapping[Subject, Sequence[Lap]]) -> list[Figure]:
    return [
        Figure(
            what=f"{what}, {_count(connections)}",
            engines=engines,
            subject=subject,
            unit=unit,
            rounds=tuple(getattr(lap, quantity) for lap in own),
        )
        for what, unit, quantity in (
            ("accepted at the door", "messages/s", "per_second"),
            ("accept to ACK, p50", "ms", "p50_ms"),
            ("accept to ACK, p99", "ms", "p99_ms"),
        )
        for subject, own in laps.items()
    ]


async def send_for(seconds: float, port: int, messages: Sequence[bytes], *, connections: int) -> list[float]:
    """Send for so long over so many connections; the time from the first byte out to the ACK in hand, in seconds."""
    blocks = [b"\x0b%b\x1c\r" % message for message in messages]
    ends_at = time.perf_counter() + seconds
    times_s: list[float] = []
    async with asyncio.TaskGroup() as senders:
        for number in range(connections):
            senders.create_task(_send(port, blocks[number::connections], ends_at, times_s))
    return times_s


async def _send(port: int, blocks: Sequence[bytes], ends_at: float, times_s: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    number = 0
    while (began_at := time.perf_counter()) < ends_at:
        writer.write(blocks[number % len(blocks)])
        async with asyncio.timeout(ANSWER_S):
            answer = await reader.readuntil(b"\x1c\r")
        times_s.append(time.perf_counter() - began_at)
        assert b"\rMSA|AA|" in answer, "a message was refused"
        number += 1
    writer.close()
    await writer.wait_closed()


def send_from_a_process(seconds: float, port: int, messages: Sequence[bytes], connections: int) -> int:
    """The same in a process that has nothing else to do; returns how many were sent."""
    return len(asyncio.run(send_for(seconds, port, messages, connections=connections)))


@asynccontextmanager
async def open_intake(settings: Settings) -> AsyncIterator[int]:
    """The real intake in this process, put together as ``serve --only intake`` does; gives its port."""
    await bootstrap.prepare_topics(settings)
    keyring, log_ = bootstrap.load_keyring(settings), bootstrap.open_log(settings)
    senders = Senders(settings.data_dir / SNAPSHOT_NAME, keyring)
    intake = Intake(log_, settings.name_on_log(topics.ATTENDANCES), keyring, senders, SystemClock())
    server = MllpServer(intake.accept_hl7v2, MllpOptions(), on_event=lambda happening, facts: None)
    await server.start("127.0.0.1", 0)
    try:
        yield server.port
    finally:
        await server.close(drain_timeout_s=5)
        await log_.close()


async def until_listening(port: int) -> None:
    """Wait until a server takes connections."""
    async with asyncio.timeout(START_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
            else:
                writer.close()
                return


def percentile_ms(times_s: Sequence[float], percent: int) -> float:
    """A percentile in milliseconds."""
    return quantiles(times_s, n=100, method="inclusive")[percent - 1] * 1000


def _count(connections: int) -> str:
    return "1 connection" if connections == 1 else f"{connections} connections"
