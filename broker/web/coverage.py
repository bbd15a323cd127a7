"""For list officers: who on the list cannot alert as they should, why, and what to do; how much is covered."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec
from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from broker.domain.coverage import advise, find_habit
from broker.domain.decision import Candidate
from broker.keyring import Keyring
from broker.storage import aliases, audit, child_lists, coverage, jobs, traces
from broker.storage.aliases import Alias
from broker.storage.audit import act_of
from broker.storage.child_lists import index_nhs_number
from broker.storage.coverage import LIST_OFFICERS, StoredItem
from broker.storage.jobs import COVERAGE, LOOK_BACK, derive_job_id
from broker.storage.traces import StoredTrace
from broker.web.auth import signed_in_of
from broker.web.pages import pages_of
from schemas.coverage import RECORD_CODES, CoverageReason
from schemas.directory import Person
from schemas.trace import Mismatch, NotFound, Superseded

_ITEM_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_DAYS_SHOWN: Final = 14


class ItemRow(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to be mended, as the page shows it. ``candidate`` is None when it is about the list."""

    stored: StoredItem
    candidate: Candidate | None
    holder: str
    advice: str
    record_code: str | None
    number: str | None
    """A number to compare with: the one that superseded the listed one, or the one found by the details."""
    is_linked: bool
    is_urgent: bool

    @property
    def may_be_noted(self) -> bool:
        """It cannot be mended in the list: a person says that it was seen to."""
        return self.stored.reason is CoverageReason.RESTRICTED


async def show_coverage(request: Request) -> Response:
    """What is to be mended, the oldest first; the percentage covered, day by day; how old the list is."""
    pages, person = pages_of(request), signed_in_of(request).person
    authority = _authority_of(person)
    now, rows_max = pages.clock.now(), pages.limits.rows_max
    async with pages.database.writing() as connection:
        items = await coverage.load_items(connection, person.owner, only_open=True, rows_max=rows_max + 1)
        shown = items[:rows_max]
        rows = await _describe(connection, pages.keyring, shown, now)
        days = await coverage.load_days(connection, authority, days_max=_DAYS_SHOWN)
        confirmed = await coverage.load_confirmations(connection, authority)
        refused = await coverage.find_refused(connection, authority)
        acts = [act_of(person, "coverage.listed", item.entry_id or item.id) for item in shown]
        await audit.record_acts(connection, acts, now)
    return pages.render(
        request,
        "coverage.html",
        rows=rows,
        is_cut=len(items) > rows_max,
        days=days,
        confirmed_at=confirmed[0] if confirmed else None,
        habit=find_habit(confirmed),
        refused=refused,
        is_tracing=bool(pages.settings.pds_base_url),
    )


async def note_item(request: Request, item_id: str) -> Response:
    """Say that a restricted person was seen to."""
    pages, person = pages_of(request), signed_in_of(request).person
    now = pages.clock.now()
    async with pages.database.writing() as connection:
        await _load_item(connection, person, item_id)
        if await coverage.note_item(connection, person.owner, item_id, by=person.login, now=now):
            await audit.record_acts(connection, [act_of(person, "coverage.noted", item_id)], now)
    return RedirectResponse("/coverage", status_code=303)


async def part_numbers(request: Request, item_id: str) -> Response:
    """Undo the link between an entry's number and the one that superseded it: what came of it is withdrawn."""
    pages, person = pages_of(request), signed_in_of(request).person
    now = pages.clock.now()
    async with pages.database.writing() as connection:
        item = await _load_item(connection, person, item_id)
        if item.entry_id is None or item.reason not in (CoverageReason.SUPERSEDED, CoverageReason.RESTRICTED):
            raise HTTPException(404)
        found = await child_lists.load_entries(connection, pages.keyring, [item.entry_id])
        plans = await _find_plans(connection, pages.keyring, found)
        acts = []
        for pair in await _find_pairs(connection, pages.keyring, found, person.owner):
            await aliases.undo_alias(connection, pair.id, by=person.login, now=now)
            acts.append(act_of(person, "alias.undone", item.entry_id))
        for kind, subject in (*((LOOK_BACK, plan) for plan in plans), (COVERAGE, _authority_of(person))):
            job_id = derive_job_id(pages.keyring, kind, subject)
            await jobs.add_jobs(connection, kind, [(job_id, person.owner, subject)], now)
        await audit.record_acts(connection, acts, now)
    return RedirectResponse("/coverage", status_code=303)


async def _load_item(connection: AsyncConnection, person: Person, item_id: str) -> StoredItem:
    """The open item, or 404: one that belongs to others answers as one that does not exist."""
    if _ITEM_ID.fullmatch(item_id):
        for item in await coverage.load_items(connection, person.owner, only_open=True):
            if item.id == item_id:
                return item
    raise HTTPException(404)


async def _find_plans(connection: AsyncConnection, keyring: Keyring, found: Sequence[Candidate]) -> list[str]:
    """Every plan that the authority lists under the numbers of these entries: a link reaches all of them."""
    indexes = [index_nhs_number(keyring, each.entry.nhs_number) for each in found]
    listed = (await child_lists.find_by_nhs_number(connection, keyring, indexes)).values()
    authorities = {each.authority for each in found}
    plans = {other.entry_id for linked in listed for other in linked if other.authority in authorities}
    return sorted(plans | {each.entry_id for each in found})


async def _find_pairs(
    connection: AsyncConnection, keyring: Keyring, found: Sequence[Candidate], owner: str
) -> list[Alias]:
    indexes = [index_nhs_number(keyring, each.entry.nhs_number) for each in found]
    return await aliases.find_aliases(connection, keyring, indexes, owner=owner)


async def _describe(
    connection: AsyncConnection, keyring: Keyring, items: Sequence[StoredItem], now: datetime
) -> list[ItemRow]:
    entry_ids = [item.entry_id for item in items if item.entry_id is not None]
    listed = {each.entry_id: each for each in await child_lists.load_entries(connection, keyring, entry_ids)}
    found = await traces.load_traces(connection, keyring, entry_ids)
    return [_describe_item(item, listed, found, now) for item in items]


def _describe_item(
    item: StoredItem, listed: Mapping[str, Candidate], found: Mapping[str, StoredTrace], now: datetime
) -> ItemRow:
    candidate = listed.get(item.entry_id or "")
    trace = found.get(item.entry_id or "")
    finding = trace.finding if trace is not None else None
    is_linked = candidate is not None and bool(candidate.aliases)
    number = None
    if isinstance(finding, Superseded):
        number = finding.replacement
    elif isinstance(finding, Mismatch | NotFound):
        number = finding.suggestion
    return ItemRow(
        stored=item,
        candidate=candidate,
        holder="List officers" if item.held_by == LIST_OFFICERS else "Duty desk",
        advice=advise(item.reason, finding, is_linked=is_linked),
        record_code=RECORD_CODES.get(item.reason),
        number=number,
        is_linked=is_linked,
        is_urgent=item.level > 0 or item.due_by <= now,
    )


def _authority_of(person: Person) -> str:
    return person.owner.removeprefix("authority:")
