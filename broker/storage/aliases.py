"""Superseded NHS numbers: pairs that PDS itself links, each for the entries of one owner. A person may undo a pair.

Only a superseded record makes one. What a search finds never does: after an adoption the new number must stay unlinked.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

import msgspec
from sqlalchemy import Select, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.storage.database import upsert
from broker.storage.rows import is_among_given
from broker.storage.tables import NumberAlias, table
from schemas.identifiers import NhsNumber

_aliases = table(NumberAlias)
BROKER: Final = "broker"
"""Who has undone a pair that PDS does not link any more; linked there again, it stands again."""


class Alias(msgspec.Struct, frozen=True, kw_only=True):
    """Two numbers of one person. ``old_index`` and ``new_index`` are blind."""

    id: str
    owner: str
    old_index: bytes
    new_index: bytes
    old: NhsNumber
    new: NhsNumber
    made_at: datetime
    undone_at: datetime | None = None
    undone_by: str | None = None

    def other_side(self, nhs_index: bytes) -> NhsNumber:
        """The number that goes with the one that has this index."""
        return self.old if nhs_index == self.new_index else self.new


class _Numbers(msgspec.Struct, frozen=True):
    old: NhsNumber
    new: NhsNumber


def derive_alias_id(keyring: Keyring, owner: str, old: NhsNumber, new: NhsNumber) -> str:
    """One pair for each owner."""
    return keyring.derive_id("alias", owner, old, new)


async def add_alias(
    connection: AsyncConnection, keyring: Keyring, owner: str, *, old: NhsNumber, new: NhsNumber, now: datetime
) -> bool:
    """Link two numbers for an owner's entries; False when the pair stands, or when a person has undone it."""
    alias_id = derive_alias_id(keyring, owner, old, new)
    values = {
        "id": alias_id,
        "owner": owner,
        "old_index": keyring.index("nhs", old),
        "new_index": keyring.index("nhs", new),
        "sealed": keyring.seal(msgspec.json.encode(_Numbers(old, new)), about=f"alias/{alias_id}"),
        "made_at": now,
    }
    statement = upsert(connection, _aliases).values(values)
    statement = statement.on_conflict_do_update(
        index_elements=["id"],
        set_={"made_at": now, "undone_at": None, "undone_by": None},
        where=_aliases.c.undone_by == BROKER,
    )
    return (await connection.execute(statement.returning(_aliases.c.id))).one_or_none() is not None


async def part_revived(
    connection: AsyncConnection, keyring: Keyring, owner: str, old: NhsNumber, *, now: datetime
) -> bool:
    """Part a number from all that superseded it, because PDS holds it again as a number of its own."""
    standing = (
        _aliases.c.owner == owner,
        _aliases.c.old_index == keyring.index("nhs", old),
        _aliases.c.undone_at.is_(None),
    )
    statement = update(_aliases).where(*standing).values(undone_at=now, undone_by=BROKER).returning(_aliases.c.id)
    return bool((await connection.execute(statement)).all())


async def undo_alias(connection: AsyncConnection, alias_id: str, *, by: str, now: datetime) -> bool:
    """Part two numbers again; False when they are parted already."""
    standing = (_aliases.c.id == alias_id, _aliases.c.undone_at.is_(None))
    statement = update(_aliases).where(*standing).values(undone_at=now, undone_by=by).returning(_aliases.c.id)
    return (await connection.execute(statement)).one_or_none() is not None


async def find_aliases(
    connection: AsyncConnection, keyring: Keyring, indexes: Collection[bytes], *, owner: str | None = None
) -> list[Alias]:
    """Pairs that stand, of numbers with these indexes on either side."""
    if not indexes:
        return []
    statement = _standing(connection.dialect.name)
    if owner is not None:
        statement = statement.where(_aliases.c.owner == owner)
    return [_open(keyring, row) for row in await connection.execute(statement, {"indexes": list(indexes)})]


@lru_cache
def _standing(dialect: str) -> Select[Any]:
    columns = (_aliases.c.new_index, _aliases.c.old_index)
    either = or_(*(is_among_given(dialect, column, "indexes") for column in columns))
    return select(_aliases).where(either, _aliases.c.undone_at.is_(None))


def _open(keyring: Keyring, row: Any) -> Alias:
    plain = keyring.open(bytes(row.sealed), about=f"alias/{row.id}")
    numbers = msgspec.json.decode(plain, type=_Numbers)
    return Alias(
        id=row.id,
        owner=row.owner,
        old_index=bytes(row.old_index),
        new_index=bytes(row.new_index),
        old=numbers.old,
        new=numbers.new,
        made_at=row.made_at,
        undone_at=row.undone_at,
        undone_by=row.undone_by,
    )
