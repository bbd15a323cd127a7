"""What is due of police incidents: a notice to be sent, sent again on return, or a school to be rung at the bell.

The instants stand in the database and nowhere else: whoever looks next does what is due. Each incident is seen to in
a transaction of its own, under its lock, so that two workers do it once.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.notices import BROKER, NoticeRules, UnknownForce, replan
from broker.nudges import nudge_school
from broker.storage import audit, establishments, incidents, sendings
from broker.storage.audit import Act
from broker.storage.database import Database
from broker.storage.incidents import AUTHORITY_OFFICER, Matter, StoredIncident, StoredNotice, StoredTask
from broker.telemetry import LogEvent, log
from schemas.encompass import NoticeState, TaskKind
from schemas.identifiers import authority_owner


async def tell_schools(
    database: Database, keyring: Keyring, rules: NoticeRules, now: datetime, *, incidents_max: int
) -> int:
    """Do what is due; returns of how many incidents. One that fails does not keep the others."""
    async with database.reading() as connection:
        due = await incidents.list_due_incidents(connection, now, rows_max=incidents_max)
    done = 0
    for incident_id in due:
        try:
            async with database.writing() as connection:
                await _see_to(connection, keyring, rules, incident_id, now=now)
            done += 1
        except Exception as error:
            log(LogEvent.JOB_FAILED, kind="encompass_due", error=type(error).__name__)
    return done


async def _see_to(
    connection: AsyncConnection, keyring: Keyring, rules: NoticeRules, incident_id: str, *, now: datetime
) -> None:
    incident = await incidents.lock_incident(connection, keyring, incident_id)
    if incident is None:
        raise UnknownForce
    acts, rung = await _send_due(connection, keyring, incident, rules, now)
    if rung:
        log(LogEvent.ESCALATED, owner=incident.owner, count=rung)
    await audit.record_acts(connection, acts, now)


async def _send_due(
    connection: AsyncConnection, keyring: Keyring, incident: StoredIncident, rules: NoticeRules, now: datetime
) -> tuple[list[Act], int]:
    """Do what is due of an incident's notices; returns what is to be audited, and how many were rung for."""
    planned = await replan(connection, keyring, incident, rules, now)
    acts, rung = list(planned.acts), 0
    for notice in planned.notices.values():
        if notice.next_at is None or notice.next_at > now:
            continue
        sent = notice
        if notice.state is NoticeState.WAITING and notice.telling.told:
            sent = msgspec.structs.replace(notice, state=NoticeState.SENT, sent_at=notice.sent_at or now)
            await sendings.save_sending(connection, keyring, sent, now)
            await nudge_school(connection, keyring, sent, rules.nudges, occasion="sent", now=now)
            told = " ".join(notice.telling.told)
            acts.append(_act(notice, "notice.sent", f"version {notice.version} to {told}"))
        if sent.remind_at is not None and sent.reminded_at is None and sent.remind_at <= now:
            if notice.state is NoticeState.SENT:
                await nudge_school(connection, keyring, sent, rules.nudges, occasion="reminded", now=now)
                acts.append(_act(notice, "notice.reminded"))
            sent = msgspec.structs.replace(sent, reminded_at=now)
        if sent.state is NoticeState.SENT and sent.rung_at is None and sent.due_by <= now:
            await _ring(connection, keyring, incident, sent, now)
            acts.append(_act(notice, "ring_school.asked", owner=authority_owner(sent.authority)))
            sent = msgspec.structs.replace(sent, rung_at=now)
            rung += 1
        await incidents.save_notice(connection, keyring, msgspec.structs.replace(sent, next_at=_next(sent, rules, now)))
    return acts, rung


def _next(notice: StoredNotice, rules: NoticeRules, now: datetime) -> datetime | None:
    if notice.state is NoticeState.WAITING:
        return now + rules.try_again
    if notice.state is not NoticeState.SENT:
        return None
    waiting = [notice.due_by] if notice.rung_at is None else []
    if notice.remind_at is not None and notice.reminded_at is None:
        waiting.append(notice.remind_at)
    return min(waiting, default=None)


async def _ring(
    connection: AsyncConnection, keyring: Keyring, incident: StoredIncident, notice: StoredNotice, now: datetime
) -> None:
    found = await establishments.find_establishments(connection, [notice.urn])
    school = found.get(notice.urn)
    matter = Matter(
        incident=incident.message.incident_id,
        establishment=school.name if school is not None else notice.telling.notice.establishment.name,
        telephone=school.office_telephone if school is not None else None,
    )
    task = StoredTask(
        id=incidents.derive_task_id(keyring, TaskKind.RING_SCHOOL, incident.id, notice.urn, str(notice.version)),
        owner=authority_owner(notice.authority),
        incident_id=incident.id,
        kind=TaskKind.RING_SCHOOL,
        urn=notice.urn,
        matter=matter,
        held_by=AUTHORITY_OFFICER,
        opened_at=now,
        due_by=now + timedelta(minutes=15),
    )
    await incidents.open_task(connection, keyring, task)


def _act(notice: StoredNotice, action: str, reason: str = "", *, owner: str = "") -> Act:
    return Act(owner=owner or notice.owner, actor=BROKER, action=action, subject=notice.id, reason=reason)
