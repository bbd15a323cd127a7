"""How often a wrong credential may be shown at a machine door, from one address for one name.

After too many within a while, whoever comes from that address under that name is refused unheard for the rest of it.
Other addresses are not concerned, and neither is an address that has shown this name's right credential since the part
started: nobody can shut a sender out by guessing in its name. What is remembered is bounded; the oldest goes.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AttemptLimits:
    """When wrong credentials are refused unheard."""

    failures_max: int = 10
    window_s: float = 60.0
    """Counted from the first wrong credential."""
    remembered_max: int = 10_000
    """Pairs of address and name."""


class Attempts:
    """Counts wrong credentials."""

    def __init__(
        self, limits: AttemptLimits | None = None, *, read_clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits or AttemptLimits()
        self._read_clock = read_clock
        self._failed: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()
        self._genuine: OrderedDict[tuple[str, str], None] = OrderedDict()

    def may_try(self, host: str, name: str) -> bool:
        """Whether a credential shown from this address under this name is looked at."""
        since, count = self._failed.get((host, name), (0.0, 0))
        is_over = self._read_clock() - since >= self._limits.window_s
        return count < self._limits.failures_max or is_over or (host, name) in self._genuine

    def note(self, host: str, name: str, *, is_genuine: bool) -> None:
        """Count what was shown."""
        pair, now = (host, name), self._read_clock()
        if is_genuine:
            self._failed.pop(pair, None)
            self._genuine[pair] = None
            self._genuine.move_to_end(pair)
        else:
            since, count = self._failed.get(pair, (now, 0))
            if now - since >= self._limits.window_s:
                since, count = now, 0
            self._failed[pair] = (since, count + 1)
            self._failed.move_to_end(pair)
        for remembered in (self._failed, self._genuine):
            while len(remembered) > self._limits.remembered_max:
                remembered.popitem(last=False)
