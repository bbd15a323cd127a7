"""The plain JSON of FHIR R4: parts of elements, whatever the sender put in their place, and references in a Bundle.

Nothing here fails or descends for data: a value of the wrong type is as if it were not there, and one object where
a list is due is a list of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from typing import Final, NamedTuple

from adapters.er7 import parse_day, parse_instant
from adapters.fhir_guard import Element

# --- parts ----------------------------------------------------------------------------------------------


_REPETITIONS_MAX: Final = 100
"""No element that is read here repeats more often in earnest; what follows is not looked at."""


def children(element: Element, name: str) -> list[Element]:
    """The objects in a repeating element."""
    value = element.get(name)
    if isinstance(value, list):
        return [item for item in value[:_REPETITIONS_MAX] if isinstance(item, dict)]
    return [value] if isinstance(value, dict) else []


def child(element: Element, name: str) -> Element:
    """The object in an element, or the first of several; empty if there is none."""
    return next(iter(children(element, name)), {})


def codings(concept: Element) -> list[Element]:
    """The Codings of a CodeableConcept, or a Coding itself."""
    return [*children(concept, "coding"), *([concept] if "code" in concept else [])]


_INTEGER_MAX: Final = 10**20
_BLANKS: Final = "\t\n\x0b\x0c\r\x85\xa0\u2028\u2029"
_READ: Final = {
    **dict.fromkeys((*range(32), *range(127, 160), *range(0xD800, 0xE000))),
    **dict.fromkeys(map(ord, _BLANKS), " "),
}


def clean(text: str, characters_max: int) -> str | None:
    """``text`` without control characters, halves of surrogate pairs and outer white space; cut; None if empty."""
    text = text[:characters_max]
    if not text.isprintable():
        text = text.translate(_READ)
    return text.strip() or None


def read_text(element: Element, name: str, characters_max: int) -> str | None:
    """A primitive as text. A number is taken where a text is due: some senders leave the quotation marks out."""
    value = element.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _INTEGER_MAX:
        return str(value)
    return clean(value, characters_max) if isinstance(value, str) else None


def read_identifier(element: Element, name: str, characters_max: int) -> str | None:
    """As ``read_text``, but never cut: None if it is too long, for two could become one."""
    text = read_text(element, name, characters_max + 1)
    return text if text and len(text) <= characters_max else None


def read_texts(element: Element, name: str, characters_max: int) -> list[str]:
    """The texts of a repeating primitive."""
    value = element.get(name)
    items = value[:_REPETITIONS_MAX] if isinstance(value, list) else [value]
    texts = (clean(item, characters_max) for item in items if isinstance(item, str))
    return [text for text in texts if text]


_CODE_CHARACTERS_MAX: Final = 200
_TIME_CHARACTERS_MAX: Final = 40


def read_code(element: Element, name: str = "code") -> str:
    """A code, URI or other short word as written; empty when there is none."""
    return read_text(element, name, _CODE_CHARACTERS_MAX) or ""


def read_instant(element: Element, name: str) -> datetime | None:
    """A dateTime or instant in UTC; None if it is vaguer than the minute.

    FHIR demands an offset with a time (R4, 2.24.0.1). Without one it is London's time, as in HL7 v2.
    """
    return parse_instant(read_text(element, name, _TIME_CHARACTERS_MAX))


def read_day(element: Element, name: str) -> date | None:
    """A date; None unless the day is known."""
    return parse_day(read_text(element, name, _TIME_CHARACTERS_MAX))


# --- systems --------------------------------------------------------------------------------------------

_V2_TABLE: Final = re.compile(r"(?:^|[/-]|:)v2[/-]([0-9]{4})$|:2\.16\.840\.1\.113883\.12\.([0-9]{1,4})$", re.ASCII)


def read_system(coded: Element) -> str:
    """The ``system`` of a Coding or Identifier in small letters, ``http`` for ``https``: senders write either."""
    system = read_code(coded, "system").lower().rstrip("/")
    return f"http{system[5:]}" if system.startswith("https:") else system


def is_of_v2_table(coding: Element, table: str) -> bool:
    """Whether a Coding is of an HL7 v2 table, ``0003``, under any of the systems that table has been given."""
    found = _V2_TABLE.search(read_system(coding))
    return found is not None and (found[1] or found[2].zfill(4)) == table


# --- resources and references ---------------------------------------------------------------------------


class Resource(NamedTuple):
    """A resource of a Bundle, or one contained in another."""

    kind: str
    element: Element
    number: int
    """Of its entry, from 0."""
    expression: str


_RELATIVE: Final = re.compile(r"([A-Za-z]{1,40}/[A-Za-z0-9.-]{1,64})(?:/_history/[A-Za-z0-9.-]{1,64})?", re.ASCII)
_URL_END: Final = re.compile(r"https?://.*/([A-Za-z]{1,40}/[A-Za-z0-9.-]{1,64})", re.ASCII)
_URL_CHARACTERS_MAX: Final = 2_000


class Entries:
    """The resources of a Bundle, which may refer to each other. Nothing is ever fetched from outside.

    ``read`` collects the numbers of the entries that were looked at for the attendance.
    """

    __slots__ = ("_by_address", "_resources", "read")

    def __init__(self, entries: Sequence[object]) -> None:
        self.read: set[int] = set()
        self._resources: list[Resource] = []
        self._by_address: dict[str, Resource | None] = {}
        for number, entry in enumerate(entries):
            if isinstance(entry, dict) and read_code(child(entry, "request"), "method") != "DELETE":
                self._add(number, entry)

    def _add(self, number: int, entry: Element) -> None:
        element = child(entry, "resource")
        kind = read_code(element, "resourceType")
        if not kind:
            return
        resource = Resource(kind, element, number, f"Bundle.entry[{number}].resource")
        self._resources.append(resource)
        url = entry.get("fullUrl")
        url = url[:_URL_CHARACTERS_MAX] if isinstance(url, str) else ""
        end = _URL_END.fullmatch(url)
        own = element.get("id")
        addresses = {url, end[1] if end else "", f"{kind}/{own}" if isinstance(own, str) else ""}
        for address in addresses - {""}:
            other = self._by_address.setdefault(_fold(address), resource)
            if other is not resource and (other is None or other.element != element):
                self._by_address[_fold(address)] = None  # two resources answer to it: neither is meant for certain

    def of_kind(self, kind: str) -> list[Resource]:
        """All of one type, in order, contained ones not."""
        return [resource for resource in self._resources if resource.kind == kind]

    def resolve(self, reference: Element, holder: Resource) -> Resource | None:
        """What a Reference that stands in ``holder`` points to: contained (``#id``), ``Type/id``, or a fullUrl."""
        target = reference.get("reference")
        if not isinstance(target, str) or len(target) > _URL_CHARACTERS_MAX:
            return None
        target = target.strip()
        if target.startswith("#"):
            return next((part for part in contained_in(holder) if part.element.get("id") == target[1:]), None)
        found = self._by_address.get(_fold(target))
        if found is None and (relative := _RELATIVE.fullmatch(target)):
            found = self._by_address.get(relative[1])
        return found

    def follow(self, element: Element, name: str, holder: Resource) -> Resource | None:
        """As ``resolve``, for the element ``name``; what is found counts as read."""
        found = self.resolve(child(element, name), holder)
        if found is not None:
            self.read.add(found.number)
        return found


def contained_in(holder: Resource) -> Iterator[Resource]:
    """The resources contained in another."""
    for position, element in enumerate(children(holder.element, "contained")):
        expression = f"{holder.expression}.contained[{position}]"
        yield Resource(read_code(element, "resourceType"), element, holder.number, expression)


def _fold(address: str) -> str:
    """UUIDs are the same in capitals and small letters (RFC 4122)."""
    return address.lower() if address[:9].lower() == "urn:uuid:" else address
