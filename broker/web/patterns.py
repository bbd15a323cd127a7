"""For list officers and the duty desk: the patterns that their alerts name, worded, tried on history, on and off."""

from __future__ import annotations

import re
from typing import Final

from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from broker.domain.patterns import (
    COUNT_MAX,
    WINDOW_HOURS_MAX,
    WORDS_LETTERS_MAX,
    BadWording,
    PatternKind,
    PatternRule,
    compose_rule,
)
from broker.patterns import NotPreviewed, Preview, preview_rule, switch_pattern, word_pattern
from broker.storage import patterns
from broker.storage.tables import PatternState
from broker.web.auth import field_of, read_form, signed_in_of
from broker.web.pages import pages_of
from schemas.identifiers import authority_of

PREVIEWED_DAYS: Final = 90
_NUMBER: Final = re.compile(r"[0-9]{1,6}", re.ASCII)
_PREVIEW: Final = "preview"


async def show_patterns(request: Request) -> Response:
    """Every version of the authority's rules, and the form to word one."""
    return await _show(request)


async def word_rule(request: Request) -> Response:
    """Keep the next version of a rule, switched off."""
    pages, person = pages_of(request), signed_in_of(request).person
    form = await read_form(request)
    try:
        wanted = compose_rule(
            authority_of(person.owner),
            field_of(form, "kind"),
            count_min=_read_number(field_of(form, "count")),
            window_h=_read_number(field_of(form, "hours")),
            words=field_of(form, "words"),
        )
    except BadWording as error:
        return await _show(request, problem=str(error))
    async with pages.database.writing() as connection:
        await word_pattern(connection, wanted, by=person.login, now=pages.clock.now())
    return RedirectResponse("/patterns", status_code=303)


async def take_step(request: Request, kind: str, version: str, step: str) -> Response:
    """Try a version on the alerts of the last days, switch it on, or off."""
    pages, person = pages_of(request), signed_in_of(request).person
    now = pages.clock.now()
    if step == _PREVIEW:
        async with pages.database.reading() as connection:
            rule = await _find(connection, authority_of(person.owner), kind, version)
        found = await preview_rule(pages.database, pages.keyring, rule, PREVIEWED_DAYS, now, by=person.login)
        return await _show(request, tried=(rule, found))
    if step not in (PatternState.ON, PatternState.OFF):
        raise HTTPException(404)
    async with pages.database.writing() as connection:
        rule = await _find(connection, authority_of(person.owner), kind, version)
        try:
            await switch_pattern(connection, rule, PatternState(step), by=person.login, now=now)
        except NotPreviewed:
            raise HTTPException(400) from None
    return RedirectResponse("/patterns", status_code=303)


async def _show(request: Request, *, problem: str = "", tried: tuple[PatternRule, Preview] | None = None) -> Response:
    pages, person = pages_of(request), signed_in_of(request).person
    async with pages.database.reading() as connection:
        found = await patterns.list_rules(connection, authority_of(person.owner))
    rows_max = pages.limits.rows_max
    return pages.render(
        request,
        "patterns.html",
        status_code=400 if problem else 200,
        rows=found[:rows_max],
        is_cut=len(found) > rows_max,
        problem=problem,
        tried=tried,
        days=PREVIEWED_DAYS,
        kinds=list(PatternKind),
        count_max=COUNT_MAX,
        hours_max=WINDOW_HOURS_MAX,
        letters_max=WORDS_LETTERS_MAX,
    )


async def _find(connection: AsyncConnection, authority: str, kind: str, version: str) -> PatternRule:
    """The version, or 404: one of another authority answers as one that does not exist."""
    number = _read_number(version)
    stored = None
    if kind in set(PatternKind) and number:
        stored = await patterns.find_rule(connection, authority, PatternKind(kind), number)
    if stored is None:
        raise HTTPException(404)
    return stored.rule


def _read_number(text: str) -> int:
    """A whole number, or 0."""
    return int(text) if _NUMBER.fullmatch(text.strip()) else 0
