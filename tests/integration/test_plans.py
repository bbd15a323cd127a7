"""Every kind of plan and what becomes of it: mothers and newborns, plans that ended, entries taken back, twins."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import select

from broker.domain.visits import LONDON
from broker.storage.tables import AlertState, Delivery, table
from schemas.alert import ReplyOutcome
from schemas.child_list import PlanType
from schemas.record import PositionOutcome as Outcome
from tests.world import CASEY, World, hl7

MOTHER = "9990000026"
BABY = "9990000034"
PREGNANT = f"M1,{MOTHER},Tester,Alma,2009-02-14,ZZ99 1AA,unborn_child_protection_plan,2025-11-01,,W1,North"
LOOKED_AFTER = f"M1,{MOTHER},Tester,Alma,2009-02-14,ZZ99 1AA,looked_after_child,2020-01-01,,W1,North"


def listed(end: str = "", delete: str = "", number: str = "9990000018", local_id: str = "L1") -> str:
    """A child protection plan of some child, with its end."""
    return (
        f"{local_id},{number},Tester,Casey,2015-03-02,ZZ99 1AA,child_protection_plan,2024-01-10,{end},W1,North,{delete}"
    )


async def _events(world: World) -> list[str]:
    async with world.database.reading() as connection:
        rows = await connection.execute(select(table(Delivery).c.event_type).order_by(table(Delivery).c.created_at))
        return sorted(row.event_type.rsplit(".", 2)[1] for row in rows)


async def test_scenario_s_a_pregnant_girl_who_is_looked_after_and_then_her_newborn(world: World) -> None:
    await world.list_children(PREGNANT, LOOKED_AFTER)
    alma = hl7(nhs_number=MOTHER, given="ALMA", birth_date=date(2009, 2, 14), visit="V1", patient="M1")

    assert await world.receive(alma) == [Outcome.ALERTED]
    [alert] = await world.alerts()
    assert {plan.plan_type for plan in alert.alert.plans} == {PlanType.UNBORN, PlanType.LOOKED_AFTER}
    assert "unborn child plan is for her child" in alert.alert.reason
    [answer] = await world.replies()
    assert {plan.plan_type for plan in answer.plans} == {PlanType.UNBORN, PlanType.LOOKED_AFTER}, "both entries answer"

    born = hl7(nhs_number=BABY, given="BABY", birth_date=date(2026, 2, 13), visit="V2", patient="B1", mother=MOTHER)
    assert await world.receive(born) == [Outcome.ALERTED]
    newborn = next(found.alert for found in await world.alerts() if found.alert.is_newborn)
    assert [plan.plan_type for plan in newborn.plans] == [PlanType.UNBORN]
    assert newborn.child.nhs_number == MOTHER
    assert "her newborn" in newborn.reason
    assert "under the baby's own NHS number" in newborn.reason
    wording = next(reply.wording for reply in await world.replies() if reply.visit_number == "V2")
    assert wording.startswith("The mother this message names is on a local authority's list")


async def test_her_eighteenth_birthday_ends_only_her_own_entry(world: World) -> None:
    await world.list_children(PREGNANT, LOOKED_AFTER)
    world.clock.advance(timedelta(days=365))
    alma = hl7(nhs_number=MOTHER, given="ALMA", birth_date=date(2009, 2, 14))
    assert await world.receive(alma) == [Outcome.ALERTED]
    [alert] = await world.alerts()
    assert [plan.plan_type for plan in alert.alert.plans] == [PlanType.UNBORN]


async def test_a_newborn_who_came_before_the_mother_was_listed_is_found(world: World) -> None:
    await world.receive(hl7(nhs_number=BABY, birth_date=date(2026, 2, 13), mother=MOTHER))
    await world.list_children(PREGNANT)
    await world.run_jobs()
    [alert] = await world.alerts()
    assert alert.alert.is_newborn and alert.alert.late


async def test_an_older_child_of_a_pregnant_woman_is_not_her_newborn(world: World) -> None:
    await world.list_children(PREGNANT)
    older = hl7(nhs_number=BABY, birth_date=date(2020, 2, 13), mother=MOTHER)
    assert await world.receive(older) == [Outcome.NO_RECORD]


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        (listed(end="2025-03-14"), True),
        (listed(end="2025-01-13"), False),
        (PREGNANT.replace(",,W1", ",2026-01-18,W1").replace(MOTHER, "9990000018"), True),
        (PREGNANT.replace(",,W1", ",2026-01-16,W1").replace(MOTHER, "9990000018"), False),
        (listed(delete="2026-02-01"), False),
    ],
    ids=["eleven months", "thirteen months", "unborn 27 days", "unborn 29 days", "taken back"],
)
async def test_scenario_m_plans_that_ended(world: World, row: str, shown: bool) -> None:
    await world.list_children(row)
    mother = {"given": "ALMA", "birth_date": date(2009, 2, 14)} if "Alma" in row else {}
    assert await world.receive(hl7(**mother)) == [Outcome.ALERTED if shown else Outcome.NO_RECORD]  # type: ignore[arg-type]
    [reply] = await world.replies()
    if not shown:
        assert reply.outcome is ReplyOutcome.NO_RECORD
        assert (await world.alerts(), reply.plans) == ([], ())
        return
    [alert] = await world.alerts()
    assert [plan.has_ended for plan in alert.alert.plans] == [True]
    assert "Every plan has ended" in alert.alert.reason
    assert [plan.has_ended for plan in reply.plans] == [True]
    assert "every plan has ended. Social care is told." in reply.wording


async def test_scenario_m_an_entry_taken_back_withdraws_its_alert_and_corrects_the_reply(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7())
    [alert] = await world.alerts()

    await world.list_children(CASEY + ",2026-02-14")
    await world.run_jobs()
    await world.run_jobs()

    [withdrawn] = await world.alerts()
    assert (withdrawn.state, withdrawn.closed_rule) == (AlertState.CLOSED, "entry_taken_back")
    assert withdrawn.withdrawn_at is not None
    newest, first = sorted(await world.replies(), key=lambda reply: reply.outcome is ReplyOutcome.MATCH)
    assert (first.outcome, newest.outcome) == (ReplyOutcome.MATCH, ReplyOutcome.NO_RECORD)
    assert newest.wording.startswith("Correction: ")
    assert "this does not mean the child is safe" in newest.wording
    assert await _events(world) == ["given", "given", "raised", "withdrawn"]

    await world.list_children(CASEY)
    await world.run_jobs()
    again = [found for found in await world.alerts() if found.state is AlertState.OPEN]
    assert len(again) == 1 and again[0].alert.alert_id != alert.alert.alert_id
    assert [reply.outcome for reply in await world.replies()].count(ReplyOutcome.MATCH) == 2


async def test_an_alert_that_rests_on_another_plan_as_well_stands(world: World) -> None:
    second = CASEY.replace("child_protection_plan", "looked_after_child")
    await world.list_children(CASEY, second)
    await world.receive(hl7())
    await world.list_children(CASEY + ",2026-02-14")
    await world.run_jobs()
    [alert] = await world.alerts()
    assert (alert.state, alert.withdrawn_at) == (AlertState.OPEN, None)
    assert await _events(world) == ["given", "raised"]


async def test_another_authoritys_alert_stands_and_the_reply_is_corrected(world: World) -> None:
    await world.list_children(CASEY)
    await world.list_children(CASEY.replace("W1", "W7"), authority="707")
    await world.receive(hl7())
    await world.list_children(CASEY + ",2026-02-14")
    await world.run_jobs()
    [mistaken], [right] = await world.alerts(), await world.alerts("707")
    assert (mistaken.state, right.state) == (AlertState.CLOSED, AlertState.OPEN)
    corrected = next(reply for reply in await world.replies() if reply.wording.startswith("Correction"))
    assert (corrected.outcome, corrected.authorities_told) == (ReplyOutcome.MATCH, ("Eastmere County Council",))


async def test_scenario_d_a_twin_without_a_number_is_reviewed_and_the_clinician_learns_nothing(world: World) -> None:
    jordan = listed(number="9990000042", local_id="L2").replace("Casey", "Jordan")
    await world.list_children(CASEY, jordan)
    unnumbered = hl7(nhs_number="")
    assert await world.receive(unnumbered) == [Outcome.UNDER_REVIEW]
    assert await world.alerts() == []
    by_name = {review.content.listed.given: review.content for review in await world.reviews()}
    assert set(by_name) == {"Casey", "Jordan"}
    assert "perhaps a twin" in by_name["Jordan"].reason
    assert "same name and date of birth" in by_name["Casey"].reason
    [reply] = await world.replies()
    assert (reply.outcome, reply.plans, reply.differs) == (ReplyOutcome.IDENTITY_TO_BE_CHECKED, (), ())

    nobody = hl7(nhs_number="", family="NOBODY", given="ALMA", visit="V9", patient="K9")
    assert await world.receive(nobody) == [Outcome.NO_RECORD]
    stranger = next(other for other in await world.replies() if other.visit_number == "V9")
    assert stranger.wording == reply.wording


async def test_a_doubt_about_an_entry_that_was_taken_back_is_closed(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7(nhs_number=""))
    assert len(await world.reviews()) == 1
    await world.list_children(CASEY + ",2026-02-14")
    await world.run_jobs()
    assert await world.reviews() == []


async def test_several_entries_of_one_child_make_one_alert_delivered_to_every_allocated_worker(world: World) -> None:
    second = CASEY.replace("child_protection_plan", "looked_after_child").replace("W1", "D1")
    await world.list_children(CASEY, second)
    await world.receive(hl7())
    [alert] = await world.alerts()
    assert len(alert.alert.plans) == 2
    assert set(alert.alert.allocated_workers) == {"W1", "D1"}


async def test_a_doubt_about_an_entry_that_is_listed_again_is_open_again(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7(nhs_number=""))
    await world.list_children(CASEY + ",2026-02-14")
    await world.run_jobs()
    await world.list_children(CASEY)
    await world.run_jobs()
    [review] = await world.reviews()
    assert review.level == 0


async def test_whoever_was_answered_is_answered_again_when_the_entry_was_an_error(world: World) -> None:
    """Also where nobody else is answered (an adult), and where the authority was never told (an ended plan)."""
    adult = PREGNANT.replace("2009-02-14", "1995-02-14")
    await world.list_children(adult)
    await world.receive(hl7(nhs_number=MOTHER, given="ALMA", birth_date=date(1995, 2, 14), visit="V1", patient="M1"))
    await world.list_children(adult + ",2026-02-14")
    await world.run_jobs()
    await world.authorities(alerts_for_ended_plans="no")
    await world.list_children(listed(end="2025-12-01"))
    assert await world.receive(hl7(visit="V2")) == [Outcome.SILENT_BY_RULE]
    await world.list_children(listed(end="2025-12-01", delete="2026-02-14"))
    await world.run_jobs()
    corrected = [reply.visit_number for reply in await world.replies() if reply.wording.startswith("Correction")]
    assert sorted(str(visit) for visit in corrected) == ["V1", "V2"]


async def test_an_alert_falls_with_the_last_of_all_entries_it_came_to_rest_on(world: World) -> None:
    second = CASEY.replace("child_protection_plan", "looked_after_child").replace("W1", "D1")
    await world.list_children(CASEY)
    await world.receive(hl7())
    await world.list_children(second)
    await world.run_jobs()
    await world.list_children(CASEY + ",2026-02-14")
    await world.run_jobs()
    assert [alert.state for alert in await world.alerts()] == [AlertState.OPEN]
    await world.list_children(second + ",2026-02-14")
    await world.run_jobs()
    assert [alert.state for alert in await world.alerts()] == [AlertState.CLOSED]


async def test_an_entry_taken_back_long_afterwards_is_judged_by_the_day_of_the_alert_and_raises_nothing(
    world: World,
) -> None:
    second = listed(end="2026-03-01").replace("child_protection_plan", "looked_after_child")
    await world.list_children(CASEY, second)
    await world.list_children(CASEY.replace("W1", "W7"), authority="707")
    await world.receive(hl7())
    before = await world.delivery_count()
    world.clock.advance(timedelta(days=500))
    await world.list_children(CASEY + ",2027-01-01")
    await world.run_jobs()
    [first], [other] = await world.alerts(), await world.alerts("707")
    assert (first.state, other.state) == (AlertState.OPEN, AlertState.OPEN)
    assert await world.delivery_count() == before


async def test_a_child_born_shortly_before_the_plan_began_goes_to_a_person(world: World) -> None:
    await world.list_children(PREGNANT)
    born = hl7(nhs_number=BABY, birth_date=date(2025, 10, 20), mother=MOTHER)
    assert await world.receive(born) == [Outcome.UNDER_REVIEW]


@pytest.mark.parametrize(
    ("born", "last_instant"),
    [
        # In summer London's midnight is 23:00 UTC, in winter 24:00.
        (date(2008, 7, 15), datetime(2026, 7, 14, 22, 59, tzinfo=UTC)),
        (date(2008, 1, 15), datetime(2026, 1, 14, 23, 59, tzinfo=UTC)),
    ],
)
async def test_an_entry_ends_at_london_midnight_of_the_eighteenth_birthday_and_an_unborn_plan_does_not(
    world: World, born: date, last_instant: datetime
) -> None:
    own = CASEY.replace("2015-03-02", born.isoformat()).replace("2026-01-10", "2025-11-01")
    world.clock.move_to(last_instant)
    await world.list_children(own, authority="706")
    unborn = own.replace("child_protection_plan", "unborn_child_protection_plan").replace("W1", "W7")
    await world.list_children(unborn, authority="707")
    london = last_instant.astimezone(LONDON).replace(tzinfo=None)
    await world.receive(hl7(birth_date=born, at=london))
    assert (len(await world.alerts("706")), len(await world.alerts("707"))) == (1, 1)
    world.clock.advance(timedelta(minutes=1))
    await world.receive(hl7(birth_date=born, at=london + timedelta(minutes=1), visit="V2", patient="K2"))
    assert (len(await world.alerts("706")), len(await world.alerts("707"))) == (1, 2)
    await world.run_jobs()
    assert (len(await world.alerts("706")), len(await world.alerts("707"))) == (1, 2)
