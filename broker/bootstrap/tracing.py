"""Which Personal Demographics Service is asked: the one of the settings, or none."""

from __future__ import annotations

import ssl
from datetime import timedelta
from typing import TYPE_CHECKING

from broker.bootstrap.safety import ConfigurationError
from broker.clock import SystemClock

if TYPE_CHECKING:
    from broker.jobs.tracing import Tracing
    from broker.keyring import Keyring
    from broker.ports import Tracer
    from broker.settings import Settings
    from broker.storage.database import Database


def open_tracing(settings: Settings, database: Database, keyring: Keyring) -> Tracing | None:
    """Who traces entries; None when no service is configured. Raises ConfigurationError."""
    tracer = open_tracer(settings)
    if tracer is None:
        return None
    from broker.jobs.tracing import Tracing, TracingOptions

    options = TracingOptions(
        traces_per_s=settings.pds_traces_per_s,
        verified_again=timedelta(days=settings.pds_verified_again_days),
        others_again=timedelta(hours=settings.pds_others_again_hours),
    )
    return Tracing(database, keyring, SystemClock(), tracer, options)


def open_tracer(settings: Settings) -> Tracer | None:
    """The service itself; None when none is configured. Raises ConfigurationError."""
    if not settings.pds_base_url:
        return None
    from adapters.access_token import SignedJwtOptions, SignedJwtTokens
    from adapters.exchange import Exchange, ExchangeOptions
    from adapters.pds import PdsOptions, PdsTracer

    clock = SystemClock()
    tls = ssl.create_default_context(cafile=str(settings.pds_ca_file)) if settings.pds_ca_file else None
    exchange = Exchange(ExchangeOptions(allow_plain_http=settings.is_development), now=clock.now, tls=tls)
    tokens = None
    if settings.pds_token_url:
        try:
            tokens = SignedJwtTokens(
                SignedJwtOptions(token_url=settings.pds_token_url, key_id=settings.pds_key_id),
                exchange,
                api_key=settings.pds_api_key.get_secret_value(),
                private_key=_read_key(settings),
                now=clock.now,
            )
        except ValueError:
            raise ConfigurationError("CPIS_PDS_PRIVATE_KEY_FILE: not an RSA key in PEM") from None
    return PdsTracer(PdsOptions(base_url=settings.pds_base_url), exchange, tokens, now=clock.now)


def _read_key(settings: Settings) -> bytes:
    if settings.pds_private_key_file is None:
        raise ConfigurationError("CPIS_PDS_PRIVATE_KEY_FILE: needed with CPIS_PDS_TOKEN_URL")
    try:
        return settings.pds_private_key_file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"CPIS_PDS_PRIVATE_KEY_FILE: {error.strerror or 'cannot be read'}") from None
