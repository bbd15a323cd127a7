"""Two years later: who saw this child, and what did this login see?"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import date, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner, Result

from broker.cli import app
from broker.sightings import tell_sightings
from broker.storage import aliases, audit
from broker.storage.sightings import Sighting, SubjectKind
from schemas.identifiers import BROKER_OWNER, NhsNumber
from tests.integration.test_fhir_api import open_api
from tests.pages import ASH, DEE, FENWICK, LIZ, NIA, NORTHFOLD, TWIN, Pages, open_pages
from tests.world import CASEY, FIELD_KEYS, INDEX_KEY, hl7

CASEY_NUMBER, TWIN_NUMBER, FORMER = NhsNumber("9990000018"), NhsNumber("9990000034"), NhsNumber("9990000042")
AUDITOR = "Ira Auditor"


@pytest.fixture
async def seen(world_url: str, tmp_path: Path) -> AsyncIterator[Pages]:
    """Casey and a twin on one list; Casey came, was looked up, read, acknowledged and read again."""
    async with open_pages(world_url, tmp_path) as pages:
        await pages.world.list_children(CASEY, TWIN)
        await pages.world.receive(hl7())
        other = {"patient": "P2", "family": "OTHER", "given": "WRONG", "birth_date": date(2011, 7, 8)}
        await pages.world.receive(hl7(control_id="2", visit="V2", **other))  # type: ignore[arg-type]  # by name
        async with open_api(pages.world) as api:
            assert (await api.ask("PatientFlag"))["total"] == 1
        [alert] = [each for each in await pages.world.alerts() if each.alert.kind == "attended"]
        [review] = await pages.world.reviews()
        async with pages.signed_in(ASH) as worker, pages.signed_in(DEE) as duty, pages.signed_in(NIA) as clinician:
            await worker.get(f"/alerts/{alert.alert.alert_id}")
            await duty.get(f"/reviews/{review.id}")
            await duty.send_form("/chronology", nhs_number="999 000 0018")
            await clinician.get("/replies")
        pages.world.clock.advance(timedelta(days=730))
        yield pages


async def who_saw(pages: Pages, number: NhsNumber) -> list[Sighting]:
    world = pages.world
    async with world.database.writing() as connection:
        return await tell_sightings(connection, world.keyring, number, asked_by=AUDITOR, now=world.clock.now())


async def test_whoever_saw_anything_of_a_child_is_told_and_nothing_of_another_child(seen: Pages) -> None:
    told = await who_saw(seen, CASEY_NUMBER)
    assert {(each.owner, each.actor, each.action, each.kind) for each in told} >= {
        (NORTHFOLD, ASH, "alert.read", SubjectKind.ALERT),
        (NORTHFOLD, DEE, "review.read", SubjectKind.REVIEW),
        (NORTHFOLD, DEE, "chronology.read", SubjectKind.NUMBER),
        (NORTHFOLD, "list.officer@706.example.org", "list.uploaded", SubjectKind.UPLOAD),
        (FENWICK, NIA, "replies.listed", SubjectKind.VISIT),
    }
    assert [each.kind for each in told if each.actor.startswith("RZ1")] == [SubjectKind.NUMBER], "the department asked"
    assert "broker" not in {each.actor for each in told}
    assert [each.at for each in told] == sorted(each.at for each in told)
    assert {each.action for each in await who_saw(seen, TWIN_NUMBER)} == {"list.uploaded"}
    assert await who_saw(seen, FORMER) == []
    asked = [act for act in await seen.acts(NORTHFOLD) if act[1] == "audit.who_saw"]
    assert {actor for actor, *_ in asked} == {AUDITOR} and len(asked) == 2, "on record with whose acts were told"
    assert len([act for act in await seen.acts(BROKER_OWNER) if act[1] == "audit.who_saw"]) == 3
    async with seen.world.database.writing() as connection:
        keyring, now = seen.world.keyring, seen.world.clock.now()
        await aliases.add_alias(connection, keyring, NORTHFOLD, old=FORMER, new=CASEY_NUMBER, now=now)
    assert {each.actor for each in await who_saw(seen, FORMER)} >= {ASH, DEE, NIA}, "by the number it had before too"


async def command(pages: Pages, *words: str, given: str = "") -> Result:
    settings = {
        "CPIS_ENVIRONMENT": "development",
        "CPIS_DATA_DIR": str(pages.world.directory),
        "CPIS_DATABASE_URL": pages.world.database.url,
        "CPIS_FIELD_KEYS": ",".join(f"{name}:{base64.b64encode(key).decode()}" for name, key in FIELD_KEYS.items()),
        "CPIS_INDEX_KEY": base64.b64encode(INDEX_KEY).decode(),
    }
    return await asyncio.to_thread(lambda: CliRunner().invoke(app, list(words), env=settings, input=given))


async def test_the_commands_tell_and_write_what_somebody_else_can_check(seen: Pages, tmp_path: Path) -> None:
    told = await command(seen, "audit", "who-saw", "--by", AUDITOR, given="999 000 0018\n")
    assert told.exit_code == 0 and f"{ASH}  alert.read  alert " in told.output and "9990000018" not in told.output
    assert "Nobody is on record" in (await command(seen, "audit", "who-saw", f"--by={AUDITOR}", given=FORMER)).output
    assert (await command(seen, "audit", "who-saw", given=CASEY_NUMBER)).exit_code == 2, "who asks is on record"
    assert (await command(seen, "audit", "who-saw", f"--by={AUDITOR}", given="12")).exit_code == 2

    file, whole, of_login = (tmp_path / name for name in ("none", "whole.jsonl", "dee.jsonl"))
    written = await command(seen, "audit", "export", str(whole), "--owner", NORTHFOLD, f"--by={AUDITOR}")
    lines = [json.loads(line) for line in whole.read_bytes().splitlines()]
    assert written.exit_code == 0 and f"{len(lines)} records" in written.output
    previous = bytes(32)
    for number, line in enumerate(lines, start=1):
        fields = [line[name] for name in ("owner", "sequence", "at", "actor", "action", "subject", "reason")]
        said = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
        previous = sha256(previous + said).digest()
        assert (line["hash"], line["sequence"]) == (previous.hex(), number), "as the page of commands says"
    assert whole.stat().st_mode & 0o077 == 0
    unknown = await command(seen, "audit", "export", str(file), "--owner=authority:999", f"--by={AUDITOR}")
    assert unknown.exit_code == 1 and "no chain 'authority:999'" in unknown.output and not file.exists()
    again = await command(seen, "audit", "export", str(whole), f"--by={AUDITOR}")
    assert again.exit_code == 1 and "must not exist yet" in again.output
    at = (seen.world.clock.now() - timedelta(days=729)).isoformat()
    await command(seen, "audit", "export", str(of_login), "--actor", DEE, "--to", at, f"--by={AUDITOR}")
    assert {json.loads(line)["actor"] for line in of_login.read_bytes().splitlines()} == {DEE}
    assert (await command(seen, "audit", "export", str(file), f"--by={AUDITOR}", "--from=soon")).exit_code == 2
    exported = [
        (actor.partition(" (")[0], subject)
        for actor, action, subject in await seen.acts(BROKER_OWNER)
        if action == "audit.exported"
    ]
    assert exported == [(AUDITOR, "everybody"), (AUDITOR, "everybody"), (AUDITOR, DEE)]
    assert [action for _, action, _ in await seen.acts(NORTHFOLD)].count("audit.exported") == 1, "its chain was wanted"
    async with seen.world.database.reading() as connection:
        assert await audit.verify_chain(connection, NORTHFOLD) is None


async def test_a_long_chain_is_given_out_page_by_page(
    seen: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.storage.sightings._PAGE_ROWS", 2)
    file = tmp_path / "all.jsonl"
    await command(seen, "audit", "export", str(file), f"--by={AUDITOR}")
    async with seen.world.database.reading() as connection:
        kept = (await connection.execute(text("SELECT count(*) FROM audit"))).scalar_one()
    assert len(set(file.read_bytes().splitlines())) == kept > 10
    assert LIZ not in file.read_text()
