"""Patterns that an authority wishes to be named in its alerts: worded, tried on history, switched on and off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.screen import JsonOption, console, fail, print_json
from broker.cli.work import person, run
from broker.domain.patterns import COUNT_MAX, WINDOW_HOURS_MAX
from broker.exits import EXIT_CONFIGURATION

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from broker.domain.patterns import PatternRule
    from broker.patterns import Preview
    from broker.settings import Settings
    from broker.storage.database import Database
    from broker.storage.patterns import StoredRule
    from broker.storage.tables import PatternState

Authority = Annotated[str, typer.Argument(help="ODS code of the authority whose rule it is.")]
Kind = Annotated[str, typer.Argument(help="visits, sites, left_before_treatment or sibling_visits.")]
Version = Annotated[int, typer.Argument(help="The version, as patterns list shows it.")]
By = Annotated[str, typer.Option(help="Your name, for the record.")]


def list_patterns(as_json: JsonOption = False) -> None:
    """Every version of every authority's rules, and where it stands."""
    from broker.storage import patterns

    async def load(_: Settings, database: Database) -> list[StoredRule]:
        async with database.reading() as connection:
            return await patterns.list_rules(connection)

    found = run(load)
    if as_json:
        print_json(found)
        return
    for each in found:
        rule = each.rule
        tried = f"tried {each.previewed_at:%Y-%m-%dT%H:%M}Z" if each.previewed_at else "not tried"
        counted = f"at least {rule.count_min} in {rule.window_h} h"
        line = (
            f"{rule.authority}  {rule.kind.value} {rule.version}  {each.state.value}, {tried}, {counted}: {rule.words}"
        )
        console.print(line, markup=False)
    if not found:
        console.print("no authority has worded a rule")


def word_pattern(
    authority: Authority,
    kind: Kind,
    *,
    count: Annotated[int, typer.Option(min=1, max=COUNT_MAX, help="How many there have to be.")],
    hours: Annotated[int, typer.Option(min=1, max=WINDOW_HOURS_MAX, help="... within so many hours.")],
    words: Annotated[str, typer.Option(help="What the alert says, in the authority's own words.")],
    by: By = "",
) -> None:
    """Word a rule, or the next version of one. It names nothing until it was tried and switched on."""
    from broker.clock import SystemClock
    from broker.domain.patterns import BadWording, compose_rule
    from broker.patterns import word_pattern as keep
    from broker.storage import child_lists

    who = person(by, "a rule for alerts")
    try:
        wanted = compose_rule(authority, kind, count_min=count, window_h=hours, words=words)
    except BadWording as error:
        fail(str(error), EXIT_CONFIGURATION)

    async def add(_: Settings, database: Database) -> PatternRule | None:
        async with database.writing() as connection:
            if await child_lists.find_list_version(connection, authority) is None:
                return None
            return await keep(connection, wanted, by=who, now=SystemClock().now())

    added = run(add)
    if added is None:
        fail(f"authority {authority} is not in the directory", EXIT_CONFIGURATION)
    console.print(f"{added.kind.value}, version {added.version}: try it with cpis-broker patterns preview")


def preview_pattern(
    authority: Authority,
    kind: Kind,
    version: Version,
    *,
    days: Annotated[int, typer.Option(min=1, max=366, help="How far back.")] = 90,
    by: By = "",
    as_json: JsonOption = False,
) -> None:
    """Of how many alerts of the last days a rule would have been named. Counts, nobody's name."""
    from broker import bootstrap
    from broker.clock import SystemClock
    from broker.patterns import preview_rule

    who = person(by, "a rule for alerts")

    async def count(settings: Settings, database: Database) -> Preview | None:
        async with database.reading() as connection:
            stored = await _find(connection, authority, kind, version)
        if stored is None:
            return None
        keyring, now = bootstrap.load_keyring(settings), SystemClock().now()
        return await preview_rule(database, keyring, stored.rule, days, now, by=who)

    found = run(count)
    if found is None:
        fail("there is no such rule: see cpis-broker patterns list", EXIT_CONFIGURATION)
    if as_json:
        print_json(found)
    else:
        console.print(f"It would have been named in {found.named} of {found.alerts} alerts of the last {days} days.")


def switch_on(authority: Authority, kind: Kind, version: Version, by: By = "") -> None:
    """Name the pattern in alerts from now on. Only what was tried on history; another version goes off."""
    from broker.storage.tables import PatternState

    _switch(authority, kind, version, PatternState.ON, by)


def switch_off(authority: Authority, kind: Kind, version: Version, by: By = "") -> None:
    """Name no version of the rule any more."""
    from broker.storage.tables import PatternState

    _switch(authority, kind, version, PatternState.OFF, by)


def _switch(authority: str, kind: str, version: int, state: PatternState, by: str) -> None:
    from broker.clock import SystemClock
    from broker.patterns import NotPreviewed, switch_pattern

    who = person(by, "a rule for alerts")

    async def switch(_: Settings, database: Database) -> bool:
        async with database.writing() as connection:
            stored = await _find(connection, authority, kind, version)
            if stored is None:
                return False
            try:
                await switch_pattern(connection, stored.rule, state, by=who, now=SystemClock().now())
            except NotPreviewed:
                return False
            return True

    if not run(switch):
        fail("there is no such rule, or nobody has tried it: cpis-broker patterns preview", EXIT_CONFIGURATION)
    console.print(f"{kind}, version {version}: {state.value}")


async def _find(connection: AsyncConnection, authority: str, kind: str, version: int) -> StoredRule | None:
    from broker.domain.patterns import PatternKind
    from broker.storage import patterns

    if kind not in set(PatternKind):
        return None
    return await patterns.find_rule(connection, authority, PatternKind(kind), version)
