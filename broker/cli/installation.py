"""The installation itself: schema, settings, keys, operators, benchmarks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.screen import console, errors, fail
from broker.cli.work import operator, run
from broker.exits import EXIT_NOT_WELL

if TYPE_CHECKING:
    from broker.settings import Settings
    from broker.storage.database import Database


def migrate_command() -> None:
    """Bring the database to the newest schema."""
    console.print(f"database schema is {run(_migrate, on_any_schema=True)}")


async def _migrate(_: Settings, database: Database) -> str:
    from broker.storage.migrations import migrate

    return await migrate(database)


def check_config(
    show_all: Annotated[
        bool, typer.Option("--all", help="Show also the settings that stand at their default.")
    ] = False,
) -> None:
    """Check every setting and say where each came from; exit 1 when something must not stay as it is."""
    from rich.table import Table

    from broker import bootstrap
    from broker.settings import Settings

    settings = Settings()
    shown = Table("setting", "value", "from")
    names = sorted(Settings.model_fields if show_all else settings.model_fields_set)
    for name in names:
        value = _shown_value(getattr(settings, name))
        origin = _origin(f"CPIS_{name.upper()}", name in settings.model_fields_set)
        shown.add_row(f"CPIS_{name.upper()}", value, origin)
    if names:
        console.print(shown)
    if len(names) < len(Settings.model_fields):
        console.print(f"{len(Settings.model_fields) - len(names)} settings stand at their default: --all shows them")
    problems = [f"{name}: there is no such setting" for name in _unknown_variables()] + bootstrap.check_safety(settings)
    try:
        bootstrap.load_keyring(settings)
    except bootstrap.ConfigurationError as error:
        problems.append(str(error))
    if settings.mesh_url:
        from broker.bootstrap.mesh import inbox_options

        try:
            inbox_options(settings)
        except bootstrap.ConfigurationError as error:
            problems.append(str(error))
    problems += asyncio.run(bootstrap.check_engines(settings))
    for problem in problems:
        errors.print(f"[bold]not safe:[/bold] {problem}")
    if problems:
        raise typer.Exit(EXIT_NOT_WELL)
    console.print("configuration is good")


def generate_keys() -> None:
    """Print new keys for CPIS_FIELD_KEYS and CPIS_INDEX_KEY; keep them where your secrets are kept."""
    from broker.keyring import generate_key

    console.print(f"CPIS_FIELD_KEYS=k1:{generate_key()}\nCPIS_INDEX_KEY={generate_key()}", soft_wrap=True)


def add_operator(login: str, name: Annotated[str, typer.Option(help="The person's name.")]) -> None:
    """Give a person an operator's login; its password is shown once."""
    from broker import bootstrap
    from broker.clock import SystemClock
    from broker.directory_upload import make_operator

    password = run(
        lambda settings, database: make_operator(
            database, bootstrap.load_keyring(settings), SystemClock(), login=login, name=name, actor=operator()
        )
    )
    console.print(f"{login}  password  {password}  (shown only this once)")


def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Smaller lists, fewer and shorter rounds.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every round of every figure here.")] = None,
) -> None:
    """Measure the broker on this machine beside a floor and a naive build; needs a checkout of the repository."""
    # A program of its own: the broker never imports it, nor what only it and the tests need.
    if find_spec("benchmarks") is None or find_spec("psutil") is None:
        fail("the benchmarks are not installed here: run make bench in a checkout of the repository", EXIT_NOT_WELL)
    options = [*(["--quick"] if quick else []), *(["--json", str(json_file)] if json_file else [])]
    command = [sys.executable, "-m", "benchmarks", *options]
    raise typer.Exit(subprocess.run(command, check=False).returncode)  # noqa: S603 - our own program


def _shown_value(value: object) -> str:
    """A setting as it may be shown: secrets and passwords in addresses are not."""
    from pydantic import SecretStr
    from sqlalchemy.engine import make_url

    if isinstance(value, SecretStr):
        return "set" if value.get_secret_value() else ""
    if isinstance(value, str) and "://" in value:
        return make_url(value).render_as_string(hide_password=True)
    return str(value)


def _unknown_variables() -> list[str]:
    """Variables that look like settings and are none: most likely mistyped."""
    from broker.settings import Settings

    known = {f"CPIS_{name.upper()}" for name in Settings.model_fields}
    return sorted(name for name in os.environ if name.startswith("CPIS_") and name not in known)


def _origin(variable: str, is_set: bool) -> str:
    if variable in os.environ:
        return "environment"
    return ".env" if is_set else "default"
