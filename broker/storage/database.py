"""The database engines and their transactions: SQLite for one machine, PostgreSQL for several."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Table, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from broker.storage.sqlite import TAKE_WRITE_LOCK, Connection

SQLITE_BUSY_TIMEOUT_MS = 10_000
SQLITE_CACHE_KIB: Final = 65_536
"""Of the connection that writes, at most. Blind indexes stand in no order: with SQLite's own 2 MiB each message reads
pages of theirs from the file again."""
POSTGRES_SETTINGS: Final = {
    # A worker that hangs in the middle of a transaction must not hold up those who take over from it.
    "idle_in_transaction_session_timeout": "15s",
    # Who waits for a lock longer than that tries again and says so, instead of falling silent.
    "lock_timeout": "8s",
}
POSTGRES_STATING_SETTINGS: Final = {
    **POSTGRES_SETTINGS,
    # Long statements of a few forms: to plan them anew each time costs several times what they do.
    "plan_cache_mode": "force_generic_plan",
    # Each finds its rows by an index; a plan made while a table was empty would go through all of it later.
    "enable_seqscan": "off",
}
RESTED_S: Final = 1.0
"""A connection that has rested for so long is tested before it is used: the server may have gone meanwhile."""
_TRANSIENT_SQLSTATES: Final = ("08", "25", "28", "3D", "3F", "40", "42", "53", "55", "57", "58", "XX")
"""SQLSTATE classes that say nothing about the data: connection, transaction, credentials, a database or schema that is
not there, deadlock, a table or right that is missing (a migration that was forgotten), resources, locks, operator,
system."""


class Database:
    """Two ways in: ``reading`` and ``writing``, each one transaction. Errors never carry bound values.

    PostgreSQL transactions are READ COMMITTED: each statement sees what was committed before it, on which
    "marker before lists" (ADR 0005) rests. SQLite takes a blocking file lock before BEGIN IMMEDIATE: several
    processes on one file starve each other otherwise.
    """

    def __init__(
        self, url: str, *, connections_max: int = 10, statement_timeout_s: float = 30.0, inline: bool = False
    ) -> None:
        """``inline``: SQLite's statements run in the event loop itself, which has nothing else to do meanwhile."""
        self.url = url
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        if self.is_sqlite:
            self._reader = _sqlite_engine(url, write=False, connections_max=connections_max, inline=inline)
            self._writer = _sqlite_engine(url, write=True, connections_max=1, inline=inline)
            self._brief = self._writer if inline else _sqlite_engine(url, write=True, connections_max=1, inline=True)
            self._stating = self._reader.execution_options(isolation_level="AUTOCOMMIT")
        else:
            self._reader = self._writer = self._brief = _postgres_engine(
                url, POSTGRES_SETTINGS, connections_max=connections_max, timeout_s=statement_timeout_s
            )
            self._stating = _postgres_engine(
                url, POSTGRES_STATING_SETTINGS, connections_max=1, timeout_s=statement_timeout_s
            ).execution_options(isolation_level="AUTOCOMMIT")

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads."""
        async with self._reader.begin() as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that writes; committed at the end of the block, rolled back on any error."""
        async with self._writer.begin() as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def writing_briefly(self) -> AsyncIterator[AsyncConnection]:
        """As ``writing``, for a few short statements that somebody waits for: SQLite's run in the event loop itself.

        To send one to the database thread and back takes longer than the statement, for the loop as well. The lock is
        waited for in the thread, and the commit too.
        """
        async with self._brief.begin() as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def stating(self) -> AsyncIterator[AsyncConnection]:
        """The one connection on which every statement is a transaction of its own: it is durable once it returns."""
        async with self._stating.connect() as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def connecting(self) -> AsyncIterator[AsyncConnection]:
        """A connection without a transaction, to listen on."""
        async with self._reader.connect() as connection:
            yield connection

    async def answers(self) -> bool:
        """Whether the database answers a trivial question."""
        try:
            async with self._reader.connect() as connection:
                await connection.execute(text("select 1"))
        except Exception:
            return False
        return True

    async def close(self) -> None:
        """Close every connection."""
        for engine in {self._reader, self._writer, self._brief, self._stating}:
            await engine.dispose()


def upsert(connection: AsyncConnection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that can say ON CONFLICT; both dialects spell it alike."""
    return upsert_on(connection.dialect.name, table)


def upsert_on(dialect: str, table: Table) -> postgresql.Insert | sqlite.Insert:
    """As ``upsert``, for a statement that is built once for each dialect."""
    if dialect == "sqlite":
        return sqlite.insert(table)
    return postgresql.insert(table)


def _postgres_engine(
    url: str, server_settings: Mapping[str, str], *, connections_max: int, timeout_s: float
) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=connections_max,
        max_overflow=0,
        pool_timeout=timeout_s,
        hide_parameters=True,
        connect_args={"timeout": 5, "command_timeout": timeout_s, "server_settings": server_settings},
    )
    _test_rested(engine)
    return engine


def _test_rested(engine: AsyncEngine) -> None:
    """Test the connections that come out of the pool, but not those just used: a test is three round trips."""
    dialect = engine.sync_engine.dialect
    assert dialect.dbapi is not None
    failed = dialect.dbapi.Error

    @event.listens_for(engine.sync_engine, "checkin")
    def note(_: Any, record: ConnectionPoolEntry) -> None:
        record.info["rests_since"] = time.monotonic()

    @event.listens_for(engine.sync_engine, "checkout")
    def test(connection: Any, record: ConnectionPoolEntry, _: Any) -> None:
        if connection.driver_connection.is_closed():
            raise InvalidatePoolError
        if time.monotonic() - record.info.get("rests_since", time.monotonic()) < RESTED_S:
            return
        try:
            dialect.do_ping(connection)
        except failed as error:
            # The pool then drops all that were opened before, and takes a new one.
            raise InvalidatePoolError from error


def _sqlite_engine(url: str, *, write: bool, connections_max: int, inline: bool) -> AsyncEngine:
    path = Path(make_url(url).database or "")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)  # SQLite gives its other files the mode of this one
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    unclosed = [lock]
    engine = create_async_engine(
        url,
        pool_size=connections_max,
        max_overflow=0,
        hide_parameters=True,
        connect_args={
            "timeout": SQLITE_BUSY_TIMEOUT_MS / 1000,
            "isolation_level": None,
            "async_creator_fn": partial(Connection, inline=inline, lock=lock),
        },
    )

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _: ConnectionPoolEntry) -> None:
        # A function of SQL, so that the wait happens in the database thread and not in the event loop.
        connection.create_function("take_write_lock", 0, partial(fcntl.flock, lock, fcntl.LOCK_EX))
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode")
        if cursor.fetchone()[0] != "wal":
            # SQLite does not wait for others when it changes the mode: parts that start together take turns.
            cursor.execute(TAKE_WRITE_LOCK)
            cursor.execute("PRAGMA journal_mode=WAL")
            fcntl.flock(lock, fcntl.LOCK_UN)
        if write:
            cursor.execute(f"PRAGMA cache_size=-{SQLITE_CACHE_KIB}")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        if write:
            connection.exec_driver_sql(TAKE_WRITE_LOCK)
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("BEGIN")

    if write:

        @event.listens_for(engine.sync_engine, "checkin")
        def release(_: Any, __: ConnectionPoolEntry) -> None:
            fcntl.flock(lock, fcntl.LOCK_UN)

    @event.listens_for(engine.sync_engine, "engine_disposed")
    def close(_: Any) -> None:
        # Once only: the number may be another file's by then.
        while unclosed:
            os.close(unclosed.pop())

    return engine


def is_database_outage(error: BaseException) -> bool:
    """Whether an error says that the database is away or busy, and nothing about the data."""
    if isinstance(error, DBAPIError):
        # asyncpg reports arguments it cannot encode as interface errors that are ValueErrors as well.
        if isinstance(getattr(error.orig, "__cause__", None), ValueError):
            return False
        state = str(getattr(error.orig, "sqlstate", None) or "")
        away = isinstance(error, (InterfaceError, OperationalError)) or error.connection_invalidated
        return away if not state else state.startswith(_TRANSIENT_SQLSTATES)
    return isinstance(error, (PoolTimeout, OSError, TimeoutError))
