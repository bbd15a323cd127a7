"""A consumer that stops silently is noticed in 15 s and reconnects or ends itself in 30 s: then nothing is lost."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import pytest

from broker import bootstrap
from broker.clock import SystemClock
from broker.directory_upload import make_operator
from broker.liveness import EXIT_SILENT
from tests import ledger
from tests.e2e.scenes import (
    GRACE_S,
    NOT_READY_S,
    RECOVERED_S,
    SERVED,
    Played,
    Scene,
    Stage,
    accepted,
    ask_health,
    exits,
    part_is_ready,
    play,
    query,
    sending,
    statuses,
    until_accepted,
    until_ended,
    until_exited,
    until_handled,
    until_not_ready,
    until_ready,
)
from tests.engines import KafkaServer, PostgresServer, TcpProxy
from tests.system import System, until

pytestmark = [pytest.mark.waits, pytest.mark.timeout(300)]

PER_SECOND: Final = 5.0
DATABASE_STOPPED_S: Final = 28.0
"""Longer than a part may be silent: waiting for the database is not silence."""
ALL: Final = ""
"""Every part, under one supervisor."""


@dataclass(kw_only=True)
class Finding:
    """What a scene measured, in seconds since the fault or since it was mended."""

    books: ledger.Books | None = None
    times: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@asynccontextmanager
async def own_kafka(proxy: TcpProxy | None = None) -> AsyncIterator[KafkaServer]:
    """A Kafka that the scene may stop; with a proxy, another way to it."""
    server = KafkaServer(advertised_port=proxy.port if proxy else None, heap_mib=256)
    try:
        await asyncio.to_thread(server.start)
        if proxy is not None:
            await asyncio.to_thread(proxy.start, server.proxied_port)
        yield server
    finally:
        if proxy is not None:
            await asyncio.to_thread(proxy.close)
        await asyncio.to_thread(server.close)


# Kafka stands still: the whole process, or the connection to it


async def stop_kafka(stage: Stage, directory: Path) -> Finding:
    """SIGSTOP Kafka until the consumer has ended itself, then let it go on."""
    found = Finding()
    async with (
        own_kafka() as kafka,
        stage.open_system(
            directory, database_url=stage.make_database(directory), kafka=kafka.bootstrap_servers
        ) as system,
    ):
        system.start(SERVED)
        async with sending(system, per_second=PER_SECOND):
            await until_ready(system, "intake", "attendances", "dispatch")
            await until_handled(system, 10, limit_s=30)
            kafka.pause()
            stopped_at = time.monotonic()
            await until_not_ready(system, "attendances")
            found.times["attendances not ready"] = time.monotonic() - stopped_at
            await until_not_ready(system, "intake")
            found.times["intake not ready"] = time.monotonic() - stopped_at
            for part in ("attendances", "intake"):
                await until_exited(system, SERVED, part)
                found.times[f"{part} ended"] = time.monotonic() - stopped_at
            found.facts["codes"] = {code for part in ("attendances", "intake") for code in exits(system, SERVED, part)}
            if stage.soak:
                await asyncio.sleep(90)
            found.facts["accepted while stopped"] = accepted(system)
            kafka.resume()
            resumed_at = time.monotonic()
            await until_accepted(system, 1, limit_s=60)
            found.times["accepting again"] = time.monotonic() - resumed_at
            await until_handled(system, accepted(system), limit_s=60)
            found.times["caught up"] = time.monotonic() - resumed_at
            await until_ready(system, "intake", "attendances", "dispatch")
            found.times["ready again"] = time.monotonic() - resumed_at
        found.books = await system.until_settled()
    return found


async def freeze_connection(stage: Stage, directory: Path) -> Finding:
    """The consumer's connections to Kafka fall silent both ways until it is noticed; others' are well."""
    found = Finding()
    proxy = TcpProxy()
    async with (
        own_kafka(proxy) as kafka,
        stage.open_system(
            directory, database_url=stage.make_database(directory), kafka=kafka.bootstrap_servers
        ) as system,
    ):
        system.start("intake", "dispatch")
        system.start("attendances", CPIS_KAFKA_BOOTSTRAP_SERVERS=proxy.address)
        [consumer] = system.parts["attendances"]
        async with sending(system, per_second=PER_SECOND):
            await until_ready(system, "intake", "attendances", "dispatch")
            await until_handled(system, 10, limit_s=30)
            proxy.freeze()
            frozen_at = time.monotonic()
            await until_not_ready(system, "attendances")
            found.times["not ready"] = time.monotonic() - frozen_at
            found.facts["intake ready"] = part_is_ready(system, "intake")
            asking = asyncio.create_task(ask_health(system))
            await asyncio.wait({asking}, timeout=max(0.0, frozen_at + 23 - time.monotonic()))
            behind = accepted(system)
            proxy.thaw()
            thawed_at = time.monotonic()
            await until_handled(system, behind, limit_s=60)
            found.times["caught up"] = time.monotonic() - thawed_at
            await until_ready(system, "attendances")
            found.times["ready again"] = time.monotonic() - thawed_at
            found.facts["same process"] = consumer.poll() is None
            found.facts["health"] = await asking
        found.books = await system.until_settled()
    return found


async def freeze_replies(stage: Stage, directory: Path) -> Finding:
    """Kafka hears the consumer, heartbeats and all, and its answers never come: nobody takes its partitions away."""
    found = Finding()
    proxy = TcpProxy()
    async with (
        own_kafka(proxy) as kafka,
        stage.open_system(
            directory, database_url=stage.make_database(directory), kafka=kafka.bootstrap_servers
        ) as system,
    ):
        system.start("intake", "dispatch", "attendances")
        system.start("attendances", CPIS_KAFKA_BOOTSTRAP_SERVERS=proxy.address)
        _, frozen = system.parts["attendances"]
        async with sending(system, per_second=PER_SECOND):
            await until_ready(system, "intake", "attendances", "dispatch")
            await until_shared(system)
            proxy.freeze(requests=False)
            frozen_at = time.monotonic()
            await until_not_ready(system, "attendances")
            found.times["not ready"] = time.monotonic() - frozen_at
            await until_ended(frozen, limit_s=40)
            found.times["ended"] = time.monotonic() - frozen_at
            found.facts["code"] = frozen.returncode
            behind = accepted(system)
            await until_handled(system, behind, limit_s=60)
            found.times["taken over"] = time.monotonic() - frozen_at
        found.books = await system.until_settled()
    return found


async def until_shared(system: System, workers: int = 2) -> None:
    """Wait until so many workers of attendances hold partitions and messages are handled."""

    def are_assigned() -> bool:
        logs = [system.directory / f"attendances-{number}.log" for number in range(workers)]
        return all('"partitions_assigned"' in path.read_text() for path in logs)

    await until(are_assigned, limit_s=40, what=f"{workers} workers with partitions")
    await until_handled(system, 10, limit_s=30)


# The consumer's own process stands still


async def stop_worker(stage: Stage, directory: Path) -> Finding:
    """SIGSTOP a worker in the middle of a transaction: another takes over, and once woken it writes nothing."""
    found = Finding()
    async with stage.open_system(
        directory, database_url=stage.make_database(directory), kafka=stage.kafka.bootstrap_servers
    ) as system:
        system.start("intake", "dispatch", "attendances", "attendances")
        stopped, _ = system.parts["attendances"]
        async with sending(system, per_second=4 * PER_SECOND):
            await until_ready(system, "intake", "attendances", "dispatch")
            await until_shared(system)
            await _stop_in_transaction(system, stopped.pid)
            stopped_at = time.monotonic()
            behind = accepted(system)
            await until_not_ready(system, "attendances")
            found.times["not ready"] = time.monotonic() - stopped_at
            found.facts["statuses"] = {status.pid == stopped.pid for status in statuses(system, "attendances")}
            await until_handled(system, behind, limit_s=60)
            found.times["taken over"] = time.monotonic() - stopped_at
            stopped.send_signal(signal.SIGCONT)
            woken_at = time.monotonic()
            await until(
                lambda: stopped.poll() is not None or part_is_ready(system, "attendances"),
                limit_s=40,
                what="the woken worker's end or return",
            )
            found.times["back or ended"] = time.monotonic() - woken_at
            found.facts["code"] = stopped.poll()
            await until_handled(system, accepted(system), limit_s=60)
        found.books = await system.until_settled()
    return found


async def _stop_in_transaction(system: System, pid: int) -> None:
    """Stop the process, and let it go again until it was stopped while a transaction of its own stood open."""
    process = psutil.Process(pid)
    for _ in range(400):
        process.suspend()
        ports = ",".join(str(link.laddr.port) for link in process.net_connections() if link.laddr)
        await asyncio.sleep(0.05)  # what was on its way to the server has arrived
        [(count,)] = await query(
            system,
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND backend_xid IS NOT NULL"
            f" AND datname = current_database() AND client_port IN ({ports})",
        )
        if count:
            return
        process.resume()
        await asyncio.sleep(0.02)
    raise AssertionError("the worker was never caught in a transaction")


BLOCKED: Final = """
import asyncio, pathlib, re, time
from broker.cli import main

class Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self):
        loop = super().new_event_loop()
        def look():
            if pathlib.Path({trigger!r}).exists():
                {block}
            loop.call_later(0.05, look)
        loop.call_soon(look)
        return loop

asyncio.set_event_loop_policy(Policy())
main()
"""
"""The product with an event loop that stands still once a file is there."""
SLEEPS: Final = "time.sleep(600)"
HOLDS_THE_LOCK: Final = 're.match(r"(a+)+$", "a" * 60 + "b")'
"""Takes years, and does not let any other thread of the process run."""


async def block_loop(stage: Stage, directory: Path) -> Finding:
    """The event loops of two consumers stand still: one sleeps, the other does not even let its watchdog run."""
    found = Finding()
    trigger = directory / "trigger"
    async with stage.open_system(directory) as system:
        # Under a supervisor: who is blocked may hold the file's one write lock, and whoever waits for it ends as well.
        system.start("intake,dispatch")
        for block in (SLEEPS, HOLDS_THE_LOCK):
            system.start("attendances", through=("-c", BLOCKED.format(trigger=str(trigger), block=block)))
        sleeping, holding = system.parts["attendances"]
        async with sending(system, per_second=PER_SECOND):
            await until_ready(system, "intake", "attendances", "dispatch")
            await until_shared(system)
            trigger.touch()
            blocked_at = time.monotonic()
            await until_not_ready(system, "attendances")
            found.times["not ready"] = time.monotonic() - blocked_at
            await until_ended(sleeping, limit_s=40)
            found.times["sleeping ended"] = time.monotonic() - blocked_at
            await until_ended(holding, limit_s=40)
            found.times["holding ended"] = time.monotonic() - blocked_at
            found.facts["codes"] = (sleeping.returncode, holding.returncode)
        system.start("attendances")
        found.books = await system.until_settled()
    return found


DELIVERS_NOTHING: Final = """
import asyncio, pathlib
import aiokafka
from broker.cli import main

getmany = aiokafka.AIOKafkaConsumer.getmany

async def stop_delivering(self, *places, timeout_ms=0, max_records=None):
    if pathlib.Path({trigger!r}).exists():
        await asyncio.sleep(timeout_ms / 1000)
        return {{}}
    return await getmany(self, *places, timeout_ms=timeout_ms, max_records=max_records)

aiokafka.AIOKafkaConsumer.getmany = stop_delivering
main()
"""
"""The product with a Kafka client that answers every question and hands out no records once a file is there."""


async def deliver_nothing(stage: Stage, directory: Path) -> Finding:
    """The Kafka client is connected, a member, and answers; it only delivers nothing any more."""
    found = Finding()
    trigger = directory / "trigger"
    async with stage.open_system(directory, kafka=stage.kafka.bootstrap_servers) as system:
        system.start("intake", "dispatch")
        system.start("attendances", through=("-c", DELIVERS_NOTHING.format(trigger=str(trigger))))
        [silent] = system.parts["attendances"]
        async with sending(system, per_second=PER_SECOND):
            await until_ready(system, "intake", "attendances", "dispatch")
            await until_handled(system, 10, limit_s=30)
            trigger.touch()
            silent_at = time.monotonic()
            await until_not_ready(system, "attendances")
            found.times["not ready"] = time.monotonic() - silent_at
            await until_ended(silent, limit_s=40)
            found.times["ended"] = time.monotonic() - silent_at
            found.facts["code"] = silent.returncode
            system.start("attendances")
        found.books = await system.until_settled()
    return found


# The database stands still


async def stop_database(stage: Stage, directory: Path) -> Finding:
    """SIGSTOP PostgreSQL under all parts, which must live through it and say that they cannot work."""
    found = Finding()
    server = PostgresServer()
    try:
        await asyncio.to_thread(server.start)
        url = await asyncio.to_thread(server.create_database, "broker")
        async with stage.open_system(directory, database_url=url) as system:
            credentials = await _make_operator(system)
            system.start(ALL)
            async with (
                sending(system, per_second=PER_SECOND),
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{system.http_port}", timeout=60) as client,
            ):
                await until_ready(system, "intake", "attendances", "encompass", "dispatch", "jobs", "web")
                await until_handled(system, 10, limit_s=30)
                found.facts["before"] = await _ask_everybody(system, client, credentials)
                found.facts["anonymous"] = (await client.get("/_status")).status_code
                server.pause()
                stopped_at = time.monotonic()
                answers = accepted(system)
                asking = asyncio.create_task(_ask_status(client, credentials))
                for part in ("attendances", "dispatch", "jobs"):
                    await until_not_ready(system, part)
                    found.times[f"{part} not ready"] = time.monotonic() - stopped_at
                found.facts["intake ready"] = part_is_ready(system, "intake")
                healths = asyncio.gather(ask_health(system), ask_health(system, "--part", "intake"))
                found.facts["health"], found.facts["health of intake"] = await healths
                await asyncio.sleep(max(0.0, stopped_at + DATABASE_STOPPED_S - time.monotonic()))
                found.facts["accepted meanwhile"] = accepted(system) - answers
                server.resume()
                resumed_at = time.monotonic()
                await until_handled(system, accepted(system), limit_s=60)
                found.times["caught up"] = time.monotonic() - resumed_at
                await until_ready(system, "intake", "attendances", "encompass", "dispatch", "jobs", "web")
                found.times["ready again"] = time.monotonic() - resumed_at
                found.facts["status code meanwhile"], found.times["status answered"] = await asking
                found.facts["after"] = await _ask_everybody(system, client, credentials)
                found.facts["exits"] = [event for event in system.log_events(ALL) if event["event"] == "part_exited"]
            found.books = await system.until_settled()
    finally:
        await asyncio.to_thread(server.close)
    return found


async def _make_operator(system: System) -> tuple[str, str]:
    settings = system.settings
    database = bootstrap.open_database(settings)
    try:
        keyring = bootstrap.load_keyring(settings)
        password = await make_operator(database, keyring, SystemClock(), login="watch", name="The watch", actor="test")
    finally:
        await database.close()
    return "watch", password


async def _ask_everybody(
    system: System, client: httpx.AsyncClient, credentials: tuple[str, str]
) -> tuple[int, int, Mapping[str, object]]:
    """The exit code of ``health``, and the code and content of ``/_status``."""
    code, _ = await ask_health(system)
    answer = await client.get("/_status", auth=credentials)
    return code, answer.status_code, answer.json()


async def _ask_status(client: httpx.AsyncClient, credentials: tuple[str, str]) -> tuple[int, float]:
    began = time.monotonic()
    answer = await client.get("/_status", auth=credentials)
    return answer.status_code, time.monotonic() - began


# What the scenes found


SCENES: Final[Mapping[str, Scene[Finding]]] = {
    "test_a_stopped_kafka_is_noticed_its_clients_end_themselves_and_catch_up": stop_kafka,
    "test_a_consumer_whose_connections_are_frozen_is_noticed_and_goes_on_when_they_thaw": freeze_connection,
    "test_a_consumer_whose_replies_never_come_ends_itself_and_others_take_over": freeze_replies,
    "test_a_worker_stopped_in_a_transaction_is_taken_over_from_and_writes_nothing_when_woken": stop_worker,
    "test_a_blocked_event_loop_ends_the_process_even_when_no_thread_can_run": block_loop,
    "test_a_client_that_delivers_nothing_though_it_answers_is_noticed_and_ended": deliver_nothing,
    "test_a_stopped_database_ends_nobody_and_messages_are_accepted_meanwhile": stop_database,
}


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Played[Finding]:
    """Every chosen scene of this module, played once."""
    return play(request, SCENES, tmp_path_factory.mktemp("silent"), limit_s=280)


@pytest.fixture
def finding(request: pytest.FixtureRequest, played: Played[Finding]) -> Finding:
    """What the scene of this test found; its times are shown when the test fails, or with -s."""
    found = played[request.node.name]
    print({what: round(seconds, 1) for what, seconds in found.times.items()}, found.facts, sep="\n")
    return found


def assert_balanced(finding: Finding) -> None:
    """Nothing lost, nothing doubled, nothing waiting."""
    assert finding.books is not None
    assert finding.books.acknowledged_by_sender > 0
    assert not finding.books.problems


def test_a_stopped_kafka_is_noticed_its_clients_end_themselves_and_catch_up(finding: Finding) -> None:
    assert finding.times["attendances not ready"] <= NOT_READY_S + GRACE_S
    assert finding.times["intake not ready"] <= NOT_READY_S + GRACE_S
    assert finding.times["attendances ended"] <= RECOVERED_S
    assert finding.times["intake ended"] <= RECOVERED_S
    assert finding.facts["codes"] == {EXIT_SILENT}
    assert finding.times["caught up"] <= RECOVERED_S
    assert_balanced(finding)


def test_a_consumer_whose_connections_are_frozen_is_noticed_and_goes_on_when_they_thaw(finding: Finding) -> None:
    assert finding.times["not ready"] <= NOT_READY_S + GRACE_S
    assert finding.facts["intake ready"], "the others are well"
    code, said = finding.facts["health"]
    assert (code, said["attendances"], said["intake"]) == (1, False, True)
    assert finding.facts["same process"]
    assert finding.times["caught up"] <= RECOVERED_S
    assert_balanced(finding)


@pytest.mark.soak
def test_a_consumer_whose_replies_never_come_ends_itself_and_others_take_over(finding: Finding) -> None:
    assert finding.times["not ready"] <= NOT_READY_S + GRACE_S
    assert finding.times["ended"] <= RECOVERED_S
    assert finding.facts["code"] == EXIT_SILENT
    assert_balanced(finding)


def test_a_worker_stopped_in_a_transaction_is_taken_over_from_and_writes_nothing_when_woken(finding: Finding) -> None:
    assert finding.times["not ready"] <= NOT_READY_S + GRACE_S
    assert finding.facts["statuses"] == {True, False}, "both workers speak for themselves"
    assert finding.times["taken over"] <= RECOVERED_S
    assert finding.facts["code"] in (None, EXIT_SILENT)
    assert_balanced(finding)


@pytest.mark.soak
def test_a_blocked_event_loop_ends_the_process_even_when_no_thread_can_run(finding: Finding) -> None:
    assert finding.times["not ready"] <= NOT_READY_S + GRACE_S
    assert finding.times["sleeping ended"] <= RECOVERED_S
    assert finding.times["holding ended"] <= RECOVERED_S
    assert finding.facts["codes"] == (EXIT_SILENT, 1)
    assert_balanced(finding)


@pytest.mark.soak
def test_a_client_that_delivers_nothing_though_it_answers_is_noticed_and_ended(finding: Finding) -> None:
    assert finding.times["not ready"] <= NOT_READY_S + GRACE_S
    assert finding.times["ended"] <= RECOVERED_S
    assert finding.facts["code"] == EXIT_SILENT
    assert_balanced(finding)


def test_a_stopped_database_ends_nobody_and_messages_are_accepted_meanwhile(finding: Finding) -> None:
    health, status_code, status = finding.facts["before"]
    assert (health, status_code, status["ready"], status["database"]) == (0, 200, True, "answers")
    assert {part["name"] for part in status["parts"]} == {
        "intake",
        "attendances",
        "encompass",
        "dispatch",
        "jobs",
        "web",
    }
    assert finding.facts["anonymous"] == 401
    for part in ("attendances", "dispatch", "jobs"):
        assert finding.times[f"{part} not ready"] <= NOT_READY_S + GRACE_S
    code, said = finding.facts["health"]
    assert (code, said["database"], said["dispatch"]) == (1, False, False)
    assert finding.facts["intake ready"]
    assert finding.facts["health of intake"] == (0, {"intake": True}), "the door does not need the database"
    assert finding.facts["accepted meanwhile"] > 0
    assert finding.facts["status code meanwhile"] == 503
    assert finding.times["status answered"] <= NOT_READY_S
    assert finding.facts["exits"] == []
    assert finding.times["caught up"] <= RECOVERED_S
    assert finding.times["ready again"] <= RECOVERED_S
    assert finding.facts["after"][:2] == (0, 200)
    assert_balanced(finding)
