"""A listening socket that ends cleanly: it knows its connections and waits for their handlers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable


class Listener:
    """Accepts connections on one address and runs ``serve`` for each until it returns or the listener stops."""

    def __init__(
        self,
        serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
        *,
        buffer_bytes_max: int,
        connections_max: int = 512,
    ) -> None:
        self._serve = serve
        self._buffer_bytes_max = buffer_bytes_max
        self._connections_max = connections_max
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port: the given one, or a free one for 0."""
        self._server = await asyncio.start_server(self._accept, host, port, limit=self._buffer_bytes_max)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening, close every connection and wait for its handler."""
        if self._server is not None:
            self._server.close()
            for handler in self._handlers:
                handler.cancel()
            await asyncio.gather(*self._handlers, return_exceptions=True)
            await self._server.wait_closed()
            self._server = None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._handlers) >= self._connections_max:
            writer.close()
            return
        handler = asyncio.create_task(self._handle(reader, writer))
        self._handlers.add(handler)
        handler.add_done_callback(self._handlers.discard)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        except OSError:
            pass  # the other side went away: its own business
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
