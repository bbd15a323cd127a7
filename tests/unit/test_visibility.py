"""How long an entry counts: to the day."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.domain.visibility import Standing, Windows, standing_on
from schemas.child_list import PlanType
from tests.factories import make_entry

TODAY = date(2026, 2, 14)
WINDOWS = Windows()
OWN = (PlanType.CHILD_PROTECTION, PlanType.LOOKED_AFTER)


@pytest.mark.parametrize("plan_type", OWN)
@pytest.mark.parametrize(
    ("ended_days_ago", "standing"),
    [
        (-1, Standing.CURRENT),
        (0, Standing.ENDED),
        (330, Standing.ENDED),
        (364, Standing.ENDED),
        (365, Standing.ENDED),
        (366, Standing.HIDDEN),
        (395, Standing.HIDDEN),
    ],
)
def test_a_plan_is_shown_as_ended_for_a_year(plan_type: PlanType, ended_days_ago: int, standing: Standing) -> None:
    ended = make_entry(plan_type=plan_type, start_on=date(2024, 1, 1), end_on=TODAY - timedelta(days=ended_days_ago))
    assert standing_on(ended, TODAY, WINDOWS) is standing


@pytest.mark.parametrize(("ended_days_ago", "shown"), [(27, True), (28, True), (29, False)])
def test_an_unborn_childs_plan_is_shown_for_four_weeks(ended_days_ago: int, shown: bool) -> None:
    ended = make_entry(
        plan_type=PlanType.UNBORN,
        birth_date=date(1998, 1, 1),
        start_on=date(2025, 9, 1),
        end_on=TODAY - timedelta(days=ended_days_ago),
    )
    assert (standing_on(ended, TODAY, WINDOWS) is Standing.ENDED) == shown


@pytest.mark.parametrize("plan_type", OWN)
def test_a_persons_own_entry_ends_on_the_eighteenth_birthday(plan_type: PlanType) -> None:
    entry = make_entry(plan_type=plan_type, birth_date=date(2008, 2, 14), start_on=date(2020, 1, 1))
    assert standing_on(entry, TODAY - timedelta(days=1), WINDOWS) is Standing.CURRENT
    assert standing_on(entry, TODAY, WINDOWS) is Standing.HIDDEN


def test_a_mothers_eighteenth_birthday_does_not_end_the_plan_of_her_unborn_child() -> None:
    entry = make_entry(plan_type=PlanType.UNBORN, birth_date=date(2008, 2, 14), start_on=date(2025, 12, 1))
    assert standing_on(entry, TODAY, WINDOWS) is Standing.CURRENT


@given(st.dates(date(2025, 1, 1), date(2030, 1, 1)), st.sampled_from(PlanType))
def test_what_was_taken_back_is_never_shown(on: date, plan_type: PlanType) -> None:
    entry = make_entry(plan_type=plan_type, start_on=date(2024, 1, 1), deleted_on=date(2026, 1, 1))
    assert standing_on(entry, on, WINDOWS) is Standing.HIDDEN
