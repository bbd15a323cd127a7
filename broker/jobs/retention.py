"""What is not kept: no-record attendances after the look-back, replies that found nobody, old incidents, the log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from broker.ports import TrimmedLog
from broker.storage import audit, handled, jobs, retention
from broker.storage.audit import Act
from broker.storage.database import Database
from schemas.identifiers import BROKER_OWNER
from schemas.record import Partition, PartitionExtent


class RetentionRules(msgspec.Struct, frozen=True, kw_only=True):
    """How long what is kept; from the settings."""

    log: timedelta = timedelta(days=14)
    no_record_replies: timedelta = timedelta(days=7)
    incidents: timedelta = timedelta(days=730)
    """After it was heard of last. The proof goes with it: what a force must report on longer it takes out before."""
    groups: tuple[tuple[str, str], ...] = (
        ("attendances", "attendances"),
        ("encompass-attendances", "attendances"),
        ("encompass", "police-incidents"),
    )
    """Who reads which topic. What one of its groups has not read stays, also if that group has never read."""
    rows_max: int = 500
    """Visits or replies in one transaction."""
    interval: timedelta = timedelta(hours=1)


async def reduce_visits(database: Database, rules: RetentionRules, look_back: timedelta, now: datetime) -> int:
    """Reduce one batch of attendances of people on no list to their keys; returns how many.

    A look-back that still waits is waited for: it searches from the moment at which its list changed.
    """
    async with database.writing() as connection:
        waits_since = await jobs.find_oldest_due(connection)
        before = min(now, waits_since or now) - look_back
        reduced = await retention.reduce_visits(connection, heard_before=before, rows_max=rules.rows_max)
        if reduced:
            act = Act(owner=BROKER_OWNER, actor="broker", action="visits.reduced", subject=str(len(reduced)))
            await audit.record_acts(connection, [act], now)
    return len(reduced)


async def drop_replies(database: Database, rules: RetentionRules, now: datetime) -> int:
    """Drop one batch of what replies said that found nobody; returns how many."""
    async with database.writing() as connection:
        return await retention.drop_replies(
            connection, replied_before=now - rules.no_record_replies, rows_max=rules.rows_max
        )


async def drop_incidents(database: Database, rules: RetentionRules, now: datetime) -> int:
    """Drop one batch of police incidents that are long past; returns how many. Each is audited at its force."""
    async with database.writing() as connection:
        dropped = await retention.drop_incidents(
            connection, heard_before=now - rules.incidents, rows_max=rules.rows_max
        )
        acts = [
            Act(owner=owner, actor="broker", action="incident.dropped", subject=incident_id)
            for owner, incident_id in dropped
        ]
        await audit.record_acts(connection, acts, now)
    return len(dropped)


async def trim_log(database: Database, log: TrimmedLog, rules: RetentionRules, now: datetime) -> int:
    """Drop from the embedded log what is old and was handled, never what nobody has read; returns how many records."""
    readers: dict[str, list[str]] = {}
    for group, topic in rules.groups:
        readers.setdefault(topic, []).append(group)
    return sum([await _trim_topic(database, log, groups, topic, now - rules.log) for topic, groups in readers.items()])


async def _trim_topic(
    database: Database, log: TrimmedLog, groups: Sequence[str], topic: str, kept_since: datetime
) -> int:
    extents = await log.extents(topic)
    async with database.reading() as connection:
        places = [await handled.load_places(connection, group, extents) for group in groups]
    trimmed = 0
    for partition, extent in extents.items():
        known = [place for of_group in places if (place := of_group.get(partition)) is not None]
        if len(known) < len(groups) or not all(place.is_on(extent.log_id) for place in known):
            continue
        read = msgspec.structs.replace(extent, end=min(extent.end, *(place.next_offset for place in known)))
        before = await _find_kept(log, partition, read, kept_since)
        if before > extent.first:
            await log.trim(partition, before)
            trimmed += before - extent.first
    return trimmed


async def _find_kept(log: TrimmedLog, partition: Partition, extent: PartitionExtent, since: datetime) -> int:
    """The first offset that was appended since an instant, or the end; records stand in the order of their appends."""
    low, high = extent.first, extent.end
    while low < high:
        middle = (low + high) // 2
        record = await log.read(partition, middle)
        if record is not None and record.appended_at >= since:
            high = middle
        else:
            low = middle + 1
    return low
