"""Named logins and signed-in sessions. Passwords are kept as Argon2 hashes, session tokens as digests."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import case, delete, literal, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.storage.database import upsert
from broker.storage.tables import LoginRow, SessionRow, table
from schemas.directory import Person, Reach, Role
from schemas.identifiers import OwnerId

_logins, _sessions = table(LoginRow), table(SessionRow)
NOWHERE: Final = Reach()
"""Of somebody who cannot be told."""


class StoredLogin(msgspec.Struct, frozen=True, kw_only=True):
    """A login with what signing in must know."""

    person: Person
    password_hash: str
    failures: int
    rests_until: datetime | None


class Reachable(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who can sign in, and where they are told to."""

    login: str
    owner: str
    role: Role
    worker: str | None
    reach: Reach


async def save_login(
    connection: AsyncConnection, keyring: Keyring, person: Person, password_hash: str, reach: Reach = NOWHERE
) -> None:
    """Add or replace a login; a replaced one starts without failures and is signed out everywhere."""
    values = {
        "login": person.login,
        "owner": person.owner,
        "role": person.role.value,
        "worker": person.worker,
        "sealed": keyring.seal(person.name.encode(), about=f"login/{person.login}"),
        "reach_sealed": _seal_reach(keyring, person.login, reach),
        "password_hash": password_hash,
        "failures": 0,
        "rests_until": None,
        "disabled_at": None,
    }
    statement = upsert(connection, _logins).values(values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["login"], set_=values))
    await connection.execute(delete(_sessions).where(_sessions.c.login == person.login))


async def change_person(connection: AsyncConnection, keyring: Keyring, person: Person, reach: Reach = NOWHERE) -> None:
    """Change who a login is, not its password; signed out everywhere, so that an old role ends at once."""
    await connection.execute(
        update(_logins)
        .where(_logins.c.login == person.login)
        .values(
            owner=person.owner,
            role=person.role.value,
            worker=person.worker,
            sealed=keyring.seal(person.name.encode(), about=f"login/{person.login}"),
            reach_sealed=_seal_reach(keyring, person.login, reach),
        )
    )
    await connection.execute(delete(_sessions).where(_sessions.c.login == person.login))


async def find_login(connection: AsyncConnection, keyring: Keyring, login: str) -> StoredLogin | None:
    """The enabled login of this name, or None."""
    statement = select(_logins).where(_logins.c.login == login, _logins.c.disabled_at.is_(None))
    row = (await connection.execute(statement)).one_or_none()
    if row is None:
        return None
    return StoredLogin(
        person=_person(keyring, row),
        password_hash=row.password_hash,
        failures=row.failures,
        rests_until=row.rests_until,
    )


async def find_reach(connection: AsyncConnection, keyring: Keyring, owner: str, login: str) -> Reach:
    """Where somebody of this owner is told to sign in; nowhere when the login is gone or disabled."""
    statement = select(_logins.c.reach_sealed).where(
        _logins.c.login == login, _logins.c.owner == owner, _logins.c.disabled_at.is_(None)
    )
    return _open_reach(keyring, login, (await connection.execute(statement)).scalar_one_or_none())


async def load_reachable(connection: AsyncConnection, keyring: Keyring, owners: Collection[str]) -> list[Reachable]:
    """Who of these owners can sign in and can be told to."""
    statement = (
        select(_logins.c.login, _logins.c.role, _logins.c.worker, _logins.c.reach_sealed, _logins.c.owner)
        .where(_logins.c.owner.in_(owners), _logins.c.disabled_at.is_(None), _logins.c.reach_sealed.is_not(None))
        .order_by(_logins.c.login)
    )
    return [
        Reachable(
            login=row.login,
            owner=row.owner,
            role=Role(row.role),
            worker=row.worker,
            reach=_open_reach(keyring, row.login, row.reach_sealed),
        )
        for row in await connection.execute(statement)
    ]


async def has_login(connection: AsyncConnection, login: str) -> bool:
    """Whether a login of this name exists, enabled or not."""
    found = await connection.execute(select(_logins.c.login).where(_logins.c.login == login))
    return found.one_or_none() is not None


async def load_names(connection: AsyncConnection, keyring: Keyring, owner: str) -> dict[str, str]:
    """Login to the person's name, for one owner's own pages."""
    rows = await connection.execute(select(_logins.c.login, _logins.c.sealed).where(_logins.c.owner == owner))
    return {row.login: keyring.open(bytes(row.sealed), about=f"login/{row.login}").decode() for row in rows}


async def take_attempt(
    connection: AsyncConnection, login: str, *, failures_max: int, rest: timedelta, now: datetime
) -> bool:
    """Count an attempt as failed before it is made; False when the login rests. Success sets the count back.

    Counted beforehand, so that a thousand attempts at one moment are no more than ``failures_max``. A rest that is
    over starts a new count.
    """
    rests_until = _logins.c.rests_until
    failures = case((rests_until <= now, 1), else_=_logins.c.failures + 1)
    rested_at = literal(now + rest, rests_until.type)
    taken = await connection.execute(
        update(_logins)
        .where(_logins.c.login == login, rests_until.is_(None) | (rests_until <= now))
        .values(failures=failures, rests_until=case((failures >= failures_max, rested_at)))
    )
    return taken.rowcount == 1


async def clear_failures(connection: AsyncConnection, login: str) -> None:
    """The right password was given: the count starts anew."""
    await connection.execute(update(_logins).where(_logins.c.login == login).values(failures=0, rests_until=None))


async def open_session(connection: AsyncConnection, person: Person, token: str, now: datetime) -> None:
    """Remember a signed-in person by a digest of the token."""
    await clear_failures(connection, person.login)
    await connection.execute(
        _sessions.insert().values(
            token_digest=digest_token(token),
            owner=person.owner,
            login=person.login,
            created_at=now,
            used_at=now,
        )
    )


async def close_ended_sessions(
    connection: AsyncConnection, *, now: datetime, longest: timedelta, idle: timedelta
) -> None:
    """Forget every session that has ended by itself."""
    ended = (_sessions.c.created_at <= now - longest) | (_sessions.c.used_at <= now - idle)
    await connection.execute(delete(_sessions).where(ended))


async def find_session(
    connection: AsyncConnection, keyring: Keyring, token: str, *, now: datetime, longest: timedelta, idle: timedelta
) -> Person | None:
    """The person signed in with this token, if the session is neither too old nor too long unused."""
    statement = (
        select(_logins)
        .join(_sessions, _sessions.c.login == _logins.c.login)
        .where(
            _sessions.c.token_digest == digest_token(token),
            _sessions.c.created_at > now - longest,
            _sessions.c.used_at > now - idle,
            _logins.c.disabled_at.is_(None),
        )
    )
    row = (await connection.execute(statement)).one_or_none()
    return None if row is None else _person(keyring, row)


async def note_use(connection: AsyncConnection, token: str, now: datetime) -> None:
    """Keep a session from going idle."""
    await connection.execute(
        update(_sessions).where(_sessions.c.token_digest == digest_token(token)).values(used_at=now)
    )


async def close_session(connection: AsyncConnection, token: str) -> None:
    """Sign out."""
    await connection.execute(delete(_sessions).where(_sessions.c.token_digest == digest_token(token)))


def digest_token(token: str) -> bytes:
    """What is kept of a session token: 256 random bits need no salt."""
    return hashlib.sha256(token.encode()).digest()


def _person(keyring: Keyring, row: Any) -> Person:
    return Person(
        login=row.login,
        name=keyring.open(bytes(row.sealed), about=f"login/{row.login}").decode(),
        role=Role(row.role),
        owner=OwnerId(row.owner),
        worker=row.worker,
    )


def _seal_reach(keyring: Keyring, login: str, reach: Reach) -> bytes | None:
    if reach == NOWHERE:
        return None
    return keyring.seal(msgspec.json.encode(reach), about=f"reach/{login}")


def _open_reach(keyring: Keyring, login: str, sealed: bytes | None) -> Reach:
    if sealed is None:
        return NOWHERE
    return msgspec.json.decode(keyring.open(bytes(sealed), about=f"reach/{login}"), type=Reach)
