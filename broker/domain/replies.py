"""What the clinician is told. The wording never says that a child is safe."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Final

from broker.domain.alerts import Correction
from broker.domain.office_calendar import answered_telephone
from broker.domain.visits import is_adult, london_day
from schemas.alert import IdentityFact, ListsSearched, PlanShown, ReplyOutcome
from schemas.attendance import Attendance
from schemas.child_list import ChildListEntry, ListFreshness, PlanType
from schemas.directory import Authority, Site

_DAYS_MIN: Final = 2
"""Fewer are said in hours."""
_STRENGTH: Final = {ReplyOutcome.NO_RECORD: 0, ReplyOutcome.IDENTITY_TO_BE_CHECKED: 0, ReplyOutcome.MATCH: 1}


def reply_is_due(outcome: ReplyOutcome, facts: Attendance, site: Site | None, on: date) -> bool:
    """Whether this visit is answered: under-18s, unknown ages and matches always, adults by the sender's setting."""
    if outcome is ReplyOutcome.MATCH or not is_adult(facts, on):
        return True
    return site is not None and site.replies_for_adults


def reply_is_new(outcome: ReplyOutcome, already: ReplyOutcome | None) -> bool:
    """Whether a visit that was answered ``already`` is answered again: only when a match is found after all."""
    return already is None or _STRENGTH[outcome] > _STRENGTH[already]


def summarise_lists(
    freshness: Sequence[ListFreshness], site: Site | None, now: datetime, stale: timedelta
) -> ListsSearched:
    """What an answer rests on; authorities that never uploaded are missing, not searched."""
    confirmed = {list_.authority: list_.confirmed_at for list_ in freshness if list_.confirmed_at is not None}
    own = site.authorities if site is not None else ()
    return ListsSearched(
        authorities_searched=len(confirmed),
        oldest_confirmed_at=min(confirmed.values(), default=None),
        own_authorities_missing=tuple(code for code in own if code not in confirmed),
        own_authorities_stale=tuple(code for code in own if code in confirmed and now - confirmed[code] > stale),
    )


def word_look_up(
    plan_types: Collection[PlanType], lists: ListsSearched, now: datetime, *, all_ended: bool, is_told: bool
) -> str:
    """What somebody who asks by NHS number is told in plain words. ``plan_types`` are those shown; none: a miss."""
    if not plan_types:
        return word_reply(ReplyOutcome.NO_RECORD, lists, now)
    if all_ended:
        who = "This person was on a local authority's child protection or looked-after list; every plan has ended."
    elif set(plan_types) == {PlanType.UNBORN}:
        who = "This person is on a local authority's list: her unborn child has a protection plan."
    else:
        who = "This person is on a local authority's child protection or looked-after list."
    told = "Social care is told that you looked." if is_told else "Social care is not told that you looked."
    return f"{who} {told} That is no referral: ring if you are worried."


CORRECTION: Final = "Correction: what the earlier reply for this visit rested on was corrected or taken back."


def correction_of_reply(correction: Correction) -> str:
    """As CORRECTION, where the department itself said who it is."""
    return f"Correction: since the earlier reply for this visit the identity was corrected ({correction.words})."


def word_match(differs: Sequence[IdentityFact], *, all_ended: bool, by_mother: bool, is_told: bool) -> str:
    """The reply for a person on a list, in plain words."""
    if by_mother:
        who = "The mother this message names is on a local authority's list: her unborn child has a protection plan."
    elif all_ended:
        who = "This person was on a local authority's child protection or looked-after list; every plan has ended."
    else:
        who = "This person is on a local authority's child protection or looked-after list."
    told = " Social care is told." if is_told else " Social care is not told of this visit: ring if you are worried."
    caution = f" Please check the identity: the {_join(differs)} differs from the list." if differs else ""
    return who + told + caution


def word_reply(outcome: ReplyOutcome, lists: ListsSearched, now: datetime, differs: Sequence[IdentityFact] = ()) -> str:
    """The reply in plain words; for a match, that of a person with a plan that runs."""
    if outcome is ReplyOutcome.MATCH:
        return word_match(differs, all_ended=False, by_mother=False, is_told=True)
    if outcome is ReplyOutcome.IDENTITY_TO_BE_CHECKED:
        return (
            "Identity to be checked: the details sent do not settle who this is. Please trace the NHS number, check "
            "the name and the date of birth, and send an update. This does not mean the child is safe."
        )
    return (
        f"No record found; this does not mean the child is safe. {_searched(lists, now)} "
        "The national Child Protection - Information Sharing service was not asked."
    )


def word_ages(confirmed: Sequence[datetime | None], now: datetime, stale: timedelta) -> str:
    """How old the lists of a match are, where one is old: what it says may have changed since."""
    oldest = min((at for at in confirmed if at is not None), default=None)
    if oldest is None or now - oldest <= stale:
        return ""
    days = (now - oldest).days
    age = f"{days} days" if days >= _DAYS_MIN else f"{int((now - oldest).total_seconds() // 3600)} hours"
    return f" The list is {age} old: the plan may have changed since, please ring and ask."


def show_plans(
    entries: Sequence[tuple[str, ChildListEntry]],
    authorities: Mapping[str, Authority],
    now: datetime,
    confirmed: Mapping[str, datetime | None] | None = None,
    proclaimed: Collection[date] = (),
) -> tuple[PlanShown, ...]:
    """The plans as a clinician sees them now, with whom to ring. ``entries`` are (authority code, entry).

    ``proclaimed`` are bank holidays that no rule gives.
    """
    shown, on = [], london_day(now)
    for code, entry in entries:
        authority = authorities[code]
        shown.append(
            PlanShown(
                plan_type=entry.plan_type,
                start_on=entry.start_on,
                end_on=entry.end_on,
                has_ended=entry.has_ended(on),
                authority_name=authority.name,
                office_telephone=authority.office_telephone,
                emergency_telephone=authority.emergency_telephone,
                list_confirmed_at=(confirmed or {}).get(code),
                telephone_now=answered_telephone(authority, now, proclaimed),
            )
        )
    return tuple(shown)


def _searched(lists: ListsSearched, now: datetime) -> str:
    if lists.oldest_confirmed_at is None:
        sentence = "No authority's list could be searched."
    else:
        hours = max(0, int((now - lists.oldest_confirmed_at).total_seconds() // 3600))
        age = "1 hour" if hours == 1 else f"{hours} hours"
        plural = "authority's list was" if lists.authorities_searched == 1 else "authorities' lists were"
        sentence = f"{lists.authorities_searched} {plural} searched, the oldest {age} old."
    if lists.own_authorities_missing:
        sentence += f" No list from this site's own authority {_join(lists.own_authorities_missing)}."
    if lists.own_authorities_stale:
        sentence += f" The list of this site's own authority {_join(lists.own_authorities_stale)} is out of date."
    return sentence


def _join(words: Sequence[str]) -> str:
    return " and ".join(str(word) for word in words)
