"""The import contracts of pyproject.toml hold, and the pure rooms have no clock."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from importlinter import cli

ROOT = Path(__file__).parents[2]
CLOCKS = {"now", "utcnow", "today", "time", "monotonic", "perf_counter"}


def test_import_contracts_hold(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    code = cli.lint_imports(no_cache=True)
    assert code == 0, capsys.readouterr().out


def test_the_contracts_are_all_there() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    # Contract 4 (the two hearts know nothing of each other) begins with the second heart.
    assert [
        number for number in ("1", "2", "3", "5a", "5b", "5c", "6", "7", "8", "9") if f'id = "{number}"' not in text
    ] == []


@pytest.mark.parametrize("package", ["schemas", "broker/domain"])
def test_pure_rooms_read_no_clock(package: str) -> None:
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS:
                found.append(f"{path.name}:{node.lineno}")
    assert found == []
