"""What did the lists say about this child at 03:12? Asked by a person, answered from what is kept of every version."""

from __future__ import annotations

from datetime import datetime

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.storage import audit, list_versions
from broker.storage.audit import Act
from broker.storage.child_lists import index_nhs_number
from broker.storage.list_versions import EntryVersion, ListAge
from schemas.identifiers import BROKER_OWNER, NhsNumber, authority_owner


class AsAtQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks about whom, and when. With ``owner`` one authority's list is asked, without all of them."""

    nhs_number: NhsNumber
    at: datetime
    owner: str | None
    asked_by: str

    def __repr__(self) -> str:
        return "AsAtQuestion(...)"


class AsAt(msgspec.Struct, frozen=True, kw_only=True):
    """What the lists said then, with the upload each version came from, and how old the lists were."""

    at: datetime
    versions: tuple[EntryVersion, ...]
    lists: tuple[ListAge, ...]


async def tell_as_at(connection: AsyncConnection, keyring: Keyring, question: AsAtQuestion, now: datetime) -> AsAt:
    """Answer, and have it on record with every authority whose entry is shown; with whoever asks if there is none."""
    index = index_nhs_number(keyring, question.nhs_number)
    found = await list_versions.find_versions_at(connection, keyring, index, question.at, owner=question.owner)
    ages = await list_versions.load_ages_at(connection, question.at, owner=question.owner)
    owners = {authority_owner(each.authority) for each in found} | {question.owner or BROKER_OWNER}
    acts = [
        Act(
            owner=owner,
            actor=question.asked_by,
            action="list.asked_as_at",
            subject=index.hex(),
            reason=question.at.isoformat(timespec="seconds"),
        )
        for owner in sorted(owners)
    ]
    await audit.record_acts(connection, acts, now)
    return AsAt(at=question.at, versions=tuple(found), lists=tuple(ages))
