"""What did the lists say about this child at 03:12? For any instant, with the upload that said so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from broker.cli import app
from broker.list_history import AsAt, AsAtQuestion, tell_as_at
from broker.storage import coverage, jobs
from broker.storage.tables import Job, table
from schemas.identifiers import NhsNumber, authority_owner
from tests.pages import ASH, DEE, NORTHFOLD, Pages
from tests.world import CASEY, CHILDREN_COLUMNS, FIELD_KEYS, INDEX_KEY, World, hl7

CASEY_NUMBER = NhsNumber("9990000018")


async def ask(world: World, ago: timedelta, owner: str | None = None) -> AsAt:
    question = AsAtQuestion(nhs_number=CASEY_NUMBER, at=world.clock.now() - ago, owner=owner, asked_by="auditor")
    async with world.database.writing() as connection:
        return await tell_as_at(connection, world.keyring, question, world.clock.now())


async def test_every_version_is_found_at_its_time_with_its_file_and_sender(world: World) -> None:
    await world.list_children(CASEY)
    world.clock.advance(timedelta(hours=1))
    moved = CASEY.replace("ZZ99 1AA", "ZZ99 2BB")
    await world.list_children(f"{moved},,F-17")
    world.clock.advance(timedelta(hours=1))
    await world.list_children(f"{moved},2026-02-14")
    world.clock.advance(timedelta(hours=1))
    await world.list_children(CASEY, authority="707")

    assert (await ask(world, timedelta(hours=4))).versions == ()
    [first] = (await ask(world, timedelta(hours=2, minutes=30))).versions
    assert (first.entry.postcode, first.sequence, first.uploaded_by) == (
        "ZZ99 1AA",
        1,
        "list.officer@706.example.org",
    )
    assert first.file_hash == sha256(f"{CHILDREN_COLUMNS}\n{CASEY}\n".encode()).hexdigest()
    [second] = (await ask(world, timedelta(hours=1, minutes=30))).versions
    assert (second.entry.postcode, second.known_until) == ("ZZ99 2BB", world.clock.now() - timedelta(hours=1))
    assert (first.entry.household, second.entry.household) == (None, "F-17")
    now = await ask(world, timedelta(0))
    assert [(each.authority, each.entry.deleted_on is None) for each in now.versions] == [("706", False), ("707", True)]
    assert [each.authority for each in (await ask(world, timedelta(0), NORTHFOLD)).versions] == ["706"]


async def test_a_number_that_was_corrected_is_found_under_each_at_its_time(world: World) -> None:
    await world.list_children(CASEY.replace("9990000018", "9990000042"))
    world.clock.advance(timedelta(hours=1))
    await world.list_children(CASEY)
    assert (await ask(world, timedelta(minutes=30))).versions == ()
    assert len((await ask(world, timedelta(0))).versions) == 1


async def test_how_old_the_lists_were_then_is_told_though_they_came_again_since(world: World) -> None:
    await world.list_children(CASEY)
    came = world.clock.now()
    world.clock.advance(timedelta(days=9))
    await world.list_children(CASEY)
    ages = {age.authority: age.confirmed_at for age in (await ask(world, timedelta(days=2))).lists}
    assert ages == {"706": came, "707": None}
    ages = {age.authority: age.confirmed_at for age in (await ask(world, timedelta(0))).lists}
    assert ages["706"] == world.clock.now()


async def test_the_page_asks_by_form_and_every_question_is_on_record(pages: Pages) -> None:
    at = pages.world.clock.now() + timedelta(minutes=1)
    form = {"on": f"{at:%Y-%m-%d}", "time": f"{at:%H:%M}"}
    await pages.world.list_children(f"{CASEY},,F-17")
    async with pages.signed_in(DEE) as duty:
        assert (await duty.get("/as-at")).status_code == 200
        answer = await duty.send_form("/as-at", nhs_number="999 000 0018", **form)
        assert "F-17" in answer.text and "Casey Tester" in answer.text and "list.officer@706.example.org" in answer.text
        assert "said nothing" in (await duty.send_form("/as-at", nhs_number="9990000042", **form)).text
        assert (await duty.send_form("/as-at", nhs_number="9990000018", on="x", time="y")).status_code == 400
    asked = [actor for actor, action, _ in await pages.acts(NORTHFOLD) if action == "list.asked_as_at"]
    assert asked == [DEE, DEE]
    async with pages.signed_in(ASH) as worker:
        assert (await worker.get("/as-at")).status_code == 403


async def test_the_commands_answer_and_the_number_comes_by_standard_input(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio
    import base64

    await world.list_children(CASEY)
    keys = ",".join(f"{name}:{base64.b64encode(key).decode()}" for name, key in FIELD_KEYS.items())
    monkeypatch.setenv("CPIS_DATABASE_URL", world.database.url)
    monkeypatch.setenv("CPIS_FIELD_KEYS", keys)
    monkeypatch.setenv("CPIS_INDEX_KEY", base64.b64encode(INDEX_KEY).decode())
    at = (world.clock.now() + timedelta(minutes=1)).isoformat()

    def invoke(*arguments: str, given: str = "") -> tuple[int, str]:
        result = CliRunner().invoke(app, list(arguments), input=given)
        return result.exit_code, result.output

    code, output = await asyncio.to_thread(invoke, "children", "as-at", "--at", at, given="999 000 0018\n")
    assert code == 0 and "Casey Tester" in output and "list.officer@706.example.org" in output
    assert (await asyncio.to_thread(invoke, "children", "as-at", "--at", "soon", given="9990000018\n"))[0] == 2
    assert (await asyncio.to_thread(invoke, "children", "as-at", "--at", at, given="12\n"))[0] == 2
    assert await asyncio.to_thread(invoke, "missed", "--json") == (0, "[]\n")
    _, told = await asyncio.to_thread(invoke, "missed")
    assert "no night has been looked through yet" in told
    await world.receive(hl7(nhs_number="9990000034", family="NOBODY"))
    night = [("n1", authority_owner("706"), "2026-02-14")]
    async with world.database.writing() as connection:
        await jobs.add_jobs(connection, jobs.FIND_MISSED, night, world.clock.now())
        # 22:30 on a summer evening is half past eleven in London.
        await coverage.note_confirmation(connection, "706", datetime(2026, 7, 1, 22, 30, tzinfo=UTC))
        await connection.execute(update(table(Job)).values(state="done", done_at=world.clock.now()))
    _, told = await asyncio.to_thread(invoke, "missed")
    assert f"back to {world.clock.now():%d %B %Y} (London)" in told and "in the night of 2026-02-14" in told
    assert "List of 706 Northfold Borough Council: confirmed" in told and "List of 707" in told
    assert "safe" not in told.lower() and "│" not in told
    _, told = await asyncio.to_thread(invoke, "children", "coverage", "--authority", "706")
    assert "List confirmed: 01 July 2026 at 23:30 (London)" in told
