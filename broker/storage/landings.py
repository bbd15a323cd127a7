"""Long files that land in slices: each is kept, sealed, until all of it stands; whoever finds one left goes on."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.storage.rows import insert_rows
from broker.storage.tables import ListEntry, ListLanding, ListLandingPart, table
from schemas.identifiers import authority_owner
from schemas.upload import UploadFormat, UploadKind

_landings, _parts, _entries = table(ListLanding), table(ListLandingPart), table(ListEntry)


class Landing(msgspec.Struct, frozen=True, kw_only=True):
    """A file of which not every slice has landed. ``upload_id``: as which it is on record."""

    upload_id: str
    authority: str
    kind: UploadKind
    format: UploadFormat
    uploaded_by: str
    uploaded_at: datetime
    leased_until: datetime
    problem: str = ""
    """Why it could not be landed when it was last tried, without anything of its contents."""
    failed_at: datetime | None = None
    """Since when it cannot."""


async def begin_landing(
    connection: AsyncConnection, keyring: Keyring, landing: Landing, chunks: Iterable[bytes]
) -> None:
    """Keep a file until all of it stands. The upload must be on record."""
    owner = authority_owner(landing.authority)
    values = {**msgspec.structs.asdict(landing), "kind": landing.kind.value, "format": landing.format.value}
    await insert_rows(connection, _landings, [values | {"owner": owner}])
    for number, chunk in enumerate(chunks):
        sealed = keyring.seal(chunk, about=_about(landing.upload_id, number))
        part = {"upload_id": landing.upload_id, "number": number, "owner": owner, "sealed": sealed}
        await insert_rows(connection, _parts, [part])


async def load_part(connection: AsyncConnection, keyring: Keyring, upload_id: str, number: int) -> bytes | None:
    """A part of a file that lands; None behind the last one."""
    found = await connection.execute(
        select(_parts.c.sealed).where(_parts.c.upload_id == upload_id, _parts.c.number == number)
    )
    sealed = found.scalar_one_or_none()
    return None if sealed is None else keyring.open(bytes(sealed), about=_about(upload_id, number))


async def find_landing(connection: AsyncConnection, authority: str) -> Landing | None:
    """The file that lands on an authority's list now."""
    statement = select(_landings).where(_landings.c.authority == authority).order_by(_landings.c.leased_until)
    row = (await connection.execute(statement.limit(1))).one_or_none()
    return None if row is None else _open(row)


async def list_landings(connection: AsyncConnection, owner: str | None = None) -> list[Landing]:
    """Every file of which not all has landed; of one owner, or of all. An authority has one at a time."""
    statement = select(_landings).order_by(_landings.c.uploaded_at, _landings.c.upload_id)
    if owner is not None:
        statement = statement.where(_landings.c.owner == owner)
    return [_open(row) for row in await connection.execute(statement)]


async def count_blocked(connection: AsyncConnection) -> int:
    """How many files cannot be landed."""
    statement = select(func.count()).select_from(_landings).where(_landings.c.problem != "")
    return int((await connection.execute(statement)).scalar_one())


async def count_landed(connection: AsyncConnection, landing: Landing) -> int:
    """How many entries of the list say what this file says of them."""
    is_of_it = (_entries.c.authority == landing.authority, _entries.c.upload_id == landing.upload_id)
    statement = select(func.count()).select_from(_entries).where(*is_of_it)
    return int((await connection.execute(statement)).scalar_one())


async def note_failure(connection: AsyncConnection, upload_id: str, problem: str, now: datetime) -> None:
    """Say why a file could not be landed; since when stays as it was."""
    failed_at = func.coalesce(_landings.c.failed_at, now)
    statement = update(_landings).where(_landings.c.upload_id == upload_id)
    await connection.execute(statement.values(problem=problem, failed_at=failed_at))


async def load_landing(connection: AsyncConnection, upload_id: str) -> Landing | None:
    """One file of which not all has landed."""
    row = (await connection.execute(select(_landings).where(_landings.c.upload_id == upload_id))).one_or_none()
    return None if row is None else _open(row)


async def take_over(connection: AsyncConnection, landing: Landing, leased_until: datetime) -> bool:
    """Go on with a file that nobody goes on with; False when another was first."""
    is_as_found = _landings.c.leased_until == landing.leased_until
    return await _lease(connection, landing.upload_id, leased_until, is_as_found)


async def prolong_landing(connection: AsyncConnection, upload_id: str, leased_until: datetime) -> bool:
    """Say that somebody goes on; False when all of it stands."""
    return await _lease(connection, upload_id, leased_until)


async def end_landing(connection: AsyncConnection, upload_id: str) -> bool:
    """All of it stands: forget the file; False when another has done so."""
    await connection.execute(delete(_parts).where(_parts.c.upload_id == upload_id))
    statement = delete(_landings).where(_landings.c.upload_id == upload_id).returning(_landings.c.upload_id)
    return (await connection.execute(statement)).one_or_none() is not None


async def _lease(connection: AsyncConnection, upload_id: str, leased_until: datetime, *further: Any) -> bool:
    found = update(_landings).where(_landings.c.upload_id == upload_id, *further)
    statement = found.values(leased_until=leased_until).returning(_landings.c.upload_id)
    return (await connection.execute(statement)).one_or_none() is not None


def _about(upload_id: str, number: int) -> str:
    return f"landing/{upload_id}/{number}"


def _open(row: Any) -> Landing:
    return Landing(
        upload_id=row.upload_id,
        authority=row.authority,
        kind=UploadKind(row.kind),
        format=UploadFormat(row.format),
        uploaded_by=row.uploaded_by,
        uploaded_at=row.uploaded_at,
        leased_until=row.leased_until,
        problem=row.problem,
        failed_at=row.failed_at,
    )
