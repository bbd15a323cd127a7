"""A file of an authority's list as it was sent, and what of it goes on record: an upload, a hold, a landing, acts."""

from __future__ import annotations

from datetime import datetime

import msgspec

from broker.keyring import Keyring
from broker.list_comparison import Comparison
from broker.storage.audit import Act
from broker.storage.child_lists import Upload
from broker.storage.held_uploads import NewHold, StoredHold
from broker.storage.landings import Landing
from schemas.identifiers import authority_owner
from schemas.upload import UploadFormat, UploadKind


class Confirmed(msgspec.Struct, frozen=True, kw_only=True):
    """That a person wants a file to count which was held."""

    held_id: str
    by: str
    reason: str


class SentFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file for one list: as what, by whom and when it was sent, which is how old it is."""

    authority: str
    kind: UploadKind
    form: UploadFormat
    uploaded_by: str
    sent_at: datetime
    confirmed: Confirmed | None = None

    def derive_upload_id(self, keyring: Keyring, digest: str, now: datetime) -> str:
        """Of this file as it is loaded now."""
        return keyring.derive_id("upload", self.authority, digest, self.kind, now.isoformat())

    def describe_upload(self, upload_id: str, found: Comparison, digest: str) -> Upload:
        """The upload that is on record."""
        return Upload(
            id=upload_id,
            authority=self.authority,
            file_hash=digest,
            kind=self.kind,
            uploaded_by=self.uploaded_by,
            uploaded_at=self.sent_at,
            rows_loaded=found.rows_good,
            rows_refused=found.refused_count,
            entries_taken=found.taken,
            confirmed_by=self.confirmed.by if self.confirmed else None,
        )

    def describe_landing(self, upload_id: str, leased_until: datetime) -> Landing:
        """The file while it lands in slices."""
        return Landing(
            upload_id=upload_id,
            authority=self.authority,
            kind=self.kind,
            format=self.form,
            uploaded_by=self.uploaded_by,
            uploaded_at=self.sent_at,
            leased_until=leased_until,
        )

    def describe_hold(self, keyring: Keyring, found: Comparison, digest: str, due_by: datetime) -> NewHold:
        """The file while it waits for a person."""
        return NewHold(
            id=keyring.derive_id("held", self.authority, digest, self.kind, self.form),
            authority=self.authority,
            kind=self.kind,
            format=self.form,
            file_hash=digest,
            uploaded_by=self.uploaded_by,
            uploaded_at=self.sent_at,
            rows_good=found.rows_good,
            rows_refused=found.refused_count,
            ends=found.ends,
            deletes=found.deletes,
            doubles=found.doubles,
            current=found.current or 0,
            due_by=due_by,
        )

    def act(self, action: str, subject: str) -> Act:
        """What whoever sent it did."""
        return Act(owner=authority_owner(self.authority), actor=self.uploaded_by, action=action, subject=subject)

    def acts_of_upload(self, upload_id: str, *, is_usable: bool) -> list[Act]:
        """Who confirmed it, if it was held, and then who sent it."""
        sent = self.act("list.uploaded" if is_usable else "list.refused", upload_id)
        if self.confirmed is None:
            return [sent]
        owner, confirmed = authority_owner(self.authority), self.confirmed
        decided = Act(
            owner=owner,
            actor=confirmed.by,
            action="list.confirmed",
            subject=confirmed.held_id,
            reason=confirmed.reason,
        )
        return [decided, sent]


def as_it_was_sent(kept: StoredHold | Landing, confirmed: Confirmed | None = None) -> SentFile:
    """A file that was kept here, whole or for its rest."""
    return SentFile(
        authority=kept.authority,
        kind=kept.kind,
        form=kept.format,
        uploaded_by=kept.uploaded_by,
        sent_at=kept.uploaded_at,
        confirmed=confirmed,
    )
