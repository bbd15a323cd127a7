"""Child lists: a first list loaded beside the same rows written bare, what others wait, and what a match costs.

``python -m benchmarks.lists URL DIRECTORY ROWS`` loads a list in a process of its own, for its memory.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Final

from sqlalchemy import text
from sqlalchemy.engine import make_url

from benchmarks.figures import Figure, Subject
from benchmarks.installation import Engines, Scale, peak_memory_mib
from broker.clock import SystemClock
from broker.keyring import INDEX_BYTES, Keyring
from broker.list_upload import upload_children
from broker.spool import SealedSpool
from broker.storage import child_lists
from broker.storage.database import Database
from broker.storage.rows import insert_rows
from broker.storage.tables import ListEntry, ListUpload, table
from tests.factories import make_nhs_number
from tests.fakes import ManualClock
from tests.world import CHILDREN_COLUMNS, FIELD_KEYS, INDEX_KEY, furnish

MATCHED_AT: Final = (15_000, 150_000)
HUGE: Final = 1_500_000
_ROW: Final = "L{0},{1},Tester{0},Casey,2015-03-02,ZZ99 1AA,child_protection_plan,2026-01-10,,W1,North\n"
_SEALED_BYTES: Final = 420
"""As long as an entry is sealed."""
_PART_ROWS: Final = 5_000
_MATCHES: Final = 400
_WARMING: Final = 3
_ROUNDS: Final = 15
_WRITES_EVERY_S: Final = 0.02
_AUTHORITY, _OWNER = "706", "authority:706"
Say = Callable[[str], None]


async def measure_lists(engines: Engines, scale: Scale, say: Say, *, is_huge: bool = False) -> list[Figure]:
    """A list of ``scale.listed`` loaded once, and matches at several sizes of the list."""
    url = engines.database_url or f"sqlite+aiosqlite:///{engines.directory}/lists.sqlite"
    database, keyring = Database(url), Keyring(FIELD_KEYS, INDEX_KEY)
    await furnish(database, keyring, ManualClock(), engines.directory)
    try:
        floor_s = await _write_bare(database, scale.listed)
        told, waits_s = await _load(database, url, engines.directory, scale.listed)
        say(f"  {scale.listed:,} entries in {told['seconds']:.1f} s; bare rows {floor_s:.1f} s")
        say(f"  another writer waited {1000 * max(waits_s):,.0f} ms at most, memory {told['peak_mib']:.0f} MiB")
        figures = [
            _figure(engines, "a first list loaded", "entries/s", Subject.PRODUCT, scale.listed / told["seconds"]),
            _figure(engines, "a first list loaded", "entries/s", Subject.FLOOR, scale.listed / floor_s),
            _figure(engines, "longest wait of another writer meanwhile", "ms", Subject.PRODUCT, 1000 * max(waits_s)),
            _figure(engines, "peak memory of the loader", "MiB", Subject.PRODUCT, told["peak_mib"]),
        ]
        await empty_lists(database)
        for size in (*MATCHED_AT, *((HUGE,) if is_huge else ())):
            rounds, computed = await measure_matches(database, keyring, size)
            middle = len(rounds) // 2
            say(
                f"  a match among {size:,} entries: {sorted(rounds)[middle]:.0f} us, of which this process computes "
                f"{sorted(computed)[middle]:.0f} us"
            )
            what = f"a match among {size:,} entries"
            for name, taken in ((what, rounds), (f"{what}, computing", computed)):
                figures.append(
                    Figure(what=name, engines=engines.name, subject=Subject.PRODUCT, unit="us", rounds=tuple(taken))
                )
        return figures
    finally:
        await database.close()


def _figure(engines: Engines, what: str, unit: str, subject: Subject, value: float) -> Figure:
    return Figure(what=what, engines=engines.name, subject=subject, unit=unit, rounds=(value,))


async def _load(database: Database, url: str, directory: Path, rows: int) -> tuple[dict[str, float], list[float]]:
    """Load a list as a process of its own does, and write beside it as the consumer does."""
    arguments = ("-m", "benchmarks.lists", url, str(directory), str(rows))
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    waits_s: list[float] = []
    writing = asyncio.create_task(_write_beside(database, waits_s))
    output, _ = await process.communicate()
    writing.cancel()
    with suppress(asyncio.CancelledError):
        await writing
    assert process.returncode == 0, "the list was not loaded"
    return json.loads(output), waits_s


async def _write_beside(database: Database, waits_s: list[float]) -> None:
    while True:
        began_at = time.perf_counter()
        async with database.writing() as connection:
            await connection.execute(
                text("UPDATE authorities SET office_telephone = office_telephone WHERE code = '707'")
            )
        waits_s.append(time.perf_counter() - began_at)
        await asyncio.sleep(_WRITES_EVERY_S)


async def _write_bare(database: Database, rows: int) -> float:
    """The same rows by COPY or executemany, in a table without an index but its key."""
    sealed, now = os.urandom(_SEALED_BYTES), datetime.now(UTC).isoformat()
    kind = "BLOB" if database.is_sqlite else "BYTEA"
    async with database.writing() as connection:
        columns = f"id VARCHAR PRIMARY KEY, nhs_index {kind}, sealed {kind}, changed_at VARCHAR"
        await connection.execute(text(f"CREATE TABLE bare ({columns})"))
    records = [(f"{number:064x}", number.to_bytes(32, "big"), sealed, now) for number in range(rows)]
    began_at = time.perf_counter()
    async with database.writing() as connection:
        if database.is_sqlite:
            await connection.exec_driver_sql("INSERT INTO bare VALUES (?, ?, ?, ?)", records)
        else:
            raw = (await connection.get_raw_connection()).driver_connection
            assert raw is not None
            await raw.copy_records_to_table("bare", records=records)
    return time.perf_counter() - began_at


async def empty_lists(database: Database) -> None:
    """The list that was loaded goes; its upload stays on record."""
    async with database.writing() as connection:
        for name in ("jobs", "entry_traces", "list_versions", "entry_blocks", "list_entries"):
            await connection.execute(text(f"DELETE FROM {name}"))


async def measure_matches(database: Database, keyring: Keyring, size: int) -> tuple[list[float], list[float]]:
    """Microseconds for one look-up by number, in batches as the consumer asks, and how much of it was computing.

    Exactly half of the numbers are listed, the same many at every size, each round others. What was written is settled
    first: otherwise the disk is still busy with the list when the first rounds ask. A round waits for whatever else the
    machine does, and on a shared one that is several times what a look-up takes; what it computes is not so.
    """
    await _fill(database, keyring, size)
    await _settle(database)
    random, rounds, computed = Random(size), [], []
    for _ in range(_WARMING + _ROUNDS):
        listed = random.sample(range(size), _MATCHES // 2)
        wanted = [_index(number) for number in (*listed, *random.sample(range(HUGE, 2 * HUGE), _MATCHES // 2))]
        random.shuffle(wanted)
        async with database.reading() as connection:
            began_at, worked = time.perf_counter(), time.process_time()
            found = await child_lists.find_by_nhs_number(connection, keyring, wanted)
            rounds.append((time.perf_counter() - began_at) / _MATCHES * 1e6)
            computed.append((time.process_time() - worked) / _MATCHES * 1e6)
        assert len(found) == len(listed), "an entry was not found, or one that nobody listed"
    return rounds[_WARMING:], computed[_WARMING:]


async def _settle(database: Database) -> None:
    """Have everything that was written stand where it stays, and the planner know how much there is."""
    if database.is_sqlite:
        with closing(sqlite3.connect(str(make_url(database.url).database))) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return
    async with database.connecting() as beside:
        await (await beside.execution_options(isolation_level="AUTOCOMMIT")).execute(
            text("VACUUM ANALYZE list_entries")
        )


async def _fill(database: Database, keyring: Keyring, size: int) -> None:
    """Put entries straight into the table until it has so many, all of one size."""
    entries, now = table(ListEntry), datetime.now(UTC)
    async with database.writing() as connection:
        upload_id = (await connection.execute(table(ListUpload).select())).first()
        assert upload_id is not None
        had = int((await connection.execute(text("SELECT count(*) FROM list_entries"))).scalar_one())
    for start in range(had, size, _PART_ROWS):
        rows = [
            {
                "id": (entry_id := f"{number:032x}"),
                "owner": _OWNER,
                "authority": _AUTHORITY,
                "upload_id": upload_id.id,
                "nhs_index": _index(number),
                "sealed": keyring.seal(_ENTRY, about=f"entry/{entry_id}"),
                "changed_at": now,
                "blocks_version": 1,
            }
            for number in range(start, min(size, start + _PART_ROWS))
        ]
        async with database.writing() as connection:
            await insert_rows(connection, entries, rows)


_ENTRY: Final = (
    b'{"local_id":"L1","nhs_number":"9990000018","name":{"family":"Tester","given":"Casey"},"birth_date":"2015-03-02",'
    b'"postcode":"ZZ99 1AA","plan_type":"child_protection_plan","start_on":"2026-01-10","allocated_worker":"W1"}'
)


def _index(number: int) -> bytes:
    """Spread over the index as keyed hashes are."""
    return Random(number).randbytes(INDEX_BYTES)


def _lines(rows: int) -> Iterator[bytes]:
    yield CHILDREN_COLUMNS.removesuffix(",delete_date").encode() + b"\n"
    for number in range(rows):
        yield _ROW.format(number, make_nhs_number(number * 3)).encode()


async def _load_list(url: str, rows: int) -> None:
    database, keyring = Database(url), Keyring(FIELD_KEYS, INDEX_KEY)
    with SealedSpool(keyring, bytes_max=1 << 28) as spool:
        spool.write_all(_lines(rows))
        began_at = time.perf_counter()
        report = await upload_children(
            database, keyring, SystemClock(), authority=_AUTHORITY, file=spool, uploaded_by="bench"
        )
        seconds = time.perf_counter() - began_at
    await database.close()
    assert report.loaded == rows, report.problem
    sys.stdout.write(json.dumps({"seconds": seconds, "peak_mib": peak_memory_mib(os.getpid())}))


if __name__ == "__main__":
    asyncio.run(_load_list(sys.argv[1], int(sys.argv[3])))
