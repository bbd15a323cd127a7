"""The part that delivers."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta

from broker import topics
from broker.bootstrap.channels import open_channels, receipts_of
from broker.bootstrap.engines import open_watched_database
from broker.bootstrap.safety import load_keyring
from broker.clock import SystemClock
from broker.dispatcher import Dispatcher, DispatchOptions
from broker.jobs.receipts import ReceiptOptions, ReceiptReader
from broker.nudges import NUDGING
from broker.settings import Settings
from broker.storage.database import Database
from broker.storage.wakeups import listen_for_deliveries


class DispatchPart:
    """The dispatcher, its ear for new deliveries, and beside it who asks what became of what was sent."""

    def __init__(self, dispatcher: Dispatcher, database: Database, receipts: ReceiptReader | None) -> None:
        self._dispatcher = dispatcher
        self._database = database
        self._receipts = receipts

    @property
    def alive_at(self) -> float:
        """When the dispatcher last looked for work."""
        return self._dispatcher.alive_at

    @property
    def worked_at(self) -> float:
        """When it last could look for work."""
        return self._dispatcher.worked_at

    def stop(self) -> None:
        """Finish the attempts in hand and end."""
        self._dispatcher.stop()

    async def run(self) -> None:
        """Dispatch until stopped."""
        beside = [asyncio.create_task(listen_for_deliveries(self._database, self._dispatcher.wake))]
        if self._receipts is not None:
            beside.append(asyncio.create_task(self._receipts.run()))
        try:
            await self._dispatcher.run()
        finally:
            for task in beside:
                task.cancel()
            for task in beside:
                with suppress(asyncio.CancelledError):
                    await task


@asynccontextmanager
async def open_part(settings: Settings) -> AsyncIterator[DispatchPart]:
    """The dispatcher over the ways out that the settings allow."""
    database = open_watched_database(settings, inline=True)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        channels = open_channels(settings)
        for channel in channels.values():
            stack.push_async_callback(channel.close)
        sources = receipts_of(settings, channels)
        options = DispatchOptions(
            name=f"{socket.gethostname()}-{os.getpid()}",
            topics={kind: settings.name_on_log(name) for kind, name in topics.TOPIC_OF_OWNER.items()},
            lease=timedelta(seconds=settings.delivery_lease_s),
            lanes_max=settings.delivery_lanes_max,
            deliveries_max=settings.delivery_batch_max,
            attempt_timeout_s=settings.delivery_timeout_s,
            give_up=timedelta(hours=settings.delivery_give_up_hours),
            give_up_on=dict.fromkeys(NUDGING, timedelta(hours=settings.nudge_give_up_hours)),
            receipted=frozenset(sources),
            poll_s=settings.dispatch_poll_s,
        )
        dispatcher = Dispatcher(database, load_keyring(settings), SystemClock(), channels, options)
        receipts = ReceiptReader(database, SystemClock(), sources, ReceiptOptions()) if sources else None
        yield DispatchPart(dispatcher, database, receipts)
