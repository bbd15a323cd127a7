"""People are told to sign in, by e-mail and text message, and nothing hangs on whether that arrives."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import func, select

from adapters.govuk_notify import NotifyChannel, NotifyKind
from adapters.govuk_notify import NotifyOptions as ChannelOptions
from adapters.smtp import SUBJECT, EmailChannel, EmailOptions
from broker.bootstrap.channels import open_channels, receipts_of
from broker.bootstrap.rules import notice_rules_of
from broker.bootstrap.safety import check_safety
from broker.dispatcher import Dispatcher, DispatchOptions
from broker.domain.alerts import DUTY_DESK
from broker.jobs.nudges import nudge_people
from broker.jobs.receipts import ReceiptOptions, ReceiptReader
from broker.nudges import PERSON_NUDGE_TYPE
from broker.ports import Channel
from broker.proof import tell_incident
from broker.settings import Environment
from broker.storage import outbox, receipts
from broker.storage.alerts import acknowledge_alert, note_opened
from broker.storage.coverage import LIST_OFFICERS
from broker.storage.receipts import Unreached
from broker.storage.tables import AuditRow, AwaitedReceipt, Delivery, Lane, ListDifference, ListEntry, table
from mock_nhs.govuk_notify import GovukNotify, NotifyOptions
from mock_nhs.mail_server import MailServer
from schemas.delivery import ChannelName, DeliveryState, MailTls
from schemas.encompass import NoticeState, TaskKind
from tests.encompass import PEOPLE, Encompass, child, half_term, open_encompass
from tests.factories import make_settings
from tests.system import until
from tests.world import CASEY, hl7

NOTIFY_KEY = "broker-26785a09-ab16-4eb0-8407-a37497a57506-3d844edf-8d35-48ac-975b-e847b4f122b0"
PERSONAL = ("Sample", "Jordan", "Sidney", "Morgan", "ZF1", "2016", "Mill Lane", "Eastmere", "Robin", "Alex", "police")


@pytest.fixture
async def encompass(world_url: str, tmp_path: Path) -> AsyncIterator[Encompass]:
    """The small world, with e-mails, on each engine."""
    async with open_encompass(world_url, tmp_path, emails_enabled=True, texts_enabled=True) as opened:
        yield opened


@pytest.fixture
async def post() -> AsyncIterator[MailServer]:
    """The mail server that the operator named."""
    server = MailServer()
    await server.start()
    yield server
    await server.close()


async def states(encompass: Encompass) -> dict[DeliveryState, int]:
    rows = table(Delivery).c
    async with encompass.world.database.reading() as connection:
        found = await connection.execute(select(rows.state, func.count()).group_by(rows.state))
        return {DeliveryState(state): number for state, number in found}


@pytest.fixture
async def notify() -> AsyncIterator[GovukNotify]:
    """GOV.UK Notify with a template for each kind."""
    templates = {"email-template": "email", "sms-template": "sms"}
    service = GovukNotify(NotifyOptions(api_key=NOTIFY_KEY, templates=templates))
    await service.start()
    yield service
    await service.stop()


def open_notify(url: str) -> dict[ChannelName, NotifyChannel]:
    kinds = {ChannelName.EMAIL: NotifyKind.EMAIL, ChannelName.TEXT_MESSAGE: NotifyKind.SMS}
    return {
        name: NotifyChannel(
            ChannelOptions(kind=kind, template_id=f"{kind.value}-template", base_url=url, allow_loopback=True),
            api_key=NOTIFY_KEY,
            now=lambda: datetime.now(UTC),
            tls=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        )
        for name, kind in kinds.items()
    }


@asynccontextmanager
async def notified(encompass: Encompass, notify: GovukNotify) -> AsyncIterator[ReceiptReader]:
    """What waits has left by Notify. Who asks afterwards knows nothing but what is stored: as after a restart."""
    world, channels = encompass.world, open_notify(notify.url)
    options = DispatchOptions(name="one", poll_s=0.02, receipted=frozenset(channels))
    dispatcher = Dispatcher(world.database, world.keyring, world.clock, channels, options)
    running = asyncio.create_task(dispatcher.run())
    try:

        async def are_sent() -> bool:
            return not (await personal(encompass)).keys() & {DeliveryState.WAITING, DeliveryState.CLAIMED}

        await until(are_sent, limit_s=20, what="nothing waits", every_s=0.02)
        yield ReceiptReader(world.database, world.clock, channels, ReceiptOptions(poll_s=0.02))
    finally:
        dispatcher.stop()
        await running
        for each in channels.values():
            await each.close()


@asynccontextmanager
async def dispatching(encompass: Encompass, post: MailServer, notify: GovukNotify | None = None) -> AsyncIterator[None]:
    world = encompass.world
    channel = EmailChannel(
        EmailOptions(host="127.0.0.1", port=post.port, sender="broker@example.org", tls=MailTls.NONE)
    )
    options = DispatchOptions(name="one", poll_s=0.02, give_up_on={ChannelName.EMAIL: timedelta(hours=24)})
    channels: dict[ChannelName, Channel] = {ChannelName.EMAIL: channel}
    if notify is not None:
        channels[ChannelName.TEXT_MESSAGE] = open_notify(notify.url)[ChannelName.TEXT_MESSAGE]
    dispatcher = Dispatcher(world.database, world.keyring, world.clock, channels, options)
    running = asyncio.create_task(dispatcher.run())
    try:
        yield
    finally:
        dispatcher.stop()
        await running
        for each in channels.values():
            await each.close()


async def until_they_are(encompass: Encompass, expected: dict[DeliveryState, int]) -> None:
    async def are_so() -> bool:
        return await states(encompass) == expected

    await until(are_so, limit_s=20, what=f"{expected}", every_s=0.02)


async def test_who_is_told_is_sent_one_email_each_that_says_sign_in_and_nothing_else(
    encompass: Encompass, post: MailServer
) -> None:
    await encompass.receive(half_term())
    await encompass.run_jobs()
    await encompass.run_jobs()
    async with dispatching(encompass, post):
        await until_they_are(encompass, {DeliveryState.SENT: 2})
    # Robin is excluded: the mailbox that Robin reads is sent nothing.
    assert sorted(mail.recipients for mail in post.kept) == [
        ("deputy@mill-lane.example.org",),
        ("safeguarding@eastmere.example.org",),
    ]
    for mail in post.kept:
        assert mail.message["Subject"] == SUBJECT
        text = " ".join(mail.message.get_content().split())
        assert text == "There is a message for you. Sign in to read it. http://127.0.0.1:8000/"
        assert not any(word in mail.message.as_string().replace(mail.recipients[0], "") for word in PERSONAL)
    world = encompass.world
    notice = (await encompass.notices())["900002"]
    async with world.database.reading() as connection:
        record = await tell_incident(connection, world.keyring, notice.incident_id, world.clock.now())
    assert record is not None
    assert [len(each.deliveries) for each in record.notices] == [1, 1]


async def test_a_text_message_goes_to_the_mobile_that_the_directory_has_and_to_none_that_somebody_excluded_looks_at(
    encompass: Encompass, post: MailServer, notify: GovukNotify
) -> None:
    mobiles = """urn,contact_id,role,name,mailbox,mobile,confirmed_date,trained_date
900001,A1,lead,Robin Sister,safeguarding@mill-lane.example.org,07700 900111,2026-01-10,2025-09-01
900001,A2,deputy,Alex Porter,deputy@mill-lane.example.org,07700 900111,2026-01-10,2025-09-01
900002,B1,lead,Bo Turner,safeguarding@eastmere.example.org,07700 900222,2026-01-10,2025-09-01
"""
    assert not (await encompass.upload("safeguarding_contacts", mobiles)).refused
    await encompass.receive(half_term())
    await encompass.run_jobs()
    async with dispatching(encompass, post, notify):
        await until_they_are(encompass, {DeliveryState.SENT: 3})
    [text] = notify.kept
    assert (text.to, text.message) == (
        "+447700900222",
        "There is a message for you. Sign in to read it. http://127.0.0.1:8000/",
    )
    assert len(post.kept) == 2


async def test_an_email_that_is_refused_or_never_arrives_is_not_the_end_of_the_notice(
    encompass: Encompass, post: MailServer
) -> None:
    await encompass.receive(half_term())
    post.reply_to_recipient = "550 nobody"
    await encompass.run_jobs()
    async with dispatching(encompass, post):
        await until_they_are(encompass, {DeliveryState.FAILED: 2})
    notices = await encompass.notices()
    assert {notice.state for notice in notices.values()} == {NoticeState.SENT}
    # At the bell somebody is asked to ring, whatever became of the e-mails.
    encompass.world.clock.move_to(max(notice.due_by for notice in notices.values()) + timedelta(seconds=1))
    post.reply_to_recipient = "451 later"
    await encompass.run_jobs()
    rung = [task.urn for task in await encompass.tasks() if task.kind is TaskKind.RING_SCHOOL]
    assert sorted(rung, key=str) == ["900001", "900002"]


async def test_whoever_is_excluded_later_or_left_the_directory_is_not_sent_what_still_waits(
    encompass: Encompass, post: MailServer
) -> None:
    await encompass.receive(half_term())
    await encompass.run_jobs()
    excluded = [
        *half_term()["excluded_recipients"],
        {"name": "Alex Porter", "reason": "brother of the suspect", "authoriser": "DS 1"},
    ]
    await encompass.receive(half_term(excluded_recipients=excluded, version=2, change="correction"))
    assert await states(encompass) == {DeliveryState.GIVEN_UP: 1, DeliveryState.WAITING: 1}
    world = encompass.world
    async with world.database.writing() as connection:
        for row in await outbox.list_unreached(connection, rows_max=10):
            assert row.code != outbox.NOT_WANTED
        lanes = (await connection.execute(select(table(Delivery).c.lane))).scalars()
        assert [await outbox.resend_deliveries(connection, lane, world.clock.now()) for lane in set(lanes)] == [
            (0, 0),
            (0, 0),
        ]
    unconfirmed = "urn,contact_id,role,name,mailbox,confirmed_date,trained_date\n"
    unconfirmed += "900002,B1,lead,Bo Turner,safeguarding@eastmere.example.org,,\n"
    assert not (await encompass.upload("safeguarding_contacts", unconfirmed)).refused
    world.clock.advance(timedelta(hours=25))
    async with dispatching(encompass, post):
        await until_they_are(encompass, {DeliveryState.GIVEN_UP: 2})
    assert post.kept == []


def test_emails_leave_only_where_a_server_and_a_sender_are_set_and_outside_development_by_tls(tmp_path: Path) -> None:
    off = make_settings(tmp_path)
    assert not notice_rules_of(off).nudges.emails_enabled
    assert ChannelName.EMAIL not in open_channels(off)
    on = off.model_copy(update={"smtp_host": "mail.example.org", "smtp_sender": "broker@example.org"})
    assert notice_rules_of(on).nudges.emails_enabled
    assert ChannelName.EMAIL in open_channels(on)
    real = on.model_copy(update={"environment": Environment.PRODUCTION})
    assert not [problem for problem in check_safety(real) if "SMTP" in problem]
    for unsafe in ({"smtp_tls": MailTls.NONE}, {"smtp_sender": ""}):
        assert [problem for problem in check_safety(real.model_copy(update=unsafe)) if "SMTP" in problem]


def test_notify_needs_a_key_of_its_own_and_a_template_and_leaves_by_https(tmp_path: Path) -> None:
    off = make_settings(tmp_path)
    both = {"notify_email_template_id": "one", "notify_text_template_id": "two"}
    on = off.model_copy(update={"notify_api_key": SecretStr(NOTIFY_KEY), **both})
    assert (on.emails_enabled, on.texts_enabled, off.texts_enabled) == (True, True, False)
    channels = open_channels(on)
    assert isinstance(channels[ChannelName.EMAIL], NotifyChannel)
    assert receipts_of(on, channels).keys() == {ChannelName.EMAIL, ChannelName.TEXT_MESSAGE} <= channels.keys()
    by_server = on.model_copy(update={"notify_email_template_id": "", "smtp_host": "mail.example.org"})
    assert receipts_of(by_server, open_channels(by_server)).keys() == {ChannelName.TEXT_MESSAGE}
    assert receipts_of(off, open_channels(off)) == {}
    real = on.model_copy(update={"environment": Environment.PRODUCTION})
    assert not [problem for problem in check_safety(real) if "NOTIFY" in problem]
    for unsafe in (
        {"notify_base_url": "http://notify.example.org"},
        {"notify_api_key": SecretStr("a key")},
        {"notify_api_key": SecretStr("")},
        {"smtp_host": "mail.example.org", "smtp_sender": "broker@example.org"},
    ):
        assert [problem for problem in check_safety(real.model_copy(update=unsafe)) if "NOTIFY" in problem]


PEOPLE_TO_TELL = """code,authority,name,team,login,role,mailbox,mobile,password
W1,706,Ash Worker,North,ash@706.example.org,social_worker,ash.worker@706.example.org,07700 900101,demo-password
D1,706,Dee Duty,Duty,dee@706.example.org,duty_worker,duty@706.example.org,07700 900102,demo-password
L1,706,Liz Lister,Lists,liz@706.example.org,list_officer,lists@706.example.org,,demo-password
"""


async def nudged(encompass: Encompass) -> list[str]:
    """Who is told by the messages that wait, by channel and login."""
    lanes, rows = table(Lane).c, table(Delivery).c
    async with encompass.world.database.reading() as connection:
        found = await connection.execute(
            select(lanes.channel, lanes.contact)
            .join_from(table(Delivery), table(Lane), rows.lane == lanes.id)
            .where(rows.state == DeliveryState.WAITING.value, rows.event_type == PERSON_NUDGE_TYPE)
        )
        return sorted(f"{row.channel} {row.contact.partition('@')[0]}" for row in found)


async def nudge(encompass: Encompass) -> int:
    world = encompass.world
    rules = encompass.rules.nudges
    return await nudge_people(world.database, world.keyring, rules, world.clock.now(), proclaimed=(), rows_max=100)


async def test_whoever_holds_an_alert_is_told_once_and_once_more_when_it_moves_up_until_somebody_takes_it(
    encompass: Encompass, post: MailServer, notify: GovukNotify
) -> None:
    world = encompass.world
    assert not (await encompass.upload("workers", PEOPLE_TO_TELL)).refused
    await world.list_children(CASEY)
    await world.receive(hl7(), hl7(visit="V2"))
    assert (await nudge(encompass), await nudge(encompass)) == (2, 0)
    # Two alerts at one moment are one message on each way; at night list officers are told nothing.
    assert await nudged(encompass) == ["email ash", "text_message ash"]
    async with dispatching(encompass, post, notify):
        await until(lambda: bool(post.kept and notify.kept), limit_s=20, what="both messages", every_s=0.02)
    assert [mail.recipients for mail in post.kept] == [("ash.worker@706.example.org",)]
    assert [(text.to, text.message) for text in notify.kept] == [
        ("+447700900101", "There is a message for you. Sign in to read it. http://127.0.0.1:8000/")
    ]
    assert "Tester" not in post.kept[0].message.as_string()

    world.clock.advance(timedelta(minutes=15))
    await world.run_jobs()
    assert (await nudge(encompass), await nudge(encompass)) == (2, 0)
    assert await nudged(encompass) == ["email dee", "text_message dee"]
    first, second = await world.alerts()
    for alert, waiting in ((first, ["email dee", "text_message dee"]), (second, [])):
        async with world.database.writing() as connection:
            alert_id, now = alert.alert.alert_id, world.clock.now()
            assert await acknowledge_alert(connection, "authority:706", alert_id, by="ash@706.example.org", now=now)
        await nudge(encompass)
        # What was not sent yet is not sent any more once nothing of it is open.
        assert await nudged(encompass) == waiting
    world.clock.advance(timedelta(minutes=15))
    await world.run_jobs()
    assert await nudge(encompass) == 0


async def test_while_a_channel_is_away_what_comes_to_one_person_goes_with_the_message_that_waits(
    encompass: Encompass,
) -> None:
    world = encompass.world
    assert not (await encompass.upload("workers", PEOPLE_TO_TELL)).refused
    await world.list_children(CASEY)
    for number in range(3):
        await world.receive(hl7(visit=f"V{number}"))
        assert await nudge(encompass) == 1
    assert await nudged(encompass) == ["email ash", "text_message ash"]
    others = (await world.alerts())[:-1]
    for each in others:
        async with world.database.writing() as connection:
            alert_id, now = each.alert.alert_id, world.clock.now()
            assert await acknowledge_alert(connection, "authority:706", alert_id, by="ash@706.example.org", now=now)
    await nudge(encompass)
    assert await nudged(encompass) == ["email ash", "text_message ash"], "it tells of another that is open"
    async with world.database.writing() as connection:
        # What was tried once may have been read before the next alert was raised.
        await connection.execute(table(Delivery).update().values(attempts=1))
    await world.receive(hl7(visit="V9"))
    await nudge(encompass)
    assert await nudged(encompass) == ["email ash"] * 2 + ["text_message ash"] * 2


async def test_the_desk_is_not_woken_for_what_can_wait_and_list_officers_are_told_once_on_a_working_day(
    encompass: Encompass,
) -> None:
    world = encompass.world
    assert not (await encompass.upload("workers", PEOPLE_TO_TELL)).refused
    reached = PEOPLE.replace("contact_id,", "contact_id,mailbox,").replace("ZF1,,", "ZF1,,encompass@zf1.example.org,")
    cora = [line for line in reached.splitlines() if line.startswith(("login", "cora"))]
    assert not (await encompass.upload("encompass_people", "\n".join(cora))).refused
    await encompass.receive(
        half_term(children=[child("k3", "Morgan", home_educated=True, authority="706"), child("k4", "Lee")])
    )
    await world.list_children(CASEY)
    async with world.database.writing() as connection:
        difference = {"id": "d1", "owner": "authority:706", "authority": "706", "held_by": LIST_OFFICERS, "level": 0}
        entry = (await connection.execute(select(table(ListEntry)))).first()
        assert entry is not None
        await connection.execute(
            table(ListDifference)
            .insert()
            .values(
                **difference,
                entry_id=entry.id,
                upload_id=entry.upload_id,
                state="open",
                opened_at=world.clock.now(),
                due_by=world.clock.now() + timedelta(days=5),
            )
        )
    # A look-up has its clock running: the coordinator is told at night as well.
    await nudge(encompass)
    assert await nudged(encompass) == ["email cora"]
    world.clock.move_to(datetime(2026, 2, 16, 9, 5, tzinfo=UTC))
    assert (await nudge(encompass), await nudge(encompass)) == (2, 0)
    assert await nudged(encompass) == ["email cora", "email dee", "email liz", "text_message dee"]
    world.clock.advance(timedelta(days=1))
    assert await nudge(encompass) == 0


NOBODY = PEOPLE_TO_TELL.replace("ash.worker@706.example.org,07700 900101", "perm-fail@simulator.notify,07700 900003")


async def personal(encompass: Encompass) -> dict[DeliveryState, int]:
    rows = table(Delivery).c
    async with encompass.world.database.reading() as connection:
        statement = select(rows.state, func.count()).where(rows.event_type == PERSON_NUDGE_TYPE)
        found = await connection.execute(statement.group_by(rows.state))
        return {DeliveryState(state): number for state, number in found}


async def unreached(encompass: Encompass, login: str | None = None) -> list[Unreached]:
    async with encompass.world.database.reading() as connection:
        return await receipts.list_unreached_people(connection, "authority:706", login=login, rows_max=10)


async def acts(encompass: Encompass) -> list[str]:
    async with encompass.world.database.reading() as connection:
        rows = await connection.execute(select(table(AuditRow).c.action, table(AuditRow).c.owner))
        return [row.owner for row in rows if row.action == "nudge.not_delivered"]


async def test_who_was_not_reached_stands_where_it_can_be_mended_and_the_desk_is_told_at_once(
    encompass: Encompass, notify: GovukNotify
) -> None:
    world = encompass.world
    assert not (await encompass.upload("workers", NOBODY)).refused
    await world.list_children(CASEY)
    await world.receive(hl7(), hl7(visit="V2"))
    await nudge(encompass)
    notify.course = ("created",)
    async with notified(encompass, notify) as reader:
        assert await reader.run_once() == 0, "not asked before it can be known"
        world.clock.advance(timedelta(seconds=15))
        notify.faults.arm_times("notify.refuse_listing", 1)
        assert await reader.run_once() == 0
        assert [each.asked for each in notify.kept] == [0, 0], "who does not answer is not asked for the others"
        world.clock.advance(timedelta(seconds=59))
        assert await reader.run_once() == 0
        assert await personal(encompass) == {DeliveryState.SENT: 2}
        assert (await unreached(encompass), await acts(encompass)) == ([], [])
    async with notified(encompass, notify) as reader:  # after a restart
        world.clock.advance(timedelta(minutes=1))
        assert (await reader.run_once(), await reader.run_once()) == (0, 0)
        assert [each.asked for each in notify.kept] == [1, 1]
        [text] = [each for each in notify.kept if each.kind == "sms"]
        notify.fail(text.reference, "sending")
        world.clock.advance(timedelta(minutes=3))
        assert await reader.run_once() == 1
        since = world.clock.now()
        email = Unreached(
            contact="ash@706.example.org", channel=ChannelName.EMAIL, since=since, code="permanent_failure"
        )
        assert await unreached(encompass) == await unreached(encompass, "ash@706.example.org") == [email]
        assert await unreached(encompass, "dee@706.example.org") == []
        await world.run_jobs()
        assert {alert.level for alert in await world.alerts()} == {0}, "the text message may arrive yet"

        notify.fail(text.reference, "technical-failure")
        world.clock.advance(timedelta(minutes=2))
        async with world.database.writing() as connection:
            await connection.execute(table(AwaitedReceipt).update().values(ask_at=world.clock.now()))
        assert (await reader.run_once(), await reader.run_once()) == (1, 0)
        assert await personal(encompass) == {DeliveryState.FAILED: 2}
        assert [each.code for each in await unreached(encompass)] == ["permanent_failure", "technical_failure"]
        assert await acts(encompass) == ["authority:706"] * 2
    await world.run_jobs()
    assert [(alert.held_by, alert.level) for alert in await world.alerts()] == [(DUTY_DESK, 1)] * 2
    await nudge(encompass)
    assert await nudged(encompass) == ["email dee", "text_message dee"]

    # The desk is reached. It has nobody behind it: had it not been, its limit would stand.
    due = [alert.due_by for alert in await world.alerts()]
    notify.course = ()
    async with notified(encompass, notify) as reader:
        world.clock.advance(timedelta(seconds=15))
        [text] = [each for each in notify.kept if each.to.endswith("900102")]
        notify.fail(text.reference, "permanent-failure")
        assert await reader.run_once() == 2
        assert [each.contact[:3] for each in await unreached(encompass)] == ["ash", "ash", "dee"]
        assert [alert.due_by for alert in await world.alerts()] == due

    # A new address is a new beginning; what failed can be sent to it.
    mended = NOBODY.replace("perm-fail@simulator.notify", "ash.worker@706.example.org")
    assert not (await encompass.upload("workers", mended)).refused
    assert [each.channel for each in await unreached(encompass)] == [ChannelName.TEXT_MESSAGE] * 2
    async with world.database.writing() as connection:
        [lane] = [
            row.lane
            for row in await outbox.list_unreached(connection, rows_max=10)
            if row.lane.startswith("email:") and row.code == "permanent_failure"
        ]
        assert await outbox.resend_deliveries(connection, lane, world.clock.now()) == (1, 0)
    async with notified(encompass, notify) as reader:
        assert notify.kept[-1].to == "ash.worker@706.example.org"
        world.clock.advance(timedelta(seconds=15))
        reading = asyncio.create_task(reader.run())

        async def are_known() -> bool:
            async with world.database.reading() as connection:
                return (await connection.execute(select(table(AwaitedReceipt)))).first() is None

        await until(are_known, limit_s=20, what="it is known what became of it", every_s=0.02)
        reading.cancel()
    assert [each.channel for each in await unreached(encompass)] == [ChannelName.TEXT_MESSAGE] * 2


async def test_an_alert_that_was_opened_is_not_hurried_and_what_nobody_will_say_is_asked_no_more_after_a_week(
    encompass: Encompass, notify: GovukNotify
) -> None:
    world = encompass.world
    assert not (await encompass.upload("workers", NOBODY.replace("07700 900003", ""))).refused
    await world.list_children(CASEY)
    await world.receive(hl7())
    await nudge(encompass)
    [alert] = await world.alerts()
    async with world.database.writing() as connection:
        await note_opened(connection, alert.alert.alert_id, world.clock.now())
    async with notified(encompass, notify) as reader:
        world.clock.advance(timedelta(seconds=15))
        assert await reader.run_once() == 1
        assert [each.due_by for each in await world.alerts()] == [alert.due_by]

        await world.receive(hl7(visit="V2"))
        await nudge(encompass)
    async with notified(encompass, notify) as reader:
        notify.forget()
        world.clock.advance(timedelta(days=6))
        assert await reader.run_once() == 0
        world.clock.advance(timedelta(days=1))
        assert (await reader.run_once(), await reader.run_once()) == (1, 0)
    assert await personal(encompass) == {DeliveryState.FAILED: 1, DeliveryState.SENT: 1}
