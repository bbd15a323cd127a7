"""What may end or vanish of a list: held files, full lists and what they leave out, and what the list said before."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from structlog.testing import capture_logs

from adapters.errors import MalformedFile
from broker.domain.visits import london_day
from broker.jobs.runner import JobOptions, JobRunner
from broker.list_comparison import HOLD_WINDOW, UploadOptions
from broker.list_decision import NothingToDecide, decide_difference, reject_upload
from broker.list_upload import Progress, confirm_upload, resume_landings, upload_children
from broker.storage import audit, child_lists, directory, held_uploads, landings, list_differences
from broker.storage.child_lists import derive_entry_id
from broker.storage.list_differences import Difference, DifferenceDecision
from broker.storage.tables import AlertState, HeldUploadPart, ListLandingPart, ListUpload, ListVersion, table
from schemas.child_list import ChildListEntry
from schemas.identifiers import authority_owner
from schemas.upload import FileCode, RecordCode, UploadFormat, UploadKind, UploadReport, UploadState
from tests.factories import make_entry, make_nhs_number
from tests.unit.test_cpis_xml import child, plan, record, upload
from tests.world import CASEY, CHILDREN_COLUMNS, World, hl7, open_world

OFFICER, LEAD = "list.officer@706.example.org", "lee@706.example.org"
OWNER = authority_owner("706")
FEW = UploadOptions(hold_entries=2)


def row(number: int, *, end: str = "", delete: str = "", start: str = "2026-01-10", family: str = "Tester") -> str:
    """One listed child; number 1 is Casey."""
    if number == 1:
        return CASEY.replace("2026-01-10,,", f"{start},{end},") + f",{delete}"
    nhs_number = make_nhs_number(number * 3)
    return f"L{number},{nhs_number},{family},Sam,2016-04-05,,child_protection_plan,{start},{end},W1,North,{delete}"


async def send(
    world: World,
    rows: Sequence[str],
    *,
    kind: UploadKind = UploadKind.CHANGES,
    options: UploadOptions | None = FEW,
    dry_run: bool = False,
) -> UploadReport:
    return await upload_children(
        world.database,
        world.keyring,
        world.clock,
        authority="706",
        file="\n".join((CHILDREN_COLUMNS, *rows)).encode(),
        uploaded_by=OFFICER,
        kind=kind,
        options=options,
        dry_run=dry_run,
    )


async def entry_of(world: World, number: int) -> ChildListEntry:
    entry_id = derive_entry_id(world.keyring, "706", make_entry(local_id=f"L{number}"))
    async with world.database.reading() as connection:
        [candidate] = await child_lists.load_entries(connection, world.keyring, [entry_id])
    return candidate.entry


async def differences(world: World) -> list[Difference]:
    async with world.database.reading() as connection:
        return await list_differences.list_differences(connection, OWNER, rows_max=100)


async def count_parts(world: World) -> int:
    async with world.database.reading() as connection:
        return len((await connection.execute(select(table(HeldUploadPart).c.number))).all())


async def test_a_file_that_would_end_too_much_is_held_and_nothing_of_it_counts(world: World) -> None:
    await send(world, [row(number) for number in range(1, 6)])
    await world.receive(hl7())
    report = await send(world, [*(row(n, end="2026-02-01") for n in range(1, 4)), row(9)])
    assert (report.state, report.file_code, report.ends, report.loaded) == (UploadState.HELD, None, 3, 0)
    assert (await entry_of(world, 1)).end_on is None
    with pytest.raises(ValueError, match="not enough values"):
        await entry_of(world, 9)
    [alert] = await world.alerts()
    assert alert.state is AlertState.OPEN
    async with world.database.reading() as connection:
        [held] = await held_uploads.list_holds(connection, OWNER, rows_max=10)
        part = (await connection.execute(select(table(HeldUploadPart).c.sealed))).scalar_one()
    assert (held.ends, held.deletes, held.current, held.uploaded_by) == (3, 0, 5, OFFICER)
    assert b"Tester" not in bytes(part)


@pytest.mark.parametrize("how", [{"end": "2026-02-20"}, {"delete": "2026-02-14"}, {"start": "2026-03-01"}])
async def test_ends_to_come_taking_back_and_hiding_count_alike(world: World, how: dict[str, str]) -> None:
    await send(world, [row(number) for number in range(1, 6)])
    tried = [await send(world, [row(n, **how) for n in range(1, last)], dry_run=True) for last in (3, 4)]
    assert [report.state for report in tried] == [UploadState.TRIED] * 2
    assert [(report.loaded, report.problem[:22]) for report in tried] == [(2, ""), (0, "the file would be held")]
    assert await count_parts(world) == 0
    assert (await send(world, [row(n, **how) for n in range(1, 4)])).state is UploadState.HELD


async def test_the_limit_is_the_larger_of_a_share_and_a_number(world: World) -> None:
    await send(world, [row(number) for number in range(1, 41)])
    half = UploadOptions(hold_entries=2, hold_percent=50)
    assert (await send(world, [row(n, end="2026-02-01") for n in range(1, 21)], options=half)).state == "loaded"
    world.clock.advance(HOLD_WINDOW + timedelta(seconds=1))
    assert (await send(world, [row(n, end="2026-02-01") for n in range(21, 31)], options=None)).state == "loaded"
    world.clock.advance(HOLD_WINDOW + timedelta(seconds=1))
    some = UploadOptions(hold_entries=2, hold_percent=20)
    assert (await send(world, [row(n, end="2026-02-01") for n in range(31, 34)], options=some)).state == "held"


async def test_many_small_files_of_a_day_are_held_like_a_large_one(world: World) -> None:
    """Case systems send a file for every change: a fault there may end a list one child at a time."""
    await send(world, [row(number) for number in range(1, 9)])
    for number in (1, 2):
        assert (await send(world, [row(number, end="2026-02-01")])).state is UploadState.LOADED
    third = await send(world, [row(3, end="2026-02-01")])
    assert third.state is UploadState.HELD and third.upload_id is not None
    assert "after 2 that other files took off the list" in (third.problem or "")
    assert (await send(world, [row(9), row(4, family="Testing")])).state is UploadState.LOADED, (
        "who ends nobody is not held"
    )
    await confirm_upload(
        world.database, world.keyring, world.clock, upload_id=third.upload_id, owner=OWNER, by=LEAD, options=FEW
    )
    assert (await send(world, [row(5, end="2026-02-01")])).state is UploadState.HELD
    world.clock.advance(HOLD_WINDOW + timedelta(seconds=1))
    assert (await send(world, [row(6, end="2026-02-01")])).state is UploadState.LOADED


async def test_a_confirmed_file_counts_without_undoing_what_came_since(world: World) -> None:
    await send(world, [row(number) for number in range(1, 6)])
    world.clock.advance(timedelta(minutes=5))
    report = await send(world, [row(n, end="2026-02-01") for n in range(1, 4)])
    world.clock.advance(timedelta(minutes=5))
    await send(world, [row(2, family="Later")])
    done = await confirm_upload(
        world.database, world.keyring, world.clock, upload_id=report.upload_id or "", owner=OWNER, by=LEAD
    )
    assert (done.state, done.file_code, done.loaded) == (UploadState.LOADED, FileCode.SOME_LOADED, 2)
    assert [(each.code, each.row) for each in done.refused] == [(RecordCode.NOT_LOADED, 3)]
    assert (await entry_of(world, 1)).end_on == date(2026, 2, 1)
    assert (await entry_of(world, 2)).end_on is None
    assert await count_parts(world) == 0
    with pytest.raises(NothingToDecide):
        await confirm_upload(
            world.database, world.keyring, world.clock, upload_id=report.upload_id or "", owner=OWNER, by=LEAD
        )
    uploads = table(ListUpload)
    async with world.database.reading() as connection:
        assert await audit.verify_chain(connection, OWNER) is None
        last = (await connection.execute(select(uploads).where(uploads.c.confirmed_by == LEAD))).one()
    assert (last.uploaded_by, last.uploaded_at) == (OFFICER, world.clock.now() - timedelta(minutes=5))


async def test_a_rejected_file_is_forgotten_and_may_be_sent_again(world: World) -> None:
    await send(world, [row(number) for number in range(1, 6)])
    ends = [row(n, end="2026-02-01") for n in range(1, 4)]
    upload_id = (await send(world, ends)).upload_id or ""
    with pytest.raises(NothingToDecide):
        await reject_upload(world.database, world.clock, upload_id=upload_id, owner=authority_owner("707"), by="x")
    await reject_upload(world.database, world.clock, upload_id=upload_id, owner=OWNER, by=LEAD, reason="wrong file")
    assert await count_parts(world) == 0
    assert (await entry_of(world, 1)).end_on is None
    assert (await send(world, ends)).upload_id == upload_id
    assert (await send(world, ends)).upload_id == upload_id
    assert await count_parts(world) == 1


async def test_what_nobody_decides_goes_to_the_operators(world: World) -> None:
    await send(world, [row(number) for number in range(1, 6)])
    await send(world, [row(n, end="2026-02-01") for n in range(1, 4)])
    world.clock.advance(timedelta(hours=5))
    await world.run_jobs()
    async with world.database.reading() as connection:
        [held] = await held_uploads.list_holds(connection, None, rows_max=10)
    assert (held.held_by, held.level) == ("operators", 1)


# Full lists


async def test_a_full_list_ends_nobody_and_asks_about_who_is_missing(world: World) -> None:
    await send(world, [row(1), row(2), row(3, end="2026-02-01"), row(4)])
    report = await send(world, [row(1), row(4).replace("2016-04-05", "never")], kind=UploadKind.FULL)
    assert (report.file_code, report.left_out) == (FileCode.SOME_LOADED, 1)
    [missing] = await differences(world)
    assert missing.entry_id == derive_entry_id(world.keyring, "706", make_entry(local_id="L2"))
    assert missing.due_by == world.clock.now() + FEW.difference_limit
    assert (await entry_of(world, 2)).end_on is None
    world.clock.advance(timedelta(days=1))
    await send(world, [row(1), row(4)], kind=UploadKind.FULL)
    assert await differences(world) == [missing]
    await send(world, [row(2)])
    assert await differences(world) == []


@pytest.mark.parametrize("decision", DifferenceDecision)
async def test_a_person_says_what_became_of_who_is_missing(world: World, decision: DifferenceDecision) -> None:
    await send(world, [row(1), row(2)])
    await send(world, [row(1)], kind=UploadKind.FULL)
    [missing] = await differences(world)

    async def decide(owner: str) -> None:
        await decide_difference(
            world.database,
            world.keyring,
            world.clock,
            difference_id=missing.id,
            owner=owner,
            decision=decision,
            by=LEAD,
        )

    with pytest.raises(NothingToDecide):
        await decide(authority_owner("707"))
    await decide(OWNER)
    today = london_day(world.clock.now())
    entry = await entry_of(world, 2)
    assert (entry.end_on, entry.deleted_on) == {
        DifferenceDecision.STILL_LISTED: (None, None),
        DifferenceDecision.ENDED: (today, None),
        DifferenceDecision.TAKEN_BACK: (None, today),
    }[decision]
    with pytest.raises(NothingToDecide):
        await decide(OWNER)
    again = await send(world, [row(1)], kind=UploadKind.FULL)
    assert again.left_out == (decision is DifferenceDecision.STILL_LISTED)


# Long files

SLICED = UploadOptions(short_bytes_max=0, slice_rows=2, slice_rows_max=2)


class Killed(Exception):
    """Stands for a process that dies."""


async def land(
    world: World, rows: Sequence[str], on_progress: Progress, *, authority: str = "706", **how: Any
) -> UploadReport:
    file = "\n".join((CHILDREN_COLUMNS, *rows)).encode()
    return await upload_children(
        world.database,
        world.keyring,
        world.clock,
        authority=authority,
        file=file,
        uploaded_by=OFFICER,
        options=SLICED,
        on_progress=on_progress,
        **how,
    )


def dies_after(steps: int) -> Progress:
    """A process that dies when so many slices have landed; the first step is that the file was read."""
    left = iter(range(steps))

    def die(done: int, total: int) -> None:
        if next(left, None) is None:
            raise Killed

    return die


async def test_a_list_that_lands_in_slices_keeps_nobody_waiting_and_half_of_it_misleads_nobody(world: World) -> None:
    await send(world, [row(1), row(11)])
    await world.run_jobs()
    await world.receive(hl7(nhs_number=make_nhs_number(9), family="TESTER", given="SAM", birth_date=date(2016, 4, 5)))
    world.clock.advance(timedelta(days=1))
    with pytest.raises(Killed):
        await land(world, [row(n) for n in range(1, 8)], dies_after(2), kind=UploadKind.FULL)
    # Others write, the half that stands alerts, and nothing is said of the whole.
    await world.receive(hl7(control_id="2", visit="V2"))
    assert len(await world.alerts()) == 1
    await world.run_jobs()
    assert len(await world.alerts()) == 1, "a look-back waits until all of the list stands"
    async with world.database.reading() as connection:
        known = await directory.load_directory(connection)
        assert [each.confirmed_at for each in known.freshness if each.authority == "706"] == [
            world.clock.now() - timedelta(days=1)
        ]
        assert await held_uploads.count_holds(connection) == 0
    assert await differences(world) == []
    # Nobody goes on with it for two minutes: then the jobs do.
    resume = partial(resume_landings, world.database, world.keyring, world.clock, SLICED)
    assert await resume() == 0
    world.clock.advance(SLICED.landing_lease)
    assert [await resume(), await resume()] == [1, 0]
    assert (await entry_of(world, 7)).local_id == "L7"
    assert [each.entry_id for each in await differences(world)] == [
        derive_entry_id(world.keyring, "706", make_entry(local_id="L11"))
    ]
    await world.run_jobs()
    assert len(await world.alerts()) == 2, "the look-back found who came before"
    async with world.database.reading() as connection:
        assert (await connection.execute(select(table(ListLandingPart).c.number))).all() == []
        uploads = (await connection.execute(select(table(ListUpload).c.rows_loaded))).scalars().all()
        assert sorted(uploads) == [2, 7]
        assert await audit.verify_chain(connection, OWNER) is None
        if not world.database.is_sqlite:
            counted = await connection.execute(text("SELECT reltuples FROM pg_class WHERE relname = 'list_entries'"))
            assert counted.scalar_one() == 8, "PostgreSQL plans for the list as it is now"


async def test_a_list_has_landed_also_while_somebody_tidies_its_table(postgres_url: str, tmp_path: Path) -> None:
    async with open_world(postgres_url, tmp_path) as world, world.database.writing() as connection:
        await connection.execute(text("LOCK TABLE list_entries IN SHARE UPDATE EXCLUSIVE MODE"))  # as VACUUM has it
        async with asyncio.timeout(5):
            report = await land(world, [row(n) for n in range(1, 4)], lambda done, total: None)
        assert report.changed == 3


async def test_a_list_has_landed_also_when_the_database_cannot_measure_it_just_after(
    postgres_url: str, tmp_path: Path
) -> None:
    """An index that PostgreSQL cannot measure: by an error that it has when it is shut down, and by one of the data."""
    fails = (
        "CREATE OR REPLACE FUNCTION cannot_be_measured(id text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN "
        "IF current_query() LIKE 'ANALYZE%' THEN RAISE EXCEPTION 'gone' USING ERRCODE = '{code}'; END IF; "
        "RETURN id; END $$"
    )
    async with open_world(postgres_url, tmp_path) as world:
        for last, code in ((4, "57P01"), (7, "22P02")):
            async with world.database.writing() as connection:
                await connection.execute(text(fails.format(code=code)))
                await connection.execute(
                    text("CREATE INDEX IF NOT EXISTS measured ON list_entries (cannot_be_measured(id))")
                )
            with capture_logs() as logged:
                report = await land(world, [row(n) for n in range(1, last)], lambda done, total: None)
            assert report.changed == 3 and (await entry_of(world, last - 1)).local_id == f"L{last - 1}"
            assert [each["kind"] for each in logged if each["event"] == "job_failed"] == ["analyse"]


async def test_a_file_that_cannot_be_landed_keeps_no_other_list_waiting(world: World) -> None:
    for authority in ("706", "707"):
        with pytest.raises(Killed):
            await land(world, [row(n) for n in range(1, 8)], dies_after(2), authority=authority)
    world.clock.advance(SLICED.landing_lease)
    async with world.database.writing() as connection:
        torn, whole = await landings.list_landings(connection)
        of_it = table(ListLandingPart).c.upload_id == torn.upload_id
        await connection.execute(table(ListLandingPart).update().where(of_it).values(sealed=b"torn"))
    with capture_logs() as logged:
        assert await resume_landings(world.database, world.keyring, world.clock, SLICED) == 1
    assert [each["authority"] for each in logged if each["event"] == "list_blocked"] == [torn.authority]
    async with world.database.reading() as connection:
        assert await landings.find_landing(connection, whole.authority) is None
        assert await landings.find_landing(connection, torn.authority) is not None


async def test_who_sends_the_next_file_lands_the_rest_of_the_one_before(world: World) -> None:
    with pytest.raises(Killed):
        await land(world, [row(n) for n in range(1, 8)], dies_after(2))
    world.clock.advance(SLICED.landing_lease)
    report = await send(world, [row(7, end="2026-02-01")])
    assert (report.changed, report.ends) == (1, 1), "the newer file is compared with all of the older one"
    assert (await entry_of(world, 6)).end_on is None


async def test_the_jobs_part_lands_the_rest_beside_its_other_work(world: World) -> None:
    with pytest.raises(Killed):
        await land(world, [row(n) for n in range(1, 8)], dies_after(2))
    world.clock.advance(SLICED.landing_lease)
    options = JobOptions(poll_s=0.01)
    runner = JobRunner(world.database, world.keyring, world.clock, world.rules, options, uploads=SLICED)
    running = asyncio.create_task(runner.run())
    for _ in range(1500):
        if not await is_landing(world):
            break
        await asyncio.sleep(0.02)
    runner.stop()
    await running
    assert (await entry_of(world, 7)).local_id == "L7"


async def is_landing(world: World) -> bool:
    async with world.database.reading() as connection:
        return await landings.find_landing(connection, "706") is not None


async def test_others_write_between_slices_and_what_they_changed_of_the_list_stays(world: World) -> None:
    await send(world, [row(n) for n in range(1, 4)])
    await send(world, [row(n) for n in (1, 2)], kind=UploadKind.FULL)
    [missing] = await differences(world)
    world.clock.advance(timedelta(minutes=1))
    sent_at = world.clock.now()
    world.clock.advance(timedelta(minutes=1))
    decided: list[asyncio.Task[None]] = []

    def decide(done: int, total: int) -> None:
        if not decided and done > total / 2:
            decision = decide_difference(
                world.database,
                world.keyring,
                world.clock,
                difference_id=missing.id,
                owner=OWNER,
                decision=DifferenceDecision.ENDED,
                by=LEAD,
            )
            decided.append(asyncio.create_task(decision))

    report = await land(world, [row(n, family="New") for n in range(2, 10)], decide, sent_at=sent_at)
    await decided[0]
    assert report.state is UploadState.LOADED
    assert (await entry_of(world, 3)).end_on == london_day(world.clock.now())
    assert (await entry_of(world, 9)).name.family == "New"


# What the list said


async def test_every_version_knows_its_upload_its_sender_and_its_file(world: World) -> None:
    await send(world, [row(2)])
    first = world.clock.now()
    world.clock.advance(timedelta(hours=1))
    await send(world, [row(2, family="Changed")])
    await send(world, [row(2, family="Changed")])
    versions, uploads = table(ListVersion), table(ListUpload)
    async with world.database.reading() as connection:
        rows = (
            await connection.execute(
                select(versions, uploads.c.uploaded_by, uploads.c.file_hash)
                .join(uploads, uploads.c.id == versions.c.upload_id)
                .order_by(versions.c.sequence)
            )
        ).all()
    assert [(each.sequence, each.known_from, each.known_until) for each in rows] == [
        (1, first, world.clock.now()),
        (2, world.clock.now(), None),
    ]
    assert {each.uploaded_by for each in rows} == {OFFICER}
    assert len({each.file_hash for each in rows}) == 2


async def test_one_person_may_have_a_plan_of_each_type(world: World) -> None:
    plans = ("child_protection_plan", "looked_after_child", "unborn_child_protection_plan")
    report = await send(world, [row(2).replace(plans[0], plan) for plan in plans])
    assert (report.loaded, report.file_code) == (3, FileCode.ALL_LOADED)
    other = await send(world, [row(2), row(3).replace(make_nhs_number(9), make_nhs_number(6))])
    assert [(each.row, each.field) for each in other.refused] == [(3, "nhs_number")]


async def test_zeros_that_a_spreadsheet_dropped_make_no_second_person(world: World) -> None:
    await send(world, [row(2).replace("L2", "0042")])
    report = await send(world, [row(2).replace("L2", "42")], kind=UploadKind.FULL)
    assert report.file_code is FileCode.NONE_LOADED
    assert [(each.field, "zeros in front" in each.advice) for each in report.refused] == [("local_id", True)]


async def test_a_long_file_that_breaks_off_leaves_nothing(world: World) -> None:
    rows = [row(number) for number in range(2, 2500)]
    with pytest.raises(MalformedFile):
        await send(world, [*rows, 'L9999,"'])
    async with world.database.reading() as connection:
        assert (await connection.execute(select(table(ListVersion).c.entry_id))).all() == []
    assert (await send(world, rows)).changed == len(rows)


async def test_a_list_in_json_is_loaded_as_one_in_csv(world: World) -> None:
    names, values = CHILDREN_COLUMNS.split(","), row(1).split(",")
    said = zip(names, values, strict=False)  # the last column, the household, is not said
    fields = ",".join(f'"{name}":"{value}"' for name, value in said)
    report = await upload_children(
        world.database,
        world.keyring,
        world.clock,
        authority="706",
        file=f'{{"entries":[{{{fields}}}]}}'.encode(),
        uploaded_by=OFFICER,
        form=UploadFormat.JSON,
    )
    assert report.file_code is FileCode.ALL_LOADED
    assert (await entry_of(world, 1)).name.family == "Tester"


async def test_a_file_of_a_case_system_is_held_and_confirmed_like_every_other(world: World) -> None:
    people = [(make_nhs_number(number), f"C{number}") for number in range(1, 5)]
    stands = upload(*(record(child(number, local_id), plan("cPP")) for number, local_id in people))
    over = upload(*(record(child(number, local_id), plan("cPP", end="20260201")) for number, local_id in people))
    reports = [
        await upload_children(
            world.database,
            world.keyring,
            world.clock,
            authority="706",
            file=file,
            uploaded_by=OFFICER,
            form=UploadFormat.XML,
            options=FEW,
        )
        for file in (stands, over)
    ]
    assert [report.state for report in reports] == [UploadState.LOADED, UploadState.HELD]
    assert reports[1].upload_id is not None
    confirmed = await confirm_upload(
        world.database, world.keyring, world.clock, upload_id=reports[1].upload_id, owner=OWNER, by=LEAD
    )
    assert (confirmed.state, confirmed.ends) == (UploadState.LOADED, 4)


async def test_who_stands_in_a_bad_record_of_a_case_system_is_not_missing_from_its_full_list(world: World) -> None:
    await send(world, [row(number) for number in range(1, 3)])
    named = [record(child(make_nhs_number(9), "L1"), plan("cPP"), plan("lAC"))]
    bad = record(child("ABC 12 345", "L2", family=" "), plan("cPP"))
    report = await upload_children(
        world.database,
        world.keyring,
        world.clock,
        authority="706",
        file=upload(*named, bad),
        uploaded_by=OFFICER,
        kind=UploadKind.FULL,
        form=UploadFormat.XML,
    )
    assert (report.file_code, report.loaded, report.left_out) == (FileCode.SOME_LOADED, 2, 0)
    [refused] = report.refused
    assert (refused.row, refused.field, refused.code) == (2, "nhs_number", RecordCode.OLD_STYLE_NUMBER)
    assert "family_name is missing" in refused.advice


async def test_a_full_list_that_was_held_does_not_ask_about_who_was_listed_since(world: World) -> None:
    await send(world, [row(number) for number in range(1, 7)])
    world.clock.advance(timedelta(minutes=5))
    held = await send(world, [row(n, end="2026-02-01") for n in range(1, 6)], kind=UploadKind.FULL)
    world.clock.advance(timedelta(minutes=5))
    await send(world, [row(7)])
    assert held.upload_id is not None
    report = await confirm_upload(
        world.database, world.keyring, world.clock, upload_id=held.upload_id, owner=OWNER, by=LEAD
    )
    assert (report.ends, report.left_out) == (5, 1)
    [asked] = await differences(world)
    assert asked.entry_id == derive_entry_id(world.keyring, "706", make_entry(local_id="L6"))


async def test_a_file_whose_numbers_slipped_by_a_row_is_held(world: World) -> None:
    """A spreadsheet that sorts one column alone gives every child somebody else's number."""
    rows = [row(number) for number in range(1, 6)]
    await send(world, rows)
    numbers = [each.split(",")[1] for each in rows]
    slipped = [
        each.replace(own, other) for each, own, other in zip(rows, numbers, numbers[1:] + numbers[:1], strict=True)
    ]
    report = await send(world, slipped)
    assert (report.state, report.ends) == (UploadState.HELD, 5)
    assert (await entry_of(world, 1)).nhs_number == numbers[0]
    assert (await send(world, slipped[:1])).state is UploadState.LOADED


async def test_a_list_sent_again_under_new_ids_is_held_and_never_alerts_twice(world: World) -> None:
    """A case system that was migrated numbers everybody anew: the list would have every child twice."""
    await send(world, [row(number) for number in range(1, 6)])
    await world.receive(hl7())
    again = [row(number).replace("L", "M", 1) for number in range(1, 6)]
    report = await send(world, again, kind=UploadKind.FULL)
    assert (report.state, report.doubles, report.ends) == (UploadState.HELD, 5, 0)
    assert "list 5 people a second time" in report.problem
    async with world.database.reading() as connection:
        [held] = await held_uploads.list_holds(connection, OWNER, rows_max=10)
    assert held.doubles == 5
    await confirm_upload(world.database, world.keyring, world.clock, upload_id=held.id, owner=OWNER, by=LEAD)
    await world.run_jobs()
    assert len(await world.alerts()) == 1
    await world.receive(hl7(control_id="2", visit="V2"))
    assert [len(each.alert.plans) for each in await world.alerts()] == [1, 1]


async def test_an_id_that_changes_with_the_plan_doubles_nobody(world: World) -> None:
    await send(world, [row(number, end="2026-01-20") for number in range(1, 6)])
    anew = [row(number, start="2026-02-01").replace("L", "M", 1) for number in range(1, 6)]
    assert (await send(world, anew)).state is UploadState.LOADED


async def test_a_stale_hold_does_not_undo_a_newer_file_that_repeated_a_row(world: World) -> None:
    await send(world, [row(number) for number in range(1, 6)])
    world.clock.advance(timedelta(minutes=5))
    stale = await send(world, [row(n, end="2026-02-01") for n in range(1, 5)], kind=UploadKind.FULL)
    world.clock.advance(timedelta(minutes=5))
    assert (await send(world, [row(2), row(5)])).changed == 0
    done = await confirm_upload(
        world.database, world.keyring, world.clock, upload_id=stale.upload_id or "", owner=OWNER, by=LEAD
    )
    assert (done.loaded, done.ends, done.left_out) == (3, 3, 0)
    assert [(each.row, "listed as it stands by a later upload" in each.advice) for each in done.refused] == [(3, True)]
    assert (await entry_of(world, 2)).end_on is None
    assert await differences(world) == []
