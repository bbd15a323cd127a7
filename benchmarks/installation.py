"""What the measurements stand on: a pair of engines, the broker installed on it with listed children, a department."""

from __future__ import annotations

import asyncio
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil
from sqlalchemy import update

from adapters.mllp import Peer
from broker import bootstrap, topics
from broker.clock import SystemClock
from broker.directory_upload import DirectoryUpload
from broker.intake import ACCEPTED, Intake
from broker.keyring import generate_key
from broker.list_upload import upload_children
from broker.senders import SNAPSHOT_NAME, Senders
from broker.settings import Settings
from broker.storage.migrations import migrate
from broker.storage.tables import ItemState, Job, table
from mock_nhs.department import HL7V2, AdtMessage, Department
from mock_nhs.people import Person
from mock_nhs.town import Town, build_town, write_csv
from schemas.directory import Sender
from tests.engines import KafkaServer, PostgresServer, free_port

SITE = "RZ1"
LISTED_SHARE = 0.05
"""How many of those who attend are on a list: more than in life, as in the measurements made before."""
KAFKA_JVM_OPTIONS = (
    *("-Xms1024m", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"),
    *("-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent"),
)
"""What Kafka's own start script uses."""
APPENDED_TOGETHER = 200


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured."""

    name: str
    listed: int
    unlisted: int
    rounds: int
    messages: int
    """Decided in one round."""
    naive_messages: int
    door_s: float
    """How long one round at the door lasts."""
    reply_rounds: int
    reply_s: float
    """How long one round of replies lasts."""
    reader_s: float
    """How long one round of a reader lasts."""
    incidents: int
    """Of a force's year."""


FULL = Scale(
    name="full",
    listed=150_000,
    unlisted=180_000,
    rounds=5,
    messages=4_000,
    naive_messages=150,
    door_s=3.0,
    reply_rounds=3,
    reply_s=20.0,
    reader_s=1.5,
    incidents=11_000,
)
QUICK = Scale(
    name="quick",
    listed=20_000,
    unlisted=40_000,
    rounds=3,
    messages=2_000,
    naive_messages=60,
    door_s=1.5,
    reply_rounds=3,
    reply_s=6.0,
    reader_s=0.5,
    incidents=1_000,
)


@dataclass(frozen=True, kw_only=True)
class Engines:
    """A log and a database."""

    name: str
    directory: Path
    kafka: str = ""
    """Bootstrap servers; empty: the embedded log."""
    database_url: str = ""
    servers: Mapping[str, int] = field(default_factory=dict)
    """Process ids of the servers, for their memory."""


@contextmanager
def embedded_engines() -> Iterator[Engines]:
    """Both engines in files of a directory of their own."""
    directory = Path(tempfile.mkdtemp(prefix="cpis-bench-"))
    try:
        yield Engines(name="embedded", directory=directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def distributed_engines() -> Iterator[Engines]:
    """Real Apache Kafka and PostgreSQL on this machine, each as its own documentation starts it."""
    directory = Path(tempfile.mkdtemp(prefix="cpis-bench-"))
    kafka, postgres = KafkaServer(heap_mib=1024, jvm_options=KAFKA_JVM_OPTIONS), PostgresServer()
    try:
        kafka.start()
        postgres.start()
        yield Engines(
            name="Kafka + PostgreSQL",
            directory=directory,
            kafka=kafka.bootstrap_servers,
            database_url=postgres.create_database("broker"),
            servers={"Apache Kafka": kafka.pid, "PostgreSQL": postgres.pid},
        )
    finally:
        postgres.close()
        kafka.close()
        shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the other side listens."""

    reply_port: int
    case_port: int


class BenchTown:
    """The town and who attends: LISTED_SHARE of them are on a list."""

    def __init__(self, scale: Scale) -> None:
        self.town: Town = build_town(
            1, on=datetime.now(UTC).date(), people=scale.listed + scale.unlisted, listed=scale.listed
        )
        listed = {listing.person.nhs_number for listing in self.town.listings if listing.is_shown(self.town.on)}
        children = [person for person in self.town.people if person.nhs_number in listed]
        others = [person for person in self.town.people if person.nhs_number not in listed]
        share = int(len(others) * LISTED_SHARE / (1 - LISTED_SHARE))
        self.listed_children: list[Person] = children
        self.attending: list[Person] = others + random.Random(1).sample(children, min(share, len(children)))
        self.credential = next(site.credential for site in self.town.sites if site.code == SITE)

    def department(self, people: Sequence[Person], *, seed: int, fhir: float = 0.0) -> Department:
        """A department; another seed is another day. ``fhir`` is the share of its visits told in Bundles."""
        return Department(site=SITE, credential=self.credential, people=people, seed=seed, fhir=fhir)


@dataclass
class Installation:
    """The broker on a pair of engines."""

    engines: Engines
    environment: dict[str, str]
    place: Place
    town: BenchTown
    parts: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """The settings every part runs with."""
        return Settings.model_validate(
            {
                name.removeprefix("CPIS_").lower(): value
                for name, value in self.environment.items()
                if name.startswith("CPIS_")
            }
        )

    def with_prefix(self, prefix: str) -> Settings:
        """The same settings with topics and groups of their own."""
        return self.settings.model_copy(update={"kafka_prefix": prefix})

    @property
    def mllp_port(self) -> int:
        """Where the broker takes messages."""
        return int(self.environment["CPIS_MLLP_PORT"])

    def start(self, *parts: str) -> None:
        """Start parts as processes, as ``serve`` does."""
        metrics = self.engines.directory / "metrics"
        metrics.mkdir(exist_ok=True)
        for part in parts:
            self.run(part, "broker", "serve", "--only", part, PROMETHEUS_MULTIPROC_DIR=str(metrics))

    def run(self, name: str, module: str, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a Python module as a process with this installation's settings."""
        with (self.engines.directory / f"{name}.log").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=self.environment | variables,
                stdout=output,
                stderr=output,
            )
        self.parts[name] = process
        return process

    async def stop(self) -> None:
        """End every process: drained if it can be, killed if not."""
        for process in self.parts.values():
            process.send_signal(signal.SIGTERM)
        for process in self.parts.values():
            try:
                await asyncio.to_thread(process.wait, 25)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.parts.clear()

    def last_words(self) -> str:
        """The end of every process's output, for when something did not happen."""
        logs = sorted(self.engines.directory.glob("*.log"))
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in logs)


@asynccontextmanager
async def open_installation(engines: Engines, town: BenchTown, place: Place) -> AsyncIterator[Installation]:
    """Migrate, import the directory and every child list, make the topics."""
    data_dir = engines.directory / "broker"
    data_dir.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CPIS_")}
    environment = kept | {
        "CPIS_ENVIRONMENT": "development",
        "CPIS_DATA_DIR": str(data_dir),
        "CPIS_DATABASE_URL": engines.database_url,
        "CPIS_KAFKA_BOOTSTRAP_SERVERS": engines.kafka,
        "CPIS_FIELD_KEYS": f"k1:{generate_key()}",
        "CPIS_INDEX_KEY": generate_key(),
        "CPIS_MLLP_PORT": str(free_port()),
        "CPIS_HTTP_PORT": str(free_port()),
        "CPIS_WEBHOOK_ALLOW_PRIVATE": "true",
        "CPIS_MLLP_REPLY_TLS": "false",
    }
    installation = Installation(engines=engines, environment=environment, place=place, town=town)
    try:
        await _load(installation)
        yield installation
    finally:
        await installation.stop()


async def _load(installation: Installation) -> None:
    settings, directory = installation.settings, installation.engines.directory / "town"
    place = installation.place
    write_csv(
        installation.town.town,
        directory,
        case_system_url=f"http://127.0.0.1:{place.case_port}",
        replies={SITE: ("127.0.0.1", place.reply_port)},
    )
    database, keyring, clock = bootstrap.open_database(settings), bootstrap.load_keyring(settings), SystemClock()
    try:
        await migrate(database)
        upload = DirectoryUpload(database, keyring, clock, demo_passwords=True, actor="bench", dry_run=False)
        await upload.load_authorities((directory / "authorities.csv").read_bytes())
        await upload.load_workers((directory / "workers.csv").read_bytes())
        await upload.load_sites((directory / "sites.csv").read_bytes(), settings.data_dir / SNAPSHOT_NAME)
        for file in sorted(directory.glob("children-*.csv")):
            code = file.stem.removeprefix("children-")
            await upload_children(database, keyring, clock, authority=code, file=file.read_bytes(), uploaded_by="bench")
        await bootstrap.prepare_topics(settings)
    finally:
        await database.close()


async def fill_log(settings: Settings, messages: Sequence[AdtMessage]) -> None:
    """Append messages as the door does: sealed, keyed, with their headers."""
    await bootstrap.prepare_topics(settings)
    keyring, log_ = bootstrap.load_keyring(settings), bootstrap.open_log(settings)
    senders = Senders(settings.data_dir / SNAPSHOT_NAME, keyring)
    intake = Intake(log_, settings.name_on_log(topics.ATTENDANCES), keyring, senders, SystemClock())
    try:
        for start in range(0, len(messages), APPENDED_TOGETHER):
            part = messages[start : start + APPENDED_TOGETHER]
            assert all(await asyncio.gather(*(_accept(intake, message) for message in part))), "one was not kept"
    finally:
        await log_.close()


async def _accept(intake: Intake, message: AdtMessage) -> bool:
    if message.content_type == HL7V2:
        answer = await intake.accept_hl7v2(message.body, Peer("127.0.0.1", 1))
        return answer is not None and b"MSA|AA|" in answer
    return (await intake.accept_fhir(message.body, Sender(code=SITE, credential_digest=b""))).status == ACCEPTED


async def close_first_look_backs(settings: Settings) -> None:
    """Take as done what the first lists left to do: nobody has attended yet, and it would compete for the machine."""
    database = bootstrap.open_database(settings)
    async with database.writing() as connection:
        done = {"state": ItemState.DONE.value, "done_at": SystemClock().now()}
        await connection.execute(update(table(Job)).values(done))
    await database.close()


def peak_memory_mib(pid: int) -> float:
    """The largest resident set of a process so far, in MiB (Linux: VmHWM)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("the process has ended")


def shared_memory_mib(pid: int) -> float:
    """What a server and its children hold now, in MiB, each shared page counted once."""
    server = psutil.Process(pid)
    return sum(process.memory_full_info().pss for process in [server, *server.children(recursive=True)]) / 2**20


def describe_machine() -> str:
    """Processor, cores, memory, system and Python."""
    model = next(
        (line.partition(":")[2].strip() for line in _read_cpuinfo() if line.startswith("model name")),
        "unknown processor",
    )
    memory_gib = psutil.virtual_memory().total / 2**30
    return (
        f"{os.cpu_count()} cores ({model}), {memory_gib:.0f} GiB, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}"
    )


def _read_cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
