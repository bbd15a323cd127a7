"""Sending a list over HTTP, as a system and as a list officer, and the officer's page."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select

from broker.directory_upload import DirectoryUpload
from broker.keyring import Keyring
from broker.landing import ListBlocked
from broker.list_comparison import UploadOptions
from broker.list_upload import upload_children
from broker.storage.tables import AuditRow, ListEntry, ListUpload, table
from broker.web.list_door import create_list_door, join_list_door
from tests.factories import PASSWORD, make_nhs_number, serve_app
from tests.integration.test_held_lists import Killed, dies_after
from tests.integration.test_import_commands import run
from tests.pages import ASH, LIZ, NORTHFOLD, PAT, Client, Pages, open_pages
from tests.world import AUTHORITIES, CASEY, CHILDREN_COLUMNS, INDEX_KEY

PERSONAL = ("Tester", "Casey", "9990000018", "2015-03-02")
CSV = {"content-type": "text/csv; charset=utf-8"}


def csv_of(*rows: str) -> bytes:
    return "\r\n".join((CHILDREN_COLUMNS, *rows, "")).encode()


def child(number: int, end: str = "") -> str:
    nhs_number = make_nhs_number(number * 3)
    return f"L{number},{nhs_number},Sample,Sam,2016-04-05,,child_protection_plan,2026-01-10,{end},W1,North"


@pytest.fixture
async def office(sqlite_url: str, tmp_path: Path) -> AsyncIterator[Pages]:
    """The pages without anybody listed, and an authority whose system may send."""
    async with open_pages(sqlite_url, tmp_path, list_hold_entries=2, list_upload_bytes_max=4096) as opened:
        world = opened.world
        upload = DirectoryUpload(
            world.database, world.keyring, world.clock, demo_passwords=True, actor="test", dry_run=False
        )
        header, north, east = AUTHORITIES.splitlines()
        lines = [f"{header},list_credential", f"{north},north-credential", f"{east},new"]
        report = await upload.load_authorities("\n".join(lines).encode())
        assert "list_credential" in {issued.what for issued in report.issued if issued.to == "authority:707"}
        yield opened


@pytest.fixture
async def door(office: Pages) -> AsyncIterator[httpx.AsyncClient]:
    """The authority's own system at the door."""
    pages = office.app.state
    joined = join_list_door(create_list_door(pages.pages, pages.password_check), office.app)
    async with (
        serve_app(joined) as address,
        httpx.AsyncClient(
            base_url=address, auth=("706", "north-credential"), headers=CSV, trust_env=False, verify=False
        ) as client,
    ):
        yield client


async def count(pages: Pages, model: type = ListEntry) -> int:
    async with pages.world.database.reading() as connection:
        return int((await connection.execute(select(func.count()).select_from(table(model)))).scalar_one())


@pytest.mark.parametrize("who", [("706", "north-credential"), (LIZ, PASSWORD)])
async def test_a_list_is_loaded_and_answered_row_by_row(
    office: Pages, door: httpx.AsyncClient, who: tuple[str, str]
) -> None:
    answer = await door.post("/child-lists/706", content=csv_of(CASEY, child(2).replace("2016", "x")), auth=who)
    report = answer.json()
    assert (answer.status_code, report["file_code"], report["loaded"]) == (200, "CPF03", 1)
    assert [(row["code"], row["row"], row["field"]) for row in report["refused"]] == [("CPR07", 3, "birth_date")]
    assert not any(value in answer.text for value in PERSONAL)
    assert await count(office) == 1
    async with office.world.database.reading() as connection:
        sender = (await connection.execute(select(table(ListUpload).c.uploaded_by))).scalar_one()
    assert sender == ("system:706" if who[0] == "706" else LIZ)


@pytest.mark.parametrize(
    "who",
    [("706", "wrong"), ("706", ""), ("707", "north-credential"), ("799", "x"), (LIZ, "wrong"), (ASH, PASSWORD), None],
)
async def test_nobody_else_may_send_it(office: Pages, door: httpx.AsyncClient, who: tuple[str, str] | None) -> None:
    door.auth = httpx.Auth() if who is None else httpx.BasicAuth(*who)
    answer = await door.post("/child-lists/706", content=csv_of(CASEY))
    assert answer.status_code == 401
    assert await count(office) == 0


async def test_a_list_officer_sends_no_other_authoritys_list(door: httpx.AsyncClient) -> None:
    assert (await door.post("/child-lists/707", content=csv_of(CASEY), auth=(LIZ, PASSWORD))).status_code == 401


@pytest.mark.parametrize(
    ("body", "headers", "query", "told"),
    [
        (b"", CSV, "", (400, "CPF01")),
        (csv_of(CASEY) + b'L2,"open', CSV, "", (400, "CPF01")),
        (b'{"entries":[],"version":2}', {"content-type": "application/json"}, "", (400, "CPF06")),
        (csv_of(CASEY.replace("9990000018", "ABCD 12")), CSV, "", (422, "CPF04")),
        (csv_of(CASEY), {"content-type": "application/xml"}, "", (415, None)),
        (csv_of(CASEY), {**CSV, "content-encoding": "gzip"}, "", (415, None)),
        (csv_of(CASEY), CSV, "?kind=all", (400, None)),
        (csv_of(CASEY) + b"x" * 5000, CSV, "", (413, None)),
        (csv_of(CASEY), CSV, "?dry_run=yes", (200, "CPF02")),
    ],
)
async def test_what_cannot_be_loaded_leaves_nothing_and_says_why(
    door: httpx.AsyncClient, body: bytes, headers: dict[str, str], query: str, told: tuple[int, str | None]
) -> None:
    answer = await door.post(f"/child-lists/706{query}", content=body, headers=headers)
    assert (answer.status_code, answer.json().get("file_code")) == told
    assert not any(value in answer.text for value in PERSONAL)
    anew = await door.post("/child-lists/706", content=csv_of(CASEY))
    assert anew.json()["changed"] == 1


async def test_a_full_list_that_ends_too_much_is_held_at_the_door(door: httpx.AsyncClient) -> None:
    await door.post("/child-lists/706?kind=full", content=csv_of(*map(child, range(1, 5))))
    answer = await door.post("/child-lists/706", content=csv_of(*(child(n, "2026-02-01") for n in range(1, 4))))
    assert (answer.status_code, answer.json()["state"], answer.json()["file_code"]) == (202, "held", None)


# The page


async def send_file(client: Client, file: bytes, **fields: str) -> httpx.Response:
    fields = {"form_token": client.form_token, **fields}
    return await client.post("/lists", data=fields, files={"file": ("list.csv", file, "text/csv")})


async def test_an_officer_sends_a_list_mends_two_rows_and_decides_what_waits(office: Pages) -> None:
    async with office.signed_in(LIZ) as officer:
        assert "No list has been loaded yet" in (await officer.get("/lists")).text
        bad = [child(2).replace("2026-01-10", "10/01/26"), child(3).replace("child_", "kind_")]
        answer = await send_file(officer, csv_of(CASEY, *bad, child(4), child(5)))
        assert answer.status_code == 200
        assert "Some rows were not loaded" in answer.text and "CPF03" in answer.text
        assert re.findall(r'role="rowheader">Row (\d+)</th><td role="cell">(\w+)</td>', answer.text) == [
            ("3", "start_date"),
            ("4", "plan_type"),
        ]
        assert "The file was loaded" in (await send_file(officer, csv_of(child(2), child(3)))).text

        missing = (await send_file(officer, csv_of(CASEY, *map(child, range(2, 5))), kind="full")).text
        [address] = re.findall(r'action="(/lists/differences/[0-9a-f]{32})"', missing)
        assert "Sam Sample" in missing
        assert (await officer.send_form(address, decision="maybe")).status_code == 404
        assert (await officer.send_form(address, decision="still_listed")).status_code == 303
        assert (await officer.send_form(address, decision="ended")).status_code == 404

        held = (await send_file(officer, csv_of(*(child(n, "2026-02-01") for n in range(2, 5))))).text
        assert "The file is held" in held
        [reject] = re.findall(r'action="(/lists/held/[0-9a-f]{32}/reject)"', held)
        done = await officer.send_form(reject.replace("reject", "confirm"))
        assert "The file was loaded" in done.text
        assert (await officer.send_form(reject)).status_code == 404
    acts = [action for actor, action, _ in await office.acts(NORTHFOLD) if actor == LIZ]
    assert {"list.uploaded", "list.held", "list.confirmed", "difference.read", "difference.still_listed"} <= set(acts)


async def test_a_file_that_cannot_land_shows_itself_and_a_person_drops_it(
    office: Pages, door: httpx.AsyncClient
) -> None:
    world, rows = office.world, csv_of(*map(child, range(1, 4)))
    sliced = UploadOptions(short_bytes_max=0, slice_rows=1, slice_rows_max=1)
    load = partial(upload_children, world.database, clock=world.clock, authority="706", file=rows, uploaded_by=LIZ)
    with pytest.raises(Killed):
        await load(keyring=world.keyring, options=sliced, on_progress=dies_after(1))
    world.clock.advance(sliced.landing_lease)
    with pytest.raises(ListBlocked, match="CPIS_FIELD_KEYS"):
        await load(keyring=Keyring({"t2": bytes(32)}, INDEX_KEY))
    world.clock.advance(timedelta(minutes=1))

    answer = await door.post("/child-lists/706", content=rows)
    assert answer.status_code == 409 and "CPIS_FIELD_KEYS" in answer.json()["problem"]
    async with office.signed_in(LIZ) as liz, office.signed_in(PAT) as pat:
        for page in ((await liz.get("/lists")).text, (await pat.get("/operations")).text):
            assert "CPIS_FIELD_KEYS" in page and "1 minute" in page
        assert (await pat.get("/_status")).json()["lists"]["blocked"] == 1
    [shown] = json.loads((await run(world, "children", "landings", "list", "--json")).stdout)
    assert (shown["authority"], shown["landed"]) == ("706", 1)
    drop = ("children", "landings", "drop", shown["upload_id"])
    assert (await run(world, *drop)).exit_code == 2, "nobody drops a file without a name"
    dropped = await run(world, *drop, "--by", "Pat Operator", "--why", "the key is gone")
    assert dropped.stdout.startswith("Dropped. 1 entries of it have landed and stay")
    assert (await run(world, *drop, "--by", "Pat Operator")).exit_code == 1, "it is gone"
    async with world.database.reading() as connection:
        acts = select(table(AuditRow).c.actor, table(AuditRow).c.reason)
        [act] = (await connection.execute(acts.where(table(AuditRow).c.action == "list.dropped"))).all()
    assert act.actor.startswith("Pat Operator") and act.reason == "the key is gone"
    assert (await door.post("/child-lists/706", content=rows)).json()["changed"] == 2, "the list takes files again"


async def test_a_file_without_the_forms_token_or_too_large_is_refused(office: Pages) -> None:
    async with office.signed_in(LIZ) as officer:
        answer = await officer.post("/lists", files={"file": ("list.csv", csv_of(CASEY), "text/csv")})
        assert answer.status_code == 400
        assert (await send_file(officer, csv_of(CASEY) + b"x" * 5000)).status_code == 413
        assert (await send_file(officer, csv_of(CASEY) + b"x" * 500_000)).status_code == 413
        assert (await officer.send_form("/lists", kind="full")).status_code == 400
    assert await count(office) == 0


async def test_a_malformed_file_is_told_on_the_page(office: Pages) -> None:
    async with office.signed_in(LIZ) as officer:
        answer = await send_file(officer, b"local_id,nhs_number\r\n")
    assert "Nothing was loaded" in answer.text and "CPF01" in answer.text and "family_name" in answer.text


async def test_a_guessed_credential_is_heard_ten_times_a_minute(office: Pages, door: httpx.AsyncClient) -> None:
    for _ in range(10):
        assert (await door.post("/child-lists/706", content=csv_of(CASEY), auth=("706", "guess"))).status_code == 401
    assert (await door.post("/child-lists/706", content=csv_of(CASEY))).status_code == 401
    assert await count(office) == 0
    others = await door.post("/child-lists/706", content=csv_of(CASEY), auth=(LIZ, PASSWORD))
    assert others.status_code == 200, "whoever else may send it is heard"
