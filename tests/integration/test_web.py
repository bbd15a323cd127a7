"""What social workers, the duty desk, clinicians and operators see and do on the pages."""

from __future__ import annotations

import asyncio
import re
import sys
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page
from prometheus_client import REGISTRY
from sqlalchemy import update

from broker.storage import audit, quarantine
from broker.storage.audit import verify_chain
from broker.storage.deadlines import hand_over_overdue
from broker.storage.quarantine import NewQuarantined
from broker.storage.receipts import mark_unreached
from broker.storage.tables import Alert, AlertState, AuthorityRow, Lane, Review, table
from broker.web.operations import compose_status
from broker.web.pages import PageLimits
from schemas.attendance import PersonName
from schemas.record import Partition
from tests.engines import PostgresServer
from tests.factories import (
    PASSWORD,
    make_attendance,
    make_entry,
    make_nhs_number,
    store_alert,
    store_review,
)
from tests.integration.test_visits import with_disposition
from tests.pages import (
    ASH,
    BO,
    DEE,
    HOSPITAL,
    NIA,
    NORTHFOLD,
    OLU,
    PAT,
    READY,
    SILENT,
    TWIN,
    Pages,
    open_pages,
)
from tests.world import CASEY, hl7

# The straight line


async def test_a_social_worker_sees_why_the_alert_came_and_takes_it_without_any_script(
    pages: Pages, browser: Browser
) -> None:
    context = await browser.new_context(java_script_enabled=False, locale="en-GB", timezone_id="America/New_York")
    page = await context.new_page()
    await page.goto(pages.address)
    await page.get_by_label("Login").fill(ASH)
    await page.get_by_label("Password").fill(PASSWORD)
    await page.get_by_role("button", name="Sign in").click()
    assert page.url.endswith("/inbox")
    row = page.get_by_role("row").filter(has_text="Casey Tester")
    assert "Fall from height" in await row.inner_text()
    assert "Due by Saturday 14 February 2026, 03:27" in await row.inner_text()
    await page.get_by_role("link", name="Casey Tester").click()
    shown = await page.locator("main").inner_text()
    for words in (
        "The person who attends and the person on your list have the same NHS number, date of birth and name.",
        "The department has checked the NHS number.",
        "999 000 0018",
        "Fenwick General Hospital",
        "01632 960301",
        "Saturday 14 February 2026, 03:07",
        "By ambulance",
        "Child protection plan",
        "10 January 2026",
    ):
        assert words in shown
    pages.world.clock.advance(timedelta(minutes=3))
    await page.get_by_role("button", name="Acknowledge this alert").click()
    assert re.fullmatch(r".*/alerts/[0-9a-f]{32}", page.url)
    assert "Acknowledged by Ash, Saturday 14 February 2026, 03:15." in await page.locator("main").inner_text()
    assert await page.get_by_role("button", name="Acknowledge this alert").count() == 0
    [alert] = await pages.world.alerts()
    assert (alert.state, alert.acknowledged_by) == (AlertState.ACKNOWLEDGED, ASH)
    # On paper it says who printed it and when, and shows nothing to click.
    await page.emulate_media(media="print")
    paper = await page.locator("body").inner_text()
    assert "Printed Saturday 14 February 2026, 03:15 by Ash, Northfold Borough Council." in paper
    assert "01632 960301" in paper and "Everything that happened" not in paper and "Back to the alerts" not in paper
    await context.close()


async def test_the_same_line_holds_on_postgresql(postgres_url: str, tmp_path: Path) -> None:
    async with open_pages(postgres_url, tmp_path) as pages:
        await pages.world.list_children(CASEY, TWIN)
        await pages.world.receive(hl7(), hl7(nhs_number="", family="TWIN", given="SAM", visit="V2", patient="K2"))
        async with pages.signed_in(DEE) as duty:
            listed = await duty.get("/inbox")
            assert "Casey Tester" in listed.text
            path = await pages.alert_of(DEE)
            assert (await duty.get("/inbox?refresh=auto")).status_code == 200
            assert (await duty.get(path)).status_code == 200
            assert (await duty.send_form(f"{path}/acknowledge")).headers["location"] == path
            assert (await duty.get("/alerts/%00")).status_code == 404
        async with pages.signed_in(NIA) as clinician:
            replies = (await clinician.get("/replies")).text
            assert "On a list" in replies and "Acknowledged" in replies
        async with pages.client() as somebody:
            for _ in range(pages.settings.login_failures_max):
                assert (await somebody.sign_in(ASH, "wrong")).status_code == 403
            assert (await somebody.sign_in(ASH)).status_code == 403
            pages.world.clock.advance(timedelta(seconds=pages.settings.login_rest_s))
            assert (await somebody.sign_in(ASH)).status_code == 303
        async with pages.signed_in(PAT) as operator:
            assert (await operator.get("/_status")).status_code == 200
            assert (await operator.get("/operations")).status_code == 200
        async with pages.world.database.reading() as connection:
            for owner in await audit.list_chains(connection):
                assert await verify_chain(connection, owner) is None


async def test_taking_an_alert_twice_changes_nothing(pages: Pages) -> None:
    path = await pages.alert_of(ASH)
    async with pages.signed_in(ASH) as worker, pages.signed_in(DEE) as duty:
        assert (await worker.send_form(f"{path}/acknowledge")).status_code == 303
        pages.world.clock.advance(timedelta(minutes=1))
        assert (await duty.send_form(f"{path}/acknowledge")).status_code == 303
        assert "Acknowledged</strong> by Ash" in (await duty.get(path)).text
    [alert] = await pages.world.alerts()
    assert alert.acknowledged_by == ASH
    assert [action for _, action, _ in await pages.acts(NORTHFOLD)].count("alert.acknowledged") == 1


async def test_a_late_acknowledgement_of_one_alert_leaves_the_next_one_open(pages: Pages) -> None:
    first = await pages.alert_of(ASH)
    await pages.world.receive(hl7(visit="V2"))
    async with pages.signed_in(ASH) as worker:
        await worker.send_form(f"{first}/acknowledge")
    states = {alert.alert.alert_id: alert.state for alert in await pages.world.alerts()}
    assert states.pop(first.removeprefix("/alerts/")) is AlertState.ACKNOWLEDGED
    assert list(states.values()) == [AlertState.OPEN]


async def test_the_first_look_is_noted_and_kept(pages: Pages) -> None:
    path = await pages.alert_of(ASH)
    looked_at = pages.world.clock.now()
    async with pages.signed_in(ASH) as worker:
        await worker.get(path)
        pages.world.clock.advance(timedelta(minutes=5))
        await worker.get(path)
    [alert] = await pages.world.alerts()
    assert alert.opened_at == looked_at


async def test_later_messages_stand_under_the_alert(pages: Pages) -> None:
    first = pages.world.clock.now().replace(tzinfo=None)
    for number in range(3):
        await pages.world.receive(hl7("A08", at=first + timedelta(minutes=10 + number), complaint="Head injury"))
    await pages.world.receive(hl7("A03", at=first + timedelta(minutes=58), complaint="Head injury"))
    path = await pages.alert_of(ASH)
    async with pages.signed_in(ASH) as worker:
        shown = (await worker.get(path)).text
    assert "Reason given: Head injury (before: Fall from height)" in shown
    assert re.search(r"Left or discharged</strong>, <time [^>]*>Saturday 14 February 2026, 04:10", shown)
    assert re.search(r"No longer there:</strong> left <time [^>]*>Saturday 14 February 2026, 04:10", shown)


async def test_the_duty_desk_sees_everything_the_escalated_and_longest_due_first(pages: Pages) -> None:
    world = pages.world
    for number, minutes in ((2, 10), (3, 40), (4, 30)):
        facts = make_attendance(
            visit_number=f"D{number}", nhs_number=make_nhs_number(number), names=(PersonName("Child", f"No{number}"),)
        )
        entry = make_entry(
            local_id=f"D{number}",
            nhs_number=make_nhs_number(number),
            name=PersonName("Child", f"No{number}"),
            allocated_worker="W2",
        )
        await store_alert(
            world.database,
            world.keyring,
            facts,
            entry,
            held_by="W2",
            now=world.clock.now(),
            due_in=timedelta(minutes=minutes),
        )
    world.clock.advance(timedelta(minutes=12))
    async with world.database.writing() as connection:
        await hand_over_overdue(connection, Alert, now=world.clock.now(), limit=timedelta(minutes=60), rows_max=10)
    world.clock.advance(timedelta(minutes=20))
    async with pages.signed_in(DEE) as duty:
        shown = (await duty.get("/inbox")).text
    row = r'<tr role="row"( class="[^"]*")?>\s*<th scope="row"[^>]*>\s*<a href="[^"]*">([^<]*)</a>'
    rows = re.findall(row, shown)
    assert [name for _, name in rows] == ["No2 Child", "Casey Tester", "No4 Child", "No3 Child"]
    assert [urgent for urgent, _ in rows] == [' class="row-urgent"'] * 3 + [""]
    assert shown.count("Escalated</strong>") == 1 and shown.count("Overdue</strong>") == 2
    assert "4 alerts wait to be acknowledged" in shown and "3 of them overdue or escalated" in shown


async def test_the_list_says_what_has_happened_since_and_how_long_there_is(pages: Pages) -> None:
    world = pages.world
    path = await pages.alert_of(ASH)
    async with pages.signed_in(DEE) as duty:
        assert re.search(r"Due by <time[^>]*>[^<]*03:27</time>, in 15 minutes", (await duty.get("/inbox")).text)
        await world.receive(with_disposition(hl7("A03", at=datetime(2026, 2, 14, 3, 14)), "12"))  # noqa: DTZ001 - HL7
        listed = (await duty.get("/inbox")).text
        assert re.search(r"Escalated</strong>\s*<strong class=\"tag tag-note\">Left before treatment", listed)
        assert "Alerts: 1 open" in listed
        assert "It became more urgent: escalated once." in (await duty.get(path)).text, "nobody was late yet"
        world.clock.advance(timedelta(minutes=16))
        assert re.search(r"Was due by <time[^>]*>[^<]*</time>, [0-9]+ \w+ ago", (await duty.get("/inbox")).text)
        await world.run_jobs()
        assert "Nobody took it in time: escalated 2 times." in (await duty.get(path)).text


async def test_a_list_that_is_cut_keeps_the_most_urgent_and_says_so(sqlite_url: str, tmp_path: Path) -> None:
    async with open_pages(sqlite_url, tmp_path, limits=PageLimits(rows_max=2)) as pages:
        world = pages.world
        for number, minutes in ((1, 30), (2, 20), (3, 10)):
            facts = make_attendance(visit_number=f"D{number}", names=(PersonName("Tester", f"No{number}"),))
            entry = make_entry(local_id=f"D{number}", name=PersonName("Tester", f"No{number}"))
            await store_alert(world.database, world.keyring, facts, entry, due_in=timedelta(minutes=minutes))
        async with pages.signed_in(DEE) as duty:
            shown = (await duty.get("/inbox")).text
    assert re.findall(r"No\d Tester", shown) == ["No3 Tester", "No2 Tester"]
    assert "There are more than fit on this page" in shown


async def test_what_was_closed_long_ago_leaves_the_list_and_what_is_open_never_does(pages: Pages) -> None:
    path = await pages.alert_of(ASH)
    pages.world.clock.advance(timedelta(days=30))
    async with pages.signed_in(ASH) as worker:
        assert "Casey Tester" in (await worker.get("/inbox")).text
        await worker.send_form(f"{path}/acknowledge")
        assert "Casey Tester" not in (await worker.get("/inbox")).text
        assert (await worker.get(path)).status_code == 200


async def test_a_doubt_is_shown_with_what_is_for_and_against_to_the_duty_desk_and_to_its_holder(pages: Pages) -> None:
    world = pages.world
    facts = make_attendance(
        nhs_number=make_nhs_number(9),
        birth_date=make_entry().birth_date.replace(day=9),
        visit_number="R1",
        names=(PersonName("SOMEBODY", "ELSE"),),
    )
    entry = make_entry(nhs_number=make_nhs_number(9), name=PersonName("Twin", "Sam"))
    await store_review(world.database, world.keyring, facts, entry, site=HOSPITAL, held_by="W1")
    async with pages.signed_in(DEE) as duty:
        shown = (await duty.get("/inbox")).text
        for words in (
            "Sam Twin",
            "ELSE SOMEBODY",
            "2 March 2015",
            "9 March 2015",
            "the same",
            "NHS number agrees.",
            "Date of birth and name differ.",
            "01632 960301",
            "the date of birth differs and the name differs",
        ):
            assert words in shown
    await world.list_children(TWIN)
    await world.receive(hl7(nhs_number="", family="TWIN", given="SAM", birth_date=date(2016, 1, 1), visit="R2"))
    [weighed] = [each for each in await world.reviews() if each.content.weight is not None]
    async with pages.signed_in(DEE) as duty:
        compared = (await duty.get(f"/reviews/{weighed.id}")).text
    assert "Against: nothing that was sent differs." in compared and compared.count("<caption>") == 2, "no empty table"
    async with pages.signed_in(ASH) as holder, pages.signed_in(BO) as other:
        assert "Sam Twin" in (await holder.get("/inbox")).text
        assert "Sam Twin" not in (await other.get("/inbox")).text
    world.clock.advance(timedelta(minutes=16))
    async with world.database.writing() as connection:
        await hand_over_overdue(connection, Review, now=world.clock.now(), limit=timedelta(minutes=15), rows_max=10)
    async with pages.signed_in(DEE) as duty:
        shown = (await duty.get("/inbox")).text
        assert "Escalated" in shown and "with: Duty desk" in shown


# Clinicians


async def test_a_clinician_sees_the_answers_and_whether_social_care_took_notice(pages: Pages, page: Page) -> None:
    await pages.world.receive(
        hl7(nhs_number="9990000085", family="OTHER", given="JO", visit="V2", patient="K2"),
        hl7(nhs_number="", family="OTHER", given="JO", visit="V3", patient="K3"),
    )
    alert = await pages.alert_of(ASH)
    await page.goto(pages.address)
    await page.get_by_label("Login").fill(NIA)
    await page.get_by_label("Password").fill(PASSWORD)
    await page.get_by_role("button", name="Sign in").click()
    assert page.url.endswith("/replies")
    rows = page.locator("tbody tr")
    texts = [await rows.nth(number).inner_text() for number in range(await rows.count())]
    assert len(texts) == 3
    match, unsettled, miss = texts
    for words in (
        "V1",
        "K12345",
        "On a list",
        "Child protection plan",
        "01632 960101",
        "01632 960102",
        "Northfold Borough Council",
        "Not yet acknowledged",
        "Ring now: 01632 960102 (out of hours)",
    ):
        assert words in match
    assert await rows.nth(0).get_attribute("class") == "row-urgent"
    assert "Identity to be checked" in unsettled and "Not known until it is settled who this is." in unsettled
    assert "No record found" in miss and "does not mean the child is safe" in miss
    lead = await page.locator(".lead").inner_text()
    assert lead == "1 person is on an authority’s list, 1 not yet seen by your department. 1 identity to be checked."
    assert "Casey" not in "".join(texts) and "Tester" not in "".join(texts)
    async with pages.signed_in(ASH) as worker:
        await worker.send_form(f"{alert}/acknowledge")
    await page.get_by_role("link", name="Refresh").click()
    assert re.search(r"Acknowledged\s+Saturday 14 February 2026, 03:12", await rows.nth(0).inner_text())
    assert "Ash" not in await page.locator("main").inner_text(), "that it was taken, not by whom"


async def test_a_clinician_sees_no_other_organisations_replies_and_none_of_yesterday(pages: Pages) -> None:
    async with pages.signed_in(OLU) as other, pages.signed_in(NIA) as clinician:
        assert "K12345" not in (await other.get("/replies")).text
        assert "K12345" in (await clinician.get("/replies")).text
    pages.world.clock.advance(timedelta(hours=25))
    async with pages.signed_in(NIA) as clinician:
        assert "K12345" not in (await clinician.get("/replies")).text


async def test_the_telephone_to_ring_is_the_one_answered_when_a_clinician_looks(pages: Pages) -> None:
    pages.world.clock.advance(timedelta(days=2, hours=4, minutes=48))  # Monday, 08:00
    await pages.world.receive(hl7(visit="V2"))
    async with pages.signed_in(NIA) as clinician:
        assert re.search("Ring now: <[^>]*>01632 960102</a>", (await clinician.get("/replies")).text)
    pages.world.clock.advance(timedelta(hours=2))
    async with pages.signed_in(NIA) as clinician:
        shown = (await clinician.get("/replies")).text
        assert re.search(r"Ring now: <[^>]*>01632 960101</a></strong> \(office hours\)", shown)
        async with pages.world.database.writing() as connection:
            await connection.execute(update(table(AuthorityRow)).values(name="Renamed"))
        shown = (await clinician.get("/replies")).text
        assert "Ring now" not in shown, "the directory does not say when they are answered"
        assert re.search("When this reply was given, <[^>]*>01632 960102</a> was answered", shown)


async def test_a_match_takes_the_place_of_an_earlier_miss(pages: Pages) -> None:
    world = pages.world
    await world.receive(hl7(nhs_number="", visit="V7", patient="K7"))
    world.clock.advance(timedelta(minutes=40))
    await world.receive(hl7("A08", visit="V7", patient="K7"))
    async with pages.signed_in(NIA) as clinician:
        shown = (await clinician.get("/replies")).text
    assert len(re.findall(r'<th scope="row"[^>]*>\s*V7', shown)) == 1
    assert re.search(r"Takes the place of “Identity to be checked”, <time[^>]*>Saturday 14 February 2026, 03:12", shown)


async def test_only_a_match_asks_whether_a_clinician_has_seen_it_and_the_first_who_says_so_stands(pages: Pages) -> None:
    await pages.world.receive(hl7(nhs_number="", visit="V7", patient="K7"))
    asked = r'action="(/replies/[0-9a-f]{32}/seen)"'
    async with pages.signed_in(NIA) as clinician, pages.signed_in(OLU) as other, pages.signed_in(ASH) as worker:
        shown = (await clinician.get("/replies")).text
        assert "K7" in shown and "Identity to be checked" in shown
        [address] = re.findall(asked, shown)
        assert (await other.send_form(address)).status_code == 404, "of another department"
        assert (await worker.send_form(address)).status_code == 403
        assert (await clinician.send_form(address.replace(address[9:41], "0" * 32))).status_code == 404
        pages.world.clock.advance(timedelta(minutes=2))
        assert [(await clinician.send_form(address)).status_code for _ in range(2)] == [303, 303]
        shown = (await clinician.get("/replies")).text
    assert not re.findall(asked, shown)
    assert re.search(rf"Seen here <time[^>]*>Saturday 14 February 2026, 03:14</time>, {re.escape(NIA)}", shown)
    acts = [each for each in await pages.acts("organisation:RZ1") if each[1] == "reply.seen"]
    assert acts == [(NIA, "reply.seen", address[9:41])], "said twice, it is on record once"


async def test_misses_cannot_push_a_match_off_the_page(sqlite_url: str, tmp_path: Path) -> None:
    async with open_pages(sqlite_url, tmp_path, limits=PageLimits(rows_max=2)) as pages:
        world = pages.world
        await world.list_children(CASEY)
        await world.receive(hl7(), hl7(nhs_number="", visit="V9", patient="K9"))
        world.clock.advance(timedelta(minutes=1))
        misses = (make_nhs_number(number) for number in range(31, 36))
        await world.receive(*(hl7(nhs_number=each, visit=f"M{each}", patient=f"P{each}") for each in misses))
        async with pages.signed_in(NIA) as clinician:
            shown = (await clinician.get("/replies")).text
    assert "K12345" in shown and "There are more than fit on this page" in shown
    assert "V9" in shown, "nor can they push off who is to be checked"


# Operators


async def test_a_ping_answers_anybody(pages: Pages) -> None:
    async with pages.client() as anybody:
        answer = await anybody.get("/_ping")
    assert (answer.status_code, answer.text) == (200, "ok")


async def test_the_status_is_for_people_and_for_probes(sqlite_url: str, tmp_path: Path) -> None:
    async with open_pages(sqlite_url, tmp_path, parts=READY + SILENT) as pages:
        world = pages.world
        await world.list_children(CASEY)
        await world.receive(hl7())
        world.clock.advance(timedelta(hours=3))
        async with world.database.writing() as connection:
            kept = NewQuarantined(
                partition=Partition("attendances", 0),
                log_id="log-1",
                offset=17,
                reason="no_pid",
                detail="segment PID is missing",
                body=b"PLANTED-BYTES",
                kept_at=world.clock.now() - timedelta(hours=2),
                due_by=world.clock.now() - timedelta(hours=1),
            )
            await quarantine.save_quarantined(connection, world.keyring, [kept])
        async with pages.signed_in(PAT) as operator:
            answer = await operator.get("/_status")
            page = (await operator.get("/operations")).text
            assert "cpis-broker quarantine replay ID --by NAME" in page, "what to do about it"
    assert answer.status_code == 503
    status = answer.json()
    assert (status["ready"], status["database"]) == (False, "answers")
    assert status["parts"][1] == {"name": "attendances", "state": "not ready", "silent_s": 19.2, "ready": False}
    assert status["lists"] == {
        "authorities": 2,
        "authorities_without_list": 1,
        "oldest_confirmed_at": "2026-02-14T03:12:00Z",
        "blocked": 0,
    }
    assert status["quarantine"] == {"open": 1, "oldest_kept_at": "2026-02-14T04:12:00Z"}
    assert status["deliveries"] == {"waiting": 2}
    assert status["log_gaps"] == 0
    for words in ("Not ready", "19.2 s", "No pid", "segment PID is missing", "2 hours ago", "offset 17", "Overdue"):
        assert words in page
    assert "PLANTED" not in page


async def test_a_database_that_does_not_answer_is_not_ready_and_pages_say_so(
    own_postgres_server: PostgresServer, tmp_path: Path
) -> None:
    url = own_postgres_server.create_database("pages")
    async with open_pages(url, tmp_path) as pages, pages.signed_in(PAT) as operator:
        own_postgres_server.stop()
        answer = await operator.get("/operations")
        status = await compose_status(pages.world.database, READY)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert "telephone" in answer.text
    assert (status.ready, status.database) == (False, "does not answer")


async def test_without_any_part_nothing_is_ready(pages: Pages) -> None:
    assert (await compose_status(pages.world.database, READY)).ready
    assert not (await compose_status(pages.world.database, ())).ready


async def test_metrics_are_those_of_the_catalogue(pages: Pages) -> None:
    async with pages.client() as program:
        shown = (await program.get("/metrics", auth=(PAT, PASSWORD))).text
    assert "cpis_messages_handled_total" in shown
    assert set(re.findall(r"^(cpis_\w+?)(?:_total|_bucket|_sum|_count|_created)?(?:\{| )", shown, re.MULTILINE)) <= {
        metric.name for metric in REGISTRY.collect()
    }


async def test_metrics_of_all_parts_are_added_up_from_their_directory(
    pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory_ = tmp_path / "metrics"
    directory_.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(directory_))
    script = (
        "from broker.telemetry import LAG, MESSAGES_ACCEPTED\n"
        "MESSAGES_ACCEPTED.labels('mllp').inc(3)\nLAG.labels('attendances').set(41)\n"
    )
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
        assert await process.wait() == 0
    async with pages.client() as program:
        shown = (await program.get("/metrics", auth=(PAT, PASSWORD))).text
        status = (await program.get("/_status", auth=(PAT, PASSWORD))).json()
    assert 'cpis_messages_accepted_total{door="mllp"} 6.0' in shown
    assert status["lag_records"] == {"attendances": 41}


async def test_who_cannot_be_told_to_sign_in_stands_on_their_own_page_and_on_the_desks(pages: Pages) -> None:
    now = pages.world.clock.now()
    async with pages.world.database.writing() as connection:
        for login, code in ((ASH, "permanent_failure"), (DEE, "http_400")):
            lane = {"id": login, "channel": "email", "owner": NORTHFOLD, "contact": login, "epoch": 0}
            await connection.execute(table(Lane).insert().values(**lane))
            await mark_unreached(connection, login, code, now)
    ash = "Ash cannot be reached by e-mail since Saturday 14 February 2026, 03:12: there is no such address or number"
    dee = "it was refused (http_400)"
    for login, shown in ((ASH, (True, False)), (BO, (False, False)), (DEE, (True, True))):
        async with pages.signed_in(login) as person:
            page = " ".join(re.sub("<[^>]+>", "", (await person.get("/inbox")).text).split())
            assert (ash in page, dee in page) == shown
