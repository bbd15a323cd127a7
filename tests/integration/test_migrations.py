"""The schema, step by step: what the steps make is what the code expects, however and by whomever they are taken."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import CheckConstraint, Connection, UniqueConstraint, inspect, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError

from broker.domain.patterns import PatternKind
from broker.storage import tables
from broker.storage.database import POSTGRES_SETTINGS, Database
from broker.storage.migrations import _config, migrate, schema
from broker.storage.revision import is_current, newest
from broker.storage.tables import Owner, StoredOffset, table
from schemas.alert import NoticeKind
from schemas.coverage import CoverageReason
from schemas.delivery import ChannelName, DeliveryState
from schemas.directory import KeptAnswer
from schemas.encompass import ContactRole, DayKind, EstablishmentKind, NoticeState, Release, TaskKind
from schemas.record import PositionOutcome
from schemas.trace import TraceState
from schemas.upload import UploadFormat, UploadKind
from tests.world import World

assert tables


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An empty database on each engine."""
    opened = Database(database_url)
    yield opened
    await opened.close()


def differences(connection: Connection) -> list[Any]:
    context = MigrationContext.configure(
        connection, opts={"compare_type": True, "compare_server_default": True, "target_metadata": schema()}
    )
    return list(compare_metadata(context, schema()))


async def test_the_steps_make_exactly_what_the_code_expects(database: Database) -> None:
    assert await migrate(database) == newest()
    async with database.reading() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_difference_would_be_noticed(database: Database) -> None:
    await migrate(database)
    async with database.writing() as connection:
        await connection.execute(text("DROP INDEX ix_visits_heard_at"))
        await connection.execute(text("ALTER TABLE owners ADD COLUMN surplus INTEGER"))
    async with database.reading() as connection:
        found = await connection.run_sync(differences)
    assert sorted(str(difference[0]) for difference in found) == ["add_index", "remove_column"]


def constraints_in_database(connection: Connection) -> set[tuple[str, str]]:
    inspector = inspect(connection)
    return {
        (name, str(found["name"]))
        for name in inspector.get_table_names()
        for found in (*inspector.get_check_constraints(name), *inspector.get_unique_constraints(name))
    }


async def test_the_constraints_are_there_too(database: Database) -> None:
    """Autogenerate does not compare CHECK constraints."""
    await migrate(database)
    wanted = {
        (name, str(constraint.name))
        for name, found in schema().tables.items()
        for constraint in found.constraints
        if isinstance(constraint, CheckConstraint | UniqueConstraint)
    }
    assert len(wanted) >= 8
    async with database.reading() as connection:
        assert await connection.run_sync(constraints_in_database) == wanted


async def test_migrating_twice_is_harmless(world: World) -> None:
    async with world.database.reading() as connection:
        before = (await connection.execute(select(table(Owner)).order_by("id"))).all()
    assert await migrate(world.database) == newest()
    async with world.database.reading() as connection:
        assert (await connection.execute(select(table(Owner)).order_by("id"))).all() == before


async def test_an_empty_database_is_not_current_and_a_migrated_one_is(database: Database) -> None:
    assert not await is_current(database)
    await migrate(database)
    assert await is_current(database)


async def test_parts_that_start_together_may_all_migrate(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(4)]
    try:
        assert await asyncio.gather(*(migrate(each) for each in databases)) == [newest()] * 4
    finally:
        for each in databases:
            await each.close()


MIGRATE = """
import asyncio, sys
from broker.storage.database import Database
from broker.storage.migrations import migrate
async def main():
    database = Database(sys.argv[1])
    sys.stdin.readline()
    print(await migrate(database))
    await database.close()
asyncio.run(main())
"""


async def test_processes_that_start_together_may_all_migrate(database_url: str) -> None:
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", MIGRATE, database_url, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        for _ in range(2)
    ]
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    assert [said.decode().strip() for said, _ in answers] == [newest()] * 2


async def test_who_waits_for_another_to_migrate_waits_longer_than_for_any_other_lock(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(POSTGRES_SETTINGS, "lock_timeout", "50ms")
    first, second = Database(postgres_url), Database(postgres_url)
    try:
        async with first.writing() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(7215041)"))
            waiting = asyncio.create_task(migrate(second))
            done, _ = await asyncio.wait([waiting], timeout=1)
            assert not done
        assert await waiting == newest()
    finally:
        await first.close()
        await second.close()


async def test_a_step_that_fails_leaves_nothing_half_done(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import op

    made = op.create_table
    calls = 0

    def fail_at_the_tenth(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 10:
            raise RuntimeError("cut off")
        return made(*arguments, **named)

    monkeypatch.setattr(op, "create_table", fail_at_the_tenth)
    with pytest.raises(RuntimeError, match="cut off"):
        await migrate(database)
    monkeypatch.undo()
    async with database.reading() as connection:
        assert await connection.run_sync(lambda sync: inspect(sync).get_table_names()) == []
    assert await migrate(database) == newest()


async def test_what_was_in_quarantine_before_there_were_replays_learns_whose_it_is(database: Database) -> None:
    async with database.writing() as connection:
        await connection.run_sync(lambda sync: command.upgrade(_config(sync), "0001"))
        for owner in ("broker:operations", "organisation:RZ1"):
            await connection.execute(text(f"INSERT INTO owners VALUES ('{owner}', 'X')"))
        for offset, owner in ((1, "organisation:RZ1"), (2, "broker:operations")):
            position = ROWS["handled_positions"] | {"position": offset, "owner": owner, "outcome": "quarantined"}
            await connection.execute(schema().tables["handled_positions"].insert(), position)
            item = ROWS["quarantine"] | {"id": f"q{offset}", "position": offset}
            await connection.execute(schema().tables["quarantine"].insert(), item)
    assert await migrate(database) == newest()
    async with database.reading() as connection:
        rows = (await connection.execute(select(table(tables.Quarantined)).order_by("position"))).all()
    assert [(row.sender, row.attempts, row.decision) for row in rows] == [("RZ1", 0, None), ("", 0, None)]


async def test_lanes_and_what_waits_in_them_outlast_the_step_that_gives_them_another_channel(
    database: Database,
) -> None:
    async with database.writing() as connection:
        await connection.run_sync(lambda sync: command.upgrade(_config(sync), "0002"))
    async with database.writing() as connection:
        await connection.execute(text("INSERT INTO owners VALUES ('authority:706', 'Northfold Borough Council')"))
        await connection.execute(schema().tables["lanes"].insert(), LANE | {"next_due_at": NOW, "epoch": 7})
        await connection.execute(schema().tables["deliveries"].insert(), ROWS["deliveries"])
    assert await migrate(database) == newest()
    async with database.reading() as connection:
        [lane] = (await connection.execute(select(table(tables.Lane)))).all()
        [delivery] = (await connection.execute(select(table(tables.Delivery)))).all()
    assert (lane.id, lane.channel, lane.next_due_at, lane.epoch) == (LANE["id"], "topic", NOW, 7)
    assert (delivery.id, delivery.lane) == ("d1", lane.id)
    with pytest.raises(IntegrityError):
        async with database.writing() as connection:
            await connection.execute(schema().tables["lanes"].delete())


# What the tables refuse


NOW = datetime(2026, 2, 14, 3, 12, tzinfo=UTC)
VISIT = {"id": "v1", "owner": "organisation:RZ1", "sender": "RZ1", "opened_at": NOW, "heard_at": NOW}
LANE = {"id": "topic:authority:706", "channel": "topic", "owner": "authority:706", "epoch": 0}
ROWS: dict[str, dict[str, Any]] = {
    "test_feeds": {"sender": "RZ1", "seen_on": date(2026, 2, 14), "owner": "organisation:RZ1"},
    "handled_positions": {
        "topic": "attendances",
        "log_id": "l",
        "partition": 0,
        "position": 1,
        "owner": "authority:706",
        "marker": b"m",
        "outcome": "alerted",
        "reason": "",
        "handled_at": NOW,
    },
    "alerts": {
        "id": "a1",
        "owner": "authority:706",
        "authority": "706",
        "visit_id": "v1",
        "role": "social_care",
        "sealed": b"",
        "held_by": "W1",
        "level": 0,
        "state": "open",
        "raised_at": NOW,
        "due_by": NOW,
    },
    "lanes": LANE | {"id": "another"},
    "deliveries": {
        "id": "d1",
        "owner": "authority:706",
        "lane": LANE["id"],
        "event_type": "e",
        "sealed": b"",
        "state": "waiting",
        "attempts": 0,
        "created_at": NOW,
    },
    "reviews": {
        "id": "r1",
        "owner": "authority:706",
        "visit_id": "v1",
        "entry_id": "e1",
        "sealed": b"",
        "held_by": "W1",
        "level": 0,
        "state": "open",
        "opened_at": NOW,
        "due_by": NOW,
    },
    "quarantine": {
        "id": "q1",
        "owner": "broker:operations",
        "topic": "attendances",
        "log_id": "l",
        "partition": 0,
        "position": 1,
        "reason": "no_pid",
        "detail": "",
        "sealed": b"",
        "held_by": "operators",
        "level": 0,
        "state": "open",
        "kept_at": NOW,
        "due_by": NOW,
    },
    "replays": {
        "id": "p1",
        "owner": "broker:operations",
        "topic": "attendances",
        "asked": "from 0 to end",
        "ranges": "[]",
        "requested_by": "Olive Operator (cli:olive)",
        "reason": "",
        "state": "open",
        "requested_at": NOW,
    },
    "sites": {
        "code": "RZ9",
        "owner": "organisation:RZ1",
        "name": "Fenwick General Hospital",
        "authorities": "",
        "replies_for_adults": False,
        "not_understood": "AA",
        "peers": "",
        "credential_digest": b"",
        "sealed": b"",
    },
    "alert_notices": {
        "id": "n1",
        "owner": "authority:706",
        "alert_id": "a1",
        "kind": "admitted",
        "is_urgent": False,
        "raised_at": NOW,
    },
    "missed_alerts": {
        "id": "m1",
        "owner": "authority:706",
        "authority": "706",
        "visit_id": VISIT["id"],
        "entry_id": "e1",
        "cause": "listed_after",
        "held_by": "duty",
        "state": "open",
        "visited_at": NOW,
        "found_at": NOW,
    },
    "jobs": {
        "id": "j1",
        "owner": "authority:706",
        "kind": "look_back",
        "subject": "e1",
        "state": "open",
        "created_at": NOW,
        "due_at": NOW,
        "epoch": 0,
    },
    "entry_traces": {
        "entry_id": "e1",
        "owner": "authority:706",
        "state": "unverified",
        "identity": b"",
        "nhs_index": b"",
        "attempts": 0,
        "opened_at": NOW,
    },
    "coverage_items": {
        "id": "c1",
        "owner": "authority:706",
        "reason": "mismatch",
        "held_by": "list_officers",
        "level": 0,
        "state": "open",
        "opened_at": NOW,
        "due_by": NOW,
    },
    "mesh_files": {
        "id": "m1",
        "owner": "authority:706",
        "held_by": "operators",
        "state": "open",
        "kept_at": NOW,
        "due_by": NOW,
    },
    "forces": {
        "code": "ZF1",
        "owner": "authority:706",
        "name": "Sampleshire Police",
        "statement": "s",
        "withdrawn_statement": "w",
        "release": "automatic",
        "profile": "standard",
        "under_school_age": "nobody",
        "confirmed_days_max": 400,
        "training_required": True,
        "credential_digest": b"",
    },
    "establishments": {
        "urn": "900002",
        "owner": "authority:706",
        "name": "Hill Top School",
        "kind": "school",
        "authority": "706",
        "status": "open",
        "sealed": b"",
    },
    "safeguarding_contacts": {
        "urn": "900001",
        "contact_id": "A1",
        "owner": "authority:706",
        "role": "lead",
        "sealed": b"",
    },
    "school_days": {
        "authority": "706",
        "urn": "",
        "kind": "term",
        "first_on": NOW.date(),
        "last_on": NOW.date(),
        "owner": "authority:706",
    },
    "school_notices": {
        "id": "n1",
        "owner": "authority:706",
        "incident_id": "i1",
        "force": "ZF1",
        "urn": "900001",
        "authority": "706",
        "version": 1,
        "state": "waiting",
        "calendar_is_assumed": False,
        "sealed": b"",
        "planned_at": NOW,
        "send_at": NOW,
        "due_by": NOW,
    },
    "encompass_tasks": {
        "id": "t1",
        "owner": "authority:706",
        "incident_id": "i1",
        "kind": "look_up",
        "sealed": b"",
        "held_by": "coordinator",
        "level": 0,
        "state": "open",
        "opened_at": NOW,
        "due_by": NOW,
    },
}
SCHOOL: dict[str, Any] = ROWS["establishments"] | {"urn": "900001"}
INCIDENT: dict[str, Any] = {
    "id": "i1",
    "owner": "authority:706",
    "force": "ZF1",
    "version": 1,
    "is_withdrawn": False,
    "sealed": b"",
    "received_at": NOW,
    "reported_at": NOW,
}
ENTRY: dict[str, Any] = {
    "id": "e1",
    "owner": "authority:706",
    "authority": "706",
    "upload_id": "u1",
    "nhs_index": b"",
    "sealed": b"",
    "changed_at": NOW,
}
UPLOAD: dict[str, Any] = {
    "id": "u1",
    "owner": "authority:706",
    "authority": "706",
    "file_hash": "0" * 64,
    "uploaded_by": "list.officer@706.example.org",
    "uploaded_at": NOW,
    "rows_loaded": 1,
    "rows_refused": 0,
    "kind": "full",
}
ROWS |= {
    "list_uploads": UPLOAD | {"id": "u2"},
    "held_uploads": {
        "id": "h1",
        "owner": "authority:706",
        "authority": "706",
        "kind": "changes",
        "format": "csv",
        "file_hash": "0" * 64,
        "uploaded_by": "list.officer@706.example.org",
        "uploaded_at": NOW,
        "rows_good": 20,
        "rows_refused": 0,
        "ends": 20,
        "deletes": 0,
        "doubles": 0,
        "current": 40,
        "held_by": "list_officers",
        "level": 0,
        "state": "open",
        "due_by": NOW,
    },
    "pattern_rules": {
        "authority": "706",
        "kind": "visits",
        "version": 1,
        "owner": "authority:706",
        "count_min": 3,
        "window_h": 24,
        "words": "Seen three times in a day",
        "state": "draft",
        "changed_at": NOW,
        "changed_by": "list.officer@706.example.org",
    },
    "list_landings": {
        "upload_id": UPLOAD["id"],
        "owner": "authority:706",
        "authority": "706",
        "kind": "full",
        "format": "csv",
        "uploaded_by": "list.officer@706.example.org",
        "uploaded_at": NOW,
        "leased_until": NOW,
    },
    "nudges": {
        "item": "a1",
        "delivery": "d1",
        "kind": "alerts",
        "owner": "authority:706",
        "level": 0,
        "nudged_at": NOW,
    },
    "list_differences": {
        "id": "d1",
        "owner": "authority:706",
        "authority": "706",
        "entry_id": "e1",
        "upload_id": UPLOAD["id"],
        "held_by": "list_officers",
        "level": 0,
        "state": "open",
        "opened_at": NOW,
        "due_by": NOW,
    },
}
CLOSED: dict[str, tuple[str, list[str]]] = {
    "handled_positions": ("outcome", [outcome.value for outcome in PositionOutcome]),
    "alerts": ("state", [state.value for state in tables.AlertState]),
    "lanes": ("channel", [channel.value for channel in ChannelName]),
    "deliveries": ("state", [state.value for state in DeliveryState]),
    "reviews": ("state", [state.value for state in tables.ItemState]),
    "quarantine": ("state", [state.value for state in tables.ItemState]),
    "replays": ("state", [state.value for state in tables.ItemState]),
    "sites": ("not_understood", [answer.value for answer in KeptAnswer]),
    "alert_notices": ("kind", [kind.value for kind in NoticeKind]),
    "missed_alerts": ("state", [state.value for state in tables.ItemState]),
    "jobs": ("state", [state.value for state in tables.ItemState]),
    "entry_traces": ("state", [state.value for state in TraceState]),
    "coverage_items": ("reason", [reason.value for reason in CoverageReason]),
    "mesh_files": ("state", [state.value for state in tables.ItemState]),
    "list_uploads": ("kind", [kind.value for kind in UploadKind]),
    "list_landings": ("kind", [kind.value for kind in UploadKind]),
    "held_uploads": ("state", [state.value for state in tables.ItemState]),
    "list_differences": ("state", [state.value for state in tables.ItemState]),
    "pattern_rules": ("kind", [kind.value for kind in PatternKind]),
    "forces": ("release", [release.value for release in Release]),
    "establishments": ("kind", [kind.value for kind in EstablishmentKind]),
    "safeguarding_contacts": ("role", [role.value for role in ContactRole]),
    "school_days": ("kind", [kind.value for kind in DayKind]),
    "school_notices": ("state", [state.value for state in NoticeState]),
    "encompass_tasks": ("kind", [kind.value for kind in TaskKind]),
}


async def insert(world: World, name: str, row: dict[str, Any]) -> None:
    """Insert one row with what it refers to, and take all of it back."""
    found = schema().tables
    async with world.database.writing() as connection:
        await connection.execute(found["visits"].insert(), VISIT)
        await connection.execute(found["lanes"].insert(), LANE)
        await connection.execute(found["list_uploads"].insert(), UPLOAD)
        await connection.execute(found["list_entries"].insert(), ENTRY)
        if name == "alert_notices":
            await connection.execute(found["alerts"].insert(), ROWS["alerts"] | {"id": row["alert_id"]})
        await connection.execute(found["establishments"].insert(), SCHOOL)
        await connection.execute(found["incidents"].insert(), INCIDENT)
        await connection.execute(found[name].insert(), row)
        await connection.rollback()


async def test_every_closed_vocabulary_is_held_by_the_database(world: World) -> None:
    assert {name for name, found in schema().tables.items() if has_check(found)} == set(CLOSED)
    for name, (column, words) in CLOSED.items():
        for word in words:
            await insert(world, name, ROWS[name] | {column: word})
        for word in ("", "unheard_of", words[0].swapcase(), f"{words[0]} "):
            with pytest.raises(IntegrityError):
                await insert(world, name, ROWS[name] | {column: word})


async def test_a_file_of_every_form_and_kind_may_be_held(world: World) -> None:
    for form in UploadFormat:
        for kind in UploadKind:
            await insert(world, "held_uploads", ROWS["held_uploads"] | {"format": form.value, "kind": kind.value})


def has_check(found: Any) -> bool:
    return any(isinstance(constraint, CheckConstraint) for constraint in found.constraints)


async def test_a_row_without_an_owner_that_exists_is_refused(world: World) -> None:
    for name, row in ROWS.items():
        for owner in ("authority:799", None):
            with pytest.raises(IntegrityError):
                await insert(world, name, row | {"owner": owner})


async def test_every_table_but_the_logs_own_bookkeeping_has_an_owner() -> None:
    ownerless = {name for name, found in schema().tables.items() if "owner" not in found.columns}
    assert ownerless == {"owners", "handled_markers", "stored_offsets", "log_gaps", "poison_attempts"}


async def test_an_alert_exists_once_per_visit_authority_and_role(world: World) -> None:
    found = schema().tables
    with pytest.raises(IntegrityError):
        async with world.database.writing() as connection:
            await connection.execute(found["visits"].insert(), VISIT)
            await connection.execute(found["alerts"].insert(), [ROWS["alerts"], ROWS["alerts"] | {"id": "a2"}])


def offset_row(at: datetime) -> dict[str, Any]:
    return {
        "group_name": "g",
        "topic": "t",
        "partition": 0,
        "log_id": "l",
        "first_offset": 0,
        "next_offset": 2**40,
        "skipped": 0,
        "stopped_cleanly": True,
        "updated_at": at,
    }


async def test_a_naive_instant_is_refused(world: World) -> None:
    for naive in (NOW.replace(tzinfo=None), datetime(2026, 2, 14)):  # noqa: DTZ001 - what must be refused
        with pytest.raises((StatementError, AssertionError)) as refused:
            async with world.database.writing() as connection:
                await connection.execute(table(StoredOffset).insert(), offset_row(naive))
        assert not isinstance(refused.value, DBAPIError)


async def test_instants_come_back_aware_and_in_utc_to_the_microsecond(world: World) -> None:
    for instant in (NOW, NOW.astimezone(timezone(timedelta(hours=1))), NOW + timedelta(microseconds=7)):
        async with world.database.writing() as connection:
            await connection.execute(table(StoredOffset).insert(), offset_row(instant))
            found = (await connection.execute(select(table(StoredOffset).c.updated_at))).scalar_one()
            next_offset = (await connection.execute(select(table(StoredOffset).c.next_offset))).scalar_one()
            await connection.rollback()
        assert found == instant
        assert found.utcoffset() == timedelta(0)
        assert next_offset == 2**40


async def test_an_error_of_the_database_never_carries_the_values(world: World) -> None:
    with pytest.raises(IntegrityError) as refused:
        await insert(world, "jobs", ROWS["jobs"] | {"subject": "CASEY TESTER", "state": "CASEY"})
    told = str(refused.value)
    assert "CASEY" not in told.replace(str(refused.value.orig), "")
