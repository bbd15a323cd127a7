"""A part and a command load what they need and no more: each is a process of its own, and people wait for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import pytest

HEAVY: Final = frozenset(
    {"aiokafka", "alembic", "argon2", "fastapi", "fhir", "hl7apy", "httpx", "joserfc", "sqlalchemy", "uvicorn"}
)
LOADS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "broker.cli": frozenset(),
        "broker.bootstrap": frozenset(),
        "broker.bootstrap.parts": frozenset(),
        "broker.bootstrap.intake": frozenset(),
        "broker.bootstrap.attendances": frozenset({"fhir", "sqlalchemy"}),
        "broker.bootstrap.dispatch": frozenset({"httpx", "sqlalchemy"}),
        "broker.bootstrap.jobs": frozenset({"sqlalchemy"}),
        "broker.bootstrap.web": frozenset({"argon2", "fastapi", "fhir", "sqlalchemy", "uvicorn"}),
        "broker.storage.revision": frozenset({"sqlalchemy"}),
    }
)
"""Which of the packages that are slow to load each module brings with it."""
PROGRAM: Final = "import sys; __import__(sys.argv[1]); print(*sys.modules)"


def load_alone(module: str) -> set[str]:
    """Every module that a fresh interpreter has loaded when it has imported this one."""
    arguments = [sys.executable, "-W", "error", "-c", PROGRAM, module]
    return set(subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=60).stdout.split())


@pytest.mark.parametrize("module", LOADS)
def test_only_what_is_needed_is_loaded(module: str) -> None:
    assert HEAVY & load_alone(module) == LOADS[module]


def test_keys_and_help_need_neither_settings_nor_telemetry() -> None:
    loaded = load_alone("broker.cli")
    assert {"pydantic", "structlog", "cryptography", "prometheus_client"} & loaded == set()


def test_an_attendance_is_accepted_without_anything_of_the_storage() -> None:
    loaded = load_alone("broker.bootstrap.intake")
    assert [name for name in loaded if name.startswith(("broker.storage", "broker.web", "broker.consumers"))] == []
