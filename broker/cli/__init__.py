"""The command line. People by default, ``--json`` for programs; errors say what to do.

Every command is a process of its own, and so is every part. What they need is therefore imported inside the functions
that need it: whoever asks for keys does not wait for a database, a web server and the models of FHIR.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from broker.cli import (
    audit,
    deliveries,
    history,
    incidents,
    installation,
    lists,
    merges,
    mesh,
    parts,
    patterns,
    quarantine,
    replay,
)
from broker.cli.screen import fail
from broker.exits import EXIT_CONFIGURATION, EXIT_NOT_WELL

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    # Its tracebacks show the values of variables.
    pretty_exceptions_enable=False,
    help="CPIS broker: from an attendance to the people.",
)
children_app = typer.Typer(no_args_is_help=True, help="Authorities' child lists.")
landings_app = typer.Typer(no_args_is_help=True, help="Long files of which not all has landed.")
incidents_app = typer.Typer(no_args_is_help=True, help="Operation Encompass: police incidents and their proof.")
quarantine_app = typer.Typer(no_args_is_help=True, help="Messages that could not be handled.")
deliveries_app = typer.Typer(no_args_is_help=True, help="What did not reach its recipient.")
merges_app = typer.Typer(no_args_is_help=True, help="Records that departments joined.")
mesh_app = typer.Typer(no_args_is_help=True, help="Files that came by MESH.")
patterns_app = typer.Typer(no_args_is_help=True, help="Patterns that authorities wish to be named in alerts.")
audit_app = typer.Typer(no_args_is_help=True, help="The audit chains.")
keys_app = typer.Typer(no_args_is_help=True, help="Keys of this installation.")
app.add_typer(children_app, name="children")
children_app.add_typer(landings_app, name="landings")
app.add_typer(incidents_app, name="incidents")
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(deliveries_app, name="deliveries")
app.add_typer(merges_app, name="merges")
app.add_typer(mesh_app, name="mesh")
app.add_typer(patterns_app, name="patterns")
app.add_typer(audit_app, name="audit")
app.add_typer(keys_app, name="keys")

app.command()(parts.serve)
app.command()(parts.demo)
app.command(name="migrate")(installation.migrate_command)
app.command()(installation.check_config)
app.command(name="import")(lists.import_directory)
children_app.command(name="import")(lists.import_children)
children_app.command(name="as-at")(history.show_as_at)
app.command(name="missed")(history.show_missed)
children_app.command(name="coverage")(lists.show_coverage)
children_app.command(name="held")(lists.list_held)
children_app.command(name="decide")(lists.decide_held)
landings_app.command(name="list")(lists.list_landings)
landings_app.command(name="drop")(lists.drop_landing)
incidents_app.command(name="import")(incidents.import_incidents)
incidents_app.command(name="report")(incidents.report_month)
incidents_app.command(name="show")(incidents.show_incident)
incidents_app.command(name="schools")(incidents.report_schools)
app.command(name="ledger")(audit.show_ledger)
quarantine_app.command(name="list")(quarantine.list_quarantine)
quarantine_app.command(name="show")(quarantine.show_quarantined)
quarantine_app.command(name="replay")(quarantine.replay_quarantined)
deliveries_app.command(name="list")(deliveries.list_deliveries)
deliveries_app.command(name="resend")(deliveries.resend_deliveries)
merges_app.command(name="list")(merges.list_merges)
merges_app.command(name="undo")(merges.undo_merge)
mesh_app.command(name="list")(mesh.list_files)
mesh_app.command(name="show")(mesh.show_file)
mesh_app.command(name="settle")(mesh.settle_file)
mesh_app.command(name="again")(mesh.take_again)
patterns_app.command(name="list")(patterns.list_patterns)
patterns_app.command(name="word")(patterns.word_pattern)
patterns_app.command(name="preview")(patterns.preview_pattern)
patterns_app.command(name="on")(patterns.switch_on)
patterns_app.command(name="off")(patterns.switch_off)
app.command(name="replay")(replay.replay_topic)
audit_app.command(name="verify")(audit.verify_audit)
audit_app.command(name="who-saw")(audit.show_who_saw)
audit_app.command(name="export")(audit.export_audit)
keys_app.command(name="generate")(installation.generate_keys)
app.command(name="operator")(installation.add_operator)
app.command()(parts.health)
app.command()(installation.bench)


def main() -> None:
    """Run the command line; expected problems end with a sentence, not a traceback."""
    try:
        app()
    except Exception as error:
        _end(error)


def _end(error: Exception) -> None:
    from pydantic import ValidationError

    from broker.bootstrap import ConfigurationError
    from broker.telemetry import innermost_line

    if isinstance(error, ConfigurationError):
        fail(f"configuration: {error}", EXIT_CONFIGURATION)
    if isinstance(error, ValidationError):
        problems = "; ".join(_describe_problem(problem) for problem in error.errors())
        fail(f"configuration: {problems}", EXIT_CONFIGURATION)
    at = innermost_line(error.__traceback__)
    fail(f"unexpected: {type(error).__name__} at {at}; please report it", EXIT_NOT_WELL)


def _describe_problem(problem: ErrorDetails) -> str:
    """Which setting and why, never the value: it may be a secret."""
    variable = "_".join(("CPIS", *map(str, problem["loc"]))).upper()
    return f"{variable} {problem['msg']}" if problem["loc"] else problem["msg"]
