"""The engines that a log is tested on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.conftest import Kafka
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
