"""Frames are cut out of a stream of bytes, whatever the pieces."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.mllp import FrameReader, frame

CONTENT = st.binary(min_size=1, max_size=40).filter(lambda content: b"\x1c" not in content)


def reader(*, frame_bytes_max: int = 1_000, garbage_bytes_max: int = 10) -> FrameReader:
    return FrameReader(frame_bytes_max=frame_bytes_max, garbage_bytes_max=garbage_bytes_max)


@settings(max_examples=200, deadline=None)
@given(st.lists(CONTENT, max_size=6), st.lists(st.integers(0, 300), max_size=8))
def test_every_message_comes_out_once_and_in_order_however_it_is_cut(messages: list[bytes], cuts: list[int]) -> None:
    stream = b"\r\n".join(frame(message) for message in messages)
    frames = reader()
    found: list[bytes] = []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(stream)], strict=True):
        found += frames.feed(stream[start:end])
    assert found == messages
    assert frames.fault is None


def test_one_byte_at_a_time_is_enough() -> None:
    frames = reader()
    found = [message for byte in frame(b"MSH|1") + frame(b"MSH|2") for message in frames.feed(bytes([byte]))]
    assert found == [b"MSH|1", b"MSH|2"]


def test_a_frame_that_lacks_its_last_byte_is_complete_when_the_next_begins() -> None:
    frames = reader()
    assert frames.feed(b"\x0bMSH|1\x1c") == []
    assert frames.awaits_last_byte
    assert frames.feed(b"\x0bMSH|2\x1c\r") == [b"MSH|1", b"MSH|2"]


def test_a_frame_that_lacks_its_last_byte_is_complete_when_nothing_follows() -> None:
    frames = reader()
    frames.feed(b"\x0bMSH|1\x1c")
    assert frames.finish() == b"MSH|1"
    assert not frames.in_frame
    assert frames.feed(frame(b"MSH|2")) == [b"MSH|2"]


def test_a_frame_without_its_end_is_never_complete() -> None:
    frames = reader()
    frames.feed(b"\x0bMSH|1\r")
    assert frames.finish() is None
    assert frames.in_frame


def test_the_end_byte_inside_a_message_does_not_end_it() -> None:
    assert reader().feed(b"\x0bMSH|\x1cx|\x1c\r") == [b"MSH|\x1cx|"]


def test_what_stands_between_frames_is_dropped_within_limits() -> None:
    frames = reader(garbage_bytes_max=4)
    assert frames.feed(b"\r\n" * 500 + b"abcd" + frame(b"1")) == [b"1"]
    assert frames.feed(b"abcd" + frame(b"2")) == [b"2"]
    assert frames.feed(b"abc") == []
    assert frames.feed(b"de" + frame(b"3")) == []
    assert frames.fault == "too_much_garbage"


def test_too_large_a_frame_is_a_fault_before_it_is_complete() -> None:
    frames = reader(frame_bytes_max=100)
    assert frames.feed(frame(b"x" * 100)) == [b"x" * 100]
    assert frames.feed(b"\x0b" + b"x" * 101) == []
    assert frames.fault == "frame_too_large"


def test_a_complete_frame_that_is_too_large_is_a_fault_too_and_what_came_before_counts() -> None:
    frames = reader(frame_bytes_max=100)
    assert frames.feed(frame(b"1") + frame(b"x" * 101) + frame(b"2")) == [b"1"]
    assert frames.fault == "frame_too_large"
    assert frames.feed(frame(b"3")) == []


@pytest.mark.parametrize("filler", [b"x", b"\x1c"])
def test_a_large_frame_in_small_pieces_is_not_searched_again_and_again(filler: bytes) -> None:
    frames = reader(frame_bytes_max=2_000_000)
    frames.feed(b"\x0b")
    began = time.process_time()
    for _ in range(10_000):
        frames.feed(filler * 100)
    assert time.process_time() - began < 1.0
    assert frames.held_bytes == 1_000_000
