"""Establishments, their safeguarding contacts, pupils and term dates as CSV.

A bad row costs itself alone: it comes back with its row number, its fields and how to mend them, without the values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import time, timedelta
from typing import Final

from adapters.csv_rows import MAILBOX, PRIVATE_PROVIDERS, Fields, Rows, read_csv
from schemas.encompass import (
    CalendarDays,
    ContactRole,
    DayKind,
    Establishment,
    EstablishmentKind,
    EstablishmentStatus,
    Pupil,
    SafeguardingContact,
)
from schemas.identifiers import SchoolUrn, parse_school_urn

_EARLIEST_START: Final = time(6, 0)
_LATEST_START: Final = time(12, 0)
_SPAN_MAX: Final = timedelta(days=200)


def read_schools(file: bytes) -> Rows[Establishment]:
    """One establishment or problem per row. Raises MalformedFile, at once or on the way."""
    return read_csv(file, ("urn", "name", "kind", "authority"), _school)


def read_safeguarding_contacts(file: bytes) -> Rows[SafeguardingContact]:
    """One contact or problem per row."""
    return read_csv(file, ("urn", "contact_id", "role", "name", "mailbox"), _contact)


def read_pupils(file: bytes) -> Rows[Pupil]:
    """One pupil or problem per row."""
    return read_csv(file, ("authority", "pupil_id", "family_name", "given_name", "birth_date"), _pupil)


def read_term_dates(file: bytes) -> Rows[CalendarDays]:
    """Days of one kind, or a problem, per row."""
    return read_csv(file, ("authority", "kind", "first_date"), _days)


def _school(fields: Fields) -> Establishment:
    status = fields.optional_one_of("status", [each.value for each in EstablishmentStatus])
    merged_into = fields.optional_school_urn("merged_into")
    urn = fields.school_urn("urn")
    if (status == EstablishmentStatus.MERGED) != (merged_into is not None) and fields.are_right("status"):
        fields.refuse("merged_into", "is the URN of the successor when status is merged, and empty otherwise")
    if merged_into == urn:
        fields.refuse("merged_into", "must be another establishment")
    starts_at = fields.clock("starts_at")
    if starts_at is not None and not _EARLIEST_START <= starts_at <= _LATEST_START:
        fields.refuse("starts_at", "must be a time from 06:00 to 12:00")
    return Establishment(
        urn=urn,
        name=fields.required("name"),
        kind=EstablishmentKind(fields.one_of("kind", [each.value for each in EstablishmentKind])),
        authority=fields.ods_code("authority"),
        status=EstablishmentStatus(status or EstablishmentStatus.OPEN),
        merged_into=merged_into,
        starts_at_local=starts_at,
        office_telephone=fields.optional("office_telephone"),
    )


def _contact(fields: Fields) -> SafeguardingContact:
    name = fields.required("name")
    return SafeguardingContact(
        contact_id=fields.required("contact_id"),
        urn=fields.school_urn("urn"),
        role=ContactRole(fields.one_of("role", [each.value for each in ContactRole])),
        name=name,
        mailbox=_role_mailbox(fields, fields.required("mailbox"), name),
        telephone=fields.optional("telephone"),
        mobile=fields.mobile("mobile"),
        confirmed_on=fields.optional_day("confirmed_date"),
        trained_on=fields.optional_day("trained_date"),
    )


def _role_mailbox(fields: Fields, mailbox: str, name: str) -> str:
    """A mailbox of the role: not at a provider of private mail, and not named after the person."""
    if not MAILBOX.fullmatch(mailbox):
        fields.refuse("mailbox", "must be one mailbox like safeguarding@school.example.org")
    local, _, domain = mailbox.casefold().partition("@")
    words = re.split(r"[\W_]+", name.casefold())
    is_named = any(len(word) > 2 and word in re.split(r"[\W_0-9]+", local) for word in words)
    if is_named or PRIVATE_PROVIDERS.intersection(domain.split(".")):
        fields.refuse("mailbox", "must be a role's mailbox such as safeguarding@, not a person's own")
    return mailbox


def _pupil(fields: Fields) -> Pupil:
    return Pupil(
        authority=fields.ods_code("authority"),
        pupil_id=fields.required("pupil_id"),
        family_name=fields.required("family_name"),
        given_name=fields.required("given_name"),
        birth_date=fields.day("birth_date"),
        postcode=fields.optional("postcode"),
        urns=_urns(fields, fields.words("urns")),
        home_educated=fields.flag("home_educated"),
    )


def _urns(fields: Fields, words: Sequence[str]) -> tuple[SchoolUrn, ...]:
    found = [parse_school_urn(word) for word in words]
    if None in found:
        fields.refuse("urns", "must be URNs of six digits, with spaces between them")
    return tuple(urn for urn in found if urn is not None)


def _days(fields: Fields) -> CalendarDays:
    first_on = fields.day("first_date")
    last_on = fields.optional_day("last_date") or first_on
    if not timedelta(0) <= last_on - first_on <= _SPAN_MAX and fields.are_right("first_date", "last_date"):
        fields.refuse("last_date", f"must be the first date or up to {_SPAN_MAX.days} days after it")
    return CalendarDays(
        authority=fields.ods_code("authority"),
        urn=fields.optional_school_urn("urn"),
        kind=DayKind(fields.one_of("kind", [each.value for each in DayKind])),
        first_on=first_on,
        last_on=last_on,
    )
