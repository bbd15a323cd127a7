"""Tracing: what the Personal Demographics Service (PDS) is asked of a listed person, what it answers, what follows.

Codes as in the PDS FHIR API, R4 (operations get-patient and search-patient).
"""

from __future__ import annotations

from datetime import date
from enum import IntEnum, StrEnum

import msgspec

from schemas.attendance import PersonName
from schemas.identifiers import NhsNumber


class Traceable(msgspec.Struct, frozen=True, kw_only=True):
    """A person as an authority lists them, as far as tracing needs them."""

    nhs_number: NhsNumber | None
    name: PersonName
    """``given`` may hold several names, separated by spaces."""
    birth_date: date
    postcode: str | None = None


# --- questions ------------------------------------------------------------------------------------------


class ByNumber(msgspec.Struct, frozen=True, kw_only=True):
    """Who bears this number?"""

    nhs_number: NhsNumber


class ByDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Which one person has these details? A ``*`` ends a name or postcode of which only the beginning must agree."""

    family: str
    given: tuple[str, ...] = ()
    birth_date: date
    postcode: str | None = None


Question = ByNumber | ByDetails

# --- answers --------------------------------------------------------------------------------------------


class RecordedName(msgspec.Struct, frozen=True, kw_only=True):
    """One current name of a person, as PDS holds it."""

    family: str
    given: tuple[str, ...] = ()


class TracedPerson(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The record of one person. Names that were given up are not in it."""

    nhs_number: NhsNumber
    """Another than was asked for when that one is superseded."""
    names: tuple[RecordedName, ...] = ()
    birth_date: date | None = None
    is_restricted: bool = False
    """``meta.security`` is anything but unrestricted: nobody may learn where this person lives."""


class NoPerson(msgspec.Struct, frozen=True, tag=True):
    """No such record: RESOURCE_NOT_FOUND, or a search without a result."""


class SeveralPersons(msgspec.Struct, frozen=True, tag=True):
    """More than one record fits: TOO_MANY_MATCHES."""


class Invalid(msgspec.Struct, frozen=True, tag=True):
    """The number was issued, and is valid no more, and has no successor: INVALIDATED_RESOURCE."""


class Unavailable(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """No answer now; ask again. ``code`` is a short closed word such as ``http_503``."""

    code: str
    retry_after_s: float | None = None
    """Not before so many seconds, where PDS says so."""


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """PDS does not answer us; asking again cannot help before somebody mends it. ``code`` as above."""

    code: str


Answer = TracedPerson | NoPerson | SeveralPersons | Invalid | Unavailable | Refused

# --- what follows for the entry -------------------------------------------------------------------------


class TraceField(StrEnum):
    """A field that has to agree (CP-IS compares these three)."""

    FAMILY = "family name"
    GIVEN = "given name"
    BIRTH_DATE = "date of birth"


class GivenRung(IntEnum):
    """How given names agreed: the rungs of the ladder, the surest first."""

    WHOLE = 1
    """All given names, in order."""
    FIRST = 2
    """The first given name."""
    ANY = 3
    """The first given name listed is any of those recorded."""


class TraceState(StrEnum):
    """What is known of the identity of a list entry."""

    UNVERIFIED = "unverified"
    VERIFIED = "verified"
    SUPERSEDED = "superseded"
    RESTRICTED = "restricted"
    INVALIDATED = "invalidated"
    MISMATCH = "mismatch"
    NOT_FOUND = "not_found"


class Verified(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The number bears this name and date of birth."""

    rung: GivenRung


class Superseded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The number was replaced. Where ``differs`` is not empty a person decides whether it is the same child."""

    replacement: NhsNumber
    differs: tuple[TraceField, ...] = ()


class Restricted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The record is restricted. All that is kept of it is the number that supersedes the listed one, if one does."""

    differs: tuple[TraceField, ...] = ()
    replacement: NhsNumber | None = None


class Invalidated(msgspec.Struct, frozen=True, tag=True):
    """The number is dead. Nobody looks for another: after an adoption the two must stay unlinked."""


class Mismatch(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The number is somebody's, but these fields differ; ``suggestion`` is the one number with such details."""

    differs: tuple[TraceField, ...]
    suggestion: NhsNumber | None = None


class NotFound(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """PDS does not know the number, or none was given; ``suggestion`` as above, for a person to confirm."""

    suggestion: NhsNumber | None = None
    is_ambiguous: bool = False
    """Several persons have such details."""


Finding = Verified | Superseded | Restricted | Invalidated | Mismatch | NotFound | Unavailable | Refused
