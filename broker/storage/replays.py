"""Requests of people to handle messages again, and the positions where messages were handled first.

A record of the log counts as a replay only when its request stands here: nobody else on the log can make the broker
handle a message twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.storage.database import upsert
from broker.storage.handled import GENERATION
from broker.storage.tables import HandledPosition, ItemState, Replay, table
from schemas.identifiers import BROKER_OWNER, organisation_owner
from schemas.record import Partition

_replays, _positions = table(Replay), table(HandledPosition)
REPEATED = "repeated"
"""The reason of a position whose message was handled at another."""
_ORGANISATION = organisation_owner("")


class ReplayRange(msgspec.Struct, frozen=True, kw_only=True):
    """Offsets of one partition from ``next`` up to but excluding ``end``, of one making of the log."""

    partition: int
    log_id: str
    next: int
    end: int


class ReplayRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Who asked for what, and why. ``asked`` says it in one line, the same for the same question."""

    id: str
    topic: str
    asked: str
    ranges: tuple[ReplayRange, ...]
    requested_by: str
    reason: str
    requested_at: datetime
    state: ItemState = ItemState.OPEN
    """Done when every record was appended."""


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """The position at which a message was handled first, and what is known of it since."""

    partition: Partition
    log_id: str
    offset: int
    marker: bytes
    sender: str
    visit_id: str | None

    @property
    def place(self) -> tuple[int, int, str]:
        """What names the position within its topic."""
        return (self.partition.number, self.offset, self.log_id)


class Replaying(msgspec.Struct, frozen=True, kw_only=True):
    """A record that a person asked to be handled again."""

    request: ReplayRequest
    origin: Origin
    item_id: str | None = None
    """The open item that it is kept as."""

    def derive_key(self, keyring: Keyring) -> bytes:
        """What stands in place of the handled-marker: every message once per request, however often appended."""
        number, offset, log_id = self.origin.place
        return keyring.index("replay", self.request.id, str(number), str(offset), log_id)


async def save_request(connection: AsyncConnection, request: ReplayRequest) -> bool:
    """Write a request; False when it stands there already, which then stays as it is."""
    row = {
        "id": request.id,
        "owner": BROKER_OWNER,
        "topic": request.topic,
        "asked": request.asked,
        "ranges": msgspec.json.encode(request.ranges).decode(),
        "requested_by": request.requested_by,
        "reason": request.reason,
        "state": ItemState.OPEN.value,
        "requested_at": request.requested_at,
    }
    statement = upsert(connection, _replays).values(row).on_conflict_do_nothing()
    return (await connection.execute(statement)).rowcount == 1


async def note_appended(connection: AsyncConnection, request_id: str, ranges: Sequence[ReplayRange]) -> None:
    """Note how far the records of a request were appended."""
    encoded = msgspec.json.encode(tuple(ranges)).decode()
    await connection.execute(update(_replays).where(_replays.c.id == request_id).values(ranges=encoded))


async def finish_request(connection: AsyncConnection, request_id: str, now: datetime) -> None:
    """Note that every record of a request was appended."""
    statement = update(_replays).where(_replays.c.id == request_id, _replays.c.state == ItemState.OPEN.value)
    await connection.execute(statement.values(state=ItemState.DONE.value, done_at=now))


async def find_unfinished(connection: AsyncConnection, topic: str, asked: str) -> ReplayRequest | None:
    """The latest request of the same question whose records were not all appended."""
    statement = (
        select(_replays)
        .where(_replays.c.topic == topic, _replays.c.asked == asked, _replays.c.state == ItemState.OPEN.value)
        .order_by(_replays.c.requested_at.desc(), _replays.c.id)
        .limit(1)
    )
    row = (await connection.execute(statement)).one_or_none()
    return None if row is None else _request(row)


async def load_requests(connection: AsyncConnection, ids: Collection[str]) -> dict[str, ReplayRequest]:
    """Requests by id."""
    rows = await connection.execute(select(_replays).where(_replays.c.id.in_(sorted(ids))))
    return {row.id: _request(row) for row in rows}


async def load_origins(
    connection: AsyncConnection, topic: str, places: Collection[tuple[int, int, str]]
) -> dict[tuple[int, int, str], Origin]:
    """Settled positions by (partition, offset, log id)."""
    named = tuple_(_positions.c.partition, _positions.c.position, _positions.c.log_id)
    statement = select(_positions).where(_positions.c.topic == topic, named.in_(sorted(places)))
    return {origin.place: origin for origin in map(_origin, await connection.execute(statement))}


async def find_origins(
    connection: AsyncConnection, partition: Partition, log_id: str, first: int, last: int
) -> dict[int, Origin | None]:
    """Where the messages at offsets ``first`` to ``last`` were handled first; None for what is itself a replay.

    A position that was passed as repeated leads to the one that was not. An offset that is missing was not handled
    yet. A log that was read again after a gap has a position for every time.
    """
    statement = select(_positions).where(
        _positions.c.topic == partition.topic,
        _positions.c.partition == partition.number,
        _positions.c.position.between(first, last),
        or_(_positions.c.log_id == log_id, _positions.c.log_id.startswith(f"{log_id}{GENERATION}", autoescape=True)),
    )
    rows = list(await connection.execute(statement.order_by(_positions.c.log_id)))
    found: dict[int, Origin | None] = {}
    repeated: dict[int, Origin] = {}
    for row in rows:
        if row.replay_id is not None:
            found[row.position] = None
        elif row.reason == REPEATED:
            repeated.setdefault(row.position, _origin(row))
        else:
            found.setdefault(row.position, _origin(row))
    missing = {offset: origin for offset, origin in repeated.items() if offset not in found}
    firsts = await _find_firsts(connection, partition.topic, {origin.marker for origin in missing.values()})
    return found | {offset: firsts.get(origin.marker, origin) for offset, origin in missing.items()}


async def note_visit(connection: AsyncConnection, origin: Origin, visit_id: str, marker: bytes) -> None:
    """Note which visit a message came to belong to that had none where it was handled first."""
    statement = update(_positions).where(
        _positions.c.topic == origin.partition.topic,
        _positions.c.partition == origin.partition.number,
        _positions.c.log_id == origin.log_id,
        _positions.c.position == origin.offset,
    )
    await connection.execute(statement.values(visit_id=visit_id, marker=marker))


async def _find_firsts(connection: AsyncConnection, topic: str, markers: set[bytes]) -> dict[bytes, Origin]:
    if not markers:
        return {}
    statement = select(_positions).where(
        _positions.c.topic == topic,
        _positions.c.marker.in_(sorted(markers)),
        _positions.c.reason != REPEATED,
        _positions.c.replay_id.is_(None),
    )
    origins: Iterable[Origin] = map(_origin, await connection.execute(statement))
    return {origin.marker: origin for origin in origins}


def _request(row: Any) -> ReplayRequest:
    return ReplayRequest(
        id=row.id,
        topic=row.topic,
        asked=row.asked,
        ranges=msgspec.json.decode(row.ranges, type=tuple[ReplayRange, ...]),
        requested_by=row.requested_by,
        reason=row.reason,
        requested_at=row.requested_at,
        state=ItemState(row.state),
    )


def _origin(row: Any) -> Origin:
    return Origin(
        partition=Partition(row.topic, row.partition),
        log_id=row.log_id,
        offset=row.position,
        marker=bytes(row.marker),
        sender=row.owner.removeprefix(_ORGANISATION) if row.owner.startswith(_ORGANISATION) else "",
        visit_id=row.visit_id,
    )
