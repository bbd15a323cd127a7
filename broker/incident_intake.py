"""Accept a police incident: read it, append it to the log as it came, answer. Touches no database.

A message that is not in order is refused with everything that is wrong with it, and nothing of it is kept: the force
mends it and sends it again while it still knows what happened.
"""

from __future__ import annotations

import time
from typing import Final

import msgspec

from adapters.errors import NotDurable
from adapters.incident_json import FieldAdvice, IncidentLimits, IncidentRefused, read_incident
from broker.envelope import enclose
from broker.keyring import Keyring
from broker.ports import Clock, Log
from broker.telemetry import APPEND_SECONDS, MESSAGES_ACCEPTED, MESSAGES_REFUSED, LogEvent, log
from schemas.directory import Sender

ACCEPTED: Final = 202
UNPROCESSABLE: Final = 422
NOT_DURABLE: Final = 503
INCIDENT_JSON: Final = "application/json"
INCIDENT_TYPE: Final = b"uk.cpis-broker.incident.received.v1"


class IncidentAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a force is told: an HTTP status, the id under which it is kept, or what is wrong, without any value."""

    status: int
    message_id: str | None = None
    problems: tuple[FieldAdvice, ...] = ()


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

    async def accept(self, body: bytes, sender: Sender) -> IncidentAnswer:
        """Take one message of a force that showed its credential."""
        now = self._clock.now()
        try:
            message = read_incident(body, received_at=now, limits=self._limits)
        except IncidentRefused as refused:
            return _refuse(sender, "incident_refused", refused.problems)
        if message.force != sender.code:
            advice = FieldAdvice(field="force", advice="must be the force whose credential was shown")
            return _refuse(sender, "force_of_another", (advice,))
        envelope = enclose(
            self._keyring,
            body,
            sender=sender.code,
            control_id=f"{message.incident_id}/{message.version}",
            said=None,
            content_type=INCIDENT_JSON,
            at=now,
            # Versions of one incident keep their order.
            ordering_id=message.incident_id,
            event_type=INCIDENT_TYPE,
        )
        began = time.perf_counter()
        try:
            await self._log.append(self._topic, key=envelope.key, value=envelope.value, headers=envelope.headers)
        except NotDurable:
            log(LogEvent.MESSAGE_NOT_DURABLE, sender=sender.code)
            return IncidentAnswer(status=NOT_DURABLE)
        APPEND_SECONDS.observe(time.perf_counter() - began)
        MESSAGES_ACCEPTED.labels(door="incidents").inc()
        return IncidentAnswer(status=ACCEPTED, message_id=envelope.message_id)


def _refuse(sender: Sender, reason: str, problems: tuple[FieldAdvice, ...]) -> IncidentAnswer:
    MESSAGES_REFUSED.labels(reason=reason).inc()
    log(LogEvent.MESSAGE_REFUSED, sender=sender.code, reason=reason)
    return IncidentAnswer(status=UNPROCESSABLE, problems=problems)
