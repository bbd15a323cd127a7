"""Operation Encompass in a small world: Saturday of half-term to Monday morning, and everything that goes wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from broker.domain.encompass import LookUpReason
from broker.jobs.retention import RetentionRules, drop_incidents
from broker.notices import replan
from broker.storage import incidents, ledger
from broker.storage.audit import verify_chain
from broker.storage.incidents import Found, may_read
from broker.storage.tables import AuditRow, Delivery, IncidentVersion, NoticeRow, NoticeSending, SchoolRecord, table
from broker.topics import ENCOMPASS_GROUP, INCIDENTS
from schemas.encompass import NoticeState, StandardNotice, TaskKind
from schemas.record import Partition, PartitionExtent, PositionOutcome
from tests.encompass import SATURDAY, STATEMENT, Encompass, at_school, child, half_term, open_encompass
from tests.world import LOG_ID

SUNDAY = SATURDAY + timedelta(hours=12)
MILL_LANE_RETURN = datetime(2026, 2, 23, tzinfo=UTC)
EASTMERE_DAY = datetime(2026, 2, 16, tzinfo=UTC)


@pytest.fixture
async def encompass(world_url: str, tmp_path: Path) -> AsyncIterator[Encompass]:
    """The small world on each engine."""
    async with open_encompass(world_url, tmp_path) as opened:
        yield opened


async def count(encompass: Encompass, model: Any) -> int:
    async with encompass.world.database.reading() as connection:
        return int((await connection.execute(select(func.count()).select_from(table(model)))).scalar_one())


async def audited(encompass: Encompass, owner: str) -> list[tuple[str, str]]:
    rows = table(AuditRow).c
    async with encompass.world.database.reading() as connection:
        found = await connection.execute(
            select(rows.action, rows.reason).where(rows.owner == owner).order_by(rows.sequence)
        )
        assert await verify_chain(connection, owner) is None
        return [(row.action, row.reason) for row in found]


async def assert_balances(encompass: Encompass) -> None:
    extents = {Partition(INCIDENTS, 0): PartitionExtent(log_id=LOG_ID, first=0, end=encompass.offset)}
    async with encompass.world.database.reading() as connection:
        topic = await ledger.count_topic(connection, ENCOMPASS_GROUP, INCIDENTS, extents)
        notices = await ledger.count_notices(connection)
    assert topic.balances and topic.waiting == 0
    assert notices.balances, notices


async def test_saturday_of_half_term_to_the_bell(encompass: Encompass) -> None:
    """Scenario K."""
    assert await encompass.receive(half_term()) == [PositionOutcome.ALERTED]
    notices = await encompass.notices()
    assert set(notices) == {"900001", "900002"}
    mill_lane, eastmere = notices["900001"], notices["900002"]
    for notice, given in ((mill_lane, "Jordan"), (eastmere, "Sidney")):
        content = notice.telling.notice
        assert isinstance(content, StandardNotice)
        assert [each.given_name for each in content.children] == [given]
        assert content.statement == STATEMENT
    # Half-term at Mill Lane: due on return, at 08:50 less a quarter of an hour, and again an hour before.
    assert mill_lane.due_by == MILL_LANE_RETURN + timedelta(hours=8, minutes=35)
    assert mill_lane.remind_at == MILL_LANE_RETURN + timedelta(hours=7, minutes=50)
    # No half-term yet in the other county: due on Monday.
    assert eastmere.due_by == EASTMERE_DAY + timedelta(hours=8, minutes=15)
    assert mill_lane.telling.told == ("A2",)
    assert [(each.contact_id, each.reason.value) for each in mill_lane.telling.skipped] == [("A1", "excluded")]
    [officer] = await encompass.tasks()
    assert (officer.kind, officer.owner) == (TaskKind.TELL_OFFICER, "authority:706")
    assert [each.given_name for each in officer.matter.children] == ["Morgan"]
    assert ("recipient.skipped", "excluded A1") in await audited(encompass, "force:ZF1")

    await encompass.run_jobs()
    notices = await encompass.notices()
    assert {notice.state for notice in notices.values()} == {NoticeState.SENT}
    assert all(notice.sent_at == encompass.world.clock.now() for notice in notices.values())

    # On Sunday the force corrects Jordan's birth date: one notice amended, none doubled, the other untouched.
    encompass.world.clock.move_to(SUNDAY)
    corrected = half_term(version=2, change="correction")
    corrected["children"][0]["birth_date"] = "2016-04-06"
    assert await encompass.receive(corrected) == [PositionOutcome.UPDATED]
    await encompass.run_jobs()
    notices = await encompass.notices()
    assert notices["900001"].version == 2 and notices["900001"].state is NoticeState.SENT
    assert notices["900002"].version == 1 and notices["900002"].sent_at == eastmere.send_at + timedelta(minutes=5)
    assert await count(encompass, NoticeRow) == 2
    assert len(await encompass.tasks()) == 1

    # Nobody acknowledges: at the bell the authority's officer is given the telephone of the school's office.
    encompass.world.clock.move_to(EASTMERE_DAY + timedelta(hours=8, minutes=14))
    assert await encompass.run_jobs() == 0
    encompass.world.clock.advance(timedelta(minutes=1))
    await encompass.run_jobs()
    ring = [task for task in await encompass.tasks() if task.kind is TaskKind.RING_SCHOOL]
    assert [(task.owner, task.urn, task.matter.telephone) for task in ring] == [
        ("authority:707", "900002", "01632 960402")
    ]
    assert await encompass.run_jobs() == 0

    encompass.world.clock.move_to(MILL_LANE_RETURN + timedelta(hours=7, minutes=50))
    await encompass.run_jobs()
    assert ("notice.reminded", "") in await audited(encompass, "establishment:900001")
    await assert_balances(encompass)


async def test_what_is_read_again_raises_nothing_new(encompass: Encompass) -> None:
    said = half_term(), half_term(version=2, change="update", circumstances="More is known.")
    await encompass.receive(*said)
    await encompass.run_jobs()
    before = await encompass.notices(), await encompass.tasks(everything=True), await count(encompass, IncidentVersion)
    assert await encompass.receive(*said) == [PositionOutcome.IGNORED, PositionOutcome.IGNORED]
    await encompass.run_jobs()
    assert before == (
        await encompass.notices(),
        await encompass.tasks(everything=True),
        await count(encompass, IncidentVersion),
    )
    await assert_balances(encompass)


async def test_a_withdrawal_takes_back_what_was_sent(encompass: Encompass) -> None:
    await encompass.receive(half_term())
    await encompass.run_jobs()
    withdrawal = {
        "message": "withdrawal",
        "incident_id": "ZF1/2026/0001",
        "force": "ZF1",
        "version": 2,
        "withdrawn_at": SATURDAY.isoformat(),
        "reason": "Recorded twice.",
    }
    assert await encompass.receive(withdrawal) == [PositionOutcome.UPDATED]
    for notice in (await encompass.notices()).values():
        assert notice.state is NoticeState.WITHDRAWN and notice.telling.withdrawn is not None
        assert "Recorded twice" not in str(notice.telling.withdrawn)
    assert await encompass.tasks() == []
    # An older version that comes late changes nothing.
    assert await encompass.receive(half_term(location="Elsewhere")) == [PositionOutcome.IGNORED]
    assert {notice.state for notice in (await encompass.notices()).values()} == {NoticeState.WITHDRAWN}
    await assert_balances(encompass)


async def test_who_is_excluded_when_the_school_is_no_longer_concerned_reads_nothing_any_more(
    encompass: Encompass,
) -> None:
    jordan = child("k1", "Jordan", establishments=at_school("900001"))
    await encompass.receive(half_term(children=[jordan], excluded_recipients=[]))
    encompass.world.clock.advance(timedelta(days=9))
    await encompass.run_jobs()
    before = (await encompass.notices())["900001"]
    assert before.sent_at is not None and "A1" in before.telling.told
    moved = half_term(children=[jordan | {"establishments": at_school("900002")}], version=2, change="correction")
    await encompass.receive(moved)
    notice = (await encompass.notices())["900001"]
    assert notice.state is NoticeState.WITHDRAWN
    assert not may_read(notice, "A1")
    assert set(notice.telling.told) == set(before.telling.told) - {"A1"}


async def test_an_unknown_school_and_a_school_without_a_way_wait_for_a_person(encompass: Encompass) -> None:
    message = half_term(
        children=[
            child("k1", "Jordan", establishments=at_school("999999", name="Nowhere School")),
            child("k2", "Sidney", establishments=at_school("900003")),
            child("k3", "Morgan"),
        ],
        excluded_recipients=[],
    )
    assert await encompass.receive(message) == [PositionOutcome.UNDER_REVIEW]
    tasks = await encompass.tasks()
    assert [(task.kind, task.owner) for task in tasks] == [
        (TaskKind.LOOK_UP, "force:ZF1"),
        (TaskKind.LOOK_UP, "force:ZF1"),
        (TaskKind.NO_ROUTE, "authority:706"),
    ]
    assert tasks[2].matter.telephone == "01632 960403"
    await encompass.run_jobs()
    assert (await encompass.notices())["900003"].sent_at is None  # nobody confirmed the lead for years
    contacts = """urn,contact_id,role,name,mailbox,confirmed_date,trained_date
900003,C1,lead,Cam Miller,safeguarding@hill-top.example.org,2026-02-14,2025-09-01
"""
    await encompass.upload("safeguarding_contacts", contacts)
    encompass.world.clock.advance(timedelta(minutes=16))
    await encompass.run_jobs()
    assert (await encompass.notices())["900003"].state is NoticeState.SENT
    assert {task.kind for task in await encompass.tasks()} == {TaskKind.LOOK_UP}
    await assert_balances(encompass)


async def test_a_pupil_on_the_authoritys_list_finds_the_school(encompass: Encompass) -> None:
    pupils = """authority,pupil_id,family_name,given_name,birth_date,postcode,urns
706,P1,Sample,Jordan,2016-04-05,ZZ99 1AA,900001
706,P2,Sample,Sidney,2016-04-05,ZZ99 1AA,900001
706,P3,Sample,Sidney,2016-04-05,ZZ99 2BB,900002
"""
    assert not (await encompass.upload("pupils", pupils)).refused
    message = half_term(children=[child("k1", "JORDAN"), child("k2", "Sidney")], excluded_recipients=[])
    await encompass.receive(message)
    assert set(await encompass.notices()) == {"900001"}
    [task] = await encompass.tasks()  # two pupils have the other child's name and birth date
    assert task.kind is TaskKind.LOOK_UP and task.matter.child_id == "k2"
    assert [each.urns for each in task.matter.candidates] == [("900001",), ("900002",)]


async def test_a_pupil_who_is_only_probable_waits_for_a_person_with_the_reasons(encompass: Encompass) -> None:
    pupils = """authority,pupil_id,family_name,given_name,birth_date,postcode,urns
706,P1,Sampel,Jordan,2016-04-05,ZZ99 1AA,900001
706,P2,Sample,Jordan,2016-05-04,ZZ99 1AA,900002
706,P3,Sample,Morgan,2016-04-05,ZZ99 9ZZ,900001
706,P4,Sample,Sidney,2009-05-06,ZZ99 9ZZ,900002
706,P5,Other,Riley,2016-04-05,,900001
"""
    assert not (await encompass.upload("pupils", pupils)).refused
    children = [child("k1", "Jordan", postcode="ZZ991AA"), child("k2", "Sidney", birth_date="2009-05-06")]
    children[1]["postcode"] = "ZZ99 1AA"
    assert await encompass.receive(half_term(children=children, excluded_recipients=[])) == [
        PositionOutcome.UNDER_REVIEW
    ]
    assert await encompass.notices() == {}  # not straight to a school, not even where only the postcode differs
    first, second = sorted(await encompass.tasks(), key=lambda task: task.matter.child_id or "")
    assert {first.matter.reason, second.matter.reason} == {LookUpReason.PROBABLE}
    alike, swapped = first.matter.candidates
    assert (swapped.urns, alike.urns) == (("900002",), ("900001",))
    assert alike.weight > swapped.weight >= encompass.rules.pupil_bits_min
    assert "day and month of birth are the other way round" in swapped.reasons_for
    assert "the surnames are spelt alike" in alike.reasons_for
    [sidney] = second.matter.candidates
    assert "the first halves of the postcodes are the same" in sidney.reasons_for
    assert (await encompass.receive(half_term(children=children, excluded_recipients=[])))[0].value == "ignored"

    # A person says who it is: the school is told by the clock that has been running.
    world = encompass.world
    async with world.database.writing() as connection:
        incident = await incidents.lock_incident(connection, world.keyring, first.incident_id)
        assert incident is not None
        found = Found(child_id="k1", urn=alike.urns[0], is_there=True)
        await incidents.note_found(connection, world.keyring, incident, [found])
        changed = await incidents.lock_incident(connection, world.keyring, first.incident_id)
        assert changed is not None
        await replan(connection, world.keyring, changed, encompass.rules, world.clock.now())
    assert set(await encompass.notices()) == {"900001"}
    assert [task.matter.child_id for task in await encompass.tasks()] == ["k2"]


async def test_bad_messages_cost_themselves_alone(encompass: Encompass) -> None:
    stranger = half_term(force="ZF9", incident_id="ZF9/1")
    misspelt = half_term(incident_id="ZF1/2026/0002") | {"supress": {}}
    assert await encompass.receive(b"\x00not json", stranger, misspelt, half_term()) == [
        PositionOutcome.QUARANTINED,
        PositionOutcome.QUARANTINED,
        PositionOutcome.QUARANTINED,
        PositionOutcome.ALERTED,
    ]
    contradicting = half_term(location="Another place")
    assert await encompass.receive(contradicting) == [PositionOutcome.UNDER_REVIEW]
    assert TaskKind.CONTRADICTION in {task.kind for task in await encompass.tasks()}
    await assert_balances(encompass)


async def test_the_topic_of_schools_says_sign_in_and_nothing_else(sqlite_url: str, tmp_path: Path) -> None:
    async with open_encompass(sqlite_url, tmp_path, topics_enabled=True) as encompass:
        await encompass.receive(half_term())
        await encompass.run_jobs()
        await encompass.run_jobs()
        async with encompass.world.database.reading() as connection:
            rows = list(await connection.execute(select(table(Delivery))))
        assert sorted(row.owner for row in rows) == ["establishment:900001", "establishment:900002"]
        for row in rows:
            plain = encompass.world.keyring.open(bytes(row.sealed), about=f"delivery/{row.id}")
            assert b"Sign in" in plain
            assert not any(word in plain for word in (b"Sample", b"Jordan", b"ZF1", b"2016"))


async def test_incidents_long_past_are_dropped_whole_and_nothing_that_waits_for_somebody(encompass: Encompass) -> None:
    unknown = half_term(incident_id="ZF1/2026/0002", children=[child("k4", "Riley")], excluded_recipients=[])
    solo = half_term(incident_id="ZF1/2026/0003", excluded_recipients=[])
    solo["children"] = [child("k5", "Robin", establishments=at_school("900002"))]
    await encompass.receive(solo, unknown)
    await encompass.run_jobs()
    world, rules = encompass.world, RetentionRules()
    notice = (await encompass.notices())["900002"]
    async with world.database.writing() as connection:
        await incidents.acknowledge_notice(connection, notice.id, 1, "bo", world.clock.now())
        await incidents.add_record(
            connection, world.keyring, notice, "Spoke with Robin.", by="bo", now=world.clock.now()
        )
    world.clock.move_to(SATURDAY + timedelta(days=729))
    assert await drop_incidents(world.database, rules, world.clock.now()) == 0
    world.clock.advance(timedelta(days=2))
    assert await drop_incidents(world.database, rules, world.clock.now()) == 1
    assert await encompass.notices() == {}
    assert [await count(encompass, model) for model in (IncidentVersion, NoticeSending, SchoolRecord)] == [1, 0, 0]
    assert [task.kind for task in await encompass.tasks()] == [TaskKind.LOOK_UP]  # its child has no school yet
    assert ("incident.dropped", "") in await audited(encompass, "force:ZF1")
    assert await encompass.receive(solo) == [PositionOutcome.IGNORED]
    await assert_balances(encompass)


async def test_a_school_that_merges_before_or_after_it_was_told_is_looked_up_with_its_successor(
    encompass: Encompass,
) -> None:
    message = half_term(excluded_recipients=[], children=[child("k1", "Jordan", establishments=at_school("900001"))])
    await encompass.receive(message)
    due_by = (await encompass.notices())["900001"].due_by
    merged = "urn,name,kind,authority,status,merged_into\n900001,Mill Lane Primary School,school,706,merged,900003\n"
    assert not (await encompass.upload("schools", merged)).refused
    await encompass.run_jobs()
    closed = (await encompass.notices())["900001"]
    assert (closed.state, closed.sent_at) == (NoticeState.WITHDRAWN, None)  # nobody is left there to read it
    [task] = await encompass.tasks()
    assert (task.kind, task.matter.reason, task.matter.suggested) == (TaskKind.LOOK_UP, LookUpReason.MERGED, "900003")
    assert task.due_by <= due_by

    # Told already when it merges: taken back at the next word of the force, and looked up.
    other = half_term(incident_id="ZF1/2026/0002", excluded_recipients=[])
    other["children"] = [child("k2", "Sidney", establishments=at_school("900002"))]
    await encompass.receive(other)
    await encompass.run_jobs()
    assert (await encompass.notices())["900002"].state is NoticeState.SENT
    gone = "urn,name,kind,authority,status\n900002,Eastmere College,fe_college,707,closed\n"
    assert not (await encompass.upload("schools", gone)).refused
    await encompass.receive(other | {"version": 2, "change": "update"})
    assert (await encompass.notices())["900002"].state is NoticeState.WITHDRAWN
    assert {task.matter.reason for task in await encompass.tasks()} == {LookUpReason.MERGED, LookUpReason.CLOSED}
    await assert_balances(encompass)
