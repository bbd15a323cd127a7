"""The system's clock, as the Clock port wants it."""

from __future__ import annotations

from datetime import UTC, datetime


class SystemClock:
    """Tells the present instant."""

    def now(self) -> datetime:
        """The present instant, aware UTC."""
        return datetime.now(UTC)
