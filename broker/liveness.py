"""Is this part alive? A thread of its own watches, because an event loop that hangs cannot watch itself.

Every second it writes the part's status file, which ``_status`` and ``health`` read. A part that shows no life for
``exit_s`` ends its process: the supervisor or the container engine starts it anew, and its partitions go to somebody
who works. A process that cannot even do that (stopped by a signal, or stuck in C code that holds Python's lock) leaves
its status file as it is, which is not ready, and its supervisor without a beat: that kills it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import signal
import threading
import time
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import msgspec

from broker.telemetry import LogEvent, log

EXIT_SILENT: Final = 70
STATUS_DIRECTORY: Final = "status"
_INTERVAL_S: Final = 1.0
_STUCK_GRACE_S: Final = 3.0
"""Where the watching thread itself cannot run, C code ends the process so much later."""


class Vitals(Protocol):
    """What a part tells of itself, in monotonic seconds."""

    @property
    def alive_at(self) -> float:
        """When it last showed life: what hangs shows none."""
        ...

    @property
    def worked_at(self) -> float:
        """When it last did its work, or found that there was none. During an outage it lives and does not work."""
        ...


class PartStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What one process of a part says of itself. ``written_at`` is seconds since the epoch."""

    part: str
    pid: int
    state: str
    """``starting``, ``running``, ``stopped`` (as it was asked to) or ``failed``."""
    written_at: float
    silent_s: float
    """Since it last showed life."""
    idle_s: float = 0.0
    """Since it last did its work or had none."""


class Liveness:
    """Watches the part of this process, from before it starts until after it has let go of everything."""

    def __init__(self, part: str, data_dir: Path, *, exit_s: float, beat_fd: int | None) -> None:
        """``beat_fd`` is the end of a pipe that the supervisor listens to; None when there is none."""
        self._part = part
        self._directory = data_dir / STATUS_DIRECTORY
        self._exit_s = exit_s
        self._beat_fd = beat_fd
        self._began_at = time.monotonic()
        self._vitals: Vitals | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="liveness", daemon=True)

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._path = self._claim_path()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        """End watching and leave word how the part ended."""
        self._ended.set()
        self._thread.join(_INTERVAL_S * 2)
        faulthandler.cancel_dump_traceback_later()
        self._write("stopped" if kind is None else "failed", silent_s=0.0, idle_s=0.0)

    def follow(self, vitals: Vitals) -> None:
        """The part has all it needs to run: from now on its own signs of life count."""
        self._vitals = vitals

    def _claim_path(self) -> Path:
        """The first place of this part that no living process holds: who starts anew takes a dead one's."""
        for number in count():
            self._lock = os.open(self._directory / f"{self._part}.{number}.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
            else:
                return self._directory / f"{self._part}.{number}.json"
        raise AssertionError("counting never ends")

    def _watch(self) -> None:
        while not self._ended.is_set():
            faulthandler.dump_traceback_later(self._exit_s + _STUCK_GRACE_S, exit=True)
            silent_s, idle_s = self._measure()
            self._write("running" if self._vitals else "starting", silent_s=silent_s, idle_s=idle_s)
            self._beat()
            if silent_s > self._exit_s:
                log(LogEvent.PART_SILENT, part=self._part, seconds=round(silent_s))
                os._exit(EXIT_SILENT)
            self._ended.wait(_INTERVAL_S)

    def _beat(self) -> None:
        if self._beat_fd is None:
            return
        try:
            with contextlib.suppress(BlockingIOError):
                os.write(self._beat_fd, b".")
        except OSError:
            # The supervisor was killed: without it nobody would end this process, or start it anew.
            self._beat_fd = None
            os.kill(os.getpid(), signal.SIGTERM)

    def _measure(self) -> tuple[float, float]:
        now = time.monotonic()
        if self._vitals is None:
            return now - self._began_at, now - self._began_at
        return now - self._vitals.alive_at, now - self._vitals.worked_at

    def _write(self, state: str, *, silent_s: float, idle_s: float) -> None:
        status = PartStatus(
            part=self._part, pid=os.getpid(), state=state, written_at=time.time(), silent_s=silent_s, idle_s=idle_s
        )
        temporary = self._path.with_suffix(f".{os.getpid()}")
        try:
            temporary.write_bytes(msgspec.json.encode(status))
            temporary.replace(self._path)
        except OSError:
            # A full disk must not end the watch; the old file grows stale, which is read as not ready.
            return


def read_statuses(data_dir: Path) -> list[PartStatus]:
    """What every process of every part last said of itself; unreadable files count as silence."""
    found = []
    for path in sorted((data_dir / STATUS_DIRECTORY).glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=PartStatus))
        except (OSError, msgspec.DecodeError):
            part = path.name.partition(".")[0]
            found.append(PartStatus(part=part, pid=0, state="unreadable", written_at=0.0, silent_s=0.0))
    return found


def measure_quiet_s(status: PartStatus, *, now: float) -> float:
    """How long ago the process last lived and could work; ``now`` is seconds since the epoch."""
    return max(status.silent_s, status.idle_s) + max(0.0, now - status.written_at)


def is_ready(status: PartStatus, *, now: float, silent_s: float) -> bool:
    """Whether the process runs, and lived and could work less than ``silent_s`` ago."""
    return status.state == "running" and measure_quiet_s(status, now=now) < silent_s
