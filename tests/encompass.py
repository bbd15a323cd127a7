"""A force, two schools and their people, in a small world; and what the force says on a Saturday of half-term."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import select

from broker.consumers.encompass import EncompassConsumer
from broker.consumers.loop import Batch
from broker.directory_upload import DirectoryUpload, ImportReport
from broker.incident_intake import IncidentIntake
from broker.jobs.notices import tell_schools
from broker.notices import NoticeRules
from broker.nudges import NudgeRules
from broker.storage import handled, incidents
from broker.storage.handled import Place
from broker.storage.incidents import StoredNotice, StoredTask
from broker.storage.tables import EncompassTask, HandledPosition, NoticeRow, table
from broker.topics import ENCOMPASS_GROUP, INCIDENTS
from schemas.record import LogRecord, Partition, PositionOutcome
from tests.fakes import MemoryLog
from tests.world import LOG_ID, World, open_world

STATEMENT = "For your information. Do not speak to the parents about this notice."
WITHDRAWN = "An earlier notice does not stand any more. Take no account of it."
FORCES = f"""code,name,statement,withdrawn_statement,release,profile,credential
ZF1,Sampleshire Police,"{STATEMENT}","{WITHDRAWN}",automatic,standard,zf1-credential
ZF2,Coldshire Police,"{STATEMENT}","{WITHDRAWN}",coordinator,standard,zf2-credential
"""
SCHOOLS = """urn,name,kind,authority,starts_at,office_telephone
900001,Mill Lane Primary School,school,706,08:50,01632 960401
900002,Eastmere College,fe_college,707,,01632 960402
900003,Hill Top School,school,706,,01632 960403
"""
CONTACTS = """urn,contact_id,role,name,mailbox,confirmed_date,trained_date
900001,A1,lead,Robin Sister,safeguarding@mill-lane.example.org,2026-01-10,2025-09-01
900001,A2,deputy,Alex Porter,deputy@mill-lane.example.org,2026-01-10,2025-09-01
900002,B1,lead,Bo Turner,safeguarding@eastmere.example.org,2026-01-10,2025-09-01
900003,C1,lead,Cam Miller,safeguarding@hill-top.example.org,2020-01-10,2019-09-01
"""
TERM_DATES = """authority,urn,kind,first_date,last_date
706,,term,2026-01-05,2026-02-13
706,,term,2026-02-23,2026-03-27
707,,term,2026-01-05,2026-02-20
707,,term,2026-03-02,2026-03-27
"""
PEOPLE = """login,name,role,at,contact_id,password
robin@900001.example.org,Robin Sister,safeguarding_lead,900001,A1,demo-password
alex@900001.example.org,Alex Porter,safeguarding_lead,900001,A2,demo-password
bo@900002.example.org,Bo Turner,safeguarding_lead,900002,B1,demo-password
cora@zf1.example.org,Cora Coordinator,encompass_coordinator,ZF1,,demo-password
"""
SATURDAY = datetime(2026, 2, 14, 22, 40, tzinfo=UTC)


def child(child_id: str, given_name: str, **more: Any) -> dict[str, Any]:
    """One child of the incident."""
    said = {"child_id": child_id, "family_name": "Sample", "given_name": given_name, "birth_date": "2016-04-05"}
    return {**said, "present": True, "where": "upstairs", **more}


def at_school(urn: str | None, **more: Any) -> list[dict[str, Any]]:
    """A child's establishment as the officer wrote it."""
    return [{"source": "officer", **({"urn": urn} if urn else {}), **more}]


def half_term(**more: Any) -> dict[str, Any]:
    """Scenario K: two children at two schools, one out of county, a third home-educated; the lead is the sister."""
    children = [
        child("k1", "Jordan", establishments=at_school("900001"), childs_words="I hid."),
        child("k2", "Sidney", birth_date="2009-05-06", establishments=at_school("900002"), present=False),
        child("k3", "Morgan", home_educated=True, authority="706"),
    ]
    return {
        "message": "incident",
        "incident_id": "ZF1/2026/0001",
        "force": "ZF1",
        "occurred_at": (SATURDAY - timedelta(minutes=30)).isoformat(),
        "reported_at": SATURDAY.isoformat(),
        "location": "12 Mill Lane, Sampleton",
        "children": children,
        "excluded_recipients": [{"name": "Robin Sister", "reason": "sister of the suspect", "authoriser": "DS 1"}],
        **more,
    }


@dataclass
class Encompass:
    """A small world with Operation Encompass."""

    world: World
    log: MemoryLog
    consumer: EncompassConsumer
    intake: IncidentIntake
    rules: NoticeRules
    offset: int = 0

    async def upload(self, kind: str, file: str) -> ImportReport:
        """Import a file of the directory."""
        upload = DirectoryUpload(
            self.world.database,
            self.world.keyring,
            self.world.clock,
            demo_passwords=True,
            actor="test",
            dry_run=False,
        )
        load = getattr(upload, f"load_{kind}")
        report: ImportReport = await (
            load(file.encode(), self.world.directory / "forces.json") if kind == "forces" else load(file.encode())
        )
        return report

    async def receive(self, *messages: dict[str, Any] | bytes) -> list[PositionOutcome]:
        """Handle raw messages as one batch of the log, as a foreign producer would put them there."""
        bodies = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in messages]
        return await self.handle(self.batch(bodies, self.offset).records)

    async def handle(self, records: Sequence[LogRecord]) -> list[PositionOutcome]:
        """Handle records as the next ones of the log."""
        renumbered = [
            msgspec.structs.replace(record, offset=self.offset + number, partition=Partition(INCIDENTS, 0))
            for number, record in enumerate(records)
        ]
        batch = msgspec.structs.replace(self.batch([], self.offset), records=renumbered)
        if self.offset == 0:
            await self.take_partition()
        await self.consumer.handle(batch)
        self.offset = batch.next_offset
        return await self.outcomes(batch.expected)

    async def outcomes(self, first: int) -> list[PositionOutcome]:
        """What became of every record since an offset."""
        positions = table(HandledPosition).c
        async with self.world.database.reading() as connection:
            rows = await connection.execute(
                select(positions.outcome)
                .where(positions.topic == INCIDENTS, positions.position >= first)
                .order_by(positions.position)
            )
            return [PositionOutcome(row.outcome) for row in rows]

    def batch(self, bodies: list[bytes], expected: int) -> Batch:
        """Records of the log, from an offset."""
        partition = Partition(INCIDENTS, 0)
        records = [
            LogRecord(
                partition=partition,
                offset=expected + number,
                key=None,
                value=body,
                headers={},
                appended_at=self.world.clock.now(),
            )
            for number, body in enumerate(bodies)
        ]
        return Batch(group=ENCOMPASS_GROUP, partition=partition, log_id=LOG_ID, records=records, expected=expected)

    async def take_partition(self) -> None:
        """Stand at the beginning of the log, as the consume loop would."""
        async with self.world.database.writing() as connection:
            place = Place(log_id=LOG_ID, first_offset=0, next_offset=0, stopped_cleanly=True)
            await handled.take_partition(
                connection, ENCOMPASS_GROUP, Partition(INCIDENTS, 0), place, known=None, now=self.world.clock.now()
            )

    async def run_jobs(self) -> int:
        """Do what is due."""
        world = self.world
        return await tell_schools(world.database, world.keyring, self.rules, world.clock.now(), incidents_max=50)

    async def notices_of(self, *urns: str) -> list[StoredNotice]:
        """The notices to these establishments; all without any."""
        async with self.world.database.reading() as connection:
            rows = await connection.execute(select(table(NoticeRow)))
            found = [incidents.read_notice_row(self.world.keyring, row) for row in rows]
        return [notice for notice in found if not urns or notice.urn in urns]

    async def notices(self) -> dict[str, StoredNotice]:
        """Every notice by its establishment."""
        found = await self.notices_of()
        assert len({notice.urn for notice in found}) == len(found)
        return {str(notice.urn): notice for notice in found}

    async def tasks(self, *, everything: bool = False) -> list[StoredTask]:
        """What people have to do."""
        async with self.world.database.reading() as connection:
            rows = await connection.execute(select(table(EncompassTask)))
            found = [incidents.read_task_row(self.world.keyring, row) for row in rows]
        return sorted(
            (task for task in found if everything or task.state.value == "open"), key=lambda task: task.kind.value
        )


@asynccontextmanager
async def open_encompass(
    url: str,
    directory: Path,
    *,
    topics_enabled: bool = False,
    emails_enabled: bool = False,
    texts_enabled: bool = False,
) -> AsyncIterator[Encompass]:
    """A small world with a force, schools and people."""
    async with open_world(url, directory) as world:
        world.clock.move_to(SATURDAY + timedelta(minutes=5))
        rules = NoticeRules(
            nudges=NudgeRules(
                page="http://127.0.0.1:8000/",
                topics_enabled=topics_enabled,
                emails_enabled=emails_enabled,
                texts_enabled=texts_enabled,
            )
        )
        consumer = EncompassConsumer(
            world.database, world.keyring, world.clock, rules, quarantined=timedelta(minutes=15)
        )
        log = MemoryLog()
        intake = IncidentIntake(log, INCIDENTS, world.keyring, world.clock)
        opened = Encompass(world, log, consumer, intake, rules)
        for kind, file in (
            ("forces", FORCES),
            ("schools", SCHOOLS),
            ("safeguarding_contacts", CONTACTS),
            ("term_dates", TERM_DATES),
            ("encompass_people", PEOPLE),
        ):
            report = await opened.upload(kind, file)
            assert not report.refused, (kind, report.refused)
        yield opened
