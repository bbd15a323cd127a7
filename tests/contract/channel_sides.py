"""The other side of every channel, on loopback, which a test tells how to behave."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import msgspec
from joserfc import jwe
from joserfc.jwk import OctKey

from adapters.errors import LogUnavailable, NotDurable
from adapters.exchange import ExchangeOptions
from adapters.fhir_reply import FhirReplyChannel
from adapters.fhir_writer import build_reply_bundle
from adapters.govuk_notify import NotifyChannel, NotifyKind, NotifyOptions
from adapters.hl7v2 import build_ack, read_header
from adapters.hl7v2_reply import Hl7v2ReplyChannel
from adapters.mllp import MllpClient, MllpClientOptions, MllpOptions, MllpServer, Peer
from adapters.posting import PostingOptions
from adapters.smtp import EmailChannel, EmailOptions
from adapters.topic import TopicChannel, TopicOptions
from adapters.webhook import WebhookChannel, WebhookOptions
from broker.ports import Channel
from mock_nhs.faults import Faults
from mock_nhs.fhir_listener import FhirListener, FhirListenerOptions
from mock_nhs.govuk_notify import GovukNotify
from mock_nhs.govuk_notify import NotifyOptions as MockNotifyOptions
from mock_nhs.http_listener import Request as FhirRequest
from mock_nhs.journal import Journal
from mock_nhs.mail_server import MailServer
from mock_nhs.reply_book import ReplyBook
from schemas.alert import ClinicianReply, ListsSearched, ReplyOutcome
from schemas.delivery import MailTls, Parcel
from schemas.record import Partition

HOST = "127.0.0.1"
NOW = datetime(2026, 7, 14, 20, 15, 3, tzinfo=UTC)
SECRET = bytes(range(32))
CONTENT = b'{"child":"TESTER"}'
NUDGE = b"There is a message for you. Sign in to read it.\n\nhttps://broker.example.org/school\n"
TOKEN = b"a-token.of~ours+/=="
REPLY_BUNDLE = build_reply_bundle(
    ClinicianReply(
        reply_id="R-0001",
        organisation="RZ1",
        in_answer_to="M-0001",
        visit_number="V1",
        local_patient_id="TESTER",
        replied_at=NOW,
        outcome=ReplyOutcome.NO_RECORD,
        wording="No record found; this does not mean the child is safe.",
        lists=ListsSearched(authorities_searched=2, oldest_confirmed_at=NOW - timedelta(hours=5)),
    ),
    bundle_id="0b9a4a61-6f0e-5f9d-8c35-3f1c7d9b2a11",
    header_id="5d2f0c3e-1b4a-5e6f-9a7b-8c9d0e1f2a3b",
    application="CPIS-BROKER",
    endpoint="https://ed.example.org/FHIR/R4/$process-message",
    at=NOW,
)
ORU = b"MSH|^~\\&|CPIS-BROKER|BROKER||RXX|20260714211503+0100||ORU^R01^ORU_R01|C-0001|P|2.4\rOBX|1|TX|WORDING||TESTER\r"


def parcel(address: str, content: bytes = CONTENT, **changes: object) -> Parcel:
    values: dict[str, object] = {
        "idempotency_key": "key-0001",
        "event_type": "uk.cpis-broker.alert.raised.v1",
        "created_at": NOW - timedelta(minutes=1),
        "address": address,
        "secret": SECRET,
        "recipient": "authority:706",
        "content": content,
        "content_type": "application/json",
    }
    return Parcel(**{**values, **changes})  # type: ignore[arg-type]  # values by name, as each test needs them


class OtherSide(Protocol):
    """A recipient that can be told how to behave."""

    channel: Channel
    address: str
    content: bytes
    secret: bytes

    @property
    def received(self) -> list[bytes]:
        """The contents that arrived."""
        ...

    async def behave(self, how: str) -> None:
        """``accept``, ``refuse_now``, ``refuse_for_good``, ``stay_silent`` or ``be_gone``."""
        ...


# A case system that speaks HTTP


@dataclass
class Request:
    """One request as it arrived."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class HttpServer:
    """A small HTTP/1.1 server that answers every request as it was told to."""

    status: str = "204 No Content"
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    raw: bytes | None = None
    silent: bool = False
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    _server: asyncio.Server | None = None
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, 0, ssl=tls)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        try:
            while True:
                self.requests.append(await self._read_request(reader))
                if self.silent:
                    continue
                writer.write(self.raw if self.raw is not None else self._answer())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _read_request(self, reader: asyncio.StreamReader) -> Request:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        return Request(head[0], headers, await reader.readexactly(int(headers.get("content-length", "0"))))

    def _answer(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status}", *(f"{name}: {value}" for name, value in self.headers.items())]
        if not self.status.startswith("204"):
            lines.append(f"content-length: {len(self.body)}")
        return "\r\n".join([*lines, "", ""]).encode() + self.body


def ignore_event(name: str, facts: Mapping[str, int | str]) -> None:
    """For tests in which nothing is reported."""


def open_webhook(**options: object) -> WebhookChannel:
    values: dict[str, object] = {"allow_plain_http": True, "allow_private_addresses": True, "read_timeout_s": 1.0}
    return WebhookChannel(
        WebhookOptions(**{**values, **options}),  # type: ignore[arg-type]  # options by name
        on_event=ignore_event,
        now=lambda: NOW,
    )


class CaseSystem:
    """The webhook's other side."""

    content = CONTENT
    secret = SECRET

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self.channel: Channel = open_webhook()
        self.address = f"http://{HOST}:{server.port}/alerts"

    @property
    def received(self) -> list[bytes]:
        return [request.body for request in self._server.requests]

    async def behave(self, how: str) -> None:
        if how == "be_gone":
            await self._server.close()
        self._server.silent = how == "stay_silent"
        self._server.status = {"refuse_now": "503 Busy", "refuse_for_good": "400 Bad Request"}.get(how, "202 Accepted")


# A department that speaks MLLP


class Department:
    """The HL7 v2 reply's other side."""

    content = ORU
    secret = b""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.channel: Channel = Hl7v2ReplyChannel(MllpClient(MllpClientOptions(answer_timeout_s=1.0)))
        self._how = "accept"
        self._server = MllpServer(self._take, MllpOptions(), on_event=ignore_event)

    async def start(self) -> None:
        await self._server.start(HOST, 0)
        self.address = f"{HOST}:{self._server.port}"

    async def close(self) -> None:
        await self._server.close(0.0)

    async def behave(self, how: str) -> None:
        self._how = how
        if how == "be_gone":
            await self._server.close(0.0)

    async def _take(self, message: bytes, peer: Peer) -> bytes | None:
        self.received.append(message)
        if self._how == "stay_silent":
            await asyncio.Event().wait()
        code = {"refuse_now": "AE", "refuse_for_good": "AR"}.get(self._how, "AA")
        return acknowledge(message, code)


def acknowledge(message: bytes, code: str) -> bytes:
    accepted = build_ack(read_header(message), code="AA", text="", control_id="A-1", at=NOW)
    return accepted.replace(b"MSA|AA", b"MSA|%b" % code.encode())


# A department that speaks FHIR


def open_fhir_reply(**options: object) -> FhirReplyChannel:
    values: dict[str, object] = {"allow_plain_http": True, "allow_private_addresses": True, "read_timeout_s": 1.0}
    return FhirReplyChannel(
        PostingOptions(**{**values, **options}),  # type: ignore[arg-type]  # options by name
        on_event=ignore_event,
        now=lambda: NOW,
    )


class FhirDepartment:
    """The FHIR reply's other side: a department's own server."""

    content = REPLY_BUNDLE
    secret = TOKEN

    def __init__(self, record: Path) -> None:
        self.record = record
        self.requests: list[FhirRequest] = []
        self.faults = Faults()
        self.channel: Channel = open_fhir_reply()
        self._journal = Journal(record)
        self._listener = FhirListener(
            FhirListenerOptions(token=TOKEN.decode(), slow_pause_s=60),
            self.faults,
            self._journal,
            ReplyBook(self._journal),
            visits={"V1": "TESTER"},
            on_request=self.requests.append,
        )

    @property
    def received(self) -> list[bytes]:
        return [request.body for request in self.requests]

    async def start(self) -> None:
        await self._listener.start()
        self.address = self._listener.url

    async def close(self) -> None:
        await self._listener.stop()
        self._journal.close()

    async def behave(self, how: str) -> None:
        points = {"refuse_now": "refuse_503", "refuse_for_good": "refuse_400", "stay_silent": "slow"}
        for point in points.values():
            self.faults.disarm(f"ed.fhir.{point}")
        if how in points:
            self.faults.arm_times(f"ed.fhir.{points[how]}", 1_000)
        if how == "be_gone":
            await self._listener.stop()


# A topic


class Topic:
    """A log that confirms, does not confirm, or cannot be reached."""

    content = CONTENT
    secret = SECRET
    address = "social-care-alerts"

    def __init__(self) -> None:
        self.appended: list[tuple[str, bytes | None, bytes, dict[str, bytes]]] = []
        self.channel: Channel = TopicChannel(self, TopicOptions())
        self._how = "accept"

    @property
    def received(self) -> list[bytes]:
        return [decrypt(value).plaintext or b"" for _, _, value, _ in self.appended]

    async def behave(self, how: str) -> None:
        self._how = how

    async def append(
        self, topic: str, *, key: bytes | None, value: bytes, headers: Mapping[str, bytes]
    ) -> tuple[Partition, int]:
        if self._how in ("be_gone", "refuse_now"):
            raise LogUnavailable("the log cannot be reached")
        self.appended.append((topic, key, value, dict(headers)))
        if self._how == "stay_silent":
            raise NotDurable("the append was not confirmed")
        return Partition(topic, 0), len(self.appended) - 1


def decrypt(value: bytes, secret: bytes = SECRET) -> jwe.CompactEncryption:
    return jwe.decrypt_compact(value.decode(), OctKey.import_key(secret), algorithms=["dir", "A256GCM"])


# A school's mail server


class School:
    """The e-mail's other side: the mail server that the operator named."""

    content = NUDGE
    secret = b""
    address = "safeguarding@mill-lane.example.org"

    def __init__(self) -> None:
        self._server = MailServer()

    @property
    def received(self) -> list[bytes]:
        return [mail.message.get_content().replace("\r\n", "\n").encode() for mail in self._server.kept]

    async def start(self) -> None:
        await self._server.start()
        self.channel: Channel = open_email(self._server)

    async def close(self) -> None:
        await self._server.close()

    async def behave(self, how: str) -> None:
        if how == "be_gone":
            await self._server.close()
        replies = {"refuse_now": "451 later", "refuse_for_good": "554 no", "stay_silent": None}
        self._server.reply_to_text = replies.get(how, "250 kept")


def open_email(server: MailServer) -> EmailChannel:
    return EmailChannel(
        EmailOptions(host=HOST, port=server.port, sender="broker@example.org", tls=MailTls.NONE, timeout_s=1.0)
    )


# GOV.UK Notify

NOTIFY_KEY = "broker-26785a09-ab16-4eb0-8407-a37497a57506-3d844edf-8d35-48ac-975b-e847b4f122b0"
TEMPLATES = {
    NotifyKind.EMAIL: "9d751e0e-f929-4891-82a1-a3e1c3c18ee3",
    NotifyKind.SMS: "f33517ff-2a88-4f6e-b855-c550268ce08a",
}


def open_notify(url: str, kind: NotifyKind, **changes: Any) -> NotifyChannel:
    options = NotifyOptions(
        kind=kind,
        template_id=TEMPLATES[kind],
        base_url=url,
        allow_loopback=True,
        unasked_s=90,
        exchange=ExchangeOptions(read_timeout_s=1.0),
    )
    return NotifyChannel(msgspec.structs.replace(options, **changes), api_key=NOTIFY_KEY, now=lambda: NOW)


class Notified:
    """The other side of GOV.UK Notify's two channels."""

    content = NUDGE
    secret = b""

    def __init__(self, kind: NotifyKind) -> None:
        self.address = "+447700900123" if kind is NotifyKind.SMS else School.address
        self._kind = kind
        templates = {template: kind.value for kind, template in TEMPLATES.items()}
        self.service = GovukNotify(
            MockNotifyOptions(api_key=NOTIFY_KEY, templates=templates, slow_pause_s=60), clock=lambda: NOW
        )

    @property
    def received(self) -> list[bytes]:
        return [each.message.encode() for each in self.service.kept]

    async def start(self) -> None:
        await self.service.start()
        self.channel: Channel = open_notify(self.service.url, self._kind)

    async def close(self) -> None:
        await self.service.stop()

    async def behave(self, how: str) -> None:
        points = {"refuse_now": "refuse_429", "refuse_for_good": "refuse_400", "stay_silent": "slow"}
        for point in points.values():
            self.service.faults.disarm(f"notify.{point}")
        if how in points:
            self.service.faults.arm_times(f"notify.{points[how]}", 1_000)
        if how == "be_gone":
            await self.service.stop()


@asynccontextmanager
async def open_fhir_department(record: Path) -> AsyncIterator[FhirDepartment]:
    department = FhirDepartment(record)
    await department.start()
    try:
        yield department
    finally:
        await department.channel.close()
        await department.close()


@asynccontextmanager
async def open_other_side(name: str, directory: Path) -> AsyncIterator[OtherSide]:
    if name == "topic":
        yield Topic()
        return
    if name == "fhir_reply":
        async with open_fhir_department(directory / "department.jsonl") as fhir_department:
            yield fhir_department
        return
    if name == "email":
        school = School()
        await school.start()
        try:
            yield school
        finally:
            await school.channel.close()
            await school.close()
        return
    if name in ("text_message", "email_by_notify"):
        notified = Notified(NotifyKind.SMS if name == "text_message" else NotifyKind.EMAIL)
        await notified.start()
        try:
            yield notified
        finally:
            await notified.channel.close()
            await notified.close()
        return
    if name == "hl7v2_reply":
        department = Department()
        await department.start()
        try:
            yield department
        finally:
            await department.channel.close()
            await department.close()
        return
    server = HttpServer()
    await server.start()
    case_system = CaseSystem(server)
    try:
        yield case_system
    finally:
        await case_system.channel.close()
        await server.close()
