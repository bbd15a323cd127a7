"""An unscheduled-care attendance, as one message tells it."""

from __future__ import annotations

from datetime import date, datetime
from enum import StrEnum

import msgspec

from schemas.identifiers import NhsNumber


class Event(StrEnum):
    """HL7 v2 trigger events the broker acts on (MSH-9.2; HL7 v2.4 chapter 3).

    FHIR messages are given the event that says the same of the visit.
    """

    ADMITTED = "A01"
    TRANSFERRED = "A02"
    LEFT = "A03"
    REGISTERED = "A04"
    PREADMITTED = "A05"
    MADE_INPATIENT = "A06"
    MADE_OUTPATIENT = "A07"
    UPDATED = "A08"
    DEPARTING = "A09"
    ARRIVING = "A10"
    ADMISSION_CANCELLED = "A11"
    TRANSFER_CANCELLED = "A12"
    DISCHARGE_CANCELLED = "A13"
    ADMISSION_PENDING = "A14"
    TRANSFER_PENDING = "A15"
    DISCHARGE_PENDING = "A16"
    PATIENT_MERGED = "A18"
    LEAVE_BEGUN = "A21"
    LEAVE_ENDED = "A22"
    LINKED = "A24"
    PENDING_DISCHARGE_CANCELLED = "A25"
    PENDING_TRANSFER_CANCELLED = "A26"
    PENDING_ADMISSION_CANCELLED = "A27"
    PERSON_ADDED = "A28"
    PERSON_DELETED = "A29"
    PERSONS_MERGED = "A30"
    PERSON_UPDATED = "A31"
    ARRIVAL_CANCELLED = "A32"
    DEPARTURE_CANCELLED = "A33"
    PATIENT_IDS_MERGED = "A34"
    ACCOUNT_IDS_MERGED = "A35"
    PATIENT_ACCOUNT_IDS_MERGED = "A36"
    UNLINKED = "A37"
    PREADMISSION_CANCELLED = "A38"
    PERSON_IDS_MERGED = "A39"
    IDENTIFIERS_MERGED = "A40"
    ACCOUNTS_MERGED = "A41"
    VISITS_MERGED = "A42"
    IDENTIFIERS_MOVED = "A43"
    ACCOUNT_MOVED = "A44"
    VISIT_MOVED = "A45"
    EXTERNAL_ID_CHANGED = "A46"
    IDENTIFIERS_CHANGED = "A47"
    VISIT_RENUMBERED = "A50"
    ALLERGIES_UPDATED = "A60"


class NhsNumberProblem(StrEnum):
    """Why a message gives no usable NHS number."""

    ABSENT = "absent"
    INVALID = "invalid"


class PersonName(msgspec.Struct, frozen=True):
    """One name of a person: PID-5 repetition or list entry. ``given`` may hold several tokens."""

    family: str
    given: str = ""


class Attendance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one message says of one visit. None means: the message does not say.

    Instants are aware UTC. ``birth_date`` is None unless the day is known.
    """

    sender: str
    """ODS code of the sending organisation (MSH-4)."""
    control_id: str
    """The sender's own message id (MSH-10)."""
    event: Event
    message_at: datetime | None = None
    event_at: datetime | None = None
    """When it happened (EVN-2, else EVN-6, else MSH-7)."""
    nhs_number: NhsNumber | None = None
    nhs_number_problem: NhsNumberProblem | None = None
    nhs_number_status: str | None = None
    """NHS number status code, ``01`` to ``08`` (NHS Data Dictionary); PID-32 in HL7 v2."""
    mother_nhs_number: NhsNumber | None = None
    """The mother's NHS number where the message gives it (PID-21; RelatedPerson in FHIR)."""
    local_patient_id: str | None = None
    names: tuple[PersonName, ...] = ()
    birth_date: date | None = None
    sex: str | None = None
    postcode: str | None = None
    visit_number: str | None = None
    """Unique within the sender (PV1-19)."""
    patient_class: str | None = None
    """HL7 table 0004 (PV1-2): E emergency, I inpatient, O outpatient, B obstetrics ..."""
    department: str | None = None
    """Point of care (PV1-3.1)."""
    site: str | None = None
    """ODS site code (PV1-3.4)."""
    arrived_at: datetime | None = None
    left_at: datetime | None = None
    arrival_mode: str | None = None
    """PV2-38 (UK table): A ambulance, C car, F foot, H helicopter, P public transport ..."""
    complaint: str | None = None
    disposition: str | None = None
    """PV1-36."""
    was_not_brought: bool | None = None
    """The person did not come to an appointment (ZU3-3, attended or did not attend, is 3); False: they came."""
    is_deceased: bool | None = None
    """Whether the message says that the person has died (PID-30; Patient.deceased)."""
    former_patient_id: str | None = None
    """The sender's own id that was joined into ``local_patient_id``, or parted from it (MRG-1; the second PID of A24
    and A37; Patient.link in FHIR)."""
    former_visit_number: str | None = None
    """The number under which the visit was known before (MRG-5 of A42, A45 and A50); with ``former_patient_id`` also
    the patient."""
    is_test: bool = False
    """The sender marks the message as one of a test (MSH-11 T or D; the tag HTEST in FHIR). It counts all the same."""
    is_fhir: bool = False
    """The message came as a FHIR Bundle, and not as HL7 v2."""
    is_degraded: bool = False
    """Read from a message that breaks the rules of its format: what could be read is here, more may be missing."""
