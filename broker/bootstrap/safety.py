"""Settings that are missing or unsafe, and the keys."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from broker.keyring import Keyring, KeyringError, generate_key, parse_keys
from broker.settings import Settings
from schemas.delivery import MailTls

DEVELOPMENT_KEYS_NAME: Final = "development-keys"
KAFKA_REPLICAS_MIN: Final = 3
"""With ``acks=all`` and one replica allowed to be away, what was acknowledged survives the loss of a server."""


_SERVICES: Final = (
    ("pds_base_url", "PDS"),
    ("pds_token_url", "PDS"),
    ("mesh_url", "MESH"),
    ("notify_base_url", "GOV.UK Notify"),
)


class ConfigurationError(Exception):
    """A setting is missing or unsafe; the text says which and what to do."""


def load_keyring(settings: Settings) -> Keyring:
    """The keyring of the settings; in development, keys are made once and kept in the data directory."""
    field_keys, index_key = settings.field_keys.get_secret_value(), settings.index_key.get_secret_value()
    if not field_keys and not index_key and settings.is_development:
        field_keys, index_key = _development_keys(settings.data_dir / DEVELOPMENT_KEYS_NAME)
    if not field_keys or not index_key:
        raise ConfigurationError("set CPIS_FIELD_KEYS and CPIS_INDEX_KEY (cpis-broker keys generate makes both)")
    try:
        return Keyring(parse_keys(field_keys), parse_keys(f"index:{index_key}")["index"])
    except KeyringError as error:
        raise ConfigurationError(f"CPIS_FIELD_KEYS or CPIS_INDEX_KEY: {error}") from error


def check_safety(settings: Settings) -> list[str]:
    """What must not stay as it is outside development."""
    if settings.is_development:
        return []
    problems = []
    if settings.log_retention_days <= settings.longest_outage_days + settings.look_back_hours / 24:
        problems.append(
            "CPIS_LOG_RETENTION_DAYS: must be longer than CPIS_LONGEST_OUTAGE_DAYS and CPIS_LOOK_BACK_HOURS together, "
            "or attendances are deleted before they are handled"
        )
    if settings.mllp_tls_certificate_file is None or settings.mllp_tls_key_file is None:
        problems.append("CPIS_MLLP_TLS_CERTIFICATE_FILE and CPIS_MLLP_TLS_KEY_FILE: MLLP must be encrypted")
    if not settings.public_url.startswith("https://"):
        problems.append("CPIS_PUBLIC_URL: people must reach the pages by https")
    if settings.webhook_allow_private and not settings.webhook_allowed_hosts:
        problems.append("CPIS_WEBHOOK_ALLOW_PRIVATE: only with the hosts named in CPIS_WEBHOOK_ALLOWED_HOSTS")
    if settings.fhir_reply_allow_private and not settings.fhir_reply_allowed_hosts:
        problems.append("CPIS_FHIR_REPLY_ALLOW_PRIVATE: only with the hosts named in CPIS_FHIR_REPLY_ALLOWED_HOSTS")
    if not settings.mllp_reply_tls:
        problems.append("CPIS_MLLP_REPLY_TLS: replies must be encrypted")
    if settings.kafka_bootstrap_servers and settings.kafka_security_protocol in ("PLAINTEXT", "SASL_PLAINTEXT"):
        problems.append("CPIS_KAFKA_SECURITY_PROTOCOL: without TLS only in development")
    if settings.kafka_bootstrap_servers and settings.kafka_replication_factor < KAFKA_REPLICAS_MIN:
        problems.append("CPIS_KAFKA_REPLICATION_FACTOR: an attendance that stands on fewer than 3 servers can be lost")
    return problems + _check_mail(settings) + _check_notify(settings) + _check_national_services(settings)


def _check_mail(settings: Settings) -> list[str]:
    problems = []
    if bool(settings.smtp_host) != bool(settings.smtp_sender):
        problems.append("CPIS_SMTP_HOST and CPIS_SMTP_SENDER: one without the other sends no e-mail")
    if settings.smtp_host and settings.smtp_tls is MailTls.NONE:
        problems.append("CPIS_SMTP_TLS: e-mails leave without TLS only in development")
    return problems


def _check_notify(settings: Settings) -> list[str]:
    problems = []
    key = settings.notify_api_key.get_secret_value()
    if bool(key) != bool(settings.notify_email_template_id or settings.notify_text_template_id):
        problems.append(
            "CPIS_NOTIFY_API_KEY and CPIS_NOTIFY_EMAIL_TEMPLATE_ID or CPIS_NOTIFY_TEXT_TEMPLATE_ID: one without the "
            "other sends nothing"
        )
    if key:
        from adapters.govuk_notify import BadApiKey, split_api_key

        try:
            split_api_key(key)
        except BadApiKey:
            problems.append("CPIS_NOTIFY_API_KEY: is no key of GOV.UK Notify (a name, two ids, hyphens between them)")
    if settings.smtp_host and settings.emails_by_notify:
        problems.append("CPIS_SMTP_HOST and CPIS_NOTIFY_EMAIL_TEMPLATE_ID: e-mails leave by one of the two")
    return problems


def _check_national_services(settings: Settings) -> list[str]:
    problems = []
    for name, service in _SERVICES:
        address = getattr(settings, name)
        if address and not address.startswith("https://"):
            problems.append(f"CPIS_{name.upper()}: {service} must be asked by https")
    if settings.pds_base_url and not settings.pds_token_url:
        problems.append("CPIS_PDS_TOKEN_URL: PDS asks for an access token")
    return problems


def _development_keys(path: Path) -> tuple[str, str]:
    """Keys made once for this data directory; two parts that start together agree on whoever was first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.touch(mode=0o600)
    temporary.write_text(f"dev:{generate_key()}\n{generate_key()}\n")
    with suppress(FileExistsError):
        path.hardlink_to(temporary)
    temporary.unlink()
    field_keys, index_key = path.read_text().split()
    return field_keys, index_key
