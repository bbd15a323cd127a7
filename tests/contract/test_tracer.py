"""Tracing against a Personal Demographics Service on loopback: what a tracer answers, and what it never lets out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from msgspec.structs import replace

from adapters.access_token import AccessToken, SignedJwtOptions, SignedJwtTokens
from adapters.exchange import Exchange, ExchangeOptions
from adapters.pds import PdsOptions, PdsTracer
from broker.jobs.tracing import trace_person
from broker.ports import Tracer
from mock_nhs.faults import Faults
from mock_nhs.journal import read_journal
from mock_nhs.pds import Pds, PdsRecord, make_record, mark_records
from mock_nhs.pds import PdsOptions as ServiceOptions
from mock_nhs.town import build_town
from schemas.attendance import PersonName
from schemas.identifiers import NhsNumber
from schemas.trace import (
    Answer,
    ByDetails,
    ByNumber,
    GivenRung,
    Invalid,
    Invalidated,
    Mismatch,
    NoPerson,
    NotFound,
    RecordedName,
    Refused,
    Restricted,
    SeveralPersons,
    Superseded,
    Traceable,
    TracedPerson,
    TraceField,
    Unavailable,
    Verified,
)
from tests.factories import make_nhs_number

LIMITS = ExchangeOptions(allow_plain_http=True)
API_KEY, KEY_ID = "synthetic-api-key", "test-1"
KEY = generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = generate_private_key(public_exponent=65537, key_size=2048)
BORN = date(2015, 3, 2)
PLAIN, OLD, HIDDEN, DEAD, TWIN, NOBODY, GONE = (make_nhs_number(serial) for serial in range(1, 8))
CASEY = PdsRecord(
    nhs_number=PLAIN,
    family="Planted-Surname",
    given=("Casey", "Anne"),
    birth_date=BORN,
    postcode="ZZ99 3CZ",
    former_family="Formersurname",
)
RECORDS = [
    CASEY,
    PdsRecord(nhs_number=OLD, family="Planted-Surname", birth_date=BORN, superseded_by=PLAIN),
    PdsRecord(nhs_number=HIDDEN, family="Hidden", given=("Robin",), birth_date=BORN, confidentiality="R"),
    PdsRecord(nhs_number=DEAD, family="Dead", given=("Robin",), birth_date=BORN, is_invalidated=True),
    PdsRecord(nhs_number=TWIN, family="Twin", given=("Alex",), birth_date=BORN, postcode="ZZ99 3CZ"),
    PdsRecord(nhs_number=GONE, family="Twin", given=("Alexis",), birth_date=BORN, postcode="ZZ99 3CZ"),
]
CASEY_FOUND = TracedPerson(
    nhs_number=PLAIN,
    names=(RecordedName(family="Planted-Surname", given=("Casey", "Anne")),),
    birth_date=BORN,
)
SECRETS = (
    "Planted",
    "Formersurname",
    "Casey",
    "CASEY",
    "Cas*",
    PLAIN,
    OLD,
    "2015-03-02",
    "ZZ99",
    "ZZ*",
    "synthetic-api",
)


@dataclass
class TestClock:
    """Stands still until it is moved."""

    __test__ = False
    at: datetime = datetime(2026, 7, 14, 20, 15, 3, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at


@dataclass
class Side:
    """A tracer, and the service it asks."""

    tracer: Tracer
    tokens: SignedJwtTokens
    service: Pds
    faults: Faults
    clock: TestClock
    journal: Path


def pem(key: RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@asynccontextmanager
async def open_side(directory: Path, limits: ExchangeOptions = LIMITS, key: RSAPrivateKey = KEY) -> AsyncIterator[Side]:
    clock, faults = TestClock(), Faults()
    options = ServiceOptions(keys={(API_KEY, KEY_ID): KEY.public_key()}, slow_pause_s=5)
    service = Pds(options, RECORDS, directory / "pds.jsonl", faults, clock.now)
    await service.start()
    exchange = Exchange(limits, now=clock.now)
    tokens = SignedJwtTokens(
        SignedJwtOptions(token_url=service.token_url, key_id=KEY_ID),
        exchange,
        api_key=API_KEY,
        private_key=pem(key),
        now=clock.now,
    )
    tracer = PdsTracer(PdsOptions(base_url=service.url), exchange, tokens, now=clock.now)
    try:
        yield Side(tracer, tokens, service, faults, clock, directory / "pds.jsonl")
    finally:
        await tracer.close()
        await service.stop()


@pytest.fixture
async def side(tmp_path: Path) -> AsyncIterator[Side]:
    async with open_side(tmp_path) as opened:
        yield opened


def by_details(family: str, *given: str, postcode: str | None = None) -> ByDetails:
    return ByDetails(family=family, given=given, birth_date=BORN, postcode=postcode)


# What is answered


@pytest.mark.parametrize(
    ("number", "answer"),
    [
        (PLAIN, CASEY_FOUND),
        (OLD, CASEY_FOUND),
        (DEAD, Invalid()),
        (NOBODY, NoPerson()),
        (NhsNumber("1234567890"), Refused(code="http_400")),
    ],
)
async def test_a_number_is_answered_with_its_person_or_why_there_is_none(
    side: Side, number: NhsNumber, answer: Answer
) -> None:
    assert await side.tracer.ask(ByNumber(nhs_number=number)) == answer


@pytest.mark.parametrize("confidentiality", ["R", "V", "a label of tomorrow"])
async def test_a_restricted_person_is_marked(side: Side, confidentiality: str) -> None:
    side.service.register.put(PdsRecord(nhs_number=HIDDEN, family="Hidden", confidentiality=confidentiality))
    answer = await side.tracer.ask(ByNumber(nhs_number=HIDDEN))
    assert isinstance(answer, TracedPerson)
    assert answer.is_restricted


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (by_details("Planted-Surname", "Casey"), CASEY_FOUND),
        (by_details("Planted-Surname", "Casey", "Anne"), CASEY_FOUND),
        (by_details("Planted-Surname", "Cas*", postcode="ZZ*"), CASEY_FOUND),
        (by_details("Formersurname", "Casey"), CASEY_FOUND),
        (by_details("Planted-Surname", "Robin"), NoPerson()),
        (by_details("O'Other & Sons=+", "Zoë"), NoPerson()),
        (by_details("Twin", "Ale*"), SeveralPersons()),
        (by_details("Dead", "Robin"), NoPerson()),
        (by_details("Hidden", "Robin", postcode="ZZ*"), NoPerson()),
        (by_details("x" * 70_000), Refused(code="question_too_long")),
    ],
)
async def test_a_search_finds_one_person_nobody_or_several(side: Side, question: ByDetails, answer: Answer) -> None:
    assert await side.tracer.ask(question) == answer


@pytest.mark.parametrize(
    ("number", "name", "finding"),
    [
        (PLAIN, PersonName("PLANTED-SURNAME", "CASEY"), Verified(rung=GivenRung.FIRST)),
        (OLD, PersonName("Planted Surname", "Casey Anne"), Superseded(replacement=PLAIN)),
        (HIDDEN, PersonName("Hidden", "Robin"), Restricted()),
        (DEAD, PersonName("Dead", "Robin"), Invalidated()),
        (
            TWIN,
            PersonName("Planted-Surname", "Casey"),
            Mismatch(differs=(TraceField.FAMILY, TraceField.GIVEN), suggestion=PLAIN),
        ),
        (NOBODY, PersonName("Planted-Surname", "Casey"), NotFound(suggestion=PLAIN)),
        (None, PersonName("Planted-Surname", "Casandra"), NotFound(suggestion=PLAIN)),
        (None, PersonName("Hidden", "Robin"), NotFound()),
        (None, PersonName("Twin", "Ale"), NotFound(is_ambiguous=True)),
        (None, PersonName("Formersurname", "Casey"), NotFound(suggestion=PLAIN)),
    ],
)
async def test_a_trace_says_what_is_wrong_with_an_entry(
    side: Side, number: NhsNumber | None, name: PersonName, finding: object
) -> None:
    listed = Traceable(nhs_number=number, name=name, birth_date=BORN, postcode="ZZ99 3CZ")
    assert await trace_person(side.tracer, listed) == finding


async def test_a_whole_town_is_verified(tmp_path: Path) -> None:
    people = build_town(1, on=date(2026, 11, 23), people=60, listed=10, near_twins=3).people
    merged, replaced = people[0].nhs_number, people[1].nhs_number
    records = mark_records(map(make_record, people), superseded={merged: replaced})
    async with open_side(tmp_path) as side:
        for record in records:
            side.service.register.put(record)
        found = {
            person.nhs_number: await trace_person(
                side.tracer,
                Traceable(
                    nhs_number=person.nhs_number,
                    name=PersonName(person.family_name, person.given_name),
                    birth_date=person.birth_date,
                ),
            )
            for person in people
        }
        assert side.service.tokens == 1
    superseded = found.pop(merged)
    assert isinstance(superseded, Superseded)
    assert superseded.replacement == replaced
    assert set(map(type, found.values())) == {Verified}


# What goes wrong


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        ("pds.refuse_408", Unavailable(code="http_408")),
        ("pds.429_retry_after", Unavailable(code="http_429", retry_after_s=5.0)),
        ("pds.refuse_503", Unavailable(code="http_503")),
        ("pds.drop_after_read", Unavailable(code="connection_lost")),
        ("pds.half_response", Unavailable(code="connection_lost")),
        ("pds.not_json", Unavailable(code="not_understood")),
        ("pds.wrong_shape", Unavailable(code="not_understood")),
        ("pds.token.refuse_503", Unavailable(code="token_http_503")),
        ("pds.token.refuse_401", Refused(code="token_http_401")),
    ],
)
async def test_a_fault_is_an_answer_and_the_next_question_is_answered(side: Side, fault: str, answer: Answer) -> None:
    side.faults.arm_times(fault, 1)
    assert await side.tracer.ask(ByNumber(nhs_number=PLAIN)) == answer
    side.clock.at += timedelta(seconds=6)
    assert await side.tracer.ask(ByNumber(nhs_number=PLAIN)) == CASEY_FOUND


@pytest.mark.parametrize(
    ("fault", "code"), [("pds.slow", "answer_timeout"), ("pds.token.slow", "token_answer_timeout")]
)
@pytest.mark.parametrize("limits", [replace(LIMITS, read_timeout_s=0.7), replace(LIMITS, total_timeout_s=0.7)])
async def test_a_slow_answer_is_given_up(tmp_path: Path, fault: str, code: str, limits: ExchangeOptions) -> None:
    async with open_side(tmp_path, limits) as side:
        side.faults.arm_times(fault, 1)
        assert await side.tracer.ask(ByNumber(nhs_number=PLAIN)) == Unavailable(code=code)


async def test_an_answer_longer_than_the_limit_is_not_read(tmp_path: Path) -> None:
    async with open_side(tmp_path, replace(LIMITS, response_bytes_max=300)) as side:
        assert await side.tracer.ask(ByNumber(nhs_number=PLAIN)) == Unavailable(code="answer_too_long")


async def test_a_service_that_is_gone_is_unavailable(side: Side) -> None:
    await side.service.stop()
    assert await side.tracer.ask(ByNumber(nhs_number=PLAIN)) == Unavailable(code="token_connect_failed")


async def test_no_question_is_asked_while_the_service_wants_a_pause(side: Side) -> None:
    side.faults.arm_times("pds.429_retry_after", 1)
    await side.tracer.ask(ByNumber(nhs_number=PLAIN))
    asked = side.service.requests
    side.clock.at += timedelta(seconds=3)
    assert await side.tracer.ask(ByNumber(nhs_number=PLAIN)) == Unavailable(code="pausing", retry_after_s=2.0)
    assert side.service.requests == asked
    side.clock.at += timedelta(seconds=2)
    assert await side.tracer.ask(ByNumber(nhs_number=PLAIN)) == CASEY_FOUND


async def test_a_wrong_address_never_means_that_a_child_is_unknown(side: Side) -> None:
    exchange = Exchange(LIMITS, now=side.clock.now)
    wrong = PdsTracer(
        PdsOptions(base_url=side.service.url.replace("R4", "R5")), exchange, side.tokens, now=side.clock.now
    )
    assert await wrong.ask(ByNumber(nhs_number=PLAIN)) == Refused(code="http_404")
    await wrong.close()


async def test_nothing_is_asked_over_a_plain_connection_unless_that_is_allowed(side: Side) -> None:
    exchange = Exchange(ExchangeOptions(), now=side.clock.now)
    plain = PdsTracer(PdsOptions(base_url=side.service.url), exchange, None, now=side.clock.now)
    assert await plain.ask(ByNumber(nhs_number=PLAIN)) == Refused(code="plain_http")
    await plain.close()
    assert side.service.requests == 0


# Access tokens


async def test_an_access_token_is_kept_until_shortly_before_it_expires(side: Side) -> None:
    for seconds, tokens in ((0, 1), (568, 1), (2, 2), (568, 2)):
        side.clock.at += timedelta(seconds=seconds)
        assert await side.tracer.ask(ByNumber(nhs_number=PLAIN)) == CASEY_FOUND
        assert side.service.tokens == tokens


async def test_many_questions_at_once_fetch_one_access_token(side: Side) -> None:
    answers = await asyncio.gather(*(side.tracer.ask(ByNumber(nhs_number=PLAIN)) for _ in range(12)))
    assert set(answers) == {CASEY_FOUND}
    assert side.service.tokens == 1


async def test_an_access_token_that_expired_early_is_fetched_anew_once(side: Side) -> None:
    await side.tracer.ask(ByNumber(nhs_number=PLAIN))
    side.faults.arm_times("pds.forget_tokens", 1)
    assert await side.tracer.ask(ByNumber(nhs_number=PLAIN)) == CASEY_FOUND
    side.faults.arm_times("pds.forget_tokens", 2)
    asked = side.service.requests
    assert await side.tracer.ask(ByNumber(nhs_number=PLAIN)) == Refused(code="http_401")
    assert side.service.requests == asked + 2


async def test_an_assertion_signed_with_another_key_is_refused(tmp_path: Path) -> None:
    async with open_side(tmp_path, key=OTHER_KEY) as side:
        assert await side.tracer.ask(ByNumber(nhs_number=PLAIN)) == Refused(code="token_http_401")
        assert side.service.requests == 0


async def test_a_clock_that_runs_behind_the_services_is_refused_and_nothing_is_asked(side: Side) -> None:
    behind = SignedJwtTokens(
        SignedJwtOptions(token_url=side.service.token_url, key_id=KEY_ID),
        exchange := Exchange(LIMITS, now=side.clock.now),
        api_key=API_KEY,
        private_key=pem(KEY),
        now=lambda: side.clock.now() - timedelta(minutes=5),
    )
    assert await behind.fetch() == Refused(code="token_http_400")
    await exchange.close()


# What must not get out


async def test_nothing_of_a_question_or_an_answer_is_logged(side: Side, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("asyncio").setLevel(logging.DEBUG)
    listed = Traceable(
        nhs_number=OLD, name=PersonName("Planted-Surname", "Casey"), birth_date=BORN, postcode="ZZ99 3CZ"
    )
    assert isinstance(await trace_person(side.tracer, listed), Superseded)
    unnumbered = Traceable(nhs_number=None, name=listed.name, birth_date=BORN, postcode="ZZ99 3CZ")
    assert await trace_person(side.tracer, unnumbered) == NotFound(suggestion=PLAIN)
    side.faults.arm_times("pds.half_response", 1)
    await trace_person(side.tracer, unnumbered)
    token = await side.tokens.fetch()
    assert isinstance(token, AccessToken)
    assert token.secret not in repr(token)
    lines = [f"{record.name} {record.getMessage()} {record.args} {record.exc_text}" for record in caplog.records]
    assert any(line.startswith("httpcore") for line in lines), "the library's own lines are looked at"
    for secret in (*SECRETS, token.secret):
        assert not [line for line in lines if secret in line]


async def test_the_other_side_keeps_what_was_asked_out_of_its_journal_too(side: Side) -> None:
    await side.tracer.ask(by_details("Planted-Surname", "Cas*", postcode="ZZ*"))
    assert [line["what"] for line in read_journal(side.journal)] == ["token_given", "searched"]
    assert not [secret for secret in SECRETS if secret in side.journal.read_text()]
