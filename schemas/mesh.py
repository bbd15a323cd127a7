"""MESH: one message of a mailbox, and what the sender of a child list is answered."""

from __future__ import annotations

from datetime import datetime

import msgspec

from schemas.upload import FileCode


class MeshMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message as MESH hands it out. Its file name and subject are not read: senders write names into them."""

    id: str
    sender: str
    """Mailbox id; empty for what MESH itself writes."""
    workflow: str
    is_report: bool
    """MESH itself tells that something of ours was not delivered."""
    body: bytes | None
    """None when it is larger than the mailbox takes."""


class ReceivedList(msgspec.Struct, frozen=True, kw_only=True):
    """A child list as it came in: what it is, its bytes decide."""

    authority: str
    body: bytes
    uploaded_by: str
    """For the audit, such as ``mesh:X26ABC1``."""
    waits_since: datetime
    """When it was first seen in the mailbox: what later files changed is not undone by it."""


class ListAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a file. ``report`` is the upload's own, None when nothing of the file was loaded."""

    file_code: FileCode | None
    """CP-ISUploadFileResponse; None while a person has still to decide about the file."""
    problem: str
    """Why the file as a whole was not loaded, empty when it was; never its contents."""
    report: msgspec.Raw | None
    is_readable: bool
    """False: a person has to look at the file."""


class ReportMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON that goes back to the sender's mailbox."""

    in_reply_to: str
    """The MESH id of the message that brought the list."""
    file_sha256: str
    authority: str
    file_code: str | None
    problem: str
    report: msgspec.Raw | None
