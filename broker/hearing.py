"""What follows when a visit hears a message: alerts, what an alert is followed by, and what was told in error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date

import msgspec

from broker.announcement import Announcement, Joined, Occasion, announce, announce_notices, announce_withdrawal
from broker.domain.alerts import Correction
from broker.domain.decision import Candidate, Decision, decide
from broker.domain.visits import is_merge
from broker.storage.alerts import Withdrawal
from broker.storage.tables import IDENTITY_CORRECTED, VISITS_JOINED
from broker.storage.visits import Thread
from schemas.alert import ReplyOutcome
from schemas.attendance import Attendance

FindCandidates = Callable[[Attendance], list[Candidate]]


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """A visit as it was before a message."""

    facts: Attendance | None
    is_here: bool


def remember(thread: Thread) -> Before:
    """The visit as it is, before a message is added."""
    return Before(facts=thread.facts() if thread.messages else None, is_here=thread.is_here)


def follow(
    occasion: Occasion, thread: Thread, before: Before, said: Attendance, find: FindCandidates, *, is_late: bool
) -> tuple[Decision, list[Announcement]]:
    """Decide about a visit that somebody is at, after ``said``; the thread is told what it now has.

    An alert that rested on a number which the department corrected is withdrawn, and the department answered anew.
    """
    facts = thread.facts()
    candidates = find(facts)
    decision = decide_visit(occasion, thread, candidates, on=occasion.on, is_new=not before.is_here)
    correction = _find_correction(before, facts, said, occasion) if before.is_here else None
    told: list[Announcement] = []
    if correction is not None and _is_other_person(before.facts, facts):
        told = _withdraw_wrong(occasion, thread, decision)
        is_answered_anew = bool(told)
        told += _close_unfounded(occasion, thread, find(before.facts) if before.facts else [], candidates)
        if is_answered_anew or (thread.replied is ReplyOutcome.MATCH and _number_changed(before.facts, facts)):
            thread.take_answer_back()
            decision = decide_visit(occasion, thread, candidates, on=occasion.on)
    if not decision.is_silent:
        is_late = (is_late or before.is_here) and bool(decision.to_alert)
        told.append(announce(occasion, thread, facts, decision, late=is_late, correction=correction))
    if thread.alerted:
        told.append(announce_notices(occasion, thread))
    return decision, told


def decide_visit(
    occasion: Occasion, thread: Thread, candidates: Sequence[Candidate], *, on: date, is_new: bool = False
) -> Decision:
    """What a visit as it stands calls for ``on`` a day; ``is_new``: until now nobody was at it."""
    facts = thread.facts()
    return decide(
        facts,
        candidates,
        thread.known(is_new=is_new),
        site=occasion.directory.sites.get(facts.sender),
        on=on,
        rules=occasion.match_rules,
    )


def join_visits(occasion: Occasion, into: Thread, thread: Thread) -> Announcement:
    """Two visits are one: what was said of the second is moved, and its alerts make way for those of the first.

    What people decided of the second goes with it, and so does an alert that rests on a person's word alone: the number
    that the first brings would not raise it again.
    """
    for marker, said in list(thread.messages):
        thread.remove(marker)
        into.add(marker, said)
    thread.joined_into = into.visit_id
    told, kept = Announcement(), list[str]()
    for authority, standing in sorted(thread.alerted.items()):
        if standing.entries & thread.confirmed and authority not in into.alerted.keys() | into.withdrawn.keys():
            kept.append(authority)
            into.alerted[authority] = standing
            into.withdrawn[authority] = thread.withdrawn.get(authority, 0)
            continue
        withdrawal = announce_withdrawal(occasion, authority, standing.alert_id, VISITS_JOINED)
        told.deliveries += withdrawal.deliveries
        told.acts += withdrawal.acts
        told.withdrawn.append(Withdrawal(alert_id=standing.alert_id, rule=VISITS_JOINED))
    thread.alerted.clear()
    into.take_over_decisions(thread)
    told.joined.append(Joined(visit_id=thread.visit_id, into=into.visit_id, kept=tuple(kept)))
    return told


def _find_correction(before: Before, facts: Attendance, said: Attendance, occasion: Occasion) -> Correction | None:
    former = before.facts
    if former is None or _identity(former) == _identity(facts):
        return None
    at = said.event_at or said.message_at or occasion.now
    return Correction(at=at, event=said.event.value, is_merge=is_merge(said))


def _identity(facts: Attendance) -> tuple[object, ...]:
    return (facts.nhs_number, facts.mother_nhs_number, facts.names, facts.birth_date)


def _is_other_person(former: Attendance | None, facts: Attendance) -> bool:
    if former is None:
        return False
    is_other_child = former.mother_nhs_number is not None and former.mother_nhs_number != facts.mother_nhs_number
    return _number_changed(former, facts) or is_other_child


def _number_changed(former: Attendance | None, facts: Attendance) -> bool:
    return former is not None and former.nhs_number is not None and former.nhs_number != facts.nhs_number


def _withdraw_wrong(occasion: Occasion, thread: Thread, decision: Decision) -> list[Announcement]:
    """Withdraw each alert of which no entry matches whoever it turned out to be."""
    matched = {candidate.entry_id for candidate, _ in decision.matched}
    told: list[Announcement] = []
    for authority, standing in sorted(thread.alerted.items()):
        if standing.entries & matched:
            continue
        withdrawal = announce_withdrawal(occasion, authority, standing.alert_id, IDENTITY_CORRECTED)
        withdrawal.withdrawn.append(Withdrawal(alert_id=standing.alert_id, rule=IDENTITY_CORRECTED))
        told.append(withdrawal)
        thread.take_back(authority)
    return told


def _close_unfounded(
    occasion: Occasion, thread: Thread, former: Sequence[Candidate], candidates: Sequence[Candidate]
) -> list[Announcement]:
    """Let go of doubts that rested on the former number, and that nobody has decided."""
    undecided = thread.reviewed - thread.confirmed - thread.rejected
    unfounded = undecided & {each.entry_id for each in former}
    if not unfounded:
        return []
    thread.reviewed -= unfounded
    anew = decide_visit(occasion, thread, candidates, on=occasion.on)
    possible = {each.entry_id for each, _ in anew.matched} | {doubt.candidate.entry_id for doubt in anew.doubts}
    thread.reviewed |= unfounded & possible
    return [Announcement(unfounded=[(thread.visit_id, entry_id) for entry_id in sorted(unfounded - possible)])]
