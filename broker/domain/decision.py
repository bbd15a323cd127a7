"""What follows from one visit and the list entries that may concern it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import msgspec

from broker.domain.matching import Match, Unsure, match_child
from broker.domain.replies import reply_is_due, reply_is_new
from broker.domain.visibility import Standing, Windows, standing_on
from schemas.alert import IdentityFact, ReplyOutcome
from schemas.attendance import Attendance
from schemas.child_list import ChildListEntry
from schemas.directory import Site
from schemas.record import PositionOutcome


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A list entry that may concern the person who attends."""

    entry_id: str
    authority: str
    entry: ChildListEntry


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided about the visit before."""

    is_new: bool
    is_corrected: bool = False
    """An answer was taken back, and none has followed yet: one is due whoever it is."""
    alerted: frozenset[str] = frozenset()
    """Authorities that have an alert for this visit."""
    reviewed: frozenset[str] = frozenset()
    """Entries that have a review for this visit."""
    replied: ReplyOutcome | None = None


class MatchRules(msgspec.Struct, frozen=True, kw_only=True):
    """What counts as listed, and who wants to be told of it."""

    windows: Windows = Windows()
    quiet_when_ended: frozenset[str] = frozenset()
    """Authorities that are not told of people whose plans have all ended."""


class Doubt(msgspec.Struct, frozen=True, kw_only=True):
    """An entry that a person must compare with the visit."""

    candidate: Candidate
    judgement: Unsure


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done now. ``matched`` holds every match, ``to_alert`` the authorities not alerted before."""

    outcome: PositionOutcome
    reason: str
    matched: tuple[tuple[Candidate, Match], ...]
    to_alert: tuple[str, ...]
    doubts: tuple[Doubt, ...]
    reply: ReplyOutcome | None


def decide(
    facts: Attendance,
    candidates: Sequence[Candidate],
    known: Known,
    *,
    site: Site | None,
    on: date,
    rules: MatchRules,
) -> Decision:
    """Decide about a visit as it is now known, on a Europe/London day.

    Current plans count, and for some time those that ended. An authority is alerted once per visit, an entry reviewed
    once per visit, and a visit is answered once, or again when a match is found after all.
    """
    matched: list[tuple[Candidate, Match]] = []
    doubts: list[Doubt] = []
    for candidate in candidates:
        if standing_on(candidate.entry, on, rules.windows) is Standing.HIDDEN:
            continue
        judgement = match_child(facts, candidate.entry)
        if isinstance(judgement, Match):
            matched.append((candidate, judgement))
        elif isinstance(judgement, Unsure):
            doubts.append(Doubt(candidate=candidate, judgement=judgement))
    answer = _answer(facts, bool(matched), doubts)
    wanted = [
        candidate.authority
        for candidate, _ in matched
        if candidate.authority not in rules.quiet_when_ended or not candidate.entry.has_ended(on)
    ]
    to_alert = tuple(code for code in dict.fromkeys(wanted) if code not in known.alerted)
    new_doubts = tuple(doubt for doubt in doubts if doubt.candidate.entry_id not in known.reviewed)
    due = known.is_corrected or reply_is_due(answer, facts, site, on)
    outcome, reason = _outcome(bool(to_alert), bool(new_doubts), known, due, facts, is_matched=bool(matched))
    return Decision(
        outcome=outcome,
        reason=reason,
        matched=tuple(matched),
        to_alert=to_alert,
        doubts=new_doubts,
        reply=answer if due and reply_is_new(answer, known.replied) else None,
    )


def differing_facts(matched: Sequence[tuple[Candidate, Match]]) -> tuple[IdentityFact, ...]:
    """What differs between the visit and any list entry it matched."""
    return tuple(dict.fromkeys(fact for _, match in matched for fact in match.differs))


def _answer(facts: Attendance, is_matched: bool, doubts: Sequence[Doubt]) -> ReplyOutcome:
    if is_matched:
        return ReplyOutcome.MATCH
    # Without a usable number the answer is the same whether or not anybody is on a list, so it cannot be guessed.
    if facts.nhs_number is None or doubts:
        return ReplyOutcome.IDENTITY_TO_BE_CHECKED
    return ReplyOutcome.NO_RECORD


def _outcome(
    alerts: bool, reviews: bool, known: Known, reply_due: bool, facts: Attendance, *, is_matched: bool
) -> tuple[PositionOutcome, str]:
    if alerts:
        return PositionOutcome.ALERTED, ""
    if reviews:
        return PositionOutcome.UNDER_REVIEW, ""
    if not known.is_new:
        return PositionOutcome.UPDATED, ""
    if is_matched:
        return PositionOutcome.SILENT_BY_RULE, "ended_plan"
    if not reply_due:
        return PositionOutcome.SILENT_BY_RULE, "adult"
    return PositionOutcome.NO_RECORD, "" if facts.nhs_number else "no_usable_nhs_number"
