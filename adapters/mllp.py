"""The Minimal Lower Layer Protocol (HL7 v2 transport specification, release 1): VT, message, FS, CR over TCP."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec

from adapters.errors import AdapterError

_START: Final = 0x0B
_END: Final = 0x1C
_CR: Final = 0x0D

OnEvent = Callable[[str, Mapping[str, int | str]], None]


def frame(message: bytes) -> bytes:
    """``message`` as it goes over the wire."""
    return b"\x0b%b\x1c\r" % message


class FrameReader:
    """Cuts a stream of bytes into messages, whatever the pieces they arrive in.

    Bytes between frames are dropped. A frame ends with FS CR; one that ends with FS alone is known to be
    complete when the next begins, or by ``finish``. ``fault`` says why nothing more can be read.
    """

    def __init__(self, *, frame_bytes_max: int, garbage_bytes_max: int) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._garbage_bytes_max = garbage_bytes_max
        self._buffer = bytearray()
        self._searched = 0
        self._garbage_bytes = 0
        self.in_frame = False
        self.fault: str | None = None
        """``frame_too_large`` or ``too_much_garbage``."""

    def feed(self, received: bytes) -> list[bytes]:
        """The messages that ``received`` completes."""
        frames: list[bytes] = []
        self._buffer += received
        while self.fault is None and (self.in_frame or self._find_start()):
            message = self._take_message()
            if message is None:
                break
            if len(message) > self._frame_bytes_max:
                self.fault = "frame_too_large"
                break
            frames.append(message)
        if self.in_frame and len(self._buffer) - self.awaits_last_byte > self._frame_bytes_max:
            self.fault = "frame_too_large"
        return frames

    def finish(self) -> bytes | None:
        """The message whose FS was the last byte: nothing more is to be expected after it."""
        if not self.awaits_last_byte:
            return None
        message = bytes(self._buffer[:-1])
        self._start_afresh(len(self._buffer))
        return message

    @property
    def awaits_last_byte(self) -> bool:
        """Whether only the CR after FS is missing."""
        return self.in_frame and self._buffer.endswith(b"\x1c")

    @property
    def held_bytes(self) -> int:
        """How much of a frame that is not complete is held."""
        return len(self._buffer)

    def _find_start(self) -> bool:
        start = self._buffer.find(_START)
        dropped = len(self._buffer) if start < 0 else start
        self._garbage_bytes += dropped - self._buffer.count(b"\r", 0, dropped) - self._buffer.count(b"\n", 0, dropped)
        if self._garbage_bytes > self._garbage_bytes_max:
            self.fault = "too_much_garbage"
            return False
        del self._buffer[: dropped + (start >= 0)]
        self.in_frame = start >= 0
        return self.in_frame

    def _take_message(self) -> bytes | None:
        while (end := self._buffer.find(_END, self._searched)) >= 0:
            follower = self._buffer[end + 1 : end + 2]
            if not follower:
                self._searched = end
                return None
            if follower[0] in (_CR, _START):
                message = bytes(self._buffer[:end])
                self._start_afresh(end + 1 + (follower[0] == _CR))
                return message
            self._searched = end + 1
        self._searched = len(self._buffer)
        return None

    def _start_afresh(self, consumed: int) -> None:
        del self._buffer[:consumed]
        self._searched = 0
        self._garbage_bytes = 0
        self.in_frame = False


# --- the server -----------------------------------------------------------------------------------------


class Peer(msgspec.Struct, frozen=True):
    """The other end of a connection."""

    host: str
    port: int
    certificate_sha256: str | None = None
    """Digest of the TLS client certificate, in hexadecimal, when there is one."""


class MllpOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the server, for each connection unless they say otherwise."""

    frame_bytes_max: int = 4 * 1024 * 1024
    garbage_bytes_max: int = 1024
    """Bytes other than CR and LF between two frames."""
    held_bytes_max: int = 128 * 1024 * 1024
    """Messages being received or handled, of all connections together."""
    connections_max: int = 256
    pipelined_max: int = 64
    """Messages handled at a time; further ones wait unread."""
    idle_timeout_s: float = 900.0
    frame_timeout_s: float = 30.0
    """For one message, from its first byte to its last."""
    last_byte_timeout_s: float = 0.5
    """After FS, for a CR that some senders leave out."""
    write_timeout_s: float = 30.0
    """For answers the sender does not read."""


Handler = Callable[[bytes, Peer], Awaitable[bytes | None]]
"""Takes a message; returns the answer once the message is durable, or None: then the connection is closed
without an answer, and the sender sends again."""


class MllpServer:
    """Takes messages on many connections, many on each.

    The messages of one connection are handled at the same time, so that they can share a commit, and
    answered in their order. Events: ``mllp_refused`` (too many connections), ``mllp_fault`` (with a
    ``reason``), ``mllp_handler_failed`` (with the ``error``'s class), ``mllp_unanswered``, ``mllp_idle``.
    """

    def __init__(self, handler: Handler, options: MllpOptions, on_event: OnEvent) -> None:
        self.options = options
        self.on_event = on_event
        self.held_bytes = 0
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[bytes | None]] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    async def start(self, host: str, port: int, ssl: ssl.SSLContext | None = None) -> None:
        """Listen; ``port`` 0 takes a free one. Raises OSError when the address cannot be had."""
        handshake_timeout_s = self.options.frame_timeout_s if ssl else None
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), host, port, ssl=ssl, ssl_handshake_timeout=handshake_timeout_s
        )

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._server is not None, "the server has not been started"
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self, drain_timeout_s: float) -> None:
        """Stop reading, answer what is being handled for at most ``drain_timeout_s``, then cut the rest off."""
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.drain()
        try:
            async with asyncio.timeout(drain_timeout_s):
                await self._empty.wait()
                await asyncio.gather(*self._tasks, return_exceptions=True)
        except TimeoutError:
            for task in self._tasks:
                task.cancel()
        for connection in tuple(self._connections):
            connection.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._empty.wait()
        if self._server is not None:
            await self._server.wait_closed()

    def handle(self, message: bytes, peer: Peer) -> asyncio.Task[bytes | None]:
        """Begin to handle a message. The task runs to its end, whatever becomes of the connection.

        Whoever began it calls ``settle`` when it is done.
        """
        task = asyncio.get_running_loop().create_task(self._run(message, peer))
        self._tasks.add(task)
        return task

    def settle(self, task: asyncio.Task[bytes | None]) -> None:
        """A message has been handled."""
        self._tasks.discard(task)

    async def _run(self, message: bytes, peer: Peer) -> bytes | None:
        try:
            return await self._handler(message, peer)
        except Exception as error:
            self.on_event("mllp_handler_failed", {"error": type(error).__name__})
            return None

    def admit(self, connection: _Connection) -> bool:
        """Whether one more connection may stand."""
        if len(self._connections) >= self.options.connections_max:
            self.on_event("mllp_refused", {"connections": len(self._connections)})
            return False
        self._connections.add(connection)
        self._empty.clear()
        return True

    def forget(self, connection: _Connection) -> None:
        """The connection has ended."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()


class _Connection(asyncio.Protocol):
    """One connection: frames in, answers out in the same order."""

    def __init__(self, server: MllpServer) -> None:
        self._server = server
        self._options = options = server.options
        self._frames = FrameReader(frame_bytes_max=options.frame_bytes_max, garbage_bytes_max=options.garbage_bytes_max)
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[bytes] = deque()
        self._handled: deque[tuple[asyncio.Task[bytes | None], int]] = deque()
        self._message_bytes = 0
        self._held_bytes = 0
        self._reads = True
        self._writable = True
        self._ending = False
        self._closed = False
        self._frame_began_at = self._active_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._peer = _peer_of(transport)
        if not self._server.admit(self):
            self._ending = True
            transport.abort()
            return
        self._advance()

    def data_received(self, data: bytes) -> None:
        if self._ending:
            return
        self._active_at = self._loop.time()
        was_in_frame = self._frames.in_frame
        messages = self._frames.feed(data)
        if messages or not was_in_frame:
            self._frame_began_at = self._active_at
        for message in messages:
            self._receive(message)
        if self._frames.fault is not None:
            self._end(self._frames.fault)
        self._advance()
        if self._server.held_bytes > self._options.held_bytes_max:
            self._end("too_many_bytes_held")
            self._transport.abort()

    def eof_received(self) -> bool:
        """The sender closed its side: answer what it sent before. (TLS cannot be closed on one side only.)"""
        message = self._frames.finish()
        if message is not None and not self._ending:
            self._receive(message)
        self._ending = True
        self._advance()
        return self._transport.get_extra_info("sslcontext") is None

    def pause_writing(self) -> None:
        self._writable = False
        self._active_at = self._loop.time()
        self._advance()

    def resume_writing(self) -> None:
        self._writable = True
        self._advance()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = self._ending = True
        self._waiting.clear()
        self._handled.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._server.held_bytes -= self._held_bytes
        self._server.forget(self)

    def drain(self) -> None:
        """Read nothing more, answer what is being handled, then close."""
        self._ending = True
        self._waiting.clear()
        self._advance()

    def abort(self) -> None:
        """Close without waiting for anything."""
        self._transport.abort()

    def _receive(self, message: bytes) -> None:
        self._waiting.append(message)
        self._message_bytes += len(message)

    def _end(self, reason: str) -> None:
        """Read nothing more; what is complete is still handled and answered."""
        self._ending = True
        self._server.on_event("mllp_fault", {"reason": reason})

    def _settle(self, task: asyncio.Task[bytes | None]) -> None:
        self._server.settle(task)
        self._advance()

    def _advance(self) -> None:
        """Answer what is done, handle what waits, and settle whether to read, wait or close."""
        if self._closed:
            return
        self._answer()
        while self._waiting and self._writable and len(self._handled) < self._options.pipelined_max:
            message = self._waiting.popleft()
            task = self._server.handle(message, self._peer)
            self._handled.append((task, len(message)))
            task.add_done_callback(self._settle)
        if self._ending and not self._handled and not self._waiting:
            self._transport.close()
        self._read_or_pause()
        held_bytes = self._frames.held_bytes + self._message_bytes
        self._server.held_bytes += held_bytes - self._held_bytes
        self._held_bytes = held_bytes
        self._watch()

    def _answer(self) -> None:
        """Write the answers whose turn it is. None ends the connection; what came after it is not answered."""
        answers: list[bytes] = []
        while self._handled and self._handled[0][0].done():
            task, message_bytes = self._handled.popleft()
            self._message_bytes -= message_bytes
            answer = None if task.cancelled() else task.result()
            if answer is None:
                self._server.on_event("mllp_unanswered", {})
                self._ending = True
                self._waiting.clear()
                self._handled.clear()
                break
            answers.append(frame(answer))
        if answers and not self._transport.is_closing():
            self._transport.write(b"".join(answers))
            self._active_at = self._loop.time()

    def _read_or_pause(self) -> None:
        wanted = (
            self._writable
            and not self._ending
            and not self._waiting
            and len(self._handled) < self._options.pipelined_max
            and self._message_bytes <= self._options.frame_bytes_max
        )
        if wanted == self._reads or self._transport.is_closing():
            return
        self._reads = wanted
        if wanted:
            self._frame_began_at = self._loop.time()
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _deadline(self) -> float | None:
        """When patience ends; None while the handler, not the sender, is waited for."""
        options = self._options
        if not self._writable:
            return self._active_at + options.write_timeout_s
        if self._handled or self._waiting:
            return None
        if self._frames.awaits_last_byte:
            return self._active_at + options.last_byte_timeout_s
        if self._frames.in_frame:
            return self._frame_began_at + options.frame_timeout_s
        return self._active_at + options.idle_timeout_s

    def _watch(self) -> None:
        """Have one timer run, at the latest until the deadline; it looks again when it fires."""
        deadline = self._deadline()
        if deadline is None or self._transport.is_closing():
            return
        if self._timer is not None:
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._look_at_clock)

    def _look_at_clock(self) -> None:
        self._timer = None
        deadline = self._deadline()
        if deadline is None or deadline > self._loop.time():
            self._watch()
        elif not self._writable:
            self._end("write_timeout")
            self._transport.abort()
        elif (message := self._frames.finish()) is not None:
            self._receive(message)
            self._advance()
        elif self._frames.in_frame:
            self._end("frame_timeout")
            self._transport.close()
        else:
            self._server.on_event("mllp_idle", {})
            self._transport.close()


def _peer_of(transport: asyncio.Transport) -> Peer:
    host, port = (transport.get_extra_info("peername") or ("", 0))[:2]
    secure = transport.get_extra_info("ssl_object")
    certificate = secure.getpeercert(binary_form=True) if secure is not None else None
    return Peer(host, port, hashlib.sha256(certificate).hexdigest() if certificate else None)


# --- the client -----------------------------------------------------------------------------------------


class NotSent(AdapterError):
    """Nothing has left: the other side cannot have the message. ``code`` is a closed word."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class NoAnswer(AdapterError):
    """The message has left, in whole or in part, and no answer came. ``code`` is a closed word."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class MllpClientOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the client."""

    connect_timeout_s: float = 5.0
    answer_timeout_s: float = 30.0
    """From the first byte sent to the last byte of the answer."""
    answer_bytes_max: int = 65_536
    kept_max: int = 64
    """Connections kept open for the next message, one per address."""
    kept_idle_s: float = 60.0


class _Link:
    """The way to one address: its users take turns on one connection."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.users = 0
        self.used_at = 0.0
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    def drop(self) -> None:
        """Close the connection, if there is one."""
        if self.writer is not None:
            self.writer.transport.abort()
        self.reader = self.writer = None


class MllpClient:
    """Sends messages, one at a time to each address, and keeps the connections."""

    def __init__(self, options: MllpClientOptions, tls: ssl.SSLContext | None = None) -> None:
        self._options = options
        self._tls = tls
        self._links: OrderedDict[tuple[str, int], _Link] = OrderedDict()

    async def send_message(self, host: str, port: int, message: bytes) -> bytes:
        """Send and return the answer as it stands. Raises NotSent or NoAnswer."""
        link = self._links.setdefault((host, port), _Link())
        self._links.move_to_end((host, port))
        link.users += 1
        try:
            async with link.turn:
                return await self._exchange(link, host, port, message)
        finally:
            link.users -= 1
            self._evict()

    def drop(self, host: str, port: int) -> None:
        """Close the connection to an address, for instance because its answers are out of step."""
        if link := self._links.get((host, port)):
            link.drop()

    async def close(self) -> None:
        """Close all connections."""
        for link in self._links.values():
            link.drop()
        self._links.clear()
        await asyncio.sleep(0)

    def _evict(self) -> None:
        idle = [address for address, link in self._links.items() if not link.users]
        for address in idle[: max(0, len(self._links) - self._options.kept_max)]:
            self._links.pop(address).drop()

    async def _exchange(self, link: _Link, host: str, port: int, message: bytes) -> bytes:
        reader, writer = await self._connection(link, host, port)
        try:
            async with asyncio.timeout(self._options.answer_timeout_s):
                writer.write(frame(message))
                await writer.drain()
                answer, is_in_step = await self._read_answer(reader)
        except TimeoutError:
            link.drop()
            raise NoAnswer("answer_timeout") from None
        except (OSError, ssl.SSLError):
            link.drop()
            raise NoAnswer("connection_lost") from None
        except BaseException:
            link.drop()
            raise
        link.used_at = asyncio.get_running_loop().time()
        if not is_in_step:
            link.drop()
        return answer

    async def _connection(self, link: _Link, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The connection that was kept, unless it is old or the other side has closed it, or a new one."""
        if link.reader is not None and link.writer is not None:
            unused_s = asyncio.get_running_loop().time() - link.used_at
            if unused_s <= self._options.kept_idle_s and await _is_quiet(link.reader):
                return link.reader, link.writer
            link.drop()
        try:
            async with asyncio.timeout(self._options.connect_timeout_s):
                link.reader, link.writer = await asyncio.open_connection(host, port, ssl=self._tls)
        except TimeoutError:
            raise NotSent("connect_timeout") from None
        except ssl.SSLError:
            raise NotSent("tls_failed") from None
        except (OSError, ValueError):
            raise NotSent("connect_failed") from None
        return link.reader, link.writer

    async def _read_answer(self, reader: asyncio.StreamReader) -> tuple[bytes, bool]:
        """The first message that comes, and whether nothing came behind it."""
        frames = FrameReader(frame_bytes_max=self._options.answer_bytes_max, garbage_bytes_max=1024)
        while received := await reader.read(65_536):
            if answers := frames.feed(received):
                return answers[0], len(answers) == 1 and not frames.held_bytes
            if frames.fault is not None:
                raise NoAnswer(frames.fault)
        if (answer := frames.finish()) is not None:
            return answer, False
        raise NoAnswer("connection_closed")


async def _is_quiet(reader: asyncio.StreamReader) -> bool:
    """Whether the other side has neither closed the connection nor sent anything since the last answer."""
    try:
        async with asyncio.timeout(0):
            await reader.read(1)
    except TimeoutError:
        return True
    except OSError:
        return False
    return False
