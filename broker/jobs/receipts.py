"""What became of messages that a provider took: asked until it is known, and acted on when nobody was reached.

Run beside the dispatcher, which alone reaches the provider. A message is claimed, asked for outside any transaction,
and settled; who does not answer changes nothing, and is asked again after a while. A message is asked for when it is
some seconds old, then each time that it is twice as old, then hourly, until the provider keeps it no longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from adapters.errors import ReceiptsUnavailable
from broker.domain.retry import next_ask_at
from broker.nudges import note_unreached
from broker.ports import Clock, Receipts
from broker.storage import receipts
from broker.storage.database import Database
from broker.storage.receipts import Awaited
from broker.telemetry import RECEIPTS, LogEvent, log
from schemas.delivery import ChannelName, Receipt


class ReceiptOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How often a provider is asked."""

    kept: timedelta = timedelta(days=7)
    """GOV.UK Notify says nothing of what is older."""
    asked_max: int = 50
    poll_s: float = 5.0
    """With ``asked_max``: 600 questions a minute of one process; Notify answers 3,000, sending included."""
    lease: timedelta = timedelta(seconds=60)
    """What was claimed and not settled is asked for again after this."""


class ReceiptReader:
    """Asks until stopped."""

    def __init__(
        self, database: Database, clock: Clock, sources: Mapping[ChannelName, Receipts], options: ReceiptOptions
    ) -> None:
        self._database = database
        self._clock = clock
        self._sources = sources
        self._options = options

    async def run(self) -> None:
        """Ask until cancelled; whatever fails is said and tried again."""
        while True:
            try:
                await self.run_once()
            except Exception as error:
                log(LogEvent.JOB_FAILED, kind="receipts", error=type(error).__name__)
            await asyncio.sleep(self._options.poll_s)

    async def run_once(self) -> int:
        """One round; returns of how many messages it is known now what became of them."""
        now = self._clock.now()
        async with self._database.reading() as connection:
            if not await receipts.is_any_due(connection, now):
                return 0
        async with self._database.writing() as connection:
            again_at, rows_max = now + self._options.lease, self._options.asked_max
            claimed = await receipts.claim_due(connection, now=now, again_at=again_at, rows_max=rows_max)
        found = await self._ask_all(claimed)
        return await self._settle_all(found)

    async def _ask_all(self, claimed: Sequence[Awaited]) -> list[tuple[Awaited, Receipt | None]]:
        """What was answered. Whoever does not answer is not asked for the others either."""
        found: list[tuple[Awaited, Receipt | None]] = []
        for awaited in claimed:
            is_kept = self._clock.now() - awaited.sent_at < self._options.kept
            source = self._sources.get(awaited.channel)
            try:
                receipt = await source.find_receipt(awaited.delivery) if source is not None and is_kept else None
            except ReceiptsUnavailable as error:
                log(LogEvent.RECEIPTS_UNAVAILABLE, code=error.code)
                break
            found.append((awaited, receipt if is_kept else Receipt.UNKNOWN))
        return found

    async def _settle_all(self, found: Sequence[tuple[Awaited, Receipt | None]]) -> int:
        ended = [(awaited, receipt) for awaited, receipt in found if receipt is not None]
        now = self._clock.now()
        later = {each.delivery: next_ask_at(each.sent_at, now) for each, receipt in found if receipt is None}
        if later:
            async with self._database.writing() as connection:
                await receipts.ask_later(connection, later)
        return sum([await self._settle(awaited, receipt, now) for awaited, receipt in ended])

    async def _settle(self, awaited: Awaited, receipt: Receipt, now: datetime) -> bool:
        async with self._database.writing() as connection:
            if not await receipts.settle_receipt(connection, awaited, receipt, now):
                return False
            if receipt is Receipt.DELIVERED:
                await receipts.mark_reached(connection, awaited.lane)
            elif receipt.is_failure:
                await note_unreached(
                    connection, awaited.delivery, lane=awaited.lane, owner=awaited.owner, code=receipt.value, now=now
                )
        RECEIPTS.labels(channel=awaited.channel.value, receipt=receipt.value).inc()
        if receipt.is_failure:
            log(LogEvent.DELIVERY_GIVEN_UP, lane=awaited.lane, code=receipt.value)
        return True
