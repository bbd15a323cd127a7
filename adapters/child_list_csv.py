"""Children's lists and directories as CSV (RFC 4180, UTF-8 with or without a byte order mark).

A bad row never loses the good ones: it comes back with its row number, its field and how to mend it, without the value.
"""

from __future__ import annotations

import csv
import io
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from typing import Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from schemas.attendance import PersonName
from schemas.child_list import ChildListEntry, PlanType
from schemas.directory import Authority, KeptAnswer, Role, Site, Worker
from schemas.identifiers import parse_nhs_number, parse_ods_code

Row = TypeVar("Row")
FIELD_CHARACTERS_MAX: Final = 500
_BEARER_TOKEN: Final = re.compile(r"[A-Za-z0-9\-._~+/]+=*")


class RowProblem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a row was refused. ``row`` counts the header as 1; ``advice`` never holds the value."""

    row: int
    field: str
    advice: str


class MalformedFile(Exception):
    """The file as a whole cannot be read: nothing was taken from it."""


class _FieldProblem(Exception):
    def __init__(self, field: str, advice: str) -> None:
        super().__init__(field)
        self.field = field
        self.advice = advice


class _Fields:
    """One row's fields, each asked for by name."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def optional(self, name: str) -> str | None:
        text = (self._values.get(name) or "").strip()
        if len(text) > FIELD_CHARACTERS_MAX or "\x00" in text:
            raise _FieldProblem(name, f"must be plain text of at most {FIELD_CHARACTERS_MAX} characters")
        return text or None

    def required(self, name: str) -> str:
        text = self.optional(name)
        if text is None:
            raise _FieldProblem(name, "is missing")
        return text

    def day(self, name: str) -> date:
        try:
            return date.fromisoformat(self.required(name))
        except ValueError as error:
            raise _FieldProblem(name, "must be a date like 2026-01-31") from error

    def optional_day(self, name: str) -> date | None:
        return self.day(name) if self.optional(name) else None

    def ods_code(self, name: str) -> str:
        code = parse_ods_code(self.required(name))
        if code is None:
            raise _FieldProblem(name, "must be an ODS code of 3 to 10 letters and digits")
        return code

    def port(self, name: str) -> int | None:
        text = self.optional(name)
        if text is None:
            return None
        if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
            raise _FieldProblem(name, "must be a port number")
        return int(text)

    def networks(self, name: str) -> tuple[str, ...]:
        words = self.words(name)
        try:
            for word in words:
                ipaddress.ip_network(word, strict=False)
        except ValueError as error:
            raise _FieldProblem(name, "must be networks like 10.1.0.0/16, with spaces between them") from error
        return words

    def web_address(self, name: str) -> str | None:
        text = self.optional(name)
        if text is None:
            return None
        try:
            parts = urlsplit(text)
            is_complete = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
            # Credentials in an address would stand where everybody reads them.
            is_complete = is_complete and parts.username is None
        except ValueError:
            is_complete = False
        if not is_complete:
            raise _FieldProblem(name, "must be an address like https://alerts.example.org/path")
        return text

    def bearer_token(self, name: str) -> str | None:
        text = self.optional(name)
        if text is not None and not _BEARER_TOKEN.fullmatch(text):
            raise _FieldProblem(
                name, "must be a bearer token: letters, digits and -._~+/, with = at the end (RFC 6750)"
            )
        return text

    def flag(self, name: str, *, unsaid: bool = False) -> bool:
        text = (self.optional(name) or ("yes" if unsaid else "no")).casefold()
        if text not in _FLAGS:
            raise _FieldProblem(name, "must be yes or no")
        return _FLAGS[text]

    def words(self, name: str) -> tuple[str, ...]:
        return tuple((self.optional(name) or "").split())

    def one_of(self, name: str, known: Sequence[str]) -> str:
        text = self.required(name)
        if text not in known:
            raise _FieldProblem(name, "must be one of " + ", ".join(known))
        return text


_FLAGS: Final = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


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


Rows = Iterator[tuple[int, Row | RowProblem]]
"""What stands in each row, with the row's number as a spreadsheet shows it: the header is 1, blank lines count."""


def read_children(file: bytes) -> Rows[ChildListEntry]:
    """One entry or problem per row of a child list. Raises MalformedFile, at once or on the way."""
    return _read(file, ("local_id", "nhs_number", "family_name", "birth_date", "plan_type", "start_date"), _child)


def read_authorities(file: bytes) -> Rows[AuthorityLine]:
    """One authority or problem per row."""
    return _read(file, ("code", "name", "office_telephone", "emergency_telephone"), _authority)


def read_workers(file: bytes) -> Rows[WorkerLine]:
    """One worker or problem per row."""
    return _read(file, ("code", "authority", "name"), _worker)


def read_sites(file: bytes) -> Rows[SiteLine]:
    """One site or problem per row."""
    return _read(file, ("code", "name"), _site)


def read_clinicians(file: bytes) -> Rows[ClinicianLine]:
    """One clinician or problem per row."""
    return _read(file, ("login", "name", "organisation"), _clinician)


def _read(file: bytes, columns: Sequence[str], compose: Callable[[_Fields], Row]) -> Rows[Row]:
    rows = _read_rows(file)
    _, header = next(rows, (1, []))
    missing = [column for column in columns if column not in header]
    if missing:
        raise MalformedFile("the file has no column " + ", ".join(missing))
    named = [column for column in header if column]
    if len(set(named)) < len(named):
        raise MalformedFile("two columns of the file have the same name")
    return _compose_rows(rows, header, compose)


def _read_rows(file: bytes) -> Iterator[tuple[int, list[str]]]:
    number = 0
    try:
        for number, row in enumerate(csv.reader(io.StringIO(file.decode("utf-8-sig"), newline=""), strict=True), 1):
            if row:
                yield number, row
    except UnicodeDecodeError as error:
        raise MalformedFile("the file is not CSV in UTF-8") from error
    except csv.Error as error:
        raise MalformedFile(f"row {number + 1} is not CSV") from error


def _compose_rows(
    rows: Iterator[tuple[int, list[str]]], header: Sequence[str], compose: Callable[[_Fields], Row]
) -> Rows[Row]:
    for number, row in rows:
        try:
            if len(row) > len(header):
                raise _FieldProblem("row", "has more fields than the header")
            yield number, compose(_Fields(dict(zip(header, row, strict=False))))
        except _FieldProblem as problem:
            yield number, RowProblem(row=number, field=problem.field, advice=problem.advice)


def _child(fields: _Fields) -> ChildListEntry:
    nhs_number = parse_nhs_number(fields.required("nhs_number"))
    if nhs_number is None:
        raise _FieldProblem("nhs_number", "must be a valid NHS number of ten digits; please check it")
    start_on, end_on = fields.day("start_date"), fields.optional_day("end_date")
    if end_on is not None and end_on < start_on:
        raise _FieldProblem("end_date", "must not be before the start date")
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


def _authority(fields: _Fields) -> AuthorityLine:
    return AuthorityLine(
        authority=Authority(
            code=fields.ods_code("code"),
            name=fields.required("name"),
            office_telephone=fields.required("office_telephone"),
            emergency_telephone=fields.required("emergency_telephone"),
            webhook_url=fields.web_address("webhook_url"),
            alerts_for_ended_plans=fields.flag("alerts_for_ended_plans", unsaid=True),
        ),
        webhook_secret=fields.optional("webhook_secret"),
        topic_secret=fields.optional("topic_secret"),
    )


def _worker(fields: _Fields) -> WorkerLine:
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


def _site(fields: _Fields) -> SiteLine:
    reply_host, reply_port = fields.optional("reply_host"), fields.port("reply_port")
    if (reply_host is None) != (reply_port is None):
        missing = "reply_host" if reply_host is None else "reply_port"
        raise _FieldProblem(missing, "is missing: reply_host and reply_port belong together")
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
        ),
        credential=fields.optional("credential"),
        topic_secret=fields.optional("topic_secret"),
        reply_credential=fields.bearer_token("reply_credential"),
    )


def _clinician(fields: _Fields) -> ClinicianLine:
    return ClinicianLine(
        login=fields.required("login"),
        name=fields.required("name"),
        organisation=fields.ods_code("organisation"),
        password=fields.optional("password"),
    )
