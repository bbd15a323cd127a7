"""A FHIR R4 Bundle let in: its type, version, size and entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, NoReturn

from adapters.fhir_element import Entries, Resource, child, read_code, read_identifier
from adapters.fhir_guard import (
    Element,
    FhirLimits,
    Finding,
    IssueCode,
    NotAnAttendanceBundle,
    refuse,
    refuse_other_versions,
)

_ACCEPTED_TYPES: Final = frozenset({"message", "transaction", "collection", "batch"})
"""``batch`` too: converters of HL7 v2 feeds write it, and what its entries say is the same."""
_OTHER_TYPES: Final = frozenset({"document", "transaction-response", "batch-response", "history", "searchset"})
"""Answers, and documents about the past: nobody sends them to say that a person has come."""


class OpenBundle(NamedTuple):
    """A Bundle that was let in."""

    element: Element
    parts: Sequence[object]
    """Bundle.entry."""
    entries: Entries
    header: Resource | None
    """MessageHeader."""
    id: str
    findings: list[Finding]
    limits: FhirLimits

    def add(self, code: IssueCode, expression: str, text: str) -> None:
        """Note an error."""
        self.findings.append(Finding(severity="error", code=code, expression=expression, text=text))

    def ignore(self, expression: str, text: str) -> NoReturn:
        """Say that the Bundle is of no concern."""
        found = Finding(severity="information", code="business-rule", expression=expression, text=text)
        raise NotAnAttendanceBundle((found, *self.findings[: self.limits.findings_max]), self.id)


def open_bundle(document: Element, limits: FhirLimits, findings: list[Finding]) -> OpenBundle:
    """Let a Bundle in, or refuse it for its kind, version, type or size."""
    kind = document.get("resourceType")
    if kind != "Bundle":
        _refuse_resource(document, limits)
    parts = document.get("entry", [])
    if not isinstance(parts, list):
        refuse("unreadable_structure", "structure", "Bundle.entry", "Bundle.entry is not a list")
    if len(parts) > limits.entries_max:
        refuse("too_many_entries", "too-costly", "Bundle.entry", "the Bundle has too many entries")
    resources = [
        (f"Bundle.entry[{number}].resource", child(part, "resource"))
        for number, part in enumerate(parts)
        if isinstance(part, dict)
    ]
    refuse_other_versions(document, resources)
    entries = Entries(parts)
    header = next(iter(entries.of_kind("MessageHeader")), None)
    if header is not None:
        entries.read.add(header.number)
    bundle = OpenBundle(document, parts, entries, header, _read_id(document, limits), findings, limits)
    bundle_type = document.get("type")
    if isinstance(bundle_type, str) and bundle_type in _OTHER_TYPES:
        refuse("bundle_type_not_accepted", "not-supported", "Bundle.type", "Bundles of this type are not taken")
    if not isinstance(bundle_type, str) or bundle_type not in _ACCEPTED_TYPES:
        bundle.add("required" if bundle_type is None else "value", "Bundle.type", "Bundle.type is no type of R4")
    if bundle_type == "message" and header is None:
        bundle.add("required", "Bundle.entry[0].resource", "a message begins with a MessageHeader")
    for number, part in enumerate(parts):
        if not isinstance(part, dict) or not ({"resource", "request"} & part.keys()):
            bundle.add("structure", f"Bundle.entry[{number}]", "the entry holds nothing")
    return bundle


def _refuse_resource(document: Element, limits: FhirLimits) -> NoReturn:
    """A resource that is no Bundle: only an Encounter could tell of somebody attending, and it does not say who."""
    from adapters.fhir_models import is_resource_type

    kind = read_code(document, "resourceType")
    if kind == "Encounter" or not is_resource_type(kind):
        refuse("not_a_bundle", "structure", "Bundle", "the message is not a Bundle")
    found = Finding(
        severity="error", code="not-supported", expression="Bundle", text="the message is a single resource, no Bundle"
    )
    raise NotAnAttendanceBundle((found,), read_identifier(document, "id", limits.identifier_characters_max) or "")


def _read_id(bundle: Element, limits: FhirLimits) -> str:
    characters_max = limits.identifier_characters_max
    identifier = read_identifier(child(bundle, "identifier"), "value", characters_max)
    return read_identifier(bundle, "id", characters_max) or identifier or ""
