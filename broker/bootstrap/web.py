"""The part that serves the pages and the doors of HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.types import ASGIApp

from adapters import fhir_models
from broker import topics
from broker.bootstrap.engines import open_database, open_log
from broker.bootstrap.rules import notice_rules_of, rules_of
from broker.bootstrap.safety import load_keyring
from broker.clock import SystemClock
from broker.doors import DoorLimits, create_doors, create_incident_door, join_doors, join_incident_door
from broker.incident_intake import IncidentIntake
from broker.intake import Intake
from broker.liveness import is_ready, measure_quiet_s, read_statuses
from broker.senders import FORCES_SNAPSHOT_NAME, SNAPSHOT_NAME, Senders
from broker.settings import Settings
from broker.storage.database import Database
from broker.web.app import create_app
from broker.web.fhir_api import PATHS, FhirReads
from broker.web.list_door import create_list_door, join_list_door
from broker.web.listener import end_errors, limit_heads
from broker.web.look_up import LookUps
from broker.web.operations import PartShown, Status, compose_status

assert fhir_models, "loaded with the part, so that no Bundle waits for it"


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


@asynccontextmanager
async def open_part(settings: Settings) -> AsyncIterator[WebPart]:
    """The pages, and the doors of HTTP in front of them."""
    database, log_, keyring = open_database(settings), open_log(settings), load_keyring(settings)
    incidents = IncidentIntake(log_, settings.name_on_log(topics.INCIDENTS), keyring, SystemClock())
    pages = create_app(
        database=database,
        keyring=keyring,
        clock=SystemClock(),
        settings=settings,
        rules=rules_of(settings),
        notice_rules=notice_rules_of(settings),
        incidents=incidents,
        status=lambda: read_status(settings, database),
    )
    senders = Senders(settings.data_dir / SNAPSHOT_NAME, keyring)
    intake = Intake(log_, settings.name_on_log(topics.ATTENDANCES), keyring, senders, SystemClock())
    look_ups = LookUps(database, keyring, SystemClock(), rules_of(settings))
    reads = FhirReads(look_ups, senders)
    limits = DoorLimits(
        body_bytes_max=settings.fhir_bundle_bytes_max,
        body_timeout_s=settings.fhir_body_timeout_s,
        requests_max=settings.fhir_requests_max,
    )
    forces = Senders(settings.data_dir / FORCES_SNAPSHOT_NAME, keyring)
    doors = join_doors(create_doors(intake, senders, limits), pages, reads, PATHS)
    app = join_list_door(
        create_list_door(pages.state.pages, pages.state.password_check),
        join_incident_door(create_incident_door(incidents, forces, limits), doors),
    )
    server = _Server(configure_server(app, settings))
    try:
        yield WebPart(server)
    finally:
        await log_.close()
        await database.close()


def configure_server(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """How HTTP is served. Without an access log: addresses hold what people ask about."""
    return uvicorn.Config(
        end_errors(app),
        host=settings.http_host,
        port=settings.http_port,
        access_log=False,
        log_config=None,
        server_header=False,
        limit_concurrency=settings.http_connections_max,
        http=limit_heads(settings.http_head_timeout_s),
        timeout_graceful_shutdown=10,
    )


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
