"""What is not kept: who came and was on no list, once nothing can follow from it any more; incidents long past."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import Select, delete, exists, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.storage.rows import is_among
from broker.storage.tables import (
    Alert,
    Delivery,
    EncompassTask,
    Incident,
    IncidentVersion,
    ItemState,
    MissedAlert,
    NoticeRow,
    NoticeSending,
    Reply,
    Review,
    SchoolRecord,
    Visit,
    VisitBlock,
    VisitMessage,
    table,
)
from schemas.alert import ReplyOutcome
from schemas.delivery import DeliveryState

_visits, _messages, _blocks = table(Visit), table(VisitMessage), table(VisitBlock)
_alerts, _reviews, _missed = table(Alert), table(Review), table(MissedAlert)
_replies, _deliveries = table(Reply), table(Delivery)
_incidents, _versions, _tasks = table(Incident), table(IncidentVersion), table(EncompassTask)
_notices, _sendings, _records = table(NoticeRow), table(NoticeSending), table(SchoolRecord)
DROPPED: Final = b""
"""Stands in a sealed column whose content is kept no longer."""
_INDEXES: Final = ("patient_index", "nhs_index", "birth_index", "mother_index")
_UNSETTLED: Final = (DeliveryState.WAITING.value, DeliveryState.CLAIMED.value)


async def reduce_visits(connection: AsyncConnection, *, heard_before: datetime, rows_max: int) -> list[str]:
    """Reduce visits to their keys that were heard of last before an instant and concern nobody on a list.

    What the messages said and what the person is found by goes. Markers and positions stay: the same bytes are still
    known, and every position still has its outcome. A visit with a match, an alert, a review or a missed alert stays.
    A later message of a reduced visit begins it anew. Returns the visits' ids.
    """
    found = await find_reducible(connection, heard_before=heard_before, rows_max=rows_max)
    return await reduce_found(connection, found, heard_before=heard_before)


async def reduce_found(connection: AsyncConnection, found: Sequence[str], *, heard_before: datetime) -> list[str]:
    """Reduce those of these visits that may be reduced once nobody else can change them; returns their ids.

    An alert may have been raised since they were found. PostgreSQL does not look at other tables again when it locks
    a row, so they are looked for a second time, by a statement that begins after the lock.
    """
    lock = select(_visits.c.id).where(is_among(connection, _visits.c.id, found)).with_for_update(skip_locked=True)
    locked = [row.id for row in await connection.execute(lock.order_by(_visits.c.id))]
    still = await connection.execute(
        _select_reducible(heard_before).where(is_among(connection, _visits.c.id, locked)).order_by(_visits.c.id)
    )
    visit_ids = [row.id for row in still]
    if visit_ids:
        await _reduce(connection, visit_ids)
    return visit_ids


async def find_reducible(connection: AsyncConnection, *, heard_before: datetime, rows_max: int) -> list[str]:
    """The next visits that may be reduced, the oldest first. None of them is locked."""
    found = _select_reducible(heard_before).order_by(_visits.c.heard_at, _visits.c.id).limit(rows_max)
    return [row.id for row in await connection.execute(found)]


def _select_reducible(heard_before: datetime) -> Select[tuple[str]]:
    told_something = (
        exists().where(_alerts.c.visit_id == _visits.c.id),
        exists().where(_reviews.c.visit_id == _visits.c.id),
        exists().where(_missed.c.visit_id == _visits.c.id),
    )
    return select(_visits.c.id).where(
        _visits.c.heard_at < heard_before,
        or_(_visits.c.reply_outcome.is_(None), _visits.c.reply_outcome != ReplyOutcome.MATCH.value),
        or_(
            exists().where(_messages.c.visit_id == _visits.c.id),
            *(_visits.c[name].is_not(None) for name in _INDEXES),
        ),
        *(~each for each in told_something),
    )


async def _reduce(connection: AsyncConnection, visit_ids: Sequence[str]) -> None:
    await connection.execute(delete(_messages).where(is_among(connection, _messages.c.visit_id, visit_ids)))
    await connection.execute(delete(_blocks).where(is_among(connection, _blocks.c.visit_id, visit_ids)))
    await connection.execute(
        update(_visits).where(is_among(connection, _visits.c.id, visit_ids)).values(dict.fromkeys(_INDEXES))
    )


async def drop_replies(connection: AsyncConnection, *, replied_before: datetime, rows_max: int) -> int:
    """Drop what replies without a match said that were given before an instant and are not on their way any more.

    That they were given, when and with which outcome stays. Returns how many were dropped.
    """
    on_their_way = exists().where(_deliveries.c.reply_id == _replies.c.id, _deliveries.c.state.in_(_UNSETTLED))
    found = (
        select(_replies.c.id)
        .where(
            _replies.c.replied_at < replied_before,
            _replies.c.outcome != ReplyOutcome.MATCH.value,
            _replies.c.sealed != DROPPED,
            ~on_their_way,
        )
        .order_by(_replies.c.id)
        .limit(rows_max)
    )
    reply_ids = [row.id for row in await connection.execute(found)]
    if reply_ids:
        await connection.execute(
            update(_deliveries).where(is_among(connection, _deliveries.c.reply_id, reply_ids)).values(sealed=DROPPED)
        )
        await connection.execute(
            update(_replies).where(is_among(connection, _replies.c.id, reply_ids)).values(sealed=DROPPED)
        )
    return len(reply_ids)


async def drop_incidents(
    connection: AsyncConnection, *, heard_before: datetime, rows_max: int
) -> list[tuple[str, str]]:
    """Delete police incidents heard of last before an instant, with their notices, tasks and what schools wrote.

    One of which something is still due or a person still has to do something stays. Markers, positions and the audit
    stay: the same bytes are still known, and every position still has its outcome. Returns owners and ids.
    """
    is_waiting = (
        exists().where(_tasks.c.incident_id == _incidents.c.id, _tasks.c.state == ItemState.OPEN.value),
        exists().where(_notices.c.incident_id == _incidents.c.id, _notices.c.next_at.is_not(None)),
    )
    found = (
        select(_incidents.c.owner, _incidents.c.id)
        .where(_incidents.c.received_at < heard_before, *(~each for each in is_waiting))
        .order_by(_incidents.c.received_at, _incidents.c.id)
        .limit(rows_max)
        .with_for_update(skip_locked=True)
    )
    dropped = [(row.owner, row.id) for row in await connection.execute(found)]
    ids = [incident_id for _, incident_id in dropped]
    if not ids:
        return []
    of_incidents = select(_notices.c.id).where(is_among(connection, _notices.c.incident_id, ids))
    for child in (_records, _sendings):
        await connection.execute(delete(child).where(child.c.notice_id.in_(of_incidents)))
    for child in (_notices, _tasks, _versions):
        await connection.execute(delete(child).where(is_among(connection, child.c.incident_id, ids)))
    await connection.execute(delete(_incidents).where(is_among(connection, _incidents.c.id, ids)))
    return dropped
