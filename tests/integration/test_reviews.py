"""Doubts about identity: who is put before a person, and what follows from what the person says."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import pytest
from sqlalchemy import delete, update

from broker.announcement import open_occasion
from broker.domain.matching import BLOCKS_VERSION
from broker.jobs.runner import JobOptions, JobRunner
from broker.storage import child_lists, directory, reviews, visits
from broker.storage.reviews import StoredReview
from broker.storage.tables import AlertState, EntryBlock, ItemState, ListEntry, table
from broker.verdict import Judge, Verdict, confirm_review, reject_review, undo_review
from schemas.alert import ReplyOutcome
from schemas.identifiers import authority_owner
from schemas.record import PositionOutcome as Outcome
from tests.pages import ASH, BO, DEE, KIT, NORTHFOLD, Pages
from tests.world import CASEY, World, hl7

DECISIONS = {"confirm": confirm_review, "reject": reject_review, "undo": undo_review}
JORDAN = CASEY.replace("L1,9990000018", "L2,9990000042").replace("Casey", "Jordan")


async def decide(
    world: World, decision: str, review: StoredReview, reason: str = "rang the ward", authority: str = "706"
) -> Verdict:
    owner = authority_owner(authority)
    async with world.database.writing() as connection:
        stands = await reviews.load_review(connection, world.keyring, owner, review.id, held_by=None)
        assert stands is not None
        known = await directory.load_directory(connection)
        occasion = open_occasion(world.keyring, known, world.rules, world.clock.now())
        judge = Judge(owner=owner, authority=authority, login="dee")
        return await DECISIONS[decision](connection, occasion, judge, stands, reason)


async def load(world: World, review: StoredReview) -> StoredReview:
    async with world.database.reading() as connection:
        found = await reviews.load_review(connection, world.keyring, NORTHFOLD, review.id, held_by=None)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("family", "given", "born", "outcome"),
    [
        ("TESTER", "CASEY", date(2015, 2, 3), Outcome.UNDER_REVIEW),  # day and month the other way round
        ("TESTER", "CASEY", date(2015, 3, 12), Outcome.UNDER_REVIEW),  # by the sound of the surname, or the postcode
        ("BOOKER", "CASEY", date(2015, 3, 2), Outcome.UNDER_REVIEW),  # a surname that changed
        ("TESTER", "ALMA", date(2015, 3, 3), Outcome.UNDER_REVIEW),  # twins born around midnight
        ("BOOKER", "ALMA", date(2015, 3, 2), Outcome.NO_RECORD),
        ("TESTER", "ALMA", date(2015, 9, 21), Outcome.NO_RECORD),  # a neighbour's child, or a cousin
    ],
)
async def test_who_has_no_number_is_put_before_a_person_when_enough_weighs(
    world: World, family: str, given: str, born: date, outcome: Outcome
) -> None:
    await world.list_children(CASEY)
    assert await world.receive(hl7(nhs_number="", family=family, given=given, birth_date=born)) == [outcome]
    assert await world.alerts() == []
    if outcome is Outcome.UNDER_REVIEW:
        [review] = await world.reviews()
        content = review.content
        assert content.weight is not None and content.reasons_for
        assert sum(each.weight for each in (*content.reasons_for, *content.reasons_against)) == pytest.approx(
            content.weight, abs=0.05
        )


async def test_whoever_is_listed_afterwards_is_put_before_a_person_too(world: World) -> None:
    await world.receive(hl7(nhs_number="", birth_date=date(2015, 2, 3)))
    await world.receive(hl7(nhs_number="", birth_date=date(2015, 3, 12), visit="V2", patient="K2"))
    await world.list_children(CASEY)
    await world.run_jobs()
    assert len(await world.reviews()) == 2
    assert await world.alerts() == []


async def test_a_confirmation_alerts_late_and_corrects_the_reply_and_can_be_undone(world: World) -> None:
    await world.list_children(CASEY, JORDAN)
    await world.receive(hl7(nhs_number=""))
    by_name = {review.content.listed.given: review for review in await world.reviews()}

    assert await decide(world, "confirm", by_name["Casey"]) is Verdict.NOTED
    [alert] = await world.alerts()
    assert alert.alert.late and alert.alert.child.given == "Casey"
    assert "has confirmed" in alert.alert.reason
    newest, earlier = await world.replies()
    assert (newest.outcome, earlier.outcome) == (ReplyOutcome.MATCH, ReplyOutcome.IDENTITY_TO_BE_CHECKED)
    assert [review.content.listed.given for review in await world.reviews()] == ["Jordan"], "a twin is another person"

    world.clock.advance(timedelta(minutes=5))
    assert await world.receive(hl7("A08", nhs_number="")) == [Outcome.UPDATED]
    await world.run_jobs()
    assert len(await world.alerts()) == 1

    assert await decide(world, "undo", by_name["Casey"], "it was her cousin") is Verdict.NOTED
    [alert] = await world.alerts()
    assert (alert.state, alert.closed_rule) == (AlertState.CLOSED, "confirmation_undone")
    assert alert.withdrawn_at == world.clock.now()
    corrected = (await world.replies())[0]
    assert corrected.outcome is ReplyOutcome.IDENTITY_TO_BE_CHECKED
    assert corrected.wording.startswith("Correction:")
    stored = await load(world, by_name["Casey"])
    assert (stored.decision, stored.decided_by, stored.decision_reason) == ("undone", "dee", "it was her cousin")
    assert await world.receive(hl7("A08", nhs_number="")) == [Outcome.UPDATED]
    assert [each.state for each in await world.alerts()] == [AlertState.CLOSED]


async def test_a_rejection_is_remembered_until_the_number_says_otherwise(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7(nhs_number=""))
    [review] = await world.reviews()
    assert await decide(world, "reject", review) is Verdict.NOTED
    assert await world.receive(hl7("A08", nhs_number="")) == [Outcome.UPDATED]
    await world.list_children(CASEY.replace("W1", "W9"))
    await world.run_jobs()
    assert (await world.reviews(), await world.alerts(), len(await world.replies())) == ([], [], 1)
    assert await world.receive(hl7("A08")) == [Outcome.ALERTED]


async def test_who_thinks_better_of_a_no_may_say_yes(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7(nhs_number=""))
    [review] = await world.reviews()
    await decide(world, "reject", review)
    assert await decide(world, "confirm", review) is Verdict.NOTED
    assert len(await world.alerts()) == 1


async def test_a_decision_counts_once_and_undoing_needs_a_reason(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7(nhs_number=""))
    [review] = await world.reviews()
    assert await decide(world, "undo", review) is Verdict.STALE
    assert await decide(world, "confirm", review) is Verdict.NOTED
    assert await decide(world, "confirm", review) is Verdict.STALE
    assert await decide(world, "reject", review) is Verdict.STALE
    assert await decide(world, "undo", review, "  ") is Verdict.UNREASONED
    assert (await load(world, review)).decision == "confirmed"


async def test_undoing_leaves_an_alert_that_the_number_bears_out(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7(nhs_number=""))
    [review] = await world.reviews()
    await decide(world, "confirm", review)
    await world.receive(hl7("A08"))
    assert await decide(world, "undo", review) is Verdict.NOTED
    [alert] = await world.alerts()
    assert (alert.state, alert.withdrawn_at) == (AlertState.OPEN, None)


async def test_every_authority_decides_for_itself(world: World) -> None:
    await world.list_children(CASEY)
    await world.list_children(CASEY.replace("W1", "W7"), authority="707")
    await world.receive(hl7(nhs_number=""))
    [review] = await world.reviews()
    await decide(world, "confirm", review)
    assert (len(await world.alerts("706")), len(await world.alerts("707"))) == (1, 0)
    [other] = await world.reviews("707")
    assert await decide(world, "confirm", other, authority="707") is Verdict.NOTED
    assert len(await world.alerts("707")) == 1


@pytest.mark.parametrize("decision", ["confirm", "reject"])
async def test_what_was_decided_of_a_visit_that_is_joined_into_another_goes_with_it(
    world: World, decision: str
) -> None:
    alex = "E9,9990000034,Else,Alex,2016-03-02,ZZ99 1AA,child_protection_plan,2026-01-10,,W7,East"
    await world.list_children(CASEY)
    await world.list_children(alex, authority="707")
    first = {"nhs_number": "9990000034", "family": "ELSE", "given": "ALEX", "patient": "K1"}
    await world.receive(hl7(**first), hl7(nhs_number="", patient="K2"))  # type: ignore[arg-type]  # by name
    [review] = await world.reviews()
    assert await decide(world, decision, review) is Verdict.NOTED
    before = [each.alert.alert_id for each in await world.alerts()]

    merge = hl7("A40", visit="", **first | {"nhs_number": ""})  # type: ignore[arg-type]  # by name
    await world.receive(merge + b"MRG|K2^^^RZ1^MR\r")

    standing = [each for each in await world.alerts() if each.withdrawn_at is None]
    assert [each.alert.alert_id for each in standing] == before, "what a person said is neither lost nor told twice"
    [placing] = await world.alerts("707")
    assert {placing.visit_id} | {each.visit_id for each in standing} == {placing.visit_id}
    assert not await world.reviews()
    if decision == "confirm":
        assert await decide(world, "undo", review) is Verdict.NOTED
        [alert] = await world.alerts()
        assert alert.withdrawn_rule == "confirmation_undone"


async def test_a_no_about_one_of_two_visits_that_are_one_is_a_no_about_both(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7(nhs_number="", patient="K1"), hl7(nhs_number="", patient="K2"))
    first, second = sorted(await world.reviews(), key=lambda each: each.opened_at)
    rejected = second
    async with world.database.reading() as connection:
        known = await visits.find_standing(connection, [first.visit_id, second.visit_id])
    # The visit that was heard of first stays: it is the other one of which the person decided.
    if next(iter(known)) == second.visit_id:
        rejected = first
    assert await decide(world, "reject", rejected) is Verdict.NOTED
    await world.receive(hl7("A40", nhs_number="", visit="", patient="K1") + b"MRG|K2^^^RZ1^MR\r")
    assert not await world.reviews()
    await world.receive(hl7("A08", nhs_number="", patient="K1", at=datetime(2026, 2, 14, 4, 0)))  # noqa: DTZ001
    assert not await world.reviews(), "the same doubt does not come back"
    assert not await world.alerts()


async def test_an_entry_taken_back_withdraws_what_was_confirmed(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7(nhs_number=""))
    [review] = await world.reviews()
    await decide(world, "confirm", review)
    await world.list_children(f"{CASEY},2026-02-14")
    await world.run_jobs()
    [alert] = await world.alerts()
    assert alert.withdrawn_rule == "entry_taken_back"


async def test_what_was_listed_before_there_were_more_blocks_is_blocked_anew(world: World) -> None:
    await world.list_children(CASEY)
    blocks, entries = table(EntryBlock), table(ListEntry)
    async with world.database.writing() as connection:
        await connection.execute(delete(blocks))
        await connection.execute(update(entries).values(blocks_version=BLOCKS_VERSION - 1))
    await JobRunner(world.database, world.keyring, world.clock, world.rules, JobOptions()).run_once()
    async with world.database.writing() as connection:
        assert await child_lists.block_anew(connection, world.keyring, rows_max=10) == 0
    assert await world.receive(hl7(nhs_number="", birth_date=date(2015, 2, 3))) == [Outcome.UNDER_REVIEW]


# On the page


async def test_the_page_weighs_both_sides_and_takes_the_decision(pages: Pages) -> None:
    world = pages.world
    await world.receive(hl7(nhs_number="", given="JORDAN", visit="V2", patient="K2"))
    [review] = await world.reviews()
    path = f"/reviews/{review.id}"
    async with pages.signed_in(DEE) as duty:
        assert path in (await duty.get("/inbox")).text
        shown = (await duty.get(path)).text
        for words in (
            "JORDAN TESTER",
            "Casey Tester",
            "The first given names differ",
            "The surnames are the same",
            "-4.6",
        ):
            assert words in shown
        answer = await duty.send_form(f"{path}/reject", reason="a <b>brother</b>")
        assert (answer.status_code, answer.headers["location"]) == (303, path)
        shown = (await duty.get(path)).text
        assert "Not the same person" in shown and "a &lt;b&gt;brother&lt;/b&gt;" in shown
        assert (await duty.send_form(f"{path}/reject")).status_code == 409
        assert (await duty.send_form(f"{path}/confirm")).status_code == 303
        assert (await duty.send_form(f"{path}/undo", reason="")).status_code == 400
        assert (await duty.send_form(f"{path}/undo", reason="an error")).status_code == 303
        assert "Not the same person after all" in (await duty.get(path)).text
        assert path in (await duty.get("/inbox")).text, "what was decided stays on the list for a while"
    acts = [(actor, action) for actor, action, subject in await pages.acts(NORTHFOLD) if subject == review.id]
    for action in ("review.read", "review.rejected", "review.confirmed", "review.undone"):
        assert (DEE, action) in acts


async def test_only_its_holder_and_the_duty_desk_decide_a_doubt_and_only_by_their_own_form(pages: Pages) -> None:
    world = pages.world
    await world.receive(hl7(nhs_number="", given="JORDAN", visit="V2", patient="K2"))
    [review] = await world.reviews()
    path = f"/reviews/{review.id}"
    for login in (BO, KIT):
        async with pages.signed_in(login) as stranger:
            assert (await stranger.get(path)).status_code == 404
            assert (await stranger.send_form(f"{path}/confirm")).status_code == 404
    async with pages.signed_in(ASH) as holder:
        assert (await holder.post(f"{path}/confirm", data={"form_token": "0" * 64})).status_code == 400
        assert (await load(world, review)).state is ItemState.OPEN
        assert (await holder.send_form(f"{path}/confirm")).status_code == 303
    assert len(await world.alerts()) == 2
