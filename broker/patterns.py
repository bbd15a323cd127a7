"""Patterns named in alerts: while a visit is decided, and on history before an authority switches a rule on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.announcement import Announcement, Occasion, replace_alert
from broker.domain.patterns import Child, Met, PatternKind, PatternRule, find_patterns, find_siblings, word_patterns
from broker.keyring import Keyring
from broker.storage import alerts, audit, child_lists, patterns
from broker.storage.alerts import NewAlert, StoredAlert
from broker.storage.audit import Act
from broker.storage.child_lists import index_nhs_number
from broker.storage.database import Database
from broker.storage.tables import PatternState
from schemas.alert import AlertKind, SocialCareAlert
from schemas.identifiers import authority_owner

PREVIEW_ALERTS_MAX: Final = 5000
HOUSEHOLD_ENTRIES_MAX: Final = 30
"""Entries of one household. What more have in common ("none", "unknown") is no household."""
SIBLING_ALERTS_MAX: Final = 200


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """What a rule would have named: of how many alerts, how many."""

    alerts: int
    named: int


class NotPreviewed(Exception):
    """The rule was not tried on history, or there is no such version."""


async def name_patterns(connection: AsyncConnection, occasion: Occasion, told: Sequence[Announcement]) -> None:
    """Add to each alert about to be raised what its authority's rules find. Without rules nothing is asked."""
    switched_on = occasion.directory.patterns
    if not switched_on:
        return
    wanted = [(each, alert) for each in told for alert in each.alerts if alert.alert.authority in switched_on]
    if not wanted:
        return
    rules = [rule for _, alert in wanted for rule in switched_on[alert.alert.authority]]
    since = occasion.now - timedelta(hours=max(rule.window_h for rule in rules)) - occasion.rules.look_back
    keyring = occasion.keyring
    indexes = {index_nhs_number(keyring, alert.alert.child.nhs_number) for _, alert in wanted}
    met = await patterns.load_met(connection, keyring, indexes, since)
    for each in told:
        for access in each.accesses:
            index = index_nhs_number(keyring, access.nhs_number)
            if access.is_unscheduled and index in indexes:
                met.setdefault(index, []).append(Met(at=access.at, organisation=access.author.organisation))
    for announcement, alert in wanted:
        own = [
            rule
            for rule in switched_on[alert.alert.authority]
            if not _is_kept_from(rule, is_restricted=alert.is_restricted)
        ]
        said = alert.alert
        left = await _load_left(connection, alert, since)
        visits = met.get(index_nhs_number(keyring, said.child.nhs_number), [])
        siblings = await _find_sibling_visits(connection, keyring, own, alert, told)
        found = find_patterns(own, visits, left, siblings, _counted_at(said, occasion.now))
        if found:
            words = word_patterns(found)
            named = msgspec.structs.replace(alert, alert=msgspec.structs.replace(said, reason=said.reason + words))
            replace_alert(occasion, announcement, named)


def _is_kept_from(rule: PatternRule, *, is_restricted: bool) -> bool:
    """Of a restricted person nothing is counted by site (ADR 0040)."""
    return is_restricted and rule.kind is PatternKind.SITES


def _counted_at(alert: SocialCareAlert, raised_at: datetime) -> datetime:
    """From when a rule counts back: when the person came, however much later the message did."""
    return min(alert.attendance.arrived_at or raised_at, raised_at)


async def preview_rule(
    database: Database, keyring: Keyring, rule: PatternRule, days: int, now: datetime, *, by: str
) -> Preview:
    """Try a rule on the alerts of the last days, as it would have been at each; on record."""
    async with database.reading() as connection:
        found = await _count_named(connection, keyring, rule, days, now)
    async with database.writing() as connection:
        await patterns.note_preview(connection, rule, now)
        await audit.record_acts(connection, [_act(rule, by, "pattern.previewed")], now)
    return found


async def _count_named(
    connection: AsyncConnection, keyring: Keyring, rule: PatternRule, days: int, now: datetime
) -> Preview:
    owner = authority_owner(rule.authority)
    since = now - timedelta(days=days)
    raised = [
        each
        for each in await alerts.list_alerts(
            connection, keyring, owner, worker=None, rows_max=PREVIEW_ALERTS_MAX, closed_since=since
        )
        if each.raised_at >= since and each.alert.kind is not AlertKind.LOOKED_UP
    ]
    grounds = {each.alert.alert_id: await alerts.list_grounds(connection, each.alert.alert_id) for each in raised}
    indexes = {index_nhs_number(keyring, each.alert.child.nhs_number) for each in raised}
    oldest = since - timedelta(hours=rule.window_h)
    met = await patterns.load_met(connection, keyring, indexes, oldest)
    named = 0
    for each in raised:
        left = await patterns.load_left(connection, owner, grounds[each.alert.alert_id], oldest)
        others = [at for alert_id, at in left.items() if alert_id != each.alert.alert_id]
        visits = met.get(index_nhs_number(keyring, each.alert.child.nhs_number), [])
        siblings = await _load_sibling_visits(connection, keyring, rule, each, grounds[each.alert.alert_id])
        own = [] if _is_kept_from(rule, is_restricted=each.is_restricted) else [rule]
        named += bool(find_patterns(own, visits, others, siblings, _counted_at(each.alert, each.raised_at)))
    return Preview(alerts=len(raised), named=named)


async def switch_pattern(
    connection: AsyncConnection, rule: PatternRule, state: PatternState, *, by: str, now: datetime
) -> None:
    """Switch a version of a rule on or off. Raises NotPreviewed for one that nobody has tried on history."""
    stored = await patterns.find_rule(connection, rule.authority, rule.kind, rule.version)
    if stored is None or (state is PatternState.ON and stored.previewed_at is None):
        raise NotPreviewed
    switch = patterns.switch_on if state is PatternState.ON else patterns.switch_off
    await switch(connection, rule, by=by, now=now)
    await audit.record_acts(connection, [_act(rule, by, f"pattern.{state.value}")], now)


async def word_pattern(connection: AsyncConnection, rule: PatternRule, *, by: str, now: datetime) -> PatternRule:
    """Keep the next version of a rule, switched off."""
    added = await patterns.add_rule(connection, rule, by=by, now=now)
    await audit.record_acts(connection, [_act(added, by, "pattern.worded")], now)
    return added


async def _load_left(connection: AsyncConnection, alert: NewAlert, since: datetime) -> list[datetime]:
    owner = authority_owner(alert.alert.authority)
    entry_ids = [entry_id for entry_id, _ in alert.entries]
    left: Mapping[str, datetime] = await patterns.load_left(connection, owner, entry_ids, since)
    return [at for alert_id, at in left.items() if alert_id != alert.alert.alert_id]


async def _find_sibling_visits(
    connection: AsyncConnection,
    keyring: Keyring,
    rules: Sequence[PatternRule],
    alert: NewAlert,
    told: Sequence[Announcement],
) -> list[datetime]:
    """When other children of the household came, as far as the authority was told of it or is just being told."""
    if not any(rule.kind is PatternKind.SIBLING_VISITS for rule in rules):
        return []
    entry_ids = frozenset(entry_id for entry_id, _ in alert.entries)
    child = Child(nhs_number=alert.alert.child.nhs_number, entry_ids=entry_ids)
    siblings, stored = await _load_siblings(connection, keyring, child, authority_owner(alert.alert.authority))
    withdrawn = {each.alert_id for one in told for each in one.withdrawn}
    known = [(each.alert, each.is_restricted) for each in stored if each.alert.alert_id not in withdrawn]
    known += [
        (each.alert, each.is_restricted)
        for one in told
        for each in one.alerts
        if not siblings.isdisjoint(entry_id for entry_id, _ in each.entries)
    ]
    return _list_visits(known, is_restricted=alert.is_restricted)


async def _load_sibling_visits(
    connection: AsyncConnection, keyring: Keyring, rule: PatternRule, raised: StoredAlert, entry_ids: Sequence[str]
) -> list[datetime]:
    """When other children of the household had come, as far as was known when an alert was raised."""
    if rule.kind is not PatternKind.SIBLING_VISITS:
        return []
    child = Child(nhs_number=raised.alert.child.nhs_number, entry_ids=frozenset(entry_ids))
    _, stored = await _load_siblings(connection, keyring, child, authority_owner(rule.authority))
    known = [(each.alert, each.is_restricted) for each in stored if each.raised_at <= raised.raised_at]
    return _list_visits(known, is_restricted=raised.is_restricted)


async def _load_siblings(
    connection: AsyncConnection, keyring: Keyring, child: Child, owner: str
) -> tuple[frozenset[str], list[StoredAlert]]:
    """The entries of other children of the household, and their authority's alerts that stand."""
    household = await child_lists.find_household(connection, keyring, child.entry_ids, rows_max=HOUSEHOLD_ENTRIES_MAX)
    siblings = find_siblings(child, household)
    if not siblings:
        return frozenset(), []
    stored = await alerts.list_resting_on(connection, keyring, owner, siblings, rows_max=SIBLING_ALERTS_MAX)
    return frozenset(siblings), [each for each in stored if each.withdrawn_at is None]


def _list_visits(told: Sequence[tuple[SocialCareAlert, bool]], *, is_restricted: bool) -> list[datetime]:
    """Of alerts, and whether their place is withheld: when each visit to unscheduled care was.

    Where a restricted child was would show from the place of another child's alert that names its visit.
    """
    return [
        alert.attendance.arrived_at or alert.raised_at
        for alert, is_withheld in told
        if alert.kind is AlertKind.ATTENDED and is_withheld is is_restricted
    ]


def _act(rule: PatternRule, by: str, action: str) -> Act:
    subject = f"{rule.kind.value}/{rule.version}"
    return Act(owner=authority_owner(rule.authority), actor=by, action=action, subject=subject)
