"""Messages that could not be handled: the bytes, the reason, an owner and a time limit. A person finds them here."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.storage.database import upsert
from broker.storage.tables import ItemState, Quarantined, table
from schemas.identifiers import BROKER_OWNER
from schemas.record import Partition

_quarantine = table(Quarantined)
OPERATORS = "operators"


class NewQuarantined(msgspec.Struct, frozen=True, kw_only=True):
    """A message to be kept. ``reason`` is a closed word, ``detail`` names segments and fields, never contents."""

    partition: Partition
    log_id: str
    offset: int
    reason: str
    detail: str
    body: bytes
    kept_at: datetime
    due_by: datetime


class StoredQuarantined(msgspec.Struct, frozen=True, kw_only=True):
    """A kept message as operators see it, without its bytes."""

    id: str
    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    held_by: str
    state: ItemState
    kept_at: datetime
    due_by: datetime


async def save_quarantined(connection: AsyncConnection, keyring: Keyring, items: Sequence[NewQuarantined]) -> None:
    """Keep messages; one that is kept already stays as it is."""
    if not items:
        return
    rows = []
    for item in items:
        quarantine_id = keyring.derive_id(
            "quarantine", item.partition.topic, item.log_id, str(item.partition.number), str(item.offset)
        )
        rows.append(
            {
                "id": quarantine_id,
                "owner": BROKER_OWNER,
                "topic": item.partition.topic,
                "log_id": item.log_id,
                "partition": item.partition.number,
                "position": item.offset,
                "reason": item.reason,
                "detail": item.detail,
                "sealed": keyring.seal(item.body, about=f"quarantine/{quarantine_id}"),
                "held_by": OPERATORS,
                "level": 0,
                "state": ItemState.OPEN.value,
                "kept_at": item.kept_at,
                "due_by": item.due_by,
            }
        )
    await connection.execute(upsert(connection, _quarantine).on_conflict_do_nothing(), rows)


async def list_open(connection: AsyncConnection, *, rows_max: int) -> list[StoredQuarantined]:
    """Open items, oldest first."""
    statement = (
        select(_quarantine)
        .where(_quarantine.c.state == ItemState.OPEN.value)
        .order_by(_quarantine.c.kept_at, _quarantine.c.id)
        .limit(rows_max)
    )
    return [
        StoredQuarantined(
            id=row.id,
            topic=row.topic,
            partition=row.partition,
            offset=row.position,
            reason=row.reason,
            detail=row.detail,
            held_by=row.held_by,
            state=ItemState(row.state),
            kept_at=row.kept_at,
            due_by=row.due_by,
        )
        for row in await connection.execute(statement)
    ]


async def count_open(connection: AsyncConnection) -> tuple[int, datetime | None]:
    """How many are open, and since when the oldest."""
    statement = select(func.count(), func.min(_quarantine.c.kept_at)).where(_quarantine.c.state == ItemState.OPEN.value)
    count, oldest = (await connection.execute(statement)).one()
    return int(count), oldest
