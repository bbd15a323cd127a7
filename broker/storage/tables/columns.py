"""How columns are declared, alike in every table."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

from sqlalchemy import CheckConstraint, Column, DateTime, Dialect, ForeignKey, LargeBinary, String, Table
from sqlalchemy.types import TypeDecorator
from sqlmodel import SQLModel


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC in, aware UTC out; SQLite would give back naive values."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive instants: they would silently be somebody's local time."""
        if value is None:
            return None
        assert value.tzinfo is not None, "naive instant"
        return value.astimezone(UTC)

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        """SQLite keeps text: written by the datetime itself, in the form SQLAlchemy reads."""
        if dialect.name != "sqlite":
            bind: Callable[[Any], Any] = super().bind_processor(dialect) or _unchanged
            return bind
        return _write_instant

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give SQLite's naive values their zone back."""
        if value is None or value.tzinfo is not None:
            return value
        return value.replace(tzinfo=UTC)


def _unchanged(value: Any) -> Any:
    return value


@lru_cache(maxsize=256)
def _write_instant(value: datetime | None) -> str | None:
    """One batch writes one instant into hundreds of rows."""
    if value is None:
        return None
    assert value.tzinfo is not None, "naive instant"
    return _write_utc(value.astimezone(UTC))


@lru_cache(maxsize=64)
def _write_utc(value: datetime) -> str:
    """Most instants of a batch are the one at which it is handled."""
    return value.replace(tzinfo=None).isoformat(" ", "microseconds")


def table(model: type[SQLModel]) -> Table:
    """The model's table, for statements over many rows."""
    return SQLModel.metadata.tables[str(model.__tablename__)]


def one_of(column: str, words: type[StrEnum]) -> CheckConstraint:
    """The column holds one of these words, as the database checks."""
    listed = ", ".join(f"'{word.value}'" for word in words)
    return CheckConstraint(f"{column} IN ({listed})", name=f"{column}_known")


def instant(**options: Any) -> Any:
    """A column for an instant."""
    return Column(UtcDateTime, **options)


def quoted(words: str) -> str:
    """A text as SQL writes it, for a default."""
    return f"'{words}'"


def octets(**options: Any) -> Any:
    """A column for bytes."""
    return Column(LargeBinary, **options)


def owner_column(*, indexed: bool = True) -> Any:
    """Whose the row is. Every message writes to several tables: those nobody reads by owner go without the index."""
    return Column(String, ForeignKey("owners.id"), nullable=False, index=indexed)


# Tables validate nothing, so nobody asks for their validators: building sixty of them took a tenth of every start.
SQLModel.model_config["defer_build"] = True
SQLModel.metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
