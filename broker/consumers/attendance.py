"""Heart 1: from attendance messages to alerts and replies. One transaction per batch.

Order inside the transaction: handled-markers, then visits and lists, then everything written with the offset, audit
last. The markers come before the lists are read: a list change that this batch cannot see will look back for it
(ADR 0005).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.announcement import Announcement, Occasion, Rules, announce, open_occasion, save_announcements
from broker.consumers.loop import Batch
from broker.consumers.reading import ReadMessage, enclose_parts, leave_unread, read_record
from broker.consumers.replaying import mark_messages, settle_replays
from broker.domain.decision import Candidate, decide
from broker.domain.matching import visitor_blocks
from broker.domain.visits import london_day, opens_visit
from broker.keyring import Keyring
from broker.ports import Clock, Log
from broker.storage import audit, child_lists, directory, handled, quarantine, visits
from broker.storage.audit import Act
from broker.storage.child_lists import index_block, index_nhs_number
from broker.storage.database import Database
from broker.storage.directory import Directory
from broker.storage.quarantine import NewQuarantined
from broker.storage.visits import Thread, derive_visit_id, index_patient
from broker.telemetry import MESSAGES_HANDLED, LogEvent, log
from schemas.attendance import Attendance
from schemas.identifiers import BROKER_OWNER, NhsNumber
from schemas.record import Partition, PositionOutcome

PARTS_AT_ONCE_MAX: Final = 200
_DIRECTORY_KEPT: Final = timedelta(seconds=1)


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
            await save_announcements(connection, self._keyring, told, now)
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

    async def _decide(
        self, connection: AsyncConnection, messages: Sequence[ReadMessage], now: datetime
    ) -> list[Announcement]:
        understood = [message for message in messages if message.said is not None]
        known = await self._load_directory(connection, now)
        await self._assign_visits(connection, understood, now)
        placed = [message for message in understood if message.visit_id is not None]
        threads = await self._load_threads(connection, placed, now)
        finder = await self._find_candidates(connection, placed, threads)
        if finder.authorities() - known.authorities.keys():
            # Imported and listed within the moment for which the directory is kept.
            self._directory = None
            known = await self._load_directory(connection, now)
        occasion = open_occasion(self._keyring, known, self._rules, now)
        told = [self._decide_one(occasion, message, threads, finder) for message in placed]
        await visits.save_threads(connection, self._keyring, list(threads.values()), now)
        return [each for each in told if each is not None]

    def _decide_one(
        self, occasion: Occasion, message: ReadMessage, threads: dict[str, Thread], finder: _Finder
    ) -> Announcement | None:
        assert message.said is not None and message.visit_id is not None
        thread = threads[message.visit_id]
        is_new = not thread.is_here
        try:
            facts = thread.add(message.marker, message.said)
            if not thread.is_here:
                message.outcome, message.reason = PositionOutcome.IGNORED, "person_without_visit"
                return None
            decision = decide(
                facts,
                finder.candidates(facts),
                thread.known(is_new=is_new),
                site=occasion.directory.sites.get(facts.sender),
                on=london_day(occasion.now),
                rules=occasion.match_rules,
            )
            is_late = not is_new or message.replaying is not None
            told = announce(occasion, thread, facts, decision, late=is_late and bool(decision.to_alert))
        except Exception as error:
            # One bad message costs one message: it goes to a person, the rest of the batch goes on.
            thread.drop(message.marker)
            message.outcome, message.reason = PositionOutcome.QUARANTINED, "could_not_be_decided"
            message.detail = type(error).__name__
            return None
        message.outcome, message.reason = decision.outcome, decision.reason
        return told

    async def _assign_visits(self, connection: AsyncConnection, messages: Sequence[ReadMessage], now: datetime) -> None:
        """Give every message its visit. One about a person without a visit number joins their latest visit, or none."""
        of_patients: dict[bytes, str] = {}
        homeless: list[tuple[ReadMessage, bytes]] = []
        for message in messages:
            assert message.said is not None
            if message.visit_id is not None:
                continue  # a replay stays in the visit that it was of
            patient = message.said.local_patient_id
            index = index_patient(self._keyring, message.sender, patient) if patient else None
            if message.said.visit_number or opens_visit(message.said.event):
                message.visit_id = derive_visit_id(self._keyring, message.said, message.marker)
                if index is not None:
                    of_patients[index] = message.visit_id
            elif index is not None:
                homeless.append((message, index))
                message.visit_id = of_patients.get(index)
        lost = [(message, index) for message, index in homeless if message.visit_id is None]
        since = now - self._rules.look_back
        found = await visits.find_latest_by_patient(connection, [index for _, index in lost], since)
        for message, index in lost:
            message.visit_id = found.get(index)
        for message in messages:
            if message.visit_id is None:
                message.outcome, message.reason = PositionOutcome.IGNORED, "person_without_visit"

    async def _load_threads(
        self, connection: AsyncConnection, messages: Sequence[ReadMessage], now: datetime
    ) -> dict[str, Thread]:
        first_said: dict[str, Attendance] = {}
        for message in messages:
            assert message.visit_id is not None and message.said is not None
            first_said.setdefault(message.visit_id, message.said)
        return await visits.load_threads(connection, self._keyring, first_said, now)

    async def _find_candidates(
        self, connection: AsyncConnection, messages: Sequence[ReadMessage], threads: dict[str, Thread]
    ) -> _Finder:
        said = [message.said for message in messages if message.said is not None]
        said += [heard for thread in threads.values() for _, heard in thread.messages]
        known = {number for each in said for number in (each.nhs_number, each.mother_nhs_number) if number}
        numbers = {number: index_nhs_number(self._keyring, number) for number in known}
        wanted = {block for heard in _gather_said(messages, threads) for block in visitor_blocks(heard)}
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
        await handled.move_offset(
            connection,
            batch.group,
            batch.partition,
            log_id=batch.log_id,
            expected=batch.expected,
            to=batch.next_offset,
            records=len(batch.records),
            now=now,
        )
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


def _gather_said(messages: Sequence[ReadMessage], threads: Mapping[str, Thread]) -> list[list[Attendance]]:
    """What is said of each visit, in this batch or before. Most visits have a number from the beginning."""
    said = {visit_id: [heard for _, heard in thread.messages] for visit_id, thread in threads.items()}
    for message in messages:
        assert message.visit_id is not None and message.said is not None
        said[message.visit_id].append(message.said)
    return [heard for heard in said.values() if not all(each.nhs_number for each in heard)]


async def _ensure_owners(connection: AsyncConnection, messages: Sequence[ReadMessage]) -> None:
    owners = {(message.owner, message.sender or "Operators of the broker") for message in messages}
    await directory.ensure_owners(connection, {*owners, (BROKER_OWNER, "Operators of the broker")})


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
