"""Restricted people: entries whose number is restricted nationally, and what is withheld of them from then on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import Select, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.alerts import withhold_place
from broker.keyring import Keyring
from broker.storage import outbox
from broker.storage.rows import is_among, is_among_given
from broker.storage.tables import Access, Alert, AlertEntry, ListEntry, Review, table
from schemas.alert import AttendanceFacts

_entries, _alerts, _grounds, _reviews = table(ListEntry), table(Alert), table(AlertEntry), table(Review)
_accesses = table(Access)


async def note_restriction(
    connection: AsyncConnection, keyring: Keyring, entry_id: str, *, is_restricted: bool
) -> None:
    """Note it for every entry of the entry's number.

    What was told of a person before they were known to be restricted is withheld from now on, also where it waits to
    be sent, or was refused and may be sent again. What was raised while they were restricted stays so when they are it
    no longer, and so does every access to the record until then.
    """
    number = select(_entries.c.nhs_index).where(_entries.c.id == entry_id).scalar_subquery()
    differs = (_entries.c.nhs_index == number, _entries.c.is_restricted.is_not(is_restricted))
    changed = update(_entries).where(*differs).values(is_restricted=is_restricted).returning(_entries.c.id)
    entry_ids = list((await connection.execute(changed)).scalars())
    if not entry_ids:
        return
    if not is_restricted:
        await _withhold_accesses(connection, entry_id)
        return
    await withhold_of(connection, keyring, entry_ids)


async def hold_entries(connection: AsyncConnection, entry_ids: Collection[str]) -> list[str]:
    """Keep others from noting a restriction of these entries until the transaction ends; returns the restricted ones.

    Between reading an entry and raising an alert of it a restriction may be noted, which has not seen that alert.
    Asked for before anything that a restriction changes is locked, so that the two cannot wait for each other.
    """
    if not entry_ids:
        return []
    held = await connection.execute(_holding(connection.dialect.name), {"entry_ids": list(entry_ids)})
    return [row.id for row in held if row.is_restricted]


@cache
def _holding(dialect: str) -> Select[Any]:
    statement = select(_entries.c.id, _entries.c.is_restricted)
    among = is_among_given(dialect, _entries.c.id, "entry_ids")
    return statement.where(among).order_by(_entries.c.id).with_for_update(read=True)


async def withhold_of(connection: AsyncConnection, keyring: Keyring, entry_ids: Sequence[str]) -> None:
    """Withhold the place in the alerts and doubts that rest on these entries and say it still.

    So it is in those about whom the same visit was taken for before: together they would say who was there.
    """
    if not entry_ids:
        return
    resting = select(_grounds.c.alert_id).where(is_among(connection, _grounds.c.entry_id, entry_ids))
    theirs = select(_alerts.c.visit_id).where(_alerts.c.id.in_(resting), _alerts.c.withdrawn_at.is_(None))
    told_of = or_(_alerts.c.id.in_(resting), _alerts.c.visit_id.in_(theirs))
    telling = (told_of, _alerts.c.is_restricted.is_(False))
    withheld = update(_alerts).where(*telling).values(is_restricted=True).returning(_alerts.c.id)
    alert_ids = sorted((await connection.execute(withheld)).scalars())
    doubted = or_(is_among(connection, _reviews.c.entry_id, entry_ids), _reviews.c.visit_id.in_(theirs))
    of_them = (doubted, _reviews.c.is_restricted.is_(False))
    await connection.execute(update(_reviews).where(*of_them).values(is_restricted=True))
    await _withhold_unsent(connection, keyring, alert_ids)


async def _withhold_accesses(connection: AsyncConnection, entry_id: str) -> None:
    """While a person is restricted nobody is shown their accesses; from now on they are, but not those before."""
    number = select(_entries.c.nhs_index).where(_entries.c.id == entry_id).scalar_subquery()
    until_now = (_accesses.c.nhs_index == number, _accesses.c.is_withheld.is_(False))
    await connection.execute(update(_accesses).where(*until_now).values(is_withheld=True))


async def is_number_restricted(connection: AsyncConnection, nhs_index: bytes) -> bool:
    """Whether the national record of a number is restricted, by whoever lists it."""
    statement = select(_entries.c.id).where(_entries.c.nhs_index == nhs_index, _entries.c.is_restricted).limit(1)
    return (await connection.execute(statement)).first() is not None


async def _withhold_unsent(connection: AsyncConnection, keyring: Keyring, alert_ids: Sequence[str]) -> None:
    """What was not sent of these alerts says no place any more. What is being sent this moment is gone."""
    if not alert_ids:
        return
    for waiting in await outbox.list_unsent(connection, keyring, alert_ids):
        said = msgspec.json.decode(waiting.content)
        if "attendance" not in said:
            continue
        place = msgspec.convert(said["attendance"], type=AttendanceFacts)
        said["attendance"] = msgspec.to_builtins(withhold_place(place))
        content = msgspec.json.encode(said)
        await outbox.replace_content(connection, keyring, msgspec.structs.replace(waiting, content=content))
