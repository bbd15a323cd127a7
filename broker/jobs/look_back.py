"""Look-back: a new or changed list entry is matched against the visits that came before it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.announcement import (
    Announcement,
    Occasion,
    Rules,
    announce,
    announce_withdrawal,
    open_occasion,
    save_announcements,
)
from broker.domain.decision import Candidate, Decision
from broker.domain.matching import entry_blocks
from broker.domain.visibility import Standing, standing_on
from broker.domain.visits import london_day
from broker.hearing import decide_visit
from broker.keyring import Keyring
from broker.patterns import name_patterns
from broker.storage import accesses, alerts, audit, child_lists, jobs, restrictions, reviews, visits
from broker.storage.alerts import Ground, alert_role, derive_alert_id
from broker.storage.child_lists import index_block, index_nhs_number
from broker.storage.database import Database
from broker.storage.directory import Directory
from broker.storage.jobs import ClaimedJob
from broker.storage.tables import ENTRY_CORRECTED, ENTRY_TAKEN_BACK
from broker.storage.visits import Thread
from schemas.alert import ReplyOutcome


async def look_back(
    database: Database, keyring: Keyring, rules: Rules, job: ClaimedJob, now: datetime, *, known: Directory
) -> int:
    """Match one entry against recent visits; what it finds alerts late, once. Returns the alerts raised.

    An entry that was taken back, or given another NHS number, withdraws the alerts that rest on nothing else. ``known``
    was read when the job was claimed: the entry's authority is in it.
    """
    async with database.writing() as connection:
        occasion = open_occasion(keyring, known, rules, now)
        # A job that waited, through an outage it may be, still finds who came before its list changed.
        since = min(job.due_at, now) - rules.look_back
        told = await _take_up(connection, occasion, job.subject, since)
        await name_patterns(connection, occasion, told)
        await save_announcements(connection, keyring, told, now)
        await jobs.finish_job(connection, job, now)
        await audit.record_acts(connection, [act for each in told for act in each.acts], now)
    return sum(len(each.alerts) for each in told)


async def _take_up(
    connection: AsyncConnection, occasion: Occasion, entry_id: str, since: datetime
) -> list[Announcement]:
    candidates = await child_lists.load_entries(connection, occasion.keyring, [entry_id])
    if not candidates:
        return []
    if candidates[0].entry.deleted_on is not None:
        return await _withdraw(connection, occasion, candidates[0], since)
    if candidates[0].is_dead:
        return []
    told = await _withdraw_corrected(connection, occasion, candidates[0])
    return told + await _match_entry(connection, occasion, candidates[0], since)


async def _match_entry(
    connection: AsyncConnection, occasion: Occasion, candidate: Candidate, since: datetime
) -> list[Announcement]:
    keyring, entry = occasion.keyring, candidate.entry
    numbers = _index_numbers(keyring, candidate)
    # The alert lists every plan, so the person's other entries are looked at too.
    listed = (await child_lists.find_by_nhs_number(connection, keyring, numbers)).values()
    others = {other.entry_id: other for found in listed for other in found if other.entry_id != candidate.entry_id}
    candidates = [candidate, *others.values()]
    visit_ids = await visits.find_by_person(
        connection,
        nhs_indexes=numbers,
        blocks=[index_block(keyring, block) for block in entry_blocks(entry)],
        since=since,
    )
    told: list[Announcement] = []
    grounds: list[Ground] = []
    for thread in (await visits.load_known_threads(connection, keyring, visit_ids)).values():
        if thread.is_here:
            decision = decide_visit(occasion, thread, candidates, on=occasion.on)
            grounds += _find_grounds(occasion, thread, decision)
            told.append(announce(occasion, thread, thread.facts(), decision, late=True))
    restricted = await restrictions.hold_entries(connection, {ground.entry_id for ground in grounds})
    await alerts.add_grounds(connection, grounds)
    await restrictions.withhold_of(connection, keyring, restricted)
    return told


async def _withdraw(
    connection: AsyncConnection, occasion: Occasion, taken_back: Candidate, since: datetime
) -> list[Announcement]:
    """Withdraw what rests on the entry alone, and tell the departments that were told of it."""
    keyring, authority = occasion.keyring, taken_back.authority
    raised_at = await alerts.find_resting_on(connection, taken_back.entry_id)
    numbers = _index_numbers(keyring, taken_back)
    recent = await visits.find_by_person(connection, nhs_indexes=numbers, blocks=[], since=since)
    # Visits are locked before anything of theirs is touched, as the consumer does it.
    threads = await visits.load_known_threads(connection, keyring, {*raised_at, *recent})
    await reviews.close_reviews_of_entry(connection, taken_back.entry_id, occasion.now)
    told: list[Announcement] = []
    for thread in threads.values():
        at = raised_at.get(thread.visit_id, occasion.now)
        if not thread.messages:
            told += await _withdraw_look_up(connection, occasion, thread, taken_back)
            continue
        candidates = await child_lists.find_candidates(connection, keyring, thread.facts())
        if not _rests_on(occasion, thread, taken_back, candidates, at):
            continue
        withdrawn = await alerts.withdraw_alerts(
            connection, thread.visit_id, authority, rule=ENTRY_TAKEN_BACK, now=occasion.now
        )
        told += [announce_withdrawal(occasion, authority, alert_id, ENTRY_TAKEN_BACK) for alert_id in withdrawn]
        thread.take_back(authority)
        decision = decide_visit(occasion, thread, candidates, on=london_day(at))
        if thread.visit_id not in recent:
            decision = replace(decision, to_alert=(), doubts=())
        told.append(announce(occasion, thread, thread.facts(), decision, late=True))
    return told


async def _withdraw_look_up(
    connection: AsyncConnection, occasion: Occasion, thread: Thread, taken_back: Candidate
) -> list[Announcement]:
    """Withdraw the alert of a look-up, unless the authority lists the person under another plan."""
    asked = index_nhs_number(occasion.keyring, taken_back.entry.nhs_number)
    return await _withdraw_unlisted(connection, occasion, thread, asked, (taken_back.authority, ENTRY_TAKEN_BACK))


async def _withdraw_corrected_look_up(
    connection: AsyncConnection, occasion: Occasion, thread: Thread, candidate: Candidate
) -> list[Announcement]:
    """Withdraw the alert of a look-up of a number that is not the entry's any more: it was of somebody else."""
    asked = await accesses.find_record(connection, thread.visit_id)
    if asked is None or asked in _index_numbers(occasion.keyring, candidate):
        return []
    return await _withdraw_unlisted(connection, occasion, thread, asked, (candidate.authority, ENTRY_CORRECTED))


async def _withdraw_unlisted(
    connection: AsyncConnection, occasion: Occasion, thread: Thread, asked: bytes, ground: tuple[str, str]
) -> list[Announcement]:
    """Withdraw an authority's alert of a look-up by a rule, unless it lists the number that was asked about."""
    authority, rule = ground
    listed = (await child_lists.find_by_nhs_number(connection, occasion.keyring, [asked])).get(asked, [])
    on, windows = london_day(occasion.now), occasion.rules.windows
    if any(
        each.authority == authority and standing_on(each.entry, on, windows) is not Standing.HIDDEN for each in listed
    ):
        return []
    withdrawn = await alerts.withdraw_alerts(connection, thread.visit_id, authority, rule=rule, now=occasion.now)
    return [announce_withdrawal(occasion, authority, alert_id, rule) for alert_id in withdrawn]


async def _withdraw_corrected(
    connection: AsyncConnection, occasion: Occasion, candidate: Candidate
) -> list[Announcement]:
    """Withdraw what rests on the entry alone of visits whose NHS number is not the entry's any more.

    Two different valid numbers are two people: those visits were of somebody else.
    """
    keyring, authority = occasion.keyring, candidate.authority
    raised_at = await alerts.find_resting_on(connection, candidate.entry_id)
    told: list[Announcement] = []
    for thread in (await visits.load_known_threads(connection, keyring, raised_at)).values():
        if not thread.messages:
            told += await _withdraw_corrected_look_up(connection, occasion, thread, candidate)
            continue
        facts = thread.facts()
        said = {number for number in (facts.nhs_number, facts.mother_nhs_number) if number}
        if not thread.is_here or not said or said & {candidate.entry.nhs_number, *candidate.aliases}:
            continue
        at = raised_at[thread.visit_id]
        candidates = await child_lists.find_candidates(connection, keyring, facts)
        if authority in {
            each.authority for each, _ in decide_visit(occasion, thread, candidates, on=london_day(at)).matched
        }:
            continue
        withdrawn = await alerts.withdraw_alerts(
            connection, thread.visit_id, authority, rule=ENTRY_CORRECTED, now=occasion.now
        )
        told += [announce_withdrawal(occasion, authority, alert_id, ENTRY_CORRECTED) for alert_id in withdrawn]
        thread.take_back(authority)
        decision = decide_visit(occasion, thread, candidates, on=london_day(at))
        told.append(announce(occasion, thread, facts, replace(decision, to_alert=(), doubts=()), late=True))
    return told


def _index_numbers(keyring: Keyring, candidate: Candidate) -> list[bytes]:
    """The blind indexes under which the person may come: the entry's number and those that PDS links with it."""
    return [index_nhs_number(keyring, number) for number in (candidate.entry.nhs_number, *candidate.aliases)]


def _rests_on(
    occasion: Occasion, thread: Thread, taken_back: Candidate, candidates: Sequence[Candidate], at: datetime
) -> bool:
    """Whether anybody was told of the visit because of this entry, and of nothing else of its authority."""
    if not thread.is_here or (taken_back.authority not in thread.alerted and thread.replied is not ReplyOutcome.MATCH):
        return False
    entry = replace(taken_back.entry, deleted_on=None)
    as_it_was = decide_visit(occasion, thread, [replace(taken_back, entry=entry)], on=london_day(at))
    still = decide_visit(occasion, thread, candidates, on=london_day(at))
    return bool(as_it_was.matched) and taken_back.authority not in {each.authority for each, _ in still.matched}


def _find_grounds(occasion: Occasion, thread: Thread, decision: Decision) -> list[Ground]:
    """Further entries on which an alert rests that was raised before they were listed."""
    return [
        Ground(
            alert_id=derive_alert_id(
                occasion.keyring,
                thread.visit_id,
                candidate.authority,
                alert_role(thread.withdrawn.get(candidate.authority, 0)),
            ),
            authority=candidate.authority,
            entry_id=candidate.entry_id,
            worker=candidate.entry.allocated_worker,
        )
        for candidate, _ in decision.matched
        if candidate.authority in thread.alerted
    ]
