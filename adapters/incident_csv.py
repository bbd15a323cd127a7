"""Police incidents as the CSV that a force exports: one row a child, the incident's own columns on every row of it.

A row that cannot be read costs its whole incident, and no other: it might have been the one that excludes somebody or
keeps something back. A second establishment, excluded person or adult takes a further row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from adapters.csv_rows import Fields, RowProblem, Rows, read_csv, tell_problems
from adapters.er7 import LONDON
from adapters.errors import MalformedFile
from adapters.incident_json import IncidentLimits, IncidentRefused, take_incident
from schemas.encompass import PoliceMessage

_REQUIRED: Final = ("incident_id", "force", "version")
_LOCAL: Final = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?", re.ASCII)
_INSTANT_ADVICE: Final = "must be like 2026-11-21 22:40, London time, or with its offset, 2026-11-21T22:40:00Z"
_PLACE: Final = re.compile(r"(children|excluded_recipients|adults)\[(\d+)\]\.?(.*)")
_FIRST: Final = re.compile(r"[.\[]")
_COLUMNS: Final = {"urn": "urn", "name": "school_name", "source": "school_source"}
_OWN_COLUMNS: Final = {"reason": "withdrawn_reason", "children": "child_id", "suppress": "suppress_scope"}
_PREFIXES: Final = {"children": "", "excluded_recipients": "excluded_", "adults": "adult_"}
_ADVICE: Final = "the incident is not taken: another row of it, or one beside it, has a problem"

Content = dict[str, Any]
Key = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class IncidentFileLimits:
    """How large a file may be."""

    file_bytes_max: int = 10 * 1024 * 1024
    rows_max: int = 20_000
    field_characters_max: int = 4_000
    incident: IncidentLimits = field(default_factory=IncidentLimits)


@dataclass(frozen=True, kw_only=True)
class _IncidentRow:
    """One row, in parts of the JSON message. Where it has ``problems``, something stands in for what is wrong."""

    key: Key
    incident: Content = field(default_factory=dict)
    child: Content = field(default_factory=dict)
    establishment: Content = field(default_factory=dict)
    excluded: Content = field(default_factory=dict)
    adult: Content = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


_Numbered = tuple[int, _IncidentRow]


def read_incidents(
    file: bytes, *, received_at: datetime, limits: IncidentFileLimits | None = None
) -> Rows[PoliceMessage]:
    """A message for each version of an incident under the number of its first row, and a problem for each row that
    is not taken. Raises MalformedFile."""
    chosen = limits or IncidentFileLimits()
    if len(file) > chosen.file_bytes_max:
        raise MalformedFile(f"the file has more than {chosen.file_bytes_max} bytes")
    rows: list[tuple[int, _IncidentRow | RowProblem]] = []
    for numbered in read_csv(file, _REQUIRED, _read_row, characters_max=chosen.field_characters_max):
        rows.append(numbered)
        if len(rows) > chosen.rows_max:
            raise MalformedFile(f"the file has more than {chosen.rows_max} rows")
    return iter(sorted(_take_rows(rows, received_at, chosen.incident), key=lambda each: each[0]))


def _take_rows(
    rows: Sequence[tuple[int, _IncidentRow | RowProblem]], received_at: datetime, limits: IncidentLimits
) -> Iterator[tuple[int, PoliceMessage | RowProblem]]:
    spoilt = _spoilt_incidents(rows)
    versions: dict[tuple[Key, int], list[_Numbered]] = {}
    for number, row in rows:
        if isinstance(row, RowProblem):
            yield number, row
        elif row.problems:
            yield number, _refuse_row(number, row, received_at, limits)
        elif row.key in spoilt:
            yield number, RowProblem(row=number, field="incident_id", advice=_ADVICE)
        else:
            versions.setdefault((row.key, row.incident["version"]), []).append((number, row))
    for group in versions.values():
        yield from _take_version(group, received_at, limits)


def _refuse_row(number: int, row: _IncidentRow, received_at: datetime, limits: IncidentLimits) -> RowProblem:
    """All that is wrong with a row: what could not be read, and what may not stand there as it was read.

    Of what a message must have, nothing is told: another row of the incident may say it.
    """
    problems = dict(row.problems)
    try:
        if row.incident:
            content, places = _join([(number, row)])
            take_incident(content, received_at=received_at, limits=limits)
    except IncidentRefused as refused:
        for each in refused.problems:
            is_said = (
                each.advice != "is missing" and each.field not in places and _FIRST.split(each.field)[0] in content
            )
            if is_said:
                found = _locate(each.field, each.advice, places, number)
                problems.setdefault(found.field, found.advice)
    return tell_problems(number, problems)


def _spoilt_incidents(rows: Sequence[tuple[int, _IncidentRow | RowProblem]]) -> set[Key]:
    """Incidents with a bad row in any version; a row of nobody knows which spoils the incidents on both sides."""
    found: set[Key] = set()
    for place, (_, row) in enumerate(rows):
        if isinstance(row, _IncidentRow):
            if row.problems:
                found.add(row.key)
            continue
        beside = [each for _, each in rows[max(0, place - 1) : place + 2]]
        found |= {each.key for each in beside if isinstance(each, _IncidentRow)}
    return found


def _take_version(
    group: Sequence[_Numbered], received_at: datetime, limits: IncidentLimits
) -> Iterator[tuple[int, PoliceMessage | RowProblem]]:
    first = group[0][0]
    try:
        content, places = _join(group)
        yield first, take_incident(content, received_at=received_at, limits=limits)
    except _Differs as differs:
        problems = [RowProblem(row=differs.row, field=differs.field, advice="differs from a row above of the same")]
        yield from _refuse_group(group, problems)
    except IncidentRefused as refused:
        problems = [_locate(problem.field, problem.advice, places, first) for problem in refused.problems]
        yield from _refuse_group(group, problems)


def _refuse_group(group: Sequence[_Numbered], problems: list[RowProblem]) -> Iterator[tuple[int, RowProblem]]:
    yield from ((problem.row, problem) for problem in problems)
    told = {problem.row for problem in problems}
    for number, _ in group:
        if number not in told:
            yield number, RowProblem(row=number, field="incident_id", advice=_ADVICE)


class _Differs(Exception):
    def __init__(self, row: int, field: str) -> None:
        super().__init__(field)
        self.row = row
        self.field = field


Places = dict[str, list[int]]
"""The rows that the entries of a list of the message came from."""


def _add_child(row: _IncidentRow, number: int, children: list[Content], places: list[int]) -> None:
    known = next((child for child in children if child.get("child_id") == row.child.get("child_id")), None)
    if known is None:
        known = {**row.child, "establishments": []}
        children.append(known)
        places.append(number)
    _check_alike(row.child, known, number)
    if row.establishment and row.establishment not in known["establishments"]:
        known["establishments"].append(row.establishment)


def _join(group: Sequence[_Numbered]) -> tuple[Content, Places]:
    """The message that the rows of one version make together. Raises _Differs."""
    content = dict(group[0][1].incident)
    places: Places = {"children": [], "excluded_recipients": [], "adults": []}
    children: list[Content] = []
    others: dict[str, list[Content]] = {"excluded_recipients": [], "adults": []}
    for number, row in group:
        _check_alike(row.incident, group[0][1].incident, number)
        if row.child:
            _add_child(row, number, children, places["children"])
        for name, entry in (("excluded_recipients", row.excluded), ("adults", row.adult)):
            if entry and entry not in others[name]:
                others[name].append(entry)
                places[name].append(number)
    if content["message"] == "incident":
        content |= {"children": children, **others}
    return content, places


def _check_alike(row: Content, other: Content, number: int) -> None:
    """A further row may leave empty what an earlier one says; it may not say something else, or anew."""
    for name in sorted(row):
        if row[name] != other.get(name):
            raise _Differs(number, "suppress_scope" if name == "suppress" else name)


def _locate(path: str, advice: str, places: Places, first: int) -> RowProblem:
    """From a field of the message to the row and column it came from."""
    found = _PLACE.match(path)
    if found is None:
        column = _OWN_COLUMNS.get(path, path.replace("suppress.", "suppress_"))
        return RowProblem(row=first, field=column or "incident_id", advice=advice)
    name, row, inner = found[1], places[found[1]][int(found[2])], found[3]
    if inner.startswith("establishments"):
        return RowProblem(row=row, field=_COLUMNS.get(inner.rpartition(".")[2], "urn"), advice=advice)
    return RowProblem(row=row, field=_PREFIXES[name] + inner, advice=advice)


# One row


def _read_row(fields: Fields) -> _IncidentRow:
    """Only a row that does not say which incident it is of is refused at once: the others spoil their incident."""
    key = (fields.required("force"), fields.required("incident_id"))
    if fields.problems:
        return _IncidentRow(key=key)
    is_withdrawn = fields.flag("withdrawn")
    if not fields.are_right("withdrawn"):
        # It is read as that of the two which it looks like, so that its other columns are told of as well.
        is_withdrawn = fields.optional("withdrawn_at") is not None or fields.optional("withdrawn_reason") is not None
    row = _IncidentRow(key=key, incident=_withdrawal(fields)) if is_withdrawn else _report(fields, key)
    return replace(row, problems=fields.take_problems())


def _report(fields: Fields, key: Key) -> _IncidentRow:
    establishment = _given(
        source=fields.optional("school_source"), urn=fields.optional("urn"), name=fields.optional("school_name")
    )
    child = _child(fields)
    if establishment and not child:
        fields.refuse("child_id", "is missing: whose school is it?")
    return _IncidentRow(
        key=key,
        incident=_incident(fields),
        child=child,
        establishment=establishment,
        excluded=_given(
            name=fields.optional("excluded_name"),
            reason=fields.optional("excluded_reason"),
            authoriser=fields.optional("excluded_authoriser"),
            urn=fields.optional("excluded_urn"),
            mailbox=fields.optional("excluded_mailbox"),
        ),
        adult=_given(relation=fields.optional("adult_relation"), family_name=fields.optional("adult_family_name")),
    )


def _identity(fields: Fields) -> Content:
    text = fields.required("version")
    if not (text.isascii() and text.isdigit() and len(text) <= 7):
        fields.refuse("version", "must be a whole number from 1")
        text = "0"
    return {"force": fields.required("force"), "incident_id": fields.required("incident_id"), "version": int(text)}


def _withdrawal(fields: Fields) -> Content:
    said = {"withdrawn_at": _instant(fields, "withdrawn_at"), "reason": fields.required("withdrawn_reason")}
    return {"message": "withdrawal", **_identity(fields), **said}


def _incident(fields: Fields) -> Content:
    suppress = _given(
        scope=fields.optional("suppress_scope"),
        reason=fields.optional("suppress_reason"),
        authoriser=fields.optional("suppress_authoriser"),
        note=fields.optional("suppress_note"),
    )
    said = _given(
        change=fields.optional("change"),
        location=fields.optional("location"),
        attended=fields.optional_flag("attended"),
        circumstances=fields.optional("circumstances"),
        other_safeguarding=fields.optional("other_safeguarding"),
        risk_grade=fields.optional("risk_grade"),
        suppress=suppress or None,
    )
    instants = {name: _instant(fields, name) for name in ("occurred_at", "reported_at")}
    return {"message": "incident", **_identity(fields), **instants, **said}


def _child(fields: Fields) -> Content:
    return _given(
        child_id=fields.optional("child_id"),
        family_name=fields.optional("family_name"),
        given_name=fields.optional("given_name"),
        birth_date=fields.optional("birth_date"),
        sex=fields.optional("sex"),
        postcode=fields.optional("postcode"),
        nhs_number=fields.optional("nhs_number"),
        home_educated=fields.optional_flag("home_educated"),
        authority=fields.optional("authority"),
        present=fields.optional_flag("present"),
        where=fields.optional("where"),
        spoken_to=fields.optional_flag("spoken_to"),
        spoken_alone=fields.optional_flag("spoken_alone"),
        childs_words=fields.optional("childs_words"),
        welfare_check=fields.optional_flag("welfare_check"),
    )


def _given(**said: object) -> Content:
    """What was said, without what was left empty."""
    return {name: value for name, value in said.items() if value is not None}


def _instant(fields: Fields, name: str) -> str:
    """An instant with its offset, or a local time of Europe/London that comes exactly once."""
    text = fields.required(name)
    try:
        local = datetime.fromisoformat(text)
    except ValueError:
        fields.refuse(name, _INSTANT_ADVICE)
        return ""
    if local.tzinfo is not None:
        return text
    if not _LOCAL.fullmatch(text):
        fields.refuse(name, _INSTANT_ADVICE)
        return ""
    early, late = (local.replace(tzinfo=LONDON, fold=fold) for fold in (0, 1))
    if early.utcoffset() != late.utcoffset():
        fields.refuse(name, "falls into the hour in which the clocks change: write the offset, like +01:00")
    return early.isoformat()
