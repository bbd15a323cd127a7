"""A visit's messages as social care may read them: what happened when, and what changed. Nothing else gets through.

A message says who the person is, where they live and more. The lines here are made from ``AttendanceFacts`` alone,
the schema of what social care is told of a visit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

import msgspec

from broker.domain.alerts import describe_attendance
from broker.domain.visits import fold_visit
from broker.web.wording import EVENTS, say_arrival_mode, say_moment
from schemas.alert import AttendanceFacts
from schemas.attendance import Attendance, Event
from schemas.directory import Site

Told = dict[str, str]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One fact that a message told anew."""

    label: str
    before: str | None
    after: str


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened, or several in a row that told nothing new."""

    at: datetime
    last_at: datetime
    words: str
    changes: tuple[Change, ...]
    times: int


class Chronology(msgspec.Struct, frozen=True, kw_only=True):
    """A visit as it is known now, and how it came to be known; oldest line first."""

    facts: AttendanceFacts
    lines: tuple[Line, ...]


def tell_visit(messages: Sequence[tuple[datetime, Attendance]], site: Site | None) -> Chronology | None:
    """Tell a visit from (received at, what was said), in the order of events; None without messages."""
    if not messages:
        return None
    ordered = sorted(
        ((_happened_at(said, received_at), said) for received_at, said in messages), key=lambda one: one[0]
    )
    known = fold_visit((number.to_bytes(4, "big"), said) for number, (_, said) in enumerate(ordered))
    facts = describe_attendance(known, site)
    if facts.left_at is None:
        facts = msgspec.structs.replace(facts, left_at=_find_departure(ordered))
    return Chronology(facts=facts, lines=tuple(_join_lines(_tell_lines(ordered))))


def _find_departure(ordered: Sequence[tuple[datetime, Attendance]]) -> datetime | None:
    """A03 says that the person left even when it does not say when (PV1-45); an arrival after it says otherwise."""
    moves = [(at, said.event) for at, said in ordered if said.event in (Event.REGISTERED, Event.ADMITTED, Event.LEFT)]
    return moves[-1][0] if moves and moves[-1][1] is Event.LEFT else None


def _happened_at(said: Attendance, received_at: datetime) -> datetime:
    return said.event_at or said.message_at or received_at


def _tell_lines(ordered: Sequence[tuple[datetime, Attendance]]) -> Iterable[Line]:
    known: Told = {}
    for number, (at, said) in enumerate(ordered):
        told = _tell_facts(said)
        changes = tuple(
            Change(label=label, before=known.get(label), after=words)
            for label, words in told.items()
            if number > 0 and known.get(label) != words
        )
        known |= told
        yield Line(at=at, last_at=at, words=EVENTS[said.event], changes=changes, times=1)


def _tell_facts(said: Attendance) -> Told:
    facts = describe_attendance(said, None)
    told = {
        "Department": facts.department,
        "Arrived": said.arrived_at and say_moment(said.arrived_at),
        "Came": facts.arrival_mode and say_arrival_mode(facts.arrival_mode),
        "Reason given": facts.complaint,
        "Left": facts.left_at and say_moment(facts.left_at),
    }
    return {label: words for label, words in told.items() if words}


def _join_lines(lines: Iterable[Line]) -> list[Line]:
    """Lines in a row that say the same and told nothing new become one."""
    joined: list[Line] = []
    for line in lines:
        last = joined[-1] if joined else None
        if last is not None and last.words == line.words and not line.changes:
            joined[-1] = msgspec.structs.replace(last, last_at=line.at, times=last.times + 1)
        else:
            joined.append(line)
    return joined
