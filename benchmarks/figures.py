"""What was measured, round by round, and how it is shown: the product beside its peers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from statistics import median

import msgspec


class Subject(StrEnum):
    """What is measured."""

    PRODUCT = "product"
    FLOOR = "floor"
    """The plainest code that does no more than must be done."""
    NAIVE = "naive"
    """The well-known libraries, one message at a time."""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity of one subject, once per round; the rounds of all subjects were interleaved."""

    what: str
    engines: str
    subject: Subject
    unit: str
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return median(self.rounds)


class Hotspot(msgspec.Struct, frozen=True, kw_only=True):
    """One function's own time as a share of all time in the profile."""

    function: str
    share: float
    calls: int


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of one part goes."""

    part: str
    engines: str
    messages: int
    hotspots: tuple[Hotspot, ...]
    inclusive: tuple[Hotspot, ...]
    """The broker's own functions with what they call."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one run found."""

    machine: str
    measured_at: str
    scale: str
    figures: tuple[Figure, ...]
    profiles: tuple[Profile, ...]


def ratio(product: Figure, peer: Figure) -> float:
    """How the product compares with a peer: the middle of the rounds' own ratios, which a busy machine moves least."""
    pairs = zip(product.rounds, peer.rounds, strict=False)
    return median(own / other for own, other in pairs)


def find_peers(figures: Iterable[Figure], product: Figure) -> list[Figure]:
    """The peers measured beside the product."""
    return [
        figure
        for figure in figures
        if (figure.what, figure.engines) == (product.what, product.engines) and figure.subject is not Subject.PRODUCT
    ]


def describe(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table: absolute numbers, and the product as a multiple of each peer."""
    lines = [
        "| what | engines | product | floor | product / floor | naive | product / naive |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for product in figures:
        if product.subject is not Subject.PRODUCT:
            continue
        peers = {peer.subject: peer for peer in find_peers(figures, product)}
        cells = [f"{product.what}, {product.unit}", product.engines, show(product.median)]
        for subject in (Subject.FLOOR, Subject.NAIVE):
            peer = peers.get(subject)
            cells += [show(peer.median), show(ratio(product, peer))] if peer else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def describe_profile(profile: Profile) -> str:
    """A profile as two lists."""
    lines = [f"Profile of {profile.part}, {profile.engines}, {profile.messages} messages", "  own time:"]
    lines += [f"    {spot.share:6.1%}  {spot.calls:>8}  {spot.function}" for spot in profile.hotspots]
    lines += ["  with what they call:"]
    lines += [f"    {spot.share:6.1%}  {spot.calls:>8}  {spot.function}" for spot in profile.inclusive]
    return "\n".join(lines)


def show(number: float) -> str:
    """A number with three significant digits at least, no more than it deserves."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}"
