"""What somebody who asks about one person is shown. A field that is not here cannot reach them."""

from __future__ import annotations

from datetime import datetime

import msgspec

from schemas.alert import ListsSearched, PlanShown
from schemas.identifiers import NhsNumber


class PlanFound(msgspec.Struct, frozen=True, kw_only=True):
    """A plan, and the list that it stands on."""

    plan: PlanShown
    authority: str
    """ODS code."""
    list_confirmed_at: datetime | None


class AuthorityNotified(msgspec.Struct, frozen=True, kw_only=True):
    """An alert that the asking organisation caused, and whether a person took it."""

    authority_name: str
    told_at: datetime
    acknowledged_at: datetime | None
    is_look_up: bool


class AccessShown(msgspec.Struct, frozen=True, kw_only=True):
    """An earlier access from unscheduled care. ``person`` is None where the person attended and nobody asked."""

    at: datetime
    organisation: str
    organisation_name: str
    person: str | None


class RecordShown(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one question about one NHS number; without plans it is a miss."""

    record_id: str
    """A UUID that stays the same for a person, from which nobody can tell who it is."""
    nhs_number: NhsNumber
    asked_at: datetime
    plans: tuple[PlanFound, ...]
    notified: tuple[AuthorityNotified, ...]
    accesses: tuple[AccessShown, ...]
    lists: ListsSearched
    wording: str
