"""The course of a visit: where it stands, recomputed by event time from its messages in whatever order they came."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

import msgspec

from broker.domain.visits import message_order, opens_visit
from schemas.attendance import Attendance, Event


class VisitState(StrEnum):
    """Where a visit stands."""

    EXPECTED = "expected"
    """Nothing says yet that the person is here."""
    HERE = "here"
    ADMITTED = "admitted"
    LEFT = "left"
    LEFT_BEFORE_TREATMENT = "left_before_treatment"
    TRANSFERRED = "transferred"
    """To another site."""
    DIED = "died"
    CANCELLED = "cancelled"


DEFAULT_HABITS: Final[frozenset[Event]] = frozenset()
"""Of a system of which nothing is known: A04, A08 and every other event of somebody present register; A01 registers
when the patient class is E, and admits otherwise."""


def visit_state(
    messages: Iterable[tuple[bytes, Attendance]], registers_by: Collection[Event] = DEFAULT_HABITS
) -> VisitState:
    """Where the visit stands after its messages, (marker, attendance), by event time.

    ``registers_by`` are the events with which the sending system marks a registration (``sites.registers_by``).
    """
    course = _Course()
    for _, said in sorted(messages, key=message_order):
        course.follow(said, registers_by)
    return course.state()


def says_present(said: Attendance, registers_by: Collection[Event] = DEFAULT_HABITS) -> bool:
    """Whether a message speaks of somebody present, in the manner of the system that sent it.

    A system that says how it registers means nothing by an A08 that it does not name.
    """
    if not registers_by or said.event not in _REGISTERING:
        return opens_visit(said.event)
    return said.event in registers_by


class Quiet(msgspec.Struct, frozen=True, kw_only=True):
    """After how long without a message a visit comes to rest, wherever it stands. Nobody is told of it."""

    visit: timedelta = timedelta(hours=72)
    admission: timedelta = timedelta(days=28)
    """Of a visit that stands at ``admitted``: wards are silent for longer."""


def begins_anew(said: Attendance, closed_at: datetime, registers_by: Collection[Event] = DEFAULT_HABITS) -> bool:
    """Whether a message under the number of a visit that came to rest is of another visit.

    It is when the person came after that: by the time of arrival that the message gives, else by the time of the event
    when that registers somebody. A registration that is sent again gives the old arrival, and reopens the visit.
    """
    if not says_present(said, registers_by):
        return False
    if said.arrived_at is not None:
        return said.arrived_at > closed_at
    at = said.event_at or said.message_at
    return at is not None and at > closed_at and _registers(said, registers_by)


def begins_day(said: Attendance, registers_by: Collection[Event] = DEFAULT_HABITS) -> bool:
    """Whether a message without a visit number says itself on which day its visit began."""
    return said.arrived_at is not None or said.event is Event.ADMITTED or _registers(said, registers_by)


def goes_on(said: Attendance, registers_by: Collection[Event] = DEFAULT_HABITS) -> bool:
    """Whether a message without a visit number may be of a visit that began on a day before."""
    return said.event in _GOES_ON and not begins_day(said, registers_by)


def choose_visit(
    said: Attendance,
    known: Mapping[str, Collection[Attendance]],
    registers_by: Collection[Event] = DEFAULT_HABITS,
    quiet: Quiet | None = None,
) -> str | None:
    """Of a patient's visits without a number that in whose course a message falls; None: one of its own day.

    The message ``goes_on``. It is of the visit that was registered last before it, and not longer ago than a visit may
    be silent. Where nobody was registered nothing says that this is not the arrival.
    """
    at, limits = _instant_of(said), quiet or Quiet()
    found: list[tuple[datetime, str]] = []
    for visit_id, heard in known.items():
        for each in heard:
            began_at = each.arrived_at or _instant_of(each)
            if at and began_at and begins_day(each, registers_by) and began_at <= at <= _end(began_at, heard, limits):
                found.append((began_at, visit_id))
    return max(found)[1] if found else None


def _end(began_at: datetime, heard: Collection[Attendance], limits: Quiet) -> datetime:
    """Until when what was heard may go on: a stay that a discharge has ended goes on no longer than any other visit."""
    if not any(each.event in (Event.ADMITTED, Event.MADE_INPATIENT) for each in heard):
        return began_at + limits.visit
    said = [(at, each.event) for each in heard if (at := _instant_of(each)) is not None and at >= began_at]
    ends = [each for each in said if each[1] in (Event.LEFT, Event.DISCHARGE_CANCELLED)]
    last_at, last = max(ends, default=(began_at, None))
    return last_at + limits.visit if last is Event.LEFT else began_at + limits.admission


def _instant_of(said: Attendance) -> datetime | None:
    return said.event_at or said.message_at


_GOES_ON: Final = frozenset(
    {
        *(Event.LEFT, Event.UPDATED, Event.TRANSFERRED, Event.MADE_INPATIENT, Event.MADE_OUTPATIENT),
        *(Event.ADMISSION_CANCELLED, Event.TRANSFER_CANCELLED, Event.DISCHARGE_CANCELLED),
    }
)


def is_after(said: Attendance, closed_at: datetime) -> bool:
    """Whether a message is of what came after a visit, where another visit has begun under its number."""
    at = said.arrived_at or said.event_at or said.message_at
    return at is None or at > closed_at


def _registers(said: Attendance, registers_by: Collection[Event]) -> bool:
    if said.event is Event.ADMITTED:
        return Event.ADMITTED in registers_by or said.patient_class == "E"
    return said.event is Event.REGISTERED or said.event in registers_by


_REGISTERING: Final = frozenset({Event.UPDATED, Event.PERSON_ADDED})
"""What ``registers_by`` decides about, besides whether A01 registers or admits. An A04 registers always."""
_NOT_TREATED: Final = ("12", "13", "1066301000000103", "1066311000000101", "1066321000000107", "aadvice")
_WARDS: Final = (
    *("306706006", "1066331000000109", "1066341000000100", "1066361000000104", "1066371000000106"),
    *("1066381000000108", "1066391000000105", "1066401000000108"),
)
DISPOSITIONS: Final[Mapping[str, VisitState]] = {
    "1": VisitState.ADMITTED,
    **dict.fromkeys(_WARDS, VisitState.ADMITTED),
    "7": VisitState.TRANSFERRED,
    "19712007": VisitState.TRANSFERRED,
    "other-hcf": VisitState.TRANSFERRED,
    "10": VisitState.DIED,
    "305398007": VisitState.DIED,
    "exp": VisitState.DIED,
    **dict.fromkeys(_NOT_TREATED, VisitState.LEFT_BEFORE_TREATMENT),
}
"""PV1-36 of an emergency department (NHS ITK), ECDS discharge destinations and statuses, FHIR discharge-disposition."""
_OF_INPATIENTS: Final[Mapping[str, VisitState]] = {"4": VisitState.DIED, "5": VisitState.DIED}
"""PV1-36 of an inpatient: method of discharge. 1 is an ordinary discharge there."""


class _Course:
    """What stands of the steps taken so far; a cancellation takes the step out that it names."""

    def __init__(self) -> None:
        self.steps: list[VisitState] = []
        self.is_cancelled = False
        self.site: str | None = None
        self.disposition: VisitState | None = None
        self.is_deceased = False
        self.cancelled_at: datetime | None = None

    def follow(self, said: Attendance, registers_by: Collection[Event]) -> None:
        self.is_deceased = self.is_deceased if said.is_deceased is None else said.is_deceased
        if said.event in (Event.ADMITTED, Event.MADE_INPATIENT):
            self._admit(said, registers_by)
        elif said.event is Event.TRANSFERRED:
            self._transfer(said)
        elif said.event is Event.ADMISSION_CANCELLED:
            self._cancel(said)
        elif said.event in _STEPS:
            _STEPS[said.event](self)
        elif says_present(said, registers_by):
            self._register(again=said.event is Event.REGISTERED)
        if said.disposition is not None and said.event is not Event.DISCHARGE_CANCELLED:
            known = _OF_INPATIENTS if said.patient_class == "I" else DISPOSITIONS
            self.disposition = known.get(said.disposition)
        self.site = said.site or self.site

    def _register(self, *, again: bool) -> None:
        is_over = bool(self.steps) and self.steps[-1] is VisitState.LEFT
        has_come = any(step is not VisitState.EXPECTED for step in self.steps)
        if again and is_over:
            self.disposition = None  # of the stay before
        if (again and is_over) or (not has_come and (again or not self.is_cancelled)):
            self.steps.append(VisitState.HERE)

    def _admit(self, said: Attendance, registers_by: Collection[Event]) -> None:
        if said.event is Event.ADMITTED and _registers(said, registers_by):
            self._register(again=True)
        elif not self.steps or self.steps[-1] is not VisitState.ADMITTED:
            self.steps.append(VisitState.ADMITTED)

    def _transfer(self, said: Attendance) -> None:
        if said.site and self.site and said.site != self.site:
            self.steps.append(VisitState.TRANSFERRED)
        else:
            self._register(again=False)

    def leave(self) -> None:
        """A03."""
        self.steps.append(VisitState.LEFT)

    def come_back(self) -> None:
        """A13: the discharge was none, nor what was said of it, which the message may say again."""
        self._take_out(VisitState.LEFT)
        self.disposition = None
        self._register(again=False)

    def stay(self) -> None:
        """A12."""
        self._take_out(VisitState.TRANSFERRED)
        self._register(again=False)

    def _cancel(self, said: Attendance) -> None:
        """A11 takes back an admission from the department, else the visit; sent again, it takes back nothing more.

        Of FHIR it is the Encounter that is cancelled, wherever its patient was.
        """
        if said.event_at is not None and said.event_at == self.cancelled_at:
            return
        self.cancelled_at = said.event_at
        if not said.is_fhir and VisitState.ADMITTED in self.steps and VisitState.HERE in self.steps:
            self._take_out(VisitState.ADMITTED)
        else:
            self.steps.clear()
            self.is_cancelled = True

    def expect(self) -> None:
        """A05, A14."""
        if not self.steps:
            self.steps.append(VisitState.EXPECTED)

    def expect_no_more(self) -> None:
        """A27, A38."""
        if VisitState.EXPECTED in self.steps:
            self._take_out(VisitState.EXPECTED)
        self.is_cancelled = True

    def become_outpatient(self) -> None:
        """A07."""
        self._take_out(VisitState.ADMITTED)
        self._register(again=False)

    def _take_out(self, step: VisitState) -> None:
        """The latest such step."""
        if step in self.steps:
            del self.steps[len(self.steps) - 1 - self.steps[::-1].index(step)]

    def state(self) -> VisitState:
        if not self.steps:
            return VisitState.CANCELLED if self.is_cancelled else VisitState.EXPECTED
        if self.is_deceased:
            return VisitState.DIED
        last = self.steps[-1]
        if self.disposition is not None and last in (VisitState.HERE, VisitState.LEFT):
            return self.disposition
        return last


_STEPS: Final[Mapping[Event, Callable[[_Course], None]]] = {
    Event.LEFT: _Course.leave,
    Event.DISCHARGE_CANCELLED: _Course.come_back,
    Event.TRANSFER_CANCELLED: _Course.stay,
    Event.PREADMITTED: _Course.expect,
    Event.ADMISSION_PENDING: _Course.expect,
    Event.PENDING_ADMISSION_CANCELLED: _Course.expect_no_more,
    Event.PREADMISSION_CANCELLED: _Course.expect_no_more,
    Event.MADE_OUTPATIENT: _Course.become_outpatient,
}
