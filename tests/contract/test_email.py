"""What is particular to the e-mail."""

from __future__ import annotations

import ssl

import pytest

from adapters.smtp import SUBJECT, EmailChannel, EmailOptions
from mock_nhs.mail_server import MailServer
from schemas.delivery import MailTls, Outcome, OutcomeClass
from tests.certificates import Certificate
from tests.contract.channel_sides import HOST, NUDGE, School, open_email, parcel


async def mail(server: MailServer, address: str) -> Outcome:
    channel = open_email(server)
    try:
        return await channel.send(parcel(address, NUDGE, content_type="text/plain"))
    finally:
        await channel.close()


@pytest.mark.parametrize("tls", [MailTls.STARTTLS, MailTls.IMPLICIT])
async def test_an_email_goes_encrypted_to_one_recipient_under_the_id_of_its_delivery(
    certificates: tuple[Certificate, Certificate], tls: MailTls
) -> None:
    own, strange = (ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) for _ in certificates)
    trusted = ssl.create_default_context(cafile=certificates[0].certificate_file)
    outcomes = []
    kept = []
    for context, certificate in zip((own, strange), certificates, strict=True):
        context.load_cert_chain(certificate.certificate_file, certificate.key_file)
        server = MailServer(tls=context, is_implicit=tls is MailTls.IMPLICIT, password="sesame")
        await server.start()
        for password in ("wrong", "sesame"):
            channel = EmailChannel(
                EmailOptions(
                    host="localhost",
                    port=server.port,
                    sender="broker@example.org",
                    tls=tls,
                    username="broker",
                    password=password,
                    timeout_s=2.0,
                ),
                tls=trusted,
            )
            outcomes.append((await channel.send(parcel(School.address, NUDGE))).code)
            await channel.close()
        await server.close()
        kept += server.kept
    assert outcomes == ["sign_in_refused", "accepted", "tls_failed", "tls_failed"]
    [one] = kept
    assert (one.was_encrypted, one.username, one.sender) == (True, "broker", "broker@example.org")
    assert one.recipients == (School.address,) == (one.message["To"],)
    assert (one.message["Subject"], one.message["Message-ID"]) == (SUBJECT, "<key-0001@example.org>")
    assert one.message["Auto-Submitted"] == "auto-generated"


async def test_a_mail_server_without_tls_is_told_nothing() -> None:
    server = MailServer()
    await server.start()
    channel = EmailChannel(EmailOptions(host=HOST, port=server.port, sender="broker@example.org"))
    assert (await channel.send(parcel(School.address, NUDGE))).outcome is OutcomeClass.TRANSIENT
    await channel.close()
    await server.close()
    assert server.kept == []


@pytest.mark.parametrize(
    ("address", "reply", "expected"),
    [
        (
            "a@example.org\r\nBcc: b@example.org",
            "250 known",
            Outcome(outcome=OutcomeClass.PERMANENT, code="bad_address"),
        ),
        ("a@example.org, b@example.org", "250 known", Outcome(outcome=OutcomeClass.PERMANENT, code="bad_address")),
        (School.address, "550 nobody", Outcome(outcome=OutcomeClass.PERMANENT, code="smtp_550")),
        (School.address, "450 full", Outcome(outcome=OutcomeClass.TRANSIENT, code="smtp_450")),
    ],
)
async def test_a_mailbox_that_takes_nothing_is_told_by_its_class(address: str, reply: str, expected: Outcome) -> None:
    server = MailServer()
    await server.start()
    server.reply_to_recipient = reply
    assert await mail(server, address) == expected
    await server.close()
    assert server.kept == []
