"""A long list is read as a stream: what it needs of memory does not grow with it; nor does what a match costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.lists import empty_lists, measure_matches
from tests.world import CASEY, World

ROWS = 20_000
MEMORY_MIB_MAX = 40
"""What a process may need more than before it read the list; all its rows as objects would need more."""
PROGRAM = """
import asyncio, json, sys
from pathlib import Path
from broker.storage import database as engines
from broker.clock import SystemClock
from broker.keyring import Keyring
from broker.list_upload import upload_children
from broker.spool import SealedSpool
from broker.storage.database import Database
from tests.factories import make_nhs_number
from tests.world import CHILDREN_COLUMNS, FIELD_KEYS, INDEX_KEY, furnish

ROW = "L{0},{1},Tester{0},Casey,2015-03-02,ZZ99 1AA,child_protection_plan,2026-01-10,,W1,North"

def read_peak_kib():
    # Not getrusage: there a child begins with the peak of its parent.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

engines.SQLITE_CACHE_KIB = 2048  # what SQLite keeps of its file does not grow with the list, and hides what does

async def main(place, rows):
    database = Database(f"sqlite+aiosqlite:///{place}/b.sqlite")
    keyring, clock = Keyring(FIELD_KEYS, INDEX_KEY), SystemClock()
    await furnish(database, keyring, clock, Path(place))
    with SealedSpool(keyring, bytes_max=1 << 26) as spool:
        spool.write(CHILDREN_COLUMNS.encode() + b"\\n")
        for number in range(rows):
            spool.write(ROW.format(number, make_nhs_number(number * 3)).encode() + b"\\n")
        before = read_peak_kib()
        report = await upload_children(database, keyring, clock, authority="706", file=spool, uploaded_by="test")
    await database.close()
    peak = read_peak_kib()
    sys.stdout.write(json.dumps({"loaded": report.loaded, "grown_kib": peak - before, "peak_kib": peak}))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def test_20000_rows_are_loaded_in_bounded_memory(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(ROWS)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    told = json.loads(ran.stdout)
    assert told["loaded"] == ROWS
    assert told["grown_kib"] < MEMORY_MIB_MAX * 1024
    assert told["peak_kib"] < 256 * 1024


async def test_the_benchmark_of_a_match_finds_exactly_those_who_are_listed(world: World) -> None:
    """It fills the table itself, past the product: what it writes must be what the product looks for."""
    await world.list_children(CASEY)
    await empty_lists(world.database)
    waited, computed = await measure_matches(world.database, world.keyring, 400)
    assert len(waited) == len(computed) > 0
