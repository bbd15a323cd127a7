"""Which schema the database has, and which the code expects; asked by every command, so without loading Alembic."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, column, inspect, select, table

from broker.storage.database import Database

_STEPS: Final = Path(__file__).parent / "migrations" / "versions"
_STEP_LETTERS: Final = 4
_VERSION: Final = table("alembic_version", column("version_num"))


async def is_current(database: Database) -> bool:
    """Whether the database has the newest schema."""
    async with database.reading() as connection:
        return await connection.run_sync(_read_revision) == newest()


def newest() -> str:
    """The newest revision there is: files of steps begin with its number."""
    return max(path.name[:_STEP_LETTERS] for path in _STEPS.glob("[0-9]*.py"))


def _read_revision(connection: Connection) -> str | None:
    """What Alembic noted; None in a database that never was migrated."""
    if not inspect(connection).has_table(_VERSION.name):
        return None
    found: str | None = connection.execute(select(_VERSION.c.version_num)).scalar_one_or_none()
    return found
