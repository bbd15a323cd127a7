"""A Monday of whoever keeps an authority's child list, in a browser without scripts; and what that person may."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from playwright.async_api import Browser, FilePayload, Locator, Page
from sqlalchemy import update

from broker.storage import missed
from schemas.identifiers import authority_owner
from tests.factories import PASSWORD, make_nhs_number
from tests.integration.test_missed import forget_look_backs, pass_night
from tests.pages import ASH, DEE, LIZ, NORTHFOLD, SEEN, Pages, open_pages
from tests.world import CASEY, hl7

ROWAN, SASHA, TERRY, UMA = (make_nhs_number(serial) for serial in (31, 62, 93, 124))
LISTED = f"0042,{ROWAN},Reed,Rowan,2016-02-01,ZZ99 1AA,child_protection_plan,2026-01-10,,W1,North"
HEADER = "Local ID;NHS number;Family name;Given name;Birth date;Postcode;Plan type;Start date;End date;Worker;Team"
TODAYS_PLANS = "child_protection_plan;12/01/2026;;W1;North"
PAGES = {
    "Child list": "/lists",
    "Who is covered": "/coverage",
    "Identities to check": "/reviews",
    "What the list said": "/as-at",
    "Missed alerts": "/missed",
    "Patterns": "/patterns",
}
NARROWEST = {"width": 320, "height": 640}


def spaced(number: str) -> str:
    return f"{number[:3]} {number[3:6]} {number[6:]}"


def save_as_excel(*rows: str) -> bytes:
    """What Excel writes on a British computer whose list separator is a semicolon."""
    return b"\xef\xbb\xbf" + "\r\n".join((HEADER, *rows, ";" * 10, "")).encode()


@pytest.fixture
async def office(sqlite_url: str, tmp_path: Path) -> AsyncIterator[Pages]:
    """Monday morning: Casey and Rowan have been listed since Saturday; at seven a stranger came with Casey's number."""
    async with open_pages(sqlite_url, tmp_path) as opened:
        world = opened.world
        await world.list_children(CASEY, LISTED)
        world.clock.advance(datetime(2026, 2, 16, 8, 30) - datetime(2026, 2, 14, 3, 12))  # noqa: DTZ001 - a duration
        at = datetime(2026, 2, 16, 7, 5)  # noqa: DTZ001 - HL7 v2 writes local time
        await world.receive(hl7(family="MARSH", given="ROBIN", birth_date=date(2011, 9, 9), at=at))
        yield opened


@pytest.fixture
async def desk(browser: Browser) -> AsyncIterator[Page]:
    """A browser that runs no script."""
    context = await browser.new_context(java_script_enabled=False, locale="en-GB", timezone_id="Europe/London")
    context.set_default_timeout(10_000)
    yield await context.new_page()
    await context.close()


async def sign_in(page: Page, pages: Pages, login: str) -> None:
    await page.goto(pages.address)
    await page.get_by_label("Login").fill(login)
    await page.get_by_label("Password").fill(PASSWORD)
    await enter(page.get_by_role("button", name="Sign in"))


async def enter(control: Locator) -> None:
    """Follow a link or send a form by the keyboard."""
    async with control.page.expect_navigation():
        await control.press("Enter")


async def send_list(page: Page, file: bytes, *, kind: str = "Changes") -> str:
    """Send a file with the page's form; returns what is answered."""
    await enter(page.get_by_role("link", name="Child list"))
    await page.get_by_label("CSV or JSON file").set_input_files(
        FilePayload(name="Monday.csv", mimeType="text/csv", buffer=file)
    )
    await page.get_by_role("radio", name=kind).check()
    await enter(page.get_by_role("button", name="Send the list"))
    return await page.get_by_role("alert").inner_text()


async def ask_what_the_list_said(page: Page, nhs_number: str, at: datetime) -> str:
    await enter(page.get_by_role("link", name="What the list said"))
    await page.get_by_label("NHS number").fill(spaced(nhs_number))
    await page.get_by_label("Day").fill(f"{at:%Y-%m-%d}")
    await page.get_by_label("Time in London").fill(f"{at:%H:%M}")
    await enter(page.get_by_role("button", name="Ask"))
    return await page.locator("main").inner_text()


async def test_a_list_officer_goes_through_a_monday(office: Pages, desk: Page) -> None:
    world, at_half_past_eight = office.world, office.world.clock.now()
    await sign_in(desk, office, LIZ)
    assert desk.url.endswith("/lists")
    assert "There is nothing to decide" in await desk.locator("main").inner_text()

    # She uploads what the spreadsheet saved: Rowan's reference has lost its zeros, Uma's plan a part of its year.
    rowan = f"42;{spaced(ROWAN)};Reed;Rowan;01/02/2016;ZZ99 1AA;{TODAYS_PLANS}"
    sasha = f"0043;{spaced(SASHA)};Sedge;Sasha;01/02/2016;ZZ99 1AA;{TODAYS_PLANS}"
    terry = f"0044;{spaced(TERRY)};Teasel;Terry;03/04/2017;ZZ99 1AA;{TODAYS_PLANS}"
    uma = f"0045;{spaced(UMA)};Umber;Uma;05/06/2018;ZZ99 1AA;{TODAYS_PLANS.replace('2026', '26')}"
    world.clock.advance(timedelta(minutes=5))
    answer = await send_list(desk, save_as_excel(rowan, sasha, terry, uma))

    # She reads the answer: the row, the column, and how to mend it. The good rows are loaded.
    assert "Some rows were not loaded" in answer
    assert "CPF03" in answer
    rows = desk.get_by_role("table").filter(has_text="Rows to mend").get_by_role("row")
    told = [" ".join(words.split()) for words in (await rows.all_inner_texts())[1:]]
    assert told == [
        "Row 2 local_id Differs from a listed one by zeros in front: a spreadsheet may have dropped them CPR07",
        "Row 5 start_date Must have the year in four digits, like 31/01/2026 CPR07",
    ]

    assert "The good rows are taken." in answer

    # She mends the two rows and sends the file again.
    mended = [rowan.replace("42;", "0042;", 1), sasha, terry, uma.replace("12/01/26", "12/01/2026")]
    world.clock.advance(timedelta(minutes=5))
    answer = await send_list(desk, save_as_excel(*mended))
    assert "The file was loaded" in answer
    assert "CPF02" in answer
    assert "New or changed: 2." in answer
    assert "Born\n1 February 2016" in await ask_what_the_list_said(desk, SASHA, world.clock.now())
    assert "nothing of this number" in await ask_what_the_list_said(desk, SASHA, at_half_past_eight)

    # The whole list comes, and Terry is not in it: nobody ends by being left out, she is asked.
    casey = f"L1;{spaced('9990000018')};Tester;Casey;02/03/2015;ZZ99 1AA;child_protection_plan;10/01/2026;;W1;North"
    world.clock.advance(timedelta(minutes=5))
    answer = await send_list(desk, save_as_excel(casey, *(row for row in mended if row != terry)), kind="The whole")
    assert "On the list and not in the file: 1." in answer
    await enter(desk.get_by_role("link", name="1 not in the full list"))
    await desk.get_by_label("What became of Terry Teasel").select_option(label="The plan is over")
    await enter(desk.get_by_role("button", name="Record for Terry Teasel"))
    assert "Your decision is on record" in await desk.get_by_role("status").inner_text()
    assert await desk.get_by_text("Terry Teasel").count() == 0
    world.clock.advance(timedelta(minutes=1))
    assert "Until\n16 February 2026" in await ask_what_the_list_said(desk, TERRY, world.clock.now())

    # Somebody came this morning with Casey's number and other details: she rings, compares and decides.
    await enter(desk.get_by_role("link", name="Identities to check"))
    await enter(desk.get_by_role("link", name="Is it Casey Tester?"))
    compared = await desk.locator("main").inner_text()
    assert "ROBIN MARSH" in compared and "01632 960301" in compared
    assert "Fall from height" not in compared, "why somebody came is not for those who keep the list"
    assert await world.alerts() == []
    await desk.get_by_label("If it is: how you know").fill(
        "Rang the department: registered under the stepfather's name"
    )
    await enter(desk.get_by_role("button", name="It is the same person"))
    assert "The same person, says Liz" in await desk.locator("main").inner_text()
    [alert] = await world.alerts()
    assert (alert.alert.child.nhs_number, alert.alert.late) == ("9990000018", True)
    await enter(desk.get_by_role("link", name="Back to the identities to check"))
    assert "Nothing waits for a decision" in await desk.locator("main").inner_text()

    acts = [action for actor, action, _ in await office.acts(NORTHFOLD) if actor == LIZ]
    told_of = ["list.uploaded", "difference.read", "difference.ended", "list.asked_as_at", "review.read"]
    assert set(told_of) <= set(acts)
    await enter(desk.get_by_role("button", name="Sign out"))
    assert desk.url.endswith("/sign-in")


@pytest.mark.parametrize("viewport", [NARROWEST, {"width": 1280, "height": 800}], ids=["telephone", "screen"])
async def test_every_page_of_a_list_officer_is_a_link_away_has_its_name_and_fits(
    office: Pages, browser: Browser, viewport: dict[str, int]
) -> None:
    context = await browser.new_context(viewport={"width": viewport["width"], "height": viewport["height"]})
    page = await context.new_page()
    await sign_in(page, office, LIZ)
    broken = f"42;{spaced(ROWAN)};Reed;Rowan;01/02/2016;ZZ99 1AA;{TODAYS_PLANS}"
    await send_list(page, save_as_excel(broken, broken.replace("12/01/2026", "x")), kind="The whole")
    seen = {"/lists": await page.title()}
    for words, path in PAGES.items():
        assert await page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], page.url
        await enter(page.get_by_role("navigation").get_by_role("link", name=words))
        await page.wait_for_url(office.address + path)
        assert await page.locator('[aria-current="page"]').inner_text() == words
        seen[path] = await page.title()
        assert await page.evaluate(SEEN) == [], path
    assert len(set(seen.values())) == len(PAGES)
    assert await page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], page.url
    await page.goto(f"{office.address}/reviews")
    await enter(page.get_by_role("link", name="Is it Casey Tester?"))
    assert await page.evaluate(SEEN) == []
    await context.close()


async def test_whoever_signs_in_again_goes_on_where_they_were(office: Pages) -> None:
    [review] = await office.world.reviews()
    async with office.client() as nobody:
        for path in (*PAGES.values(), f"/reviews/{review.id}"):
            assert (await nobody.get(path)).headers["location"] == f"/sign-in?next={path}"


async def test_a_list_officer_reads_no_alert_and_others_read_no_review(office: Pages) -> None:
    [review] = await office.world.reviews()
    path = f"/reviews/{review.id}"
    async with office.signed_in(LIZ) as officer, office.signed_in(DEE) as duty:
        assert "Fall from height" not in (await officer.get(path)).text
        assert "Fall from height" in (await duty.get(path)).text
        assert "Is it Casey Tester?" in (await duty.get("/reviews")).text
        assert (await officer.send_form(f"{path}/confirm")).status_code == 303
        alert = await office.alert_of(DEE)
        for refused in ("/inbox", alert):
            assert (await officer.get(refused)).status_code == 403
            assert refused not in (await officer.get("/reviews")).text
        assert (await officer.send_form(f"{path}/undo", reason="")).status_code == 400
        assert (await officer.send_form(f"{path}/undo", reason="another child")).status_code == 303
    [withdrawn] = await office.world.alerts()
    assert withdrawn.withdrawn_at is not None


async def test_another_worker_of_the_authority_sees_only_the_doubts_that_wait_for_them(office: Pages) -> None:
    async with office.signed_in(ASH) as worker:
        assert "Is it Casey Tester?" in (await worker.get("/reviews")).text
    async with office.signed_in("bo@706.example.org") as other, office.signed_in("kit@707.example.org") as stranger:
        assert "Casey" not in (await other.get("/reviews")).text
        assert "Casey" not in (await stranger.get("/reviews")).text


async def test_a_list_officer_reads_what_was_missed_and_the_duty_desk_settles_it(office: Pages) -> None:
    world = office.world
    await world.receive(hl7(visit="V2", at=datetime(2026, 2, 16, 8, 20)))  # noqa: DTZ001 - HL7 v2 writes local time
    world.clock.advance(timedelta(minutes=1))
    await world.list_children(CASEY.replace("W1", "W7"), authority="707")
    await forget_look_backs(world)
    world.clock.advance(world.rules.look_back)
    await pass_night(world)
    async with world.database.writing() as connection:
        [found, *_] = await missed.list_missed(connection, owner=authority_owner("707"), rows_max=10)
        await connection.execute(update(missed._missed).values(owner=NORTHFOLD))
    async with office.signed_in(LIZ) as officer:
        shown = (await officer.get("/missed")).text
        assert "CASEY TESTER" in shown and "Listed after the person came" in shown
        assert not re.search(r"/missed/[0-9a-f]{32}/settle|/alerts/[0-9a-f]{32}|/inbox", shown)
        assert (await officer.send_form(f"/missed/{found.id}/settle")).status_code == 403
