"""The channel to a department's FHIR server: a message Bundle posted to its ``$process-message`` (FHIR R4, 2.4)."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from datetime import datetime
from typing import Final
from uuid import UUID, uuid5

from adapters.posting import OnEvent, Poster, PostingOptions
from schemas.delivery import Outcome, OutcomeClass, Parcel

_REQUESTS: Final = UUID("6f6c1f5e-9f0b-5b43-9a0e-2f6f3f6f7c11")
"""Namespace of the request ids that are derived from idempotency keys."""
_BEARER_TOKEN: Final = re.compile(rb"[A-Za-z0-9\-._~+/]+=*")
"""RFC 6750, 2.1."""


class FhirReplyChannel:
    """Posts a parcel's content to the URL that is its address.

    Event: ``fhir_reply_failed`` with the class of an ``error`` that should not have been possible.
    """

    def __init__(
        self,
        options: PostingOptions,
        on_event: OnEvent,
        *,
        now: Callable[[], datetime],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._poster = Poster(options, on_event, event="fhir_reply_failed", now=now, tls=tls)

    async def send(self, parcel: Parcel) -> Outcome:
        """Try once; the status decides (``Poster.post``). The OperationOutcome that comes back is not read."""
        if parcel.secret and not _BEARER_TOKEN.fullmatch(parcel.secret):
            return Outcome(outcome=OutcomeClass.PERMANENT, code="bad_credential")
        return await self._poster.post(parcel.address, parcel.content, self._headers(parcel))

    async def close(self) -> None:
        """Let go of connections."""
        await self._poster.close()

    def _headers(self, parcel: Parcel) -> dict[str, str]:
        request_id = str(uuid5(_REQUESTS, parcel.idempotency_key))
        headers = {
            "content-type": parcel.content_type,
            "accept": "application/fhir+json",
            "x-request-id": request_id,
            "x-correlation-id": request_id,
            "user-agent": "cpis-broker",
        }
        if parcel.secret:
            headers["authorization"] = f"Bearer {parcel.secret.decode()}"
        return headers
