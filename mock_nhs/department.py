"""An emergency department's day: who comes, and the ADT messages its system writes of them.

The shape is the one of NHS hospitals (ITK HL7 v2 specification 1.0.15 on v2.4; domain handbook 3.2): local number and
NHS number as repetitions of PID-3, the number's status as ``NSTSnn`` in PID-32, the visit number in PV1-19. Four
messages in five are updates. Some identities are not what one would wish (``Identity``). A share of the visits goes as
FHIR message Bundles instead (``mock_nhs.fhir_bundle``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from types import MappingProxyType
from typing import Final, cast

from mock_nhs.er7 import escape, write_message, write_segment
from mock_nhs.faults import Faults
from mock_nhs.fhir_bundle import FHIR_JSON, LONDON, message_id, write_attendance
from mock_nhs.people import Kin, Person
from schemas.identifiers import NhsNumber

OPEN_VISITS_MAX: Final = 400
NEW_VISIT_SHARE: Final = 0.2
HL7V2: Final = "application/hl7-v2+er7"

_SAME_STRUCTURE: Final = dict.fromkeys(("A01", "A04", "A08", "A13"), "ADT_A01")
_STRUCTURES: Final = _SAME_STRUCTURE | {"A03": "ADT_A03", "A11": "ADT_A09", "A31": "ADT_A05", "A40": "ADT_A39"}
_UPDATES: Final = ("A08",) * 13 + ("A31",) * 3 + ("A03",) * 3 + ("A01",)
_COMPLAINTS: Final = (
    *("Fall from height", "Burn to left hand", "D&V since yesterday", "Head injury, vomited x2", "Wheeze"),
    *("Fever ?cause", "Ingestion of tablets", "Dog bite to face", "Arm pain after fall", "Rash | non-blanching"),
    *("Self harm", "Abdominal pain", "Assault", "Foreign body in ear", "Reduced feeding ~2 days"),
)
_ARRIVAL_MODES: Final = "AACCCCFP"
_DISPOSITIONS: Final = ("2", "3", "3", "3", "12")


class Identity(StrEnum):
    """How well the department knows who the patient is."""

    TRACED = "traced"
    RENAMED = "renamed"
    """The number is right; the family name is another one."""
    LATE = "late"
    """No NHS number until the first A08."""
    ABSENT = "absent"
    """No NHS number at all."""
    INVALID = "invalid"
    """A number that fails the modulus 11 check."""
    MISTAKEN = "mistaken"
    """Somebody else's number, with the patient's own name and date of birth."""


TYPICAL: Final[Mapping[Identity, float]] = MappingProxyType(
    {
        Identity.TRACED: 0.9,
        Identity.RENAMED: 0.03,
        Identity.LATE: 0.03,
        Identity.ABSENT: 0.02,
        Identity.INVALID: 0.01,
        Identity.MISTAKEN: 0.01,
    }
)
"""The share of visits with each identity."""


@dataclass(kw_only=True)
class Visit:
    """One visit, as the department's own system holds it."""

    number: str
    person: Person
    identity: Identity
    local_patient_id: str
    nhs_number: str
    """As it stands in PID-3 now; empty while unknown."""
    number_status: str
    family_name: str
    patient_class: str
    arrived_at: datetime
    arrival_mode: str
    complaint: str
    disposition: str = ""
    left_at: datetime | None = None
    by_fhir: bool = False
    mother_nhs_number: str = ""
    """Written in PID-21; empty when the department does not say."""
    concern: str = ""
    """A safeguarding code (SNOMED CT) that the department wrote; only in HL7 v2."""


@dataclass(frozen=True, kw_only=True)
class AdtMessage:
    """A message to send, and what the department knows of it."""

    control_id: str
    """MSH-10, or the id of the MessageHeader."""
    event: str
    visit_number: str
    local_patient_id: str
    nhs_number: str
    """As written in the message; empty when it is not."""
    person: Person
    identity: Identity
    unreadable: bool
    body: bytes
    content_type: str = HL7V2

    def facts(self) -> dict[str, str | int | bool]:
        """What the department's journal keeps of it."""
        return {
            "control_id": self.control_id,
            "event": self.event,
            "visit_number": self.visit_number,
            "local_patient_id": self.local_patient_id,
            "nhs_number_digest": digest_number(self.nhs_number),
            "person_digest": digest_number(self.person.nhs_number),
            "birth_date": self.person.birth_date.isoformat(),
            "identity": str(self.identity),
            "unreadable": self.unreadable,
            "content_type": self.content_type,
            "body_digest": sha256(self.body).hexdigest(),
        }


def digest_number(nhs_number: str) -> str:
    """SHA-256 of an NHS number in hexadecimal, as journals hold it; empty for none."""
    return sha256(nhs_number.encode()).hexdigest() if nhs_number else ""


def _now() -> datetime:
    return datetime.now(UTC)


class Department:
    """Writes the messages of one site. The same seed and clock give the same messages."""

    def __init__(
        self,
        *,
        site: str,
        credential: str,
        people: Sequence[Person],
        seed: int = 1,
        identities: Mapping[Identity, float] = TYPICAL,
        faults: Faults | None = None,
        clock: Callable[[], datetime] = _now,
        fhir: float = 0.0,
    ) -> None:
        """``site`` is the ODS code for MSH-4, ``credential`` stands in MSH-8; ``seed`` is part of every id; ``fhir``
        is the share of visits (0 to 1) whose messages are FHIR Bundles.

        ``people`` need somebody unrelated to everybody wherever an identity is RENAMED or MISTAKEN.
        """
        self._site = site
        self._credential = credential
        self._people = people
        self._seed = seed
        self._draws = random.Random(f"{seed}:{site}:department")
        self._identities = identities
        self._faults = faults or Faults()
        self._clock = clock
        self._fhir = fhir
        self._fhir_draws = random.Random(f"{seed}:{site}:fhir")
        self._written = 0
        self._visits = 0
        self.open: dict[str, Visit] = {}

    def next_message(self) -> AdtMessage:
        """The next message of the day: one in five opens a visit, the others update one that is open."""
        if not self.open or self._draws.random() < NEW_VISIT_SHARE:
            identity = self._draws.choices(list(self._identities), list(self._identities.values()))[0]
            event = "A01" if self._draws.random() < 0.1 else "A04"
            return self.register(self._draws.choice(self._people), identity, event=event)
        visit = self.open[self._draws.choice(list(self.open))]
        event = self._draws.choice(_UPDATES)
        if len(self.open) > OPEN_VISITS_MAX:
            visit, event = next(iter(self.open.values())), "A03"
        return self.update(visit.number, event)

    def register(
        self,
        person: Person,
        identity: Identity = Identity.TRACED,
        *,
        event: str = "A04",
        complaint: str = "",
        by_fhir: bool | None = None,
        mother: str = "",
        concern: str = "",
        readable: bool = True,
    ) -> AdtMessage:
        """Open a visit: A04 in the emergency department, A01 straight to a ward.

        ``by_fhir`` None: as the department's share has it. ``mother`` is the mother's NHS number. A message that is
        not ``readable`` does not say who came.
        """
        self._visits += 1
        number = f"V{self._seed}-{self._visits:06d}"
        nhs_number, status = self._know_number(person, identity)
        visit = Visit(
            number=number,
            person=person,
            identity=identity,
            local_patient_id=f"H{int(digest_number(person.nhs_number + self._site)[:8], 16) % 10**8:08d}",
            nhs_number=nhs_number,
            number_status=status,
            family_name=person.family_name if identity is not Identity.RENAMED else self._other_name(person),
            patient_class="I" if event == "A01" else "E",
            arrived_at=self._clock(),
            arrival_mode=self._draws.choice(_ARRIVAL_MODES),
            complaint=complaint or self._draws.choice(_COMPLAINTS),
            by_fhir=(self._fhir_draws.random() < self._fhir) if by_fhir is None else by_fhir,
            mother_nhs_number=mother,
            concern=concern,
        )
        if readable:
            self.open[number] = visit
        return self._write(visit, event, readable=readable)

    def register_newborn(self, mother: Person) -> AdtMessage:
        """Open a visit of a baby born today: no NHS number yet, but the mother's."""
        baby = replace(
            mother,
            nhs_number=cast(NhsNumber, ""),
            given_name="Baby",
            birth_date=self._clock().astimezone(LONDON).date(),
            kin=Kin.CHILD,
        )
        complaint = "Newborn, brought in by ambulance with the mother"
        return self.register(baby, Identity.ABSENT, complaint=complaint, by_fhir=False, mother=mother.nhs_number)

    def update(self, visit_number: str, event: str = "A08") -> AdtMessage:
        """Write of an open visit: A08 or A31; A01 when the patient is admitted; A03 closes the visit.

        A11 says that nobody came after all, A13 that nobody left; A40 that another record is joined to the patient's.
        """
        visit = self.open[visit_number]
        if event == "A08" and visit.identity is Identity.LATE:
            visit.nhs_number, visit.number_status = visit.person.nhs_number, "01"
        elif event == "A08":
            visit.complaint = self._draws.choice((visit.complaint, self._draws.choice(_COMPLAINTS)))
        elif event == "A01":
            visit.patient_class = "I"
        elif event == "A03":
            visit.disposition = self._draws.choice(_DISPOSITIONS)
            visit.left_at = self._clock()
            del self.open[visit_number]
        return self._write(visit, event)

    def _know_number(self, person: Person, identity: Identity) -> tuple[str, str]:
        """What stands in PID-3, and its status in the NHS Data Dictionary's codes."""
        if identity in (Identity.LATE, Identity.ABSENT):
            return "", "03"
        if identity is Identity.INVALID:
            number = person.nhs_number
            return f"{number[:9]}{(int(number[9]) + 1) % 10}", "02"
        if identity is Identity.MISTAKEN:
            return self._unrelated(person).nhs_number, "02"
        return person.nhs_number, "01"

    def _unrelated(self, person: Person) -> Person:
        """Somebody with other names and another date of birth; tried at random, for towns are large."""
        names = set(f"{person.family_name} {person.given_name}".split())
        for _ in range(1_000):
            other = self._draws.choice(self._people)
            others_names = f"{other.family_name} {other.given_name}".split()
            if other.birth_date != person.birth_date and names.isdisjoint(others_names):
                return other
        raise ValueError("nobody in this town is unrelated")

    def _other_name(self, person: Person) -> str:
        return self._unrelated(person).family_name

    def _write(self, visit: Visit, event: str, *, readable: bool = True) -> AdtMessage:
        self._written += 1
        control_id = f"{self._site}-{self._seed}-{self._written:07d}"
        unreadable = self._faults.fires("ed.write.unreadable") or not readable
        if visit.by_fhir:
            body = write_attendance(
                visit, site=self._site, event=event, control_id=control_id, at=self._clock(), readable=not unreadable
            )
        else:
            body = self._write_hl7(visit, event, control_id, readable=not unreadable)
        return AdtMessage(
            control_id=message_id(control_id) if visit.by_fhir else control_id,
            event=event,
            visit_number=visit.number,
            local_patient_id=visit.local_patient_id,
            nhs_number=visit.nhs_number,
            person=visit.person,
            identity=visit.identity,
            unreadable=unreadable,
            body=body,
            content_type=FHIR_JSON if visit.by_fhir else HL7V2,
        )

    def _write_hl7(self, visit: Visit, event: str, control_id: str, *, readable: bool) -> bytes:
        segments = [
            self._write_msh(control_id, event),
            write_segment("EVN", {2: write_time(self._clock())}),
            *([_write_pid(self._site, visit)] if readable else []),
            *([write_segment("MRG", {1: f"X{visit.local_patient_id}^^^{self._site}^MR"})] if event == "A40" else []),
            _write_pv1(self._site, visit, event),
            write_segment("PV2", {3: f"^{escape(visit.complaint)}", 38: visit.arrival_mode}),
            *([_write_concern(visit.concern)] if visit.concern else []),
        ]
        return write_message(segments)

    def _write_msh(self, control_id: str, event: str) -> str:
        return write_segment(
            "MSH",
            {
                3: "EDIS",
                4: self._site,
                5: "BROKER",
                6: "CPIS",
                7: write_time(self._clock()),
                8: self._credential,
                9: f"ADT^{event}^{_STRUCTURES[event]}",
                10: control_id,
                11: "P",
                12: "2.4",
                15: "AL",
                16: "NE",
                17: "GBR",
                18: "UNICODE",
                19: "EN",
                21: "iTKv1.0",
            },
        )


def write_time(instant: datetime) -> str:
    """An HL7 time stamp as English hospitals write it: local time without an offset."""
    return instant.astimezone(LONDON).strftime("%Y%m%d%H%M%S")


def _write_concern(code: str) -> str:
    return write_segment("OBX", {1: "1", 2: "CE", 3: "SAFE^Safeguarding", 5: f"{code}^^SCT", 11: "F"})


def _write_pid(site: str, visit: Visit) -> str:
    person = visit.person
    local = f"{visit.local_patient_id}^^^{site}^MR"
    given, _, others = person.given_name.partition(" ")
    return write_segment(
        "PID",
        {
            1: "1",
            3: f"{local}~{visit.nhs_number}^^^NHS^NH" if visit.nhs_number else local,
            5: f"{escape(visit.family_name)}^{escape(given)}^{escape(others)}^^^^L",
            7: person.birth_date.strftime("%Y%m%d"),
            8: person.sex,
            11: f"{escape(person.address)}^^Anytown^^{person.postcode}^GBR^H",
            21: f"{visit.mother_nhs_number}^^^NHS^NH" if visit.mother_nhs_number else "",
            32: f"NSTS{visit.number_status}",
        },
    )


def _write_pv1(site: str, visit: Visit, event: str) -> str:
    """PV1; that of A31 says nothing of the visit, for A31 is about the person."""
    if event == "A31":
        return write_segment("PV1", {1: "1", 2: "N"})
    place = "PAEDS" if visit.patient_class == "I" else "ED"
    return write_segment(
        "PV1",
        {
            1: "1",
            2: visit.patient_class,
            3: f"{place}^1^1^{site}01",
            19: f"{visit.number}^^^VISITID",
            36: visit.disposition,
            44: write_time(visit.arrived_at),
            45: write_time(visit.left_at) if visit.left_at else "",
        },
    )
