"""An entry of a local authority's list: a child, or the mother of an unborn child, and one plan."""

from __future__ import annotations

from datetime import date, datetime
from enum import StrEnum

import msgspec

from schemas.attendance import PersonName
from schemas.identifiers import NhsNumber


class PlanType(StrEnum):
    """Plan types of CP-IS, named by what they are."""

    CHILD_PROTECTION = "child_protection_plan"
    LOOKED_AFTER = "looked_after_child"
    UNBORN = "unborn_child_protection_plan"


class LegalBasis(StrEnum):
    """Why a child is looked after, by section of the Children Act 1989."""

    CARE_ORDER = "s31"
    INTERIM_CARE_ORDER = "s38"
    ACCOMMODATED = "s20"
    """With the agreement of those who have parental responsibility, or because there is nobody."""


class ChildListEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One plan of one person on one authority's list.

    For an unborn child the NHS number, names and date of birth are the pregnant woman's.
    """

    local_id: str
    """The authority's own id for the person."""
    nhs_number: NhsNumber
    name: PersonName
    birth_date: date
    plan_type: PlanType
    start_on: date
    end_on: date | None = None
    postcode: str | None = None
    allocated_worker: str | None = None
    """The worker's code in the authority's directory."""
    team: str | None = None
    deleted_on: date | None = None
    """The authority took the entry back as an error."""
    legal_basis: LegalBasis | None = None
    """Of a looked-after child; None when the authority did not say."""
    household: str | None = None
    """The authority's own reference of the household or family group; nobody infers one."""

    def has_ended(self, on: date) -> bool:
        """Whether the plan has ended by ``on`` (Europe/London day); the end date itself no longer counts."""
        return self.end_on is not None and self.end_on <= on


class ListFreshness(msgspec.Struct, frozen=True, kw_only=True):
    """How old one authority's list is: ``confirmed_at`` is when its last upload was accepted."""

    authority: str
    confirmed_at: datetime | None
