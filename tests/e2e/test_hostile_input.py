"""Hostile input through the real doors of a running system: nothing unhandled, nothing slow, nothing lost.

Everything that was acknowledged must be a position with an outcome, by the independent ledger. A message takes its
time alone: each connection has one in flight. One that took over a second is sent again by itself when all is quiet,
because the machine may have been the slow one; taking as long again it is a hang.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from adapters.hl7v2_batch import split_batch
from mock_nhs.department import Department
from tests import ledger
from tests.bundles import (
    encode,
    make_bars_message,
    make_encounter,
    make_message,
    make_mother,
    make_organisation,
    make_patient,
    make_transaction,
)
from tests.corpus import Seat, read_bytes, register, seat_sender
from tests.doors import Journal, MllpLine, open_fhir_door, post_bundle
from tests.e2e.scenes import part_is_ready, query, until_ready
from tests.mutants import break_fhir, break_frames, break_hl7v2
from tests.system import ALL_PARTS, System, open_system
from tests.unit import test_fhir_corpus as fhir
from tests.unit import test_hl7v2_corpus as hl7v2
from tests.world import hl7

pytestmark = pytest.mark.alone

HL7V2_MUTANTS, FHIR_MUTANTS = 10_000, 5_000
HL7V2_MUTANTS_SOAK, FHIR_MUTANTS_SOAK = 100_000, 50_000
FRAMES = 200
"""Of the HL7 v2 mutants, those with a broken frame."""
HL7V2_LINES, FHIR_LINES = 3, 2
HANG_S = 1.0
SUSPECTS_MAX_SHARE = 0.001
"""More slow answers than one in a thousand would not be the machine's."""
ORIGINAL_BYTES_MAX = 4_000
SEED = 21

SEAT = Seat("H01", "credential-of-H01")
DOCUMENTED_STATUSES = {"202", "400", "413", "422"}
"""Of a body that comes with a credential and as JSON."""
NEVER_REASONS = {"could_not_be_read", "could_not_be_decided", "ended_the_process", "sealed_under_an_unknown_key"}
NEVER_EVENTS = {
    *("crashed", "part_exited", "part_silent", "batch_retried", "batch_halved", "unclean_stop", "rejoined"),
    *("log_gap", "log_unavailable", "message_not_durable", "senders_unreadable", "job_failed"),
}
NEVER_HAPPENINGS = {"mllp_handler_failed", "mllp_unanswered", "mllp_refused"}


@dataclass
class Siege:
    """What was sent, and what came back."""

    journal: Journal
    suspects: list[bytes] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    not_ready: list[str] = field(default_factory=list)


# What is broken


def _hl7v2_originals(system: System) -> list[bytes]:
    """Our own messages, some of children on the lists, and those of the corpus."""
    department = Department(site=SEAT.code, credential=SEAT.credential, people=system.town.people, seed=SEED)
    listed = [person for person in system.town.people if system.town.authorities_listing(person.nhs_number)]
    originals = [department.register(person).body for person in listed]
    originals += [department.next_message().body for _ in range(60)]
    originals += [
        hl7(event, sender=SEAT.code, credential=SEAT.credential, mother="9990000026")
        for event in ("A01", "A02", "A03", "A04", "A05", "A08", "A11", "A28", "A31", "A40", "R01", "Z99")
    ]
    originals.append(b"".join((b"BHS|^~\\&|\r", originals[0], originals[1], b"BTS|2\r")))
    published = [seat_sender(read_bytes(row), SEAT) for row in hl7v2.ROWS]
    return originals + [message for message in published if len(message) <= ORIGINAL_BYTES_MAX]


def _fhir_originals() -> list[bytes]:
    request = make_patient(), make_encounter(), make_organisation()
    own = [
        make_message(),
        make_message(make_mother()),
        make_message(status="finished"),
        make_transaction(*request),
        make_bars_message("servicerequest-request", request, focus="Encounter/e1"),
    ]
    published = [read_bytes(row) for row in (*fhir.EXTRACTED, *fhir.IGNORED)]
    return [encode(bundle) for bundle in own] * 4 + [body for body in published if len(body) <= ORIGINAL_BYTES_MAX]


# Sending


async def _send_messages(system: System, siege: Siege, mutants: Iterator[bytes]) -> None:
    async with MllpLine(system.mllp_port) as line:
        for mutant in mutants:
            answer = await line.ask(mutant)
            siege.journal.note(split_batch(mutant), answer.codes, answer.seconds)
            if answer.seconds > HANG_S:
                siege.suspects.append(mutant)


async def _send_frames(system: System, siege: Siege, messages: Sequence[bytes]) -> None:
    """Broken frames may end a connection without an answer; what is acknowledged all the same is a message kept."""
    for number, wire in enumerate(break_frames(messages, SEED)):
        answer = await MllpLine(system.mllp_port).send_and_close(wire)
        kept = [code for code in answer.codes if code == "AA"]
        siege.journal.note([b"%d/%d" % (number, part) for part in range(len(kept))] or [b""], kept or ["none"], 0.0)
        assert answer.seconds < HANG_S + 9.0, "the connection was not closed"


async def _send_bundles(system: System, siege: Siege, mutants: Iterator[bytes]) -> None:
    async with open_fhir_door(system.http_port, SEAT.code, SEAT.credential) as door:
        for mutant in mutants:
            answer, _ = await post_bundle(door, mutant)
            siege.journal.note([mutant], answer.codes, answer.seconds)
            siege.statuses.update(answer.codes)
            if answer.seconds > HANG_S:
                siege.suspects.append(mutant)


async def _ask_suspects_again(system: System, siege: Siege) -> list[float]:
    async with (
        MllpLine(system.mllp_port) as line,
        open_fhir_door(system.http_port, SEAT.code, SEAT.credential) as door,
    ):
        return [
            (await line.ask(suspect)).seconds
            if suspect.startswith(b"MSH")
            else (await post_bundle(door, suspect))[0].seconds
            for suspect in siege.suspects
        ]


@asynccontextmanager
async def _watching(system: System, siege: Siege) -> AsyncIterator[None]:
    """Look twice a second whether every part says that it is ready."""

    async def watch() -> None:
        while True:
            siege.not_ready += [part for part in ALL_PARTS if not part_is_ready(system, part)]
            await asyncio.sleep(0.5)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


# Looking


async def _until_settled(sources: ledger.Sources, limit_s: float) -> ledger.Books:
    deadline = time.monotonic() + limit_s
    while True:
        books = await ledger.reckon(sources)
        if not books.problems or time.monotonic() > deadline:
            return books
        await asyncio.sleep(0.5)


def _unhandled(system: System) -> list[dict[str, object]]:
    """Events that no input may cause. Words for what cannot be read are lower case; the names of errors are not."""
    return [
        event
        for part in ALL_PARTS
        for event in system.log_events(part)
        if event["event"] in NEVER_EVENTS
        or event.get("happening") in NEVER_HAPPENINGS
        or (event["event"] == "library" and event.get("level") in ("ERROR", "CRITICAL"))
        or str(event.get("reason", "")) != str(event.get("reason", "")).lower()
    ]


def _shared(items: Iterable[bytes]) -> Iterator[bytes]:
    """For several senders, each of which takes the next."""
    yield from items


@pytest.mark.timeout(7_200)
async def test_broken_messages_are_answered_in_time_and_none_is_lost(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    soak = bool(request.config.getoption("--soak"))
    messages = HL7V2_MUTANTS_SOAK if soak else HL7V2_MUTANTS
    bundles = FHIR_MUTANTS_SOAK if soak else FHIR_MUTANTS
    async with open_system(tmp_path) as system:
        await register(system, [SEAT])
        system.start(*ALL_PARTS)
        await until_ready(system, *ALL_PARTS)
        siege = Siege(Journal(tmp_path / "hostile.jsonl"))
        sources = replace(system.sources(), department=siege.journal.path)
        hl7v2_mutants = _shared(break_hl7v2(_hl7v2_originals(system), messages - FRAMES, SEED))
        fhir_mutants = _shared(break_fhir(_fhir_originals(), bundles, SEED))
        framed = [hl7(sender=SEAT.code, credential=SEAT.credential) for _ in range(FRAMES)]
        began = time.perf_counter()
        async with _watching(system, siege), asyncio.timeout(3_600 if soak else 150):
            await asyncio.gather(
                *(_send_messages(system, siege, hl7v2_mutants) for _ in range(HL7V2_LINES)),
                *(_send_bundles(system, siege, fhir_mutants) for _ in range(FHIR_LINES)),
                _send_frames(system, siege, framed),
            )
            sent_s = time.perf_counter() - began
            books = await _until_settled(sources, limit_s=600 if soak else 60)
        settled_s = time.perf_counter() - began
        again_s = await _ask_suspects_again(system, siege)
        reasons = await query(
            system, "SELECT outcome, reason, count(*) FROM handled_positions GROUP BY outcome, reason ORDER BY 3 DESC"
        )
        figures = {
            "answers": dict(siege.journal.answers),
            "sent in s": round(sent_s, 1),
            "settled in s": round(settled_s, 1),
            "slowest answer in s": round(siege.journal.slowest_s, 3),
            "over a second": siege.journal.over_a_second,
            "asked again, in s": again_s,
        }
        print(figures, reasons, sep="\n")

        assert books.problems == []
        assert books.acknowledged_by_sender == siege.journal.kept > 0.3 * (messages + bundles)
        assert books.log_records == sum(books.handled.values())
        assert {reason for _, reason, _ in reasons} & NEVER_REASONS == set()
        assert _unhandled(system) == []
        assert siege.journal.unanswered == 0
        assert set(siege.statuses) <= DOCUMENTED_STATUSES
        assert sum(siege.statuses.values()) == bundles
        assert siege.journal.over_a_second <= SUSPECTS_MAX_SHARE * (messages + bundles)
        assert max(again_s, default=0.0) < HANG_S
        assert siege.not_ready == []
        assert {part: system.running(part) for part in ALL_PARTS} == dict.fromkeys(ALL_PARTS, 1)
