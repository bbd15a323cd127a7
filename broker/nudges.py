"""Messages that say "sign in", and nothing else: who of a school is sent one, by which channel."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final, NamedTuple

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.safeguarding import SkipReason
from broker.keyring import Keyring
from broker.storage import audit, establishments, nudges, outbox, receipts
from broker.storage.audit import act_of_broker
from broker.storage.incidents import StoredNotice
from broker.storage.outbox import NewDelivery
from schemas.delivery import ChannelName
from schemas.encompass import SchoolNoticeNudge
from schemas.identifiers import OwnerId

NUDGE_TYPE: Final = "uk.cpis-broker.school-notice.nudged.v1"
PERSON_NUDGE_TYPE: Final = "uk.cpis-broker.person.nudged.v1"
NUDGING: Final = (ChannelName.EMAIL, ChannelName.TEXT_MESSAGE)
"""The channels that say no more than "sign in"."""
OCCASIONS: Final = ("sent", "reminded", "withdrawn")


class Reached(NamedTuple):
    """By what a person is told."""

    email: bool
    text_message: bool


class NudgeRules(msgspec.Struct, frozen=True, kw_only=True):
    """How people are told to sign in."""

    page: str
    """Where people sign in; the same for everybody."""
    topics_enabled: bool = False
    emails_enabled: bool = False
    texts_enabled: bool = False
    """Whether who is told is sent an e-mail that says "sign in", and a text message where a number is known."""

    @property
    def reach_people(self) -> bool:
        """Whether anybody can be told otherwise than by the page."""
        return self.emails_enabled or self.texts_enabled


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
    mobiles = await _find_mobiles(connection, keyring, notice) if rules.texts_enabled else set()
    for contact_id in notice.telling.told:
        reach = Reached(email=rules.emails_enabled, text_message=contact_id in mobiles)
        key = derive_nudge_id(keyring, notice.id, notice.version, occasion, contact_id)
        deliveries += compose_nudges(keyring, nudge, reach, key=key, owner=notice.owner, contact=contact_id)
    await outbox.add_deliveries(connection, keyring, deliveries, now)


async def _find_mobiles(connection: AsyncConnection, keyring: Keyring, notice: StoredNotice) -> set[str]:
    """Who of the school has a telephone that takes texts, and that nobody who is excluded looks at as well."""
    contacts = (await establishments.load_contacts(connection, keyring, [notice.urn])).get(notice.urn, [])
    excluded = {each.contact_id for each in notice.telling.skipped if each.reason is SkipReason.EXCLUDED}
    shared = {each.mobile for each in contacts if each.contact_id in excluded}
    return {each.contact_id for each in contacts if each.mobile and each.mobile not in shared}


def compose_nudges(
    keyring: Keyring,
    nudge: SchoolNoticeNudge,
    reach: Reached,
    *,
    key: str,
    owner: OwnerId,
    contact: str,
    event_type: str = NUDGE_TYPE,
) -> list[NewDelivery]:
    """What one person is sent. The e-mail's id is ``key``, the text message's is derived from it."""
    found = []
    if reach.email:
        text = f"{nudge.wording}\n\n{nudge.page}\n"
        found.append((key, ChannelName.EMAIL, text))
    if reach.text_message:
        found.append((derive_text_id(keyring, key), ChannelName.TEXT_MESSAGE, f"{nudge.wording} {nudge.page}"))
    return [
        NewDelivery(
            id=delivery_id,
            channel=channel,
            owner=owner,
            contact=contact,
            event_type=event_type,
            content_type="text/plain",
            content=text.encode(),
        )
        for delivery_id, channel, text in found
    ]


async def forget_nudges(
    connection: AsyncConnection, keyring: Keyring, before: StoredNotice | None, notice: StoredNotice, *, now: datetime
) -> None:
    """Whoever must not be told any more is not nudged either by what still waits."""
    if before is None or before.sent_at is None:
        return
    if gone := sorted(set(before.telling.told) - set(notice.telling.told)):
        forgotten = derive_nudge_ids(keyring, notice.id, before.version, gone)
        await outbox.forget_deliveries(connection, forgotten, now)


async def note_unreached(
    connection: AsyncConnection, delivery: str, *, lane: str, owner: str, code: str, now: datetime
) -> None:
    """A message that says "sign in" reached nobody: it stands with whom it was for, and what it told of moves up.

    ``code``: a closed word for why. Writes the audit: call it last.
    """
    await receipts.mark_unreached(connection, lane, code, now)
    await nudges.hasten_untold(connection, delivery, now)
    await audit.record_acts(connection, [act_of_broker(owner, "nudge.not_delivered", lane, code)], now)


def derive_nudge_ids(keyring: Keyring, notice_id: str, version: int, contact_ids: Iterable[str]) -> list[str]:
    """The ids of every message that these people may have been sent of a notice up to a version."""
    emails = [
        derive_nudge_id(keyring, notice_id, each, occasion, contact_id)
        for contact_id in contact_ids
        for each in range(1, version + 1)
        for occasion in OCCASIONS
    ]
    return [*emails, *(derive_text_id(keyring, each) for each in emails)]


def derive_nudge_id(keyring: Keyring, notice_id: str, version: int, occasion: str, contact_id: str = "") -> str:
    """The id of the message that says "sign in": the same for the same occasion, and the same person if it has one."""
    to = (contact_id,) if contact_id else ()
    return keyring.derive_id("school-nudge", notice_id, str(version), occasion, *to)


def derive_text_id(keyring: Keyring, email_id: str) -> str:
    """The id of the text message beside an e-mail."""
    return keyring.derive_id("nudge-text", email_id)
