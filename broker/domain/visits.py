"""One visit, recomputed from its messages in whatever order they came."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

from schemas.attendance import Attendance, Event, NhsNumberProblem

LONDON: Final = ZoneInfo("Europe/London")
_AGE_MAX: Final = 130
"""Years. A date of birth that makes anybody older is a slip of the pen: it may be a child's."""
_BEGINNING: Final = datetime.min.replace(tzinfo=UTC)
_NOT_HERE: Final = frozenset(
    {
        # Expected some day, or not after all.
        *(Event.PREADMITTED, Event.PREADMISSION_CANCELLED, Event.ADMISSION_PENDING),
        *(Event.PENDING_ADMISSION_CANCELLED, Event.ADMISSION_CANCELLED, Event.ARRIVAL_CANCELLED),
        # About a person and their records, wherever they are.
        *(Event.PERSON_ADDED, Event.PERSON_DELETED, Event.PERSON_UPDATED, Event.ALLERGIES_UPDATED),
        *(Event.PATIENT_MERGED, Event.PATIENT_IDS_MERGED, Event.IDENTIFIERS_MERGED, Event.ACCOUNTS_MERGED),
        *(Event.IDENTIFIERS_MOVED, Event.VISIT_MOVED, Event.IDENTIFIERS_CHANGED),
    }
)
"""Events that do not say that anybody is in the department."""
_IDENTITY_OF_THE_MESSAGE: Final = (
    *("sender", "control_id", "event", "message_at", "event_at", "nhs_number_problem"),
    *("is_fhir", "is_degraded"),
)
_LAST_WORD: Final = tuple(name for name in Attendance.__struct_fields__ if name not in _IDENTITY_OF_THE_MESSAGE)


def fold_visit(messages: Iterable[tuple[bytes, Attendance]]) -> Attendance:
    """What is known of a visit: for each field the word of the latest message that says anything.

    ``messages`` are (marker, attendance), at least one. Latest is by event time, then by the sender's message time,
    then by marker, so every order of arrival gives the same visit. An invalid NHS number does not erase a valid one.
    """
    ordered = [message for _, message in sorted(messages, key=_order)]
    latest = ordered[-1]
    unsaid = [name for name in _LAST_WORD if not _says(latest, name)]
    known = msgspec.structs.replace(latest, **{name: _last_said(ordered, name) for name in unsaid})
    problem = None if known.nhs_number else _last_said(ordered, "nhs_number_problem") or NhsNumberProblem.ABSENT
    return msgspec.structs.replace(known, nhs_number_problem=problem)


def age_on(birth_date: date, on: date) -> int:
    """Age in whole years on a Europe/London day; someone born on 29 February has birthdays on 1 March."""
    return on.year - birth_date.year - ((on.month, on.day) < (birth_date.month, birth_date.day))


def is_adult(attendance: Attendance, on: date) -> bool:
    """Whether the person is certainly 18 or older; an unknown age is not an adult's, nor one nobody reaches."""
    return attendance.birth_date is not None and 18 <= age_on(attendance.birth_date, on) <= _AGE_MAX


def london_day(instant: datetime) -> date:
    """The calendar day in Europe/London."""
    return instant.astimezone(LONDON).date()


def opens_visit(event: Event) -> bool:
    """Whether a message of this event speaks of a visit even when nothing was heard of it before.

    One that only speaks of a person, or of a visit still to come, joins the person's latest visit or belongs to none.
    """
    return event not in _NOT_HERE


def _order(message: tuple[bytes, Attendance]) -> tuple[datetime, datetime, bytes]:
    marker, said = message
    return (said.event_at or said.message_at or _BEGINNING, said.message_at or _BEGINNING, marker)


def _says(message: Attendance, name: str) -> bool:
    value = getattr(message, name)
    return value is not None and value != ()


def _last_said(ordered: list[Attendance], name: str) -> object:
    for message in reversed(ordered):
        if _says(message, name):
            return getattr(message, name)
    return () if name == "names" else None
