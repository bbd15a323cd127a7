"""What is particular to the reply by FHIR."""

from __future__ import annotations

import ssl

import pytest

from adapters.fhir_reply import FhirReplyChannel
from adapters.fhir_writer import FHIR_JSON
from adapters.posting import PostingOptions
from mock_nhs.journal import read_journal
from schemas.delivery import Outcome, OutcomeClass
from tests.certificates import Certificate
from tests.contract.channel_sides import (
    HOST,
    NOW,
    REPLY_BUNDLE,
    TOKEN,
    FhirDepartment,
    HttpServer,
    ignore_event,
    open_fhir_reply,
    parcel,
)


async def reply_by_fhir(department: FhirDepartment, *, secret: bytes = TOKEN, key: str = "key-0001") -> Outcome:
    return await department.channel.send(
        parcel(department.address, REPLY_BUNDLE, secret=secret, content_type=FHIR_JSON, idempotency_key=key)
    )


async def test_a_reply_is_posted_as_fhir_under_ids_that_stay_when_it_is_sent_again(
    fhir_department: FhirDepartment,
) -> None:
    fhir_department.faults.arm_times("ed.fhir.drop_after_keep", 1)
    first = await reply_by_fhir(fhir_department)
    again = await reply_by_fhir(fhir_department)
    await reply_by_fhir(fhir_department, key="key-0002")
    assert first == Outcome(outcome=OutcomeClass.AMBIGUOUS, code="connection_lost")
    assert again == Outcome(outcome=OutcomeClass.SENT, code="http_200")
    headers = [request.headers for request in fhir_department.requests]
    assert {each["content-type"] for each in headers} == {"application/fhir+json"}
    assert {each["authorization"] for each in headers} == {f"Bearer {TOKEN.decode()}"}
    for name in ("x-request-id", "x-correlation-id"):
        assert headers[0][name] == headers[1][name] != headers[2][name]
    kept = [line for line in read_journal(fhir_department.record) if line["what"].startswith("reply")]
    assert [line["what"] for line in kept] == ["reply", "reply_repeated", "reply_repeated"]
    assert [line["problems"] for line in kept] == [[], [], []]
    assert kept[0]["wording"] == "No record found; this does not mean the child is safe."


async def test_a_server_that_asks_for_no_token_is_sent_none(fhir_department: FhirDepartment) -> None:
    outcome = await reply_by_fhir(fhir_department, secret=b"")
    assert outcome == Outcome(outcome=OutcomeClass.PERMANENT, code="http_401")
    assert "authorization" not in fhir_department.requests[0].headers


@pytest.mark.parametrize("secret", [b"two words", b"x\r\nx: TESTER", b"\xff\x00", "é".encode()])
async def test_a_token_that_could_not_be_one_never_leaves(fhir_department: FhirDepartment, secret: bytes) -> None:
    outcome = await reply_by_fhir(fhir_department, secret=secret)
    assert outcome == Outcome(outcome=OutcomeClass.PERMANENT, code="bad_credential")
    assert fhir_department.requests == []


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("refuse_400", Outcome(outcome=OutcomeClass.PERMANENT, code="http_400")),
        ("refuse_503", Outcome(outcome=OutcomeClass.TRANSIENT, code="http_503")),
        ("429_retry_after", Outcome(outcome=OutcomeClass.TRANSIENT, code="http_429", retry_after_s=1.0)),
        ("redirect", Outcome(outcome=OutcomeClass.PERMANENT, code="http_307")),
        ("drop_after_read", Outcome(outcome=OutcomeClass.AMBIGUOUS, code="connection_lost")),
        ("half_response", Outcome(outcome=OutcomeClass.AMBIGUOUS, code="connection_lost")),
        ("slow", Outcome(outcome=OutcomeClass.AMBIGUOUS, code="answer_timeout")),
    ],
)
async def test_a_fault_of_a_departments_server_has_its_class_and_is_got_over(
    fhir_department: FhirDepartment, fault: str, expected: Outcome
) -> None:
    fhir_department.faults.arm_times(f"ed.fhir.{fault}", 1)
    assert await reply_by_fhir(fhir_department) == expected
    assert (await reply_by_fhir(fhir_department)).outcome is OutcomeClass.SENT
    lines = list(read_journal(fhir_department.record))
    assert [line["what"] for line in lines].count("reply") == 1
    assert not [line for line in lines if line["what"] == "followed_redirect"]


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("nonsense", "bad_address"),
        ("https://user:secret@example.org/", "bad_address"),
        ("https://2130706433/", "bad_address"),
        ("http://example.org/", "plain_http"),
        ("https://localhost/", "address_refused"),
        ("https://169.254.169.254/latest/meta-data/", "address_refused"),
    ],
)
async def test_a_reply_goes_to_no_address_inside(address: str, code: str) -> None:
    channel = FhirReplyChannel(PostingOptions(), on_event=ignore_event, now=lambda: NOW)
    assert await channel.send(parcel(address, secret=TOKEN)) == Outcome(outcome=OutcomeClass.PERMANENT, code=code)
    await channel.close()


async def test_a_departments_certificate_must_be_known(certificates: tuple[Certificate, Certificate]) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates[0].certificate_file, certificates[0].key_file)
    server = HttpServer()
    await server.start(context)
    channel = open_fhir_reply()
    outcome = await channel.send(parcel(f"https://localhost:{server.port}/", REPLY_BUNDLE, secret=TOKEN))
    assert outcome == Outcome(outcome=OutcomeClass.TRANSIENT, code="tls_failed")
    assert server.requests == []
    await channel.close()
    await server.close()


async def test_what_a_departments_server_answers_is_not_repeated(server: HttpServer) -> None:
    server.status, server.body = "422 Unprocessable", b'{"resourceType":"OperationOutcome","issue":[{"x":"TESTER"}]}'
    channel = open_fhir_reply()
    outcome = await channel.send(parcel(f"http://{HOST}:{server.port}/", REPLY_BUNDLE, secret=TOKEN))
    assert outcome == Outcome(outcome=OutcomeClass.PERMANENT, code="http_422")
    await channel.close()
