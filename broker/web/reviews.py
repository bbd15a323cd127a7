"""For social care and list officers: the doubts about identity; one of them, the visit beside the list entry, and the
decision of a person."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from broker.announcement import Occasion, open_occasion
from broker.storage import audit, directory, reviews
from broker.storage.audit import act_of
from broker.storage.reviews import StoredReview
from broker.verdict import REASON_LETTERS_MAX, Judge, Verdict, confirm_review, reject_review, undo_review
from broker.web.auth import field_of, read_form, signed_in_of
from broker.web.inbox import describe_review, group_reviews, load_colleagues, review_scope_of
from broker.web.pages import Pages, pages_of
from schemas.directory import Person, Role
from schemas.identifiers import authority_of

_REVIEW_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_Decision = Callable[[AsyncConnection, Occasion, Judge, StoredReview, str], Awaitable[Verdict]]


async def show_reviews(request: Request) -> Response:
    """The doubts that wait for a decision, the most urgent first, and those that were decided lately."""
    pages, person = pages_of(request), signed_in_of(request).person
    now, rows_max, held_by = pages.clock.now(), pages.limits.rows_max, review_scope_of(person)
    since = now - timedelta(hours=pages.limits.closed_shown_h)
    async with pages.database.writing() as connection:
        doubts = await reviews.list_open_reviews(
            connection, pages.keyring, person.owner, rows_max=rows_max + 1, held_by=held_by
        )
        decided = await reviews.list_decided_reviews(
            connection, pages.keyring, person.owner, since=since, rows_max=rows_max, held_by=held_by
        )
        colleagues = await load_colleagues(connection, pages, person)
        shown = doubts[:rows_max]
        acts = [act_of(person, "reviews.listed", each.id) for each in (*shown, *decided)]
        await audit.record_acts(connection, acts, now)
    return pages.render(
        request,
        "reviews.html",
        groups=group_reviews([describe_review(each, colleagues, now) for each in shown]),
        decided=[describe_review(each, colleagues, now) for each in decided],
        is_cut=len(doubts) > rows_max,
        closed_shown_days=round(pages.limits.closed_shown_h / 24),
    )


async def show_review(request: Request, review_id: str) -> Response:
    """The visit and the entry side by side, with the reasons for and against and what each weighs."""
    return await _show(request, review_id, verdict=Verdict.NOTED)


async def confirm(request: Request, review_id: str) -> Response:
    """They are one person."""
    return await _decide(request, review_id, confirm_review)


async def reject(request: Request, review_id: str) -> Response:
    """They are two people."""
    return await _decide(request, review_id, reject_review)


async def undo(request: Request, review_id: str) -> Response:
    """They were taken for one person and are not."""
    return await _decide(request, review_id, undo_review)


async def _decide(request: Request, review_id: str, decision: _Decision) -> Response:
    pages, person = pages_of(request), signed_in_of(request).person
    reason = field_of(await read_form(request), "reason")
    async with pages.database.writing() as connection:
        review = await _load_review(connection, pages, person, review_id)
        known = await directory.load_directory(connection)
        occasion = open_occasion(pages.keyring, known, pages.rules, pages.clock.now())
        judge = Judge(owner=person.owner, authority=authority_of(person.owner), login=person.login)
        verdict = await decision(connection, occasion, judge, review, reason)
    if verdict is Verdict.NOTED:
        return RedirectResponse(f"/reviews/{review_id}", status_code=303)
    return await _show(request, review_id, verdict=verdict)


async def _show(request: Request, review_id: str, *, verdict: Verdict) -> Response:
    pages, person = pages_of(request), signed_in_of(request).person
    now = pages.clock.now()
    async with pages.database.writing() as connection:
        review = await _load_review(connection, pages, person, review_id)
        colleagues = await load_colleagues(connection, pages, person)
        await audit.record_acts(connection, [act_of(person, "review.read", review_id)], now)
    return pages.render(
        request,
        "review.html",
        row=describe_review(review, colleagues, now),
        tells_complaint=person.role is not Role.LIST_OFFICER,
        decided_by=colleagues.name_login(review.decided_by or ""),
        verdict=verdict.value,
        reason_letters_max=REASON_LETTERS_MAX,
        status_code=200 if verdict is Verdict.NOTED else 409 if verdict is Verdict.STALE else 400,
    )


async def _load_review(connection: AsyncConnection, pages: Pages, person: Person, review_id: str) -> StoredReview:
    """The doubt, or 404: one that others hold answers as one that does not exist."""
    stored = None
    if _REVIEW_ID.fullmatch(review_id):
        stored = await reviews.load_review(
            connection, pages.keyring, person.owner, review_id, held_by=review_scope_of(person)
        )
    if stored is None:
        raise HTTPException(404)
    return stored
