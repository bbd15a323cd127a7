"""A person's way back for messages: handled again when somebody asked, once per request; nobody is alerted twice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import delete, insert, select, update

from adapters.errors import NotDurable
from adapters.hl7v2 import read_attendance
from broker.consumers.attendance import AttendanceConsumer
from broker.consumers.loop import Batch
from broker.domain.course import VisitState
from broker.domain.decision import Known
from broker.envelope import (
    HL7V2,
    KEY_ID_HEADER,
    REPLAY_HEADER,
    REPLAY_OF_HEADER,
    enclose,
    mark_replay,
    read_place,
)
from broker.keyring import Keyring
from broker.replay import (
    ABSENT,
    ASKED,
    LOCKED,
    SETTLED,
    Bound,
    RangeAsked,
    Replayer,
    ReplayOptions,
    ReplayRefused,
    parse_bound,
)
from broker.storage import audit, handled, ledger, quarantine, tables, visits
from broker.storage.handled import Place
from broker.storage.quarantine import StoredQuarantined
from broker.storage.tables import ItemState, table
from broker.topics import ATTENDANCES as TOPIC
from broker.topics import ATTENDANCES_GROUP as GROUP
from schemas.alert import ReplyOutcome
from schemas.attendance import Attendance
from schemas.record import LogRecord, Partition
from schemas.record import PositionOutcome as Outcome
from tests.fakes import MemoryLog
from tests.world import CASEY, FIELD_KEYS, INDEX_KEY, World, hl7

BY = "Olive Operator (cli:olive)"
ALL = RangeAsked(since=Bound(offset=0))
PARTITION = Partition(TOPIC, 0)
FUTURE_KEYS = {"t2": bytes(range(64, 96))}


@dataclass
class Line:
    """The log, the consumer behind it, and the desk of whoever asks for replays."""

    world: World
    log: MemoryLog
    consumer: AttendanceConsumer
    keyring: Keyring
    reached: int = 0
    options: ReplayOptions = field(default_factory=ReplayOptions)

    @property
    def desk(self) -> Replayer:
        """Where replays are asked for."""
        world = self.world
        return Replayer(
            world.database, self.log, self.keyring, world.clock, topic=TOPIC, group=GROUP, options=self.options
        )

    async def send(self, *messages: bytes, keyring: Keyring | None = None) -> None:
        """Put messages on the log as intake does."""
        for message in messages:
            envelope = enclose(
                keyring or self.keyring,
                message,
                sender="RZ1",
                control_id="",
                said=None,
                content_type=HL7V2,
                at=self.world.clock.now(),
            )
            await self.log.append(TOPIC, key=envelope.key, value=envelope.value, headers=envelope.headers)

    async def drain(self) -> list[Outcome]:
        """Handle what waits as one batch; what became of each."""
        records = self.log.records_from(PARTITION, self.reached)
        if not records:
            return []
        [extent] = (await self.log.extents(TOPIC)).values()
        if self.reached == 0:
            async with self.world.database.writing() as connection:
                place = Place(log_id=extent.log_id, first_offset=0, next_offset=0, stopped_cleanly=True)
                known = (await handled.load_places(connection, GROUP, [PARTITION])).get(PARTITION)
                await handled.take_partition(
                    connection, GROUP, PARTITION, place, known=known, now=self.world.clock.now()
                )
        before, self.reached = self.reached, extent.end
        batch = Batch(group=GROUP, partition=PARTITION, log_id=extent.log_id, records=records, expected=before)
        await self.consumer.handle(batch)
        return await self.world.outcomes(before)

    def trust(self, keys: Mapping[str, bytes]) -> None:
        """Give consumer and desk other keys, as a restart with another setting does."""
        world = self.world
        self.keyring = Keyring(keys, INDEX_KEY)
        self.consumer = AttendanceConsumer(world.database, self.log, self.keyring, world.clock, world.rules)

    async def items(self) -> list[StoredQuarantined]:
        """Everything that is or was in quarantine."""
        async with self.world.database.reading() as connection:
            return await quarantine.list_all(connection, rows_max=100)

    async def told(self) -> tuple[int, int, int, int]:
        """Alerts, replies, reviews and deliveries there ever were."""
        world = self.world
        counts = (len(await world.alerts()), len(await world.replies()), len(await world.reviews()))
        return (*counts, await world.delivery_count())

    async def balances(self) -> bool:
        """Both laws."""
        async with self.world.database.reading() as connection:
            topic = await ledger.count_topic(connection, GROUP, TOPIC, await self.log.extents(TOPIC))
            return topic.balances and (await ledger.count_alerts(connection)).balances

    async def rows(self, model: type[Any]) -> Sequence[Any]:
        """All of a table."""
        async with self.world.database.reading() as connection:
            return (await connection.execute(select(table(model)))).all()

    async def acts(self, *actions: str) -> list[tuple[str, str, str]]:
        """(actor, action, subject) of what was audited; the chains are whole."""
        async with self.world.database.reading() as connection:
            for owner in await audit.list_chains(connection):
                assert await audit.verify_chain(connection, owner) is None
        rows = sorted(await self.rows(tables.AuditRow), key=lambda row: (row.owner, row.sequence))
        return [(row.actor, row.action, row.subject) for row in rows if row.action in actions]


@pytest.fixture
async def line(world: World) -> AsyncIterator[Line]:
    """A log of one partition; Casey is listed."""
    await world.list_children(CASEY)
    log = MemoryLog(partitions=1)
    log.create_topic(TOPIC, 1)
    yield Line(
        world, log, AttendanceConsumer(world.database, log, world.keyring, world.clock, world.rules), world.keyring
    )
    await log.close()


async def without_authority(line: Line) -> Any:
    """Take the authority that lists Casey out of the directory: nothing about her can be decided then."""
    authorities = table(tables.AuthorityRow)
    async with line.world.database.writing() as connection:
        row = (await connection.execute(select(authorities).where(authorities.c.code == "706"))).one()
        await connection.execute(delete(authorities).where(authorities.c.code == "706"))
    line.world.clock.advance(timedelta(seconds=5))  # the consumer reads the directory anew
    return row._mapping


async def put_back(line: Line, authority: Any) -> None:
    async with line.world.database.writing() as connection:
        await connection.execute(insert(table(tables.AuthorityRow)).values(dict(authority)))
    line.world.clock.advance(timedelta(seconds=5))


# One quarantined message


async def test_a_message_whose_key_was_missing_alerts_once_when_it_is_there_again(line: Line) -> None:
    await line.send(hl7(), keyring=Keyring(FUTURE_KEYS, INDEX_KEY))
    assert await line.drain() == [Outcome.QUARANTINED]
    [item] = await line.items()
    assert (item.reason, item.sender) == ("sealed_under_an_unknown_key", "RZ1")
    assert (await line.desk.replay_item(item.id, by=BY, reason="")).result == LOCKED
    assert (await line.rows(tables.Replay), await line.drain()) == ([], [])

    line.trust(FIELD_KEYS | FUTURE_KEYS)
    assert (await line.desk.replay_item(item.id, by=BY, reason="the key is back")).result == ASKED
    assert await line.drain() == [Outcome.ALERTED]

    [alert] = await line.world.alerts()
    assert alert.alert.late
    [settled] = await line.items()
    assert (settled.state, settled.decision, settled.decided_by) == (ItemState.DONE, "replayed", BY)
    assert (settled.attempts, settled.decided_at) == (1, line.world.clock.now())
    first, second = sorted(await line.rows(tables.HandledPosition), key=lambda row: row.position)
    assert first.visit_id == second.visit_id is not None  # what it came to is known where it was kept
    before = await line.told()
    assert (await line.desk.replay_item(item.id, by=BY, reason="")).result == SETTLED
    await line.desk.replay_range(ALL, by=BY, reason="")
    assert await line.drain() == [Outcome.UPDATED]
    assert await line.told() == before
    assert await line.balances()
    assert await line.acts("quarantine.replay_asked", "quarantine.replayed") == [
        (BY, "quarantine.replay_asked", item.id),
        ("broker", "quarantine.replayed", item.id),
    ]


async def test_a_message_that_cannot_be_handled_again_stays_one_open_item(line: Line) -> None:
    authority = await without_authority(line)
    await line.send(hl7())
    assert await line.drain() == [Outcome.QUARANTINED]
    [item] = await line.items()
    assert item.reason == "could_not_be_decided"

    for attempt in (1, 2):
        await line.desk.replay_item(item.id, by=BY, reason="")
        assert await line.drain() == [Outcome.QUARANTINED]
        [again] = await line.items()
        assert (again.id, again.state, again.attempts) == (item.id, ItemState.OPEN, attempt)
        assert (again.due_by, again.kept_at) == (item.due_by, item.kept_at)
    await put_back(line, authority)
    await line.desk.replay_item(item.id, by=BY, reason="")

    assert await line.drain() == [Outcome.ALERTED]
    assert [each.state for each in await line.items()] == [ItemState.DONE]
    assert len(await line.world.alerts()) == 1
    assert await line.balances()
    assert [action for _, action, _ in await line.acts("quarantine.replay_failed", "quarantine.replayed")] == [
        *["quarantine.replay_failed"] * 2,
        "quarantine.replayed",
    ]


async def test_asked_for_twice_it_is_handled_once(line: Line) -> None:
    authority = await without_authority(line)
    await line.send(hl7())
    await line.drain()
    [item] = await line.items()
    await put_back(line, authority)

    for name in (BY, "Ash Auditor (cli:ash)"):
        assert (await line.desk.replay_item(item.id, by=name, reason="")).result == ASKED

    assert await line.drain() == [Outcome.ALERTED, Outcome.IGNORED]
    [settled] = await line.items()
    assert (settled.attempts, settled.decided_by) == (1, BY)
    assert [actor for actor, *_ in await line.acts("quarantine.replay_asked")] == [BY, "Ash Auditor (cli:ash)"]
    assert len(await line.rows(tables.Replay)) == 1
    assert await line.balances()


async def test_a_crash_between_asking_and_appending_is_mended_by_asking_again(line: Line) -> None:
    authority = await without_authority(line)
    await line.send(hl7())
    await line.drain()
    [item] = await line.items()
    await put_back(line, authority)
    line.log.is_reachable = False
    with pytest.raises(NotDurable):
        await line.desk.replay_item(item.id, by=BY, reason="")
    [asked] = await line.rows(tables.Replay)
    assert (asked.state, asked.requested_by) == ("open", BY)

    line.log.is_reachable = True
    assert (await line.desk.replay_item(item.id, by=BY, reason="")).result == ASKED
    assert await line.drain() == [Outcome.ALERTED]
    [done] = await line.rows(tables.Replay)
    assert (done.id, done.state) == (asked.id, "done")


async def test_sent_again_by_the_department_beside_or_after_its_replay_it_counts_as_repeated(line: Line) -> None:
    message = hl7()
    await line.send(message, keyring=Keyring(FUTURE_KEYS, INDEX_KEY))
    await line.drain()
    [item] = await line.items()
    line.trust(FIELD_KEYS | FUTURE_KEYS)
    await line.desk.replay_item(item.id, by=BY, reason="")
    await line.send(message)
    assert await line.drain() == [Outcome.ALERTED, Outcome.IGNORED]
    await line.send(message)
    assert await line.drain() == [Outcome.IGNORED]

    other = hl7(visit="V2")
    await line.send(other, keyring=Keyring({"t3": bytes(range(96, 128))}, INDEX_KEY))
    await line.drain()
    [_, item] = await line.items()
    line.trust(FIELD_KEYS | {"t3": bytes(range(96, 128))})
    await line.desk.replay_item(item.id, by=BY, reason="")
    assert await line.drain() == [Outcome.ALERTED]
    await line.send(other)
    assert await line.drain() == [Outcome.IGNORED]


def test_what_was_read_before_stays_when_the_new_reading_cannot_be_decided() -> None:
    said = read_attendance(hl7())
    read_anew = msgspec.structs.replace(said, nhs_number=None)
    at = datetime(2026, 2, 14, 3, 12, tzinfo=UTC)
    thread = visits.Thread(visit_id="v", sender="RZ1", opened_at=at, messages=[(b"m", said)])
    before = thread.snapshot()
    thread.add(b"m", read_anew)
    assert thread.facts().nhs_number is None
    assert (thread.messages, thread.added) == ([(b"m", read_anew)], [])
    thread.restore(before)
    assert (thread.messages, thread.replaced, thread.facts().nhs_number) == ([(b"m", said)], {}, said.nhs_number)


def test_who_was_only_about_to_be_told_is_told_of_the_next_message() -> None:
    """What the decision put down of alerts, doubts and answers goes with a message that cannot be decided."""
    at = datetime(2026, 2, 14, 3, 12, tzinfo=UTC)
    standing = visits.Standing(alert_id="a")
    thread = visits.Thread(
        visit_id="v", sender="RZ1", opened_at=at, messages=[], alerted={"706": standing}, replied=ReplyOutcome.MATCH
    )
    before = thread.snapshot()
    standing.notices, standing.told = 1, VisitState.ADMITTED
    thread.take_back("706")
    thread.alerted["707"] = visits.Standing(alert_id="b")
    thread.reviewed.add("entry")
    thread.restore(before)
    assert thread.known(is_new=False) == Known(is_new=False, alerted=frozenset({"706"}), replied=ReplyOutcome.MATCH)
    assert thread.withdrawn == {}
    assert (thread.alerted["706"].notices, thread.alerted["706"].told) == (0, VisitState.HERE)


async def test_an_id_that_nobody_knows_is_said_to_be_none(line: Line) -> None:
    assert (await line.desk.replay_item("0" * 32, by=BY, reason="")).result == ABSENT
    assert await line.acts("quarantine.replay_asked") == []


async def test_what_is_replayed_is_sealed_and_byte_for_byte_what_was_received(line: Line) -> None:
    message = b"MSH|^~\\&|EDIS|RZ1\r\xff\x00no PID"
    await line.log.append(TOPIC, key=None, value=message, headers={})
    assert await line.drain() == [Outcome.QUARANTINED]
    [item] = await line.items()
    await line.desk.replay_item(item.id, by=BY, reason="")
    [_, again] = line.log.records_from(PARTITION, 0)
    assert message not in again.value
    assert line.keyring.open(again.value, about="log-record") == message
    assert again.headers[KEY_ID_HEADER] == b"t1"


# What is no replay


async def forge(line: Line, message: bytes, request_id: str, place: str) -> None:
    headers = {REPLAY_HEADER: request_id.encode(), REPLAY_OF_HEADER: place.encode()}
    await line.log.append(TOPIC, key=None, value=message, headers=headers)


async def place_of(line: Line, offset: int) -> str:
    [extent] = (await line.log.extents(TOPIC)).values()
    return f"0/{offset}/{extent.log_id}"


async def test_a_replay_that_nobody_asked_for_is_a_message_like_any_other(line: Line) -> None:
    message, place = hl7(), await place_of(line, 0)
    await line.send(message)
    await line.drain()
    await line.desk.replay_range(ALL, by=BY, reason="")
    await line.drain()
    [real] = await line.rows(tables.Replay)
    for request_id, at in (("0" * 32, place), ("\xff", place), (real.id, place), (real.id, "9/9/log"), (real.id, "x")):
        await forge(line, message, request_id, at)
    await line.log.append(TOPIC, key=None, value=message, headers={REPLAY_HEADER: real.id.encode()})
    assert await line.drain() == [Outcome.IGNORED] * 6
    assert await line.balances()


async def test_another_message_cannot_pass_for_a_quarantined_one(line: Line) -> None:
    authority = await without_authority(line)
    await line.send(hl7(visit="V1"))
    await line.drain()
    [item] = await line.items()
    await line.desk.replay_item(item.id, by=BY, reason="")
    [asked] = await line.rows(tables.Replay)
    await put_back(line, authority)
    line.log._topics[TOPIC].records[0].pop()  # the replay itself is lost
    await forge(line, hl7(visit="V2", nhs_number="9990000026"), asked.id, await place_of(line, 0))

    assert await line.drain() == [Outcome.NO_RECORD]
    assert [each.state for each in await line.items()] == [ItemState.OPEN]
    [position] = [row for row in await line.rows(tables.HandledPosition) if row.position == 1]
    assert position.replay_id is None


# A range of the log


async def busy(line: Line) -> None:
    """Six messages of three visits: alerted, updated, no record, repeated, quarantined, ignored."""
    first = hl7(visit="V1")
    messages = [first, hl7("A08", visit="V1"), hl7(visit="V2", nhs_number="9990000026", patient="K2"), first]
    await line.send(*messages, b"not HL7", hl7("ZZ1"))
    assert await line.drain() == [
        *(Outcome.ALERTED, Outcome.UPDATED, Outcome.NO_RECORD),
        *(Outcome.IGNORED, Outcome.QUARANTINED, Outcome.IGNORED),
    ]


async def test_a_replay_of_everything_tells_nobody_anything(line: Line) -> None:
    await busy(line)
    before, items = await line.told(), await line.items()
    for _ in range(2):
        report = await line.desk.replay_range(ALL, by=BY, reason="a new reader")
        assert (report.appended, report.not_handled_yet, report.continued) == (6, 0, False)
        assert await line.drain() == [
            *(Outcome.UPDATED, Outcome.UPDATED, Outcome.UPDATED),
            *(Outcome.IGNORED, Outcome.QUARANTINED, Outcome.IGNORED),
        ]
        assert await line.told() == before
        assert await line.balances()
    assert report.were_replays == 6
    [item] = await line.items()
    assert (item.id, item.state, item.attempts) == (items[0].id, ItemState.OPEN, 2)
    assert len(await line.rows(tables.VisitMessage)) == 3
    assert [(actor, action) for actor, action, _ in await line.acts("replay.asked", "replay.continued")] == [
        (BY, "replay.asked"),
        (BY, "replay.asked"),
    ]
    asked = {row.id for row in await line.rows(tables.Replay)}
    replayed_for = {row.position: row.replay_id for row in await line.rows(tables.HandledPosition)}
    assert {replayed_for[offset] for offset in range(6)} == {None}
    assert {replayed_for[offset] for offset in range(6, 18)} == asked
    assert len(asked) == 2


def test_a_question_has_one_wording() -> None:
    assert ALL.words == "from 0 to end"
    assert RangeAsked(since=Bound(offset=3), until=Bound(offset=9), partition=2).words == "from 3 to 9 of partition 2"
    summer, winter = parse_bound("2026-07-01T04:00+01:00"), parse_bound("2026-07-01T03:00Z")
    assert RangeAsked(since=summer).words == RangeAsked(since=winter).words


async def test_what_an_older_reader_missed_is_found_and_alerted_once(line: Line) -> None:
    message = hl7()
    await line.send(message)
    await line.drain()
    await unread_number(line)
    before = await line.told()
    assert before[0] == 0

    for outcome in (Outcome.ALERTED, Outcome.UPDATED):
        await line.desk.replay_range(ALL, by=BY, reason="")
        assert await line.drain() == [outcome]
    [alert] = await line.world.alerts()
    assert alert.alert.late
    [said] = await heard(line)
    assert said.nhs_number == "9990000018"
    [visit] = await line.rows(tables.Visit)
    assert visit.nhs_index is not None


async def unread_number(line: Line) -> None:
    """Leave the database as a reader that does not find the NHS number would have left it."""
    messages, found = table(tables.VisitMessage), table(tables.Visit)
    async with line.world.database.writing() as connection:
        row = (await connection.execute(select(messages))).one()
        said = msgspec.structs.replace(visits.open_message(line.keyring, row), nhs_number=None)
        about = f"visit/{row.visit_id}/{bytes(row.marker).hex()}"
        sealed = line.keyring.seal(msgspec.json.encode(said), about=about)
        await connection.execute(update(messages).values(sealed=sealed))
        await connection.execute(update(found).values(nhs_index=None))
        for model in (tables.Delivery, tables.AlertEntry, tables.Alert):
            await connection.execute(delete(table(model)))


async def heard(line: Line) -> list[Attendance]:
    [visit] = await line.rows(tables.Visit)
    async with line.world.database.reading() as connection:
        return [said for _, said in await visits.load_messages(connection, line.keyring, visit.id)]


async def test_nothing_new_was_heard_of_a_visit_that_is_read_again(line: Line) -> None:
    await line.send(hl7())
    await line.drain()
    [before] = await line.rows(tables.Visit)
    [message] = await line.rows(tables.VisitMessage)
    line.world.clock.advance(timedelta(hours=5))
    await line.desk.replay_range(ALL, by=BY, reason="")
    await line.drain()
    [after] = await line.rows(tables.Visit)
    assert (after.heard_at, after.opened_at) == (before.heard_at, before.opened_at)
    [again] = await line.rows(tables.VisitMessage)
    assert again.received_at == message.received_at


async def test_a_message_stays_in_the_visit_that_it_was_of_however_it_is_read_now(line: Line) -> None:
    """A reader that finds another visit number must not alert about the same arrival a second time."""
    await line.send(hl7())
    await line.drain()
    await move_to_another_visit(line, "f" * 32)
    before = await line.told()

    await line.desk.replay_range(ALL, by=BY, reason="")
    assert await line.drain() == [Outcome.UPDATED]
    assert await line.told() == before
    assert {row.visit_id for row in await line.rows(tables.VisitMessage)} == {"f" * 32}


async def move_to_another_visit(line: Line, visit_id: str) -> None:
    messages, found = table(tables.VisitMessage), table(tables.Visit)
    async with line.world.database.writing() as connection:
        row = (await connection.execute(select(messages))).one()
        sealed = line.keyring.seal(
            msgspec.json.encode(visits.open_message(line.keyring, row)),
            about=f"visit/{visit_id}/{bytes(row.marker).hex()}",
        )
        visit = dict((await connection.execute(select(found))).one()._mapping)
        await connection.execute(insert(found).values(visit | {"id": visit_id}))
        await connection.execute(update(messages).values(visit_id=visit_id, sealed=sealed))
        for model in (tables.Alert, tables.Reply, tables.HandledPosition):
            await connection.execute(update(table(model)).values(visit_id=visit_id))
        await connection.execute(delete(found).where(found.c.id != visit_id))


async def test_a_quarantined_message_in_the_range_is_settled_too(line: Line) -> None:
    authority = await without_authority(line)
    await line.send(hl7(), hl7("A08"))
    await line.drain()
    assert [item.state for item in await line.items()] == [ItemState.OPEN] * 2
    await put_back(line, authority)
    await line.desk.replay_range(ALL, by=BY, reason="")
    assert await line.drain() == [Outcome.ALERTED, Outcome.UPDATED]
    assert [(item.state, item.decided_by) for item in await line.items()] == [(ItemState.DONE, BY)] * 2
    # Its visit is known now, also to the next replay.
    await line.desk.replay_range(ALL, by=BY, reason="")
    assert await line.drain() == [Outcome.UPDATED, Outcome.UPDATED]


async def test_what_fails_only_when_it_is_replayed_is_kept_once(line: Line) -> None:
    await line.send(hl7())
    await line.drain()
    authority = await without_authority(line)
    async with line.world.database.writing() as connection:
        for model in (tables.Delivery, tables.AlertEntry, tables.Alert):
            await connection.execute(delete(table(model)))
    for attempt in range(3):
        await line.desk.replay_range(ALL, by=BY, reason="")
        assert await line.drain() == [Outcome.QUARANTINED]
        [item] = await line.items()
        assert (item.state, item.offset, item.attempts) == (ItemState.OPEN, 0, attempt)
    [said] = await heard(line)
    assert said.nhs_number == "9990000018"  # what was read of it before stays
    await put_back(line, authority)
    await line.desk.replay_item(item.id, by=BY, reason="")
    assert await line.drain() == [Outcome.ALERTED]

    # Settled, it can come back.
    await without_authority(line)
    async with line.world.database.writing() as connection:
        for model in (tables.Delivery, tables.AlertEntry, tables.Alert):
            await connection.execute(delete(table(model)))
    await line.desk.replay_range(ALL, by=BY, reason="")
    assert await line.drain() == [Outcome.QUARANTINED]
    [reopened] = await line.items()
    assert (reopened.id, reopened.state, reopened.decision) == (item.id, ItemState.OPEN, None)


async def test_what_waits_to_be_handled_for_the_first_time_is_left_out(line: Line) -> None:
    await busy(line)
    await line.send(hl7(visit="V7"))
    report = await line.desk.replay_range(ALL, by=BY, reason="")
    assert (report.appended, report.not_handled_yet) == (6, 1)
    assert (await line.drain())[0] is Outcome.ALERTED


async def test_a_dry_run_counts_and_changes_nothing(line: Line) -> None:
    await busy(line)
    report = await line.desk.replay_range(ALL, by=BY, reason="", dry_run=True)
    assert (report.appended, report.replay_id) == (6, "")
    assert await line.drain() == []
    assert (await line.rows(tables.Replay), await line.acts("replay.asked")) == ([], [])


async def test_offsets_and_instants_bound_the_range(line: Line) -> None:
    await busy(line)
    records = line.log._topics[TOPIC].records[0]
    for number, record in enumerate(records):
        records[number] = msgspec.structs.replace(record, appended_at=datetime(2026, 2, 14, 3, number, tzinfo=UTC))
    for since, until, expected in (
        ("2", "", 4),
        ("2", "4", 2),
        ("0", "0", 0),
        ("99", "", 0),
        ("2026-02-14T03:02Z", "", 4),
        ("2026-02-14T04:02+01:00", "2026-02-14T03:03Z", 1),
        ("2026-02-15T00:00Z", "", 0),
    ):
        asked = RangeAsked(since=parse_bound(since), until=parse_bound(until) if until else None)
        report = await line.desk.replay_range(asked, by=BY, reason="", dry_run=True)
        assert report.appended == expected, (since, until)


@pytest.mark.parametrize("text", ["", "x", "-1", "2026-02-14T03:00", "2026-02-30T03:00Z", "9" * 40, "٣"])
def test_a_bound_that_is_none_is_refused_with_advice(text: str) -> None:
    with pytest.raises(ValueError, match="2026-02-14T03:00Z"):
        parse_bound(text)


async def test_a_partition_that_is_not_there_is_refused(line: Line) -> None:
    with pytest.raises(ReplayRefused, match="no such partition"):
        await line.desk.replay_range(RangeAsked(since=Bound(offset=0), partition=7), by=BY, reason="")


class FailingLog(MemoryLog):
    """A log that goes away after so many appends."""

    left = 10**9

    async def append(
        self, topic: str, *, key: bytes | None, value: bytes, headers: Mapping[str, bytes]
    ) -> tuple[Partition, int]:
        """Append, or say that it could not be confirmed."""
        if self.left <= 0:
            raise NotDurable("the log is not there")
        self.left -= 1
        return await super().append(topic, key=key, value=value, headers=headers)


async def test_a_replay_that_was_cut_off_is_continued_to_the_end_it_had(line: Line) -> None:
    line.log = FailingLog(partitions=1)
    line.log.create_topic(TOPIC, 1)
    await line.send(*(hl7(visit=f"V{number}") for number in range(7)))
    await line.drain()
    before = await line.told()
    line.options = ReplayOptions(records_max=2)
    line.log.left = 5
    with pytest.raises(NotDurable):
        await line.desk.replay_range(ALL, by=BY, reason="")
    line.log.left = 10**9
    await line.send(hl7(visit="V99", nhs_number="9990000026", patient="K99"))
    await line.drain()

    report = await line.desk.replay_range(ALL, by="Ash Auditor (cli:ash)", reason="")
    assert (report.continued, report.appended) == (True, 3)
    await line.drain()
    [request] = await line.rows(tables.Replay)
    assert (request.state, request.requested_by) == ("done", BY)
    replayed = [row for row in await line.rows(tables.HandledPosition) if row.replay_id and row.reason != "repeated"]
    assert len(replayed) == 7
    assert (await line.told())[0] == before[0]
    assert await line.balances()
    assert [(actor, action) for actor, action, _ in await line.acts("replay.asked", "replay.continued")] == [
        (BY, "replay.asked"),
        ("Ash Auditor (cli:ash)", "replay.continued"),
    ]


async def test_what_was_cut_off_on_a_topic_that_was_made_again_is_not_continued(line: Line) -> None:
    await busy(line)
    line.options = ReplayOptions(records_max=2, waiting_max=1, stalled_s_max=0.01, poll_s=0.01)
    with pytest.raises(ReplayRefused):
        await line.desk.replay_range(ALL, by=BY, reason="")
    line.log.delete_topic(TOPIC)
    line.log.create_topic(TOPIC, 1)
    line.options, line.reached = ReplayOptions(), 0
    await line.send(hl7(visit="V8"))
    await line.drain()
    report = await line.desk.replay_range(ALL, by=BY, reason="")
    assert (report.continued, report.appended) == (False, 1)
    assert [row.state for row in await line.rows(tables.Replay)] == ["done", "done"]


async def test_a_replay_waits_for_the_consumer_and_gives_up_when_there_is_none(line: Line) -> None:
    await busy(line)
    line.options = ReplayOptions(records_max=2, waiting_max=3, stalled_s_max=0.05, poll_s=0.01)
    with pytest.raises(ReplayRefused, match="4 messages wait"):
        await line.desk.replay_range(ALL, by=BY, reason="")
    await line.drain()
    line.options = ReplayOptions(records_max=2)
    report = await line.desk.replay_range(ALL, by=BY, reason="")
    assert (report.continued, report.appended) == (True, 2)
    await line.drain()
    assert await line.balances()


async def test_foreign_bytes_are_sealed_when_they_are_appended_again(line: Line) -> None:
    message = hl7()
    await line.log.append(TOPIC, key=b"theirs", value=message, headers={"content-type": b"text/plain"})
    await line.drain()
    await line.desk.replay_range(ALL, by=BY, reason="")
    [_, again] = line.log.records_from(PARTITION, 0)
    assert (again.key, again.headers["content-type"]) == (b"theirs", b"text/plain")
    assert message not in again.value
    assert await line.drain() == [Outcome.UPDATED]


async def test_a_log_read_again_after_a_gap_is_replayed_as_it_was_handled_first(line: Line) -> None:
    await busy(line)
    before = await line.told()
    [extent] = (await line.log.extents(TOPIC)).values()
    again = f"{extent.log_id}+1"
    async with line.world.database.writing() as connection:
        place = Place(log_id=again, first_offset=0, next_offset=0, stopped_cleanly=True)
        known = (await handled.load_places(connection, GROUP, [PARTITION]))[PARTITION]
        await handled.take_partition(connection, GROUP, PARTITION, place, known=known, now=line.world.clock.now())
    records: list[LogRecord] = line.log.records_from(PARTITION, 0)
    batch = Batch(group=GROUP, partition=PARTITION, log_id=again, records=records, expected=0)
    await line.consumer.handle(batch)
    report = await line.desk.replay_range(ALL, by=BY, reason="")
    assert report.appended == 6
    replays = line.log.records_from(PARTITION, 6)
    await line.consumer.handle(Batch(group=GROUP, partition=PARTITION, log_id=again, records=replays, expected=6))
    outcomes = [row.outcome for row in await line.rows(tables.HandledPosition) if row.position >= 6]
    assert sorted(outcomes) == ["ignored", "ignored", "quarantined", "updated", "updated", "updated"]
    assert await line.told() == before
    assert [item.attempts for item in await line.items()] == [1]


# Headers


@pytest.mark.parametrize("header", [b"", b"1/2", b"1/2/", b"a/2/log", b"-1/2/log", b"1/2/l g", b"1" * 40 + b"/2/log"])
def test_a_place_that_is_none_is_not_read(header: bytes) -> None:
    assert read_place(header) is None


def test_a_place_comes_back_as_it_was_written() -> None:
    place = (3, 2**40, "a/b+2")
    headers = mark_replay({"ce_id": b"1"}, "r1", place)
    assert read_place(headers[REPLAY_OF_HEADER]) == place
    assert (headers[REPLAY_HEADER], headers["ce_id"]) == (b"r1", b"1")
