"""Everything that happened about one child, in order: what the list said, visits, alerts, who took and who read them.

For the worker to whom the child is allocated now, and the duty desk of an authority that lists the child (ADR 0041).
Where a restricted child was stands in none of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.keyring import Keyring
from broker.storage import accesses, alerts, audit, child_lists, list_versions, restrictions, visits
from broker.storage.accesses import AccessKind
from broker.storage.alerts import StoredAlert
from broker.storage.audit import Act, RecordedAct
from broker.storage.child_lists import index_nhs_number
from broker.storage.list_versions import EntryVersion
from schemas.alert import AlertKind
from schemas.child_list import ChildListEntry
from schemas.identifiers import NhsNumber

LINES_MAX: Final = 2000
ALERTS_MAX: Final = 500
_READS: Final = {
    "alert.read": "Alert opened",
    "alert.place_read": "Where the person is was opened",
    "alerts.escalated": "Nobody took it in time: escalated",
    "alert.acknowledged": "Alert acknowledged",
}


class LineKind(StrEnum):
    """What a line is about."""

    LIST = "list"
    VISIT = "visit"
    LOOK_UP = "look-up"
    ALERT = "alert"
    ACCESS = "access"


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened. ``by`` is a login, a worker's code or empty."""

    at: datetime
    kind: LineKind
    words: str
    place: str = ""
    by: str = ""


class ChildChronology(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of a child, oldest line first; ``child`` as the list has them now, or had them last."""

    child: ChildListEntry
    lines: tuple[Line, ...]
    is_restricted: bool
    is_cut: bool
    """There were more lines: the oldest are left out."""


class ChronologyQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks about whom. ``worker`` None: the duty desk, which may ask of every child on its list."""

    nhs_number: NhsNumber
    owner: str
    worker: str | None
    asked_by: str
    is_export: bool = False

    def __repr__(self) -> str:
        return "ChronologyQuestion(...)"


async def tell_child(
    connection: AsyncConnection, keyring: Keyring, question: ChronologyQuestion, now: datetime
) -> ChildChronology | None:
    """Answer, and have it on record; None when the child is not theirs to see, which is on record too."""
    index = index_nhs_number(keyring, question.nhs_number)
    versions = await list_versions.find_versions(connection, keyring, index, owner=question.owner)
    told = None
    if await _may_see(connection, keyring, question, versions):
        told = await _tell(connection, keyring, question, versions)
    action = "chronology.exported" if question.is_export else "chronology.read"
    act = Act(
        owner=question.owner,
        actor=question.asked_by,
        action=action if told is not None else "chronology.refused",
        subject=index.hex(),
    )
    await audit.record_acts(connection, [act], now)
    return told


async def _may_see(
    connection: AsyncConnection, keyring: Keyring, question: ChronologyQuestion, versions: Sequence[EntryVersion]
) -> bool:
    if question.worker is None:
        return bool(versions)
    entries = await child_lists.load_entries(connection, keyring, {each.entry_id for each in versions})
    return any(
        each.entry.nhs_number == question.nhs_number
        and each.entry.allocated_worker == question.worker
        and each.entry.deleted_on is None
        for each in entries
    )


async def _tell(
    connection: AsyncConnection, keyring: Keyring, question: ChronologyQuestion, versions: Sequence[EntryVersion]
) -> ChildChronology:
    index = index_nhs_number(keyring, question.nhs_number)
    is_number_restricted = await restrictions.is_number_restricted(connection, index)
    entry_ids = sorted({each.entry_id for each in versions})
    raised = await alerts.list_resting_on(connection, keyring, question.owner, entry_ids, rows_max=ALERTS_MAX)
    raised = [each for each in raised if each.alert.child.nhs_number == question.nhs_number]
    is_restricted = is_number_restricted or any(each.is_restricted for each in raised)
    lines = [*_tell_list(versions)]
    for stored in raised:
        lines += await _tell_alert(connection, keyring, stored)
    subjects = [each.alert.alert_id for each in raised]
    for act in await audit.list_of_subjects(connection, question.owner, subjects, tuple(_READS), rows_max=LINES_MAX):
        lines.append(_tell_act(act))
    if not is_number_restricted:
        visited = {stored.visit_id for stored in raised}
        lines += await _tell_accesses(connection, keyring, question.nhs_number, visited)
    lines.sort(key=lambda line: line.at)
    return ChildChronology(
        child=max(versions, key=lambda each: each.known_from).entry,
        lines=tuple(lines[-LINES_MAX:]),
        is_restricted=is_restricted,
        is_cut=len(lines) > LINES_MAX or len(raised) == ALERTS_MAX,
    )


def _tell_list(versions: Sequence[EntryVersion]) -> Iterable[Line]:
    by_entry: dict[str, list[EntryVersion]] = {}
    for version in versions:
        by_entry.setdefault(version.entry_id, []).append(version)
    for of_entry in by_entry.values():
        before: ChildListEntry | None = None
        for version in sorted(of_entry, key=lambda each: each.sequence):
            words = _describe_change(before, version.entry)
            if words:
                yield Line(at=version.known_from, kind=LineKind.LIST, words=words, by=version.uploaded_by)
            before = version.entry
        ended_at = max(of_entry, key=lambda each: each.sequence).known_until
        if ended_at is not None:
            yield Line(at=ended_at, kind=LineKind.LIST, words="The list gave this entry another NHS number")


def _describe_change(before: ChildListEntry | None, entry: ChildListEntry) -> str:
    plan = entry.plan_type.value.replace("_", " ")
    if before is None:
        until = f" to {entry.end_on}" if entry.end_on else ""
        allocated = f", allocated to {entry.allocated_worker}" if entry.allocated_worker else ""
        return f"Listed: {plan} from {entry.start_on}{until}{allocated}"
    named = {
        "start": (before.start_on, entry.start_on),
        "end": (before.end_on, entry.end_on),
        "allocated worker": (before.allocated_worker, entry.allocated_worker),
        "team": (before.team, entry.team),
        "taken back as an error": (before.deleted_on, entry.deleted_on),
    }
    changed = [
        f"{label} {now or 'none'} (before: {was or 'none'})" for label, (was, now) in named.items() if was != now
    ]
    # Names, birthdays and addresses are on the list itself: that they changed is enough here.
    personal = (before.name, before.birth_date, before.postcode) != (entry.name, entry.birth_date, entry.postcode)
    changed += ["personal details"] if personal else []
    changed += ["household"] if before.household != entry.household else []
    return f"List changed, {plan}: {'; '.join(changed)}" if changed else ""


async def _tell_alert(connection: AsyncConnection, keyring: Keyring, stored: StoredAlert) -> list[Line]:
    alert, visit = stored.alert, stored.alert.attendance
    place = visit.organisation_name if visit.is_withheld else f"{visit.organisation_name} ({visit.organisation_code})"
    is_look_up = alert.kind is AlertKind.LOOKED_UP
    lines = [
        Line(
            at=visit.arrived_at or stored.raised_at,
            kind=LineKind.LOOK_UP if is_look_up else LineKind.VISIT,
            words=_describe_visit(stored),
            place=place,
        ),
        Line(at=stored.raised_at, kind=LineKind.ALERT, words="Alert raised" + (", late" if alert.late else "")),
    ]
    for notice in await alerts.load_notices(connection, alert.alert_id):
        words = notice.kind.value.replace("_", " ")
        lines.append(Line(at=notice.raised_at, kind=LineKind.VISIT, words=words[:1].upper() + words[1:], place=place))
    if stored.withdrawn_at is not None:
        words = f"Alert withdrawn: {(stored.withdrawn_rule or '').replace('_', ' ')}"
        lines.append(Line(at=stored.withdrawn_at, kind=LineKind.ALERT, words=words))
    if not stored.is_restricted and not is_look_up:
        said = await visits.load_messages(connection, keyring, stored.visit_id)
        left_at = max((each.left_at for _, each in said if each.left_at is not None), default=None)
        if left_at is not None:
            lines.append(Line(at=left_at, kind=LineKind.VISIT, words="Left", place=place))
    return lines


def _describe_visit(stored: StoredAlert) -> str:
    match stored.alert.kind:
        case AlertKind.LOOKED_UP:
            return "Looked up, not attended"
        case AlertKind.NOT_BROUGHT:
            words = "Was not brought"
        case _:
            words = "Attended"
    visit = stored.alert.attendance
    details = [each for each in (visit.department, visit.complaint) if each]
    return words + (f": {', '.join(details)}" if details else "")


def _tell_act(act: RecordedAct) -> Line:
    kind = LineKind.ACCESS if act.action.endswith("read") else LineKind.ALERT
    return Line(at=act.at, kind=kind, words=_READS[act.action], by="" if act.actor == "broker" else act.actor)


async def _tell_accesses(
    connection: AsyncConnection, keyring: Keyring, nhs_number: NhsNumber, visited: set[str]
) -> list[Line]:
    """What of unscheduled care met the record; visits and look-ups that stand there with their alert are left out."""
    found = await accesses.list_unscheduled(connection, keyring, nhs_number, visited, rows_max=LINES_MAX)
    return [
        Line(
            at=each.at,
            kind=LineKind.ACCESS,
            words="Attended, no alert to you" if each.author.kind is AccessKind.ATTENDED else "Looked up",
            place=f"{each.author.organisation_name} ({each.author.organisation})",
            by=each.author.person or "",
        )
        for each in found
    ]
