"""The engines that other tests stand on do what those tests will believe of them, and so do the rules of a run."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from playwright.async_api import Page

from tests import engines
from tests.conftest import Kafka
from tests.engines import EngineError, ForeignRecord, KafkaServer, PostgresServer, TcpProxy, create_topic

REPOSITORY = Path(__file__).parent.parent.parent
EVERY_BYTE = bytes(range(256))
HL7_LIKE = b"MSH|^~\\&|A|B\rPID|1||9990000018\r\nPV1|1\n\r" + EVERY_BYTE + b"\r"


@asynccontextmanager
async def started_producer(bootstrap_servers: str, **options: object) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all", linger_ms=0, **options)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def read_values(bootstrap_servers: str, topic: str, count: int) -> list[bytes | None]:
    return [record.value for record in await read_records(bootstrap_servers, topic, count)]


async def read_records(bootstrap_servers: str, topic: str, count: int) -> Sequence[ConsumerRecord[bytes | None, bytes]]:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap_servers, max_partition_fetch_bytes=8 * 1024 * 1024)
    await consumer.start()
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        async with asyncio.timeout(20):
            return [await consumer.getone() for _ in range(count)]
    finally:
        await consumer.stop()


# Apache Kafka


@pytest.fixture(scope="module")
def mistreated_kafka() -> Iterator[KafkaServer]:
    """One server for the tests that stop, kill and pause it: each leaves it running."""
    server = KafkaServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


async def test_kafka_returns_what_was_produced(kafka_server: Kafka, topic_name: str) -> None:
    await create_topic(kafka_server.bootstrap_servers, topic_name)
    async with started_producer(kafka_server.bootstrap_servers) as producer:
        for value in (b"first", HL7_LIKE, b"third"):
            await producer.send_and_wait(topic_name, value, partition=0)
    assert await read_values(kafka_server.bootstrap_servers, topic_name, 3) == [b"first", HL7_LIKE, b"third"]


async def test_kafka_takes_a_value_of_four_megabytes(kafka_server: Kafka, topic_name: str) -> None:
    value = os.urandom(4 * 1024 * 1024)
    await create_topic(kafka_server.bootstrap_servers, topic_name)
    async with started_producer(kafka_server.bootstrap_servers, max_request_size=8 * 1024 * 1024) as producer:
        await producer.send_and_wait(topic_name, value)
    assert await read_values(kafka_server.bootstrap_servers, topic_name, 1) == [value]


async def test_kafka_admits_a_group_member_with_a_session_of_one_second(kafka_server: Kafka, topic_name: str) -> None:
    await create_topic(kafka_server.bootstrap_servers, topic_name, partitions=3)
    consumer = AIOKafkaConsumer(
        topic_name,
        bootstrap_servers=kafka_server.bootstrap_servers,
        group_id=topic_name,
        session_timeout_ms=1000,
        heartbeat_interval_ms=300,
    )
    async with asyncio.timeout(20):
        await consumer.start()
        try:
            while not consumer.assignment():
                await consumer.getmany(timeout_ms=100)
            assert len(consumer.assignment()) == 3
        finally:
            await consumer.stop()


async def test_kafka_keeps_its_records_and_ports_over_a_restart(mistreated_kafka: KafkaServer, topic_name: str) -> None:
    bootstrap_servers = mistreated_kafka.bootstrap_servers
    await create_topic(bootstrap_servers, topic_name)
    async with started_producer(bootstrap_servers) as producer:
        await producer.send_and_wait(topic_name, b"before the restart")
    first_pid = mistreated_kafka.pid
    await asyncio.to_thread(mistreated_kafka.restart)
    assert mistreated_kafka.pid != first_pid
    assert await read_values(bootstrap_servers, topic_name, 1) == [b"before the restart"]


async def test_killed_kafka_starts_again_with_what_it_had_acknowledged(
    mistreated_kafka: KafkaServer, topic_name: str
) -> None:
    bootstrap_servers = mistreated_kafka.bootstrap_servers
    await create_topic(bootstrap_servers, topic_name)
    async with started_producer(bootstrap_servers) as producer:
        await producer.send_and_wait(topic_name, b"before the kill")
    process = psutil.Process(mistreated_kafka.pid)
    mistreated_kafka.kill()
    assert not process.is_running()
    await asyncio.to_thread(mistreated_kafka.start)
    assert await read_values(bootstrap_servers, topic_name, 1) == [b"before the kill"]


async def test_paused_kafka_does_not_answer_and_resumed_goes_on(mistreated_kafka: KafkaServer, topic_name: str) -> None:
    bootstrap_servers = mistreated_kafka.bootstrap_servers
    await create_topic(bootstrap_servers, topic_name)
    async with started_producer(bootstrap_servers) as producer:
        await producer.send_and_wait(topic_name, b"before")
        mistreated_kafka.pause()
        try:
            held = await producer.send(topic_name, b"while paused")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(held), 0.5)
        finally:
            mistreated_kafka.resume()
        await asyncio.wait_for(held, 20)
        await producer.send_and_wait(topic_name, b"after")
    values = await read_values(bootstrap_servers, topic_name, 3)
    assert values == [b"before", b"while paused", b"after"]


async def test_bytes_from_the_java_client_arrive_exactly_and_without_a_key_none_is_sent(
    kafka_server: Kafka, topic_name: str
) -> None:
    await create_topic(kafka_server.bootstrap_servers, topic_name)
    headers = {"content-type": "application/hl7-v2+er7", "ce_source": "RAX01"}
    sent = [ForeignRecord(value=HL7_LIKE, key="Siân=1", headers=headers), ForeignRecord(value=b"no key")]
    where = await asyncio.to_thread(engines.produce_with_java_client, kafka_server.bootstrap_servers, topic_name, sent)
    assert where == [(0, 0), (0, 1)]
    first, second = await read_records(kafka_server.bootstrap_servers, topic_name, 2)
    assert (first.value, first.key) == (HL7_LIKE, "Siân=1".encode())
    assert first.headers == tuple((name, text.encode()) for name, text in headers.items())
    assert (second.value, second.key) == (b"no key", None)


def test_kafka_that_cannot_start_says_why() -> None:
    server = KafkaServer(settings={"broker.session.timeout.ms": "a while"})
    try:
        with pytest.raises(EngineError, match=r"(?s)Kafka.*Invalid value a while"):
            server.start()
    finally:
        server.close()


def test_interrupted_fetch_of_kafka_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maven = tmp_path / "bin" / "mvn"
    maven.parent.mkdir()
    maven.write_text(
        "#!/bin/sh\n"
        'for argument; do case $argument in -DoutputDirectory=*) jars="${argument#*=}";; esac; done\n'
        'mkdir -p "$jars" && echo half > "$jars/kafka_2.13.jar"\n'
        "echo connection lost; exit 1\n"
    )
    maven.chmod(0o755)
    monkeypatch.setenv("PATH", f"{maven.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(EngineError, match=r"(?s)Maven failed.*connection lost"):
        engines.install_kafka()
    assert list((tmp_path / "cache" / "cpis-broker").iterdir()) == []


# A link that can fail


@pytest.fixture(scope="module")
def kafka_behind_proxy() -> Iterator[tuple[KafkaServer, TcpProxy]]:
    proxy = TcpProxy()
    server = KafkaServer(advertised_port=proxy.port)
    try:
        server.start()
        proxy.start(server.proxied_port)
        yield server, proxy
    finally:
        proxy.close()
        server.close()


async def test_frozen_proxy_stops_a_kafka_client_and_thawed_lets_it_go_on(
    kafka_behind_proxy: tuple[KafkaServer, TcpProxy], topic_name: str
) -> None:
    server, proxy = kafka_behind_proxy
    await create_topic(server.bootstrap_servers, topic_name)
    async with started_producer(proxy.address) as producer:
        await producer.send_and_wait(topic_name, b"before")
        proxy.freeze()
        try:
            held = await producer.send(topic_name, b"held back")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(held), 0.5)
            assert await read_values(server.bootstrap_servers, topic_name, 1) == [b"before"]
        finally:
            proxy.thaw()
        await asyncio.wait_for(held, 20)
    assert await read_values(server.bootstrap_servers, topic_name, 2) == [b"before", b"held back"]


async def test_with_replies_frozen_kafka_appends_what_the_client_never_hears_of(
    kafka_behind_proxy: tuple[KafkaServer, TcpProxy], topic_name: str
) -> None:
    server, proxy = kafka_behind_proxy
    await create_topic(server.bootstrap_servers, topic_name)
    async with started_producer(proxy.address) as producer:
        await producer.partitions_for(topic_name)
        proxy.freeze(requests=False)
        try:
            unheard = await producer.send(topic_name, b"appended")
            assert await read_values(server.bootstrap_servers, topic_name, 1) == [b"appended"]
            assert not unheard.done()
        finally:
            proxy.thaw()
        await asyncio.wait_for(unheard, 20)


async def test_proxy_cuts_connections_and_accepts_new_ones() -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while block := await reader.read(100):
            writer.write(block.upper())
        writer.close()

    proxy = TcpProxy()
    target = await asyncio.start_server(shout, "127.0.0.1", 0)
    try:
        proxy.start(target.sockets[0].getsockname()[1])
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"one")
        assert await reader.read(100) == b"ONE"
        proxy.freeze()
        writer.write(b"two")
        late_reader, late_writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        late_writer.write(b"three")
        proxy.cut()
        assert await reader.read(100) == b"", "cut while frozen: closed, and nothing comes through"
        assert await late_reader.read(100) == b""
        proxy.thaw()
        new_reader, new_writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        new_writer.write(b"four")
        new_writer.write_eof()
        assert await new_reader.read() == b"FOUR", "the end of one direction is passed on, and not of both"
        for each in (writer, late_writer, new_writer):
            each.close()
    finally:
        proxy.close()
        target.close()


# PostgreSQL


def address_of(url: str) -> str:
    return url.replace("postgresql+asyncpg:", "postgresql:")


async def test_postgres_gives_each_test_an_empty_database(postgres_url: str) -> None:
    connection = await asyncpg.connect(address_of(postgres_url))
    try:
        assert await connection.fetchval("SHOW server_encoding") == "UTF8"
        tables = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
        assert await connection.fetchval(tables) == 0
    finally:
        await connection.close()


async def test_postgres_skips_rows_that_another_session_has_locked(postgres_url: str) -> None:
    first = await asyncpg.connect(address_of(postgres_url))
    second = await asyncpg.connect(address_of(postgres_url))
    claim = "SELECT number FROM lane ORDER BY number LIMIT 1 FOR UPDATE SKIP LOCKED"
    try:
        await first.execute("CREATE TABLE lane (number int); INSERT INTO lane VALUES (1), (2)")
        async with first.transaction(), second.transaction():
            assert await first.fetchval(claim) == 1
            assert await second.fetchval(claim) == 2
    finally:
        await first.close()
        await second.close()


async def test_killed_postgres_with_fsync_on_starts_again_with_the_committed_row() -> None:
    server = PostgresServer()
    try:
        server.start()
        url = address_of(server.create_database("kept"))
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("SHOW fsync") == "on"
        await connection.execute("CREATE TABLE word (text text)")
        await connection.execute("INSERT INTO word VALUES ('committed')")
        await connection.execute("BEGIN")
        await connection.execute("INSERT INTO word VALUES ('not committed')")
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
        server.kill()
        assert not any(process.is_running() for process in family)
        connection.terminate()
        await asyncio.to_thread(server.start)
        connection = await asyncpg.connect(url)
        assert [row["text"] for row in await connection.fetch("SELECT text FROM word")] == ["committed"]
        await connection.close()
        assert "database system was not properly shut down" in server.log_path.read_text()
    finally:
        server.close()


def test_postgres_that_cannot_start_says_why() -> None:
    server = PostgresServer(settings={"no_such_parameter": "1"})
    try:
        with pytest.raises(EngineError, match=r"(?s)PostgreSQL ended.*no_such_parameter"):
            server.start()
    finally:
        server.close()


# Every engine


def test_a_port_that_was_given_is_given_to_no_other_process_and_not_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens there yet, and it is taken: another is drawn until none is left."""
    given = engines.free_port()
    only_that = iter((given,))
    monkeypatch.setattr(random, "randrange", lambda *limits: next(only_that))
    with pytest.raises(StopIteration):
        engines.free_port()
    code = (
        "import random; from tests.engines import free_port\n"
        f"only_that = iter(({given},)); random.randrange = lambda *limits: next(only_that)\n"
        "free_port()"
    )
    other = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert other.stderr.splitlines()[-1] == "StopIteration"


def test_engines_die_with_the_process_that_started_them() -> None:
    """Started in a thread that has ended: Linux ties a child to the thread that made it, not to the process."""
    program = (
        "import threading, time\n"
        "from tests.engines import PostgresServer\n"
        "server = PostgresServer()\n"
        "thread = threading.Thread(target=server.start)\n"
        "thread.start()\n"
        "thread.join()\n"
        "server.create_database('alive')\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        with subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            env={**os.environ, "TMPDIR": scratch},
        ) as process:
            assert process.stdout is not None
            postgres = psutil.Process(int(process.stdout.readline()))
            assert "postgres" in postgres.name()
            process.kill()
        assert psutil.wait_procs([postgres], timeout=10)[1] == []


# Chromium


@contextmanager
def served_page(html: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


async def test_chromium_shows_a_page_and_clicks_its_button(page: Page) -> None:
    html = (
        "<title>Inbox</title><p>unopened</p><button onclick=\"document.querySelector('p').textContent='opened'\">Open"
    )
    with served_page(html) as url:
        await page.goto(url)
        assert await page.title() == "Inbox"
        await page.get_by_role("button", name="Open").click()
        assert await page.get_by_text("opened", exact=True).is_visible()


# The rules of a run


def run_pytest(tmp_path: Path, tests: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run these tests under the rules of tests/conftest.py, in a process of their own."""
    path = tmp_path / "test_rules.py"
    path.write_text(tests)
    environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "100"}
    command = [sys.executable, "-m", "pytest", "-c", str(REPOSITORY / "pyproject.toml"), "-p", "tests.conftest"]
    command += ["-p", "no:cacheprovider", str(path), *arguments]
    return subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "reason_to_pass", ["@pytest.mark.skip", "@pytest.mark.xfail", "@pytest.mark.skipif(True, reason='')"]
)
def test_run_fails_when_a_test_was_skipped(tmp_path: Path, reason_to_pass: str) -> None:
    tests = f"import pytest\ndef test_good(): pass\n{reason_to_pass}\ndef test_left_out(): assert False\n"
    run = run_pytest(tmp_path, tests)
    assert run.returncode == 1, run.stdout
    assert "skipped tests fail the run" in run.stdout
    assert "test_left_out" in run.stdout.split("skipped tests fail the run")[1]
    assert "1 passed" in run.stdout


@pytest.mark.parametrize("processes", ["0", "2"])
def test_run_fails_when_a_module_skips_itself(tmp_path: Path, processes: str) -> None:
    tests = "import pytest\npytest.skip('not today', allow_module_level=True)\n"
    run = run_pytest(tmp_path, tests, "-n", processes)
    assert "1 error" in run.stdout, run.stdout
    assert "not today" in run.stdout


def test_run_in_two_processes_fails_when_a_test_was_skipped(tmp_path: Path) -> None:
    tests = "import pytest\ndef test_good(): pass\n@pytest.mark.skip\ndef test_left_out(): assert False\n"
    run = run_pytest(tmp_path, tests, "-n", "2")
    assert run.returncode == 1, run.stdout
    assert "test_left_out" in run.stdout.split("skipped tests fail the run")[1]


def test_soak_tests_run_only_when_asked_for(tmp_path: Path) -> None:
    tests = "import pytest\ndef test_short(): pass\n@pytest.mark.soak\ndef test_long(): pass\n"
    run = run_pytest(tmp_path, tests)
    assert run.returncode == 0, run.stdout
    assert "1 passed, 1 deselected" in run.stdout
    assert "2 passed" in run_pytest(tmp_path, tests, "--soak").stdout


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('192.0.2.1', 80), timeout=1)",
        "socket.create_connection(('service.example.org', 80), timeout=1)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('192.0.2.1', 53))",
    ],
)
def test_reaching_another_machine_fails_the_test_even_if_it_hides_it(tmp_path: Path, attempt: str) -> None:
    tests = (
        "import contextlib, socket\n"
        "def test_hides_it():\n"
        "    with contextlib.suppress(Exception):\n"
        f"        {attempt}\n"
    )
    run = run_pytest(tmp_path, tests)
    assert run.returncode == 1, run.stdout
    assert "the test tried to reach another machine" in run.stdout


def test_loopback_and_unix_sockets_are_allowed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        socket.create_connection(("localhost", listener.getsockname()[1]), timeout=5).close()
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        listener.listen()
        client.connect(path)
