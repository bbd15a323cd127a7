"""How to reach Apache Kafka, and the limits."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

READ_COMMITTED = 1
RECORD_OVERHEAD_BYTES = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class KafkaOptions:
    """How to reach Kafka, and the limits.

    ``rebalance_timeout_s`` is what ``on_revoked`` may take at most. A request of a reader may take longer by
    ``request_timeout_s``: so long a reader needs to notice by itself that a connection has gone silent.
    """

    bootstrap_servers: str
    client_id: str = "cpis-broker"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    tls_authorities_path: Path | None = None
    tls_certificate_path: Path | None = None
    tls_key_path: Path | None = None
    tls_key_password: str | None = field(default=None, repr=False)
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    sasl_username: str | None = None
    sasl_password: str | None = field(default=None, repr=False)
    append_timeout_s: float = 10.0
    request_timeout_s: float = 4.0
    contact_timeout_s: float = 5.0
    start_timeout_s: float = 15.0
    close_timeout_s: float = 5.0
    create_timeout_s: float = 30.0
    session_timeout_s: float = 10.0
    heartbeat_s: float = 3.0
    rebalance_timeout_s: float = 20.0
    poll_interval_max_s: float = 300.0
    metadata_age_max_s: float = 30.0
    topic_check_s: float = 5.0
    appends_max: int = 20_000
    record_bytes_max: int = 4 * 1024 * 1024
    batch_bytes_max: int = 256 * 1024
    fetch_bytes_max: int = 16 * 1024 * 1024
    fetch_wait_s: float = 0.5

    def __post_init__(self) -> None:
        """Raises ValueError where limits contradict each other."""
        if self.session_timeout_s < 3 * self.heartbeat_s:
            raise ValueError("session_timeout_s must be at least three times heartbeat_s")
        if self.security_protocol.startswith("SASL") and not (self.sasl_username and self.sasl_password):
            raise ValueError("SASL needs sasl_username and sasl_password")

    def client_settings(self) -> dict[str, Any]:
        """What every aiokafka client is given."""
        return {
            "bootstrap_servers": self.bootstrap_servers,
            "client_id": self.client_id,
            "request_timeout_ms": milliseconds(self.request_timeout_s),
            "metadata_max_age_ms": milliseconds(self.metadata_age_max_s),
            "security_protocol": self.security_protocol,
            "ssl_context": self._make_tls() if self.security_protocol.endswith("SSL") else None,
            "sasl_mechanism": self.sasl_mechanism,
            "sasl_plain_username": self.sasl_username,
            "sasl_plain_password": self.sasl_password,
        }

    def producer_settings(self) -> dict[str, Any]:
        """Nothing is confirmed before every in-sync replica has it, and a retry never doubles or reorders."""
        return {
            **self.client_settings(),
            "acks": "all",
            "enable_idempotence": True,
            "linger_ms": 0,
            "max_request_size": self.record_bytes_max + RECORD_OVERHEAD_BYTES,
            "max_batch_size": self.batch_bytes_max,
        }

    def consumer_settings(self, group: str, member: str) -> dict[str, Any]:
        """A fetch returns what is there and waits only for the first byte.

        Joining waits for the slowest member's ``on_revoked``, so its request must be allowed to take longer.
        """
        return {
            **self.client_settings(),
            "enable_auto_commit": False,
            "auto_offset_reset": "none",
            "isolation_level": "read_committed",
            "fetch_min_bytes": 1,
            "fetch_max_wait_ms": milliseconds(self.fetch_wait_s),
            "fetch_max_bytes": self.fetch_bytes_max,
            "max_partition_fetch_bytes": self.record_bytes_max + RECORD_OVERHEAD_BYTES,
            "group_id": group,
            "group_instance_id": member,
            "partition_assignment_strategy": (RoundRobinPartitionAssignor,),
            "request_timeout_ms": milliseconds(self.rebalance_timeout_s + self.request_timeout_s),
            "session_timeout_ms": milliseconds(self.session_timeout_s),
            "heartbeat_interval_ms": milliseconds(self.heartbeat_s),
            "rebalance_timeout_ms": milliseconds(self.rebalance_timeout_s),
            "max_poll_interval_ms": milliseconds(self.poll_interval_max_s),
        }

    def _make_tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.tls_authorities_path)
        if self.tls_certificate_path is not None:
            context.load_cert_chain(self.tls_certificate_path, self.tls_key_path, self.tls_key_password)
        return context


def milliseconds(seconds: float) -> int:
    """As Kafka's settings want it."""
    return round(seconds * 1000)
