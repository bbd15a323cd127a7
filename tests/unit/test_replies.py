"""What clinicians are told. Every wording is read for what it must say, and for what it must never say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import product

import pytest

from broker.domain.replies import reply_is_new, show_plans, summarise_lists, word_reply
from schemas.alert import IdentityFact, ListsSearched, ReplyOutcome
from schemas.child_list import ListFreshness, PlanType
from schemas.directory import Authority, Site
from tests.factories import NIGHT, make_entry

STALE = timedelta(hours=72)
SITE = Site(code="RZ1", name="Fenwick General Hospital", authorities=("706", "707"))
OLDEST = (None, NIGHT, NIGHT - timedelta(hours=1), NIGHT - timedelta(hours=216), NIGHT + timedelta(hours=1))
CODES: tuple[tuple[str, ...], ...] = ((), ("706",), ("706", "707"))


def every_lists() -> Iterator[ListsSearched]:
    for oldest, missing, stale, count in product(OLDEST, CODES, CODES, (1, 2, 153)):
        yield ListsSearched(
            authorities_searched=count if oldest else 0,
            oldest_confirmed_at=oldest,
            own_authorities_missing=missing,
            own_authorities_stale=stale,
        )


def every_wording() -> Iterator[str]:
    differences: tuple[tuple[IdentityFact, ...], ...] = (
        (),
        (IdentityFact.NAME,),
        (IdentityFact.NAME, IdentityFact.BIRTH_DATE),
    )
    for outcome, lists, differs in product(ReplyOutcome, every_lists(), differences):
        yield word_reply(outcome, lists, NIGHT, differs)


def test_no_wording_says_that_a_child_is_safe() -> None:
    for wording in every_wording():
        for clause in re.split(r"[.;]", wording):
            assert "safe" not in clause.casefold() or "does not mean" in clause.casefold(), wording
        assert "no risk" not in wording.casefold()
        assert "not at risk" not in wording.casefold()


def test_every_wording_is_sentences_in_plain_words() -> None:
    for wording in every_wording():
        assert re.fullmatch(r"[A-Z][A-Za-z0-9 ,.;:'\-]+\.", wording), wording
        assert "  " not in wording and "None" not in wording and ".." not in wording, wording


def test_no_record_found_says_all_that_it_rests_on() -> None:
    for lists in every_lists():
        wording = word_reply(ReplyOutcome.NO_RECORD, lists, NIGHT)
        assert wording.startswith("No record found; this does not mean the child is safe.")
        assert wording.endswith("The national Child Protection - Information Sharing service was not asked.")
        if lists.oldest_confirmed_at is None:
            assert "No authority's list could be searched." in wording
        else:
            plural = "authority's list was" if lists.authorities_searched == 1 else "authorities' lists were"
            assert f"{lists.authorities_searched} {plural} searched, the oldest " in wording
        for code in lists.own_authorities_missing:
            assert re.search(rf"No list from this site's own authority [^.]*{code}", wording)
        for code in lists.own_authorities_stale:
            assert re.search(rf"The list of this site's own authority [^.]*{code}[^.]* is out of date", wording)


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (timedelta(0), "0 hours old"),
        (timedelta(minutes=59), "0 hours old"),
        (timedelta(hours=1), "1 hour old"),
        (timedelta(hours=1, minutes=59), "1 hour old"),
        (timedelta(hours=2), "2 hours old"),
        (timedelta(days=9), "216 hours old"),
        (timedelta(hours=-5), "0 hours old"),
    ],
)
def test_the_age_of_the_oldest_list_is_told_in_hours(age: timedelta, words: str) -> None:
    lists = ListsSearched(authorities_searched=3, oldest_confirmed_at=NIGHT - age)
    assert f"the oldest {words}." in word_reply(ReplyOutcome.NO_RECORD, lists, NIGHT)


def test_identity_to_be_checked_is_one_text_whatever_the_lists_hold() -> None:
    wordings = {word_reply(ReplyOutcome.IDENTITY_TO_BE_CHECKED, lists, NIGHT) for lists in every_lists()}
    assert len(wordings) == 1
    [wording] = wordings
    assert "does not mean the child is safe" in wording
    assert "trace the NHS number" in wording


def test_a_match_says_what_differs() -> None:
    lists = ListsSearched(authorities_searched=1, oldest_confirmed_at=NIGHT)
    plain = word_reply(ReplyOutcome.MATCH, lists, NIGHT)
    assert "Social care is told" in plain
    assert "check the identity" not in plain
    differing = word_reply(ReplyOutcome.MATCH, lists, NIGHT, (IdentityFact.NAME,))
    assert differing == f"{plain} Please check the identity: the name differs from the list."


def fresh(code: str, confirmed_at: datetime | None) -> ListFreshness:
    return ListFreshness(authority=code, confirmed_at=confirmed_at)


def test_a_list_that_was_never_uploaded_is_missing_and_not_searched() -> None:
    found = summarise_lists([fresh("706", NIGHT), fresh("707", None), fresh("708", None)], SITE, NIGHT, STALE)
    assert (found.authorities_searched, found.oldest_confirmed_at) == (1, NIGHT)
    assert (found.own_authorities_missing, found.own_authorities_stale) == (("707",), ())


def test_an_own_authority_that_nobody_knows_is_missing() -> None:
    found = summarise_lists([fresh("708", NIGHT)], SITE, NIGHT, STALE)
    assert found.own_authorities_missing == ("706", "707")


def test_a_list_is_stale_only_when_older_than_the_limit() -> None:
    lists = [fresh("706", NIGHT - STALE), fresh("707", NIGHT - STALE - timedelta(microseconds=1))]
    found = summarise_lists(lists, SITE, NIGHT, STALE)
    assert (found.own_authorities_missing, found.own_authorities_stale) == ((), ("707",))
    assert found.oldest_confirmed_at == lists[1].confirmed_at


def test_nothing_is_known_of_an_unknown_sites_authorities() -> None:
    found = summarise_lists([], None, NIGHT, STALE)
    assert (found.authorities_searched, found.oldest_confirmed_at, found.own_authorities_missing) == (0, None, ())
    assert not found.national_service_asked


def test_only_a_match_answers_again() -> None:
    again = {(new, old) for new, old in product(ReplyOutcome, ReplyOutcome) if reply_is_new(new, old)}
    assert again == {
        (ReplyOutcome.MATCH, ReplyOutcome.NO_RECORD),
        (ReplyOutcome.MATCH, ReplyOutcome.IDENTITY_TO_BE_CHECKED),
    }
    assert all(reply_is_new(outcome, None) for outcome in ReplyOutcome)


def test_a_plan_is_shown_with_whom_to_ring_and_nothing_of_the_child() -> None:
    authority = Authority(
        code="706",
        name="Northfold Borough Council",
        office_telephone="01632 960101",
        emergency_telephone="01632 960102",
    )
    [plan] = show_plans([("706", make_entry())], {"706": authority}, NIGHT)
    assert set(plan.__struct_fields__) == {
        "plan_type",
        "start_on",
        "end_on",
        "has_ended",
        "authority_name",
        "office_telephone",
        "emergency_telephone",
        "list_confirmed_at",
        "telephone_now",
    }
    assert plan.telephone_now == "01632 960102"  # a Saturday night
    assert plan.plan_type is PlanType.CHILD_PROTECTION
    assert (plan.office_telephone, plan.emergency_telephone) == ("01632 960101", "01632 960102")
