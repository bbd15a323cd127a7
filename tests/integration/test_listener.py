"""Who sends slowly: the head of a request is waited for so long, and nothing that is under way is cut off."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from broker.bootstrap.web import configure_server
from tests.factories import make_settings

HEAD_TIMEOUT_S = 0.15
BEGUN = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n"


async def _answer_late(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await asyncio.sleep(2 * HEAD_TIMEOUT_S)
    await PlainTextResponse(b"took " + body)(scope, receive, send)


@asynccontextmanager
async def listening(directory: Path) -> AsyncIterator[int]:
    settings = make_settings(directory, http_head_timeout_s=HEAD_TIMEOUT_S)
    config = configure_server(_answer_late, settings)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


async def _drip(writer: asyncio.StreamWriter) -> None:
    """A byte now and then, as one does who wants to hold a connection."""
    while not writer.is_closing():
        writer.write(b"X")
        await asyncio.sleep(HEAD_TIMEOUT_S / 5)


async def test_a_head_that_never_ends_does_not_hold_its_connection(tmp_path: Path) -> None:
    async with listening(tmp_path) as port, asyncio.timeout(20):
        for sent in (b"", BEGUN):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            dripping = asyncio.create_task(_drip(writer) if sent else asyncio.sleep(0))
            with suppress(ConnectionResetError):  # closed while bytes were under way
                assert await reader.read() == b""
            dripping.cancel()
            writer.close()


async def test_a_slow_body_a_slow_answer_and_the_next_request_are_not_cut_off(tmp_path: Path) -> None:
    async with listening(tmp_path) as port, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(BEGUN + b"Content-Length: 4\r\n\r\nbo")
            await asyncio.sleep(2 * HEAD_TIMEOUT_S)
            writer.write(b"dy")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(9) == b"took body"
        # The third head does not come.
        writer.write(b"GET ")
        assert await reader.read() == b""
        writer.close()
