"""How much speaks for two descriptions being of one person, for a person who decides. Nothing is merged here.

A sum of weights in bits (Fellegi and Sunter, A Theory for Record Linkage, 1969): each field adds the logarithm of how
much likelier what is seen is when both are one person than when they are not. Nothing known of a field adds nothing.
The shares in ``WEIGHTS`` are estimates for English children, rounded, each with its ground; whoever has counted better
changes them there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from enum import StrEnum
from math import log2
from typing import Final

import msgspec
from rapidfuzz.distance import JaroWinkler

from broker.domain.given_names import are_forms_of_one_name
from broker.domain.matching import fold_postcode
from broker.domain.names import NAME_SIMILARITY_MIN, fold_name
from schemas.attendance import Attendance, PersonName
from schemas.child_list import ChildListEntry


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of somebody."""

    names: tuple[PersonName, ...] = ()
    birth_date: date | None = None
    sex: str | None = None
    """HL7 table 0001, FHIR's words or NHS codes; what is neither male nor female is not compared."""
    postcode: str | None = None


class LikenessField(StrEnum):
    """One row of the comparison."""

    SURNAME = "surname"
    GIVEN_NAME = "given name"
    ORDER = "order of names"
    BIRTH_DATE = "date of birth"
    POSTCODE = "postcode"
    SEX = "sex"


class Sight(StrEnum):
    """What can be seen of a field, in the words that a person reads."""

    SURNAME_SAME = "the surnames are the same"
    SURNAME_PART = "one surname is part of the other"
    SURNAME_ALIKE = "the surnames are spelt alike"
    SURNAME_DIFFERS = "the surnames differ"
    GIVEN_SAME = "the first given names are the same"
    GIVEN_FORM = "the first given names are forms of one name"
    GIVEN_ALIKE = "the first given names are spelt alike"
    GIVEN_DIFFERS = "the first given names differ"
    NAMES_SWAPPED = "surname and given name stand the other way round"
    BORN_SAME = "the dates of birth are the same"
    BORN_SWAPPED = "day and month of birth are the other way round"
    BORN_DIGIT = "one digit of the dates of birth differs"
    BORN_DIFFERS = "the dates of birth differ"
    POSTCODE_SAME = "the postcodes are the same"
    POSTCODE_OUTWARD = "the first halves of the postcodes are the same"
    POSTCODE_DIFFERS = "the postcodes differ"
    SEX_SAME = "the sex is the same"
    SEX_DIFFERS = "the sex differs"


class Shares(msgspec.Struct, frozen=True):
    """How often a sight is seen: among pairs that are one person, and among pairs that are two."""

    one_person: float
    two_persons: float

    @property
    def weight(self) -> float:
        """In bits, to one decimal."""
        return round(log2(self.one_person / self.two_persons), 1)


WEIGHTS: Final = {
    # A surname that changed is the commonest mismatch of listed children; the commonest English one has about 1 %.
    Sight.SURNAME_SAME: Shares(0.87, 0.003),
    Sight.SURNAME_PART: Shares(0.03, 0.001),
    Sight.SURNAME_ALIKE: Shares(0.04, 0.004),
    Sight.SURNAME_DIFFERS: Shares(0.06, 0.992),
    # The commonest given names of a year of birth have about 1 %; alike ones are often two children's.
    Sight.GIVEN_SAME: Shares(0.87, 0.01),
    Sight.GIVEN_FORM: Shares(0.05, 0.003),
    Sight.GIVEN_ALIKE: Shares(0.04, 0.01),
    Sight.GIVEN_DIFFERS: Shares(0.04, 0.977),
    # Where both agree crosswise, chance is no likelier than straight; it is seldom done to one person, though.
    Sight.NAMES_SWAPPED: Shares(0.02, 0.1),
    # 18 years have 6,574 days; some 20 of them are one digit off a given one, and one at most is its mirror.
    Sight.BORN_SAME: Shares(0.96, 0.00015),
    Sight.BORN_SWAPPED: Shares(0.008, 0.0001),
    Sight.BORN_DIGIT: Shares(0.017, 0.003),
    Sight.BORN_DIFFERS: Shares(0.015, 0.997),
    # Families on plans move often. Siblings and neighbours share a postcode: it says less than its rarity would.
    Sight.POSTCODE_SAME: Shares(0.7, 0.01),
    Sight.POSTCODE_OUTWARD: Shares(0.13, 0.06),
    Sight.POSTCODE_DIFFERS: Shares(0.17, 0.93),
    Sight.SEX_SAME: Shares(0.99, 0.5),
    Sight.SEX_DIFFERS: Shares(0.01, 0.5),
}
"""The weight of every sight, from two shares."""

_FIELDS: Final = {
    "SURNAME": LikenessField.SURNAME,
    "GIVEN": LikenessField.GIVEN_NAME,
    "NAMES": LikenessField.ORDER,
    "BORN": LikenessField.BIRTH_DATE,
    "POSTCODE": LikenessField.POSTCODE,
    "SEX": LikenessField.SEX,
}
_SEXES: Final = {"M": "M", "MALE": "M", "1": "M", "F": "F", "FEMALE": "F", "2": "F"}
_TWINS_WITHIN: Final = timedelta(days=1)
_OUTWARD_REST: Final = 3
"""The inward half of a postcode has always three characters."""
_POSTCODE_LETTERS_MIN: Final = 5


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Why, as one line of a page. ``weight`` in bits; negative speaks against."""

    field: LikenessField
    wording: str
    weight: float


class Likeness(msgspec.Struct, frozen=True, kw_only=True):
    """The sum, and the reasons side by side, the weightiest first."""

    weight: float
    reasons_for: tuple[Reason, ...]
    reasons_against: tuple[Reason, ...]
    is_possible_twin: bool
    """The same surname, born within a day, not known to live apart, and another given name: two persons, it may be."""


def compare_with_entry(attendance: Attendance, entry: ChildListEntry) -> Likeness:
    """An attendance beside a list entry, which tells no sex."""
    shown = Described(
        names=attendance.names,
        birth_date=attendance.birth_date,
        sex=attendance.sex,
        postcode=attendance.postcode,
    )
    return compare_described(
        shown, Described(names=(entry.name,), birth_date=entry.birth_date, postcode=entry.postcode)
    )


def compare_described(one: Described, other: Described) -> Likeness:
    """Weigh two descriptions; which is which does not matter."""
    names = _see_names(one.names, other.names)
    born = _see_birth_dates(one.birth_date, other.birth_date)
    postcode = _see_postcodes(one.postcode, other.postcode)
    reasons = [_REASONS[sight] for sight in (*names, born, postcode, _see_sexes(one.sex, other.sex)) if sight]
    return Likeness(
        weight=round(sum(reason.weight for reason in reasons), 1),
        reasons_for=_sort(reason for reason in reasons if reason.weight >= 0),
        reasons_against=_sort(reason for reason in reasons if reason.weight < 0),
        is_possible_twin=_may_be_twins(one, other) and postcode in (None, Sight.POSTCODE_SAME),
    )


_REASONS: Final = {
    sight: Reason(field=_FIELDS[sight.name.partition("_")[0]], wording=sight.value, weight=shares.weight)
    for sight, shares in WEIGHTS.items()
}


def _sort(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    return tuple(sorted(reasons, key=lambda reason: (-abs(reason.weight), reason.field)))


# --- names ----------------------------------------------------------------------------------------------


def _see_names(ones: Sequence[PersonName], others: Sequence[PersonName]) -> tuple[Sight, ...]:
    """The likest two names. A name without a given one counts only where no other two can be compared."""
    pairs = [(_fold(one), _fold(other)) for one in ones for other in others]
    seen = [sights for pair in pairs for sights in _see_name(*pair)]
    return max(seen, key=lambda sights: (len(sights) > 1, _sum(sights), sights), default=())


def _fold(name: PersonName) -> tuple[str, str]:
    return fold_name(name.family), fold_name(name.given)


def _see_name(one: tuple[str, str], other: tuple[str, str]) -> list[tuple[Sight, ...]]:
    (family, given), (other_family, other_given) = one, other
    if not family or not other_family:
        return []
    surname = _see_surnames(family, other_family)
    if not given or not other_given:
        return [(surname,)]
    straight = (surname, _see_given_names(given, other_given))
    crossed = (_see_surnames(family, other_given), _see_surnames(given, other_family))
    if crossed != (Sight.SURNAME_SAME, Sight.SURNAME_SAME):
        return [straight]
    return [straight, (Sight.SURNAME_SAME, Sight.GIVEN_SAME, Sight.NAMES_SWAPPED)]


def _sum(sights: Iterable[Sight]) -> float:
    return sum(_REASONS[sight].weight for sight in sights)


def _see_surnames(one: str, other: str) -> Sight:
    words, other_words = set(one.split()), set(other.split())
    if one.replace(" ", "") == other.replace(" ", ""):
        return Sight.SURNAME_SAME
    if words <= other_words or other_words <= words:
        return Sight.SURNAME_PART
    return Sight.SURNAME_ALIKE if _are_spelt_alike(one, other) else Sight.SURNAME_DIFFERS


def _see_given_names(one: str, other: str) -> Sight:
    first, other_first = one.split(maxsplit=1)[0], other.split(maxsplit=1)[0]
    if first == other_first or one.replace(" ", "") == other.replace(" ", ""):
        return Sight.GIVEN_SAME
    if are_forms_of_one_name(first, other_first):
        return Sight.GIVEN_FORM
    return Sight.GIVEN_ALIKE if _are_spelt_alike(first, other_first) else Sight.GIVEN_DIFFERS


def _are_spelt_alike(one: str, other: str) -> bool:
    # The measure may differ by a hair with the order of the two.
    return max(JaroWinkler.similarity(one, other), JaroWinkler.similarity(other, one)) >= NAME_SIMILARITY_MIN


# --- the other fields -----------------------------------------------------------------------------------


def _see_birth_dates(one: date | None, other: date | None) -> Sight | None:
    if one is None or other is None:
        return None
    if one == other:
        return Sight.BORN_SAME
    if (one.year, one.month, one.day) == (other.year, other.day, other.month):
        return Sight.BORN_SWAPPED
    differing = sum(a != b for a, b in zip(one.isoformat(), other.isoformat(), strict=True))
    return Sight.BORN_DIGIT if differing == 1 else Sight.BORN_DIFFERS


def _see_postcodes(one: str | None, other: str | None) -> Sight | None:
    folded, other_folded = fold_postcode(one or ""), fold_postcode(other or "")
    if not folded or not other_folded:
        return None
    if folded == other_folded:
        return Sight.POSTCODE_SAME
    if min(len(folded), len(other_folded)) < _POSTCODE_LETTERS_MIN:
        return Sight.POSTCODE_DIFFERS
    is_near = folded[:-_OUTWARD_REST] == other_folded[:-_OUTWARD_REST]
    return Sight.POSTCODE_OUTWARD if is_near else Sight.POSTCODE_DIFFERS


def _see_sexes(one: str | None, other: str | None) -> Sight | None:
    known, other_known = (_SEXES.get((sex or "").strip().upper()) for sex in (one, other))
    if known is None or other_known is None:
        return None
    return Sight.SEX_SAME if known == other_known else Sight.SEX_DIFFERS


# --- twins ----------------------------------------------------------------------------------------------


def _may_be_twins(one: Described, other: Described) -> bool:
    if one.birth_date is None or other.birth_date is None or abs(one.birth_date - other.birth_date) > _TWINS_WITHIN:
        return False
    pairs = [(_fold(name), _fold(other_name)) for name in one.names for other_name in other.names]
    related = [
        (given, other_given)
        for (family, given), (other_family, other_given) in pairs
        if family and other_family and given and other_given
        if _see_surnames(family, other_family) is not Sight.SURNAME_DIFFERS
    ]
    return bool(related) and not any(_is_one_given_name(*given_names) for given_names in related)


def _is_one_given_name(one: str, other: str) -> bool:
    """Twins may share a first name (Mohammed Ali, Mohammed Amin), and may be named alike."""
    if _see_given_names(one, other) not in (Sight.GIVEN_SAME, Sight.GIVEN_FORM):
        return False
    words, other_words = one.split()[1:], other.split()[1:]
    return (
        not words
        or not other_words
        or not set(words).isdisjoint(other_words)
        or one.replace(" ", "") == other.replace(" ", "")
    )
