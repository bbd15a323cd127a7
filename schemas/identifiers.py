"""Identifiers of the field: NHS numbers, ODS codes, URNs of schools, owners."""

from __future__ import annotations

import re
from typing import Final, NewType

NhsNumber = NewType("NhsNumber", str)
"""Ten digits that pass the modulus 11 check (NHS Data Dictionary, NHS NUMBER)."""

SchoolUrn = NewType("SchoolUrn", str)
"""Unique reference number of an educational establishment in England: six digits (Get Information about Schools)."""

OwnerId = NewType("OwnerId", str)
"""Who a row belongs to: ``authority:706``, ``organisation:RXX``, ``broker:operations``."""

_SPACES_AND_HYPHENS: Final = str.maketrans("", "", " \u00a0\u2009\u202f-\u2010\u2011\u2012\u2013")
_WEIGHTED_ZEROS: Final = ord("0") * sum(range(1, 11))
_ODS_CODE: Final = re.compile(r"[A-Z0-9]{3,10}", re.ASCII)
_URN: Final = re.compile(r"[1-9][0-9]{5}", re.ASCII)


def parse_nhs_number(text: str) -> NhsNumber | None:
    """Return the NHS number in ``text``, with or without spaces and hyphens, or None.

    The check digit is 11 minus the sum of the first nine digits weighted 10 to 2, modulo 11; 11 counts as 0
    and 10 is never issued. Ten equal digits are refused though some pass (3333333333 stands in ITK samples).
    """
    digits = text if len(text) == 10 else text.strip().translate(_SPACES_AND_HYPHENS)
    if len(digits) != 10 or not digits.isascii() or not digits.isdigit() or digits == digits[0] * 10:
        return None
    a, b, c, d, e, f, g, h, i, check = digits.encode()
    weighted = 10 * a + 9 * b + 8 * c + 7 * d + 6 * e + 5 * f + 4 * g + 3 * h + 2 * i + check
    return NhsNumber(digits) if (weighted - _WEIGHTED_ZEROS) % 11 == 0 else None


def parse_ods_code(text: str) -> str | None:
    """Return an Organisation Data Service code in capitals, or None when it cannot be one."""
    code = text.strip()
    # Checked before: some letters beyond ASCII have capitals within it.
    code = code.upper() if code.isascii() else ""
    return code if _ODS_CODE.fullmatch(code) else None


def parse_school_urn(text: str) -> SchoolUrn | None:
    """Return the unique reference number of a school or college, or None. It has no check digit."""
    digits = text.strip()
    return SchoolUrn(digits) if _URN.fullmatch(digits) else None


def authority_owner(code: str) -> OwnerId:
    """The owner of a local authority's rows; ``code`` is its three-character ODS code."""
    return OwnerId(f"authority:{code}")


def organisation_owner(code: str) -> OwnerId:
    """The owner of a care provider's rows; ``code`` is its ODS code, as MSH-4 carries it."""
    return OwnerId(f"organisation:{code}")


def force_owner(code: str) -> OwnerId:
    """The owner of a police force's rows."""
    return OwnerId(f"force:{code}")


def establishment_owner(urn: SchoolUrn) -> OwnerId:
    """The owner of what an educational establishment is told."""
    return OwnerId(f"establishment:{urn}")


BROKER_OWNER: Final = OwnerId("broker:operations")
"""Owner of what belongs to nobody else: bytes whose sender cannot be told."""


def authority_of(owner: OwnerId) -> str:
    """The code of the authority that an owner is; raises ValueError for any other owner."""
    kind, _, code = owner.partition(":")
    if authority_owner(code) != owner:
        raise ValueError(f"{kind} is no authority")
    return code
