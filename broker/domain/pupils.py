"""Which pupil on an authority's list a child of a police incident is, and which ones it may be.

Only who is surely the same is told to a school without a person: the same names, the same date of birth, one such
pupil, and no postcode that differs. Whoever is only probable is shown to a person, weighed as in the review of doubts
(``broker/domain/likeness.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from broker.domain.likeness import Described, Likeness, compare_described
from broker.domain.matching import describe_blocks, fold_postcode
from broker.domain.names import fold_name
from schemas.attendance import PersonName
from schemas.encompass import IncidentChild, Pupil

CANDIDATES_MAX: Final = 5
"""More help nobody to decide."""


class LikelyPupil(msgspec.Struct, frozen=True, kw_only=True):
    """A pupil who may be the child, and why."""

    pupil: Pupil
    likeness: Likeness


class PupilFinding(msgspec.Struct, frozen=True, kw_only=True):
    """What an authority's list says of one child. ``likely`` is empty where ``sure`` is somebody."""

    sure: Pupil | None = None
    likely: tuple[LikelyPupil, ...] = ()


def child_blocks(child: IncidentChild) -> tuple[str, ...]:
    """Keys under which pupils are found that may be this child; none without a date of birth."""
    if child.birth_date is None:
        return ()
    name = PersonName(family=child.family_name, given=child.given_name)
    return describe_blocks(name, child.birth_date, child.postcode)


def pupil_blocks(pupil: Pupil) -> tuple[str, ...]:
    """Keys under which a pupil is found."""
    name = PersonName(family=pupil.family_name, given=pupil.given_name)
    return describe_blocks(name, pupil.birth_date, pupil.postcode)


def find_pupil(child: IncidentChild, pupils: Sequence[Pupil], bits_min: float) -> PupilFinding:
    """Which of these pupils the child surely is, else those that weigh ``bits_min`` or more, the likeliest first."""
    same = [pupil for pupil in pupils if _is_same(child, pupil)]
    if len(same) == 1 and _may_live_at(same[0].postcode, child.postcode):
        return PupilFinding(sure=same[0])
    weighed = [LikelyPupil(pupil=pupil, likeness=_compare(child, pupil)) for pupil in pupils]
    likely = sorted(
        (each for each in weighed if each.likeness.weight >= bits_min),
        key=lambda each: (-each.likeness.weight, each.pupil.authority, each.pupil.pupil_id),
    )
    return PupilFinding(likely=tuple(likely[:CANDIDATES_MAX]))


def _is_same(child: IncidentChild, pupil: Pupil) -> bool:
    said = (fold_name(child.family_name), fold_name(child.given_name), child.birth_date)
    return bool(child.given_name) and said == (
        fold_name(pupil.family_name),
        fold_name(pupil.given_name),
        pupil.birth_date,
    )


def _may_live_at(listed: str | None, said: str | None) -> bool:
    """Postcodes that are both known must be equal: in doubt a person looks."""
    return not listed or not said or fold_postcode(listed) == fold_postcode(said)


def _compare(child: IncidentChild, pupil: Pupil) -> Likeness:
    return compare_described(
        Described(
            names=(PersonName(family=child.family_name, given=child.given_name),),
            birth_date=child.birth_date,
            postcode=child.postcode,
        ),
        Described(
            names=(PersonName(family=pupil.family_name, given=pupil.given_name),),
            birth_date=pupil.birth_date,
            postcode=pupil.postcode,
        ),
    )
