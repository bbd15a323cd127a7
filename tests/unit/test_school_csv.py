"""Schools, contacts, pupils and term dates as CSV: bad rows are told where and how, and cost themselves alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.csv_rows import RowProblem
from adapters.errors import MalformedFile
from adapters.school_csv import read_pupils, read_safeguarding_contacts, read_schools, read_term_dates
from schemas.encompass import (
    CalendarDays,
    ContactRole,
    DayKind,
    Establishment,
    EstablishmentKind,
    EstablishmentStatus,
    Pupil,
    SafeguardingContact,
)

Reader = Callable[[bytes], Any]
SCHOOL = {
    "urn": "900002",
    "name": "Old Mill School",
    "kind": "fe_college",
    "authority": "706",
    "status": "merged",
    "merged_into": "900001",
    "starts_at": "09:05",
    "office_telephone": "01632 960401",
}
CONTACT = {
    "urn": "900001",
    "contact_id": "K1",
    "role": "deputy",
    "name": "Robin Reed",
    "mailbox": "deputy-dsl@mill.example.org",
    "telephone": "01632 960402",
    "mobile": "07700 900123",
    "confirmed_date": "2026-09-01",
    "trained_date": "2025-06-01",
}
PUPIL = {
    "authority": "706",
    "pupil_id": "P1",
    "family_name": "Tester",
    "given_name": "Casey",
    "birth_date": "2016-03-02",
    "postcode": "ZZ99 1AA",
    "urns": "900001 900002",
    "home_educated": "yes",
}
DAYS = {"authority": "706", "urn": "900001", "kind": "inset", "first_date": "2026-11-02", "last_date": ""}


def csv_of(row: dict[str, str]) -> bytes:
    return (",".join(row) + "\n" + ",".join(row.values()) + "\n").encode()


def only(reader: Reader, row: dict[str, str]) -> Any:
    [(number, found)] = list(reader(csv_of(row)))
    assert number == 2
    return found


def test_each_file_is_read_whole() -> None:
    assert only(read_schools, SCHOOL) == Establishment(
        urn="900002",  # type: ignore[arg-type]
        name="Old Mill School",
        kind=EstablishmentKind.FE_COLLEGE,
        authority="706",
        status=EstablishmentStatus.MERGED,
        merged_into="900001",  # type: ignore[arg-type]
        starts_at_local=time(9, 5),
        office_telephone="01632 960401",
    )
    contact = only(read_safeguarding_contacts, CONTACT)
    assert isinstance(contact, SafeguardingContact)
    assert (contact.role, contact.confirmed_on, contact.trained_on) == (
        ContactRole.DEPUTY,
        date(2026, 9, 1),
        date(2025, 6, 1),
    )
    pupil = only(read_pupils, PUPIL)
    assert isinstance(pupil, Pupil)
    assert (pupil.urns, pupil.home_educated) == (("900001", "900002"), True)
    days = only(read_term_dates, DAYS)
    assert isinstance(days, CalendarDays)
    assert (days.kind, days.urn, days.first_on, days.last_on) == (
        DayKind.INSET,
        "900001",
        date(2026, 11, 2),
        date(2026, 11, 2),
    )


@pytest.mark.parametrize(
    ("reader", "row", "column", "value", "field"),
    [
        (read_schools, SCHOOL, "urn", "90002", "urn"),
        (read_schools, SCHOOL, "kind", "nursery", "kind"),
        (read_schools, SCHOOL, "status", "open", "merged_into"),
        (read_schools, SCHOOL, "status", "gone", "status"),
        (read_schools, SCHOOL, "merged_into", "", "merged_into"),
        (read_schools, SCHOOL, "merged_into", "900002", "merged_into"),
        (read_schools, SCHOOL, "starts_at", "8.30", "starts_at"),
        (read_schools, SCHOOL, "starts_at", "24:00", "starts_at"),
        (read_schools, SCHOOL, "starts_at", "01:30", "starts_at"),
        (read_schools, SCHOOL, "starts_at", "08:30+01:00", "starts_at"),
        (read_safeguarding_contacts, CONTACT, "role", "head", "role"),
        (read_safeguarding_contacts, CONTACT, "mailbox", "robin.reed@mill.example.org", "mailbox"),
        (read_safeguarding_contacts, CONTACT, "mailbox", "r_REED2@mill.example.org", "mailbox"),
        (read_safeguarding_contacts, CONTACT, "mailbox", "safeguarding@gmail.com", "mailbox"),
        (read_safeguarding_contacts, CONTACT, "mailbox", "safeguarding@yahoo.co.uk", "mailbox"),
        (read_safeguarding_contacts, CONTACT, "mailbox", "a@mill.example.org b@mill.example.org", "mailbox"),
        (read_safeguarding_contacts, CONTACT, "mailbox", "a@mill.example.org;b@mill.example.org", "mailbox"),
        (read_safeguarding_contacts, CONTACT, "mailbox", "no mailbox", "mailbox"),
        (read_safeguarding_contacts, CONTACT, "mobile", "01632 960402", "mobile"),
        (read_safeguarding_contacts, CONTACT, "mobile", "07012 345678", "mobile"),
        (read_safeguarding_contacts, CONTACT, "mobile", "07700 900123; 07700 900124", "mobile"),
        (read_safeguarding_contacts, CONTACT, "confirmed_date", "1/9/2026", "confirmed_date"),
        (read_pupils, PUPIL, "urns", "900001;900002", "urns"),
        (read_pupils, PUPIL, "birth_date", "", "birth_date"),
        (read_pupils, PUPIL, "home_educated", "perhaps", "home_educated"),
        (read_term_dates, DAYS, "kind", "half-term", "kind"),
        (read_term_dates, DAYS, "last_date", "2026-11-01", "last_date"),
        (read_term_dates, DAYS, "last_date", "2027-11-01", "last_date"),
        (read_term_dates, DAYS, "urn", "Mill", "urn"),
    ],
)
def test_a_wrong_field_is_named_without_its_value(
    reader: Reader, row: dict[str, str], column: str, value: str, field: str
) -> None:
    problem = only(reader, row | {column: value})
    assert isinstance(problem, RowProblem)
    assert (problem.row, problem.field) == (2, field)
    assert not value or value not in problem.advice or value == "open"


@pytest.mark.parametrize(
    ("reader", "row", "wrong", "unlike"),
    [
        (read_schools, SCHOOL, ["status", "urn", "starts_at", "kind", "authority"], "merged_into"),
        (read_safeguarding_contacts, CONTACT, ["urn", "role", "mailbox", "mobile", "confirmed_date"], "name"),
        (read_pupils, PUPIL, ["authority", "birth_date", "urns", "home_educated"], "postcode"),
        (read_term_dates, DAYS | {"last_date": "2026-11-01"}, ["first_date", "authority", "urn", "kind"], "last_date"),
    ],
)
def test_every_wrong_field_of_a_row_is_told_at_once_and_none_that_hangs_on_one(
    reader: Reader, row: dict[str, str], wrong: list[str], unlike: str
) -> None:
    problem = only(reader, row | dict.fromkeys(wrong, "~?"))
    assert [problem.field, *(told.split()[0] for told in problem.advice.split("; ")[1:])] == wrong
    assert unlike not in problem.advice and "~?" not in problem.advice


@pytest.mark.parametrize(
    "mailbox", ["safeguarding@mill.example.org", "dsl.2@mill.example.org", "head@reed.example.net"]
)
def test_the_mailbox_of_a_role_is_taken(mailbox: str) -> None:
    assert only(read_safeguarding_contacts, CONTACT | {"mailbox": mailbox}).mailbox == mailbox


@pytest.mark.parametrize("mobile", ["07700 900123", "+44 7700 900123", "+44 (0)7700-900123", "00447700900123"])
def test_a_mobile_number_is_one_however_it_is_written(mobile: str) -> None:
    assert only(read_safeguarding_contacts, CONTACT | {"mobile": mobile}).mobile == "+447700900123"


@settings(max_examples=200, deadline=None)
@given(
    reader=st.sampled_from([read_schools, read_safeguarding_contacts, read_pupils, read_term_dates]),
    text=st.text(max_size=60),
)
def test_whatever_a_file_holds_it_is_read_or_refused(reader: Reader, text: str) -> None:
    header = ",".join({**SCHOOL, **CONTACT, **PUPIL, **DAYS})
    try:
        rows = list(reader(f"{header}\n{text}".encode()))
    except MalformedFile:
        return
    assert all(isinstance(found, RowProblem) or found for _, found in rows)
