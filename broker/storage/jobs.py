"""Work for later, claimed like lanes: look-backs, traces of entries, and the count of who is covered.

A look-back job must not run while a visit that could not see the changed list is still uncommitted. On PostgreSQL it
waits behind a barrier: a transaction id taken once the job itself is visible. A visit that wrote its marker before has
a lower id; the job runs when none of those is left. A visit that wrote its marker later reads the changed list. SQLite
has one writer at a time: there the job runs at once. See ADR 0005.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import Select, case, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.storage.database import upsert
from broker.storage.rows import insert_new
from broker.storage.tables import ItemState, Job, ListLanding, ListUpload, table
from schemas.identifiers import authority_owner

_jobs, _uploads, _landings = table(Job), table(ListUpload), table(ListLanding)
LOOK_BACK: Final = "look_back"
"""Compare a list entry with recent visits; its subject is the entry's id."""
FIND_MISSED: Final = "find_missed"
"""Match every visit that is kept again; its subject is the night."""
TRACE: Final = "trace"
COVERAGE: Final = "coverage"
_SET_BARRIER = text(
    "UPDATE jobs SET barrier = CAST(CAST(pg_current_xact_id() AS text) AS bigint) "
    "WHERE state = 'open' AND kind = 'look_back' AND barrier IS NULL AND due_at <= :now"
)
_BARRIER_PASSED = text("barrier <= CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS text) AS bigint)")


class ClaimedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job this worker holds for a while."""

    id: str
    owner: str
    kind: str
    subject: str
    epoch: int
    due_at: datetime


def derive_job_id(keyring: Keyring, kind: str, subject: str) -> str:
    """One job of a kind for each subject."""
    return keyring.derive_id("job", kind, subject)


async def add_jobs(
    connection: AsyncConnection,
    kind: str,
    jobs: Sequence[tuple[str, str, str]],
    now: datetime,
    *,
    opens_again: bool = True,
) -> None:
    """Add jobs as (id, owner, subject); one that waits already keeps its age, a done one is opened again.

    Unless it ``opens_again``, one that was done stays done.
    """
    rows = [
        {
            "id": job_id,
            "owner": owner,
            "kind": kind,
            "subject": subject,
            "state": ItemState.OPEN.value,
            "created_at": now,
            "due_at": now,
            "epoch": 0,
        }
        for job_id, owner, subject in jobs
    ]
    added = set(await insert_new(connection, _jobs, rows, key="id"))
    known = [row for row in rows if row["id"] not in added]
    if known and opens_again:
        # A look-back searches from when it was due: changed again while it waits, it searches from the first time.
        is_due = (_jobs.c.state == ItemState.OPEN.value) & (_jobs.c.due_at < now)
        due_at = case((is_due, _jobs.c.due_at), else_=now)
        again = {
            "state": ItemState.OPEN.value,
            "barrier": None,
            "due_at": due_at,
            "leased_until": None,
            "done_at": None,
        }
        statement = upsert(connection, _jobs)
        await connection.execute(
            statement.on_conflict_do_update(index_elements=["id"], set_=again | {"epoch": _jobs.c.epoch + 1}), known
        )


async def seed_counts(connection: AsyncConnection, keyring: Keyring, now: datetime) -> None:
    """Have every list counted for which nobody ever asked it."""
    authorities = list((await connection.execute(select(_uploads.c.authority).distinct())).scalars())
    counted = set((await connection.execute(select(_jobs.c.subject).where(_jobs.c.kind == COVERAGE))).scalars())
    work = [
        (derive_job_id(keyring, COVERAGE, authority), authority_owner(authority), authority)
        for authority in sorted(set(authorities) - counted)
    ]
    await add_jobs(connection, COVERAGE, work, now)


async def set_barriers(connection: AsyncConnection, now: datetime) -> None:
    """Give every waiting job that has none its barrier. Call it in a transaction of its own, which must take its id
    after it has seen the job."""
    if connection.dialect.name == "postgresql":
        await connection.execute(_SET_BARRIER, {"now": now})


async def find_due(connection: AsyncConnection, kinds: Sequence[str], now: datetime) -> set[str]:
    """Of these kinds, those of which there may be something to claim: who finds nothing need not write."""
    return {kind for kind in kinds if (await connection.execute(_due(kind, now).limit(1))).one_or_none() is not None}


def _due(kind: str, now: datetime) -> Select[Any]:
    free = or_(_jobs.c.leased_until.is_(None), _jobs.c.leased_until <= now)
    due = select(_jobs.c.id).where(
        _jobs.c.kind == kind, _jobs.c.state == ItemState.OPEN.value, _jobs.c.due_at <= now, free
    )
    # Half a list may have a person under a number that the other half gives to somebody else.
    return due.where(_jobs.c.owner.not_in(select(_landings.c.owner))) if kind == LOOK_BACK else due


async def claim_jobs(
    connection: AsyncConnection, *, jobs_max: int, lease: timedelta, now: datetime, kind: str = LOOK_BACK
) -> list[ClaimedJob]:
    """Claim jobs of a kind that are due; look-backs only behind their barrier, when all of their list has landed."""
    due = _due(kind, now)
    if kind == LOOK_BACK and connection.dialect.name == "postgresql":
        due = due.where(_BARRIER_PASSED)
    due = due.order_by(_jobs.c.due_at, _jobs.c.id).limit(jobs_max).with_for_update(skip_locked=True)
    statement = (
        update(_jobs)
        .where(_jobs.c.id.in_(due.scalar_subquery()))
        .values(leased_until=now + lease, epoch=_jobs.c.epoch + 1)
        .returning(_jobs)
    )
    return [
        ClaimedJob(id=row.id, owner=row.owner, kind=row.kind, subject=row.subject, epoch=row.epoch, due_at=row.due_at)
        for row in await connection.execute(statement)
    ]


async def find_oldest_due(connection: AsyncConnection) -> datetime | None:
    """Since when a look-back is due that was not done yet; None when there is none."""
    statement = select(_jobs.c.due_at).where(_jobs.c.state == ItemState.OPEN.value, _jobs.c.kind == LOOK_BACK)
    found = await connection.execute(statement.order_by(_jobs.c.due_at).limit(1))
    oldest: datetime | None = found.scalar_one_or_none()
    return oldest


async def list_waiting(connection: AsyncConnection, kind: str) -> set[str]:
    """The subjects of the jobs of a kind that were not done yet."""
    statement = select(_jobs.c.subject).where(_jobs.c.state == ItemState.OPEN.value, _jobs.c.kind == kind)
    return {row.subject for row in await connection.execute(statement)}


async def finish_job(connection: AsyncConnection, job: ClaimedJob, now: datetime) -> bool:
    """Mark the job done; False when it was opened again or claimed by another meanwhile."""
    statement = (
        update(_jobs)
        .where(_jobs.c.id == job.id, _jobs.c.epoch == job.epoch)
        .values(state=ItemState.DONE.value, done_at=now, leased_until=None)
        .returning(_jobs.c.id)
    )
    return (await connection.execute(statement)).one_or_none() is not None


async def put_off_job(connection: AsyncConnection, job: ClaimedJob, due_at: datetime) -> bool:
    """Have the job done again at a later time; False as with ``finish_job``."""
    statement = (
        update(_jobs)
        .where(_jobs.c.id == job.id, _jobs.c.epoch == job.epoch)
        .values(due_at=due_at, leased_until=None)
        .returning(_jobs.c.id)
    )
    return (await connection.execute(statement)).one_or_none() is not None


async def bring_forward(connection: AsyncConnection, job_id: str, due_at: datetime) -> None:
    """Have a job that waits done at ``due_at`` at the latest."""
    is_later = (_jobs.c.state == ItemState.OPEN.value) & (_jobs.c.due_at > due_at)
    await connection.execute(update(_jobs).where(_jobs.c.id == job_id, is_later).values(due_at=due_at))
