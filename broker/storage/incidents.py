"""Police incidents, what establishments are told of them, what people have to do, and what schools did."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import date, datetime
from typing import Any, Final

import msgspec
from sqlalchemy import case, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.encompass import LookUpReason
from broker.domain.safeguarding import Skipped
from broker.domain.school_notices import Withheld
from broker.keyring import Keyring
from broker.storage.database import upsert
from broker.storage.tables import (
    EncompassTask,
    Incident,
    IncidentVersion,
    ItemState,
    NoticeRow,
    SchoolRecord,
    table,
)
from schemas.encompass import (
    IncidentWithdrawal,
    LawfulGateway,
    MinimalChild,
    NoticeState,
    PoliceIncident,
    PoliceMessage,
    Referral,
    SchoolNotice,
    SchoolNoticeWithdrawn,
    SuppressionReason,
    TaskKind,
)
from schemas.identifiers import OwnerId, SchoolUrn, establishment_owner, force_owner

_incidents, _versions, _notices = table(Incident), table(IncidentVersion), table(NoticeRow)
_tasks, _records = table(EncompassTask), table(SchoolRecord)
HUB_KINDS: Final = frozenset(
    {TaskKind.LOOK_UP, TaskKind.RELEASE, TaskKind.CONTRADICTION, TaskKind.CONFLICT, TaskKind.DISCLOSED}
    | {TaskKind.TAKEN_BACK}
)
"""What whoever answers for an incident decides: a force's coordinator, or of an attendance an authority's hub. The
other kinds are an authority's officer's, who learns nothing of the attendance."""
COORDINATOR: Final = "coordinator"
HUB: Final = "hub"
AUTHORITY_OFFICER: Final = "authority_officer"


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a person said of one child's establishments."""

    child_id: str
    is_there: bool
    """False: the establishment said that the child is not its pupil."""
    urn: SchoolUrn | None = None
    home_educated_in: str | None = None
    """The authority whose pupil at home the child is; then there is no establishment."""


class StoredIncident(msgspec.Struct, frozen=True, kw_only=True):
    """An incident as its newest version stands."""

    id: str
    owner: OwnerId
    force: str
    message: PoliceMessage
    found: tuple[Found, ...] = ()
    received_at: datetime
    reported_at: datetime
    released_version: int | None = None
    suppressed_by: str | None = None
    suppressed_reason: SuppressionReason | None = None
    referral: Referral | None = None
    """What the hub sees of an attendance; None: the police told of it."""
    released_at: datetime | None = None
    """When the hub released it."""


class Telling(msgspec.Struct, frozen=True, kw_only=True):
    """What an establishment is told, and everything about it that it is not told."""

    notice: SchoolNotice
    withdrawn: SchoolNoticeWithdrawn | None = None
    child_ids: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    """Contact ids: who may read it."""
    skipped: tuple[Skipped, ...] = ()
    """Hidden from the school."""
    withheld: tuple[Withheld, ...] = ()


class StoredNotice(msgspec.Struct, frozen=True, kw_only=True):
    """A notice and what became of it."""

    id: str
    owner: OwnerId
    incident_id: str
    force: str
    urn: SchoolUrn
    authority: str
    version: int
    """Of the last thing sent, or of the first thing that is to be sent."""
    state: NoticeState
    hold: str | None
    flag: str | None
    calendar_is_assumed: bool
    telling: Telling
    planned_at: datetime
    send_at: datetime
    remind_at: datetime | None
    due_by: datetime
    next_at: datetime | None
    sent_at: datetime | None = None
    reminded_at: datetime | None = None
    rung_at: datetime | None = None
    opened_at: datetime | None = None
    acknowledged_at: datetime | None = None
    acknowledged_by: str | None = None


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A pupil on an authority's list who may be the child, for the person who decides."""

    family_name: str
    given_name: str
    birth_date: date
    authority: str
    urns: tuple[SchoolUrn, ...]
    home_educated: bool
    weight: float
    """In bits, as in the review of doubts."""
    reasons_for: tuple[str, ...]
    reasons_against: tuple[str, ...]


class Matter(msgspec.Struct, frozen=True, kw_only=True):
    """What a task is about, for the person who does it."""

    incident: str
    """The force's own reference."""
    child_id: str | None = None
    children: tuple[MinimalChild, ...] = ()
    occurred_at: datetime | None = None
    establishment: str | None = None
    telephone: str | None = None
    reason: LookUpReason | None = None
    suggested: SchoolUrn | None = None
    contact: str | None = None
    candidates: tuple[Candidate, ...] = ()
    """The likeliest first."""


class StoredTask(msgspec.Struct, frozen=True, kw_only=True):
    """What a person has to do."""

    id: str
    owner: OwnerId
    incident_id: str
    kind: TaskKind
    urn: SchoolUrn | None
    matter: Matter
    held_by: str
    opened_at: datetime
    due_by: datetime
    level: int = 0
    state: ItemState = ItemState.OPEN
    decided_by: str | None = None


class StoredRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a school did."""

    notice_id: str
    text: str
    written_at: datetime
    written_by: str


# Incidents


def derive_incident_id(keyring: Keyring, force: str, reference: str) -> str:
    """The id of an incident: the same for every version of it."""
    return keyring.derive_id("incident", force, reference)


async def lock_incident(connection: AsyncConnection, keyring: Keyring, incident_id: str) -> StoredIncident | None:
    """The incident, locked until the transaction ends: messages and people may change it at one time."""
    statement = select(_incidents).where(_incidents.c.id == incident_id).with_for_update()
    row = (await connection.execute(statement)).one_or_none()
    return None if row is None else read_incident_row(keyring, row)


async def find_incident(connection: AsyncConnection, keyring: Keyring, incident_id: str) -> StoredIncident | None:
    """The incident as it stands, to be read only."""
    row = (await connection.execute(select(_incidents).where(_incidents.c.id == incident_id))).one_or_none()
    return None if row is None else read_incident_row(keyring, row)


async def save_message(
    connection: AsyncConnection, keyring: Keyring, message: PoliceMessage, now: datetime, *, is_new: bool
) -> StoredIncident:
    """Make ``message`` what the incident says. What people said of its children stays."""
    incident_id = derive_incident_id(keyring, message.force, message.incident_id)
    sealed = keyring.seal(msgspec.json.encode(message), about=f"incident/{incident_id}")
    changed: dict[str, Any] = {
        "version": message.version,
        "is_withdrawn": isinstance(message, IncidentWithdrawal),
        "sealed": sealed,
        "received_at": now,
    }
    if is_new:
        values = {
            **changed,
            "id": incident_id,
            "owner": force_owner(message.force),
            "force": message.force,
            "reported_at": now if isinstance(message, IncidentWithdrawal) else message.reported_at,
        }
        await connection.execute(upsert(connection, _incidents).values(values))
    else:
        if isinstance(message, PoliceIncident):
            changed["reported_at"] = message.reported_at
        await connection.execute(update(_incidents).where(_incidents.c.id == incident_id).values(changed))
    stored = await lock_incident(connection, keyring, incident_id)
    assert stored is not None
    return stored


async def add_version(
    connection: AsyncConnection,
    keyring: Keyring,
    message: PoliceMessage,
    *,
    marker: bytes,
    reception: str,
    now: datetime,
) -> None:
    """Keep a message of an incident, whatever it came to."""
    values = {
        "marker": marker,
        "incident_id": derive_incident_id(keyring, message.force, message.incident_id),
        "owner": force_owner(message.force),
        "version": message.version,
        "reception": reception,
        "sealed": keyring.seal(msgspec.json.encode(message), about=f"incident-version/{marker.hex()}"),
        "received_at": now,
    }
    await connection.execute(upsert(connection, _versions).values(values).on_conflict_do_nothing())


async def add_referral(
    connection: AsyncConnection, keyring: Keyring, incident: StoredIncident, referral: Referral
) -> bool:
    """Hold an attendance for the hub; False when it is held already, or was decided on."""
    values = {
        "id": incident.id,
        "owner": incident.owner,
        "force": incident.force,
        "version": incident.message.version,
        "is_withdrawn": False,
        "sealed": keyring.seal(msgspec.json.encode(incident.message), about=f"incident/{incident.id}"),
        "referral_sealed": keyring.seal(msgspec.json.encode(referral), about=f"referral/{incident.id}"),
        "received_at": incident.received_at,
        "reported_at": incident.reported_at,
    }
    added = await connection.execute(upsert(connection, _incidents).values(values).on_conflict_do_nothing())
    return added.rowcount == 1


async def release_referral(
    connection: AsyncConnection,
    keyring: Keyring,
    incident: StoredIncident,
    *,
    by: str,
    gateway: LawfulGateway,
    reason: str,
    now: datetime,
) -> None:
    """A named person of the hub lets the school be told, by what in law and why."""
    values = {
        "released_version": incident.message.version,
        "released_by": by,
        "released_at": now,
        "released_gateway": gateway.value,
        "release_sealed": keyring.seal(reason.encode(), about=f"release/{incident.id}"),
    }
    await connection.execute(update(_incidents).where(_incidents.c.id == incident.id).values(values))


async def list_released_referrals(
    connection: AsyncConnection, keyring: Keyring, released_since: datetime, *, rows_max: int
) -> list[StoredIncident]:
    """Attendances that a hub let a school know of, not withdrawn, about which it was not asked again; newest first."""
    is_asked = (
        select(_tasks.c.id)
        .where(_tasks.c.incident_id == _incidents.c.id, _tasks.c.kind == TaskKind.TAKEN_BACK.value)
        .exists()
    )
    statement = (
        select(_incidents)
        .where(
            _incidents.c.referral_sealed.is_not(None),
            _incidents.c.released_at >= released_since,
            _incidents.c.suppressed_by.is_(None),
            ~is_asked,
        )
        .order_by(_incidents.c.released_at.desc(), _incidents.c.id)
        .limit(rows_max)
    )
    return [read_incident_row(keyring, row) for row in await connection.execute(statement)]


async def find_incidents(
    connection: AsyncConnection, keyring: Keyring, incident_ids: Collection[str]
) -> dict[str, StoredIncident]:
    """Incidents by their id, to be looked at and not to be changed."""
    rows = await connection.execute(select(_incidents).where(_incidents.c.id.in_(incident_ids)))
    return {row.id: read_incident_row(keyring, row) for row in rows}


async def release_version(connection: AsyncConnection, incident: StoredIncident, by: str) -> None:
    """A person lets this version of the incident go."""
    values = {"released_version": incident.message.version, "released_by": by}
    await connection.execute(update(_incidents).where(_incidents.c.id == incident.id).values(values))


async def suppress_incident(
    connection: AsyncConnection,
    keyring: Keyring,
    incident: StoredIncident,
    by: str,
    *,
    reason: SuppressionReason,
    authoriser: str,
) -> None:
    """A person keeps the incident back, as somebody authorised."""
    values = {
        "suppressed_by": by,
        "suppressed_reason": reason.value,
        "authoriser_sealed": keyring.seal(authoriser.encode(), about=f"authoriser/{incident.id}"),
    }
    await connection.execute(update(_incidents).where(_incidents.c.id == incident.id).values(values))


async def note_found(
    connection: AsyncConnection, keyring: Keyring, incident: StoredIncident, found: Sequence[Found]
) -> None:
    """Keep what people said of the children's establishments."""
    sealed = keyring.seal(msgspec.json.encode([*incident.found, *found]), about=f"incident-found/{incident.id}")
    await connection.execute(update(_incidents).where(_incidents.c.id == incident.id).values(found_sealed=sealed))


def read_incident_row(keyring: Keyring, row: Any) -> StoredIncident:
    """A row of the incidents, opened."""
    found: tuple[Found, ...] = ()
    if row.found_sealed is not None:
        plain = keyring.open(bytes(row.found_sealed), about=f"incident-found/{row.id}")
        found = msgspec.json.decode(plain, type=tuple[Found, ...])
    return StoredIncident(
        id=row.id,
        owner=OwnerId(row.owner),
        force=row.force,
        message=msgspec.json.decode(
            keyring.open(bytes(row.sealed), about=f"incident/{row.id}"),
            type=PoliceMessage,
        ),
        found=found,
        received_at=row.received_at,
        reported_at=row.reported_at,
        released_version=row.released_version,
        suppressed_by=row.suppressed_by,
        suppressed_reason=SuppressionReason(row.suppressed_reason) if row.suppressed_reason else None,
        referral=_referral(keyring, row),
        released_at=row.released_at,
    )


def _referral(keyring: Keyring, row: Any) -> Referral | None:
    if row.referral_sealed is None:
        return None
    return msgspec.json.decode(keyring.open(bytes(row.referral_sealed), about=f"referral/{row.id}"), type=Referral)


# Notices


def derive_notice_id(keyring: Keyring, incident_id: str, urn: SchoolUrn) -> str:
    """The id of the notice of one incident to one establishment, through all its versions."""
    return keyring.derive_id("school-notice", incident_id, urn)


async def save_notice(connection: AsyncConnection, keyring: Keyring, notice: StoredNotice) -> None:
    """Add or replace a notice."""
    values = msgspec.structs.asdict(notice)
    del values["telling"]
    values["state"] = notice.state.value
    values["sealed"] = keyring.seal(msgspec.json.encode(notice.telling), about=f"school-notice/{notice.id}")
    statement = upsert(connection, _notices).values(values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))


async def load_notices(connection: AsyncConnection, keyring: Keyring, incident_id: str) -> list[StoredNotice]:
    """The notices of one incident. Lock the incident first."""
    rows = await connection.execute(select(_notices).where(_notices.c.incident_id == incident_id))
    return [read_notice_row(keyring, row) for row in rows]


async def list_school_notices(
    connection: AsyncConnection, keyring: Keyring, urn: SchoolUrn, *, contact_id: str, rows_max: int
) -> list[StoredNotice]:
    """What an establishment was told and this contact may read, the newest first."""
    statement = (
        select(_notices)
        .where(_notices.c.owner == establishment_owner(urn), _notices.c.sent_at.is_not(None))
        .order_by(_notices.c.sent_at.desc(), _notices.c.id)
        .limit(rows_max)
    )
    found = [read_notice_row(keyring, row) for row in await connection.execute(statement)]
    return [notice for notice in found if may_read(notice, contact_id)]


def may_read(notice: StoredNotice, contact_id: str | None) -> bool:
    """Whether this contact is one of those who are told, and something was sent."""
    return notice.sent_at is not None and notice.state is not NoticeState.HELD and contact_id in notice.telling.told


async def find_notice(connection: AsyncConnection, keyring: Keyring, notice_id: str) -> StoredNotice | None:
    """One notice."""
    row = (await connection.execute(select(_notices).where(_notices.c.id == notice_id))).one_or_none()
    return None if row is None else read_notice_row(keyring, row)


async def list_force_notices(
    connection: AsyncConnection, keyring: Keyring, force: str, *, rows_max: int
) -> list[StoredNotice]:
    """A force's notices that nobody has acknowledged yet, the one due first at the top."""
    open_states = (NoticeState.HELD.value, NoticeState.WAITING.value, NoticeState.SENT.value)
    statement = (
        select(_notices)
        .where(_notices.c.force == force, _notices.c.state.in_(open_states))
        .order_by(_notices.c.due_by, _notices.c.id)
        .limit(rows_max)
    )
    return [read_notice_row(keyring, row) for row in await connection.execute(statement)]


async def list_due_incidents(connection: AsyncConnection, now: datetime, *, rows_max: int) -> list[str]:
    """Incidents of which a notice has something due, the longest due first."""
    statement = (
        select(_notices.c.incident_id)
        .where(_notices.c.next_at <= now)
        .group_by(_notices.c.incident_id)
        .order_by(func.min(_notices.c.next_at), _notices.c.incident_id)
        .limit(rows_max)
    )
    return list((await connection.execute(statement)).scalars())


async def note_opened(connection: AsyncConnection, notice_ids: Collection[str], now: datetime) -> None:
    """Somebody has read them, if nobody had before."""
    statement = update(_notices).where(_notices.c.id.in_(notice_ids), _notices.c.opened_at.is_(None))
    await connection.execute(statement.values(opened_at=now))


async def acknowledge_notice(connection: AsyncConnection, notice_id: str, version: int, by: str, now: datetime) -> bool:
    """Somebody answers for having read this version; False when it is not sent, or not the newest any more."""
    statement = (
        update(_notices)
        .where(_notices.c.id == notice_id, _notices.c.version == version, _notices.c.state == NoticeState.SENT.value)
        .values(state=NoticeState.ACKNOWLEDGED.value, acknowledged_at=now, acknowledged_by=by, next_at=None)
    )
    return (await connection.execute(statement)).rowcount == 1


def read_notice_row(keyring: Keyring, row: Any) -> StoredNotice:
    """A row of the notices, opened."""
    plain = keyring.open(bytes(row.sealed), about=f"school-notice/{row.id}")
    skipped = ("telling", "state", "owner", "urn")
    values = {name: getattr(row, name) for name in StoredNotice.__struct_fields__ if name not in skipped}
    return StoredNotice(
        **values,
        owner=OwnerId(row.owner),
        urn=SchoolUrn(row.urn),
        state=NoticeState(row.state),
        telling=msgspec.json.decode(plain, type=Telling),
    )


# Tasks


def derive_task_id(keyring: Keyring, kind: TaskKind, incident_id: str, *of: str) -> str:
    """The id of a task: the same thing is asked of a person once."""
    return keyring.derive_id("encompass-task", kind.value, incident_id, *of)


async def open_task(connection: AsyncConnection, keyring: Keyring, task: StoredTask) -> None:
    """Ask a person. What is open already stays theirs, with what is known of it now; what was done is open again."""
    values = msgspec.structs.asdict(task)
    del values["matter"]
    values |= {
        "kind": task.kind.value,
        "state": ItemState.OPEN.value,
        "sealed": keyring.seal(msgspec.json.encode(task.matter), about=f"encompass-task/{task.id}"),
    }
    statement = upsert(connection, _tasks).values(values)
    was_done = _tasks.c.state == ItemState.DONE.value
    again = {
        name: case((was_done, statement.excluded[name]), else_=_tasks.c[name])
        for name in ("owner", "held_by", "level", "due_by")
    }
    undecided = {"decided_at": None, "decided_by": None, "decision": None}
    told = {"sealed": statement.excluded.sealed, "state": ItemState.OPEN.value}
    await connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=again | undecided | told))


async def close_tasks(
    connection: AsyncConnection, task_ids: Collection[str], *, decision: str, by: str, now: datetime
) -> list[str]:
    """These are done, or not needed any more; returns those that were open."""
    statement = (
        update(_tasks)
        .where(_tasks.c.id.in_(task_ids), _tasks.c.state == ItemState.OPEN.value)
        .values(state=ItemState.DONE.value, decided_at=now, decided_by=by, decision=decision)
        .returning(_tasks.c.id)
    )
    return sorted((await connection.execute(statement)).scalars())


async def list_tasks(
    connection: AsyncConnection, keyring: Keyring, owner: str, *, kinds: Collection[TaskKind], rows_max: int
) -> list[StoredTask]:
    """What one owner's people have to do, the one due first at the top."""
    statement = (
        select(_tasks)
        .where(
            _tasks.c.owner == owner,
            _tasks.c.state == ItemState.OPEN.value,
            _tasks.c.kind.in_([kind.value for kind in kinds]),
        )
        .order_by(_tasks.c.due_by, _tasks.c.id)
        .limit(rows_max)
    )
    return [read_task_row(keyring, row) for row in await connection.execute(statement)]


async def load_tasks(connection: AsyncConnection, keyring: Keyring, incident_id: str) -> dict[str, StoredTask]:
    """Every task of one incident, open or done. Lock the incident first."""
    rows = await connection.execute(select(_tasks).where(_tasks.c.incident_id == incident_id))
    return {row.id: read_task_row(keyring, row) for row in rows}


async def find_task(connection: AsyncConnection, keyring: Keyring, task_id: str) -> StoredTask | None:
    """One task, open or done."""
    row = (await connection.execute(select(_tasks).where(_tasks.c.id == task_id))).one_or_none()
    return None if row is None else read_task_row(keyring, row)


def read_task_row(keyring: Keyring, row: Any) -> StoredTask:
    """A row of the tasks, opened."""
    return StoredTask(
        id=row.id,
        owner=OwnerId(row.owner),
        incident_id=row.incident_id,
        kind=TaskKind(row.kind),
        urn=SchoolUrn(row.urn) if row.urn else None,
        matter=msgspec.json.decode(keyring.open(bytes(row.sealed), about=f"encompass-task/{row.id}"), type=Matter),
        held_by=row.held_by,
        opened_at=row.opened_at,
        due_by=row.due_by,
        level=row.level,
        state=ItemState(row.state),
        decided_by=row.decided_by,
    )


# What schools did


async def add_record(
    connection: AsyncConnection, keyring: Keyring, notice: StoredNotice, text: str, *, by: str, now: datetime
) -> None:
    """Write down what a school did."""
    record_id = keyring.derive_id("school-record", notice.id, by, now.isoformat())
    values = {
        "id": record_id,
        "owner": notice.owner,
        "notice_id": notice.id,
        "sealed": keyring.seal(text.encode(), about=f"school-record/{record_id}"),
        "written_at": now,
        "written_by": by,
    }
    await connection.execute(upsert(connection, _records).values(values).on_conflict_do_nothing())


async def list_records(
    connection: AsyncConnection, keyring: Keyring, notice_ids: Collection[str]
) -> list[StoredRecord]:
    """What a school did about its notices, in order."""
    statement = select(_records).where(_records.c.notice_id.in_(notice_ids)).order_by(_records.c.written_at)
    return [
        StoredRecord(
            notice_id=row.notice_id,
            text=keyring.open(bytes(row.sealed), about=f"school-record/{row.id}").decode(),
            written_at=row.written_at,
            written_by=row.written_by,
        )
        for row in await connection.execute(statement)
    ]
