"""Who sends slowly: the head of a request is waited for so long, and nothing that is under way is cut off."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from broker.bootstrap.web import configure_server
from tests.factories import make_settings

HEAD_TIMEOUT_S = 0.4
BEGUN = b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n"


async def _answer_late(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await asyncio.sleep(1.5 * HEAD_TIMEOUT_S)
    await PlainTextResponse(b"took " + body)(scope, receive, send)


@asynccontextmanager
async def listening(directory: Path, app: ASGIApp = _answer_late) -> AsyncIterator[int]:
    settings = make_settings(directory, http_head_timeout_s=HEAD_TIMEOUT_S)
    config = configure_server(app, settings)
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
            await asyncio.sleep(1.5 * HEAD_TIMEOUT_S)
            writer.write(b"dy")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(9) == b"took body"
        # The third head does not come.
        writer.write(b"GET ")
        assert await reader.read() == b""
        writer.close()


async def _fail(scope: Scope, _: Receive, __: Send) -> None:
    raise ValueError(scope["query_string"].decode())


async def test_nothing_of_a_request_that_fails_or_cannot_be_read_reaches_a_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    target = b"GET /FHIR/R4/CareTeam?patient=9990000018"
    requests = {
        target + b" HTTP/1.1\r\nHost: x\r\n\r\n": b"500",
        target + b" HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n": b"500",
        target + b"\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n": b"400",
        target + b" HTTP/1.1\r\nHost 9990000018\r\n\r\n": b"400",
        target + b"&x=" + b"a" * 80_000: b"400",
    }
    async with listening(tmp_path, _fail) as port, asyncio.timeout(20):
        for request, status in requests.items():
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            assert (await reader.readuntil(b"\r\n")).split()[1] == status
            writer.close()
    texts = [*capfd.readouterr(), caplog.text, *(str(record.exc_info) for record in caplog.records)]
    assert not any("9990000018" in text for text in texts)
    assert "Traceback" not in "".join(texts)
