"""For list officers and the duty desk: what the list said of somebody at any time, and the alerts that were missed."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

import msgspec
from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from broker.domain.visits import LONDON
from broker.list_history import AsAt, AsAtQuestion, tell_as_at
from broker.storage import audit, child_lists, missed, visits
from broker.storage.audit import act_of
from broker.storage.missed import Missed
from broker.storage.tables import ItemState
from broker.web.auth import field_of, read_form, signed_in_of
from broker.web.pages import pages_of
from schemas.attendance import Attendance
from schemas.directory import Role
from schemas.identifiers import parse_nhs_number

_MISSED_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_ASKED: Final = ("nhs_number", "on", "time")
"""Fields of the question. They stand in the form again beside the answer, so that another time can be asked for."""


class MissedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A missed alert with who came, as far as it is still kept."""

    stored: Missed
    names: str
    is_open: bool
    is_withheld: bool
    """The person's national record is restricted: when they came is told where the place is."""


async def show_as_at_form(request: Request) -> Response:
    """The question."""
    return pages_of(request).render(request, "as_at.html", answer=None, problem="", asked=dict.fromkeys(_ASKED, ""))


async def show_as_at(request: Request) -> Response:
    """The answer. The number comes in the form, never in the address."""
    pages, person = pages_of(request), signed_in_of(request).person
    form = await read_form(request)
    asked = {name: field_of(form, name) for name in _ASKED}
    number, at = parse_nhs_number(asked["nhs_number"]), _read_instant(asked["on"], asked["time"])
    if number is None or at is None:
        problem = "Give a valid NHS number, a day and a time."
        return pages.render(request, "as_at.html", answer=None, problem=problem, asked=asked, status_code=400)
    question = AsAtQuestion(nhs_number=number, at=at, owner=person.owner, asked_by=person.login)
    async with pages.database.writing() as connection:
        answer: AsAt = await tell_as_at(connection, pages.keyring, question, pages.clock.now())
    return pages.render(request, "as_at.html", answer=answer, problem="", asked=asked)


async def show_missed(request: Request) -> Response:
    """The alerts that this authority should have had, open ones first."""
    pages, person = pages_of(request), signed_in_of(request).person
    async with pages.database.writing() as connection:
        found = await missed.list_missed(connection, owner=person.owner, rows_max=pages.limits.rows_max)
        entries = await child_lists.load_entries(connection, pages.keyring, {each.entry_id for each in found})
        restricted = {each.entry_id for each in entries if each.is_restricted}
        rows = []
        for each in found:
            said = await visits.load_messages(connection, pages.keyring, each.visit_id)
            is_open, is_withheld = each.state is ItemState.OPEN, each.entry_id in restricted
            rows.append(MissedRow(stored=each, names=_name(said), is_open=is_open, is_withheld=is_withheld))
        acts = [act_of(person, "missed.listed", each.id) for each in found]
        await audit.record_acts(connection, acts, pages.clock.now())
    return pages.render(request, "missed.html", rows=rows, is_duty_desk=person.role is Role.DUTY_WORKER)


async def settle_missed(request: Request, missed_id: str) -> Response:
    """A person has seen to it."""
    pages, person = pages_of(request), signed_in_of(request).person
    now = pages.clock.now()
    if not _MISSED_ID.fullmatch(missed_id):
        raise HTTPException(404)
    async with pages.database.writing() as connection:
        if not await missed.settle_missed(connection, person.owner, missed_id, by=person.login, now=now):
            raise HTTPException(404)
        await audit.record_acts(connection, [act_of(person, "missed.seen_to", missed_id)], now)
    return RedirectResponse("/missed", status_code=303)


def _read_instant(on: str, time: str) -> datetime | None:
    try:
        read = datetime.fromisoformat(f"{on}T{time}")
    except ValueError:
        return None
    return read.replace(tzinfo=LONDON).astimezone(UTC)


def _name(said: list[tuple[datetime, Attendance]]) -> str:
    names = [name for _, each in said for name in each.names]
    return f"{names[-1].given} {names[-1].family}".strip() if names else ""
