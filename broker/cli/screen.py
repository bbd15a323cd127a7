"""What every command says and takes in the same way."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console

from broker.exits import EXIT_IN_PART, EXIT_NOT_WELL

if TYPE_CHECKING:
    from adapters.child_list_csv import RowProblem
    from schemas.upload import RowAnswer

# Lines are left whole, so that a secret or a path can be copied from them, and a script reads one fact on one line.
console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document for programs.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check the file, change nothing.")]
FileArgument = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)]
ByOption = Annotated[str, typer.Option(help="Your name, for the audit.")]
WhyOption = Annotated[str, typer.Option(help="Why, for the audit; nothing about a person.")]


def fail(text: str, code: int) -> NoReturn:
    """End with a sentence on standard error."""
    errors.print(text, soft_wrap=True)
    sys.exit(code)


def tell_dry(dry_run: bool) -> str:
    """What is added where a command only tried."""
    return " (dry run: nothing was changed)" if dry_run else ""


def print_json(content: Any) -> None:
    """One document for programs."""
    sys.stdout.write(json.dumps(msgspec.to_builtins(content), indent=2) + "\n")


def print_refused(problems: Iterable[RowProblem | RowAnswer]) -> None:
    """Every row that was not loaded, and what to do."""
    for problem in problems:
        console.print(f"  row {problem.row}, {problem.field}: {problem.advice}")


def end_import(*, taken: int, refused: int, is_held: bool = False) -> None:
    """End so that a script notices what does not count: of a file nothing, or a part, or nothing yet."""
    if refused and not taken and not is_held:
        # Most likely it is not the file that was meant.
        raise typer.Exit(EXIT_NOT_WELL)
    if refused or is_held:
        raise typer.Exit(EXIT_IN_PART)
