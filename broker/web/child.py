"""For social workers and the duty desk: the chronology of one child, as a page and as a CSV file."""

from __future__ import annotations

from typing import Final

from fastapi import Request
from starlette.responses import Response

from broker.child_chronology import ChildChronology, ChronologyQuestion, tell_child
from broker.web.auth import field_of, read_form, signed_in_of
from broker.web.csv_export import write_csv
from broker.web.inbox import load_colleagues, scope_of
from broker.web.pages import pages_of
from schemas.identifiers import parse_nhs_number

CSV_COLUMNS: Final = ("at", "what", "words", "place", "by")
_NOT_VALID: Final = "Give a valid NHS number."
_NOT_THEIRS: Final = "No child whom you may see has this number on your authority's list."


async def show_chronology_form(request: Request) -> Response:
    """The question."""
    scope_of(signed_in_of(request).person)
    return pages_of(request).render(request, "chronology.html", told=None, problem="", asked="")


async def show_chronology(request: Request) -> Response:
    """The answer. The number comes in the form, never in the address."""
    pages, person = pages_of(request), signed_in_of(request).person
    told, asked, problem = await _ask(request, is_export=False)
    if told is None:
        status = 400 if problem == _NOT_VALID else 404
        return pages.render(request, "chronology.html", told=None, problem=problem, asked=asked, status_code=status)
    async with pages.database.reading() as connection:
        colleagues = await load_colleagues(connection, pages, person)
    by = {code: colleagues.name_login(code) for code in {line.by for line in told.lines}}
    return pages.render(request, "chronology.html", told=told, problem="", asked=asked, by=by)


async def export_chronology(request: Request) -> Response:
    """The same as a file, whose name says nothing of the child."""
    told, asked, problem = await _ask(request, is_export=True)
    if told is None:
        status = 400 if problem == _NOT_VALID else 404
        return pages_of(request).render(
            request, "chronology.html", told=None, problem=problem, asked=asked, status_code=status
        )
    rows = [
        (line.at.isoformat(timespec="seconds"), line.kind.value, line.words, line.place, line.by) for line in told.lines
    ]
    headers = {"Content-Disposition": 'attachment; filename="chronology.csv"'}
    return Response(write_csv(CSV_COLUMNS, rows), media_type="text/csv; charset=utf-8", headers=headers)


async def _ask(request: Request, *, is_export: bool) -> tuple[ChildChronology | None, str, str]:
    """What is told, the number as it was typed, and what is wrong when nothing is told."""
    pages, person = pages_of(request), signed_in_of(request).person
    asked = field_of(await read_form(request), "nhs_number")
    number = parse_nhs_number(asked)
    if number is None:
        return None, asked, _NOT_VALID
    question = ChronologyQuestion(
        nhs_number=number,
        owner=person.owner,
        worker=scope_of(person),
        asked_by=person.login,
        is_export=is_export,
    )
    async with pages.database.writing() as connection:
        told = await tell_child(connection, pages.keyring, question, pages.clock.now())
    return told, asked, "" if told is not None else _NOT_THEIRS
