"""The school's page and the coordinator's, and the door for incidents: what a person sees and may do."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI
from sqlalchemy import select

from broker.doors import DoorLimits, create_doors, create_incident_door, join_doors, join_incident_door
from broker.intake import Intake
from broker.senders import Senders
from broker.storage.receipts import mark_unreached
from broker.storage.tables import AuditRow, Lane, table
from broker.topics import INCIDENTS
from broker.web.app import create_app
from broker.web.operations import Status, compose_status
from schemas.encompass import NoticeState, TaskKind
from tests.encompass import Encompass, at_school, child, half_term, open_encompass
from tests.factories import make_settings, serve_app
from tests.integration.test_incident_files import JORDAN, OTHERS, file_of
from tests.pages import READY, Client

DEE = "dee@706.example.org"
ALEX, ROBIN, BO = "alex@900001.example.org", "robin@900001.example.org", "bo@900002.example.org"
CORA = "cora@zf1.example.org"
DEMO = "demo-password"


@dataclass
class Served:
    """The pages over a small world."""

    encompass: Encompass
    address: str

    @asynccontextmanager
    async def signed_in(self, login: str) -> AsyncIterator[Client]:
        """Somebody who is signed in."""
        async with Client(self.address) as client:
            assert (await client.sign_in(login, DEMO)).status_code == 303
            yield client


@asynccontextmanager
async def open_served(url: str, directory: Path, **changes: int) -> AsyncIterator[Served]:
    """The pages, with the Saturday of half-term sent."""
    async with open_encompass(url, directory) as encompass:
        world = encompass.world
        settings = make_settings(directory, **changes)

        async def ask_status() -> Status:
            return await compose_status(world.database, READY)

        app = create_app(
            database=world.database,
            keyring=world.keyring,
            clock=world.clock,
            settings=settings,
            status=ask_status,
            rules=world.rules,
            incidents=encompass.intake,
        )
        await encompass.receive(half_term())
        await encompass.run_jobs()
        async with serve_app(app) as address:
            yield Served(encompass, address)


@pytest.fixture
async def served(sqlite_url: str, tmp_path: Path) -> AsyncIterator[Served]:
    async with open_served(sqlite_url, tmp_path) as opened:
        yield opened


async def test_the_deputy_reads_and_acknowledges_and_the_sister_learns_nothing(served: Served) -> None:
    async with served.signed_in(ROBIN) as sister:
        page = await sister.get("/school")
        assert page.status_code == 200 and "Jordan" not in page.text and "There are none" in page.text
    notice = (await served.encompass.notices())["900001"]
    async with served.signed_in(ALEX) as deputy:
        page = await deputy.get("/school")
        assert "Jordan" in page.text and "I hid." in page.text
        for hidden in ("Sidney", "Morgan", "Robin Sister", "sister of the suspect", "Mill Lane, Sampleton"):
            assert hidden not in page.text
        assert (await deputy.post(f"/school/notices/{notice.id}/acknowledge", data={"version": "1"})).status_code == 400
        answer = await deputy.send_form(f"/school/notices/{notice.id}/acknowledge", version="1")
        assert answer.status_code == 303
        kept = await deputy.send_form(f"/school/notices/{notice.id}/record", text="Spoke with Jordan.")
        assert kept.status_code == 303
        page = await deputy.get("/school")
        assert "Acknowledged" in page.text and "Spoke with Jordan." in page.text
    async with served.signed_in(ROBIN) as sister:
        assert (await sister.send_form(f"/school/notices/{notice.id}/record", text="x")).status_code == 404
    async with served.signed_in(BO) as other:
        assert (await other.send_form(f"/school/notices/{notice.id}/acknowledge", version="1")).status_code == 404
    notice = (await served.encompass.notices())["900001"]
    assert (notice.state, notice.acknowledged_by) == (NoticeState.ACKNOWLEDGED, ALEX)
    served.encompass.world.clock.move_to(notice.due_by)
    await served.encompass.run_jobs()
    assert "900001" not in {task.urn for task in await served.encompass.tasks()}


async def test_a_correction_has_to_be_read_again(served: Served) -> None:
    notice = (await served.encompass.notices())["900001"]
    async with served.signed_in(ALEX) as deputy:
        await deputy.send_form(f"/school/notices/{notice.id}/acknowledge", version="1")
        corrected = half_term(version=2, change="correction")
        corrected["children"][0]["childs_words"] = "I hid with my brother."
        await served.encompass.receive(corrected)
        await served.encompass.run_jobs()
        # The first version's form was still open in another window: it answers for nothing.
        await deputy.send_form(f"/school/notices/{notice.id}/acknowledge", version="1")
        assert (await served.encompass.notices())["900001"].state is NoticeState.SENT
        assert "Corrected" in (await deputy.get("/school")).text


async def test_the_coordinator_chooses_among_the_pupils_a_child_may_be(served: Served) -> None:
    encompass = served.encompass
    pupils = """authority,pupil_id,family_name,given_name,birth_date,postcode,urns,home_educated
706,P1,Sampel,Riley,2016-04-05,ZZ99 1AA,900002,
706,P2,Sampel,Morgan,2014-04-05,ZZ99 1AA,,yes
"""
    assert not (await encompass.upload("pupils", pupils)).refused
    gone = "urn,name,kind,authority,status\n900009,Gone School,school,706,closed\n"
    assert not (await encompass.upload("schools", gone)).refused
    children = [
        child("k1", "Riley", postcode="ZZ99 1AA"),
        child("k2", "Morgan", birth_date="2014-04-05", postcode="ZZ99 1AA"),
    ]
    await encompass.receive(half_term(incident_id="ZF1/2026/0002", children=children, excluded_recipients=[]))
    tasks = {task.matter.child_id: task for task in await encompass.tasks() if task.kind is TaskKind.LOOK_UP}
    async with served.signed_in(CORA) as coordinator:
        page = (await coordinator.get("/force")).text
        assert "It is Riley Sampel, at 900002" in page
        assert "It is Morgan Sampel, taught at home: tell the officer of 706" in page
        at_school, at_home = (f"/force/tasks/{tasks[each].id}/place" for each in ("k1", "k2"))
        for refused in ({}, {"urn": "900002", "home_educated_in": "706"}, {"home_educated_in": "707"}):
            assert (await coordinator.send_form(at_home, **refused)).status_code == 400
        before = len(await encompass.notices_of())
        for urn, words in (
            ("900002", ("Is this the school?", "Riley Sample", "Eastmere College", "Nobody has been told yet")),
            ("900999", ("Nothing was changed", "No school with the URN 900999 is known here")),
            ("900009", ("Nothing was changed", "is closed")),
        ):
            asked = await coordinator.send_form(at_school, urn=urn)
            assert asked.status_code == 200 and all(each in asked.text for each in words)
        asked = await coordinator.send_form(at_school, urn="900999", is_checked="yes")
        assert asked.status_code == 200 and "is_checked" not in asked.text
        assert len(await encompass.notices_of()) == before, "nobody is told by a number alone"
        assert (await coordinator.send_form(at_school, urn="900002", is_checked="yes")).status_code == 303
        assert (await coordinator.send_form(at_home, home_educated_in="706")).status_code == 303
    [told] = [each for each in await encompass.notices_of() if each.telling.notice.children[0].given_name == "Riley"]
    assert told.urn == "900002"
    left = [task for task in await encompass.tasks() if task.incident_id == tasks["k2"].incident_id]
    assert [(task.kind, task.owner) for task in left] == [(TaskKind.TELL_OFFICER, "authority:706")]
    assert left[0].matter.child_id == "k2"


async def test_not_our_pupil_goes_back_to_the_queue_and_the_coordinator_finds_the_school(served: Served) -> None:
    notice = (await served.encompass.notices())["900001"]
    async with served.signed_in(ALEX) as deputy:
        answer = await deputy.send_form(f"/school/notices/{notice.id}/not-our-pupil", child="0")
        assert answer.status_code == 303
        assert "Jordan" not in (await deputy.get("/school")).text
    [look_up] = [task for task in await served.encompass.tasks() if task.kind is TaskKind.LOOK_UP]
    assert look_up.owner == "force:ZF1"
    async with served.signed_in(CORA) as coordinator:
        assert "Jordan" in (await coordinator.get("/force")).text
        path = f"/force/tasks/{look_up.id}/place"
        assert (await coordinator.send_form(path, urn="nobody")).status_code == 400
        assert (await coordinator.send_form(path, urn="900002", is_checked="yes")).status_code == 303
        # The sister is nobody that the other school's directory knows: a person says that it may go there.
        [release] = [task for task in await served.encompass.tasks() if task.kind is TaskKind.RELEASE]
        assert (await coordinator.send_form(f"/force/tasks/{release.id}/release")).status_code == 303
    await served.encompass.run_jobs()
    notices = await served.encompass.notices()
    assert notices["900001"].state is NoticeState.WITHDRAWN
    told = notices["900002"].telling.notice
    assert sorted(each.given_name for each in told.children) == ["Jordan", "Sidney"]
    assert TaskKind.LOOK_UP not in {task.kind for task in await served.encompass.tasks()}


async def test_the_coordinators_see_who_of_them_cannot_be_told(served: Served) -> None:
    world = served.encompass.world
    async with world.database.writing() as connection:
        lane = {"id": "1", "channel": "text_message", "owner": "force:ZF1", "contact": CORA, "epoch": 0}
        await connection.execute(table(Lane).insert().values(**lane))
        await mark_unreached(connection, "1", "temporary_failure", world.clock.now())
    async with served.signed_in(CORA) as coordinator:
        assert "cannot be reached by text message since" in (await coordinator.get("/force")).text


async def test_what_the_coordinator_suppresses_is_taken_back(served: Served) -> None:
    notice = (await served.encompass.notices())["900001"]
    async with served.signed_in(CORA) as coordinator:
        path = f"/force/incidents/{notice.incident_id}/suppress"
        shown = (await coordinator.get("/force")).text
        assert re.search(rf'href="/force/incidents/{notice.incident_id}">Incident \S+</a>', shown), "which one it is"
        assert (await coordinator.send_form(path, reason="")).status_code == 400
        assert (await coordinator.send_form(path, reason="refuge", authoriser="DI 0702")).status_code == 303
    assert {each.state for each in (await served.encompass.notices()).values()} == {NoticeState.WITHDRAWN}
    async with served.signed_in(ALEX) as deputy:
        assert "Jordan" not in (await deputy.get("/school")).text
    kept_back = {"scope": "notice", "reason": "refuge", "authoriser": "DI 0702"}
    await served.encompass.receive(half_term(incident_id="ZF1/2026/0003", suppress=kept_back))
    async with served.signed_in(CORA) as coordinator:
        assert "ZF1/2026/0003" not in (await coordinator.get("/force")).text, "no school has to read it"


async def test_a_file_of_incidents_stays_in_memory_and_a_trial_is_not_on_record_as_an_import(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rolled: list[object] = []

    def roll(file: object) -> None:
        rolled.append(file)

    monkeypatch.setattr(SpooledTemporaryFile, "rollover", roll)
    path, file = "/force/incidents", file_of(JORDAN, OTHERS, *["," * 40] * 60)
    async with open_served(sqlite_url, tmp_path, list_upload_bytes_max=1024) as served:
        async with served.signed_in(CORA) as coordinator:
            token = {"form_token": coordinator.form_token}
            assert (await coordinator.post(path, files={"file": ("e.csv", file)})).status_code == 400
            assert (await coordinator.post(path, data=token | {"file": "text"})).status_code == 400
            for trial, kept in (({"dry_run": "yes"}, 0), ({}, 1)):
                answer = await coordinator.post(path, data=token | trial, files={"file": ("e.csv", file)})
                assert answer.status_code == 200 and "Robin" not in answer.text
                rows = table(AuditRow).c
                async with served.encompass.world.database.reading() as connection:
                    imported = select(rows.actor).where(rows.action == "incidents.imported")
                    assert list((await connection.execute(imported)).scalars()) == [CORA] * kept
        async with served.signed_in(ALEX) as lead:
            refused = await lead.post(path, data={"form_token": lead.form_token}, files={"file": ("e.csv", file)})
            assert refused.status_code in (403, 404)
    assert rolled == []


async def test_a_held_incident_waits_for_its_release(served: Served) -> None:
    unknown = [{"name": "Nobody Known", "reason": "relative", "authoriser": "DS 1"}]
    held = half_term(incident_id="ZF1/2026/0009", excluded_recipients=unknown)
    held["children"] = [child("k9", "Riley", establishments=at_school("900002"))]
    served.encompass.world.clock.advance(timedelta(minutes=1))
    await served.encompass.receive(held)
    await served.encompass.run_jobs()
    async with served.signed_in(BO) as lead:
        assert "Riley" not in (await lead.get("/school")).text
        [release] = [task for task in await served.encompass.tasks() if task.kind is TaskKind.RELEASE]
        async with served.signed_in(CORA) as coordinator:
            assert (await coordinator.send_form(f"/force/tasks/{release.id}/release")).status_code == 303
        await served.encompass.run_jobs()
        assert "Riley" in (await lead.get("/school")).text


async def test_the_authoritys_officer_sees_to_the_child_at_home(served: Served) -> None:
    async with served.signed_in(DEE) as officer:
        assert "Morgan" in (await officer.get("/encompass-tasks")).text
        [task] = await served.encompass.tasks()
        assert (await officer.send_form(f"/encompass-tasks/{task.id}/settle")).status_code == 303
        await served.encompass.run_jobs()
        assert "Morgan" not in (await officer.get("/encompass-tasks")).text


async def test_nobody_reads_by_a_stale_entry_a_role_they_left_or_against_an_exclusion(served: Served) -> None:
    """Threat 14: the directory of the moment decides, at sending and at every look."""
    encompass, clock = served.encompass, served.encompass.world.clock

    async def know(*contacts: str) -> None:
        assert not (await encompass.upload("safeguarding_contacts", "\n".join((HEADER, *contacts)))).refused

    async def sees(login: str) -> bool:
        async with served.signed_in(login) as reader:
            return "Quinn" in (await reader.get("/school")).text

    said = half_term(incident_id="ZF1/2026/0003", excluded_recipients=[])
    said["adults"] = [{"relation": "relative", "family_name": "Porter"}]
    said["children"] = [child("k7", "Quinn", establishments=at_school("900003"))]
    leads = """login,name,role,at,contact_id,password
cam@900003.example.org,Cam Miller,safeguarding_lead,900003,C1,demo-password
sam@900003.example.org,Sam Porter,safeguarding_lead,900003,C2,demo-password
"""
    cam, sam = "cam@900003.example.org", "sam@900003.example.org"
    await know(TRUSTED, DEPUTY)
    assert not (await encompass.upload("encompass_people", leads)).refused
    await encompass.receive(said)
    # Between planning and sending the lead's entry has gone stale and the deputy works in the office: nobody is told.
    await know(STALE, OFFICE)
    await encompass.run_jobs()
    assert (await encompass.notices_of("900003"))[0].sent_at is None
    assert not await sees(cam) and not await sees(sam)
    assert TaskKind.NO_ROUTE in {task.kind for task in await encompass.tasks()}
    # The deputy is one again: told, although an adult of the incident has the same name; that is said to the force.
    await know(DEPUTY)
    clock.advance(timedelta(minutes=15))
    await encompass.run_jobs()
    assert await sees(sam) and not await sees(cam)
    assert TaskKind.CONFLICT in {task.kind for task in await encompass.tasks()}
    # Whoever leaves the role after the sending reads it no more, on the page and by its address.
    await know(OFFICE)
    [notice] = await encompass.notices_of("900003")
    async with served.signed_in(sam) as former:
        assert "Quinn" not in (await former.get("/school")).text
        assert (await former.send_form(f"/school/notices/{notice.id}/acknowledge", version="1")).status_code == 404
    # The force learns who is family: from then on the lead is told and the deputy is not, and it knows who had been.
    await know(TRUSTED, DEPUTY)
    excluded = [{"name": "Sam Porter", "reason": "brother", "authoriser": "DS 1"}]
    await encompass.receive(said | {"version": 2, "change": "correction", "excluded_recipients": excluded})
    await encompass.run_jobs()
    assert await sees(cam) and not await sees(sam)
    assert TaskKind.DISCLOSED in {task.kind for task in await encompass.tasks()}


HEADER = "urn,contact_id,role,name,mailbox,confirmed_date,trained_date"
TRUSTED = "900003,C1,lead,Cam Miller,safeguarding@hill-top.example.org,2026-01-10,2025-09-01"
STALE = "900003,C1,lead,Cam Miller,safeguarding@hill-top.example.org,2024-01-10,2023-09-01"
DEPUTY = "900003,C2,deputy,Sam Porter,deputy@hill-top.example.org,2026-01-10,2025-09-01"
OFFICE = "900003,C2,office,Sam Porter,deputy@hill-top.example.org,2026-01-10,2025-09-01"


# The door


@asynccontextmanager
async def open_door(encompass: Encompass) -> AsyncIterator[httpx.AsyncClient]:
    """The door for incidents beside the others."""
    forces = Senders(encompass.world.directory / "forces.json", encompass.world.keyring)
    intake = Intake(encompass.log, "attendances", encompass.world.keyring, forces, encompass.world.clock)
    door = create_incident_door(encompass.intake, forces, DoorLimits())
    pages = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app: Any = join_incident_door(door, join_doors(create_doors(intake, forces, DoorLimits()), pages))
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://door", auth=("ZF1", "zf1-credential")) as client:
        yield client


async def test_the_door_keeps_what_is_in_order_and_says_what_is_not(sqlite_url: str, tmp_path: Path) -> None:
    async with open_encompass(sqlite_url, tmp_path) as encompass, open_door(encompass) as door:
        taken = await door.post("/incidents", json=half_term())
        assert taken.status_code == 202 and set(taken.json()) == {"message_id"}
        misspelt = await door.post("/incidents", json=half_term() | {"supress": "Jordan"})
        assert misspelt.status_code == 422 and misspelt.json()["problems"]
        assert "Jordan" not in misspelt.text
        other = await door.post("/incidents", json=half_term(force="ZF2"))
        assert [each["field"] for each in other.json()["problems"]] == ["force"]
        wrong = await door.post("/incidents", json=half_term(), auth=("ZF1", "zf2-credential"))
        assert wrong.status_code == 401
        assert (await door.get("/incidents")).status_code == 405
        plain = await door.post("/incidents", content=b"{}", headers={"content-type": "text/plain"})
        assert plain.status_code == 415
        kept = [
            record
            for partition in await encompass.log.extents(INCIDENTS)
            for record in encompass.log.records_from(partition, 0)
        ]
        [record] = kept
        assert b"Jordan" not in record.value
        # What the door kept is read by the consumer, and by it once: the same bytes by another way are a repeat.
        await encompass.take_partition()
        batch = msgspec.structs.replace(encompass.batch([b""], 0), records=kept)
        await encompass.consumer.handle(batch)
        assert set(await encompass.notices()) == {"900001", "900002"}


async def test_what_is_not_durable_is_not_acknowledged(sqlite_url: str, tmp_path: Path) -> None:
    async with open_encompass(sqlite_url, tmp_path) as encompass, open_door(encompass) as door:
        await encompass.log.close()
        answer = await door.post("/incidents", json=half_term())
        assert answer.status_code == 503 and answer.headers["retry-after"]
