"""The parts of the broker, run and asked how they are."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.screen import JsonOption, console, fail, print_json
from broker.exits import EXIT_CONFIGURATION, EXIT_NOT_WELL

if TYPE_CHECKING:
    from broker.settings import Settings


def serve(
    only: Annotated[str, typer.Option(help="Parts to run, comma-separated; empty: all.")] = "",
    beat_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run the broker: every part as a process of its own, or only the named parts. SIGTERM drains and exits 0."""
    from broker import bootstrap
    from broker.bootstrap.parts import PartName, run_part
    from broker.settings import Settings
    from broker.supervisor import Supervisor, child_environment

    names = [part.strip() for part in only.split(",") if part.strip()] or [part.value for part in PartName]
    unknown = [name for name in names if name not in set(PartName)]
    if unknown:
        fail(f"no such part: {', '.join(unknown)}; parts are {', '.join(PartName)}", EXIT_CONFIGURATION)
    settings = Settings()
    if len(names) == 1:
        raise typer.Exit(run_part(PartName(names[0]), settings, beat_fd=beat_fd))
    problems = bootstrap.check_safety(settings)
    if problems:
        raise bootstrap.ConfigurationError("; ".join(problems))
    bootstrap.load_keyring(settings)
    supervisor = Supervisor(names, child_environment(), settings.data_dir / "metrics", silent_s=settings.silent_exit_s)
    raise typer.Exit(asyncio.run(supervisor.run()))


def demo(
    once: Annotated[bool, typer.Option("--once", help="Play unpaced, print the ledger, end.")] = False,
    kafka: Annotated[bool, typer.Option("--kafka", help="On Apache Kafka and PostgreSQL.")] = False,
    seed: Annotated[int, typer.Option(help="Another evening with other people.")] = 1,
) -> None:
    """Play an evening with synthetic people, on the embedded engines; the pages stay open until Ctrl-C."""
    from broker.demo import play

    raise typer.Exit(play(once=once, kafka=kafka, seed=seed, console=console))


def health(
    part: Annotated[str, typer.Option(help="Only this part, without asking the database; empty: all.")] = "",
    as_json: JsonOption = False,
) -> None:
    """What the parts on this machine last said of themselves, and whether the database answers; exit 1 unless ready."""
    from broker.liveness import is_ready, read_statuses
    from broker.settings import Settings

    settings = Settings()
    now = time.time()
    found: dict[str, bool] = {}
    for status in read_statuses(settings.data_dir):
        if status.part == part or (not part and status.state != "stopped"):
            is_well = is_ready(status, now=now, silent_s=settings.silent_not_ready_s)
            found[status.part] = is_well and found.get(status.part, True)
    are_ready = bool(found) and all(found.values())
    if not part:
        found["database"] = asyncio.run(_database_answers(settings))
    if as_json:
        print_json(found)
    else:
        for name, ready in found.items():
            console.print(f"{name}: {'ready' if ready else 'not ready'}")
    if not are_ready or not all(found.values()):
        raise typer.Exit(EXIT_NOT_WELL)


async def _database_answers(settings: Settings) -> bool:
    from broker import bootstrap

    database = bootstrap.open_database(settings)
    try:
        return await database.answers()
    finally:
        await database.close()
