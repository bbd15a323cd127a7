"""For coordinators and authorities' officers: the report of a month, one incident's whole record, and the schools."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.exceptions import HTTPException
from starlette.responses import Response

from broker import proof
from broker.domain.visits import london_day
from broker.proof import Month, MonthReport, parse_month
from broker.storage import audit
from broker.storage.audit import act_of
from broker.web.auth import signed_in_of
from broker.web.pages import Pages, pages_of
from schemas.directory import Person, Role
from schemas.identifiers import authority_of

_INCIDENT_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


async def show_report(request: Request) -> Response:
    """The month's incidents, children and notices: on time, late and why, not sent and why."""
    pages, person = pages_of(request), signed_in_of(request).person
    month = _month_of(request, pages)
    async with pages.database.writing() as connection:
        report = await _report(connection, pages, person, month)
    is_coordinator = person.role is Role.ENCOMPASS_COORDINATOR
    path = "/force/report" if is_coordinator else "/encompass-report"
    return pages.render(request, "encompass_report.html", report=report, path=path, is_coordinator=is_coordinator)


async def download_report(request: Request) -> Response:
    """The month's notices as CSV."""
    pages, person = pages_of(request), signed_in_of(request).person
    month = _month_of(request, pages)
    async with pages.database.writing() as connection:
        report = await _report(connection, pages, person, month)
    headers = {"Content-Disposition": f'attachment; filename="encompass-{month.words}.csv"'}
    return Response(proof.write_report(report), media_type="text/csv; charset=utf-8", headers=headers)


async def show_incident(request: Request, incident_id: str) -> Response:
    """Everything about one incident of the force."""
    pages, person = pages_of(request), signed_in_of(request).person
    now = pages.clock.now()
    async with pages.database.writing() as connection:
        record = None
        if _INCIDENT_ID.fullmatch(incident_id):
            record = await proof.tell_incident(connection, pages.keyring, incident_id, now)
        if record is None or f"force:{record.force}" != person.owner:
            raise HTTPException(404)
        await audit.record_acts(connection, [act_of(person, "incident.read", incident_id)], now)
    return pages.render(request, "encompass_incident.html", record=record)


async def show_schools(request: Request) -> Response:
    """The schools of the officer's area that could not be told as they should be."""
    pages, person = pages_of(request), signed_in_of(request).person
    async with pages.database.reading() as connection:
        report = await proof.report_schools(
            connection,
            pages.keyring,
            authority_of(person.owner),
            now=pages.clock.now(),
            trained=timedelta(days=pages.settings.encompass_training_days),
        )
    return pages.render(request, "encompass_schools.html", report=report)


def _month_of(request: Request, pages: Pages) -> Month:
    """The month that is asked for; this one where none is named."""
    asked = request.query_params.get("month", "")
    today = london_day(pages.clock.now())
    month = parse_month(asked) if asked else Month(today.year, today.month)
    if month is None:
        raise HTTPException(400)
    return month


async def _report(connection: AsyncConnection, pages: Pages, person: Person, month: Month) -> MonthReport:
    now = pages.clock.now()
    is_coordinator = person.role is Role.ENCOMPASS_COORDINATOR
    report = await proof.report_month(
        connection,
        pages.keyring,
        month,
        now=now,
        force=person.owner.removeprefix("force:") if is_coordinator else "",
        authority="" if is_coordinator else authority_of(person.owner),
    )
    await audit.record_acts(connection, [act_of(person, "encompass_report.read", person.owner, month.words)], now)
    return report
