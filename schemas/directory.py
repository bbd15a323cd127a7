"""Who is who: authorities, workers, sites that send, people who sign in."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from schemas.attendance import Event
from schemas.identifiers import OwnerId
from schemas.office_hours import OFFICE_HOURS_USUAL


class KeptAnswer(StrEnum):
    """What a sender is answered for a message that was kept but not understood (HL7 table 0008)."""

    ACCEPT = "AA"
    ERROR = "AE"
    REJECT = "AR"


class CareSetting(StrEnum):
    """What kind of care a site gives (the settings of CP-IS; ``broker.domain.care_settings`` says what follows)."""

    NOT_CLASSIFIED = "not_classified"
    EMERGENCY_DEPARTMENT = "emergency_department"
    WALK_IN_CENTRE = "walk_in_centre"
    MINOR_INJURY_UNIT = "minor_injury_unit"
    GP_OUT_OF_HOURS = "gp_out_of_hours"
    NHS_111 = "nhs_111"
    AMBULANCE = "ambulance"
    MATERNITY = "maternity"
    PAEDIATRIC_WARD = "paediatric_ward"
    OTHER_UNSCHEDULED = "other_unscheduled"
    SEXUAL_HEALTH = "sexual_health"
    GENERAL_PRACTICE = "general_practice"
    CAMHS = "camhs"
    SEXUAL_ASSAULT_REFERRAL_CENTRE = "sexual_assault_referral_centre"
    TERMINATION_OF_PREGNANCY = "termination_of_pregnancy"
    SCHOOL_NURSING_AND_HEALTH_VISITING = "school_nursing_and_health_visiting"
    COMMUNITY_PAEDIATRICS = "community_paediatrics"
    DENTISTRY = "dentistry"
    OTHER_SCHEDULED = "other_scheduled"


class Role(StrEnum):
    """What a person may do; each is bound to one owner."""

    SOCIAL_WORKER = "social_worker"
    DUTY_WORKER = "duty_worker"
    LIST_OFFICER = "list_officer"
    CLINICIAN = "clinician"
    OPERATOR = "operator"
    SAFEGUARDING_LEAD = "safeguarding_lead"
    """A designated safeguarding lead or deputy of one establishment."""
    ENCOMPASS_COORDINATOR = "encompass_coordinator"
    """Sees to a police force's incidents."""
    ENCOMPASS_HUB = "encompass_hub"
    """A named person of an authority's hub: decides whether a school hears of an attendance."""


class Authority(msgspec.Struct, frozen=True, kw_only=True):
    """A local authority (children's services)."""

    code: str
    """ODS code, three characters (706 is Islington)."""
    name: str
    office_telephone: str
    emergency_telephone: str
    """The emergency duty team, answered outside office hours."""
    webhook_url: str | None = None
    alerts_for_ended_plans: bool = True
    """Whether it is told of the visit of a person whose plan has ended and is still shown."""
    office_hours: str = OFFICE_HOURS_USUAL
    """When the office telephone is answered, in London; at other times and on bank holidays the emergency one is."""


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """A social worker in an authority's directory."""

    code: str
    authority: str
    name: str
    team: str | None = None


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """An organisation that sends attendances, and how it is answered."""

    code: str
    """ODS code as the site writes it in MSH-4."""
    name: str
    telephone: str | None = None
    authorities: tuple[str, ...] = ()
    """The authorities in whose area the site stands."""
    reply_host: str | None = None
    reply_port: int | None = None
    """Where its integration engine takes ORU^R01 over MLLP; None: it reads the page or the topic."""
    reply_url: str | None = None
    """Where its FHIR server takes message Bundles, ending in ``$process-message``; goes before ``reply_host``."""
    replies_for_adults: bool = False
    peers: tuple[str, ...] = ()
    """Networks its messages may come from (CIDR). Empty: any."""
    not_understood: KeptAnswer = KeptAnswer.ACCEPT
    care_setting: CareSetting = CareSetting.NOT_CLASSIFIED
    notices_suppressed: bool = False
    """A local rule of a sexual-health site: no authority is told who comes to it."""
    registers_by: tuple[Event, ...] = ()
    """The events with which its system registers somebody. Empty: not known."""


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """Where somebody who signs in is told to do so; nothing else is ever sent there."""

    mailbox: str | None = None
    """At work."""
    mobile: str | None = None
    """A mobile number of the United Kingdom (E.164)."""


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """Someone who signed in: a named login with one role at one owner."""

    login: str
    name: str
    role: Role
    owner: OwnerId
    worker: str | None = None
    """The worker's code when the person is a social worker; the contact's id of a safeguarding lead or deputy."""


class Sender(msgspec.Struct, frozen=True, kw_only=True):
    """What intake must know of a sender while the database is down (the senders' snapshot)."""

    code: str
    credential_digest: bytes
    """Keyed hash of the credential the sender writes in MSH-8."""
    peers: tuple[str, ...] = ()
    not_understood: KeptAnswer = KeptAnswer.ACCEPT


class SendersSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The file from which intake knows its senders."""

    senders: tuple[Sender, ...]
