"""Coverage: which entries of an authority's list cannot alert as they should, and why."""

from __future__ import annotations

from enum import StrEnum


class CoverageReason(StrEnum):
    """Why an entry, or the whole list, needs somebody's attention."""

    INVALIDATED = "invalidated"
    """The NHS number is dead: the entry alerts no more."""
    MISMATCH = "mismatch"
    NOT_FOUND = "not_found"
    SUPERSEDED = "superseded"
    NO_ROUTE = "no_route"
    """Neither the allocated worker nor anybody on duty can sign in."""
    UNVERIFIED = "unverified"
    """Not compared with the Personal Demographics Service for too long."""
    RESTRICTED = "restricted"
    LIST_STALE = "list_stale"
    """The list is older than the authority's habit and a limit."""


RECORD_CODES: dict[CoverageReason, str] = {
    CoverageReason.NOT_FOUND: "CPR01",
    CoverageReason.RESTRICTED: "CPR02",
    CoverageReason.MISMATCH: "CPR03",
    CoverageReason.SUPERSEDED: "CPR05",
}
"""The record codes of CP-IS for what tracing finds (domain vocabulary CP-ISUploadRecordResponse)."""
