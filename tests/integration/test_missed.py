"""By night, what should have alerted and did not is found, with the reason, once."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import delete, update

from broker.domain.visits import LONDON
from broker.jobs.runner import JobOptions, JobRunner
from broker.storage import missed
from broker.storage.jobs import FIND_MISSED
from broker.storage.missed import Missed
from broker.storage.tables import ItemState, Job, ListEntry, ListVersion, table
from tests.pages import ASH, DEE, NORTHFOLD, Pages
from tests.world import CASEY, World, hl7

OTHER_NUMBER = CASEY.replace("9990000018", "9990000042")
OTHER_PERSON = CASEY.replace("Tester,Casey,2015-03-02", "Booker,Alma,2011-01-01")


async def pass_night(world: World) -> list[Missed]:
    """Another night has come; what was found by its end."""
    world.clock.advance(timedelta(days=1))
    runner = JobRunner(world.database, world.keyring, world.clock, world.rules, JobOptions())
    jobs = table(Job)
    for _ in range(20):
        await runner.run_once()
        async with world.database.reading() as connection:
            waiting = await connection.execute(jobs.select().where(jobs.c.kind == FIND_MISSED, jobs.c.state == "open"))
            if not waiting.all():
                break
    async with world.database.reading() as connection:
        return await missed.list_missed(connection, owner=NORTHFOLD, rows_max=10)


async def forget_look_backs(world: World) -> None:
    """As if the look-back that a list change left had been lost."""
    async with world.database.writing() as connection:
        await connection.execute(delete(table(Job)))


@pytest.mark.parametrize(
    ("before", "after", "cause"),
    [
        (None, CASEY, "listed_after"),
        (OTHER_NUMBER, CASEY, "list_number_corrected"),
        (OTHER_PERSON, CASEY, "list_row_corrected"),
    ],
)
async def test_a_missed_alert_is_raised_late_with_its_cause_and_once(
    world: World, before: str | None, after: str, cause: str
) -> None:
    if before is not None:
        await world.list_children(before)
    world.clock.advance(timedelta(minutes=1))
    await world.receive(hl7())
    world.clock.advance(timedelta(minutes=1))
    await world.list_children(after)
    await forget_look_backs(world)
    assert await world.alerts() == []

    [found] = await pass_night(world)
    [alert] = await world.alerts()
    assert (found.cause.value, found.alert_id, found.state) == (cause, alert.alert.alert_id, ItemState.DONE)
    assert alert.alert.late
    assert await pass_night(world) == [found]
    assert len(await world.alerts()) == 1


async def test_a_look_back_that_waits_is_left_its_work(world: World) -> None:
    await world.receive(hl7())
    await world.list_children(CASEY)
    await world.run_jobs()
    assert len(await world.alerts()) == 1
    assert await pass_night(world) == []


async def test_what_nobody_can_explain_is_said_to_be_so(world: World) -> None:
    """The list said it all when the person came, and nobody was alerted: the fault would be ours."""
    await world.receive(hl7())
    await world.list_children(CASEY)
    await forget_look_backs(world)
    versions = table(ListVersion)
    async with world.database.writing() as connection:
        await connection.execute(update(versions).values(known_from=world.clock.now() - timedelta(days=1)))
    [found] = await pass_night(world)
    assert found.cause.value == "unexplained"


async def test_what_is_older_than_the_look_back_is_listed_and_waits_for_a_person(pages: Pages) -> None:
    """Casey's visit is known to Northfold; Eastmere lists Casey when it is too late to alert."""
    world = pages.world
    world.clock.advance(timedelta(minutes=1))
    await world.list_children(CASEY.replace("W1", "W7"), authority="707")
    await forget_look_backs(world)
    world.clock.advance(world.rules.look_back)
    assert await pass_night(world) == []
    async with world.database.reading() as connection:
        [found] = await missed.list_missed(connection, owner="authority:707", rows_max=10)
    assert (found.alert_id, found.state, found.held_by) == (None, ItemState.OPEN, "duty")
    assert await world.alerts("707") == []
    async with world.database.writing() as connection:
        await connection.execute(update(missed._missed).values(owner=NORTHFOLD))
    async with pages.signed_in(DEE) as duty:
        shown = (await duty.get("/missed")).text
        assert "CASEY TESTER" in shown
        assert "Listed after the person came" in shown
        came = found.visited_at.astimezone(LONDON).strftime("%H:%M")
        assert came in shown
        async with world.database.writing() as connection:
            await connection.execute(update(table(ListEntry)).values(is_restricted=True))
        assert came not in (await duty.get("/missed")).text, "when a restricted person came is withheld"
        assert (await duty.send_form(f"/missed/{found.id}/settle")).status_code == 303
        assert (await duty.send_form(f"/missed/{found.id}/settle")).status_code == 404
        assert "Seen to by" in (await duty.get("/missed")).text
    assert (DEE, "missed.seen_to", found.id) in await pages.acts(NORTHFOLD)
    async with pages.signed_in(ASH) as worker:
        assert (await worker.get("/missed")).status_code == 403
