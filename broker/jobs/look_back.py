"""Look-back: a new or changed list entry is matched against the visits that came before it."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from broker.announcement import Announcement, Occasion, Rules, announce, save_announcements
from broker.domain.decision import decide
from broker.domain.matching import candidate_blocks
from broker.domain.visits import london_day
from broker.keyring import Keyring
from broker.storage import audit, child_lists, directory, jobs, visits
from broker.storage.child_lists import index_block, index_nhs_number
from broker.storage.database import Database
from broker.storage.jobs import ClaimedJob


async def look_back(database: Database, keyring: Keyring, rules: Rules, job: ClaimedJob, now: datetime) -> int:
    """Match one entry against recent visits; what it finds alerts late, once. Returns the alerts raised."""
    async with database.writing() as connection:
        told = await _match_entry(connection, keyring, rules, job.subject, now)
        await save_announcements(connection, keyring, told, now)
        await jobs.finish_job(connection, job, now)
        await audit.record_acts(connection, [act for each in told for act in each.acts], now)
    return sum(len(each.alerts) for each in told)


async def _match_entry(
    connection: AsyncConnection, keyring: Keyring, rules: Rules, entry_id: str, now: datetime
) -> list[Announcement]:
    candidates = await child_lists.load_entries(connection, keyring, [entry_id])
    if not candidates:
        return []
    entry = candidates[0].entry
    number = index_nhs_number(keyring, entry.nhs_number)
    # The alert lists every plan, so the person's other entries are looked at too.
    others = (await child_lists.find_by_nhs_number(connection, keyring, [number])).get(number, [])
    candidates += [candidate for candidate in others if candidate.entry_id != entry_id]
    visit_ids = await visits.find_by_person(
        connection,
        nhs_index=number,
        blocks=[index_block(keyring, block) for block in candidate_blocks(entry.birth_date)],
        since=now - rules.look_back,
    )
    known = await directory.load_directory(connection)
    occasion = Occasion(now=now, directory=known, rules=rules, keyring=keyring)
    told = []
    for thread in (await visits.load_threads(connection, keyring, visit_ids)).values():
        if not thread.messages:
            continue
        facts = thread.facts()
        decision = decide(
            facts,
            candidates,
            thread.known(is_new=False),
            site=known.sites.get(facts.sender),
            on=london_day(now),
        )
        told.append(announce(occasion, thread, facts, decision, late=True))
    return told
