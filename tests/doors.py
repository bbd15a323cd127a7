"""The two machine doors as their senders meet them: plain sockets, a clock, and a journal of what was acknowledged.

Shares no code with the product.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

_CODES = re.compile(rb"(?:^|\r)MSA\|(AA|AE|AR)\|")
_ANSWER_BYTES_MAX = 1 << 20


@dataclass
class Journal:
    """What senders were told: one line for each different message that was accepted, as tests.ledger reads it."""

    path: Path
    answers: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    over_a_second: int = 0
    unanswered: int = 0
    _kept: set[bytes] = field(default_factory=set)

    def note(self, messages: Sequence[bytes], codes: Sequence[str], seconds: float) -> None:
        """Note the answers to the messages of one frame or body, in their order."""
        self.answers.update(codes)
        self.slowest_s = max(self.slowest_s, seconds)
        self.over_a_second += seconds > 1.0
        self.unanswered += not codes
        accepted = [message for message, code in zip(messages, codes, strict=bool(codes)) if code in ("AA", "202")]
        with self.path.open("a") as lines:
            for message in accepted:
                digest = sha256(message).digest()
                if digest not in self._kept:
                    self._kept.add(digest)
                    lines.write(json.dumps({"what": "answered", "code": "AA"}) + "\n")

    @property
    def kept(self) -> int:
        """How many different messages were acknowledged as kept."""
        return len(self._kept)


@dataclass(frozen=True)
class Answer:
    """What came back and after how many seconds; no codes when the connection was closed instead."""

    codes: tuple[str, ...]
    seconds: float
    body: bytes = b""


class MllpLine:
    """One connection of a sender; after the other side closed it, a new one."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> MllpLine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def ask(self, message: bytes) -> Answer:
        """Send one framed message and wait for its answer."""
        return await self.exchange(b"\x0b%b\x1c\r" % message)

    async def exchange(self, wire: bytes) -> Answer:
        """Send these bytes and wait for one answer."""
        reader, writer = await self._connect()
        began = time.perf_counter()
        writer.write(wire)
        try:
            answer = await reader.readuntil(b"\x1c\r")
        except (asyncio.IncompleteReadError, OSError):
            await self.close()
            return Answer((), time.perf_counter() - began)
        return _understand(answer, time.perf_counter() - began)

    async def send_and_close(self, wire: bytes) -> Answer:
        """Send these bytes as all there is, and read until the other side closes too."""
        reader, writer = await self._connect()
        began = time.perf_counter()
        answer = b""
        try:
            writer.write(wire)
            writer.write_eof()
            answer = await reader.read(_ANSWER_BYTES_MAX)
            while received := await reader.read(_ANSWER_BYTES_MAX):
                answer += received
        except OSError:
            pass
        await self.close()
        return _understand(answer, time.perf_counter() - began)

    async def close(self) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=_ANSWER_BYTES_MAX)
        return self._reader, self._writer


def _understand(answer: bytes, seconds: float) -> Answer:
    return Answer(tuple(code.decode() for code in _CODES.findall(answer)), seconds, answer)


def open_fhir_door(port: int, code: str, credential: str) -> httpx.AsyncClient:
    """A client of the FHIR door that shows this credential."""
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}",
        auth=(code, credential),
        timeout=30,
        verify=False,
        headers={"Content-Type": "application/fhir+json"},
    )


async def post_bundle(door: httpx.AsyncClient, body: bytes, **headers: str) -> tuple[Answer, dict[str, Any]]:
    """Post a body; the status as a code, and the OperationOutcome."""
    began = time.perf_counter()
    response = await door.post("/FHIR/R4/$process-message", content=body, headers=headers)
    seconds = time.perf_counter() - began
    outcome: dict[str, Any] = response.json()
    assert outcome["resourceType"] == "OperationOutcome"
    return Answer((str(response.status_code),), seconds, response.content), outcome
