"""Lease lanes and claim what is due in them, end the transaction, send, settle. Nothing is sent inside a transaction.

One delivery takes two transactions: the lease claims, and what settles the last one also claims the next ones or lets
the lane go.

A lane is one recipient on one channel: a slow recipient holds up only itself. Whoever holds a lane's lease sends its
deliveries in order; if the lease runs out, another takes over and sends again with the same idempotency keys, and what
the first one settles afterwards does not count.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.retry import NextStep, next_ask_at, next_step, next_try_at
from broker.keyring import Keyring
from broker.nudges import NUDGING, note_unreached
from broker.ports import Channel, Clock
from broker.storage import directory, establishments, logins, outbox, receipts
from broker.storage.database import Database
from broker.storage.logins import NOWHERE
from broker.storage.outbox import DueDelivery, LeasedLane, LeaseLost
from broker.telemetry import DELIVERIES, LogEvent, log
from schemas.delivery import ChannelName, DeliveryState, Outcome, OutcomeClass, Parcel
from schemas.directory import Reach
from schemas.identifiers import SchoolUrn

Claimed = Sequence[Row[Any]]
"""Deliveries of one lane that were claimed, still sealed."""


class DispatchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the dispatcher."""

    name: str
    topics: Mapping[str, str] = {}
    """The topic for each kind of owner: ``authority``, ``organisation``."""
    lease: timedelta = timedelta(seconds=30)
    lanes_max: int = 32
    deliveries_max: int = 50
    attempt_timeout_s: float = 10.0
    give_up: timedelta = timedelta(days=42)
    give_up_on: Mapping[ChannelName, timedelta] = {}
    """Where a channel's deliveries are of use for less."""
    receipted: frozenset[ChannelName] = frozenset()
    """Channels that are asked afterwards what became of what they sent."""
    poll_s: float = 0.5


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a lane leads now, and the secret shared with its recipient."""

    address: str
    secret: bytes = b""


class Dispatcher:
    """Sends what is due until stopped."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        clock: Clock,
        channels: Mapping[ChannelName, Channel],
        options: DispatchOptions,
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._clock = clock
        self._channels = channels
        self._options = options
        self._failures: Counter[str] = Counter()
        """By lane, the attempts in a row that this dispatcher saw fail."""
        self._stopping = asyncio.Event()
        self._woken = asyncio.Event()
        self.alive_at = self.worked_at = time.monotonic()
        """When the dispatcher last looked for work, and when it last could (monotonic seconds)."""

    def stop(self) -> None:
        """Finish the attempts in hand and end ``run``."""
        self._stopping.set()
        self._woken.set()

    def wake(self) -> None:
        """Something new may be due."""
        self._woken.set()

    async def run(self) -> None:
        """Dispatch until stopped; an outage of the database pauses."""
        working: set[asyncio.Task[None]] = set()
        while not self._stopping.is_set():
            self._woken.clear()
            lanes = await self._lease(self._options.lanes_max - len(working))
            self.alive_at = time.monotonic()
            for lane, claimed in lanes:
                task = asyncio.create_task(self._guard(lane, claimed))
                working.add(task)
                task.add_done_callback(working.discard)
                task.add_done_callback(lambda _: self._woken.set())
            if not lanes:
                await self._wait()
        await asyncio.gather(*working)

    async def _lease(self, lanes_max: int) -> list[tuple[LeasedLane, Claimed]]:
        """Lanes with what is due in them."""
        if lanes_max <= 0:
            self.worked_at = time.monotonic()
            return []
        try:
            if not await self._anything_is_due():
                self.worked_at = time.monotonic()
                return []
            async with self._database.writing() as connection:
                lanes = await outbox.lease_lanes(
                    connection,
                    by=self._options.name,
                    lanes_max=lanes_max,
                    lease=self._options.lease,
                    now=self._clock.now(),
                )
                taken = [(lane, await self._claim_or_release(connection, lane)) for lane in lanes]
        except Exception as error:
            log(LogEvent.LANE_FAILED, lane="", code=type(error).__name__)
            return []
        self.worked_at = time.monotonic()
        return [(lane, claimed) for lane, claimed in taken if claimed]

    async def _anything_is_due(self) -> bool:
        """Asked first, so that looking does not stand in the way of those who write."""
        async with self._database.reading() as connection:
            return await outbox.is_due(connection, self._clock.now())

    async def _guard(self, lane: LeasedLane, claimed: Claimed) -> None:
        """Whatever goes wrong on one lane, its lease runs out and it is taken up again."""
        try:
            await self._work(lane, claimed)
        except LeaseLost:
            log(LogEvent.LEASE_LOST, lane=lane.id)
        except Exception as error:
            log(LogEvent.LANE_FAILED, lane=lane.id, code=type(error).__name__)

    async def _work(self, lane: LeasedLane, claimed: Claimed) -> None:
        """Send what was claimed in the lane, then what is due by then, until the lane is let go of."""
        while claimed:
            due = outbox.open_claimed(self._keyring, claimed)
            async with self._database.reading() as connection:
                address = await self._find_address(connection, lane)
            claimed = await self._send_all(lane, address, due)

    async def _claim_or_release(self, connection: AsyncConnection, lane: LeasedLane) -> Claimed:
        """What is due in the lane; nothing, and the lane is let go of."""
        claimed: Claimed = ()
        if self._has_room(lane):
            claimed = await outbox.claim_due(
                connection, lane, deliveries_max=self._options.deliveries_max, now=self._clock.now()
            )
        if not claimed:
            await outbox.release_lane(connection, lane, not_before=None)
        return claimed

    def _has_room(self, lane: LeasedLane) -> bool:
        """A lane whose lease could run out during an attempt is left to whoever takes it next."""
        room = timedelta(seconds=self._options.attempt_timeout_s * 2)
        return not self._stopping.is_set() and self._clock.now() + room <= lane.leased_until

    async def _send_all(self, lane: LeasedLane, address: Address | None, due: Sequence[DueDelivery]) -> Claimed:
        """Send one after the other; what was claimed with the settling of the last one."""
        for delivery in due:
            if not self._has_room(lane):
                async with self._database.writing() as connection:
                    await outbox.release_lane(connection, lane, not_before=None)
                return ()
            outcome = await self._send(lane, address, delivery)
            claimed = await self._settle(lane, delivery, outcome, is_last=delivery is due[-1])
            if claimed is not None:
                return claimed
        return ()

    async def _send(self, lane: LeasedLane, address: Address | None, delivery: DueDelivery) -> Outcome:
        channel = self._channels.get(lane.channel)
        if channel is None or address is None:
            return Outcome(outcome=OutcomeClass.TRANSIENT, code="no_route")
        parcel = Parcel(
            idempotency_key=delivery.id,
            event_type=delivery.event_type,
            created_at=delivery.created_at,
            address=address.address,
            secret=address.secret,
            recipient=lane.owner,
            content=delivery.content,
            content_type=delivery.content_type,
            attempts=delivery.attempts,
        )
        try:
            async with asyncio.timeout(self._options.attempt_timeout_s):
                return await channel.send(parcel)
        except TimeoutError:
            return Outcome(outcome=OutcomeClass.AMBIGUOUS, code="timeout")
        except Exception as error:
            # Channels do not raise. One that does all the same must count as an attempt, or it would be one for ever.
            return Outcome(outcome=OutcomeClass.AMBIGUOUS, code=type(error).__name__)

    async def _settle(
        self, lane: LeasedLane, delivery: DueDelivery, outcome: Outcome, *, is_last: bool
    ) -> Claimed | None:
        """Write what became of an attempt. None: go on with what was claimed; else with this instead.

        When the recipient is away the whole lane waits.
        """
        now = self._clock.now()
        step = next_step(
            outcome,
            attempts=delivery.attempts + 1,
            created_at=delivery.created_at,
            now=now,
            give_up=self._options.give_up_on.get(lane.channel, self._options.give_up),
        )
        is_away = step.state is DeliveryState.WAITING
        failures = self._failures[lane.id] + 1
        claimed: Claimed | None = None
        async with self._database.writing() as connection:
            await outbox.settle_delivery(connection, lane, delivery, step, code=outcome.code, now=now)
            if is_away:
                back_at = next_try_at(outcome, failures=failures, now=now)
                await outbox.release_lane(connection, lane, not_before=back_at)
                claimed = ()
            elif is_last or not self._has_room(lane):
                claimed = await self._claim_or_release(connection, lane)
            if lane.channel in NUDGING:
                await self._note_reach(connection, lane, delivery, step, code=outcome.code, now=now)
        if is_away:
            self._failures[lane.id] = failures
        else:
            self._failures.pop(lane.id, None)
        self._report(lane, outcome, step)
        return claimed

    async def _note_reach(
        self,
        connection: AsyncConnection,
        lane: LeasedLane,
        delivery: DueDelivery,
        step: NextStep,
        *,
        code: str,
        now: datetime,
    ) -> None:
        """Whether a person was told, as far as this channel knows when it has sent."""
        if step.state in (DeliveryState.FAILED, DeliveryState.GIVEN_UP):
            await note_unreached(connection, delivery.id, lane=lane.id, owner=lane.owner, code=code, now=now)
        elif step.state is DeliveryState.SENT and lane.channel in self._options.receipted:
            ask_at = next_ask_at(now, now)
            await receipts.expect_receipt(connection, delivery.id, lane.owner, ask_at=ask_at, now=now)
        elif step.state is DeliveryState.SENT:
            await receipts.mark_reached(connection, lane.id)

    def _report(self, lane: LeasedLane, outcome: Outcome, step: NextStep) -> None:
        DELIVERIES.labels(channel=lane.channel.value, outcome=outcome.outcome.value).inc()
        if outcome.outcome is not OutcomeClass.SENT:
            log(LogEvent.LANE_FAILED, lane=lane.id, code=outcome.code)
        if step.state in (DeliveryState.FAILED, DeliveryState.GIVEN_UP):
            log(LogEvent.DELIVERY_GIVEN_UP, lane=lane.id, code=outcome.code)

    async def _find_address(self, connection: AsyncConnection, lane: LeasedLane) -> Address | None:
        """Where the lane leads by today's directory: never by what was known when the delivery was written."""
        kind, _, code = lane.owner.partition(":")
        if lane.channel in (ChannelName.EMAIL, ChannelName.TEXT_MESSAGE):
            reach = await self._find_reach(connection, lane.owner, lane.contact or "")
            address = reach.mailbox if lane.channel is ChannelName.EMAIL else reach.mobile
            return Address(address=address) if address is not None else None
        secrets = await directory.load_secrets(connection, self._keyring, lane.owner)
        if lane.channel is ChannelName.TOPIC:
            return Address(address=self._options.topics[kind], secret=secrets.topic)
        if lane.channel is ChannelName.WEBHOOK:
            authority = await directory.find_authority(connection, code)
            url = authority.webhook_url if authority is not None else None
            return Address(address=url, secret=secrets.webhook) if url else None
        site = await directory.find_site(connection, code)
        if site is not None and lane.channel is ChannelName.FHIR_REPLY:
            return Address(address=site.reply_url, secret=secrets.reply) if site.reply_url else None
        if site is None or not site.reply_host:
            return None
        return Address(address=f"{site.reply_host}:{site.reply_port}")

    async def _find_reach(self, connection: AsyncConnection, owner: str, contact_id: str) -> Reach:
        """Where a person is told to sign in, as it stands now: at a school by its verified directory."""
        kind, _, urn = owner.partition(":")
        if kind != "establishment":
            return await logins.find_reach(connection, self._keyring, owner, contact_id)
        contacts = await establishments.load_contacts(connection, self._keyring, [SchoolUrn(urn)])
        for contact in contacts.get(SchoolUrn(urn), ()):
            if contact.contact_id == contact_id and contact.confirmed_on is not None:
                return Reach(mailbox=contact.mailbox, mobile=contact.mobile)
        return NOWHERE

    async def _wait(self) -> None:
        try:
            await asyncio.wait_for(self._woken.wait(), self._options.poll_s)
        except TimeoutError:
            return
