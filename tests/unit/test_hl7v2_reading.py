"""What is read of a message, whatever shape its sender gives it."""

from __future__ import annotations

import dataclasses
import random
from datetime import UTC, date, datetime

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import hl7v2_patient
from adapters.er7 import Hl7v2Limits, Separators
from adapters.errors import NotAnAttendance, NotHl7, Unreadable
from adapters.hl7v2 import read_ack, read_attendance, read_header
from schemas.attendance import Attendance, Event, NhsNumberProblem, PersonName
from tests.world import hl7

NHS_NUMBER = "9990000018"
OTHER_NHS_NUMBER = "9990000026"
INVALID_NHS_NUMBER = "9990000019"


@dataclasses.dataclass
class Adt:
    """A message in parts, each of which a test may write otherwise. ``pid`` and ``pv1`` are fields by number."""

    msh: dict[int, str] = dataclasses.field(default_factory=dict)
    evn: dict[int, str] = dataclasses.field(default_factory=dict)
    pid: dict[int, str] = dataclasses.field(default_factory=dict)
    pv1: dict[int, str] = dataclasses.field(default_factory=dict)
    pv2: dict[int, str] = dataclasses.field(default_factory=dict)
    end: str = "\r"

    def text(self) -> str:
        header = {
            1: "^~\\&",
            2: "EDIS",
            3: "RXX",
            4: "BROKER",
            5: "CPIS",
            6: "20260114201503",
            8: "ADT^A04^ADT_A01",
            9: "ED000912",
            10: "P",
            11: "2.4",
            17: "UNICODE",
        }
        header |= {number - 1: text for number, text in self.msh.items()}
        segments = {
            "MSH": header,
            "EVN": {2: "20260114201500", **self.evn},
            "PID": {
                1: "1",
                3: f"{NHS_NUMBER}^^^NHS^NH~K12345^^^RXX^MR",
                5: "TESTER^CASEY^^^^^L",
                7: "20150302",
                **self.pid,
            },
            "PV1": {1: "1", 2: "E", 19: "V778812^^^VISITID", 44: "20260114200700", **self.pv1},
            "PV2": {3: "^Fall from height", 38: "A", **self.pv2},
        }
        return self.end.join(_segment(name, fields) for name, fields in segments.items()) + self.end

    def message(self) -> bytes:
        return self.text().encode()


def _segment(name: str, fields: dict[int, str]) -> str:
    return "|".join([name, *(fields.get(number, "") for number in range(1, max(fields) + 1))])


def read(adt: Adt) -> Attendance:
    return read_attendance(adt.message())


def reason_for(message: bytes, limits: Hl7v2Limits | None = None) -> str:
    with pytest.raises(Unreadable) as caught:
        read_attendance(message, limits or Hl7v2Limits())
    return caught.value.reason


# The sample of the handbook


SAMPLE = (
    b"MSH|^~\\&|EDIS|RXX|BROKER|CPIS|20260114201503||ADT^A04^ADT_A01|ED000912|P|2.4|||AL|NE|GBR|UNICODE|EN||iTKv1.0\r"
    b"EVN||20260114201500\r"
    b"PID|1||9990000018^^^NHS^NH~K12345^^^RXX^MR||TESTER^CASEY^^^^^L||20150302|2|||1 SAMPLE ST^^LEEDS^^LS1 1AA^GBR^H"
    b"|||||||||||||||||||||NSTS01\r"
    b"PV1|1|E|ED^MAJ3^1^RXX01||||||||||||||||V778812^^^VISITID|||||||||||||||||||||||||20260114200700\r"
    b"PV2|||^Fall from height|||||||||||||||||||||||||||||||||||A\r"
)


def test_what_a_message_does_not_say_takes_no_room_and_what_was_kept_with_it_is_read_alike() -> None:
    said = read_attendance(SAMPLE)
    kept = msgspec.json.decode(msgspec.json.encode(said))
    assert {name for name in Attendance.__struct_fields__ if getattr(said, name)} == kept.keys()
    kept_in_full = msgspec.json.encode(msgspec.structs.asdict(said))
    assert msgspec.json.decode(kept_in_full, type=Attendance) == said
    assert msgspec.convert(kept, Attendance) == said


def test_the_handbooks_sample_is_read_whole() -> None:
    assert read_attendance(SAMPLE) == Attendance(
        sender="RXX",
        control_id="ED000912",
        event=Event.REGISTERED,
        message_at=datetime(2026, 1, 14, 20, 15, 3, tzinfo=UTC),
        event_at=datetime(2026, 1, 14, 20, 15, tzinfo=UTC),
        nhs_number=NHS_NUMBER,  # type: ignore[arg-type]  # a literal that is one
        nhs_number_problem=None,
        nhs_number_status="01",
        local_patient_id="K12345",
        names=(PersonName("TESTER", "CASEY"),),
        birth_date=date(2015, 3, 2),
        sex="2",
        postcode="LS1 1AA",
        visit_number="V778812",
        patient_class="E",
        department="ED",
        site="RXX01",
        arrived_at=datetime(2026, 1, 14, 20, 7, tzinfo=UTC),
        left_at=None,
        arrival_mode="A",
        complaint="Fall from height",
        disposition=None,
    )


def test_the_handbooks_header_is_read_whole() -> None:
    header = read_header(SAMPLE.replace(b"20260114201503||", b"20260114201503|s3cret^|", 1))
    assert header.separators == Separators()
    assert header.sender == "RXX"
    assert header.credential == b"s3cret^"
    assert header.control_id == "ED000912"
    assert (header.message_type, header.event) == ("ADT", "A04")
    assert (header.processing_id, header.version) == ("P", "2.4")


def test_a_header_never_shows_the_credential() -> None:
    header = read_header(Adt(msh={8: "s3cret"}).message())
    assert header.credential == b"s3cret"
    assert "s3cret" not in repr(header)


def test_the_sender_is_the_first_component_in_capitals() -> None:
    assert read_header(Adt(msh={4: "rxx^2.16.840^ISO"}).message()).sender == "RXX"


# Events and types


@pytest.mark.parametrize("event", list(Event))
def test_every_event_in_scope_is_read(event: Event) -> None:
    assert read(Adt(msh={9: f"ADT^{event.value}"})).event is event


def test_the_event_of_old_versions_stands_in_evn_1() -> None:
    assert read(Adt(msh={9: "ADT", 12: "2.1"}, evn={1: "A04"})).event is Event.REGISTERED


@pytest.mark.parametrize("message_type", ["ORU^R01", "ADT^A17^ADT_A17", "ADT^A99", "SIU^S12", "ACK"])
def test_what_is_no_attendance_can_be_told_apart(message_type: str) -> None:
    with pytest.raises(NotAnAttendance) as caught:
        read(Adt(msh={9: message_type}))
    assert caught.value.reason == "not_an_attendance"


def test_a_message_without_an_event_is_unreadable() -> None:
    assert reason_for(Adt(msh={9: "ADT"}).message()) == "no_event"
    assert reason_for(Adt(msh={9: ""}).message()) == "no_event"


# What does not begin like HL7


@pytest.mark.parametrize(
    "message",
    [b"", b"\r\n", b"PID|1", b"{}", b"MSH", b"MSHA^~\\&A", b"MSH||EDIS", b"MSH|A~\\&|", b"\xff\xfeM\x00S\x00"],
)
def test_bytes_that_are_no_hl7_are_refused(message: bytes) -> None:
    with pytest.raises(NotHl7):
        read_header(message)
    with pytest.raises(NotHl7):
        read_attendance(message)


@pytest.mark.parametrize(
    "before", [b"\xef\xbb\xbf", b"\r\n  ", b"\x0b", b"\x0b\xef\xbb\xbf", b"FHS|^~\\&|A\rBHS|^~\\&|B\r", b"BHS|^~\\&\n"]
)
def test_marks_line_ends_framing_and_batch_headers_before_the_header_are_tolerated(before: bytes) -> None:
    assert read_header(before + SAMPLE).control_id == "ED000912"
    assert read_attendance(before + SAMPLE) == read_attendance(SAMPLE)


def test_framing_behind_the_message_is_tolerated() -> None:
    assert read_attendance(SAMPLE + b"\x1c\r") == read_attendance(SAMPLE)
    assert read_attendance(SAMPLE.rstrip() + b"\x1c") == read_attendance(SAMPLE)


def test_two_messages_in_one_frame_are_not_taken_for_one() -> None:
    assert reason_for(SAMPLE + SAMPLE) == "several_messages"


def test_two_patients_in_one_message_are_not_taken_for_one() -> None:
    assert reason_for(SAMPLE + b"PID|1||K2^^^RXX^MR\r") == "several_patients"


def test_a_message_without_a_patient_is_unreadable() -> None:
    assert reason_for(b"\r".join(line for line in SAMPLE.split(b"\r") if not line.startswith(b"PID"))) == "no_pid"
    assert reason_for(SAMPLE.replace(b"PID|", b"PIDX|")) == "no_pid"


def test_a_patient_nobody_could_identify_is_unreadable() -> None:
    assert reason_for(Adt(pid={3: "", 5: "DOE^JANE", 7: ""}).message()) == "no_identity"


def test_a_name_with_a_date_of_birth_identifies() -> None:
    assert read(Adt(pid={3: ""})).names == (PersonName("TESTER", "CASEY"),)


# Line ends and separators


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", "\r\r\n"])
def test_every_line_end_is_understood(end: str) -> None:
    assert read_attendance(Adt(end=end).message()) == read(Adt())


def test_mixed_line_ends_are_understood() -> None:
    mixed = SAMPLE.replace(b"\rPID", b"\nPID").replace(b"\rPV1", b"\r\nPV1")
    assert read_attendance(mixed) == read_attendance(SAMPLE)


@pytest.mark.parametrize("characters", ["#!@%*", "$*+?.", "¦^~\\&", "]-[()"])
def test_any_separators_are_understood(characters: str) -> None:
    translated = SAMPLE.decode().translate(str.maketrans("|^~\\&", characters))
    assert read_attendance(translated.encode()) == read_attendance(SAMPLE)


def test_a_separator_written_twice_counts_once() -> None:
    doubled = SAMPLE.replace(b"^~\\&", b"^~\\\\&", 1)
    assert read_header(doubled).separators == Separators()
    assert read_attendance(doubled) == read_attendance(SAMPLE)


def test_separators_left_out_have_their_usual_value() -> None:
    assert read_header(SAMPLE.replace(b"^~\\&", b"^~", 1)).separators == Separators()


# Text: character sets, escapes, null, control characters


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [
        ("utf-8", "UNICODE UTF-8"),
        ("utf-8", "ASCII"),
        ("utf-8", "8859/1"),
        ("utf-8", ""),
        ("latin-1", "8859/1"),
        ("latin-1", "UNICODE"),
        ("latin-1", "nonsense"),
        ("cp1252", ""),
        ("iso8859-15", "8859/15"),
    ],
)
def test_names_survive_every_character_set_however_it_is_declared(encoding: str, declared: str) -> None:
    text = Adt(msh={18: declared}, pid={5: "NÍ DHONNCHADHA^SIÂN"}).text()
    assert read_attendance(text.encode(encoding)).names == (PersonName("NÍ DHONNCHADHA", "SIÂN"),)


def test_the_declared_character_set_decides_where_utf_8_fails() -> None:
    text = Adt(msh={18: "8859/2"}, pid={5: "ŁĄCKA^ŻANETA"}).text()
    assert read_attendance(text.encode("iso8859-2")).names == (PersonName("ŁĄCKA", "ŻANETA"),)


def test_bytes_of_no_character_set_still_give_the_number() -> None:
    message = Adt().message().replace(b"TESTER", b"T\x81\x8dR")
    assert read_attendance(message).nhs_number == NHS_NUMBER


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("A\\F\\B", "A|B"),
        ("A\\S\\B", "A^B"),
        ("A\\T\\B", "A&B"),
        ("A\\R\\B", "A~B"),
        ("A\\E\\B", "A\\B"),
        ("A\\E\\T\\E\\B", "A\\T\\B"),
        ("A\\X42\\C", "ABC"),
        ("A\\XC3A9\\", "Aé"),
        ("A\\.br\\B", "A B"),
        ("\\H\\A\\N\\", "A"),
        ("C:\\temp\\x", "C:\\temp\\x"),
        ("A\\", "A\\"),
        ("A\\XZZ\\B", "A\\XZZ\\B"),
    ],
)
def test_escapes_are_replaced_and_other_backslashes_left(written: str, meant: str) -> None:
    assert read(Adt(pv2={3: f"^{written}"})).complaint == meant


def test_null_never_becomes_text() -> None:
    attendance = read(
        Adt(
            pid={5: '""^""~""^CASEY~TESTER^""', 7: '""', 8: '""', 11: '""'}, pv1={2: '""', 19: '""', 36: '""', 45: '""'}
        )
    )
    assert attendance.names == (PersonName("", "CASEY"), PersonName("TESTER", ""))
    missing = (attendance.birth_date, attendance.sex, attendance.postcode, attendance.visit_number)
    assert missing == (None, None, None, None)
    assert (attendance.patient_class, attendance.disposition, attendance.left_at) == (None, None, None)


def test_control_characters_do_not_reach_a_name() -> None:
    assert read(Adt(pid={5: "TES\0T\x07ER^\x7fCASEY\x85"})).names == (PersonName("TESTER", "CASEY"),)


def test_white_space_is_no_text() -> None:
    attendance = read(Adt(pid={8: "  "}, pv1={2: " E ", 19: " "}))
    assert (attendance.sex, attendance.patient_class, attendance.visit_number) == (None, "E", None)


# The NHS number


@pytest.mark.parametrize(
    "identifiers",
    [
        f"{NHS_NUMBER}^^^NHS^NH",
        f"{NHS_NUMBER}^^^NHS",
        f"{NHS_NUMBER}^^^^NH",
        f"{NHS_NUMBER}^^^nhs",
        f"{NHS_NUMBER}^^^NHSNBR^NHSNMBR",
        f"{NHS_NUMBER}^^^NHS&2.16.840.1.113883.2.1.4.1&ISO",
        f"{NHS_NUMBER}^^^&2.16.840.1.113883.2.1.4.1&ISO",
        f"{NHS_NUMBER}^^^https://fhir.nhs.uk/Id/nhs-number",
        f"{NHS_NUMBER}^^^RXX^NHS Number",
        f"{NHS_NUMBER}^^^NHS^PI",
        f"{NHS_NUMBER}^NHS",
        f"{NHS_NUMBER}^^NH",
        f"NHS^{NHS_NUMBER}",
        "999 000 0018^^^NHS",
        "999-000-0018^^^NHS",
        f"K12345^^^RXX^MR~{NHS_NUMBER}^^^NHS^NH",
        f"K12345~{NHS_NUMBER}",
        f"{INVALID_NHS_NUMBER}^^^NHS~{NHS_NUMBER}^^^NHS",
        f"{OTHER_NHS_NUMBER}~{NHS_NUMBER}^^^NHS",
        f"{NHS_NUMBER}",
        f"{NHS_NUMBER}^8^M11",
    ],
)
def test_the_nhs_number_is_found_wherever_it_stands(identifiers: str) -> None:
    attendance = read(Adt(pid={3: identifiers}))
    assert attendance.nhs_number == NHS_NUMBER
    assert attendance.nhs_number_problem is None


@pytest.mark.parametrize(
    "identifiers",
    [
        f"{NHS_NUMBER}^^^RXX^MR",
        f"{NHS_NUMBER}^^^RXX",
        f"{NHS_NUMBER}^^^^MR",
        f"{NHS_NUMBER}^^^^PI",
        f"{NHS_NUMBER}^^^SIMULATOR MRN^MRN",
        f"{NHS_NUMBER}^^^CHI^NI",
        f"{NHS_NUMBER}^^^NHS TRUST^MR",
        f"{NHS_NUMBER}^MRN",
        f"{NHS_NUMBER}^^^^^RXX",
        "3333333333",
        "",
    ],
)
def test_a_number_that_says_it_is_something_else_never_becomes_the_nhs_number(identifiers: str) -> None:
    attendance = read(Adt(pid={2: f"{NHS_NUMBER}^^^RXX^MR", 3: identifiers}))
    assert attendance.nhs_number is None
    assert attendance.nhs_number_problem is NhsNumberProblem.ABSENT


@pytest.mark.parametrize("identifier", [f"{INVALID_NHS_NUMBER}^^^NHS^NH", "UNKNOWN^^^NHS", "3333333333^^^NHS^NH"])
def test_an_invalid_nhs_number_is_said_to_be_invalid(identifier: str) -> None:
    attendance = read(Adt(pid={3: f"{identifier}~{OTHER_NHS_NUMBER}~K1^^^RXX^MR"}))
    assert attendance.nhs_number is None
    assert attendance.nhs_number_problem is NhsNumberProblem.INVALID


@pytest.mark.parametrize("identifier", ["^^^NHS^NH", '""^^^NHS^NH'])
def test_an_empty_nhs_number_is_absent(identifier: str) -> None:
    attendance = read(Adt(pid={3: f"{identifier}~K1^^^RXX^MR"}))
    assert attendance.nhs_number_problem is NhsNumberProblem.ABSENT


@pytest.mark.parametrize("field", [NHS_NUMBER, f"{NHS_NUMBER}^^^NHS", "999 000 0018"])
def test_pid_2_is_the_last_resort(field: str) -> None:
    assert read(Adt(pid={2: field, 3: "K1^^^MRENTR^MEDREC"})).nhs_number == NHS_NUMBER
    assert read(Adt(pid={2: field, 3: f"{OTHER_NHS_NUMBER}^^^NHS"})).nhs_number == OTHER_NHS_NUMBER


def test_an_invalid_number_in_pid_2_counts_only_when_it_says_what_it_is() -> None:
    labelled = read(Adt(pid={2: f"{INVALID_NHS_NUMBER}^^^NHS", 3: "K1^^^RXX^MR"}))
    assert labelled.nhs_number_problem is NhsNumberProblem.INVALID
    assert read(Adt(pid={2: "X17", 3: "K1^^^RXX^MR"})).nhs_number_problem is NhsNumberProblem.ABSENT


@pytest.mark.parametrize(
    ("codes", "status"),
    [
        ("NSTS01", "01"),
        ("AL~US~~~~NSTS03", "03"),
        ("01", "01"),
        ("02~NSTS08", "08"),
        ("PDS01", "01"),
        ("nsts04^traced", "04"),
        ("1", None),
        ("NSTS09", None),
        ("", None),
    ],
)
def test_the_number_status_is_found_among_the_reliability_codes(codes: str, status: str | None) -> None:
    assert read(Adt(pid={32: codes})).nhs_number_status == status


def test_what_stands_in_the_place_of_a_reliability_code_is_not_kept_in_memory() -> None:
    kept = hl7v2_patient._number_status.cache_info
    before = kept()
    assert read(Adt(pid={32: "X" * 100_000 + "~NSTS04"})).nhs_number_status == "04"
    read(Adt(pid={32: "CASEY TESTER"}))
    assert kept().misses - before.misses <= 1


@pytest.mark.parametrize(
    ("identifiers", "local"),
    [
        (f"{NHS_NUMBER}^^^NHS^NH~K1^^^RXX^MR", "K1"),
        (f"X9^^^LAB^XX~{NHS_NUMBER}^^^NHS~K1^^^RXX^PI", "K1"),
        (f"{NHS_NUMBER}^^^NHS~K1", "K1"),
        (f"K1^^^RXX~{NHS_NUMBER}^^^NHS", "K1"),
        (f"{NHS_NUMBER}~K1", "K1"),
        (f"{OTHER_NHS_NUMBER}^^^RXX^MR~{NHS_NUMBER}^^^NHS", OTHER_NHS_NUMBER),
        (f"K1^^^NHS^MR~{NHS_NUMBER}^^^NHS^NH", "K1"),
        (f"{NHS_NUMBER}^^^NHS", None),
        (NHS_NUMBER, None),
    ],
)
def test_the_senders_own_number_is_told_from_the_nhs_number(identifiers: str, local: str | None) -> None:
    attendance = read(Adt(pid={3: identifiers}))
    assert attendance.local_patient_id == local
    assert attendance.nhs_number == NHS_NUMBER


# Names, dates and times


def test_every_name_is_read_once() -> None:
    names = "TESTER^CASEY^ANN^^MISS^^L~MAIDEN&VAN&MAIDEN^CASEY~TESTER^CASEY^ANN~^^~^KC^^^^^N"
    assert read(Adt(pid={5: names})).names == (
        PersonName("TESTER", "CASEY ANN"),
        PersonName("MAIDEN", "CASEY"),
        PersonName("", "KC"),
    )


@pytest.mark.parametrize(
    ("field", "born_on"),
    [
        ("20150302", date(2015, 3, 2)),
        ("201503021315", date(2015, 3, 2)),
        ("20150302131500.123+0100", date(2015, 3, 2)),
        ("20150302000000", date(2015, 3, 2)),
        ("20150302+0000", date(2015, 3, 2)),
        ("2015-03-02", date(2015, 3, 2)),
        ("2015-03-02T13:15:00Z", date(2015, 3, 2)),
        ("20150302^D", date(2015, 3, 2)),
        ("20160229", date(2016, 2, 29)),
        ("20150229", None),
        ("20150302^L", None),
        ("20150101^Y", None),
        ("201503", None),
        ("2015", None),
        ("20150300", None),
        ("10131113", date(1013, 11, 13)),
        ("21000101", date(2100, 1, 1)),
        ("00000101", None),
        ("2015W012", None),
        ("02/03/2015", None),
        ("20150302x", None),
        ("２０１５0302", None),
        ("", None),
    ],
)
def test_a_date_of_birth_counts_only_when_the_day_is_known(field: str, born_on: date | None) -> None:
    assert read(Adt(pid={7: field})).birth_date == born_on


@pytest.mark.parametrize(
    ("field", "instant"),
    [
        ("202601142007", datetime(2026, 1, 14, 20, 7, tzinfo=UTC)),
        ("20260714200700", datetime(2026, 7, 14, 19, 7, tzinfo=UTC)),
        ("20260714200700.1234", datetime(2026, 7, 14, 19, 7, 0, 123400, tzinfo=UTC)),
        ("20260714200700+0000", datetime(2026, 7, 14, 20, 7, tzinfo=UTC)),
        ("202607142007-0500", datetime(2026, 7, 15, 1, 7, tzinfo=UTC)),
        ("2026-07-14T20:07:00", datetime(2026, 7, 14, 19, 7, tzinfo=UTC)),
        ("2026-07-14 20:07", datetime(2026, 7, 14, 19, 7, tzinfo=UTC)),
        ("20260714200700^S", datetime(2026, 7, 14, 19, 7, tzinfo=UTC)),
        ("2026071420", None),
        ("2026071420+0100", None),
        ("20260714", None),
        ("20260714+01:00", None),
        ("20260714246000", None),
        ("20260732200700", None),
        ("20260714200700+9999", None),
        ("00010101000000", None),
        ("99991231235959", None),
        ("now", None),
    ],
)
def test_a_time_counts_from_the_minute_on(field: str, instant: datetime | None) -> None:
    assert read(Adt(pv1={44: field})).arrived_at == instant


@pytest.mark.parametrize(
    ("local", "instant"),
    [
        ("20261025003000", datetime(2026, 10, 24, 23, 30, tzinfo=UTC)),
        ("20261025013000", datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
        ("20261025023000", datetime(2026, 10, 25, 2, 30, tzinfo=UTC)),
        ("20260329003000", datetime(2026, 3, 29, 0, 30, tzinfo=UTC)),
        ("20260329013000", datetime(2026, 3, 29, 1, 30, tzinfo=UTC)),
        ("20260329020000", datetime(2026, 3, 29, 1, 0, tzinfo=UTC)),
        ("20260329235959", datetime(2026, 3, 29, 22, 59, 59, tzinfo=UTC)),
    ],
)
def test_the_hour_that_comes_twice_is_the_first_and_the_missing_one_is_shifted(local: str, instant: datetime) -> None:
    assert read(Adt(pv1={44: local})).arrived_at == instant


def test_the_time_of_the_event_is_evn_2_then_evn_6_then_the_messages_own() -> None:
    own = datetime(2026, 1, 14, 20, 15, 3, tzinfo=UTC)
    occurred = datetime(2026, 1, 14, 19, 0, tzinfo=UTC)
    recorded = datetime(2026, 1, 14, 20, 0, tzinfo=UTC)
    assert read(Adt(evn={2: "20260114200000", 6: "20260114190000"})).event_at == recorded
    assert read(Adt(evn={2: "", 6: "20260114190000"})).event_at == occurred
    assert read(Adt(evn={2: "2026", 6: ""})).event_at == own


def test_the_visit_is_read() -> None:
    attendance = read(
        Adt(
            pid={8: "F^Female", 11: "1 A ST^^^^^^H~2 B ST^^LEEDS^^zz99 3vz^GBR"},
            pv1={3: "ED&X^MAJ^1^RXX01&9^^BED", 36: "12^Left", 45: "20260114230000"},
            pv2={3: "Fever", 38: "A^Ambulance"},
        )
    )
    assert (attendance.sex, attendance.postcode) == ("F", "ZZ99 3VZ")
    assert (attendance.department, attendance.site) == ("ED&X", "RXX01")
    assert (attendance.disposition, attendance.arrival_mode) == ("12", "A")
    assert attendance.complaint == "Fever"
    assert attendance.left_at == datetime(2026, 1, 14, 23, 0, tzinfo=UTC)


def test_an_unescaped_ampersand_does_not_cut_a_complaint() -> None:
    assert read(Adt(pv2={3: "^Cut & bruise"})).complaint == "Cut & bruise"


def test_a_message_may_have_nothing_but_its_patient() -> None:
    message = b"MSH|^~\\&|||||||ADT^A31|1|P|2.4\rPID|||K1^^^RXX^MR"
    attendance = read_attendance(message)
    assert attendance.sender == ""
    assert attendance.local_patient_id == "K1"
    assert (attendance.visit_number, attendance.arrived_at, attendance.event_at) == (None, None, None)


# Limits


def test_a_thousand_repetitions_are_read() -> None:
    identifiers = "~".join([*(f"K{number}^^^RXX^XX" for number in range(1_000)), f"{NHS_NUMBER}^^^NHS"])
    assert read(Adt(pid={3: identifiers})).nhs_number == NHS_NUMBER


@pytest.mark.parametrize("field", [3, 5, 11, 32])
def test_too_many_repetitions_are_refused(field: int) -> None:
    assert reason_for(Adt(pid={field: "~".join(["X"] * 10_000)}).message()) == "too_many_repetitions"


def test_too_many_segments_are_refused() -> None:
    assert reason_for(SAMPLE + b"OBX|1\r" * 10_000) == "too_many_segments"
    assert read_attendance(SAMPLE + b"OBX|1\r" * 1_900).nhs_number == NHS_NUMBER


def test_too_large_a_message_is_refused() -> None:
    assert reason_for(SAMPLE + b"NTE|" + b"x" * 2_000_000) == "message_too_large"
    assert reason_for(SAMPLE, Hl7v2Limits(message_bytes_max=100)) == "message_too_large"


@pytest.mark.parametrize(
    "adt",
    [
        Adt(pid={3: "K" * 300}),
        Adt(pv1={19: "V" * 300}),
        Adt(msh={4: "R" * 300}),
        Adt(msh={10: "C" * 300}),
    ],
)
def test_an_identifier_is_never_cut(adt: Adt) -> None:
    assert reason_for(adt.message()) == "component_too_long"


@pytest.mark.parametrize("field", [3, 4, 5, 6, 8, 9, 10, 11, 12])
def test_a_header_that_would_be_echoed_at_length_is_refused(field: int) -> None:
    with pytest.raises(Unreadable) as caught:
        read_header(Adt(msh={field: "X" * 300}).message())
    assert caught.value.reason == "component_too_long"


def test_texts_and_names_are_cut() -> None:
    attendance = read(Adt(pid={5: f"{'N' * 500}^{'G' * 500}"}, pv2={3: f"^{'c' * 5_000}"}))
    assert attendance.names == (PersonName("N" * 200, "G" * 200),)
    assert attendance.complaint == "c" * 1_000


def test_a_patient_of_very_many_names_costs_no_more_than_the_first() -> None:
    names = "~".join(f"N{number}" for number in range(1_000))
    assert len(read(Adt(pid={5: names})).names) == 50


def test_what_is_wrong_is_told_without_the_contents() -> None:
    with pytest.raises(Unreadable) as caught:
        read(Adt(pid={3: "SECRET" * 100}))
    assert "SECRET" not in f"{caught.value} {caught.value.detail} {caught.value!r}"


# Whatever the bytes


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_mutated_messages_raise_nothing_but_unreadable(data: st.DataObject) -> None:
    message = bytearray(SAMPLE)
    for _ in range(data.draw(st.integers(1, 12))):
        at = data.draw(st.integers(0, len(message)))
        piece = data.draw(
            st.one_of(st.binary(max_size=6), st.sampled_from([b"|", b"^", b"~", b"\\", b"&", b"\r", b'""']))
        )
        message[at : at + data.draw(st.integers(0, 8))] = piece
    _read_every_way(bytes(message))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"MSH", b"MSH|^~\\&|", b"MSH|^~\\&|||||||ADT^A04|1\rPID|"]))
def test_any_bytes_raise_nothing_but_unreadable(tail: bytes, head: bytes) -> None:
    _read_every_way(head + tail)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40), st.integers(1, 39), st.sampled_from(["PID", "PV1", "PV2", "EVN", "MSH"]))
def test_any_text_in_any_field_raises_nothing_but_unreadable(text: str, number: int, name: str) -> None:
    lines = [line.split("|") for line in SAMPLE.decode().split("\r")]
    for line in lines:
        if line[0] == name:
            line.extend([""] * (number + 1 - len(line)))
            line[number] = text
    _read_every_way("\r".join("|".join(line) for line in lines).encode())


def _read_every_way(message: bytes) -> None:
    for reader in (read_attendance, read_header, read_ack):
        try:
            reader(message)
        except Unreadable as error:
            assert error.reason.replace("_", "").isalnum()


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp", "Cf", "Cn", "Co"]), min_size=1, max_size=30)
)
def test_an_escaped_text_is_read_as_it_was(text: str) -> None:
    escaped = text.translate(
        {ord("\\"): "\\E\\", ord("|"): "\\F\\", ord("^"): "\\S\\", ord("&"): "\\T\\", ord("~"): "\\R\\"}
    )
    assert read(Adt(pv2={3: f"^{escaped}"})).complaint == (None if text == '""' else text)


def test_the_order_of_segments_does_not_matter() -> None:
    header, *others = SAMPLE.rstrip(b"\r").split(b"\r")
    random.Random(7).shuffle(others)
    assert read_attendance(b"\r".join([header, *others])) == read_attendance(SAMPLE)


@pytest.mark.parametrize(("code", "meaning"), [("3", True), ("5", False), ("7", False), ("2", None), ("", None)])
def test_zu3_says_whether_the_person_was_brought(code: str, meaning: bool | None) -> None:
    message = hl7() + f"ZU3|||{code}\r".encode()
    assert read_attendance(message).was_not_brought is meaning
