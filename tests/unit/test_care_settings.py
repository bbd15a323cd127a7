"""Which care an authority is told of, and which of its telephones is answered."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from broker.domain.care_settings import Notice, treat_attendance, treat_look_up
from broker.domain.decision import Candidate, Known, MatchRules, decide
from broker.domain.office_calendar import answered_telephone, bank_holidays, is_office_open
from schemas.alert import ReplyOutcome
from schemas.directory import Authority, CareSetting, Site
from schemas.office_hours import parse_office_hours
from schemas.record import PositionOutcome
from tests.factories import make_attendance, make_entry
from tests.house.reference import read_code, read_rows

CLINIC = Site(code="RZ9", name="Sandhill Clinic", care_setting=CareSetting.CAMHS)
PRIVATE = Site(code="RZ8", name="Quayside", care_setting=CareSetting.SEXUAL_HEALTH, notices_suppressed=True)
FIRST = Known(is_new=True)
NORTHFOLD = Authority(code="706", name="Northfold", office_telephone="01632 960101", emergency_telephone="01632 960102")


def site_of(setting: CareSetting) -> Site:
    return Site(code="RZ1", name="Fenwick", care_setting=setting)


def test_every_setting_has_the_rule_that_the_reference_gives() -> None:
    said: dict[str, tuple[bool, str]] = {}
    for names, told, rule in read_rows("docs/reference/care-settings.md", "Care settings: who is told of what"):
        if "with" not in names and "the same" not in names:
            said |= {name: (told == "told", read_code(rule)[0]) for name in read_code(names)}
    done = {each.value: treat_attendance(site_of(each)) for each in CareSetting}
    assert said == {name: (treatment.is_told, treatment.rule) for name, treatment in done.items()}


def test_a_site_that_nobody_knows_or_classified_notifies() -> None:
    for site in (None, Site(code="RZ1", name="Fenwick")):
        treatment = treat_attendance(site)
        assert (treatment.notice, treatment.rule) == (Notice.GIVEN, "care_setting_not_classified")


@pytest.mark.parametrize(
    ("site", "said", "rule"),
    [
        (site_of(CareSetting.EMERGENCY_DEPARTMENT), None, "unscheduled_care"),
        (site_of(CareSetting.EMERGENCY_DEPARTMENT), False, "scheduled_look_up"),
        (CLINIC, None, "unscheduled_look_up"),
        (CLINIC, False, "scheduled_look_up"),
        (CLINIC, True, "unscheduled_look_up"),
        (PRIVATE, True, "suppressed_by_local_rule"),
        (None, None, "care_setting_not_classified"),
    ],
)
def test_a_look_up_is_what_it_says_it_is_and_else_unscheduled(site: Site | None, said: bool | None, rule: str) -> None:
    assert treat_look_up(site, said).rule == rule


@pytest.mark.parametrize(("site", "rule"), [(CLINIC, "scheduled_care"), (PRIVATE, "suppressed_by_local_rule")])
def test_scheduled_care_is_answered_and_the_authority_hears_nothing(site: Site, rule: str) -> None:
    listed = Candidate(entry_id="e", authority="706", entry=make_entry())
    on = date(2026, 2, 14)
    decision = decide(make_attendance(), [listed], FIRST, site=site, on=on, rules=MatchRules())
    assert (decision.outcome, decision.reason) == (PositionOutcome.SILENT_BY_RULE, rule)
    assert (decision.to_alert, decision.doubts, decision.reply) == ((), (), ReplyOutcome.MATCH)
    doubtful = decide(make_attendance(nhs_number=None), [listed], FIRST, site=site, on=on, rules=MatchRules())
    assert (doubtful.outcome, doubtful.doubts) == (PositionOutcome.SILENT_BY_RULE, ())


def test_a_child_who_was_not_brought_is_told_of_by_scheduled_care_and_never_by_a_site_that_suppresses() -> None:
    listed = Candidate(entry_id="e", authority="706", entry=make_entry())
    facts = make_attendance(was_not_brought=True)
    told = decide(facts, [listed], FIRST, site=CLINIC, on=date(2026, 2, 14), rules=MatchRules())
    assert (told.outcome, told.reason, told.to_alert) == (PositionOutcome.ALERTED, "was_not_brought", ("706",))
    silent = decide(facts, [listed], FIRST, site=PRIVATE, on=date(2026, 2, 14), rules=MatchRules())
    assert silent.to_alert == ()


@pytest.mark.parametrize(
    "text", ["", "Mon", "Mon-Fri", "Fri-Mon 09:00-17:00", "Mon-Fri 17:00-09:00", "Mon 25:00-26:00", "Day 09:00-10:00"]
)
def test_hours_that_cannot_be_read_are_refused(text: str) -> None:
    assert parse_office_hours(text) is None


@pytest.mark.parametrize(
    ("at", "telephone"),
    [
        # Friday 17:05 before a bank-holiday Monday, and that Monday (scenario G).
        (datetime(2026, 5, 22, 15, 59, tzinfo=UTC), "01632 960101"),
        (datetime(2026, 5, 22, 16, 5, tzinfo=UTC), "01632 960102"),
        (datetime(2026, 5, 25, 10, 0, tzinfo=UTC), "01632 960102"),
        (datetime(2026, 5, 26, 8, 0, tzinfo=UTC), "01632 960101"),
        # Christmas 2027 is on a weekend: Monday and Tuesday are kept.
        (datetime(2027, 12, 28, 12, 0, tzinfo=UTC), "01632 960102"),
        (datetime(2027, 12, 29, 12, 0, tzinfo=UTC), "01632 960101"),
        # The clocks have gone forward: 08:30 UTC is half past nine.
        (datetime(2026, 3, 30, 8, 30, tzinfo=UTC), "01632 960101"),
        (datetime(2026, 3, 27, 8, 30, tzinfo=UTC), "01632 960102"),
    ],
)
def test_the_telephone_that_is_answered_at_this_hour(at: datetime, telephone: str) -> None:
    assert answered_telephone(NORTHFOLD, at) == telephone


def test_a_proclaimed_holiday_closes_offices_and_hours_differ_by_day() -> None:
    noon = datetime(2026, 6, 3, 11, 0, tzinfo=UTC)
    assert is_office_open("Mon-Fri 09:00-17:00", noon)
    assert not is_office_open("Mon-Fri 09:00-17:00", noon, {noon.date()})
    hours = "Mon-Thu 08:45-17:00 Fri 08:45-16:30"
    assert not is_office_open(hours, datetime(2026, 6, 5, 15, 30, tzinfo=UTC))
    assert is_office_open(hours, datetime(2026, 6, 4, 15, 30, tzinfo=UTC))


def test_bank_holidays_are_those_that_were_kept() -> None:
    kept = ["01-01", "01-03", "04-15", "04-18", "05-02", "05-30", "08-29", "12-25", "12-26", "12-27"]
    assert [f"{day:%m-%d}" for day in sorted(bank_holidays(2022))] == kept
