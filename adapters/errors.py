"""What can go wrong on the wires. No error text carries personal data.

- AdapterError
    - Unreadable          bytes that cannot be understood; ``reason`` is a closed word
        - NotHl7          not an HL7 v2 message at all
        - NotAnAttendance understood, and of no concern to the broker
    - MalformedFile       a file that cannot be read as a whole; its text says why
    - MailboxUnavailable  a mailbox did not do what it was asked; ``code`` is a closed word
    - ReceiptsUnavailable what became of a message could not be asked; ``code`` is a closed word
    - LogError
        - NotDurable      an append was not confirmed; the caller must not acknowledge
        - LogUnavailable  the log cannot be reached or does not answer in time
        - LogGap          a wanted offset is not in the log, or the topic was made again
"""

from __future__ import annotations


class AdapterError(Exception):
    """Any failure on the wires."""


class Unreadable(AdapterError):
    """Bytes that cannot be understood.

    ``reason`` is a closed word for code and counters (``no_pid``), ``detail`` a sentence for a person that
    names segments and fields, never their contents.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail or reason.replace("_", " ")


class NotHl7(Unreadable):
    """The bytes do not begin with a message header segment (HL7 v2.4, 2.16.9)."""


class NotAnAttendance(Unreadable):
    """A message of a type or event the broker does not act on; its reason is ``not_an_attendance``."""


class MalformedFile(AdapterError):
    """The file as a whole cannot be read: nothing was taken from it. Says why, without anything of its contents."""


class MailboxUnavailable(AdapterError):
    """A mailbox cannot be reached, does not let us in, or does not have what was asked for: try again later.

    ``code`` is a closed word for logs (``http_403``), never an address or contents.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class ReceiptsUnavailable(AdapterError):
    """A provider did not say what became of a message: ask again later.

    ``code`` is a closed word for logs (``http_403``), never an address or contents.
    """

    def __init__(self, code: str, retry_after_s: float | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.retry_after_s = retry_after_s


class LogError(AdapterError):
    """Any failure of the log."""


class NotDurable(LogError):
    """The append was not confirmed, so it may or may not stand: do not acknowledge, the sender resends."""


class LogUnavailable(LogError):
    """The log cannot be reached, or did not answer in time."""


class LogGap(LogError):
    """A wanted offset is not in the log any more, or the topic was deleted and made again."""
