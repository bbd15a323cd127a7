"""Whether a school was told in time, and if not, why: what a force answers for (s.49A, Domestic Abuse Act 2021)."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec


class Punctuality(StrEnum):
    """What became of the duty to tell one school of one incident. Each notice is exactly one of these."""

    ON_TIME = "on_time"
    LATE = "late"
    NOT_SENT = "not_sent"
    """Its time has passed, and it was not sent."""
    NOT_DUE_YET = "not_due_yet"
    SUPPRESSED = "suppressed"
    """A person keeps it back, for a reason and with authority."""
    TAKEN_BACK = "taken_back"
    """Not needed any more before it was sent."""


class Delay(StrEnum):
    """Why a notice was late, or was not sent. The first that holds is told."""

    TOLD_LATE = "told_late"
    """The force told the broker when the time had passed."""
    RELEASE = "release"
    """It waited for a person's release."""
    SCHOOL_NOT_KNOWN = "school_not_known"
    """The child's school had to be looked up."""
    NO_ROUTE = "no_route"
    """Nobody at the school could be told."""
    BROKER = "broker"
    """None of these: the broker itself did not send in time."""


class NoticeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one notice. ``waited_until``: for each reason until when it held; None: it still does."""

    first_heard_at: datetime
    """When the broker first heard of the incident."""
    due_by: datetime
    """Of the first version."""
    sent_at: datetime | None
    is_suppressed: bool = False
    is_taken_back: bool = False
    waited_until: tuple[tuple[Delay, datetime | None], ...] = ()


def judge_punctuality(facts: NoticeFacts, now: datetime) -> tuple[Punctuality, Delay | None]:
    """Which of them it is, and why it was late or is not sent."""
    if facts.sent_at is not None:
        if facts.sent_at <= facts.due_by:
            return Punctuality.ON_TIME, None
        return Punctuality.LATE, _explain(facts)
    if facts.is_taken_back:
        return Punctuality.TAKEN_BACK, None
    if facts.is_suppressed:
        return Punctuality.SUPPRESSED, None
    if now < facts.due_by:
        return Punctuality.NOT_DUE_YET, None
    return Punctuality.NOT_SENT, _explain(facts)


def _explain(facts: NoticeFacts) -> Delay:
    if facts.first_heard_at > facts.due_by:
        return Delay.TOLD_LATE
    held = {reason for reason, until in facts.waited_until if until is None or until > facts.due_by}
    return next((reason for reason in Delay if reason in held), Delay.BROKER)
