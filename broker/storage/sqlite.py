"""SQLite's connection for SQLAlchemy: no journey between threads for a statement that takes less time than it.

aiosqlite sends cursor, statement, rows and the cursor's end to the database thread one by one. Each of these journeys
costs more than most statements, the more so on a busy machine, and a transaction that writes holds everybody else up
until its last one is over.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final, Self

import aiosqlite

TAKE_WRITE_LOCK: Final = "SELECT take_write_lock()"
"""The one statement that waits for other processes."""
TOGETHER: Final = ";\n"
"""Ends each of several statements that go to the database as one; their values are lists of rows, one for each."""
Result = tuple[list[Any], Any, int, int | None]
"""Rows, description, row count and last row id of a statement."""


class Connection(aiosqlite.Connection):
    """One connection. A statement goes to its thread once and comes back with all its rows.

    ``inline``: it runs where it is asked, for parts that have nothing else to do meanwhile, and for questions. What may
    wait, the lock and the commit, goes to the thread all the same; but a lock that is free is taken at once.

    ``lock`` is the open file of the write lock. It is let go of in the thread, as soon as the commit is done: on a busy
    machine the way back from there takes longer than the transaction, and others wait for the lock.
    """

    def __init__(self, path: str, *, inline: bool, lock: int, **options: Any) -> None:
        super().__init__(partial(sqlite3.connect, path, **options), iter_chunk_size=1)
        self._inline = inline
        self._lock = lock
        self._thread.daemon = True  # a process that ends does not wait for it

    def cursor(self) -> Cursor:  # type: ignore[override]  # SQLAlchemy asks no more of it than this
        """A cursor for one statement."""
        return Cursor(self)

    async def run(self, method: str, statement: str, values: Iterable[Any]) -> Result:
        """Run ``execute`` or ``executemany``."""
        if self._inline:
            if statement != TAKE_WRITE_LOCK:
                return self._run(method, statement, values)
            if self._lock_at_once():
                return [], None, -1, None
        result: Result = await self._execute(self._run, method, statement, values)  # type: ignore[no-untyped-call]
        return result

    async def commit(self) -> None:
        """Commit, and let others write."""
        await self._execute(self._commit)  # type: ignore[no-untyped-call]

    def _commit(self) -> None:
        self._conn.commit()
        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _lock_at_once(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _run(self, method: str, statement: str, values: Iterable[Any]) -> Result:
        cursor = self._conn.cursor()
        try:
            if statement.endswith(TOGETHER):
                for each, rows_of_it in zip(statement.split(TOGETHER)[:-1], values, strict=True):
                    cursor.executemany(each, rows_of_it)
                return [], None, -1, None
            getattr(cursor, method)(statement, values)
            rows = cursor.fetchall() if cursor.description else []
            return rows, cursor.description, cursor.rowcount, cursor.lastrowid
        finally:
            cursor.close()


class Cursor:
    """What SQLAlchemy asks of a cursor (PEP 249, with awaitables)."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows: list[Any] = []
        self.arraysize = 1
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None

    async def __aenter__(self) -> Self:
        return self

    async def execute(self, statement: str, values: Sequence[Any] = ()) -> Self:
        """Run a statement and fetch its rows."""
        return self._take(await self._connection.run("execute", statement, values))

    async def executemany(self, statement: str, values: Iterable[Sequence[Any]]) -> Self:
        """Run a statement once for each row of values."""
        return self._take(await self._connection.run("executemany", statement, values))

    async def fetchall(self) -> list[Any]:
        """The rows."""
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        """SQLite's own cursor was closed with the statement."""

    def _take(self, result: Result) -> Self:
        self._rows, self.description, self.rowcount, self.lastrowid = result
        return self
