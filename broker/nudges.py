"""Messages that say "sign in", and nothing else: who of a school is sent one, by which channel."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.storage import outbox
from broker.storage.incidents import StoredNotice
from broker.storage.outbox import NewDelivery
from schemas.delivery import ChannelName
from schemas.encompass import SchoolNoticeNudge

NUDGE_TYPE: Final = "uk.cpis-broker.school-notice.nudged.v1"
OCCASIONS: Final = ("sent", "reminded", "withdrawn")


class NudgeRules(msgspec.Struct, frozen=True, kw_only=True):
    """How people are told to sign in."""

    page: str
    """Where people sign in; the same for everybody."""
    topics_enabled: bool = False
    emails_enabled: bool = False
    """Whether each lead and deputy who is told is sent an e-mail that says "sign in"."""


async def nudge_school(
    connection: AsyncConnection,
    keyring: Keyring,
    notice: StoredNotice,
    rules: NudgeRules,
    *,
    occasion: str,
    now: datetime,
) -> None:
    """Say "sign in" to the establishment, and nothing else: a topic may be read by anybody there."""
    nudge = SchoolNoticeNudge(page=rules.page)
    deliveries = []
    if rules.topics_enabled:
        deliveries.append(
            NewDelivery(
                id=derive_nudge_id(keyring, notice.id, notice.version, occasion),
                channel=ChannelName.TOPIC,
                owner=notice.owner,
                event_type=NUDGE_TYPE,
                content_type="application/json",
                content=msgspec.json.encode(nudge),
            )
        )
    if rules.emails_enabled:
        deliveries += [
            NewDelivery(
                id=derive_nudge_id(keyring, notice.id, notice.version, occasion, contact_id),
                channel=ChannelName.EMAIL,
                owner=notice.owner,
                contact=contact_id,
                event_type=NUDGE_TYPE,
                content_type="text/plain",
                content=f"{nudge.wording}\n\n{nudge.page}\n".encode(),
            )
            for contact_id in notice.telling.told
        ]
    await outbox.add_deliveries(connection, keyring, deliveries, now)


async def forget_nudges(
    connection: AsyncConnection, keyring: Keyring, before: StoredNotice | None, notice: StoredNotice, *, now: datetime
) -> None:
    """Whoever must not be told any more is not nudged either by what still waits."""
    if before is None or before.sent_at is None:
        return
    if gone := sorted(set(before.telling.told) - set(notice.telling.told)):
        nudges = derive_nudge_ids(keyring, notice.id, before.version, gone)
        await outbox.forget_deliveries(connection, nudges, now)


def derive_nudge_ids(keyring: Keyring, notice_id: str, version: int, contact_ids: Iterable[str]) -> list[str]:
    """The ids of every message that these people may have been sent of a notice up to a version."""
    return [
        derive_nudge_id(keyring, notice_id, each, occasion, contact_id)
        for contact_id in contact_ids
        for each in range(1, version + 1)
        for occasion in OCCASIONS
    ]


def derive_nudge_id(keyring: Keyring, notice_id: str, version: int, occasion: str, contact_id: str = "") -> str:
    """The id of the message that says "sign in": the same for the same occasion, and the same mailbox if it has one."""
    to = (contact_id,) if contact_id else ()
    return keyring.derive_id("school-nudge", notice_id, str(version), occasion, *to)
