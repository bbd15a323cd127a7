"""A recorded day of a department ends in the same state in whichever order its messages come (threat row 7).

A thousand departments record the same day, each of its own people, in one database. The first hears it in order, each
other in a shuffle of its own with five messages twice, in batches of one to thirty. To share transactions, the batches
of a hundred departments are handled as one: the order within each stays, that between them is drawn.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from itertools import islice
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import select

from broker.directory_upload import DirectoryUpload
from broker.storage import visits
from broker.storage.tables import Visit, table
from schemas.record import PositionOutcome as Outcome
from tests.integration.test_near_twins import nhs_numbers
from tests.integration.test_visits import ALMA, UNKNOWN, after, merge, move, unmerge, with_disposition
from tests.world import CASEY, SITES, World, hl7, open_world

DAYS, SENDERS_AT_ONCE, VISITS = 1_000, 100, 7
ALONE = re.compile(rb"ADT\^A(37|40|45|50)")
"""Messages that join patients or part them are handled alone, also within a batch."""


def a_day() -> list[bytes]:
    """A recorded day of one department: registrations, updates, corrections, merges, partings, cancellations."""
    alma: dict[str, object] = {"nhs_number": "9990000026", "given": "ALMA", "birth_date": datetime(2014, 5, 6)}  # noqa: DTZ001
    return [
        # Casey, registered three times, updated, admitted.
        *(hl7(at=after(number), control_id=f"D{number}") for number in range(3)),
        *(hl7("A08", at=after(10 + number), complaint=f"fall {number}") for number in range(4)),
        hl7("A31", visit="", at=after(20)),
        hl7("A01", at=after(30)),
        # Somebody unknown who turns out to be Alma, in two steps, and leaves before treatment.
        hl7(patient="U1", visit="V2", at=after(1), **UNKNOWN),  # type: ignore[arg-type]
        merge("U2", "U1", at=after(15), **UNKNOWN),
        merge("K2", "U2", at=after(25), **alma),
        hl7("A08", patient="K2", visit="V2", at=after(35), **alma),  # type: ignore[arg-type]
        with_disposition(hl7("A03", patient="K2", visit="V2", at=after(45), **alma), "12"),  # type: ignore[arg-type]
        # Casey's number by mistake, corrected to Alma's; the visit is cancelled and comes back.
        hl7(patient="K3", visit="V3", at=after(2)),
        hl7("A08", patient="K3", visit="V3", at=after(12), **alma),  # type: ignore[arg-type]
        hl7("A11", patient="K3", visit="V3", at=after(22), **alma),  # type: ignore[arg-type]
        hl7("A04", patient="K3", visit="V3", at=after(32), **alma),  # type: ignore[arg-type]
        # Merged into Casey in error.
        hl7(patient="U4", visit="V4", at=after(3), nhs_number="9990000034", given="SAM"),
        merge("K12345", "U4", at=after(13)),
        unmerge("K12345", "U4", at=after(23)),
        # Discharged, and not after all.
        hl7(patient="K5", visit="V5", nhs_number="9990000042", given="JO", at=after(4)),
        hl7("A03", patient="K5", visit="V5", nhs_number="9990000042", given="JO", at=after(14)),
        hl7("A13", patient="K5", visit="V5", nhs_number="9990000042", given="JO", at=after(24)),
        # Renumbered.
        hl7(patient="K6", visit="V6", nhs_number="9990000050", given="LOU", at=after(5)),
        move("A50", "V6", patient="K6", former="K6", visit="V66", nhs_number="9990000050", given="LOU", at=after(15)),
        hl7("A08", patient="K6", visit="V66", nhs_number="9990000050", given="LOU", complaint="cut", at=after(25)),
        # Registered under Casey's record, and moved to Alma's.
        hl7(visit="V7", at=after(6)),
        move("A45", "V7", patient="K7", visit="V7", at=after(16), **alma),  # type: ignore[arg-type]
        hl7("A03", patient="K7", visit="V7", at=after(26), **alma),  # type: ignore[arg-type]
    ]


class Sender:
    """A department of its own that records the day: the same messages of its own people, two of whom are listed."""

    def __init__(self, place: int, numbers: Iterator[str]) -> None:
        self.code = f"RZ1{place:04}"
        family = "".join("BDGKLMNRST"[place // 10**digit % 10] + "AEIOU"[digit] for digit in range(4))
        casey, alma = (date(year, 1, 1) + timedelta(days=place) for year in (2011, 2016))
        self._own = {
            "RZ1": self.code,
            "TESTER": family,
            "Tester": family.title(),
            **{f"{date(2015, 3, 2):{form}}": f"{casey:{form}}" for form in ("%Y%m%d", "%Y-%m-%d")},
            **{f"{date(2014, 5, 6):{form}}": f"{alma:{form}}" for form in ("%Y%m%d", "%Y-%m-%d")},
            **{
                number: next(numbers)
                for number in ("9990000018", "9990000026", "9990000034", "9990000042", "9990000050")
            },
        }
        self._canonical = {own: said for said, own in self._own.items()}
        self._canonical |= {repr(casey): repr(date(2015, 3, 2)), repr(alma): repr(date(2014, 5, 6))}

    def reword(self, text: str) -> str:
        """A message of the day, or a row of a list, as it is of this department's people."""
        for said, own in self._own.items():
            text = text.replace(said, own)
        return text

    def recognise(self, facts: str) -> str:
        """What is known of a visit in words that are the same for every department."""
        for own, said in self._canonical.items():
            facts = facts.replace(own, said)
        return facts


def reword(sender: Sender, messages: Sequence[bytes]) -> list[bytes]:
    return [sender.reword(message.decode()).encode() for message in messages]


async def play(world: World, days: Mapping[Sender, Sequence[bytes]], sizes: random.Random) -> None:
    """Receive the days of many senders at once, each in its order and in batches of random sizes."""
    waiting = {sender: reword(sender, messages) for sender, messages in days.items()}
    while waiting:
        runs: list[list[bytes]] = []
        for sender in sizes.sample(list(waiting), len(waiting)):
            size = sizes.choice([1, 2, 5, 30])
            taken, waiting[sender] = waiting[sender][:size], waiting[sender][size:]
            for place, run in enumerate(split_at_merges(taken)):
                runs += [[] for _ in range(place + 1 - len(runs))]
                runs[place] += run
        waiting = {sender: rest for sender, rest in waiting.items() if rest}
        await world.receive(*(message for run in runs for message in run))


def split_at_merges(messages: Sequence[bytes]) -> list[list[bytes]]:
    """In their order: at even places what many departments' messages can share, at odd places what is handled alone."""
    runs: list[list[bytes]] = [[]]
    for message in messages:
        runs += [[message], []] if ALONE.search(message) else []
        if not ALONE.search(message):
            runs[-1].append(message)
    return runs


async def final_states(world: World, senders: Sequence[Sender]) -> dict[str, list[object]]:
    """Everything that stands at each: of each visit what is known, and of whom is alerted and how they are answered."""
    columns, by_code = table(Visit).c, {sender.code: sender for sender in senders}
    known: dict[str, list[object]] = {code: [] for code in by_code}
    async with world.database.writing() as connection:
        ids = list((await connection.execute(select(columns.id).where(columns.joined_into.is_(None)))).scalars())
        for start in range(0, len(ids), 500):
            threads = await visits.load_known_threads(connection, world.keyring, ids[start : start + 500])
            for thread in threads.values():
                if thread.messages and thread.is_here:
                    facts = repr(msgspec.structs.replace(thread.facts(), control_id=""))
                    told = (sorted(thread.alerted), thread.replied)
                    known[thread.sender].append((by_code[thread.sender].recognise(facts), thread.state(), *told))
    return {code: sorted(each, key=repr) for code, each in known.items()}


async def shuffle(directory: Path, count: int, seed: int) -> None:
    """As many departments, and one whose day is in order. Replayed from the start nothing is new."""
    numbers = islice(nhs_numbers(), 100, None)  # none of the day's own
    messages, chance = a_day(), random.Random(seed)
    senders = [Sender(place, numbers) for place in range(count + 1)]
    async with open_world(f"sqlite+aiosqlite:///{directory / 'broker.sqlite'}", directory, inline=True) as world:
        await furnish_departments(world, senders)
        await world.receive(*reword(senders[0], messages))
        for start in range(1, count + 1, SENDERS_AT_ONCE):
            days = {}
            for sender in senders[start : start + SENDERS_AT_ONCE]:
                days[sender] = [*messages, *chance.sample(messages, 5)]
                chance.shuffle(days[sender])
            await play(world, days, chance)
        sent = await world.delivery_count()
        for sender in (senders[0], *days):
            assert set(await world.receive(*reword(sender, messages))) == {Outcome.IGNORED}
        assert await world.delivery_count() == sent
        states = await final_states(world, senders)
        expected = states[senders[0].code]
        assert len(expected) == VISITS
        assert [sender.code for sender in senders if states[sender.code] != expected] == []


async def furnish_departments(world: World, senders: Sequence[Sender]) -> None:
    upload = DirectoryUpload(
        world.database, world.keyring, world.clock, demo_passwords=True, actor="test", dry_run=False
    )
    header, row, _ = SITES.splitlines()
    file = "\n".join([header, *(sender.reword(row) for sender in senders)])
    assert not (await upload.load_sites(file.encode(), world.directory / "senders.json")).refused
    for authority, listed in (("706", CASEY), ("707", ALMA)):
        rows = [sender.reword(listed).replace("L", f"L{place}-", 1) for place, sender in enumerate(senders)]
        assert (await world.list_children(*rows, authority=authority)).loaded == len(senders)


@pytest.mark.timeout(600)
async def test_a_thousand_shuffles_of_a_day_end_in_the_same_state(tmp_path: Path) -> None:
    await shuffle(tmp_path, DAYS, 77)
