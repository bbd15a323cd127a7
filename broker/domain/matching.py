"""Whether the person who attends is the person on a list."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from datetime import date, timedelta
from typing import Final

import msgspec

from broker.domain.names import names_agree, sound_surnames, surnames_agree
from schemas.alert import IdentityFact
from schemas.attendance import Attendance, PersonName
from schemas.child_list import ChildListEntry, PlanType
from schemas.identifiers import NhsNumber

NEWBORN = timedelta(days=28)
"""A plan for an unborn child that begins so shortly after a birth may be about that very child."""


class Match(msgspec.Struct, frozen=True, kw_only=True):
    """The same person: alert."""

    agrees: tuple[IdentityFact, ...]
    differs: tuple[IdentityFact, ...]
    by_person: bool = False
    """A person of the authority compared the two and says that they are one."""


class NoMatch(msgspec.Struct, frozen=True):
    """Not the same person, or nothing says so."""


class Unsure(msgspec.Struct, frozen=True, kw_only=True):
    """A person must decide."""

    agrees: tuple[IdentityFact, ...]
    differs: tuple[IdentityFact, ...]
    reason: str


Judgement = Match | NoMatch | Unsure


def match_child(attendance: Attendance, entry: ChildListEntry, aliases: Collection[NhsNumber] = ()) -> Judgement:
    """Judge one list entry against one attendance.

    Equal NHS numbers match when the date of birth or the name agrees; the other differing is flagged, because a
    changed surname is the commonest mismatch. Equal numbers with neither agreeing go to a person. The number's trace
    status is recorded elsewhere and is no gate. Without a number, an equal date of birth and an alike name go to a
    person, and so does an alike surname alone: twins. Two different valid numbers are two people, unless PDS says that
    one supersedes the other: ``aliases`` are the numbers that count as the entry's own.

    An unborn child's entry holds the mother's number, name and date of birth: it matches her, and a child of hers born
    since the plan began whose message names her.
    """
    numbers = (entry.nhs_number, *aliases)
    if _names_as_mother(attendance, entry, numbers):
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
    if attendance.nhs_number not in numbers:
        return NoMatch()
    agrees = (IdentityFact.NHS_NUMBER, *agrees)
    if birth_date_agrees or name_agrees:
        return Match(agrees=agrees, differs=differs)
    reason = "same NHS number, but " + _disagreement(birth_date_agrees, name_agrees)
    return _doubt(attendance, entry, (agrees, differs), reason)


def _names_as_mother(attendance: Attendance, entry: ChildListEntry, numbers: Collection[NhsNumber]) -> bool:
    is_named = attendance.mother_nhs_number in numbers and attendance.nhs_number not in numbers
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


def confirm_match(attendance: Attendance, entry: ChildListEntry, aliases: Collection[NhsNumber] = ()) -> Match:
    """The match of two that a person says are one; what agrees and differs is said all the same."""
    numbers = (entry.nhs_number, *aliases)
    if _names_as_mother(attendance, entry, numbers):
        return Match(agrees=(IdentityFact.MOTHER,), differs=(), by_person=True)
    agrees, differs = _see_facts(attendance, entry)
    if attendance.nhs_number in numbers:
        agrees = (IdentityFact.NHS_NUMBER, *agrees)
    return Match(agrees=agrees, differs=differs, by_person=True)


def doubt_child(attendance: Attendance, entry: ChildListEntry, reason: str) -> Unsure:
    """A doubt that rests on the weight of all that is known."""
    return _doubt(attendance, entry, _see_facts(attendance, entry), reason)


def _see_facts(
    attendance: Attendance, entry: ChildListEntry
) -> tuple[tuple[IdentityFact, ...], tuple[IdentityFact, ...]]:
    birth_date_agrees = None if attendance.birth_date is None else attendance.birth_date == entry.birth_date
    return _sort_facts(birth_date_agrees, names_agree(attendance.names, entry.name))


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


BLOCKS_VERSION: Final = 2
"""Which blocks entries are stored under: one stored under fewer is blocked anew by the jobs part."""


def entry_blocks(entry: ChildListEntry) -> tuple[str, ...]:
    """Keys under which an entry is found when there is no NHS number: the day of birth, also with day and month the
    other way round; how the surname sounds, and the postcode, each with the year of birth.

    A block is hashed before it is stored. Of 150,000 entries one block holds a few dozen, of the commonest surnames
    some hundred: few enough to decrypt and weigh.
    """
    return describe_blocks(entry.name, entry.birth_date, entry.postcode)


def describe_blocks(name: PersonName, born: date, postcode: str | None) -> tuple[str, ...]:
    """Keys under which somebody of that name and day of birth is found, however the two were written down."""
    days = [born]
    with suppress(ValueError):
        days.append(born.replace(month=born.day, day=born.month))
    return (*dict.fromkeys(map(birth_block, days)), *_year_blocks({born.year}, [name], {postcode}))


def visitor_blocks(said: Iterable[Attendance]) -> tuple[str, ...]:
    """Keys under which whoever a visit's messages speak of may be found, whichever message says what.

    Only what is said without a number counts: a visit has no number only as long as none of its messages has one.
    The heart of the broker never gets here for a visit with a number.
    """
    unnumbered = [each for each in said if each.nhs_number is None]
    days = {each.birth_date for each in unnumbered if each.birth_date is not None}
    if not days:
        return ()
    names = dict.fromkeys(name for each in unnumbered for name in each.names)
    blocks = _year_blocks({day.year for day in days}, names, {each.postcode for each in unnumbered})
    return (*sorted(map(birth_block, days)), *blocks)


def birth_block(day: date) -> str:
    """The key of a day of birth."""
    return f"born/{day.isoformat()}"


def _year_blocks(years: set[int], names: Iterable[PersonName], postcodes: set[str | None]) -> tuple[str, ...]:
    sounds = sound_surnames(tuple(names))
    folded = sorted({fold_postcode(postcode) for postcode in postcodes if postcode} - {""})
    return tuple(
        block
        for year in sorted(years)
        for block in (*(f"sound/{year}/{sound}" for sound in sounds), *(f"post/{year}/{code}" for code in folded))
    )


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
