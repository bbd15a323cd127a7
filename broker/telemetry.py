"""The closed catalogue of log events and metrics. Whatever is not listed here cannot be logged.

Log fields are counts and closed words: a value that is not a number or a plain word of at most 80 characters is
refused, so that no name, address or number of a child can slip in. Libraries' own messages are cut down to logger,
level and error class.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
from enum import StrEnum
from types import TracebackType
from typing import Final

import structlog
from prometheus_client import Counter, Gauge, Histogram

_WORD: Final = re.compile(r"[A-Za-z0-9_.:/+-]{0,80}", re.ASCII)
_NUMBER_OF_A_PERSON: Final = re.compile(
    r"(?<![0-9A-Za-z])([0-9]{10,}|[0-9]{3}[-_.:/+][0-9]{3}[-_.:/+][0-9]{4})(?![0-9A-Za-z])", re.ASCII
)
"""An NHS number however it is written, or a telephone number."""


class LogEvent(StrEnum):
    """Every event that may be logged, with the fields it carries."""

    PART_STARTED = "part_started"  # part, pid
    PART_READY = "part_ready"  # part
    PART_STOPPED = "part_stopped"  # part
    PART_EXITED = "part_exited"  # part, code
    PART_SILENT = "part_silent"  # part, seconds
    MESSAGE_REFUSED = "message_refused"  # sender, reason
    MESSAGE_NOT_DURABLE = "message_not_durable"  # sender
    MESSAGE_NOT_UNDERSTOOD = "message_not_understood"  # sender, reason
    MESSAGE_DEGRADED = "message_degraded"  # sender, count
    SENDERS_LOADED = "senders_loaded"  # count
    SENDERS_UNREADABLE = "senders_unreadable"  # error
    MLLP = "mllp"  # happening, count
    PARTITIONS_ASSIGNED = "partitions_assigned"  # group, count
    PARTITIONS_REVOKED = "partitions_revoked"  # group, count
    LOG_GAP = "log_gap"  # group, topic, partition, stored, first, end
    LOG_UNAVAILABLE = "log_unavailable"  # group, error
    BATCH_RETRIED = "batch_retried"  # group, error, turn
    BATCH_HALVED = "batch_halved"  # group, size, error, at
    REJOINED = "rejoined"  # group, error
    UNCLEAN_STOP = "unclean_stop"  # group, topic, partition
    TEST_MESSAGES = "test_messages"  # sender, count
    QUARANTINED = "quarantined"  # topic, partition, offset, reason
    ALERT_RAISED = "alert_raised"  # authority, count
    ALERT_MISSED = "alert_missed"  # owner, cause
    LANE_FAILED = "lane_failed"  # lane, code
    DELIVERY_GIVEN_UP = "delivery_given_up"  # lane, code
    RECEIPTS_UNAVAILABLE = "receipts_unavailable"  # code
    LEASE_LOST = "lease_lost"  # lane
    ESCALATED = "escalated"  # owner, count
    REFERRAL_HELD = "referral_held"  # owner, count
    REFERRALS_TOO_OLD = "referrals_too_old"  # count
    JOB_FAILED = "job_failed"  # kind, error
    VISITS_CLOSED = "visits_closed"  # count
    TRACING_RESTS = "tracing_rests"  # code, seconds
    LIST_LATE = "list_late"  # authority, hours
    LIST_BLOCKED = "list_blocked"  # authority, error
    MESH_UNAVAILABLE = "mesh_unavailable"  # error
    MESH_KEPT = "mesh_kept"  # owner, reason
    MESH_NOT_ANSWERED = "mesh_not_answered"  # code
    LIBRARY = "library"  # logger, level, error, count
    CRASHED = "crashed"  # part, error, at


_LIBRARY_REPEAT_S: Final = 10.0
_log = structlog.get_logger()


def log(event: LogEvent, **fields: str | int | float | None) -> None:
    """Write one event as a line of JSON. Fields are counts and closed words, never anything personal."""
    _log.info(event.value, **{name: field if _may_be_logged(field) else "(withheld)" for name, field in fields.items()})


def _may_be_logged(field: object) -> bool:
    if isinstance(field, str):
        return _WORD.fullmatch(field) is not None and _NUMBER_OF_A_PERSON.search(field) is None
    return field is None or isinstance(field, int | float)


class _LibraryHandler(logging.Handler):
    """Libraries may put anything in a message: only where it came from is kept.

    During an outage some say the same dozens of times a second: it is written once in ten seconds, with how often.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, str, str | None], tuple[float, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        what = (record.name, record.levelname, error)
        last_at, unsaid = self._said.get(what, (-_LIBRARY_REPEAT_S, 0))
        if time.monotonic() - last_at < _LIBRARY_REPEAT_S:
            self._said[what] = (last_at, unsaid + 1)
            return
        self._said[what] = (time.monotonic(), 0)
        log(LogEvent.LIBRARY, logger=record.name, level=record.levelname, error=error, count=unsaid + 1)


def configure(part: str) -> None:
    """Send events to standard error as JSON, hold libraries to the catalogue and crashes to their class."""
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    logging.basicConfig(handlers=[_LibraryHandler()], level=logging.WARNING, force=True)
    logging.captureWarnings(True)

    def report_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            return
        log(LogEvent.CRASHED, part=part, error=kind.__name__, at=innermost_line(trace))

    sys.excepthook = report_crash
    threading.excepthook = lambda arguments: report_crash(
        arguments.exc_type, arguments.exc_value or arguments.exc_type(), arguments.exc_traceback
    )
    sys.unraisablehook = lambda arguments: report_crash(
        arguments.exc_type, arguments.exc_value or arguments.exc_type(), arguments.exc_traceback
    )


def innermost_line(trace: TracebackType | None) -> str:
    """``module:line`` where an error arose; says where without saying what."""
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_globals.get('__name__', '')}:{trace.tb_lineno}"


MESSAGES_ACCEPTED = Counter("cpis_messages_accepted_total", "Messages durably kept, by door", ["door"])
MESSAGES_REFUSED = Counter("cpis_messages_refused_total", "Messages not kept, by reason", ["reason"])
MESSAGES_HANDLED = Counter("cpis_messages_handled_total", "Log positions settled, by outcome", ["outcome"])
BATCH_SECONDS = Histogram("cpis_batch_seconds", "One handled batch, from read to commit")
APPEND_SECONDS = Histogram("cpis_append_seconds", "One append, from bytes to durable")
DELIVERIES = Counter("cpis_deliveries_total", "Attempts to deliver, by channel and outcome", ["channel", "outcome"])
RECEIPTS = Counter(
    "cpis_receipts_total", "What became of messages that a provider took, by channel and end", ["channel", "receipt"]
)
LAG = Gauge("cpis_lag_records", "Records the group has not handled yet", ["group"], multiprocess_mode="livemostrecent")
LISTS_BLOCKED = Gauge(
    "cpis_lists_blocked", "Lists of which a file cannot land, so that others wait", multiprocess_mode="livemostrecent"
)
LOG_GAPS = Counter("cpis_log_gaps_total", "Times the log did not hold what was expected")
