"""A mail server of a school or an authority (RFC 5321), as far as a client may notice, that keeps what it takes."""

from __future__ import annotations

import asyncio
import base64
import ssl
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default

_LINES_MAX = 2_000


@dataclass(frozen=True, kw_only=True)
class Mail:
    """One message as it was taken."""

    sender: str
    recipients: tuple[str, ...]
    message: EmailMessage
    was_encrypted: bool
    username: str


@dataclass(kw_only=True)
class _Visit:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    is_encrypted: bool = False
    username: str = ""
    sender: str = ""
    recipients: list[str] = field(default_factory=list)


class MailServer:
    """Listens on loopback. What it replies may be changed at any time."""

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        is_implicit: bool = False,
        password: str = "",
    ) -> None:
        """With a ``password``, whoever does not show it may send nothing."""
        self.kept: list[Mail] = []
        self.reply_to_recipient = "250 known"
        self.reply_to_text: str | None = "250 kept"
        """None is silence."""
        self._tls = tls
        self._is_implicit = is_implicit
        self._password = password
        self._server: asyncio.Server | None = None
        self._visits: list[_Visit] = []

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self) -> None:
        """Listen."""
        tls = self._tls if self._is_implicit else None
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)

    async def close(self) -> None:
        """Hang up on everybody."""
        assert self._server is not None
        self._server.close()
        for visit in self._visits:
            visit.writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visit = _Visit(reader=reader, writer=writer, is_encrypted=self._is_implicit)
        self._visits.append(visit)
        try:
            await self._converse(visit)
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            self._visits.remove(visit)
            visit.writer.transport.abort()

    async def _converse(self, visit: _Visit) -> None:
        self._say(visit, "220 mail.example.org")
        while line := (await visit.reader.readline()).decode("latin-1").strip():
            verb = line.partition(" ")[0].upper()
            if verb == "QUIT":
                return
            if verb == "STARTTLS" and self._tls is not None:
                await self._encrypt(visit)
            elif verb == "DATA" and visit.recipients:
                self._say(visit, "354 go on")
                await self._take(visit)
            else:
                self._say(visit, self._answer(visit, verb, line))

    def _answer(self, visit: _Visit, verb: str, line: str) -> str:
        if verb == "EHLO":
            offers = ["mail.example.org", "8BITMIME"]
            offers += ["STARTTLS"] if self._tls is not None and not visit.is_encrypted else []
            offers += ["AUTH PLAIN"] if self._password and visit.is_encrypted else []
            return "\r\n".join([*(f"250-{offer}" for offer in offers[:-1]), f"250 {offers[-1]}"])
        if verb == "AUTH":
            _, username, password = base64.b64decode(line.split()[2]).decode().split("\0")
            if password != self._password:
                return "535 not you"
            visit.username = username
            return "235 welcome"
        if self._password and not visit.username:
            return "530 sign in first"
        if verb == "MAIL":
            visit.sender, visit.recipients = _address(line), []
            return "250 go on"
        if verb == "RCPT":
            if self.reply_to_recipient.startswith("250"):
                visit.recipients.append(_address(line))
            return self.reply_to_recipient
        return "250 as you like" if verb == "RSET" else "502 not known here"

    async def _encrypt(self, visit: _Visit) -> None:
        assert self._tls is not None
        self._say(visit, "220 go on")
        await visit.writer.start_tls(self._tls)
        visit.is_encrypted = True

    async def _take(self, visit: _Visit) -> None:
        text = await visit.reader.readuntil(b"\r\n.\r\n")
        lines = text.removesuffix(b".\r\n").split(b"\r\n")[:_LINES_MAX]
        body = b"\r\n".join(line.removeprefix(b".") if line.startswith(b"..") else line for line in lines)
        message = message_from_bytes(body, policy=default)
        self.kept.append(
            Mail(
                sender=visit.sender,
                recipients=tuple(visit.recipients),
                message=message,
                was_encrypted=visit.is_encrypted,
                username=visit.username,
            )
        )
        if self.reply_to_text is None:
            await visit.reader.read()
        else:
            self._say(visit, self.reply_to_text)

    @staticmethod
    def _say(visit: _Visit, text: str) -> None:
        visit.writer.write(f"{text}\r\n".encode())


def _address(line: str) -> str:
    return line.partition("<")[2].partition(">")[0]
