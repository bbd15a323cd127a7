"""Files that are loaded: the directory, and the authorities' child lists."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from broker.cli.screen import (
    ByOption,
    DryRunOption,
    FileArgument,
    JsonOption,
    WhyOption,
    console,
    end_import,
    errors,
    print_json,
    print_refused,
    tell_dry,
)
from broker.cli.work import operator, person, run

if TYPE_CHECKING:
    from broker.directory_upload import ImportReport
    from broker.settings import Settings
    from broker.storage.coverage import CountedDay
    from broker.storage.database import Database
    from broker.storage.held_uploads import StoredHold
    from broker.storage.landings import Landing
    from schemas.upload import UploadReport

PIECE_BYTES: Final = 262_144
ROWS_MAX: Final = 1_000


class DirectoryFile(StrEnum):
    """What ``import`` can load."""

    AUTHORITIES = "authorities"
    WORKERS = "workers"
    SITES = "sites"
    CLINICIANS = "clinicians"
    SCHOOLS = "schools"
    SAFEGUARDING_CONTACTS = "safeguarding-contacts"
    PUPILS = "pupils"
    TERM_DATES = "term-dates"
    FORCES = "forces"
    ENCOMPASS_PEOPLE = "encompass-people"


def import_directory(
    what: DirectoryFile, file: FileArgument, dry_run: DryRunOption = False, as_json: JsonOption = False
) -> None:
    """Load the directory, and that of Operation Encompass, from CSV. A bad row never loses the good ones."""
    from broker import bootstrap
    from broker.clock import SystemClock
    from broker.directory_upload import DirectoryUpload
    from broker.senders import FORCES_SNAPSHOT_NAME, SNAPSHOT_NAME

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
        if what is DirectoryFile.SITES:
            return await upload.load_sites(content, settings.data_dir / SNAPSHOT_NAME)
        if what is DirectoryFile.FORCES:
            return await upload.load_forces(content, settings.data_dir / FORCES_SNAPSHOT_NAME)
        return await {
            DirectoryFile.AUTHORITIES: upload.load_authorities,
            DirectoryFile.WORKERS: upload.load_workers,
            DirectoryFile.CLINICIANS: upload.load_clinicians,
            DirectoryFile.SCHOOLS: upload.load_schools,
            DirectoryFile.SAFEGUARDING_CONTACTS: upload.load_safeguarding_contacts,
            DirectoryFile.PUPILS: upload.load_pupils,
            DirectoryFile.TERM_DATES: upload.load_term_dates,
            DirectoryFile.ENCOMPASS_PEOPLE: upload.load_encompass_people,
        }[what](content)

    report = run(load)
    if as_json:
        print_json(report)
    else:
        _print_loaded(report, what, dry_run=dry_run)
    end_import(taken=report.loaded, refused=len(report.refused))


def import_children(
    file: FileArgument,
    authority: Annotated[str, typer.Option(help="ODS code of the authority whose list this is.")],
    full: Annotated[bool, typer.Option("--full", help="The whole list: ask about entries that it leaves out.")] = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Load an authority's list from CSV or JSON: adds and changes; a child that is not in the file stays listed."""
    from broker import bootstrap
    from broker.clock import SystemClock
    from broker.list_comparison import upload_options_of
    from broker.list_upload import upload_children
    from broker.spool import SealedSpool
    from broker.terminal import showing_progress
    from schemas.upload import UploadFormat, UploadKind

    async def load(settings: Settings, database: Database) -> UploadReport:
        keyring, options = bootstrap.load_keyring(settings), upload_options_of(settings)
        with (
            SealedSpool(keyring, bytes_max=options.bytes_max) as spool,
            showing_progress(errors, "rows read and written") as advance,
        ):
            with file.open("rb") as content:
                spool.write_all(iter(lambda: content.read(PIECE_BYTES), b""))
            return await upload_children(
                database,
                keyring,
                SystemClock(),
                authority=authority,
                file=spool,
                uploaded_by=operator(),
                kind=UploadKind.FULL if full else UploadKind.CHANGES,
                form=UploadFormat.JSON if file.suffix.casefold() == ".json" else UploadFormat.CSV,
                dry_run=dry_run,
                options=options,
                on_progress=advance,
            )

    _tell_report(run(load), dry_run=dry_run, as_json=as_json)


def list_held(as_json: JsonOption = False) -> None:
    """Child lists that wait for a person, because they would end, take back or double a great part of a list."""
    from broker.storage import held_uploads

    async def load(_: Settings, database: Database) -> list[StoredHold]:
        async with database.reading() as connection:
            return await held_uploads.list_holds(connection, None, rows_max=ROWS_MAX)

    found = run(load)
    if as_json:
        print_json(found)
        return
    console.print(f"{len(found)} held")
    for held in found:
        console.print(
            f"  {held.id}  authority {held.authority}, sent {held.uploaded_at:%Y-%m-%d %H:%M} UTC by "
            f"{held.uploaded_by}: ends {held.ends}, takes back {held.deletes} of {held.current}, "
            f"lists {held.doubles} people twice; "
            f"decide by {held.due_by:%Y-%m-%d %H:%M} UTC",
            soft_wrap=True,
        )


class HoldDecision(StrEnum):
    """What a person decides on a held file."""

    CONFIRM = "confirm"
    REJECT = "reject"


def decide_held(
    decision: Annotated[HoldDecision, typer.Argument(help="Load the file, or forget it.")],
    upload_id: Annotated[str, typer.Argument(help="As children held shows it.")],
    by: ByOption = "",
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Decide on a child list that is held. It is audited with your name."""
    from broker import bootstrap
    from broker.clock import SystemClock
    from broker.list_comparison import upload_options_of
    from broker.list_decision import reject_upload
    from broker.list_upload import confirm_upload

    named = person(by, "a decision on a held list is audited")

    async def decide(settings: Settings, database: Database) -> UploadReport | StoredHold:
        clock = SystemClock()
        if decision is HoldDecision.REJECT:
            return await reject_upload(database, clock, upload_id=upload_id, owner=None, by=named, reason=why)
        return await confirm_upload(
            database,
            bootstrap.load_keyring(settings),
            clock,
            upload_id=upload_id,
            owner=None,
            by=named,
            reason=why,
            options=upload_options_of(settings),
        )

    done = run(decide)
    if decision is HoldDecision.CONFIRM:
        _tell_report(done, dry_run=False, as_json=as_json)
    elif as_json:
        print_json(done)
    else:
        console.print("rejected; the file is forgotten and nothing of it counts")


class LandingTold(msgspec.Struct, frozen=True, kw_only=True):
    """A file of which not all has landed. ``landed``: entries of which it is what the list says now."""

    upload_id: str
    authority: str
    uploaded_by: str
    uploaded_at: datetime
    problem: str
    failed_at: datetime | None
    landed: int


def list_landings(as_json: JsonOption = False) -> None:
    """Long files of which not all has landed, and why not. Until it has, the list takes no other file."""
    from broker.clock import SystemClock
    from broker.storage import landings
    from broker.terminal import show_age

    async def load(_: Settings, database: Database) -> list[LandingTold]:
        async with database.reading() as connection:
            return [
                _describe_landing(each, await landings.count_landed(connection, each))
                for each in await landings.list_landings(connection)
            ]

    found = run(load)
    if as_json:
        print_json(found)
        return
    now = SystemClock().now()
    for each in found:
        console.print(f"{each.upload_id}  authority {each.authority}, {each.landed} entries have landed", markup=False)
        console.print(f"  sent {show_age(now - each.uploaded_at)} ago by {each.uploaded_by}", markup=False)
        if each.failed_at is not None:
            console.print(f"  cannot land for {show_age(now - each.failed_at)}: {each.problem}", markup=False)
    told = "cpis-broker children landings drop UPLOAD --by NAME gives up the rest of one that cannot land"
    console.print(told if found else "every file has landed")


def drop_landing(
    upload_id: Annotated[str, typer.Argument(metavar="UPLOAD", help="As children landings list shows it.")],
    by: ByOption = "",
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Give up the rest of a file that cannot land. What has landed stays. It is audited with your name."""
    from broker import list_decision
    from broker.clock import SystemClock

    named = person(by, "giving up a part of a list is audited")

    async def drop(_: Settings, database: Database) -> LandingTold:
        landing, landed = await list_decision.drop_landing(
            database, SystemClock(), upload_id=upload_id, by=named, reason=why
        )
        return _describe_landing(landing, landed)

    dropped = run(drop)
    if as_json:
        print_json(dropped)
        return
    console.print(
        f"Dropped. {dropped.landed} entries of it have landed and stay, the others are as they were before. The list "
        f"is not confirmed: have authority {dropped.authority} send it again."
    )


def _describe_landing(landing: Landing, landed: int) -> LandingTold:
    return LandingTold(
        upload_id=landing.upload_id,
        authority=landing.authority,
        uploaded_by=landing.uploaded_by,
        uploaded_at=landing.uploaded_at,
        problem=landing.problem,
        failed_at=landing.failed_at,
        landed=landed,
    )


def _tell_report(report: Any, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print_json(report)
    else:
        again = " (this very file was loaded before)" if report.was_known else ""
        console.print(
            f"{report.file_code or report.state}: {report.loaded} entries read, {report.changed} new or changed, "
            f"{report.refused_count} refused" + tell_dry(dry_run) + again
        )
        if report.problem:
            kept = f" as {report.upload_id}" if report.upload_id else ""
            console.print(f"{report.state}{kept}: {report.problem}", soft_wrap=True)
        if report.left_out:
            console.print(f"{report.left_out} current entries are not in the file: a list officer is asked about each")
        print_refused(report.refused)
    # What is tried may be held, too; without a word about the file as a whole it would count.
    is_held = report.state != "refused" and bool(report.problem)
    end_import(taken=report.loaded, refused=report.refused_count, is_held=is_held)


def _print_loaded(report: ImportReport, what: DirectoryFile, *, dry_run: bool) -> None:
    console.print(f"{what.value}: {report.loaded} loaded, {len(report.refused)} refused" + tell_dry(dry_run))
    print_refused(report.refused)
    if report.issued:
        console.print("Made now and shown only this once:")
        for issued in report.issued:
            console.print(f"  {issued.to}  {issued.what}  {issued.secret}")


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
    from broker.domain.visits import LONDON  # loaded only for this command

    confirmed_at = report.list_confirmed_at
    console.print(
        f"List confirmed: {confirmed_at.astimezone(LONDON):%d %B %Y at %H:%M} (London)"
        if confirmed_at
        else "List confirmed: never"
    )
    if report.refused_rows:
        console.print(
            f"Rows of the last file that could not be loaded, and are not counted here: {report.refused_rows}"
        )
    for day in report.days:
        console.print(f"{day.counted_on}  {_tell_day(day, is_tracing=report.is_tracing)}")
    for item in report.items:
        code = f" ({item.record_code})" if item.record_code else ""
        console.print(f"  {item.reason.value.replace('_', ' ')}{code}: {item.age_days} days, with {item.held_by}")
    if not report.days:
        console.print("Not counted yet: the jobs part counts after every change, while cpis-broker serve runs")
        return
    console.print(f"{len(report.items)} to be mended" + (", the oldest shown" if report.is_cut else ""))


def _tell_day(day: CountedDay, *, is_tracing: bool) -> str:
    able = "not counted how many" if day.can_alert is None else str(day.can_alert)
    counted = f"{day.entries} entries, {able} can alert"
    if not is_tracing:
        return f"{counted}, not traced: no Personal Demographics Service is configured (CPIS_PDS_BASE_URL)"
    tenths = 1000 * day.covered // day.entries if day.entries else 0  # rounded down: 100 % means every one
    percent = f"{tenths / 10} %" if day.entries else "-"
    return f"{counted}, {percent} known to, {day.unverified} not checked"
