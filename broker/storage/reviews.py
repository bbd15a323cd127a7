"""Reviews: doubts about identity that a person decides, with an owner and a time limit."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.alerts import withhold_place
from broker.domain.likeness import Reason
from broker.keyring import Keyring
from broker.storage.database import upsert
from broker.storage.tables import (
    ENTRY_TAKEN_BACK,
    IDENTITY_CORRECTED,
    REVIEWED_ANEW,
    VISITS_JOINED,
    ItemState,
    Review,
    ReviewDecision,
    table,
)
from schemas.alert import AttendanceFacts, IdentityFact, ListedChild
from schemas.identifiers import authority_owner

_reviews = table(Review)
MATCHED_LATER: Final = "matched_by_later_message"


class ReviewContent(msgspec.Struct, frozen=True, kw_only=True):
    """What the person who decides is shown."""

    reason: str
    agrees: tuple[IdentityFact, ...]
    differs: tuple[IdentityFact, ...]
    listed: ListedChild
    attendance: AttendanceFacts
    shown_names: tuple[str, ...]
    shown_birth_date: str | None
    weight: float | None = None
    """What all that is known weighs, in bits; None of a review that was opened before it was weighed."""
    reasons_for: tuple[Reason, ...] = ()
    reasons_against: tuple[Reason, ...] = ()


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
    is_restricted: bool = False


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
    decided_by: str | None
    decided_at: datetime | None
    entry_id: str
    decision_reason: str
    is_restricted: bool = False
    """The place is withheld; ``load_review`` gives it with ``with_place``."""

    @property
    def is_decidable(self) -> bool:
        """Whether a person may still say that the two are one, or are not: also one who thinks better of a no."""
        return self.state is ItemState.OPEN or self.decision in (ReviewDecision.REJECTED, ReviewDecision.UNDONE)


def derive_review_id(keyring: Keyring, visit_id: str, entry_id: str) -> str:
    """One review per visit and entry."""
    return keyring.derive_id("review", visit_id, entry_id)


async def save_reviews(connection: AsyncConnection, keyring: Keyring, reviews: Sequence[NewReview]) -> None:
    """Open reviews; one that exists stays as it is, unless it was closed because its entry was taken back or it was
    unfounded."""
    if not reviews:
        return
    statement = upsert(connection, _reviews)
    anew = ("is_restricted", "sealed", "held_by", "level", "state", "opened_at", "due_by", "decision", "decided_at")
    await connection.execute(
        statement.on_conflict_do_update(
            index_elements=["id"],
            set_={name: statement.excluded[name] for name in anew},
            where=or_(*(_reviews.c.decision == rule for rule in REVIEWED_ANEW)),
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
                "is_restricted": new.is_restricted,
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
        .values(state=ItemState.DONE.value, decision=MATCHED_LATER, decided_at=now)
    )


async def close_unfounded_reviews(
    connection: AsyncConnection, unfounded: Sequence[tuple[str, str]], now: datetime
) -> None:
    """Close reviews of (visit id, entry id) that nobody decided: the number was not that of whoever attends."""
    if not unfounded:
        return
    pairs = [(_reviews.c.visit_id == visit_id) & (_reviews.c.entry_id == entry_id) for visit_id, entry_id in unfounded]
    is_undecided = or_(_reviews.c.state == ItemState.OPEN.value, _reviews.c.decision == MATCHED_LATER)
    await connection.execute(
        update(_reviews)
        .where(is_undecided, or_(*pairs))
        .values(state=ItemState.DONE.value, decision=IDENTITY_CORRECTED, decided_at=now)
    )


async def close_reviews_of_entry(connection: AsyncConnection, entry_id: str, now: datetime) -> None:
    """Close the open reviews of an entry: there is nothing left to compare with."""
    await connection.execute(
        update(_reviews)
        .where(_reviews.c.state == ItemState.OPEN.value, _reviews.c.entry_id == entry_id)
        .values(state=ItemState.DONE.value, decision=ENTRY_TAKEN_BACK, decided_at=now)
    )


async def move_reviews(connection: AsyncConnection, keyring: Keyring, visit_id: str, into: str, now: datetime) -> None:
    """What people decided of a visit that was found to be another counts there; its open doubts are closed here.

    Of one entry both may have a doubt: then the decision is copied, unless the other has one that says yes.
    """
    statement = select(_reviews).where(_reviews.c.visit_id.in_((visit_id, into))).order_by(_reviews.c.id)
    rows = list(await connection.execute(statement.with_for_update()))
    there = {row.entry_id: row for row in rows if row.visit_id == into}
    decisions = {decision.value for decision in ReviewDecision}
    for row in (row for row in rows if row.visit_id == visit_id and row.decision in decisions):
        if row.entry_id not in there:
            await connection.execute(update(_reviews).where(_reviews.c.id == row.id).values(visit_id=into))
        elif there[row.entry_id].decision not in decisions or row.decision == ReviewDecision.CONFIRMED:
            review, own = _open(keyring, row), _open(keyring, there[row.entry_id])
            await decide_review(
                connection,
                keyring,
                own,
                ReviewDecision(row.decision),
                by=review.decided_by or "",
                reason=review.decision_reason,
                now=review.decided_at or now,
            )
    await connection.execute(
        update(_reviews)
        .where(_reviews.c.state == ItemState.OPEN.value, _reviews.c.visit_id == visit_id)
        .values(state=ItemState.DONE.value, decision=VISITS_JOINED, decided_at=now)
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


async def load_review(
    connection: AsyncConnection,
    keyring: Keyring,
    owner: str,
    review_id: str,
    *,
    held_by: str | None,
    with_place: bool = False,
) -> StoredReview | None:
    """One review of the authority, decided or not; with ``held_by``, only if this worker holds it.

    ``with_place`` is for the protected view alone: also of a restricted person, where they are.
    """
    statement = select(_reviews).where(_reviews.c.owner == owner, _reviews.c.id == review_id)
    if held_by is not None:
        statement = statement.where(_reviews.c.held_by == held_by)
    row = (await connection.execute(statement)).one_or_none()
    return None if row is None else _open(keyring, row, with_place=with_place)


async def decide_review(
    connection: AsyncConnection,
    keyring: Keyring,
    review: StoredReview,
    decision: ReviewDecision,
    *,
    by: str,
    reason: str,
    now: datetime,
) -> bool:
    """Note what a person decided and why; False when the review does not stand any more as it was loaded."""
    stands = _reviews.c.decision.is_(None) if review.decision is None else _reviews.c.decision == review.decision
    decided = await connection.execute(
        update(_reviews)
        .where(_reviews.c.id == review.id, _reviews.c.state == review.state.value, stands)
        .values(
            state=ItemState.DONE.value,
            decision=decision.value,
            decided_by=by,
            decided_at=now,
            decision_sealed=keyring.seal(reason.encode(), about=f"decision/{review.id}") if reason else None,
        )
    )
    return decided.rowcount == 1


async def list_decided_reviews(
    connection: AsyncConnection,
    keyring: Keyring,
    owner: str,
    *,
    since: datetime,
    rows_max: int,
    held_by: str | None = None,
) -> list[StoredReview]:
    """What an authority's people decided since an instant, newest first."""
    decisions = [decision.value for decision in ReviewDecision]
    statement = select(_reviews).where(
        _reviews.c.owner == owner, _reviews.c.decision.in_(decisions), _reviews.c.decided_at >= since
    )
    if held_by is not None:
        statement = statement.where(_reviews.c.held_by == held_by)
    statement = statement.order_by(_reviews.c.decided_at.desc(), _reviews.c.id).limit(rows_max)
    return [_open(keyring, row) for row in await connection.execute(statement)]


def _open(keyring: Keyring, row: Any, *, with_place: bool = False) -> StoredReview:
    plain = keyring.open(bytes(row.sealed), about=f"review/{row.id}")
    content = msgspec.json.decode(plain, type=ReviewContent)
    if row.is_restricted and not with_place:
        content = msgspec.structs.replace(content, attendance=withhold_place(content.attendance))
    return StoredReview(
        id=row.id,
        visit_id=row.visit_id,
        content=content,
        held_by=row.held_by,
        level=row.level,
        state=ItemState(row.state),
        opened_at=row.opened_at,
        due_by=row.due_by,
        decision=row.decision,
        decided_by=row.decided_by,
        decided_at=row.decided_at,
        entry_id=row.entry_id,
        decision_reason=keyring.open(bytes(row.decision_sealed), about=f"decision/{row.id}").decode()
        if row.decision_sealed is not None
        else "",
        is_restricted=row.is_restricted,
    )
