"""Who looked at whose record: attendances that matched, and look-ups. Authors are sealed, people found by blind index.

Two accesses of one author to one record within 24 hours count once, the first of them (CP-IS, NHS query response);
silent reads count never. Those that do not count are kept all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Select, bindparam, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.storage.child_lists import index_nhs_number
from broker.storage.rows import insert_new, is_among, is_among_given
from broker.storage.tables import Access, table
from schemas.identifiers import NhsNumber, organisation_owner

_accesses = table(Access)
COUNTED_ONCE_WITHIN: Final = timedelta(hours=24)
Counted = dict[tuple[bytes, bytes], list[datetime]]
"""When accesses counted, by the index of the record and that of their author."""


class AccessKind(StrEnum):
    """How the record was met."""

    ATTENDED = "attended"
    LOOKED_UP = "looked_up"


class Author(msgspec.Struct, frozen=True, kw_only=True):
    """Who had access. ``person`` is None where a message, not a person, met the record."""

    kind: AccessKind
    organisation: str
    organisation_name: str
    person: str | None = None


class NewAccess(msgspec.Struct, frozen=True, kw_only=True):
    """An access to be kept."""

    nhs_number: NhsNumber
    author: Author
    at: datetime
    is_unscheduled: bool
    is_withheld: bool = False
    """The person is restricted: to others than its author it is shown on no page but the protected one."""
    visit_id: str | None = None
    """The visit that met the record: it does so once, however many messages it has."""


class Accessed(msgspec.Struct, frozen=True, kw_only=True):
    """An access as it is shown."""

    at: datetime
    author: Author


class History(msgspec.Struct, frozen=True, kw_only=True):
    """The accesses from unscheduled care to some records, as far as they are shown or may keep one from counting."""

    rows: Mapping[bytes, Sequence[Any]]
    """By the record's index, newest first."""

    def counted(self) -> Counted:
        """When each author had access to each record."""
        found: Counted = {}
        for index, rows in self.rows.items():
            for row in rows:
                found.setdefault((index, bytes(row.author_index)), []).append(row.at)
        return found

    def show(
        self, keyring: Keyring, index: bytes, new: Iterable[NewAccess], *, asked_by: str, rows_max: int
    ) -> list[Accessed]:
        """The most recent accesses to one record, newest first; ``new`` ones have just been kept.

        Of those that are withheld an organisation is shown its own.
        """
        shown = [Accessed(at=each.at, author=each.author) for each in new]
        kept = {
            is_withheld: [row for row in self.rows.get(index, ()) if row.is_withheld is is_withheld][:rows_max]
            for is_withheld in (False, True)
        }
        shown += [Accessed(at=row.at, author=_open(keyring, row)) for row in kept[False]]
        withheld = [Accessed(at=row.at, author=_open(keyring, row)) for row in kept[True]]
        shown += [each for each in withheld if each.author.organisation == asked_by]
        return sorted(shown, key=lambda each: each.at, reverse=True)[:rows_max]


async def load_history(
    connection: AsyncConnection, indexes: Collection[bytes], since: datetime, *, rows_max: int
) -> History:
    """The ``rows_max`` most recent accesses to each record that has one of these indexes, and all after ``since``."""
    statement = _ranked(connection.dialect.name, rows_max)
    ranked = await connection.execute(statement, {"indexes": list(indexes), "counted_since": since})
    return open_history(sorted(ranked, key=lambda row: row.place))


def open_history(rows: Iterable[Any]) -> History:
    """The history of rows of ``select_ranked``, in their places."""
    by_index: dict[bytes, list[Any]] = {}
    for row in rows:
        by_index.setdefault(bytes(row.nhs_index), []).append(row)
    return History(rows=by_index)


@cache
def _ranked(dialect_name: str, rows_max: int) -> Select[Any]:
    return select_ranked(is_among_given(dialect_name, _accesses.c.nhs_index, "indexes"), rows_max)


def select_ranked(is_asked_for: ColumnElement[bool], rows_max: int) -> Select[Any]:
    """The ``rows_max`` most recent accesses to each of some records, and all after ``counted_since``.

    Those of the protected view are counted apart, so that they push none of the others out.
    """
    place = func.row_number().over(
        partition_by=(_accesses.c.nhs_index, _accesses.c.is_withheld), order_by=(_accesses.c.at.desc(), _accesses.c.id)
    )
    ranked = (
        select(
            _accesses.c.id,
            _accesses.c.nhs_index,
            _accesses.c.author_index,
            _accesses.c.at,
            _accesses.c.sealed,
            _accesses.c.is_withheld,
            place.label("place"),
        )
        .where(is_asked_for, _accesses.c.is_counted)
        .subquery()
    )
    is_wanted = or_(ranked.c.place <= rows_max, ranked.c.at > bindparam("counted_since"))
    return select(ranked).where(is_wanted)


async def save_accesses(
    connection: AsyncConnection, keyring: Keyring, new: Sequence[NewAccess], history: History | None = None
) -> dict[str, NewAccess]:
    """Keep the accesses; returns those that count, by id. One that is there already stays and counts no more.

    ``history`` is that of their records from COUNTED_ONCE_WITHIN before the first of them; None: it is read here.
    """
    if not new:
        return {}
    counted = await _load_counted(connection, keyring, new) if history is None else history.counted()
    rows, counts = plan_accesses(keyring, new, counted)
    kept = set(await insert_new(connection, _accesses, rows, key="id"))
    return {access_id: access for access_id, access in counts.items() if access_id in kept}


def plan_accesses(
    keyring: Keyring, new: Sequence[NewAccess], counted: Counted
) -> tuple[list[dict[str, Any]], dict[str, NewAccess]]:
    """The rows of these accesses, and those of them that count, by id. ``counted`` takes them in."""
    rows: dict[str, dict[str, Any]] = {}
    counts: dict[str, NewAccess] = {}
    for access in sorted(new, key=lambda each: each.at):
        key = _key(keyring, access)
        before = counted.setdefault(key, [])
        is_counted = access.is_unscheduled and not any(abs(access.at - at) < COUNTED_ONCE_WITHIN for at in before)
        row = _row(keyring, access, is_counted=is_counted)
        if row["id"] in rows:
            continue
        rows[row["id"]] = row
        if is_counted:
            before.append(access.at)
            counts[row["id"]] = access
    # Sorted, so that two transactions with the same accesses wait for each other and never in a circle.
    return sorted(rows.values(), key=lambda row: str(row["id"])), counts


async def list_counted(
    connection: AsyncConnection, keyring: Keyring, nhs_number: str, *, rows_max: int, with_withheld: bool = False
) -> list[Accessed]:
    """The most recent accesses from unscheduled care to one record, newest first; the protected view has all."""
    statement = (
        select(_accesses.c.id, _accesses.c.at, _accesses.c.sealed)
        .where(_accesses.c.nhs_index == index_nhs_number(keyring, nhs_number), _accesses.c.is_counted)
        .order_by(_accesses.c.at.desc(), _accesses.c.id)
        .limit(rows_max)
    )
    if not with_withheld:
        statement = statement.where(_accesses.c.is_withheld.is_(False))
    return [Accessed(at=row.at, author=_open(keyring, row)) for row in await connection.execute(statement)]


async def list_unscheduled(
    connection: AsyncConnection, keyring: Keyring, nhs_number: str, visit_ids: Collection[str], *, rows_max: int
) -> list[Accessed]:
    """Accesses from unscheduled care to one record, counted or not, newest first; without those of these visits, and
    without those that are withheld.
    """
    statement = (
        select(_accesses)
        .where(
            _accesses.c.nhs_index == index_nhs_number(keyring, nhs_number),
            _accesses.c.is_unscheduled,
            _accesses.c.is_withheld.is_(False),
        )
        .order_by(_accesses.c.at.desc(), _accesses.c.id)
        .limit(rows_max)
    )
    found = []
    left_out: dict[bytes, set[str]] = {}
    for row in await connection.execute(statement):
        author = bytes(row.author_index)
        if author not in left_out:
            index = bytes(row.nhs_index)
            left_out[author] = {derive_visit_access_id(keyring, index, author, visit_id) for visit_id in visit_ids}
        # A look-up's thread has the id of its access.
        if row.id not in left_out[author] and row.id not in visit_ids:
            found.append(Accessed(at=row.at, author=_open(keyring, row)))
    return found


def derive_visit_access_id(keyring: Keyring, nhs_index: bytes, author_index: bytes, visit_id: str) -> str:
    """The id of the access that a visit had to a record."""
    return keyring.derive_id("access", nhs_index.hex(), author_index.hex(), visit_id)


async def find_record(connection: AsyncConnection, access_id: str) -> bytes | None:
    """The blind index of the record that was met; a look-up's thread has the id of its access."""
    found = await connection.execute(select(_accesses.c.nhs_index).where(_accesses.c.id == access_id))
    index = found.scalar_one_or_none()
    return bytes(index) if index is not None else None


async def _load_counted(connection: AsyncConnection, keyring: Keyring, new: Sequence[NewAccess]) -> Counted:
    persons = sorted({index_nhs_number(keyring, access.nhs_number) for access in new})
    first, last = min(access.at for access in new), max(access.at for access in new)
    statement = select(_accesses.c.nhs_index, _accesses.c.author_index, _accesses.c.at).where(
        is_among(connection, _accesses.c.nhs_index, persons),
        _accesses.c.is_counted,
        _accesses.c.at > first - COUNTED_ONCE_WITHIN,
        _accesses.c.at < last + COUNTED_ONCE_WITHIN,
    )
    found: Counted = {}
    for row in await connection.execute(statement):
        found.setdefault((bytes(row.nhs_index), bytes(row.author_index)), []).append(row.at)
    return found


def _key(keyring: Keyring, access: NewAccess) -> tuple[bytes, bytes]:
    author = keyring.index("author", access.author.organisation, access.author.person or "")
    return index_nhs_number(keyring, access.nhs_number), author


def _row(keyring: Keyring, access: NewAccess, *, is_counted: bool) -> dict[str, Any]:
    nhs_index, author_index = _key(keyring, access)
    if access.visit_id is not None:
        place = access.visit_id
    elif is_counted:
        # Two that come at one moment, and do not see each other, meet here: those that count are a day apart.
        place = f"day {int(access.at.timestamp() // COUNTED_ONCE_WITHIN.total_seconds())}"
    else:
        place = access.at.isoformat()
    access_id = keyring.derive_id("access", nhs_index.hex(), author_index.hex(), place)
    return {
        "id": access_id,
        "owner": organisation_owner(access.author.organisation),
        "nhs_index": nhs_index,
        "author_index": author_index,
        "at": access.at,
        "is_unscheduled": access.is_unscheduled,
        "is_counted": is_counted,
        "is_withheld": access.is_withheld,
        "sealed": keyring.seal(msgspec.json.encode(access.author), about=f"access/{access_id}"),
    }


def load_author(keyring: Keyring, row: Any) -> Author:
    """Who had the access of a row that has ``id`` and ``sealed``."""
    return _open(keyring, row)


def _open(keyring: Keyring, row: Any) -> Author:
    return msgspec.json.decode(keyring.open(bytes(row.sealed), about=f"access/{row.id}"), type=Author)
