"""The outside world's FHIR: what a department writes is valid, its link is stubborn, and faults are got over."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from fhir.resources.R4B.bundle import Bundle

from adapters.fhir import read_bundle
from mock_nhs.department import AdtMessage, Department, Identity
from mock_nhs.ed_system import EdOptions, EdSystem, main
from mock_nhs.faults import Faults, read_faults
from mock_nhs.fhir_bundle import FHIR_JSON
from mock_nhs.fhir_link import FhirLinkOptions
from mock_nhs.fhir_listener import FhirListenerOptions
from mock_nhs.http_listener import HEAD_BYTES_MAX, Answer, Request, read_request
from mock_nhs.journal import read_journal
from mock_nhs.mllp_link import LinkOptions
from mock_nhs.reply_listener import ReplyListenerOptions
from mock_nhs.town import build_town, write_csv

NOW = datetime(2026, 7, 14, 19, 15, 3, tzinfo=UTC)
TOWN = build_town(3, on=date(2026, 7, 14), people=200, listed=20, near_twins=3)
ACCEPTED = Answer(
    status=202,
    content={"resourceType": "OperationOutcome", "issue": [{"severity": "information", "code": "informational"}]},
)


def department(*, fhir: float = 1.0, faults: Faults | None = None, seed: int = 1) -> Department:
    return Department(
        site="RZ1", credential="secret", people=TOWN.people, clock=lambda: NOW, fhir=fhir, faults=faults, seed=seed
    )


def resource(message: AdtMessage, kind: str) -> dict[str, Any]:
    found = [entry["resource"] for entry in json.loads(message.body)["entry"]]
    [only] = [each for each in found if each["resourceType"] == kind]
    return dict(only)


def kinds(message: AdtMessage) -> list[str]:
    return [entry["resource"]["resourceType"] for entry in json.loads(message.body)["entry"]]


# What is written


def test_every_message_of_a_day_is_a_valid_message_bundle_with_ids_of_its_own() -> None:
    desk = department()
    messages = [desk.next_message() for _ in range(120)]
    for message in messages:
        bundle = Bundle.model_validate_json(message.body)
        assert bundle.type == "message"
        assert message.content_type == FHIR_JSON
        assert resource(message, "MessageHeader")["id"] == message.control_id == str(UUID(message.control_id))
    assert len({message.control_id for message in messages}) == len({m.body for m in messages}) == 120
    assert {message.event for message in messages} == {"A01", "A03", "A04", "A08", "A31"}


def test_a_registration_has_the_shape_of_uk_core() -> None:
    person = next(person for person in TOWN.people if person.sex == "2")
    message = department().register(person, complaint='D&V "since" yesterday')
    patient, encounter = resource(message, "Patient"), resource(message, "Encounter")
    local, national = patient["identifier"]
    assert local["value"] == message.local_patient_id
    assert (national["system"], national["value"]) == ("https://fhir.nhs.uk/Id/nhs-number", person.nhs_number)
    assert national["extension"][0]["valueCodeableConcept"]["coding"][0]["code"] == "01"
    assert (patient["name"][0]["family"], patient["birthDate"]) == (person.family_name, person.birth_date.isoformat())
    assert " ".join(patient["name"][0]["given"]) == person.given_name
    assert (patient["gender"], patient["address"][0]["postalCode"]) == ("female", person.postcode)
    assert (encounter["status"], encounter["class"]["code"]) == ("arrived", "EMER")
    assert encounter["identifier"][0]["value"] == message.visit_number
    assert encounter["period"] == {"start": "2026-07-14T20:15:03+01:00"}
    assert encounter["reasonCode"][0]["text"] == 'D&V "since" yesterday'
    assert resource(message, "Organization")["identifier"][0]["value"] == "RZ1"
    header = resource(message, "MessageHeader")
    assert header["eventCoding"]["code"] == "A04"
    assert header["focus"][0]["reference"] == f"urn:uuid:{encounter['id']}"


def test_updates_tell_of_the_visit_and_a_person_update_of_the_person_alone() -> None:
    desk = department()
    visit = desk.register(TOWN.people[0], Identity.LATE)
    assert len(resource(visit, "Patient")["identifier"]) == 1
    assert len(resource(desk.update(visit.visit_number), "Patient")["identifier"]) == 2
    assert "Encounter" not in kinds(desk.update(visit.visit_number, "A31"))
    left = resource(desk.update(visit.visit_number, "A03"), "Encounter")
    assert (left["status"], left["period"]["end"]) == ("finished", "2026-07-14T20:15:03+01:00")


def test_an_unreadable_message_has_no_patient() -> None:
    message = department(faults=read_faults(["ed.write.unreadable:1"])).register(TOWN.people[0])
    assert message.unreadable
    assert "Patient" not in kinds(message)


def test_a_share_of_the_visits_goes_by_fhir_each_as_a_whole_and_the_others_stay_what_they_were() -> None:
    mixed, plain = department(fhir=0.5), department(fhir=0.0)
    messages = [mixed.next_message() for _ in range(600)]
    plain_messages = [plain.next_message() for _ in range(600)]
    assert all(message.content_type != FHIR_JSON for message in plain_messages)
    by_visit: dict[str, set[str]] = {}
    for message in messages:
        by_visit.setdefault(message.visit_number, set()).add(message.content_type)
    assert all(len(types) == 1 for types in by_visit.values())
    shares = Counter(next(iter(types)) == FHIR_JSON for types in by_visit.values())
    assert 0.3 < shares[True] / len(by_visit) < 0.7
    hl7 = [(m.body, p.body) for m, p in zip(messages, plain_messages, strict=True) if m.content_type != FHIR_JSON]
    assert all(body == same for body, same in hl7)


def test_the_broker_reads_from_it_what_the_department_knows() -> None:
    """Two independent pieces of code agree on the wire."""
    desk = department()
    visits = [message for message in (desk.next_message() for _ in range(150)) if message.event != "A31"]
    for message in visits:
        reading = read_bundle(message.body)
        read = reading.attendance
        assert reading.findings == ()
        assert (read.sender, read.control_id, read.visit_number, read.local_patient_id) == (
            "RZ1",
            message.control_id,
            message.visit_number,
            message.local_patient_id,
        )
        valid = message.nhs_number if message.identity is not Identity.INVALID else ""
        assert (read.nhs_number or "") == valid
        assert (read.birth_date, read.postcode) == (message.person.birth_date, message.person.postcode)
        assert read.names[0].given == message.person.given_name
        assert read.arrived_at == NOW
        assert (read.event == "A03") == (message.event == "A03")


# Sending


class Door:
    """The least a FHIR door can be: it keeps what comes and answers what ``answer`` says; None closes."""

    def __init__(self, answer: Callable[[Request], Answer | None] = lambda request: ACCEPTED) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError):
            while (request := await read_request(reader)) is not None:
                self.requests.append(request)
                answer = self.answer(request)
                if answer is None:
                    break
                writer.write(answer.as_bytes())
                await writer.drain()
        writer.close()


@asynccontextmanager
async def sending(record: Path, door: Door, faults: Faults | None = None) -> AsyncIterator[EdSystem]:
    server = await asyncio.start_server(door.serve, "127.0.0.1", 0, limit=HEAD_BYTES_MAX)
    port = server.sockets[0].getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    system = EdSystem(
        EdOptions(
            link=LinkOptions(host="127.0.0.1", port=1),
            replies=ReplyListenerOptions(site="RZ1"),
            connections=0,
            listens=False,
            fhir=FhirLinkOptions(base=base, user="RZ1", password="secret", pause_s=0.01, answer_timeout_s=1.0),
        ),
        record,
        faults,
    )
    await system.start()
    try:
        yield system
    finally:
        await system.stop()
        server.close()
        await server.wait_closed()


async def send(system: EdSystem, count: int = 3) -> list[AdtMessage]:
    desk = department()
    messages = [desk.next_message() for _ in range(count)]
    for message in messages:
        await system.offer(message)
    assert await system.settle(timeout_s=10)
    return messages


def answers(record: Path) -> list[tuple[str, int]]:
    return [(line["code"], line["attempts"]) for line in read_journal(record) if line["what"] == "answered"]


async def test_messages_are_posted_in_order_to_the_door_with_the_sites_credential(tmp_path: Path) -> None:
    door = Door()
    async with sending(tmp_path / "ed.jsonl", door) as system:
        messages = await send(system)
    assert [request.body for request in door.requests] == [message.body for message in messages]
    assert door.connections == 1
    request = door.requests[0]
    assert (request.method, request.path) == ("POST", "/FHIR/R4/$process-message")
    assert request.headers["content-type"] == "application/fhir+json"
    assert base64.b64decode(request.headers["authorization"].removeprefix("Basic ")) == b"RZ1:secret"
    assert system.answers == {"202": 3}
    assert answers(tmp_path / "ed.jsonl") == [("202", 1)] * 3


@pytest.mark.parametrize("first", [Answer(status=503, headers={"Retry-After": "1"}), Answer(status=429), None])
async def test_the_same_bytes_are_sent_again_until_they_are_accepted(tmp_path: Path, first: Answer | None) -> None:
    turns = iter([first, first])
    door = Door(lambda request: next(turns, ACCEPTED))
    async with sending(tmp_path / "ed.jsonl", door) as system:
        [message] = await send(system, 1)
    assert [request.body for request in door.requests] == [message.body] * 3
    assert answers(tmp_path / "ed.jsonl")[-1] == ("202", 3)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Answer(status=400), "400"),
        (Answer(status=401), "401"),
        (Answer(status=422), "422"),
        (Answer(status=202, content={"received": True}), "202_without_outcome"),
    ],
)
async def test_any_other_answer_ends_it_and_is_written_down(tmp_path: Path, answer: Answer, code: str) -> None:
    door = Door(lambda request: answer)
    async with sending(tmp_path / "ed.jsonl", door) as system:
        await send(system, 1)
    assert len(door.requests) == 1
    assert answers(tmp_path / "ed.jsonl") == [(code, 1)]


@pytest.mark.parametrize(
    ("fault", "received", "attempts"),
    [("ed.post.half_request", 1, 2), ("ed.post.hang_up", 2, 2), ("ed.post.twice", 2, 1)],
)
async def test_a_fault_in_sending_happens_once_and_is_got_over(
    tmp_path: Path, fault: str, received: int, attempts: int
) -> None:
    door = Door()
    async with sending(tmp_path / "ed.jsonl", door, read_faults([f"{fault}:1"])) as system:
        [message] = await send(system, 1)
    assert [request.body for request in door.requests] == [message.body] * received
    assert answers(tmp_path / "ed.jsonl") == [("202", attempts)]


async def test_a_door_that_stays_silent_is_asked_again(tmp_path: Path) -> None:
    release = asyncio.Event()
    door, silent = Door(), Door()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if silent.connections:
            await Door.serve(door, reader, writer)
            return
        silent.connections += 1
        await release.wait()
        writer.close()

    door.serve = serve  # type: ignore[method-assign]  # the first connection falls silent
    async with sending(tmp_path / "ed.jsonl", door) as system:
        [message] = await send(system, 1)
        release.set()
    assert [request.body for request in door.requests] == [message.body]
    assert answers(tmp_path / "ed.jsonl") == [("202", 2)]


# The program


def test_the_program_plays_a_day_by_fhir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against a door in another thread, for the program has an event loop of its own."""
    write_csv(TOWN, tmp_path)
    door, done, started = Door(), asyncio.Event(), threading.Event()
    ready: list[Any] = []

    async def serve() -> None:
        server = await asyncio.start_server(door.serve, "127.0.0.1", 0, limit=HEAD_BYTES_MAX)
        ready.extend([server.sockets[0].getsockname()[1], asyncio.get_running_loop()])
        started.set()
        await done.wait()
        server.close()
        await server.wait_closed()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(10)
    try:
        base = f"http://127.0.0.1:{ready[0]}"
        given = [
            "--site",
            "RZ1",
            "--people",
            str(tmp_path),
            "--messages",
            "5",
            "--connections",
            "0",
            "--fhir",
            "1",
            "--fhir-base",
            base,
        ]
        assert main([*given, "--fhir-reply-port", "0", "--record", str(tmp_path / "ed.jsonl")]) == 0
    finally:
        ready[1].call_soon_threadsafe(done.set)
        thread.join(10)
    assert len(door.requests) == 5
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["answers"] == {"202": 5}


# Taking replies


async def test_a_request_that_is_no_reply_is_refused_and_written_down(tmp_path: Path) -> None:
    options = EdOptions(
        link=LinkOptions(host="127.0.0.1", port=1),
        replies=ReplyListenerOptions(site="RZ1"),
        connections=0,
        listens=False,
        fhir_replies=FhirListenerOptions(),
    )
    system = EdSystem(options, tmp_path / "ed.jsonl")
    await system.start()
    ids = {"x-request-id": str(UUID(int=1)), "x-correlation-id": str(UUID(int=1))}
    fhir = {"content-type": FHIR_JSON, **ids}
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            tried = [
                await client.post(system.reply_url, content=b"{}", headers=fhir),
                await client.post(system.reply_url, content=b"[" * 50_000, headers=fhir),
                await client.post(system.reply_url, content=b"{}", headers=ids),
                await client.post(system.reply_url, content=b"{}", headers={"content-type": FHIR_JSON}),
                await client.post(system.reply_url, content=b"{}", headers={**fhir, "authorization": "Bearer x"}),
                await client.post(system.reply_url + "x", content=b"{}", headers=fhir),
                await client.get(system.reply_url, headers=fhir),
            ]
    finally:
        await system.stop()
    assert [response.status_code for response in tried] == [422, 422, 415, 400, 401, 404, 405]
    assert {response.json()["resourceType"] for response in tried} == {"OperationOutcome"}
    refused = [line["reason"] for line in read_journal(tmp_path / "ed.jsonl") if line["what"] == "reply_refused"]
    assert len(refused) == 7
    assert system.replies == []
