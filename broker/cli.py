"""The command line. People by default, ``--json`` for programs; errors say what to do."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
import typer
from pydantic import SecretStr, ValidationError
from pydantic_core import ErrorDetails
from rich.console import Console
from rich.table import Table
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from adapters.child_list_csv import MalformedFile, RowProblem
from adapters.content import sniff_content
from adapters.errors import LogError, NotDurable
from adapters.hl7v2_conformance import find_conformance_issues
from broker import bootstrap
from broker.bootstrap import ConfigurationError, PartName
from broker.clock import SystemClock
from broker.consumers import attendance
from broker.directory_upload import DirectoryUpload, ImportReport, make_operator
from broker.keyring import generate_key
from broker.list_upload import UnknownAuthority, upload_children
from broker.liveness import is_ready, read_statuses
from broker.replay import ItemReport, RangeAsked, ReplayRefused, ReplayReport, parse_bound
from broker.senders import SNAPSHOT_NAME
from broker.settings import Settings
from broker.storage import audit, ledger, quarantine
from broker.storage.audit import Act
from broker.storage.database import Database
from broker.storage.migrations import is_current, migrate, newest
from broker.storage.tables import ItemState
from broker.supervisor import EXIT_CONFIGURATION, Supervisor, child_environment
from broker.telemetry import innermost_line
from broker.terminal import show_age, show_message, showing_progress
from schemas.identifiers import BROKER_OWNER

Result = TypeVar("Result")
EXIT_NOT_WELL = 1
"""Something was checked and is not as it should be."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    # Its tracebacks show the values of variables.
    pretty_exceptions_enable=False,
    help="CPIS broker: from an attendance to the people.",
)
children_app = typer.Typer(no_args_is_help=True, help="Authorities' child lists.")
quarantine_app = typer.Typer(no_args_is_help=True, help="Messages that could not be handled.")
audit_app = typer.Typer(no_args_is_help=True, help="The audit chains.")
keys_app = typer.Typer(no_args_is_help=True, help="Keys of this installation.")
app.add_typer(children_app, name="children")
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(audit_app, name="audit")
app.add_typer(keys_app, name="keys")

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document for programs.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check the file, change nothing.")]
FileArgument = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)]
ByOption = Annotated[str, typer.Option(help="Your name, for the audit.")]
WhyOption = Annotated[str, typer.Option(help="Why, for the audit; nothing about a person.")]
QUARANTINE_ROWS_MAX = 1000
NAME_LETTERS_MAX = 100


class DirectoryFile(StrEnum):
    """What ``import`` can load."""

    AUTHORITIES = "authorities"
    WORKERS = "workers"
    SITES = "sites"
    CLINICIANS = "clinicians"


def main() -> None:
    """Run the command line; expected problems end with a sentence, not a traceback."""
    try:
        app()
    except ConfigurationError as error:
        _fail(f"configuration: {error}", EXIT_CONFIGURATION)
    except ValidationError as error:
        _fail(
            f"configuration: {'; '.join(_describe_problem(problem) for problem in error.errors())}", EXIT_CONFIGURATION
        )
    except Exception as error:
        at = innermost_line(error.__traceback__)
        _fail(f"unexpected: {type(error).__name__} at {at}; please report it", EXIT_NOT_WELL)


@app.command()
def serve(
    only: Annotated[str, typer.Option(help="Parts to run, comma-separated; empty: all.")] = "",
    beat_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run the broker: every part as a process of its own, or only the named parts. SIGTERM drains and exits 0."""
    names = [part.strip() for part in only.split(",") if part.strip()] or [part.value for part in PartName]
    unknown = [name for name in names if name not in set(PartName)]
    if unknown:
        _fail(f"no such part: {', '.join(unknown)}; parts are {', '.join(PartName)}", EXIT_CONFIGURATION)
    settings = Settings()
    if len(names) == 1:
        raise typer.Exit(bootstrap.run_part(PartName(names[0]), settings, beat_fd=beat_fd))
    problems = bootstrap.check_safety(settings)
    if problems:
        raise ConfigurationError("; ".join(problems))
    bootstrap.load_keyring(settings)
    supervisor = Supervisor(names, child_environment(), settings.data_dir / "metrics", silent_s=settings.silent_exit_s)
    raise typer.Exit(asyncio.run(supervisor.run()))


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="Play unpaced, print the ledger, end.")] = False,
    kafka: Annotated[bool, typer.Option("--kafka", help="On Apache Kafka and PostgreSQL.")] = False,
    seed: Annotated[int, typer.Option(help="Another evening with other people.")] = 1,
) -> None:
    """Play an evening with synthetic people, on the embedded engines; the pages stay open until Ctrl-C."""
    from broker.demo import play  # the demonstration is loaded only when it is asked for

    raise typer.Exit(play(once=once, kafka=kafka, seed=seed, console=console))


@app.command(name="migrate")
def migrate_command() -> None:
    """Bring the database to the newest schema."""
    console.print(f"database schema is {_run(_MIGRATE)}")


@app.command()
def check_config() -> None:
    """Check every setting and say where each came from; exit 1 when something must not stay as it is."""
    settings = Settings()
    shown = Table("setting", "value", "from")
    for name in sorted(Settings.model_fields):
        value = _shown_value(getattr(settings, name))
        origin = _origin(f"CPIS_{name.upper()}", name in settings.model_fields_set)
        shown.add_row(f"CPIS_{name.upper()}", value, origin)
    console.print(shown)
    problems = [f"{name}: there is no such setting" for name in _unknown_variables()] + bootstrap.check_safety(settings)
    try:
        bootstrap.load_keyring(settings)
    except ConfigurationError as error:
        problems.append(str(error))
    problems += asyncio.run(bootstrap.check_engines(settings))
    for problem in problems:
        errors.print(f"[bold]not safe:[/bold] {problem}")
    if problems:
        raise typer.Exit(EXIT_NOT_WELL)
    console.print("configuration is good")


@app.command(name="import")
def import_directory(
    what: DirectoryFile, file: FileArgument, dry_run: DryRunOption = False, as_json: JsonOption = False
) -> None:
    """Load authorities, workers, sites or clinicians from CSV. A bad row never loses the good ones."""

    async def load(settings: Settings, database: Database) -> ImportReport:
        upload = DirectoryUpload(
            database,
            bootstrap.load_keyring(settings),
            SystemClock(),
            demo_passwords=settings.is_development,
            actor=_operator(),
            dry_run=dry_run,
        )
        content = file.read_bytes()
        if what is DirectoryFile.AUTHORITIES:
            return await upload.load_authorities(content)
        if what is DirectoryFile.WORKERS:
            return await upload.load_workers(content)
        if what is DirectoryFile.CLINICIANS:
            return await upload.load_clinicians(content)
        return await upload.load_sites(content, settings.data_dir / SNAPSHOT_NAME)

    report = _run(load)
    if as_json:
        _print_json(report)
        return
    console.print(f"{report.loaded} {what.value} loaded, {len(report.refused)} refused" + _dry(dry_run))
    _print_refused(report.refused)
    if report.issued:
        console.print("Made now and shown only this once:")
        for issued in report.issued:
            console.print(f"  {issued.to}  {issued.what}  {issued.secret}")


@children_app.command(name="import")
def import_children(
    file: FileArgument,
    authority: Annotated[str, typer.Option(help="ODS code of the authority whose list this is.")],
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Load an authority's list from CSV: adds and changes; a child that is not in the file stays listed."""
    report = _run(
        lambda settings, database: upload_children(
            database,
            bootstrap.load_keyring(settings),
            SystemClock(),
            authority=authority,
            file=file.read_bytes(),
            uploaded_by=_operator(),
            dry_run=dry_run,
        )
    )
    if as_json:
        _print_json(report)
        return
    again = " (this very file was loaded before)" if report.was_known else ""
    console.print(
        f"{report.loaded} entries read, {report.changed} new or changed, {len(report.refused)} refused"
        + _dry(dry_run)
        + again
    )
    _print_refused(report.refused)


@app.command(name="ledger")
def show_ledger(as_json: JsonOption = False) -> None:
    """Count both conservation laws; exit 1 if either does not balance."""
    topic, alerts = _run(bootstrap.count_ledger)
    balances = topic.balances and alerts.balances
    if as_json:
        _print_json({"topics": [topic], "alerts": alerts, "balances": balances})
    else:
        _print_ledger(topic, alerts)
    if not balances:
        errors.print("[bold]The ledger does not balance: something is lost or counted twice.[/bold]")
        raise typer.Exit(EXIT_NOT_WELL)


@quarantine_app.command(name="list")
def list_quarantine(
    everything: Annotated[bool, typer.Option("--all", help="Also those that are settled.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Messages that could not be handled and wait for a person, oldest first, without their contents."""

    async def load(_: Settings, database: Database) -> list[quarantine.StoredQuarantined]:
        choose = quarantine.list_all if everything else quarantine.list_open
        async with database.reading() as connection:
            return await choose(connection, rows_max=QUARANTINE_ROWS_MAX)

    items = _run(load)
    now = SystemClock().now()
    if as_json:
        _print_json(
            [
                msgspec.to_builtins(item)
                | {"age_s": int((now - item.kept_at).total_seconds()), "is_overdue": _is_overdue(item, now)}
                for item in items
            ]
        )
        return
    for item in items:
        state = (item.decision or item.state.value) + (", overdue" if _is_overdue(item, now) else "")
        replays = f", replayed {item.attempts} times" if item.attempts else ""
        for line in (
            f"{item.id}  {state}, with {item.held_by}",
            f"  {item.reason}: {item.detail}",
            f"  from {item.sender or 'nobody known'}, {item.topic} {item.partition}/{item.offset}, "
            f"kept {item.kept_at:%Y-%m-%d %H:%M:%S} UTC, {show_age(now - item.kept_at)} ago{replays}",
        ):
            console.print(line, soft_wrap=True, markup=False)
    console.print(
        "cpis-broker quarantine show ID --by NAME says what is in one" if items else "nothing is in quarantine"
    )


@quarantine_app.command(name="show")
def show_quarantined(
    item_id: Annotated[str, typer.Argument(metavar="ID", help="As quarantine list shows it.")],
    by: ByOption = "",
    raw: Annotated[Path | None, typer.Option(help="Write the exact bytes here instead of showing them.")] = None,
) -> None:
    """Show the contents of one message that could not be handled, and why. That you looked is audited."""
    person = _person(by, "showing a message is reading about a person")

    async def load(settings: Settings, database: Database) -> quarantine.KeptMessage | None:
        async with database.writing() as connection:
            keyring = bootstrap.load_keyring(settings)
            kept = (await quarantine.load_kept(connection, keyring, [item_id])).get(item_id)
            if kept is not None:
                act = Act(owner=BROKER_OWNER, actor=person, action="quarantine.shown", subject=item_id)
                await audit.record_acts(connection, [act], SystemClock().now())
            return kept

    kept = _run(load)
    if kept is None:
        _fail(f"there is no item {item_id!a}: cpis-broker quarantine list shows their ids", EXIT_NOT_WELL)
    if kept.body is None:
        _fail("its bytes do not open: the key they are kept under is not in CPIS_FIELD_KEYS", EXIT_NOT_WELL)
    if raw is not None:
        _write_private(raw, kept.body)
        console.print(f"{len(kept.body)} bytes written to {raw}, readable only by you", soft_wrap=True, markup=False)
        return
    _print_kept(kept.item, kept.body)


@quarantine_app.command(name="replay")
def replay_quarantined(
    *,
    item_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Items to replay.")] = None,
    by: ByOption = "",
    why: WhyOption = "",
    reason: Annotated[str, typer.Option(help="Every open item with this reason.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Every open item.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Have messages handled again that could not be handled. Who asked is audited; nobody is alerted twice."""
    person = _person(by, "a replay is audited")
    if sum((bool(item_ids), bool(reason), everything)) != 1:
        _fail("choose the items: their ids, or --reason WORD, or --all", EXIT_CONFIGURATION)

    async def replay(settings: Settings, database: Database) -> list[ItemReport]:
        wanted = list(dict.fromkeys(item_ids or []))
        if not wanted:
            async with database.reading() as connection:
                found = await quarantine.list_open(connection, rows_max=QUARANTINE_ROWS_MAX)
            wanted = [item.id for item in found if everything or item.reason == reason]
        reports = []
        with showing_progress(errors, "replaying") as advance:
            async with bootstrap.open_replayer(settings, database) as replayer:
                for done, item_id in enumerate(wanted, start=1):
                    reports.append(await replayer.replay_item(item_id, by=person, reason=why))
                    advance(done, len(wanted))
        return reports

    reports = _run(replay)
    if as_json:
        _print_json(reports)
    else:
        for report in reports:
            console.print(f"{report.id}: {report.result}", markup=False, soft_wrap=True)
        asked = sum(report.is_asked for report in reports)
        console.print(
            f"{asked} of {len(reports)} asked for; the part attendances handles them, "
            "then cpis-broker quarantine list shows what is left",
            soft_wrap=True,
        )
    if not all(report.is_asked for report in reports):
        raise typer.Exit(EXIT_NOT_WELL)


@app.command(name="replay")
def replay_topic(
    *,
    since: Annotated[str, typer.Option("--from", help="Offset, or instant like 2026-02-14T03:00Z.")],
    topic: Annotated[str, typer.Option(help="Only attendances can be replayed.")] = attendance.TOPIC,
    until: Annotated[
        str, typer.Option("--to", help="Offset or instant that is not replayed any more; empty: all.")
    ] = "",
    partition: Annotated[int | None, typer.Option(min=0, help="Only this partition; else all of them.")] = None,
    by: ByOption = "",
    why: WhyOption = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, change nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Have every message of a range of the log handled again. Who asked is audited; nobody is alerted twice."""
    person = _person(by, "a replay is audited")
    if topic != attendance.TOPIC:
        _fail(f"only the topic {attendance.TOPIC} can be replayed", EXIT_CONFIGURATION)
    try:
        last = parse_bound(until) if until else None
        asked = RangeAsked(since=parse_bound(since), until=last, partition=partition)
    except ValueError as error:
        _fail(f"--from and --to: {error}", EXIT_CONFIGURATION)

    async def replay(settings: Settings, database: Database) -> ReplayReport:
        with showing_progress(errors, "counting" if dry_run else "replaying") as advance:
            async with bootstrap.open_replayer(settings, database) as replayer:
                return await replayer.replay_range(asked, by=person, reason=why, dry_run=dry_run, on_progress=advance)

    report = _run(replay)
    if as_json:
        _print_json(report)
        return
    begun = "continued a replay that was begun before: " if report.continued else ""
    told = f"{begun}{report.appended} messages {'would be' if dry_run else ''} replayed ({report.asked})"
    console.print(told.replace("  ", " "), soft_wrap=True)
    if report.were_replays:
        console.print(f"  {report.were_replays} left out that are replays themselves")
    if report.not_handled_yet:
        console.print(f"  {report.not_handled_yet} left out that wait to be handled for the first time")


@audit_app.command(name="verify")
def verify_audit(as_json: JsonOption = False) -> None:
    """Check every owner's chain; exit 1 if one is broken."""

    async def verify(_: Settings, database: Database) -> dict[str, str | None]:
        async with database.reading() as connection:
            owners = await audit.list_chains(connection)
            return {owner: await audit.verify_chain(connection, owner) for owner in owners}

    found = _run(verify)
    if as_json:
        _print_json(found)
    else:
        for owner, problem in found.items():
            console.print(f"{owner}: {problem or 'whole'}")
    if any(found.values()):
        raise typer.Exit(EXIT_NOT_WELL)


@keys_app.command(name="generate")
def generate_keys() -> None:
    """Print new keys for CPIS_FIELD_KEYS and CPIS_INDEX_KEY; keep them where your secrets are kept."""
    console.print(f"CPIS_FIELD_KEYS=k1:{generate_key()}\nCPIS_INDEX_KEY={generate_key()}", soft_wrap=True)


@app.command(name="operator")
def add_operator(login: str, name: Annotated[str, typer.Option(help="The person's name.")]) -> None:
    """Give a person an operator's login; its password is shown once."""
    password = _run(
        lambda settings, database: make_operator(
            database, bootstrap.load_keyring(settings), SystemClock(), login=login, name=name, actor=_operator()
        )
    )
    console.print(f"{login}  password  {password}  (shown only this once)")


@app.command()
def health(
    part: Annotated[str, typer.Option(help="Only this part, without asking the database; empty: all.")] = "",
    as_json: JsonOption = False,
) -> None:
    """What the parts on this machine last said of themselves, and whether the database answers; exit 1 unless ready."""
    settings = Settings()
    now = time.time()
    found: dict[str, bool] = {}
    for status in read_statuses(settings.data_dir):
        if status.part == part or (not part and status.state != "stopped"):
            is_well = is_ready(status, now=now, silent_s=settings.silent_not_ready_s)
            found[status.part] = is_well and found.get(status.part, True)
    are_ready = bool(found) and all(found.values())
    if not part:
        found["database"] = asyncio.run(_database_answers(settings))
    if as_json:
        _print_json(found)
    else:
        for name, ready in found.items():
            console.print(f"{name}: {'ready' if ready else 'not ready'}")
    if not are_ready or not all(found.values()):
        raise typer.Exit(EXIT_NOT_WELL)


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Smaller lists, fewer and shorter rounds.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every round of every figure here.")] = None,
) -> None:
    """Measure the broker on this machine beside a floor and a naive build; needs a checkout of the repository."""
    # A program of its own: the broker never imports it, nor what only it and the tests need.
    if find_spec("benchmarks") is None or find_spec("psutil") is None:
        _fail("the benchmarks are not installed here: run make bench in a checkout of the repository", EXIT_NOT_WELL)
    options = [*(["--quick"] if quick else []), *(["--json", str(json_file)] if json_file else [])]
    command = [sys.executable, "-m", "benchmarks", *options]
    raise typer.Exit(subprocess.run(command, check=False).returncode)  # noqa: S603 - our own program


async def _database_answers(settings: Settings) -> bool:
    database = bootstrap.open_database(settings)
    try:
        return await database.answers()
    finally:
        await database.close()


def _run(job: Callable[[Settings, Database], Awaitable[Result]]) -> Result:
    """Do something with the database; what can go wrong is told as a sentence."""

    async def work() -> Result:
        settings = Settings()
        database = bootstrap.open_database(settings)
        try:
            if job is not _MIGRATE and not await is_current(database):
                _fail(f"the database is not at schema {newest()}: run cpis-broker migrate", EXIT_CONFIGURATION)
            return await job(settings, database)
        finally:
            await database.close()

    try:
        return asyncio.run(work())
    except MalformedFile as error:
        _fail(f"{error}; nothing was loaded", EXIT_NOT_WELL)
    except UnknownAuthority as error:
        _fail(f"authority {error} is not in the directory: import it first; nothing was loaded", EXIT_NOT_WELL)
    except ReplayRefused as error:
        _fail(str(error), EXIT_NOT_WELL)
    except NotDurable:
        _fail("the log did not confirm what was appended: give the same command again to continue", EXIT_NOT_WELL)
    except LogError as error:
        _fail(
            f"the log does not answer ({type(error).__name__}): is it running, are the settings right?", EXIT_NOT_WELL
        )
    except (SQLAlchemyError, OSError) as error:
        _fail(f"the database does not answer ({type(error).__name__}): is CPIS_DATABASE_URL right?", EXIT_NOT_WELL)


async def _migrate(_: Settings, database: Database) -> str:
    return await migrate(database)


_MIGRATE = _migrate


def _describe_problem(problem: ErrorDetails) -> str:
    """Which setting and why, never the value: it may be a secret."""
    variable = "_".join(("CPIS", *map(str, problem["loc"]))).upper()
    return f"{variable} {problem['msg']}" if problem["loc"] else problem["msg"]


def _operator() -> str:
    """Who sits at the command line, for the audit."""
    return f"cli:{getpass.getuser()}"


def _person(name: str, because: str) -> str:
    """Who asks, for the audit: the name that was given, and who is signed in to this machine."""
    shown = " ".join(name.split())
    if not shown or len(shown) > NAME_LETTERS_MAX or not shown.isprintable():
        _fail(f"{because}: say who you are with --by NAME (1 to {NAME_LETTERS_MAX} letters)", EXIT_CONFIGURATION)
    return f"{shown} ({_operator()})"


def _is_overdue(item: quarantine.StoredQuarantined, now: datetime) -> bool:
    return item.state is ItemState.OPEN and (item.due_by <= now or item.level > 0)


def _print_kept(item: quarantine.StoredQuarantined, body: bytes) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    facts = {
        "reason": item.reason,
        "detail": item.detail,
        "sender": item.sender or "not known",
        "kept at": f"{item.kept_at:%Y-%m-%d %H:%M:%S} UTC",
        "position": f"{item.topic} {item.partition}/{item.offset}",
        "replays": f"{item.attempts}, the last at {item.last_attempt_at:%Y-%m-%d %H:%M:%S} UTC"
        if item.last_attempt_at
        else "none",
        "state": f"{item.decision} by {item.decided_by}" if item.decision else item.state.value,
    }
    for name, fact in facts.items():
        console.print(f"{name}: {fact}", markup=False, soft_wrap=True)
    if sniff_content(body) == "hl7v2":
        for finding in find_conformance_issues(body):
            console.print(f"HL7 v2: {finding}", markup=False, soft_wrap=True)
    console.print(f"\n{show_message(body, encoding=encoding)}", markup=False, soft_wrap=True)


def _write_private(path: Path, content: bytes) -> None:
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
    except OSError as error:
        _fail(f"{path} cannot be written ({type(error).__name__}); it must not exist yet", EXIT_NOT_WELL)


def _fail(text: str, code: int) -> NoReturn:
    errors.print(text, soft_wrap=True)
    sys.exit(code)


def _dry(dry_run: bool) -> str:
    return " (dry run: nothing was changed)" if dry_run else ""


def _shown_value(value: object) -> str:
    """A setting as it may be shown: secrets and passwords in addresses are not."""
    if isinstance(value, SecretStr):
        return "set" if value.get_secret_value() else ""
    if isinstance(value, str) and "://" in value:
        return make_url(value).render_as_string(hide_password=True)
    return str(value)


def _unknown_variables() -> list[str]:
    """Variables that look like settings and are none: most likely mistyped."""
    known = {f"CPIS_{name.upper()}" for name in Settings.model_fields}
    return sorted(name for name in os.environ if name.startswith("CPIS_") and name not in known)


def _origin(variable: str, is_set: bool) -> str:
    if variable in os.environ:
        return "environment"
    return ".env" if is_set else "default"


def _print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(msgspec.to_builtins(content), indent=2) + "\n")


def _print_refused(problems: Iterable[RowProblem]) -> None:
    for problem in problems:
        console.print(f"  row {problem.row}, {problem.field}: {problem.advice}")


def _print_ledger(topic: ledger.TopicLedger, alerts: ledger.AlertLedger) -> None:
    shown = Table("messages", "count", title="Every message the log offered")
    shown.add_row("offered", str(topic.offered))
    shown.add_row("= waiting", str(topic.waiting))
    for outcome, count in topic.outcomes.items():
        shown.add_row(f"+ {outcome.replace('_', ' ')}", str(count))
    for reason, count in topic.reasons.items():
        shown.add_row(f"    ignored: {reason.replace('_', ' ')}", str(count))
    if topic.skipped:
        shown.add_row("+ offsets without a message", str(topic.skipped))
    console.print(shown)
    told = Table("alerts", "count", title="Every alert that was raised")
    told.add_row("raised", str(alerts.raised))
    told.add_row("= acknowledged by a person", str(alerts.acknowledged))
    told.add_row("+ open, with an owner", str(alerts.open_with_owner))
    told.add_row("+ closed by a named rule", str(alerts.closed_by_rule))
    console.print(told)
