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
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker.liveness import EXIT_SILENT, Liveness, PartStatus, is_ready, read_statuses

PREAMBLE = """
import asyncio, os, subprocess, sys, time
from pathlib import Path
from broker import liveness
from broker.liveness import Liveness
liveness._INTERVAL_S = 0.05
liveness._STUCK_GRACE_S = 0.5
class Vitals:
    alive_at = worked_at = time.monotonic()
def watched(part="jobs", exit_s=0.4, beat_fd=None):
    made = Liveness(part, Path(sys.argv[1]), exit_s=exit_s, beat_fd=beat_fd).__enter__()
    made.follow(Vitals)
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
                Vitals.alive_at = time.monotonic()
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
            watch = watched(exit_s=1.5)
            for _ in range(60):
                Vitals.alive_at = time.monotonic()
                await asyncio.sleep(0.03)
            watch.__exit__(None, None, None)
        asyncio.run(part())
        """,
        tmp_path,
    )
    assert code == 0
    [status] = read_statuses(tmp_path)
    assert (status.part, status.state) == ("jobs", "stopped")
    assert sorted(file.name for file in (tmp_path / "status").iterdir()) == ["jobs.0.json", "jobs.0.lock"]


def test_code_that_does_not_even_let_the_watching_thread_run_is_ended_as_well(tmp_path: Path) -> None:
    began = time.monotonic()
    code = run_watched(
        """
        import re
        watched()
        re.match(r"(a+)+$", "a" * 60 + "b")  # takes years, and Python's lock with it
        """,
        tmp_path,
    )
    assert code == 1
    assert time.monotonic() - began < 10


def test_a_part_that_does_not_get_started_is_not_ready_and_ends(tmp_path: Path) -> None:
    code = run_watched(
        """
        with Liveness("jobs", Path(sys.argv[1]), exit_s=0.4, beat_fd=None):
            time.sleep(15)
        """,
        tmp_path,
    )
    assert code == EXIT_SILENT
    [status] = read_statuses(tmp_path)
    assert status.state == "starting"


def test_a_part_that_ended_by_an_error_does_not_pass_for_one_that_was_stopped(tmp_path: Path) -> None:
    code = run_watched(
        """
        with Liveness("jobs", Path(sys.argv[1]), exit_s=60, beat_fd=None):
            raise OSError
        """,
        tmp_path,
    )
    assert code == 1
    [status] = read_statuses(tmp_path)
    assert status.state == "failed"


def test_two_processes_of_a_part_speak_for_themselves_and_who_follows_takes_the_place_of_the_dead(
    tmp_path: Path,
) -> None:
    waiting = "watched(exit_s=60)\ntime.sleep(60)"
    several = [subprocess.Popen([*program(waiting), str(tmp_path)]) for _ in range(2)]
    try:
        wait_until(lambda: {status.pid for status in read_statuses(tmp_path)} == {each.pid for each in several})
        several[0].kill()
        several[0].wait()
        several.append(subprocess.Popen([*program(waiting), str(tmp_path)]))
        wait_until(lambda: {status.pid for status in read_statuses(tmp_path)} == {each.pid for each in several[1:]})
    finally:
        for each in several:
            each.kill()
            each.wait()


SUPERVISOR = """
import os, subprocess, sys, time
hearing, beating = os.pipe()
child = subprocess.Popen([sys.executable, "-c", {child!r}, sys.argv[1], str(beating)], pass_fds=(beating,))
os.close(beating)
print(child.pid, flush=True)
time.sleep(60)
"""
ORPHAN = """
import signal
def end(*_):
    Path(sys.argv[1], "drained").touch()
    os._exit(0)
signal.signal(signal.SIGTERM, end)
watched(exit_s=60, beat_fd={beat_fd})
while True:
    Vitals.alive_at = time.monotonic()
    time.sleep(0.02)
"""


def start_supervisor(directory: Path, *, beat_fd: str) -> tuple[subprocess.Popen[str], int]:
    child = PREAMBLE + ORPHAN.format(beat_fd=beat_fd)
    command = [sys.executable, "-c", SUPERVISOR.format(child=child), str(directory)]
    supervisor = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    return supervisor, int(supervisor.stdout.readline())


def wait_until(condition: Callable[[], bool], limit_s: float = 30) -> None:
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
    supervisor, child = start_supervisor(tmp_path, beat_fd="int(sys.argv[2])")
    try:
        wait_until(runs("jobs", tmp_path))
        kill_supervisor(supervisor)
        wait_until((tmp_path / "drained").exists)
    finally:
        end_if_running(child)


def test_a_part_whose_supervisor_died_before_it_could_look_ends_as_well(tmp_path: Path) -> None:
    code = run_watched(
        """
        import signal
        signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
        hearing, beating = os.pipe()
        os.close(hearing)
        watched(exit_s=60, beat_fd=beating)
        time.sleep(15)
        """,
        tmp_path,
    )
    assert code == 3


def test_a_part_that_nobody_supervises_outlives_its_parent(tmp_path: Path) -> None:
    supervisor, child = start_supervisor(tmp_path, beat_fd="None")
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
    watch = Liveness("jobs", tmp_path, exit_s=60, beat_fd=None)
    watch._path = tmp_path / "status" / "jobs.0.json"
    watch._write("running", silent_s=0.0, idle_s=0.0)
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
        (status(idle_s=15.0), False),
        (status(idle_s=14.9), True),
        (status(written_at=986.0), False),
        (status(written_at=986.1), True),
        (status(written_at=986.1, silent_s=2.0), False),
        (status(written_at=1003.0), True),
        (status(state="stopped"), False),
        (status(state="starting"), False),
        (status(state="failed"), False),
        (status(state="unreadable"), False),
    ],
)
def test_ready_is_who_runs_works_and_says_so_lately(said: PartStatus, ready: bool) -> None:
    assert is_ready(said, now=1000.0, silent_s=15.0) == ready


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"part": "jobs"}', b"\xff"])
def test_an_unreadable_status_counts_as_silence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "status").mkdir()
    (tmp_path / "status" / "jobs.0.json").write_bytes(content)
    [found] = read_statuses(tmp_path)
    assert found.part == "jobs"
    assert not is_ready(found, now=time.time(), silent_s=15.0)


def test_nobody_has_spoken_where_there_is_no_directory(tmp_path: Path) -> None:
    assert read_statuses(tmp_path / "nowhere") == []


@dataclass
class Vitals:
    alive_at: float
    worked_at: float


def test_the_status_file_says_part_process_and_ages(tmp_path: Path) -> None:
    with Liveness("web", tmp_path, exit_s=60, beat_fd=None) as watch:
        watch.follow(Vitals(alive_at=time.monotonic() - 3, worked_at=time.monotonic() - 7))
        wait_until(runs("web", tmp_path))
        said = json.loads((tmp_path / "status" / "web.0.json").read_bytes())
    assert set(said) == {"part", "pid", "state", "written_at", "silent_s", "idle_s"}
    assert said["pid"] == os.getpid()
    assert said["silent_s"] >= 3
    assert said["idle_s"] - said["silent_s"] == pytest.approx(4, abs=0.5)
