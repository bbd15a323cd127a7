"""The audit chain: each record's hash covers the one before it, so nothing can be changed or taken out unseen."""

from __future__ import annotations

from datetime import datetime
from hashlib import sha256
from typing import Final

import msgspec

GENESIS: Final = bytes(32)
"""What the first record of a chain follows."""


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Who did what, when, about whom. ``subject`` is a blind index or an id, never a person's number or name."""

    owner: str
    sequence: int
    at: datetime
    actor: str
    action: str
    subject: str
    reason: str = ""


def chain_hash(previous: bytes, record: AuditRecord) -> bytes:
    """SHA-256 over the previous hash and the record in a fixed order of fields."""
    return sha256(previous + msgspec.json.encode(msgspec.structs.astuple(record))).digest()
