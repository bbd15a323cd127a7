"""MESH, the NHS's Message Exchange for Social Care and Health: one mailbox, through NHS England's own client.

Needs the extra ``mesh``. The client waits for the network, so it works in one thread of its own. What it raises holds
addresses and contents: only a closed word of it is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import mesh_client
import msgspec
import requests
from urllib3.exceptions import HTTPError

from adapters.errors import MailboxUnavailable
from schemas.delivery import Outcome, OutcomeClass
from schemas.mesh import MeshMessage

Result = TypeVar("Result")
_PIECE_BYTES: Final = 65_536
_FAILURES: Final = (requests.RequestException, HTTPError, mesh_client.MeshError, OSError, ValueError, KeyError)
_LISTED_MIN: Final = 10
"""MESH lists no fewer."""


class MeshOptions(msgspec.Struct, frozen=True, kw_only=True):
    """One mailbox, and how it is reached."""

    url: str
    mailbox: str
    password: str
    shared_key: str
    ca_file: str | None = None
    """None: NHS England's own for its addresses, else the system's."""
    certificate_file: str | None = None
    key_file: str | None = None
    timeout_s: float = 60.0
    """Of one exchange, and of the silence within one."""
    message_bytes_max: int = 67_108_864
    listed_max: int = 100


class MeshMailbox:
    """A mailbox that is read and written. Raises MailboxUnavailable when MESH does not do what it is asked."""

    def __init__(self, options: MeshOptions) -> None:
        self._options = options
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mesh")
        files = (options.certificate_file, options.key_file)
        self._client: Any = mesh_client.MeshClient(
            options.url,
            options.mailbox,
            options.password,
            shared_key=options.shared_key.encode(),
            cert=(files[0], files[1]) if files[0] and files[1] else None,
            verify=options.ca_file,
            max_retries=0,
            timeout=options.timeout_s,
            application_name="cpis-broker",
        )

    async def list_waiting(self) -> list[str]:
        """The ids of messages that nobody has acknowledged, oldest first, at most ``listed_max``."""
        listed_max = max(_LISTED_MIN, self._options.listed_max)
        return await self._do(lambda: [str(each) for each in self._client.list_messages(max_results=listed_max)])

    async def take(self, message_id: str) -> MeshMessage:
        """A message with its contents, which stays in the mailbox."""
        return await self._do(lambda: self._take(message_id))

    async def acknowledge(self, message_id: str) -> None:
        """Tell MESH that the message is safe here: it is gone from the mailbox afterwards."""
        await self._do(lambda: self._client.acknowledge_message(message_id))

    async def send(self, recipient: str, body: bytes, *, workflow: str, local_id: str) -> Outcome:
        """Try once to send JSON to another mailbox. Raises nothing for what the other side does."""
        return await self._run(lambda: self._send(recipient, body, workflow, local_id))

    async def close(self) -> None:
        """Let go of connections, once what is in hand has ended."""
        await self._run(self._client.close)
        self._thread.shutdown()

    async def _run(self, call: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _do(self, call: Callable[[], Result]) -> Result:
        try:
            return await self._run(call)
        except _FAILURES as error:
            raise MailboxUnavailable(_word_of(error)) from None

    def _take(self, message_id: str) -> MeshMessage:
        message = self._client.retrieve_message(message_id)
        try:
            return MeshMessage(
                id=message_id,
                sender=message.sender or "",
                workflow=message.workflow_id or "",
                is_report=message.message_type == "REPORT",
                body=self._read(message),
            )
        finally:
            message.close()

    def _read(self, message: Any) -> bytes | None:
        """Piece by piece, so that what was packed small cannot grow beyond the limit."""
        body = bytearray()
        while piece := message.read(_PIECE_BYTES):
            body += piece
            if len(body) > self._options.message_bytes_max:
                return None
        return bytes(body)

    def _send(self, recipient: str, body: bytes, workflow: str, local_id: str) -> Outcome:
        try:
            self._client.send_message(
                recipient, body, workflow_id=workflow, local_id=local_id, content_type="application/json"
            )
        except requests.ConnectTimeout:
            return Outcome(outcome=OutcomeClass.TRANSIENT, code="connect_timeout")
        except mesh_client.MeshError as error:
            code = _error_code(error)
            # Without a code it is not about this message: the mailbox itself is not let in, for one.
            outcome = OutcomeClass.PERMANENT if code else OutcomeClass.TRANSIENT
            return Outcome(outcome=outcome, code=f"mesh_{code}" if code else "mesh_refused")
        except _FAILURES as error:
            return Outcome(outcome=OutcomeClass.AMBIGUOUS, code=_word_of(error))
        return Outcome(outcome=OutcomeClass.SENT, code="accepted")


def _word_of(error: BaseException) -> str:
    """A closed word: the status, or the error's class."""
    response = error.response if isinstance(error, requests.RequestException) else None
    return f"http_{response.status_code}" if response is not None else type(error).__name__


def _error_code(error: mesh_client.MeshError) -> str:
    """The two or three digits of what MESH refuses (12: unregistered recipient), or nothing."""
    told = error.args[1] if len(error.args) > 1 else None
    details = told.get("detail") if isinstance(told, dict) else None
    first = details[0] if isinstance(details, list) and details else None
    code = str(first.get("code", "")) if isinstance(first, dict) else ""
    return code if code.isascii() and code.isdigit() and len(code) <= 3 else ""
