"""What a trace asks, and what each answer means for the entry."""

from __future__ import annotations

from datetime import date
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.domain.tracing import (
    QUESTIONS_MAX,
    climb_given_names,
    compare_person,
    judge_number,
    search_ladder,
    trace_next,
)
from schemas.attendance import PersonName
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
from tests.factories import make_nhs_number

OLD, NEW, OTHER = (make_nhs_number(serial) for serial in (1, 2, 3))
BORN = date(2015, 3, 2)
CASEY = Traceable(
    nhs_number=OLD, name=PersonName(family="TESTER", given="CASEY ANNE"), birth_date=BORN, postcode="ZZ99 3CZ"
)
UNNUMBERED = Traceable(nhs_number=None, name=CASEY.name, birth_date=BORN, postcode=CASEY.postcode)


def person(
    nhs_number: str = OLD,
    *,
    family: str = "Tester",
    names: tuple[str, ...] = ("Casey", "Anne"),
    born: date = BORN,
    restricted: bool = False,
) -> TracedPerson:
    recorded = (RecordedName(family=family, given=names),)
    return TracedPerson(nhs_number=nhs_number, names=recorded, birth_date=born, is_restricted=restricted)  # type: ignore[arg-type]  # a plain text is a number here


def run_trace(listed: Traceable, *answers: Answer) -> ByNumber | ByDetails | Finding:
    """The step after these answers; every one before it must have been a question."""
    for known in range(len(answers)):
        assert isinstance(trace_next(listed, answers[:known]), ByNumber | ByDetails)
    return trace_next(listed, answers)


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        (person(), Verified(rung=GivenRung.WHOLE)),
        (person(names=("Casey",)), Verified(rung=GivenRung.FIRST)),
        (person(names=("Robin", "Casey")), Verified(rung=GivenRung.ANY)),
        (person(NEW), Superseded(replacement=NEW)),
        (person(NEW, family="Other"), Superseded(replacement=NEW, differs=(TraceField.FAMILY,))),
        (person(restricted=True), Restricted()),
        (person(NEW, restricted=True), Restricted(replacement=NEW)),
        (person(family="Other", restricted=True), Restricted(differs=(TraceField.FAMILY,))),
        (Invalid(), Invalidated()),
        (Unavailable(code="http_429", retry_after_s=5.0), Unavailable(code="http_429", retry_after_s=5.0)),
        (Refused(code="http_401"), Refused(code="http_401")),
    ],
)
def test_an_answer_about_the_number_settles_the_trace(answer: Answer, finding: Finding) -> None:
    assert run_trace(CASEY, answer) == finding == judge_number(CASEY, answer)


@pytest.mark.parametrize(
    ("answer", "differs"),
    [
        (person(family="Other"), (TraceField.FAMILY,)),
        (person(names=("Robin",)), (TraceField.GIVEN,)),
        (person(born=date(2015, 2, 3)), (TraceField.BIRTH_DATE,)),
        (person(family="Other", names=(), born=date(2011, 1, 1)), tuple(TraceField)),
        (TracedPerson(nhs_number=OLD), tuple(TraceField)),
    ],
)
def test_a_mismatch_names_the_fields_and_is_searched(answer: Answer, differs: tuple[TraceField, ...]) -> None:
    assert judge_number(CASEY, answer) == Mismatch(differs=differs)
    assert isinstance(run_trace(CASEY, answer), ByDetails)
    assert run_trace(CASEY, answer, person(NEW)) == Mismatch(differs=differs, suggestion=NEW)
    assert run_trace(CASEY, answer, SeveralPersons()) == Mismatch(differs=differs)


def test_without_a_number_and_with_one_that_is_unknown_a_search_suggests_and_no_more() -> None:
    assert run_trace(UNNUMBERED, person(NEW)) == NotFound(suggestion=NEW)
    assert run_trace(CASEY, NoPerson(), person(NEW)) == NotFound(suggestion=NEW)
    assert run_trace(CASEY, NoPerson(), SeveralPersons()) == NotFound(is_ambiguous=True)


def test_a_search_goes_from_the_narrowest_to_the_widest_and_ends() -> None:
    asked = []
    answers: list[Answer] = [NoPerson()]
    while isinstance(step := trace_next(CASEY, answers), ByDetails):
        asked.append((step.given, step.postcode))
        answers.append(NoPerson())
    rungs = [("CASEY", "ANNE"), ("CASEY",), ("CAS*",)]
    assert asked == [*((rung, "ZZ*") for rung in rungs), *((rung, None) for rung in rungs)]
    assert step == NotFound()
    assert len(answers) == QUESTIONS_MAX


def test_nothing_is_searched_for_a_dead_number_so_that_an_adopted_child_stays_unlinked() -> None:
    assert trace_next(CASEY, [Invalid()]) == Invalidated()


def test_nobody_restricted_is_suggested() -> None:
    assert run_trace(UNNUMBERED, person(NEW, restricted=True)) == NotFound()
    assert run_trace(CASEY, person(family="Other"), person(NEW, restricted=True)) == Mismatch(
        differs=(TraceField.FAMILY,)
    )


def test_an_outage_in_the_middle_of_a_search_ends_the_trace() -> None:
    down = Unavailable(code="http_503")
    assert run_trace(UNNUMBERED, NoPerson(), down) == down


def test_the_recorded_name_that_differs_least_counts() -> None:
    names = (
        RecordedName(family="Other", given=("Robin",)),
        RecordedName(family="Tester", given=("Casey",)),
        RecordedName(family="Tester", given=("Robin",)),
    )
    for order in permutations(names):
        found = TracedPerson(nhs_number=OLD, names=order, birth_date=BORN)
        assert compare_person(CASEY, found) == ((), GivenRung.FIRST)


@pytest.mark.parametrize(
    ("listed", "recorded", "rung"),
    [
        ("Siobhán", ("SIOBHAN",), GivenRung.WHOLE),
        ("Anne-Marie", ("Anne", "Marie"), GivenRung.WHOLE),
        ("Anne", ("Anne-Marie",), GivenRung.FIRST),
        ("Anne Marie", ("Anne",), GivenRung.FIRST),
        ("Marie", ("Anne", "Marie"), GivenRung.ANY),
        ("Anne Marie", ("Marie",), None),
        ("", (), GivenRung.WHOLE),
        ("Anne", (), None),
        ("", ("Anne",), None),
        ("伟", ("伟",), GivenRung.WHOLE),
        ("伟", ("芳",), None),
    ],
)
def test_the_ladder_of_given_names(listed: str, recorded: tuple[str, ...], rung: GivenRung | None) -> None:
    assert climb_given_names(listed, recorded) is rung


def test_a_list_cannot_put_wildcards_of_its_own_into_a_search() -> None:
    odd = Traceable(nhs_number=None, name=PersonName(family="T*", given="* C*"), birth_date=BORN, postcode="* *")
    ladder = search_ladder(odd)
    assert {question.family for question in ladder} == {"T"}
    assert {question.given for question in ladder} == {("C",)}
    assert {question.postcode for question in ladder} == {None}


texts = st.text(max_size=12) | st.sampled_from(["Casey", "Anne-Marie", "O'Brien", "*", " ", "Ł"])
numbers = st.sampled_from([OLD, NEW, OTHER])
people = st.builds(
    Traceable, nhs_number=numbers | st.none(), name=st.builds(PersonName, texts, texts), postcode=texts | st.none()
)
recorded_names = st.builds(RecordedName, family=texts, given=st.lists(texts, max_size=3).map(tuple))
answers = st.one_of(
    st.builds(TracedPerson, nhs_number=numbers, names=st.lists(recorded_names, max_size=3).map(tuple)),
    st.sampled_from([NoPerson(), SeveralPersons(), Invalid(), Unavailable(code="http_503"), Refused(code="http_403")]),
)


@given(people, st.lists(answers, min_size=QUESTIONS_MAX, max_size=QUESTIONS_MAX))
def test_every_trace_ends_and_replaces_a_number_only_where_pds_says_so(listed: Traceable, told: list[Answer]) -> None:
    known = 0
    while isinstance(step := trace_next(listed, told[:known]), ByNumber | ByDetails):
        assert known < QUESTIONS_MAX
        assert isinstance(step, ByNumber) is (known == 0 and listed.nhs_number is not None)
        known += 1
    first = told[0]
    replacement = step.replacement if isinstance(step, Superseded | Restricted) else None
    if replacement is not None:
        assert isinstance(first, TracedPerson)
        assert replacement == first.nhs_number != listed.nhs_number
    if isinstance(step, Verified):
        assert isinstance(first, TracedPerson)
        assert first.nhs_number == listed.nhs_number


@given(people, texts, st.lists(texts, max_size=3))
def test_a_person_always_agrees_with_their_own_record(listed: Traceable, family: str, names: list[str]) -> None:
    same = Traceable(
        nhs_number=OLD, name=PersonName(family=family, given=" ".join(names)), birth_date=listed.birth_date
    )
    own = RecordedName(family=family, given=tuple(names))
    assert compare_person(same, TracedPerson(nhs_number=OLD, names=(own,), birth_date=same.birth_date)) == (
        (),
        GivenRung.WHOLE,
    )
