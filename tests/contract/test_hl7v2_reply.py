"""What is particular to the reply by HL7 v2."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from adapters.hl7v2_reply import Hl7v2ReplyChannel, parse_address
from adapters.mllp import MllpClient, MllpClientOptions, MllpOptions, MllpServer, Peer, frame
from schemas.delivery import Outcome, OutcomeClass
from tests.contract.channel_sides import HOST, ORU, acknowledge, ignore_event, parcel

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
    channel = Hl7v2ReplyChannel(MllpClient(MllpClientOptions(answer_timeout_s=10.0)))
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
    channel = Hl7v2ReplyChannel(MllpClient(MllpClientOptions(answer_timeout_s=1.0)))
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
