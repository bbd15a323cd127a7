"""What an authority is answered for a file: the same at every door, on the page and by the command line."""

from __future__ import annotations

import msgspec

from adapters.child_list_json import VersionNotSupported
from adapters.errors import MalformedFile
from broker.landing import ListBlocked
from broker.list_comparison import Comparison
from schemas.upload import FileCode, UploadKind, UploadReport, UploadState


def report_comparison(found: Comparison, authority: str, kind: UploadKind, *, was_known: bool) -> UploadReport:
    """The answer for a file that counts: all of it, or but for the rows that were refused."""
    code = FileCode.SOME_LOADED if found.refused_count else FileCode.ALL_LOADED
    return UploadReport(
        authority=authority,
        kind=kind,
        state=UploadState.LOADED if found.is_usable else UploadState.REFUSED,
        file_code=code if found.is_usable else FileCode.NONE_LOADED,
        loaded=found.rows_good,
        changed=found.changes.count,
        ends=found.ends,
        deletes=found.deletes,
        doubles=found.doubles,
        left_out=len(found.left_out),
        refused_count=found.refused_count,
        refused=tuple(sorted(found.refused, key=lambda answer: answer.row)),
        was_known=was_known,
    )


def report_held(report: UploadReport, found: Comparison, held_id: str) -> UploadReport:
    """The answer for a file that waits for a person."""
    problem = _tell_hold(found)
    return msgspec.structs.replace(
        report, state=UploadState.HELD, file_code=None, upload_id=held_id, loaded=0, changed=0, problem=problem
    )


def report_tried(report: UploadReport, found: Comparison, *, must_wait: bool) -> UploadReport:
    """The answer for a dry run; ``must_wait``: sent in earnest, the file would be held."""
    report = msgspec.structs.replace(report, state=UploadState.TRIED)
    if not must_wait:
        return report
    problem = f"the file would be held: {_tell_hold(found)}"
    return msgspec.structs.replace(report, file_code=None, loaded=0, changed=0, problem=problem)


def _tell_hold(found: Comparison) -> str:
    doubles = f" and list {found.doubles} people a second time, under another local_id" if found.doubles else ""
    return (
        f"it would end, take back or renumber {found.ends + found.deletes} of {found.current} current entries{doubles}"
        f", after {found.before} that other files took off the list today: "
        "a list officer must confirm or reject it; until then nothing of it counts"
    )


def report_blocked(authority: str, kind: UploadKind, error: ListBlocked) -> UploadReport:
    """The answer for a file that cannot be loaded because of another."""
    return UploadReport(
        authority=authority,
        kind=kind,
        state=UploadState.REFUSED,
        file_code=FileCode.NONE_LOADED,
        problem=f"{error}; nothing was loaded",
    )


def report_malformed(authority: str, kind: UploadKind, error: MalformedFile) -> UploadReport:
    """The answer for a file of which nothing could be taken."""
    is_version = isinstance(error, VersionNotSupported)
    code = FileCode.VERSION_NOT_SUPPORTED if is_version else FileCode.MALFORMED
    return UploadReport(
        authority=authority,
        kind=kind,
        state=UploadState.REFUSED,
        file_code=code,
        problem=f"{error}; nothing was loaded",
    )
