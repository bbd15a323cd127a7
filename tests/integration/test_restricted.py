"""Scenario L: where a restricted child is stays in one view. A place that nobody can mistake is planted, and sought in
everything that leaves, is shown, is listed or is logged."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import date, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace
from playwright.async_api import Page
from prometheus_client import generate_latest
from sqlalchemy import select
from structlog.testing import capture_logs

from broker.consumers.attendance import AttendanceConsumer
from broker.directory_upload import DirectoryUpload
from broker.storage import aliases, outbox, restrictions, traces
from broker.storage.child_lists import derive_entry_id
from broker.storage.tables import Alert, AuditRow, Delivery, ListEntry, table
from broker.web.auth import ACCESS, ANONYMOUS
from schemas.alert import AlertKind
from schemas.identifiers import NhsNumber
from schemas.trace import Mismatch, Restricted, TraceField
from tests.factories import make_entry
from tests.integration.test_fhir_api import open_api, words_of
from tests.integration.test_web_access import visit_route
from tests.pages import ASH, BO, COR, DEE, KIT, LIZ, NIA, NORTHFOLD, OLU, PAT, SAM, Pages, open_pages
from tests.world import CASEY, SITES, World, count_waiting_for_locks, hl7, open_world

# Six digits alone turn up by chance among the hexadecimal ones of ids and of forms.
MARKS = ("Zanzibar", "ZANZ", "RZ9", "01632 960399", "01632960399", "01:23", "2602140123")
PLACE = "Zanzibar Cliffs Infirmary"
OF_EASTMERE = "E5,9990000018,Tester,Casey,2015-03-02,ZZ99 1AA,looked_after_child,2025-06-01,,W7,East"
CAME_AT = datetime(2026, 2, 14, 1, 23)  # noqa: DTZ001 - HL7 v2 writes local time
OPEN = Mismatch(differs=(TraceField.FAMILY,))
TWIN = "L9,9990000034,Twin,Sam,2016-01-01,ZZ99 1AA,child_protection_plan,2025-01-01,,W1,North"

_deliveries, _entries = table(Delivery), table(ListEntry)


@pytest.fixture
async def served(sqlite_url: str, tmp_path: Path) -> AsyncIterator[Pages]:
    """Two authorities that list one child; a site that only the child's message names; topics and a webhook."""
    async with open_pages(sqlite_url, tmp_path) as pages:
        world = pages.world
        world.rules = replace(world.rules, topics_enabled=True)
        world.consumer = AttendanceConsumer(world.database, world.log, world.keyring, world.clock, world.rules)
        upload = DirectoryUpload(
            world.database, world.keyring, world.clock, demo_passwords=True, actor="test", dry_run=False
        )
        header, *rows = SITES.splitlines()
        lines = [f"{header},care_setting", *(f"{row},emergency_department" for row in rows)]
        lines.append(f"RZ9,{PLACE},01632 960399,706 707,127.0.0.1,2,no,,rz9-credential,emergency_department")
        assert not (await upload.load_sites("\n".join(lines).encode(), world.directory / "senders.json")).refused
        await world.list_children(CASEY, TWIN)
        await world.list_children(OF_EASTMERE, authority="707")
        yield pages


def at_the_place(event: str = "A04", **changes: object) -> bytes:
    said = {
        "sender": "RZ9",
        "credential": "rz9-credential",
        "at": CAME_AT,
        "complaint": "Fell at Zanzibar Cliffs",
        "visit": "ZANZ1",
    }
    return hl7(event, **(said | changes)).replace(b"ED^MAJ3", b"ZANZWARD^MAJ3")  # type: ignore[arg-type]  # by name


async def note(world: World, finding: Restricted | Mismatch, local_id: str = "L1") -> None:
    """The Personal Demographics Service says this of an entry of the first authority."""
    entry_id = derive_entry_id(world.keyring, "706", make_entry(local_id=local_id))
    now = world.clock.now()
    async with world.database.writing() as connection:
        await traces.settle_trace(connection, world.keyring, entry_id, finding, next_at=now, now=now)


async def everything_sent(world: World) -> dict[str, str]:
    """Every delivery to an authority, opened: by channel and what it is."""
    async with world.database.reading() as connection:
        rows = list(await connection.execute(select(table(Delivery))))
    opened = {row.id: outbox._open(world.keyring, row) for row in rows}
    return {
        f"{row.lane} {row.event_type} {row.id}": opened[row.id].content.decode() + opened[row.id].content_type
        for row in rows
        if row.owner.startswith("authority:")
    }


async def everything_shown(pages: Pages, *logins: str, holds_it: str) -> dict[str, httpx.Response]:
    """Every page for everybody, but the protected views of who holds the alert and the child's worker."""
    async with pages.world.database.reading() as connection:
        alert_ids = [row.id for row in await connection.execute(select(table(Alert).c.id))]
    shown: dict[str, httpx.Response] = {}
    for login in logins:
        role = (await pages.load_person(login)).role
        async with pages.signed_in(login) as person:
            for (method, path), rule in ACCESS.items():
                if (
                    method != "GET"
                    or rule is ANONYMOUS
                    or role not in rule
                    or (path.endswith("/place") and login in (ASH, KIT, holds_it))
                ):
                    continue
                for alert_id in alert_ids[:2] if "alert_id" in path else alert_ids[:1]:
                    answer = await visit_route(person, method, path, f"/alerts/{alert_id}")
                    shown[f"{login} {holds_it} {method} {path} {alert_id}"] = answer
            for review in set(re.findall(r"/reviews/[0-9a-f]{32}", (await person.get("/reviews")).text)):
                shown[f"{login} {review}"] = await person.get(review)
            for listed in ("9990000018", "9990000034"):
                for path in ("/chronology", "/chronology/csv"):
                    shown[f"{login} {holds_it} {path} {listed}"] = await person.send_form(path, nhs_number=listed)
                asked = {"nhs_number": listed, "on": "2026-02-14", "time": "12:00"}
                shown[f"{login} as at {listed}"] = await person.send_form("/as-at", **asked)
    return shown


def find_marks(said: dict[str, str]) -> list[str]:
    return [f"{where}: {mark}" for where, words in said.items() for mark in MARKS if mark in words]


def said_by(answer: httpx.Response) -> str:
    """All that an answer says, but the hour of the machine: a test may run at 01:23."""
    headers = [header for header in answer.headers.multi_items() if header[0] != "date"]
    return f"{headers} {answer.text}"


async def live_through(pages: Pages) -> None:
    """The visit and its turns, a doubt, a look-up, nobody takes it, a correction."""
    world = pages.world
    await world.receive(at_the_place(), at_the_place("A08", complaint="Burnt at Zanzibar Cliffs"))
    await world.receive(at_the_place("A01", at=CAME_AT + timedelta(seconds=9)).replace(b"|1|E|", b"|1|I|"))
    await world.receive(
        at_the_place(
            nhs_number="", family="TWIN", given="SAM", birth_date=date(2016, 1, 1), visit="ZANZ3", patient="K3"
        )
    )
    async with open_api(world) as api:
        headers = {"TraceID": "2f1c0b5e-0000-4000-8000-000000000009", "NHSD-Session-URID": "555012345678"}
        asked = {"auth": ("RZ9", "rz9-credential"), "params": {"patient": "9990000018"}, "headers": headers}
        answer = await api.client.get("/FHIR/R4/AuditEvent", **asked)  # type: ignore[arg-type]  # all three at once
        assert answer.status_code == 200 and PLACE in answer.text, "its own accesses it knows"
    await world.run_jobs()


async def test_scenario_l_the_place_of_a_restricted_child_is_in_one_view_and_nowhere_else(
    served: Pages, capfd: pytest.CaptureFixture[str]
) -> None:
    world = served.world
    await note(world, Restricted())
    await note(world, Restricted(), "L9")
    with capture_logs() as logged:
        await live_through(served)
        raised = await world.alerts()
        assert {each.alert.kind for each in raised} == {AlertKind.ATTENDED, AlertKind.LOOKED_UP}
        assert all(each.is_restricted and each.alert.attendance.is_withheld for each in raised)
        assert len(await world.reviews()) == 1
        shown = await everything_shown(served, ASH, DEE, holds_it=ASH)
        world.clock.advance(timedelta(hours=25))
        await world.run_jobs()
        shown |= await everything_shown(served, BO, DEE, KIT, LIZ, NIA, OLU, PAT, SAM, COR, holds_it=DEE)
        await world.receive(at_the_place("A03"), at_the_place("A08", nhs_number="9990000042"))
        await world.list_children(f"{CASEY},2026-02-15")
        await world.run_jobs()
    assert find_marks({name: said_by(answer) for name, answer in shown.items()}) == []
    sent = await everything_sent(world)
    assert {name.split()[0].partition(":")[0] for name in sent} == {"topic", "webhook"}
    assert {name.split()[1].split(".")[3] for name in sent} == {"raised", "updated", "withdrawn"}
    assert find_marks(sent) == []
    async with world.database.reading() as connection:
        audited = list(await connection.execute(select(table(AuditRow))))
    acts = [" ".join(value for value in row if isinstance(value, str)) for row in audited]
    assert find_marks({"audit": "\n".join(act for act in acts if NORTHFOLD in act)}) == []
    written = "".join(capfd.readouterr()) + str(logged) + generate_latest().decode()
    assert [mark for mark in MARKS[:5] if mark in written] == []


async def test_the_allocated_worker_and_whoever_holds_it_see_the_place_and_every_look_is_on_record(
    served: Pages, page: Page
) -> None:
    world = served.world
    await note(world, Restricted())
    await note(world, Restricted(), "L9")
    await live_through(served)
    alert = next(each for each in await world.alerts() if each.alert.kind is AlertKind.ATTENDED)
    [review] = await world.reviews()
    path, review_path = f"/alerts/{alert.alert.alert_id}/place", f"/reviews/{review.id}/place"
    async with served.signed_in(ASH) as worker, served.signed_in(DEE) as duty, served.signed_in(LIZ) as officer:
        assert f'href="{path}"' in (await worker.get(path.removesuffix("/place"))).text
        place = await worker.get(path)
        assert all(words in place.text for words in (PLACE, "01632 960399", "01:23", "Who looked at this record"))
        assert PLACE in (await worker.get(review_path)).text
        await page.context.add_cookies([{"name": "session", "value": worker.cookies["session"], "url": served.address}])
        await page.goto(served.address + path)
        assert PLACE in await page.locator("main").inner_text()
        await page.emulate_media(media="print")
        paper = await page.locator("body").inner_text()
        assert "this page is not printed" in paper and PLACE not in paper and "Casey" not in paper
        assert {(await duty.get(each)).status_code for each in (path, review_path)} == {404}
        assert (await officer.get(review_path)).status_code == 403
        world.clock.advance(timedelta(minutes=16))
        await world.run_jobs()
        assert PLACE in (await duty.get(path)).text, "escalated: the duty desk holds it"
        assert PLACE in (await worker.get(path)).text, "the allocated worker still is"
        await world.list_children(CASEY.replace("W1", "W2"))
        assert (await worker.get(path)).status_code == 404, "allocated to somebody else"
        assert PLACE not in (await worker.get(path.removesuffix("/place"))).text
        await world.list_children(f"{CASEY},2026-02-15")
        assert (await worker.get(path)).status_code == 404, "taken back: allocated to nobody"
    read = [(actor, subject) for actor, action, subject in await served.acts(NORTHFOLD) if action == "alert.place_read"]
    assert read == [(who, alert.alert.alert_id) for who in (ASH, ASH, DEE, ASH)]
    assert (ASH, "review.place_read", review.id) in await served.acts(NORTHFOLD)


async def test_what_waits_to_be_sent_and_what_was_told_is_withheld_once_the_record_is_known_to_be_restricted(
    served: Pages,
) -> None:
    world = served.world
    await note(world, OPEN)
    await world.receive(at_the_place())
    assert find_marks(await everything_sent(world)) != [], "the marks must be there for this to mean much"
    async with world.database.writing() as connection:
        # One webhook was refused: a person may have it sent again, long after.
        of_northfold = _deliveries.c.lane == "webhook:authority:706"
        await connection.execute(_deliveries.update().where(of_northfold).values(state="failed"))
    async with served.signed_in(DEE) as duty:
        assert PLACE in (await duty.get("/inbox")).text
        await note(world, Restricted())
        assert PLACE not in (await duty.get("/inbox")).text
        assert find_marks(await everything_sent(world)) == [], "of both authorities that list the number"
        await note(world, OPEN)
        await world.receive(at_the_place(visit="ZANZ5", patient="K5"))
        assert (await duty.get("/inbox")).text.count(PLACE) == 1, "what was withheld stays so"


async def test_accesses_made_while_a_restriction_stood_stay_in_the_protected_view_when_it_ends(served: Pages) -> None:
    world = served.world
    await world.receive(hl7(visit="V0"))
    await note(world, Restricted())
    await world.receive(at_the_place())
    [hidden] = [each for each in await world.alerts() if each.alert.attendance.arrived_at is None][:1]
    await note(world, OPEN)
    world.clock.advance(timedelta(days=2))
    ottery = {"sender": "RZ2", "credential": "rz2-credential", "patient": "O1", "visit": "O1"}
    came_at = datetime(2026, 2, 16, 3, 0)  # noqa: DTZ001 - HL7 v2 writes local time
    await world.receive(hl7(at=came_at, **ottery))  # type: ignore[arg-type]  # by name
    newest = max(await world.alerts(), key=lambda each: each.raised_at)
    shown: dict[str, str] = {}
    async with served.signed_in(ASH) as worker, served.signed_in(KIT) as elsewhere, served.signed_in(DEE) as duty:
        alert = (await worker.get(f"/alerts/{newest.alert.alert_id}")).text
        assert "Ottery Infirmary" in alert and "Who looked at this record" in alert, "the restriction is over"
        shown["alert"] = alert
        for name, person in (("worker", worker), ("elsewhere", elsewhere), ("duty", duty)):
            for path in ("/chronology", "/chronology/csv"):
                told = (await person.send_form(path, nhs_number="9990000018")).text
                assert "Ottery Infirmary" in told
                shown[f"{name} {path}"] = told
        assert PLACE in (await worker.get(f"/alerts/{hidden.alert.alert_id}/place")).text, "its worker sees it still"
    headers = {"TraceID": "2f1c0b5e-0000-4000-8000-000000000009", "NHSD-Session-URID": "555012345678"}
    async with open_api(world) as api:
        asked = {"params": {"patient": "9990000018"}, "headers": headers}
        for code, credential in (("RZ1", "rz1-credential"), ("RZ9", "rz9-credential")):
            answer = await api.client.get("/FHIR/R4/AuditEvent", auth=(code, credential), **asked)  # type: ignore[arg-type]
            assert answer.status_code == 200 and "Ottery Infirmary" in answer.text
            assert (PLACE in answer.text) == (code == "RZ9"), "its own accesses a department knows"
            assert ("RZ9" in answer.text) == (code == "RZ9")
    assert find_marks(shown) == []


async def test_who_is_restricted_under_one_number_is_withheld_under_the_superseded_one_too(served: Pages) -> None:
    world, new = served.world, NhsNumber("9990000042")
    await world.list_children(CASEY.replace("L1,9990000018", f"L8,{new}"), authority="707")
    async with world.database.writing() as connection:
        old = NhsNumber("9990000018")
        await aliases.add_alias(connection, world.keyring, NORTHFOLD, old=old, new=new, now=world.clock.now())
        entry_id = derive_entry_id(world.keyring, "707", make_entry(local_id="L8"))
        await restrictions.note_restriction(connection, world.keyring, entry_id, is_restricted=True)
    await world.receive(at_the_place(nhs_number=new))
    async with open_api(world) as api:
        bundle = await api.ask("AuditEvent")
    assert bundle["total"] >= 1 and PLACE not in str(bundle) and "RZ9" not in str(bundle)
    async with served.signed_in(DEE) as duty:
        told = (await duty.send_form("/chronology", nhs_number="9990000018")).text
    assert find_marks({"chronology": told}) == []


async def test_a_restriction_that_is_noted_while_an_alert_is_being_raised_withholds_its_place(
    postgres_url: str, tmp_path: Path
) -> None:
    """The consumer has read the entry as any other when the service's finding comes, and the finding sees no alert."""
    async with open_world(postgres_url, tmp_path, topics_enabled=True) as world:
        await world.list_children(CASEY)
        entry_id = derive_entry_id(world.keyring, "706", make_entry())
        now = world.clock.now()
        async with world.database.writing() as finding:
            await traces.settle_trace(finding, world.keyring, entry_id, Restricted(), next_at=now, now=now)
            arrived = asyncio.create_task(world.receive(hl7()))
            async with asyncio.timeout(30):
                # Each question to the server gives way to the consumer.
                while not arrived.done() and not await count_waiting_for_locks(world):
                    pass
        await arrived
        [alert] = await world.alerts()
        assert alert.is_restricted and alert.alert.attendance.is_withheld
        sent = list((await everything_sent(world)).values())
        assert sent and not any("01632 960301" in each for each in sent)


async def test_an_alert_that_comes_to_rest_on_a_restricted_entry_withholds_its_place(served: Pages) -> None:
    """A second plan of the person, listed and traced before look-back comes to it."""
    world = served.world
    await world.receive(at_the_place())
    await world.list_children("L5,9990000018,Tester,Casey,2015-03-02,ZZ99 1AA,child_protection_plan,2025-01-01,,W2,N")
    entry_id = derive_entry_id(world.keyring, "706", make_entry(local_id="L5"))
    async with world.database.writing() as connection:
        of_it = _entries.c.id == entry_id
        await connection.execute(_entries.update().where(of_it).values(is_restricted=True))
    await world.run_jobs()
    [alert] = await world.alerts()
    assert alert.is_restricted and alert.alert.attendance.is_withheld
    sent = {name: said for name, said in (await everything_sent(world)).items() if "authority:706" in name}
    assert sent and find_marks(sent) == []


async def test_an_alert_about_whom_the_visit_was_taken_for_before_withholds_the_place_too(served: Pages) -> None:
    world = served.world
    await note(world, Restricted())
    await world.list_children("L6,9990000026,Other,Robin,2016-03-02,ZZ99 1AA,child_protection_plan,2025-01-01,,W2,N")
    robin = at_the_place(nhs_number="9990000026", family="OTHER", given="ROBIN", birth_date=date(2016, 3, 2))
    await world.receive(robin)
    assert [each.is_restricted for each in await world.alerts()] == [False]
    await world.receive(at_the_place("A08", at=CAME_AT + timedelta(minutes=40)))
    told = {each.alert.child.given: each for each in await world.alerts()}
    assert told["Robin"].withdrawn_at and told["Robin"].alert.attendance.is_withheld
    assert told["Casey"].alert.attendance.is_withheld
    sent = {name: said for name, said in (await everything_sent(world)).items() if "authority:706" in name}
    assert sent and find_marks(sent) == []


async def test_another_department_is_shown_an_ordinary_answer_without_the_place(served: Pages) -> None:
    await note(served.world, Restricted())
    await served.world.receive(at_the_place(), hl7(visit="V2"))
    headers = {
        "TraceID": "2f1c0b5e-0000-4000-8000-000000000009",
        "NHSD-Session-URID": "555012345678",
        "IsUnscheduledAccessEvent": "false",
    }
    async with open_api(served.world) as api:
        for what in ("PatientFlag", "CareTeam", "AuditEvent"):
            bundle = await api.ask(what, headers=headers)
            assert find_marks({what: str(bundle)}) == []
            assert bundle["total"] >= 1 and "restricted" not in str(bundle).lower()
        assert words_of(bundle), "and it is told as of any child"
