"""Operation Encompass: what the police say of an incident, who is at which school, and what a school is told.

Section 49A of the Domestic Abuse Act 2021 (in force since 7 November 2025): the relevant educational establishment is
told as soon as reasonably practicable. Nothing here shares a key with the health side. Each notice has a schema of its
own; a field that is not in it cannot reach a school.
"""

from __future__ import annotations

from datetime import date, datetime, time
from enum import StrEnum
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from schemas.identifiers import NhsNumber, SchoolUrn

Word = Annotated[str, Meta(min_length=1, max_length=100)]
"""A code, an id or a name."""
Text = Annotated[str, Meta(min_length=1, max_length=4_000)]
"""What somebody wrote or said."""
Instant = Annotated[datetime, Meta(tz=True)]
"""With its offset from UTC."""

SIGN_IN: Final = "There is a message for you. Sign in to read it."

# What the police say


class Change(StrEnum):
    """Why an incident is told again."""

    CORRECTION = "correction"
    """Something was wrong."""
    UPDATE = "update"
    """More is known."""


class SchoolSource(StrEnum):
    """Who named a child's establishment."""

    OFFICER = "officer"
    AUTHORITY = "authority"
    """The authority's list of pupils."""
    CHILD = "child"


class RiskGrade(StrEnum):
    """The officer's assessment. Never shared."""

    STANDARD = "standard"
    MEDIUM = "medium"
    HIGH = "high"


class AdultRelation(StrEnum):
    """What an adult of the incident is to the children: a class only."""

    PARENT = "parent"
    STEP_PARENT = "step_parent"
    PARTNER_OF_PARENT = "partner_of_parent"
    RELATIVE = "relative"
    OTHER = "other"


class SuppressedScope(StrEnum):
    """What is kept back."""

    NOTICE = "notice"
    """Everything: no school is told."""
    LOCATION = "location"
    """Where it was, and every free text, which might tell it."""


class SuppressionReason(StrEnum):
    """Why a person decided to keep something back."""

    COVERT_INVESTIGATION = "covert_investigation"
    REFUGE = "refuge"
    RISK_AT_ESTABLISHMENT = "risk_at_establishment"
    OTHER = "other"


class Suppression(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A person's decision to keep back, with the reason and who allowed it."""

    scope: SuppressedScope
    reason: SuppressionReason
    authoriser: Word
    note: Text | None = None


class ExcludedRecipient(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Somebody at an establishment who must not learn of this incident from the broker. Hidden from the school."""

    name: Word
    reason: Text
    authoriser: Word
    urn: SchoolUrn | None = None
    """The establishment; None: whichever."""
    mailbox: Word | None = None


class NamedEstablishment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A child's establishment as somebody named it: by URN, by name, or both."""

    source: SchoolSource
    urn: SchoolUrn | None = None
    name: Word | None = None


class IncidentChild(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A child of the incident, present or not. None means: not known, or not recorded."""

    child_id: Word
    """The force's own id of the child, the same in every version of the incident."""
    family_name: Word
    given_name: Annotated[str, Meta(max_length=100)] = ""
    birth_date: date | None = None
    sex: Word | None = None
    postcode: Word | None = None
    """For matching with the authority's list of pupils; reaches no notice."""
    nhs_number: NhsNumber | None = None
    """Kept as given; never used to look at the health side."""
    establishments: Annotated[tuple[NamedEstablishment, ...], Meta(max_length=5)] = ()
    home_educated: bool = False
    authority: Word | None = None
    """ODS code of the authority where the child lives."""
    present: bool | None = None
    where: Text | None = None
    """Where the child was, as ``upstairs``."""
    spoken_to: bool | None = None
    spoken_alone: bool | None = None
    childs_words: Text | None = None
    welfare_check: bool | None = None


class IncidentAdult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An adult of the incident, as far as a conflict of interest may be suggested. Reaches no notice."""

    relation: AdultRelation
    family_name: Word | None = None


class PoliceIncident(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="message", tag="incident"
):
    """One version of a domestic-abuse incident, whole: a later version takes the place of the one before."""

    incident_id: Word
    """Stable: corrections, updates and the withdrawal carry the same."""
    force: Word
    """Code of the police force."""
    version: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    change: Change | None = None
    """None: told for the first time."""
    occurred_at: Instant
    reported_at: Instant
    """When the force came to know: the clock of the duty starts here."""
    location: Text | None = None
    attended: bool | None = None
    circumstances: Text | None = None
    other_safeguarding: Text | None = None
    children: Annotated[tuple[IncidentChild, ...], Meta(min_length=1, max_length=30)]
    adults: Annotated[tuple[IncidentAdult, ...], Meta(max_length=30)] = ()
    risk_grade: RiskGrade | None = None
    excluded_recipients: Annotated[tuple[ExcludedRecipient, ...], Meta(max_length=30)] = ()
    suppress: Suppression | None = None


class IncidentWithdrawal(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="message", tag="withdrawal"
):
    """The force takes an incident back. ``version`` is one above the version that is withdrawn."""

    incident_id: Word
    force: Word
    version: Annotated[int, Meta(ge=1, le=1_000_000)]
    withdrawn_at: Instant
    reason: Text
    """For the force's own record; reaches no school."""


PoliceMessage = PoliceIncident | IncidentWithdrawal

# Who is at which school


class EstablishmentKind(StrEnum):
    """What an establishment is (section 49A: schools, further education institutions, 16 to 19 academies)."""

    SCHOOL = "school"
    INDEPENDENT = "independent"
    ALTERNATIVE_PROVISION = "alternative_provision"
    FE_COLLEGE = "fe_college"
    SIXTEEN_TO_NINETEEN = "16_19_academy"


class EstablishmentStatus(StrEnum):
    """Whether an establishment can be told anything."""

    OPEN = "open"
    CLOSED = "closed"
    MERGED = "merged"


class Establishment(msgspec.Struct, frozen=True, kw_only=True):
    """An educational establishment. ``merged_into`` is only suggested to the person who looks the child up."""

    urn: SchoolUrn
    name: str
    kind: EstablishmentKind
    authority: str
    """ODS code of the local authority in whose area it stands."""
    status: EstablishmentStatus = EstablishmentStatus.OPEN
    merged_into: SchoolUrn | None = None
    starts_at_local: time | None = None
    """When its day starts, in Europe/London; None: the default."""
    office_telephone: str | None = None


class ContactRole(StrEnum):
    """What somebody is at an establishment. Only leads and deputies are told."""

    LEAD = "lead"
    """The designated safeguarding lead."""
    DEPUTY = "deputy"
    OFFICE = "office"


class SafeguardingContact(msgspec.Struct, frozen=True, kw_only=True):
    """A person in an establishment's verified directory."""

    contact_id: str
    urn: SchoolUrn
    role: ContactRole
    name: str
    mailbox: str
    """A role mailbox, never a personal address."""
    telephone: str | None = None
    mobile: str | None = None
    """The telephone of the role that takes text messages (E.164)."""
    confirmed_on: date | None = None
    """When the establishment last said that this still stands."""
    trained_on: date | None = None


class Pupil(msgspec.Struct, frozen=True, kw_only=True):
    """A child on an authority's list of pupils."""

    authority: str
    pupil_id: str
    """The authority's own id."""
    family_name: str
    given_name: str
    birth_date: date
    postcode: str | None = None
    urns: tuple[SchoolUrn, ...] = ()
    home_educated: bool = False


class DayKind(StrEnum):
    """What days of a calendar are."""

    TERM = "term"
    HOLIDAY = "holiday"
    """Within a term: half-term."""
    INSET = "inset"
    """Staff only."""
    CLOSURE = "closure"
    """Snow, a polling station, a boiler."""
    BANK_HOLIDAY = "bank_holiday"
    """One that the rules of England do not give, such as a coronation's."""
    OPEN = "open"
    """A school day although it would be none, as Saturdays of some independent schools."""


class CalendarDays(msgspec.Struct, frozen=True, kw_only=True):
    """Days of one kind, both ends included, of an authority or of one establishment."""

    authority: str
    urn: SchoolUrn | None = None
    """None: of the whole authority."""
    kind: DayKind
    first_on: date
    last_on: date


# What a school is told


class ContentProfile(StrEnum):
    """How much a school is told, by the policy of the force or the authority."""

    MINIMAL = "minimal"
    STANDARD = "standard"
    FULL = "full"


class ToldEstablishment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The establishment that is told."""

    urn: SchoolUrn
    name: str


class MinimalChild(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A child in the minimal notice."""

    family_name: str
    given_name: str
    birth_date: date | None
    present: bool | None
    welfare_check: bool | None


class ToldChild(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A child in the standard and the full notice, with the child's own words."""

    family_name: str
    given_name: str
    birth_date: date | None
    present: bool | None
    welfare_check: bool | None
    where: str | None
    spoken_to: bool | None
    spoken_alone: bool | None
    childs_words: str | None


class MinimalNotice(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="profile", tag="minimal.v1"
):
    """Who, when, present or not, and whether the police saw to the child's welfare."""

    notice_id: str
    version: int
    change: Change | None
    issued_at: datetime
    establishment: ToldEstablishment
    occurred_at: datetime
    children: tuple[MinimalChild, ...]
    statement: str
    """The standing instruction, by local policy."""


class StandardNotice(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="profile", tag="standard.v1"
):
    """The minimal notice, the reference of the police, where each child was and what they said."""

    notice_id: str
    version: int
    change: Change | None
    issued_at: datetime
    establishment: ToldEstablishment
    force: str
    police_reference: str
    occurred_at: datetime
    children: tuple[ToldChild, ...]
    statement: str


class FullNotice(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="profile", tag="full.v1"
):
    """The standard notice, what happened and where, unless that is kept back."""

    notice_id: str
    version: int
    change: Change | None
    issued_at: datetime
    establishment: ToldEstablishment
    force: str
    police_reference: str
    occurred_at: datetime
    location: str | None
    circumstances: str | None
    other_safeguarding: str | None
    children: tuple[ToldChild, ...]
    statement: str


class ReferredChild(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A child in the notice of an authority's hub: who it is, and nothing of what happened."""

    family_name: str
    given_name: str
    birth_date: date | None


class ReferralNotice(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="profile", tag="referral.v1"
):
    """What a school is told when an authority's hub released an attendance: whom to ring, and no fact of it.

    No place, no instant of it, no code, no department: a field for it does not exist.
    """

    notice_id: str
    version: int
    change: Change | None
    issued_at: datetime
    establishment: ToldEstablishment
    authority: str
    """Name of the authority whose hub tells it."""
    telephone: str
    """Of the hub, for questions."""
    children: tuple[ReferredChild, ...]
    statement: str


SchoolNotice = MinimalNotice | StandardNotice | FullNotice | ReferralNotice


class SchoolNoticeWithdrawn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The notice no longer stands; the school is told nothing of why."""

    notice_id: str
    version: int
    withdrawn_at: datetime
    establishment: ToldEstablishment
    statement: str


class SchoolNoticeNudge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an e-mail or a text message says: sign in, and nothing else. ``page`` is the same for everybody."""

    page: str
    wording: Literal["There is a message for you. Sign in to read it."] = SIGN_IN


# An attendance that speaks of domestic abuse


DOMESTIC_ABUSE_CODES: Final = {
    "881081000000100": "Victim of domestic abuse in the household",
    "697950003": "Suspected victim of domestic abuse",
    "707087005": "At risk of domestic abuse",
}
"""Safeguarding codes of BaRS (SNOMED CT) that speak of domestic abuse, and what each says. Strings, never numbers."""


class LawfulGateway(StrEnum):
    """What in law lets the hub tell a school of a child who attended."""

    SAFEGUARDING_DUTY = "children_act_2004_section_10_or_11"
    """Co-operation to improve well-being; the duty to safeguard and promote welfare."""
    ENQUIRY = "children_act_1989_section_47"
    """There is reasonable cause to suspect significant harm."""
    CHILD_IN_NEED = "children_act_1989_section_17"
    PREVENTION_OF_CRIME = "crime_and_disorder_act_1998_section_115"
    COURT_ORDER = "court_order"


class Referral(msgspec.Struct, frozen=True, kw_only=True):
    """What the hub sees of an attendance that carries a code of domestic abuse. Reaches no school and no force."""

    sender: str
    """ODS code of the department."""
    sender_name: str
    attended_at: datetime
    codes: tuple[str, ...]
    """SNOMED CT, as the department wrote them: strings, never numbers."""
    record: str = ""
    """The blind index of the child's NHS number, in hex: where a restricted child is stands on one page alone."""
    visit: str = ""
    """The visit as the first heart keeps it: the department may cancel or correct it while the hub decides."""


# Local policy


class Release(StrEnum):
    """How a force's notices leave."""

    AUTOMATIC = "automatic"
    COORDINATOR = "coordinator"
    """A person of the force releases each incident, with the clock in view."""


class UnderSchoolAge(StrEnum):
    """What becomes of a child too young for school who attends no establishment."""

    NOBODY = "nobody"
    AUTHORITY_OFFICER = "authority_officer"


class EncompassPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """What a force has agreed with its authorities. ``statement`` is the standing instruction to schools."""

    force: str
    statement: str
    withdrawn_statement: str
    release: Release = Release.AUTOMATIC
    profile: ContentProfile = ContentProfile.STANDARD
    under_school_age: UnderSchoolAge = UnderSchoolAge.NOBODY
    confirmed_days_max: int = 400
    """A contact nobody confirmed for longer is stale and is told nothing."""
    training_required: bool = True


class Force(msgspec.Struct, frozen=True, kw_only=True):
    """A police force that tells of incidents."""

    code: str
    """As the force writes it in its messages: letters and digits, like an ODS code."""
    name: str
    policy: EncompassPolicy
    peers: tuple[str, ...] = ()
    """Networks its messages may come from (CIDR). Empty: any."""


class NoticeState(StrEnum):
    """What became of the notice of one incident to one establishment."""

    WAITING = "waiting"
    """To be sent."""
    HELD = "held"
    """Waits for a person's release, or is suppressed."""
    SENT = "sent"
    ACKNOWLEDGED = "acknowledged"
    WITHDRAWN = "withdrawn"


class TaskKind(StrEnum):
    """What a person has to do because of an incident."""

    LOOK_UP = "look_up"
    """Find the child's establishment."""
    TELL_OFFICER = "tell_officer"
    """The authority's officer sees to a child without an establishment."""
    NO_ROUTE = "no_route"
    """Nobody at the establishment may be told by the broker: ring it."""
    RING_SCHOOL = "ring_school"
    """Nobody has acknowledged by the bell: ring the office."""
    RELEASE = "release"
    """Nothing leaves until the coordinator says so."""
    CONTRADICTION = "contradiction"
    """Two messages of one version say different things."""
    CONFLICT = "conflict"
    """A contact has the surname of an adult of the incident."""
    DISCLOSED = "disclosed"
    """Somebody who is excluded now had been told of an earlier version."""
    TAKEN_BACK = "taken_back"
    """The department has taken back the attendance that the hub released: say whether the notice stands."""
