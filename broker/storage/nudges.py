"""Of what is open, what its holder was told of: once for each step that it moves up."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Table, delete, func, literal, or_, select, true, union_all, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.alerts import DUTY_DESK
from broker.storage import outbox
from broker.storage.alerts import LOOK_UP_ROLE
from broker.storage.coverage import LIST_OFFICERS
from broker.storage.database import upsert
from broker.storage.incidents import HUB_KINDS
from broker.storage.rows import insert_rows, is_among
from broker.storage.tables import (
    Alert,
    CoverageItem,
    Delivery,
    EncompassTask,
    HeldUpload,
    Lane,
    ListDifference,
    Nudge,
    Review,
    table,
)
from schemas.delivery import ChannelName, DeliveryState
from schemas.encompass import TaskKind

_nudges, _alerts, _reviews, _tasks = table(Nudge), table(Alert), table(Review), table(EncompassTask)
_deliveries = table(Delivery)
_NOT_FOR_THE_NIGHT: Final = frozenset(TaskKind) - HUB_KINDS - {TaskKind.RING_SCHOOL, TaskKind.NO_ROUTE}
TASKS: Final = _tasks.name
LISTS: Final = "lists"
"""The kind of what list officers are told: that something of their list waits."""


class Unread(msgspec.Struct, frozen=True, kw_only=True):
    """Something open, whose holder was not told of it since it moved up."""

    kind: str
    item: str
    owner: str
    held_by: str
    level: int
    is_urgent: bool
    """Not to be left until the office opens."""
    is_of_hub: bool
    """A task of an authority's hub rather than of its officer."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody was told of something by a delivery, or by none when nobody could be."""

    unread: Unread
    delivery: str = ""


async def list_unread(connection: AsyncConnection, *, rows_max: int) -> list[Unread]:
    """What was not told yet, of each kind what is urgent and then what is due first.

    Doubts and tasks move up by the quarter of an hour, too: of these the first step is told, and no further one.
    """
    is_urgent_task = or_(_tasks.c.kind.not_in([kind.value for kind in _NOT_FOR_THE_NIGHT]), _tasks.c.level > 0)
    is_of_hub = _tasks.c.kind.in_([kind.value for kind in HUB_KINDS])
    is_unopened = or_(_alerts.c.opened_at.is_(None), _alerts.c.level > 0)
    found = []
    for statement in (
        _select_unread(_alerts, _alerts.c.role != LOOK_UP_ROLE, rows_max).where(is_unopened),
        _select_unread(_reviews, _reviews.c.state == "open", rows_max).where(_reviews.c.level <= 1),
        _select_unread(_tasks, is_urgent_task, rows_max, is_of_hub).where(_tasks.c.level <= 1),
    ):
        found += [
            Unread(
                kind=row.kind,
                item=row.id,
                owner=row.owner,
                held_by=row.held_by,
                level=row.level,
                is_urgent=bool(row.is_urgent),
                is_of_hub=bool(row.is_of_hub),
            )
            for row in await connection.execute(statement)
        ]
    return found


def _select_unread(
    source: Table, is_urgent: ColumnElement[bool], rows_max: int, is_of_hub: ColumnElement[bool] | None = None
) -> Any:
    is_told = select(_nudges.c.item).where(_nudges.c.item == source.c.id, _nudges.c.level >= source.c.level).exists()
    return (
        select(
            literal(source.name).label("kind"),
            source.c.id,
            source.c.owner,
            source.c.held_by,
            source.c.level,
            is_urgent.label("is_urgent"),
            (literal(0) if is_of_hub is None else is_of_hub).label("is_of_hub"),
        )
        .where(source.c.state == "open", ~is_told)
        .order_by(is_urgent.desc(), source.c.due_by, source.c.id)
        .limit(rows_max)
    )


async def find_list_work(connection: AsyncConnection) -> dict[str, tuple[datetime, datetime | None]]:
    """By owner: when the newest open thing of its list began to wait, and when its list officers were told last."""
    differences, items, uploads = table(ListDifference), table(CoverageItem), table(HeldUpload)
    waiting = union_all(
        *(
            select(each.c.owner, opened_at.label("opened_at")).where(
                each.c.state == "open", each.c.held_by == LIST_OFFICERS
            )
            for each, opened_at in (
                (differences, differences.c.opened_at),
                (items, items.c.opened_at),
                (uploads, uploads.c.uploaded_at),
            )
        )
    ).subquery()
    told = select(_nudges.c.owner, _nudges.c.nudged_at).where(_nudges.c.kind == LISTS).subquery()
    statement = (
        select(waiting.c.owner, func.max(waiting.c.opened_at).label("opened_at"), told.c.nudged_at)
        .outerjoin(told, told.c.owner == waiting.c.owner)
        .group_by(waiting.c.owner, told.c.nudged_at)
    )
    return {row.owner: (row.opened_at, row.nudged_at) for row in await connection.execute(statement)}


async def find_waiting(
    connection: AsyncConnection, owners: Collection[str], event_type: str, since: datetime
) -> dict[tuple[str, ChannelName], str]:
    """By login of these owners and channel: a message written since an instant that nobody has tried to send yet."""
    lanes, deliveries = table(Lane), table(Delivery)
    statement = (
        select(lanes.c.contact, lanes.c.channel, func.min(deliveries.c.id).label("id"))
        .join_from(lanes, deliveries, deliveries.c.lane == lanes.c.id)
        .where(
            is_among(connection, lanes.c.owner, sorted(owners)),
            lanes.c.contact.is_not(None),
            deliveries.c.state == DeliveryState.WAITING.value,
            deliveries.c.attempts == 0,
            deliveries.c.event_type == event_type,
            deliveries.c.created_at > since,
        )
        .group_by(lanes.c.contact, lanes.c.channel)
    )
    return {(row.contact, ChannelName(row.channel)): row.id for row in await connection.execute(statement)}


async def note_told(connection: AsyncConnection, told: Sequence[Told], now: datetime) -> None:
    """Remember who was told of what. Of the same step once."""
    await insert_rows(connection, _nudges, [_row(each, now) for each in told], ignore_existing=True)


async def note_list_officers_told(connection: AsyncConnection, owner: str, now: datetime) -> None:
    """Remember that the list officers of an authority were told today."""
    values = {"item": f"{LISTS} {owner}", "delivery": "", "kind": LISTS, "owner": owner, "level": 0, "nudged_at": now}
    statement = upsert(connection, _nudges).values(values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["item", "level", "delivery"], set_=values))


async def forget_settled(connection: AsyncConnection, now: datetime) -> int:
    """Nobody is told any more of what is open no longer: a message that still waits is given up.

    Unless it tells of something else as well that is open.
    """
    gone: set[str] = set()
    forgotten = 0
    for source in (_alerts, _reviews, _tasks):
        is_open = select(source.c.id).where(source.c.id == _nudges.c.item, source.c.state == "open").exists()
        statement = delete(_nudges).where(_nudges.c.kind == source.name, ~is_open).returning(_nudges.c.delivery)
        found = [row.delivery for row in await connection.execute(statement)]
        forgotten += len(found)
        gone.update(each for each in found if each)
    if gone:
        still = select(_nudges.c.delivery).where(_nudges.c.delivery.in_(gone))
        gone -= {row.delivery for row in await connection.execute(still)}
        await outbox.forget_deliveries(connection, sorted(gone), now)
    return forgotten


async def hasten_untold(connection: AsyncConnection, delivery: str, now: datetime) -> None:
    """What a delivery was to tell of moves up now, and not at its limit, if nobody can be told of this step any more.

    Only what a worker holds: behind the desk stands nobody else. An alert that was opened has reached its holder.
    """
    told, others = _nudges.alias(), _nudges.alias()
    for source, unseen in ((_alerts, _alerts.c.opened_at.is_(None)), (_reviews, true())):
        of_this = (told.c.delivery == delivery, told.c.item == source.c.id, told.c.level == source.c.level)
        may_reach = (
            select(_deliveries.c.id)
            .join(others, others.c.delivery == _deliveries.c.id)
            .where(others.c.item == source.c.id, others.c.level == source.c.level)
            .where(_deliveries.c.state.not_in((DeliveryState.FAILED.value, DeliveryState.GIVEN_UP.value)))
        )
        await connection.execute(
            update(source)
            .where(source.c.state == "open", source.c.held_by != DUTY_DESK, source.c.due_by > now, unseen)
            .where(select(told.c.item).where(*of_this).exists(), ~may_reach.exists())
            .values(due_by=now)
        )


async def is_any_settled(connection: AsyncConnection) -> bool:
    """Whether there is something to forget."""
    for source in (_alerts, _reviews, _tasks):
        is_open = select(source.c.id).where(source.c.id == _nudges.c.item, source.c.state == "open").exists()
        statement = select(_nudges.c.item).where(_nudges.c.kind == source.name, ~is_open).limit(1)
        if (await connection.execute(statement)).first() is not None:
            return True
    return False


def _row(told: Told, now: datetime) -> dict[str, object]:
    unread = told.unread
    return {
        "item": unread.item,
        "delivery": told.delivery,
        "kind": unread.kind,
        "owner": unread.owner,
        "level": unread.level,
        "nudged_at": now,
    }
