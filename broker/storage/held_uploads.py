"""Files that wait for a person, sealed, because they would end, take back or double a great part of a list."""

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
    for number, chunk in enumerate(chunks):
        sealed = keyring.seal(chunk, about=f"held-upload/{new.id}/{number}")
        part = {"upload_id": new.id, "number": number, "owner": values["owner"], "sealed": sealed}
        await insert_rows(connection, _parts, [part])
    return True


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
