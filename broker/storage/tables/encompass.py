"""Operation Encompass: forces, schools, incidents, notices."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, ClassVar

from sqlalchemy import Column, Date, ForeignKey, ForeignKeyConstraint, Index, String, UniqueConstraint
from sqlmodel import Field, SQLModel

from broker.storage.tables.columns import instant, octets, one_of, owner_column
from broker.storage.tables.words import ItemState
from schemas.encompass import (
    ContactRole,
    ContentProfile,
    DayKind,
    EstablishmentKind,
    EstablishmentStatus,
    NoticeState,
    Release,
    TaskKind,
    UnderSchoolAge,
)


class ForceRow(SQLModel, table=True):
    """A police force that tells of incidents, and what it has agreed with its authorities."""

    __tablename__: ClassVar[Any] = "forces"
    __table_args__ = (
        one_of("release", Release),
        one_of("profile", ContentProfile),
        one_of("under_school_age", UnderSchoolAge),
    )
    code: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    name: str
    statement: str
    withdrawn_statement: str
    release: str
    profile: str
    under_school_age: str
    confirmed_days_max: int
    training_required: bool
    peers: str = ""
    credential_digest: bytes = Field(sa_column=octets(nullable=False))


class EstablishmentRow(SQLModel, table=True):
    """An educational establishment. ``sealed`` holds its secrets."""

    __tablename__: ClassVar[Any] = "establishments"
    __table_args__ = (one_of("kind", EstablishmentKind), one_of("status", EstablishmentStatus))
    urn: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    name: str
    kind: str
    authority: str = Field(index=True)
    status: str
    merged_into: str | None = None
    starts_at_local: str | None = None
    office_telephone: str | None = None
    sealed: bytes = Field(sa_column=octets(nullable=False))


class SafeguardingContactRow(SQLModel, table=True):
    """A person in an establishment's verified directory; name, mailbox and telephone are sealed."""

    __tablename__: ClassVar[Any] = "safeguarding_contacts"
    __table_args__ = (one_of("role", ContactRole),)
    urn: str = Field(sa_column=Column(String, ForeignKey("establishments.urn"), primary_key=True))
    contact_id: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    role: str
    confirmed_on: date | None = Field(default=None, sa_column=Column(Date, nullable=True))
    trained_on: date | None = Field(default=None, sa_column=Column(Date, nullable=True))
    sealed: bytes = Field(sa_column=octets(nullable=False))


class CalendarRow(SQLModel, table=True):
    """Days of one kind of an authority, or of one establishment (``urn`` empty: of the whole authority)."""

    __tablename__: ClassVar[Any] = "school_days"
    __table_args__ = (one_of("kind", DayKind),)
    authority: str = Field(primary_key=True)
    urn: str = Field(primary_key=True)
    kind: str = Field(primary_key=True)
    first_on: date = Field(sa_column=Column(Date, primary_key=True))
    last_on: date = Field(sa_column=Column(Date, nullable=False))
    owner: str = Field(sa_column=owner_column(indexed=False))


class PupilRow(SQLModel, table=True):
    """A child on an authority's list of pupils, found by blocks."""

    __tablename__: ClassVar[Any] = "pupils"
    authority: str = Field(primary_key=True)
    pupil_id: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    sealed: bytes = Field(sa_column=octets(nullable=False))


class PupilBlock(SQLModel, table=True):
    """A keyed block under which a pupil is found who is written down a little differently."""

    __tablename__: ClassVar[Any] = "pupil_blocks"
    __table_args__ = (
        ForeignKeyConstraint(["authority", "pupil_id"], ["pupils.authority", "pupils.pupil_id"], ondelete="CASCADE"),
    )
    block: bytes = Field(sa_column=octets(primary_key=True))
    authority: str = Field(primary_key=True)
    pupil_id: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column(indexed=False))


class Incident(SQLModel, table=True):
    """A police incident as its newest version stands, or an attendance for the hub; ``sealed`` is what it says."""

    __tablename__: ClassVar[Any] = "incidents"
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    force: str
    version: int
    is_withdrawn: bool
    sealed: bytes = Field(sa_column=octets(nullable=False))
    found_sealed: bytes | None = Field(default=None, sa_column=octets(nullable=True))
    """Establishments that a person found, or refused, by child."""
    received_at: datetime = Field(sa_column=instant(nullable=False, index=True))
    reported_at: datetime = Field(sa_column=instant(nullable=False, index=True))
    released_version: int | None = None
    released_by: str | None = None
    suppressed_by: str | None = None
    suppressed_reason: str | None = None
    referral_sealed: bytes | None = Field(default=None, sa_column=octets(nullable=True))
    """What the hub sees of an attendance; None: the police told of it."""
    released_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    released_gateway: str | None = None
    release_sealed: bytes | None = Field(default=None, sa_column=octets(nullable=True))
    """Why the hub released it, in its own words."""
    authoriser_sealed: bytes | None = Field(default=None, sa_column=octets(nullable=True))
    """Who authorised that it is kept back."""


class IncidentVersion(SQLModel, table=True):
    """Every message of an incident, in the order of arrival."""

    __tablename__: ClassVar[Any] = "incident_versions"
    marker: bytes = Field(sa_column=octets(primary_key=True))
    incident_id: str = Field(sa_column=Column(String, ForeignKey("incidents.id"), nullable=False, index=True))
    owner: str = Field(sa_column=owner_column(indexed=False))
    version: int
    reception: str
    sealed: bytes = Field(sa_column=octets(nullable=False))
    received_at: datetime = Field(sa_column=instant(nullable=False))


class NoticeRow(SQLModel, table=True):
    """What one establishment is told of one incident; ``sealed`` is all of it, with who is told and who is not."""

    __tablename__: ClassVar[Any] = "school_notices"
    __table_args__ = (
        UniqueConstraint("incident_id", "urn"),
        one_of("state", NoticeState),
        Index("ix_school_notices_owner_state", "owner", "state"),
    )
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=Column(String, ForeignKey("owners.id"), nullable=False))
    incident_id: str = Field(sa_column=Column(String, ForeignKey("incidents.id"), nullable=False))
    force: str = Field(index=True)
    urn: str
    authority: str
    version: int
    state: str
    hold: str | None = None
    flag: str | None = None
    calendar_is_assumed: bool
    sealed: bytes = Field(sa_column=octets(nullable=False))
    planned_at: datetime = Field(sa_column=instant(nullable=False))
    send_at: datetime = Field(sa_column=instant(nullable=False))
    remind_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    due_by: datetime = Field(sa_column=instant(nullable=False))
    next_at: datetime | None = Field(default=None, sa_column=instant(nullable=True, index=True))
    """When the jobs part has to do something about it."""
    sent_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    """When its first version was sent."""
    reminded_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    rung_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    opened_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    acknowledged_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    acknowledged_by: str | None = None


class NoticeSending(SQLModel, table=True):
    """One version of a notice as it was sent, or taken back: the proof, which no later version changes."""

    __tablename__: ClassVar[Any] = "notice_sendings"
    notice_id: str = Field(sa_column=Column(String, ForeignKey("school_notices.id"), primary_key=True))
    version: int = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    due_by: datetime = Field(sa_column=instant(nullable=False))
    sent_at: datetime = Field(sa_column=instant(nullable=False))
    sealed: bytes = Field(sa_column=octets(nullable=False))


class EncompassTask(SQLModel, table=True):
    """What a person has to do because of an incident; ``sealed`` says what and of whom."""

    __tablename__: ClassVar[Any] = "encompass_tasks"
    __table_args__ = (
        one_of("kind", TaskKind),
        one_of("state", ItemState),
        Index("ix_encompass_tasks_owner_state", "owner", "state"),
        Index("ix_encompass_tasks_state_due_by", "state", "due_by"),
    )
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=Column(String, ForeignKey("owners.id"), nullable=False))
    incident_id: str = Field(sa_column=Column(String, ForeignKey("incidents.id"), nullable=False, index=True))
    kind: str
    urn: str | None = None
    sealed: bytes = Field(sa_column=octets(nullable=False))
    held_by: str
    level: int = 0
    state: str
    opened_at: datetime = Field(sa_column=instant(nullable=False))
    due_by: datetime = Field(sa_column=instant(nullable=False))
    decided_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    decided_by: str | None = None
    decision: str | None = None


class SchoolRecord(SQLModel, table=True):
    """What a school did about a notice: its own record, which nobody else reads."""

    __tablename__: ClassVar[Any] = "school_records"
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    notice_id: str = Field(sa_column=Column(String, ForeignKey("school_notices.id"), nullable=False, index=True))
    sealed: bytes = Field(sa_column=octets(nullable=False))
    written_at: datetime = Field(sa_column=instant(nullable=False))
    written_by: str
