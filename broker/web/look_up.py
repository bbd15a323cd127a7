"""Somebody asks about one person by NHS number: the plans, whom to ring, who looked before; and who hears of it.

A hit and a miss do the same work but for the notice itself, and are audited alike: what an asker learns stands in the
answer, and nowhere else. The transaction's order is that of the consumer: reads, writes, audit last.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.announcement import Announcement, Occasion, Rules, announce_look_up, open_occasion
from broker.domain.care_settings import Notice, Treatment, treat_look_up
from broker.domain.decision import Candidate
from broker.domain.replies import show_plans, summarise_lists, word_look_up
from broker.domain.visibility import Standing, standing_on
from broker.domain.visits import london_day
from broker.keyring import Keyring
from broker.ports import Clock
from broker.storage import accesses, alerts, child_lists, directory, questions
from broker.storage.accesses import Accessed, AccessKind, Author, History, NewAccess
from broker.storage.alerts import ToldOf
from broker.storage.audit import Act
from broker.storage.child_lists import index_nhs_number
from broker.storage.database import Database, is_database_outage
from broker.storage.directory import Directory
from broker.storage.questions import Followed
from broker.telemetry import LogEvent, innermost_line, log
from schemas.directory import Site
from schemas.identifiers import NhsNumber, organisation_owner
from schemas.look_up import AccessShown, AuthorityNotified, PlanFound, RecordShown

ACCESSES_SHOWN_MAX: Final = 25
"""As CP-IS shows."""
NOTIFIED_SHOWN_MAX: Final = 10
TOGETHER_MAX: Final = 32
"""Questions of one transaction."""
_DIRECTORY_KEPT: Final = timedelta(seconds=1)
_DIRECTORY_OLD: Final = timedelta(seconds=5)


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
    def organisation(self) -> str:
        """The owner of what is written of it."""
        return organisation_owner(self.site.code)

    @property
    def record_number(self) -> NhsNumber:
        """The number under which the person is listed: that which was asked about may have been superseded."""
        return self.found[0].entry.nhs_number if self.found else self.nhs_number

    @property
    def access(self) -> NewAccess | None:
        """The access that is kept; none for a miss, or where a site keeps to itself who is looked up."""
        if not self.found or self.treatment.notice is Notice.SUPPRESSED:
            return None
        author = Author(
            kind=AccessKind.LOOKED_UP,
            organisation=self.site.code,
            organisation_name=self.site.name,
            person=self.asker.person,
        )
        return NewAccess(
            nhs_number=self.record_number,
            author=author,
            at=self.occasion.now,
            is_unscheduled=self.treatment.is_told,
            is_withheld=any(each.is_restricted for each in self.found),
        )

    @property
    def act(self) -> Act:
        """As it is audited."""
        return Act(
            owner=self.organisation,
            actor=self.asker.actor,
            action="record.looked_up",
            subject=index_nhs_number(self.occasion.keyring, self.nhs_number).hex(),
            reason=self.treatment.rule,
        )


class _Told(msgspec.Struct, frozen=True, kw_only=True):
    """The look-up of a question that counts, and what follows from it."""

    question: _Question
    access: NewAccess
    announcement: Announcement

    def alerts(self) -> Iterator[ToldOf]:
        """The alerts, as they are found later."""
        for new in self.announcement.alerts:
            for entry_id, _ in new.entries:
                yield ToldOf(
                    organisation=self.question.organisation,
                    entry_id=entry_id,
                    alert_id=new.alert.alert_id,
                    authority=new.alert.authority,
                    told_at=new.alert.raised_at,
                    acknowledged_at=None,
                    is_look_up=True,
                )


class _Context(msgspec.Struct, frozen=True, kw_only=True):
    """What else is asked of the database, for listed and unlisted people alike."""

    history: History
    told: Sequence[ToldOf]

    def notified(self, question: _Question, new: Sequence[_Told]) -> list[AuthorityNotified]:
        """Whom this organisation's visits and look-ups have told of the person, newest first."""
        entries, authorities = {each.entry_id for each in question.found}, question.occasion.directory.authorities
        known = [*(alert for each in new for alert in each.alerts()), *self.told]
        own = {
            each.alert_id: AuthorityNotified(
                authority_name=authorities[each.authority].name,
                told_at=each.told_at,
                acknowledged_at=each.acknowledged_at,
                is_look_up=each.is_look_up,
            )
            for each in known
            if each.organisation == question.organisation and each.entry_id in entries
        }
        return list(own.values())[:NOTIFIED_SHOWN_MAX]

    def accesses(self, question: _Question, new: Sequence[_Told]) -> list[Accessed]:
        """Who had access to the record, newest first; of a person who is on no list any more nothing is shown.

        Of a restricted person an organisation is shown its own accesses alone, as of somebody met nowhere else; what
        was withheld while they were restricted stays so.
        """
        if not question.found:
            return []
        number, keyring = question.record_number, question.occasion.keyring
        own = [each.access for each in new if each.access.nhs_number == number]
        asked_by = question.site.code
        before = self.history.show(
            keyring, index_nhs_number(keyring, number), own, asked_by=asked_by, rows_max=ACCESSES_SHOWN_MAX
        )
        if any(each.is_restricted for each in question.found):
            return [each for each in before if each.author.organisation == asked_by]
        return before


class UnknownSite(Exception):
    """The asking organisation is not in the directory."""


class _Asked(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """A question that waits for its answer."""

    asker: Asker
    nhs_number: NhsNumber
    write: Callable[[RecordShown], bytes]
    answered: asyncio.Future[bytes]

    def settle(self, answer: bytes | Exception) -> None:
        """Give the answer to whoever still waits for it."""
        if self.answered.done():
            return
        if isinstance(answer, Exception):
            self.answered.set_exception(answer)
        else:
            self.answered.set_result(answer)


class LookUps:
    """Answers questions about one person. Those that wait at the same moment share one transaction.

    What is asked of the database for a transaction is the same for people who are listed and who are not.
    """

    def __init__(self, database: Database, keyring: Keyring, clock: Clock, rules: Rules) -> None:
        self._database = database
        self._keyring = keyring
        self._clock = clock
        self._rules = rules
        self._directory: tuple[datetime, Directory] | None = None
        self._waiting: deque[_Asked] = deque()
        self._work: asyncio.Task[None] | None = None
        self._renewal: asyncio.Task[None] | None = None

    async def answer(self, asker: Asker, nhs_number: NhsNumber, write: Callable[[RecordShown], bytes]) -> bytes:
        """The answer as ``write`` puts it, once everything about it is durable. Raises UnknownSite."""
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Asked(asker=asker, nhs_number=nhs_number, write=write, answered=answered))
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._answer_waiting())
        return await answered

    async def _answer_waiting(self) -> None:
        """Answer together what waits together, until nothing waits."""
        while self._waiting:
            asked = [self._waiting.popleft() for _ in range(min(len(self._waiting), TOGETHER_MAX))]
            for each, answer in zip(asked, await self._try_together(asked), strict=True):
                each.settle(answer)

    async def _try_together(self, asked: Sequence[_Asked]) -> Sequence[bytes | Exception]:
        """An answer or an error for each. One that fails does not take the others with it, as far as it can be."""
        try:
            return await self._answer_together(asked)
        except Exception as error:
            if len(asked) == 1 or is_database_outage(error):
                return [error] * len(asked)
        return [(await self._try_together([each]))[0] for each in asked]

    async def _answer_together(self, asked: Sequence[_Asked]) -> list[bytes | Exception]:
        now = self._clock.now()
        answered = None if self._database.is_sqlite else await self._answer_at_once(asked, now)
        answers, told = answered or await self._answer_under_locks(asked, now)
        for alert in (alert for each in told for alert in each.announcement.alerts):
            log(LogEvent.ALERT_RAISED, authority=alert.alert.authority, count=1)
        return answers

    async def _answer_at_once(self, asked: Sequence[_Asked], now: datetime) -> _Answered | None:
        """Read and write in one round trip each; None when what was read has changed before it was written."""
        wanted = questions.Asked(
            indexes=self._index(asked),
            organisations=sorted({organisation_owner(each.asker.organisation) for each in asked}),
            counted_since=now - accesses.COUNTED_ONCE_WITHIN,
            told_since=now - self._rules.look_back,
            accesses_max=ACCESSES_SHOWN_MAX,
        )
        async with self._database.stating() as connection:
            known = await questions.load_known(connection, self._keyring, wanted)
            occasion = await self._open_occasion(connection, known.found, now)
            opened = [_open_question(occasion, one, known.found) for one in asked]
            asking = [question for question in opened if question is not None]
            new = _list_accesses(asking)
            rows, counted = accesses.plan_accesses(self._keyring, list(new), known.history.counted())
            told = _announce(new, counted)
            context = _Context(history=known.history, told=known.told)
            answers = _write_answers(asked, opened, context, told)
            followed = _follow(asking, rows, counted, told, now)
            if asking and not await questions.write_followed(connection, self._keyring, known.heads, followed):
                return None
        return answers, told

    async def _answer_under_locks(self, asked: Sequence[_Asked], now: datetime) -> _Answered:
        async with self._database.writing_briefly() as connection:
            found = await child_lists.find_listed(connection, self._keyring, self._index(asked))
            occasion = await self._open_occasion(connection, found, now)
            opened = [_open_question(occasion, one, found) for one in asked]
            asking = [question for question in opened if question is not None]
            context = await _load_context(connection, occasion, asking)
            new = _list_accesses(asking)
            counted = await accesses.save_accesses(connection, self._keyring, list(new), context.history)
            told = _announce(new, counted)
            answers = _write_answers(asked, opened, context, told)
            await questions.save_followed(connection, self._keyring, _follow(asking, (), counted, told, now))
        return answers, told

    def _index(self, asked: Sequence[_Asked]) -> list[bytes]:
        return sorted({index_nhs_number(self._keyring, each.nhs_number) for each in asked})

    async def _open_occasion(
        self, connection: AsyncConnection, found: Mapping[bytes, Sequence[Candidate]], now: datetime
    ) -> Occasion:
        """The occasion, with a directory that knows the authorities of the entries."""
        known = await self._load_directory(connection, now)
        if {each.authority for entries in found.values() for each in entries} - known.authorities.keys():
            self._directory = None  # imported and listed within the moment for which the directory is kept
            known = await self._load_directory(connection, now)
        return open_occasion(self._keyring, known, self._rules, now)

    async def _load_directory(self, connection: AsyncConnection, now: datetime) -> Directory:
        """The directory: read anew beside the questions when it is older than a moment, before them when it is old."""
        if self._directory is None or not timedelta(0) <= now - self._directory[0] < _DIRECTORY_OLD:
            self._directory = (now, await directory.load_directory(connection))
        elif now - self._directory[0] >= _DIRECTORY_KEPT and (self._renewal is None or self._renewal.done()):
            self._renewal = asyncio.create_task(self._renew_directory(now))
        return self._directory[1]

    async def _renew_directory(self, now: datetime) -> None:
        try:
            async with self._database.reading() as connection:
                self._directory = (now, await directory.load_directory(connection))
        except Exception as error:
            # The one there is serves until it is old; then the questions themselves meet what is wrong.
            log(LogEvent.CRASHED, part="look_up", error=type(error).__name__, at=innermost_line(error.__traceback__))


_Answered = tuple[list[bytes | Exception], Sequence[_Told]]
"""The answers, and whom they were told to."""


def _list_accesses(asking: Sequence[_Question]) -> dict[NewAccess, _Question]:
    """The accesses to be kept, with their questions."""
    return {access: question for question in asking if (access := question.access) is not None}


def _announce(new: Mapping[NewAccess, _Question], counted: Mapping[str, NewAccess]) -> list[_Told]:
    told = []
    for look_up_id, access in counted.items():
        question = new[access]
        announcement = announce_look_up(question.occasion, look_up_id, question.site, question.found)
        told.append(_Told(question=question, access=access, announcement=announcement))
    return told


def _follow(
    asking: Sequence[_Question],
    rows: Sequence[Mapping[str, Any]],
    counted: Mapping[str, NewAccess],
    told: Sequence[_Told],
    now: datetime,
) -> Followed:
    return Followed(
        accesses=rows,
        counted=counted,
        alerts=[alert for each in told for alert in each.announcement.alerts],
        resting_on=[one for each in told for one in each.question.found],
        deliveries=[sent for each in told for sent in each.announcement.deliveries],
        acts=[*(act for each in told for act in each.announcement.acts), *(question.act for question in asking)],
        at=now,
    )


def _write_answers(
    asked: Sequence[_Asked], opened: Sequence[_Question | None], context: _Context, told: Sequence[_Told]
) -> list[bytes | Exception]:
    return [
        UnknownSite()
        if question is None
        else one.write(_compose(question, context.notified(question, told), context.accesses(question, told)))
        for one, question in zip(asked, opened, strict=True)
    ]


def _open_question(occasion: Occasion, asked: _Asked, found: Mapping[bytes, Sequence[Candidate]]) -> _Question | None:
    """The question with the entries that are shown today; None when nobody knows who asks."""
    site = occasion.directory.sites.get(asked.asker.organisation)
    if site is None:
        return None
    on, windows = london_day(occasion.now), occasion.rules.windows
    index = index_nhs_number(occasion.keyring, asked.nhs_number)
    return _Question(
        occasion=occasion,
        asker=asked.asker,
        site=site,
        nhs_number=asked.nhs_number,
        found=[each for each in found.get(index, ()) if standing_on(each.entry, on, windows) is not Standing.HIDDEN],
        treatment=treat_look_up(site, asked.asker.is_unscheduled),
    )


async def _load_context(connection: AsyncConnection, occasion: Occasion, asking: Sequence[_Question]) -> _Context:
    records = {index_nhs_number(occasion.keyring, question.record_number) for question in asking}
    since = occasion.now - accesses.COUNTED_ONCE_WITHIN
    history = await accesses.load_history(connection, sorted(records), since, rows_max=ACCESSES_SHOWN_MAX)
    told = await alerts.list_told_of(
        connection,
        sorted({question.organisation for question in asking}),
        sorted({each.entry_id for question in asking for each in question.found}),
        occasion.now - occasion.rules.look_back,
    )
    return _Context(history=history, told=told)


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
