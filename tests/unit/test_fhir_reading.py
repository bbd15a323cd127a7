"""What is read from FHIR R4 Bundles: who came, what happened, and what was wrong with the message."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest

from adapters.fhir import FhirReading, NotAnAttendanceBundle, UnreadableBundle, read_bundle
from schemas.attendance import Attendance, Event, NhsNumberProblem, PersonName
from tests.bundles import (
    ACT_CODE,
    BARS_EVENTS,
    DA_VINCI_EVENTS,
    MOTHERS_NUMBER,
    NHS_NUMBER,
    NHS_NUMBER_SYSTEM,
    ODS_SYSTEM,
    SITE_SYSTEM,
    STATUS_URL,
    V2_0203,
    V2_EVENTS,
    Element,
    encode,
    make_bars_message,
    make_bundle,
    make_encounter,
    make_header,
    make_identifier,
    make_message,
    make_mother,
    make_organisation,
    make_patient,
    make_service_request,
    make_transaction,
)
from tests.factories import make_nhs_number

OTHERS_NUMBER = make_nhs_number(3)
CASEY = PersonName("Tester", "Casey Jo")


def read(bundle: Element) -> FhirReading:
    return read_bundle(encode(bundle))


def attend(bundle: Element) -> Attendance:
    """The attendance in a Bundle in which nothing is wrong."""
    reading = read(bundle)
    assert reading.findings == ()
    assert not reading.attendance.is_degraded
    return reading.attendance


def with_patient(**changes: Any) -> Element:
    return make_bundle(make_header(), make_encounter(), make_patient(**changes), make_organisation())


def refusal(bundle: Element) -> str:
    with pytest.raises(UnreadableBundle) as caught:
        read(bundle)
    return caught.value.reason


# --- the shapes -----------------------------------------------------------------------------------------


def test_a_message_of_a_department_says_everything_about_the_visit() -> None:
    location = {"resourceType": "Location", "id": "l1", "name": "Majors 3"}
    location["identifier"] = [{"system": SITE_SYSTEM, "value": "RZ101"}]  # type: ignore[assignment]
    arrival = {
        "url": "http://hl7.org/fhir/StructureDefinition/encounter-modeOfArrival",
        "valueCoding": {"system": "http://snomed.info/sct", "code": "1048031000000100"},
    }
    bundle = make_message(
        location,
        make_mother(),
        extension=[arrival],
        status="finished",
        location=[{"location": {"reference": "Location/l1"}, "status": "active"}],
        period={"start": "2026-02-14T03:07:00+00:00", "end": "2026-02-14T06:30:00Z"},
        hospitalization={"dischargeDisposition": {"coding": [{"code": "306689006", "display": "Home"}]}},
    )
    assert attend(bundle) == Attendance(
        is_fhir=True,
        sender="RZ1",
        control_id="m1",
        event=Event.LEFT,
        message_at=datetime(2026, 2, 14, 3, 8, tzinfo=UTC),
        event_at=datetime(2026, 2, 14, 3, 8, tzinfo=UTC),
        nhs_number=NHS_NUMBER,
        nhs_number_status="01",
        mother_nhs_number=MOTHERS_NUMBER,
        local_patient_id="K12345",
        names=(CASEY,),
        birth_date=date(2015, 3, 2),
        sex="F",
        postcode="ZZ99 3WZ",
        visit_number="V778812",
        patient_class="E",
        department="Majors 3",
        site="RZ101",
        arrived_at=datetime(2026, 2, 14, 3, 7, tzinfo=UTC),
        left_at=datetime(2026, 2, 14, 6, 30, tzinfo=UTC),
        arrival_mode="A",
        complaint="Fall from height",
        disposition="306689006",
    )
    assert read(bundle).bundle_id == "b1"


def test_a_bars_referral_tells_of_the_contact_with_nhs_111() -> None:
    resources = [make_service_request(), make_encounter(status="triaged"), make_patient(), make_organisation("NLX")]
    attendance = attend(make_bars_message("servicerequest-request", resources, focus="ServiceRequest/s1"))
    assert (attendance.event, attendance.nhs_number, attendance.sender) == (Event.REGISTERED, NHS_NUMBER, "NLX")


def test_a_bars_response_tells_of_the_visit_it_answers_with() -> None:
    sent = make_encounter(id="e1", status="triaged")
    own = make_encounter(id="e2", status="finished", identifier=[{"value": "ED-1"}])
    resources = [make_service_request(encounter={"reference": "Encounter/e1"}), sent, own, make_patient()]
    resources.append(make_organisation())
    attendance = attend(make_bars_message("servicerequest-response", resources, focus="Encounter/e2"))
    assert (attendance.event, attendance.visit_number) == (Event.LEFT, "ED-1")


def test_a_bars_request_is_about_the_encounter_of_the_request_it_focuses_on() -> None:
    earlier = make_encounter(id="e1", identifier=[{"value": "CALL-1"}])
    later = make_encounter(id="e2", identifier=[{"value": "CALL-2"}], period={"start": "2026-02-14T04:00:00Z"})
    request = make_service_request(encounter={"reference": "Encounter/e1"})
    resources = [request, earlier, later, make_patient(), make_organisation()]
    bundle = make_bars_message("servicerequest-request", resources, focus="ServiceRequest/s1")
    assert attend(bundle).visit_number == "CALL-1"


@pytest.mark.parametrize(
    "resources",
    [
        [make_service_request(), make_patient()],
        [make_service_request(), make_encounter(status="planned"), make_patient(), make_organisation()],
    ],
    ids=["without an Encounter", "with a planned Encounter"],
)
def test_a_referral_of_somebody_who_may_come_is_no_attendance(resources: list[Element]) -> None:
    with pytest.raises(NotAnAttendanceBundle) as caught:
        read(make_bars_message("booking-request", resources, focus="ServiceRequest/s1"))
    assert caught.value.reason == "not_an_attendance"
    assert caught.value.bundle_id == "b1"
    assert caught.value.findings


def test_several_pairs_of_records_that_are_one_are_refused_and_a_link_that_names_nobody_joins_nobody() -> None:
    links = [{"type": "replaces", "other": {"identifier": {"system": "https://x.example", "value": v}}} for v in "AB"]
    assert refusal(make_bars_message("x", [make_patient(link=links)], focus="Patient/p1")) == "several_patients"
    for kind, other in (("replaces", {"reference": "Patient/gone"}), ("seealso", links[0]["other"])):
        with pytest.raises(NotAnAttendanceBundle):
            read(make_bars_message("x", [make_patient(link=[{"type": kind, "other": other}])], focus="Patient/p1"))


def test_a_transaction_refers_by_urn_uuid() -> None:
    bundle = make_transaction(make_encounter(), make_patient(), make_organisation())
    for number, entry in enumerate(bundle["entry"]):
        entry["fullUrl"] = f"urn:uuid:0000000a-0000-4000-8000-{number:012d}"
        del entry["resource"]["id"]
    bundle["entry"][0]["resource"]["subject"] = {"reference": "urn:uuid:0000000A-0000-4000-8000-000000000001"}
    bundle["entry"][0]["resource"]["serviceProvider"] = {"reference": "urn:uuid:0000000a-0000-4000-8000-000000000002"}
    attendance = attend(bundle)
    assert (attendance.nhs_number, attendance.sender, attendance.control_id) == (NHS_NUMBER, "RZ1", "b1")


@pytest.mark.parametrize("bundle_type", ["message", "transaction", "collection", "batch"])
def test_these_types_are_taken(bundle_type: str) -> None:
    bundle = make_message()
    bundle["type"] = bundle_type
    assert attend(bundle).nhs_number == NHS_NUMBER


@pytest.mark.parametrize("bundle_type", ["document", "searchset", "history", "batch-response", "transaction-response"])
def test_other_types_are_refused(bundle_type: str) -> None:
    bundle = make_message()
    bundle["type"] = bundle_type
    assert refusal(bundle) == "bundle_type_not_accepted"


@pytest.mark.parametrize("bundle_type", ["banana", None, 7])
def test_a_bundle_of_no_type_is_read_and_flagged(bundle_type: object) -> None:
    bundle = make_message()
    bundle["type"] = bundle_type
    reading = read(bundle)
    assert reading.attendance.is_degraded
    assert "Bundle.type" in [finding.expression for finding in reading.findings]


# --- references -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference",
    [
        "Patient/p1",
        "Patient/p1/_history/3",
        "https://edis.example.org/fhir/Patient/p1",
        "#inside",
    ],
)
def test_a_subject_is_found_in_the_bundle(reference: str) -> None:
    inside = {"resourceType": "Patient", "id": "inside", "identifier": [make_identifier()]}
    contained = [inside] if reference == "#inside" else None
    bystander = make_patient(id="p2", identifier=[make_identifier(OTHERS_NUMBER)])
    encounter = make_encounter(subject={"reference": reference}, contained=contained)
    assert attend(make_bundle(encounter, bystander, make_patient(), make_organisation())).nhs_number == NHS_NUMBER


def test_a_subject_outside_the_bundle_is_the_only_patient_inside() -> None:
    reading = read(make_message(subject={"reference": "https://elsewhere.example.org/Patient/9"}))
    assert reading.attendance.nhs_number == NHS_NUMBER
    assert [finding.expression for finding in reading.findings] == ["Bundle.entry[1].resource.subject"]


def test_a_subject_that_could_be_either_of_two_patients_is_not_guessed() -> None:
    twins = [make_patient(id="p1"), make_patient(id="p2", identifier=[make_identifier(OTHERS_NUMBER)])]
    assert refusal(make_bundle(make_encounter(subject=None), *twins)) == "several_patients"
    same_address = make_patient(id="p1", identifier=[make_identifier(OTHERS_NUMBER)])
    assert refusal(make_bundle(make_encounter(), make_patient(), same_address)) == "several_patients"


def test_encounters_of_several_patients_are_left_to_a_person() -> None:
    twin = make_patient(id="p2", identifier=[make_identifier(OTHERS_NUMBER)])
    visit = make_encounter(id="e2", subject={"reference": "Patient/p2"})
    assert refusal(make_message(twin, visit)) == "several_patients"


@pytest.mark.parametrize(
    "subject",
    [
        {"identifier": make_identifier()},
        {"reference": f"Patient?identifier={NHS_NUMBER_SYSTEM}|{NHS_NUMBER}"},
        {"reference": f"Patient?identifier=https%3A%2F%2Ffhir.nhs.uk%2FId%2Fnhs-number%7C{NHS_NUMBER}"},
    ],
    ids=["logical", "conditional", "escaped"],
)
def test_a_subject_may_be_an_nhs_number(subject: Element) -> None:
    encounter = make_encounter(subject=subject)
    assert attend(make_bundle(encounter, make_organisation())).nhs_number == NHS_NUMBER
    bystander = make_patient(id="p2", identifier=[make_identifier(OTHERS_NUMBER)])
    attendance = attend(make_bundle(encounter, bystander, make_patient(), make_organisation()))
    assert (attendance.nhs_number, attendance.names) == (NHS_NUMBER, (CASEY,))


def test_a_subject_known_by_its_number_lends_it_to_the_only_patient_if_that_has_none() -> None:
    encounter = make_encounter(subject={"identifier": make_identifier()})
    attendance = attend(make_bundle(encounter, make_patient(identifier=[{"value": "K1"}]), make_organisation()))
    assert (attendance.nhs_number, attendance.local_patient_id, attendance.names) == (NHS_NUMBER, "K1", (CASEY,))
    other = make_patient(identifier=[make_identifier(OTHERS_NUMBER)])
    attendance = attend(make_bundle(encounter, other, make_organisation()))
    assert (attendance.nhs_number, attendance.names) == (NHS_NUMBER, ())


def test_a_subject_may_be_the_senders_own_number() -> None:
    encounter = make_encounter(subject={"reference": "Patient?identifier=https://rz1.example.org/mrn|K12345"})
    bystander = make_patient(id="p2", identifier=[make_identifier(OTHERS_NUMBER)])
    bundle = make_bundle(encounter, bystander, make_patient(), make_organisation())
    assert attend(bundle).nhs_number == NHS_NUMBER


def test_a_message_without_a_patient_or_without_an_identity_is_refused() -> None:
    assert refusal(make_bundle(make_header(), make_encounter())) == "no_patient"
    assert refusal(with_patient(identifier=None, birthDate=None)) == "no_identity"
    assert refusal(with_patient(identifier=None, name=None)) == "no_identity"


# --- who it is ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "system",
    [
        NHS_NUMBER_SYSTEM,
        "http://fhir.nhs.uk/Id/nhs-number",
        "https://fhir.nhs.uk/id/nhs-number/",
        "http://fhir.nhs.net/Id/nhs-number",
        "urn:oid:2.16.840.1.113883.2.1.4.1",
        "2.16.840.1.113883.2.1.4.1",
        "http://example.com/v2-to-fhir-converter/Identifier/NHS",
    ],
)
def test_every_spelling_of_the_nhs_numbers_system_is_known(system: str) -> None:
    attendance = attend(with_patient(identifier=[make_identifier(system=system)]))
    assert (attendance.nhs_number, attendance.local_patient_id) == (NHS_NUMBER, None)


def test_a_number_that_says_it_is_another_is_never_taken() -> None:
    attendance = attend(with_patient(identifier=[make_identifier(system="https://rz1.example.org/mrn")]))
    assert attendance.nhs_number is None
    assert attendance.nhs_number_problem is NhsNumberProblem.ABSENT
    assert attendance.local_patient_id == NHS_NUMBER


def test_a_number_that_says_nothing_of_itself_is_taken_if_no_other_does() -> None:
    bare = {"value": NHS_NUMBER}
    assert attend(with_patient(identifier=[bare])).nhs_number == NHS_NUMBER
    labelled = make_identifier("9990000019")
    assert attend(with_patient(identifier=[bare, labelled])).nhs_number is None


def test_spaces_and_hyphens_are_allowed_in_an_nhs_number() -> None:
    spaced = f"{NHS_NUMBER[:3]} {NHS_NUMBER[3:6]}-{NHS_NUMBER[6:]}"
    assert attend(with_patient(identifier=[make_identifier(spaced)])).nhs_number == NHS_NUMBER


def test_a_number_that_fails_the_check_is_invalid_and_not_absent() -> None:
    attendance = attend(with_patient(identifier=[make_identifier("9990000019")]))
    assert attendance.nhs_number is None
    assert attendance.nhs_number_problem is NhsNumberProblem.INVALID


def test_an_old_number_gives_way_to_the_one_in_use() -> None:
    old = make_identifier(OTHERS_NUMBER, use="old", status="01")
    current = make_identifier(NHS_NUMBER, use="official", status="03")
    attendance = attend(with_patient(identifier=[old, current]))
    assert (attendance.nhs_number, attendance.nhs_number_status) == (NHS_NUMBER, "03")
    assert attend(with_patient(identifier=[old])).nhs_number == OTHERS_NUMBER


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("number-present-and-verified", "01"),
        ("number-present-but-not-traced", "02"),
        ("trace-required", "03"),
        ("trace-attempted", "04"),
        ("trace-needs-to-be-resolved", "05"),
        ("trace-in-progress", "06"),
        ("number-not-present-and-trace-not-required", "07"),
        ("trace-postponed", "08"),
        ("01", "01"),
        ("08", "08"),
        ("99", None),
    ],
)
@pytest.mark.parametrize("name", ["UKCore-NHSNumberVerificationStatus", "UKCore-NHSNumberVerificationStatusEngland"])
def test_the_verification_status_is_read_from_every_coding(name: str, code: str, status: str | None) -> None:
    coding = {"system": f"https://fhir.hl7.org.uk/CodeSystem/{name}", "code": code}
    identifier = make_identifier(extension=[{"url": STATUS_URL, "valueCodeableConcept": {"coding": [coding]}}])
    assert attend(with_patient(identifier=[identifier])).nhs_number_status == status


def test_the_senders_own_number_is_preferred_by_its_type() -> None:
    typed = {"value": "K1", "type": {"coding": [{"system": V2_0203, "code": "MR"}]}}
    other = {"system": "https://passports.example.org", "value": "P9"}
    assert attend(with_patient(identifier=[other, make_identifier(), typed])).local_patient_id == "K1"
    assert attend(with_patient(identifier=[make_identifier(), other])).local_patient_id == "P9"


def test_an_identifier_that_is_too_long_is_left_out_and_named() -> None:
    reading = read(with_patient(identifier=[make_identifier(), {"value": "9" * 300}]))
    assert reading.attendance.local_patient_id is None
    assert [finding.expression for finding in reading.findings] == ["Bundle.entry[2].resource.identifier[1].value"]


def test_every_name_is_read_former_ones_too() -> None:
    names = [
        {"use": "official", "family": "Tester", "given": ["Casey", "Jo"]},
        {"use": "maiden", "family": "Former", "given": ["Casey"], "period": {"end": "2020-01-01"}},
        {"use": "nickname", "given": ["Cas"]},
        {"use": "usual", "family": "Tester", "given": ["Casey", "Jo"]},
        {"text": "Miss Kit Sample", "prefix": ["Miss"]},
        {"text": "SAMPLE, Kit Lee (Miss)", "prefix": ["Miss"]},
    ]
    assert attend(with_patient(name=names)).names == (
        CASEY,
        PersonName("Former", "Casey"),
        PersonName("", "Cas"),
        PersonName("Sample", "Kit"),
        PersonName("SAMPLE", "Kit Lee"),
    )


def test_texts_are_cleaned_and_cut() -> None:
    names = [{"family": " Te\u0000st\ud800er\u0007 ", "given": ["Ca\tsey", "\u0000"]}, {"family": "x" * 5000}]
    family, long = read(with_patient(name=names)).attendance.names
    assert family == PersonName("Tester", "Ca sey")
    assert len(long.family) == 200


@pytest.mark.parametrize("birth_date", ["2015-03", "2015"])
def test_a_birth_date_is_read_only_when_the_day_is_known(birth_date: str) -> None:
    assert attend(with_patient(birthDate=birth_date)).birth_date is None


@pytest.mark.parametrize(
    ("gender", "sex"), [("male", "M"), ("female", "F"), ("other", "O"), ("unknown", "U"), (None, None)]
)
def test_gender_is_written_as_hl7_v2_does(gender: str | None, sex: str | None) -> None:
    assert attend(with_patient(gender=gender)).sex == sex


def test_an_old_address_gives_way() -> None:
    addresses = [{"use": "old", "postalCode": "ZZ99 1AA"}, {"use": "home", "postalCode": "ZZ99 2BB"}]
    assert attend(with_patient(address=addresses)).postcode == "ZZ99 2BB"


@pytest.mark.parametrize(
    "relationship",
    [
        {"coding": [{"code": "NMTH"}]},
        {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0131", "code": "Mother"}]},
        {"coding": [{"system": "http://snomed.info/sct", "code": "72705000"}]},
        {"text": "mother"},
    ],
)
def test_the_mother_is_known_by_any_of_her_codes(relationship: Element) -> None:
    assert attend(make_message(make_mother(relationship=[relationship]))).mother_nhs_number == MOTHERS_NUMBER


def test_another_relative_is_not_the_mother() -> None:
    for code in ("FTH", "STPMTH", "MTHFOST", "ADOPTM", "GRMTH"):
        relative = make_mother(relationship=[{"coding": [{"code": code}]}])
        assert attend(make_message(relative)).mother_nhs_number is None
    hers = make_mother(patient={"reference": "Patient/p2"})
    somebody = make_patient(id="p2", identifier=[make_identifier(OTHERS_NUMBER)])
    assert attend(make_message(hers, somebody)).mother_nhs_number is None


def test_the_mothers_number_may_be_in_a_patient_of_her_own() -> None:
    link = [{"other": {"reference": "RelatedPerson/r1"}, "type": "seealso"}]
    herself = make_patient(id="p2", identifier=[make_identifier(MOTHERS_NUMBER)], link=link)
    assert attend(make_message(make_mother(identifier=None), herself)).mother_nhs_number == MOTHERS_NUMBER


def test_a_mother_may_be_contained() -> None:
    contained = make_mother(id="mother")
    assert attend(with_patient(contained=[contained])).mother_nhs_number == MOTHERS_NUMBER


# --- what happened --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "event"),
    [
        ("arrived", Event.REGISTERED),
        ("triaged", Event.REGISTERED),
        ("in-progress", Event.REGISTERED),
        ("onleave", Event.REGISTERED),
        ("unknown", Event.REGISTERED),
        ("finished", Event.LEFT),
        ("cancelled", Event.ADMISSION_CANCELLED),
        ("entered-in-error", Event.ADMISSION_CANCELLED),
    ],
)
def test_the_status_says_what_happened(status: str, event: Event) -> None:
    assert attend(make_message(status=status)).event is event


@pytest.mark.parametrize(
    ("code", "letter"),
    [("EMER", "E"), ("IMP", "I"), ("ACUTE", "I"), ("NONAC", "I"), ("AMB", "O"), ("PRENC", "P"), ("VR", None)],
)
def test_the_class_is_that_of_hl7_v2(code: str, letter: str | None) -> None:
    attendance = attend(make_message(**{"class": {"system": ACT_CODE, "code": code}}))
    assert attendance.patient_class == letter
    assert attendance.event is (Event.ADMITTED if letter == "I" else Event.REGISTERED)


@pytest.mark.parametrize(
    ("system", "code", "event"),
    [
        (DA_VINCI_EVENTS, "notification-admit", Event.REGISTERED),
        (DA_VINCI_EVENTS, "notification-transfer", Event.TRANSFERRED),
        (DA_VINCI_EVENTS, "notification-discharge", Event.LEFT),
        (V2_EVENTS, "A04", Event.REGISTERED),
        (V2_EVENTS, "A08", Event.UPDATED),
        (V2_EVENTS, "A99", Event.REGISTERED),
        ("http://hl7.org/fhir/v2/0003", "A13", Event.DISCHARGE_CANCELLED),
        ("urn:oid:2.16.840.1.113883.12.3", "A01", Event.ADMITTED),
        (BARS_EVENTS, "A08", Event.REGISTERED),
    ],
)
def test_an_event_the_message_names_is_taken(system: str, code: str, event: Event) -> None:
    header = make_header(code, system=system)
    attendance = attend(make_bundle(header, make_encounter(), make_patient(), make_organisation()))
    assert attendance.event is event


@pytest.mark.parametrize(
    ("kind", "local_id", "former_id"),
    [("replaces", "K12345", "U1"), ("replaced-by", "U1", "K12345"), ("seealso", "K12345", None)],
)
@pytest.mark.parametrize("is_sent", [True, False])
def test_a_link_says_which_records_were_joined(kind: str, local_id: str, former_id: str | None, is_sent: bool) -> None:
    identifier = {
        "system": "https://rz1.example.org/mrn",
        "value": "U1",
        "type": {"coding": [{"system": V2_0203, "code": "MR"}]},
    }
    other: Element = {"reference": "Patient/p2"} if is_sent else {"identifier": identifier}
    others = [{"resourceType": "Patient", "id": "p2", "identifier": [identifier]}] if is_sent else []
    patient = make_patient(link=[{"other": other, "type": kind}])
    said = attend(make_bundle(make_header(), make_encounter(), patient, make_organisation(), *others))
    assert (said.local_patient_id, said.former_patient_id) == (local_id, former_id)


@pytest.mark.parametrize("kind", ["security", "tag"])
def test_a_label_says_that_a_message_is_a_test(kind: str) -> None:
    label = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "HTEST"}
    bundle = make_message()
    assert not attend(bundle).is_test
    assert attend({**bundle, "meta": {kind: [label]}}).is_test


def test_a_planned_encounter_counts_once_the_message_says_the_person_came() -> None:
    planned = [make_encounter(status="planned"), make_patient(), make_organisation()]
    assert attend(make_bundle(make_header("A04", system=V2_EVENTS), *planned)).event is Event.REGISTERED
    with pytest.raises(NotAnAttendanceBundle):
        read(make_bundle(make_header("A05", system=V2_EVENTS), *planned))


def test_of_several_encounters_the_one_in_focus_is_read_else_the_one_under_way_else_the_latest() -> None:
    finished = make_encounter(id="e1", status="finished", identifier=[{"value": "V1"}])
    under_way = make_encounter(id="e2", identifier=[{"value": "V2"}])
    later = make_encounter(
        id="e3", status="finished", identifier=[{"value": "V3"}], period={"start": "2026-02-14T05:00:00Z"}
    )
    rest = (make_patient(), make_organisation())
    assert attend(make_bundle(make_header(), finished, under_way, *rest)).visit_number == "V1"
    assert attend(make_bundle(under_way, finished, later, *rest)).visit_number == "V2"
    assert attend(make_bundle(later, finished, *rest)).visit_number == "V3"
    planned = make_encounter(id="e1", status="planned", identifier=[{"value": "V4"}])
    assert attend(make_bundle(make_header(), planned, under_way, *rest)).visit_number == "V2"


def test_times_are_utc_and_a_time_without_an_offset_is_londons() -> None:
    summer = make_message(period={"start": "2026-07-01T10:00:00+05:30", "end": "2026-07-01T10:00:00.123456789Z"})
    assert attend(summer).arrived_at == datetime(2026, 7, 1, 4, 30, tzinfo=UTC)
    reading = read(make_message(period={"start": "2026-07-01T10:00:00"}))
    assert reading.attendance.arrived_at == datetime(2026, 7, 1, 9, tzinfo=UTC)
    assert [finding.expression for finding in reading.findings] == ["Bundle.entry[1].resource.period.start"]
    assert attend(make_message(period={"start": "2026-07-01"})).arrived_at is None


def test_the_time_of_the_event_is_the_messages_else_that_of_the_status() -> None:
    period = {"start": "2026-02-14T03:00:00Z", "end": "2026-02-14T05:00:00Z"}
    bundle = make_message(status="finished", period=period)
    del bundle["timestamp"]
    attendance = attend(bundle)
    assert attendance.message_at is None
    assert attendance.event_at == datetime(2026, 2, 14, 5, tzinfo=UTC)
    bundle["meta"] = {"lastUpdated": "2026-02-14T05:01:00Z"}
    assert attend(bundle).event_at == datetime(2026, 2, 14, 5, 1, tzinfo=UTC)


def test_the_control_id_is_the_headers_else_the_bundles() -> None:
    message = make_message()
    assert attend(message).control_id == "m1"
    collection = make_bundle(make_encounter(), make_patient(), make_organisation())
    assert attend(collection).control_id == "b1"
    collection["identifier"] = {"value": "B-77"}
    assert attend(collection).control_id == "B-77"
    del collection["identifier"], collection["id"]
    assert attend(collection).control_id == ""


def test_the_sender_is_the_headers_organisation_else_the_provider() -> None:
    others = make_organisation("RX9", id="o2")
    header = make_header(sender={"reference": "Organization/o2"})
    rest = (make_encounter(), make_patient(), make_organisation())
    assert attend(make_bundle(header, others, *rest)).sender == "RX9"
    assert attend(make_bundle(make_header(sender=None), *rest)).sender == "RZ1"
    named = make_header(sender={"identifier": {"system": ODS_SYSTEM, "value": "rx8"}})
    assert attend(make_bundle(named, *rest)).sender == "RX8"
    addressed = make_header(sender=None, source={"endpoint": f"{ODS_SYSTEM}|RX7"})
    assert attend(make_bundle(addressed, *rest)).sender == "RX7"
    unknown = make_encounter(serviceProvider=None)
    assert attend(make_bundle(make_header(sender=None), unknown, make_patient())).sender == ""


@pytest.mark.parametrize(
    ("code", "mode"),
    [("A", "A"), ("1048051000000107", "H"), ("1048061000000105", "P"), ("1048001000000106", "1048001000000106")],
)
def test_the_arrival_mode_is_a_letter_where_that_is_plain(code: str, mode: str) -> None:
    url = "http://hl7.org/fhir/StructureDefinition/encounter-modeOfArrival"
    bundle = make_message(extension=[{"url": url, "valueCoding": {"code": code}}])
    assert attend(bundle).arrival_mode == mode


# --- what is wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expression"),
    [
        ({"gender": "banana"}, "gender"),
        ({"gender": 5}, "gender"),
        ({"birthDate": "2015-02-30"}, "birthDate"),
        ({"name": {"family": "Tester"}}, "name"),
        ({"name": [{"family": 7}]}, "name[0].family"),
        ({"SecretName": "x"}, ""),
        ({"identifier": {"system": NHS_NUMBER_SYSTEM, "value": NHS_NUMBER}}, "identifier"),
        ({"identifier": [{"system": NHS_NUMBER_SYSTEM, "value": int(NHS_NUMBER)}]}, "identifier[0].value"),
        ({"contained": [{"resourceType": "Zork"}]}, ""),
        ({"multipleBirthBoolean": True, "multipleBirthInteger": 2}, ""),
    ],
)
def test_a_patient_that_breaks_the_rules_is_read_and_the_element_named(changes: Element, expression: str) -> None:
    reading = read(with_patient(**changes))
    assert reading.attendance.is_degraded
    assert reading.attendance.nhs_number == NHS_NUMBER
    path = "Bundle.entry[2].resource" + (f".{expression}" if expression else "")
    assert path in [finding.expression for finding in reading.findings]
    assert {finding.severity for finding in reading.findings} == {"error"}


@pytest.mark.parametrize(
    ("changes", "expression", "code"),
    [
        ({"status": None}, "status", "required"),
        ({"status": "here"}, "status", "value"),
        ({"class": None}, "class", "required"),
        ({"class": "EMER"}, "class", "structure"),
        ({"class": [{"code": "EMER"}]}, "class", "structure"),
        ({"period": {"start": "yesterday"}}, "period.start", "value"),
        ({"subject": None}, "subject", "required"),
    ],
)
def test_an_encounter_that_breaks_the_rules_is_an_arrival_all_the_same(
    changes: Element, expression: str, code: str
) -> None:
    reading = read(make_message(**changes))
    assert reading.attendance.is_degraded
    assert reading.attendance.event is Event.REGISTERED
    found = [(finding.expression, finding.code) for finding in reading.findings]
    assert (f"Bundle.entry[1].resource.{expression}", code) in found


def test_a_fault_in_a_resource_that_is_not_read_degrades_nothing() -> None:
    assert attend(make_message({"resourceType": "Observation", "id": "x", "zork": 1})).nhs_number == NHS_NUMBER


def test_a_message_without_a_header_is_flagged() -> None:
    reading = read(make_bundle(make_encounter(), make_patient(), make_organisation(), type="message"))
    assert reading.attendance.is_degraded
    assert [finding.expression for finding in reading.findings] == ["Bundle.entry[0].resource"]


def test_a_second_nhs_number_is_mentioned_and_breaks_no_rule() -> None:
    reading = read(with_patient(identifier=[make_identifier(), make_identifier(OTHERS_NUMBER)]))
    assert reading.attendance.nhs_number == NHS_NUMBER
    assert not reading.attendance.is_degraded
    assert [(finding.severity, finding.code) for finding in reading.findings] == [("warning", "business-rule")]


def test_empty_entries_are_named() -> None:
    bundle = make_message()
    bundle["entry"] += [{}, 5]
    found = [finding.expression for finding in read(bundle).findings]
    assert found == ["Bundle.entry[4]", "Bundle.entry[5]"]


def test_findings_never_hold_what_the_message_says() -> None:
    secret = "SECRETNAME"
    patient = make_patient(gender=secret, birthDate=secret, name=[{secret: 1, "family": [secret]}], telecom=secret)
    patient[secret] = {secret: secret}
    bundle = make_bundle(make_header(), make_encounter(status=secret, period=secret), patient)
    bundle[secret] = bundle["timestamp"] = bundle["identifier"] = secret
    reading = read(bundle)
    assert len(reading.findings) >= 8
    assert secret not in repr(reading.findings)
    for entry in bundle["entry"]:
        entry["resource"]["contained"] = [{"resourceType": secret}]
    assert secret not in repr(read(bundle).findings)
