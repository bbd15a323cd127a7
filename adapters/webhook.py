"""The channel to a case system: a signed POST.

CloudEvents 1.0 in the HTTP protocol binding's binary mode; signature by the Standard Webhooks convention
(standardwebhooks.com, symmetric ``v1``); Idempotency-Key as in the IETF draft of that name.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import httpx
import msgspec

from schemas.delivery import Outcome, OutcomeClass, Parcel

OnEvent = Callable[[str, Mapping[str, int | str]], None]

_TRANSIENT_STATUSES: Final = frozenset({408, 425, 429})


class WebhookOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits, and where posts may go."""

    source: str = "urn:cpis-broker"
    """CloudEvents source of everything sent."""
    allow_plain_http: bool = False
    """For development: the content would cross the network unencrypted."""
    allow_private_addresses: bool = False
    """For case systems inside the same network; otherwise such an address is how a server is turned on its own
    surroundings (server-side request forgery)."""
    allowed_hosts: frozenset[str] = frozenset()
    """If not empty, the only hosts posts may go to, in lower case."""
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 15.0
    total_timeout_s: float = 30.0
    response_bytes_max: int = 65_536
    retry_after_max_s: float = 3_600.0
    hosts_max: int = 256
    """Hosts whose connections are kept."""
    connections_max: int = 4
    """For each host."""


class AddressRefused(Exception):
    """The address may not be posted to. ``code`` is a closed word."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code
