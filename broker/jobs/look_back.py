"""Look-back: a new or changed list entry is matched against the visits that came before it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

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
from broker.domain.decision import Candidate, Decision, decide
from broker.domain.matching import candidate_blocks
from broker.domain.visits import london_day
from broker.keyring import Keyring
from broker.storage import alerts, audit, child_lists, directory, jobs, reviews, visits
from broker.storage.child_lists import index_block, index_nhs_number
from broker.storage.database import Database
from broker.storage.jobs import ClaimedJob
from broker.storage.visits import Thread

ENTRY_TAKEN_BACK: Final = "entry_taken_back"
"""The rule by which an alert is closed whose entry was an error."""


async def look_back(database: Database, keyring: Keyring, rules: Rules, job: ClaimedJob, now: datetime) -> int:
    """Match one entry against recent visits; what it finds alerts late, once. Returns the alerts raised.

    An entry that was taken back withdraws the alerts that rest on nothing else.
    """
    async with database.writing() as connection:
        occasion = open_occasion(keyring, await directory.load_directory(connection), rules, now)
        told = await _take_up(connection, occasion, job.subject)
        await save_announcements(connection, keyring, told, now)
        await jobs.finish_job(connection, job, now)
        await audit.record_acts(connection, [act for each in told for act in each.acts], now)
    return sum(len(each.alerts) for each in told)


async def _take_up(connection: AsyncConnection, occasion: Occasion, entry_id: str) -> list[Announcement]:
    candidates = await child_lists.load_entries(connection, occasion.keyring, [entry_id])
    if not candidates:
        return []
    if candidates[0].entry.deleted_on is not None:
        return await _withdraw(connection, occasion, candidates[0])
    return await _match_entry(connection, occasion, candidates[0])


async def _match_entry(connection: AsyncConnection, occasion: Occasion, candidate: Candidate) -> list[Announcement]:
    keyring, entry = occasion.keyring, candidate.entry
    number = index_nhs_number(keyring, entry.nhs_number)
    # The alert lists every plan, so the person's other entries are looked at too.
    others = (await child_lists.find_by_nhs_number(connection, keyring, [number])).get(number, [])
    candidates = [candidate, *(other for other in others if other.entry_id != candidate.entry_id)]
    visit_ids = await visits.find_by_person(
        connection,
        nhs_index=number,
        blocks=[index_block(keyring, block) for block in candidate_blocks(entry.birth_date)],
        since=occasion.now - occasion.rules.look_back,
    )
    threads = await visits.load_threads(connection, keyring, visit_ids)
    return [_decide_anew(occasion, thread, candidates) for thread in threads.values() if thread.is_here]


async def _withdraw(connection: AsyncConnection, occasion: Occasion, taken_back: Candidate) -> list[Announcement]:
    """Withdraw what rests on the entry alone, and tell the departments that were told of it."""
    await reviews.close_reviews_of_entry(connection, taken_back.entry_id, ENTRY_TAKEN_BACK, occasion.now)
    visit_ids = await alerts.find_resting_on(connection, taken_back.entry_id)
    told = []
    for thread in (await visits.load_threads(connection, occasion.keyring, visit_ids)).values():
        candidates = await _find_candidates(connection, occasion, thread)
        matched = _decide(occasion, thread, candidates).matched
        if taken_back.authority in {candidate.authority for candidate, _ in matched}:
            continue
        for alert_id in await alerts.withdraw_alerts(
            connection, thread.visit_id, taken_back.authority, rule=ENTRY_TAKEN_BACK, now=occasion.now
        ):
            told.append(announce_withdrawal(occasion, taken_back.authority, alert_id))
        thread.take_back(taken_back.authority)
        told.append(_decide_anew(occasion, thread, candidates))
    return told


async def _find_candidates(connection: AsyncConnection, occasion: Occasion, thread: Thread) -> list[Candidate]:
    facts = thread.facts()
    numbers = [number for number in (facts.nhs_number, facts.mother_nhs_number) if number]
    indexes = [index_nhs_number(occasion.keyring, number) for number in numbers]
    found = await child_lists.find_by_nhs_number(connection, occasion.keyring, indexes)
    return [candidate for index in indexes for candidate in found.get(index, [])]


def _decide(occasion: Occasion, thread: Thread, candidates: Sequence[Candidate]) -> Decision:
    facts = thread.facts()
    return decide(
        facts,
        candidates,
        thread.known(is_new=False),
        site=occasion.directory.sites.get(facts.sender),
        on=london_day(occasion.now),
        rules=occasion.match_rules,
    )


def _decide_anew(occasion: Occasion, thread: Thread, candidates: Sequence[Candidate]) -> Announcement:
    return announce(occasion, thread, thread.facts(), _decide(occasion, thread, candidates), late=True)
