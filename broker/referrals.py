"""What a department has said of an attendance since it wrote a code of domestic abuse: taken back, or another person.

The hub is told before it decides, and by a task when a school has been let know already.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.course import VisitState, visit_state
from broker.domain.visits import fold_visit
from broker.keyring import Keyring
from broker.storage import incidents, visits
from broker.storage.child_lists import index_nhs_number
from broker.storage.incidents import HUB, Matter, StoredIncident, StoredTask
from schemas.encompass import TaskKind


class TakenBack(StrEnum):
    """What the department said since."""

    CANCELLED = "cancelled"
    """There was no such visit."""
    ANOTHER_PERSON = "another_person"


async def find_taken_back(connection: AsyncConnection, keyring: Keyring, held: StoredIncident) -> TakenBack | None:
    """Whether the department has cancelled the visit, or corrected who came, since it wrote the code."""
    if held.referral is None:
        return None
    heard = await visits.load_messages(connection, keyring, held.referral.visit)
    said = [(number.to_bytes(4, "big"), each) for number, (_, each) in enumerate(heard)]
    if visit_state(said) is VisitState.CANCELLED:
        return TakenBack.CANCELLED
    number = fold_visit(said).nhs_number if said else None
    if held.referral.record and number and index_nhs_number(keyring, number).hex() != held.referral.record:
        return TakenBack.ANOTHER_PERSON
    return None


async def ask_hub(
    connection: AsyncConnection, keyring: Keyring, released: StoredIncident, now: datetime, *, limit: timedelta
) -> StoredTask:
    """Have a person of the hub say whether the notice is to be withdrawn."""
    task = StoredTask(
        id=incidents.derive_task_id(keyring, TaskKind.TAKEN_BACK, released.id),
        owner=released.owner,
        incident_id=released.id,
        kind=TaskKind.TAKEN_BACK,
        urn=None,
        matter=Matter(incident=released.message.incident_id),
        held_by=HUB,
        opened_at=now,
        due_by=now + limit,
    )
    await incidents.open_task(connection, keyring, task)
    return task
