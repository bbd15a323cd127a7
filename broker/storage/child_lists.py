"""Authorities' list entries, found by blind index."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import CompoundSelect, Select, and_, delete, func, or_, select, union_all, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.decision import Candidate
from broker.domain.matching import BLOCKS_VERSION, entry_blocks, visitor_blocks
from broker.keyring import Keyring
from broker.storage import coverage, jobs, traces
from broker.storage.aliases import Alias, find_aliases
from broker.storage.database import upsert
from broker.storage.jobs import COVERAGE, derive_job_id
from broker.storage.rows import insert_rows, is_among, is_among_given, update_rows
from broker.storage.tables import AuthorityRow, EntryBlock, ListEntry, ListUpload, ListVersion, NumberAlias, table
from broker.storage.traces import Identified
from schemas.attendance import Attendance
from schemas.child_list import ChildListEntry
from schemas.identifiers import NhsNumber, authority_owner
from schemas.upload import UploadKind

_uploads, _entries, _blocks, _versions = table(ListUpload), table(ListEntry), table(EntryBlock), table(ListVersion)
_authorities, _aliases = table(AuthorityRow), table(NumberAlias)
_is_alive = _entries.c.dead_at.is_(None)
_OF_CANDIDATE = (
    *(_entries.c.id, _entries.c.owner, _entries.c.authority, _entries.c.nhs_index),
    *(_entries.c.sealed, _entries.c.dead_at, _entries.c.is_restricted),
)
QUERY_VALUES_MAX = 500
"""Values in one IN list; SQLite and PostgreSQL both take more, plans stay cacheable."""


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """An upload about to be stored. ``uploaded_at`` is when it was sent, which is how old the list is."""

    id: str
    authority: str
    file_hash: str
    kind: UploadKind
    uploaded_by: str
    uploaded_at: datetime
    rows_loaded: int
    rows_refused: int
    entries_taken: int
    """Current entries that it ends, takes back, gives another number or lists twice."""
    confirmed_by: str | None = None


class StoredEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An entry as it stands, and since when. ``said_at``: when the newest file that repeated it was sent."""

    entry: ChildListEntry
    changed_at: datetime
    said_at: datetime | None = None

    @property
    def newest_at(self) -> datetime:
        """Since when what it says is the newest that anybody said of it."""
        return max(self.changed_at, self.said_at or self.changed_at)


class SealedEntry(msgspec.Struct, frozen=True, array_like=True):
    """An entry ready to be stored: nothing of it can be read without the keys."""

    id: str
    nhs_index: bytes
    sealed: bytes
    blocks: tuple[bytes, ...]
    identity: bytes
    """What a trace is about: see ``traces.index_identity``."""
    is_new: bool
    household_index: bytes | None = None


def derive_entry_id(keyring: Keyring, authority: str, entry: ChildListEntry) -> str:
    """One entry per authority, person and plan type."""
    return keyring.derive_id("entry", authority, entry.local_id, entry.plan_type)


def index_nhs_number(keyring: Keyring, nhs_number: str) -> bytes:
    """The blind index under which entries and visits of one NHS number meet."""
    return keyring.index("nhs", nhs_number)


def index_block(keyring: Keyring, block: str) -> bytes:
    """The keyed block under which entries and visits without a number meet."""
    return keyring.index("block", block)


def index_household(keyring: Keyring, authority: str, household: str) -> bytes:
    """The blind index under which one authority's entries of a household meet; another's reference is another's."""
    return keyring.index("household", authority, household)


def seal_entry(
    keyring: Keyring,
    authority: str,
    entry_id: str,
    entry: ChildListEntry,
    *,
    is_new: bool,
    nhs_index: bytes | None = None,
) -> SealedEntry:
    """An entry as it is stored; ``nhs_index`` when it is known already."""
    return SealedEntry(
        id=entry_id,
        nhs_index=index_nhs_number(keyring, entry.nhs_number) if nhs_index is None else nhs_index,
        sealed=keyring.seal(msgspec.json.encode(entry), about=f"entry/{entry_id}"),
        blocks=tuple(index_block(keyring, block) for block in entry_blocks(entry)),
        identity=traces.index_identity(keyring, entry),
        is_new=is_new,
        household_index=index_household(keyring, authority, entry.household) if entry.household else None,
    )


async def find_list_version(connection: AsyncConnection, authority: str) -> int | None:
    """How often the authority's list was changed; None when the authority is unknown."""
    found = await connection.execute(select(_authorities.c.list_version).where(_authorities.c.code == authority))
    version: int | None = found.scalar_one_or_none()
    return version


async def lock_list(connection: AsyncConnection, authority: str) -> int:
    """Keep others from changing the list until this transaction ends; returns its version, 0 for an unknown one."""
    statement = select(_authorities.c.list_version).where(_authorities.c.code == authority).with_for_update()
    return (await connection.execute(statement)).scalar_one_or_none() or 0


async def take_turn(connection: AsyncConnection, authority: str, version: int) -> bool:
    """Whether the list still is at ``version``; then nobody else changes it before this transaction ends."""
    statement = (
        update(_authorities)
        .where(_authorities.c.code == authority, _authorities.c.list_version == version)
        .values(list_version=version + 1)
        .returning(_authorities.c.code)
    )
    return (await connection.execute(statement)).one_or_none() is not None


async def record_upload(connection: AsyncConnection, upload: Upload) -> None:
    """Note who sent what."""
    values = {**msgspec.structs.asdict(upload), "kind": upload.kind.value, "owner": authority_owner(upload.authority)}
    statement = upsert(connection, _uploads).values(values)
    await connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))


async def confirm_list(
    connection: AsyncConnection, keyring: Keyring, authority: str, *, sent_at: datetime, now: datetime
) -> None:
    """Everything of an upload stands: the list counts as confirmed when it was sent."""
    await coverage.note_confirmation(connection, authority, sent_at)
    await jobs.bring_forward(connection, derive_job_id(keyring, COVERAGE, authority), now)


async def analyse_lists(connection: AsyncConnection) -> None:
    """Let PostgreSQL know at once how long the lists are now: else attendances go through all of a new one for a while.

    The embedded database always goes by the index. A table that somebody tidies or measures just now is left to them:
    all of the list stands already, and whoever sent it need not wait.
    """
    if connection.dialect.name == "postgresql":
        analysed = ", ".join(each.name for each in (_entries, _blocks, _versions))
        await connection.exec_driver_sql(f"ANALYZE (SKIP_LOCKED) {analysed}")


async def count_taken(connection: AsyncConnection, authority: str, since: datetime) -> int:
    """Current entries that uploads took off the list since an instant, and that nobody confirmed."""
    statement = select(func.coalesce(func.sum(_uploads.c.entries_taken), 0)).where(
        _uploads.c.authority == authority, _uploads.c.uploaded_at >= since, _uploads.c.confirmed_by.is_(None)
    )
    return int((await connection.execute(statement)).scalar_one())


async def write_entries(
    connection: AsyncConnection,
    keyring: Keyring,
    authority: str,
    upload_id: str,
    entries: Sequence[SealedEntry],
    *,
    now: datetime,
) -> None:
    """Add or replace entries, no entry twice, and keep what they said before. The upload must be on record."""
    owner = authority_owner(authority)
    written = {"upload_id": upload_id, "changed_at": now, "blocks_version": BLOCKS_VERSION}
    new = [
        {"id": each.id, "owner": owner, "authority": authority, **written, **_of_entry(each)}
        for each in entries
        if each.is_new
    ]
    await insert_rows(connection, _entries, new)
    changed = [{"id": each.id, **written, **_of_entry(each)} for each in entries if not each.is_new]
    await update_rows(connection, _entries, changed, key="id")
    for part in _parts([row["id"] for row in changed]):
        await connection.execute(delete(_blocks).where(is_among(connection, _blocks.c.entry_id, part)))
    blocks = [{"block": block, "entry_id": each.id, "owner": owner} for each in entries for block in each.blocks]
    await insert_rows(connection, _blocks, blocks, ignore_existing=True)
    last = await _end_versions(connection, [each.id for each in entries if not each.is_new], now)
    versions = [
        {
            "owner": owner,
            "entry_id": each.id,
            "sequence": last.get(each.id, 0) + 1,
            "authority": authority,
            "upload_id": upload_id,
            "known_from": now,
            **_contents(each),
        }
        for each in entries
    ]
    await insert_rows(connection, _versions, versions)
    opened = [Identified(entry_id=each.id, nhs_index=each.nhs_index, identity=each.identity) for each in entries]
    await traces.open_traces(connection, keyring, authority, opened, now)


async def _end_versions(connection: AsyncConnection, entry_ids: Sequence[str], now: datetime) -> dict[str, int]:
    """What these entries said until now ends; returns how many versions of each there are."""
    last: dict[str, int] = {}
    for part in _parts(entry_ids):
        these = is_among(connection, _versions.c.entry_id, part)
        highest = select(_versions.c.entry_id, func.max(_versions.c.sequence)).where(these)
        last |= {row[0]: row[1] for row in await connection.execute(highest.group_by(_versions.c.entry_id))}
        await connection.execute(
            update(_versions).where(these, _versions.c.known_until.is_(None)).values(known_until=now)
        )
    return last


async def load_stored(
    connection: AsyncConnection, keyring: Keyring, entry_ids: Sequence[str]
) -> dict[str, StoredEntry]:
    """The entries with these ids as they stand; at most QUERY_VALUES_MAX of them."""
    rows = await connection.execute(select(_entries).where(is_among(connection, _entries.c.id, entry_ids)))
    return {
        row.id: StoredEntry(entry=_open(keyring, row).entry, changed_at=row.changed_at, said_at=row.said_at)
        for row in rows
    }


async def note_repeated(connection: AsyncConnection, entry_ids: Sequence[str], sent_at: datetime) -> None:
    """Note that a file of that instant says the same of entries; at most QUERY_VALUES_MAX of them."""
    is_newer = or_(_entries.c.said_at.is_(None), _entries.c.said_at < sent_at)
    these = is_among(connection, _entries.c.id, entry_ids)
    await connection.execute(update(_entries).where(these, is_newer).values(said_at=sent_at))


async def scan_entries(
    connection: AsyncConnection, keyring: Keyring, authority: str, *, after: str, rows_max: int
) -> list[Candidate]:
    """An authority's entries in the order of their ids, those behind ``after``."""
    statement = (
        select(_entries)
        .where(_entries.c.authority == authority, _entries.c.id > after)
        .order_by(_entries.c.id)
        .limit(rows_max)
    )
    return [_open(keyring, row) for row in await connection.execute(statement)]


async def load_entries(connection: AsyncConnection, keyring: Keyring, entry_ids: Iterable[str]) -> list[Candidate]:
    """The entries with these ids; also dead ones."""
    rows = [
        row
        for part in _parts(sorted(set(entry_ids)))
        for row in await connection.execute(select(_entries).where(_entries.c.id.in_(part)))
    ]
    return await _open_all(connection, keyring, rows)


async def find_household(
    connection: AsyncConnection, keyring: Keyring, entry_ids: Collection[str], *, rows_max: int
) -> list[Candidate]:
    """These entries of one authority, and all that it recorded as of the same household, also dead ones.

    None at all where more than ``rows_max`` share a reference: then it says no household.
    """
    own = select(_entries.c.owner, _entries.c.household_index).where(
        is_among(connection, _entries.c.id, sorted(entry_ids)), _entries.c.household_index.is_not(None)
    )
    found: dict[str, Any] = {}
    for owner, index in sorted({(row.owner, bytes(row.household_index)) for row in await connection.execute(own)}):
        shared = select(_entries).where(_entries.c.household_index == index, _entries.c.owner == owner)
        rows = list(await connection.execute(shared.limit(rows_max + 1)))
        found |= {row.id: row for row in rows} if len(rows) <= rows_max else {}
    return await _open_all(connection, keyring, [found[entry_id] for entry_id in sorted(found)])


async def load_list(connection: AsyncConnection, keyring: Keyring, authority: str) -> list[Candidate]:
    """Every entry of an authority's list; also dead ones, and those that ended or were taken back."""
    statement = select(_entries).where(_entries.c.owner == authority_owner(authority)).order_by(_entries.c.id)
    return await _open_all(connection, keyring, list(await connection.execute(statement)))


async def find_by_nhs_number(
    connection: AsyncConnection, keyring: Keyring, indexes: Iterable[bytes]
) -> dict[bytes, list[Candidate]]:
    """Entries by blind index of their NHS number, or of one that PDS links with it; none that is dead."""
    found: dict[bytes, list[Candidate]] = {}
    for part in _parts(sorted(set(indexes))):
        pairs = await find_aliases(connection, keyring, part)
        linked = {index for pair in pairs for index in (pair.old_index, pair.new_index)}
        for row in await connection.execute(
            _with_numbers(connection.dialect.name), {"indexes": [*part, *(linked - set(part))]}
        ):
            candidate = _open(keyring, row, pairs)
            own = bytes(row.nhs_index)
            for index in {own, *_linked_with(row, pairs)} & set(part):
                found.setdefault(index, []).append(candidate)
    return found


@cache
def _with_numbers(dialect_name: str) -> Select[Any]:
    return select(*_OF_CANDIDATE).where(is_among_given(dialect_name, _entries.c.nhs_index, "indexes"), _is_alive)


async def find_listed(
    connection: AsyncConnection, keyring: Keyring, indexes: Collection[bytes]
) -> dict[bytes, list[Candidate]]:
    """As ``find_by_nhs_number``, in one statement; the numbers that are linked with an entry's own are left out."""
    listed = await connection.execute(select_listed(connection.dialect.name), {"indexes": list(indexes)})
    return open_listed(keyring, listed)


def open_listed(keyring: Keyring, rows: Iterable[Any]) -> dict[bytes, list[Candidate]]:
    """The entries of rows of ``select_listed``, by the index that was asked for."""
    found: dict[bytes, dict[str, Candidate]] = {}
    for row in rows:
        found.setdefault(bytes(row.asked), {})[row.id] = _open(keyring, row)
    return {index: [each for _, each in sorted(entries.items())] for index, entries in found.items()}


@cache
def select_listed(dialect_name: str) -> CompoundSelect[Any]:
    """The entries of ``indexes`` and of the numbers linked with them."""
    asked = [
        select(_entries.c.nhs_index.label("asked"), *_OF_CANDIDATE).where(
            is_among_given(dialect_name, _entries.c.nhs_index, "indexes"), _is_alive
        )
    ]
    for one, other in ((_aliases.c.old_index, _aliases.c.new_index), (_aliases.c.new_index, _aliases.c.old_index)):
        linked = and_(_entries.c.nhs_index == other, _entries.c.owner == _aliases.c.owner)
        asked.append(
            select(one.label("asked"), *_OF_CANDIDATE)
            .join_from(_aliases, _entries, linked)
            .where(is_among_given(dialect_name, one, "indexes"), _aliases.c.undone_at.is_(None), _is_alive)
        )
    return union_all(*asked)


async def find_by_block(
    connection: AsyncConnection, keyring: Keyring, blocks: Iterable[bytes]
) -> dict[bytes, list[Candidate]]:
    """Entries by keyed block."""
    found: dict[bytes, list[Candidate]] = {}
    for part in _parts(sorted(set(blocks))):
        for row in await connection.execute(_in_blocks(connection.dialect.name), {"blocks": part}):
            found.setdefault(bytes(row.block), []).append(_open(keyring, row))
    return found


@cache
def _in_blocks(dialect_name: str) -> Select[Any]:
    return (
        select(*_OF_CANDIDATE, _blocks.c.block)
        .join(_blocks, _blocks.c.entry_id == _entries.c.id)
        .where(is_among_given(dialect_name, _blocks.c.block, "blocks"), _is_alive)
    )


async def find_candidates(connection: AsyncConnection, keyring: Keyring, facts: Attendance) -> list[Candidate]:
    """Every entry that may concern whoever attends, or the mother that is named, each once."""
    numbers = [number for number in (facts.nhs_number, facts.mother_nhs_number) if number]
    by_number = await find_by_nhs_number(connection, keyring, [index_nhs_number(keyring, each) for each in numbers])
    found = [each for row in by_number.values() for each in row]
    if not facts.nhs_number:
        blocks = [index_block(keyring, block) for block in visitor_blocks([facts])]
        found += [each for row in (await find_by_block(connection, keyring, blocks)).values() for each in row]
    return list({each.entry_id: each for each in found}.values())


async def file_is_known(connection: AsyncConnection, authority: str, file_hash: str) -> bool:
    """Whether this very file was loaded before."""
    statement = select(_uploads.c.id).where(_uploads.c.authority == authority, _uploads.c.file_hash == file_hash)
    return (await connection.execute(statement.limit(1))).one_or_none() is not None


async def block_anew(connection: AsyncConnection, keyring: Keyring, *, rows_max: int) -> int:
    """Store entries under every block there is that are stored under fewer; returns how many there were."""
    behind = (
        select(_entries)
        .where(_entries.c.blocks_version < BLOCKS_VERSION)
        .order_by(_entries.c.id)
        .limit(rows_max)
        .with_for_update(skip_locked=True)
    )
    rows = [(row.id, row.owner, _open(keyring, row).entry) for row in await connection.execute(behind)]
    if rows:
        await _write_blocks(connection, keyring, rows)
        await update_rows(
            connection,
            _entries,
            [{"id": entry_id, "blocks_version": BLOCKS_VERSION} for entry_id, *_ in rows],
            key="id",
        )
    return len(rows)


def _contents(entry: SealedEntry) -> dict[str, bytes]:
    return {"nhs_index": entry.nhs_index, "sealed": entry.sealed}


def _of_entry(entry: SealedEntry) -> dict[str, bytes | None]:
    return {**_contents(entry), "household_index": entry.household_index}


async def _write_blocks(
    connection: AsyncConnection, keyring: Keyring, entries: Sequence[tuple[str, str, ChildListEntry]]
) -> None:
    """Store entries, as (id, owner, entry), under their blocks, and under no others."""
    for part in _parts(sorted(entry_id for entry_id, *_ in entries)):
        await connection.execute(delete(_blocks).where(_blocks.c.entry_id.in_(part)))
    blocks = [
        {"block": index_block(keyring, block), "entry_id": entry_id, "owner": owner}
        for entry_id, owner, entry in entries
        for block in entry_blocks(entry)
    ]
    await insert_rows(connection, _blocks, blocks, ignore_existing=True)


async def _open_all(connection: AsyncConnection, keyring: Keyring, rows: Sequence[Any]) -> list[Candidate]:
    pairs = [
        pair
        for part in _parts(sorted({bytes(row.nhs_index) for row in rows}))
        for pair in await find_aliases(connection, keyring, part)
    ]
    by_index: dict[bytes, list[Alias]] = {}
    for pair in pairs:
        by_index.setdefault(pair.old_index, []).append(pair)
        by_index.setdefault(pair.new_index, []).append(pair)
    return [_open(keyring, row, by_index.get(bytes(row.nhs_index), ())) for row in rows]


def _open(keyring: Keyring, row: Any, pairs: Sequence[Alias] = ()) -> Candidate:
    return Candidate(
        entry_id=row.id,
        authority=row.authority,
        entry=msgspec.json.decode(keyring.open(row.sealed, about=f"entry/{row.id}"), type=ChildListEntry),
        aliases=tuple(_linked_with(row, pairs).values()),
        is_dead=row.dead_at is not None,
        is_restricted=row.is_restricted,
    )


def _linked_with(row: Any, pairs: Sequence[Alias]) -> dict[bytes, NhsNumber]:
    """The numbers that an entry's owner has linked with the entry's own, by their index."""
    own = bytes(row.nhs_index)
    linked = {}
    for pair in pairs:
        if pair.owner == row.owner and own in (pair.old_index, pair.new_index):
            other = pair.new_index if own == pair.old_index else pair.old_index
            linked[other] = pair.other_side(own)
    return linked


def _parts(values: Sequence[Any]) -> list[Sequence[Any]]:
    return [values[start : start + QUERY_VALUES_MAX] for start in range(0, len(values), QUERY_VALUES_MAX)]
