"""What questions about people ask and leave behind; on PostgreSQL in one round trip each, a hit like a miss (ADR 0051).

There reading locks nothing. What follows is written in one statement, a transaction of its own, if what it rests on is
still so; else nothing is, and the caller does it under locks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import groupby
from typing import Any, Final

import msgspec
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    ColumnElement,
    CompoundSelect,
    Dialect,
    FromClause,
    LargeBinary,
    String,
    any_,
    bindparam,
    cast,
    func,
    literal_column,
    null,
    or_,
    select,
    type_coerce,
    union_all,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import TypeEngine

from broker.domain.decision import Candidate
from broker.keyring import Keyring
from broker.storage import accesses, alerts, audit, child_lists, outbox, restrictions, visits
from broker.storage.accesses import History, NewAccess
from broker.storage.alerts import NewAlert, ToldOf
from broker.storage.audit import Act, Heads
from broker.storage.outbox import NOTIFY_CHANNEL, NewDelivery
from broker.storage.rows import Guard, Write, write_if, write_together
from broker.storage.tables import Access, AlertEntry, AuditHead, table
from broker.storage.tables.columns import UtcDateTime

_accesses, _grounds, _heads = table(Access), table(AlertEntry), table(AuditHead)
_DIALECT: Final = "postgresql"


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for: people by the index of their number, and the organisations that ask by their owner id."""

    indexes: Collection[bytes]
    organisations: Collection[str]
    counted_since: datetime
    told_since: datetime
    accesses_max: int


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of them, and where the chains end of those who ask and of those who would be told."""

    found: Mapping[bytes, Sequence[Candidate]]
    history: History
    told: Sequence[ToldOf]
    heads: Heads


class Followed(msgspec.Struct, frozen=True, kw_only=True):
    """What follows from questions: accesses as ``plan_accesses`` gives them, those that count by id, and the rest."""

    accesses: Sequence[Mapping[str, Any]]
    counted: Mapping[str, NewAccess]
    alerts: Sequence[NewAlert]
    resting_on: Collection[Candidate]
    """The entries that the alerts rest on, as they were read."""
    deliveries: Sequence[NewDelivery]
    acts: Sequence[Act]
    at: datetime


async def load_known(connection: AsyncConnection, keyring: Keyring, asked: Asked) -> Known:
    """Everything that is known, as ``find_listed``, ``load_history`` and ``list_told_of`` give it one by one."""
    values = {
        "indexes": list(asked.indexes),
        "organisations": list(asked.organisations),
        "counted_since": asked.counted_since,
        "told_since": asked.told_since,
    }
    statement, given = _everything(connection.dialect, asked.accesses_max)
    rows = await connection.exec_driver_sql(statement, tuple({**given, **values}[name] for name in given))
    parts = {part: list(of_part) for part, of_part in groupby(sorted(rows, key=_place), key=lambda row: row.part)}
    return Known(
        found=child_lists.open_listed(keyring, parts.get(_LISTED, ())),
        history=accesses.open_history(parts.get(_HISTORY, ())),
        told=alerts.open_told_of(parts.get(_TOLD, ())),
        heads={row.owner: (row.place, bytes(row.hash)) for row in parts.get(_HEADS, ())},
    )


async def save_followed(connection: AsyncConnection, keyring: Keyring, followed: Followed) -> None:
    """Write all that follows but the accesses, which are kept: what counts of them is known only then. Audit last.

    For a transaction under locks, on either database. They are taken in the same order as by ``write_followed``.
    """
    restricted = await restrictions.hold_entries(connection, {each.entry_id for each in followed.resting_on})
    await outbox.make_due(connection, followed.deliveries, followed.at)
    await write_together(connection, _list_writes(keyring, followed))
    await restrictions.withhold_of(connection, keyring, restricted)
    await audit.record_acts(connection, followed.acts, followed.at)


async def write_followed(connection: AsyncConnection, keyring: Keyring, heads: Heads, followed: Followed) -> bool:
    """Write all that follows and wake the dispatcher: whether it was done. The connection is ``stating``.

    It is not where a chain has gone on meanwhile or was never begun, an access is there already, an entry was taken
    back or has another number or restriction, or a recipient is new.
    """
    if {act.owner for act in followed.acts} - heads.keys():
        return False
    writes = [
        Write(_accesses, followed.accesses),
        *_list_writes(keyring, followed),
        *audit.chain_acts(heads, followed.acts, followed.at),
    ]
    try:
        return await write_if(connection, _guard(keyring, heads, followed), writes)
    except IntegrityError:
        return False  # somebody kept the same access at this very moment


def _list_writes(keyring: Keyring, followed: Followed) -> list[Write]:
    """Parents first."""
    opened = [(access_id, access.author.organisation) for access_id, access in followed.counted.items()]
    return [
        visits.write_look_ups(opened, followed.at),
        *alerts.write_alerts(keyring, followed.alerts),
        outbox.write_deliveries(keyring, followed.deliveries, followed.at),
    ]


_LISTED, _HISTORY, _TOLD, _HEADS = range(4)


@cache
def _everything(dialect: Dialect, rows_max: int) -> tuple[str, Mapping[str, Any]]:
    """Four parts in rows of one form; as the driver takes it, with its parameters in their order (see ``rows``)."""
    compiled = _select_everything(rows_max).compile(dialect=dialect)
    assert isinstance(compiled, SQLCompiler) and compiled.positiontup is not None
    return str(compiled), {name: compiled.params[name] for name in compiled.positiontup}


def _select_everything(rows_max: int) -> CompoundSelect[Any]:
    listed = child_lists.select_listed(_DIALECT).cte("listed")
    indexes = bindparam("indexes", type_=ARRAY(LargeBinary))
    met = _accesses.c.nhs_index == any_(
        type_coerce(func.array_cat(indexes, _array_of(listed.c.nhs_index)), ARRAY(LargeBinary))
    )
    resting = _grounds.c.entry_id == any_(type_coerce(_array_of(listed.c.id), ARRAY(String)))
    asking = _heads.c.owner == any_(bindparam("organisations", type_=ARRAY(String)))
    to_be_told = _heads.c.owner == any_(type_coerce(_array_of(listed.c.owner), ARRAY(String)))
    heads = select(_heads.c.owner, _heads.c.sequence.label("place"), _heads.c.hash).where(or_(asking, to_be_told))
    return union_all(
        _as_part(_LISTED, listed),
        _as_part(_HISTORY, accesses.select_ranked(met, rows_max).subquery()),
        _as_part(_TOLD, alerts.select_told_of(_DIALECT, resting).subquery()),
        _as_part(_HEADS, heads.subquery()),
    )


_FORM: Final[Mapping[str, TypeEngine[Any]]] = {
    "id": String(),
    "place": BigInteger(),
    "owner": String(),
    "authority": String(),
    "entry_id": String(),
    "asked": LargeBinary(),
    "nhs_index": LargeBinary(),
    "author_index": LargeBinary(),
    "hash": LargeBinary(),
    "sealed": LargeBinary(),
    "at": UtcDateTime(),
    "dead_at": UtcDateTime(),
    "raised_at": UtcDateTime(),
    "acknowledged_at": UtcDateTime(),
    "is_restricted": Boolean(),
    "is_look_up": Boolean(),
    "is_withheld": Boolean(),
}


def _as_part(part: int, rows: FromClause) -> Any:
    columns: list[ColumnElement[Any]] = [
        rows.c[name] if name in rows.c else cast(null(), type_).label(name) for name, type_ in _FORM.items()
    ]
    return select(literal_column(str(part), BigInteger).label("part"), *columns)


def _array_of(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.array(select(column).scalar_subquery())


def _place(row: Any) -> tuple[int, int]:
    return row.part, row.place or 0


# Locked in the order in which everybody locks them: entries, lanes, the ends of chains last. Each names the one before
# it, so that the database looks at that first.
_GUARD: Final = """
entries_held AS MATERIALIZED (
    SELECT id, is_restricted, nhs_index FROM list_entries
    WHERE id = ANY($1::varchar[]) AND dead_at IS NULL ORDER BY id FOR SHARE
), lanes_held AS MATERIALIZED (
    SELECT id FROM lanes
    WHERE id = ANY($3::varchar[]) AND (SELECT count(*) FROM entries_held) >= 0 ORDER BY id FOR UPDATE
), heads_held AS MATERIALIZED (
    SELECT owner, sequence FROM audit_heads
    WHERE owner = ANY($4::varchar[]) AND (SELECT count(*) FROM lanes_held) >= 0 ORDER BY owner FOR UPDATE
), fits AS MATERIALIZED (
    SELECT (SELECT count(*) FROM heads_held JOIN unnest($4::varchar[], $5::bigint[]) AS read (owner, sequence)
            USING (owner, sequence)) = cardinality($4::varchar[])
        AND (SELECT count(*) FROM entries_held
            JOIN unnest($1::varchar[], $2::boolean[], $8::bytea[]) AS read (id, is_restricted, nhs_index)
            USING (id, is_restricted, nhs_index)) = cardinality($1::varchar[])
        AND (SELECT count(*) FROM lanes_held) = cardinality($3::varchar[])
        AND NOT EXISTS (SELECT FROM accesses WHERE id = ANY($6::varchar[])) AS ok
), lanes_due AS (
    UPDATE lanes SET next_due_at = LEAST(next_due_at, $7::timestamptz)
    WHERE id = ANY($3::varchar[]) AND (SELECT ok FROM fits)
)"""
_RESULT: Final = f"ok, CASE WHEN ok AND cardinality($3::varchar[]) > 0 THEN pg_notify('{NOTIFY_CHANNEL}', '') END"


def _guard(keyring: Keyring, heads: Heads, followed: Followed) -> Guard:
    entries = {each.entry_id: each for each in followed.resting_on}.values()
    owners = sorted({act.owner for act in followed.acts})
    values = (
        [each.entry_id for each in entries],
        [each.is_restricted for each in entries],
        sorted({delivery.lane for delivery in followed.deliveries}),
        owners,
        [heads[owner][0] for owner in owners],
        [row["id"] for row in followed.accesses],
        followed.at,
        [child_lists.index_nhs_number(keyring, each.entry.nhs_number) for each in entries],
    )
    return Guard(_GUARD, values, _RESULT)
