"""When two written names are the same person's name."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final

from rapidfuzz.distance import JaroWinkler

from schemas.attendance import PersonName

_NOT_LETTERS: Final = re.compile(r"[^a-z ]+")
_WORD_BREAKS: Final = re.compile(r"[\s\-‐‑]+")
NAME_SIMILARITY_MIN: Final = 0.92
"""Jaro-Winkler; below it two spellings count as different names. Jon / John and Mohamed / Mohammed stand above."""


def fold_name(text: str) -> str:
    """Letters and single spaces only: accents, case, hyphens, apostrophes and titles' dots do not count."""
    if text.isascii() and text.isalpha():
        return text.lower()  # as nearly all are, and at a tenth of the cost
    plain = unicodedata.normalize("NFKD", text).casefold()
    return " ".join(_NOT_LETTERS.sub("", _WORD_BREAKS.sub(" ", plain)).split())


_SOUNDS: Final = {
    letter: sound
    for sound, letters in {"1": "bfpv", "2": "cgjkqsxz", "3": "dt", "4": "l", "5": "mn", "6": "r"}.items()
    for letter in letters
}
_SOUND_LETTERS: Final = 4


def sound_surnames(names: Sequence[PersonName]) -> tuple[str, ...]:
    """How the surnames sound, each once: as a whole, and each word of one that has several.

    American Soundex (Russell, US patent 1,261,167): a letter and three digits. Double-barrelled names are written
    in every way, so Smith-Jones is found by Jones.
    """
    found: dict[str, None] = {}
    for name in names:
        words = fold_name(name.family).split()
        for word in ("".join(words), *words):
            if word:
                found[_sound(word)] = None
    return tuple(found)


def _sound(word: str) -> str:
    digits, last = [word[0]], _SOUNDS.get(word[0], "")
    for letter in word[1:]:
        sound = _SOUNDS.get(letter, "")
        if sound and sound != last:
            digits.append(sound)
        if letter not in "hw":
            last = sound
    return "".join(digits)[:_SOUND_LETTERS].ljust(_SOUND_LETTERS, "0")


def names_agree(shown: Sequence[PersonName], listed: PersonName) -> bool | None:
    """Whether any of the names shown is the listed one; None when there is nothing to compare.

    Family name and first given name must both be alike, in either order: departments often write South Asian names
    the other way round. Where one side gives no given name, the family name alone decides.
    """
    listed_family, listed_given = fold_name(listed.family), fold_name(listed.given)
    comparable = [name for name in shown if fold_name(name.family)]
    if not comparable or not listed_family:
        return None
    return any(
        _pair_alike(fold_name(name.family), fold_name(name.given), listed_family, listed_given) for name in comparable
    )


def surnames_agree(shown: Sequence[PersonName], listed: PersonName) -> bool:
    """Whether any of the names shown has the listed surname."""
    surname = fold_name(listed.family)
    return bool(surname) and any(_alike(fold_name(name.family), surname) for name in shown if fold_name(name.family))


def _pair_alike(family: str, given: str, listed_family: str, listed_given: str) -> bool:
    straight = _alike(family, listed_family) and _first_alike(given, listed_given)
    swapped = bool(given and listed_given) and _alike(family, listed_given) and _alike(given, listed_family)
    return straight or swapped


def _first_alike(given: str, listed: str) -> bool:
    if not given or not listed:
        return True
    # Anne-Marie, Anne Marie and Annemarie are one name: compared as a whole as well.
    return _alike(given, listed) or _alike(given.split(maxsplit=1)[0], listed.split(maxsplit=1)[0])


def _alike(one: str, other: str) -> bool:
    one, other = one.replace(" ", ""), other.replace(" ", "")
    return one == other or JaroWinkler.similarity(one, other) >= NAME_SIMILARITY_MIN
