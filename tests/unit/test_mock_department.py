"""What an emergency department writes of its visits, read back by a foreign reader and by field positions."""

from __future__ import annotations

import warnings
from collections import Counter
from datetime import UTC, date, datetime
from functools import partial

import pytest

from mock_nhs.department import OPEN_VISITS_MAX, TYPICAL, AdtMessage, Department, Identity, digest_number
from mock_nhs.er7 import Message, escape
from mock_nhs.faults import Faults
from mock_nhs.people import Kin, Person
from mock_nhs.town import build_town
from schemas.identifiers import NhsNumber, parse_nhs_number

NOW = datetime(2026, 7, 14, 19, 15, 3, tzinfo=UTC)
TOWN = build_town(2, on=date(2026, 7, 14), people=300)

CASEY = Person(
    nhs_number=NhsNumber("9990000018"),
    family_name="O'Súilleabháin",
    given_name="Casey Anne",
    birth_date=date(2015, 3, 2),
    sex="2",
    address="1 Fish & Chip Row",
    postcode="ZZ99 1AA",
    household=1,
    kin=Kin.CHILD,
)


department = partial(Department, site="RZ1", credential="secret", people=TOWN.people, clock=lambda: NOW)


def read(message: AdtMessage) -> Message:
    return Message(message.body)


def test_a_registration_has_the_itk_shape() -> None:
    written = department().register(CASEY, complaint="D&V | since ^ ~ \\ yesterday")
    message = read(written)
    assert written.body.startswith(
        b"MSH|^~\\&|EDIS|RZ1|BROKER|CPIS|20260714201503|secret|ADT^A04^ADT_A01|RZ1-1-0000001|P|2.4|"
    )
    assert message.value("MSH", 18) == "UNICODE"
    assert message.value("MSH", 21) == "iTKv1.0"
    assert message.field("PID", 3) == f"{written.local_patient_id}^^^RZ1^MR~9990000018^^^NHS^NH"
    assert [message.value("PID", 5, component) for component in (1, 2, 3)] == ["O'Súilleabháin", "Casey", "Anne"]
    assert message.value("PID", 7) == "20150302"
    assert message.value("PID", 11) == "1 Fish & Chip Row"
    assert message.value("PID", 11, 5) == "ZZ99 1AA"
    assert message.value("PID", 32) == "NSTS01"
    assert message.value("PV1", 2) == "E"
    assert message.value("PV1", 19) == "V1-000001"
    assert message.value("PV1", 44) == "20260714201503"
    assert message.value("PV2", 3, 2) == "D&V | since ^ ~ \\ yesterday"
    assert message.value("PV2", 38) in "ACFP"
    assert len(message.value("MSH", 10)) <= 20


def test_a_foreign_reader_finds_the_same_fields() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the foreign library's own deprecations
        from hl7apy.parser import parse_message

        message = parse_message(department().register(CASEY).body.decode(), find_groups=False)
        assert message.pid.pid_3[1].cx_1.value == "9990000018"
        assert message.pid.pid_5.xpn_1.value == "O'Súilleabháin"
        assert message.pid.pid_32.value == "NSTS01"
        assert message.pv1.pv1_19.cx_1.value == "V1-000001"
        assert message.pv2.pv2_38.value in "ACFP"


def test_a_patient_keeps_the_local_number_and_each_visit_has_its_own() -> None:
    desk = department()
    first, second = desk.register(CASEY), desk.register(CASEY)
    assert first.local_patient_id == second.local_patient_id
    assert first.visit_number != second.visit_number
    assert department(site="RZ2").register(CASEY).local_patient_id != first.local_patient_id


def test_updates_are_of_the_same_visit_and_a_discharge_closes_it() -> None:
    desk = department()
    visit = desk.register(CASEY).visit_number
    update, admission, discharge = (desk.update(visit, event) for event in ("A08", "A01", "A03"))
    assert {read(each).value("PV1", 19) for each in (update, admission, discharge)} == {visit}
    assert read(admission).value("PV1", 2) == "I"
    assert read(discharge).field("MSH", 9) == "ADT^A03^ADT_A03"
    assert read(discharge).value("PV1", 36)
    assert read(discharge).value("PV1", 45) == "20260714201503"
    assert visit not in desk.open


def test_a_person_update_says_nothing_of_the_visit() -> None:
    desk = department()
    update = desk.update(desk.register(CASEY).visit_number, "A31")
    assert read(update).field("MSH", 9) == "ADT^A31^ADT_A05"
    assert read(update).value("PV1", 19) == ""
    assert read(update).value("PID", 3) == update.local_patient_id


@pytest.mark.parametrize(
    ("identity", "status"), [(Identity.ABSENT, "NSTS03"), (Identity.LATE, "NSTS03"), (Identity.INVALID, "NSTS02")]
)
def test_an_identity_without_a_usable_number_gives_none(identity: Identity, status: str) -> None:
    message = department().register(CASEY, identity)
    assert parse_nhs_number(message.nhs_number) is None
    assert read(message).value("PID", 32) == status
    assert b"9990000018" not in message.body


def test_a_late_number_comes_with_the_first_a08() -> None:
    desk = department()
    visit = desk.register(CASEY, Identity.LATE).visit_number
    before, first, after = (desk.update(visit, event) for event in ("A31", "A08", "A31"))
    assert [each.nhs_number for each in (before, first, after)] == ["", "9990000018", "9990000018"]


def test_a_renamed_patient_keeps_the_number_and_a_mistaken_one_has_anothers() -> None:
    desk = department()
    renamed, mistaken = desk.register(CASEY, Identity.RENAMED), desk.register(CASEY, Identity.MISTAKEN)
    assert renamed.nhs_number == "9990000018"
    assert read(renamed).value("PID", 5) != CASEY.family_name
    other = next(person for person in TOWN.people if person.nhs_number == mistaken.nhs_number)
    assert other.birth_date != CASEY.birth_date
    assert read(mistaken).value("PID", 5) == CASEY.family_name


def test_four_messages_in_five_are_updates_and_every_event_and_identity_occurs() -> None:
    desk = department()
    messages = [desk.next_message() for _ in range(5_000)]
    first = {message.visit_number: message for message in reversed(messages)}
    assert 0.17 < len(first) / len(messages) < 0.23
    assert {message.event for message in first.values()} == {"A04", "A01"}
    events = Counter(message.event for message in messages)
    assert set(events) == {"A01", "A03", "A04", "A08", "A31"}
    assert events["A08"] > events["A31"] > 0
    assert {message.identity for message in first.values()} == set(TYPICAL)
    assert len({message.control_id for message in messages}) == len(messages)
    assert len(desk.open) <= OPEN_VISITS_MAX + 1


def test_the_same_seed_writes_the_same_day() -> None:
    one, other, third = department(seed=4), department(seed=4), department(seed=5)
    days = [[desk.next_message().body for _ in range(50)] for desk in (one, other, third)]
    assert days[0] == days[1]
    assert not set(days[0]) & set(days[2])


def test_a_message_written_unreadable_has_no_patient_and_is_marked() -> None:
    faults = Faults()
    faults.arm_times("ed.write.unreadable", 1)
    desk = department(faults=faults)
    broken, good = desk.register(CASEY), desk.register(CASEY)
    assert not read(broken).segments("PID")
    assert (broken.facts()["unreadable"], good.facts()["unreadable"]) == (True, False)


def test_the_journal_gets_the_numbers_digest_and_never_the_number() -> None:
    facts = department().register(CASEY).facts()
    assert facts["nhs_number_digest"] == facts["person_digest"] == digest_number("9990000018")
    assert "9990000018" not in str(facts)


@pytest.mark.parametrize("text", ["plain", "a|b^c&d~e\\f", "\\E\\", "\\F\\ kept", "", "ends with \\"])
def test_escapes_are_undone_by_reading(text: str) -> None:
    message = Message(f"MSH|^~\\&|{escape(text)}|RZ1\r".encode())
    assert message.value("MSH", 3) == text


def test_other_separators_and_line_ends_are_read() -> None:
    message = Message(b"MSH$*%!@$EDIS$RZ1$\nPID$1$$H1***RZ1*MR%9990000018***NHS\n")
    assert message.value("MSH", 3) == "EDIS"
    assert message.text(message.field("PID", 3)) == "H1   RZ1 MR\n9990000018   NHS"
