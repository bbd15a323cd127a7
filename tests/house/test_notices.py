"""What raises a message, states of a visit, codes of domestic abuse: the documents say what the code does."""

from __future__ import annotations

from broker.domain.course import VisitState
from broker.domain.notices import LEFT_AFTER_ALL, RULES, STILL_HERE
from broker.storage.tables import IDENTITY_CORRECTED, VISITS_JOINED
from schemas.encompass import DOMESTIC_ABUSE_CODES
from tests.house.reference import read_code, read_rows

PAGE = "docs/reference/what-raises-a-message.md"


def test_every_turn_that_raises_a_message_is_listed_in_its_words_and_no_other() -> None:
    rules = {**RULES, VisitState.HERE: STILL_HERE, VisitState.LEFT: LEFT_AFTER_ALL}
    written = {(state.value, rule.kind.value, rule.is_urgent, rule.words) for state, rule in rules.items()}
    rows = list(read_rows(PAGE, "The visit takes a turn"))
    listed = {(read_code(row[0])[0], read_code(row[1])[0], row[2] != "no", row[3]) for row in rows}
    assert listed == written


def test_every_rule_by_which_an_identity_withdraws_is_named() -> None:
    named = {word for row in read_rows(PAGE, "Somebody turns out to be another") for word in read_code(row[1])}
    assert {IDENTITY_CORRECTED, VISITS_JOINED} <= named


def test_every_code_of_domestic_abuse_is_listed_with_its_words() -> None:
    rows = read_rows("docs/reference/hl7v2-in.md", "Codes of domestic abuse")
    assert {read_code(row[0])[0]: row[1] for row in rows} == DOMESTIC_ABUSE_CODES


def test_every_state_of_a_visit_is_explained_and_no_other() -> None:
    assert [read_code(row[0])[0] for row in read_rows("docs/states.md", "Visits")] == [
        state.value for state in VisitState
    ]
