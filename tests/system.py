"""The whole product as its users run it: every part a process of its own, the other side over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from broker import bootstrap
from broker.clock import SystemClock
from broker.directory_upload import DirectoryUpload
from broker.keyring import generate_key
from broker.list_upload import upload_children
from broker.senders import SNAPSHOT_NAME
from broker.settings import Settings
from broker.storage.ledger import AlertLedger, TopicLedger
from broker.storage.migrations import migrate
from mock_nhs.case_system import CaseOptions, CaseSystem
from mock_nhs.department import Department
from mock_nhs.ed_system import EdOptions, EdSystem
from mock_nhs.faults import Faults
from mock_nhs.fhir_link import FhirLinkOptions
from mock_nhs.mllp_link import LinkOptions
from mock_nhs.reply_listener import ReplyListenerOptions
from mock_nhs.town import Town, build_town, read_secret, write_csv
from tests import ledger
from tests.engines import free_port

ALL_PARTS = ("intake", "attendances", "dispatch", "jobs", "web")
WITHOUT_PAGES = ("intake", "attendances", "dispatch", "jobs")
SITE = "RZ1"
START_S = 40.0


@dataclass
class System:
    """One installation of the broker with the department and the case system it serves."""

    directory: Path
    environment: dict[str, str]
    town: Town
    ed: EdSystem
    department: Department
    case_system: CaseSystem
    faults: Faults
    database_url: str
    log_address: str
    topic: str
    mllp_port: int
    http_port: int
    parts: dict[str, list[subprocess.Popen[bytes]]] = field(default_factory=dict)

    @cached_property
    def settings(self) -> Settings:
        """The settings every part runs with."""
        values = {
            name.removeprefix("CPIS_").lower(): value
            for name, value in self.environment.items()
            if name.startswith("CPIS_")
        }
        return Settings.model_validate(values)

    def start(self, *parts: str, through: tuple[str, ...] = ("-m", "broker"), **variables: str) -> None:
        """Start parts; ``through`` replaces ``-m broker``, so that a test can bend what runs in the process."""
        for part in parts:
            running = self.parts.setdefault(part, [])
            output = (self.directory / f"{part}-{len(running)}.log").open("wb")
            with output:
                running.append(
                    subprocess.Popen(
                        [sys.executable, *through, "serve", "--only", part],
                        env=self.environment | variables,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                    )
                )

    def kill(self, part: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to every process of the part and, if it ends them, wait for that."""
        for process in self.parts.get(part, ()):
            if process.poll() is None:
                process.send_signal(number)
                if number in (signal.SIGKILL, signal.SIGTERM):
                    process.wait(60)

    def running(self, part: str) -> int:
        """How many processes of the part run."""
        return sum(process.poll() is None for process in self.parts.get(part, ()))

    async def stop(self) -> None:
        """End every part: drained if it can be, killed if not."""
        every = [process for processes in self.parts.values() for process in processes if process.poll() is None]
        for process in every:
            process.send_signal(signal.SIGTERM)
        for process in every:
            try:
                await asyncio.to_thread(process.wait, 25)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    async def until_listening(self) -> None:
        """Wait until the MLLP door takes connections."""
        await until(lambda: _listens(self.mllp_port), limit_s=START_S, what="the MLLP door")

    async def until_pages(self) -> None:
        """Wait until the pages can be reached."""
        await until(lambda: _listens(self.http_port), limit_s=START_S, what="the pages")

    async def send_day(self, messages: int, *, timeout_s: float = 60.0) -> None:
        """Let the department send so many messages and wait until each is answered."""
        for _ in range(messages):
            await self.ed.offer(self.department.next_message())
        assert await self.ed.settle(timeout_s=timeout_s), "not every message was answered"

    async def count(self) -> tuple[TopicLedger, AlertLedger]:
        """The product's own ledger."""
        settings = self.settings
        database = bootstrap.open_database(settings)
        try:
            return await bootstrap.count_ledger(settings, database)
        finally:
            await database.close()

    def sources(self, *, extra_appends: int = 0) -> ledger.Sources:
        """Where the independent ledger counts."""
        return ledger.Sources(
            database_url=self.database_url,
            log=self.log_address,
            topic=self.topic,
            department=self.directory / "department.jsonl",
            case_system=self.directory / "case-system.jsonl",
            extra_appends=extra_appends,
        )

    async def until_settled(self, *, limit_s: float = 60.0, extra_appends: int = 0) -> ledger.Books:
        """Wait until the independent ledger finds nothing wrong and nothing waiting; return its books."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                books = await ledger.reckon(self.sources(extra_appends=extra_appends))
            except OSError as error:
                books = ledger.Books(problems=[type(error).__name__])
            if not books.problems:
                return books
            if time.monotonic() > deadline:
                raise AssertionError(f"{books}\n{self.last_words()}")
            await asyncio.sleep(0.25)

    def last_words(self) -> str:
        """The end of every part's log."""
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}"
            for path in sorted(self.directory.glob("*.log"))
        )

    def log_events(self, part: str) -> list[dict[str, object]]:
        """Everything the processes of a part logged."""
        events = []
        for path in sorted(self.directory.glob(f"{part}-*.log")):
            for line in path.read_text(errors="replace").splitlines():
                if line.startswith("{"):
                    events.append(json.loads(line))
        return events


@asynccontextmanager
async def open_system(
    directory: Path,
    *,
    database_url: str = "",
    kafka: str = "",
    seed: int = 1,
    connections: int = 2,
    fhir: float = 0.0,
    **variables: str,
) -> AsyncIterator[System]:
    """Set up an installation, its town and the other side; the parts are the test's to start.

    ``fhir`` is the share of the department's visits that go by FHIR, for which ``web`` must run.
    """
    data_dir = directory / "broker"
    data_dir.mkdir(parents=True, exist_ok=True)
    prefix = f"t{uuid.uuid4().hex[:10]}." if kafka else ""
    mllp_port, http_port = free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CPIS_")} | {
        "CPIS_ENVIRONMENT": "development",
        "CPIS_DATA_DIR": str(data_dir),
        "CPIS_DATABASE_URL": database_url or f"sqlite+aiosqlite:///{data_dir / 'broker.sqlite'}",
        "CPIS_KAFKA_BOOTSTRAP_SERVERS": kafka,
        "CPIS_KAFKA_PREFIX": prefix,
        "CPIS_KAFKA_SESSION_TIMEOUT_S": "3",
        "CPIS_FIELD_KEYS": f"k1:{generate_key()}",
        "CPIS_INDEX_KEY": generate_key(),
        "CPIS_MLLP_PORT": str(mllp_port),
        "CPIS_HTTP_PORT": str(http_port),
        "CPIS_WEBHOOK_ALLOW_PRIVATE": "true",
        "CPIS_MLLP_REPLY_TLS": "false",
        "CPIS_DELIVERY_LEASE_S": "6",
        "CPIS_DELIVERY_TIMEOUT_S": "2",
        **variables,
    }
    faults = Faults(seed)
    town = build_town(seed, on=datetime.now(UTC).date())
    case_system = CaseSystem(
        CaseOptions(secrets={authority.code: read_secret(authority.webhook_secret) for authority in town.authorities}),
        directory / "case-system.jsonl",
        faults,
    )
    site = next(site for site in town.sites if site.code == SITE)
    ed = EdSystem(
        EdOptions(
            link=LinkOptions(host="127.0.0.1", port=mllp_port),
            replies=ReplyListenerOptions(site=SITE),
            connections=connections,
            fhir=FhirLinkOptions(base=f"http://127.0.0.1:{http_port}", user=SITE, password=site.credential),
        ),
        directory / "department.jsonl",
        faults,
    )
    department = Department(
        site=SITE, credential=site.credential, people=town.people, seed=seed, faults=faults, fhir=fhir
    )
    await case_system.start()
    await ed.start()
    system = System(
        directory=directory,
        environment=environment,
        town=town,
        ed=ed,
        department=department,
        case_system=case_system,
        faults=faults,
        database_url=environment["CPIS_DATABASE_URL"],
        log_address=kafka or str(data_dir / "log.sqlite"),
        topic=f"{prefix}attendances",
        mllp_port=mllp_port,
        http_port=http_port,
    )
    try:
        write_csv(
            town, directory / "town", case_system_url=case_system.url, replies={SITE: ("127.0.0.1", ed.reply_port)}
        )
        await _load(system, directory / "town")
        yield system
    finally:
        await system.stop()
        await ed.stop()
        await case_system.stop()


async def _load(system: System, town: Path) -> None:
    settings = system.settings
    _begin_migrated(system.database_url)
    database, keyring, clock = bootstrap.open_database(settings), bootstrap.load_keyring(settings), SystemClock()
    try:
        await migrate(database)
        _keep_migrated(system.database_url)
        upload = DirectoryUpload(database, keyring, clock, demo_passwords=True, actor="test", dry_run=False)
        reports = [
            await upload.load_authorities((town / "authorities.csv").read_bytes()),
            await upload.load_workers((town / "workers.csv").read_bytes()),
            await upload.load_sites((town / "sites.csv").read_bytes(), settings.data_dir / SNAPSHOT_NAME),
            await upload.load_clinicians((town / "clinicians.csv").read_bytes()),
        ]
        assert not [problem for report in reports for problem in report.refused]
        for file in sorted(town.glob("children-*.csv")):
            authority = file.stem.removeprefix("children-")
            await upload_children(
                database, keyring, clock, authority=authority, file=file.read_bytes(), uploaded_by="test"
            )
        await bootstrap.prepare_topics(settings)
    finally:
        await database.close()


_migrated: list[bytes] = []
"""An empty SQLite database of the newest schema: later installations begin with a copy, in a tenth of the time."""


def _begin_migrated(url: str) -> None:
    if url.startswith("sqlite") and _migrated:
        Path(url.partition(":///")[2]).write_bytes(_migrated[0])


def _keep_migrated(url: str) -> None:
    if not url.startswith("sqlite") or _migrated:
        return
    with closing(sqlite3.connect(url.partition(":///")[2])) as source, closing(sqlite3.connect(":memory:")) as copy:
        source.backup(copy)
        _migrated.append(copy.serialize())


async def until(
    condition: Callable[[], bool | Awaitable[bool]], *, limit_s: float, what: str, every_s: float = 0.05
) -> float:
    """Wait until the condition holds; returns after how many seconds it did."""
    began = time.monotonic()
    while True:
        outcome = condition()
        if await outcome if isinstance(outcome, Awaitable) else outcome:
            return time.monotonic() - began
        if time.monotonic() - began > limit_s:
            raise AssertionError(f"{what} did not come within {limit_s} s")
        await asyncio.sleep(every_s)


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
