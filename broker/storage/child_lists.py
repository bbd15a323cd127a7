"""Authorities' list entries, found by blind index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.decision import Candidate
from broker.domain.matching import BLOCKS_VERSION, entry_blocks, visitor_blocks
from broker.keyring import Keyring
from broker.storage import coverage, jobs, traces
from broker.storage.aliases import Alias, find_aliases
from broker.storage.database import upsert
from broker.storage.jobs import COVERAGE, derive_job_id
from broker.storage.rows import insert_rows, update_rows
from broker.storage.tables import EntryBlock, ListEntry, ListUpload, ListVersion, table
from schemas.attendance import Attendance
from schemas.child_list import ChildListEntry
from schemas.identifiers import NhsNumber, authority_owner

_uploads, _entries, _blocks, _versions = table(ListUpload), table(ListEntry), table(EntryBlock), table(ListVersion)
_is_alive = _entries.c.dead_at.is_(None)
QUERY_VALUES_MAX = 500
"""Values in one IN list; SQLite and PostgreSQL both take more, plans stay cacheable."""


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """An upload about to be stored."""

    id: str
    authority: str
    file_hash: str
    uploaded_by: str
    rows_refused: int


def derive_entry_id(keyring: Keyring, authority: str, entry: ChildListEntry) -> str:
    """One entry per authority, person and plan type."""
    return keyring.derive_id("entry", authority, entry.local_id, entry.plan_type)


def index_nhs_number(keyring: Keyring, nhs_number: str) -> bytes:
    """The blind index under which entries and visits of one NHS number meet."""
    return keyring.index("nhs", nhs_number)


def index_block(keyring: Keyring, block: str) -> bytes:
    """The keyed block under which entries and visits without a number meet."""
    return keyring.index("block", block)


async def save_entries(
    connection: AsyncConnection, keyring: Keyring, upload: Upload, entries: Sequence[ChildListEntry], now: datetime
) -> list[str]:
    """Add or replace entries; returns the ids of those that are new or changed. Omitted entries stay."""
    values = {
        "id": upload.id,
        "owner": authority_owner(upload.authority),
        "authority": upload.authority,
        "file_hash": upload.file_hash,
        "uploaded_by": upload.uploaded_by,
        "uploaded_at": now,
        "rows_loaded": len(entries),
        "rows_refused": upload.rows_refused,
    }
    # The same file once more confirms that the list still stands: it is as fresh as today.
    statement = upsert(connection, _uploads).values(values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))
    await coverage.note_confirmation(connection, upload.authority, now)
    await jobs.bring_forward(connection, derive_job_id(keyring, COVERAGE, upload.authority), now)
    by_id = {derive_entry_id(keyring, upload.authority, entry): entry for entry in entries}
    stored = {candidate.entry_id: candidate.entry for candidate in await load_entries(connection, keyring, by_id)}
    changed = {entry_id: entry for entry_id, entry in by_id.items() if stored.get(entry_id) != entry}
    if changed:
        await _write_entries(connection, keyring, upload, changed, now)
    return sorted(changed)


async def load_entries(connection: AsyncConnection, keyring: Keyring, entry_ids: Iterable[str]) -> list[Candidate]:
    """The entries with these ids; also dead ones."""
    rows = [
        row
        for part in _parts(sorted(set(entry_ids)))
        for row in await connection.execute(select(_entries).where(_entries.c.id.in_(part)))
    ]
    return await _open_all(connection, keyring, rows)


async def load_list(connection: AsyncConnection, keyring: Keyring, authority: str) -> list[Candidate]:
    """Every entry of an authority's list; also dead ones, and those that ended or were taken back."""
    statement = select(_entries).where(_entries.c.owner == authority_owner(authority)).order_by(_entries.c.id)
    return await _open_all(connection, keyring, list(await connection.execute(statement)))


async def find_by_nhs_number(
    connection: AsyncConnection, keyring: Keyring, indexes: Iterable[bytes]
) -> dict[bytes, list[Candidate]]:
    """Entries by blind index of their NHS number, or of one that PDS links with it; none that is dead."""
    found: dict[bytes, list[Candidate]] = {}
    for part in _parts(sorted(set(indexes))):
        pairs = await find_aliases(connection, keyring, part)
        linked = {index for pair in pairs for index in (pair.old_index, pair.new_index)}
        statement = select(_entries).where(_entries.c.nhs_index.in_([*part, *(linked - set(part))]), _is_alive)
        for row in await connection.execute(statement):
            candidate = _open(keyring, row, pairs)
            own = bytes(row.nhs_index)
            for index in {own, *_linked_with(row, pairs)} & set(part):
                found.setdefault(index, []).append(candidate)
    return found


async def find_by_block(
    connection: AsyncConnection, keyring: Keyring, blocks: Iterable[bytes]
) -> dict[bytes, list[Candidate]]:
    """Entries by keyed block."""
    found: dict[bytes, list[Candidate]] = {}
    for part in _parts(sorted(set(blocks))):
        statement = (
            select(_entries, _blocks.c.block)
            .join(_blocks, _blocks.c.entry_id == _entries.c.id)
            .where(_blocks.c.block.in_(part), _is_alive)
        )
        for row in await connection.execute(statement):
            found.setdefault(bytes(row.block), []).append(_open(keyring, row))
    return found


async def find_candidates(connection: AsyncConnection, keyring: Keyring, facts: Attendance) -> list[Candidate]:
    """Every entry that may concern whoever attends, or the mother that is named, each once."""
    numbers = [number for number in (facts.nhs_number, facts.mother_nhs_number) if number]
    by_number = await find_by_nhs_number(connection, keyring, [index_nhs_number(keyring, each) for each in numbers])
    found = [each for row in by_number.values() for each in row]
    if not facts.nhs_number:
        blocks = [index_block(keyring, block) for block in visitor_blocks([facts])]
        found += [each for row in (await find_by_block(connection, keyring, blocks)).values() for each in row]
    return list({each.entry_id: each for each in found}.values())


async def upload_is_known(connection: AsyncConnection, upload_id: str) -> bool:
    """Whether this very file was stored before."""
    found = await connection.execute(select(_uploads.c.id).where(_uploads.c.id == upload_id))
    return found.one_or_none() is not None


async def _write_entries(
    connection: AsyncConnection,
    keyring: Keyring,
    upload: Upload,
    entries: Mapping[str, ChildListEntry],
    now: datetime,
) -> None:
    owner = authority_owner(upload.authority)
    rows = [
        {
            "id": entry_id,
            "owner": owner,
            "authority": upload.authority,
            "upload_id": upload.id,
            "nhs_index": index_nhs_number(keyring, entry.nhs_number),
            "sealed": keyring.seal(msgspec.json.encode(entry), about=f"entry/{entry_id}"),
            "changed_at": now,
            "blocks_version": BLOCKS_VERSION,
        }
        for entry_id, entry in sorted(entries.items())
    ]
    statement = upsert(connection, _entries)
    kept = ("upload_id", "nhs_index", "sealed", "changed_at", "blocks_version")
    await connection.execute(
        statement.on_conflict_do_update(index_elements=["id"], set_={name: statement.excluded[name] for name in kept}),
        rows,
    )
    await _write_versions(connection, rows, now)
    await _write_blocks(connection, keyring, [(entry_id, owner, entry) for entry_id, entry in entries.items()])
    await traces.open_traces(connection, keyring, upload.authority, entries, now)


async def _write_versions(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]], now: datetime) -> None:
    """What these entries said until now ends, and a version of each begins."""
    last: dict[str, int] = {}
    for part in _parts([row["id"] for row in rows]):
        highest = select(_versions.c.entry_id, func.max(_versions.c.sequence)).where(_versions.c.entry_id.in_(part))
        last |= {row[0]: row[1] for row in await connection.execute(highest.group_by(_versions.c.entry_id))}
        await connection.execute(
            update(_versions)
            .where(_versions.c.entry_id.in_(part), _versions.c.known_until.is_(None))
            .values(known_until=now)
        )
    copied = ("owner", "authority", "nhs_index", "sealed", "upload_id")
    versions = [
        {"entry_id": row["id"], "sequence": last.get(row["id"], 0) + 1, "known_from": now}
        | {name: row[name] for name in copied}
        for row in rows
    ]
    await insert_rows(connection, _versions, versions)


async def block_anew(connection: AsyncConnection, keyring: Keyring, *, rows_max: int) -> int:
    """Store entries under every block there is that are stored under fewer; returns how many there were."""
    behind = (
        select(_entries)
        .where(_entries.c.blocks_version < BLOCKS_VERSION)
        .order_by(_entries.c.id)
        .limit(rows_max)
        .with_for_update(skip_locked=True)
    )
    rows = [(row.id, row.owner, _open(keyring, row).entry) for row in await connection.execute(behind)]
    if rows:
        await _write_blocks(connection, keyring, rows)
        await update_rows(
            connection,
            _entries,
            [{"id": entry_id, "blocks_version": BLOCKS_VERSION} for entry_id, *_ in rows],
            key="id",
        )
    return len(rows)


async def _write_blocks(
    connection: AsyncConnection, keyring: Keyring, entries: Sequence[tuple[str, str, ChildListEntry]]
) -> None:
    """Store entries, as (id, owner, entry), under their blocks, and under no others."""
    for part in _parts(sorted(entry_id for entry_id, *_ in entries)):
        await connection.execute(delete(_blocks).where(_blocks.c.entry_id.in_(part)))
    blocks = [
        {"block": index_block(keyring, block), "entry_id": entry_id, "owner": owner}
        for entry_id, owner, entry in entries
        for block in entry_blocks(entry)
    ]
    await insert_rows(connection, _blocks, blocks, ignore_existing=True)


async def _open_all(connection: AsyncConnection, keyring: Keyring, rows: Sequence[Any]) -> list[Candidate]:
    pairs = [
        pair
        for part in _parts(sorted({bytes(row.nhs_index) for row in rows}))
        for pair in await find_aliases(connection, keyring, part)
    ]
    by_index: dict[bytes, list[Alias]] = {}
    for pair in pairs:
        by_index.setdefault(pair.old_index, []).append(pair)
        by_index.setdefault(pair.new_index, []).append(pair)
    return [_open(keyring, row, by_index.get(bytes(row.nhs_index), ())) for row in rows]


def _open(keyring: Keyring, row: Any, pairs: Sequence[Alias] = ()) -> Candidate:
    plain = keyring.open(bytes(row.sealed), about=f"entry/{row.id}")
    return Candidate(
        entry_id=row.id,
        authority=row.authority,
        entry=msgspec.json.decode(plain, type=ChildListEntry),
        aliases=tuple(_linked_with(row, pairs).values()),
        is_dead=row.dead_at is not None,
    )


def _linked_with(row: Any, pairs: Sequence[Alias]) -> dict[bytes, NhsNumber]:
    """The numbers that an entry's owner has linked with the entry's own, by their index."""
    own = bytes(row.nhs_index)
    linked = {}
    for pair in pairs:
        if pair.owner == row.owner and own in (pair.old_index, pair.new_index):
            other = pair.new_index if own == pair.old_index else pair.old_index
            linked[other] = pair.other_side(own)
    return linked


def _parts(values: Sequence[Any]) -> list[Sequence[Any]]:
    return [values[start : start + QUERY_VALUES_MAX] for start in range(0, len(values), QUERY_VALUES_MAX)]
