"""Keys: sealed envelopes for personal fields and log records, blind indexes and derived ids.

An envelope is AES-256-GCM (NIST SP 800-38D) under a key named by id, so that old envelopes stay readable after a
rotation. What an envelope is about (its table, its owner) is bound as associated data: an envelope moved to
another row does not open. Blind indexes are keyed hashes: equal values meet, and nobody without the key can
compute them from the few billion possible NHS numbers.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_FORMAT: Final = 1
_NONCE_BYTES: Final = 12
KEY_BYTES: Final = 32
INDEX_BYTES: Final = 16
"""128 bits: no two of a nation's children meet by chance."""


class KeyringError(Exception):
    """Keys are missing or unusable, or an envelope does not open. Never carries contents."""


def parse_keys(text: str) -> dict[str, bytes]:
    """Read ``id:base64,id:base64``; the first is the one new envelopes use. Each key has 32 bytes."""
    keys: dict[str, bytes] = {}
    for number, item in enumerate((part for part in text.split(",") if part.strip()), start=1):
        key_id, _, encoded = item.strip().partition(":")
        try:
            key = base64.b64decode(encoded, validate=True)
        except ValueError as error:
            raise KeyringError(f"field key {number} is not base64") from error
        if not (key_id.isascii() and key_id.isalnum()) or len(key_id) > 16 or len(key) != KEY_BYTES:
            raise KeyringError(f"field key {number} must be ID:BASE64 with 1-16 letters or digits and 32 bytes")
        if key_id in keys:
            raise KeyringError(f"field key {number} has the id of another")
        keys[key_id] = key
    if not keys:
        raise KeyringError("no field keys")
    return keys


def generate_key() -> str:
    """A new random key in base64, as CPIS_FIELD_KEYS and CPIS_INDEX_KEY take it."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


class Keyring:
    """Seals, opens, indexes and derives. Holds the keys; knows nothing of where they came from."""

    def __init__(self, field_keys: Mapping[str, bytes], index_key: bytes) -> None:
        if not field_keys or len(index_key) != KEY_BYTES:
            raise KeyringError("a keyring needs at least one field key and a 32-byte index key")
        self.current = next(iter(field_keys))
        self._ciphers = {key_id: AESGCM(_subkey(key, b"envelope")) for key_id, key in field_keys.items()}
        self._hash = HMAC(_subkey(index_key, b"index"), SHA256())
        self._begun = lru_cache(maxsize=256)(self._begin)
        self._prefix = bytes((_FORMAT, len(self.current))) + self.current.encode()

    def seal(self, plain: bytes, *, about: str) -> bytes:
        """Encrypt ``plain`` under the current key, bound to what it is ``about``."""
        nonce = os.urandom(_NONCE_BYTES)
        return self._prefix + nonce + self._ciphers[self.current].encrypt(nonce, plain, about.encode())

    def open(self, sealed: bytes, *, about: str) -> bytes:
        """Decrypt an envelope. Raises KeyringError when the key is unknown or anything was changed."""
        if len(sealed) < 2 or sealed[0] != _FORMAT:
            raise KeyringError("not an envelope")
        start = 2 + sealed[1]
        cipher = self._ciphers.get(sealed[2:start].decode("ascii", "replace"))
        if cipher is None:
            raise KeyringError("envelope under an unknown key")
        try:
            return cipher.decrypt(sealed[start : start + _NONCE_BYTES], sealed[start + _NONCE_BYTES :], about.encode())
        except (InvalidTag, ValueError) as error:
            raise KeyringError("envelope does not open") from error

    def index(self, kind: str, *values: str) -> bytes:
        """The blind index of ``values`` as a ``kind``: equal for equal values, meaningless without the key."""
        # Lengths before values: no value can pass for two.
        message = "".join([f"{len(value)}:{value}" for value in values])
        # From a copy that has taken in key and kind: the hmac module takes the key in anew, in three times the time.
        keyed = self._begun(kind).copy()
        keyed.update(message.encode("utf-8", "surrogatepass"))
        return keyed.finalize()[:INDEX_BYTES]

    def _begin(self, kind: str) -> HMAC:
        """The keyed hash with a kind written to it: there are few, and each begins many indexes."""
        keyed = self._hash.copy()
        keyed.update(f"{len(kind)}:{kind}".encode("utf-8", "surrogatepass"))
        return keyed

    def derive_id(self, kind: str, *values: str) -> str:
        """An id that a replay derives again: 32 hexadecimal digits, the blind index of ``values``."""
        return self.index(kind, *values).hex()

    def marker(self, sender: str, control_id: str, body: bytes) -> bytes:
        """The handled-marker of a message: the same message sent twice has one marker, wherever it stands."""
        return self.index("message", sender, control_id, sha256(body).hexdigest())


def _subkey(key: bytes, purpose: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=b"cpis-broker/" + purpose).derive(key)
