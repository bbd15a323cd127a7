"""For social workers and the duty desk: the alerts, one alert, and taking it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Final

import msgspec
from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from broker.domain.alerts import DUTY_DESK
from broker.storage import accesses, alerts, audit, coverage, directory, logins, receipts, reviews, visits
from broker.storage.alerts import StoredAlert
from broker.storage.audit import Act, act_of
from broker.storage.reviews import StoredReview
from broker.storage.tables import AlertState
from broker.web.auth import is_automatic, signed_in_of
from broker.web.chronology import Chronology, tell_visit
from broker.web.look_up import ACCESSES_SHOWN_MAX
from broker.web.pages import Pages, pages_of
from schemas.directory import Person, Role

_ALERT_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


class Colleagues(msgspec.Struct, frozen=True, kw_only=True):
    """Names of an authority's own people."""

    workers: Mapping[str, str]
    """By worker code."""
    logins: Mapping[str, str]

    def name_holder(self, held_by: str) -> str:
        """Who holds something now."""
        return "Duty desk" if held_by == DUTY_DESK else self.name_worker(held_by)

    def name_worker(self, code: str) -> str:
        """A worker by code; one who is not in the directory by the code alone."""
        return self.workers.get(code, f"worker {code}")

    def name_login(self, login: str) -> str:
        """A person who signed in."""
        return self.logins.get(login, login)


class AlertRow(msgspec.Struct, frozen=True, kw_only=True):
    """An alert as pages show it."""

    stored: StoredAlert
    holder: str
    workers: tuple[str, ...]
    acknowledged_by: str
    is_open: bool
    is_overdue: bool
    is_escalated: bool

    @property
    def is_urgent(self) -> bool:
        """Nobody took it in time."""
        return self.is_overdue or self.is_escalated


class ReviewRow(msgspec.Struct, frozen=True, kw_only=True):
    """A doubt about identity as the list shows it."""

    stored: StoredReview
    holder: str
    shown_birth_date: date | None
    is_overdue: bool
    is_escalated: bool

    @property
    def is_urgent(self) -> bool:
        """Nobody took it in time."""
        return self.is_overdue or self.is_escalated


async def show_inbox(request: Request) -> Response:
    """The alerts a person may see, the most urgent first, and the doubts to be settled."""
    pages, person = pages_of(request), signed_in_of(request).person
    worker = scope_of(person)
    now, rows_max = pages.clock.now(), pages.limits.rows_max
    closed_since = now - timedelta(hours=pages.limits.closed_shown_h)
    async with pages.database.writing() as connection:
        found = await alerts.list_alerts(
            connection, pages.keyring, person.owner, worker=worker, rows_max=rows_max + 1, closed_since=closed_since
        )
        doubts = await reviews.list_open_reviews(
            connection, pages.keyring, person.owner, rows_max=rows_max + 1, held_by=worker
        )
        decided = await reviews.list_decided_reviews(
            connection, pages.keyring, person.owner, since=closed_since, rows_max=rows_max, held_by=worker
        )
        colleagues = await load_colleagues(connection, pages, person)
        alert_ids = [each.alert.alert_id for each in found[:rows_max]]
        told = await alerts.load_last_notices(connection, alert_ids)
        acts = await _acts_of_listing(connection, request, "alerts.listed", alert_ids, now)
        review_ids = [doubt.id for doubt in (*doubts[:rows_max], *decided)]
        acts += await _acts_of_listing(connection, request, "reviews.listed", review_ids, now)
        unreached = await receipts.list_unreached_people(
            connection, person.owner, login=None if worker is None else person.login, rows_max=rows_max
        )
        handed_over = await coverage.count_handed_over(connection, person.owner) if worker is None else 0
        await audit.record_acts(connection, acts, now)
    rows = [describe_row(each, colleagues, now) for each in found[:rows_max]]
    groups = group_reviews([describe_review(doubt, colleagues, now) for doubt in doubts[:rows_max]])
    return pages.render(
        request,
        "inbox.html",
        rows=rows,
        handed_over=handed_over,
        unreached=[(colleagues.name_login(each.contact), each) for each in unreached],
        open_count=sum(row.is_open for row in rows),
        urgent_count=sum(row.is_urgent for row in rows),
        told=told,
        reviews=groups,
        urgent_reviews=sum(any(row.is_urgent for row in group) for group in groups),
        decided=[describe_review(each, colleagues, now) for each in decided],
        is_cut=max(len(found), len(doubts)) > rows_max,
        refresh_s=None if request.query_params.get("refresh") == "off" else pages.limits.list_refresh_s,
        list_refresh_s=pages.limits.list_refresh_s,
        idle_minutes=pages.settings.session_idle_minutes_max,
        closed_shown_days=round(pages.limits.closed_shown_h / 24),
    )


async def show_alert(request: Request, alert_id: str) -> Response:
    """Everything of one alert. The first look is noted."""
    pages, person = pages_of(request), signed_in_of(request).person
    now = pages.clock.now()
    async with pages.database.writing() as connection:
        stored = await _load_alert(connection, pages, person, alert_id)
        colleagues = await load_colleagues(connection, pages, person)
        chronology, closed_at, looked = None, None, []
        if not stored.is_restricted:  # else they stand in the protected view
            chronology = await load_chronology(connection, pages, stored.visit_id)
            closed_at = await visits.find_closed_at(connection, stored.visit_id)
            looked = await accesses.list_counted(
                connection, pages.keyring, stored.alert.child.nhs_number, rows_max=ACCESSES_SHOWN_MAX
            )
        notices = await alerts.load_notices(connection, alert_id)
        await alerts.note_opened(connection, alert_id, now)
        await audit.record_acts(connection, [act_of(person, "alert.read", alert_id)], now)
    return pages.render(
        request,
        "alert.html",
        closed_at=closed_at,
        row=describe_row(stored, colleagues, now),
        facts=chronology.facts if chronology is not None else stored.alert.attendance,
        lines=chronology.lines if chronology is not None else (),
        accesses=looked,
        notices=notices,
        is_neglected=stored.level > sum(notice.is_urgent for notice in notices),
    )


async def acknowledge_alert(request: Request, alert_id: str) -> Response:
    """Take the alert: it closes this one and no other. Taking it again changes nothing."""
    pages, person = pages_of(request), signed_in_of(request).person
    now = pages.clock.now()
    async with pages.database.writing() as connection:
        await _load_alert(connection, pages, person, alert_id)
        if await alerts.acknowledge_alert(connection, person.owner, alert_id, by=person.login, now=now):
            await audit.record_acts(connection, [act_of(person, "alert.acknowledged", alert_id)], now)
    return RedirectResponse(f"/alerts/{alert_id}", status_code=303)


def scope_of(person: Person) -> str | None:
    """The worker whose alerts a person may see; None: the duty desk, which sees all of its authority.

    Raises HTTPException 403 for a social worker who is not in the directory: nobody's alerts are not everybody's.
    """
    if person.role is Role.DUTY_WORKER:
        return None
    if person.role is Role.SOCIAL_WORKER and person.worker:
        return person.worker
    raise HTTPException(403)


def review_scope_of(person: Person) -> str | None:
    """The worker whose doubts a person may see; None: those who see all of their authority.

    Raises HTTPException 403 as ``scope_of`` does.
    """
    return None if person.role is Role.LIST_OFFICER else scope_of(person)


def describe_row(stored: StoredAlert, colleagues: Colleagues, now: datetime) -> AlertRow:
    """An alert with names for codes, and how urgent it is."""
    is_open = stored.state is AlertState.OPEN
    return AlertRow(
        stored=stored,
        holder=colleagues.name_holder(stored.held_by),
        workers=tuple(colleagues.name_worker(code) for code in stored.alert.allocated_workers),
        acknowledged_by=colleagues.name_login(stored.acknowledged_by or ""),
        is_open=is_open,
        is_overdue=is_open and stored.due_by <= now,
        is_escalated=is_open and stored.level > 0,
    )


def describe_review(stored: StoredReview, colleagues: Colleagues, now: datetime) -> ReviewRow:
    """A doubt with names for codes, and how urgent it is."""
    shown = stored.content.shown_birth_date
    return ReviewRow(
        stored=stored,
        holder=colleagues.name_holder(stored.held_by),
        shown_birth_date=date.fromisoformat(shown) if shown else None,
        is_overdue=stored.due_by <= now,
        is_escalated=stored.level > 0,
    )


def group_reviews(rows: Sequence[ReviewRow]) -> list[list[ReviewRow]]:
    """The doubts of one visit together, where the most urgent of them stands: twins are one question."""
    groups: dict[str, list[ReviewRow]] = {}
    for row in rows:
        groups.setdefault(row.stored.visit_id, []).append(row)
    return list(groups.values())


async def _load_alert(connection: AsyncConnection, pages: Pages, person: Person, alert_id: str) -> StoredAlert:
    """The alert, or 404: one that belongs to others answers as one that does not exist."""
    stored = None
    if _ALERT_ID.fullmatch(alert_id):
        stored = await alerts.load_alert(connection, pages.keyring, person.owner, alert_id, worker=scope_of(person))
    if stored is None:
        raise HTTPException(404)
    return stored


async def load_chronology(connection: AsyncConnection, pages: Pages, visit_id: str) -> Chronology | None:
    """A visit as social care may read it; None of one without messages."""
    messages = await visits.load_messages(connection, pages.keyring, visit_id)
    site = await directory.find_site(connection, messages[0][1].sender) if messages else None
    return tell_visit(messages, site)


async def load_colleagues(connection: AsyncConnection, pages: Pages, person: Person) -> Colleagues:
    """Names of the people of a person's authority."""
    return Colleagues(
        workers=await directory.load_worker_names(connection, pages.keyring, person.owner),
        logins=await logins.load_names(connection, pages.keyring, person.owner),
    )


async def _acts_of_listing(
    connection: AsyncConnection, request: Request, action: str, subjects: Sequence[str], now: datetime
) -> list[Act]:
    """What is to be audited of a list: every item that is shown.

    A list that refreshes itself would fill the audit with the same line every half minute: there, a line covers what
    the same person is shown again within ``listing_covers_s``.
    """
    pages, person = pages_of(request), signed_in_of(request).person
    acts = [act_of(person, action, subject) for subject in subjects]
    if not acts or not is_automatic(request):
        return acts
    since = now - timedelta(seconds=pages.limits.listing_covers_s)
    covered = await audit.list_recorded(connection, acts[0], subjects, since)
    return [act for act in acts if act.subject not in covered]
