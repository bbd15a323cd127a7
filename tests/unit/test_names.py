"""When two written names are one person's name, as departments and authorities really write them."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.domain.names import fold_name, names_agree
from schemas.attendance import PersonName


def name(family: str, given_: str = "") -> PersonName:
    return PersonName(family=family, given=given_)


@pytest.mark.parametrize(
    ("shown", "listed"),
    [
        (name("TESTER", "CASEY"), name("Tester", "Casey")),
        (name("O'TESTER", "CASEY"), name("O’Tester", "Casey")),
        (name("OTESTER", "CASEY"), name("O'Tester", "Casey")),
        (name("SMITH JONES", "CASEY"), name("Smith-Jones", "Casey")),
        (name("SMITHJONES", "CASEY"), name("Smith‐Jones", "Casey")),
        (name("JOSE", "MARIA"), name("José", "María")),
        (name("Jose\u0301", "MARIA"), name("José", "Maria")),
        (name("MCDONALD", "JON"), name("MacDonald", "John")),
        (name("KHAN", "MOHAMED"), name("Khan", "Mohammed")),
        (name("STRASSE", "CASEY"), name("Straße", "Casey")),
        (name("TESTER", "CASEY ALEX"), name("Tester", "Casey")),
        (name("TESTER", "CASEY"), name("Tester", "Casey Jordan Alex")),
        (name("TESTER", "ANNE MARIE"), name("Tester", "Anne-Marie")),
        (name("TESTER", "ANNEMARIE"), name("Tester", "Anne-Marie")),
        (name("TESTER", "ANNE MARIE"), name("Tester", "Annemarie")),
        (name("TESTER"), name("Tester", "Casey")),
        (name("TESTER", "CASEY"), name("Tester")),
        (name("BEGUM", "FATIMA"), name("Fatima", "Begum")),
        (name("  TESTER  ", " CASEY "), name("Tester", "Casey")),
        (name("Tester.", "Casey,"), name("Tester", "Casey")),
    ],
)
def test_one_person_however_written(shown: PersonName, listed: PersonName) -> None:
    assert names_agree([shown], listed) is True
    assert names_agree([listed], shown) is True


@pytest.mark.parametrize(
    ("shown", "listed"),
    [
        (name("TESTER", "CASEY"), name("Tester", "Jordan")),
        (name("TESTER", "CASEY"), name("Sample", "Casey")),
        (name("LI", "WEI"), name("Lu", "Wei")),
        (name("TESTER", "OLIVIA"), name("Tester", "Oliver")),
        (name("TESTER", "JACK"), name("Tester", "Jake")),
        (name("CASEY", ""), name("Tester", "Casey")),
        (name("TESTER", "BABY"), name("Tester", "Casey")),
    ],
)
def test_two_people(shown: PersonName, listed: PersonName) -> None:
    assert names_agree([shown], listed) is False
    assert names_agree([listed], shown) is False


def test_any_of_several_names_is_enough() -> None:
    names = [name("MARRIED", "CASEY"), name("TESTER", "CASEY")]
    assert names_agree(names, name("Tester", "Casey")) is True
    assert names_agree(names, name("Other", "Casey")) is False


@pytest.mark.parametrize("shown", [[], [name("", "CASEY")], [name("--", "CASEY")], [name("Тестер", "Кейси")]])
def test_nothing_to_compare_is_neither_yes_nor_no(shown: list[PersonName]) -> None:
    assert names_agree(shown, name("Tester", "Casey")) is None


def test_a_list_without_a_comparable_name_is_neither_yes_nor_no() -> None:
    assert names_agree([name("TESTER", "CASEY")], name("Тестер", "Кейси")) is None


def test_an_empty_repetition_beside_a_real_one_does_not_count() -> None:
    assert names_agree([name("", ""), name("TESTER", "CASEY")], name("Tester", "Casey")) is True


@settings(deadline=None)
@example("Smith & Jones (née Tester)")
@given(st.text(max_size=30))
def test_folding_leaves_letters_and_single_spaces_and_is_final(text: str) -> None:
    folded = fold_name(text)
    assert set(folded) <= set("abcdefghijklmnopqrstuvwxyz ")
    assert "  " not in folded
    assert folded == folded.strip()
    assert fold_name(folded) == folded


NAMES = st.builds(PersonName, family=st.text(max_size=20), given=st.text(max_size=20))


@settings(deadline=None)
@given(st.lists(NAMES, max_size=3), NAMES)
def test_comparing_never_fails_for_data(shown: list[PersonName], listed: PersonName) -> None:
    assert names_agree(shown, listed) in (True, False, None)


@settings(deadline=None)
@given(NAMES)
def test_a_name_never_differs_from_itself(one: PersonName) -> None:
    assert names_agree([one], one) is not False
