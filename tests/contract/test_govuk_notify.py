"""What is particular to GOV.UK Notify."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from adapters.errors import ReceiptsUnavailable
from adapters.govuk_notify import BadApiKey, NotifyChannel, NotifyKind, NotifyOptions, split_api_key
from schemas.delivery import Outcome, OutcomeClass, Receipt
from tests.contract.channel_sides import NOTIFY_KEY, NOW, NUDGE, TEMPLATES, Notified, open_notify, parcel


@pytest.fixture
async def notify() -> AsyncIterator[Notified]:
    """The service, and its channel of text messages."""
    notified = Notified(NotifyKind.SMS)
    await notified.start()
    yield notified
    await notified.channel.close()
    await notified.close()


async def send(notify: Notified, **changes: object) -> Outcome:
    return await notify.channel.send(parcel(notify.address, NUDGE, **changes))


async def find_receipt(notify: Notified) -> Receipt | None:
    assert isinstance(notify.channel, NotifyChannel)
    return await notify.channel.find_receipt("key-0001")


async def test_a_message_goes_under_its_own_reference_to_one_recipient(notify: Notified) -> None:
    email = open_notify(notify.service.url, NotifyKind.EMAIL)
    assert (await send(notify)).code == "http_201"
    assert (
        await email.send(parcel("deputy@mill-lane.example.org", NUDGE, idempotency_key="key-0002"))
    ).code == "http_201"
    await email.close()
    assert [(each.kind, each.to, each.reference) for each in notify.service.kept] == [
        ("sms", "+447700900123", "key-0001"),
        ("email", "deputy@mill-lane.example.org", "key-0002"),
    ]


@pytest.mark.parametrize("fault", ["slow", "drop_after_keep", "half_response", "drop_after_read"])
async def test_after_an_answer_that_did_not_come_it_is_asked_before_anything_is_sent_again(
    notify: Notified, fault: str
) -> None:
    notify.service.faults.arm_times(f"notify.{fault}", 1)
    assert (await send(notify)).outcome is OutcomeClass.AMBIGUOUS
    assert (await send(notify, attempts=1)).outcome is OutcomeClass.SENT
    assert len(notify.service.kept) == 1


async def test_what_a_process_that_died_may_have_sent_is_asked_for_and_what_is_new_is_not(notify: Notified) -> None:
    fresh = NOW - timedelta(seconds=89)
    for _ in range(2):
        assert (await send(notify, created_at=fresh)).code == "http_201"
    assert [each.asked for each in notify.service.kept] == [0, 0]
    assert (await send(notify, created_at=NOW - timedelta(seconds=90))).code == "kept_before"
    assert len(notify.service.kept) == 2


async def test_what_notify_could_not_deliver_is_sent_again_when_somebody_wishes_it(notify: Notified) -> None:
    await send(notify)
    notify.service.fail("key-0001", "permanent-failure")
    assert (await send(notify, attempts=1)).code == "http_201"
    # One copy that arrived is enough, whatever became of the one before.
    assert len(notify.service.kept) == 2
    assert await find_receipt(notify) is Receipt.DELIVERED
    notify.service.fail("key-0001", "temporary-failure")
    assert await find_receipt(notify) is Receipt.TEMPORARY_FAILURE


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("delivered", Receipt.DELIVERED),
        ("permanent-failure", Receipt.PERMANENT_FAILURE),
        ("temporary-failure", Receipt.TEMPORARY_FAILURE),
        ("technical-failure", Receipt.TECHNICAL_FAILURE),
        ("sent", Receipt.UNKNOWN),
        ("a word of tomorrow", None),
    ],
)
async def test_what_became_of_a_message_is_known_when_it_has_come_to_its_end(
    notify: Notified, said: str, expected: Receipt | None
) -> None:
    notify.service.course = ("created", "sending", "pending")
    assert await find_receipt(notify) is None, "nothing is known under this reference"
    await send(notify)
    notify.service.fail("key-0001", said)
    assert [await find_receipt(notify) for _ in range(4)] == [None, None, None, expected]
    for fault, code in (("refuse_listing", "http_503"), ("drop_listing", "connection_lost")):
        notify.service.faults.arm_times(f"notify.{fault}", 1)
        with pytest.raises(ReceiptsUnavailable) as missing:
            await find_receipt(notify)
        assert missing.value.code == code
    await notify.service.stop()
    with pytest.raises(ReceiptsUnavailable, match="connect_failed"):
        await find_receipt(notify)


@pytest.mark.parametrize(
    ("fault", "code", "expected"),
    [
        ("refuse_400", "http_400", OutcomeClass.PERMANENT),
        ("refuse_403", "http_403", OutcomeClass.TRANSIENT),
        ("refuse_429", "http_429", OutcomeClass.TRANSIENT),
        ("refuse_500", "http_500", OutcomeClass.TRANSIENT),
    ],
)
async def test_what_is_the_recipients_ends_and_what_is_ours_waits_for_a_person(
    notify: Notified, fault: str, code: str, expected: OutcomeClass
) -> None:
    notify.service.faults.arm_times(f"notify.{fault}", 1)
    assert await send(notify) == Outcome(outcome=expected, code=code)


async def test_a_wrong_key_a_wrong_clock_and_a_wrong_template_are_told(notify: Notified) -> None:
    url = notify.service.url
    strange = NOTIFY_KEY[:-1] + "1"
    sms = NotifyOptions(kind=NotifyKind.SMS, template_id=TEMPLATES[NotifyKind.SMS], base_url=url, allow_loopback=True)
    channels = [
        NotifyChannel(sms, api_key=strange, now=lambda: NOW),
        NotifyChannel(sms, api_key=NOTIFY_KEY, now=lambda: NOW - timedelta(minutes=1)),
        open_notify(url, NotifyKind.SMS, template_id=TEMPLATES[NotifyKind.EMAIL]),
        open_notify(url, NotifyKind.SMS, allow_loopback=False),
        open_notify("http://192.0.2.1", NotifyKind.SMS),
    ]
    codes = []
    for channel in channels:
        codes.append((await channel.send(parcel(notify.address, NUDGE))).code)
        await channel.close()
    assert codes == ["http_403", "http_403", "http_400", "plain_http", "plain_http"]
    assert notify.service.kept == []


@pytest.mark.parametrize(
    "address", ["07700900123", "+441632960123", "+447700900123,+447700900124", "a@example.org", ""]
)
async def test_what_is_no_mobile_number_of_the_country_is_sent_nothing(notify: Notified, address: str) -> None:
    outcome = await notify.channel.send(parcel(address, NUDGE))
    assert outcome == Outcome(outcome=OutcomeClass.PERMANENT, code="bad_address")
    assert notify.service.kept == []


def test_a_key_is_read_from_its_end_for_its_name_may_hold_hyphens() -> None:
    assert split_api_key(f"the-best-{NOTIFY_KEY}") == split_api_key(NOTIFY_KEY)
    for wrong in ("", "a key", NOTIFY_KEY[:-1]):
        with pytest.raises(BadApiKey):
            split_api_key(wrong)
