"""The engines that a log is tested on, and the other sides that channels are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from schemas.delivery import ChannelName
from tests.certificates import Certificate, issue_certificate
from tests.conftest import Kafka
from tests.contract.channel_sides import FhirDepartment, HttpServer, OtherSide, open_fhir_department, open_other_side
from tests.contract.log_engines import Engine, KafkaEngine, SqliteEngine, kafka_options, make_engine
from tests.engines import KafkaServer


@pytest.fixture(params=["memory", "sqlite", "kafka"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    """Each engine, with an empty topic of four partitions."""
    engine = make_engine(request, "kafka_server", 6.5)
    await engine.make_topic()
    yield engine
    await engine.close()


@pytest.fixture(scope="session")
def fragile_server() -> Iterator[KafkaServer]:
    """A Kafka of our own, for tests that stop it or whose members die: it allows short sessions."""
    server = KafkaServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(params=["memory", "sqlite", "kafka"])
async def fragile_engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    """Each engine, to be broken."""
    engine = make_engine(request, "fragile_server", 2.0)
    await engine.make_topic()
    yield engine
    await engine.close()


@pytest.fixture
async def sqlite_engine(tmp_path: Path) -> AsyncIterator[SqliteEngine]:
    engine = SqliteEngine(tmp_path)
    await engine.make_topic()
    yield engine
    await engine.close()


@pytest.fixture
async def kafka_engine(kafka_server: Kafka) -> AsyncIterator[KafkaEngine]:
    engine = KafkaEngine(kafka_server, kafka_options(kafka_server.bootstrap_servers))
    yield engine
    await engine.close()


@pytest.fixture(params=[*(name.value for name in ChannelName), "email_by_notify"])
async def other_side(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OtherSide]:
    async with open_other_side(request.param, tmp_path) as opened:
        yield opened


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    opened = HttpServer()
    await opened.start()
    yield opened
    await opened.close()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Certificate, Certificate]:
    folder = tmp_path_factory.mktemp("tls")
    return issue_certificate(folder, "localhost"), issue_certificate(folder, "somebody-else.example.org")


@pytest.fixture
async def fhir_department(tmp_path: Path) -> AsyncIterator[FhirDepartment]:
    async with open_fhir_department(tmp_path / "department.jsonl") as opened:
        yield opened
