"""The only place that chooses adapters and wires the parts together."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

import uvicorn

from adapters.errors import LogError
from adapters.fhir_reply import FhirReplyChannel
from adapters.hl7v2_reply import Hl7v2ReplyChannel
from adapters.kafka import KafkaLog, KafkaLogReader, describe_durability, ensure_topics
from adapters.kafka_options import KafkaOptions
from adapters.mllp import MllpClient, MllpClientOptions, MllpOptions, MllpServer
from adapters.posting import PostingOptions
from adapters.sqlite_log import SqliteLog, SqliteLogOptions, SqliteLogReader
from adapters.topic import TopicChannel, TopicOptions
from adapters.webhook import WebhookChannel, WebhookOptions
from broker import telemetry
from broker.announcement import Rules
from broker.clock import SystemClock
from broker.consumers import attendance
from broker.consumers.attendance import AttendanceConsumer
from broker.consumers.loop import ConsumeLoop, LoopOptions
from broker.dispatcher import Dispatcher, DispatchOptions
from broker.domain.visibility import Windows
from broker.doors import DoorLimits, create_doors, join_doors
from broker.intake import Intake
from broker.jobs.runner import JobOptions, JobRunner
from broker.keyring import Keyring, KeyringError, generate_key, parse_keys
from broker.liveness import Liveness, Vitals, is_ready, measure_quiet_s, read_statuses
from broker.ports import Channel, Log, LogReader
from broker.replay import Replayer
from broker.senders import SNAPSHOT_NAME, Senders
from broker.settings import Settings
from broker.storage import ledger
from broker.storage.database import Database
from broker.storage.ledger import AlertLedger, TopicLedger
from broker.storage.wakeups import listen_for_deliveries
from broker.telemetry import LogEvent, log
from broker.web.app import create_app
from broker.web.operations import PartShown, Status, compose_status
from schemas.delivery import ChannelName


class PartName(StrEnum):
    """The parts of the broker, each a process of its own."""

    INTAKE = "intake"
    ATTENDANCES = "attendances"
    DISPATCH = "dispatch"
    JOBS = "jobs"
    WEB = "web"


class ConfigurationError(Exception):
    """A setting is missing or unsafe; the text says which and what to do."""


class Part(Vitals, Protocol):
    """One running part."""

    async def run(self) -> None:
        """Work until stopped."""
        ...

    def stop(self) -> None:
        """Finish what is in hand and end."""
        ...


TOPIC_OF_OWNER: Final = {"authority": "social-care-alerts", "organisation": "clinician-replies"}
"""Where Kafka users find what is for them."""
TOPICS: Final = (attendance.TOPIC, *TOPIC_OF_OWNER.values())
DEVELOPMENT_KEYS_NAME: Final = "development-keys"
KAFKA_REPLICAS_MIN: Final = 3
"""With ``acks=all`` and one replica allowed to be away, what was acknowledged survives the loss of a server."""


def load_keyring(settings: Settings) -> Keyring:
    """The keyring of the settings; in development, keys are made once and kept in the data directory."""
    field_keys, index_key = settings.field_keys.get_secret_value(), settings.index_key.get_secret_value()
    if not field_keys and not index_key and settings.is_development:
        field_keys, index_key = _development_keys(settings.data_dir / DEVELOPMENT_KEYS_NAME)
    if not field_keys or not index_key:
        raise ConfigurationError("set CPIS_FIELD_KEYS and CPIS_INDEX_KEY (cpis-broker keys generate makes both)")
    try:
        return Keyring(parse_keys(field_keys), parse_keys(f"index:{index_key}")["index"])
    except KeyringError as error:
        raise ConfigurationError(f"CPIS_FIELD_KEYS or CPIS_INDEX_KEY: {error}") from error


def check_safety(settings: Settings) -> list[str]:
    """What must not stay as it is outside development."""
    if settings.is_development:
        return []
    problems = []
    if settings.mllp_tls_certificate_file is None or settings.mllp_tls_key_file is None:
        problems.append("CPIS_MLLP_TLS_CERTIFICATE_FILE and CPIS_MLLP_TLS_KEY_FILE: MLLP must be encrypted")
    if not settings.public_url.startswith("https://"):
        problems.append("CPIS_PUBLIC_URL: people must reach the pages by https")
    if settings.webhook_allow_private and not settings.webhook_allowed_hosts:
        problems.append("CPIS_WEBHOOK_ALLOW_PRIVATE: only with the hosts named in CPIS_WEBHOOK_ALLOWED_HOSTS")
    if settings.fhir_reply_allow_private and not settings.fhir_reply_allowed_hosts:
        problems.append("CPIS_FHIR_REPLY_ALLOW_PRIVATE: only with the hosts named in CPIS_FHIR_REPLY_ALLOWED_HOSTS")
    if not settings.mllp_reply_tls:
        problems.append("CPIS_MLLP_REPLY_TLS: replies must be encrypted")
    if settings.kafka_bootstrap_servers and settings.kafka_security_protocol in ("PLAINTEXT", "SASL_PLAINTEXT"):
        problems.append("CPIS_KAFKA_SECURITY_PROTOCOL: without TLS only in development")
    if settings.kafka_bootstrap_servers and settings.kafka_replication_factor < KAFKA_REPLICAS_MIN:
        problems.append("CPIS_KAFKA_REPLICATION_FACTOR: an attendance that stands on fewer than 3 servers can be lost")
    return problems


async def check_engines(settings: Settings) -> list[str]:
    """What the engines themselves say against running on them."""
    problems = []
    database = open_database(settings)
    if not await database.answers():
        problems.append("CPIS_DATABASE_URL: the database does not answer")
    await database.close()
    log_ = open_log(settings)
    try:
        await log_.extents(settings.name_on_log(attendance.TOPIC))
        problems += await _check_topic(settings)
    except LogError:
        problems.append("CPIS_KAFKA_BOOTSTRAP_SERVERS: the log does not answer, or its topics are not made yet")
    finally:
        await log_.close()
    return problems


async def _check_topic(settings: Settings) -> list[str]:
    """An attendance that was acknowledged must outlive a broker of the log."""
    if settings.is_development or not settings.kafka_bootstrap_servers:
        return []
    topic = settings.name_on_log(attendance.TOPIC)
    durability = await describe_durability(_kafka_options(settings), topic)
    if durability.survives_a_lost_broker:
        return []
    return [
        f"topic {topic}: {durability.replicas} replicas, min.insync.replicas={durability.replicas_in_step_min}; "
        "it needs 3 replicas with min.insync.replicas=2, or flush.messages=1"
    ]


def open_database(settings: Settings, *, statement_timeout_s: float = 30.0) -> Database:
    """The database of the settings."""
    return Database(
        settings.resolved_database_url,
        connections_max=settings.database_connections_max,
        statement_timeout_s=statement_timeout_s,
    )


def _open_watched_database(settings: Settings) -> Database:
    """For a part that must show life: a database that hangs makes it fail and try again before it is ended."""
    return open_database(settings, statement_timeout_s=settings.silent_exit_s * 0.4)


def open_log(settings: Settings) -> Log:
    """The append side of the log of the settings."""
    if settings.kafka_bootstrap_servers:
        return KafkaLog(_kafka_options(settings), on_event=_report_wire)
    return SqliteLog(_sqlite_options(settings))


def open_reader(settings: Settings, *, topic: str, group: str) -> LogReader:
    """A member of a consumer group."""
    member = f"{socket.gethostname()}-{os.getpid()}"
    if settings.kafka_bootstrap_servers:
        return KafkaLogReader(_kafka_options(settings), topic=topic, group=group, member=member, on_event=_report_wire)
    return SqliteLogReader(_sqlite_options(settings), topic=topic, group=group, member=member)


async def prepare_topics(settings: Settings) -> None:
    """Make the topics that are missing; an outage is tried again later."""
    if settings.kafka_bootstrap_servers:
        replicas = 1 if settings.is_development else settings.kafka_replication_factor
        partitions = {settings.name_on_log(name): settings.log_partitions for name in TOPICS}
        safely = {"min.insync.replicas": str(max(1, replicas - 1))}
        await ensure_topics(_kafka_options(settings), partitions, replication_factor=replicas, settings=safely)
        return
    embedded = SqliteLog(_sqlite_options(settings))
    try:
        await embedded.create_topic(settings.name_on_log(attendance.TOPIC), settings.log_partitions)
    finally:
        await embedded.close()


async def count_ledger(settings: Settings, database: Database) -> tuple[TopicLedger, AlertLedger]:
    """Count both conservation laws. Raises LogUnavailable."""
    log_ = open_log(settings)
    try:
        extents = await log_.extents(settings.name_on_log(attendance.TOPIC))
    finally:
        await log_.close()
    async with database.reading() as connection:
        group, name = settings.name_on_log(attendance.GROUP), settings.name_on_log(attendance.TOPIC)
        topic = await ledger.count_topic(connection, group, name, extents)
        return topic, await ledger.count_alerts(connection)


@asynccontextmanager
async def open_replayer(settings: Settings, database: Database) -> AsyncIterator[Replayer]:
    """What asks for replays on the engines of the settings."""
    log_ = open_log(settings)
    try:
        yield Replayer(
            database,
            log_,
            load_keyring(settings),
            SystemClock(),
            topic=settings.name_on_log(attendance.TOPIC),
            group=settings.name_on_log(attendance.GROUP),
        )
    finally:
        await log_.close()


def rules_of(settings: Settings) -> Rules:
    """How people are told, by the settings."""
    return Rules(
        escalation=timedelta(minutes=settings.escalation_minutes),
        look_back=timedelta(hours=settings.look_back_hours),
        list_stale=timedelta(hours=settings.list_stale_hours),
        windows=Windows(plan_days=settings.plan_shown_days, unborn_days=settings.unborn_plan_shown_days),
        topics_enabled=bool(settings.kafka_bootstrap_servers),
    )


def run_part(name: PartName, settings: Settings, *, beat_fd: int | None) -> int:
    """Run one part in this process until SIGTERM, or until its supervisor is gone; returns the exit code."""
    telemetry.configure(name.value)
    log(LogEvent.PART_STARTED, part=name.value, pid=os.getpid())
    return asyncio.run(_run(name, settings, beat_fd))


async def _run(name: PartName, settings: Settings, beat_fd: int | None) -> int:
    problems = check_safety(settings)
    if problems:
        raise ConfigurationError("; ".join(problems))
    with Liveness(name.value, settings.data_dir, exit_s=settings.silent_exit_s, beat_fd=beat_fd) as liveness:
        async with _PARTS[name](settings) as part:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, part.stop)
            liveness.follow(part)
            log(LogEvent.PART_READY, part=name.value)
            await part.run()
    log(LogEvent.PART_STOPPED, part=name.value)
    return 0


class IntakePart:
    """The MLLP door, and a look at the log now and then: a door that cannot keep anything is not ready."""

    def __init__(self, server: MllpServer, log_: Log, settings: Settings) -> None:
        self._server = server
        self._log = log_
        self._settings = settings
        self._stopping = asyncio.Event()
        self.alive_at = self.worked_at = time.monotonic()

    def stop(self) -> None:
        """Take nothing more, answer what was taken."""
        self._stopping.set()

    async def run(self) -> None:
        """Listen until stopped."""
        await self._server.start(self._settings.mllp_host, self._settings.mllp_port, ssl=_server_tls(self._settings))
        try:
            while not self._stopping.is_set():
                try:
                    await self._log.extents(self._settings.name_on_log(attendance.TOPIC))
                    self.alive_at = self.worked_at = time.monotonic()
                except LogError as error:
                    log(LogEvent.LOG_UNAVAILABLE, group="intake", error=type(error).__name__)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), self._settings.contact_interval_s)
        finally:
            await self._server.close(drain_timeout_s=self._settings.log_append_timeout_s)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would take the signals for itself; here every part is stopped alike."""
        yield


class WebPart:
    """The pages."""

    def __init__(self, server: uvicorn.Server) -> None:
        self._server = server
        self.alive_at = self.worked_at = time.monotonic()

    def stop(self) -> None:
        """Finish the requests in hand and end."""
        self._server.should_exit = True

    async def run(self) -> None:
        """Serve until stopped."""
        beating = asyncio.create_task(self._keep_beating())
        try:
            await self._server.serve()
        finally:
            beating.cancel()

    async def _keep_beating(self) -> None:
        while True:
            # The pages are served from this very event loop: that it turns is that they live.
            self.alive_at = self.worked_at = time.monotonic()
            await asyncio.sleep(1)


class DispatchPart:
    """The dispatcher and its ear for new deliveries."""

    def __init__(self, dispatcher: Dispatcher, database: Database) -> None:
        self._dispatcher = dispatcher
        self._database = database

    @property
    def alive_at(self) -> float:
        """When the dispatcher last looked for work."""
        return self._dispatcher.alive_at

    @property
    def worked_at(self) -> float:
        """When it last could look for work."""
        return self._dispatcher.worked_at

    def stop(self) -> None:
        """Finish the attempts in hand and end."""
        self._dispatcher.stop()

    async def run(self) -> None:
        """Dispatch until stopped."""
        listening = asyncio.create_task(listen_for_deliveries(self._database, self._dispatcher.wake))
        try:
            await self._dispatcher.run()
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening


@asynccontextmanager
async def _intake(settings: Settings) -> AsyncIterator[Part]:
    keyring = load_keyring(settings)
    await _until_prepared(settings)
    log_ = open_log(settings)
    senders = Senders(settings.data_dir / SNAPSHOT_NAME, keyring)
    intake = Intake(log_, settings.name_on_log(attendance.TOPIC), keyring, senders, SystemClock())
    options = MllpOptions(
        frame_bytes_max=settings.mllp_frame_bytes_max,
        connections_max=settings.mllp_connections_max,
        pipelined_max=settings.mllp_pipelined_max,
        idle_timeout_s=settings.mllp_idle_timeout_s,
        frame_timeout_s=settings.mllp_frame_timeout_s,
    )
    server = MllpServer(intake.accept_hl7v2, options, on_event=_report_wire)
    try:
        yield IntakePart(server, log_, settings)
    finally:
        await log_.close()


@asynccontextmanager
async def _attendances(settings: Settings) -> AsyncIterator[Part]:
    await _until_prepared(settings)
    database, log_ = _open_watched_database(settings), open_log(settings)
    consumer = AttendanceConsumer(database, log_, load_keyring(settings), SystemClock(), rules_of(settings))
    options = LoopOptions(
        group=settings.name_on_log(attendance.GROUP),
        records_max=settings.batch_records_max,
        poll_wait_s=settings.poll_wait_s,
        contact_interval_s=settings.contact_interval_s,
        poison_attempts_max=settings.poison_attempts_max,
    )
    reader = open_reader(
        settings, topic=settings.name_on_log(attendance.TOPIC), group=settings.name_on_log(attendance.GROUP)
    )
    try:
        yield ConsumeLoop(reader, consumer, database, SystemClock(), options)
    finally:
        await log_.close()
        await database.close()


@asynccontextmanager
async def _dispatch(settings: Settings) -> AsyncIterator[Part]:
    database = _open_watched_database(settings)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        channels = open_channels(settings)
        for channel in channels.values():
            stack.push_async_callback(channel.close)
        options = DispatchOptions(
            name=f"{socket.gethostname()}-{os.getpid()}",
            topics={kind: settings.name_on_log(name) for kind, name in TOPIC_OF_OWNER.items()},
            lease=timedelta(seconds=settings.delivery_lease_s),
            lanes_max=settings.delivery_lanes_max,
            deliveries_max=settings.delivery_batch_max,
            attempt_timeout_s=settings.delivery_timeout_s,
            give_up=timedelta(hours=settings.delivery_give_up_hours),
            poll_s=settings.dispatch_poll_s,
        )
        dispatcher = Dispatcher(database, load_keyring(settings), SystemClock(), channels, options)
        yield DispatchPart(dispatcher, database)


@asynccontextmanager
async def _jobs(settings: Settings) -> AsyncIterator[Part]:
    database = _open_watched_database(settings)
    options = JobOptions(lease=timedelta(seconds=settings.job_lease_s))
    try:
        yield JobRunner(database, load_keyring(settings), SystemClock(), rules_of(settings), options)
    finally:
        await database.close()


@asynccontextmanager
async def _web(settings: Settings) -> AsyncIterator[Part]:
    database, log_, keyring = open_database(settings), open_log(settings), load_keyring(settings)
    pages = create_app(
        database=database,
        keyring=keyring,
        clock=SystemClock(),
        settings=settings,
        status=lambda: read_status(settings, database),
    )
    senders = Senders(settings.data_dir / SNAPSHOT_NAME, keyring)
    intake = Intake(log_, settings.name_on_log(attendance.TOPIC), keyring, senders, SystemClock())
    limits = DoorLimits(
        body_bytes_max=settings.fhir_bundle_bytes_max,
        body_timeout_s=settings.fhir_body_timeout_s,
        requests_max=settings.fhir_requests_max,
    )
    server = _Server(
        uvicorn.Config(
            join_doors(create_doors(intake, senders, limits), pages),
            host=settings.http_host,
            port=settings.http_port,
            access_log=False,
            log_config=None,
            server_header=False,
            limit_concurrency=settings.http_connections_max,
            timeout_graceful_shutdown=10,
        )
    )
    try:
        yield WebPart(server)
    finally:
        await log_.close()
        await database.close()


_PARTS: Final[Mapping[PartName, Callable[[Settings], AbstractAsyncContextManager[Part]]]] = {
    PartName.INTAKE: _intake,
    PartName.ATTENDANCES: _attendances,
    PartName.DISPATCH: _dispatch,
    PartName.JOBS: _jobs,
    PartName.WEB: _web,
}


def open_channels(settings: Settings) -> dict[ChannelName, Channel]:
    """The ways out that the settings allow."""
    channels: dict[ChannelName, Channel] = {
        ChannelName.WEBHOOK: WebhookChannel(
            WebhookOptions(
                read_timeout_s=settings.delivery_timeout_s,
                total_timeout_s=settings.delivery_timeout_s,
                allowed_hosts=_hosts(settings.webhook_allowed_hosts),
                allow_plain_http=settings.webhook_allow_private and settings.is_development,
                allow_private_addresses=settings.webhook_allow_private,
            ),
            on_event=_report_wire,
            now=SystemClock().now,
            tls=_client_tls(settings.webhook_ca_file),
        ),
        ChannelName.HL7V2_REPLY: Hl7v2ReplyChannel(
            MllpClient(
                MllpClientOptions(answer_timeout_s=settings.delivery_timeout_s),
                _client_tls(settings.mllp_reply_ca_file) if settings.mllp_reply_tls else None,
            )
        ),
        ChannelName.FHIR_REPLY: FhirReplyChannel(
            PostingOptions(
                read_timeout_s=settings.delivery_timeout_s,
                total_timeout_s=settings.delivery_timeout_s,
                allowed_hosts=_hosts(settings.fhir_reply_allowed_hosts),
                allow_plain_http=settings.fhir_reply_allow_private and settings.is_development,
                allow_private_addresses=settings.fhir_reply_allow_private,
            ),
            on_event=_report_wire,
            now=SystemClock().now,
            tls=_client_tls(settings.fhir_reply_ca_file),
        ),
    }
    if settings.kafka_bootstrap_servers:
        channels[ChannelName.TOPIC] = TopicChannel(open_log(settings), TopicOptions())
    return channels


async def read_status(settings: Settings, database: Database) -> Status:
    """How the broker is, for operators; counts and ages only."""
    now = time.time()
    parts = tuple(
        PartShown(
            name=status.part,
            state=status.state if is_ready(status, now=now, silent_s=settings.silent_not_ready_s) else "not ready",
            silent_s=measure_quiet_s(status, now=now),
            ready=is_ready(status, now=now, silent_s=settings.silent_not_ready_s),
        )
        for status in read_statuses(settings.data_dir)
        if status.state != "stopped"
    )
    return await compose_status(database, parts)


def _kafka_options(settings: Settings) -> KafkaOptions:
    return KafkaOptions(
        bootstrap_servers=settings.kafka_bootstrap_servers,
        security_protocol=settings.kafka_security_protocol,
        tls_authorities_path=settings.kafka_ca_file,
        tls_certificate_path=settings.kafka_certificate_file,
        tls_key_path=settings.kafka_key_file,
        sasl_mechanism=settings.kafka_sasl_mechanism,
        sasl_username=settings.kafka_sasl_username or None,
        sasl_password=settings.kafka_sasl_password.get_secret_value() or None,
        append_timeout_s=settings.log_append_timeout_s,
        session_timeout_s=settings.kafka_session_timeout_s,
        heartbeat_s=min(3.0, settings.kafka_session_timeout_s / 4),
    )


def _sqlite_options(settings: Settings) -> SqliteLogOptions:
    return SqliteLogOptions(
        path=settings.data_dir / "log.sqlite",
        partitions=settings.log_partitions,
        append_timeout_s=settings.log_append_timeout_s,
    )


def _hosts(text: str) -> frozenset[str]:
    return frozenset(host.strip().lower() for host in text.split(",") if host.strip())


def _client_tls(authorities: Path | None) -> ssl.SSLContext:
    """Verify the other side against its own certificate authority, or the public ones."""
    return ssl.create_default_context(cafile=authorities)


def _server_tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.mllp_tls_certificate_file is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.mllp_tls_certificate_file, settings.mllp_tls_key_file)
        if settings.mllp_tls_client_ca_file is not None:
            context.load_verify_locations(settings.mllp_tls_client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # ssl.SSLError is one
        names = "CPIS_MLLP_TLS_CERTIFICATE_FILE, CPIS_MLLP_TLS_KEY_FILE or CPIS_MLLP_TLS_CLIENT_CA_FILE"
        raise ConfigurationError(f"{names} cannot be read or do not fit together") from error
    return context


async def _until_prepared(settings: Settings) -> None:
    """Wait for the log: a part that starts before its servers must not die of it."""
    for wait_s in (0.5, 1, 2, 4, 8):
        try:
            await prepare_topics(settings)
        except LogError as error:
            log(LogEvent.LOG_UNAVAILABLE, group="start", error=type(error).__name__)
            await asyncio.sleep(wait_s)
        else:
            return
    await prepare_topics(settings)


def _report_wire(happening: str, facts: Mapping[str, int | str]) -> None:
    log(LogEvent.MLLP, happening=happening, **facts)


def _development_keys(path: Path) -> tuple[str, str]:
    """Keys made once for this data directory; two parts that start together agree on whoever was first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.touch(mode=0o600)
    temporary.write_text(f"dev:{generate_key()}\n{generate_key()}\n")
    with suppress(FileExistsError):
        path.hardlink_to(temporary)
    temporary.unlink()
    field_keys, index_key = path.read_text().split()
    return field_keys, index_key
