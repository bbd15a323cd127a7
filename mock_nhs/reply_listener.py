"""Where a department's system takes the broker's replies: ORU^R01 over MLLP (HL7 v2.4, chapter 7).

A reply counts once however often it comes: MSH-10 is what tells. What is wrong with a reply is written down beside
it, for the department answers AA to all that it has kept.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

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
from mock_nhs.journal import Journal, read_journal
from mock_nhs.listener import Listener
from schemas.identifiers import parse_nhs_number

OUTCOMES: Final = ("match", "no_record_found", "identity_to_be_checked")
_SYNTHETIC_NUMBER: Final = re.compile(r"(?<![0-9])999[ -]?[0-9]{3}[ -]?[0-9]{4}(?![0-9])")


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One OBX beyond the outcome and its wording: the parts of a plan, the lists that were searched."""

    code: str
    """OBX-3.1."""
    name: str
    """OBX-3.2."""
    group: str
    """OBX-4: what belongs to one plan has one group."""
    value: str

    def __str__(self) -> str:
        group = f" {self.group}" if self.group else ""
        return f"{self.name or self.code}{group}: {self.value}"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A reply as the department reads it."""

    control_id: str
    """MSH-10: the same for every repeat."""
    visit_number: str
    local_patient_id: str
    outcome: str
    wording: str
    observations: tuple[Observation, ...]
    problems: tuple[str, ...]
    """What a reply should not be: closed words."""


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
    problems = []
    if outcome not in OUTCOMES:
        problems.append("outcome_unknown")
    if not wording:
        problems.append("no_wording")
    if visit_number not in visits:
        problems.append("visit_unknown")
    elif visits[visit_number] != local_patient_id:
        problems.append("patient_of_another_visit")
    if any(parse_nhs_number(found) for found in _SYNTHETIC_NUMBER.findall(block.decode("utf-8", "replace"))):
        problems.append("nhs_number_written")
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
        journal: Journal,
        visits: Mapping[str, str],
        on_reply: Callable[[Reply], None] = lambda reply: None,
    ) -> None:
        """``on_reply`` hears every reply once."""
        self._options = options
        self._faults = faults
        self._journal = journal
        self._visits = visits
        self._on_reply = on_reply
        self._listener = Listener(self._serve, buffer_bytes_max=BLOCK_BYTES_MAX)
        self._kept = {
            line["control_id"]: line["content_digest"] for line in read_journal(journal.path) if line["what"] == "reply"
        }
        self._held: bytes = b""
        self._numbers = itertools.count(1)
        self.replies: list[Reply] = []

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
        self._keep(reply, block)
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

    def _keep(self, reply: Reply, block: bytes) -> None:
        """Write the reply down; a repeat is known by its control id, and should say what the first one said."""
        observations = [str(each) for each in reply.observations]
        content = "\0".join((reply.visit_number, reply.outcome, reply.wording, *observations))
        digest = sha256(content.encode()).hexdigest()
        repeated = reply.control_id in self._kept
        first = self._kept.setdefault(reply.control_id, digest)
        self._journal.write(
            "reply_repeated" if repeated else "reply",
            at=datetime.now(UTC).isoformat(),
            control_id=reply.control_id,
            visit_number=reply.visit_number,
            local_patient_id=reply.local_patient_id,
            outcome=reply.outcome,
            wording=reply.wording,
            observations=observations,
            problems=[*reply.problems, *(["repeat_differs"] if first != digest else [])],
            content_digest=digest,
        )
        if not repeated:
            self.replies.append(reply)
            self._on_reply(reply)

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
