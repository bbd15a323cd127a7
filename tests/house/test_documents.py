"""No document promises what is not there: links lead somewhere, and what is named exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import pytest

from broker.settings import Settings
from tests.conftest import KAFKA_VARIABLE
from tests.house.reference import ROOT, read_code, read_rows
from tests.house.test_reference import command_names

ADR_LINES_MAX = 60
ARCHITECTURE_LINES_MAX = 250
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
ADRS = sorted((ROOT / "docs" / "adr").glob("*.md"))
PLACES = ("broker/", "adapters/", "schemas/", "mock_nhs/", "tests/", "docs/", "benchmarks/", ".ci/")
# Written apart, so that this file names none of them itself.
MACHINES = ["/" + place for place in ("work", "home/", "root/")]
REGISTRIES = [".".join(host) for host in (("py" + "pi", ""), ("maven", "org"), ("docker", "io"), ("registry", ""))]

for_each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def anchors_of(path: Path) -> set[str]:
    """The anchors that a reader of Markdown gives to headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in words}


def prose_of(path: Path) -> str:
    """The text without blocks of code."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)


def names_in(path: Path) -> Iterator[str]:
    """What stands in code quotes and looks like a file of this repository."""
    for name in read_code(prose_of(path)):
        if name.startswith(PLACES) and " " not in name:
            yield name


@for_each_document
def test_every_link_within_the_documents_leads_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", prose_of(path)):
        if link.startswith(("https://", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target), link


@for_each_document
def test_every_file_and_test_that_is_named_is_there(path: Path) -> None:
    for name in names_in(path):
        file, _, test = name.partition("::")
        assert (ROOT / file).exists(), name
        assert not test or f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), name


@for_each_document
def test_every_setting_that_is_named_is_one(path: Path) -> None:
    known = {f"CPIS_{name.upper()}" for name in Settings.model_fields} | {KAFKA_VARIABLE}
    prefixes = {"CPIS_"}
    found = set(re.findall(r"CPIS_[A-Z_0-9]*", path.read_text(encoding="utf-8")))
    assert found - known - prefixes == set()


@for_each_document
def test_every_command_that_is_named_is_one(path: Path) -> None:
    quoted = re.findall(r"`cpis-broker ([^`]+)`", prose_of(path))
    quoted += re.findall(r"^(?:\.venv/bin/)?cpis-broker (.+)$", path.read_text(encoding="utf-8"), re.M)
    for words in quoted:
        said = " ".join(words.split())
        assert any(f"{said} ".startswith(f"{name} ") for name in command_names()), said


@for_each_document
def test_no_document_names_a_registry_or_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [word for word in (*MACHINES, *REGISTRIES) if word in text] == []


@pytest.mark.parametrize("path", ADRS, ids=lambda path: path.name)
def test_every_decision_is_short_and_says_all_four(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.M) == ["Context", "Options", "Decision", "Consequences"]
    assert text.startswith(f"# {path.name[:4]} ")
    assert text.count("\n") <= ADR_LINES_MAX


def test_decisions_are_numbered_without_a_gap() -> None:
    assert [int(path.name[:4]) for path in ADRS] == list(range(1, len(ADRS) + 1))


def test_the_architecture_can_be_read_at_one_sitting() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert text.count("\n") <= ARCHITECTURE_LINES_MAX
    assert [row[0] for row in read_rows("ARCHITECTURE.md", "Invariants")] == [str(n) for n in range(1, 16)]


def test_the_architecture_places_every_module() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for path in [*(ROOT / "adapters").glob("*.py"), *(ROOT / "broker").glob("*.py")]:
        if not path.name.startswith("__"):
            assert f"`{path.relative_to(ROOT)}`" in text, path.name
    for folder in ("schemas", "broker/domain"):
        for path in (ROOT / folder).glob("*.py"):
            assert path.name.startswith("__") or f"`{path.stem}`" in text, path.name


def resolve(name: str) -> Any:
    """What a dotted name in the glossary stands for. Raises when there is no such thing."""
    module, rest = name, ""
    while True:
        try:
            found = import_module(module)
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            assert module, name
            rest = f"{last}.{rest}" if rest else last
            continue
        return reduce(_part_of, rest.split(".") if rest else [], found)


def _part_of(whole: Any, name: str) -> Any:
    if isinstance(whole, type) and issubclass(whole, msgspec.Struct) and name in whole.__struct_fields__:
        return name
    return getattr(whole, name)


def test_every_code_name_of_the_glossary_exists() -> None:
    rows = list(read_rows("docs/glossary.md"))
    assert len(rows) > 40
    for term, _, code, *_ in rows:
        assert read_code(code), term
        for name in read_code(code):
            assert resolve(name) is not None, name


def test_the_glossary_is_in_order_and_says_each_term_once() -> None:
    terms = [row[0].lower() for row in read_rows("docs/glossary.md")]
    assert terms == sorted(set(terms))
