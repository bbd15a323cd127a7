"""What follows from one visit and the list entries that may concern it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Final

import msgspec

from broker.domain.care_settings import Treatment, treat_attendance
from broker.domain.likeness import Likeness, compare_with_entry
from broker.domain.matching import Judgement, Match, NoMatch, Unsure, confirm_match, doubt_child, match_child
from broker.domain.replies import reply_is_due, reply_is_new
from broker.domain.visibility import Standing, Windows, standing_on
from schemas.alert import IdentityFact, ReplyOutcome
from schemas.attendance import Attendance
from schemas.child_list import ChildListEntry
from schemas.directory import Site
from schemas.identifiers import NhsNumber
from schemas.record import PositionOutcome

REVIEW_BITS_MIN: Final = 20.0
"""Of so many entries that are somebody else's, one in two to this power weighs as much by chance. Beside 150,000 listed
people, one visitor in seven without a number is weighed against a stranger for nothing."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A list entry that may concern the person who attends."""

    entry_id: str
    authority: str
    entry: ChildListEntry
    aliases: tuple[NhsNumber, ...] = ()
    """Numbers that PDS links with the entry's own: one supersedes the other."""
    is_dead: bool = False
    """Its number is dead: it finds nobody."""
    is_restricted: bool = False
    """Where the person is must not become known (ADR 0040)."""


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided about the visit before."""

    is_new: bool
    is_corrected: bool = False
    """An answer was taken back, and none has followed yet: one is due whoever it is."""
    alerted: frozenset[str] = frozenset()
    """Authorities that have an alert for this visit."""
    reviewed: frozenset[str] = frozenset()
    """Entries that have a review for this visit."""
    confirmed: frozenset[str] = frozenset()
    """Entries of which a person said that they are about whoever attends."""
    rejected: frozenset[str] = frozenset()
    """Entries of which a person said that they are about somebody else."""
    replied: ReplyOutcome | None = None


class MatchRules(msgspec.Struct, frozen=True, kw_only=True):
    """What counts as listed, and who wants to be told of it."""

    windows: Windows = Windows()
    quiet_when_ended: frozenset[str] = frozenset()
    """Authorities that are not told of people whose plans have all ended."""
    review_bits_min: float = REVIEW_BITS_MIN
    """Without a usable number, what weighs as much as this goes to a person."""


class Doubt(msgspec.Struct, frozen=True, kw_only=True):
    """An entry that a person must compare with the visit, and what speaks for it and against."""

    candidate: Candidate
    judgement: Unsure
    likeness: Likeness


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done now. ``matched`` holds every match, ``to_alert`` the authorities not alerted before."""

    outcome: PositionOutcome
    reason: str
    matched: tuple[tuple[Candidate, Match], ...]
    to_alert: tuple[str, ...]
    doubts: tuple[Doubt, ...]
    reply: ReplyOutcome | None
    treatment: Treatment = treat_attendance(None)
    """Whether the care setting lets an authority be told."""

    @property
    def is_silent(self) -> bool:
        """Whether nobody is told anything, and no list entry matched."""
        return self.reply is None and not (self.to_alert or self.doubts or self.matched)


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
    once per visit, and a visit is answered once, or again when a match is found after all. Where the site's care
    setting is silent the department is answered, and no authority hears of it.
    """
    treatment = treat_attendance(site, was_not_brought=bool(facts.was_not_brought))
    matched: list[tuple[Candidate, Match]] = []
    doubts: list[Doubt] = []
    for candidate in candidates:
        if candidate.is_dead or standing_on(candidate.entry, on, rules.windows) is Standing.HIDDEN:
            continue
        judgement, likeness = _judge(facts, candidate, known, rules)
        if isinstance(judgement, Match):
            matched.append((candidate, judgement))
        elif isinstance(judgement, Unsure) and candidate.entry_id not in known.rejected:
            doubts.append(Doubt(candidate=candidate, judgement=judgement, likeness=likeness))
    answer = _answer(facts, bool(matched), doubts)
    wanted = [
        candidate.authority
        for candidate, _ in matched
        if treatment.is_told
        if candidate.authority not in rules.quiet_when_ended or not candidate.entry.has_ended(on)
    ]
    to_alert = tuple(code for code in dict.fromkeys(wanted) if code not in known.alerted)
    new_doubts = tuple(
        doubt for doubt in doubts if treatment.is_told and doubt.candidate.entry_id not in known.reviewed
    )
    due = known.is_corrected or reply_is_due(answer, facts, site, on)
    outcome, reason = _outcome(
        known,
        facts,
        treatment,
        alerts=bool(to_alert),
        reviews=bool(new_doubts),
        reply_due=due,
        is_listed=bool(matched) or (bool(doubts) and not treatment.is_told),
    )
    return Decision(
        outcome=outcome,
        reason=reason,
        matched=tuple(matched),
        to_alert=to_alert,
        doubts=new_doubts,
        reply=answer if due and reply_is_new(answer, known.replied) else None,
        treatment=treatment,
    )


def _judge(facts: Attendance, candidate: Candidate, known: Known, rules: MatchRules) -> tuple[Judgement, Likeness]:
    """What the rules say; where they leave room, what a person said; without a number, how much weighs."""
    entry = candidate.entry
    judgement = match_child(facts, entry, candidate.aliases)
    if isinstance(judgement, Match) or (facts.nhs_number and isinstance(judgement, NoMatch)):
        return judgement, _UNWEIGHED
    if candidate.entry_id in known.confirmed:
        return confirm_match(facts, entry, candidate.aliases), _UNWEIGHED
    likeness = compare_with_entry(facts, entry)
    if isinstance(judgement, NoMatch) and (likeness.is_possible_twin or likeness.weight >= rules.review_bits_min):
        reason = "perhaps a twin" if likeness.is_possible_twin else "much speaks for the same person"
        return doubt_child(facts, entry, f"{reason}; no usable NHS number"), likeness
    return judgement, likeness


_UNWEIGHED: Final = Likeness(weight=0, reasons_for=(), reasons_against=(), is_possible_twin=False)


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
    known: Known,
    facts: Attendance,
    treatment: Treatment,
    *,
    alerts: bool,
    reviews: bool,
    reply_due: bool,
    is_listed: bool,
) -> tuple[PositionOutcome, str]:
    if alerts:
        return PositionOutcome.ALERTED, treatment.rule
    if reviews:
        return PositionOutcome.UNDER_REVIEW, treatment.rule
    if not known.is_new:
        return PositionOutcome.UPDATED, ""
    if is_listed:
        return PositionOutcome.SILENT_BY_RULE, "ended_plan" if treatment.is_told else treatment.rule
    if not reply_due:
        return PositionOutcome.SILENT_BY_RULE, "adult"
    return PositionOutcome.NO_RECORD, "" if facts.nhs_number else "no_usable_nhs_number"
