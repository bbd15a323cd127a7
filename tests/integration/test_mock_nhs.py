"""The outside world over real sockets: it is stubborn, keeps everything once, and fails exactly as it was told."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mock_nhs.case_system import CaseOptions, CaseSystem
from mock_nhs.department import AdtMessage, Department
from mock_nhs.ed_system import EdOptions, EdSystem, describe_reply, play_day
from mock_nhs.faults import Faults, read_faults
from mock_nhs.journal import Journal, read_journal
from mock_nhs.mllp_link import LinkOptions
from mock_nhs.reply_listener import ReplyListenerOptions
from mock_nhs.town import build_town, write_csv
from tests.system import until

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
TOWN = build_town(1, on=date(2026, 11, 23), people=200, listed=20, near_twins=3)
TIMEOUT_S = 10.0


def control_id(block: bytes) -> str:
    return block.split(b"|")[9].decode()


def ack(block: bytes, code: str = "AA") -> bytes:
    return f"\x0bMSH|^~\\&|BROKER||||20261123||ACK|1|P|2.4\rMSA|{code}|{control_id(block)}\r\x1c\r".encode()


class TinyServer:
    """The least an MLLP server can be: it keeps what comes and answers what ``answer`` says; None closes."""

    def __init__(self, answer: Callable[[bytes], bytes | None] = ack) -> None:
        self.answer = answer
        self.blocks: list[bytes] = []
        self.broken: list[bytes] = []
        self.connections = 0
        self._server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError):
            await self._talk(reader, writer)
        writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                block = (await reader.readuntil(b"\x1c\r"))[1:-2]
            except asyncio.IncompleteReadError as error:
                self.broken += [error.partial] if error.partial else []
                return
            self.blocks.append(block)
            answer = self.answer(block)
            if answer is None:
                return
            writer.write(answer)
            await writer.drain()


@asynccontextmanager
async def ed_system(
    record: Path, port: int, *, faults: Faults | None = None, connections: int = 1, **link: Any
) -> AsyncIterator[EdSystem]:
    options = EdOptions(
        link=LinkOptions(host="127.0.0.1", port=port, error_pause_s=0.01, **link),
        replies=ReplyListenerOptions(site="RZ1", slow_pause_s=0.2),
        connections=connections,
    )
    system = EdSystem(options, record, faults)
    await system.start()
    try:
        yield system
    finally:
        await system.stop()


@asynccontextmanager
async def tiny_server(answer: Callable[[bytes], bytes | None] = ack) -> AsyncIterator[tuple[TinyServer, int]]:
    server = TinyServer(answer)
    port = await server.start()
    try:
        yield server, port
    finally:
        await server.stop()


def department(faults: Faults | None = None) -> Department:
    return Department(site="RZ1", credential="secret", people=TOWN.people, faults=faults)


def messages(count: int) -> list[AdtMessage]:
    desk = department()
    return [desk.next_message() for _ in range(count)]


async def send(system: EdSystem, sent: list[AdtMessage]) -> None:
    for message in sent:
        await system.offer(message)
    assert await system.settle(timeout_s=TIMEOUT_S)


def lines(record: Path, what: str) -> list[dict[str, Any]]:
    return [line for line in read_journal(record) if line["what"] == what]


class TestSending:
    async def test_messages_arrive_whole_in_order_and_are_written_down(self, tmp_path: Path) -> None:
        sent = messages(50)
        async with tiny_server() as (server, port), ed_system(tmp_path / "ed", port) as system:
            await send(system, sent)
        assert server.blocks == [message.body for message in sent]
        assert [line["control_id"] for line in lines(tmp_path / "ed", "offered")] == [m.control_id for m in sent]
        answered = lines(tmp_path / "ed", "answered")
        assert {(line["code"], line["attempts"]) for line in answered} == {("AA", 1)}
        assert {line["control_id"] for line in answered} == {m.control_id for m in sent}

    async def test_a_message_is_sent_again_with_the_same_bytes_when_the_connection_closes(self, tmp_path: Path) -> None:
        closings = iter([True, True, False])
        message = messages(1)[0]

        def answer(block: bytes) -> bytes | None:
            return None if next(closings) else ack(block)

        async with tiny_server(answer) as (server, port), ed_system(tmp_path / "ed", port) as system:
            await send(system, [message])
        assert server.blocks == [message.body] * 3
        assert lines(tmp_path / "ed", "answered")[0]["attempts"] == 3

    async def test_a_message_is_sent_again_when_nothing_is_answered(self, tmp_path: Path) -> None:
        silences = iter([True, False])
        async with (
            tiny_server(lambda block: b"" if next(silences) else ack(block)) as (server, port),
            ed_system(tmp_path / "ed", port, ack_timeout_s=1.0) as system,
        ):
            await send(system, messages(1))
        assert len(server.blocks) == server.connections == 2

    async def test_ae_is_tried_again_and_ar_is_not(self, tmp_path: Path) -> None:
        codes = iter(["AE", "AE", "AA", "AR"])
        first, second = messages(2)
        async with (
            tiny_server(lambda block: ack(block, next(codes))) as (server, port),
            ed_system(tmp_path / "ed", port) as system,
        ):
            await send(system, [first])
            await send(system, [second])
        assert server.blocks == [first.body] * 3 + [second.body]
        assert system.answers == {"AE": 2, "AA": 1, "AR": 1}

    async def test_a_window_of_messages_is_pipelined_and_no_more(self, tmp_path: Path) -> None:
        waiting: list[bytes] = []

        def answer(block: bytes) -> bytes:
            waiting.append(block)
            if len(waiting) < 8:
                return b""
            answers = b"".join(ack(each) for each in waiting)
            waiting.clear()
            return answers

        async with (
            tiny_server(answer) as (server, port),
            ed_system(tmp_path / "ed", port, window=8) as system,
        ):
            await send(system, messages(32))
        assert len(server.blocks) == 32
        assert server.connections == 1

    async def test_several_connections_keep_each_patients_order(self, tmp_path: Path) -> None:
        sent = messages(200)
        async with tiny_server() as (server, port), ed_system(tmp_path / "ed", port, connections=4) as system:
            await send(system, sent)
        assert server.connections == 4
        assert sorted(server.blocks) == sorted(message.body for message in sent)
        for patient in {message.local_patient_id for message in sent}:
            theirs = [message.body for message in sent if message.local_patient_id == patient]
            assert [block for block in server.blocks if block in theirs] == theirs

    async def test_a_broker_that_is_down_is_tried_until_it_is_up(self, tmp_path: Path) -> None:
        server = TinyServer()
        port = await server.start()
        await server.stop()
        async with ed_system(tmp_path / "ed", port) as system:
            await system.offer(messages(1)[0])
            assert not await system.settle(timeout_s=0.2)
            await server.start(port)
            assert await system.settle(timeout_s=TIMEOUT_S)
            await server.stop()
        assert len(server.blocks) == 1

    async def test_an_answer_closes_the_message_it_names_and_no_other(self, tmp_path: Path) -> None:
        first, second, third = messages(3)
        late = iter([b"", ack(second.body), ack(first.body)])
        async with (
            tiny_server(lambda block: next(late)) as (_, port),
            ed_system(tmp_path / "ed", port) as system,
        ):
            for message in (first, second, third):
                await system.offer(message)
            await until(lambda: len(lines(tmp_path / "ed", "answered")) == 2, limit_s=TIMEOUT_S, what="two answers")
            assert not await system.settle(timeout_s=0.1)
        answered = [line["control_id"] for line in lines(tmp_path / "ed", "answered")]
        assert answered == [second.control_id, first.control_id]

    async def test_what_a_closed_connection_left_unanswered_is_sent_again_before_the_rest(self, tmp_path: Path) -> None:
        sent = messages(6)
        closings = iter([False, False, True])

        def answer(block: bytes) -> bytes | None:
            closes = next(closings, None)
            return ack(block) if closes is None else None if closes else b""

        async with tiny_server(answer) as (server, port), ed_system(tmp_path / "ed", port, window=3) as system:
            await send(system, sent)
        assert server.blocks == [message.body for message in (*sent[:3], *sent)]

    async def test_no_more_than_the_window_is_unanswered(self, tmp_path: Path) -> None:
        async with (
            tiny_server(lambda block: b"") as (server, port),
            ed_system(tmp_path / "ed", port, window=4) as system,
        ):
            for message in messages(10):
                await system.offer(message)
            await until(lambda: len(server.blocks) >= 4, limit_s=TIMEOUT_S, what="a full window")
            assert not await system.settle(timeout_s=0.3)
            assert len(server.blocks) == 4

    async def test_offering_waits_while_too_many_are_unanswered(self, tmp_path: Path) -> None:
        async with (
            tiny_server(lambda block: b"") as (_, port),
            ed_system(tmp_path / "ed", port, unsettled_max=2) as system,
        ):
            first, second, third = messages(3)
            await system.offer(first)
            await system.offer(second)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(system.offer(third), 0.1)

    async def test_a_paced_day_takes_its_time(self, tmp_path: Path) -> None:
        loop = asyncio.get_running_loop()
        async with tiny_server() as (server, port), ed_system(tmp_path / "ed", port) as system:
            started_at_s = loop.time()
            await play_day(system, department(), messages=11, per_second=50.0)
            assert await system.settle(timeout_s=TIMEOUT_S)
            assert loop.time() - started_at_s >= 0.2
        assert len(server.blocks) == 11


class TestSendingFaults:
    async def test_half_a_frame_breaks_off_and_the_message_is_sent_again(self, tmp_path: Path) -> None:
        message = messages(1)[0]
        faults = read_faults(["ed.send.half_frame:1"])
        async with tiny_server() as (server, port), ed_system(tmp_path / "ed", port, faults=faults) as system:
            await send(system, [message])
        assert server.blocks == [message.body]
        assert len(server.broken) == 1
        assert message.body.startswith(server.broken[0][1:])
        assert +faults.fired == {"ed.send.half_frame": 1}

    async def test_hanging_up_leaves_the_ack_unread_and_the_message_is_sent_again(self, tmp_path: Path) -> None:
        message = messages(1)[0]
        faults = read_faults(["ed.send.hang_up:1"])
        async with tiny_server() as (server, port), ed_system(tmp_path / "ed", port, faults=faults) as system:
            await send(system, [message])
        assert server.blocks == [message.body] * 2
        assert server.connections == 2

    async def test_twice_is_twice_on_one_connection(self, tmp_path: Path) -> None:
        first, second = messages(2)
        faults = read_faults(["ed.send.twice:1"])
        async with tiny_server() as (server, port), ed_system(tmp_path / "ed", port, faults=faults) as system:
            await send(system, [first])
            await send(system, [second])
        assert server.blocks == [first.body, first.body, second.body]
        assert server.connections == 1
        assert len(lines(tmp_path / "ed", "answered")) == 2

    async def test_a_slow_frame_arrives_whole(self, tmp_path: Path) -> None:
        message = messages(1)[0]
        faults = read_faults(["ed.send.slow_frame:1"])
        started_at_s = asyncio.get_running_loop().time()
        async with (
            tiny_server() as (server, port),
            ed_system(tmp_path / "ed", port, faults=faults, slow_pause_s=0.1) as system,
        ):
            await send(system, [message])
        assert server.blocks == [message.body]
        assert asyncio.get_running_loop().time() - started_at_s >= 0.1

    async def test_an_unreadable_message_goes_out_and_is_marked_in_the_journal(self, tmp_path: Path) -> None:
        faults = read_faults(["ed.write.unreadable:1"])
        async with tiny_server() as (server, port), ed_system(tmp_path / "ed", port) as system:
            await play_day(system, department(faults), messages=2)
            assert await system.settle(timeout_s=TIMEOUT_S)
        assert [b"\rPID|" in block for block in server.blocks] == [False, True]
        assert [line["unreadable"] for line in lines(tmp_path / "ed", "offered")] == [True, False]


def oru(message: AdtMessage, number: str = "R1", outcome: str = "match", **changes: str) -> bytes:
    patient, visit = changes.get("patient", message.local_patient_id), changes.get("visit", message.visit_number)
    segments = [
        f"MSH|^~\\&|BROKER|CPIS|EDIS|RZ1|20261123090000||ORU^R01^ORU_R01|{number}|P|2.4",
        f"PID|1||{patient}^^^RZ1^MR",
        f"PV1|1|E{'|' * 17}{visit}",
        "OBR|1",
        f"OBX|1|CE|OUTCOME||{outcome}^Plan found^L||||||F",
        "OBX|2|TX|WORDING||On a plan of Northfold \\T\\ Westmere~Ring the duty team||||||F",
        "OBX|3|CE|PLAN-TYPE^Plan type^L|1|cp^Child protection plan^L||||||F",
        "OBX|4|NM|LISTS||2||||||F",
    ]
    return b"\x0b" + "".join(segment + "\r" for segment in segments).encode() + b"\x1c\r"


class ReplyClient:
    """Writes blocks to a department's listener and reads what comes back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, block: bytes) -> None:
        self.writer.write(block)
        await self.writer.drain()

    async def read(self, timeout_s: float = TIMEOUT_S) -> str:
        """``AA R1`` for an ACK, ``closed``, or the bytes as text."""
        try:
            block = await asyncio.wait_for(self.reader.readuntil(b"\x1c\r"), timeout_s)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            return "closed"
        fields = block.decode().strip("\x0b\x1c\r").split("\r")[-1].split("|")
        return " ".join(fields[1:3]) if fields[0] == "MSA" else fields[0]

    async def ask(self, block: bytes) -> str:
        await self.send(block)
        return await self.read()


@asynccontextmanager
async def reply_client(system: EdSystem) -> AsyncIterator[ReplyClient]:
    reader, writer = await asyncio.open_connection("127.0.0.1", system.reply_port)
    try:
        yield ReplyClient(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def department_with_a_visit(record: Path, *armed: str) -> AsyncIterator[tuple[EdSystem, ReplyClient, AdtMessage]]:
    message = department().register(TOWN.people[0])
    async with tiny_server() as (_, port), ed_system(record, port, faults=read_faults(armed)) as system:
        await send(system, [message])
        async with reply_client(system) as client:
            yield system, client, message


class TestReplies:
    async def test_a_reply_is_read_kept_shown_and_acknowledged(self, tmp_path: Path) -> None:
        async with department_with_a_visit(tmp_path / "ed") as (system, client, message):
            waiting = asyncio.create_task(system.wait_for_reply(message.visit_number, timeout_s=TIMEOUT_S))
            assert await client.ask(oru(message)) == "AA R1"
            reply = await waiting
            assert reply == await system.wait_for_reply(message.visit_number, timeout_s=TIMEOUT_S)
        assert reply.outcome == "match"
        assert reply.wording == "On a plan of Northfold & Westmere\nRing the duty team"
        assert [str(each) for each in reply.observations] == ["Plan type 1: Child protection plan", "LISTS: 2"]
        assert reply.problems == ()
        assert "Ring the duty team" in describe_reply(reply)
        line = lines(tmp_path / "ed", "reply")[0]
        assert (line["visit_number"], line["outcome"]) == (message.visit_number, "match")

    async def test_a_repeat_is_acknowledged_and_counts_once_even_after_a_restart(self, tmp_path: Path) -> None:
        async with department_with_a_visit(tmp_path / "ed") as (system, client, message):
            assert [await client.ask(oru(message)) for _ in range(2)] == ["AA R1"] * 2
            assert len(system.replies) == 1
        async with ed_system(tmp_path / "ed", 1) as system, reply_client(system) as client:
            assert await client.ask(oru(message)) == "AA R1"
            assert system.replies == []
        assert len(lines(tmp_path / "ed", "reply")) == 1
        repeats = lines(tmp_path / "ed", "reply_repeated")
        assert [line["problems"] for line in repeats] == [[], []]

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"visit": "V9-000009"}, "visit_unknown"),
            ({"patient": "H00000000"}, "patient_of_another_visit"),
            ({"patient": "9990000018"}, "nhs_number_written"),
            ({"outcome": "safe"}, "outcome_unknown"),
        ],
    )
    async def test_what_is_wrong_with_a_reply_is_written_down(
        self, tmp_path: Path, changes: dict[str, str], problem: str
    ) -> None:
        async with department_with_a_visit(tmp_path / "ed") as (system, client, message):
            assert await client.ask(oru(message, **changes)) == "AA R1"
            assert problem in system.replies[0].problems

    async def test_a_repeat_that_says_something_else_is_written_down(self, tmp_path: Path) -> None:
        async with department_with_a_visit(tmp_path / "ed") as (_, client, message):
            await client.ask(oru(message))
            await client.ask(oru(message, outcome="no_record_found"))
        assert lines(tmp_path / "ed", "reply_repeated")[0]["problems"] == ["repeat_differs"]

    async def test_what_is_no_reply_is_rejected_and_not_kept(self, tmp_path: Path) -> None:
        async with department_with_a_visit(tmp_path / "ed") as (system, client, message):
            assert await client.ask(oru(message).replace(b"ORU^R01", b"ADT^A04")) == "AR R1"
            assert await client.ask(b"\x0bhello\r\x1c\r") == "AR "
            assert system.replies == []

    @pytest.mark.parametrize(
        ("fault", "answer", "kept"),
        [
            ("ed.reply.ack_ae", "AE R1", 0),
            ("ed.reply.ack_ar", "AR R1", 0),
            ("ed.reply.close", "closed", 0),
            ("ed.reply.not_hl7", "busy", 0),
            ("ed.reply.drop_after_keep", "closed", 1),
            ("ed.reply.slow", "AA R1", 1),
        ],
    )
    async def test_a_fault_answers_as_it_says_and_the_next_reply_is_taken(
        self, tmp_path: Path, fault: str, answer: str, kept: int
    ) -> None:
        async with department_with_a_visit(tmp_path / "ed", f"{fault}:1") as (system, client, message):
            started_at_s = asyncio.get_running_loop().time()
            assert await client.ask(oru(message)) == answer
            assert fault != "ed.reply.slow" or asyncio.get_running_loop().time() - started_at_s >= 0.2
            assert len(system.replies) == kept
            async with reply_client(system) as again:
                assert await again.ask(oru(message)) == "AA R1"
            assert len(system.replies) == 1

    async def test_no_ack_keeps_the_reply_and_says_nothing(self, tmp_path: Path) -> None:
        async with department_with_a_visit(tmp_path / "ed", "ed.reply.no_ack:1") as (system, client, message):
            waiting = asyncio.create_task(system.wait_for_reply(message.visit_number, timeout_s=TIMEOUT_S))
            await client.send(oru(message))
            await waiting
            with pytest.raises(TimeoutError):
                await client.read(0.1)
            assert await client.ask(oru(message)) == "AA R1"
            assert len(system.replies) == 1

    async def test_a_late_ack_comes_before_the_next_ones_own(self, tmp_path: Path) -> None:
        async with department_with_a_visit(tmp_path / "ed", "ed.reply.late_ack:1") as (_, client, message):
            await client.send(oru(message, "R1"))
            with pytest.raises(TimeoutError):
                await client.read(0.1)
            assert await client.ask(oru(message, "R2")) == "AA R1"
            assert await client.read() == "AA R2"


SECRETS = {"706": b"6" * 32, "707": b"7" * 32}


def sign(
    body: bytes, *, key: str = "k1", secret: bytes = SECRETS["706"], at: datetime = NOW, prefix: str = ""
) -> dict[str, str]:
    stamp = str(int(at.timestamp()))
    digest = hmac.new(secret, f"{key}.{stamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": key,
        "webhook-timestamp": stamp,
        "webhook-signature": f"{prefix}v1,{base64.b64encode(digest).decode()}",
        "content-type": "application/json",
    }


def alert(alert_id: str = "a1", authority: str = "706") -> bytes:
    return json.dumps({"alert_id": alert_id, "authority": authority, "child": {"local_id": "C70600001"}}).encode()


@asynccontextmanager
async def case_system(record: Path, *armed: str) -> AsyncIterator[tuple[CaseSystem, httpx.AsyncClient]]:
    options = CaseOptions(secrets=SECRETS, slow_pause_s=0.2, retry_after_s=7)
    system = CaseSystem(options, record, read_faults(armed), clock=lambda: NOW)
    await system.start()
    try:
        async with httpx.AsyncClient(base_url=system.url, timeout=TIMEOUT_S, trust_env=False) as client:
            yield system, client
    finally:
        await system.stop()


class TestCaseSystem:
    async def test_a_signed_alert_is_kept_and_written_down(self, tmp_path: Path) -> None:
        body = alert()
        async with case_system(tmp_path / "cases") as (system, client):
            answer = await client.post("/alerts/706", content=body, headers=sign(body))
        assert answer.status_code == 200
        assert [(kept.alert_id, kept.authority) for kept in system.receipts] == [("a1", "706")]
        assert system.receipts[0].alert["child"] == {"local_id": "C70600001"}
        line = lines(tmp_path / "cases", "alert")[0]
        assert (line["idempotency_key"], line["alert_id"], line["local_id"]) == ("k1", "a1", "C70600001")

    async def test_a_repeat_is_answered_the_same_and_counts_once_even_after_a_restart(self, tmp_path: Path) -> None:
        body = alert()
        for _ in range(2):
            async with case_system(tmp_path / "cases") as (_, client):
                for _ in range(2):
                    assert (await client.post("/alerts/706", content=body, headers=sign(body))).status_code == 200
        assert len(lines(tmp_path / "cases", "alert")) == 1
        assert [line["repeat_differs"] for line in lines(tmp_path / "cases", "alert_repeated")] == [False] * 3

    async def test_a_repeat_with_another_body_is_written_down(self, tmp_path: Path) -> None:
        async with case_system(tmp_path / "cases") as (_, client):
            for body in (alert("a1"), alert("a2")):
                await client.post("/alerts/706", content=body, headers=sign(body))
        assert lines(tmp_path / "cases", "alert_repeated")[0]["repeat_differs"]

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            sign(alert(), secret=SECRETS["707"]),
            sign(alert("a2")),
            sign(alert(), at=NOW.replace(hour=8, minute=54)),
            sign(alert(), at=NOW.replace(minute=6)),
            sign(alert()) | {"webhook-id": "k2"},
            sign(alert()) | {"webhook-timestamp": "soon"},
            sign(alert()) | {"webhook-signature": "v2," + sign(alert())["webhook-signature"][3:]},
            sign(alert()) | {"webhook-signature": "v1,%%%"},
        ],
    )
    async def test_a_wrong_or_old_signature_is_refused(self, tmp_path: Path, headers: dict[str, str]) -> None:
        async with case_system(tmp_path / "cases") as (system, client):
            answer = await client.post("/alerts/706", content=alert(), headers=headers)
            assert answer.status_code == 401
            assert system.receipts == []
        assert len(lines(tmp_path / "cases", "refused")) == 1

    async def test_one_right_signature_among_several_is_enough(self, tmp_path: Path) -> None:
        async with case_system(tmp_path / "cases") as (_, client):
            headers = sign(alert(), prefix="v1,b2xk v9,eA== ")
            assert (await client.post("/alerts/706", content=alert(), headers=headers)).status_code == 200

    @pytest.mark.parametrize(
        ("path", "body", "status"),
        [
            ("/alerts/706", alert(authority="707"), 422),
            ("/alerts/999", alert(), 404),
            ("/elsewhere/706", alert(), 404),
            ("/alerts/706", b"[1]", 400),
            ("/alerts/706", b"not json", 400),
            ("/alerts/706", b'{"authority": "706"}', 400),
            ("/alerts/706", b"[" * 100_000, 400),
            ("/alerts/706", b"x" * 1_000_001, 413),
        ],
    )
    async def test_what_is_no_alert_for_this_authority_is_refused(
        self, tmp_path: Path, path: str, body: bytes, status: int
    ) -> None:
        async with case_system(tmp_path / "cases") as (system, client):
            assert (await client.post(path, content=body, headers=sign(body))).status_code == status
            assert (await client.get("/alerts/706")).status_code == 405
            assert system.receipts == []

    @pytest.mark.parametrize(
        ("fault", "status", "header", "kept"),
        [
            ("case.refuse_400", 400, {}, 0),
            ("case.refuse_503", 503, {}, 0),
            ("case.429_retry_after", 429, {"retry-after": "7"}, 0),
            ("case.slow", 200, {}, 1),
        ],
    )
    async def test_a_fault_answers_as_it_says_and_the_next_try_is_taken(
        self, tmp_path: Path, fault: str, status: int, header: dict[str, str], kept: int
    ) -> None:
        async with case_system(tmp_path / "cases", f"{fault}:1") as (system, client):
            answer = await client.post("/alerts/706", content=alert(), headers=sign(alert()))
            assert answer.status_code == status
            assert header.items() <= dict(answer.headers).items()
            assert fault != "case.slow" or answer.elapsed.total_seconds() >= 0.2
            assert len(system.receipts) == kept
            assert (await client.post("/alerts/706", content=alert(), headers=sign(alert()))).status_code == 200
            assert len(system.receipts) == 1
        assert [line["fault"] for line in lines(tmp_path / "cases", "failed_on_purpose")] == [fault]

    @pytest.mark.parametrize(
        ("fault", "kept"), [("case.drop_after_read", 0), ("case.drop_after_keep", 1), ("case.half_response", 1)]
    )
    async def test_a_fault_that_breaks_off_keeps_what_it_says(self, tmp_path: Path, fault: str, kept: int) -> None:
        async with case_system(tmp_path / "cases", f"{fault}:1") as (system, client):
            with pytest.raises(httpx.RemoteProtocolError):
                await client.post("/alerts/706", content=alert(), headers=sign(alert()))
            assert len(system.receipts) == kept
            assert (await client.post("/alerts/706", content=alert(), headers=sign(alert()))).status_code == 200
            assert len(system.receipts) == 1

    @pytest.mark.parametrize("follows", [False, True])
    async def test_a_redirect_tells_who_follows_it(self, tmp_path: Path, follows: bool) -> None:
        async with case_system(tmp_path / "cases", "case.redirect:1") as (system, client):
            answer = await client.post("/alerts/706", content=alert(), headers=sign(alert()), follow_redirects=follows)
            assert answer.status_code == (200 if follows else 307)
            assert system.receipts == []
        assert len(lines(tmp_path / "cases", "followed_redirect")) == follows

    @pytest.mark.parametrize(
        "request_bytes",
        [
            b"nonsense\r\n\r\n",
            b"POST /alerts/706 HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
            b"POST /alerts/706 HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST /alerts/706 HTTP/1.1\r\nwebhook-id: 1\r\nwebhook-id: 2\r\n\r\n",
            b"POST /alerts/706 HTTP/1.1\r\nx: " + b"x" * 20_000 + b"\r\n\r\n",
        ],
    )
    async def test_a_malformed_request_is_refused_and_the_connection_closes(
        self, tmp_path: Path, request_bytes: bytes
    ) -> None:
        async with case_system(tmp_path / "cases") as (system, _):
            reader, writer = await asyncio.open_connection("127.0.0.1", system.port)
            writer.write(request_bytes)
            answer = await asyncio.wait_for(reader.read(), TIMEOUT_S)
            writer.close()
            assert answer.startswith(b"HTTP/1.1 4")


class TestJournal:
    def test_a_torn_last_line_is_left_out_and_the_next_begins_anew(self, tmp_path: Path) -> None:
        path = tmp_path / "journal"
        path.write_bytes(b'{"what":"one"}\n{"what":"tw')
        assert [line["what"] for line in read_journal(path)] == ["one"]
        journal = Journal(path)
        journal.write("three")
        journal.close()
        assert [line["what"] for line in read_journal(path)] == ["one", "three"]


async def start_program(*arguments: str) -> tuple[asyncio.subprocess.Process, list[str]]:
    """Start a program of the outside; returns the words of its first line, too."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    first = await asyncio.wait_for(process.stdout.readline(), TIMEOUT_S)
    return process, first.decode().split()


async def end_program(process: asyncio.subprocess.Process) -> list[str]:
    output, errors = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    assert errors == b""
    return output.decode().splitlines()


class TestPrograms:
    async def test_a_department_plays_a_day_shows_its_replies_and_reports(self, tmp_path: Path) -> None:
        write_csv(TOWN, tmp_path)
        async with tiny_server() as (server, port):
            program = ["mock_nhs.ed_system", "--port", str(port), "--site", "RZ1", "--people", str(tmp_path)]
            program += ["--messages", "30", "--record", str(tmp_path / "ed.jsonl"), "--reply-port", "0"]
            program += ["--linger-s", "60", "--show", "--fault", "ed.send.twice:2"]
            process, (word, _, reply_port) = await start_program(*program)
            assert word == "listening"
            reader, writer = await asyncio.open_connection("127.0.0.1", int(reply_port))
            assert process.stdout is not None
            assert await asyncio.wait_for(process.stdout.readline(), TIMEOUT_S) == b"settled\n"
            message = Department(site="RZ1", credential="", people=TOWN.people).next_message()
            writer.write(oru(message))
            await asyncio.wait_for(reader.readuntil(b"\x1c\r"), TIMEOUT_S)
            writer.close()
            process.send_signal(signal.SIGTERM)
            output = await end_program(process)
        assert process.returncode == 0
        assert len(server.blocks) == 32
        assert TOWN.sites[0].credential.encode() in server.blocks[0]
        assert any(line.startswith("V1-000001 ") for line in output)
        summary = json.loads(output[-1])
        assert summary == {"offered": 30, "answers": {"AA": 30}, "replies": 1, "faults": {"ed.send.twice": 2}}

    async def test_a_day_that_is_not_answered_ends_with_1(self, tmp_path: Path) -> None:
        write_csv(TOWN, tmp_path)
        async with tiny_server(lambda block: b"") as (_, port):
            program = ["mock_nhs.ed_system", "--port", str(port), "--site", "RZ1", "--people", str(tmp_path)]
            program += ["--messages", "1", "--record", str(tmp_path / "ed.jsonl"), "--patience-s", "0.1"]
            process, _ = await start_program(*program)
            await end_program(process)
        assert process.returncode == 1

    async def test_a_case_system_verifies_with_the_towns_secrets_and_ends_on_sigterm(self, tmp_path: Path) -> None:
        write_csv(TOWN, tmp_path)
        program = ["mock_nhs.case_system", "--people", str(tmp_path), "--record", str(tmp_path / "cases.jsonl")]
        process, (_, host, port) = await start_program(*program, "--show", "--fault", "case.refuse_503:1")
        secret = base64.b64decode(TOWN.authorities[0].webhook_secret)
        headers = sign(alert(), secret=secret, at=datetime.now(UTC))
        async with httpx.AsyncClient(trust_env=False) as client:
            url = f"http://{host}:{port}/alerts/706"
            codes = [(await client.post(url, content=alert(), headers=headers)).status_code for _ in range(2)]
        process.send_signal(signal.SIGTERM)
        output = await end_program(process)
        assert codes == [503, 200]
        assert process.returncode == 0
        assert output[0] == "authority 706: alert a1 for C70600001"
        assert json.loads(output[-1]) == {"alerts": 1, "faults": {"case.refuse_503": 1}}

    async def test_a_personal_demographics_service_knows_the_town_and_ends_on_sigterm(self, tmp_path: Path) -> None:
        write_csv(TOWN, tmp_path)
        old, new, restricted, dead = (person.nhs_number for person in TOWN.people[:4])
        program = ["mock_nhs.pds", "--people", str(tmp_path), "--record", str(tmp_path / "pds.jsonl")]
        program += ["--superseded", f"{old}:{new}", "--restricted", restricted, "--invalidated", dead]
        process, (_, host, port) = await start_program(*program, "--fault", "pds.refuse_503:1")
        patients = f"http://{host}:{port}/personal-demographics/FHIR/R4/Patient"
        async with httpx.AsyncClient(trust_env=False, headers={"x-request-id": "1"}) as client:
            numbers = (new, old, restricted, dead)
            refused, *answers = [await client.get(f"{patients}/{number}") for number in (new, *numbers)]
        process.send_signal(signal.SIGTERM)
        output = await end_program(process)
        assert [refused.status_code, *(answer.status_code for answer in answers)] == [503, 200, 200, 200, 404]
        assert [answer.json().get("id") for answer in answers] == [new, new, restricted, None]
        assert ["address" in answer.json() for answer in answers] == [True, True, False, False]
        assert answers[3].json()["issue"][0]["details"]["coding"][0]["code"] == "INVALIDATED_RESOURCE"
        assert process.returncode == 0
        assert json.loads(output[-1]) == {"requests": 5, "faults": {"pds.refuse_503": 1}}

    async def test_a_personal_demographics_service_asks_its_applications_for_a_token(self, tmp_path: Path) -> None:
        write_csv(TOWN, tmp_path)
        public = generate_private_key(public_exponent=65537, key_size=2048).public_key()
        (tmp_path / "key.pem").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        program = ["mock_nhs.pds", "--people", str(tmp_path), "--record", str(tmp_path / "pds.jsonl")]
        process, (_, host, port) = await start_program(*program, "--application", f"key:1:{tmp_path / 'key.pem'}")
        async with httpx.AsyncClient(trust_env=False, headers={"x-request-id": "1"}) as client:
            patient = f"http://{host}:{port}/personal-demographics/FHIR/R4/Patient/{TOWN.people[0].nhs_number}"
            assert (await client.get(patient)).status_code == 401
        process.send_signal(signal.SIGTERM)
        await end_program(process)
        assert process.returncode == 0
