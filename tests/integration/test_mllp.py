"""The MLLP server and client over real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from adapters.mllp import (
    MllpClient,
    MllpClientOptions,
    MllpOptions,
    MllpServer,
    NoAnswer,
    NotSent,
    Peer,
    frame,
)
from tests.certificates import Certificate, issue_certificate

HOST = "127.0.0.1"
PATIENCE_S = 10.0

Answer = Callable[[bytes, Peer], Awaitable[bytes | None]]


class Happenings:
    """What a server reported; a test waits for it rather than for a time."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, int | str]]] = []
        self._changed = asyncio.Event()

    def __call__(self, name: str, facts: Mapping[str, int | str]) -> None:
        self.seen.append((name, dict(facts)))
        self._changed.set()

    async def wait_for(self, name: str) -> dict[str, int | str]:
        async with asyncio.timeout(PATIENCE_S):
            while not (found := [facts for seen, facts in self.seen if seen == name]):
                self._changed.clear()
                await self._changed.wait()
        return found[0]


async def echo(message: bytes, peer: Peer) -> bytes | None:
    return b"AA " + message


@asynccontextmanager
async def serving(
    handler: Answer,
    options: MllpOptions | None = None,
    happenings: Happenings | None = None,
    *,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[MllpServer]:
    server = MllpServer(handler, options or MllpOptions(), on_event=happenings or Happenings())
    await server.start(HOST, 0, ssl=tls)
    try:
        yield server
    finally:
        async with asyncio.timeout(PATIENCE_S):
            await server.close(0.0)


@asynccontextmanager
async def connected(
    server: MllpServer, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(HOST, server.port, ssl=tls)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield reader, writer
    finally:
        writer.transport.abort()


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A server that is not ours. Its port; when it ends, every connection has been served to its end."""
    serving_now: set[asyncio.Task[None]] = set()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving_now.add(task)
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(connection, HOST, 0)
    yield int(server.sockets[0].getsockname()[1])
    server.close()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*serving_now)
    await server.wait_closed()


async def read_answers(reader: asyncio.StreamReader, count: int) -> list[bytes]:
    return [(await reader.readuntil(b"\x1c\r"))[1:-2] for _ in range(count)]


async def read_to_end(reader: asyncio.StreamReader) -> bytes:
    """Everything until the other side closes, in whichever way it does."""
    received = b""
    try:
        while piece := await reader.read(65_536):
            received += piece
    except ConnectionError:
        pass
    return received


# Many messages on one connection


async def test_many_messages_on_one_connection_are_answered_in_their_order() -> None:
    async with serving(echo) as server, connected(server) as (reader, writer):
        for number in range(50):
            writer.write(frame(b"%d" % number))
            assert await read_answers(reader, 1) == [b"AA %d" % number]


async def test_pipelined_messages_are_handled_together_and_answered_in_order() -> None:
    begun: list[bytes] = []
    all_begun = asyncio.Event()
    release = {b"%d" % number: asyncio.Event() for number in range(5)}

    async def handler(message: bytes, peer: Peer) -> bytes | None:
        begun.append(message)
        if len(begun) == 5:
            all_begun.set()
        await release[message].wait()
        return b"AA " + message

    async with serving(handler) as server, connected(server) as (reader, writer):
        writer.write(b"".join(frame(b"%d" % number) for number in range(5)))
        await all_begun.wait()
        assert begun == [b"%d" % number for number in range(5)]
        for number in reversed(range(5)):
            release[b"%d" % number].set()
        assert await read_answers(reader, 5) == [b"AA %d" % number for number in range(5)]


async def test_no_more_messages_are_handled_at_a_time_than_allowed() -> None:
    running = most = 0

    async def handler(message: bytes, peer: Peer) -> bytes | None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running -= 1
        return message

    async with serving(handler, MllpOptions(pipelined_max=3)) as server, connected(server) as (reader, writer):
        writer.write(b"".join(frame(b"%d" % number) for number in range(200)))
        assert await read_answers(reader, 200) == [b"%d" % number for number in range(200)]
    assert most == 3


async def test_a_sender_that_outruns_the_handler_is_not_read_until_there_is_room() -> None:
    release = asyncio.Event()

    async def handler(message: bytes, peer: Peer) -> bytes | None:
        await release.wait()
        return message[:10]

    large = frame(b"x" * 100_000)
    options = MllpOptions(pipelined_max=2, frame_bytes_max=100_000)
    async with serving(handler, options) as server, connected(server) as (reader, writer):
        writer.write(large * 200)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.2)
        assert server.held_bytes < 2_000_000
        release.set()
        assert await read_answers(reader, 200) == [b"x" * 10] * 200


async def test_connections_do_not_wait_for_each_other() -> None:
    release = asyncio.Event()

    async def handler(message: bytes, peer: Peer) -> bytes | None:
        if message == b"slow":
            await release.wait()
        return message

    async with serving(handler) as server, connected(server) as slow, connected(server) as quick:
        slow[1].write(frame(b"slow"))
        quick[1].write(frame(b"quick"))
        assert await read_answers(quick[0], 1) == [b"quick"]
        release.set()
        assert await read_answers(slow[0], 1) == [b"slow"]


async def test_the_handler_learns_who_the_peer_is() -> None:
    peers: list[Peer] = []

    async def handler(message: bytes, peer: Peer) -> bytes | None:
        peers.append(peer)
        return b"AA"

    async with serving(handler) as server, connected(server) as (reader, writer):
        writer.write(frame(b"1"))
        await read_answers(reader, 1)
        assert peers == [Peer(HOST, writer.get_extra_info("sockname")[1], None)]


# Not durable, failing, leaving


async def test_without_an_answer_the_connection_closes_and_only_earlier_messages_are_answered() -> None:
    happenings = Happenings()

    async def handler(message: bytes, peer: Peer) -> bytes | None:
        return None if message == b"2" else message

    async with serving(handler, happenings=happenings) as server, connected(server) as (reader, writer):
        writer.write(frame(b"1") + frame(b"2") + frame(b"3"))
        assert await read_to_end(reader) == frame(b"1")
        await happenings.wait_for("mllp_unanswered")


async def test_a_handler_that_fails_closes_the_connection_and_is_named_by_class_only() -> None:
    happenings = Happenings()

    async def handler(message: bytes, peer: Peer) -> bytes | None:
        raise RuntimeError(message.decode())

    async with serving(handler, happenings=happenings) as server, connected(server) as (reader, writer):
        writer.write(frame(b"SECRET"))
        assert await read_to_end(reader) == b""
        assert await happenings.wait_for("mllp_handler_failed") == {"error": "RuntimeError"}
        assert "SECRET" not in str(happenings.seen)


async def test_the_answer_still_comes_when_the_sender_closes_its_side() -> None:
    release = asyncio.Event()

    async def handler(message: bytes, peer: Peer) -> bytes | None:
        await release.wait()
        return message

    async with serving(handler) as server, connected(server) as (reader, writer):
        writer.write(frame(b"1") + b"\x0b2\x1c")
        writer.write_eof()
        release.set()
        assert await read_to_end(reader) == frame(b"1") + frame(b"2")


async def test_a_message_is_handled_to_its_end_though_the_sender_has_gone() -> None:
    began, finished, release = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handler(message: bytes, peer: Peer) -> bytes | None:
        began.set()
        await release.wait()
        finished.set()
        return message

    async with serving(handler) as server:
        async with connected(server) as (_, writer):
            writer.write(frame(b"1"))
            await began.wait()
        release.set()
        await asyncio.wait_for(finished.wait(), PATIENCE_S)


async def test_a_message_cut_off_in_the_middle_is_not_handled() -> None:
    handled: list[bytes] = []

    async def handler(message: bytes, peer: Peer) -> bytes | None:
        handled.append(message)
        return message

    async with serving(handler) as server, connected(server) as (reader, writer):
        writer.write(frame(b"1") + b"\x0bMSH|half")
        writer.write_eof()
        assert await read_to_end(reader) == frame(b"1")
    assert handled == [b"1"]


# Limits


async def test_an_oversized_frame_is_reported_and_closed_after_earlier_answers() -> None:
    happenings = Happenings()
    async with (
        serving(echo, MllpOptions(frame_bytes_max=100), happenings) as server,
        connected(server) as (reader, writer),
    ):
        writer.write(frame(b"1") + b"\x0b" + b"x" * 10_000)
        assert await read_to_end(reader) == frame(b"AA 1")
        assert await happenings.wait_for("mllp_fault") == {"reason": "frame_too_large"}


async def test_too_much_garbage_closes() -> None:
    happenings = Happenings()
    async with serving(echo, happenings=happenings) as server, connected(server) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n" * 100)
        assert await read_to_end(reader) == b""
        assert await happenings.wait_for("mllp_fault") == {"reason": "too_much_garbage"}


async def test_a_slow_frame_closes_though_bytes_keep_coming() -> None:
    happenings = Happenings()
    async with (
        serving(echo, MllpOptions(frame_timeout_s=0.2), happenings) as server,
        connected(server) as (reader, writer),
    ):
        closed = asyncio.ensure_future(read_to_end(reader))
        writer.write(b"\x0b")
        while not closed.done():
            writer.write(b"x")
            await asyncio.wait([closed], timeout=0.02)
        assert await happenings.wait_for("mllp_fault") == {"reason": "frame_timeout"}


async def test_an_idle_connection_closes() -> None:
    happenings = Happenings()
    async with (
        serving(echo, MllpOptions(idle_timeout_s=0.5), happenings) as server,
        connected(server) as (reader, writer),
    ):
        writer.write(frame(b"1"))
        assert await read_to_end(reader) == frame(b"AA 1")
        await happenings.wait_for("mllp_idle")


async def test_a_connection_that_waits_for_its_answer_is_not_idle() -> None:
    async def handler(message: bytes, peer: Peer) -> bytes | None:
        await asyncio.sleep(0.7)
        return message

    options = MllpOptions(idle_timeout_s=0.5, frame_timeout_s=0.5)
    async with serving(handler, options) as server, connected(server) as (reader, writer):
        writer.write(frame(b"1"))
        assert await read_answers(reader, 1) == [b"1"]


async def test_a_sender_that_leaves_the_last_byte_out_is_answered_all_the_same() -> None:
    async with serving(echo, MllpOptions(last_byte_timeout_s=0.05)) as server, connected(server) as (reader, writer):
        for number in range(2):
            writer.write(b"\x0b%d\x1c" % number)
            assert await read_answers(reader, 1) == [b"AA %d" % number]


async def test_a_sender_that_reads_no_answers_is_cut_off() -> None:
    happenings = Happenings()

    async def handler(message: bytes, peer: Peer) -> bytes | None:
        return b"x" * 200_000

    async with (
        serving(handler, MllpOptions(write_timeout_s=0.2), happenings) as server,
        connected(server) as (_, writer),
    ):
        writer.write(frame(b"1") * 400)
        assert await happenings.wait_for("mllp_fault") == {"reason": "write_timeout"}


async def test_too_many_connections_are_refused_and_room_is_made_again() -> None:
    happenings = Happenings()
    async with serving(echo, MllpOptions(connections_max=1), happenings) as server:
        async with connected(server) as (reader, writer):
            writer.write(frame(b"1"))
            await read_answers(reader, 1)
            async with connected(server) as (second, _):
                assert await read_to_end(second) == b""
            assert await happenings.wait_for("mllp_refused") == {"connections": 1}
            writer.write_eof()
            assert await read_to_end(reader) == b""
        async with connected(server) as (reader, writer):
            writer.write(frame(b"2"))
            assert await read_answers(reader, 1) == [b"AA 2"]


async def test_what_all_connections_hold_together_is_limited() -> None:
    happenings = Happenings()

    async def handler(message: bytes, peer: Peer) -> bytes | None:
        return b"%d" % len(message)

    async with serving(handler, MllpOptions(held_bytes_max=150_000), happenings) as server:
        async with connected(server) as first, connected(server) as second:
            for _, writer in (first, second):
                writer.write(b"\x0b" + b"x" * 100_000)
            assert await happenings.wait_for("mllp_fault") == {"reason": "too_many_bytes_held"}
            for _, writer in (first, second):
                writer.write(b"\x1c\r")
                writer.write_eof()
            answers = await asyncio.gather(*(read_to_end(reader) for reader, _ in (first, second)))
            assert sorted(answers) == [b"", frame(b"100000")]
        assert server.held_bytes == 0


# Closing


async def test_closing_answers_what_is_being_handled_and_takes_nothing_more() -> None:
    began, release = asyncio.Event(), asyncio.Event()

    async def handler(message: bytes, peer: Peer) -> bytes | None:
        began.set()
        await release.wait()
        return message

    server = MllpServer(handler, MllpOptions(), on_event=Happenings())
    await server.start(HOST, 0)
    port = server.port
    async with connected(server) as (reader, writer), connected(server) as (idle, _):
        writer.write(frame(b"1") + b"\x0bhalf")
        await began.wait()
        closing = asyncio.ensure_future(server.close(PATIENCE_S))
        assert await read_to_end(idle) == b""
        with pytest.raises(OSError):
            await asyncio.open_connection(HOST, port)
        release.set()
        assert await read_to_end(reader) == frame(b"1")
        await closing


async def test_closing_does_not_wait_longer_than_it_may() -> None:
    began = asyncio.Event()
    cancelled = asyncio.Event()

    async def handler(message: bytes, peer: Peer) -> bytes | None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return message

    server = MllpServer(handler, MllpOptions(), on_event=Happenings())
    await server.start(HOST, 0)
    async with connected(server) as (reader, writer):
        writer.write(frame(b"1"))
        await began.wait()
        await server.close(0.05)
        assert await read_to_end(reader) == b""
    assert cancelled.is_set()


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return issue_certificate(tmp_path_factory.mktemp("tls"), "localhost", addresses=(HOST,))


def _server_context(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate.certificate_file)
    context.load_cert_chain(certificate.certificate_file, certificate.key_file)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


async def test_a_client_certificate_is_made_known_by_its_digest(certificate: Certificate) -> None:
    peers: list[Peer] = []

    async def handler(message: bytes, peer: Peer) -> bytes | None:
        peers.append(peer)
        return message

    der = ssl.PEM_cert_to_DER_cert(Path(certificate.certificate_file).read_text(encoding="ascii"))
    anonymous = ssl.create_default_context(cafile=certificate.certificate_file)
    known = ssl.create_default_context(cafile=certificate.certificate_file)
    known.load_cert_chain(certificate.certificate_file, certificate.key_file)
    async with serving(handler, tls=_server_context(certificate)) as server:
        for context in (anonymous, known):
            async with connected(server, context) as (reader, writer):
                writer.write(frame(b"1"))
                assert await read_answers(reader, 1) == [b"1"]
    assert [peer.certificate_sha256 for peer in peers] == [None, hashlib.sha256(der).hexdigest()]


async def test_the_client_speaks_tls(certificate: Certificate) -> None:
    trusting = ssl.create_default_context(cafile=certificate.certificate_file)
    async with serving(echo, tls=_server_context(certificate)) as server:
        client = MllpClient(MllpClientOptions(), trusting)
        assert await client.send_message("localhost", server.port, b"1") == b"AA 1"
        await client.close()
        wary = MllpClient(MllpClientOptions(), ssl.create_default_context())
        with pytest.raises(NotSent) as caught:
            await wary.send_message("localhost", server.port, b"1")
        assert caught.value.code == "tls_failed"


# The client


async def test_the_client_keeps_one_connection_for_an_address() -> None:
    ports: set[int] = set()

    async def handler(message: bytes, peer: Peer) -> bytes | None:
        ports.add(peer.port)
        return b"AA " + message

    async with serving(handler) as server:
        client = MllpClient(MllpClientOptions())
        answers = await asyncio.gather(
            *(client.send_message(HOST, server.port, b"%d" % number) for number in range(20))
        )
        await client.close()
    assert answers == [b"AA %d" % number for number in range(20)]
    assert len(ports) == 1


async def test_the_client_connects_anew_when_the_kept_connection_was_closed() -> None:
    happenings = Happenings()
    async with serving(echo, MllpOptions(idle_timeout_s=0.5), happenings) as server:
        client = MllpClient(MllpClientOptions())
        assert await client.send_message(HOST, server.port, b"1") == b"AA 1"
        await happenings.wait_for("mllp_idle")
        await asyncio.sleep(0.1)  # until the end of the connection has come
        assert await client.send_message(HOST, server.port, b"2") == b"AA 2"
        await client.close()


async def test_the_client_does_not_use_a_connection_kept_too_long() -> None:
    ports: list[int] = []

    async def handler(message: bytes, peer: Peer) -> bytes | None:
        ports.append(peer.port)
        return message

    async with serving(handler) as server:
        client = MllpClient(MllpClientOptions(kept_idle_s=0.0))
        for _ in range(2):
            await client.send_message(HOST, server.port, b"1")
        await client.close()
    assert len(set(ports)) == 2


async def test_the_client_keeps_no_more_connections_than_allowed() -> None:
    closed = asyncio.Event()

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\x1c\r")
        writer.write(frame(b"AA"))
        await read_to_end(reader)
        closed.set()

    async with listening(once) as first, serving(echo) as second:
        client = MllpClient(MllpClientOptions(kept_max=1))
        await client.send_message(HOST, first, b"1")
        await client.send_message(HOST, second.port, b"2")
        await asyncio.wait_for(closed.wait(), PATIENCE_S)
        await client.close()


async def test_nobody_listening_means_that_nothing_was_sent() -> None:
    async with serving(echo) as server:
        port = server.port
    with pytest.raises(NotSent) as caught:
        await MllpClient(MllpClientOptions()).send_message(HOST, port, b"1")
    assert caught.value.code == "connect_failed"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (None, "connection_closed"),
        (b"", "answer_timeout"),
        (b"\x0bMSH|half", "answer_timeout"),
        (b"\x0b" + b"x" * 2_000, "frame_too_large"),
        (b"x" * 2_000, "too_much_garbage"),
    ],
)
async def test_after_the_message_left_the_client_cannot_know(answer: bytes | None, code: str) -> None:
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\x1c\r")
        if answer is not None:
            writer.write(answer)
            await done.wait()

    async with listening(serve) as port:
        patience_s = 0.1 if code == "answer_timeout" else PATIENCE_S
        client = MllpClient(MllpClientOptions(answer_timeout_s=patience_s, answer_bytes_max=1_000))
        with pytest.raises(NoAnswer) as caught:
            await client.send_message(HOST, port, b"1")
        assert caught.value.code == code
        done.set()
        await client.close()


async def test_a_late_answer_is_never_taken_for_the_next_messages_own() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readuntil(b"\x1c\r") == frame(b"1"):
            writer.write(frame(b"ACK 1") + frame(b"ACK 1 again"))
        else:
            writer.write(frame(b"ACK 2"))
        await read_to_end(reader)

    async with listening(serve) as port:
        client = MllpClient(MllpClientOptions())
        assert await client.send_message(HOST, port, b"1") == b"ACK 1"
        assert await client.send_message(HOST, port, b"2") == b"ACK 2"
        await client.close()


async def test_what_comes_unasked_between_two_messages_is_not_taken_for_an_answer() -> None:
    sent_unasked = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        message = await reader.readuntil(b"\x1c\r")
        writer.write(frame(b"ACK " + message[1:-2]))
        await writer.drain()
        writer.write(frame(b"unasked"))
        await writer.drain()
        sent_unasked.set()
        await read_to_end(reader)

    async with listening(serve) as port:
        client = MllpClient(MllpClientOptions())
        assert await client.send_message(HOST, port, b"1") == b"ACK 1"
        await sent_unasked.wait()
        assert await client.send_message(HOST, port, b"2") == b"ACK 2"
        await client.close()
