"""The one way in for authorities' child lists; called by the doors, the page, the command line and jobs.

An upload adds and replaces entries; a child that is not in the file stays on the list. Every new or changed entry
leaves a look-back job in the same transaction: a visit in flight and a list change cannot miss each other.

A file is first compared with the list, without changing anything (``broker.list_comparison``). Then everything of it is
written in one transaction, or, when it would end or take back too much, nothing: it waits for a person. What changes
more lands in slices, so that nobody waits for it: the file is kept until all of it has landed, whoever finds it left
behind goes on (``broker.landing``), and until then the list does not count as confirmed, no look-back runs and nobody
is asked about who was left out (ADR 0045).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.landing import Pace, measure_lists, resume_all, wait_for_landing
from broker.list_answer import report_comparison, report_held, report_tried
from broker.list_comparison import PART_ROWS, Comparer, Comparison, Connect, UnknownAuthority, UploadOptions
from broker.list_decision import NothingToDecide, load_hold
from broker.list_file import Confirmed, SentFile, as_it_was_sent
from broker.list_writing import conclude_upload, repeated_parts, write_part
from broker.ports import Clock
from broker.spool import SealedSpool
from broker.storage import audit, child_lists, held_uploads, landings
from broker.storage.database import Database
from broker.storage.landings import Landing
from schemas.upload import UploadFormat, UploadKind, UploadReport, UploadState

_FREE_TURNS: Final = 2
"""How often a file is compared with the list while others may change it."""
_LANDING_TURNS: Final = 20
"""... of which a part has landed."""
_BREATH_S: Final = 0.01
"""Between slices: a file lock goes to whoever asks first, and whoever waits must have the time to ask."""
Progress = Callable[[int, int], None]
"""Called with how much was done, of how much."""


async def upload_children(
    database: Database,
    keyring: Keyring,
    clock: Clock,
    *,
    authority: str,
    file: bytes | SealedSpool,
    uploaded_by: str,
    kind: UploadKind = UploadKind.CHANGES,
    form: UploadFormat = UploadFormat.CSV,
    sent_at: datetime | None = None,
    dry_run: bool = False,
    options: UploadOptions | None = None,
    on_progress: Progress | None = None,
) -> UploadReport:
    """Load a list; one that was ``sent_at`` an earlier time does not undo what later ones changed.

    Raises MalformedFile, UnknownAuthority or ListBlocked, and then nothing was stored.
    A file of which every row was refused is on record, but does not count as a confirmed list.
    """
    work = _Upload(
        database=database,
        keyring=keyring,
        clock=clock,
        options=options or UploadOptions(),
        sent=SentFile(
            authority=authority, kind=kind, form=form, uploaded_by=uploaded_by, sent_at=sent_at or clock.now()
        ),
        on_progress=on_progress,
    )
    if isinstance(file, SealedSpool):
        return await work.take(file, dry_run=dry_run)
    with SealedSpool(keyring, bytes_max=len(file)) as spool:
        spool.write(file)
        return await work.take(spool, dry_run=dry_run)


async def confirm_upload(
    database: Database,
    keyring: Keyring,
    clock: Clock,
    *,
    upload_id: str,
    owner: str | None,
    by: str,
    reason: str = "",
    options: UploadOptions | None = None,
) -> UploadReport:
    """Load a file that was held: compared anew, and without what later uploads changed. Raises NothingToDecide.

    ``owner``: the authority of whoever decides; None for an operator, who decides for all.
    """
    held = await load_hold(database, upload_id, owner)
    sent = as_it_was_sent(held, Confirmed(held_id=held.id, by=by, reason=reason))
    load_part = partial(held_uploads.load_part, keyring=keyring, upload_id=upload_id)
    return await _take_kept(database, keyring, clock, options or UploadOptions(), sent, load_part=load_part)


async def resume_landings(database: Database, keyring: Keyring, clock: Clock, options: UploadOptions) -> int:
    """Land the rest of the files that nobody goes on with; returns how many there were."""
    finish = partial(_finish_landing, database, keyring, clock, options)
    return await resume_all(database, clock, options.landing_lease, finish)


async def _finish_landing(
    database: Database, keyring: Keyring, clock: Clock, options: UploadOptions, begun: Landing
) -> None:
    load_part = partial(landings.load_part, keyring=keyring, upload_id=begun.upload_id)
    await _take_kept(database, keyring, clock, options, as_it_was_sent(begun), load_part=load_part, landing=begun)


async def _take_kept(
    database: Database,
    keyring: Keyring,
    clock: Clock,
    options: UploadOptions,
    sent: SentFile,
    *,
    load_part: Callable[..., Awaitable[bytes | None]],
    landing: Landing | None = None,
) -> UploadReport:
    """Load a file that was kept here: one that was held, or of which a part has landed."""
    work = _Upload(database=database, keyring=keyring, clock=clock, options=options, sent=sent, landing=landing)
    with SealedSpool(keyring, bytes_max=options.bytes_max) as spool:
        await _load_file(database, spool, load_part)
        return await work.take(spool)


async def _load_file(database: Database, spool: SealedSpool, load_part: Callable[..., Awaitable[bytes | None]]) -> None:
    number = 0
    async with database.reading() as connection:
        while (part := await load_part(connection, number=number)) is not None:
            spool.write(part)
            number += 1


@asynccontextmanager
async def _lend(connection: AsyncConnection) -> AsyncIterator[AsyncConnection]:
    yield connection


class _Upload(msgspec.Struct, frozen=True, kw_only=True):
    """One file on its way to one list."""

    database: Database
    keyring: Keyring
    clock: Clock
    options: UploadOptions
    sent: SentFile
    landing: Landing | None = None
    """Set when a part of the file has landed, and the rest is to follow."""
    on_progress: Progress | None = None

    async def take(self, spool: SealedSpool, *, dry_run: bool = False) -> UploadReport:
        """Compare, then load, hold or refuse."""
        report = await self._take(spool, dry_run=dry_run)
        if report.state is UploadState.LOADED and spool.size_bytes > self.options.short_bytes_max:
            await measure_lists(self.database)
        return report

    async def _take(self, spool: SealedSpool, *, dry_run: bool) -> UploadReport:
        turns = _FREE_TURNS if self.landing is None else _LANDING_TURNS
        for _ in range(turns if spool.size_bytes > self.options.short_bytes_max else 0):
            await self._wait_for_others()
            report = await self._try(
                spool, self.database.reading, self.database.writing, dry_run=dry_run, in_slices=True
            )
            if report is not None:
                return report
        await self._wait_for_others()
        # A short file, or others keep changing the list: they wait until it was compared.
        async with self.database.writing() as connection:
            await child_lists.lock_list(connection, self.sent.authority)
            locked = partial(_lend, connection)
            report = await self._try(spool, locked, locked, dry_run=dry_run, in_slices=False)
        assert report is not None, "nobody else can have changed the list"
        return report

    async def _wait_for_others(self) -> None:
        """Until no other file lands on this list. Raises ListBlocked."""
        if self.landing is None:
            finish = partial(_finish_landing, self.database, self.keyring, self.clock, self.options)
            await wait_for_landing(self.database, self.clock, self.sent.authority, self.options.landing_lease, finish)

    async def _try(
        self, spool: SealedSpool, reading: Connect, writing: Connect, *, dry_run: bool, in_slices: bool
    ) -> UploadReport | None:
        """What became of the file; None when somebody else changed the list meanwhile."""
        found = await self._compare(spool, reading)
        try:
            async with reading() as connection:
                was_known = await child_lists.file_is_known(connection, self.sent.authority, spool.digest)
            report = report_comparison(found, self.sent.authority, self.sent.kind, was_known=was_known)
            if self.landing is not None:
                return report if await self._go_on(found, self.landing, writing) else None
            if dry_run:
                return report_tried(report, found, must_wait=self._must_wait(found))
            if self._must_wait(found):
                return await self._hold(found, spool, report, writing)
            if in_slices and found.changes.count + len(found.repeated) > self.options.slice_rows:
                return await self._land(found, spool, report)
            return await self._store(found, spool, report, writing)
        finally:
            found.changes.close()

    async def _compare(self, spool: SealedSpool, reading: Connect) -> Comparison:
        async with reading() as connection:
            version = await child_lists.find_list_version(connection, self.sent.authority)
        if version is None:
            raise UnknownAuthority(self.sent.authority)
        comparer = Comparer(
            reading,
            self.keyring,
            self.sent.authority,
            self.options,
            sent_at=self.sent.sent_at,
            now=self.clock.now(),
            on_read=lambda rows: self._tell(rows, 2 * max(spool.lines, rows)),
        )
        return await comparer.compare(spool, self.sent.form, self.sent.kind, version)

    def _must_wait(self, found: Comparison) -> bool:
        if self.sent.confirmed is not None or found.current is None or not found.taken:
            return False
        share = (found.current + found.before) * self.options.hold_percent / 100
        return found.taken_today > max(self.options.hold_entries, share)

    async def _store(
        self, found: Comparison, spool: SealedSpool, report: UploadReport, writing: Connect
    ) -> UploadReport | None:
        """Write everything, or nothing; None when somebody else changed the list meanwhile."""
        now = self.clock.now()
        upload_id = self.sent.derive_upload_id(self.keyring, spool.digest, now)
        async with writing() as connection:
            if not await child_lists.take_turn(connection, self.sent.authority, found.version):
                return None
            if found.is_usable:
                await child_lists.record_upload(connection, self.sent.describe_upload(upload_id, found, spool.digest))
                written = 0
                for entries in found.changes.take(lambda: PART_ROWS):
                    await write_part(connection, self.keyring, self.sent.authority, upload_id, entries, now=now)
                    written += len(entries)
                    self._tell_written(found, written)
                for part in repeated_parts(found):
                    await child_lists.note_repeated(connection, part, self.sent.sent_at)
                await self._conclude(connection, upload_id, found, now)
            await self._settle_hold(connection, now)
            await audit.record_acts(connection, self.sent.acts_of_upload(upload_id, is_usable=found.is_usable), now)
        return msgspec.structs.replace(report, upload_id=upload_id if found.is_usable else None)

    async def _land(self, found: Comparison, spool: SealedSpool, report: UploadReport) -> UploadReport | None:
        """Write everything, slice by slice; None when somebody else changed the list before it began."""
        now = self.clock.now()
        upload_id = self.sent.derive_upload_id(self.keyring, spool.digest, now)
        landing = self.sent.describe_landing(upload_id, now + self.options.landing_lease)
        async with self.database.writing() as connection:
            if not await child_lists.take_turn(connection, self.sent.authority, found.version):
                return None
            await child_lists.record_upload(connection, self.sent.describe_upload(upload_id, found, spool.digest))
            await landings.begin_landing(connection, self.keyring, landing, spool.chunks())
            await self._settle_hold(connection, now)
            await audit.record_acts(connection, self.sent.acts_of_upload(upload_id, is_usable=True)[:-1], now)
        found.version += 1
        rest = msgspec.structs.replace(self, landing=landing, sent=msgspec.structs.replace(self.sent, confirmed=None))
        if not await rest._go_on(found, landing, self.database.writing):
            await rest.take(spool)
        return msgspec.structs.replace(report, upload_id=upload_id)

    async def _go_on(self, found: Comparison, landing: Landing, writing: Connect) -> bool:
        """Write what has not landed; False when somebody else changed the list meanwhile."""
        version, written, pace = found.version, 0, Pace(self.options)
        for entries in found.changes.take(lambda: pace.rows):
            async with writing() as connection:
                began_at = time.monotonic()
                if not await self._prolong(connection, landing):
                    return True
                if not await child_lists.take_turn(connection, self.sent.authority, version):
                    return False
                await write_part(
                    connection, self.keyring, self.sent.authority, landing.upload_id, entries, now=self.clock.now()
                )
            pace.note(len(entries), time.monotonic() - began_at)
            version, written = version + 1, written + len(entries)
            self._tell_written(found, written)
            await asyncio.sleep(_BREATH_S)
        for part in repeated_parts(found):
            async with writing() as connection:
                await child_lists.note_repeated(connection, part, self.sent.sent_at)
                await self._prolong(connection, landing)
            self._tell(found.rows_read, found.rows_read)
        async with writing() as connection:
            if not await child_lists.take_turn(connection, self.sent.authority, version):
                return False
            if await landings.end_landing(connection, landing.upload_id):
                now = self.clock.now()
                await self._conclude(connection, landing.upload_id, found, now)
                await audit.record_acts(connection, self.sent.acts_of_upload(landing.upload_id, is_usable=True), now)
        return True

    async def _prolong(self, connection: AsyncConnection, landing: Landing) -> bool:
        return await landings.prolong_landing(
            connection, landing.upload_id, self.clock.now() + self.options.landing_lease
        )

    async def _settle_hold(self, connection: AsyncConnection, now: datetime) -> None:
        confirmed = self.sent.confirmed
        if confirmed is not None and not await held_uploads.settle_upload(
            connection, confirmed.held_id, decision="confirmed", by=confirmed.by, now=now
        ):
            raise NothingToDecide(confirmed.held_id)

    async def _conclude(self, connection: AsyncConnection, upload_id: str, found: Comparison, now: datetime) -> None:
        await conclude_upload(
            connection,
            self.keyring,
            self.sent.authority,
            upload_id,
            found,
            sent_at=self.sent.sent_at,
            now=now,
            limit=self.options.difference_limit,
        )

    async def _hold(
        self, found: Comparison, spool: SealedSpool, report: UploadReport, writing: Connect
    ) -> UploadReport:
        now = self.clock.now()
        held = self.sent.describe_hold(self.keyring, found, spool.digest, now + self.options.hold_limit)
        async with writing() as connection:
            await held_uploads.hold_upload(connection, self.keyring, held, spool.chunks())
            await audit.record_acts(connection, [self.sent.act("list.held", held.id)], now)
        return report_held(report, found, held.id)

    def _tell_written(self, found: Comparison, written: int) -> None:
        self._tell(found.rows_read + found.rows_read * written // found.changes.count, 2 * found.rows_read)

    def _tell(self, done: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(done, total)
