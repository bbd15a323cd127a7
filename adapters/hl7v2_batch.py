"""HL7 v2 batches: several messages in one frame or file, taken apart message by message (v2.4, 2.10.3).

Each message comes out with exactly the bytes it had. Senders also put messages one after the other without the
headers and trailers of a batch; that is read alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from adapters.er7 import DEFAULT_LIMITS, Hl7v2Limits

_BATCH_SEGMENTS: Final = (b"FHS", b"BHS")
_BOUNDARY: Final = re.compile(
    rb"(?:\A|(?<=[\r\n\x0b\x1c])|(?<=\xef\xbb\xbf))(?:(MSH)|FHS|BHS|BTS|FTS)(?=[^A-Za-z0-9\r\n])"
)
_BEGINNING_BYTES: Final = 16
_RESIDUE: Final = b"\x0b\x1c\r\n\t \xef\xbb\xbf"


def is_batch(frame: bytes) -> bool:
    """Whether the frame has the header of a file or a batch, and so wants its answers in one."""
    return frame[:_BEGINNING_BYTES].lstrip(_RESIDUE).startswith(_BATCH_SEGMENTS)


def split_batch(frame: bytes, limits: Hl7v2Limits = DEFAULT_LIMITS) -> Sequence[bytes]:
    """The messages of a frame. A single message comes back as it is.

    So does a frame that somebody has to look at: one with headers and no message, with bytes that belong to no
    message, or with more messages than ``batch_messages_max``.
    """
    if frame.count(b"MSH") < 2 and not is_batch(frame):
        return (frame,)
    starts = [(boundary.start(), boundary[1] is not None) for boundary in _BOUNDARY.finditer(frame)]
    ends = [*(start for start, _ in starts[1:]), len(frame)]
    messages: list[bytes] = []
    if not starts or frame[: starts[0][0]].strip(_RESIDUE):
        return (frame,)
    for (start, is_message), end in zip(starts, ends, strict=True):
        if is_message:
            messages.append(frame[start:end])
        elif len(frame[start:end].strip(_RESIDUE).splitlines()) > 1:
            return (frame,)
    return messages if 0 < len(messages) <= limits.batch_messages_max else (frame,)


def join_answers(answers: Sequence[bytes], *, in_batch: bool) -> bytes:
    """The acknowledgements of a frame's messages as one frame, in a batch if they came in one (v2.4, 2.10.3.3)."""
    if not in_batch:
        return b"".join(answers)
    return b"".join((b"BHS|^~\\&\r", *answers, b"BTS|%d\r" % len(answers)))
