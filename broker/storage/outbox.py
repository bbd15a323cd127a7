"""Lanes and deliveries: nothing leaves but through here. Lanes are leased, not rows; settling checks the epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Executable, Row, and_, bindparam, case, func, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.retry import NextStep
from broker.keyring import Keyring
from broker.storage.database import upsert_on
from broker.storage.retention import DROPPED
from broker.storage.rows import Write, is_among, write_together
from broker.storage.tables import Delivery, Lane, Reply, table
from schemas.delivery import ChannelName, DeliveryState

_lanes, _deliveries, _replies = table(Lane), table(Delivery), table(Reply)
NOTIFY_CHANNEL = "cpis_outbox"
_WAITING = (DeliveryState.WAITING.value, DeliveryState.CLAIMED.value)
NOT_WANTED = "not_wanted"
"""Why a delivery was given up that its recipient must not get any more."""
_IN_VAIN = and_(
    _deliveries.c.state.in_((DeliveryState.FAILED.value, DeliveryState.GIVEN_UP.value)),
    or_(_deliveries.c.last_code.is_(None), _deliveries.c.last_code != NOT_WANTED),
)


class NewDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """Something to send: ``content`` is complete and in the recipient's own schema."""

    id: str
    channel: ChannelName
    owner: str
    event_type: str
    content_type: str
    content: bytes
    contact: str | None = None
    """Whom at the owner, where the channel reaches people."""
    alert_id: str | None = None
    reply_id: str | None = None

    @property
    def lane(self) -> str:
        """One recipient on one channel. A contact's own id, which may be a name, is not in it: lanes are logged."""
        lane = f"{self.channel.value}:{self.owner}"
        if self.contact is None:
            return lane
        return f"{lane}:{hashlib.sha256(self.contact.encode()).hexdigest()[:8]}"


class LeasedLane(msgspec.Struct, frozen=True, kw_only=True):
    """A lane this dispatcher holds until ``leased_until``."""

    id: str
    channel: ChannelName
    owner: str
    contact: str | None
    epoch: int
    leased_until: datetime


class DueDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery that is due, opened."""

    id: str
    event_type: str
    content_type: str
    content: bytes
    attempts: int
    created_at: datetime


class _Content(msgspec.Struct, frozen=True, array_like=True):
    content_type: str
    content: bytes


class Unreached(msgspec.Struct, frozen=True, kw_only=True):
    """Deliveries of one lane that ended or wait for the same reason. Counts, words and instants only."""

    lane: str
    state: DeliveryState
    code: str
    """What the last attempt ended with: a closed word, never what the recipient said."""
    deliveries: int
    oldest_at: datetime


class LeaseLost(Exception):
    """Another dispatcher holds the lane now: what was settled here does not count."""


# What the dispatcher asks for each delivery is built once: building takes longer than executing.
_LEASABLE = select(_lanes.c.id).where(
    _lanes.c.next_due_at <= bindparam("now"),
    or_(_lanes.c.leased_until.is_(None), _lanes.c.leased_until <= bindparam("now")),
)
_ANY_LEASABLE = _LEASABLE.limit(1)
_LONGEST_DUE = _LEASABLE.order_by(_lanes.c.next_due_at, _lanes.c.id).limit(bindparam("most"))
_LEASE = (
    update(_lanes)
    .where(_lanes.c.id.in_(_LONGEST_DUE.with_for_update(skip_locked=True).scalar_subquery()))
    .values(leased_by=bindparam("by"), leased_until=bindparam("until"), epoch=_lanes.c.epoch + 1)
    .returning(_lanes)
)
_HELD = (
    select(_lanes.c.id)
    .where(_lanes.c.id == bindparam("of_id"), _lanes.c.epoch == bindparam("of_epoch"))
    .with_for_update()
)
_OF_LANE = (_deliveries.c.lane == bindparam("of_lane"), _deliveries.c.state.in_(_WAITING))
_EARLIEST = select(func.min(_deliveries.c.next_attempt_at)).where(*_OF_LANE)
_RELEASE = update(_lanes).where(_lanes.c.id == bindparam("of_lane")).values(next_due_at=_EARLIEST.scalar_subquery())
# The one tried longest ago first: what a recipient refuses again and again must not hold up the others.
_IN_TURN = (_deliveries.c.next_attempt_at, _deliveries.c.created_at, _deliveries.c.id)
_DUE = (
    select(_deliveries.c.id)
    .where(*_OF_LANE, _deliveries.c.next_attempt_at <= bindparam("now"))
    .order_by(*_IN_TURN)
    .limit(bindparam("most"))
)
_CLAIM = update(_deliveries).where(_deliveries.c.id.in_(_DUE.scalar_subquery())).returning(_deliveries)
_NOTIFY = text(f"NOTIFY {NOTIFY_CHANNEL}")
_SETTLE = update(_deliveries).where(_deliveries.c.id == bindparam("of_id"))


async def add_deliveries(
    connection: AsyncConnection, keyring: Keyring, deliveries: Sequence[NewDelivery], now: datetime
) -> None:
    """Put deliveries in their lanes and wake the dispatcher when the transaction commits."""
    await make_due(connection, deliveries, now)
    await write_together(connection, [write_deliveries(keyring, deliveries, now)])


async def make_due(connection: AsyncConnection, deliveries: Sequence[NewDelivery], now: datetime) -> None:
    """Have the lanes of deliveries, which are written next, due and wake the dispatcher when all that is committed."""
    if not deliveries:
        return
    lanes = {delivery.lane: delivery for delivery in deliveries}
    await connection.execute(
        _put_lanes(connection.dialect.name),
        [
            {
                "id": lane,
                "channel": first.channel.value,
                "owner": first.owner,
                "contact": first.contact,
                "next_due_at": now,
                "epoch": 0,
            }
            for lane, first in sorted(lanes.items())
        ],
    )
    if connection.dialect.name == "postgresql":
        await connection.execute(_NOTIFY)


def write_deliveries(keyring: Keyring, deliveries: Sequence[NewDelivery], now: datetime) -> Write:
    """The rows of deliveries whose lanes are there."""
    return Write(_deliveries, [_row(keyring, delivery, now) for delivery in deliveries], ignore_existing=True)


async def is_due(connection: AsyncConnection, now: datetime) -> bool:
    """Whether there is a lane to lease."""
    return (await connection.execute(_ANY_LEASABLE, {"now": now})).first() is not None


async def lease_lanes(
    connection: AsyncConnection, *, by: str, lanes_max: int, lease: timedelta, now: datetime
) -> list[LeasedLane]:
    """Lease lanes that have something due and that nobody holds, longest due first."""
    given = {"now": now, "most": lanes_max, "by": by, "until": now + lease}
    return [
        LeasedLane(
            id=row.id,
            channel=ChannelName(row.channel),
            owner=row.owner,
            contact=row.contact,
            epoch=row.epoch,
            leased_until=row.leased_until,
        )
        for row in await connection.execute(_LEASE, given)
    ]


async def claim_due(
    connection: AsyncConnection, lane: LeasedLane, *, deliveries_max: int, now: datetime
) -> Sequence[Row[Any]]:
    """Claim the lane's due deliveries, sealed: never tried ones in their order, then those tried longest ago.

    The lane must have been leased or settled in the same transaction, so that nothing is added to it meanwhile.
    """
    given = {"of_lane": lane.id, "now": now, "most": deliveries_max, "state": DeliveryState.CLAIMED.value}
    claimed = await connection.execute(_CLAIM, given)
    return sorted(claimed, key=lambda row: (row.next_attempt_at, row.created_at, row.id))


def open_claimed(keyring: Keyring, claimed: Sequence[Row[Any]]) -> list[DueDelivery]:
    """What was claimed, ready to be sent."""
    return [_open(keyring, row) for row in claimed]


async def settle_delivery(
    connection: AsyncConnection, lane: LeasedLane, delivery: DueDelivery, step: NextStep, *, code: str, now: datetime
) -> None:
    """Write what became of one attempt. Raises LeaseLost when the lane was leased anew meanwhile."""
    if not await _holds(connection, lane):
        raise LeaseLost
    await connection.execute(
        _SETTLE,
        {
            "of_id": delivery.id,
            "state": step.state.value,
            "attempts": delivery.attempts + 1,
            "last_code": code,
            "next_attempt_at": step.retry_at,
            "settled_at": None if step.state is DeliveryState.WAITING else now,
        },
    )


async def release_lane(connection: AsyncConnection, lane: LeasedLane, *, not_before: datetime | None) -> None:
    """Let the lane go; it is due again with its earliest waiting delivery.

    With ``not_before`` nobody may lease it until then, whatever is added meanwhile: its recipient is away.
    """
    # Locked first: a delivery added meanwhile is then either seen by the next statement or sets the due time itself.
    if await _holds(connection, lane):
        await connection.execute(_RELEASE, {"of_lane": lane.id, "leased_by": None, "leased_until": not_before})


async def list_unsent(connection: AsyncConnection, keyring: Keyring, alert_ids: Sequence[str]) -> list[DueDelivery]:
    """What was not sent of these alerts: what waits, is being tried, or was refused and may be sent again."""
    statement = select(_deliveries).where(
        is_among(connection, _deliveries.c.alert_id, alert_ids), _deliveries.c.state != DeliveryState.SENT.value
    )
    return [_open(keyring, row) for row in await connection.execute(statement)]


async def forget_deliveries(connection: AsyncConnection, delivery_ids: Sequence[str], now: datetime) -> None:
    """Give up those of these deliveries that wait: they are no longer to reach their recipient."""
    await connection.execute(
        update(_deliveries)
        .where(_deliveries.c.id.in_(delivery_ids), _deliveries.c.state.in_(_WAITING))
        .values(state=DeliveryState.GIVEN_UP.value, last_code=NOT_WANTED, next_attempt_at=None, settled_at=now)
    )


async def replace_content(connection: AsyncConnection, keyring: Keyring, delivery: DueDelivery) -> None:
    """Send this in place of what was to be sent."""
    sealed = _seal(keyring, delivery.id, _Content(delivery.content_type, delivery.content))
    await connection.execute(update(_deliveries).where(_deliveries.c.id == delivery.id).values(sealed=sealed))


async def count_states(connection: AsyncConnection) -> dict[str, int]:
    """Deliveries by state."""
    rows = await connection.execute(select(_deliveries.c.state, func.count()).group_by(_deliveries.c.state))
    return dict(rows.all())


async def list_unreached(connection: AsyncConnection, *, rows_max: int) -> list[Unreached]:
    """What was refused, given up, or tried in vain so far, oldest first."""
    columns = (_deliveries.c.lane, _deliveries.c.state, _deliveries.c.last_code)
    oldest_at = func.min(_deliveries.c.created_at)
    statement = (
        select(*columns, func.count().label("deliveries"), oldest_at.label("oldest_at"))
        .where(
            or_(
                _IN_VAIN,
                and_(_deliveries.c.state.in_(_WAITING), _deliveries.c.attempts > 0),
            )
        )
        .group_by(*columns)
        .order_by(oldest_at, *columns)
        .limit(rows_max)
    )
    return [
        Unreached(
            lane=row.lane,
            state=DeliveryState(row.state),
            code=row.last_code or "",
            deliveries=row.deliveries,
            oldest_at=row.oldest_at,
        )
        for row in await connection.execute(statement)
    ]


async def resend_deliveries(connection: AsyncConnection, lane: str, now: datetime) -> tuple[int, int]:
    """Let a lane's refused and given up deliveries be tried anew, under the ids they had.

    Returns how many wait again, and how many stay where they are because something newer about the same alert or
    visit was sent, or is being sent: an old word after a newer one would mislead. What waits that is newer comes after.
    What retention has emptied stays too: it could not be opened, and would hold up its whole lane.
    """
    in_vain = (_deliveries.c.lane == lane, _IN_VAIN)
    ended = (await connection.execute(select(func.count()).where(*in_vain))).scalar_one()
    again = await connection.execute(
        update(_deliveries)
        .where(*in_vain, _deliveries.c.sealed != DROPPED, ~_is_overtaken(now))
        .values(state=DeliveryState.WAITING.value, next_attempt_at=now, settled_at=None)
    )
    if again.rowcount:
        # Those that became due before stand at one instant with what waits again: then the older goes first.
        was_due = (_deliveries.c.lane == lane, _deliveries.c.state.in_(_WAITING))
        await connection.execute(
            update(_deliveries).where(*was_due, _deliveries.c.next_attempt_at < now).values(next_attempt_at=now)
        )
        due_at = _earlier(_lanes.c.next_due_at, now)
        await connection.execute(update(_lanes).where(_lanes.c.id == lane).values(next_due_at=due_at))
        if connection.dialect.name == "postgresql":
            await connection.execute(_NOTIFY)
    return again.rowcount, ended - again.rowcount


def _is_overtaken(now: datetime) -> ColumnElement[bool]:
    """Something newer about the same alert, or about the same visit, has reached the same recipient, or is about to."""
    newer, newer_reply, reply = _deliveries.alias(), _replies.alias(), _replies.alias()
    same_visit = (
        select(newer_reply.c.id)
        .join(reply, reply.c.visit_id == newer_reply.c.visit_id)
        .where(reply.c.id == _deliveries.c.reply_id, newer_reply.c.id == newer.c.reply_id)
    )
    in_hand = select(_lanes.c.id).where(
        _lanes.c.id == newer.c.lane, _lanes.c.leased_by.is_not(None), _lanes.c.leased_until > now
    )
    is_being_sent = and_(newer.c.state == DeliveryState.CLAIMED.value, in_hand.correlate(newer).exists())
    return (
        select(newer.c.id)
        .where(
            newer.c.lane == _deliveries.c.lane,
            or_(newer.c.state == DeliveryState.SENT.value, is_being_sent),
            newer.c.created_at > _deliveries.c.created_at,
            or_(newer.c.alert_id == _deliveries.c.alert_id, same_visit.correlate(_deliveries, newer).exists()),
        )
        .correlate(_deliveries)
        .exists()
    )


async def _holds(connection: AsyncConnection, lane: LeasedLane) -> bool:
    """Whether the lane is still leased as it was; locked until the transaction ends."""
    return (await connection.execute(_HELD, {"of_id": lane.id, "of_epoch": lane.epoch})).one_or_none() is not None


@cache
def _put_lanes(dialect: str) -> Executable:
    statement = upsert_on(dialect, _lanes)
    earlier = _earlier(_lanes.c.next_due_at, statement.excluded.next_due_at)
    return statement.on_conflict_do_update(index_elements=["id"], set_={"next_due_at": earlier})


def _earlier(stored: Any, new: Any) -> Any:
    return case((stored.is_(None), new), (stored < new, stored), else_=new)


def _row(keyring: Keyring, delivery: NewDelivery, now: datetime) -> dict[str, object]:
    return {
        "id": delivery.id,
        "owner": delivery.owner,
        "lane": delivery.lane,
        "event_type": delivery.event_type,
        "alert_id": delivery.alert_id,
        "reply_id": delivery.reply_id,
        "sealed": _seal(keyring, delivery.id, _Content(delivery.content_type, delivery.content)),
        "state": DeliveryState.WAITING.value,
        "attempts": 0,
        "created_at": now,
        "next_attempt_at": now,
    }


def _seal(keyring: Keyring, delivery_id: str, content: _Content) -> bytes:
    return keyring.seal(msgspec.msgpack.encode(content), about=f"delivery/{delivery_id}")


def _open(keyring: Keyring, row: Any) -> DueDelivery:
    plain = keyring.open(bytes(row.sealed), about=f"delivery/{row.id}")
    opened = msgspec.msgpack.decode(plain, type=_Content)
    return DueDelivery(
        id=row.id,
        event_type=row.event_type,
        content_type=opened.content_type,
        content=opened.content,
        attempts=row.attempts,
        created_at=row.created_at,
    )
