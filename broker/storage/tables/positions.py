"""What was handled of the log, what could not be, and what is to be done later."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Column, Index, Integer, String, text
from sqlmodel import Field, SQLModel

from broker.storage.tables.columns import instant, octets, one_of, owner_column
from broker.storage.tables.words import ItemState
from schemas.record import PositionOutcome


class HandledMarker(SQLModel, table=True):
    """The mark of a message that was handled: the same message never counts twice."""

    __tablename__: ClassVar[Any] = "handled_markers"
    marker: bytes = Field(sa_column=octets(primary_key=True))
    handled_at: datetime = Field(sa_column=instant(nullable=False))


class HandledPosition(SQLModel, table=True):
    """What became of one log position."""

    __tablename__: ClassVar[Any] = "handled_positions"
    __table_args__ = (one_of("outcome", PositionOutcome),)
    topic: str = Field(primary_key=True)
    log_id: str = Field(primary_key=True)
    partition: int = Field(primary_key=True)
    position: int = Field(sa_column=Column(BigInteger, primary_key=True))
    owner: str = Field(sa_column=owner_column(indexed=False))
    marker: bytes = Field(sa_column=octets(nullable=False))
    visit_id: str | None = None
    outcome: str
    reason: str = ""
    handled_at: datetime = Field(sa_column=instant(nullable=False))
    replay_id: str | None = None


class StoredOffset(SQLModel, table=True):
    """Where a group reads on; moves in the transaction of the batch, and fences whoever lost the partition."""

    __tablename__: ClassVar[Any] = "stored_offsets"
    group_name: str = Field(primary_key=True)
    topic: str = Field(primary_key=True)
    partition: int = Field(primary_key=True)
    log_id: str
    first_offset: int = Field(sa_column=Column(BigInteger, nullable=False))
    next_offset: int = Field(sa_column=Column(BigInteger, nullable=False))
    skipped: int = Field(default=0, sa_column=Column(BigInteger, nullable=False, server_default="0"))
    stopped_cleanly: bool = False
    updated_at: datetime = Field(sa_column=instant(nullable=False))


class LogGapRow(SQLModel, table=True):
    """A time the log did not hold what was expected of it."""

    __tablename__: ClassVar[Any] = "log_gaps"
    id: int | None = Field(default=None, primary_key=True)
    group_name: str
    topic: str
    partition: int
    stored_log_id: str
    stored_offset: int = Field(sa_column=Column(BigInteger, nullable=False))
    found_log_id: str
    found_first: int = Field(sa_column=Column(BigInteger, nullable=False))
    found_end: int = Field(sa_column=Column(BigInteger, nullable=False))
    noticed_at: datetime = Field(sa_column=instant(nullable=False))


class PoisonAttempt(SQLModel, table=True):
    """A message that is being handled alone after an unclean stop, noted beforehand."""

    __tablename__: ClassVar[Any] = "poison_attempts"
    topic: str = Field(primary_key=True)
    log_id: str = Field(primary_key=True)
    partition: int = Field(primary_key=True)
    position: int = Field(sa_column=Column(BigInteger, primary_key=True))
    attempts: int


class Quarantined(SQLModel, table=True):
    """A message that could not be handled, with its bytes and the reason."""

    __tablename__: ClassVar[Any] = "quarantine"
    __table_args__ = (one_of("state", ItemState),)
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    topic: str
    log_id: str
    partition: int
    position: int = Field(sa_column=Column(BigInteger, nullable=False))
    reason: str
    detail: str = ""
    sealed: bytes = Field(sa_column=octets(nullable=False))
    held_by: str
    level: int = 0
    state: str
    kept_at: datetime = Field(sa_column=instant(nullable=False))
    due_by: datetime = Field(sa_column=instant(nullable=False))
    sender: str = Field(default="", sa_column=Column(String, nullable=False, server_default=text("''")))
    attempts: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    last_attempt_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    decided_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    decided_by: str | None = None
    decision: str | None = None


class Replay(SQLModel, table=True):
    """A person's request to handle messages again. ``ranges`` says how far their records were appended."""

    __tablename__: ClassVar[Any] = "replays"
    __table_args__ = (one_of("state", ItemState), Index("ix_replays_topic_asked", "topic", "asked"))
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    topic: str
    asked: str
    ranges: str
    requested_by: str
    reason: str = ""
    state: str
    requested_at: datetime = Field(sa_column=instant(nullable=False))
    done_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))


class Job(SQLModel, table=True):
    """Work for later, claimed like a lane."""

    __tablename__: ClassVar[Any] = "jobs"
    __table_args__ = (one_of("state", ItemState), Index("ix_jobs_kind_state_due_at", "kind", "state", "due_at"))
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column(indexed=False))
    kind: str
    subject: str
    state: str
    barrier: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True))
    created_at: datetime = Field(sa_column=instant(nullable=False))
    due_at: datetime = Field(sa_column=instant(nullable=False))
    leased_until: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    epoch: int = 0
    done_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
