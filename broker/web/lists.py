"""For list officers: send the list, read the answer, decide on what is held and on who is missing from a full list."""

from __future__ import annotations

import re
from typing import Final

import msgspec
from fastapi import Request
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from adapters.errors import MalformedFile
from broker.landing import ListBlocked
from broker.list_answer import report_blocked, report_malformed
from broker.list_comparison import upload_options_of
from broker.list_decision import NothingToDecide, decide_difference, reject_upload
from broker.list_upload import confirm_upload, upload_children
from broker.spool import SealedSpool, SpoolFull
from broker.storage import audit, child_lists, directory, held_uploads, landings, list_differences
from broker.storage.audit import Act
from broker.storage.list_differences import Difference, DifferenceDecision
from broker.web.auth import field_of, read_form, signed_in_of
from broker.web.pages import Pages, pages_of
from schemas.child_list import ChildListEntry
from schemas.directory import Person
from schemas.identifiers import authority_of
from schemas.upload import UploadFormat, UploadKind, UploadReport

_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
PIECE_BYTES: Final = 262_144
CONFIRM, REJECT = "confirm", "reject"
_NOTED: Final = "/lists?noted=yes"
"""Where a decision leads: the page says that it is on record."""


class MissingRow(msgspec.Struct, frozen=True, kw_only=True):
    """An entry that a full list left out."""

    difference: Difference
    entry: ChildListEntry
    is_overdue: bool


async def show_lists(request: Request) -> Response:
    """What waits of the authority's list, and the form to send one."""
    return await _show(request, None, is_noted=request.query_params.get("noted") == "yes")


async def upload_list(request: Request) -> Response:
    """Take a file, and show what is answered."""
    form = await read_form(request)
    try:
        return await _show(request, await _take_file(request, form))
    finally:
        await form.close()


async def _take_file(request: Request, form: FormData) -> UploadReport:
    pages, person = pages_of(request), signed_in_of(request).person
    sent = form.get("file")
    kind = UploadKind.FULL if field_of(form, "kind") == UploadKind.FULL else UploadKind.CHANGES
    if not isinstance(sent, UploadFile):
        raise HTTPException(400)
    is_json = (sent.filename or "").casefold().endswith(".json")
    options = upload_options_of(pages.settings)
    authority = authority_of(person.owner)
    with SealedSpool(pages.keyring, bytes_max=options.bytes_max) as spool:
        try:
            while piece := await sent.read(PIECE_BYTES):
                spool.write(piece)
        except SpoolFull:
            raise HTTPException(413) from None
        try:
            return await upload_children(
                pages.database,
                pages.keyring,
                pages.clock,
                authority=authority,
                file=spool,
                uploaded_by=person.login,
                kind=kind,
                form=UploadFormat.JSON if is_json else UploadFormat.CSV,
                dry_run=bool(field_of(form, "dry_run")),
                options=options,
            )
        except MalformedFile as error:
            return report_malformed(authority, kind, error)
        except ListBlocked as error:
            return report_blocked(authority, kind, error)


async def decide_hold(request: Request, upload_id: str, decision: str) -> Response:
    """Load a held file, or forget it."""
    pages, person = pages_of(request), signed_in_of(request).person
    reason = field_of(await read_form(request), "reason").strip()
    if not _ID.fullmatch(upload_id) or decision not in (CONFIRM, REJECT) or len(reason) > pages.limits.reason_max:
        raise HTTPException(404)
    try:
        if decision == REJECT:
            await reject_upload(
                pages.database, pages.clock, upload_id=upload_id, owner=person.owner, by=person.login, reason=reason
            )
            return RedirectResponse(_NOTED, status_code=303)
        report = await confirm_upload(
            pages.database,
            pages.keyring,
            pages.clock,
            upload_id=upload_id,
            owner=person.owner,
            by=person.login,
            reason=reason,
            options=upload_options_of(pages.settings),
        )
    except (NothingToDecide, MalformedFile):
        # Somebody else decided meanwhile, and the file is gone.
        raise HTTPException(404) from None
    except ListBlocked as error:
        return await _show(request, report_blocked(authority_of(person.owner), UploadKind.CHANGES, error))
    return await _show(request, report)


async def decide_missing(request: Request, difference_id: str) -> Response:
    """Say what became of somebody whom a full list left out."""
    pages, person = pages_of(request), signed_in_of(request).person
    decision = field_of(await read_form(request), "decision")
    if not _ID.fullmatch(difference_id) or decision not in {each.value for each in DifferenceDecision}:
        raise HTTPException(404)
    try:
        await decide_difference(
            pages.database,
            pages.keyring,
            pages.clock,
            difference_id=difference_id,
            owner=person.owner,
            decision=DifferenceDecision(decision),
            by=person.login,
        )
    except NothingToDecide:
        raise HTTPException(404) from None
    return RedirectResponse(_NOTED, status_code=303)


async def _show(request: Request, report: UploadReport | None, *, is_noted: bool = False) -> Response:
    pages, person = pages_of(request), signed_in_of(request).person
    now, rows_max = pages.clock.now(), pages.limits.rows_max
    async with pages.database.writing() as connection:
        known = await directory.load_directory(connection)
        holds = await held_uploads.list_holds(connection, person.owner, rows_max=rows_max)
        landing = await landings.list_landings(connection, person.owner)
        missing = await _load_missing(connection, pages, person)
        missing_count = await list_differences.count_differences(connection, person.owner)
        acts = [
            Act(owner=person.owner, actor=person.login, action="difference.read", subject=row.difference.entry_id)
            for row in missing
        ]
        await audit.record_acts(connection, acts, now)
    authority = authority_of(person.owner)
    confirmed = [each.confirmed_at for each in known.freshness if each.authority == authority]
    return pages.render(
        request,
        "lists.html",
        status_code=200,
        report=report,
        is_noted=is_noted,
        refused=report.refused[:rows_max] if report is not None else (),
        holds=holds,
        landing=landing,
        missing=missing,
        missing_count=missing_count,
        confirmed_at=confirmed[0] if confirmed else None,
    )


async def _load_missing(connection: AsyncConnection, pages: Pages, person: Person) -> list[MissingRow]:
    found = await list_differences.list_differences(connection, person.owner, rows_max=pages.limits.rows_max)
    entries = await child_lists.load_stored(connection, pages.keyring, [each.entry_id for each in found])
    now = pages.clock.now()
    return [
        MissingRow(difference=each, entry=entries[each.entry_id].entry, is_overdue=each.due_by <= now)
        for each in found
        if each.entry_id in entries
    ]
