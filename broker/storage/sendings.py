"""The proof of Operation Encompass as it is stored: what was sent and when, and everything that led to it."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import msgspec
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.storage import incidents
from broker.storage.database import upsert
from broker.storage.incidents import StoredIncident, StoredNotice, StoredTask, Telling
from broker.storage.rows import is_among
from broker.storage.tables import (
    AuditRow,
    Delivery,
    EncompassTask,
    Incident,
    IncidentVersion,
    NoticeRow,
    NoticeSending,
    table,
)
from schemas.encompass import PoliceMessage

_sendings, _notices, _incidents = table(NoticeSending), table(NoticeRow), table(Incident)
_versions, _tasks, _audit, _deliveries = table(IncidentVersion), table(EncompassTask), table(AuditRow), table(Delivery)


class Sending(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a notice as it was sent, with what was told and who was told."""

    notice_id: str
    version: int
    due_by: datetime
    sent_at: datetime
    telling: Telling


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """One message of an incident and what it came to beside the others."""

    message: PoliceMessage
    reception: str
    received_at: datetime


class AuditedAct(msgspec.Struct, frozen=True, kw_only=True):
    """One act of the audit about an incident, its notices and its tasks."""

    at: datetime
    actor: str
    action: str
    subject: str
    reason: str


class TaskSpan(msgspec.Struct, frozen=True, kw_only=True):
    """A task and when it was done."""

    task: StoredTask
    decided_at: datetime | None


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a message that left for an establishment."""

    id: str
    state: str
    attempts: int
    created_at: datetime
    settled_at: datetime | None


async def save_sending(connection: AsyncConnection, keyring: Keyring, notice: StoredNotice, now: datetime) -> None:
    """Keep this version as it is sent, or taken back, now."""
    values = {
        "notice_id": notice.id,
        "version": notice.version,
        "owner": notice.owner,
        "due_by": notice.due_by,
        "sent_at": now,
        "sealed": keyring.seal(msgspec.json.encode(notice.telling), about=_about(notice.id, notice.version)),
    }
    await connection.execute(upsert(connection, _sendings).values(values).on_conflict_do_nothing())


async def list_sendings(
    connection: AsyncConnection, keyring: Keyring, notice_ids: Collection[str]
) -> dict[str, list[Sending]]:
    """Every version that was sent of these notices, in order."""
    statement = select(_sendings).where(is_among(connection, _sendings.c.notice_id, sorted(notice_ids)))
    found: dict[str, list[Sending]] = {}
    for row in await connection.execute(statement.order_by(_sendings.c.notice_id, _sendings.c.version)):
        plain = keyring.open(bytes(row.sealed), about=_about(row.notice_id, row.version))
        sending = Sending(
            notice_id=row.notice_id,
            version=row.version,
            due_by=row.due_by,
            sent_at=row.sent_at,
            telling=msgspec.json.decode(plain, type=Telling),
        )
        found.setdefault(row.notice_id, []).append(sending)
    return found


async def list_deadlines(
    connection: AsyncConnection, notice_ids: Collection[str]
) -> dict[str, tuple[datetime, datetime]]:
    """When the first version of these notices was due, and when it was sent."""
    columns = (_sendings.c.notice_id, _sendings.c.due_by, _sendings.c.sent_at)
    statement = select(*columns).where(
        is_among(connection, _sendings.c.notice_id, sorted(notice_ids)), _sendings.c.version == 1
    )
    return {row.notice_id: (row.due_by, row.sent_at) for row in await connection.execute(statement)}


async def list_first_heard(connection: AsyncConnection, incident_ids: Collection[str]) -> dict[str, datetime]:
    """When the first message of each incident came."""
    statement = (
        select(_versions.c.incident_id, func.min(_versions.c.received_at).label("first_at"))
        .where(is_among(connection, _versions.c.incident_id, sorted(incident_ids)))
        .group_by(_versions.c.incident_id)
    )
    return {row.incident_id: row.first_at for row in await connection.execute(statement)}


async def list_reported(
    connection: AsyncConnection, keyring: Keyring, since: datetime, until: datetime, *, force: str, authority: str
) -> list[StoredIncident]:
    """The incidents a force reported in a time; of an authority: those that concern its establishments.

    Attendances that wait for a hub, or were decided there, are none: nobody else is to know that there were any.
    """
    statement = select(_incidents).where(
        _incidents.c.reported_at >= since, _incidents.c.reported_at < until, _incidents.c.referral_sealed.is_(None)
    )
    if force:
        statement = statement.where(_incidents.c.force == force)
    if authority:
        concerned = select(_notices.c.incident_id).where(_notices.c.authority == authority)
        statement = statement.where(_incidents.c.id.in_(concerned))
    rows = await connection.execute(statement.order_by(_incidents.c.reported_at, _incidents.c.id))
    return [incidents.read_incident_row(keyring, row) for row in rows]


async def list_notices_of(
    connection: AsyncConnection, keyring: Keyring, incident_ids: Collection[str]
) -> list[StoredNotice]:
    """The notices of these incidents."""
    statement = select(_notices).where(is_among(connection, _notices.c.incident_id, sorted(incident_ids)))
    rows = await connection.execute(statement.order_by(_notices.c.due_by, _notices.c.id))
    return [incidents.read_notice_row(keyring, row) for row in rows]


async def list_tasks_of(connection: AsyncConnection, keyring: Keyring, incident_ids: Collection[str]) -> list[TaskSpan]:
    """The tasks of these incidents, open or done."""
    statement = select(_tasks).where(is_among(connection, _tasks.c.incident_id, sorted(incident_ids)))
    rows = await connection.execute(statement.order_by(_tasks.c.opened_at, _tasks.c.id))
    return [TaskSpan(task=incidents.read_task_row(keyring, row), decided_at=row.decided_at) for row in rows]


async def list_received(connection: AsyncConnection, keyring: Keyring, incident_id: str) -> list[Received]:
    """Every message of an incident, in the order of arrival."""
    statement = select(_versions).where(_versions.c.incident_id == incident_id)
    rows = await connection.execute(statement.order_by(_versions.c.received_at, _versions.c.version))
    return [
        Received(
            message=msgspec.json.decode(
                keyring.open(bytes(row.sealed), about=f"incident-version/{bytes(row.marker).hex()}"),
                type=PoliceMessage,
            ),
            reception=row.reception,
            received_at=row.received_at,
        )
        for row in rows
    ]


async def list_acts(connection: AsyncConnection, subjects: Collection[str]) -> list[AuditedAct]:
    """Everything audited about these, in order of time."""
    statement = select(_audit).where(is_among(connection, _audit.c.subject, sorted(subjects)))
    rows = await connection.execute(statement.order_by(_audit.c.at, _audit.c.owner, _audit.c.sequence))
    return [
        AuditedAct(at=row.at, actor=row.actor, action=row.action, subject=row.subject, reason=row.reason)
        for row in rows
    ]


async def list_deliveries(connection: AsyncConnection, delivery_ids: Collection[str]) -> list[Sent]:
    """What became of the messages with these ids; those that were never made are left out."""
    statement = select(_deliveries).where(is_among(connection, _deliveries.c.id, sorted(delivery_ids)))
    rows = await connection.execute(statement.order_by(_deliveries.c.created_at, _deliveries.c.id))
    return [
        Sent(
            id=row.id,
            state=row.state,
            attempts=row.attempts,
            created_at=row.created_at,
            settled_at=row.settled_at,
        )
        for row in rows
    ]


def _about(notice_id: str, version: int) -> str:
    return f"notice-sending/{notice_id}/{version}"
