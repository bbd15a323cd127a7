"""Alerts, replies and the patterns that alerts name."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import Boolean, Column, ForeignKey, Index, Integer, String, UniqueConstraint, false
from sqlmodel import Field, SQLModel

from broker.domain.patterns import PatternKind
from broker.storage.tables.columns import instant, octets, one_of, owner_column
from broker.storage.tables.words import AlertState, PatternState
from schemas.alert import NoticeKind


class Alert(SQLModel, table=True):
    """An alert to an authority: one per visit, authority and role."""

    __tablename__: ClassVar[Any] = "alerts"
    __table_args__ = (
        UniqueConstraint("visit_id", "authority", "role"),
        one_of("state", AlertState),
        Index("ix_alerts_owner_state_raised", "owner", "state", "raised_at"),
        Index("ix_alerts_state_due_by", "state", "due_by"),
    )
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=Column(String, ForeignKey("owners.id"), nullable=False))
    authority: str
    visit_id: str = Field(foreign_key="visits.id")
    role: str
    sealed: bytes = Field(sa_column=octets(nullable=False))
    held_by: str
    level: int = 0
    state: str
    raised_at: datetime = Field(sa_column=instant(nullable=False))
    due_by: datetime = Field(sa_column=instant(nullable=False))
    opened_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    acknowledged_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    acknowledged_by: str | None = None
    withdrawn_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    withdrawn_rule: str | None = None
    closed_rule: str | None = None
    told_state: str | None = None
    notices: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    is_restricted: bool = Field(default=False, sa_column=Column(Boolean, nullable=False, server_default=false()))
    """Where the person is, is shown to whom it was allocated alone."""


class AlertNotice(SQLModel, table=True):
    """What an authority was told of a visit after its alert."""

    __tablename__: ClassVar[Any] = "alert_notices"
    __table_args__ = (one_of("kind", NoticeKind),)
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column(indexed=False))
    alert_id: str = Field(foreign_key="alerts.id", index=True)
    kind: str
    is_urgent: bool = Field(sa_column=Column(Boolean, nullable=False))
    raised_at: datetime = Field(sa_column=instant(nullable=False))


class AlertEntry(SQLModel, table=True):
    """Which list entries an alert rests on, and which workers hold it."""

    __tablename__: ClassVar[Any] = "alert_entries"
    alert_id: str = Field(primary_key=True, foreign_key="alerts.id")
    entry_id: str = Field(primary_key=True, index=True)
    owner: str = Field(sa_column=owner_column())
    worker: str | None = Field(default=None, index=True)


class Reply(SQLModel, table=True):
    """A reply to a department."""

    __tablename__: ClassVar[Any] = "replies"
    __table_args__ = (Index("ix_replies_owner_replied", "owner", "replied_at"),)
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=Column(String, ForeignKey("owners.id"), nullable=False))
    visit_id: str = Field(foreign_key="visits.id", index=True)
    outcome: str
    sealed: bytes = Field(sa_column=octets(nullable=False))
    replied_at: datetime = Field(sa_column=instant(nullable=False))
    seen_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    """When a clinician said so of a match; nobody is asked to of another reply."""
    seen_by: str | None = None


class PatternRow(SQLModel, table=True):
    """One version of a rule for patterns: what an authority wishes to be named in its alerts, in its own words."""

    __tablename__: ClassVar[Any] = "pattern_rules"
    __table_args__ = (one_of("kind", PatternKind), one_of("state", PatternState))
    authority: str = Field(primary_key=True)
    kind: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column(indexed=False))
    count_min: int
    window_h: int
    words: str
    state: str
    previewed_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    changed_at: datetime = Field(sa_column=instant(nullable=False))
    changed_by: str
