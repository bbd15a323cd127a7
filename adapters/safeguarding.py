"""Whether an attendance message carries a safeguarding code of domestic abuse, in HL7 v2 or FHIR.

Read apart from the attendance itself, and only for Operation Encompass: nothing of it reaches the alert to social care.
The codes are SNOMED CT as published for BaRS (``https://fhir.nhs.uk/CodeSystem/safeguarding-codes-bars`` 1.0.0):
strings, never numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from adapters.content import sniff_content
from adapters.er7 import Hl7v2Limits, decode_text, read_segments
from adapters.errors import Unreadable
from adapters.fhir_guard import FhirLimits, read_json
from schemas.encompass import DOMESTIC_ABUSE_CODES

_SEGMENTS: Final = ("OBX", "DG1", "PV2", "AL1", "IAM", "PRB")
_TAKEN_BACK_IN_OBX: Final = frozenset({"D", "W", "X"})
"""OBX-11, HL7 table 0085: deleted, wrong, cannot be obtained."""
_SYSTEMS: Final = frozenset({"", "http://snomed.info/sct", "https://fhir.nhs.uk/codesystem/safeguarding-codes-bars"})
_NOT_MEANT: Final = frozenset({"entered-in-error", "refuted", "cancelled"})
"""Of status and verificationStatus: the resource does not say what it holds."""


def find_domestic_abuse(body: bytes) -> tuple[str, ...]:
    """The codes of domestic abuse that the message carries, each once, in the order of ``DOMESTIC_ABUSE_CODES``.

    Never raises: a message that cannot be read carries none, and is set aside by whoever reads the attendance.
    """
    if not any(code.encode() in body for code in DOMESTIC_ABUSE_CODES):
        return ()
    try:
        found = set(_find_in_fhir(body) if sniff_content(body) == "fhir" else _find_in_hl7v2(body))
    except Unreadable:
        return ()
    return tuple(code for code in DOMESTIC_ABUSE_CODES if code in found)


def _find_in_hl7v2(body: bytes) -> Iterator[str]:
    start = max(body.find(b"MSH"), 0)
    message = read_segments(decode_text(body[start:]), _SEGMENTS, Hl7v2Limits())
    separators = message.separators
    apart = re.compile("|".join(map(re.escape, (separators.component, separators.repetition, separators.subcomponent))))
    for name in _SEGMENTS:
        for number in range(1, message.count(name) + 1):
            segment = message.nth(name, number)
            if name == "OBX" and segment.raw("OBX", 11).strip() in _TAKEN_BACK_IN_OBX:
                continue
            for field in segment.fields(name)[1:]:
                yield from (part.strip() for part in apart.split(field))


def _find_in_fhir(body: bytes) -> Iterator[str]:
    bundle, _ = read_json(body, FhirLimits())
    yield from _find_in_element(bundle)


def _find_in_element(element: Any) -> Iterator[str]:
    """Codes of this element and what stands in it; the depth was checked when it was read."""
    if isinstance(element, list):
        for each in element:
            yield from _find_in_element(each)
    if not isinstance(element, dict) or _is_not_meant(element):
        return
    code, system = element.get("code"), element.get("system", "")
    if isinstance(code, str) and isinstance(system, str) and system.strip().lower() in _SYSTEMS:
        yield code.strip()
    for each in element.values():
        yield from _find_in_element(each)


def _is_not_meant(element: dict[str, Any]) -> bool:
    if "resourceType" not in element:
        return False
    words = {element.get("status")} if isinstance(element.get("status"), str) else set()
    concept = element.get("verificationStatus")
    codings = concept.get("coding") if isinstance(concept, dict) else None
    for coding in codings if isinstance(codings, list) else []:
        if isinstance(coding, dict) and isinstance(coding.get("code"), str):
            words.add(coding["code"])
    return bool(words & _NOT_MEANT) and element["resourceType"] != "Encounter"
