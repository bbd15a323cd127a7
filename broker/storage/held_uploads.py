"""Files that are kept, sealed: held ones, which would end, take back or double a great part of a list, wait for a
person; long ones land in slices, and whoever finds one that nobody goes on with lands the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.storage.coverage import LIST_OFFICERS
from broker.storage.database import upsert
from broker.storage.rows import insert_rows
from broker.storage.tables import HeldUpload, HeldUploadPart, ItemState, table
from schemas.identifiers import authority_owner
from schemas.upload import UploadFormat, UploadKind

_held, _parts = table(HeldUpload), table(HeldUploadPart)
LANDING = "landing"
"""Stands where a person's decision would: nobody has to decide."""


class NewHold(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is to wait."""

    id: str
    authority: str
    kind: UploadKind
    format: UploadFormat
    file_hash: str
    uploaded_by: str
    uploaded_at: datetime
    rows_good: int
    rows_refused: int
    ends: int
    deletes: int
    doubles: int
    """People whom it lists a second time, under another ``local_id``."""
    current: int
    """Entries that stand as current on the list now."""
    due_by: datetime


class StoredHold(NewHold, frozen=True, kw_only=True):
    """A file that waits, with who holds it now."""

    held_by: str
    level: int


class Landing(msgspec.Struct, frozen=True, kw_only=True):
    """A long file of which not every row has landed. ``upload_id``: as which it is on record."""

    id: str
    authority: str
    kind: UploadKind
    format: UploadFormat
    uploaded_by: str
    uploaded_at: datetime
    upload_id: str
    leased_until: datetime


async def begin_landing(
    connection: AsyncConnection, keyring: Keyring, landing: Landing, *, file_hash: str, chunks: Iterable[bytes]
) -> None:
    """Keep a file until all of it has landed."""
    owner = authority_owner(landing.authority)
    values = {
        "id": landing.id,
        "owner": owner,
        "authority": landing.authority,
        "kind": landing.kind.value,
        "format": landing.format.value,
        "file_hash": file_hash,
        "uploaded_by": landing.uploaded_by,
        "uploaded_at": landing.uploaded_at,
        **dict.fromkeys(("rows_good", "rows_refused", "ends", "deletes", "doubles", "current", "level"), 0),
        "held_by": LANDING,
        "state": ItemState.DONE.value,
        "due_by": landing.leased_until,
        "decision": LANDING,
        "landing_upload_id": landing.upload_id,
        "leased_until": landing.leased_until,
    }
    await insert_rows(connection, _held, [values])
    await _keep_parts(connection, keyring, landing.id, owner, chunks)


async def find_landing(connection: AsyncConnection, authority: str) -> Landing | None:
    """The file that lands on an authority's list now."""
    statement = select(_held).where(_held.c.authority == authority, _held.c.landing_upload_id.is_not(None))
    row = (await connection.execute(statement.order_by(_held.c.leased_until).limit(1))).one_or_none()
    return None if row is None else _open_landing(row)


async def list_stranded(connection: AsyncConnection, now: datetime) -> list[Landing]:
    """The files that nobody goes on with."""
    statement = select(_held).where(_held.c.landing_upload_id.is_not(None), _held.c.leased_until <= now)
    return [_open_landing(row) for row in await connection.execute(statement.order_by(_held.c.id))]


async def take_over(connection: AsyncConnection, landing: Landing, leased_until: datetime) -> bool:
    """Go on with a file that nobody goes on with; False when another was first."""
    statement = (
        update(_held)
        .where(
            _held.c.id == landing.id,
            _held.c.leased_until == landing.leased_until,
            _held.c.landing_upload_id.is_not(None),
        )
        .values(leased_until=leased_until)
        .returning(_held.c.id)
    )
    return (await connection.execute(statement)).one_or_none() is not None


async def prolong_landing(connection: AsyncConnection, landing_id: str, leased_until: datetime) -> bool:
    """Say that somebody goes on; False when all of it has landed meanwhile."""
    statement = (
        update(_held)
        .where(_held.c.id == landing_id, _held.c.landing_upload_id.is_not(None))
        .values(leased_until=leased_until)
        .returning(_held.c.id)
    )
    return (await connection.execute(statement)).one_or_none() is not None


async def end_landing(connection: AsyncConnection, landing_id: str) -> bool:
    """All of it has landed: forget the file; False when another has done so."""
    await connection.execute(delete(_parts).where(_parts.c.upload_id == landing_id))
    statement = delete(_held).where(_held.c.id == landing_id).returning(_held.c.id)
    return (await connection.execute(statement)).one_or_none() is not None


async def hold_upload(connection: AsyncConnection, keyring: Keyring, new: NewHold, chunks: Iterable[bytes]) -> bool:
    """Keep a file until a person decides; False when this very file waits already."""
    values = {
        **msgspec.structs.asdict(new),
        "kind": new.kind.value,
        "format": new.format.value,
        "owner": authority_owner(new.authority),
        "held_by": LIST_OFFICERS,
        "level": 0,
        "state": ItemState.OPEN.value,
        "decision": None,
        "decided_by": None,
        "decided_at": None,
    }
    statement = upsert(connection, _held).values(values)
    statement = statement.on_conflict_do_update(
        index_elements=["id"], set_=values, where=_held.c.state == ItemState.DONE.value
    )
    if (await connection.execute(statement.returning(_held.c.id))).one_or_none() is None:
        return False
    await _keep_parts(connection, keyring, new.id, authority_owner(new.authority), chunks)
    return True


async def _keep_parts(
    connection: AsyncConnection, keyring: Keyring, upload_id: str, owner: str, chunks: Iterable[bytes]
) -> None:
    for number, chunk in enumerate(chunks):
        sealed = keyring.seal(chunk, about=f"held-upload/{upload_id}/{number}")
        part = {"upload_id": upload_id, "number": number, "owner": owner, "sealed": sealed}
        await insert_rows(connection, _parts, [part])


async def load_hold(connection: AsyncConnection, upload_id: str) -> StoredHold | None:
    """A file that waits; None when there is none or a person has decided."""
    statement = select(_held).where(_held.c.id == upload_id, _held.c.state == ItemState.OPEN.value)
    row = (await connection.execute(statement)).one_or_none()
    return None if row is None else _open(row)


async def list_holds(connection: AsyncConnection, owner: str | None, *, rows_max: int) -> list[StoredHold]:
    """The files that wait, the oldest first; of one owner, or of all."""
    statement = select(_held).where(_held.c.state == ItemState.OPEN.value)
    if owner is not None:
        statement = statement.where(_held.c.owner == owner)
    statement = statement.order_by(_held.c.uploaded_at, _held.c.id).limit(rows_max)
    return [_open(row) for row in await connection.execute(statement)]


async def load_part(connection: AsyncConnection, keyring: Keyring, upload_id: str, number: int) -> bytes | None:
    """A part of a held file; None behind the last one."""
    found = await connection.execute(
        select(_parts.c.sealed).where(_parts.c.upload_id == upload_id, _parts.c.number == number)
    )
    sealed = found.scalar_one_or_none()
    return None if sealed is None else keyring.open(bytes(sealed), about=f"held-upload/{upload_id}/{number}")


async def settle_upload(connection: AsyncConnection, upload_id: str, *, decision: str, by: str, now: datetime) -> bool:
    """Note what a person decided, and forget the file; False when somebody else was first."""
    statement = (
        update(_held)
        .where(_held.c.id == upload_id, _held.c.state == ItemState.OPEN.value)
        .values(state=ItemState.DONE.value, decision=decision, decided_by=by, decided_at=now)
        .returning(_held.c.id)
    )
    if (await connection.execute(statement)).one_or_none() is None:
        return False
    await connection.execute(delete(_parts).where(_parts.c.upload_id == upload_id))
    return True


async def count_holds(connection: AsyncConnection) -> int:
    """How many files wait."""
    statement = select(func.count()).select_from(_held).where(_held.c.state == ItemState.OPEN.value)
    return int((await connection.execute(statement)).scalar_one())


def _open(row: Any) -> StoredHold:
    return StoredHold(
        id=row.id,
        authority=row.authority,
        kind=UploadKind(row.kind),
        format=UploadFormat(row.format),
        file_hash=row.file_hash,
        uploaded_by=row.uploaded_by,
        uploaded_at=row.uploaded_at,
        rows_good=row.rows_good,
        rows_refused=row.rows_refused,
        ends=row.ends,
        deletes=row.deletes,
        doubles=row.doubles,
        current=row.current,
        due_by=row.due_by,
        held_by=row.held_by,
        level=row.level,
    )


def _open_landing(row: Any) -> Landing:
    return Landing(
        id=row.id,
        authority=row.authority,
        kind=UploadKind(row.kind),
        format=UploadFormat(row.format),
        uploaded_by=row.uploaded_by,
        uploaded_at=row.uploaded_at,
        upload_id=row.landing_upload_id,
        leased_until=row.leased_until,
    )
