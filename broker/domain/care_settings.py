"""What kind of care a site gives decides whether social care hears of those who come to it.

CP-IS tells authorities of unscheduled care only; scheduled care reads silently, so that what an authority is told stays
worth reading. docs/reference/care-settings.md has the table.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from schemas.directory import CareSetting, Site


class Notice(StrEnum):
    """What becomes of a match."""

    GIVEN = "given"
    SILENT = "silent"
    SUPPRESSED = "suppressed"
    """As silent, and no authority sees it later either."""


class Treatment(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the authority is told, and the name of the rule that says so."""

    notice: Notice
    rule: str

    @property
    def is_told(self) -> bool:
        """Whether the authority is told."""
        return self.notice is Notice.GIVEN


UNSCHEDULED_CARE: Final = Treatment(notice=Notice.GIVEN, rule="unscheduled_care")
SCHEDULED_CARE: Final = Treatment(notice=Notice.SILENT, rule="scheduled_care")
NOT_CLASSIFIED: Final = Treatment(notice=Notice.GIVEN, rule="care_setting_not_classified")
SUPPRESSED_BY_SITE: Final = Treatment(notice=Notice.SUPPRESSED, rule="suppressed_by_local_rule")
WAS_NOT_BROUGHT: Final = Treatment(notice=Notice.GIVEN, rule="was_not_brought")
SILENT_LOOK_UP: Final = Treatment(notice=Notice.SILENT, rule="scheduled_look_up")
UNSCHEDULED_LOOK_UP: Final = Treatment(notice=Notice.GIVEN, rule="unscheduled_look_up")

_SCHEDULED: Final = frozenset(
    {
        CareSetting.GENERAL_PRACTICE,
        CareSetting.CAMHS,
        CareSetting.SEXUAL_ASSAULT_REFERRAL_CENTRE,
        CareSetting.TERMINATION_OF_PREGNANCY,
        CareSetting.SCHOOL_NURSING_AND_HEALTH_VISITING,
        CareSetting.COMMUNITY_PAEDIATRICS,
        CareSetting.DENTISTRY,
        CareSetting.OTHER_SCHEDULED,
    }
)


def treat_attendance(site: Site | None, *, was_not_brought: bool = False) -> Treatment:
    """What becomes of a match at a site; one that nobody knows, or has classified yet, notifies."""
    if site is None or site.care_setting is CareSetting.NOT_CLASSIFIED:
        return NOT_CLASSIFIED
    if site.notices_suppressed:
        return SUPPRESSED_BY_SITE
    if site.care_setting in _SCHEDULED:
        return WAS_NOT_BROUGHT if was_not_brought else SCHEDULED_CARE
    return UNSCHEDULED_CARE


def treat_look_up(site: Site | None, is_unscheduled: bool | None) -> Treatment:
    """What becomes of a hit when a site asks. ``is_unscheduled`` is what the request says; None: it does not say."""
    by_site = treat_attendance(site)
    if by_site.notice is Notice.SUPPRESSED:
        return by_site
    if is_unscheduled is None and by_site.is_told:
        return by_site
    if is_unscheduled is None:
        # As the national service reads the header: absent means unscheduled.
        return UNSCHEDULED_LOOK_UP
    return UNSCHEDULED_LOOK_UP if is_unscheduled else SILENT_LOOK_UP
