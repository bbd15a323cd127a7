"""``python -m benchmarks``: measure the broker beside its peers and print the ratios. See README.md here."""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from benchmarks.ask import measure_asks
from benchmarks.door import measure_door
from benchmarks.figures import Figure, Profile, Report, describe, describe_profile
from benchmarks.hotspots import profile_consumer, profile_intake
from benchmarks.independence import measure_independence
from benchmarks.installation import (
    FULL,
    QUICK,
    BenchTown,
    Engines,
    Installation,
    Place,
    Scale,
    describe_machine,
    distributed_engines,
    embedded_engines,
    open_installation,
)
from benchmarks.line import measure_line
from benchmarks.lists import measure_lists
from benchmarks.reader import measure_readers
from benchmarks.reply import measure_replies
from benchmarks.year import DeadlineMissed, measure_year
from tests.engines import EngineError, free_port

Say = Callable[[str], None]
INDEPENDENCE = "independence"
MEASUREMENTS: dict[str, Callable[[Installation, Scale, Say], Awaitable[list[Figure]]]] = {
    "reply": measure_replies,
    "door": measure_door,
    "ask": measure_asks,
    "line": measure_line,
    INDEPENDENCE: measure_independence,
}
"""In this order: what the line leaves to be delivered would be in the way of the replies."""
READERS = "reader"
"""Needs no engines: measured once, before everything else."""
LISTS = "lists"
"""Needs no town: its lists are its own."""
YEAR = "year"
"""Needs no town either."""
PROFILES = "profile"
ENGINES: dict[str, Callable[[], AbstractContextManager[Engines]]] = {
    "embedded": embedded_engines,
    "kafka": distributed_engines,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; 0 when everything could be measured."""
    given = _read_arguments(arguments)
    scale = QUICK if given.quick else FULL
    # The broker writes an event for every batch; here they would only be in the way.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50), cache_logger_on_first_use=True)
    say("These numbers compare the broker with its peers in this very run. Leave the machine alone meanwhile.")
    say(describe_machine())
    try:
        report = _measure(scale, given.engines, given.only, is_huge=given.huge)
    except (EngineError, DeadlineMissed) as error:
        say(f"error: {error}")
        return 1
    say("\n" + describe(report.figures))
    for profile in report.profiles:
        say("\n" + describe_profile(profile))
    if given.json is not None:
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
        say(f"\nEvery round is in {given.json}")
    return 0


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


def _measure(scale: Scale, engines: Sequence[str], only: Sequence[str], *, is_huge: bool) -> Report:
    measured_at = datetime.now(UTC)
    figures: list[Figure] = []
    if LISTS in only:
        for name in engines:
            with ENGINES[name]() as pair:
                say(f"{pair.name}: {LISTS}")
                figures += asyncio.run(measure_lists(pair, scale, say, is_huge=is_huge))
    if YEAR in only:
        say("A year of Operation Encompass")
        figures += measure_year(scale, say)
    profiles: list[Profile] = []
    if set(only) - {LISTS, YEAR}:
        found, profiles = _measure_town(scale, engines, only)
        figures += found
    return Report(
        machine=describe_machine(),
        measured_at=measured_at.isoformat(timespec="seconds"),
        scale=scale.name,
        figures=tuple(figures),
        profiles=tuple(profiles),
    )


def _measure_town(scale: Scale, engines: Sequence[str], only: Sequence[str]) -> tuple[list[Figure], list[Profile]]:
    if set(only) == {INDEPENDENCE}:
        # Long lists would be loaded for nothing: two flows are compared with themselves.
        scale = replace(scale, listed=QUICK.listed, unlisted=QUICK.unlisted)
    say(f"Inventing a town of {scale.listed + scale.unlisted:,} people, {scale.listed:,} of them listed ...")
    town = BenchTown(scale)
    gc.collect()
    gc.freeze()  # the town stays: the broker's own processes have none of it to look through
    figures: list[Figure] = []
    profiles: list[Profile] = []
    if READERS in only:
        say("The readers alone")
        figures += measure_readers(town.town, scale, say)
    if set(only) <= {READERS, LISTS, YEAR}:
        engines = ()
    for name in engines:
        with ENGINES[name]() as pair:
            found, profiled = asyncio.run(_measure_pair(pair, town, scale, only))
        figures += found
        profiles += profiled
    return figures, profiles


async def _measure_pair(
    engines: Engines, town: BenchTown, scale: Scale, only: Sequence[str]
) -> tuple[list[Figure], list[Profile]]:
    figures: list[Figure] = []
    profiles: list[Profile] = []
    say(f"\n{engines.name}: importing the lists ...")
    began_at = time.monotonic()
    place = Place(reply_port=free_port(), case_port=free_port())
    async with open_installation(engines, town, place) as installation:
        say(f"  done in {time.monotonic() - began_at:.0f} s")
        for name, measure in MEASUREMENTS.items():
            if name in only:
                say(f"{engines.name}: {name}")
                figures += await measure(installation, scale, say)
        if PROFILES in only:
            say(f"{engines.name}: profiles")
            profiles += [await profile_consumer(installation, scale), await profile_intake(installation, scale)]
    return figures, profiles


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller lists, fewer and shorter rounds: a few minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round of every figure as JSON")
    parser.add_argument("--engines", nargs="+", choices=tuple(ENGINES), default=list(ENGINES), help="by default both")
    choices = (READERS, YEAR, LISTS, *MEASUREMENTS, PROFILES)
    parser.add_argument("--huge", action="store_true", help="lists: matches among 1.5 million entries as well")
    parser.add_argument("--only", nargs="+", choices=choices, default=list(choices), help="by default everything")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
