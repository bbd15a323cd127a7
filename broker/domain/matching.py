"""Whether the person who attends is the person on a list."""

from __future__ import annotations

from datetime import date, timedelta

import msgspec

from broker.domain.names import names_agree, surnames_agree
from schemas.alert import IdentityFact
from schemas.attendance import Attendance
from schemas.child_list import ChildListEntry, PlanType

NEWBORN = timedelta(days=28)
"""A plan for an unborn child that begins so shortly after a birth may be about that very child."""


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """The same person: alert."""

    agrees: tuple[IdentityFact, ...]
    differs: tuple[IdentityFact, ...]


class NoMatch(msgspec.Struct, frozen=True):
    """Not the same person, or nothing says so."""


class Unsure(msgspec.Struct, frozen=True, kw_only=True):
    """A person must decide."""

    agrees: tuple[IdentityFact, ...]
    differs: tuple[IdentityFact, ...]
    reason: str


Judgement = Match | NoMatch | Unsure


def match_child(attendance: Attendance, entry: ChildListEntry) -> Judgement:
    """Judge one list entry against one attendance.

    Equal NHS numbers match when the date of birth or the name agrees; the other differing is flagged, because a
    changed surname is the commonest mismatch. Equal numbers with neither agreeing go to a person. The number's trace
    status is recorded elsewhere and is no gate. Without a number, an equal date of birth and an alike name go to a
    person, and so does an alike surname alone: twins. Two different valid numbers are two people.

    An unborn child's entry holds the mother's number, name and date of birth: it matches her, and a child of hers born
    since the plan began whose message names her.
    """
    if _names_as_mother(attendance, entry):
        return _match_newborn(attendance, entry)
    birth_date_agrees = None if attendance.birth_date is None else attendance.birth_date == entry.birth_date
    name_agrees = names_agree(attendance.names, entry.name)
    agrees, differs = _sort_facts(birth_date_agrees, name_agrees)
    if attendance.nhs_number is None:
        if not birth_date_agrees:
            return NoMatch()
        if name_agrees:
            return _doubt(attendance, entry, (agrees, differs), "same name and date of birth, no usable NHS number")
        if surnames_agree(attendance.names, entry.name):
            reason = "same surname and date of birth but another given name, perhaps a twin; no usable NHS number"
            return _doubt(attendance, entry, (agrees, differs), reason)
        return NoMatch()
    if attendance.nhs_number != entry.nhs_number:
        return NoMatch()
    agrees = (IdentityFact.NHS_NUMBER, *agrees)
    if birth_date_agrees or name_agrees:
        return Match(agrees=agrees, differs=differs)
    reason = "same NHS number, but " + _disagreement(birth_date_agrees, name_agrees)
    return _doubt(attendance, entry, (agrees, differs), reason)


def _names_as_mother(attendance: Attendance, entry: ChildListEntry) -> bool:
    is_named = attendance.mother_nhs_number == entry.nhs_number != attendance.nhs_number
    return is_named and entry.plan_type is PlanType.UNBORN


def _match_newborn(attendance: Attendance, entry: ChildListEntry) -> Judgement:
    if attendance.birth_date is None:
        reason = "the mother has the same NHS number, but the child's date of birth is not given"
        return Unsure(agrees=(IdentityFact.MOTHER,), differs=(), reason=reason)
    if attendance.birth_date < entry.start_on:
        if entry.start_on - attendance.birth_date > NEWBORN:
            return NoMatch()  # an older child of hers
        reason = "the mother has the same NHS number, but the child was born shortly before the plan began"
        return Unsure(agrees=(IdentityFact.MOTHER,), differs=(IdentityFact.BIRTH_DATE,), reason=reason)
    return Match(agrees=(IdentityFact.MOTHER,), differs=())


def _doubt(
    attendance: Attendance,
    entry: ChildListEntry,
    facts: tuple[tuple[IdentityFact, ...], tuple[IdentityFact, ...]],
    reason: str,
) -> Unsure:
    """For the person who decides, the postcode counts as well."""
    agrees, differs = facts
    if attendance.postcode and entry.postcode:
        if fold_postcode(attendance.postcode) == fold_postcode(entry.postcode):
            agrees = (*agrees, IdentityFact.POSTCODE)
        else:
            differs = (*differs, IdentityFact.POSTCODE)
    return Unsure(agrees=agrees, differs=differs, reason=reason)


def fold_postcode(text: str) -> str:
    """Capitals without spaces."""
    return "".join(text.split()).upper()


def candidate_blocks(birth_date: date | None) -> tuple[str, ...]:
    """Keys under which entries that may be this person are found when there is no NHS number.

    A block is hashed before it is stored. An authority's list holds a few dozen people of one birthday: few enough
    to decrypt and judge, and ``match_child`` asks for an equal date of birth anyway.
    """
    return () if birth_date is None else (f"born/{birth_date.isoformat()}",)


def _sort_facts(
    birth_date_agrees: bool | None, name_agrees: bool | None
) -> tuple[tuple[IdentityFact, ...], tuple[IdentityFact, ...]]:
    facts = ((IdentityFact.BIRTH_DATE, birth_date_agrees), (IdentityFact.NAME, name_agrees))
    return (
        tuple(fact for fact, verdict in facts if verdict is True),
        tuple(fact for fact, verdict in facts if verdict is False),
    )


def _disagreement(birth_date_agrees: bool | None, name_agrees: bool | None) -> str:
    words = {True: "agrees", False: "differs", None: "is not given"}
    return f"the date of birth {words[birth_date_agrees]} and the name {words[name_agrees]}"
