"""Several messages in one frame come apart with the bytes they had."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.er7 import Hl7v2Limits
from adapters.hl7v2_batch import is_batch, join_answers, split_batch

ONE = b"MSH|^~\\&|ED|RZ1||||x|ADT^A04|1|P|2.4\rPID|1\r"
TWO = b"MSH|^~\\&|ED|RZ1||||x|ADT^A08|2|P|2.4\rPID|1\r"
HEADERS = b"FHS|^~\\&|ED\rBHS|^~\\&|ED\r"
TRAILERS = b"BTS|2\rFTS|1\r"


@pytest.mark.parametrize(
    ("frame", "messages"),
    [
        (ONE, [ONE]),
        (b"\x0b" + ONE + b"\x1c\r", [b"\x0b" + ONE + b"\x1c\r"]),
        (ONE + TWO, [ONE, TWO]),
        (HEADERS + ONE + TWO + TRAILERS, [ONE, TWO]),
        (b"\xef\xbb\xbf" + HEADERS + ONE + TRAILERS, [ONE]),
        (b"BHS|^~\\&|ED\r" + ONE + b"BTS|1\rBHS|^~\\&|ED\r" + TWO + b"BTS|1\r", [ONE, TWO]),
        ((ONE + TWO).replace(b"\r", b"\r\n"), [ONE.replace(b"\r", b"\r\n"), TWO.replace(b"\r", b"\r\n")]),
        (b"\x0b" + ONE + b"\x1c\r\x0b" + TWO + b"\x1c\r", [ONE + b"\x1c\r\x0b", TWO + b"\x1c\r"]),
        (HEADERS + TRAILERS, [HEADERS + TRAILERS]),
        (b"", [b""]),
        (b"OBX|1|TX|MSH is no segment here, nor is MSH|", [b"OBX|1|TX|MSH is no segment here, nor is MSH|"]),
    ],
)
def test_messages_come_apart_with_the_bytes_they_had(frame: bytes, messages: list[bytes]) -> None:
    assert list(split_batch(frame)) == messages


def test_a_frame_of_too_many_messages_is_left_whole() -> None:
    limits = Hl7v2Limits(batch_messages_max=2)
    assert len(split_batch(ONE * 2, limits)) == 2
    assert split_batch(ONE * 3, limits) == (ONE * 3,)


@given(st.lists(st.sampled_from([ONE, TWO, HEADERS, TRAILERS, b"\r", b"\n", b"x"]), max_size=12))
def test_nothing_between_the_headers_is_lost(pieces: list[bytes]) -> None:
    frame = b"".join(pieces)
    assert b"".join(split_batch(frame)).count(b"PID|1") == frame.count(b"PID|1")


def test_answers_come_back_as_the_messages_came() -> None:
    assert is_batch(HEADERS + ONE) and not is_batch(ONE + TWO)
    assert join_answers([b"A\r", b"B\r"], in_batch=False) == b"A\rB\r"
    assert join_answers([b"A\r", b"B\r"], in_batch=True) == b"BHS|^~\\&\rA\rB\rBTS|2\r"
