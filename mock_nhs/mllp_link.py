"""One MLLP connection of a sending system: pipelined, in order, and stubborn.

A message is written until it is answered: again after a connection that closed or fell silent, with the same bytes
and so the same control id. AA ends it; AR ends it too, for the other side said not to resend; AE is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from mock_nhs.department import AdtMessage
from mock_nhs.er7 import BLOCK_BYTES_MAX, Message, NotUnderstood, read_block, write_block
from mock_nhs.faults import Faults


@dataclass(frozen=True, kw_only=True)
class LinkOptions:
    """How a link behaves."""

    host: str
    port: int
    window: int = 8
    """Messages that may be unanswered on the connection at once."""
    unsettled_max: int = 1_000
    """Messages offered and not yet answered; offering waits beyond."""
    ack_timeout_s: float = 10.0
    connect_timeout_s: float = 5.0
    reconnect_pause_s: float = 0.05
    reconnect_pause_s_max: float = 1.0
    error_pause_s: float = 0.2
    """Before a message that was answered AE is sent again."""
    slow_pause_s: float = 0.3
    """The pause of the fault ``ed.send.slow_frame``."""


@dataclass(kw_only=True)
class Offer:
    """One message on its way, and how it stands."""

    message: AdtMessage
    attempts: int = 0
    sent_at_s: float = 0.0


class Unanswered(Exception):
    """The connection is of no more use: closed, silent too long, or broken on purpose."""


class MllpLink:
    """Sends what it is offered over one connection at a time; ``on_answer`` hears each AA, AE and AR."""

    def __init__(self, options: LinkOptions, faults: Faults, on_answer: Callable[[AdtMessage, str, int], None]) -> None:
        self._options = options
        self._faults = faults
        self._on_answer = on_answer
        self._waiting: deque[Offer] = deque()
        self._outstanding: dict[str, Offer] = {}
        self._room = asyncio.Semaphore(options.unsettled_max)
        self._work = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._unsettled = 0
        self._task: asyncio.Task[None] | None = None
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

    async def offer(self, message: AdtMessage) -> None:
        """Take a message; waits while too many are unanswered."""
        await self._room.acquire()
        self._unsettled += 1
        self._quiet.clear()
        self._waiting.append(Offer(message=message))
        self._work.set()

    async def settle(self) -> None:
        """Wait until everything offered has been answered AA or AR."""
        await self._quiet.wait()

    async def _run(self) -> None:
        pause_s = self._options.reconnect_pause_s
        while True:
            connections = self.connections
            with contextlib.suppress(OSError, NotUnderstood, Unanswered):
                await self._connect_and_talk()
            self._waiting.extendleft(reversed(self._outstanding.values()))
            self._outstanding.clear()
            reached = self.connections > connections
            pause_s = (
                self._options.reconnect_pause_s if reached else min(2 * pause_s, self._options.reconnect_pause_s_max)
            )
            await asyncio.sleep(pause_s)

    async def _connect_and_talk(self) -> None:
        async with asyncio.timeout(self._options.connect_timeout_s):
            reader, writer = await asyncio.open_connection(
                self._options.host, self._options.port, limit=BLOCK_BYTES_MAX
            )
        self.connections += 1
        reading = asyncio.create_task(self._read_answers(reader))
        writing = asyncio.create_task(self._write_offers(writer))
        try:
            await asyncio.wait((reading, writing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reading, writing):
                task.cancel()
            ends = await asyncio.gather(reading, writing, return_exceptions=True)
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _write_offers(self, writer: asyncio.StreamWriter) -> None:
        while True:
            while not self._waiting or len(self._outstanding) >= self._options.window:
                self._work.clear()
                await self._work.wait()
            offer = self._waiting.popleft()
            offer.attempts += 1
            offer.sent_at_s = asyncio.get_running_loop().time()
            self._outstanding[offer.message.control_id] = offer
            await self._write(writer, write_block(offer.message.body))

    async def _write(self, writer: asyncio.StreamWriter, block: bytes) -> None:
        half = len(block) // 2
        if self._faults.fires("ed.send.half_frame"):
            await _write_last(writer, block[:half])
        if self._faults.fires("ed.send.slow_frame"):
            writer.write(block[:half])
            await asyncio.sleep(self._options.slow_pause_s)
            block = block[half:]
        elif self._faults.fires("ed.send.twice"):
            block = block + block
        if self._faults.fires("ed.send.hang_up"):
            await _write_last(writer, block)
        writer.write(block)
        await writer.drain()

    async def _read_answers(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                async with asyncio.timeout(self._patience_s()):
                    block = await read_block(reader)
            except TimeoutError:
                if self._patience_s() > 0:
                    continue
                raise Unanswered from None
            if block is None:
                raise Unanswered
            answer = Message(block)
            self._take_answer(answer.value("MSA", 1), answer.value("MSA", 2))

    def _patience_s(self) -> float:
        """How long the oldest unanswered message may still wait."""
        oldest = next(iter(self._outstanding.values()), None)
        if oldest is None:
            return self._options.ack_timeout_s
        waited_s = asyncio.get_running_loop().time() - oldest.sent_at_s
        return max(0.0, self._options.ack_timeout_s - waited_s)

    def _take_answer(self, code: str, control_id: str) -> None:
        """Settle the message that is answered; an answer to none that is unanswered (a repeat's) is passed over."""
        offer = self._outstanding.pop(control_id, None)
        if offer is None:
            return
        self._on_answer(offer.message, code, offer.attempts)
        if code in ("AA", "AR"):
            self._unsettled -= 1
            self._room.release()
        else:
            asyncio.get_running_loop().call_later(self._options.error_pause_s, self._take_back, offer)
        if self._unsettled == 0:
            self._quiet.set()
        self._work.set()

    def _take_back(self, offer: Offer) -> None:
        self._waiting.append(offer)
        self._work.set()


async def _write_last(writer: asyncio.StreamWriter, final: bytes) -> NoReturn:
    """Write these bytes out, then close the connection."""
    writer.write(final)
    writer.close()
    await writer.wait_closed()
    raise Unanswered
