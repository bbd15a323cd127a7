"""Where a department's system takes the broker's replies: ORU^R01 over MLLP (HL7 v2.4, chapter 7).

A reply counts once however often it comes: MSH-10 is what tells. What is wrong with a reply is written down beside
it, for the department answers AA to all that it has kept.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from mock_nhs.department import write_time
from mock_nhs.er7 import (
    BLOCK_BYTES_MAX,
    Message,
    NotUnderstood,
    escape,
    read_block,
    write_block,
    write_message,
    write_segment,
)
from mock_nhs.faults import Faults
from mock_nhs.listener import Listener
from mock_nhs.reply_book import Observation, Reply, ReplyBook, find_problems


@dataclass(frozen=True, kw_only=True)
class ReplyListenerOptions:
    """How the listener behaves."""

    site: str
    host: str = "127.0.0.1"
    port: int = 0
    idle_s: float = 300.0
    slow_pause_s: float = 0.5
    """The pause of the fault ``ed.reply.slow``."""


def read_reply(block: bytes, visits: Mapping[str, str]) -> Reply:
    """Read an ORU^R01. ``visits`` gives the local patient id of every visit the department knows.

    Raises NotUnderstood when it is no message or no result at all.
    """
    message = Message(block)
    control_id = message.value("MSH", 10)
    if message.value("MSH", 9, 1) != "ORU" or message.value("MSH", 9, 2) != "R01" or not control_id:
        raise NotUnderstood("not an ORU^R01 with a control id")
    observations = [_read_observation(message, segment) for segment in message.segments("OBX")]
    outcome, wording = (
        "\n".join(each.value for each in observations if each.code == code) for code in ("OUTCOME", "WORDING")
    )
    visit_number = message.value("PV1", 19)
    local_patient_id = message.value("PID", 3)
    problems = find_problems(
        block.decode("utf-8", "replace"),
        visits,
        visit_number=visit_number,
        local_patient_id=local_patient_id,
        outcome=outcome,
        wording=wording,
    )
    return Reply(
        control_id=control_id,
        visit_number=visit_number,
        local_patient_id=local_patient_id,
        outcome=outcome,
        wording=wording,
        observations=tuple(each for each in observations if each.code not in ("OUTCOME", "WORDING")),
        problems=tuple(problems),
    )


def _read_observation(message: Message, segment: list[str]) -> Observation:
    """An OBX (7.4.2). Of a coded value the code is read for the outcome, and the text for all else."""
    fields = [*segment, *[""] * 6]
    code, value = message.component(fields[3], 1), message.text(fields[5])
    if fields[2] == "CE":
        value = message.component(fields[5], 1 if code == "OUTCOME" else 2)
    return Observation(code=code, name=message.component(fields[3], 2), group=fields[4], value=value)


class ReplyListener:
    """Takes replies, keeps each once, acknowledges; or fails on purpose."""

    def __init__(
        self,
        options: ReplyListenerOptions,
        faults: Faults,
        book: ReplyBook,
        visits: Mapping[str, str],
    ) -> None:
        self._options = options
        self._faults = faults
        self._book = book
        self._visits = visits
        self._listener = Listener(self._serve, buffer_bytes_max=BLOCK_BYTES_MAX)
        self._held: bytes = b""
        self._numbers = itertools.count(1)

    async def start(self) -> int:
        """Listen, and return the port."""
        return await self._listener.start(self._options.host, self._options.port)

    async def stop(self) -> None:
        """Close every connection."""
        await self._listener.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                async with asyncio.timeout(self._options.idle_s):
                    block = await read_block(reader)
            except (NotUnderstood, TimeoutError):
                return
            if block is None:
                return
            held, self._held = self._held, b""
            writer.write(held)
            answer = await self._answer(block)
            if answer is None:
                return
            writer.write(answer)
            await writer.drain()

    async def _answer(self, block: bytes) -> bytes | None:
        """The bytes to write, possibly none; or None: close the connection."""
        fires = self._faults.fires
        if fires("ed.reply.close"):
            return None
        if fires("ed.reply.not_hl7"):
            return write_block(b"busy\r")
        try:
            reply = read_reply(block, self._visits)
        except NotUnderstood:
            return self._write_ack(block, "AR")
        if fires("ed.reply.ack_ae"):
            return self._write_ack(block, "AE")
        if fires("ed.reply.ack_ar"):
            return self._write_ack(block, "AR")
        self._book.keep(reply)
        if fires("ed.reply.drop_after_keep"):
            return None
        if fires("ed.reply.no_ack"):
            return b""
        if fires("ed.reply.late_ack"):
            self._held = self._write_ack(block, "AA")
            return b""
        if fires("ed.reply.slow"):
            await asyncio.sleep(self._options.slow_pause_s)
        return self._write_ack(block, "AA")

    def _write_ack(self, block: bytes, code: str) -> bytes:
        """The acknowledgement (2.14.2), with the control id it answers when there is one."""
        try:
            control_id = Message(block).value("MSH", 10)
        except NotUnderstood:
            control_id = ""
        header = {
            3: "EDIS",
            4: self._options.site,
            7: write_time(datetime.now(UTC)),
            9: "ACK^R01^ACK",
            10: f"{self._options.site}R{next(self._numbers)}",
            11: "P",
            12: "2.4",
        }
        segments = [write_segment("MSH", header), write_segment("MSA", {1: code, 2: escape(control_id)})]
        return write_block(write_message(segments))
