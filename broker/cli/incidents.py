"""Operation Encompass: incidents from a file, and the proof: the month, one incident, the schools."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.quarantine import write_private
from broker.cli.screen import (
    ByOption,
    DryRunOption,
    FileArgument,
    JsonOption,
    console,
    end_import,
    errors,
    fail,
    print_json,
    print_refused,
    tell_dry,
)
from broker.cli.work import operator, person, run
from broker.exits import EXIT_CONFIGURATION, EXIT_NOT_WELL

if TYPE_CHECKING:
    from broker.incident_intake import IncidentFileAnswer
    from broker.proof import IncidentRecord, MonthReport, SchoolReport
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
        console.print(f"incidents: {len(answer.kept)} kept; rows: {len(answer.refused)} refused" + tell_dry(dry_run))
        print_refused(answer.refused)
    if answer.status == NOT_DURABLE:
        fail("the log did not confirm what was appended: give the same command again to continue", EXIT_NOT_WELL)
    end_import(taken=len(answer.kept), refused=len(answer.refused))


async def find_force(database: Database, code: str) -> Force:
    """The force of that code; ends with a sentence where there is none."""
    from broker.storage import establishments

    async with database.reading() as connection:
        known = await establishments.find_force(connection, code.strip().upper())
    if known is None:
        fail(f"no force has the code {code!a}: cpis-broker import forces FILE makes forces known", EXIT_NOT_WELL)
    return known


def report_month(
    month: Annotated[str, typer.Option(help="Like 2026-02: incidents reported in it, on London's calendar.")],
    force: ForceOption = "",
    authority: Annotated[str, typer.Option(help="ODS code: what concerns this authority's schools.")] = "",
    csv: Annotated[Path | None, typer.Option(help="Write every notice to this new file, for a spreadsheet.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The statutory report of a month: incidents, children, notices on time, late and why. Names no child."""
    from broker import bootstrap, proof
    from broker.clock import SystemClock

    chosen = proof.parse_month(month)
    if chosen is None:
        fail("--month: write it as 2026-02", EXIT_CONFIGURATION)
    if bool(force) == bool(authority):
        fail("choose --force CODE or --authority CODE", EXIT_CONFIGURATION)

    async def read(settings: Settings, database: Database) -> MonthReport:
        code = (await find_force(database, force)).code if force else ""
        async with database.reading() as connection:
            return await proof.report_month(
                connection,
                bootstrap.load_keyring(settings),
                chosen,
                now=SystemClock().now(),
                force=code,
                authority=authority,
            )

    report = run(read)
    if csv is not None:
        write_private(csv, proof.write_report(report))
    if as_json:
        print_json(report)
        return
    console.print(f"{report.incidents} incidents in {report.month}, {report.withdrawn} of them taken back")
    console.print(
        f"{report.children} children: {report.children_without_school} without a known school, "
        f"{report.children_of_officers} told to an authority's officer",
        soft_wrap=True,
    )
    console.print(f"{report.notices} notices, {report.opened} opened, {report.acknowledged} acknowledged")
    for name, count in {**report.punctuality, **report.delays}.items():
        if count:
            console.print(f"  {'because of ' if name in report.delays else ''}{name.replace('_', ' ')}: {count}")


def show_incident(
    incident: Annotated[str, typer.Argument(metavar="REFERENCE", help="The force's own reference.")],
    force: ForceOption,
    by: ByOption = "",
) -> None:
    """Everything about one incident, as JSON: who was told what and when, and what people did. It is audited."""
    from broker import bootstrap, proof
    from broker.clock import SystemClock
    from broker.storage import audit, incidents
    from broker.storage.audit import Act
    from schemas.identifiers import force_owner

    who = person(by, "showing an incident is reading about a child")

    async def read(settings: Settings, database: Database) -> IncidentRecord | None:
        known, keyring, now = await find_force(database, force), bootstrap.load_keyring(settings), SystemClock().now()
        incident_id = incidents.derive_incident_id(keyring, known.code, incident)
        async with database.writing() as connection:
            record = await proof.tell_incident(connection, keyring, incident_id, now)
            if record is not None:
                act = Act(owner=force_owner(known.code), actor=who, action="incident.read", subject=incident_id)
                await audit.record_acts(connection, [act], now)
        return record

    record = run(read)
    if record is None:
        fail("the force has told of no incident with that reference", EXIT_NOT_WELL)
    print_json(record)


def report_schools(
    authority: Annotated[str, typer.Option(help="ODS code of the authority whose schools are meant.")],
    as_json: JsonOption = False,
) -> None:
    """Schools that could not be told as they should be: no lead, entries out of date, no calendar."""
    from datetime import timedelta

    from broker import bootstrap, proof
    from broker.clock import SystemClock

    async def read(settings: Settings, database: Database) -> SchoolReport:
        async with database.reading() as connection:
            return await proof.report_schools(
                connection,
                bootstrap.load_keyring(settings),
                authority,
                now=SystemClock().now(),
                trained=timedelta(days=settings.encompass_training_days),
            )

    report = run(read)
    if as_json:
        print_json(report)
        return
    console.print(f"{report.ready} of {report.open_schools} schools are ready")
    for school in report.schools:
        console.print(f"  {school.urn} {school.name}", markup=False, soft_wrap=True)
        for gap in school.gaps:
            of = f" of {gap.contact_id}" if gap.contact_id else ""
            since = f", {gap.since}" if gap.since else ""
            console.print(f"    {gap.kind.value.replace('_', ' ')}{of}{since}", markup=False, soft_wrap=True)
