"""Scenarios C, E, H and L as far as the list goes: entries are traced against a PDS over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from sqlalchemy import func, select, update

from adapters.exchange import Exchange, ExchangeOptions
from adapters.pds import PdsOptions, PdsTracer
from broker.domain.coverage import CoverageRules
from broker.jobs.runner import JobOptions, JobRunner
from broker.jobs.tracing import Tracing, TracingOptions
from broker.storage import aliases, audit, coverage, traces
from broker.storage.child_lists import derive_entry_id
from broker.storage.coverage import LIST_OFFICERS, StoredItem
from broker.storage.tables import AuditRow, Delivery, LoginRow, NumberAlias, table
from mock_nhs.faults import Faults
from mock_nhs.journal import read_journal
from mock_nhs.pds import Pds, PdsRecord
from mock_nhs.pds import PdsOptions as ServiceOptions
from schemas.alert import ReplyOutcome
from schemas.coverage import CoverageReason
from schemas.identifiers import NhsNumber, authority_owner
from schemas.record import PositionOutcome
from schemas.trace import TraceState
from tests.factories import make_entry, make_nhs_number
from tests.integration.test_import_commands import run
from tests.world import CASEY, World, hl7

NORTHFOLD = authority_owner("706")
OLD = NhsNumber("9990000018")
NEW, OTHER = make_nhs_number(40), make_nhs_number(41)
BORN = date(2015, 3, 2)
CASEY_RECORD = PdsRecord(nhs_number=OLD, family="Tester", given=("Casey",), birth_date=BORN, postcode="ZZ99 1AA")
OPTIONS = TracingOptions(traces_per_s=1000.0, count_after=timedelta(0))


@dataclass
class Side:
    """A world whose entries are traced, and the service that is asked."""

    world: World
    tracing: Tracing
    service: Pds
    faults: Faults
    journal: Path

    def knows(self, *records: PdsRecord) -> None:
        """From now on PDS has these records."""
        for record in records:
            self.service.register.put(record)

    async def trace(self) -> int:
        """Trace what is due, then do the other jobs."""
        done = 0
        while found := await self.tracing.run_once():
            done += found
        await self.world.run_jobs()
        return done

    async def state(self) -> TraceState:
        """What is known of Casey's identity."""
        return (await self.load_trace()).state

    async def load_trace(self) -> traces.StoredTrace:
        entry_id = derive_entry_id(self.world.keyring, "706", make_entry(local_id="L1"))
        async with self.world.database.reading() as connection:
            return (await traces.load_traces(connection, self.world.keyring, [entry_id]))[entry_id]

    async def items(self) -> list[StoredItem]:
        """What is to be mended."""
        async with self.world.database.reading() as connection:
            return await coverage.load_items(connection, NORTHFOLD, only_open=True)

    async def reasons(self) -> list[CoverageReason]:
        return [item.reason for item in await self.items()]

    async def alias_count(self) -> int:
        async with self.world.database.reading() as connection:
            return int((await connection.execute(select(func.count()).select_from(table(NumberAlias)))).scalar_one())

    async def told(self) -> list[str]:
        """Kinds of what was put in the outbox for the authority."""
        sent = table(Delivery)
        async with self.world.database.reading() as connection:
            rows = await connection.execute(select(sent.c.event_type).where(sent.c.owner == NORTHFOLD))
            return [row.event_type.removeprefix("uk.cpis-broker.").removesuffix(".v1") for row in rows]

    async def acts(self, action: str) -> list[str]:
        rows = table(AuditRow)
        async with self.world.database.reading() as connection:
            assert await audit.verify_chain(connection, NORTHFOLD) is None
            found = await connection.execute(select(rows.c.actor).where(rows.c.action == action))
            return list(found.scalars())


@pytest.fixture
async def side(world: World, tmp_path: Path) -> AsyncIterator[Side]:
    world.rules = structs.replace(world.rules, coverage=CoverageRules(is_tracing=True))
    faults = Faults()
    service = Pds(ServiceOptions(), [CASEY_RECORD], tmp_path / "pds.jsonl", faults, world.clock.now)
    await service.start()
    exchange = Exchange(ExchangeOptions(allow_plain_http=True), now=world.clock.now)
    tracer = PdsTracer(PdsOptions(base_url=service.url), exchange, None, now=world.clock.now)
    tracing = Tracing(world.database, world.keyring, world.clock, tracer, OPTIONS)
    try:
        yield Side(world, tracing, service, faults, tmp_path / "pds.jsonl")
    finally:
        await tracing.close()
        await service.stop()


async def test_a_number_that_bears_the_name_and_date_of_birth_is_verified_and_traced_again_after_days(
    side: Side,
) -> None:
    await side.world.list_children(CASEY)
    assert await side.state() is TraceState.UNVERIFIED
    assert await side.trace() == 1
    assert await side.state() is TraceState.VERIFIED
    assert await side.reasons() == []
    async with side.world.database.reading() as connection:
        [day] = await coverage.load_days(connection, "706", days_max=9)
    assert (day.entries, day.can_alert, day.covered, day.unverified) == (1, 1, 1, 0)

    assert await side.trace() == 0
    side.world.clock.advance(OPTIONS.verified_again)
    assert await side.trace() == 1


async def test_an_entry_that_changed_is_traced_anew_and_another_worker_alone_unsettles_nothing(side: Side) -> None:
    await side.world.list_children(CASEY)
    await side.trace()
    await side.world.list_children(CASEY.replace(",W1,", ",,"))
    assert await side.state() is TraceState.VERIFIED
    await side.world.list_children(CASEY.replace("Tester", "Other"))
    assert await side.state() is TraceState.UNVERIFIED
    await side.trace()
    assert await side.state() is TraceState.MISMATCH
    [item] = await side.items()
    assert (item.reason, item.held_by) == (CoverageReason.MISMATCH, LIST_OFFICERS)

    await side.world.list_children(CASEY)
    await side.trace()
    assert await side.items() == []


async def test_a_superseded_number_is_followed_at_once_and_looked_back_for_and_the_authority_is_asked_for_the_new_one(
    side: Side,
) -> None:
    """Scenario B, the list's half: the visit came under the number that the list does not have yet."""
    await side.world.list_children(CASEY)
    side.knows(replace(CASEY_RECORD, superseded_by=NEW), replace(CASEY_RECORD, nhs_number=NEW))
    assert await side.world.receive(hl7(nhs_number=NEW)) == [PositionOutcome.NO_RECORD]

    await side.trace()

    [alert] = await side.world.alerts()
    assert alert.alert.late
    assert ReplyOutcome.MATCH in {reply.outcome for reply in await side.world.replies()}
    assert await side.reasons() == [CoverageReason.SUPERSEDED]
    assert "coverage.noticed" in await side.told()
    assert await side.world.receive(hl7(nhs_number=NEW, visit="V2", patient="K2")) == [PositionOutcome.ALERTED]
    assert await side.world.receive(hl7(nhs_number=OLD, visit="V3", patient="K3")) == [PositionOutcome.ALERTED]

    await side.world.list_children(CASEY.replace(OLD, NEW))
    await side.trace()
    assert await side.items() == []
    assert await side.world.receive(hl7(nhs_number=OLD, visit="V4", patient="K4")) == [PositionOutcome.ALERTED]


async def test_a_superseded_number_whose_record_is_of_somebody_with_other_details_is_not_followed(side: Side) -> None:
    await side.world.list_children(CASEY)
    elsewhere = replace(CASEY_RECORD, nhs_number=NEW, birth_date=date(2011, 1, 1))
    side.knows(replace(CASEY_RECORD, superseded_by=NEW), elsewhere)
    await side.trace()
    assert await side.state() is TraceState.SUPERSEDED
    assert await side.alias_count() == 0
    assert await side.world.receive(hl7(nhs_number=NEW)) == [PositionOutcome.NO_RECORD]


async def test_a_link_that_a_person_undoes_is_withdrawn_aloud_and_never_made_again(side: Side) -> None:
    await side.world.list_children(CASEY)
    side.knows(replace(CASEY_RECORD, superseded_by=NEW), replace(CASEY_RECORD, nhs_number=NEW))
    await side.trace()
    await side.world.receive(hl7(nhs_number=NEW))
    world = side.world
    async with world.database.writing() as connection:
        alias_id = aliases.derive_alias_id(world.keyring, NORTHFOLD, OLD, NEW)
        assert await aliases.undo_alias(connection, alias_id, by="liz", now=world.clock.now())
        assert not await aliases.undo_alias(connection, alias_id, by="liz", now=world.clock.now())
    await world.list_children(CASEY.replace("North", "South"))
    await world.run_jobs()
    [alert] = await world.alerts()
    assert alert.withdrawn_at is not None
    assert sum(reply.wording.startswith("Correction") for reply in await world.replies()) == 1

    world.clock.advance(timedelta(days=31))
    await side.trace()
    assert await world.receive(hl7(nhs_number=NEW, visit="V2", patient="K2")) == [PositionOutcome.NO_RECORD]


async def test_a_link_ends_when_pds_parts_the_two_records_again_and_comes_back_with_it(side: Side) -> None:
    """Twins whose records were merged in error: once they are two again, one must not alert as the other."""
    world = side.world
    await world.list_children(CASEY, CASEY.replace("child_protection_plan", "looked_after_child"))
    merged = (replace(CASEY_RECORD, superseded_by=NEW), replace(CASEY_RECORD, nhs_number=NEW))
    side.knows(*merged)
    await side.trace()
    assert await world.receive(hl7(nhs_number=NEW, given="ROBIN")) == [PositionOutcome.ALERTED]

    side.knows(CASEY_RECORD, replace(CASEY_RECORD, nhs_number=NEW, given=("Robin",)))
    world.clock.advance(OPTIONS.verified_again)
    await side.trace()
    [alert] = await world.alerts()
    assert alert.withdrawn_at is not None
    twin = hl7(nhs_number=NEW, given="ROBIN", visit="V2", patient="K2")
    assert await world.receive(twin) == [PositionOutcome.NO_RECORD]
    assert await side.acts("alias.undone") == ["broker"]

    side.knows(*merged)
    world.clock.advance(OPTIONS.verified_again)
    await side.trace()
    assert await world.receive(hl7(nhs_number=NEW, visit="V3", patient="K3")) == [PositionOutcome.ALERTED]


async def test_scenario_e_after_an_adoption_the_old_entry_is_dead_and_nothing_leads_to_the_new_child(
    side: Side,
) -> None:
    """The old number goes inactive, and a new one that nobody links has the same first name and date of birth."""
    await side.world.list_children(CASEY)
    await side.trace()
    adopted = PdsRecord(nhs_number=NEW, family="Newname", given=("Casey",), birth_date=BORN, postcode="ZZ99 1AA")
    side.knows(replace(CASEY_RECORD, is_invalidated=True), adopted)
    side.world.clock.advance(OPTIONS.verified_again)
    await side.world.list_children(CASEY)
    await side.trace()

    assert await side.state() is TraceState.INVALIDATED
    assert await side.reasons() == [CoverageReason.INVALIDATED]
    assert (await side.told()).count("coverage.noticed") == 1
    assert await side.alias_count() == 0
    assert [line["what"] for line in read_journal(side.journal)].count("searched") == 0

    as_new = hl7(nhs_number=NEW, family="NEWNAME")
    no_number = hl7(nhs_number="", family="NEWNAME", visit="V2", patient="K2")
    old_name = hl7(nhs_number="", visit="V3", patient="K3")
    by_old = hl7(visit="V4", patient="K4")
    outcomes = await side.world.receive(as_new, no_number, old_name, by_old)
    assert set(outcomes) == {PositionOutcome.NO_RECORD}
    assert (await side.world.alerts(), await side.world.reviews()) == ([], [])


async def test_a_dead_entry_stays_dead_until_it_has_another_number(side: Side) -> None:
    await side.world.list_children(CASEY)
    side.knows(replace(CASEY_RECORD, is_invalidated=True), replace(CASEY_RECORD, nhs_number=OTHER))
    await side.trace()
    await side.world.list_children(CASEY.replace("Tester", "Testerer"))
    assert await side.world.receive(hl7()) == [PositionOutcome.NO_RECORD]
    await side.world.list_children(CASEY.replace(OLD, OTHER))
    assert await side.world.receive(hl7(nhs_number=OTHER, visit="V2", patient="K2")) == [PositionOutcome.ALERTED]
    await side.trace()
    assert await side.items() == []


async def test_scenario_l_a_restricted_child_stays_listed_and_alerts_and_the_item_says_what_differs(
    side: Side,
) -> None:
    await side.world.list_children(CASEY)
    side.knows(replace(CASEY_RECORD, confidentiality="R"))
    await side.trace()
    assert await side.state() is TraceState.RESTRICTED
    assert await side.reasons() == [CoverageReason.RESTRICTED]
    assert "coverage.noticed" not in await side.told()
    assert await side.world.receive(hl7()) == [PositionOutcome.ALERTED]
    kept = (await side.load_trace()).finding
    assert "ZZ99" not in repr(kept)

    [item] = await side.items()
    async with side.world.database.writing() as connection:
        assert await coverage.note_item(connection, NORTHFOLD, item.id, by="liz", now=side.world.clock.now())
    side.world.clock.advance(timedelta(days=2))
    await side.trace()
    assert await side.items() == []


async def test_scenario_c_a_wrong_number_on_the_list_is_corrected_after_the_alert_went_out(side: Side) -> None:
    """The alert for the wrong child is withdrawn, the department corrected, the right child's visit alerts late."""
    world = side.world
    await world.list_children(CASEY)
    right = hl7(nhs_number=OTHER, visit="V2", patient="K2")
    assert await world.receive(hl7(), right) == [PositionOutcome.ALERTED, PositionOutcome.NO_RECORD]

    await world.list_children(CASEY.replace(OLD, OTHER))
    await world.run_jobs()

    wrong, late = sorted(await world.alerts(), key=lambda alert: alert.alert.late)
    assert wrong.withdrawn_at is not None
    assert late.alert.late and late.withdrawn_at is None
    assert late.alert.child.nhs_number == OTHER
    replies = await world.replies()
    of_wrong = next(reply for reply in replies if reply.visit_number == "V1" and reply.wording.startswith("Correction"))
    assert of_wrong.outcome is ReplyOutcome.NO_RECORD
    assert ReplyOutcome.MATCH in {reply.outcome for reply in replies if reply.visit_number == "V2"}


async def test_scenario_h_a_list_nine_days_old_alerts_says_its_age_and_is_chased_once(side: Side) -> None:
    world = side.world
    for _ in range(4):
        await world.list_children(CASEY)
        world.clock.advance(timedelta(days=1))
    world.clock.advance(timedelta(hours=36))
    await side.trace()
    assert await side.reasons() == []  # two and a half days: late, but within three times its habit

    world.clock.advance(timedelta(days=6, hours=12))
    assert await world.receive(hl7()) == [PositionOutcome.ALERTED]
    await side.trace()
    [alert] = await world.alerts()
    assert alert.alert.list_confirmed_at == world.clock.now() - timedelta(days=9)
    [reply] = await world.replies()
    assert "9 days old" in reply.wording
    assert reply.lists.own_authorities_stale == ("706",)
    assert reply.plans[0].list_confirmed_at == world.clock.now() - timedelta(days=9)
    assert await side.reasons() == [CoverageReason.LIST_STALE]

    world.clock.advance(timedelta(days=3))
    await side.trace()
    assert (await side.told()).count("coverage.noticed") == 1
    [item] = await side.items()
    assert (item.held_by, item.level) == ("duty", 1)

    await world.list_children(CASEY)
    await side.trace()
    world.clock.advance(timedelta(days=30))
    await side.trace()
    assert (await side.told()).count("coverage.noticed") == 2


async def test_a_list_that_comes_monthly_is_not_chased_after_nine_days(side: Side) -> None:
    for _ in range(4):
        await side.world.list_children(CASEY)
        side.world.clock.advance(timedelta(days=30))
    await side.world.list_children(CASEY)
    side.world.clock.advance(timedelta(days=9))
    await side.trace()
    assert await side.reasons() == []


async def test_while_pds_is_away_entries_stay_unverified_say_why_and_everything_rests(side: Side) -> None:
    other = CASEY.replace("L1", "L2").replace(OLD, OTHER)
    await side.world.list_children(CASEY, other)
    side.faults.arm_share("pds.refuse_503", 1.0)
    assert await side.trace() == 1
    trace = await side.load_trace()
    asked = [line for line in read_journal(side.journal) if line["what"] == "failed_on_purpose"]
    assert len(asked) == 1
    assert trace.state is TraceState.UNVERIFIED
    assert await side.trace() == 0
    side.faults.disarm("pds.refuse_503")
    side.world.clock.advance(timedelta(minutes=10))
    assert await side.trace() == 2
    assert await side.state() is TraceState.VERIFIED


async def test_without_a_pds_nothing_is_traced_entries_with_somebody_to_ask_can_alert_and_nobody_is_alarmed(
    world: World,
) -> None:
    invalid = CASEY.replace("L1,", "L3,").replace(OLD, "9990000019")
    await world.list_children(CASEY, CASEY.replace("L1,", "L2,").replace(OLD, OTHER).replace("W1", "nobody"), invalid)
    told = await run(world, "children", "coverage", "--authority", "706")
    assert "Not counted yet" in told.stdout and "to be mended" not in told.stdout
    async with world.database.writing() as connection:
        await connection.execute(
            update(table(LoginRow)).where(table(LoginRow).c.role == "duty_worker").values(disabled_at=world.clock.now())
        )
    await world.run_jobs()
    world.clock.advance(timedelta(days=8))
    await world.run_jobs()
    async with world.database.reading() as connection:
        items = await coverage.load_items(connection, NORTHFOLD, only_open=True)
        days = await coverage.load_days(connection, "706", days_max=9)
    assert {item.reason for item in items} == {CoverageReason.NO_ROUTE, CoverageReason.LIST_STALE}
    counted = [(day.entries, day.can_alert, day.covered, day.unverified) for day in days]
    assert counted == [(2, 1, 0, 2), (2, 1, 0, 2)]
    told = await run(world, "children", "coverage", "--authority", "706")
    assert "could not be loaded, and are not counted here: 1" in told.stdout
    assert "2 entries, 1 can alert, not traced: no Personal Demographics Service is configured" in told.stdout
    assert "%" not in told.stdout


async def test_the_runner_traces_beside_its_other_work_until_it_is_stopped(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = side.world
    runner = JobRunner(
        world.database, world.keyring, world.clock, world.rules, JobOptions(poll_s=0.01), tracing=side.tracing
    )
    await world.list_children(CASEY)
    settled = asyncio.Event()
    settle = side.tracing._settle

    async def settle_and_tell(*known: Any) -> None:
        await settle(*known)
        settled.set()

    monkeypatch.setattr(side.tracing, "_settle", settle_and_tell)
    running = asyncio.create_task(runner.run())
    async with asyncio.timeout(20):
        await settled.wait()
        runner.stop()
        await running
    assert await side.state() is TraceState.VERIFIED
    assert await side.acts("entry.traced") == ["broker"]
