"""Visits and the messages they are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import Select, Update, bindparam, case, delete, exists, func, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.course import Quiet, VisitState, begins_anew, is_after, says_present, visit_state
from broker.domain.decision import Known
from broker.domain.matching import birth_block, visitor_blocks
from broker.domain.visits import Order, fold_later, fold_visit, london_day, message_order, moves_visit
from broker.keyring import Keyring
from broker.storage.child_lists import index_block, index_nhs_number
from broker.storage.persons import index_patient
from broker.storage.rows import (
    Write,
    insert_new,
    insert_rows,
    is_among_given,
    update_rows,
)
from broker.storage.tables import (
    REVIEWED_ANEW,
    Alert,
    AlertEntry,
    AlertState,
    Review,
    ReviewDecision,
    Visit,
    VisitBlock,
    VisitMessage,
    table,
)
from schemas.alert import ReplyOutcome
from schemas.attendance import Attendance, Event
from schemas.identifiers import organisation_owner

_visits, _messages, _blocks = table(Visit), table(VisitMessage), table(VisitBlock)
_alerts, _reviews, _grounds = table(Alert), table(Review), table(AlertEntry)
_OF_THREAD: Final = (
    _visits.c.id,
    _visits.c.sender,
    _visits.c.opened_at,
    _visits.c.reply_outcome,
    _visits.c.corrections,
    _visits.c.state,
    _visits.c.joined_into,
    _visits.c.closed_at,
    _visits.c.continued_as,
)
_OF_ALERT: Final = (
    *(_alerts.c.visit_id, _alerts.c.authority, _alerts.c.withdrawn_at, _alerts.c.id, _alerts.c.state),
    *(_alerts.c.told_state, _alerts.c.notices, _alerts.c.is_restricted, _grounds.c.entry_id),
)
_DECIDED: Final = (
    *("messages", "added", "replaced", "removed", "joined_into"),
    *("alerted", "withdrawn", "corrections", "reviewed", "confirmed", "rejected", "replied"),
)
"""What deciding about a message changes of a visit."""


class Standing(msgspec.Struct, kw_only=True):
    """An alert of the visit that stands."""

    alert_id: str
    is_open: bool = True
    told: VisitState = VisitState.HERE
    """The state of the visit that its authority last heard of."""
    notices: int = 0
    entries: set[str] = msgspec.field(default_factory=set)
    """The list entries it rests on."""
    is_restricted: bool = False


class Thread(msgspec.Struct, kw_only=True):
    """One visit while a transaction works on it: its messages and what was decided."""

    visit_id: str
    sender: str
    opened_at: datetime
    messages: list[tuple[bytes, Attendance]]
    added: list[tuple[bytes, Attendance]] = msgspec.field(default_factory=list)
    replaced: dict[bytes, Attendance] = msgspec.field(default_factory=dict)
    """Messages that were read anew, as they were read before."""
    registers_by: tuple[Event, ...] = ()
    """The events with which the sender's system registers somebody."""
    removed: set[bytes] = msgspec.field(default_factory=set)
    """Messages that are no part of the visit any more."""
    joined_into: str | None = None
    """The visit that this one was found to be."""
    alerted: dict[str, Standing] = msgspec.field(default_factory=dict)
    """The alerts of this visit that stand, by authority."""
    withdrawn: dict[str, int] = msgspec.field(default_factory=dict)
    """Alerts that were withdrawn, by authority."""
    corrections: int = 0
    """Times an answer was taken back."""
    reviewed: set[str] = msgspec.field(default_factory=set)
    confirmed: set[str] = msgspec.field(default_factory=set)
    """Entries of which a person said that they are about whoever attends."""
    rejected: set[str] = msgspec.field(default_factory=set)
    """Entries of which a person said that they are about somebody else."""
    replied: ReplyOutcome | None = None
    stored: Attendance | None = None
    """The visit as its row stands: what it is found by was made of this."""
    folded: Attendance | None = None
    """The messages as one, until there is one that does not come after them all."""
    latest: Order | None = None
    """Where the last of the messages stands that were folded; None: one of them moves a visit."""
    stored_state: VisitState | None = None
    closed_at: datetime | None = None
    """When it came to rest, because nothing was heard of it; None: it is under way."""
    continued_as: str | None = None
    """The visit that has begun under the same number since."""

    def is_of_another(self, said: Attendance) -> bool:
        """Whether a message under this visit's number is of one that began after it had come to rest."""
        if self.closed_at is None:
            return False
        if self.continued_as is not None:
            return is_after(said, self.closed_at)
        return self.is_here and begins_anew(said, self.closed_at, self.registers_by)

    def add(self, marker: bytes, said: Attendance) -> None:
        """Add a message, or replace what was read of it before."""
        former = dict(self.messages).get(marker) if self.messages else None
        if former is None:
            self.messages.append((marker, said))
            self.added.append((marker, said))
            self._fold_in(marker, said)
        else:
            self.replaced.setdefault(marker, former)
            self._put(marker, said)
            self.folded = None

    @property
    def is_here(self) -> bool:
        """Whether any message says that the person came; until then the visit only gathers what is said."""
        return any(says_present(said, self.registers_by) for _, said in self.messages)

    def remove(self, marker: bytes) -> None:
        """A message turned out to be about somebody else."""
        self.messages = [pair for pair in self.messages if pair[0] != marker]
        if marker in {each for each, _ in self.added}:
            self.added = [pair for pair in self.added if pair[0] != marker]
        else:
            self.removed.add(marker)
        self.replaced.pop(marker, None)
        self.folded = None

    def snapshot(self) -> Thread:
        """What ``restore`` needs if a message cannot be decided."""
        return msgspec.structs.replace(
            self,
            messages=[*self.messages],
            added=[*self.added],
            replaced={**self.replaced},
            removed={*self.removed},
            alerted={code: msgspec.structs.replace(each) for code, each in self.alerted.items()},
            withdrawn={**self.withdrawn},
            reviewed={*self.reviewed},
            confirmed={*self.confirmed},
            rejected={*self.rejected},
        )

    def restore(self, snapshot: Thread) -> None:
        """The visit as it was. Who was only about to be told is told of the next message instead."""
        for name in _DECIDED:
            setattr(self, name, getattr(snapshot, name))
        self.folded = None

    def _put(self, marker: bytes, said: Attendance) -> None:
        self.messages = [(each, said if each == marker else heard) for each, heard in self.messages]
        self.added = [(each, said if each == marker else heard) for each, heard in self.added]

    def facts(self) -> Attendance:
        """The visit as it is known."""
        if self.folded is None:
            self.folded = fold_visit(self.messages)
            moves = any(moves_visit(said) for _, said in self.messages)
            self.latest = None if moves else max(map(message_order, self.messages))
        return self.folded

    def _fold_in(self, marker: bytes, said: Attendance) -> None:
        """Most messages come after all that was heard of their visit: those are not gone through again."""
        at = message_order((marker, said))
        if self.folded is None or self.latest is None or at <= self.latest or moves_visit(said):
            self.folded = None
        else:
            self.folded, self.latest = fold_later(self.folded, said), at

    def take_back(self, authority: str) -> None:
        """An authority's alert was withdrawn: it may be alerted again, and the department is answered anew."""
        if self.alerted.pop(authority, None) is not None:
            self.withdrawn[authority] = self.withdrawn.get(authority, 0) + 1
        self.take_answer_back()

    def take_answer_back(self) -> None:
        """The department is answered anew, whoever it is."""
        if self.replied is not None:
            self.corrections += 1
            self.replied = None

    def take_over_decisions(self, other: Thread) -> None:
        """What people decided of a visit that was found to be this one; of a yes and a no the yes stands."""
        self.confirmed |= other.confirmed
        self.rejected = (self.rejected | other.rejected) - self.confirmed
        self.reviewed |= other.confirmed | other.rejected

    def state(self) -> VisitState:
        """Where the visit stands."""
        return visit_state(self.messages, self.registers_by)

    def known(self, *, is_new: bool) -> Known:
        """What was decided so far."""
        return Known(
            is_new=is_new,
            is_corrected=self.corrections > 0 and self.replied is None,
            alerted=frozenset(self.alerted),
            reviewed=frozenset(self.reviewed),
            confirmed=frozenset(self.confirmed),
            rejected=frozenset(self.rejected),
            replied=self.replied,
        )


def derive_visit_id(keyring: Keyring, said: Attendance, marker: bytes, patient: str | None = None) -> str:
    """A visit is keyed by sender, visit number and patient: some systems count the visits of each patient from 1.

    Without a visit number it is keyed by the patient and the day; without both it stands alone. ``patient`` is the
    number under which the visit is kept, where merges give its patient several.
    """
    patient = patient or said.local_patient_id
    if said.visit_number:
        return keyring.derive_id("visit", said.sender, said.visit_number, patient or "")
    day = said.arrived_at or said.event_at or said.message_at
    patient = patient or said.nhs_number
    if patient and day is not None:
        return keyring.derive_id("visit-day", said.sender, patient, london_day(day).isoformat())
    return keyring.derive_id("visit-alone", marker.hex())


def derive_day_visit_ids(keyring: Keyring, said: Attendance, patients: Iterable[str], days: Iterable[int]) -> set[str]:
    """The visits without a number of a patient on days around the one of a message."""
    at = said.arrived_at or said.event_at or said.message_at
    if at is None:
        return set()
    found = [(london_day(at) + timedelta(days=day)).isoformat() for day in days]
    first = {keyring.derive_id("visit-day", said.sender, patient, day) for patient in patients for day in found}
    return first | {derive_next_visit_id(keyring, visit_id) for visit_id in first}


def derive_former_visit_id(keyring: Keyring, said: Attendance, marker: bytes, patient: str | None = None) -> str:
    """The visit that a message moves into its own (``moves_visit``), of the former patient or of ``patient``."""
    number = said.former_visit_number or said.visit_number
    former = msgspec.structs.replace(said, visit_number=number)
    return derive_visit_id(keyring, former, marker, patient or said.former_patient_id)


def derive_next_visit_id(keyring: Keyring, visit_id: str) -> str:
    """The visit that begins under the number of one that has come to rest, or on whose day one goes on from before."""
    return keyring.derive_id("visit-anew", visit_id)


async def load_threads(
    connection: AsyncConnection,
    keyring: Keyring,
    first_said: Mapping[str, Attendance],
    now: datetime,
    *,
    also: Iterable[str] = (),
) -> dict[str, Thread]:
    """The visits, locked, with their messages and decisions; each that was not heard of before is opened.

    ``also`` are visits that are loaded if they are known.

    Two workers that hear of one new visit at the same time meet here: the second waits until the first has
    committed, and then sees what the first decided.
    """
    threads = await _load_and_follow(connection, keyring, {*first_said, *also})
    rows = [
        _visit_row(keyring, visit_id, said, now) | {"opened_at": now}
        for visit_id, said in sorted(first_said.items())
        if visit_id not in threads
    ]
    for visit_id in await insert_new(connection, _visits, rows, key="id"):
        sender = first_said[visit_id].sender
        threads[visit_id] = Thread(
            visit_id=visit_id, sender=sender, opened_at=now, messages=[], stored=first_said[visit_id]
        )
    raced = first_said.keys() - threads.keys()
    return threads | await _load_and_follow(connection, keyring, raced)


async def _load_and_follow(
    connection: AsyncConnection, keyring: Keyring, visit_ids: Iterable[str]
) -> dict[str, Thread]:
    """As ``load_known_threads``, and under the id of a visit that was joined into another that other one."""
    threads = await _load(connection, keyring, visit_ids)
    joined = {visit_id: thread.joined_into for visit_id, thread in threads.items() if thread.joined_into}
    if joined:
        others = await _load(connection, keyring, {into for into in joined.values() if into} - threads.keys())
        threads |= others | {visit_id: (threads | others)[into] for visit_id, into in joined.items() if into}
    return threads


async def load_known_threads(
    connection: AsyncConnection, keyring: Keyring, visit_ids: Iterable[str]
) -> dict[str, Thread]:
    """Those of the visits that were heard of, locked in sorted order, with their messages and decisions."""
    threads = await _load(connection, keyring, visit_ids)
    return {visit_id: thread for visit_id, thread in threads.items() if thread.joined_into is None}


async def _load(connection: AsyncConnection, keyring: Keyring, visit_ids: Iterable[str]) -> dict[str, Thread]:
    wanted = sorted(set(visit_ids))
    threads: dict[str, Thread] = {}
    if wanted:
        for row in await connection.execute(_reads(connection.dialect.name).visits, {"ids": wanted}):
            replied = ReplyOutcome(row.reply_outcome) if row.reply_outcome else None
            threads[row.id] = Thread(
                visit_id=row.id,
                sender=row.sender,
                opened_at=row.opened_at,
                messages=[],
                replied=replied,
                corrections=row.corrections,
                joined_into=row.joined_into,
                stored_state=VisitState(row.state) if row.state else None,
                closed_at=row.closed_at,
                continued_as=row.continued_as,
            )
    if threads:
        await _load_what_was_heard(connection, keyring, threads)
        await _load_what_was_decided(connection, threads)
    return threads


class _Reads(NamedTuple):
    """What is read of visits, by their ``ids``."""

    visits: Select[Any]
    messages: Select[Any]
    alerts: Select[Any]
    reviews: Select[Any]
    standing: Select[Any]
    by_patients: Select[Any]


@lru_cache
def _reads(dialect: str) -> _Reads:
    visits = select(*_OF_THREAD).where(is_among_given(dialect, _visits.c.id, "ids"))
    messages = select(_messages.c.visit_id, _messages.c.marker, _messages.c.sealed)
    alerts = select(*_OF_ALERT).join_from(_alerts, _grounds, _grounds.c.alert_id == _alerts.c.id, isouter=True)
    reviews = select(_reviews.c.visit_id, _reviews.c.entry_id, _reviews.c.decision)
    # A doubt about an entry that was taken back is open again when the entry is listed again.
    stands = func.coalesce(_reviews.c.decision, "").not_in(REVIEWED_ANEW)
    return _Reads(
        visits=visits.order_by(_visits.c.id).with_for_update(),
        messages=messages.where(is_among_given(dialect, _messages.c.visit_id, "ids")),
        alerts=alerts.where(is_among_given(dialect, _alerts.c.visit_id, "ids")),
        reviews=reviews.where(is_among_given(dialect, _reviews.c.visit_id, "ids"), stands),
        standing=select(_visits.c.id, _visits.c.joined_into)
        .where(is_among_given(dialect, _visits.c.id, "ids"))
        .order_by(_visits.c.opened_at, _visits.c.id),
        by_patients=select(_visits.c.id).where(
            is_among_given(dialect, _visits.c.patient_index, "ids"),
            _visits.c.heard_at >= bindparam("since"),
            _visits.c.joined_into.is_(None),
        ),
    )


async def _load_what_was_heard(connection: AsyncConnection, keyring: Keyring, threads: Mapping[str, Thread]) -> None:
    for row in await connection.execute(_reads(connection.dialect.name).messages, {"ids": sorted(threads)}):
        threads[row.visit_id].messages.append((bytes(row.marker), open_message(keyring, row)))
    for thread in threads.values():
        if thread.messages:
            thread.stored = thread.facts()


async def _load_what_was_decided(connection: AsyncConnection, threads: Mapping[str, Thread]) -> None:
    wanted, reads = {"ids": sorted(threads)}, _reads(connection.dialect.name)
    withdrawn: dict[str, set[tuple[str, str]]] = {}
    for found in await connection.execute(reads.alerts, wanted):
        thread = threads[found.visit_id]
        if found.withdrawn_at is not None:
            withdrawn.setdefault(found.visit_id, set()).add((found.authority, found.id))
            continue
        standing = thread.alerted.setdefault(found.authority, _standing(found))
        if found.entry_id is not None:
            standing.entries.add(found.entry_id)
    for visit_id, pairs in withdrawn.items():
        threads[visit_id].withdrawn.update(Counter(authority for authority, _ in pairs))
    for row in await connection.execute(reads.reviews, wanted):
        thread = threads[row.visit_id]
        thread.reviewed.add(row.entry_id)
        if row.decision == ReviewDecision.CONFIRMED:
            thread.confirmed.add(row.entry_id)
        elif row.decision in (ReviewDecision.REJECTED, ReviewDecision.UNDONE):
            thread.rejected.add(row.entry_id)


def write_look_ups(look_ups: Sequence[tuple[str, str]], now: datetime) -> Write:
    """Open a thread for each mere look-up, as (id, sender): nobody came, so it has no messages and is found by no
    person's index.
    """
    rows = [
        {"id": look_up_id, "owner": organisation_owner(sender), "sender": sender, "opened_at": now, "heard_at": now}
        for look_up_id, sender in look_ups
    ]
    return Write(_visits, rows, ignore_existing=True)


def _standing(row: Any) -> Standing:
    return Standing(
        alert_id=row.id,
        is_open=row.state == AlertState.OPEN,
        told=VisitState(row.told_state) if row.told_state else VisitState.HERE,
        notices=row.notices,
        is_restricted=row.is_restricted,
    )


async def find_messages(connection: AsyncConnection, wanted: Iterable[tuple[str, bytes]]) -> set[tuple[str, bytes]]:
    """Of (visit id, marker), those that are a message of that visit."""
    pairs = sorted(set(wanted))
    if not pairs:
        return set()
    statement = select(_messages.c.visit_id, _messages.c.marker).where(
        tuple_(_messages.c.visit_id, _messages.c.marker).in_(pairs)
    )
    return {(row.visit_id, bytes(row.marker)) for row in await connection.execute(statement)}


async def find_by_patients(connection: AsyncConnection, patient_indexes: Iterable[bytes], since: datetime) -> list[str]:
    """The visits of patients that were heard of, not before ``since``; without those that were joined into others."""
    wanted = sorted(set(patient_indexes))
    if not wanted:
        return []
    statement = _reads(connection.dialect.name).by_patients
    return sorted((await connection.execute(statement, {"ids": wanted, "since": since})).scalars())


async def find_standing(connection: AsyncConnection, visit_ids: Iterable[str]) -> dict[str, str]:
    """Of these visits those that were heard of, oldest first, and the visit that each one is now."""
    wanted = {"ids": sorted(set(visit_ids))}
    standing = await connection.execute(_reads(connection.dialect.name).standing, wanted)
    return {row.id: row.joined_into or row.id for row in standing}


async def load_said(
    connection: AsyncConnection, keyring: Keyring, visit_ids: Collection[str]
) -> dict[str, list[Attendance]]:
    """What was said of each of these visits."""
    found: dict[str, list[Attendance]] = {visit_id: [] for visit_id in visit_ids}
    if found:
        reads = _reads(connection.dialect.name)
        for row in await connection.execute(reads.messages, {"ids": sorted(found)}):
            found[row.visit_id].append(open_message(keyring, row))
    return found


async def find_by_person(
    connection: AsyncConnection, *, nhs_indexes: Sequence[bytes], blocks: Sequence[bytes], since: datetime
) -> list[str]:
    """Visits not older than ``since`` of NHS numbers or of a child of hers, or of a block when they have no number."""
    statement = select(_visits.c.id).where(
        _visits.c.heard_at >= since,
        _visits.c.nhs_index.in_(list(nhs_indexes))
        | _visits.c.mother_index.in_(list(nhs_indexes))
        | (_visits.c.nhs_index.is_(None) & _visits.c.birth_index.in_(list(blocks))),
    )
    blocked = (
        select(_visits.c.id)
        .join(_blocks, _blocks.c.visit_id == _visits.c.id)
        .where(_blocks.c.block.in_(list(blocks)), _visits.c.heard_at >= since, _visits.c.nhs_index.is_(None))
    )
    return sorted({row.id for one in (statement, blocked) for row in await connection.execute(one)})


async def list_kept(connection: AsyncConnection, *, after: str, rows_max: int) -> dict[str, datetime]:
    """The next visits after one (by id) of which it is still kept what was said, and when they were heard of last."""
    statement = (
        select(_visits.c.id, _visits.c.heard_at)
        .where(_visits.c.id > after, exists().where(_messages.c.visit_id == _visits.c.id))
        .order_by(_visits.c.id)
        .limit(rows_max)
    )
    return {row.id: row.heard_at for row in await connection.execute(statement)}


async def save_threads(connection: AsyncConnection, keyring: Keyring, threads: Sequence[Thread], now: datetime) -> None:
    """Write what was added to the visits, and what was read anew."""
    each_once = {
        each.visit_id: each for each in threads if each.added or each.replaced or each.removed or each.joined_into
    }
    await _remove_messages(connection, list(each_once.values()))
    changed = [each_once[visit_id] for visit_id in sorted(each_once) if each_once[visit_id].messages]
    moved = [each for each in changed if each.stored is None or _person(each.facts()) != _person(each.stored)]
    indexes = [{"id": each.visit_id} | _index_person(keyring, each.facts()) for each in moved]
    await update_rows(connection, _visits, indexes, key="id")
    await _write_states(connection, changed)
    await _write_blocks(connection, keyring, changed)
    await _note_heard(connection, [each.visit_id for each in changed if each.added and each.opened_at != now], now)
    added = [
        _message_row(keyring, thread, marker, said) | {"received_at": now}
        for thread in changed
        for marker, said in thread.added
    ]
    await insert_rows(connection, _messages, added)
    replaced = [
        _message_row(keyring, thread, marker, dict(thread.messages)[marker])
        for thread in changed
        for marker in thread.replaced
    ]
    if replaced:
        await _replace_messages(connection, replaced)


async def _remove_messages(connection: AsyncConnection, threads: Sequence[Thread]) -> None:
    """Take out what is no part of a visit any more, and note which visit it was joined into."""
    for thread in threads:
        if thread.removed:
            gone = (_messages.c.visit_id == thread.visit_id, _messages.c.marker.in_(sorted(thread.removed)))
            await connection.execute(delete(_messages).where(*gone))
        if thread.joined_into is not None:
            into = {"joined_into": thread.joined_into}
            await connection.execute(update(_visits).where(_visits.c.id == thread.visit_id).values(into))
            await connection.execute(delete(_blocks).where(_blocks.c.visit_id == thread.visit_id))


async def _write_states(connection: AsyncConnection, threads: Sequence[Thread]) -> None:
    """Where the visits stand now. One that had lapsed is written anew, whatever it comes to."""
    states = {thread.visit_id: (thread.stored_state, thread.state()) for thread in threads}
    rows = [{"id": visit_id, "state": state.value} for visit_id, (before, state) in states.items() if state != before]
    await update_rows(connection, _visits, rows, key="id")


async def _write_blocks(connection: AsyncConnection, keyring: Keyring, threads: Sequence[Thread]) -> None:
    """Under which blocks visits without a number are found; with a number there are none."""
    rows = [
        {"block": index_block(keyring, block), "visit_id": thread.visit_id, "owner": organisation_owner(thread.sender)}
        for thread in threads
        if not thread.facts().nhs_number
        for block in visitor_blocks([thread.facts()])
    ]
    await insert_rows(connection, _blocks, rows, ignore_existing=True)


async def _note_heard(connection: AsyncConnection, visit_ids: Sequence[str], now: datetime) -> None:
    """A visit that had come to rest is under way again, unless another has begun under its number."""
    if visit_ids:
        await connection.execute(_heard(connection.dialect.name), {"ids": visit_ids, "now": now})


@lru_cache
def _heard(dialect: str) -> Update:
    closed = case((_visits.c.continued_as.is_(None), None), else_=_visits.c.closed_at)
    among = is_among_given(dialect, _visits.c.id, "ids")
    return update(_visits).where(among).values(heard_at=bindparam("now"), closed_at=closed)


async def close_quiet(connection: AsyncConnection, quiet: Quiet, *, now: datetime, rows_max: int) -> int:
    """Visits of which nothing was heard for so long come to rest; returns how many. Nothing follows for anybody.

    They have been at rest since the limit, however late this is noted: who came under the number since came anew.
    """
    stays = _visits.c.state == VisitState.ADMITTED.value
    found = (
        select(_visits.c.id, _visits.c.heard_at, _visits.c.state)
        .where(
            _visits.c.closed_at.is_(None),
            _visits.c.heard_at < now - quiet.visit,
            or_(_visits.c.state.is_(None), ~stays, _visits.c.heard_at < now - quiet.admission),
        )
        .order_by(_visits.c.heard_at, _visits.c.id)
        .limit(rows_max)
        .with_for_update(skip_locked=True)
    )
    rows = [
        {
            "id": row.id,
            "closed_at": row.heard_at + (quiet.admission if row.state == VisitState.ADMITTED.value else quiet.visit),
        }
        for row in await connection.execute(found)
    ]
    await update_rows(connection, _visits, rows, key="id")
    return len(rows)


async def note_continued(connection: AsyncConnection, visit_ids: Mapping[str, str]) -> None:
    """Note under each visit's id the visit that has begun under its number since."""
    rows = [{"id": visit_id, "continued_as": other} for visit_id, other in sorted(visit_ids.items())]
    await update_rows(connection, _visits, rows, key="id")


async def find_closed_at(connection: AsyncConnection, visit_id: str) -> datetime | None:
    """When a visit came to rest; None: it is under way, or not known."""
    found = await connection.execute(select(_visits.c.closed_at).where(_visits.c.id == visit_id))
    return found.scalar_one_or_none()


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
    # The last word on a visit that was answered more than once in this batch.
    latest = {visit_id: (outcome, corrections) for visit_id, outcome, corrections in replied}
    rows = [
        {"id": visit_id, "reply_outcome": outcome.value, "corrections": corrections}
        for visit_id, (outcome, corrections) in sorted(latest.items())
    ]
    await update_rows(connection, _visits, rows, key="id")


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
    row = {"id": visit_id, "owner": organisation_owner(facts.sender), "sender": facts.sender, "heard_at": now}
    return row | _index_person(keyring, facts)


def _person(facts: Attendance) -> tuple[object, ...]:
    """What the indexes are made of."""
    return (facts.local_patient_id, facts.nhs_number, facts.mother_nhs_number, facts.birth_date)


def _index_person(keyring: Keyring, facts: Attendance) -> dict[str, bytes | None]:
    patient, is_blocked = facts.local_patient_id, not facts.nhs_number
    return {
        "patient_index": index_patient(keyring, (facts.sender, patient)) if patient else None,
        "nhs_index": index_nhs_number(keyring, facts.nhs_number) if facts.nhs_number else None,
        "mother_index": index_nhs_number(keyring, facts.mother_nhs_number) if facts.mother_nhs_number else None,
        "birth_index": index_block(keyring, birth_block(facts.birth_date)) if is_blocked and facts.birth_date else None,
    }
