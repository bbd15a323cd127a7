"""HL7 v2 messages: attendances read, acknowledgements and replies written. Pure; the bytes are never rewritten.

Sources: HL7 v2.4 chapters 2, 3 and 7; NHS ITK HL7 v2 Message Specifications 1.0.15.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from enum import Enum
from functools import lru_cache
from typing import Final, Literal, get_args

import msgspec

from adapters.er7 import (
    DEFAULT_LIMITS,
    Hl7v2Limits,
    Message,
    Separators,
    decode_text,
    escape,
    format_day,
    format_instant,
    parse_instant,
    read_header_line,
    read_segment,
    read_segments,
    reencode,
    unescape,
)
from adapters.errors import NotAnAttendance, NotHl7, Unreadable
from adapters.hl7v2_patient import read_former_id, read_own_id, read_patient
from schemas.alert import ClinicianReply, PlanShown, ReplyOutcome
from schemas.attendance import Attendance, Event
from schemas.child_list import PlanType

# --- the header -----------------------------------------------------------------------------------------


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The MSH segment. Texts are empty where the message says nothing.

    Fields whose name ends in ``_field`` stand as the sender encoded them, to be echoed.
    """

    separators: Separators
    sending_application_field: str
    sending_facility_field: str
    receiving_application_field: str
    receiving_facility_field: str
    control_field: str
    sender: str
    """ODS code of the sender: the first component of MSH-4, in capitals."""
    credential: bytes
    """MSH-8, which senders use as a password: UTF-8, and kept out of ``repr``."""
    control_id: str
    message_type: str
    event: str
    processing_id: str
    version: str

    def __repr__(self) -> str:
        return "Header(...)"


_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_RESIDUE: Final = b"\x0b\x1c\r\n\t "
_WAS_NOT_BROUGHT: Final = {"3": True, "5": False, "6": False, "7": False}
"""ZU3-3 (HSCIC ITK HL7 v2): 3 did not attend; 5 on time, 6 late and seen, 7 late and not seen. Others say neither."""
_SEGMENTS: Final = frozenset({"MSH", "EVN", "PID", "MRG", "PV1", "PV2", "ZU3", "MSA"})
_BATCH_HEADERS: Final = (b"FHS", b"BHS")


def read_header(message: bytes, limits: Hl7v2Limits = DEFAULT_LIMITS) -> Header:
    """Read who sent what (v2.4, 2.16.9).

    Raises NotHl7 when the bytes do not begin with MSH or declare no usable separators, and Unreadable
    ``component_too_long`` when a field that is echoed or kept is longer than any real one. A byte order mark,
    line ends, MLLP framing and the headers of a file or batch (FHS, BHS) may stand before MSH.
    """
    line = decode_text(_first_line(_from_header_on(message)))
    return _parse_header(read_header_line(line, limits), limits)


def _from_header_on(message: bytes) -> bytes:
    if message.startswith(b"MSH"):
        return message
    rest = message.removeprefix(_BYTE_ORDER_MARK).lstrip(_RESIDUE).removeprefix(_BYTE_ORDER_MARK)
    for _ in _BATCH_HEADERS:
        if rest.startswith(_BATCH_HEADERS):
            rest = rest[len(_first_line(rest)) :].lstrip(_RESIDUE)
    if not rest.startswith(b"MSH"):
        raise NotHl7("not_hl7", "the bytes do not begin with MSH")
    return rest


def _first_line(message: bytes) -> bytes:
    end = message.find(b"\r")
    line = message if end < 0 else message[:end]
    end = line.find(b"\n")
    return line if end < 0 else line[:end]


def _parse_header(message: Message, limits: Hl7v2Limits) -> Header:
    fields = message.fields("MSH")[:13]
    fields += [""] * (13 - len(fields))
    characters_max = limits.identifier_characters_max
    if len("".join(fields)) > characters_max and max(map(len, fields)) > characters_max:
        raise Unreadable("component_too_long", "a field of MSH is too long")
    return Header(
        separators=message.separators,
        sending_application_field=fields[3],
        sending_facility_field=fields[4],
        receiving_application_field=fields[5],
        receiving_facility_field=fields[6],
        control_field=fields[10],
        sender=(message.text("MSH", 4) or "").upper(),
        credential=(fields[8] if message.plain else unescape(fields[8], message.separators)).encode(),
        control_id=message.clean(fields[10]) or "",
        message_type=(message.text("MSH", 9) or "").upper(),
        event=(message.text("MSH", 9, 2) or "").upper(),
        processing_id=message.text("MSH", 11) or "",
        version=message.text("MSH", 12) or "",
    )


# --- the attendance -------------------------------------------------------------------------------------

_MERGES: Final = frozenset(
    {
        *(Event.PATIENT_MERGED, Event.PATIENT_IDS_MERGED, Event.IDENTIFIERS_MERGED, Event.ACCOUNTS_MERGED),
        *(Event.IDENTIFIERS_MOVED, Event.VISIT_MOVED, Event.IDENTIFIERS_CHANGED),
        *(Event.LINKED, Event.PERSONS_MERGED, Event.ACCOUNT_IDS_MERGED, Event.PATIENT_ACCOUNT_IDS_MERGED),
        *(Event.UNLINKED, Event.PERSON_IDS_MERGED, Event.ACCOUNT_MOVED, Event.EXTERNAL_ID_CHANGED),
        *(Event.VISITS_MERGED, Event.VISIT_RENUMBERED),
    }
)
"""Events in which PID may repeat, with MRG (v2.4, 3.3.40) or without (A24, A37): the first says who it is."""
_OF_TWO_PATIENTS: Final = frozenset({Event.LINKED, Event.UNLINKED})
"""Events that name the other patient in a second PID (v2.4, 3.3.24 and 3.3.37)."""

_OF_VISITS: Final = frozenset({Event.VISIT_MOVED, Event.VISITS_MERGED, Event.VISIT_RENUMBERED})
"""Events that name a visit's former number in MRG-5 (v2.4, 3.3.42, 3.3.45 and 3.3.50)."""

_EVENTS: Final = {event.value: event for event in Event}


def read_attendance(message: bytes, limits: Hl7v2Limits = DEFAULT_LIMITS) -> Attendance:
    """Read what ``message`` says of one visit.

    Raises NotAnAttendance for types and events the broker does not act on, and Unreadable with one of the
    reasons ``not_hl7``, ``message_too_large``, ``too_many_segments``, ``too_many_repetitions``,
    ``component_too_long``, ``several_messages``, ``several_patients``, ``no_event``, ``no_pid`` and
    ``no_identity``. Nothing else is raised, whatever the bytes.
    """
    read = _decode_message(message, limits)
    if read.count("MSH") > 1:
        raise Unreadable("several_messages", "the frame holds several messages")
    event = _read_event(read)
    if read.count("PID") != 1 and not (event in _MERGES and read.count("PID")):
        reason = "several_patients" if read.count("PID") else "no_pid"
        raise Unreadable(reason, f"the message has {read.count('PID') or 'no'} PID segments, and needs one")
    patient = read_patient(read, limits)
    if not patient.can_be_identified:
        raise Unreadable("no_identity", "PID has no identifier, and no name with a date of birth")
    message_at = parse_instant(read.text("MSH", 7))
    return Attendance(
        sender=(read.identifier("MSH", 4) or "").upper(),
        control_id=_read_control_id(read, limits),
        event=event,
        message_at=message_at,
        event_at=parse_instant(read.text("EVN", 2)) or parse_instant(read.text("EVN", 6)) or message_at,
        nhs_number=patient.nhs_number,
        nhs_number_problem=patient.nhs_number_problem,
        nhs_number_status=patient.nhs_number_status,
        mother_nhs_number=patient.mother_nhs_number,
        local_patient_id=patient.local_id,
        former_patient_id=_read_former(read, event, limits),
        former_visit_number=read.identifier("MRG", 5) if event in _OF_VISITS else None,
        names=patient.names,
        birth_date=patient.birth_date,
        sex=patient.sex,
        postcode=patient.postcode,
        visit_number=read.identifier("PV1", 19),
        patient_class=read.text("PV1", 2),
        department=read.text("PV1", 3),
        site=read.namespace("PV1", 3, 4),
        arrived_at=parse_instant(read.text("PV1", 44)),
        left_at=parse_instant(read.text("PV1", 45)),
        arrival_mode=read.text("PV2", 38),
        complaint=read.text("PV2", 3, 2) or read.text("PV2", 3),
        disposition=read.text("PV1", 36),
        was_not_brought=_WAS_NOT_BROUGHT.get(read.text("ZU3", 3) or ""),
        is_deceased=_DECEASED.get((read.text("PID", 30) or "").upper()),
        is_test=(read.text("MSH", 11) or "").upper() in _TESTS,
    )


def read_ordering(message: bytes, header: Header, limits: Hl7v2Limits = DEFAULT_LIMITS) -> str | None:
    """What keeps a message among those of its patient, or else of its visit: the sender's own id for either.

    ``header`` is what ``read_header`` made of the message. Raises all that ``read_attendance`` raises, and of what
    can be seen to be understood reads no more than this needs: a door asks it of every message.
    """
    if (patient_id := _read_usual_patient(message, header, limits)) is not None:
        return patient_id
    said = read_attendance(message, limits)
    return said.local_patient_id or said.visit_number


_SEPARATORS_SEEN: Final = b"MSH|^~\\&|"
_USUAL: Final = re.compile(rb"\rPID\|[^\r]*|\rPV1\|[^\r]*|\rMSH\|")


def _read_usual_patient(message: bytes, header: Header, limits: Hl7v2Limits) -> str | None:
    """The sender's own id for the patient, where it is all that ``read_attendance`` needs to find no fault.

    None wherever another segment or field might be at fault, or whenever that would take longer to see.
    """
    event = _EVENTS.get(header.event)
    is_too_large = len(message) > limits.message_bytes_max  # also by what stands behind the last segment
    message = message.rstrip(_RESIDUE)
    if (
        header.message_type != "ADT"
        or event is None
        or event in _MERGES
        or not message.startswith(_SEPARATORS_SEEN)
        or b"\n" in message
        or is_too_large
        or message.count(b"\r") >= limits.segments_max
        or message.count(b"~") >= limits.repetitions_max
    ):
        return None
    found = _USUAL.findall(message)
    patients = [segment for segment in found if segment.startswith(b"\rPID")]
    visits = [segment for segment in found if segment.startswith(b"\rPV1")]
    if len(patients) != 1 or len(visits) > 1 or len(patients) + len(visits) != len(found):
        return None
    visit = visits[0].split(b"|", 20) if visits else []
    if len(visit) > 19 and len(visit[19]) > limits.identifier_characters_max:
        return None
    try:
        # All of it: where one segment is not UTF-8, no other is read as that.
        message.decode()
        patient_id = read_own_id(read_segment(patients[0][1:].decode(), limits))
    except UnicodeDecodeError:
        return None
    return patient_id if patient_id and len(patient_id) <= limits.identifier_characters_max else None


_TESTS: Final = frozenset("TD")
"""MSH-11, table 0103: training, debugging. P is production."""


_DECEASED: Final = {"Y": True, "N": False}
"""PID-30, table 0136."""


def _read_former(message: Message, event: Event, limits: Hl7v2Limits) -> str | None:
    if event not in _MERGES:
        return None
    if event in _OF_TWO_PATIENTS:
        other = message.nth("PID", 2)
        return read_former_id(other.repetitions("PID", 3), other, limits)
    return read_former_id(message.repetitions("MRG", 1), message, limits)


def _decode_message(message: bytes, limits: Hl7v2Limits) -> Message:
    if len(message) > limits.message_bytes_max:
        raise Unreadable("message_too_large", "the message is too large")
    rest = _from_header_on(message).rstrip(_RESIDUE)
    try:
        text = rest.decode()
    except UnicodeDecodeError:
        header = read_header_line(decode_text(_first_line(rest)), limits)
        text = decode_text(rest, header.text("MSH", 18) or "")
    return read_segments(text, _SEGMENTS, limits)


def _read_control_id(message: Message, limits: Hl7v2Limits) -> str:
    """MSH-10 as a whole: it has no components."""
    field = message.raw("MSH", 10)
    if len(field) > limits.identifier_characters_max:
        raise Unreadable("component_too_long", "MSH-10 is too long")
    return message.clean(field) or ""


def _read_event(message: Message) -> Event:
    """MSH-9.2, or EVN-1 where MSH-9 has one component only (before v2.3)."""
    message_type = message.text("MSH", 9)
    name = message.text("MSH", 9, 2) or message.text("EVN", 1)
    if message_type is not None and message_type.upper() != "ADT":
        raise NotAnAttendance("not_an_attendance", "MSH-9.1 is not ADT")
    if message_type is None or name is None:
        raise Unreadable("no_event", "MSH-9 and EVN-1 name no event")
    event = _EVENTS.get(name.upper())
    if event is None:
        raise NotAnAttendance("not_an_attendance", "MSH-9.2 is no event the broker acts on")
    return event


# --- acknowledgements -----------------------------------------------------------------------------------

AckCode = Literal["AA", "AE", "AR"]


class ErrorCode(Enum):
    """HL7 table 0357, message error condition codes, with their texts."""

    SEGMENT_SEQUENCE = ("100", "Segment sequence error")
    REQUIRED_FIELD_MISSING = ("101", "Required field missing")
    DATA_TYPE = ("102", "Data type error")
    TABLE_VALUE_NOT_FOUND = ("103", "Table value not found")
    UNSUPPORTED_MESSAGE_TYPE = ("200", "Unsupported message type")
    UNSUPPORTED_EVENT = ("201", "Unsupported event code")
    UNSUPPORTED_PROCESSING_ID = ("202", "Unsupported processing id")
    UNSUPPORTED_VERSION = ("203", "Unsupported version id")
    UNKNOWN_KEY = ("204", "Unknown key identifier")
    DUPLICATE_KEY = ("205", "Duplicate key identifier")
    RECORD_LOCKED = ("206", "Application record locked")
    INTERNAL_ERROR = ("207", "Application internal error")


_ACK_TEXT_CHARACTERS_MAX: Final = 80
"""The length of MSA-3 (v2.4, 2.16.8.3)."""
_VERSION: Final = re.compile(r"2\.[1-9](\.[0-9])?", re.ASCII)
_CHARSET_FIELD_SINCE: Final = "2.3"
_STRUCTURED_TYPE_SINCE: Final = "2.3.1"
_ERROR_FIELDS_SINCE: Final = "2.5"


def build_ack(
    header: Header | None,
    *,
    code: AckCode,
    text: str,
    error_code: ErrorCode = ErrorCode.INTERNAL_ERROR,
    control_id: str,
    at: datetime,
) -> bytes:
    """Write the answer to a message (v2.4, 2.9.2), or to bytes that are none (``header`` None).

    ``text`` goes into MSA-3, cut to the 80 characters the standard allows; ``error_code`` into ERR, which
    only AE and AR have. Neither may hold personal data. ``control_id`` is the answer's own MSH-10. The answer
    speaks the version of the message, v2.4 if it names none, and says in MSH-18 how it is encoded.
    """
    version = header.version if header and _VERSION.fullmatch(header.version) else "2.4"
    answered = reencode(header.control_field, header.separators) if header else ""
    segments = [f"MSA|{code}|{answered}|{escape(text[:_ACK_TEXT_CHARACTERS_MAX])}"]
    if code != "AA":
        segments.append(_error_segment(error_code, version))
    event = escape(header.event) if header and version >= _STRUCTURED_TYPE_SINCE else ""
    message_type = f"ACK^{event}^ACK" if event else "ACK"
    processing_id = escape(header.processing_id) if header and header.processing_id else "P"
    msh = (
        f"MSH|^~\\&|{_answer_address(header)}|{format_instant(at)}||{message_type}"
        f"|{escape(control_id)}|{processing_id}|{version}"
    )
    if version >= _CHARSET_FIELD_SINCE:
        is_ascii = msh.isascii() and all(map(str.isascii, segments))
        msh += "||||||ASCII" if is_ascii else "||||||UNICODE UTF-8"
    return "\r".join((msh, *segments, "")).encode()


def _answer_address(header: Header | None) -> str:
    """MSH-3 to MSH-6 of the answer: from where the message went, to where it came from."""
    if header is None:
        return "|||"
    swapped = (
        header.receiving_application_field,
        header.receiving_facility_field,
        header.sending_application_field,
        header.sending_facility_field,
    )
    return "|".join(reencode(field, header.separators) for field in swapped)


def _error_segment(error_code: ErrorCode, version: str) -> str:
    """ERR-3 and ERR-4 since v2.5 (2.15.5); before that ERR-1.4, whose components are subcomponents."""
    number, text = error_code.value
    if version >= _ERROR_FIELDS_SINCE:
        return f"ERR|||{number}^{text}^HL70357|E"
    return f"ERR|^^^{number}&{text}&HL70357"


ReceivedCode = Literal["AA", "AE", "AR", "CA", "CE", "CR"]
_RECEIVED_CODES: Final[tuple[ReceivedCode, ...]] = get_args(ReceivedCode)


class Ack(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer says: MSA-1, the control id it answers (MSA-2), and MSA-3."""

    code: ReceivedCode
    control_id: str
    text: str


def read_ack(message: bytes, limits: Hl7v2Limits = DEFAULT_LIMITS) -> Ack:
    """Read the answer to a message (HL7 table 0008).

    Raises NotHl7, or Unreadable ``no_msa`` or ``unknown_ack_code`` (beside the limits' reasons).
    """
    answer = _decode_message(message, limits)
    if not answer.count("MSA"):
        raise Unreadable("no_msa", "the answer has no MSA segment")
    written = (answer.text("MSA", 1) or "").upper()
    for code in _RECEIVED_CODES:
        if code == written:
            control_id = answer.clean(answer.raw("MSA", 2)) or ""
            return Ack(code=code, control_id=control_id, text=answer.text("MSA", 3) or "")
    raise Unreadable("unknown_ack_code", "MSA-1 is no code of HL7 table 0008")


# --- the reply to the clinician -------------------------------------------------------------------------

CODING_SYSTEM: Final = "99CPB"
"""The broker's own coding system (v2.4, 7.18.4: codes 99zzz are local)."""


class Observation(Enum):
    """What a reply says, one OBX each: OBX-3.1, OBX-2 and OBX-3.2. docs/reference/hl7v2-reply.md explains them."""

    OUTCOME = ("OUTCOME", "CE", "Outcome of the check")
    WORDING = ("WORDING", "TX", "Outcome in words")
    PLAN_TYPE = ("PLAN-TYPE", "CE", "Plan type")
    PLAN_START = ("PLAN-START", "DT", "Plan start date")
    PLAN_END = ("PLAN-END", "DT", "Plan end date")
    PLAN_STATUS = ("PLAN-STATUS", "ST", "Whether the plan runs")
    PLAN_AUTHORITY = ("PLAN-AUTHORITY", "ST", "Responsible local authority")
    OFFICE_TELEPHONE = ("OFFICE-TELEPHONE", "ST", "Office hours telephone")
    EMERGENCY_TELEPHONE = ("EMERGENCY-TELEPHONE", "ST", "Emergency duty team telephone")
    TELEPHONE_NOW = ("TELEPHONE-NOW", "ST", "Telephone answered now")
    DIFFERS = ("DIFFERS", "ST", "Differs between attendance and list")
    AUTHORITY_TOLD = ("AUTHORITY-TOLD", "ST", "Local authority told of the attendance")
    LISTS_SEARCHED = ("LISTS-SEARCHED", "NM", "Number of local authority lists searched")
    OLDEST_LIST_AT = ("OLDEST-LIST-AT", "TS", "Oldest list confirmed at")
    OLDEST_LIST_AGE = ("OLDEST-LIST-AGE", "NM", "Age of the oldest list")
    OWN_LIST_MISSING = ("OWN-LIST-MISSING", "ST", "List of own authority missing")
    OWN_LIST_STALE = ("OWN-LIST-STALE", "ST", "List of own authority out of date")
    NATIONAL_ASKED = ("NATIONAL-ASKED", "ID", "National CP-IS asked")


OUTCOMES: Final = {
    ReplyOutcome.MATCH: "Match",
    ReplyOutcome.NO_RECORD: "No record found",
    ReplyOutcome.IDENTITY_TO_BE_CHECKED: "Identity to be checked",
}
PLAN_TYPES: Final = {
    PlanType.CHILD_PROTECTION: ("Child protection plan", "342191000000101", "Subject to child protection plan"),
    PlanType.LOOKED_AFTER: ("Looked-after child", "764841000000100", "Looked after child"),
    PlanType.UNBORN: (
        "Unborn child protection plan",
        "818901000000100",
        "Unborn child subject to child protection plan",
    ),
}
"""Our display, and the SNOMED CT concept with its display (domain value set England-ChildProtectionPlan)."""


def build_reply(
    reply: ClinicianReply,
    *,
    sending_application: str,
    sending_facility: str,
    receiving_application: str = "",
    control_id: str,
    at: datetime,
    processing_id: str = "P",
) -> bytes:
    """Write the reply as ORU^R01 v2.4 in UTF-8 (v2.4, 7.3.1).

    It says no more than the department needs to file it: PID-3 holds the department's own number for the
    patient and PV1-19 its visit number; no NHS number, name or date of birth. ``control_id`` is MSH-10.
    """
    sent_at, replied_at = format_instant(at), format_instant(reply.replied_at)
    organisation = escape(reply.organisation)
    patient = f"{escape(reply.local_patient_id)}^^^{organisation}^PI" if reply.local_patient_id else ""
    visit = "|" * 17 + escape(reply.visit_number) if reply.visit_number else ""
    segments = [
        f"MSH|^~\\&|{escape(sending_application)}|{escape(sending_facility)}|{escape(receiving_application)}"
        f"|{organisation}|{sent_at}||ORU^R01^ORU_R01|{escape(control_id)}|{processing_id}|2.4"
        "|||||GBR|UNICODE UTF-8|EN",
        f"PID|1||{patient}",
        f"PV1|1|U{visit}",
        f"OBR|1|{escape(reply.in_answer_to)}|{escape(reply.reply_id)}"
        f"|CHILD-PROTECTION-CHECK^Child protection check^{CODING_SYSTEM}|||{replied_at}"
        f"|||||||||||||||{replied_at}|||F",
        _write_nothing_found(_anonymise(reply)) if not reply.plans else _write_observations(reply),
    ]
    return "\r".join((*segments, "")).encode()


def _anonymise(reply: ClinicianReply) -> ClinicianReply:
    """What a reply says of lists, without whom it is about and who asked."""
    return msgspec.structs.replace(
        reply, reply_id="", organisation="", in_answer_to="", visit_number=None, local_patient_id=None
    )


def _write_observations(reply: ClinicianReply) -> str:
    replied_at = format_instant(reply.replied_at)
    segments: list[str] = []
    for number, (observation, group, value, units) in enumerate(_observations(reply), 1):
        code, value_type, name = observation.value
        segments.append(
            f"OBX|{number}|{value_type}|{code}^{name}^{CODING_SYSTEM}|{group or ''}|{value}|{units}"
            f"|||||F|||{replied_at}"
        )
    return "\r".join(segments)


_write_nothing_found: Final = lru_cache(maxsize=64)(_write_observations)
"""Of a batch, all replies that show no plan say the same."""


def _observations(reply: ClinicianReply) -> Iterator[tuple[Observation, int, str, str]]:
    """Each observation, the plan it belongs to (0: none), its encoded value and its units."""
    outcome = f"{reply.outcome.value}^{OUTCOMES[reply.outcome]}^{CODING_SYSTEM}"
    yield Observation.OUTCOME, 0, outcome, ""
    yield Observation.WORDING, 0, "~".join(map(escape, reply.wording.splitlines())), ""
    for number, plan in enumerate(reply.plans, 1):
        for observation, value in _plan_values(plan):
            yield observation, number, value, ""
    for fact in reply.differs:
        yield Observation.DIFFERS, 0, escape(fact.value), ""
    for authority in reply.authorities_told:
        yield Observation.AUTHORITY_TOLD, 0, escape(authority), ""
    lists = reply.lists
    yield Observation.LISTS_SEARCHED, 0, str(lists.authorities_searched), ""
    if lists.oldest_confirmed_at is not None:
        age_h = int((reply.replied_at - lists.oldest_confirmed_at).total_seconds() // 3600)
        yield Observation.OLDEST_LIST_AT, 0, format_instant(lists.oldest_confirmed_at), ""
        yield Observation.OLDEST_LIST_AGE, 0, str(age_h), "h"
    for authority in lists.own_authorities_missing:
        yield Observation.OWN_LIST_MISSING, 0, escape(authority), ""
    for authority in lists.own_authorities_stale:
        yield Observation.OWN_LIST_STALE, 0, escape(authority), ""
    yield Observation.NATIONAL_ASKED, 0, "Y" if lists.national_service_asked else "N", ""


def _plan_values(plan: PlanShown) -> Iterator[tuple[Observation, str]]:
    display, concept, concept_display = PLAN_TYPES[plan.plan_type]
    yield (
        Observation.PLAN_TYPE,
        f"{plan.plan_type.value}^{display}^{CODING_SYSTEM}^{concept}^{concept_display}^SCT",
    )
    yield Observation.PLAN_START, format_day(plan.start_on)
    if plan.end_on is not None:
        yield Observation.PLAN_END, format_day(plan.end_on)
    yield Observation.PLAN_STATUS, "ended" if plan.has_ended else "current"
    yield Observation.PLAN_AUTHORITY, escape(plan.authority_name)
    yield Observation.OFFICE_TELEPHONE, escape(plan.office_telephone)
    yield Observation.EMERGENCY_TELEPHONE, escape(plan.emergency_telephone)
    if plan.telephone_now:
        yield Observation.TELEPHONE_NOW, escape(plan.telephone_now)
