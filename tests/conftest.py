"""Rules of every test run, and the engines that tests may ask for. An engine starts when the first test asks.

Rules: no test may be skipped; no test may connect to another machine; soak-length tests run only with ``--soak``.
"""

from __future__ import annotations

import ipaddress
import os
import re
import sys
import uuid
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest
from playwright.async_api import Browser, Page, async_playwright
from sqlalchemy.ext.asyncio import create_async_engine

import broker.storage.database
from tests.engines import KafkaServer, MeshSandbox, PostgresServer, chromium_path

AGAINST_THE_CLOCK = Path(__file__).parent / "e2e"
KAFKA_VARIABLE = "CPIS_TEST_KAFKA_BOOTSTRAP_SERVERS"

CHROMIUM_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Names of other machines do not exist for it: a page that needs one shows that it does.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)


# Rules


_skipped: list[str] = []
_connections_elsewhere: list[str] = []


class ConnectionElsewhere(Exception):
    """A test tried to reach another machine."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="also run the tests marked soak, which take minutes")
    parser.addoption("--one-kafka", action="store_true", help="start one Apache Kafka for all processes of this run")


def pytest_configure(config: pytest.Config) -> None:
    # Hundreds of tests start the product as a process: each would compile it anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.addaudithook(_refuse_other_machines)
    if config.getoption("--one-kafka") and not hasattr(config, "workerinput"):
        _start_one_kafka(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent != AGAINST_THE_CLOCK and (
            item.get_closest_marker("alone") or item.get_closest_marker("waits")
        ):
            raise pytest.UsageError(f"{item.nodeid}: make test looks for alone and waits in tests/e2e only")
    if config.getoption("--soak"):
        return
    soaking = [item for item in items if item.get_closest_marker("soak")]
    if soaking:
        config.hook.pytest_deselected(items=soaking)
        items[:] = [item for item in items if item not in soaking]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that skips itself is an error: of several processes, only errors reach the one that counts."""
    report = yield
    if report.skipped:
        report.outcome = "failed"
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """``wasxfail``: an expected failure proves no more than a skip, whether or not it failed."""
    if report.skipped or hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped:
        terminalreporter.section("skipped tests fail the run", red=True)
        for test in _skipped:
            terminalreporter.line(test)


def _refuse_other_machines(event: str, arguments: Sequence[object]) -> None:
    """Audit hook: sees every connection and name look-up of this process, whichever library makes it."""
    if event in {"socket.connect", "socket.sendto", "socket.sendmsg"}:
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None
    elif event in {"socket.getaddrinfo", "socket.gethostbyname"}:
        host = arguments[0]
    else:
        return
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if isinstance(host, str) and not _is_loopback(host):
        _connections_elsewhere.append(f"{event} {host}")
        raise ConnectionElsewhere(f"tests may only connect to loopback, not to {host}")


def _is_loopback(host: str) -> bool:
    if host in {"", "localhost"}:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def stay_on_this_machine() -> Iterator[None]:
    """Fail the test that tried to reach another machine, even when what it tests made light of the refusal."""
    _connections_elsewhere.clear()
    yield
    assert not _connections_elsewhere, "the test tried to reach another machine"


# Engines


class Kafka(Protocol):
    """An Apache Kafka shared by all tests: use topics of your own, and do not stop it."""

    @property
    def bootstrap_servers(self) -> str: ...


@dataclass(frozen=True)
class RunningKafka:
    """An Apache Kafka that someone else started, on this machine."""

    bootstrap_servers: str


def _start_one_kafka(config: pytest.Config) -> None:
    """Processes of tests inherit its address: even one that nobody uses takes three hundredths of a core."""
    if KAFKA_VARIABLE in os.environ:
        return
    server = KafkaServer()
    config.add_cleanup(server.close)
    server.start()
    os.environ[KAFKA_VARIABLE] = server.bootstrap_servers


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[Kafka]:
    """The Kafka of this run; with CPIS_TEST_KAFKA_BOOTSTRAP_SERVERS set, the one that runs there."""
    running = os.environ.get(KAFKA_VARIABLE)
    if running:
        yield RunningKafka(running)
        return
    server = KafkaServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def own_kafka_server() -> Iterator[KafkaServer]:
    """A started Kafka for one test, which may stop, pause and kill it."""
    server = KafkaServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def topic_name() -> str:
    """A topic name no other test uses. The topic is not made: see tests.engines.create_topic."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The PostgreSQL of this run, shared by all tests: do not stop it.

    Nobody ends it before it has done its work, so it need not wait for the disk. What outlives the end of a server is
    proven on servers of their own.
    """
    settings = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "128MB"}
    server = PostgresServer(settings=settings, in_memory=True)
    try:
        server.start()
        yield server
    finally:
        server.close()


class CompiledStatements(dict[Any, Any]):
    """SQLAlchemy's statements as text, whichever engine of the same kind compiled them.

    SQLAlchemy begins each key with the engine's own dialect: each test would compile all of its statements anew, a
    fifth of what the tests of the databases take.
    """

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(_without_engine(key), default)

    def __setitem__(self, key: Any, compiled: Any) -> None:
        super().__setitem__(_without_engine(key), compiled)


def _without_engine(key: Any) -> Any:
    dialect, *statement = key
    return type(dialect), *statement


@pytest.fixture(scope="session", autouse=True)
def compile_statements_once() -> Iterator[None]:
    """All databases of one process share what SQLAlchemy compiled, as the connections of one database do."""
    options = {"compiled_cache": CompiledStatements()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            broker.storage.database, "create_async_engine", partial(create_async_engine, execution_options=options)
        )
        yield


@pytest.fixture
def own_postgres_server() -> Iterator[PostgresServer]:
    """A started PostgreSQL for one test, which may stop, pause and kill it."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """The SQLAlchemy address of an empty database, dropped after the test."""
    words = re.sub(r"[^a-z0-9]+", "_", request.node.name.lower())
    name = f"{words[:40]}_{uuid.uuid4().hex[:8]}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def mesh_sandbox() -> Iterator[MeshSandbox]:
    """NHS England's MESH sandbox of this run: do not stop it, and empty it first."""
    server = MeshSandbox()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """Debian's Chromium with a profile of its own. Started for each test: it belongs to the test's event loop."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path(), args=list(CHROMIUM_ARGUMENTS))
        yield browser
        await browser.close()


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """An empty page. An error in a page's own script fails the test."""
    page = await browser.new_page(locale="en-GB", timezone_id="Europe/London")
    page.set_default_timeout(10_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    assert not errors, errors
