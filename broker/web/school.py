"""For a safeguarding lead or deputy: what the police told the school of its children, and what the school did.

A person reads only notices of their own establishment that they were told of: who is excluded from an incident learns
nothing of it here, and who else was told or skipped is nobody's business at the school.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec
from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from broker.domain.names import fold_name
from broker.notices import replan
from broker.storage import audit, establishments, incidents, logins
from broker.storage.audit import Act, act_of
from broker.storage.incidents import Found, StoredNotice, StoredRecord, may_read
from broker.web.auth import field_of, read_form, signed_in_of
from broker.web.pages import Pages, pages_of
from schemas.directory import Person
from schemas.encompass import ContactRole, MinimalChild, NoticeState, ReferredChild, ToldChild
from schemas.identifiers import SchoolUrn

RECORD_LETTERS_MAX: Final = 4_000
_NOTICE_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,7}", re.ASCII)
ChildShown = MinimalChild | ToldChild | ReferredChild


class NoticeShown(msgspec.Struct, frozen=True, kw_only=True):
    """One notice as the page shows it."""

    stored: StoredNotice
    records: Sequence[StoredRecord]
    by_name: str | None
    """Who acknowledged it."""
    is_urgent: bool
    history: Sequence[Sequence[StoredNotice]]
    """Of each of its children in order: what else the school was told of them."""

    @property
    def may_be_acknowledged(self) -> bool:
        """Whether this version waits for a person."""
        return self.stored.state is NoticeState.SENT


async def show_school(request: Request) -> Response:
    """The notices this person may read, the newest first. Showing them is reading them: it is noted and audited."""
    pages, person = pages_of(request), signed_in_of(request).person
    now = pages.clock.now()
    async with pages.database.writing() as connection:
        found = await incidents.list_school_notices(
            connection,
            pages.keyring,
            _urn_of(person),
            contact_id=await _find_reader(connection, pages, person),
            rows_max=pages.limits.rows_max,
        )
        ids = [notice.id for notice in found]
        await incidents.note_opened(connection, ids, now)
        records = await incidents.list_records(connection, pages.keyring, ids)
        names = await logins.load_names(connection, pages.keyring, person.owner)
        await audit.record_acts(connection, [act_of(person, "notice.read", notice_id) for notice_id in ids], now)
    rows = [
        NoticeShown(
            stored=notice,
            records=[record for record in records if record.notice_id == notice.id],
            by_name=names.get(notice.acknowledged_by or "", notice.acknowledged_by),
            is_urgent=notice.state is NoticeState.SENT and notice.due_by <= now,
            history=_find_history(notice, found),
        )
        for notice in found
    ]
    rows.sort(key=lambda row: not row.may_be_acknowledged)  # what waits comes first, the rest stays as it was
    return pages.render(
        request,
        "school.html",
        rows=rows,
        to_read=sum(row.may_be_acknowledged for row in rows),
        names=names,
        record_letters_max=RECORD_LETTERS_MAX,
    )


async def acknowledge_notice(request: Request, notice_id: str) -> Response:
    """Answer for having read the version that was shown. Another version by now: the page is shown again."""
    pages, person = pages_of(request), signed_in_of(request).person
    version = field_of(await read_form(request), "version")
    now = pages.clock.now()
    async with pages.database.writing() as connection:
        notice = await _load_notice(connection, pages, person, notice_id)
        await _lock(connection, pages, notice)
        is_done = _NUMBER.fullmatch(version) is not None and await incidents.acknowledge_notice(
            connection, notice_id, int(version), person.login, now
        )
        if is_done:
            acts = [act_of(person, "notice.acknowledged", notice_id, f"version {version}")]
            await _replan(connection, pages, notice, acts, now)
    return RedirectResponse("/school", status_code=303)


async def refuse_pupil(request: Request, notice_id: str) -> Response:
    """Not our pupil: the child goes back to the look-up queue, with the clock that was running all the time."""
    pages, person = pages_of(request), signed_in_of(request).person
    number = field_of(await read_form(request), "child")
    now = pages.clock.now()
    async with pages.database.writing() as connection:
        notice = await _load_notice(connection, pages, person, notice_id)
        # The form names a child by its place in the notice: the force's own id is not the school's business.
        places = notice.telling.child_ids
        if _NUMBER.fullmatch(number) is None or int(number) >= len(places):
            raise HTTPException(400)
        incident = await incidents.lock_incident(connection, pages.keyring, notice.incident_id)
        assert incident is not None
        said = Found(child_id=places[int(number)], urn=notice.urn, is_there=False)
        await incidents.note_found(connection, pages.keyring, incident, [said])
        await _replan(connection, pages, notice, [act_of(person, "notice.not_our_pupil", notice_id)], now)
    return RedirectResponse("/school", status_code=303)


async def write_record(request: Request, notice_id: str) -> Response:
    """What the school did: its own record, which is not sent back to the police."""
    pages, person = pages_of(request), signed_in_of(request).person
    text = field_of(await read_form(request), "text").strip()
    if not text or len(text) > RECORD_LETTERS_MAX:
        raise HTTPException(400)
    now = pages.clock.now()
    async with pages.database.writing() as connection:
        notice = await _load_notice(connection, pages, person, notice_id)
        await incidents.add_record(connection, pages.keyring, notice, text, by=person.login, now=now)
        await audit.record_acts(connection, [act_of(person, "notice.recorded", notice_id)], now)
    return RedirectResponse("/school", status_code=303)


def _find_history(notice: StoredNotice, found: Sequence[StoredNotice]) -> list[list[StoredNotice]]:
    """What else this person may read of each child of a notice: the same name, and no other birth date."""
    others = [each for each in found if each.id != notice.id and each.telling.withdrawn is None]
    return [
        [other for other in others if any(_is_same(child, each) for each in other.telling.notice.children)]
        for child in notice.telling.notice.children
    ]


def _is_same(one: ChildShown, other: ChildShown) -> bool:
    names = [fold_name(f"{child.family_name}/{child.given_name}") for child in (one, other)]
    return names[0] == names[1] and (one.birth_date or other.birth_date) == (other.birth_date or one.birth_date)


async def _load_notice(connection: AsyncConnection, pages: Pages, person: Person, notice_id: str) -> StoredNotice:
    """The notice, or 404: one of others, or one that this person must not know of, answers as one that is not there."""
    if _NOTICE_ID.fullmatch(notice_id):
        notice = await incidents.find_notice(connection, pages.keyring, notice_id)
        reader = await _find_reader(connection, pages, person)
        if notice is not None and notice.owner == person.owner and may_read(notice, reader):
            return notice
    raise HTTPException(404)


async def _find_reader(connection: AsyncConnection, pages: Pages, person: Person) -> str:
    """The contact that this person is today; empty when the directory has them as lead or deputy no longer."""
    urn = _urn_of(person)
    contacts = (await establishments.load_contacts(connection, pages.keyring, [urn])).get(urn, ())
    is_told = (ContactRole.LEAD, ContactRole.DEPUTY)
    return next((each.contact_id for each in contacts if each.contact_id == person.worker and each.role in is_told), "")


async def _lock(connection: AsyncConnection, pages: Pages, notice: StoredNotice) -> None:
    await incidents.lock_incident(connection, pages.keyring, notice.incident_id)


async def _replan(
    connection: AsyncConnection, pages: Pages, notice: StoredNotice, acts: Sequence[Act], now: datetime
) -> None:
    incident = await incidents.lock_incident(connection, pages.keyring, notice.incident_id)
    assert incident is not None
    planned = await replan(connection, pages.keyring, incident, pages.notice_rules, now)
    await audit.record_acts(connection, [*acts, *planned.acts], now)


def _urn_of(person: Person) -> SchoolUrn:
    return SchoolUrn(person.owner.removeprefix("establishment:"))
