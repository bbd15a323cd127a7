"""The one way in for authorities' child lists; called by page, command line and jobs.

An upload adds and replaces entries; a child that is not in the file stays on the list. Every new or changed entry
leaves a look-back job in the same transaction: a visit in flight and a list change cannot miss each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256

import msgspec

from adapters.child_list_csv import RowProblem, Rows, read_children
from broker.keyring import Keyring
from broker.ports import Clock
from broker.storage import audit, child_lists, directory, jobs
from broker.storage.audit import Act
from broker.storage.child_lists import Upload, derive_entry_id
from broker.storage.database import Database
from broker.storage.jobs import LOOK_BACK, derive_job_id
from schemas.child_list import ChildListEntry
from schemas.identifiers import authority_owner


class UnknownAuthority(Exception):
    """The authority is not in the directory: import it first."""


class UploadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a file."""

    loaded: int
    changed: int
    refused: tuple[RowProblem, ...]
    was_known: bool
    """This very file was loaded before; now the list counts as confirmed anew."""


async def upload_children(
    database: Database,
    keyring: Keyring,
    clock: Clock,
    *,
    authority: str,
    file: bytes,
    uploaded_by: str,
    dry_run: bool = False,
    read: Callable[[bytes], Rows[ChildListEntry]] = read_children,
) -> UploadReport:
    """Load a list, CSV unless ``read`` reads another form.

    Raises MalformedFile or UnknownAuthority, and then nothing was stored.
    A file of which every row was refused is on record, but does not count as a confirmed list.
    """
    rows = list(read(file))
    problems = [row for _, row in rows if isinstance(row, RowProblem)]
    entries, repeated = _without_repeats(keyring, authority, rows)
    refused = tuple(sorted((*problems, *repeated), key=lambda problem: problem.row))
    async with database.writing() as connection:
        if await directory.find_authority(connection, authority) is None:
            raise UnknownAuthority(authority)
        now = clock.now()
        upload = Upload(
            id=keyring.derive_id("upload", authority, sha256(file).hexdigest()),
            authority=authority,
            file_hash=sha256(file).hexdigest(),
            uploaded_by=uploaded_by,
            rows_refused=len(refused),
        )
        was_known = await child_lists.upload_is_known(connection, upload.id)
        changed: list[str] = []
        owner = authority_owner(authority)
        is_usable = bool(entries) or not refused
        if is_usable and not dry_run:
            changed = await child_lists.save_entries(connection, keyring, upload, entries, now)
            work = [(derive_job_id(keyring, LOOK_BACK, entry_id), owner, entry_id) for entry_id in changed]
            await jobs.add_jobs(connection, LOOK_BACK, work, now)
        if not dry_run:
            action = "list.uploaded" if is_usable else "list.refused"
            await audit.record_acts(
                connection, [Act(owner=owner, actor=uploaded_by, action=action, subject=upload.id)], now
            )
    return UploadReport(loaded=len(entries), changed=len(changed), refused=refused, was_known=was_known)


def _without_repeats(
    keyring: Keyring, authority: str, rows: Sequence[tuple[int, ChildListEntry | RowProblem]]
) -> tuple[list[ChildListEntry], list[RowProblem]]:
    """One person may have one plan of each type: a second row for the same one is refused, the first stands."""
    kept: dict[str, ChildListEntry] = {}
    repeated = []
    for number, row in rows:
        if isinstance(row, RowProblem):
            continue
        entry_id = derive_entry_id(keyring, authority, row)
        if entry_id in kept:
            repeated.append(
                RowProblem(row=number, field="local_id", advice="the same person and plan type stands in a row above")
            )
        kept.setdefault(entry_id, row)
    return list(kept.values()), repeated
