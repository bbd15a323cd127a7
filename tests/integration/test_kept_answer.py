"""A message that is kept but not understood is answered as its sender wishes, and kept all the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from adapters.hl7v2 import read_ack
from broker.intake import Intake
from broker.keyring import Keyring
from broker.senders import Senders, digest_credential, write_snapshot
from schemas.directory import KeptAnswer, Sender
from schemas.record import Partition
from tests.fakes import ManualClock, MemoryLog
from tests.world import FIELD_KEYS, INDEX_KEY, hl7


@dataclass(frozen=True)
class Desk:
    host: str = "127.0.0.1"


@pytest.mark.parametrize("wish", list(KeptAnswer))
async def test_the_sender_is_answered_as_it_wishes(wish: KeptAnswer, tmp_path: Path) -> None:
    keyring, log = Keyring(FIELD_KEYS, INDEX_KEY), MemoryLog(partitions=1)
    digest = digest_credential(keyring, "RZ1", b"rz1-credential")
    sender = Sender(code="RZ1", credential_digest=digest, not_understood=wish)
    write_snapshot(tmp_path / "senders.json", [sender])
    intake = Intake(log, "attendances", keyring, Senders(tmp_path / "senders.json", keyring), ManualClock())

    understood = await intake.accept_hl7v2(hl7(), Desk())
    kept = await intake.accept_hl7v2(hl7().replace(b"PID|", b"ZZZ|"), Desk())

    assert understood is not None and read_ack(understood).code == "AA"
    assert kept is not None
    answer = read_ack(kept)
    assert answer.code == wish.value
    assert answer.text.startswith("kept, not understood")
    assert (await log.extents("attendances"))[Partition("attendances", 0)].end == 2
    await log.close()
