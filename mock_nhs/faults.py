"""Faults at named points: what the other side does wrong, on purpose and no more often than it was armed.

A point is armed for a number of times, or for a share of its chances drawn by a seeded random; a point that is
not armed never fires. Armed on a program with ``--fault NAME:COUNT`` (``case.refuse_503:3``) or with a share,
written with a decimal point (``case.refuse_503:0.2``). The catalogue is closed:

ed.send.half_frame      half of an MLLP block is written, then the connection closes; the message is sent again
ed.send.hang_up         the whole block is written and the connection closed at once, its ACK unread; sent again
ed.send.twice           the block is written twice, with the same control id
ed.send.slow_frame      half of the block, a pause, the other half
ed.post.half_request    half of a FHIR message's request is written, then the connection closes; sent again
ed.post.hang_up         the whole request is written and the connection closed at once, its answer unread; sent again
ed.post.twice           the request is sent twice, one after the other, with the same bytes
ed.write.unreadable     the department composes a message nobody can understand (no PID segment, no Patient)
ed.reply.no_ack         the reply is kept, and nothing is answered; the connection stays open
ed.reply.late_ack       the reply is kept; its ACK is held until the next block comes, and written before that one's
ed.reply.ack_ae         the reply is not kept; the answer is AE
ed.reply.ack_ar         the reply is not kept; the answer is AR
ed.reply.close          the reply is not kept; the connection closes without an answer
ed.reply.drop_after_keep  the reply is kept; the connection closes without an answer
ed.reply.slow           the reply is kept; its ACK comes after a pause
ed.reply.not_hl7        the reply is not kept; the answer is a block that is not HL7
ed.fhir.refuse_400      the reply Bundle is not kept; 400
ed.fhir.refuse_503      the reply Bundle is not kept; 503
ed.fhir.429_retry_after the reply Bundle is not kept; 429 with Retry-After in seconds
ed.fhir.slow            the reply Bundle is kept; 200 after a pause
ed.fhir.drop_after_read the request is read whole, nothing is kept, and the connection closes without an answer
ed.fhir.drop_after_keep  the reply Bundle is kept, and the connection closes without an answer
ed.fhir.half_response   the reply Bundle is kept; the answer breaks off inside its header
ed.fhir.redirect        the reply Bundle is not kept; 307 to a path of the same server that records who follows
case.refuse_400         the alert is not kept; 400, as for a body the case system will never take
case.refuse_503         the alert is not kept; 503
case.429_retry_after    the alert is not kept; 429 with Retry-After in seconds
case.slow               the alert is kept; 200 after a pause
case.drop_after_read    the request is read whole, nothing is kept, and the connection closes without an answer
case.drop_after_keep    the alert is kept, and the connection closes without an answer
case.half_response      the alert is kept; the answer breaks off inside its header
case.redirect           the alert is not kept; 307 to a path of the same server that records who follows
pds.refuse_408          408 UNABLE_TO_CALL_SERVICE, as when Spine does not answer in time
pds.429_retry_after     429 TOO_MANY_REQUESTS with Retry-After in seconds
pds.refuse_503          503 without a FHIR body, as a gateway answers
pds.slow                the answer comes after a pause
pds.drop_after_read     the request is read whole, and the connection closes without an answer
pds.half_response       the answer breaks off inside its body
pds.not_json            200 with a body that is not JSON
pds.wrong_shape         200 with JSON that is not a Patient
pds.forget_tokens       every access token expires early; the request is answered 401
pds.token.refuse_401    the token endpoint refuses the application
pds.token.refuse_503    the token endpoint answers 503
pds.token.slow          the access token comes after a pause
notify.refuse_400       the message is not kept; 400, as for a number of a team's guest list that is not on it
notify.refuse_403       the message is not kept; 403, as for a clock that is wrong
notify.refuse_429       the message is not kept; 429 RateLimitError
notify.refuse_500       the message is not kept; 500
notify.refuse_listing   whoever asks what became of a message is answered 503
notify.drop_listing     whoever asks what became of a message is answered nothing, and the connection closes
notify.slow             the message is kept; 201 after a pause
notify.drop_after_read  the request is read whole, nothing is kept, and the connection closes without an answer
notify.drop_after_keep  the message is kept, and the connection closes without an answer
notify.half_response    the message is kept; the answer breaks off inside its header
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from collections.abc import Iterable
from typing import Final

CATALOGUE: Final = frozenset(re.findall(r"^((?:ed|case|pds|notify)\.[a-z0-9_.]+) ", __doc__, re.MULTILINE))
"""Every point there is: the names of the table above."""


class UnknownFault(Exception):
    """A name outside the catalogue, or a count that is none. The text says which."""


class Faults:
    """What is armed, and what has fired. Each point draws from a random of its own, so points do not disturb."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._left: dict[str, int] = {}
        self._share: dict[str, float] = {}
        self._draws: dict[str, random.Random] = {}
        self.fired: Counter[str] = Counter()

    def arm_times(self, name: str, times: int) -> None:
        """Let ``name`` fire at its next ``times`` chances; a second call replaces the first."""
        self._forget(name)
        self._left[name] = times

    def arm_share(self, name: str, share: float) -> None:
        """Let ``name`` fire at ``share`` (0 to 1) of its chances until it is disarmed."""
        self._forget(name)
        self._share[name] = share
        self._draws.setdefault(name, random.Random(f"{self._seed}:{name}"))

    def disarm(self, name: str) -> None:
        """Let ``name`` fire no more."""
        self._forget(name)

    def fires(self, name: str) -> bool:
        """Whether ``name`` fires at this chance, which is thereby used up."""
        assert name in CATALOGUE, "a point outside the catalogue"
        if name in self._share:
            fires = self._draws[name].random() < self._share[name]
        else:
            left = self._left.get(name, 0)
            fires = left > 0
            if fires:
                self._left[name] = left - 1
        self.fired[name] += fires
        return fires

    def _forget(self, name: str) -> None:
        if name not in CATALOGUE:
            raise UnknownFault(f"no fault is named {name!r}; the names are {', '.join(sorted(CATALOGUE))}")
        self._left.pop(name, None)
        self._share.pop(name, None)


def read_faults(armed: Iterable[str], *, seed: int = 0) -> Faults:
    """Faults from ``NAME:COUNT`` and ``NAME:SHARE`` texts. Raises UnknownFault."""
    faults = Faults(seed)
    for text in armed:
        name, _, amount = text.rpartition(":")
        try:
            if "." in amount:
                faults.arm_share(name, float(amount))
            else:
                faults.arm_times(name, int(amount))
        except ValueError as error:
            raise UnknownFault(f"{text!r} is not NAME:COUNT or NAME:SHARE") from error
    return faults


def add_fault_argument(parser: argparse.ArgumentParser) -> None:
    """Give a program its ``--fault`` argument, which may be repeated."""
    parser.add_argument(
        "--fault", action="append", default=[], metavar="NAME:COUNT", help="arm a fault (mock_nhs/faults.py)"
    )
