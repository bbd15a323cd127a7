"""What a person at a terminal sees."""

from __future__ import annotations

import io
from datetime import timedelta

import pytest
from rich.console import Console

from broker import terminal
from broker.terminal import show_age, show_message, showing_progress


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"MSH|^~\\&|A\rPID|1\r", "MSH|^~\\&|A\nPID|1\n"),
        (b"A\r\nB\nC", "A\nB\nC"),
        (b"\x1b[2J\x07\x00\x7f", "\\x1b[2J\\x07\\x00\\x7f"),
        ("JOSÉ".encode(), "JOSÉ"),
        ("JOSÉ".encode("latin-1"), "JOSÉ"),
        (b"a\tb", "a\\tb"),
        ("\u202eyesac\u200b\u00a0\u2028\ufeff".encode(), "\\u202eyesac\\u200b\\xa0\\u2028\\ufeff"),
        (b"\x0bMSH|\x1c\r", "\\x0bMSH|\\x1c\n"),
        (b"", ""),
    ],
)
def test_what_is_not_plainly_visible_is_written_out(body: bytes, shown: str) -> None:
    assert show_message(body) == shown


def test_no_byte_reaches_a_terminal_as_a_control() -> None:
    for body in (bytes(range(256)), "".join(map(chr, range(0x80, 0x3000))).encode()):
        assert all(letter == "\n" or letter.isprintable() for letter in show_message(body))


def test_letters_that_the_terminal_does_not_have_are_written_out() -> None:
    assert show_message("JOSÉ ✓".encode(), encoding="ascii") == "JOS\\xc9 \\u2713"


@pytest.mark.parametrize(
    ("age", "shown"),
    [
        (timedelta(seconds=-5), "0 min"),
        (timedelta(minutes=59, seconds=59), "59 min"),
        (timedelta(minutes=61), "1 h 1 min"),
        (timedelta(days=2, hours=5, minutes=3), "2 d 5 h"),
    ],
)
def test_an_age_is_said_in_its_two_largest_units(age: timedelta, shown: str) -> None:
    assert show_age(age) == shown


@pytest.mark.parametrize(("after_s", "is_shown"), [(0.0, True), (60.0, False)])
def test_a_bar_appears_only_when_it_takes_long(monkeypatch: pytest.MonkeyPatch, after_s: float, is_shown: bool) -> None:
    monkeypatch.setattr(terminal, "BAR_AFTER_S", after_s)
    screen = io.StringIO()
    with showing_progress(Console(file=screen, force_terminal=True), "replaying") as advance:
        for done in range(1, 4):
            advance(done, 3)
    assert ("replaying" in screen.getvalue()) is is_shown


@pytest.mark.parametrize("credential", ["s3cret", "s3^cr&et", "x" * 300])
def test_the_credential_of_a_sender_is_not_shown(credential: str) -> None:
    line = "MSH|^~\\&|EDIS|RZ1|B|C|20260214|{}|ADT^A04|C1|P|2.4"
    frame = "\r".join(("\x0b" + line.format(credential), "PID|1", line.format(credential).replace("|", "$"), ""))
    shown = show_message(frame.encode())
    assert credential not in shown
    assert shown.count("(not shown)") == 2
    assert "|20260214|(not shown)|ADT^A04|C1|" in shown
    assert show_message(line.format("").encode()) == line.format("")
