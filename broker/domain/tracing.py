"""What to ask the Personal Demographics Service of a listed person, and what its answers mean for the entry.

No number is ever put in the place of another here but that of a superseded record, which PDS itself links. What a
search finds is a suggestion to a person, because a new number after an adoption must never be linked to the old one;
for the same reason nothing is searched when a number is invalid, and nobody restricted is suggested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.domain.names import fold_name
from schemas.trace import (
    Answer,
    ByDetails,
    ByNumber,
    Finding,
    GivenRung,
    Invalid,
    Invalidated,
    Mismatch,
    NoPerson,
    NotFound,
    Question,
    RecordedName,
    Refused,
    Restricted,
    SeveralPersons,
    Superseded,
    Traceable,
    TracedPerson,
    TraceField,
    Unavailable,
    Verified,
)

_GIVEN_LETTERS: Final = 3
_AREA_LETTERS: Final = 2
"""What PDS advises for a search that finds one person: three letters of the given name, two of the postcode."""
QUESTIONS_MAX: Final = 7
"""One trace asks no more than this: the number, and six searches."""


def trace_next(listed: Traceable, answers: Sequence[Answer]) -> Question | Finding:
    """The next question, or what was found, from the answers to the questions so far, in order.

    The number is asked first. A search follows when there is no number, when PDS does not know it, or when it is
    somebody else's; from the narrowest to the widest, and the first that finds anybody is the last.
    """
    if not answers:
        return _begin(listed)
    if isinstance(answers[-1], Unavailable | Refused):
        return answers[-1]
    if listed.nhs_number is None:
        return _search_next(listed, NotFound(), answers)
    first = judge_number(listed, answers[0])
    if not isinstance(first, Mismatch | NotFound):
        return first
    return _search_next(listed, first, answers[1:])


def _begin(listed: Traceable) -> Question | Finding:
    if listed.nhs_number is not None:
        return ByNumber(nhs_number=listed.nhs_number)
    return _search_next(listed, NotFound(), ())


def _search_next(
    listed: Traceable, so_far: Mismatch | NotFound, answers: Sequence[Answer]
) -> Question | Mismatch | NotFound:
    last = answers[-1] if answers else NoPerson()
    if isinstance(last, TracedPerson):
        return _suggest(listed, so_far, last)
    ladder = search_ladder(listed)
    if isinstance(last, SeveralPersons):
        # A wider question would only find more.
        return NotFound(is_ambiguous=True) if isinstance(so_far, NotFound) else so_far
    return ladder[len(answers)] if len(answers) < len(ladder) else so_far


def _suggest(listed: Traceable, so_far: Mismatch | NotFound, found: TracedPerson) -> Mismatch | NotFound:
    if found.is_restricted or found.nhs_number == listed.nhs_number:
        return so_far
    if isinstance(so_far, Mismatch):
        return Mismatch(differs=so_far.differs, suggestion=found.nhs_number)
    return NotFound(suggestion=found.nhs_number)


def search_ladder(listed: Traceable) -> tuple[ByDetails, ...]:
    """The searches for a person, from the narrowest to the widest.

    All given names, the first, its beginning: each within the postcode's area; then each anywhere, for who has moved.
    (PDS leaves restricted persons out of every search with a postcode.) Without a surname nothing is searched.
    """
    family, given = (" ".join(text.replace("*", " ").split()) for text in (listed.name.family, listed.name.given))
    if not family:
        return ()
    names = tuple(given.split())
    begins = (_beginning(names[0], _GIVEN_LETTERS),) if names else ()
    area = _beginning("".join((listed.postcode or "").replace("*", " ").split()).upper(), _AREA_LETTERS)
    asked = (
        ByDetails(family=family, given=rung, birth_date=listed.birth_date, postcode=postcode)
        for postcode in (*((area,) if area else ()), None)
        for rung in (names, names[:1], begins)
    )
    return tuple(dict.fromkeys(asked))


def _beginning(text: str, letters: int) -> str:
    """The first letters and a ``*``; a text with fewer stays whole."""
    return f"{text[:letters]}*" if len(text) >= letters else text


def judge_number(listed: Traceable, answer: Answer) -> Finding:
    """What the answer to a question by number means for the entry."""
    if isinstance(answer, TracedPerson):
        return _judge_person(listed, answer)
    if isinstance(answer, Invalid):
        return Invalidated()
    if isinstance(answer, NoPerson):
        return NotFound()
    if isinstance(answer, SeveralPersons):
        return NotFound(is_ambiguous=True)
    return answer


def _judge_person(listed: Traceable, found: TracedPerson) -> Finding:
    differs, rung = compare_person(listed, found)
    is_superseded = found.nhs_number != listed.nhs_number
    if found.is_restricted:
        return Restricted(differs=differs, replacement=found.nhs_number if is_superseded else None)
    if is_superseded:
        return Superseded(replacement=found.nhs_number, differs=differs)
    if differs or rung is None:
        return Mismatch(differs=differs)
    return Verified(rung=rung)


def compare_person(listed: Traceable, found: TracedPerson) -> tuple[tuple[TraceField, ...], GivenRung | None]:
    """Which fields differ, and on which rung the given names agree. The recorded name that differs least counts."""
    differs, rung = min(
        (_compare_name(listed, name) for name in found.names),
        key=lambda compared: (len(compared[0]), compared[1] or len(GivenRung) + 1),
        default=((TraceField.FAMILY, TraceField.GIVEN), None),
    )
    if found.birth_date != listed.birth_date:
        differs = (*differs, TraceField.BIRTH_DATE)
    return differs, rung


def _compare_name(listed: Traceable, recorded: RecordedName) -> tuple[tuple[TraceField, ...], GivenRung | None]:
    rung = climb_given_names(listed.name.given, recorded.given)
    differs: tuple[TraceField, ...] = ()
    if _fold(listed.name.family) != _fold(recorded.family):
        differs = (TraceField.FAMILY,)
    if rung is None:
        differs = (*differs, TraceField.GIVEN)
    return differs, rung


def climb_given_names(listed: str, recorded: Sequence[str]) -> GivenRung | None:
    """The first rung of the ladder on which given names agree, or None.

    As a supplier of case systems compares them for CP-IS; a fourth and laxer rung of theirs is not published, and is
    left out. Case, accents, hyphens and apostrophes do not count.
    """
    wanted, held = _fold_words(listed), _fold_words(" ".join(recorded))
    if wanted == held:
        return GivenRung.WHOLE  # nobody on either side has a given name: nothing differs
    if not wanted or not held:
        return None
    if wanted[0] == held[0]:
        return GivenRung.FIRST
    return GivenRung.ANY if wanted[0] in held else None


def _fold_words(text: str) -> list[str]:
    return [word for part in text.split() for word in _fold(part).split()]


def _fold(text: str) -> str:
    # A name in letters that folding drops altogether is compared as it is written.
    return fold_name(text) or " ".join(text.casefold().split())
