"""Rows of CSV files (RFC 4180, UTF-8 with or without a byte order mark), and their fields, each asked for by name.

A bad row never loses the good ones: it comes back with its row number, its field and how to mend it, without the value.
"""

from __future__ import annotations

import csv
import io
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, time
from typing import Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from schemas.identifiers import SchoolUrn, parse_ods_code, parse_school_urn

Row = TypeVar("Row")
FIELD_CHARACTERS_MAX: Final = 500
_CLOCK: Final = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]", re.ASCII)
_BEARER_TOKEN: Final = re.compile(r"[A-Za-z0-9\-._~+/]+=*")


class RowProblem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a row was refused. ``row`` counts the header as 1; ``advice`` never holds the value."""

    row: int
    field: str
    advice: str


class MalformedFile(Exception):
    """The file as a whole cannot be read: nothing was taken from it."""


class FieldProblem(Exception):
    """One field that is not as it must be."""

    def __init__(self, field: str, advice: str) -> None:
        super().__init__(field)
        self.field = field
        self.advice = advice


class Fields:
    """One row's fields, each asked for by name. Every method raises FieldProblem."""

    def __init__(self, values: Mapping[str, str], characters_max: int = FIELD_CHARACTERS_MAX) -> None:
        self._values = values
        self._characters_max = characters_max

    def optional(self, name: str) -> str | None:
        """The text of a field without the blanks around it; None where there is none."""
        text = (self._values.get(name) or "").strip()
        if len(text) > self._characters_max or "\x00" in text:
            raise FieldProblem(name, f"must be plain text of at most {self._characters_max} characters")
        return text or None

    def required(self, name: str) -> str:
        """A text that must be there."""
        text = self.optional(name)
        if text is None:
            raise FieldProblem(name, "is missing")
        return text

    def day(self, name: str) -> date:
        """A date like 2026-01-31."""
        try:
            return date.fromisoformat(self.required(name))
        except ValueError as error:
            raise FieldProblem(name, "must be a date like 2026-01-31") from error

    def optional_day(self, name: str) -> date | None:
        """A date, or None where there is none."""
        return self.day(name) if self.optional(name) else None

    def ods_code(self, name: str) -> str:
        """An ODS code, in capitals."""
        code = parse_ods_code(self.required(name))
        if code is None:
            raise FieldProblem(name, "must be an ODS code of 3 to 10 letters and digits")
        return code

    def port(self, name: str) -> int | None:
        """A port number, or None."""
        text = self.optional(name)
        if text is None:
            return None
        if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
            raise FieldProblem(name, "must be a port number")
        return int(text)

    def networks(self, name: str) -> tuple[str, ...]:
        """Networks with blanks between them."""
        words = self.words(name)
        try:
            for word in words:
                ipaddress.ip_network(word, strict=False)
        except ValueError as error:
            raise FieldProblem(name, "must be networks like 10.1.0.0/16, with spaces between them") from error
        return words

    def web_address(self, name: str) -> str | None:
        """An http or https address without credentials, or None."""
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
            raise FieldProblem(name, "must be an address like https://alerts.example.org/path")
        return text

    def bearer_token(self, name: str) -> str | None:
        """A bearer token (RFC 6750), or None."""
        text = self.optional(name)
        if text is not None and not _BEARER_TOKEN.fullmatch(text):
            raise FieldProblem(name, "must be a bearer token: letters, digits and -._~+/, with = at the end (RFC 6750)")
        return text

    def flag(self, name: str, *, unsaid: bool = False) -> bool:
        """Yes or no; ``unsaid`` where the field is empty."""
        text = (self.optional(name) or ("yes" if unsaid else "no")).casefold()
        if text not in _FLAGS:
            raise FieldProblem(name, "must be yes or no")
        return _FLAGS[text]

    def words(self, name: str) -> tuple[str, ...]:
        """Words with blanks between them."""
        return tuple((self.optional(name) or "").split())

    def one_of(self, name: str, known: Sequence[str]) -> str:
        """One of the words known."""
        text = self.required(name)
        if text not in known:
            raise FieldProblem(name, "must be one of " + ", ".join(known))
        return text

    def optional_one_of(self, name: str, known: Sequence[str]) -> str | None:
        """One of the words known, or None where there is none."""
        return self.one_of(name, known) if self.optional(name) else None

    def optional_flag(self, name: str) -> bool | None:
        """Yes, no, or None where nobody said."""
        return self.flag(name) if self.optional(name) else None

    def school_urn(self, name: str) -> SchoolUrn:
        """The unique reference number of an establishment."""
        urn = parse_school_urn(self.required(name))
        if urn is None:
            raise FieldProblem(name, "must be a URN of six digits")
        return urn

    def optional_school_urn(self, name: str) -> SchoolUrn | None:
        """The unique reference number of an establishment, or None."""
        return self.school_urn(name) if self.optional(name) else None

    def clock(self, name: str) -> time | None:
        """A time of day like 08:30, or None."""
        text = self.optional(name)
        if text is None:
            return None
        if not _CLOCK.fullmatch(text):
            raise FieldProblem(name, "must be a time of day like 08:30")
        return time.fromisoformat(text)


_FLAGS: Final = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


Rows = Iterator[tuple[int, Row | RowProblem]]
"""What stands in each row, with the row's number as a spreadsheet shows it: the header is 1, blank lines count."""


def read_csv(
    file: bytes,
    columns: Sequence[str],
    compose: Callable[[Fields], Row],
    *,
    characters_max: int = FIELD_CHARACTERS_MAX,
) -> Rows[Row]:
    """One noun or problem per row; ``columns`` must be there. Raises MalformedFile, at once or on the way."""
    rows = _read_rows(file)
    _, header = next(rows, (1, []))
    missing = [column for column in columns if column not in header]
    if missing:
        raise MalformedFile("the file has no column " + ", ".join(missing))
    named = [column for column in header if column]
    if len(set(named)) < len(named):
        raise MalformedFile("two columns of the file have the same name")
    return _compose_rows(rows, header, compose, characters_max)


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
    rows: Iterator[tuple[int, list[str]]],
    header: Sequence[str],
    compose: Callable[[Fields], Row],
    characters_max: int,
) -> Rows[Row]:
    for number, row in rows:
        try:
            if len(row) > len(header):
                raise FieldProblem("row", "has more fields than the header")
            yield number, compose(Fields(dict(zip(header, row, strict=False)), characters_max))
        except FieldProblem as problem:
            yield number, RowProblem(row=number, field=problem.field, advice=problem.advice)
