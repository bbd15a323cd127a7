"""The rule that decides whether social care is told: every combination of what agrees."""

from __future__ import annotations

from datetime import date
from itertools import product

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.domain.matching import Match, NoMatch, Unsure, entry_blocks, match_child, visitor_blocks
from schemas.alert import IdentityFact
from schemas.attendance import Attendance, NhsNumberProblem, PersonName
from schemas.child_list import ChildListEntry, PlanType
from schemas.identifiers import NhsNumber
from tests.factories import make_attendance, make_entry, make_nhs_number

BIRTH_DATES = {True: date(2015, 3, 2), False: date(2011, 1, 1), None: None}
NAMES: dict[bool | None, tuple[PersonName, ...]] = {
    True: (PersonName(family="TESTER", given="CASEY"),),
    False: (PersonName(family="OTHER", given="SOMEBODY"),),
    None: (),
}
VERDICTS = list(product((True, False, None), repeat=2))


@pytest.mark.parametrize(("born", "named"), VERDICTS)
def test_an_equal_number_matches_when_birth_date_or_name_agrees(born: bool | None, named: bool | None) -> None:
    judgement = match_child(make_attendance(birth_date=BIRTH_DATES[born], names=NAMES[named]), make_entry())
    if born or named:
        assert isinstance(judgement, Match)
    else:
        assert isinstance(judgement, Unsure)
    agrees = [IdentityFact.NHS_NUMBER, *[IdentityFact.BIRTH_DATE] * bool(born), *[IdentityFact.NAME] * bool(named)]
    differs = [*[IdentityFact.BIRTH_DATE] * (born is False), *[IdentityFact.NAME] * (named is False)]
    assert list(judgement.agrees) == agrees
    assert list(judgement.differs) == differs


@pytest.mark.parametrize(("born", "named"), VERDICTS)
@pytest.mark.parametrize("problem", NhsNumberProblem)
def test_without_a_number_only_both_together_go_to_a_person(
    born: bool | None, named: bool | None, problem: NhsNumberProblem
) -> None:
    facts = make_attendance(
        nhs_number=None, nhs_number_problem=problem, birth_date=BIRTH_DATES[born], names=NAMES[named]
    )
    judgement = match_child(facts, make_entry())
    if born and named:
        assert isinstance(judgement, Unsure)
        assert judgement.agrees == (IdentityFact.BIRTH_DATE, IdentityFact.NAME)
        assert "no usable NHS number" in judgement.reason
    else:
        assert judgement == NoMatch()


def test_two_different_valid_numbers_are_two_people_even_with_equal_name_and_birth_date() -> None:
    assert match_child(make_attendance(nhs_number=make_nhs_number(2)), make_entry()) == NoMatch()


@pytest.mark.parametrize("status", [None, *(f"{code:02d}" for code in range(1, 9))])
def test_the_trace_status_of_the_number_is_no_gate(status: str | None) -> None:
    assert isinstance(match_child(make_attendance(nhs_number_status=status), make_entry()), Match)


@pytest.mark.parametrize(
    ("born", "named", "words"),
    [
        (False, False, "the date of birth differs and the name differs"),
        (None, False, "the date of birth is not given and the name differs"),
        (False, None, "the date of birth differs and the name is not given"),
        (None, None, "the date of birth is not given and the name is not given"),
    ],
)
def test_a_doubt_says_why_without_saying_what(born: bool | None, named: bool | None, words: str) -> None:
    facts = make_attendance(birth_date=BIRTH_DATES[born], names=NAMES[named])
    judgement = match_child(facts, make_entry())
    assert isinstance(judgement, Unsure)
    assert judgement.reason == f"same NHS number, but {words}"
    assert "OTHER" not in judgement.reason and "2011" not in judgement.reason


def test_a_visitor_without_a_birth_date_or_with_a_number_has_no_block() -> None:
    assert visitor_blocks([make_attendance(nhs_number=None, birth_date=None)]) == ()
    assert visitor_blocks([make_attendance()]) == ()


@settings(deadline=None)
@given(st.dates(), st.dates())
def test_nameless_people_meet_in_a_block_when_born_on_one_day_or_its_mirror(one: date, other: date) -> None:
    visitor = make_attendance(nhs_number=None, birth_date=one, names=(), postcode=None)
    mirrored = (one.year, one.month, one.day) == (other.year, other.day, other.month)
    assert meets(visitor, make_entry(birth_date=other)) == (one == other or mirrored)


@pytest.mark.parametrize(
    ("listed", "shown", "postcode", "found"),
    [
        ("Smith-Jones", "JONES", "ZZ99 9ZZ", True),
        ("Jones", "Smith Jones", "ZZ99 9ZZ", True),
        ("Smyth", "SMITH", "ZZ99 9ZZ", True),
        ("Mohammed", "Muhamad", "ZZ99 9ZZ", True),
        ("Brown", "SMITH", "zz991aa", True),
        ("Brown", "SMITH", "ZZ99 9ZZ", False),
    ],
)
def test_a_mistaken_birthday_of_the_same_year_is_found_by_sound_or_postcode(
    listed: str, shown: str, postcode: str, *, found: bool
) -> None:
    entry = make_entry(name=PersonName(listed, "Casey"), birth_date=date(2015, 3, 2), postcode="ZZ99 1AA")
    visitor = make_attendance(
        nhs_number=None, birth_date=date(2015, 8, 21), names=(PersonName(shown, "CASEY"),), postcode=postcode
    )
    assert meets(visitor, entry) == found
    assert not meets(visitor, msgspec.structs.replace(entry, birth_date=date(2014, 3, 2)))


def test_what_two_messages_say_is_found_together() -> None:
    said = [
        make_attendance(nhs_number=None, birth_date=date(2015, 8, 21), names=(), postcode=None),
        make_attendance(nhs_number=None, birth_date=None, names=(PersonName("TESTER", "CASEY"),), postcode=None),
    ]
    sounds = {block for block in visitor_blocks(said) if block.startswith("sound/")}
    assert sounds == {"sound/2015/t236"}


def meets(visitor: Attendance, entry: ChildListEntry) -> bool:
    return not set(visitor_blocks([visitor])).isdisjoint(entry_blocks(entry))


MOTHER = make_nhs_number(7)
UNBORN = make_entry(
    nhs_number=MOTHER,
    name=PersonName(family="Tester", given="Alma"),
    birth_date=date(2009, 5, 5),
    plan_type=PlanType.UNBORN,
    start_on=date(2025, 11, 1),
)
BABY = {"mother_nhs_number": MOTHER, "names": (PersonName(family="TESTER", given="BABY"),)}


@pytest.mark.parametrize("number", [None, make_nhs_number(8)])
def test_a_child_born_since_the_plan_began_matches_the_unborn_plan_of_the_mother_it_names(
    number: NhsNumber | None,
) -> None:
    born = make_attendance(nhs_number=number, birth_date=date(2026, 2, 1), **BABY)
    assert match_child(born, UNBORN) == Match(agrees=(IdentityFact.MOTHER,), differs=())


def test_an_older_child_of_hers_does_not() -> None:
    older = make_attendance(nhs_number=make_nhs_number(8), birth_date=date(2025, 10, 3), **BABY)
    assert match_child(older, UNBORN) == NoMatch()


def test_a_child_of_hers_whose_date_of_birth_is_not_given_goes_to_a_person() -> None:
    unknown = make_attendance(nhs_number=make_nhs_number(8), birth_date=None, **BABY)
    judgement = match_child(unknown, UNBORN)
    assert isinstance(judgement, Unsure)
    assert judgement.agrees == (IdentityFact.MOTHER,)


def test_her_own_other_entries_are_not_her_childs() -> None:
    own = make_entry(nhs_number=MOTHER, birth_date=date(2009, 5, 5), plan_type=PlanType.LOOKED_AFTER)
    born = make_attendance(nhs_number=make_nhs_number(8), birth_date=date(2026, 2, 1), **BABY)
    assert match_child(born, own) == NoMatch()


@pytest.mark.parametrize("birth_date", [date(2009, 5, 5), date(1984, 5, 5)])
def test_the_mother_herself_matches_at_any_age(birth_date: date) -> None:
    entry = make_entry(nhs_number=MOTHER, birth_date=birth_date, plan_type=PlanType.UNBORN, start_on=date(2025, 11, 1))
    assert isinstance(match_child(make_attendance(nhs_number=MOTHER, birth_date=birth_date), entry), Match)


def test_a_twin_without_a_number_goes_to_a_person_with_the_reasons() -> None:
    twin = make_attendance(nhs_number=None, names=(PersonName(family="TESTER", given="JORDAN"),), postcode="ZZ99 1AA")
    judgement = match_child(twin, make_entry(postcode="zz991aa"))
    assert isinstance(judgement, Unsure)
    assert judgement.agrees == (IdentityFact.BIRTH_DATE, IdentityFact.POSTCODE)
    assert judgement.differs == (IdentityFact.NAME,)
    assert "perhaps a twin" in judgement.reason


def test_a_twin_with_a_number_of_its_own_is_another_person() -> None:
    twin = make_attendance(nhs_number=make_nhs_number(2), names=(PersonName(family="TESTER", given="JORDAN"),))
    assert match_child(twin, make_entry()) == NoMatch()
