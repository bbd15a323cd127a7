"""For those who run the broker: is it well, and what waits for them. No personal data on any of these."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec
from fastapi import Request
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import PlainTextResponse, Response

from broker.domain.visits import london_day
from broker.storage import directory, handled, landings, outbox, quarantine, test_feeds
from broker.storage.database import Database
from broker.web.pages import pages_of

_MULTIPROCESS: Final = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus-client's own variable, set by the supervisor: counters of all parts then lie in this directory."""
_LAG: Final = "cpis_lag_records"


class PartShown(msgspec.Struct, frozen=True, kw_only=True):
    """One process of a part of the broker. ``silent_s``: seconds since it last showed life and could work."""

    name: str
    state: str
    silent_s: float
    ready: bool


class ListsShown(msgspec.Struct, frozen=True, kw_only=True):
    """The authorities' lists: how many authorities there are, and when the list confirmed longest ago was."""

    authorities: int
    authorities_without_list: int
    oldest_confirmed_at: datetime | None
    blocked: int
    """Lists of which a file has landed in part and the rest cannot: they take no other."""


class QuarantineShown(msgspec.Struct, frozen=True, kw_only=True):
    """Messages that could not be handled and wait for a person."""

    open: int
    oldest_kept_at: datetime | None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """How the broker is. Counts, ages and names of parts only. What is None could not be asked."""

    ready: bool
    database: str
    """``answers`` or ``does not answer``."""
    parts: tuple[PartShown, ...]
    lists: ListsShown | None = None
    quarantine: QuarantineShown | None = None
    deliveries: Mapping[str, int] | None = None
    """Deliveries by state."""
    lag_records: Mapping[str, int] | None = None
    """Records the groups have not handled yet."""
    log_gaps: int | None = None
    """How often the log did not hold what was expected of it: each is a possible loss to look into."""


async def compose_status(database: Database, parts: Sequence[PartShown]) -> Status:
    """Ask the database for the rest. Ready is: the database answers, there are parts, and each of them is ready."""
    if not await database.answers():
        return Status(ready=False, database="does not answer", parts=tuple(parts))
    try:
        async with database.reading() as connection:
            freshness = (await directory.load_directory(connection)).freshness
            waiting, oldest_kept_at = await quarantine.count_open(connection)
            deliveries = await outbox.count_states(connection)
            gaps = await handled.count_gaps(connection)
            blocked = await landings.count_blocked(connection)
    except (SQLAlchemyError, OSError) as error:
        return Status(ready=False, database=f"answers with {type(error).__name__}", parts=tuple(parts))
    confirmed = [each.confirmed_at for each in freshness if each.confirmed_at is not None]
    return Status(
        ready=bool(parts) and all(part.ready for part in parts),
        database="answers",
        parts=tuple(parts),
        lists=ListsShown(
            authorities=len(freshness),
            authorities_without_list=len(freshness) - len(confirmed),
            oldest_confirmed_at=min(confirmed, default=None),
            blocked=blocked,
        ),
        quarantine=QuarantineShown(open=waiting, oldest_kept_at=oldest_kept_at),
        deliveries=deliveries,
        lag_records=await asyncio.to_thread(_read_lag),
        log_gaps=gaps,
    )


async def ping(request: Request) -> Response:
    """``ok``: this process answers. Says nothing of the others; anonymous."""
    return PlainTextResponse("ok")


async def show_status(request: Request) -> Response:
    """The status as JSON; 200 when ready, 503 when not."""
    status = await _ask_status(request)
    text = msgspec.json.format(msgspec.json.encode(status), indent=2)
    return Response(text, status_code=200 if status.ready else 503, media_type="application/json")


async def show_metrics(request: Request) -> Response:
    """The metrics of all parts, for Prometheus."""
    return Response(await asyncio.to_thread(lambda: generate_latest(_registry())), media_type=CONTENT_TYPE_LATEST)


async def show_operations(request: Request) -> Response:
    """The page for operators: the status, and what waits for them, without contents."""
    pages = pages_of(request)
    status = await _ask_status(request)
    async with pages.database.reading() as connection:
        items = await quarantine.list_open(connection, rows_max=pages.limits.rows_max)
        unclassified = await directory.list_not_classified(connection, rows_max=pages.limits.rows_max)
        unreached = await outbox.list_unreached(connection, rows_max=pages.limits.rows_max)
        since = london_day(pages.clock.now()) - timedelta(days=test_feeds.SHOWN_DAYS)
        landing = await landings.list_landings(connection)
        marked = await test_feeds.list_test_feeds(connection, since=since, rows_max=pages.limits.rows_max)
    return pages.render(
        request,
        "operations.html",
        status=status,
        items=items,
        unclassified=unclassified,
        unreached=unreached,
        landing=landing,
        marked=marked,
    )


async def _ask_status(request: Request) -> Status:
    ask: Callable[[], Awaitable[Status]] = request.app.state.status
    return await ask()


def _registry() -> CollectorRegistry:
    if not os.environ.get(_MULTIPROCESS):
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # prometheus-client leaves it without types
    return registry


def _read_lag() -> dict[str, int]:
    return {
        sample.labels.get("group", ""): int(sample.value)
        for metric in _registry().collect()
        if metric.name == _LAG
        for sample in metric.samples
    }
