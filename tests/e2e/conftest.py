"""The product on both pairs of engines."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.conftest import Kafka


@dataclass(frozen=True)
class Pair:
    """A log and a database: empty strings are the embedded ones."""

    kafka: str
    database_url: str


@pytest.fixture(params=["embedded", "distributed"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Each pair of engines in turn."""
    if request.param == "embedded":
        return Pair("", "")
    kafka: Kafka = request.getfixturevalue("kafka_server")
    return Pair(kafka.bootstrap_servers, str(request.getfixturevalue("postgres_url")))
