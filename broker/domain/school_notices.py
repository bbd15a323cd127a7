"""What a notice says to one establishment, and what a later version of the incident changes of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final

import msgspec

from broker.domain.names import fold_name
from schemas.encompass import (
    Change,
    ContentProfile,
    EncompassPolicy,
    Establishment,
    FullNotice,
    IncidentChild,
    MinimalChild,
    MinimalNotice,
    PoliceIncident,
    ReferralNotice,
    ReferredChild,
    SchoolNotice,
    SchoolNoticeWithdrawn,
    StandardNotice,
    ToldChild,
    ToldEstablishment,
)
from schemas.identifiers import SchoolUrn

_POSTCODE: Final = re.compile(r"\b[A-Z]{1,2}[0-9][A-Z0-9]?\s*[0-9][A-Z]{2}\b", re.ASCII | re.IGNORECASE)


class WithheldReason(StrEnum):
    """Why a text was left out of a notice."""

    LOCATION_SUPPRESSED = "location_suppressed"
    HOLDS_AN_ADDRESS = "holds_an_address"


class Withheld(msgspec.Struct, frozen=True, kw_only=True):
    """A text left out, for the record of the force; ``child_id`` None: of the incident."""

    field: str
    reason: WithheldReason
    child_id: str | None = None


class Slip(msgspec.Struct, frozen=True, kw_only=True):
    """What a notice carries beside its content."""

    notice_id: str
    issued_at: datetime
    version: int = 1
    change: Change | None = None


class Composed(msgspec.Struct, frozen=True, kw_only=True):
    """A notice, and what was left out of it."""

    notice: SchoolNotice
    withheld: tuple[Withheld, ...]


class _Texts:
    """Passes on free texts, without those that must stay back."""

    def __init__(self, incident: PoliceIncident, profile: ContentProfile) -> None:
        self._is_hidden = incident.suppress is not None
        tells_location = profile is ContentProfile.FULL and not self._is_hidden
        self._places = () if tells_location else tuple(_places_in(incident.location or ""))
        self.withheld: list[Withheld] = []

    def pass_on(self, field: str, text: str | None, child_id: str | None = None) -> str | None:
        if text is None:
            return None
        reason = self._judge(text, is_location=field == "location")
        if reason is None:
            return text
        self.withheld.append(Withheld(field=field, reason=reason, child_id=child_id))
        return None

    def _judge(self, text: str, *, is_location: bool) -> WithheldReason | None:
        if self._is_hidden:
            return WithheldReason.LOCATION_SUPPRESSED
        if is_location:
            return None
        folded = fold_name(text)
        names_place = any(place in folded for place in self._places)
        return WithheldReason.HOLDS_AN_ADDRESS if names_place or _POSTCODE.search(text) else None


def _places_in(location: str) -> Iterator[str]:
    """The lines of an address that would be recognised in a sentence: Mill Lane, but not at home."""
    for line in location.replace("\n", ",").split(","):
        if len(fold_name(line).split()) > 1:
            yield fold_name(line)


def compose_notice(
    incident: PoliceIncident,
    establishment: Establishment,
    child_ids: Sequence[str],
    policy: EncompassPolicy,
    slip: Slip,
) -> Composed:
    """The notice to one establishment of the children named, in the policy's profile.

    A text that holds a postcode, or names the place where the profile does not tell it, is left out as a whole: what
    is cut out of a sentence can be guessed. While anything of the incident is suppressed every free text is left out.
    """
    texts = _Texts(incident, policy.profile)
    children = [child for child in incident.children if child.child_id in child_ids]
    told = ToldEstablishment(urn=establishment.urn, name=establishment.name)
    notice: SchoolNotice
    match policy.profile:
        case ContentProfile.MINIMAL:
            notice = _compose_minimal(incident, told, children, slip, policy.statement)
        case ContentProfile.STANDARD:
            notice = _compose_standard(incident, told, tuple(_tell(children, texts)), slip, policy.statement)
        case ContentProfile.FULL:
            standard = _compose_standard(incident, told, tuple(_tell(children, texts)), slip, policy.statement)
            notice = _add_circumstances(standard, incident, texts)
    return Composed(notice=notice, withheld=tuple(texts.withheld))


def _compose_minimal(
    incident: PoliceIncident, told: ToldEstablishment, children: Sequence[IncidentChild], slip: Slip, statement: str
) -> MinimalNotice:
    return MinimalNotice(
        notice_id=slip.notice_id,
        version=slip.version,
        change=slip.change,
        issued_at=slip.issued_at,
        establishment=told,
        occurred_at=incident.occurred_at,
        children=tuple(
            MinimalChild(
                family_name=child.family_name,
                given_name=child.given_name,
                birth_date=child.birth_date,
                present=child.present,
                welfare_check=child.welfare_check,
            )
            for child in children
        ),
        statement=statement,
    )


def _compose_standard(
    incident: PoliceIncident, told: ToldEstablishment, children: tuple[ToldChild, ...], slip: Slip, statement: str
) -> StandardNotice:
    return StandardNotice(
        notice_id=slip.notice_id,
        version=slip.version,
        change=slip.change,
        issued_at=slip.issued_at,
        establishment=told,
        force=incident.force,
        police_reference=incident.incident_id,
        occurred_at=incident.occurred_at,
        children=children,
        statement=statement,
    )


def _add_circumstances(standard: StandardNotice, incident: PoliceIncident, texts: _Texts) -> FullNotice:
    return FullNotice(
        **msgspec.structs.asdict(standard),
        location=texts.pass_on("location", incident.location),
        circumstances=texts.pass_on("circumstances", incident.circumstances),
        other_safeguarding=texts.pass_on("other_safeguarding", incident.other_safeguarding),
    )


def _tell(children: Sequence[IncidentChild], texts: _Texts) -> Iterator[ToldChild]:
    for child in children:
        yield ToldChild(
            family_name=child.family_name,
            given_name=child.given_name,
            birth_date=child.birth_date,
            present=child.present,
            welfare_check=child.welfare_check,
            where=texts.pass_on("where", child.where, child.child_id),
            spoken_to=child.spoken_to,
            spoken_alone=child.spoken_alone,
            childs_words=texts.pass_on("childs_words", child.childs_words, child.child_id),
        )


def compose_referral(
    incident: PoliceIncident,
    establishment: Establishment,
    child_ids: Sequence[str],
    slip: Slip,
    *,
    authority: str,
    telephone: str,
    statement: str,
) -> ReferralNotice:
    """The notice of an authority's hub: which children, and whom to ring. Nothing of the attendance can stand in it."""
    return ReferralNotice(
        notice_id=slip.notice_id,
        version=slip.version,
        change=slip.change,
        issued_at=slip.issued_at,
        establishment=ToldEstablishment(urn=establishment.urn, name=establishment.name),
        authority=authority,
        telephone=telephone,
        children=tuple(
            ReferredChild(family_name=child.family_name, given_name=child.given_name, birth_date=child.birth_date)
            for child in incident.children
            if child.child_id in child_ids
        ),
        statement=statement,
    )


class SentNotice(msgspec.Struct, frozen=True, kw_only=True):
    """The newest notice an establishment was sent; ``is_withdrawn`` when that was taken back."""

    notice: SchoolNotice
    is_withdrawn: bool = False
    version: int
    """Of the last thing sent under this notice's id, a withdrawal counted."""


class Step(StrEnum):
    """What an establishment is sent because of a later version."""

    SEND = "send"
    AMEND = "amend"
    WITHDRAW = "withdraw"


class Amendment(msgspec.Struct, frozen=True, kw_only=True):
    """One establishment's step. Nothing for those whose notice says what it said."""

    urn: SchoolUrn
    step: Step
    notice: SchoolNotice | SchoolNoticeWithdrawn


def plan_amendments(
    sent: Mapping[SchoolUrn, SentNotice],
    wanted: Mapping[SchoolUrn, SchoolNotice],
    *,
    change: Change,
    at: datetime,
    withdrawn_statement: str,
) -> tuple[Amendment, ...]:
    """From what establishments were sent to what they should know; ``wanted`` is empty after a withdrawal.

    A notice keeps its id through every change and counts its versions, so a school has one item, not two. A change
    that an establishment's own notice does not show, such as another school's child, sends it nothing.
    """
    found: list[Amendment] = []
    for urn in sorted(sent.keys() | wanted.keys()):
        before, after = sent.get(urn), wanted.get(urn)
        if before is None:
            assert after is not None
            found.append(Amendment(urn=urn, step=Step.SEND, notice=after))
        elif after is None:
            if not before.is_withdrawn:
                taken_back = _withdraw(before, at, withdrawn_statement)
                found.append(Amendment(urn=urn, step=Step.WITHDRAW, notice=taken_back))
        elif before.is_withdrawn or not _say_the_same(before.notice, after):
            amended = msgspec.structs.replace(
                after, notice_id=before.notice.notice_id, version=before.version + 1, change=change, issued_at=at
            )
            found.append(Amendment(urn=urn, step=Step.AMEND, notice=amended))
    return tuple(found)


def _say_the_same(sent: SchoolNotice, wanted: SchoolNotice) -> bool:
    slip = {name: getattr(sent, name) for name in ("notice_id", "version", "change", "issued_at")}
    return sent == msgspec.structs.replace(wanted, **slip)


def _withdraw(sent: SentNotice, at: datetime, statement: str) -> SchoolNoticeWithdrawn:
    return SchoolNoticeWithdrawn(
        notice_id=sent.notice.notice_id,
        version=sent.version + 1,
        withdrawn_at=at,
        establishment=sent.notice.establishment,
        statement=statement,
    )
