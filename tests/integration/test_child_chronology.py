"""The chronology of a child: what it tells, to whom, and what a spreadsheet makes of it."""

from __future__ import annotations

import csv
import io
import re
from datetime import datetime, timedelta

import pytest

from broker.web.csv_export import write_csv
from tests.integration.test_fhir_api import HEADERS, open_api
from tests.pages import ASH, BO, DEE, KIT, LIZ, NORTHFOLD, Pages
from tests.world import CASEY, hl7

NUMBER, STRANGER = "9990000018", "9990000042"
HOSTILE = '=HYPERLINK("http://example.org";"x")'


async def live_through(pages: Pages) -> None:
    """Listed, attends, is escalated, taken and read; another site; a look-up; the plan ends."""
    world = pages.world
    [alert] = await world.alerts()
    world.clock.advance(timedelta(minutes=16))
    await world.run_jobs()
    async with pages.signed_in(ASH) as worker:
        await worker.get(f"/alerts/{alert.alert.alert_id}")
        await worker.send_form(f"/alerts/{alert.alert.alert_id}/acknowledge")
    at = datetime(2026, 2, 14, 3, 40)  # noqa: DTZ001 - HL7 v2 writes local time
    other_site = {"sender": "RZ2", "credential": "rz2-credential", "patient": "O1"}
    world.clock.advance(timedelta(minutes=30))
    await world.receive(hl7(visit="O1", at=at, complaint=HOSTILE, **other_site))  # type: ignore[arg-type]  # by name
    async with open_api(world) as api:
        await api.ask("PatientFlag", headers=HEADERS)
        await api.ask("PatientFlag", headers={**HEADERS, "IsUnscheduledAccessEvent": "false", "NHSD-Session-URID": "9"})
    world.clock.advance(timedelta(days=1))
    moved = CASEY.replace("2026-01-10,", "2026-01-10,2026-02-15").replace("W1", "W2")
    await world.list_children(f"{moved},,F-17")
    await world.run_jobs()


def lines_of(file: bytes) -> list[tuple[str, str, str, str]]:
    rows = list(csv.reader(io.StringIO(file.decode("utf-8-sig"))))
    assert rows[0] == ["at", "what", "words", "place", "by"]
    return [(what, words, place, by) for _, what, words, place, by in rows[1:]]


async def test_everything_that_happened_stands_in_order_on_the_page_and_in_the_file(pages: Pages) -> None:
    await live_through(pages)
    async with pages.signed_in(DEE) as duty:
        page = await duty.send_form("/chronology", nhs_number="999 000 0018")
        file = await duty.send_form("/chronology/csv", nhs_number=NUMBER)
    assert page.status_code == file.status_code == 200
    assert file.headers["content-disposition"] == 'attachment; filename="chronology.csv"'
    assert file.headers["cache-control"] == "no-store"
    fenwick, ottery = "Fenwick General Hospital (RZ1)", "Ottery Infirmary (RZ2)"
    told = lines_of(file.content)
    assert sorted(told) == sorted(
        [
            (
                "list",
                "Listed: child protection plan from 2026-01-10, allocated to W1",
                "",
                "list.officer@706.example.org",
            ),
            ("visit", "Attended: ED, Fall from height", fenwick, ""),
            ("alert", "Alert raised", "", ""),
            ("alert", "Nobody took it in time: escalated", "", ""),
            ("access", "Alert opened", "", ASH),
            ("alert", "Alert acknowledged", "", ASH),
            ("visit", f"Attended: ED, {HOSTILE}", ottery, ""),
            ("alert", "Alert raised", "", ""),
            ("look-up", "Looked up, not attended", fenwick, ""),
            ("alert", "Alert raised", "", ""),
            ("alert", "Nobody took it in time: escalated", "", ""),
            ("alert", "Nobody took it in time: escalated", "", ""),
            (
                "list",
                "List changed, child protection plan: end 2026-02-15 (before: none); allocated worker W2 (before: W1); "
                "household",
                "",
                "list.officer@706.example.org",
            ),
        ]
    )
    assert [what for what, *_ in told[:4]] == ["visit", "list", "alert", "alert"]
    instants = re.findall(r'<time datetime="([^"]+)"', page.text.partition("<table")[2])
    assert instants == sorted(instants) and len(instants) == len(told)
    assert '<td role="cell">Ash</td>' in page.text


async def test_it_is_for_the_worker_of_today_and_the_duty_desk_and_every_read_is_on_record(pages: Pages) -> None:
    index = pages.world.keyring.index("nhs", NUMBER).hex()
    async with pages.signed_in(ASH) as worker, pages.signed_in(BO) as other, pages.signed_in(KIT) as elsewhere:
        assert "Fenwick" in (await worker.send_form("/chronology", nhs_number=NUMBER)).text
        assert {
            (await person.send_form(path, nhs_number=number)).status_code
            for person, number in ((other, NUMBER), (elsewhere, NUMBER), (worker, STRANGER))
            for path in ("/chronology", "/chronology/csv")
        } == {404}
        assert (await worker.send_form("/chronology", nhs_number="9990000019")).status_code == 400
        await pages.world.list_children(CASEY.replace("W1", "W2"))
        assert (await worker.send_form("/chronology", nhs_number=NUMBER)).status_code == 404
        assert (await other.send_form("/chronology/csv", nhs_number=NUMBER)).status_code == 200
    async with pages.signed_in(LIZ) as officer:
        assert (await officer.send_form("/chronology", nhs_number=NUMBER)).status_code == 403
    acts = [(actor, action) for actor, action, subject in await pages.acts(NORTHFOLD) if subject == index]
    assert [each for each in acts if each[1].startswith("chronology")] == [
        (ASH, "chronology.read"),
        (BO, "chronology.refused"),
        (BO, "chronology.refused"),
        (ASH, "chronology.refused"),
        (BO, "chronology.exported"),
    ]


@pytest.mark.parametrize(
    "cell",
    [
        "=1+1",
        "+44",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        " =1",
        "\u00a0=1",
        "\uff1d1",
        "\u200b@x",
        "\x00=1",
        "\x0b=1",
        "\u3000=1",
        "\u202e+1",
        "\u2060@x",
    ],
)
def test_no_cell_is_calculated(cell: str) -> None:
    [row] = list(csv.reader(io.StringIO(write_csv(("a",), [(cell,)]).decode("utf-8-sig"))))[1:]
    assert row[0].startswith("'") and not re.search("[\r\n\t\x00]", row[0])
