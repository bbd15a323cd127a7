"""Lists and directories as officers really send them: every bad row is told where and how to mend it, without its
value, and costs itself alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.child_list_csv import (
    AuthorityLine,
    ChildRowProblem,
    ClinicianLine,
    RowProblem,
    SiteLine,
    WorkerLine,
    read_authorities,
    read_children,
    read_clinicians,
    read_sites,
    read_workers,
)
from adapters.child_list_json import VersionNotSupported, read_children_json
from adapters.errors import MalformedFile
from adapters.force_csv import read_encompass_people, read_forces
from schemas.attendance import PersonName
from schemas.child_list import ChildListEntry, LegalBasis, PlanType
from schemas.directory import KeptAnswer, Role
from schemas.upload import RecordCode

CHILD = {
    "local_id": "L1",
    "nhs_number": "999 000 0018",
    "family_name": "Tester",
    "given_name": "Casey",
    "birth_date": "2015-03-02",
    "postcode": "ZZ99 1AA",
    "plan_type": "child_protection_plan",
    "start_date": "2026-01-10",
    "end_date": "",
    "worker": "W1",
    "team": "North",
    "legal_basis": "",
    "household": "",
}
AUTHORITY = {
    "code": "706",
    "name": "Northfold Borough Council",
    "office_telephone": "01632 960101",
    "emergency_telephone": "01632 960102",
    "webhook_url": "https://alerts.example.org/706",
}
WORKER = {"code": "W1", "authority": "706", "name": "Ash Worker", "team": "", "login": "", "role": "", "password": ""}
SITE = {
    "code": "RZ1",
    "name": "Fenwick General Hospital",
    "telephone": "01632 960301",
    "authorities": "706 707",
    "reply_host": "127.0.0.1",
    "reply_port": "2576",
    "replies_for_adults": "no",
    "not_understood": "",
    "peers": "10.1.0.0/16 2001:db8::/32",
    "credential": "",
    "topic_secret": "",
    "reply_url": "https://ed.example.org/FHIR/R4/$process-message",
    "reply_credential": "dG9rZW4=",
}
FORCE = {"code": "ZF1", "name": "Fenshire", "statement": "Ask.", "withdrawn_statement": "Ask no more."}
PERSON = {"login": "co@police.example.org", "name": "Co", "role": "encompass_hub", "at": "706", "contact_id": "K1"}
CLINICIAN = {"login": "bo@rz1.example.org", "name": "Bo Nurse", "organisation": "RZ1", "password": ""}


def quote(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if set(text) & set(',"\r\n') else text


def csv_file(*rows: dict[str, str], end: str = "\r\n") -> bytes:
    lines = [",".join(rows[0]), *(",".join(quote(text) for text in row.values()) for row in rows)]
    return (end.join(lines) + end).encode()


def children(*rows: dict[str, str]) -> list[ChildListEntry | RowProblem]:
    return read_all(csv_file(*rows))


def read_all(file: bytes) -> list[ChildListEntry | RowProblem]:
    """What stands in each row, once the row's number and its problem's are seen to agree."""
    found = list(read_children(file))
    assert all(row.row == number for number, row in found if isinstance(row, RowProblem))
    return [row for _, row in found]


def problem_of(row: dict[str, str]) -> RowProblem:
    """The problem of one bad row between two good ones."""
    first, problem, last = children(CHILD, row, CHILD)
    assert isinstance(first, ChildListEntry)
    assert isinstance(last, ChildListEntry)
    assert isinstance(problem, RowProblem)
    assert problem.row == 3
    return problem


def test_a_good_row_is_read_in_full() -> None:
    assert children(CHILD | {"end_date": "2026-12-31"}) == [
        ChildListEntry(
            local_id="L1",
            nhs_number="9990000018",  # type: ignore[arg-type]
            name=PersonName(family="Tester", given="Casey"),
            birth_date=date(2015, 3, 2),
            plan_type=PlanType.CHILD_PROTECTION,
            start_on=date(2026, 1, 10),
            end_on=date(2026, 12, 31),
            postcode="ZZ99 1AA",
            allocated_worker="W1",
            team="North",
        )
    ]


def test_only_the_required_columns_are_needed_and_unknown_ones_are_passed_over() -> None:
    needed = ("local_id", "nhs_number", "family_name", "birth_date", "plan_type", "start_date")
    [entry] = children({name: CHILD[name] for name in needed} | {"our_own_column": "x"})
    assert isinstance(entry, ChildListEntry)
    assert (entry.name.given, entry.end_on, entry.allocated_worker) == ("", None, None)


@pytest.mark.parametrize(
    ("field", "value", "advice"),
    [
        ("local_id", "", "is missing"),
        ("local_id", "   ", "is missing"),
        ("nhs_number", "", "is missing"),
        ("nhs_number", "9990000019", "must be a valid NHS number of ten digits; please check it"),
        (
            "nhs_number",
            "9.990000018E9",
            "was rounded by a spreadsheet: format the column as text and enter it again",
        ),
        (
            "nhs_number",
            "9,99E+09",
            "was rounded by a spreadsheet: format the column as text and enter it again",
        ),
        (
            "nhs_number",
            "401023213",
            "has nine digits: a spreadsheet may have dropped a 0 in front; format the column as text",
        ),
        ("nhs_number", "ABCD 123", "is a number of the old style: give the NHS number of ten digits"),
        ("local_id", "1.23457E+11", "was rounded by a spreadsheet: format the column as text and enter it again"),
        ("household", "1.23457E+11", "was rounded by a spreadsheet: format the column as text and enter it again"),
        ("legal_basis", "s47", "must be one of s31, s38, s20"),
        ("legal_basis", "s.31", "belongs to looked_after_child only"),
        ("nhs_number", "3333333333", "must be a valid NHS number of ten digits; please check it"),
        ("family_name", "", "is missing"),
        ("family_name", "SECRET\x00NAME", "must be plain text of at most 500 characters"),
        ("family_name", "S" * 501, "must be plain text of at most 500 characters"),
        ("given_name", "S" * 100_000, "must be plain text of at most 500 characters"),
        ("birth_date", "", "is missing"),
        ("birth_date", "29/02/2015", "must be a date like 2026-01-31 or 31/01/2026"),
        ("birth_date", "2015-02-29", "must be a date like 2026-01-31 or 31/01/2026"),
        ("birth_date", "02/03/15", "must have the year in four digits, like 31/01/2026"),
        ("birth_date", "42065", "is a spreadsheet's number of a day: format the column as a date"),
        ("birth_date", "٢٠١٥-٠٣-٠٢", "must be a date like 2026-01-31 or 31/01/2026"),
        ("birth_date", "2015-03-02T08:30", "must be a date like 2026-01-31 or 31/01/2026"),
        ("start_date", "soon", "must be a date like 2026-01-31 or 31/01/2026"),
        ("end_date", "never", "must be a date like 2026-01-31 or 31/01/2026"),
        ("end_date", "2026-01-09", "must not be before the start date"),
        (
            "plan_type",
            "CPP",
            "must be one of child_protection_plan, looked_after_child, unborn_child_protection_plan",
        ),
        ("postcode", "P" * 501, "must be plain text of at most 500 characters"),
        ("worker", "W\x001", "must be plain text of at most 500 characters"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_each_kind_of_bad_row_says_where_and_how_without_the_value(field: str, value: str, advice: str) -> None:
    problem = problem_of(CHILD | {field: value})
    assert (problem.field, problem.advice) == (field, advice)
    assert len(value.strip()) < 4 or value not in problem.advice


def test_a_row_with_more_fields_than_the_header_is_refused() -> None:
    file = csv_file(CHILD, CHILD, CHILD).splitlines()
    file[2] += b",surplus"
    found = read_all(b"\r\n".join(file))
    assert found[1] == ChildRowProblem(row=3, field="row", advice="has more fields than the header", local_id="L1")
    assert isinstance(found[2], ChildListEntry)


def test_a_row_with_fewer_fields_misses_them() -> None:
    found = read_all(csv_file(CHILD) + b"L2,9990000026,Tester\r\n" + csv_file(CHILD).splitlines()[1])
    assert isinstance(found[1], RowProblem)
    assert (found[1].row, found[1].field) == (3, "start_date")
    assert found[1].advice == "is missing; plan_type is missing; birth_date is missing"
    assert isinstance(found[2], ChildListEntry)


def test_rows_are_counted_as_a_spreadsheet_counts_them() -> None:
    """Blank lines count; a line break within quotes does not."""
    good, bad = csv_file(CHILD).splitlines()[1], csv_file(CHILD | {"birth_date": "x"}).splitlines()[1]
    header = csv_file(CHILD).splitlines()[0]
    broken = csv_file(CHILD | {"team": "North\nby the river"}).removeprefix(header).strip()
    found = list(read_children(b"\r\n".join([b"", header, good, b"", b"", broken, bad, b"", good, bad, b""])))
    assert [(number, isinstance(row, RowProblem)) for number, row in found] == [
        (3, False),
        (6, False),
        (7, True),
        (9, False),
        (10, True),
    ]


@pytest.mark.parametrize(
    "text",
    ["=HYPERLINK(1)", "+441632960101", "-2", "@SUM(A1)", "=cmd|'/c calc'!A0", "\t=1", "%0A=1", "<script>", "'; --"],
)
def test_formula_text_is_only_text(text: str) -> None:
    [entry] = children(CHILD | {"family_name": text})
    assert isinstance(entry, ChildListEntry)
    assert entry.name.family == text.strip()
    assert problem_of(CHILD | {"nhs_number": text}).field == "nhs_number"


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_byte_order_marks_and_every_line_end_are_read(end: str, mark: bytes) -> None:
    found = read_all(mark + csv_file(CHILD, CHILD | {"local_id": "L2"}, end=end))
    assert [entry.local_id for entry in found if isinstance(entry, ChildListEntry)] == ["L1", "L2"]


def test_quotes_commas_and_accents_are_read() -> None:
    [entry] = children(CHILD | {"family_name": 'Tester, "Tess"', "given_name": "Zoë"})
    assert isinstance(entry, ChildListEntry)
    assert entry.name == PersonName(family='Tester, "Tess"', given="Zoë")


@pytest.mark.parametrize(
    ("file", "told"),
    [
        (b"", "no column"),
        (b"\r\n\r\n", "no column"),
        (b"local_id,nhs_number\r\nL1,1\r\n", "family_name, birth_date, plan_type, start_date"),
        (b"\xff\xfe" + csv_file(CHILD).decode().encode("utf-16-le"), "not CSV in UTF-8"),
        (csv_file(CHILD).replace(b"team", b"\xe9quipe"), "not CSV in UTF-8"),
        (b"PK\x03\x04\xff\xff", "not CSV in UTF-8"),
        (csv_file(CHILD, CHILD).replace(b"Tester", b'"Tester'), "row 2 is not CSV"),
        (csv_file(CHILD, CHILD) + b'L3,"Tes"ter"', "row 4 is not CSV"),
        (csv_file(CHILD) + b"L3," + b"S" * 200_000, "row 3 is not CSV"),
        (b'"local_id', "row 1 is not CSV"),
        (csv_file(CHILD).replace(b"team", b"worker"), "two columns of the file have the same name"),
    ],
    ids=["empty", "blank", "columns", "utf-16", "latin-1", "zip", "open quote", "quote", "200 KB", "header", "twice"],
)
def test_a_malformed_file_says_why_without_its_contents(file: bytes, told: str) -> None:
    with pytest.raises(MalformedFile) as refused:
        list(read_children(file))
    assert told in str(refused.value)
    assert "Tester" not in str(refused.value) and "SSS" not in str(refused.value)


@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", csv_file(CHILD)]))
def test_whatever_the_bytes_it_is_rows_or_a_malformed_file(junk: bytes, before: bytes) -> None:
    try:
        found = read_all(before + junk)
    except MalformedFile:
        return
    assert all(isinstance(row, ChildListEntry | RowProblem) for row in found)


# As a spreadsheet saves it


def excel_file(*rows: dict[str, str]) -> bytes:
    """With a byte order mark, semicolons, dates as a British spreadsheet shows them, and empty rows at the end."""
    text = csv_file(*rows).decode().replace(",", ";") + ";" * 11 + "\r\n"
    return b"\xef\xbb\xbf" + text.encode()


BRITISH = CHILD | {"birth_date": "02/03/2015", "start_date": "10/01/2026", "nhs_number": " 999 000 0018 "}


def test_a_list_that_a_spreadsheet_saved_is_read_as_it_was_meant() -> None:
    [meant] = children(CHILD)
    assert read_all(excel_file(BRITISH)) == [meant]
    assert read_all(b"sep=;\r\n" + excel_file(BRITISH)[3:]) == [meant]
    assert read_all(csv_file(BRITISH).replace(b",", b"\t")) == [meant]
    header, row, _ = csv_file(BRITISH).split(b"\r\n")
    assert read_all(header.replace(b"nhs_number", b"NHS Number") + b"\r\n" + row) == [meant]


@pytest.mark.parametrize(
    "text", ["02/03/2015", "2/3/2015", "02.03.2015", "02-03-2015", "02/03/2015 00:00", "2015-03-02T00:00"]
)
def test_the_day_stands_before_the_month(text: str) -> None:
    [entry] = children(CHILD | {"birth_date": text})
    assert isinstance(entry, ChildListEntry)
    assert entry.birth_date == date(2015, 3, 2)


def test_a_column_with_the_month_first_is_named_and_nothing_of_the_file_is_believed() -> None:
    with pytest.raises(MalformedFile, match="column birth_date has the month before the day, as row 3 shows"):
        children(CHILD | {"birth_date": "02/03/2015"}, CHILD | {"birth_date": "03/25/2015"})


def test_one_wrong_date_in_a_column_that_shows_its_order_costs_its_row_alone() -> None:
    found = children(CHILD | {"birth_date": "25/03/2015"}, CHILD | {"birth_date": "03/25/2015"})
    assert isinstance(found[0], ChildListEntry)
    assert isinstance(found[1], RowProblem)
    assert (found[1].row, found[1].field) == (3, "birth_date")


def test_a_letter_that_is_not_utf8_costs_its_row_and_names_the_column() -> None:
    good, bad = csv_file(CHILD), csv_file(CHILD | {"given_name": "Zo?"}).splitlines()[1].replace(b"Zo?", b"Zo\xeb")
    first, problem = read_all(good + bad)
    assert isinstance(first, ChildListEntry)
    assert isinstance(problem, RowProblem)
    assert (problem.row, problem.field) == (3, "given_name")
    assert "CSV UTF-8" in problem.advice


def test_a_line_that_does_not_end_is_not_read_to_its_end() -> None:
    with pytest.raises(MalformedFile, match="row 3 is not CSV"):
        read_all(csv_file(CHILD) + b"L2," * 100_000)


@pytest.mark.parametrize(("written", "basis"), [("s31", "s31"), ("s.38", "s38"), ("Section 20", "s20"), ("31", "s31")])
def test_the_legal_basis_of_a_looked_after_child_is_read(written: str, basis: str) -> None:
    [entry] = children(CHILD | {"plan_type": "looked_after_child", "legal_basis": written})
    assert isinstance(entry, ChildListEntry)
    assert entry.legal_basis == LegalBasis(basis)


def test_a_household_is_what_the_authority_calls_it() -> None:
    entries = children(CHILD | {"household": " F-17 "}) + children(CHILD)
    assert [each.household for each in entries if isinstance(each, ChildListEntry)] == ["F-17", None]


def test_an_old_style_number_has_a_code_of_its_own() -> None:
    problem = problem_of(CHILD | {"nhs_number": "ABCD 123"})
    assert isinstance(problem, ChildRowProblem)
    assert problem.code is RecordCode.OLD_STYLE_NUMBER


def test_the_person_of_a_bad_row_is_known_to_the_caller_and_to_nobody_who_prints_it() -> None:
    problem = problem_of(CHILD | {"local_id": "CASE-77", "birth_date": "?"})
    assert isinstance(problem, ChildRowProblem)
    assert problem.local_id == "CASE-77"
    assert "CASE-77" not in repr(problem)


# JSON


def json_file(*entries: object, **more: object) -> bytes:
    return msgspec.json.encode({"entries": entries, **more})


def test_json_is_read_as_csv_is() -> None:
    empty: dict[str, str | None] = {name: text or None for name, text in CHILD.items()}
    assert [row for _, row in read_children_json(json_file(empty, CHILD))] == children(CHILD, CHILD)


@pytest.mark.parametrize("bad", [7, None, [], {"local_id": 7}, {"local_id": {}}])
def test_an_entry_that_is_no_object_of_texts_costs_itself_alone(bad: object) -> None:
    (_, first), (number, problem), (_, last) = read_children_json(json_file(CHILD, bad, CHILD))
    assert isinstance(first, ChildListEntry) and isinstance(last, ChildListEntry)
    assert isinstance(problem, RowProblem)
    assert (number, problem.row, problem.field) == (2, 2, "row")


@pytest.mark.parametrize("file", [b"", b"[]", b"{", b'{"entries": 1}', b'{"entries": [1', b"\xff", b"[" * 100_000])
def test_what_is_no_list_in_json_is_malformed(file: bytes) -> None:
    with pytest.raises(MalformedFile, match="is not JSON with a list of entries"):
        read_children_json(file)


def test_a_version_that_is_not_known_is_refused_by_that_name() -> None:
    with pytest.raises(VersionNotSupported):
        read_children_json(json_file(CHILD, version=2))


# Directories


def only(rows: Iterator[tuple[int, object]]) -> object:
    [(number, row)] = rows
    assert number == 2
    return row


def test_an_authority_is_read() -> None:
    line = only(read_authorities(csv_file(AUTHORITY | {"topic_secret": "c2VjcmV0"})))
    assert isinstance(line, AuthorityLine)
    assert line.authority.emergency_telephone == "01632 960102"
    assert (line.webhook_secret, line.topic_secret) == (None, "c2VjcmV0")


def test_a_site_is_read() -> None:
    line = only(read_sites(csv_file(SITE | {"replies_for_adults": "YES"})))
    assert isinstance(line, SiteLine)
    assert line.site.authorities == ("706", "707")
    assert line.site.peers == ("10.1.0.0/16", "2001:db8::/32")
    assert line.site.not_understood is KeptAnswer.ACCEPT
    assert (line.site.reply_port, line.site.replies_for_adults) == (2576, True)


def test_a_worker_is_a_social_worker_unless_said_otherwise() -> None:
    lines = [only(read_workers(csv_file(WORKER | {"role": role}))) for role in ("", "social_worker", "duty_worker")]
    roles = [line.role for line in lines if isinstance(line, WorkerLine)]
    assert roles == [Role.SOCIAL_WORKER, Role.SOCIAL_WORKER, Role.DUTY_WORKER]


def test_a_clinician_is_read() -> None:
    line = only(read_clinicians(csv_file(CLINICIAN)))
    assert isinstance(line, ClinicianLine)
    assert (line.organisation, line.password) == ("RZ1", None)


@pytest.mark.parametrize(
    ("read", "good", "field", "value"),
    [
        (read_authorities, AUTHORITY, "code", "70"),
        (read_authorities, AUTHORITY, "name", ""),
        (read_authorities, AUTHORITY, "office_telephone", ""),
        (read_authorities, AUTHORITY, "emergency_telephone", ""),
        (read_authorities, AUTHORITY, "webhook_url", "cases.example.org/alerts"),
        (read_authorities, AUTHORITY, "webhook_url", "ftp://alerts.example.org"),
        (read_authorities, AUTHORITY, "webhook_url", "https:///alerts"),
        (read_authorities, AUTHORITY, "webhook_url", "https://alerts.example.org:99999/"),
        (read_authorities, AUTHORITY, "webhook_url", "https://[::1/"),
        (read_workers, WORKER, "authority", "7 06"),
        (read_workers, WORKER, "role", "operator"),
        (read_workers, WORKER, "role", "clinician"),
        (read_sites, SITE, "code", "RZ1^"),
        (read_sites, SITE, "reply_port", "0"),
        (read_sites, SITE, "reply_port", "65536"),
        (read_sites, SITE, "reply_port", "２５７６"),
        (read_sites, SITE, "reply_port", "9" * 400),
        (read_sites, SITE, "reply_port", ""),
        (read_sites, SITE, "reply_host", ""),
        (read_sites, SITE, "reply_url", "ed.example.org/$process-message"),
        (read_sites, SITE, "reply_url", "ftp://ed.example.org/$process-message"),
        (read_sites, SITE, "reply_url", "https://user:secret@ed.example.org/$process-message"),
        (read_sites, SITE, "reply_credential", "two words"),
        (read_sites, SITE, "reply_credential", "tök"),
        (read_sites, SITE, "replies_for_adults", "maybe"),
        (read_sites, SITE, "not_understood", "AB"),
        (read_sites, SITE, "not_understood", "aa"),
        (read_sites, SITE, "peers", "10.1.0.0/33"),
        (read_sites, SITE, "peers", "10.1.0.0/16 fenwick.example.org"),
        (read_clinicians, CLINICIAN, "organisation", "?"),
        (read_clinicians, CLINICIAN, "login", ""),
    ],
)
def test_each_kind_of_bad_directory_row_names_its_field_and_not_its_value(
    read: Callable[[bytes], Iterator[tuple[int, object]]], good: dict[str, str], field: str, value: str
) -> None:
    (_, first), (_, problem) = read(csv_file(good, good | {field: value}))
    assert not isinstance(first, RowProblem)
    assert isinstance(problem, RowProblem)
    assert (problem.row, problem.field) == (3, field)
    assert not value or value not in problem.advice


def test_all_that_is_wrong_in_a_row_is_told_at_once_and_only_that() -> None:
    """The start date cannot be read: nobody knows whether the end is before it. An old number keeps its code."""
    wrong = {"nhs_number": "XQZ 123", "birth_date": "3.2.15", "plan_type": "care", "start_date": "x1", "end_date": "y1"}
    problem = problem_of(CHILD | wrong | {"legal_basis": "s31", "household": "9.99E+11"})
    assert isinstance(problem, ChildRowProblem)
    assert (problem.field, problem.code, problem.local_id) == ("nhs_number", RecordCode.OLD_STYLE_NUMBER, "L1")
    assert problem.advice == (
        "is a number of the old style: give the NHS number of ten digits"
        "; start_date must be a date like 2026-01-31 or 31/01/2026"
        "; end_date must be a date like 2026-01-31 or 31/01/2026"
        "; plan_type must be one of child_protection_plan, looked_after_child, unborn_child_protection_plan"
        "; birth_date must have the year in four digits, like 31/01/2026"
        "; household was rounded by a spreadsheet: format the column as text and enter it again"
    )
    assert not any(value in problem.advice for value in wrong.values() if value != "care")
    ended_early = {"end_date": "2026-01-09", "legal_basis": "s31", "postcode": "Z" * 501}
    assert problem_of(CHILD | ended_early).advice == (
        "must not be before the start date; legal_basis belongs to looked_after_child only"
        "; postcode must be plain text of at most 500 characters"
    )


@pytest.mark.parametrize(
    ("read", "good", "wrong"),
    [
        (read_authorities, AUTHORITY, ["code", "name", "webhook_url"]),
        (read_workers, WORKER, ["role", "code", "authority", "mailbox", "mobile"]),
        (read_sites, SITE, ["reply_port", "name", "reply_url", "replies_for_adults", "peers", "reply_credential"]),
        (read_clinicians, CLINICIAN, ["name", "organisation"]),
        (read_forces, FORCE, ["confirmed_days_max", "credential", "statement", "release", "name", "peers"]),
        (read_encompass_people, PERSON, ["role", "mailbox", "login"]),
    ],
)
def test_every_wrong_column_of_a_directory_row_is_named(
    read: Callable[[bytes], Iterator[tuple[int, object]]], good: dict[str, str], wrong: list[str]
) -> None:
    may_say_anything = {"name", "login", "statement"} | ({"code"} if read is read_workers else set())
    values = {column: "" if column in may_say_anything else "~ ?" for column in wrong}
    [(_, problem)] = read(csv_file(good | values))
    assert isinstance(problem, RowProblem)
    assert [problem.field, *(told.split()[0] for told in problem.advice.split("; ")[1:])] == wrong
    assert "~ ?" not in problem.advice


def test_empty_columns_at_the_end_are_passed_over() -> None:
    """Spreadsheets write them."""
    lines = csv_file(CHILD, CHILD).splitlines()
    assert all(isinstance(row, ChildListEntry) for row in read_all(b"\r\n".join(line + b",,," for line in lines)))


def test_a_site_may_be_answered_elsewhere_and_send_from_anywhere() -> None:
    line = only(read_sites(csv_file(SITE | {"reply_host": "", "reply_port": "", "peers": ""})))
    assert isinstance(line, SiteLine)
    assert (line.site.reply_host, line.site.reply_port, line.site.peers) == (None, None, ())


def test_only_a_sexual_health_site_may_keep_who_comes_to_itself() -> None:
    head = b"code,name,care_setting,notices_suppressed\n"
    rows = list(
        read_sites(head + b"RZ1,Quayside,sexual_health,yes\nRZ2,Fenwick,emergency_department,yes\nRZ3,Sandhill,,\n")
    )
    assert [(row.field if isinstance(row, RowProblem) else row.site.care_setting.value) for _, row in rows] == [
        "sexual_health",
        "notices_suppressed",
        "not_classified",
    ]


def test_office_hours_that_nobody_can_read_are_refused() -> None:
    head = b"code,name,office_telephone,emergency_telephone,office_hours\n"
    [(_, row)] = list(read_authorities(head + b"706,Northfold,01632 960101,01632 960102,nine to five\n"))
    assert isinstance(row, RowProblem) and row.field == "office_hours"
