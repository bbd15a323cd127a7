"""What is due of police incidents: a notice to be sent, sent again on return, or a school to be rung at the bell.

The instants stand in the database and nowhere else: whoever looks next does what is due. Each incident is seen to in
a transaction of its own, under its lock, so that two workers do it once.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.notices import NoticeRules, UnknownForce, send_due
from broker.storage import audit, incidents
from broker.storage.database import Database
from broker.telemetry import LogEvent, log


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
    acts, rung = await send_due(connection, keyring, incident, rules, now)
    if rung:
        log(LogEvent.ESCALATED, owner=incident.owner, count=rung)
    await audit.record_acts(connection, acts, now)
