"""The database's schema, step by step. ``cpis-broker migrate`` brings it to the newest."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, MetaData
from sqlmodel import SQLModel

from broker.storage.database import Database

_HERE: Final = Path(__file__).parent


def schema() -> MetaData:
    """The schema the code expects."""
    return SQLModel.metadata


async def migrate(database: Database) -> str:
    """Bring the database to the newest schema; returns its revision."""
    async with database.writing() as connection:
        await connection.run_sync(_upgrade)
        return await connection.run_sync(_current)


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        # Two parts that start together must not both create the tables: the second waits as long as the first takes.
        connection.exec_driver_sql("SET LOCAL lock_timeout = '10min'")
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7215041)")
        connection.exec_driver_sql("SET LOCAL lock_timeout TO DEFAULT")
    command.upgrade(_config(connection), "head")


def _current(connection: Connection) -> str:
    return MigrationContext.configure(connection).get_current_revision() or ""
