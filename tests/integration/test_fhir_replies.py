"""Replies by FHIR on both databases: who is answered so, with which token, and that it arrives as it was meant."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import select

from adapters.child_list_csv import RowProblem
from adapters.fhir_reply import FhirReplyChannel
from adapters.posting import PostingOptions
from broker.directory_upload import DirectoryUpload, ImportReport
from broker.dispatcher import Dispatcher, DispatchOptions
from broker.storage import directory, outbox
from broker.storage.tables import Delivery, Lane, SiteRow, table
from mock_nhs.faults import Faults
from mock_nhs.fhir_listener import FhirListener, FhirListenerOptions
from mock_nhs.journal import Journal
from mock_nhs.reply_book import Reply, ReplyBook
from schemas.delivery import ChannelName
from tests.bundles import encode, make_message
from tests.world import CASEY, World, hl7

TOKEN = "a-token.of~ours+/=="
COLUMNS = "code,name,telephone,authorities,reply_host,reply_port,replies_for_adults,peers,credential,reply_url"
FENWICK = "organisation:RZ1"
_deliveries, _lanes, _sites = table(Delivery), table(Lane), table(SiteRow)


async def load_site(
    world: World, *, url: str = "", host: str = "", credential: str | None = None, code: str = "RZ1"
) -> ImportReport:
    """Load one site anew; without a credential the file does not have that column."""
    upload = DirectoryUpload(
        world.database, world.keyring, world.clock, demo_passwords=True, actor="test", dry_run=False
    )
    header, row = COLUMNS, f"{code},Fenwick General Hospital,01632 960301,706 707,{host},{host and 2},no,,c,{url}"
    if credential is not None:
        header, row = f"{header},reply_credential", f"{row},{credential}"
    return await upload.load_sites(f"{header}\n{row}\n".encode(), world.directory / "senders.json")


async def secrets(world: World) -> bytes:
    async with world.database.reading() as connection:
        return (await directory.load_secrets(connection, world.keyring, FENWICK)).reply


async def due(world: World) -> list[tuple[str, dict[str, Any] | bytes]]:
    """Channel and content of everything for the department, as it would be sent."""
    async with world.database.writing() as connection:
        lanes = await outbox.lease_lanes(
            connection, by="test", lanes_max=10, lease=DispatchOptions(name="test").lease, now=world.clock.now()
        )
        found = []
        for lane in lanes:
            claimed = await outbox.claim_due(connection, lane, deliveries_max=10, now=world.clock.now())
            opened = outbox.open_claimed(world.keyring, claimed)
            found += [(lane, delivery) for delivery in opened if lane.owner == FENWICK]
        await connection.rollback()
    return [
        (lane.channel.value, json.loads(each.content) if "json" in each.content_type else each.content)
        for lane, each in found
    ]


@asynccontextmanager
async def listening(
    record: Path, faults: Faults, visits: dict[str, str]
) -> AsyncIterator[tuple[FhirListener, ReplyBook]]:
    journal = Journal(record)
    book = ReplyBook(journal)
    listener = FhirListener(FhirListenerOptions(token=TOKEN), faults, journal, book, visits)
    await listener.start()
    try:
        yield listener, book
    finally:
        await listener.stop()
        journal.close()


@asynccontextmanager
async def dispatching(world: World) -> AsyncIterator[None]:
    channel = FhirReplyChannel(
        PostingOptions(allow_plain_http=True, allow_private_addresses=True),
        on_event=lambda name, facts: None,
        now=world.clock.now,
    )
    options = DispatchOptions(name="one", topics={}, poll_s=0.02)
    dispatcher = Dispatcher(world.database, world.keyring, world.clock, {ChannelName.FHIR_REPLY: channel}, options)
    running = asyncio.create_task(dispatcher.run())
    try:
        yield
    finally:
        dispatcher.stop()
        await running
        await channel.close()


async def until_sent(world: World, *, state: str = "sent", code: str = "http_200") -> None:
    async with asyncio.timeout(20):
        while True:
            async with world.database.reading() as connection:
                query = select(_deliveries.c.state, _deliveries.c.last_code).join(
                    _lanes, _lanes.c.id == _deliveries.c.lane
                )
                found = (await connection.execute(query.where(_lanes.c.channel == "fhir_reply"))).all()
            if found and all((row.state, row.last_code) == (state, code) for row in found):
                return
            await asyncio.sleep(0.02)


async def test_a_department_with_both_is_answered_in_kind(world: World) -> None:
    await load_site(world, url="https://ed.example.org/FHIR/R4/$process-message", host="127.0.0.1")
    await world.list_children(CASEY)
    await world.receive(hl7())
    [(by_hl7, _)] = await due(world)
    assert by_hl7 == "hl7v2_reply"
    await world.receive(encode(make_message()), headers={"ce_source": b"RZ1"})
    assert sorted(channel for channel, _ in await due(world)) == ["fhir_reply", "hl7v2_reply"]


async def test_a_department_with_a_fhir_server_only_is_answered_there(world: World) -> None:
    url = "https://ed.example.org/FHIR/R4/$process-message"
    await load_site(world, url=url)
    await world.list_children(CASEY)
    await world.receive(hl7(control_id="M-1"))
    [(channel, bundle)] = await due(world)
    assert channel == "fhir_reply"
    assert isinstance(bundle, dict)
    header = bundle["entry"][0]["resource"]
    assert header["response"] == {"identifier": "M-1", "code": "ok"}
    assert header["destination"][0]["endpoint"] == url
    [reply] = await world.replies()
    assert reply.wording in json.dumps(bundle)


async def test_a_department_without_one_is_answered_over_mllp(world: World) -> None:
    await world.receive(hl7())
    [(channel, content)] = await due(world)
    assert channel == "hl7v2_reply"
    assert isinstance(content, bytes)
    assert content.startswith(b"MSH|")


async def test_the_bundle_of_a_reply_has_ids_of_its_own_that_its_reply_id_gives(world: World) -> None:
    await load_site(world, url="https://ed.example.org/FHIR/R4/$process-message")
    await world.receive(hl7(visit="V1"), hl7(visit="V2", patient="K2"))
    found = [bundle for _, bundle in await due(world) if isinstance(bundle, dict)]
    ids = {(bundle["id"], bundle["entry"][0]["resource"]["id"]) for bundle in found}
    assert len(ids) == 2
    replies = {reply.reply_id for reply in await world.replies()}
    derived = {world.keyring.derive_id("reply-bundle", reply_id) for reply_id in replies}
    # The version and the variant of a UUID stand where the derived id had other digits.
    assert {_unversioned(bundle_id) for bundle_id, _ in ids} == set(map(_unversioned, derived))


def _unversioned(text: str) -> str:
    digits = text.replace("-", "")
    return digits[:12] + digits[13:16] + digits[17:]


async def test_the_reply_goes_round_over_real_sockets_and_the_department_finds_no_fault(
    world: World, tmp_path: Path
) -> None:
    await world.list_children(CASEY)
    faults = Faults()
    async with listening(tmp_path / "department.jsonl", faults, {"V1": "K12345"}) as (listener, book):
        await load_site(world, url=listener.url, credential=TOKEN)
        await world.receive(hl7())
        async with dispatching(world):
            await until_sent(world)
    [reply] = book.replies
    assert isinstance(reply, Reply)
    assert (reply.outcome, reply.problems, reply.visit_number) == ("match", (), "V1")
    [given] = await world.replies()
    assert reply.wording == given.wording
    shown = {(each.code, each.value) for each in reply.observations}
    assert ("EMERGENCY-TELEPHONE", "01632 960102") in shown
    assert ("PLAN-TYPE", "Subject to child protection plan") in shown
    assert ("NATIONAL-ASKED", "False") in shown


async def test_a_server_that_is_away_is_tried_again_and_one_that_refuses_is_not(world: World, tmp_path: Path) -> None:
    faults = Faults()
    async with listening(tmp_path / "department.jsonl", faults, {"V1": "K12345"}) as (listener, book):
        await load_site(world, url=listener.url, credential="another-token")
        faults.arm_times("ed.fhir.refuse_503", 1)
        await world.receive(hl7())
        async with dispatching(world):
            await until_sent(world, state="waiting", code="http_503")
            world.clock.advance(DispatchOptions(name="one").lease)
            await until_sent(world, state="failed", code="http_401")
    assert book.replies == []


async def test_a_department_that_takes_its_server_away_is_not_sent_to_where_it_was(world: World) -> None:
    await load_site(world, url="http://127.0.0.1:1/FHIR/R4/$process-message")
    await world.receive(hl7())
    await load_site(world)
    async with dispatching(world):
        await until_sent(world, state="waiting", code="no_route")


async def test_the_token_is_kept_until_another_is_given_or_the_server_is_gone(world: World) -> None:
    url = "https://ed.example.org/FHIR/R4/$process-message"
    kept = []
    for changes in (
        {"url": url, "credential": TOKEN},
        {"url": url},
        {"url": url, "credential": ""},
        {"url": url, "credential": "new"},
    ):
        report = await load_site(world, **changes)
        assert report.refused == ()
        kept.append(await secrets(world))
    assert kept == [TOKEN.encode(), TOKEN.encode(), TOKEN.encode(), b"new"]
    await load_site(world)
    await load_site(world, url=url)
    assert await secrets(world) == b""


async def test_the_token_is_sealed_and_the_address_is_not(world: World) -> None:
    url = "https://ed.example.org/FHIR/R4/$process-message"
    await load_site(world, url=url, credential=TOKEN)
    async with world.database.reading() as connection:
        [row] = (await connection.execute(select(_sites).where(_sites.c.code == "RZ1"))).all()
    assert row.reply_url == url
    assert TOKEN not in repr(tuple(row))


async def test_a_token_that_could_not_stand_in_a_header_is_refused_with_its_row(world: World) -> None:
    report = await load_site(world, url="https://ed.example.org/", credential="two words")
    [problem] = report.refused
    assert isinstance(problem, RowProblem)
    assert (problem.field, report.loaded) == ("reply_credential", 0)
