"""The dispatcher on both databases, with a channel that keeps in memory what it is given and ends as it is told."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import event, select, text
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from broker import cli
from broker.clock import SystemClock
from broker.dispatcher import Dispatcher, DispatchOptions
from broker.keyring import Keyring
from broker.storage import directory, outbox, wakeups
from broker.storage.database import Database
from broker.storage.directory import RecipientSecrets
from broker.storage.outbox import NewDelivery
from broker.storage.retention import DROPPED
from broker.storage.tables import AuditRow, Delivery, Lane, Reply, table
from broker.storage.wakeups import listen_for_deliveries
from schemas.delivery import ChannelName, Outcome, OutcomeClass, Parcel
from schemas.directory import Authority
from tests.fakes import ManualClock
from tests.world import CASEY, FIELD_KEYS, INDEX_KEY, World, hl7, open_world

NORTHFOLD, EASTMERE, FENWICK, OTTERY = "authority:706", "authority:707", "organisation:RZ1", "organisation:RZ2"
TOPICS = {"authority": "alerts", "organisation": "replies"}
LEASE = timedelta(minutes=10)
SENT = Outcome(outcome=OutcomeClass.SENT, code="ok")
BUSY = Outcome(outcome=OutcomeClass.TRANSIENT, code="http_503")
REFUSED = Outcome(outcome=OutcomeClass.PERMANENT, code="http_422")
UNKNOWN = Outcome(outcome=OutcomeClass.AMBIGUOUS, code="cut_off")

_deliveries, _lanes, _replies, _audit = table(Delivery), table(Lane), table(Reply), table(AuditRow)


class PostBox:
    """A way out over memory. ``ends`` holds the outcomes to come by recipient; afterwards everything is sent."""

    def __init__(self, clock: ManualClock) -> None:
        self.parcels: list[Parcel] = []
        self.tried_at: list[datetime] = []
        self.ends: dict[str, Iterator[Outcome]] = defaultdict(lambda: iter(()))
        self.most_at_once: dict[str, int] = defaultdict(int)
        self.during: Callable[[Parcel], Awaitable[None]] | None = None
        self._clock = clock
        self._in_hand: dict[str, int] = defaultdict(int)
        self._gates: dict[str, asyncio.Event] = {}
        self._tried = asyncio.Condition()

    async def send(self, parcel: Parcel) -> Outcome:
        """Try once."""
        self._in_hand[parcel.recipient] += 1
        self.most_at_once[parcel.recipient] = max(self.most_at_once[parcel.recipient], self._in_hand[parcel.recipient])
        try:
            async with self._tried:
                self.parcels.append(parcel)
                self.tried_at.append(self._clock.now())
                self._tried.notify_all()
            if self.during is not None:
                await self.during(parcel)
            if parcel.recipient in self._gates:
                await self._gates[parcel.recipient].wait()
            return next(self.ends[parcel.recipient], SENT)
        finally:
            self._in_hand[parcel.recipient] -= 1

    async def close(self) -> None:
        """Nothing to let go of."""

    def keys(self, recipient: str = NORTHFOLD) -> list[str]:
        """The idempotency keys of all attempts to one recipient, in order."""
        return [parcel.idempotency_key for parcel in self.parcels if parcel.recipient == recipient]

    async def tries(self, count: int) -> None:
        """Wait until so many attempts were begun."""
        async with asyncio.timeout(30), self._tried:
            await self._tried.wait_for(lambda: len(self.parcels) >= count)

    @contextmanager
    def holding(self, *recipients: str) -> Iterator[None]:
        """Let attempts to these recipients hang until the block ends."""
        gates = {recipient: asyncio.Event() for recipient in recipients}
        self._gates |= gates
        try:
            yield
        finally:
            for recipient, gate in gates.items():
                self._gates.pop(recipient, None)
                gate.set()


@pytest.fixture
def post(world: World) -> PostBox:
    return PostBox(world.clock)


def make_dispatcher(world: World, post: PostBox, name: str = "one", **options: Any) -> Dispatcher:
    # Real seconds are generous, so that a busy machine does not end an attempt that a test holds.
    defaults: dict[str, Any] = {"name": name, "topics": TOPICS, "poll_s": 0.02, "attempt_timeout_s": 60, "lease": LEASE}
    chosen = DispatchOptions(**(defaults | options))
    channels = dict.fromkeys(ChannelName, post)
    return Dispatcher(world.database, world.keyring, world.clock, channels, chosen)


@asynccontextmanager
async def dispatching(world: World, post: PostBox, name: str = "one", **options: Any) -> AsyncIterator[Dispatcher]:
    dispatcher = make_dispatcher(world, post, name, **options)
    running = asyncio.create_task(dispatcher.run())
    try:
        yield dispatcher
    finally:
        dispatcher.stop()
        async with asyncio.timeout(30):
            await running


async def add(
    world: World,
    *names: str,
    owner: str = NORTHFOLD,
    channel: ChannelName = ChannelName.TOPIC,
    age_s: float = 0,
    alert_id: str | None = None,
    reply_id: str | None = None,
) -> None:
    """Put deliveries of these names in the outbox, one after the other."""
    for name in names:
        delivery = NewDelivery(
            id=name,
            channel=channel,
            owner=owner,
            event_type="uk.cpis-broker.alert.raised.v1",
            content_type="application/json",
            content=f'"{name}"'.encode(),
            alert_id=alert_id,
            reply_id=reply_id,
        )
        async with world.database.writing() as connection:
            now = world.clock.now() - timedelta(seconds=age_s)
            await outbox.add_deliveries(connection, world.keyring, [delivery], now)
        world.clock.advance(timedelta(microseconds=1))


async def command(world: World, *words: str) -> Result:
    """``cpis-broker deliveries``, as a person gives it, in a thread of this process."""
    settings = {"CPIS_ENVIRONMENT": "development", "CPIS_DATABASE_URL": world.database.url, "COLUMNS": "300"}
    ended = await asyncio.to_thread(lambda: CliRunner().invoke(cli.app, ["deliveries", *words], env=settings))
    if words[0] == "resend":  # the command read the real clock
        world.clock.advance(
            max(timedelta(0), SystemClock().now() - world.clock.now())
        )  # a command reads the real clock
    return ended


async def states(world: World) -> dict[str, tuple[str, int, str | None]]:
    """Each delivery's state, attempts and last code."""
    async with world.database.reading() as connection:
        rows = await connection.execute(select(_deliveries).order_by(_deliveries.c.created_at))
        return {row.id: (row.state, row.attempts, row.last_code) for row in rows}


async def lane(world: World, owner: str = NORTHFOLD, channel: ChannelName = ChannelName.TOPIC) -> Any:
    async with world.database.reading() as connection:
        return (await connection.execute(select(_lanes).where(_lanes.c.id == f"{channel.value}:{owner}"))).one()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.01)


async def until_settled(world: World) -> None:
    """Wait until nothing is waiting, and every lane is let go of."""

    async def is_settled() -> bool:
        settled = all(state not in ("waiting", "claimed") for state, _, _ in (await states(world)).values())
        async with world.database.reading() as connection:
            held = await connection.execute(select(_lanes.c.id).where(_lanes.c.leased_until.is_not(None)))
            return settled and held.first() is None

    await until(is_settled)


async def until_backing_off(world: World) -> datetime:
    """Wait until the lane was let go of after a failure; returns when it may be leased again."""

    async def is_waiting() -> bool:
        found = await lane(world)
        return found.leased_by is None and found.leased_until is not None and found.leased_until > world.clock.now()

    await until(is_waiting)
    back_at: datetime = (await lane(world)).leased_until
    return back_at


async def rounds(dispatcher: Dispatcher, count: int = 3) -> None:
    """Let the dispatcher look for work a few times."""
    for _ in range(count):
        before = dispatcher.alive_at

        async def has_looked(before: float = before) -> bool:
            return dispatcher.alive_at > before

        await until(has_looked)


async def test_what_is_due_is_sent_once_in_order_and_complete(world: World, post: PostBox) -> None:
    await add(world, "a1", "a2", "a3")
    await add(world, "r1", "r2", owner=FENWICK)
    async with dispatching(world, post):
        await until_settled(world)
    assert post.keys() == ["a1", "a2", "a3"]
    assert post.keys(FENWICK) == ["r1", "r2"]
    assert set((await states(world)).values()) == {("sent", 1, "ok")}
    parcel = next(parcel for parcel in post.parcels if parcel.idempotency_key == "a1")
    async with world.database.reading() as connection:
        secrets = await directory.load_secrets(connection, world.keyring, NORTHFOLD)
    assert (parcel.address, parcel.secret, parcel.recipient) == ("alerts", secrets.topic, NORTHFOLD)
    assert (parcel.content, parcel.content_type) == (b'"a1"', "application/json")
    assert len(parcel.secret) == 32


async def test_one_delivery_takes_two_transactions_and_each_more_of_its_lane_one(world: World, post: PostBox) -> None:
    """The lease claims it; what settles it lets the lane go. SQLite has one writer: each more is waited for."""
    engine, commits = world.database._writer.sync_engine, list[list[str]]()

    @event.listens_for(engine, "before_cursor_execute")
    def note(connection: Any, _: Any, statement: str, *__: Any) -> None:
        if statement.startswith("UPDATE"):
            connection.info.setdefault("written", []).append(statement.split()[1])

    @event.listens_for(engine, "commit")
    def commit(connection: Any) -> None:
        if written := connection.info.pop("written", []):
            commits.append(written)

    for name in ("a1", "a2"):
        await add(world, name)
        commits.clear()
        async with dispatching(world, post):
            await until_settled(world)
        assert commits == [["lanes", "deliveries"], ["deliveries", "deliveries", "lanes"]]
    await add(world, "a3", "a4")
    commits.clear()
    async with dispatching(world, post):
        await until_settled(world)
    assert commits[1:] == [["deliveries"], ["deliveries", "deliveries", "lanes"]]


async def test_each_channel_is_given_its_own_address_and_secret(world: World, post: PostBox) -> None:
    await add(world, "w1", channel=ChannelName.WEBHOOK)
    await add(world, "h1", owner=FENWICK, channel=ChannelName.HL7V2_REPLY)
    await add(world, "t1", owner=FENWICK)
    async with dispatching(world, post):
        await until_settled(world)
    async with world.database.reading() as connection:
        northfold = await directory.load_secrets(connection, world.keyring, NORTHFOLD)
        fenwick = await directory.load_secrets(connection, world.keyring, FENWICK)
    assert {parcel.idempotency_key: (parcel.address, parcel.secret) for parcel in post.parcels} == {
        "w1": ("http://127.0.0.1:1/alerts/706", northfold.webhook),
        "h1": ("127.0.0.1:2", b""),
        "t1": ("replies", fenwick.topic),
    }
    assert len({northfold.webhook, northfold.topic, fenwick.topic}) == 3


async def test_a_lane_is_never_worked_by_two_dispatchers(world: World, post: PostBox) -> None:
    for owner in (NORTHFOLD, EASTMERE, FENWICK, OTTERY):
        await add(world, *(f"{owner}-{number}" for number in range(8)), owner=owner)
    async with (
        dispatching(world, post, "one", deliveries_max=2, poll_s=0.001),
        dispatching(world, post, "two", deliveries_max=2, poll_s=0.001),
    ):
        await until_settled(world)
    assert set(post.most_at_once.values()) == {1}
    for owner in (NORTHFOLD, EASTMERE, FENWICK, OTTERY):
        assert post.keys(owner) == [f"{owner}-{number}" for number in range(8)]


async def test_a_lease_that_runs_out_is_taken_over_and_the_first_ones_settle_does_not_count(world: World) -> None:
    slow, quick = PostBox(world.clock), PostBox(world.clock)
    slow.ends[NORTHFOLD] = iter([REFUSED])
    await add(world, "a1", "a2")
    with capture_logs() as lines:
        # Whoever sends slowly does not look for work meanwhile: that would be a third dispatcher.
        async with dispatching(world, slow, "slow", poll_s=60):
            with slow.holding(NORTHFOLD):
                await slow.tries(1)
                world.clock.advance(LEASE)
                async with dispatching(world, quick, "quick"):
                    await until_settled(world)
    assert (slow.keys(), quick.keys()) == (["a1"], ["a1", "a2"])
    assert await states(world) == {"a1": ("sent", 1, "ok"), "a2": ("sent", 1, "ok")}
    assert [line["lane"] for line in lines if line["event"] == "lease_lost"] == [f"topic:{NORTHFOLD}"]


async def test_while_the_recipient_is_away_the_whole_lane_waits_twice_as_long_each_time(
    world: World, post: PostBox
) -> None:
    """However many deliveries wait for it: each of them is another one's next attempt."""
    await add(world, "a1", "a2", "a3")
    post.ends[NORTHFOLD] = iter([BUSY] * 6)
    waits = []
    async with dispatching(world, post) as dispatcher:
        for _ in range(6):
            back_at = await until_backing_off(world)
            waits.append((back_at - world.clock.now()).total_seconds())
            tried = len(post.parcels)
            world.clock.move_to(back_at - timedelta(microseconds=1))
            await rounds(dispatcher)
            assert len(post.parcels) == tried
            world.clock.move_to(back_at)
        await until_settled(world)
    assert waits == [1, 2, 4, 8, 16, 32]
    assert post.keys()[:3] == ["a1", "a2", "a3"]
    assert {state for state, _, _ in (await states(world)).values()} == {"sent"}
    assert len(post.parcels) == 9


async def test_once_the_recipient_answers_the_waits_begin_anew(world: World, post: PostBox) -> None:
    post.ends[NORTHFOLD] = iter([BUSY, BUSY, SENT, BUSY, REFUSED, BUSY])
    waits = []
    async with dispatching(world, post):
        await add(world, "a1")
        for name in ("a2", "a3", "a4"):
            back_at = await until_backing_off(world)
            waits.append((back_at - world.clock.now()).total_seconds())
            await add(world, name)
            world.clock.move_to(back_at)
        back_at = await until_backing_off(world)
        waits.append((back_at - world.clock.now()).total_seconds())
        world.clock.advance(timedelta(minutes=5))
        await until_settled(world)
    # Failed twice; one was sent, the next failed; one was refused, the next failed.
    assert waits == [1, 2, 1, 1]
    assert sorted(state for state, _, _ in (await states(world)).values()) == ["failed", "sent", "sent", "sent"]


async def test_one_delivery_that_never_succeeds_does_not_hold_up_the_others(world: World, post: PostBox) -> None:
    async def choke(parcel: Parcel) -> None:
        if parcel.idempotency_key == "poison":
            raise RuntimeError

    async def is_sent_and_let_go() -> bool:
        newest = list((await states(world)).values())[-1]
        return newest[0] == "sent" and (await lane(world)).leased_by is None

    post.during = choke
    await add(world, "poison")
    async with dispatching(world, post):
        await until_backing_off(world)
        for number in range(6):
            await add(world, f"a{number}")
            world.clock.advance(timedelta(seconds=2))
            await until(is_sent_and_let_go)
    state, attempts, _ = (await states(world))["poison"]
    assert state == "waiting"
    # Its own waits double none the less: at 0, 2, 4 and 8 of 12 seconds.
    assert attempts == 4


async def test_a_recipient_that_asks_for_time_is_given_it(world: World, post: PostBox) -> None:
    await add(world, "a1", "a2")
    post.ends[NORTHFOLD] = iter([Outcome(outcome=OutcomeClass.TRANSIENT, code="http_429", retry_after_s=120)])
    async with dispatching(world, post):
        assert await until_backing_off(world) == world.clock.now() + timedelta(seconds=120)
    assert await states(world) == {"a1": ("waiting", 1, "http_429"), "a2": ("claimed", 0, None)}


async def test_a_new_delivery_does_not_break_the_wait(world: World, post: PostBox) -> None:
    await add(world, "a1")
    post.ends[NORTHFOLD] = iter([Outcome(outcome=OutcomeClass.TRANSIENT, code="http_429", retry_after_s=120)])
    async with dispatching(world, post) as dispatcher:
        back_at = await until_backing_off(world)
        await add(world, "a2")
        dispatcher.wake()
        await rounds(dispatcher)
        assert post.keys() == ["a1"]
        world.clock.move_to(back_at)
        await until_settled(world)
    assert sorted(post.keys()) == ["a1", "a1", "a2"]


async def test_what_may_have_arrived_is_sent_again_under_the_same_key(world: World, post: PostBox) -> None:
    await add(world, "a1")
    post.ends[NORTHFOLD] = iter([UNKNOWN])
    async with dispatching(world, post):
        world.clock.move_to(await until_backing_off(world))
        await until_settled(world)
    first, second = post.parcels
    assert first == msgspec.structs.replace(second, attempts=0)
    assert await states(world) == {"a1": ("sent", 2, "ok")}


async def test_an_attempt_that_takes_too_long_may_have_arrived(world: World, post: PostBox) -> None:
    await add(world, "a1")
    async with dispatching(world, post, attempt_timeout_s=0.5):
        with post.holding(NORTHFOLD):
            due_at = await until_backing_off(world)
        assert await states(world) == {"a1": ("waiting", 1, "timeout")}
        world.clock.move_to(due_at)
        await until_settled(world)
    assert post.keys() == ["a1", "a1"]


async def test_a_channel_that_fails_in_itself_counts_as_an_attempt(world: World, post: PostBox) -> None:
    async def fail(_: Parcel) -> None:
        raise RuntimeError("Casey")

    post.during = fail
    await add(world, "a1")
    with capture_logs() as lines:
        async with dispatching(world, post):
            await until_backing_off(world)
    assert await states(world) == {"a1": ("waiting", 1, "RuntimeError")}
    assert "Casey" not in str(lines)


async def test_what_is_refused_has_failed_and_the_next_goes_at_once(world: World, post: PostBox) -> None:
    await add(world, "a1", "a2", "a3")
    post.ends[NORTHFOLD] = iter([REFUSED, SENT, REFUSED])
    async with dispatching(world, post):
        await until_settled(world)
    assert await states(world) == {
        "a1": ("failed", 1, "http_422"),
        "a2": ("sent", 1, "ok"),
        "a3": ("failed", 1, "http_422"),
    }
    assert post.keys() == ["a1", "a2", "a3"]


async def test_after_the_limit_it_is_given_up_and_the_next_goes(world: World, post: PostBox) -> None:
    await add(world, "old", age_s=3600)
    await add(world, "new")
    post.ends[NORTHFOLD] = iter([BUSY, SENT])
    async with dispatching(world, post, give_up=timedelta(hours=1)):
        await until_settled(world)
    assert await states(world) == {"old": ("given_up", 1, "http_503"), "new": ("sent", 1, "ok")}


async def test_a_person_has_sent_again_what_was_refused_and_is_told_first_why(world: World, post: PostBox) -> None:
    await add(world, "a1", "a2", "a3")
    await add(world, "r1", owner=FENWICK)
    post.ends[NORTHFOLD] = iter([REFUSED, SENT, REFUSED])
    async with dispatching(world, post):
        await until_settled(world)
        listed = await command(world, "list")
        assert "topic:authority:706: 2 failed, http_422, the oldest from" in listed.stdout
        assert FENWICK not in listed.stdout
        done = await command(world, "resend", "topic:authority:706", "--by", "Pat", "--why", "address mended")
        assert (done.exit_code, done.stdout) == (0, "topic:authority:706: 2 will be sent again\n")
        await until_settled(world)
    assert post.keys() == ["a1", "a2", "a3", "a1", "a3"]
    assert set((await states(world)).values()) == {("sent", 1, "ok"), ("sent", 2, "ok")}
    assert "every delivery that was tried has reached its recipient" in (await command(world, "list")).stdout
    async with world.database.reading() as connection:
        [act] = (await connection.execute(select(_audit).where(_audit.c.action == "deliveries.resent"))).all()
    assert (act.subject, act.reason) == ("topic:authority:706", "address mended")
    assert act.actor.startswith("Pat (cli:")


async def test_what_waits_is_listed_and_not_sent_before_its_time(world: World, post: PostBox) -> None:
    await add(world, "a1")
    post.ends[NORTHFOLD] = iter([BUSY])
    async with dispatching(world, post):
        await until_backing_off(world)
        [found] = json.loads((await command(world, "list", "--json")).stdout)
        assert (found["lane"], found["state"], found["code"]) == ("topic:authority:706", "waiting", "http_503")
    refused = await command(world, "resend", "topic:authority:706", "--by", "Pat")
    assert refused.exit_code == 1
    assert "nothing to 'topic:authority:706' was refused or given up" in refused.stderr
    assert post.keys() == ["a1"]


async def test_an_old_word_is_not_sent_after_a_newer_one_about_the_same(world: World, post: PostBox) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7())
    async with world.database.writing() as connection:
        [alert] = await world.alerts()
        [reply] = (await connection.execute(select(_replies))).all()
        await connection.execute(_replies.insert().values(**(reply._asdict() | {"id": "corrected"})))
        await connection.execute(_deliveries.delete())
    about: dict[str, tuple[str | None, str | None]]
    about = {"raised": (alert.alert.alert_id, None), "withdrawn": (alert.alert.alert_id, None), "other": (None, None)}
    about |= {"told": (None, reply.id), "told anew": (None, "corrected")}
    for name, (alert_id, reply_id) in about.items():
        await add(world, name, alert_id=alert_id, reply_id=reply_id)
    post.ends[NORTHFOLD] = iter([REFUSED, SENT, REFUSED, REFUSED, SENT])
    async with dispatching(world, post):
        await until_settled(world)
        done = await command(world, "resend", "topic:authority:706", "--by", "Pat")
        assert "1 will be sent again; 2 stay: something newer about the same was sent" in done.stdout
        await until_settled(world)
    assert post.keys()[len(about) :] == ["other"]


async def test_what_retention_has_emptied_is_not_sent_again_and_holds_up_nothing(world: World, post: PostBox) -> None:
    await add(world, "emptied", "kept")
    post.ends[NORTHFOLD] = iter([REFUSED, REFUSED])
    async with dispatching(world, post):
        await until_settled(world)
        async with world.database.writing() as connection:
            of_it = _deliveries.c.id == "emptied"
            await connection.execute(_deliveries.update().where(of_it).values(sealed=DROPPED))
            assert await outbox.resend_deliveries(connection, "topic:authority:706", world.clock.now()) == (1, 1)
        await until_settled(world)
    assert post.keys() == ["emptied", "kept", "kept"]


async def test_what_is_sent_again_goes_before_a_newer_word_that_waits_and_not_beside_one_in_hand(
    world: World, post: PostBox
) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7())
    [alert] = await world.alerts()
    async with world.database.writing() as connection:
        await connection.execute(_deliveries.delete())
    await add(world, "raised", alert_id=alert.alert.alert_id, age_s=60)
    post.ends[NORTHFOLD] = iter([REFUSED])
    async with dispatching(world, post):
        await until_settled(world)
    await add(world, "withdrawn", alert_id=alert.alert.alert_id, age_s=30)
    async with world.database.writing() as connection:
        now = world.clock.now()
        [lane] = await outbox.lease_lanes(connection, by="another", lanes_max=9, lease=LEASE, now=now)
        assert len(await outbox.claim_due(connection, lane, deliveries_max=9, now=now)) == 1
        assert await outbox.resend_deliveries(connection, "topic:authority:706", now) == (0, 1)
    world.clock.advance(2 * LEASE)  # it died: what it had in hand is tried again
    async with world.database.writing() as connection:
        assert await outbox.resend_deliveries(connection, "topic:authority:706", world.clock.now()) == (1, 0)
    async with dispatching(world, post):
        await until_settled(world)
    assert post.keys() == ["raised", "raised", "withdrawn"]


async def test_one_slow_recipient_does_not_hold_up_the_others(world: World, post: PostBox) -> None:
    for owner in (NORTHFOLD, EASTMERE, FENWICK, OTTERY):
        await add(world, f"{owner}-1", f"{owner}-2", owner=owner)
    async with dispatching(world, post):
        with post.holding(NORTHFOLD):
            await post.tries(7)
            assert post.keys() == [f"{NORTHFOLD}-1"]
            assert all(len(post.keys(owner)) == 2 for owner in (EASTMERE, FENWICK, OTTERY))
        await until_settled(world)
    assert len(post.parcels) == 8


async def test_no_more_lanes_are_worked_at_one_time_than_allowed(world: World, post: PostBox) -> None:
    owners = (NORTHFOLD, EASTMERE, FENWICK, OTTERY)
    for owner in owners:
        await add(world, owner, owner=owner)
    async with dispatching(world, post, lanes_max=2) as dispatcher:
        with post.holding(*owners):
            await post.tries(2)
            await rounds(dispatcher)
            assert len(post.parcels) == 2
        await until_settled(world)


async def test_no_transaction_is_open_while_something_is_sent(world: World, post: PostBox) -> None:
    other = Database(world.database.url)
    open_transactions = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL "
        "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )

    async def none_is_open() -> bool:
        async with other.reading() as connection:
            return other.is_sqlite or (await connection.execute(open_transactions)).scalar_one() == 0

    async def write_meanwhile(_: Parcel) -> None:
        await until(none_is_open)
        async with asyncio.timeout(5), other.writing() as connection:
            # Where SQLite's one write lock or the lane's own row were held, this would wait for ever.
            await connection.execute(text("UPDATE lanes SET leased_by = 'seen'"))

    post.during = write_meanwhile
    await add(world, "a1", "a2")
    async with dispatching(world, post, poll_s=30):
        await until_settled(world)
    await other.close()
    assert await states(world) == {"a1": ("sent", 1, "ok"), "a2": ("sent", 1, "ok")}


async def test_what_is_added_during_work_is_sent_promptly(world: World, post: PostBox) -> None:
    await add(world, "a1")
    async with dispatching(world, post, poll_s=30):
        with post.holding(NORTHFOLD):
            await post.tries(1)
            await add(world, "a2")
        await post.tries(2)
        await until_settled(world)
    assert post.keys() == ["a1", "a2"]


async def test_stopping_finishes_the_attempt_in_hand_and_leaves_the_rest_for_whoever_comes(
    world: World, post: PostBox
) -> None:
    await add(world, "a1", "a2")
    dispatcher = make_dispatcher(world, post, "leaving")
    running = asyncio.create_task(dispatcher.run())
    with post.holding(NORTHFOLD):
        await post.tries(1)
        dispatcher.stop()
        done, _ = await asyncio.wait([running], timeout=0.1)
        assert not done
    async with asyncio.timeout(30):
        await running
    assert post.keys() == ["a1"]
    assert (await states(world))["a1"] == ("sent", 1, "ok")
    assert (await lane(world)).leased_until is None
    async with dispatching(world, post, "coming"):
        await until_settled(world)
    assert post.keys() == ["a1", "a2"]


async def test_a_lease_is_left_before_it_could_run_out_during_an_attempt(world: World, post: PostBox) -> None:
    async def take_time(_: Parcel) -> None:
        world.clock.advance(timedelta(seconds=9))

    post.during = take_time
    names = [f"a{number}" for number in range(8)]
    await add(world, *names)
    with capture_logs() as lines:
        async with dispatching(world, post, attempt_timeout_s=10, lease=timedelta(seconds=60)):
            await until_settled(world)
    assert post.keys() == names
    # Of 60 s, an attempt of at most 10 s needs 20: the sixth would begin at 45.
    assert (await lane(world)).epoch == 2
    assert lines == []


async def test_where_a_lane_leads_is_asked_of_todays_directory(world: World, post: PostBox) -> None:
    await add(world, "w1", owner=EASTMERE, channel=ChannelName.WEBHOOK)
    async with dispatching(world, post) as dispatcher:

        async def found_no_way() -> bool:
            return (await states(world))["w1"] == ("waiting", 1, "no_route")

        await until(found_no_way)
        async with world.database.writing() as connection:
            authority = Authority(
                code="707",
                name="Eastmere County Council",
                office_telephone="01632 960201",
                emergency_telephone="01632 960202",
                webhook_url="https://new.example.org/alerts",
            )
            await directory.save_authority(
                connection, world.keyring, authority, RecipientSecrets(webhook=bytes(32), topic=bytes(32))
            )
        world.clock.advance(timedelta(seconds=1))
        dispatcher.wake()
        await until_settled(world)
    [parcel] = post.parcels
    assert parcel.address == "https://new.example.org/alerts"


async def test_the_same_delivery_added_twice_is_sent_once(world: World, post: PostBox) -> None:
    await add(world, "a1")
    async with dispatching(world, post):
        await until_settled(world)
        await add(world, "a1")
        await until_settled(world)
    assert post.keys() == ["a1"]


async def test_a_database_that_is_away_is_waited_for() -> None:
    database = Database("postgresql+asyncpg://nobody@127.0.0.1:1/none")
    options = DispatchOptions(name="patient", poll_s=0.01)
    dispatcher = Dispatcher(database, Keyring(FIELD_KEYS, INDEX_KEY), ManualClock(), {}, options)
    running = asyncio.create_task(dispatcher.run())
    with capture_logs() as lines:
        await rounds(dispatcher)
    assert not running.done()
    dispatcher.stop()
    await running
    await database.close()
    assert {line["event"] for line in lines} == {"lane_failed"}


async def test_on_postgres_a_new_delivery_wakes_the_dispatcher_at_once(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the connection it listens on was lost."""
    monkeypatch.setattr(wakeups, "_RECONNECT_S", 0.02)
    async with open_world(postgres_url, tmp_path) as world:
        post = PostBox(world.clock)
        listening = asyncio.Event()
        async with dispatching(world, post, poll_s=60) as dispatcher:

            def wake() -> None:
                listening.set()
                dispatcher.wake()

            ear = asyncio.create_task(listen_for_deliveries(world.database, wake))
            async with asyncio.timeout(30):
                await listening.wait()
            await add(world, "a1")
            await post.tries(1)

            await until_settled(world)
            listening.clear()
            async with world.database.writing() as connection:
                ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
                assert (await connection.execute(text(ended))).all() == [(True,)]
            async with asyncio.timeout(30):
                await listening.wait()
            await add(world, "a2")
            await post.tries(2)
            assert not ear.done()
            ear.cancel()
            with pytest.raises(asyncio.CancelledError):
                await ear


async def test_a_delivery_is_announced_when_it_is_committed_and_not_before(database_url: str, tmp_path: Path) -> None:
    async with open_world(database_url, tmp_path) as world:
        woken = asyncio.Event()
        ear = asyncio.create_task(listen_for_deliveries(world.database, woken.set))
        async with asyncio.timeout(30):
            await woken.wait()
        woken.clear()
        delivery = NewDelivery(
            id="a1", channel=ChannelName.TOPIC, owner=NORTHFOLD, event_type="e", content_type="c", content=b""
        )
        async with world.database.writing() as connection:
            await outbox.add_deliveries(connection, world.keyring, [delivery], world.clock.now())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(woken.wait(), 0.1)
        async with asyncio.timeout(30):
            await woken.wait()
        ear.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ear
