"""One HTTP connection: a limit on how long the head of a request may take, and an end to every error.

uvicorn closes a connection that rests between two requests, and waits for ever for the rest of a head: whoever sends a
byte now and then would hold connections until no department has one left. Bodies have limits of their own.
"""

from __future__ import annotations

import asyncio

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from broker.telemetry import LogEvent, innermost_line, log


def end_errors(app: ASGIApp) -> ASGIApp:
    """The application, but that an error which it lets through ends here.

    uvicorn would write it down with its text and its traceback, which may hold what was asked.
    """

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        started = False

        async def send_noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await app(scope, receive, send_noted)
        except Exception as error:
            log(LogEvent.CRASHED, part="web", error=type(error).__name__, at=innermost_line(error.__traceback__))
            if not started:
                await Response(status_code=500)(scope, receive, send)

    return serve


def limit_heads(timeout_s: float) -> type[asyncio.Protocol]:
    """The protocol that closes a connection on which no whole head came for ``timeout_s``."""

    class Limited(HeadLimit):
        head_timeout_s = timeout_s

    return Limited


class HeadLimit(H11Protocol):
    """uvicorn's own connection, but that a head is waited for no longer than ``head_timeout_s``."""

    head_timeout_s: float
    _head_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """The first head is due."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Bytes that do not end a head do not put off when it is due."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is due any more."""
        self._forget()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """The next head is due."""
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            self._forget()
        elif self._head_due is None:
            self._head_due = self.loop.call_later(self.head_timeout_s, self._give_up)

    def _forget(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None

    def _give_up(self) -> None:
        # Browsers open connections that they then do not use: that is nothing to report.
        self._head_due = None
        self.transport.close()
