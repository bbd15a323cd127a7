"""What is particular to the webhook."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ssl

import pytest

from adapters.posting import is_public_address
from adapters.webhook import WebhookChannel, WebhookOptions, sign_webhook
from schemas.delivery import Outcome, OutcomeClass
from tests.certificates import Certificate
from tests.contract.channel_sides import HOST, NOW, SECRET, HttpServer, ignore_event, open_webhook, parcel


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
    outcome = await post(server, address, total_timeout_s=1.0)
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
