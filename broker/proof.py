"""The proof of Operation Encompass: the statutory report of a month, everything about one incident, and the schools
that could not be told as they should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.csv_rows import write_csv
from broker.domain.encompass import Hold
from broker.domain.punctuality import Delay, NoticeFacts, Punctuality, judge_punctuality
from broker.domain.school_coverage import Gap, SchoolGap, SchoolRules, find_gaps
from broker.domain.visits import LONDON, london_day
from broker.keyring import Keyring
from broker.nudges import derive_nudge_ids
from broker.storage import establishments, incidents, receipts, sendings
from broker.storage.incidents import StoredIncident, StoredNotice
from broker.storage.sendings import AuditedAct, Received, Sending, Sent, TaskSpan
from broker.storage.tables import ItemState
from schemas.encompass import EstablishmentStatus, NoticeState, PoliceIncident, TaskKind
from schemas.identifiers import establishment_owner

_DELAYS = {
    TaskKind.RELEASE: Delay.RELEASE,
    TaskKind.LOOK_UP: Delay.SCHOOL_NOT_KNOWN,
    TaskKind.NO_ROUTE: Delay.NO_ROUTE,
}


class Month(msgspec.Struct, frozen=True, order=True):
    """A month of London's calendar."""

    year: int
    month: int

    @property
    def words(self) -> str:
        """As ``2026-02``."""
        return f"{self.year:04}-{self.month:02}"

    @property
    def begins_at(self) -> datetime:
        """Its first instant."""
        return datetime.combine(date(self.year, self.month, 1), time(), LONDON)

    @property
    def following(self) -> Month:
        """The month after."""
        return Month(self.year + self.month // 12, self.month % 12 + 1)


def parse_month(text: str) -> Month | None:
    """A month like 2026-02; None when it is none."""
    year, _, month = text.partition("-")
    is_month = len(year) == 4 and len(month) == 2 and (year + month).isascii() and (year + month).isdigit()
    if not is_month or not (2000 <= int(year) < 2100 and 1 <= int(month) <= 12):
        return None
    return Month(int(year), int(month))


class NoticeLine(msgspec.Struct, frozen=True, kw_only=True):
    """One notice of the report. Names no child."""

    incident_id: str
    incident: str
    """The force's own reference."""
    reported_at: datetime
    urn: str
    establishment: str
    children: int
    due_by: datetime
    sent_at: datetime | None
    punctuality: Punctuality
    delay: Delay | None
    opened_at: datetime | None
    acknowledged_at: datetime | None
    versions: int
    """How often it was sent, corrections and the taking back included."""


class MonthReport(msgspec.Struct, frozen=True, kw_only=True):
    """The report of a force, or of what concerns an authority's schools, for incidents reported in a month."""

    month: str
    force: str
    authority: str
    incidents: int
    withdrawn: int
    """Of the incidents: taken back by the force. Their children are not counted."""
    children: int
    children_without_school: int
    """Whose school is still being looked for."""
    children_of_officers: int
    """Told to the officer of an authority: home-educated, or too young for school."""
    notices: int
    punctuality: dict[str, int]
    """Every notice is counted once."""
    delays: dict[str, int]
    """Why those that were late, or were not sent, were not on time."""
    opened: int
    acknowledged: int
    lines: tuple[NoticeLine, ...]


class NoticeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One notice with every version that was sent, and what became of the messages about it."""

    line: NoticeLine
    state: NoticeState
    hold: str | None
    acknowledged_by: str | None
    sendings: tuple[Sending, ...]
    deliveries: tuple[Sent, ...]
    acts: tuple[AuditedAct, ...]


class IncidentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one incident: what the police said, who was told what and when, what people did."""

    incident_id: str
    force: str
    incident: str
    received: tuple[Received, ...]
    notices: tuple[NoticeRecord, ...]
    tasks: tuple[TaskSpan, ...]
    acts: tuple[AuditedAct, ...]
    """About the incident and its tasks."""


async def report_month(
    connection: AsyncConnection,
    keyring: Keyring,
    month: Month,
    *,
    now: datetime,
    force: str = "",
    authority: str = "",
) -> MonthReport:
    """The report of a month, of a force or of what concerns an authority's establishments."""
    found = await sendings.list_reported(
        connection, keyring, month.begins_at, month.following.begins_at, force=force, authority=authority
    )
    ids = [each.id for each in found]
    notices = [
        notice
        for notice in await sendings.list_notices_of(connection, keyring, ids)
        if not authority or notice.authority == authority
    ]
    tasks = await sendings.list_tasks_of(connection, keyring, ids)
    lines = await _draw_lines(connection, found, notices, tasks, now)
    return MonthReport(
        month=month.words,
        force=force,
        authority=authority,
        incidents=len(found),
        withdrawn=sum(not isinstance(each.message, PoliceIncident) for each in found),
        children=_count_children(found, notices, authority),
        children_without_school=_count_asked(tasks, TaskKind.LOOK_UP, only_open=True, authority=authority),
        children_of_officers=_count_asked(tasks, TaskKind.TELL_OFFICER, only_open=False, authority=authority),
        notices=len(lines),
        punctuality=_count(Punctuality, Counter(line.punctuality for line in lines)),
        delays=_count(Delay, Counter(line.delay for line in lines if line.delay is not None)),
        opened=sum(line.opened_at is not None for line in lines),
        acknowledged=sum(line.acknowledged_at is not None for line in lines),
        lines=lines,
    )


async def tell_incident(
    connection: AsyncConnection, keyring: Keyring, incident_id: str, now: datetime
) -> IncidentRecord | None:
    """Everything about one incident, or None when there is none with that id."""
    incident = await incidents.find_incident(connection, keyring, incident_id)
    if incident is None:
        return None
    notices = await sendings.list_notices_of(connection, keyring, [incident.id])
    tasks = await sendings.list_tasks_of(connection, keyring, [incident.id])
    lines = await _draw_lines(connection, [incident], notices, tasks, now)
    sent = await sendings.list_sendings(connection, keyring, [notice.id for notice in notices])
    records = []
    for notice, line in zip(notices, lines, strict=True):
        telling = notice.telling
        contact_ids = {*telling.told, *(skipped.contact_id for skipped in telling.skipped)}
        nudges = derive_nudge_ids(keyring, notice.id, notice.version, ("", *sorted(contact_ids)))
        records.append(
            NoticeRecord(
                line=line,
                state=notice.state,
                hold=notice.hold,
                acknowledged_by=notice.acknowledged_by,
                sendings=tuple(sent.get(notice.id, ())),
                deliveries=tuple(await sendings.list_deliveries(connection, nudges)),
                acts=tuple(await sendings.list_acts(connection, [notice.id])),
            )
        )
    subjects = [incident.id, *(span.task.id for span in tasks)]
    return IncidentRecord(
        incident_id=incident.id,
        force=incident.force,
        incident=incident.message.incident_id,
        received=tuple(await sendings.list_received(connection, keyring, incident.id)),
        notices=tuple(records),
        tasks=tuple(tasks),
        acts=tuple(await sendings.list_acts(connection, subjects)),
    )


class SchoolLine(msgspec.Struct, frozen=True, kw_only=True):
    """A school with everything that is lacking there."""

    urn: str
    name: str
    gaps: tuple[Gap, ...]


class SchoolReport(msgspec.Struct, frozen=True, kw_only=True):
    """The schools of an authority's area: how many are ready, and what the others lack."""

    authority: str
    counted_on: date
    open_schools: int
    ready: int
    gaps: dict[str, int]
    """Schools by what they lack; one school may lack several things."""
    schools: tuple[SchoolLine, ...]
    """Those that lack something, the worst first."""


async def report_schools(
    connection: AsyncConnection, keyring: Keyring, authority: str, *, now: datetime, trained: timedelta
) -> SchoolReport:
    """What the schools of an authority lack today."""
    on = london_day(now)
    shortest = await establishments.find_confirmed_days(connection)
    rules = SchoolRules(trained=trained)
    if shortest is not None:
        rules = msgspec.structs.replace(rules, confirmed=timedelta(days=shortest))
    schools = [
        each
        for each in await establishments.list_establishments(connection, authority)
        if each.status is EstablishmentStatus.OPEN
    ]
    contacts = await establishments.load_contacts(connection, keyring, [each.urn for each in schools])
    days = await establishments.list_days(connection, authority)
    missed = await receipts.find_unreached_contacts(connection, [establishment_owner(each.urn) for each in schools])
    lines = []
    for each in schools:
        unreached = {who: london_day(at) for who, at in missed.get(establishment_owner(each.urn), {}).items()}
        if gaps := find_gaps(each, contacts.get(each.urn, ()), days, on, rules, unreached=unreached):
            lines.append(SchoolLine(urn=each.urn, name=each.name, gaps=gaps))
    order = list(SchoolGap)
    lines.sort(key=lambda line: (min(order.index(gap.kind) for gap in line.gaps), line.urn))
    counted = Counter(kind for line in lines for kind in {gap.kind for gap in line.gaps})
    return SchoolReport(
        authority=authority,
        counted_on=on,
        open_schools=len(schools),
        ready=len(schools) - len(lines),
        gaps={kind.value: counted.get(kind, 0) for kind in SchoolGap},
        schools=tuple(lines),
    )


def write_report(report: MonthReport) -> bytes:
    """The notices of a report as CSV, safe to open in a spreadsheet: instants in UTC."""
    columns = [name for name in NoticeLine.__struct_fields__ if name != "incident_id"]
    lines = [msgspec.to_builtins(line, str_keys=True) for line in report.lines]
    return write_csv(columns, ([line[name] for name in columns] for line in lines))


async def _draw_lines(
    connection: AsyncConnection,
    found: Sequence[StoredIncident],
    notices: Sequence[StoredNotice],
    tasks: Sequence[TaskSpan],
    now: datetime,
) -> tuple[NoticeLine, ...]:
    by_id = {each.id: each for each in found}
    deadlines = await sendings.list_deadlines(connection, [notice.id for notice in notices])
    heard = await sendings.list_first_heard(connection, list(by_id))
    lines = []
    for notice in notices:
        incident = by_id[notice.incident_id]
        due_by, sent_at = deadlines.get(notice.id, (notice.due_by, notice.sent_at))
        facts = NoticeFacts(
            first_heard_at=heard.get(incident.id, incident.received_at),
            due_by=due_by,
            sent_at=sent_at,
            is_suppressed=notice.hold == Hold.SUPPRESSED.value or incident.suppressed_by is not None,
            is_taken_back=notice.state is NoticeState.WITHDRAWN,
            waited_until=tuple(_waits(notice, tasks)),
        )
        punctuality, delay = judge_punctuality(facts, now)
        lines.append(
            NoticeLine(
                incident_id=incident.id,
                incident=incident.message.incident_id,
                reported_at=incident.reported_at,
                urn=notice.urn,
                establishment=notice.telling.notice.establishment.name,
                children=len(notice.telling.child_ids),
                due_by=due_by,
                sent_at=sent_at,
                punctuality=punctuality,
                delay=delay,
                opened_at=notice.opened_at,
                acknowledged_at=notice.acknowledged_at,
                versions=notice.version if notice.sent_at is not None else 0,
            )
        )
    return tuple(lines)


def _waits(notice: StoredNotice, tasks: Sequence[TaskSpan]) -> list[tuple[Delay, datetime | None]]:
    """What this notice waited for, and until when. A look-up concerns it when one of its children was looked up."""
    found = []
    for span in tasks:
        task, delay = span.task, _DELAYS.get(span.task.kind)
        if delay is None or task.incident_id != notice.incident_id:
            continue
        if delay is Delay.NO_ROUTE and task.urn != notice.urn:
            continue
        if delay is Delay.SCHOOL_NOT_KNOWN and task.matter.child_id not in notice.telling.child_ids:
            continue
        if delay is Delay.RELEASE and task.state is ItemState.OPEN and notice.hold is None:
            continue  # another establishment's notice waits
        found.append((delay, span.decided_at))
    return found


def _count_children(found: Sequence[StoredIncident], notices: Sequence[StoredNotice], authority: str) -> int:
    said = [each for each in found if isinstance(each.message, PoliceIncident)]
    if not authority:
        return sum(len(each.message.children) for each in said if isinstance(each.message, PoliceIncident))
    standing = {each.id for each in said}
    return len(
        {
            (notice.incident_id, child_id)
            for notice in notices
            if notice.incident_id in standing
            for child_id in notice.telling.child_ids
        }
    )


def _count_asked(tasks: Sequence[TaskSpan], kind: TaskKind, *, only_open: bool, authority: str) -> int:
    return len(
        {
            (span.task.incident_id, span.task.matter.child_id)
            for span in tasks
            if span.task.kind is kind
            and (not only_open or span.task.state is ItemState.OPEN)
            and (not authority or span.task.owner == f"authority:{authority}")
        }
    )


def _count(kinds: type[Punctuality] | type[Delay], counted: Mapping[str, int]) -> dict[str, int]:
    return {kind.value: counted.get(kind, 0) for kind in kinds}
