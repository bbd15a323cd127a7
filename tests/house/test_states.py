"""docs/states.md draws what the code does: every state, and every way from one to another that is written anywhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import pytest

from broker.domain.retry import next_step
from broker.storage import outbox
from broker.storage.tables import AlertState, ItemState, PatternState
from schemas.delivery import DeliveryState, Outcome, OutcomeClass
from schemas.encompass import NoticeState
from schemas.record import PositionOutcome
from schemas.trace import TraceState
from tests.house.reference import ROOT, read_code, read_rows

STATES = "docs/states.md"
NOTHING = "-"
KINDS: dict[str, type[StrEnum]] = {
    "Deliveries": DeliveryState,
    "Alerts": AlertState,
    "Reviews": ItemState,
    "Missed alerts": ItemState,
    "Quarantined messages": ItemState,
    "Files of MESH": ItemState,
    "Replays": ItemState,
    "Jobs": ItemState,
    "Coverage items": ItemState,
    "Identities of entries": TraceState,
    "Held child lists": ItemState,
    "Differences of full lists": ItemState,
    "Patterns": PatternState,
    "School notices": NoticeState,
    "Tasks of Operation Encompass": ItemState,
}
NOW = datetime(2026, 2, 14, 3, 12, tzinfo=UTC)


def ways_drawn(kind: str) -> Iterator[tuple[str, str, str]]:
    """From, to and the function that writes it, as the table under a heading says."""
    for row in read_rows(STATES, kind):
        if len(row) == 4:
            source, target, _, writer = ((read_code(cell) or [NOTHING])[0] for cell in row)
            yield source, target, writer


def settled_states() -> set[str]:
    """Every state that an attempt to deliver can end in."""
    found = set()
    for outcome in OutcomeClass:
        for age in (timedelta(0), timedelta(days=100)):
            step = next_step(
                Outcome(outcome=outcome, code="any"), attempts=1, created_at=NOW - age, now=NOW, give_up=timedelta(42)
            )
            found.add(step.state.value)
    return found


def states_in(value: ast.expr) -> set[str]:
    """The states that an expression written to a column ``state`` stands for."""
    if ast.unparse(value) == "step.state.value":
        return settled_states()
    if ast.unparse(value) == "found.value":
        return {state.value for state in TraceState if state is not TraceState.UNVERIFIED}
    named = re.findall(r"(\w+State)\.(\w+)", ast.unparse(value))
    kinds = {kind.__name__: kind for kind in KINDS.values()}
    return {str(kinds[kind][name].value) for kind, name in named}


def ways_written() -> set[tuple[str, str]]:
    """Every (function, state) of the storage: functions that write a column ``state``, or call one that does."""
    found: set[tuple[str, str]] = set()
    for path in sorted((ROOT / "broker").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        for function in functions:
            for state in states_written_by(function):
                assert path.parent.name == "storage", f"{path} writes a state"
                found |= {(f"{path.stem}.{name}", state) for name in public_names(function.name, functions)}
    return found


def states_written_by(function: ast.AST) -> Iterator[str]:
    """What a function gives to ``state`` in values or in a row."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "values":
            for keyword in node.keywords:
                if keyword.arg == "state":
                    yield from states_in(keyword.value)
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "state":
                    yield from states_in(value)


def public_names(name: str, functions: list[ast.FunctionDef | ast.AsyncFunctionDef]) -> set[str]:
    """The function itself, or for a private one those that call it."""
    if not name.startswith("_"):
        return {name}
    return {each.name for each in functions if each.name != name and f"{name}(" in ast.unparse(each)}


def test_every_way_that_is_written_is_drawn_and_the_other_way_round() -> None:
    drawn = {(writer, to) for kind in KINDS for _, to, writer in ways_drawn(kind) if writer != NOTHING}
    assert drawn == ways_written()


@pytest.mark.parametrize("kind", KINDS)
def test_every_state_is_drawn_and_no_other(kind: str) -> None:
    ways = list(ways_drawn(kind))
    assert {to for _, to, _ in ways} == {state.value for state in KINDS[kind]}
    assert {source for source, _, _ in ways} - {NOTHING} <= {to for _, to, _ in ways}


@pytest.mark.parametrize("kind", KINDS)
def test_everything_begins_in_its_first_state(kind: str) -> None:
    [first] = [to for source, to, _ in ways_drawn(kind) if source == NOTHING]
    assert first == next(iter(KINDS[kind])).value


@pytest.mark.parametrize("kind", ["Deliveries", "Alerts"])
def test_the_drawing_shows_the_ways_of_the_table(kind: str) -> None:
    text = (ROOT / STATES).read_text(encoding="utf-8").split(f"## {kind}\n")[1].split("\n## ")[0]
    arrows = {(source, to) for source, to in re.findall(r"^ +(\w+) --> (\w+)", text, re.M) if source != to}
    begins = set(re.findall(r"^ +\[\*\] --> (\w+)$", text, re.M))
    drawn = [(source, to) for source, to, writer in ways_drawn(kind) if writer != NOTHING]
    assert arrows == {(source, to) for source, to in drawn if source not in (NOTHING, to)}
    assert begins == {to for source, to in drawn if source == NOTHING}


def test_a_delivery_is_claimed_from_where_the_outbox_says() -> None:
    claimed = {source for source, to, _ in ways_drawn("Deliveries") if to == DeliveryState.CLAIMED}
    assert claimed == set(outbox._WAITING)


def test_settling_leads_to_every_state_that_retry_chooses() -> None:
    settled = {to for source, to, writer in ways_drawn("Deliveries") if writer == "outbox.settle_delivery"}
    assert settled == settled_states()


def test_every_outcome_of_an_attempt_is_explained() -> None:
    rows = [row for row in read_rows(STATES, "Deliveries") if len(row) == 7]
    assert [read_code(row[0])[0] for row in rows] == [outcome.value for outcome in OutcomeClass]


def test_every_outcome_of_a_position_is_explained() -> None:
    rows = list(read_rows(STATES, "Log positions"))
    assert {read_code(row[0])[0] for row in rows} == {outcome.value for outcome in PositionOutcome}


def test_every_reason_of_the_consumer_is_named() -> None:
    rooms = (
        *("consumers/attendance.py", "consumers/loop.py", "consumers/reading.py", "consumers/replaying.py"),
        "domain/decision.py",
    )
    paths = [ROOT / "broker" / name for name in rooms]
    text = "".join(path.read_text(encoding="utf-8") for path in paths)
    tuples = re.findall(r'PositionOutcome\.\w+, (?:f?"" if [^"]+ else )?"([a-z_]+)"', text)
    keywords = re.findall(r'reason="([a-z_]+)"|handler\.quarantine, batch, "([a-z_]+)"', text)
    others = re.findall(r'(?:REPEATED: Final = |leave_unread\(keyring, record, )"([a-z_]+)"', text)
    written = {word for word in (*tuples, *others, *(word for pair in keywords for word in pair)) if word}
    assert len(written) > 7
    named = {word for row in read_rows(STATES, "Log positions") for word in read_code(row[2])}
    assert written - named == set()
