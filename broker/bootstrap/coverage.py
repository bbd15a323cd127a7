"""How much of an authority's list is covered, for the command line: counts, reasons and ages, and nobody's name."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final

import msgspec

from broker.clock import SystemClock
from broker.storage import coverage
from broker.storage.coverage import CountedDay
from schemas.coverage import RECORD_CODES, CoverageReason
from schemas.identifiers import authority_owner

if TYPE_CHECKING:
    from broker.settings import Settings
    from broker.storage.database import Database

ITEMS_MAX: Final = 1000
DAYS_MAX: Final = 31


class ItemTold(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to be mended, without whom it is about. ``id`` is the item's."""

    id: str
    reason: CoverageReason
    record_code: str | None
    age_days: int
    held_by: str
    level: int


class CoverageReport(msgspec.Struct, frozen=True, kw_only=True):
    """One authority's list."""

    authority: str
    is_tracing: bool
    """Whether a Personal Demographics Service is configured."""
    list_confirmed_at: datetime | None
    refused_rows: int
    """Of the file that was loaded last: whoever stands in them is not on the list."""
    days: tuple[CountedDay, ...]
    items: tuple[ItemTold, ...]
    is_cut: bool


async def read_coverage(settings: Settings, database: Database, authority: str) -> CoverageReport:
    """What was last counted of a list."""
    now = SystemClock().now()
    async with database.reading() as connection:
        days = await coverage.load_days(connection, authority, days_max=DAYS_MAX)
        confirmed = await coverage.load_confirmations(connection, authority)
        refused = await coverage.find_refused(connection, authority)
        items = await coverage.load_items(
            connection, authority_owner(authority), only_open=True, rows_max=ITEMS_MAX + 1
        )
    return CoverageReport(
        authority=authority,
        is_tracing=bool(settings.pds_base_url),
        list_confirmed_at=confirmed[0] if confirmed else None,
        refused_rows=refused,
        days=tuple(days),
        items=tuple(
            ItemTold(
                id=item.id,
                reason=item.reason,
                record_code=RECORD_CODES.get(item.reason),
                age_days=(now - item.opened_at).days,
                held_by=item.held_by,
                level=item.level,
            )
            for item in items[:ITEMS_MAX]
        ),
        is_cut=len(items) > ITEMS_MAX,
    )
