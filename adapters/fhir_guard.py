"""What stands before a FHIR R4 Bundle is read: limits, JSON, the version, and the check of its structure.

Sources: FHIR R4 (4.0.1) JSON, Bundle and OperationOutcome; RFC 8259. The models are those of R4B (4.3), which for
the resources read here are the same. The models are no safe boundary: hostile elements make them raise anything,
and they do not check the value sets of codes. So size, depth and duplicate keys come first, everything they raise
becomes a finding, and what is read is read from the plain JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NoReturn

import msgspec
from pydantic import ValidationError

from adapters.errors import NotAnAttendance, Unreadable

Element = dict[str, object]
"""A JSON object: a resource, a data type or a part of one."""

Severity = Literal["error", "warning", "information"]
IssueCode = Literal["structure", "required", "value", "not-supported", "business-rule", "too-costly"]
"""Codes of http://hl7.org/fhir/issue-type that the broker uses."""


class FhirLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a Bundle may hold.

    Beyond the first five it is Unreadable; names and texts are cut. An identifier that is too long is left out, not
    cut: two could become one. ``values_checked_max`` bounds what the models are given, which cost far more than
    reading: the rest is read unchecked, and a finding says so.
    """

    bundle_bytes_max: int = 5_242_880
    tokens_max: int = 100_000
    """Quotation marks, commas and opening brackets: what parsing costs, whatever the bytes."""
    containers_max: int = 20_000
    """Opening brackets alone: objects and lists cost most. A Bundle of 600 kB with 365 entries has 6,400."""
    depth_max: int = 64
    entries_max: int = 1_000
    identifier_characters_max: int = 250
    name_characters_max: int = 200
    names_max: int = 50
    text_characters_max: int = 1_000
    values_checked_max: int = 2_500
    findings_max: int = 50


DEFAULT_LIMITS: Final = FhirLimits()


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing found wrong, as an OperationOutcome.issue can carry it. Never holds message contents."""

    severity: Severity
    code: IssueCode
    expression: str
    """FHIRPath of the element: ``Bundle.entry[2].resource.birthDate``."""
    text: str


class UnreadableBundle(Unreadable):
    """Bytes in which no attendance can be read though there may be one; ``findings`` name the elements at fault.

    Reasons: ``message_too_large``, ``too_many_elements``, ``too_deep``, ``not_json``, ``duplicate_keys``,
    ``not_a_bundle``, ``wrong_fhir_version``, ``bundle_type_not_accepted``, ``unreadable_structure``,
    ``too_many_entries``, ``no_patient``, ``several_patients`` and ``no_identity``.
    """

    def __init__(self, reason: str, findings: Sequence[Finding]) -> None:
        super().__init__(reason, findings[0].text)
        self.findings = tuple(findings)


class NotAnAttendanceBundle(NotAnAttendance):
    """A Bundle that tells of nobody attending."""

    def __init__(self, findings: Sequence[Finding], bundle_id: str) -> None:
        super().__init__("not_an_attendance", findings[0].text)
        self.findings = tuple(findings)
        self.bundle_id = bundle_id


def refuse(reason: str, code: IssueCode, expression: str, text: str) -> NoReturn:
    """Raise UnreadableBundle with one finding."""
    raise UnreadableBundle(reason, (Finding(severity="error", code=code, expression=expression, text=text),))


# --- JSON -----------------------------------------------------------------------------------------------

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_STRING: Final = re.compile(rb'"[^"\\]*+(?:(?:\\.)++[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_INTEGER_CHARACTERS_MAX: Final = 20
_TO_SQUARE: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKET: Final = bytes(set(range(256)) - set(b"[]{}"))


class _DuplicateKeyError(Exception):
    """An object names a member twice: readers differ in which they take (RFC 8259, 4)."""


def read_json(body: bytes, limits: FhirLimits) -> tuple[object, list[Finding]]:
    """The JSON value in ``body``, and what was found on the way.

    Text that is not UTF-8 is read as Windows-1252, with a finding: some senders never write anything else. Raises
    UnreadableBundle ``message_too_large``, ``too_many_elements``, ``too_deep``, ``duplicate_keys``, ``not_json``.
    """
    if len(body) > limits.bundle_bytes_max:
        refuse("message_too_large", "too-costly", "Bundle", "the message is too large")
    containers = body.count(b"{") + body.count(b"[")
    if containers > limits.containers_max or containers + body.count(b'"') + body.count(b",") > limits.tokens_max:
        refuse("too_many_elements", "too-costly", "Bundle", "the message has too many elements")
    body = body.removeprefix(_BYTE_ORDER_MARK)
    _check_depth(body, limits.depth_max)
    findings: list[Finding] = []
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = body.decode("cp1252", errors="replace")
        findings.append(
            Finding(severity="error", code="structure", expression="Bundle", text="the message is not UTF-8")
        )
    return _parse(text), findings


def _check_depth(body: bytes, depth_max: int) -> None:
    """Refuse brackets nested deeper than ``depth_max``, before a parser descends into them.

    Each round takes away the innermost pairs. What can be taken away no more is unbalanced, which the parser
    says better, unless it opens too deep by itself.
    """
    brackets = _STRING.sub(b"", body).translate(_TO_SQUARE, _NO_BRACKET)
    for _ in range(depth_max):
        left = brackets.replace(b"[]", b"")
        if len(left) == len(brackets):
            break
        brackets = left
    if b"[]" in brackets or brackets.count(b"[") > depth_max:
        refuse("too_deep", "too-costly", "Bundle", "the message is nested too deep")


def _parse(text: str) -> object:
    reason, fault = "not_json", "the message is not JSON"
    try:
        parsed: object = json.loads(
            text, object_pairs_hook=_build_object, parse_int=_read_integer, parse_constant=_refuse_constant
        )
    except _DuplicateKeyError:
        reason, fault = "duplicate_keys", "an object of the message names the same member twice"
    except (ValueError, RecursionError):
        pass
    else:
        return parsed
    # Raised here and not above, so that no text of the parser's hangs on it.
    refuse(reason, "structure", "Bundle", fault)


def _build_object(pairs: list[tuple[str, object]]) -> Element:
    built = dict(pairs)
    if len(built) != len(pairs):
        raise _DuplicateKeyError
    return built


def _read_integer(digits: str) -> int | str:
    """An integer; one far beyond those of FHIR stays text, for its conversion costs the square of its length."""
    return int(digits) if len(digits) <= _INTEGER_CHARACTERS_MAX else digits


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity, which Python would read and JSON does not have


# --- the version ----------------------------------------------------------------------------------------

_OTHER_PROFILE: Final = re.compile(
    r"/(?:DSTU2|STU3|R5|R6)/|CareConnect|hl7\.org/fhir/(?:[123]\.|5\.|6\.)", re.IGNORECASE
)
_OTHER_RELEASE: Final = re.compile(r"\s*(?:[0-3]|[5-9])\.")
_MARKS_OF_OTHER_VERSIONS: Final[Mapping[str, tuple[str, ...]]] = {
    # What DSTU2, STU3 or R5 has under a name that R4 has not.
    "Patient": ("animal", "careProvider"),
    "Encounter": ("subjectStatus", "actualPeriod", "plannedStartDate", "admission", "reason", "indication"),
    "MessageHeader": ("event", "eventCanonical"),
}
_PROFILED: Final = frozenset({*_MARKS_OF_OTHER_VERSIONS, "Bundle"})


def refuse_other_versions(bundle: Element, resources: Sequence[tuple[str, Element]]) -> None:
    """Raise UnreadableBundle ``wrong_fhir_version`` if a Bundle is written in DSTU2, STU3 or R5 rather than R4.

    A profile, a ``fhirVersion`` or an element of another version's making decides; ``resources`` are (FHIRPath,
    resource). Such a message must not be read in part: the same names mean other things there.
    """
    for expression, resource in (("Bundle", bundle), *resources):
        kind = resource.get("resourceType")
        if not isinstance(kind, str) or kind not in _PROFILED:
            continue
        if (member := _other_version_in(kind, resource)) is not None:
            refuse("wrong_fhir_version", "not-supported", f"{expression}.{member}", "the message is not FHIR R4")


def _other_version_in(kind: str, resource: Element) -> str | None:
    """The member of a resource that only another version would write so."""
    meta = resource.get("meta")
    profiles = meta.get("profile") if isinstance(meta, dict) else None
    for profile in profiles if isinstance(profiles, list) else [profiles]:
        if isinstance(profile, str) and _OTHER_PROFILE.search(profile[:500]):
            return "meta.profile"
    version = resource.get("fhirVersion")
    if isinstance(version, str) and _OTHER_RELEASE.match(version):
        return "fhirVersion"
    if kind == "Bundle":
        return "type" if resource.get("type") == "subscription-notification" else None
    if kind == "Encounter" and (member := _other_shape_of_encounter(resource)):
        return member
    return next((name for name in _MARKS_OF_OTHER_VERSIONS[kind] if resource.get(name)), None)


def _other_shape_of_encounter(resource: Element) -> str | None:
    """R5 has a list of CodeableConcept in ``class``, and of CodeableReference in ``serviceType``."""
    for name, part in (("class", "coding"), ("class", "concept"), ("serviceType", "concept")):
        repeated = resource.get(name)
        if isinstance(repeated, list) and any(isinstance(item, dict) and part in item for item in repeated):
            return name
    return None


# --- the structure --------------------------------------------------------------------------------------

CHECKED: Final = ("MessageHeader", "Patient", "Encounter", "RelatedPerson", "Organization", "Location")
"""The resources an attendance is read from. Others are not given to the models: a whole Bundle costs up to six
times as much, and a fault in an Observation says nothing of who attends."""


_FAULTS: Final[Mapping[str, tuple[IssueCode, str]]] = {
    "missing": ("required", "a required element is missing"),
    "extra_forbidden": ("structure", "there is an element here that FHIR R4 does not have"),
}
_WRONG_TYPE: Final[tuple[IssueCode, str]] = ("structure", "the element has the wrong type")
_NOT_ALLOWED: Final[tuple[IssueCode, str]] = ("value", "the value, or what stands together here, is not allowed")
_ELEMENT_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{0,40}", re.ASCII)


def check_structure(bundle: Element, entries: Mapping[int, Element], limits: FhirLimits) -> list[Finding]:
    """What the models of fhir.resources find wrong with the Bundle itself and with ``entries``, by their number."""
    kept = {number: entry for number, entry in sorted(entries.items()) if _is_checked(entry)}
    envelope = {name: value for name, value in bundle.items() if name not in ("entry", "signature")}
    if _count_values([envelope, *kept.values()], limits.values_checked_max) >= limits.values_checked_max:
        text = "the resources are too large to be checked"
        return [Finding(severity="error", code="too-costly", expression="Bundle", text=text)]
    findings = _validate({**envelope, "entry": list(kept.values())}, tuple(kept))
    if findings is None:
        # The library itself failed: find out on which entry.
        findings = []
        for number, entry in kept.items():
            single = _validate({"resourceType": "Bundle", "type": "collection", "entry": [entry]}, (number,))
            findings += [_uncheckable(f"Bundle.entry[{number}].resource")] if single is None else single
        findings = findings or [_uncheckable("Bundle")]
    return findings[: limits.findings_max]


def _is_checked(entry: Element) -> bool:
    resource = entry.get("resource")
    return isinstance(resource, dict) and resource.get("resourceType") in CHECKED


def _count_values(parts: Iterable[object], enough: int) -> int:
    """How many values there are in ``parts``, all levels counted; no further than ``enough``.

    A text that could be JSON is counted as such: the models would parse it where an object is due.
    """
    waiting = list(parts)
    count = 0
    while waiting and count < enough:
        value = waiting.pop()
        count += 1
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
            count += sum(map(value.count, "{[,"))
    return count


def _validate(bundle: Element, numbers: Sequence[int]) -> list[Finding] | None:
    """The faults of one Bundle whose entries have these ``numbers``; None when the library fails."""
    from adapters.fhir_models import Bundle

    try:
        Bundle.model_validate(bundle)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        return [_describe(fault["loc"], fault["type"], numbers) for fault in faults]
    except Exception:
        # Hostile elements make it raise KeyError, TypeError, AttributeError, RecursionError and more.
        return None
    return []


def _describe(location: Sequence[int | str], kind: str, numbers: Sequence[int]) -> Finding:
    code, text = _FAULTS.get(kind, _NOT_ALLOWED)
    if kind.endswith("_type") or kind in ("model_validation_format", "json_invalid"):
        code, text = _WRONG_TYPE
    # The last part of an element unknown to FHIR is the sender's own word, which could be anything.
    known = location[:-1] if kind == "extra_forbidden" else location
    return Finding(severity="error", code=code, expression=_write_path(known, numbers), text=text)


def _write_path(location: Sequence[int | str], numbers: Sequence[int]) -> str:
    """A location of the models as FHIRPath; an entry has the number it has in the message."""
    path = "Bundle"
    for depth, part in enumerate(location):
        if isinstance(part, int):
            number = numbers[part] if depth == 1 and location[0] == "entry" and part < len(numbers) else part
            path += f"[{number}]"
        elif part != "root" and _ELEMENT_NAME.fullmatch(part):
            path += f".{part}"
    return path


def _uncheckable(expression: str) -> Finding:
    return Finding(severity="error", code="structure", expression=expression, text="the structure cannot be checked")
