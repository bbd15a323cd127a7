"""Starts the product with a death planted in it: at a named point of its work the process kills itself with SIGKILL.

``python -m tests.crash.points POINT:COUNT [--bug NAME] -- serve --only attendances`` is ``cpis-broker serve ...`` whose
process dies at the COUNT-th time that POINT is reached. The product has no hook for this: its functions are replaced
by name before it starts, so a point whose function was renamed ends the start, and the tests with it. The pseudo point
``poison:TEXT`` dies of every message that contains TEXT when the attendance consumer reads it.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any, Final, Literal

from broker.cli import main as run_product
from tests.crash.bugs import BUGS

POISON: Final = "poison"
_POISONED: Final = "broker.consumers.reading:read_attendance"


@dataclass(frozen=True)
class Point:
    """Where to die: before or after calls of functions, given as ``module:name`` or ``module:Class.name``."""

    part: str
    when: Literal["before", "after"]
    targets: tuple[str, ...]
    count_max: int = 3
    """Fifty messages certainly bring so many calls."""
    count_min: int = 1
    careful: bool = False
    """Only reached when the last process of the part did not stop cleanly."""


def _each_message(part: str, when: Literal["before", "after"], *targets: str) -> Point:
    return Point(part, when, targets, count_max=40)


POINTS: Final[Mapping[str, Point]] = MappingProxyType(
    {
        "intake.frame_read": _each_message("intake", "before", "broker.intake:Intake.accept_hl7v2"),
        "intake.before_append": _each_message("intake", "before", "broker.intake:Intake._append"),
        # The first check is that of the topic's creation, which every start repeats.
        "intake.append_under_way": Point(
            "intake",
            "after",
            ("adapters.sqlite_log:_LogFile._check_in_place", "adapters.kafka:AIOKafkaProducer.send"),
            count_min=2,
        ),
        "intake.after_append": _each_message(
            "intake", "after", "adapters.sqlite_log:SqliteLog.append", "adapters.kafka:KafkaLog.append"
        ),
        "intake.before_ack": _each_message("intake", "before", "adapters.mllp:frame"),
        "loop.polled": Point("attendances", "before", ("broker.consumers.loop:ConsumeLoop._handle_first",)),
        "loop.attempt_noted": Point("attendances", "after", ("broker.storage.handled:note_attempt",), careful=True),
        "attendance.read": _each_message("attendances", "after", "broker.consumers.attendance:read_record"),
        "attendance.marked": Point("attendances", "after", ("broker.storage.handled:mark_handled",)),
        "attendance.decided": Point(
            "attendances", "after", ("broker.consumers.attendance:AttendanceConsumer._decide",)
        ),
        "attendance.saved": Point("attendances", "after", ("broker.consumers.attendance:save_announcements",)),
        "attendance.offset_moved": Point("attendances", "after", ("broker.storage.handled:move_offset",)),
        "attendance.before_commit": Point("attendances", "after", ("broker.storage.audit:record_acts",)),
        "attendance.after_commit": Point("attendances", "before", ("broker.consumers.attendance:_report",)),
        "loop.before_note_progress": Point(
            "attendances",
            "before",
            ("adapters.sqlite_log:SqliteLogReader.note_progress", "adapters.kafka:KafkaLogReader.note_progress"),
        ),
        "dispatcher.leased": Point("dispatch", "before", ("broker.dispatcher:Dispatcher._work",), count_max=2),
        "dispatcher.claimed": Point("dispatch", "before", ("broker.dispatcher:Dispatcher._send",)),
        "dispatcher.before_send": Point(
            "dispatch",
            "before",
            (
                "adapters.webhook:WebhookChannel.send",
                "adapters.hl7v2_reply:Hl7v2ReplyChannel.send",
                "adapters.fhir_reply:FhirReplyChannel.send",
                "adapters.topic:TopicChannel.send",
            ),
        ),
        "dispatcher.after_send": Point("dispatch", "before", ("broker.dispatcher:Dispatcher._settle",)),
        "dispatcher.before_settle_commit": Point("dispatch", "after", ("broker.storage.outbox:settle_delivery",)),
        "dispatcher.after_settle": Point("dispatch", "after", ("broker.dispatcher:Dispatcher._settle",)),
        "dispatcher.before_release": Point("dispatch", "before", ("broker.storage.outbox:release_lane",), count_max=2),
        "jobs.claimed": Point("jobs", "before", ("broker.jobs.runner:look_back",)),
        "jobs.before_look_back_commit": Point("jobs", "after", ("broker.storage.jobs:finish_job",)),
        "jobs.after_look_back": Point("jobs", "after", ("broker.jobs.runner:look_back",)),
    }
)
"""From the socket to the settled delivery, in the order in which an attendance meets them."""


def find_owner(target: str) -> tuple[Any, str]:
    """The module or class that holds a target, and its name there. Raises AttributeError when it is gone."""
    module_name, _, path = target.partition(":")
    *classes, name = path.split(".")
    owner: Any = functools.reduce(getattr, classes, import_module(module_name))
    if not callable(getattr(owner, name)):
        raise AttributeError(f"{target} is no function")
    return owner, name


def die() -> None:
    """End this process as kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


class Fuse:
    """Dies at the COUNT-th spark."""

    def __init__(self, count: int) -> None:
        self._left = count

    def spark(self) -> None:
        """One call fewer."""
        self._left -= 1
        if self._left == 0:
            die()


def plant_point(point: Point, count: int) -> None:
    """Replace every target of the point; the calls of all of them count together."""
    fuse = Fuse(count)
    for target in point.targets:
        owner, name = find_owner(target)
        wrap = _die_before if point.when == "before" else _die_after
        setattr(owner, name, wrap(getattr(owner, name), fuse))


def plant_poison(text: str) -> None:
    """Let the consumer die of every message that contains ``text``, as a fault in a parser written in C would."""
    owner, name = find_owner(_POISONED)
    read = getattr(owner, name)

    def read_or_die(message: bytes) -> Any:
        if text.encode() in message:
            die()
        return read(message)

    setattr(owner, name, read_or_die)


def _die_before(function: Callable[..., Any], fuse: Fuse) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        fuse.spark()
        return function(*args, **kwargs)

    return wrapped


def _die_after(function: Callable[..., Any], fuse: Fuse) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            result = await function(*args, **kwargs)
            fuse.spark()
            return result

        return awaited

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        fuse.spark()
        return result

    return called


def main(arguments: Sequence[str]) -> None:
    """Plant what is asked for before ``--``, then run the product's command line with the rest."""
    split = list(arguments).index("--")
    planted, command = list(arguments[:split]), arguments[split + 1 :]
    if "--bug" in planted:
        place = planted.index("--bug")
        BUGS[planted[place + 1]]()
        del planted[place : place + 2]
    for text in planted:
        name, _, amount = text.partition(":")
        if name == POISON:
            plant_poison(amount)
        else:
            plant_point(POINTS[name], int(amount))
    sys.argv = ["cpis-broker", *command]
    run_product()


if __name__ == "__main__":
    main(sys.argv[1:])
