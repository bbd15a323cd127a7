"""A POST to somebody else's server, settled by its status: where it may go, how long it may take, what its end means.

Statuses and Retry-After as in RFC 9110. What is sent, and under which headers, is the channels' business.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import httpx
import msgspec

from schemas.delivery import Outcome, OutcomeClass

OnEvent = Callable[[str, Mapping[str, int | str]], None]

_TRANSIENT_STATUSES: Final = frozenset({408, 425, 429})


class PostingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits, and where posts may go."""

    allow_plain_http: bool = False
    """For development: the content would cross the network unencrypted."""
    allow_private_addresses: bool = False
    """For servers inside the same network; otherwise such an address is how a server is turned on its own
    surroundings (server-side request forgery)."""
    allowed_hosts: frozenset[str] = frozenset()
    """If not empty, the only hosts posts may go to, in lower case."""
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 15.0
    total_timeout_s: float = 30.0
    response_bytes_max: int = 65_536
    retry_after_max_s: float = 3_600.0
    hosts_max: int = 256
    """Hosts whose connections are kept."""
    connections_max: int = 4
    """For each host."""


class Poster:
    """Posts to URLs of the directory.

    ``event`` is reported with the class of an ``error`` that should not have been possible.
    """

    def __init__(
        self,
        options: PostingOptions,
        on_event: OnEvent,
        *,
        event: str,
        now: Callable[[], datetime],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._options = options
        self._on_event = on_event
        self._event = event
        self._now = now
        timeout = httpx.Timeout(options.read_timeout_s, connect=options.connect_timeout_s, pool=options.total_timeout_s)
        self._client = httpx.AsyncClient(
            transport=_CheckedTransport(options, tls or httpx.create_ssl_context()),
            timeout=timeout,
            follow_redirects=False,
            trust_env=False,
        )

    async def post(self, address: str, content: bytes, headers: Mapping[str, str]) -> Outcome:
        """Try once.

        2xx is SENT; 408, 425, 429 and 5xx are TRANSIENT, with what Retry-After asks for; every other status is
        PERMANENT, redirects too. Without a connection TRANSIENT; without an answer AMBIGUOUS. Never raises.
        """
        outcome: Outcome | None = None
        try:
            url = _read_address(address, self._options)
            async with (
                asyncio.timeout(self._options.total_timeout_s),
                self._client.stream("POST", url, content=content, headers=dict(headers)) as response,
            ):
                outcome = self._settle(response)
                await self._discard(response)
        except Exception as error:
            return outcome or self._classify(error)
        return outcome

    async def close(self) -> None:
        """Let go of connections."""
        await self._client.aclose()

    def _settle(self, response: httpx.Response) -> Outcome:
        code = f"http_{response.status_code}"
        if response.is_success:
            return Outcome(outcome=OutcomeClass.SENT, code=code)
        if response.is_server_error or response.status_code in _TRANSIENT_STATUSES:
            retry_after_s = read_retry_after(response.headers.get("retry-after", ""), self._now())
            if retry_after_s is not None:
                retry_after_s = min(max(retry_after_s, 0.0), self._options.retry_after_max_s)
            return Outcome(outcome=OutcomeClass.TRANSIENT, code=code, retry_after_s=retry_after_s)
        return Outcome(outcome=OutcomeClass.PERMANENT, code=code)

    async def _discard(self, response: httpx.Response) -> None:
        """Read a short body, so that the connection can be used again; a long one is cut off with it."""
        received_bytes = 0
        async for chunk in response.aiter_raw():
            received_bytes += len(chunk)
            if received_bytes > self._options.response_bytes_max:
                break

    def _classify(self, error: Exception) -> Outcome:
        if isinstance(error, _NotPosted):
            return Outcome(outcome=error.outcome, code=error.code)
        if isinstance(error, httpx.ConnectError):
            code = "tls_failed" if _is_tls_failure(error) else "connect_failed"
            return Outcome(outcome=OutcomeClass.TRANSIENT, code=code)
        if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
            return Outcome(outcome=OutcomeClass.TRANSIENT, code="connect_timeout")
        if isinstance(error, httpx.TimeoutException | TimeoutError):
            return Outcome(outcome=OutcomeClass.AMBIGUOUS, code="answer_timeout")
        if isinstance(error, httpx.TransportError):
            return Outcome(outcome=OutcomeClass.AMBIGUOUS, code="connection_lost")
        self._on_event(self._event, {"error": type(error).__name__})
        return Outcome(outcome=OutcomeClass.AMBIGUOUS, code="failed")


def read_retry_after(text: str, now: datetime) -> float | None:
    """Seconds or an HTTP date (RFC 9110, 10.2.3), in seconds from ``now``; None when it is neither."""
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    return (until if until.tzinfo else until.replace(tzinfo=UTC)).timestamp() - now.timestamp()


def _is_tls_failure(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


# --- where a post may go --------------------------------------------------------------------------------


class _NotPosted(Exception):
    """Nothing was sent; what that means, and a closed word."""

    def __init__(self, outcome: OutcomeClass, code: str) -> None:
        super().__init__(code)
        self.outcome = outcome
        self.code = code


def _read_address(address: str, options: PostingOptions) -> httpx.URL:
    try:
        url = httpx.URL(address)
    except (httpx.InvalidURL, ValueError):
        raise _NotPosted(OutcomeClass.PERMANENT, "bad_address") from None
    is_complete = url.scheme in ("https", "http") and url.host and (url.port is None or 0 < url.port < 65_536)
    if not is_complete or url.userinfo or _is_odd_number(url.host):
        raise _NotPosted(OutcomeClass.PERMANENT, "bad_address")
    if url.scheme == "http" and not options.allow_plain_http:
        raise _NotPosted(OutcomeClass.PERMANENT, "plain_http")
    if options.allowed_hosts and url.host.lower() not in options.allowed_hosts:
        raise _NotPosted(OutcomeClass.PERMANENT, "host_not_allowed")
    return url


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_odd_number(host: str) -> bool:
    """Whether the host is an IPv4 address in one of its unusual spellings (``0x7f.1``, ``2130706433``)."""
    last_label = host.rstrip(".").rpartition(".")[2].lower()
    is_number = last_label.isdigit() or last_label.startswith("0x")
    return is_number and not _is_ip_address(host)


_GLOBAL_UNICAST: Final = ipaddress.ip_network("2000::/3")
_SIX_TO_FOUR: Final = ipaddress.ip_network("2002::/16")


def is_public_address(text: str) -> bool:
    """Whether an IP address is one of the public Internet; addresses that embed another count as that one."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public_address(str(address.ipv4_mapped))
        if address not in _GLOBAL_UNICAST or address in _SIX_TO_FOUR:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


class _Host:
    """The connections to one host, and how many requests use them."""

    def __init__(self, options: PostingOptions, tls: ssl.SSLContext) -> None:
        limits = httpx.Limits(max_connections=options.connections_max)
        self.transport = httpx.AsyncHTTPTransport(verify=tls, limits=limits, trust_env=False)
        self.users = 0


class _CheckedTransport(httpx.AsyncBaseTransport):
    """Resolves the host itself, checks the addresses and connects to just these.

    So a name that resolves to another address a moment later (DNS rebinding) gains nothing. The certificate is
    still checked against the name. Each host has connections of its own: two names on one address would else
    share one that was checked for the other.
    """

    def __init__(self, options: PostingOptions, tls: ssl.SSLContext) -> None:
        self._options = options
        self._tls = tls
        self._hosts: OrderedDict[str, _Host] = OrderedDict()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        name = request.url.host
        addresses = await self._resolve(name, request.url.port)
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = _Host(self._options, self._tls)
        self._hosts.move_to_end(name)
        host.users += 1
        try:
            return await self._try_each(host, request, name, addresses)
        finally:
            host.users -= 1
            await self._evict()

    async def aclose(self) -> None:
        while self._hosts:
            _, host = self._hosts.popitem()
            await host.transport.aclose()

    async def _try_each(self, host: _Host, request: httpx.Request, name: str, addresses: list[str]) -> httpx.Response:
        for address in addresses[:-1]:
            try:
                return await host.transport.handle_async_request(_pin(request, name, address))
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        return await host.transport.handle_async_request(_pin(request, name, addresses[-1]))

    async def _resolve(self, name: str, port: int | None) -> list[str]:
        addresses = [name] if _is_ip_address(name) else await self._look_up(name, port)
        if not self._options.allow_private_addresses and not all(map(is_public_address, addresses)):
            raise _NotPosted(OutcomeClass.PERMANENT, "address_refused")
        return addresses

    async def _look_up(self, name: str, port: int | None) -> list[str]:
        try:
            async with asyncio.timeout(self._options.connect_timeout_s):
                found = await asyncio.get_running_loop().getaddrinfo(name, port or 443, type=socket.SOCK_STREAM)
        except TimeoutError:
            raise _NotPosted(OutcomeClass.TRANSIENT, "name_timeout") from None
        except OSError:
            raise _NotPosted(OutcomeClass.TRANSIENT, "name_unknown") from None
        except UnicodeError:
            raise _NotPosted(OutcomeClass.PERMANENT, "bad_address") from None
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    async def _evict(self) -> None:
        idle = [name for name, host in self._hosts.items() if not host.users]
        for name in idle[: max(0, len(self._hosts) - self._options.hosts_max)]:
            await self._hosts.pop(name).transport.aclose()


def _pin(request: httpx.Request, name: str, address: str) -> httpx.Request:
    """``request`` to one address of its host; the Host header and the name in TLS stay."""
    return httpx.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": name},
    )
