"""The machine door's common room: what is answered, what is kept, and in which order. There is no database here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from adapters.hl7v2 import Header, read_ack
from adapters.hl7v2_batch import split_batch
from broker.envelope import RECORD_SEAL
from broker.intake import Intake
from broker.keyring import Keyring
from broker.senders import Senders, digest_credential, write_snapshot
from schemas.directory import KeptAnswer, Sender
from schemas.record import LogRecord, Partition
from tests.fakes import ManualClock, MemoryLog
from tests.world import FIELD_KEYS, INDEX_KEY, hl7

TOPIC = "attendances"
PERSONAL = (b"9990000018", b"TESTER", b"CASEY", b"20150302", b"K12345", b"LEEDS", b"ZZ99", b"Fall from height")
RING = Keyring(FIELD_KEYS, INDEX_KEY)


@dataclass(frozen=True)
class Peer:
    """Who is at the other end."""

    host: str = "10.1.2.3"


class WatchedLog(MemoryLog):
    """A log that notes when an append was durable."""

    def __init__(self) -> None:
        super().__init__(partitions=4)
        self.happened: list[str] = []

    async def append(
        self, topic: str, *, key: bytes | None, value: bytes, headers: Mapping[str, bytes]
    ) -> tuple[Partition, int]:
        """Append, then say so."""
        self.happened.append("append began")
        stands = await super().append(topic, key=key, value=value, headers=headers)
        self.happened.append("durable")
        return stands

    async def everything(self) -> list[LogRecord]:
        """Every record, by partition."""
        return [record for partition in sorted(await self.extents(TOPIC)) for record in self.records_from(partition, 0)]


@pytest.fixture
def log() -> WatchedLog:
    return WatchedLog()


@pytest.fixture
def intake(log: WatchedLog, tmp_path: Path) -> Intake:
    path = tmp_path / "senders.json"
    held = ("10.1.0.0/16",)
    write_snapshot(
        path,
        [
            Sender(code="RZ1", credential_digest=digest_credential(RING, "RZ1", b"rz1-credential"), peers=held),
            Sender(code="RZ2", credential_digest=digest_credential(RING, "RZ2", b"rz2-credential")),
            *(
                Sender(
                    code=f"RZ{answer}",
                    credential_digest=digest_credential(RING, f"RZ{answer}", b"x"),
                    not_understood=answer,
                )
                for answer in KeptAnswer
            ),
        ],
    )
    return Intake(log, TOPIC, RING, Senders(path, RING), ManualClock(datetime(2026, 2, 14, 3, 12, tzinfo=UTC)))


async def accept(intake: Intake, message: bytes, host: str = "10.1.2.3") -> bytes:
    answer = await intake.accept_hl7v2(message, Peer(host))
    assert answer is not None
    assert not any(value in answer for value in PERSONAL)
    return answer


def text_of(answer: bytes) -> str:
    """MSA-3."""
    [line] = [line for line in answer.decode().split("\r") if line.startswith("MSA")]
    return ([*line.split("|"), "", ""])[3]


async def test_aa_is_said_only_after_the_log_has_the_message(intake: Intake, log: WatchedLog) -> None:
    answer = read_ack(await accept(intake, hl7(control_id="C77")))
    log.happened.append("answered")
    assert log.happened == ["append began", "durable", "answered"]
    assert (answer.code, answer.control_id) == ("AA", "C77")


async def test_what_could_not_be_made_durable_is_not_answered_at_all(intake: Intake, log: WatchedLog) -> None:
    log.is_reachable = False
    with capture_logs() as lines:
        assert await intake.accept_hl7v2(hl7(), Peer()) is None
    assert [line["event"] for line in lines if line["event"] != "senders_loaded"] == ["message_not_durable"]
    log.is_reachable = True
    assert read_ack(await accept(intake, hl7())).code == "AA"
    assert len(await log.everything()) == 1


@pytest.mark.parametrize(
    ("message", "host"),
    [
        (hl7(sender="RZ9", credential="rz1-credential"), "10.1.2.3"),
        (hl7(sender="", credential="rz1-credential"), "10.1.2.3"),
        (hl7(sender="R Z", credential="rz1-credential"), "10.1.2.3"),
        (hl7(credential="wrong"), "10.1.2.3"),
        (hl7(credential=""), "10.1.2.3"),
        (hl7(credential="rz2-credential"), "10.1.2.3"),
        (hl7(), "10.2.0.1"),
        (hl7(), "not an address"),
    ],
    ids=["unknown", "nobody", "no ODS code", "wrong", "none", "another's", "another network", "no network"],
)
async def test_who_may_not_send_is_refused_and_nothing_is_kept(
    intake: Intake, log: WatchedLog, message: bytes, host: str
) -> None:
    with capture_logs() as lines:
        answer = await accept(intake, message, host)
    assert read_ack(answer).code == "AR"
    assert text_of(answer) == "refused: sender not permitted"
    assert b"credential" not in answer
    assert log.happened == []
    [refused] = [line for line in lines if line["event"] == "message_refused"]
    assert refused["reason"] == "sender_not_permitted"


async def test_what_stands_in_the_place_of_a_sender_reaches_no_log_unless_it_is_one(
    intake: Intake, log: WatchedLog
) -> None:
    with capture_logs() as lines:
        for sender in (b"9990000018", b"TESTER", b"RZ1"):
            message = hl7(credential="wrong").replace(b"|RZ1|", b"|" + sender + b"|", 1)
            assert b"MSA|AR|" in (await intake.accept_hl7v2(message, Peer()) or b"")
    assert [line["sender"] for line in lines if line["event"] == "message_refused"] == [None, None, "RZ1"]


async def test_a_sender_without_networks_may_send_from_anywhere(intake: Intake) -> None:
    answer = await accept(intake, hl7(sender="RZ2", credential="rz2-credential"), "203.0.113.9")
    assert read_ack(answer).code == "AA"


@pytest.mark.parametrize(
    "junk", [b"", b"GET / HTTP/1.1\r\n", b"PID|1||9990000018", b"MSH", b"MSH|", b"\x16\x03\x01\x02\x00", b"\x00" * 99]
)
async def test_what_is_not_hl7_is_refused_and_nothing_is_kept(intake: Intake, log: WatchedLog, junk: bytes) -> None:
    answer = await accept(intake, junk)
    assert answer.startswith(b"MSH|")
    assert b"\rMSA|AR|" in answer
    assert log.happened == []


@pytest.mark.parametrize(
    "message",
    [
        hl7().replace(b"PID|", b"ZZZ|"),
        hl7().split(b"\r")[0] + b"\r",
        hl7().split(b"EVN")[0] + b"PID|1\rPV1|1|E\r",
    ],
    ids=["no PID", "header only", "empty PID"],
)
async def test_what_is_not_understood_is_kept_and_says_so(intake: Intake, log: WatchedLog, message: bytes) -> None:
    with capture_logs() as lines:
        answer = await accept(intake, message)
    assert read_ack(answer).code == "AA"
    assert text_of(answer).startswith("kept, not understood: ")
    [record] = await log.everything()
    assert RING.open(record.value, about=RECORD_SEAL) == message
    assert [line["event"] for line in lines if line["event"] != "senders_loaded"] == ["message_not_understood"]


@pytest.mark.parametrize("wished", KeptAnswer)
async def test_a_sender_may_wish_another_answer_for_what_is_kept_but_not_understood(
    intake: Intake, log: WatchedLog, wished: KeptAnswer
) -> None:
    message = hl7(sender=f"RZ{wished}", credential="x")
    assert read_ack(await accept(intake, message)).code == "AA"
    answer = await accept(intake, message.replace(b"PID|", b"ZZZ|"))
    assert read_ack(answer).code == wished.value
    assert text_of(answer).startswith("kept, not understood: ")
    assert len(await log.everything()) == 2


async def test_an_unforeseen_failure_to_understand_costs_nothing(
    intake: Intake, log: WatchedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_message: bytes, _header: Header) -> None:
        raise RecursionError("CASEY TESTER")

    monkeypatch.setattr("broker.intake.read_ordering", fail)
    answer = await accept(intake, hl7())
    assert (read_ack(answer).code, text_of(answer)) == ("AA", "kept, not understood: RecursionError")
    assert len(await log.everything()) == 1


@pytest.mark.parametrize("event", ["A05", "A28", "Z99"])
async def test_what_is_no_attendance_is_kept_and_nothing_is_said_of_it(
    intake: Intake, log: WatchedLog, event: str
) -> None:
    answer = await accept(intake, hl7(event))
    assert (read_ack(answer).code, text_of(answer)) == ("AA", "")
    assert len(await log.everything()) == 1


@pytest.mark.parametrize(
    "message",
    [hl7(), hl7().replace(b"\r", b"\n"), hl7(family="JOS\xc9", given="ZO\xcb").decode().encode("latin-1")],
    ids=["plain", "line feeds", "latin-1"],
)
async def test_what_is_kept_is_an_envelope_of_exactly_the_bytes_received(
    intake: Intake, log: WatchedLog, message: bytes
) -> None:
    await accept(intake, message)
    [record] = await log.everything()
    assert RING.open(record.value, about=RECORD_SEAL) == message
    assert record.headers["ce_keyid"] == b"t1"
    assert not any(value in record.value for value in PERSONAL)


async def test_headers_are_cloudevents_and_hold_nothing_personal(intake: Intake, log: WatchedLog) -> None:
    message = hl7(control_id="C77")
    await accept(intake, message)
    [record] = await log.everything()
    assert dict(record.headers) == {
        "content-type": b"application/hl7-v2+er7",
        "ce_specversion": b"1.0",
        "ce_id": RING.marker("RZ1", "C77", message).hex().encode(),
        "ce_source": b"RZ1",
        "ce_type": b"uk.cpis-broker.attendance.received.v1",
        "ce_time": b"2026-02-14T03:12:00+00:00",
        "ce_keyid": b"t1",
    }
    assert record.key is not None
    assert not any(value in record.key for value in PERSONAL)


async def test_messages_of_one_patient_stay_in_order(intake: Intake, log: WatchedLog) -> None:
    for number in range(10):
        await accept(intake, hl7("A08", visit=f"V{number}", complaint=f"{number}"))
    records = await log.everything()
    assert len({record.key for record in records}) == 1
    assert len({record.partition for record in records}) == 1


async def test_the_same_patient_number_of_another_sender_is_another_patient(intake: Intake, log: WatchedLog) -> None:
    await accept(intake, hl7())
    await accept(intake, hl7(sender="RZ2", credential="rz2-credential"))
    assert len({record.key for record in await log.everything()}) == 2


async def test_without_a_patient_the_visit_orders_and_without_both_the_message_stands_alone(
    intake: Intake, log: WatchedLog
) -> None:
    for complaint in ("one", "two"):
        await accept(intake, hl7(patient="", complaint=complaint))
    assert len({record.key for record in await log.everything()}) == 1
    for complaint in ("one", "two"):
        await accept(intake, hl7(patient="", visit="", given=complaint))
    assert len({record.key for record in await log.everything()}) == 3


async def test_the_same_bytes_again_carry_the_same_id(intake: Intake, log: WatchedLog) -> None:
    message = hl7()
    await accept(intake, message)
    await accept(intake, message)
    first, second = await log.everything()
    assert first.headers["ce_id"] == second.headers["ce_id"]
    assert first.value != second.value


async def test_nothing_personal_is_logged_whatever_is_sent(intake: Intake) -> None:
    messages = [
        hl7(),
        hl7(sender="9990000018"),
        hl7(credential="CASEY TESTER"),
        hl7(control_id="CASEY"),
        hl7().replace(b"PID|", b"CASEY|"),
        b"CASEY TESTER 9990000018",
    ]
    with capture_logs() as lines:
        for message in messages:
            await intake.accept_hl7v2(message, Peer())
    assert len(lines) > len(messages) / 2
    assert not any(value.decode() in repr(lines) for value in PERSONAL)


async def test_the_messages_of_a_batch_are_kept_one_by_one_and_answered_in_a_batch(
    intake: Intake, log: WatchedLog
) -> None:
    first, second, third = hl7(control_id="C1"), hl7(control_id="C2", credential="wrong"), hl7("Z99", control_id="C3")
    batch = b"".join((b"FHS|^~\\&|ED\r", b"BHS|^~\\&|ED\r", first, second, third, b"BTS|3\r", b"FTS|1\r"))
    answers = split_batch(await accept(intake, batch))
    assert [(read_ack(answer).code, read_ack(answer).control_id) for answer in answers] == [
        ("AA", "C1"),
        ("AR", "C2"),
        ("AA", "C3"),
    ]
    kept = [RING.open(record.value, about=RECORD_SEAL) for record in await log.everything()]
    assert sorted(kept) == sorted([first, third])


async def test_a_batch_of_which_one_message_is_not_durable_is_not_answered(intake: Intake, log: WatchedLog) -> None:
    log.is_reachable = False
    assert await intake.accept_hl7v2(hl7(control_id="C1") + hl7(control_id="C2"), Peer()) is None
