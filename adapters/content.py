"""What a message on the log is: HL7 v2 or FHIR. Foreign producers leave the header out, or write the wrong one."""

from __future__ import annotations

from typing import Final, Literal

ContentKind = Literal["hl7v2", "fhir"]

_RESIDUE: Final = b"\x0b\x1c\r\n\t "
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_BEGINNING_BYTES: Final = 4096


def sniff_content(body: bytes) -> ContentKind:
    """What the bytes themselves say, whatever stands beside them: a JSON object is FHIR, all else is read as HL7 v2."""
    beginning = body[:_BEGINNING_BYTES].removeprefix(_BYTE_ORDER_MARK).lstrip(_RESIDUE).removeprefix(_BYTE_ORDER_MARK)
    return "fhir" if beginning.startswith(b"{") else "hl7v2"
