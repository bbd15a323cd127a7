"""Files that come by MESH: claimed like lanes, and kept here for a person where nobody could read them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring, KeyringError
from broker.storage.database import upsert
from broker.storage.quarantine import OPERATORS
from broker.storage.tables import ItemState, MeshFile, table
from schemas.identifiers import BROKER_OWNER

_files = table(MeshFile)
NOT_ANSWERED = "not_answered"
"""The reason of a file whose sender MESH does not let us answer."""
TOO_LARGE = "too_large"
"""The reason of a file that is larger than the mailbox takes: it stays in the mailbox."""


class ClaimedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A message that this worker holds for a while."""

    id: str
    waits_since: datetime
    attempts: int
    """How often it was claimed before it was handled; this time is the first."""
    is_handled: bool
    """What it brought is safe already; only MESH may not know that yet."""
    stays: bool
    """It is too large, and stays where it is until a person has decided."""


class HandledFile(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a message. With a ``reason`` (a closed word) it waits for a person."""

    id: str
    owner: str
    sender: str
    reason: str = ""
    detail: str = ""
    body: bytes | None = None
    """The bytes where a person has to look at them."""
    answer: bytes | None = None


class DueAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer to be sent."""

    id: str
    sender: str
    answer: bytes
    attempts: int


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """A message as operators see it, without its bytes."""

    id: str
    owner: str
    sender: str
    reason: str
    detail: str
    held_by: str
    level: int
    state: ItemState
    kept_at: datetime
    due_by: datetime
    is_kept: bool
    """Whether its bytes are here."""
    acknowledged_at: datetime | None
    answered_at: datetime | None
    decided_at: datetime | None
    decided_by: str | None
    decision: str | None


async def claim_file(
    connection: AsyncConnection, message_id: str, *, now: datetime, lease: timedelta, limit: timedelta
) -> ClaimedFile | None:
    """Claim a message that waits in the mailbox; None when somebody else has it in hand."""
    first_seen = {
        "id": message_id,
        "owner": BROKER_OWNER,
        "sender": "",
        "reason": "",
        "detail": "",
        "answer_attempts": 0,
        "attempts": 0,
        "held_by": OPERATORS,
        "level": 0,
        "state": ItemState.OPEN.value,
        "kept_at": now,
        "due_by": now + limit,
    }
    await connection.execute(upsert(connection, _files).values(first_seen).on_conflict_do_nothing())
    statement = (
        update(_files)
        .where(_files.c.id == message_id, or_(_files.c.leased_until.is_(None), _files.c.leased_until <= now))
        .values(leased_until=now + lease, attempts=_files.c.attempts + 1)
        .returning(_files.c.attempts, _files.c.handled_at, _files.c.reason, _files.c.kept_at)
    )
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        return None
    return ClaimedFile(
        id=message_id,
        waits_since=row.kept_at,
        attempts=row.attempts,
        is_handled=row.handled_at is not None,
        stays=row.reason == TOO_LARGE,
    )


async def release_file(connection: AsyncConnection, message_id: str) -> None:
    """Give a claimed message back, to be claimed again with the next round."""
    await connection.execute(update(_files).where(_files.c.id == message_id).values(leased_until=None))


async def save_handled(connection: AsyncConnection, keyring: Keyring, handled: HandledFile, now: datetime) -> None:
    """Keep what became of a message, in the transaction after which MESH may forget it."""
    values: dict[str, Any] = {"owner": handled.owner, "sender": handled.sender}
    values |= {"reason": handled.reason, "detail": handled.detail, "handled_at": now}
    if handled.body is not None:
        values["sealed"] = keyring.seal(handled.body, about=f"mesh/{handled.id}")
    if handled.answer is not None:
        values |= {"answer_sealed": keyring.seal(handled.answer, about=f"mesh-answer/{handled.id}")}
        values |= {"answer_due_at": now}
    mine = update(_files).where(_files.c.id == handled.id, _files.c.handled_at.is_(None))
    await connection.execute(mine.values(values))


async def note_acknowledged(connection: AsyncConnection, message_id: str, now: datetime) -> None:
    """MESH knows that the message is safe here."""
    await connection.execute(
        update(_files).where(_files.c.id == message_id).values(acknowledged_at=now, leased_until=None)
    )


async def claim_answers(
    connection: AsyncConnection, keyring: Keyring, *, answers_max: int, lease: timedelta, now: datetime
) -> list[DueAnswer]:
    """Claim answers that are due; they are due again when the lease has run out."""
    due = (
        select(_files.c.id)
        .where(_files.c.answer_due_at <= now)
        .order_by(_files.c.answer_due_at, _files.c.id)
        .limit(answers_max)
        .with_for_update(skip_locked=True)
    )
    statement = (
        update(_files)
        .where(_files.c.id.in_(due.scalar_subquery()))
        .values(answer_due_at=now + lease, answer_attempts=_files.c.answer_attempts + 1)
        .returning(_files.c.id, _files.c.sender, _files.c.answer_sealed, _files.c.answer_attempts)
    )
    return [
        DueAnswer(
            id=row.id,
            sender=row.sender,
            answer=keyring.open(bytes(row.answer_sealed), about=f"mesh-answer/{row.id}"),
            attempts=row.answer_attempts,
        )
        for row in await connection.execute(statement)
    ]


async def note_answered(connection: AsyncConnection, message_id: str, now: datetime) -> None:
    """The sender was answered. What no person has to look at is settled with that."""
    this = _files.c.id == message_id
    answered = {"answered_at": now, "answer_due_at": None, "answer_sealed": None}
    await connection.execute(update(_files).where(this).values(answered))
    await connection.execute(
        update(_files).where(this, _files.c.reason == "").values(state=ItemState.DONE.value, decided_at=now)
    )


async def put_off_answer(connection: AsyncConnection, message_id: str, until: datetime) -> None:
    """The answer did not get through: try again."""
    await connection.execute(update(_files).where(_files.c.id == message_id).values(answer_due_at=until))


async def give_up_answer(connection: AsyncConnection, message_id: str, code: str) -> None:
    """MESH refuses the answer: a person tells the sender."""
    this = _files.c.id == message_id
    await connection.execute(update(_files).where(this).values(answer_due_at=None))
    refused = {"reason": NOT_ANSWERED, "detail": code}
    await connection.execute(update(_files).where(this, _files.c.reason == "").values(refused))


async def list_files(connection: AsyncConnection, *, everything: bool, rows_max: int) -> list[StoredFile]:
    """What waits for a person, or every message that ever came; oldest first."""
    statement = select(_files).order_by(_files.c.kept_at, _files.c.id).limit(rows_max)
    if not everything:
        statement = statement.where(_files.c.state == ItemState.OPEN.value)
    return [_stored(row) for row in await connection.execute(statement)]


async def load_file(
    connection: AsyncConnection, keyring: Keyring, message_id: str
) -> tuple[StoredFile, bytes | None] | None:
    """A message, and its bytes where they are kept and the key is there."""
    row = (await connection.execute(select(_files).where(_files.c.id == message_id))).one_or_none()
    if row is None:
        return None
    try:
        body = keyring.open(bytes(row.sealed), about=f"mesh/{row.id}") if row.sealed is not None else None
    except KeyringError:
        body = None
    return _stored(row), body


async def settle_file(
    connection: AsyncConnection, message_id: str, *, decision: str, by: str, now: datetime
) -> StoredFile | None:
    """A person has dealt with it: its bytes go. None when it is not there, or settled already."""
    statement = (
        update(_files)
        .where(_files.c.id == message_id, _files.c.state == ItemState.OPEN.value, _files.c.reason != "")
        .values(
            state=ItemState.DONE.value,
            decision=decision,
            decided_by=by,
            decided_at=now,
            sealed=None,
            answer_sealed=None,
            answer_due_at=None,
        )
        .returning(_files)
    )
    row = (await connection.execute(statement)).one_or_none()
    return _stored(row) if row is not None else None


async def ask_again(connection: AsyncConnection, message_id: str) -> StoredFile | None:
    """Take a message that stayed in the mailbox once more. None unless it is open and too large."""
    statement = (
        update(_files)
        .where(_files.c.id == message_id, _files.c.state == ItemState.OPEN.value, _files.c.reason == TOO_LARGE)
        .values(reason="", detail="", handled_at=None, attempts=0)
        .returning(_files)
    )
    row = (await connection.execute(statement)).one_or_none()
    return _stored(row) if row is not None else None


def _stored(row: Any) -> StoredFile:
    names: Sequence[str] = [name for name in StoredFile.__struct_fields__ if name not in ("state", "is_kept")]
    plain = {name: getattr(row, name) for name in names}
    return StoredFile(**plain, state=ItemState(row.state), is_kept=row.sealed is not None)
