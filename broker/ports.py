"""What the broker asks of the outside, written as the caller wishes it. Adapters satisfy these by shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from schemas.delivery import Outcome, Parcel, Receipt
from schemas.mesh import MeshMessage
from schemas.record import LogRecord, Partition, PartitionExtent
from schemas.trace import Answer, Question


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> datetime:
        """The present instant, aware UTC."""
        ...


class Log(Protocol):
    """The append side of the log."""

    async def append(
        self, topic: str, *, key: bytes | None, value: bytes, headers: Mapping[str, bytes]
    ) -> tuple[Partition, int]:
        """Append one record and return where it stands, once it is durable.

        Records of one key keep their order. Raises NotDurable when that could not be confirmed in time; the
        record may then still appear.
        """
        ...

    async def extents(self, topic: str) -> dict[Partition, PartitionExtent]:
        """What the log holds of each partition of ``topic``. Raises LogUnavailable."""
        ...

    async def read(self, partition: Partition, offset: int) -> LogRecord | None:
        """The record at ``offset``, or None when the log does not hold it. Raises LogUnavailable."""
        ...

    async def read_from(self, partition: Partition, offset: int, *, records_max: int) -> Sequence[LogRecord]:
        """The first records from ``offset`` on, in order; none when the log does not hold that offset.

        Fewer than there are when they are large, and none where only offsets without a record follow closely.
        Raises LogUnavailable.
        """
        ...

    async def close(self) -> None:
        """Finish what was begun and let go."""
        ...


class TrimmedLog(Protocol):
    """A log that keeps everything until it is told otherwise."""

    async def extents(self, topic: str) -> dict[Partition, PartitionExtent]:
        """What the log holds of each partition of ``topic``. Raises LogUnavailable."""
        ...

    async def read(self, partition: Partition, offset: int) -> LogRecord | None:
        """The record at ``offset``, or None when the log does not hold it. Raises LogUnavailable."""
        ...

    async def trim(self, partition: Partition, before: int) -> None:
        """Delete what stands below ``before``. Raises LogUnavailable."""
        ...

    async def close(self) -> None:
        """Finish what was begun and let go."""
        ...


class Assignment(Protocol):
    """What a reader calls when partitions come and go. Both may be called many times."""

    async def on_assigned(self, extents: Mapping[Partition, PartitionExtent]) -> Mapping[Partition, int]:
        """Return the offset to read each newly assigned partition from."""
        ...

    async def on_revoked(self, partitions: Sequence[Partition]) -> None:
        """Finish or abandon work on these partitions: another member may read them after this returns."""
        ...


class LogReader(Protocol):
    """One member of a consumer group on one topic."""

    async def start(self, assignment: Assignment) -> None:
        """Join the group, after ``close`` anew; ``assignment`` is asked for the offsets to start from."""
        ...

    async def poll(self, *, records_max: int, wait_s: float) -> dict[Partition, Sequence[LogRecord]]:
        """Records waiting, by partition in order; empty after ``wait_s`` when there are none.

        Never waits to fill. Raises LogUnavailable, or LogGap for an offset the log does not hold.
        """
        ...

    async def seek(self, partition: Partition, offset: int) -> None:
        """Read ``partition`` from ``offset`` on with the next poll."""
        ...

    async def note_progress(self, next_offsets: Mapping[Partition, int]) -> None:
        """Tell the log how far the group is, for operators only. Never raises for a lost membership."""
        ...

    async def contact(self) -> Mapping[Partition, int]:
        """Ask the log itself for the end offset of every assigned partition, proving that it answers.

        Raises LogUnavailable when it does not within the reader's own limit.
        """
        ...

    async def close(self) -> None:
        """Leave the group."""
        ...


class Channel(Protocol):
    """One way out."""

    async def send(self, parcel: Parcel) -> Outcome:
        """Try once. Never raises for what the other side does: that is an outcome."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class Receipts(Protocol):
    """Says what became of messages that a provider took."""

    async def find_receipt(self, idempotency_key: str) -> Receipt | None:
        """What became of what was sent under this key; None: not known yet. Raises ReceiptsUnavailable."""
        ...


class Tracer(Protocol):
    """The Personal Demographics Service."""

    async def ask(self, question: Question) -> Answer:
        """Ask once. Never raises for what the other side does: that is an answer."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class Mailbox(Protocol):
    """A MESH mailbox. Raises MailboxUnavailable, but where it says otherwise."""

    async def list_waiting(self) -> Sequence[str]:
        """The ids of messages that are not acknowledged, oldest first; not all of them when there are many."""
        ...

    async def take(self, message_id: str) -> MeshMessage:
        """A message with its contents; it stays in the mailbox."""
        ...

    async def acknowledge(self, message_id: str) -> None:
        """Say that the message is safe here; it leaves the mailbox."""
        ...

    async def send(self, recipient: str, body: bytes, *, workflow: str, local_id: str) -> Outcome:
        """Try once. Never raises for what the other side does: that is an outcome."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
