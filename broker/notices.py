"""From an incident to what establishments are told and people have to do.

Planned anew after everything that may change it: a message, a person's decision, the instant at which something is
due. So who is told is judged by the directory of the moment of sending, never by that of the moment of writing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.encompass import (
    EncompassDirectory,
    EstablishmentPlan,
    Fate,
    Hold,
    IncidentPlan,
    LookUpReason,
    plan_incident,
)
from broker.domain.pupils import PupilFinding
from broker.domain.safeguarding import SkipReason, choose_recipients, find_disclosed
from broker.domain.school_calendar import NoticeTiming
from broker.domain.school_notices import (
    Composed,
    SentNotice,
    Slip,
    Step,
    compose_notice,
    compose_referral,
    plan_amendments,
)
from broker.domain.visits import london_day
from broker.keyring import Keyring
from broker.nudges import NudgeRules, forget_nudges, nudge_school
from broker.schooling import describe_candidate, place_children, weigh_pupils
from broker.storage import establishments, incidents, sendings
from broker.storage.audit import Act
from broker.storage.directory import ensure_owners, find_authority
from broker.storage.incidents import (
    AUTHORITY_OFFICER,
    COORDINATOR,
    HUB,
    Matter,
    StoredIncident,
    StoredNotice,
    StoredTask,
    Telling,
)
from broker.storage.tables import ItemState
from schemas.directory import Authority
from schemas.encompass import (
    Change,
    EncompassPolicy,
    Establishment,
    Force,
    IncidentChild,
    MinimalChild,
    NoticeState,
    PoliceIncident,
    Release,
    SuppressedScope,
    Suppression,
    TaskKind,
    UnderSchoolAge,
)
from schemas.identifiers import SchoolUrn, authority_of, authority_owner, establishment_owner

BROKER: Final = "broker"
REFERRAL_STATEMENT: Final = (
    "The child may be living with domestic abuse. Look after the child as usual, do not speak to the family about this "
    "notice, and ring the number below to talk it over."
)
_REFERRAL_WITHDRAWN: Final = "An earlier notice does not stand any more. Take no account of it."
_RUNG: Final = TaskKind.RING_SCHOOL


class NoticeRules(msgspec.Struct, frozen=True, kw_only=True):
    """How establishments are told."""

    nudges: NudgeRules
    try_again: timedelta = timedelta(minutes=15)
    """How often the directory is asked again for a way to an establishment that has none."""
    pupil_bits_min: float = 20.0
    """A pupil who weighs so much may be the child: a person decides (``review_weight_bits_min``)."""
    pupils_max: int = 2_000
    """Pupils compared with the children of one incident."""
    referral_statement: str = REFERRAL_STATEMENT
    """What a school is told beside the name of a child, when an authority's hub released an attendance."""


class Replanned(msgspec.Struct, frozen=True, kw_only=True):
    """What came of planning: the notices as they stand, what is to be audited, and whether anybody is told at all."""

    notices: Mapping[SchoolUrn, StoredNotice]
    acts: tuple[Act, ...]
    is_told: bool
    is_waiting_for_a_person: bool


class UnknownForce(Exception):
    """Nobody knows the force: nothing of the incident can be planned."""


class _Planner:
    """One planning of one incident, inside one transaction."""

    def __init__(
        self,
        connection: AsyncConnection,
        keyring: Keyring,
        incident: StoredIncident,
        now: datetime,
        authority: Authority | None,
    ) -> None:
        self.connection = connection
        self.keyring = keyring
        self.incident = incident
        self.now = now
        self.authority = authority
        """Whose hub tells it; None: a force does."""
        self.acts: list[Act] = []
        self.tasks: dict[str, StoredTask] = {}

    def act(self, action: str, subject: str, reason: str = "", *, owner: str = "") -> None:
        """Note what is to be audited, for the force unless it is another's."""
        self.acts.append(
            Act(owner=owner or self.incident.owner, actor=BROKER, action=action, subject=subject, reason=reason)
        )

    def ask(
        self, kind: TaskKind, matter: Matter, *of: str, due_by: datetime, authority: str = "", urn: str = ""
    ) -> None:
        """Want something of a person: of the force's coordinator, or of an authority's officer."""
        task_id = incidents.derive_task_id(self.keyring, kind, self.incident.id, *of)
        self.tasks[task_id] = StoredTask(
            id=task_id,
            owner=authority_owner(authority) if authority else self.incident.owner,
            incident_id=self.incident.id,
            kind=kind,
            urn=SchoolUrn(urn) if urn else None,
            matter=matter,
            held_by=AUTHORITY_OFFICER if authority else COORDINATOR if self.authority is None else HUB,
            opened_at=self.now,
            due_by=due_by,
        )


async def replan(
    connection: AsyncConnection, keyring: Keyring, incident: StoredIncident, rules: NoticeRules, now: datetime
) -> Replanned:
    """Bring notices and tasks to what the incident says now. Lock the incident first. Raises UnknownForce."""
    authority = None
    if incident.referral is not None:
        authority = await find_authority(connection, authority_of(incident.owner))
        if authority is None:
            raise UnknownForce
        force: Force | None = _speak_for(authority, incident, rules)
    else:
        force = await establishments.find_force(connection, incident.force)
    if force is None:
        raise UnknownForce
    planner = _Planner(connection, keyring, incident, now, authority)
    known = {notice.urn: notice for notice in await incidents.load_notices(connection, keyring, incident.id)}
    notices: dict[SchoolUrn, StoredNotice] = {}
    plan: IncidentPlan | None = None
    excluded: Mapping[SchoolUrn, Sequence[str]] = {}
    if isinstance(incident.message, PoliceIncident):
        findings = await weigh_pupils(
            connection,
            keyring,
            incident.message.children,
            bits_min=rules.pupil_bits_min,
            pupils_max=rules.pupils_max,
        )
        children = await place_children(connection, incident.message.children, findings, incident.found)
        said = _complete(incident, incident.message, children)
        urns = {each.urn for child in said.children for each in child.establishments if each.urn is not None}
        directory = await establishments.load_encompass_directory(connection, keyring, urns | known.keys())
        excluded = {urn: _find_excluded(directory, urn, said, force, now) for urn in known}
        is_released = incident.released_version == incident.message.version
        plan = plan_incident(said, directory, force.policy, at=now, is_released=is_released)
        late = msgspec.structs.replace(said, reported_at=now)
        later = plan_incident(late, directory, force.policy, at=now, is_released=is_released)
        timings = {each.urn: each.timing for each in later.establishments}
        for each in plan.establishments:
            if each.hold is Hold.SUPPRESSED and each.urn in known and known[each.urn].sent_at is not None:
                continue  # what was sent is taken back
            notices[each.urn] = _plan_notice(
                planner, force, said, each, directory=directory, before=known.get(each.urn), timings=timings
            )
        _ask_for_children(planner, said, plan, findings)
    for urn, notice in known.items():
        if urn not in notices:
            notices[urn] = _take_back(planner, _keep_from(notice, excluded.get(urn, ())), force, now)
    for urn, notice in sorted(notices.items()):
        if notice != known.get(urn):
            await incidents.save_notice(connection, keyring, notice)
            await forget_nudges(connection, keyring, known.get(urn), notice, now=now)
            if notice.state is NoticeState.WITHDRAWN and notice.sent_at is not None:
                await sendings.save_sending(connection, keyring, notice, now)
                await nudge_school(connection, keyring, notice, rules.nudges, occasion="withdrawn", now=now)
    await _settle_tasks(planner, notices)
    fates = {each.fate for each in plan.destinations} if plan is not None else set()
    return Replanned(
        notices=notices,
        acts=tuple(planner.acts),
        is_told=bool(fates & {Fate.NOTICE, Fate.AUTHORITY_OFFICER}),
        is_waiting_for_a_person=Fate.LOOK_UP in fates or any(n.state is NoticeState.HELD for n in notices.values()),
    )


def _speak_for(authority: Authority, incident: StoredIncident, rules: NoticeRules) -> Force:
    """An authority's hub in the place of a force: nothing leaves without its release, whatever anybody sets."""
    policy = EncompassPolicy(
        force=incident.force,
        statement=rules.referral_statement,
        withdrawn_statement=_REFERRAL_WITHDRAWN,
        release=Release.COORDINATOR,
        under_school_age=UnderSchoolAge.AUTHORITY_OFFICER,
    )
    return Force(code=incident.force, name=authority.name, policy=policy)


def _complete(incident: StoredIncident, said: PoliceIncident, children: tuple[IncidentChild, ...]) -> PoliceIncident:
    """What the police say with what people have decided of it."""
    if incident.released_at is not None:
        # The school's clock starts with the decision: when the child attended is nobody's business there.
        said = msgspec.structs.replace(said, occurred_at=incident.released_at, reported_at=incident.released_at)
    suppress = said.suppress
    if incident.suppressed_by is not None and incident.suppressed_reason is not None:
        suppress = Suppression(
            scope=SuppressedScope.NOTICE, reason=incident.suppressed_reason, authoriser=incident.suppressed_by
        )
    return msgspec.structs.replace(said, children=children, suppress=suppress)


# Notices


def _plan_notice(
    planner: _Planner,
    force: Force,
    said: PoliceIncident,
    plan: EstablishmentPlan,
    *,
    directory: EncompassDirectory,
    before: StoredNotice | None,
    timings: Mapping[SchoolUrn, NoticeTiming],
) -> StoredNotice:
    now, keyring, incident = planner.now, planner.keyring, planner.incident
    school = directory.establishments[plan.urn]
    notice_id = incidents.derive_notice_id(keyring, incident.id, plan.urn)
    slip = Slip(notice_id=notice_id, issued_at=now)
    composed = _compose(planner, force, said, plan, school=school, slip=slip)
    telling = Telling(
        notice=composed.notice,
        child_ids=plan.child_ids,
        told=plan.recipients.told,
        skipped=plan.recipients.skipped,
        withheld=composed.withheld,
    )
    _ask_for_establishment(planner, said, school, plan, before=before)
    _audit_skipped(planner, notice_id, telling, before)
    if before is not None and before.sent_at is not None:
        return _amend(planner, force, said, plan, before=before, telling=telling, timings=timings)
    timing = plan.timing
    state = NoticeState.HELD if plan.hold is not None else NoticeState.WAITING
    next_at = None if plan.hold is not None else timing.send_at
    if plan.hold is None and not plan.has_route and timing.send_at <= now:
        next_at = now + timedelta(minutes=15)
    if before is None:
        planner.act("notice.planned", notice_id, state.value)
    elif state is not before.state:
        planner.act("notice.replanned", notice_id, state.value)
    return StoredNotice(
        id=notice_id,
        owner=establishment_owner(plan.urn),
        incident_id=incident.id,
        force=incident.force,
        urn=plan.urn,
        authority=school.authority,
        version=1,
        state=state,
        hold=plan.hold.value if plan.hold is not None else None,
        flag=timing.flag.value if timing.flag is not None else None,
        calendar_is_assumed=timing.calendar_is_assumed,
        telling=telling,
        planned_at=before.planned_at if before is not None else now,
        send_at=timing.send_at,
        remind_at=timing.remind_at,
        due_by=timing.due_by,
        next_at=next_at,
        rung_at=before.rung_at if before is not None else None,
    )


def _compose(
    planner: _Planner, force: Force, said: PoliceIncident, plan: EstablishmentPlan, *, school: Establishment, slip: Slip
) -> Composed:
    authority = planner.authority
    if authority is None:
        return compose_notice(said, school, plan.child_ids, force.policy, slip)
    notice = compose_referral(
        said,
        school,
        plan.child_ids,
        slip,
        authority=authority.name,
        telephone=authority.office_telephone,
        statement=force.policy.statement,
    )
    return Composed(notice=notice, withheld=())


def _amend(
    planner: _Planner,
    force: Force,
    said: PoliceIncident,
    plan: EstablishmentPlan,
    *,
    before: StoredNotice,
    telling: Telling,
    timings: Mapping[SchoolUrn, NoticeTiming],
) -> StoredNotice:
    """What was sent stays one notice: it is amended only where this establishment's own text changes."""
    now = planner.now
    is_withdrawn = before.telling.withdrawn is not None
    told = telling.told
    if plan.hold is not None:
        # Until a person lets the change go, what was sent stands, for those who may still read it.
        still = tuple(contact for contact in before.telling.told if contact in told)
        kept = msgspec.structs.replace(before.telling, told=still, skipped=telling.skipped)
        return msgspec.structs.replace(before, telling=kept, hold=plan.hold.value)
    sent = SentNotice(notice=before.telling.notice, is_withdrawn=is_withdrawn, version=before.version)
    steps = plan_amendments(
        {plan.urn: sent},
        {plan.urn: telling.notice},
        change=said.change or Change.UPDATE,
        at=now,
        withdrawn_statement=force.policy.withdrawn_statement,
    )
    if not steps:
        same = msgspec.structs.replace(telling, notice=before.telling.notice)
        return msgspec.structs.replace(before, telling=same, hold=None)
    [step] = steps
    assert step.step is Step.AMEND and not hasattr(step.notice, "withdrawn_at")
    amended = msgspec.structs.replace(telling, notice=step.notice)
    timing = plan.timing if plan.timing.due_by > now else timings[plan.urn]
    planner.act("notice.amended", before.id, f"version {step.notice.version}")
    return msgspec.structs.replace(
        before,
        version=step.notice.version,
        state=NoticeState.WAITING,
        hold=None,
        telling=amended,
        send_at=now,
        remind_at=timing.remind_at,
        due_by=timing.due_by,
        next_at=now,
        reminded_at=None,
        rung_at=None,
        opened_at=None,
        acknowledged_at=None,
        acknowledged_by=None,
    )


def _find_excluded(
    directory: EncompassDirectory, urn: SchoolUrn, said: PoliceIncident, force: Force, now: datetime
) -> tuple[str, ...]:
    """Who of an establishment must not learn anything any more, though it is not concerned now."""
    contacts = directory.contacts.get(urn, ())
    recipients = choose_recipients(contacts, said.excluded_recipients, london_day(now), force.policy)
    is_excluded = (SkipReason.EXCLUDED, SkipReason.SHARES_MAILBOX)
    return tuple(each.contact_id for each in recipients.skipped if each.reason in is_excluded)


def _keep_from(notice: StoredNotice, excluded: Sequence[str]) -> StoredNotice:
    told = tuple(contact for contact in notice.telling.told if contact not in excluded)
    return msgspec.structs.replace(notice, telling=msgspec.structs.replace(notice.telling, told=told))


def _take_back(planner: _Planner, notice: StoredNotice, force: Force, now: datetime) -> StoredNotice:
    """The establishment is no longer concerned, or the force takes the incident back."""
    if notice.state is NoticeState.WITHDRAWN:
        return notice
    planner.act("notice.withdrawn", notice.id)
    telling, version = notice.telling, notice.version
    if notice.sent_at is not None:
        sent = SentNotice(notice=telling.notice, version=notice.version)
        statement = force.policy.withdrawn_statement
        [step] = plan_amendments(
            {notice.urn: sent}, {}, change=Change.CORRECTION, at=now, withdrawn_statement=statement
        )
        version = step.notice.version
        telling = msgspec.structs.replace(telling, withdrawn=step.notice)
    return msgspec.structs.replace(
        notice, state=NoticeState.WITHDRAWN, version=version, telling=telling, hold=None, next_at=None
    )


def _audit_skipped(planner: _Planner, notice_id: str, telling: Telling, before: StoredNotice | None) -> None:
    """Who is skipped and why is on the force's record, never on the school's."""
    known = set(before.telling.skipped) if before is not None else set()
    for skipped in telling.skipped:
        if skipped not in known:
            planner.act("recipient.skipped", notice_id, f"{skipped.reason.value} {skipped.contact_id}")


# What people have to do


def _tell(children: Iterable[IncidentChild]) -> tuple[MinimalChild, ...]:
    return tuple(
        MinimalChild(
            family_name=child.family_name,
            given_name=child.given_name,
            birth_date=child.birth_date,
            present=child.present,
            welfare_check=child.welfare_check,
        )
        for child in children
    )


def _ask_for_children(
    planner: _Planner, said: PoliceIncident, plan: IncidentPlan, findings: Mapping[str, PupilFinding]
) -> None:
    children = {child.child_id: child for child in said.children}
    is_kept_back = planner.authority is not None and plan.hold is Hold.SUPPRESSED
    for each in () if is_kept_back else plan.destinations:
        likely = findings[each.child_id].likely if each.child_id in findings else ()
        is_probable = bool(likely) and each.reason is LookUpReason.NOT_GIVEN
        matter = Matter(
            incident=said.incident_id,
            child_id=each.child_id,
            children=_tell([children[each.child_id]]),
            occurred_at=said.occurred_at,
            reason=LookUpReason.PROBABLE if is_probable else each.reason,
            suggested=each.suggested,
            candidates=tuple(map(describe_candidate, likely)) if each.fate is Fate.LOOK_UP else (),
        )
        due_by = plan.clock.due_by
        if each.fate is Fate.LOOK_UP:
            planner.ask(TaskKind.LOOK_UP, matter, each.child_id, each.urn or "", due_by=due_by, urn=each.urn or "")
        elif each.fate is Fate.AUTHORITY_OFFICER and plan.hold is None and each.authority is not None:
            planner.ask(TaskKind.TELL_OFFICER, matter, each.child_id, due_by=due_by, authority=each.authority)
    held = [each for each in plan.establishments if each.hold not in (None, Hold.SUPPRESSED)]
    if held or plan.hold is Hold.AWAITS_COORDINATOR:
        due_by = min([plan.clock.due_by, *(each.timing.due_by for each in held)])
        planner.ask(TaskKind.RELEASE, Matter(incident=said.incident_id), str(said.version), due_by=due_by)
    for conflict in plan.conflicts:
        matter = Matter(incident=said.incident_id, contact=conflict.contact_id)
        of = (conflict.urn, conflict.contact_id)
        planner.ask(TaskKind.CONFLICT, matter, *of, due_by=plan.clock.due_by, urn=conflict.urn)


def _ask_for_establishment(
    planner: _Planner,
    said: PoliceIncident,
    school: Establishment,
    plan: EstablishmentPlan,
    *,
    before: StoredNotice | None,
) -> None:
    matter = Matter(
        incident=said.incident_id,
        establishment=school.name,
        telephone=school.office_telephone,
        children=_tell(child for child in said.children if child.child_id in plan.child_ids),
        occurred_at=said.occurred_at,
    )
    if plan.hold is None and not plan.has_route:
        due_by = plan.timing.due_by
        planner.ask(TaskKind.NO_ROUTE, matter, plan.urn, due_by=due_by, authority=school.authority, urn=plan.urn)
    told_before = before.telling.told if before is not None and before.sent_at is not None else ()
    for contact_id in find_disclosed(told_before, plan.recipients):
        told = Matter(incident=said.incident_id, establishment=school.name, contact=contact_id)
        planner.ask(TaskKind.DISCLOSED, told, plan.urn, contact_id, due_by=planner.now, urn=plan.urn)


async def _settle_tasks(planner: _Planner, notices: Mapping[SchoolUrn, StoredNotice]) -> None:
    """Ask for what is wanted and was not done yet; what is not wanted any more is closed by that rule."""
    connection, keyring, incident, now = planner.connection, planner.keyring, planner.incident, planner.now
    owners = {task.owner for task in planner.tasks.values()} - {incident.owner}
    # An authority elsewhere, which nobody has imported; one that exists keeps its name.
    await ensure_owners(connection, [(owner, f"Authority {authority_of(owner)}") for owner in owners])
    known = await incidents.load_tasks(connection, keyring, incident.id)
    for task in planner.tasks.values():
        before = known.get(task.id)
        is_done = before is not None and before.state is ItemState.DONE and before.decided_by != BROKER
        if before is not None and before.matter == task.matter and (is_done or before.state is ItemState.OPEN):
            continue
        if before is None or before.state is ItemState.DONE:
            planner.act(f"{task.kind.value}.asked", task.id, owner=task.owner)
        await incidents.open_task(connection, keyring, task)
    unwanted = []
    for task in known.values():
        if task.state is not ItemState.OPEN or task.id in planner.tasks:
            continue
        if task.kind is TaskKind.CONTRADICTION or task.kind is TaskKind.DISCLOSED:
            continue  # only a person can see to these
        if task.kind is TaskKind.TAKEN_BACK and incident.suppressed_by is None:
            continue  # nor is this answered by anything but a withdrawal
        if task.kind is _RUNG and task.urn is not None:
            notice = notices.get(task.urn)
            if notice is not None and notice.state is NoticeState.SENT:
                continue
        unwanted.append(task)
    closed = await incidents.close_tasks(
        connection, [task.id for task in unwanted], decision="not_needed", by=BROKER, now=now
    )
    for task in unwanted:
        if task.id in closed:
            planner.act(f"{task.kind.value}.not_needed", task.id, owner=task.owner)
