"""Organisations in FHIR R4: their ODS codes (https://fhir.nhs.uk/Id/ods-organization-code, ods-site-code)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from adapters.fhir_bundle import OpenBundle
from adapters.fhir_element import Resource, child, children, read_code, read_system
from adapters.fhir_guard import Element
from schemas.identifiers import parse_ods_code

_ODS_SYSTEMS: Final = frozenset(
    {
        "http://fhir.nhs.uk/id/ods-organization-code",
        "http://fhir.nhs.uk/id/ods-organisation-code",
        "http://fhir.nhs.uk/id/ods-site-code",
        "http://fhir.nhs.uk/id/ods-code",
        "urn:oid:2.16.840.1.113883.2.1.3.2.4.19.1",
    }
)


def find_ods_code(identifiers: Sequence[Element]) -> str | None:
    """The first ODS code, of an organisation or a site, among the identifiers."""
    for identifier in identifiers:
        if read_system(identifier) in _ODS_SYSTEMS and (code := parse_ods_code(read_code(identifier, "value"))):
            return code
    return None


def read_ods_code(bundle: OpenBundle, holder: Resource, name: str) -> str | None:
    """The ODS code of the organisation a reference points to, or names by its identifier."""
    found = bundle.entries.follow(holder.element, name, holder)
    own = find_ods_code(children(found.element, "identifier")) if found is not None else None
    return own or find_ods_code(children(child(holder.element, name), "identifier"))


def read_sender(bundle: OpenBundle) -> str | None:
    """The ODS code of MessageHeader.sender, else that in the address it was sent from."""
    if bundle.header is None:
        return None
    if code := read_ods_code(bundle, bundle.header, "sender"):
        return code
    system, bar, code = read_code(child(bundle.header.element, "source"), "endpoint").partition("|")
    return parse_ods_code(code) if bar and read_system({"system": system}) in _ODS_SYSTEMS else None
