"""What the lists said at any time: every version of every entry, with the upload it came from."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import and_, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.storage.tables import AuditRow, AuthorityRow, ListUpload, ListVersion, table
from schemas.child_list import ChildListEntry

_versions, _uploads, _audit, _authorities = (
    table(ListVersion),
    table(ListUpload),
    table(AuditRow),
    table(AuthorityRow),
)
LIST_UPLOADED = "list.uploaded"


class EntryVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One version of an entry. ``known_until`` is None for the one that stands."""

    entry_id: str
    sequence: int
    authority: str
    entry: ChildListEntry
    known_from: datetime
    known_until: datetime | None
    upload_id: str
    file_hash: str
    uploaded_by: str


class ListAge(msgspec.Struct, frozen=True, kw_only=True):
    """When an authority's list was last confirmed before an instant; None: it had none yet."""

    authority: str
    authority_name: str
    confirmed_at: datetime | None


async def find_versions_at(
    connection: AsyncConnection, keyring: Keyring, nhs_index: bytes, at: datetime, *, owner: str | None = None
) -> list[EntryVersion]:
    """What the lists said of an NHS number at an instant; with ``owner``, one authority's list only."""
    statement = _select_versions().where(
        _versions.c.nhs_index == nhs_index,
        _versions.c.known_from <= at,
        or_(_versions.c.known_until.is_(None), _versions.c.known_until > at),
    )
    if owner is not None:
        statement = statement.where(_versions.c.owner == owner)
    statement = statement.order_by(_versions.c.authority, _versions.c.entry_id)
    return [_open(keyring, row) for row in await connection.execute(statement)]


async def find_versions(
    connection: AsyncConnection, keyring: Keyring, nhs_index: bytes, *, owner: str
) -> list[EntryVersion]:
    """Everything that one authority's list ever said of an NHS number, oldest first."""
    statement = _select_versions().where(_versions.c.nhs_index == nhs_index, _versions.c.owner == owner)
    statement = statement.order_by(_versions.c.known_from, _versions.c.entry_id, _versions.c.sequence)
    return [_open(keyring, row) for row in await connection.execute(statement)]


async def load_history(
    connection: AsyncConnection, keyring: Keyring, entry_ids: Sequence[str]
) -> dict[str, list[EntryVersion]]:
    """Every version of entries, oldest first."""
    statement = _select_versions().where(_versions.c.entry_id.in_(list(entry_ids)))
    found: dict[str, list[EntryVersion]] = {}
    for row in await connection.execute(statement.order_by(_versions.c.entry_id, _versions.c.sequence)):
        found.setdefault(row.entry_id, []).append(_open(keyring, row))
    return found


async def load_ages_at(connection: AsyncConnection, at: datetime, *, owner: str | None = None) -> list[ListAge]:
    """How old the lists were at an instant, by the audit: an upload's own row says only when it came last."""
    confirmed = (
        select(_audit.c.owner, func.max(_audit.c.at).label("confirmed_at"))
        .where(_audit.c.action == LIST_UPLOADED, _audit.c.at <= at)
        .group_by(_audit.c.owner)
        .subquery()
    )
    statement = select(_authorities.c.code, _authorities.c.name, confirmed.c.confirmed_at).outerjoin(
        confirmed, confirmed.c.owner == _authorities.c.owner
    )
    if owner is not None:
        statement = statement.where(_authorities.c.owner == owner)
    return [
        ListAge(authority=row.code, authority_name=row.name, confirmed_at=row.confirmed_at)
        for row in await connection.execute(statement.order_by(_authorities.c.code))
    ]


def _select_versions() -> Any:
    """With who sent the upload then: the same file may come again, from somebody else."""
    sender = (
        select(func.max(_audit.c.actor))
        .where(
            _audit.c.owner == _versions.c.owner,
            _audit.c.subject == _versions.c.upload_id,
            and_(_audit.c.action == LIST_UPLOADED, _audit.c.at == _versions.c.known_from),
        )
        .scalar_subquery()
    )
    return select(
        _versions, _uploads.c.file_hash, func.coalesce(sender, _uploads.c.uploaded_by).label("uploaded_by")
    ).join(_uploads, _uploads.c.id == _versions.c.upload_id)


def _open(keyring: Keyring, row: Any) -> EntryVersion:
    plain = keyring.open(bytes(row.sealed), about=f"entry/{row.entry_id}")
    return EntryVersion(
        entry_id=row.entry_id,
        sequence=row.sequence,
        authority=row.authority,
        entry=msgspec.json.decode(plain, type=ChildListEntry),
        known_from=row.known_from,
        known_until=row.known_until,
        upload_id=row.upload_id,
        file_hash=row.file_hash,
        uploaded_by=row.uploaded_by,
    )
