"""One HTTP request to a configured service and its whole answer, within limits, and without a line in any log.

httpx's own client writes the address of every request to the log at level INFO, and with it what a query asks; the
transport below it does not. Redirects are not followed, and no compressed answer is asked for.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from datetime import datetime

import httpx
import msgspec

from adapters.errors import AdapterError
from adapters.posting import read_retry_after


class ExchangeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits."""

    allow_plain_http: bool = False
    """For development: questions and answers would cross the network unencrypted."""
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 15.0
    total_timeout_s: float = 30.0
    response_bytes_max: int = 262_144
    retry_after_max_s: float = 3_600.0
    connections_max: int = 4


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, whole."""

    status: int
    body: bytes
    retry_after_s: float | None = None
    """What Retry-After asks for, from now; never negative."""


class NoReply(AdapterError):
    """There was no answer, or none within the limits; ``code`` is a closed word for what happened."""

    def __init__(self, code: str, *, is_final: bool = False) -> None:
        """``is_final``: nothing was asked, and asking again cannot help."""
        super().__init__(code)
        self.code = code
        self.is_final = is_final


class Exchange:
    """Connections to configured services."""

    def __init__(
        self, options: ExchangeOptions, *, now: Callable[[], datetime], tls: ssl.SSLContext | None = None
    ) -> None:
        self._options = options
        self._now = now
        limits = httpx.Limits(max_connections=options.connections_max)
        self._transport = httpx.AsyncHTTPTransport(
            verify=tls or httpx.create_ssl_context(), limits=limits, trust_env=False
        )
        self._timeouts = httpx.Timeout(
            options.read_timeout_s, connect=options.connect_timeout_s, pool=options.total_timeout_s
        ).as_dict()

    async def send(self, method: str, url: httpx.URL, headers: Mapping[str, str], content: bytes = b"") -> Reply:
        """Ask once. Raises NoReply."""
        if url.scheme != "https" and not (url.scheme == "http" and self._options.allow_plain_http):
            raise NoReply("plain_http", is_final=True)
        request = httpx.Request(
            method, url, headers=dict(headers), content=content, extensions={"timeout": self._timeouts}
        )
        try:
            async with asyncio.timeout(self._options.total_timeout_s):
                response = await self._transport.handle_async_request(request)
                try:
                    return await self._read(response)
                finally:
                    await response.aclose()
        except (httpx.ConnectTimeout, httpx.PoolTimeout):
            raise NoReply("connect_timeout") from None
        except httpx.ConnectError:
            raise NoReply("connect_failed") from None
        except (httpx.TimeoutException, TimeoutError):
            raise NoReply("answer_timeout") from None
        except httpx.TransportError:
            raise NoReply("connection_lost") from None

    async def close(self) -> None:
        """Let go of connections."""
        await self._transport.aclose()

    async def _read(self, response: httpx.Response) -> Reply:
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > self._options.response_bytes_max:
                raise NoReply("answer_too_long")
        asked_s = read_retry_after(response.headers.get("retry-after", ""), self._now())
        if asked_s is not None:
            asked_s = min(max(asked_s, 0.0), self._options.retry_after_max_s)
        return Reply(status=response.status_code, body=bytes(body), retry_after_s=asked_s)
