"""Coverage: what keeps entries and lists from alerting as they should, how much is covered, how lists are confirmed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import date, datetime

import msgspec
from sqlalchemy import case, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.storage.database import upsert
from broker.storage.rows import is_among
from broker.storage.tables import CoverageDay, CoverageItem, ItemState, ListConfirmation, ListUpload, table
from schemas.coverage import CoverageReason
from schemas.identifiers import authority_owner

LIST_OFFICERS = "list_officers"
"""Who holds an item first: the authority's list officers."""
CONFIRMATIONS_MAX = 11
"""Ten intervals tell a habit."""
_items, _days, _confirmations = table(CoverageItem), table(CoverageDay), table(ListConfirmation)
_uploads = table(ListUpload)


class StoredItem(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to be mended. Without ``entry_id`` it is about the whole list."""

    id: str
    entry_id: str | None
    reason: CoverageReason
    held_by: str
    level: int
    state: ItemState
    opened_at: datetime
    due_by: datetime
    noted_by: str | None


class CountedDay(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a list was covered on a London day."""

    counted_on: date
    entries: int
    can_alert: int | None
    """Nothing that is known speaks against them; None: it was not counted yet on that day."""
    covered: int
    """... and PDS knows their number as theirs."""
    unverified: int


def derive_item_id(keyring: Keyring, owner: str, entry_id: str | None, reason: CoverageReason) -> str:
    """One item for each entry, or list, and reason."""
    return keyring.derive_id("coverage", owner, entry_id or "", reason)


async def load_items(
    connection: AsyncConnection, owner: str, *, only_open: bool = False, rows_max: int | None = None
) -> list[StoredItem]:
    """An owner's items, the oldest first; what was handed over before what was not."""
    statement = select(_items).where(_items.c.owner == owner)
    if only_open:
        statement = statement.where(_items.c.state == ItemState.OPEN.value)
    statement = statement.order_by(_items.c.opened_at, _items.c.id).limit(rows_max)
    return [
        StoredItem(
            id=row.id,
            entry_id=row.entry_id,
            reason=CoverageReason(row.reason),
            held_by=row.held_by,
            level=row.level,
            state=ItemState(row.state),
            opened_at=row.opened_at,
            due_by=row.due_by,
            noted_by=row.noted_by,
        )
        for row in await connection.execute(statement)
    ]


async def open_items(connection: AsyncConnection, owner: str, items: Sequence[StoredItem]) -> None:
    """Open items, also such as were closed before."""
    if not items:
        return
    statement = upsert(connection, _items)
    anew = ("held_by", "level", "state", "opened_at", "due_by", "closed_at", "noted_by")
    await connection.execute(
        statement.on_conflict_do_update(index_elements=["id"], set_={name: statement.excluded[name] for name in anew}),
        [
            {
                "id": item.id,
                "owner": owner,
                "entry_id": item.entry_id,
                "reason": item.reason.value,
                "held_by": item.held_by,
                "level": item.level,
                "state": ItemState.OPEN.value,
                "opened_at": item.opened_at,
                "due_by": item.due_by,
                "closed_at": None,
                "noted_by": None,
            }
            for item in items
        ],
    )


async def close_items(connection: AsyncConnection, item_ids: Collection[str], now: datetime) -> None:
    """Close items whose reason is gone; one that a person had noted may open again."""
    if item_ids:
        closed_at = case((_items.c.closed_at.is_(None), now), else_=_items.c.closed_at)
        await connection.execute(
            update(_items)
            .where(is_among(connection, _items.c.id, item_ids))
            .values(state=ItemState.DONE.value, closed_at=closed_at, noted_by=None)
        )


async def note_item(connection: AsyncConnection, owner: str, item_id: str, *, by: str, now: datetime) -> bool:
    """A person has seen to what cannot be mended in the list; it stays away as long as the reason lasts."""
    standing = (
        _items.c.id == item_id,
        _items.c.owner == owner,
        _items.c.reason == CoverageReason.RESTRICTED.value,
        _items.c.state == ItemState.OPEN.value,
    )
    statement = (
        update(_items)
        .where(*standing)
        .values(state=ItemState.DONE.value, closed_at=now, noted_by=by)
        .returning(_items.c.id)
    )
    return (await connection.execute(statement)).one_or_none() is not None


async def count_handed_over(connection: AsyncConnection, owner: str) -> int:
    """Open items that nobody mended in time."""
    statement = select(func.count()).where(
        _items.c.owner == owner, _items.c.state == ItemState.OPEN.value, _items.c.level > 0
    )
    return int((await connection.execute(statement)).scalar_one())


async def keep_day(connection: AsyncConnection, authority: str, counted: CountedDay) -> None:
    """Keep how much is covered; the last count of a day stands."""
    values = {**msgspec.structs.asdict(counted), "authority": authority, "owner": authority_owner(authority)}
    statement = upsert(connection, _days).values(values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["authority", "counted_on"], set_=values))


async def load_days(connection: AsyncConnection, authority: str, *, days_max: int) -> list[CountedDay]:
    """The last days that were counted, the oldest first."""
    statement = select(_days).where(_days.c.authority == authority).order_by(_days.c.counted_on.desc()).limit(days_max)
    found = [
        CountedDay(
            counted_on=row.counted_on,
            entries=row.entries,
            can_alert=row.can_alert,
            covered=row.covered,
            unverified=row.unverified,
        )
        for row in await connection.execute(statement)
    ]
    return found[::-1]


async def find_refused(connection: AsyncConnection, authority: str) -> int:
    """How many rows of the file that was loaded last were refused: whoever stands in them is not on the list."""
    statement = select(_uploads.c.rows_refused).where(_uploads.c.authority == authority)
    statement = statement.order_by(_uploads.c.uploaded_at.desc(), _uploads.c.id).limit(1)
    return (await connection.execute(statement)).scalar_one_or_none() or 0


async def note_confirmation(connection: AsyncConnection, authority: str, now: datetime) -> None:
    """An upload says that the list stands."""
    values = {"authority": authority, "confirmed_at": now, "owner": authority_owner(authority)}
    await connection.execute(upsert(connection, _confirmations).values(values).on_conflict_do_nothing())


async def load_confirmations(connection: AsyncConnection, authority: str) -> list[datetime]:
    """When the list was confirmed, the newest first."""
    statement = (
        select(_confirmations.c.confirmed_at)
        .where(_confirmations.c.authority == authority)
        .order_by(_confirmations.c.confirmed_at.desc())
        .limit(CONFIRMATIONS_MAX)
    )
    return list((await connection.execute(statement)).scalars())
