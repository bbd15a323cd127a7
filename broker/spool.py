"""A file on its way in, sealed: read as often as needed, never held in memory, never readable on a disk."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from hashlib import sha256
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import Any, Final

from broker.keyring import Keyring

CHUNK_BYTES: Final = 262_144
MEMORY_BYTES_MAX: Final = 1_048_576
"""What is larger goes to a file without a name, which ends with the process."""
_LENGTH: Final = struct.Struct(">I")


class SpoolFull(Exception):
    """More was written than is taken."""


class SealedSpool:
    """Bytes that are written once, in pieces of any size, and then read from the beginning as often as wished."""

    def __init__(self, keyring: Keyring, *, bytes_max: int) -> None:
        self._keyring = keyring
        self._bytes_max = bytes_max
        self._file = SpooledTemporaryFile(max_size=MEMORY_BYTES_MAX)  # noqa: SIM115 - closed by ``close``
        self._waiting = bytearray()
        self._digest = sha256()
        self._chunks = 0
        self.size_bytes = 0
        self.lines = 0
        """Ends of lines, which is about how many rows a file of lines has."""

    def __enter__(self) -> SealedSpool:
        """The spool itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Forget everything."""
        self.close()

    @property
    def digest(self) -> str:
        """SHA-256 of what was written, in hexadecimal."""
        return self._digest.hexdigest()

    def write(self, piece: bytes) -> None:
        """Add a piece. Raises SpoolFull when it would be too much."""
        self.size_bytes += len(piece)
        if self.size_bytes > self._bytes_max:
            raise SpoolFull
        self._digest.update(piece)
        self.lines += piece.count(b"\n")
        self._waiting += piece
        while len(self._waiting) >= CHUNK_BYTES:
            self._keep(bytes(self._waiting[:CHUNK_BYTES]))
            del self._waiting[:CHUNK_BYTES]

    def write_all(self, pieces: Iterable[bytes]) -> None:
        """Add all pieces. Raises SpoolFull."""
        for piece in pieces:
            self.write(piece)

    def chunks(self) -> Iterator[bytes]:
        """What was written, in pieces."""
        if self._waiting:
            self._keep(bytes(self._waiting))
            self._waiting.clear()
        self._file.seek(0)
        for number in range(self._chunks):
            (length,) = _LENGTH.unpack(self._file.read(_LENGTH.size))
            yield self._keyring.open(self._file.read(length), about=f"spool/{number}")

    def open(self) -> io.BufferedReader:
        """What was written, as a file; one reader at a time."""
        return io.BufferedReader(_Reader(self.chunks()), CHUNK_BYTES)

    def close(self) -> None:
        """Forget everything."""
        self._file.close()

    def _keep(self, chunk: bytes) -> None:
        sealed = self._keyring.seal(chunk, about=f"spool/{self._chunks}")
        self._file.write(_LENGTH.pack(len(sealed)) + sealed)
        self._chunks += 1


class _Reader(io.RawIOBase):
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count
