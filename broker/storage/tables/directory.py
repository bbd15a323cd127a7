"""Who there is: owners, authorities, sites, workers, logins."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, ClassVar

from sqlalchemy import Boolean, Column, Integer, String, false, text, true
from sqlmodel import Field, SQLModel

from broker.storage.tables.columns import instant, octets, one_of, owner_column, quoted
from schemas.directory import CareSetting, KeptAnswer
from schemas.office_hours import OFFICE_HOURS_USUAL


class Owner(SQLModel, table=True):
    """Who rows belong to."""

    __tablename__: ClassVar[Any] = "owners"
    id: str = Field(primary_key=True)
    name: str


class AuthorityRow(SQLModel, table=True):
    """A local authority. ``sealed`` holds its secrets."""

    __tablename__: ClassVar[Any] = "authorities"
    code: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    name: str
    office_telephone: str
    emergency_telephone: str
    webhook_url: str | None = None
    alerts_for_ended_plans: bool = Field(default=True, sa_column=Column(Boolean, nullable=False, server_default=true()))
    sealed: bytes = Field(sa_column=octets(nullable=False))
    office_hours: str = Field(
        default=OFFICE_HOURS_USUAL,
        sa_column=Column(String, nullable=False, server_default=text(quoted(OFFICE_HOURS_USUAL))),
    )
    list_version: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    list_credential_digest: bytes | None = Field(default=None, sa_column=octets(nullable=True))


class SiteRow(SQLModel, table=True):
    """An organisation that sends attendances. ``sealed`` holds its secrets."""

    __tablename__: ClassVar[Any] = "sites"
    __table_args__ = (one_of("not_understood", KeptAnswer),)
    code: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    name: str
    telephone: str | None = None
    authorities: str = ""
    reply_host: str | None = None
    reply_port: int | None = None
    replies_for_adults: bool = False
    peers: str = ""
    not_understood: str = KeptAnswer.ACCEPT.value
    registers_by: str = Field(default="", sa_column=Column(String, nullable=False, server_default=text("''")))
    credential_digest: bytes = Field(sa_column=octets(nullable=False))
    sealed: bytes = Field(sa_column=octets(nullable=False))
    reply_url: str | None = None
    care_setting: str = Field(
        default=CareSetting.NOT_CLASSIFIED.value,
        sa_column=Column(String, nullable=False, server_default=text(quoted(CareSetting.NOT_CLASSIFIED))),
    )
    notices_suppressed: bool = Field(default=False, sa_column=Column(Boolean, nullable=False, server_default=false()))


class WorkerRow(SQLModel, table=True):
    """A social worker in an authority's directory; the name is sealed."""

    __tablename__: ClassVar[Any] = "workers"
    authority: str = Field(primary_key=True)
    code: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    team: str | None = None
    sealed: bytes = Field(sa_column=octets(nullable=False))


class LoginRow(SQLModel, table=True):
    """A named login with one role at one owner; the person's name is sealed."""

    __tablename__: ClassVar[Any] = "logins"
    login: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    role: str
    worker: str | None = None
    sealed: bytes = Field(sa_column=octets(nullable=False))
    reach_sealed: bytes | None = Field(default=None, sa_column=octets(nullable=True))
    """Where the person is told to sign in."""
    password_hash: str
    failures: int = 0
    rests_until: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    disabled_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))


class SessionRow(SQLModel, table=True):
    """A signed-in person; only a digest of the token is kept."""

    __tablename__: ClassVar[Any] = "sessions"
    token_digest: bytes = Field(sa_column=octets(primary_key=True))
    owner: str = Field(sa_column=owner_column())
    login: str = Field(foreign_key="logins.login")
    created_at: datetime = Field(sa_column=instant(nullable=False))
    used_at: datetime = Field(sa_column=instant(nullable=False))


class TestFeed(SQLModel, table=True):
    """A day on which a sender marked messages as tests."""

    __test__: ClassVar[bool] = False
    __tablename__: ClassVar[Any] = "test_feeds"
    sender: str = Field(primary_key=True)
    seen_on: date = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column(indexed=False))
