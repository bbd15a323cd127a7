"""What is let in as a FHIR R4 Bundle: hostile bytes cost little and raise nothing but what is promised."""

from __future__ import annotations

import gc
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.errors import NotAnAttendance, Unreadable
from adapters.fhir import DEFAULT_LIMITS, FhirLimits, FhirReading, NotAnAttendanceBundle, UnreadableBundle, read_bundle
from tests.bundles import (
    NHS_NUMBER,
    Element,
    encode,
    make_bars_message,
    make_bundle,
    make_encounter,
    make_header,
    make_message,
    make_mother,
    make_organisation,
    make_patient,
    make_service_request,
    make_transaction,
)

REASONS = {
    *("message_too_large", "too_many_elements", "too_deep", "not_json", "duplicate_keys", "not_a_bundle"),
    *("wrong_fhir_version", "bundle_type_not_accepted", "unreadable_structure", "too_many_entries"),
    *("no_patient", "several_patients", "no_identity"),
}
FHIR_PATH = re.compile(r"Bundle(?:\.[A-Za-z0-9]+|\[[0-9]+\])*")
TOKENS = DEFAULT_LIMITS.tokens_max
CONTAINERS = DEFAULT_LIMITS.containers_max
BYTES = DEFAULT_LIMITS.bundle_bytes_max
CPU_S_MAX = 0.2
"""Measured 0.08 at most; the rest is for machines that are slow or busy."""


def reason_of(body: bytes, limits: FhirLimits = DEFAULT_LIMITS) -> str:
    with pytest.raises(UnreadableBundle) as caught:
        read_bundle(body, limits)
    assert caught.value.findings
    return caught.value.reason


def nested(depth: int, opening: str = '{"a":', closing: str = "}") -> bytes:
    return (opening * depth + "1" + closing * depth).encode()


# --- JSON -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"\x00",
        b"\xef\xbb\xbf",
        b"MSH|^~\\&|",
        b"<Bundle/>",
        b'{"resourceType":"Bundle"',
        b'{"resourceType":"Bundle"}}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b"{'a':1}",
        b'{"a":"\x00"}',
        b'{"a":"\n"}',
        b'"\\',
        b'{"a":"\\ud8"}',
        b"]" * 100,
        '{"resourceType":"Bundle"}'.encode("utf-16"),
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    assert reason_of(body) == "not_json"


@pytest.mark.parametrize(
    "body",
    [b"[]", b"1", b"null", b'"x"', b"{}", b'{"resourceType":7}', b'{"resourceType":"Bundel"}', b'{"a":1e999999}'],
)
def test_json_that_is_no_resource_is_refused(body: bytes) -> None:
    assert reason_of(body) == "not_a_bundle"


def test_a_single_resource_is_told_apart_from_an_attendance() -> None:
    with pytest.raises(NotAnAttendanceBundle) as caught:
        read_bundle(encode(make_patient()))
    assert (caught.value.reason, caught.value.bundle_id) == ("not_an_attendance", "p1")
    assert reason_of(encode(make_encounter())) == "not_a_bundle"


def test_size_is_limited_before_anything_is_read() -> None:
    body = encode(make_message())
    assert read_bundle(body, FhirLimits(bundle_bytes_max=len(body))).attendance.nhs_number == NHS_NUMBER
    assert reason_of(body, FhirLimits(bundle_bytes_max=len(body) - 1)) == "message_too_large"
    assert reason_of(b"x" * 20, FhirLimits(bundle_bytes_max=19)) == "message_too_large"


def test_elements_are_limited_before_they_are_parsed() -> None:
    body = encode(make_message())
    assert reason_of(body, FhirLimits(tokens_max=50)) == "too_many_elements"
    assert reason_of(body, FhirLimits(containers_max=20)) == "too_many_elements"


def test_depth_is_measured_outside_strings() -> None:
    limits = FhirLimits(depth_max=8)
    assert reason_of(nested(8), limits) == "not_a_bundle"
    assert reason_of(nested(9), limits) == "too_deep"
    assert reason_of(nested(9, "[", "]"), limits) == "too_deep"
    assert reason_of(b"[" * 9, limits) == "too_deep"
    assert reason_of(b"[" * 8, limits) == "not_json"
    brackets = json.dumps({"a": '[[[[[[[[[[[[\\" {{{{{{{{{{{{'}).encode()
    assert reason_of(brackets, limits) == "not_a_bundle"
    hidden = b'{"a":"\\\\",' + nested(9)[1:]
    assert reason_of(hidden, limits) == "too_deep"


def test_a_key_that_is_there_twice_is_noticed_at_any_depth() -> None:
    body = encode(make_message())
    twice = body.replace(b'"birthDate":', b'"birthDate": "1970-01-01", "birthDate":')
    assert reason_of(twice) == "duplicate_keys"
    escaped = body.replace(b'"birthDate":', b'"birthDate": "1970-01-01", "\\u0062irthDate":')
    assert reason_of(escaped) == "duplicate_keys"


def test_a_byte_order_mark_is_no_hindrance() -> None:
    assert read_bundle(b"\xef\xbb\xbf" + encode(make_message())).findings == ()


def test_text_that_is_not_utf_8_is_read_and_flagged() -> None:
    patient = make_patient(name=[{"family": "Zoë", "given": ["Ann"]}])
    body = json.dumps(make_bundle(make_encounter(), patient), ensure_ascii=False)
    assert read_bundle(body.encode()).attendance.names[0].family == "Zoë"
    reading = read_bundle(body.encode("cp1252"))
    assert reading.attendance.is_degraded
    assert reading.attendance.names[0].family == "Zoë"
    assert [finding.text for finding in reading.findings] == ["the message is not UTF-8"]


def test_an_integer_of_any_length_is_no_hindrance() -> None:
    body = encode(make_message()).replace(
        b'"resourceType": "Patient"', b'"x": ' + b"9" * 9000 + b', "resourceType": "Patient"'
    )
    assert read_bundle(body).attendance.nhs_number == NHS_NUMBER


# --- the Bundle -----------------------------------------------------------------------------------------


def test_entries_are_limited_and_must_be_a_list() -> None:
    bundle = make_message()
    assert reason_of(encode(bundle), FhirLimits(entries_max=3)) == "too_many_entries"
    odd: list[object] = [{}, "x", 1, None]
    for entry in odd:
        assert reason_of(encode({**bundle, "entry": entry})) == "unreadable_structure"
    with pytest.raises(NotAnAttendanceBundle):
        read_bundle(encode({"resourceType": "Bundle", "type": "message"}))


def test_names_and_findings_are_limited() -> None:
    names = [{"family": f"N{number}", "zork": 1} for number in range(20)]
    bundle = make_bundle(make_encounter(), make_patient(name=names))
    reading = read_bundle(encode(bundle), FhirLimits(names_max=5, findings_max=7))
    assert [name.family for name in reading.attendance.names] == ["N0", "N1", "N2", "N3", "N4"]
    assert len(reading.findings) == 7


def test_what_is_too_large_to_be_checked_is_read_and_flagged() -> None:
    reading = read_bundle(encode(make_message()), FhirLimits(values_checked_max=20))
    assert reading.attendance.nhs_number == NHS_NUMBER
    assert reading.attendance.is_degraded
    assert [finding.code for finding in reading.findings] == ["too-costly"]


# --- the version ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Bundle", {"meta": {"profile": ["https://fhir.nhs.uk/STU3/StructureDefinition/ITK-Message-Bundle-1"]}}),
        ("Bundle", {"fhirVersion": "3.0.2"}),
        ("Bundle", {"type": "subscription-notification"}),
        ("MessageHeader", {"event": {"system": "https://fhir.nhs.uk/STU3/CodeSystem/EventType-1", "code": "x"}}),
        ("MessageHeader", {"eventCanonical": "http://example.org/event"}),
        ("Patient", {"meta": {"profile": ["https://fhir.hl7.org.uk/STU3/StructureDefinition/CareConnect-Patient-1"]}}),
        ("Patient", {"meta": {"profile": ["http://hl7.org/fhir/5.0/StructureDefinition/Patient"]}}),
        ("Patient", {"animal": {"species": {"text": "x"}}}),
        ("Encounter", {"reason": [{"text": "Fall"}]}),
        ("Encounter", {"class": [{"coding": [{"code": "EMER"}]}]}),
        ("Encounter", {"serviceType": [{"concept": {"text": "x"}}]}),
        ("Encounter", {"actualPeriod": {"start": "2026-02-14T03:07:00Z"}}),
        ("Encounter", {"subjectStatus": {"text": "arrived"}}),
        ("Encounter", {"admission": {"origin": {"display": "x"}}}),
    ],
)
def test_another_version_is_refused_whole(kind: str, changes: Element) -> None:
    bundle = make_message()
    resources = [bundle, *(entry["resource"] for entry in bundle["entry"])]
    next(resource for resource in resources if resource["resourceType"] == kind).update(changes)
    assert reason_of(encode(bundle)) == "wrong_fhir_version"


@pytest.mark.parametrize(
    "profile",
    [
        "https://fhir.hl7.org.uk/StructureDefinition/UKCore-Patient|2.6.1",
        "http://hl7.org/fhir/4.0/StructureDefinition/Patient",
        "http://hl7.org/fhir/us/core/StructureDefinition/us-core-patient|5.0.1",
        "https://fhir.nhs.uk/R4/StructureDefinition/x",
    ],
)
def test_a_profile_of_r4_is_let_in(profile: str) -> None:
    bundle = make_bundle(make_encounter(), make_patient(meta={"profile": [profile]}), fhirVersion="4.0.1")
    assert read_bundle(encode(bundle)).attendance.nhs_number == NHS_NUMBER


# --- what it costs --------------------------------------------------------------------------------------


def hostile_bodies() -> Iterator[tuple[str, bytes]]:
    yield "opening brackets", b"[" * (CONTAINERS - 1)
    yield "opening members", b'{"a":' * (CONTAINERS - 1)
    yield "closing brackets", b"]" * BYTES
    yield "white space", b" " * BYTES
    yield "empty objects", b"[" + b"{}," * (CONTAINERS - 2) + b"{}]"
    yield "just allowed depth", b"[" + (b"[" * 63 + b"]" * 63 + b",") * (CONTAINERS // 64 - 1) + b"1]"
    yield "members", encode({str(number): "" for number in range(TOKENS // 5 - 10)})
    yield "integers", b"[" + b"1" * 4299 + (b"," + b"1" * 4299) * (BYTES // 4300 - 2) + b"]"
    yield "quotation marks", b'"' * TOKENS
    yield "backslashes", b'"' + b"\\" * (BYTES - 1)
    yield "escaped quotation marks", b'"' + b'\\"' * (TOKENS - 2)
    yield "escapes", b'["' + b"\\u0041" * (BYTES // 6 - 2) + b'"]'
    yield "no UTF-8", b'"' + b"\xff" * (BYTES - 2) + b'"'
    patient, encounter = make_patient(), make_encounter()
    yield "names", encode(make_bundle(encounter, {**patient, "name": [{"family": "a", "given": ["b"]}] * 6000}))
    links = [{"relation": "self", "url": "https://example.org"}] * 6000
    within = json.dumps({"extension": [{"url": "u", "valueString": "b"}] * 6000})
    yield "JSON in a text", encode(make_bundle(encounter, {**patient, "maritalStatus": within}))
    yield "links of the Bundle", encode(make_bundle(encounter, patient, link=links))
    yield "faults", encode(make_bundle(encounter, {**patient, "name": [{"family": 1}] * 1100}))
    yield (
        "extensions",
        encode(make_bundle(encounter, {**patient, "extension": [{"url": "u", "valueString": "b"}] * 750})),
    )
    yield "Encounters", encode(make_bundle(*[encounter] * 990, patient))
    mothers = [make_mother(id=f"r{number}", identifier=None) for number in range(490)]
    link = [{"other": {"reference": f"RelatedPerson/r{number}"}} for number in range(4)]
    linked = [make_patient(id=f"x{number}", link=link, identifier=None, name=None) for number in range(490)]
    yield "mothers", encode(make_bundle(encounter, patient, *mothers, *linked))
    header = make_header(focus=[{"reference": "#a"}] * 6000, contained=[{"id": "b"}] * 6000)
    yield "references", encode(make_bundle(header, encounter, patient))
    yield "contained", encode(make_bundle(encounter, {**patient, "contained": [{"resourceType": "Patient"}] * 9000}))
    extension: Element = {"url": "x"}
    for _ in range(27):
        extension = {"url": "x", "extension": [extension]}
    yield "extensions of extensions", encode(make_bundle(encounter, {**patient, "extension": [extension] * 20}))


HOSTILE = dict(hostile_bodies())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_costs_little(name: str) -> None:
    read_bundle(encode(make_message()))
    gc.collect()
    gc.disable()  # what else lives in the process of the tests is no cost of the reader's
    began_s = time.process_time()
    try:
        read_bundle(HOSTILE[name])
    except Unreadable as error:
        assert error.reason in REASONS | {"not_an_attendance"}
    finally:
        cost_s = time.process_time() - began_s
        gc.enable()
    assert cost_s < CPU_S_MAX


# --- whatever the bytes ---------------------------------------------------------------------------------

SHAPES = [
    make_message(
        make_mother(), location=[{"location": {"reference": "#l"}}], contained=[{"resourceType": "Location", "id": "l"}]
    ),
    make_bars_message(
        "servicerequest-request",
        [make_service_request(), make_encounter(status="triaged"), make_patient(), make_organisation()],
        focus="ServiceRequest/s1",
    ),
    make_transaction(make_encounter(), make_patient(), make_organisation()),
]
ODD_LEAVES = ["", "#", "Patient/p1", "\x00", "\ud800", "9" * 300, "0001-01-01T00:00:00Z", "2026-02-30", 10**4000]
ODD_BYTES = [b'"', b"{", b"]", b"\\", b"\\ud800", b"\xff", b"\x00", b"NaN", b"1e999"]
ODD_NAMES = ["resourceType", "id", "system", "value", "code", "reference", "_x", "extension", "url", "\udfff"]
ODD_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=12)
    | st.sampled_from(
        ["", "#", "Patient/p1", "\x00", "\ud800", "9" * 300, "0001-01-01T00:00:00Z", "2026-02-30", 10**4000]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(ODD_NAMES),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


def read_or_refuse(body: bytes) -> FhirReading | None:
    """Reads, and holds the reader to what it promises of everything it gives back."""
    reading: FhirReading | None = None
    try:
        reading = read_bundle(body)
    except (UnreadableBundle, NotAnAttendanceBundle) as error:
        assert error.reason in REASONS or isinstance(error, NotAnAttendance)
        findings = error.findings
        assert findings
    else:
        findings = reading.findings
        msgspec.json.encode(reading)
        attendance = reading.attendance
        assert attendance.nhs_number or attendance.nhs_number_problem
        for instant in (attendance.event_at, attendance.message_at, attendance.arrived_at, attendance.left_at):
            assert instant is None or instant.tzinfo is not None
        assert attendance.is_degraded == any(finding.severity == "error" for finding in findings)
    for finding in findings:
        assert FHIR_PATH.fullmatch(finding.expression)
        msgspec.json.encode(finding)
    return reading


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value: the container and the key or position."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places_in(value[key])


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(shape=st.sampled_from(SHAPES), data=st.data())
def test_elements_of_any_kind_raise_nothing_unforeseen(shape: Element, data: st.DataObject) -> None:
    bundle = json.loads(json.dumps(shape))
    for _ in range(data.draw(st.integers(1, 4))):
        places = list(places_in(bundle))
        container, key = places[data.draw(st.integers(0, len(places) - 1))]
        if data.draw(st.booleans()):
            container[key] = data.draw(ODD_VALUES)
        else:
            del container[key]
        if not bundle:
            break
    read_or_refuse(json.dumps(bundle, allow_nan=False).encode())


@settings(max_examples=300, deadline=None)
@given(
    shape=st.sampled_from([encode(shape) for shape in SHAPES]),
    position=st.integers(0, 10_000),
    length=st.integers(0, 40),
    put=st.binary(max_size=8) | st.sampled_from(ODD_BYTES),
)
def test_bytes_changed_anywhere_raise_nothing_unforeseen(shape: bytes, position: int, length: int, put: bytes) -> None:
    position %= len(shape)
    read_or_refuse(shape[:position] + put + shape[position + length :])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | ODD_VALUES.map(lambda value: json.dumps(value).encode()))
def test_bytes_of_any_kind_raise_nothing_unforeseen(body: bytes) -> None:
    read_or_refuse(body)


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(["Patient", "Encounter"]), key=st.text(min_size=1, max_size=10), odd=ODD_VALUES)
def test_an_element_beside_the_others_never_hides_who_came(name: str, key: str, odd: Any) -> None:
    """Unless it is of another version's making, or says the same as an element that is there."""
    bundle = make_message()
    resource = next(entry["resource"] for entry in bundle["entry"] if entry["resource"]["resourceType"] == name)
    if key not in resource and key not in ("animal", "reason", "meta"):
        resource[key] = odd
    reading = read_or_refuse(json.dumps(bundle).encode())
    assert reading is not None
    assert reading.attendance.nhs_number == NHS_NUMBER
