"""What must add up, the ledger and the audit chains; and what the audit says of who saw whom."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from broker.cli.history import read_instant, read_number
from broker.cli.quarantine import opening_private
from broker.cli.screen import ByOption, JsonOption, console, errors, fail, print_json
from broker.cli.work import person, run
from broker.exits import EXIT_NOT_WELL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.settings import Settings
    from broker.storage.database import Database
    from broker.storage.ledger import AlertLedger, NoticeLedger, TopicLedger
    from broker.storage.sightings import Sighting


_OF_INCIDENTS: Final = {"alerted": "told to a school or an officer"}
"""A position has the same outcome whatever it holds; an incident alerts nobody, it leads to notices."""


def show_ledger(as_json: JsonOption = False) -> None:
    """Count both conservation laws; exit 1 if either does not balance."""
    from broker.bootstrap.ledger import count_encompass, count_ledger

    topic, alerts = run(count_ledger)
    incidents, notices = run(count_encompass)
    balances = topic.balances and alerts.balances and incidents.balances and notices.balances
    if as_json:
        print_json({"topics": [topic, incidents], "alerts": alerts, "notices": notices, "balances": balances})
    else:
        _print_ledger(topic, alerts)
        _print_encompass(incidents, notices)
    if not balances:
        errors.print("[bold]The ledger does not balance: something is lost or counted twice.[/bold]")
        raise typer.Exit(EXIT_NOT_WELL)


def verify_audit(as_json: JsonOption = False) -> None:
    """Check every owner's chain; exit 1 if one is broken."""

    from broker.storage import audit

    async def verify(_: Settings, database: Database) -> dict[str, str | None]:
        async with database.reading() as connection:
            owners = await audit.list_chains(connection)
            return {owner: await audit.verify_chain(connection, owner) for owner in owners}

    found = run(verify)
    if as_json:
        print_json(found)
    else:
        for owner, problem in found.items():
            console.print(f"{owner}: {problem or 'whole'}")
    if any(found.values()):
        raise typer.Exit(EXIT_NOT_WELL)


def show_who_saw(by: ByOption = "", as_json: JsonOption = False) -> None:
    """Who saw a child, and when? The NHS number is asked for, or read from standard input. It is audited."""
    from broker import bootstrap
    from broker.clock import SystemClock
    from broker.sightings import SIGHTINGS_MAX, tell_sightings

    who = person(by, "asking who saw a child is audited")
    number = read_number()

    async def ask(settings: Settings, database: Database) -> list[Sighting]:
        keyring, now = bootstrap.load_keyring(settings), SystemClock().now()
        async with database.writing() as connection:
            return await tell_sightings(connection, keyring, number, asked_by=who, now=now)

    found = run(ask)
    if as_json:
        print_json(found)
        return
    for each in found:
        at = each.at.isoformat(timespec="seconds")
        console.print(f"{at}  {each.owner}  {each.actor}  {each.action}  {each.kind} {each.subject[:12]}", markup=False)
    if len(found) == SIGHTINGS_MAX:
        console.print(f"There were more: the {SIGHTINGS_MAX} newest are shown.")
    elif not found:
        console.print("Nobody is on record as having seen anything of this number here.")


def export_audit(
    file: Annotated[Path, typer.Argument(help="The file to write, which must not exist.")],
    *,
    owner: Annotated[str, typer.Option(help="Only this chain, as audit verify names it: authority:706.")] = "",
    actor: Annotated[str, typer.Option(help="Only what this login or sender did: what did it see?")] = "",
    since: Annotated[str, typer.Option("--from", help="Not before this instant; without a zone London's.")] = "",
    until: Annotated[str, typer.Option("--to", help="Before this instant; without a zone London's.")] = "",
    by: ByOption = "",
) -> None:
    """Write records of the audit to a new file, one JSON document a line, for somebody else to check. It is audited."""
    from broker.clock import SystemClock
    from broker.sightings import RecordQuestion, read_records, record_export
    from broker.storage import audit

    who = person(by, "giving out the audit is audited")
    question = RecordQuestion(
        owner=owner or None,
        actor=actor or None,
        since=read_instant(since, "--from") if since else None,
        until=read_instant(until, "--to") if until else None,
    )

    async def write(_: Settings, database: Database) -> int:
        async with database.writing() as connection:
            if owner and owner not in await audit.list_chains(connection):
                fail(f"there is no chain {owner!a}: cpis-broker audit verify names them", EXIT_NOT_WELL)
            await record_export(connection, question, asked_by=who, now=SystemClock().now())
        written = 0
        async with database.reading() as connection:
            with opening_private(file) as lines:
                async for each in read_records(connection, question):
                    line = {**msgspec.structs.asdict(each.record), "hash": each.hash.hex()}
                    lines.write(msgspec.json.encode(line) + b"\n")
                    written += 1
        return written

    console.print(f"{run(write)} records written to {file}", markup=False)


def _print_offered(topic: TopicLedger, what: str, title: str, words: Mapping[str, str]) -> None:
    from rich.table import Table

    shown = Table(what, "count", title=title)
    shown.add_row("offered", str(topic.offered))
    shown.add_row("= waiting", str(topic.waiting))
    for outcome, count in topic.outcomes.items():
        shown.add_row(f"+ {words.get(outcome, outcome.replace('_', ' '))}", str(count))
    for reason, count in topic.reasons.items():
        shown.add_row(f"    ignored: {reason.replace('_', ' ')}", str(count))
    if topic.skipped:
        shown.add_row("+ offsets without a message", str(topic.skipped))
    console.print(shown)


def _print_ledger(topic: TopicLedger, alerts: AlertLedger) -> None:
    from rich.table import Table

    _print_offered(topic, "messages", "Every message the log offered", {})
    told = Table("alerts", "count", title="Every alert that was raised")
    told.add_row("raised", str(alerts.raised))
    told.add_row("= acknowledged by a person", str(alerts.acknowledged))
    told.add_row("+ open, with an owner", str(alerts.open_with_owner))
    told.add_row("+ closed by a named rule", str(alerts.closed_by_rule))
    console.print(told)


def _print_encompass(incidents: TopicLedger, notices: NoticeLedger) -> None:
    from rich.table import Table

    _print_offered(incidents, "incidents", "Every police incident the log offered", _OF_INCIDENTS)
    told = Table("notices", "count", title="Every notice that was planned")
    told.add_row("planned", str(notices.planned))
    told.add_row("= held", str(notices.held))
    for name in ("waiting", "sent", "acknowledged", "withdrawn"):
        told.add_row(f"+ {name}", str(getattr(notices, name)))
    told.add_row("    without anybody to see to it", str(notices.unattended))
    console.print(told)
