"""Promises to people, kept by the running product and counted by the independent ledger."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from playwright.async_api import Page, expect

from broker import bootstrap
from broker.storage import outbox
from mock_nhs.department import AdtMessage
from tests import ledger
from tests.e2e.conftest import Pair
from tests.system import ALL_PARTS, SITE, WITHOUT_PAGES, System, open_system, until


def register_listed(system: System) -> AdtMessage:
    """The department registers a child who is on a list today and whose worker can sign in."""
    listed = next(person for person in system.town.people if system.town.authorities_listing(person.nhs_number))
    return system.department.register(listed)


async def test_scenario_a_one_visit_many_messages_one_alert_one_reply(pair: Pair, tmp_path: Path) -> None:
    async with open_system(tmp_path, database_url=pair.database_url, kafka=pair.kafka) as system:
        system.start(*WITHOUT_PAGES)
        await system.until_listening()
        first = register_listed(system)
        await system.ed.offer(first)
        for event, times in (("A04", 2), ("A08", 20), ("A31", 5)):
            for _ in range(times):
                await system.ed.offer(system.department.update(first.visit_number, event))
        assert await system.ed.settle(timeout_s=30)
        books = await system.until_settled()

        authorities = len(system.town.authorities_listing(first.person.nhs_number))
        assert books.alerts_received == authorities
        assert books.replies_received == 1
        assert books.handled == {"alerted": 1, "updated": 27}
        reply = await system.ed.wait_for_reply(first.visit_number, timeout_s=20)
        assert reply.outcome == "match"


async def test_a_backup_of_an_hour_ago_is_restored_and_nothing_is_lost(tmp_path: Path) -> None:
    async with open_system(tmp_path) as system:
        data, backup = tmp_path / "broker", tmp_path / "backup.sqlite"
        system.start(*WITHOUT_PAGES)
        await system.until_listening()
        await system.send_day(100)
        await system.until_settled()
        for part in ("attendances", "dispatch", "jobs"):
            system.kill(part, signal.SIGTERM)
        _copy_database(data / "broker.sqlite", backup)

        system.start("attendances", "dispatch", "jobs")
        await system.send_day(200)
        before = await system.until_settled()
        for part in ("attendances", "dispatch", "jobs"):
            system.kill(part, signal.SIGTERM)
        for name in ("broker.sqlite", "broker.sqlite-wal", "broker.sqlite-shm"):
            (data / name).unlink(missing_ok=True)
        _copy_database(backup, data / "broker.sqlite")

        system.start("attendances", "dispatch", "jobs")
        await until(lambda: _is_caught_up(system), limit_s=30, what="catching up")
        after = await ledger.reckon(system.sources())
        # An alert raised again says when it was raised: then. That is all in which a repeat may differ here.
        assert set(after.problems) <= {"a repeated alert differs from the first"}
        assert (after.log_records, after.handled) == (before.log_records, before.handled)
        assert after.alerts == before.alerts
        # What was sent since the backup is sent again, under the same keys: recognised, not doubled.
        assert after.alerts_received == before.alerts_received
        assert after.alerts_repeated > 0


def _copy_database(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as opened, closing(sqlite3.connect(target)) as copied:
        opened.backup(copied)


async def _is_caught_up(system: System) -> bool:
    topic, _ = await system.count()
    database = bootstrap.open_database(system.settings)
    async with database.reading() as connection:
        states = await outbox.count_states(connection)
    await database.close()
    return topic.waiting == 0 and set(states) == {"sent"}


async def test_a_worker_acknowledges_and_the_clinician_sees_it(tmp_path: Path, page: Page) -> None:
    async with open_system(tmp_path) as system:
        system.start(*ALL_PARTS)
        await system.until_listening()
        await system.until_pages()
        message = register_listed(system)
        await system.ed.offer(message)
        assert await system.ed.settle(timeout_s=30)
        await system.until_settled()
        url = f"http://127.0.0.1:{system.http_port}"
        authority = min(system.town.authorities_listing(message.person.nhs_number))
        duty = next(
            worker for worker in system.town.workers if worker.authority == authority and worker.role == "duty_worker"
        )

        await _sign_in(page, url, duty.login, duty.password)
        await page.get_by_role("link", name=message.person.family_name).first.click()
        await expect(page.get_by_role("heading", name="Why you get this alert")).to_be_visible()
        await page.get_by_role("button", name="Acknowledge this alert").click()
        await expect(page.get_by_text("Acknowledged by").first).to_be_visible()
        _, alerts = await system.count()
        assert alerts.acknowledged == 1

        await page.get_by_role("button", name="Sign out").click()
        clinician = next(each for each in system.town.clinicians if each.organisation == "RZ1")
        await _sign_in(page, url, clinician.login, clinician.password)
        await expect(page.get_by_text(message.visit_number).first).to_be_visible()
        await expect(page.get_by_text("acknowledged", exact=False).first).to_be_visible()
        assert message.person.family_name not in await page.content()


async def _sign_in(page: Page, url: str, login: str, password: str) -> None:
    await page.goto(f"{url}/sign-in")
    await page.get_by_label("Login").fill(login)
    await page.get_by_label("Password").fill(password)
    await page.get_by_role("button", name="Sign in").click()


async def test_a_sender_with_a_wrong_credential_is_refused_and_nothing_is_kept(tmp_path: Path) -> None:
    async with open_system(tmp_path) as system:
        system.start("intake")
        await system.until_listening()
        genuine = register_listed(system)
        [credential] = [site.credential for site in system.town.sites if site.code == SITE]
        stolen = genuine.body.replace(credential.encode(), b"guessed")
        assert stolen != genuine.body
        await system.ed.offer(replace(genuine, body=stolen))
        assert await system.ed.settle(timeout_s=20)
        assert dict(system.ed.answers) == {"AR": 1}
        topic, _ = await system.count()
        assert topic.offered == 0
