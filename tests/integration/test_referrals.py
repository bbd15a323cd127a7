"""Attendances that speak of domestic abuse: held for a named person of the hub, always, and what each side learns."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date, datetime, timedelta
from pathlib import Path

import httpx
import msgspec
import pytest
from sqlalchemy import func, select

from adapters.safeguarding import find_domestic_abuse
from broker.consumers.loop import Batch
from broker.consumers.referral import ReferralConsumer
from broker.doors import DoorLimits, create_doors, create_incident_door, join_doors, join_incident_door
from broker.intake import Intake
from broker.jobs.referrals import ask_about_taken_back
from broker.proof import Month, report_month
from broker.senders import Senders
from broker.storage import handled, outbox
from broker.storage.audit import verify_chain
from broker.storage.handled import Place
from broker.storage.tables import AuditRow, Delivery, Incident, ListEntry, Quarantined, table
from broker.topics import ATTENDANCES, INCIDENTS, REFERRALS_GROUP
from broker.web.app import create_app
from broker.web.fhir_api import PATHS, FhirReads
from broker.web.look_up import LookUps
from broker.web.operations import Status, compose_status
from schemas.directory import Role
from schemas.encompass import DOMESTIC_ABUSE_CODES, NoticeState, ReferralNotice, TaskKind
from schemas.identifiers import organisation_owner
from schemas.record import LogRecord, Partition
from tests.bundles import (
    encode,
    make_bundle,
    make_encounter,
    make_header,
    make_message,
    make_organisation,
    make_patient,
)
from tests.encompass import Encompass, at_school, child, half_term, open_encompass
from tests.factories import make_settings, serve_app, store_login
from tests.pages import READY, Client
from tests.world import CASEY, LOG_ID, hl7

CODE = "697950003"
PUPILS = """authority,pupil_id,family_name,given_name,birth_date,postcode,urns,home_educated
706,P1,Tester,Casey,2015-03-02,,900003,no
"""
HUB_PEOPLE = """login,name,role,at,contact_id,password
hal@706.example.org,Hal Hubber,encompass_hub,706,,demo-password
chris@900003.example.org,Chris Page,safeguarding_lead,900003,C2,demo-password
"""
TRAINED = """urn,contact_id,role,name,mailbox,confirmed_date,trained_date
900003,C2,deputy,Chris Page,safeguarding@hill-top.example.org,2026-01-10,2025-09-01
"""


def coded(code: str = CODE, *, status: str = "F", **changes: object) -> bytes:
    """An attendance with a safeguarding code as an observation."""
    return hl7(**changes) + f"OBX|1|CE|SAFE^Safeguarding||{code}^DA^SCT||||||{status}\r".encode()  # type: ignore[arg-type]


class Hub:
    """The second source in a small world."""

    def __init__(self, encompass: Encompass) -> None:
        self.encompass = encompass
        self.world = encompass.world
        self.consumer = ReferralConsumer(
            self.world.database,
            self.world.keyring,
            self.world.clock,
            encompass.rules,
            quarantined=timedelta(minutes=15),
            age_max=timedelta(days=7),
        )
        self.offset = 0

    async def receive(self, *messages: bytes, age: timedelta = timedelta()) -> None:
        """Handle attendances as one batch of the hub's own group; ``age``: they have stood on the log so long."""
        partition = Partition(ATTENDANCES, 0)
        now = self.world.clock.now()
        if self.offset == 0:
            async with self.world.database.writing() as connection:
                place = Place(log_id=LOG_ID, first_offset=0, next_offset=0, stopped_cleanly=True)
                await handled.take_partition(connection, REFERRALS_GROUP, partition, place, known=None, now=now)
        records = [
            LogRecord(
                partition=partition, offset=self.offset + n, key=None, value=body, headers={}, appended_at=now - age
            )
            for n, body in enumerate(messages)
        ]
        batch = Batch(group=REFERRALS_GROUP, partition=partition, log_id=LOG_ID, records=records, expected=self.offset)
        await self.consumer.handle(batch)
        self.offset = batch.next_offset

    async def ask_again(self) -> int:
        """What the jobs part looks for."""
        now = self.world.clock.now()
        return await ask_about_taken_back(
            self.world.database,
            self.world.keyring,
            now,
            released_since=now - timedelta(days=7),
            limit=timedelta(hours=1),
            rows_max=100,
        )

    async def count(self, model: type) -> int:
        async with self.world.database.reading() as connection:
            return int((await connection.execute(select(func.count()).select_from(table(model)))).scalar_one())


@pytest.fixture
async def hub(world_url: str, tmp_path: Path) -> AsyncIterator[Hub]:
    """The small world on each engine."""
    async with open_encompass(world_url, tmp_path) as encompass:
        assert not (await encompass.upload("pupils", PUPILS)).refused
        assert not (await encompass.upload("safeguarding_contacts", TRAINED)).refused
        assert not (await encompass.upload("encompass_people", HUB_PEOPLE)).refused
        yield Hub(encompass)


@asynccontextmanager
async def signed_in(address: str, login: str) -> AsyncIterator[Client]:
    async with Client(address) as client:
        assert (await client.sign_in(login, "demo-password")).status_code == 303
        yield client


@asynccontextmanager
async def open_doors(hub: Hub) -> AsyncIterator[str]:
    """Every door of HTTP as the web part joins them: pages, reads, attendances and incidents."""
    world, log = hub.world, hub.encompass.log
    settings = make_settings(world.directory)

    async def ask_status() -> Status:
        return await compose_status(world.database, READY)

    pages = create_app(
        database=world.database,
        keyring=world.keyring,
        clock=world.clock,
        settings=settings,
        rules=world.rules,
        status=ask_status,
    )
    senders = Senders(world.directory / "senders.json", world.keyring)
    forces = Senders(world.directory / "forces.json", world.keyring)
    reads = FhirReads(LookUps(world.database, world.keyring, world.clock, world.rules), senders)
    intake = Intake(log, ATTENDANCES, world.keyring, senders, world.clock)
    doors = join_doors(create_doors(intake, senders, DoorLimits()), pages, reads, PATHS)
    incidents = create_incident_door(hub.encompass.intake, forces, DoorLimits())
    async with serve_app(join_incident_door(incidents, doors)) as address:
        yield address


async def test_an_attendance_with_a_code_is_held_whatever_forces_have_agreed(hub: Hub) -> None:
    """Forces release by themselves here; an attendance never does, nor does time let it go."""
    await hub.receive(hl7(visit="V0"), coded(), coded(control_id="again"), coded(event="A08"))
    notices = await hub.encompass.notices()
    assert {urn: notice.state for urn, notice in notices.items()} == {"900003": NoticeState.HELD}
    [release] = await hub.encompass.tasks()
    assert (release.kind, release.owner, release.held_by) == (TaskKind.RELEASE, "authority:706", "hub")
    hub.world.clock.advance(timedelta(days=30))
    await hub.encompass.run_jobs()
    assert (await hub.encompass.notices())["900003"].state is NoticeState.HELD
    content = notices["900003"].telling.notice
    assert isinstance(content, ReferralNotice)
    said = msgspec.json.encode(content).decode()
    for fact in ("Fenwick", "RZ1", CODE, "domestic abuse victim", "2026-02-14T03", "V1", "Fall", "9990000018"):
        assert fact not in said
    # What the notice may hold is written down as a type: a new field has to be argued for here.
    assert set(ReferralNotice.__struct_fields__) == {
        *("notice_id", "version", "change", "issued_at", "establishment"),
        *("authority", "telephone", "children", "statement"),
    }


async def test_who_is_no_child_or_carries_no_such_code_leaves_nothing_behind(hub: Hub) -> None:
    await hub.receive(
        hl7(),
        coded("861931000000100"),
        coded(status="W"),
        coded(birth_date=date(1990, 1, 1)),
        b"MSH|^~\\&|torn 697950003",
        coded(visit="V9", given="", birth_date=None),
    )
    assert await hub.count(Incident) == 1  # the last: whoever has no birth date may be a child
    assert [task.kind for task in await hub.encompass.tasks()] == [TaskKind.LOOK_UP, TaskKind.RELEASE]


async def test_what_has_stood_on_the_log_for_longer_than_any_outage_is_not_put_before_the_hub(hub: Hub) -> None:
    await hub.receive(coded(visit="V7"), age=timedelta(days=7, seconds=1))
    assert await hub.count(Incident) == 0
    await hub.receive(coded(visit="V8"), age=timedelta(days=7))
    assert await hub.count(Incident) == 1


async def test_a_corrected_identity_is_held_anew_and_the_released_one_stays(hub: Hub) -> None:
    await hub.receive(coded())
    await hub.receive(coded(event="A08", given="ROWAN"))
    kinds = [task.kind for task in await hub.encompass.tasks()]
    assert kinds == [TaskKind.LOOK_UP, TaskKind.RELEASE, TaskKind.RELEASE]


async def test_who_comes_again_under_a_visit_number_that_is_used_again_is_held_again(hub: Hub) -> None:
    await hub.receive(coded(), coded(control_id="again"))
    hub.world.clock.advance(timedelta(days=90))
    await hub.receive(coded(at=datetime(2026, 5, 15, 3, 7)))  # noqa: DTZ001 - HL7 v2 writes local time
    assert [task.kind for task in await hub.encompass.tasks()] == [TaskKind.RELEASE, TaskKind.RELEASE]


async def test_without_an_authority_it_waits_for_the_operators_and_the_others_go_on(hub: Hub) -> None:
    await hub.receive(coded(sender="RZ9", given="NOBODY"), coded())
    assert await hub.count(Quarantined) == 1
    assert await hub.count(Incident) == 1


@pytest.mark.parametrize("system", ["http://snomed.info/sct", "https://fhir.nhs.uk/CodeSystem/safeguarding-codes-bars"])
def test_a_flag_or_condition_in_a_bundle_is_found_unless_it_was_an_error(system: str) -> None:
    coding = {"coding": [{"system": system, "code": CODE}]}
    patient = {"reference": "Patient/p1"}
    flag = {"resourceType": "Flag", "id": "f1", "status": "active", "code": coding, "subject": patient}
    assert find_domestic_abuse(encode(make_message(flag))) == (CODE,)
    assert find_domestic_abuse(encode(make_message(reasonCode=[coding]))) == (CODE,)
    assert find_domestic_abuse(encode(make_message(flag | {"status": "entered-in-error"}))) == ()
    refuted = {"coding": [{"code": "refuted"}]}
    condition = {"resourceType": "Condition", "id": "c1", "code": coding, "subject": patient}
    assert find_domestic_abuse(encode(make_message(condition))) == (CODE,)
    assert find_domestic_abuse(encode(make_message(condition | {"verificationStatus": refuted}))) == ()
    elsewhere = {"coding": [{"system": "urn:oid:1.2.3", "code": CODE}]}
    assert find_domestic_abuse(encode(make_message(flag | {"code": elsewhere}))) == ()


@pytest.mark.parametrize("code", DOMESTIC_ABUSE_CODES)
def test_each_code_is_found_in_whichever_field_a_department_puts_it(code: str) -> None:
    for segment in (f"OBX|1|CE|{code}^x^SCT||Y", f"DG1|1||{code}&x^y^SCT", f"OBX|1|CE|SAFE||861931000000100~{code}^x"):
        assert find_domestic_abuse(hl7() + segment.encode() + b"\r") == (code,)
    assert find_domestic_abuse(hl7() + f"OBX|1|CE|SAFE||{code}0".encode()) == ()
    assert find_domestic_abuse(b"{" + code.encode()) == ()


async def test_a_named_person_of_the_hub_releases_with_reason_and_gateway_and_nobody_else(hub: Hub) -> None:
    await hub.receive(coded())
    [release] = await hub.encompass.tasks()
    path = f"/hub/tasks/{release.id}/release"
    given = {"gateway": "children_act_1989_section_47", "reason": "Strategy meeting agreed."}
    async with open_doors(hub) as address:
        for login in ("dee@706.example.org", "cora@zf1.example.org", "chris@900003.example.org"):
            async with signed_in(address, login) as other:
                assert (await other.send_form(path, **given)).status_code == 403
        async with signed_in(address, "dee@706.example.org") as officer:
            assert "Casey" not in (await officer.get("/encompass-tasks")).text.title()
            settled = await officer.send_form(f"/encompass-tasks/{release.id}/settle")
            assert settled.status_code == 404
        async with signed_in(address, "hal@706.example.org") as hal:
            shown = (await hal.get("/hub")).text
            for seen in ("CASEY TESTER", "Fenwick General Hospital", "Suspected victim", "Hill Top School"):
                assert seen in shown
            for missing in ({"gateway": "because"}, {"reason": "  "}, {"reason": "x" * 1_001}):
                assert (await hal.send_form(path, **given | missing)).status_code == 400
            assert (await hub.encompass.notices())["900003"].state is NoticeState.HELD
            assert (await hal.send_form(path, **given)).status_code == 303
            assert (await hal.send_form(path, **given)).status_code == 404
        await hub.encompass.run_jobs()
        notice = (await hub.encompass.notices())["900003"]
        assert notice.state is NoticeState.SENT and notice.due_by > hub.world.clock.now()
        async with signed_in(address, "chris@900003.example.org") as deputy:
            page = (await deputy.get("/school")).text
            assert "CASEY TESTER" in page and "Northfold Borough Council" in page and "01632 960101" in page
            for fact in ("Fenwick", "RZ1", CODE, "Strategy", "Hal", "14 February 2026 at 03:07", "Fall from"):
                assert fact not in page
            assert (await deputy.send_form(f"/school/notices/{notice.id}/acknowledge", version="1")).status_code == 303
    async with hub.world.database.reading() as connection:
        rows = table(AuditRow).c
        found = await connection.execute(
            select(rows.actor, rows.action, rows.reason).where(rows.owner == "authority:706").order_by(rows.sequence)
        )
        audited = [tuple(row) for row in found]
        assert await verify_chain(connection, "authority:706") is None
    assert ("broker", "referral.held", "") in audited
    assert ("hal@706.example.org", "referral.released", given["gateway"]) in audited
    assert "Strategy meeting" not in str(audited)


async def test_where_a_restricted_child_came_is_not_told_to_the_hub_either(hub: Hub) -> None:
    await hub.world.list_children(CASEY)
    await hub.receive(coded())
    async with open_doors(hub) as address, signed_in(address, "hal@706.example.org") as hal:
        assert "Fenwick" in (await hal.get("/hub")).text
        entries = table(ListEntry)
        async with hub.world.database.writing() as connection:
            await connection.execute(entries.update().values(is_restricted=True))
        shown = (await hal.get("/hub")).text
        assert "CASEY TESTER" in shown and "withheld" in shown
        assert "Fenwick" not in shown and "03:07" not in shown


async def test_the_hub_is_told_what_the_department_has_taken_back_before_it_decides(hub: Hub) -> None:
    await hub.receive(coded(), coded(visit="V2", given="ROWAN", patient="K2"))
    await hub.world.receive(coded(), hl7(visit="V2", given="ROWAN", patient="K2"))
    async with open_doors(hub) as address, signed_in(address, "hal@706.example.org") as hal:
        assert "since:" not in (await hal.get("/hub")).text
        later = datetime(2026, 2, 14, 4, 0)  # noqa: DTZ001 - HL7 v2 writes local time
        await hub.world.receive(
            hl7("A11", at=later),
            hl7("A08", at=later, visit="V2", given="ROBIN", patient="K2", nhs_number="9990000026"),
        )
        shown = (await hal.get("/hub")).text
        assert shown.count("has cancelled this visit since") == 1
        assert shown.count("has corrected since who attended") == 1


async def test_what_the_department_takes_back_after_the_release_is_put_before_the_hub_once_to_withdraw_or_to_let_stand(
    hub: Hub,
) -> None:
    await hub.receive(coded(), coded(visit="V2", given="ROWAN", patient="K2"))
    await hub.world.receive(coded(), hl7(visit="V2", given="ROWAN", patient="K2"))
    given = {"gateway": "children_act_1989_section_47", "reason": "Strategy meeting agreed."}
    async with open_doors(hub) as address, signed_in(address, "hal@706.example.org") as hal:
        for task in [task for task in await hub.encompass.tasks() if task.kind is TaskKind.RELEASE]:
            await hal.send_form(f"/hub/tasks/{task.id}/release", **given)
        await hub.encompass.run_jobs()
        assert [notice.state for notice in await hub.encompass.notices_of("900003")] == [NoticeState.SENT]
        assert await hub.ask_again() == 0
        later = datetime(2026, 2, 14, 4, 0)  # noqa: DTZ001 - HL7 v2 writes local time
        await hub.world.receive(hl7("A11", at=later), hl7("A11", at=later, visit="V2", given="ROWAN", patient="K2"))
        assert (await hub.ask_again(), await hub.ask_again()) == (2, 0)
        shown = (await hal.get("/hub")).text
        assert shown.count("has cancelled this visit since") == 2 and "Hill Top School" in shown
        for task in [task for task in await hub.encompass.tasks() if task.kind is TaskKind.TAKEN_BACK]:
            is_told = task.incident_id == (await hub.encompass.notices())["900003"].incident_id
            path = f"/hub/attendances/{task.incident_id}/keep-back" if is_told else f"/encompass-tasks/{task.id}/settle"
            assert (await hal.send_form(path, reason="other")).status_code == 303
        assert "Taken back after your release" not in (await hal.get("/hub")).text
        assert await hub.ask_again() == 0
    [notice] = await hub.encompass.notices_of("900003")
    assert notice.state is NoticeState.WITHDRAWN and notice.telling.withdrawn is not None
    assert not [task for task in await hub.encompass.tasks() if task.kind is TaskKind.TAKEN_BACK]
    rows = table(AuditRow).c
    async with hub.world.database.reading() as connection:
        found = await connection.execute(select(rows.actor, rows.action, rows.reason))
        audited = {(row.actor, row.action, row.reason) for row in found}
    assert ("broker", "taken_back.asked", "cancelled") in audited
    assert ("hal@706.example.org", "incident.suppressed", "other") in audited
    assert ("hal@706.example.org", "taken_back.seen_to", "") in audited


async def test_nobody_else_learns_from_a_report_that_an_attendance_was_held(hub: Hub) -> None:
    await hub.receive(coded())
    async with open_doors(hub) as address, signed_in(address, "dee@706.example.org") as officer:
        for path in ("/encompass-report", "/encompass-report.csv"):
            shown = (await officer.get(path)).text
            assert "hub-" not in shown and "Hill Top" not in shown
    async with hub.world.database.reading() as connection:
        now, keyring = hub.world.clock.now(), hub.world.keyring
        report = await report_month(connection, keyring, Month(2026, 2), now=now)
    assert (report.incidents, report.notices) == (0, 0)


async def test_what_the_hub_keeps_back_is_told_to_nobody(hub: Hub) -> None:
    await hub.receive(coded(), coded(visit="V2", given="ROWAN"))
    async with open_doors(hub) as address, signed_in(address, "hal@706.example.org") as hal:
        for task in [task for task in await hub.encompass.tasks() if task.kind is TaskKind.RELEASE]:
            back = await hal.send_form(f"/hub/attendances/{task.incident_id}/keep-back", reason="other")
            assert back.status_code == 303
        assert "Nothing waits for your decision" in (await hal.get("/hub")).text
    hub.world.clock.advance(timedelta(days=7))
    await hub.encompass.run_jobs()
    assert await hub.encompass.tasks() == []
    assert (await hub.encompass.notices())["900003"].sent_at is None


async def test_what_the_police_say_never_reaches_a_department(hub: Hub) -> None:
    """Over the real doors: the incident first, then the child attends, and the department reads all that it may."""
    world = hub.world
    await world.list_children(CASEY)
    incident = half_term(
        circumstances="Planted circumstance.", adults=[{"relation": "parent", "family_name": "Planted"}]
    )
    casey = child("k1", "Casey", family_name="Tester", birth_date="2015-03-02", nhs_number="9990000018")
    planted = {"childs_words": "Planted words.", "where": "planted place", "establishments": at_school("900001")}
    incident["children"] = [casey | planted]
    async with open_doors(hub) as address:
        async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=20) as systems:
            posted = await systems.post("/incidents", json=incident, auth=("ZF1", "zf1-credential"))
            assert posted.status_code == 202
            patient = make_patient(
                identifier=[{"system": "https://fhir.nhs.uk/Id/nhs-number", "value": "9990000018"}],
                name=[{"family": "Tester", "given": ["Casey"]}],
                birthDate="2015-03-02",
            )
            bundle = make_bundle(make_header(), make_encounter(), patient, make_organisation())
            ed = ("RZ1", "rz1-credential")
            taken = await systems.post(
                "/FHIR/R4/$process-message",
                content=encode(bundle),
                headers={"content-type": "application/fhir+json"},
                auth=ed,
            )
            assert taken.status_code == 202
            log = hub.encompass.log
            await hub.encompass.take_partition()
            for topic, consumer, batch in (
                (INCIDENTS, hub.encompass.consumer, hub.encompass.batch([b""], 0)),
                (ATTENDANCES, world.consumer, world.batch([b""])),
            ):
                if topic == ATTENDANCES:
                    await world.take_partition()
                [partition] = [each for each in await log.extents(topic) if log.records_from(each, 0)]
                records = log.records_from(partition, 0)
                await consumer.handle(msgspec.structs.replace(batch, records=records))
            assert len(await hub.encompass.notices()) == 1 and len(await world.replies()) == 1
            asked = {"TraceID": "2f1c0b5e-0000-4000-8000-000000000001", "NHSD-Session-URID": "555012345678"}
            read = [taken.text]
            for what in ("PatientFlag", "CareTeam", "AuditEvent"):
                answer = await systems.get(f"/FHIR/R4/{what}", params={"patient": "9990000018"}, headers=asked, auth=ed)
                assert answer.status_code == 200
                read.append(answer.text)
        await store_login(
            world.database, world.keyring, "nia@rz1.example.org", Role.CLINICIAN, organisation_owner("RZ1")
        )
        async with Client(address) as clinician:
            assert (await clinician.sign_in("nia@rz1.example.org")).status_code == 303
            read.append((await clinician.get("/replies")).text)
    read += [str(reply) for reply in await world.replies()]
    async with world.database.reading() as connection:
        deliveries = table(Delivery)
        rows = await connection.execute(select(deliveries).where(deliveries.c.owner == organisation_owner("RZ1")))
        for row in rows:
            read.append(outbox._open(world.keyring, row).content.decode())
    everything = "\n".join(read).lower()
    assert "child protection plan" in everything
    for fact in ("planted", "zf1", "police", "encompass", "domestic", "mill lane", "incident", "notice of"):
        assert fact not in everything, fact
    # The school's number, but not by chance among the digits of an id.
    assert not re.search(r"\b900001\b", everything)
