"""What speaks for and against two descriptions being of one person, weighed so that a person can follow."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from broker.domain.given_names import GROUPS, are_forms_of_one_name
from broker.domain.likeness import (
    WEIGHTS,
    Described,
    Likeness,
    LikenessField,
    Sight,
    compare_described,
    compare_with_entry,
)
from broker.domain.names import fold_name
from mock_nhs.names import RESPELT
from schemas.attendance import PersonName
from tests.factories import make_attendance, make_entry

BORN = date(2015, 3, 2)


def described(
    given_: str = "Casey", family: str = "Tester", born: date | None = BORN, postcode: str | None = "ZZ99 3CZ"
) -> Described:
    return Described(names=(PersonName(family, given_),), birth_date=born, sex="F", postcode=postcode)


def sights(likeness: Likeness) -> set[str]:
    return {reason.wording for reason in (*likeness.reasons_for, *likeness.reasons_against)}


CASEY = described()


@pytest.mark.parametrize(
    ("other", "sight"),
    [
        (described(family="TESTER"), Sight.SURNAME_SAME),
        (described(family="Tester-Pike"), Sight.SURNAME_PART),
        (described(family="Testor"), Sight.SURNAME_ALIKE),
        (described(family="Pike"), Sight.SURNAME_DIFFERS),
        (described("CASEY ANNE"), Sight.GIVEN_SAME),
        (described("Cassey"), Sight.GIVEN_ALIKE),
        (described("Robin"), Sight.GIVEN_DIFFERS),
        (described("Tester", "Casey"), Sight.NAMES_SWAPPED),
        (described(born=date(2015, 3, 2)), Sight.BORN_SAME),
        (described(born=date(2015, 2, 3)), Sight.BORN_SWAPPED),
        (described(born=date(2015, 3, 12)), Sight.BORN_DIGIT),
        (described(born=date(2016, 3, 2)), Sight.BORN_DIGIT),
        (described(born=date(2011, 8, 30)), Sight.BORN_DIFFERS),
        (described(postcode="zz993cz"), Sight.POSTCODE_SAME),
        (described(postcode="ZZ99 4AA"), Sight.POSTCODE_OUTWARD),
        (described(postcode="ZZ98 3CZ"), Sight.POSTCODE_DIFFERS),
        (replace(CASEY, sex="female"), Sight.SEX_SAME),
        (replace(CASEY, sex="2"), Sight.SEX_SAME),
        (replace(CASEY, sex="1"), Sight.SEX_DIFFERS),
    ],
)
def test_every_sight_is_seen_and_weighed(other: Described, sight: Sight) -> None:
    likeness = compare_described(CASEY, other)
    assert sight in sights(likeness)
    side = likeness.reasons_for if WEIGHTS[sight].weight >= 0 else likeness.reasons_against
    assert WEIGHTS[sight].weight in [reason.weight for reason in side if reason.wording == sight]


def test_the_sum_is_the_sum_of_what_is_shown_the_weightiest_first() -> None:
    likeness = compare_described(CASEY, described("Robin", postcode="ZZ98 3CZ"))
    shown = [*likeness.reasons_for, *likeness.reasons_against]
    assert likeness.weight == round(sum(reason.weight for reason in shown), 1)
    assert [reason.field for reason in likeness.reasons_for] == [
        LikenessField.BIRTH_DATE,
        LikenessField.SURNAME,
        LikenessField.SEX,
    ]
    assert [reason.field for reason in likeness.reasons_against] == [LikenessField.GIVEN_NAME, LikenessField.POSTCODE]


def test_better_agreement_weighs_more_and_disagreement_speaks_against() -> None:
    for ladder in (
        (Sight.SURNAME_SAME, Sight.SURNAME_PART, Sight.SURNAME_ALIKE, None, Sight.SURNAME_DIFFERS),
        (Sight.GIVEN_SAME, Sight.GIVEN_FORM, Sight.GIVEN_ALIKE, None, Sight.GIVEN_DIFFERS),
        (Sight.BORN_SAME, Sight.BORN_SWAPPED, Sight.BORN_DIGIT, None, Sight.BORN_DIFFERS),
        (Sight.POSTCODE_SAME, Sight.POSTCODE_OUTWARD, None, Sight.POSTCODE_DIFFERS),
        (Sight.SEX_SAME, None, Sight.SEX_DIFFERS),
    ):
        weights = [WEIGHTS[sight].weight if sight else 0.0 for sight in ladder]
        assert weights == sorted(weights, reverse=True)
        assert len(set(weights)) == len(weights)
    assert set(WEIGHTS) == set(Sight)


def test_shares_of_one_field_are_shares_of_one_whole() -> None:
    for prefix in ("SURNAME", "GIVEN", "BORN", "POSTCODE", "SEX"):
        shares = [WEIGHTS[sight] for sight in Sight if sight.name.startswith(prefix)]
        assert sum(share.one_person for share in shares) == pytest.approx(1, abs=0.001)
        assert sum(share.two_persons for share in shares) == pytest.approx(1, abs=0.001)


def test_the_same_person_stands_far_above_somebody_with_the_same_name_or_birthday() -> None:
    same = compare_described(CASEY, CASEY).weight
    respelt = compare_described(CASEY, described("Cassey", "Testor", date(2015, 2, 3))).weight
    namesake = compare_described(CASEY, described(born=date(2011, 8, 30), postcode="ZZ98 3CZ")).weight
    birthday = compare_described(CASEY, described("Robin", "Pike", postcode="ZZ98 3CZ")).weight
    assert same > respelt + 10 > 10 + max(namesake, birthday) + 5


# Twins


@pytest.mark.parametrize(
    "other",
    [
        described("Robin"),
        described("Robin", born=BORN + timedelta(days=1)),
        described("Robin", born=BORN - timedelta(days=1)),
        described("Cassey"),
        described("Robin", postcode=None),
        described("Robin", "Tester-Pike"),
        replace(described("Robin"), sex="M"),
    ],
)
def test_a_possible_twin_is_flagged(other: Described) -> None:
    assert compare_described(CASEY, other).is_possible_twin


@pytest.mark.parametrize(
    "other",
    [
        CASEY,
        described("Casey Anne"),
        described(""),
        described("Robin", "Pike"),
        described("Robin", postcode="ZZ98 3CZ"),
        described("Robin", born=BORN + timedelta(days=2)),
        described("Robin", born=None),
        Described(names=(PersonName("Tester", "Robin"), PersonName("Tester", "Casey")), birth_date=BORN),
    ],
)
def test_who_is_no_twin_is_not_flagged(other: Described) -> None:
    assert not compare_described(CASEY, other).is_possible_twin


def test_twins_may_share_their_first_name() -> None:
    one, other = described("Mohammed Ali"), described("Muhammad Amin")
    assert compare_described(one, other).is_possible_twin
    assert not compare_described(one, described("Muhammad")).is_possible_twin
    assert not compare_described(described("Anne Marie"), described("Annemarie")).is_possible_twin


def test_a_name_without_a_given_one_does_not_hide_that_given_names_differ() -> None:
    both = replace(CASEY, names=(PersonName("Tester", "Robin"), PersonName("Tester", "")))
    assert Sight.GIVEN_DIFFERS in sights(compare_described(CASEY, both))
    assert compare_described(CASEY, both).is_possible_twin


def test_an_attendance_is_compared_with_an_entry() -> None:
    likeness = compare_with_entry(make_attendance(), make_entry())
    assert {Sight.SURNAME_SAME, Sight.GIVEN_SAME, Sight.BORN_SAME} <= sights(likeness)
    assert not {Sight.SEX_SAME, Sight.SEX_DIFFERS} & sights(likeness)


# Forms of one name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Niamh", "Neve"),
        ("Seán", "Shaun"),
        ("Caoimhe", "Keeva"),
        ("Rhys", "Reece"),
        ("Dafydd", "David"),
        ("Mohammed", "Muhammad"),
        ("Ayesha", "Aisha"),
        ("Lakshmi", "Laxmi"),
        ("Alexandra", "Alex"),
        ("Alexander", "Alex"),
        ("Bob", "Robert"),
    ],
)
def test_forms_of_one_name_are_known(one: str, other: str) -> None:
    assert are_forms_of_one_name(fold_name(one), fold_name(other))
    assert Sight.GIVEN_FORM in sights(compare_described(described(one), described(other)))


@pytest.mark.parametrize(
    ("one", "other"), [("alexander", "alexandra"), ("david", "daniel"), ("alex", "alex"), ("", "")]
)
def test_different_names_are_no_forms_of_one(one: str, other: str) -> None:
    assert not are_forms_of_one_name(one, other)


def test_the_table_of_names_is_folded_and_says_nothing_twice() -> None:
    assert all(len(group) > 1 for group in GROUPS)
    assert len(set(GROUPS)) == len(GROUPS)
    for group in GROUPS:
        assert {fold_name(name) for name in group} == group
        assert not [larger for larger in GROUPS if group < larger]


def test_most_names_that_the_town_spells_twice_are_known_or_alike() -> None:
    known = [
        one
        for one, other in RESPELT.items()
        if Sight.GIVEN_DIFFERS not in sights(compare_described(described(one), described(other)))
    ]
    assert set(RESPELT) - set(known) <= {"Zofia"}


# Whatever comes

texts = st.text(max_size=10) | st.sampled_from(
    ["Casey", "Anne Marie", "Anne-Marie", "Niamh", "Neve", "Smith-Jones", "Smith"]
)
days = st.dates(date(2013, 1, 1), date(2016, 12, 31))
people = st.builds(
    Described,
    names=st.lists(st.builds(PersonName, texts, texts), max_size=3).map(tuple),
    birth_date=days | st.none(),
    sex=st.sampled_from([None, "M", "F", "1", "female", "U", ""]),
    postcode=st.none()
    | st.sampled_from(["ZZ99 3CZ", "ZZ993cz", "ZZ99 4AA", "ZZ98 1AA", "Z", " "])
    | st.text(max_size=8),
)


@given(people, people)
def test_which_is_which_does_not_matter(one: Described, other: Described) -> None:
    assert compare_described(one, other) == compare_described(other, one)


@given(people, people, st.sampled_from(["names", "birth_date", "sex", "postcode"]))
def test_a_field_that_agrees_never_lowers_the_sum(one: Described, other: Described, field: str) -> None:
    agreeing = replace(other, **{field: getattr(one, field)})
    without = replace(other, **{field: () if field == "names" else None})
    assert compare_described(one, agreeing).weight >= compare_described(one, other).weight
    assert compare_described(one, agreeing).weight >= compare_described(one, without).weight


@given(people)
def test_nobody_is_more_like_somebody_than_that_person(one: Described) -> None:
    likeness = compare_described(one, one)
    assert not likeness.reasons_against
    assert likeness.weight >= 0


@given(people, people)
def test_the_reasons_repeat_nothing_of_the_person(one: Described, other: Described) -> None:
    likeness = compare_described(one, other)
    assert sights(likeness) <= {sight.value for sight in Sight}
    assert len({reason.field for reason in (*likeness.reasons_for, *likeness.reasons_against)}) == len(sights(likeness))
