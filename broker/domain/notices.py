"""What makes a further message of a visit that was alerted, and in which words. Everything else stays in the thread.

docs/reference/what-raises-a-message.md explains the table; a test holds it to this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from broker.domain.course import VisitState
from schemas.alert import NoticeKind


class NoticeRule(msgspec.Struct, frozen=True, kw_only=True):
    """What is told when a visit comes to a state."""

    kind: NoticeKind
    words: str
    is_urgent: bool = False
    """While nobody has acknowledged the alert it goes to the person on duty, above the others."""


RULES: Final[Mapping[VisitState, NoticeRule]] = {
    VisitState.LEFT_BEFORE_TREATMENT: NoticeRule(
        kind=NoticeKind.LEFT_BEFORE_TREATMENT,
        words="The person left the department before treatment. Nobody there can tell how they are.",
        is_urgent=True,
    ),
    VisitState.ADMITTED: NoticeRule(kind=NoticeKind.ADMITTED, words="The person was admitted to a ward."),
    VisitState.TRANSFERRED: NoticeRule(kind=NoticeKind.TRANSFERRED, words="The person was moved to another site."),
    VisitState.DIED: NoticeRule(kind=NoticeKind.DIED, words="The department says that the person has died."),
    VisitState.CANCELLED: NoticeRule(
        kind=NoticeKind.CANCELLED,
        words="The department cancelled the visit: it may have been registered in error. Ring to be sure.",
    ),
}
STILL_HERE: Final = NoticeRule(
    kind=NoticeKind.STILL_HERE,
    words="What was told of the end of this visit was taken back: the person is still there.",
)
_TAKEN_BACK_FROM: Final = frozenset(
    {VisitState.LEFT_BEFORE_TREATMENT, VisitState.TRANSFERRED, VisitState.DIED, VisitState.CANCELLED}
)


def find_notice(told: VisitState, state: VisitState) -> NoticeRule | None:
    """What an authority must be told that last heard of ``told`` (the state in its alert, or its last notice)."""
    if state is told:
        return None
    if state is VisitState.HERE and told in _TAKEN_BACK_FROM:
        return STILL_HERE
    return RULES.get(state)
