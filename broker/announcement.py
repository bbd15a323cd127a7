"""From a decision to what people are told: alerts, reviews, the reply, and the deliveries that carry them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.deliveries import authority_channels, deliver_alert, deliver_reply, deliver_update, deliver_withdrawal
from broker.domain.alerts import (
    DUTY_DESK,
    Correction,
    allocated_workers,
    compose_alert,
    compose_look_up_alert,
    describe_attendance,
)
from broker.domain.care_settings import Notice
from broker.domain.course import Quiet
from broker.domain.coverage import CoverageRules
from broker.domain.decision import REVIEW_BITS_MIN, Candidate, Decision, Doubt, MatchRules, differing_facts
from broker.domain.notices import RULES, find_notice
from broker.domain.replies import (
    CORRECTION,
    correction_of_reply,
    show_plans,
    summarise_lists,
    word_ages,
    word_match,
    word_reply,
)
from broker.domain.visibility import Windows
from broker.domain.visits import london_day
from broker.keyring import Keyring
from broker.storage import accesses, alerts, outbox, replies, restrictions, reviews, visits
from broker.storage.accesses import AccessKind, Author, NewAccess
from broker.storage.alerts import LOOK_UP_ROLE, NewAlert, NewNotice, Withdrawal, alert_role, derive_alert_id
from broker.storage.audit import Act, act_of_broker
from broker.storage.directory import Directory
from broker.storage.outbox import NewDelivery
from broker.storage.replies import NewReply, derive_reply_id
from broker.storage.reviews import NewReview, ReviewContent, derive_review_id
from broker.storage.tables import (
    CONFIRMATION_UNDONE,
    ENTRY_CORRECTED,
    ENTRY_TAKEN_BACK,
    IDENTITY_CORRECTED,
    VISITS_JOINED,
)
from broker.storage.visits import Standing, Thread
from schemas.alert import (
    AlertUpdated,
    AlertWithdrawn,
    ClinicianReply,
    IdentityFact,
    ListedChild,
    ListsSearched,
    ReplyOutcome,
)
from schemas.attendance import Attendance
from schemas.child_list import ChildListEntry
from schemas.delivery import ChannelName
from schemas.directory import Site
from schemas.identifiers import authority_owner, organisation_owner


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """How people are told; from the settings."""

    escalation: timedelta
    look_back: timedelta
    list_stale: timedelta
    windows: Windows = Windows()
    coverage: CoverageRules = CoverageRules()
    look_up_escalation: timedelta = timedelta(hours=24)
    proclaimed_days: frozenset[date] = frozenset()
    """Bank holidays that no rule gives."""
    topics_enabled: bool
    """Whether the Kafka topics for recipients are served; the embedded log has no outside readers."""
    review_bits_min: float = REVIEW_BITS_MIN
    quiet: Quiet = Quiet()


class Occasion(msgspec.Struct, frozen=True, kw_only=True):
    """When and under which directory and rules a decision is announced; one per transaction."""

    now: datetime
    on: date
    """The London day."""
    directory: Directory
    rules: Rules
    keyring: Keyring
    match_rules: MatchRules
    confirmed: Mapping[str, datetime | None]
    """When each authority's list was confirmed."""
    lists: dict[str, ListsSearched] = msgspec.field(default_factory=dict)
    """What answers to each department rest on, once there was one."""


def open_occasion(keyring: Keyring, directory: Directory, rules: Rules, now: datetime) -> Occasion:
    """The occasion of one transaction."""
    quiet = (code for code, authority in directory.authorities.items() if not authority.alerts_for_ended_plans)
    match_rules = MatchRules(
        windows=rules.windows, quiet_when_ended=frozenset(quiet), review_bits_min=rules.review_bits_min
    )
    return Occasion(
        now=now,
        on=london_day(now),
        directory=directory,
        rules=rules,
        keyring=keyring,
        match_rules=match_rules,
        confirmed={list_.authority: list_.confirmed_at for list_ in directory.freshness},
    )


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """A visit that was found to be another, and the authorities whose alerts go with it as they are."""

    visit_id: str
    into: str
    kept: tuple[str, ...] = ()


class Announcement(msgspec.Struct, kw_only=True):
    """Everything that follows from one decision."""

    alerts: list[NewAlert] = msgspec.field(default_factory=list)
    reviews: list[NewReview] = msgspec.field(default_factory=list)
    replies: list[NewReply] = msgspec.field(default_factory=list)
    deliveries: list[NewDelivery] = msgspec.field(default_factory=list)
    acts: list[Act] = msgspec.field(default_factory=list)
    notices: list[NewNotice] = msgspec.field(default_factory=list)
    withdrawn: list[Withdrawal] = msgspec.field(default_factory=list)
    joined: list[Joined] = msgspec.field(default_factory=list)
    """Visits that were found to be others, whose doubts are judged there."""
    settled: list[tuple[str, str]] = msgspec.field(default_factory=list)
    """Reviews, as (visit id, entry id), in whose place an alert comes."""
    unfounded: list[tuple[str, str]] = msgspec.field(default_factory=list)
    """Reviews, as (visit id, entry id), of a number that was not that of whoever attends."""
    replied: list[tuple[str, ReplyOutcome, int]] = msgspec.field(default_factory=list)
    """Visits with their answer, and how often one was taken back."""
    accesses: list[NewAccess] = msgspec.field(default_factory=list)


def announce(
    occasion: Occasion,
    thread: Thread,
    facts: Attendance,
    decision: Decision,
    *,
    late: bool,
    correction: Correction | None = None,
) -> Announcement:
    """Compose what follows from ``decision``. Pure but for sealing; the thread is told what it now has.

    ``correction`` says how the identity came to be known after the person had come.
    """
    told = Announcement()
    for authority in decision.to_alert:
        alert = _compose_alert(occasion, thread, facts, decision, authority=authority, late=late, correction=correction)
        told.alerts.append(alert)
        told.deliveries.extend(_deliver(occasion, alert))
        cause = f"identity_corrected {correction.event}" if correction is not None else ""
        told.acts.append(act_of_broker(authority_owner(authority), "alert.raised", alert.alert.alert_id, cause))
    for doubt in decision.doubts:
        review = _compose_review(occasion, thread, facts, doubt)
        told.reviews.append(review)
        told.acts.append(act_of_broker(authority_owner(review.authority), "review.opened", review.id))
    if decision.reply is not None:
        reply = _compose_reply(occasion, thread, facts, decision, decision.reply, correction=correction)
        told.replies.append(NewReply(reply=reply, visit_id=thread.visit_id))
        told.replied.append((thread.visit_id, decision.reply, thread.corrections))
        told.deliveries.extend(
            deliver_reply(
                occasion.keyring,
                reply,
                occasion.directory.sites.get(reply.organisation),
                is_fhir=facts.is_fhir,
                topics_enabled=occasion.rules.topics_enabled,
            )
        )
        told.acts.append(act_of_broker(organisation_owner(facts.sender), "reply.given", reply.reply_id))
    told.accesses = _note_accesses(occasion, thread, facts, decision)
    told.settled = [
        (thread.visit_id, candidate.entry_id)
        for candidate, _ in decision.matched
        if candidate.entry_id in thread.reviewed
    ]
    for alert in told.alerts:
        entries = {entry_id for entry_id, _ in alert.entries}
        thread.alerted[alert.alert.authority] = Standing(
            alert_id=alert.alert.alert_id,
            told=alert.told_state,
            entries=entries,
            is_restricted=alert.is_restricted,
        )
    thread.reviewed.update(doubt.candidate.entry_id for doubt in decision.doubts)
    thread.replied = decision.reply or thread.replied
    return told


async def save_announcements(
    connection: AsyncConnection, keyring: Keyring, told: Sequence[Announcement], now: datetime
) -> None:
    """Write alerts, reviews, replies and deliveries; the acts are the caller's to audit, last."""
    grounds = {entry_id for each in told for alert in each.alerts for entry_id, _ in alert.entries}
    grounds |= {review.entry_id for each in told for review in each.reviews}
    restricted = await restrictions.hold_entries(connection, grounds)
    await alerts.save_alerts(connection, keyring, [alert for each in told for alert in each.alerts])
    await alerts.save_notices(connection, [notice for each in told for notice in each.notices])
    await alerts.withdraw_each(connection, [one for each in told for one in each.withdrawn], now)
    await _save_reviews(connection, keyring, told, now)
    await reviews.close_matched_reviews(
        connection, [pair for each in told if each.alerts for pair in each.settled], now
    )
    for joined in (joined for each in told for joined in each.joined):
        await alerts.move_alerts(connection, joined.visit_id, joined.into, joined.kept)
        await reviews.move_reviews(connection, keyring, joined.visit_id, joined.into, now)
    await replies.save_replies(connection, keyring, [reply for each in told for reply in each.replies])
    await visits.note_replies(connection, [pair for each in told for pair in each.replied])
    await accesses.save_accesses(connection, keyring, [access for each in told for access in each.accesses])
    await outbox.add_deliveries(connection, keyring, [sent for each in told for sent in each.deliveries], now)
    await restrictions.withhold_of(connection, keyring, restricted)


async def _save_reviews(
    connection: AsyncConnection, keyring: Keyring, told: Sequence[Announcement], now: datetime
) -> None:
    """Open doubts and close unfounded ones. Of what a doubt becomes in one transaction the last word stands."""
    opened: dict[tuple[str, str], NewReview] = {}
    unfounded: dict[tuple[str, str], bool] = {}
    for each in told:
        unfounded |= dict.fromkeys(each.unfounded, True)
        for review in each.reviews:
            pair = (review.visit_id, review.entry_id)
            opened[pair] = review
            if pair in unfounded:
                unfounded[pair] = False
    await reviews.close_unfounded_reviews(connection, list(unfounded), now)
    await reviews.save_reviews(connection, keyring, list(opened.values()))
    again = [pair for pair, is_unfounded in unfounded.items() if is_unfounded and pair in opened]
    await reviews.close_unfounded_reviews(connection, again, now)


def replace_alert(occasion: Occasion, told: Announcement, alert: NewAlert) -> None:
    """Raise this alert in place of the one with the same id."""
    alert_id = alert.alert.alert_id
    told.alerts = [alert if each.alert.alert_id == alert_id else each for each in told.alerts]
    said_anew = {each.id: each for each in _deliver(occasion, alert)}
    told.deliveries = [said_anew.get(each.id, each) for each in told.deliveries]


def announce_look_up(occasion: Occasion, visit_id: str, site: Site, found: Sequence[Candidate]) -> Announcement:
    """Tell the authorities whose entries were found that somebody asked. ``visit_id`` is the look-up's own thread."""
    told, on = Announcement(), london_day(occasion.now)
    quiet = occasion.match_rules.quiet_when_ended
    wanted = [each for each in found if each.authority not in quiet or not each.entry.has_ended(on)]
    for authority in dict.fromkeys(each.authority for each in wanted):
        own = [each for each in found if each.authority == authority]
        entries = [each.entry for each in own]
        alert = NewAlert(
            alert=compose_look_up_alert(
                alert_id=derive_alert_id(occasion.keyring, visit_id, authority, LOOK_UP_ROLE),
                authority=authority,
                site=site,
                entries=entries,
                now=occasion.now,
                list_confirmed_at=occasion.confirmed.get(authority),
            ),
            visit_id=visit_id,
            role=LOOK_UP_ROLE,
            held_by=_first_holder(authority, entries, occasion.directory),
            due_by=occasion.now + occasion.rules.look_up_escalation,
            entries=tuple((each.entry_id, each.entry.allocated_worker) for each in own),
            is_restricted=any(each.is_restricted for each in found),
        )
        told.alerts.append(alert)
        told.deliveries.extend(_deliver(occasion, alert))
        told.acts.append(act_of_broker(authority_owner(authority), "alert.raised", alert.alert.alert_id))
    return told


WITHDRAWN_BECAUSE: Final = {
    ENTRY_TAKEN_BACK: "The entry of your list on which this alert rested was taken back as an error.",
    ENTRY_CORRECTED: (
        "The entry of your list on which this alert rested has another NHS number now: somebody else attended."
    ),
    CONFIRMATION_UNDONE: "The confirmation of identity on which this alert rested was taken back.",
    IDENTITY_CORRECTED: "The department corrected who attended: it was not the person on your list.",
    VISITS_JOINED: "The department joined two records: this visit is another of which you have an alert already.",
}
"""Why an alert is withdrawn, by rule."""


def announce_withdrawal(occasion: Occasion, authority: str, alert_id: str, rule: str) -> Announcement:
    """Tell an authority that an alert is withdrawn by a rule, and why: never a silent disappearance."""
    withdrawn = AlertWithdrawn(
        alert_id=alert_id,
        authority=authority,
        withdrawn_at=occasion.now,
        reason=WITHDRAWN_BECAUSE[rule],
    )
    return Announcement(
        deliveries=deliver_withdrawal(occasion.keyring, withdrawn, _channels_to(occasion, authority)),
        acts=[act_of_broker(authority_owner(authority), "alert.withdrawn", alert_id)],
    )


def _note_accesses(occasion: Occasion, thread: Thread, facts: Attendance, decision: Decision) -> list[NewAccess]:
    """A visit that matched has had access to the record; where a site keeps to itself who comes, nothing is kept."""
    is_news = bool(decision.to_alert) or decision.reply is ReplyOutcome.MATCH
    if not is_news or decision.treatment.notice is Notice.SUPPRESSED:
        return []
    site = occasion.directory.sites.get(facts.sender)
    # As with the alert: whoever is restricted under one of their numbers is where they are under the others, too.
    is_withheld = any(candidate.is_restricted for candidate, _ in decision.matched)
    came_at = facts.arrived_at or facts.event_at or facts.message_at or occasion.now
    author = Author(
        kind=AccessKind.ATTENDED,
        organisation=facts.sender,
        organisation_name=site.name if site is not None else facts.sender,
    )
    return [
        NewAccess(
            nhs_number=number,
            author=author,
            at=min(came_at, occasion.now),
            is_unscheduled=decision.treatment.is_told,
            is_withheld=is_withheld,
            visit_id=thread.visit_id,
        )
        for number in dict.fromkeys(candidate.entry.nhs_number for candidate, _ in decision.matched)
    ]


def announce_notices(occasion: Occasion, thread: Thread) -> Announcement:
    """What each authority that was alerted must now be told of the visit: a message of its own, and no alert."""
    told = Announcement()
    if not thread.alerted:
        return told
    state = thread.state()
    for authority, standing in sorted(thread.alerted.items()):
        rule = find_notice(standing.told, state)
        if rule is None:
            continue
        standing.notices, standing.told = standing.notices + 1, state
        is_urgent = rule.is_urgent and standing.is_open
        facts = thread.facts()
        update = AlertUpdated(
            notice_id=occasion.keyring.derive_id("notice", standing.alert_id, str(standing.notices)),
            alert_id=standing.alert_id,
            authority=authority,
            raised_at=occasion.now,
            kind=rule.kind,
            is_urgent=is_urgent,
            words=rule.words,
            attendance=describe_attendance(facts, occasion.directory.sites.get(facts.sender)),
        )
        told.notices.append(NewNotice(update=update, told_state=state, due_by=occasion.now + occasion.rules.escalation))
        told.deliveries += deliver_update(
            occasion.keyring, update, _channels_to(occasion, authority), is_restricted=standing.is_restricted
        )
        act = act_of_broker(authority_owner(authority), "alert.updated", standing.alert_id, rule.kind.value)
        told.acts.append(act)
    return told


def _compose_alert(
    occasion: Occasion,
    thread: Thread,
    facts: Attendance,
    decision: Decision,
    *,
    authority: str,
    late: bool,
    correction: Correction | None,
) -> NewAlert:
    matched = [(candidate, match) for candidate, match in decision.matched if candidate.authority == authority]
    entries = [candidate.entry for candidate, _ in matched]
    role, state = alert_role(thread.withdrawn.get(authority, 0)), thread.state()
    return NewAlert(
        alert=compose_alert(
            alert_id=derive_alert_id(occasion.keyring, thread.visit_id, authority, role),
            authority=authority,
            facts=facts,
            site=occasion.directory.sites.get(facts.sender),
            matched=[(candidate.entry, match) for candidate, match in matched],
            now=occasion.now,
            late=late,
            list_confirmed_at=occasion.confirmed.get(authority),
            correction=correction,
            course=RULES[state].words if state in RULES else "",
        ),
        visit_id=thread.visit_id,
        role=role,
        held_by=_first_holder(authority, entries, occasion.directory),
        due_by=occasion.now + occasion.rules.escalation,
        entries=tuple((candidate.entry_id, candidate.entry.allocated_worker) for candidate, _ in matched),
        told_state=state,
        is_restricted=any(candidate.is_restricted for candidate, _ in decision.matched),
    )


def _compose_review(occasion: Occasion, thread: Thread, facts: Attendance, doubt: Doubt) -> NewReview:
    candidate, entry = doubt.candidate, doubt.candidate.entry
    return NewReview(
        id=derive_review_id(occasion.keyring, thread.visit_id, candidate.entry_id),
        authority=candidate.authority,
        visit_id=thread.visit_id,
        entry_id=candidate.entry_id,
        held_by=_first_holder(candidate.authority, [entry], occasion.directory),
        content=ReviewContent(
            reason=doubt.judgement.reason,
            agrees=doubt.judgement.agrees,
            differs=doubt.judgement.differs,
            listed=_listed(candidate),
            attendance=describe_attendance(facts, occasion.directory.sites.get(facts.sender)),
            shown_names=tuple(f"{name.given} {name.family}".strip() for name in facts.names),
            shown_birth_date=facts.birth_date.isoformat() if facts.birth_date else None,
            weight=doubt.likeness.weight,
            reasons_for=doubt.likeness.reasons_for,
            reasons_against=doubt.likeness.reasons_against,
        ),
        opened_at=occasion.now,
        due_by=occasion.now + occasion.rules.escalation,
        is_restricted=candidate.is_restricted,
    )


def _compose_reply(
    occasion: Occasion,
    thread: Thread,
    facts: Attendance,
    decision: Decision,
    outcome: ReplyOutcome,
    *,
    correction: Correction | None,
) -> ClinicianReply:
    lists = _summarise_lists(occasion, facts.sender)
    shown = [(candidate.authority, candidate.entry) for candidate, _ in decision.matched]
    differs = differing_facts(decision.matched)
    plans = show_plans(
        shown,
        occasion.directory.authorities,
        occasion.now,
        occasion.confirmed,
        occasion.rules.proclaimed_days,
    )
    told = [code for code in dict.fromkeys(code for code, _ in shown) if code in {*thread.alerted, *decision.to_alert}]
    return ClinicianReply(
        reply_id=derive_reply_id(occasion.keyring, thread.visit_id, outcome, thread.corrections),
        organisation=facts.sender,
        in_answer_to=facts.control_id,
        visit_number=facts.visit_number,
        local_patient_id=facts.local_patient_id,
        replied_at=occasion.now,
        outcome=outcome,
        wording=_word(occasion, thread, decision, outcome, lists, is_told=bool(told), correction=correction),
        plans=plans,
        differs=differs,
        authorities_told=tuple(occasion.directory.authorities[code].name for code in told),
        lists=lists,
    )


def _word(
    occasion: Occasion,
    thread: Thread,
    decision: Decision,
    outcome: ReplyOutcome,
    lists: ListsSearched,
    *,
    is_told: bool,
    correction: Correction | None,
) -> str:
    cause = correction_of_reply(correction) if correction is not None else CORRECTION
    taken_back = f"{cause} " if thread.corrections else ""
    if outcome is not ReplyOutcome.MATCH:
        return taken_back + word_reply(outcome, lists, occasion.now)
    on = london_day(occasion.now)
    if correction is not None and not taken_back:
        taken_back = f"{correction.explain().strip()} "
    return (
        taken_back
        + word_match(
            differing_facts(decision.matched),
            all_ended=all(candidate.entry.has_ended(on) for candidate, _ in decision.matched),
            by_mother=all(IdentityFact.MOTHER in match.agrees for _, match in decision.matched),
            is_told=is_told,
        )
        + word_ages(
            [occasion.confirmed.get(candidate.authority) for candidate, _ in decision.matched],
            occasion.now,
            occasion.rules.list_stale,
        )
    )


def _summarise_lists(occasion: Occasion, sender: str) -> ListsSearched:
    """England has 153 lists: what is said of them is put together once for each department."""
    if sender not in occasion.lists:
        directory = occasion.directory
        occasion.lists[sender] = summarise_lists(
            directory.freshness, directory.sites.get(sender), occasion.now, occasion.rules.list_stale
        )
    return occasion.lists[sender]


def _channels_to(occasion: Occasion, authority: str) -> list[ChannelName]:
    return authority_channels(occasion.directory, authority, topics_enabled=occasion.rules.topics_enabled)


def _deliver(occasion: Occasion, alert: NewAlert) -> list[NewDelivery]:
    channels = _channels_to(occasion, alert.alert.authority)
    return deliver_alert(occasion.keyring, alert.alert, channels, is_restricted=alert.is_restricted)


def _first_holder(authority: str, entries: Sequence[ChildListEntry], directory: Directory) -> str:
    reachable = directory.reachable_workers
    workers = (worker for worker in allocated_workers(entries) if (authority, worker) in reachable)
    return next(workers, DUTY_DESK)


def _listed(candidate: Candidate) -> ListedChild:
    entry = candidate.entry
    return ListedChild(
        local_id=entry.local_id,
        nhs_number=entry.nhs_number,
        family=entry.name.family,
        given=entry.name.given,
        birth_date=entry.birth_date,
    )
