"""What a person decides of an authority's list: of a file that is held or cannot land, of who was left out of it.

Loading a file that was held is ``broker.list_upload.confirm_upload``.
"""

from __future__ import annotations

from datetime import datetime

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.visits import london_day
from broker.keyring import Keyring
from broker.list_comparison import end_entry
from broker.list_writing import write_part
from broker.ports import Clock
from broker.storage import audit, child_lists, held_uploads, landings, list_differences
from broker.storage.audit import Act
from broker.storage.child_lists import seal_entry
from broker.storage.database import Database
from broker.storage.held_uploads import StoredHold
from broker.storage.landings import Landing
from broker.storage.list_differences import Difference, DifferenceDecision
from schemas.identifiers import authority_owner


class NothingToDecide(Exception):
    """There is no such question, or somebody else has answered it."""


class StillLanding(Exception):
    """Somebody lands the file just now: it need not be dropped."""


async def load_hold(database: Database, upload_id: str, owner: str | None) -> StoredHold:
    """A file that is held; ``owner``: of whose list, None for an operator. Raises NothingToDecide."""
    async with database.reading() as connection:
        held = await held_uploads.load_hold(connection, upload_id)
    if held is None or owner not in (None, authority_owner(held.authority)):
        raise NothingToDecide(upload_id)
    return held


async def reject_upload(
    database: Database, clock: Clock, *, upload_id: str, owner: str | None, by: str, reason: str = ""
) -> StoredHold:
    """Forget a file that was held. Raises NothingToDecide."""
    held = await load_hold(database, upload_id, owner)
    now = clock.now()
    async with database.writing() as connection:
        if not await held_uploads.settle_upload(connection, upload_id, decision="rejected", by=by, now=now):
            raise NothingToDecide(upload_id)
        act = Act(
            owner=authority_owner(held.authority), actor=by, action="list.rejected", subject=upload_id, reason=reason
        )
        await audit.record_acts(connection, [act], now)
    return held


async def drop_landing(
    database: Database, clock: Clock, *, upload_id: str, by: str, reason: str = ""
) -> tuple[Landing, int]:
    """Give up the rest of a file; returns what it was, and of how many entries it is what the list says now.

    These stay, look-backs judge by them, and other files are taken again. Raises NothingToDecide, or StillLanding for
    one that nothing speaks against.
    """
    now = clock.now()
    async with database.writing() as connection:
        landing = await landings.load_landing(connection, upload_id)
        if landing is None:
            raise NothingToDecide(upload_id)
        if not landing.problem and landing.leased_until > now:
            raise StillLanding(upload_id)
        landed = await landings.count_landed(connection, landing)
        if not await landings.end_landing(connection, upload_id):
            raise NothingToDecide(upload_id)
        act = Act(
            owner=authority_owner(landing.authority), actor=by, action="list.dropped", subject=upload_id, reason=reason
        )
        await audit.record_acts(connection, [act], now)
    return landing, landed


async def decide_difference(
    database: Database,
    keyring: Keyring,
    clock: Clock,
    *,
    difference_id: str,
    owner: str,
    decision: DifferenceDecision,
    by: str,
) -> None:
    """Do with an entry that a full list left out what a person says. Raises NothingToDecide."""
    now = clock.now()
    async with database.writing() as connection:
        difference = await list_differences.load_difference(connection, difference_id)
        if difference is None or authority_owner(difference.authority) != owner:
            raise NothingToDecide(difference_id)
        version = await child_lists.lock_list(connection, difference.authority)
        await child_lists.take_turn(connection, difference.authority, version)
        if not await list_differences.settle_difference(connection, difference_id, decision=decision, by=by, now=now):
            raise NothingToDecide(difference_id)
        await _apply_decision(connection, keyring, difference, decision, now)
        act = Act(owner=owner, actor=by, action=f"difference.{decision.value}", subject=difference.entry_id)
        await audit.record_acts(connection, [act], now)


async def _apply_decision(
    connection: AsyncConnection, keyring: Keyring, difference: Difference, decision: DifferenceDecision, now: datetime
) -> None:
    stored = await child_lists.load_stored(connection, keyring, [difference.entry_id])
    if decision is DifferenceDecision.STILL_LISTED or difference.entry_id not in stored:
        return
    entry = stored[difference.entry_id].entry
    if decision is DifferenceDecision.ENDED:
        entry = end_entry(entry, london_day(now))
    else:
        entry = msgspec.structs.replace(entry, deleted_on=london_day(now))
    sealed = seal_entry(keyring, difference.authority, difference.entry_id, entry, is_new=False)
    await write_part(connection, keyring, difference.authority, difference.upload_id, [sealed], now=now)
