"""CSV for a spreadsheet: UTF-8 with a byte order mark, RFC 4180, and no cell that a spreadsheet would calculate."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Final

_CALCULATED: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A cell that begins so is a formula to some spreadsheet, also in full-width letters (OWASP, CSV injection)."""


def write_csv(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """The rows under their columns."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(columns)
    writer.writerows([make_safe(cell) for cell in row] for row in rows)
    return text.getvalue().encode("utf-8-sig")


def make_safe(cell: str) -> str:
    """The cell as text: an apostrophe stands before what would be calculated; controls become spaces."""
    plain = "".join(letter if letter.isprintable() else " " for letter in cell)
    # Whatever stands before it unseen (spaces, joiners, marks of direction) a spreadsheet may drop.
    is_calculated = cell.startswith(_CALCULATED) or plain.lstrip().startswith(_CALCULATED)
    return f"'{plain}" if is_calculated else plain
