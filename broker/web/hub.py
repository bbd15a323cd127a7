"""For a named person of an authority's hub: attendances that speak of domestic abuse, each held until they decide.

The school is told only what is released here, with the reason and what in law allows it; never anything of the
attendance itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from broker.referrals import TakenBack, find_taken_back
from broker.storage import audit, incidents
from broker.storage.audit import act_of
from broker.storage.child_lists import find_by_nhs_number
from broker.storage.incidents import HUB_KINDS, StoredIncident, StoredNotice
from broker.web.auth import field_of, read_form, signed_in_of
from broker.web.force import TaskRow, UnreadRow, load_incident, load_task, plan_anew
from broker.web.pages import Pages, pages_of
from schemas.encompass import (
    DOMESTIC_ABUSE_CODES,
    IncidentChild,
    LawfulGateway,
    PoliceIncident,
    SuppressionReason,
    TaskKind,
)

REASON_LETTERS_MAX: Final = 1_000
GATEWAYS: Final[Mapping[LawfulGateway, str]] = {
    LawfulGateway.SAFEGUARDING_DUTY: "Children Act 2004, section 10 or 11: co-operation and the duty to safeguard",
    LawfulGateway.ENQUIRY: "Children Act 1989, section 47: suspected significant harm",
    LawfulGateway.CHILD_IN_NEED: "Children Act 1989, section 17: child in need",
    LawfulGateway.PREVENTION_OF_CRIME: "Crime and Disorder Act 1998, section 115",
    LawfulGateway.COURT_ORDER: "An order of a court",
}
"""What the form says of each."""


_SINCE: Final[Mapping[TakenBack, str]] = {
    TakenBack.CANCELLED: "The department has cancelled this visit since: it may have been registered in error.",
    TakenBack.ANOTHER_PERSON: "The department has corrected since who attended: it was another person.",
}
_UNCLEAR: Final = "The department had taken this back, and has taken that back too: look at it again."


class HeldRow(msgspec.Struct, frozen=True, kw_only=True):
    """An attendance that waits for a decision."""

    task: TaskRow
    incident: StoredIncident
    schools: tuple[str, ...]
    """Who would be told."""
    since: str
    """What the department has said since, if it matters to the decision."""
    is_withheld: bool
    """The child's national record is restricted: where and when the child came stands on the place's own page."""

    @property
    def child(self) -> IncidentChild:
        """Of whom it is."""
        assert isinstance(self.incident.message, PoliceIncident)
        return self.incident.message.children[0]

    @property
    def meanings(self) -> list[str]:
        """What the department wrote, in words."""
        assert self.incident.referral is not None, "an attendance of which the hub is told nothing"
        return [DOMESTIC_ABUSE_CODES[code] for code in self.incident.referral.codes]


class ReleasedRow(msgspec.Struct, frozen=True, kw_only=True):
    """An attendance that was released, and that the department has taken back since."""

    task: TaskRow
    incident: StoredIncident
    schools: tuple[str, ...]
    """Who was told, or is about to be, and has not acknowledged."""
    since: str

    @property
    def child(self) -> IncidentChild:
        """Of whom it is."""
        assert isinstance(self.incident.message, PoliceIncident)
        return self.incident.message.children[0]


async def show_hub(request: Request) -> Response:
    """What waits for the hub's decision, the one due first at the top, and which schools have not read."""
    pages, person = pages_of(request), signed_in_of(request).person
    now, rows_max = pages.clock.now(), pages.limits.rows_max
    async with pages.database.writing() as connection:
        tasks = await incidents.list_tasks(connection, pages.keyring, person.owner, kinds=HUB_KINDS, rows_max=rows_max)
        known = await incidents.find_incidents(connection, pages.keyring, {task.incident_id for task in tasks})
        restricted = await _find_restricted(connection, pages, known.values())
        taken_back = {each.id: await find_taken_back(connection, pages.keyring, each) for each in known.values()}
        notices = await incidents.list_force_notices(connection, pages.keyring, person.owner, rows_max=rows_max)
        acts = [act_of(person, "referral.read", task.incident_id) for task in tasks if task.kind is TaskKind.RELEASE]
        await audit.record_acts(connection, [act_of(person, "hub.listed", person.owner), *acts], now)
    rows = [TaskRow(stored=task, is_urgent=task.due_by <= now or task.level > 0) for task in tasks]
    return pages.render(
        request,
        "hub.html",
        held=[
            HeldRow(
                task=row,
                incident=known[row.stored.incident_id],
                schools=_schools(notices, row.stored.incident_id),
                since=_tell(taken_back[row.stored.incident_id]),
                is_withheld=row.stored.incident_id in restricted,
            )
            for row in rows
            if row.is_release
        ],
        taken_back=[
            ReleasedRow(
                task=row,
                incident=known[row.stored.incident_id],
                schools=_schools(notices, row.stored.incident_id),
                since=_tell(taken_back[row.stored.incident_id]) or _UNCLEAR,
            )
            for row in rows
            if row.stored.kind is TaskKind.TAKEN_BACK
        ],
        tasks=[row for row in rows if row.stored.kind not in (TaskKind.RELEASE, TaskKind.TAKEN_BACK)],
        rows=[UnreadRow(stored=each, is_urgent=each.due_by <= now) for each in notices if each.hold is None],
        gateways=[(gateway.value, words) for gateway, words in GATEWAYS.items()],
        reasons=[reason.value for reason in SuppressionReason],
        reason_letters_max=REASON_LETTERS_MAX,
    )


async def release_referral(request: Request, task_id: str) -> Response:
    """Let the school be told: a named person, the reason in their words, and what in law allows it. None without."""
    pages, person = pages_of(request), signed_in_of(request).person
    form = await read_form(request)
    gateway, reason = field_of(form, "gateway"), field_of(form, "reason").strip()
    if gateway not in set(LawfulGateway) or not reason or len(reason) > REASON_LETTERS_MAX:
        raise HTTPException(400)
    now = pages.clock.now()
    async with pages.database.writing() as connection:
        task = await load_task(connection, pages, person, task_id)
        incident = await load_incident(connection, pages, person, task, TaskKind.RELEASE)
        await incidents.release_referral(
            connection,
            pages.keyring,
            incident,
            by=person.login,
            gateway=LawfulGateway(gateway),
            reason=reason,
            now=now,
        )
        await plan_anew(connection, pages, incident, [act_of(person, "referral.released", incident.id, gateway)])
    return RedirectResponse("/hub", status_code=303)


async def _find_restricted(connection: AsyncConnection, pages: Pages, held: Iterable[StoredIncident]) -> frozenset[str]:
    """Which of these attendances are of children whose national record is restricted."""
    records = {each.id: bytes.fromhex(each.referral.record) for each in held if each.referral is not None}
    listed = await find_by_nhs_number(connection, pages.keyring, {index for index in records.values() if index})
    restricted = {index for index, entries in listed.items() if any(each.is_restricted for each in entries)}
    return frozenset(incident_id for incident_id, index in records.items() if index in restricted)


def _tell(taken_back: TakenBack | None) -> str:
    return _SINCE[taken_back] if taken_back is not None else ""


def _schools(notices: list[StoredNotice], incident_id: str) -> tuple[str, ...]:
    return tuple(each.telling.notice.establishment.name for each in notices if each.incident_id == incident_id)
