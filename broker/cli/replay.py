"""A range of the log, handled again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from broker import topics
from broker.cli.screen import ByOption, JsonOption, WhyOption, console, errors, fail, print_json
from broker.cli.work import person, run
from broker.exits import EXIT_CONFIGURATION

if TYPE_CHECKING:
    from broker.replay import ReplayReport
    from broker.settings import Settings
    from broker.storage.database import Database


def replay_topic(
    *,
    since: Annotated[str, typer.Option("--from", help="Offset, or instant like 2026-02-14T03:00Z.")],
    topic: Annotated[str, typer.Option(help="attendances or police-incidents.")] = topics.ATTENDANCES,
    until: Annotated[
        str, typer.Option("--to", help="Offset or instant that is not replayed any more; empty: all.")
    ] = "",
    partition: Annotated[int | None, typer.Option(min=0, help="Only this partition; else all of them.")] = None,
    by: ByOption = "",
    why: WhyOption = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, change nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Have every message of a range of the log handled again. Who asked is audited; nobody is alerted twice."""
    from broker.bootstrap.replays import open_replayers
    from broker.replay import RangeAsked, parse_bound
    from broker.terminal import showing_progress

    who = person(by, "a replay is audited")
    if topic not in (topics.ATTENDANCES, topics.INCIDENTS):
        fail(f"--topic: {topics.ATTENDANCES} or {topics.INCIDENTS}", EXIT_CONFIGURATION)
    try:
        last = parse_bound(until) if until else None
        asked = RangeAsked(since=parse_bound(since), until=last, partition=partition)
    except ValueError as error:
        fail(f"--from and --to: {error}", EXIT_CONFIGURATION)

    async def replay(settings: Settings, database: Database) -> ReplayReport:
        with showing_progress(errors, "counting" if dry_run else "replaying") as advance:
            async with open_replayers(settings, database) as replayers:
                return await replayers[topic].replay_range(
                    asked, by=who, reason=why, dry_run=dry_run, on_progress=advance
                )

    report = run(replay)
    if as_json:
        print_json(report)
        return
    begun = "continued a replay that was begun before: " if report.continued else ""
    told = f"{begun}{report.appended} messages {'would be' if dry_run else ''} replayed ({report.asked})"
    console.print(told.replace("  ", " "), soft_wrap=True)
    if report.were_replays:
        console.print(f"  {report.were_replays} left out that are replays themselves")
    if report.not_handled_yet:
        console.print(f"  {report.not_handled_yet} left out that wait to be handled for the first time")
