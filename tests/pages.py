"""The pages of a small world, served for tests, and people who sign in to them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from fastapi import FastAPI
from sqlalchemy import select

from broker.settings import Settings
from broker.storage import directory, logins
from broker.storage.tables import AuditRow, table
from broker.web import auth
from broker.web.app import create_app
from broker.web.operations import PartShown, Status, compose_status
from broker.web.pages import PageLimits
from schemas.directory import Person, Role, Site
from schemas.identifiers import (
    BROKER_OWNER,
    OwnerId,
    SchoolUrn,
    authority_owner,
    establishment_owner,
    force_owner,
    organisation_owner,
)
from tests.factories import (
    PASSWORD,
    make_settings,
    serve_app,
    store_login,
)
from tests.world import World, open_world

ASH, BO, DEE, KIT = "ash@706.example.org", "bo@706.example.org", "dee@706.example.org", "kit@707.example.org"
NIA, OLU, PAT = "nia@rz1.example.org", "olu@rz2.example.org", "pat@operations.example.org"
LIZ = "liz@706.example.org"
SAM, COR, HAL = "sam@900001.example.org", "cor@zf1.example.org", "hal@706.example.org"
LOGINS = {
    Role.SOCIAL_WORKER: ASH,
    Role.DUTY_WORKER: DEE,
    Role.CLINICIAN: NIA,
    Role.OPERATOR: PAT,
    Role.LIST_OFFICER: LIZ,
    Role.SAFEGUARDING_LEAD: SAM,
    Role.ENCOMPASS_COORDINATOR: COR,
    Role.ENCOMPASS_HUB: HAL,
}
NORTHFOLD, EASTMERE, FENWICK = authority_owner("706"), authority_owner("707"), organisation_owner("RZ1")
MILL_LANE, FORCE = establishment_owner(SchoolUrn("900001")), force_owner("ZF1")
HOSPITAL = Site(code="RZ1", name="Fenwick General Hospital", telephone="01632 960301")
TWIN = "L9,9990000034,Twin,Sam,2016-01-01,ZZ99 1AA,child_protection_plan,2025-01-01,,W1,North"
SEEN = """
(() => {
  const problems = [];
  const luminance = colour => {
    const [r, g, b] = colour.match(/[0-9.]+/g).slice(0, 3).map(Number).map(c => c / 255)
      .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  for (const element of document.querySelectorAll('main *')) {
    const text = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!text || !element.checkVisibility()) continue;
    const pair = [luminance(getComputedStyle(element).color), luminance(ground(element))].sort((a, b) => b - a);
    if ((pair[0] + 0.05) / (pair[1] + 0.05) < 4.5) problems.push('faint: ' + element.textContent.trim().slice(0, 40));
  }
  for (const field of document.querySelectorAll('input:not([type=hidden]), select, textarea'))
    if (!field.labels.length) problems.push('unnamed: ' + field.name);
  for (const control of document.querySelectorAll('main button, main summary, main input:not([type=hidden]), select'))
    if (control.checkVisibility() && control.getBoundingClientRect().height < 44)
      problems.push('small: ' + (control.textContent || control.name).trim().slice(0, 40));
  if (document.documentElement.scrollWidth > innerWidth) problems.push('wider than the screen');
  if (document.querySelectorAll('h1').length !== 1) problems.push('headings');
  return problems;
})()
"""
"""What a tired reader stumbles over on a page: faint words, fields without a name, small controls, words cut off."""
FORM_TOKEN = re.compile(r'name="form_token" value="([0-9a-f]{64})"')


class Client(httpx.AsyncClient):
    """A browser without scripts: keeps cookies, follows nothing by itself."""

    def __init__(self, address: str) -> None:
        super().__init__(base_url=address, trust_env=False, verify=False, timeout=20)
        self.form_token = ""

    async def sign_in(self, login: str, password: str = "", way_back: str = "") -> httpx.Response:
        """Sign in by the form."""
        form = await self.get("/sign-in")
        secret = FORM_TOKEN.search(form.text)
        assert secret is not None
        fields = {"form_token": secret[1], "login": login, "password": password or PASSWORD, "next": way_back}
        answer = await self.post("/sign-in", data=fields)
        if answer.status_code == 303:
            self.form_token = auth.derive_form_token(self.cookies["session"])
        return answer

    async def send_form(self, path: str, **fields: str) -> httpx.Response:
        """Send a form of this session."""
        return await self.post(path, data={"form_token": self.form_token, **fields})


@dataclass
class Pages:
    """The pages of a small world, served."""

    world: World
    settings: Settings
    app: FastAPI
    address: str

    def client(self) -> Client:
        """Somebody who is not signed in."""
        return Client(self.address)

    @asynccontextmanager
    async def signed_in(self, login: str) -> AsyncIterator[Client]:
        """Somebody who is signed in."""
        async with self.client() as client:
            assert (await client.sign_in(login)).status_code == 303
            yield client

    async def alert_of(self, login: str, path: str = "/inbox") -> str:
        """The address of the first alert on a person's list."""
        async with self.signed_in(login) as client:
            found = re.search(r'href="(/alerts/[0-9a-f]{32})"', (await client.get(path)).text)
            assert found is not None
            return found[1]

    async def load_person(self, login: str) -> Person:
        """Who a login is."""
        async with self.world.database.reading() as connection:
            found = await logins.find_login(connection, self.world.keyring, login)
        assert found is not None
        return found.person

    async def acts(self, owner: str) -> list[tuple[str, str, str]]:
        """What is on record for an owner: (actor, action, subject)."""
        async with self.world.database.reading() as connection:
            rows = await connection.execute(
                select(table(AuditRow)).where(table(AuditRow).c.owner == owner).order_by(table(AuditRow).c.sequence)
            )
            return [(row.actor, row.action, row.subject) for row in rows]


READY = (PartShown(name="intake", state="running", silent_s=0.4, ready=True),)
SILENT = (PartShown(name="attendances", state="not ready", silent_s=19.2, ready=False),)


async def add_people(world: World) -> None:
    """Somebody of every role, with PASSWORD."""
    async with world.database.writing() as connection:
        owners = ((BROKER_OWNER, "Operators of the broker"), (MILL_LANE, "Mill Lane School"), (FORCE, "Sampleshire"))
        await directory.ensure_owners(connection, owners)
    people: tuple[tuple[str, Role, OwnerId, str | None], ...] = (
        (ASH, Role.SOCIAL_WORKER, NORTHFOLD, "W1"),
        (BO, Role.SOCIAL_WORKER, NORTHFOLD, "W2"),
        (DEE, Role.DUTY_WORKER, NORTHFOLD, None),
        (KIT, Role.SOCIAL_WORKER, EASTMERE, "W7"),
        (NIA, Role.CLINICIAN, FENWICK, None),
        (OLU, Role.CLINICIAN, organisation_owner("RZ2"), None),
        (LIZ, Role.LIST_OFFICER, NORTHFOLD, None),
        (PAT, Role.OPERATOR, BROKER_OWNER, None),
        (SAM, Role.SAFEGUARDING_LEAD, MILL_LANE, "A1"),
        (COR, Role.ENCOMPASS_COORDINATOR, FORCE, None),
        (HAL, Role.ENCOMPASS_HUB, NORTHFOLD, None),
    )
    for login, role, owner, worker in people:
        await store_login(world.database, world.keyring, login, role, owner, worker=worker)


@asynccontextmanager
async def open_pages(
    url: str,
    data_dir: Path,
    *,
    limits: PageLimits | None = None,
    parts: tuple[PartShown, ...] = READY,
    **changes: object,
) -> AsyncIterator[Pages]:
    async with open_world(url, data_dir) as world:
        await add_people(world)
        settings = make_settings(data_dir, **changes)

        async def ask_status() -> Status:
            return await compose_status(world.database, parts)

        app = create_app(
            database=world.database,
            keyring=world.keyring,
            clock=world.clock,
            settings=settings,
            rules=world.rules,
            status=ask_status,
            limits=limits,
        )
        async with serve_app(app) as address:
            yield Pages(world, settings, app, address)
