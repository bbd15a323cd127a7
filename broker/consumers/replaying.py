"""Messages that a person asked to be handled again: what lets the consumer handle them although it did before.

A record says of itself that it is a replay. That counts only when the request stands in the database, and the record
is the very message of the position that it names; otherwise it is a message like any other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from broker.envelope import RECORD_SEAL, REPLAY_HEADER, REPLAY_OF_HEADER, read_place
from broker.keyring import Keyring, KeyringError
from broker.storage import handled, quarantine, replays, visits
from broker.storage.audit import Act
from broker.storage.quarantine import KeptMessage, Replayed, derive_item_id
from broker.storage.replays import REPEATED, Origin, Replaying
from broker.storage.tables import ItemState
from schemas.identifiers import BROKER_OWNER
from schemas.record import LogRecord, PositionOutcome

_REQUEST_ID: Final = re.compile(r"[0-9a-f]{1,64}", re.ASCII)


class Handled(Protocol):
    """A message on its way through a consumer."""

    record: LogRecord
    body: bytes
    marker: bytes
    replaying: Replaying | None
    visit_id: str | None
    outcome: PositionOutcome | None
    reason: str

    @property
    def control_id(self) -> str:
        """What stands beside sender and bytes in its marker."""


Message = TypeVar("Message", bound=Handled)


async def mark_messages(
    connection: AsyncConnection,
    keyring: Keyring,
    messages: Sequence[Message],
    now: datetime,
    *,
    recognises: bool = True,
) -> list[Message]:
    """Write the handled-markers; returns what is to be handled, each message once. The others are repeated.

    A replay is known by its request instead: once per request, whatever was handled before. What the record says of
    itself is not looked at unless it ``recognises`` replays: a record that is set aside unread may say anything.
    """
    if recognises:
        await _recognise_replays(connection, keyring, messages)
    keys = [each.marker if each.replaying is None else each.replaying.derive_key(keyring) for each in messages]
    fresh = await handled.mark_handled(connection, [*keys, *(message.marker for message in messages)], now)
    first: list[Message] = []
    seen: set[bytes] = set()
    for message, key in zip(messages, keys, strict=True):
        if key in fresh and key not in seen:
            first.append(message)
        else:
            message.outcome, message.reason = PositionOutcome.IGNORED, REPEATED
        seen |= {key, message.marker}
    return first


async def settle_replays(connection: AsyncConnection, messages: Sequence[Handled], now: datetime) -> list[Act]:
    """Settle the quarantined messages that were handled now; returns what is to be audited."""
    done = [message for message in messages if message.replaying is not None and message.reason != REPEATED]
    if not done:
        return []
    results: list[Replayed] = []
    acts: list[Act] = []
    for message in done:
        assert message.replaying is not None
        item_id, request = message.replaying.item_id, message.replaying.request
        is_handled = message.outcome is not PositionOutcome.QUARANTINED
        if item_id is not None and message.outcome is not None:
            results.append(Replayed(item_id=item_id, asked_by=request.requested_by, is_handled=is_handled))
            action = "quarantine.replayed" if is_handled else "quarantine.replay_failed"
            reason = message.outcome.value if is_handled else message.reason
            acts.append(Act(owner=BROKER_OWNER, actor="broker", action=action, subject=item_id, reason=reason))
        if is_handled and message.visit_id is not None and message.replaying.origin.visit_id is None:
            await replays.note_visit(connection, message.replaying.origin, message.visit_id, message.marker)
    await quarantine.settle_replays(connection, results, now)
    return acts


async def _recognise_replays(connection: AsyncConnection, keyring: Keyring, messages: Sequence[Handled]) -> None:
    named = [(message, *_named_by(message)) for message in messages if REPLAY_HEADER in message.record.headers]
    named = [(message, request_id, place) for message, request_id, place in named if _REQUEST_ID.fullmatch(request_id)]
    if not named:
        return
    topic = named[0][0].record.partition.topic
    requests = await replays.load_requests(connection, {request_id for _, request_id, _ in named})
    origins = await replays.load_origins(connection, topic, {place for *_, place in named if place is not None})
    item_ids = {
        place: derive_item_id(keyring, each.partition, each.log_id, each.offset) for place, each in origins.items()
    }
    kept = await quarantine.load_kept(connection, keyring, sorted(item_ids.values()))
    stands = await visits.find_messages(
        connection, [(each.visit_id, each.marker) for each in origins.values() if each.visit_id is not None]
    )
    for message, request_id, place in named:
        request, origin = requests.get(request_id), origins.get(place) if place is not None else None
        if request is None or origin is None or request.topic != topic:
            continue
        item = kept.get(item_ids[origin.place])
        is_item = item is not None and _is_kept(keyring, message, item)
        if not is_item and not _is_same(keyring, message, origin):
            continue
        is_open = is_item and item is not None and item.item.state is ItemState.OPEN
        item_id = item_ids[origin.place] if is_open else None
        message.replaying = Replaying(request=request, origin=origin, item_id=item_id)
        if origin.visit_id is not None and (origin.visit_id, origin.marker) in stands:
            # Whatever is read of it now: it stays the message that it was, of the visit that it was of.
            message.marker, message.visit_id = origin.marker, origin.visit_id


def _named_by(message: Handled) -> tuple[str, tuple[int, int, str] | None]:
    headers = message.record.headers
    request_id = bytes(headers[REPLAY_HEADER]).decode("ascii", "replace")
    return request_id, read_place(bytes(headers.get(REPLAY_OF_HEADER, b"")))


def _is_same(keyring: Keyring, message: Handled, origin: Origin) -> bool:
    """Whether these are the bytes that were handled there, though their sender may be read otherwise now."""
    if message.marker == origin.marker:
        return True
    return keyring.marker(origin.sender, message.control_id, message.body) == origin.marker


def _is_kept(keyring: Keyring, message: Handled, kept: KeptMessage) -> bool:
    """Whether these are the bytes that were kept, perhaps still sealed under a key that was not there."""
    if kept.body is None or message.body == kept.body:
        return kept.body is not None
    try:
        return keyring.open(kept.body, about=RECORD_SEAL) == message.body
    except KeyringError:
        return False
