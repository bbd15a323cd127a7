"""Who may send, known from a file while the database is down."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker.attempts import AttemptLimits, Attempts
from broker.keyring import Keyring
from broker.senders import Senders, digest_credential, write_snapshot
from schemas.directory import Sender
from tests.world import FIELD_KEYS, INDEX_KEY

KEYRING = Keyring(FIELD_KEYS, INDEX_KEY)


def sender(code: str = "RZ1", credential: bytes = b"rz1-credential", *peers: str) -> Sender:
    return Sender(code=code, credential_digest=digest_credential(KEYRING, code, credential), peers=peers)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "made" / "senders.json"
    write_snapshot(made, [sender(), sender("RZ2", b"rz2-credential", "10.1.0.0/16", "2001:db8::/32", "192.0.2.7")])
    return made


@pytest.fixture
def senders(path: Path) -> Senders:
    return Senders(path, KEYRING)


def test_a_sender_with_its_credential_is_permitted(senders: Senders) -> None:
    assert senders.admit("RZ1", b"rz1-credential", "203.0.113.9")


@pytest.mark.parametrize(
    ("code", "credential"),
    [
        ("RZ1", b""),
        ("RZ1", b"rz1-credentia"),
        ("RZ1", b"RZ1-CREDENTIAL"),
        ("RZ1", b"rz2-credential"),
        ("rz1", b"rz1-credential"),
        ("RZ3", b"rz1-credential"),
        ("", b""),
        ("RZ1", b"\xff\x00"),
    ],
)
def test_nobody_else_is(senders: Senders, code: str, credential: bytes) -> None:
    assert not senders.admit(code, credential, "10.1.2.3")


def test_a_credential_is_worthless_for_another_sender() -> None:
    assert digest_credential(KEYRING, "RZ1", b"same") != digest_credential(KEYRING, "RZ2", b"same")


@pytest.mark.parametrize(
    ("host", "permitted"),
    [
        ("10.1.255.1", True),
        ("10.2.0.1", False),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("2001:db8::9", True),
        ("2001:db9::9", False),
        ("::ffff:10.1.2.3", True),
        ("::ffff:10.2.2.3", False),
        ("", False),
        ("not an address", False),
    ],
)
def test_a_sender_may_be_held_to_networks(senders: Senders, host: str, permitted: bool) -> None:
    assert (senders.admit("RZ2", b"rz2-credential", host) is not None) == permitted


def test_the_snapshot_holds_no_credential(path: Path) -> None:
    assert b'credential"' not in path.read_bytes()
    assert b"rz1-credential" not in path.read_bytes()
    assert path.stat().st_mode & 0o077 == 0


def test_a_new_snapshot_is_in_force_at_once(senders: Senders, path: Path) -> None:
    assert senders.admit("RZ1", b"rz1-credential", "10.1.2.3")
    write_snapshot(path, [sender("RZ1", b"changed")])
    assert not senders.admit("RZ1", b"rz1-credential", "10.1.2.3")
    assert senders.admit("RZ1", b"changed", "10.1.2.3")
    assert not senders.admit("RZ2", b"rz2-credential", "10.1.2.3")


def test_a_door_that_looks_now_and_then_looks_before_it_refuses(path: Path) -> None:
    senders = Senders(path, KEYRING, look_interval_s=3600)
    assert senders.admit("RZ1", b"rz1-credential", "10.1.2.3")
    write_snapshot(path, [sender("RZ1", b"changed"), sender("RZ3", b"new")])
    assert senders.admit("RZ1", b"rz1-credential", "10.1.2.3"), "it has not looked yet"
    assert senders.admit("RZ3", b"new", "10.1.2.3"), "of a new one it knows at once"
    assert not senders.admit("RZ1", b"rz1-credential", "10.1.2.3")
    assert senders.admit("RZ1", b"changed", "10.1.2.3")


def test_a_snapshot_is_replaced_in_one_step_and_leaves_nothing_behind(path: Path) -> None:
    before = path.open("rb")
    write_snapshot(path, [])
    with before:
        assert len(json.loads(before.read())["senders"]) == 2
    assert [file.name for file in path.parent.iterdir()] == ["senders.json"]


@pytest.mark.parametrize("spoil", ["remove", "truncate", "not json", "wrong shape", "not text"])
def test_an_unreadable_snapshot_leaves_the_last_good_one_in_force_and_says_so_once(
    senders: Senders, path: Path, spoil: str
) -> None:
    assert senders.admit("RZ1", b"rz1-credential", "10.1.2.3")
    if spoil == "remove":
        path.unlink()
    else:
        path.write_bytes({"truncate": b"", "not json": b"{", "wrong shape": b"[]", "not text": b"\xff\xfe"}[spoil])
    with capture_logs() as lines:
        assert all(senders.admit("RZ1", b"rz1-credential", "10.1.2.3") for _ in range(3))
    assert [line["event"] for line in lines] == ["senders_unreadable"]
    write_snapshot(path, [sender("RZ1", b"changed")])
    assert senders.admit("RZ1", b"changed", "10.1.2.3")


def test_without_any_snapshot_nobody_is_permitted_until_there_is_one(tmp_path: Path) -> None:
    senders = Senders(tmp_path / "senders.json", KEYRING)
    assert not senders.admit("RZ1", b"rz1-credential", "10.1.2.3")
    write_snapshot(tmp_path / "senders.json", [sender()])
    assert senders.admit("RZ1", b"rz1-credential", "10.1.2.3")


def test_a_snapshot_that_has_not_changed_is_not_read_again(senders: Senders, path: Path) -> None:
    assert senders.admit("RZ1", b"rz1-credential", "10.1.2.3")
    status = path.stat()
    path.write_bytes(b"{")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with capture_logs() as lines:
        assert senders.admit("RZ1", b"rz1-credential", "10.1.2.3")
    assert lines == []


def test_guessing_is_limited_and_shuts_no_sender_out(path: Path) -> None:
    now = [1000.0]
    attempts = Attempts(AttemptLimits(failures_max=3, window_s=60, remembered_max=4), read_clock=lambda: now[0])
    guarded = Senders(path, KEYRING, attempts)
    assert guarded.admit("RZ1", b"rz1-credential", "203.0.113.9"), "the sender is at work"
    for host in ("203.0.113.9", "198.51.100.1"):
        assert not any(guarded.admit("RZ1", b"guess", host) for _ in range(3))
    assert guarded.admit("RZ1", b"rz1-credential", "198.51.100.1") is None, "who guessed three times is not heard"
    assert guarded.admit("RZ2", b"rz2-credential", "10.1.0.1"), "others are"
    assert guarded.admit("RZ1", b"rz1-credential", "203.0.113.9"), "and so is who has shown the right one before"
    assert guarded.admit("RZ1", b"rz1-credential", "203.0.113.10"), "from every other address"
    now[0] += 61
    assert guarded.admit("RZ1", b"rz1-credential", "198.51.100.1"), "a minute later the counting begins anew"
    for number in range(100):
        guarded.admit("RZ1", b"guess", f"192.0.2.{number}")
    assert len(attempts._failed) == len(attempts._genuine) == 4
