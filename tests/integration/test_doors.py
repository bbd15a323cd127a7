"""The machine doors of HTTP, over a real socket: what is answered, what is kept, and who may come in. No database."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from structlog.testing import capture_logs

from adapters.kafka_options import KafkaOptions
from adapters.sqlite_log import SqliteLogOptions
from broker.doors import DoorLimits, check_guarded, create_doors, join_doors
from broker.envelope import FHIR, RECORD_SEAL, enclose
from broker.intake import Intake
from broker.keyring import Keyring
from broker.senders import Senders, digest_credential, write_snapshot
from broker.settings import Settings
from schemas.directory import Sender
from schemas.record import LogRecord
from tests.bundles import encode, make_bundle, make_message, make_patient
from tests.engines import free_port
from tests.fakes import ManualClock, MemoryLog
from tests.system import until
from tests.world import FIELD_KEYS, INDEX_KEY

TOPIC = "attendances"
RING = Keyring(FIELD_KEYS, INDEX_KEY)
MESSAGE = "/FHIR/R4/$process-message"
FHIR_JSON = {"content-type": "application/fhir+json"}
PERSONAL = ("9990000018", "Tester", "Casey", "2015-03-02", "K12345", "Fall from height", "zz99")


@dataclass
class Door:
    """A door over a real socket and the log behind it."""

    client: httpx.AsyncClient
    log: MemoryLog
    port: int

    async def post(self, body: bytes, path: str = MESSAGE, **headers: str) -> httpx.Response:
        return await self.client.post(path, content=body, headers={**FHIR_JSON, **headers})

    async def kept(self) -> list[LogRecord]:
        return [
            record
            for partition in sorted(await self.log.extents(TOPIC))
            for record in self.log.records_from(partition, 0)
        ]


class _Server(uvicorn.Server):
    def install_signal_handlers(self) -> None:
        """The signals are pytest's."""


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    path = tmp_path / "senders.json"
    held = ("127.0.0.0/8",)
    digest = digest_credential(RING, "RZ1", b"rz1-credential")
    far = Sender(code="RZ3", credential_digest=digest_credential(RING, "RZ3", b"far"), peers=("10.0.0.0/8",))
    write_snapshot(path, [Sender(code="RZ1", credential_digest=digest, peers=held), far])
    log, senders = MemoryLog(partitions=2), Senders(path, RING)
    intake = Intake(log, TOPIC, RING, senders, ManualClock(datetime(2026, 2, 14, 3, 12, tzinfo=UTC)))
    limits = DoorLimits(body_bytes_max=200_000, body_timeout_s=1.5, requests_max=4)
    app = join_doors(create_doors(intake, senders, limits), FastAPI(openapi_url=None, docs_url=None, redoc_url=None))
    port = free_port()
    server = _Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started, limit_s=10, what="the door")
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", auth=("RZ1", "rz1-credential"), verify=False
    ) as client:
        yield Door(client, log, port)
    server.should_exit = True
    await serving


def issues_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"] == "application/fhir+json"
    outcome = answer.json()
    assert outcome["resourceType"] == "OperationOutcome"
    issues: list[dict[str, Any]] = outcome["issue"]
    return issues


@pytest.mark.parametrize("path", [MESSAGE, "/FHIR/R4"])
async def test_an_attendance_is_kept_as_it_came_and_answered_with_its_id(door: Door, path: str) -> None:
    body = encode(make_message())
    answer = await door.post(body, path)
    assert answer.status_code == 202
    [record] = await door.kept()
    assert RING.open(record.value, about=RECORD_SEAL) == body
    assert record.headers["content-type"] == b"application/fhir+json"
    assert record.headers["ce_source"] == b"RZ1"
    assert record.headers["ce_id"].decode() in issues_of(answer)[0]["diagnostics"]
    assert not any(value in answer.text for value in PERSONAL)


async def test_a_bundle_that_breaks_the_rules_is_kept_and_its_faults_are_named(door: Door) -> None:
    message = make_message()
    message["entry"][2]["resource"]["gender"] = "banana"
    answer = await door.post(encode(message))
    assert answer.status_code == 202
    kept, *found = issues_of(answer)
    assert kept["severity"] == "information"
    assert "Bundle.entry[2].resource.gender" in {expression for issue in found for expression in issue["expression"]}
    assert "banana" not in answer.text
    assert len(await door.kept()) == 1


async def test_a_bundle_without_an_attendance_is_kept_and_said_to_be_none(door: Door) -> None:
    answer = await door.post(encode(make_bundle(make_patient(), type="collection")))
    assert answer.status_code == 202
    assert len(issues_of(answer)) > 1
    assert len(await door.kept()) == 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"<Bundle/>", 400),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, 400),
        (encode(make_message(subject=None)) + b"x" * 200_000, 413),
        (b'{"resourceType":"Bundle","type":"searchset","entry":[]}', 422),
    ],
    ids=["nothing", "half", "list", "xml", "deep", "large", "searchset"],
)
async def test_what_cannot_be_kept_is_refused_with_the_reason(door: Door, body: bytes, status: int) -> None:
    with capture_logs() as lines:
        answer = await door.post(body)
    assert answer.status_code == status
    assert issues_of(answer)[0]["severity"] == "error"
    assert await door.kept() == []
    assert [line["event"] for line in lines if line["event"] != "senders_loaded"] == ["message_refused"]


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/fhir+xml"},
        {"content-type": "text/plain"},
        {"content-encoding": "gzip"},
    ],
)
async def test_only_json_that_is_not_compressed_is_taken(door: Door, headers: dict[str, str]) -> None:
    answer = await door.post(encode(make_message()), **headers)
    assert answer.status_code == 415
    assert "JSON" in issues_of(answer)[0]["diagnostics"]
    assert await door.kept() == []


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic",
        "Basic !!!",
        "Bearer rz1-credential",
        *(
            "Basic " + base64.b64encode(pair).decode()
            for pair in (b"RZ1:wrong", b"RZ1:", b"RZ9:rz1-credential", b"rz1-credential", b"RZ3:far", b"\xff:\xff")
        ),
    ],
)
async def test_nobody_comes_in_without_the_credential_of_a_sender(door: Door, authorization: str) -> None:
    async with httpx.AsyncClient(base_url=str(door.client.base_url)) as stranger:
        headers = {**FHIR_JSON, **({"authorization": authorization} if authorization else {})}
        answer = await stranger.post(MESSAGE, content=encode(make_message()), headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Basic ")
    assert issues_of(answer)[0]["code"] == "login"
    assert await door.kept() == []


async def test_what_is_not_durable_is_to_be_sent_again(door: Door) -> None:
    door.log.is_reachable = False
    answer = await door.post(encode(make_message()))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert issues_of(answer)[0]["code"] == "transient"
    door.log.is_reachable = True
    assert (await door.post(encode(make_message()))).status_code == 202


async def test_a_body_that_does_not_arrive_is_given_up(door: Door) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    credential = base64.b64encode(b"RZ1:rz1-credential").decode()
    writer.write(
        f"POST {MESSAGE} HTTP/1.1\r\nhost: door\r\nauthorization: Basic {credential}\r\n"
        "content-type: application/fhir+json\r\ncontent-length: 5000\r\n\r\n{".encode()
    )
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    assert answer.startswith(b"HTTP/1.1 408")
    writer.close()
    assert await door.kept() == []


async def test_ids_of_the_request_come_back_when_they_are_plain(door: Door) -> None:
    answer = await door.post(encode(make_message()), **{"x-request-id": "abc-1", "x-correlation-id": "x y<script>"})
    assert answer.headers["x-request-id"] == "abc-1"
    assert "x-correlation-id" not in answer.headers


async def test_other_addresses_answer_as_a_fhir_server_does(door: Door) -> None:
    assert (await door.client.get(MESSAGE)).status_code == 405
    missing = await door.post(b"{}", "/FHIR/R4/Patient")
    assert (missing.status_code, issues_of(missing)[0]["code"]) == (404, "not-found")


async def test_the_same_bundle_twice_has_one_id(door: Door) -> None:
    body = encode(make_message())
    first, second = await door.post(body), await door.post(body)
    assert issues_of(first)[0] == issues_of(second)[0]


def test_the_largest_bundle_that_is_taken_fits_into_a_record_of_either_log() -> None:
    largest_bytes = Settings(_env_file=None).fhir_bundle_bytes_max  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        Settings(_env_file=None, fhir_bundle_bytes_max=largest_bytes + 1)  # type: ignore[call-arg]
    assert DoorLimits().body_bytes_max == largest_bytes
    record = enclose(
        RING,
        bytes(largest_bytes),
        sender="RZ1",
        control_id="c" * 250,
        said=None,
        content_type=FHIR,
        at=datetime(2026, 2, 14, 3, 12, tzinfo=UTC),
    )
    size_bytes = len(record.key) + len(record.value) + sum(len(n) + len(v) for n, v in record.headers.items())
    assert size_bytes < SqliteLogOptions(path=Path("log.sqlite")).record_bytes_max
    assert size_bytes < KafkaOptions(bootstrap_servers="").record_bytes_max


def test_a_door_without_a_rule_stops_the_start() -> None:
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_api_route("/open", lambda: None, methods=["POST"])
    with pytest.raises(RuntimeError, match="/open asks for no credential"):
        check_guarded(app.routes)


async def test_nothing_personal_is_logged(door: Door) -> None:
    message = make_message()
    message["entry"][2]["resource"]["birthDate"] = "2015-13-45"
    with capture_logs() as lines:
        await door.post(encode(message))
        await door.post(encode(make_message())[:-10])
    assert not any(value in json.dumps(lines, default=str) for value in PERSONAL)
