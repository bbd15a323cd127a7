"""Closed words that tables keep; the database holds each by a CHECK constraint."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class AlertState(StrEnum):
    """What the human did, as far as the ledger counts it."""

    OPEN = "open"
    ACKNOWLEDGED = "acknowledged"
    CLOSED = "closed"


ENTRY_TAKEN_BACK = "entry_taken_back"
"""The rule by which alerts and reviews are closed whose entry was an error."""


ENTRY_CORRECTED = "entry_corrected"
"""The rule by which alerts are closed whose entry was given another NHS number."""
CONFIRMATION_UNDONE = "confirmation_undone"
"""The rule by which alerts are closed that rested on what a person confirmed and took back."""


IDENTITY_CORRECTED = "identity_corrected"
"""The rule by which alerts are closed whose visit turned out to be somebody else's."""


VISITS_JOINED = "visits_joined"
"""The rule by which alerts and reviews are closed whose visit was found to be another that has its own."""


REVIEWED_ANEW: Final = (ENTRY_TAKEN_BACK, IDENTITY_CORRECTED)
"""Rules by which a review is closed, and after which the same doubt opens it again."""


class ReviewDecision(StrEnum):
    """What a person decided of a review."""

    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    UNDONE = "undone"
    """Confirmed, and taken back: counts as rejected."""


class MissedCause(StrEnum):
    """Why an alert was not raised when the person came, as far as the lists and the messages tell."""

    LISTED_AFTER = "listed_after"
    LIST_NUMBER_CORRECTED = "list_number_corrected"
    LIST_ROW_CORRECTED = "list_row_corrected"
    VISIT_CORRECTED = "visit_corrected"
    UNEXPLAINED = "unexplained"


class ItemState(StrEnum):
    """States of reviews, missed alerts, quarantined messages, replays, jobs and coverage items."""

    OPEN = "open"
    DONE = "done"


class PatternState(StrEnum):
    """Where a version of a rule for patterns stands."""

    DRAFT = "draft"
    ON = "on"
    OFF = "off"
