"""Keys: what is sealed opens only where it belongs, and no error says anything of a key or of contents."""

from __future__ import annotations

import base64
import hmac
import traceback

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.keyring import INDEX_BYTES, Keyring, KeyringError, generate_key, parse_keys

OLD, NEW = {"k1": bytes(range(32))}, {"k2": bytes(range(100, 132))}
INDEX_KEY = bytes(range(32, 64))
SECRET = base64.b64encode(bytes(range(200, 232))).decode()
OTHER_SECRET = base64.b64encode(bytes(range(32))).decode()
RING = Keyring(OLD, INDEX_KEY)
TEXTS = st.text(max_size=20)


@settings(deadline=None)
@given(st.binary(max_size=200), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_what_is_sealed_opens_again_and_hides_its_contents(plain: bytes, about: str) -> None:
    sealed = RING.seal(plain, about=about)
    assert RING.open(sealed, about=about) == plain
    assert len(plain) < 4 or plain not in sealed


def test_the_same_contents_never_look_the_same() -> None:
    assert RING.seal(b"plain", about="a") != RING.seal(b"plain", about="a")


def test_after_a_rotation_old_envelopes_open_and_new_ones_use_the_new_key() -> None:
    sealed = RING.seal(b"plain", about="a")
    rotated = Keyring(NEW | OLD, INDEX_KEY)
    assert rotated.open(sealed, about="a") == b"plain"
    assert rotated.current == "k2"
    with pytest.raises(KeyringError, match="unknown key"):
        RING.open(rotated.seal(b"plain", about="a"), about="a")
    without_old = Keyring(NEW, INDEX_KEY)
    assert without_old.open(rotated.seal(b"plain", about="a"), about="a") == b"plain"
    with pytest.raises(KeyringError, match="unknown key"):
        without_old.open(sealed, about="a")


def test_a_rotation_changes_no_blind_index_and_no_id() -> None:
    rotated = Keyring(NEW | OLD, INDEX_KEY)
    assert rotated.index("nhs", "9990000018") == RING.index("nhs", "9990000018")
    assert rotated.marker("RZ1", "C1", b"body") == RING.marker("RZ1", "C1", b"body")


def test_another_key_under_the_same_id_opens_nothing() -> None:
    with pytest.raises(KeyringError, match="does not open"):
        Keyring({"k1": NEW["k2"]}, INDEX_KEY).open(RING.seal(b"plain", about="a"), about="a")


def test_an_envelope_moved_to_another_row_does_not_open() -> None:
    sealed = RING.seal(b"plain", about="entry/1")
    with pytest.raises(KeyringError, match="does not open"):
        RING.open(sealed, about="entry/2")


def test_every_changed_bit_is_noticed() -> None:
    sealed = RING.seal(b"plain", about="a")
    for place in range(len(sealed)):
        for bit in range(8):
            changed = bytearray(sealed)
            changed[place] ^= 1 << bit
            with pytest.raises(KeyringError):
                RING.open(bytes(changed), about="a")


def test_every_shortened_envelope_is_noticed() -> None:
    sealed = RING.seal(b"plain", about="a")
    for length in range(len(sealed)):
        with pytest.raises(KeyringError):
            RING.open(sealed[:length], about="a")


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_bytes_that_are_no_envelope_are_only_ever_a_keyring_error(junk: bytes) -> None:
    for start in (b"", b"\x01\x02k1"):
        with pytest.raises(KeyringError):
            RING.open(start + junk, about="a")


def test_no_error_carries_contents_or_keys() -> None:
    for sealed, about in ((RING.seal(b"SECRETNAME", about="a")[:-1], "a"), (b"SECRETNAME", "a"), (b"", "SECRETNAME")):
        with pytest.raises(KeyringError) as refused:
            RING.open(sealed, about=about)
        assert "SECRETNAME" not in "".join(traceback.format_exception(refused.value))


@settings(deadline=None)
@given(st.tuples(TEXTS, st.lists(TEXTS, max_size=3)), st.tuples(TEXTS, st.lists(TEXTS, max_size=3)))
def test_blind_indexes_meet_exactly_for_equal_values_of_one_kind(
    one: tuple[str, list[str]], other: tuple[str, list[str]]
) -> None:
    first, second = RING.index(one[0], *one[1]), RING.index(other[0], *other[1])
    assert (first == second) == ((one[0], *one[1]) == (other[0], *other[1]))
    assert len(first) == INDEX_BYTES


@pytest.mark.parametrize("between", ["\x1f", "\x00", ":", "1:", ",", "/"])
def test_one_value_never_passes_for_two(between: str) -> None:
    assert RING.index("kind", "a", "b") != RING.index("kind", f"a{between}b")
    assert RING.index("kind", "a") != RING.index(f"kind{between}a")
    assert RING.index("kind", f"a{between}", "b") != RING.index("kind", "a", f"{between}b")


def test_a_blind_index_is_an_hmac_as_others_compute_it() -> None:
    """RFC 2104, by the standard library: entries that stand in a database are found by it for ever."""
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"cpis-broker/index").derive(INDEX_KEY)
    expected = hmac.digest(derived, b"3:nhs10:99900000181:x", "sha256")[:16]
    assert RING.index("nhs", "9990000018", "x") == expected


def test_without_the_index_key_nothing_can_be_computed() -> None:
    assert Keyring(OLD, bytes(32)).index("nhs", "9990000018") != RING.index("nhs", "9990000018")


def test_a_marker_depends_on_sender_control_id_and_body_alone() -> None:
    marker = RING.marker("RZ1", "C1", b"body")
    assert marker == RING.marker("RZ1", "C1", b"body")
    assert len({marker, RING.marker("RZ2", "C1", b"body"), RING.marker("RZ1", "C2", b"body")}) == 3
    assert marker != RING.marker("RZ1", "C1", b"body ")


def test_ids_are_thirty_two_hexadecimal_digits() -> None:
    assert RING.derive_id("alert", "v", "706") == RING.index("alert", "v", "706").hex()
    assert len(RING.derive_id("alert", "v", "706")) == 32


def test_keys_are_read_in_order_and_the_first_seals() -> None:
    keys = parse_keys(f" b:{SECRET} , a:{generate_key()},")
    assert list(keys) == ["b", "a"]
    assert Keyring(keys, INDEX_KEY).current == "b"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " , ,",
        SECRET,
        f":{SECRET}",
        f"k-1:{SECRET}",
        f"clé:{SECRET}",
        f"{'k' * 17}:{SECRET}",
        f"k1:{SECRET[:-4]}",
        f"k1:{SECRET}{SECRET}",
        f"k1:{SECRET[:-1]}",
        f"k1:{SECRET[:-2]}!=",
        f"k1:{SECRET[:20]}é{SECRET[21:]}",
        f"k1:{OTHER_SECRET},k1:{SECRET}",
    ],
)
def test_unusable_keys_are_refused_without_leaking_them(text: str) -> None:
    with pytest.raises(KeyringError) as refused:
        parse_keys(text)
    told = "".join(traceback.format_exception(refused.value))
    assert SECRET[:16] not in told
    assert SECRET[-16:] not in told


@pytest.mark.parametrize(("keys", "index_key"), [({}, INDEX_KEY), (OLD, b""), (OLD, bytes(31)), (OLD, bytes(33))])
def test_a_keyring_wants_both_kinds_of_key(keys: dict[str, bytes], index_key: bytes) -> None:
    with pytest.raises(KeyringError):
        Keyring(keys, index_key)


def test_the_same_secret_for_fields_and_index_gives_two_different_keys() -> None:
    ring = Keyring({"k1": INDEX_KEY}, INDEX_KEY)
    assert ring.index("a") != Keyring(OLD, bytes(32)).index("a")
    assert ring.open(ring.seal(b"plain", about="a"), about="a") == b"plain"


def test_made_keys_are_usable_and_never_alike() -> None:
    made = {generate_key() for _ in range(10)}
    assert len(made) == 10
    assert all(parse_keys(f"k1:{key}") for key in made)
