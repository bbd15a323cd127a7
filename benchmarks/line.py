"""The consumer over a prepared log: messages decided a second, beside the floor and the naive build.

Each round has a topic of its own with the next messages of one department's day. All three subjects read that topic
and write to the same database, one after the other; which goes first changes from round to round. The clock runs from
the first records in hand to the last commit.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from benchmarks.figures import Figure, Subject
from benchmarks.installation import Installation, Scale, fill_log
from benchmarks.naive import NaiveStore
from benchmarks.plain import PlainLink, answer_everything, plain_log, plain_table
from broker import bootstrap, topics
from broker.bootstrap.collector import calm_collector
from broker.bootstrap.rules import rules_of
from broker.clock import SystemClock
from broker.consumers.attendance import AttendanceConsumer
from broker.consumers.loop import Batch, ConsumeLoop, Handler, LoopOptions
from broker.envelope import RECORD_SEAL
from broker.settings import Settings

PATIENCE_S = 300.0
FHIR_SHARE = 0.2
REPLY = b"MSH|^~\\&|BROKER|CPIS|ED|RZ1|20260214031200||ORU^R01|1|P|2.4\r"
"""What the naive build sends for a Bundle, to the same listener."""


@dataclass(kw_only=True)
class Lap:
    """How long a subject took for how many messages."""

    messages: int = 0
    commits: int = 0
    began_at: float = 0.0
    ended_at: float = 0.0
    began_at_cpu: float = 0.0
    ended_at_cpu: float = 0.0

    def begin(self) -> None:
        """Records are in hand; only the first call counts."""
        if not self.began_at:
            self.began_at, self.began_at_cpu = time.perf_counter(), time.process_time()

    def note(self, messages: int) -> None:
        """A commit came back."""
        self.messages += messages
        self.commits += 1
        self.ended_at, self.ended_at_cpu = time.perf_counter(), time.process_time()

    def per_second(self) -> float:
        """Messages a second."""
        return self.messages / (self.ended_at - self.began_at)

    def processor_us(self) -> float:
        """Processor time of this process, all its threads, for one message; busy neighbours move it least."""
        return (self.ended_at_cpu - self.began_at_cpu) / self.messages * 1e6

    def __str__(self) -> str:
        size = self.messages / self.commits
        return f"{self.per_second():>9,.0f} messages/s  {self.processor_us():>7,.0f} us each  {size:.0f} in a commit"


async def measure_line(installation: Installation, scale: Scale, say: Callable[[str], None]) -> list[Figure]:
    """HL7 v2 alone, and a day in which one visit in five is told in FHIR Bundles."""
    figures = await _race(installation, scale, say, "decided by the consumer, HL7 v2", fhir=0.0)
    return figures + await _race(installation, scale, say, "decided by the consumer, one in five FHIR", fhir=FHIR_SHARE)


async def _race(
    installation: Installation, scale: Scale, say: Callable[[str], None], what: str, *, fhir: float
) -> list[Figure]:
    """Messages a second of each subject, round by round. The first round warms up and does not count."""
    say(f"  {what}")
    department = installation.town.department(installation.town.attending, seed=7 + (fhir > 0), fhir=fhir)
    laps: dict[Subject, list[Lap]] = {subject: [] for subject in Subject}
    async with open_consumer(installation.settings) as decide:
        for number in range(scale.rounds + 1):
            settings = installation.with_prefix(f"line{fhir > 0:d}{number}.")
            await fill_log(settings, [department.next_message() for _ in range(scale.messages)])
            order = list(Subject)
            for subject in order[number % 3 :] + order[: number % 3]:
                gc.collect()
                async with asyncio.timeout(PATIENCE_S):
                    if subject is Subject.PRODUCT:
                        lap = await decide(settings, scale.messages)
                    elif subject is Subject.FLOOR:
                        lap = await consume_plainly(settings, scale.messages)
                    else:
                        lap = await consume_naively(settings, scale.naive_messages)
                if number:
                    laps[subject].append(lap)
                    say(f"  round {number}  {subject:<8} {lap}")
    return [
        Figure(what=which, engines=installation.engines.name, subject=subject, unit=unit, rounds=tuple(map(read, own)))
        for which, unit, read in (
            (what, "messages/s", Lap.per_second),
            (f"processor time, {what}", "us/message", Lap.processor_us),
        )
        for subject, own in laps.items()
    ]


Decide = Callable[[Settings, int], Awaitable[Lap]]
"""Decides so many messages of a round's topic."""


class _Timed:
    """The product's own handler with a clock beside it."""

    def __init__(self, handler: Handler, lap: Lap, messages: int) -> None:
        self._handler = handler
        self._lap = lap
        self._messages = messages
        self.loop: ConsumeLoop | None = None

    async def handle(self, batch: Batch) -> int:
        self._lap.begin()
        handled = await self._handler.handle(batch)
        self._lap.note(handled)
        if self._lap.messages >= self._messages and self.loop is not None:
            self.loop.stop()
        return handled

    async def quarantine(self, batch: Batch, reason: str) -> int:
        raise AssertionError(f"no message of this day is refused, but one was: {reason}")


@asynccontextmanager
async def open_consumer(settings: Settings) -> AsyncIterator[Decide]:
    """The consume loop and the attendance consumer, put together as ``serve --only attendances`` does.

    Database and consumer stay the same from one topic to the next, as they do in a part that has run for a while.
    """
    database, clock = bootstrap.open_database(settings, inline=True), SystemClock()
    keyring, rules = bootstrap.load_keyring(settings), rules_of(settings)
    log_ = bootstrap.open_log(settings)
    consumer = AttendanceConsumer(database, log_, keyring, clock, rules)

    async def decide(of_round: Settings, messages: int) -> Lap:
        lap, group = Lap(), of_round.name_on_log(topics.ATTENDANCES_GROUP)
        reader = bootstrap.open_reader(of_round, topic=of_round.name_on_log(topics.ATTENDANCES), group=group)
        timed = _Timed(consumer, lap, messages)
        options = LoopOptions(group=group, records_max=settings.batch_records_max, poll_wait_s=settings.poll_wait_s)
        timed.loop = ConsumeLoop(reader, timed, database, clock, options)
        await timed.loop.run()
        return lap

    calm_collector()
    try:
        yield decide
    finally:
        await log_.close()
        await database.close()


async def consume_plainly(settings: Settings, messages: int) -> Lap:
    """The same bytes from the same log, one row for each, committed in batches of the same size. Nothing is decided."""
    lap = Lap()
    source, table = plain_log(settings), plain_table(settings)
    await source.open()
    await table.open()
    while lap.messages < messages:
        if rows := await source.poll(settings.batch_records_max):
            lap.begin()
            await table.save(rows)
            lap.note(len(rows))
    await table.close()
    await source.close()
    return lap


async def consume_naively(settings: Settings, messages: int) -> Lap:
    """The same bytes, one at a time: opened, read with hl7apy, committed with the ORM, a reply sent and awaited."""
    lap = Lap()
    keyring, source, store = bootstrap.load_keyring(settings), plain_log(settings), NaiveStore(settings)
    listener = await asyncio.start_server(answer_everything, "127.0.0.1", 0)
    link = PlainLink(listener.sockets[0].getsockname()[1])
    await source.open()
    await store.open()
    while lap.messages < messages:
        for _, _, value in await source.poll(1):
            lap.begin()
            message = keyring.open(value, about=RECORD_SEAL)
            await store.keep(message)
            await link.send(message if message.startswith(b"MSH") else REPLY)
            lap.note(1)
    await link.close()
    await store.close()
    await source.close()
    listener.close()
    return lap
