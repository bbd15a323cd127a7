"""Child lists by MESH, against NHS England's own sandbox: an authority sends, and is answered in its mailbox."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import mesh_client
import msgspec
import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from typer.testing import CliRunner

from adapters.errors import MailboxUnavailable
from adapters.mesh import MeshMailbox, MeshOptions
from broker import cli
from broker.bootstrap import ConfigurationError
from broker.bootstrap.jobs import open_part
from broker.bootstrap.mesh import inbox_options, list_loader, pds_answers
from broker.bootstrap.tracing import open_tracer
from broker.jobs.mesh_inbox import LoadList, MeshInbox, MeshInboxOptions
from broker.settings import Environment, Settings
from broker.storage import child_lists, mesh_files
from broker.storage.deadlines import hand_over_overdue
from broker.storage.mesh_files import HandledFile, StoredFile
from broker.storage.tables import AuditRow, ListEntry, ListUpload, MeshFile, table
from mock_nhs.faults import Faults
from mock_nhs.pds import Pds
from mock_nhs.pds import PdsOptions as ServiceOptions
from schemas.delivery import Outcome, OutcomeClass
from schemas.mesh import ListAnswer, ReceivedList
from tests.engines import MESH_KEY, MESH_PASSWORD, MeshSandbox, free_port
from tests.factories import make_nhs_number
from tests.unit.test_cpis_xml import child, plan, record, upload
from tests.world import CASEY, CHILDREN_COLUMNS, World, open_world

AUTHORITY, BROKER, STRANGER = "X26ABC1", "X26ABC2", "X26ABC3"
UPLOAD, REPORT = "TEST_WORKFLOW", "TEST_WORKFLOW_ACK"
OPTIONS = MeshInboxOptions(upload_workflow=UPLOAD, report_workflow=REPORT, authorities={AUTHORITY: "706"})
OTHER = f"L2,{make_nhs_number(2)},Sample,Jordan,2016-04-05,,looked_after_child,2026-01-11,,W1,North,"
PERSONAL = ("Casey", "Tester", "9990000018", "ZZ99", "2015-03-02")


def rows(*lines: str) -> bytes:
    return "\r\n".join((CHILDREN_COLUMNS, *lines, "")).encode()


@contextmanager
def client(sandbox: MeshSandbox, mailbox: str) -> Iterator[Any]:
    """Another party of MESH, with NHS England's client itself."""
    with closing(
        mesh_client.MeshClient(sandbox.url, mailbox, MESH_PASSWORD, shared_key=MESH_KEY.encode(), max_retries=0)
    ) as opened:
        yield opened


def send(sandbox: MeshSandbox, body: bytes, *, sender: str = AUTHORITY, workflow: str = UPLOAD, **more: Any) -> str:
    """Put a message into the broker's mailbox; returns its id."""
    with client(sandbox, sender) as party:
        return str(party.send_message(BROKER, body, workflow_id=workflow, **more))


def waiting(sandbox: MeshSandbox, mailbox: str = BROKER) -> list[str]:
    with client(sandbox, mailbox) as party:
        return list(party.list_messages())


def reports(sandbox: MeshSandbox, mailbox: str = AUTHORITY) -> list[tuple[str, dict[str, Any]]]:
    """(Mex-LocalID, JSON) of what the authority was answered."""
    found = []
    with client(sandbox, mailbox) as party:
        for message_id in party.list_messages():
            message = party.retrieve_message(message_id)
            assert (message.sender, message.workflow_id) == (BROKER, REPORT)
            found.append((message.local_id, json.loads(message.read())))
            message.close()
    return found


@pytest.fixture
def sandbox(mesh_sandbox: MeshSandbox) -> MeshSandbox:
    """The sandbox with empty mailboxes."""
    call(mesh_sandbox, "DELETE", "/admin/reset")
    return mesh_sandbox


def call(sandbox: MeshSandbox, method: str, path: str, content: Any = None) -> None:
    body = json.dumps(content).encode() if content is not None else None
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{sandbox.url}{path}", body, headers, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def mailbox_of(sandbox: MeshSandbox, **more: Any) -> MeshMailbox:
    given: dict[str, Any] = {"password": MESH_PASSWORD, "shared_key": MESH_KEY, "timeout_s": 10.0} | more
    return MeshMailbox(MeshOptions(url=sandbox.url, mailbox=BROKER, **given))


@pytest.fixture
async def mailbox(sandbox: MeshSandbox) -> AsyncIterator[MeshMailbox]:
    opened = mailbox_of(sandbox)
    yield opened
    await opened.close()


def inbox_of(
    world: World, mailbox: MeshMailbox, load: LoadList | None = None, options: MeshInboxOptions = OPTIONS
) -> MeshInbox:
    load = load or list_loader(world.database, world.keyring, world.clock)
    return MeshInbox(world.database, world.keyring, world.clock, mailbox=mailbox, load=load, options=options)


async def count(world: World, model: Any) -> int:
    async with world.database.reading() as connection:
        return int((await connection.execute(select(func.count()).select_from(table(model)))).scalar_one())


async def files(world: World, *, everything: bool = False) -> list[StoredFile]:
    async with world.database.reading() as connection:
        return await mesh_files.list_files(connection, everything=everything, rows_max=100)


async def audited(world: World) -> list[str]:
    acts = table(AuditRow)
    async with world.database.reading() as connection:
        found = await connection.execute(select(acts.c.action).where(acts.c.action.like("mesh.%")))
        return [row.action for row in found]


async def test_a_list_is_loaded_acknowledged_and_answered(
    world: World, sandbox: MeshSandbox, mailbox: MeshMailbox
) -> None:
    message_id = send(sandbox, rows(CASEY, OTHER), filename="Casey Tester.csv", local_id="theirs")
    await inbox_of(world, mailbox).run_once()
    assert await count(world, ListEntry) == 2
    assert waiting(sandbox) == []
    [(local_id, report)] = reports(sandbox)
    assert local_id == report["in_reply_to"] == message_id
    assert (report["file_code"], report["report"]["loaded"], report["authority"]) == ("CPF02", 2, "706")
    assert await files(world) == []
    [settled] = await files(world, everything=True)
    assert not settled.is_kept
    assert settled.answered_at is not None
    uploads = table(ListUpload)
    async with world.database.reading() as connection:
        assert (await connection.execute(select(uploads.c.uploaded_by))).scalars().all() == ["mesh:X26ABC1"]


async def test_a_list_in_chunks_and_packed_is_put_together(
    world: World, sandbox: MeshSandbox, mailbox: MeshMailbox
) -> None:
    send(sandbox, rows(CASEY, OTHER), max_chunk_size=100, compress=True)
    await inbox_of(world, mailbox).run_once()
    assert await count(world, ListEntry) == 2


async def test_bad_rows_are_answered_without_their_values(
    world: World, sandbox: MeshSandbox, mailbox: MeshMailbox
) -> None:
    send(sandbox, rows(CASEY.replace("9990000018", "9990000019"), OTHER))
    await inbox_of(world, mailbox).run_once()
    [(_, report)] = reports(sandbox)
    assert report["file_code"] == "CPF03"
    assert [(row["row"], row["field"]) for row in report["report"]["refused"]] == [(2, "nhs_number")]
    assert not any(value in json.dumps(report) for value in (*PERSONAL, "9990000019"))


async def test_mesh_hears_nothing_before_the_list_is_committed(
    world: World, sandbox: MeshSandbox, mailbox: MeshMailbox
) -> None:
    message_id = send(sandbox, rows(CASEY))

    async def outage(_: ReceivedList) -> ListAnswer:
        raise OSError

    await inbox_of(world, mailbox, outage).run_once()
    assert waiting(sandbox) == [message_id]
    assert reports(sandbox) == []
    [open_file] = await files(world)
    assert open_file.reason == ""
    await inbox_of(world, mailbox).run_once()
    assert waiting(sandbox) == []
    assert await files(world) == []


async def test_a_process_that_dies_after_the_commit_loads_nothing_twice(
    world: World, sandbox: MeshSandbox, mailbox: MeshMailbox
) -> None:
    send(sandbox, rows(CASEY))
    load = list_loader(world.database, world.keyring, world.clock)

    async def load_and_die(received: ReceivedList) -> ListAnswer:
        await load(received)
        raise OSError

    await inbox_of(world, mailbox, load_and_die).run_once()
    assert await count(world, ListEntry) == 1
    await inbox_of(world, mailbox).run_once()
    assert (await count(world, ListEntry), await count(world, ListUpload)) == (1, 1)
    [(_, report)] = reports(sandbox)
    assert (report["report"]["was_known"], report["report"]["changed"]) == (True, 0)


async def test_a_message_that_another_process_has_in_hand_is_left_to_it(
    world: World, sandbox: MeshSandbox, mailbox: MeshMailbox
) -> None:
    message_id = send(sandbox, rows(CASEY))
    now, hour = world.clock.now(), timedelta(hours=1)
    async with world.database.writing() as connection:
        assert await mesh_files.claim_file(connection, message_id, now=now, lease=hour, limit=hour) is not None
    await inbox_of(world, mailbox).run_once()
    assert await count(world, ListEntry) == 0
    world.clock.advance(hour)
    await asyncio.gather(*(inbox_of(world, mailbox).run_once() for _ in range(3)))
    assert await audited(world) == ["mesh.loaded"]
    assert len(reports(sandbox)) == 1


async def test_an_upload_of_a_case_system_is_loaded_and_answered_in_json(
    world: World, sandbox: MeshSandbox, mailbox: MeshMailbox
) -> None:
    send(sandbox, upload(record(child(), plan("cPP"))))
    await inbox_of(world, mailbox).run_once()
    assert await count(world, ListEntry) == 1
    [(_, report)] = reports(sandbox)
    assert report["file_code"] == "CPF02"


async def test_xml_waits_for_pds_and_csv_does_not(
    world: World, sandbox: MeshSandbox, mailbox: MeshMailbox, tmp_path: Path
) -> None:
    faults = Faults()
    service = Pds(ServiceOptions(), [], tmp_path / "pds.jsonl", faults, world.clock.now)
    await service.start()
    tracer = open_tracer(Settings(environment=Environment.DEVELOPMENT, pds_base_url=service.url))
    assert tracer is not None
    load = list_loader(world.database, world.keyring, world.clock, pds_available=partial(pds_answers, tracer))
    try:
        faults.arm_share("pds.refuse_503", 1.0)
        send(sandbox, upload(record(child(), plan("cPP"))))
        await inbox_of(world, mailbox, load).run_once()
        assert await count(world, ListUpload) == 0
        [(_, report)] = reports(sandbox)
        assert report["file_code"] == "CPF05"
        assert "again" in report["problem"]
        assert (waiting(sandbox), await files(world)) == ([], [])
        send(sandbox, rows(CASEY))
        await inbox_of(world, mailbox, load).run_once()
        assert await count(world, ListEntry) == 1

        faults.disarm("pds.refuse_503")
        send(sandbox, upload(record(child(), plan("cPP"))))
        await inbox_of(world, mailbox, load).run_once()
        assert [report["file_code"] for _, report in reports(sandbox)][-1] == "CPF02"
    finally:
        await tracer.close()
        await service.stop()


async def test_xml_of_another_authority_than_the_mailbox_is_kept_and_not_loaded(
    world: World, sandbox: MeshSandbox, mailbox: MeshMailbox
) -> None:
    options = msgspec.structs.replace(OPTIONS, authorities={AUTHORITY: "707"})
    send(sandbox, upload(record(child(), plan("cPP"))))
    await inbox_of(world, mailbox, options=options).run_once()
    assert await count(world, ListEntry) == 0
    [kept] = await files(world)
    assert (kept.reason, kept.owner, kept.is_kept) == ("unreadable", "authority:707", True)


async def test_what_cannot_be_read_is_answered_and_waits_for_a_person_with_its_bytes(
    world: World, sandbox: MeshSandbox, mailbox: MeshMailbox
) -> None:
    message_id = send(sandbox, b"Casey Tester,not,a,list\r\n")
    await inbox_of(world, mailbox).run_once()
    assert waiting(sandbox) == []
    [(_, report)] = reports(sandbox)
    assert (report["file_code"], report["report"]) == ("CPF01", None)
    [kept] = await files(world)
    assert (kept.id, kept.reason, kept.held_by) == (message_id, "unreadable", "operators")
    assert "Casey" not in repr(kept)
    async with world.database.reading() as connection:
        found = await mesh_files.load_file(connection, world.keyring, message_id)
        stored = repr((await connection.execute(select(table(MeshFile)))).all())
    assert found is not None
    assert found[1] == b"Casey Tester,not,a,list\r\n"
    assert "Casey" not in stored
    world.clock.advance(OPTIONS.limit)
    async with world.database.writing() as connection:
        limit = {"limit": OPTIONS.limit, "rows_max": 10}
        [moved] = await hand_over_overdue(connection, MeshFile, now=world.clock.now(), **limit)  # type: ignore[arg-type]
    assert (moved.id, moved.level) == (message_id, 1)


async def test_what_is_no_list_of_a_known_mailbox_is_kept_and_not_answered(
    world: World, sandbox: MeshSandbox, mailbox: MeshMailbox
) -> None:
    send(sandbox, rows(CASEY), sender=STRANGER)
    send(sandbox, b"something else", workflow="TEST_WORKFLOW2")
    undelivered = {"mailbox_id": BROKER, "code": "14", "description": "not collected", "workflow_id": REPORT}
    call(sandbox, "POST", "/messageexchange/admin/report", undelivered)
    await inbox_of(world, mailbox).run_once()
    assert await count(world, ListEntry) == 0
    assert sorted(file.reason for file in await files(world)) == ["other_workflow", "report_of_mesh", "unknown_sender"]
    assert waiting(sandbox) == []
    assert reports(sandbox) == reports(sandbox, STRANGER) == []
    assert await audited(world) == ["mesh.kept"] * 3


async def test_a_list_that_is_too_large_stays_until_a_person_asks_again(world: World, sandbox: MeshSandbox) -> None:
    message_id = send(sandbox, rows(CASEY), compress=True)
    small, large = mailbox_of(sandbox, message_bytes_max=100), mailbox_of(sandbox)
    try:
        await inbox_of(world, small).run_once()
        await inbox_of(world, large).run_once()
        assert waiting(sandbox) == [message_id]
        [kept] = await files(world)
        assert (kept.reason, kept.is_kept) == ("too_large", False)
        async with world.database.writing() as connection:
            assert await mesh_files.ask_again(connection, message_id) is not None
        await inbox_of(world, large).run_once()
    finally:
        await small.close()
        await large.close()
    assert (await count(world, ListEntry), waiting(sandbox), await files(world)) == (1, [], [])


@pytest.mark.parametrize("fault", [ZeroDivisionError(), IntegrityError("INSERT", None, ValueError())])
async def test_a_fault_of_ours_is_tried_again_and_then_kept_and_the_next_message_is_not_held_up(
    world: World, sandbox: MeshSandbox, mailbox: MeshMailbox, fault: Exception
) -> None:
    load = list_loader(world.database, world.keyring, world.clock)
    bad = send(sandbox, b"\xff")
    send(sandbox, rows(CASEY))

    async def fails(received: ReceivedList) -> ListAnswer:
        if received.body == b"\xff":
            raise fault
        return await load(received)

    inbox = inbox_of(world, mailbox, fails)
    await inbox.run_once()
    assert (await count(world, ListEntry), waiting(sandbox)) == (1, [bad])
    await inbox.run_once()
    await inbox.run_once()
    [kept] = await files(world)
    assert (kept.id, kept.reason, kept.detail, kept.is_kept) == (bad, "failed", type(fault).__name__, True)
    assert waiting(sandbox) == []


async def test_a_file_that_is_loaded_late_undoes_nothing_of_a_newer_one(
    world: World, sandbox: MeshSandbox, mailbox: MeshMailbox
) -> None:
    load = list_loader(world.database, world.keyring, world.clock)
    fails_once = [True]

    async def stumbles(received: ReceivedList) -> ListAnswer:
        if b"Older" in received.body and fails_once:
            fails_once.clear()
            raise ZeroDivisionError
        world.clock.advance(timedelta(seconds=1))
        return await load(received)

    send(sandbox, rows(CASEY))
    await inbox_of(world, mailbox).run_once()
    world.clock.advance(timedelta(hours=1))
    send(sandbox, rows(CASEY.replace("Tester", "Older"), OTHER))
    send(sandbox, rows(CASEY.replace("Tester", "Newer")))
    inbox = inbox_of(world, mailbox, stumbles)
    await inbox.run_once()
    await inbox.run_once()
    async with world.database.reading() as connection:
        listed = await child_lists.load_list(connection, world.keyring, "706")
    assert {each.entry.name.family for each in listed} == {"Newer", "Sample"}
    assert reports(sandbox)[-1][1]["file_code"] == "CPF03"


async def test_an_answer_that_mesh_refuses_waits_for_a_person(world: World, mailbox: MeshMailbox) -> None:
    now, hour = world.clock.now(), timedelta(hours=1)
    async with world.database.writing() as connection:
        await mesh_files.claim_file(connection, "M1", now=now, lease=hour, limit=hour)
        handled = HandledFile(id="M1", owner="authority:706", sender="GONE", answer=b"{}")
        await mesh_files.save_handled(connection, world.keyring, handled, now)
    await inbox_of(world, mailbox).run_once()
    [kept] = await files(world)
    assert (kept.reason, kept.detail) == ("not_answered", "mesh_12")


async def test_an_answer_that_does_not_get_through_is_sent_later(world: World, sandbox: MeshSandbox) -> None:
    nowhere = MeshMailbox(
        MeshOptions(url=f"http://127.0.0.1:{free_port()}", mailbox=BROKER, password=MESH_PASSWORD, shared_key=MESH_KEY)
    )
    refused, good = mailbox_of(sandbox, password="wrong"), mailbox_of(sandbox)
    send(sandbox, rows(CASEY))
    try:
        now, hour = world.clock.now(), timedelta(hours=1)
        async with world.database.writing() as connection:
            await mesh_files.claim_file(connection, "M1", now=now, lease=hour, limit=hour)
            handled = HandledFile(id="M1", owner="authority:706", sender=AUTHORITY, answer=b"{}")
            await mesh_files.save_handled(connection, world.keyring, handled, now)
        for bad in (nowhere, refused):
            await inbox_of(world, bad).run_once()
            world.clock.advance(timedelta(minutes=10))
        assert [file.id for file in await files(world)] == ["M1"]
        await inbox_of(world, good).run_once()
    finally:
        for each in (nowhere, refused, good):
            await each.close()
    assert await files(world) == []
    assert len(reports(sandbox)) == 2


async def test_what_the_mailbox_raises_names_nothing_but_a_word(sandbox: MeshSandbox) -> None:
    refused = mailbox_of(sandbox, password="wrong")
    try:
        with pytest.raises(MailboxUnavailable, match=r"^http_403$"):
            await refused.list_waiting()
        outcome = await refused.send(AUTHORITY, b"{}", workflow=REPORT, local_id="1")
    finally:
        await refused.close()
    assert outcome == Outcome(outcome=OutcomeClass.TRANSIENT, code="mesh_refused")


def mesh_settings(sandbox: MeshSandbox, directory: Path, **more: Any) -> Settings:
    given: dict[str, Any] = {
        "environment": Environment.DEVELOPMENT,
        "data_dir": directory,
        "mesh_url": sandbox.url,
        "mesh_mailbox": BROKER,
        "mesh_password": MESH_PASSWORD,
        "mesh_shared_key": MESH_KEY,
        "mesh_upload_workflow": UPLOAD,
        "mesh_report_workflow": REPORT,
        "mesh_senders": f"{AUTHORITY}=706",
        "mesh_poll_s": 0.05,
    }
    return Settings(_env_file=None, **(given | more))  # type: ignore[call-arg]


async def test_the_jobs_part_looks_into_the_mailbox(sandbox: MeshSandbox, tmp_path: Path) -> None:
    settings = mesh_settings(sandbox, tmp_path)
    send(sandbox, rows(CASEY))
    async with open_world(settings.resolved_database_url, tmp_path) as world:
        async with open_part(settings) as part:
            running = asyncio.create_task(part.run())
            async with asyncio.timeout(20):
                # The sandbox is another process, which has no event to wait for
                while not await asyncio.to_thread(reports, sandbox):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            part.stop()
            await running
        assert await count(world, ListEntry) == 1


async def test_workflow_ids_have_no_default_and_what_is_missing_is_named(sandbox: MeshSandbox, tmp_path: Path) -> None:
    assert not Settings(_env_file=None).mesh_upload_workflow  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match=r"^CPIS_MESH_UPLOAD_WORKFLOW, CPIS_MESH_PASSWORD: "):
        inbox_options(mesh_settings(sandbox, tmp_path, mesh_upload_workflow="", mesh_password=""))
    for senders in ("X26ABC1", "X26ABC1=706,X26ABC1=707", "X26ABC1=706,"):
        with pytest.raises(ConfigurationError, match=r"^CPIS_MESH_SENDERS: "):
            inbox_options(mesh_settings(sandbox, tmp_path, mesh_senders=senders))
    assert inbox_options(mesh_settings(sandbox, tmp_path, mesh_senders="x26abc1 = 706, B = 707")).authorities == {
        "X26ABC1": "706",
        "B": "707",
    }


def test_a_person_finds_reads_and_settles_what_was_kept(
    sandbox: MeshSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = mesh_settings(sandbox, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CPIS_ENVIRONMENT", "development")
    monkeypatch.setenv("CPIS_DATA_DIR", str(tmp_path))

    async def keep() -> str:
        from broker.bootstrap import load_keyring

        async with open_world(settings.resolved_database_url, tmp_path) as world:
            world.keyring = load_keyring(settings)
            mailbox = mailbox_of(sandbox)
            message_id = send(sandbox, b"not a list")
            await inbox_of(world, mailbox).run_once()
            await mailbox.close()
            return message_id

    message_id = asyncio.run(keep())
    runner = CliRunner()
    listed = runner.invoke(cli.app, ["mesh", "list"])
    assert message_id in listed.output
    assert "unreadable" in listed.output
    written = tmp_path / "list.csv"
    show = ["mesh", "show", message_id, "--raw", str(written)]
    assert runner.invoke(cli.app, show).exit_code == 2
    assert runner.invoke(cli.app, [*show, "--by", "Sam Tester"]).exit_code == 0
    assert written.read_bytes() == b"not a list"
    settle = ["mesh", "settle", message_id, "--by", "Sam Tester"]
    assert runner.invoke(cli.app, settle).exit_code == 0
    assert runner.invoke(cli.app, settle).exit_code == 1
    assert "nothing of MESH waits" in runner.invoke(cli.app, ["mesh", "list"]).output

    async def check() -> None:
        async with open_world(settings.resolved_database_url, tmp_path) as world:
            assert await audited(world) == ["mesh.kept", "mesh.shown", "mesh.settled"]
            [settled] = await files(world, everything=True)
            assert (settled.is_kept, settled.decision) == (False, "settled")

    asyncio.run(check())
