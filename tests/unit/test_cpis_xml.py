"""The CP-IS upload that case systems write: what is read of it, and what of a bad or hostile file."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from xml.sax.saxutils import escape, quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.child_list_csv import ChildRowProblem, RowProblem
from adapters.cpis_xml import UploadHead, UploadLimits, read_upload
from adapters.errors import MalformedFile
from schemas.attendance import PersonName
from schemas.child_list import ChildListEntry, PlanType
from schemas.upload import RecordCode
from tests.factories import make_nhs_number

CHILD, MOTHER, OTHER = (make_nhs_number(serial) for serial in (1, 2, 3))
LOCAL_ROOT = "2.16.840.1.113883.2.1.3.2.4.18.24"
PLANS = {"lAC": "COCT_TP146100GB01.LACInformation", "cPP": "COCT_TP146101GB01.CPPInformation"}
PLANS["uCP"] = "COCT_TP146102GB01.UCPInformation"


def plan(prefix: str, start: str = "20260131", end: str | None = None, delete: str | None = None) -> str:
    dates = "".join(
        f'<{link} typeCode="COMP"><{prefix}{kind}Date><value value="{value}"/></{prefix}{kind}Date></{link}>'
        for link, kind, value in (
            ("component", "Start", start),
            ("component1", "End", end),
            ("component2", "Delete", delete),
        )
        if value is not None
    )
    return f"<pertinentInformation><{PLANS[prefix]}>{dates}</{PLANS[prefix]}></pertinentInformation>"


def ids(number: str, local_id: str | None) -> str:
    local = (
        f'<id root="{LOCAL_ROOT}" extension={quoteattr(local_id)} assigningAuthorityName="706:X"/>' if local_id else ""
    )
    return f'<id root="2.16.840.1.113883.2.1.4.1" extension={quoteattr(number)}/>{local}'


def naming(family: str, *given_: str) -> str:
    givens = "".join(f"<given>{escape(name)}</given>" for name in given_)
    return f"<name><prefix>Miss</prefix>{givens}<family>{escape(family)}</family></name>"


def child(number: str = CHILD, local_id: str | None = "C1", family: str = "Tester", born: str = "20150302") -> str:
    return (
        f"<subject><COCT_TP145101GB01.Child>{ids(number, local_id)}<childPerson>"
        f'<birthTime value="{born}"/>{naming(family, "Casey", "Anne")}</childPerson>'
        "</COCT_TP145101GB01.Child></subject>"
    )


def mother(number: str = MOTHER) -> str:
    return (
        '<subject><COCT_TP145100GB01.UnbornChild><parentMotherPerson><birthTime value="19980101"/>'
        f"{naming('Tester', 'Robin')}<playedMother>{ids(number, 'M1')}</playedMother></parentMotherPerson>"
        "</COCT_TP145100GB01.UnbornChild></subject>"
    )


def record(*parts: str) -> str:
    return f'<record><CP-ISRecord><code code="01"/>{"".join(parts)}</CP-ISRecord></record>'


def upload(*records: str, quantity: int | None = None, authority: str = "706") -> bytes:
    count = len(records) if quantity is None else quantity
    return (
        '<?xml version="1.0" encoding="UTF-8"?><File xmlns="urn:hl7-org:v3"><creationTime value="20260714201503+0100"/>'
        f'<id extension="42"/><transmissionQuantity value="{count}"/>'
        '<communicationFunctionSnd typeCode="SND"><organisation>'
        f'<id extension="{authority}"/><name>A Borough</name></organisation></communicationFunctionSnd>'
        f"{''.join(records)}</File>"
    ).encode()


def read(file: bytes, limits: UploadLimits | None = None) -> list[tuple[int, ChildListEntry | RowProblem]]:
    return list(read_upload([file], limits)[1])


def pieces(file: bytes, size: int) -> Iterator[bytes]:
    return (file[start : start + size] for start in range(0, len(file), size))


ENTRY = ChildListEntry(
    local_id="C1",
    nhs_number=CHILD,
    name=PersonName(family="Tester", given="Casey Anne"),
    birth_date=date(2015, 3, 2),
    plan_type=PlanType.CHILD_PROTECTION,
    start_on=date(2026, 1, 31),
)


def test_the_head_says_which_file_of_which_authority_it_is() -> None:
    assert read_upload([upload(record(child(), plan("cPP")))])[0] == UploadHead(
        sequence_number="42", authority="706", records=1
    )


def test_a_child_with_a_plan_is_an_entry() -> None:
    assert read(upload(record(child(), plan("cPP")))) == [(1, ENTRY)]


def test_a_file_may_come_in_pieces_of_any_size_and_with_a_prefix() -> None:
    file = upload(record(child(), plan("cPP")))
    for size in (1, 7, 1000):
        assert list(read_upload([b"", *pieces(file, size)])[1]) == [(1, ENTRY)]
    prefixed = (
        file.replace(b"<", b"<v3:")
        .replace(b"<v3:/", b"</v3:")
        .replace(b"<v3:?", b"<?")
        .replace(b"xmlns=", b"xmlns:v3=")
    )
    assert read(prefixed) == [(1, ENTRY)]


def test_a_mother_stands_for_her_unborn_child() -> None:
    ((_, entry),) = read(upload(record(mother(), plan("uCP", end="20260601"))))
    assert isinstance(entry, ChildListEntry)
    assert (entry.nhs_number, entry.local_id, entry.plan_type) == (MOTHER, "M1", PlanType.UNBORN)
    assert (entry.name, entry.birth_date) == (PersonName("Tester", "Robin"), date(1998, 1, 1))
    assert entry.end_on == date(2026, 6, 1)


def test_one_record_may_hold_three_plans_and_one_of_them_may_be_wrong() -> None:
    found = read(
        upload(record(child(), plan("cPP"), plan("lAC", start="20261399"), plan("uCP", delete="20260714101112+0100")))
    )
    assert [number for number, _ in found] == [1, 1, 1]
    first, second, third = (row for _, row in found)
    assert first == ENTRY
    assert second == ChildRowProblem(row=1, field="start_date", advice="must be a date like 20260131", local_id="C1")
    assert isinstance(third, ChildListEntry)
    assert (third.plan_type, third.deleted_on) == (PlanType.UNBORN, date(2026, 7, 14))


def test_without_roots_the_first_id_is_the_nhs_number_and_without_a_local_id_it_stands_for_it() -> None:
    bare = child().replace('root="2.16.840.1.113883.2.1.4.1" ', "").replace(f'root="{LOCAL_ROOT}" ', "")
    assert read(upload(record(bare, plan("cPP")))) == [(1, ENTRY)]
    ((_, entry),) = read(upload(record(child(local_id=None), plan("cPP"))))
    assert isinstance(entry, ChildListEntry)
    assert entry.local_id == CHILD


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (record(child(number="9990000019"), plan("cPP")), "nhs_number"),
        (record(child(number="ABC 12 345"), plan("cPP")), "nhs_number"),
        (record(child().replace('root="2.16.840.1.113883.2.1.4.1"', 'root="1.2.3"'), plan("cPP")), "nhs_number"),
        (record(child(family=" "), plan("cPP")), "family_name"),
        (record(child(family="x" * 501), plan("cPP")), "family_name"),
        (record(child(local_id="x" * 501), plan("cPP")), "local_id"),
        (record(child(born="2015"), plan("cPP")), "birth_date"),
        (record(child(born=""), plan("cPP")), "birth_date"),
        (record(child(born="٢٠١٥٠٣٠٢"), plan("cPP")), "birth_date"),
        (record(child(), plan("cPP", start="")), "start_date"),
        (record(child(), plan("cPP", end="20250131")), "end_date"),
        (record(child(), plan("cPP", delete="soon")), "delete_date"),
        (record(child()), "plan_type"),
        (record(plan("cPP")), "record"),
        ("<record/>", "record"),
        (
            record(
                "<subject><COCT_TP145100GB01.UnbornChild><parentMotherPerson/></COCT_TP145100GB01.UnbornChild></subject>",
                plan("uCP"),
            ),
            "nhs_number",
        ),
    ],
)
def test_a_bad_record_never_loses_the_good_ones_and_is_told_without_its_values(bad: str, field: str) -> None:
    found = read(upload(record(child(), plan("cPP")), bad, record(child(), plan("cPP"))))
    assert [found[0], found[2]] == [(1, ENTRY), (3, ENTRY)]
    number, problem = found[1]
    assert isinstance(problem, RowProblem)
    assert (number, problem.row, problem.field) == (2, 2, field)
    assert not [value for value in ("9990000019", "ABC", "soon", "xxx", CHILD) if value in problem.advice]


def test_all_that_is_wrong_with_an_entry_is_told_at_once_and_who_it_is_of() -> None:
    """The person's own faults with each plan: every entry is mended by itself, as every row of a CSV file is."""
    bad = record(
        child(number="9990000019", family=" ", born="soon"),
        plan("cPP", start="", end="20261399", delete="never"),
        plan("lAC", start="20260131", end="20260130"),
    )
    found = [problem for _, problem in read(upload(bad)) if isinstance(problem, ChildRowProblem)]
    told = [[each.field, *(other.split()[0] for other in each.advice.split("; ")[1:])] for each in found]
    person = ["nhs_number", "family_name", "birth_date"]
    # "please check it" ends the advice on a number.
    told = [[name for name in names if name != "please"] for names in told]
    assert told == [[*person, "start_date", "end_date", "delete_date"], [*person, "end_date"]]
    assert [(each.code, each.local_id) for each in found] == [(RecordCode.NOT_LOADED, "C1")] * 2


@pytest.mark.parametrize(
    ("number", "code"),
    [("ABC 12 345", RecordCode.OLD_STYLE_NUMBER), ("9990000019", RecordCode.NOT_LOADED), ("", RecordCode.NOT_LOADED)],
)
def test_a_number_of_the_old_style_is_answered_by_its_own_code_whatever_else_is_wrong(
    number: str, code: RecordCode
) -> None:
    for born in ("20150302", "2015"):
        ((_, problem),) = read(upload(record(child(number=number, local_id=None, born=born), plan("cPP"))))
        assert isinstance(problem, ChildRowProblem)
        assert (problem.field, problem.code, problem.local_id) == ("nhs_number", code, None)
        assert ("birth_date" in problem.advice) is (born == "2015")


BILLION = b'<!DOCTYPE File [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><File><record>&b;</record></File>'


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"   ",
        b"local_id,nhs_number\r\nC1,9990000018\r\n",
        b"<File/>",
        b"<File><record></File>",
        b"<Other><record/></Other>",
        b"\xff\xfe<File/>",
        b'<?xml version="1.0" encoding="klingon"?><File/>',
        BILLION,
        b'<!DOCTYPE File SYSTEM "http://example.org/x.dtd"><File><record/></File>',
        upload(record(child(), plan("cPP")))[:-30],
        upload(record(child(), plan("cPP"))) + b"<File/>",
        upload(record(child(), plan("cPP")), quantity=2),
        upload(record(child(), plan("cPP")), record(child(), plan("cPP")), quantity=1),
        upload("<record>" * 40 + "</record>" * 40),
        upload("<record>" + "<x/>" * 1_001 + "</record>"),
        upload("<record><x>" + "y" * 4_001 + "</x></record>"),
        upload('<record x="' + "y" * 4_001 + '"/>'),
        upload("<x/>" * 1_100, record(child(), plan("cPP"))),
    ],
)
def test_a_malformed_or_hostile_file_is_refused_as_a_whole(file: bytes) -> None:
    with pytest.raises(MalformedFile):
        read(file)


def test_files_over_the_limits_are_refused() -> None:
    file = upload(*[record(child(), plan("cPP"))] * 3)
    assert len(read(file, UploadLimits(records_max=3, file_bytes_max=len(file)))) == 3
    for limits in (UploadLimits(records_max=2), UploadLimits(file_bytes_max=len(file) - 1)):
        with pytest.raises(MalformedFile):
            read(file, limits)


def test_records_are_read_while_they_are_taken() -> None:
    def chunks() -> Iterator[bytes]:
        file = upload(*[record(child(), plan("cPP"))] * 1_000)
        yield file[: len(file) // 2]
        raise AssertionError("nobody needs this yet")

    _, rows = read_upload(chunks())
    assert next(rows) == (1, ENTRY)


printable = st.text(st.characters(exclude_categories=("Cc", "Cs", "Co", "Cn")), min_size=1, max_size=20)


@given(printable.filter(lambda text: text.strip() != ""), printable)
def test_names_come_through_whatever_is_in_them(family: str, local_id: str) -> None:
    found = read(upload(record(child(family=family, local_id=local_id), plan("cPP"))))
    ((_, entry),) = found
    assert isinstance(entry, ChildListEntry)
    assert entry.name.family == " ".join(family.split())
    assert entry.local_id == (local_id.strip() or CHILD)


@given(st.data())
def test_a_broken_file_is_refused_or_read_and_never_anything_else(data: st.DataObject) -> None:
    file = bytearray(upload(record(child(), plan("cPP")), record(mother(), plan("uCP"))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(file) - 1))
        file[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    try:
        read(bytes(file))
    except MalformedFile as refused:
        assert CHILD not in str(refused)
