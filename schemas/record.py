"""One record of the log, whichever engine keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

import msgspec


class Partition(NamedTuple):
    """One ordered part of a topic."""

    topic: str
    number: int


class LogRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A record as the log returns it: bytes as appended, offset given by the log."""

    partition: Partition
    offset: int
    key: bytes | None
    value: bytes
    headers: Mapping[str, bytes]
    appended_at: datetime


class PartitionExtent(msgspec.Struct, frozen=True, kw_only=True):
    """What a log holds of a partition: offsets ``first`` up to but excluding ``end``.

    ``log_id`` changes when the topic was deleted and made again.
    """

    log_id: str
    first: int
    end: int


class PositionOutcome(StrEnum):
    """What became of a log position (waiting ones have no row yet)."""

    ALERTED = "alerted"
    NO_RECORD = "no_record"
    UPDATED = "updated"
    UNDER_REVIEW = "under_review"
    SILENT_BY_RULE = "silent_by_rule"
    IGNORED = "ignored"
    QUARANTINED = "quarantined"
