"""The demonstration: a town of invented people, one emergency department, its authorities, and the broker between.

Everything runs as it would outside: the broker as its own processes, the other side as programs that speak to it over
real sockets. Nothing is played back. ``broker.story`` is what happens; here it is set up, and reckoned up at the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import httpx
import msgspec
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from broker import bootstrap
from broker.clock import SystemClock
from broker.directory_upload import DirectoryUpload, make_operator
from broker.list_upload import upload_children
from broker.senders import FORCES_SNAPSHOT_NAME, SNAPSHOT_NAME
from broker.settings import Environment, Settings
from broker.storage.ledger import AlertLedger, TopicLedger
from broker.storage.migrations import migrate
from broker.story import DemoFailed, Evening, find_login, play_evening, read_csv, read_journal
from broker.weekend import last_bell, play_weekend

PAUSE_S: Final = 3.0
_START_S: Final = 45.0
_SETTLE_S: Final = 60.0
SITE: Final = "RZ1"
OPERATOR: Final = "operator@broker.example.org"
FHIR_SHARE: Final = 0.3
_SHOWN_ROLES: Final = (
    ("social_worker", "a social worker"),
    ("duty_worker", "the duty desk"),
    ("list_officer", "who keeps the child list"),
)


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """Where one demonstration runs."""

    directory: Path
    http_port: int
    mllp_port: int
    reply_port: int
    case_port: int
    seed: int
    bell_at: datetime
    engines: Mapping[str, str]
    """Addresses of ``kafka`` and of the database; empty: the embedded ones."""

    @property
    def url(self) -> str:
        """Where the pages are."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def settings(self) -> Settings:
        """How the broker runs in the demonstration."""
        return Settings(
            environment=Environment.DEVELOPMENT,
            data_dir=self.directory / "broker",
            http_port=self.http_port,
            mllp_port=self.mllp_port,
            public_url=self.url,
            kafka_bootstrap_servers=self.engines.get("kafka", ""),
            database_url=self.engines.get("database_url", ""),
            kafka_prefix=f"demo-{os.getpid()}." if self.engines else "",
            webhook_allow_private=True,
            mllp_reply_tls=False,
            delivery_lease_s=6,
            delivery_timeout_s=2,
        )

    @property
    def environment(self) -> dict[str, str]:
        """The same for the broker's processes."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CPIS_")}
        told = self.settings.model_dump(exclude_unset=True)
        return kept | {f"CPIS_{name.upper()}": str(value) for name, value in told.items()}


def play(*, once: bool, kafka: bool, seed: int, console: Console) -> int:
    """Play the evening; returns 0 only if nothing was lost and the ledger balances."""
    try:
        with ExitStack() as stack:
            engines = _start_engines(stack, console) if kafka else {}
            stage = set_stage(once=once, seed=seed, engines=engines)
            console.print(f"[bold]An evening in a town that does not exist.[/bold] All of it lies in {stage.directory}")
            _prepare(stage, console)
            _start_broker(stage, stack, console)
            _start_authorities(stage, stack, console)
            _play_department(stage, stack, console, pause_s=0.0 if once else PAUSE_S)
            code = _reckon(stage, console)
            if not once:
                _leave_open(stage, console)
            return code
    except DemoFailed as problem:
        console.print(f"[bold]The demonstration failed:[/bold] {problem}")
        return 1
    except KeyboardInterrupt:
        console.print("Ended.")
        return 130


def _start_engines(stack: ExitStack, console: Console) -> Mapping[str, str]:
    """The servers that the settings name; without them, a Kafka and a PostgreSQL of the demonstration's own."""
    named = Settings()
    if named.kafka_bootstrap_servers and named.database_url:
        return {"kafka": named.kafka_bootstrap_servers, "database_url": named.database_url}
    if find_spec("tests") is None:
        raise DemoFailed("set CPIS_KAFKA_BOOTSTRAP_SERVERS and CPIS_DATABASE_URL, or run make demo ARGS=--kafka")
    with _working(console, "starting Apache Kafka and PostgreSQL"):
        program = subprocess.Popen(
            [sys.executable, "-m", "tests.engines", "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        stack.callback(_end_engines, program)
        assert program.stdout is not None
        line = program.stdout.readline()
    if not line:
        raise DemoFailed("Apache Kafka or PostgreSQL did not start: make engines installs them")
    found: dict[str, str] = json.loads(line)
    return found


def _end_engines(program: subprocess.Popen[bytes]) -> None:
    assert program.stdin is not None
    program.stdin.close()
    program.wait(60)


def set_stage(*, once: bool, seed: int, engines: Mapping[str, str]) -> Stage:
    """An empty directory, and ports: those of the settings, or free ones for an evening that leaves nothing open."""
    directory = Path("var") / "demo"
    shutil.rmtree(directory, ignore_errors=True)
    (directory / "broker").mkdir(parents=True)
    named = Settings()
    wanted = (0, 0) if once else (named.http_port, named.mllp_port)
    ports = [_free_port(port) for port in (*wanted, 0, 0)]
    return Stage(
        directory=directory.absolute(),
        http_port=ports[0],
        mllp_port=ports[1],
        reply_port=ports[2],
        case_port=ports[3],
        seed=seed,
        bell_at=last_bell(SystemClock().now()),
        engines=engines,
    )


def _free_port(wanted: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise SystemExit(
                f"port {wanted} is taken: end what listens there, or name others by CPIS_HTTP_PORT and CPIS_MLLP_PORT"
            ) from error
        return int(probe.getsockname()[1])


def _prepare(stage: Stage, console: Console) -> None:
    """Invent the town, bring its lists and directory into the broker."""
    town = stage.directory / "town"
    with _working(console, "inventing a town and loading its lists"):
        _call(
            stage,
            ("-m", "mock_nhs.town", "--seed", str(stage.seed), "--out", str(town)),
            ("--case-system-url", f"http://127.0.0.1:{stage.case_port}"),
            ("--reply", f"{SITE}=127.0.0.1:{stage.reply_port}"),
        )
        bell = ("--bell", stage.bell_at.isoformat())
        _call(stage, ("-m", "mock_nhs.schools", "write", "--dir", str(town)), bell)
        asyncio.run(_load_town(stage.settings, town))


async def _load_town(settings: Settings, town: Path) -> None:
    database, keyring, clock = bootstrap.open_database(settings), bootstrap.load_keyring(settings), SystemClock()
    try:
        await migrate(database)
        upload = DirectoryUpload(database, keyring, clock, demo_passwords=True, actor="demo", dry_run=False)
        await upload.load_authorities((town / "authorities.csv").read_bytes())
        await upload.load_workers((town / "workers.csv").read_bytes())
        await upload.load_sites((town / "sites.csv").read_bytes(), settings.data_dir / SNAPSHOT_NAME)
        await upload.load_clinicians((town / "clinicians.csv").read_bytes())
        password = await make_operator(database, keyring, clock, login=OPERATOR, name="Olive Operator", actor="demo")
        (town / "operator.csv").write_text(f"login,password\n{OPERATOR},{password}\n")
        reports = [
            await upload.load_forces((town / "forces.csv").read_bytes(), settings.data_dir / FORCES_SNAPSHOT_NAME),
            await upload.load_schools((town / "schools.csv").read_bytes()),
            await upload.load_safeguarding_contacts((town / "safeguarding-contacts.csv").read_bytes()),
            await upload.load_term_dates((town / "term-dates.csv").read_bytes()),
            await upload.load_encompass_people((town / "encompass-people.csv").read_bytes()),
        ]
        if any(report.refused for report in reports):
            raise DemoFailed("a file of the schools was refused")
        for file in sorted(town.glob("children-*.csv")):
            await upload_children(
                database,
                keyring,
                clock,
                authority=file.stem.removeprefix("children-"),
                file=file.read_bytes(),
                uploaded_by="demo",
            )
    finally:
        await database.close()


def _start_broker(stage: Stage, stack: ExitStack, console: Console) -> None:
    with _working(console, "starting the broker: intake, attendances, encompass, dispatch, jobs, web"):
        broker = stack.enter_context(_running(stage, "broker", ("-m", "broker", "serve")))
        deadline = time.monotonic() + _START_S
        while not (_answers(f"{stage.url}/_ping") and _listens(stage.mllp_port)):
            if broker.poll() is not None or time.monotonic() > deadline:
                raise DemoFailed(f"the broker did not start; see {stage.directory / 'broker.log'}")
            time.sleep(0.05)


def _start_authorities(stage: Stage, stack: ExitStack, console: Console) -> None:
    with _working(console, "starting the authorities' case system"):
        arguments = ("--port", str(stage.case_port), "--people", str(stage.directory / "town"))
        record = ("--record", str(stage.directory / "case-system.jsonl"))
        stack.enter_context(_running(stage, "case-system", ("-m", "mock_nhs.case_system", *arguments, *record)))
        deadline = time.monotonic() + _START_S
        while not _listens(stage.case_port):
            if time.monotonic() > deadline:
                raise DemoFailed(f"the case system did not start; see {stage.directory / 'case-system.log'}")
            time.sleep(0.05)


def _play_department(stage: Stage, stack: ExitStack, console: Console, *, pause_s: float) -> None:
    """The department does as the story goes; afterwards everything has to arrive."""
    arguments = ["-m", "mock_nhs.ed_system", "--port", str(stage.mllp_port), "--site", SITE, "--obey"]
    arguments += ["--people", str(stage.directory / "town"), "--seed", str(stage.seed), "--linger-s", "600"]
    arguments += ["--record", str(stage.directory / "department.jsonl"), "--reply-port", str(stage.reply_port)]
    arguments += ["--fhir", str(FHIR_SHARE), "--fhir-base", stage.url]
    department = stack.enter_context(_running(stage, "department", arguments, obeys=True))
    assert department.stdin is not None and department.stdout is not None
    evening = Evening(
        directory=stage.directory,
        settings=stage.settings,
        url=stage.url,
        console=console,
        wishes=department.stdin,
        done=department.stdout,
        pause_s=pause_s,
        seed=stage.seed,
        bell_at=stage.bell_at,
    )
    play_evening(evening)
    play_weekend(evening)
    department.stdin.close()
    deadline = time.monotonic() + _SETTLE_S
    while not _is_settled(stage):
        if time.monotonic() > deadline:
            raise DemoFailed(f"not everything arrived in time; see the logs in {stage.directory}")
        time.sleep(0.2)


def _is_settled(stage: Stage) -> bool:
    """Whether every message is answered and handled and everything that was to be sent has arrived."""
    department, case_system = _read(stage, "department"), _read(stage, "case-system")
    offered = {line["control_id"] for line in department if line["what"] == "offered"}
    if offered - {line["control_id"] for line in department if line["what"] == "answered"}:
        return False
    topic, alerts = asyncio.run(_count(stage.settings))
    arrived = sum(line["what"] == "alert" for line in case_system)
    return topic.waiting == 0 and arrived == alerts.raised


async def _count(settings: Settings) -> tuple[TopicLedger, AlertLedger]:
    database = bootstrap.open_database(settings)
    try:
        return await bootstrap.count_ledger(settings, database)
    finally:
        await database.close()


def _reckon(stage: Stage, console: Console) -> int:
    """Count on both sides of the wire."""
    department, case_system = _read(stage, "department"), _read(stage, "case-system")
    arrived = [line for line in case_system if line["what"] == "alert"]
    repeated = sum(line["what"] == "alert_repeated" for line in case_system)
    replies = sum(line["what"] == "reply" for line in department)
    console.print()
    console.rule("[bold]Counted on both sides", align="left")
    console.print(f"The authorities' case system holds {len(arrived)} alerts ({repeated} sent more than once).")
    console.print(f"The department holds {replies} replies.")
    result = subprocess.run([sys.executable, "-m", "broker", "ledger"], env=stage.environment, check=False)
    verdict = "balances: nothing was lost" if result.returncode == 0 else "DOES NOT BALANCE"
    console.print(f"[bold]The ledger {verdict}.[/bold]")
    return result.returncode


def _leave_open(stage: Stage, console: Console) -> None:
    console.print(f"\nThe pages are open at [bold]{stage.url}[/bold] - sign in as one of:")
    for role, meaning in _SHOWN_ROLES:
        login, password = find_login(stage.directory, role)
        console.print(f"  {meaning}: {login} / {password}")
    clinician = read_csv(stage.directory / "town" / "clinicians.csv")[0]
    for row in read_csv(stage.directory / "town" / "encompass-people.csv"):
        if row["login"].startswith(("lead@900001", "coordinator", "hub@")):
            console.print(f"  {row['role'].replace('_', ' ')}: {row['login']} / {row['password']}")
    console.print(f"  a clinician: {clinician['login']} / {clinician['password']}")
    [operator] = read_csv(stage.directory / "town" / "operator.csv")
    console.print(f"  an operator of the broker: {operator['login']} / {operator['password']}")
    console.print("Ctrl-C ends everything.")
    while True:
        time.sleep(1)


def _read(stage: Stage, name: str) -> list[Any]:
    return read_journal(stage.directory / f"{name}.jsonl")


def _call(stage: Stage, *arguments: Sequence[str]) -> str:
    command = [sys.executable, *(word for part in arguments for word in part)]
    result = subprocess.run(  # noqa: S603 - our own programs
        command, env=stage.environment, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise DemoFailed(f"{' '.join(command[1:4])} ended with {result.returncode}: {result.stderr.strip()[-500:]}")
    return result.stdout


@contextmanager
def _running(
    stage: Stage, name: str, arguments: Sequence[str], *, obeys: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A program in the background; SIGTERM at the end, and time to drain. What it prints goes to a file.

    One that ``obeys`` is told what to do, and its answers are read.
    """
    with (stage.directory / f"{name}.log").open("wb") as output:
        program = subprocess.Popen(  # noqa: S603 - our own programs
            [sys.executable, *arguments],
            env=stage.environment,
            stdin=subprocess.PIPE if obeys else subprocess.DEVNULL,
            stdout=subprocess.PIPE if obeys else output,
            stderr=output,
        )
        try:
            yield program
        finally:
            program.terminate()
            try:
                program.wait(30)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()


@contextmanager
def _working(console: Console, text: str) -> Iterator[None]:
    began = time.monotonic()
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as progress:
        progress.add_task(text)
        yield
    if not console.is_terminal:
        console.print(f"{text}: {time.monotonic() - began:.1f} s")


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1).status_code == 200
    except httpx.HTTPError:
        return False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
