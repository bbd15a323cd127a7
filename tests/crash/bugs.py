"""Bugs that a broker like this one is known to have, planted in a process to see that the harness notices them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from aiokafka import TopicPartition

from adapters.kafka_options import KafkaOptions
from broker.consumers.attendance import AttendanceConsumer
from broker.consumers.loop import Batch, ConsumeLoop
from broker.dispatcher import Dispatcher
from broker.intake import Intake
from broker.storage import handled
from schemas.delivery import Outcome, OutcomeClass
from schemas.record import Partition, PartitionExtent

SLOW_DATABASE_S: Final = 0.3
SLOW_APPEND_S: Final = 0.05


def _replace(owner: Any, name: str, by: Callable[..., Any]) -> Any:
    """Put ``by`` in the place of what is there, and return what was there."""
    original = getattr(owner, name)
    setattr(owner, name, by)
    return original


async def _do_nothing(*_: Any, **__: Any) -> None:
    pass


def store_offset_before_database() -> None:
    """The offset is stored in a transaction of its own before the messages are handled."""
    move = _replace(handled, "move_offset", _do_nothing)

    async def move_then_handle(self: Any, batch: Batch) -> int:
        async with self._database.writing() as connection:
            await move(
                connection,
                batch.group,
                batch.partition,
                log_id=batch.log_id,
                expected=batch.expected,
                to=batch.next_offset,
                records=len(batch.records),
                now=self._clock.now(),
            )
        handled_count: int = await handle(self, batch)
        return handled_count

    handle = _replace(AttendanceConsumer, "handle", move_then_handle)


def settle_before_sending() -> None:
    """A delivery is marked as sent before it is sent."""

    async def settle_then_send(self: Any, lane: Any, address: Any, delivery: Any) -> Outcome:
        await self._settle(lane, delivery, Outcome(outcome=OutcomeClass.SENT, code="sent"), is_last=False)
        outcome: Outcome = await send(self, lane, address, delivery)
        return outcome

    send = _replace(Dispatcher, "_send", settle_then_send)


def commit_automatically() -> None:
    """Kafka's client commits by itself what it has handed out, and the group reads on from there."""
    settings = KafkaOptions.consumer_settings
    take_stored = ConsumeLoop.on_assigned
    handle = AttendanceConsumer.handle

    def settings_with_auto_commit(self: KafkaOptions, group: str, member: str) -> dict[str, Any]:
        return {**settings(self, group, member), "enable_auto_commit": True, "auto_commit_interval_ms": 10}

    async def take_committed(self: Any, extents: Mapping[Partition, PartitionExtent]) -> Mapping[Partition, int]:
        await take_stored(self, extents)
        offsets = {}
        for partition, extent in extents.items():
            committed = await self._reader._consumer.committed(TopicPartition(*partition))
            offsets[partition] = self._held[partition].next_offset = extent.first if committed is None else committed
        return offsets

    async def handle_slowly(self: Any, batch: Batch) -> int:
        await asyncio.sleep(SLOW_DATABASE_S)
        return await handle(self, batch)

    _replace(KafkaOptions, "consumer_settings", settings_with_auto_commit)
    _replace(ConsumeLoop, "on_assigned", take_committed)
    _replace(AttendanceConsumer, "handle", handle_slowly)
    _replace(handled, "move_offset", _do_nothing)


def forget_markers() -> None:
    """No message is remembered: each counts as new."""

    async def take_all(_: Any, markers: Iterable[bytes], __: datetime) -> set[bytes]:
        return set(markers)

    _replace(handled, "mark_handled", take_all)


def acknowledge_before_append() -> None:
    """AA is said while the append is still under way."""
    appending: set[asyncio.Task[bool]] = set()

    async def append_later(self: Any, *message: Any, **more: Any) -> bool:
        await asyncio.sleep(SLOW_APPEND_S)
        kept: bool = await append(self, *message, **more)
        return kept

    async def say_kept(self: Any, *message: Any, **more: Any) -> bool:
        task = asyncio.create_task(append_later(self, *message, **more))
        appending.add(task)
        task.add_done_callback(appending.discard)
        return True

    append = _replace(Intake, "_append", say_kept)


BUGS: Final[Mapping[str, Callable[[], None]]] = MappingProxyType(
    {
        "offset-before-database": store_offset_before_database,
        "settled-before-sent": settle_before_sending,
        "auto-commit": commit_automatically,
        "markers-forgotten": forget_markers,
        "acknowledged-before-appended": acknowledge_before_append,
    }
)
