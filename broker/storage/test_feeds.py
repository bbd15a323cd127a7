"""Who marks messages as tests: once a day for each sender, so that a feed in earnest costs no more than a quiet one."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date
from typing import Final

import msgspec
from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.storage.rows import insert_rows
from broker.storage.tables import SiteRow, TestFeed, table
from schemas.identifiers import organisation_owner

_feeds, _sites = table(TestFeed), table(SiteRow)
SHOWN_DAYS: Final = 14


class MarkedFeed(msgspec.Struct, frozen=True, kw_only=True):
    """A sender of whom messages marked as tests came."""

    sender: str
    name: str
    days: int
    """On how many days of those that are kept."""
    last_on: date


async def note_test_feeds(connection: AsyncConnection, senders: Collection[str], on: date) -> None:
    """Note that these senders marked messages as tests on a London day."""
    rows = [
        {"sender": sender, "seen_on": on, "owner": organisation_owner(sender)} for sender in sorted(senders) if sender
    ]
    await insert_rows(connection, _feeds, rows, ignore_existing=True)


async def list_test_feeds(connection: AsyncConnection, *, since: date, rows_max: int) -> list[MarkedFeed]:
    """The senders of whom such messages came since a day, the latest first."""
    days, last_on = func.count().label("days"), func.max(_feeds.c.seen_on).label("last_on")
    statement = (
        select(_feeds.c.sender, func.max(_sites.c.name).label("name"), days, last_on)
        .join_from(_feeds, _sites, _sites.c.code == _feeds.c.sender, isouter=True)
        .where(_feeds.c.seen_on >= since)
        .group_by(_feeds.c.sender)
        .order_by(last_on.desc(), _feeds.c.sender)
        .limit(rows_max)
    )
    rows = await connection.execute(statement)
    return [
        MarkedFeed(sender=row.sender, name=row.name or row.sender, days=row.days, last_on=row.last_on) for row in rows
    ]


async def forget_test_feeds(connection: AsyncConnection, before: date) -> None:
    """Delete what was seen before a day."""
    await connection.execute(delete(_feeds).where(_feeds.c.seen_on < before))
