"""What is on its way out."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import Column, ForeignKey, Index, Integer, String
from sqlmodel import Field, SQLModel

from broker.storage.tables.columns import instant, octets, one_of, owner_column
from schemas.delivery import ChannelName, DeliveryState


class Lane(SQLModel, table=True):
    """One recipient on one channel: leased as a whole, so that its order holds and one slow recipient is one lane."""

    __tablename__: ClassVar[Any] = "lanes"
    __table_args__ = (one_of("channel", ChannelName),)
    id: str = Field(primary_key=True)
    channel: str
    owner: str = Field(sa_column=owner_column())
    contact: str | None = None
    """Whom at the owner, where the channel reaches people; by the owner's directory."""
    next_due_at: datetime | None = Field(default=None, sa_column=instant(nullable=True, index=True))
    leased_by: str | None = None
    leased_until: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    epoch: int = 0
    unreached_since: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    """Since when whoever it leads to was not reached, where the channel reaches people."""
    unreached_code: str | None = None


class Nudge(SQLModel, table=True):
    """Somebody was told to sign in because something is open, or nobody could be (``delivery`` empty)."""

    __tablename__: ClassVar[Any] = "nudges"
    item: str = Field(primary_key=True)
    """An alert, a review, a task; for what is not urgent, whose it is."""
    level: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    delivery: str = Field(primary_key=True)
    kind: str
    owner: str = Field(sa_column=owner_column(indexed=False))
    nudged_at: datetime = Field(sa_column=instant(nullable=False))


class Delivery(SQLModel, table=True):
    """One thing on its way out; its id is the idempotency key."""

    __tablename__: ClassVar[Any] = "deliveries"
    __table_args__ = (
        one_of("state", DeliveryState),
        Index("ix_deliveries_lane_due", "lane", "state", "next_attempt_at"),
    )
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    lane: str = Field(sa_column=Column(String, ForeignKey("lanes.id"), nullable=False))
    event_type: str
    alert_id: str | None = Field(default=None, foreign_key="alerts.id", index=True)
    reply_id: str | None = Field(default=None, foreign_key="replies.id", index=True)
    sealed: bytes = Field(sa_column=octets(nullable=False))
    state: str
    attempts: int = 0
    last_code: str | None = None
    created_at: datetime = Field(sa_column=instant(nullable=False))
    next_attempt_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    settled_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))


class AwaitedReceipt(SQLModel, table=True):
    """A provider took this delivery; what became of it is still to be asked."""

    __tablename__: ClassVar[Any] = "receipts"
    delivery: str = Field(primary_key=True, foreign_key="deliveries.id")
    owner: str = Field(sa_column=owner_column(indexed=False))
    sent_at: datetime = Field(sa_column=instant(nullable=False))
    ask_at: datetime = Field(sa_column=instant(nullable=False, index=True))
