"""Lists and directories on both databases: a bad row costs itself alone, a bad file costs nothing."""

from __future__ import annotations

import base64
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from argon2 import PasswordHasher
from sqlalchemy import func, select

from adapters.errors import MalformedFile
from broker.directory_upload import DirectoryUpload, ImportReport, make_operator
from broker.domain.replies import summarise_lists
from broker.list_comparison import UnknownAuthority
from broker.list_upload import upload_children
from broker.senders import Senders
from broker.storage import audit, child_lists, directory, logins
from broker.storage.child_lists import derive_entry_id
from broker.storage.tables import AuditRow, Job, ListEntry, ListUpload, LoginRow, table
from schemas.directory import Person, Role, SendersSnapshot
from schemas.upload import RecordCode, RowAnswer, UploadReport
from tests.factories import make_entry, make_nhs_number
from tests.world import AUTHORITIES, CASEY, CHILDREN_COLUMNS, SITES, WORKERS, World

IDLE = {"longest": timedelta(hours=10), "idle": timedelta(minutes=30)}
OTHER = f"L2,{make_nhs_number(2)},Sample,Jordan,2016-04-05,,looked_after_child,2026-01-11,,W1,North"
PERSONAL = ("Casey", "Tester", "9990000018", "999 000 0018", "ZZ99", "2015-03-02", "L1")


async def counts(world: World) -> dict[str, int]:
    async with world.database.reading() as connection:
        return {
            model.__name__: int((await connection.execute(select(func.count()).select_from(table(model)))).scalar_one())
            for model in (ListEntry, ListUpload, Job, AuditRow, LoginRow)
        }


async def listed(world: World, *entries: Any) -> list[Any]:
    """The entries that are stored of these, by what makes them one entry."""
    wanted = [derive_entry_id(world.keyring, "706", entry) for entry in entries]
    async with world.database.reading() as connection:
        found = await child_lists.load_entries(connection, world.keyring, wanted)
    return [candidate.entry for candidate in found]


async def upload_file(world: World, file: bytes, authority: str = "706", dry_run: bool = False) -> UploadReport:
    return await upload_children(
        world.database,
        world.keyring,
        world.clock,
        authority=authority,
        file=file,
        uploaded_by="list.officer@706.example.org",
        dry_run=dry_run,
    )


def rows(*lines: str) -> bytes:
    return "\r\n".join((CHILDREN_COLUMNS, *lines, "")).encode()


# Child lists


async def test_a_dry_run_says_what_would_be_refused_and_changes_nothing(world: World) -> None:
    before = await counts(world)
    report = await upload_file(world, rows(CASEY, OTHER.replace("2016-04-05", "05/04/16")), dry_run=True)
    assert (report.loaded, [problem.row for problem in report.refused]) == (1, [3])
    assert await counts(world) == before


async def test_bad_rows_cost_only_themselves_and_are_told_without_their_values(world: World) -> None:
    bad = [CASEY.replace("9990000018", "9990000019"), CASEY.replace("2015-03-02", "?"), CASEY.replace("Tester", "")]
    report = await upload_file(world, rows(bad[0], CASEY, bad[1], OTHER, bad[2]))
    assert (report.loaded, report.changed) == (2, 2)
    assert [(problem.row, problem.field) for problem in report.refused] == [
        (2, "nhs_number"),
        (4, "birth_date"),
        (6, "family_name"),
    ]
    told = str(report.refused)
    assert not any(value in told for value in PERSONAL)
    assert (await counts(world))["ListEntry"] == 2


async def test_a_second_row_for_the_same_person_and_plan_is_refused_and_the_first_stands(world: World) -> None:
    again, other_plan = CASEY.replace("W1", "W2"), CASEY.replace("child_protection_plan", "looked_after_child")
    report = await upload_file(world, rows(CASEY, other_plan, "", again))
    assert report.refused == (
        RowAnswer(
            code=RecordCode.NOT_LOADED,
            row=5,
            field="local_id",
            advice="the same person and plan type stands in a row above",
        ),
    )
    assert report.loaded == 2
    [entry] = await listed(world, make_entry())
    assert entry.allocated_worker == "W1"


async def test_an_upload_adds_and_changes_but_never_ends_by_omission(world: World) -> None:
    await upload_file(world, rows(CASEY))
    report = await upload_file(world, rows(OTHER))
    assert report.changed == 1
    assert len(await listed(world, make_entry())) == 1
    changed = await upload_file(world, rows(CASEY.replace("2026-01-10,,", "2026-01-10,2026-03-01,"), OTHER))
    assert changed.changed == 1
    [entry] = await listed(world, make_entry())
    assert entry.end_on == date(2026, 3, 1)


async def test_every_new_or_changed_entry_leaves_a_look_back_and_an_unchanged_one_none(world: World) -> None:
    await upload_file(world, rows(CASEY, OTHER))
    await upload_file(world, rows(CASEY, OTHER.replace("Jordan", "Jordon")))
    async with world.database.writing() as connection:
        jobs = table(Job)
        found = await connection.execute(select(jobs.c.kind, jobs.c.epoch).order_by(jobs.c.kind, jobs.c.epoch))
        epochs = [tuple(row) for row in found]
    assert epochs == [("coverage", 1), ("look_back", 0), ("look_back", 1), ("trace", 0), ("trace", 1)]


async def test_an_entry_that_moves_to_another_number_and_birth_date_is_found_there_only(world: World) -> None:
    await upload_file(world, rows(CASEY))
    number = make_nhs_number(9)
    await upload_file(world, rows(CASEY.replace("9990000018", number).replace("2015-03-02", "2015-03-03")))
    index, block = child_lists.index_nhs_number, child_lists.index_block
    async with world.database.reading() as connection:
        by_number = await child_lists.find_by_nhs_number(
            connection, world.keyring, [index(world.keyring, "9990000018"), index(world.keyring, number)]
        )
        by_block = await child_lists.find_by_block(
            connection,
            world.keyring,
            [block(world.keyring, "born/2015-03-02"), block(world.keyring, "born/2015-03-03")],
        )
    assert set(by_number) == {index(world.keyring, number)}
    assert set(by_block) == {block(world.keyring, "born/2015-03-03")}


MALFORMED = {
    "empty": b"",
    "columns": b"local_id,nhs_number\r\n",
    "utf-16": rows(CASEY).decode().encode("utf-16"),
    "open quote": rows(CASEY, OTHER) + b'L3,"open',
    "200 KB field": rows(CASEY) + b"L3," + b"S" * 200_000,
}


async def test_a_malformed_file_stores_nothing(world: World) -> None:
    before = await counts(world)
    for kind, file in MALFORMED.items():
        with pytest.raises(MalformedFile):
            await upload_file(world, file)
        assert await counts(world) == before, kind


async def test_the_list_of_an_unknown_authority_stores_nothing(world: World) -> None:
    before = await counts(world)
    with pytest.raises(UnknownAuthority):
        await upload_file(world, rows(CASEY), authority="799")
    assert await counts(world) == before


async def confirmed_at(world: World) -> Any:
    async with world.database.reading() as connection:
        known = await directory.load_directory(connection)
    lists = summarise_lists(known.freshness, known.sites["RZ1"], world.clock.now(), world.rules.list_stale)
    return lists.oldest_confirmed_at


async def test_the_same_file_once_more_confirms_the_list_anew(world: World) -> None:
    await upload_file(world, rows(CASEY))
    world.clock.advance(timedelta(hours=100))
    report = await upload_file(world, rows(CASEY))
    assert (report.was_known, report.changed) == (True, 0)
    assert await confirmed_at(world) == world.clock.now()


async def test_an_older_file_loaded_again_changes_entries_back(world: World) -> None:
    await upload_file(world, rows(CASEY))
    await upload_file(world, rows(CASEY.replace("W1", "W2")))
    report = await upload_file(world, rows(CASEY))
    assert (report.was_known, report.changed) == (True, 1)
    [entry] = await listed(world, make_entry())
    assert entry.allocated_worker == "W1"


async def test_a_file_of_which_every_row_was_refused_does_not_count_as_a_fresh_list(world: World) -> None:
    report = await upload_file(world, rows(CASEY.replace("9990000018", "1")))
    assert (report.loaded, len(report.refused)) == (0, 1)
    assert await confirmed_at(world) is None
    assert (await acts(world, "authority:706"))[-1] == ("list.officer@706.example.org", "list.refused")


async def acts(world: World, owner: str) -> list[tuple[str, str]]:
    """Who did what, by an owner's chain, once that is seen to be whole."""
    rows_ = table(AuditRow)
    async with world.database.reading() as connection:
        assert await audit.verify_chain(connection, owner) is None
        found = await connection.execute(
            select(rows_.c.actor, rows_.c.action).where(rows_.c.owner == owner).order_by(rows_.c.sequence)
        )
        return [(row.actor, row.action) for row in found]


async def test_an_upload_is_audited_and_holds_nothing_readable(world: World) -> None:
    await upload_file(world, rows(CASEY))
    assert (await acts(world, "authority:706"))[-1] == ("list.officer@706.example.org", "list.uploaded")
    async with world.database.reading() as connection:
        stored = [
            repr(row)
            for model in (ListEntry, ListUpload, AuditRow, Job)
            for row in await connection.execute(select(table(model)))
        ]
    # Two characters turn up by chance among what is sealed.
    assert not any(value in text for value in PERSONAL if len(value) > 3 for text in stored)


# Directories


def directory_upload(world: World, *, demo: bool = False, dry_run: bool = False) -> DirectoryUpload:
    return DirectoryUpload(
        world.database, world.keyring, world.clock, demo_passwords=demo, actor="cli:officer", dry_run=dry_run
    )


NEW_AUTHORITY = "code,name,office_telephone,emergency_telephone,webhook_url,webhook_secret,topic_secret\n"
BARNHAM = "708,Barnham Council,01632 960401,01632 960402,https://alerts.example.org,,\n"


def issued(report: ImportReport) -> dict[tuple[str, str], str]:
    return {(secret.to, secret.what): secret.secret for secret in report.issued}


async def secrets_of(world: World, owner: str) -> directory.RecipientSecrets:
    async with world.database.reading() as connection:
        return await directory.load_secrets(connection, world.keyring, owner)


async def test_secrets_are_made_once_and_shown_once(world: World) -> None:
    upload = directory_upload(world)
    made = issued(await upload.load_authorities((NEW_AUTHORITY + BARNHAM).encode()))
    assert set(made) == {("authority:708", "webhook_secret"), ("authority:708", "topic_secret")}
    kept = await secrets_of(world, "authority:708")
    assert base64.b64decode(made["authority:708", "webhook_secret"]) == kept.webhook
    assert base64.b64decode(made["authority:708", "topic_secret"]) == kept.topic
    assert kept.webhook != kept.topic and len(kept.webhook) == 32

    again = await upload.load_authorities((NEW_AUTHORITY + BARNHAM.replace("960401", "960409")).encode())
    assert (again.loaded, again.issued) == (1, ())
    assert await secrets_of(world, "authority:708") == kept
    async with world.database.reading() as connection:
        authority = await directory.find_authority(connection, "708")
    assert authority is not None
    assert authority.office_telephone == "01632 960409"


async def test_a_secret_that_the_file_gives_replaces_the_stored_one_and_is_not_shown(world: World) -> None:
    given = base64.b64encode(bytes(range(32))).decode()
    report = await directory_upload(world).load_authorities(
        (NEW_AUTHORITY + BARNHAM.replace(",,\n", f",{given},\n")).encode()
    )
    assert {secret.what for secret in report.issued} == {"topic_secret"}
    assert (await secrets_of(world, "authority:708")).webhook == bytes(range(32))


async def test_a_bad_secret_is_refused_without_being_told(world: World) -> None:
    for secret in ("short", "c2hvcnQ=", "A" * 43, base64.b64encode(bytes(33)).decode(), "é" * 44):
        file = (NEW_AUTHORITY + BARNHAM.replace(",,\n", f",{secret},\n")).encode()
        report = await directory_upload(world).load_authorities(file)
        [problem] = report.refused
        assert (report.loaded, problem.row, problem.field) == (0, 2, "webhook_secret")
        assert secret not in problem.advice
    async with world.database.reading() as connection:
        assert await directory.find_authority(connection, "708") is None


SITE_COLUMNS = SITES.splitlines()[0] + "\n"
KIRKTON = "RZ3,Kirkton Hospital,01632 960303,706,,,no,10.9.0.0/16,\n"


def snapshot_of(path: Path) -> SendersSnapshot:
    return msgspec.json.decode(path.read_bytes(), type=SendersSnapshot)


async def test_a_sites_credential_is_made_once_and_the_snapshot_is_written(world: World) -> None:
    path = world.directory / "written.json"
    upload = directory_upload(world)
    made = issued(await upload.load_sites((SITE_COLUMNS + KIRKTON).encode(), path))
    credential = made["organisation:RZ3", "credential (MSH-8)"].encode()
    senders = Senders(path, world.keyring)
    assert senders.admit("RZ3", credential, "10.9.1.1")
    assert not senders.admit("RZ3", credential, "10.8.1.1")
    assert senders.admit("RZ1", b"rz1-credential", "10.8.1.1")
    assert [sender.code for sender in snapshot_of(path).senders] == ["RZ1", "RZ2", "RZ3"]

    again = await upload.load_sites((SITE_COLUMNS + KIRKTON.replace("10.9.0.0/16", "")).encode(), path)
    assert again.issued == ()
    assert Senders(path, world.keyring).admit("RZ3", credential, "10.8.1.1")


async def test_a_new_credential_replaces_the_old_one(world: World) -> None:
    path = world.directory / "senders.json"
    changed = SITES.replace("rz1-credential", "changed")
    await directory_upload(world).load_sites(changed.encode(), path)
    senders = Senders(path, world.keyring)
    assert senders.admit("RZ1", b"changed", "10.1.1.1")
    assert not senders.admit("RZ1", b"rz1-credential", "10.1.1.1")


async def test_a_dry_run_of_a_directory_changes_nothing_and_makes_no_secret(world: World) -> None:
    before, path = await counts(world), world.directory / "dry.json"
    upload = directory_upload(world, dry_run=True)
    for report in (
        await upload.load_authorities((NEW_AUTHORITY + BARNHAM + "7,Bad,1,2,,,\n").encode()),
        await upload.load_sites((SITE_COLUMNS + KIRKTON).encode(), path),
        await upload.load_workers((WORKER_COLUMNS + "W9,706,Robin Worker,,robin@706.example.org,,\n").encode()),
    ):
        assert (report.loaded, report.issued) == (1, ())
    assert await counts(world) == before
    assert not path.exists()
    async with world.database.reading() as connection:
        assert await directory.find_authority(connection, "708") is None
        assert await directory.find_site(connection, "RZ3") is None


WORKER_COLUMNS = WORKERS.splitlines()[0] + "\n"
ROBIN = "W9,706,Robin Worker,North,robin@706.example.org,,\n"


async def find_login(world: World, login: str) -> logins.StoredLogin | None:
    async with world.database.reading() as connection:
        return await logins.find_login(connection, world.keyring, login)


async def test_a_password_is_made_once_shown_once_and_kept_by_a_second_import(world: World) -> None:
    upload = directory_upload(world)
    made = issued(await upload.load_workers((WORKER_COLUMNS + ROBIN).encode()))
    password = made["robin@706.example.org", "password"]
    first = await find_login(world, "robin@706.example.org")
    assert first is not None
    assert first.password_hash.startswith("$argon2id$")
    assert PasswordHasher().verify(first.password_hash, password)

    again = await upload.load_workers((WORKER_COLUMNS + ROBIN.replace("Robin Worker", "Robin Married")).encode())
    assert (again.loaded, again.issued) == (1, ())
    second = await find_login(world, "robin@706.example.org")
    assert second is not None
    assert second.password_hash == first.password_hash
    assert second.person.name == "Robin Married"


async def test_a_password_in_the_file_is_refused_outside_demonstrations(world: World) -> None:
    file = (WORKER_COLUMNS + ROBIN.replace(",,\n", ",,chosen-password\n")).encode()
    report = await directory_upload(world).load_workers(file)
    [problem] = report.refused
    assert (report.loaded, problem.field) == (0, "password")
    assert "chosen-password" not in problem.advice
    assert await find_login(world, "robin@706.example.org") is None
    async with world.database.reading() as connection:
        assert set(await directory.load_worker_names(connection, world.keyring, "authority:706")) == {"W1", "D1"}

    report = await directory_upload(world, demo=True).load_workers(file)
    stored = await find_login(world, "robin@706.example.org")
    assert (report.loaded, report.issued) == (1, ())
    assert stored is not None
    assert PasswordHasher().verify(stored.password_hash, "chosen-password")


async def sign_in(world: World, login: str, token: str) -> None:
    stored = await find_login(world, login)
    assert stored is not None
    async with world.database.writing() as connection:
        await logins.open_session(connection, stored.person, token, world.clock.now())


async def signed_in(world: World, token: str) -> Person | None:
    async with world.database.reading() as connection:
        return await logins.find_session(connection, world.keyring, token, now=world.clock.now(), **IDLE)


@pytest.mark.parametrize("password", ["", "demo-password"])
async def test_a_login_that_is_imported_again_is_signed_out_at_once(world: World, password: str) -> None:
    await sign_in(world, "ash@706.example.org", "token-a")
    await sign_in(world, "dee@706.example.org", "token-d")
    assert await signed_in(world, "token-a") is not None
    row = f"W1,706,Ash Worker,North,ash@706.example.org,duty_worker,{password}\n"
    await directory_upload(world, demo=True).load_workers((WORKER_COLUMNS + row).encode())
    assert await signed_in(world, "token-a") is None
    assert await signed_in(world, "token-d") is not None
    stored = await find_login(world, "ash@706.example.org")
    assert stored is not None
    assert (stored.person.role, stored.person.worker) == (Role.DUTY_WORKER, None)


@pytest.mark.parametrize(("hours", "minutes", "alive"), [(0, 29, True), (0, 30, False), (10, 0, False)])
async def test_a_session_ends_when_idle_and_when_old(world: World, hours: int, minutes: int, alive: bool) -> None:
    await sign_in(world, "ash@706.example.org", "token-a")
    for _ in range(hours * 3):
        world.clock.advance(timedelta(minutes=20))
        async with world.database.writing() as connection:
            await logins.note_use(connection, "token-a", world.clock.now())
    world.clock.advance(timedelta(minutes=minutes))
    assert (await signed_in(world, "token-a") is not None) == alive


async def test_too_many_failures_rest_a_login_and_success_starts_the_count_anew(world: World) -> None:
    async def attempt() -> bool:
        async with world.database.writing() as connection:
            return await logins.take_attempt(
                connection, "ash@706.example.org", failures_max=3, rest=timedelta(minutes=5), now=world.clock.now()
            )

    assert [await attempt() for _ in range(5)] == [True, True, True, False, False]
    world.clock.advance(timedelta(minutes=5))
    assert [await attempt() for _ in range(2)] == [True, True]
    async with world.database.writing() as connection:
        await logins.clear_failures(connection, "ash@706.example.org")
    assert [await attempt() for _ in range(4)] == [True, True, True, False]


async def test_rows_that_name_nobody_known_are_refused(world: World) -> None:
    workers = await directory_upload(world).load_workers(
        (WORKER_COLUMNS + ROBIN.replace("706", "799") + ROBIN).encode()
    )
    assert [(problem.row, problem.field) for problem in workers.refused] == [(2, "authority")]
    assert workers.loaded == 1
    clinicians = "login,name,organisation,password\nbo@rz9.example.org,Bo,RZ9,\nbo@rz1.example.org,Bo,RZ1,\n"
    report = await directory_upload(world).load_clinicians(clinicians.encode())
    assert [(problem.row, problem.field) for problem in report.refused] == [(2, "organisation")]
    stored = await find_login(world, "bo@rz1.example.org")
    assert stored is not None
    assert (stored.person.role, stored.person.owner) == (Role.CLINICIAN, "organisation:RZ1")


async def test_a_directory_that_is_malformed_on_the_way_stores_nothing_of_it(world: World) -> None:
    before = await counts(world)
    with pytest.raises(MalformedFile):
        await directory_upload(world).load_authorities((NEW_AUTHORITY + BARNHAM + '709,"open').encode())
    assert await counts(world) == before
    async with world.database.reading() as connection:
        assert await directory.find_authority(connection, "708") is None


async def test_an_import_is_audited_by_who_did_it(world: World) -> None:
    await directory_upload(world).load_authorities(AUTHORITIES.encode())
    assert (await acts(world, "broker:operations"))[-1] == ("cli:officer", "authorities.imported")


async def test_an_operators_password_is_made_and_kept_nowhere(world: World) -> None:
    password = await make_operator(
        world.database, world.keyring, world.clock, login="op@example.org", name="Olive Operator", actor="cli:root"
    )
    stored = await find_login(world, "op@example.org")
    assert stored is not None
    assert (stored.person.role, stored.person.owner) == (Role.OPERATOR, "broker:operations")
    assert PasswordHasher().verify(stored.password_hash, password)
    assert (await acts(world, "broker:operations"))[-1] == ("cli:root", "operator.added")
