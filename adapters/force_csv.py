"""Police forces, and the people who sign in for Operation Encompass, as CSV.

A bad row costs itself alone: it comes back with its row number, its fields and how to mend them, without the values.
"""

from __future__ import annotations

from typing import Final

import msgspec

from adapters.csv_rows import Fields, Rows, read_csv
from schemas.directory import Reach, Role
from schemas.encompass import ContentProfile, EncompassPolicy, Force, Release, UnderSchoolAge
from schemas.identifiers import OwnerId, authority_owner, establishment_owner, force_owner

_CONFIRMED_DAYS: Final = 400
_CREDENTIAL_LETTERS_MIN: Final = 12
_ROLES: Final = (Role.SAFEGUARDING_LEAD.value, Role.ENCOMPASS_COORDINATOR.value, Role.ENCOMPASS_HUB.value)


class ForceLine(msgspec.Struct, frozen=True, kw_only=True):
    """A force and the credential under which it sends; None: one is made."""

    force: Force
    credential: str | None = None


class PersonLine(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who signs in: at an establishment as one of its contacts, at a force, or at an authority's hub."""

    login: str
    name: str
    role: Role
    owner: OwnerId
    contact_id: str | None = None
    password: str | None = None
    reach: Reach = Reach()
    """Of a coordinator or a person of a hub; a safeguarding lead is told where the contacts say."""


def read_forces(file: bytes) -> Rows[ForceLine]:
    """One force or problem per row. Raises MalformedFile, at once or on the way."""
    return read_csv(file, ("code", "name", "statement", "withdrawn_statement"), _force)


def read_encompass_people(file: bytes) -> Rows[PersonLine]:
    """One person or problem per row."""
    return read_csv(file, ("login", "name", "role", "at"), _person)


def _force(fields: Fields) -> ForceLine:
    code = fields.ods_code("code")
    days = fields.optional("confirmed_days_max") or str(_CONFIRMED_DAYS)
    if not (days.isascii() and days.isdigit() and 1 <= int(days[:5]) <= 3_660):
        fields.refuse("confirmed_days_max", "must be a number of days from 1 to 3660")
        days = "1"
    credential = fields.optional("credential")
    if credential is not None and len(credential) < _CREDENTIAL_LETTERS_MIN:
        fields.refuse("credential", f"must have at least {_CREDENTIAL_LETTERS_MIN} characters, or be empty")
    policy = EncompassPolicy(
        force=code,
        statement=fields.required("statement"),
        withdrawn_statement=fields.required("withdrawn_statement"),
        release=Release(fields.optional_one_of("release", [each.value for each in Release]) or Release.AUTOMATIC),
        profile=ContentProfile(
            fields.optional_one_of("profile", [each.value for each in ContentProfile]) or ContentProfile.STANDARD
        ),
        under_school_age=UnderSchoolAge(
            fields.optional_one_of("under_school_age", [each.value for each in UnderSchoolAge]) or UnderSchoolAge.NOBODY
        ),
        confirmed_days_max=int(days),
        training_required=fields.flag("training_required", unsaid=True),
    )
    force = Force(code=code, name=fields.required("name"), policy=policy, peers=fields.networks("peers"))
    return ForceLine(force=force, credential=credential)


def _person(fields: Fields) -> PersonLine:
    role = Role(fields.one_of("role", list(_ROLES)))
    contact_id = fields.optional("contact_id")
    is_lead = role is Role.SAFEGUARDING_LEAD
    if not fields.are_right("role"):
        owner = OwnerId(fields.required("at"))
    elif is_lead:
        owner = establishment_owner(fields.school_urn("at"))
    else:
        own = force_owner if role is Role.ENCOMPASS_COORDINATOR else authority_owner
        owner = own(fields.ods_code("at"))
    if is_lead != (contact_id is not None) and fields.are_right("role"):
        fields.refuse("contact_id", "is the contact whom a safeguarding lead is, and empty for everybody else")
    if is_lead and fields.are_right("role"):
        for told in ("mailbox", "mobile"):
            if fields.optional(told) is not None:
                fields.refuse(told, "stands among the safeguarding contacts for a lead: leave it empty here")
    reach = Reach(mailbox=fields.mailbox("mailbox"), mobile=fields.mobile("mobile"))
    return PersonLine(
        login=fields.required("login"),
        name=fields.required("name"),
        role=role,
        owner=owner,
        contact_id=contact_id,
        password=fields.optional("password"),
        reach=reach,
    )
