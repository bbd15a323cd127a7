"""Servers and processes end, cleanly or not, while the department sends: nothing accepted is lost, all come back."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from tests import ledger
from tests.e2e.scenes import (
    RECOVERED_S,
    SERVED,
    Played,
    Scene,
    Stage,
    accepted,
    end,
    exits,
    play,
    run_command,
    sending,
    statuses,
    until_accepted,
    until_ended,
    until_handled,
    until_ready,
)
from tests.engines import KafkaServer, PostgresServer
from tests.system import System, until

pytestmark = [pytest.mark.waits, pytest.mark.timeout(300)]

PER_SECOND: Final = 10.0
RESTARTS: Final = 5
SOAK_RESTARTS: Final = 25
KAFKA_DOWN_S: Final = 4.0
"""With the time it takes to start: so long that clients give up what they were about to send. Every second time."""
RESTARTED_S: Final = 10.0
"""A part that was killed is back by then, and a part without a supervisor gone."""
ALL: Final = ""
"""Every part, under one supervisor."""
EVERY_PART: Final = ("intake", "attendances", "encompass", "dispatch", "jobs", "web")


@dataclass(kw_only=True)
class Finding:
    """What a scene measured, in seconds."""

    books: ledger.Books | None = None
    times: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def note(self, what: str, seconds: float) -> None:
        """Keep one measurement."""
        self.times.setdefault(what, []).append(seconds)


# Servers restart


async def restart_kafka(stage: Stage, directory: Path) -> Finding:
    """Kafka ends and starts again, by turns killed and in order."""
    server = KafkaServer(heap_mib=256)
    try:
        await asyncio.to_thread(server.start)
        async with stage.open_system(
            directory, database_url=stage.make_database(directory), kafka=server.bootstrap_servers
        ) as system:

            async def restart(end_server: Callable[[], None]) -> None:
                await asyncio.to_thread(end_server)
                if end_server == server.stop:
                    await asyncio.sleep(KAFKA_DOWN_S)
                await asyncio.to_thread(server.start)

            return await _restart_often(stage, system, server.kill, server.stop, restart)
    finally:
        await asyncio.to_thread(server.close)


async def restart_database(stage: Stage, directory: Path) -> Finding:
    """PostgreSQL ends and starts again, by turns killed and in order; while it is down messages are accepted."""
    server = PostgresServer()
    try:
        await asyncio.to_thread(server.start)
        url = await asyncio.to_thread(server.create_database, "broker")
        async with stage.open_system(directory, database_url=url, kafka=stage.kafka.bootstrap_servers) as system:
            accepted_while_down: list[int] = []

            async def restart(end_server: Callable[[], None]) -> None:
                await asyncio.to_thread(end_server)
                before = accepted(system)
                await until_accepted(system, 5, limit_s=10)
                accepted_while_down.append(accepted(system) - before)
                await asyncio.to_thread(server.start)

            found = await _restart_often(stage, system, server.kill, server.stop, restart)
            found.facts["accepted while down"] = accepted_while_down
            return found
    finally:
        await asyncio.to_thread(server.close)


async def _restart_often(
    stage: Stage,
    system: System,
    kill: Callable[[], None],
    stop: Callable[[], None],
    restart: Callable[[Callable[[], None]], Awaitable[None]],
) -> Finding:
    found = Finding()
    system.start(SERVED)
    async with sending(system, per_second=PER_SECOND):
        await until_ready(system, "intake", "attendances", "dispatch")
        await until_handled(system, 20, limit_s=30)
        for number in range(SOAK_RESTARTS if stage.soak else RESTARTS):
            began = time.monotonic()
            await restart(stop if number % 2 else kill)
            found.note("down", time.monotonic() - began)
            up_at = time.monotonic()
            await until_accepted(system, 1, limit_s=60)
            found.note("accepting", time.monotonic() - up_at)
            await until_handled(system, accepted(system), limit_s=60)
            found.note("caught up", time.monotonic() - up_at)
    found.facts["exits"] = {part: exits(system, SERVED, part) for part in EVERY_PART}
    found.books = await system.until_settled()
    await until_ready(system, "intake", "attendances", "dispatch")
    return found


# Parts end, and the supervisor


async def end_parts(stage: Stage, directory: Path) -> Finding:
    """Parts are killed and stopped, then their supervisor is killed, and at last it is asked to end."""
    found = Finding()
    async with stage.open_system(directory) as system:
        system.start(ALL)
        async with sending(system, per_second=PER_SECOND):
            await until_ready(system, *EVERY_PART)
            for part in ("intake", "attendances"):
                [was] = statuses(system, part)
                psutil.Process(was.pid).kill()
                found.note(f"{part} anew", await _until_anew(system, part, was.pid))
            await _stop_part(system, found)
            await _kill_supervisor(system, found, once_ready=True)
            await _kill_supervisor(system, found, once_ready=False)
            system.start(ALL)
            await until_ready(system, *EVERY_PART)
            await until_handled(system, accepted(system), limit_s=60)
            await _drain(system, found)
        system.start(SERVED)
        found.books = await system.until_settled()
    return found


async def _until_anew(system: System, part: str, former_pid: int) -> float:
    def runs_anew() -> bool:
        return any(status.pid != former_pid and status.state == "running" for status in statuses(system, part))

    return await until(runs_anew, limit_s=60, what=f"{part} anew")


async def _stop_part(system: System, found: Finding) -> None:
    """SIGSTOP the consumer: on the embedded engines it keeps its locks, and only its supervisor can help."""
    [was] = statuses(system, "attendances")
    psutil.Process(was.pid).suspend()
    found.note("stopped part anew", await _until_anew(system, "attendances", was.pid))
    found.note("caught up", await until_handled(system, accepted(system), limit_s=60))
    found.facts["exit codes"] = exits(system, ALL, "attendances")


async def _kill_supervisor(system: System, found: Finding, *, once_ready: bool) -> None:
    """Kill -9 the supervisor, at work or while it is only just starting its parts."""
    if once_ready:
        await until_ready(system, *EVERY_PART)
    else:
        system.start(ALL)
    supervisor = system.parts[ALL][-1]
    parent = psutil.Process(supervisor.pid)
    await until(lambda: len(parent.children()) == len(EVERY_PART), limit_s=60, what="its children")
    children = parent.children(recursive=True)
    supervisor.kill()
    await until_ended(supervisor, limit_s=10)
    gone_s = await until(lambda: not any(map(_lives, children)), limit_s=60, what="the end of the orphans")
    found.note("orphans gone" if once_ready else "starting orphans gone", gone_s)
    found.facts["ports free"] = not (_listens(system.mllp_port) or _listens(system.http_port))


async def _drain(system: System, found: Finding) -> None:
    """SIGTERM the supervisor."""
    supervisor = system.parts[ALL][-1]
    children = psutil.Process(supervisor.pid).children(recursive=True)
    began = time.monotonic()
    found.facts["exit code"] = await end(supervisor)
    found.note("drained", time.monotonic() - began)
    found.facts["left after draining"] = [child.pid for child in children if _lives(child)]
    found.facts["states after draining"] = {status.state for part in EVERY_PART for status in statuses(system, part)}


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# What the scenes found


SCENES: Final[Mapping[str, Scene[Finding]]] = {
    "test_kafka_restarts_under_load_and_nothing_accepted_is_lost": restart_kafka,
    "test_postgres_restarts_under_load_while_messages_are_accepted": restart_database,
    "test_parts_that_are_killed_start_anew_and_none_outlives_its_supervisor": end_parts,
}


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Played[Finding]:
    """Every chosen scene of this module, played once."""
    return play(request, SCENES, tmp_path_factory.mktemp("restarts"), limit_s=280)


@pytest.fixture
def finding(request: pytest.FixtureRequest, played: Played[Finding]) -> Finding:
    """What the scene of this test found; its times are shown when the test fails, or with -s."""
    found = played[request.node.name]
    print({what: [round(each, 1) for each in seconds] for what, seconds in found.times.items()}, found.facts, sep="\n")
    return found


def assert_balanced(finding: Finding) -> None:
    """Nothing lost, nothing doubled, nothing waiting."""
    assert finding.books is not None
    assert finding.books.acknowledged_by_sender > 0
    assert not finding.books.problems
    assert "quarantined" not in finding.books.handled


def test_kafka_restarts_under_load_and_nothing_accepted_is_lost(finding: Finding) -> None:
    assert len(finding.times["down"]) >= RESTARTS
    assert max(finding.times["accepting"]) <= RECOVERED_S
    assert max(finding.times["caught up"]) <= RECOVERED_S
    assert_balanced(finding)


def test_postgres_restarts_under_load_while_messages_are_accepted(finding: Finding) -> None:
    assert len(finding.times["down"]) >= RESTARTS
    assert min(finding.facts["accepted while down"]) >= 5
    assert max(finding.times["caught up"]) <= RECOVERED_S
    assert not any(finding.facts["exits"].values()), "an outage of the database ends nobody"
    assert_balanced(finding)


def test_parts_that_are_killed_start_anew_and_none_outlives_its_supervisor(finding: Finding) -> None:
    for part in ("intake", "attendances"):
        assert max(finding.times[f"{part} anew"]) <= RESTARTED_S
    assert max(finding.times["stopped part anew"]) <= RECOVERED_S + RESTARTED_S
    assert max(finding.times["caught up"]) <= RECOVERED_S
    assert finding.facts["exit codes"] == [-signal.SIGKILL, -signal.SIGKILL], "killed by the test, and when stopped"
    assert max(finding.times["orphans gone"]) <= RESTARTED_S
    assert max(finding.times["starting orphans gone"]) <= RECOVERED_S, "they notice once they have started"
    assert finding.facts["ports free"]
    assert finding.facts["exit code"] == 0
    assert max(finding.times["drained"]) <= RECOVERED_S
    assert finding.facts["left after draining"] == []
    assert finding.facts["states after draining"] == {"stopped"}
    assert_balanced(finding)


async def test_a_configuration_error_ends_serve_with_code_2_and_a_sentence(tmp_path: Path) -> None:
    def environment(**variables: str) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin", "CPIS_DATA_DIR": str(tmp_path / "data"), **variables}

    development = {"CPIS_ENVIRONMENT": "development"}
    cases = [
        (("serve",), environment(), "configuration: CPIS_MLLP_TLS_CERTIFICATE_FILE"),
        (("serve", "--only", "intake"), environment(), "configuration: CPIS_MLLP_TLS_CERTIFICATE_FILE"),
        (
            ("serve",),
            environment(**development, CPIS_MLLP_PORT="many"),
            "configuration: CPIS_MLLP_PORT",
        ),
        (
            ("serve",),
            environment(**development, CPIS_FIELD_KEYS="k1:short", CPIS_INDEX_KEY="short"),
            "configuration: CPIS_FIELD_KEYS",
        ),
        (("serve", "--only", "intake,phone"), environment(**development), "no such part: phone"),
        (
            ("serve", "--only", "intake,attendances"),
            environment(
                **development,
                CPIS_MLLP_TLS_CERTIFICATE_FILE=str(tmp_path / "missing.pem"),
                CPIS_MLLP_TLS_KEY_FILE=str(tmp_path / "missing.key"),
            ),
            "configuration: CPIS_MLLP_TLS_CERTIFICATE_FILE",
        ),
    ]
    ends = await asyncio.gather(*(run_command(variables, *arguments) for arguments, variables, _ in cases))
    for (arguments, _, sentence), (code, printed) in zip(cases, ends, strict=True):
        assert code == 2, (arguments, printed)
        assert sentence in printed, arguments
        assert "Traceback" not in printed
