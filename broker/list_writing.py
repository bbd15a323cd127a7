"""What is written of an authority's list, in the transaction of whoever changes it: a file, or a person who decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.list_comparison import Comparison
from broker.storage import child_lists, jobs, list_differences
from broker.storage.child_lists import SealedEntry
from broker.storage.jobs import LOOK_BACK, derive_job_id
from schemas.identifiers import authority_owner

_PART_IDS: Final = 500


async def write_part(
    connection: AsyncConnection,
    keyring: Keyring,
    authority: str,
    upload_id: str,
    entries: Sequence[SealedEntry],
    *,
    now: datetime,
) -> None:
    """Entries as a file or a person wants them, each with its look-back: both or neither."""
    await child_lists.write_entries(connection, keyring, authority, upload_id, entries, now=now)
    owner = authority_owner(authority)
    work = [(derive_job_id(keyring, LOOK_BACK, each.id), owner, each.id) for each in entries]
    await jobs.add_jobs(connection, LOOK_BACK, work, now)


def repeated_parts(found: Comparison) -> Iterator[list[str]]:
    """The entries that a file repeats as they stand, as many at a time as are noted at once."""
    for start in range(0, len(found.repeated), _PART_IDS):
        yield [entry_id.hex() for entry_id in found.repeated[start : start + _PART_IDS]]


async def conclude_upload(
    connection: AsyncConnection,
    keyring: Keyring,
    authority: str,
    upload_id: str,
    found: Comparison,
    *,
    sent_at: datetime,
    now: datetime,
    limit: timedelta,
) -> None:
    """Everything of a file stands: the list is confirmed, and a person is asked for so long about who was left out."""
    await child_lists.confirm_list(connection, keyring, authority, sent_at=sent_at, now=now)
    asked = await list_differences.list_open_entries(connection, authority_owner(authority))
    again = [entry_id for entry_id in asked if found.has(entry_id)]
    for start in range(0, len(again), _PART_IDS):
        await list_differences.close_listed(connection, again[start : start + _PART_IDS], now)
    left_out = [(keyring.derive_id("difference", entry_id), entry_id) for entry_id in found.left_out]
    await list_differences.open_differences(connection, authority, upload_id, left_out, now=now, due_by=now + limit)
