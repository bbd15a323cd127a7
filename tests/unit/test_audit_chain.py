"""The audit chain's arithmetic."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import sha256

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from broker.domain.audit_chain import GENESIS, AuditRecord, chain_hash

RECORD = AuditRecord(
    owner="authority:706",
    sequence=1,
    at=datetime(2026, 2, 14, 3, 12, 0, 250_000, tzinfo=UTC),
    actor="ash@706.example.org",
    action="alert.opened",
    subject="00112233",
    reason="on duty",
)


def test_the_hash_is_what_the_chains_of_yesterday_were_made_with() -> None:
    """Computed here by hand: a change of it would make every kept chain look broken."""
    text = '["authority:706",1,"2026-02-14T03:12:00.250000Z","ash@706.example.org","alert.opened","00112233","on duty"]'
    assert chain_hash(GENESIS, RECORD) == sha256(bytes(32) + text.encode()).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"owner": "authority:707"},
        {"sequence": 2},
        {"at": RECORD.at + timedelta(microseconds=1)},
        {"actor": "ash@706.example.or"},
        {"action": "alert.acknowledged"},
        {"subject": "00112234"},
        {"reason": ""},
    ],
)
def test_every_field_is_covered(change: dict[str, object]) -> None:
    assert chain_hash(GENESIS, msgspec.structs.replace(RECORD, **change)) != chain_hash(GENESIS, RECORD)


def test_the_record_before_is_covered() -> None:
    assert chain_hash(bytes(31) + b"\x01", RECORD) != chain_hash(GENESIS, RECORD)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(deadline=None)
@given(st.tuples(TEXTS, TEXTS, TEXTS, TEXTS), st.tuples(TEXTS, TEXTS, TEXTS, TEXTS))
def test_text_cannot_move_from_one_field_to_another(
    one: tuple[str, str, str, str], other: tuple[str, str, str, str]
) -> None:
    assume(one != other)
    hashes = {
        chain_hash(
            GENESIS,
            msgspec.structs.replace(RECORD, actor=actor, action=action, subject=subject, reason=reason),
        )
        for actor, action, subject, reason in (one, other)
    }
    assert len(hashes) == 2
