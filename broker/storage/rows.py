"""Many rows in one statement: what a batch of messages asks for and writes.

Statements that write are built once for each table and handed to the driver as they are. Binding a batch's rows one by
one through SQLAlchemy cost more than everything that is decided about them. PostgreSQL takes a batch as one array for
each column, so that one prepared statement serves batches of every size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Dialect, LargeBinary, String, Table, TypeDecorator, any_, bindparam, literal, text
from sqlalchemy import column as sql_column
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import INDEX_BYTES
from broker.storage.sqlite import TOGETHER

SQLITE_VALUES_MAX: Final = 30_000
"""Bound values of one statement; SQLite's own limit is 32,766."""
Row = Mapping[str, Any]


def is_among(connection: AsyncConnection, column: ColumnElement[Any], values: Collection[Any]) -> ColumnElement[bool]:
    """Whether the column holds one of ``values``, of which SQLite takes up to SQLITE_VALUES_MAX."""
    if connection.dialect.name == "postgresql":
        return column == any_(literal(list(values), ARRAY(column.type)))
    return column.in_(values)


def is_among_given(dialect: str, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    """As ``is_among``, for a statement that is built once: its values are given under ``name`` when it is executed.

    Building a statement takes SQLAlchemy three times as long as executing one that it has seen before. SQLite takes
    all values as one, texts as JSON and blind indexes one behind the other: a list of any length is the same statement.
    """
    if dialect == "postgresql":
        return column == any_(bindparam(name, type_=ARRAY(column.type)))
    if isinstance(column.type, LargeBinary):
        taken_apart = text(_INDEXES_TAKEN_APART.format(name=name, size=INDEX_BYTES))
        given = taken_apart.bindparams(bindparam(name, type_=_Indexes))
    else:
        given = text(_TEXTS_TAKEN_APART.format(name=name)).bindparams(bindparam(name, type_=_Texts))
    return column.in_(given.columns(sql_column("value", column.type)))


_TEXTS_TAKEN_APART: Final = "SELECT value FROM json_each(:{name})"
_INDEXES_TAKEN_APART: Final = (
    "WITH RECURSIVE part(start) AS"
    " (SELECT 1 UNION ALL SELECT start + {size} FROM part WHERE start + {size} <= length(:{name}))"
    " SELECT substr(:{name}, start, {size}) FROM part"
)


class _Indexes(TypeDecorator[Collection[bytes]]):
    """Blind indexes, all of one length, as one value."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Collection[bytes] | None, dialect: Dialect) -> bytes:
        """One behind the other."""
        indexes = value or ()
        assert all(len(index) == INDEX_BYTES for index in indexes), "not blind indexes"
        return b"".join(indexes)


class _Texts(TypeDecorator[Collection[str]]):
    """Texts as one value."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Collection[str] | None, dialect: Dialect) -> str:
        """A JSON array."""
        return msgspec.json.encode(list(value or ())).decode()


async def insert_rows(
    connection: AsyncConnection, table: Table, rows: Sequence[Row], *, ignore_existing: bool = False
) -> None:
    """Insert rows that all have the same columns, in their order; with ``ignore_existing`` one that is there stays."""
    if not rows:
        return
    plan = _plan_insert(connection.dialect, table, tuple(rows[0]), ignore_existing, "")
    if connection.dialect.name == "postgresql":
        await connection.exec_driver_sql(plan.statement, plan.columns_of(rows))
    else:
        await connection.exec_driver_sql(plan.of_one_row, plan.tuples_of(rows))


async def insert_new(connection: AsyncConnection, table: Table, rows: Sequence[Row], *, key: str) -> list[Any]:
    """Insert the rows that are not there yet; returns the ``key`` of each of those.

    A row that another transaction is just inserting is waited for.
    """
    if not rows:
        return []
    plan = _plan_insert(connection.dialect, table, tuple(rows[0]), True, key)
    if connection.dialect.name == "postgresql":
        return list((await connection.exec_driver_sql(plan.statement, plan.columns_of(rows))).scalars())
    found: list[Any] = []
    size = SQLITE_VALUES_MAX // len(plan.names)
    for start in range(0, len(rows), size):
        part = plan.tuples_of(rows[start : start + size])
        marks = ", ".join([plan.marks] * len(part))
        values = tuple(value for row in part for value in row)
        result = await connection.exec_driver_sql(f"{plan.statement} VALUES {marks} {plan.ending}", values)
        found.extend(result.scalars())
    return found


async def update_rows(connection: AsyncConnection, table: Table, rows: Sequence[Row], *, key: str) -> None:
    """Set what each of ``rows`` says in the row that has its ``key``; all have the same columns, and no key twice."""
    if not rows:
        return
    plan = _plan_update(connection.dialect, table, tuple(rows[0]), key)
    values = plan.columns_of(rows) if connection.dialect.name == "postgresql" else plan.tuples_of(rows)
    await connection.exec_driver_sql(plan.statement, values)


class Write(NamedTuple):
    """Rows of one table to be inserted, or with ``key`` set anew where they are; all have the same columns."""

    table: Table
    rows: Sequence[Row]
    key: str = ""
    ignore_existing: bool = False


async def write_together(connection: AsyncConnection, writes: Sequence[Write]) -> None:
    """Do several writes, each to another table, in one round trip.

    PostgreSQL checks foreign keys when all are done; SQLite does them one after another, so name parents first.
    """
    wanted = [write for write in writes if write.rows]
    if not wanted:
        return
    plans = _plan_together(connection.dialect, _shapes_of(wanted))
    if connection.dialect.name != "postgresql":
        statement = "".join(f"{plan.of_one_row}{TOGETHER}" for plan in plans)
        values = tuple(plan.tuples_of(write.rows) for plan, write in zip(plans, wanted, strict=True))
        await connection.exec_driver_sql(statement, values)
    else:
        *others, last = plans
        before = _as_parts(others)
        statement = f"WITH {before} {last.statement}" if before else last.statement
        await connection.exec_driver_sql(statement, _values_of(plans, wanted))


class Guard(NamedTuple):
    """What must hold for rows to be written, in PostgreSQL's SQL.

    ``expressions`` are named ones (WITH), the last of them ``fits``: one row with ``ok``. Theirs are the statement's
    first parameters, ``values``. ``result`` is what is selected of ``fits`` at the end, ``ok`` first.
    """

    expressions: str
    values: tuple[Any, ...]
    result: str = "ok"


async def write_if(connection: AsyncConnection, guard: Guard, writes: Sequence[Write]) -> bool:
    """Do all the writes in one statement of PostgreSQL, or none of them: whether it did.

    What a guard's expressions lock stays locked until the transaction ends.
    """
    wanted = [write for write in writes if write.rows]
    plans = _plan_together(connection.dialect, _shapes_of(wanted), len(guard.values) + 1, "(SELECT ok FROM fits)")
    parts = ", ".join(filter(None, (guard.expressions, _as_parts(plans))))
    statement = " ".join(("WITH", parts, "SELECT", guard.result, "FROM fits"))
    done = await connection.exec_driver_sql(statement, (*guard.values, *_values_of(plans, wanted)))
    return bool(done.scalar_one())


_Shape = tuple[Table, tuple[str, ...], str, bool]


def _shapes_of(writes: Sequence[Write]) -> tuple[_Shape, ...]:
    return tuple((table, tuple(rows[0]), key, ignore) for table, rows, key, ignore in writes)


def _values_of(plans: Sequence[_Plan], writes: Sequence[Write]) -> tuple[list[Any], ...]:
    return tuple(column for plan, write in zip(plans, writes, strict=True) for column in plan.columns_of(write.rows))


def _as_parts(plans: Sequence[_Plan]) -> str:
    return ", ".join(f"part{number} AS ({plan.statement})" for number, plan in enumerate(plans))


@lru_cache(maxsize=100)
def _plan_together(
    dialect: Dialect, shapes: tuple[_Shape, ...], first: int = 1, condition: str = "true"
) -> Sequence[_Plan]:
    plans: list[_Plan] = []
    for table, names, key, ignore_existing in shapes:
        place = first + sum(len(plan.names) for plan in plans)
        plans.append(
            _plan_update(dialect, table, names, key, first=place, condition=condition)
            if key
            else _plan_insert(dialect, table, names, ignore_existing, "", first=place, condition=condition)
        )
    return plans


class _Plan(NamedTuple):
    """One table's statement; when it inserts on SQLite, ``marks`` and ``ending`` follow."""

    statement: str
    names: tuple[str, ...]
    binders: tuple[Callable[[Any], Any] | None, ...]
    marks: str = ""
    ending: str = ""

    @property
    def of_one_row(self) -> str:
        """The statement as SQLite executes it for each row."""
        return f"{self.statement} VALUES {self.marks} {self.ending}" if self.marks else self.statement

    def columns_of(self, rows: Sequence[Row]) -> tuple[list[Any], ...]:
        return tuple(
            [row[name] for row in rows] if bind is None else [bind(row[name]) for row in rows]
            for name, bind in zip(self.names, self.binders, strict=True)
        )

    def tuples_of(self, rows: Sequence[Row]) -> list[tuple[Any, ...]]:
        return list(zip(*self.columns_of(rows), strict=True))


@lru_cache(maxsize=100)
def _plan_insert(
    dialect: Dialect,
    table: Table,
    names: tuple[str, ...],
    ignore_existing: bool,
    key: str,
    *,
    first: int = 1,
    condition: str = "true",
) -> _Plan:
    quote = dialect.identifier_preparer.quote
    target = f"INSERT INTO {quote(table.name)} ({', '.join(map(quote, names))})"
    ending = ("ON CONFLICT DO NOTHING" if ignore_existing else "") + (f" RETURNING {quote(key)}" if key else "")
    binders = _binders(dialect, table, names)
    if dialect.name == "postgresql":
        said = _unnest(dialect, table, names, first)
        return _Plan(" ".join((target, "SELECT * FROM", said, "WHERE", condition, ending)), names, binders)
    return _Plan(target, names, binders, f"({', '.join('?' * len(names))})", ending)


@lru_cache(maxsize=100)
def _plan_update(
    dialect: Dialect, table: Table, names: tuple[str, ...], key: str, *, first: int = 1, condition: str = "true"
) -> _Plan:
    quote = dialect.identifier_preparer.quote
    changed, target = [quote(name) for name in names if name != key], quote(table.name)
    if dialect.name == "postgresql":
        changes = ", ".join(f"{name} = said.{name}" for name in changed)
        said = f"{_unnest(dialect, table, names, first)} AS said ({', '.join(map(quote, names))})"
        found = f"{target}.{quote(key)} = said.{quote(key)}"
        statement = " ".join(("UPDATE", target, "SET", changes, "FROM", said, "WHERE", found, "AND", condition))
        return _Plan(statement, names, _binders(dialect, table, names))
    ordered = (*(name for name in names if name != key), key)
    changes = ", ".join(f"{name} = ?" for name in changed)
    statement = " ".join(("UPDATE", target, "SET", changes, "WHERE", quote(key), "= ?"))
    return _Plan(statement, ordered, _binders(dialect, table, ordered))


def _binders(dialect: Dialect, table: Table, names: tuple[str, ...]) -> tuple[Callable[[Any], Any] | None, ...]:
    """What has to be made of each value first. Both drivers take bytes as they are."""
    return tuple(
        None if isinstance(type_, LargeBinary) else type_.dialect_impl(dialect).bind_processor(dialect)
        for type_ in (table.c[name].type for name in names)
    )


def _unnest(dialect: Dialect, table: Table, names: tuple[str, ...], first: int) -> str:
    types = [table.c[name].type.compile(dialect) for name in names]
    return f"unnest({', '.join(f'${number}::{type_}[]' for number, type_ in enumerate(types, start=first))})"
