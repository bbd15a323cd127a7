"""CP-IS HL7 v3: the file that an authority's case system uploads (message 01, REPC_MT000002GB01), read.

Elements as in the CP-IS Domain Message Specification 1.0, release candidate 5: tabular views of REPC_RM000002GB01,
ChildSubject (COCT_TP145101GB01), UnbornChildSubject (COCT_TP145100GB01) and the plans (COCT_TP146100GB01 to
COCT_TP146102GB01). Names are taken without their namespace, and a date wherever it stands within its plan, because what
links the two is numbered differently from plan to plan. A document type is refused, and with it every entity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date
from itertools import chain
from typing import Final
from xml.parsers import expat

import msgspec

from adapters.child_list_csv import NUMBER_ADVICE, OLD_STYLE_ADVICE, ChildRowProblem, is_old_style_number
from adapters.csv_rows import FIELD_CHARACTERS_MAX, Rows, tell_problems
from adapters.errors import MalformedFile
from schemas.attendance import PersonName
from schemas.child_list import ChildListEntry, PlanType
from schemas.identifiers import NhsNumber, parse_nhs_number, parse_ods_code
from schemas.upload import RecordCode

_PIECE_BYTES: Final = 65_536
"""Fed to the parser at once: so much XML is held as elements."""
_NHS_NUMBER_ROOT: Final = "2.16.840.1.113883.2.1.4.1"
_PLANS: Final = {
    "COCT_TP146100GB01.LACInformation": ("lAC", PlanType.LOOKED_AFTER),
    "COCT_TP146101GB01.CPPInformation": ("cPP", PlanType.CHILD_PROTECTION),
    "COCT_TP146102GB01.UCPInformation": ("uCP", PlanType.UNBORN),
}
Problems = dict[str, str]
"""How to mend each field that is not as it must be, in the order in which they were read."""


class UploadLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one file may hold."""

    file_bytes_max: int = 1_073_741_824
    records_max: int = 1_500_000
    depth_max: int = 32
    record_elements_max: int = 1_000
    text_characters_max: int = 4_000
    """Of one element or attribute."""


class UploadHead(msgspec.Struct, frozen=True, kw_only=True):
    """What stands before the records. None where the file does not say."""

    sequence_number: str | None
    """The sender's own number of the file (``File/id``)."""
    authority: str | None
    """ODS code of the sending authority (``communicationFunctionSnd/organisation/id``)."""
    records: int | None
    """How many records there should be (``transmissionQuantity``)."""


class _Element:
    """An element without its namespace."""

    __slots__ = ("attributes", "children", "name", "text")

    def __init__(self, name: str, attributes: dict[str, str]) -> None:
        self.name = name
        self.attributes = attributes
        self.children: list[_Element] = []
        self.text = ""

    def all(self, name: str) -> Iterator[_Element]:
        return (child for child in self.children if child.name == name)

    def first(self, *path: str) -> _Element | None:
        found: _Element | None = self
        for name in path:
            found = next(found.all(name), None) if found is not None else None
        return found

    def within(self, name: str) -> _Element | None:
        for child in self.children:
            found = child if child.name == name else child.within(name)
            if found is not None:
                return found
        return None


def read_upload(chunks: Iterable[bytes], limits: UploadLimits | None = None) -> tuple[UploadHead, Rows[ChildListEntry]]:
    """The head, and one entry or ChildRowProblem per plan, with the number of its record: the first is 1.

    A problem tells all that is to be mended of its entry: of the person and of the plan.

    The entries are read while they are taken, so that a large file needs little memory. Raises MalformedFile, at once
    or on the way; also at the end, when there are more or fewer records than the head says.
    """
    limits = limits or UploadLimits()
    parts = _read_parts(chunks, limits)
    before: list[_Element] = []
    for part in parts:
        if len(before) > limits.record_elements_max:
            break
        if part.name == "record":
            head = _read_head(before)
            return head, _read_records(chain((part,), parts), head)
        before.append(part)
    raise MalformedFile("the file has no record")


def _read_head(parts: list[_Element]) -> UploadHead:
    file = _Element("File", {})
    file.children = parts
    quantity = _attribute(file.first("transmissionQuantity"), "value")
    is_number = quantity is not None and quantity.isascii() and quantity.isdigit() and len(quantity) < 10
    code = _attribute(file.first("communicationFunctionSnd", "organisation", "id"), "extension")
    return UploadHead(
        sequence_number=_attribute(file.first("id"), "extension"),
        authority=parse_ods_code(code or ""),
        records=int(quantity or "0") if is_number else None,
    )


def _read_records(parts: Iterable[_Element], head: UploadHead) -> Rows[ChildListEntry]:
    number = 0
    for part in parts:
        if part.name == "record":
            number += 1
            yield from _read_record(number, part)
    if head.records is not None and head.records != number:
        raise MalformedFile("the file does not have as many records as it says")


def _read_record(number: int, record: _Element) -> Rows[ChildListEntry]:
    content = record.first("CP-ISRecord")
    if content is None:
        yield number, ChildRowProblem(row=number, field="record", advice="must hold a CP-ISRecord")
        return
    person = _read_subject(content)
    plans = [plan for link in content.all("pertinentInformation") for plan in link.children if plan.name in _PLANS]
    if not plans:
        problems = person.problems | {"plan_type": "is missing: the record has no plan"}
        yield number, _refuse_entry(number, person, problems)
    for plan in plans:
        problems = dict(person.problems)
        entry = _read_plan(person, plan, problems)
        yield number, _refuse_entry(number, person, problems) if problems else entry


class _Subject(msgspec.Struct, frozen=True, kw_only=True):
    """The child, or the mother of an unborn one: what is not as it must be has a stand-in, and is in ``problems``."""

    problems: Problems
    local_id: str = ""
    nhs_number: NhsNumber = NhsNumber("")
    name: PersonName = PersonName(family="")
    birth_date: date = date.min
    is_old_style: bool = False
    """Whether the NHS number is one from before 1996."""


def _refuse_entry(number: int, person: _Subject, problems: Problems) -> ChildRowProblem:
    told = tell_problems(number, problems)
    return ChildRowProblem(
        row=number,
        field=told.field,
        advice=told.advice,
        code=RecordCode.OLD_STYLE_NUMBER if person.is_old_style else RecordCode.NOT_LOADED,
        local_id=person.local_id or None,
    )


def _read_subject(content: _Element) -> _Subject:
    """A local id is optional: the NHS number stands for one left out."""
    child = content.first("subject", "COCT_TP145101GB01.Child")
    mother = content.first("subject", "COCT_TP145100GB01.UnbornChild", "parentMotherPerson")
    if child is not None:
        ids, person = list(child.all("id")), child.first("childPerson")
    elif mother is not None:
        role = mother.first("playedMother")
        ids, person = list(role.all("id")) if role is not None else [], mother
    else:
        return _Subject(problems={"record": "must name a child, or the mother of an unborn child"})
    problems: Problems = {}
    written, others = _find_ids(ids)
    is_old_style = is_old_style_number(written)
    number = parse_nhs_number(written)
    if number is None:
        problems["nhs_number"] = OLD_STYLE_ADVICE if is_old_style else NUMBER_ADVICE
    local_id = _plain(_attribute(others[0], "extension"), "local_id", problems) if others else None
    return _Subject(
        problems=problems,
        local_id=local_id or number or "",
        nhs_number=number or NhsNumber(""),
        name=_read_name(person, problems),
        birth_date=_read_day(person.first("birthTime") if person is not None else None, "birth_date", problems),
        is_old_style=is_old_style,
    )


def _find_ids(ids: list[_Element]) -> tuple[str, list[_Element]]:
    """What is written as NHS number, and the other ids: by their roots; where those are left out, it is the first."""
    numbered = [each for each in ids if each.attributes.get("root") == _NHS_NUMBER_ROOT]
    if not numbered:
        numbered = [each for each in ids[:1] if "root" not in each.attributes]
    others = [each for each in ids if each not in numbered[:1]]
    return (_attribute(numbered[0], "extension") or "") if numbered else "", others


def _read_name(person: _Element | None, problems: Problems) -> PersonName:
    name = person.first("name") if person is not None else None
    family = _plain(_text(name.first("family")), "family_name", problems) if name is not None else None
    if name is None or family is None:
        problems.setdefault("family_name", "is missing")
    given = " ".join(filter(None, (_text(each) for each in name.all("given")))) if name is not None else ""
    return PersonName(family=family or "", given=_plain(given, "given_name", problems) or "")


def _read_plan(person: _Subject, plan: _Element, problems: Problems) -> ChildListEntry:
    prefix, plan_type = _PLANS[plan.name]
    start_on = _read_day(_value_of(plan, f"{prefix}StartDate"), "start_date", problems)
    end_on = _read_optional_day(_value_of(plan, f"{prefix}EndDate"), "end_date", problems)
    if end_on is not None and end_on < start_on and "start_date" not in problems:
        problems["end_date"] = "must not be before the start date"
    return ChildListEntry(
        local_id=person.local_id,
        nhs_number=person.nhs_number,
        name=person.name,
        birth_date=person.birth_date,
        plan_type=plan_type,
        start_on=start_on,
        end_on=end_on,
        deleted_on=_read_optional_day(_value_of(plan, f"{prefix}DeleteDate"), "delete_date", problems),
    )


# --- values ---------------------------------------------------------------------------------------------


def _value_of(plan: _Element, name: str) -> _Element | None:
    found = plan.within(name)
    return found.first("value") if found is not None else None


def _read_day(element: _Element | None, field: str, problems: Problems) -> date:
    day = _read_optional_day(element, field, problems)
    if day is None:
        problems.setdefault(field, "is missing")
    return day or date.min


def _read_optional_day(element: _Element | None, field: str, problems: Problems) -> date | None:
    """The day of a time stamp (HL7 v3 TS), which may go on with a time: 20260131 or 20260131120000+0000."""
    text = _attribute(element, "value")
    if text is None:
        return None
    digits = text[:8]
    try:
        if not digits.isascii() or not digits.isdigit():
            raise ValueError
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        problems[field] = "must be a date like 20260131"
        return None


def _attribute(element: _Element | None, name: str) -> str | None:
    return (element.attributes.get(name, "").strip() or None) if element is not None else None


def _text(element: _Element | None) -> str | None:
    return (" ".join(element.text.split()) or None) if element is not None else None


def _plain(text: str | None, field: str, problems: Problems) -> str | None:
    if text is not None and len(text) > FIELD_CHARACTERS_MAX:
        problems[field] = f"must be plain text of at most {FIELD_CHARACTERS_MAX} characters"
        return None
    return text or None


# --- XML ------------------------------------------------------------------------------------------------


class _Builder:
    """Builds the children of the root one by one."""

    def __init__(self, limits: UploadLimits) -> None:
        self._limits = limits
        self._open: list[_Element] = []
        self._depth = self._elements = self._records = 0
        self._finished: list[_Element] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        local = name.rpartition(" ")[2]
        if self._depth == 1:
            if local != "File":
                raise MalformedFile("the file is not a CP-IS upload")
            return
        if self._depth > self._limits.depth_max:
            raise MalformedFile("the file is nested too deeply")
        self._elements = 1 if self._depth == 2 else self._elements + 1
        if self._elements > self._limits.record_elements_max:
            raise MalformedFile("a record has too many elements")
        if any(len(value) > self._limits.text_characters_max for value in attributes.values()):
            raise MalformedFile("an attribute is too long")
        self._records += self._depth == 2 and local == "record"
        if self._records > self._limits.records_max:
            raise MalformedFile("the file has too many records")
        element = _Element(local, attributes)
        if self._open:
            self._open[-1].children.append(element)
        self._open.append(element)

    def end(self, _: str) -> None:
        self._depth -= 1
        if self._open:
            element = self._open.pop()
            if not self._open:
                self._finished.append(element)

    def add_text(self, text: str) -> None:
        if self._open and not (self._open[-1].children or text.isspace()):
            element = self._open[-1]
            element.text += text
            if len(element.text) > self._limits.text_characters_max:
                raise MalformedFile("a text is too long")

    def take_finished(self) -> list[_Element]:
        finished, self._finished = self._finished, []
        return finished

    def refuse_doctype(self, *_: object) -> None:
        raise MalformedFile("the file has a document type, which is not allowed")


def _read_parts(chunks: Iterable[bytes], limits: UploadLimits) -> Iterator[_Element]:
    """The children of the root, each as soon as it is whole. Raises MalformedFile."""
    builder = _Builder(limits)
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.add_text
    parser.StartDoctypeDeclHandler = builder.refuse_doctype
    file_bytes = 0
    try:
        for chunk in chunks:
            file_bytes += len(chunk)
            if file_bytes > limits.file_bytes_max:
                raise MalformedFile("the file is too large")
            for start in range(0, len(chunk), _PIECE_BYTES):
                parser.Parse(chunk[start : start + _PIECE_BYTES], False)
                yield from builder.take_finished()
        parser.Parse(b"", True)
        yield from builder.take_finished()
    except (expat.ExpatError, ValueError, LookupError):
        raise MalformedFile(f"line {parser.CurrentLineNumber} of the file is not XML") from None
