"""Visits as the department tells them: corrected, joined, cancelled, left. The scenarios, on both databases."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select

from broker.directory_upload import DirectoryUpload
from broker.domain.alerts import DUTY_DESK
from broker.domain.course import VisitState
from broker.storage import alerts, persons, visits
from broker.storage.tables import AuditRow, Delivery, PersonMessage, Visit, table
from schemas.alert import NoticeKind, ReplyOutcome
from schemas.record import PositionOutcome as Outcome
from tests.bundles import (
    NHS_NUMBER,
    encode,
    make_bars_message,
    make_bundle,
    make_encounter,
    make_header,
    make_organisation,
    make_patient,
    make_transaction,
)
from tests.world import CASEY, SITES, World, hl7, open_world

ALMA = "L2,9990000026,Tester,Alma,2014-05-06,ZZ99 1AA,child_protection_plan,2026-01-10,,W7,East"
NIGHT = datetime(2026, 2, 14, 3, 7)  # noqa: DTZ001 - HL7 v2 writes local time
SAM = "L2,9990000026,Tester,Sam,2017-05-05,ZZ99 1AA,looked_after_child,2026-01-10,,W1,North"
UNKNOWN: dict[str, object] = {"nhs_number": "", "family": "UNKNOWN", "given": "FEMALE", "birth_date": None}


def after(minutes: float) -> datetime:
    """Minutes after the child came."""
    return NIGHT + timedelta(minutes=minutes)


def merge(survivor: str, former: str, *, at: datetime = NIGHT, **person: object) -> bytes:
    """``former`` is ``survivor`` from now on, of whom the message says who it is."""
    message = hl7("A40", visit="", patient=survivor, at=at, **person)  # type: ignore[arg-type]
    return message + f"MRG|{former}^^^RZ1^MR\r".encode()


def unmerge(one: str, other: str, *, at: datetime) -> bytes:
    """The two are two people after all (A37 has two PIDs)."""
    message = hl7("A37", visit="", patient=one, at=at)
    return message + f"PID|2||{other}^^^RZ1^MR||UNKNOWN^FEMALE\r".encode()


def with_disposition(message: bytes, code: str) -> bytes:
    """The message with PV1-36."""
    lines = message.decode().split("\r")
    number = next(number for number, line in enumerate(lines) if line.startswith("PV1"))
    fields = lines[number].split("|")
    fields[36] = code
    lines[number] = "|".join(fields)
    return "\r".join(lines).encode()


async def states_of(world: World) -> dict[str, str | None]:
    """Every visit that is one, and where it stands."""
    columns = table(Visit).c
    async with world.database.reading() as connection:
        rows = await connection.execute(select(columns.id, columns.state).where(columns.joined_into.is_(None)))
        return {row.id: row.state for row in rows}


async def events_sent(world: World) -> list[str]:
    """What kinds of things were put in the outbox, in their order."""
    columns = table(Delivery).c
    async with world.database.reading() as connection:
        rows = await connection.execute(select(columns.event_type, columns.id))
        return sorted(row.event_type.removeprefix("uk.cpis-broker.").removesuffix(".v1") for row in rows)


async def test_scenario_b_an_unknown_child_is_merged_into_a_listed_one_forty_minutes_later(world: World) -> None:
    await world.list_children(CASEY)
    assert await world.receive(hl7(patient="U77", **UNKNOWN)) == [Outcome.NO_RECORD]  # type: ignore[arg-type]
    world.clock.advance(timedelta(minutes=40))

    assert await world.receive(merge("K12345", "U77", at=after(40))) == [Outcome.ALERTED]

    [alert] = await world.alerts()
    assert alert.alert.late
    assert "Identity corrected at 03:47 on 14 February 2026: records joined, A40." in alert.alert.reason
    assert alert.alert.identity_corrected_at is not None
    replies = {reply.outcome: reply.wording for reply in await world.replies()}
    assert replies.keys() == {ReplyOutcome.IDENTITY_TO_BE_CHECKED, ReplyOutcome.MATCH}
    marked = "Identity corrected at 03:47 on 14 February 2026: records joined, A40. This person is on"
    assert replies[ReplyOutcome.MATCH].startswith(marked)
    async with world.database.reading() as connection:
        acts = (await connection.execute(select(table(AuditRow).c.action, table(AuditRow).c.reason))).all()
    assert ("alert.raised", "identity_corrected A40") in {tuple(act) for act in acts}, "the cause is on record"
    # From now on the department speaks of the visit under the number that is left.
    assert await world.receive(hl7("A08", patient="K12345", at=after(50))) == [Outcome.UPDATED]
    assert len(await states_of(world)) == 1


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_merge_is_taken_in_in_whatever_order_it_comes(
    sqlite_url: str, tmp_path: Path, order: Sequence[int], at_once: bool
) -> None:
    messages = [
        hl7(patient="U77", **UNKNOWN),  # type: ignore[arg-type]
        merge("K12345", "U77", at=after(40)),
        hl7("A08", patient="K12345", nhs_number="", at=after(50)),
    ]
    async with open_world(sqlite_url, tmp_path) as world:
        await world.list_children(CASEY)
        for batch in [[messages[n] for n in order]] if at_once else [[messages[n]] for n in order]:
            await world.receive(*batch)
        standing = [alert for alert in await world.alerts() if alert.withdrawn_at is None]
        assert len(standing) == 1
        assert list((await states_of(world)).values()) == ["here"]


async def test_two_visits_that_turn_out_to_be_one_keep_one_alert(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7(patient="U77"), hl7("A08", patient="K12345", at=after(5)))
    assert len(await world.alerts()) == 2

    await world.receive(merge("K12345", "U77", at=after(40)))

    rules = sorted(alert.withdrawn_rule or "" for alert in await world.alerts())
    assert rules == ["", "visits_joined"]
    assert len(await states_of(world)) == 1


async def test_an_undone_merge_is_taken_back_with_what_rested_on_it(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7(patient="U77", **UNKNOWN), merge("K12345", "U77", at=after(40)))  # type: ignore[arg-type]
    assert len(await world.alerts()) == 1

    await world.receive(unmerge("K12345", "U77", at=after(60)))

    [alert] = await world.alerts()
    assert alert.withdrawn_rule == "identity_corrected"
    newest = max(await world.replies(), key=lambda reply: reply.wording.startswith("Correction"))
    assert newest.wording.startswith("Correction: since the earlier reply for this visit the identity was corrected")
    # Heard again, the merge is still undone; a later one stands.
    await world.receive(merge("K12345", "U77", at=after(41)))
    assert len(await world.alerts()) == 1
    await world.receive(merge("K12345", "U77", at=after(90)))
    assert sorted(each.withdrawn_at is None for each in await world.alerts()) == [False, True]


async def test_a_person_undoes_a_merge_and_it_is_as_if_the_department_had(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7(patient="U77", **UNKNOWN), merge("K12345", "U77", at=after(40)))  # type: ignore[arg-type]
    [alert] = await world.alerts()
    async with world.database.reading() as connection:
        [found] = await persons.list_merges(connection, world.keyring, alert_id=alert.alert.alert_id, rows_max=9)
        assert await persons.list_merges(connection, world.keyring, alert_id=None, rows_max=9) == [found]
    assert not found.is_undone

    marker = bytes.fromhex(found.id)
    assert await world.consumer.undo_merge(marker, by="Sam Tester", reason="joined in error")
    assert not await world.consumer.undo_merge(marker, by="Sam Tester", reason="")
    assert not await world.consumer.undo_merge(bytes(32), by="Sam Tester", reason="")

    [alert] = await world.alerts()
    assert alert.withdrawn_rule == "identity_corrected"
    assert any(reply.wording.startswith("Correction") for reply in await world.replies())
    columns = table(AuditRow).c
    async with world.database.reading() as connection:
        [merged] = await persons.list_merges(connection, world.keyring, alert_id=None, rows_max=9)
        acts = await connection.execute(select(columns.actor).where(columns.action == "merge.undone"))
        assert [row.actor for row in acts] == ["Sam Tester"]
    assert merged.is_undone
    # A merge of the same two that happens later stands again.
    await world.receive(merge("K12345", "U77", at=after(90)))
    assert sorted(each.withdrawn_at is None for each in await world.alerts()) == [False, True]


async def test_scenario_c_a_corrected_number_withdraws_from_the_wrong_authority_and_alerts_the_right_one(
    world: World,
) -> None:
    await world.list_children(CASEY)
    await world.list_children(ALMA, authority="707")
    await world.receive(hl7())
    alma = hl7("A08", nhs_number="9990000026", given="ALMA", birth_date=datetime(2014, 5, 6), at=after(9))  # noqa: DTZ001

    assert await world.receive(alma) == [Outcome.ALERTED]

    [wrong], [right] = await world.alerts("706"), await world.alerts("707")
    assert wrong.withdrawn_rule == "identity_corrected"
    assert right.withdrawn_at is None
    assert right.alert.identity_corrected_at is not None
    corrected = [reply for reply in await world.replies() if reply.wording.startswith("Correction: ")]
    assert [reply.outcome for reply in corrected] == [ReplyOutcome.MATCH]
    assert corrected[0].authorities_told == ("Eastmere County Council",)
    assert (await events_sent(world)).count("alert.withdrawn") == 1
    await world.receive(hl7("A08", at=after(3)))  # an earlier message that comes late changes nothing
    assert [each.withdrawn_at is None for each in (*await world.alerts("706"), *await world.alerts("707"))] == [
        False,
        True,
    ]


async def test_a_number_corrected_to_another_child_of_the_same_list_is_another_alert(world: World) -> None:
    await world.list_children(CASEY, ALMA)
    await world.receive(hl7())
    alma = hl7("A08", nhs_number="9990000026", given="ALMA", birth_date=datetime(2014, 5, 6), at=after(9))  # noqa: DTZ001
    await world.receive(alma)
    stands = {alert.alert.child.given: alert.withdrawn_at is None for alert in await world.alerts()}
    assert stands == {"Casey": False, "Alma": True}


def of_sam(event: str, nhs_number: str, at: datetime) -> bytes:
    return hl7(event, at=at, nhs_number=nhs_number, given="SAM", birth_date=date(2017, 5, 5))


async def test_a_doubt_falls_with_the_number_it_rested_on_and_comes_back_with_it(world: World) -> None:
    await world.list_children(CASEY, SAM)
    caseys, own, minute = "9990000018", "9990000026", timedelta(minutes=1)
    for step in range(2):
        at = NIGHT + 2 * step * minute
        await world.receive(of_sam("A08" if step else "A04", caseys, at))
        assert [review.content.listed.given for review in await world.reviews()] == ["Casey"]
        assert [each.withdrawn_at is None for each in await world.alerts()] == [False] * step
        await world.receive(of_sam("A08", own, at + minute))
        assert await world.reviews() == [], "it is known whose number it was"
        world.clock.advance(2 * minute)
    said = [of_sam("A08", number, at + after * minute) for after, number in ((2, caseys), (3, own), (4, caseys))]
    await world.receive(*said)
    assert [review.content.listed.given for review in await world.reviews()] == ["Casey"], "of one batch too"


async def test_scenario_r_a_child_who_leaves_before_treatment_is_the_duty_desks_at_once(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7())
    [before] = await world.alerts()
    world.clock.advance(timedelta(minutes=5))

    left = with_disposition(hl7("A03", at=after(10)), "12")
    assert await world.receive(left) == [Outcome.UPDATED]

    [alert] = await world.alerts()
    assert (before.held_by, alert.held_by, alert.level) == ("W1", DUTY_DESK, 1)
    assert alert.due_by == before.due_by
    async with world.database.reading() as connection:
        [notice] = await alerts.load_notices(connection, alert.alert.alert_id)
    assert (notice.kind, notice.is_urgent) == (NoticeKind.LEFT_BEFORE_TREATMENT, True)
    assert (await events_sent(world)).count("alert.updated") == 1
    # Said again, it is told once.
    await world.receive(with_disposition(hl7("A08", at=after(11)), "12"))
    assert (await events_sent(world)).count("alert.updated") == 1


async def test_who_was_told_that_a_child_left_is_told_that_they_are_back(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7(), with_disposition(hl7("A03", at=after(10)), "12"), hl7("A13", at=after(15)))
    [alert] = await world.alerts()
    async with world.database.reading() as connection:
        told = await alerts.load_notices(connection, alert.alert.alert_id)
    assert {notice.kind for notice in told} == {NoticeKind.LEFT_BEFORE_TREATMENT, NoticeKind.STILL_HERE}
    assert list((await states_of(world)).values()) == [VisitState.HERE]


async def test_an_alert_raised_after_the_child_left_says_so_itself(world: World) -> None:
    await world.list_children(CASEY)
    left = with_disposition(hl7("A03", nhs_number="", at=after(10)), "12")
    await world.receive(hl7(nhs_number=""), left, hl7("A08", at=after(20)))
    [alert] = await world.alerts()
    assert "left the department before treatment" in alert.alert.reason
    assert "alert.updated" not in await events_sent(world)


async def test_news_of_a_person_counts_before_and_after_they_come(world: World) -> None:
    await world.list_children(CASEY)
    early = hl7("A31", visit="", at=after(-30))
    assert await world.receive(early) == [Outcome.IGNORED]
    assert await world.receive(hl7(nhs_number="")) == [Outcome.ALERTED]


FEED = {"A08": 0.48, "A31": 0.31, "A04": 0.17}
"""The shares of one real feed of 219,564 messages; the rest is discharges."""


async def _receive_day(directory: Path, count: int) -> None:
    chance = random.Random(11)
    events = [event for event, share in FEED.items() for _ in range(round(count * share))]
    registrations = events.count("A04") // 3
    people = [f"P{number}" for number in range(registrations)]
    messages = [
        hl7(patient=person, visit=f"V-{person}", nhs_number=_number_of(person), at=after(0)) for person in people
    ]
    follow_ups = [event for event in events if event != "A04"] + ["A04"] * (events.count("A04") - registrations)
    follow_ups += ["A03"] * (count - len(messages) - len(follow_ups))
    chance.shuffle(follow_ups)
    for number, event in enumerate(follow_ups):
        person = chance.choice(people)
        visit = "" if event == "A31" else f"V-{person}"
        at = after(1 + number / 100)
        messages.append(hl7(event, patient=person, visit=visit, nhs_number=_number_of(person), at=at))
    async with open_world(f"sqlite+aiosqlite:///{directory / 'broker.sqlite'}", directory) as world:
        await world.list_children(CASEY)
        outcomes: list[Outcome] = []
        for start in range(0, len(messages), 500):
            outcomes += await world.receive(*messages[start : start + 500])
        assert len(outcomes) == count
        listed = sum(_number_of(person) == "9990000018" for person in people)
        assert outcomes.count(Outcome.ALERTED) == listed == len(await world.alerts()) > 0
        assert outcomes.count(Outcome.NO_RECORD) == len(people) - listed
        assert outcomes.count(Outcome.UPDATED) == count - len(people)
        assert await world.delivery_count() == 2 * listed + (len(people) - listed)


def _number_of(person: str) -> str:
    """One person in twenty is Casey; the others are on no list."""
    return "9990000018" if int(person[1:]) % 20 == 7 else "9990000026"


async def test_a_tenth_of_a_day_of_one_real_feed_has_the_right_counts(tmp_path: Path) -> None:
    await _receive_day(tmp_path, 21956)


async def test_news_of_persons_is_forgotten_after_the_look_back_and_merges_are_not(world: World) -> None:
    await world.receive(hl7("A31", visit=""), merge("K1", "U1", nhs_number=""))
    world.clock.advance(world.rules.look_back * 1.01)
    await world.run_jobs()
    columns = table(PersonMessage).c
    async with world.database.reading() as connection:
        [kept] = (await connection.execute(select(columns.former_index))).scalars()
    assert kept is not None


RESTED = timedelta(hours=73)


async def test_a_visit_of_which_nothing_is_heard_comes_to_rest_and_nobody_is_told(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7())
    [first], sent = await world.alerts(), await told_of_visits(world)
    world.clock.advance(timedelta(hours=71))
    await world.run_jobs()
    assert await closed_visits(world) == []
    world.clock.advance(timedelta(hours=2))
    await world.run_jobs()
    assert await closed_visits(world) == [first.visit_id]
    assert await told_of_visits(world) == sent
    # A registration that is sent again, and a discharge that was forgotten: the same visit, under way again.
    assert await world.receive(hl7(), hl7("A03", at=after(60 * 71))) == [Outcome.UPDATED] * 2
    assert await closed_visits(world) == []
    assert await told_of_visits(world) == sent
    assert len(await world.alerts()) == 1


async def test_who_comes_again_under_a_number_that_came_to_rest_is_alerted_again(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7())
    for number in (1, 2):
        world.clock.advance(RESTED)
        await world.run_jobs()
        again = after(60 * 74 * number)
        outcomes = await world.receive(hl7(at=again), hl7("A08", at=again + timedelta(minutes=5)))
        assert outcomes == [Outcome.ALERTED, Outcome.UPDATED]
    assert len(await world.alerts()) == 3
    # What was sent of the first visit late is still of the first.
    assert await world.receive(hl7("A08", at=after(10), complaint="Fracture")) == [Outcome.UPDATED]
    async with world.database.reading() as connection:
        threads = [
            await visits.load_messages(connection, world.keyring, each.visit_id) for each in await world.alerts()
        ]
    assert sorted(len(messages) for messages in threads) == [2, 2, 2]


async def test_however_late_a_visit_is_seen_to_rest_who_came_since_its_limit_came_anew(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7())
    world.clock.advance(timedelta(days=9))  # nobody looked for days
    await world.run_jobs()
    again = after(60 * 24 * 8)
    assert await world.receive(hl7(at=again)) == [Outcome.ALERTED], "its message was held up, and comes after the job"
    assert len(await world.alerts()) == 2


async def test_a_ward_may_be_silent_for_weeks_and_who_was_expected_comes_to_the_visit_announced(world: World) -> None:
    await world.list_children(CASEY)
    await world.receive(hl7(), hl7("A06", at=after(10)), hl7("A05", patient="K9", visit="V9", nhs_number="9990000026"))
    world.clock.advance(RESTED)
    await world.run_jobs()
    assert len(await closed_visits(world)) == 1
    later = after(60 * 74)
    await world.receive(hl7(patient="K9", visit="V9", nhs_number="9990000026", at=later))
    assert await closed_visits(world) == []
    assert len(await states_of(world)) == 2
    world.clock.advance(timedelta(days=29))
    await world.run_jobs()
    assert len(await closed_visits(world)) == 2


MIDNIGHT = datetime(2026, 2, 14)  # noqa: DTZ001 - HL7 v2 writes local time


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_visit_without_a_number_goes_on_after_midnight(
    sqlite_url: str, tmp_path: Path, order: Sequence[int], at_once: bool
) -> None:
    messages = [
        hl7(visit="", at=MIDNIGHT - timedelta(hours=1)),
        hl7("A08", visit="", at=MIDNIGHT + timedelta(minutes=20)),
        hl7("A03", visit="", at=MIDNIGHT + timedelta(minutes=40)),
    ]
    async with open_world(sqlite_url, tmp_path) as world:
        await world.list_children(CASEY)
        for batch in [[messages[n] for n in order]] if at_once else [[messages[n]] for n in order]:
            await world.receive(*batch)
        assert list((await states_of(world)).values()) == ["left"]
        assert [each.withdrawn_rule for each in await world.alerts()] == [None]
        # Who is registered again on that day has come again; what is said afterwards is of that visit.
        assert await world.receive(hl7(visit="", at=MIDNIGHT + timedelta(hours=2))) == [Outcome.ALERTED]
        assert await world.receive(hl7("A03", visit="", at=MIDNIGHT + timedelta(hours=3))) == [Outcome.UPDATED]
        assert await world.receive(hl7("A08", visit="", at=MIDNIGHT + timedelta(minutes=45))) == [Outcome.UPDATED]
        assert list((await states_of(world)).values()) == ["left", "left"]


async def test_without_a_number_or_a_registration_nothing_says_that_who_is_here_came_yesterday(world: World) -> None:
    await world.list_children(CASEY)
    days = [hl7("A08", visit="", at=MIDNIGHT + timedelta(hours=hours)) for hours in (-1, 1)]
    assert await world.receive(*days) == [Outcome.ALERTED, Outcome.ALERTED]
    late = hl7("A03", visit="", patient="K2", at=MIDNIGHT + timedelta(hours=1))
    assert await world.receive(hl7(visit="", patient="K2", at=MIDNIGHT - timedelta(days=3)), late) == [
        Outcome.ALERTED,
        Outcome.ALERTED,
    ]


async def test_without_a_number_who_is_spoken_of_weeks_after_a_stay_has_come_again(world: World) -> None:
    await world.list_children(CASEY)
    hours = {"A04": -30, "A06": -28, "A08": 200, "A03": 210}
    stay = [hl7(event, visit="", at=MIDNIGHT + timedelta(hours=each)) for event, each in hours.items()]
    assert await world.receive(*stay) == [Outcome.ALERTED, *[Outcome.UPDATED] * 3]
    coded = hl7("A08", visit="", at=MIDNIGHT + timedelta(hours=210 + 71))
    assert await world.receive(coded) == [Outcome.UPDATED]
    again = hl7("A08", visit="", at=MIDNIGHT + timedelta(hours=210 + 73))
    assert await world.receive(again) == [Outcome.ALERTED]


async def test_a_merge_leaves_apart_who_was_registered_on_the_day_on_which_a_visit_before_ended(world: World) -> None:
    await world.list_children(CASEY)
    registered = [hl7(visit="", at=MIDNIGHT + timedelta(hours=hours)) for hours in (12, -1)]
    ended = [hl7("A08", visit="", at=MIDNIGHT + timedelta(minutes=10 + number)) for number in range(12)]
    await world.receive(*ended, hl7("A03", visit="", at=MIDNIGHT + timedelta(minutes=40)), registered[1])
    await world.receive(registered[0])
    await world.receive(merge("K12345", "U1", at=MIDNIGHT + timedelta(hours=13)))
    assert set((await states_of(world)).values()) == {"here", "left"}
    assert [each.withdrawn_rule for each in await world.alerts()] == [None, None]


async def closed_visits(world: World) -> list[str]:
    """The visits that came to rest."""
    columns = table(Visit).c
    async with world.database.reading() as connection:
        return list((await connection.execute(select(columns.id).where(columns.closed_at.is_not(None)))).scalars())


async def told_of_visits(world: World) -> list[str]:
    """What was sent of visits; a list that is late has its own messages."""
    return [event for event in await events_sent(world) if not event.startswith("coverage")]


def move(event: str, former_visit: str, *, patient: str = "K12345", former: str = "K12345", **more: object) -> bytes:
    """The visit ``former_visit`` of ``former`` is the one in PV1-19 from now on."""
    message = hl7(event, patient=patient, **more)  # type: ignore[arg-type]
    head, pv1 = message.decode().split("\rPV1", 1)
    return f"{head}\rMRG|{former}^^^RZ1^MR||||{former_visit}^^^VISITID\rPV1{pv1}".encode()


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("event", ["A42", "A50"])
async def test_a_visit_that_is_renumbered_stays_one_visit_with_one_alert(
    sqlite_url: str, tmp_path: Path, event: str, order: tuple[int, ...]
) -> None:
    messages = [hl7(), move(event, "V1", visit="V2", at=after(10)), hl7("A08", visit="V2", at=after(20))]
    async with open_world(sqlite_url, tmp_path) as world:
        await world.list_children(CASEY)
        for number in order:
            await world.receive(messages[number])
        await world.receive(hl7("A08", at=after(30), complaint="Fracture"))
        assert list((await states_of(world)).values()) == ["here"]
        found = await world.alerts()
        assert len([each for each in found if each.withdrawn_at is None]) == 1
        # Only who heard of both numbers before the move was alerted of both.
        assert len(found) == (2 if order[2] == 1 else 1)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_a_visit_that_is_moved_to_another_patient_goes_to_the_right_authority(
    world: World, order: tuple[int, ...]
) -> None:
    await world.list_children(CASEY)
    await world.list_children(ALMA, authority="707")
    alma: dict[str, object] = {"nhs_number": "9990000026", "given": "ALMA", "birth_date": datetime(2014, 5, 6)}  # noqa: DTZ001
    messages = [hl7(), move("A45", "V1", patient="K2", at=after(10), **alma)]  # type: ignore[arg-type]
    for number in order:
        await world.receive(messages[number])
    # What is said of the first patient afterwards is not said of this visit any more.
    await world.receive(hl7("A31", visit="", at=after(20)))
    assert len(await states_of(world)) == 1
    assert [each for each in await world.alerts() if each.withdrawn_at is None] == []
    [alert] = await world.alerts("707")
    assert alert.withdrawn_at is None
    if order == (0, 1):
        [wrong] = await world.alerts()
        assert wrong.withdrawn_at is not None
        assert (await world.replies())[0].outcome is ReplyOutcome.MATCH
    # ... and moved back it is the first patient's again.
    await world.receive(move("A45", "V1", former="K2", at=after(30)))
    assert [each for each in await world.alerts("707") if each.withdrawn_at is None] == []
    assert len([each for each in await world.alerts() if each.withdrawn_at is None]) == 1


BARS_REASON = "https://fhir.nhs.uk/CodeSystem/message-reason-bars"


def bundle(minute: int, reason: str, status: str, **patient: object) -> bytes:
    """One FHIR message about the child's visit, in the words of BaRS."""
    header = make_header(
        id=f"m{minute}", reason={"coding": [{"system": BARS_REASON, "code": reason}]}, eventCoding=None
    )
    message = make_bundle(header, make_encounter(status=status), make_patient(**patient), make_organisation())
    return encode({**message, "timestamp": f"2026-02-14T03:{minute:02}:00+00:00"})


@pytest.mark.parametrize("end", [("delete", "arrived"), ("update", "cancelled"), ("update", "entered-in-error")])
async def test_a_fhir_visit_is_new_then_updated_then_taken_back(
    sqlite_url: str, tmp_path: Path, end: tuple[str, str]
) -> None:
    async with open_world(sqlite_url, tmp_path) as world:
        await world.list_children(CASEY.replace("9990000018", NHS_NUMBER))
        said = [bundle(8, "new", "arrived"), bundle(9, "update", "in-progress"), bundle(10, *end)]
        assert await world.receive(*said) == [Outcome.ALERTED, Outcome.UPDATED, Outcome.UPDATED]
        assert list((await states_of(world)).values()) == ["cancelled"]
        assert (await events_sent(world)).count("alert.updated") == 1


async def test_records_that_a_fhir_link_joins_are_one_patient(sqlite_url: str, tmp_path: Path) -> None:
    unknown = {"system": "https://rz1.example.org/mrn", "value": "U1"}
    async with open_world(sqlite_url, tmp_path) as world:
        await world.list_children(CASEY.replace("9990000018", NHS_NUMBER))
        await world.receive(bundle(8, "new", "arrived", identifier=[unknown], name=None, birthDate=None))
        assert await world.alerts() == []
        world.clock.advance(timedelta(minutes=1))
        link = [{"other": {"identifier": unknown}, "type": "replaces"}]
        assert await world.receive(bundle(9, "update", "in-progress", link=link)) == [Outcome.ALERTED]
        assert len(await states_of(world)) == 1
        [alert] = await world.alerts()
        assert "Identity corrected" in alert.alert.reason


U1 = {"system": "https://rz1.example.org/mrn", "value": "U1"}


def joining(minute: int, of: str, *, is_bars: bool) -> bytes:
    """One FHIR message about two records of a person and no visit, in the shape of BaRS or of a transaction."""
    link = [{"other": {"reference": "Patient/p2"}, "type": "replaces"}] if of != "former" else None
    left = make_patient(link=link)
    back = [{"other": {"reference": "Patient/p1"}, "type": "replaced-by"}] if of != "survivor" else None
    former = make_patient(id="p2", identifier=[U1], name=None, birthDate=None, active=False, link=back)
    resources = [former, left, make_organisation()]
    message = make_transaction(*resources)
    if is_bars:
        message = make_bars_message("person-update", resources, focus="Patient/p1", reason="update")
    return encode({**message, "timestamp": f"2026-02-14T03:{minute:02}:00+00:00"})


@pytest.mark.parametrize(
    ("of", "is_bars", "is_first"), [("survivor", True, False), ("former", False, False), ("both", True, True)]
)
async def test_a_fhir_merge_without_a_visit_joins_records_as_an_a40(
    sqlite_url: str, tmp_path: Path, of: str, is_bars: bool, is_first: bool
) -> None:
    came = bundle(8, "new", "arrived", identifier=[U1], name=None, birthDate=None)
    merge = joining(40, of, is_bars=is_bars)
    sent_by = {"ce_source": b"RZ1"}
    async with open_world(sqlite_url, tmp_path) as world:
        await world.list_children(CASEY.replace("9990000018", NHS_NUMBER))
        messages = (merge, came) if is_first else (came, merge)
        outcomes = [outcome for each in messages for outcome in await world.receive(each, headers=sent_by)]
        assert outcomes == [Outcome.IGNORED if is_first else Outcome.NO_RECORD, Outcome.ALERTED]
        [alert] = await world.alerts()
        assert ("records joined, A40" in alert.alert.reason) != is_first
        assert await world.receive(bundle(50, "update", "in-progress"), headers=sent_by) == [Outcome.UPDATED]
        assert len(await states_of(world)) == 1


REGISTERED: list[tuple[str, list[bytes], list[Outcome]]] = [
    ("A04", [hl7("A08"), hl7("A04", at=after(1))], [Outcome.IGNORED, Outcome.ALERTED]),
    ("A01", [hl7("A01"), hl7("A08", at=after(1))], [Outcome.ALERTED, Outcome.UPDATED]),
    ("A28 A08", [hl7("A28", visit=""), hl7("A08", nhs_number="", at=after(1))], [Outcome.IGNORED, Outcome.ALERTED]),
    ("A28", [hl7("A28"), hl7("A08", at=after(1))], [Outcome.ALERTED, Outcome.UPDATED]),
    ("", [hl7("A08"), hl7("A04", at=after(1))], [Outcome.ALERTED, Outcome.UPDATED]),
]


@pytest.mark.parametrize(("habit", "messages", "outcomes"), REGISTERED)
async def test_a_registration_is_known_by_how_its_system_marks_it(
    sqlite_url: str, tmp_path: Path, habit: str, messages: list[bytes], outcomes: list[Outcome]
) -> None:
    async with open_world(sqlite_url, tmp_path) as world:
        header, *rows = SITES.splitlines()
        file = "\n".join([f"{header},registers_by", *(f"{row},{habit}" for row in rows)])
        upload = DirectoryUpload(
            world.database, world.keyring, world.clock, demo_passwords=True, actor="test", dry_run=False
        )
        assert not (await upload.load_sites(file.encode(), tmp_path / "senders.json")).refused
        await world.list_children(CASEY)
        assert await world.receive(*messages) == outcomes
        assert list((await states_of(world)).values()) == ["here"]
        assert len(await world.alerts()) == 1
        assert "alert.updated" not in await events_sent(world)
