"""What a department keeps of the broker's replies, however they came: each once, with what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

from mock_nhs.journal import Journal, read_journal
from schemas.identifiers import parse_nhs_number

OUTCOMES: Final = ("match", "no_record_found", "identity_to_be_checked")
_SYNTHETIC_NUMBER: Final = re.compile(r"(?<![0-9])999[ -]?[0-9]{3}[ -]?[0-9]{4}(?![0-9])")


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One thing a reply says beyond the outcome and its wording: a part of a plan, a list that was searched."""

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
    """MSH-10, or the id of the MessageHeader: the same for every repeat."""
    visit_number: str
    local_patient_id: str
    outcome: str
    wording: str
    observations: tuple[Observation, ...]
    problems: tuple[str, ...]
    """What a reply should not be: closed words."""


def find_problems(
    text: str, visits: Mapping[str, str], *, visit_number: str, local_patient_id: str, outcome: str, wording: str
) -> Iterator[str]:
    """What is wrong with a reply. ``visits`` gives the local patient id of every visit the department knows."""
    if outcome not in OUTCOMES:
        yield "outcome_unknown"
    if not wording:
        yield "no_wording"
    if visit_number not in visits:
        yield "visit_unknown"
    elif visits[visit_number] != local_patient_id:
        yield "patient_of_another_visit"
    if any(parse_nhs_number(found) for found in _SYNTHETIC_NUMBER.findall(text)):
        yield "nhs_number_written"


class ReplyBook:
    """The replies that were kept, in memory and in the journal."""

    def __init__(self, journal: Journal, on_reply: Callable[[Reply], None] = lambda reply: None) -> None:
        """``on_reply`` hears every reply once; what the journal holds already is a repeat."""
        self._journal = journal
        self._on_reply = on_reply
        self._kept = {
            line["control_id"]: line["content_digest"] for line in read_journal(journal.path) if line["what"] == "reply"
        }
        self.replies: list[Reply] = []

    def keep(self, reply: Reply) -> None:
        """Write the reply down; a repeat is known by its control id, and should say what the first one said."""
        observations = [str(each) for each in reply.observations]
        digest = _digest(reply, observations)
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


def _digest(reply: Reply, observations: Sequence[str]) -> str:
    content = "\0".join((reply.visit_number, reply.outcome, reply.wording, *observations))
    return sha256(content.encode()).hexdigest()
