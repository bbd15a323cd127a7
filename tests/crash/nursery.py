"""Starts parts of the product in milliseconds: a process that has imported everything forks on request.

A forked part runs the very command line of ``tests.crash.points``; it is spared only the two seconds of imports, so
that a hundred restarts cost little. Run as a program it takes requests as lines of JSON and answers each with one:
``{"arguments": [...], "environment": {...}, "output": PATH}`` starts a process, ``{"reap": PID}`` buries one that has
ended. Nothing it started outlives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from select import select
from typing import Any, Final, NoReturn

from tests.crash import points

EXIT_FAILED: Final = 1
READY: Final = "ready"
LOADED_LATE: Final = (
    "aiosqlite",
    "asyncpg",
    "certifi",
    "adapters.kafka",
    "broker.bootstrap.attendances",
    "broker.bootstrap.dispatch",
    "broker.bootstrap.intake",
    "broker.bootstrap.jobs",
    "broker.bootstrap.parts",
)
"""What a part imports only when it starts or begins to work."""


class Child:
    """A forked process. Held by its descriptor, so that a signal never meets a stranger with the same number."""

    def __init__(self, nursery: Nursery, pid: int, output: Path) -> None:
        self._nursery = nursery
        self.pid = pid
        self.output = output
        """What it printed."""
        self._descriptor = os.pidfd_open(pid)
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self._code is None and select([self._descriptor], [], [], 0)[0]:
            self._code = self._nursery.reap(self.pid)
            os.close(self._descriptor)
        return self._code

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal unless it has ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._descriptor, number)

    async def wait(self, limit_s: float) -> int:
        """Wait for the end and return the exit code. Raises TimeoutError."""
        if self.poll() is None:
            ended = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_reader(self._descriptor, ended.set)
            try:
                async with asyncio.timeout(limit_s):
                    await ended.wait()
            finally:
                loop.remove_reader(self._descriptor)
        code = self.poll()
        assert code is not None
        return code


class Nursery:
    """The forking process, seen from the tests."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.nursery"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._read() == READY

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str], output: Path) -> Child:
        """Start ``python -m tests.crash.points`` with these arguments; what it prints goes to ``output``."""
        output.touch()
        pid = self._ask({"arguments": list(arguments), "environment": dict(environment), "output": str(output)})
        return Child(self, int(pid), output)

    def reap(self, pid: int) -> int:
        """Bury a process that has ended; returns its exit code."""
        return int(self._ask({"reap": pid}))

    def close(self) -> None:
        """End it, and with it whatever still runs."""
        self._process.communicate()

    def _ask(self, request: Mapping[str, object]) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def serve_requests() -> None:
    """Answer requests until their sender is gone."""
    for name in LOADED_LATE:
        import_module(name)
    # Collecting garbage would write into pages that are shared with every child.
    gc.collect()
    gc.freeze()
    assert threading.active_count() == 1, "a fork takes only one thread along"
    children: set[int] = set()
    _answer(READY)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "reap" in request:
            _, status = os.waitpid(request["reap"], 0)
            children.remove(request["reap"])
            _answer(os.waitstatus_to_exitcode(status))
            continue
        pid = os.fork()
        if pid == 0:
            _become(request["arguments"], request["environment"], request["output"])
        children.add(pid)
        _answer(pid)
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _answer(answer: object) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()


def _become(arguments: Sequence[str], environment: Mapping[str, str], output: str) -> NoReturn:
    """Be the asked-for process, in a session of its own, and never return into the loop above."""
    code = EXIT_FAILED
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(written, 1)
        os.dup2(written, 2)
        os.environ.clear()
        os.environ.update(environment)
        points.main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else EXIT_FAILED
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve_requests()
