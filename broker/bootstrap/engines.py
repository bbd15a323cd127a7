"""Which database and which log: Kafka and PostgreSQL where the settings name them, else the embedded ones."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

from adapters.errors import LogError
from adapters.sqlite_log import SqliteLog, SqliteLogOptions, SqliteLogReader
from broker import topics
from broker.bootstrap.report import report_wire
from broker.telemetry import LogEvent, log

if TYPE_CHECKING:
    from adapters.kafka_options import KafkaOptions
    from broker.ports import Log, LogReader, TrimmedLog
    from broker.settings import Settings
    from broker.storage.database import Database


async def check_engines(settings: Settings) -> list[str]:
    """What the engines themselves say against running on them."""
    problems = []
    database = open_database(settings)
    if not await database.answers():
        problems.append("CPIS_DATABASE_URL: the database does not answer")
    await database.close()
    log_ = open_log(settings)
    try:
        await log_.extents(settings.name_on_log(topics.ATTENDANCES))
        for name in (topics.ATTENDANCES, topics.INCIDENTS):
            problems += await _check_topic(settings, settings.name_on_log(name))
    except LogError:
        problems.append("CPIS_KAFKA_BOOTSTRAP_SERVERS: the log does not answer, or its topics are not made yet")
    finally:
        await log_.close()
    return problems


async def _check_topic(settings: Settings, topic: str) -> list[str]:
    """An attendance or an incident that was acknowledged must outlive a broker of the log."""
    if settings.is_development or not settings.kafka_bootstrap_servers:
        return []
    from adapters.kafka import describe_durability

    durability = await describe_durability(_kafka_options(settings), topic)
    if durability.survives_a_lost_broker:
        return []
    return [
        f"topic {topic}: {durability.replicas} replicas, min.insync.replicas={durability.replicas_in_step_min}; "
        "it needs 3 replicas with min.insync.replicas=2, or flush.messages=1"
    ]


def open_database(settings: Settings, *, statement_timeout_s: float = 30.0, inline: bool = False) -> Database:
    """The database of the settings; ``inline`` for who does nothing else while SQLite runs a statement."""
    from broker.storage.database import Database

    return Database(
        settings.resolved_database_url,
        connections_max=settings.database_connections_max,
        statement_timeout_s=statement_timeout_s,
        inline=inline,
    )


def open_watched_database(settings: Settings, *, inline: bool = False) -> Database:
    """For a part that must show life: a database that hangs makes it fail and try again before it is ended."""
    return open_database(settings, statement_timeout_s=settings.silent_exit_s * 0.4, inline=inline)


def open_log(settings: Settings) -> Log:
    """The append side of the log of the settings."""
    if settings.kafka_bootstrap_servers:
        from adapters.kafka import KafkaLog

        return KafkaLog(_kafka_options(settings), on_event=report_wire)
    return SqliteLog(_sqlite_options(settings))


def open_trimmed_log(settings: Settings) -> TrimmedLog | None:
    """The embedded log, whose old records the jobs part drops; None on Kafka, which drops its own."""
    return None if settings.kafka_bootstrap_servers else SqliteLog(_sqlite_options(settings))


def open_reader(settings: Settings, *, topic: str, group: str) -> LogReader:
    """A member of a consumer group."""
    member = f"{socket.gethostname()}-{os.getpid()}"
    if settings.kafka_bootstrap_servers:
        from adapters.kafka import KafkaLogReader

        return KafkaLogReader(_kafka_options(settings), topic=topic, group=group, member=member, on_event=report_wire)
    return SqliteLogReader(_sqlite_options(settings), topic=topic, group=group, member=member)


async def prepare_topics(settings: Settings) -> None:
    """Make the topics that are missing; an outage is tried again later."""
    if settings.kafka_bootstrap_servers:
        from adapters.kafka import ensure_topics

        replicas = 1 if settings.is_development else settings.kafka_replication_factor
        partitions = {settings.name_on_log(name): settings.log_partitions for name in topics.TOPICS}
        safely = {
            "min.insync.replicas": str(max(1, replicas - 1)),
            "retention.ms": str(round(settings.log_retention_days * 86_400_000)),
        }
        await ensure_topics(_kafka_options(settings), partitions, replication_factor=replicas, settings=safely)
        return
    embedded = SqliteLog(_sqlite_options(settings))
    try:
        for name in (topics.ATTENDANCES, topics.INCIDENTS):
            await embedded.create_topic(settings.name_on_log(name), settings.log_partitions)
    finally:
        await embedded.close()


async def until_prepared(settings: Settings) -> None:
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


def _kafka_options(settings: Settings) -> KafkaOptions:
    from adapters.kafka_options import KafkaOptions

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
