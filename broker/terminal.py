"""What a person at a terminal sees: messages that cannot drive it, and a bar over what takes its time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from adapters.er7 import decode_text

_CREDENTIAL: Final = re.compile(r"^([^\w\n]{0,16}MSH(.)(?:(?!\2).)*(?:\2(?:(?!\2).)*){5}\2)(?:(?!\2).)+", re.MULTILINE)
BAR_AFTER_S: Final = 2.0


def show_message(body: bytes, *, encoding: str = "utf-8") -> str:
    """The text of a message, a line for each segment, with everything written out that is not plainly visible.

    Control characters, direction marks, invisible spaces and what ``encoding`` has no letter for are shown as
    escapes, so that no message moves the cursor, changes the colours or reorders a line. The sender's credential
    (MSH-8) is not shown: it is no business of whoever mends the message.
    """
    text = decode_text(body).replace("\r\n", "\n").replace("\r", "\n")
    text = _CREDENTIAL.sub(r"\1(not shown)", text)
    shown = "".join(letter if letter == "\n" or letter.isprintable() else _escape(letter) for letter in text)
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def show_age(age: timedelta) -> str:
    """How long ago, in its two largest units."""
    minutes = max(0, int(age.total_seconds() // 60))
    days, hours = minutes // 1440, minutes % 1440 // 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


@contextmanager
def showing_progress(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Gives what is to be called with (done, of all); a bar appears when it takes longer than two seconds."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(what)
    began = time.monotonic()

    def advance(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        if not bar.live.is_started and time.monotonic() - began > BAR_AFTER_S:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode() if letter != "\\" else letter
