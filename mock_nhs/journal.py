"""What one system of the outside believes, as JSON lines in a file that another program may read meanwhile.

Every line is one unbuffered append, so nothing is lost when the program is killed; nothing is flushed to disk, for
the machine itself is not what is tested. A torn last line is left out when the file is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Journal:
    """An append-only file of JSON lines, each with ``what`` it tells of."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("ab", buffering=0)
        if _is_torn(path):
            self._file.write(b"\n")

    def write(self, what: str, **facts: str | int | bool | list[str] | None) -> None:
        """Append one line."""
        line = json.dumps({"what": what, **facts}, ensure_ascii=False, separators=(",", ":"))
        self._file.write(line.encode() + b"\n")

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal, oldest first; a line that was torn by a kill is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                continue


def _is_torn(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
