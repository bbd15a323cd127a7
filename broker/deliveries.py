"""How what people are told leaves: on which channels, and in which bytes. Who is told what is decided before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from uuid import UUID

import msgspec

from adapters.fhir_writer import FHIR_JSON, build_reply_bundle
from adapters.hl7v2 import build_reply
from broker.domain.alerts import withhold_place
from broker.keyring import Keyring
from broker.storage.directory import Directory
from broker.storage.outbox import NewDelivery
from schemas.alert import AlertUpdated, AlertWithdrawn, ClinicianReply, SocialCareAlert
from schemas.delivery import ChannelName
from schemas.directory import Site
from schemas.identifiers import authority_owner, organisation_owner

ALERT_RAISED = "uk.cpis-broker.alert.raised.v1"
ALERT_UPDATED = "uk.cpis-broker.alert.updated.v1"
ALERT_WITHDRAWN = "uk.cpis-broker.alert.withdrawn.v1"
REPLY_GIVEN = "uk.cpis-broker.reply.given.v1"
JSON = "application/json"
HL7V2 = "application/hl7-v2+er7"
BROKER_APPLICATION = "CPIS-BROKER"
BROKER_FACILITY = "CPIS"


def authority_channels(directory: Directory, authority: str, *, topics_enabled: bool) -> list[ChannelName]:
    """The ways on which an authority's systems are told."""
    channels = [ChannelName.TOPIC] if topics_enabled else []
    if directory.authorities[authority].webhook_url:
        channels.append(ChannelName.WEBHOOK)
    return channels


def deliver_alert(
    keyring: Keyring, alert: SocialCareAlert, channels: Iterable[ChannelName], *, is_restricted: bool
) -> list[NewDelivery]:
    """An alert as its authority's systems are told; ``is_restricted``: where the person is stays here."""
    if is_restricted:
        alert = msgspec.structs.replace(alert, attendance=withhold_place(alert.attendance))
    ids = {channel: keyring.derive_id("delivery", channel, alert.alert_id) for channel in channels}
    return _to_authority(ids, ALERT_RAISED, alert)


def deliver_update(
    keyring: Keyring, update: AlertUpdated, channels: Iterable[ChannelName], *, is_restricted: bool
) -> list[NewDelivery]:
    """What is told after an alert; ``is_restricted``: where the person is stays here."""
    if is_restricted:
        update = msgspec.structs.replace(update, attendance=withhold_place(update.attendance))
    ids = {channel: keyring.derive_id("delivery", channel, update.notice_id) for channel in channels}
    return _to_authority(ids, ALERT_UPDATED, update)


def deliver_withdrawal(
    keyring: Keyring, withdrawn: AlertWithdrawn, channels: Iterable[ChannelName]
) -> list[NewDelivery]:
    """That an alert does not stand any more."""
    ids = {channel: keyring.derive_id("delivery", channel, withdrawn.alert_id, "withdrawn") for channel in channels}
    return _to_authority(ids, ALERT_WITHDRAWN, withdrawn)


def _to_authority(
    ids: Mapping[ChannelName, str], event_type: str, said: SocialCareAlert | AlertUpdated | AlertWithdrawn
) -> list[NewDelivery]:
    content = msgspec.json.encode(said)
    return [
        NewDelivery(
            id=delivery_id,
            channel=channel,
            owner=authority_owner(said.authority),
            event_type=event_type,
            content_type=JSON,
            content=content,
            alert_id=said.alert_id,
        )
        for channel, delivery_id in ids.items()
    ]


def deliver_reply(
    keyring: Keyring, reply: ClinicianReply, site: Site | None, *, is_fhir: bool, topics_enabled: bool
) -> list[NewDelivery]:
    """A department is answered in kind, as its last message of the visit came, if it takes replies that way."""
    contents = [(ChannelName.TOPIC, JSON, msgspec.json.encode(reply))] if topics_enabled else []
    if site is not None and site.reply_url and (is_fhir or not site.reply_host):
        contents.append((ChannelName.FHIR_REPLY, FHIR_JSON, _write_bundle(keyring, reply, site.reply_url)))
    elif site is not None and site.reply_host:
        contents.append((ChannelName.HL7V2_REPLY, HL7V2, _write_oru(keyring, reply)))
    return [
        NewDelivery(
            id=keyring.derive_id("delivery", channel, reply.reply_id),
            channel=channel,
            owner=organisation_owner(reply.organisation),
            event_type=REPLY_GIVEN,
            content_type=content_type,
            content=content,
            reply_id=reply.reply_id,
        )
        for channel, content_type, content in contents
    ]


def _write_oru(keyring: Keyring, reply: ClinicianReply) -> bytes:
    control_id = keyring.derive_id("reply-control-id", reply.reply_id)[:20].upper()
    return build_reply(
        reply,
        sending_application=BROKER_APPLICATION,
        sending_facility=BROKER_FACILITY,
        control_id=control_id,
        at=reply.replied_at,
    )


def _write_bundle(keyring: Keyring, reply: ClinicianReply, endpoint: str) -> bytes:
    bundle_id, header_id = (
        str(UUID(keyring.derive_id(kind, reply.reply_id), version=5))
        for kind in ("reply-bundle", "reply-message-header")
    )
    return build_reply_bundle(
        reply,
        bundle_id=bundle_id,
        header_id=header_id,
        application=BROKER_APPLICATION,
        endpoint=endpoint,
        at=reply.replied_at,
    )
