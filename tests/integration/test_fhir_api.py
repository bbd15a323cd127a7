"""Systems that ask about one person: what they are shown, who hears of it, and what nobody else learns."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fhir.resources.R4B.bundle import Bundle
from fhir.resources.R4B.operationoutcome import OperationOutcome
from prometheus_client import REGISTRY, generate_latest
from sqlalchemy import event, func, literal_column, select, text, true
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs

from adapters.fhir_search import build_care_team_answer
from broker.bootstrap.web import configure_server
from broker.doors import join_doors
from broker.senders import Senders
from broker.storage import accesses, alerts, audit, restrictions, tables
from broker.storage.child_lists import derive_entry_id
from broker.storage.database import Database
from broker.storage.tables import ENTRY_CORRECTED, AlertState, AuditRow, Lane, ListEntry, table
from broker.web.fhir_api import PATHS, FhirReads
from broker.web.look_up import Asker, LookUps, UnknownSite
from schemas.alert import AlertKind
from schemas.identifiers import NhsNumber, authority_owner, organisation_owner
from schemas.look_up import RecordShown
from tests.factories import make_entry, make_settings, serve_app
from tests.integration.test_care_settings import classify
from tests.pages import ASH, Pages
from tests.world import CASEY, World, count_waiting_for_locks, hl7, open_world

CASEY_NUMBER, STRANGER, OTHER = "9990000018", "9990000026", "9990000034"
HEADERS = {"TraceID": "2f1c0b5e-0000-4000-8000-000000000001", "NHSD-Session-URID": "555012345678"}
FLAG = "child-protection-information-system-flag"
SILENTLY = {**HEADERS, "IsUnscheduledAccessEvent": "false"}
ENDED = "L1,9990000018,Tester,Casey,2015-03-02,ZZ99 1AA,looked_after_child,2024-01-10,2025-11-01,W1,North"
OTHER_PLAN = "L1,9990000018,Tester,Casey,2015-03-02,ZZ99 1AA,looked_after_child,2025-06-01,,W1,North"
OF_EASTMERE = "E5,9990000018,Tester,Casey,2015-03-02,ZZ99 1AA,looked_after_child,2025-06-01,,W7,East"


@dataclass
class Api:
    """The reads of a small world, served."""

    world: World
    client: httpx.AsyncClient

    async def ask(self, what: str, number: str = CASEY_NUMBER, headers: Mapping[str, str] = HEADERS) -> dict[str, Any]:
        """A question that is answered."""
        answer = await self.client.get(f"/FHIR/R4/{what}", params={"patient": number}, headers=headers)
        assert answer.status_code == 200, answer.text
        bundle: dict[str, Any] = answer.json()
        Bundle.model_validate(bundle)
        return bundle

    async def audited(self, site: str = "RZ1") -> list[tuple[str, str, str]]:
        return await list_audited(self.world, site)


async def list_audited(world: World, site: str = "RZ1") -> list[tuple[str, str, str]]:
    audit = table(AuditRow)
    async with world.database.reading() as connection:
        rows = await connection.execute(
            select(audit.c.actor, audit.c.action, audit.c.reason)
            .where(audit.c.owner == organisation_owner(site), audit.c.action == "record.looked_up")
            .order_by(audit.c.sequence)
        )
        return [tuple(row) for row in rows]


@asynccontextmanager
async def open_api(world: World) -> AsyncIterator[Api]:
    senders = Senders(world.directory / "senders.json", world.keyring)
    look_ups = LookUps(world.database, world.keyring, world.clock, world.rules)
    pages = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app = join_doors(pages, pages, FhirReads(look_ups, senders), PATHS)
    async with (
        serve_app(app) as address,
        httpx.AsyncClient(
            base_url=address, auth=("RZ1", "rz1-credential"), trust_env=False, verify=False, timeout=20
        ) as client,
    ):
        yield Api(world, client)


@pytest.fixture
async def api(world: World) -> AsyncIterator[Api]:
    async with open_api(world) as opened:
        yield opened


@contextmanager
def counted_statements(database: Database) -> Iterator[list[str]]:
    """Every statement that a transaction that writes sends meanwhile."""
    statements: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        statements.append(statement)

    engines = {database._writer.sync_engine, database._brief.sync_engine, database._stating.sync_engine}
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", note)


def of_type(bundle: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    return [entry["resource"] for entry in bundle["entry"] if entry["resource"]["resourceType"] == kind]


def words_of(bundle: Mapping[str, Any]) -> list[str]:
    [outcome] = of_type(bundle, "OperationOutcome")
    return [issue["diagnostics"] for issue in outcome["issue"]]


# What is shown


async def test_plans_of_two_authorities_are_shown_with_dates_and_whom_to_ring_now(api: Api) -> None:
    await api.world.list_children(CASEY)
    await api.world.list_children(OF_EASTMERE, authority="707")
    bundle = await api.ask("PatientFlag")
    assert bundle["total"] == 2
    plans = {plan["category"][0]["coding"][0]["code"]: plan for plan in of_type(bundle, "CarePlan")}
    assert plans["342191000000101"]["period"] == {"start": "2026-01-10"}
    teams = {team["name"]: team for team in of_type(bundle, "CareTeam")}
    assert set(teams) == {"Northfold Borough Council", "Eastmere County Council"}
    telecom = teams["Northfold Borough Council"]["telecom"]
    assert [(each["use"], each["value"], each["rank"]) for each in telecom] == [
        ("work", "01632 960101", 2),
        ("mobile", "01632 960102", 1),
    ]
    words = words_of(bundle)
    assert "ring 01632 960102 now (its emergency duty team)" in words[1]
    assert "list was confirmed at 2026-02-14T03:12:00Z" in words[1]
    assert "Northfold Borough Council was told of this look-up" in " ".join(words)
    assert "not acknowledged yet" in words[-1]


async def test_on_a_working_day_the_office_is_to_be_rung_and_before_a_bank_holiday_monday_the_duty_team(
    api: Api,
) -> None:
    await api.world.list_children(CASEY)
    for at, telephone in (
        (datetime(2026, 5, 22, 14, 0, tzinfo=UTC), "01632 960101"),
        (datetime(2026, 5, 22, 16, 5, tzinfo=UTC), "01632 960102"),
        (datetime(2026, 5, 25, 11, 0, tzinfo=UTC), "01632 960102"),
    ):
        api.world.clock.advance(at - api.world.clock.now())
        [team] = of_type(await api.ask("CareTeam"), "CareTeam")
        assert [each["value"] for each in team["telecom"] if each["rank"] == 1] == [telephone]


async def test_an_ended_plan_is_shown_as_ended_and_never_as_current(api: Api) -> None:
    await api.world.list_children(ENDED)
    bundle = await api.ask("PatientFlag")
    [flag], [plan] = of_type(bundle, "Flag"), of_type(bundle, "CarePlan")
    assert (flag["status"], plan["status"]) == ("inactive", "completed")
    assert plan["period"] == {"start": "2024-01-10", "end": "2025-11-01"}
    assert "every plan has ended" in words_of(bundle)[0]
    api.world.clock.advance(timedelta(days=365))
    assert (await api.ask("PatientFlag"))["total"] == 0


async def test_a_looked_after_mother_to_be_is_shown_with_both_plans(api: Api) -> None:
    mother = "9990000026,Tester,Robin,2009-05-01,ZZ99 1AA"
    await api.world.list_children(
        f"M1,{mother},looked_after_child,2025-01-10,,W1,North",
        f"M1,{mother},unborn_child_protection_plan,2026-01-10,,W1,North",
    )
    kinds = [
        each["category"][0]["coding"][1]["code"] for each in of_type(await api.ask("CareTeam", STRANGER), "CareTeam")
    ]
    assert sorted(kinds) == ["looked_after_child", "unborn_child_protection_plan"]


@pytest.mark.parametrize("what", ["PatientFlag", "CareTeam", "AuditEvent"])
async def test_a_miss_is_200_with_nothing_found_and_says_what_that_does_not_mean(api: Api, what: str) -> None:
    await api.world.list_children(CASEY)
    bundle = await api.ask(what, STRANGER)
    assert (bundle["total"], len(bundle["entry"])) == (0, 1)
    assert words_of(bundle) == [
        "No record found; this does not mean the child is safe. 1 authority's list was searched, the oldest 0 hours "
        "old. No list from this site's own authority 707. The national Child Protection - Information Sharing service "
        "was not asked."
    ]
    assert await api.world.alerts() == []
    assert await api.audited() == [("RZ1/555012345678", "record.looked_up", "care_setting_not_classified")]


async def test_no_answer_ever_says_that_a_child_is_safe(api: Api) -> None:
    await api.world.list_children(CASEY)
    for number in (CASEY_NUMBER, STRANGER):
        for words in words_of(await api.ask("PatientFlag", number)):
            assert "safe" not in words.replace("this does not mean the child is safe", "")


@pytest.mark.parametrize(
    "question",
    [
        {"patient": CASEY_NUMBER, "code": FLAG},
        {"patient:identifier": f"https://fhir.nhs.uk/Id/nhs-number|{CASEY_NUMBER}"},
        {"patient": "999 000 0018", "_include": "AuditEvent:entity-type=x|ASSIGNED"},
    ],
)
async def test_a_question_may_be_asked_in_either_nations_shape_and_by_form(api: Api, question: dict[str, str]) -> None:
    await api.world.list_children(CASEY)
    got = await api.client.get("/FHIR/R4/PatientFlag", params=question, headers=HEADERS)
    sent = await api.client.post("/FHIR/R4/PatientFlag/_search", data=question, headers=HEADERS)
    assert (got.status_code, sent.status_code) == (200, 200)
    assert got.json()["total"] == sent.json()["total"] == 1
    assert sent.headers["TraceID"] == HEADERS["TraceID"]
    assert sent.headers["cache-control"] == "no-store"


# Who hears of it


async def test_an_unscheduled_look_up_is_told_once_a_day_as_looked_up_and_not_attended(api: Api) -> None:
    await api.world.list_children(CASEY)
    for what in ("PatientFlag", "CareTeam", "AuditEvent"):
        await api.ask(what)
    [alert] = await api.world.alerts()
    assert alert.alert.kind is AlertKind.LOOKED_UP
    assert alert.alert.reason.startswith("Looked up, not attended")
    assert (alert.held_by, alert.state) == ("W1", AlertState.OPEN)
    assert alert.due_by == api.world.clock.now() + timedelta(hours=24)
    assert await api.world.delivery_count() == 1
    await api.ask("CareTeam", headers={**HEADERS, "NHSD-Session-URID": "555000000001"})
    assert len(await api.world.alerts()) == 2
    api.world.clock.advance(timedelta(hours=24))
    await api.ask("CareTeam")
    assert len(await api.world.alerts()) == 3
    assert len(await api.audited()) == 5


async def test_questions_of_one_person_at_one_moment_are_told_once(api: Api) -> None:
    await api.world.list_children(CASEY)
    await asyncio.gather(*(api.ask("PatientFlag") for _ in range(6)))
    assert len(await api.world.alerts()) == 1
    assert len(await api.audited()) == 6


async def test_scenario_n_a_scheduled_look_up_shows_the_plan_tells_nobody_and_is_audited(api: Api) -> None:
    await api.world.list_children(CASEY)
    bundle = await api.ask("PatientFlag", headers=SILENTLY)
    assert bundle["total"] == 1
    assert "Social care is not told" in words_of(bundle)[0]
    assert (await api.ask("AuditEvent", headers=SILENTLY))["total"] == 0
    assert await api.world.alerts() == []
    assert await api.world.delivery_count() == 0
    assert [reason for _, _, reason in await api.audited()] == ["scheduled_look_up"] * 2


async def test_a_site_that_suppresses_notices_leaves_no_trace_that_an_authority_could_see(api: Api) -> None:
    await classify(api.world, "sexual_health", suppressed="yes")
    await api.world.list_children(CASEY)
    await api.world.receive(hl7())
    assert (await api.ask("AuditEvent", headers={**HEADERS, "IsUnscheduledAccessEvent": "true"}))["total"] == 0
    assert await api.world.alerts() == []
    assert [reason for _, _, reason in await api.audited()] == ["suppressed_by_local_rule"]


async def test_the_alert_of_a_look_up_is_withdrawn_when_its_entry_was_an_error(api: Api) -> None:
    await api.world.list_children(CASEY)
    await api.ask("PatientFlag")
    await api.world.run_jobs()
    await api.world.list_children(f"{CASEY},2026-02-14")
    await api.world.run_jobs()
    [alert] = await api.world.alerts()
    assert (alert.state, alert.withdrawn_at is not None) == (AlertState.CLOSED, True)
    assert (await api.ask("PatientFlag"))["total"] == 0


async def test_the_alert_of_a_look_up_is_withdrawn_when_the_list_corrects_the_number(api: Api) -> None:
    await api.world.list_children(CASEY, OTHER_PLAN)
    await api.ask("PatientFlag")
    await api.world.list_children(CASEY.replace(CASEY_NUMBER, STRANGER))
    await api.world.run_jobs()
    [alert] = await api.world.alerts()
    assert alert.withdrawn_at is None, "the authority lists the number that was asked about under another plan"
    await api.world.list_children(OTHER_PLAN.replace(CASEY_NUMBER, STRANGER))
    await api.world.run_jobs()
    [alert] = await api.world.alerts()
    assert (alert.state, alert.withdrawn_rule) == (AlertState.CLOSED, ENTRY_CORRECTED)
    assert await api.world.delivery_count() == 2
    await api.ask("PatientFlag", STRANGER)
    await api.world.run_jobs()
    assert [each.withdrawn_at is None for each in await api.world.alerts()].count(True) == 1


async def test_who_was_told_shows_the_own_visits_and_whether_a_person_took_notice(api: Api) -> None:
    await api.world.list_children(CASEY)
    await api.world.receive(hl7())
    [alert] = await api.world.alerts()
    async with api.world.database.writing() as connection:
        await alerts.acknowledge_alert(
            connection, "authority:706", alert.alert.alert_id, by="ash", now=api.world.clock.now()
        )
    words = words_of(await api.ask("PatientFlag", headers=SILENTLY))
    assert words[-1].endswith("told of an attendance at 2026-02-14T03:12:00Z, acknowledged at 2026-02-14T03:12:00Z.")
    async with httpx.AsyncClient(base_url=api.client.base_url, auth=("RZ2", "rz2-credential")) as elsewhere:
        answer = await elsewhere.get("/FHIR/R4/PatientFlag", params={"patient": CASEY_NUMBER}, headers=SILENTLY)
    assert "was told of" not in " ".join(words_of(answer.json()))


# The access history


async def test_the_history_holds_25_accesses_newest_first_and_the_attendance_is_among_given_them(api: Api) -> None:
    await api.world.list_children(CASEY)
    await api.world.receive(hl7(), hl7("A08"), hl7("A08"))
    for number in range(30):
        api.world.clock.advance(timedelta(minutes=1))
        await api.ask("CareTeam", headers={**HEADERS, "NHSD-Session-URID": f"5550000000{number:02}"})
    bundle = await api.ask("AuditEvent", headers=SILENTLY)
    events, roles = of_type(bundle, "AuditEvent"), of_type(bundle, "PractitionerRole")
    assert bundle["total"] == len(events) == len(roles) == 25
    times = [each["recorded"] for each in events]
    assert times == sorted(times, reverse=True)
    assert roles[0]["practitioner"]["display"] == "555000000029"
    async with api.world.database.reading() as connection:
        everything = await accesses.list_counted(connection, api.world.keyring, CASEY_NUMBER, rows_max=100)
    assert len(everything) == 31
    assert [each.author.kind for each in everything if each.author.person is None] == ["attended"]
    assert everything[-1].author.organisation_name == "Fenwick General Hospital"


async def test_a_second_visit_to_one_site_within_a_day_counts_once_and_the_first_is_kept(api: Api) -> None:
    await api.world.list_children(CASEY)
    for hour, visit in ((3, "V1"), (9, "V2")):
        await api.world.receive(hl7(visit=visit, at=datetime(2026, 2, 14, hour, 7)))  # noqa: DTZ001 - local time
        api.world.clock.advance(timedelta(hours=6, minutes=10))
    api.world.clock.advance(timedelta(hours=24))
    await api.world.receive(hl7(visit="V3", at=datetime(2026, 2, 15, 15, 0)))  # noqa: DTZ001 - local time
    async with api.world.database.reading() as connection:
        shown = await accesses.list_counted(connection, api.world.keyring, CASEY_NUMBER, rows_max=25)
        rows = (await connection.execute(select(table(tables.Access)))).all()
    assert [f"{each.at:%d %H:%M}" for each in shown] == ["15 15:00", "14 03:07"]
    assert len(rows) == 3
    assert all(b"Fenwick" not in row.sealed for row in rows)


async def test_the_social_worker_sees_who_looked(pages: Pages) -> None:
    async with open_api(pages.world) as api:
        await api.ask("PatientFlag")
    address = await pages.alert_of(ASH)
    async with pages.signed_in(ASH) as worker:
        inbox, page = (await worker.get("/inbox")).text, (await worker.get(address)).text
    assert "Looked up, not attended" in inbox
    assert "555012345678" in page and "Who looked at this record" in page


# Who may ask, and how


REFUSED: tuple[tuple[dict[str, str], dict[str, str], int, str], ...] = (
    ({}, HEADERS, 400, "INVALID_SEARCH_DATA"),
    ({"patient": "9990000019"}, HEADERS, 400, "INVALID_SEARCH_DATA"),
    ({"patient": f"urn:other|{CASEY_NUMBER}"}, HEADERS, 400, "INVALID_SEARCH_DATA"),
    ({"patient": CASEY_NUMBER, "patient:identifier": STRANGER}, HEADERS, 400, "INVALID_SEARCH_DATA"),
    ({"patient": CASEY_NUMBER, "code": "other-flag"}, HEADERS, 400, "INVALID_SEARCH_DATA"),
    ({"patient": CASEY_NUMBER, "x": "é" * 3000}, HEADERS, 413, "TOO_LONG"),
    ({"patient": CASEY_NUMBER}, {"TraceID": "t"}, 400, "PRECONDITION_FAILED"),
    ({"patient": CASEY_NUMBER}, {"NHSD-Session-URID": "p"}, 400, "PRECONDITION_FAILED"),
    ({"patient": CASEY_NUMBER}, {**HEADERS, "NHSD-Session-URID": STRANGER}, 400, "PRECONDITION_FAILED"),
    ({"patient": CASEY_NUMBER}, {**HEADERS, "IsUnscheduledAccessEvent": "no"}, 400, "PRECONDITION_FAILED"),
    ({"patient": CASEY_NUMBER}, {**HEADERS, "Authorization": "Bearer x"}, 400, "PRECONDITION_FAILED"),
)


async def test_what_cannot_be_answered_has_the_national_code_and_tells_nobody(api: Api) -> None:
    await api.world.list_children(CASEY)
    for question, headers, status, code in REFUSED:
        auth = None if "Authorization" in headers else httpx.USE_CLIENT_DEFAULT
        answer = await api.client.get("/FHIR/R4/CareTeam", params=question, headers=headers, auth=auth)
        OperationOutcome.model_validate(answer.json())
        assert (answer.status_code, answer.json()["issue"][0]["details"]["coding"][0]["code"]) == (status, code)
        assert CASEY_NUMBER not in answer.text and STRANGER not in answer.text
    assert await api.audited() == []
    assert await api.world.alerts() == []


@pytest.mark.parametrize("auth", [("RZ1", "wrong"), ("RZ9", "rz1-credential"), ("", "x")])
async def test_whoever_is_not_known_is_denied_alike(api: Api, auth: tuple[str, str]) -> None:
    answer = await api.client.get("/FHIR/R4/CareTeam", params={"patient": CASEY_NUMBER}, headers=HEADERS, auth=auth)
    assert answer.status_code == 403
    assert answer.json()["issue"][0]["details"]["coding"][0]["code"] == "ACCESS_DENIED"
    assert CASEY_NUMBER not in answer.text


async def test_every_address_asks_who_is_there_before_anything_else(world: World) -> None:
    async with open_api(world) as api:
        for path in sorted(PATHS):
            right, wrong = ("POST", "GET") if path.endswith("_search") else ("GET", "POST")
            for method, auth, status in (
                (right, None, 400),
                (right, ("RZ1", "wrong"), 403),
                (right, ("RZ1", "rz1-credential"), 415 if right == "POST" else 400),
                (wrong, ("RZ1", "rz1-credential"), 405),
            ):
                answer = await api.client.request(method, path, headers=HEADERS, auth=auth)
                assert answer.status_code == status, (path, method, auth)


async def test_an_answer_is_given_only_when_it_is_on_record(api: Api) -> None:
    await api.world.list_children(CASEY)
    async with api.world.database.writing() as connection:
        await connection.exec_driver_sql("ALTER TABLE audit RENAME TO audit_away")
    answer = await api.client.get("/FHIR/R4/CareTeam", params={"patient": CASEY_NUMBER}, headers=HEADERS)
    assert answer.status_code in (500, 503)
    assert "Tester" not in answer.text and CASEY_NUMBER not in answer.text
    assert await api.world.alerts() == []


# What nobody else learns


class _Kept(logging.Handler):
    """Every line that reaches the root of the loggers, our own client's left out."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(("httpx", "httpcore")):
            self.lines.append(record.getMessage())


@contextmanager
def kept_lines() -> Iterator[list[str]]:
    root, kept = logging.getLogger(), _Kept()
    level = root.level
    root.addHandler(kept)
    root.setLevel(logging.DEBUG)
    try:
        yield kept.lines
    finally:
        root.removeHandler(kept)
        root.setLevel(level)


async def test_nothing_of_a_question_reaches_a_log_a_metric_or_an_error(api: Api) -> None:
    await api.world.list_children(CASEY)
    out, err, texts = io.StringIO(), io.StringIO(), []
    question = {"patient": STRANGER, "also": "Planted"}
    with capture_logs() as logged, kept_lines() as lines, redirect_stdout(out), redirect_stderr(err):
        for path in ("PatientFlag", "CareTeam/nowhere", "Nowhere", "AuditEvent/_search", "CareTeam"):
            answer = await api.client.get(f"/FHIR/R4/{path}", params=question, headers=HEADERS)
            texts.append(answer.text if answer.status_code != 200 else "")
        async with api.world.database.writing() as connection:
            await connection.exec_driver_sql("ALTER TABLE list_entries RENAME TO entries_away")
        answer = await api.client.get("/FHIR/R4/CareTeam", params=question, headers=HEADERS)
        assert answer.status_code in (500, 503)
        texts.append(answer.text)
    assert any(line["event"] == "crashed" for line in logged)
    seen = [json.dumps(logged), *texts, *lines, out.getvalue(), err.getvalue(), generate_latest(REGISTRY).decode()]
    for words in seen:
        assert STRANGER not in words and "Planted" not in words


def test_the_server_keeps_no_access_log(tmp_path: Path) -> None:
    config = configure_server(FastAPI(openapi_url=None), make_settings(tmp_path))
    assert (config.access_log, config.log_config) == (False, None)
    assert logging.getLogger("uvicorn.access").propagate is False


async def test_a_hit_and_a_miss_are_of_one_size(api: Api) -> None:
    await api.world.list_children(CASEY)
    sizes = set()
    for number in (CASEY_NUMBER, STRANGER):
        for what in ("PatientFlag", "CareTeam", "AuditEvent"):
            answer = await api.client.get(f"/FHIR/R4/{what}", params={"patient": number}, headers=HEADERS)
            sizes.add(len(answer.content))
    assert len(sizes) == 1


async def test_a_known_hit_and_a_miss_ask_the_database_the_same(api: Api) -> None:
    await api.world.list_children(CASEY)
    await api.ask("CareTeam")
    sent = []
    another = {**HEADERS, "NHSD-Session-URID": "another"}
    for number, headers in ((CASEY_NUMBER, SILENTLY), (STRANGER, SILENTLY), (CASEY_NUMBER, another)):
        with counted_statements(api.world.database) as statements:
            await api.ask("CareTeam", number, headers)
        # SQLite spells out how many values are bound, which is no difference of work.
        sent.append([re.split(" VALUES |WHERE", each)[0] for each in statements])
    hit, miss, told = sent
    if api.world.database.is_sqlite:
        assert len(miss) == 7  # lock, begin, three that read, the ends of chains, the audit
        assert [each for each in hit if not each.startswith("INSERT INTO accesses")] == miss
        assert len(hit) - len(miss) == 1  # the access itself
        assert [each for each in told if each in miss] == miss
        assert len(told) - len(hit) == 3  # the entries are held, the lanes become due; all the rest is one
    else:
        assert hit == miss == told and len(miss) == 2  # one that reads, one that writes whatever there is to write


async def test_what_a_question_costs_does_not_grow_with_what_others_were_told(
    postgres_url: str, tmp_path: Path
) -> None:
    """Statements are planned while the tables are empty, for all that comes: each row is found by an index."""
    async with open_world(postgres_url, tmp_path) as world:
        await world.list_children(CASEY)
        look_ups = LookUps(world.database, world.keyring, world.clock, world.rules)
        for number in (CASEY_NUMBER, STRANGER, CASEY_NUMBER):
            await ask_for(look_ups, number)
        async with world.database.stating() as connection:
            assert (await connection.execute(text("SHOW plan_cache_mode"))).scalar_one() == "force_generic_plan"
        await add_alerts(world.database, 400)
        before = await count_rows_read(world.database)
        await ask_for(look_ups, STRANGER)
        await ask_for(look_ups, CASEY_NUMBER, person="another")
        assert await count_rows_read(world.database) - before < 40


async def add_alerts(database: Database, count: int) -> None:
    """So many alerts more: copies of the one there is, with their visits and entries."""
    async with database.writing() as connection:
        for one, changed in (
            (tables.Visit, "id"),
            (tables.Alert, "id visit_id"),
            (tables.AlertEntry, "alert_id entry_id"),
        ):
            rows = table(one)
            copied = [
                literal_column(f"{column.name} || '-' || n") if column.name in changed.split() else column
                for column in rows.c
            ]
            numbers = func.generate_series(1, count).table_valued("n").render_derived()
            await connection.execute(
                rows.insert().from_select(rows.c.keys(), select(*copied).join_from(rows, numbers, true()))
            )


async def count_rows_read(database: Database) -> int:
    """How many rows statements have gone through, in all tables that a question looks at."""
    async with database.stating() as connection:
        await connection.execute(text("SELECT pg_stat_force_next_flush()"))
    async with database.reading() as connection:
        counted = (
            "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_user_tables WHERE relname = ANY(:names)"
        )
        names = ["alerts", "alert_entries", "visits", "accesses", "list_entries", "number_aliases"]
        return int((await connection.execute(text(counted), {"names": names})).scalar_one())


async def test_of_two_that_ask_for_one_person_at_one_moment_in_two_places_one_tells_the_authority(
    postgres_url: str, tmp_path: Path
) -> None:
    """Both have read the same, and the first that writes has it; the other reads again. Nothing of either is lost."""
    async with open_world(postgres_url, tmp_path) as world:
        await world.list_children(CASEY)
        databases = [Database(postgres_url) for _ in range(2)]
        places = [LookUps(database, world.keyring, world.clock, world.rules) for database in databases]
        await ask_for(places[0], CASEY_NUMBER)
        world.clock.advance(timedelta(days=2))
        async with world.database.writing() as connection:
            # As a dispatcher does that has nothing left to send.
            await connection.execute(table(Lane).update().values(next_due_at=None))
            asked = [asyncio.create_task(ask_for(place, CASEY_NUMBER)) for place in places]
            async with asyncio.timeout(30):
                while await count_waiting_for_locks(world) < 2:
                    assert not any(each.done() for each in asked)
        assert [b"CareTeam" in await each for each in asked] == [True, True]
        for database in databases:
            await database.close()
        assert len(await world.alerts()) == 2, "one of each day"
        async with world.database.reading() as connection:
            shown = await accesses.list_counted(connection, world.keyring, CASEY_NUMBER, rows_max=9)
            assert [each.at for each in shown] == [world.clock.now(), world.clock.now() - timedelta(days=2)]
            assert set((await connection.execute(select(table(Lane).c.next_due_at))).scalars()) == {world.clock.now()}
            assert await audit.verify_chain(connection, organisation_owner("RZ1")) is None
            assert await audit.verify_chain(connection, authority_owner("706")) is None
        assert len(await list_audited(world)) == 3


async def test_a_restriction_that_is_noted_while_somebody_asks_is_heeded(postgres_url: str, tmp_path: Path) -> None:
    """The question has read the entry as any other when the finding comes."""
    async with open_world(postgres_url, tmp_path) as world:
        await world.list_children(CASEY)
        look_ups = LookUps(world.database, world.keyring, world.clock, world.rules)
        await ask_for(look_ups, CASEY_NUMBER)
        async with world.database.writing() as finding:
            entry_id = derive_entry_id(world.keyring, "706", make_entry())
            await restrictions.note_restriction(finding, world.keyring, entry_id, is_restricted=True)
            asked = asyncio.create_task(ask_for(look_ups, CASEY_NUMBER, person="another"))
            async with asyncio.timeout(30):
                while not await count_waiting_for_locks(world):
                    assert not asked.done()
        await asked
        raised = await world.alerts()
        assert [each.is_restricted for each in raised] == [True, True]


@pytest.mark.parametrize("change", [{"dead_at": datetime(2026, 2, 14, tzinfo=UTC)}, {"nhs_index": bytes(16)}])
async def test_an_entry_that_is_taken_back_or_corrected_while_somebody_asks_tells_nobody(
    postgres_url: str, tmp_path: Path, change: dict[str, object]
) -> None:
    """The question has read the entry when the list goes on. No look-back is there to withdraw what it would raise."""
    async with open_world(postgres_url, tmp_path) as world:
        await world.list_children(CASEY)
        look_ups = LookUps(world.database, world.keyring, world.clock, world.rules)
        await ask_for(look_ups, CASEY_NUMBER)
        async with world.database.writing() as listing:
            await listing.execute(table(ListEntry).update().values(change))
            asked = asyncio.create_task(ask_for(look_ups, CASEY_NUMBER, person="another"))
            async with asyncio.timeout(30):
                while not await count_waiting_for_locks(world):
                    assert not asked.done()
        assert b"CareTeam" not in await asked
        assert len(await world.alerts()) == 1


async def ask_for(look_ups: LookUps, number: str, *, person: str = "p1") -> bytes:
    return await look_ups.answer(asker(person), NhsNumber(number), build_care_team_answer)


# Questions that wait together


def transactions(statements: Sequence[str]) -> int:
    """How many there were: each ends with the heads of its audit."""
    return sum("UPDATE audit_heads" in statement for statement in statements)


async def test_questions_that_wait_share_a_transaction_and_each_has_its_own_answer(world: World) -> None:
    await world.list_children(CASEY)
    await world.list_children(OF_EASTMERE.replace(CASEY_NUMBER, OTHER), authority="707")
    look_ups = LookUps(world.database, world.keyring, world.clock, world.rules)
    numbers = [CASEY_NUMBER, OTHER, STRANGER] * 4
    kept: list[RecordShown] = []

    def write(record: RecordShown) -> bytes:
        kept.append(record)
        return record.nhs_number.encode()

    with counted_statements(world.database) as statements:
        answers = await asyncio.gather(
            *(look_ups.answer(asker(f"p{place}"), NhsNumber(number), write) for place, number in enumerate(numbers))
        )
    assert answers == [number.encode() for number in numbers]
    assert transactions(statements) == 1
    assert [[plan.authority for plan in record.plans] for record in kept[:3]] == [["706"], ["707"], []]
    # Each sees what those who asked at the same moment did.
    assert [len(record.accesses) for record in kept[:3]] == [4, 4, 0]
    assert [len(record.notified) for record in kept[:3]] == [4, 4, 0]
    assert len(await world.alerts("706")) == len(await world.alerts("707")) == 4


async def test_a_question_that_fails_takes_no_other_with_it(world: World) -> None:
    await world.list_children(CASEY)
    look_ups = LookUps(world.database, world.keyring, world.clock, world.rules)

    def fail(_: RecordShown) -> bytes:
        raise ArithmeticError

    asked = [
        look_ups.answer(asker("p1"), NhsNumber(CASEY_NUMBER), build_care_team_answer),
        look_ups.answer(asker("p2"), NhsNumber(CASEY_NUMBER), fail),
        look_ups.answer(asker("p3", "RZ9"), NhsNumber(CASEY_NUMBER), build_care_team_answer),
        look_ups.answer(asker("p4"), NhsNumber(STRANGER), build_care_team_answer),
    ]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(each) for each in answers] == [bytes, ArithmeticError, UnknownSite, bytes]
    assert len(await world.alerts()) == 1
    async with world.database.reading() as connection:
        assert await audit.verify_chain(connection, organisation_owner("RZ1")) is None


async def test_when_the_database_is_away_all_who_wait_learn_it(world: World) -> None:
    look_ups = LookUps(world.database, world.keyring, world.clock, world.rules)
    async with world.database.writing() as connection:
        await connection.exec_driver_sql("ALTER TABLE list_entries RENAME TO entries_away")
    with counted_statements(world.database) as statements:
        asked = (look_ups.answer(asker("p"), NhsNumber(STRANGER), build_care_team_answer) for _ in range(9))
        answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(each, DBAPIError) for each in answers)
    assert sum("list_entries" in each for each in statements) == 1


async def test_a_question_waits_for_the_directory_only_when_the_one_at_hand_is_old(world: World) -> None:
    look_ups = LookUps(world.database, world.keyring, world.clock, world.rules)

    async def ask() -> bytes:
        return await look_ups.answer(asker("p"), NhsNumber(STRANGER), build_care_team_answer)

    await ask()
    async with world.database.writing() as connection:
        await connection.exec_driver_sql("ALTER TABLE authorities RENAME TO authorities_away")
    world.clock.advance(timedelta(seconds=2))
    with capture_logs() as logged:
        assert b"No record found" in await ask()
        # The directory is read anew beside the question.
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
    assert [(line["event"], line["part"]) for line in logged] == [("crashed", "look_up")]
    world.clock.advance(timedelta(seconds=4))
    with pytest.raises(DBAPIError):
        await ask()


def asker(person: str, organisation: str = "RZ1") -> Asker:
    return Asker(organisation=organisation, person=person, is_unscheduled=None)
