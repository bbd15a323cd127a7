"""Signing in and out, and where each role begins."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Final
from urllib.parse import quote

from fastapi import Request
from starlette.responses import RedirectResponse, Response

from broker.web import auth
from broker.web.auth import field_of, password_check_of, read_form, signed_in_of
from broker.web.pages import Pages, pages_of
from schemas.directory import Role

HOMES: Final[Mapping[Role, str]] = {
    Role.SOCIAL_WORKER: "/inbox",
    Role.DUTY_WORKER: "/inbox",
    Role.LIST_OFFICER: "/lists",
    Role.CLINICIAN: "/replies",
    Role.OPERATOR: "/operations",
    Role.SAFEGUARDING_LEAD: "/school",
    Role.ENCOMPASS_COORDINATOR: "/force",
    Role.ENCOMPASS_HUB: "/hub",
}
_WAY_BACK: Final = re.compile(
    r"/(?:inbox|lists|coverage|reviews|chronology|as-at|missed|patterns|replies|school|force|force/report|hub|operations"
    r"|encompass-(?:tasks|report|schools)|(?:alerts|reviews)/[0-9a-f]{32})",
    re.ASCII,
)
"""Where signing in may lead: our own pages only, never another site."""


def redirect_to_sign_in(path: str, *, is_lost: bool) -> Response:
    """Ask for a sign-in that leads back to ``path``, or to the page above it. ``is_lost``: a form was sent in vain."""
    wanted = path
    while wanted and not _WAY_BACK.fullmatch(wanted):
        wanted = wanted.rpartition("/")[0]
    said = [f"next={quote(wanted)}"] if wanted else []
    if is_lost:
        said.append("lost=yes")
    return RedirectResponse(f"/sign-in{'?' if said else ''}{'&'.join(said)}", status_code=303)


async def go_home(request: Request) -> Response:
    """Lead to the page a role works with."""
    return RedirectResponse(HOMES[signed_in_of(request).person.role], status_code=303)


async def show_sign_in(request: Request) -> Response:
    """The form to sign in."""
    pages = pages_of(request)
    has_ended = auth.session_cookie(pages.settings) in request.cookies
    way_back, is_lost = _safe_way_back(request.query_params.get("next", "")), "lost" in request.query_params
    return _draw_form(request, pages, way_back, has_ended=has_ended, is_lost=is_lost)


async def sign_in(request: Request) -> Response:
    """Check login and password; lead to where the person wanted to go."""
    pages = pages_of(request)
    form = await read_form(request)
    auth.check_form(form, request.cookies.get(auth.form_cookie(pages.settings), ""))
    way_back = _safe_way_back(field_of(form, "next"))
    check = password_check_of(request)
    person = await check.find_person(pages, field_of(form, "login").strip(), field_of(form, "password"))
    if person is None:
        return _draw_form(request, pages, way_back, is_refused=True)
    former = request.cookies.get(auth.session_cookie(pages.settings))
    token = await auth.open_session(pages, person, former)
    response = RedirectResponse(way_back or HOMES[person.role], status_code=303)
    auth.set_cookie(response, pages.settings, auth.session_cookie(pages.settings), token)
    auth.drop_cookie(response, pages.settings, auth.form_cookie(pages.settings))
    return response


async def sign_out(request: Request) -> Response:
    """End the session, here and in the database."""
    pages = pages_of(request)
    await auth.close_session(pages, signed_in_of(request))
    response = RedirectResponse("/sign-in", status_code=303)
    auth.drop_cookie(response, pages.settings, auth.session_cookie(pages.settings))
    return response


def _draw_form(
    request: Request,
    pages: Pages,
    way_back: str,
    *,
    has_ended: bool = False,
    is_lost: bool = False,
    is_refused: bool = False,
) -> Response:
    secret = request.cookies.get(auth.form_cookie(pages.settings)) or auth.new_token()
    response = pages.render(
        request,
        "sign_in.html",
        status_code=403 if is_refused else 200,
        form_token=auth.derive_form_token(secret),
        way_back=way_back,
        has_ended=has_ended,
        is_lost=is_lost,
        is_refused=is_refused,
        failures_max=pages.settings.login_failures_max,
        rest=timedelta(seconds=pages.settings.login_rest_s),
    )
    auth.set_cookie(response, pages.settings, auth.form_cookie(pages.settings), secret)
    return response


def _safe_way_back(path: str) -> str:
    return path if _WAY_BACK.fullmatch(path) else ""
