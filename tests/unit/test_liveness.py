"""A part that hangs is noticed from outside its event loop, and ends so that it can be started anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.liveness import EXIT_SILENT, Liveness, PartStatus, is_ready, read_statuses

PREAMBLE = """
import asyncio, os, subprocess, sys, time
from pathlib import Path
from broker import liveness
from broker.liveness import Liveness
liveness._INTERVAL_S = 0.05
beat = [time.monotonic()]
def watched(part="jobs", exit_s=0.4, supervised_by=None):
    made = Liveness(part, Path(sys.argv[1]), lambda: beat[0], exit_s=exit_s, supervised_by=supervised_by)
    made.start()
    return made
"""


def program(code: str) -> list[str]:
    return [sys.executable, "-c", PREAMBLE + textwrap.dedent(code)]


def run_watched(code: str, directory: Path) -> int:
    """Run code in a process of its own, with a quick watch; its exit code."""
    done = subprocess.run([*program(code), str(directory)], capture_output=True, timeout=20, check=False)
    return done.returncode


def test_a_hung_event_loop_is_noticed_by_the_thread_and_ends_the_process(tmp_path: Path) -> None:
    code = run_watched(
        """
        async def part():
            watched()
            for _ in range(5):
                beat[0] = time.monotonic()
                await asyncio.sleep(0.02)
            time.sleep(15)  # the loop hangs
        asyncio.run(part())
        """,
        tmp_path,
    )
    assert code == EXIT_SILENT == 70
    [status] = read_statuses(tmp_path)
    assert status.silent_s > 0.4


def test_a_loop_that_turns_but_does_no_work_is_noticed_as_well(tmp_path: Path) -> None:
    assert run_watched("async def part():\n    watched(); await asyncio.sleep(15)\nasyncio.run(part())", tmp_path) == 70


def test_a_part_that_works_is_left_alone_and_its_stop_is_on_record(tmp_path: Path) -> None:
    code = run_watched(
        """
        async def part():
            watch = watched()
            for _ in range(30):
                beat[0] = time.monotonic()
                await asyncio.sleep(0.03)
            watch.stop()
        asyncio.run(part())
        """,
        tmp_path,
    )
    assert code == 0
    [status] = read_statuses(tmp_path)
    assert (status.part, status.state) == ("jobs", "stopped")
    assert [file.name for file in (tmp_path / "status").iterdir()] == ["jobs.json"]


SUPERVISOR = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}, sys.argv[1]])
print(child.pid, flush=True)
time.sleep(60)
"""
ORPHAN = """
import signal
def end(*_):
    Path(sys.argv[1], "drained").touch()
    os._exit(0)
signal.signal(signal.SIGTERM, end)
watched(exit_s=60, supervised_by={supervised_by})
while True:
    beat[0] = time.monotonic()
    time.sleep(0.02)
"""


def start_supervisor(directory: Path, *, supervised_by: str) -> tuple[subprocess.Popen[str], int]:
    child = PREAMBLE + ORPHAN.format(supervised_by=supervised_by)
    command = [sys.executable, "-c", SUPERVISOR.format(child=child), str(directory)]
    supervisor = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    return supervisor, int(supervisor.stdout.readline())


def wait_until(condition: Callable[[], bool], limit_s: float = 10) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def runs(part: str, directory: Path) -> Callable[[], bool]:
    return lambda: any(status.part == part and status.state == "running" for status in read_statuses(directory))


def kill_supervisor(supervisor: subprocess.Popen[str]) -> None:
    supervisor.kill()
    supervisor.wait()
    assert supervisor.stdout is not None
    supervisor.stdout.close()


def test_a_supervised_part_whose_supervisor_dies_drains_and_ends(tmp_path: Path) -> None:
    supervisor, child = start_supervisor(tmp_path, supervised_by="os.getppid()")
    try:
        wait_until(runs("jobs", tmp_path))
        kill_supervisor(supervisor)
        wait_until((tmp_path / "drained").exists)
    finally:
        end_if_running(child)


def test_a_part_whose_supervisor_died_before_it_could_look_ends_as_well(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    code = run_watched(
        f"""
        import signal
        signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
        watched(exit_s=60, supervised_by={gone.pid})
        time.sleep(15)
        """,
        tmp_path,
    )
    assert code == 3


def test_a_part_that_nobody_supervises_outlives_its_parent(tmp_path: Path) -> None:
    supervisor, child = start_supervisor(tmp_path, supervised_by="None")
    try:
        wait_until(runs("jobs", tmp_path))
        kill_supervisor(supervisor)
        written_at = read_statuses(tmp_path)[0].written_at
        wait_until(lambda: read_statuses(tmp_path)[0].written_at > written_at + 0.3)
        assert not (tmp_path / "drained").exists()
    finally:
        end_if_running(child)


def end_if_running(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_a_full_disk_does_not_end_the_watch(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("where the directory should be")
    watch = Liveness("jobs", tmp_path, time.monotonic, exit_s=60, supervised_by=None)
    watch._write("running", 0.0)
    assert read_statuses(tmp_path) == []


def status(**changes: object) -> PartStatus:
    values: dict[str, object] = {"part": "jobs", "pid": 1, "state": "running", "written_at": 1000.0, "silent_s": 1.0}
    return PartStatus(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "ready"),
    [
        (status(), True),
        (status(silent_s=15.0), False),
        (status(silent_s=14.9), True),
        (status(written_at=985.0), False),
        (status(written_at=985.1), True),
        (status(state="stopped"), False),
        (status(state="starting"), False),
        (status(state="unreadable"), False),
    ],
)
def test_ready_is_who_runs_works_and_says_so_lately(said: PartStatus, ready: bool) -> None:
    assert is_ready(said, now=1000.0, silent_s=15.0) == ready


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"part": "jobs"}', b"\xff"])
def test_an_unreadable_status_counts_as_silence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "status").mkdir()
    (tmp_path / "status" / "jobs.json").write_bytes(content)
    [found] = read_statuses(tmp_path)
    assert found.part == "jobs"
    assert not is_ready(found, now=time.time(), silent_s=15.0)


def test_nobody_has_spoken_where_there_is_no_directory(tmp_path: Path) -> None:
    assert read_statuses(tmp_path / "nowhere") == []


def test_the_status_file_says_part_process_and_age(tmp_path: Path) -> None:
    watch = Liveness("web", tmp_path, lambda: time.monotonic() - 3, exit_s=60, supervised_by=None)
    watch.start()
    wait_until(runs("web", tmp_path))
    said = json.loads((tmp_path / "status" / "web.json").read_bytes())
    watch.stop()
    assert set(said) == {"part", "pid", "state", "written_at", "silent_s"}
    assert said["pid"] == os.getpid()
    assert said["silent_s"] == pytest.approx(3, abs=1)
