"""The commands for messages in quarantine and for replays, on the embedded log beside a live consumer."""

from __future__ import annotations

import asyncio
import base64
import json
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from typer.testing import CliRunner, Result

from adapters.sqlite_log import SqliteLog, SqliteLogOptions, SqliteLogReader
from broker import cli
from broker.consumers.attendance import AttendanceConsumer
from broker.consumers.loop import ConsumeLoop, LoopOptions
from broker.envelope import HL7V2, enclose
from broker.keyring import Keyring
from broker.storage import audit, ledger
from broker.storage.tables import AuditRow, table
from broker.topics import ATTENDANCES as TOPIC
from broker.topics import ATTENDANCES_GROUP as GROUP
from tests.system import until
from tests.world import CASEY, FIELD_KEYS, INDEX_KEY, World, hl7, open_world

LOST = {"t2": bytes(range(64, 96))}
NASTY = b"MSH|^~\\&|EDIS|RZ1|\rZZZ|\x1b[31mred\x1b[0m\x07\xe2\x80\xae\xe2\x80\x8bCASEY\xc2\x9b2J\r"


def write_keys(keys: dict[str, bytes]) -> str:
    return ",".join(f"{name}:{base64.b64encode(key).decode()}" for name, key in keys.items())


@dataclass
class Site:
    """An installation: a world, its embedded log, and the command line."""

    world: World
    log: SqliteLog
    directory: Path

    async def send(self, *messages: bytes, keys: dict[str, bytes] = FIELD_KEYS) -> None:
        """Put messages on the log as intake does."""
        for message in messages:
            envelope = enclose(
                Keyring(keys, INDEX_KEY),
                message,
                sender="RZ1",
                control_id="",
                said=None,
                content_type=HL7V2,
                at=self.world.clock.now(),
            )
            await self.log.append(TOPIC, key=envelope.key, value=envelope.value, headers=envelope.headers)

    async def drain(self, keys: dict[str, bytes] = FIELD_KEYS) -> ledger.TopicLedger:
        """Run the part that handles attendances until nothing waits."""
        world = self.world
        consumer = AttendanceConsumer(world.database, self.log, Keyring(keys, INDEX_KEY), world.clock, world.rules)
        options = SqliteLogOptions(path=self.directory / "log.sqlite")
        reader = SqliteLogReader(options, topic=TOPIC, group=GROUP, member="one")
        loop = ConsumeLoop(reader, consumer, world.database, world.clock, LoopOptions(group=GROUP, poll_wait_s=0.02))
        running = asyncio.create_task(loop.run())
        try:
            await until(self.is_drained, limit_s=20, what="the end of the log")
        finally:
            loop.stop()
            await running
        counted = await self.count()
        assert counted.balances
        return counted

    async def is_drained(self) -> bool:
        """Whether nothing waits."""
        return not (await self.count()).waiting

    async def count(self) -> ledger.TopicLedger:
        """The first law."""
        async with self.world.database.reading() as connection:
            return await ledger.count_topic(connection, GROUP, TOPIC, await self.log.extents(TOPIC))

    async def told(self) -> tuple[int, int, int]:
        """Alerts, replies and deliveries there ever were."""
        world = self.world
        return len(await world.alerts()), len(await world.replies()), await world.delivery_count()

    async def run(self, *words: str, keys: dict[str, bytes] = FIELD_KEYS) -> Result:
        """One command, as a person gives it, in a thread of this process."""
        settings = {
            "CPIS_ENVIRONMENT": "development",
            "CPIS_DATA_DIR": str(self.directory),
            "CPIS_DATABASE_URL": self.world.database.url,
            "CPIS_FIELD_KEYS": write_keys(keys),
            "CPIS_INDEX_KEY": base64.b64encode(INDEX_KEY).decode(),
            "COLUMNS": "300",
        }
        return await asyncio.to_thread(lambda: CliRunner().invoke(cli.app, list(words), env=settings))

    async def items(self, *words: str) -> list[dict[str, Any]]:
        """What ``quarantine list`` says to a program."""
        listed = await self.run("quarantine", "list", "--json", *words)
        assert listed.exit_code == 0, listed.stderr
        found: list[dict[str, Any]] = json.loads(listed.stdout)
        return found

    async def acts(self, *actions: str) -> list[tuple[str, str]]:
        """(actor, reason) of what was audited."""
        rows = table(AuditRow)
        async with self.world.database.reading() as connection:
            for owner in await audit.list_chains(connection):
                assert await audit.verify_chain(connection, owner) is None
            found = await connection.execute(select(rows).where(rows.c.action.in_(actions)).order_by(rows.c.sequence))
            return [(row.actor, row.reason) for row in found]


@asynccontextmanager
async def open_site(directory: Path, url: str) -> AsyncIterator[Site]:
    async with open_world(url, directory) as world:
        await world.list_children(CASEY)
        log = SqliteLog(SqliteLogOptions(path=directory / "log.sqlite", partitions=2))
        await log.create_topic(TOPIC, 2)
        try:
            yield Site(world, log, directory)
        finally:
            await log.close()


@pytest.fixture
async def site(world_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    """On SQLite and on PostgreSQL."""
    async with open_site(tmp_path, world_url) as opened:
        yield opened


@pytest.fixture
async def small_site(tmp_path: Path) -> AsyncIterator[Site]:
    """Where one engine is enough."""
    async with open_site(tmp_path, f"sqlite+aiosqlite:///{tmp_path / 'broker.sqlite'}") as opened:
        yield opened


async def test_from_quarantine_to_one_alert_and_the_whole_log_again_to_no_other(site: Site) -> None:
    await site.send(hl7(visit="V2", nhs_number="9990000026", patient="K2"))
    await site.send(hl7(), keys=LOST)
    assert (await site.drain()).outcomes == {"no_record": 1, "quarantined": 1}
    [item] = await site.items()
    assert (item["reason"], item["sender"]) == ("sealed_under_an_unknown_key", "RZ1")

    locked = await site.run("quarantine", "replay", item["id"], "--by", "Olive Operator")
    assert (locked.exit_code, "CPIS_FIELD_KEYS" in locked.stdout) == (1, True)
    both = FIELD_KEYS | LOST
    asked = await site.run(
        "quarantine", "replay", "--reason", "sealed_under_an_unknown_key", "--by", "Olive Operator", keys=both
    )
    assert asked.exit_code == 0, asked.stderr
    assert (await site.drain(both)).outcomes == {"no_record": 1, "quarantined": 1, "alerted": 1}
    assert await site.items() == []
    [settled] = await site.items("--all")
    assert settled["decision"] == "replayed"
    assert settled["decided_by"].startswith("Olive Operator (cli:")
    before = await site.told()
    assert before[0] == 1

    again = await site.run("replay", "--topic", TOPIC, "--from", "0", "--by", "Olive Operator", "--json", keys=both)
    assert again.exit_code == 0, again.stderr
    report = json.loads(again.stdout)
    assert (report["appended"], report["were_replays"]) == (2, 1)
    counted = await site.drain(both)
    assert counted.outcomes == {"no_record": 1, "quarantined": 1, "alerted": 1, "updated": 2}
    assert await site.told() == before
    [(actor, _)] = await site.acts("quarantine.replay_asked")
    [(_, why)] = await site.acts("replay.asked")
    assert actor.startswith("Olive Operator (cli:")
    assert why == "from 0 to end"


async def test_showing_a_message_needs_a_name_and_is_audited(small_site: Site) -> None:
    await small_site.send(hl7().replace(b"PID|", b"ZZZ|"))
    await small_site.drain()
    [item] = await small_site.items()
    for name in ("", " ", "x" * 101, "a\x1bb"):
        refused = await small_site.run("quarantine", "show", item["id"], "--by", name)
        assert (refused.exit_code, "--by NAME" in refused.stderr, "CASEY" in refused.stdout) == (2, True, False)
    assert await small_site.acts("quarantine.shown") == []

    shown = await small_site.run("quarantine", "show", item["id"], "--by", "Olive Operator")
    assert shown.exit_code == 0, shown.stderr
    assert "TESTER^CASEY" in shown.stdout
    assert f"reason: {item['reason']}" in shown.stdout
    assert "HL7 v2: segment PID is required and missing" in shown.stdout
    [(actor, _)] = await small_site.acts("quarantine.shown")
    assert actor.startswith("Olive Operator (cli:")

    unknown = await small_site.run("quarantine", "show", "0" * 32, "--by", "Olive Operator")
    assert (unknown.exit_code, len(await small_site.acts("quarantine.shown"))) == (1, 1)


async def test_a_message_cannot_drive_the_terminal_and_comes_out_exactly_as_bytes(
    small_site: Site, tmp_path: Path
) -> None:
    await small_site.send(NASTY)
    await small_site.drain()
    [item] = await small_site.items()
    shown = await small_site.run("quarantine", "show", item["id"], "--by", "Olive")
    assert shown.exit_code == 0, shown.stderr
    for hidden in "\x1b\x07\u202e\u200b\x9b":
        assert hidden not in shown.stdout
    assert "\\x1b[31mred\\x1b[0m\\x07\\u202e\\u200bCASEY\\x9b2J" in shown.stdout

    file = tmp_path / "message.hl7"
    command = ("quarantine", "show", item["id"], "--by", "Olive", "--raw", str(file))
    written = await small_site.run(*command)
    assert (written.exit_code, file.read_bytes()) == (0, NASTY)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "red" not in written.stdout.replace(str(file), "")
    again = await small_site.run(*command)
    assert (again.exit_code, "must not exist" in again.stderr) == (1, True)


async def test_the_list_shows_nothing_of_anybody(small_site: Site) -> None:
    await small_site.send(hl7().replace(b"PID|", b"ZZZ|"), b"not HL7 CASEY 9990000018")
    await small_site.drain()
    for words in ((), ("--all",), ("--json",)):
        listed = await small_site.run("quarantine", "list", *words)
        assert listed.exit_code == 0, listed.stderr
        assert not any(value in listed.stdout for value in ("CASEY", "9990000018", "TESTER", "K12345"))
        assert all(word in listed.stdout for word in ("no_pid", "RZ1", "operators"))
    # The world's clock stands in February: by the clock of the command both are long past their limit.
    assert {item["is_overdue"] for item in await small_site.items()} == {True}


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("quarantine", "replay", "--by", "Olive"), "choose the items"),
        (("quarantine", "replay", "abc", "--all", "--by", "Olive"), "choose the items"),
        (("quarantine", "replay", "--all"), "--by NAME"),
        (("replay", "--from", "0"), "--by NAME"),
        (("replay", "--from", "yesterday", "--by", "Olive"), "2026-02-14T03:00Z"),
        (("replay", "--from", "0", "--to", "2026-02-14T03:00", "--by", "Olive"), "zone"),
        (
            ("replay", "--topic", "social-care-alerts", "--from", "0", "--by", "Olive"),
            "attendances or police-incidents",
        ),
    ],
)
async def test_what_is_asked_wrongly_is_refused_with_advice(
    small_site: Site, words: tuple[str, ...], advice: str
) -> None:
    refused = await small_site.run(*words)
    assert (refused.exit_code, advice in refused.stderr) == (2, True), refused.stderr


async def test_a_range_can_be_counted_first_and_everything_in_quarantine_asked_for(small_site: Site) -> None:
    await small_site.send(*(hl7(visit=f"V{number}", patient=f"K{number}") for number in range(9)), b"not HL7")
    await small_site.drain()
    counted = await small_site.run("replay", "--from", "0", "--by", "Olive", "--dry-run")
    assert (counted.exit_code, "10 messages would be replayed" in counted.stdout) == (0, True), counted.stderr
    assert (await small_site.count()).waiting == 0
    missing = await small_site.run("replay", "--from", "0", "--partition", "9", "--by", "Olive")
    assert (missing.exit_code, "no such partition" in missing.stderr) == (1, True)

    asked = await small_site.run("quarantine", "replay", "--all", "--by", "Olive", "--json")
    assert [report["result"] for report in json.loads(asked.stdout)] == ["asked for"]
    assert (await small_site.drain()).outcomes["quarantined"] == 2
    [item] = await small_site.items()
    assert item["attempts"] == 1


async def test_a_person_parts_records_that_a_department_joined(site: Site) -> None:
    joined = hl7("A40", visit="") + b"MRG|U77^^^RZ1^MR\r"
    await site.world.receive(hl7(patient="U77", nhs_number="", family="UNKNOWN", birth_date=None), joined)
    assert (await site.run("merges", "list")).stdout.count("A40 of RZ1") == 1
    [merge] = json.loads((await site.run("merges", "list", "--json")).stdout)

    assert (await site.run("merges", "undo", merge["id"])).exit_code == 2
    assert (await site.run("merges", "undo", "K12345", "--by", "Sam Tester")).exit_code == 2
    done = await site.run("merges", "undo", merge["id"], "--by", "Sam Tester", "--why", "joined in error")
    assert (done.exit_code, done.stderr) == (0, "")
    assert (await site.run("merges", "undo", merge["id"], "--by", "Sam Tester")).exit_code == 1

    assert [alert.withdrawn_rule for alert in await site.world.alerts()] == ["identity_corrected"]
    [(actor, reason)] = await site.acts("merge.undone")
    assert actor.startswith("Sam Tester (cli:") and reason == "joined in error"
