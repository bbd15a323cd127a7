"""Children's lists and directories as CSV (RFC 4180, UTF-8 with or without a byte order mark).

A bad row never loses the good ones: it comes back with its row number, its field and how to mend it, without the value.
"""

from __future__ import annotations

import msgspec

from adapters.csv_rows import FIELD_CHARACTERS_MAX, FieldProblem, Fields, MalformedFile, RowProblem, Rows, read_csv
from schemas.attendance import PersonName
from schemas.child_list import ChildListEntry, PlanType
from schemas.directory import Authority, CareSetting, KeptAnswer, Role, Site, Worker
from schemas.identifiers import parse_nhs_number
from schemas.office_hours import OFFICE_HOURS_USUAL, parse_office_hours

__all__ = [
    "FIELD_CHARACTERS_MAX",
    "AuthorityLine",
    "ClinicianLine",
    "MalformedFile",
    "RowProblem",
    "Rows",
    "SiteLine",
    "WorkerLine",
    "read_authorities",
    "read_children",
    "read_clinicians",
    "read_sites",
    "read_workers",
]


class AuthorityLine(msgspec.Struct, frozen=True, kw_only=True):
    """An authority with the secrets its file gave; empty ones are made by the broker."""

    authority: Authority
    webhook_secret: str | None
    topic_secret: str | None


class WorkerLine(msgspec.Struct, frozen=True, kw_only=True):
    """A worker, with a login when the file gives one."""

    worker: Worker
    login: str | None
    role: Role
    password: str | None


class SiteLine(msgspec.Struct, frozen=True, kw_only=True):
    """A sending site with the secrets its file gave."""

    site: Site
    credential: str | None
    topic_secret: str | None
    reply_credential: str | None


class ClinicianLine(msgspec.Struct, frozen=True, kw_only=True):
    """A clinician's login at a sending organisation."""

    login: str
    name: str
    organisation: str
    password: str | None


def read_children(file: bytes) -> Rows[ChildListEntry]:
    """One entry or problem per row of a child list. Raises MalformedFile, at once or on the way."""
    return read_csv(file, ("local_id", "nhs_number", "family_name", "birth_date", "plan_type", "start_date"), _child)


def read_authorities(file: bytes) -> Rows[AuthorityLine]:
    """One authority or problem per row."""
    return read_csv(file, ("code", "name", "office_telephone", "emergency_telephone"), _authority)


def read_workers(file: bytes) -> Rows[WorkerLine]:
    """One worker or problem per row."""
    return read_csv(file, ("code", "authority", "name"), _worker)


def read_sites(file: bytes) -> Rows[SiteLine]:
    """One site or problem per row."""
    return read_csv(file, ("code", "name"), _site)


def read_clinicians(file: bytes) -> Rows[ClinicianLine]:
    """One clinician or problem per row."""
    return read_csv(file, ("login", "name", "organisation"), _clinician)


def _child(fields: Fields) -> ChildListEntry:
    nhs_number = parse_nhs_number(fields.required("nhs_number"))
    if nhs_number is None:
        raise FieldProblem("nhs_number", "must be a valid NHS number of ten digits; please check it")
    start_on, end_on = fields.day("start_date"), fields.optional_day("end_date")
    if end_on is not None and end_on < start_on:
        raise FieldProblem("end_date", "must not be before the start date")
    return ChildListEntry(
        local_id=fields.required("local_id"),
        nhs_number=nhs_number,
        name=PersonName(family=fields.required("family_name"), given=fields.optional("given_name") or ""),
        birth_date=fields.day("birth_date"),
        plan_type=PlanType(fields.one_of("plan_type", [plan.value for plan in PlanType])),
        start_on=start_on,
        end_on=end_on,
        postcode=fields.optional("postcode"),
        allocated_worker=fields.optional("worker"),
        team=fields.optional("team"),
        deleted_on=fields.optional_day("delete_date"),
    )


def _authority(fields: Fields) -> AuthorityLine:
    hours = fields.optional("office_hours") or OFFICE_HOURS_USUAL
    if parse_office_hours(hours) is None:
        raise FieldProblem("office_hours", "must be hours like Mon-Thu 09:00-17:00 Fri 09:00-16:30")
    return AuthorityLine(
        authority=Authority(
            code=fields.ods_code("code"),
            name=fields.required("name"),
            office_telephone=fields.required("office_telephone"),
            emergency_telephone=fields.required("emergency_telephone"),
            webhook_url=fields.web_address("webhook_url"),
            alerts_for_ended_plans=fields.flag("alerts_for_ended_plans", unsaid=True),
            office_hours=hours,
        ),
        webhook_secret=fields.optional("webhook_secret"),
        topic_secret=fields.optional("topic_secret"),
    )


def _worker(fields: Fields) -> WorkerLine:
    roles = (Role.SOCIAL_WORKER.value, Role.DUTY_WORKER.value, Role.LIST_OFFICER.value)
    role = fields.one_of("role", roles) if fields.optional("role") else Role.SOCIAL_WORKER.value
    return WorkerLine(
        worker=Worker(
            code=fields.required("code"),
            authority=fields.ods_code("authority"),
            name=fields.required("name"),
            team=fields.optional("team"),
        ),
        login=fields.optional("login"),
        role=Role(role),
        password=fields.optional("password"),
    )


def _site(fields: Fields) -> SiteLine:
    reply_host, reply_port = fields.optional("reply_host"), fields.port("reply_port")
    if (reply_host is None) != (reply_port is None):
        missing = "reply_host" if reply_host is None else "reply_port"
        raise FieldProblem(missing, "is missing: reply_host and reply_port belong together")
    settings = [setting.value for setting in CareSetting]
    setting = fields.one_of("care_setting", settings) if fields.optional("care_setting") else settings[0]
    is_suppressed = fields.flag("notices_suppressed")
    if is_suppressed and setting != CareSetting.SEXUAL_HEALTH:
        raise FieldProblem("notices_suppressed", "may be yes only where care_setting is sexual_health")
    answers = [answer.value for answer in KeptAnswer]
    wished = fields.one_of("not_understood", answers) if fields.optional("not_understood") else KeptAnswer.ACCEPT.value
    return SiteLine(
        site=Site(
            code=fields.ods_code("code"),
            name=fields.required("name"),
            telephone=fields.optional("telephone"),
            authorities=fields.words("authorities"),
            reply_host=reply_host,
            reply_port=reply_port,
            reply_url=fields.web_address("reply_url"),
            replies_for_adults=fields.flag("replies_for_adults"),
            peers=fields.networks("peers"),
            not_understood=KeptAnswer(wished),
            care_setting=CareSetting(setting),
            notices_suppressed=is_suppressed,
        ),
        credential=fields.optional("credential"),
        topic_secret=fields.optional("topic_secret"),
        reply_credential=fields.bearer_token("reply_credential"),
    )


def _clinician(fields: Fields) -> ClinicianLine:
    return ClinicianLine(
        login=fields.required("login"),
        name=fields.required("name"),
        organisation=fields.ods_code("organisation"),
        password=fields.optional("password"),
    )
