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
LEFT_AFTER_ALL: Final = NoticeRule(
    kind=NoticeKind.LEFT,
    words="What was told of the end of this visit was taken back: the person has left the department.",
)
ALIVE: Final = "The department took back that the person has died. "
"""Before the words of any turn that follows."""
_TAKEN_BACK: Final[Mapping[VisitState, tuple[frozenset[VisitState], NoticeRule]]] = {
    VisitState.HERE: (
        frozenset(
            {
                *(VisitState.LEFT_BEFORE_TREATMENT, VisitState.ADMITTED, VisitState.TRANSFERRED),
                *(VisitState.DIED, VisitState.CANCELLED),
            }
        ),
        STILL_HERE,
    ),
    # Whoever was admitted or moved leaves some day: that takes nothing back.
    VisitState.LEFT: (
        frozenset({VisitState.LEFT_BEFORE_TREATMENT, VisitState.DIED, VisitState.CANCELLED}),
        LEFT_AFTER_ALL,
    ),
}
"""Of a state that is told only to whom something else was told: what, and the rule."""


def find_notice(told: VisitState, state: VisitState) -> NoticeRule | None:
    """What an authority must be told that last heard of ``told`` (the state in its alert, or its last notice)."""
    if state is told:
        return None
    rule = RULES.get(state)
    if state in _TAKEN_BACK:
        taken_back, rule_of_return = _TAKEN_BACK[state]
        rule = rule_of_return if told in taken_back else None
    if rule is not None and told is VisitState.DIED:
        return msgspec.structs.replace(rule, words=ALIVE + rule.words)
    return rule
