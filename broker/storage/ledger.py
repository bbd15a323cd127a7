"""Both conservation laws, counted from the database: nothing disappears between the log and a person."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from sqlalchemy import and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.storage import handled
from broker.storage.tables import Alert, AlertState, HandledPosition, NoticeRow, table
from schemas.encompass import NoticeState
from schemas.record import Partition, PartitionExtent

_positions, _alerts, _notices = table(HandledPosition), table(Alert), table(NoticeRow)


class TopicLedger(msgspec.Struct, frozen=True, kw_only=True):
    """First law, for one topic: every position the log offered is waiting or settled, exactly once."""

    topic: str
    offered: int
    waiting: int
    skipped: int
    """Offsets that hold no record."""
    outcomes: Mapping[str, int]
    reasons: Mapping[str, int]
    """Ignored positions by reason."""

    @property
    def balances(self) -> bool:
        """Whether the law holds."""
        return self.offered == self.waiting + self.skipped + sum(self.outcomes.values())


class AlertLedger(msgspec.Struct, frozen=True, kw_only=True):
    """Second law: every alert is acknowledged, open with an owner, or closed by a named rule."""

    raised: int
    acknowledged: int
    open_with_owner: int
    closed_by_rule: int

    @property
    def balances(self) -> bool:
        """Whether the law holds."""
        return self.raised == self.acknowledged + self.open_with_owner + self.closed_by_rule


class NoticeLedger(msgspec.Struct, frozen=True, kw_only=True):
    """Second law of police incidents: every notice has one state, and one that waits is due at an instant, held for a
    person with a task, or has a person asked because there is no way to the school."""

    planned: int
    held: int
    waiting: int
    sent: int
    acknowledged: int
    withdrawn: int
    unattended: int
    """Sent or waiting, with nothing due and nobody asked: there must be none."""

    @property
    def balances(self) -> bool:
        """Whether the law holds."""
        counted = self.held + self.waiting + self.sent + self.acknowledged + self.withdrawn
        return self.planned == counted and self.unattended == 0


async def count_notices(connection: AsyncConnection) -> NoticeLedger:
    """Count all notices by what became of them."""
    rows = await connection.execute(select(_notices.c.state, func.count()).group_by(_notices.c.state))
    counted: dict[str, int] = dict(rows.all())
    is_open = _notices.c.state.in_((NoticeState.WAITING.value, NoticeState.SENT.value))
    is_unattended = and_(is_open, _notices.c.next_at.is_(None), _notices.c.rung_at.is_(None))
    unattended = await connection.execute(select(func.count()).select_from(_notices).where(is_unattended))
    return NoticeLedger(
        planned=sum(counted.values()),
        held=counted.get(NoticeState.HELD, 0),
        waiting=counted.get(NoticeState.WAITING, 0),
        sent=counted.get(NoticeState.SENT, 0),
        acknowledged=counted.get(NoticeState.ACKNOWLEDGED, 0),
        withdrawn=counted.get(NoticeState.WITHDRAWN, 0),
        unattended=unattended.scalar_one(),
    )


async def count_topic(
    connection: AsyncConnection, group: str, topic: str, extents: Mapping[Partition, PartitionExtent]
) -> TopicLedger:
    """Count one topic: what its log holds now and held before against what was settled."""
    places = await handled.load_places(connection, group, extents)
    waiting = skipped = offered = 0
    read_now: set[tuple[int, str]] = set()
    for partition, extent in extents.items():
        place = places.get(partition)
        if place is not None and not place.is_on(extent.log_id):
            place = None  # the topic was made again, and nobody has begun to read it yet
        read_now.add((partition.number, extent.log_id if place is None else place.log_id))
        first, reached = (extent.first, extent.first) if place is None else (place.first_offset, place.next_offset)
        waiting += max(0, extent.end - reached)
        offered += max(0, extent.end - first)
        skipped += 0 if place is None else place.skipped
    outcomes: dict[str, int] = {}
    reasons: dict[str, int] = {}
    for (outcome, reason), count in sorted((await handled.count_outcomes(connection, topic)).items()):
        outcomes[outcome] = outcomes.get(outcome, 0) + count
        if outcome == "ignored":
            reasons[reason] = reasons.get(reason, 0) + count
    offered += await _settled_before(connection, topic, read_now)
    return TopicLedger(
        topic=topic, offered=offered, waiting=waiting, skipped=skipped, outcomes=outcomes, reasons=reasons
    )


async def count_alerts(connection: AsyncConnection) -> AlertLedger:
    """Count all alerts by what became of them."""
    rows = await connection.execute(
        select(
            _alerts.c.state,
            (_alerts.c.held_by != "").label("held"),
            _alerts.c.closed_rule.is_not(None).label("ruled"),
            func.count(),
        ).group_by("state", "held", "ruled")
    )
    counted = {(state, bool(held), bool(ruled)): count for state, held, ruled, count in rows}
    return AlertLedger(
        raised=sum(counted.values()),
        acknowledged=sum(n for (state, _, _), n in counted.items() if state == AlertState.ACKNOWLEDGED),
        open_with_owner=sum(n for (state, held, _), n in counted.items() if state == AlertState.OPEN and held),
        closed_by_rule=sum(n for (state, _, ruled), n in counted.items() if state == AlertState.CLOSED and ruled),
    )


async def _settled_before(connection: AsyncConnection, topic: str, read_now: set[tuple[int, str]]) -> int:
    """Positions settled in logs that are gone, or that are read again after a gap: they were offered once."""
    settled = await connection.execute(
        select(_positions.c.partition, _positions.c.log_id, func.count())
        .where(_positions.c.topic == topic)
        .group_by(_positions.c.partition, _positions.c.log_id)
    )
    return sum(count for partition, log_id, count in settled if (partition, log_id) not in read_now)
