"""Attendances that a hub released to a school, and that the department has cancelled or corrected since.

The consumer of attendances knows nothing of hubs, and hubs read an attendance once: so what was released lately is
looked at anew. Whoever released it is asked once, whatever they answer.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from broker.keyring import Keyring
from broker.notices import BROKER
from broker.referrals import ask_hub, find_taken_back
from broker.storage import audit, incidents
from broker.storage.audit import Act
from broker.storage.database import Database


async def ask_about_taken_back(
    database: Database, keyring: Keyring, now: datetime, *, released_since: datetime, limit: timedelta, rows_max: int
) -> int:
    """Ask the hub about what was released since that instant; returns of how many."""
    async with database.reading() as connection:
        released = await incidents.list_released_referrals(connection, keyring, released_since, rows_max=rows_max)
        found = [
            (each, taken_back)
            for each in released
            if (taken_back := await find_taken_back(connection, keyring, each)) is not None
        ]
    if not found:
        return 0
    async with database.writing() as connection:
        acts = []
        for each, taken_back in found:
            task = await ask_hub(connection, keyring, each, now, limit=limit)
            acts.append(
                Act(
                    owner=each.owner,
                    actor=BROKER,
                    action=f"{task.kind.value}.asked",
                    subject=task.id,
                    reason=taken_back.value,
                )
            )
        await audit.record_acts(connection, acts, now)
    return len(found)
