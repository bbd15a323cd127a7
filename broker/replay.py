"""A person's way back for messages: their records are appended again, marked as asked for, and handled once more.

A request is written first, with the person's name, then the records are appended, then the request is done. Whoever
asks the same again after a crash continues it. The consumer handles every message once per request
(``broker/consumers/replaying.py``), so what was appended twice has one effect.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from adapters.content import sniff_content
from broker.envelope import EVENT_TYPE, FHIR, HL7V2, KEY_ID_HEADER, RECORD_SEAL, enclose, mark_replay
from broker.keyring import Keyring, KeyringError
from broker.ports import Clock, Log
from broker.storage import audit, directory, handled, quarantine, replays
from broker.storage.audit import Act
from broker.storage.database import Database
from broker.storage.handled import Place
from broker.storage.quarantine import KeptMessage
from broker.storage.replays import Origin, ReplayRange, ReplayRequest
from broker.storage.tables import ItemState
from schemas.identifiers import BROKER_OWNER
from schemas.record import LogRecord, Partition, PartitionExtent

SEALED_UNREAD: Final = "sealed_under_an_unknown_key"
ASKED: Final = "asked for"
ABSENT: Final = "there is no such item"
SETTLED: Final = "settled already"
LOCKED: Final = "its key is not in CPIS_FIELD_KEYS: put it back there first"

OFFSET_DIGITS_MAX: Final = 18


class ReplayRefused(Exception):
    """What was asked for cannot be done; the text says what to do."""


class ReplayOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of a replay."""

    records_max: int = 200
    """Records appended together."""
    waiting_max: int = 1000
    """A live message never waits behind more replayed ones than about this: the replay waits for the consumer."""
    stalled_s_max: float = 60.0
    """When the consumer handles nothing for so long, the replay ends and can be continued."""
    poll_s: float = 0.1


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """One end of a range: an offset, or an instant at which records were appended."""

    offset: int | None = None
    at: datetime | None = None

    @property
    def words(self) -> str:
        """The bound in one form, however it was written."""
        return str(self.offset) if self.at is None else self.at.astimezone(UTC).isoformat()


class RangeAsked(msgspec.Struct, frozen=True, kw_only=True):
    """Which records: from ``since`` up to but excluding ``until``, of one partition or of all."""

    since: Bound
    until: Bound | None = None
    partition: int | None = None

    @property
    def words(self) -> str:
        """The question in one line."""
        of = "" if self.partition is None else f" of partition {self.partition}"
        return f"from {self.since.words} to {self.until.words if self.until else 'end'}{of}"

    def holds(self, record: LogRecord) -> bool:
        """Whether a record was appended within the instants that were asked for."""
        is_late_enough = self.since.at is None or record.appended_at >= self.since.at
        is_early_enough = self.until is None or self.until.at is None or record.appended_at < self.until.at
        return is_late_enough and is_early_enough


class ReplayReport(msgspec.Struct, kw_only=True):
    """What a replay of a range came to. ``replay_id`` is empty after a dry run."""

    replay_id: str
    asked: str
    continued: bool
    appended: int = 0
    were_replays: int = 0
    """Records that are replays themselves: not replayed again."""
    not_handled_yet: int = 0
    """Records that wait to be handled for the first time."""


class ItemReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay of a quarantined message came to."""

    id: str
    result: str

    @property
    def is_asked(self) -> bool:
        """Whether its message is on its way."""
        return self.result == ASKED


class Replayer:
    """Asks for replays on behalf of a person. ``topic`` and ``group`` are as the log and the consumer name them."""

    def __init__(
        self,
        database: Database,
        log_: Log,
        keyring: Keyring,
        clock: Clock,
        *,
        topic: str,
        group: str,
        content_type: str | None = None,
        event_type: bytes = EVENT_TYPE,
        options: ReplayOptions | None = None,
    ) -> None:
        """``content_type`` None: what the bytes of a message say that it is."""
        self._database = database
        self._log = log_
        self._keyring = keyring
        self._clock = clock
        self._topic = topic
        self._group = group
        self._content_type = content_type
        self._event_type = event_type
        self._options = options or ReplayOptions()

    async def replay_item(self, item_id: str, *, by: str, reason: str) -> ItemReport:
        """Have a quarantined message handled again. Raises NotDurable: ask again.

        It is settled when it was handled with another outcome, and stays as it is when it was not.
        """
        async with self._database.writing() as connection:
            kept = (await quarantine.load_kept(connection, self._keyring, [item_id])).get(item_id)
            if kept is None or kept.item.topic != self._topic:
                return ItemReport(id=item_id, result=ABSENT)
            if kept.item.state is not ItemState.OPEN:
                return ItemReport(id=item_id, result=SETTLED)
            body = self._open(kept)
            if body is None:
                return ItemReport(id=item_id, result=LOCKED)
            now = self._clock.now()
            request = self._request_of(kept, by=by, reason=reason, now=now)
            await directory.ensure_owners(connection, {(BROKER_OWNER, "Operators of the broker")})
            await replays.save_request(connection, request)
            act = Act(owner=BROKER_OWNER, actor=by, action="quarantine.replay_asked", subject=item_id, reason=reason)
            await audit.record_acts(connection, [act], now)
        await self._append_item(kept, body, request, now)
        async with self._database.writing() as connection:
            await replays.finish_request(connection, request.id, self._clock.now())
        return ItemReport(id=item_id, result=ASKED)

    async def replay_range(
        self,
        asked: RangeAsked,
        *,
        by: str,
        reason: str,
        dry_run: bool = False,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> ReplayReport:
        """Have every message of a range handled again that was handled before. ``on_progress``: offsets done, of all.

        Where the range ends is fixed at the beginning. Raises ReplayRefused, NotDurable and LogUnavailable; asked
        again after that, it continues where it stood.
        """
        extents = await self._log.extents(self._topic)
        ranges = await self._choose_ranges(asked, extents)
        request, is_continued = (
            ReplayRequest(
                id="",
                topic=self._topic,
                asked=asked.words,
                ranges=tuple(ranges),
                requested_by=by,
                reason=reason,
                requested_at=self._clock.now(),
            ),
            False,
        )
        if not dry_run:
            request, is_continued = await self._enter(request)
        report = ReplayReport(replay_id=request.id, asked=request.asked, continued=is_continued)
        report.not_handled_yet = self._count_unhandled(asked, ranges, extents)
        left = {each.partition: each for each in request.ranges}
        total = sum(each.end - each.next for each in left.values())
        for number in sorted(left):
            while left[number].next < left[number].end:
                left[number] = await self._advance(asked, request, left[number], report)
                if not dry_run:
                    async with self._database.writing() as connection:
                        await replays.note_appended(connection, request.id, tuple(left.values()))
                    await self._wait_for_room()
                on_progress(total - sum(each.end - each.next for each in left.values()), total)
        if not dry_run:
            async with self._database.writing() as connection:
                await replays.finish_request(connection, request.id, self._clock.now())
        return report

    def _open(self, kept: KeptMessage) -> bytes | None:
        """The message itself; it may still be sealed as it was on the log."""
        if kept.body is None or kept.item.reason != SEALED_UNREAD:
            return kept.body
        try:
            return self._keyring.open(kept.body, about=RECORD_SEAL)
        except KeyringError:
            return None

    def _request_of(self, kept: KeptMessage, *, by: str, reason: str, now: datetime) -> ReplayRequest:
        """The request for the next attempt at an item: until that attempt was handled, always the same one."""
        item = kept.item
        where = ReplayRange(partition=item.partition, log_id=kept.log_id, next=item.offset, end=item.offset + 1)
        return ReplayRequest(
            id=self._keyring.derive_id("replay-item", item.id, str(item.attempts)),
            topic=item.topic,
            asked=f"item {item.id}",
            ranges=(where,),
            requested_by=by,
            reason=reason,
            requested_at=now,
        )

    async def _append_item(self, kept: KeptMessage, body: bytes, request: ReplayRequest, now: datetime) -> None:
        envelope = enclose(
            self._keyring,
            body,
            sender=kept.item.sender,
            control_id="",
            said=None,
            content_type=self._content_type or (FHIR if sniff_content(body) == "fhir" else HL7V2),
            at=now,
            event_type=self._event_type,
        )
        place = (kept.item.partition, kept.item.offset, kept.log_id)
        headers = mark_replay(envelope.headers, request.id, place)
        await self._log.append(self._topic, key=envelope.key, value=envelope.value, headers=headers)

    async def _choose_ranges(self, asked: RangeAsked, extents: dict[Partition, PartitionExtent]) -> list[ReplayRange]:
        """The offsets of each partition that were asked for and handled, as the log stands now."""
        chosen = {
            part: extent
            for part, extent in extents.items()
            if asked.partition is None or part.number == asked.partition
        }
        if not chosen:
            raise ReplayRefused("the log has no such partition; cpis-broker health says whether the log is there")
        async with self._database.reading() as connection:
            places = await handled.load_places(connection, self._group, chosen)
        return [_range_of(asked, part, extent, places.get(part)) for part, extent in sorted(chosen.items())]

    async def _enter(self, request: ReplayRequest) -> tuple[ReplayRequest, bool]:
        """Write the request and who asked, or find the same one that was not brought to its end."""
        now = request.requested_at
        async with self._database.writing() as connection:
            await directory.ensure_owners(connection, {(BROKER_OWNER, "Operators of the broker")})
            begun = await replays.find_unfinished(connection, request.topic, request.asked)
            log_ids = {each.partition: each.log_id for each in request.ranges}
            if begun is not None and any(log_ids.get(each.partition) != each.log_id for each in begun.ranges):
                # The topic was made again since: what that one was about is gone.
                await replays.finish_request(connection, begun.id, now)
                begun = None
            entered = begun or msgspec.structs.replace(request, id=self._derive_range_id(request))
            await replays.save_request(connection, entered)
            action = "replay.asked" if begun is None else "replay.continued"
            why = "; ".join(part for part in (entered.asked, request.reason) if part)
            act = Act(owner=BROKER_OWNER, actor=request.requested_by, action=action, subject=entered.id, reason=why)
            await audit.record_acts(connection, [act], now)
        return entered, begun is not None

    def _derive_range_id(self, request: ReplayRequest) -> str:
        ends = [f"{each.partition}/{each.end}/{each.log_id}" for each in request.ranges]
        return self._keyring.derive_id(
            "replay-range", request.topic, request.asked, request.requested_at.isoformat(), *ends
        )

    def _count_unhandled(
        self, asked: RangeAsked, ranges: Sequence[ReplayRange], extents: dict[Partition, PartitionExtent]
    ) -> int:
        until = asked.until.offset if asked.until is not None else None
        ends = {
            part.number: extent.end if until is None else min(extent.end, until) for part, extent in extents.items()
        }
        return sum(max(0, ends[each.partition] - each.end) for each in ranges)

    async def _advance(
        self, asked: RangeAsked, request: ReplayRequest, left: ReplayRange, report: ReplayReport
    ) -> ReplayRange:
        """Append the next records of one partition again, unless this is a dry run; returns what is left of it."""
        partition = Partition(self._topic, left.partition)
        found = await self._log.read_from(partition, left.next, records_max=self._options.records_max)
        records = [record for record in found if record.offset < left.end]
        if not records:
            # Nothing but offsets without a record here.
            return msgspec.structs.replace(left, next=left.end if found else left.next + 1)
        wanted = [record for record in records if asked.holds(record)]
        first, last = records[0].offset, records[-1].offset
        origins: dict[int, Origin | None] = {}
        if wanted:
            async with self._database.reading() as connection:
                origins = await replays.find_origins(connection, partition, left.log_id, first, last)
        told = [(record, origins[record.offset]) for record in wanted if record.offset in origins]
        replayed = [(record, origin) for record, origin in told if origin is not None]
        if request.id:
            await self._append_again(request, replayed)
        report.appended += len(replayed)
        report.were_replays += len(told) - len(replayed)
        report.not_handled_yet += len(wanted) - len(told)
        return msgspec.structs.replace(left, next=last + 1)

    async def _append_again(self, request: ReplayRequest, records: Sequence[tuple[LogRecord, Origin]]) -> None:
        results = await asyncio.gather(
            *(self._append_record(request, record, origin) for record, origin in records), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _append_record(self, request: ReplayRequest, record: LogRecord, origin: Origin) -> None:
        value, headers = record.value, dict(record.headers)
        if KEY_ID_HEADER not in headers:
            # Of a foreign producer: what we append ourselves is sealed.
            value = self._keyring.seal(value, about=RECORD_SEAL)
            headers[KEY_ID_HEADER] = self._keyring.current.encode()
        marked = mark_replay(headers, request.id, origin.place)
        await self._log.append(self._topic, key=record.key, value=value, headers=marked)

    async def _wait_for_room(self) -> None:
        """Wait until the consumer has little left: live messages stand in the same queue."""
        fewest, since = None, time.monotonic()
        while (waiting := await self._count_waiting()) > self._options.waiting_max:
            if fewest is None or waiting < fewest:
                fewest, since = waiting, time.monotonic()
            if time.monotonic() - since > self._options.stalled_s_max:
                raise ReplayRefused(
                    f"{waiting} messages wait and the part {self._group} handles none: is it running? "
                    "Give the same command again to continue"
                )
            await asyncio.sleep(self._options.poll_s)

    async def _count_waiting(self) -> int:
        extents = await self._log.extents(self._topic)
        async with self._database.reading() as connection:
            places = await handled.load_places(connection, self._group, extents)
        return sum(extent.end - _reached(extent, places.get(part)) for part, extent in extents.items())


async def replay_item(replayers: Iterable[Replayer], item_id: str, *, by: str, reason: str) -> ItemReport:
    """Have a quarantined message handled again, of whichever topic it is. Raises NotDurable: ask again."""
    report = ItemReport(id=item_id, result=ABSENT)
    for replayer in replayers:
        report = await replayer.replay_item(item_id, by=by, reason=reason)
        if report.result != ABSENT:
            break
    return report


def parse_bound(text: str) -> Bound:
    """An offset, or an instant in ISO 8601 with its zone. Raises ValueError with advice."""
    if text.isascii() and text.isdigit() and len(text) <= OFFSET_DIGITS_MAX:
        return Bound(offset=int(text))
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("give an offset, or an instant like 2026-02-14T03:00Z") from None
    if at.tzinfo is None:
        raise ValueError("say the zone of an instant: 2026-02-14T03:00Z, or +01:00 in summer")
    return Bound(at=at)


def _range_of(asked: RangeAsked, partition: Partition, extent: PartitionExtent, place: Place | None) -> ReplayRange:
    first = max(extent.first, asked.since.offset or 0)
    end = _reached(extent, place)
    if asked.until is not None and asked.until.offset is not None:
        end = min(end, asked.until.offset)
    return ReplayRange(partition=partition.number, log_id=extent.log_id, next=first, end=max(first, end))


def _reached(extent: PartitionExtent, place: Place | None) -> int:
    """Up to where the messages of a partition were handled."""
    if place is None or not place.is_on(extent.log_id):
        return extent.first
    return min(extent.end, max(extent.first, place.next_offset))
