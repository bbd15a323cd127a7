"""What every page stands on: the database, the keys, the clock, the templates, and the limits of the pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec
from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.responses import Response

from broker.announcement import Rules
from broker.incident_intake import IncidentIntake
from broker.keyring import Keyring
from broker.notices import NoticeRules
from broker.ports import Clock
from broker.settings import Settings
from broker.storage.database import Database
from broker.web import wording

_HERE: Final = Path(__file__).parent
_MEDIA_TYPES: Final = {".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}


@dataclass(frozen=True, kw_only=True)
class PageLimits:
    """What the pages show and take at most."""

    rows_max: int = 200
    """Rows of a list."""
    closed_shown_h: float = 7 * 24.0
    """How long an alert that is no longer open stays on the list."""
    replies_shown_h: float = 24.0
    listing_covers_s: float = 900.0
    """An automatic refresh is audited anew after so long; whatever a person asks for is always audited."""
    list_refresh_s: int = 30
    passwords_at_once_max: int = 2
    """Argon2 takes 64 MiB for each."""
    password_characters_max: int = 1024
    login_characters_max: int = 500
    form_fields_max: int = 8
    reason_max: int = 200
    programs_remembered_s: float = 300.0
    """How long a program's password is not hashed again."""
    programs_remembered_max: int = 64
    program_answered_s: float = 4.0
    """A program that watches the broker is told 503 when the database keeps it waiting longer."""


class StaticFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of our own that every page may ask for; nothing personal."""

    content: bytes
    media_type: str
    version: str


@dataclass(frozen=True, kw_only=True)
class Pages:
    """The surroundings of every page."""

    database: Database
    keyring: Keyring
    clock: Clock
    settings: Settings
    rules: Rules
    """How people are told of what is decided on a page."""
    notice_rules: NoticeRules
    """How schools are told of what is decided on a page."""
    incidents: IncidentIntake | None
    """Where a coordinator's file goes; None: the page has no form for it."""
    limits: PageLimits
    templates: Environment
    static_files: Mapping[str, StaticFile]

    def render(self, request: Request, template: str, *, status_code: int = 200, **shown: object) -> HTMLResponse:
        """Fill a template. Whoever is signed in is known to it; everything shown is escaped."""
        signed_in = getattr(request.state, "signed_in", None)
        text = self.templates.get_template(template).render(
            signed_in=signed_in,
            here=request.url.path,
            now=self.clock.now(),
            development=self.settings.is_development,
            **shown,
        )
        return HTMLResponse(text, status_code=status_code)


def pages_of(request: Request) -> Pages:
    """The surroundings that ``create_app`` gave the application."""
    pages: Pages = request.app.state.pages
    return pages


@cache
def load_static_files() -> Mapping[str, StaticFile]:
    """The style sheet and the icon, which a process reads once."""
    found = {}
    for path in sorted((_HERE / "static").iterdir()):
        if path.suffix in _MEDIA_TYPES:
            content = path.read_bytes()
            version = sha256(content).hexdigest()[:12]
            found[path.name] = StaticFile(content=content, media_type=_MEDIA_TYPES[path.suffix], version=version)
    return found


@cache
def load_templates() -> Environment:
    """The templates: everything is escaped, and a name that is missing is an error.

    One for all applications of a process: it compiles each template when that is first shown, which takes longer than
    to show it.
    """
    static_files = load_static_files()
    templates = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(wording.FILTERS)
    templates.globals["static_url"] = lambda name: f"/static/{name}?v={static_files[name].version}"
    return templates


async def show_static_file(request: Request, name: str) -> Response:
    """The style sheet or the icon. The address changes with the content, so it may be kept for a year."""
    file = pages_of(request).static_files.get(name)
    if file is None:
        raise HTTPException(404)
    headers: dict[str, Any] = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(file.content, media_type=file.media_type, headers=headers)
