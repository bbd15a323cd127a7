"""Files that land on a list in slices: whoever finds one left behind goes on with it, and others wait (ADR 0045)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from adapters.errors import MalformedFile
from broker.keyring import KeyringError
from broker.list_comparison import UnknownAuthority, UploadOptions
from broker.ports import Clock
from broker.spool import SpoolFull
from broker.storage import child_lists, landings
from broker.storage.database import Database, is_database_outage
from broker.storage.landings import Landing
from broker.telemetry import LISTS_BLOCKED, LogEvent, innermost_line, log

_POLL_S: Final = 0.25
_SLICE_ROWS_MIN: Final = 20
Finish = Callable[[Landing], Awaitable[None]]
"""Lands the rest of a file."""


class ListBlocked(Exception):
    """A file that was sent before has landed in part, and the rest cannot: others for that list wait. Says why."""


async def resume_all(database: Database, clock: Clock, lease: timedelta, finish: Finish) -> int:
    """Land the rest of the files that nobody goes on with; returns how many there were.

    One that cannot be landed keeps no other list waiting: it is said, and tried again when its lease has run out.
    """
    async with database.reading() as connection:
        found = await landings.list_landings(connection)
    LISTS_BLOCKED.set(sum(bool(landing.problem) for landing in found))
    resumed = 0
    for landing in found:
        if landing.leased_until > clock.now():
            continue
        with suppress(ListBlocked):
            resumed += await _resume(database, clock, landing, lease, finish)
    return resumed


async def wait_for_landing(database: Database, clock: Clock, authority: str, lease: timedelta, finish: Finish) -> None:
    """Until no file lands on a list; one that nobody goes on with is landed first. Raises ListBlocked."""
    while True:
        async with database.reading() as connection:
            other = await landings.find_landing(connection, authority)
        if other is None:
            return
        if other.leased_until <= clock.now():
            await _resume(database, clock, other, lease, finish)
        elif other.problem:
            raise ListBlocked(_tell_blocked(other.problem))
        else:
            await asyncio.sleep(_POLL_S)


async def _resume(database: Database, clock: Clock, landing: Landing, lease: timedelta, finish: Finish) -> bool:
    async with database.writing() as connection:
        if not await landings.take_over(connection, landing, clock.now() + lease):
            return False
    try:
        await finish(landing)
    except Exception as error:
        if is_database_outage(error):
            raise
        problem = _explain_failure(error)
        log(LogEvent.LIST_BLOCKED, authority=landing.authority, error=type(error).__name__)
        async with database.writing() as connection:
            await landings.note_failure(connection, landing.upload_id, problem, clock.now())
        raise ListBlocked(_tell_blocked(problem)) from error
    return True


async def measure_lists(database: Database) -> None:
    """Let the database learn how long the lists are, now that a long one stands.

    It stands whatever becomes of this: the database may be away just now, or not be able to.
    """
    try:
        async with database.writing() as connection:
            await child_lists.analyse_lists(connection)
    except (SQLAlchemyError, OSError) as error:
        log(LogEvent.JOB_FAILED, kind="analyse", error=type(error).__name__)


def _explain_failure(error: Exception) -> str:
    """Why a file cannot be landed, without anything of its contents."""
    match error:
        case KeyringError():
            return "it does not open: the key that it is kept under is not in CPIS_FIELD_KEYS, or it was damaged"
        case SpoolFull():
            return "it is larger than CPIS_LIST_UPLOAD_BYTES_MAX is now"
        case MalformedFile():
            return "it cannot be read any more"
        case UnknownAuthority():
            return "its authority is not in the directory any more"
    return f"{type(error).__name__} at {innermost_line(error.__traceback__)}"


def _tell_blocked(problem: str) -> str:
    return f"a file that was sent before has landed in part, and the rest cannot: {problem}. Operators are told"


class Pace:
    """How many rows the next slice has, so that it holds the database as long as is wished.

    Doubled or halved: each size is another text of SQL, which the driver keeps.
    """

    def __init__(self, options: UploadOptions) -> None:
        self._options = options
        self.rows = options.slice_rows

    def note(self, rows: int, seconds: float) -> None:
        """A slice of so many rows held the database for so long."""
        if seconds > self._options.slice_s:
            self.rows = max(self.rows // 2, min(self.rows, _SLICE_ROWS_MIN))
        elif rows == self.rows and seconds < self._options.slice_s / 3:
            self.rows = min(2 * self.rows, self._options.slice_rows_max)
