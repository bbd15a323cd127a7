"""What a file would change of a list, worked out before anything is changed.

A list may be long: rows are read as a stream, compared in parts, and what has to be written waits in a file, sealed.
The transaction that writes it is short, and either all of the file counts or nothing of it.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from itertools import islice
from tempfile import SpooledTemporaryFile
from typing import Final, NamedTuple

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.child_list_csv import ChildRowProblem, RowProblem, Rows, read_children
from adapters.child_list_json import read_children_json
from adapters.cpis_xml import read_upload
from adapters.errors import MalformedFile
from broker.domain.decision import Candidate
from broker.domain.visibility import Standing, Windows, standing_on
from broker.domain.visits import london_day
from broker.keyring import Keyring
from broker.settings import Settings
from broker.spool import SealedSpool
from broker.storage import child_lists
from broker.storage.child_lists import SealedEntry, StoredEntry, derive_entry_id, index_nhs_number, seal_entry
from schemas.child_list import ChildListEntry
from schemas.upload import RecordCode, RowAnswer, UploadFormat, UploadKind

PART_ROWS: Final = 500
HOLD_WINDOW: Final = timedelta(hours=24)
"""What was taken off a list in so long counts together: many small files are no better than a large one."""
Connect = Callable[[], AbstractAsyncContextManager[AsyncConnection]]
"""How to get a connection for a moment."""
_PLAN_MEMORY_BYTES: Final = 4_194_304
_PLACE: Final = struct.Struct(">QI")
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(SealedEntry)


class UnknownAuthority(Exception):
    """The authority is not in the directory: import it first."""


@dataclass(frozen=True, kw_only=True)
class UploadOptions:
    """Limits of an upload, and when a person must decide."""

    windows: Windows = field(default_factory=Windows)
    hold_percent: float = 5.0
    """Of the current list: a file that would end or take back more is held, ..."""
    hold_entries: int = 10
    """... but never for so few entries."""
    hold_limit: timedelta = timedelta(hours=4)
    """How long a held file may wait for a person."""
    difference_limit: timedelta = timedelta(days=5)
    """How long an entry that a full list left out may wait for a person."""
    short_bytes_max: int = 131_072
    """A file of up to so much (about a thousand rows) is compared within the transaction that writes it."""
    slice_rows: int = 250
    """What changes more of a list lands in slices, the first of so many: others may write in between."""
    slice_rows_max: int = 1_000
    """... and the next of twice or half as many, so that none holds the database for longer than ``slice_s``."""
    slice_s: float = 0.25
    landing_lease: timedelta = timedelta(seconds=120)
    """Whoever lands a file and says nothing for so long is taken for dead, and another goes on."""
    bytes_max: int = 67_108_864
    refused_listed_max: int = 10_000
    """Rows that are told one by one; the others are counted."""


def upload_options_of(settings: Settings) -> UploadOptions:
    """The limits of child lists, by the settings."""
    return UploadOptions(
        windows=Windows(plan_days=settings.plan_shown_days, unborn_days=settings.unborn_plan_shown_days),
        hold_percent=settings.list_hold_percent,
        hold_entries=settings.list_hold_entries,
        hold_limit=timedelta(hours=settings.list_hold_hours),
        difference_limit=timedelta(days=settings.list_difference_days),
        bytes_max=settings.list_upload_bytes_max,
    )


class PlannedChanges:
    """Entries that are to be written; they wait sealed.

    They come back in the order of their ids, which is that of most indexes they are written to: a database that takes
    them as they stand in the file touches another page with each of them, and a long list takes twice as long.
    """

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(max_size=_PLAN_MEMORY_BYTES)  # noqa: SIM115 - closed by ``close``
        self._places: list[bytes] = []
        """Each entry's id, and where in the file it stands."""
        self._end = 0

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._places)

    def add(self, entries: Sequence[SealedEntry]) -> None:
        """Add a part."""
        encoded = [_ENCODER.encode(entry) for entry in entries]
        self._file.seek(self._end)
        self._file.write(b"".join(encoded))
        for entry, its in zip(entries, encoded, strict=True):
            self._places.append(bytes.fromhex(entry.id) + _PLACE.pack(self._end, len(its)))
            self._end += len(its)

    def take(self, entries_max: Callable[[], int]) -> Iterator[list[SealedEntry]]:
        """What was added, in parts of so many: asked before each."""
        self._places.sort()
        start = 0
        while part := self._places[start : start + entries_max()]:
            start += len(part)
            yield [self._read(*_PLACE.unpack(place[-_PLACE.size :])) for place in part]

    def _read(self, start: int, length: int) -> SealedEntry:
        self._file.seek(start)
        return _DECODER.decode(self._file.read(length))

    def close(self) -> None:
        """Forget everything."""
        self._file.close()


@dataclass(kw_only=True)
class Comparison:
    """What a file says beside what the list says. ``version`` is the list's when it was read."""

    version: int
    changes: PlannedChanges = field(default_factory=PlannedChanges)
    rows_read: int = 0
    rows_good: int = 0
    ends: int = 0
    deletes: int = 0
    doubles: int = 0
    """New entries of people whom the list has under another ``local_id`` for the same plan type."""
    before: int = 0
    """Current entries that other files of this day took off the list, and that nobody confirmed."""
    current: int | None = None
    """Entries that stand as current now; None when nobody had to count them."""
    left_out: list[str] = field(default_factory=list)
    refused: list[RowAnswer] = field(default_factory=list)
    refused_count: int = 0
    listed: set[bytes] = field(default_factory=set)
    """The entries of the file."""
    persons: set[bytes] = field(default_factory=set)
    """The numbers and plan types of the file."""
    unread: set[str] = field(default_factory=set)
    """The ``local_id`` of rows that were refused: who has a bad row is not missing."""
    repeated: list[bytes] = field(default_factory=list)
    """Entries that the file repeats as they stand."""

    @property
    def is_usable(self) -> bool:
        """Whether anything of the file counts: not where every row was refused. An empty one says what it says."""
        return bool(self.rows_good) or not self.refused_count

    @property
    def taken(self) -> int:
        """Current entries that the file takes off the list, gives another number, or lists twice."""
        return self.ends + self.deletes + self.doubles

    @property
    def taken_today(self) -> int:
        """... and with it other files of this day."""
        return self.before + self.taken

    def has(self, entry_id: str) -> bool:
        """Whether the file has this entry."""
        return bytes.fromhex(entry_id) in self.listed


class _Row(NamedTuple):
    number: int
    entry: ChildListEntry
    nhs_index: bytes


class Comparer:
    """Compares one file with one authority's list."""

    def __init__(
        self,
        connect: Connect,
        keyring: Keyring,
        authority: str,
        options: UploadOptions,
        *,
        sent_at: datetime,
        now: datetime,
        on_read: Callable[[int], None],
    ) -> None:
        self._connect = connect
        self._keyring = keyring
        self._authority = authority
        self._options = options
        self._sent_at = sent_at
        self._on = london_day(now)
        self._on_read = on_read

    async def compare(self, spool: SealedSpool, form: UploadFormat, kind: UploadKind, version: int) -> Comparison:
        """Read the whole file. Raises MalformedFile, and then nothing of the file is believed."""
        found = Comparison(version=version)
        try:
            rows = iter(_read(spool, form, self._authority))
            while part := list(islice(rows, PART_ROWS)):
                await self._compare_part(found, part)
                self._on_read(found.rows_read)
            if kind is UploadKind.FULL and found.rows_good:
                await self._find_left_out(found)
            if found.taken:
                await self._count_the_day(found)
            if found.current is None and found.taken_today > self._options.hold_entries:
                found.current = sum([1 async for each in self._scan() if self._is_current(each.entry)])
        except BaseException:
            found.changes.close()
            raise
        return found

    async def _count_the_day(self, found: Comparison) -> None:
        async with self._connect() as connection:
            found.before = await child_lists.count_taken(connection, self._authority, self._sent_at - HOLD_WINDOW)

    async def _compare_part(self, found: Comparison, part: Sequence[tuple[int, ChildListEntry | RowProblem]]) -> None:
        found.rows_read += len(part)
        wanted: dict[str, _Row] = {}
        for number, row in part:
            if isinstance(row, RowProblem):
                code = row.code if isinstance(row, ChildRowProblem) else RecordCode.NOT_LOADED
                self._refuse(found, number, row.field, row.advice, code)
                if isinstance(row, ChildRowProblem) and row.local_id:
                    found.unread.add(row.local_id)
            else:
                entry_id = derive_entry_id(self._keyring, self._authority, row)
                own = _Row(number, row, index_nhs_number(self._keyring, row.nhs_number))
                if self._is_first(found, entry_id, own):
                    wanted[entry_id] = own
        if not wanted:
            return
        async with self._connect() as connection:
            stored = await child_lists.load_stored(connection, self._keyring, list(wanted))
            numbers = [row.nhs_index for entry_id, row in wanted.items() if entry_id not in stored]
            known = await child_lists.find_by_nhs_number(connection, self._keyring, numbers)
        changed = []
        for entry_id, (number, entry, nhs_index) in wanted.items():
            before, others = stored.get(entry_id), known.get(nhs_index, ())
            if before is None and self._lost_zeros(others, entry):
                advice = "differs from a listed one by zeros in front: a spreadsheet may have dropped them"
                self._refuse(found, number, "local_id", advice)
                found.unread.add(entry.local_id)
                continue
            if before is not None and before.entry != entry and before.newest_at > self._sent_at:
                self._refuse(found, number, "row", _overtaken(before))
                continue
            found.rows_good += 1
            if before is not None and before.entry == entry:
                found.repeated.append(bytes.fromhex(entry_id))
                continue
            found.doubles += before is None and self._is_listed(others, entry)
            self._count(found, before, entry)
            sealed = seal_entry(
                self._keyring, self._authority, entry_id, entry, is_new=before is None, nhs_index=nhs_index
            )
            changed.append(sealed)
        found.changes.add(changed)

    def _is_first(self, found: Comparison, entry_id: str, row: _Row) -> bool:
        """One person may have one plan of each type: of two rows for the same one, the first stands."""
        listed, person = bytes.fromhex(entry_id), row.nhs_index + row.entry.plan_type.encode()
        if listed in found.listed:
            self._refuse(found, row.number, "local_id", "the same person and plan type stands in a row above")
            return False
        found.listed.add(listed)
        if person in found.persons:
            self._refuse(found, row.number, "nhs_number", "the same number and plan type stands in a row above")
            return False
        found.persons.add(person)
        return True

    def _lost_zeros(self, known: Sequence[Candidate], entry: ChildListEntry) -> bool:
        """Whether the same person and plan is listed under the same id with more or fewer zeros in front."""
        return any(
            other.authority == self._authority
            and other.entry.deleted_on is None
            and other.entry.plan_type is entry.plan_type
            and other.entry.local_id.lstrip("0") == entry.local_id.lstrip("0")
            for other in known
        )

    def _is_listed(self, known: Sequence[Candidate], entry: ChildListEntry) -> bool:
        """Whether the same person has a current plan of the same type already, under another id."""
        return any(
            other.authority == self._authority
            and other.entry.plan_type is entry.plan_type
            and self._is_current(other.entry)
            for other in known
        )

    def _count(self, found: Comparison, before: StoredEntry | None, entry: ChildListEntry) -> None:
        if before is None:
            return
        stood = standing_on(before.entry, self._on, self._options.windows)
        if before.entry.deleted_on is None and entry.deleted_on is not None:
            found.deletes += stood is not Standing.HIDDEN
        elif stood is Standing.CURRENT:
            # An end that is still to come is counted as well: a wrong file must not end a list a day later.
            is_over = not self._is_current(entry)
            # Under another number nobody who came as this person is found any more: a column sorted alone ends a list.
            is_renumbered = before.entry.nhs_number != entry.nhs_number
            found.ends += is_over or is_renumbered or (before.entry.end_on is None and entry.end_on is not None)

    async def _find_left_out(self, found: Comparison) -> None:
        found.current = 0
        left_out: list[str] = []
        async for candidate in self._scan():
            if self._is_current(candidate.entry):
                found.current += 1
                if not found.has(candidate.entry_id) and candidate.entry.local_id not in found.unread:
                    left_out.append(candidate.entry_id)
        # A file that waited knows nothing of what was listed since.
        for start in range(0, len(left_out), PART_ROWS):
            async with self._connect() as connection:
                stored = await child_lists.load_stored(connection, self._keyring, left_out[start : start + PART_ROWS])
            found.left_out += [entry_id for entry_id, each in stored.items() if each.newest_at <= self._sent_at]

    async def _scan(self) -> AsyncIterator[Candidate]:
        after = ""
        while True:
            async with self._connect() as connection:
                part = await child_lists.scan_entries(
                    connection, self._keyring, self._authority, after=after, rows_max=PART_ROWS
                )
            if not part:
                return
            for candidate in part:
                yield candidate
            after = part[-1].entry_id

    def _is_current(self, entry: ChildListEntry) -> bool:
        return standing_on(entry, self._on, self._options.windows) is Standing.CURRENT

    def _refuse(
        self, found: Comparison, number: int, field_: str, advice: str, code: RecordCode = RecordCode.NOT_LOADED
    ) -> None:
        found.refused_count += 1
        if len(found.refused) < self._options.refused_listed_max:
            found.refused.append(RowAnswer(code=code, row=number, field=field_, advice=advice))


def _overtaken(stored: StoredEntry) -> str:
    """Why a row of a file that waited is left out."""
    how = "changed" if stored.newest_at == stored.changed_at else "listed as it stands"
    return f"was {how} by a later upload while this one waited: the list keeps what that one says"


def end_entry(entry: ChildListEntry, on: date) -> ChildListEntry:
    """The entry with its plan over; never before it began."""
    return msgspec.structs.replace(entry, end_on=max(on, entry.start_on))


def _read(spool: SealedSpool, form: UploadFormat, authority: str) -> Rows[ChildListEntry]:
    match form:
        case UploadFormat.CSV:
            return read_children(spool.open())
        case UploadFormat.JSON:
            return read_children_json(spool.open())
        case UploadFormat.XML:
            head, rows = read_upload(spool.chunks())
            if head.authority is not None and head.authority != authority:
                raise MalformedFile("the file is of another authority than the list it was sent for")
            return rows
