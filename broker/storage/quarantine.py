"""Messages that could not be handled: the bytes, the reason, an owner and a time limit. A person finds them here.

An item is known by the position where its message was first kept, also when a replay of it fails: no message is kept
twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, bindparam, func, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring, KeyringError
from broker.storage.database import upsert
from broker.storage.tables import ItemState, Quarantined, table
from schemas.identifiers import BROKER_OWNER
from schemas.record import Partition

_quarantine = table(Quarantined)
OPERATORS = "operators"
REPLAYED = "replayed"
"""The decision about an item whose message was handled after all."""


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
    sender: str = ""


class StoredQuarantined(msgspec.Struct, frozen=True, kw_only=True):
    """A kept message as operators see it, without its bytes."""

    id: str
    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    held_by: str
    level: int
    """How often it was past its limit."""
    state: ItemState
    kept_at: datetime
    due_by: datetime
    sender: str
    """ODS code, empty when it is not known."""
    attempts: int
    """How often a replay of it was handled."""
    last_attempt_at: datetime | None
    decided_at: datetime | None
    decided_by: str | None
    decision: str | None


class KeptMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A kept message with its bytes. They are still an envelope when the key that opens it was not there."""

    item: StoredQuarantined
    log_id: str
    body: bytes | None
    """None when the key under which they are kept here is not there any more."""


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay of a kept message came to."""

    item_id: str
    asked_by: str
    is_handled: bool


def derive_item_id(keyring: Keyring, partition: Partition, log_id: str, offset: int) -> str:
    """The id of the item that a message at this position is kept under."""
    return keyring.derive_id("quarantine", partition.topic, log_id, str(partition.number), str(offset))


async def save_quarantined(connection: AsyncConnection, keyring: Keyring, items: Sequence[NewQuarantined]) -> None:
    """Keep messages; one that is kept already stays as it is, and one that was settled is open again."""
    if not items:
        return
    rows = []
    for item in items:
        quarantine_id = derive_item_id(keyring, item.partition, item.log_id, item.offset)
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
                "sender": item.sender,
            }
        )
    statement = upsert(connection, _quarantine)
    again = {name: statement.excluded[name] for name in ("reason", "detail", "held_by", "level", "state", "due_by")}
    undecided = {"decided_at": None, "decided_by": None, "decision": None}
    statement = statement.on_conflict_do_update(
        index_elements=["id"], set_=again | undecided, where=_quarantine.c.state == ItemState.DONE.value
    )
    await connection.execute(statement, rows)


async def list_open(connection: AsyncConnection, *, rows_max: int) -> list[StoredQuarantined]:
    """Open items, oldest first."""
    return await _list(connection, _quarantine.c.state == ItemState.OPEN.value, rows_max)


async def list_all(connection: AsyncConnection, *, rows_max: int) -> list[StoredQuarantined]:
    """Open and settled items, oldest first."""
    return await _list(connection, true(), rows_max)


async def load_kept(connection: AsyncConnection, keyring: Keyring, ids: Sequence[str]) -> dict[str, KeptMessage]:
    """Kept messages with their bytes, locked in sorted order."""
    statement = select(_quarantine).where(_quarantine.c.id.in_(ids)).order_by(_quarantine.c.id).with_for_update()
    return {
        row.id: KeptMessage(item=_item(row), log_id=row.log_id, body=_open_body(keyring, row))
        for row in await connection.execute(statement)
    }


async def settle_replays(connection: AsyncConnection, replays: Sequence[Replayed], now: datetime) -> None:
    """Note what replays came to: an item whose message was handled is settled, the others stay open."""
    if not replays:
        return
    attempts = {"attempts": _quarantine.c.attempts + 1, "last_attempt_at": now}
    of_item = _quarantine.c.id == bindparam("of_item")
    await connection.execute(
        update(_quarantine).where(of_item).values(attempts), [{"of_item": each.item_id} for each in replays]
    )
    handled = [{"of_item": each.item_id, "by": each.asked_by} for each in replays if each.is_handled]
    if handled:
        statement = (
            update(_quarantine)
            .where(of_item, _quarantine.c.state == ItemState.OPEN.value)
            .values(state=ItemState.DONE.value, decision=REPLAYED, decided_at=now, decided_by=bindparam("by"))
        )
        await connection.execute(statement, handled)


async def _list(connection: AsyncConnection, which: ColumnElement[bool], rows_max: int) -> list[StoredQuarantined]:
    statement = select(_quarantine).where(which).order_by(_quarantine.c.kept_at, _quarantine.c.id).limit(rows_max)
    return [_item(row) for row in await connection.execute(statement)]


def _open_body(keyring: Keyring, row: Any) -> bytes | None:
    try:
        return keyring.open(bytes(row.sealed), about=f"quarantine/{row.id}")
    except KeyringError:
        return None


def _item(row: Any) -> StoredQuarantined:
    return StoredQuarantined(
        id=row.id,
        topic=row.topic,
        partition=row.partition,
        offset=row.position,
        reason=row.reason,
        detail=row.detail,
        held_by=row.held_by,
        level=row.level,
        state=ItemState(row.state),
        kept_at=row.kept_at,
        due_by=row.due_by,
        sender=row.sender,
        attempts=row.attempts,
        last_attempt_at=row.last_attempt_at,
        decided_at=row.decided_at,
        decided_by=row.decided_by,
        decision=row.decision,
    )


async def count_open(connection: AsyncConnection) -> tuple[int, datetime | None]:
    """How many are open, and since when the oldest."""
    statement = select(func.count(), func.min(_quarantine.c.kept_at)).where(_quarantine.c.state == ItemState.OPEN.value)
    count, oldest = (await connection.execute(statement)).one()
    return int(count), oldest
