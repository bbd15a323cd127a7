"""What HL7 v2 itself says against a message, for the person who opens a quarantined one: hl7apy's findings.

hl7apy quotes values. Nothing of that leaves here: each finding is worded anew from the names of segments, fields and
data types that the standard has. It is slow and gives up easily, which is why no message is ever handled by it.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec
from hl7apy import load_library
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.exceptions import UnsupportedVersion, ValidationError
from hl7apy.parser import parse_message
from hl7apy.validation import Validator

from adapters.er7 import decode_text


class ConformanceLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of a check. The slowest message of ``message_bytes_max`` that was found takes 3 seconds."""

    message_bytes_max: int = 32_768
    segments_max: int = 300
    findings_max: int = 50
    timeout_s: float = 10.0


_DEFAULT_LIMITS: Final = ConformanceLimits()
_RESIDUE: Final = "\x0b\x1c\r\n\t \ufeff"
_WORDINGS: Final[Mapping[re.Pattern[str], str]] = MappingProxyType(
    {
        re.compile(r"Error: Missing required child (?P<parent>\w+)\.(?P<child>\w+)"): "{where} is required and missing",
        re.compile(r"Error: Child limit exceeded (?P<parent>\w+)\.(?P<child>\w+)"): (
            "{where} is there more often than allowed"
        ),
        re.compile(r"Warning: Value .* not in table (?P<table>HL7\d{4}) in element (?P<parent>\w+)\.(?P<child>\w+)"): (
            "{where} holds a value that table {table} does not have"
        ),
        re.compile(r"Error: Datatype .* is not correct for (?P<parent>\w+)\.(?P<child>\w+) \(it must be \w+\)"): (
            "{where} has more parts than its data type"
        ),
        re.compile(r"Error: Invalid children detected for <\w+ (?P<parent>\w+)\b.*"): (
            "{where} holds parts that the standard does not have"
        ),
        re.compile(
            r"Error: (?:Unknown|Invalid) element found: .*"
        ): "it holds something that the standard does not have",
    }
)


def find_conformance_issues(message: bytes, limits: ConformanceLimits = _DEFAULT_LIMITS) -> tuple[str, ...]:
    """What hl7apy finds in an HL7 v2 message, as sentences that name segments and fields and never contents.

    Empty when it finds nothing. Never raises; what it cannot check, one sentence says.
    """
    if len(message) > limits.message_bytes_max:
        return (f"longer than {limits.message_bytes_max} bytes: not checked",)
    found: list[str] = []
    # A thread, for it cannot be interrupted: one that takes too long ends by itself, the limits see to that.
    check = threading.Thread(target=lambda: found.extend(_check(message, limits)), daemon=True)
    check.start()
    check.join(limits.timeout_s)
    if check.is_alive():
        return (f"not checked within {limits.timeout_s:g} seconds",)
    return tuple(dict.fromkeys(found))[: limits.findings_max]


def _check(message: bytes, limits: ConformanceLimits) -> list[str]:
    try:
        # Values are of no interest: without what is not ASCII they have the same length and go through any pipe.
        text = decode_text(message).strip(_RESIDUE).encode("ascii", "replace").decode()
        segments = [line for line in re.split(r"[\r\n]+", text) if line]
        if len(segments) > limits.segments_max:
            return [f"more than {limits.segments_max} segments: not checked"]
        parsed = parse_message("\r".join(segments) + "\r", validation_level=VALIDATION_LEVEL.TOLERANT)
        library = load_library(parsed.version)
        return [*_name_unknown(segments, library), *_word_report(_report(parsed), library)]
    except UnsupportedVersion:
        return ["MSH-12 does not name a version of HL7 v2 that can be checked"]
    except Exception as error:
        return [f"hl7apy cannot read it ({type(error).__name__})"]


def _report(parsed: Any) -> str:
    """All that hl7apy has to say. It writes that to a file by its path, here to a pipe: no value reaches a disk."""
    reading, writing = os.pipe()
    said: list[bytes] = []
    with open(reading, "rb") as pipe:  # noqa: PTH123 - a pipe has no path
        reader = threading.Thread(target=lambda: said.append(pipe.read()))
        reader.start()
        try:
            with contextlib.suppress(ValidationError):
                Validator.validate(parsed, report_file=f"/dev/fd/{writing}")
        finally:
            os.close(writing)
            reader.join()
    return b"".join(said).decode("ascii", "replace")


def _name_unknown(segments: list[str], library: Any) -> Iterator[str]:
    unknown = sum(1 for line in segments if line[:3] not in library.SEGMENTS and not line.startswith("Z"))
    if unknown:
        yield f"segments that HL7 {library.__name__.rpartition('.v')[2].replace('_', '.')} does not have: {unknown}"


def _word_report(report: str, library: Any) -> Iterator[str]:
    for line in report.split("\n"):
        for pattern, wording in _WORDINGS.items():
            if (said := pattern.fullmatch(line)) is not None:
                names = said.groupdict()
                where = _where(names.get("parent", ""), names.get("child", ""), library)
                yield wording.format(**{**names, "where": where})
                break


def _where(parent: str, child: str, library: Any) -> str:
    """``PID-8``, ``OBX-3.1`` or ``segment PV1``; only names that the standard has."""
    if child in library.SEGMENTS:
        return f"segment {child}"
    if child and child in library.FIELDS:
        return child.replace("_", "-")
    if parent in library.FIELDS:
        part = child.rpartition("_")[2]
        return parent.replace("_", "-") + (f".{part}" if part.isdigit() else "")
    if parent in library.SEGMENTS:
        return f"segment {parent}"
    return "a part of a field"
