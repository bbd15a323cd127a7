"""Which patient numbers of one sender are one person, by merges and partings, and what was said of that person."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

import msgspec

from broker.domain.visits import is_merge, is_of_person, message_order, moved_from, moves_visit
from schemas.attendance import Attendance, Event

Patient = tuple[str, str]
"""Sender, and the sender's own patient number."""
_OF_THE_VISIT: Final = (
    *("visit_number", "patient_class", "department", "site", "arrived_at", "left_at", "arrival_mode", "complaint"),
    "disposition",
)


class Kinship:
    """Messages about persons, of which a visit takes in those of everybody its patient is.

    The same messages give the same answers in whatever order they were heard.
    """

    def __init__(self) -> None:
        self._said: dict[bytes, Attendance] = {}
        self._of: dict[Patient, set[bytes]] = {}
        self._merges: dict[Patient, set[bytes]] = {}
        self._former: dict[Patient, set[bytes]] = {}
        self._parted: dict[frozenset[Patient], set[bytes]] = {}

    def hear(self, marker: bytes, said: Attendance) -> None:
        """Add a message about a person."""
        patient, former = patient_of(said), former_of(said)
        if patient is None or marker in self._said:
            return
        self._said[marker] = as_of_person(said)
        self._of.setdefault(patient, set()).add(marker)
        if former is None:
            return
        if said.event is Event.UNLINKED:
            self._parted.setdefault(frozenset((patient, former)), set()).add(marker)
        elif is_merge(said):
            self._merges.setdefault(former, set()).add(marker)
            self._former.setdefault(patient, set()).add(marker)

    def reach(self, patients: Iterable[Patient]) -> set[Patient]:
        """The patients themselves, and whoever they were merged into."""
        if not self._merges:
            return {*patients}
        found, waiting = set[Patient](), [*patients]
        while waiting:
            if (patient := waiting.pop()) not in found:
                found.add(patient)
                waiting += self._survivors(patient)
        return found

    def family(self, patient: Patient) -> set[Patient]:
        """Everybody whom merges that stand connect with a patient."""
        if not self._merges:
            return {patient}
        found, waiting = set[Patient](), [patient]
        while waiting:
            if (one := waiting.pop()) not in found:
                found.add(one)
                waiting += [*self._survivors(one), *self._formers(one)]
        return found

    def root(self, patient: Patient) -> Patient:
        """The one of a family under whom its new visits are kept."""
        family = self.family(patient)
        return min((one for one in family if not self._survivors(one)), default=min(family))

    def news_of(self, patients: Iterable[Patient]) -> dict[bytes, Attendance]:
        """What was said of the patients and of whoever they were merged into. A merge that was undone says nothing."""
        if not self._said:
            return {}
        reached = self.reach(patients)
        markers = {marker for one in reached for marker in self._of.get(one, ())}
        return {marker: self._said[marker] for marker in markers if self._stands(marker)}

    def everything_said(self) -> list[Attendance]:
        """Every message, also those of merges that were undone."""
        return list(self._said.values())

    def counts_for(self, marker: bytes, said: Attendance, reached: Collection[Patient]) -> bool:
        """Whether what was said of a person still speaks of one of those whom a visit reaches."""
        return patient_of(said) in reached and (marker not in self._said or self._stands(marker))

    def _stands(self, marker: bytes) -> bool:
        said = self._said[marker]
        return said.event is not Event.UNLINKED and (not is_merge(said) or not self._is_undone(marker))

    def _survivors(self, patient: Patient) -> list[Patient]:
        merges = (marker for marker in self._merges.get(patient, ()) if not self._is_undone(marker))
        return [found for marker in merges if (found := patient_of(self._said[marker])) is not None]

    def _formers(self, patient: Patient) -> list[Patient]:
        merges = (marker for marker in self._former.get(patient, ()) if not self._is_undone(marker))
        return [found for marker in merges if (found := former_of(self._said[marker])) is not None]

    def _is_undone(self, marker: bytes) -> bool:
        said = self._said[marker]
        pair = frozenset(one for one in (patient_of(said), former_of(said)) if one is not None)
        at = message_order((marker, said))
        return any(message_order((each, self._said[each])) > at for each in self._parted.get(pair, ()))


def patient_of(said: Attendance) -> Patient | None:
    """Whom a message is about, as its sender knows them."""
    return (said.sender, said.local_patient_id) if said.local_patient_id else None


def former_of(said: Attendance) -> Patient | None:
    """The other patient of a merge or a parting."""
    return (said.sender, said.former_patient_id) if said.former_patient_id else None


def own_patients(messages: Iterable[tuple[bytes, Attendance]]) -> set[Patient]:
    """Under which patients a visit itself was spoken of, (marker, attendance), and from whom it was not moved away."""
    own = [message for message in messages if not is_of_person(message[1])]
    gone = set[str]()
    if any(moves_visit(said) for _, said in own):
        gone = moved_from(said for _, said in sorted(own, key=message_order))
    return {found for _, said in own if (found := patient_of(said)) is not None and found[1] not in gone}


def as_of_person(said: Attendance) -> Attendance:
    """What a message says of the person, without what it says of a visit."""
    if is_of_person(said) and not any(getattr(said, name) for name in _OF_THE_VISIT):
        return said
    event = said.event if is_of_person(said) else Event.IDENTIFIERS_MERGED
    return msgspec.structs.replace(said, event=event, **dict.fromkeys(_OF_THE_VISIT))


def relates(said: Attendance) -> bool:
    """Whether a message joins two patients, or parts them."""
    return is_merge(said) or (said.event is Event.UNLINKED and former_of(said) is not None)
