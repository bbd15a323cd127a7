"""A small real world for tests: a migrated database, a directory of two authorities and one department, lists."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path

from sqlalchemy import select, text

from broker.announcement import Rules
from broker.consumers.attendance import AttendanceConsumer
from broker.consumers.loop import Batch
from broker.directory_upload import DirectoryUpload
from broker.jobs.runner import JobOptions, JobRunner
from broker.keyring import Keyring
from broker.list_upload import upload_children
from broker.senders import write_snapshot
from broker.storage import alerts, handled, outbox, replies, reviews
from broker.storage.alerts import StoredAlert
from broker.storage.database import Database
from broker.storage.directory import load_senders
from broker.storage.handled import Place
from broker.storage.migrations import migrate
from broker.storage.reviews import StoredReview
from broker.storage.revision import is_current
from broker.topics import ATTENDANCES as TOPIC
from broker.topics import ATTENDANCES_GROUP as GROUP
from schemas.alert import ClinicianReply
from schemas.identifiers import authority_owner, organisation_owner
from schemas.record import LogRecord, Partition, PositionOutcome
from schemas.upload import UploadReport
from tests.fakes import ManualClock, MemoryLog

FIELD_KEYS = {"t1": bytes(range(32))}
INDEX_KEY = bytes(range(32, 64))
LOG_ID = "log-1"

AUTHORITIES = """code,name,office_telephone,emergency_telephone,webhook_url
706,Northfold Borough Council,01632 960101,01632 960102,http://127.0.0.1:1/alerts/706
707,Eastmere County Council,01632 960201,01632 960202,
"""
WORKERS = """code,authority,name,team,login,role,password
W1,706,Ash Worker,North,ash@706.example.org,social_worker,demo-password
D1,706,Dee Duty,Duty,dee@706.example.org,duty_worker,demo-password
W7,707,Kit Worker,East,kit@707.example.org,social_worker,demo-password
"""
SITES = """code,name,telephone,authorities,reply_host,reply_port,replies_for_adults,peers,credential
RZ1,Fenwick General Hospital,01632 960301,706 707,127.0.0.1,2,no,,rz1-credential
RZ2,Ottery Infirmary,01632 960302,706,,,yes,,rz2-credential
"""
CHILDREN_COLUMNS = (
    "local_id,nhs_number,family_name,given_name,birth_date,postcode,plan_type,start_date,end_date,worker,team,"
    "delete_date,household"
)
CASEY = "L1,9990000018,Tester,Casey,2015-03-02,ZZ99 1AA,child_protection_plan,2026-01-10,,W1,North"


@dataclass
class World:
    """Everything a test of the heart touches."""

    database: Database
    keyring: Keyring
    clock: ManualClock
    rules: Rules
    log: MemoryLog
    """Where the messages of a batch are put."""
    consumer: AttendanceConsumer
    directory: Path
    offset: int = 0

    async def list_children(self, *rows: str, authority: str = "706") -> UploadReport:
        """Upload an authority's list."""
        file = "\n".join((CHILDREN_COLUMNS, *rows)) + "\n"
        return await upload_children(
            self.database,
            self.keyring,
            self.clock,
            authority=authority,
            file=file.encode(),
            uploaded_by="list.officer@706.example.org",
        )

    async def receive(self, *messages: bytes, headers: Mapping[str, bytes] | None = None) -> list[PositionOutcome]:
        """Handle messages as one batch of the log; returns what became of each."""
        batch = self.batch(messages, headers)
        if batch.expected == 0:
            await self.take_partition()
        await self.consumer.handle(batch)
        self.offset = batch.next_offset
        return await self.outcomes(batch.expected)

    async def take_partition(self) -> None:
        """Stand at the beginning of the log, as the consume loop would."""
        async with self.database.writing() as connection:
            place = Place(log_id=LOG_ID, first_offset=0, next_offset=0, stopped_cleanly=True)
            await handled.take_partition(
                connection, GROUP, Partition(TOPIC, 0), place, known=None, now=self.clock.now()
            )

    def batch(self, messages: Sequence[bytes], headers: Mapping[str, bytes] | None = None) -> Batch:
        """The messages as the next records of the log."""
        partition = Partition(TOPIC, 0)
        records = [
            LogRecord(
                partition=partition,
                offset=self.offset + number,
                key=None,
                value=message,
                headers=headers or {},
                appended_at=self.clock.now(),
            )
            for number, message in enumerate(messages)
        ]
        return Batch(group=GROUP, partition=partition, log_id=LOG_ID, records=records, expected=self.offset)

    async def outcomes(self, since: int = 0) -> list[PositionOutcome]:
        """What became of each position."""
        columns = handled._positions.c
        async with self.database.reading() as connection:
            rows = await connection.execute(
                select(columns.outcome).where(columns.position >= since).order_by(columns.position)
            )
            return [PositionOutcome(row.outcome) for row in rows]

    async def alerts(self, authority: str = "706", *, rows_max: int = 1000) -> list[StoredAlert]:
        """An authority's alerts."""
        async with self.database.reading() as connection:
            return await alerts.list_alerts(
                connection, self.keyring, authority_owner(authority), worker=None, rows_max=rows_max
            )

    async def reviews(self, authority: str = "706") -> list[StoredReview]:
        """An authority's open reviews."""
        async with self.database.reading() as connection:
            return await reviews.list_open_reviews(connection, self.keyring, authority_owner(authority), rows_max=1000)

    async def replies(self, site: str = "RZ1") -> list[ClinicianReply]:
        """A department's replies, newest first."""
        since = datetime(2000, 1, 1, tzinfo=UTC)
        async with self.database.reading() as connection:
            found = await replies.list_replies(
                connection, self.keyring, organisation_owner(site), since=since, rows_max=1000
            )
            return [reply for _, reply in found]

    async def authorities(self, *, alerts_for_ended_plans: str) -> None:
        """Load the authorities anew with another wish."""
        upload = DirectoryUpload(
            self.database, self.keyring, self.clock, demo_passwords=True, actor="test", dry_run=False
        )
        header, *rows = AUTHORITIES.splitlines()
        lines = [f"{header},alerts_for_ended_plans", *(f"{row},{alerts_for_ended_plans}" for row in rows)]
        report = await upload.load_authorities("\n".join(lines).encode())
        assert not report.refused
        self.clock.advance(timedelta(seconds=2))  # the consumer keeps its directory for a moment

    async def run_jobs(self) -> None:
        """Do what list changes left to do, and hand over what is overdue."""
        while await JobRunner(self.database, self.keyring, self.clock, self.rules, JobOptions()).run_once():
            pass

    async def delivery_count(self) -> int:
        """Everything that was put in the outbox."""
        async with self.database.reading() as connection:
            return sum((await outbox.count_states(connection)).values())


@asynccontextmanager
async def open_world(
    url: str, directory: Path, *, topics_enabled: bool = False, inline: bool = False
) -> AsyncIterator[World]:
    """A world on this database. ``inline`` is quicker on SQLite, for a test that does one thing after the other."""
    copy_furnished(url)
    database = Database(url, inline=inline)
    keyring = Keyring(FIELD_KEYS, INDEX_KEY)
    clock = ManualClock(datetime(2026, 2, 14, 3, 12, tzinfo=UTC))
    rules = Rules(
        escalation=timedelta(minutes=15),
        look_back=timedelta(hours=72),
        list_stale=timedelta(hours=72),
        topics_enabled=topics_enabled,
    )
    try:
        await furnish(database, keyring, clock, directory)
        log = MemoryLog()
        consumer = AttendanceConsumer(database, log, keyring, clock, rules)
        yield World(database, keyring, clock, rules, log, consumer, directory)
    finally:
        await database.close()


async def furnish(database: Database, keyring: Keyring, clock: ManualClock, directory: Path) -> None:
    """Migrate the database and fill the directory, unless that was done before; write the senders' snapshot."""
    if await is_current(database):
        async with database.reading() as connection:
            write_snapshot(directory / "senders.json", await load_senders(connection))
        return
    await migrate(database)
    upload = DirectoryUpload(database, keyring, clock, demo_passwords=True, actor="test", dry_run=False)
    for report in (
        await upload.load_authorities(AUTHORITIES.encode()),
        await upload.load_workers(WORKERS.encode()),
        await upload.load_sites(SITES.encode(), directory / "senders.json"),
    ):
        assert not report.refused
    if database.is_sqlite:
        _furnished.append(_read_whole(_file_of(database.url)))


_furnished: list[bytes] = []
"""A furnished SQLite database: copied by all worlds after the first, which takes a tenth of the time."""


def copy_furnished(url: str) -> None:
    """Begin a SQLite database that does not exist yet as a copy of a furnished one."""
    if url.startswith("sqlite") and _furnished and not _file_of(url).exists():
        _file_of(url).write_bytes(_furnished[0])


def _file_of(url: str) -> Path:
    return Path(url.partition(":///")[2])


def _read_whole(path: Path) -> bytes:
    """The database with what still stands in its write-ahead log."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(":memory:")) as copy:
        source.backup(copy)
        return copy.serialize()


_control_ids = count(1)


def hl7(
    event: str = "A04",
    *,
    nhs_number: str = "9990000018",
    family: str = "TESTER",
    given: str = "CASEY",
    birth_date: date | None = date(2015, 3, 2),
    postcode: str = "ZZ99 1AA",
    visit: str = "V1",
    patient: str = "K12345",
    sender: str = "RZ1",
    credential: str = "rz1-credential",
    control_id: str = "",
    at: datetime = datetime(2026, 2, 14, 3, 7),  # noqa: DTZ001 - HL7 v2 writes local time
    status: str = "01",
    complaint: str = "Fall from height",
    mother: str = "",
) -> bytes:
    """One ADT message in the ITK shape. An empty value leaves the field empty."""
    stamp = f"{at:%Y%m%d%H%M%S}"
    identifiers = f"{nhs_number}^^^NHS^NH~" if nhs_number else ""
    born = f"{birth_date:%Y%m%d}" if birth_date else ""
    pid = ["PID", "1", "", f"{identifiers}{patient}^^^{sender}^MR", "", f"{family}^{given}^^^^^L", "", born, "2"]
    pid += ["", "", f"1 SAMPLE ST^^LEEDS^^{postcode}^GBR^H", *[""] * 9, mother and f"{mother}^^^NHS^NH"]
    pid += [*[""] * 10, status]
    segments = [
        f"MSH|^~\\&|EDIS|{sender}|BROKER|CPIS|{stamp}|{credential}|ADT^{event}^ADT_A01|"
        f"{control_id or f'C{next(_control_ids)}'}|P|2.4|||AL|NE|GBR|UNICODE|EN||iTKv1.0",
        f"EVN||{stamp}",
        "|".join(pid),
    ]
    if visit:
        pv1 = ["PV1", "1", "E", f"ED^MAJ3^1^{sender}01", *[""] * 15, f"{visit}^^^VISITID", *[""] * 24, stamp]
        segments += ["|".join(pv1), f"PV2|||^{complaint}" + "|" * 35 + "A"]
    return "\r".join(segments).encode() + b"\r"


async def count_waiting_for_locks(world: World) -> int:
    """How many transactions wait for another's lock. PostgreSQL only."""
    async with world.database.reading() as connection:
        waiting = text(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return int((await connection.execute(waiting)).scalar_one())
