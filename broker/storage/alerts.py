"""Alerts to social care: raised, opened, acknowledged, escalated."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Select, bindparam, case, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.alerts import DUTY_DESK, withhold_place
from broker.domain.course import VisitState
from broker.keyring import Keyring
from broker.storage.database import upsert
from broker.storage.rows import Write, insert_rows, is_among, is_among_given, write_together
from broker.storage.tables import Alert, AlertEntry, AlertNotice, AlertState, AuthorityRow, Visit, table
from schemas.alert import AlertUpdated, NoticeKind, SocialCareAlert
from schemas.identifiers import authority_owner

_alerts, _entries = table(Alert), table(AlertEntry)
_notices = table(AlertNotice)
_visits, _authorities = table(Visit), table(AuthorityRow)
SOCIAL_CARE_ROLE = "social_care"
LOOK_UP_ROLE = "look_up"


class NewAlert(msgspec.Struct, frozen=True, kw_only=True):
    """An alert to be raised, with the entries it rests on: (entry id, allocated worker)."""

    alert: SocialCareAlert
    visit_id: str
    role: str
    held_by: str
    due_by: datetime
    entries: tuple[tuple[str, str | None], ...]
    told_state: VisitState = VisitState.HERE
    """Where the visit stands, as the alert tells it."""
    is_restricted: bool = False


class NewNotice(msgspec.Struct, frozen=True, kw_only=True):
    """A further message of an alert, and the state of the visit that it tells."""

    update: AlertUpdated
    told_state: VisitState
    due_by: datetime


class Withdrawal(msgspec.Struct, frozen=True, kw_only=True):
    """An alert that is withdrawn by a rule."""

    alert_id: str
    rule: str


class ToldNotice(msgspec.Struct, frozen=True, kw_only=True):
    """What an authority was told of a visit after its alert."""

    kind: NoticeKind
    is_urgent: bool
    raised_at: datetime


class Ground(msgspec.Struct, frozen=True, kw_only=True):
    """An entry on which an alert rests, and the worker allocated to it."""

    alert_id: str
    authority: str
    entry_id: str
    worker: str | None


class ToldOf(msgspec.Struct, frozen=True, kw_only=True):
    """That an authority was told of the person of an entry, because of an organisation."""

    organisation: str
    entry_id: str
    alert_id: str
    authority: str
    told_at: datetime
    acknowledged_at: datetime | None
    is_look_up: bool


class StoredAlert(msgspec.Struct, frozen=True, kw_only=True):
    """An alert as its authority's people see it."""

    alert: SocialCareAlert
    visit_id: str
    held_by: str
    level: int
    state: AlertState
    raised_at: datetime
    due_by: datetime
    opened_at: datetime | None
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    withdrawn_at: datetime | None
    withdrawn_rule: str | None
    closed_rule: str | None
    is_restricted: bool = False
    """The place is withheld; ``load_alert`` gives it with ``with_place``."""


class AuthorityTold(msgspec.Struct, frozen=True, kw_only=True):
    """What a department may know of an authority's alert: that it was raised, and whether a person took it."""

    authority_name: str
    acknowledged_at: datetime | None


def alert_role(withdrawn: int) -> str:
    """The role an alert is for. After a withdrawal the authority is told anew: that is another alert."""
    return SOCIAL_CARE_ROLE if not withdrawn else f"{SOCIAL_CARE_ROLE}/{withdrawn + 1}"


def derive_alert_id(keyring: Keyring, visit_id: str, authority: str, role: str = SOCIAL_CARE_ROLE) -> str:
    """One alert per visit, authority and role; a replay derives the same id."""
    return keyring.derive_id("alert", visit_id, authority, role)


async def save_alerts(connection: AsyncConnection, keyring: Keyring, alerts: Sequence[NewAlert]) -> None:
    """Raise alerts; one that exists stays as it is."""
    await write_together(connection, write_alerts(keyring, alerts))


def write_alerts(keyring: Keyring, alerts: Sequence[NewAlert]) -> list[Write]:
    """What ``save_alerts`` writes."""
    raised = [
        {
            "id": new.alert.alert_id,
            "owner": authority_owner(new.alert.authority),
            "authority": new.alert.authority,
            "visit_id": new.visit_id,
            "role": new.role,
            "sealed": keyring.seal(msgspec.json.encode(new.alert), about=f"alert/{new.alert.alert_id}"),
            "held_by": new.held_by,
            "level": 0,
            "state": AlertState.OPEN.value,
            "raised_at": new.alert.raised_at,
            "due_by": new.due_by,
            "told_state": new.told_state.value,
            "is_restricted": new.is_restricted,
        }
        for new in alerts
    ]
    resting = [
        {
            "alert_id": new.alert.alert_id,
            "entry_id": entry_id,
            "owner": authority_owner(new.alert.authority),
            "worker": worker,
        }
        for new in alerts
        for entry_id, worker in new.entries
    ]
    return [Write(_alerts, raised, ignore_existing=True), Write(_entries, resting, ignore_existing=True)]


async def save_notices(connection: AsyncConnection, notices: Sequence[NewNotice]) -> None:
    """Keep what was told after an alert. An urgent one hands an alert that is still open to the person on duty."""
    for new in notices:
        update_ = new.update
        row = {
            "id": update_.notice_id,
            "owner": authority_owner(update_.authority),
            "alert_id": update_.alert_id,
            "kind": update_.kind.value,
            "is_urgent": update_.is_urgent,
            "raised_at": update_.raised_at,
        }
        await insert_rows(connection, _notices, [row], ignore_existing=True)
        is_it = _alerts.c.id == update_.alert_id
        told = {"told_state": new.told_state.value, "notices": _alerts.c.notices + 1}
        await connection.execute(update(_alerts).where(is_it).values(told))
        if update_.is_urgent:
            due_by = case((_alerts.c.due_by < new.due_by, _alerts.c.due_by), else_=new.due_by)
            urgent = {"held_by": DUTY_DESK, "level": _alerts.c.level + 1, "due_by": due_by}
            is_open = _alerts.c.state == AlertState.OPEN.value
            await connection.execute(update(_alerts).where(is_it, is_open).values(urgent))


async def load_notices(connection: AsyncConnection, alert_id: str) -> list[ToldNotice]:
    """What was told after an alert, oldest first."""
    statement = select(_notices).where(_notices.c.alert_id == alert_id).order_by(_notices.c.raised_at, _notices.c.id)
    return [
        ToldNotice(kind=NoticeKind(row.kind), is_urgent=row.is_urgent, raised_at=row.raised_at)
        for row in await connection.execute(statement)
    ]


async def load_last_notices(connection: AsyncConnection, alert_ids: Collection[str]) -> dict[str, ToldNotice]:
    """The newest of what was told after each of these alerts, by alert; those of which nothing was told are missing."""
    statement = select(_notices).where(_notices.c.alert_id.in_(alert_ids)).order_by(_notices.c.raised_at, _notices.c.id)
    return {
        row.alert_id: ToldNotice(kind=NoticeKind(row.kind), is_urgent=row.is_urgent, raised_at=row.raised_at)
        for row in await connection.execute(statement)
    }


async def add_grounds(connection: AsyncConnection, grounds: Sequence[Ground]) -> None:
    """Note further entries on which alerts rest; their workers see the alerts as well."""
    if grounds:
        await connection.execute(
            upsert(connection, _entries).on_conflict_do_nothing(),
            [
                {
                    "alert_id": ground.alert_id,
                    "entry_id": ground.entry_id,
                    "owner": authority_owner(ground.authority),
                    "worker": ground.worker,
                }
                for ground in grounds
            ],
        )


async def list_alerts(
    connection: AsyncConnection,
    keyring: Keyring,
    owner: str,
    *,
    worker: str | None,
    rows_max: int,
    closed_since: datetime | None = None,
) -> list[StoredAlert]:
    """An authority's alerts: open ones first, the most escalated and then the longest due at the top; then the newest.

    With ``worker``, only those that rest on a plan allocated to that worker or that the worker holds. With
    ``closed_since``, of those that are no longer open only the ones raised since.
    """
    statement = select(_alerts).where(_alerts.c.owner == owner)
    is_open = _alerts.c.state == AlertState.OPEN.value
    if worker is not None:
        allocated = select(_entries.c.alert_id).where(_entries.c.owner == owner, _entries.c.worker == worker)
        statement = statement.where(_alerts.c.id.in_(allocated) | (_alerts.c.held_by == worker))
    if closed_since is not None:
        statement = statement.where(is_open | (_alerts.c.raised_at >= closed_since))
    # A list that is cut at rows_max must lose the least urgent, never an alert that waits longest.
    statement = statement.order_by(
        case((is_open, 0), else_=1),
        case((is_open, -_alerts.c.level), else_=0),
        case((is_open, _alerts.c.due_by)),
        _alerts.c.raised_at.desc(),
        _alerts.c.id,
    ).limit(rows_max)
    return [_open(keyring, row) for row in await connection.execute(statement)]


async def load_alert(
    connection: AsyncConnection,
    keyring: Keyring,
    owner: str,
    alert_id: str,
    *,
    worker: str | None,
    with_place: bool = False,
) -> StoredAlert | None:
    """One alert of the authority, or None when there is none that this worker (None: the duty desk) may see.

    ``with_place`` is for the protected view alone: also of a restricted person, where they are.
    """
    row = (
        await connection.execute(select(_alerts).where(_alerts.c.owner == owner, _alerts.c.id == alert_id))
    ).one_or_none()
    if row is None:
        return None
    if worker is not None and row.held_by != worker:
        allocated = select(_entries.c.worker).where(_entries.c.alert_id == alert_id, _entries.c.worker == worker)
        if (await connection.execute(allocated)).first() is None:
            return None
    return _open(keyring, row, with_place=with_place)


async def list_grounds(connection: AsyncConnection, alert_id: str) -> list[str]:
    """The entries on which an alert rests."""
    return list(
        (await connection.execute(select(_entries.c.entry_id).where(_entries.c.alert_id == alert_id))).scalars()
    )


async def list_resting_on(
    connection: AsyncConnection, keyring: Keyring, owner: str, entry_ids: Sequence[str], *, rows_max: int
) -> list[StoredAlert]:
    """An authority's alerts that rest on any of these entries, the newest first."""
    resting = select(_entries.c.alert_id).where(is_among(connection, _entries.c.entry_id, entry_ids))
    statement = select(_alerts).where(_alerts.c.owner == owner, _alerts.c.id.in_(resting))
    statement = statement.order_by(_alerts.c.raised_at.desc(), _alerts.c.id).limit(rows_max)
    return [_open(keyring, row) for row in await connection.execute(statement)]


async def note_opened(connection: AsyncConnection, alert_id: str, now: datetime) -> None:
    """A person looked at the alert; the first look is kept."""
    await connection.execute(
        update(_alerts).where(_alerts.c.id == alert_id, _alerts.c.opened_at.is_(None)).values(opened_at=now)
    )


async def acknowledge_alert(connection: AsyncConnection, owner: str, alert_id: str, *, by: str, now: datetime) -> bool:
    """A person takes the alert; False when it was not open any more. It closes this alert and no other."""
    acknowledged = await connection.execute(
        update(_alerts)
        .where(_alerts.c.id == alert_id, _alerts.c.owner == owner, _alerts.c.state == AlertState.OPEN.value)
        .values(
            state=AlertState.ACKNOWLEDGED.value,
            acknowledged_at=now,
            acknowledged_by=by,
            opened_at=func.coalesce(_alerts.c.opened_at, now),
        )
    )
    return acknowledged.rowcount == 1


async def load_authorities_told(
    connection: AsyncConnection, organisation: str, visit_ids: Sequence[str]
) -> dict[str, list[AuthorityTold]]:
    """By visit of an organisation (its owner id): the authorities that have an alert, and when a person took it."""
    statement = (
        select(_alerts.c.visit_id, _authorities.c.name, _alerts.c.acknowledged_at)
        .join(_visits, _visits.c.id == _alerts.c.visit_id)
        .join(_authorities, _authorities.c.code == _alerts.c.authority)
        .where(_alerts.c.visit_id.in_(visit_ids), _visits.c.owner == organisation)
        .order_by(_authorities.c.name, _alerts.c.id)
    )
    told: dict[str, list[AuthorityTold]] = {}
    for visit_id, name, acknowledged_at in await connection.execute(statement):
        told.setdefault(visit_id, []).append(AuthorityTold(authority_name=name, acknowledged_at=acknowledged_at))
    return told


async def list_told_of(
    connection: AsyncConnection, organisations: Collection[str], entry_ids: Collection[str], since: datetime
) -> list[ToldOf]:
    """The alerts that organisations (their owner ids) caused of the persons of these entries, newest first."""
    values = {"organisations": list(organisations), "entry_ids": list(entry_ids), "told_since": since}
    return open_told_of(await connection.execute(_told_of(connection.dialect.name), values))


def open_told_of(rows: Iterable[Any]) -> list[ToldOf]:
    """What rows of ``select_told_of`` say, newest first."""
    return [
        ToldOf(
            organisation=row.owner,
            entry_id=row.entry_id,
            alert_id=row.id,
            authority=row.authority,
            told_at=row.raised_at,
            acknowledged_at=row.acknowledged_at,
            is_look_up=row.is_look_up,
        )
        for row in sorted(rows, key=lambda row: (-row.raised_at.timestamp(), row.id))
    ]


@cache
def _told_of(dialect_name: str) -> Select[Any]:
    return select_told_of(dialect_name, is_among_given(dialect_name, _entries.c.entry_id, "entry_ids"))


def select_told_of(dialect_name: str, is_of_entry: ColumnElement[bool]) -> Select[Any]:
    """The alerts of some entries that ``organisations`` caused after ``told_since``.

    PostgreSQL is held to finding them by their entries: left to choose, it goes through all that was raised since.
    """
    of_entries = (
        select(_entries.c.entry_id, _alerts)
        .join_from(_entries, _alerts, _alerts.c.id == _entries.c.alert_id)
        .where(is_of_entry)
        .cte("of_entries")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    return (
        select(
            of_entries.c.entry_id,
            _visits.c.owner,
            of_entries.c.id,
            of_entries.c.authority,
            of_entries.c.raised_at,
            of_entries.c.acknowledged_at,
            (of_entries.c.role == LOOK_UP_ROLE).label("is_look_up"),
        )
        .join_from(of_entries, _visits, _visits.c.id == of_entries.c.visit_id)
        .where(
            is_among_given(dialect_name, _visits.c.owner, "organisations"),
            of_entries.c.raised_at >= bindparam("told_since"),
            of_entries.c.withdrawn_at.is_(None),
        )
    )


async def withdraw_alerts(
    connection: AsyncConnection, visit_id: str, authority: str, *, rule: str, now: datetime
) -> list[str]:
    """Withdraw the alert of a visit that stands for an authority; returns its id. An open one is closed by ``rule``."""
    standing = (
        _alerts.c.visit_id == visit_id,
        _alerts.c.authority == authority,
        _alerts.c.withdrawn_at.is_(None),
    )
    found = [row.id for row in await connection.execute(select(_alerts.c.id).where(*standing))]
    if found:
        await _withdraw(connection, found, rule=rule, now=now)
    return found


async def move_alerts(connection: AsyncConnection, visit_id: str, into: str, authorities: Sequence[str]) -> None:
    """Give the alerts of a visit for these authorities to the visit it was found to be, which has none for them."""
    if authorities:
        moved = (_alerts.c.visit_id == visit_id, _alerts.c.authority.in_(authorities))
        await connection.execute(update(_alerts).where(*moved).values(visit_id=into))


async def withdraw_each(connection: AsyncConnection, withdrawals: Sequence[Withdrawal], now: datetime) -> None:
    """Withdraw alerts, each by its rule. Open ones are closed by it."""
    for withdrawal in withdrawals:
        await _withdraw(connection, [withdrawal.alert_id], rule=withdrawal.rule, now=now)


async def _withdraw(connection: AsyncConnection, alert_ids: Sequence[str], *, rule: str, now: datetime) -> None:
    standing = (_alerts.c.id.in_(alert_ids), _alerts.c.withdrawn_at.is_(None))
    closing = {"state": AlertState.CLOSED.value, "closed_rule": rule}
    is_open = _alerts.c.state == AlertState.OPEN.value
    await connection.execute(update(_alerts).where(*standing, is_open).values(closing))
    await connection.execute(update(_alerts).where(*standing).values(withdrawn_at=now, withdrawn_rule=rule))


async def find_resting_on(connection: AsyncConnection, entry_id: str) -> dict[str, datetime]:
    """Visits that have an alert that stands and rests on an entry, whatever else it rests on; when it was raised."""
    statement = (
        select(_alerts.c.visit_id, _alerts.c.raised_at)
        .join(_entries, _entries.c.alert_id == _alerts.c.id)
        .where(_entries.c.entry_id == entry_id, _alerts.c.withdrawn_at.is_(None))
        .order_by(_alerts.c.visit_id)
    )
    return {row.visit_id: row.raised_at for row in await connection.execute(statement)}


async def count_alerts(connection: AsyncConnection) -> dict[str, int]:
    """Alerts by state."""
    rows = await connection.execute(select(_alerts.c.state, func.count()).group_by(_alerts.c.state))
    return dict(rows.all())


def _open(keyring: Keyring, row: Any, *, with_place: bool = False) -> StoredAlert:
    plain = keyring.open(bytes(row.sealed), about=f"alert/{row.id}")
    alert = msgspec.json.decode(plain, type=SocialCareAlert)
    if row.is_restricted and not with_place:
        alert = msgspec.structs.replace(alert, attendance=withhold_place(alert.attendance))
    return StoredAlert(
        alert=alert,
        visit_id=row.visit_id,
        held_by=row.held_by,
        level=row.level,
        state=AlertState(row.state),
        raised_at=row.raised_at,
        due_by=row.due_by,
        opened_at=row.opened_at,
        acknowledged_at=row.acknowledged_at,
        acknowledged_by=row.acknowledged_by,
        withdrawn_at=row.withdrawn_at,
        withdrawn_rule=row.withdrawn_rule,
        closed_rule=row.closed_rule,
        is_restricted=row.is_restricted,
    )
