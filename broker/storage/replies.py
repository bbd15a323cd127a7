"""Replies to departments."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

import msgspec
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.storage.retention import DROPPED
from broker.storage.rows import insert_rows, is_among
from broker.storage.tables import Reply, table
from schemas.alert import ClinicianReply, ReplyOutcome
from schemas.identifiers import organisation_owner

_replies = table(Reply)


class NewReply(msgspec.Struct, frozen=True, kw_only=True):
    """A reply to be given."""

    reply: ClinicianReply
    visit_id: str


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """Who of the department said first that they have seen a match, and when."""

    at: datetime
    by: str


def derive_reply_id(keyring: Keyring, visit_id: str, outcome: ReplyOutcome, corrections: int = 0) -> str:
    """One reply per visit and outcome, and one more each time an answer is taken back; a replay derives the same."""
    return keyring.derive_id("reply", visit_id, outcome, *([str(corrections)] if corrections else []))


async def save_replies(connection: AsyncConnection, keyring: Keyring, replies: Sequence[NewReply]) -> None:
    """Keep replies; one that exists stays as it is."""
    rows = [
        {
            "id": new.reply.reply_id,
            "owner": organisation_owner(new.reply.organisation),
            "visit_id": new.visit_id,
            "outcome": new.reply.outcome.value,
            "sealed": keyring.seal(msgspec.json.encode(new.reply), about=f"reply/{new.reply.reply_id}"),
            "replied_at": new.reply.replied_at,
        }
        for new in replies
    ]
    await insert_rows(connection, _replies, rows, ignore_existing=True)


async def note_seen(connection: AsyncConnection, owner: str, reply_id: str, *, by: str, now: datetime) -> bool | None:
    """A clinician has seen a match: whether they are the first; None when the department has no such match."""
    of_match = (_replies.c.id == reply_id, _replies.c.owner == owner, _replies.c.outcome == ReplyOutcome.MATCH.value)
    if (await connection.execute(select(_replies.c.id).where(*of_match))).one_or_none() is None:
        return None
    first = update(_replies).where(*of_match, _replies.c.seen_at.is_(None)).values(seen_at=now, seen_by=by)
    return (await connection.execute(first)).rowcount == 1


async def load_seen(connection: AsyncConnection, visit_ids: Collection[str]) -> dict[str, Seen]:
    """The replies to these visits that were seen, by their id."""
    statement = select(_replies.c.id, _replies.c.seen_at, _replies.c.seen_by).where(
        is_among(connection, _replies.c.visit_id, sorted(visit_ids)), _replies.c.seen_at.is_not(None)
    )
    return {row.id: Seen(at=row.seen_at, by=row.seen_by) for row in await connection.execute(statement)}


async def list_replies(
    connection: AsyncConnection,
    keyring: Keyring,
    owner: str,
    *,
    since: datetime,
    rows_max: int,
    outcomes: Collection[ReplyOutcome] = frozenset(ReplyOutcome),
) -> list[tuple[str, ClinicianReply]]:
    """A department's replies of these outcomes since an instant, newest first: (visit id, reply)."""
    statement = (
        select(_replies)
        .where(
            _replies.c.owner == owner,
            _replies.c.replied_at >= since,
            _replies.c.sealed != DROPPED,
            _replies.c.outcome.in_([outcome.value for outcome in outcomes]),
        )
        .order_by(_replies.c.replied_at.desc(), _replies.c.id)
        .limit(rows_max)
    )
    return [
        (
            row.visit_id,
            msgspec.json.decode(keyring.open(bytes(row.sealed), about=f"reply/{row.id}"), type=ClinicianReply),
        )
        for row in await connection.execute(statement)
    ]
