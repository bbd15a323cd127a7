"""What the pages say, and what of a visit they can say at all."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest

from broker.web.chronology import tell_visit
from broker.web.wording import (
    EVENTS,
    OUTCOMES,
    PLAN_TYPES,
    ROLES,
    say_age,
    say_arrival_mode,
    say_duration,
    say_facts,
    say_moment,
    say_nhs_number_status,
    show_telephone,
    upper_first,
    write_nhs_number,
)
from schemas.alert import IdentityFact, ReplyOutcome
from schemas.attendance import Attendance, Event, PersonName
from schemas.child_list import PlanType
from schemas.directory import Role, Site
from tests.factories import NIGHT, make_attendance

SITE = Site(code="RZ1", name="Fenwick General Hospital", telephone="01632 960301")


@pytest.mark.parametrize(
    ("instant", "words"),
    [
        (datetime(2026, 2, 14, 3, 12, tzinfo=UTC), "Saturday 14 February 2026, 03:12"),
        (datetime(2026, 7, 1, 23, 5, tzinfo=UTC), "Thursday 2 July 2026, 00:05"),
        (datetime(2026, 10, 25, 0, 30, tzinfo=UTC), "Sunday 25 October 2026, 01:30 BST"),
        (datetime(2026, 10, 25, 1, 30, tzinfo=UTC), "Sunday 25 October 2026, 01:30 GMT"),
        (datetime(2026, 3, 29, 1, 0, tzinfo=UTC), "Sunday 29 March 2026, 02:00"),
    ],
)
def test_an_instant_is_said_as_in_london_and_never_in_two_ways(instant: datetime, words: str) -> None:
    assert say_moment(instant) == words


@pytest.mark.parametrize(
    ("born", "words"),
    [
        (date(2015, 3, 2), "10 years old"),
        (date(2024, 2, 14), "2 years old"),
        (date(2024, 2, 15), "23 months old"),
        (date(2025, 11, 15), "13 weeks old"),
        (date(2026, 2, 7), "1 week old"),
        (date(2026, 2, 14), "0 weeks old"),
    ],
)
def test_an_age_is_said_as_one_would_say_it(born: date, words: str) -> None:
    assert say_age(born, NIGHT) == words


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (timedelta(seconds=1), "1 second"),
        (timedelta(minutes=5), "5 minutes"),
        (timedelta(hours=3), "3 hours"),
        (timedelta(days=9), "9 days"),
        (timedelta(seconds=-5), "0 seconds"),
    ],
)
def test_a_length_of_time_is_said_in_one_unit(length: timedelta, words: str) -> None:
    assert say_duration(length) == words


def test_every_code_of_ours_has_words() -> None:
    assert set(EVENTS) == set(Event)
    assert set(PLAN_TYPES) == set(PlanType)
    assert set(OUTCOMES) == set(ReplyOutcome)
    assert set(ROLES) == set(Role)


def test_a_code_of_others_is_put_in_words_or_shown_as_it_came() -> None:
    assert (say_arrival_mode("A"), say_arrival_mode("ZZ"), say_arrival_mode(None)) == ("By ambulance", "ZZ", "Not said")
    assert "has checked" in say_nhs_number_status("01")
    assert "99" in say_nhs_number_status("99")
    assert "does not say" in say_nhs_number_status(None)


def test_facts_and_numbers_are_written_to_be_read_out() -> None:
    assert say_facts((IdentityFact.NHS_NUMBER, IdentityFact.BIRTH_DATE, IdentityFact.NAME)) == (
        "NHS number, date of birth and name"
    )
    assert (say_facts((IdentityFact.NAME,)), say_facts(())) == ("name", "nothing")
    assert upper_first("NHS number") == "NHS number"
    assert write_nhs_number("9990000018") == "999 000 0018"


def test_a_telephone_number_can_be_dialled_and_anything_else_is_text() -> None:
    assert 'href="tel:01632960301"' in show_telephone("(01632) 960301")
    assert show_telephone("01632 960301, ask for the nurse in charge") == "01632 960301, ask for the nurse in charge"
    assert show_telephone("01632 960301") == '<a class="telephone" href="tel:01632960301">01632 960301</a>'
    assert show_telephone('" onclick="x') == "&#34; onclick=&#34;x"


def said(event: Event, minutes: int, **changes: object) -> tuple[datetime, Attendance]:
    at = NIGHT + timedelta(minutes=minutes)
    quiet: dict[str, object] = {"department": None, "arrived_at": None, "arrival_mode": None, "complaint": None}
    return NIGHT, make_attendance(**(quiet | {"event": event, "event_at": at, "message_at": at} | changes))


def test_a_visit_is_told_in_the_order_of_events_with_what_changed() -> None:
    first = (NIGHT, make_attendance())
    chronology = tell_visit(
        [said(Event.UPDATED, 20, complaint="Head injury"), first, said(Event.UPDATED, 10, department="Resus")], SITE
    )
    assert chronology is not None
    assert [
        (line.words, [(change.label, change.before, change.after) for change in line.changes])
        for line in chronology.lines
    ] == [
        ("Registered", []),
        ("Updated", [("Department", "ED", "Resus")]),
        ("Updated", [("Reason given", "Fall from height", "Head injury")]),
    ]
    assert (chronology.facts.department, chronology.facts.complaint) == ("Resus", "Head injury")
    assert chronology.facts.organisation_telephone == "01632 960301"


def test_twenty_updates_with_nothing_new_are_one_line() -> None:
    chronology = tell_visit(
        [(NIGHT, make_attendance()), *(said(Event.UPDATED, minute) for minute in range(1, 21))], SITE
    )
    assert chronology is not None
    assert [(line.words, line.times) for line in chronology.lines] == [("Registered", 1), ("Updated", 20)]
    assert chronology.lines[1].last_at == NIGHT + timedelta(minutes=20)


def test_a_discharge_says_that_the_person_left_unless_they_came_back() -> None:
    first = (NIGHT, make_attendance())
    left = tell_visit([first, said(Event.LEFT, 58), said(Event.UPDATED, 70)], SITE)
    back = tell_visit([first, said(Event.LEFT, 58), said(Event.ADMITTED, 70)], SITE)
    assert left is not None and left.facts.left_at == NIGHT + timedelta(minutes=58)
    assert back is not None and back.facts.left_at is None


def test_of_a_message_only_what_social_care_is_told_gets_through() -> None:
    planted = make_attendance(
        names=(PersonName(family="Planted-Family", given="Planted-Given"),),
        postcode="ZZ99 9ZZ",
        local_patient_id="PLANTED-ID",
        visit_number="PLANTED-VISIT",
        disposition="PLANTED-DISPOSITION",
    )
    chronology = tell_visit([(NIGHT, planted), (NIGHT, planted)], SITE)
    assert "lanted" not in repr(chronology).lower() and "ZZ99" not in repr(chronology)


def test_a_visit_without_messages_is_not_told() -> None:
    assert tell_visit([], SITE) is None
