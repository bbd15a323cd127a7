"""Messages that nobody can handle, one in ten: each costs itself only, and a person is told."""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from sqlalchemy import select

from broker import bootstrap
from broker.storage.tables import HandledPosition, Quarantined, table
from mock_nhs.department import AdtMessage
from tests.conftest import Kafka
from tests.crash.harness import CAUGHT_UP_S, PACE_S, RecordProperty, Scene, open_scene
from tests.crash.nursery import Nursery
from tests.system import SITE, until

GOOD = 150
ONE_IN = 10
TOLD_S = 60.0
DELAY_S = 2.0
"""What good messages may be delayed by bad ones: noise of a machine with few cores, not of a stalled partition."""
POISON = "POISON-1"
DEATHS_MAX = 3
LARGE_BYTES = 300 * 1024
FOREIGN: tuple[tuple[bytes, dict[str, bytes]], ...] = (
    (b"", {}),
    (b"not HL7 at all", {}),
    (b'{"resourceType": "Bundle"', {"content-type": b"application/fhir+json"}),
    (b"MSH|^~\\&|X", {"ce_source": b"RZ1"}),
    (b"\x01\x02k1 sealed under a key that nobody has", {"ce_keyid": b"k9", "ce_source": b"RZ1"}),
    (bytes(range(256)) * 4, {"ce_source": "é\x00".encode()}),
    (b"MSH|^~\\&|EDIS|RZ1|||20260101||ADT^A04|F7|P|2.4\rPID|1||\x00\x00^^^|\r", {}),
    (b"MSH|^~\\&|EDIS|RZ1|||20260101||ADT^A04|F8|P|2.4\rPID|" + b"~" * LARGE_BYTES, {}),
)
"""What another producer may put on the topic."""


@dataclass
class Sent:
    """What the department sent: messages that can be handled, and those that cannot."""

    good: list[AdtMessage]
    bad: list[AdtMessage]


def spoil(message: AdtMessage, how: int) -> AdtMessage:
    """The message made unfit; an oracle must not expect an alert of it."""
    header, _, rest = message.body.partition(b"\r")
    bodies = (
        header + b"\r",
        header + b"\rPID|" + b"|" * 5_000 + b"\r",
        header + b"\r" + rest.replace(b"PID|", b"PXD|"),
        header.replace(b"|2.4|", b"|9.9|") + b"\rPID|1||^^^NHS^NH||\xff\xfe^\x80||notadate\r",
    )
    return replace(message, body=bodies[how % len(bodies)], unreadable=True)


async def send(scene: Scene, *, bad: bool) -> Sent:
    """A stretch of the day; ``bad``: with one unfit message for every ten good ones."""
    sent = Sent([], [])
    for number in range(GOOD):
        sent.good += await scene.offer(1, pace_s=PACE_S)
        if bad and number % ONE_IN == 0:
            message = spoil(scene.system.department.next_message(), number // ONE_IN)
            await scene.system.ed.offer(message)
            sent.bad.append(message)
    assert await scene.system.ed.settle(timeout_s=CAUGHT_UP_S)
    return sent


async def put_on_log(scene: Scene) -> None:
    """Append as another producer would, past the door."""
    log = bootstrap.open_log(scene.settings)
    try:
        for value, headers in FOREIGN:
            await log.append(scene.system.topic, key=None, value=value, headers=headers)
    finally:
        await log.close()


async def waits(scene: Scene, sent: Sequence[AdtMessage]) -> list[float]:
    """For each message the seconds from when it was offered to when the broker handled it."""
    keyring = bootstrap.load_keyring(scene.settings)
    columns = table(HandledPosition).c
    async with scene.database.reading() as connection:
        rows = await connection.execute(select(columns.marker, columns.handled_at))
        handled_at = {bytes(row.marker): row.handled_at for row in rows}
    offered_at = {line["control_id"]: datetime.fromisoformat(line["at"]) for line in scene.department("offered")}
    return [
        (
            handled_at[keyring.marker(SITE, message.control_id, message.body)] - offered_at[message.control_id]
        ).total_seconds()
        for message in sent
    ]


async def quarantined(scene: Scene) -> Counter[str]:
    """Reasons of what is kept for a person."""
    columns = table(Quarantined).c
    async with scene.database.reading() as connection:
        return Counter(row.reason for row in await connection.execute(select(columns.reason)))


async def list_for_operators(scene: Scene) -> list[dict[str, str]]:
    """What ``cpis-broker quarantine list`` shows."""
    child = scene.run("quarantine", "list", "--json")
    assert await child.wait(30) == 0, child.output.read_text()
    shown: list[dict[str, str]] = json.loads(child.output.read_text())
    return shown


def large(message: AdtMessage) -> AdtMessage:
    """The message with a note of 300 KiB."""
    return replace(message, body=message.body + b"NTE|1||" + b"x" * LARGE_BYTES + b"\r")


def with_null_in_name(message: AdtMessage) -> AdtMessage:
    """The message with NUL in the patient's family name."""
    family = message.person.family_name.encode()
    assert family in message.body
    return replace(message, body=message.body.replace(family, family[:1] + b"\x00" + family[1:]))


async def send_odd_ones(scene: Scene) -> None:
    """Two listed children whose messages are odd and can be understood: their authorities must hear of both."""
    listed = [person for person in scene.system.town.people if scene.system.town.authorities_listing(person.nhs_number)]
    for person, bend in zip(listed, (large, with_null_in_name), strict=False):
        await scene.system.ed.offer(bend(scene.system.department.register(person)))


async def bad_ones_cost_only_themselves(scene: Scene, record_property: RecordProperty) -> None:
    """The body of the tests below."""
    before = await waits_when_handled(scene, await send(scene, bad=False))
    sending = asyncio.create_task(send(scene, bad=True))
    await put_on_log(scene)
    await send_odd_ones(scene)
    sent = await sending
    after = await waits_when_handled(scene, sent, extra_appends=len(FOREIGN))
    told = await waits(scene, sent.bad)
    record_property("wait_s", [round(statistics.median(each), 3) for each in (before, after, told)])

    kept = await quarantined(scene)
    assert kept.total() == len(sent.bad) + len(FOREIGN)
    assert max(told) < TOLD_S
    assert sum(event["event"] == "quarantined" for event in scene.system.log_events("attendances")) == kept.total()
    assert Counter(item["reason"] for item in await list_for_operators(scene)) == kept
    # The slowest one says more of the machine than of the product: the half must not wait for the bad ones.
    assert statistics.median(after) <= statistics.median(before) + DELAY_S
    assert max(after) < TOLD_S
    topic, alerts = await scene.system.count()
    assert (topic.waiting, topic.balances, alerts.balances) == (0, True, True)


async def waits_when_handled(scene: Scene, sent: Sent, *, extra_appends: int = 0) -> list[float]:
    """Wait until the books balance; then how long the good messages waited."""
    await scene.catch_up(extra_appends=extra_appends)
    return await waits(scene, sent.good)


async def test_one_in_ten_is_unfit_and_the_others_go_on(
    tmp_path: Path, nursery: Nursery, record_property: RecordProperty
) -> None:
    async with open_scene(tmp_path, nursery) as scene:
        await bad_ones_cost_only_themselves(scene, record_property)


async def test_one_in_ten_is_unfit_on_kafka_and_postgresql(
    kafka_server: Kafka, postgres_url: str, tmp_path: Path, nursery: Nursery, record_property: RecordProperty
) -> None:
    servers = kafka_server.bootstrap_servers
    async with open_scene(tmp_path, nursery, kafka=servers, database_url=postgres_url) as scene:
        await bad_ones_cost_only_themselves(scene, record_property)


async def test_a_message_that_ends_the_process_is_kept_at_the_third_attempt(tmp_path: Path, nursery: Nursery) -> None:
    async with open_scene(tmp_path, nursery, parts=("intake", "dispatch", "jobs")) as scene:
        keeping = asyncio.create_task(keep_running(scene))
        await scene.offer(20)
        await scene.system.ed.offer(poisonous(scene))
        await scene.offer(20)
        await until(lambda: is_quarantined(scene, 1), limit_s=TOLD_S, what="the poison in quarantine")
        keeping.cancel()
        await scene.catch_up()
        assert 1 < scene.kills <= DEATHS_MAX
        assert [item["reason"] for item in await list_for_operators(scene)] == ["ended_the_process_repeatedly"]


async def test_sent_twice_it_ends_the_process_again_and_is_kept_once(tmp_path: Path, nursery: Nursery) -> None:
    async with open_scene(tmp_path, nursery, parts=("intake", "dispatch", "jobs")) as scene:
        keeping = asyncio.create_task(keep_running(scene))
        scene.system.faults.arm_times("ed.send.twice", 1)
        await scene.system.ed.offer(poisonous(scene))
        await scene.offer(20)
        books = await scene.catch_up()
        keeping.cancel()
        assert books.log_records == 22
        assert 1 < scene.kills <= DEATHS_MAX * 2
        assert await quarantined(scene) == {"ended_the_process_repeatedly": 1}
        assert books.reasons == {"repeated": 1}


def poisonous(scene: Scene) -> AdtMessage:
    """A message about somebody who is on no list, which the consumer will die of."""
    town = scene.system.town
    unlisted = next(person for person in town.people if not town.authorities_listing(person.nhs_number))
    message = scene.system.department.register(unlisted)
    body = message.body.replace(message.control_id.encode(), POISON.encode())
    return replace(message, control_id=POISON, body=body, unreadable=True)


async def is_quarantined(scene: Scene, count: int) -> bool:
    return (await quarantined(scene)).total() == count


async def keep_running(scene: Scene) -> None:
    """As a supervisor does: start the consumer whenever it has ended. Reading the poison always ends it."""
    while True:
        child = scene.start("attendances", f"poison:{POISON}")
        assert await child.wait(CAUGHT_UP_S * 2) == -signal.SIGKILL, scene.system.last_words()
        scene.kills += 1
