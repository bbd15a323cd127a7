"""Operation Encompass: incidents from a file."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.screen import (
    DryRunOption,
    FileArgument,
    JsonOption,
    console,
    errors,
    fail,
    print_json,
    print_refused,
    tell_dry,
)
from broker.cli.work import operator, run
from broker.exits import EXIT_NOT_WELL

if TYPE_CHECKING:
    from broker.incident_intake import IncidentFileAnswer
    from broker.settings import Settings
    from broker.storage.database import Database
    from schemas.encompass import Force

ForceOption = Annotated[str, typer.Option(help="Code of the police force.")]


def import_incidents(
    file: FileArgument, force: ForceOption, dry_run: DryRunOption = False, as_json: JsonOption = False
) -> None:
    """Take in a force's CSV export of incidents. A bad row loses no good one; given twice, a file counts once."""
    from broker.bootstrap.incidents import open_incident_intake
    from broker.clock import SystemClock
    from broker.incident_intake import NOT_DURABLE
    from broker.storage import audit
    from broker.storage.audit import Act
    from broker.terminal import showing_progress
    from schemas.directory import Sender
    from schemas.identifiers import force_owner

    content = file.read_bytes()

    async def load(settings: Settings, database: Database) -> IncidentFileAnswer:
        known = await find_force(database, force)
        if not dry_run:
            subject = sha256(content).hexdigest()
            act = Act(owner=force_owner(known.code), actor=operator(), action="incidents.imported", subject=subject)
            async with database.writing() as connection:
                await audit.record_acts(connection, [act], SystemClock().now())
        sender = Sender(code=known.code, credential_digest=b"")
        with showing_progress(errors, "incidents kept") as advance:
            async with open_incident_intake(settings) as intake:
                return await intake.accept_file(content, sender, dry_run=dry_run, on_progress=advance)

    answer = run(load)
    if as_json:
        print_json(answer)
    else:
        console.print(f"{len(answer.kept)} incidents kept, {len(answer.refused)} rows refused" + tell_dry(dry_run))
        print_refused(answer.refused)
    if answer.status == NOT_DURABLE:
        fail("the log did not confirm what was appended: give the same command again to continue", EXIT_NOT_WELL)
    if answer.refused and not answer.kept:
        raise typer.Exit(EXIT_NOT_WELL)


async def find_force(database: Database, code: str) -> Force:
    """The force of that code; ends with a sentence where there is none."""
    from broker.storage import establishments

    async with database.reading() as connection:
        known = await establishments.find_force(connection, code.strip().upper())
    if known is None:
        fail(f"no force has the code {code!a}: cpis-broker import forces FILE makes forces known", EXIT_NOT_WELL)
    return known
