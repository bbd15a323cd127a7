"""Who may send: the snapshot file from which intake knows its senders while the database is down.

Each sender shows a credential in MSH-8 (Security; HL7 v2.4, 2.16.9.8); only its keyed digest is kept. A sender may be
held to networks as well.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import msgspec

from broker.attempts import Attempts
from broker.keyring import Keyring
from broker.telemetry import LogEvent, log
from schemas.directory import Sender, SendersSnapshot

SNAPSHOT_NAME = "senders.json"
FORCES_SNAPSHOT_NAME = "forces.json"
"""The police forces that may send incidents, in the same form."""


def read_basic(header: str) -> tuple[str, bytes]:
    """User and password of an Authorization header (HTTP basic, RFC 7617); both empty when it is none."""
    scheme, _, encoded = header.partition(" ")
    try:
        user, _, credential = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return "", b""
    return (user.decode("ascii", "replace"), credential) if scheme.lower() == "basic" else ("", b"")


def digest_credential(keyring: Keyring, sender: str, credential: bytes) -> bytes:
    """The keyed digest of a sender's credential; worthless for another sender."""
    return keyring.index("credential", sender, credential.hex())


def write_snapshot(path: Path, senders: Sequence[Sender]) -> None:
    """Replace the snapshot in one step, so that intake never reads half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(SendersSnapshot(senders=tuple(senders))))
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)


class Senders:
    """The permitted senders, read from the snapshot and read again when it changes.

    A snapshot that cannot be read leaves the last good one in force, and says so. Whether it has changed is looked
    for every ``look_interval_s``, and before anybody is refused: a door with many messages a second need not ask the
    disk for each.
    """

    def __init__(
        self, path: Path, keyring: Keyring, attempts: Attempts | None = None, *, look_interval_s: float = 0.0
    ) -> None:
        self._path = path
        self._attempts = attempts or Attempts()
        self._keyring = keyring
        self._look_interval_s = look_interval_s
        self._looked_at = float("-inf")
        self._seen: tuple[int, int] | None = None
        self._senders: Mapping[str, Sender] = {}

    def admit(self, code: str, credential: bytes, host: str) -> Sender | None:
        """The sender, if it may send from ``host`` with this credential. Takes equal time for unknown senders.

        After too many wrong credentials from one address under one code, the others are not looked at for a while.
        """
        has_looked = self._refresh_now_and_then()
        if not self._attempts.may_try(host, self.known(code) or ""):
            return None
        sender = self._find(code, credential, host)
        if sender is None and not has_looked:
            self._refresh()
            sender = self._find(code, credential, host)
        self._attempts.note(host, self.known(code) or "", is_genuine=sender is not None)
        return sender

    def _find(self, code: str, credential: bytes, host: str) -> Sender | None:
        sender = self._senders.get(code)
        expected = sender.credential_digest if sender is not None else bytes(16)
        is_genuine = hmac.compare_digest(digest_credential(self._keyring, code, credential), expected)
        return sender if is_genuine and sender is not None and _host_in(host, sender.peers) else None

    def known(self, code: str) -> str | None:
        """The code, if a sender has it: for logs, which must not hold whatever else stands in its place."""
        return code if code in self._senders else None

    def _refresh_now_and_then(self) -> bool:
        """Look when it is time to; whether it was."""
        now = time.monotonic()
        if now - self._looked_at < self._look_interval_s:
            return False
        self._looked_at = now
        self._refresh()
        return True

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
            seen = (status.st_mtime_ns, status.st_ino)
            if seen == self._seen:
                return
            snapshot = msgspec.json.decode(self._path.read_bytes(), type=SendersSnapshot)
        except (OSError, msgspec.DecodeError) as error:
            if self._seen != (0, 0):
                log(LogEvent.SENDERS_UNREADABLE, error=type(error).__name__)
            self._seen = (0, 0)
            return
        self._seen = seen
        self._senders = {sender.code: sender for sender in snapshot.senders}
        log(LogEvent.SENDERS_LOADED, count=len(self._senders))


@lru_cache(maxsize=1024)
def _host_in(host: str, networks: tuple[str, ...]) -> bool:
    if not networks:
        return True
    try:
        address = ipaddress.ip_address(host)
        # A listener on both families shows an IPv4 peer as an IPv6 address.
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in ipaddress.ip_network(network, strict=False) for network in networks)
    except ValueError:
        return False
