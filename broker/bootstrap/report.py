"""What adapters have to say, put among the log events."""

from __future__ import annotations

from collections.abc import Mapping

from broker.telemetry import LogEvent, log


def report_wire(happening: str, facts: Mapping[str, int | str]) -> None:
    """One happening on a wire, with its counts."""
    log(LogEvent.MLLP, happening=happening, **facts)
