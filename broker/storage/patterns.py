"""Authorities' rules for patterns, version by version, and the history that they count."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.course import VisitState
from broker.domain.patterns import Met, PatternKind, PatternRule
from broker.keyring import Keyring
from broker.storage.accesses import AccessKind, derive_visit_access_id, load_author
from broker.storage.rows import insert_rows, is_among
from broker.storage.tables import (
    IDENTITY_CORRECTED,
    VISITS_JOINED,
    Access,
    Alert,
    AlertEntry,
    ListEntry,
    PatternRow,
    PatternState,
    table,
)
from schemas.identifiers import authority_owner

_rules, _accesses, _alerts = table(PatternRow), table(Access), table(Alert)
_grounds, _entries = table(AlertEntry), table(ListEntry)
_OF_VISIT: Final = (
    *(_accesses.c.id, _accesses.c.nhs_index, _accesses.c.author_index, _accesses.c.at),
    *(_accesses.c.is_withheld, _accesses.c.sealed),
)


class StoredRule(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a rule, and where it stands."""

    rule: PatternRule
    state: PatternState
    previewed_at: datetime | None
    changed_at: datetime
    changed_by: str


async def load_rules_on(connection: AsyncConnection) -> dict[str, tuple[PatternRule, ...]]:
    """The rules that are switched on, by authority."""
    statement = select(_rules).where(_rules.c.state == PatternState.ON.value)
    found: dict[str, tuple[PatternRule, ...]] = {}
    for row in await connection.execute(statement.order_by(_rules.c.authority, _rules.c.kind)):
        found[row.authority] = (*found.get(row.authority, ()), _rule(row))
    return found


async def list_rules(connection: AsyncConnection, authority: str | None = None) -> list[StoredRule]:
    """Every version of every rule, or of one authority's; the latest version of a kind first."""
    statement = select(_rules).order_by(_rules.c.authority, _rules.c.kind, _rules.c.version.desc())
    if authority is not None:
        statement = statement.where(_rules.c.authority == authority)
    return [_open(row) for row in await connection.execute(statement)]


async def find_rule(connection: AsyncConnection, authority: str, kind: PatternKind, version: int) -> StoredRule | None:
    """One version, or None."""
    row = (await connection.execute(select(_rules).where(*_is(authority, kind, version)))).one_or_none()
    return None if row is None else _open(row)


async def add_rule(connection: AsyncConnection, rule: PatternRule, *, by: str, now: datetime) -> PatternRule:
    """Keep the next version of a rule, as a draft: it names nothing yet. Returns it with its number."""
    newest = select(func.max(_rules.c.version)).where(
        _rules.c.authority == rule.authority, _rules.c.kind == rule.kind.value
    )
    version = ((await connection.execute(newest)).scalar_one() or 0) + 1
    row = {
        **msgspec.to_builtins(rule),
        "version": version,
        "owner": authority_owner(rule.authority),
        "state": PatternState.DRAFT.value,
        "changed_at": now,
        "changed_by": by,
    }
    await insert_rows(connection, _rules, [row])
    return msgspec.structs.replace(rule, version=version)


async def note_preview(connection: AsyncConnection, rule: PatternRule, now: datetime) -> None:
    """A person has seen what the rule would have named."""
    key = _is(rule.authority, rule.kind, rule.version)
    await connection.execute(update(_rules).where(*key).values(previewed_at=now))


async def switch_on(connection: AsyncConnection, rule: PatternRule, *, by: str, now: datetime) -> None:
    """Name a version from now on, and no other of its rule, also when two people switch at once."""
    versions = select(_rules.c.version).where(_rules.c.authority == rule.authority, _rules.c.kind == rule.kind.value)
    await connection.execute(versions.order_by(_rules.c.version).with_for_update())
    await switch_off(connection, rule, by=by, now=now)
    key = _is(rule.authority, rule.kind, rule.version)
    changed = {"changed_at": now, "changed_by": by}
    await connection.execute(update(_rules).where(*key).values(state=PatternState.ON.value, **changed))


async def switch_off(connection: AsyncConnection, rule: PatternRule, *, by: str, now: datetime) -> None:
    """Name no version of a rule any more."""
    is_on = (
        _rules.c.authority == rule.authority,
        _rules.c.kind == rule.kind.value,
        _rules.c.state == PatternState.ON.value,
    )
    changed = {"changed_at": now, "changed_by": by}
    await connection.execute(update(_rules).where(*is_on).values(state=PatternState.OFF.value, **changed))


async def load_met(
    connection: AsyncConnection, keyring: Keyring, indexes: Collection[bytes], since: datetime
) -> dict[bytes, list[Met]]:
    """Visits to unscheduled care since an instant, by blind index of the NHS number. Look-ups are none.

    Nor are visits that turned out to be somebody else's, or another that is counted already.
    """
    others = await _load_others_visits(connection, indexes, since)
    statement = select(*_OF_VISIT).where(
        is_among(connection, _accesses.c.nhs_index, sorted(indexes)),
        _accesses.c.at > since,
        _accesses.c.is_unscheduled,
    )
    found: dict[bytes, list[Met]] = {}
    for row in await connection.execute(statement):
        author, index = load_author(keyring, row), bytes(row.nhs_index)
        not_theirs = {derive_visit_access_id(keyring, index, row.author_index, one) for one in others.get(index, ())}
        if author.kind is AccessKind.ATTENDED and row.id not in not_theirs:
            met = Met(at=row.at, organisation=author.organisation, is_withheld=row.is_withheld)
            found.setdefault(index, []).append(met)
    return found


async def _load_others_visits(
    connection: AsyncConnection, indexes: Collection[bytes], since: datetime
) -> dict[bytes, set[str]]:
    """Visits that were taken for these people's, and of which no alert stands any more by their department's word."""
    statement = (
        select(_entries.c.nhs_index, _alerts.c.visit_id, _alerts.c.withdrawn_rule)
        .join_from(_entries, _grounds, _grounds.c.entry_id == _entries.c.id)
        .join(_alerts, _alerts.c.id == _grounds.c.alert_id)
        .where(is_among(connection, _entries.c.nhs_index, sorted(indexes)), _alerts.c.raised_at > since)
    )
    gone: dict[bytes, set[str]] = {}
    theirs: dict[bytes, set[str]] = {}
    for row in await connection.execute(statement):
        is_gone = row.withdrawn_rule in (IDENTITY_CORRECTED, VISITS_JOINED)
        (gone if is_gone else theirs).setdefault(bytes(row.nhs_index), set()).add(row.visit_id)
    return {index: visit_ids - theirs.get(index, set()) for index, visit_ids in gone.items()}


async def load_left(
    connection: AsyncConnection, owner: str, entry_ids: Sequence[str], since: datetime
) -> Mapping[str, datetime]:
    """An authority's alerts of these entries whose visits ended before treatment, and when they were raised."""
    resting = select(_grounds.c.alert_id).where(is_among(connection, _grounds.c.entry_id, entry_ids))
    statement = select(_alerts.c.id, _alerts.c.raised_at).where(
        _alerts.c.id.in_(resting),
        _alerts.c.owner == owner,
        _alerts.c.raised_at > since,
        _alerts.c.withdrawn_at.is_(None),
        _alerts.c.told_state == VisitState.LEFT_BEFORE_TREATMENT.value,
    )
    return {row.id: row.raised_at for row in await connection.execute(statement)}


def _is(authority: str, kind: PatternKind, version: int) -> tuple[Any, ...]:
    return _rules.c.authority == authority, _rules.c.kind == kind.value, _rules.c.version == version


def _rule(row: Any) -> PatternRule:
    return PatternRule(
        authority=row.authority,
        kind=PatternKind(row.kind),
        version=row.version,
        count_min=row.count_min,
        window_h=row.window_h,
        words=row.words,
    )


def _open(row: Any) -> StoredRule:
    return StoredRule(
        rule=_rule(row),
        state=PatternState(row.state),
        previewed_at=row.previewed_at,
        changed_at=row.changed_at,
        changed_by=row.changed_by,
    )
