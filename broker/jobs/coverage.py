"""Coverage: each list is counted, what is wrong becomes an item with an owner and a limit, a late list is chased."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.announcement import Rules
from broker.deliveries import JSON, authority_channels
from broker.domain.coverage import Identity, advise, assess_entry, can_alert, is_covered, is_late
from broker.domain.decision import Candidate
from broker.domain.visibility import Standing, standing_on
from broker.domain.visits import london_day
from broker.keyring import Keyring
from broker.storage import audit, child_lists, coverage, directory, jobs, outbox, traces
from broker.storage.audit import act_of_broker
from broker.storage.child_lists import index_nhs_number
from broker.storage.coverage import LIST_OFFICERS, CountedDay, StoredItem, derive_item_id
from broker.storage.database import Database
from broker.storage.directory import Directory
from broker.storage.jobs import ClaimedJob
from broker.storage.outbox import NewDelivery
from broker.storage.tables import ItemState
from broker.storage.traces import Identified, StoredTrace
from broker.telemetry import LogEvent, log
from schemas.alert import CoverageNotice
from schemas.coverage import RECORD_CODES, CoverageReason
from schemas.identifiers import authority_owner
from schemas.trace import TraceState

COVERAGE_NOTICED = "uk.cpis-broker.coverage.noticed.v1"
TOLD_AT_ONCE = frozenset({CoverageReason.INVALIDATED, CoverageReason.SUPERSEDED, CoverageReason.LIST_STALE})
"""What an authority is told of by its channels too, once for each time it happens."""


class _Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What one look at a list found. ``wanted`` are the (entry id, reason) that speak against it."""

    wanted: Mapping[str, tuple[str | None, CoverageReason]]
    day: CountedDay
    listed: Mapping[str, Candidate]
    found: Mapping[str, StoredTrace]
    items: Sequence[StoredItem]
    confirmed_at: datetime | None
    directory: Directory


async def count_coverage(database: Database, keyring: Keyring, rules: Rules, job: ClaimedJob, now: datetime) -> None:
    """Count one authority's list; open, close and chase. Done again after an hour, or when the list changes."""
    authority, owner = job.subject, authority_owner(job.subject)
    async with database.reading() as connection:
        counted = await _look_at(connection, keyring, rules, authority, now)
    known = {item.id: item for item in counted.items}
    opened = [
        _new_item(item_id, entry_id, reason, rules, now)
        for item_id, (entry_id, reason) in counted.wanted.items()
        if item_id not in known or (known[item_id].state is ItemState.DONE and known[item_id].noted_by is None)
    ]
    gone = [
        item.id
        for item in counted.items
        if item.id not in counted.wanted and (item.state is ItemState.OPEN or item.noted_by is not None)
    ]
    async with database.writing() as connection:
        if not await jobs.put_off_job(connection, job, now + rules.coverage.every):
            return  # the list changed while it was counted: it is counted again at once
        untraced = [_identified(keyring, each) for key, each in counted.listed.items() if key not in counted.found]
        await traces.open_traces(connection, keyring, authority, untraced, now)
        await coverage.open_items(connection, owner, opened)
        await coverage.close_items(connection, gone, now)
        await coverage.keep_day(connection, authority, counted.day)
        told = _notices(keyring, rules, counted, authority, opened)
        await outbox.add_deliveries(connection, keyring, told, now)
        acts = [act_of_broker(owner, "coverage.opened", item.id, item.reason) for item in opened]
        acts += [act_of_broker(owner, "coverage.closed", item_id) for item_id in gone]
        await audit.record_acts(connection, acts, now)
    if any(item.reason is CoverageReason.LIST_STALE for item in opened) and counted.confirmed_at is not None:
        hours = round((now - counted.confirmed_at).total_seconds() / 3600)
        log(LogEvent.LIST_LATE, authority=authority, hours=hours)


async def _look_at(
    connection: AsyncConnection, keyring: Keyring, rules: Rules, authority: str, now: datetime
) -> _Counted:
    owner, on = authority_owner(authority), london_day(now)
    known = await directory.load_directory(connection)
    desks = await directory.find_duty_desks(connection)
    listed = {each.entry_id: each for each in await child_lists.load_list(connection, keyring, authority)}
    standing = {key: standing_on(each.entry, on, rules.windows) for key, each in listed.items()}
    found = await traces.load_traces(connection, keyring, list(listed))
    current = {
        key: _identify(listed[key], found.get(key), now, known, has_desk=owner in desks)
        for key, worth in standing.items()
        if worth is Standing.CURRENT
    }
    against: list[tuple[str | None, CoverageReason]] = [
        (key, reason) for key, identity in current.items() for reason in assess_entry(identity, rules.coverage, now)
    ]
    confirmed = await coverage.load_confirmations(connection, authority)
    if is_late(confirmed, now, limit=rules.list_stale, factor=rules.coverage.habit_factor):
        against.append((None, CoverageReason.LIST_STALE))
    return _Counted(
        wanted={derive_item_id(keyring, owner, key, reason): (key, reason) for key, reason in against},
        day=CountedDay(
            counted_on=on,
            entries=len(current),
            can_alert=sum(can_alert(identity) for identity in current.values()),
            covered=sum(is_covered(identity) for identity in current.values()),
            unverified=sum(identity.state is TraceState.UNVERIFIED for identity in current.values()),
        ),
        listed={key: each for key, each in listed.items() if each.entry.deleted_on is None},
        found=found,
        items=await coverage.load_items(connection, owner),
        confirmed_at=confirmed[0] if confirmed else None,
        directory=known,
    )


def _identified(keyring: Keyring, candidate: Candidate) -> Identified:
    entry = candidate.entry
    return Identified(
        entry_id=candidate.entry_id,
        nhs_index=index_nhs_number(keyring, entry.nhs_number),
        identity=traces.index_identity(keyring, entry),
    )


def _identify(
    candidate: Candidate, trace: StoredTrace | None, now: datetime, known: Directory, *, has_desk: bool
) -> Identity:
    worker = candidate.entry.allocated_worker
    return Identity(
        state=trace.state if trace is not None else TraceState.UNVERIFIED,
        since=trace.opened_at if trace is not None else now,
        is_linked=bool(candidate.aliases),
        has_route=has_desk or (candidate.authority, worker) in known.reachable_workers,
    )


def _new_item(item_id: str, entry_id: str | None, reason: CoverageReason, rules: Rules, now: datetime) -> StoredItem:
    return StoredItem(
        id=item_id,
        entry_id=entry_id,
        reason=reason,
        held_by=LIST_OFFICERS,
        level=0,
        state=ItemState.OPEN,
        opened_at=now,
        due_by=now + rules.coverage.limit,
        noted_by=None,
    )


def _notices(
    keyring: Keyring, rules: Rules, counted: _Counted, authority: str, opened: Sequence[StoredItem]
) -> list[NewDelivery]:
    owner = authority_owner(authority)
    told = []
    for item in opened:
        if item.reason not in TOLD_AT_ONCE:
            continue
        notice_id = keyring.derive_id("notice", item.id, item.opened_at.isoformat())
        content = msgspec.json.encode(_compose_notice(counted, authority, notice_id, item))
        told += [
            NewDelivery(
                id=keyring.derive_id("delivery", channel, notice_id),
                channel=channel,
                owner=owner,
                event_type=COVERAGE_NOTICED,
                content_type=JSON,
                content=content,
            )
            for channel in authority_channels(counted.directory, authority, topics_enabled=rules.topics_enabled)
        ]
    return told


def _compose_notice(counted: _Counted, authority: str, notice_id: str, item: StoredItem) -> CoverageNotice:
    candidate = counted.listed.get(item.entry_id or "")
    trace = counted.found.get(item.entry_id or "")
    return CoverageNotice(
        notice_id=notice_id,
        authority=authority,
        noticed_at=item.opened_at,
        reason=item.reason,
        local_id=candidate.entry.local_id if candidate is not None else None,
        record_code=RECORD_CODES.get(item.reason),
        list_confirmed_at=counted.confirmed_at,
        advice=advise(
            item.reason,
            trace.finding if trace is not None else None,
            is_linked=bool(candidate is not None and candidate.aliases),
        ),
    )
