"""Authorities' child lists, the files they came in, and what waits for a person."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import Boolean, Column, ForeignKey, Index, Integer, String, false, text
from sqlmodel import Field, SQLModel

from broker.storage.tables.columns import instant, octets, one_of, owner_column
from broker.storage.tables.words import ItemState
from schemas.upload import UploadFormat, UploadKind


class ListUpload(SQLModel, table=True):
    """One accepted upload of an authority's list; the same file sent again is another."""

    __tablename__: ClassVar[Any] = "list_uploads"
    __table_args__ = (
        one_of("kind", UploadKind),
        Index("ix_list_uploads_authority_file_hash", "authority", "file_hash"),
    )
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    authority: str = Field(index=True)
    file_hash: str
    uploaded_by: str
    uploaded_at: datetime = Field(sa_column=instant(nullable=False))
    rows_loaded: int
    rows_refused: int
    entries_taken: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    """Current entries that it ended, took back or gave another number."""
    kind: str = Field(
        default=UploadKind.CHANGES.value,
        sa_column=Column(String, nullable=False, server_default=UploadKind.CHANGES.value),
    )
    confirmed_by: str | None = None


class HeldUpload(SQLModel, table=True):
    """A file that would end or take back so much that a person decides first. Nothing of it counts meanwhile."""

    __tablename__: ClassVar[Any] = "held_uploads"
    __table_args__ = (
        one_of("state", ItemState),
        one_of("kind", UploadKind),
        one_of("format", UploadFormat),
        Index("ix_held_uploads_state_due_by", "state", "due_by"),
    )
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    authority: str
    kind: str
    format: str
    file_hash: str
    uploaded_by: str
    uploaded_at: datetime = Field(sa_column=instant(nullable=False))
    rows_good: int
    rows_refused: int
    ends: int
    deletes: int
    doubles: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default=text("0")))
    current: int
    held_by: str
    level: int = 0
    state: str
    due_by: datetime = Field(sa_column=instant(nullable=False))
    decision: str | None = None
    decided_by: str | None = None
    decided_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))


class HeldUploadPart(SQLModel, table=True):
    """A part of a held file, sealed; gone as soon as a person has decided."""

    __tablename__: ClassVar[Any] = "held_upload_parts"
    upload_id: str = Field(primary_key=True, foreign_key="held_uploads.id")
    number: int = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    sealed: bytes = Field(sa_column=octets(nullable=False))


class ListLanding(SQLModel, table=True):
    """A long file of which not every slice has landed; gone when all of it stands."""

    __tablename__: ClassVar[Any] = "list_landings"
    __table_args__ = (one_of("kind", UploadKind), one_of("format", UploadFormat))
    upload_id: str = Field(primary_key=True, foreign_key="list_uploads.id")
    owner: str = Field(sa_column=owner_column())
    authority: str
    kind: str
    format: str
    uploaded_by: str
    uploaded_at: datetime = Field(sa_column=instant(nullable=False))
    leased_until: datetime = Field(sa_column=instant(nullable=False))
    """Until then whoever lands it is alive; afterwards another goes on."""
    problem: str = Field(default="", sa_column=Column(String, nullable=False, server_default=text("''")))
    """Why it could not be landed when it was last tried; empty while nothing speaks against it."""
    failed_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    """Since when it cannot."""


class ListLandingPart(SQLModel, table=True):
    """A part of a file that lands, sealed."""

    __tablename__: ClassVar[Any] = "list_landing_parts"
    upload_id: str = Field(primary_key=True, foreign_key="list_landings.upload_id")
    number: int = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    sealed: bytes = Field(sa_column=octets(nullable=False))


class ListEntry(SQLModel, table=True):
    """One plan of one person on one authority's list; everything personal is sealed."""

    __tablename__: ClassVar[Any] = "list_entries"
    __table_args__ = (
        Index("ix_list_entries_authority_id", "authority", "id"),
        # With the owner: for a linked number SQLite would go through the authority's whole list instead.
        Index("ix_list_entries_nhs_index_owner", "nhs_index", "owner"),
    )
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    authority: str
    upload_id: str = Field(foreign_key="list_uploads.id")
    nhs_index: bytes = Field(sa_column=octets(nullable=False))
    sealed: bytes = Field(sa_column=octets(nullable=False))
    changed_at: datetime = Field(sa_column=instant(nullable=False))
    said_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    """When the newest file was sent that repeated the entry as it stands; None: none did."""
    blocks_version: int = Field(
        default=1, sa_column=Column(Integer, nullable=False, index=True, server_default=text("1"))
    )
    dead_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    """When its NHS number was found to be dead: from then on it finds nobody, until it is given another."""
    is_restricted: bool = Field(default=False, sa_column=Column(Boolean, nullable=False, server_default=false()))
    """What PDS said last of its number."""
    household_index: bytes | None = Field(default=None, sa_column=octets(nullable=True, index=True))
    """Under which the entries of one household meet, of one authority alone."""


class ListVersion(SQLModel, table=True):
    """One version of a list entry, from when until when the broker knew it so; ``sealed`` as the entry's."""

    __tablename__: ClassVar[Any] = "list_versions"
    entry_id: str = Field(primary_key=True)
    sequence: int = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column(indexed=False))
    authority: str
    nhs_index: bytes = Field(sa_column=octets(nullable=False, index=True))
    sealed: bytes = Field(sa_column=octets(nullable=False))
    upload_id: str
    known_from: datetime = Field(sa_column=instant(nullable=False))
    known_until: datetime | None = Field(default=None, sa_column=instant(nullable=True))


class ListConfirmation(SQLModel, table=True):
    """When an authority's list was confirmed by an upload: the habit is read from these."""

    __tablename__: ClassVar[Any] = "list_confirmations"
    authority: str = Field(primary_key=True)
    confirmed_at: datetime = Field(sa_column=instant(primary_key=True))
    owner: str = Field(sa_column=owner_column(indexed=False))


class MeshFile(SQLModel, table=True):
    """A message of the MESH mailbox: claimed, taken, acknowledged, answered, or kept for a person with its bytes."""

    __tablename__: ClassVar[Any] = "mesh_files"
    __table_args__ = (one_of("state", ItemState), Index("ix_mesh_files_state_due_by", "state", "due_by"))
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    sender: str = ""
    reason: str = ""
    detail: str = ""
    sealed: bytes | None = Field(default=None, sa_column=octets(nullable=True))
    answer_sealed: bytes | None = Field(default=None, sa_column=octets(nullable=True))
    answer_due_at: datetime | None = Field(default=None, sa_column=instant(nullable=True, index=True))
    answer_attempts: int = 0
    attempts: int = 0
    leased_until: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    held_by: str
    level: int = 0
    state: str
    kept_at: datetime = Field(sa_column=instant(nullable=False))
    due_by: datetime = Field(sa_column=instant(nullable=False))
    handled_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    acknowledged_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    answered_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    decided_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))
    decided_by: str | None = None
    decision: str | None = None


class ListDifference(SQLModel, table=True):
    """A current entry that a full list does not have: a person says whether the plan is over."""

    __tablename__: ClassVar[Any] = "list_differences"
    __table_args__ = (one_of("state", ItemState), Index("ix_list_differences_state_due_by", "state", "due_by"))
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=owner_column())
    authority: str
    entry_id: str
    upload_id: str = Field(foreign_key="list_uploads.id")
    held_by: str
    level: int = 0
    state: str
    opened_at: datetime = Field(sa_column=instant(nullable=False))
    due_by: datetime = Field(sa_column=instant(nullable=False))
    decision: str | None = None
    decided_by: str | None = None
    decided_at: datetime | None = Field(default=None, sa_column=instant(nullable=True))


class EntryBlock(SQLModel, table=True):
    """A keyed block under which an entry is found without an NHS number."""

    __tablename__: ClassVar[Any] = "entry_blocks"
    block: bytes = Field(sa_column=octets(primary_key=True))
    entry_id: str = Field(sa_column=Column(String, ForeignKey("list_entries.id"), primary_key=True, index=True))
    owner: str = Field(sa_column=owner_column(indexed=False))
