"""Access tokens for NHS England's application-restricted APIs, for a JSON Web Token that the application signs.

OAuth 2.0 client credentials with a private key JWT (RFC 7523, 2.2), as NHS England's page on signed JWT authentication
describes it: RS512 with the key's ``kid``; ``iss`` and ``sub`` the application's API key, ``aud`` the token endpoint to
the letter, ``jti`` new each time, ``exp`` at most five minutes ahead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Final, Protocol
from urllib.parse import urlencode
from uuid import uuid4

import httpx
import msgspec
from joserfc import jwt
from joserfc.jwk import RSAKey

from adapters.exchange import Exchange, NoReply, Reply
from schemas.trace import Refused, Unavailable

_ASSERTION: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ALGORITHM: Final = "RS512"
TRANSIENT_STATUSES: Final = frozenset({408, 425, 429})


class AccessToken(msgspec.Struct, frozen=True, kw_only=True):
    """What the Authorization header carries. Its text is a secret."""

    secret: str

    def __repr__(self) -> str:
        return "AccessToken(...)"


class TokenSource(Protocol):
    """Where an adapter gets its access token."""

    async def fetch(self) -> AccessToken | Unavailable | Refused:
        """A token that is good now. Never raises for what the other side does."""
        ...

    def forget(self, token: AccessToken) -> None:
        """This token was refused: the next is a new one."""
        ...


class SignedJwtOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to prove who we are."""

    token_url: str
    key_id: str
    """The key's id in the public key set (JWKS) that was registered."""
    assertion_s: int = 240
    """How long an assertion is good; five minutes are refused when our clock is a second ahead."""
    renew_before_s: float = 30.0
    """A token with less left than this is renewed first."""
    token_s_max: float = 3_600.0
    """No token is used longer than this, whatever its ``expires_in`` says."""


class _Grant(msgspec.Struct, frozen=True):
    access_token: str
    expires_in: float | str


class SignedJwtTokens:
    """Keeps one access token, and renews it before it expires. Many may ask at once: one fetches."""

    def __init__(
        self,
        options: SignedJwtOptions,
        exchange: Exchange,
        *,
        api_key: str,
        private_key: bytes,
        now: Callable[[], datetime],
    ) -> None:
        """``private_key`` is PEM. Raises ValueError when it is not an RSA key."""
        self._options = options
        self._exchange = exchange
        self._api_key = api_key
        self._key = RSAKey.import_key(private_key)
        self._now = now
        self._lock = asyncio.Lock()
        self._token: AccessToken | None = None
        self._renew_at_s = 0.0

    async def fetch(self) -> AccessToken | Unavailable | Refused:
        """The token that is kept, or a new one."""
        async with self._lock:
            if self._token is not None and self._now().timestamp() < self._renew_at_s:
                return self._token
            self._token = None
            return await self._renew()

    def forget(self, token: AccessToken) -> None:
        """Drop the token, if it is still the one that is kept."""
        if self._token == token:
            self._token = None

    async def _renew(self) -> AccessToken | Unavailable | Refused:
        form = {
            "grant_type": "client_credentials",
            "client_assertion_type": _ASSERTION,
            "client_assertion": self._sign(),
        }
        headers = {"content-type": "application/x-www-form-urlencoded", "accept": "application/json"}
        try:
            reply = await self._exchange.send(
                "POST", httpx.URL(self._options.token_url), headers, urlencode(form).encode()
            )
        except NoReply as missing:
            code = f"token_{missing.code}"
            return Refused(code=code) if missing.is_final else Unavailable(code=code)
        return self._settle(reply)

    def _settle(self, reply: Reply) -> AccessToken | Unavailable | Refused:
        code = f"token_http_{reply.status}"
        if reply.status >= 500 or reply.status in TRANSIENT_STATUSES:
            return Unavailable(code=code, retry_after_s=reply.retry_after_s)
        if reply.status != 200:
            return Refused(code=code)
        try:
            grant = msgspec.json.decode(reply.body, type=_Grant)
            good_s = float(grant.expires_in)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return Unavailable(code="token_not_understood")
        if not grant.access_token.isascii() or not grant.access_token.isprintable() or not good_s > 0:
            return Unavailable(code="token_not_understood")
        self._token = AccessToken(secret=grant.access_token)
        good_s = min(good_s, self._options.token_s_max)
        self._renew_at_s = self._now().timestamp() + good_s - self._options.renew_before_s
        return self._token

    def _sign(self) -> str:
        now_s = int(self._now().timestamp())
        claims = {
            "iss": self._api_key,
            "sub": self._api_key,
            "aud": self._options.token_url,
            "jti": str(uuid4()),
            "iat": now_s,
            "exp": now_s + self._options.assertion_s,
        }
        header = {"alg": _ALGORITHM, "typ": "JWT", "kid": self._options.key_id}
        return jwt.encode(header, claims, self._key, algorithms=[_ALGORITHM])
