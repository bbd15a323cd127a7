"""Accept police incidents: read them, append them to the log, answer. Touches no database.

A message that is not in order is refused with everything that is wrong with it, and nothing of it is kept: the force
mends it and sends it again while it still knows what happened. Of a CSV file every incident stands for itself. It is
kept as the JSON message that it says, always the same, so that a file sent twice counts once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

import msgspec

from adapters.csv_rows import RowProblem
from adapters.errors import MalformedFile, NotDurable
from adapters.incident_csv import IncidentFileLimits, read_incidents
from adapters.incident_json import FieldAdvice, IncidentLimits, IncidentRefused, read_incident
from broker.envelope import INCIDENT_JSON, INCIDENT_TYPE, enclose
from broker.keyring import Keyring
from broker.ports import Clock, Log
from broker.telemetry import APPEND_SECONDS, MESSAGES_ACCEPTED, MESSAGES_REFUSED, LogEvent, log
from schemas.directory import Sender
from schemas.encompass import PoliceMessage

ACCEPTED: Final = 202
UNPROCESSABLE: Final = 422
NOT_DURABLE: Final = 503
INCIDENT_CSV: Final = "text/csv"

_OTHER_FORCE: Final = "must be the force whose credential was shown"
_APPENDED_TOGETHER: Final = 100


class IncidentAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a force is told: an HTTP status, the id under which it is kept, or what is wrong, without any value."""

    status: int
    message_id: str | None = None
    problems: tuple[FieldAdvice, ...] = ()


class KeptRow(msgspec.Struct, frozen=True, kw_only=True):
    """One version of an incident of a file, by its first row. ``message_id`` is empty after a dry run."""

    row: int
    message_id: str


class IncidentFileAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a file: an HTTP status, and every row of it that was not taken, without any value.

    What was kept before the log failed stays kept; the same file sent again adds nothing twice.
    """

    status: int
    kept: tuple[KeptRow, ...] = ()
    refused: tuple[RowProblem, ...] = ()


class IncidentIntake:
    """The common room behind the door for incidents."""

    def __init__(
        self, log_: Log, topic: str, keyring: Keyring, clock: Clock, *, limits: IncidentLimits | None = None
    ) -> None:
        self._log = log_
        self._topic = topic
        self._keyring = keyring
        self._clock = clock
        self._limits = limits or IncidentLimits()
        self._file_limits = IncidentFileLimits(incident=self._limits)

    async def accept(self, body: bytes, sender: Sender) -> IncidentAnswer:
        """Take one message of a force that showed its credential."""
        now = self._clock.now()
        try:
            message = read_incident(body, received_at=now, limits=self._limits)
        except IncidentRefused as refused:
            return _refuse(sender, "incident_refused", refused.problems)
        if message.force != sender.code:
            advice = FieldAdvice(field="force", advice=_OTHER_FORCE)
            return _refuse(sender, "force_of_another", (advice,))
        try:
            message_id = await self._append(message, body, now)
        except NotDurable:
            log(LogEvent.MESSAGE_NOT_DURABLE, sender=sender.code)
            return IncidentAnswer(status=NOT_DURABLE)
        return IncidentAnswer(status=ACCEPTED, message_id=message_id)

    async def accept_file(
        self,
        file: bytes,
        sender: Sender,
        *,
        dry_run: bool = False,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> IncidentFileAnswer:
        """Take a CSV file of a force. A bad row costs its incident and no other. Who calls logs what came of it."""
        now = self._clock.now()
        try:
            # Thousands of rows: whoever else is at the door does not wait for them.
            messages, problems = await asyncio.to_thread(self._read_file, file, sender, now)
        except MalformedFile as malformed:
            MESSAGES_REFUSED.labels(reason="incident_file_malformed").inc()
            problem = RowProblem(row=1, field="file", advice=str(malformed))
            return IncidentFileAnswer(status=UNPROCESSABLE, refused=(problem,))
        for _ in problems:
            MESSAGES_REFUSED.labels(reason="incident_row_refused").inc()
        kept: list[KeptRow] = []
        status = ACCEPTED if messages else UNPROCESSABLE
        for first in range(0, len(messages), _APPENDED_TOGETHER):
            together = messages[first : first + _APPENDED_TOGETHER]
            if dry_run:
                kept += [KeptRow(row=row, message_id="") for row, *_ in together]
            else:
                appending = (self._append(message, body, now) for _, message, body in together)
                results = await asyncio.gather(*appending, return_exceptions=True)
                kept += [
                    KeptRow(row=row, message_id=result)
                    for (row, *_), result in zip(together, results, strict=True)
                    if isinstance(result, str)
                ]
                if failed := [result for result in results if isinstance(result, BaseException)]:
                    if not all(isinstance(each, NotDurable) for each in failed):
                        raise failed[0]
                    status = NOT_DURABLE
                    break
            on_progress(first + len(together), len(messages))
        return IncidentFileAnswer(status=status, kept=tuple(kept), refused=tuple(problems))

    def _read_file(
        self, file: bytes, sender: Sender, now: datetime
    ) -> tuple[Sequence[tuple[int, PoliceMessage, bytes]], Sequence[RowProblem]]:
        messages: list[tuple[int, PoliceMessage, bytes]] = []
        problems: list[RowProblem] = []
        for row, found in read_incidents(file, received_at=now, limits=self._file_limits):
            if isinstance(found, RowProblem):
                problems.append(found)
                continue
            body = msgspec.json.encode(found)
            if found.force != sender.code:
                problems.append(RowProblem(row=row, field="force", advice=_OTHER_FORCE))
            elif len(body) > self._limits.incident_bytes_max:
                advice = f"the rows of this incident say more than {self._limits.incident_bytes_max} bytes"
                problems.append(RowProblem(row=row, field="incident_id", advice=advice))
            else:
                messages.append((row, found, body))
        return messages, problems

    async def _append(self, message: PoliceMessage, body: bytes, now: datetime) -> str:
        """Append one message; returns the id under which it is kept. Raises NotDurable."""
        envelope = enclose(
            self._keyring,
            body,
            sender=message.force,
            control_id=f"{message.incident_id}/{message.version}",
            said=None,
            content_type=INCIDENT_JSON,
            at=now,
            # Versions of one incident keep their order.
            ordering_id=message.incident_id,
            event_type=INCIDENT_TYPE,
        )
        began = time.perf_counter()
        await self._log.append(self._topic, key=envelope.key, value=envelope.value, headers=envelope.headers)
        APPEND_SECONDS.observe(time.perf_counter() - began)
        MESSAGES_ACCEPTED.labels(door="incidents").inc()
        return envelope.message_id


def _refuse(sender: Sender, reason: str, problems: tuple[FieldAdvice, ...]) -> IncidentAnswer:
    MESSAGES_REFUSED.labels(reason=reason).inc()
    log(LogEvent.MESSAGE_REFUSED, sender=sender.code, reason=reason)
    return IncidentAnswer(status=UNPROCESSABLE, problems=problems)
