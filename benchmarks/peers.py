"""The peers as processes of their own: ``python -m benchmarks.peers door|floor|naive PORT [REPLY_PORT]``.

``door`` only takes messages. ``floor`` and ``naive`` are the whole line: take messages, read them back from the log,
commit a row for each, and answer each registered patient's department.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal

from benchmarks.naive import NaiveStore
from benchmarks.plain import BareDoor, PlainLink, opens_visit, plain_log, plain_table, write_reply
from broker import bootstrap
from broker.settings import Settings


async def run_door(settings: Settings, port: int) -> None:
    """Take messages until cancelled."""
    door = BareDoor(settings)
    await door.start(port)
    await asyncio.Event().wait()


async def run_floor(settings: Settings, port: int, reply_port: int) -> None:
    """The whole line in the plainest code."""
    source, table, link = plain_log(settings), plain_table(settings), PlainLink(reply_port)
    await source.open()
    await table.open()
    await BareDoor(settings).start(port)
    while True:
        rows = await source.poll(settings.batch_records_max)
        if rows:
            await table.save(rows)
        for _, _, message in rows:
            if opens_visit(message):
                await link.send(write_reply(message))


async def run_naive(settings: Settings, port: int, reply_port: int) -> None:
    """The whole line in the naive build."""
    source, store, link = plain_log(settings), NaiveStore(settings), PlainLink(reply_port)
    await source.open()
    await store.open()
    await BareDoor(settings).start(port)
    while True:
        for _, _, message in await source.poll(1):
            await store.keep(message)
            if opens_visit(message):
                await link.send(write_reply(message))


async def _run() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.peers")
    parser.add_argument("what", choices=("door", "floor", "naive"))
    parser.add_argument("port", type=int)
    parser.add_argument("reply_port", type=int, nargs="?", default=0)
    given = parser.parse_args()
    settings = Settings()
    await bootstrap.prepare_topics(settings)
    if given.what == "door":
        work = run_door(settings, given.port)
    elif given.what == "floor":
        work = run_floor(settings, given.port, given.reply_port)
    else:
        work = run_naive(settings, given.port, given.reply_port)
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    asyncio.run(_run())
