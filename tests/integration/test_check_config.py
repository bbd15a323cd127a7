"""``check-config`` says what must not stay as it is, on real engines."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.errors import LogUnavailable
from adapters.kafka import describe_durability, ensure_topics
from adapters.kafka_options import KafkaOptions
from broker.keyring import generate_key
from tests.conftest import Kafka


async def test_a_topic_on_one_broker_is_not_durable_unless_it_flushes(kafka_server: Kafka, topic_name: str) -> None:
    options = KafkaOptions(bootstrap_servers=kafka_server.bootstrap_servers)
    flushing = f"{topic_name}-flushing"
    await ensure_topics(options, {topic_name: 1}, replication_factor=1)
    await ensure_topics(options, {flushing: 1}, replication_factor=1, settings={"flush.messages": "1"})
    assert not (await describe_durability(options, topic_name)).survives_a_lost_broker
    assert (await describe_durability(options, flushing)).survives_a_lost_broker
    with pytest.raises(LogUnavailable):
        await describe_durability(options, f"{topic_name}-missing")


def check_config(directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CPIS_")}
    return subprocess.run(
        [sys.executable, "-m", "broker", "check-config"],
        env=environment | {"CPIS_DATA_DIR": str(directory), "COLUMNS": "200"} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


async def test_unsafe_production_is_told_apart_from_safe(
    kafka_server: Kafka, topic_name: str, postgres_url: str, tmp_path: Path
) -> None:
    options = KafkaOptions(bootstrap_servers=kafka_server.bootstrap_servers)
    await ensure_topics(options, {f"{topic_name}.attendances": 1}, replication_factor=1)
    secret = generate_key()
    distributed = {
        "CPIS_KAFKA_BOOTSTRAP_SERVERS": kafka_server.bootstrap_servers,
        "CPIS_KAFKA_PREFIX": f"{topic_name}.",
        "CPIS_DATABASE_URL": postgres_url,
        "CPIS_FIELD_KEYS": f"k1:{secret}",
        "CPIS_INDEX_KEY": generate_key(),
    }
    unsafe, development = await asyncio.gather(
        asyncio.to_thread(check_config, tmp_path, **distributed),
        asyncio.to_thread(check_config, tmp_path, CPIS_ENVIRONMENT="development", **distributed),
    )
    assert unsafe.returncode == 1
    for expected in ("MLLP must be encrypted", "by https", "without TLS only in development", "min.insync.replicas=2"):
        assert expected in unsafe.stderr, json.dumps(unsafe.stderr)
    assert (development.returncode, development.stderr) == (0, "")
    assert "CPIS_KAFKA_PREFIX" in development.stdout
    assert "CPIS_MLLP_PORT" not in development.stdout, "what stands at its default hides what was set"
    mistyped = await asyncio.to_thread(
        check_config, tmp_path, CPIS_ENVIRONMENT="development", CPIS_WEBHOOK_ALOW_PRIVATE="true", **distributed
    )
    assert "CPIS_WEBHOOK_ALOW_PRIVATE: there is no such setting" in mistyped.stderr
    assert secret not in unsafe.stdout + development.stdout
