"""Under which ids a person stands in the audit, and what people did with these."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final

import msgspec
from sqlalchemy import ColumnElement, Executable, and_, or_, select, union
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.audit_chain import AuditRecord
from broker.storage.rows import is_among
from broker.storage.tables import (
    Alert,
    AlertEntry,
    AuditRow,
    CoverageItem,
    ListVersion,
    MissedAlert,
    NumberAlias,
    Reply,
    Review,
    Visit,
    table,
)

_audit, _versions, _aliases, _visits = table(AuditRow), table(ListVersion), table(NumberAlias), table(Visit)
_alerts, _grounds, _reviews, _replies = table(Alert), table(AlertEntry), table(Review), table(Reply)
_coverage, _missed = table(CoverageItem), table(MissedAlert)
_BROKER: Final = "broker"
_PAGE_ROWS: Final = 5_000


class SubjectKind(StrEnum):
    """What an id in the audit is of."""

    NUMBER = "NHS number"
    ENTRY = "list entry"
    UPLOAD = "file of a list"
    VISIT = "visit"
    ALERT = "alert"
    REVIEW = "identity to check"
    REPLY = "reply to the department"
    MISSED = "missed alert"
    COVERAGE = "gap in the list"


class Sighting(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody did with something of the person. ``owner`` is for whom they acted, ``actor`` who they are."""

    at: datetime
    owner: str
    actor: str
    action: str
    kind: SubjectKind
    subject: str


class LinkedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A record of the audit, with the hash that it has in its owner's chain."""

    record: AuditRecord
    hash: bytes


async def find_numbers(connection: AsyncConnection, nhs_index: bytes) -> set[bytes]:
    """The index and those of numbers that superseded it or that it superseded, whatever was undone of that later."""
    found, fresh = {nhs_index}, {nhs_index}
    while fresh:
        either = or_(*(is_among(connection, column, fresh) for column in (_aliases.c.old_index, _aliases.c.new_index)))
        rows = await connection.execute(select(_aliases.c.old_index, _aliases.c.new_index).where(either))
        fresh = {bytes(index) for row in rows for index in row} - found
        found |= fresh
    return found


async def find_subjects(connection: AsyncConnection, nhs_indexes: Collection[bytes]) -> dict[str, SubjectKind]:
    """Every id under which the audit may name something of whoever has these numbers, now or once."""
    found = {index.hex(): SubjectKind.NUMBER for index in nhs_indexes}
    listed = select(_versions.c.entry_id, _versions.c.upload_id)
    rows = list(await connection.execute(listed.where(is_among(connection, _versions.c.nhs_index, nhs_indexes))))
    found |= {row.upload_id: SubjectKind.UPLOAD for row in rows}
    entries = {row.entry_id for row in rows}
    found |= dict.fromkeys(entries, SubjectKind.ENTRY)
    rests = select(_grounds.c.alert_id).where(is_among(connection, _grounds.c.entry_id, entries))
    visited = union(
        select(_visits.c.id).where(is_among(connection, _visits.c.nhs_index, nhs_indexes)),
        select(_alerts.c.visit_id).where(_alerts.c.id.in_(rests)),
    )
    visits = set((await connection.execute(visited)).scalars())
    found |= dict.fromkeys(visits, SubjectKind.VISIT)
    of_visits_or_entries: dict[SubjectKind, Executable] = {
        SubjectKind.ALERT: union(rests, select(_alerts.c.id).where(is_among(connection, _alerts.c.visit_id, visits))),
        SubjectKind.REVIEW: select(_reviews.c.id).where(
            or_(is_among(connection, _reviews.c.visit_id, visits), is_among(connection, _reviews.c.entry_id, entries))
        ),
        SubjectKind.REPLY: select(_replies.c.id).where(is_among(connection, _replies.c.visit_id, visits)),
        SubjectKind.MISSED: select(_missed.c.id).where(
            or_(is_among(connection, _missed.c.visit_id, visits), is_among(connection, _missed.c.entry_id, entries))
        ),
        SubjectKind.COVERAGE: select(_coverage.c.id).where(is_among(connection, _coverage.c.entry_id, entries)),
    }
    for kind, statement in of_visits_or_entries.items():
        found |= dict.fromkeys((await connection.execute(statement)).scalars(), kind)
    return found


async def list_sightings(
    connection: AsyncConnection, subjects: Mapping[str, SubjectKind], *, rows_max: int
) -> list[Sighting]:
    """The newest acts of people, not of the broker, about these, in order of time."""
    acts = select(_audit).where(is_among(connection, _audit.c.subject, sorted(subjects)), _audit.c.actor != _BROKER)
    newest = acts.order_by(_audit.c.at.desc(), _audit.c.owner.desc(), _audit.c.sequence.desc()).limit(rows_max)
    found = [
        Sighting(
            at=row.at,
            owner=row.owner,
            actor=row.actor,
            action=row.action,
            kind=subjects[row.subject],
            subject=row.subject,
        )
        for row in await connection.execute(newest)
    ]
    return found[::-1]


async def stream_records(
    connection: AsyncConnection, *, owner: str | None, actor: str | None, since: datetime | None, until: datetime | None
) -> AsyncIterator[LinkedRecord]:
    """Records of one owner or of all, of one actor or of all, from ``since`` to before ``until``, chain by chain."""
    wanted = select(_audit)
    if owner is not None:
        wanted = wanted.where(_audit.c.owner == owner)
    if actor is not None:
        wanted = wanted.where(_audit.c.actor == actor)
    if since is not None:
        wanted = wanted.where(_audit.c.at >= since)
    if until is not None:
        wanted = wanted.where(_audit.c.at < until)
    statement = wanted.order_by(_audit.c.owner, _audit.c.sequence).limit(_PAGE_ROWS)
    last = ("", 0)
    while rows := (await connection.execute(statement.where(_is_behind(*last)))).all():
        for row in rows:
            yield LinkedRecord(
                record=AuditRecord(
                    owner=row.owner,
                    sequence=row.sequence,
                    at=row.at,
                    actor=row.actor,
                    action=row.action,
                    subject=row.subject,
                    reason=row.reason,
                ),
                hash=bytes(row.hash),
            )
        last = (rows[-1].owner, rows[-1].sequence)


def _is_behind(owner: str, sequence: int) -> ColumnElement[bool]:
    return or_(_audit.c.owner > owner, and_(_audit.c.owner == owner, _audit.c.sequence > sequence))
