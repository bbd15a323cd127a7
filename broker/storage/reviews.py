"""Reviews: doubts about identity that a person decides, with an owner and a time limit."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.storage.database import upsert
from broker.storage.tables import ENTRY_TAKEN_BACK, ItemState, Review, table
from schemas.alert import AttendanceFacts, IdentityFact, ListedChild
from schemas.identifiers import authority_owner

_reviews = table(Review)


class ReviewContent(msgspec.Struct, frozen=True, kw_only=True):
    """What the person who decides is shown."""

    reason: str
    agrees: tuple[IdentityFact, ...]
    differs: tuple[IdentityFact, ...]
    listed: ListedChild
    attendance: AttendanceFacts
    shown_names: tuple[str, ...]
    shown_birth_date: str | None


class NewReview(msgspec.Struct, frozen=True, kw_only=True):
    """A review to be opened."""

    id: str
    authority: str
    visit_id: str
    entry_id: str
    held_by: str
    content: ReviewContent
    opened_at: datetime
    due_by: datetime


class StoredReview(msgspec.Struct, frozen=True, kw_only=True):
    """A review as its authority's people see it."""

    id: str
    visit_id: str
    content: ReviewContent
    held_by: str
    level: int
    state: ItemState
    opened_at: datetime
    due_by: datetime
    decision: str | None


def derive_review_id(keyring: Keyring, visit_id: str, entry_id: str) -> str:
    """One review per visit and entry."""
    return keyring.derive_id("review", visit_id, entry_id)


async def save_reviews(connection: AsyncConnection, keyring: Keyring, reviews: Sequence[NewReview]) -> None:
    """Open reviews; one that exists stays as it is, unless its entry had been taken back and is listed again."""
    if not reviews:
        return
    statement = upsert(connection, _reviews)
    anew = ("sealed", "held_by", "level", "state", "opened_at", "due_by", "decision", "decided_at")
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=["id"],
            set_={name: statement.excluded[name] for name in anew},
            where=_reviews.c.decision == ENTRY_TAKEN_BACK,
        ),
        [
            {
                "id": new.id,
                "owner": authority_owner(new.authority),
                "visit_id": new.visit_id,
                "entry_id": new.entry_id,
                "sealed": keyring.seal(msgspec.json.encode(new.content), about=f"review/{new.id}"),
                "held_by": new.held_by,
                "level": 0,
                "state": ItemState.OPEN.value,
                "opened_at": new.opened_at,
                "due_by": new.due_by,
                "decision": None,
                "decided_at": None,
            }
            for new in reviews
        ],
    )


async def close_matched_reviews(connection: AsyncConnection, matched: Sequence[tuple[str, str]], now: datetime) -> None:
    """Close open reviews of (visit id, entry id) that a later message settled: the alert takes their place."""
    if not matched:
        return
    pairs = [(_reviews.c.visit_id == visit_id) & (_reviews.c.entry_id == entry_id) for visit_id, entry_id in matched]
    await connection.execute(
        update(_reviews)
        .where(_reviews.c.state == ItemState.OPEN.value, or_(*pairs))
        .values(state=ItemState.DONE.value, decision="matched_by_later_message", decided_at=now)
    )


async def close_reviews_of_entry(connection: AsyncConnection, entry_id: str, now: datetime) -> None:
    """Close the open reviews of an entry: there is nothing left to compare with."""
    await connection.execute(
        update(_reviews)
        .where(_reviews.c.state == ItemState.OPEN.value, _reviews.c.entry_id == entry_id)
        .values(state=ItemState.DONE.value, decision=ENTRY_TAKEN_BACK, decided_at=now)
    )


async def list_open_reviews(
    connection: AsyncConnection, keyring: Keyring, owner: str, *, rows_max: int, held_by: str | None = None
) -> list[StoredReview]:
    """An authority's open reviews, the most overdue first; with ``held_by``, only those this worker holds."""
    statement = select(_reviews).where(_reviews.c.owner == owner, _reviews.c.state == ItemState.OPEN.value)
    if held_by is not None:
        statement = statement.where(_reviews.c.held_by == held_by)
    # Handed over once is more urgent than due soon: handing over sets a new limit.
    statement = statement.order_by(_reviews.c.level.desc(), _reviews.c.due_by, _reviews.c.id).limit(rows_max)
    return [_open(keyring, row) for row in await connection.execute(statement)]


async def count_reviews(connection: AsyncConnection) -> dict[str, int]:
    """Reviews by state."""
    rows = await connection.execute(select(_reviews.c.state, func.count()).group_by(_reviews.c.state))
    return dict(rows.all())


def _open(keyring: Keyring, row: Any) -> StoredReview:
    plain = keyring.open(bytes(row.sealed), about=f"review/{row.id}")
    return StoredReview(
        id=row.id,
        visit_id=row.visit_id,
        content=msgspec.json.decode(plain, type=ReviewContent),
        held_by=row.held_by,
        level=row.level,
        state=ItemState(row.state),
        opened_at=row.opened_at,
        due_by=row.due_by,
        decision=row.decision,
    )
