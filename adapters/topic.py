"""The channel to a Kafka topic: the content encrypted for its recipient, since nothing personal may stand there.

The value is a JSON Web Encryption in compact form (RFC 7516), direct encryption with the recipient's own key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import msgspec
from joserfc import jwe
from joserfc.jwk import OctKey

from adapters.errors import LogError, NotDurable
from schemas.delivery import Outcome, OutcomeClass, Parcel
from schemas.record import Partition

SECRET_BYTES: Final = 32
"""Length of a recipient's key: A256GCM."""


class TopicLog(Protocol):
    """What is needed of a log."""

    async def append(
        self, topic: str, *, key: bytes | None, value: bytes, headers: Mapping[str, bytes]
    ) -> tuple[Partition, int]:
        """Append one record and return once it is durable; raises LogError."""
        ...


class TopicOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``source`` is the CloudEvents source of everything sent."""

    source: str = "urn:cpis-broker"


class TopicChannel:
    """Appends to the topic that is the parcel's address. The log stays its owner's to close."""

    def __init__(self, log: TopicLog, options: TopicOptions) -> None:
        self._log = log
        self._options = options

    async def send(self, parcel: Parcel) -> Outcome:
        """Try once. An append that was not confirmed is AMBIGUOUS: it may yet stand."""
        if len(parcel.secret) != SECRET_BYTES:
            return Outcome(outcome=OutcomeClass.PERMANENT, code="bad_secret")
        headers = {
            "ce_specversion": b"1.0",
            "ce_id": parcel.idempotency_key.encode(),
            "ce_type": parcel.event_type.encode(),
            "ce_source": self._options.source.encode(),
            "ce_time": parcel.created_at.isoformat().encode(),
            "content-type": b"application/jose",
        }
        try:
            await self._log.append(
                parcel.address, key=parcel.recipient.encode(), value=encrypt_content(parcel), headers=headers
            )
        except NotDurable:
            return Outcome(outcome=OutcomeClass.AMBIGUOUS, code="not_durable")
        except LogError:
            return Outcome(outcome=OutcomeClass.TRANSIENT, code="log_unavailable")
        return Outcome(outcome=OutcomeClass.SENT, code="appended")

    async def close(self) -> None:
        """Nothing is held."""


def encrypt_content(parcel: Parcel) -> bytes:
    """The parcel's content as a JWE: ``alg`` dir, ``enc`` A256GCM, ``kid`` the recipient, ``cty`` the content type."""
    protected = {"alg": "dir", "enc": "A256GCM", "kid": parcel.recipient, "cty": parcel.content_type}
    return jwe.encrypt_compact(protected, parcel.content, OctKey.import_key(parcel.secret)).encode()
