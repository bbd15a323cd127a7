"""HTTP/1.1 as far as this side needs it (RFC 9112): a server that reads a request whole, writes an answer and keeps the
connection; and how to read an answer.

Written on the socket so that it can do what a web framework would not: break off in the middle of an answer.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, ClassVar, Final

from mock_nhs.faults import Faults
from mock_nhs.listener import Listener

HEAD_BYTES_MAX: Final = 16_384
BODY_BYTES_MAX: Final = 1_000_000


class BadRequest(Exception):
    """A request that cannot be taken; ``status`` is its answer, after which the connection closes."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request, whole. Header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    query: str = ""
    """What stands behind the question mark, as it came."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What to answer."""

    status: int
    content: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def as_bytes(self) -> bytes:
        """The answer on the wire."""
        body = json.dumps(self.content).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **self.headers}
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("ascii") + body


class BadResponse(Exception):
    """An answer that is none, or broken off."""


@dataclass(frozen=True, kw_only=True)
class Response:
    """An answer, whole. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def read_response(reader: asyncio.StreamReader) -> Response:
    """The answer to the request that was written last. Raises BadResponse."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status, length = int(first.split(" ")[1]), int(headers.get("content-length", "0"))
        if not first.startswith("HTTP/1.") or "transfer-encoding" in headers or length > BODY_BYTES_MAX:
            raise BadResponse
        return Response(status=status, headers=headers, body=await reader.readexactly(length))
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, IndexError):
        raise BadResponse from None


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request, or None when the connection ended. Raises BadRequest."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    except asyncio.LimitOverrunError:
        raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE) from None
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or name.lower() in headers:
            raise BadRequest(HTTPStatus.BAD_REQUEST)
        headers[name.lower()] = value.strip()
    try:
        body = await reader.readexactly(_read_length(words[0], headers))
    except asyncio.IncompleteReadError:
        return None
    path, _, query = words[1].partition("?")
    return Request(method=words[0], path=path, headers=headers, body=body, query=query)


def _read_length(method: str, headers: Mapping[str, str]) -> int:
    if "transfer-encoding" in headers:
        raise BadRequest(HTTPStatus.LENGTH_REQUIRED)
    text = headers.get("content-length", "" if method == "POST" else "0")
    if not text:
        raise BadRequest(HTTPStatus.LENGTH_REQUIRED)
    if not (text.isascii() and text.isdigit()):
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    if int(text) > BODY_BYTES_MAX:
        raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    return int(text)


class HttpServer(ABC):
    """A system of this side that is asked over HTTP, or fails on purpose."""

    path: ClassVar[str] = ""
    """Where below its address it is asked."""

    def __init__(self, host: str, port: int, *, idle_s: float, faults: Faults) -> None:
        """``port`` 0: a free one. A connection on which nobody asks for ``idle_s`` is closed."""
        self.faults = faults
        self.port = 0
        self._host = host
        self._wanted_port = port
        self._idle_s = idle_s
        self._listener = Listener(self._serve, buffer_bytes_max=HEAD_BYTES_MAX)

    @property
    def origin(self) -> str:
        """Scheme, host and port, after ``start``."""
        return f"http://{self._host}:{self.port}"

    @property
    def url(self) -> str:
        """Where it is asked, after ``start``."""
        return f"{self.origin}{self.path}"

    async def start(self) -> int:
        """Listen, and return the port."""
        self.port = await self._listener.start(self._host, self._wanted_port)
        return self.port

    async def stop(self) -> None:
        """Close every connection."""
        await self._listener.stop()

    @abstractmethod
    async def _answer(self, request: Request) -> tuple[bytes, bool]:
        """The bytes to write, and whether the connection closes after them."""

    @abstractmethod
    def _refuse_unread(self, status: int) -> Answer:
        """The answer to what is no request that can be read."""

    @abstractmethod
    def _note(self, what: str, **facts: str | int) -> None:
        """Write down what happened."""

    def _fails(self, fault: str) -> bool:
        fires = self.faults.fires(fault)
        if fires:
            self._note("failed_on_purpose", fault=fault)
        return fires

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                async with asyncio.timeout(self._idle_s):
                    request = await read_request(reader)
            except BadRequest as bad:
                writer.write(self._refuse_unread(bad.status).as_bytes())
                await writer.drain()
                return
            except TimeoutError:
                return
            if request is None:
                return
            answer, closes = await self._answer(request)
            writer.write(answer)
            await writer.drain()
            if closes or request.headers.get("connection") == "close":
                return
