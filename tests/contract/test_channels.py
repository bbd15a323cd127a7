"""Every way out, against a real other side on loopback: one suite for all, then what is particular to each."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import pytest
from joserfc import jwe
from joserfc.errors import DecodeError
from joserfc.jwk import OctKey

from adapters.errors import LogUnavailable, NotDurable
from adapters.fhir_reply import FhirReplyChannel
from adapters.fhir_writer import FHIR_JSON, build_reply_bundle
from adapters.hl7v2 import build_ack, read_header
from adapters.hl7v2_reply import Hl7v2ReplyChannel, parse_address
from adapters.mllp import MllpClient, MllpClientOptions, MllpOptions, MllpServer, Peer, frame
from adapters.posting import PostingOptions, is_public_address
from adapters.smtp import SUBJECT, EmailChannel, EmailOptions
from adapters.topic import TopicChannel, TopicLog, TopicOptions
from adapters.webhook import WebhookChannel, WebhookOptions, sign_webhook
from broker.ports import Channel
from mock_nhs.faults import Faults
from mock_nhs.fhir_listener import FhirListener, FhirListenerOptions
from mock_nhs.http_listener import Request as FhirRequest
from mock_nhs.journal import Journal, read_journal
from mock_nhs.mail_server import MailServer
from mock_nhs.reply_book import ReplyBook
from schemas.alert import ClinicianReply, ListsSearched, ReplyOutcome
from schemas.delivery import ChannelName, MailTls, Outcome, OutcomeClass, Parcel
from schemas.record import Partition
from tests.certificates import Certificate, issue_certificate

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
    values: dict[str, object] = {"allow_plain_http": True, "allow_private_addresses": True, "read_timeout_s": 0.5}
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
        self.channel: Channel = Hl7v2ReplyChannel(MllpClient(MllpClientOptions(answer_timeout_s=0.5)))
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
    values: dict[str, object] = {"allow_plain_http": True, "allow_private_addresses": True, "read_timeout_s": 0.5}
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
        EmailOptions(host=HOST, port=server.port, sender="broker@example.org", tls=MailTls.NONE, timeout_s=0.5)
    )


# What every channel does


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


@pytest.fixture(params=[name.value for name in ChannelName])
async def other_side(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[OtherSide]:
    async with open_other_side(request.param, tmp_path) as opened:
        yield opened


async def send_to(other_side: OtherSide) -> Outcome:
    content_type = FHIR_JSON if other_side.content == REPLY_BUNDLE else "application/json"
    return await other_side.channel.send(
        parcel(other_side.address, other_side.content, secret=other_side.secret, content_type=content_type)
    )


async def test_what_is_accepted_is_sent_and_arrives_to_the_letter(other_side: OtherSide) -> None:
    outcome = await send_to(other_side)
    assert outcome.outcome is OutcomeClass.SENT
    assert other_side.received == [other_side.content]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("refuse_now", OutcomeClass.TRANSIENT),
        ("be_gone", OutcomeClass.TRANSIENT),
        ("stay_silent", OutcomeClass.AMBIGUOUS),
    ],
)
async def test_what_is_not_accepted_is_told_by_its_class(
    other_side: OtherSide, how: str, expected: OutcomeClass
) -> None:
    await other_side.behave(how)
    outcome = await send_to(other_side)
    assert outcome.outcome is expected
    assert outcome.code.replace("_", "").isalnum()
    assert "TESTER" not in repr(outcome)


@pytest.mark.parametrize("name", ["webhook", "hl7v2_reply", "fhir_reply", "email"])
async def test_what_is_refused_for_good_is_not_to_be_tried_again(name: str, tmp_path: Path) -> None:
    async with open_other_side(name, tmp_path) as other_side:
        await other_side.behave("refuse_for_good")
        assert (await send_to(other_side)).outcome is OutcomeClass.PERMANENT


async def test_the_same_parcel_can_be_sent_again_after_a_failure(other_side: OtherSide) -> None:
    for how in ("refuse_now", "stay_silent", "accept"):
        await other_side.behave(how)
        outcome = await send_to(other_side)
    assert outcome.outcome is OutcomeClass.SENT
    assert set(other_side.received) == {other_side.content}


async def test_many_parcels_may_be_sent_at_once(other_side: OtherSide) -> None:
    outcomes = await asyncio.gather(*(send_to(other_side) for _ in range(20)))
    assert {outcome.outcome for outcome in outcomes} == {OutcomeClass.SENT}
    assert len(other_side.received) == 20


async def test_a_send_that_is_cancelled_leaves_the_channel_usable(other_side: OtherSide) -> None:
    await other_side.behave("stay_silent")
    sending = asyncio.ensure_future(send_to(other_side))
    await asyncio.wait([sending], timeout=0.05)
    sending.cancel()
    await asyncio.wait([sending])
    await other_side.behave("accept")
    assert (await send_to(other_side)).outcome is OutcomeClass.SENT


async def test_a_channel_can_be_closed_twice(other_side: OtherSide) -> None:
    await send_to(other_side)
    await other_side.channel.close()
    await other_side.channel.close()


# The webhook


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    opened = HttpServer()
    await opened.start()
    yield opened
    await opened.close()


async def post(server: HttpServer, address: str | None = None, **options: object) -> Outcome:
    channel = open_webhook(**options)
    try:
        return await channel.send(parcel(address or f"http://{HOST}:{server.port}/alerts?x=1"))
    finally:
        await channel.close()


async def test_a_post_carries_the_event_the_key_and_a_signature_that_holds(server: HttpServer) -> None:
    await post(server)
    (request,) = server.requests
    assert request.line == "POST /alerts?x=1 HTTP/1.1"
    headers = request.headers
    assert headers["host"] == f"{HOST}:{server.port}"
    assert headers["content-type"] == "application/json"
    assert headers["ce-specversion"] == "1.0"
    assert headers["ce-type"] == "uk.cpis-broker.alert.raised.v1"
    assert headers["ce-source"] == "urn:cpis-broker"
    assert headers["ce-time"] == "2026-07-14T20:14:03+00:00"
    assert headers["ce-id"] == headers["idempotency-key"] == headers["webhook-id"] == "key-0001"
    assert headers["webhook-timestamp"] == str(int(NOW.timestamp()))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + request.body
    digest = base64.b64encode(hmac.new(SECRET, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{digest}"


def test_the_signature_is_the_one_the_convention_publishes() -> None:
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign_webhook(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("200 OK", OutcomeClass.SENT),
        ("202 Accepted", OutcomeClass.SENT),
        ("301 Moved", OutcomeClass.PERMANENT),
        ("307 Temporary Redirect", OutcomeClass.PERMANENT),
        ("400 Bad Request", OutcomeClass.PERMANENT),
        ("401 Unauthorized", OutcomeClass.PERMANENT),
        ("410 Gone", OutcomeClass.PERMANENT),
        ("408 Request Timeout", OutcomeClass.TRANSIENT),
        ("425 Too Early", OutcomeClass.TRANSIENT),
        ("429 Too Many Requests", OutcomeClass.TRANSIENT),
        ("500 Internal Server Error", OutcomeClass.TRANSIENT),
        ("503 Service Unavailable", OutcomeClass.TRANSIENT),
    ],
)
async def test_a_status_decides(server: HttpServer, status: str, expected: OutcomeClass) -> None:
    server.status = status
    server.headers = {"location": f"http://{HOST}:{server.port}/elsewhere"}
    assert await post(server) == Outcome(outcome=expected, code=f"http_{status[:3]}")
    assert len(server.requests) == 1, "a redirect is not followed"


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("120", 120.0),
        ("Tue, 14 Jul 2026 20:16:03 GMT", 60.0),
        ("Tue, 14 Jul 2026 19:16:03 GMT", 0.0),
        ("999999999", 3_600.0),
        ("soon", None),
        ("-5", None),
    ],
)
async def test_the_recipient_may_say_when_to_try_again(
    server: HttpServer, retry_after: str, seconds: float | None
) -> None:
    server.status = "503 Busy"
    server.headers = {"retry-after": retry_after}
    assert (await post(server)).retry_after_s == seconds


async def test_connections_are_used_again_and_a_long_answer_is_cut_off(server: HttpServer) -> None:
    server.status, server.body = "200 OK", b"x" * 1_000
    channel = open_webhook(response_bytes_max=10_000)
    for _ in range(3):
        await channel.send(parcel(f"http://{HOST}:{server.port}/"))
    assert server.connections == 1
    server.body = b"x" * 5_000_000
    outcome = await channel.send(parcel(f"http://{HOST}:{server.port}/"))
    assert outcome == Outcome(outcome=OutcomeClass.SENT, code="http_200")
    await channel.send(parcel(f"http://{HOST}:{server.port}/"))
    assert server.connections == 2
    await channel.close()


async def test_a_status_counts_though_the_answer_breaks_off_behind_it(server: HttpServer) -> None:
    server.raw = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nx"
    assert (await post(server)).outcome is OutcomeClass.SENT


@pytest.mark.parametrize("raw", [b"nonsense\r\n\r\n", b"HTTP/1.1 999999 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nx" * 9_000])
async def test_an_answer_that_is_none_leaves_it_open(server: HttpServer, raw: bytes) -> None:
    server.raw = raw
    assert (await post(server)).outcome is OutcomeClass.AMBIGUOUS


async def test_an_answer_that_drips_is_given_up(server: HttpServer) -> None:
    dripping, gone = asyncio.Event(), asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dripping.set()
        try:
            for byte in b"HTTP/1.1 200 OK\r\nx: " + b"x" * 1_000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.01)
        except ConnectionError:
            pass
        finally:
            writer.close()
            gone.set()

    dripper = await asyncio.start_server(drip, HOST, 0)
    address = f"http://{HOST}:{dripper.sockets[0].getsockname()[1]}/"
    outcome = await post(server, address, total_timeout_s=0.3)
    assert dripping.is_set()
    assert outcome == Outcome(outcome=OutcomeClass.AMBIGUOUS, code="answer_timeout")
    await gone.wait()
    dripper.close()
    await dripper.wait_closed()


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("", "bad_address"),
        ("nonsense", "bad_address"),
        ("ftp://example.org/", "bad_address"),
        ("file:///etc/passwd", "bad_address"),
        ("https://", "bad_address"),
        ("https://user:secret@example.org/", "bad_address"),
        ("https://[::1/", "bad_address"),
        ("https://example.org:99999/", "bad_address"),
        ("https://0x7f.1/", "bad_address"),
        ("https://2130706433/", "bad_address"),
        ("https://0177.0.0.1/", "bad_address"),
        ("https://127.1/", "bad_address"),
        ("http://example.org/", "plain_http"),
        ("https://127.0.0.1/", "address_refused"),
        ("https://[::1]/", "address_refused"),
        ("https://[::ffff:127.0.0.1]/", "address_refused"),
        ("https://10.0.0.1/", "address_refused"),
        ("https://169.254.169.254/latest/meta-data/", "address_refused"),
        ("https://0.0.0.0/", "address_refused"),
        ("https://localhost/", "address_refused"),
        ("https://localhost:8000/", "address_refused"),
    ],
)
async def test_an_address_inside_is_refused_before_anything_is_sent(address: str, code: str) -> None:
    channel = WebhookChannel(WebhookOptions(), on_event=ignore_event, now=lambda: NOW)
    assert await channel.send(parcel(address)) == Outcome(outcome=OutcomeClass.PERMANENT, code=code)
    await channel.close()


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::7f00:1", "::ffff:10.0.0.1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1"),
        *("2001:db8::1", "2002:7f00:1::", "2001::1", "64:ff9b::7f00:1", "64:ff9b:1::1", "100::1"),
    ],
)
def test_addresses_that_are_not_of_the_public_internet_are_known(address: str) -> None:
    assert not is_public_address(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "51.140.1.1", "2a00:1450::1", "::ffff:8.8.8.8"])
def test_addresses_of_the_public_internet_are_known(address: str) -> None:
    assert is_public_address(address)


async def test_only_listed_hosts_are_posted_to_when_there_is_a_list(server: HttpServer) -> None:
    listed = frozenset({"localhost"})
    refused = await post(server, f"http://{HOST}:{server.port}/", allowed_hosts=listed)
    assert refused == Outcome(outcome=OutcomeClass.PERMANENT, code="host_not_allowed")
    sent = await post(server, f"http://LOCALHOST:{server.port}/", allowed_hosts=listed)
    assert sent.outcome is OutcomeClass.SENT
    assert server.requests[0].headers["host"] == f"localhost:{server.port}"


async def test_nothing_unsigned_leaves(server: HttpServer) -> None:
    channel = open_webhook()
    outcome = await channel.send(parcel(f"http://{HOST}:{server.port}/", secret=b""))
    assert outcome == Outcome(outcome=OutcomeClass.PERMANENT, code="no_secret")
    assert server.requests == []
    await channel.close()


async def test_what_cannot_stand_in_a_header_raises_nothing_and_is_reported_by_class(server: HttpServer) -> None:
    events: list[tuple[str, dict[str, int | str]]] = []
    channel = WebhookChannel(
        WebhookOptions(allow_plain_http=True, allow_private_addresses=True),
        on_event=lambda name, facts: events.append((name, dict(facts))),
        now=lambda: NOW,
    )
    outcome = await channel.send(parcel(f"http://{HOST}:{server.port}/", idempotency_key="é\r\nx: TESTER"))
    assert outcome.outcome is not OutcomeClass.SENT
    assert server.requests == []
    assert events == [("webhook_failed", {"error": "UnicodeEncodeError"})]
    assert "TESTER" not in repr(outcome)
    await channel.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Certificate, Certificate]:
    folder = tmp_path_factory.mktemp("tls")
    return issue_certificate(folder, "localhost"), issue_certificate(folder, "somebody-else.example.org")


async def test_the_certificate_must_be_the_hosts_own(
    certificates: tuple[Certificate, Certificate],
) -> None:
    outcomes: list[Outcome] = []
    trusted = ssl.create_default_context()
    for certificate in certificates:
        trusted.load_verify_locations(certificate.certificate_file)
    for certificate in certificates:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate.certificate_file, certificate.key_file)
        server = HttpServer()
        await server.start(context)
        channel = WebhookChannel(
            WebhookOptions(allow_private_addresses=True), on_event=ignore_event, now=lambda: NOW, tls=trusted
        )
        outcomes.append(await channel.send(parcel(f"https://localhost:{server.port}/")))
        await channel.close()
        await server.close()
    assert outcomes == [
        Outcome(outcome=OutcomeClass.SENT, code="http_204"),
        Outcome(outcome=OutcomeClass.TRANSIENT, code="tls_failed"),
    ]


async def test_a_certificate_nobody_vouches_for_is_not_trusted(
    certificates: tuple[Certificate, Certificate],
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates[0].certificate_file, certificates[0].key_file)
    server = HttpServer()
    await server.start(context)
    outcome = await post(server, f"https://localhost:{server.port}/")
    assert outcome == Outcome(outcome=OutcomeClass.TRANSIENT, code="tls_failed")
    assert server.requests == []
    await server.close()


# The FHIR reply


@pytest.fixture
async def fhir_department(tmp_path: Path) -> AsyncIterator[FhirDepartment]:
    async with open_fhir_department(tmp_path / "department.jsonl") as opened:
        yield opened


async def reply_by_fhir(department: FhirDepartment, *, secret: bytes = TOKEN, key: str = "key-0001") -> Outcome:
    return await department.channel.send(
        parcel(department.address, REPLY_BUNDLE, secret=secret, content_type=FHIR_JSON, idempotency_key=key)
    )


async def test_a_reply_is_posted_as_fhir_under_ids_that_stay_when_it_is_sent_again(
    fhir_department: FhirDepartment,
) -> None:
    fhir_department.faults.arm_times("ed.fhir.drop_after_keep", 1)
    first = await reply_by_fhir(fhir_department)
    again = await reply_by_fhir(fhir_department)
    await reply_by_fhir(fhir_department, key="key-0002")
    assert first == Outcome(outcome=OutcomeClass.AMBIGUOUS, code="connection_lost")
    assert again == Outcome(outcome=OutcomeClass.SENT, code="http_200")
    headers = [request.headers for request in fhir_department.requests]
    assert {each["content-type"] for each in headers} == {"application/fhir+json"}
    assert {each["authorization"] for each in headers} == {f"Bearer {TOKEN.decode()}"}
    for name in ("x-request-id", "x-correlation-id"):
        assert headers[0][name] == headers[1][name] != headers[2][name]
    kept = [line for line in read_journal(fhir_department.record) if line["what"].startswith("reply")]
    assert [line["what"] for line in kept] == ["reply", "reply_repeated", "reply_repeated"]
    assert [line["problems"] for line in kept] == [[], [], []]
    assert kept[0]["wording"] == "No record found; this does not mean the child is safe."


async def test_a_server_that_asks_for_no_token_is_sent_none(fhir_department: FhirDepartment) -> None:
    outcome = await reply_by_fhir(fhir_department, secret=b"")
    assert outcome == Outcome(outcome=OutcomeClass.PERMANENT, code="http_401")
    assert "authorization" not in fhir_department.requests[0].headers


@pytest.mark.parametrize("secret", [b"two words", b"x\r\nx: TESTER", b"\xff\x00", "é".encode()])
async def test_a_token_that_could_not_be_one_never_leaves(fhir_department: FhirDepartment, secret: bytes) -> None:
    outcome = await reply_by_fhir(fhir_department, secret=secret)
    assert outcome == Outcome(outcome=OutcomeClass.PERMANENT, code="bad_credential")
    assert fhir_department.requests == []


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("refuse_400", Outcome(outcome=OutcomeClass.PERMANENT, code="http_400")),
        ("refuse_503", Outcome(outcome=OutcomeClass.TRANSIENT, code="http_503")),
        ("429_retry_after", Outcome(outcome=OutcomeClass.TRANSIENT, code="http_429", retry_after_s=1.0)),
        ("redirect", Outcome(outcome=OutcomeClass.PERMANENT, code="http_307")),
        ("drop_after_read", Outcome(outcome=OutcomeClass.AMBIGUOUS, code="connection_lost")),
        ("half_response", Outcome(outcome=OutcomeClass.AMBIGUOUS, code="connection_lost")),
        ("slow", Outcome(outcome=OutcomeClass.AMBIGUOUS, code="answer_timeout")),
    ],
)
async def test_a_fault_of_a_departments_server_has_its_class_and_is_got_over(
    fhir_department: FhirDepartment, fault: str, expected: Outcome
) -> None:
    fhir_department.faults.arm_times(f"ed.fhir.{fault}", 1)
    assert await reply_by_fhir(fhir_department) == expected
    assert (await reply_by_fhir(fhir_department)).outcome is OutcomeClass.SENT
    lines = list(read_journal(fhir_department.record))
    assert [line["what"] for line in lines].count("reply") == 1
    assert not [line for line in lines if line["what"] == "followed_redirect"]


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("nonsense", "bad_address"),
        ("https://user:secret@example.org/", "bad_address"),
        ("https://2130706433/", "bad_address"),
        ("http://example.org/", "plain_http"),
        ("https://localhost/", "address_refused"),
        ("https://169.254.169.254/latest/meta-data/", "address_refused"),
    ],
)
async def test_a_reply_goes_to_no_address_inside(address: str, code: str) -> None:
    channel = FhirReplyChannel(PostingOptions(), on_event=ignore_event, now=lambda: NOW)
    assert await channel.send(parcel(address, secret=TOKEN)) == Outcome(outcome=OutcomeClass.PERMANENT, code=code)
    await channel.close()


async def test_a_departments_certificate_must_be_known(certificates: tuple[Certificate, Certificate]) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates[0].certificate_file, certificates[0].key_file)
    server = HttpServer()
    await server.start(context)
    channel = open_fhir_reply()
    outcome = await channel.send(parcel(f"https://localhost:{server.port}/", REPLY_BUNDLE, secret=TOKEN))
    assert outcome == Outcome(outcome=OutcomeClass.TRANSIENT, code="tls_failed")
    assert server.requests == []
    await channel.close()
    await server.close()


async def test_what_a_departments_server_answers_is_not_repeated(server: HttpServer) -> None:
    server.status, server.body = "422 Unprocessable", b'{"resourceType":"OperationOutcome","issue":[{"x":"TESTER"}]}'
    channel = open_fhir_reply()
    outcome = await channel.send(parcel(f"http://{HOST}:{server.port}/", REPLY_BUNDLE, secret=TOKEN))
    assert outcome == Outcome(outcome=OutcomeClass.PERMANENT, code="http_422")
    await channel.close()


# The HL7 v2 reply


Take = Callable[[bytes], Awaitable[bytes | None]]


@asynccontextmanager
async def listening(take: Take) -> AsyncIterator[str]:
    async def handler(message: bytes, peer: Peer) -> bytes | None:
        return await take(message)

    server = MllpServer(handler, MllpOptions(), on_event=ignore_event)
    await server.start(HOST, 0)
    try:
        yield f"{HOST}:{server.port}"
    finally:
        await server.close(0.0)


async def reply_to(address: str, content: bytes = ORU) -> Outcome:
    channel = Hl7v2ReplyChannel(MllpClient(MllpClientOptions(answer_timeout_s=0.5)))
    try:
        return await channel.send(parcel(address, content, content_type="application/hl7-v2+er7"))
    finally:
        await channel.close()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("AA", Outcome(outcome=OutcomeClass.SENT, code="aa")),
        ("CA", Outcome(outcome=OutcomeClass.SENT, code="aa")),
        ("AE", Outcome(outcome=OutcomeClass.TRANSIENT, code="ae")),
        ("CE", Outcome(outcome=OutcomeClass.TRANSIENT, code="ae")),
        ("AR", Outcome(outcome=OutcomeClass.PERMANENT, code="ar")),
        ("CR", Outcome(outcome=OutcomeClass.PERMANENT, code="ar")),
    ],
)
async def test_the_acknowledgement_decides(code: str, expected: Outcome) -> None:
    async def take(message: bytes) -> bytes | None:
        return acknowledge(message, code)

    async with listening(take) as address:
        assert await reply_to(address) == expected


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (acknowledge(ORU.replace(b"C-0001", b"C-0000"), "AA"), "wrong_control_id"),
        (acknowledge(ORU, "OK"), "unreadable_ack"),
        (b"OK", "unreadable_ack"),
        (None, "connection_closed"),
    ],
)
async def test_an_answer_that_does_not_answer_leaves_it_open(answer: bytes | None, code: str) -> None:
    async def take(message: bytes) -> bytes | None:
        return answer

    async with listening(take) as address:
        assert await reply_to(address) == Outcome(outcome=OutcomeClass.AMBIGUOUS, code=code)


async def test_a_late_acknowledgement_never_settles_the_next_reply() -> None:
    """The answer to the first message comes after its time; the second must not be settled by it."""
    second = ORU.replace(b"C-0001", b"C-0002")

    ended: list[asyncio.Event] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        done = asyncio.Event()
        ended.append(done)
        try:
            message = (await reader.readuntil(b"\x1c\r"))[1:-2]
            if message == ORU:
                await reader.read()
            writer.write(frame(acknowledge(ORU, "AA")))
        except ConnectionError:
            pass
        finally:
            writer.close()
            done.set()

    server = await asyncio.start_server(handler, HOST, 0)
    address = f"{HOST}:{server.sockets[0].getsockname()[1]}"
    channel = Hl7v2ReplyChannel(MllpClient(MllpClientOptions(answer_timeout_s=0.5)))
    first = await channel.send(parcel(address, ORU))
    assert first == Outcome(outcome=OutcomeClass.AMBIGUOUS, code="answer_timeout")
    assert (await channel.send(parcel(address, second))).code == "wrong_control_id"
    await channel.close()
    await asyncio.gather(*(event.wait() for event in ended))
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("address", ["", "host", "host:", ":2575", "host:0", "host:70000", "host:２５７５", "host:1x"])
async def test_an_address_that_is_none_is_refused(address: str) -> None:
    assert parse_address(address) is None
    assert await reply_to(address) == Outcome(outcome=OutcomeClass.PERMANENT, code="bad_address")


def test_addresses_are_host_and_port() -> None:
    assert parse_address("engine.example.org:2575") == ("engine.example.org", 2575)
    assert parse_address("[::1]:2575") == ("::1", 2575)


# The topic


async def test_a_topics_value_can_be_read_by_its_recipient_only() -> None:
    topic = Topic()
    await topic.channel.send(parcel("social-care-alerts"))
    ((name, key, value, headers),) = topic.appended
    assert (name, key) == ("social-care-alerts", b"authority:706")
    assert headers == {
        "ce_specversion": b"1.0",
        "ce_id": b"key-0001",
        "ce_type": b"uk.cpis-broker.alert.raised.v1",
        "ce_source": b"urn:cpis-broker",
        "ce_time": b"2026-07-14T20:14:03+00:00",
        "content-type": b"application/jose",
    }
    assert b"TESTER" not in value
    opened = decrypt(value)
    assert opened.plaintext == CONTENT
    assert opened.headers() == {
        "alg": "dir",
        "enc": "A256GCM",
        "kid": "authority:706",
        "cty": "application/json",
    }
    with pytest.raises(DecodeError):
        decrypt(value, bytes(32))


async def test_no_two_values_are_alike() -> None:
    topic = Topic()
    for _ in range(2):
        await topic.channel.send(parcel("social-care-alerts"))
    assert topic.appended[0][2] != topic.appended[1][2]


@pytest.mark.parametrize("secret", [b"", b"short", bytes(33)])
async def test_without_a_key_of_the_right_length_nothing_is_appended(secret: bytes) -> None:
    topic = Topic()
    outcome = await topic.channel.send(parcel("social-care-alerts", secret=secret))
    assert outcome == Outcome(outcome=OutcomeClass.PERMANENT, code="bad_secret")
    assert topic.appended == []


def test_the_channels_are_what_the_broker_asks_for(tmp_path: Path) -> None:
    """Checked by mypy: each assignment fails there when a shape differs."""
    log: TopicLog = Topic()
    channels: list[Channel] = [
        TopicChannel(log, TopicOptions()),
        Hl7v2ReplyChannel(MllpClient(MllpClientOptions())),
        open_webhook(),
    ]
    assert len(channels) == 3


# The e-mail


async def mail(server: MailServer, address: str) -> Outcome:
    channel = open_email(server)
    try:
        return await channel.send(parcel(address, NUDGE, content_type="text/plain"))
    finally:
        await channel.close()


@pytest.mark.parametrize("tls", [MailTls.STARTTLS, MailTls.IMPLICIT])
async def test_an_email_goes_encrypted_to_one_recipient_under_the_id_of_its_delivery(
    certificates: tuple[Certificate, Certificate], tls: MailTls
) -> None:
    own, strange = (ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) for _ in certificates)
    trusted = ssl.create_default_context(cafile=certificates[0].certificate_file)
    outcomes = []
    kept = []
    for context, certificate in zip((own, strange), certificates, strict=True):
        context.load_cert_chain(certificate.certificate_file, certificate.key_file)
        server = MailServer(tls=context, is_implicit=tls is MailTls.IMPLICIT, password="sesame")
        await server.start()
        for password in ("wrong", "sesame"):
            channel = EmailChannel(
                EmailOptions(
                    host="localhost",
                    port=server.port,
                    sender="broker@example.org",
                    tls=tls,
                    username="broker",
                    password=password,
                    timeout_s=2.0,
                ),
                tls=trusted,
            )
            outcomes.append((await channel.send(parcel(School.address, NUDGE))).code)
            await channel.close()
        await server.close()
        kept += server.kept
    assert outcomes == ["sign_in_refused", "accepted", "tls_failed", "tls_failed"]
    [one] = kept
    assert (one.was_encrypted, one.username, one.sender) == (True, "broker", "broker@example.org")
    assert one.recipients == (School.address,) == (one.message["To"],)
    assert (one.message["Subject"], one.message["Message-ID"]) == (SUBJECT, "<key-0001@example.org>")
    assert one.message["Auto-Submitted"] == "auto-generated"


async def test_a_mail_server_without_tls_is_told_nothing() -> None:
    server = MailServer()
    await server.start()
    channel = EmailChannel(EmailOptions(host=HOST, port=server.port, sender="broker@example.org"))
    assert (await channel.send(parcel(School.address, NUDGE))).outcome is OutcomeClass.TRANSIENT
    await channel.close()
    await server.close()
    assert server.kept == []


@pytest.mark.parametrize(
    ("address", "reply", "expected"),
    [
        (
            "a@example.org\r\nBcc: b@example.org",
            "250 known",
            Outcome(outcome=OutcomeClass.PERMANENT, code="bad_address"),
        ),
        ("a@example.org, b@example.org", "250 known", Outcome(outcome=OutcomeClass.PERMANENT, code="bad_address")),
        (School.address, "550 nobody", Outcome(outcome=OutcomeClass.PERMANENT, code="smtp_550")),
        (School.address, "450 full", Outcome(outcome=OutcomeClass.TRANSIENT, code="smtp_450")),
    ],
)
async def test_a_mailbox_that_takes_nothing_is_told_by_its_class(address: str, reply: str, expected: Outcome) -> None:
    server = MailServer()
    await server.start()
    server.reply_to_recipient = reply
    assert await mail(server, address) == expected
    await server.close()
    assert server.kept == []
