"""Heart 2: from police incidents to notices. One transaction per batch, and nothing shared with heart 1 but the loop.

Order inside the transaction: handled-markers, then each incident under its lock, then the offset, audit last. One
message that cannot be handled costs itself alone: what it had written is rolled back to where it began.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.incident_json import IncidentRefused, read_incident
from broker.consumers.loop import Batch
from broker.consumers.replaying import mark_messages, settle_replays
from broker.domain.encompass import Reception, receive_version
from broker.envelope import KEY_ID_HEADER, RECORD_SEAL, SOURCE_HEADER
from broker.keyring import Keyring, KeyringError
from broker.notices import NoticeRules, Replanned, UnknownForce, replan
from broker.ports import Clock
from broker.storage import audit, handled, incidents, quarantine
from broker.storage.audit import Act
from broker.storage.database import Database
from broker.storage.directory import ensure_owners
from broker.storage.establishments import find_force
from broker.storage.incidents import COORDINATOR, Matter, StoredIncident, StoredTask
from broker.storage.quarantine import NewQuarantined
from broker.storage.replays import REPEATED, Replaying
from broker.telemetry import MESSAGES_HANDLED, LogEvent, log
from schemas.encompass import PoliceMessage, TaskKind
from schemas.identifiers import BROKER_OWNER, OwnerId, force_owner, parse_ods_code
from schemas.record import LogRecord, PositionOutcome

_CONTROL_ID: Final = "incident"


class _Read(msgspec.Struct, kw_only=True):
    """One record, read before the transaction, and what becomes of it."""

    record: LogRecord
    body: bytes
    sender: str
    marker: bytes
    said: PoliceMessage | None = None
    owner: OwnerId = BROKER_OWNER
    replaying: Replaying | None = None
    """Set when a person asked for it to be handled again."""
    visit_id: str | None = None
    """Of no visit: incidents share nothing with attendances but the log's bookkeeping."""
    outcome: PositionOutcome | None = None
    reason: str = ""
    detail: str = ""

    @property
    def control_id(self) -> str:
        """What stands beside sender and bytes in its marker."""
        return _CONTROL_ID


class EncompassConsumer:
    """Handles batches of police incidents."""

    def __init__(
        self, database: Database, keyring: Keyring, clock: Clock, rules: NoticeRules, *, quarantined: timedelta
    ) -> None:
        """``quarantined``: how long a message that was set aside may wait for the operators."""
        self._database = database
        self._keyring = keyring
        self._clock = clock
        self._rules = rules
        self._quarantined = quarantined

    async def handle(self, batch: Batch) -> int:
        """Handle the batch in one transaction, return how many; raises Fenced when the partition is another's."""
        messages = [_read(self._keyring, record) for record in batch.records]
        now = self._clock.now()
        async with self._database.writing() as connection:
            acts: list[Act] = []
            for message in await mark_messages(connection, self._keyring, messages, now):
                if message.outcome is None:
                    acts += await self._receive_safely(connection, message, now)
            await self._settle(connection, batch, messages, acts, now=now)
        _report(batch, messages)
        return len(messages)

    async def quarantine(self, batch: Batch, reason: str) -> int:
        """Keep the one record of the batch for a person, unread, and move the offset past it."""
        message = _set_aside(self._keyring, batch.records[0], reason)
        now = self._clock.now()
        async with self._database.writing() as connection:
            await mark_messages(connection, self._keyring, [message], now, recognises=False)
            await self._settle(connection, batch, [message], [], now=now)
        _report(batch, [message])
        return 1

    async def _receive_safely(self, connection: AsyncConnection, message: _Read, now: datetime) -> list[Act]:
        try:
            async with connection.begin_nested():
                return await self._receive(connection, message, now)
        except UnknownForce:
            message.outcome, message.reason = PositionOutcome.QUARANTINED, "force_not_known"
        except DBAPIError:
            # The loop knows an outage from data that the database refuses.
            raise
        except Exception as error:
            message.outcome, message.reason = PositionOutcome.QUARANTINED, "could_not_be_decided"
            message.detail = type(error).__name__
        message.owner = BROKER_OWNER
        return []

    async def _receive(self, connection: AsyncConnection, message: _Read, now: datetime) -> list[Act]:
        said, keyring = message.said, self._keyring
        assert said is not None
        if await find_force(connection, said.force) is None:
            raise UnknownForce
        message.owner = force_owner(said.force)
        incident_id = incidents.derive_incident_id(keyring, said.force, said.incident_id)
        known = await incidents.lock_incident(connection, keyring, incident_id)
        reception = receive_version(known.message if known is not None else None, said)
        acts = [Act(owner=message.owner, actor="broker", action=f"incident.{reception.value}", subject=incident_id)]
        incident = known
        if reception in (Reception.FIRST, Reception.AMENDS):
            incident = await incidents.save_message(connection, keyring, said, now, is_new=known is None)
        await incidents.add_version(
            connection, keyring, said, marker=message.marker, reception=reception.value, now=now
        )
        assert incident is not None
        if reception is Reception.CONTRADICTS:
            await _ask_which(connection, keyring, incident, now)
        if reception not in (Reception.FIRST, Reception.AMENDS):
            message.outcome, message.reason = _SETTLED[reception]
            return acts
        planned = await replan(connection, keyring, incident, self._rules, now)
        message.outcome = _outcome_of(reception, planned)
        return [*acts, *planned.acts]

    async def _settle(
        self,
        connection: AsyncConnection,
        batch: Batch,
        messages: Sequence[_Read],
        acts: Sequence[Act],
        *,
        now: datetime,
    ) -> None:
        """Move the offset or be fenced, keep what could not be handled, write what became of each; audit last."""
        await batch.move_offset(connection, now)
        await ensure_owners(connection, [(BROKER_OWNER, "Operators of the broker")])
        aside = [message for message in messages if message.outcome is PositionOutcome.QUARANTINED]
        kept = [self._keep(batch, message, now) for message in aside]
        await quarantine.save_quarantined(connection, self._keyring, kept)
        replayed = await settle_replays(connection, messages, now)
        await handled.settle_positions(connection, [_position_row(batch, message, now) for message in messages])
        found = [
            Act(owner=BROKER_OWNER, actor="broker", action="message.quarantined", subject=message.marker.hex())
            for message in aside
        ]
        await audit.record_acts(connection, [*acts, *found, *replayed], now)

    def _keep(self, batch: Batch, message: _Read, now: datetime) -> NewQuarantined:
        origin = message.replaying.origin if message.replaying is not None else None
        return NewQuarantined(
            partition=batch.partition if origin is None else origin.partition,
            log_id=batch.log_id if origin is None else origin.log_id,
            offset=message.record.offset if origin is None else origin.offset,
            reason=message.reason,
            detail=message.detail,
            body=message.body,
            kept_at=now,
            due_by=now + self._quarantined,
            sender=message.sender,
        )


_SETTLED: Final = {
    Reception.REPEAT: (PositionOutcome.IGNORED, REPEATED),
    Reception.OLDER: (PositionOutcome.IGNORED, "older_version"),
    Reception.CONTRADICTS: (PositionOutcome.UNDER_REVIEW, "contradicts"),
}


def _outcome_of(reception: Reception, planned: Replanned) -> PositionOutcome:
    if reception is Reception.AMENDS:
        return PositionOutcome.UPDATED
    if planned.is_waiting_for_a_person:
        return PositionOutcome.UNDER_REVIEW
    return PositionOutcome.ALERTED if planned.is_told else PositionOutcome.SILENT_BY_RULE


def _read(keyring: Keyring, record: LogRecord) -> _Read:
    """Open and read one record. What cannot be read is that record's outcome."""
    try:
        body = keyring.open(record.value, about=RECORD_SEAL) if KEY_ID_HEADER in record.headers else record.value
    except KeyringError:
        return _set_aside(keyring, record, "sealed_under_an_unknown_key")
    sender = _source_of(record)
    message = _Read(record=record, body=body, sender=sender, marker=keyring.marker(sender, _CONTROL_ID, body))
    try:
        said = read_incident(body, received_at=record.appended_at)
    except IncidentRefused:
        message.outcome, message.reason = PositionOutcome.QUARANTINED, "incident_refused"
        return message
    except Exception as error:
        message.outcome, message.reason = PositionOutcome.QUARANTINED, "could_not_be_read"
        message.detail = type(error).__name__
        return message
    if sender and sender != said.force:
        # It stays under the name of who sent it: replayed, it is still not the other force's.
        message.outcome, message.reason = PositionOutcome.QUARANTINED, "force_of_another"
        return message
    # The same message put there by the door and by a foreign producer is one message.
    message.sender, message.said = said.force, said
    message.marker = keyring.marker(said.force, _CONTROL_ID, body)
    return message


def _set_aside(keyring: Keyring, record: LogRecord, reason: str) -> _Read:
    """A record for the quarantine: opened if it can be, and not read."""
    try:
        body = keyring.open(record.value, about=RECORD_SEAL) if KEY_ID_HEADER in record.headers else record.value
    except KeyringError:
        body = record.value
    sender = _source_of(record)
    return _Read(
        record=record,
        body=body,
        sender=sender,
        marker=keyring.marker(sender, _CONTROL_ID, body),
        outcome=PositionOutcome.QUARANTINED,
        reason=reason,
    )


def _source_of(record: LogRecord) -> str:
    return parse_ods_code(bytes(record.headers.get(SOURCE_HEADER, b"")).decode("ascii", "replace")) or ""


async def _ask_which(connection: AsyncConnection, keyring: Keyring, incident: StoredIncident, now: datetime) -> None:
    version = incident.message.version
    task = StoredTask(
        id=incidents.derive_task_id(keyring, TaskKind.CONTRADICTION, incident.id, str(version)),
        owner=incident.owner,
        incident_id=incident.id,
        kind=TaskKind.CONTRADICTION,
        urn=None,
        matter=Matter(incident=incident.message.incident_id),
        held_by=COORDINATOR,
        opened_at=now,
        due_by=now + timedelta(minutes=15),
    )
    await incidents.open_task(connection, keyring, task)


def _position_row(batch: Batch, message: _Read, now: datetime) -> dict[str, Any]:
    assert message.outcome is not None, "a position without an outcome"
    return {
        "topic": batch.partition.topic,
        "log_id": batch.log_id,
        "partition": batch.partition.number,
        "position": message.record.offset,
        "owner": message.owner,
        "marker": message.marker,
        "visit_id": None,
        "outcome": message.outcome.value,
        "reason": message.reason,
        "handled_at": now,
        "replay_id": message.replaying.request.id if message.replaying is not None else None,
    }


def _report(batch: Batch, messages: Sequence[_Read]) -> None:
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
