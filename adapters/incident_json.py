"""Police incidents as JSON (schemas/json/police-incident.json, schemas/json/incident-withdrawal.json).

Everything wrong with a message is said at once: the field, and how to mend it, without its value. A field that is not
known is refused and not passed over: a misspelt ``suppress`` or ``excluded_recipients`` must not send a notice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Final, TypeVar

import msgspec
from msgspec import inspect

from schemas.encompass import IncidentChild, IncidentWithdrawal, PoliceIncident, PoliceMessage
from schemas.identifiers import parse_nhs_number, parse_school_urn

Day = TypeVar("Day", date, datetime)
_TAGS: Final = {"incident": PoliceIncident, "withdrawal": IncidentWithdrawal}
_EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(2100, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class IncidentLimits:
    """How large a message may be."""

    incident_bytes_max: int = 256 * 1024
    problems_max: int = 100
    clock_skew: timedelta = timedelta(minutes=10)
    """How far an instant may lie ahead of ours."""


class FieldAdvice(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with one field. ``field`` is a path such as ``children[0].birth_date``; never the value."""

    field: str
    advice: str


class IncidentRefused(Exception):
    """A message that cannot be taken: nothing of it counts."""

    def __init__(self, problems: tuple[FieldAdvice, ...]) -> None:
        super().__init__("incident_refused")
        self.problems = problems


def read_incident(body: bytes, *, received_at: datetime, limits: IncidentLimits | None = None) -> PoliceMessage:
    """One version of an incident, or its withdrawal. Raises IncidentRefused."""
    chosen = limits or IncidentLimits()
    if len(body) > chosen.incident_bytes_max:
        raise _refuse("", f"the message must have at most {chosen.incident_bytes_max} bytes")
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _refuse("", "the message is not JSON in UTF-8") from None
    return take_incident(content, received_at=received_at, limits=chosen)


def take_incident(content: object, *, received_at: datetime, limits: IncidentLimits) -> PoliceMessage:
    """The message in plain JSON values, however they came. Raises IncidentRefused."""
    if not isinstance(content, dict):
        raise _refuse("", "the message must be a JSON object")
    kind = _TAGS.get(str(content.get("message")))
    if kind is None:
        raise _refuse("message", "must be one of " + ", ".join(_TAGS))
    problems = []
    for problem in _check_struct(content, _described(kind), ""):
        problems.append(problem)
        if len(problems) == limits.problems_max:
            break
    if problems:
        raise IncidentRefused(tuple(problems))
    message: PoliceMessage = msgspec.convert(content, kind)
    contradictions = tuple(_check_rules(message, received_at + limits.clock_skew))[: limits.problems_max]
    if contradictions:
        raise IncidentRefused(contradictions)
    return message


def _refuse(field: str, advice: str) -> IncidentRefused:
    return IncidentRefused((FieldAdvice(field=field, advice=advice),))


# The shape


@cache
def _described(kind: type[msgspec.Struct]) -> inspect.StructType:
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)
    return described


def _check_struct(value: object, described: inspect.StructType, path: str) -> Iterator[FieldAdvice]:
    if not isinstance(value, dict):
        yield FieldAdvice(field=path, advice="must be an object")
        return
    known = {field.encode_name: field for field in described.fields}
    tag = described.tag_field
    if any(name not in known and name != tag for name in value):
        # The names themselves came from outside: they might be anything.
        listed = ", ".join(sorted(known))
        yield FieldAdvice(field=path, advice=f"has a field that is not known; known are {listed}")
    for name, field in known.items():
        inner = f"{path}.{name}" if path else name
        if name in value:
            yield from _check(value[name], field.type, inner)
        elif field.required:
            yield FieldAdvice(field=inner, advice="is missing")


def _check(value: object, described: inspect.Type, path: str) -> Iterator[FieldAdvice]:
    if isinstance(described, inspect.UnionType):
        if value is None and described.includes_none:
            return
        [described] = [each for each in described.types if not isinstance(each, inspect.NoneType)]
    if isinstance(described, inspect.Metadata):
        described = described.type
    if isinstance(described, inspect.StructType):
        yield from _check_struct(value, described, path)
    elif isinstance(described, inspect.VarTupleType):
        yield from _check_list(value, described, path)
    elif not _is_allowed(value, described):
        yield FieldAdvice(field=path, advice=_advise(described))
    elif isinstance(value, str) and "\x00" in value:
        yield FieldAdvice(field=path, advice="must not hold a NUL character")


def _check_list(value: object, described: inspect.VarTupleType, path: str) -> Iterator[FieldAdvice]:
    if not isinstance(value, list):
        yield FieldAdvice(field=path, advice="must be a list")
        return
    least, most = described.min_length or 0, described.max_length
    if len(value) < least or (most is not None and len(value) > most):
        yield FieldAdvice(field=path, advice=f"must have {least} to {most} entries")
        return
    for place, entry in enumerate(value):
        yield from _check(entry, described.item_type, f"{path}[{place}]")


def _is_allowed(value: object, described: inspect.Type) -> bool:
    match described:
        case inspect.StrType():
            if not isinstance(value, str) or (described.min_length and not value.strip()):
                return False
            return described.max_length is None or len(value) <= described.max_length
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.IntType():
            least, most = described.ge, described.le
            assert least is not None and most is not None, "a number without limits"
            return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        case inspect.EnumType():
            return value in [member.value for member in described.cls]
        case inspect.DateType():
            return _convert(value, date) is not None
        case _:
            assert isinstance(described, inspect.DateTimeType), "a type without a check"
            instant = _convert(value, datetime)
            return instant is not None and instant.tzinfo is not None


def _convert(value: object, kind: type[Day]) -> Day | None:
    """A date or an instant written as RFC 3339 has it."""
    if not isinstance(value, str):
        return None
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return None


def _advise(described: inspect.Type) -> str:
    match described:
        case inspect.StrType():
            return f"must be text of {described.min_length or 0} to {described.max_length} characters"
        case inspect.BoolType():
            return "must be true or false, or null where nobody knows"
        case inspect.IntType():
            return f"must be a whole number from {described.ge} to {described.le}"
        case inspect.EnumType():
            return "must be one of " + ", ".join(sorted(str(member.value) for member in described.cls))
        case inspect.DateType():
            return "must be a date like 2016-03-02"
        case _:
            return "must be an instant with its offset, like 2026-11-21T22:40:00Z"


# What fields say together


def _check_rules(message: PoliceMessage, latest: datetime) -> Iterator[FieldAdvice]:
    if isinstance(message, IncidentWithdrawal):
        yield from _check_instant("withdrawn_at", message.withdrawn_at, latest)
        return
    yield from _check_instant("occurred_at", message.occurred_at, latest)
    yield from _check_instant("reported_at", message.reported_at, latest)
    if message.reported_at < message.occurred_at:
        yield FieldAdvice(field="reported_at", advice="must not be before occurred_at")
    if (message.version == 1) != (message.change is None):
        yield FieldAdvice(field="change", advice="says correction or update from version 2 on, and is left out before")
    ids: set[str] = set()
    for place, child in enumerate(message.children):
        path = f"children[{place}]"
        if child.child_id in ids:
            yield FieldAdvice(field=f"{path}.child_id", advice="is another child's of this incident")
        ids.add(child.child_id)
        yield from _check_child(child, path, message.reported_at.date())
    for place, excluded in enumerate(message.excluded_recipients):
        if excluded.urn is not None and parse_school_urn(excluded.urn) != excluded.urn:
            yield FieldAdvice(field=f"excluded_recipients[{place}].urn", advice="must be a URN of six digits")


def _check_instant(field: str, instant: datetime, latest: datetime) -> Iterator[FieldAdvice]:
    if not _EARLIEST <= instant < _LATEST:
        yield FieldAdvice(field=field, advice="must lie between the years 2000 and 2100")
    elif instant > latest:
        yield FieldAdvice(field=field, advice="must not lie ahead; check the clock and the offset from UTC")


def _check_child(child: IncidentChild, path: str, reported_on: date) -> Iterator[FieldAdvice]:
    if child.birth_date is not None and not 1900 <= child.birth_date.year <= reported_on.year + 1:
        yield FieldAdvice(field=f"{path}.birth_date", advice="must be a day on which somebody can have been born")
    if child.nhs_number is not None and parse_nhs_number(child.nhs_number) != child.nhs_number:
        yield FieldAdvice(field=f"{path}.nhs_number", advice="must be a valid NHS number of ten digits")
    for place, named in enumerate(child.establishments):
        if named.urn is not None and parse_school_urn(named.urn) != named.urn:
            yield FieldAdvice(field=f"{path}.establishments[{place}].urn", advice="must be a URN of six digits")
