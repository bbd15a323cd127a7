"""Heart 1: from attendance messages to alerts and replies. One transaction per batch.

Order inside the transaction: handled-markers, then visits and lists, then everything written with the offset, audit
last. The markers come before the lists are read: a list change that this batch cannot see will look back for it
(ADR 0005).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.errors import Unreadable
from adapters.hl7v2 import NotAnAttendance, read_attendance, read_header
from broker.announcement import Announcement, Occasion, Rules, announce, save_announcements
from broker.consumers.loop import Batch
from broker.domain.decision import Candidate, decide
from broker.domain.matching import candidate_blocks
from broker.domain.visits import london_day, opens_visit
from broker.keyring import Keyring, KeyringError
from broker.ports import Clock
from broker.storage import audit, child_lists, directory, handled, quarantine, visits
from broker.storage.audit import Act
from broker.storage.child_lists import index_block, index_nhs_number
from broker.storage.database import Database
from broker.storage.directory import Directory
from broker.storage.quarantine import NewQuarantined
from broker.storage.visits import Thread, derive_visit_id, index_patient
from broker.telemetry import MESSAGES_HANDLED, LogEvent, log
from schemas.attendance import Attendance
from schemas.identifiers import BROKER_OWNER, NhsNumber, OwnerId, organisation_owner, parse_ods_code
from schemas.record import LogRecord, PositionOutcome

TOPIC: Final = "attendances"
GROUP: Final = "attendances"
KEY_ID_HEADER: Final = "ce_keyid"
RECORD_SEAL: Final = "log-record"
_DIRECTORY_KEPT: Final = timedelta(seconds=1)


class ReadMessage(msgspec.Struct, kw_only=True):
    """One record, read before the transaction, and what becomes of it."""

    record: LogRecord
    body: bytes
    sender: str
    marker: bytes
    said: Attendance | None = None
    visit_id: str | None = None
    outcome: PositionOutcome | None = None
    reason: str = ""
    detail: str = ""

    @property
    def owner(self) -> OwnerId:
        """Who the position belongs to."""
        return organisation_owner(self.sender) if self.sender else BROKER_OWNER


class AttendanceConsumer:
    """Handles batches of attendance messages."""

    def __init__(self, database: Database, keyring: Keyring, clock: Clock, rules: Rules) -> None:
        self._database = database
        self._keyring = keyring
        self._clock = clock
        self._rules = rules
        self._directory: tuple[datetime, Directory] | None = None

    async def handle(self, batch: Batch) -> int:
        """Handle the batch in one transaction, return how many; raises Fenced when the partition is another's."""
        messages = [read_record(self._keyring, record) for record in batch.records]
        now = self._clock.now()
        async with self._database.writing() as connection:
            fresh = await handled.mark_handled(connection, [message.marker for message in messages], now)
            await _ensure_owners(connection, messages)
            told = await self._decide(connection, _first_of_each(messages, fresh), now)
            await save_announcements(connection, self._keyring, told, now)
            acts = [act for each in told for act in each.acts]
            await self._settle(connection, batch, messages, acts, now)
        _report(batch, messages, told)
        return len(messages)

    async def quarantine(self, batch: Batch, reason: str) -> int:
        """Keep the one record of the batch for a person, unread, and move the offset past it.

        Reading it may be what ended the process. Sent again, it is known by its bytes and not kept twice.
        """
        message = leave_unread(self._keyring, batch.records[0], reason)
        now = self._clock.now()
        async with self._database.writing() as connection:
            fresh = await handled.mark_handled(connection, [message.marker], now)
            await _ensure_owners(connection, [message])
            _first_of_each([message], fresh)
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
        occasion = Occasion(now=now, directory=known, rules=self._rules, keyring=self._keyring)
        told = [self._decide_one(occasion, message, threads, finder) for message in placed]
        await visits.save_threads(connection, self._keyring, list(threads.values()), now)
        return [each for each in told if each is not None]

    def _decide_one(
        self, occasion: Occasion, message: ReadMessage, threads: dict[str, Thread], finder: _Finder
    ) -> Announcement | None:
        assert message.said is not None and message.visit_id is not None
        thread = threads[message.visit_id]
        is_new = not thread.messages
        try:
            facts = thread.add(message.marker, message.said)
            decision = decide(
                facts,
                finder.candidates(facts),
                thread.known(is_new=is_new),
                site=occasion.directory.sites.get(facts.sender),
                on=london_day(occasion.now),
            )
            told = announce(occasion, thread, facts, decision, late=not is_new and bool(decision.to_alert))
        except Exception as error:
            # One bad message costs one message: it goes to a person, the rest of the batch goes on.
            thread.drop(message.marker)
            message.outcome, message.reason = PositionOutcome.QUARANTINED, "could_not_be_decided"
            message.detail = type(error).__name__
            return None
        message.outcome, message.reason = decision.outcome, decision.reason
        return told

    async def _assign_visits(self, connection: AsyncConnection, messages: Sequence[ReadMessage], now: datetime) -> None:
        """Give every message its visit. A message about a person joins the person's latest visit, or none."""
        of_patients: dict[bytes, str] = {}
        homeless: list[tuple[ReadMessage, bytes]] = []
        for message in messages:
            assert message.said is not None
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
        opened = await visits.open_visits(connection, self._keyring, first_said, now)
        return opened | await visits.load_threads(connection, self._keyring, first_said.keys() - opened.keys())

    async def _find_candidates(
        self, connection: AsyncConnection, messages: Sequence[ReadMessage], threads: dict[str, Thread]
    ) -> _Finder:
        said = [message.said for message in messages if message.said is not None]
        said += [heard for thread in threads.values() for _, heard in thread.messages]
        known = {each.nhs_number for each in said if each.nhs_number}
        numbers = {number: index_nhs_number(self._keyring, number) for number in known}
        # A visit has no number only as long as none of its messages has one.
        born = {each.birth_date for each in said if not each.nhs_number}
        blocks = {block: index_block(self._keyring, block) for day in born for block in candidate_blocks(day)}
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
        await handled.settle_positions(connection, [_position_row(batch, message, now) for message in messages])
        found = [
            Act(owner=BROKER_OWNER, actor="broker", action="message.quarantined", subject=message.marker.hex())
            for message in messages
            if message.outcome is PositionOutcome.QUARANTINED
        ]
        await audit.record_acts(connection, [*acts, *found], now)

    def _keep(self, batch: Batch, message: ReadMessage, now: datetime) -> NewQuarantined:
        return NewQuarantined(
            partition=batch.partition,
            log_id=batch.log_id,
            offset=message.record.offset,
            reason=message.reason,
            detail=message.detail,
            body=message.body,
            kept_at=now,
            due_by=now + self._rules.escalation,
        )


class _Finder(msgspec.Struct, frozen=True, kw_only=True):
    """The list entries that may concern the people of one batch."""

    by_number: dict[NhsNumber, list[Candidate]]
    by_block: dict[str, list[Candidate]]

    def candidates(self, facts: Attendance) -> list[Candidate]:
        """Entries of the NHS number, or without one those of the date of birth."""
        if facts.nhs_number:
            return self.by_number[facts.nhs_number]
        return [candidate for block in candidate_blocks(facts.birth_date) for candidate in self.by_block[block]]


def read_record(keyring: Keyring, record: LogRecord) -> ReadMessage:
    """Open and read one record. Never raises: what cannot be opened or read is that record's outcome."""
    try:
        body = _open_body(keyring, record)
    except KeyringError:
        return leave_unread(keyring, record, "sealed_under_an_unknown_key")
    try:
        said = read_attendance(body)
    except Exception as error:
        return _read_header_only(keyring, record, body, error)
    sender = parse_ods_code(said.sender) or _source_of(record)
    return ReadMessage(
        record=record,
        body=body,
        sender=sender,
        marker=keyring.marker(sender, said.control_id, body),
        said=msgspec.structs.replace(said, sender=sender),
    )


def _read_header_only(keyring: Keyring, record: LogRecord, body: bytes, problem: Exception) -> ReadMessage:
    """What becomes of a message that is no attendance or cannot be read; its header may still say whose it is."""
    try:
        header = read_header(body)
    except Unreadable as error:
        return leave_unread(keyring, record, error.reason, error.detail)
    sender = parse_ods_code(header.sender) or _source_of(record)
    message = ReadMessage(
        record=record, body=body, sender=sender, marker=keyring.marker(sender, header.control_id, body)
    )
    if isinstance(problem, NotAnAttendance):
        message.outcome, message.reason = PositionOutcome.IGNORED, problem.reason
    elif isinstance(problem, Unreadable):
        message.outcome, message.reason = PositionOutcome.QUARANTINED, problem.reason
        message.detail = problem.detail
    else:
        message.outcome, message.reason = PositionOutcome.QUARANTINED, "could_not_be_read"
        message.detail = type(problem).__name__
    return message


def leave_unread(keyring: Keyring, record: LogRecord, reason: str, detail: str = "") -> ReadMessage:
    """One record for the quarantine: opened if it can be, and not read."""
    try:
        body = _open_body(keyring, record)
    except KeyringError:
        body = record.value
    source = _source_of(record)
    return ReadMessage(
        record=record,
        body=body,
        sender=source,
        marker=keyring.marker(source, "", body),
        outcome=PositionOutcome.QUARANTINED,
        reason=reason,
        detail=detail,
    )


def _open_body(keyring: Keyring, record: LogRecord) -> bytes:
    return keyring.open(record.value, about=RECORD_SEAL) if KEY_ID_HEADER in record.headers else record.value


def _source_of(record: LogRecord) -> str:
    """Who put the record on the log, by its own word; empty when it does not say."""
    return parse_ods_code(bytes(record.headers.get("ce_source", b"")).decode("ascii", "replace")) or ""


async def _ensure_owners(connection: AsyncConnection, messages: Sequence[ReadMessage]) -> None:
    owners = {(message.owner, message.sender or "Operators of the broker") for message in messages}
    await directory.ensure_owners(connection, {*owners, (BROKER_OWNER, "Operators of the broker")})


def _first_of_each(messages: Sequence[ReadMessage], fresh: set[bytes]) -> list[ReadMessage]:
    """The messages that were never handled, each once; the others are ignored as repeated."""
    first: dict[bytes, ReadMessage] = {}
    for message in messages:
        if message.marker in fresh and message.marker not in first:
            first[message.marker] = message
        else:
            message.outcome, message.reason = PositionOutcome.IGNORED, "repeated"
    return list(first.values())


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
