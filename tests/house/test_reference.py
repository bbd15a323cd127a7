"""The reference says what the code does: neither forgets anything of the other."""

from __future__ import annotations

import ast
import asyncio
import base64
import inspect
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Any

import msgspec
import pytest
import typer
from joserfc import jwe
from joserfc.jwk import OctKey
from prometheus_client.metrics import MetricWrapperBase

from adapters import child_list_csv, fhir_bundle, force_csv, incident_csv, kafka_options, school_csv
from adapters.child_list_csv import RowProblem
from adapters.child_list_json import read_children_json
from adapters.fhir import read_bundle
from adapters.fhir_reply import FhirReplyChannel
from adapters.posting import PostingOptions
from adapters.topic import TopicChannel, TopicOptions
from adapters.webhook import sign_webhook
from broker import doors, intake, telemetry
from broker.cli import app
from broker.domain.visits import opens_visit
from broker.envelope import EVENT_TYPE, FHIR, HL7V2
from broker.exits import EXIT_CONFIGURATION, EXIT_IN_PART, EXIT_NOT_WELL
from broker.liveness import EXIT_SILENT
from broker.telemetry import LogEvent
from broker.topics import TOPICS
from broker.web import list_door
from schemas.alert import SocialCareAlert
from schemas.attendance import Event
from schemas.delivery import Parcel
from schemas.record import Partition
from schemas.upload import FileCode, RecordCode, UploadReport
from tests.house.reference import GENERATED, REGENERATE, ROOT, read_code, read_rows

REFERENCE = "docs/reference"


@cache
def text_of(name: str) -> str:
    """The text of a reference page."""
    return (ROOT / REFERENCE / name).read_text(encoding="utf-8")


def block_of(name: str, language: str, heading: str = "") -> str:
    """The first block of code in a language, below a heading."""
    text = text_of(name)
    found = re.search(rf"^```{language}\n(.*?)^```$", text[text.index(heading) :], re.M | re.S)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("path", GENERATED)
def test_what_is_made_from_the_code_is_up_to_date(path: str) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == GENERATED[path](), f"run {REGENERATE}"


# Commands


def commands() -> Iterator[tuple[str, Any]]:
    """Every command of the command line by its words."""
    waiting: list[tuple[str, Any]] = [("", typer.main.get_command(app))]
    while waiting:
        words, command = waiting.pop()
        if hasattr(command, "commands"):
            waiting += [(f"{words} {name}".strip(), child) for name, child in command.commands.items()]
        else:
            yield words, command


def command_names() -> list[str]:
    """The words of every command."""
    return [words for words, _ in commands()]


def test_every_command_has_its_section_and_every_section_its_command() -> None:
    described = re.findall(r"^## cpis-broker (.+)$", text_of("commands.md"), re.M)
    assert sorted(described) == sorted(command_names())


@pytest.mark.parametrize("words", sorted(command_names()))
def test_every_option_is_explained_and_none_that_is_not_there(words: str) -> None:
    section = text_of("commands.md").split(f"## cpis-broker {words}\n")[1].split("\n## ")[0]
    explained = re.findall(r"^- `(--[a-z-]+)`", section, re.M)
    options = [each for each in dict(commands())[words].params if each.param_type_name == "option" and not each.hidden]
    assert sorted(explained) == sorted(option.opts[0] for option in options)


def test_every_exit_code_is_explained() -> None:
    explained = {int(row[0]) for row in read_rows(f"{REFERENCE}/commands.md", "Exit codes")}
    assert explained == {0, EXIT_NOT_WELL, EXIT_CONFIGURATION, EXIT_IN_PART, EXIT_SILENT, 130}


# Log events and metrics


def fields_logged() -> dict[str, set[str]]:
    """The fields with which each event is logged anywhere in the product."""
    found: dict[str, set[str]] = {event.value: set() for event in LogEvent}
    for path in (ROOT / "broker").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "log" and node.args:
                event = getattr(LogEvent, ast.unparse(node.args[0]).removeprefix("LogEvent."), None)
                if isinstance(event, LogEvent):
                    found[event.value] |= {keyword.arg for keyword in node.keywords if keyword.arg}
    return found


def test_every_log_event_is_explained_with_its_fields() -> None:
    rows = list(read_rows(f"{REFERENCE}/log-events.md", "Events"))
    explained = {read_code(row[0])[0]: set(row[1].split(", ")) for row in rows}
    assert explained == fields_logged()
    assert [read_code(row[0])[0] for row in rows] == [event.value for event in LogEvent]


def test_every_metric_is_explained_with_its_labels() -> None:
    explained = {
        read_code(name)[0].removesuffix("_total"): tuple(labels.split(", ")) if labels else ()
        for name, labels, _ in read_rows(f"{REFERENCE}/log-events.md", "Metrics")
    }
    metrics = [each for each in vars(telemetry).values() if isinstance(each, MetricWrapperBase)]
    assert explained == {metric._name: metric._labelnames for metric in metrics}


def test_everything_that_adapters_report_is_explained() -> None:
    wires = ("mllp", "webhook", "fhir_reply")
    pattern = re.compile(r'(?:on_event\(\s*|event=)"([a-z_]+)"')
    reported = {name for wire in wires for name in pattern.findall((ROOT / "adapters" / f"{wire}.py").read_text())}
    assert {"mllp_refused", "webhook_failed", "fhir_reply_failed"} <= reported
    assert reported <= set(read_code(text_of("log-events.md")))


# HL7 v2


def fields_read() -> set[str]:
    """Every field that the reader of attendances asks a message for."""
    methods = {"text", "identifier", "namespace", "repetitions", "raw"}
    found = set()
    for name in ("hl7v2.py", "hl7v2_patient.py"):
        for node in ast.walk(ast.parse((ROOT / "adapters" / name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in methods:
                match node.args:
                    case [ast.Constant(value=str(segment)), ast.Constant(value=int(number)), *_]:
                        found.add(f"{segment}-{number}")
    return {field for field in found if not field.startswith("MSA")}


def test_every_field_that_is_read_is_listed_and_no_other() -> None:
    listed = {field for row in read_rows(f"{REFERENCE}/hl7v2-in.md", "What is read") for field in row[0].split(", ")}
    echoed_or_secret = {"MSH-3", "MSH-5", "MSH-6", "MSH-8"}
    assert listed - echoed_or_secret == fields_read()


def test_every_reason_for_not_understanding_is_listed() -> None:
    rooms = ("er7.py", "hl7v2.py", "hl7v2_patient.py")
    text = "".join((ROOT / "adapters" / name).read_text(encoding="utf-8") for name in rooms)
    reasons = set(re.findall(r'(?:Unreadable|NotHl7)\("([a-z0-9_]+)"', text)) | {"several_patients", "no_pid"}
    reasons -= {"no_msa", "unknown_ack_code", "not_an_attendance"}
    listed = [row for row in read_rows(f"{REFERENCE}/hl7v2-in.md", "What is answered") if len(row) == 2]
    assert {read_code(row[0])[0] for row in listed if read_code(row[0]) and row[0].startswith("`")} == reasons


def test_every_event_is_listed_with_whether_it_says_that_the_person_is_here() -> None:
    rows = list(read_rows(f"{REFERENCE}/hl7v2-in.md", "Which messages do something"))
    listed = {event: row[2] == "yes" for row in rows for event in row[0].split(", ")}
    assert listed == {event.value: opens_visit(event) for event in Event}


# FHIR


def elements_read() -> set[str]:
    """The name of every element that the reader of Bundles asks for."""
    methods = {"child", "children", "follow", "get", "read_ods_code"}
    found = set()
    for path in sorted((ROOT / "adapters").glob("fhir*.py")):
        if path.stem in ("fhir_reply", "fhir_writer", "fhir_guard"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
                if name in methods or name.startswith("read_"):
                    found |= {word.value for word in node.args if isinstance(word, ast.Constant)}
    return {word for word in found if isinstance(word, str)}


def test_every_element_that_is_read_is_listed_and_no_other() -> None:
    text = text_of("fhir-in.md").split("## What is read\n")[1].split("\n## ")[0]
    rows = list(read_rows(f"{REFERENCE}/fhir-in.md", "What is read"))
    listed = {word for row in rows for path in read_code(row[0]) for word in path.split(".")[1:]}
    of_types = {"coding", "contained", "resource", "resourceType"}
    assert listed <= elements_read()
    explained = {word for code in read_code(text) for word in re.split(r"[.]", code)}
    assert elements_read() - explained - of_types == set()


def test_every_reason_for_refusing_a_bundle_is_listed_with_its_status() -> None:
    rooms = ("fhir.py", "fhir_bundle.py", "fhir_encounter.py", "fhir_guard.py")
    text = "".join((ROOT / "adapters" / name).read_text(encoding="utf-8") for name in rooms)
    written = set(re.findall(r'(?:refuse\(|reason = |reason, fault = )"([a-z_]+)"', text))
    rows = read_rows(f"{REFERENCE}/fhir-in.md", "Why a Bundle is refused")
    assert {read_code(row[0])[0]: int(row[1]) for row in rows} == {
        reason: intake._REFUSALS.get(reason, 422) for reason in written
    }


def test_every_status_of_the_doors_is_listed() -> None:
    rows = list(read_rows(f"{REFERENCE}/fhir-in.md", "What is answered"))
    assert {int(row[0]) for row in rows if row[0].isdigit()} == {intake.ACCEPTED, *doors._WORDS}


def test_every_status_of_the_list_door_is_listed() -> None:
    rows = list(read_rows(f"{REFERENCE}/child-lists.md", "Doors"))
    assert {int(row[0]) for row in rows if row[0].isdigit()} == {200, 202, 409, 422, *list_door.WORDS}


def test_every_code_of_an_upload_and_every_field_of_the_report_is_explained() -> None:
    for heading, codes in (("File codes", FileCode), ("Record codes", RecordCode)):
        listed = [read_code(row[0])[0] for row in read_rows(f"{REFERENCE}/child-lists.md", heading)]
        assert listed == [code.value for code in codes]
    named = {name for row in read_rows(f"{REFERENCE}/child-lists.md", "Report") for name in read_code(row[0])}
    assert named == set(UploadReport.__struct_fields__)
    body = block_of("child-lists.md", "json", "## Report").strip().encode()
    assert msgspec.json.encode(msgspec.json.decode(body, type=UploadReport)) == body


def test_the_example_in_json_is_read_without_a_problem() -> None:
    rows = list(read_children_json(block_of("child-lists.md", "json", "## JSON").encode()))
    assert len(rows) == 1
    assert not [row for _, row in rows if isinstance(row, RowProblem)]


def test_every_type_of_bundle_is_named_as_taken_or_refused() -> None:
    text = " ".join(text_of("fhir-in.md").split())
    [taken] = re.findall(r"Bundle\.type may be ([^.]+)\.", text)
    [refused] = re.findall(r"\. A (`document`[^.]+) is refused", text)
    assert set(read_code(taken)) == fhir_bundle._ACCEPTED_TYPES
    assert set(read_code(refused)) == fhir_bundle._OTHER_TYPES


def test_the_bundle_of_the_how_to_is_read_without_a_fault() -> None:
    text = (ROOT / "docs/how-to/connect-a-department.md").read_text(encoding="utf-8")
    reading = read_bundle(text.split("<<'BUNDLE'\n")[1].split("\nBUNDLE\n")[0].encode())
    assert reading.findings == ()
    said = reading.attendance
    assert said.event is Event.REGISTERED
    assert said.nhs_number and said.local_patient_id and said.names and said.birth_date and said.visit_number


# CSV

FILES: dict[str, tuple[str, Callable[[bytes], Any], str]] = {
    "Child list": ("_child", child_list_csv.read_children, "csv.md"),
    "Authorities": ("_authority", child_list_csv.read_authorities, "csv.md"),
    "Workers": ("_worker", child_list_csv.read_workers, "csv.md"),
    "Sites": ("_site", child_list_csv.read_sites, "csv.md"),
    "Clinicians": ("_clinician", child_list_csv.read_clinicians, "csv.md"),
    "Forces": ("_force", force_csv.read_forces, "encompass-csv.md"),
    "People who sign in": ("_person", force_csv.read_encompass_people, "encompass-csv.md"),
    "Schools": ("_school", school_csv.read_schools, "encompass-csv.md"),
    "Safeguarding contacts": ("_contact", school_csv.read_safeguarding_contacts, "encompass-csv.md"),
    "Pupils": ("_pupil", school_csv.read_pupils, "encompass-csv.md"),
    "Term dates": ("_days", school_csv.read_term_dates, "encompass-csv.md"),
}


def columns_read(function: str) -> set[str]:
    """Every column that a row's function asks for."""
    trees = [ast.parse(inspect.getsource(module)) for module in (child_list_csv, school_csv, force_csv)]
    nodes = [node for tree in trees for node in tree.body]
    [body] = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == function]
    return {
        node.args[0].value
        for node in ast.walk(body)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "fields"
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    }


@pytest.mark.parametrize("heading", FILES)
def test_the_columns_of_a_file_are_those_that_are_read(heading: str) -> None:
    function, _, page = FILES[heading]
    listed = {read_code(row[0])[0] for row in read_rows(f"{REFERENCE}/{page}", heading) if read_code(row[0])}
    assert listed == columns_read(function)


def test_the_columns_of_an_incident_are_those_that_are_read() -> None:
    asked = {
        name.value
        for node in ast.walk(ast.parse(inspect.getsource(incident_csv)))
        if isinstance(node, ast.Call)
        for name in (node.args[:1] if ast.unparse(node.func).startswith("fields.") else node.args[1:])
        if isinstance(name, ast.Constant) and ast.unparse(node.func).startswith(("fields.", "_instant"))
    }
    listed = {name for row in read_rows(f"{REFERENCE}/incidents-in.md", "CSV") for name in read_code(row[0])}
    assert listed == asked | {"occurred_at", "reported_at"}
    example = block_of("incidents-in.md", "csv").encode()
    [(_, incident)] = incident_csv.read_incidents(example, received_at=datetime(2026, 11, 22, tzinfo=UTC))
    assert not isinstance(incident, RowProblem)


@pytest.mark.parametrize("heading", FILES)
def test_the_example_of_a_file_is_read_without_a_problem(heading: str) -> None:
    _, read, page = FILES[heading]
    rows = list(read(block_of(page, "csv", f"## {heading}\n").encode()))
    assert rows
    assert not [row for _, row in rows if isinstance(row, RowProblem)]


@pytest.mark.parametrize("heading", FILES)
def test_a_column_is_required_exactly_when_the_reference_says_so(heading: str) -> None:
    _, read, page = FILES[heading]
    example = block_of(page, "csv", f"## {heading}\n").splitlines()
    columns = example[0].split(",")
    for column, required, *_ in read_rows(f"{REFERENCE}/{page}", heading):
        place = columns.index(read_code(column)[0])
        values = example[1].split(",")
        values[place] = ""
        if column in ("`reply_host`", "`reply_port`"):
            values[columns.index("reply_host")] = values[columns.index("reply_port")] = ""
        [(_, row)] = list(read("\n".join([example[0], ",".join(values)]).encode()))
        assert isinstance(row, RowProblem) == (required == "yes"), column


# What leaves


def test_the_webhooks_example_has_the_schema_and_the_signature() -> None:
    body = block_of("webhook.md", "json").strip().encode()
    assert msgspec.json.encode(msgspec.json.decode(body, type=SocialCareAlert)) == body
    text = text_of("webhook.md")
    [secret] = re.findall(r"With the secret `([^`]+)`", text)
    [key], [stamp] = re.findall(r"`webhook-id: ([^`]+)`", text), re.findall(r"`webhook-timestamp: ([0-9]+)`", text)
    signature = block_of("webhook.md", "", "## Verify").strip()
    assert sign_webhook(base64.b64decode(secret), key, int(stamp), body) == signature

    code: dict[str, Any] = {}
    exec(block_of("webhook.md", "python"), code)
    headers = {"webhook-id": key, "webhook-timestamp": stamp, "webhook-signature": f"v1,AAAA {signature}"}
    assert code["is_genuine"](headers, body, secret, now=float(stamp) + 200)
    assert not code["is_genuine"](headers, body + b" ", secret, now=float(stamp))
    assert not code["is_genuine"](headers, body, secret, now=float(stamp) + 400)


def test_every_field_of_an_alert_is_explained() -> None:
    rows = list(read_rows(f"{REFERENCE}/webhook.md", "The request"))
    named = {name for row in rows for name in read_code(row[0])}
    assert {*SocialCareAlert.__struct_fields__} - named == {"authority", "raised_at", "reason"}


def test_the_headers_of_the_webhook_are_listed() -> None:
    tree = ast.parse((ROOT / "adapters" / "webhook.py").read_text(encoding="utf-8"))
    [function] = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "_headers"]
    [written] = [node for node in ast.walk(function) if isinstance(node, ast.Dict)]
    sent = [key.value for key in written.keys if isinstance(key, ast.Constant)]
    rows = list(read_rows(f"{REFERENCE}/webhook.md", "The request"))
    assert [read_code(row[0])[0] for row in rows[: len(sent)]] == sent


async def test_the_headers_of_a_reply_by_fhir_are_listed() -> None:
    received: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    options = PostingOptions(allow_plain_http=True, allow_private_addresses=True)
    channel = FhirReplyChannel(options, on_event=lambda name, facts: None, now=lambda: datetime.now(UTC))
    parcel = Parcel(
        idempotency_key="key",
        event_type="type",
        created_at=datetime(2026, 2, 14, 3, 12, tzinfo=UTC),
        address=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/",
        secret=b"token",
        recipient="organisation:RZ1",
        content=b"{}",
        content_type="application/fhir+json",
    )
    await channel.send(parcel)
    await channel.close()
    server.close()
    sent = {line.partition(b":")[0].decode().lower() for line in received[0].split(b"\r\n")[1:] if line}
    of_http = {"host", "content-length", "accept-encoding", "connection"}
    rows = read_rows(f"{REFERENCE}/fhir-reply.md", "The request")
    assert {read_code(row[0])[0] for row in rows if read_code(row[0])} == sent - of_http


class _Appended:
    def __init__(self) -> None:
        self.headers: dict[str, bytes] = {}

    async def append(self, topic: str, *, key: bytes | None, value: bytes, headers: Any) -> tuple[Partition, int]:
        self.headers = dict(headers)
        return Partition(topic, 0), 0


async def test_the_headers_of_a_recipients_record_are_listed() -> None:
    log = _Appended()
    parcel = Parcel(
        idempotency_key="key",
        event_type="type",
        created_at=datetime(2026, 2, 14, 3, 12, tzinfo=UTC),
        address="social-care-alerts",
        secret=bytes(32),
        recipient="authority:706",
        content=b"{}",
        content_type="application/json",
    )
    await TopicChannel(log, TopicOptions()).send(parcel)
    rows = list(read_rows(f"{REFERENCE}/kafka-topics.md", "social-care-alerts, clinician-replies"))
    assert [read_code(row[0])[0] for row in rows] == list(log.headers)


def test_the_topics_and_their_settings_are_as_the_code_makes_them() -> None:
    text = text_of("kafka-topics.md")
    rows = [row for row in read_rows(f"{REFERENCE}/kafka-topics.md") if len(row) == 5]
    assert [read_code(row[0])[0] for row in rows] == list(TOPICS)
    largest = kafka_options.KafkaOptions(bootstrap_servers="").record_bytes_max + kafka_options.RECORD_OVERHEAD_BYTES
    assert f"| `max.message.bytes` | {largest} |" in text
    assert f"`{HL7V2}`" in text and f"`{FHIR}`" in text
    assert f"`{EVENT_TYPE.decode()}`" in text


def test_the_example_of_an_encrypted_value_opens() -> None:
    text = text_of("kafka-topics.md")
    [secret] = re.findall(r"With the secret `([^`]+)`", text)
    value = block_of("kafka-topics.md", "", "With the secret").strip()
    expected = block_of("kafka-topics.md", "json").strip().encode()
    code: dict[str, Any] = {}
    exec(block_of("kafka-topics.md", "python"), code)
    assert code["open_value"](value, secret) == expected
    opened = jwe.decrypt_compact(value, OctKey.import_key(base64.b64decode(secret)))
    assert opened.headers()["kid"] == "authority:706"
