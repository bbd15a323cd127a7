"""NHS numbers, ODS codes and owners."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nhs_number.validate import calculate_checksum

from schemas.identifiers import authority_owner, organisation_owner, parse_nhs_number, parse_ods_code
from tests.factories import make_nhs_number

NUMBERS = st.integers(min_value=0, max_value=800_000).map(make_nhs_number)


@pytest.mark.parametrize(
    "text",
    [
        "9990000018",
        "999 000 0018",
        "999-000-0018",
        "999\u00a0000\u00a00018",
        "999\u2009000\u20090018",
        "999\u202f000\u202f0018",
        "999‐000‐0018",
        "999–000–0018",
        " 9990000018\r\n",
    ],
)
def test_an_nhs_number_is_read_however_it_is_spaced(text: str) -> None:
    assert parse_nhs_number(text) == "9990000018"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9990000019",
        "999000001",
        "99900000180",
        "99900OOO18",
        "999_000_0018",
        "٩٩٩٠٠٠٠٠١٨",
        "９９９００００１８",
        "¹990000018",
        "+990000018",
        "9990000018^^^NHS",
        "\x00999000001",
    ],
)
def test_what_is_no_nhs_number_is_none(text: str) -> None:
    assert parse_nhs_number(text) is None


@pytest.mark.parametrize("digit", "0123456789")
def test_ten_equal_digits_are_refused_even_when_their_check_digit_is_right(digit: str) -> None:
    assert parse_nhs_number(digit * 10) is None


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=9_999_999_999).map("{:010d}".format))
def test_the_check_digit_agrees_with_an_independent_library(digits: str) -> None:
    assume(len(set(digits)) > 1)
    assert (parse_nhs_number(digits) is not None) == (calculate_checksum(digits[:9]) == int(digits[9]))


@settings(deadline=None)
@given(NUMBERS, st.integers(0, 9), st.integers(1, 9))
def test_one_wrong_digit_is_always_noticed(number: str, place: int, difference: int) -> None:
    wrong = str((int(number[place]) + difference) % 10)
    assert parse_nhs_number(number[:place] + wrong + number[place + 1 :]) is None


@settings(deadline=None)
@given(NUMBERS, st.integers(0, 8))
def test_two_neighbouring_digits_swapped_are_always_noticed(number: str, place: int) -> None:
    assume(number[place] != number[place + 1])
    assert parse_nhs_number(number[:place] + number[place + 1] + number[place] + number[place + 2 :]) is None


@settings(deadline=None)
@given(st.text(max_size=40))
def test_reading_an_nhs_number_never_fails(text: str) -> None:
    number = parse_nhs_number(text)
    assert number is None or (len(number) == 10 and number.isascii() and number.isdigit())


@pytest.mark.parametrize(("text", "code"), [("RZ1", "RZ1"), (" rz1 ", "RZ1"), ("706", "706"), ("V81999", "V81999")])
def test_ods_codes_are_read_in_capitals(text: str, code: str) -> None:
    assert parse_ods_code(text) == code


@pytest.mark.parametrize("text", ["", "RZ", "RZ1 A", "RZ1^EDIS", "ABCDEFGHIJK", "ŔZ1", "٧٠٦", "RZ1\x00", "r-1"])
def test_what_cannot_be_an_ods_code_is_none(text: str) -> None:
    assert parse_ods_code(text) is None


@pytest.mark.parametrize("text", ["rſ1", "ıab", "ßa", "ﬁa"])
def test_letters_that_become_ascii_only_in_capitals_are_no_ods_code(text: str) -> None:
    assert text.upper().isascii()
    assert parse_ods_code(text) is None


def test_owners_of_different_kinds_never_meet() -> None:
    assert authority_owner("706") == "authority:706"
    assert organisation_owner("706") == "organisation:706"
