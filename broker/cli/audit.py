"""What must add up: the ledger and the audit chains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import typer

from broker.cli.screen import JsonOption, console, errors, print_json
from broker.cli.work import run
from broker.exits import EXIT_NOT_WELL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.settings import Settings
    from broker.storage.database import Database
    from broker.storage.ledger import AlertLedger, NoticeLedger, TopicLedger


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
