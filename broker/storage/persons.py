"""What was said of persons, and of no visit of theirs: kept until a visit takes it in; merges for good."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

import msgspec
from sqlalchemy import CompoundSelect, bindparam, delete, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.kinship import Kinship, Patient, as_of_person, former_of, patient_of, relates
from broker.domain.visits import is_merge
from broker.keyring import Keyring
from broker.storage.rows import insert_rows, is_among, is_among_given
from broker.storage.tables import Alert, PersonMessage, VisitMessage, table
from schemas.attendance import Attendance
from schemas.identifiers import organisation_owner

_persons, _messages, _alerts = table(PersonMessage), table(VisitMessage), table(Alert)
_LOCK: Final = text("SELECT pg_advisory_xact_lock(key) FROM unnest(CAST(:keys AS bigint[])) AS key")
MERGES_IN_A_ROW_MAX: Final = 10


def index_patient(keyring: Keyring, patient: Patient) -> bytes:
    """The blind index of a sender's own patient id."""
    return keyring.index("patient", *patient)


async def lock_patients(connection: AsyncConnection, indexes: Iterable[bytes]) -> None:
    """Until the transaction ends nobody else decides about these patients.

    A merge and the first message of a visit under the former number would not see each other otherwise. SQLite has
    one writer at a time.
    """
    if connection.dialect.name == "postgresql":
        keys = sorted({int.from_bytes(index[:8], "big", signed=True) for index in indexes})
        await connection.execute(_LOCK, {"keys": keys})


async def load_kinship(
    connection: AsyncConnection, keyring: Keyring, patients: Iterable[bytes], since: datetime
) -> Kinship:
    """What was said of patients, by their indexes, and of whom merges connect them with; news not before ``since``."""
    kinship, known = Kinship(), set[bytes]()
    wanted = set(patients)
    for _ in range(MERGES_IN_A_ROW_MAX):
        if not wanted:
            break
        known |= wanted
        found = set[bytes]()
        for row in await connection.execute(
            _of_patients(connection.dialect.name), {"ids": sorted(wanted), "since": since}
        ):
            marker = bytes(row.marker)
            plain = keyring.open(bytes(row.sealed), about=_about(marker))
            kinship.hear(marker, msgspec.json.decode(plain, type=Attendance))
            if row.former_index is not None:
                found |= {bytes(row.patient_index), bytes(row.former_index)}
        wanted = found - known
    return kinship


@lru_cache
def _of_patients(dialect: str) -> CompoundSelect[Any]:
    """Two index look-ups in one statement."""
    columns = (_persons.c.marker, _persons.c.patient_index, _persons.c.former_index, _persons.c.sealed)
    counts = _persons.c.former_index.is_not(None) | (_persons.c.received_at >= bindparam("since"))
    said = select(*columns).where(is_among_given(dialect, _persons.c.patient_index, "ids"), counts)
    merged = select(*columns).where(is_among_given(dialect, _persons.c.former_index, "ids"))
    return said.union_all(merged)


async def save_person_messages(
    connection: AsyncConnection, keyring: Keyring, messages: Mapping[bytes, Attendance], now: datetime
) -> None:
    """Keep messages about persons, by marker."""
    rows = []
    for marker, said in messages.items():
        patient, former = patient_of(said), former_of(said)
        if patient is None:
            continue
        row = {
            "marker": marker,
            "owner": organisation_owner(said.sender),
            "sender": said.sender,
            "patient_index": index_patient(keyring, patient),
            "former_index": index_patient(keyring, former) if former is not None and relates(said) else None,
            "said_at": said.event_at or said.message_at,
            "received_at": now,
            "sealed": keyring.seal(msgspec.json.encode(as_of_person(said)), about=_about(marker)),
        }
        rows.append(row)
    await insert_rows(connection, _persons, rows, ignore_existing=True)


class StoredMerge(msgspec.Struct, frozen=True, kw_only=True):
    """A merge as it is listed: nothing of whom it is about."""

    id: str
    sender: str
    event: str
    received_at: datetime
    is_undone: bool
    """A person took it back."""


def derive_undone(keyring: Keyring, sender: str, merge: bytes) -> bytes:
    """The marker of a person's taking back of a merge: each is taken back once."""
    return keyring.index("merge undone", sender, merge.hex())


async def load_merge(connection: AsyncConnection, keyring: Keyring, marker: bytes) -> Attendance | None:
    """A merge that no person has taken back, by its marker."""
    statement = select(_persons.c.sender, _persons.c.sealed).where(_persons.c.marker == marker)
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        return None
    said = msgspec.json.decode(keyring.open(bytes(row.sealed), about=_about(marker)), type=Attendance)
    undone = select(_persons.c.marker).where(_persons.c.marker == derive_undone(keyring, row.sender, marker))
    is_undone = (await connection.execute(undone)).one_or_none() is not None
    return said if is_merge(said) and not is_undone else None


async def list_merges(
    connection: AsyncConnection, keyring: Keyring, *, alert_id: str | None, rows_max: int
) -> list[StoredMerge]:
    """Merges, the latest first; with ``alert_id`` those that its visit has taken in."""
    statement = select(_persons).where(_persons.c.former_index.is_not(None))
    if alert_id is not None:
        of_visit = (
            select(_messages.c.marker)
            .join(_alerts, _alerts.c.visit_id == _messages.c.visit_id)
            .where(_alerts.c.id == alert_id)
        )
        statement = statement.where(_persons.c.marker.in_(of_visit))
    rows = await connection.execute(
        statement.order_by(_persons.c.received_at.desc(), _persons.c.marker).limit(rows_max)
    )
    found = []
    for row in rows:
        marker = bytes(row.marker)
        said = msgspec.json.decode(keyring.open(bytes(row.sealed), about=_about(marker)), type=Attendance)
        if is_merge(said):
            found.append((marker, row.received_at, said))
    wanted = {derive_undone(keyring, said.sender, marker): marker for marker, _, said in found}
    taken_back = select(_persons.c.marker).where(is_among(connection, _persons.c.marker, list(wanted)))
    undone = {wanted[bytes(row.marker)] for row in await connection.execute(taken_back)}
    return [
        StoredMerge(
            id=marker.hex(), sender=said.sender, event=said.event.value, received_at=at, is_undone=marker in undone
        )
        for marker, at, said in found
    ]


async def forget_news(connection: AsyncConnection, before: datetime, rows_max: int) -> int:
    """Delete news of persons that no visit will take in any more; merges stay. Returns how many."""
    old = (
        select(_persons.c.marker)
        .where(_persons.c.received_at < before, _persons.c.former_index.is_(None))
        .order_by(_persons.c.received_at)
        .limit(rows_max)
    )
    found = await connection.execute(delete(_persons).where(_persons.c.marker.in_(old.scalar_subquery())))
    return found.rowcount


def _about(marker: bytes) -> str:
    return f"person/{marker.hex()}"
