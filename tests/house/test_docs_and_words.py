"""House rules that no linter knows: time, logs, the environment, names, docstrings and unfinished work."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from broker.telemetry import LogEvent

ROOT = Path(__file__).parents[2]
PACKAGES = ("broker", "adapters", "schemas", "mock_nhs")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Rule = Callable[[str, ast.Module], Iterator[int]]


def product_files(*packages: str) -> list[Path]:
    return [path for package in packages or PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def breaches(rule: Rule, *packages: str) -> list[str]:
    """``file:line`` of every breach in the product."""
    return [
        f"{name_of(path)}:{line}" for path in product_files(*packages) for line in rule(name_of(path), parsed(path))
    ]


def assert_notices(rule: Rule, source: str, name: str = "broker/sample.py") -> None:
    assert list(rule(name, ast.parse(source))), f"the rule does not notice: {source}"


def line_of(node: ast.AST) -> int:
    return int(getattr(node, "lineno", 0))


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of names and attributes; anything else has no dotted name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def called(node: ast.AST) -> str:
    """The dotted name of what is called, or nothing."""
    return dotted(node.func) if isinstance(node, ast.Call) else ""


# Time


CLOCK_READINGS = {f"{kind}.{word}" for kind in ("datetime", "date") for word in ("now", "utcnow", "today")}


def reads_the_clock(name: str, tree: ast.Module) -> Iterator[int]:
    """``datetime.now`` and its like, called or handed over, anywhere but in the clock."""
    for node in ast.walk(tree):
        is_reading = ".".join(dotted(node).split(".")[-2:]) in CLOCK_READINGS
        if is_reading and name != "broker/clock.py":
            yield line_of(node)


def test_only_the_clock_tells_what_time_it_is() -> None:
    assert breaches(reads_the_clock, "broker", "adapters", "schemas") == []


@pytest.mark.parametrize(
    "source",
    [
        "datetime.now(UTC)",
        "datetime.utcnow()",
        "date.today()",
        "import datetime\ndatetime.datetime.now",
        "f(datetime.now)",
    ],
)
def test_a_reading_of_the_clock_is_noticed(source: str) -> None:
    assert_notices(reads_the_clock, source)


# Logs


MAY_IMPORT_LOGGING = {
    "broker/telemetry.py": "it is the catalogue",
    "adapters/kafka.py": "it keeps the client from debugging, which would show records",
}


def logs_otherwise(name: str, tree: ast.Module) -> Iterator[int]:
    """Logging that is not ``telemetry.log`` with an event of the catalogue and plain fields."""
    if name in MAY_IMPORT_LOGGING:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if {module.partition(".")[0] for module in modules} & {"logging", "structlog", "warnings"}:
                yield line_of(node)
        elif called(node) in ("log", "telemetry.log") and not is_plain_event(node):
            yield line_of(node)


def is_plain_event(node: ast.AST) -> bool:
    assert isinstance(node, ast.Call)
    events = {f"LogEvent.{event.name}" for event in LogEvent}
    is_event = len(node.args) == 1 and dotted(node.args[0]) in events
    composed = ast.JoinedStr | ast.BinOp
    return is_event and not any(isinstance(part, composed) for keyword in node.keywords for part in ast.walk(keyword))


def test_only_events_of_the_catalogue_are_logged_with_plain_fields() -> None:
    assert breaches(logs_otherwise, "broker", "adapters", "schemas") == []


@pytest.mark.parametrize(
    "source",
    [
        "import logging",
        "from logging import getLogger",
        "import structlog.stdlib",
        "import warnings",
        "log('started')",
        "log(LogEvent.NO_SUCH_EVENT)",
        "log(LogEvent.MLLP, happening=f'{name}')",
        "log(LogEvent.MLLP, happening='%s' % name)",
        "log(LogEvent.MLLP, happening='a' + name)",
        "telemetry.log(event)",
    ],
)
def test_logging_otherwise_is_noticed(source: str) -> None:
    assert_notices(logs_otherwise, source)


def test_every_event_of_the_catalogue_is_used() -> None:
    used = {
        node.attr
        for path in product_files("broker")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and dotted(node.value) == "LogEvent"
    }
    assert {event.name for event in LogEvent} - used == set()


def prints(_: str, tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if called(node) in ("print", "pprint", "traceback.print_exc", "breakpoint"):
            yield line_of(node)


def test_nothing_is_printed() -> None:
    assert breaches(prints, "broker", "adapters", "schemas") == []
    assert_notices(prints, "print(child)")


# The environment

READS_ENVIRONMENT = {
    "broker/supervisor.py": "what its children inherit",
    "broker/cli/installation.py": "where a setting came from",
    "broker/demo.py": "what its children inherit",
    "broker/web/operations.py": "whether the metrics of several processes are to be added up",
}


def reads_the_environment(_: str, tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if dotted(node) in ("os.environ", "os.environb", "os.getenv"):
            yield line_of(node)
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (line_of(node) for alias in node.names if alias.name in ("environ", "environb", "getenv"))


def test_only_the_settings_read_the_environment() -> None:
    found = {breach.partition(":")[0] for breach in breaches(reads_the_environment, "broker", "adapters", "schemas")}
    assert found - set(READS_ENVIRONMENT) == set()
    assert set(READS_ENVIRONMENT) - found == set(), "an exception that is not needed any more"


def test_no_setting_is_read_past_the_settings() -> None:
    for name in READS_ENVIRONMENT:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"""environ(\.get\(|\[)["']CPIS_""", text), name


@pytest.mark.parametrize(
    "source", ["os.environ['X']", "os.getenv('X')", "from os import environ", "os.environ.get('X')"]
)
def test_a_reading_of_the_environment_is_noticed(source: str) -> None:
    assert_notices(reads_the_environment, source)


# Names

FORBIDDEN_WORDS = {"manager", "managers", "helper", "helpers", "util", "utils", "common", "info"}
FORBIDDEN_BEGINNINGS = ("base_", "data_", "info_", "process_")
NAMES_THAT_LIBRARIES_CALL = {"data_received", "process_bind_param", "process_result_value"}


def words_of(name: str) -> list[str]:
    """The words of a name in any style, in small letters."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name.strip("_")).lower().split("_")


def is_forbidden(name: str) -> bool:
    words = words_of(name)
    return bool(FORBIDDEN_WORDS & set(words)) or ("_".join(words) + "_").startswith(FORBIDDEN_BEGINNINGS)


def has_forbidden_names(_: str, tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, Definition) and node.name not in NAMES_THAT_LIBRARIES_CALL and is_forbidden(node.name):
            yield line_of(node)


def test_names_say_what_a_thing_is() -> None:
    assert breaches(has_forbidden_names) == []
    modules = {part for path in product_files() for part in path.relative_to(ROOT).with_suffix("").parts}
    assert [name for name in modules if is_forbidden(name)] == []


@pytest.mark.parametrize(
    "name",
    ["AlertManager", "date_utils", "_helper", "common", "BaseChannel", "process_batch", "data_source", "HTTPInfo"],
)
def test_a_forbidden_name_is_noticed(name: str) -> None:
    assert_notices(has_forbidden_names, f"def {name}(): pass")


@pytest.mark.parametrize("name", ["Database", "commonest", "metadata", "processed", "candidate_blocks", "describe"])
def test_a_word_that_only_looks_forbidden_is_let_be(name: str) -> None:
    assert not is_forbidden(name)


# Docstrings


def is_public(name: str) -> bool:
    return not name.startswith("_")


def lacks_docstring(_: str, tree: ast.Module) -> Iterator[int]:
    """Modules, public classes and functions, and public methods of public classes."""
    if tree.body and ast.get_docstring(tree) is None:
        yield 1
    for node in tree.body:
        if not isinstance(node, Definition) or not is_public(node.name):
            continue
        if ast.get_docstring(node) is None:
            yield line_of(node)
        if isinstance(node, ast.ClassDef):
            yield from (
                member.lineno
                for member in node.body
                if isinstance(member, Definition) and is_public(member.name) and ast.get_docstring(member) is None
            )


def test_everything_public_says_what_it_is() -> None:
    assert breaches(lacks_docstring) == []


@pytest.mark.parametrize(
    "source",
    [
        "import os",
        '"""M."""\ndef f(): ...',
        '"""M."""\nclass C: ...',
        '"""M."""\nclass C:\n    """C."""\n    async def m(self): ...',
    ],
)
def test_a_missing_docstring_is_noticed(source: str) -> None:
    assert_notices(lacks_docstring, source)


# Unfinished work

UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK", "W" + "IP")) + r")\b")


def written_here() -> list[Path]:
    return [*product_files(), *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]


def test_nothing_is_left_for_later() -> None:
    found = [
        f"{name_of(path)}:{number}"
        for path in written_here()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if UNFINISHED.search(line)
    ]
    assert found == []
    assert UNFINISHED.search("# " + "TO" + "DO: later")


def test_every_exception_from_a_rule_is_explained() -> None:
    """A ``noqa`` or ``type: ignore`` says which rule; a ``noqa`` in the product says why as well."""
    bare = re.compile(r"#\s*(noqa(?!:)|type:\s*ignore(?!\[)|pragma:)")
    unexplained = re.compile(r"#\s*noqa: [A-Z0-9, ]+$")
    found = [
        f"{name_of(path)}:{number}"
        for path in written_here()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if path != Path(__file__)
        if bare.search(line) or (name_of(path).startswith(PACKAGES) and unexplained.search(line.rstrip()))
    ]
    assert found == []


def skips_tests(_: str, tree: ast.Module) -> Iterator[int]:
    forbidden = ("pytest.skip", "pytest.mark.skip", "pytest.mark.skipif", "pytest.mark.xfail", "pytest.xfail")
    for node in ast.walk(tree):
        if dotted(node) in (
            *forbidden,
            "pytest.importorskip",
            "unittest.skip",
        ):
            yield line_of(node)


def test_no_test_is_skipped() -> None:
    found = [
        f"{name_of(path)}:{line}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line in skips_tests(name_of(path), parsed(path))
    ]
    assert found == []
    assert_notices(skips_tests, "@pytest.mark.skipif(True, reason='')\ndef test(): ...")


def test_nothing_tells_where_or_how_it_was_made() -> None:
    """No paths of a machine, and no package registries: those are the installer's business."""
    machine = re.compile(r"/wor" + r"k/(main|shared)|/ro" + r"ot/|pypi\.o" + r"rg|files\.python" + r"hosted")
    found = [
        f"{name_of(path)}:{number}"
        for path in written_here()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if machine.search(line) and "house" not in path.parts
    ]
    assert found == []
