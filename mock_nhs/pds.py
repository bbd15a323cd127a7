"""The Personal Demographics Service, as an application sees it: the FHIR API, and the token endpoint before it.

``GET /Patient/{NHS number}`` and the search ``GET /Patient`` below ``/personal-demographics/FHIR/R4`` answer as the
published specification says (get-patient, search-patient in application-restricted mode): a superseded number is
answered with the record that took its place, a restricted record without address, telephone and general practice, an
invalidated one with 404. A search finds one person, nobody, or TOO_MANY_MATCHES. ``POST /oauth2/token`` exchanges a
signed JWT (RS512) for an access token; without applications (``PdsOptions.keys``) none is asked for, as in the sandbox.

As a program: ``python -m mock_nhs.pds --port 8083 --people DIR --record FILE``, with ``--superseded OLD:NEW``,
``--restricted NUMBER``, ``--invalidated NUMBER`` and ``--application``, each as often as wished. Its journal has a line
for every request: ``retrieved``, ``searched``, ``token_given``, ``refused`` with the code, ``failed_on_purpose`` with
the fault.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import json
import secrets
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from fnmatch import fnmatchcase
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, parse_qsl, unquote
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from mock_nhs.faults import Faults, add_fault_argument, read_faults
from mock_nhs.http_listener import Answer, HttpServer, Request
from mock_nhs.journal import Journal
from mock_nhs.people import Person, read_people
from schemas.identifiers import NhsNumber, parse_nhs_number

PATH: Final = "/personal-demographics/FHIR/R4"
TOKEN_PATH: Final = "/oauth2/token"  # noqa: S105  # a path
_ASSERTION: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ASSERTION_S_MAX: Final = 300
_ERROR_SYSTEM: Final = "https://fhir.nhs.uk/R4/CodeSystem/Spine-ErrorOrWarningCode"
_GENDERS: Final = {"1": "male", "2": "female"}
_REFUSALS: Final = (
    ("pds.refuse_408", HTTPStatus.REQUEST_TIMEOUT, "UNABLE_TO_CALL_SERVICE"),
    ("pds.429_retry_after", HTTPStatus.TOO_MANY_REQUESTS, "TOO_MANY_REQUESTS"),
    ("pds.refuse_503", HTTPStatus.SERVICE_UNAVAILABLE, ""),
    ("pds.forget_tokens", HTTPStatus.UNAUTHORIZED, "ACCESS_DENIED"),
)
_SEARCHED: Final = frozenset(
    {
        *("family", "given", "gender", "birthdate", "death-date", "address-postalcode", "address-postcode"),
        *("general-practitioner", "phone", "email", "_fuzzy-match", "_exact-match", "_history", "_max-results"),
    }
)


@dataclass(frozen=True, kw_only=True)
class PdsRecord:
    """One person's record."""

    nhs_number: NhsNumber
    family: str
    given: tuple[str, ...] = ()
    birth_date: date | None = None
    gender: str = "unknown"
    postcode: str = ""
    former_family: str = ""
    """The surname before this one; a search with history finds it."""
    confidentiality: str = "U"
    """U unrestricted, R restricted, V very restricted (HL7 v3 Confidentiality)."""
    is_invalidated: bool = False
    superseded_by: NhsNumber | None = None

    @property
    def is_restricted(self) -> bool:
        """Whether nobody may learn where the person lives."""
        return self.confidentiality != "U"


@dataclass(frozen=True, kw_only=True)
class PdsOptions:
    """How the service behaves."""

    keys: Mapping[tuple[str, str], RSAPublicKey] = field(default_factory=dict)
    """The public key of every application, by its API key and the key's id."""
    host: str = "127.0.0.1"
    port: int = 0
    idle_s: float = 60.0
    token_s: int = 599
    retry_after_s: int = 5
    slow_pause_s: float = 0.5


class Refused(Exception):
    """A request that is not answered: its status, and the code of its error."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


def make_record(person: Person) -> PdsRecord:
    """Somebody of the town, as PDS knows them."""
    return PdsRecord(
        nhs_number=person.nhs_number,
        family=person.family_name,
        given=tuple(person.given_name.split()),
        birth_date=person.birth_date,
        gender=_GENDERS.get(person.sex, "unknown"),
        postcode=person.postcode,
    )


def compose_patient(record: PdsRecord) -> dict[str, Any]:
    """The record as a FHIR Patient; of a restricted one, nothing that tells where the person is."""
    security = {
        "system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality",
        "code": record.confidentiality,
        "display": "restricted" if record.is_restricted else "unrestricted",
    }
    names = [{"id": "1", "use": "usual", "family": record.family, "given": list(record.given)}]
    if record.former_family:
        names.append({"id": "2", "use": "old", "family": record.former_family, "given": list(record.given)})
    patient: dict[str, Any] = {
        "resourceType": "Patient",
        "id": record.nhs_number,
        "identifier": [{"system": "https://fhir.nhs.uk/Id/nhs-number", "value": record.nhs_number}],
        "meta": {"versionId": "2", "security": [security]},
        "name": names,
        "gender": record.gender,
    }
    if record.birth_date is not None:
        patient["birthDate"] = record.birth_date.isoformat()
    if record.postcode and not record.is_restricted:
        patient["address"] = [{"id": "1", "use": "home", "postalCode": record.postcode}]
    return patient


def compose_outcome(code: str) -> dict[str, Any]:
    """An OperationOutcome of one error."""
    coding = {"system": _ERROR_SYSTEM, "version": "1", "code": code, "display": code.replace("_", " ").capitalize()}
    return {
        "resourceType": "OperationOutcome",
        "issue": [{"severity": "error", "code": "processing", "details": {"coding": [coding]}}],
    }


class Register:
    """All records, and how they are found."""

    def __init__(self, records: Iterable[PdsRecord]) -> None:
        self._records = {record.nhs_number: record for record in records}

    def put(self, record: PdsRecord) -> None:
        """Add a record, or replace the one of this number."""
        self._records[record.nhs_number] = record

    def retrieve(self, text: str) -> PdsRecord:
        """The record of a number, or the one that took its place. Raises Refused."""
        number = parse_nhs_number(text)
        if number is None or number != text:
            raise Refused(HTTPStatus.BAD_REQUEST, "INVALID_RESOURCE_ID")
        record = self._records.get(number)
        if record is None:
            raise Refused(HTTPStatus.NOT_FOUND, "RESOURCE_NOT_FOUND")
        if record.superseded_by is not None:
            return self.retrieve(record.superseded_by)
        if record.is_invalidated:
            raise Refused(HTTPStatus.NOT_FOUND, "INVALIDATED_RESOURCE")
        return record

    def search(self, query: str) -> list[PdsRecord]:
        """Everybody who fits a search. Raises Refused."""
        asked = parse_qsl(query, keep_blank_values=True)
        given = dict(asked)
        if not given:
            raise Refused(HTTPStatus.BAD_REQUEST, "UNSUPPORTED_SERVICE")
        if not _SEARCHED.issuperset(given):
            raise Refused(HTTPStatus.BAD_REQUEST, "ADDITIONAL_PROPERTIES")
        if given.get("_max-results", "1") != "1":
            raise Refused(HTTPStatus.FORBIDDEN, "INVALID_VALUE")
        if "family" not in given or "birthdate" not in given:
            raise Refused(HTTPStatus.BAD_REQUEST, "INVALID_SEARCH_DATA")
        born = _read_birth_date(given["birthdate"])
        names = [value for name, value in asked if name == "given"]
        postcode = given.get("address-postalcode", given.get("address-postcode"))
        found = [
            self.retrieve(record.nhs_number)
            for record in self._records.values()
            if record.birth_date == born
            and not (record.is_invalidated and record.superseded_by is None)
            and _names_fit(record, given["family"], names, with_history=given.get("_history") == "true")
            and (postcode is None or _fits(postcode.replace(" ", ""), record.postcode.replace(" ", "")))
        ]
        return [
            record
            for record in dict.fromkeys(found)
            if not (record.is_restricted and (postcode is not None or "general-practitioner" in given))
        ]


def _read_birth_date(text: str) -> date:
    try:
        return date.fromisoformat(text.removeprefix("eq"))
    except ValueError:
        raise Refused(HTTPStatus.BAD_REQUEST, "INVALID_VALUE") from None


def _names_fit(record: PdsRecord, family: str, given: Sequence[str], *, with_history: bool) -> bool:
    families = [record.family, *([record.former_family] if with_history and record.former_family else [])]
    if not any(_fits(family, each) for each in families):
        return False
    return all(any(_fits(wanted, each) for each in record.given) for wanted in given)


def _fits(pattern: str, text: str) -> bool:
    return fnmatchcase(text.casefold(), pattern.casefold().replace("[", "[[]").replace("?", "[?]"))


class TokenDesk:
    """Gives access tokens to the applications it knows, and knows them again."""

    def __init__(self, options: PdsOptions, clock: Callable[[], datetime]) -> None:
        self._options = options
        self._clock = clock
        self._tokens: dict[str, float] = {}
        self._seen: set[str] = set()
        self.url = ""
        """The endpoint's own address, which an assertion has to name as its audience."""

    def forget(self) -> None:
        """Let every access token expire."""
        self._tokens.clear()

    def exchange(self, body: bytes) -> dict[str, str]:
        """An access token for a signed assertion. Raises Refused."""
        form = {name: values[-1] for name, values in parse_qs(body.decode("latin-1")).items()}
        if form.get("grant_type") != "client_credentials" or form.get("client_assertion_type") != _ASSERTION:
            raise Refused(HTTPStatus.BAD_REQUEST, "invalid_request")
        self._verify(form.get("client_assertion", ""))
        token = secrets.token_urlsafe(21)
        self._tokens[token] = self._clock().timestamp() + self._options.token_s
        return {"access_token": token, "expires_in": str(self._options.token_s), "token_type": "Bearer"}

    def check(self, header: str) -> None:
        """Let a request with a good token pass. Raises Refused."""
        if not self._options.keys:
            return
        kind, _, token = header.partition(" ")
        if kind != "Bearer" or self._tokens.get(token, 0.0) <= self._clock().timestamp():
            raise Refused(HTTPStatus.UNAUTHORIZED, "ACCESS_DENIED")

    def _verify(self, assertion: str) -> None:
        parts = assertion.split(".")
        try:
            header, claims = (json.loads(_decode(part)) for part in parts[:2])
            signature = _decode(parts[2])
            key = self._options.keys[(claims["iss"], header["kid"])]
            key.verify(signature, f"{parts[0]}.{parts[1]}".encode(), PKCS1v15(), hashes.SHA512())
            is_ours = header["alg"] == "RS512" and claims["sub"] == claims["iss"] and claims["aud"] == self.url
            left_s = claims["exp"] - self._clock().timestamp()
            jti = str(UUID(claims["jti"]))
        except (ValueError, KeyError, TypeError, IndexError, binascii.Error, InvalidSignature):
            raise Refused(HTTPStatus.UNAUTHORIZED, "invalid_client") from None
        if not is_ours or not 0 < left_s <= _ASSERTION_S_MAX or jti in self._seen:
            raise Refused(HTTPStatus.BAD_REQUEST, "invalid_request")
        self._seen.add(jti)


def _decode(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


class Pds(HttpServer):
    """The HTTP server. ``requests`` counts the questions that were answered or refused since it was started."""

    path = PATH

    def __init__(
        self,
        options: PdsOptions,
        records: Iterable[PdsRecord],
        record: Path,
        faults: Faults | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """``records`` are the people, ``record`` the journal's file."""
        super().__init__(options.host, options.port, idle_s=options.idle_s, faults=faults or Faults())
        self._options = options
        self.register = Register(records)
        self._journal = Journal(record)
        self._clock = clock
        self._desk = TokenDesk(options, clock)
        self.requests = 0
        self.tokens = 0

    @property
    def token_url(self) -> str:
        """The token endpoint's address, after ``start``."""
        return f"{self.origin}{TOKEN_PATH}"

    async def start(self) -> int:
        """Listen, and return the port."""
        port = await super().start()
        self._desk.url = self.token_url
        return port

    async def stop(self) -> None:
        """Close every connection."""
        await super().stop()
        self._journal.close()

    async def _answer_token(self, request: Request) -> tuple[bytes, bool]:
        """The bytes to write, and whether the connection closes after them."""
        if self._fails("pds.token.slow"):
            await asyncio.sleep(self._options.slow_pause_s)
        if self._fails("pds.token.refuse_503"):
            return Answer(status=HTTPStatus.SERVICE_UNAVAILABLE).as_bytes(), False
        try:
            if self._fails("pds.token.refuse_401"):
                raise Refused(HTTPStatus.UNAUTHORIZED, "invalid_client")
            content = self._desk.exchange(request.body)
        except Refused as refused:
            self._note("refused", status=int(refused.status), code=refused.code)
            return Answer(status=refused.status, content={"error": refused.code}).as_bytes(), False
        self.tokens += 1
        self._note("token_given")
        return Answer(status=HTTPStatus.OK, content=content).as_bytes(), False

    async def _answer(self, request: Request) -> tuple[bytes, bool]:
        """The bytes to write, and whether the connection closes after them."""
        if request.path == TOKEN_PATH:
            return await self._answer_token(request)
        self.requests += 1
        if self._fails("pds.drop_after_read"):
            return b"", True
        for fault, status, code in _REFUSALS:
            if self._fails(fault):
                return self._refuse_on_purpose(status, code).as_bytes(), False
        if self._fails("pds.not_json"):
            return b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<html>\r\n\r", False
        if self._fails("pds.wrong_shape"):
            return _compose(HTTPStatus.OK, {"resourceType": "Patient", "id": 7, "name": "TESTER"}), False
        if self._fails("pds.slow"):
            await asyncio.sleep(self._options.slow_pause_s)
        try:
            answer = _compose(HTTPStatus.OK, self._find(request), request)
        except Refused as refused:
            self._note("refused", status=int(refused.status), code=refused.code)
            answer = _compose(refused.status, compose_outcome(refused.code), request)
        if self._fails("pds.half_response"):
            return answer[: len(answer) - 20], True
        return answer, False

    def _find(self, request: Request) -> dict[str, Any]:
        """The content of a good answer. Raises Refused."""
        if not request.path.startswith(f"{PATH}/Patient") or request.method != "GET":
            raise Refused(HTTPStatus.NOT_FOUND, "UNSUPPORTED_SERVICE")
        self._desk.check(request.headers.get("authorization", ""))
        if not request.headers.get("x-request-id"):
            raise Refused(HTTPStatus.BAD_REQUEST, "MISSING_VALUE")
        rest = request.path.removeprefix(f"{PATH}/Patient")
        if rest:
            patient = compose_patient(self.register.retrieve(unquote(rest.removeprefix("/"))))
            self._note("retrieved")
            return patient
        found = self.register.search(request.query)
        self._note("searched", found=len(found))
        if len(found) > 1:
            return compose_outcome("TOO_MANY_MATCHES")
        entries = [{"resource": compose_patient(record), "search": {"score": 1}} for record in found]
        return {"resourceType": "Bundle", "type": "searchset", "total": len(entries), "entry": entries}

    def _refuse_on_purpose(self, status: int, code: str) -> Answer:
        if status == HTTPStatus.UNAUTHORIZED:
            self._desk.forget()
        headers = {}
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            headers["Retry-After"] = str(self._options.retry_after_s)
        return Answer(status=status, content=compose_outcome(code) if code else {}, headers=headers)

    def _refuse_unread(self, status: int) -> Answer:
        return Answer(status=status, headers={"Connection": "close"})

    def _note(self, what: str, **facts: str | int) -> None:
        self._journal.write(what, at=self._clock().isoformat(), **facts)


def _compose(status: int, content: Mapping[str, Any], request: Request | None = None) -> bytes:
    headers = {"Content-Type": "application/fhir+json"}
    if request is not None:
        headers["X-Request-ID"] = request.headers.get("x-request-id", "")
    return Answer(status=status, content=content, headers=headers).as_bytes()


def mark_records(
    records: Iterable[PdsRecord],
    *,
    superseded: Mapping[str, str] | None = None,
    restricted: Iterable[str] = (),
    invalidated: Iterable[str] = (),
) -> list[PdsRecord]:
    """The records with these numbers superseded (old: new), restricted and invalidated."""
    replaced, hidden, dead = superseded or {}, set(restricted), set(invalidated)
    return [
        replace(
            record,
            superseded_by=parse_nhs_number(replaced.get(record.nhs_number, "")),
            confidentiality="R" if record.nhs_number in hidden else record.confidentiality,
            is_invalidated=record.nhs_number in dead,
        )
        for record in records
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="mock_nhs.pds", description="The Personal Demographics Service.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="a free one if left out")
    parser.add_argument("--people", type=Path, required=True, metavar="DIR", help="what mock_nhs.town wrote")
    parser.add_argument("--record", type=Path, required=True, metavar="FILE", help="the journal, JSON lines")
    parser.add_argument("--superseded", action="append", default=[], metavar="OLD:NEW")
    parser.add_argument("--restricted", action="append", default=[], metavar="NUMBER")
    parser.add_argument("--invalidated", action="append", default=[], metavar="NUMBER")
    parser.add_argument(
        "--application", action="append", default=[], metavar="API_KEY:KEY_ID:FILE", help="and its public key, PEM"
    )
    parser.add_argument("--seed", type=int, default=1, help="of faults armed with a share")
    add_fault_argument(parser)
    asyncio.run(_run(parser.parse_args(arguments)))


async def _run(given: argparse.Namespace) -> None:
    faults = read_faults(given.fault, seed=given.seed)
    records = mark_records(
        map(make_record, read_people(given.people / "people.csv")),
        superseded=dict(pair.split(":", 1) for pair in given.superseded),
        restricted=given.restricted,
        invalidated=given.invalidated,
    )
    options = PdsOptions(host=given.host, port=given.port, keys=dict(map(_read_application, given.application)))
    service = Pds(options, records, given.record, faults)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    print(f"listening {given.host} {await service.start()}", flush=True)
    await stopping.wait()
    await service.stop()
    print(json.dumps({"requests": service.requests, "faults": +faults.fired}), flush=True)


def _read_application(text: str) -> tuple[tuple[str, str], RSAPublicKey]:
    api_key, key_id, file = text.split(":", 2)
    key = load_pem_public_key(Path(file).read_bytes())
    if not isinstance(key, RSAPublicKey):
        raise SystemExit("an application's key is an RSA key")
    return (api_key, key_id), key


if __name__ == "__main__":
    main()
