"""One visit, recomputed from its messages in whatever order they came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from operator import attrgetter
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

from schemas.attendance import Attendance, Event, NhsNumberProblem

LONDON: Final = ZoneInfo("Europe/London")
_AGE_MAX: Final = 130
"""Years. A date of birth that makes anybody older is a slip of the pen: it may be a child's."""
Order = tuple[datetime, datetime, bytes]
"""Of a visit's messages."""
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
        *(Event.LINKED, Event.PERSONS_MERGED, Event.ACCOUNT_IDS_MERGED, Event.PATIENT_ACCOUNT_IDS_MERGED),
        *(Event.UNLINKED, Event.PERSON_IDS_MERGED, Event.ACCOUNT_MOVED, Event.EXTERNAL_ID_CHANGED),
        *(Event.VISITS_MERGED, Event.VISIT_RENUMBERED),
    }
)
"""Events that do not say that anybody is in the department."""
_MERGES: Final = frozenset(
    {
        *(Event.PATIENT_MERGED, Event.LINKED, Event.PERSONS_MERGED, Event.PATIENT_IDS_MERGED),
        *(Event.PATIENT_ACCOUNT_IDS_MERGED, Event.PERSON_IDS_MERGED, Event.IDENTIFIERS_MERGED, Event.IDENTIFIERS_MOVED),
        *(Event.EXTERNAL_ID_CHANGED, Event.IDENTIFIERS_CHANGED),
    }
)
"""Events that say: what was under the former number is the patient's."""
_OF_PERSONS: Final = frozenset(
    {
        *(Event.PERSON_ADDED, Event.PERSON_DELETED, Event.PERSON_UPDATED, Event.ALLERGIES_UPDATED, *_MERGES),
        *(Event.UNLINKED, Event.ACCOUNT_IDS_MERGED, Event.ACCOUNTS_MERGED, Event.ACCOUNT_MOVED, Event.VISIT_MOVED),
        *(Event.VISITS_MERGED, Event.VISIT_RENUMBERED),
    }
)
_AT_ONE_MOMENT: Final[Mapping[Event, int]] = {
    **dict.fromkeys((Event.PREADMITTED, Event.ADMISSION_PENDING, Event.PERSON_ADDED), 0),
    Event.REGISTERED: 1,
    **dict.fromkeys((Event.ADMITTED, Event.MADE_INPATIENT, Event.TRANSFERRED), 2),
    Event.LEFT: 4,
    **dict.fromkeys((Event.ADMISSION_CANCELLED, Event.TRANSFER_CANCELLED, Event.DISCHARGE_CANCELLED), 5),
    **dict.fromkeys((Event.PREADMISSION_CANCELLED, Event.PENDING_ADMISSION_CANCELLED, Event.UNLINKED), 5),
}
"""What comes before what when a feed gives both the same second or minute; what is not named here, an update, is 3."""
_VISIT_MOVES: Final = frozenset({Event.VISIT_MOVED, Event.VISITS_MERGED, Event.VISIT_RENUMBERED})
"""Events that say: the visit under the former number, of the former patient, is this one."""
_IDENTITY_OF_THE_MESSAGE: Final = (
    *("sender", "control_id", "event", "message_at", "event_at", "nhs_number_problem"),
    *("is_fhir", "is_degraded", "is_test", "former_patient_id", "former_visit_number"),
)
_OF_THE_PERSON: Final = (
    *("nhs_number", "nhs_number_problem", "nhs_number_status", "mother_nhs_number", "birth_date", "sex", "postcode"),
    "is_deceased",
)
_LAST_WORD: Final = tuple(name for name in Attendance.__struct_fields__ if name not in _IDENTITY_OF_THE_MESSAGE)
_read_last_word: Final = attrgetter(*_LAST_WORD)


def fold_visit(messages: Iterable[tuple[bytes, Attendance]]) -> Attendance:
    """What is known of a visit: for each field the word of the latest message that says anything.

    ``messages`` are (marker, attendance), at least one. Latest is by ``message_order``, so every order of
    arrival gives the same visit. An invalid NHS number does not erase a valid one.
    """
    ordered = [message for _, message in sorted(messages, key=message_order)]
    if gone := moved_from(ordered):
        ordered = [_without_person(message) if message.local_patient_id in gone else message for message in ordered]
    return _fold_ordered(ordered)


def fold_later(known: Attendance, said: Attendance) -> Attendance:
    """As ``fold_visit``, of a visit as it is known and a message later than all of it. None of them moves a visit."""
    return _fold_ordered((known, said))


def _fold_ordered(ordered: Sequence[Attendance]) -> Attendance:
    known = ordered[-1]
    if unsaid := _gather_unsaid(ordered):
        known = msgspec.structs.replace(known, **unsaid)
    problem = None if known.nhs_number else _last_problem(ordered)
    if problem is known.nhs_number_problem:
        return known
    return msgspec.structs.replace(known, nhs_number_problem=problem)


def _without_person(said: Attendance) -> Attendance:
    """What a message says of a visit that turned out to be another patient's."""
    return msgspec.structs.replace(said, local_patient_id=None, names=(), **dict.fromkeys(_OF_THE_PERSON))


def _gather_unsaid(ordered: Sequence[Attendance]) -> dict[str, object]:
    """What the latest message leaves unsaid, in the words of those before it."""
    said = zip(_LAST_WORD, _read_last_word(ordered[-1]), strict=True)
    wanted = [name for name, value in said if value is None or value == ()]
    found: dict[str, object] = {}
    for message in ordered[-2::-1]:
        for name in wanted:
            if name not in found and (value := getattr(message, name)) is not None and value != ():
                found[name] = value
        if len(found) == len(wanted):
            break
    return found


def _last_problem(ordered: Sequence[Attendance]) -> NhsNumberProblem:
    said = (message.nhs_number_problem for message in reversed(ordered) if message.nhs_number_problem is not None)
    return next(said, NhsNumberProblem.ABSENT)


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


def is_merge(said: Attendance) -> bool:
    """Whether a message says that a former patient number is another patient's now."""
    former = said.former_patient_id
    return bool(former) and former != said.local_patient_id and (said.event in _MERGES or said.is_fhir)


def moves_visit(said: Attendance) -> bool:
    """Whether a message says that what was known under another visit number, or of another patient, is this visit."""
    if said.event not in _VISIT_MOVES or not said.visit_number:
        return False
    is_renumbered = said.former_visit_number not in (None, said.visit_number)
    return is_renumbered or said.former_patient_id not in (None, said.local_patient_id)


def moved_from(ordered: Iterable[Attendance]) -> set[str]:
    """The patients from whom a visit was moved away for good, by its messages in the order of their events."""
    gone = set[str]()
    for said in ordered:
        if said.former_patient_id and moves_visit(said):
            gone.add(said.former_patient_id)
            gone.discard(said.local_patient_id or "")
    return gone


def is_of_person(said: Attendance) -> bool:
    """Whether a message speaks of a person and of no visit of theirs in particular."""
    if said.event in _MERGES or said.event is Event.UNLINKED:
        return True
    return said.event in _OF_PERSONS and not said.visit_number


def visit_slot(said: Attendance) -> str | None:
    """What tells the visits of one patient apart: the visit number, else the day."""
    if said.visit_number:
        return said.visit_number
    day = said.arrived_at or said.event_at or said.message_at
    return None if day is None else london_day(day).isoformat()


def message_order(message: tuple[bytes, Attendance]) -> Order:
    """Where a message, (marker, attendance), stands in its visit: by event time, then as sent.

    At one and the same moment an arrival comes before an update and a cancellation last; two of a kind come as their
    sender counted them (MSH-10), a longer number being a later one; then by marker.
    """
    marker, said = message
    counted = said.control_id.encode()
    place = b"%c%b%b%b" % (_AT_ONE_MOMENT.get(said.event, 3), len(counted).to_bytes(4, "big"), counted, marker)
    return (said.event_at or said.message_at or _BEGINNING, said.message_at or _BEGINNING, place)
