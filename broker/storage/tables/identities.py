"""Whose number is whose, and who cannot alert."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, ClassVar

from sqlalchemy import Column, Date, ForeignKey, Index, String
from sqlmodel import Field, SQLModel

from broker.storage.tables.columns import instant, octets, one_of, owner_column
from broker.storage.tables.words import ItemState
from schemas.coverage import CoverageReason
from schemas.trace import TraceState


class EntryTrace(SQLModel, table=True):
    """What the Personal Demographics Service says of an entry's identity. ``identity`` is a keyed hash of what was
    compared; ``sealed`` the finding, or None before the first. ``code`` says why there is no newer one."""

    __tablename__: ClassVar[Any] = "entry_traces"
    __table_args__ = (one_of("state", TraceState),)
    entry_id: str = Field(sa_column=Column(String, ForeignKey("list_entries.id"), primary_key=True))
    owner: str = Field(sa_column=owner_column(indexed=False))
    state: str
    identity: bytes = Field(sa_column=octets(nullable=False))
    nhs_index: bytes = Field(sa_column=octets(nullable=False))
    sealed: bytes | None = Field(default=None, sa_column=octets(nullable=True))
    code: str | None = None
    attempts: int = 0
    opened_at: datetime = Field(sa_column=instant(nullable=False))
    checked_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    next_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))


class NumberAlias(SQLModel, table=True):
    """An NHS number that PDS says was superseded by another, for the entries of one owner; undone, never deleted."""

    __tablename__: ClassVar[Any] = "number_aliases"
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    old_index: bytes = Field(sa_column=octets(nullable=False, index=True))
    new_index: bytes = Field(sa_column=octets(nullable=False, index=True))
    sealed: bytes = Field(sa_column=octets(nullable=False))
    made_at: datetime = Field(sa_column=instant(nullable=False))
    undone_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    undone_by: str | None = None


class CoverageItem(SQLModel, table=True):
    """Something that keeps an entry, or a list, from alerting as it should. The list has no ``entry_id``."""

    __tablename__: ClassVar[Any] = "coverage_items"
    __table_args__ = (
        one_of("reason", CoverageReason),
        one_of("state", ItemState),
        Index("ix_coverage_items_owner_state", "owner", "state"),
        Index("ix_coverage_items_state_due_by", "state", "due_by"),
    )
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=Column(String, ForeignKey("owners.id"), nullable=False))
    entry_id: str | None = Field(
        default=None, sa_column=Column(String, ForeignKey("list_entries.id"), nullable=True, index=True)
    )
    reason: str
    held_by: str
    level: int = 0
    state: str
    opened_at: datetime = Field(sa_column=instant(nullable=False))
    due_by: datetime = Field(sa_column=instant(nullable=False))
    closed_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    noted_by: str | None = None


class CoverageDay(SQLModel, table=True):
    """How much of a list was covered on a London day, as last counted on it."""

    __tablename__: ClassVar[Any] = "coverage_days"
    authority: str = Field(primary_key=True)
    counted_on: date = Field(sa_column=Column(Date, primary_key=True))
    owner: str = Field(sa_column=owner_column(indexed=False))
    entries: int
    can_alert: int | None = None
    covered: int
    unverified: int
