"""List steps and visit steps in any order end as if they had come one after the other (threat row 5).

Each history is a child whose list entry goes through steps (listed, listed under a wrong number, taken back, listed
again) while the visit's messages arrive (with the number or without). A seed draws the steps and their order, and when
which look-backs are claimed and done: at once, after later steps, or by nobody, because the worker died. However they
were interleaved, the end must be that of the same steps with the list's last word known first: a legal serial order.

Two thousand are played in shared uploads and batches, some hundred steps of as many children at a time; a hundred one
step at a time, each upload of one row and each batch of one message. No two steps happen at the same instant here:
that is raced in ``test_look_back.py``.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import select

from broker.jobs.look_back import look_back
from broker.list_comparison import UploadOptions
from broker.list_upload import upload_children
from broker.storage import directory, jobs, reviews, visits
from broker.storage.jobs import ClaimedJob
from broker.storage.tables import Visit, table
from schemas.alert import ReplyOutcome
from schemas.identifiers import authority_owner
from schemas.upload import UploadState
from tests.integration.test_near_twins import nhs_numbers
from tests.world import CHILDREN_COLUMNS, World, hl7, open_world

HISTORIES, ALONE = 2_000, 100
PLAN = "child_protection_plan,2026-01-10,,W1,North"
LEASE = timedelta(minutes=2)
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


class End(msgspec.Struct, frozen=True):
    """What stands in the end of a visit."""

    is_alerted: bool
    is_under_review: bool
    reply: ReplyOutcome | None


class Child:
    """One child's steps, in an order of their own each for list and visit."""

    def __init__(self, key: int, right: str, wrong: str, chance: random.Random) -> None:
        self.key, self.right = key, right
        # Nobody is like anybody else: what one child's steps do, they do to that child.
        self.born = date(2009, 1, 1) + timedelta(days=key % 6_000)
        self.family = "".join(chance.choice(CONSONANTS) + chance.choice(VOWELS) for _ in range(5))
        self.given = "".join(chance.choice(CONSONANTS) + chance.choice(VOWELS) for _ in range(3))
        self.postcode = f"ZZ99 {key % 10}{chance.choice('ABDEFGHJ')}{chance.choice('LNPQRSTU')}"
        self.listed = self.row(right)
        self.taken_back = f"{self.listed},2026-02-01"
        states = (self.listed, self.row(wrong), self.taken_back)
        self.lists = [chance.choice(states) for _ in range(chance.randrange(1, 4))]
        self.visits = [chance.choice([right, ""]) for _ in range(chance.randrange(1, 3))]
        # Rows of one child are told apart by local id only: what stands at the end is the last word.
        kinds = ["list"] * len(self.lists) + ["visit"] * len(self.visits)
        chance.shuffle(kinds)
        lists, said = iter(self.lists), iter(self.visits)
        self.steps = [(kind, next(lists) if kind == "list" else next(said)) for kind in kinds]

    def row(self, nhs_number: str) -> str:
        return f"L{self.key},{nhs_number},{self.family},{self.given},{self.born},{self.postcode},{PLAN}"

    def message(self, nhs_number: str) -> bytes:
        return hl7(
            nhs_number=nhs_number,
            family=self.family.upper(),
            given=self.given.upper(),
            birth_date=self.born,
            postcode=self.postcode,
            visit=f"V{self.key}",
            patient=f"K{self.key}",
        )

    @property
    def alerts(self) -> bool:
        """Whether an alert stands when the list's last word meets all that the department said."""
        return self.lists[-1] == self.listed and self.right in self.visits

    @property
    def ends(self) -> list[End]:
        """Where the steps may end in a serial order."""
        may_be_doubted = self.lists[-1] != self.taken_back
        if self.right not in self.visits:
            # Name and date of birth agree, whatever number is listed: a person looks.
            return [End(False, may_be_doubted, ReplyOutcome.IDENTITY_TO_BE_CHECKED)]
        if self.alerts:
            return [End(True, False, ReplyOutcome.MATCH)]
        certain = End(False, False, ReplyOutcome.NO_RECORD)
        if self.visits[0] == self.right:
            return [certain]
        # What was doubtful before the number came may have been put before a person, and the department told so.
        told = ReplyOutcome.IDENTITY_TO_BE_CHECKED
        return [certain, End(False, False, told), *([End(False, True, told)] if may_be_doubted else [])]

    @property
    def alerts_max(self) -> int:
        """How often the child comes on the list under the right number."""
        before = [None, *self.lists]
        return sum(was != self.listed == now for was, now in zip(before, self.lists, strict=False))

    @property
    def is_found_late(self) -> bool:
        """Whether only a look-back can raise the alert that stands: all was said before the child was ever listed."""
        first = self.steps.index(("list", self.listed)) if self.listed in self.lists else 0
        return self.alerts and not any(kind == "visit" for kind, _ in self.steps[first:])


class LookBacks:
    """Look-backs as workers do them who may pause or die between claiming one and doing it."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self._world, self._chance = world, chance
        self._claimed: list[ClaimedJob] = []
        self._known: directory.Directory

    async def work(self) -> None:
        """Do some of what was claimed before, then claim more; now and then a worker dies."""
        await self._do([job for job in self._claimed if self._chance.random() < 0.7])
        self._claimed = []
        if self._chance.random() < 0.5:
            claimed = await self._claim(self._chance.choice([1, 20, 200, 1_000]))
            self._chance.shuffle(claimed)
            later = self._chance.randrange(len(claimed) + 1)
            self._claimed = claimed[:later]
            await self._do(claimed[later:])

    async def finish(self) -> None:
        """Do all that is left; what dead workers had claimed, after their leases."""
        self._world.clock.advance(LEASE * 1.01)
        while claimed := await self._claim(1_000):
            await self._do(claimed)

    async def _claim(self, jobs_max: int) -> list[ClaimedJob]:
        world = self._world
        async with world.database.writing() as connection:
            await jobs.set_barriers(connection, world.clock.now())
        async with world.database.writing() as connection:
            self._known = await directory.load_directory(connection)
            return await jobs.claim_jobs(connection, jobs_max=jobs_max, lease=LEASE, now=world.clock.now())

    async def _do(self, claimed: Sequence[ClaimedJob]) -> None:
        world = self._world
        for job in claimed:
            await look_back(world.database, world.keyring, world.rules, job, world.clock.now(), known=self._known)


async def play(world: World, histories: int, seed: int, *, at_once: float) -> None:
    """``at_once``: the share of the children that take a step at a time; with 0 it is one child."""
    chance, numbers = random.Random(seed), nhs_numbers()
    children = [Child(key, next(numbers), next(numbers), chance) for key in range(histories)]
    look_backs = LookBacks(world, chance)
    waiting = {child.key: list(child.steps) for child in children}
    while waiting:
        chosen = [key for key in waiting if chance.random() < at_once] or [chance.choice(list(waiting))]
        steps = [(children[key], *waiting[key].pop(0)) for key in chosen]
        waiting = {key: rest for key, rest in waiting.items() if rest}
        rows = [said for _, kind, said in steps if kind == "list"]
        messages = [child.message(said) for child, kind, said in steps if kind == "visit"]
        for is_list in chance.sample([True, False], 2):
            if is_list and rows:
                await upload(world, rows)
            elif not is_list and messages:
                await world.receive(*messages)
        await look_backs.work()
        world.clock.advance(timedelta(seconds=1))
    await look_backs.finish()
    await check(world, children)


async def check(world: World, children: Sequence[Child]) -> None:
    ends = await find_ends(world)
    wrong = [(child.steps, ends[child.key]) for child in children if ends[child.key] not in child.ends]
    assert wrong == []
    raised = defaultdict(list)
    for alert in await world.alerts(rows_max=100_000):
        raised[int(alert.alert.child.local_id[1:])].append(alert)
    standing = {key: [each for each in found if each.withdrawn_at is None] for key, found in raised.items()}
    assert {len(found) for found in standing.values()} <= {0, 1}
    assert {child.key for child in children if child.alerts} == {key for key, one in standing.items() if one}
    too_often = [child.key for child in children if len(raised[child.key]) > child.alerts_max]
    assert too_often == []
    late = [child.key for child in children if child.is_found_late]
    assert len(late) > len(children) // 20, "look-back must have had its share"
    assert [key for key in late if not standing[key][0].alert.late] == []


async def find_ends(world: World) -> dict[int, End]:
    """How each child's visit stands."""
    async with world.database.writing() as connection:
        ids = (await connection.execute(select(table(Visit).c.id))).scalars()
        threads = await visits.load_known_threads(connection, world.keyring, ids)
        open_ = await reviews.list_open_reviews(connection, world.keyring, authority_owner("706"), rows_max=100_000)
    doubted = Counter(review.visit_id for review in open_)
    assert all(count == 1 for count in doubted.values())
    return {
        int((thread.messages[0][1].local_patient_id or "K-1")[1:]): End(
            bool(thread.alerted), thread.visit_id in doubted, thread.replied
        )
        for thread in threads.values()
    }


async def upload(world: World, rows: list[str]) -> None:
    report = await upload_children(
        world.database,
        world.keyring,
        world.clock,
        authority="706",
        file="\n".join((CHILDREN_COLUMNS, *rows)).encode(),
        uploaded_by="list.officer@706.example.org",
        options=UploadOptions(hold_entries=1_000_000),
    )
    assert report.state is UploadState.LOADED


@pytest.mark.timeout(600)
async def test_2_000_interleavings_of_list_and_visit_steps_end_as_a_serial_order(
    world_url: str, tmp_path: Path
) -> None:
    async with open_world(world_url, tmp_path, inline=True) as world:
        await play(world, HISTORIES, seed=5, at_once=0.6)


async def test_100_interleavings_one_step_at_a_time_end_as_a_serial_order(world_url: str, tmp_path: Path) -> None:
    async with open_world(world_url, tmp_path, inline=True) as world:
        await play(world, ALONE, seed=7, at_once=0)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(100, 110))
async def test_20_000_interleavings(world_url: str, tmp_path: Path, seed: int) -> None:
    async with open_world(world_url, tmp_path, inline=True) as world:
        await play(world, HISTORIES, seed=seed, at_once=0.6)
