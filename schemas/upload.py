"""What an authority is answered for its child list: file codes, record codes, and every row that has to be mended.

Codes are those of CP-IS: the file by "CP-ISUploadFileResponse" (OID 2.16.840.1.113883.2.1.3.2.4.17.474, version 2.0),
a record by "CP-ISUploadRecordResponse" (17.473, version 3.0).
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class UploadKind(StrEnum):
    """What it means that somebody is not in the file."""

    CHANGES = "changes"
    """Nothing."""
    FULL = "full"
    """A difference, for a person to confirm."""


class UploadFormat(StrEnum):
    """What the file is."""

    CSV = "csv"
    JSON = "json"
    XML = "xml"
    """The CP-IS upload that case systems write (HL7 v3)."""


class UploadState(StrEnum):
    """What became of a file."""

    LOADED = "loaded"
    HELD = "held"
    """It would end or take back so many entries that a person decides first; nothing of it counts yet."""
    REFUSED = "refused"
    """Nothing was loaded."""
    TRIED = "tried"
    """A dry run: nothing was changed."""


class FileCode(StrEnum):
    """The answer for the file as a whole."""

    MALFORMED = "CPF01"
    ALL_LOADED = "CPF02"
    SOME_LOADED = "CPF03"
    NONE_LOADED = "CPF04"
    PDS_UNAVAILABLE = "CPF05"
    """Only where every record is traced before it is loaded: never for CSV and JSON."""
    VERSION_NOT_SUPPORTED = "CPF06"


class RecordCode(StrEnum):
    """The answer for one record. CPR01, CPR02, CPR03 and CPR05 are known only once the person was traced."""

    NOT_FOUND = "CPR01"
    RESTRICTED = "CPR02"
    NOT_VERIFIED = "CPR03"
    OLD_STYLE_NUMBER = "CPR04"
    SUPERSEDED = "CPR05"
    LOADED = "CPR06"
    NOT_LOADED = "CPR07"


class RowAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Why a row was not loaded. ``advice`` never holds the value."""

    code: RecordCode
    row: int
    """As a spreadsheet shows it: the header is 1. In JSON the first entry is 1."""
    field: str
    advice: str


class UploadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a file. CSV and JSON are loaded unverified, and traced later."""

    authority: str
    kind: UploadKind
    state: UploadState
    file_code: FileCode | None
    """None while the file is held; in a dry run, if it would be."""
    upload_id: str | None = None
    """Of the upload, or of the held one; None when nothing was kept."""
    loaded: int = 0
    """Entries that were read and now stand as the file says; in a dry run those that would."""
    changed: int = 0
    """Entries of these that are new or were changed."""
    ends: int = 0
    """Current entries that this file ends."""
    deletes: int = 0
    """Entries that it takes back as errors."""
    doubles: int = 0
    """New entries of people whom the list has under another ``local_id``, for the same plan type."""
    left_out: int = 0
    """Current entries that a full list does not have: each waits for a person, none is ended."""
    refused_count: int = 0
    refused: tuple[RowAnswer, ...] = ()
    """The rows that were not loaded, in their order; at most the first 10,000."""
    was_known: bool = False
    """This very file was loaded before; now the list counts as confirmed anew."""
    problem: str = ""
    """Why the file as a whole was refused or is held; empty when there is nothing to say."""
