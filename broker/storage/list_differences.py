"""Entries that a full list left out: each waits for a person, who says whether the plan is over."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.storage.coverage import LIST_OFFICERS
from broker.storage.database import upsert
from broker.storage.rows import is_among
from broker.storage.tables import ItemState, ListDifference, table
from schemas.identifiers import authority_owner

_differences = table(ListDifference)
LISTED_AGAIN = "listed_again"
"""The rule by which a difference is closed whose entry came with a later file."""


class DifferenceDecision(StrEnum):
    """What a person says of an entry that was left out."""

    STILL_LISTED = "still_listed"
    """The file was wrong: the entry stays."""
    ENDED = "ended"
    """The plan is over."""
    TAKEN_BACK = "taken_back"
    """The entry was an error."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """An entry that was left out, and who is to say why."""

    id: str
    authority: str
    entry_id: str
    upload_id: str
    held_by: str
    level: int
    opened_at: datetime
    due_by: datetime


async def open_differences(
    connection: AsyncConnection,
    authority: str,
    upload_id: str,
    left_out: Sequence[tuple[str, str]],
    *,
    now: datetime,
    due_by: datetime,
) -> None:
    """Ask about entries, given as (difference id, entry id). One that is asked about already keeps its age."""
    if not left_out:
        return
    statement = upsert(connection, _differences)
    anew = ("upload_id", "held_by", "level", "state", "opened_at", "due_by", "decision", "decided_by", "decided_at")
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=["id"],
            set_={name: statement.excluded[name] for name in anew},
            where=_differences.c.state == ItemState.DONE.value,
        ),
        [
            {
                "id": difference_id,
                "owner": authority_owner(authority),
                "authority": authority,
                "entry_id": entry_id,
                "upload_id": upload_id,
                "held_by": LIST_OFFICERS,
                "level": 0,
                "state": ItemState.OPEN.value,
                "opened_at": now,
                "due_by": due_by,
                "decision": None,
                "decided_by": None,
                "decided_at": None,
            }
            for difference_id, entry_id in left_out
        ],
    )


async def close_listed(connection: AsyncConnection, entry_ids: Sequence[str], now: datetime) -> None:
    """Close the questions about entries that a file has again."""
    await connection.execute(
        update(_differences)
        .where(_differences.c.state == ItemState.OPEN.value, is_among(connection, _differences.c.entry_id, entry_ids))
        .values(state=ItemState.DONE.value, decision=LISTED_AGAIN, decided_at=now)
    )


async def settle_difference(
    connection: AsyncConnection, difference_id: str, *, decision: DifferenceDecision, by: str, now: datetime
) -> bool:
    """Note what a person decided; False when somebody else was first."""
    statement = (
        update(_differences)
        .where(_differences.c.id == difference_id, _differences.c.state == ItemState.OPEN.value)
        .values(state=ItemState.DONE.value, decision=decision.value, decided_by=by, decided_at=now)
        .returning(_differences.c.id)
    )
    return (await connection.execute(statement)).one_or_none() is not None


async def load_difference(connection: AsyncConnection, difference_id: str) -> Difference | None:
    """A question that waits; None when there is none or it was decided."""
    statement = select(_differences).where(
        _differences.c.id == difference_id, _differences.c.state == ItemState.OPEN.value
    )
    row = (await connection.execute(statement)).one_or_none()
    return None if row is None else _open(row)


async def list_differences(connection: AsyncConnection, owner: str, *, rows_max: int) -> list[Difference]:
    """An authority's open questions, the most overdue first."""
    statement = (
        select(_differences)
        .where(_differences.c.owner == owner, _differences.c.state == ItemState.OPEN.value)
        .order_by(_differences.c.level.desc(), _differences.c.due_by, _differences.c.id)
        .limit(rows_max)
    )
    return [_open(row) for row in await connection.execute(statement)]


async def list_open_entries(connection: AsyncConnection, owner: str) -> list[str]:
    """The entries of an authority that are asked about."""
    statement = select(_differences.c.entry_id).where(
        _differences.c.owner == owner, _differences.c.state == ItemState.OPEN.value
    )
    return list((await connection.execute(statement)).scalars())


async def count_differences(connection: AsyncConnection, owner: str) -> int:
    """How many questions of an authority wait."""
    statement = (
        select(func.count())
        .select_from(_differences)
        .where(_differences.c.owner == owner, _differences.c.state == ItemState.OPEN.value)
    )
    return int((await connection.execute(statement)).scalar_one())


def _open(row: Any) -> Difference:
    return Difference(
        id=row.id,
        authority=row.authority,
        entry_id=row.entry_id,
        upload_id=row.upload_id,
        held_by=row.held_by,
        level=row.level,
        opened_at=row.opened_at,
        due_by=row.due_by,
    )
