"""Visits, what was heard of them, who looked, and what a person has to decide."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import Boolean, Column, ForeignKey, Index, Integer, String, UniqueConstraint, false, text
from sqlmodel import Field, SQLModel

from broker.storage.tables.columns import instant, octets, one_of, owner_column
from broker.storage.tables.words import ItemState, MissedCause


class Visit(SQLModel, table=True):
    """One visit of one person to one sender."""

    __tablename__: ClassVar[Any] = "visits"
    __table_args__ = (
        Index(
            "ix_visits_under_way",
            "heard_at",
            postgresql_where=text("closed_at IS NULL"),
            sqlite_where=text("closed_at IS NULL"),
        ),
    )
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    sender: str
    patient_index: bytes | None = Field(default=None, sa_column=octets(index=True))
    nhs_index: bytes | None = Field(default=None, sa_column=octets(index=True))
    birth_index: bytes | None = Field(default=None, sa_column=octets(index=True))
    mother_index: bytes | None = Field(default=None, sa_column=octets(index=True))
    reply_outcome: str | None = None
    corrections: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    state: str | None = Field(default=None, sa_column=Column(String, nullable=True))
    joined_into: str | None = Field(default=None, sa_column=Column(String, nullable=True))
    closed_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    continued_as: str | None = Field(default=None, sa_column=Column(String, nullable=True))
    opened_at: datetime = Field(sa_column=instant(nullable=False))
    heard_at: datetime = Field(sa_column=instant(nullable=False, index=True))


class PersonMessage(SQLModel, table=True):
    """What one message said of a person and of no visit: a visit takes it in. A merge also names the former patient."""

    __tablename__: ClassVar[Any] = "person_messages"
    marker: bytes = Field(sa_column=octets(primary_key=True))
    owner: str = Field(sa_column=owner_column(indexed=False))
    sender: str
    patient_index: bytes = Field(sa_column=octets(nullable=False, index=True))
    former_index: bytes | None = Field(default=None, sa_column=octets(nullable=True, index=True))
    said_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    received_at: datetime = Field(sa_column=instant(nullable=False, index=True))
    sealed: bytes = Field(sa_column=octets(nullable=False))


class VisitBlock(SQLModel, table=True):
    """A keyed block under which a visit without an NHS number is found."""

    __tablename__: ClassVar[Any] = "visit_blocks"
    block: bytes = Field(sa_column=octets(primary_key=True))
    visit_id: str = Field(sa_column=Column(String, ForeignKey("visits.id"), primary_key=True, index=True))
    owner: str = Field(sa_column=owner_column(indexed=False))


class VisitMessage(SQLModel, table=True):
    """What one message said of a visit; the visit's thread."""

    __tablename__: ClassVar[Any] = "visit_messages"
    visit_id: str = Field(primary_key=True, foreign_key="visits.id")
    marker: bytes = Field(sa_column=octets(primary_key=True))
    owner: str = Field(sa_column=owner_column(indexed=False))
    event: str
    said_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    received_at: datetime = Field(sa_column=instant(nullable=False))
    sealed: bytes = Field(sa_column=octets(nullable=False))


class Access(SQLModel, table=True):
    """Somebody's look at one person's record. ``is_counted``: the first of its author within 24 hours, from
    unscheduled care.
    """

    __tablename__: ClassVar[Any] = "accesses"
    __table_args__ = (Index("ix_accesses_nhs_index_at", "nhs_index", "at"),)
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column(indexed=False))
    nhs_index: bytes = Field(sa_column=octets(nullable=False))
    author_index: bytes = Field(sa_column=octets(nullable=False))
    at: datetime = Field(sa_column=instant(nullable=False))
    is_unscheduled: bool
    is_counted: bool
    is_withheld: bool = Field(default=False, sa_column=Column(Boolean, nullable=False, server_default=false()))
    """Of a person who was restricted then: where it was stays in the protected view (ADR 0040)."""
    sealed: bytes = Field(sa_column=octets(nullable=False))


class Review(SQLModel, table=True):
    """A doubt about identity that a person decides."""

    __tablename__: ClassVar[Any] = "reviews"
    __table_args__ = (
        UniqueConstraint("visit_id", "entry_id"),
        one_of("state", ItemState),
        Index("ix_reviews_state_due_by", "state", "due_by"),
    )
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    visit_id: str = Field(foreign_key="visits.id")
    entry_id: str
    sealed: bytes = Field(sa_column=octets(nullable=False))
    held_by: str
    level: int = 0
    state: str
    opened_at: datetime = Field(sa_column=instant(nullable=False))
    due_by: datetime = Field(sa_column=instant(nullable=False))
    decided_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    decided_by: str | None = None
    decision: str | None = None
    decision_sealed: bytes | None = Field(default=None, sa_column=octets(nullable=True))
    is_restricted: bool = Field(default=False, sa_column=Column(Boolean, nullable=False, server_default=false()))


class MissedAlert(SQLModel, table=True):
    """An alert that should have been raised and was not, found by night."""

    __tablename__: ClassVar[Any] = "missed_alerts"
    __table_args__ = (
        UniqueConstraint("visit_id", "authority"),
        one_of("state", ItemState),
        one_of("cause", MissedCause),
        Index("ix_missed_alerts_owner_state", "owner", "state"),
    )
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=Column(String, ForeignKey("owners.id"), nullable=False))
    authority: str
    visit_id: str = Field(foreign_key="visits.id")
    entry_id: str
    cause: str
    held_by: str
    state: str
    visited_at: datetime = Field(sa_column=instant(nullable=False))
    found_at: datetime = Field(sa_column=instant(nullable=False))
    alert_id: str | None = None
    decided_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    decided_by: str | None = None
    decision: str | None = None
