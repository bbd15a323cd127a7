"""``serve``: one child process per part, started anew when it ends, drained and ended together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from broker import telemetry
from broker.exits import EXIT_CONFIGURATION
from broker.telemetry import LogEvent, log

DRAIN_S: Final = 20.0
_FIRST_RESTART_WAIT_S: Final = 0.2
_LONGEST_RESTART_WAIT_S: Final = 10.0
_STEADY_S: Final = 30.0
"""A part that ran so long starts anew without waiting."""
_STUCK_GRACE_S: Final = 4
"""A part ends itself when it is silent; one that cannot do so is killed so much later."""
_START_S: Final = 120
"""A part that has not beaten yet is still starting: on a busy machine that takes long."""


class Supervisor:
    """Keeps the parts running until SIGTERM; then every part drains and the exit code is 0."""

    def __init__(self, parts: Sequence[str], environment: dict[str, str], metrics: Path, *, silent_s: float) -> None:
        """``silent_s`` is how long a part may be silent before it ends itself."""
        self._parts = parts
        self._silent_s = silent_s
        self._environment = environment | {"PROMETHEUS_MULTIPROC_DIR": str(metrics)}
        self._metrics = metrics
        self._stopping = asyncio.Event()
        self._misconfigured = False

    async def run(self) -> int:
        """Run until stopped; 2 when a part could not start because of its settings."""
        telemetry.configure("serve")
        self._clear_metrics()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        await asyncio.gather(*(self._keep(part) for part in self._parts))
        return EXIT_CONFIGURATION if self._misconfigured else 0

    async def _keep(self, part: str) -> None:
        wait_s = _FIRST_RESTART_WAIT_S
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._run_once(part)
            if self._stopping.is_set():
                return
            log(LogEvent.PART_EXITED, part=part, code=code)
            if code == EXIT_CONFIGURATION:
                self._misconfigured = True
                self._stopping.set()
                return
            wait_s = _FIRST_RESTART_WAIT_S if time.monotonic() - began > _STEADY_S else wait_s * 2
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), min(wait_s, _LONGEST_RESTART_WAIT_S))

    async def _run_once(self, part: str) -> int:
        """Start the part and wait until it ends. It beats on a pipe, and learns by it when we are no more."""
        hearing_fd, beat_fd = os.pipe()
        for end in (hearing_fd, beat_fd):
            os.set_blocking(end, False)
        arguments = ("-m", "broker", "serve", "--only", part, "--beat-fd", str(beat_fd))
        try:
            child = await asyncio.create_subprocess_exec(
                sys.executable, *arguments, env=self._environment, pass_fds=(beat_fd,)
            )
        finally:
            os.close(beat_fd)
        watching = asyncio.create_task(self._kill_when_stuck(part, child, hearing_fd))
        try:
            return await self._await_end(child)
        finally:
            watching.cancel()
            os.close(hearing_fd)

    async def _await_end(self, child: asyncio.subprocess.Process) -> int:
        """Wait for the child; when we are stopping, let it drain, and end it if it does not."""
        ending = asyncio.ensure_future(child.wait())
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((ending, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not ending.done():
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
            try:
                await asyncio.wait_for(asyncio.shield(ending), DRAIN_S)
            except TimeoutError:
                _kill(child)
        return await ending

    async def _kill_when_stuck(self, part: str, child: asyncio.subprocess.Process, hearing_fd: int) -> None:
        """Kill a child that does not beat any more: it was stopped by a signal, or cannot run even its watchdog.

        Seconds are counted in looks: while this process itself stood still, nothing was missed.
        """
        quiet_looks, limit = 0, float(_START_S)
        while quiet_looks < limit:
            await asyncio.sleep(1)
            quiet_looks += 1
            if _has_beaten(hearing_fd):
                quiet_looks, limit = 0, self._silent_s + _STUCK_GRACE_S
        log(LogEvent.PART_SILENT, part=part, seconds=quiet_looks)
        _kill(child)

    def _clear_metrics(self) -> None:
        """Counters of processes that are gone would be added up for ever."""
        self._metrics.mkdir(parents=True, exist_ok=True)
        for file in self._metrics.glob("*.db"):
            file.unlink()


def child_environment() -> dict[str, str]:
    """What a part inherits."""
    return dict(os.environ)


def _has_beaten(hearing_fd: int) -> bool:
    try:
        return bool(os.read(hearing_fd, 4096))
    except BlockingIOError:
        return False


def _kill(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.kill()
