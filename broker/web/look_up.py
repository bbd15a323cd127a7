"""Somebody asks about one person by NHS number: the plans, whom to ring, who looked before; and who hears of it.

A hit and a miss do the same work but for the notice itself, and are audited alike: what an asker learns stands in the
answer, and nowhere else. The transaction's order is that of the consumer: reads, writes, audit last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.announcement import Occasion, Rules, announce_look_up, open_occasion, save_announcements
from broker.domain.care_settings import Notice, Treatment, treat_look_up
from broker.domain.decision import Candidate
from broker.domain.replies import show_plans, summarise_lists, word_look_up
from broker.domain.visibility import Standing, standing_on
from broker.domain.visits import london_day
from broker.keyring import Keyring
from broker.ports import Clock
from broker.storage import accesses, alerts, audit, child_lists, directory, visits
from broker.storage.accesses import Accessed, AccessKind, Author, NewAccess
from broker.storage.audit import Act
from broker.storage.child_lists import index_nhs_number
from broker.storage.database import Database
from broker.storage.directory import Directory
from broker.telemetry import LogEvent, log
from schemas.directory import Site
from schemas.identifiers import NhsNumber, organisation_owner
from schemas.look_up import AccessShown, AuthorityNotified, PlanFound, RecordShown

ACCESSES_SHOWN_MAX: Final = 25
"""As CP-IS shows."""
NOTIFIED_SHOWN_MAX: Final = 10
_DIRECTORY_KEPT: Final = timedelta(seconds=1)


class Asker(msgspec.Struct, frozen=True, kw_only=True):
    """Which system asks, and for whom. ``is_unscheduled`` None: the request does not say."""

    organisation: str
    person: str
    is_unscheduled: bool | None

    @property
    def actor(self) -> str:
        """As the audit names both."""
        return f"{self.organisation}/{self.person}"


class _Question(msgspec.Struct, frozen=True, kw_only=True):
    """One question while its transaction works on it, with the entries that are shown today."""

    occasion: Occasion
    asker: Asker
    site: Site
    nhs_number: NhsNumber
    found: Sequence[Candidate]
    treatment: Treatment

    @property
    def record_number(self) -> NhsNumber:
        """The number under which the person is listed: that which was asked about may have been superseded."""
        return self.found[0].entry.nhs_number if self.found else self.nhs_number


class UnknownSite(Exception):
    """The asking organisation is not in the directory."""


class LookUps:
    """Answers questions about one person, each in one transaction."""

    def __init__(self, database: Database, keyring: Keyring, clock: Clock, rules: Rules) -> None:
        self._database = database
        self._keyring = keyring
        self._clock = clock
        self._rules = rules
        self._directory: tuple[datetime, Directory] | None = None

    async def answer(self, asker: Asker, nhs_number: NhsNumber, write: Callable[[RecordShown], bytes]) -> bytes:
        """The answer as ``write`` puts it, once everything about it is durable. Raises UnknownSite."""
        now = self._clock.now()
        async with self._database.writing() as connection:
            known = await self._load_directory(connection, now)
            site = known.sites.get(asker.organisation)
            if site is None:
                raise UnknownSite
            occasion = open_occasion(self._keyring, known, self._rules, now)
            found = await _find(connection, occasion, nhs_number)
            if {each.authority for each in found} - known.authorities.keys():
                self._directory = None  # imported and listed within the moment for which the directory is kept
                known = await self._load_directory(connection, now)
                occasion = open_occasion(self._keyring, known, self._rules, now)
            treatment = treat_look_up(site, asker.is_unscheduled)
            question = _Question(
                occasion=occasion, asker=asker, site=site, nhs_number=nhs_number, found=found, treatment=treatment
            )
            told, acts = await self._notify(connection, question)
            body = write(_compose(question, *await _load_context(connection, question)))
            index = index_nhs_number(self._keyring, nhs_number)
            looked = Act(
                owner=organisation_owner(site.code),
                actor=asker.actor,
                action="record.looked_up",
                subject=index.hex(),
                reason=treatment.rule,
            )
            await audit.record_acts(connection, [*acts, looked], now)
        for authority in told:
            log(LogEvent.ALERT_RAISED, authority=authority, count=1)
        return body

    async def _notify(self, connection: AsyncConnection, question: _Question) -> tuple[list[str], list[Act]]:
        """Keep the access, and tell the authorities when it counts; returns whom, and what is to be audited."""
        site, occasion = question.site, question.occasion
        if not question.found or question.treatment.notice is Notice.SUPPRESSED:
            return [], []
        author = Author(
            kind=AccessKind.LOOKED_UP,
            organisation=site.code,
            organisation_name=site.name,
            person=question.asker.person,
        )
        access = NewAccess(
            nhs_number=question.record_number, author=author, at=occasion.now, is_unscheduled=question.treatment.is_told
        )
        counted = await accesses.save_accesses(connection, self._keyring, [access])
        told: list[str] = []
        acts: list[Act] = []
        for look_up_id in counted:
            await visits.open_look_up(connection, look_up_id, site.code, occasion.now)
            announcement = announce_look_up(occasion, look_up_id, site, question.found)
            await save_announcements(connection, self._keyring, [announcement], occasion.now)
            told += [alert.alert.authority for alert in announcement.alerts]
            acts += announcement.acts
        return told, acts

    async def _load_directory(self, connection: AsyncConnection, now: datetime) -> Directory:
        """The directory, read anew when it is older than a moment."""
        if self._directory is None or not timedelta(0) <= now - self._directory[0] < _DIRECTORY_KEPT:
            self._directory = (now, await directory.load_directory(connection))
        return self._directory[1]


async def _find(connection: AsyncConnection, occasion: Occasion, nhs_number: NhsNumber) -> list[Candidate]:
    """The entries of the number that are shown today."""
    index = index_nhs_number(occasion.keyring, nhs_number)
    found = await child_lists.find_by_nhs_number(connection, occasion.keyring, [index])
    on, windows = london_day(occasion.now), occasion.rules.windows
    return [each for each in found.get(index, []) if standing_on(each.entry, on, windows) is not Standing.HIDDEN]


async def _load_context(
    connection: AsyncConnection, question: _Question
) -> tuple[list[AuthorityNotified], list[Accessed]]:
    """Whom this organisation's visits and look-ups have told, and who had access; asked of a miss as well."""
    occasion, found = question.occasion, question.found
    notified = await alerts.list_told_of(
        connection,
        organisation_owner(question.site.code),
        [each.entry_id for each in found],
        occasion.now - occasion.rules.look_back,
        rows_max=NOTIFIED_SHOWN_MAX,
    )
    before = await accesses.list_counted(
        connection, occasion.keyring, question.record_number, rows_max=ACCESSES_SHOWN_MAX
    )
    # Of a person who is on no list any more nothing is shown, whatever is still kept.
    return notified, before if found else []


def _compose(question: _Question, notified: Sequence[AuthorityNotified], before: Sequence[Accessed]) -> RecordShown:
    occasion, found = question.occasion, question.found
    known, rules = occasion.directory, occasion.rules
    confirmed = {each.authority: each.confirmed_at for each in known.freshness}
    lists = summarise_lists(known.freshness, question.site, occasion.now, rules.list_stale)
    shown = [(each.authority, each.entry) for each in found]
    plans = show_plans(shown, known.authorities, occasion.now, confirmed, rules.proclaimed_days)
    all_ended = all(plan.has_ended for plan in plans)
    quiet = occasion.match_rules.quiet_when_ended
    is_heard = any(each.authority not in quiet or not plan.has_ended for each, plan in zip(found, plans, strict=True))
    return RecordShown(
        record_id=str(UUID(occasion.keyring.derive_id("record", question.nhs_number), version=5)),
        nhs_number=question.nhs_number,
        asked_at=occasion.now,
        plans=tuple(
            PlanFound(plan=plan, authority=each.authority, list_confirmed_at=confirmed.get(each.authority))
            for each, plan in zip(found, plans, strict=True)
        ),
        notified=tuple(notified),
        accesses=tuple(
            AccessShown(
                at=each.at,
                organisation=each.author.organisation,
                organisation_name=each.author.organisation_name,
                person=each.author.person,
            )
            for each in before
        ),
        lists=lists,
        wording=word_look_up(
            [plan.plan_type for plan in plans],
            lists,
            occasion.now,
            all_ended=all_ended,
            is_told=question.treatment.is_told and is_heard,
        ),
    )
