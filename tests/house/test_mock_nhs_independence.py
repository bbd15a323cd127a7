"""The outside world shares no code with the product but the identifiers, so that two pieces of code must agree."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mock_nhs

ROOT = Path(mock_nhs.__path__[0])
OURS = {"broker", "adapters", "schemas", "tests", "benchmarks"}
ALLOWED = {"schemas.identifiers"}


def imported_modules(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            yield node.module or ""
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield "broker"


def breaches(source: str) -> set[str]:
    return {name for name in imported_modules(source) if name.partition(".")[0] in OURS} - ALLOWED


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: path.name)
def test_the_outside_world_imports_nothing_of_the_product_but_identifiers(path: Path) -> None:
    assert breaches(path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    "source",
    [
        "import adapters.mllp",
        "from broker import intake",
        "from schemas.alert import SocialCareAlert",
        "from schemas import identifiers, alert",
        "import importlib\nimportlib.import_module('adapters.hl7v2')",
    ],
)
def test_a_breach_is_noticed(source: str) -> None:
    assert breaches(source)


def test_hl7_and_webhooks_are_read_without_the_products_libraries() -> None:
    libraries = {
        name.partition(".")[0]
        for path in ROOT.rglob("*.py")
        for name in imported_modules(path.read_text(encoding="utf-8"))
    }
    assert libraries.isdisjoint({"hl7apy", "httpx", "msgspec", "fhir", "aiokafka", "sqlalchemy"})
