"""Alerts that should have been raised and were not: each with its cause, an owner and an age."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import exists, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.alerts import DUTY_DESK
from broker.keyring import Keyring
from broker.storage.jobs import FIND_MISSED
from broker.storage.rows import insert_new, is_among
from broker.storage.tables import ItemState, Job, MissedAlert, MissedCause, Visit, VisitMessage, table
from schemas.identifiers import authority_owner

_missed, _jobs, _visits, _messages = table(MissedAlert), table(Job), table(Visit), table(VisitMessage)
ALERTED_LATE = "alerted_late"


class Missed(msgspec.Struct, frozen=True, kw_only=True):
    """One alert that was missed. ``alert_id``: it was raised late; without one it was too old, and is only listed."""

    id: str
    authority: str
    visit_id: str
    entry_id: str
    cause: MissedCause
    visited_at: datetime
    found_at: datetime
    alert_id: str | None = None
    held_by: str = DUTY_DESK
    state: ItemState = ItemState.OPEN
    decision: str | None = None
    decided_by: str | None = None


def derive_missed_id(keyring: Keyring, visit_id: str, authority: str) -> str:
    """One per visit and authority."""
    return keyring.derive_id("missed", visit_id, authority)


async def save_missed(connection: AsyncConnection, found: Sequence[Missed]) -> set[str]:
    """Keep what was found; returns the ids of those that were not known."""
    rows = [
        {
            "id": each.id,
            "owner": authority_owner(each.authority),
            "authority": each.authority,
            "visit_id": each.visit_id,
            "entry_id": each.entry_id,
            "cause": each.cause.value,
            "held_by": each.held_by,
            "state": ItemState.OPEN.value,
            "visited_at": each.visited_at,
            "found_at": each.found_at,
            "alert_id": each.alert_id,
        }
        for each in found
    ]
    return set(await insert_new(connection, _missed, rows, key="id"))


async def list_missed(connection: AsyncConnection, *, owner: str | None, rows_max: int) -> list[Missed]:
    """What was missed, open ones first, the oldest visit at the top; with ``owner``, one authority's."""
    statement = select(_missed).order_by(_missed.c.state.desc(), _missed.c.visited_at, _missed.c.id).limit(rows_max)
    if owner is not None:
        statement = statement.where(_missed.c.owner == owner)
    return [_read(row) for row in await connection.execute(statement)]


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """What the last night that was looked through took in. ``night`` is None: no night was yet."""

    night: str | None
    """The London day on which it began."""
    since: datetime | None
    """When the oldest visit was heard of last that is still kept in full."""


async def load_sweep(connection: AsyncConnection) -> Sweep:
    """Over which days missed alerts are known to be looked for."""
    done = select(func.max(_jobs.c.subject)).where(
        _jobs.c.kind == FIND_MISSED, _jobs.c.state == ItemState.DONE.value, _jobs.c.done_at.is_not(None)
    )
    kept = select(func.min(_visits.c.heard_at)).where(exists().where(_messages.c.visit_id == _visits.c.id))
    return Sweep(
        night=(await connection.execute(done)).scalar_one(), since=(await connection.execute(kept)).scalar_one()
    )


async def close_alerted(connection: AsyncConnection, missed_ids: Collection[str]) -> None:
    """Close those that were alerted late: the alert has a holder of its own."""
    if missed_ids:
        await connection.execute(
            update(_missed)
            .where(is_among(connection, _missed.c.id, missed_ids), _missed.c.alert_id.is_not(None))
            .values(state=ItemState.DONE.value, decision=ALERTED_LATE)
        )


async def settle_missed(connection: AsyncConnection, owner: str, missed_id: str, *, by: str, now: datetime) -> bool:
    """A person has seen to it; False when it was not open any more."""
    settled = await connection.execute(
        update(_missed)
        .where(_missed.c.id == missed_id, _missed.c.owner == owner, _missed.c.state == ItemState.OPEN.value)
        .values(state=ItemState.DONE.value, decision="seen_to", decided_by=by, decided_at=now)
    )
    return settled.rowcount == 1


def _read(row: Any) -> Missed:
    return Missed(
        id=row.id,
        authority=row.authority,
        visit_id=row.visit_id,
        entry_id=row.entry_id,
        cause=MissedCause(row.cause),
        visited_at=row.visited_at,
        found_at=row.found_at,
        alert_id=row.alert_id,
        held_by=row.held_by,
        state=ItemState(row.state),
        decision=row.decision,
        decided_by=row.decided_by,
    )
