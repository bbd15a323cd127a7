"""For a force's coordinator: who has not read, what waits for release or a look-up; and an authority's officer's tasks.

Every decision is a person's: it is audited with the name, and where something is kept back with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

import msgspec
from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from broker.domain.encompass import Hold
from broker.incident_intake import NOT_DURABLE, IncidentFileAnswer
from broker.notices import replan
from broker.storage import audit, establishments, incidents, logins, receipts
from broker.storage.audit import Act, act_of
from broker.storage.incidents import HUB_KINDS, Found, StoredIncident, StoredNotice, StoredTask
from broker.storage.tables import ItemState
from broker.telemetry import LogEvent, log
from broker.web.auth import field_of, read_form, signed_in_of
from broker.web.pages import Pages, pages_of
from broker.web.sign_in import HOMES
from schemas.directory import Person, Role, Sender
from schemas.encompass import EstablishmentStatus, NoticeState, SuppressionReason, TaskKind
from schemas.identifiers import parse_school_urn

_TASK_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_INCIDENT_ID: Final = _TASK_ID
AUTHORISER_LETTERS_MAX: Final = 100


class UnreadRow(msgspec.Struct, frozen=True, kw_only=True):
    """A notice that nobody has acknowledged: to which establishment, never what it says."""

    stored: StoredNotice
    is_urgent: bool
    reference: str = ""
    """The force's own of the incident, for its coordinators."""


class TaskRow(msgspec.Struct, frozen=True, kw_only=True):
    """Something a person has to do."""

    stored: StoredTask
    is_urgent: bool

    @property
    def is_release(self) -> bool:
        """Whether an incident waits to be released."""
        return self.stored.kind is TaskKind.RELEASE

    @property
    def is_look_up(self) -> bool:
        """Whether a child's establishment is to be found."""
        return self.stored.kind is TaskKind.LOOK_UP


async def show_force(request: Request) -> Response:
    """What waits for the coordinator, and who has not read, with the clock."""
    return await _draw_force(request, None)


async def upload_incidents(request: Request) -> Response:
    """Take the CSV file that a force exports; the answer names every row that was not taken, and how to mend it.

    It goes the way of the door for incidents: appended to the log, and planned when the consumer reads it.
    """
    pages, person = pages_of(request), signed_in_of(request).person
    form = await read_form(request)
    try:
        sent = form.get("file")
        if not isinstance(sent, UploadFile) or pages.incidents is None:
            raise HTTPException(400)
        file = await sent.read()
    finally:
        await form.close()
    now, code = pages.clock.now(), person.owner.removeprefix("force:")
    is_trial = bool(field_of(form, "dry_run"))
    if not is_trial:
        async with pages.database.writing() as connection:
            act = act_of(person, "incidents.imported", sha256(file).hexdigest())
            await audit.record_acts(connection, [act], now)
    sender = Sender(code=code, credential_digest=b"")
    answer = await pages.incidents.accept_file(file, sender, dry_run=is_trial)
    if answer.status == NOT_DURABLE:
        log(LogEvent.MESSAGE_NOT_DURABLE, sender=code)
    return await _draw_force(request, answer, is_trial=is_trial)


async def _draw_force(request: Request, answer: IncidentFileAnswer | None, *, is_trial: bool = False) -> Response:
    pages, person = pages_of(request), signed_in_of(request).person
    now, rows_max = pages.clock.now(), pages.limits.rows_max
    async with pages.database.writing() as connection:
        tasks = await _list_tasks(connection, pages, person)
        force = person.owner.removeprefix("force:")
        unread = await incidents.list_force_notices(connection, pages.keyring, force, rows_max=rows_max)
        known = await incidents.find_incidents(connection, pages.keyring, {each.incident_id for each in unread})
        missed = await receipts.list_unreached_people(connection, person.owner, login=None, rows_max=rows_max)
        names = await logins.load_names(connection, pages.keyring, person.owner)
        await audit.record_acts(connection, [act_of(person, "force.listed", person.owner)], now)
    references = {each.id: each.message.incident_id for each in known.values()}
    rows = [
        UnreadRow(stored=each, is_urgent=each.due_by <= now, reference=references[each.incident_id]) for each in unread
    ]
    return pages.render(
        request,
        "force.html",
        unreached=[(names[each.contact], each) for each in missed],
        answer=answer,
        is_trial=is_trial,
        is_durable=answer is None or answer.status != NOT_DURABLE,
        takes_files=pages.incidents is not None,
        refused=answer.refused[:rows_max] if answer is not None else (),
        tasks=[TaskRow(stored=each, is_urgent=each.due_by <= now or each.level > 0) for each in tasks],
        rows=[row for row in rows if _is_to_be_read(row.stored)],
        reasons=[reason.value for reason in SuppressionReason],
    )


def _is_to_be_read(notice: StoredNotice) -> bool:
    """Whether somebody at a school is to read it, now or when it is released."""
    return notice.state is not NoticeState.WITHDRAWN and notice.hold != Hold.SUPPRESSED.value


async def show_tasks(request: Request) -> Response:
    """What an authority's officer has to do: tell about a child without a school, ring a school."""
    pages, person = pages_of(request), signed_in_of(request).person
    now = pages.clock.now()
    async with pages.database.writing() as connection:
        tasks = await _list_tasks(connection, pages, person)
        acts = [act_of(person, "encompass_task.read", task.id) for task in tasks]
        await audit.record_acts(connection, acts, now)
    shown = [TaskRow(stored=each, is_urgent=each.due_by <= now or each.level > 0) for each in tasks]
    return pages.render(request, "encompass_tasks.html", tasks=shown)


async def release_incident(request: Request, task_id: str) -> Response:
    """Let this version of the incident go."""
    pages, person = pages_of(request), signed_in_of(request).person
    await read_form(request)
    async with pages.database.writing() as connection:
        task = await load_task(connection, pages, person, task_id)
        incident = await load_incident(connection, pages, person, task, TaskKind.RELEASE)
        await incidents.release_version(connection, incident, person.login)
        await plan_anew(connection, pages, incident, [act_of(person, "incident.released", incident.id)])
    return RedirectResponse("/force", status_code=303)


async def suppress_incident(request: Request, incident_id: str) -> Response:
    """Keep the incident back: what was sent of it is taken back. With a known reason, and who authorised it."""
    pages, person = pages_of(request), signed_in_of(request).person
    form = await read_form(request)
    reason, authoriser = field_of(form, "reason"), field_of(form, "authoriser").strip()
    if person.role is Role.ENCOMPASS_HUB:
        authoriser = person.name  # who decides for the authority answers for it
    if reason not in set(SuppressionReason) or not 0 < len(authoriser) <= AUTHORISER_LETTERS_MAX:
        raise HTTPException(400)
    async with pages.database.writing() as connection:
        found = None
        if _INCIDENT_ID.fullmatch(incident_id):
            found = await incidents.lock_incident(connection, pages.keyring, incident_id)
        if found is None or found.owner != person.owner:
            raise HTTPException(404)
        await incidents.suppress_incident(
            connection, pages.keyring, found, person.login, reason=SuppressionReason(reason), authoriser=authoriser
        )
        await plan_anew(connection, pages, found, [act_of(person, "incident.suppressed", found.id, reason)])
    return RedirectResponse(HOMES[person.role], status_code=303)


async def place_child(request: Request, task_id: str) -> Response:
    """Say at which establishment the child is: it is told at once, by the clock that has been running.

    A number is easily mistyped, and what a stranger was told cannot be taken back: the school's name is shown first,
    and only an establishment that is open is told. Or that the child is the pupil taught at home whom an authority's
    list offered: then that authority's officer is told.
    """
    pages, person = pages_of(request), signed_in_of(request).person
    form = await read_form(request)
    urn, authority = parse_school_urn(field_of(form, "urn")), field_of(form, "home_educated_in")
    if (urn is None) is (not authority):
        raise HTTPException(400)
    async with pages.database.writing() as connection:
        task = await load_task(connection, pages, person, task_id)
        incident = await load_incident(connection, pages, person, task, TaskKind.LOOK_UP)
        child_id = task.matter.child_id
        assert child_id is not None, "a look-up without a child"
        if urn is not None:
            school = (await establishments.find_establishments(connection, [urn])).get(urn)
            may_be_told = school is not None and school.status is EstablishmentStatus.OPEN
            if not may_be_told or not field_of(form, "is_checked"):
                act = act_of(person, "encompass_task.read", task.id)
                await audit.record_acts(connection, [act], pages.clock.now())
                return pages.render(
                    request,
                    "school_check.html",
                    task=task,
                    school=school,
                    urn=urn,
                    may_be_told=may_be_told,
                    back=HOMES[person.role],
                )
        at_home = {each.authority for each in task.matter.candidates if each.home_educated}
        if authority and authority not in at_home:
            raise HTTPException(400)
        found = Found(child_id=child_id, urn=urn, is_there=True, home_educated_in=authority or None)
        await incidents.note_found(connection, pages.keyring, incident, [found])
        await plan_anew(connection, pages, incident, [act_of(person, "child.placed", task.id, urn or authority)])
    return RedirectResponse(HOMES[person.role], status_code=303)


async def settle_task(request: Request, task_id: str) -> Response:
    """A person has seen to it. What waits for a release or a look-up is not settled so."""
    pages, person = pages_of(request), signed_in_of(request).person
    await read_form(request)
    now = pages.clock.now()
    async with pages.database.writing() as connection:
        task = await load_task(connection, pages, person, task_id)
        if task.kind in (TaskKind.RELEASE, TaskKind.LOOK_UP):
            raise HTTPException(404)
        if await incidents.close_tasks(connection, [task.id], decision="seen_to", by=person.login, now=now):
            await audit.record_acts(connection, [act_of(person, f"{task.kind.value}.seen_to", task.id)], now)
    is_officer = person.role is Role.DUTY_WORKER
    return RedirectResponse("/encompass-tasks" if is_officer else HOMES[person.role], status_code=303)


async def _list_tasks(connection: AsyncConnection, pages: Pages, person: Person) -> list[StoredTask]:
    kinds = _kinds_of(person)
    return await incidents.list_tasks(
        connection, pages.keyring, person.owner, kinds=kinds, rows_max=pages.limits.rows_max
    )


def _kinds_of(person: Person) -> frozenset[TaskKind]:
    """What this person decides: an authority's officer and its hub see to different things."""
    return frozenset(TaskKind) - HUB_KINDS if person.role is Role.DUTY_WORKER else HUB_KINDS


async def load_task(connection: AsyncConnection, pages: Pages, person: Person, task_id: str) -> StoredTask:
    """The open task, or 404: one of others answers as one that does not exist."""
    if _TASK_ID.fullmatch(task_id):
        task = await incidents.find_task(connection, pages.keyring, task_id)
        is_theirs = task is not None and task.owner == person.owner and task.kind in _kinds_of(person)
        if task is not None and is_theirs and task.state is ItemState.OPEN:
            return task
    raise HTTPException(404)


async def load_incident(
    connection: AsyncConnection, pages: Pages, person: Person, task: StoredTask, kind: TaskKind
) -> StoredIncident:
    """The incident of the task, locked; 404 when the task is another kind of work."""
    incident = await incidents.lock_incident(connection, pages.keyring, task.incident_id)
    if task.kind is not kind or incident is None or incident.owner != person.owner:
        raise HTTPException(404)
    return incident


async def plan_anew(connection: AsyncConnection, pages: Pages, incident: StoredIncident, acts: Sequence[Act]) -> None:
    """Plan the incident as it stands after a person's decision; audit last."""
    now = pages.clock.now()
    changed = await incidents.lock_incident(connection, pages.keyring, incident.id)
    assert changed is not None
    planned = await replan(connection, pages.keyring, changed, pages.notice_rules, now)
    await audit.record_acts(connection, [*acts, *planned.acts], now)
