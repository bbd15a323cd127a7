"""Every table. Personal fields stand only in ``sealed`` columns (AES-GCM envelopes) and in blind indexes.

Every row carries its owner: the authority, organisation or, for what belongs to nobody else, the broker's operators.
SQLModel's table models do not validate; closed vocabularies are held by CHECK constraints here.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    UniqueConstraint,
    false,
    text,
    true,
)
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

from broker.domain.patterns import PatternKind
from schemas.alert import NoticeKind
from schemas.coverage import CoverageReason
from schemas.delivery import ChannelName, DeliveryState
from schemas.directory import CareSetting, KeptAnswer
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
from schemas.office_hours import OFFICE_HOURS_USUAL
from schemas.record import PositionOutcome
from schemas.trace import TraceState
from schemas.upload import UploadFormat, UploadKind


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


def _write_instant(value: datetime | None) -> str | None:
    if value is None:
        return None
    assert value.tzinfo is not None, "naive instant"
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


class AlertState(StrEnum):
    """What the human did, as far as the ledger counts it."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    CLOSED = "closed"


ENTRY_TAKEN_BACK = "entry_taken_back"
"""The rule by which alerts and reviews are closed whose entry was an error."""


ENTRY_CORRECTED = "entry_corrected"
"""The rule by which alerts are closed whose entry was given another NHS number."""
CONFIRMATION_UNDONE = "confirmation_undone"
"""The rule by which alerts are closed that rested on what a person confirmed and took back."""


IDENTITY_CORRECTED = "identity_corrected"
"""The rule by which alerts are closed whose visit turned out to be somebody else's."""


VISITS_JOINED = "visits_joined"
"""The rule by which alerts and reviews are closed whose visit was found to be another that has its own."""


class ReviewDecision(StrEnum):
    """What a person decided of a review."""

    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    UNDONE = "undone"
    """Confirmed, and taken back: counts as rejected."""


class MissedCause(StrEnum):
    """Why an alert was not raised when the person came, as far as the lists and the messages tell."""

    LISTED_AFTER = "listed_after"
    LIST_NUMBER_CORRECTED = "list_number_corrected"
    LIST_ROW_CORRECTED = "list_row_corrected"
    VISIT_CORRECTED = "visit_corrected"
    UNEXPLAINED = "unexplained"


class ItemState(StrEnum):
    """States of reviews, missed alerts, quarantined messages, replays, jobs and coverage items."""

    OPEN = "open"
    DONE = "done"


def table(model: type[SQLModel]) -> Table:
    """The model's table, for statements over many rows."""
    return SQLModel.metadata.tables[str(model.__tablename__)]


def _one_of(column: str, words: type[StrEnum]) -> CheckConstraint:
    listed = ", ".join(f"'{word.value}'" for word in words)
    return CheckConstraint(f"{column} IN ({listed})", name=f"{column}_known")


def _at(**options: Any) -> Any:
    return Column(UtcDateTime, **options)


def _quote(words: str) -> str:
    return f"'{words}'"


def _bytes(**options: Any) -> Any:
    return Column(LargeBinary, **options)


def _owner(*, indexed: bool = True) -> Any:
    """Every message writes to several tables: those that nobody reads by owner go without the index."""
    return Column(String, ForeignKey("owners.id"), nullable=False, index=indexed)


SQLModel.metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}


class Owner(SQLModel, table=True):
    """Who rows belong to."""

    __tablename__: ClassVar[Any] = "owners"
    id: str = Field(primary_key=True)
    name: str


class AuthorityRow(SQLModel, table=True):
    """A local authority. ``sealed`` holds its secrets."""

    __tablename__: ClassVar[Any] = "authorities"
    code: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    name: str
    office_telephone: str
    emergency_telephone: str
    webhook_url: str | None = None
    alerts_for_ended_plans: bool = Field(default=True, sa_column=Column(Boolean, nullable=False, server_default=true()))
    sealed: bytes = Field(sa_column=_bytes(nullable=False))
    office_hours: str = Field(
        default=OFFICE_HOURS_USUAL,
        sa_column=Column(String, nullable=False, server_default=text(_quote(OFFICE_HOURS_USUAL))),
    )
    list_version: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    list_credential_digest: bytes | None = Field(default=None, sa_column=_bytes(nullable=True))


class SiteRow(SQLModel, table=True):
    """An organisation that sends attendances. ``sealed`` holds its secrets."""

    __tablename__: ClassVar[Any] = "sites"
    __table_args__ = (_one_of("not_understood", KeptAnswer),)
    code: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    name: str
    telephone: str | None = None
    authorities: str = ""
    reply_host: str | None = None
    reply_port: int | None = None
    replies_for_adults: bool = False
    peers: str = ""
    not_understood: str = KeptAnswer.ACCEPT.value
    registers_by: str = Field(default="", sa_column=Column(String, nullable=False, server_default=text("''")))
    credential_digest: bytes = Field(sa_column=_bytes(nullable=False))
    sealed: bytes = Field(sa_column=_bytes(nullable=False))
    reply_url: str | None = None
    care_setting: str = Field(
        default=CareSetting.NOT_CLASSIFIED.value,
        sa_column=Column(String, nullable=False, server_default=text(_quote(CareSetting.NOT_CLASSIFIED))),
    )
    notices_suppressed: bool = Field(default=False, sa_column=Column(Boolean, nullable=False, server_default=false()))


class WorkerRow(SQLModel, table=True):
    """A social worker in an authority's directory; the name is sealed."""

    __tablename__: ClassVar[Any] = "workers"
    authority: str = Field(primary_key=True)
    code: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    team: str | None = None
    sealed: bytes = Field(sa_column=_bytes(nullable=False))


class LoginRow(SQLModel, table=True):
    """A named login with one role at one owner; the person's name is sealed."""

    __tablename__: ClassVar[Any] = "logins"
    login: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    role: str
    worker: str | None = None
    sealed: bytes = Field(sa_column=_bytes(nullable=False))
    password_hash: str
    failures: int = 0
    rests_until: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    disabled_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))


class SessionRow(SQLModel, table=True):
    """A signed-in person; only a digest of the token is kept."""

    __tablename__: ClassVar[Any] = "sessions"
    token_digest: bytes = Field(sa_column=_bytes(primary_key=True))
    owner: str = Field(sa_column=_owner())
    login: str = Field(foreign_key="logins.login")
    created_at: datetime = Field(sa_column=_at(nullable=False))
    used_at: datetime = Field(sa_column=_at(nullable=False))


class ListUpload(SQLModel, table=True):
    """One accepted upload of an authority's list; the same file sent again is another."""

    __tablename__: ClassVar[Any] = "list_uploads"
    __table_args__ = (
        _one_of("kind", UploadKind),
        Index("ix_list_uploads_authority_file_hash", "authority", "file_hash"),
    )
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    authority: str = Field(index=True)
    file_hash: str
    uploaded_by: str
    uploaded_at: datetime = Field(sa_column=_at(nullable=False))
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
        _one_of("state", ItemState),
        _one_of("kind", UploadKind),
        _one_of("format", UploadFormat),
        Index("ix_held_uploads_state_due_by", "state", "due_by"),
    )
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    authority: str
    kind: str
    format: str
    file_hash: str
    uploaded_by: str
    uploaded_at: datetime = Field(sa_column=_at(nullable=False))
    rows_good: int
    rows_refused: int
    ends: int
    deletes: int
    doubles: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default=text("0")))
    current: int
    held_by: str
    level: int = 0
    state: str
    due_by: datetime = Field(sa_column=_at(nullable=False))
    decision: str | None = None
    decided_by: str | None = None
    decided_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))


class HeldUploadPart(SQLModel, table=True):
    """A part of a held file, sealed; gone as soon as a person has decided."""

    __tablename__: ClassVar[Any] = "held_upload_parts"
    upload_id: str = Field(primary_key=True, foreign_key="held_uploads.id")
    number: int = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    sealed: bytes = Field(sa_column=_bytes(nullable=False))


class ListLanding(SQLModel, table=True):
    """A long file of which not every slice has landed; gone when all of it stands."""

    __tablename__: ClassVar[Any] = "list_landings"
    __table_args__ = (_one_of("kind", UploadKind), _one_of("format", UploadFormat))
    upload_id: str = Field(primary_key=True, foreign_key="list_uploads.id")
    owner: str = Field(sa_column=_owner())
    authority: str
    kind: str
    format: str
    uploaded_by: str
    uploaded_at: datetime = Field(sa_column=_at(nullable=False))
    leased_until: datetime = Field(sa_column=_at(nullable=False))
    """Until then whoever lands it is alive; afterwards another goes on."""


class ListLandingPart(SQLModel, table=True):
    """A part of a file that lands, sealed."""

    __tablename__: ClassVar[Any] = "list_landing_parts"
    upload_id: str = Field(primary_key=True, foreign_key="list_landings.upload_id")
    number: int = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    sealed: bytes = Field(sa_column=_bytes(nullable=False))


class ListEntry(SQLModel, table=True):
    """One plan of one person on one authority's list; everything personal is sealed."""

    __tablename__: ClassVar[Any] = "list_entries"
    __table_args__ = (Index("ix_list_entries_authority_id", "authority", "id"),)
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    authority: str
    upload_id: str = Field(foreign_key="list_uploads.id")
    nhs_index: bytes = Field(sa_column=_bytes(nullable=False, index=True))
    sealed: bytes = Field(sa_column=_bytes(nullable=False))
    changed_at: datetime = Field(sa_column=_at(nullable=False))
    said_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    """When the newest file was sent that repeated the entry as it stands; None: none did."""
    blocks_version: int = Field(
        default=1, sa_column=Column(Integer, nullable=False, index=True, server_default=text("1"))
    )
    dead_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    """When its NHS number was found to be dead: from then on it finds nobody, until it is given another."""
    is_restricted: bool = Field(default=False, sa_column=Column(Boolean, nullable=False, server_default=false()))
    """What PDS said last of its number."""


class ListVersion(SQLModel, table=True):
    """One version of a list entry, from when until when the broker knew it so; ``sealed`` as the entry's."""

    __tablename__: ClassVar[Any] = "list_versions"
    entry_id: str = Field(primary_key=True)
    sequence: int = Field(primary_key=True)
    owner: str = Field(sa_column=_owner(indexed=False))
    authority: str
    nhs_index: bytes = Field(sa_column=_bytes(nullable=False, index=True))
    sealed: bytes = Field(sa_column=_bytes(nullable=False))
    upload_id: str
    known_from: datetime = Field(sa_column=_at(nullable=False))
    known_until: datetime | None = Field(default=None, sa_column=_at(nullable=True))


class EntryTrace(SQLModel, table=True):
    """What the Personal Demographics Service says of an entry's identity. ``identity`` is a keyed hash of what was
    compared; ``sealed`` the finding, or None before the first. ``code`` says why there is no newer one."""

    __tablename__: ClassVar[Any] = "entry_traces"
    __table_args__ = (_one_of("state", TraceState),)
    entry_id: str = Field(sa_column=Column(String, ForeignKey("list_entries.id"), primary_key=True))
    owner: str = Field(sa_column=_owner())
    state: str
    identity: bytes = Field(sa_column=_bytes(nullable=False))
    nhs_index: bytes = Field(sa_column=_bytes(nullable=False))
    sealed: bytes | None = Field(default=None, sa_column=_bytes(nullable=True))
    code: str | None = None
    attempts: int = 0
    opened_at: datetime = Field(sa_column=_at(nullable=False))
    checked_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    next_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))


class NumberAlias(SQLModel, table=True):
    """An NHS number that PDS says was superseded by another, for the entries of one owner; undone, never deleted."""

    __tablename__: ClassVar[Any] = "number_aliases"
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    old_index: bytes = Field(sa_column=_bytes(nullable=False, index=True))
    new_index: bytes = Field(sa_column=_bytes(nullable=False, index=True))
    sealed: bytes = Field(sa_column=_bytes(nullable=False))
    made_at: datetime = Field(sa_column=_at(nullable=False))
    undone_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    undone_by: str | None = None


class ListConfirmation(SQLModel, table=True):
    """When an authority's list was confirmed by an upload: the habit is read from these."""

    __tablename__: ClassVar[Any] = "list_confirmations"
    authority: str = Field(primary_key=True)
    confirmed_at: datetime = Field(sa_column=_at(primary_key=True))
    owner: str = Field(sa_column=_owner(indexed=False))


class CoverageItem(SQLModel, table=True):
    """Something that keeps an entry, or a list, from alerting as it should. The list has no ``entry_id``."""

    __tablename__: ClassVar[Any] = "coverage_items"
    __table_args__ = (
        _one_of("reason", CoverageReason),
        _one_of("state", ItemState),
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
    opened_at: datetime = Field(sa_column=_at(nullable=False))
    due_by: datetime = Field(sa_column=_at(nullable=False))
    closed_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    noted_by: str | None = None


class CoverageDay(SQLModel, table=True):
    """How much of a list was covered on a London day, as last counted on it."""

    __tablename__: ClassVar[Any] = "coverage_days"
    authority: str = Field(primary_key=True)
    counted_on: date = Field(sa_column=Column(Date, primary_key=True))
    owner: str = Field(sa_column=_owner(indexed=False))
    entries: int
    covered: int
    unverified: int


class MeshFile(SQLModel, table=True):
    """A message of the MESH mailbox: claimed, taken, acknowledged, answered, or kept for a person with its bytes."""

    __tablename__: ClassVar[Any] = "mesh_files"
    __table_args__ = (_one_of("state", ItemState), Index("ix_mesh_files_state_due_by", "state", "due_by"))
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    sender: str = ""
    reason: str = ""
    detail: str = ""
    sealed: bytes | None = Field(default=None, sa_column=_bytes(nullable=True))
    answer_sealed: bytes | None = Field(default=None, sa_column=_bytes(nullable=True))
    answer_due_at: datetime | None = Field(default=None, sa_column=_at(nullable=True, index=True))
    answer_attempts: int = 0
    attempts: int = 0
    leased_until: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    held_by: str
    level: int = 0
    state: str
    kept_at: datetime = Field(sa_column=_at(nullable=False))
    due_by: datetime = Field(sa_column=_at(nullable=False))
    handled_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    acknowledged_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    answered_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    decided_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    decided_by: str | None = None
    decision: str | None = None


class ListDifference(SQLModel, table=True):
    """A current entry that a full list does not have: a person says whether the plan is over."""

    __tablename__: ClassVar[Any] = "list_differences"
    __table_args__ = (_one_of("state", ItemState), Index("ix_list_differences_state_due_by", "state", "due_by"))
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    authority: str
    entry_id: str
    upload_id: str = Field(foreign_key="list_uploads.id")
    held_by: str
    level: int = 0
    state: str
    opened_at: datetime = Field(sa_column=_at(nullable=False))
    due_by: datetime = Field(sa_column=_at(nullable=False))
    decision: str | None = None
    decided_by: str | None = None
    decided_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))


class EntryBlock(SQLModel, table=True):
    """A keyed block under which an entry is found without an NHS number."""

    __tablename__: ClassVar[Any] = "entry_blocks"
    block: bytes = Field(sa_column=_bytes(primary_key=True))
    entry_id: str = Field(sa_column=Column(String, ForeignKey("list_entries.id"), primary_key=True, index=True))
    owner: str = Field(sa_column=_owner())


class HandledMarker(SQLModel, table=True):
    """The mark of a message that was handled: the same message never counts twice."""

    __tablename__: ClassVar[Any] = "handled_markers"
    marker: bytes = Field(sa_column=_bytes(primary_key=True))
    handled_at: datetime = Field(sa_column=_at(nullable=False))


class HandledPosition(SQLModel, table=True):
    """What became of one log position."""

    __tablename__: ClassVar[Any] = "handled_positions"
    __table_args__ = (_one_of("outcome", PositionOutcome),)
    topic: str = Field(primary_key=True)
    log_id: str = Field(primary_key=True)
    partition: int = Field(primary_key=True)
    position: int = Field(sa_column=Column(BigInteger, primary_key=True))
    owner: str = Field(sa_column=_owner(indexed=False))
    marker: bytes = Field(sa_column=_bytes(nullable=False))
    visit_id: str | None = None
    outcome: str
    reason: str = ""
    handled_at: datetime = Field(sa_column=_at(nullable=False))
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
    updated_at: datetime = Field(sa_column=_at(nullable=False))


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
    noticed_at: datetime = Field(sa_column=_at(nullable=False))


class PoisonAttempt(SQLModel, table=True):
    """A message that is being handled alone after an unclean stop, noted beforehand."""

    __tablename__: ClassVar[Any] = "poison_attempts"
    topic: str = Field(primary_key=True)
    log_id: str = Field(primary_key=True)
    partition: int = Field(primary_key=True)
    position: int = Field(sa_column=Column(BigInteger, primary_key=True))
    attempts: int


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
    owner: str = Field(sa_column=_owner())
    sender: str
    patient_index: bytes | None = Field(default=None, sa_column=_bytes(index=True))
    nhs_index: bytes | None = Field(default=None, sa_column=_bytes(index=True))
    birth_index: bytes | None = Field(default=None, sa_column=_bytes(index=True))
    mother_index: bytes | None = Field(default=None, sa_column=_bytes(index=True))
    reply_outcome: str | None = None
    corrections: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    state: str | None = Field(default=None, sa_column=Column(String, nullable=True))
    joined_into: str | None = Field(default=None, sa_column=Column(String, nullable=True))
    closed_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    continued_as: str | None = Field(default=None, sa_column=Column(String, nullable=True))
    opened_at: datetime = Field(sa_column=_at(nullable=False))
    heard_at: datetime = Field(sa_column=_at(nullable=False, index=True))


class PersonMessage(SQLModel, table=True):
    """What one message said of a person and of no visit: a visit takes it in. A merge also names the former patient."""

    __tablename__: ClassVar[Any] = "person_messages"
    marker: bytes = Field(sa_column=_bytes(primary_key=True))
    owner: str = Field(sa_column=_owner(indexed=False))
    sender: str
    patient_index: bytes = Field(sa_column=_bytes(nullable=False, index=True))
    former_index: bytes | None = Field(default=None, sa_column=_bytes(nullable=True, index=True))
    said_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    received_at: datetime = Field(sa_column=_at(nullable=False, index=True))
    sealed: bytes = Field(sa_column=_bytes(nullable=False))


class TestFeed(SQLModel, table=True):
    """A day on which a sender marked messages as tests."""

    __test__: ClassVar[bool] = False
    __tablename__: ClassVar[Any] = "test_feeds"
    sender: str = Field(primary_key=True)
    seen_on: date = Field(primary_key=True)
    owner: str = Field(sa_column=_owner(indexed=False))


class VisitBlock(SQLModel, table=True):
    """A keyed block under which a visit without an NHS number is found."""

    __tablename__: ClassVar[Any] = "visit_blocks"
    block: bytes = Field(sa_column=_bytes(primary_key=True))
    visit_id: str = Field(sa_column=Column(String, ForeignKey("visits.id"), primary_key=True, index=True))
    owner: str = Field(sa_column=_owner(indexed=False))


class VisitMessage(SQLModel, table=True):
    """What one message said of a visit; the visit's thread."""

    __tablename__: ClassVar[Any] = "visit_messages"
    visit_id: str = Field(primary_key=True, foreign_key="visits.id")
    marker: bytes = Field(sa_column=_bytes(primary_key=True))
    owner: str = Field(sa_column=_owner(indexed=False))
    event: str
    said_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    received_at: datetime = Field(sa_column=_at(nullable=False))
    sealed: bytes = Field(sa_column=_bytes(nullable=False))


class Alert(SQLModel, table=True):
    """An alert to an authority: one per visit, authority and role."""

    __tablename__: ClassVar[Any] = "alerts"
    __table_args__ = (
        UniqueConstraint("visit_id", "authority", "role"),
        _one_of("state", AlertState),
        Index("ix_alerts_owner_state_raised", "owner", "state", "raised_at"),
        Index("ix_alerts_state_due_by", "state", "due_by"),
    )
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=Column(String, ForeignKey("owners.id"), nullable=False))
    authority: str
    visit_id: str = Field(foreign_key="visits.id")
    role: str
    sealed: bytes = Field(sa_column=_bytes(nullable=False))
    held_by: str
    level: int = 0
    state: str
    raised_at: datetime = Field(sa_column=_at(nullable=False))
    due_by: datetime = Field(sa_column=_at(nullable=False))
    opened_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    acknowledged_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    acknowledged_by: str | None = None
    withdrawn_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    withdrawn_rule: str | None = None
    closed_rule: str | None = None
    told_state: str | None = None
    notices: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    is_restricted: bool = Field(default=False, sa_column=Column(Boolean, nullable=False, server_default=false()))
    """Where the person is, is shown to whom it was allocated alone."""


class AlertNotice(SQLModel, table=True):
    """What an authority was told of a visit after its alert."""

    __tablename__: ClassVar[Any] = "alert_notices"
    __table_args__ = (_one_of("kind", NoticeKind),)
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner(indexed=False))
    alert_id: str = Field(foreign_key="alerts.id", index=True)
    kind: str
    is_urgent: bool = Field(sa_column=Column(Boolean, nullable=False))
    raised_at: datetime = Field(sa_column=_at(nullable=False))


class AlertEntry(SQLModel, table=True):
    """Which list entries an alert rests on, and which workers hold it."""

    __tablename__: ClassVar[Any] = "alert_entries"
    alert_id: str = Field(primary_key=True, foreign_key="alerts.id")
    entry_id: str = Field(primary_key=True, index=True)
    owner: str = Field(sa_column=_owner())
    worker: str | None = Field(default=None, index=True)


class Reply(SQLModel, table=True):
    """A reply to a department."""

    __tablename__: ClassVar[Any] = "replies"
    __table_args__ = (Index("ix_replies_owner_replied", "owner", "replied_at"),)
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=Column(String, ForeignKey("owners.id"), nullable=False))
    visit_id: str = Field(foreign_key="visits.id", index=True)
    outcome: str
    sealed: bytes = Field(sa_column=_bytes(nullable=False))
    replied_at: datetime = Field(sa_column=_at(nullable=False))


class Access(SQLModel, table=True):
    """Somebody's look at one person's record. ``is_counted``: the first of its author within 24 hours, from
    unscheduled care.
    """

    __tablename__: ClassVar[Any] = "accesses"
    __table_args__ = (Index("ix_accesses_nhs_index_at", "nhs_index", "at"),)
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner(indexed=False))
    nhs_index: bytes = Field(sa_column=_bytes(nullable=False))
    author_index: bytes = Field(sa_column=_bytes(nullable=False))
    at: datetime = Field(sa_column=_at(nullable=False))
    is_unscheduled: bool
    is_counted: bool
    sealed: bytes = Field(sa_column=_bytes(nullable=False))


class PatternState(StrEnum):
    """Where a version of a rule for patterns stands."""

    DRAFT = "draft"
    ON = "on"
    OFF = "off"


class PatternRow(SQLModel, table=True):
    """One version of a rule for patterns: what an authority wishes to be named in its alerts, in its own words."""

    __tablename__: ClassVar[Any] = "pattern_rules"
    __table_args__ = (_one_of("kind", PatternKind), _one_of("state", PatternState))
    authority: str = Field(primary_key=True)
    kind: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    owner: str = Field(sa_column=_owner(indexed=False))
    count_min: int
    window_h: int
    words: str
    state: str
    previewed_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    changed_at: datetime = Field(sa_column=_at(nullable=False))
    changed_by: str


class Lane(SQLModel, table=True):
    """One recipient on one channel: leased as a whole, so that its order holds and one slow recipient is one lane."""

    __tablename__: ClassVar[Any] = "lanes"
    __table_args__ = (_one_of("channel", ChannelName),)
    id: str = Field(primary_key=True)
    channel: str
    owner: str = Field(sa_column=_owner())
    contact: str | None = None
    """Whom at the owner, where the channel reaches people; by the owner's directory."""
    next_due_at: datetime | None = Field(default=None, sa_column=_at(nullable=True, index=True))
    leased_by: str | None = None
    leased_until: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    epoch: int = 0


class Delivery(SQLModel, table=True):
    """One thing on its way out; its id is the idempotency key."""

    __tablename__: ClassVar[Any] = "deliveries"
    __table_args__ = (
        _one_of("state", DeliveryState),
        Index("ix_deliveries_lane_due", "lane", "state", "next_attempt_at"),
    )
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    lane: str = Field(sa_column=Column(String, ForeignKey("lanes.id"), nullable=False))
    event_type: str
    alert_id: str | None = Field(default=None, foreign_key="alerts.id", index=True)
    reply_id: str | None = Field(default=None, foreign_key="replies.id", index=True)
    sealed: bytes = Field(sa_column=_bytes(nullable=False))
    state: str
    attempts: int = 0
    last_code: str | None = None
    created_at: datetime = Field(sa_column=_at(nullable=False))
    next_attempt_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    settled_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))


class Review(SQLModel, table=True):
    """A doubt about identity that a person decides."""

    __tablename__: ClassVar[Any] = "reviews"
    __table_args__ = (
        UniqueConstraint("visit_id", "entry_id"),
        _one_of("state", ItemState),
        Index("ix_reviews_state_due_by", "state", "due_by"),
    )
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    visit_id: str = Field(foreign_key="visits.id")
    entry_id: str
    sealed: bytes = Field(sa_column=_bytes(nullable=False))
    held_by: str
    level: int = 0
    state: str
    opened_at: datetime = Field(sa_column=_at(nullable=False))
    due_by: datetime = Field(sa_column=_at(nullable=False))
    decided_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    decided_by: str | None = None
    decision: str | None = None
    decision_sealed: bytes | None = Field(default=None, sa_column=_bytes(nullable=True))
    is_restricted: bool = Field(default=False, sa_column=Column(Boolean, nullable=False, server_default=false()))


class MissedAlert(SQLModel, table=True):
    """An alert that should have been raised and was not, found by night."""

    __tablename__: ClassVar[Any] = "missed_alerts"
    __table_args__ = (
        UniqueConstraint("visit_id", "authority"),
        _one_of("state", ItemState),
        _one_of("cause", MissedCause),
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
    visited_at: datetime = Field(sa_column=_at(nullable=False))
    found_at: datetime = Field(sa_column=_at(nullable=False))
    alert_id: str | None = None
    decided_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    decided_by: str | None = None
    decision: str | None = None


class Quarantined(SQLModel, table=True):
    """A message that could not be handled, with its bytes and the reason."""

    __tablename__: ClassVar[Any] = "quarantine"
    __table_args__ = (_one_of("state", ItemState),)
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    topic: str
    log_id: str
    partition: int
    position: int = Field(sa_column=Column(BigInteger, nullable=False))
    reason: str
    detail: str = ""
    sealed: bytes = Field(sa_column=_bytes(nullable=False))
    held_by: str
    level: int = 0
    state: str
    kept_at: datetime = Field(sa_column=_at(nullable=False))
    due_by: datetime = Field(sa_column=_at(nullable=False))
    sender: str = Field(default="", sa_column=Column(String, nullable=False, server_default=text("''")))
    attempts: int = Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))
    last_attempt_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    decided_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    decided_by: str | None = None
    decision: str | None = None


class Replay(SQLModel, table=True):
    """A person's request to handle messages again. ``ranges`` says how far their records were appended."""

    __tablename__: ClassVar[Any] = "replays"
    __table_args__ = (_one_of("state", ItemState), Index("ix_replays_topic_asked", "topic", "asked"))
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    topic: str
    asked: str
    ranges: str
    requested_by: str
    reason: str = ""
    state: str
    requested_at: datetime = Field(sa_column=_at(nullable=False))
    done_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))


class Job(SQLModel, table=True):
    """Work for later, claimed like a lane."""

    __tablename__: ClassVar[Any] = "jobs"
    __table_args__ = (_one_of("state", ItemState),)
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    kind: str
    subject: str
    state: str
    barrier: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True))
    created_at: datetime = Field(sa_column=_at(nullable=False))
    due_at: datetime = Field(sa_column=_at(nullable=False, index=True))
    leased_until: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    epoch: int = 0
    done_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))


class ForceRow(SQLModel, table=True):
    """A police force that tells of incidents, and what it has agreed with its authorities."""

    __tablename__: ClassVar[Any] = "forces"
    __table_args__ = (
        _one_of("release", Release),
        _one_of("profile", ContentProfile),
        _one_of("under_school_age", UnderSchoolAge),
    )
    code: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    name: str
    statement: str
    withdrawn_statement: str
    release: str
    profile: str
    under_school_age: str
    confirmed_days_max: int
    training_required: bool
    peers: str = ""
    credential_digest: bytes = Field(sa_column=_bytes(nullable=False))


class EstablishmentRow(SQLModel, table=True):
    """An educational establishment. ``sealed`` holds its secrets."""

    __tablename__: ClassVar[Any] = "establishments"
    __table_args__ = (_one_of("kind", EstablishmentKind), _one_of("status", EstablishmentStatus))
    urn: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    name: str
    kind: str
    authority: str = Field(index=True)
    status: str
    merged_into: str | None = None
    starts_at_local: str | None = None
    office_telephone: str | None = None
    sealed: bytes = Field(sa_column=_bytes(nullable=False))


class SafeguardingContactRow(SQLModel, table=True):
    """A person in an establishment's verified directory; name, mailbox and telephone are sealed."""

    __tablename__: ClassVar[Any] = "safeguarding_contacts"
    __table_args__ = (_one_of("role", ContactRole),)
    urn: str = Field(sa_column=Column(String, ForeignKey("establishments.urn"), primary_key=True))
    contact_id: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    role: str
    confirmed_on: date | None = Field(default=None, sa_column=Column(Date, nullable=True))
    trained_on: date | None = Field(default=None, sa_column=Column(Date, nullable=True))
    sealed: bytes = Field(sa_column=_bytes(nullable=False))


class CalendarRow(SQLModel, table=True):
    """Days of one kind of an authority, or of one establishment (``urn`` empty: of the whole authority)."""

    __tablename__: ClassVar[Any] = "school_days"
    __table_args__ = (_one_of("kind", DayKind),)
    authority: str = Field(primary_key=True)
    urn: str = Field(primary_key=True)
    kind: str = Field(primary_key=True)
    first_on: date = Field(sa_column=Column(Date, primary_key=True))
    last_on: date = Field(sa_column=Column(Date, nullable=False))
    owner: str = Field(sa_column=_owner(indexed=False))


class PupilRow(SQLModel, table=True):
    """A child on an authority's list of pupils, found by blocks."""

    __tablename__: ClassVar[Any] = "pupils"
    authority: str = Field(primary_key=True)
    pupil_id: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    sealed: bytes = Field(sa_column=_bytes(nullable=False))


class PupilBlock(SQLModel, table=True):
    """A keyed block under which a pupil is found who is written down a little differently."""

    __tablename__: ClassVar[Any] = "pupil_blocks"
    __table_args__ = (
        ForeignKeyConstraint(["authority", "pupil_id"], ["pupils.authority", "pupils.pupil_id"], ondelete="CASCADE"),
    )
    block: bytes = Field(sa_column=_bytes(primary_key=True))
    authority: str = Field(primary_key=True)
    pupil_id: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner(indexed=False))


class Incident(SQLModel, table=True):
    """A police incident as its newest version stands, or an attendance for the hub; ``sealed`` is what it says."""

    __tablename__: ClassVar[Any] = "incidents"
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    force: str
    version: int
    is_withdrawn: bool
    sealed: bytes = Field(sa_column=_bytes(nullable=False))
    found_sealed: bytes | None = Field(default=None, sa_column=_bytes(nullable=True))
    """Establishments that a person found, or refused, by child."""
    received_at: datetime = Field(sa_column=_at(nullable=False, index=True))
    reported_at: datetime = Field(sa_column=_at(nullable=False, index=True))
    released_version: int | None = None
    released_by: str | None = None
    suppressed_by: str | None = None
    suppressed_reason: str | None = None
    referral_sealed: bytes | None = Field(default=None, sa_column=_bytes(nullable=True))
    """What the hub sees of an attendance; None: the police told of it."""
    released_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    released_gateway: str | None = None
    release_sealed: bytes | None = Field(default=None, sa_column=_bytes(nullable=True))
    """Why the hub released it, in its own words."""
    authoriser_sealed: bytes | None = Field(default=None, sa_column=_bytes(nullable=True))
    """Who authorised that it is kept back."""


class IncidentVersion(SQLModel, table=True):
    """Every message of an incident, in the order of arrival."""

    __tablename__: ClassVar[Any] = "incident_versions"
    marker: bytes = Field(sa_column=_bytes(primary_key=True))
    incident_id: str = Field(sa_column=Column(String, ForeignKey("incidents.id"), nullable=False, index=True))
    owner: str = Field(sa_column=_owner(indexed=False))
    version: int
    reception: str
    sealed: bytes = Field(sa_column=_bytes(nullable=False))
    received_at: datetime = Field(sa_column=_at(nullable=False))


class NoticeRow(SQLModel, table=True):
    """What one establishment is told of one incident; ``sealed`` is all of it, with who is told and who is not."""

    __tablename__: ClassVar[Any] = "school_notices"
    __table_args__ = (
        UniqueConstraint("incident_id", "urn"),
        _one_of("state", NoticeState),
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
    sealed: bytes = Field(sa_column=_bytes(nullable=False))
    planned_at: datetime = Field(sa_column=_at(nullable=False))
    send_at: datetime = Field(sa_column=_at(nullable=False))
    remind_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    due_by: datetime = Field(sa_column=_at(nullable=False))
    next_at: datetime | None = Field(default=None, sa_column=_at(nullable=True, index=True))
    """When the jobs part has to do something about it."""
    sent_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    """When its first version was sent."""
    reminded_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    rung_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    opened_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    acknowledged_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    acknowledged_by: str | None = None


class NoticeSending(SQLModel, table=True):
    """One version of a notice as it was sent, or taken back: the proof, which no later version changes."""

    __tablename__: ClassVar[Any] = "notice_sendings"
    notice_id: str = Field(sa_column=Column(String, ForeignKey("school_notices.id"), primary_key=True))
    version: int = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    due_by: datetime = Field(sa_column=_at(nullable=False))
    sent_at: datetime = Field(sa_column=_at(nullable=False))
    sealed: bytes = Field(sa_column=_bytes(nullable=False))


class EncompassTask(SQLModel, table=True):
    """What a person has to do because of an incident; ``sealed`` says what and of whom."""

    __tablename__: ClassVar[Any] = "encompass_tasks"
    __table_args__ = (
        _one_of("kind", TaskKind),
        _one_of("state", ItemState),
        Index("ix_encompass_tasks_owner_state", "owner", "state"),
        Index("ix_encompass_tasks_state_due_by", "state", "due_by"),
    )
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=Column(String, ForeignKey("owners.id"), nullable=False))
    incident_id: str = Field(sa_column=Column(String, ForeignKey("incidents.id"), nullable=False, index=True))
    kind: str
    urn: str | None = None
    sealed: bytes = Field(sa_column=_bytes(nullable=False))
    held_by: str
    level: int = 0
    state: str
    opened_at: datetime = Field(sa_column=_at(nullable=False))
    due_by: datetime = Field(sa_column=_at(nullable=False))
    decided_at: datetime | None = Field(default=None, sa_column=_at(nullable=True))
    decided_by: str | None = None
    decision: str | None = None


class SchoolRecord(SQLModel, table=True):
    """What a school did about a notice: its own record, which nobody else reads."""

    __tablename__: ClassVar[Any] = "school_records"
    id: str = Field(primary_key=True)
    owner: str = Field(sa_column=_owner())
    notice_id: str = Field(sa_column=Column(String, ForeignKey("school_notices.id"), nullable=False, index=True))
    sealed: bytes = Field(sa_column=_bytes(nullable=False))
    written_at: datetime = Field(sa_column=_at(nullable=False))
    written_by: str


class AuditHead(SQLModel, table=True):
    """The end of one owner's audit chain."""

    __tablename__: ClassVar[Any] = "audit_heads"
    owner: str = Field(sa_column=Column(String, ForeignKey("owners.id"), primary_key=True))
    sequence: int = Field(sa_column=Column(BigInteger, nullable=False))
    hash: bytes = Field(sa_column=_bytes(nullable=False))


class AuditRow(SQLModel, table=True):
    """One audited act."""

    __tablename__: ClassVar[Any] = "audit"
    owner: str = Field(sa_column=Column(String, ForeignKey("owners.id"), primary_key=True))
    sequence: int = Field(sa_column=Column(BigInteger, primary_key=True))
    at: datetime = Field(sa_column=_at(nullable=False))
    actor: str
    action: str
    subject: str = Field(index=True)
    reason: str = ""
    hash: bytes = Field(sa_column=_bytes(nullable=False))
