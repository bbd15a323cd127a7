"""Who an HL7 v2 message is about: the PID segment (v2.4, 3.4.2), with the quirks of UK feeds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from adapters.er7 import Hl7v2Limits, Message, parse_day
from adapters.errors import Unreadable
from schemas.attendance import NhsNumberProblem, PersonName
from schemas.identifiers import NhsNumber, parse_nhs_number


class Patient(NamedTuple):
    """What PID says. None and empty mean: it does not say."""

    nhs_number: NhsNumber | None
    nhs_number_problem: NhsNumberProblem | None
    nhs_number_status: str | None
    mother_nhs_number: NhsNumber | None
    local_id: str | None
    names: tuple[PersonName, ...]
    birth_date: date | None
    sex: str | None
    postcode: str | None

    @property
    def can_be_identified(self) -> bool:
        """Whether there is an identifier, valid or not, or a name with a date of birth."""
        if self.nhs_number or self.local_id or self.nhs_number_problem is NhsNumberProblem.INVALID:
            return True
        return bool(self.names and self.birth_date)


def read_patient(message: Message, limits: Hl7v2Limits) -> Patient:
    """Read PID. Raises Unreadable ``too_many_repetitions`` and ``component_too_long``."""
    nhs_number, problem, local_id = _read_identifiers(message)
    if local_id and len(local_id) > limits.identifier_characters_max:
        raise Unreadable("component_too_long", "PID-3 is too long")
    return Patient(
        nhs_number,
        problem,
        _read_number_status(message),
        _read_mother(message),
        local_id,
        _read_names(message, limits),
        _read_birth_date(message),
        message.text("PID", 8),
        _read_postcode(message),
    )


def read_own_id(message: Message) -> str | None:
    """The sender's own id as ``read_patient`` finds it, where an identifier of PID-3 says that it is that.

    Raises Unreadable ``too_many_repetitions``.
    """
    for components in message.repetitions("PID", 3):
        if _kind_of(components, message) == "local" and (value := message.clean(components[0])):
            return value
    return None


def read_former_id(repetitions: Sequence[list[str]], message: Message, limits: Hl7v2Limits) -> str | None:
    """The sender's own id among those of MRG-1, or of another PID-3. Raises Unreadable ``component_too_long``."""
    own: str | None = None
    other: str | None = None
    for components in repetitions:
        kind, value = _kind_of(components, message), message.clean(components[0])
        if value is None or kind == "nhs":
            continue
        if kind == "local":
            own = own or value
        other = other or value
    found = own or other
    if found and len(found) > limits.identifier_characters_max:
        raise Unreadable("component_too_long", "the former patient id is too long")
    return found


def _read_names(message: Message, limits: Hl7v2Limits) -> tuple[PersonName, ...]:
    """Every name of PID-5 once, in order: also aliases and former names, which lists may know the person by."""
    characters_max = limits.name_characters_max
    names: list[PersonName] = []
    for components in message.repetitions("PID", 5)[: limits.names_max]:
        family = message.first(components[0]) or ""
        given = (message.clean(components[1]) or "") if len(components) > 1 else ""
        if len(components) > 2 and components[2] and (second := message.clean(components[2])):
            given = f"{given} {second}" if given else second
        if not family and not given:
            continue
        name = PersonName(family[:characters_max], given[:characters_max])
        if name not in names:
            names.append(name)
    return tuple(names)


def _read_mother(message: Message) -> NhsNumber | None:
    """The mother's NHS number in PID-21, found as the patient's own is in PID-3."""
    repetitions = message.repetitions("PID", 21)
    if not repetitions:
        return None
    for wanted in ("nhs", "untyped"):
        for components in repetitions:
            if _kind_of(components, message) == wanted and (number := _number_in(components, message)):
                return number
    return None


def _read_birth_date(message: Message) -> date | None:
    """PID-7, unless its second component says that only the year or month (Y, L) is known."""
    born_on = parse_day(message.text("PID", 7))
    return None if born_on and message.text("PID", 7, 2) in ("Y", "L") else born_on


def _read_postcode(message: Message) -> str | None:
    """The first postcode of PID-11, in capitals."""
    for components in message.repetitions("PID", 11):
        if len(components) > 4 and (postcode := message.clean(components[4])):
            return postcode.upper()
    return None


_NUMBER_STATUS: Final = re.compile(r"(NSTS|PDS)?(0[1-8])", re.ASCII | re.IGNORECASE)
_NUMBER_STATUS_CHARACTERS_MAX: Final = 6


def _read_number_status(message: Message) -> str | None:
    """The NHS number status among the reliability codes of PID-32: ``NSTS01`` before a bare ``01``."""
    bare: str | None = None
    for components in message.repetitions("PID", 32):
        code = components[0].strip()
        if len(code) > _NUMBER_STATUS_CHARACTERS_MAX:
            continue
        is_named, status = _number_status(code)
        if is_named:
            return status
        bare = bare or status
    return bare


@lru_cache(maxsize=256)
def _number_status(code: str) -> tuple[bool, str | None]:
    """The status that a reliability code is, and whether it says that it is one; a feed has few of them."""
    status = _NUMBER_STATUS.fullmatch(code)
    return (status[1] is not None, status[2]) if status else (False, None)


# --- identifiers ----------------------------------------------------------------------------------------

_Kind = Literal["nhs", "local", "other", "untyped", "nhs_or_local"]
"""What an identifier (CX) says it is."""

_PUNCTUATION: Final = str.maketrans("", "", " .-_")
_NHS_LABELS: Final = frozenset(
    label.translate(_PUNCTUATION)
    for label in (
        *("NHS", "NH", "NHSNBR", "NHSNMBR", "NHSNO", "NHSNUM", "NHSNUMBER", "NHSN"),
        "2.16.840.1.113883.2.1.4.1",
        "HTTPS://FHIR.NHS.UK/ID/NHS-NUMBER",
    )
)
_LABEL_CHARACTERS_MAX: Final = 100
_LOCAL_TYPES: Final = frozenset({"MR", "MRN", "PI"})
_CHECK_DIGIT_SCHEMES: Final = frozenset({"", "M10", "M11", "ISO", "NPI"})


def _read_identifiers(message: Message) -> tuple[NhsNumber | None, NhsNumberProblem | None, str | None]:
    """The NHS number or why there is none, and the sender's own id, among all repetitions of PID-3.

    An identifier is the NHS number when its assigning authority (CX.4) or its type (CX.5) says so, or, where
    both are empty, when any other component does: senders misplace it. If such an identifier is there, only
    such identifiers count: the first valid one, or none (INVALID). If there is none, a valid number that
    carries no authority and no type at all is taken, first from PID-3, then from PID-2.

    A number whose authority or type names anything else is never taken, though one local number in eleven of
    ten digits passes the check: it would put another person's plan on this patient. Where the authority is
    the NHS but the type a local one, the check decides.

    The sender's own id is the first of type MR, MRN or PI, else the first that is not the NHS number.
    """
    nhs_number: NhsNumber | None = None
    nhs_seen = False
    local: str | None = None
    untyped: list[str] = []
    others: list[str] = []
    for components in message.repetitions("PID", 3):
        kind = _kind_of(components, message)
        value = message.clean(components[0])
        if kind == "nhs":
            nhs_seen = nhs_seen or value is not None
            nhs_number = nhs_number or parse_nhs_number(value or "") or _number_in(components, message)
        elif value is not None:
            if kind == "local":
                local = local or value
            elif kind == "untyped":
                untyped.append(value)
            others.append(value)
    if not nhs_seen:
        nhs_number, nhs_seen = _fall_back(untyped, message)
    if local is None:
        local = next((value for value in others if not _is_number(value, nhs_number)), None)
    if nhs_number is not None:
        return nhs_number, None, local
    return None, NhsNumberProblem.INVALID if nhs_seen else NhsNumberProblem.ABSENT, local


def _fall_back(untyped: Sequence[str], message: Message) -> tuple[NhsNumber | None, bool]:
    """The NHS number where PID-3 names none, and whether there is anything that says it is one."""
    for value in untyped:
        if number := parse_nhs_number(value):
            return number, True
    components = next(iter(message.repetitions("PID", 2)), [""])
    kind = _kind_of(components, message)
    if kind not in ("nhs", "untyped"):
        return None, False
    number = _number_in(components, message)
    return number, number is not None or (kind == "nhs" and message.clean(components[0]) is not None)


def _kind_of(components: Sequence[str], message: Message) -> _Kind:
    authority = components[3] if len(components) > 3 else ""
    kind = components[4] if len(components) > 4 else ""
    named = _kind_named(
        authority[:_LABEL_CHARACTERS_MAX], kind[:_LABEL_CHARACTERS_MAX], message.separators.subcomponent
    )
    if named == "nhs_or_local":
        return "nhs" if _number_in(components, message) else "local"
    if named != "untyped":
        return named
    if any(_is_nhs_label(part) for component in components for part in message.subcomponents(component)):
        return "nhs"
    return "untyped" if _is_bare(components) else "other"


@lru_cache(maxsize=1024)
def _kind_named(authority: str, kind: str, subcomponent: str) -> _Kind:
    """What an assigning authority and a type say; a feed has few of them. HD has the parts name, id, scheme."""
    authority, kind = (text.strip().removeprefix('""') for text in (authority, kind))
    if not authority and not kind:
        return "untyped"
    if _is_nhs_label(kind):
        return "nhs"
    is_local = kind.upper() in _LOCAL_TYPES
    if any(_is_nhs_label(part) for part in authority.split(subcomponent)):
        return "nhs_or_local" if is_local else "nhs"
    return "local" if is_local else "other"


def _is_nhs_label(text: str) -> bool:
    return text in _NHS_LABELS or text.upper().translate(_PUNCTUATION) in _NHS_LABELS


def _is_bare(components: Sequence[str]) -> bool:
    """Whether nothing stands beside the number but its check digit and the scheme of that (CX.2, CX.3)."""
    check_digit, scheme = (*components[1:3], "", "")[:2]
    if check_digit and not check_digit.isdigit():
        return False
    return scheme in _CHECK_DIGIT_SCHEMES and not any(components[5:])


def _number_in(components: Sequence[str], message: Message) -> NhsNumber | None:
    for component in components:
        if (text := message.clean(component)) and (number := parse_nhs_number(text)):
            return number
    return None


def _is_number(value: str, nhs_number: NhsNumber | None) -> bool:
    return nhs_number is not None and parse_nhs_number(value) == nhs_number
