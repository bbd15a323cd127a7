"""Heart 1: from attendance messages to alerts and replies. One transaction per batch.

Order inside the transaction: handled-markers, then visits and lists, then everything written with the offset, audit
last. The markers come before the lists are read: a list change that this batch cannot see will look back for it
(ADR 0005).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.announcement import Announcement, Occasion, Rules, open_occasion, save_announcements
from broker.consumers.loop import Batch
from broker.consumers.placing import place_messages
from broker.consumers.reading import ReadMessage, enclose_parts, leave_unread, part_records, read_record, said_by
from broker.consumers.replaying import mark_messages, settle_replays
from broker.domain.course import begins_day
from broker.domain.decision import Candidate, Decision
from broker.domain.kinship import Kinship, Patient, former_of, own_patients, patient_of, relates
from broker.domain.matching import visitor_blocks
from broker.domain.visits import is_of_person, london_day, message_order, moves_visit, visit_slot
from broker.hearing import Before, follow, join_visits, remember
from broker.keyring import Keyring
from broker.patterns import name_patterns
from broker.ports import Clock, Log
from broker.storage import audit, child_lists, directory, handled, persons, quarantine, test_feeds, visits
from broker.storage.audit import Act
from broker.storage.child_lists import index_block, index_nhs_number
from broker.storage.database import Database
from broker.storage.directory import Directory
from broker.storage.persons import index_patient
from broker.storage.quarantine import NewQuarantined
from broker.storage.visits import Thread, derive_next_visit_id
from broker.telemetry import MESSAGES_HANDLED, LogEvent, log
from schemas.attendance import Attendance
from schemas.identifiers import BROKER_OWNER, NhsNumber
from schemas.record import Partition, PositionOutcome

PARTS_AT_ONCE_MAX: Final = 200
VISITS_UNDER_ONE_NUMBER_MAX: Final = 50
_DIRECTORY_KEPT: Final = timedelta(seconds=1)
_EVER: Final = datetime.min.replace(tzinfo=UTC)


class AttendanceConsumer:
    """Handles batches of attendance messages."""

    def __init__(self, database: Database, log_: Log, keyring: Keyring, clock: Clock, rules: Rules) -> None:
        """``log_`` is where the messages of a batch that stands in one record are put, each on its own."""
        self._database = database
        self._log = log_
        self._keyring = keyring
        self._clock = clock
        self._rules = rules
        self._directory: tuple[datetime, Directory] | None = None
        self._taken_apart: set[tuple[str, Partition, int]] = set()

    async def handle(self, batch: Batch) -> int:
        """Handle the batch in one transaction, return how many; raises Fenced when the partition is another's."""
        messages = [read_record(self._keyring, record) for record in batch.records]
        now = self._clock.now()
        await self._append_parts(batch, messages, now)
        async with self._database.writing() as connection:
            first = await mark_messages(connection, self._keyring, messages, now)
            await _ensure_owners(connection, messages)
            told = await self._decide(connection, first, now)
            await _note_test_feeds(connection, first, now)
            acts = [act for each in told for act in each.acts]
            await self._settle(connection, batch, messages, acts, now)
        self._taken_apart.clear()
        _report(batch, messages, told)
        return len(messages)

    async def _append_parts(self, batch: Batch, messages: Sequence[ReadMessage], now: datetime) -> None:
        """Put each message of an HL7 v2 batch on the log by itself, before the batch counts as handled.

        Read again after a crash, it is put there again: the handled-markers make one of it. While the database is
        away the same batch is tried again and again, and must not be put there each time.
        """
        for message in messages:
            place = (batch.log_id, batch.partition, message.record.offset)
            if not message.parts or place in self._taken_apart:
                continue
            parts = list(enclose_parts(self._keyring, message, now))
            for start in range(0, len(parts), PARTS_AT_ONCE_MAX):
                appends = (
                    self._log.append(batch.partition.topic, key=part.key, value=part.value, headers=part.headers)
                    for part in parts[start : start + PARTS_AT_ONCE_MAX]
                )
                await asyncio.gather(*appends)
            self._taken_apart.add(place)

    async def quarantine(self, batch: Batch, reason: str) -> int:
        """Keep the one record of the batch for a person, unread, and move the offset past it.

        Reading it may be what ended the process. Sent again, it is known by its bytes and not kept twice.
        """
        message = leave_unread(self._keyring, batch.records[0], reason)
        now = self._clock.now()
        async with self._database.writing() as connection:
            await mark_messages(connection, self._keyring, [message], now, recognises=False)
            await _ensure_owners(connection, [message])
            await self._settle(connection, batch, [message], [], now)
        _report(batch, [message], [])
        return 1

    async def undo_merge(self, merge: bytes, *, by: str, reason: str) -> bool:
        """A person takes a merge back, by its marker: as if the department had parted its two records just now (A37).

        False when there is no such merge, or it was taken back before. What follows of it is withdrawn and decided anew
        in the same transaction.
        """
        now = self._clock.now()
        async with self._database.writing() as connection:
            said = await persons.load_merge(connection, self._keyring, merge)
            if said is None:
                return False
            message = part_records(self._keyring, said, merge, now)
            told = await self._decide(connection, [message], now, since=_EVER)
            if message.outcome is PositionOutcome.QUARANTINED:
                raise RuntimeError("parting two records could not be decided")
            act = Act(
                owner=message.owner, actor=by, action="merge.undone", subject=merge.hex(), reason=reason or "not given"
            )
            await audit.record_acts(connection, [*(one for each in told for one in each.acts), act], now)
        return True

    async def _decide(
        self,
        connection: AsyncConnection,
        messages: Sequence[ReadMessage],
        now: datetime,
        *,
        since: datetime | None = None,
    ) -> list[Announcement]:
        """Decide about what is understood. What joins patients or parts them is taken up alone, in its turn.

        News of a person reaches visits that were heard of ``since``, by default those of the look-back time.
        """
        since = now - self._rules.look_back if since is None else since
        understood = [message for message in messages if message.said is not None]
        for message in understood:
            message.patients = tuple(index_patient(self._keyring, one) for one in _named_by(message))
        await persons.lock_patients(connection, {one for message in understood for one in message.patients})
        told: list[Announcement] = []
        for run in _split_at_merges(understood):
            told += await self._decide_run(connection, run, now, since)
        return told

    async def _decide_run(
        self, connection: AsyncConnection, messages: Sequence[ReadMessage], now: datetime, since: datetime
    ) -> list[Announcement]:
        known = await self._load_directory(connection, now)
        patients = {one for message in messages for one in message.patients}
        kinship = await persons.load_kinship(connection, self._keyring, patients, since)
        news = [message for message in messages if _is_news(message)]
        placed = [each for each in messages if each.visit_id is not None or not is_of_person(said_by(each))]
        await place_messages(connection, self._keyring, placed, kinship, known, quiet=self._rules.quiet)
        also = await self._find_visits(connection, news, kinship, since)
        threads = await self._load_threads(connection, placed, known, now, also)
        heard = _Heard(kinship, threads)
        finder = await self._find_candidates(connection, messages, heard)
        if finder.authorities() - known.authorities.keys():
            # Imported and listed within the moment for which the directory is kept.
            self._directory = None
            known = await self._load_directory(connection, now)
        occasion = open_occasion(self._keyring, known, self._rules, now)
        told = [each for message in messages for each in self._decide_one(occasion, message, heard, finder)]
        await visits.save_threads(connection, self._keyring, list(threads.values()), now)
        kept = {
            message.marker: said_by(message) for message in news if message.outcome is not PositionOutcome.QUARANTINED
        }
        await persons.save_person_messages(connection, self._keyring, kept, now)
        await name_patterns(connection, occasion, told)
        await save_announcements(connection, self._keyring, told, now)
        return told

    def _decide_one(
        self, occasion: Occasion, message: ReadMessage, heard: _Heard, finder: _Finder
    ) -> list[Announcement]:
        concerned = heard.threads_of(message)
        snapshots = [(thread, thread.snapshot()) for thread in concerned]
        told: list[Announcement] = []
        try:
            decisions: list[tuple[str, Decision]] = []
            for thread, before in heard.take_up(occasion, message, concerned, told):
                if not thread.is_here:
                    continue
                is_late = message.replaying is not None
                decision, following = follow(
                    occasion, thread, before, said_by(message), finder.candidates, is_late=is_late
                )
                decisions.append((thread.visit_id, decision))
                told += following
        except Exception as error:
            # One bad message costs one message: it goes to a person, the rest of the batch goes on.
            for thread, snapshot in snapshots:
                thread.restore(snapshot)
            message.outcome, message.reason = PositionOutcome.QUARANTINED, "could_not_be_decided"
            message.detail = type(error).__name__
            return []
        _note_outcome(message, decisions)
        return told

    async def _find_visits(
        self, connection: AsyncConnection, news: Sequence[ReadMessage], kinship: Kinship, since: datetime
    ) -> list[str]:
        """The visits of persons of whom something is said, and of those who are joined to them or parted from them."""
        named = {one for message in news for patient in _named_by(message) for one in kinship.family(patient)}
        return await visits.find_by_patients(connection, [index_patient(self._keyring, one) for one in named], since)

    async def _load_threads(
        self,
        connection: AsyncConnection,
        messages: Sequence[ReadMessage],
        known: Directory,
        now: datetime,
        also: Sequence[str],
    ) -> dict[str, Thread]:
        """The visits of messages. What is said under the number of a visit at rest may be of one that began since."""
        threads: dict[str, Thread] = {}
        waiting = messages
        for _ in range(VISITS_UNDER_ONE_NUMBER_MAX):
            first_said: dict[str, Attendance] = {}
            for message in waiting:
                assert message.visit_id is not None and message.said is not None
                first_said.setdefault(message.visit_id, message.said)
                if message.former_visit_id is not None:
                    first_said.setdefault(message.former_visit_id, message.said)
            threads |= await visits.load_threads(connection, self._keyring, first_said, now, also=also)
            for thread in threads.values():
                site = known.sites.get(thread.sender)
                thread.registers_by = site.registers_by if site is not None else ()
            begun: dict[str, str] = {}
            waiting, also = self._move_on(waiting, threads, begun), ()
            if not waiting:
                break
            await visits.note_continued(connection, begun)
        return threads

    def _move_on(
        self, messages: Sequence[ReadMessage], threads: Mapping[str, Thread], begun: dict[str, str]
    ) -> list[ReadMessage]:
        """Give messages that came after a visit had come to rest the one that began since; returns them.

        ``begun`` takes up each visit after which another begins only now, and the other's id.
        """
        moved: list[ReadMessage] = []
        for message in messages:
            thread = threads[message.visit_id or ""]
            if message.replaying is None and thread.is_of_another(said_by(message)):
                if thread.continued_as is None:
                    thread.continued_as = derive_next_visit_id(self._keyring, thread.visit_id)
                    begun[thread.visit_id] = thread.continued_as
                message.visit_id = thread.continued_as
                moved.append(message)
        return moved

    async def _find_candidates(
        self, connection: AsyncConnection, messages: Sequence[ReadMessage], heard: _Heard
    ) -> _Finder:
        said = heard.everything_said(messages)
        known = {
            number
            for of_visit in said
            for each in of_visit
            for number in (each.nhs_number, each.mother_nhs_number)
            if number
        }
        numbers = {number: index_nhs_number(self._keyring, number) for number in known}
        unnumbered = [each for each in said if not all(one.nhs_number for one in each)]
        wanted = {block for each in unnumbered for block in visitor_blocks(each)}
        blocks = {block: index_block(self._keyring, block) for block in wanted}
        by_number = await child_lists.find_by_nhs_number(connection, self._keyring, numbers.values())
        by_block = await child_lists.find_by_block(connection, self._keyring, blocks.values())
        return _Finder(
            by_number={number: by_number.get(index, []) for number, index in numbers.items()},
            by_block={block: by_block.get(index, []) for block, index in blocks.items()},
        )

    async def _load_directory(self, connection: AsyncConnection, now: datetime) -> Directory:
        """The directory, read anew when it is older than a moment."""
        if self._directory is None or not timedelta(0) <= now - self._directory[0] < _DIRECTORY_KEPT:
            self._directory = (now, await directory.load_directory(connection))
        return self._directory[1]

    async def _settle(
        self,
        connection: AsyncConnection,
        batch: Batch,
        messages: Sequence[ReadMessage],
        acts: Sequence[Act],
        now: datetime,
    ) -> None:
        """Move the offset or be fenced, keep what could not be handled, write what became of each; audit last."""
        await batch.move_offset(connection, now)
        kept = [
            self._keep(batch, message, now) for message in messages if message.outcome is PositionOutcome.QUARANTINED
        ]
        await quarantine.save_quarantined(connection, self._keyring, kept)
        replayed = await settle_replays(connection, messages, now)
        await handled.settle_positions(connection, [_position_row(batch, message, now) for message in messages])
        found = [
            Act(owner=BROKER_OWNER, actor="broker", action="message.quarantined", subject=message.marker.hex())
            for message in messages
            if message.outcome is PositionOutcome.QUARANTINED
        ]
        await audit.record_acts(connection, [*acts, *found, *replayed], now)

    def _keep(self, batch: Batch, message: ReadMessage, now: datetime) -> NewQuarantined:
        origin = message.replaying.origin if message.replaying is not None else None
        return NewQuarantined(
            partition=batch.partition if origin is None else origin.partition,
            log_id=batch.log_id if origin is None else origin.log_id,
            offset=message.record.offset if origin is None else origin.offset,
            reason=message.reason,
            detail=message.detail,
            body=message.body,
            kept_at=now,
            due_by=now + self._rules.escalation,
            sender=message.sender,
        )


class _Finder(msgspec.Struct, frozen=True, kw_only=True):
    """The list entries that may concern the people of one batch."""

    by_number: dict[NhsNumber, list[Candidate]]
    by_block: dict[str, list[Candidate]]

    def authorities(self) -> set[str]:
        """Whose entries they are."""
        return {each.authority for found in (self.by_number, self.by_block) for row in found.values() for each in row}

    def candidates(self, facts: Attendance) -> list[Candidate]:
        """Entries of the NHS number, or without one those of a block, each once; and the mother's."""
        mothers = self.by_number[facts.mother_nhs_number] if facts.mother_nhs_number else []
        if facts.nhs_number:
            return [*self.by_number[facts.nhs_number], *mothers]
        blocks = visitor_blocks([facts])
        found = {each.entry_id: each for block in blocks for each in self.by_block[block]}
        return list((found | {each.entry_id: each for each in mothers}).values())


class _Heard:
    """The visits of a run, and what is said of their patients."""

    def __init__(self, kinship: Kinship, threads: Mapping[str, Thread]) -> None:
        self.kinship = kinship
        self._threads = dict(threads)
        self._of: dict[Patient, dict[str, Thread]] = {}
        for thread in threads.values():
            for patient in own_patients(thread.messages):
                self._of.setdefault(patient, {})[thread.visit_id] = thread

    def everything_said(self, messages: Sequence[ReadMessage]) -> list[list[Attendance]]:
        """What is said of each visit, in this run or before."""
        said = {visit_id: [heard for _, heard in thread.messages] for visit_id, thread in self._threads.items()}
        of_persons: dict[Patient | None, list[Attendance]] = {}
        for message in messages:
            if message.visit_id is not None:
                said[message.visit_id].append(said_by(message))
            else:
                of_persons.setdefault(patient_of(said_by(message)), []).append(said_by(message))
        for of_visit in said.values():
            patients = {found for each in of_visit if (found := patient_of(each)) is not None}
            of_visit.extend(self.kinship.news_of(patients).values())
            for patient in self.kinship.reach(patients):
                of_visit.extend(of_persons.get(patient, ()))
        if any(_is_alone(message) for message in messages):
            # Visits may become one: whoever each of them may be.
            every = [*said.values(), *of_persons.values(), self.kinship.everything_said()]
            return [[each for one in every for each in one]]
        return list(said.values())

    def threads_of(self, message: ReadMessage) -> list[Thread]:
        """The visits that a message concerns: its own, or of a person all those of theirs."""
        said = said_by(message)
        own = self._threads.get(message.visit_id) if message.visit_id is not None else None
        if own is not None and message.former_visit_id is not None:
            found = {each.visit_id: each for each in (own, self._threads[message.former_visit_id])}
        elif relates(said):
            found = {thread.visit_id: thread for thread in self._threads.values() if thread.messages or thread is own}
        elif own is not None:
            return [own]
        else:
            patient = patient_of(said)
            family = self.kinship.family(patient) if patient is not None else ()
            found = {id_: thread for one in family for id_, thread in self._of.get(one, {}).items()}
        return [found[visit_id] for visit_id in sorted(found)]

    def take_up(
        self, occasion: Occasion, message: ReadMessage, concerned: Sequence[Thread], told: list[Announcement]
    ) -> list[tuple[Thread, Before]]:
        """Add a message to the visits that it concerns; returns those to decide anew, as they were before."""
        if message.former_visit_id is None and not _is_news(message) and not relates(said_by(message)):
            return self._take_up_alone(message)
        said, changed = said_by(message), set[str]()
        before = {thread.visit_id: remember(thread) for thread in concerned}
        if _is_news(message):
            self.kinship.hear(message.marker, said)
        if message.visit_id is not None:
            self._add_to_own(self._threads[message.visit_id], message)
            changed.add(self._threads[message.visit_id].visit_id)
        moved = self._find_moved(message)
        if moved is not None:
            told.append(join_visits(occasion, *moved))
            self._bring_up_to_date(moved[0], parts=True)
            self._threads[moved[1].visit_id] = moved[0]
            changed.add(moved[0].visit_id)
        if relates(said):
            for into, thread in self._find_same(concerned):
                told.append(join_visits(occasion, into, thread))
                changed.add(into.visit_id)
        standing = [thread for thread in concerned if thread.joined_into is None]
        if _is_news(message):
            changed |= {thread.visit_id for thread in standing if self._bring_up_to_date(thread, parts=relates(said))}
        return [(thread, before[thread.visit_id]) for thread in standing if thread.visit_id in changed]

    def _take_up_alone(self, message: ReadMessage) -> list[tuple[Thread, Before]]:
        """Add a message that speaks of its own visit and of no other, as nearly all do."""
        if message.visit_id is None:
            return []
        thread = self._threads[message.visit_id]
        before = remember(thread)
        self._add_to_own(thread, message)
        return [(thread, before)] if thread.joined_into is None else []

    def _find_moved(self, message: ReadMessage) -> tuple[Thread, Thread] | None:
        """The two visits that a message says are one: (the one that stays, the other)."""
        if message.visit_id is None or message.former_visit_id is None:
            return None
        own, former = self._threads[message.visit_id], self._threads[message.former_visit_id]
        if own is former:
            return None
        into, other = sorted((own, former), key=lambda each: (not each.alerted, not each.messages, each.opened_at))
        return into, other

    def _add_to_own(self, thread: Thread, message: ReadMessage) -> None:
        said = said_by(message)
        is_first = not thread.messages
        thread.add(message.marker, said)
        if (patient := patient_of(said)) is not None and not is_of_person(said):
            self._of.setdefault(patient, {})[thread.visit_id] = thread
        if is_first:
            self._bring_up_to_date(thread, parts=False)
        thread.facts()  # a message that cannot be taken in costs only itself

    def _bring_up_to_date(self, thread: Thread, *, parts: bool) -> bool:
        """Take in what is said of the patients of a visit; with ``parts`` let go of what is not. Whether it changed."""
        own = own_patients(thread.messages)
        wanted = self.kinship.news_of(own)
        if not wanted and not parts:
            return False
        present = dict(thread.messages)
        new = wanted.keys() - present.keys()
        for marker in sorted(new):
            thread.add(marker, wanted[marker])
        reached = self.kinship.reach(own) if parts else set()
        gone = [
            marker
            for marker, heard in present.items()
            if parts and is_of_person(heard) and not self.kinship.counts_for(marker, heard, reached)
        ]
        for marker in gone:
            thread.remove(marker)
        return bool(new or gone)

    def _find_same(self, threads: Sequence[Thread]) -> list[tuple[Thread, Thread]]:
        """Visits that are one since their patients are: (the one that stays, another)."""
        groups: dict[tuple[Patient, str], list[Thread]] = {}
        for thread in threads:
            if thread.continued_as is not None:
                continue  # the visit that has begun under its number since is another
            said = _find_beginning(thread)
            slot, patient = (visit_slot(said), patient_of(said)) if said is not None else (None, None)
            if slot is not None and patient is not None:
                groups.setdefault((self.kinship.root(patient), slot), []).append(thread)
        pairs: list[tuple[Thread, Thread]] = []
        for group in groups.values():
            into, *others = sorted(group, key=lambda each: (not each.alerted, each.opened_at, each.visit_id))
            pairs += [(into, each) for each in others]
        return pairs


def _find_beginning(thread: Thread) -> Attendance | None:
    """The message of a visit that tells its day: one that goes on without a number may be of the next."""
    own = [said for _, said in sorted(thread.messages, key=message_order) if not is_of_person(said)]
    return next((said for said in own if begins_day(said, thread.registers_by)), own[0] if own else None)


def _is_news(message: ReadMessage) -> bool:
    said = said_by(message)
    return bool(said.local_patient_id) and (is_of_person(said) or relates(said))


def _named_by(message: ReadMessage) -> list[Patient]:
    said = said_by(message)
    return [one for one in (patient_of(said), former_of(said)) if one is not None]


def _is_alone(message: ReadMessage) -> bool:
    """Whether it may make one visit or patient of two, or two of one."""
    return relates(said_by(message)) or moves_visit(said_by(message))


def _split_at_merges(messages: Sequence[ReadMessage]) -> list[list[ReadMessage]]:
    """In their order, each message that joins patients or parts them alone."""
    runs: list[list[ReadMessage]] = []
    was_alone = True
    for message in messages:
        is_alone = _is_alone(message)
        if is_alone or was_alone:
            runs.append([])
        runs[-1].append(message)
        was_alone = is_alone
    return runs


_STRENGTH: Final = {PositionOutcome.ALERTED: 0, PositionOutcome.UNDER_REVIEW: 1}


def _note_outcome(message: ReadMessage, decisions: Sequence[tuple[str, Decision]]) -> None:
    """What became of a message is the most that follows from it for any visit."""
    if not decisions:
        message.outcome, message.reason = PositionOutcome.IGNORED, "person_without_visit"
        return
    visit_id, decision = min(decisions, key=lambda pair: _STRENGTH.get(pair[1].outcome, len(_STRENGTH)))
    message.visit_id = message.visit_id or visit_id
    message.outcome, message.reason = decision.outcome, decision.reason


async def _ensure_owners(connection: AsyncConnection, messages: Sequence[ReadMessage]) -> None:
    owners = {(message.owner, message.sender or "Operators of the broker") for message in messages}
    await directory.ensure_owners(connection, {*owners, (BROKER_OWNER, "Operators of the broker")})


async def _note_test_feeds(connection: AsyncConnection, messages: Sequence[ReadMessage], now: datetime) -> None:
    """A test message counts as any other, and operators see whose they are."""
    counts = Counter(each.sender for each in messages if each.said is not None and each.said.is_test)
    await test_feeds.note_test_feeds(connection, counts, london_day(now))
    for sender, count in sorted(counts.items()):
        log(LogEvent.TEST_MESSAGES, sender=sender, count=count)


def _position_row(batch: Batch, message: ReadMessage, now: datetime) -> dict[str, Any]:
    assert message.outcome is not None, "a position without an outcome"
    return {
        "topic": batch.partition.topic,
        "log_id": batch.log_id,
        "partition": batch.partition.number,
        "position": message.record.offset,
        "owner": message.owner,
        "marker": message.marker,
        "visit_id": message.visit_id,
        "outcome": message.outcome.value,
        "reason": message.reason,
        "handled_at": now,
        "replay_id": message.replaying.request.id if message.replaying is not None else None,
    }


def _report(batch: Batch, messages: Sequence[ReadMessage], told: Sequence[Announcement]) -> None:
    for outcome, count in Counter(message.outcome for message in messages).items():
        assert outcome is not None
        MESSAGES_HANDLED.labels(outcome=outcome.value).inc(count)
    for message in messages:
        if message.outcome is PositionOutcome.QUARANTINED:
            log(
                LogEvent.QUARANTINED,
                topic=batch.partition.topic,
                partition=batch.partition.number,
                offset=message.record.offset,
                reason=message.reason,
            )
    raised = Counter(alert.alert.authority for each in told for alert in each.alerts)
    for authority, count in sorted(raised.items()):
        log(LogEvent.ALERT_RAISED, authority=authority, count=count)
