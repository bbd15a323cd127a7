"""One visit from many messages: the order in which they arrive never matters."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from broker.domain.course import VisitState, visit_state
from broker.domain.visits import age_on, fold_visit, is_adult, london_day, opens_visit
from broker.storage.visits import Thread
from schemas.attendance import Attendance, Event, NhsNumberProblem, PersonName
from tests.factories import NIGHT, make_attendance, make_nhs_number

INSTANTS = st.none() | st.sampled_from([NIGHT + timedelta(minutes=minute) for minute in range(4)])
TEXTS = st.none() | st.sampled_from(["a", "b"])
MESSAGES = st.builds(
    Attendance,
    sender=st.just("RZ1"),
    control_id=st.sampled_from(["C1", "C2", "C3"]),
    event=st.sampled_from(Event),
    message_at=INSTANTS,
    event_at=INSTANTS,
    nhs_number=st.none() | st.sampled_from([make_nhs_number(1), make_nhs_number(2)]),
    nhs_number_problem=st.none() | st.sampled_from(NhsNumberProblem),
    nhs_number_status=TEXTS,
    local_patient_id=TEXTS,
    names=st.sampled_from([(), (PersonName(family="A"),), (PersonName(family="B"), PersonName(family="C"))]),
    birth_date=st.none() | st.sampled_from([date(2015, 3, 2), date(2015, 2, 3)]),
    sex=TEXTS,
    postcode=TEXTS,
    visit_number=TEXTS,
    arrived_at=INSTANTS,
    left_at=INSTANTS,
    complaint=TEXTS,
    disposition=TEXTS,
)


@settings(deadline=None)
@given(st.lists(MESSAGES, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_every_order_of_arrival_gives_the_same_visit(said: list[Attendance], chance: random.Random) -> None:
    marked = [(f"marker-{number}".encode(), message) for number, message in enumerate(said)]
    shuffled = chance.sample(marked, len(marked))
    assert fold_visit(shuffled) == fold_visit(marked)


@settings(deadline=None)
@given(st.lists(st.tuples(MESSAGES, TEXTS, TEXTS), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_a_visit_that_takes_in_each_message_as_it_comes_is_the_visit_of_them_all(
    said: list[tuple[Attendance, str | None, str | None]], chance: random.Random
) -> None:
    marked = [
        (bytes([number]), replace(message, former_patient_id=patient, former_visit_number=visit))
        for number, (message, patient, visit) in enumerate(said)
    ]
    thread = Thread(visit_id="v", sender="RZ1", opened_at=NIGHT, messages=[])
    for marker, message in chance.sample(marked, len(marked)):
        thread.add(marker, message)
        assert thread.facts() == fold_visit(thread.messages)
    thread.add(*chance.choice(marked))
    thread.remove(chance.choice(marked)[0])
    thread.add(*chance.choice(marked))
    assert thread.facts() == fold_visit(thread.messages)


@settings(deadline=None)
@given(st.lists(MESSAGES, min_size=1, max_size=8))
def test_what_was_ever_said_is_never_forgotten(said: list[Attendance]) -> None:
    visit = fold_visit([(bytes([number]), message) for number, message in enumerate(said)])
    for name in ("nhs_number", "birth_date", "postcode", "visit_number", "arrived_at", "left_at", "complaint"):
        words = {getattr(message, name) for message in said} - {None}
        assert getattr(visit, name) in (words or {None})
    assert visit.names in ({message.names for message in said} - {()} or {()})
    assert (visit.nhs_number is None) == (visit.nhs_number_problem is not None)


def test_the_latest_event_has_the_last_word_whenever_it_arrives() -> None:
    first = make_attendance(event_at=NIGHT, complaint="Fall", birth_date=date(2015, 3, 2))
    later = make_attendance(
        event=Event.UPDATED, event_at=NIGHT + timedelta(minutes=9), complaint="Burn", birth_date=None
    )
    for messages in ([(b"1", first), (b"2", later)], [(b"2", later), (b"1", first)]):
        visit = fold_visit(messages)
        assert (visit.complaint, visit.birth_date, visit.event) == ("Burn", date(2015, 3, 2), Event.UPDATED)


def test_a_late_message_of_an_early_event_changes_nothing_that_is_known_better() -> None:
    later = make_attendance(event_at=NIGHT + timedelta(hours=1), names=(PersonName(family="RIGHT"),))
    early = make_attendance(event_at=NIGHT, message_at=NIGHT + timedelta(hours=2), names=(PersonName(family="WRONG"),))
    assert fold_visit([(b"1", later), (b"2", early)]).names == (PersonName(family="RIGHT"),)


def test_an_invalid_number_does_not_erase_a_valid_one() -> None:
    good = make_attendance(event_at=NIGHT)
    bad = make_attendance(
        event_at=NIGHT + timedelta(minutes=1), nhs_number=None, nhs_number_problem=NhsNumberProblem.INVALID
    )
    visit = fold_visit([(b"1", good), (b"2", bad)])
    assert (visit.nhs_number, visit.nhs_number_problem) == (good.nhs_number, None)


def test_a_visit_without_a_number_says_why() -> None:
    silent = make_attendance(nhs_number=None)
    wrong = make_attendance(nhs_number=None, nhs_number_problem=NhsNumberProblem.INVALID, event_at=NIGHT)
    assert fold_visit([(b"1", silent)]).nhs_number_problem is NhsNumberProblem.ABSENT
    assert fold_visit([(b"1", silent), (b"2", wrong)]).nhs_number_problem is NhsNumberProblem.INVALID


@pytest.mark.parametrize(
    ("born", "on", "age"),
    [
        (date(2008, 2, 14), date(2026, 2, 13), 17),
        (date(2008, 2, 14), date(2026, 2, 14), 18),
        (date(2008, 2, 29), date(2026, 2, 28), 17),
        (date(2008, 2, 29), date(2026, 3, 1), 18),
        (date(2008, 2, 29), date(2028, 2, 28), 19),
        (date(2008, 2, 29), date(2028, 2, 29), 20),
        (date(2026, 2, 14), date(2026, 2, 14), 0),
    ],
)
def test_age_in_whole_years(born: date, on: date, age: int) -> None:
    assert age_on(born, on) == age
    assert is_adult(make_attendance(birth_date=born), on) == (age >= 18)


def test_an_unknown_age_is_not_an_adults() -> None:
    assert not is_adult(make_attendance(birth_date=None), date(2026, 2, 14))


@pytest.mark.parametrize(
    ("instant", "day"),
    [
        (datetime(2026, 1, 14, 23, 59, 59, tzinfo=UTC), date(2026, 1, 14)),
        (datetime(2026, 1, 15, 0, 0, tzinfo=UTC), date(2026, 1, 15)),
        (datetime(2026, 7, 14, 22, 59, 59, tzinfo=UTC), date(2026, 7, 14)),
        (datetime(2026, 7, 14, 23, 0, tzinfo=UTC), date(2026, 7, 15)),
        (datetime(2026, 3, 29, 0, 59, tzinfo=UTC), date(2026, 3, 29)),
        (datetime(2026, 10, 24, 23, 30, tzinfo=UTC), date(2026, 10, 25)),
        (datetime(2026, 10, 25, 23, 30, tzinfo=UTC), date(2026, 10, 25)),
        (datetime(2026, 1, 15, 1, 30, tzinfo=timezone(timedelta(hours=2))), date(2026, 1, 14)),
    ],
)
def test_the_day_ends_at_midnight_in_london(instant: datetime, day: date) -> None:
    assert london_day(instant) == day


def test_turning_eighteen_happens_at_midnight_in_london() -> None:
    facts = make_attendance(birth_date=date(2008, 7, 15))
    before, after = datetime(2026, 7, 14, 22, 59, tzinfo=UTC), datetime(2026, 7, 14, 23, 0, tzinfo=UTC)
    assert not is_adult(facts, london_day(before))
    assert is_adult(facts, london_day(after))


def test_who_is_only_spoken_of_or_expected_opens_no_visit() -> None:
    here = {event for event in Event if opens_visit(event)}
    assert here == {
        *(Event.ADMITTED, Event.TRANSFERRED, Event.LEFT, Event.REGISTERED, Event.UPDATED),
        *(Event.MADE_INPATIENT, Event.MADE_OUTPATIENT, Event.DEPARTING, Event.ARRIVING, Event.DEPARTURE_CANCELLED),
        *(Event.TRANSFER_CANCELLED, Event.DISCHARGE_CANCELLED, Event.TRANSFER_PENDING, Event.DISCHARGE_PENDING),
        *(Event.PENDING_TRANSFER_CANCELLED, Event.PENDING_DISCHARGE_CANCELLED, Event.LEAVE_BEGUN, Event.LEAVE_ENDED),
    }


def test_what_a_feed_gives_one_and_the_same_second_stands_in_the_order_in_which_it_happens() -> None:
    wrong, right = make_nhs_number(1), make_nhs_number(2)
    told = [
        make_attendance(event=Event.REGISTERED, event_at=NIGHT, message_at=NIGHT, control_id="98", nhs_number=wrong),
        make_attendance(event=Event.UPDATED, event_at=NIGHT, message_at=NIGHT, control_id="99", nhs_number=wrong),
        make_attendance(event=Event.UPDATED, event_at=NIGHT, message_at=NIGHT, control_id="100", nhs_number=right),
        make_attendance(
            event=Event.ADMISSION_CANCELLED, event_at=NIGHT, message_at=NIGHT, control_id="97", nhs_number=None
        ),
    ]
    for markers in (b"1234", b"4321"):
        messages = [(bytes([marker]), said) for marker, said in zip(markers, told, strict=True)]
        assert fold_visit(messages).nhs_number == right
        assert visit_state(messages) is VisitState.CANCELLED
