"""A force's CSV export of incidents, by the door and by the command: good rows are kept, bad ones named, once each."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import httpx
import msgspec

from adapters.sqlite_log import SqliteLog, SqliteLogOptions
from broker.doors import DoorLimits, create_incident_door
from broker.envelope import INCIDENT_JSON, enclose
from broker.senders import Senders
from broker.topics import INCIDENTS
from schemas.record import LogRecord, PositionOutcome
from tests.encompass import FORCES, Encompass, half_term, open_encompass
from tests.integration.test_import_commands import run

COLUMNS = (
    "incident_id,force,version,occurred_at,reported_at,child_id,family_name,given_name,birth_date,urn,school_source"
)
JORDAN = "ZF1/7,ZF1,1,2026-02-14 22:10,2026-02-14 22:40,C1,Sample,Jordan,2016-04-05,900001,officer"
SIDNEY = "ZF1/7,ZF1,1,2026-02-14 22:10,2026-02-14 22:40,C2,Sample,Sidney,2009-05-06,900002,officer"
BAD = "ZF1/8,ZF1,1,2026-02-14 22:10,2026-02-14 22:40,C3,Sample,Morgan,5 April,900001,officer"
SPOILT = "ZF1/8,ZF1,1,2026-02-14 22:10,2026-02-14 22:40,C4,Sample,Alex,2010-01-02,900001,officer"
OTHERS = "ZF2/1,ZF2,1,2026-02-14 22:10,2026-02-14 22:40,C5,Sample,Robin,2010-01-02,900001,officer"


def file_of(*rows: str) -> bytes:
    return "\n".join((COLUMNS, *rows, "")).encode()


async def post(encompass: Encompass, file: bytes) -> httpx.Response:
    forces = Senders(encompass.world.directory / "forces.json", encompass.world.keyring)
    transport = httpx.ASGITransport(app=create_incident_door(encompass.intake, forces, DoorLimits()))
    async with httpx.AsyncClient(transport=transport, base_url="http://door", auth=("ZF1", "zf1-credential")) as door:
        return await door.post("/incidents", content=file, headers={"content-type": "text/csv; charset=utf-8"})


async def read_embedded_log(directory: Path) -> list[LogRecord]:
    """Every incident on the embedded log."""
    log = SqliteLog(SqliteLogOptions(path=directory / "log.sqlite"))
    records = [
        record
        for partition, extent in (await log.extents(INCIDENTS)).items()
        if extent.end
        for record in await log.read_from(partition, 0, records_max=10)
    ]
    await log.close()
    return records


async def test_a_file_keeps_its_good_rows_names_the_bad_ones_and_counts_once(sqlite_url: str, tmp_path: Path) -> None:
    async with open_encompass(sqlite_url, tmp_path) as encompass:
        answer = await post(encompass, file_of(JORDAN, SIDNEY, BAD, SPOILT, OTHERS))
        assert answer.status_code == 202
        assert [each["row"] for each in answer.json()["kept"]] == [2]
        problems = {each["row"]: (each["field"], each["advice"]) for each in answer.json()["problems"]}
        assert {row: field for row, (field, _) in problems.items()} == {4: "birth_date", 5: "incident_id", 6: "force"}
        assert "5 April" not in answer.text and "Morgan" not in answer.text
        again = await post(encompass, file_of(JORDAN, SIDNEY))
        assert again.json()["kept"] == answer.json()["kept"]
        records = [
            record
            for partition in await encompass.log.extents(INCIDENTS)
            for record in encompass.log.records_from(partition, 0)
        ]
        assert len(records) == 2
        assert await encompass.handle(records) == [PositionOutcome.ALERTED, PositionOutcome.IGNORED]
        assert set(await encompass.notices()) == {"900001", "900002"}

        refused = await post(encompass, file_of(BAD))
        assert refused.status_code == 422 and refused.json()["kept"] == []
        assert (await post(encompass, b"\x00\x01")).status_code == 422
        await encompass.log.close()
        lost = await post(encompass, file_of(JORDAN, BAD))
        assert lost.status_code == 503 and lost.headers["retry-after"] and lost.json()["kept"] == []


async def test_the_command_takes_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "incidents.csv"
    file.write_bytes(file_of(JORDAN, SIDNEY, BAD))
    async with open_encompass(f"sqlite+aiosqlite:///{tmp_path / 'broker.sqlite'}", tmp_path) as encompass:
        unknown = await run(encompass.world, "incidents", "import", str(file), "--force", "ZF9")
        assert unknown.exit_code == 1 and "import forces" in unknown.output
        tried = await run(encompass.world, "incidents", "import", str(file), "--force", "ZF1", "--dry-run")
        assert "incidents: 1 kept; rows: 1 refused (dry run" in tried.output and tried.exit_code == 3
        taken = await run(encompass.world, "incidents", "import", str(file), "--force", "zf1", "--json")
        report = json.loads(taken.stdout)
        assert [each["row"] for each in report["kept"]] == [2] and [each["row"] for each in report["refused"]] == [4]
        records = await read_embedded_log(tmp_path)
        assert await encompass.handle(records) == [PositionOutcome.ALERTED]
        assert set(await encompass.notices()) == {"900001", "900002"}
        file.write_bytes(file_of(BAD))
        assert (await run(encompass.world, "incidents", "import", str(file), "--force", "ZF1")).exit_code == 1


async def test_a_quarantined_incident_is_shown_replayed_once_and_never_doubled(tmp_path: Path) -> None:
    async with open_encompass(f"sqlite+aiosqlite:///{tmp_path / 'broker.sqlite'}", tmp_path) as encompass:
        world = encompass.world
        stranger = half_term(force="ZF7", incident_id="ZF7/1", excluded_recipients=[])
        forged = enclose(
            world.keyring,
            json.dumps(half_term(incident_id="ZF1/2026/0666")).encode(),
            sender="ZF2",
            control_id="",
            said=None,
            content_type=INCIDENT_JSON,
            at=world.clock.now(),
        )
        assert await encompass.receive(stranger, b"not json") == [PositionOutcome.QUARANTINED] * 2
        record = encompass.batch([forged.value], encompass.offset).records[0]
        aside = [msgspec.structs.replace(record, headers=forged.headers)]
        assert await encompass.handle(aside) == [PositionOutcome.QUARANTINED]
        listed = json.loads((await run(world, "quarantine", "list", "--json")).stdout)
        ids = {each["reason"]: each["id"] for each in listed}
        assert set(ids) == {"force_not_known", "incident_refused", "force_of_another"}
        shown = await run(world, "quarantine", "show", ids["force_not_known"], "--by", "Olive")
        assert "ZF7/1" in shown.output and "force_not_known" in shown.output

        forces = FORCES.replace("ZF1,", "ZF7,").replace("zf1-", "zf7-")
        assert not (await encompass.upload("forces", forces)).refused
        world.clock.advance(timedelta(minutes=1))
        for _ in range(2):
            assert (await run(world, "quarantine", "replay", "--all", "--by", "Olive")).exit_code == 0
        appended = await read_embedded_log(tmp_path)
        assert len(appended) == 6
        # What was not the other force's is not its by being replayed; what stands there twice has one effect.
        assert sorted(await encompass.handle(appended)) == sorted(
            [PositionOutcome.ALERTED, *[PositionOutcome.QUARANTINED] * 2, *[PositionOutcome.IGNORED] * 3]
        )
        left = json.loads((await run(world, "quarantine", "list", "--json")).stdout)
        assert {each["reason"]: each["attempts"] for each in left} == {"incident_refused": 1, "force_of_another": 1}
        assert {notice.force for notice in (await encompass.notices()).values()} == {"ZF7"}
        before = await encompass.notices()
        assert await encompass.receive(stranger) == [PositionOutcome.IGNORED]
        assert await encompass.notices() == before
        gone = await run(world, "quarantine", "replay", "0" * 32, "--by", "Olive")
        assert gone.exit_code == 1 and "no such item" in gone.output
