"""Children's lists and directories as CSV (RFC 4180, UTF-8 with or without a byte order mark).

A bad row never loses the good ones: it comes back with its row number, its field and how to mend it, without the value.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from typing import Final, TypeVar

import msgspec

from schemas.attendance import PersonName
from schemas.child_list import ChildListEntry, PlanType
from schemas.directory import Authority, Role, Site, Worker
from schemas.identifiers import parse_nhs_number, parse_ods_code

Row = TypeVar("Row")
FIELD_CHARACTERS_MAX: Final = 500


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

    def flag(self, name: str) -> bool:
        text = (self.optional(name) or "no").casefold()
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


class ClinicianLine(msgspec.Struct, frozen=True, kw_only=True):
    """A clinician's login at a sending organisation."""

    login: str
    name: str
    organisation: str
    password: str | None


def read_children(file: bytes) -> Iterator[ChildListEntry | RowProblem]:
    """One entry or problem per row of a child list."""
    return _read(file, ("local_id", "nhs_number", "family_name", "birth_date", "plan_type", "start_date"), _child)


def read_authorities(file: bytes) -> Iterator[AuthorityLine | RowProblem]:
    """One authority or problem per row."""
    return _read(file, ("code", "name", "office_telephone", "emergency_telephone"), _authority)


def read_workers(file: bytes) -> Iterator[WorkerLine | RowProblem]:
    """One worker or problem per row."""
    return _read(file, ("code", "authority", "name"), _worker)


def read_sites(file: bytes) -> Iterator[SiteLine | RowProblem]:
    """One site or problem per row."""
    return _read(file, ("code", "name"), _site)


def read_clinicians(file: bytes) -> Iterator[ClinicianLine | RowProblem]:
    """One clinician or problem per row."""
    return _read(file, ("login", "name", "organisation"), _clinician)


def _read(file: bytes, columns: Sequence[str], compose: Callable[[_Fields], Row]) -> Iterator[Row | RowProblem]:
    try:
        text = file.decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
    except (UnicodeDecodeError, csv.Error) as error:
        raise MalformedFile("the file is not CSV in UTF-8") from error
    if missing:
        raise MalformedFile("the file has no column " + ", ".join(missing))
    return _compose_rows(reader, compose)


def _compose_rows(reader: csv.DictReader[str], compose: Callable[[_Fields], Row]) -> Iterator[Row | RowProblem]:
    number = 1
    while True:
        number += 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise MalformedFile(f"row {number} is not CSV") from error
        try:
            if None in values:
                raise _FieldProblem("row", "has more fields than the header")
            yield compose(_Fields(values))
        except _FieldProblem as problem:
            yield RowProblem(row=number, field=problem.field, advice=problem.advice)


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
    )


def _authority(fields: _Fields) -> AuthorityLine:
    return AuthorityLine(
        authority=Authority(
            code=fields.ods_code("code"),
            name=fields.required("name"),
            office_telephone=fields.required("office_telephone"),
            emergency_telephone=fields.required("emergency_telephone"),
            webhook_url=fields.optional("webhook_url"),
        ),
        webhook_secret=fields.optional("webhook_secret"),
        topic_secret=fields.optional("topic_secret"),
    )


def _worker(fields: _Fields) -> WorkerLine:
    roles = (Role.SOCIAL_WORKER.value, Role.DUTY_WORKER.value)
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
    return SiteLine(
        site=Site(
            code=fields.ods_code("code"),
            name=fields.required("name"),
            telephone=fields.optional("telephone"),
            authorities=fields.words("authorities"),
            reply_host=fields.optional("reply_host"),
            reply_port=fields.port("reply_port"),
            replies_for_adults=fields.flag("replies_for_adults"),
            peers=fields.words("peers"),
        ),
        credential=fields.optional("credential"),
        topic_secret=fields.optional("topic_secret"),
    )


def _clinician(fields: _Fields) -> ClinicianLine:
    return ClinicianLine(
        login=fields.required("login"),
        name=fields.required("name"),
        organisation=fields.ods_code("organisation"),
        password=fields.optional("password"),
    )
