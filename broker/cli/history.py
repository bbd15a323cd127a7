"""What was known when, and what was missed."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final

import typer

from broker.cli.screen import JsonOption, console, fail, print_json
from broker.cli.work import operator, run
from broker.exits import EXIT_CONFIGURATION

if TYPE_CHECKING:
    from broker.list_history import AsAt
    from broker.settings import Settings
    from broker.storage.database import Database
    from broker.storage.list_versions import ListAge
    from broker.storage.missed import Missed, Sweep
    from schemas.identifiers import NhsNumber

NUMBER_LETTERS_MAX: Final = 100
MISSED_SHOWN_MAX: Final = 1000
HOURS_TOLD_MAX: Final = 48


def show_as_at(
    at: Annotated[str, typer.Option(help="The instant, as 2026-02-14T03:12+00:00; without a zone London's.")],
    authority: Annotated[str, typer.Option(help="Only this authority's list (ODS code).")] = "",
    as_json: JsonOption = False,
) -> None:
    """What did the lists say about a person at an instant? The NHS number is asked for, or read from standard input."""
    from broker import bootstrap
    from broker.clock import SystemClock
    from broker.list_history import AsAtQuestion, tell_as_at
    from broker.storage import directory
    from schemas.identifiers import BROKER_OWNER, authority_owner

    instant = read_instant(at)
    number = read_number()
    question = AsAtQuestion(
        nhs_number=number,
        at=instant,
        owner=authority_owner(authority) if authority else None,
        asked_by=operator(),
    )

    async def ask(settings: Settings, database: Database) -> AsAt:
        async with database.writing() as connection:
            await directory.ensure_owners(connection, [(BROKER_OWNER, "Operators of the broker")])
            return await tell_as_at(connection, bootstrap.load_keyring(settings), question, SystemClock().now())

    answer = run(ask)
    if as_json:
        print_json(answer)
        return
    _print_as_at(answer)


def show_missed(as_json: JsonOption = False) -> None:
    """Alerts that should have been raised and were not, found by night. Ids and counts, nobody's name."""
    from broker.clock import SystemClock
    from broker.storage import list_versions, missed

    now = SystemClock().now()

    async def load(_: Settings, database: Database) -> tuple[list[Missed], Sweep, list[ListAge]]:
        async with database.reading() as connection:
            found = await missed.list_missed(connection, owner=None, rows_max=MISSED_SHOWN_MAX)
            return found, await missed.load_sweep(connection), await list_versions.load_ages_at(connection, now)

    found, sweep, ages = run(load)
    if as_json:
        print_json(found)
        return
    if not found:
        _tell_none_missed(sweep)
    else:
        _print_missed(found, now)
    for age in ages:
        told = f"confirmed {_tell_age(now - age.confirmed_at)} ago" if age.confirmed_at else "never loaded"
        console.print(f"List of {age.authority} {age.authority_name}: {told}", markup=False)


def _tell_none_missed(sweep: Sweep) -> None:
    """What was looked at; nothing of what it means for anybody."""
    from broker.domain.visits import LONDON

    if sweep.night is None:
        console.print("No missed alert is known: no night has been looked through yet. The part jobs does it.")
        return
    kept = "no visit is kept in full"
    if sweep.since is not None:
        kept = f"all visits that are kept, back to {sweep.since.astimezone(LONDON):%d %B %Y} (London), were compared"
    console.print(
        f"Nothing was missed that today's lists show: {kept}, last in the night of {sweep.night}. "
        "Who is on no list, or under a wrong number, is not found so.",
        soft_wrap=True,
    )


def _tell_age(age: timedelta) -> str:
    hours = int(age.total_seconds() // 3600)
    return f"{hours} hours" if hours < HOURS_TOLD_MAX else f"{age.days} days"


def _print_missed(found: list[Missed], now: datetime) -> None:
    from rich.table import Table

    shown = Table("missed", "authority", "visit", "came", "why", "state", "held by", "days old")
    for each in found:
        shown.add_row(
            each.id[:12],
            each.authority,
            each.visit_id[:12],
            each.visited_at.isoformat(timespec="minutes"),
            each.cause.value.replace("_", " "),
            "alerted late" if each.alert_id else each.state.value,
            each.held_by,
            str((now - each.found_at).days),
        )
    console.print(shown)


def read_instant(text: str, option: str = "--at") -> datetime:
    """An ISO 8601 instant in UTC; one without a zone is read on London's clocks."""
    from broker.domain.visits import LONDON

    try:
        read = datetime.fromisoformat(text)
    except ValueError:
        fail(f"{option}: give an instant such as 2026-02-14T03:12+00:00", EXIT_CONFIGURATION)
    return (read if read.tzinfo is not None else read.replace(tzinfo=LONDON)).astimezone(UTC)


def read_number() -> NhsNumber:
    """An NHS number, never from the command line: everybody on the machine can read that."""
    from schemas.identifiers import parse_nhs_number

    is_asked = sys.stdin.isatty()
    given = str(typer.prompt("NHS number", hide_input=True)) if is_asked else sys.stdin.readline(NUMBER_LETTERS_MAX)
    number = parse_nhs_number(given)
    if number is None:
        fail("that is not a valid NHS number", EXIT_CONFIGURATION)
    return number


def _print_as_at(answer: AsAt) -> None:
    from rich.table import Table

    if not answer.versions:
        console.print(f"No list said anything of this number at {answer.at.isoformat(timespec='seconds')}.")
    for version in answer.versions:
        entry = version.entry
        until = version.known_until.isoformat(timespec="seconds") if version.known_until else "now"
        taken_back = f", taken back on {entry.deleted_on}" if entry.deleted_on else ""
        console.print(
            f"{version.authority}: {entry.name.given} {entry.name.family}, born {entry.birth_date}, "
            f"{entry.plan_type.value} from {entry.start_on} to {entry.end_on or 'no end set'}{taken_back}",
            markup=False,
        )
        console.print(
            f"  known from {version.known_from.isoformat(timespec='seconds')} to {until}; upload {version.upload_id}, "
            f"sent by {version.uploaded_by}, file {version.file_hash}",
            markup=False,
            soft_wrap=True,
        )
    ages = Table("authority", "list confirmed last before then")
    for age in answer.lists:
        confirmed = age.confirmed_at.isoformat(timespec="seconds") if age.confirmed_at else "never"
        ages.add_row(f"{age.authority} {age.authority_name}", confirmed)
    console.print(ages)
