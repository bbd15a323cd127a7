"""What a person decides of a doubt about identity, and what follows: an alert, nothing, or a withdrawal.

Only a person makes one of two here. What was decided stands with the review, and every later message of the visit and
every look-back is judged by it; an equal NHS number that agrees is stronger than a no.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.announcement import (
    Announcement,
    Occasion,
    announce,
    announce_withdrawal,
    save_announcements,
)
from broker.domain.decision import Candidate, Decision, decide
from broker.domain.visits import london_day
from broker.patterns import name_patterns
from broker.storage import alerts, audit, child_lists, reviews, visits
from broker.storage.audit import Act
from broker.storage.reviews import StoredReview
from broker.storage.tables import CONFIRMATION_UNDONE, ReviewDecision
from broker.storage.visits import Thread

REASON_LETTERS_MAX: Final = 500


class Verdict(StrEnum):
    """What became of a decision."""

    NOTED = "noted"
    STALE = "stale"
    """Somebody else decided meanwhile, or there is nothing left to decide."""
    UNREASONED = "unreasoned"
    """To undo needs a reason, and none may be longer than REASON_LETTERS_MAX."""


class Judge(msgspec.Struct, frozen=True, kw_only=True):
    """The person who decides, for an authority."""

    owner: str
    authority: str
    login: str


class _Ruling(msgspec.Struct, frozen=True, kw_only=True):
    decision: ReviewDecision
    reason: str


async def confirm_review(
    connection: AsyncConnection, occasion: Occasion, judge: Judge, review: StoredReview, reason: str
) -> Verdict:
    """They are one person: the authority is alerted late, and the department is answered anew."""
    if not review.is_decidable:
        return Verdict.STALE
    return await _decide(
        connection, occasion, judge, review, _Ruling(decision=ReviewDecision.CONFIRMED, reason=reason.strip())
    )


async def reject_review(
    connection: AsyncConnection, occasion: Occasion, judge: Judge, review: StoredReview, reason: str
) -> Verdict:
    """They are two people: the same doubt does not come back, and nobody is told anything."""
    if review.decision is not None:
        return Verdict.STALE
    return await _decide(
        connection, occasion, judge, review, _Ruling(decision=ReviewDecision.REJECTED, reason=reason.strip())
    )


async def undo_review(
    connection: AsyncConnection, occasion: Occasion, judge: Judge, review: StoredReview, reason: str
) -> Verdict:
    """They were taken for one person and are not: the alert is withdrawn and the department told."""
    if review.decision != ReviewDecision.CONFIRMED:
        return Verdict.STALE
    if not reason.strip():
        return Verdict.UNREASONED
    return await _decide(
        connection, occasion, judge, review, _Ruling(decision=ReviewDecision.UNDONE, reason=reason.strip())
    )


async def _decide(
    connection: AsyncConnection,
    occasion: Occasion,
    judge: Judge,
    review: StoredReview,
    ruling: _Ruling,
) -> Verdict:
    decision, reason = ruling.decision, ruling.reason
    if len(reason) > REASON_LETTERS_MAX:
        return Verdict.UNREASONED
    # The visit is locked before anything of its own is touched, as the consumer does it.
    threads = await visits.load_known_threads(connection, occasion.keyring, [review.visit_id])
    if not await reviews.decide_review(
        connection, occasion.keyring, review, decision, by=judge.login, reason=reason, now=occasion.now
    ):
        return Verdict.STALE
    told: list[Announcement] = []
    thread = threads.get(review.visit_id)
    if thread is not None and thread.is_here:
        thread.confirmed.discard(review.entry_id)
        thread.rejected.discard(review.entry_id)
        (thread.confirmed if decision is ReviewDecision.CONFIRMED else thread.rejected).add(review.entry_id)
        if decision is ReviewDecision.CONFIRMED:
            told = [await _tell_confirmed(connection, occasion, judge, review, thread)]
        elif decision is ReviewDecision.UNDONE:
            told = await _tell_undone(connection, occasion, judge, thread)
    await name_patterns(connection, occasion, told)
    await save_announcements(connection, occasion.keyring, told, occasion.now)
    act = Act(owner=judge.owner, actor=judge.login, action=f"review.{decision}", subject=review.id)
    await audit.record_acts(connection, [act, *(each for one in told for each in one.acts)], occasion.now)
    return Verdict.NOTED


async def _tell_confirmed(
    connection: AsyncConnection, occasion: Occasion, judge: Judge, review: StoredReview, thread: Thread
) -> Announcement:
    """The alert lists every plan that this authority has for the person; other authorities decide for themselves."""
    facts = thread.facts()
    [confirmed, *_] = await child_lists.load_entries(connection, occasion.keyring, [review.entry_id])
    number = child_lists.index_nhs_number(occasion.keyring, confirmed.entry.nhs_number)
    listed = (await child_lists.find_by_nhs_number(connection, occasion.keyring, [number])).get(number, [])
    own = [each for each in listed if each.authority == judge.authority]
    thread.confirmed.update(each.entry_id for each in own)
    candidates = {each.entry_id: each for each in (confirmed, *own)}
    return announce(occasion, thread, facts, _judge_anew(occasion, thread, list(candidates.values())), late=True)


async def _tell_undone(
    connection: AsyncConnection, occasion: Occasion, judge: Judge, thread: Thread
) -> list[Announcement]:
    """What rests on the confirmation alone is withdrawn; a match by other means stands."""
    candidates = await child_lists.find_candidates(connection, occasion.keyring, thread.facts())
    still = _judge_anew(occasion, thread, candidates)
    if judge.authority in {candidate.authority for candidate, _ in still.matched}:
        return []
    withdrawn = await alerts.withdraw_alerts(
        connection, thread.visit_id, judge.authority, rule=CONFIRMATION_UNDONE, now=occasion.now
    )
    told = [announce_withdrawal(occasion, judge.authority, each, CONFIRMATION_UNDONE) for each in withdrawn]
    thread.take_back(judge.authority)
    again = _judge_anew(occasion, thread, candidates)
    return [*told, announce(occasion, thread, thread.facts(), again, late=True)]


def _judge_anew(occasion: Occasion, thread: Thread, candidates: Sequence[Candidate]) -> Decision:
    facts = thread.facts()
    return decide(
        facts,
        candidates,
        thread.known(is_new=False),
        site=occasion.directory.sites.get(facts.sender),
        on=london_day(occasion.now),
        rules=occasion.match_rules,
    )
