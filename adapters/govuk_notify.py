"""The channel to GOV.UK Notify: an e-mail or a text message whose template holds one gap, ``((message))``.

REST API v2: ``POST /v2/notifications/email`` and ``/sms``, each under a JWT (RFC 7519, HS256) that our key signs and
that is good for some seconds. Notify keeps every copy it is sent: our own id goes along as ``reference``. Where an
attempt may have been made whose end is not known, Notify is asked by that reference before anything is sent; and
afterwards what became of the message (``GET /v2/notifications?reference=``, for seven days). Of its answer, which
repeats address and text, nothing is read but the status.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Final
from urllib.parse import urlencode

import httpx
import msgspec
from joserfc import jwt
from joserfc.jwk import OctKey

from adapters.errors import ReceiptsUnavailable
from adapters.exchange import Exchange, ExchangeOptions, NoReply, Reply
from adapters.smtp import is_address
from schemas.delivery import Outcome, OutcomeClass, Parcel, Receipt

PUBLIC_URL: Final = "https://api.notifications.service.gov.uk"
_UUID: Final = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_API_KEY: Final = re.compile(rf".*?({_UUID})-({_UUID})", re.ASCII | re.IGNORECASE)
_MOBILE: Final = re.compile(r"\+447[1-57-9][0-9]{8}", re.ASCII)
_OURS: Final = frozenset({401, 403})
"""Our key, our clock or our quota: none of it is the recipient's, and a person mends it."""
_NOT_NOW: Final = frozenset({408, 425, 429})
_ENDS: Final[Mapping[str, Receipt]] = MappingProxyType(
    {
        "delivered": Receipt.DELIVERED,
        "permanent-failure": Receipt.PERMANENT_FAILURE,
        "temporary-failure": Receipt.TEMPORARY_FAILURE,
        "technical-failure": Receipt.TECHNICAL_FAILURE,
        "sent": Receipt.UNKNOWN,
    }
)
"""By Notify's word. ``sent`` is of a network that says no more; created, sending and pending are no ends."""


class NotifyKind(StrEnum):
    """What Notify sends; the last part of the path."""

    EMAIL = "email"
    SMS = "sms"


class NotifyOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where Notify is, which template, and limits."""

    kind: NotifyKind
    template_id: str
    base_url: str = PUBLIC_URL
    allow_loopback: bool = False
    """For development: http to this machine alone."""
    unasked_s: float = 15.0
    """What is older may have been sent by a process that died before it could say so: less than a lane's lease."""
    exchange: ExchangeOptions = ExchangeOptions(read_timeout_s=8.0, total_timeout_s=10.0, response_bytes_max=65_536)


class BadApiKey(ValueError):
    """The API key is none of Notify's. Says nothing of it."""


class _Kept(msgspec.Struct, frozen=True):
    status: str


class _KeptList(msgspec.Struct, frozen=True):
    notifications: tuple[_Kept, ...]


class NotifyChannel:
    """Sends a parcel's content in the place of the template's gap to the parcel's address."""

    def __init__(
        self,
        options: NotifyOptions,
        *,
        api_key: str,
        now: Callable[[], datetime],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """``api_key`` as Notify gives it: a name, the service's id, the secret. Raises BadApiKey."""
        self._options = options
        self._service, secret = split_api_key(api_key)
        self._key = OctKey.import_key(secret)
        self._now = now
        url = httpx.URL(options.base_url)
        is_plain = options.allow_loopback and _is_loopback(url.host)
        self._base = options.base_url.rstrip("/")
        limits = msgspec.structs.replace(options.exchange, allow_plain_http=is_plain)
        self._exchange = Exchange(limits, now=now, tls=tls)

    async def send(self, parcel: Parcel) -> Outcome:
        """Try once.

        201 is SENT; 401, 403, 408, 425, 429 and 5xx are TRANSIENT, with what Retry-After asks for; every other status
        is PERMANENT. Without a connection TRANSIENT, without an answer AMBIGUOUS. Never raises.
        """
        is_email = self._options.kind is NotifyKind.EMAIL
        if not (is_address(parcel.address) if is_email else _MOBILE.fullmatch(parcel.address)):
            return Outcome(outcome=OutcomeClass.PERMANENT, code="bad_address")
        try:
            if self._may_have_been_sent(parcel):
                kept = await self._list_kept(parcel.idempotency_key)
                if not all(_is_missed(each) for each in kept):
                    return Outcome(outcome=OutcomeClass.SENT, code="kept_before")
            return self._settle(await self._post(parcel))
        except ReceiptsUnavailable as error:
            # What cannot be asked is not known: only sending may end a delivery.
            return Outcome(outcome=OutcomeClass.TRANSIENT, code=error.code, retry_after_s=error.retry_after_s)
        except NoReply as missing:
            return _settle_missing(missing)

    async def find_receipt(self, idempotency_key: str) -> Receipt | None:
        """What became of what was sent under this key; None: not known yet, or nothing is known of it.

        Of several copies one that arrived is enough, and none may be on its way still. Raises ReceiptsUnavailable.
        """
        try:
            kept = await self._list_kept(idempotency_key)
        except NoReply as missing:
            raise ReceiptsUnavailable(missing.code) from None
        found = [_ENDS.get(each.status) for each in kept]
        if Receipt.DELIVERED in found:
            return Receipt.DELIVERED
        return None if not found or None in found else found[0]

    async def close(self) -> None:
        """Let go of connections."""
        await self._exchange.close()

    def _may_have_been_sent(self, parcel: Parcel) -> bool:
        age_s = (self._now() - parcel.created_at).total_seconds()
        return parcel.attempts > 0 or age_s >= self._options.unasked_s

    async def _post(self, parcel: Parcel) -> Reply:
        to = "email_address" if self._options.kind is NotifyKind.EMAIL else "phone_number"
        body = {
            to: parcel.address,
            "template_id": self._options.template_id,
            "personalisation": {"message": parcel.content.decode()},
            "reference": parcel.idempotency_key,
        }
        url = httpx.URL(f"{self._base}/v2/notifications/{self._options.kind.value}")
        return await self._exchange.send("POST", url, self._headers(), msgspec.json.encode(body))

    async def _list_kept(self, reference: str) -> tuple[_Kept, ...]:
        """Every copy that Notify has under this reference, the newest first. Raises NoReply, ReceiptsUnavailable."""
        query = urlencode({"reference": reference})
        reply = await self._exchange.send("GET", httpx.URL(f"{self._base}/v2/notifications?{query}"), self._headers())
        if reply.status != httpx.codes.OK:
            raise ReceiptsUnavailable(f"http_{reply.status}", reply.retry_after_s)
        try:
            return msgspec.json.decode(reply.body, type=_KeptList).notifications
        except msgspec.DecodeError:
            raise ReceiptsUnavailable("not_understood") from None

    def _headers(self) -> dict[str, str]:
        claims: dict[str, str | int] = {"iss": self._service, "iat": int(self._now().timestamp())}
        token = jwt.encode({"alg": "HS256", "typ": "JWT"}, claims, self._key)
        return {
            "authorization": f"Bearer {token}",
            "content-type": "application/json",
            "accept": "application/json",
            "user-agent": "cpis-broker",
        }

    def _settle(self, reply: Reply) -> Outcome:
        code = f"http_{reply.status}"
        if reply.status == httpx.codes.CREATED:
            return Outcome(outcome=OutcomeClass.SENT, code=code)
        is_away = reply.status in _OURS | _NOT_NOW or reply.status >= httpx.codes.INTERNAL_SERVER_ERROR
        outcome = OutcomeClass.TRANSIENT if is_away else OutcomeClass.PERMANENT
        return Outcome(outcome=outcome, code=code, retry_after_s=reply.retry_after_s if is_away else None)


def split_api_key(api_key: str) -> tuple[str, str]:
    """The service's id and the secret of a key. Raises BadApiKey."""
    found = _API_KEY.fullmatch(api_key.strip())
    if found is None:
        raise BadApiKey
    return found[1], found[2]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_missed(kept: _Kept) -> bool:
    found = _ENDS.get(kept.status)
    return found is not None and found.is_failure


def _settle_missing(missing: NoReply) -> Outcome:
    if missing.is_final:
        return Outcome(outcome=OutcomeClass.PERMANENT, code=missing.code)
    never_left = missing.code in ("connect_timeout", "connect_failed")
    outcome = OutcomeClass.TRANSIENT if never_left else OutcomeClass.AMBIGUOUS
    return Outcome(outcome=outcome, code=missing.code)
