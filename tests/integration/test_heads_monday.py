"""A head's Monday at ten to eight on a telephone, a coordinator's Saturday night, and a hub's decision, in Chromium.

Without scripts and by the keyboard; every page fits the narrowest telephone, names its controls, can be read, and puts
nothing personal into an address.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.async_api import Browser, FilePayload, Page, ViewportSize
from sqlalchemy import select

from broker.storage.tables import NoticeRow, table
from broker.topics import INCIDENTS
from schemas.encompass import NoticeState, TaskKind
from tests.encompass import Encompass, at_school, child, half_term
from tests.integration.test_encompass_pages import ALEX, CORA, DEMO, Served, open_served
from tests.integration.test_incident_files import BAD, JORDAN, OTHERS, SIDNEY, file_of
from tests.integration.test_officers_monday import enter
from tests.integration.test_referrals import HUB_PEOPLE, PUPILS, TRAINED, Hub, coded
from tests.pages import SEEN

Telephone = Callable[[Served, str], AbstractAsyncContextManager[Page]]
HAL = "hal@706.example.org"
FIELDS = "main textarea, main button, main summary, main select, main input:not([type=hidden])"


@pytest.fixture
async def served(sqlite_url: str, tmp_path: Path) -> AsyncIterator[Served]:
    async with open_served(sqlite_url, tmp_path) as opened:
        yield opened


@pytest.fixture
async def telephone(browser: Browser) -> AsyncIterator[Telephone]:
    """Telephones of 320 pixels whose browser runs no script of the page."""

    @asynccontextmanager
    async def open_telephone(served: Served, login: str) -> AsyncIterator[Page]:
        size: ViewportSize = {"width": 320, "height": 640}
        context = await browser.new_context(java_script_enabled=False, locale="en-GB", viewport=size)
        context.set_default_timeout(10_000)
        page = await context.new_page()
        await page.goto(served.address)
        await page.get_by_label("Login").fill(login)
        await page.get_by_label("Password").fill(DEMO)
        await enter(page.get_by_role("button", name="Sign in"))
        yield page
        await context.close()

    yield open_telephone


async def assert_readable(page: Page, path: str) -> None:
    """Whoever is tired and holds a telephone can use it; the address says nothing of anybody."""
    assert await page.evaluate(SEEN) == []
    assert page.url.endswith(path) and "?" not in page.url


async def assert_focus_is_seen(page: Page) -> None:
    """Every control shows that it has the focus."""
    for control in await page.locator(FIELDS).all():
        if await control.is_visible():
            await control.press("Shift")
            shown = await control.evaluate(
                "e => { const s = getComputedStyle(e); return s.outlineStyle !== 'none' || s.boxShadow !== 'none'; }"
            )
            assert shown, await control.inner_text()


async def test_a_head_reads_acknowledges_records_and_sends_back_on_a_telephone(
    served: Served, telephone: Telephone
) -> None:
    encompass: Encompass = served.encompass
    again = half_term(incident_id="ZF1/2026/0002")
    again["children"] = [
        child("k1", "Jordan", establishments=at_school("900001"), childs_words="It was loud."),
        child("k5", "Ashley", establishments=at_school("900001")),
    ]
    encompass.world.clock.advance(timedelta(hours=3))
    await encompass.receive(again)
    await encompass.run_jobs()
    async with telephone(served, ALEX) as page:
        await assert_readable(page, "/school")
        await assert_focus_is_seen(page)
        text = await page.locator("main").inner_text()
        assert "2 notices wait to be acknowledged." in text
        assert text.index("It was loud.") < text.index("I hid.")  # the newest first
        assert text.index("What to do:") < text.index("Jordan"), "before anything of a child"
        assert "Also told about Jordan" in text and "Also told about Ashley" not in text
        # The history leads to the other notice, on the same page and under an id that says nothing.
        first = page.locator("section").nth(0)
        await first.get_by_role("link", name="Incident on").click()
        assert "#" in page.url and "Jordan" not in page.url
        # He acknowledges by POST what he read; what is done goes below what still waits.
        await enter(first.get_by_role("button", name="I have read this notice"))
        text = await page.locator("main").inner_text()
        assert "1 notice waits to be acknowledged." in text and "by Alex Porter" in text
        assert text.index("I hid.") < text.index("It was loud.")
        done = page.locator("section").nth(1)
        await done.get_by_label("Add to your school's own record").fill("Breakfast club, quiet word with Jordan.")
        await enter(done.get_by_role("button", name="Keep it"))
        assert "quiet word with Jordan" in await page.locator("main").inner_text()
        # Ashley is not his pupil: he says so, and the force looks for the school while the clock runs on.
        done = page.locator("section").nth(1)
        await done.get_by_text("Ashley is not our pupil").press("Enter")
        await enter(done.get_by_role("button", name="Ashley Sample is not our pupil: send it back"))
        text = await page.locator("main").inner_text()
        assert "Ashley" not in text and "quiet word with Jordan" in text
        await assert_readable(page, "/school")
    [look_up] = [task for task in await encompass.tasks() if task.kind is TaskKind.LOOK_UP]
    assert [each.given_name for each in look_up.matter.children] == ["Ashley"]


async def test_a_coordinator_sees_who_has_not_read_releases_and_suppresses(
    served: Served, telephone: Telephone
) -> None:
    encompass = served.encompass
    unknown = [{"name": "Nobody Known", "reason": "relative", "authoriser": "DS 1"}]
    held = half_term(incident_id="ZF1/2026/0009", excluded_recipients=unknown)
    held["children"] = [child("k9", "Riley", establishments=at_school("900002"))]
    await encompass.receive(held)
    async with telephone(served, CORA) as page:
        await assert_readable(page, "/force")
        await assert_focus_is_seen(page)
        text = await page.locator("main").inner_text()
        assert "Waits for your release" in text and "Due by" in text and "Open for" in text
        assert "Mill Lane Primary School" in text and "Nobody has acknowledged" in text
        assert "Riley" not in text and "Jordan" not in text  # who has not read, never what it says
        await enter(page.get_by_role("button", name="Release incident ZF1/2026/0009"))
        assert "Waits for your release" not in await page.locator("main").inner_text()
        row = page.get_by_role("row").filter(has_text="Mill Lane")
        await row.get_by_text("Keep it back").press("Enter")
        await row.get_by_label("because of").select_option("refuge")
        await row.get_by_label("Authorised by").fill("DI 0702")
        await assert_readable(page, "/force")
        await enter(row.get_by_role("button", name="Suppress"))
        assert "Mill Lane" not in await page.locator("main").inner_text()
        await assert_readable(page, "/force")
        # The file that the force exports: what is in order is kept, every other row is named with how to mend it.
        for trial, kept in ((True, 0), (False, 1)):
            file: FilePayload = {
                "name": "export.csv",
                "mimeType": "text/csv",
                "buffer": file_of(JORDAN, SIDNEY, BAD, OTHERS),
            }
            await page.get_by_label("CSV file that your system exports").set_input_files(file)
            await page.get_by_label("Only check the file").set_checked(trial)
            await enter(page.get_by_role("button", name="Send the file"))
            assert sum(extent.end for extent in (await encompass.log.extents(INCIDENTS)).values()) == kept
            text = await page.locator("main").inner_text()
            assert ("nothing was kept" in text) is trial and "Rows to mend: 2." in text
            assert "Row 4" in await page.get_by_role("row").filter(has_text="birth_date").inner_text()
            assert "Morgan" not in text and "5 April" not in text
            await assert_readable(page, "/force/incidents")
    async with encompass.world.database.reading() as connection:
        rows = table(NoticeRow).c
        found = await connection.execute(select(rows.state).where(rows.urn == "900001"))
        assert list(found.scalars()) == [NoticeState.WITHDRAWN.value]


async def test_a_hub_officer_decides_on_an_attendance(served: Served, telephone: Telephone) -> None:
    encompass = served.encompass
    for kind, file in (
        ("pupils", PUPILS),
        ("safeguarding_contacts", TRAINED),
        ("encompass_people", HUB_PEOPLE),
    ):
        assert not (await encompass.upload(kind, file)).refused
    await Hub(encompass).receive(coded())
    async with telephone(served, HAL) as page:
        await assert_readable(page, "/hub")
        await assert_focus_is_seen(page)
        assert "Hill Top School" in await page.locator("main").inner_text()
        await page.get_by_label("What in law allows it").select_option("children_act_1989_section_47")
        await page.get_by_label("Why the school should be told").fill("Strategy meeting agreed.")
        await enter(page.get_by_role("button", name="Release to the school"))
        text = await page.locator("main").inner_text()
        assert "Nothing waits for your decision." in text and "Hill Top School" in text
        await assert_readable(page, "/hub")
