"""Visits and the messages they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import bindparam, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.decision import Known
from broker.domain.matching import candidate_blocks
from broker.domain.visits import fold_visit, london_day, opens_visit
from broker.keyring import Keyring
from broker.storage.child_lists import index_block, index_nhs_number
from broker.storage.database import upsert
from broker.storage.tables import ENTRY_TAKEN_BACK, Alert, Review, Visit, VisitMessage, table
from schemas.alert import ReplyOutcome
from schemas.attendance import Attendance
from schemas.identifiers import organisation_owner

_INDEXES: Final = ("patient_index", "nhs_index", "birth_index", "mother_index")
_visits, _messages, _alerts, _reviews = table(Visit), table(VisitMessage), table(Alert), table(Review)


class Thread(msgspec.Struct, kw_only=True):
    """One visit while a transaction works on it: its messages and what was decided."""

    visit_id: str
    sender: str
    opened_at: datetime
    messages: list[tuple[bytes, Attendance]]
    added: list[tuple[bytes, Attendance]] = msgspec.field(default_factory=list)
    replaced: dict[bytes, Attendance] = msgspec.field(default_factory=dict)
    """Messages that were read anew, as they were read before."""
    alerted: set[str] = msgspec.field(default_factory=set)
    """Authorities whose alert for this visit stands."""
    withdrawn: dict[str, int] = msgspec.field(default_factory=dict)
    """Alerts that were withdrawn, by authority."""
    corrections: int = 0
    """Times an answer was taken back."""
    reviewed: set[str] = msgspec.field(default_factory=set)
    replied: ReplyOutcome | None = None
    is_opened_as_written: bool = False
    """Its row was written from the one message it has, in this transaction."""
    folded: Attendance | None = None
    """The messages as one, until there is another."""

    def add(self, marker: bytes, said: Attendance) -> Attendance:
        """Add a message, or replace what was read of it before; returns the visit as it is now known."""
        former = dict(self.messages).get(marker) if self.messages else None
        if former is None:
            self.messages.append((marker, said))
            self.added.append((marker, said))
        else:
            self.replaced.setdefault(marker, former)
            self._put(marker, said)
        self.folded = None
        return self.facts()

    @property
    def is_here(self) -> bool:
        """Whether any message says that the person came; until then the visit only gathers what is said."""
        return any(opens_visit(said.event) for _, said in self.messages)

    def drop(self, marker: bytes) -> None:
        """Take a message out again that could not be decided; what was read of it before stays."""
        if marker in self.replaced:
            self._put(marker, self.replaced.pop(marker))
        else:
            self.messages = [pair for pair in self.messages if pair[0] != marker]
            self.added = [pair for pair in self.added if pair[0] != marker]
            self.is_opened_as_written = False
        self.folded = None

    def _put(self, marker: bytes, said: Attendance) -> None:
        self.messages = [(each, said if each == marker else heard) for each, heard in self.messages]
        self.added = [(each, said if each == marker else heard) for each, heard in self.added]

    def facts(self) -> Attendance:
        """The visit as it is known."""
        if self.folded is None:
            self.folded = fold_visit(self.messages)
        return self.folded

    def take_back(self, authority: str) -> None:
        """An authority's alert was withdrawn: it may be alerted again, and the department is answered anew."""
        self.alerted.discard(authority)
        self.withdrawn[authority] = self.withdrawn.get(authority, 0) + 1
        if self.replied is not None:
            self.corrections += 1
            self.replied = None

    def known(self, *, is_new: bool) -> Known:
        """What was decided so far."""
        return Known(
            is_new=is_new,
            is_corrected=self.corrections > 0 and self.replied is None,
            alerted=frozenset(self.alerted),
            reviewed=frozenset(self.reviewed),
            replied=self.replied,
        )


def index_patient(keyring: Keyring, sender: str, local_patient_id: str) -> bytes:
    """The blind index of a sender's own patient id."""
    return keyring.index("patient", sender, local_patient_id)


def derive_visit_id(keyring: Keyring, said: Attendance, marker: bytes) -> str:
    """A visit is keyed by sender, visit number and patient: some systems count the visits of each patient from 1.

    Without a visit number it is keyed by the patient and the day; without both it stands alone.
    """
    if said.visit_number:
        return keyring.derive_id("visit", said.sender, said.visit_number, said.local_patient_id or "")
    day = said.arrived_at or said.event_at or said.message_at
    patient = said.local_patient_id or said.nhs_number
    if patient and day is not None:
        return keyring.derive_id("visit-day", said.sender, patient, london_day(day).isoformat())
    return keyring.derive_id("visit-alone", marker.hex())


async def open_visits(
    connection: AsyncConnection, keyring: Keyring, first_said: Mapping[str, Attendance], now: datetime
) -> dict[str, Thread]:
    """Make sure that every visit has a row; returns those that are new, of which nothing else can be known.

    Two workers that hear of one new visit at the same time meet here: the second waits until the first has
    committed, and then sees what the first decided.
    """
    rows = [
        _visit_row(keyring, visit_id, said, now) | {"opened_at": now} for visit_id, said in sorted(first_said.items())
    ]
    if not rows:
        return {}
    statement = upsert(connection, _visits).on_conflict_do_nothing().returning(_visits.c.id)
    return {
        row.id: Thread(
            visit_id=row.id,
            sender=first_said[row.id].sender,
            opened_at=now,
            messages=[],
            is_opened_as_written=True,
        )
        for row in await connection.execute(statement, rows)
    }


async def load_threads(connection: AsyncConnection, keyring: Keyring, visit_ids: Iterable[str]) -> dict[str, Thread]:
    """The visits, locked in sorted order, with their messages and decisions."""
    wanted = sorted(set(visit_ids))
    threads: dict[str, Thread] = {}
    if not wanted:
        return threads
    locked = select(_visits).where(_visits.c.id.in_(wanted)).order_by(_visits.c.id).with_for_update()
    for row in await connection.execute(locked):
        replied = ReplyOutcome(row.reply_outcome) if row.reply_outcome else None
        threads[row.id] = Thread(
            visit_id=row.id,
            sender=row.sender,
            opened_at=row.opened_at,
            messages=[],
            replied=replied,
            corrections=row.corrections,
        )
    for row in await connection.execute(select(_messages).where(_messages.c.visit_id.in_(wanted))):
        threads[row.visit_id].messages.append((bytes(row.marker), open_message(keyring, row)))
    alerts = select(_alerts.c.visit_id, _alerts.c.authority, _alerts.c.withdrawn_at).where(
        _alerts.c.visit_id.in_(wanted)
    )
    for row in await connection.execute(alerts):
        thread = threads[row.visit_id]
        if row.withdrawn_at is None:
            thread.alerted.add(row.authority)
        else:
            thread.withdrawn[row.authority] = thread.withdrawn.get(row.authority, 0) + 1
    # A doubt about an entry that was taken back is open again when the entry is listed again.
    reviews = select(_reviews.c.visit_id, _reviews.c.entry_id).where(
        _reviews.c.visit_id.in_(wanted), func.coalesce(_reviews.c.decision, "") != ENTRY_TAKEN_BACK
    )
    for row in await connection.execute(reviews):
        threads[row.visit_id].reviewed.add(row.entry_id)
    return threads


async def find_messages(connection: AsyncConnection, wanted: Iterable[tuple[str, bytes]]) -> set[tuple[str, bytes]]:
    """Of (visit id, marker), those that are a message of that visit."""
    pairs = sorted(set(wanted))
    if not pairs:
        return set()
    statement = select(_messages.c.visit_id, _messages.c.marker).where(
        tuple_(_messages.c.visit_id, _messages.c.marker).in_(pairs)
    )
    return {(row.visit_id, bytes(row.marker)) for row in await connection.execute(statement)}


async def find_latest_by_patient(
    connection: AsyncConnection, patient_indexes: Iterable[bytes], since: datetime
) -> dict[bytes, str]:
    """The visit of each patient that was heard of last, if not before ``since``."""
    wanted = sorted(set(patient_indexes))
    if not wanted:
        return {}
    statement = (
        select(_visits.c.patient_index, _visits.c.id)
        .where(_visits.c.patient_index.in_(wanted), _visits.c.heard_at >= since)
        .order_by(_visits.c.heard_at, _visits.c.id)
    )
    return {bytes(row.patient_index): row.id for row in await connection.execute(statement)}


async def find_by_person(
    connection: AsyncConnection, *, nhs_index: bytes, blocks: Sequence[bytes], since: datetime
) -> list[str]:
    """Visits not older than ``since`` of an NHS number or of a child of hers, or of a block when it has no number."""
    statement = select(_visits.c.id).where(
        _visits.c.heard_at >= since,
        (_visits.c.nhs_index == nhs_index)
        | (_visits.c.mother_index == nhs_index)
        | (_visits.c.nhs_index.is_(None) & _visits.c.birth_index.in_(list(blocks))),
    )
    return sorted(row.id for row in await connection.execute(statement))


async def save_threads(connection: AsyncConnection, keyring: Keyring, threads: Sequence[Thread], now: datetime) -> None:
    """Write what was added to the visits, and what was read anew."""
    changed = sorted((each for each in threads if each.added or each.replaced), key=lambda thread: thread.visit_id)
    # A visit of one message stands already as open_visits wrote it.
    grown = [each for each in changed if each.added and not (each.is_opened_as_written and len(each.messages) == 1)]
    await _update_visits(connection, keyring, grown, (*_INDEXES, "heard_at"), now)
    # Nothing new was heard of a visit whose messages were read anew.
    read_anew = [thread for thread in changed if not thread.added]
    await _update_visits(connection, keyring, read_anew, _INDEXES, now)
    added = [
        _message_row(keyring, thread, marker, said) | {"received_at": now}
        for thread in changed
        for marker, said in thread.added
    ]
    if added:
        await connection.execute(insert(_messages), added)
    replaced = [
        _message_row(keyring, thread, marker, dict(thread.messages)[marker])
        for thread in changed
        for marker in thread.replaced
    ]
    if replaced:
        await _replace_messages(connection, replaced)


async def _update_visits(
    connection: AsyncConnection, keyring: Keyring, threads: Sequence[Thread], names: Sequence[str], now: datetime
) -> None:
    if not threads:
        return
    statement = (
        update(_visits)
        .where(_visits.c.id == bindparam("visit"))
        .values({name: bindparam(f"new_{name}") for name in names})
    )
    rows = [(thread.visit_id, _visit_row(keyring, thread.visit_id, thread.facts(), now)) for thread in threads]
    await connection.execute(
        statement,
        [{"visit": visit_id} | {f"new_{name}": row[name] for name in names} for visit_id, row in rows],
    )


async def _replace_messages(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
    names = ("event", "said_at", "sealed")
    statement = (
        update(_messages)
        .where(_messages.c.visit_id == bindparam("of_visit"), _messages.c.marker == bindparam("of_marker"))
        .values({name: bindparam(f"new_{name}") for name in names})
    )
    await connection.execute(
        statement,
        [
            {"of_visit": row["visit_id"], "of_marker": row["marker"]} | {f"new_{name}": row[name] for name in names}
            for row in rows
        ],
    )


async def note_replies(connection: AsyncConnection, replied: Sequence[tuple[str, ReplyOutcome, int]]) -> None:
    """Note how visits were last answered, and how often an answer was taken back."""
    if replied:
        statement = (
            update(_visits)
            .where(_visits.c.id == bindparam("visit"))
            .values(reply_outcome=bindparam("outcome"), corrections=bindparam("taken_back"))
        )
        await connection.execute(
            statement,
            [
                {"visit": visit_id, "outcome": outcome.value, "taken_back": corrections}
                for visit_id, outcome, corrections in sorted(replied)
            ],
        )


async def load_messages(
    connection: AsyncConnection, keyring: Keyring, visit_id: str
) -> list[tuple[datetime, Attendance]]:
    """The visit's thread, oldest first: (received at, what was said)."""
    statement = (
        select(_messages)
        .where(_messages.c.visit_id == visit_id)
        .order_by(_messages.c.received_at, _messages.c.said_at, _messages.c.marker)
    )
    return [(row.received_at, open_message(keyring, row)) for row in await connection.execute(statement)]


def open_message(keyring: Keyring, row: Any) -> Attendance:
    """Unseal one message of a visit."""
    plain = keyring.open(bytes(row.sealed), about=_about(row.visit_id, bytes(row.marker)))
    return msgspec.json.decode(plain, type=Attendance)


def _about(visit_id: str, marker: bytes) -> str:
    return f"visit/{visit_id}/{marker.hex()}"


def _message_row(keyring: Keyring, thread: Thread, marker: bytes, said: Attendance) -> dict[str, Any]:
    return {
        "visit_id": thread.visit_id,
        "marker": marker,
        "owner": organisation_owner(thread.sender),
        "event": said.event.value,
        "said_at": said.event_at or said.message_at,
        "sealed": keyring.seal(msgspec.json.encode(said), about=_about(thread.visit_id, marker)),
    }


def _visit_row(keyring: Keyring, visit_id: str, facts: Attendance, now: datetime) -> dict[str, Any]:
    patient = facts.local_patient_id
    return {
        "id": visit_id,
        "owner": organisation_owner(facts.sender),
        "sender": facts.sender,
        "patient_index": index_patient(keyring, facts.sender, patient) if patient else None,
        "nhs_index": index_nhs_number(keyring, facts.nhs_number) if facts.nhs_number else None,
        "mother_index": index_nhs_number(keyring, facts.mother_nhs_number) if facts.mother_nhs_number else None,
        "birth_index": next((index_block(keyring, block) for block in candidate_blocks(facts.birth_date)), None),
        "heard_at": now,
    }
