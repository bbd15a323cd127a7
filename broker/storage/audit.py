"""The audit: append-only, chained per owner, the transaction's last write."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import Select, bindparam, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.audit_chain import GENESIS, AuditRecord, chain_hash
from broker.storage.rows import Write, insert_rows, is_among, is_among_given, write_together
from broker.storage.tables import AuditHead, AuditRow, Owner, table
from schemas.directory import Person

_heads, _audit, _owners = table(AuditHead), table(AuditRow), table(Owner)
Heads = Mapping[str, tuple[int, bytes]]
"""Where the chains of some owners end: sequence and hash, by owner."""


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """One act to be audited. ``subject`` is an id or a blind index in hexadecimal."""

    owner: str
    actor: str
    action: str
    subject: str
    reason: str = ""


def act_of(person: Person, action: str, subject: str, reason: str = "") -> Act:
    """What a person did on a page, for whom they act."""
    return Act(owner=person.owner, actor=person.login, action=action, subject=subject, reason=reason)


def act_of_broker(owner: str, action: str, subject: str, reason: str = "") -> Act:
    """What the broker did by itself with what is an owner's."""
    return Act(owner=owner, actor="broker", action=action, subject=subject, reason=reason)


class RecordedAct(msgspec.Struct, frozen=True, kw_only=True):
    """An act on record."""

    at: datetime
    actor: str
    action: str
    subject: str


async def record_acts(connection: AsyncConnection, acts: Sequence[Act], now: datetime) -> None:
    """Append the acts to their owners' chains. Call it last: the heads are locked until the transaction ends."""
    if not acts:
        return
    heads = await _lock_heads(connection, sorted({act.owner for act in acts}))
    await write_together(connection, chain_acts(heads, acts, now))


def chain_acts(heads: Heads, acts: Sequence[Act], now: datetime) -> list[Write]:
    """The records of the acts behind these ends of their owners' chains, and the new ends."""
    by_owner: dict[str, list[Act]] = defaultdict(list)
    for act in acts:
        by_owner[act.owner].append(act)
    rows, moved = [], []
    for owner in sorted(by_owner):
        sequence, previous = heads[owner]
        for act in by_owner[owner]:
            sequence += 1
            record = AuditRecord(
                owner=owner,
                sequence=sequence,
                at=now,
                actor=act.actor,
                action=act.action,
                subject=act.subject,
                reason=act.reason,
            )
            previous = chain_hash(previous, record)
            rows.append({**msgspec.structs.asdict(record), "hash": previous})
        moved.append({"owner": owner, "sequence": sequence, "hash": previous})
    return [Write(_audit, rows), Write(_heads, moved, key="owner")]


async def list_recorded(connection: AsyncConnection, act: Act, subjects: Sequence[str], since: datetime) -> set[str]:
    """Of ``subjects``, those for which the same act by the same actor is on record since an instant."""
    statement = select(_audit.c.subject).where(
        _audit.c.owner == act.owner,
        _audit.c.actor == act.actor,
        _audit.c.action == act.action,
        _audit.c.subject.in_(subjects),
        _audit.c.at >= since,
    )
    return {row.subject for row in await connection.execute(statement)}


async def list_of_subjects(
    connection: AsyncConnection, owner: str, subjects: Sequence[str], actions: Sequence[str], *, rows_max: int
) -> list[RecordedAct]:
    """The newest acts of an owner about these subjects, of these kinds, in their order."""
    statement = (
        select(_audit.c.at, _audit.c.actor, _audit.c.action, _audit.c.subject)
        .where(_audit.c.owner == owner, is_among(connection, _audit.c.subject, subjects), _audit.c.action.in_(actions))
        .order_by(_audit.c.sequence.desc())
        .limit(rows_max)
    )
    newest = [
        RecordedAct(at=row.at, actor=row.actor, action=row.action, subject=row.subject)
        for row in await connection.execute(statement)
    ]
    return newest[::-1]


async def verify_chain(connection: AsyncConnection, owner: str) -> str | None:
    """None when the owner's chain is whole, else what is wrong with it."""
    previous, expected = GENESIS, 1
    rows = await connection.execute(select(_audit).where(_audit.c.owner == owner).order_by(_audit.c.sequence))
    for row in rows:
        record = AuditRecord(
            owner=row.owner,
            sequence=row.sequence,
            at=row.at,
            actor=row.actor,
            action=row.action,
            subject=row.subject,
            reason=row.reason,
        )
        if row.sequence != expected:
            return f"record {expected} is missing"
        previous = chain_hash(previous, record)
        if previous != bytes(row.hash):
            return f"record {row.sequence} was changed"
        expected += 1
    head = (await connection.execute(select(_heads).where(_heads.c.owner == owner))).one_or_none()
    if (head.sequence if head else 0) != expected - 1 or (bytes(head.hash) if head else GENESIS) != previous:
        return "the end of the chain is missing"
    return None


async def list_chains(connection: AsyncConnection) -> list[str]:
    """The owners that have a chain, or what is left of one: records without a head are no whole chain."""
    has_records = exists().where(_audit.c.owner == _owners.c.id)
    has_head = exists().where(_heads.c.owner == _owners.c.id)
    statement = select(_owners.c.id).where(or_(has_head, has_records)).order_by(_owners.c.id)
    return list((await connection.execute(statement)).scalars())


async def _lock_heads(connection: AsyncConnection, owners: Sequence[str]) -> Heads:
    lock_all, lock = _locking(connection.dialect.name)
    locked = (await connection.execute(lock_all, {"owners": owners, "count": len(owners)})).all()
    if not locked:
        begun = [{"owner": owner, "sequence": 0, "hash": GENESIS} for owner in owners]
        await insert_rows(connection, _heads, begun, ignore_existing=True)
        locked = (await connection.execute(lock, {"owners": owners})).all()
    return {row.owner: (row.sequence, bytes(row.hash)) for row in locked}


@cache
def _locking(dialect: str) -> tuple[Select[Any], Select[Any]]:
    """Lock the heads of ``owners``: all or none of them, or those that are there."""
    among = is_among_given(dialect, _heads.c.owner, "owners")
    # Sorted, so that two transactions with the same owners wait for each other and never in a circle.
    lock = select(_heads).where(among).order_by(_heads.c.owner).with_for_update()
    # All or none: with some of them locked, the others could not be begun in order.
    there = select(func.count()).select_from(_heads).where(among).scalar_subquery()
    return lock.where(there == bindparam("count")), lock
