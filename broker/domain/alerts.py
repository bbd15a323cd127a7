"""What social care is told, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, datetime
from typing import TypeVar

import msgspec

from broker.domain.matching import Match
from broker.domain.visits import LONDON, london_day
from schemas.alert import AlertKind, AttendanceFacts, IdentityFact, ListedChild, Plan, SocialCareAlert
from schemas.attendance import Attendance
from schemas.child_list import ChildListEntry, PlanType
from schemas.directory import Site

Each = TypeVar("Each")
_NEWBORN = (
    "The department names the woman on your list as the mother of the baby who attends: this is about her newborn. "
    "Please put the baby on your list under the baby's own NHS number."
)
_CONFIRMED = "Your authority has confirmed that the person who attends is the person on your list."
_NOT_BROUGHT = "The department says that the person was not brought to an appointment. "
_LOOKED_UP = (
    "Looked up, not attended: somebody at the department asked by NHS number whether this person is on a list. That "
    "does not prove that the person is there. No attendance has to follow: ring to find out."
)
_PREGNANT = " The unborn child plan is for her child."
_TEST = (
    " The department's system marks this message as a test. Feeds are marked wrongly, so you are told as of any other: "
    "ring the department."
)
WITHHELD = "Withheld"
"""Stands for where somebody is whose national record is restricted."""
DUTY_DESK = "duty"
"""Holder of an alert that no allocated worker can be asked to take."""


class Correction(msgspec.Struct, frozen=True, kw_only=True):
    """How the department came to say who the person is, after they had come."""

    at: datetime
    event: str
    """The trigger event that said so."""
    is_merge: bool

    @property
    def words(self) -> str:
        """For people."""
        return f"records joined, {self.event}" if self.is_merge else f"update, {self.event}"

    def explain(self) -> str:
        """The sentence in the alert."""
        local = self.at.astimezone(LONDON)
        return f" Identity corrected at {local:%H:%M} on {local.day} {local:%B %Y}: {self.words}."


def compose_alert(
    *,
    alert_id: str,
    authority: str,
    facts: Attendance,
    site: Site | None,
    matched: Sequence[tuple[ChildListEntry, Match]],
    now: datetime,
    late: bool,
    list_confirmed_at: datetime | None = None,
    correction: Correction | None = None,
    course: str = "",
) -> SocialCareAlert:
    """One alert of one visit for one authority; it lists every plan that authority has for the person.

    ``course`` says what became of the person meanwhile, if anything did.
    """
    # The baby's own entry says more of the baby than the mother's.
    matched = sorted(matched, key=lambda pair: IdentityFact.MOTHER in pair[1].agrees)
    entry, on = matched[0][0], london_day(now)
    is_newborn = all(IdentityFact.MOTHER in match.agrees for _, match in matched)
    agrees = _unique(fact for _, match in matched for fact in match.agrees)
    differs = _unique(fact for _, match in matched for fact in match.differs if fact not in agrees)
    return SocialCareAlert(
        alert_id=alert_id,
        authority=authority,
        raised_at=now,
        kind=AlertKind.NOT_BROUGHT if facts.was_not_brought else AlertKind.ATTENDED,
        late=late,
        identity_corrected_at=correction.at if correction is not None else None,
        is_newborn=is_newborn,
        child=_describe_child(entry),
        plans=_describe_plans([entry for entry, _ in matched], on),
        allocated_workers=allocated_workers([entry for entry, _ in matched]),
        attendance=describe_attendance(facts, site),
        agrees=agrees,
        differs=differs,
        nhs_number_status=facts.nhs_number_status,
        list_confirmed_at=list_confirmed_at,
        reason=(_NOT_BROUGHT if facts.was_not_brought else "")
        + explain_alert(
            agrees,
            differs,
            [entry for entry, _ in matched],
            on,
            late=late,
            by_person=any(match.by_person for _, match in matched),
        )
        + (correction.explain() if correction is not None else "")
        + (f" {course}" if course else "")
        + (_TEST if facts.is_test else ""),
    )


def compose_look_up_alert(
    *,
    alert_id: str,
    authority: str,
    site: Site,
    entries: Sequence[ChildListEntry],
    now: datetime,
    list_confirmed_at: datetime | None,
) -> SocialCareAlert:
    """The alert of a look-up: somebody at a site asked about the person by NHS number."""
    entry, on = entries[0], london_day(now)
    return SocialCareAlert(
        alert_id=alert_id,
        authority=authority,
        raised_at=now,
        kind=AlertKind.LOOKED_UP,
        child=_describe_child(entry),
        plans=_describe_plans(entries, on),
        allocated_workers=allocated_workers(entries),
        attendance=AttendanceFacts(
            organisation_code=site.code,
            organisation_name=site.name,
            organisation_telephone=site.telephone,
            department=None,
            arrived_at=None,
            arrival_mode=None,
            complaint=None,
            left_at=None,
        ),
        agrees=(IdentityFact.NHS_NUMBER,),
        differs=(),
        nhs_number_status=None,
        list_confirmed_at=list_confirmed_at,
        reason=_LOOKED_UP + (" Every plan has ended." if all(each.has_ended(on) for each in entries) else ""),
    )


def _describe_child(entry: ChildListEntry) -> ListedChild:
    return ListedChild(
        local_id=entry.local_id,
        nhs_number=entry.nhs_number,
        family=entry.name.family,
        given=entry.name.given,
        birth_date=entry.birth_date,
    )


def _describe_plans(entries: Sequence[ChildListEntry], on: date) -> tuple[Plan, ...]:
    """Each plan once, though the list may have it under two local ids."""
    return _unique(
        Plan(plan_type=entry.plan_type, start_on=entry.start_on, end_on=entry.end_on, has_ended=entry.has_ended(on))
        for entry in entries
    )


def describe_attendance(facts: Attendance, site: Site | None) -> AttendanceFacts:
    """The visit as social care is told of it."""
    return AttendanceFacts(
        organisation_code=facts.sender,
        organisation_name=site.name if site is not None else facts.sender,
        organisation_telephone=site.telephone if site is not None else None,
        department=facts.department,
        arrived_at=facts.arrived_at or facts.event_at or facts.message_at,
        arrival_mode=facts.arrival_mode,
        complaint=facts.complaint,
        left_at=facts.left_at,
    )


def withhold_place(facts: AttendanceFacts) -> AttendanceFacts:
    """Nothing of where and when the person came, or of what might tell it: free text and the way they came too."""
    if facts.is_withheld:
        return facts
    return AttendanceFacts(
        organisation_code="",
        organisation_name=WITHHELD,
        organisation_telephone=None,
        department=None,
        arrived_at=None,
        arrival_mode=None,
        complaint=None,
        left_at=None,
        is_withheld=True,
    )


def allocated_workers(entries: Sequence[ChildListEntry]) -> tuple[str, ...]:
    """The workers of all plans, each once, in the order of the plans."""
    return tuple(dict.fromkeys(entry.allocated_worker for entry in entries if entry.allocated_worker))


def explain_alert(
    agrees: Sequence[IdentityFact],
    differs: Sequence[IdentityFact],
    entries: Sequence[ChildListEntry],
    on: date,
    *,
    late: bool,
    by_person: bool = False,
) -> str:
    """Why this alert came, in a few sentences."""
    own = [fact for fact in agrees if fact is not IdentityFact.MOTHER]
    is_newborn = not own and IdentityFact.MOTHER in agrees
    sentence = _NEWBORN if is_newborn else _CONFIRMED if by_person else ""
    if own:
        sentence = f"{sentence} The person who attends and the person on your list have the same {_join(own)}.".strip()
    if differs:
        sentence += f" The {_join(differs)} differs: please check."
    if not is_newborn and any(entry.plan_type is PlanType.UNBORN for entry in entries):
        sentence += _PREGNANT
    if all(entry.has_ended(on) for entry in entries):
        sentence += " Every plan has ended."
    if late:
        sentence += " This alert is late: the list or the identity was completed after the person arrived."
    return sentence


def _unique(found: Iterable[Each]) -> tuple[Each, ...]:
    return tuple(dict.fromkeys(found))


def _join(facts: Sequence[IdentityFact]) -> str:
    words = [fact.value for fact in facts]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
