"""Nothing waits without an owner and a limit: what is overdue moves up, what a person took does not."""

from __future__ import annotations

from datetime import date, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import event, select, text, update
from structlog.testing import capture_logs

from broker.domain.alerts import DUTY_DESK
from broker.jobs.runner import JobOptions, JobRunner
from broker.storage import audit, deadlines, ledger
from broker.storage.alerts import acknowledge_alert
from broker.storage.deadlines import HELD_AFTERWARDS
from broker.storage.quarantine import OPERATORS
from broker.storage.tables import Alert, AuditRow, Quarantined, Review, table
from tests.world import CASEY, World, hl7

LIMIT = timedelta(minutes=15)


@pytest.fixture
async def waiting(world: World) -> World:
    """An alert, a review and a quarantined message, all held by somebody and due in fifteen minutes."""
    await world.list_children(CASEY)
    await world.receive(
        hl7(),
        hl7(visit="V2", family="OTHER", given="SOMEBODY", birth_date=date(2011, 1, 1)),
        hl7().replace(b"PID|", b"ZZZ|"),
    )
    return world


def runner(world: World, **options: Any) -> JobRunner:
    return JobRunner(world.database, world.keyring, world.clock, world.rules, JobOptions(**options))


async def run_jobs(world: World) -> None:
    await runner(world).run_once()


async def held(world: World) -> dict[str, tuple[str, int, str]]:
    """Holder, level and state of the three."""
    found = {}
    async with world.database.reading() as connection:
        for model in HELD_AFTERWARDS:
            row = (await connection.execute(select(table(model)))).one_or_none()
            if row is not None:
                found[table(model).name] = (row.held_by, row.level, row.state)
    return found


async def escalations(world: World) -> list[tuple[str, str, str]]:
    """Owner, action and reason of every escalation on record, once their chains are seen to be whole."""
    rows = table(AuditRow)
    async with world.database.reading() as connection:
        found = await connection.execute(
            select(rows.c.owner, rows.c.action, rows.c.reason)
            .where(rows.c.action.like("%.escalated"))
            .order_by(rows.c.owner, rows.c.sequence)
        )
        escalated = [(row.owner, row.action, row.reason) for row in found]
        for owner in await audit.list_chains(connection):
            assert await audit.verify_chain(connection, owner) is None
    return escalated


async def test_what_is_overdue_moves_up_with_owner_level_and_audit(waiting: World) -> None:
    assert await held(waiting) == {
        "alerts": ("W1", 0, "open"),
        "reviews": ("W1", 0, "open"),
        "quarantine": (OPERATORS, 0, "open"),
    }
    waiting.clock.advance(LIMIT)
    with capture_logs() as lines:
        await run_jobs(waiting)
    assert await held(waiting) == {
        "alerts": (DUTY_DESK, 1, "open"),
        "reviews": (DUTY_DESK, 1, "open"),
        "quarantine": (OPERATORS, 1, "open"),
    }
    assert await escalations(waiting) == [
        ("authority:706", "alerts.escalated", "level 1"),
        ("authority:706", "reviews.escalated", "level 1"),
        ("broker:operations", "quarantine.escalated", "level 1"),
    ]
    assert [(line["owner"], line["count"]) for line in lines if line["event"] == "escalated"] == [
        ("authority:706", 2),
        ("broker:operations", 1),
    ]


async def test_nothing_moves_before_its_limit(waiting: World) -> None:
    waiting.clock.advance(LIMIT - timedelta(microseconds=1))
    await run_jobs(waiting)
    assert {level for _, level, _ in (await held(waiting)).values()} == {0}
    assert await escalations(waiting) == []


async def test_within_a_limit_it_moves_once_and_after_the_next_limit_once_more(waiting: World) -> None:
    levels = []
    for step in (LIMIT, timedelta(0), LIMIT - timedelta(microseconds=1), timedelta(microseconds=1), timedelta(0)):
        waiting.clock.advance(step)
        await run_jobs(waiting)
        levels.append({level for _, level, _ in (await held(waiting)).values()})
    assert levels == [{1}, {1}, {1}, {2}, {2}]
    assert len(await escalations(waiting)) == 6


async def test_two_job_parts_move_it_once(waiting: World) -> None:
    waiting.clock.advance(LIMIT)
    await run_jobs(waiting)
    await run_jobs(waiting)
    assert len(await escalations(waiting)) == 3


async def test_what_a_person_took_stays_with_that_person(waiting: World) -> None:
    [alert] = await waiting.alerts()
    async with waiting.database.writing() as connection:
        assert await acknowledge_alert(
            connection, "authority:706", alert.alert.alert_id, by="ash@706.example.org", now=waiting.clock.now()
        )
        for model in (Review, Quarantined):
            await connection.execute(update(table(model)).values(state="done"))
    waiting.clock.advance(LIMIT * 10)
    await run_jobs(waiting)
    assert await held(waiting) == {
        "alerts": ("W1", 0, "acknowledged"),
        "reviews": ("W1", 0, "done"),
        "quarantine": (OPERATORS, 0, "done"),
    }
    assert await escalations(waiting) == []


async def test_what_was_escalated_can_still_be_taken(waiting: World) -> None:
    waiting.clock.advance(LIMIT)
    await run_jobs(waiting)
    [alert] = await waiting.alerts()
    async with waiting.database.writing() as connection:
        assert await acknowledge_alert(
            connection, "authority:706", alert.alert.alert_id, by="dee@706.example.org", now=waiting.clock.now()
        )
    waiting.clock.advance(LIMIT * 2)
    await run_jobs(waiting)
    assert (await held(waiting))["alerts"] == (DUTY_DESK, 1, "acknowledged")


async def test_the_longest_overdue_move_first_when_there_are_too_many_for_one_round(world: World) -> None:
    await world.list_children(CASEY)
    for number in range(5):
        await world.receive(hl7(visit=f"V{number}"))
        world.clock.advance(timedelta(seconds=1))
    world.clock.advance(LIMIT)
    await runner(world, overdue_max=2).run_once()
    alerts = sorted(await world.alerts(), key=lambda alert: alert.raised_at)
    assert [alert.level for alert in alerts] == [1, 1, 0, 0, 0]
    await runner(world, overdue_max=10).run_once()
    assert {alert.level for alert in await world.alerts()} == {1}


async def test_a_look_back_that_fails_does_not_stop_escalation(waiting: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Casey")

    await waiting.list_children(CASEY.replace("W1", "W2"))
    monkeypatch.setattr("broker.jobs.runner.look_back", fail)
    waiting.clock.advance(LIMIT)
    with capture_logs() as lines:
        await run_jobs(waiting)
    assert {level for _, level, _ in (await held(waiting)).values()} == {1}
    assert [(line["kind"], line["error"]) for line in lines if line["event"] == "job_failed"] == [
        ("look_back", "RuntimeError")
    ]


async def test_looking_back_fails_as_a_whole_and_escalation_goes_on(
    waiting: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Casey")

    monkeypatch.setattr("broker.storage.jobs.claim_jobs", fail)
    waiting.clock.advance(LIMIT)
    await run_jobs(waiting)
    assert {level for _, level, _ in (await held(waiting)).values()} == {1}


async def test_a_failed_job_is_claimed_again_when_its_lease_runs_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError

    await world.receive(hl7())
    await world.list_children(CASEY)
    monkeypatch.setattr("broker.jobs.runner.look_back", fail)
    assert await runner(world).run_once() == 1
    monkeypatch.undo()
    assert await runner(world).run_once() == 0
    world.clock.advance(JobOptions().lease)
    assert await runner(world).run_once() == 1
    assert len(await world.alerts()) == 1


async def test_the_second_law_balances_and_an_alert_without_a_holder_breaks_it(waiting: World) -> None:
    async with waiting.database.writing() as connection:
        counted = await ledger.count_alerts(connection)
        assert (counted.raised, counted.open_with_owner, counted.balances) == (1, 1, True)
        await connection.execute(text("UPDATE alerts SET held_by = ''"))
        assert not (await ledger.count_alerts(connection)).balances
        await connection.execute(text("UPDATE alerts SET held_by = 'W1', state = 'closed'"))
        assert not (await ledger.count_alerts(connection)).balances
        await connection.execute(text("UPDATE alerts SET closed_rule = 'withdrawn'"))
        counted = await ledger.count_alerts(connection)
        assert (counted.closed_by_rule, counted.balances) == (1, True)


def test_everything_that_can_be_overdue_says_who_holds_it_then() -> None:
    due = {name for name, found in Alert.metadata.tables.items() if "due_by" in found.columns}
    # A notice that nobody has read at the bell becomes a task, which is what somebody holds; what was sent is a record.
    assert {table(model).name for model in deadlines.HELD_AFTERWARDS} == due - {"school_notices", "notice_sendings"}
    assert all(deadlines.HELD_AFTERWARDS.values())


async def test_a_round_in_which_nothing_is_due_writes_nothing(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7())
    idle = runner(world)
    for _ in range(3):
        await idle.run_once()
    begun: list[str] = []
    writer = world.database._writer.sync_engine
    on_statement = partial(note_write, begun)
    event.listen(writer, "before_cursor_execute", on_statement)
    await idle.run_once()
    assert begun == []
    world.clock.advance(world.rules.escalation + timedelta(seconds=1))
    await idle.run_once()
    event.remove(writer, "before_cursor_execute", on_statement)
    assert any("UPDATE alerts" in each for each in begun), "what is due is done"


def note_write(begun: list[str], _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
    if not statement.startswith("SELECT") or "FOR UPDATE" in statement:
        begun.append(statement)
