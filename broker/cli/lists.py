"""Files that are loaded: the directory, and the authorities' child lists."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.screen import DryRunOption, FileArgument, JsonOption, console, print_json, print_refused, tell_dry
from broker.cli.work import operator, run
from broker.exits import EXIT_NOT_WELL

if TYPE_CHECKING:
    from broker.directory_upload import ImportReport
    from broker.list_upload import UploadReport
    from broker.settings import Settings
    from broker.storage.database import Database


class DirectoryFile(StrEnum):
    """What ``import`` can load."""

    AUTHORITIES = "authorities"
    WORKERS = "workers"
    SITES = "sites"
    CLINICIANS = "clinicians"


def import_directory(
    what: DirectoryFile, file: FileArgument, dry_run: DryRunOption = False, as_json: JsonOption = False
) -> None:
    """Load authorities, workers, sites or clinicians from CSV. A bad row never loses the good ones."""
    from broker import bootstrap
    from broker.clock import SystemClock
    from broker.directory_upload import DirectoryUpload
    from broker.senders import SNAPSHOT_NAME

    async def load(settings: Settings, database: Database) -> ImportReport:
        upload = DirectoryUpload(
            database,
            bootstrap.load_keyring(settings),
            SystemClock(),
            demo_passwords=settings.is_development,
            actor=operator(),
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

    report = run(load)
    if as_json:
        print_json(report)
    else:
        _print_loaded(report, what, dry_run=dry_run)
    _end_when_all_refused(report)


def import_children(
    file: FileArgument,
    authority: Annotated[str, typer.Option(help="ODS code of the authority whose list this is.")],
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Load an authority's list from CSV: adds and changes; a child that is not in the file stays listed."""
    from broker import bootstrap
    from broker.clock import SystemClock
    from broker.list_upload import upload_children

    report = run(
        lambda settings, database: upload_children(
            database,
            bootstrap.load_keyring(settings),
            SystemClock(),
            authority=authority,
            file=file.read_bytes(),
            uploaded_by=operator(),
            dry_run=dry_run,
        )
    )
    if as_json:
        print_json(report)
    else:
        again = " (this very file was loaded before)" if report.was_known else ""
        console.print(
            f"{report.loaded} entries read, {report.changed} new or changed, {len(report.refused)} refused"
            + tell_dry(dry_run)
            + again
        )
        print_refused(report.refused)
    _end_when_all_refused(report)


def _print_loaded(report: ImportReport, what: DirectoryFile, *, dry_run: bool) -> None:
    console.print(f"{report.loaded} {what.value} loaded, {len(report.refused)} refused" + tell_dry(dry_run))
    print_refused(report.refused)
    if report.issued:
        console.print("Made now and shown only this once:")
        for issued in report.issued:
            console.print(f"  {issued.to}  {issued.what}  {issued.secret}")


def _end_when_all_refused(report: ImportReport | UploadReport) -> None:
    """A script must notice a file of which nothing was taken: most likely it is not the file that was meant."""
    if report.refused and not report.loaded:
        raise typer.Exit(EXIT_NOT_WELL)


def show_coverage(
    authority: Annotated[str, typer.Option(help="ODS code of the authority whose list is meant.")],
    as_json: JsonOption = False,
) -> None:
    """How much of a list is known to alert, what is wrong and since when. Names nobody."""
    from broker.bootstrap.coverage import read_coverage

    report = run(lambda settings, database: read_coverage(settings, database, authority))
    if as_json:
        print_json(report)
        return
    if not report.is_tracing:
        console.print("No Personal Demographics Service is configured (CPIS_PDS_BASE_URL): nothing is checked.")
    console.print(f"List confirmed: {report.list_confirmed_at or 'never'}")
    for day in report.days:
        percent = f"{100 * day.covered / day.entries:.1f} %" if day.entries else "-"
        console.print(f"{day.counted_on}  {day.entries} entries, {percent} covered, {day.unverified} not checked")
    for item in report.items:
        code = f" ({item.record_code})" if item.record_code else ""
        console.print(f"  {item.reason.value.replace('_', ' ')}{code}: {item.age_days} days, with {item.held_by}")
    console.print(f"{len(report.items)} to be mended" + (", the oldest shown" if report.is_cut else ""))
