"""The benchmarks compare round with round: a slow moment of the machine must not pass for a slow broker."""

from __future__ import annotations

from benchmarks.figures import Figure, Subject, describe, ratio
from benchmarks.independence import measure_excess_ms


def figure(subject: Subject, *rounds: float, what: str = "decided", engines: str = "embedded") -> Figure:
    """A figure of three rounds."""
    return Figure(what=what, engines=engines, subject=subject, unit="messages/s", rounds=rounds)


def test_the_ratio_is_the_middle_of_the_rounds_own_ratios() -> None:
    product, floor = figure(Subject.PRODUCT, 10, 50, 30), figure(Subject.FLOOR, 100, 250, 200)
    assert ratio(product, floor) == 0.15


def test_each_figure_stands_in_one_line_with_the_peers_of_its_own_engines() -> None:
    figures = [
        figure(Subject.PRODUCT, 10, 10, 10),
        figure(Subject.FLOOR, 40, 40, 40),
        figure(Subject.PRODUCT, 30, 30, 30, engines="Kafka + PostgreSQL"),
        figure(Subject.NAIVE, 1.5, 1.5, 1.5, engines="Kafka + PostgreSQL"),
    ]
    assert describe(figures).splitlines()[2:] == [
        "| decided, messages/s | embedded | 10.0 | 40.0 | 0.25 |  |  |",
        "| decided, messages/s | Kafka + PostgreSQL | 30.0 |  |  | 1.50 | 20.0 |",
    ]


def test_a_pair_may_be_a_quarter_or_fifty_milliseconds_later_and_the_median_pair_counts() -> None:
    assert measure_excess_ms([100.0] * 5, [150.0] * 5) == 0
    assert measure_excess_ms([400.0] * 5, [500.0, 500.0, 501.0, 900.0, 10.0]) == 0
    assert measure_excess_ms([100.0, 100.0, 900.0], [170.0, 160.0, 900.0]) == 10
