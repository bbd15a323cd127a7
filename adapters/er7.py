"""ER7, the encoding rules of HL7 v2 (v2.4 chapter 2): separators, segments, escapes, character sets, times.

Pure functions between bytes and text. The bytes themselves are never rewritten: what is read here is a view.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import zip_longest
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

from adapters.errors import NotHl7, Unreadable

LONDON: Final = ZoneInfo("Europe/London")
_NULL: Final = '""'
_FIELDS_MAX: Final = 64
"""No segment this broker reads has more fields; what follows is not split."""
_COMPONENTS_MAX: Final = 16
_CENTURIES: Final = ("19", "20")


class Hl7v2Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a message may hold.

    Beyond it a message is Unreadable; names and texts are cut. Identifiers are not: two could become one.
    """

    message_bytes_max: int = 1_048_576
    segments_max: int = 2_000
    repetitions_max: int = 2_000
    identifier_characters_max: int = 250
    name_characters_max: int = 200
    names_max: int = 50
    text_characters_max: int = 1_000
    batch_messages_max: int = 1_000


DEFAULT_LIMITS: Final = Hl7v2Limits()


class Separators(msgspec.Struct, frozen=True):
    """The encoding characters a message declares in MSH-1 and MSH-2 (v2.4, 2.8)."""

    field: str = "|"
    component: str = "^"
    repetition: str = "~"
    escape: str = "\\"
    subcomponent: str = "&"


STANDARD: Final = Separators()
_STANDARD_HEADER: Final = "MSH|^~\\&|"


def read_separators(header_line: str) -> Separators:
    """The separators of a line that begins with ``MSH``. Raises NotHl7 when it names none for fields or components.

    A character that MSH-2 leaves out, or writes twice (``^~\\\\&``), has its usual value, or one not yet taken.
    """
    if header_line.startswith(_STANDARD_HEADER):
        return STANDARD
    field = header_line[3:4]
    declared = header_line[4:12].partition(field)[0] if field else ""
    if not (declared and _can_separate(field) and _can_separate(declared[0])):
        raise NotHl7("not_hl7", "MSH-1 and MSH-2 give no usable separators")
    taken = [field]
    distinct = [character for character in dict.fromkeys(declared) if _can_separate(character)]
    for usual, character in zip_longest("^~\\&", distinct[:4], fillvalue=""):
        spare = (character, usual, *"~\\&#^")
        taken.append(next(choice for choice in spare if choice and choice not in taken))
    return Separators(*taken)


def _can_separate(character: str) -> bool:
    return character.isprintable() and not character.isalnum() and not character.isspace()


# --- character sets -------------------------------------------------------------------------------------

_ISO_8859: Final = re.compile(r"(?:ISO[ _-]?)?8859[/_-]([0-9]{1,2})", re.ASCII)
_WINDOWS: Final = re.compile(r"(?:WINDOWS|CP)-?(125[0-8])", re.ASCII)


def decode_text(message: bytes, declared_charset: str = "") -> str:
    """The text of ``message``: UTF-8 if it is that, else as declared (MSH-18), else Windows-1252, else Latin-1.

    UTF-8 comes first because senders declare ASCII or 8859/1 and send UTF-8, whose multi-byte sequences
    hardly ever occur by chance in the others. Never fails.
    """
    for codec in ("utf-8", _codec_named(declared_charset), "cp1252"):
        try:
            return message.decode(codec)
        except UnicodeDecodeError:
            continue
    return message.decode("latin-1")


def _codec_named(charset: str) -> str:
    """The Python codec of an HL7 table 0211 name; 8859/1 is read as its superset Windows-1252."""
    name = charset.strip().upper()
    if (part := _ISO_8859.fullmatch(name)) and int(part[1]) in (*range(2, 12), 13, 14, 15, 16):
        return f"iso8859-{int(part[1])}"
    if part := _WINDOWS.fullmatch(name):
        return f"cp{part[1]}"
    return "cp1252"


# --- escapes --------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def _escape_sequence(escape: str) -> re.Pattern[str]:
    mark = re.escape(escape)
    formatting = r"\.(?:br|sp|ce|sk|ti|in|fi|nf)[+-]?[0-9]{0,3}"
    return re.compile(f"{mark}([FSTREHNP]|[XCMZ][0-9A-Fa-f]{{2,64}}|{formatting}){mark}")


def unescape(text: str, separators: Separators) -> str:
    """Replace the escape sequences of v2.4, 2.10; what is none (a path with backslashes) stays as it is."""
    meanings = {
        "F": separators.field,
        "S": separators.component,
        "T": separators.subcomponent,
        "R": separators.repetition,
        "E": separators.escape,
    }

    def meaning(sequence: re.Match[str]) -> str:
        body = sequence[1]
        if body[0] == "." and body[1:3] in ("br", "sp", "ce", "sk"):
            return "\n"
        if body[0] == "X" and len(body) % 2 == 1:
            return decode_text(bytes.fromhex(body[1:]))
        return meanings.get(body, "")

    return _escape_sequence(separators.escape).sub(meaning, text)


_CONTROLS: Final = dict.fromkeys((*range(32), *range(127, 160)))
_READ: Final = {**_CONTROLS, **dict.fromkeys(map(ord, "\t\n\x0b\x0c\r\x85\xa0\u2028\u2029"), " ")}
_WRITTEN: Final = {
    **_CONTROLS,
    **dict.fromkeys(map(ord, "\t\n\x0b\x0c\r\x85\u2028\u2029"), " "),
    ord("\\"): "\\E\\",
    ord("|"): "\\F\\",
    ord("^"): "\\S\\",
    ord("&"): "\\T\\",
    ord("~"): "\\R\\",
}


def escape(text: str) -> str:
    """``text`` as the content of a field with the standard separators; control characters are left out."""
    return text if text.isalnum() else text.translate(_WRITTEN)


def reencode(raw: str, separators: Separators) -> str:
    """A field as its sender encoded it, with the standard separators and no control characters."""
    if separators == STANDARD:
        return raw if raw.isprintable() else raw.translate(_CONTROLS)
    return "~".join(
        "^".join(
            "&".join(escape(unescape(part, separators)) for part in component.split(separators.subcomponent))
            for component in repetition.split(separators.component)
        )
        for repetition in raw.split(separators.repetition)
    )


# --- segments -------------------------------------------------------------------------------------------


class Message:
    """One message, decoded: its header and the first of each segment named beforehand.

    Segments end with CR, LF or CRLF, mixed as senders mix them. Fields and components are counted as the
    standard prints them, from 1 (MSH-1 too). As text, empty fields, white space and the HL7 null ``""`` (v2.4,
    2.8.2) are None, and control characters never appear.
    """

    __slots__ = ("_component", "_fields", "_limits", "_lines", "_repetition", "_text_max", "plain", "separators")

    def __init__(self, lines: Sequence[str], separators: Separators, *, plain: bool, limits: Hl7v2Limits) -> None:
        self.separators = separators
        self.plain = plain
        """Whether no text has to be unescaped or compared with null: so the usual message is read fast."""
        self._component = separators.component
        self._repetition = separators.repetition
        self._limits = limits
        self._text_max = limits.text_characters_max
        field = separators.field
        self._lines = lines
        self._fields = {line[:3]: line.split(field, _FIELDS_MAX) for line in reversed(lines)}
        self._fields["MSH"].insert(1, field)

    def fields(self, name: str) -> list[str]:
        """The fields as they stand; the first is the segment's name."""
        return self._fields.get(name, [])

    def count(self, name: str) -> int:
        """How many segments of that name there are."""
        if len(self._lines) == len(self._fields):
            return int(name in self._fields)
        return sum(line[:3] == name for line in self._lines)

    def nth(self, name: str, number: int) -> Message:
        """The header with the ``number``-th segment of that name alone, if there is one."""
        found = [line for line in self._lines if line[:3] == name][number - 1 : number]
        return Message([self._lines[0], *found], self.separators, plain=self.plain, limits=self._limits)

    def raw(self, name: str, number: int) -> str:
        """The field as it stands, in the sender's encoding; empty when it is missing."""
        fields = self._fields.get(name, ())
        return fields[number] if number < len(fields) else ""

    def text(self, name: str, number: int, component: int = 1) -> str | None:
        """One component of the field's first repetition, to be read by people or compared; cut to the limit."""
        fields = self._fields.get(name)
        if fields is None or number >= len(fields) or not (field := fields[number]):
            return None
        if self._repetition in field:
            field = field.partition(self._repetition)[0]
        if self._component in field:
            components = field.split(self._component, component)
            if component > len(components):
                return None
            field = components[component - 1]
        elif component > 1:
            return None
        if self.plain and len(field) <= self._text_max and field.isprintable():
            return field.strip() or None
        return self.clean(field)

    def identifier(self, name: str, number: int) -> str | None:
        """As ``text``, but whole. Raises Unreadable ``component_too_long``."""
        text = self.text(name, number)
        if text is not None and len(text) > self._limits.identifier_characters_max:
            raise Unreadable("component_too_long", f"{name}-{number} is too long")
        return text

    def namespace(self, name: str, number: int, component: int) -> str | None:
        """As ``text``, but the first subcomponent only: the name in a HD."""
        text = self.text(name, number, component)
        return self.first(text) if text else None

    def repetitions(self, name: str, number: int) -> list[list[str]]:
        """Each repetition of the field as its raw components. Raises Unreadable ``too_many_repetitions``."""
        fields = self._fields.get(name)
        if fields is None or number >= len(fields) or not (field := fields[number]):
            return []
        if self._repetition not in field:
            return [field.split(self._component, _COMPONENTS_MAX)]
        if field.count(self._repetition) >= self._limits.repetitions_max:
            raise Unreadable("too_many_repetitions", f"{name}-{number} repeats too often")
        repetitions = field.split(self._repetition)
        return [repetition.split(self._component, _COMPONENTS_MAX) for repetition in repetitions]

    def subcomponents(self, raw_component: str) -> list[str]:
        """The raw subcomponents of a raw component."""
        return raw_component.split(self.separators.subcomponent, _COMPONENTS_MAX)

    def first(self, raw_component: str) -> str | None:
        """The first subcomponent of a raw component: the name in a HD, the surname in a FN."""
        subcomponent = self.separators.subcomponent
        if subcomponent in raw_component:
            raw_component = raw_component.partition(subcomponent)[0]
        return self.clean(raw_component)

    def clean(self, raw: str) -> str | None:
        """A raw component as text: escapes replaced, control characters and outer white space removed; cut."""
        if len(raw) > self._text_max:
            raw = raw[: self._text_max]
        if self.plain and raw.isprintable():
            return raw.strip() or None
        if not raw or raw == _NULL:
            return None
        if self.separators.escape in raw:
            raw = unescape(raw, self.separators)
        if not raw.isprintable():
            raw = raw.translate(_READ)
        raw = raw.strip()
        return raw if raw and raw != _NULL else None


def read_header_line(line: str, limits: Hl7v2Limits) -> Message:
    """A message of which only the MSH segment is known. Raises NotHl7 when it has no usable separators."""
    separators = read_separators(line)
    return Message([line], separators, plain=_is_plain(line, separators), limits=limits)


def read_segment(line: str, limits: Hl7v2Limits) -> Message:
    """A message with the standard separators of which only this segment is known."""
    plain = '"' not in line and STANDARD.escape not in line
    return Message([_STANDARD_HEADER, line], STANDARD, plain=plain, limits=limits)


def read_segments(text: str, names: Collection[str], limits: Hl7v2Limits) -> Message:
    """The segments ``names`` of a message, by CR, LF or CRLF, mixed as senders mix them.

    Raises NotHl7 when MSH has no usable separators, and Unreadable ``too_many_segments``.
    """
    if "\n" in text:
        text = text.replace("\r\n", "\r").replace("\n", "\r")
    if len(text) > limits.segments_max and text.count("\r") >= limits.segments_max:
        raise Unreadable("too_many_segments", "the message has too many segments")
    separators = read_separators(text)
    first, *others = text.split("\r")
    field = separators.field
    lines = [first, *(line for line in others if line[:3] in names and line[3:4] == field)]
    return Message(lines, separators, plain=_is_plain(text, separators), limits=limits)


def _is_plain(text: str, separators: Separators) -> bool:
    return '"' not in text and text.find(separators.escape, 9) < 0


# --- times ----------------------------------------------------------------------------------------------

_HL7_TIME: Final = re.compile(
    r"([0-9]{8})([0-9]{4}.*)|([0-9]{4}-[0-9]{2}-[0-9]{2})[T ]([0-9]{2}:?[0-9]{2}.*)", re.ASCII
)
_HL7_DAY: Final = re.compile(r"([0-9]{8})(?:[0-9]{2}){0,3}(?:\.[0-9]{1,6})?(?:[+-][0-9]{2}:?[0-9]{2}|Z)?", re.ASCII)
_ISO_DAY: Final = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[T ].*)?", re.ASCII)


@lru_cache(maxsize=1024)
def parse_instant(text: str | None) -> datetime | None:
    """The instant of an HL7 time stamp (TS; v2.4, 2.9.47) in UTC; None when it is vaguer than the minute or no time.

    Without an offset it is Europe/London local time, as UK hospitals write it: of the hour that comes twice in
    October the first, and in the hour left out in March the time the clock would have shown without the change.
    ISO 8601 with hyphens is read too. Years outside 1900 to 2099 are refused.
    """
    if not text or text[:2] not in _CENTURIES:
        return None
    try:
        if len(text) == 14 and text.isdigit() and (offset := _london_offset(text[:8])) is not None:
            return datetime.fromisoformat(f"{text[:8]}T{text[8:]}+00:00") - offset
        parts = _HL7_TIME.fullmatch(text)
        moment = datetime.fromisoformat(f"{parts[1] or parts[3]}T{parts[2] or parts[4]}") if parts else None
    except ValueError:
        return None
    if moment is not None and moment.tzinfo is None:
        moment = moment.replace(tzinfo=LONDON)
    return moment.astimezone(UTC) if moment is not None else None


@lru_cache(maxsize=512)
def _london_offset(day: str) -> timedelta | None:
    """What London clocks are ahead of UTC on ``day``; None on the two days a year on which that changes."""
    midnight = datetime.combine(date.fromisoformat(day), datetime.min.time(), LONDON)
    offset = midnight.utcoffset()
    return offset if (midnight + timedelta(days=1)).utcoffset() == offset else None


def parse_day(text: str | None) -> date | None:
    """The calendar day of an HL7 date (DT or TS) as written; None when the day is not known or no day.

    A time of day and an offset are allowed and ignored. Whether anybody can be born then is not judged here.
    """
    if not text:
        return None
    if len(text) != 8 or not text.isdigit():
        written = _HL7_DAY.fullmatch(text) or _ISO_DAY.fullmatch(text)
        if written is None:
            return None
        text = written[1]
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def format_instant(moment: datetime) -> str:
    """``moment`` as TS: the London wall time with its offset, so that readers who ignore the offset are right too."""
    return _format_second(moment.astimezone(UTC).replace(microsecond=0))


@lru_cache(maxsize=64)
def _format_second(second: datetime) -> str:
    """Answers are many in a second, and London time is dear."""
    return second.astimezone(LONDON).strftime("%Y%m%d%H%M%S%z")


def format_day(day: date) -> str:
    """``day`` as DT."""
    return day.strftime("%Y%m%d")
