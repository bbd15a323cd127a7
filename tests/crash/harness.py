"""One running installation whose parts are made to die, and the verdict on it afterwards.

The verdict is the independent ledger's, and that of an oracle which knows the town: every visit during which the
department wrote a listed person's own NHS number is one alert to each authority that lists the person, nothing else is
an alert, and nobody has to look at a message that can be understood.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import text

from broker import bootstrap
from broker.clock import SystemClock
from broker.list_upload import upload_children
from broker.settings import Settings
from broker.storage import audit
from broker.storage.database import Database
from mock_nhs.department import AdtMessage, Department, Identity, digest_number
from mock_nhs.journal import read_journal
from mock_nhs.town import CHILD_PROTECTION, Listing, write_children
from tests import ledger
from tests.crash.nursery import Child, Nursery
from tests.crash.points import POINTS
from tests.system import SITE, START_S, WITHOUT_PAGES, System, open_system, until

CAUGHT_UP_S: Final = 30.0
DEATH_S: Final = 40.0
PACE_S: Final = 0.008
LISTED_LATE: Final = 3
KNOWN_BY_NUMBER: Final = {Identity.TRACED: 0.95, Identity.RENAMED: 0.05}
"""Only identities of which the oracle is certain; doubtful ones go to a person, not to a list of alerts."""

RecordProperty = Callable[[str, object], None]
"""pytest's fixture of that name."""


@dataclass(frozen=True, kw_only=True)
class Blow:
    """One death to come: a point, and the how-manieth time it is reached."""

    point: str
    count: int

    @property
    def part(self) -> str:
        """The part that dies."""
        return POINTS[self.point].part

    def __str__(self) -> str:
        return f"{self.point}:{self.count}"


@dataclass
class Scene:
    """The installation, its forked parts, and what became of them."""

    system: System
    nursery: Nursery
    settings: Settings
    database: Database
    """Opened by the harness for itself."""
    bugs: Mapping[str, str] = field(default_factory=dict)
    """Which bug each part has."""
    children: dict[str, list[Child]] = field(default_factory=dict)
    started: Counter[str] = field(default_factory=Counter)
    late_listings: list[Listing] = field(default_factory=list)
    kills: int = 0
    caught_up_s: list[float] = field(default_factory=list)

    def start(self, part: str, *planted: str) -> Child:
        """Start one more process of the part, with deaths planted as ``tests.crash.points`` takes them."""
        bug = ("--bug", self.bugs[part]) if part in self.bugs else ()
        output = self.system.directory / f"{part}-{self.started[part]}.log"
        self.started[part] += 1
        child = self.nursery.fork([*planted, *bug, "--", "serve", "--only", part], self.system.environment, output)
        self.children.setdefault(part, []).append(child)
        return child

    def run(self, *command: str) -> Child:
        """Run another command of the product."""
        output = self.system.directory / f"{command[0]}.out"
        return self.nursery.fork(["--", *command], self.system.environment, output)

    def running(self, part: str) -> list[Child]:
        """The processes of the part that run."""
        self.children[part] = [child for child in self.children.get(part, []) if child.poll() is None]
        return self.children[part]

    async def until_ready(self, part: str) -> None:
        """Wait until every process of the part that runs has said that it is ready, and so can be told to drain."""
        for child in self.running(part):
            await until(partial(_is_ready_or_gone, child), limit_s=START_S, what=f"{part} ready")

    async def stop(self, part: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End every process of the part, drained unless ``number`` says otherwise."""
        if number is signal.SIGTERM:
            await self.until_ready(part)
        running = self.running(part)
        for child in running:
            child.send_signal(number)
        for child in running:
            assert await child.wait(30) == (0 if number is signal.SIGTERM else -number), self.system.last_words()

    async def stop_all(self) -> None:
        """End every part without ceremony."""
        for part in self.children:
            await self.stop(part, signal.SIGKILL)

    async def offer(self, messages: int, *, pace_s: float = PACE_S) -> list[AdtMessage]:
        """Let the department send so many messages."""
        sent = []
        for _ in range(messages):
            sent.append(self.system.department.next_message())
            await self.system.ed.offer(sent[-1])
            await asyncio.sleep(pace_s)
        return sent

    async def list_more(self, people: int) -> None:
        """An authority lists more persons, those first who attended lately: look-backs find their visits."""
        listed = {listing.person.nhs_number for listing in [*self.system.town.listings, *self.late_listings]}
        attended = [visit.person for visit in self.system.department.open.values()]
        persons = {person.nhs_number: person for person in [*attended, *self.system.town.people]}
        found = [person for number, person in persons.items() if number not in listed][:people]
        authority, on = self.system.town.authorities[0].code, self.system.town.on
        added = [
            Listing(
                authority=authority,
                local_id=f"L{len(self.late_listings) + number}",
                person=person,
                plan_type=CHILD_PROTECTION,
                start_date=on,
                end_date=None,
                worker="",
                team="",
            )
            for number, person in enumerate(found)
        ]
        self.late_listings += added
        path = self.system.directory / "town" / "late.csv"
        write_children(path, added)
        report = await upload_children(
            self.database,
            bootstrap.load_keyring(self.settings),
            SystemClock(),
            authority=authority,
            file=path.read_bytes(),
            uploaded_by="test",
        )
        assert report.changed == people

    async def strike(self, blows: Sequence[Blow], *, messages: int) -> None:
        """Each blow's part dies at its point while the department sends, and is started again unharmed."""
        deaths = []
        for blow in blows:
            if POINTS[blow.point].careful:
                await until(self._holds_partitions, limit_s=START_S, what="partitions held")
                await self.stop(blow.part, signal.SIGKILL)
            else:
                await self.stop(blow.part)
            deaths.append(asyncio.create_task(self._die_and_rise(blow, self.start(blow.part, str(blow)))))
        await self.offer(messages // 2)
        if any(blow.part == "jobs" for blow in blows):
            await self.list_more(LISTED_LATE)
        await self.offer(messages - messages // 2)
        while not all(death.done() for death in deaths):
            await self.offer(1, pace_s=0.1)
        await asyncio.gather(*deaths)

    async def strike_and_judge(self, blows: Sequence[Blow], *, messages: int) -> None:
        """The same, and what must hold afterwards: nothing lost, doubled or made up, caught up in time."""
        before = self.repeats()
        await self.strike(blows, messages=messages)
        await self.catch_up()
        # One delivery of each recipient at most was on its way when the dispatcher died.
        self.judge_repeats(before, crashes=sum(blow.part == "dispatch" for blow in blows))

    async def catch_up(self, *, extra_appends: int = 0) -> ledger.Books:
        """Wait until the books balance, and judge them; not longer than a broker may take."""
        began = time.monotonic()
        assert await self.system.ed.settle(timeout_s=CAUGHT_UP_S), "not every message was answered"
        with contextlib.suppress(AssertionError):
            await until(self._has_nothing_to_do, limit_s=CAUGHT_UP_S, what="the end of work", every_s=0.1)
        left_s = max(0.0, CAUGHT_UP_S - (time.monotonic() - began))
        books = await self.system.until_settled(limit_s=left_s, extra_appends=extra_appends)
        assert not self.differences(books, extra_appends=extra_appends)
        self.caught_up_s.append(time.monotonic() - began)
        assert self.caught_up_s[-1] <= CAUGHT_UP_S
        return books

    async def count_quarantined(self) -> int:
        """Messages that wait for a person."""
        return await self._count("SELECT count(*) FROM quarantine")

    async def at_rest(self, quiet_s: float) -> list[str]:
        """Wait until nothing has changed for so long; what the harness then finds wrong."""
        seen: object = None
        since = time.monotonic()
        while time.monotonic() - since < quiet_s:
            books = await ledger.reckon(self.system.sources())
            now = (str(books), dict(self.system.ed.answers))
            if now != seen:
                seen, since = now, time.monotonic()
            await asyncio.sleep(0.2)
        return [*books.problems, *self.differences(books)]

    def department(self, what: str) -> list[dict[str, Any]]:
        """What the department wrote down of one kind."""
        return [line for line in read_journal(self.system.directory / "department.jsonl") if line["what"] == what]

    def differences(self, books: ledger.Books, *, extra_appends: int = 0) -> list[str]:
        """What is otherwise than this side knows it must be, and the ledger cannot know."""
        due, received = self._due_alerts(), self._received_alerts()
        unfit = extra_appends + sum(line["unreadable"] for line in self.department("offered"))
        counted = {
            "alerts did not come: LOST": (due - received).total(),
            "alerts are not due: PHANTOM or DUPLICATE": (received - due).total(),
            "good messages in quarantine": books.handled["quarantined"] - unfit,
        }
        return [f"{count} {what}" for what, count in counted.items() if count > 0]

    async def figures(self) -> dict[str, float]:
        """What was counted, for the record."""
        books = await ledger.reckon(self.system.sources())
        return {
            "kills": self.kills,
            "messages": books.acknowledged_by_sender,
            "appended_again": books.log_records - books.acknowledged_by_sender,
            "alerts": books.alerts_received,
            "repeats": self.repeats().total(),
            "caught_up_s_max": round(max(self.caught_up_s), 1),
        }

    async def verify_audit(self) -> None:
        """Every owner's chain must be whole."""
        async with self.database.reading() as connection:
            owners = await audit.list_chains(connection)
            broken = {owner: await audit.verify_chain(connection, owner) for owner in owners}
        assert broken
        assert not any(broken.values()), broken

    def repeats(self) -> Counter[str]:
        """Repeats so far, by recipient."""
        repeats = Counter(f"authority {line['authority']}" for line in self._case_system("alert_repeated"))
        repeats["department"] = len(self.department("reply_repeated"))
        return repeats

    def judge_repeats(self, before: Counter[str], *, crashes: int) -> None:
        """At most one each for every crash; that they carry key and content of the first, the ledger has checked."""
        more = self.repeats() - before
        assert all(count <= crashes for count in more.values()), f"repeats: {dict(more)}"

    async def _has_nothing_to_do(self) -> bool:
        """Cheap to ask, unlike the ledger, which is asked afterwards: counting all over again slows the other side."""
        return (
            await self._count("SELECT count(*) FROM handled_positions") >= self.system.ed.offered
            # Counts and traces of lists come round for good; what is caught up with is the look-back.
            and await self._count("SELECT count(*) FROM jobs WHERE state = 'open' AND kind = 'look_back'") == 0
            and await self._count("SELECT count(*) FROM deliveries WHERE state IN ('waiting', 'claimed')") == 0
        )

    async def _holds_partitions(self) -> bool:
        """A process that is killed now does not stop cleanly."""
        return await self._count("SELECT count(*) FROM stored_offsets WHERE NOT stopped_cleanly") > 0

    async def _count(self, query: str) -> int:
        async with self.database.reading() as connection:
            return int((await connection.execute(text(query))).scalar_one())

    async def _die_and_rise(self, blow: Blow, child: Child) -> None:
        try:
            code = await child.wait(DEATH_S)
        except TimeoutError:
            raise AssertionError(f"{blow} never came\n{self.system.last_words()}") from None
        assert code == -signal.SIGKILL, f"{blow} ended with {code}\n{self.system.last_words()}"
        self.kills += 1
        self.start(blow.part)

    def _due_alerts(self) -> Counter[tuple[str, str]]:
        """By authority and its own number for the person."""
        visits = {
            line["visit_number"]: line["person_digest"]
            for line in self.department("offered")
            if line["nhs_number_digest"] == line["person_digest"] and not line["unreadable"]
        }
        of_person = Counter(visits.values())
        town = self.system.town
        listed = {
            (listing.authority, listing.local_id, digest_number(listing.person.nhs_number))
            for listing in [*town.listings, *self.late_listings]
            if listing.is_shown(town.on)
        }
        return +Counter({(authority, local_id): of_person[digest] for authority, local_id, digest in listed})

    def _received_alerts(self) -> Counter[tuple[str, str]]:
        return Counter((line["authority"], line["local_id"]) for line in self._case_system("alert"))

    def _case_system(self, what: str) -> list[dict[str, Any]]:
        return [line for line in read_journal(self.system.directory / "case-system.jsonl") if line["what"] == what]


def _is_ready_or_gone(child: Child) -> bool:
    return b'"part_ready"' in child.output.read_bytes() or child.poll() is not None


@asynccontextmanager
async def open_scene(
    directory: Path,
    nursery: Nursery,
    *,
    seed: int = 1,
    kafka: str = "",
    database_url: str = "",
    parts: Sequence[str] = WITHOUT_PAGES,
    bugs: Mapping[str, str] = MappingProxyType({}),
    settings: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Scene]:
    """An installation with its parts running. Few messages are read one at a time after a death: see LoopOptions."""
    variables = {
        "CPIS_BATCH_RECORDS_MAX": "10",
        "CPIS_DELIVERY_LEASE_S": "6",
        "CPIS_DELIVERY_TIMEOUT_S": "2",
        "CPIS_JOB_LEASE_S": "3",
        **settings,
    }
    async with open_system(
        directory, database_url=database_url, kafka=kafka, seed=seed, connections=2, fhir=0.0, **variables
    ) as system:
        site = next(site for site in system.town.sites if site.code == SITE)
        system.department = Department(
            site=SITE,
            credential=site.credential,
            people=system.town.people,
            seed=seed,
            identities=KNOWN_BY_NUMBER,
            faults=system.faults,
        )
        scene = Scene(system, nursery, system.settings, bootstrap.open_database(system.settings), bugs)
        try:
            for part in parts:
                scene.start(part)
            if "intake" in parts:
                await system.until_listening()
            yield scene
        finally:
            await scene.stop_all()
            await scene.database.close()


def draw_blow(point: str, draws: random.Random) -> Blow:
    """A death at the point, at a time that certainly comes."""
    return Blow(point=point, count=draws.randint(POINTS[point].count_min, POINTS[point].count_max))
