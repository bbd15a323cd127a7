"""What is not kept: who came and was on no list, once nothing can follow from it any more."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import delete, exists, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.storage.rows import is_among
from broker.storage.tables import Alert, Delivery, MissedAlert, Reply, Review, Visit, VisitBlock, VisitMessage, table
from schemas.alert import ReplyOutcome
from schemas.delivery import DeliveryState

_visits, _messages, _blocks = table(Visit), table(VisitMessage), table(VisitBlock)
_alerts, _reviews, _missed = table(Alert), table(Review), table(MissedAlert)
_replies, _deliveries = table(Reply), table(Delivery)
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
    told_something = (
        exists().where(_alerts.c.visit_id == _visits.c.id),
        exists().where(_reviews.c.visit_id == _visits.c.id),
        exists().where(_missed.c.visit_id == _visits.c.id),
    )
    found = (
        select(_visits.c.id)
        .where(
            _visits.c.heard_at < heard_before,
            or_(_visits.c.reply_outcome.is_(None), _visits.c.reply_outcome != ReplyOutcome.MATCH.value),
            or_(
                exists().where(_messages.c.visit_id == _visits.c.id),
                *(_visits.c[name].is_not(None) for name in _INDEXES),
            ),
            *(~each for each in told_something),
        )
        .order_by(_visits.c.heard_at, _visits.c.id)
        .limit(rows_max)
        .with_for_update(skip_locked=True)
    )
    visit_ids = [row.id for row in await connection.execute(found)]
    if visit_ids:
        await _reduce(connection, visit_ids)
    return visit_ids


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
