"""What follows an attempt to deliver."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.domain.retry import FIRST_WAIT_S, LONGEST_WAIT_S, NextStep, next_ask_at, next_step
from schemas.delivery import DeliveryState, Outcome, OutcomeClass
from tests.factories import NIGHT

GIVE_UP = timedelta(days=42)
AGAIN = (OutcomeClass.TRANSIENT, OutcomeClass.AMBIGUOUS)


def step(
    outcome: OutcomeClass,
    *,
    attempts: int = 1,
    retry_after_s: float | None = None,
    code: str = "http_503",
    now: datetime = NIGHT,
) -> NextStep:
    ended = Outcome(outcome=outcome, code=code, retry_after_s=retry_after_s)
    return next_step(ended, attempts=attempts, created_at=NIGHT, now=now, give_up=GIVE_UP)


def wait_s(next_: NextStep, now: datetime = NIGHT) -> float:
    assert next_.state is DeliveryState.WAITING
    assert next_.retry_at is not None
    return (next_.retry_at - now).total_seconds()


def test_what_was_sent_is_sent() -> None:
    assert step(OutcomeClass.SENT) == NextStep(state=DeliveryState.SENT)


def test_what_was_refused_has_failed_at_once() -> None:
    assert step(OutcomeClass.PERMANENT) == NextStep(state=DeliveryState.FAILED)


@pytest.mark.parametrize("outcome", AGAIN)
def test_waits_double_up_to_the_longest(outcome: OutcomeClass) -> None:
    waits = [wait_s(step(outcome, attempts=attempts)) for attempts in range(1, 14)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300, 300]


@settings(deadline=None)
@given(st.sampled_from(AGAIN), st.integers(1, 10**9), st.none() | st.floats())
def test_every_wait_has_its_bounds(outcome: OutcomeClass, attempts: int, retry_after_s: float | None) -> None:
    waited = wait_s(step(outcome, attempts=attempts, retry_after_s=retry_after_s))
    assert FIRST_WAIT_S <= waited <= LONGEST_WAIT_S


@pytest.mark.parametrize(("asked_s", "waited_s"), [(0, 4), (3, 4), (120, 120), (3600, LONGEST_WAIT_S), (-1, 4)])
def test_a_recipient_may_ask_for_a_longer_wait_but_not_for_a_shorter_one(asked_s: float, waited_s: float) -> None:
    assert wait_s(step(OutcomeClass.TRANSIENT, attempts=3, retry_after_s=asked_s)) == waited_s


@pytest.mark.parametrize("outcome", AGAIN)
def test_giving_up_is_by_age_and_never_by_count(outcome: OutcomeClass) -> None:
    just_before = NIGHT + GIVE_UP - timedelta(microseconds=1)
    assert step(outcome, attempts=10_000, now=just_before).state is DeliveryState.WAITING
    assert step(outcome, attempts=1, now=NIGHT + GIVE_UP) == NextStep(state=DeliveryState.GIVEN_UP)


def test_a_late_success_is_a_success() -> None:
    assert step(OutcomeClass.SENT, now=NIGHT + GIVE_UP * 2).state is DeliveryState.SENT


@pytest.mark.parametrize("outcome", OutcomeClass)
@settings(deadline=None)
@given(code=st.text(max_size=20))
def test_the_class_decides_and_never_the_text(outcome: OutcomeClass, code: str) -> None:
    assert step(outcome, code=code) == step(outcome)


def test_what_became_of_a_message_is_asked_soon_and_then_ever_more_seldom() -> None:
    sent_at = asked_at = NIGHT
    ages = []
    while asked_at - sent_at < timedelta(days=7):
        asked_at = next_ask_at(sent_at, asked_at)
        ages.append((asked_at - sent_at) / timedelta(minutes=1))
    assert ages[:11] == [0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 124, 184]
    assert len(ages) < 180
