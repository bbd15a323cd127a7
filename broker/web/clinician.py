"""For clinicians: the replies their department received, and whether social care has taken notice.

A clinician sees the department's own numbers, never a name from an authority's list.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Final

import msgspec
from fastapi import HTTPException, Request
from starlette.responses import RedirectResponse, Response

from broker.domain.office_calendar import is_office_open
from broker.storage import alerts, audit, directory, replies
from broker.storage.alerts import AuthorityTold
from broker.storage.audit import Act
from broker.storage.replies import Seen
from broker.web.auth import signed_in_of
from broker.web.pages import pages_of
from schemas.alert import ClinicianReply, PlanShown, ReplyOutcome
from schemas.directory import Authority

_SHOWN_IN_TURN: Final = (
    frozenset({ReplyOutcome.MATCH}),
    frozenset({ReplyOutcome.IDENTITY_TO_BE_CHECKED}),
    frozenset({ReplyOutcome.NO_RECORD}),
)
"""Each has room of its own on the page: a busy night's misses push off it neither a match nor what is to be done."""


class Contact(msgspec.Struct, frozen=True, kw_only=True):
    """An authority of a reply: its plans, and whom to ring there."""

    authority_name: str
    plans: tuple[PlanShown, ...]
    office_telephone: str
    emergency_telephone: str
    is_office_open: bool | None
    """At the moment of looking; None where the directory does not know the authority by this name any more."""

    @property
    def telephones(self) -> tuple[tuple[str, str], ...]:
        """(when it is answered, number): the one to ring now first."""
        both = (("office hours", self.office_telephone), ("out of hours", self.emergency_telephone))
        return both if self.is_office_open else both[::-1]


class VisitAnswered(msgspec.Struct, frozen=True, kw_only=True):
    """One visit with its reply as it stands, and the earlier ones it took the place of."""

    reply: ClinicianReply
    replaced: tuple[ClinicianReply, ...]
    contacts: tuple[Contact, ...]
    told: tuple[AuthorityTold, ...]
    seen: Seen | None = None


async def show_replies(request: Request) -> Response:
    """The replies of the last day: matches first, then identities to be checked."""
    pages, person = pages_of(request), signed_in_of(request).person
    now = pages.clock.now()
    since = now - timedelta(hours=pages.limits.replies_shown_h)
    rows_max, proclaimed = pages.limits.rows_max, pages.rules.proclaimed_days
    async with pages.database.writing() as connection:
        found = [
            await replies.list_replies(
                connection, pages.keyring, person.owner, since=since, rows_max=rows_max + 1, outcomes=outcomes
            )
            for outcomes in _SHOWN_IN_TURN
        ]
        shown = [each for part in found for each in part[:rows_max]]
        visit_ids = list(dict.fromkeys(visit_id for visit_id, _ in shown))
        told = await alerts.load_authorities_told(connection, person.owner, visit_ids)
        seen = await replies.load_seen(connection, visit_ids)
        names = {plan.authority_name for _, reply in shown for plan in reply.plans}
        authorities = await directory.find_authorities_named(connection, names)
        acts = [
            Act(owner=person.owner, actor=person.login, action="replies.listed", subject=visit_id)
            for visit_id in visit_ids
        ]
        await audit.record_acts(connection, acts, now)
    visits = gather_visits(shown, told, seen, lambda reply: find_contacts(reply, authorities, now, proclaimed))
    matches = [visit for visit in visits if visit.reply.outcome is ReplyOutcome.MATCH]
    return pages.render(
        request,
        "replies.html",
        visits=visits,
        match_count=len(matches),
        unseen_count=sum(visit.seen is None for visit in matches),
        unsettled_count=sum(visit.reply.outcome is ReplyOutcome.IDENTITY_TO_BE_CHECKED for visit in visits),
        is_cut=any(len(part) > rows_max for part in found),
        since=since,
    )


async def note_seen(request: Request, reply_id: str) -> Response:
    """A clinician has seen a match. Said again it changes nothing; of another reply nobody is asked."""
    pages, person = pages_of(request), signed_in_of(request).person
    now = pages.clock.now()
    async with pages.database.writing() as connection:
        is_first = await replies.note_seen(connection, person.owner, reply_id, by=person.login, now=now)
        if is_first is None:
            raise HTTPException(404)
        if is_first:
            act = Act(owner=person.owner, actor=person.login, action="reply.seen", subject=reply_id)
            await audit.record_acts(connection, [act], now)
    return RedirectResponse("/replies", status_code=303)


def gather_visits(
    shown: Sequence[tuple[str, ClinicianReply]],
    told: Mapping[str, Sequence[AuthorityTold]],
    seen: Mapping[str, Seen],
    contacts_of: Callable[[ClinicianReply], tuple[Contact, ...]],
) -> list[VisitAnswered]:
    """One row for each visit, in the order of its first reply shown; the newest one stands."""
    by_visit: dict[str, list[ClinicianReply]] = {}
    for visit_id, reply in shown:
        by_visit.setdefault(visit_id, []).append(reply)
    gathered = []
    for visit_id, given in by_visit.items():
        standing, *replaced = sorted(given, key=_strength, reverse=True)
        gathered.append(
            VisitAnswered(
                reply=standing,
                replaced=tuple(replaced),
                contacts=contacts_of(standing),
                told=tuple(told.get(visit_id, ())),
                seen=seen.get(standing.reply_id),
            )
        )
    return gathered


def find_contacts(
    reply: ClinicianReply, authorities: Mapping[str, Authority], now: datetime, proclaimed: Collection[date]
) -> tuple[Contact, ...]:
    """Whom to ring now: the hours and numbers of the directory, and of an authority it lacks those of the reply."""
    by_name: dict[str, list[PlanShown]] = {}
    for plan in reply.plans:
        by_name.setdefault(plan.authority_name, []).append(plan)
    contacts = []
    for name, plans in sorted(by_name.items()):
        authority = authorities.get(name)
        told = plans[0] if authority is None else authority
        contacts.append(
            Contact(
                authority_name=name,
                plans=tuple(plans),
                office_telephone=told.office_telephone,
                emergency_telephone=told.emergency_telephone,
                is_office_open=None if authority is None else is_office_open(authority.office_hours, now, proclaimed),
            )
        )
    return tuple(contacts)


def _strength(reply: ClinicianReply) -> tuple[datetime, bool]:
    return reply.replied_at, reply.outcome is ReplyOutcome.MATCH
