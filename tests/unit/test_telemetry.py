"""Nothing personal reaches a log: not by our own events, not by libraries, not by crashes."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from broker.telemetry import LogEvent, innermost_line, log

WITHHELD = "(withheld)"


def logged(value: Any) -> object:
    with capture_logs() as lines:
        log(LogEvent.MLLP, happening=value)
    [line] = lines
    assert line["event"] == "mllp"
    return line["happening"]


@pytest.mark.parametrize(
    "word",
    [
        "",
        "attendances",
        "http_503",
        "webhook:authority:706",
        "broker.dispatcher:71",
        "RZ1",
        "a" * 80,
        "0" * 9,
        "0123456789abcdef0123456789abcdef",
        "127.0.0.1:2575",
        "2026-02-14",
    ],
)
def test_closed_words_pass(word: str) -> None:
    assert logged(word) == word


@pytest.mark.parametrize("number", [0, -3, 5_000_000_000, 0.25, None, True])
def test_counts_pass(number: float | None) -> None:
    assert logged(number) == number


@pytest.mark.parametrize(
    "text",
    [
        "Casey Tester",
        "O'Tester",
        "TESTER^CASEY",
        "José",
        "9990000018",
        "999 000 0018",
        "999-000-0018",
        "999_000_0018",
        "nhs:9990000018",
        "01632960101",
        "fell from height",
        "a@706.example.org",
        "line\nbreak",
        "word\n",
        "{json}",
        "a" * 81,
        "NUL\x00",
        "٩٩٩٠٠٠٠٠١٨",
        "PID|1||9990000018",
    ],
)
def test_anything_else_is_withheld(text: str) -> None:
    assert logged(text) == WITHHELD


@pytest.mark.parametrize(
    "thing",
    [ValueError("Casey"), b"Casey", ["Casey"], {"name": "Casey"}, ("Casey",), object()],
    ids=lambda thing: type(thing).__name__,
)
def test_a_thing_that_is_neither_count_nor_word_is_withheld(thing: object) -> None:
    assert logged(thing) == WITHHELD


@settings(deadline=None)
@given(st.text(), st.sampled_from([" ", "^", "|", "'", ",", "é", "\n"]), st.text())
def test_no_text_with_a_space_or_delimiter_passes(before: str, delimiter: str, after: str) -> None:
    assert logged(f"{before}{delimiter}{after}") == WITHHELD


def test_every_event_says_itself_in_one_closed_word() -> None:
    assert all(event.value == event.name.lower() for event in LogEvent)


def test_where_an_error_arose_is_told_by_its_innermost_line() -> None:
    try:
        int("Casey")
    except ValueError as error:
        place = innermost_line(error.__traceback__)
    assert place.startswith(f"{__name__}:")
    assert "Casey" not in place
    assert innermost_line(None) == ""


def run_configured(code: str) -> tuple[int, list[dict[str, object]]]:
    """Run code in a process of its own after ``configure``; its exit code and every line it wrote, parsed."""
    program = "from broker.telemetry import configure\nconfigure('jobs')\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == ""
    assert "Casey" not in done.stderr
    return done.returncode, [json.loads(line) for line in done.stderr.splitlines()]


def test_libraries_are_cut_down_to_logger_level_and_error_class() -> None:
    code, lines = run_configured(
        """
        import logging
        logger = logging.getLogger("sqlalchemy.pool")
        logger.debug("Casey"); logger.info("Casey")
        logger.warning("Casey %s", "Casey", extra={"child": "Casey"})
        try:
            raise KeyError("Casey")
        except KeyError:
            logger.exception("Casey")
        logging.getLogger("Casey Tester").critical("x", stack_info=True)
        """
    )
    assert code == 0
    assert [{name: line[name] for name in ("event", "logger", "level", "error")} for line in lines] == [
        {"event": "library", "logger": "sqlalchemy.pool", "level": "WARNING", "error": None},
        {"event": "library", "logger": "sqlalchemy.pool", "level": "ERROR", "error": "KeyError"},
        {"event": "library", "logger": WITHHELD, "level": "CRITICAL", "error": None},
    ]
    assert all(set(line) == {"event", "logger", "level", "error", "count", "timestamp"} for line in lines)


def test_a_library_that_repeats_itself_is_heard_once_in_a_while() -> None:
    code, lines = run_configured(
        """
        import logging
        for _ in range(500):
            logging.getLogger("aiokafka").error("gone")
        """
    )
    assert (code, len(lines)) == (0, 1)


def test_warnings_are_cut_down_as_well() -> None:
    _, lines = run_configured("import warnings; warnings.warn('Casey')")
    assert [(line["event"], line["logger"]) for line in lines] == [("library", "py.warnings")]


@pytest.mark.parametrize(
    ("crash", "exit_code"),
    [
        ("raise ValueError('Casey')", 1),
        ("import threading; thread = threading.Thread(target=int, args=('Casey',)); thread.start(); thread.join()", 0),
        ("class Broken:\n    def __del__(self): raise ValueError('Casey')\nBroken()", 0),
        ("try:\n    int('Casey')\nexcept ValueError as error:\n    raise ValueError('Casey') from error", 1),
    ],
    ids=["main", "thread", "finaliser", "chained"],
)
def test_a_crash_shows_class_and_line_only(crash: str, exit_code: int) -> None:
    code, lines = run_configured(crash)
    assert code == exit_code
    [line] = lines
    assert (line["event"], line["part"], line["error"]) == ("crashed", "jobs", "ValueError")
    assert set(line) == {"event", "part", "error", "at", "timestamp"}


def test_an_error_in_a_task_that_nobody_awaits_shows_its_class_only() -> None:
    _, lines = run_configured(
        """
        import asyncio, gc
        async def fail(): raise ValueError("Casey")
        async def main():
            task = asyncio.create_task(fail())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            del task
            gc.collect()
        asyncio.run(main())
        """
    )
    assert [(line["event"], line["logger"], line["error"]) for line in lines] == [("library", "asyncio", "ValueError")]


def test_ending_by_the_keyboard_is_no_crash() -> None:
    code, lines = run_configured("raise KeyboardInterrupt")
    assert code != 0
    assert lines == []
