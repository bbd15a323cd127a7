"""By night: every visit that is kept is matched again with today's lists, and what should have alerted is found."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from broker.announcement import Announcement, Occasion, Rules, announce, open_occasion, save_announcements
from broker.domain.decision import Candidate
from broker.domain.matching import Match, match_child
from broker.domain.visibility import Standing, standing_on
from broker.domain.visits import london_day
from broker.hearing import decide_visit
from broker.keyring import Keyring
from broker.patterns import name_patterns
from broker.storage import audit, child_lists, directory, jobs, list_versions, missed, visits
from broker.storage.audit import Act
from broker.storage.database import Database
from broker.storage.list_versions import EntryVersion
from broker.storage.missed import Missed, derive_missed_id
from broker.storage.tables import MissedCause
from broker.storage.visits import Thread
from broker.telemetry import LogEvent, log
from schemas.attendance import Attendance
from schemas.identifiers import authority_owner

VISITS_MAX: Final = 50
"""Visits in one transaction: others wait for it."""


async def find_missed(
    database: Database, keyring: Keyring, rules: Rules, after: str, now: datetime
) -> tuple[str | None, int]:
    """Match the next visits after one (by id) again. Returns the last of them, None at the end, and what was found.

    What is within the look-back alerts late; what is older is only listed. Entries that a look-back has not taken up
    yet are left to it.
    """
    async with database.writing() as connection:
        heard = await visits.list_kept(connection, after=after, rows_max=VISITS_MAX)
        occasion = open_occasion(keyring, await directory.load_directory(connection), rules, now)
        waiting = await jobs.list_waiting(connection, jobs.LOOK_BACK)
        told: list[Announcement] = []
        found: list[Missed] = []
        for thread in (await visits.load_known_threads(connection, keyring, heard)).values():
            if thread.is_here:
                is_recent = heard[thread.visit_id] >= now - rules.look_back
                found += await _match_again(connection, occasion, thread, waiting, told if is_recent else None)
        known = await missed.save_missed(connection, found)
        await missed.close_alerted(connection, known)
        await name_patterns(connection, occasion, told)
        await save_announcements(connection, keyring, told, now)
        acts = [
            Act(
                owner=authority_owner(each.authority),
                actor="broker",
                action="alert.missed",
                subject=each.id,
                reason=each.cause.value,
            )
            for each in found
            if each.id in known
        ]
        await audit.record_acts(connection, [*(act for one in told for act in one.acts), *acts], now)
    for act in acts:
        log(LogEvent.ALERT_MISSED, owner=act.owner, cause=act.reason)
    return (max(heard) if len(heard) == VISITS_MAX else None), len(acts)


async def _match_again(
    connection: AsyncConnection,
    occasion: Occasion,
    thread: Thread,
    waiting: set[str],
    told: list[Announcement] | None,
) -> list[Missed]:
    facts = thread.facts()
    listed = await child_lists.find_candidates(connection, occasion.keyring, facts)
    candidates = [each for each in listed if each.entry_id not in waiting]
    should = decide_visit(occasion, thread, candidates, on=london_day(thread.opened_at))
    if not should.to_alert:
        return []
    history = await list_versions.load_history(
        connection, occasion.keyring, [candidate.entry_id for candidate, _ in should.matched]
    )
    raised: dict[str, str] = {}
    if told is not None:
        late = announce(occasion, thread, facts, decide_visit(occasion, thread, candidates, on=occasion.on), late=True)
        told.append(late)
        raised = {each.alert.authority: each.alert.alert_id for each in late.alerts}
    found = []
    for authority in should.to_alert:
        candidate = next(each for each, _ in should.matched if each.authority == authority)
        found.append(
            Missed(
                id=derive_missed_id(occasion.keyring, thread.visit_id, authority),
                authority=authority,
                visit_id=thread.visit_id,
                entry_id=candidate.entry_id,
                cause=find_cause(occasion, thread, candidate, history.get(candidate.entry_id, [])),
                visited_at=thread.opened_at,
                found_at=occasion.now,
                alert_id=raised.get(authority),
            )
        )
    return found


def find_cause(
    occasion: Occasion, thread: Thread, candidate: Candidate, history: Sequence[EntryVersion]
) -> MissedCause:
    """Why nobody was alerted when the person came: what the list said then, and what the first message said."""
    came = thread.opened_at
    then = next(
        (
            each.entry
            for each in history
            if each.known_from <= came and (each.known_until is None or came < each.known_until)
        ),
        None,
    )
    if then is None:
        return MissedCause.LISTED_AFTER
    if then.nhs_number != candidate.entry.nhs_number:
        return MissedCause.LIST_NUMBER_CORRECTED
    is_hidden = standing_on(then, london_day(came), occasion.match_rules.windows) is Standing.HIDDEN
    if is_hidden or not isinstance(match_child(thread.facts(), then), Match):
        return MissedCause.LIST_ROW_CORRECTED
    if not isinstance(match_child(_first_said(thread), then), Match):
        return MissedCause.VISIT_CORRECTED
    return MissedCause.UNEXPLAINED


def _first_said(thread: Thread) -> Attendance:
    said = (heard for _, heard in thread.messages)
    return min(said, key=lambda each: each.event_at or each.message_at or thread.opened_at)
