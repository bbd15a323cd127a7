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
from broker.telemetry import LogEvent, log

DRAIN_S: Final = 20.0
_FIRST_RESTART_WAIT_S: Final = 0.2
_LONGEST_RESTART_WAIT_S: Final = 10.0
_STEADY_S: Final = 30.0
"""A part that ran so long starts anew without waiting."""
EXIT_CONFIGURATION: Final = 2
"""A part that ends with this code is not started again: no restart mends a setting."""


class Supervisor:
    """Keeps the parts running until SIGTERM; then every part drains and the exit code is 0."""

    def __init__(self, parts: Sequence[str], environment: dict[str, str], metrics: Path) -> None:
        self._parts = parts
        self._environment = environment | {"PROMETHEUS_MULTIPROC_DIR": str(metrics)}
        self._metrics = metrics
        self._stopping = asyncio.Event()
        self._misconfigured = False
        self._children: dict[str, asyncio.subprocess.Process] = {}

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
            command = (sys.executable, "-m", "broker", "serve", "--only", part, "--supervised-by", str(os.getpid()))
            child = await asyncio.create_subprocess_exec(*command, env=self._environment)
            self._children[part] = child
            code = await self._await_end(child)
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

    async def _await_end(self, child: asyncio.subprocess.Process) -> int:
        """Wait for the child; when we are stopping, let it drain, and end it if it does not."""
        ending = asyncio.ensure_future(child.wait())
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((ending, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not ending.done():
            child.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(asyncio.shield(ending), DRAIN_S)
            except TimeoutError:
                child.kill()
        return await ending

    def _clear_metrics(self) -> None:
        """Counters of processes that are gone would be added up for ever."""
        self._metrics.mkdir(parents=True, exist_ok=True)
        for file in self._metrics.glob("*.db"):
            file.unlink()


def child_environment() -> dict[str, str]:
    """What a part inherits."""
    return dict(os.environ)
