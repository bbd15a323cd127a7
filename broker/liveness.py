"""Is this part alive? A thread of its own watches, because an event loop that hangs cannot watch itself.

Every second it writes the part's status file, which ``_status`` and ``health`` read. A part that shows no life for
``silent_exit_s`` ends its process: the supervisor or the container engine starts it anew, and its partitions go to
somebody who works.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from broker.telemetry import LogEvent, log

EXIT_SILENT = 70
STATUS_DIRECTORY = "status"
_INTERVAL_S = 1.0


class PartStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a part says of itself. ``written_at`` is seconds since the epoch, ``silent_s`` since it last worked."""

    part: str
    pid: int
    state: str
    """``starting``, ``running`` or ``stopped``."""
    written_at: float
    silent_s: float


class Liveness:
    """Watches one part of this process."""

    def __init__(
        self, part: str, data_dir: Path, alive_at: Callable[[], float], *, exit_s: float, supervised: bool
    ) -> None:
        self._part = part
        self._path = data_dir / STATUS_DIRECTORY / f"{part}.json"
        self._alive_at = alive_at
        self._exit_s = exit_s
        self._parent = os.getppid() if supervised else None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="liveness", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()

    def stop(self) -> None:
        """End watching and leave word that the part stopped by itself."""
        self._ended.set()
        self._thread.join(_INTERVAL_S * 2)
        self._write("stopped", 0.0)

    def _watch(self) -> None:
        while not self._ended.is_set():
            silent_s = time.monotonic() - self._alive_at()
            self._write("running", silent_s)
            if self._parent is not None and os.getppid() != self._parent:
                # The supervisor was killed: without it nobody would end this process, or start it anew.
                os.kill(os.getpid(), signal.SIGTERM)
                self._parent = None
            if silent_s > self._exit_s:
                log(LogEvent.PART_SILENT, part=self._part, seconds=round(silent_s))
                os._exit(EXIT_SILENT)
            self._ended.wait(_INTERVAL_S)

    def _write(self, state: str, silent_s: float) -> None:
        status = PartStatus(part=self._part, pid=os.getpid(), state=state, written_at=time.time(), silent_s=silent_s)
        temporary = self._path.with_suffix(f".{os.getpid()}")
        try:
            temporary.write_bytes(msgspec.json.encode(status))
            temporary.replace(self._path)
        except OSError:
            # A full disk must not end the watch; the old file grows stale, which is read as not ready.
            return


def read_statuses(data_dir: Path) -> list[PartStatus]:
    """What every part last said of itself; unreadable files count as silence."""
    found = []
    for path in sorted((data_dir / STATUS_DIRECTORY).glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=PartStatus))
        except (OSError, msgspec.DecodeError):
            found.append(PartStatus(part=path.stem, pid=0, state="unreadable", written_at=0.0, silent_s=0.0))
    return found


def is_ready(status: PartStatus, *, now: float, silent_s: float) -> bool:
    """Whether a part ran and worked lately; ``now`` is seconds since the epoch."""
    return status.state == "running" and status.silent_s < silent_s and now - status.written_at < silent_s
