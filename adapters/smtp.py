"""The channel to a mailbox: one message, one recipient, through the mail server that the operator names (RFC 5321).

The standard library's client, each message on a connection and a thread of its own: nudges are few, and a mail server
closes an idle connection anyway.
"""

from __future__ import annotations

import asyncio
import re
import smtplib
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP
from functools import partial
from typing import Final

from schemas.delivery import MailTls, Outcome, OutcomeClass, Parcel

_ADDRESS: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_{|}~-]{1,64}@([A-Za-z0-9-]{1,63}\.)*[A-Za-z0-9-]{1,63}")
_ADDRESS_LETTERS_MAX: Final = 254
SUBJECT: Final = "A message is waiting for you"
"""The same for everybody: a subject shows on a locked telephone."""
_ACCEPTED: Final = (250, 251)
_LEAST_PERMANENT: Final = 500
"""From here on a reply code refuses for good; what is below refuses for now (RFC 5321, 4.2.1)."""


@dataclass(frozen=True, kw_only=True)
class EmailOptions:
    """The mail server, who writes, and limits."""

    host: str
    sender: str
    """The address that messages come from."""
    port: int = 587
    tls: MailTls = MailTls.STARTTLS
    username: str = ""
    password: str = ""
    timeout_s: float = 10.0
    """Each step of the exchange."""
    connections_max: int = 4


class EmailChannel:
    """Sends a parcel's content as the text of an e-mail to the parcel's address."""

    def __init__(self, options: EmailOptions, *, tls: ssl.SSLContext | None = None) -> None:
        """``tls``: verifies the mail server; by default against the public authorities."""
        self._options = options
        self._tls = tls or ssl.create_default_context()
        self._threads = ThreadPoolExecutor(options.connections_max, thread_name_prefix="email")

    async def send(self, parcel: Parcel) -> Outcome:
        """Try once.

        A message that the server took is SENT. What it refuses with 4yz is TRANSIENT, with 5yz PERMANENT; a server
        that cannot be reached, offers no TLS or does not let us sign in TRANSIENT, for none of it is the recipient's.
        When the text had left and no answer came, AMBIGUOUS. Never raises.
        """
        if not is_address(parcel.address):
            return Outcome(outcome=OutcomeClass.PERMANENT, code="bad_address")
        message = self._write(parcel)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._exchange, parcel.address, message)

    async def close(self) -> None:
        """Let go of the threads; an attempt in hand ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _write(self, parcel: Parcel) -> bytes:
        """The message. Its id is the delivery's own: mail systems drop a second copy by it."""
        message = EmailMessage(policy=SMTP)
        message["From"] = self._options.sender
        message["To"] = parcel.address
        message["Subject"] = SUBJECT
        message["Date"] = parcel.created_at
        message["Message-ID"] = f"<{parcel.idempotency_key}@{self._options.sender.rpartition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office reply comes back
        message.set_content(parcel.content.decode())
        return message.as_bytes()

    def _exchange(self, address: str, message: bytes) -> Outcome:
        try:
            server = self._connect()
        except Exception as error:
            return Outcome(outcome=OutcomeClass.TRANSIENT, code=_name_failure(error))
        has_left = False
        try:
            for say in (partial(server.mail, self._options.sender), partial(server.rcpt, address)):
                code, _ = say()
                if code not in _ACCEPTED:
                    return _refused(code)
            has_left = True
            code, _ = server.data(message)
        except smtplib.SMTPDataError as error:
            return _refused(error.smtp_code)
        except Exception as error:
            outcome = OutcomeClass.AMBIGUOUS if has_left else OutcomeClass.TRANSIENT
            return Outcome(outcome=outcome, code=_name_failure(error))
        finally:
            server.close()
        return Outcome(outcome=OutcomeClass.SENT, code="accepted") if code in _ACCEPTED else _refused(code)

    def _connect(self) -> smtplib.SMTP:
        """A connection that is encrypted and signed in to, before anything is said of a recipient."""
        options = self._options
        domain = options.sender.rpartition("@")[2]
        open_server: Callable[..., smtplib.SMTP] = smtplib.SMTP
        if options.tls is MailTls.IMPLICIT:
            open_server = partial(smtplib.SMTP_SSL, context=self._tls)
        # Named by the sender's domain: the library would look up this machine's own name, and tell it.
        server = open_server(options.host, options.port, local_hostname=domain, timeout=options.timeout_s)
        try:
            if options.tls is MailTls.STARTTLS:
                server.starttls(context=self._tls)
            if options.username:
                server.login(options.username, options.password)
            else:
                server.ehlo_or_helo_if_needed()
        except Exception:
            server.close()
            raise
        return server


def is_address(text: str) -> bool:
    """Whether this is one plain e-mail address: no list, no name, nothing that could add a line to a head."""
    return len(text) <= _ADDRESS_LETTERS_MAX and _ADDRESS.fullmatch(text) is not None


def _refused(code: int) -> Outcome:
    outcome = OutcomeClass.PERMANENT if code >= _LEAST_PERMANENT else OutcomeClass.TRANSIENT
    return Outcome(outcome=outcome, code=f"smtp_{code}")


def _name_failure(error: Exception) -> str:
    """A closed word; what the server said may repeat the address, and is never kept."""
    if isinstance(error, ssl.SSLError):
        return "tls_failed"
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return "tls_or_sign_in_missing"
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return "sign_in_refused"
    if isinstance(error, TimeoutError):
        return "answer_timeout"
    if isinstance(error, smtplib.SMTPServerDisconnected):
        return "connection_lost"
    return "connect_failed"
