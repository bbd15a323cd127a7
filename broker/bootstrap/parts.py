"""The parts of the broker: which there are, and how one is run."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import Protocol

from broker import telemetry
from broker.bootstrap.collector import calm_collector, slow_collector
from broker.bootstrap.safety import ConfigurationError, check_safety
from broker.liveness import Liveness, Vitals
from broker.settings import Settings
from broker.telemetry import LogEvent, log


class PartName(StrEnum):
    """The parts of the broker, each a process of its own."""

    INTAKE = "intake"
    ATTENDANCES = "attendances"
    ENCOMPASS = "encompass"
    DISPATCH = "dispatch"
    JOBS = "jobs"
    WEB = "web"


class Part(Vitals, Protocol):
    """One running part."""

    async def run(self) -> None:
        """Work until stopped."""
        ...

    def stop(self) -> None:
        """Finish what is in hand and end."""
        ...


def run_part(name: PartName, settings: Settings, *, beat_fd: int | None) -> int:
    """Run one part in this process until SIGTERM, or until its supervisor is gone; returns the exit code."""
    slow_collector()
    telemetry.configure(name.value)
    log(LogEvent.PART_STARTED, part=name.value, pid=os.getpid())
    return asyncio.run(_run(name, settings, beat_fd))


async def _run(name: PartName, settings: Settings, beat_fd: int | None) -> int:
    problems = check_safety(settings)
    if problems:
        raise ConfigurationError("; ".join(problems))
    with Liveness(name.value, settings.data_dir, exit_s=settings.silent_exit_s, beat_fd=beat_fd) as liveness:
        async with _open_part(name, settings) as part:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, part.stop)
            liveness.follow(part)
            calm_collector()
            log(LogEvent.PART_READY, part=name.value)
            await part.run()
    log(LogEvent.PART_STOPPED, part=name.value)
    return 0


def _open_part(name: PartName, settings: Settings) -> AbstractAsyncContextManager[Part]:
    """Only what the part itself needs is loaded: a process would start in two seconds otherwise, not in a few tenths.

    It also keeps what a part must not touch out of its reach: the intake never loads a database.
    """
    match name:
        case PartName.INTAKE:
            from broker.bootstrap import intake

            return intake.open_part(settings)
        case PartName.ATTENDANCES:
            from broker.bootstrap import attendances

            return attendances.open_part(settings)
        case PartName.ENCOMPASS:
            from broker.bootstrap import encompass

            return encompass.open_part(settings)
        case PartName.DISPATCH:
            from broker.bootstrap import dispatch

            return dispatch.open_part(settings)
        case PartName.JOBS:
            from broker.bootstrap import jobs

            return jobs.open_part(settings)
        case PartName.WEB:
            from broker.bootstrap import web

            return web.open_part(settings)
