"""Of messages that a provider took: what became of them is still to be asked. And who could not be reached, since when.

Of a message only our own id is kept here, and of a provider's answer only its word.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

import msgspec
from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.storage.database import upsert
from broker.storage.rows import is_among, update_rows
from broker.storage.tables import AwaitedReceipt, Delivery, Lane, LoginRow, table
from schemas.delivery import ChannelName, DeliveryState, Receipt
from schemas.directory import Reach

_receipts, _deliveries, _lanes, _logins = table(AwaitedReceipt), table(Delivery), table(Lane), table(LoginRow)


class Awaited(msgspec.Struct, frozen=True, kw_only=True):
    """A message that was taken, and of which nobody knows yet what became of it."""

    delivery: str
    lane: str
    channel: ChannelName
    owner: str
    sent_at: datetime


class Unreached(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who was not reached when they were told last."""

    contact: str
    """By the owner's directory."""
    channel: ChannelName
    since: datetime
    code: str
    """A closed word: a Receipt, or how the last attempt ended."""


async def expect_receipt(
    connection: AsyncConnection, delivery_id: str, owner: str, *, ask_at: datetime, now: datetime
) -> None:
    """A provider has just taken this delivery; sent again it is waited for anew."""
    values = {"delivery": delivery_id, "owner": owner, "sent_at": now, "ask_at": ask_at}
    statement = upsert(connection, _receipts).values(values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["delivery"], set_=values))


async def is_any_due(connection: AsyncConnection, now: datetime) -> bool:
    """Whether there is something to ask."""
    statement = select(_receipts.c.delivery).where(_receipts.c.ask_at <= now).limit(1)
    return (await connection.execute(statement)).one_or_none() is not None


async def claim_due(connection: AsyncConnection, *, now: datetime, again_at: datetime, rows_max: int) -> list[Awaited]:
    """What is to be asked now. Whatever becomes of the asking, it is due again at ``again_at``."""
    due = (
        select(_receipts.c.delivery)
        .where(_receipts.c.ask_at <= now)
        .order_by(_receipts.c.ask_at, _receipts.c.delivery)
        .limit(rows_max)
        .with_for_update(skip_locked=True)
    )
    claim = (
        update(_receipts)
        .where(_receipts.c.delivery.in_(due.scalar_subquery()))
        .values(ask_at=again_at)
        .returning(_receipts.c.delivery)
    )
    claimed = list((await connection.execute(claim)).scalars())
    statement = (
        select(_receipts.c.delivery, _receipts.c.sent_at, _receipts.c.owner, _deliveries.c.lane, _lanes.c.channel)
        .join_from(_receipts, _deliveries, _deliveries.c.id == _receipts.c.delivery)
        .join(_lanes, _lanes.c.id == _deliveries.c.lane)
        .where(is_among(connection, _receipts.c.delivery, claimed))
        .order_by(_receipts.c.sent_at, _receipts.c.delivery)
    )
    return [
        Awaited(
            delivery=row.delivery,
            lane=row.lane,
            channel=ChannelName(row.channel),
            owner=row.owner,
            sent_at=row.sent_at,
        )
        for row in await connection.execute(statement)
    ]


async def ask_later(connection: AsyncConnection, ask_at: Mapping[str, datetime]) -> None:
    """By delivery: when to ask again."""
    rows = [{"delivery": delivery, "ask_at": at} for delivery, at in sorted(ask_at.items())]
    await update_rows(connection, _receipts, rows, key="delivery")


async def settle_receipt(connection: AsyncConnection, awaited: Awaited, receipt: Receipt, now: datetime) -> bool:
    """Write what became of a message at last; False when that was written before, or it was sent anew meanwhile."""
    gone = await connection.execute(
        delete(_receipts).where(_receipts.c.delivery == awaited.delivery, _receipts.c.sent_at == awaited.sent_at)
    )
    if not gone.rowcount:
        return False
    of_this = (_deliveries.c.id == awaited.delivery, _deliveries.c.state == DeliveryState.SENT.value)
    if receipt.is_failure:
        failed = {"last_code": receipt.value, "settled_at": now}
        await connection.execute(update(_deliveries).where(*of_this).values(**failed, state=DeliveryState.FAILED.value))
    else:
        await connection.execute(update(_deliveries).where(*of_this).values(last_code=receipt.value))
    return True


async def mark_unreached(connection: AsyncConnection, lane: str, code: str, now: datetime) -> None:
    """Whoever a lane leads to was not reached; since the first time of those in a row."""
    since = func.coalesce(_lanes.c.unreached_since, now)
    await connection.execute(
        update(_lanes).where(_lanes.c.id == lane).values(unreached_since=since, unreached_code=code)
    )


async def mark_reached(connection: AsyncConnection, lane: str) -> None:
    """Whoever a lane leads to was reached."""
    is_marked = (_lanes.c.id == lane, _lanes.c.unreached_since.is_not(None))
    await connection.execute(update(_lanes).where(*is_marked).values(unreached_since=None, unreached_code=None))


async def forget_unreached(connection: AsyncConnection, owner: str, contact: str, before: Reach, now: Reach) -> None:
    """The directory leads elsewhere: that an old address did not work says nothing of the new one."""
    changed = []
    if before.mailbox != now.mailbox:
        changed.append(ChannelName.EMAIL.value)
    if before.mobile != now.mobile:
        changed.append(ChannelName.TEXT_MESSAGE.value)
    if changed:
        of_this = (_lanes.c.owner == owner, _lanes.c.contact == contact, _lanes.c.channel.in_(changed))
        await connection.execute(update(_lanes).where(*of_this).values(unreached_since=None, unreached_code=None))


async def list_unreached_people(
    connection: AsyncConnection, owner: str, *, login: str | None, rows_max: int
) -> list[Unreached]:
    """Of the people of an owner who can sign in, those who were not reached; with ``login`` that one alone."""
    statement = (
        select(_lanes)
        .join(_logins, _logins.c.login == _lanes.c.contact)
        .where(
            _lanes.c.owner == owner,
            _lanes.c.unreached_since.is_not(None),
            _logins.c.owner == owner,
            _logins.c.disabled_at.is_(None),
        )
        .order_by(_lanes.c.unreached_since, _lanes.c.id)
        .limit(rows_max)
    )
    if login is not None:
        statement = statement.where(_lanes.c.contact == login)
    return [
        Unreached(
            contact=row.contact,
            channel=ChannelName(row.channel),
            since=row.unreached_since,
            code=row.unreached_code or "",
        )
        for row in await connection.execute(statement)
    ]


async def find_unreached_contacts(
    connection: AsyncConnection, owners: Collection[str]
) -> dict[str, dict[str, datetime]]:
    """By owner and contact: since when they were not reached, on whichever way that has been longest."""
    statement = select(_lanes.c.owner, _lanes.c.contact, _lanes.c.unreached_since).where(
        is_among(connection, _lanes.c.owner, sorted(owners)), _lanes.c.unreached_since.is_not(None)
    )
    found: dict[str, dict[str, datetime]] = {}
    for row in await connection.execute(statement):
        of_owner = found.setdefault(row.owner, {})
        of_owner[row.contact] = min(row.unreached_since, of_owner.get(row.contact, row.unreached_since))
    return found
