"""HL7 v2 as this side writes and reads it (v2.4, chapter 2), and the block it travels in (MLLP, release 1).

Written apart from the product's own reader and writer, so that two independent pieces of code must agree.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

BLOCK_START: Final = b"\x0b"
BLOCK_END: Final = b"\x1c\r"
BLOCK_BYTES_MAX: Final = 1_000_000

_ESCAPED: Final = {"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\"}
_LINE_BREAKS: Final = str.maketrans({"\r": " ", "\n": " "})


class NotUnderstood(Exception):
    """Bytes that are no HL7 v2 message or no MLLP block. Never carries contents."""


class Message:
    """An HL7 v2 message as read: fields by segment name and the number the standard prints."""

    def __init__(self, text: bytes) -> None:
        lines = text.decode("utf-8", "replace").replace("\r\n", "\r").replace("\n", "\r").split("\r")
        if not lines[0].startswith("MSH") or len(lines[0]) < 8:
            raise NotUnderstood("no message header")
        self._field, self._component, self._repetition, self._escape, self._part = list(lines[0][3:8])
        head = lines[0].split(self._field)
        head.insert(1, self._field)
        self._segments = [head, *(line.split(self._field) for line in lines[1:] if line)]

    def segments(self, name: str) -> list[list[str]]:
        """Every segment of that name, each a list whose item ``n`` is field ``n``."""
        return [segment for segment in self._segments if segment[0] == name]

    def field(self, name: str, number: int) -> str:
        """Field ``number`` of the first segment of that name, as written; empty when absent."""
        found = self.segments(name)
        return found[0][number] if found and len(found[0]) > number else ""

    def value(self, name: str, number: int, component: int = 1) -> str:
        """One component of a field's first repetition, with escapes undone."""
        return self.component(self.field(name, number), component)

    def component(self, field: str, number: int) -> str:
        """Component ``number`` of a field's first repetition, with escapes undone."""
        components = field.split(self._repetition, 1)[0].split(self._component)
        return self._unescape(components[number - 1]) if len(components) >= number else ""

    def text(self, field: str) -> str:
        """A field for a person to read: a line for each repetition, a space between components, escapes undone."""
        return "\n".join(
            " ".join(self._unescape(component) for component in repetition.split(self._component))
            for repetition in field.split(self._repetition)
        )

    def _unescape(self, text: str) -> str:
        meant = {
            "E": self._escape,
            "F": self._field,
            "S": self._component,
            "T": self._part,
            "R": self._repetition,
            ".br": "\n",
        }
        pieces = text.split(self._escape)
        if len(pieces) % 2 == 0:
            return text
        return "".join(meant.get(piece, "") if odd % 2 else piece for odd, piece in enumerate(pieces))


def escape(text: str) -> str:
    """``text`` with the five separators escaped (2.10) and line breaks made spaces."""
    return "".join(_ESCAPED.get(character, character) for character in text.translate(_LINE_BREAKS))


def write_segment(name: str, fields: Mapping[int, str]) -> str:
    """A segment from its fields by number; those of MSH begin at 3, after the separators."""
    first = 3 if name == "MSH" else 1
    values = [fields.get(number, "") for number in range(first, max(fields) + 1)]
    return "|".join([name, *(["^~\\&"] if name == "MSH" else []), *values])


def write_message(segments: Sequence[str]) -> bytes:
    """The message's bytes: UTF-8, every segment ended by a carriage return."""
    return "".join(segment + "\r" for segment in segments).encode()


def write_block(message: bytes) -> bytes:
    """The MLLP block around a message."""
    return BLOCK_START + message + BLOCK_END


async def read_block(reader: asyncio.StreamReader) -> bytes | None:
    """The next message, or None when the connection ended between blocks.

    Raises NotUnderstood for bytes outside a block, a block broken off, or one over the reader's limit.
    """
    try:
        block = await reader.readuntil(BLOCK_END)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise NotUnderstood("block broken off") from None
        return None
    except asyncio.LimitOverrunError:
        raise NotUnderstood("block too long") from None
    if not block.startswith(BLOCK_START):
        raise NotUnderstood("bytes outside a block")
    return block[len(BLOCK_START) : -len(BLOCK_END)]
