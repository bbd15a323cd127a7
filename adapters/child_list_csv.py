"""Children's lists and directories as CSV (RFC 4180, UTF-8 with or without a byte order mark), or as a spreadsheet
saves it: dates of child lists in the order of the United Kingdom.

A bad row never loses the good ones: it comes back with its row number, its fields and how to mend them, without the
values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import BinaryIO, Final

import msgspec

from adapters.csv_rows import (
    FIELD_CHARACTERS_MAX,
    SURPLUS_ADVICE,
    CsvRow,
    Fields,
    RowProblem,
    Rows,
    read_csv,
    read_table,
    tell_problems,
)
from adapters.errors import MalformedFile
from schemas.attendance import Event, PersonName
from schemas.child_list import ChildListEntry, LegalBasis, PlanType
from schemas.directory import Authority, CareSetting, KeptAnswer, Reach, Role, Site, Worker
from schemas.identifiers import NhsNumber, parse_nhs_number
from schemas.office_hours import OFFICE_HOURS_USUAL, parse_office_hours
from schemas.upload import RecordCode

__all__ = [
    "FIELD_CHARACTERS_MAX",
    "AuthorityLine",
    "ChildRowProblem",
    "ClinicianLine",
    "DateOrder",
    "RowProblem",
    "Rows",
    "SiteLine",
    "WorkerLine",
    "compose_child",
    "read_authorities",
    "read_children",
    "read_clinicians",
    "read_sites",
    "read_workers",
]


_CHILD_COLUMNS: Final = ("local_id", "nhs_number", "family_name", "birth_date", "plan_type", "start_date")
_DAY_FIRST: Final = re.compile(r"([0-9]{1,2})([/.-])([0-9]{1,2})\2([0-9]{4})")
_SHORT_YEAR: Final = re.compile(r"[0-9]{1,2}([/.-])[0-9]{1,2}\1[0-9]{2}")
_MIDNIGHT: Final = re.compile(r"[T ]00?:00(?::00(?:\.0+)?)?$")
"""A spreadsheet writes a day as an instant; the instant is the beginning of the day."""
_ROUNDED: Final = re.compile(r"[0-9](?:[.,][0-9]+)?[Ee]\+?[0-9]+")
_OLD_STYLE_NUMBER: Final = re.compile(r"[A-Za-z]{2,5}[ /-]?[0-9][0-9 /.-]{0,10}")
"""NHS numbers before 1996: letters and figures that told the register and the entry."""
OLD_STYLE_ADVICE: Final = "is a number of the old style: give the NHS number of ten digits"
NUMBER_ADVICE: Final = "must be a valid NHS number of ten digits; please check it"


class ChildRowProblem(RowProblem, frozen=True, kw_only=True):
    """Why a row of a child list was refused, with the person's ``local_id`` where one could be read.

    The id is for whoever compares a full list: somebody whose row is bad is not missing from the file.
    """

    code: RecordCode = RecordCode.NOT_LOADED
    local_id: str | None = None

    def __repr__(self) -> str:
        return f"ChildRowProblem(row={self.row}, field={self.field!r}, advice={self.advice!r}, code={self.code.value})"


class DateOrder:
    """Which order the dates of a file's columns have, as far as they show it.

    ``01/02/2016`` is 1 February. A column all of whose telling dates have the month first was written by a program with
    other habits: its other dates would be read wrongly and nobody would notice.
    """

    def __init__(self) -> None:
        self._month_first: dict[str, int] = {}
        self._day_first: set[str] = set()

    def note(self, column: str, first: int, second: int, row: int) -> None:
        """Note a date whose first two numbers are these."""
        if first > 12 >= second:
            self._day_first.add(column)
        elif second > 12 >= first:
            self._month_first.setdefault(column, row)

    def check(self) -> None:
        """Raise MalformedFile when a column has the month first."""
        for column, row in self._month_first.items():
            if column not in self._day_first:
                raise MalformedFile(
                    f"column {column} has the month before the day, as row {row} shows: "
                    "dates are 31/01/2026 or 2026-01-31"
                )


class _ChildFields(Fields):
    """One row of a child list."""

    def __init__(self, values: Mapping[str, str], number: int, order: DateOrder) -> None:
        super().__init__(values)
        self._number = number
        self._order = order
        self.is_old_style = False
        """Whether the row has an NHS number from before 1996."""

    def day(self, name: str) -> date:
        """A date like 2026-01-31 or, day first, 31/01/2026."""
        text = _MIDNIGHT.sub("", self.required(name))
        written = _DAY_FIRST.fullmatch(text)
        try:
            if written is None:
                return date.fromisoformat(text)
            first, second, year = int(written[1]), int(written[3]), int(written[4])
            self._order.note(name, first, second, self._number)
            return date(year, second, first)
        except ValueError:
            self.refuse(name, _advise_on_day(text))
            return date.min

    def nhs_number(self, name: str) -> NhsNumber:
        """A valid NHS number."""
        text = self.required(name)
        number = parse_nhs_number(text)
        if number is None:
            self.is_old_style = is_old_style_number(text)
            self.refuse(name, _advise_on_number(text))
        return number or NhsNumber("")

    def whole(self, name: str) -> str:
        """A text that no spreadsheet has rounded."""
        text = self.required(name)
        if _ROUNDED.fullmatch(text) and "+" in text:
            self.refuse(name, "was rounded by a spreadsheet: format the column as text and enter it again")
        return text

    def reference(self, name: str) -> str | None:
        """A text that no spreadsheet has rounded, or None."""
        return self.whole(name) if self.optional(name) is not None else None

    def legal_basis(self, name: str) -> LegalBasis | None:
        """A section of the Children Act 1989, or None."""
        text = self.optional(name)
        if text is None:
            return None
        section = text.casefold().removeprefix("section").lstrip("s. ")
        if f"s{section}" not in {basis.value for basis in LegalBasis}:
            self.refuse(name, "must be one of " + ", ".join(basis.value for basis in LegalBasis))
            return None
        return LegalBasis(f"s{section}")


class AuthorityLine(msgspec.Struct, frozen=True, kw_only=True):
    """An authority with the secrets its file gave; empty ones are made by the broker."""

    authority: Authority
    webhook_secret: str | None
    topic_secret: str | None
    list_credential: str | None
    """With which its own system sends the list; ``new``: one is to be made."""


class WorkerLine(msgspec.Struct, frozen=True, kw_only=True):
    """A worker, with a login when the file gives one."""

    worker: Worker
    login: str | None
    role: Role
    password: str | None
    reach: Reach = Reach()


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


def read_children(file: bytes | BinaryIO) -> Rows[ChildListEntry]:
    """One entry or ChildRowProblem per row of a child list. Raises MalformedFile, at once or on the way.

    Nothing may be done with the rows before the last one was read: only then is it known that the file is one.
    """
    return _compose_children(read_table(file, _CHILD_COLUMNS))


def compose_child(number: int, values: Mapping[str, str], order: DateOrder) -> ChildListEntry | ChildRowProblem:
    """The entry that stands in a row under these names of columns, or why there is none."""
    fields = _ChildFields(values, number, order)
    entry = _child(fields)
    if not fields.problems:
        return entry
    code = RecordCode.OLD_STYLE_NUMBER if fields.is_old_style else RecordCode.NOT_LOADED
    return _refuse_child(tell_problems(number, fields.problems), code, values)


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


def _compose_children(rows: Iterator[CsvRow]) -> Rows[ChildListEntry]:
    order = DateOrder()
    for row in rows:
        if row.has_surplus:
            problem = RowProblem(row=row.number, field="row", advice=SURPLUS_ADVICE)
            yield row.number, _refuse_child(problem, RecordCode.NOT_LOADED, row.values)
        else:
            yield row.number, compose_child(row.number, row.values, order)
    order.check()


def _refuse_child(problem: RowProblem, code: RecordCode, values: Mapping[str, str]) -> ChildRowProblem:
    local_id = (values.get("local_id") or "").strip()[:FIELD_CHARACTERS_MAX]
    return ChildRowProblem(
        row=problem.row, field=problem.field, advice=problem.advice, code=code, local_id=local_id or None
    )


def _advise_on_day(text: str) -> str:
    if text.isascii() and text.isdigit() and len(text) == 5:
        return "is a spreadsheet's number of a day: format the column as a date"
    if _SHORT_YEAR.fullmatch(text):
        return "must have the year in four digits, like 31/01/2026"
    return "must be a date like 2026-01-31 or 31/01/2026"


def is_old_style_number(text: str) -> bool:
    """Whether this is written like an NHS number from before 1996, which is answered with a code of its own."""
    return _OLD_STYLE_NUMBER.fullmatch(text) is not None


def _advise_on_number(text: str) -> str:
    """Why this is no NHS number."""
    digits = "".join(text.split())
    if is_old_style_number(text):
        return OLD_STYLE_ADVICE
    if _ROUNDED.fullmatch(digits):
        return "was rounded by a spreadsheet: format the column as text and enter it again"
    if digits.isascii() and digits.isdigit() and len(digits) == 9:
        return "has nine digits: a spreadsheet may have dropped a 0 in front; format the column as text"
    return NUMBER_ADVICE


def _child(fields: _ChildFields) -> ChildListEntry:
    nhs_number = fields.nhs_number("nhs_number")
    start_on, end_on = fields.day("start_date"), fields.optional_day("end_date")
    if end_on is not None and end_on < start_on and fields.are_right("start_date", "end_date"):
        fields.refuse("end_date", "must not be before the start date")
    plan_type = PlanType(fields.one_of("plan_type", [plan.value for plan in PlanType]))
    legal_basis = fields.legal_basis("legal_basis")
    if legal_basis is not None and plan_type is not PlanType.LOOKED_AFTER and fields.are_right("plan_type"):
        fields.refuse("legal_basis", f"belongs to {PlanType.LOOKED_AFTER.value} only")
    return ChildListEntry(
        local_id=fields.whole("local_id"),
        nhs_number=nhs_number,
        name=PersonName(family=fields.required("family_name"), given=fields.optional("given_name") or ""),
        birth_date=fields.day("birth_date"),
        plan_type=plan_type,
        start_on=start_on,
        end_on=end_on,
        postcode=fields.optional("postcode"),
        allocated_worker=fields.optional("worker"),
        team=fields.optional("team"),
        deleted_on=fields.optional_day("delete_date"),
        legal_basis=legal_basis,
        household=fields.reference("household"),
    )


def _authority(fields: Fields) -> AuthorityLine:
    hours = fields.optional("office_hours") or OFFICE_HOURS_USUAL
    if parse_office_hours(hours) is None:
        fields.refuse("office_hours", "must be hours like Mon-Thu 09:00-17:00 Fri 09:00-16:30")
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
        list_credential=fields.optional("list_credential"),
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
        reach=Reach(mailbox=fields.mailbox("mailbox"), mobile=fields.mobile("mobile")),
    )


def _site(fields: Fields) -> SiteLine:
    reply_host, reply_port = fields.optional("reply_host"), fields.port("reply_port")
    if (reply_host is None) != (reply_port is None):
        missing = "reply_host" if reply_host is None else "reply_port"
        fields.refuse(missing, "is missing: reply_host and reply_port belong together")
    settings = [setting.value for setting in CareSetting]
    setting = fields.one_of("care_setting", settings) if fields.optional("care_setting") else settings[0]
    is_suppressed = fields.flag("notices_suppressed")
    if is_suppressed and setting != CareSetting.SEXUAL_HEALTH and fields.are_right("care_setting"):
        fields.refuse("notices_suppressed", "may be yes only where care_setting is sexual_health")
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
            registers_by=_registering(fields, fields.words("registers_by")),
        ),
        credential=fields.optional("credential"),
        topic_secret=fields.optional("topic_secret"),
        reply_credential=fields.bearer_token("reply_credential"),
    )


_REGISTERING: Final = (Event.REGISTERED, Event.ADMITTED, Event.PERSON_ADDED, Event.UPDATED)


def _registering(fields: Fields, words: Sequence[str]) -> tuple[Event, ...]:
    known = {event.value: event for event in _REGISTERING}
    named = [word.upper() for word in words]
    if not set(named) <= known.keys():
        fields.refuse("registers_by", "must be of A04, A01, A28 and A08, with spaces between")
    return tuple(known[word] for word in named if word in known)


def _clinician(fields: Fields) -> ClinicianLine:
    return ClinicianLine(
        login=fields.required("login"),
        name=fields.required("name"),
        organisation=fields.ods_code("organisation"),
        password=fields.optional("password"),
    )
