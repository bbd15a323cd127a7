"""The proof of Operation Encompass: the month adds up and says why, one incident is told whole, gaps are named."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from broker.domain.punctuality import Punctuality
from broker.domain.school_coverage import SchoolGap
from broker.domain.visits import london_day
from broker.proof import Month, MonthReport, parse_month, report_month, report_schools, tell_incident, write_report
from broker.storage.incidents import derive_incident_id
from broker.storage.receipts import mark_reached, mark_unreached
from broker.storage.tables import Lane, table
from schemas.encompass import NoticeState
from tests.encompass import SATURDAY, Encompass, at_school, child, half_term, open_encompass
from tests.integration.test_encompass_pages import ALEX, CORA, DEE, Served, served
from tests.integration.test_import_commands import run

__all__ = ["served"]

FORMULA = '=HYPERLINK("https://example.org")'


@pytest.fixture
async def encompass(world_url: str, tmp_path: Path) -> AsyncIterator[Encompass]:
    """The small world on each engine."""
    async with open_encompass(world_url, tmp_path) as opened:
        yield opened


async def report(encompass: Encompass, **of: str) -> MonthReport:
    world = encompass.world
    async with world.database.reading() as connection:
        chosen = of or {"force": "ZF1"}
        return await report_month(connection, world.keyring, Month(2026, 2), now=world.clock.now(), **chosen)


def simple(number: int, urn: str, **more: object) -> dict[str, object]:
    """An incident of one child at one school."""
    said = half_term(excluded_recipients=[], **({"incident_id": f"ZF1/2026/{number}"} | more))
    said["children"] = [child(f"c{number}", "Riley", establishments=at_school(urn))]
    return said


async def test_a_month_counts_every_notice_once_and_says_why_it_was_late(encompass: Encompass) -> None:
    told_late = simple(2, "900002", reported_at=(SATURDAY - timedelta(days=3)).isoformat())
    told_late["occurred_at"] = (SATURDAY - timedelta(days=3)).isoformat()
    no_route = simple(3, "900003")
    held = simple(4, "900002", suppress={"scope": "notice", "reason": "refuge", "authoriser": "DS 1"})
    other_month = simple(5, "900002", reported_at="2026-01-31T23:59:00+00:00", occurred_at="2026-01-31T23:00:00+00:00")
    formula = simple(6, "900002", incident_id=FORMULA)
    stranger = half_term(force="ZF2", incident_id="ZF2/1", children=[child("z", "Zoe")], excluded_recipients=[])
    await encompass.receive(half_term(), told_late, no_route, held, other_month, formula, stranger)
    await encompass.run_jobs()
    found = await report(encompass)
    assert (found.incidents, found.children, found.children_of_officers, found.notices) == (5, 7, 1, 6)
    assert found.punctuality == {
        "on_time": 3,
        "late": 1,
        "not_sent": 0,
        "not_due_yet": 1,
        "suppressed": 1,
        "taken_back": 0,
    }
    assert {name for name, count in found.delays.items() if count} == {"told_late"}

    # A correction after the bell does not make what was on time late, nor what was late on time.
    encompass.world.clock.move_to(SATURDAY + timedelta(days=10))
    await encompass.receive(half_term(version=2, change="correction", children=half_term()["children"][:1]))
    await encompass.run_jobs()
    later = await report(encompass)
    assert sum(later.punctuality.values()) == later.notices == 6
    assert (later.punctuality["on_time"], later.punctuality["late"], later.punctuality["not_sent"]) == (3, 1, 1)
    assert later.delays["no_route"] == 1

    rows = list(csv.reader(io.StringIO(write_report(later).decode("utf-8-sig"))))
    assert rows[0][:2] == ["incident", "reported_at"] and len(rows) == 7
    assert "'" + FORMULA in {row[0] for row in rows} and FORMULA not in {row[0] for row in rows}
    assert "Riley" not in str(rows)
    east = await report(encompass, authority="707")
    assert {line.urn for line in east.lines} == {"900002"} and east.notices == 4
    assert (await report(encompass, force="ZF2")).children_without_school == 1


async def test_an_incident_is_told_whole_with_every_version_and_who_was_told(encompass: Encompass) -> None:
    await encompass.receive(half_term())
    await encompass.run_jobs()
    corrected = half_term(version=2, change="correction")
    corrected["children"][0]["childs_words"] = "I hid with my brother."
    await encompass.receive(corrected)
    await encompass.run_jobs()
    world = encompass.world
    withdrawal = {"message": "withdrawal", "incident_id": "ZF1/2026/0001", "force": "ZF1", "version": 3}
    await encompass.receive(withdrawal | {"withdrawn_at": SATURDAY.isoformat(), "reason": "Recorded twice."})
    async with world.database.reading() as connection:
        incident_id = derive_incident_id(world.keyring, "ZF1", "ZF1/2026/0001")
        record = await tell_incident(connection, world.keyring, incident_id, world.clock.now())
        assert await tell_incident(connection, world.keyring, "0" * 32, world.clock.now()) is None
    assert record is not None
    assert [each.reception for each in record.received] == ["first", "amends", "amends"]
    [mill_lane] = [each for each in record.notices if each.line.urn == "900001"]
    assert [each.version for each in mill_lane.sendings] == [1, 2, 3]
    words = [getattr(each.telling.notice.children[0], "childs_words", None) for each in mill_lane.sendings]
    assert words[:2] == ["I hid.", "I hid with my brother."] and mill_lane.sendings[2].telling.withdrawn is not None
    assert [each.telling.told for each in mill_lane.sendings[:2]] == [("A2",), ("A2",)]
    assert ("notice.sent", "version 1 to A2") in {(act.action, act.reason) for act in mill_lane.acts}
    assert mill_lane.line.punctuality is Punctuality.ON_TIME and mill_lane.state is NoticeState.WITHDRAWN
    assert {act.action for act in record.acts} >= {"incident.first", "incident.amends", "tell_officer.asked"}


async def test_schools_that_lack_something_are_named_and_closed_ones_are_not(sqlite_url: str, tmp_path: Path) -> None:
    async with open_encompass(sqlite_url, tmp_path) as encompass:
        await encompass.upload("schools", "urn,name,kind,authority,status\n900009,Old School,school,706,closed\n")
        world = encompass.world
        async with world.database.reading() as connection:
            now, two_years = world.clock.now(), timedelta(days=730)
            found = await report_schools(connection, world.keyring, "706", now=now, trained=two_years)
            later = await report_schools(
                connection, world.keyring, "706", now=now + timedelta(days=60), trained=timedelta(days=100)
            )
            nowhere = await report_schools(connection, world.keyring, "708", now=now, trained=two_years)
        assert (found.open_schools, found.ready) == (2, 1)
        [hill_top] = found.schools
        assert [gap.kind for gap in hill_top.gaps] == [
            SchoolGap.NO_ROUTE,
            SchoolGap.NO_LEAD,
            SchoolGap.NOT_CONFIRMED,
            SchoolGap.TRAINING_OUT_OF_DATE,
        ]
        assert later.gaps["calendar_expired"] == 2 and later.gaps["training_out_of_date"] == 2
        assert (nowhere.open_schools, nowhere.schools) == (0, ())

        school = {"owner": "establishment:900001", "contact": "A2", "epoch": 0}
        async with world.database.writing() as connection:
            for channel in ("email", "text_message"):
                await connection.execute(table(Lane).insert().values(id=channel, channel=channel, **school))
                await mark_unreached(connection, channel, "permanent_failure", now)
                await mark_unreached(connection, channel, "temporary_failure", now + timedelta(days=3))
            told = await report_schools(connection, world.keyring, "706", now=now, trained=two_years)
            await mark_reached(connection, "email")
            await mark_reached(connection, "text_message")
            again = await report_schools(connection, world.keyring, "706", now=now, trained=two_years)
        mill_lane = next(each for each in told.schools if each.urn == "900001")
        [gap] = mill_lane.gaps
        assert (gap.kind, gap.contact_id, gap.since) == (SchoolGap.NOT_REACHED, "A2", london_day(now))
        assert again == found


async def test_pages_show_the_proof_to_whom_it_concerns(served: Served) -> None:
    notice = (await served.encompass.notices())["900001"]
    async with served.signed_in(ALEX) as deputy:
        await deputy.get("/school")
        await deputy.send_form(f"/school/notices/{notice.id}/acknowledge", version="1")
    async with served.signed_in(CORA) as coordinator:
        page = await coordinator.get("/force/report")
        assert page.status_code == 200 and "Mill Lane Primary School" in page.text and "Jordan" not in page.text
        assert (await coordinator.get("/force/report?month=2026-13")).status_code == 400
        assert "No notice was planned in this month" in (await coordinator.get("/force/report?month=2025-02")).text
        file = await coordinator.get("/force/report.csv?month=2026-02")
        assert file.headers["content-disposition"] == 'attachment; filename="encompass-2026-02.csv"'
        assert file.text.count("on_time") == 2 and "Jordan" not in file.text
        whole = await coordinator.get(f"/force/incidents/{notice.incident_id}")
        for shown in ("Jordan", "version 1 to A2", "sister of the suspect", ALEX, "notice.acknowledged"):
            assert shown in whole.text
    async with served.signed_in(DEE) as officer:
        page = await officer.get("/encompass-report")
        assert "Mill Lane Primary School" in page.text and "Eastmere College" not in page.text
        assert "on_time" in (await officer.get("/encompass-report.csv")).text
        schools = await officer.get("/encompass-schools")
        assert "Hill Top School" in schools.text and "No safeguarding lead" in schools.text


async def test_commands_print_the_proof(tmp_path: Path) -> None:
    async with open_encompass(f"sqlite+aiosqlite:///{tmp_path / 'broker.sqlite'}", tmp_path) as encompass:
        await encompass.receive(half_term())
        await encompass.run_jobs()
        world, file = encompass.world, tmp_path / "month.csv"
        month = ("incidents", "report", "--month", "2026-02")
        told = await run(world, *month, "--force", "ZF1", "--csv", str(file))
        assert "1 incidents in 2026-02" in told.output and "on time: 2" in told.output
        assert file.read_bytes().count(b"on_time") == 2
        assert (await run(world, *month)).exit_code == 2
        assert (await run(world, "incidents", "report", "--month", "13", "--force", "ZF1")).exit_code == 2
        shown = ("incidents", "show", "ZF1/2026/0001", "--force", "ZF1")
        assert (await run(world, *shown)).exit_code == 2
        record = json.loads((await run(world, *shown, "--by", "Pat")).stdout)
        assert [len(each["sendings"]) for each in record["notices"]] == [1, 1]
        schools = await run(world, "incidents", "schools", "--authority", "706")
        assert "900003 Hill Top School" in schools.output and "no route" in schools.output


def test_only_a_month_is_a_month() -> None:
    assert parse_month("2026-12") == Month(2026, 12)
    assert Month(2026, 12).following == Month(2027, 1)
    assert [parse_month(text) for text in ("", "2026-13", "2026-00", "26-01", "2026-1", "x026-01")] == [None] * 6
