"""The Personal Demographics Service's FHIR API, R4: a person by NHS number, or the one person with some details.

Operations get-patient and search-patient in application-restricted mode. What is not needed is not read: no address,
telephone or general practice. Nothing of a question or an answer is in a log line or in the text of an error.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from typing import Final
from uuid import uuid4

import httpx
import msgspec

from adapters.access_token import TRANSIENT_STATUSES, TokenSource
from adapters.exchange import Exchange, NoReply, Reply
from schemas.identifiers import parse_nhs_number
from schemas.trace import (
    Answer,
    ByNumber,
    Invalid,
    NoPerson,
    Question,
    RecordedName,
    Refused,
    SeveralPersons,
    TracedPerson,
    Unavailable,
)

_NOT_UNDERSTOOD: Final = Unavailable(code="not_understood")
_ERROR_CODES: Final[dict[str, Answer]] = {"INVALIDATED_RESOURCE": Invalid(), "RESOURCE_NOT_FOUND": NoPerson()}


class PdsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where the service is, and how it is spared."""

    base_url: str
    """Up to and with ``/personal-demographics/FHIR/R4``."""
    retry_after_default_s: float = 5.0
    """The pause after 429 where the service does not say how long."""


class _Coding(msgspec.Struct, frozen=True):
    code: str = ""


class _Concept(msgspec.Struct, frozen=True):
    coding: tuple[_Coding, ...] = ()


class _Issue(msgspec.Struct, frozen=True):
    details: _Concept = _Concept()


class _Outcome(msgspec.Struct, frozen=True, tag_field="resourceType", tag="OperationOutcome"):
    issue: tuple[_Issue, ...] = ()


class _Meta(msgspec.Struct, frozen=True):
    security: tuple[_Coding, ...] = ()


class _Name(msgspec.Struct, frozen=True):
    family: str = ""
    given: tuple[str, ...] = ()
    use: str = ""


class _Patient(msgspec.Struct, frozen=True, tag_field="resourceType", tag="Patient"):
    id: str
    meta: _Meta = _Meta()
    name: tuple[_Name, ...] = ()
    birthDate: str = ""


class _Entry(msgspec.Struct, frozen=True):
    resource: _Patient


class _Bundle(msgspec.Struct, frozen=True, tag_field="resourceType", tag="Bundle"):
    entry: tuple[_Entry, ...] = ()
    total: int = 0


_Content = _Patient | _Bundle | _Outcome
_READER: Final[msgspec.json.Decoder[_Content]] = msgspec.json.Decoder(_Content)


class PdsTracer:
    """Asks the service, one question at a time or several at once; pauses when it is told to."""

    def __init__(
        self, options: PdsOptions, exchange: Exchange, tokens: TokenSource | None, *, now: Callable[[], datetime]
    ) -> None:
        """Without ``tokens`` no Authorization is sent: the sandbox needs none. The exchange is closed with this."""
        self._options = options
        self._exchange = exchange
        self._tokens = tokens
        self._now = now
        self._patients = httpx.URL(options.base_url.rstrip("/") + "/Patient")
        self._paused_until_s = 0.0

    async def ask(self, question: Question) -> Answer:
        """Ask once; once more with a new access token where the old one was refused (401)."""
        left_s = self._paused_until_s - self._now().timestamp()
        if left_s > 0:
            return Unavailable(code="pausing", retry_after_s=left_s)
        try:
            url = self._address(question)
        except httpx.InvalidURL:
            return Refused(code="question_too_long")
        answer = await self._ask_once(question, url)
        is_refused = isinstance(answer, Refused) and answer.code == "http_401"
        return await self._ask_once(question, url) if is_refused and self._tokens is not None else answer

    async def close(self) -> None:
        """Let go of connections."""
        await self._exchange.close()

    def _address(self, question: Question) -> httpx.URL:
        if isinstance(question, ByNumber):
            return self._patients.copy_with(path=f"{self._patients.path}/{question.nhs_number}")
        # With history, because a family that has moved or married is the commonest mismatch.
        asked: dict[str, str | tuple[str, ...]] = {
            "family": question.family,
            "given": question.given,
            "birthdate": f"eq{question.birth_date.isoformat()}",
            "_history": "true",
        }
        if question.postcode:
            asked["address-postalcode"] = question.postcode
        return self._patients.copy_merge_params(asked)

    async def _ask_once(self, question: Question, url: httpx.URL) -> Answer:
        headers = {"accept": "application/fhir+json", "x-request-id": str(uuid4())}
        token = None if self._tokens is None else await self._tokens.fetch()
        if isinstance(token, Unavailable | Refused):
            return token
        if token is not None:
            headers["authorization"] = f"Bearer {token.secret}"
        try:
            reply = await self._exchange.send("GET", url, headers)
        except NoReply as missing:
            return Refused(code=missing.code) if missing.is_final else Unavailable(code=missing.code)
        if reply.status == 401 and token is not None and self._tokens is not None:
            self._tokens.forget(token)
        return self._settle(question, reply)

    def _settle(self, question: Question, reply: Reply) -> Answer:
        code = f"http_{reply.status}"
        if reply.status >= 500 or reply.status in TRANSIENT_STATUSES:
            return self._pause(code, reply)
        content = _read(reply.body)
        if reply.status == 404 and isinstance(content, _Outcome):
            # Without one of these codes the address is wrong, and nothing was said of any person.
            known = (_ERROR_CODES[each] for each in _codes_of(content) if each in _ERROR_CODES)
            return next(known, Refused(code=code))
        if reply.status != 200:
            return Refused(code=code)
        if isinstance(question, ByNumber):
            return _read_person(content) if isinstance(content, _Patient) else _NOT_UNDERSTOOD
        return _read_search(content)

    def _pause(self, code: str, reply: Reply) -> Unavailable:
        pause_s = reply.retry_after_s
        if pause_s is None and reply.status == 429:
            pause_s = self._options.retry_after_default_s
        if pause_s is not None:
            self._paused_until_s = max(self._paused_until_s, self._now().timestamp() + pause_s)
        return Unavailable(code=code, retry_after_s=pause_s)


def _read(body: bytes) -> _Content | None:
    try:
        return _READER.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _codes_of(outcome: _Outcome) -> list[str]:
    return [coding.code for issue in outcome.issue for coding in issue.details.coding]


def _read_search(content: _Content | None) -> Answer:
    if isinstance(content, _Outcome) and "TOO_MANY_MATCHES" in _codes_of(content):
        return SeveralPersons()
    if not isinstance(content, _Bundle):
        return _NOT_UNDERSTOOD
    if len(content.entry) > 1 or content.total > 1:
        return SeveralPersons()
    if not content.entry:
        return NoPerson() if content.total == 0 else _NOT_UNDERSTOOD
    return _read_person(content.entry[0].resource)


def _read_person(patient: _Patient) -> Answer:
    number = parse_nhs_number(patient.id)
    if number is None:
        return _NOT_UNDERSTOOD
    labels = {label.code for label in patient.meta.security}
    if "REDACTED" in labels:
        return Invalid()
    return TracedPerson(
        nhs_number=number,
        names=tuple(
            RecordedName(family=name.family, given=name.given)
            for name in patient.name
            if name.use not in ("old", "maiden")
        ),
        birth_date=_read_day(patient.birthDate),
        # R is restricted, V very restricted; a label that is not known hides rather than shows.
        is_restricted=bool(labels - {"U"}),
    )


def _read_day(text: str) -> date | None:
    """A whole date; PDS may know the year alone."""
    try:
        return date.fromisoformat(text) if len(text) == 10 else None
    except ValueError:
        return None
