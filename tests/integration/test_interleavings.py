"""List steps and visit steps in any order end as if they had come one after the other (threat row 5).

Each history is a child whose list entry goes through steps (listed, corrected, taken back, listed again) while the
visit's messages arrive (arrival with or without the number, updates). The steps are drawn and ordered by a seed, with
the look-back jobs run whenever the seed says so, and again at the end; many children share a world. However they were
interleaved, the end must be that of the same steps with the list's last word known first: a legal serial order.
"""

from __future__ import annotations

import random
from collections import Counter
from datetime import date, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from broker.jobs.runner import JobOptions, JobRunner
from broker.list_comparison import UploadOptions
from broker.list_upload import upload_children
from broker.storage import alerts
from broker.storage.tables import Alert, table
from schemas.identifiers import authority_owner
from schemas.upload import UploadState
from tests.integration.test_near_twins import nhs_numbers
from tests.world import CHILDREN_COLUMNS, World, hl7, open_world

HISTORIES, AT_ONCE = 200, 200
PLAN = "child_protection_plan,2026-01-10,,W1,North"


class Child:
    """One child's steps, in an order of their own each for list and visit."""

    def __init__(self, number: int, right: str, wrong: str, chance: random.Random) -> None:
        self.key, self.right, self.wrong = number, right, wrong
        born = date(2012, 1, 1) + timedelta(days=number % 3000)
        self.born = born
        states = {
            "listed": self.row(right),
            "wrong number": self.row(wrong),
            "taken back": f"{self.row(right)},2026-02-01",
        }
        self.lists = [chance.choice(list(states.values())) for _ in range(chance.randrange(1, 4))]
        self.visits = [chance.choice([right, ""]) for _ in range(chance.randrange(1, 3))]
        # Rows of one child are told apart by number only: what stands at the end is the last word on each.
        self.steps = [("list", row) for row in self.lists] + [("visit", said) for said in self.visits]
        chance.shuffle(self.steps)

    def row(self, nhs_number: str) -> str:
        return f"L{self.key},{nhs_number},Child{self.key},Casey,{self.born},ZZ99 1AA,{PLAN}"

    def message(self, nhs_number: str) -> bytes:
        event = "A04"
        return hl7(
            event,
            nhs_number=nhs_number,
            family=f"CHILD{self.key}",
            birth_date=self.born,
            visit=f"V{self.key}",
            patient=f"K{self.key}",
        )

    @property
    def should_alert(self) -> bool:
        """Whether an alert stands when the list's last word meets all that the department said."""
        last = [row for kind, row in self.steps if kind == "list"][-1]
        return last == self.row(self.right) and self.right in self.visits


async def play(world: World, histories: int, seed: int) -> None:
    chance, numbers = random.Random(seed), nhs_numbers()
    children = [Child(key, next(numbers), next(numbers), chance) for key in range(histories)]
    runner = JobRunner(
        world.database,
        world.keyring,
        world.clock,
        world.rules,
        JobOptions(jobs_max=200, night_begins=timedelta(hours=23)),
    )
    for start in range(0, histories, AT_ONCE):
        await interleave(world, children[start : start + AT_ONCE], chance, runner)
    while await runner.run_once():
        pass
    raised = table(Alert)
    async with world.database.reading() as connection:
        rows = (await connection.execute(select(raised.c.visit_id, raised.c.withdrawn_at))).all()
    standing = Counter(row.visit_id for row in rows if row.withdrawn_at is None)
    assert all(count == 1 for count in standing.values())
    alerted = await find_alerted(world)
    assert alerted == {child.key for child in children if child.should_alert}
    late = sum(alert.alert.late for alert in await world.alerts() if alert.withdrawn_at is None)
    assert late > len(alerted) // 10 or histories < 100, "look-back must have had its share"


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


async def interleave(world: World, children: list[Child], chance: random.Random, runner: JobRunner) -> None:
    """One step of some of the children at a time; the others wait."""
    waiting = {child.key: list(child.steps) for child in children}
    by_key = {child.key: child for child in children}
    while waiting:
        chosen = [key for key in waiting if chance.random() < 0.6]
        steps = {key: waiting[key].pop(0) for key in chosen}
        waiting = {key: rest for key, rest in waiting.items() if rest}
        rows = [said for kind, said in steps.values() if kind == "list"]
        messages = [by_key[key].message(said) for key, (kind, said) in steps.items() if kind == "visit"]
        for is_list in chance.sample([True, False], 2):
            if is_list and rows:
                await upload(world, rows)
            elif not is_list and messages:
                await world.receive(*messages)
        if chance.random() < 0.5:
            await runner.run_once()
        world.clock.advance(timedelta(seconds=1))


async def find_alerted(world: World) -> set[int]:
    """The children whose alert stands."""
    async with world.database.reading() as connection:
        found = await alerts.list_alerts(
            connection, world.keyring, authority_owner("706"), worker=None, rows_max=100_000
        )
    return {int(each.alert.child.local_id[1:]) for each in found if each.withdrawn_at is None}


async def test_200_interleavings_of_list_and_visit_steps_end_as_a_serial_order(sqlite_url: str, tmp_path: Path) -> None:
    async with open_world(sqlite_url, tmp_path) as world:
        await play(world, HISTORIES, seed=5)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
async def test_2_000_interleavings(sqlite_url: str, tmp_path: Path, seed: int) -> None:
    async with open_world(sqlite_url, tmp_path) as world:
        await play(world, HISTORIES, seed=100 + seed)


async def test_50_interleavings_on_postgresql(postgres_url: str, tmp_path: Path) -> None:
    async with open_world(postgres_url, tmp_path) as world:
        await play(world, 50, seed=7)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(10))
async def test_2_000_interleavings_on_postgresql(postgres_url: str, tmp_path: Path, seed: int) -> None:
    async with open_world(postgres_url, tmp_path) as world:
        await play(world, HISTORIES, seed=200 + seed)
