"""hl7apy's findings about a message: useful to a person, and never a word of what the message says."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from adapters.hl7v2_conformance import ConformanceLimits, find_conformance_issues
from tests.world import hl7

SAID = ("9990000018", "TESTER", "CASEY", "K12345", "SAMPLE", "LEEDS", "ZZ99", "Fall", "EDIS", "SMITH")


def without(segment: bytes, message: bytes) -> bytes:
    return b"".join(line + b"\r" for line in message.split(b"\r") if line and not line.startswith(segment))


@pytest.mark.parametrize(
    ("message", "finding"),
    [
        (without(b"PID", hl7()), "segment PID is required and missing"),
        (without(b"EVN", hl7()), "segment EVN is required and missing"),
        (hl7(), "PID-8 holds a value that table HL70001 does not have"),
        (hl7() + b"ABC|SMITH\r", "segments that HL7 2.4 does not have: 1"),
        (hl7() + b"OBX|1|TX|A^" + b"B^" * 9 + b"\r", "OBX-3 holds parts that the standard does not have"),
        (hl7().replace(b"\rPID|", b"\rPID|1||A^^^NHS^NH\rPID|"), "segment PID is there more often than allowed"),
        (hl7().replace(b"|2.4|", b"|9.9|"), "MSH-12 does not name a version of HL7 v2 that can be checked"),
        (b"\xff\x00", "hl7apy cannot read it (ParserError)"),
        (b"", "hl7apy cannot read it (ParserError)"),
    ],
)
def test_a_finding_names_segment_and_field(message: bytes, finding: str) -> None:
    assert finding in find_conformance_issues(message)


@pytest.mark.parametrize("framed", [hl7().replace(b"\r", b"\n"), b"\x0b" + hl7() + b"\x1c\r", b"\xef\xbb\xbf" + hl7()])
def test_line_ends_and_what_is_left_of_a_frame_are_no_findings(framed: bytes) -> None:
    assert find_conformance_issues(framed) == find_conformance_issues(hl7())


def test_no_finding_says_what_the_message_says() -> None:
    draws = random.Random(5)
    message = (
        hl7()
        + "NTE|1|\rSMITH of LEEDS\rOBX|1|TX|CASEY^TESTER\u0085Error: Missing required child SMITH.CASEY\r".encode()
    )
    for _ in range(60):
        damaged = bytearray(message)
        for _ in range(draws.randint(1, 12)):
            damaged[draws.randrange(len(damaged))] = draws.choice(b"|^~\\&\r\n\x00\xff A1")
        told = " ".join(find_conformance_issues(bytes(damaged)))
        assert not [word for word in SAID if word in told], told


def test_what_is_too_much_is_not_checked_and_says_so() -> None:
    assert find_conformance_issues(hl7() + b"x" * 32_768) == ("longer than 32768 bytes: not checked",)
    assert find_conformance_issues(hl7() + b"NTE|1\r" * 400) == ("more than 300 segments: not checked",)
    many = hl7() + b"".join(b"OBX|%d|TX|A^" % number + b"B^" * 9 + b"\r" for number in range(20))
    assert len(find_conformance_issues(many, ConformanceLimits(findings_max=3))) == 3


def test_a_check_that_takes_too_long_is_given_up() -> None:
    slow = hl7() + b"PID|||" + b"~".join([b"9990000018^^^NHS^NH"] * 1600) + b"\r"
    began = time.process_time()
    assert find_conformance_issues(slow, ConformanceLimits(timeout_s=0.05)) == ("not checked within 0.05 seconds",)
    assert time.process_time() - began < 1


def test_nothing_is_left_open_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    find_conformance_issues(hl7())
    before = len(list(Path("/proc/self/fd").iterdir()))
    for message in (hl7(), without(b"PID", hl7()), b"", hl7().replace(b"|2.4|", b"|9.9|")):
        find_conformance_issues(message)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert list(tmp_path.iterdir()) == []
