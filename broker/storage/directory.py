"""Authorities, workers, sites and their secrets."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import exists, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.patterns import PatternRule
from broker.keyring import Keyring
from broker.storage.database import upsert
from broker.storage.patterns import load_rules_on
from broker.storage.rows import insert_rows
from broker.storage.tables import (
    AuthorityRow,
    EstablishmentRow,
    ListLanding,
    ListUpload,
    LoginRow,
    Owner,
    SiteRow,
    Visit,
    WorkerRow,
    table,
)
from schemas.attendance import Event
from schemas.child_list import ListFreshness
from schemas.directory import Authority, CareSetting, KeptAnswer, Role, Sender, Site, Worker
from schemas.identifiers import OwnerId, authority_owner, organisation_owner

_owners, _authorities, _sites, _workers = table(Owner), table(AuthorityRow), table(SiteRow), table(WorkerRow)
_uploads, _landings, _logins = table(ListUpload), table(ListLanding), table(LoginRow)
_SECRETS_OF = {"authority": _authorities, "organisation": _sites, "establishment": table(EstablishmentRow)}


class RecipientSecrets(msgspec.Struct, frozen=True, kw_only=True):
    """What only the broker and one recipient know."""

    webhook: bytes = b""
    """Signs the webhook (Standard Webhooks)."""
    topic: bytes = b""
    """Encrypts the recipient's values on Kafka topics; 32 bytes."""
    reply: bytes = b""
    """The bearer token under which a department's FHIR server takes replies; empty: it asks for none."""


class Directory(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a batch needs to route: read together, kept for a moment."""

    authorities: Mapping[str, Authority]
    sites: Mapping[str, Site]
    freshness: Sequence[ListFreshness]
    reachable_workers: frozenset[tuple[str, str]]
    """(authority, worker code) of the workers who can sign in."""
    patterns: Mapping[str, tuple[PatternRule, ...]] = msgspec.field(default_factory=dict)
    """By authority: the rules for patterns that it has switched on."""


async def ensure_owners(connection: AsyncConnection, owners: Iterable[tuple[OwnerId, str]]) -> None:
    """Make sure the owners exist; an owner that exists keeps its name."""
    rows = [{"id": owner, "name": name} for owner, name in sorted(set(owners))]
    await insert_rows(connection, _owners, rows, ignore_existing=True)


async def find_owner_name(connection: AsyncConnection, owner: str) -> str | None:
    """What an owner is called, or None when it is unknown."""
    name: str | None = (
        await connection.execute(select(_owners.c.name).where(_owners.c.id == owner))
    ).scalar_one_or_none()
    return name


async def load_directory(connection: AsyncConnection) -> Directory:
    """Read the whole directory; secrets stay sealed."""
    authorities = {row.code: _authority(row) for row in await connection.execute(select(_authorities))}
    sites = {row.code: _site(row) for row in await connection.execute(select(_sites))}
    confirmed = dict(
        (
            await connection.execute(
                select(_uploads.c.authority, func.max(_uploads.c.uploaded_at))
                .where(_uploads.c.id.not_in(select(_landings.c.upload_id)))
                .group_by(_uploads.c.authority)
            )
        ).all()
    )
    reachable = await connection.execute(
        select(_logins.c.owner, _logins.c.worker).where(
            _logins.c.role == Role.SOCIAL_WORKER.value, _logins.c.worker.is_not(None), _logins.c.disabled_at.is_(None)
        )
    )
    return Directory(
        authorities=authorities,
        sites=sites,
        freshness=[ListFreshness(authority=code, confirmed_at=confirmed.get(code)) for code in authorities],
        reachable_workers=frozenset((row.owner.removeprefix("authority:"), row.worker) for row in reachable),
        patterns=await load_rules_on(connection),
    )


async def find_duty_desks(connection: AsyncConnection) -> frozenset[str]:
    """The owners that have somebody on duty who can sign in."""
    statement = select(_logins.c.owner).where(_logins.c.role == Role.DUTY_WORKER.value, _logins.c.disabled_at.is_(None))
    return frozenset((await connection.execute(statement)).scalars())


async def save_authority(
    connection: AsyncConnection, keyring: Keyring, authority: Authority, secrets: RecipientSecrets
) -> None:
    """Add or replace an authority."""
    owner = authority_owner(authority.code)
    await ensure_owners(connection, [(owner, authority.name)])
    values = {
        **msgspec.structs.asdict(authority),
        "owner": owner,
        "sealed": keyring.seal(msgspec.json.encode(secrets), about=f"secrets/{owner}"),
    }
    statement = upsert(connection, _authorities).values(values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["code"], set_=values))


async def save_list_credential(connection: AsyncConnection, code: str, digest: bytes) -> None:
    """Keep the keyed digest of the credential with which an authority's system sends its list."""
    statement = update(_authorities).where(_authorities.c.code == code).values(list_credential_digest=digest)
    await connection.execute(statement)


async def find_list_credential(connection: AsyncConnection, code: str) -> bytes | None:
    """The keyed digest of it; None when the authority is unknown or has none."""
    statement = select(_authorities.c.list_credential_digest).where(_authorities.c.code == code)
    digest = (await connection.execute(statement)).scalar_one_or_none()
    return None if digest is None else bytes(digest)


async def save_worker(connection: AsyncConnection, keyring: Keyring, worker: Worker) -> None:
    """Add or replace a worker."""
    owner = authority_owner(worker.authority)
    sealed = keyring.seal(worker.name.encode(), about=f"worker/{owner}/{worker.code}")
    values = {
        "authority": worker.authority,
        "code": worker.code,
        "owner": owner,
        "team": worker.team,
        "sealed": sealed,
    }
    statement = upsert(connection, _workers).values(values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["authority", "code"], set_=values))


async def save_site(
    connection: AsyncConnection, keyring: Keyring, site: Site, credential_digest: bytes, secrets: RecipientSecrets
) -> None:
    """Add or replace a site that sends."""
    owner = organisation_owner(site.code)
    await ensure_owners(connection, [(owner, site.name)])
    values = {
        **msgspec.structs.asdict(site),
        "authorities": " ".join(site.authorities),
        "peers": " ".join(site.peers),
        "not_understood": site.not_understood.value,
        "care_setting": site.care_setting.value,
        "registers_by": " ".join(event.value for event in site.registers_by),
        "owner": owner,
        "credential_digest": credential_digest,
        "sealed": keyring.seal(msgspec.json.encode(secrets), about=f"secrets/{owner}"),
    }
    statement = upsert(connection, _sites).values(values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["code"], set_=values))


async def load_senders(connection: AsyncConnection) -> tuple[Sender, ...]:
    """Every permitted sender, for the snapshot."""
    rows = await connection.execute(select(_sites).order_by(_sites.c.code))
    return tuple(
        Sender(
            code=row.code,
            credential_digest=bytes(row.credential_digest),
            peers=tuple(row.peers.split()),
            not_understood=KeptAnswer(row.not_understood),
        )
        for row in rows
    )


async def load_secrets(connection: AsyncConnection, keyring: Keyring, owner: str) -> RecipientSecrets:
    """What the broker shares with one recipient; empty when the recipient is unknown."""
    source = _SECRETS_OF[owner.partition(":")[0]]
    sealed = (await connection.execute(select(source.c.sealed).where(source.c.owner == owner))).scalar_one_or_none()
    if sealed is None:
        return RecipientSecrets()
    return msgspec.json.decode(keyring.open(bytes(sealed), about=f"secrets/{owner}"), type=RecipientSecrets)


async def load_worker_names(connection: AsyncConnection, keyring: Keyring, owner: str) -> dict[str, str]:
    """Worker code to name, for one authority's own pages."""
    rows = await connection.execute(select(_workers).where(_workers.c.owner == owner))
    return {row.code: keyring.open(bytes(row.sealed), about=f"worker/{owner}/{row.code}").decode() for row in rows}


async def find_authority(connection: AsyncConnection, code: str) -> Authority | None:
    """One authority, or None."""
    row = (await connection.execute(select(_authorities).where(_authorities.c.code == code))).one_or_none()
    return None if row is None else _authority(row)


async def find_authorities_named(connection: AsyncConnection, names: Collection[str]) -> dict[str, Authority]:
    """The authorities of these names, by name; a name that two bear is left out."""
    found: dict[str, list[Authority]] = {}
    for row in await connection.execute(select(_authorities).where(_authorities.c.name.in_(names))):
        found.setdefault(row.name, []).append(_authority(row))
    return {name: bearers[0] for name, bearers in found.items() if len(bearers) == 1}


async def find_site(connection: AsyncConnection, code: str) -> Site | None:
    """One sending site, or None."""
    row = (await connection.execute(select(_sites).where(_sites.c.code == code))).one_or_none()
    return None if row is None else _site(row)


async def list_not_classified(connection: AsyncConnection, *, rows_max: int) -> list[Site]:
    """Sites whose care setting nobody has named yet; those of whom only messages are known last.

    Another producer may bring messages of senders that are not in the directory: they notify, too.
    """
    unsaid = select(_sites).where(_sites.c.care_setting == CareSetting.NOT_CLASSIFIED.value)
    found = [_site(row) for row in await connection.execute(unsaid.order_by(_sites.c.code).limit(rows_max))]
    begins = organisation_owner("")
    unknown = (
        select(_owners.c.id)
        .where(_owners.c.id.startswith(begins, autoescape=True), ~exists().where(_sites.c.owner == _owners.c.id))
        .where(exists().where(table(Visit).c.owner == _owners.c.id))
        .order_by(_owners.c.id)
        .limit(rows_max)
    )
    codes = [row.id.removeprefix(begins) for row in await connection.execute(unknown)]
    return [*found, *(Site(code=code, name="Not in the directory") for code in codes)][:rows_max]


async def find_credential_digest(connection: AsyncConnection, code: str) -> bytes | None:
    """The keyed digest of a site's credential, or None when the site is unknown."""
    found = await connection.execute(select(_sites.c.credential_digest).where(_sites.c.code == code))
    digest = found.scalar_one_or_none()
    return None if digest is None else bytes(digest)


def _authority(row: Any) -> Authority:
    return Authority(
        code=row.code,
        name=row.name,
        office_telephone=row.office_telephone,
        emergency_telephone=row.emergency_telephone,
        webhook_url=row.webhook_url,
        alerts_for_ended_plans=row.alerts_for_ended_plans,
        office_hours=row.office_hours,
    )


def _site(row: Any) -> Site:
    return Site(
        code=row.code,
        name=row.name,
        telephone=row.telephone,
        authorities=tuple(row.authorities.split()),
        reply_host=row.reply_host,
        reply_port=row.reply_port,
        reply_url=row.reply_url,
        replies_for_adults=row.replies_for_adults,
        peers=tuple(row.peers.split()),
        not_understood=KeptAnswer(row.not_understood),
        care_setting=CareSetting(row.care_setting),
        notices_suppressed=row.notices_suppressed,
        registers_by=tuple(Event(event) for event in row.registers_by.split()),
    )
