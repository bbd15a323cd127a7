"""The one way in for the directory: authorities, workers, clinicians and the sites that send.

Secrets that a file does not give are made here and shown once, in the report. Afterwards nobody can read them.
"""

from __future__ import annotations

import base64
import os
import secrets as random_secrets
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec
from argon2 import PasswordHasher
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.child_list_csv import (
    AuthorityLine,
    ClinicianLine,
    RowProblem,
    SiteLine,
    WorkerLine,
    read_authorities,
    read_clinicians,
    read_sites,
    read_workers,
)
from adapters.force_csv import ForceLine, PersonLine, read_encompass_people, read_forces
from adapters.school_csv import read_pupils, read_safeguarding_contacts, read_schools, read_term_dates
from broker.keyring import KEY_BYTES, Keyring
from broker.ports import Clock
from broker.senders import digest_credential, write_snapshot
from broker.storage import audit, directory, establishments, logins, receipts
from broker.storage.audit import Act
from broker.storage.database import Database
from broker.storage.directory import RecipientSecrets
from broker.storage.logins import NOWHERE
from schemas.directory import Person, Reach, Role
from schemas.encompass import CalendarDays, Establishment, Pupil, SafeguardingContact
from schemas.identifiers import BROKER_OWNER, SchoolUrn, authority_owner, establishment_owner, organisation_owner

Line = TypeVar("Line")
PASSWORD_BYTES = 15
MAKE_ONE = "new"
"""Instead of a credential: one is made and shown once."""


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """A secret that was made: shown once."""

    to: str
    what: str
    secret: str


class ImportReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a file."""

    loaded: int
    refused: tuple[RowProblem, ...]
    issued: tuple[Issued, ...]


class _Refused(Exception):
    def __init__(self, field: str, advice: str) -> None:
        super().__init__(field)
        self.field = field
        self.advice = advice


class DirectoryUpload:
    """Loads directory files; each file is one transaction, each bad row costs itself alone."""

    def __init__(
        self, database: Database, keyring: Keyring, clock: Clock, *, demo_passwords: bool, actor: str, dry_run: bool
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._clock = clock
        self._demo_passwords = demo_passwords
        self._actor = actor
        self._dry_run = dry_run
        # Argon2's cost is for real passwords; those of a demonstration stand in its own files.
        self._hasher = PasswordHasher(time_cost=1, memory_cost=8192) if demo_passwords else PasswordHasher()

    async def load_authorities(self, file: bytes) -> ImportReport:
        """Authorities; missing secrets are made and shown once."""
        return await self._load(read_authorities(file), self._save_authority, "authorities.imported")

    async def load_workers(self, file: bytes) -> ImportReport:
        """Social workers and duty workers, with logins where the file names one."""
        return await self._load(read_workers(file), self._save_worker, "workers.imported")

    async def load_clinicians(self, file: bytes) -> ImportReport:
        """Clinicians' logins."""
        return await self._load(read_clinicians(file), self._save_clinician, "clinicians.imported")

    async def load_sites(self, file: bytes, snapshot: Path) -> ImportReport:
        """Sites that send; afterwards the senders' snapshot is written anew for intake."""
        report = await self._load(read_sites(file), self._save_site, "sites.imported")
        if not self._dry_run:
            async with self._database.reading() as connection:
                write_snapshot(snapshot, await directory.load_senders(connection))
        return report

    async def load_schools(self, file: bytes) -> ImportReport:
        """Educational establishments."""
        return await self._load(read_schools(file), self._save_establishment, "schools.imported")

    async def load_safeguarding_contacts(self, file: bytes) -> ImportReport:
        """Who at an establishment is told."""
        return await self._load(read_safeguarding_contacts(file), self._save_contact, "safeguarding_contacts.imported")

    async def load_pupils(self, file: bytes) -> ImportReport:
        """Authorities' lists of pupils."""
        return await self._load(read_pupils(file), self._save_pupil, "pupils.imported")

    async def load_term_dates(self, file: bytes) -> ImportReport:
        """School days. A school year of an authority or a school that the file names is replaced as a whole."""
        days: list[CalendarDays] = []

        async def collect(connection: AsyncConnection, each: CalendarDays) -> list[Issued]:
            days.append(each)
            return []

        async def replace(connection: AsyncConnection) -> None:
            await establishments.replace_days(connection, days)

        return await self._load(read_term_dates(file), collect, "term_dates.imported", finish=replace)

    async def load_forces(self, file: bytes, snapshot: Path) -> ImportReport:
        """Police forces; afterwards the snapshot of the door for incidents is written anew."""
        report = await self._load(read_forces(file), self._save_force, "forces.imported")
        if not self._dry_run:
            async with self._database.reading() as connection:
                write_snapshot(snapshot, await establishments.load_forces_as_senders(connection))
        return report

    async def load_encompass_people(self, file: bytes) -> ImportReport:
        """Safeguarding leads and deputies, and forces' coordinators, who sign in."""
        return await self._load(read_encompass_people(file), self._save_encompass_person, "encompass_people.imported")

    async def _load(
        self,
        rows: Iterable[tuple[int, Line | RowProblem]],
        save: Callable[[AsyncConnection, Line], Awaitable[list[Issued]]],
        action: str,
        *,
        finish: Callable[[AsyncConnection], Awaitable[None]] | None = None,
    ) -> ImportReport:
        loaded, refused, issued = 0, [], []
        async with self._database.writing() as connection:
            await directory.ensure_owners(connection, [(BROKER_OWNER, "Operators of the broker")])
            for number, row in rows:
                if isinstance(row, RowProblem):
                    refused.append(row)
                    continue
                try:
                    issued += await save(connection, row)
                    loaded += 1
                except _Refused as problem:
                    refused.append(RowProblem(row=number, field=problem.field, advice=problem.advice))
            if finish is not None:
                await finish(connection)
            act = Act(owner=BROKER_OWNER, actor=self._actor, action=action, subject=str(loaded))
            await audit.record_acts(connection, [act], self._clock.now())
            if self._dry_run:
                await connection.rollback()
        return ImportReport(loaded=loaded, refused=tuple(refused), issued=() if self._dry_run else tuple(issued))

    async def _save_authority(self, connection: AsyncConnection, line: AuthorityLine) -> list[Issued]:
        owner = authority_owner(line.authority.code)
        issued: list[Issued] = []
        stored = await directory.load_secrets(connection, self._keyring, owner)
        secrets = RecipientSecrets(
            webhook=_secret(line.webhook_secret, stored.webhook, issued, owner, "webhook_secret"),
            topic=_secret(line.topic_secret, stored.topic, issued, owner, "topic_secret"),
        )
        await directory.save_authority(connection, self._keyring, line.authority, secrets)
        if line.list_credential:
            credential = line.list_credential
            if credential == MAKE_ONE:
                credential = random_secrets.token_hex(20)
                issued.append(Issued(to=owner, what="list_credential", secret=credential))
            digest = digest_credential(self._keyring, owner, credential.encode())
            await directory.save_list_credential(connection, line.authority.code, digest)
        return issued

    async def _save_site(self, connection: AsyncConnection, line: SiteLine) -> list[Issued]:
        owner = organisation_owner(line.site.code)
        issued: list[Issued] = []
        stored = await directory.load_secrets(connection, self._keyring, owner)
        topic = _secret(line.topic_secret, stored.topic, issued, owner, "topic_secret")
        digest = await directory.find_credential_digest(connection, line.site.code)
        if line.credential or digest is None:
            credential = line.credential or random_secrets.token_hex(20)
            if not line.credential:
                issued.append(Issued(to=owner, what="credential (MSH-8)", secret=credential))
            digest = digest_credential(self._keyring, line.site.code, credential.encode())
        secrets = RecipientSecrets(topic=topic, reply=_reply_credential(line, stored.reply))
        await directory.save_site(connection, self._keyring, line.site, digest, secrets)
        return issued

    async def _save_worker(self, connection: AsyncConnection, line: WorkerLine) -> list[Issued]:
        if await directory.find_authority(connection, line.worker.authority) is None:
            raise _Refused("authority", "is not in the directory; import authorities first")
        self._check_password(line.password)
        await directory.save_worker(connection, self._keyring, line.worker)
        if not line.login:
            return []
        person = Person(
            login=line.login,
            name=line.worker.name,
            role=line.role,
            owner=authority_owner(line.worker.authority),
            worker=line.worker.code if line.role is Role.SOCIAL_WORKER else None,
        )
        return await self._save_login(connection, person, line.password, line.reach)

    async def _save_clinician(self, connection: AsyncConnection, line: ClinicianLine) -> list[Issued]:
        if await directory.find_site(connection, line.organisation) is None:
            raise _Refused("organisation", "is not in the directory; import sites first")
        self._check_password(line.password)
        person = Person(
            login=line.login, name=line.name, role=Role.CLINICIAN, owner=organisation_owner(line.organisation)
        )
        return await self._save_login(connection, person, line.password)

    async def _save_establishment(self, connection: AsyncConnection, school: Establishment) -> list[Issued]:
        owner = establishment_owner(school.urn)
        issued: list[Issued] = []
        stored = await directory.load_secrets(connection, self._keyring, owner)
        secrets = RecipientSecrets(topic=_secret(None, stored.topic, issued, owner, "topic_secret"))
        await establishments.save_establishment(connection, self._keyring, school, secrets)
        return issued

    async def _save_contact(self, connection: AsyncConnection, contact: SafeguardingContact) -> list[Issued]:
        if not await establishments.find_establishments(connection, [contact.urn]):
            raise _Refused("urn", "is not in the directory; import schools first")
        owner, reach = establishment_owner(contact.urn), Reach(mailbox=contact.mailbox, mobile=contact.mobile)
        for each in (await establishments.load_contacts(connection, self._keyring, [contact.urn])).get(contact.urn, ()):
            if each.contact_id == contact.contact_id:
                before = Reach(mailbox=each.mailbox, mobile=each.mobile)
                await receipts.forget_unreached(connection, owner, contact.contact_id, before, reach)
        await establishments.save_contact(connection, self._keyring, contact)
        return []

    async def _save_pupil(self, connection: AsyncConnection, pupil: Pupil) -> list[Issued]:
        await establishments.save_pupil(connection, self._keyring, pupil)
        return []

    async def _save_force(self, connection: AsyncConnection, line: ForceLine) -> list[Issued]:
        issued: list[Issued] = []
        code = line.force.code
        digest = await establishments.find_force_digest(connection, code)
        if line.credential or digest is None:
            credential = line.credential or random_secrets.token_hex(20)
            if not line.credential:
                issued.append(Issued(to=f"force:{code}", what="credential", secret=credential))
            digest = digest_credential(self._keyring, code, credential.encode())
        await establishments.save_force(connection, line.force, digest)
        return issued

    async def _save_encompass_person(self, connection: AsyncConnection, line: PersonLine) -> list[Issued]:
        _, _, code = line.owner.partition(":")
        if line.role is Role.ENCOMPASS_COORDINATOR:
            if await establishments.find_force(connection, code) is None:
                raise _Refused("at", "is not in the directory; import forces first")
        elif line.role is Role.ENCOMPASS_HUB:
            if await directory.find_authority(connection, code) is None:
                raise _Refused("at", "is not in the directory; import authorities first")
        else:
            contacts = await establishments.load_contacts(connection, self._keyring, [SchoolUrn(code)])
            if not any(each.contact_id == line.contact_id for each in contacts.get(SchoolUrn(code), [])):
                raise _Refused("contact_id", "is no contact of this establishment; import safeguarding-contacts first")
        self._check_password(line.password)
        person = Person(login=line.login, name=line.name, role=line.role, owner=line.owner, worker=line.contact_id)
        return await self._save_login(connection, person, line.password, line.reach)

    def _check_password(self, password: str | None) -> None:
        """Called before anything of the row is written: a refused row leaves nothing behind."""
        if password and not self._demo_passwords:
            raise _Refused("password", "is for demonstrations only; leave it empty and one is made and shown once")

    async def _save_login(
        self, connection: AsyncConnection, person: Person, password: str | None, reach: Reach = NOWHERE
    ) -> list[Issued]:
        before = await logins.find_reach(connection, self._keyring, person.owner, person.login)
        await receipts.forget_unreached(connection, person.owner, person.login, before, reach)
        if not password and await logins.has_login(connection, person.login):
            await logins.change_person(connection, self._keyring, person, reach)
            return []
        chosen = password or random_secrets.token_urlsafe(PASSWORD_BYTES)
        await logins.save_login(connection, self._keyring, person, self._hasher.hash(chosen), reach)
        return [] if password else [Issued(to=person.login, what="password", secret=chosen)]


async def make_operator(
    database: Database, keyring: Keyring, clock: Clock, *, login: str, name: str, actor: str
) -> str:
    """Give a person an operator's login; returns its password, which is kept nowhere."""
    password = random_secrets.token_urlsafe(PASSWORD_BYTES)
    person = Person(login=login, name=name, role=Role.OPERATOR, owner=BROKER_OWNER)
    async with database.writing() as connection:
        await directory.ensure_owners(connection, [(BROKER_OWNER, "Operators of the broker")])
        await logins.save_login(connection, keyring, person, PasswordHasher().hash(password))
        act = Act(owner=BROKER_OWNER, actor=actor, action="operator.added", subject=login)
        await audit.record_acts(connection, [act], clock.now())
    return password


def _reply_credential(line: SiteLine, stored: bytes) -> bytes:
    """The department's own: as given or as stored. Nobody keeps one for a server that is no longer named."""
    if line.site.reply_url is None:
        return b""
    return line.reply_credential.encode() if line.reply_credential else stored


def _secret(given: str | None, stored: bytes, issued: list[Issued], owner: str, field: str) -> bytes:
    """The recipient's secret: as given, as stored, or made now and shown once."""
    if given:
        try:
            secret = base64.b64decode(given, validate=True)
        except ValueError as error:
            raise _Refused(field, "must be 32 bytes in base64, or empty") from error
        if len(secret) != KEY_BYTES:
            raise _Refused(field, "must be 32 bytes in base64, or empty")
        return secret
    if stored:
        return stored
    made = os.urandom(KEY_BYTES)
    issued.append(Issued(to=owner, what=field, secret=base64.b64encode(made).decode()))
    return made
