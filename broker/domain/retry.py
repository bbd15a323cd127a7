"""What follows an attempt to deliver. Looks at the outcome's class, never at a text."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import msgspec

from schemas.delivery import DeliveryState, Outcome, OutcomeClass

FIRST_WAIT_S: Final = 1.0
LONGEST_WAIT_S: Final = 300.0
"""A recipient that comes back is served within five minutes, however long it was away."""
FIRST_ASKED: Final = timedelta(seconds=15)
"""An address that does not exist is known within seconds."""
ASKED_EVERY_MAX: Final = timedelta(hours=1)


class NextStep(msgspec.Struct, frozen=True, kw_only=True):
    """The state a delivery takes, and when it is tried again (aware UTC) if it is."""

    state: DeliveryState
    retry_at: datetime | None = None


def next_step(outcome: Outcome, *, attempts: int, created_at: datetime, now: datetime, give_up: timedelta) -> NextStep:
    """Decide after attempt number ``attempts`` (1 is the first).

    Transient and ambiguous attempts are repeated with the same idempotency key, waiting twice as long each time,
    until ``give_up`` after creation; a refusal is final. Both ends leave the delivery with a person, never silent.
    """
    if outcome.outcome is OutcomeClass.SENT:
        return NextStep(state=DeliveryState.SENT)
    if outcome.outcome is OutcomeClass.PERMANENT:
        return NextStep(state=DeliveryState.FAILED)
    if now - created_at >= give_up:
        return NextStep(state=DeliveryState.GIVEN_UP)
    return NextStep(state=DeliveryState.WAITING, retry_at=next_try_at(outcome, failures=attempts, now=now))


def next_try_at(outcome: Outcome, *, failures: int, now: datetime) -> datetime:
    """When to try again what failed ``failures`` times in a row: a delivery, or a recipient with whatever is for it."""
    wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures - 1, 16))
    if outcome.retry_after_s is not None:
        wait_s = max(wait_s, min(outcome.retry_after_s, LONGEST_WAIT_S))
    return now + timedelta(seconds=wait_s)


def next_ask_at(sent_at: datetime, now: datetime) -> datetime:
    """When to ask, again, what became of a message that was sent: when it is twice as old, then every hour."""
    return now + min(ASKED_EVERY_MAX, max(FIRST_ASKED, now - sent_at))
