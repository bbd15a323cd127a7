"""A town's people, all invented: families with siblings and twins, mothers, and near-twins who are somebody else.

The same seed and day give the same people. NHS numbers pass the modulus 11 check and come from the 999 range,
postcodes are in ZZ99: neither is issued to anybody.
"""

from __future__ import annotations

import calendar
import csv
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final

from mock_nhs.names import CULTURES, RESPELT, Culture, write_name
from schemas.identifiers import NhsNumber, parse_nhs_number

ADULT_YEARS: Final = 18
_CHILD_YEARS_MAX: Final = 17
_STREETS: Final = ("Mill Lane", "Station Road", "Church Street", "Albert Terrace", "Canal Wharf", "High Street")
_POSTCODE_LETTERS: Final = "ABDEFGHJLNPQRSTUWXYZ"
_WEIGHTS: Final = (10, 9, 8, 7, 6, 5, 4, 3, 2)


class Kin(StrEnum):
    """What someone is in the household."""

    CHILD = "child"
    MOTHER = "mother"
    PARTNER = "partner"


@dataclass(frozen=True, kw_only=True)
class Person:
    """Someone in the town."""

    nhs_number: NhsNumber
    family_name: str
    given_name: str
    """Given names, separated by spaces."""
    birth_date: date
    sex: str
    """NHS Data Dictionary: 1 male, 2 female."""
    address: str
    postcode: str
    household: int
    kin: Kin
    resembles: str = ""
    """For a near-twin: the NHS number of the person who is not this one."""

    def age_on(self, on: date) -> int:
        """Completed years on that day."""
        before_birthday = (on.month, on.day) < (self.birth_date.month, self.birth_date.day)
        return on.year - self.birth_date.year - before_birthday

    def is_child(self, on: date) -> bool:
        """Whether under 18 on that day."""
        return self.age_on(on) < ADULT_YEARS


class Numbers:
    """Hands out NHS numbers of the 999 range, none twice."""

    def __init__(self, draws: random.Random) -> None:
        self._draws = draws
        self._used: set[str] = set()

    def next(self) -> NhsNumber:
        """A number nobody has."""
        while True:
            number = self._take(f"999{self._draws.randrange(1_000_000):06d}")
            if number is not None:
                return number

    def next_near(self, other: NhsNumber) -> NhsNumber:
        """A number that differs from ``other`` in one digit of the first nine, and so in its check digit."""
        places = [(place, digit) for place in range(3, 9) for digit in "0123456789" if digit != other[place]]
        self._draws.shuffle(places)
        for place, digit in places:
            number = self._take(other[:place] + digit + other[place + 1 : 9])
            if number is not None:
                return number
        return self.next()

    def _take(self, nine_digits: str) -> NhsNumber | None:
        check = -sum(int(digit) * weight for digit, weight in zip(nine_digits, _WEIGHTS, strict=True)) % 11
        number = parse_nhs_number(f"{nine_digits}{check}") if check < 10 else None
        if number is None or number in self._used:
            return None
        self._used.add(number)
        return number


def invent_people(seed: int, *, people: int, near_twins: int, on: date) -> tuple[Person, ...]:
    """``people`` persons as of the day ``on``; the last ``near_twins`` of them resemble children among the others.

    A near-twin is, in turn: a twin (own given name, all else equal), a namesake born on the same day at another
    address, and a child with nearly the same number and a respelt name.
    """
    assert 0 <= near_twins <= people // 2, "near-twins need others to resemble"
    draws = random.Random(f"{seed}:people")
    numbers = Numbers(draws)
    found: list[Person] = []
    household = 0
    while len(found) < people - near_twins:
        household += 1
        found.extend(_invent_household(draws, numbers, household, on))
    del found[people - near_twins :]
    children = [person for person in found if person.kin is Kin.CHILD]
    originals = draws.sample(children, near_twins)
    found.extend(_invent_near_twin(draws, numbers, other, turn) for turn, other in enumerate(originals))
    return tuple(found)


def write_people(people: Sequence[Person], path: Path) -> None:
    """Write the whole town as CSV, for the departments of this side; the product never sees it."""
    names = [field.name for field in fields(Person)]
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(names)
        rows.writerows([getattr(person, name) for name in names] for person in people)


def read_people(path: Path) -> tuple[Person, ...]:
    """Read what ``write_people`` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(_read_person(row) for row in csv.DictReader(file))


def _read_person(row: dict[str, str]) -> Person:
    return Person(
        nhs_number=NhsNumber(row["nhs_number"]),
        family_name=row["family_name"],
        given_name=row["given_name"],
        birth_date=date.fromisoformat(row["birth_date"]),
        sex=row["sex"],
        address=row["address"],
        postcode=row["postcode"],
        household=int(row["household"]),
        kin=Kin(row["kin"]),
        resembles=row["resembles"],
    )


def _invent_household(draws: random.Random, numbers: Numbers, household: int, on: date) -> Iterator[Person]:
    culture, partners_culture = draws.choice(CULTURES), draws.choice(CULTURES)
    family = draws.choice(culture.families)
    address, postcode = _invent_address(draws)

    taken: set[str] = set()

    def member(kin: Kin, sex: str, birth_date: date, word: str = family, of: Culture = culture) -> Person:
        return Person(
            nhs_number=numbers.next(),
            family_name=write_name(word, female=sex == "2"),
            given_name=_invent_given(draws, of, sex, taken),
            birth_date=birth_date,
            sex=sex,
            address=address,
            postcode=postcode,
            household=household,
            kin=kin,
        )

    births = _invent_births(draws, on)
    eldest = min(births)
    mothers_word = family if draws.random() < 0.7 else draws.choice(culture.families)
    yield member(Kin.MOTHER, "2", _invent_parents_birth(draws, eldest), mothers_word)
    for born in births:
        yield member(Kin.CHILD, draws.choice("12"), born)
    if draws.random() < 0.5:
        word = draws.choice(partners_culture.families)
        birth_date = _invent_parents_birth(draws, eldest)
        yield member(Kin.PARTNER, draws.choice("1112"), birth_date, word, partners_culture)


def _invent_parents_birth(draws: random.Random, childs_birth: date) -> date:
    return _years_before(childs_birth, draws.randint(16, 40)) - timedelta(days=draws.randrange(365))


def _invent_births(draws: random.Random, on: date) -> list[date]:
    """One to four days of birth under 18 years ago; two siblings in thirty families are twins."""
    births = [_years_before(on, 0) - timedelta(days=draws.randrange(1, _CHILD_YEARS_MAX * 365))]
    for _ in range(draws.choice((0, 0, 1, 1, 2, 3))):
        born = births[-1] + timedelta(days=draws.randrange(330, 1_500))
        if born < on:
            births.append(born)
    if draws.random() < 1 / 30:
        births.append(births[0])
    return births


def _invent_near_twin(draws: random.Random, numbers: Numbers, other: Person, turn: int) -> Person:
    culture = next(known for known in CULTURES if _is_given_of(other, known))
    if turn % 3 == 0:
        names = _given_names(draws, culture, other.sex)
        given = next(name for name in names if not other.given_name.startswith(name))
        return replace(other, nhs_number=numbers.next(), given_name=given, resembles=other.nhs_number)
    address, postcode = _invent_address(draws)
    namesake = replace(other, address=address, postcode=postcode, household=0, resembles=other.nhs_number)
    if turn % 3 == 1:
        return replace(namesake, nhs_number=numbers.next())
    first, *more = other.given_name.split()
    return replace(
        namesake,
        nhs_number=numbers.next_near(other.nhs_number),
        given_name=" ".join([RESPELT.get(first, first), *more]),
        birth_date=_another_day(other.birth_date),
    )


def _is_given_of(person: Person, culture: Culture) -> bool:
    known = {write_name(name, female=False) for name in (*culture.girls, *culture.boys)}
    return any(person.given_name.startswith(name) for name in known)


def _another_day(born: date) -> date:
    """Day and month swapped where that gives an earlier date, else the day before: slips of a registration desk."""
    if born.day < born.month:
        return born.replace(day=born.month, month=born.day)
    return born - timedelta(days=1)


def _given_names(draws: random.Random, culture: Culture, sex: str) -> list[str]:
    names = culture.girls if sex == "2" else culture.boys
    return [write_name(name, female=False) for name in draws.sample(names, len(names))]


def _invent_given(draws: random.Random, culture: Culture, sex: str, taken: set[str]) -> str:
    """One or two given names; the first is nobody else's in the household while the culture's names last."""
    names = _given_names(draws, culture, sex)
    first = next((name for name in names if name not in taken), names[0])
    taken.add(first)
    second = draws.choice([name for name in names if name != first])
    return f"{first} {second}" if draws.random() < 0.4 else first


def _invent_address(draws: random.Random) -> tuple[str, str]:
    letters = "".join(draws.choices(_POSTCODE_LETTERS, k=2))
    return f"{draws.randint(1, 180)} {draws.choice(_STREETS)}", f"ZZ99 {draws.randint(0, 9)}{letters}"


def _years_before(day: date, years: int) -> date:
    year = day.year - years
    return day.replace(year=year, day=min(day.day, calendar.monthrange(year, day.month)[1]))
