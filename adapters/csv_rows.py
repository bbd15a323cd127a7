"""Rows of CSV files (RFC 4180, UTF-8 with or without a byte order mark), and their fields, each asked for by name.

Files that a spreadsheet saved are read too: with semicolons or tabs, and empty rows at the end. They are read as a
stream: what stands in memory is one row.

A bad row never loses the good ones: it comes back with its row number, its fields and how to mend them, without the
values.
"""

from __future__ import annotations

import csv
import io
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, time
from itertools import chain
from typing import BinaryIO, Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec

from adapters.errors import MalformedFile
from schemas.identifiers import SchoolUrn, parse_ods_code, parse_school_urn

Row = TypeVar("Row")
FIELD_CHARACTERS_MAX: Final = 500
SURPLUS_ADVICE: Final = "has more fields than the header"
"""Of the row: nobody knows which of its fields stand under their own names."""
LINE_CHARACTERS_MAX: Final = 150_000
BLANK_LINES_MAX: Final = 10_000
_FORMULA: Final = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_DELIMITERS: Final = ",;\t"
_NOT_UTF8: Final = re.compile("[\udc80-\udcff]")
_CLOCK: Final = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]", re.ASCII)
_BEARER_TOKEN: Final = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
MAILBOX: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@([A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,63}", re.ASCII)
PRIVATE_PROVIDERS: Final = frozenset(
    {"aol", "btinternet", "gmail", "googlemail", "gmx", "hotmail", "icloud", "live", "mail", "me", "msn", "outlook"}
    | {"proton", "protonmail", "sky", "talktalk", "virginmedia", "yahoo", "ymail"}
)
_MOBILE: Final = re.compile(r"0?7[1-57-9][0-9]{8}", re.ASCII)


class RowProblem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a row was refused. ``row`` counts the header as 1; ``advice`` never holds the value.

    Where more than one field is to be mended, ``field`` is the first, and ``advice`` goes on to the others by name.
    """

    row: int
    field: str
    advice: str


class Fields:
    """One row's fields, each asked for by name.

    What is not as it must be is noted, and something stands in for it that nobody sees: so that whoever mends the row
    is told of all its fields at once. What was composed of a row with ``problems`` must be thrown away.
    """

    def __init__(self, values: Mapping[str, str], characters_max: int = FIELD_CHARACTERS_MAX) -> None:
        self._values = values
        self._characters_max = characters_max
        self.problems: dict[str, str] = {}
        """How to mend each field that is not as it must be, in the order in which they were asked for."""

    def refuse(self, name: str, advice: str) -> None:
        """Note that a field is not as it must be; what was said of it first stands."""
        self.problems.setdefault(name, advice)

    def take_problems(self) -> dict[str, str]:
        """What was noted, for a row that is composed in spite of it."""
        taken, self.problems = self.problems, {}
        return taken

    def are_right(self, *names: str) -> bool:
        """Whether nothing was noted of these fields: only then can they be compared."""
        return not self.problems.keys() & set(names)

    def optional(self, name: str) -> str | None:
        """The text of a field without the blanks around it; None where there is none."""
        text = (self._values.get(name) or "").strip()
        if len(text) > self._characters_max or "\x00" in text:
            self.refuse(name, f"must be plain text of at most {self._characters_max} characters")
            return None
        if not text.isascii() and _NOT_UTF8.search(text):
            self.refuse(name, "has letters that are not UTF-8: save the file as CSV UTF-8")
            return None
        return text or None

    def required(self, name: str) -> str:
        """A text that must be there."""
        text = self.optional(name)
        if text is None:
            self.refuse(name, "is missing")
        return text or ""

    def day(self, name: str) -> date:
        """A date like 2026-01-31."""
        try:
            return date.fromisoformat(self.required(name))
        except ValueError:
            self.refuse(name, "must be a date like 2026-01-31")
            return date.min

    def optional_day(self, name: str) -> date | None:
        """A date, or None where there is none."""
        return self.day(name) if self.optional(name) else None

    def ods_code(self, name: str) -> str:
        """An ODS code, in capitals."""
        code = parse_ods_code(self.required(name))
        if code is None:
            self.refuse(name, "must be an ODS code of 3 to 10 letters and digits")
        return code or ""

    def port(self, name: str) -> int | None:
        """A port number, or None."""
        text = self.optional(name)
        if text is None:
            return None
        if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
            self.refuse(name, "must be a port number")
            return None
        return int(text)

    def networks(self, name: str) -> tuple[str, ...]:
        """Networks with blanks between them."""
        words = self.words(name)
        try:
            for word in words:
                ipaddress.ip_network(word, strict=False)
        except ValueError:
            self.refuse(name, "must be networks like 10.1.0.0/16, with spaces between them")
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
            self.refuse(name, "must be an address like https://alerts.example.org/path")
        return text

    def bearer_token(self, name: str) -> str | None:
        """A bearer token (RFC 6750), or None."""
        text = self.optional(name)
        if text is not None and not _BEARER_TOKEN.fullmatch(text):
            self.refuse(name, "must be a bearer token: letters, digits and -._~+/, with = at the end (RFC 6750)")
        return text

    def mobile(self, name: str) -> str | None:
        """A mobile number of the United Kingdom as E.164, or None (Ofcom's numbering plan: 071-075, 077-079)."""
        written = self.optional(name)
        if written is None:
            return None
        digits = re.sub(r"[ ()-]", "", written).removeprefix("+44").removeprefix("0044")
        if not _MOBILE.fullmatch(digits):
            self.refuse(name, "must be a mobile number like 07700 900123, or empty")
        return f"+44{digits.removeprefix('0')}"

    def mailbox(self, name: str) -> str | None:
        """One mailbox at work, or None."""
        written = self.optional(name)
        if written is None:
            return None
        provider = written.casefold().rpartition("@")[2].split(".")
        if not MAILBOX.fullmatch(written) or PRIVATE_PROVIDERS.intersection(provider):
            self.refuse(name, "must be one mailbox at work like duty@authority.example.org, or empty")
        return written

    def flag(self, name: str, *, unsaid: bool = False) -> bool:
        """Yes or no; ``unsaid`` where the field is empty."""
        text = (self.optional(name) or ("yes" if unsaid else "no")).casefold()
        if text not in _FLAGS:
            self.refuse(name, "must be yes or no")
        return _FLAGS.get(text, unsaid)

    def words(self, name: str) -> tuple[str, ...]:
        """Words with blanks between them."""
        return tuple((self.optional(name) or "").split())

    def one_of(self, name: str, known: Sequence[str]) -> str:
        """One of the words known."""
        text = self.required(name)
        if text not in known:
            self.refuse(name, "must be one of " + ", ".join(known))
            return known[0]
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
            self.refuse(name, "must be a URN of six digits")
        return urn or SchoolUrn("")

    def optional_school_urn(self, name: str) -> SchoolUrn | None:
        """The unique reference number of an establishment, or None."""
        return self.school_urn(name) if self.optional(name) else None

    def clock(self, name: str) -> time | None:
        """A time of day like 08:30, or None."""
        text = self.optional(name)
        if text is None:
            return None
        if not _CLOCK.fullmatch(text):
            self.refuse(name, "must be a time of day like 08:30")
            return None
        return time.fromisoformat(text)


_FLAGS: Final = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


Rows = Iterator[tuple[int, Row | RowProblem]]
"""What stands in each row, with the row's number as a spreadsheet shows it: the header is 1, blank lines count."""


class CsvRow(NamedTuple):
    """One row under the names of its columns; ``has_surplus``: it has more fields than the header."""

    number: int
    values: Mapping[str, str]
    has_surplus: bool


def read_csv(
    file: bytes | BinaryIO,
    columns: Sequence[str],
    compose: Callable[[Fields], Row],
    *,
    characters_max: int = FIELD_CHARACTERS_MAX,
) -> Rows[Row]:
    """One noun or problem per row; ``columns`` must be there. Raises MalformedFile, at once or on the way."""
    return _compose_rows(read_table(file, columns), compose, characters_max)


def read_table(file: bytes | BinaryIO, columns: Sequence[str]) -> Iterator[CsvRow]:
    """The rows with anything in them; ``columns`` must be there. Raises MalformedFile, at once or on the way."""
    rows = _read_rows(io.BytesIO(file) if isinstance(file, bytes) else file, columns)
    _, written = next(rows, (1, []))
    if any(_NOT_UTF8.search(column) for column in written):
        raise MalformedFile("the file is not CSV in UTF-8")
    header = [_name_column(column) for column in written]
    missing = [column for column in columns if column not in header]
    if missing:
        raise MalformedFile("the file has no column " + ", ".join(missing))
    named = [column for column in header if column]
    if len(set(named)) < len(named):
        raise MalformedFile("two columns of the file have the same name")
    return (CsvRow(number, dict(zip(header, row, strict=False)), any(row[len(header) :])) for number, row in rows)


def _name_column(written: str) -> str:
    return "_".join(written.casefold().split())


def _read_rows(file: BinaryIO, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    number = 0
    # What is no UTF-8 stays visible in its field, so that one letter costs one row.
    text = io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="")
    try:
        lines = _read_lines(text)
        blank, first = _find_first(lines)
        delimiter = _find_delimiter(first, columns)
        told = first.casefold().startswith("sep=")
        reader = csv.reader(chain(blank, () if told else (first,), lines), delimiter=delimiter, strict=True)
        for number, row in enumerate(reader, 1):
            if any(row):
                yield number, row
    except csv.Error as error:
        raise MalformedFile(f"row {number + 1} is not CSV") from error


def _read_lines(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(LINE_CHARACTERS_MAX):
        if len(line) == LINE_CHARACTERS_MAX:
            raise csv.Error("line too long")
        yield line


def _find_first(lines: Iterator[str]) -> tuple[list[str], str]:
    """The first line with anything in it, and those before."""
    blank: list[str] = []
    for line in lines:
        if line.strip():
            return blank, line
        blank.append(line)
        if len(blank) > BLANK_LINES_MAX:
            break
    return blank, ""


def _find_delimiter(first: str, columns: Sequence[str]) -> str:
    """What separates the names of the columns; a spreadsheet may say it in a first line of its own (``sep=;``)."""
    if first.casefold().startswith("sep=") and first[4:5] in tuple(_DELIMITERS):
        return first[4]

    def count_known(delimiter: str) -> int:
        return sum(_name_column(name.strip('" \r\n')) in columns for name in first.split(delimiter))

    return max(_DELIMITERS, key=count_known)


def _compose_rows(rows: Iterator[CsvRow], compose: Callable[[Fields], Row], characters_max: int) -> Rows[Row]:
    for row in rows:
        if row.has_surplus:
            yield row.number, RowProblem(row=row.number, field="row", advice=SURPLUS_ADVICE)
            continue
        fields = Fields(row.values, characters_max)
        composed = compose(fields)
        yield row.number, tell_problems(row.number, fields.problems) if fields.problems else composed


def tell_problems(number: int, problems: Mapping[str, str]) -> RowProblem:
    """All that is to be mended in a row: the first field as such, the others in its advice."""
    (field, advice), *others = problems.items()
    return RowProblem(row=number, field=field, advice="; ".join([advice, *(" ".join(each) for each in others)]))


# Writing


def write_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A CSV file that a spreadsheet opens without calculating anything of it (UTF-8 with a byte order mark).

    What would begin a formula stands behind an apostrophe (OWASP, CSV injection).
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_defuse(value) for value in row] for row in rows)
    return text.getvalue().encode("utf-8-sig")


def _defuse(value: object) -> str:
    said = "" if value is None else str(value)
    is_formula = not isinstance(value, int | float) and said.lstrip().startswith(_FORMULA)
    return f"'{said}" if is_formula or said.startswith(("\t", "\r", "\n")) else said
