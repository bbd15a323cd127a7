"""Whoever has to act on something is told to sign in: once when it comes to them, once for each step that it moves up.

The desk that is on duty at night is not told then of what can wait until the office opens. List officers are told on
days on which the office is open, once, and only when something new waits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.alerts import DUTY_DESK
from broker.domain.office_calendar import is_office_open
from broker.domain.visits import london_day
from broker.keyring import Keyring
from broker.notices import BROKER
from broker.nudges import PERSON_NUDGE_TYPE, NudgeRules, Reached, compose_nudges
from broker.storage import audit, directory, logins, nudges, outbox
from broker.storage.audit import Act
from broker.storage.database import Database
from broker.storage.logins import Reachable
from broker.storage.nudges import Told, Unread
from broker.storage.outbox import NewDelivery
from schemas.delivery import ChannelName
from schemas.directory import Role
from schemas.encompass import SchoolNoticeNudge
from schemas.identifiers import OwnerId, authority_of

_AUTHORITY = "authority:"
_SHARED_WITHIN = timedelta(minutes=15)
"""For so long what comes to a person goes with a message that waits; an older one may be given up before long."""


async def nudge_people(
    database: Database,
    keyring: Keyring,
    rules: NudgeRules,
    now: datetime,
    *,
    proclaimed: Collection[date],
    rows_max: int,
) -> int:
    """Tell whoever was not told; returns of how much."""
    async with database.reading() as connection:
        unread = await nudges.list_unread(connection, rows_max=rows_max)
        is_any_settled = await nudges.is_any_settled(connection)
        work = await nudges.find_list_work(connection)
        owners = {each.owner for each in unread} | work.keys()
        at_work = await _find_at_work(connection, owners, now, proclaimed)
    unread = [
        each for each in unread if each.is_urgent or _holder(each) is not Role.DUTY_WORKER or each.owner in at_work
    ]
    lists = [
        owner
        for owner, (opened_at, told_at) in sorted(work.items())
        if owner in at_work and _is_news(opened_at, told_at, now)
    ]
    if not unread and not lists and not is_any_settled:
        return 0
    async with database.writing() as connection:
        await nudges.forget_settled(connection, now)
        people: dict[str, list[Reachable]] = defaultdict(list)
        for each in await logins.load_reachable(connection, keyring, {item.owner for item in unread} | set(lists)):
            people[each.owner].append(each)
        waiting = await nudges.find_waiting(connection, people.keys(), PERSON_NUDGE_TYPE, now - _SHARED_WITHIN)
        told, deliveries = _compose(keyring, rules, unread, people, waiting)
        for owner in lists:
            deliveries += _compose_for_lists(keyring, rules, OwnerId(owner), people[owner], now)
            await nudges.note_list_officers_told(connection, owner, now)
        await outbox.add_deliveries(connection, keyring, deliveries, now)
        await nudges.note_told(connection, told, now)
        reached = {each.unread.item: each.unread for each in told if each.delivery}
        acts = [_act(each) for _, each in sorted(reached.items())]
        await audit.record_acts(connection, acts, now)
    return len(unread) + len(lists)


async def _find_at_work(
    connection: AsyncConnection, owners: Collection[str], now: datetime, proclaimed: Collection[date]
) -> set[str]:
    """The authorities among these whose office is open."""
    found = set()
    for owner in owners:
        if not owner.startswith(_AUTHORITY):
            continue
        authority = await directory.find_authority(connection, authority_of(OwnerId(owner)))
        if authority is not None and is_office_open(authority.office_hours, now, proclaimed):
            found.add(owner)
    return found


def _is_news(opened_at: datetime, told_at: datetime | None, now: datetime) -> bool:
    """Something began to wait after list officers were told, and that was not today."""
    return told_at is None or (told_at < opened_at and london_day(told_at) < london_day(now))


def _holder(unread: Unread) -> Role:
    """Who has to act: by what holds it, and for who stands behind a holder by whose it is."""
    if not unread.owner.startswith(_AUTHORITY):
        return Role.ENCOMPASS_COORDINATOR
    if unread.is_of_hub:
        return Role.ENCOMPASS_HUB
    if unread.kind == nudges.TASKS or unread.held_by == DUTY_DESK:
        return Role.DUTY_WORKER
    return Role.SOCIAL_WORKER


def _find_holders(unread: Unread, people: Sequence[Reachable]) -> list[Reachable]:
    role = _holder(unread)
    holders = [each for each in people if each.role is role]
    if role is Role.SOCIAL_WORKER:
        return [each for each in holders if each.worker == unread.held_by]
    return holders


def _compose(
    keyring: Keyring,
    rules: NudgeRules,
    unread: Sequence[Unread],
    people: dict[str, list[Reachable]],
    waiting: Mapping[tuple[str, ChannelName], str],
) -> tuple[list[Told], list[NewDelivery]]:
    """One message for each person, whatever they are told of at this moment; none where one still waits to be sent."""
    items: dict[str, list[Unread]] = defaultdict(list)
    holders: dict[str, Reachable] = {}
    told, deliveries = [], []
    for each in unread:
        found = _find_holders(each, people[each.owner])
        for person in found:
            holders[person.login] = person
            items[person.login].append(each)
        told.append(Told(unread=each))
    for login, person in sorted(holders.items()):
        first = items[login][0]
        key = keyring.derive_id("person-nudge", login, first.item, str(first.level))
        composed = _compose_for(keyring, rules, person, key)
        deliveries += [each for each in composed if (login, each.channel) not in waiting]
        ids = [waiting.get((login, each.channel), each.id) for each in composed]
        told += [Told(unread=each, delivery=delivery_id) for each in items[login] for delivery_id in ids]
    return told, deliveries


def _compose_for_lists(
    keyring: Keyring, rules: NudgeRules, owner: OwnerId, people: Sequence[Reachable], now: datetime
) -> list[NewDelivery]:
    found: list[NewDelivery] = []
    for person in people:
        if person.role is Role.LIST_OFFICER:
            key = keyring.derive_id("person-nudge", person.login, owner, london_day(now).isoformat())
            found += _compose_for(keyring, rules, person, key)
    return found


def _compose_for(keyring: Keyring, rules: NudgeRules, person: Reachable, key: str) -> list[NewDelivery]:
    reach = Reached(
        email=rules.emails_enabled and person.reach.mailbox is not None,
        text_message=rules.texts_enabled and person.reach.mobile is not None,
    )
    return compose_nudges(
        keyring,
        SchoolNoticeNudge(page=rules.page),
        reach,
        key=key,
        owner=OwnerId(person.owner),
        contact=person.login,
        event_type=PERSON_NUDGE_TYPE,
    )


def _act(unread: Unread) -> Act:
    return Act(
        owner=OwnerId(unread.owner),
        actor=BROKER,
        action=f"{unread.kind}.nudged",
        subject=unread.item,
        reason=f"level {unread.level}",
    )
