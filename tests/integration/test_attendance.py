"""The heart: what a batch of messages does, on both databases."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import msgspec
import pytest

from broker.consumers.loop import Batch
from broker.domain.alerts import DUTY_DESK
from broker.storage import audit, handled, quarantine, visits
from broker.storage.handled import Fenced
from broker.storage.tables import AlertState
from schemas.alert import IdentityFact, ReplyOutcome
from schemas.record import PositionOutcome as Outcome
from tests.world import CASEY, World, hl7


async def test_scenario_a_one_visit_many_messages_one_alert_one_reply(world: World) -> None:
    await world.list_children(CASEY)
    registrations = [hl7("A04", complaint=f"fall {number}") for number in range(3)]
    updates = [hl7("A08", at=datetime(2026, 2, 14, 3, 8 + number)) for number in range(20)]  # noqa: DTZ001
    persons = [hl7("A31", visit="", at=datetime(2026, 2, 14, 3, 40 + number)) for number in range(5)]  # noqa: DTZ001

    outcomes = await world.receive(*registrations, *updates, *persons)

    assert outcomes == [Outcome.ALERTED] + [Outcome.UPDATED] * 27
    [alert] = await world.alerts()
    assert alert.alert.child.nhs_number == "9990000018"
    assert alert.alert.attendance.organisation_name == "Fenwick General Hospital"
    assert alert.held_by == "W1"
    [reply] = await world.replies()
    assert reply.outcome is ReplyOutcome.MATCH
    assert reply.plans[0].emergency_telephone == "01632 960102"
    assert await world.delivery_count() == 2  # one webhook, one ORU
    async with world.database.reading() as connection:
        thread = await visits.load_messages(connection, world.keyring, alert.visit_id)
    assert len(thread) == 28, "all of it stands in one thread"


async def test_the_same_bytes_twice_count_once(world: World) -> None:
    await world.list_children(CASEY)
    message = hl7()

    assert await world.receive(message, message) == [Outcome.ALERTED, Outcome.IGNORED]
    assert await world.receive(message) == [Outcome.IGNORED]
    assert len(await world.alerts()) == 1
    assert len(await world.replies()) == 1


@pytest.mark.parametrize(
    ("changed", "differs"),
    [
        ({"family": "OTHERNAME", "given": "SOMEBODY"}, (IdentityFact.NAME,)),
        ({"birth_date": date(2015, 2, 3)}, (IdentityFact.BIRTH_DATE,)),
        ({"status": "03"}, ()),
    ],
)
async def test_an_equal_number_alerts_when_name_or_birth_date_agrees(
    world: World, changed: dict[str, str], differs: tuple[IdentityFact, ...]
) -> None:
    await world.list_children(CASEY)

    assert await world.receive(hl7(**changed)) == [Outcome.ALERTED]  # type: ignore[arg-type]
    [alert] = await world.alerts()
    assert alert.alert.differs == differs
    [reply] = await world.replies()
    assert reply.differs == differs


async def test_a_number_with_neither_name_nor_birth_date_goes_to_a_person(world: World) -> None:
    await world.list_children(CASEY)

    outcomes = await world.receive(hl7(family="OTHERNAME", given="SOMEBODY", birth_date=date(2011, 1, 1)))

    assert outcomes == [Outcome.UNDER_REVIEW]
    assert await world.alerts() == []
    [review] = await world.reviews()
    assert review.held_by == "W1"
    assert review.due_by - review.opened_at == timedelta(minutes=15)
    assert review.content.differs == (IdentityFact.BIRTH_DATE, IdentityFact.NAME)
    [reply] = await world.replies()
    assert reply.outcome is ReplyOutcome.IDENTITY_TO_BE_CHECKED
    assert "does not mean the child is safe" in reply.wording


async def test_an_update_that_agrees_turns_a_review_into_an_alert(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7(family="OTHERNAME", given="SOMEBODY", birth_date=date(2011, 1, 1)))

    outcomes = await world.receive(hl7("A08", at=datetime(2026, 2, 14, 3, 30)))  # noqa: DTZ001

    assert outcomes == [Outcome.ALERTED]
    [alert] = await world.alerts()
    assert alert.alert.late
    assert await world.reviews() == []
    newest, oldest = sorted(await world.replies(), key=lambda reply: reply.outcome is not ReplyOutcome.MATCH)
    assert (oldest.outcome, newest.outcome) == (ReplyOutcome.IDENTITY_TO_BE_CHECKED, ReplyOutcome.MATCH)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("number", ["", "9990000019"])
async def test_without_a_usable_number_the_answer_reveals_nothing(world: World, listed: bool, number: str) -> None:
    if listed:
        await world.list_children(CASEY)

    await world.receive(hl7(nhs_number=number))

    [reply] = await world.replies()
    assert reply.outcome is ReplyOutcome.IDENTITY_TO_BE_CHECKED
    assert (reply.plans, reply.differs, reply.authorities_told) == ((), (), ())
    assert await world.alerts() == []
    assert len(await world.reviews()) == (1 if listed else 0)


async def test_no_record_found_is_worded_with_what_was_searched(world: World) -> None:
    await world.list_children(CASEY)
    world.clock.advance(timedelta(hours=100))

    assert await world.receive(hl7(nhs_number="9990000026")) == [Outcome.NO_RECORD]
    [reply] = await world.replies()
    assert reply.wording == (
        "No record found; this does not mean the child is safe. 1 authority's list was searched, the oldest 100 hours "
        "old. No list from this site's own authority 707. The list of this site's own authority 706 is out of date. "
        "The national Child Protection - Information Sharing service was not asked."
    )


async def test_adults_are_answered_only_where_the_sender_asks_for_it(world: World) -> None:
    grown = date(2008, 2, 14)  # eighteen today
    assert await world.receive(hl7(birth_date=grown)) == [Outcome.SILENT_BY_RULE]
    assert await world.receive(hl7(birth_date=grown, sender="RZ2")) == [Outcome.NO_RECORD]
    assert await world.receive(hl7(birth_date=date(2008, 2, 15), visit="V2")) == [Outcome.NO_RECORD]
    assert await world.receive(hl7(birth_date=None, visit="V3")) == [Outcome.NO_RECORD]
    assert (len(await world.replies("RZ1")), len(await world.replies("RZ2"))) == (2, 1)


async def test_a_mother_of_an_unborn_child_matches_at_any_age(world: World) -> None:
    await world.list_children(
        "M1,9990000026,Tester,Morgan,1996-06-01,,unborn_child_protection_plan,2026-01-10,,W1,North"
    )
    message = hl7(nhs_number="9990000026", given="MORGAN", birth_date=date(1996, 6, 1))
    assert await world.receive(message) == [Outcome.ALERTED]


async def test_scenario_u_both_authorities_of_a_child_placed_out_of_area_are_told_and_one_reply_names_both(
    world: World,
) -> None:
    await world.list_children(CASEY, CASEY.replace("child_protection_plan", "looked_after_child").replace("W1", "W2"))
    await world.list_children(CASEY.replace("W1", "W7"), authority="707")

    assert await world.receive(hl7()) == [Outcome.ALERTED]
    [first], [second] = await world.alerts("706"), await world.alerts("707")
    assert len(first.alert.plans) == 2
    assert set(first.alert.allocated_workers) == {"W1", "W2"}
    assert second.held_by == "W7"
    [reply] = await world.replies()
    assert set(reply.authorities_told) == {"Northfold Borough Council", "Eastmere County Council"}
    contacts = {(plan.authority_name, plan.office_telephone, plan.emergency_telephone) for plan in reply.plans}
    assert contacts == {
        ("Northfold Borough Council", "01632 960101", "01632 960102"),
        ("Eastmere County Council", "01632 960201", "01632 960202"),
    }


async def test_an_alert_without_a_reachable_worker_goes_to_the_duty_desk(world: World) -> None:
    await world.list_children(CASEY.replace("W1", "W404"))
    await world.receive(hl7())
    [alert] = await world.alerts()
    assert alert.held_by == DUTY_DESK


async def test_a_number_that_comes_with_an_update_alerts_then(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7(nhs_number=""))

    person = hl7("A31", visit="", at=datetime(2026, 2, 14, 3, 50))  # noqa: DTZ001
    assert await world.receive(person) == [Outcome.ALERTED]
    [alert] = await world.alerts()
    assert alert.alert.late
    assert {reply.outcome for reply in await world.replies()} == {
        ReplyOutcome.IDENTITY_TO_BE_CHECKED,
        ReplyOutcome.MATCH,
    }


async def test_a_person_update_without_a_visit_is_ignored_with_its_reason(world: World) -> None:
    assert await world.receive(hl7("A31", visit="")) == [Outcome.IGNORED]


async def test_bad_messages_cost_only_themselves(world: World) -> None:
    await world.list_children(CASEY)
    bad = [b"\x00\xff", b"", b"MSH|^~\\&|", hl7().replace(b"PID|", b"ZZZ|"), hl7(family="X\x00Y", visit="V9")]
    outcomes = await world.receive(*bad[:4], hl7(), bad[4], hl7("ZZ1"))

    assert outcomes[:4] == [Outcome.QUARANTINED] * 4
    assert outcomes[4] is Outcome.ALERTED
    assert outcomes[6] is Outcome.IGNORED
    async with world.database.reading() as connection:
        kept = await quarantine.list_open(connection, rows_max=100)
    assert {item.due_by - item.kept_at for item in kept} == {timedelta(minutes=15)}
    assert all(item.reason and item.held_by for item in kept)


async def test_a_message_sealed_with_a_lost_key_is_kept_for_a_person(world: World) -> None:
    assert await world.receive(b"whatever", headers={"ce_keyid": b"gone"}) == [Outcome.QUARANTINED]


async def test_whoever_lost_the_partition_cannot_write(world: World) -> None:
    await world.list_children(CASEY)
    zombie = world.batch([hl7()])
    await world.receive(hl7(visit="V2"))

    with pytest.raises(Fenced):
        await world.consumer.handle(zombie)
    assert len(await world.alerts()) == 1


async def test_a_quarantined_record_moves_the_offset(world: World) -> None:
    await world.take_partition()
    batch: Batch = world.batch([hl7()])
    await world.consumer.quarantine(batch, "ended_the_process_repeatedly")
    assert await world.outcomes() == [Outcome.QUARANTINED]
    async with world.database.reading() as connection:
        [(_, _, place, _)] = await handled.load_all_places(connection)
    assert place.next_offset == 1


async def test_every_chain_is_whole_and_the_alerts_stand_in_it(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7(), hl7(visit="V2"))
    async with world.database.reading() as connection:
        owners = await audit.list_chains(connection)
        assert {owner: await audit.verify_chain(connection, owner) for owner in owners} == dict.fromkeys(owners)
    assert {"authority:706", "organisation:RZ1", "broker:operations"} <= set(owners)


async def test_scenario_o_an_acknowledgement_closes_its_own_alert_only(world: World) -> None:
    from broker.storage.alerts import acknowledge_alert

    await world.list_children(CASEY)
    await world.receive(hl7())
    [first] = await world.alerts()
    await world.receive(hl7(visit="V2"))
    async with world.database.writing() as connection:
        assert await acknowledge_alert(
            connection, "authority:706", first.alert.alert_id, by="ash@706.example.org", now=world.clock.now()
        )
        assert not await acknowledge_alert(
            connection, "authority:707", first.alert.alert_id, by="kit@707.example.org", now=world.clock.now()
        )
    states = {alert.alert.alert_id: alert.state for alert in await world.alerts()}
    assert states.pop(first.alert.alert_id) is AlertState.ACKNOWLEDGED
    assert list(states.values()) == [AlertState.OPEN]


async def test_two_patients_whose_visits_are_both_called_1_are_two_visits(world: World) -> None:
    sibling = CASEY.replace("L1", "L2").replace("9990000018", "9990000026").replace("Casey", "Jordan")
    await world.list_children(CASEY, sibling)
    first = hl7(visit="1", patient="P1")
    second = hl7(visit="1", patient="P2", nhs_number="9990000026", given="JORDAN")
    assert await world.receive(first, second) == [Outcome.ALERTED, Outcome.ALERTED]
    assert len(await world.replies()) == 2


async def test_an_update_of_the_person_finds_a_stay_that_was_heard_of_lately(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7("A01", nhs_number="", given="UNKNOWN"))
    world.clock.advance(world.rules.look_back * 0.9)
    await world.receive(hl7("A08", nhs_number="", given="UNKNOWN", at=datetime(2026, 2, 16, 20, 0)))  # noqa: DTZ001
    world.clock.advance(world.rules.look_back * 0.9)
    person = hl7("A31", visit="", at=datetime(2026, 2, 19, 12, 0))  # noqa: DTZ001
    assert await world.receive(person) == [Outcome.ALERTED]


async def test_without_any_id_of_the_sender_the_nhs_number_and_the_day_make_one_visit(world: World) -> None:
    await world.list_children(CASEY)
    bare = [hl7(event, visit="", patient="").replace(b"~^^^RZ1^MR", b"") for event in ("A04", "A08")]
    assert await world.receive(*bare) == [Outcome.ALERTED, Outcome.UPDATED]


@pytest.mark.parametrize("forged", [b"\x00", b"'; DROP TABLE visits", b"0" * 65, "é".encode()])
async def test_a_record_that_says_odd_things_of_a_replay_is_a_record_like_any_other(
    world: World, forged: bytes
) -> None:
    await world.list_children(CASEY)
    headers = {"cpis_replay": forged, "cpis_replay_of": forged}
    assert await world.receive(hl7(), headers=headers) == [Outcome.ALERTED]
    await world.consumer.quarantine(world.batch([hl7()], headers), "refused_by_the_database")


async def test_the_messages_of_a_batch_are_put_on_the_log_once_however_often_it_is_tried(world: World) -> None:
    frame = hl7(control_id="B1") + hl7(control_id="B2", visit="V2")
    batch = world.batch([frame])
    await world.take_partition()
    taken = msgspec.structs.replace(batch, expected=batch.expected + 7)
    for _ in range(3):
        with pytest.raises(Fenced):
            await world.consumer.handle(taken)
    await world.consumer.handle(batch)
    extents = await world.log.extents("attendances")
    assert sum(extent.end - extent.first for extent in extents.values()) == 2


async def test_a_batch_of_which_one_message_does_not_fit_on_the_log_goes_to_a_person(world: World) -> None:
    huge = hl7(control_id="B2", complaint="x" * 4_000_000)
    assert await world.receive(hl7(control_id="B1") + huge) == [Outcome.QUARANTINED]
    assert await world.log.extents("attendances") == {}
