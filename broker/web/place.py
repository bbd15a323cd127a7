"""The protected view: where a restricted person is. For whom the person was allocated to, or who holds the matter now.

Nothing else in these pages says it (ADR 0040). Every look is audited by a name of its own.
"""

from __future__ import annotations

import re
from typing import Final

from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.exceptions import HTTPException
from starlette.responses import Response

from broker.domain.alerts import DUTY_DESK
from broker.storage import accesses, alerts, audit, child_lists, reviews
from broker.storage.alerts import StoredAlert
from broker.storage.audit import act_of
from broker.storage.reviews import StoredReview
from broker.web.auth import signed_in_of
from broker.web.inbox import load_chronology, scope_of
from broker.web.look_up import ACCESSES_SHOWN_MAX
from broker.web.pages import Pages, pages_of
from schemas.alert import AlertKind
from schemas.directory import Person

_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


async def show_alert_place(request: Request, alert_id: str) -> Response:
    """Where the person of an alert is, what the department has said since, and who else met the record."""
    pages, person = pages_of(request), signed_in_of(request).person
    async with pages.database.writing() as connection:
        stored = await _load_alert(connection, pages, person, alert_id)
        chronology = await load_chronology(connection, pages, stored.visit_id)
        looked = await accesses.list_counted(
            connection,
            pages.keyring,
            stored.alert.child.nhs_number,
            rows_max=ACCESSES_SHOWN_MAX,
            with_withheld=True,
        )
        await audit.record_acts(connection, [act_of(person, "alert.place_read", alert_id)], pages.clock.now())
    return pages.render(
        request,
        "place.html",
        back=f"/alerts/{alert_id}",
        child=stored.alert.child,
        is_look_up=stored.alert.kind is AlertKind.LOOKED_UP,
        facts=chronology.facts if chronology is not None else stored.alert.attendance,
        lines=chronology.lines if chronology is not None else (),
        accesses=looked,
    )


async def show_review_place(request: Request, review_id: str) -> Response:
    """Where somebody is who may be a restricted person."""
    pages, person = pages_of(request), signed_in_of(request).person
    async with pages.database.writing() as connection:
        stored = await _load_review(connection, pages, person, review_id)
        await audit.record_acts(connection, [act_of(person, "review.place_read", review_id)], pages.clock.now())
    return pages.render(
        request,
        "place.html",
        back=f"/reviews/{review_id}",
        child=stored.content.listed,
        is_look_up=False,
        facts=stored.content.attendance,
        lines=(),
        accesses=(),
    )


async def _load_alert(connection: AsyncConnection, pages: Pages, person: Person, alert_id: str) -> StoredAlert:
    """The alert with its place, or 404 for everybody whom it does not concern."""
    stored, worker = None, scope_of(person)
    if _ID.fullmatch(alert_id):
        stored = await alerts.load_alert(
            connection, pages.keyring, person.owner, alert_id, worker=worker, with_place=True
        )
    if stored is None or not stored.is_restricted:
        raise HTTPException(404)
    if stored.held_by != (worker or DUTY_DESK):
        entry_ids = await alerts.list_grounds(connection, alert_id)
        entries = await child_lists.load_entries(connection, pages.keyring, entry_ids)
        allocated = {each.entry.allocated_worker for each in entries if each.entry.deleted_on is None}
        if worker is None or worker not in allocated:
            raise HTTPException(404)
    return stored


async def _load_review(connection: AsyncConnection, pages: Pages, person: Person, review_id: str) -> StoredReview:
    stored = None
    if _ID.fullmatch(review_id):
        holder = scope_of(person) or DUTY_DESK
        stored = await reviews.load_review(
            connection, pages.keyring, person.owner, review_id, held_by=holder, with_place=True
        )
    if stored is None or not stored.is_restricted:
        raise HTTPException(404)
    return stored
