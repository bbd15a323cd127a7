"""What every way out does, against a real other side on loopback."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from adapters.fhir_writer import FHIR_JSON
from adapters.hl7v2_reply import Hl7v2ReplyChannel
from adapters.mllp import MllpClient, MllpClientOptions
from adapters.topic import TopicChannel, TopicLog, TopicOptions
from broker.ports import Channel
from schemas.delivery import Outcome, OutcomeClass
from tests.contract.channel_sides import REPLY_BUNDLE, OtherSide, Topic, open_other_side, open_webhook, parcel


async def send_to(other_side: OtherSide) -> Outcome:
    content_type = FHIR_JSON if other_side.content == REPLY_BUNDLE else "application/json"
    return await other_side.channel.send(
        parcel(other_side.address, other_side.content, secret=other_side.secret, content_type=content_type)
    )


async def test_what_is_accepted_is_sent_and_arrives_to_the_letter(other_side: OtherSide) -> None:
    outcome = await send_to(other_side)
    assert outcome.outcome is OutcomeClass.SENT
    assert other_side.received == [other_side.content]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("refuse_now", OutcomeClass.TRANSIENT),
        ("be_gone", OutcomeClass.TRANSIENT),
        ("stay_silent", OutcomeClass.AMBIGUOUS),
    ],
)
async def test_what_is_not_accepted_is_told_by_its_class(
    other_side: OtherSide, how: str, expected: OutcomeClass
) -> None:
    await other_side.behave(how)
    outcome = await send_to(other_side)
    assert outcome.outcome is expected
    assert outcome.code.replace("_", "").isalnum()
    assert "TESTER" not in repr(outcome)


@pytest.mark.parametrize("name", ["webhook", "hl7v2_reply", "fhir_reply", "email", "text_message", "email_by_notify"])
async def test_what_is_refused_for_good_is_not_to_be_tried_again(name: str, tmp_path: Path) -> None:
    async with open_other_side(name, tmp_path) as other_side:
        await other_side.behave("refuse_for_good")
        assert (await send_to(other_side)).outcome is OutcomeClass.PERMANENT


async def test_the_same_parcel_can_be_sent_again_after_a_failure(other_side: OtherSide) -> None:
    for how in ("refuse_now", "stay_silent", "accept"):
        await other_side.behave(how)
        outcome = await send_to(other_side)
    assert outcome.outcome is OutcomeClass.SENT
    assert set(other_side.received) == {other_side.content}


async def test_many_parcels_may_be_sent_at_once(other_side: OtherSide) -> None:
    outcomes = await asyncio.gather(*(send_to(other_side) for _ in range(20)))
    assert {outcome.outcome for outcome in outcomes} == {OutcomeClass.SENT}
    assert len(other_side.received) == 20


async def test_a_send_that_is_cancelled_leaves_the_channel_usable(other_side: OtherSide) -> None:
    await other_side.behave("stay_silent")
    sending = asyncio.ensure_future(send_to(other_side))
    await asyncio.wait([sending], timeout=0.05)
    sending.cancel()
    await asyncio.wait([sending])
    await other_side.behave("accept")
    assert (await send_to(other_side)).outcome is OutcomeClass.SENT


async def test_a_channel_can_be_closed_twice(other_side: OtherSide) -> None:
    await send_to(other_side)
    await other_side.channel.close()
    await other_side.channel.close()


def test_the_channels_are_what_the_broker_asks_for(tmp_path: Path) -> None:
    """Checked by mypy: each assignment fails there when a shape differs."""
    log: TopicLog = Topic()
    channels: list[Channel] = [
        TopicChannel(log, TopicOptions()),
        Hl7v2ReplyChannel(MllpClient(MllpClientOptions())),
        open_webhook(),
    ]
    assert len(channels) == 3
