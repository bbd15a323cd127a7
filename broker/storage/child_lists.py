"""Authorities' list entries, found by blind index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.decision import Candidate
from broker.domain.matching import candidate_blocks
from broker.keyring import Keyring
from broker.storage.database import upsert
from broker.storage.tables import EntryBlock, ListEntry, ListUpload, table
from schemas.child_list import ChildListEntry
from schemas.identifiers import authority_owner

_uploads, _entries, _blocks = table(ListUpload), table(ListEntry), table(EntryBlock)
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
    by_id = {derive_entry_id(keyring, upload.authority, entry): entry for entry in entries}
    stored = {candidate.entry_id: candidate.entry for candidate in await load_entries(connection, keyring, by_id)}
    changed = {entry_id: entry for entry_id, entry in by_id.items() if stored.get(entry_id) != entry}
    if changed:
        await _write_entries(connection, keyring, upload, changed, now)
    return sorted(changed)


async def load_entries(connection: AsyncConnection, keyring: Keyring, entry_ids: Iterable[str]) -> list[Candidate]:
    """The entries with these ids."""
    return [
        _open(keyring, row)
        for part in _parts(sorted(set(entry_ids)))
        for row in await connection.execute(select(_entries).where(_entries.c.id.in_(part)))
    ]


async def find_by_nhs_number(
    connection: AsyncConnection, keyring: Keyring, indexes: Iterable[bytes]
) -> dict[bytes, list[Candidate]]:
    """Entries by blind index of their NHS number."""
    found: dict[bytes, list[Candidate]] = {}
    for part in _parts(sorted(set(indexes))):
        for row in await connection.execute(select(_entries).where(_entries.c.nhs_index.in_(part))):
            found.setdefault(bytes(row.nhs_index), []).append(_open(keyring, row))
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
            .where(_blocks.c.block.in_(part))
        )
        for row in await connection.execute(statement):
            found.setdefault(bytes(row.block), []).append(_open(keyring, row))
    return found


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
        }
        for entry_id, entry in sorted(entries.items())
    ]
    statement = upsert(connection, _entries)
    kept = ("upload_id", "nhs_index", "sealed", "changed_at")
    await connection.execute(
        statement.on_conflict_do_update(index_elements=["id"], set_={name: statement.excluded[name] for name in kept}),
        rows,
    )
    for part in _parts(sorted(entries)):
        await connection.execute(delete(_blocks).where(_blocks.c.entry_id.in_(part)))
    blocks = [
        {"block": index_block(keyring, block), "entry_id": entry_id, "owner": owner}
        for entry_id, entry in entries.items()
        for block in candidate_blocks(entry.birth_date)
    ]
    await connection.execute(upsert(connection, _blocks).on_conflict_do_nothing(), blocks)


def _open(keyring: Keyring, row: Any) -> Candidate:
    plain = keyring.open(bytes(row.sealed), about=f"entry/{row.id}")
    return Candidate(entry_id=row.id, authority=row.authority, entry=msgspec.json.decode(plain, type=ChildListEntry))


def _parts(values: Sequence[Any]) -> list[Sequence[Any]]:
    return [values[start : start + QUERY_VALUES_MAX] for start in range(0, len(values), QUERY_VALUES_MAX)]
