"""What is particular to the log on SQLite."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.errors import LogUnavailable, NotDurable
from adapters.sqlite_log import SqliteLog, SqliteLogOptions
from broker.ports import Log
from schemas.record import Partition
from tests.contract.log_engines import (
    Diary,
    SqliteEngine,
    append_many,
    read_patiently,
    read_records,
    read_until,
    sqlite_options,
    until,
)


@contextlib.contextmanager
def writers_locked_out(options: SqliteLogOptions) -> Iterator[None]:
    """What another process does that takes its time."""
    lock = os.open(options.path.with_name(f"{options.path.name}.lock"), os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield
    os.close(lock)


async def test_sqlite_appends_that_wait_at_the_same_time_share_a_commit(sqlite_engine: SqliteEngine) -> None:
    log = sqlite_engine.open_log()
    await append_many(log, sqlite_engine.topic, ["first"], key=b"k")
    with writers_locked_out(sqlite_engine.options):
        appends = [
            asyncio.create_task(log.append(sqlite_engine.topic, key=b"k", value=b"%d" % number, headers={}))
            for number in range(200)
        ]
        await asyncio.sleep(0.1)
        assert not any(append.done() for append in appends)
    places = await asyncio.gather(*appends)
    assert [offset for _partition, offset in places] == list(range(1, 201))
    records = [await log.read(partition, offset) for partition, offset in places]
    assert [record.value for record in records if record is not None] == [b"%d" % number for number in range(200)]
    assert len({record.appended_at for record in records if record is not None}) <= 2, "one instant for each commit"


async def test_sqlite_writers_take_turns_and_every_record_has_a_place(sqlite_engine: SqliteEngine) -> None:
    logs = [sqlite_engine.open_log() for _ in range(3)]

    async def append_some(log: Log, name: str) -> list[tuple[Partition, int]]:
        return [
            await log.append(sqlite_engine.topic, key=name.encode(), value=name.encode(), headers={}) for _ in range(40)
        ]

    tasks = [append_some(log, f"{number}:{task}") for number, log in enumerate(logs) for task in range(4)]
    places = [place for of_task in await asyncio.gather(*tasks) for place in of_task]
    extents = await logs[0].extents(sqlite_engine.topic)
    assert sorted(places) == [
        (partition, offset) for partition in sorted(extents) for offset in range(extents[partition].end)
    ]


async def test_sqlite_refuses_when_too_much_waits(tmp_path: Path) -> None:
    options = replace(sqlite_options(tmp_path / "log.sqlite3"), waiting_records_max=10, waiting_bytes_max=5000)
    log = SqliteLog(options)
    await append_many(log, "topic", ["first"])
    with writers_locked_out(options):
        taken = asyncio.create_task(log.append("topic", key=None, value=b"", headers={}))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(log.append("topic", key=None, value=b"", headers={})) for _ in range(10)]
        await asyncio.sleep(0)
        with pytest.raises(NotDurable, match="waiting_records_max"):
            await log.append("topic", key=None, value=b"", headers={})
    await asyncio.gather(taken, *waiting)
    with pytest.raises(NotDurable, match="waiting_bytes_max"):
        await log.append("topic", key=None, value=bytes(5000), headers={})
    await log.close()


async def test_sqlite_refuses_when_the_disk_is_full_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    log = SqliteLog(replace(sqlite_options(tmp_path / "log.sqlite3"), file_bytes_max=512 * 1024, trim_records_max=3))
    await log.create_topic("topic", 1)
    kept = 0
    with pytest.raises(NotDurable, match="SQLITE_FULL"):
        while True:
            await log.append("topic", key=None, value=bytes(20_000), headers={})
            kept += 1
    partition = Partition("topic", 0)
    assert (await log.extents("topic"))[partition].end == kept > 10
    assert await log.read(partition, kept - 1) is not None
    await log.trim(partition, kept // 2)
    assert await log.append("topic", key=None, value=bytes(20_000), headers={}) == (partition, kept)
    assert (await log.extents("topic"))[partition].first == kept // 2
    await log.close()


async def test_sqlite_keeps_nothing_in_a_file_that_was_deleted(sqlite_engine: SqliteEngine, tmp_path: Path) -> None:
    log, reader, diary = sqlite_engine.open_log(), sqlite_engine.open_reader(), Diary()
    await append_many(log, sqlite_engine.topic, ["before"])
    await reader.start(diary)
    await read_records(reader, diary, 1)
    path = sqlite_engine.options.path
    path.rename(tmp_path / "aside")
    with pytest.raises(NotDurable, match="ENOENT"):
        await log.append(sqlite_engine.topic, key=None, value=b"lost", headers={})
    with pytest.raises(LogUnavailable, match="ENOENT"):
        await reader.poll(records_max=10, wait_s=1)
    assert not path.exists(), "an empty log instead would hide the loss"
    (tmp_path / "aside").rename(path)
    await append_many(log, sqlite_engine.topic, ["after"])
    assert [record.value for record in await read_patiently(reader, diary)] == [b"after"]


async def test_sqlite_files_are_readable_by_their_owner_only(sqlite_engine: SqliteEngine) -> None:
    log, reader, diary = sqlite_engine.open_log(), sqlite_engine.open_reader(), Diary()
    await append_many(log, sqlite_engine.topic, ["one"])
    await reader.start(diary)
    await read_records(reader, diary, 1)
    files = [path for path in sqlite_engine.options.path.parent.rglob("*") if path.is_file()]
    assert len(files) >= 8
    assert {path.stat().st_mode & 0o077 for path in files} == {0}


async def test_sqlite_members_that_died_leave_no_files_behind(sqlite_engine: SqliteEngine) -> None:
    member = await sqlite_engine.start_member()
    await until(lambda: len(member.events) == 4)
    await member.kill()
    groups = sqlite_engine.options.path.with_name("log.sqlite3.groups")
    assert len(list(groups.rglob("member-*"))) == 1
    reader, diary = sqlite_engine.open_reader(), Diary()
    await reader.start(diary)
    await read_until(reader, diary, lambda: len(diary.assigned) == 4)
    assert len(list(groups.rglob("member-*"))) == 1
    await reader.close()
    assert list(groups.rglob("member-*")) == []
