"""Children's lists as JSON: one object with ``entries``, each an object of texts under the names of the CSV columns.

A bad entry never loses the good ones, as in CSV. A document that is no JSON, or has no ``entries``, is malformed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import BinaryIO, Final

import msgspec

from adapters.child_list_csv import ChildRowProblem, DateOrder, Rows, compose_child
from adapters.errors import MalformedFile
from schemas.child_list import ChildListEntry

VERSION: Final = 1


class VersionNotSupported(MalformedFile):
    """The document is of a version that is not read here: nothing was taken from it."""


class _Document(msgspec.Struct, frozen=True):
    entries: list[msgspec.Raw]
    version: int = VERSION


def read_children_json(file: bytes | BinaryIO) -> Rows[ChildListEntry]:
    """One entry or ChildRowProblem per entry, the first is number 1. Raises MalformedFile, at once or on the way."""
    content = file if isinstance(file, bytes) else file.read()
    try:
        document = msgspec.json.decode(content, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedFile("the file is not JSON with a list of entries") from None
    if document.version != VERSION:
        raise VersionNotSupported(f"only version {VERSION} of the file is read here")
    return _compose_entries(document.entries)


def _compose_entries(entries: list[msgspec.Raw]) -> Iterator[tuple[int, ChildListEntry | ChildRowProblem]]:
    decoder = msgspec.json.Decoder(Mapping[str, str | None])
    order = DateOrder()
    for number, entry in enumerate(entries, 1):
        try:
            values = decoder.decode(entry)
        except (msgspec.DecodeError, UnicodeDecodeError):
            advice = "must be an object of texts under the names of the columns"
            yield number, ChildRowProblem(row=number, field="row", advice=advice)
            continue
        yield number, compose_child(number, {name: text or "" for name, text in values.items()}, order)
    order.check()
