"""Nothing waits without an owner and a limit: what is past its limit moves up.

Alerts, reviews, quarantined messages, files of MESH and what waits of a list.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlmodel import SQLModel

from broker.domain.alerts import DUTY_DESK
from broker.storage.coverage import LIST_OFFICERS
from broker.storage.quarantine import OPERATORS
from broker.storage.tables import (
    Alert,
    CoverageItem,
    EncompassTask,
    HeldUpload,
    ListDifference,
    MeshFile,
    Quarantined,
    Review,
    table,
)

SUPERVISOR = "supervisor"
"""Whoever stands behind a coordinator or an authority's officer."""
HELD_AFTERWARDS: dict[type[SQLModel], str] = {
    Alert: DUTY_DESK,
    Review: DUTY_DESK,
    Quarantined: OPERATORS,
    CoverageItem: DUTY_DESK,
    MeshFile: OPERATORS,
    HeldUpload: OPERATORS,
    ListDifference: LIST_OFFICERS,
    EncompassTask: SUPERVISOR,
}
"""What can be overdue, and who holds it then."""


class Overdue(msgspec.Struct, frozen=True, kw_only=True):
    """Something that moved up: ``level`` counts how often."""

    kind: str
    owner: str
    id: str
    level: int


async def find_overdue(connection: AsyncConnection, now: datetime) -> list[type[SQLModel]]:
    """The kinds of which something is overdue: who finds none need not write."""
    found = []
    for kind in HELD_AFTERWARDS:
        source = table(kind)
        first = select(source.c.id).where(source.c.state == "open", source.c.due_by <= now).limit(1)
        if (await connection.execute(first)).one_or_none() is not None:
            found.append(kind)
    return found


async def hand_over_overdue(
    connection: AsyncConnection, kind: type[SQLModel], *, now: datetime, limit: timedelta, rows_max: int
) -> list[Overdue]:
    """Hand what is open past its limit to the next holder with a new limit."""
    source = table(kind)
    overdue = (
        select(source.c.id)
        .where(source.c.state == "open", source.c.due_by <= now)
        .order_by(source.c.due_by, source.c.id)
        .limit(rows_max)
        .with_for_update(skip_locked=True)
    )
    statement = (
        update(source)
        .where(source.c.id.in_(overdue.scalar_subquery()))
        .values(held_by=HELD_AFTERWARDS[kind], level=source.c.level + 1, due_by=now + limit)
        .returning(source.c.owner, source.c.id, source.c.level)
    )
    moved = [
        Overdue(kind=source.name, owner=row.owner, id=row.id, level=row.level)
        for row in await connection.execute(statement)
    ]
    return sorted(moved, key=lambda item: (item.owner, item.id))
