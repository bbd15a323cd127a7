"""What follows from a visit: who is alerted, what a person must look at, what the department is told."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.domain.decision import Candidate, Decision, Known, MatchRules, decide, differing_facts
from schemas.alert import IdentityFact, ReplyOutcome
from schemas.attendance import Attendance, PersonName
from schemas.child_list import PlanType
from schemas.directory import Site
from schemas.record import PositionOutcome
from tests.factories import make_attendance, make_entry, make_nhs_number

TODAY = date(2026, 2, 14)
NEW = Known(is_new=True)
RULES = MatchRules()
ADULT = date(2008, 2, 14)
ASKS_FOR_ADULTS = Site(code="RZ2", name="Ottery Infirmary", replies_for_adults=True)
STRANGER = (PersonName(family="OTHER", given="SOMEBODY"),)


def listed(authority: str = "706", entry_id: str = "", **changes: object) -> Candidate:
    return Candidate(entry_id=entry_id or f"{authority}-1", authority=authority, entry=make_entry(**changes))


def decided(
    *candidates: Candidate,
    facts: Attendance | None = None,
    known: Known = NEW,
    site: Site | None = None,
    rules: MatchRules = RULES,
) -> Decision:
    return decide(facts or make_attendance(), candidates, known, site=site, on=TODAY, rules=rules)


def doubtful(**changes: object) -> Attendance:
    """Somebody who shows a listed child's number under another name and date of birth."""
    return make_attendance(names=STRANGER, birth_date=date(2011, 1, 1), **changes)


def test_a_match_alerts_its_authority_and_is_answered() -> None:
    decision = decided(listed())
    assert decision.outcome is PositionOutcome.ALERTED
    assert decision.to_alert == ("706",)
    assert decision.reply is ReplyOutcome.MATCH


def test_each_authority_is_alerted_once_however_many_plans_it_has() -> None:
    plans = [
        listed(entry_id="a"),
        listed(entry_id="b", plan_type=PlanType.LOOKED_AFTER),
        listed("707", entry_id="c"),
    ]
    decision = decided(*plans)
    assert decision.to_alert == ("706", "707")
    assert [candidate.entry_id for candidate, _ in decision.matched] == ["a", "b", "c"]


def test_an_authority_that_was_alerted_is_not_alerted_again_but_another_is() -> None:
    known = Known(is_new=False, alerted=frozenset({"706"}), replied=ReplyOutcome.MATCH)
    assert decided(listed(), known=known).outcome is PositionOutcome.UPDATED
    second = decided(listed(), listed("707"), known=known)
    assert (second.outcome, second.to_alert, second.reply) == (PositionOutcome.ALERTED, ("707",), None)


@pytest.mark.parametrize(
    ("start", "end", "counts"),
    [
        (TODAY, None, True),
        (TODAY + timedelta(days=1), None, False),
        (date(2025, 1, 1), TODAY, True),
        (date(2024, 1, 1), TODAY - timedelta(days=365), True),
        (date(2024, 1, 1), TODAY - timedelta(days=366), False),
        (date(2026, 1, 1), TODAY + timedelta(days=1), True),
    ],
)
def test_plans_count_while_they_run_and_for_a_year_after(start: date, end: date | None, counts: bool) -> None:
    decision = decided(listed(start_on=start, end_on=end))
    assert bool(decision.to_alert) == counts
    assert decision.reply is (ReplyOutcome.MATCH if counts else ReplyOutcome.NO_RECORD)


def test_an_authority_that_does_not_want_to_hear_of_ended_plans_is_not_told_and_the_clinician_still_is() -> None:
    quiet = MatchRules(quiet_when_ended=frozenset({"706"}))
    ended = listed(start_on=date(2025, 1, 1), end_on=TODAY - timedelta(days=30))
    decision = decided(ended, rules=quiet)
    assert (decision.to_alert, decision.reply) == ((), ReplyOutcome.MATCH)
    assert (decision.outcome, decision.reason) == (PositionOutcome.SILENT_BY_RULE, "ended_plan")
    assert decided(ended, listed(entry_id="runs"), rules=quiet).to_alert == ("706",)
    assert decided(ended).to_alert == ("706",)


def test_an_entry_that_was_taken_back_never_counts() -> None:
    decision = decided(listed(deleted_on=TODAY))
    assert (decision.to_alert, decision.reply) == ((), ReplyOutcome.NO_RECORD)


def test_a_doubt_goes_to_a_person_once() -> None:
    first = decided(listed(), facts=doubtful())
    assert first.outcome is PositionOutcome.UNDER_REVIEW
    assert [doubt.candidate.entry_id for doubt in first.doubts] == ["706-1"]
    assert first.reply is ReplyOutcome.IDENTITY_TO_BE_CHECKED
    known = Known(is_new=False, reviewed=frozenset({"706-1"}), replied=ReplyOutcome.IDENTITY_TO_BE_CHECKED)
    again = decided(listed(), facts=doubtful(), known=known)
    assert (again.outcome, again.doubts, again.reply) == (PositionOutcome.UPDATED, (), None)


def test_a_match_that_is_found_after_all_is_answered_again() -> None:
    for before in (ReplyOutcome.NO_RECORD, ReplyOutcome.IDENTITY_TO_BE_CHECKED):
        assert decided(listed(), known=Known(is_new=False, replied=before)).reply is ReplyOutcome.MATCH


@pytest.mark.parametrize("before", ReplyOutcome)
def test_a_visit_is_not_answered_twice_without_a_new_match(before: ReplyOutcome) -> None:
    known = Known(is_new=False, replied=before)
    assert decided(known=known).reply is None
    assert decided(facts=make_attendance(nhs_number=None), known=known).reply is None


@pytest.mark.parametrize("candidates", [(), (listed(),), (listed(), listed("707"))])
@pytest.mark.parametrize("born", [date(2015, 3, 2), date(2011, 1, 1), None])
@pytest.mark.parametrize("names", [(), STRANGER, (PersonName(family="TESTER", given="CASEY"),)])
def test_without_a_usable_number_the_answer_is_the_same_whoever_is_listed(
    candidates: tuple[Candidate, ...], born: date | None, names: tuple[PersonName, ...]
) -> None:
    facts = make_attendance(nhs_number=None, birth_date=born, names=names)
    decision = decided(*candidates, facts=facts)
    assert decision.reply is ReplyOutcome.IDENTITY_TO_BE_CHECKED
    assert (decision.matched, decision.to_alert) == ((), ())


@pytest.mark.parametrize("site", [None, Site(code="RZ1", name="Fenwick General Hospital")])
def test_adults_without_a_match_are_silent_by_rule(site: Site | None) -> None:
    facts = make_attendance(birth_date=ADULT, nhs_number=make_nhs_number(5))
    decision = decided(facts=facts, site=site)
    assert (decision.outcome, decision.reason) == (PositionOutcome.SILENT_BY_RULE, "adult")
    assert decision.reply is None


def test_adults_are_answered_where_the_sender_asks_for_it() -> None:
    facts = make_attendance(birth_date=ADULT, nhs_number=make_nhs_number(5))
    decision = decided(facts=facts, site=ASKS_FOR_ADULTS)
    assert (decision.outcome, decision.reply) == (PositionOutcome.NO_RECORD, ReplyOutcome.NO_RECORD)


def test_a_match_is_answered_at_any_age() -> None:
    mother = make_attendance(birth_date=date(1996, 6, 1))
    decision = decided(listed(birth_date=date(1996, 6, 1), plan_type=PlanType.UNBORN), facts=mother)
    assert decision.reply is ReplyOutcome.MATCH


@pytest.mark.parametrize("born", [None, date(2008, 2, 15)])
def test_the_youngest_and_the_unknown_are_always_answered(born: date | None) -> None:
    decision = decided(facts=make_attendance(birth_date=born, nhs_number=make_nhs_number(5)))
    assert decision.reply is ReplyOutcome.NO_RECORD


def test_a_missing_number_is_the_reason_that_no_record_was_found() -> None:
    assert decided(facts=make_attendance(nhs_number=None)).reason == "no_usable_nhs_number"
    assert decided(facts=make_attendance(nhs_number=make_nhs_number(5))).reason == ""


def test_what_differs_is_named_once() -> None:
    decision = decided(
        listed(birth_date=date(2015, 2, 3)), listed("707", birth_date=date(2015, 2, 3)), facts=make_attendance()
    )
    assert differing_facts(decision.matched) == (IdentityFact.BIRTH_DATE,)


AUTHORITIES = st.sampled_from(["706", "707", "708"])
CANDIDATES = st.builds(
    Candidate,
    entry_id=st.sampled_from("abcdef"),
    authority=AUTHORITIES,
    entry=st.builds(
        lambda number, born, ended: make_entry(
            nhs_number=make_nhs_number(number), birth_date=born, end_on=TODAY if ended else None
        ),
        number=st.integers(1, 2),
        born=st.sampled_from([date(2015, 3, 2), date(2011, 1, 1)]),
        ended=st.booleans(),
    ),
)
FACTS = st.builds(
    lambda number, born, names: make_attendance(
        nhs_number=make_nhs_number(number) if number else None, birth_date=born, names=names
    ),
    number=st.integers(0, 3),
    born=st.sampled_from([None, date(2015, 3, 2), ADULT]),
    names=st.sampled_from([(), STRANGER, (PersonName(family="TESTER", given="CASEY"),)]),
)
KNOWN = st.builds(
    Known,
    is_new=st.booleans(),
    alerted=st.frozensets(AUTHORITIES),
    reviewed=st.frozensets(st.sampled_from("abcdef")),
    replied=st.none() | st.sampled_from(ReplyOutcome),
)


@settings(deadline=None)
@given(FACTS, st.lists(CANDIDATES, max_size=6), KNOWN)
def test_laws_that_hold_for_every_visit(facts: Attendance, candidates: list[Candidate], known: Known) -> None:
    decision = decide(facts, candidates, known, site=None, on=TODAY, rules=RULES)
    matched = {candidate.authority for candidate, _ in decision.matched}
    assert set(decision.to_alert) == matched - known.alerted
    assert len(set(decision.to_alert)) == len(decision.to_alert)
    assert not known.reviewed & {doubt.candidate.entry_id for doubt in decision.doubts}
    assert (decision.outcome is PositionOutcome.ALERTED) == bool(decision.to_alert)
    assert decision.reply is not ReplyOutcome.MATCH or matched
    assert not matched or decision.reply is ReplyOutcome.MATCH or known.replied is ReplyOutcome.MATCH
    assert decision.outcome not in (PositionOutcome.IGNORED, PositionOutcome.QUARANTINED)
