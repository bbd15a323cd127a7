"""What is particular to the topic."""

from __future__ import annotations

import pytest
from joserfc.errors import DecodeError

from schemas.delivery import Outcome, OutcomeClass
from tests.contract.channel_sides import CONTENT, Topic, decrypt, parcel


async def test_a_topics_value_can_be_read_by_its_recipient_only() -> None:
    topic = Topic()
    await topic.channel.send(parcel("social-care-alerts"))
    ((name, key, value, headers),) = topic.appended
    assert (name, key) == ("social-care-alerts", b"authority:706")
    assert headers == {
        "ce_specversion": b"1.0",
        "ce_id": b"key-0001",
        "ce_type": b"uk.cpis-broker.alert.raised.v1",
        "ce_source": b"urn:cpis-broker",
        "ce_time": b"2026-07-14T20:14:03+00:00",
        "content-type": b"application/jose",
    }
    assert b"TESTER" not in value
    opened = decrypt(value)
    assert opened.plaintext == CONTENT
    assert opened.headers() == {
        "alg": "dir",
        "enc": "A256GCM",
        "kid": "authority:706",
        "cty": "application/json",
    }
    with pytest.raises(DecodeError):
        decrypt(value, bytes(32))


async def test_no_two_values_are_alike() -> None:
    topic = Topic()
    for _ in range(2):
        await topic.channel.send(parcel("social-care-alerts"))
    assert topic.appended[0][2] != topic.appended[1][2]


@pytest.mark.parametrize("secret", [b"", b"short", bytes(33)])
async def test_without_a_key_of_the_right_length_nothing_is_appended(secret: bytes) -> None:
    topic = Topic()
    outcome = await topic.channel.send(parcel("social-care-alerts", secret=secret))
    assert outcome == Outcome(outcome=OutcomeClass.PERMANENT, code="bad_secret")
    assert topic.appended == []
