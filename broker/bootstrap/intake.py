"""The part that keeps the MLLP door."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from adapters.errors import LogError
from adapters.mllp import MllpOptions, MllpServer
from broker import topics
from broker.bootstrap.engines import open_log, until_prepared
from broker.bootstrap.report import report_wire
from broker.bootstrap.safety import ConfigurationError, load_keyring
from broker.clock import SystemClock
from broker.intake import Intake
from broker.ports import Log
from broker.senders import SNAPSHOT_NAME, Senders
from broker.settings import Settings
from broker.telemetry import LogEvent, log

_LOOK_INTERVAL_S: Final = 1.0
"""For how long a sender's former credential may still be taken; a new one is at once."""


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
                    await self._log.extents(self._settings.name_on_log(topics.ATTENDANCES))
                    self.alive_at = self.worked_at = time.monotonic()
                except LogError as error:
                    log(LogEvent.LOG_UNAVAILABLE, group="intake", error=type(error).__name__)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), self._settings.contact_interval_s)
        finally:
            await self._server.close(drain_timeout_s=self._settings.log_append_timeout_s)


@asynccontextmanager
async def open_part(settings: Settings) -> AsyncIterator[IntakePart]:
    """The door before the log."""
    keyring = load_keyring(settings)
    await until_prepared(settings)
    log_ = open_log(settings)
    senders = Senders(settings.data_dir / SNAPSHOT_NAME, keyring, look_interval_s=_LOOK_INTERVAL_S)
    intake = Intake(log_, settings.name_on_log(topics.ATTENDANCES), keyring, senders, SystemClock())
    options = MllpOptions(
        frame_bytes_max=settings.mllp_frame_bytes_max,
        connections_max=settings.mllp_connections_max,
        pipelined_max=settings.mllp_pipelined_max,
        idle_timeout_s=settings.mllp_idle_timeout_s,
        frame_timeout_s=settings.mllp_frame_timeout_s,
    )
    server = MllpServer(intake.accept_hl7v2, options, on_event=report_wire)
    try:
        yield IntakePart(server, log_, settings)
    finally:
        await log_.close()


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
