"""Who may see what: the rule of every route, sessions, and the proof that a form is ours.

No route is anonymous but ``/_ping``. Two more must be open before anybody can be known, and say nothing of anybody:
the form to sign in, and the style sheet and icon it is drawn with. ``ACCESS`` is the closed list of rules; a route
without a rule, or a rule without a route, stops the start. ``admit`` runs before every route and refuses what has
no rule.

People sign in with a named login and a password (Argon2) and carry a session: 32 random bytes in a cookie that
scripts cannot read, of which the database keeps a digest. Programs that watch the broker present an operator's login
with every request (HTTP basic, RFC 7617), on the routes of ``PROGRAMS`` only.

Every form carries a token derived from the session's: whoever does not hold the cookie cannot compute it, and whoever
reads the page cannot compute the cookie. The form to sign in has no session yet: there the token is derived from a
cookie of its own that came with the form (double submit). The Origin header would not do: ``Referrer-Policy:
no-referrer`` makes browsers send ``Origin: null``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import os
import secrets
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from enum import Enum
from hashlib import sha256
from typing import Final, Literal

import msgspec
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from fastapi import Request
from fastapi.routing import APIRoute
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import Response
from starlette.routing import BaseRoute

from broker.settings import Settings
from broker.storage import audit, directory, logins
from broker.storage.audit import Act, act_of
from broker.storage.logins import StoredLogin
from broker.web.pages import PageLimits, Pages, pages_of
from schemas.directory import Person, Role
from schemas.identifiers import BROKER_OWNER

TOKEN_BYTES: Final = 32
AUTOMATIC_REFRESH: Final = "auto"
"""``?refresh=auto``: the browser asked by itself. It is no click, and does not keep a session from ending."""
UNKNOWN_LOGIN: Final = "unknown-login"
"""Audited in place of a login that does not exist: people type passwords into the wrong field."""


class Everyone(Enum):
    """The rule of a route that asks nobody who they are."""

    ANONYMOUS = "anonymous"


Rule = frozenset[Role] | Literal[Everyone.ANONYMOUS]
ANONYMOUS: Final = Everyone.ANONYMOUS
SIGNED_IN: Final = frozenset(Role)
_SOCIAL_CARE: Final = frozenset({Role.SOCIAL_WORKER, Role.DUTY_WORKER})
_DUTY_DESK: Final = frozenset({Role.DUTY_WORKER})
_LISTS: Final = frozenset({Role.LIST_OFFICER, Role.DUTY_WORKER})
"""Who answers for what the list says: what it said and when, what was missed because of it, and which patterns the
authority's alerts name. A list officer reads the missed alerts, to mend the list; that somebody saw to the child is
said by the duty desk alone."""
_REVIEWERS: Final = frozenset({*_SOCIAL_CARE, Role.LIST_OFFICER})
"""Whether two records are one person is asked of the list as well: list officers know its names, numbers and twins.
They see no alert, and nothing of why the person came."""
_CLINICIANS: Final = frozenset({Role.CLINICIAN})
_SAFEGUARDING_LEADS: Final = frozenset({Role.SAFEGUARDING_LEAD})
_COORDINATORS: Final = frozenset({Role.ENCOMPASS_COORDINATOR})
_HUBS: Final = frozenset({Role.ENCOMPASS_HUB})
_OPERATORS: Final = frozenset({Role.OPERATOR})
_LIST_OFFICERS: Final = frozenset({Role.LIST_OFFICER})

ACCESS: Final[Mapping[tuple[str, str], Rule]] = {
    ("GET", "/_ping"): ANONYMOUS,
    ("GET", "/static/{name}"): ANONYMOUS,
    ("GET", "/sign-in"): ANONYMOUS,
    ("POST", "/sign-in"): ANONYMOUS,
    ("POST", "/sign-out"): SIGNED_IN,
    ("GET", "/"): SIGNED_IN,
    ("GET", "/inbox"): _SOCIAL_CARE,
    ("GET", "/alerts/{alert_id}"): _SOCIAL_CARE,
    ("POST", "/alerts/{alert_id}/acknowledge"): _SOCIAL_CARE,
    ("GET", "/alerts/{alert_id}/place"): _SOCIAL_CARE,
    ("GET", "/reviews"): _REVIEWERS,
    ("GET", "/reviews/{review_id}"): _REVIEWERS,
    ("GET", "/reviews/{review_id}/place"): _SOCIAL_CARE,
    ("POST", "/reviews/{review_id}/confirm"): _REVIEWERS,
    ("POST", "/reviews/{review_id}/reject"): _REVIEWERS,
    ("POST", "/reviews/{review_id}/undo"): _REVIEWERS,
    ("GET", "/chronology"): _SOCIAL_CARE,
    ("POST", "/chronology"): _SOCIAL_CARE,
    ("POST", "/chronology/csv"): _SOCIAL_CARE,
    ("GET", "/as-at"): _LISTS,
    ("POST", "/as-at"): _LISTS,
    ("GET", "/missed"): _LISTS,
    ("POST", "/missed/{missed_id}/settle"): _DUTY_DESK,
    ("GET", "/coverage"): _LISTS,
    ("POST", "/coverage/{item_id}/note"): _LISTS,
    ("POST", "/coverage/{item_id}/part"): _LISTS,
    ("GET", "/lists"): _LIST_OFFICERS,
    ("POST", "/lists"): _LIST_OFFICERS,
    ("POST", "/lists/held/{upload_id}/{decision}"): _LIST_OFFICERS,
    ("POST", "/lists/differences/{difference_id}"): _LIST_OFFICERS,
    ("GET", "/patterns"): _LISTS,
    ("POST", "/patterns"): _LISTS,
    ("POST", "/patterns/{kind}/{version}/{step}"): _LISTS,
    ("GET", "/school"): _SAFEGUARDING_LEADS,
    ("POST", "/school/notices/{notice_id}/acknowledge"): _SAFEGUARDING_LEADS,
    ("POST", "/school/notices/{notice_id}/not-our-pupil"): _SAFEGUARDING_LEADS,
    ("POST", "/school/notices/{notice_id}/record"): _SAFEGUARDING_LEADS,
    ("GET", "/force"): _COORDINATORS,
    ("POST", "/force/incidents"): _COORDINATORS,
    ("POST", "/force/tasks/{task_id}/release"): _COORDINATORS,
    ("POST", "/force/tasks/{task_id}/place"): _COORDINATORS,
    ("POST", "/force/incidents/{incident_id}/suppress"): _COORDINATORS,
    ("GET", "/force/report"): _COORDINATORS,
    ("GET", "/force/report.csv"): _COORDINATORS,
    ("GET", "/force/incidents/{incident_id}"): _COORDINATORS,
    ("GET", "/encompass-tasks"): _DUTY_DESK,
    ("GET", "/encompass-report"): _DUTY_DESK,
    ("GET", "/encompass-report.csv"): _DUTY_DESK,
    ("GET", "/encompass-schools"): _DUTY_DESK,
    ("POST", "/encompass-tasks/{task_id}/settle"): _DUTY_DESK | _COORDINATORS | _HUBS,
    ("GET", "/hub"): _HUBS,
    ("POST", "/hub/tasks/{task_id}/release"): _HUBS,
    ("POST", "/hub/tasks/{task_id}/place"): _HUBS,
    ("POST", "/hub/attendances/{incident_id}/keep-back"): _HUBS,
    ("GET", "/replies"): _CLINICIANS,
    ("POST", "/replies/{reply_id}/seen"): _CLINICIANS,
    ("GET", "/operations"): _OPERATORS,
    ("GET", "/_status"): _OPERATORS,
    ("GET", "/metrics"): _OPERATORS,
}
"""Who may ask for what, by method and path of the route."""

LIST_PATH: Final = "/lists"
INCIDENTS_PATH: Final = "/force/incidents"
FILE_PATHS: Final = frozenset({LIST_PATH, INCIDENTS_PATH})
"""The forms that have a file."""

PROGRAMS: Final = frozenset({"/_status", "/metrics"})
"""Routes that a program may ask with an operator's login by HTTP basic. They only read."""


class NotSignedIn(Exception):
    """Nobody is signed in, or the session has ended."""


class BadForm(HTTPException):
    """A form that is not ours, or that was drawn for a session that has ended."""

    def __init__(self) -> None:
        super().__init__(400)


class SignedIn(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks. ``token`` is empty for a program, which has no session."""

    person: Person
    owner_name: str
    token: str

    @property
    def form_token(self) -> str:
        """What every form of this session carries."""
        return derive_form_token(self.token)

    def __repr__(self) -> str:
        return "SignedIn(...)"


def check_access(routes: Iterable[BaseRoute], access: Mapping[tuple[str, str], Rule]) -> None:
    """Raise RuntimeError unless every route has a rule and passes ``admit``, and every rule has a route."""
    found: set[tuple[str, str]] = set()
    for route in routes:
        if not isinstance(route, APIRoute):
            raise RuntimeError(f"{type(route).__name__} {getattr(route, 'path', '')} cannot have an access rule")
        if not any(dependency.call is admit for dependency in route.dependant.dependencies):
            raise RuntimeError(f"{route.path} is not guarded by admit")
        found |= {(method, route.path) for method in route.methods or ()}
    if found - access.keys():
        raise RuntimeError(f"routes without an access rule: {sorted(found - access.keys())}")
    if access.keys() - found:
        raise RuntimeError(f"access rules without a route: {sorted(access.keys() - found)}")


async def admit(request: Request) -> None:
    """Let the request through or refuse it. Runs before every route.

    Raises NotSignedIn, HTTPException 403 for a role that may not, and BadForm.
    """
    path = request.scope["route"].path
    rule = ACCESS.get((request.method, path))
    if rule is None:
        raise HTTPException(403)
    if rule is ANONYMOUS:
        return
    signed_in = await _recognise_session(request)
    if signed_in is None and path in PROGRAMS:
        signed_in = await _recognise_program(request)
    if signed_in is None:
        raise NotSignedIn
    request.state.signed_in = signed_in
    if signed_in.person.role not in rule:
        raise HTTPException(403)
    if request.method != "GET":
        form = await read_form(request)
        try:
            check_form(form, signed_in.token)
        except BadForm:
            await form.close()
            raise


def signed_in_of(request: Request) -> SignedIn:
    """Who asks, on a route that is not anonymous."""
    signed_in: SignedIn = request.state.signed_in
    return signed_in


def is_automatic(request: Request) -> bool:
    """Whether the browser asked by itself, without a click."""
    return request.query_params.get("refresh") == AUTOMATIC_REFRESH


async def read_form(request: Request) -> FormData:
    """The form that was sent; read once. Only few forms may have a file, which stays in memory."""
    limits = pages_of(request).limits
    is_upload = request.scope["route"].path in FILE_PATHS
    if not is_upload or not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return await request.form(max_files=0, max_fields=limits.form_fields_max)
    form: FormData | None = getattr(request.state, "form", None)
    if form is None:
        parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=limits.form_fields_max)
        # Nothing that can be read goes to a disk.
        settings = pages_of(request).settings
        parser.spool_max_size = max(settings.list_upload_bytes_max, settings.fhir_bundle_bytes_max)
        try:
            form = await parser.parse()
        except MultiPartException:
            raise BadForm from None
        request.state.form = form
    return form


def field_of(form: FormData, name: str) -> str:
    """A text field of a form; empty when it is not there."""
    field = form.get(name)
    return field if isinstance(field, str) else ""


def check_form(form: FormData, secret: str) -> None:
    """Raise BadForm unless the form carries the token derived from ``secret``."""
    given = field_of(form, "form_token").encode("utf-8", "replace")
    if not secret or not hmac.compare_digest(given, derive_form_token(secret).encode()):
        raise BadForm


def derive_form_token(secret: str) -> str:
    """The token of the forms that belong to a session (or to a form to sign in)."""
    return hmac.digest(secret.encode("utf-8", "replace"), b"form", sha256).hex()


def session_cookie(settings: Settings) -> str:
    """Name of the session's cookie. With ``__Host-`` browsers take it only over TLS and from this very host."""
    return "session" if settings.is_development else "__Host-session"


def form_cookie(settings: Settings) -> str:
    """Name of the cookie that proves the form to sign in."""
    return "sign-in" if settings.is_development else "__Host-sign-in"


def set_cookie(response: Response, settings: Settings, name: str, token: str) -> None:
    """Set a cookie that scripts cannot read, other sites' forms do not send and no plain connection carries."""
    response.set_cookie(name, token, path="/", secure=not settings.is_development, httponly=True, samesite="lax")


def drop_cookie(response: Response, settings: Settings, name: str) -> None:
    """Have the browser forget a cookie."""
    response.delete_cookie(name, path="/", secure=not settings.is_development, httponly=True, samesite="lax")


def new_token() -> str:
    """32 random bytes, as text."""
    return secrets.token_urlsafe(TOKEN_BYTES)


async def open_session(pages: Pages, person: Person, former: str | None) -> str:
    """Open a session; returns its token, which is always new. The ``former`` session of this browser ends."""
    token, now = new_token(), pages.clock.now()
    longest, idle = _session_limits(pages.settings)
    async with pages.database.writing() as connection:
        await logins.close_ended_sessions(connection, now=now, longest=longest, idle=idle)
        if former:
            await logins.close_session(connection, former)
        await logins.open_session(connection, person, token, now)
        await audit.record_acts(connection, [act_of(person, "signed_in", person.login)], now)
    return token


async def close_session(pages: Pages, signed_in: SignedIn) -> None:
    """Sign out."""
    async with pages.database.writing() as connection:
        await logins.close_session(connection, signed_in.token)
        await audit.record_acts(
            connection, [act_of(signed_in.person, "signed_out", signed_in.person.login)], pages.clock.now()
        )


class PasswordCheck:
    """Checks passwords, a few at one time, and forgets nothing it should count.

    A login that does not exist, one that rests and one with a wrong password answer alike: each costs one hash and
    one audited attempt.
    """

    def __init__(self, settings: Settings, limits: PageLimits) -> None:
        self._settings = settings
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.passwords_at_once_max)
        # As dear as the hashes it stands in for: those of a demonstration are cheap.
        self._hasher = PasswordHasher(time_cost=1, memory_cost=8192) if settings.is_development else PasswordHasher()
        self._decoy = self._hasher.hash(secrets.token_urlsafe(TOKEN_BYTES))
        self._remembering_key = os.urandom(TOKEN_BYTES)
        self._remembered: dict[bytes, datetime] = {}

    async def find_person(self, pages: Pages, login: str, password: str) -> Person | None:
        """The person with this login and password, or None. Every call is an attempt that counts."""
        if not self._is_plausible(login, password):
            login, password = "", ""
        async with self._slots:
            stored, may_try = await self._take_attempt(pages, login)
            password_hash = stored.password_hash if stored is not None else self._decoy
            is_right = await asyncio.to_thread(self._verify, password_hash, password)
        return stored.person if stored is not None and may_try and is_right else None

    async def find_program(self, pages: Pages, login: str, password: str) -> Person | None:
        """As ``find_person``, for a program that presents its login every few seconds.

        A password that was right a moment ago is not hashed again, as long as the login stands as it did.
        """
        if not self._is_plausible(login, password):
            return None
        now = pages.clock.now()
        async with pages.database.reading() as connection:
            stored = await logins.find_login(connection, pages.keyring, login)
        if stored is not None and now < self._remembered.get(self._digest(stored, password), now):
            return stored.person
        person = await self.find_person(pages, login, password)
        if person is not None and stored is not None:
            async with pages.database.writing() as connection:
                await logins.clear_failures(connection, login)
            self._remember(self._digest(stored, password), now)
        return person

    async def _take_attempt(self, pages: Pages, login: str) -> tuple[StoredLogin | None, bool]:
        now = pages.clock.now()
        async with pages.database.writing() as connection:
            stored = await logins.find_login(connection, pages.keyring, login)
            may_try = await logins.take_attempt(
                connection,
                login,
                failures_max=self._settings.login_failures_max,
                rest=timedelta(seconds=self._settings.login_rest_s),
                now=now,
            )
            await directory.ensure_owners(connection, [(BROKER_OWNER, "Operators of the broker")])
            act = Act(owner=BROKER_OWNER, actor=UNKNOWN_LOGIN, action="sign_in.attempted", subject=UNKNOWN_LOGIN)
            if stored is not None:
                act = act_of(stored.person, "sign_in.attempted", stored.person.login)
            await audit.record_acts(connection, [act], now)
        return stored, may_try

    def _is_plausible(self, login: str, password: str) -> bool:
        lengths_fit = (
            0 < len(login) <= self._limits.login_characters_max
            and 0 < len(password) <= self._limits.password_characters_max
        )
        return lengths_fit and login.isprintable()

    def _verify(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError, UnicodeEncodeError):
            return False

    def _digest(self, stored: StoredLogin, password: str) -> bytes:
        message = "\x00".join((stored.person.login, stored.password_hash, password))
        return hmac.digest(self._remembering_key, message.encode("utf-8", "replace"), sha256)

    def _remember(self, digest: bytes, now: datetime) -> None:
        self._remembered = {known: until for known, until in self._remembered.items() if until > now}
        if len(self._remembered) < self._limits.programs_remembered_max:
            self._remembered[digest] = now + timedelta(seconds=self._limits.programs_remembered_s)


def password_check_of(request: Request) -> PasswordCheck:
    """The one that checks passwords for this application."""
    check: PasswordCheck = request.app.state.password_check
    return check


async def _recognise_session(request: Request) -> SignedIn | None:
    pages = pages_of(request)
    token = request.cookies.get(session_cookie(pages.settings))
    if not token:
        return None
    now = pages.clock.now()
    longest, idle = _session_limits(pages.settings)
    async with pages.database.reading() as connection:
        person = await logins.find_session(connection, pages.keyring, token, now=now, longest=longest, idle=idle)
        owner_name = await directory.find_owner_name(connection, person.owner) if person is not None else None
    if person is None:
        return None
    if not is_automatic(request):
        async with pages.database.writing() as connection:
            await logins.note_use(connection, token, now)
    return SignedIn(person=person, owner_name=owner_name or "", token=token)


async def _recognise_program(request: Request) -> SignedIn | None:
    credentials = _read_basic(request.headers.get("authorization", ""))
    if credentials is None:
        return None
    person = await password_check_of(request).find_program(pages_of(request), *credentials)
    return None if person is None else SignedIn(person=person, owner_name="", token="")


def _read_basic(header: str) -> tuple[str, str] | None:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        login, colon, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (login, password) if colon else None


def _session_limits(settings: Settings) -> tuple[timedelta, timedelta]:
    return timedelta(hours=settings.session_hours_max), timedelta(minutes=settings.session_idle_minutes_max)
