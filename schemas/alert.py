"""What recipients are told: the alert to social care and the reply to the clinician.

Each recipient has a schema of its own; a field that is not here cannot reach it.
"""

from __future__ import annotations

from datetime import date, datetime
from enum import StrEnum

import msgspec

from schemas.child_list import PlanType
from schemas.coverage import CoverageReason


class IdentityFact(StrEnum):
    """One demographic that agreed or differed between the attendance and the list."""

    NHS_NUMBER = "NHS number"
    BIRTH_DATE = "date of birth"
    NAME = "name"
    POSTCODE = "postcode"
    MOTHER = "mother's NHS number"


class NoticeKind(StrEnum):
    """What an authority is told of a visit after its alert."""

    LEFT_BEFORE_TREATMENT = "left_before_treatment"
    ADMITTED = "admitted"
    TRANSFERRED = "transferred"
    DIED = "died"
    CANCELLED = "cancelled"
    STILL_HERE = "still_here"
    LEFT = "left"


class ReplyOutcome(StrEnum):
    """The three things a clinician can be told."""

    MATCH = "match"
    NO_RECORD = "no_record_found"
    IDENTITY_TO_BE_CHECKED = "identity_to_be_checked"


class AlertKind(StrEnum):
    """What an alert is of."""

    ATTENDED = "attended"
    LOOKED_UP = "looked_up"
    """A department asked about the person. That does not prove that the person is there."""
    NOT_BROUGHT = "was_not_brought"


class ListedChild(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The person as the authority itself listed them."""

    local_id: str
    nhs_number: str
    family: str
    given: str
    birth_date: date


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One plan of the person."""

    plan_type: PlanType
    start_on: date
    end_on: date | None = None
    has_ended: bool = False


class AttendanceFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What social care is told of the visit."""

    organisation_code: str
    organisation_name: str
    organisation_telephone: str | None
    department: str | None
    arrived_at: datetime | None
    arrival_mode: str | None
    complaint: str | None
    left_at: datetime | None
    is_withheld: bool = False
    """Nothing is said of where the person is: the national record is restricted. The place is shown on a page."""


class SocialCareAlert(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The alert an authority receives when a listed person attends."""

    alert_id: str
    authority: str
    raised_at: datetime
    kind: AlertKind = AlertKind.ATTENDED
    late: bool = False
    """True when the look-back found the visit after the list had changed, or an update gave the identity."""
    identity_corrected_at: datetime | None = None
    """When the department said who the person is, if that was after they came; ``reason`` says how."""
    is_newborn: bool = False
    """The person who attends is the newborn of ``child``, the woman whose unborn child has the plan."""
    child: ListedChild
    plans: tuple[Plan, ...]
    allocated_workers: tuple[str, ...]
    attendance: AttendanceFacts
    agrees: tuple[IdentityFact, ...]
    differs: tuple[IdentityFact, ...]
    nhs_number_status: str | None
    list_confirmed_at: datetime | None = None
    """When the authority last confirmed its list: how old what is shown here may be."""
    reason: str
    """Why this alert came, in a sentence."""


class AlertUpdated(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an authority receives when the visit of an alert takes a turn: never an alert of its own."""

    notice_id: str
    alert_id: str
    authority: str
    raised_at: datetime
    kind: NoticeKind
    is_urgent: bool
    """Nobody had acknowledged the alert, and it is now with the person on duty."""
    words: str
    attendance: AttendanceFacts


class AlertWithdrawn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an authority receives when what an alert rested on was an error: an entry, or a confirmed identity."""

    alert_id: str
    authority: str
    withdrawn_at: datetime
    reason: str


class CoverageNotice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an authority receives when an entry cannot alert as it should, or its list is late. Names nobody."""

    notice_id: str
    authority: str
    noticed_at: datetime
    reason: CoverageReason
    local_id: str | None
    """The authority's own id of the person; None when it is about the list."""
    record_code: str | None
    """CP-IS upload record response, such as CPR05."""
    list_confirmed_at: datetime | None
    advice: str


class PlanShown(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A plan as a clinician sees it, with whom to ring."""

    plan_type: PlanType
    start_on: date
    end_on: date | None
    has_ended: bool = False
    authority_name: str
    office_telephone: str
    emergency_telephone: str
    list_confirmed_at: datetime | None = None
    """When the authority last confirmed the list on which the plan stands."""
    telephone_now: str | None = None
    """The one of the two that was answered when the reply was given (office hours, bank holidays)."""


class ListsSearched(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an answer rests on. Instants are aware UTC."""

    authorities_searched: int
    oldest_confirmed_at: datetime | None
    own_authorities_missing: tuple[str, ...] = ()
    own_authorities_stale: tuple[str, ...] = ()
    national_service_asked: bool = False


class ClinicianReply(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The reply a department receives for one visit."""

    reply_id: str
    organisation: str
    in_answer_to: str
    """The control id of the message that is answered (MSH-10)."""
    visit_number: str | None
    local_patient_id: str | None
    replied_at: datetime
    outcome: ReplyOutcome
    wording: str
    plans: tuple[PlanShown, ...] = ()
    differs: tuple[IdentityFact, ...] = ()
    authorities_told: tuple[str, ...] = ()
    lists: ListsSearched
