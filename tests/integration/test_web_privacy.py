"""What is recorded of every look, and what never gets out of the pages."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import timedelta
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, Page
from sqlalchemy import text

from broker.storage.audit import verify_chain
from broker.storage.tables import AlertState
from broker.web.operations import Status
from broker.web.pages import PageLimits
from schemas.alert import ReplyOutcome
from schemas.attendance import PersonName
from schemas.directory import Site
from tests.factories import (
    PASSWORD,
    make_attendance,
    make_entry,
    store_alert,
    store_reply,
    store_review,
    store_visit,
)
from tests.pages import (
    ASH,
    DEE,
    FENWICK,
    NIA,
    NORTHFOLD,
    PAT,
    SEEN,
    TWIN,
    Pages,
    open_pages,
)
from tests.world import hl7

# What is recorded


async def test_every_read_of_a_child_is_on_record_with_the_person(pages: Pages) -> None:
    path = await pages.alert_of(ASH)
    alert_id = path.removeprefix("/alerts/")
    async with pages.signed_in(DEE) as duty, pages.signed_in(NIA) as clinician:
        await duty.get("/inbox")
        await duty.get(path)
        await duty.send_form(f"{path}/acknowledge")
        await clinician.get("/replies")
    assert [act for act in await pages.acts(NORTHFOLD) if act[2] == alert_id and act[0] == DEE] == [
        (DEE, "alerts.listed", alert_id),
        (DEE, "alert.read", alert_id),
        (DEE, "alert.acknowledged", alert_id),
    ]
    [alert] = await pages.world.alerts()
    assert (NIA, "replies.listed", alert.visit_id) in await pages.acts(FENWICK)
    async with pages.world.database.reading() as connection:
        for owner in (NORTHFOLD, FENWICK):
            assert await verify_chain(connection, owner) is None


async def test_a_list_that_refreshes_itself_is_on_record_once_in_a_while_and_a_click_always(pages: Pages) -> None:
    async def listed() -> int:
        return (await pages.acts(NORTHFOLD)).count((DEE, "alerts.listed", alert_id))

    alert_id = (await pages.alert_of(ASH)).removeprefix("/alerts/")
    async with pages.signed_in(DEE) as duty:
        await duty.get("/inbox?refresh=auto")
        assert await listed() == 1
        for _ in range(3):
            pages.world.clock.advance(timedelta(seconds=30))
            await duty.get("/inbox?refresh=auto")
        assert await listed() == 1
        await duty.get("/inbox")
        await duty.get("/inbox")
        assert await listed() == 3
        pages.world.clock.advance(timedelta(seconds=PageLimits().listing_covers_s + 1))
        await duty.get("/inbox?refresh=auto")
        assert await listed() == 4
        await pages.world.receive(hl7(visit="V2"))
        await duty.get("/inbox?refresh=auto")
    newest = {alert.alert.alert_id for alert in await pages.world.alerts()} - {alert_id}
    assert (DEE, "alerts.listed", newest.pop()) in await pages.acts(NORTHFOLD), "a new one is recorded at once"


@pytest.mark.parametrize(("login", "page"), [(ASH, "inbox"), (ASH, "alert"), (NIA, "replies"), (ASH, "acknowledge")])
async def test_a_page_that_cannot_be_recorded_is_refused(pages: Pages, login: str, page: str) -> None:
    alert = await pages.alert_of(ASH)
    async with pages.signed_in(login) as person:
        async with pages.world.database.writing() as connection:
            await connection.execute(text("alter table audit rename to audit_lost"))
        if page == "acknowledge":
            answer = await person.send_form(f"{alert}/acknowledge")
        else:
            answer = await person.get(alert if page == "alert" else f"/{page}")
    assert answer.status_code == 503
    assert "Casey" not in answer.text and "K12345" not in answer.text
    [stored] = await pages.world.alerts()
    assert (stored.state, stored.opened_at) == (AlertState.OPEN, None)


# What never gets out


PLANTED = {
    "family": "Plantedfamily",
    "given": "Plantedgiven",
    "complaint": "Plantedcomplaint",
    "patient": "PLANTEDPATIENT",
    "visit": "PLANTEDVISIT",
    "local_id": "PLANTEDLOCAL",
    "nhs_number": "9990000069",
}


class Document(HTMLParser):
    """What the tests ask of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.language = ""
        self.headings: list[int] = []
        self.tables: list[bool] = []
        self.unscoped = 0
        self.addresses: list[str] = []
        self.labels: set[str] = set()
        self.inputs: list[Mapping[str, str]] = []
        self.title = ""
        self._in_title = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "html":
            self.language = found.get("lang", "")
        elif re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        elif tag == "table":
            self.tables.append(False)
        elif tag == "caption":
            self.tables[-1] = True
        elif tag == "th":
            self.unscoped += found.get("scope") not in ("row", "col")
        elif tag == "label":
            self.labels.add(found.get("for", ""))
        elif tag == "input":
            self.inputs.append(found)
        self._in_title = tag == "title"
        self.addresses += [found[name] for name in ("href", "action", "src", "content") if name in found]

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False


@pytest.fixture
async def every_page(sqlite_url: str, tmp_path: Path) -> AsyncIterator[tuple[Pages, dict[str, httpx.Response]]]:
    """Every page there is, with a planted child on each that shows one."""
    async with open_pages(sqlite_url, tmp_path) as pages:
        yield pages, await collect_pages(pages)


async def collect_pages(pages: Pages) -> dict[str, httpx.Response]:
    world, planted = pages.world, PLANTED
    entry = f"{planted['local_id']},{planted['nhs_number']},{planted['family']},{planted['given']},2015-03-02,,"
    await world.list_children(f"{entry}child_protection_plan,2026-01-10,,W1,North", TWIN)
    planted_message = hl7(
        nhs_number=planted["nhs_number"],
        family=planted["family"],
        given=planted["given"],
        complaint=planted["complaint"],
        patient=planted["patient"],
        visit=planted["visit"],
    )
    await world.receive(planted_message, hl7(nhs_number="", family="TWIN", given="SAM", visit="V2", patient="K2"))
    await world.receive(b"MSH|^~\\&|EDIS|RZ1|B|C|20260214031200||ADT^A04|C9|P|2.4\rPV1|" + planted["family"].encode())
    shown: dict[str, httpx.Response] = {}
    alert = await pages.alert_of(ASH)
    async with pages.signed_in(DEE) as duty:
        for name, path in (("inbox", "/inbox"), ("alert", alert), ("403", "/replies"), ("404", "/alerts/x")):
            shown[name] = await duty.get(path)
        shown["400"] = await duty.post(f"{alert}/acknowledge")
        shown["405"] = await duty.request("DELETE", "/inbox")
        await duty.send_form(f"{alert}/acknowledge")
        shown["acknowledged"] = await duty.get(alert)
        shown["inbox still"] = await duty.get("/inbox?refresh=off")
    async with pages.signed_in(NIA) as clinician:
        shown["replies"] = await clinician.get("/replies")
    async with pages.signed_in(PAT) as operator:
        shown["operations"] = await operator.get("/operations")
    async with pages.client() as nobody:
        shown["sign-in"] = await nobody.get("/sign-in")
        shown["refused"] = await nobody.sign_in(DEE, "wrong")
        shown["nowhere"] = await nobody.get(f"/nowhere/{planted['family']}")
    return shown


async def test_every_page_can_be_read_by_everybody(every_page: tuple[Pages, dict[str, httpx.Response]]) -> None:
    for name, answer in every_page[1].items():
        document = Document(answer.text)
        assert document.language == "en-GB", name
        assert document.headings.count(1) == 1, name
        levels = [1, *document.headings] if name == "refused" else document.headings
        assert all(after <= before + 1 for before, after in pairwise(levels)), name
        assert all(document.tables), f"{name}: a table without a caption"
        assert document.unscoped == 0, f"{name}: a heading cell without a scope"
        for field in document.inputs:
            assert field["type"] == "hidden" or field["id"] in document.labels, f"{name}: a field without a label"
        assert document.title.endswith("– Child protection alerts") and len(document.title) > 30, name


async def test_addresses_and_titles_name_nobody(every_page: tuple[Pages, dict[str, httpx.Response]]) -> None:
    for name, answer in every_page[1].items():
        document = Document(answer.text)
        for value in PLANTED.values():
            assert value.lower() not in " ".join((*document.addresses, document.title)).lower(), name
    assert PLANTED["family"] in every_page[1]["alert"].text, (
        "the planted child must be on the pages for this to mean much"
    )


class EveryRecord(logging.Handler):
    """Everything that any library would write at its usual level; of the test's own client nothing."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] not in ("httpx", "httpcore"):
            self.lines.append(self.format(record))


@pytest.fixture
def every_record() -> Iterator[EveryRecord]:
    handler, root = EveryRecord(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


async def test_the_log_names_nobody_even_when_something_breaks(
    pages: Pages, capfd: pytest.CaptureFixture[str], every_record: EveryRecord
) -> None:
    async def broken() -> Status:
        raise ValueError(f"{PLANTED['family']} {PLANTED['nhs_number']}")

    await collect_pages(pages)
    pages.app.state.status = broken
    async with pages.signed_in(PAT) as operator:
        answer = await operator.get("/operations")
        await operator.get("/inbox", params={"q": PLANTED["family"]})
    assert answer.status_code == 500 and PLANTED["family"] not in answer.text and "ValueError" not in answer.text
    written = "".join((*capfd.readouterr(), *every_record.lines))
    assert "crashed" in written and "ValueError" in written
    for value in (*PLANTED.values(), "/alerts/", "/inbox", ASH, PASSWORD):
        assert value not in written


async def test_names_are_text_whatever_they_look_like(pages: Pages, page: Page) -> None:
    world = pages.world
    hostile = ["<script>document.title='hit'</script>", '"><img src=x onerror="document.title=1">', "{{ 7*7 }}'"]
    for number, name in enumerate(hostile, start=2):
        facts = make_attendance(
            visit_number=f"X{number}",
            complaint=name,
            department=name,
            arrival_mode=name,
            nhs_number_status=name,
            local_patient_id=name,
        )
        entry = make_entry(local_id=name, name=PersonName("Tester", name))
        site = Site(code="RZ1", name=name, telephone=name)
        alert = await store_alert(world.database, world.keyring, facts, entry, site=site, held_by="W1")
        visit_id = await store_visit(
            world.database, world.keyring, make_attendance(visit_number=f"Y{number}", local_patient_id=name)
        )
        await store_reply(world.database, world.keyring, facts, ReplyOutcome.NO_RECORD, visit_id=visit_id)
        doubt = make_attendance(
            nhs_number=None, visit_number=f"Z{number}", names=(PersonName("Tester", "Casey"),), complaint=name
        )
        await store_review(world.database, world.keyring, doubt, make_entry(local_id=name), site=site, held_by="W1")
        assert alert.child.given == name
    await page.goto(pages.address)
    await page.get_by_label("Login").fill(ASH)
    await page.get_by_label("Password").fill(PASSWORD)
    await page.get_by_role("button", name="Sign in").click()
    for name in hostile:
        await page.get_by_role("link", name=f"{name} Tester").click()
        assert await page.get_by_role("heading", level=1).inner_text() == f"{name} Tester"
        assert await page.locator("main script, main img").count() == 0
        assert await page.title() == "Alert – Child protection alerts"
        await page.goto(f"{pages.address}/inbox")
        assert await page.locator("main script, main img").count() == 0
    assert "49" not in await page.locator("main").inner_text()
    await page.get_by_role("button", name="Sign out").click()
    await page.get_by_label("Login").fill(NIA)
    await page.get_by_label("Password").fill(PASSWORD)
    await page.get_by_role("button", name="Sign in").click()
    for name in hostile:
        assert name in await page.locator("main").inner_text()
    assert await page.locator("main script, main img").count() == 0


async def test_every_answer_closes_the_page_to_other_sites(pages: Pages) -> None:
    async with pages.signed_in(DEE) as duty:
        answers = [
            await duty.get(path) for path in ("/inbox", "/nowhere", "/replies", "/_ping", "/static/style.css", "/")
        ]
        answers += [await duty.post("/sign-out"), await duty.post("/sign-out", content=b"x" * 2_000_000)]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers
        kept = answer.request.url.path.startswith("/static/")
        assert answer.headers["cache-control"] == ("public, max-age=31536000, immutable" if kept else "no-store")


async def test_there_are_no_pages_about_the_interface(pages: Pages) -> None:
    async with pages.signed_in(PAT) as operator:
        for path in ("/docs", "/redoc", "/openapi.json", "/static/../app.py", "/static/base.html"):
            assert (await operator.get(path)).status_code == 404


async def test_too_much_is_refused_however_it_is_sent(pages: Pages) -> None:
    size = pages.settings.http_body_bytes_max + 1

    async def drip() -> AsyncIterator[bytes]:
        for _ in range(size // 65536 + 1):
            yield b"x" * 65536

    form = {"content-type": "application/x-www-form-urlencoded"}
    async with pages.signed_in(DEE) as duty:
        declared = await duty.post("/sign-out", content=b"x" * size, headers=form)
        dripped = await duty.post("/sign-out", content=drip(), headers=form)
        assert (declared.status_code, dripped.status_code) == (413, 413)
        assert "larger than this service takes" in dripped.text
        assert (await duty.get("/inbox")).status_code == 200


async def test_pages_can_be_read_on_a_narrow_telephone_and_ask_no_other_site(pages: Pages, browser: Browser) -> None:
    await pages.world.list_children(TWIN)
    await pages.world.receive(hl7(nhs_number="", family="TWIN", given="SAM", visit="V2", patient="K2"))
    asked: set[str] = set()
    for login, start in ((DEE, "/inbox"), (NIA, "/replies"), (PAT, "/operations")):
        context = await browser.new_context(viewport={"width": 320, "height": 640})
        page = await context.new_page()
        page.on("request", lambda request: asked.add(request.url))
        await page.goto(pages.address)
        await page.get_by_label("Login").fill(login)
        await page.get_by_label("Password").fill(PASSWORD)
        await page.get_by_role("button", name="Sign in").click()
        assert page.url.endswith(start)
        for path in [start] + ([await pages.alert_of(ASH)] if login == DEE else []):
            await page.goto(pages.address + path)
            assert await page.evaluate(SEEN) == [], path
        await context.close()
    assert {address for address in asked if not address.startswith(pages.address)} == set()


async def test_whoever_works_with_the_keyboard_sees_where_they_are(pages: Pages, page: Page) -> None:
    await page.goto(f"{pages.address}/sign-in")
    await page.keyboard.press("Tab")
    focused = page.locator(":focus")
    assert await focused.inner_text() == "Skip to main content"
    assert await focused.evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(255, 221, 0)"
    await page.get_by_role("button", name="Sign in").focus()
    await page.keyboard.press("Shift+Tab")
    await page.keyboard.press("Tab")
    assert await page.locator(":focus").evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(255, 221, 0)"
