"""Oversized and nested input through the real doors: set aside or refused cheaply, while others are served.

What it costs is the processor time of the serving processes, before and after each kind of attack, less what they
spend in the same time when nothing comes. The clock of the operating system ticks in hundredths of a second, so each
kind is sent several times and shared out.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import ledger
from tests.bundles import encode, make_identifier, make_message, make_patient
from tests.corpus import Seat, register
from tests.doors import Answer, Journal, MllpLine, open_fhir_door, post_bundle
from tests.e2e.scenes import part_is_ready, query, until_ready
from tests.system import System, open_system
from tests.world import hl7

pytestmark = pytest.mark.alone

SERVING = ("intake", "attendances", "web")
TIMES = 5
CPU_S_MAX = 0.1
CPU_S_MAX_READ = 0.3
"""Of a message as large as is allowed, which is not refused but read to its end."""
MEMORY_BYTES_MAX = 512 * 1024 * 1024
OTHERS_WAIT_S_MAX = 1.0
IDLE_S = 3.0
CUT_OFF_S_MAX = 25.0
"""For a slow sender, whom the doors give two seconds in this test once it is its turn."""
SLOW_SENDERS = 80
"""At each door: more than the FHIR door holds bodies at one time."""
SEAT = Seat("H22", "credential-of-H22")
CALM = Seat("H23", "credential-of-H23")
"""A sender that does nothing wrong."""
MIB = 1024 * 1024


@dataclass
class Cost:
    """What one attack of a kind took of each process, in seconds of its processor time, and how it was answered."""

    answers: list[str]
    slowest_s: float
    cpu_s: Mapping[str, float]


@dataclass
class Others:
    """How the calm sender fared."""

    answers: list[str] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)


# What is sent: each is called with a number, so that no two are alike


def _with_field(number: int, text: str, *, segment: str = "PID", at: int = 3) -> bytes:
    """An arrival of which one field holds this text."""
    message = hl7(sender=SEAT.code, credential=SEAT.credential, visit=f"V{number}").decode()
    lines = message.split("\r")
    for place, line in enumerate(lines):
        if line.startswith(segment):
            fields = line.split("|")
            fields[at] = text
            lines[place] = "|".join(fields)
    return "\r".join(lines).encode()


@cache
def _bomb_itself() -> bytes:
    return gzip.compress(bytes(100 * MIB), 1).translate(None, b"\x0b\x1c")


def _bomb(number: int) -> bytes:
    """A hundred megabytes in half a megabyte."""
    return gzip.compress(b"%d" % number).translate(None, b"\x0b\x1c") + _bomb_itself()


def _with_segments(number: int, segment: bytes, count: int) -> bytes:
    return hl7(sender=SEAT.code, credential=SEAT.credential, visit=f"V{number}") + (segment + b"\r") * count


MLLP_ATTACKS: Mapping[str, tuple[Callable[[int], bytes], str]] = {
    "10,000 repetitions of PID-3": (
        lambda number: _with_field(number, "~".join(f"{each:05d}^^^X^MR" for each in range(10_000))),
        "AA",
    ),
    "10,000 repetitions of PID-5": (lambda number: _with_field(number, "~".join(["A^B^C"] * 10_000), at=5), "AA"),
    "10,000 segments": (lambda number: _with_segments(number, b"OBX|1|ST|X||Y", 10_000), "AA"),
    "10,000 PID": (lambda number: _with_segments(number, b"PID|1||X", 10_000), "AA"),
    "10,000 MSH": (lambda number: _with_segments(number, b"MSH|^~\\&|A|H22", 10_000), "AA"),
    "a field of 5 MB": (lambda number: _with_field(number, "X" * 5 * MIB), ""),
    "a field of 1.5 MB": (lambda number: _with_field(number, "X" * (3 * MIB // 2)), "AA"),
    "a field of 1 MB, allowed": (lambda number: _with_field(number, "X" * 1_000_000, segment="PV2"), "AA"),
    "1 MB of subcomponents": (lambda number: _with_field(number, "&" * 1_000_000), "AA"),
    "1 MB of escapes": (lambda number: _with_field(number, "\\X41\\" * 200_000, at=5), "AA"),
    "a gzip bomb as HL7 v2": (_bomb, "AR"),
    "2 MB of nothing": (lambda number: b"MSH|^~\\&|" + b"\x00" * (2 * MIB - 100) + b"%d" % number, "AR"),
}
"""By name: what is sent, and the answer; none when the connection is closed instead."""


def _bundle(number: int, **patient: Any) -> dict[str, Any]:
    bundle = make_message()
    bundle["id"] = f"b{number}"
    for entry in bundle["entry"]:
        if entry["resource"]["resourceType"] == "Patient":
            entry["resource"] = make_patient(**patient)
    return bundle


def _named(number: int, name: str) -> dict[str, Any]:
    return _bundle(number, name=[{"family": f"{number}{name}"}])


def _nested(number: int, depth: int) -> bytes:
    body = encode(_bundle(number))
    return body[:-1] + b', "extension": ' + b'[{"extension": ' * depth + b"[]" + b"}]" * depth + b"}"


def _entity_bomb(number: int) -> bytes:
    entities = "".join(f'<!ENTITY e{each} "{f"&e{each - 1};" * 10}">' for each in range(1, 12))
    return (
        f'<!DOCTYPE b [<!ENTITY e0 "{number}">{entities}]><Bundle xmlns="http://hl7.org/fhir">&e11;</Bundle>'.encode()
    )


def _identifiers(count: int) -> list[dict[str, Any]]:
    return [make_identifier(f"{each:010d}", system="urn:oid:1.2") for each in range(count)]


XML, JSON = "application/fhir+xml", "application/fhir+json"
FHIR_ATTACKS: Mapping[str, tuple[Callable[[int], bytes], Mapping[str, str], str]] = {
    "JSON 100,000 deep": (
        lambda number: b'{"n": %d, "a": ' % number + b"[" * 100_000 + b"]" * 100_000 + b"}",
        {},
        "422",
    ),
    "JSON 100,000 deep, never closed": (lambda number: b'{"n": %d, "a": ' % number + b"[" * 100_000, {}, "422"),
    "extensions 5,000 deep": (lambda number: _nested(number, 5_000), {}, "400"),
    "10,000 identifiers": (lambda number: encode(_bundle(number, identifier=_identifiers(10_000))), {}, "422"),
    "10,000 entries": (
        lambda number: encode(_bundle(number) | {"entry": [{"resource": {"resourceType": "Basic"}}] * 10_000}),
        {},
        "422",
    ),
    "a string of 5 MB": (lambda number: encode(_named(number, "x" * 5 * MIB)), {}, "413"),
    "a string of 3.9 MB, allowed": (lambda number: encode(_named(number, "x" * 3_900_000)), {}, "202"),
    "3.9 MB of escapes": (lambda number: encode(_named(number, "\u00e9" * 650_000)), {}, "202"),
    "a number of a million digits": (
        lambda number: encode(_bundle(number)).replace(b'"b%d"' % number, b"9" * 1_000_000 + b"%d" % number),
        {},
        "202",
    ),
    "20,000 duplicate keys": (lambda number: b'{"n": %d' % number + b', "a": 1' * 20_000 + b"}", {}, "400"),
    "an entity bomb as XML": (_entity_bomb, {"Content-Type": XML}, "415"),
    "an entity bomb as JSON": (_entity_bomb, {}, "400"),
    "a gzip bomb, declared as such": (_bomb, {"Content-Encoding": "gzip"}, "415"),
    "a gzip bomb as JSON": (_bomb, {}, "400"),
}
"""By name: what is sent, with which headers, and the status."""


# Measuring


def _processes(system: System) -> dict[str, psutil.Process]:
    return {part: psutil.Process(system.parts[part][0].pid) for part in SERVING}


def _cpu_s(system: System) -> dict[str, float]:
    times = {part: process.cpu_times() for part, process in _processes(system).items()}
    return {part: spent.user + spent.system for part, spent in times.items()}


def _peak_bytes(system: System) -> dict[str, int]:
    """The most memory each process ever held, as the kernel noted it."""
    peaks = {}
    for part, process in _processes(system).items():
        status = Path(f"/proc/{process.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        peaks[part] = int(line.split()[1]) * 1024
    return peaks


async def _measure(
    system: System, sources: ledger.Sources, idle: Mapping[str, float], attack: Callable[[int], Any]
) -> Cost:
    """Attack several times, wait until all is handled, and share out what it took."""
    before, began = _cpu_s(system), time.monotonic()
    answers: list[Answer] = [await attack(number) for number in range(TIMES)]
    await _until_handled(sources)
    took_s = time.monotonic() - began
    spent = {part: after - before[part] - idle[part] * took_s for part, after in _cpu_s(system).items()}
    return Cost(
        answers=["".join(dict.fromkeys(answer.codes)) for answer in answers],
        slowest_s=max(answer.seconds for answer in answers),
        cpu_s={part: round(max(0.0, seconds) / TIMES, 4) for part, seconds in spent.items()},
    )


async def _until_handled(sources: ledger.Sources) -> ledger.Books:
    async with asyncio.timeout(30):
        while True:
            books = await ledger.reckon(sources)
            if not books.problems:
                return books
            await asyncio.sleep(0.05)


async def _measure_idle(system: System) -> dict[str, float]:
    """Processor time per second when nothing comes."""
    before = _cpu_s(system)
    await asyncio.sleep(IDLE_S)
    return {part: (after - before[part]) / IDLE_S for part, after in _cpu_s(system).items()}


@asynccontextmanager
async def _calm_sender(system: System, journal: Journal, others: Others) -> AsyncIterator[None]:
    """Somebody else sends an attendance at each door ten times a second."""

    async def send() -> None:
        async with (
            MllpLine(system.mllp_port) as line,
            open_fhir_door(system.http_port, CALM.code, CALM.credential) as door,
        ):
            number = 0
            while True:
                number += 1
                message = hl7(sender=CALM.code, credential=CALM.credential, visit=f"V{number}")
                bundle = encode(make_message() | {"id": f"calm-{number}"})
                told = await line.ask(message), (await post_bundle(door, bundle))[0]
                for body, answer in zip((message, bundle), told, strict=True):
                    journal.note([body], answer.codes, answer.seconds)
                    others.answers += answer.codes or ("none",)
                    others.waits_s.append(answer.seconds)
                await asyncio.sleep(0.1)

    task = asyncio.create_task(send())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


@asynccontextmanager
async def _started(directory: Path, *, patience_s: str = "30") -> AsyncIterator[tuple[System, Journal, ledger.Sources]]:
    """The serving parts of an installation; ``patience_s`` is how long a message may take to arrive."""
    async with open_system(
        directory, CPIS_MLLP_FRAME_TIMEOUT_S=patience_s, CPIS_FHIR_BODY_TIMEOUT_S=patience_s
    ) as system:
        await register(system, [SEAT, CALM])
        system.start(*SERVING)
        await until_ready(system, *SERVING)
        journal = Journal(directory / "attackers.jsonl")
        yield system, journal, replace(system.sources(), department=journal.path)


# The tests


async def test_each_kind_of_oversized_input_costs_little_and_is_set_aside(tmp_path: Path) -> None:
    async with _started(tmp_path) as (system, journal, sources):
        idle = await _measure_idle(system)
        costs: dict[str, Cost] = {}
        async with MllpLine(system.mllp_port) as line:
            for name, (write, _) in MLLP_ATTACKS.items():

                async def send(number: int, write: Callable[[int], bytes] = write) -> Answer:
                    message = write(number)
                    answer = await line.ask(message)
                    journal.note([message], answer.codes, answer.seconds)
                    return answer

                costs[name] = await _measure(system, sources, idle, send)
        async with open_fhir_door(system.http_port, SEAT.code, SEAT.credential) as door:
            for name, (write, headers, _) in FHIR_ATTACKS.items():

                async def post(
                    number: int, write: Callable[[int], bytes] = write, headers: Mapping[str, str] = headers
                ) -> Answer:
                    body = write(number)
                    answer, _ = await post_bundle(door, body, **headers)
                    journal.note([body], answer.codes, answer.seconds)
                    return answer

                costs[name] = await _measure(system, sources, idle, post)
        reasons = await query(system, "SELECT reason, count(*) FROM handled_positions GROUP BY reason")
        peaks = _peak_bytes(system)
        for name, cost in costs.items():
            print(f"{name:35} {cost.answers[0]:4} {cost.slowest_s:.3f} s {cost.cpu_s}")
        print(idle, reasons, {part: peak // MIB for part, peak in peaks.items()})

        expected = {name: code for name, (_, code) in MLLP_ATTACKS.items()}
        expected |= {name: status for name, (_, _, status) in FHIR_ATTACKS.items()}
        assert {name: set(cost.answers) for name, cost in costs.items()} == {
            name: {code} for name, code in expected.items()
        }
        dear = {
            name: cost.cpu_s
            for name, cost in costs.items()
            if max(cost.cpu_s.values()) > (CPU_S_MAX_READ if expected[name] == "202" else CPU_S_MAX)
        }
        assert dear == {}
        assert max(peaks.values()) <= MEMORY_BYTES_MAX
        assert {reason for reason, _ in reasons} & {"could_not_be_read", "could_not_be_decided"} == set()


async def test_others_are_served_while_everything_comes_at_once_and_slowly(tmp_path: Path) -> None:
    async with _started(tmp_path, patience_s="2") as (system, journal, sources):
        others = Others()
        async with _calm_sender(system, journal, others):
            drips = [_drip_message(system) for _ in range(SLOW_SENDERS)]
            drips += [_drip_bundle(system) for _ in range(SLOW_SENDERS)]
            ends = asyncio.gather(*drips)
            await asyncio.gather(*(_storm(system, journal, number) for number in range(3)))
            ends_s = await ends
        books = await _until_handled(sources)
        peaks = _peak_bytes(system)
        print(
            f"{len(others.waits_s)} of others, slowest {max(others.waits_s):.3f} s, "
            f"slow senders were cut off after {min(ends_s):.1f} to {max(ends_s):.1f} s, "
            f"peaks in MiB { {part: peak // MIB for part, peak in peaks.items()} }"
        )
        assert set(others.answers) == {"AA", "202"}
        assert len(others.answers) >= 20
        assert max(others.waits_s) <= OTHERS_WAIT_S_MAX
        assert max(ends_s) <= CUT_OFF_S_MAX
        assert max(peaks.values()) <= MEMORY_BYTES_MAX
        assert books.acknowledged_by_sender == journal.kept
        assert all(part_is_ready(system, part) for part in SERVING)


async def _storm(system: System, journal: Journal, number: int) -> None:
    """Every attack once, one after the other."""
    async with (
        MllpLine(system.mllp_port) as line,
        open_fhir_door(system.http_port, SEAT.code, SEAT.credential) as door,
    ):
        for write, _ in MLLP_ATTACKS.values():
            message = await asyncio.to_thread(write, 100 + number)
            answer = await line.ask(message)
            journal.note([message], answer.codes, answer.seconds)
        for write, headers, _ in FHIR_ATTACKS.values():
            body = await asyncio.to_thread(write, 100 + number)
            answer, _ = await post_bundle(door, body, **headers)
            journal.note([body], answer.codes, answer.seconds)


async def _drip_message(system: System) -> float:
    """A frame that comes byte by byte; after how many seconds the door had enough of it."""
    return await _drip(system.mllp_port, b"\x0b", hl7(sender=SEAT.code, credential=SEAT.credential))


async def _drip_bundle(system: System) -> float:
    """A body that comes byte by byte."""
    credential = f"{SEAT.code}:{SEAT.credential}".encode()
    head = (
        b"POST /FHIR/R4/$process-message HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/fhir+json\r\n"
        b"Authorization: Basic " + base64.b64encode(credential) + b"\r\nContent-Length: 5000\r\n\r\n"
    )
    return await _drip(system.http_port, head, b"{" + b" " * 4_000)


async def _drip(port: int, beginning: bytes, rest: Sequence[int]) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.monotonic()
    writer.write(beginning)
    ended = asyncio.create_task(reader.read())
    for byte in rest:
        writer.write(bytes((byte,)))
        done, _ = await asyncio.wait({ended}, timeout=0.1)
        if done or time.monotonic() - began > CUT_OFF_S_MAX:
            break
    writer.transport.abort()
    await asyncio.gather(ended, return_exceptions=True)
    return time.monotonic() - began
