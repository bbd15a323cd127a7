"""The floor: the plainest code for each step, with nothing of the broker in it but where its log is.

Reading a log, committing one row for each message, taking messages over MLLP, sending them: no reading of what they
say, no keys, no lists, no recovery. Nobody should run this; it is what the same machine can do at most.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from typing import Any, Protocol

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from sqlalchemy.engine import make_url

from broker import bootstrap
from broker.ports import Log
from broker.settings import Settings
from broker.topics import ATTENDANCES as TOPIC

Row = tuple[int, int, bytes]
"""Partition, position, value."""
IDLE_S = 0.002
_OFFSET_BITS = 40  # of the embedded log's row ids
_TABLE = (
    "CREATE TABLE IF NOT EXISTS bench_floor"
    " (run TEXT, part INTEGER, position BIGINT, value {bytes}, PRIMARY KEY (run, part, position))"
)


class PlainLog(Protocol):
    """Reads a topic from its beginning."""

    async def open(self) -> None:
        """Connect and go to the beginning."""
        ...

    async def poll(self, rows_max: int) -> list[Row]:
        """What waits; nothing after a moment."""
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...


class PlainTable(Protocol):
    """Commits rows."""

    async def open(self) -> None:
        """Connect and make the table."""
        ...

    async def save(self, rows: Sequence[Row]) -> None:
        """One transaction."""
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...


def plain_log(settings: Settings) -> PlainLog:
    """The log of the settings, read without the broker."""
    return _KafkaLog(settings) if settings.kafka_bootstrap_servers else _SqliteLog(settings)


def plain_table(settings: Settings) -> PlainTable:
    """A table in the database of the settings."""
    return _PostgresTable(settings) if settings.kafka_bootstrap_servers else _SqliteTable(settings)


class _KafkaLog:
    def __init__(self, settings: Settings) -> None:
        self._topic = settings.name_on_log(TOPIC)
        self._places = [TopicPartition(self._topic, number) for number in range(settings.log_partitions)]
        self._consumer: Any = AIOKafkaConsumer(
            bootstrap_servers=settings.kafka_bootstrap_servers, enable_auto_commit=False
        )

    async def open(self) -> None:
        await self._consumer.start()
        self._consumer.assign(self._places)
        await self._consumer.seek_to_beginning(*self._places)

    async def poll(self, rows_max: int) -> list[Row]:
        found = await self._consumer.getmany(timeout_ms=200, max_records=rows_max)
        return [
            (place.partition, record.offset, record.value) for place, records in found.items() for record in records
        ]

    async def close(self) -> None:
        await self._consumer.stop()


class _PostgresTable:
    def __init__(self, settings: Settings) -> None:
        self._address = settings.database_url.replace("+asyncpg", "")
        self._run = settings.kafka_prefix
        self._connection: Any = None

    async def open(self) -> None:
        self._connection = await asyncpg.connect(self._address)
        await self._connection.execute(_TABLE.format(bytes="BYTEA"))

    async def save(self, rows: Sequence[Row]) -> None:
        async with self._connection.transaction():
            await self._connection.executemany(
                "INSERT INTO bench_floor VALUES ($1, $2, $3, $4)", [(self._run, *row) for row in rows]
            )

    async def close(self) -> None:
        await self._connection.close()


class _SqliteLog:
    def __init__(self, settings: Settings) -> None:
        self._log = sqlite3.connect(settings.data_dir / "log.sqlite")
        self._topic = settings.name_on_log(TOPIC)
        self._slots: list[tuple[int, int]] = []
        self._next: dict[int, int] = {}

    async def open(self) -> None:
        self._slots = self._log.execute(
            "SELECT slot, number FROM partition WHERE topic = ? ORDER BY number", (self._topic,)
        ).fetchall()
        self._next = {slot: slot << _OFFSET_BITS for slot, _ in self._slots}

    async def poll(self, rows_max: int) -> list[Row]:
        for slot, number in self._slots:
            first, end = self._next[slot], (slot + 1) << _OFFSET_BITS
            records = self._log.execute(
                "SELECT place, value FROM record WHERE place >= ? AND place < ? ORDER BY place LIMIT ?",
                (first, end, rows_max),
            ).fetchall()
            if records:
                self._next[slot] = records[-1][0] + 1
                return [(number, place, value) for place, value in records]
        await asyncio.sleep(IDLE_S)
        return []

    async def close(self) -> None:
        self._log.close()


class _SqliteTable:
    def __init__(self, settings: Settings) -> None:
        path = make_url(settings.resolved_database_url).database
        assert path is not None
        self._database = sqlite3.connect(path, isolation_level=None, timeout=10)
        self._run = settings.kafka_prefix

    async def open(self) -> None:
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute(_TABLE.format(bytes="BLOB"))

    async def save(self, rows: Sequence[Row]) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        self._database.executemany("INSERT INTO bench_floor VALUES (?, ?, ?, ?)", [(self._run, *row) for row in rows])
        self._database.execute("COMMIT")

    async def close(self) -> None:
        self._database.close()


# --- MLLP -----------------------------------------------------------------------------------------------


class BareDoor:
    """Takes messages over MLLP, appends them to the log, says AA."""

    def __init__(self, settings: Settings) -> None:
        self._log: Log = bootstrap.open_log(settings)
        self._topic = settings.name_on_log(TOPIC)
        self._server: asyncio.Server | None = None

    async def start(self, port: int) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                block = await reader.readuntil(b"\x1c\r")
            except asyncio.IncompleteReadError:
                break
            message = block[1:-2]
            await self._log.append(self._topic, key=None, value=message, headers={})
            writer.write(write_ack(message))
        writer.close()


class PlainLink:
    """Sends messages over one MLLP connection and awaits each answer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, message: bytes) -> None:
        """Send one message; once more over a new connection when the old one has gone."""
        for _ in range(2):
            try:
                reader, writer = self._streams or await asyncio.open_connection("127.0.0.1", self._port)
                self._streams = (reader, writer)
                writer.write(b"\x0b%b\x1c\r" % message)
                await reader.readuntil(b"\x1c\r")
            except (OSError, asyncio.IncompleteReadError):
                self._streams = None
            else:
                return

    async def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()


def read_control_id(message: bytes) -> bytes:
    """MSH-10."""
    return message.split(b"|", 10)[9]


def write_ack(message: bytes) -> bytes:
    """The framed answer AA."""
    return b"\x0bMSH|^~\\&|||||||ACK||P|2.4\rMSA|AA|%b\r\x1c\r" % read_control_id(message)


def opens_visit(message: bytes) -> bool:
    """Whether the department is told something: A04 and A01 of a patient it has just registered."""
    return b"|ADT^A04^" in message[:150]


def write_reply(message: bytes) -> bytes:
    """An ORU^R01 that the department can file: the visit's number, the patient's, an outcome."""
    fields = {line[:3]: line.split(b"|") for line in message.split(b"\r")}
    patient, visit = fields[b"PID"][3].partition(b"^")[0], fields[b"PV1"][19].partition(b"^")[0]
    return (
        b"MSH|^~\\&|BENCH|BENCH|||20260101000000||ORU^R01^ORU_R01|R%b|P|2.4\rPID|1||%b\rPV1|1|U%b%b\r"
        b"OBX|1|CE|OUTCOME||match\rOBX|2|TX|WORDING||Measured only\r"
    ) % (read_control_id(message), patient, b"|" * 17, visit)


async def answer_everything(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A listener that says AA to every message."""
    while True:
        try:
            block = await reader.readuntil(b"\x1c\r")
        except asyncio.IncompleteReadError:
            break
        writer.write(write_ack(block[1:-2]))
    writer.close()
