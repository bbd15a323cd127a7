"""The worklist of list officers: what it shows, to whom, and what they can do with it."""

from __future__ import annotations

import re
from datetime import timedelta

from msgspec import structs
from sqlalchemy import select, update

from broker.domain.coverage import CoverageRules
from broker.storage import aliases, jobs, traces
from broker.storage.child_lists import derive_entry_id
from broker.storage.tables import LoginRow, NumberAlias, table
from schemas.identifiers import NhsNumber
from schemas.trace import Finding, Mismatch, Restricted, Superseded, TraceField
from tests.factories import make_entry, make_nhs_number
from tests.pages import DEE, KIT, LIZ, NIA, NORTHFOLD, Pages
from tests.world import CASEY, hl7

NEW = make_nhs_number(40)


async def find(pages: Pages, finding: Finding) -> str:
    """PDS says this of Casey; the list is counted. Returns the entry."""
    world = pages.world
    entry_id = derive_entry_id(world.keyring, "706", make_entry(local_id="L1"))
    async with world.database.writing() as connection:
        await traces.settle_trace(
            connection, world.keyring, entry_id, finding, next_at=world.clock.now(), now=world.clock.now()
        )
        job_id = jobs.derive_job_id(world.keyring, jobs.COVERAGE, "706")
        await jobs.add_jobs(connection, jobs.COVERAGE, [(job_id, NORTHFOLD, "706")], world.clock.now())
    await world.run_jobs()
    return entry_id


async def test_a_list_officer_sees_who_cannot_alert_why_and_what_to_do(pages: Pages) -> None:
    await find(pages, Mismatch(differs=(TraceField.FAMILY,), suggestion=NEW))
    async with pages.signed_in(LIZ) as officer:
        assert (await officer.get("/")).headers["location"] == "/lists"
        text = (await officer.get("/coverage")).text
    assert "Casey Tester" in text and "Details differ" in text and "CPR03" in text
    assert "The family name differs." in text
    assert f"{NEW[:3]} {NEW[3:6]} {NEW[6:]}" in text
    assert "<strong>0 of 1</strong> current entries can alert." in text, "the number is known to be another's"
    assert "Not traced: no Personal Demographics Service is configured" in text and "%" not in text
    assert (LIZ, "coverage.listed") in {(actor, action) for actor, action, _ in await pages.acts(NORTHFOLD)}


async def test_others_see_nothing_of_it(pages: Pages) -> None:
    await find(pages, Mismatch(differs=(TraceField.FAMILY,)))
    async with pages.signed_in(NIA) as clinician:
        assert (await clinician.get("/coverage")).status_code == 403
    async with pages.signed_in(KIT) as elsewhere:
        assert (await elsewhere.get("/coverage")).status_code == 403
    async with pages.signed_in(LIZ) as officer:
        assert (await officer.get("/inbox")).status_code == 403
        assert (await officer.post("/coverage/" + "0" * 32 + "/note")).status_code == 400
        assert (await officer.send_form("/coverage/" + "0" * 32 + "/note")).status_code == 404
        assert (await officer.send_form("/coverage/" + "0" * 32 + "/part")).status_code == 404


async def test_a_restricted_person_is_noted_as_seen_to_and_nothing_else_can_be(pages: Pages) -> None:
    await find(pages, Restricted())
    async with pages.signed_in(LIZ) as officer:
        [item] = re.findall(r'action="(/coverage/[0-9a-f]{32}/note)"', (await officer.get("/coverage")).text)
        assert (await officer.send_form(item)).status_code == 303
        assert "Nothing is to be mended" in (await officer.get("/coverage")).text
    assert "coverage.noted" in {action for _, action, _ in await pages.acts(NORTHFOLD)}


async def test_a_link_is_undone_by_a_person_on_record_and_what_rested_on_it_is_withdrawn(pages: Pages) -> None:
    world = pages.world
    async with world.database.writing() as connection:
        old = NhsNumber("9990000018")
        await aliases.add_alias(connection, world.keyring, NORTHFOLD, old=old, new=NEW, now=world.clock.now())
    await world.receive(hl7(nhs_number=NEW, visit="V9", patient="K9"))
    entry_id = await find(pages, Superseded(replacement=NEW))
    async with pages.signed_in(DEE) as duty:
        [item] = re.findall(r'action="(/coverage/[0-9a-f]{32}/part)"', (await duty.get("/coverage")).text)
        await world.list_children(CASEY, CASEY.replace("child_protection_plan", "looked_after_child"))
        await world.run_jobs()
        assert (await duty.send_form(item)).status_code == 303
    async with world.database.reading() as connection:
        assert len(await jobs.list_waiting(connection, jobs.LOOK_BACK)) == 2, "every plan under the number is looked at"
    await world.run_jobs()
    assert sorted(alert.withdrawn_at is not None for alert in await world.alerts()) == [False, True]
    assert (DEE, "alias.undone", entry_id) in await pages.acts(NORTHFOLD)
    async with world.database.reading() as connection:
        row = (await connection.execute(select(table(NumberAlias)))).one()
    assert row.undone_by == DEE


async def test_an_entry_without_anybody_to_ask_is_an_item_and_goes_to_the_duty_desk_in_time(pages: Pages) -> None:
    world = pages.world
    world.rules = structs.replace(world.rules, coverage=CoverageRules(every=timedelta(minutes=1)))
    logins = table(LoginRow)
    nobody = update(logins).where(logins.c.role.in_(["duty_worker", "social_worker"]))
    async with world.database.writing() as connection:
        await connection.execute(nobody.values(disabled_at=world.clock.now()))
    world.clock.advance(timedelta(hours=1))
    await world.run_jobs()
    async with pages.signed_in(LIZ) as officer:
        assert "Nobody to ask" in (await officer.get("/coverage")).text

    async with world.database.writing() as connection:
        await connection.execute(update(logins).values(disabled_at=None))
    world.clock.advance(timedelta(hours=1))
    await world.run_jobs()
    async with pages.signed_in(LIZ) as officer:
        assert "Nobody to ask" not in (await officer.get("/coverage")).text


async def test_the_duty_desk_is_told_in_its_inbox_of_what_nobody_mended(pages: Pages) -> None:
    await find(pages, Mismatch(differs=(TraceField.FAMILY,)))
    async with pages.signed_in(DEE) as duty:
        assert "may not alert" not in (await duty.get("/inbox")).text
        pages.world.clock.advance(timedelta(hours=73))
        await pages.world.run_jobs()
    async with pages.signed_in(DEE) as duty:
        assert "may not alert" in (await duty.get("/inbox")).text
        assert "handed over 1 time" in (await duty.get("/coverage")).text
