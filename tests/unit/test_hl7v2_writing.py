"""What is written: acknowledgements and replies, held against hl7apy, which builds and reads them on its own."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.core import Message
from hl7apy.parser import parse_message
from hl7apy.v2_4 import ST
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import NotHl7, Unreadable
from adapters.hl7v2 import Ack, AckCode, ErrorCode, Observation, build_ack, build_reply, read_ack, read_header
from schemas.alert import ClinicianReply, IdentityFact, ListsSearched, PlanShown, ReplyOutcome
from schemas.child_list import PlanType

AT = datetime(2026, 7, 14, 20, 15, 3, tzinfo=UTC)
AT_TEXT = "20260714211503+0100"


def adt(version: str = "2.4", *, control: str = "ED000912", separators: str = "|^~\\&") -> bytes:
    text = "MSH|^~\\&|EDIS|RXX^2.16.840^ISO|BROKER|CPIS|20260114201503||ADT^A04^ADT_A01|CONTROL|T|VERSION\r"
    text = text.translate(str.maketrans("|^~\\&", separators))
    return text.replace("CONTROL", control).replace("VERSION", version).encode()


def answer(message: bytes | None, code: AckCode = "AA", text: str = "", **other: ErrorCode) -> bytes:
    header = read_header(message) if message is not None else None
    return build_ack(header, code=code, text=text, control_id="B0001", at=AT, **other)


def segments_of(message: bytes) -> list[list[str]]:
    return [line.split("|") for line in message.decode().removesuffix("\r").split("\r")]


# Acknowledgements


def test_an_acceptance_is_short_and_goes_back_to_where_the_message_came_from() -> None:
    assert answer(adt(), text="kept") == (
        b"MSH|^~\\&|BROKER|CPIS|EDIS|RXX^2.16.840^ISO|20260714211503+0100||ACK^A04^ACK|B0001|T|2.4||||||ASCII\r"
        b"MSA|AA|ED000912|kept\r"
    )


def test_a_refusal_of_what_is_no_hl7_can_still_be_written() -> None:
    assert answer(None, "AR", "not HL7", error_code=ErrorCode.UNSUPPORTED_MESSAGE_TYPE) == (
        b"MSH|^~\\&|||||20260714211503+0100||ACK|B0001|P|2.4||||||ASCII\r"
        b"MSA|AR||not HL7\r"
        b"ERR|^^^200&Unsupported message type&HL70357\r"
    )


@pytest.mark.parametrize(
    ("version", "message_type"),
    [
        ("2.1", "ACK"),
        ("2.2", "ACK"),
        ("2.3", "ACK"),
        ("2.3.1", "ACK^A04^ACK"),
        ("2.4", "ACK^A04^ACK"),
        ("2.8", "ACK^A04^ACK"),
    ],
)
def test_the_answers_type_is_that_of_its_version(version: str, message_type: str) -> None:
    msh = segments_of(answer(adt(version)))[0]
    assert (msh[8], msh[11]) == (message_type, version)


@pytest.mark.parametrize("version", ["", "1.0", "9", "2.4.1.1", "2.4|x", "²"])
def test_a_version_that_is_none_is_answered_as_2_4(version: str) -> None:
    assert segments_of(answer(adt(version)))[0][11] == "2.4"


def test_a_version_without_msh_18_is_not_given_one() -> None:
    assert len(segments_of(answer(adt("2.2")))[0]) == 12


@pytest.mark.parametrize(
    ("version", "error"),
    [
        ("2.4", "ERR|^^^207&Application internal error&HL70357"),
        ("2.5", "ERR|||207^Application internal error^HL70357|E"),
    ],
)
@pytest.mark.parametrize("code", ["AE", "AR"])
def test_an_error_is_coded_as_its_version_has_it(version: str, error: str, code: AckCode) -> None:
    assert answer(adt(version), code).decode().split("\r")[2] == error


def test_what_is_echoed_in_other_separators_is_written_in_the_standard_ones() -> None:
    msh, msa = segments_of(answer(adt(control="A%F%B&C|D", separators="#!@%*")))
    assert msh[2:6] == ["BROKER", "CPIS", "EDIS", "RXX^2.16.840^ISO"]
    assert msa[2] == "A#B\\T\\C\\F\\D"


def test_a_control_id_is_echoed_to_the_letter() -> None:
    assert segments_of(answer(adt(control="A&B\\T\\C^D")))[1][2] == "A&B\\T\\C^D"


def test_nothing_echoed_can_begin_a_segment_or_hide_a_character() -> None:
    assert segments_of(answer(adt(control="A\0B\x0bC\x1cD")))[1][2] == "ABCD"


def test_the_text_is_escaped_and_cut() -> None:
    assert segments_of(answer(adt(), text="a|b\rMSA|AR"))[1][3] == "a\\F\\b MSA\\F\\AR"
    assert len(segments_of(answer(adt(), text="x" * 200))[1][3]) == 80


def test_the_character_set_is_the_one_it_is_written_in() -> None:
    written = answer(adt(control="ÉD1"))
    assert segments_of(written)[0][17] == "UNICODE UTF-8"
    assert "ÉD1".encode() in written


@pytest.mark.parametrize("version", ["2.2", "2.3", "2.3.1", "2.4", "2.5", "2.5.1", "2.6", "2.7"])
@pytest.mark.parametrize("code", ["AA", "AE", "AR"])
def test_hl7apy_builds_the_same_answer_and_reads_ours(version: str, code: AckCode) -> None:
    ours = answer(adt(version), code, "kept for review", error_code=ErrorCode.DATA_TYPE).decode()
    theirs = Message("ACK", version=version, validation_level=VALIDATION_LEVEL.TOLERANT)
    msh: Any = theirs.msh
    msh.msh_3, msh.msh_4, msh.msh_5, msh.msh_6 = "BROKER", "CPIS", "EDIS", "RXX^2.16.840^ISO"
    msh.msh_7, msh.msh_10, msh.msh_11 = AT_TEXT, "B0001", "T"
    msh.msh_9 = "ACK^A04^ACK" if version >= "2.3.1" else "ACK"
    if version >= "2.3":
        msh.msh_18 = "ASCII"
    msa: Any = theirs.msa
    msa.msa_1, msa.msa_2, msa.msa_3 = code, "ED000912", "kept for review"
    if code != "AA":
        error: Any = theirs.add_segment("ERR")
        if version >= "2.5":
            error.err_3, error.err_4 = "102^Data type error^HL70357", "E"
        else:
            error.err_1 = "^^^102&Data type error&HL70357"
    assert _fields(ours) == _fields(theirs.to_er7().replace("^~\\&#", "^~\\&"))
    assert _fields(_reread(ours)) == _fields(ours)


def _reread(message: str) -> str:
    read = parse_message(message, validation_level=VALIDATION_LEVEL.TOLERANT, find_groups=False)
    return str(read.to_er7())


def _fields(message: str) -> list[list[str]]:
    """Every field of every segment, without the empty ones at the end."""
    return [re.sub(r"\|+$", "", line).split("|") for line in message.strip("\r").split("\r")]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=30), st.text(max_size=100))
def test_whatever_is_echoed_the_answer_stays_one_answer(control: str, text: str) -> None:
    message = adt(control=control.replace("\r", "").replace("\n", "").replace("|", ""))
    written = answer(message, "AE", text)
    assert [segment[0] for segment in segments_of(written)] == ["MSH", "MSA", "ERR"]
    assert read_ack(written).code == "AE"


# Answers received


@pytest.mark.parametrize("code", ["AA", "AE", "AR", "CA", "CE", "CR"])
def test_every_code_of_table_0008_is_read(code: str) -> None:
    message = f"MSH|^~\\&|A|B|C|D|20260101||ACK|1|P|2.4\rMSA|{code}|ED\\T\\1|thank you\r"
    assert read_ack(message.encode()) == Ack(code=code, control_id="ED&1", text="thank you")  # type: ignore[arg-type]


def test_an_answer_in_other_separators_and_line_ends_is_read() -> None:
    assert read_ack(b"MSH#!@%*#A#B\nMSA#AA#X^1\n").control_id == "X^1"


def test_our_own_answer_is_read() -> None:
    assert read_ack(answer(adt(), "AR", "no")) == Ack(code="AR", control_id="ED000912", text="no")


def test_an_answer_without_a_code_is_unreadable() -> None:
    with pytest.raises(NotHl7):
        read_ack(b"OK")
    for message, reason in ((b"MSH|^~\\&|\r", "no_msa"), (b"MSH|^~\\&|\rMSA|OK|1", "unknown_ack_code")):
        with pytest.raises(Unreadable) as caught:
            read_ack(message)
        assert caught.value.reason == reason


# The reply


REPLY = ClinicianReply(
    reply_id="R-0001",
    organisation="RXX",
    in_answer_to="ED000912",
    visit_number="V778812",
    local_patient_id="K12345",
    replied_at=AT,
    outcome=ReplyOutcome.MATCH,
    wording="Subject to a plan.\nRing Test & Borough | at once.",
    plans=(
        PlanShown(
            plan_type=PlanType.CHILD_PROTECTION,
            start_on=date(2026, 1, 2),
            end_on=None,
            authority_name="Test & Borough",
            office_telephone="01632 960001",
            emergency_telephone="01632 960002",
        ),
        PlanShown(
            plan_type=PlanType.LOOKED_AFTER,
            start_on=date(2025, 1, 2),
            end_on=date(2026, 6, 30),
            has_ended=True,
            authority_name="Sampleshire",
            office_telephone="01632 960003",
            emergency_telephone="01632 960004",
        ),
    ),
    differs=(IdentityFact.NAME,),
    authorities_told=("Test & Borough", "Sampleshire"),
    lists=ListsSearched(
        authorities_searched=2,
        oldest_confirmed_at=AT - timedelta(days=9, minutes=5),
        own_authorities_missing=("Nowhere",),
        own_authorities_stale=("Sampleshire",),
    ),
)

NO_RECORD = ClinicianReply(
    reply_id="R-0002",
    organisation="RXX",
    in_answer_to="ED000913",
    visit_number=None,
    local_patient_id=None,
    replied_at=AT,
    outcome=ReplyOutcome.NO_RECORD,
    wording="No record found.",
    lists=ListsSearched(authorities_searched=0, oldest_confirmed_at=None),
)


def reply(content: ClinicianReply) -> bytes:
    return build_reply(
        content, sending_application="CPIS-BROKER", sending_facility="BROKER", control_id="C-0001", at=AT
    )


def test_the_reply_reads_as_written_here() -> None:
    assert reply(REPLY).decode().split("\r") == [
        "MSH|^~\\&|CPIS-BROKER|BROKER||RXX|20260714211503+0100||ORU^R01^ORU_R01|C-0001|P|2.4|||||GBR|UNICODE UTF-8|EN",
        "PID|1||K12345^^^RXX^PI",
        "PV1|1|U|||||||||||||||||V778812",
        "OBR|1|ED000912|R-0001|CHILD-PROTECTION-CHECK^Child protection check^99CPB"
        f"|||{AT_TEXT}|||||||||||||||{AT_TEXT}|||F",
        *(
            f"OBX|{number}|{text}|||||F|||{AT_TEXT}"
            for number, text in enumerate(
                [
                    "CE|OUTCOME^Outcome of the check^99CPB||match^Match^99CPB|",
                    "TX|WORDING^Outcome in words^99CPB||Subject to a plan.~Ring Test \\T\\ Borough \\F\\ at once.|",
                    "CE|PLAN-TYPE^Plan type^99CPB|1|child_protection_plan^Child protection plan^99CPB"
                    "^342191000000101^Subject to child protection plan^SCT|",
                    "DT|PLAN-START^Plan start date^99CPB|1|20260102|",
                    "ST|PLAN-STATUS^Whether the plan runs^99CPB|1|current|",
                    "ST|PLAN-AUTHORITY^Responsible local authority^99CPB|1|Test \\T\\ Borough|",
                    "ST|OFFICE-TELEPHONE^Office hours telephone^99CPB|1|01632 960001|",
                    "ST|EMERGENCY-TELEPHONE^Emergency duty team telephone^99CPB|1|01632 960002|",
                    "CE|PLAN-TYPE^Plan type^99CPB|2|looked_after_child^Looked-after child^99CPB"
                    "^764841000000100^Looked after child^SCT|",
                    "DT|PLAN-START^Plan start date^99CPB|2|20250102|",
                    "DT|PLAN-END^Plan end date^99CPB|2|20260630|",
                    "ST|PLAN-STATUS^Whether the plan runs^99CPB|2|ended|",
                    "ST|PLAN-AUTHORITY^Responsible local authority^99CPB|2|Sampleshire|",
                    "ST|OFFICE-TELEPHONE^Office hours telephone^99CPB|2|01632 960003|",
                    "ST|EMERGENCY-TELEPHONE^Emergency duty team telephone^99CPB|2|01632 960004|",
                    "ST|DIFFERS^Differs between attendance and list^99CPB||name|",
                    "ST|AUTHORITY-TOLD^Local authority told of the attendance^99CPB||Test \\T\\ Borough|",
                    "ST|AUTHORITY-TOLD^Local authority told of the attendance^99CPB||Sampleshire|",
                    "NM|LISTS-SEARCHED^Number of local authority lists searched^99CPB||2|",
                    "TS|OLDEST-LIST-AT^Oldest list confirmed at^99CPB||20260705211003+0100|",
                    "NM|OLDEST-LIST-AGE^Age of the oldest list^99CPB||216|h",
                    "ST|OWN-LIST-MISSING^List of own authority missing^99CPB||Nowhere|",
                    "ST|OWN-LIST-STALE^List of own authority out of date^99CPB||Sampleshire|",
                    "ID|NATIONAL-ASKED^National CP-IS asked^99CPB||N|",
                ],
                1,
            )
        ),
        "",
    ]


def test_hl7apy_builds_the_same_reply_and_reads_ours() -> None:
    ours = reply(REPLY).decode()
    assert _fields(_build_with_hl7apy()) == _fields(ours)
    assert _fields(_reread(ours)) == _fields(ours)
    assert _fields(_reread(reply(NO_RECORD).decode())) == _fields(reply(NO_RECORD).decode())


def _build_with_hl7apy() -> str:
    """REPLY, put together from its values by component; hl7apy sets the separators and escapes."""
    message = Message("ORU_R01", version="2.4", validation_level=VALIDATION_LEVEL.TOLERANT)
    msh: Any = message.msh
    msh.msh_3, msh.msh_4, msh.msh_6, msh.msh_7 = "CPIS-BROKER", "BROKER", "RXX", AT_TEXT
    msh.msh_9.msh_9_1, msh.msh_9.msh_9_2, msh.msh_9.msh_9_3 = "ORU", "R01", "ORU_R01"
    msh.msh_10, msh.msh_11 = "C-0001", "P"
    msh.msh_17, msh.msh_18, msh.msh_19 = "GBR", "UNICODE UTF-8", "EN"
    pid: Any = message.add_segment("PID")
    pid.pid_1 = "1"
    pid.pid_3.pid_3_1, pid.pid_3.pid_3_4, pid.pid_3.pid_3_5 = "K12345", "RXX", "PI"
    pv1: Any = message.add_segment("PV1")
    pv1.pv1_1, pv1.pv1_2, pv1.pv1_19 = "1", "U", "V778812"
    obr: Any = message.add_segment("OBR")
    obr.obr_1, obr.obr_2, obr.obr_3 = "1", "ED000912", "R-0001"
    obr.obr_4.obr_4_1, obr.obr_4.obr_4_2 = "CHILD-PROTECTION-CHECK", "Child protection check"
    obr.obr_4.obr_4_3 = "99CPB"
    obr.obr_7, obr.obr_22, obr.obr_25 = AT_TEXT, AT_TEXT, "F"
    for number, (observation, plan, values, units) in enumerate(_EXPECTED, 1):
        code, value_type, name = observation.value
        obx: Any = message.add_segment("OBX")
        obx.obx_1, obx.obx_2, obx.obx_4, obx.obx_6 = str(number), value_type, plan, units
        obx.obx_3.obx_3_1, obx.obx_3.obx_3_2, obx.obx_3.obx_3_3 = code, name, "99CPB"
        obx.obx_11, obx.obx_14 = "F", AT_TEXT
        for value in values:
            field = obx.add_field("OBX_5")
            if value_type == "CE":
                field.value = value
            else:
                field.datatype = "ST"
                field.value = ST(value)
    return str(message.to_er7())


_EXPECTED: list[tuple[Observation, str, list[str], str]] = [
    (Observation.OUTCOME, "", ["match^Match^99CPB"], ""),
    (Observation.WORDING, "", ["Subject to a plan.", "Ring Test & Borough | at once."], ""),
    (
        Observation.PLAN_TYPE,
        "1",
        ["child_protection_plan^Child protection plan^99CPB^342191000000101^Subject to child protection plan^SCT"],
        "",
    ),
    (Observation.PLAN_START, "1", ["20260102"], ""),
    (Observation.PLAN_STATUS, "1", ["current"], ""),
    (Observation.PLAN_AUTHORITY, "1", ["Test & Borough"], ""),
    (Observation.OFFICE_TELEPHONE, "1", ["01632 960001"], ""),
    (Observation.EMERGENCY_TELEPHONE, "1", ["01632 960002"], ""),
    (
        Observation.PLAN_TYPE,
        "2",
        ["looked_after_child^Looked-after child^99CPB^764841000000100^Looked after child^SCT"],
        "",
    ),
    (Observation.PLAN_START, "2", ["20250102"], ""),
    (Observation.PLAN_END, "2", ["20260630"], ""),
    (Observation.PLAN_STATUS, "2", ["ended"], ""),
    (Observation.PLAN_AUTHORITY, "2", ["Sampleshire"], ""),
    (Observation.OFFICE_TELEPHONE, "2", ["01632 960003"], ""),
    (Observation.EMERGENCY_TELEPHONE, "2", ["01632 960004"], ""),
    (Observation.DIFFERS, "", ["name"], ""),
    (Observation.AUTHORITY_TOLD, "", ["Test & Borough"], ""),
    (Observation.AUTHORITY_TOLD, "", ["Sampleshire"], ""),
    (Observation.LISTS_SEARCHED, "", ["2"], ""),
    (Observation.OLDEST_LIST_AT, "", ["20260705211003+0100"], ""),
    (Observation.OLDEST_LIST_AGE, "", ["216"], "h"),
    (Observation.OWN_LIST_MISSING, "", ["Nowhere"], ""),
    (Observation.OWN_LIST_STALE, "", ["Sampleshire"], ""),
    (Observation.NATIONAL_ASKED, "", ["N"], ""),
]


def test_the_reply_says_who_the_patient_is_by_the_departments_own_number_only() -> None:
    pid = next(segment for segment in segments_of(reply(REPLY)) if segment[0] == "PID")
    assert pid == ["PID", "1", "", "K12345^^^RXX^PI"]
    without = next(segment for segment in segments_of(reply(NO_RECORD)) if segment[0] == "PID")
    assert without == ["PID", "1", "", ""]


def test_nothing_in_a_reply_can_begin_a_segment() -> None:
    hostile = "x\rOBX|1|ST|OUTCOME||no_record_found"
    content = ClinicianReply(
        reply_id=hostile,
        organisation=hostile,
        in_answer_to=hostile,
        visit_number=hostile,
        local_patient_id=hostile,
        replied_at=AT,
        outcome=ReplyOutcome.MATCH,
        wording="one",
        authorities_told=(hostile,),
        lists=ListsSearched(authorities_searched=1, oldest_confirmed_at=None, own_authorities_missing=(hostile,)),
    )
    names = [segment[0] for segment in segments_of(reply(content))]
    assert names == ["MSH", "PID", "PV1", "OBR", *["OBX"] * 6]


@pytest.mark.parametrize("plan_type", list(PlanType))
@pytest.mark.parametrize("outcome", list(ReplyOutcome))
def test_every_outcome_and_plan_type_has_its_words(plan_type: PlanType, outcome: ReplyOutcome) -> None:
    plan = PlanShown(
        plan_type=plan_type,
        start_on=date(2026, 1, 2),
        end_on=None,
        authority_name="A",
        office_telephone="01632 960001",
        emergency_telephone="01632 960002",
    )
    content = ClinicianReply(
        reply_id="R",
        organisation="RXX",
        in_answer_to="1",
        visit_number=None,
        local_patient_id=None,
        replied_at=AT,
        outcome=outcome,
        wording="w",
        plans=(plan,),
        lists=ListsSearched(authorities_searched=1, oldest_confirmed_at=None, national_service_asked=True),
    )
    written = reply(content).decode()
    assert f"|{plan_type.value}^" in written
    assert f"|{outcome.value}^" in written
    assert "NATIONAL-ASKED^National CP-IS asked^99CPB||Y|" in written


REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "hl7v2-reply.md"


def test_the_reference_lists_every_observation_as_the_code_has_it() -> None:
    rows = re.findall(r"^\| `([A-Z-]+)` \| ([A-Z]{2}) \| ([^|]+?) \|", REFERENCE.read_text(encoding="utf-8"), re.M)
    assert rows == [observation.value for observation in Observation]


def test_the_reference_names_the_codes_that_stand_in_the_message() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    for word in [*(outcome.value for outcome in ReplyOutcome), *(plan_type.value for plan_type in PlanType)]:
        assert f"`{word}`" in text
