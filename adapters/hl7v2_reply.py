"""The channel to a department: an HL7 v2 message over MLLP, settled by its ACK (HL7 v2.4, 2.9.2)."""

from __future__ import annotations

from adapters.errors import Unreadable
from adapters.hl7v2 import read_ack, read_header
from adapters.mllp import MllpClient, NoAnswer, NotSent
from schemas.delivery import Outcome, OutcomeClass, Parcel


class Hl7v2ReplyChannel:
    """Sends ready HL7 v2 bytes to ``host:port``."""

    def __init__(self, client: MllpClient) -> None:
        self._client = client

    async def send(self, parcel: Parcel) -> Outcome:
        """Try once.

        AA or CA is SENT; AE or CE TRANSIENT ``ae``; AR or CR PERMANENT ``ar``. An answer to another message, or
        none that can be read, leaves open whether ours was received: AMBIGUOUS.
        """
        address = parse_address(parcel.address)
        if address is None:
            return Outcome(outcome=OutcomeClass.PERMANENT, code="bad_address")
        host, port = address
        try:
            answer = await self._client.send_message(host, port, parcel.content)
        except NotSent as error:
            return Outcome(outcome=OutcomeClass.TRANSIENT, code=error.code)
        except NoAnswer as error:
            return Outcome(outcome=OutcomeClass.AMBIGUOUS, code=error.code)
        outcome = _settle(parcel.content, answer)
        if outcome.outcome is OutcomeClass.AMBIGUOUS:
            self._client.drop(host, port)
        return outcome

    async def close(self) -> None:
        """Let go of connections."""
        await self._client.close()


def _settle(message: bytes, answer: bytes) -> Outcome:
    try:
        ack = read_ack(answer)
        control_id = read_header(message).control_id
    except Unreadable:
        return Outcome(outcome=OutcomeClass.AMBIGUOUS, code="unreadable_ack")
    if ack.control_id != control_id:
        return Outcome(outcome=OutcomeClass.AMBIGUOUS, code="wrong_control_id")
    if ack.code in ("AA", "CA"):
        return Outcome(outcome=OutcomeClass.SENT, code="aa")
    if ack.code in ("AE", "CE"):
        return Outcome(outcome=OutcomeClass.TRANSIENT, code="ae")
    return Outcome(outcome=OutcomeClass.PERMANENT, code="ar")


def parse_address(address: str) -> tuple[str, int] | None:
    """Host and port of ``host:port`` or ``[IPv6]:port``, or None."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port[:6]) < 65_536:
        return None
    return host, int(port[:6])
