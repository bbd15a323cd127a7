"""Where the time goes: the consumer and the door under cProfile, each in this process.

The profiler slows Python and not C, so the shares tell where to look and not how much would be won. It sees this
thread only: SQLite's own work happens in another, and shows here as waiting (``select.epoll.poll``).
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
from collections.abc import Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.door import open_intake, send_from_a_process
from benchmarks.figures import Hotspot, Profile
from benchmarks.installation import Installation, Scale, fill_log
from benchmarks.line import open_consumer

SHOWN = 15
CONNECTIONS = 8
_OWN_ROOMS = ("broker", "adapters", "schemas")
_WAITING = "select.epoll"


async def profile_consumer(installation: Installation, scale: Scale) -> Profile:
    """The consumer over one round's messages."""
    department = installation.town.department(installation.town.attending, seed=8)
    settings = installation.with_prefix("profile.")
    await fill_log(settings, [department.next_message() for _ in range(scale.messages)])
    warm_up = installation.with_prefix("warm-up.")
    await fill_log(warm_up, [department.next_message() for _ in range(scale.messages)])
    async with open_consumer(installation.settings) as decide:
        await decide(warm_up, scale.messages)
        profiler = await _run_profiled(lambda: decide(settings, scale.messages))
    return _profile("the consumer", installation, scale.messages, profiler)


async def profile_intake(installation: Installation, scale: Scale) -> Profile:
    """The door with eight connections; the senders are another process."""
    department = installation.town.department(installation.town.attending, seed=9)
    messages = [department.next_message().body for _ in range(scale.messages)]
    sent: list[int] = []
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        async with open_intake(installation.with_prefix("profile.")) as port:

            async def take() -> None:
                loop = asyncio.get_running_loop()
                seconds = 2 * scale.door_s
                sent.append(await loop.run_in_executor(pool, send_from_a_process, seconds, port, messages, CONNECTIONS))

            profiler = await _run_profiled(take)
    return _profile("the intake", installation, sent[0], profiler)


async def _run_profiled(work: Callable[[], Awaitable[object]]) -> cProfile.Profile:
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        await work()
    finally:
        profiler.disable()
    return profiler


def _profile(part: str, installation: Installation, messages: int, profiler: cProfile.Profile) -> Profile:
    timings: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]  # not in its stub
    total_s = sum(own_s for place, (_, _, own_s, _, _) in timings.items() if _WAITING not in place[2])
    spots = [
        (own_s / total_s, whole_s / total_s, calls, place)
        for place, (_, calls, own_s, whole_s, _) in timings.items()
        if _WAITING not in place[2]
    ]
    return Profile(
        part=part,
        engines=installation.engines.name,
        messages=messages,
        hotspots=tuple(
            Hotspot(function=_name(place), share=own, calls=calls)
            for own, _, calls, place in sorted(spots, key=lambda spot: -spot[0])[:SHOWN]
        ),
        inclusive=tuple(
            Hotspot(function=_name(place), share=whole, calls=calls)
            for _, whole, calls, place in sorted(spots, key=lambda spot: -spot[1])
            if _is_own(place)
        )[:SHOWN],
    )


def _is_own(place: tuple[str, int, str]) -> bool:
    return bool(set(_OWN_ROOMS) & set(Path(place[0]).parts[-4:-1])) and "site-packages" not in place[0]


def _name(place: tuple[str, int, str]) -> str:
    """``broker/intake.py:42 accept_hl7v2``, or a built-in function's name."""
    file, line, function = place
    if file == "~":
        return function.strip("<>")
    return f"{'/'.join(Path(file).parts[-3:])}:{line} {function}"
