"""Who saw this child, and what did this login see? Asked two years later, answered from the audit, and audited itself.

What people did is told, not what the broker did by itself. Police incidents are told one by one by ``broker.proof``:
they name no NHS number by which they could be found.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.storage import audit, directory, sightings
from broker.storage.audit import Act
from broker.storage.child_lists import index_nhs_number
from broker.storage.sightings import LinkedRecord, Sighting
from schemas.identifiers import BROKER_OWNER, NhsNumber

SIGHTINGS_MAX: Final = 10_000


class RecordQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """Which records of the audit are wanted; None: of all owners, of all actors, from the beginning, to the end."""

    owner: str | None = None
    actor: str | None = None
    since: datetime | None = None
    until: datetime | None = None


async def tell_sightings(
    connection: AsyncConnection, keyring: Keyring, nhs_number: NhsNumber, *, asked_by: str, now: datetime
) -> list[Sighting]:
    """Who did what with anything of this person, oldest first; at most SIGHTINGS_MAX, the newest.

    That it was asked is on record with everybody whose acts are told, and with the broker's operators.
    """
    index = index_nhs_number(keyring, nhs_number)
    subjects = await sightings.find_subjects(connection, await sightings.find_numbers(connection, index))
    found = await sightings.list_sightings(connection, subjects, rows_max=SIGHTINGS_MAX)
    owners = {each.owner for each in found} | {BROKER_OWNER}
    await _record(connection, owners, "audit.who_saw", index.hex(), asked_by=asked_by, now=now)
    return found


async def record_export(connection: AsyncConnection, question: RecordQuestion, *, asked_by: str, now: datetime) -> None:
    """Have it on record that the audit is given out, before it is."""
    owners = {str(BROKER_OWNER), question.owner or BROKER_OWNER}
    await _record(connection, owners, "audit.exported", question.actor or "everybody", asked_by=asked_by, now=now)


def read_records(connection: AsyncConnection, question: RecordQuestion) -> AsyncIterator[LinkedRecord]:
    """The records that are wanted, chain by chain."""
    return sightings.stream_records(
        connection, owner=question.owner, actor=question.actor, since=question.since, until=question.until
    )


async def _record(
    connection: AsyncConnection, owners: set[str], action: str, subject: str, *, asked_by: str, now: datetime
) -> None:
    await directory.ensure_owners(connection, [(BROKER_OWNER, "Operators of the broker")])
    acts = [Act(owner=owner, actor=asked_by, action=action, subject=subject) for owner in sorted(owners)]
    await audit.record_acts(connection, acts, now)
