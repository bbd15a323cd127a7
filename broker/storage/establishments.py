"""Forces, establishments, safeguarding contacts, school days and pupils."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import date, time
from typing import Any, Final

import msgspec
from sqlalchemy import and_, delete, func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.encompass import EncompassDirectory
from broker.domain.pupils import pupil_blocks
from broker.domain.school_calendar import SchoolCalendar
from broker.keyring import Keyring
from broker.storage.database import upsert
from broker.storage.directory import RecipientSecrets, ensure_owners
from broker.storage.rows import insert_rows
from broker.storage.tables import (
    CalendarRow,
    EstablishmentRow,
    ForceRow,
    PupilBlock,
    PupilRow,
    SafeguardingContactRow,
    table,
)
from schemas.directory import Sender
from schemas.encompass import (
    CalendarDays,
    ContactRole,
    ContentProfile,
    DayKind,
    EncompassPolicy,
    Establishment,
    EstablishmentKind,
    EstablishmentStatus,
    Force,
    Pupil,
    Release,
    SafeguardingContact,
    UnderSchoolAge,
)
from schemas.identifiers import SchoolUrn, authority_owner, establishment_owner, force_owner

_forces, _establishments, _contacts = table(ForceRow), table(EstablishmentRow), table(SafeguardingContactRow)
_calendars, _pupils, _pupil_blocks = table(CalendarRow), table(PupilRow), table(PupilBlock)
_SEPTEMBER: Final = 9


class _ContactDetails(msgspec.Struct, frozen=True, array_like=True):
    name: str
    mailbox: str
    telephone: str | None
    mobile: str | None = None


# Forces


async def save_force(connection: AsyncConnection, force: Force, credential_digest: bytes) -> None:
    """Add or replace a force."""
    owner = force_owner(force.code)
    await ensure_owners(connection, [(owner, force.name)])
    policy = force.policy
    values = {
        "code": force.code,
        "owner": owner,
        "name": force.name,
        "statement": policy.statement,
        "withdrawn_statement": policy.withdrawn_statement,
        "release": policy.release.value,
        "profile": policy.profile.value,
        "under_school_age": policy.under_school_age.value,
        "confirmed_days_max": policy.confirmed_days_max,
        "training_required": policy.training_required,
        "peers": " ".join(force.peers),
        "credential_digest": credential_digest,
    }
    statement = upsert(connection, _forces).values(values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["code"], set_=values))


async def find_force(connection: AsyncConnection, code: str) -> Force | None:
    """A force, or None when it is unknown."""
    row = (await connection.execute(select(_forces).where(_forces.c.code == code))).one_or_none()
    if row is None:
        return None
    policy = EncompassPolicy(
        force=row.code,
        statement=row.statement,
        withdrawn_statement=row.withdrawn_statement,
        release=Release(row.release),
        profile=ContentProfile(row.profile),
        under_school_age=UnderSchoolAge(row.under_school_age),
        confirmed_days_max=row.confirmed_days_max,
        training_required=row.training_required,
    )
    return Force(code=row.code, name=row.name, policy=policy, peers=tuple(row.peers.split()))


async def find_force_digest(connection: AsyncConnection, code: str) -> bytes | None:
    """The keyed digest of a force's credential, or None when the force is unknown."""
    digest = (
        await connection.execute(select(_forces.c.credential_digest).where(_forces.c.code == code))
    ).scalar_one_or_none()
    return None if digest is None else bytes(digest)


async def load_forces_as_senders(connection: AsyncConnection) -> tuple[Sender, ...]:
    """Every force that may send, for the snapshot of the door."""
    rows = await connection.execute(select(_forces).order_by(_forces.c.code))
    return tuple(
        Sender(code=row.code, credential_digest=bytes(row.credential_digest), peers=tuple(row.peers.split()))
        for row in rows
    )


# Establishments and their contacts


async def save_establishment(
    connection: AsyncConnection, keyring: Keyring, establishment: Establishment, secrets: RecipientSecrets
) -> None:
    """Add or replace an establishment."""
    owner = establishment_owner(establishment.urn)
    await ensure_owners(connection, [(owner, establishment.name)])
    starts_at = establishment.starts_at_local
    values = {
        **msgspec.structs.asdict(establishment),
        "kind": establishment.kind.value,
        "status": establishment.status.value,
        "starts_at_local": starts_at.isoformat("minutes") if starts_at is not None else None,
        "owner": owner,
        "sealed": keyring.seal(msgspec.json.encode(secrets), about=f"secrets/{owner}"),
    }
    statement = upsert(connection, _establishments).values(values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["urn"], set_=values))


async def find_establishments(
    connection: AsyncConnection, urns: Collection[SchoolUrn]
) -> dict[SchoolUrn, Establishment]:
    """Those of the establishments that are known."""
    rows = await connection.execute(select(_establishments).where(_establishments.c.urn.in_(urns)))
    return {SchoolUrn(row.urn): _establishment(row) for row in rows}


async def list_establishments(connection: AsyncConnection, authority: str) -> list[Establishment]:
    """Every establishment in an authority's area."""
    statement = select(_establishments).where(_establishments.c.authority == authority)
    return [_establishment(row) for row in await connection.execute(statement.order_by(_establishments.c.urn))]


async def find_confirmed_days(connection: AsyncConnection) -> int | None:
    """The shortest time of any force after which an entry that nobody confirmed counts no more; None: no force."""
    statement = select(func.min(_forces.c.confirmed_days_max))
    shortest: int | None = (await connection.execute(statement)).scalar_one_or_none()
    return shortest


async def list_days(connection: AsyncConnection, authority: str) -> list[CalendarDays]:
    """Every day that is known of an authority and of its establishments."""
    rows = await connection.execute(select(_calendars).where(_calendars.c.authority == authority))
    return [_days(row) for row in rows]


async def save_contact(connection: AsyncConnection, keyring: Keyring, contact: SafeguardingContact) -> None:
    """Add or replace a contact."""
    details = _ContactDetails(contact.name, contact.mailbox, contact.telephone, contact.mobile)
    values = {
        "urn": contact.urn,
        "contact_id": contact.contact_id,
        "owner": establishment_owner(contact.urn),
        "role": contact.role.value,
        "confirmed_on": contact.confirmed_on,
        "trained_on": contact.trained_on,
        "sealed": keyring.seal(msgspec.json.encode(details), about=_about(contact.urn, contact.contact_id)),
    }
    statement = upsert(connection, _contacts).values(values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["urn", "contact_id"], set_=values))


async def load_contacts(
    connection: AsyncConnection, keyring: Keyring, urns: Collection[SchoolUrn]
) -> dict[SchoolUrn, list[SafeguardingContact]]:
    """The contacts of establishments."""
    statement = select(_contacts).where(_contacts.c.urn.in_(urns)).order_by(_contacts.c.contact_id)
    found: dict[SchoolUrn, list[SafeguardingContact]] = {}
    for row in await connection.execute(statement):
        plain = keyring.open(bytes(row.sealed), about=_about(row.urn, row.contact_id))
        details = msgspec.json.decode(plain, type=_ContactDetails)
        contact = SafeguardingContact(
            contact_id=row.contact_id,
            urn=SchoolUrn(row.urn),
            role=ContactRole(row.role),
            name=details.name,
            mailbox=details.mailbox,
            telephone=details.telephone,
            mobile=details.mobile,
            confirmed_on=row.confirmed_on,
            trained_on=row.trained_on,
        )
        found.setdefault(contact.urn, []).append(contact)
    return found


# School days


async def replace_days(connection: AsyncConnection, days: Sequence[CalendarDays]) -> None:
    """What a file says of a school year of an authority, or of one school, takes the place of what was known of it."""
    for authority in sorted({each.authority for each in days}):
        # An owner that exists keeps its name.
        await ensure_owners(connection, [(authority_owner(authority), f"Authority {authority}")])
    replaced = {(each.authority, each.urn or "", _school_year(each.first_on)) for each in days}
    for authority, urn, year in sorted(replaced):
        await connection.execute(
            delete(_calendars).where(
                _calendars.c.authority == authority,
                _calendars.c.urn == urn,
                _calendars.c.first_on >= date(year, _SEPTEMBER, 1),
                _calendars.c.first_on < date(year + 1, _SEPTEMBER, 1),
            )
        )
    for each in days:
        values = {
            "authority": each.authority,
            "urn": each.urn or "",
            "kind": each.kind.value,
            "first_on": each.first_on,
            "last_on": each.last_on,
            "owner": authority_owner(each.authority),
        }
        statement = upsert(connection, _calendars).values(values)
        keys = ["authority", "urn", "kind", "first_on"]
        await connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=values))


def _school_year(on: date) -> int:
    return on.year if on.month >= _SEPTEMBER else on.year - 1


async def load_calendars(
    connection: AsyncConnection, establishments: Iterable[Establishment]
) -> dict[SchoolUrn, SchoolCalendar]:
    """The calendar of each establishment: its authority's days, and its own."""
    wanted = {each.urn: each.authority for each in establishments}
    rows = await connection.execute(
        select(_calendars).where(
            _calendars.c.authority.in_(set(wanted.values())),
            or_(_calendars.c.urn == "", _calendars.c.urn.in_(wanted)),
        )
    )
    days = [_days(row) for row in rows]
    return {
        urn: SchoolCalendar(
            [each for each in days if each.authority == authority and each.urn is None],
            [each for each in days if each.urn == urn],
        )
        for urn, authority in wanted.items()
    }


async def load_encompass_directory(
    connection: AsyncConnection, keyring: Keyring, urns: Collection[SchoolUrn]
) -> EncompassDirectory:
    """What is known of the establishments that an incident names."""
    found = await find_establishments(connection, urns)
    return EncompassDirectory(
        establishments=found,
        contacts=await load_contacts(connection, keyring, urns),
        calendars=await load_calendars(connection, found.values()),
    )


# Pupils


async def save_pupil(connection: AsyncConnection, keyring: Keyring, pupil: Pupil) -> None:
    """Add or replace a child on an authority's list of pupils."""
    owner = authority_owner(pupil.authority)
    await ensure_owners(connection, [(owner, f"Authority {pupil.authority}")])
    values = {
        "authority": pupil.authority,
        "pupil_id": pupil.pupil_id,
        "owner": owner,
        "sealed": keyring.seal(msgspec.json.encode(pupil), about=f"pupil/{pupil.authority}/{pupil.pupil_id}"),
    }
    statement = upsert(connection, _pupils).values(values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["authority", "pupil_id"], set_=values))
    is_this = and_(_pupil_blocks.c.authority == pupil.authority, _pupil_blocks.c.pupil_id == pupil.pupil_id)
    await connection.execute(delete(_pupil_blocks).where(is_this))
    blocks = [
        {
            "block": index_pupil_block(keyring, block),
            "authority": pupil.authority,
            "pupil_id": pupil.pupil_id,
            "owner": owner,
        }
        for block in pupil_blocks(pupil)
    ]
    await insert_rows(connection, _pupil_blocks, blocks)


async def find_pupils(
    connection: AsyncConnection, keyring: Keyring, blocks: Collection[str], *, rows_max: int
) -> dict[str, list[Pupil]]:
    """Pupils by the blocks under which they are found."""
    hashed = {index_pupil_block(keyring, block): block for block in blocks}
    statement = (
        select(_pupil_blocks.c.block, _pupils.c.authority, _pupils.c.pupil_id, _pupils.c.sealed)
        .join(
            _pupils,
            and_(_pupils.c.authority == _pupil_blocks.c.authority, _pupils.c.pupil_id == _pupil_blocks.c.pupil_id),
        )
        .where(_pupil_blocks.c.block.in_(sorted(hashed)))
        .order_by(_pupil_blocks.c.block, _pupils.c.authority, _pupils.c.pupil_id)
        .limit(rows_max)
    )
    opened: dict[tuple[str, str], Pupil] = {}
    found: dict[str, list[Pupil]] = {}
    for row in await connection.execute(statement):
        key = (row.authority, row.pupil_id)
        if key not in opened:
            plain = keyring.open(bytes(row.sealed), about=f"pupil/{row.authority}/{row.pupil_id}")
            opened[key] = msgspec.json.decode(plain, type=Pupil)
        found.setdefault(hashed[bytes(row.block)], []).append(opened[key])
    return found


def index_pupil_block(keyring: Keyring, block: str) -> bytes:
    """The keyed hash of a block. A key of its own: nothing here meets the health side."""
    return keyring.index("pupil-block", block)


def _about(urn: str, contact_id: str) -> str:
    return f"contact/{urn}/{contact_id}"


def _days(row: Any) -> CalendarDays:
    return CalendarDays(
        authority=row.authority,
        urn=SchoolUrn(row.urn) if row.urn else None,
        kind=DayKind(row.kind),
        first_on=row.first_on,
        last_on=row.last_on,
    )


def _establishment(row: Any) -> Establishment:
    return Establishment(
        urn=SchoolUrn(row.urn),
        name=row.name,
        kind=EstablishmentKind(row.kind),
        authority=row.authority,
        status=EstablishmentStatus(row.status),
        merged_into=SchoolUrn(row.merged_into) if row.merged_into else None,
        starts_at_local=time.fromisoformat(row.starts_at_local) if row.starts_at_local else None,
        office_telephone=row.office_telephone,
    )
