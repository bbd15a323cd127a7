"""A sending system's FHIR link: one connection to the broker's ``$process-message``, one message after the other.

A message is sent until it is answered: again after a connection that closed or fell silent and after 408, 425, 429
and 5xx, with the same bytes. 202 with an OperationOutcome ends it; so does every other status, for nothing will change.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from mock_nhs.department import AdtMessage
from mock_nhs.faults import Faults
from mock_nhs.http_listener import HEAD_BYTES_MAX, BadResponse, Response, read_response

PATH: Final = "/FHIR/R4/$process-message"
_TRY_AGAIN: Final = frozenset({408, 425, 429})


@dataclass(frozen=True, kw_only=True)
class FhirLinkOptions:
    """How a link behaves."""

    base: str
    """Where the broker's pages and doors are: ``http://127.0.0.1:8000``."""
    user: str
    """The site's ODS code, for HTTP Basic."""
    password: str
    """Its credential."""
    unsettled_max: int = 1_000
    """Messages offered and not yet answered; offering waits beyond."""
    answer_timeout_s: float = 10.0
    connect_timeout_s: float = 5.0
    pause_s: float = 0.05
    """Before a message is sent again; it doubles each time."""
    pause_s_max: float = 1.0


class Unanswered(Exception):
    """The connection is of no more use: closed, silent too long, or broken on purpose."""


class FhirLink:
    """Sends what it is offered; ``on_answer`` hears the status of each answer."""

    def __init__(
        self, options: FhirLinkOptions, faults: Faults, on_answer: Callable[[AdtMessage, str, int], None]
    ) -> None:
        self._options = options
        self._faults = faults
        self._on_answer = on_answer
        self._waiting: asyncio.Queue[AdtMessage] = asyncio.Queue()
        self._room = asyncio.Semaphore(options.unsettled_max)
        self._task: asyncio.Task[None] | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self.connections = 0
        """How many connections were made."""

    def start(self) -> None:
        """Begin to send."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Close the connection; what is unanswered stays so."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self._hang_up()

    async def offer(self, message: AdtMessage) -> None:
        """Take a message; waits while too many are unanswered."""
        await self._room.acquire()
        self._waiting.put_nowait(message)

    async def settle(self) -> None:
        """Wait until everything offered has been answered for good."""
        await self._waiting.join()

    async def _run(self) -> None:
        while True:
            message = await self._waiting.get()
            await self._send_until_answered(message)
            self._room.release()
            self._waiting.task_done()

    async def _send_until_answered(self, message: AdtMessage) -> None:
        attempts, pause_s = 0, self._options.pause_s
        while True:
            attempts += 1
            try:
                response = await self._send(message)
            except (OSError, Unanswered, BadResponse, TimeoutError):
                await self._hang_up()
            else:
                self._on_answer(message, _describe(response), attempts)
                if response.status not in _TRY_AGAIN and response.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                    return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._options.pause_s_max)

    async def _send(self, message: AdtMessage) -> Response:
        reader, writer = await self._connect()
        request = self._compose(message)
        if self._faults.fires("ed.post.half_request"):
            await self._write_last(writer, request[: len(request) // 2])
        if self._faults.fires("ed.post.hang_up"):
            await self._write_last(writer, request)
        times = 2 if self._faults.fires("ed.post.twice") else 1
        for _ in range(times):
            writer.write(request)
            await writer.drain()
            async with asyncio.timeout(self._options.answer_timeout_s):
                response = await read_response(reader)
        if response.headers.get("connection", "").lower() == "close":
            await self._hang_up()
        return response

    async def _write_last(self, writer: asyncio.StreamWriter, final: bytes) -> None:
        """Write these bytes out, then close the connection."""
        writer.write(final)
        await writer.drain()
        raise Unanswered

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None or self._reader.at_eof():
            await self._hang_up()
            address = urlsplit(self._options.base)
            async with asyncio.timeout(self._options.connect_timeout_s):
                self._reader, self._writer = await asyncio.open_connection(
                    address.hostname, address.port, limit=HEAD_BYTES_MAX
                )
            self.connections += 1
        return self._reader, self._writer

    async def _hang_up(self) -> None:
        writer, self._reader, self._writer = self._writer, None, None
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _compose(self, message: AdtMessage) -> bytes:
        basic = base64.b64encode(f"{self._options.user}:{self._options.password}".encode()).decode()
        head = (
            f"POST {urlsplit(self._options.base).path}{PATH} HTTP/1.1",
            f"Host: {urlsplit(self._options.base).netloc}",
            f"Authorization: Basic {basic}",
            f"Content-Type: {message.content_type}",
            "Accept: application/fhir+json",
            f"X-Request-Id: {message.control_id}",
            f"Content-Length: {len(message.body)}",
        )
        return "\r\n".join([*head, "", ""]).encode("ascii") + message.body


def _describe(response: Response) -> str:
    """The status; 202 only counts with an OperationOutcome."""
    if response.status != HTTPStatus.ACCEPTED:
        return str(response.status)
    try:
        is_outcome = json.loads(response.body)["resourceType"] == "OperationOutcome"
    except (ValueError, KeyError, TypeError):
        is_outcome = False
    return "202" if is_outcome else "202_without_outcome"
