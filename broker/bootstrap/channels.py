"""The ways out that the settings allow."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path

from adapters.fhir_reply import FhirReplyChannel
from adapters.hl7v2_reply import Hl7v2ReplyChannel
from adapters.mllp import MllpClient, MllpClientOptions
from adapters.posting import PostingOptions
from adapters.webhook import WebhookChannel, WebhookOptions
from broker.bootstrap.engines import open_log
from broker.bootstrap.report import report_wire
from broker.clock import SystemClock
from broker.ports import Channel, Receipts
from broker.settings import Settings
from schemas.delivery import ChannelName


def open_channels(settings: Settings) -> dict[ChannelName, Channel]:
    """The ways out that the settings allow."""
    webhook_tls = _client_tls(settings.webhook_ca_file)
    # Reading the public authorities takes longer than all else of a dispatcher's start.
    is_alike = settings.fhir_reply_ca_file == settings.webhook_ca_file
    channels: dict[ChannelName, Channel] = {
        ChannelName.WEBHOOK: WebhookChannel(
            WebhookOptions(
                read_timeout_s=settings.delivery_timeout_s,
                total_timeout_s=settings.delivery_timeout_s,
                allowed_hosts=_hosts(settings.webhook_allowed_hosts),
                allow_plain_http=settings.webhook_allow_private and settings.is_development,
                allow_private_addresses=settings.webhook_allow_private,
            ),
            on_event=report_wire,
            now=SystemClock().now,
            tls=webhook_tls,
        ),
        ChannelName.HL7V2_REPLY: Hl7v2ReplyChannel(
            MllpClient(
                MllpClientOptions(answer_timeout_s=settings.delivery_timeout_s),
                _client_tls(settings.mllp_reply_ca_file) if settings.mllp_reply_tls else None,
            )
        ),
        ChannelName.FHIR_REPLY: FhirReplyChannel(
            PostingOptions(
                read_timeout_s=settings.delivery_timeout_s,
                total_timeout_s=settings.delivery_timeout_s,
                allowed_hosts=_hosts(settings.fhir_reply_allowed_hosts),
                allow_plain_http=settings.fhir_reply_allow_private and settings.is_development,
                allow_private_addresses=settings.fhir_reply_allow_private,
            ),
            on_event=report_wire,
            now=SystemClock().now,
            tls=webhook_tls if is_alike else _client_tls(settings.fhir_reply_ca_file),
        ),
    }
    if settings.kafka_bootstrap_servers:
        from adapters.topic import TopicChannel, TopicOptions

        channels[ChannelName.TOPIC] = TopicChannel(open_log(settings), TopicOptions())
    if settings.emails_enabled:
        by_notify = settings.emails_by_notify
        email = _open_notify(settings, ChannelName.EMAIL) if by_notify else _open_email(settings)
        channels[ChannelName.EMAIL] = email
    if settings.texts_enabled:
        channels[ChannelName.TEXT_MESSAGE] = _open_notify(settings, ChannelName.TEXT_MESSAGE)
    return channels


def receipts_of(settings: Settings, channels: Mapping[ChannelName, Channel]) -> dict[ChannelName, Receipts]:
    """Those of the ways out that say afterwards what became of a message."""
    if not settings.emails_by_notify and not settings.texts_enabled:
        return {}
    from adapters.govuk_notify import NotifyChannel

    return {name: channel for name, channel in channels.items() if isinstance(channel, NotifyChannel)}


def _open_notify(settings: Settings, name: ChannelName) -> Channel:
    from adapters.exchange import ExchangeOptions
    from adapters.govuk_notify import NotifyChannel, NotifyKind, NotifyOptions

    is_email = name is ChannelName.EMAIL
    options = NotifyOptions(
        kind=NotifyKind.EMAIL if is_email else NotifyKind.SMS,
        template_id=settings.notify_email_template_id if is_email else settings.notify_text_template_id,
        base_url=settings.notify_base_url,
        allow_loopback=settings.is_development,
        unasked_s=settings.delivery_lease_s / 2,
        exchange=ExchangeOptions(
            read_timeout_s=settings.delivery_timeout_s, total_timeout_s=settings.delivery_timeout_s
        ),
    )
    return NotifyChannel(options, api_key=settings.notify_api_key.get_secret_value(), now=SystemClock().now)


def _open_email(settings: Settings) -> Channel:
    from adapters.smtp import EmailChannel, EmailOptions

    options = EmailOptions(
        host=settings.smtp_host,
        port=settings.smtp_port,
        tls=settings.smtp_tls,
        username=settings.smtp_username,
        password=settings.smtp_password.get_secret_value(),
        sender=settings.smtp_sender,
        timeout_s=settings.delivery_timeout_s,
    )
    return EmailChannel(options, tls=_client_tls(settings.smtp_ca_file))


def _hosts(text: str) -> frozenset[str]:
    return frozenset(host.strip().lower() for host in text.split(",") if host.strip())


def _client_tls(authorities: Path | None) -> ssl.SSLContext:
    """Verify the other side against its own certificate authority, or the public ones."""
    return ssl.create_default_context(cafile=authorities)
