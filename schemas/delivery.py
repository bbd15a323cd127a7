"""Sending: what leaves, where to, and what became of it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec


class ChannelName(StrEnum):
    """One channel, one way out."""

    WEBHOOK = "webhook"
    HL7V2_REPLY = "hl7v2_reply"
    FHIR_REPLY = "fhir_reply"
    TOPIC = "topic"
    EMAIL = "email"
    TEXT_MESSAGE = "text_message"


class MailTls(StrEnum):
    """How the connection to the mail server is encrypted."""

    STARTTLS = "starttls"
    """After the greeting (RFC 3207); a server that does not offer it is sent nothing."""
    IMPLICIT = "implicit"
    """From the first byte (RFC 8314)."""
    NONE = "none"
    """In development alone."""


class DeliveryState(StrEnum):
    """What became of the work; docs/states.md draws it."""

    WAITING = "waiting"
    CLAIMED = "claimed"
    SENT = "sent"
    FAILED = "failed"
    GIVEN_UP = "given_up"


class OutcomeClass(StrEnum):
    """How an attempt ended. Retry looks at this class, never at a text."""

    SENT = "sent"
    TRANSIENT = "transient"
    """Certainly not received; try again."""
    AMBIGUOUS = "ambiguous"
    """May have been received (time-out after the bytes left); try again with the same key."""
    PERMANENT = "permanent"
    """Received and refused; trying again cannot help."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt's end. ``code`` is a short closed word such as ``http_503``; never personal data."""

    outcome: OutcomeClass
    code: str
    retry_after_s: float | None = None


class Receipt(StrEnum):
    """What became, at last, of a message that a provider took."""

    DELIVERED = "delivered"
    PERMANENT_FAILURE = "permanent_failure"
    """There is no such mailbox, or no such number."""
    TEMPORARY_FAILURE = "temporary_failure"
    """Tried for three days: the mailbox is full, or the telephone off."""
    TECHNICAL_FAILURE = "technical_failure"
    """Something between the provider and the network; nothing of the recipient's."""
    UNKNOWN = "unknown"
    """Nobody will say."""

    @property
    def is_failure(self) -> bool:
        """Whether it certainly reached nobody."""
        return self not in (Receipt.DELIVERED, Receipt.UNKNOWN)


class Parcel(msgspec.Struct, frozen=True, kw_only=True):
    """One delivery on its way out, complete."""

    idempotency_key: str
    event_type: str
    """CloudEvents type, ``uk.cpis-broker.alert.raised.v1``."""
    created_at: datetime
    address: str
    """URL of a webhook or of a FHIR server's ``$process-message``, ``host:port`` of an MLLP listener, name of a
    topic, a mailbox, a mobile number (E.164)."""
    secret: bytes
    """The recipient's own secret: signs the webhook, encrypts the topic's value, is the bearer token of a FHIR
    server; empty where not used."""
    recipient: str
    content: bytes
    content_type: str
    attempts: int = 0
    """How often it was tried before, as far as is known."""
