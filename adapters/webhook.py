"""The channel to a case system: a signed POST.

CloudEvents 1.0 in the HTTP protocol binding's binary mode; signature by the Standard Webhooks convention
(standardwebhooks.com, symmetric ``v1``); Idempotency-Key as in the IETF draft of that name.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ssl
from collections.abc import Callable
from datetime import datetime

from adapters.posting import OnEvent, Poster, PostingOptions
from schemas.delivery import Outcome, OutcomeClass, Parcel


class WebhookOptions(PostingOptions, frozen=True, kw_only=True):
    """Limits, where posts may go, and what they say of us."""

    source: str = "urn:cpis-broker"
    """CloudEvents source of everything sent."""


class WebhookChannel:
    """Posts a parcel's content to the URL that is its address.

    ``now`` gives the instant of the signature. Event: ``webhook_failed`` with the class of an ``error`` that
    should not have been possible.
    """

    def __init__(
        self,
        options: WebhookOptions,
        on_event: OnEvent,
        *,
        now: Callable[[], datetime],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._options = options
        self._now = now
        self._poster = Poster(options, on_event, event="webhook_failed", now=now, tls=tls)

    async def send(self, parcel: Parcel) -> Outcome:
        """Try once; the status decides (``Poster.post``). Without a secret nothing leaves."""
        if not parcel.secret:
            return Outcome(outcome=OutcomeClass.PERMANENT, code="no_secret")
        return await self._poster.post(parcel.address, parcel.content, self._headers(parcel))

    async def close(self) -> None:
        """Let go of connections."""
        await self._poster.close()

    def _headers(self, parcel: Parcel) -> dict[str, str]:
        timestamp = int(self._now().timestamp())
        signature = sign_webhook(parcel.secret, parcel.idempotency_key, timestamp, parcel.content)
        return {
            "content-type": parcel.content_type,
            "ce-specversion": "1.0",
            "ce-id": parcel.idempotency_key,
            "ce-type": parcel.event_type,
            "ce-source": self._options.source,
            "ce-time": parcel.created_at.isoformat(),
            "idempotency-key": parcel.idempotency_key,
            "webhook-id": parcel.idempotency_key,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature,
            "user-agent": "cpis-broker",
        }


def sign_webhook(secret: bytes, message_id: str, timestamp: int, content: bytes) -> str:
    """The ``webhook-signature``: ``v1,`` and the Base64 of HMAC-SHA256 over id, time (seconds) and content."""
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, content)
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
