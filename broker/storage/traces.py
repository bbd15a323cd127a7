"""What the Personal Demographics Service says of every entry's identity, and when it is asked again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import case, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.storage import jobs, restrictions
from broker.storage.database import upsert
from broker.storage.jobs import COVERAGE, TRACE, derive_job_id
from broker.storage.rows import SQLITE_VALUES_MAX, insert_new, is_among
from broker.storage.tables import EntryTrace, ListEntry, table
from schemas.child_list import ChildListEntry
from schemas.identifiers import authority_owner
from schemas.trace import (
    Finding,
    Invalidated,
    Mismatch,
    NotFound,
    Refused,
    Restricted,
    Superseded,
    TraceState,
    Unavailable,
    Verified,
)

_traces, _entries = table(EntryTrace), table(ListEntry)
_STATES: Mapping[type, TraceState] = {
    Verified: TraceState.VERIFIED,
    Superseded: TraceState.SUPERSEDED,
    Restricted: TraceState.RESTRICTED,
    Invalidated: TraceState.INVALIDATED,
    Mismatch: TraceState.MISMATCH,
    NotFound: TraceState.NOT_FOUND,
}


class StoredTrace(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one entry's identity."""

    entry_id: str
    state: TraceState
    finding: Finding | None
    code: str | None
    """Why the last attempt came to nothing."""
    attempts: int
    """Attempts that came to nothing since the last finding."""
    opened_at: datetime
    """Since when the entry has this identity."""
    checked_at: datetime | None
    next_at: datetime | None


class Identified(msgspec.Struct, frozen=True, kw_only=True):
    """An entry whose identity is to be traced, without who it is."""

    entry_id: str
    nhs_index: bytes
    identity: bytes


def index_identity(keyring: Keyring, entry: ChildListEntry) -> bytes:
    """What PDS is asked of an entry, hashed: when it changes, what was found before is of somebody else."""
    compared = (entry.nhs_number, entry.name.family, entry.name.given, entry.birth_date.isoformat())
    return keyring.index("identity", *compared)


async def open_traces(
    connection: AsyncConnection, keyring: Keyring, authority: str, entries: Sequence[Identified], now: datetime
) -> None:
    """Have new and changed entries traced. What was found stands until then, unless it was of another
    number, name or date of birth; an entry with another number is no longer dead."""
    if not entries:
        return
    owner = authority_owner(authority)
    rows = [_new_row(owner, each, now) for each in sorted(entries, key=lambda each: each.entry_id)]
    added = set(await insert_new(connection, _traces, rows, key="entry_id"))
    known = [row for row in rows if row["entry_id"] not in added]
    if known:
        await _open_again(connection, known)
    await jobs.add_jobs(
        connection,
        TRACE,
        [(derive_job_id(keyring, TRACE, each.entry_id), owner, each.entry_id) for each in entries],
        now,
    )
    await jobs.add_jobs(connection, COVERAGE, [(derive_job_id(keyring, COVERAGE, authority), owner, authority)], now)


async def _open_again(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
    statement = upsert(connection, _traces)
    is_dead = (_traces.c.state == TraceState.INVALIDATED.value) & (_traces.c.nhs_index == statement.excluded.nhs_index)
    is_same = (_traces.c.identity == statement.excluded.identity) | is_dead
    kept = ("state", "sealed", "checked_at", "opened_at")
    anew = {name: case((is_same, _traces.c[name]), else_=statement.excluded[name]) for name in kept}
    plain = {name: statement.excluded[name] for name in ("identity", "nhs_index", "code", "attempts", "next_at")}
    await connection.execute(statement.on_conflict_do_update(index_elements=["entry_id"], set_=anew | plain), rows)
    await _revive(connection, [row["entry_id"] for row in rows])


async def load_traces(
    connection: AsyncConnection, keyring: Keyring, entry_ids: Sequence[str]
) -> dict[str, StoredTrace]:
    """What is known of these entries."""
    found: dict[str, StoredTrace] = {}
    for start in range(0, len(entry_ids), SQLITE_VALUES_MAX):
        part = entry_ids[start : start + SQLITE_VALUES_MAX]
        for row in await connection.execute(select(_traces).where(is_among(connection, _traces.c.entry_id, part))):
            found[row.entry_id] = _open(keyring, row)
    return found


async def settle_trace(
    connection: AsyncConnection, keyring: Keyring, entry_id: str, finding: Finding, *, next_at: datetime, now: datetime
) -> None:
    """Keep a finding, or why there was none; an entry whose number is dead finds nobody from now on."""
    if isinstance(finding, Unavailable | Refused):
        await connection.execute(
            update(_traces)
            .where(_traces.c.entry_id == entry_id)
            .values(code=finding.code, attempts=_traces.c.attempts + 1, next_at=next_at)
        )
        return
    found = state_of(finding)
    sealed = keyring.seal(msgspec.json.encode(finding), about=f"trace/{entry_id}")
    await connection.execute(
        update(_traces)
        .where(_traces.c.entry_id == entry_id)
        .values(state=found.value, sealed=sealed, checked_at=now, code=None, attempts=0, next_at=next_at)
    )
    if not isinstance(finding, NotFound | Invalidated):
        # Nothing that was found says no more of a restriction than was known.
        await restrictions.note_restriction(connection, keyring, entry_id, is_restricted=found is TraceState.RESTRICTED)
    dead_at = now if found is TraceState.INVALIDATED else None
    await connection.execute(update(_entries).where(_entries.c.id == entry_id).values(dead_at=dead_at))


def state_of(finding: Finding) -> TraceState:
    """The state a finding leads to; what is no finding leaves an entry unverified."""
    return _STATES.get(type(finding), TraceState.UNVERIFIED)


def retry_at(attempts: int, asked_s: float | None, longest: timedelta, now: datetime) -> datetime:
    """When to ask again after so many attempts in vain: a minute, doubling, and never before PDS wishes it."""
    pause = min(timedelta(minutes=2 ** min(attempts, 20)), longest)
    return now + max(pause, timedelta(seconds=asked_s or 0))


async def _revive(connection: AsyncConnection, entry_ids: Sequence[str]) -> None:
    """An entry is dead only while its number is: one with another number lives."""
    still_dead = select(_traces.c.entry_id).where(_traces.c.state == TraceState.INVALIDATED.value)
    is_revived = (_entries.c.dead_at.is_not(None), _entries.c.id.not_in(still_dead))
    for start in range(0, len(entry_ids), SQLITE_VALUES_MAX):
        part = entry_ids[start : start + SQLITE_VALUES_MAX]
        await connection.execute(
            update(_entries).where(is_among(connection, _entries.c.id, part), *is_revived).values(dead_at=None)
        )


def _new_row(owner: str, entry: Identified, now: datetime) -> dict[str, Any]:
    return {
        "entry_id": entry.entry_id,
        "owner": owner,
        "state": TraceState.UNVERIFIED.value,
        "identity": entry.identity,
        "nhs_index": entry.nhs_index,
        "sealed": None,
        "code": None,
        "attempts": 0,
        "opened_at": now,
        "checked_at": None,
        "next_at": now,
    }


def _open(keyring: Keyring, row: Any) -> StoredTrace:
    finding: Finding | None = None
    if row.sealed is not None:
        plain = keyring.open(bytes(row.sealed), about=f"trace/{row.entry_id}")
        finding = msgspec.json.decode(plain, type=Finding)
    return StoredTrace(
        entry_id=row.entry_id,
        state=TraceState(row.state),
        finding=finding,
        code=row.code,
        attempts=row.attempts,
        opened_at=row.opened_at,
        checked_at=row.checked_at,
        next_at=row.next_at,
    )
