"""The second source of Operation Encompass: attendances that carry a safeguarding code of domestic abuse.

Read by a group of its own. Each makes an item that is held for a named person of the authority's hub, always: nothing
here, and no setting, lets one go by itself. What attendances without such a code say is not looked at and not kept, and
what becomes of a position is written by heart 1 alone.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Final

import msgspec
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from adapters.safeguarding import find_domestic_abuse
from broker.consumers.loop import Batch
from broker.consumers.reading import ReadMessage, leave_unread, read_record
from broker.domain.visits import age_on, london_day
from broker.keyring import Keyring
from broker.notices import NoticeRules, replan
from broker.ports import Clock
from broker.schooling import weigh_pupils
from broker.storage import audit, incidents, quarantine
from broker.storage.audit import Act
from broker.storage.child_lists import index_nhs_number
from broker.storage.database import Database
from broker.storage.directory import ensure_owners, find_authority, find_site
from broker.storage.incidents import StoredIncident
from broker.storage.quarantine import NewQuarantined
from broker.storage.visits import derive_visit_id
from broker.telemetry import LogEvent, log
from schemas.attendance import Attendance, PersonName
from schemas.encompass import IncidentChild, PoliceIncident, Referral
from schemas.identifiers import BROKER_OWNER, OwnerId, authority_of, authority_owner
from schemas.record import LogRecord

ADULT_YEARS: Final = 18
_CHILD: Final = "1"
_NAME_LETTERS_MAX: Final = 100


class _Found(msgspec.Struct, frozen=True, kw_only=True):
    """A child's attendance that carries a code."""

    message: ReadMessage
    said: Attendance
    codes: tuple[str, ...]
    attended_at: datetime


class _Problem(Exception):
    """Why a referral cannot be held; a closed word."""


class ReferralConsumer:
    """Handles batches of attendances for Operation Encompass."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        clock: Clock,
        rules: NoticeRules,
        *,
        quarantined: timedelta,
        age_max: timedelta,
    ) -> None:
        """``quarantined``: how long a message that was set aside may wait for the operators.

        ``age_max``: what reached the log longer ago is not held. A group that begins to read a log that was there
        before it would else put weeks of attendances before the hub, for which any school's day has passed.
        """
        self._database = database
        self._keyring = keyring
        self._clock = clock
        self._rules = rules
        self._quarantined = quarantined
        self._age_max = age_max

    async def handle(self, batch: Batch) -> int:
        """Handle the batch in one transaction, return how many; raises Fenced when the partition is another's."""
        now = self._clock.now()
        records = [record for record in batch.records if record.appended_at >= now - self._age_max]
        found = [each for record in records if (each := _find(self._keyring, record)) is not None]
        acts: list[Act] = []
        aside: list[NewQuarantined] = []
        async with self._database.writing() as connection:
            for each in found:
                try:
                    async with connection.begin_nested():
                        acts += await self._hold(connection, each, now)
                except DBAPIError:
                    raise  # the loop knows an outage from data that the database refuses
                except Exception as error:
                    reason = str(error) if isinstance(error, _Problem) else "could_not_be_decided"
                    aside.append(self._keep(batch, each.message, reason, type(error).__name__, now=now))
            await self._settle(connection, batch, acts, aside, now=now)
        for owner, count in Counter(act.owner for act in acts if act.action == "referral.held").items():
            log(LogEvent.REFERRAL_HELD, owner=owner, count=count)
        if count := len(batch.records) - len(records):
            log(LogEvent.REFERRALS_TOO_OLD, count=count)
        return len(batch.records)

    async def quarantine(self, batch: Batch, reason: str) -> int:
        """Keep the one record of the batch for a person, unread, and move the offset past it."""
        now = self._clock.now()
        message = leave_unread(self._keyring, batch.records[0], reason)
        async with self._database.writing() as connection:
            await self._settle(connection, batch, [], [self._keep(batch, message, reason, "", now=now)], now=now)
        return 1

    async def _hold(self, connection: AsyncConnection, found: _Found, now: datetime) -> list[Act]:
        """Hold one attendance for the hub. The same child of the same visit is held once, whatever is said again."""
        site = await find_site(connection, found.message.sender)
        owner = await self._find_hub(connection, found.said, site.authorities if site is not None else ())
        child = _child(found.said, owner)
        incident_id = self._derive_id(found, child)
        incident = StoredIncident(
            id=incident_id,
            owner=owner,
            # No force has such a code: a coordinator's pages never list it.
            force=owner,
            message=PoliceIncident(
                incident_id=f"hub-{incident_id[:12]}", force=owner, occurred_at=now, reported_at=now, children=(child,)
            ),
            received_at=now,
            reported_at=now,
        )
        referral = Referral(
            sender=found.message.sender,
            sender_name=site.name if site is not None else found.message.sender,
            attended_at=found.attended_at,
            codes=found.codes,
            visit=derive_visit_id(self._keyring, found.said, found.message.marker),
            record=index_nhs_number(self._keyring, found.said.nhs_number).hex() if found.said.nhs_number else "",
        )
        if not await incidents.add_referral(connection, self._keyring, incident, referral):
            return []
        stored = await incidents.lock_incident(connection, self._keyring, incident_id)
        assert stored is not None
        planned = await replan(connection, self._keyring, stored, self._rules, now)
        return [Act(owner=owner, actor="broker", action="referral.held", subject=incident_id), *planned.acts]

    async def _find_hub(self, connection: AsyncConnection, said: Attendance, nearby: tuple[str, ...]) -> OwnerId:
        """The authority on whose list of pupils exactly one such child is, else the one where the department stands."""
        findings = await weigh_pupils(
            connection,
            self._keyring,
            [_child(said, None)],
            bits_min=self._rules.pupil_bits_min,
            pupils_max=self._rules.pupils_max,
        )
        finding = findings.get(_CHILD)
        listed = (finding.sure.authority,) if finding is not None and finding.sure is not None else ()
        for code in (*listed, *nearby):
            if await find_authority(connection, code) is not None:
                return authority_owner(code)
        raise _Problem("no_authority_known")

    def _derive_id(self, found: _Found, child: IncidentChild) -> str:
        """Of the visit and the child: a corrected identity is another child, and held anew.

        So is who comes again under a visit number that is used again: known by the day of an arrival.
        """
        said = found.said
        came_on = said.arrived_at if said.visit_number else found.attended_at
        visit = f"{said.visit_number or said.local_patient_id or ''}/{london_day(came_on) if came_on else ''}"
        born = child.birth_date.isoformat() if child.birth_date is not None else ""
        who = (child.family_name, child.given_name, born)
        return self._keyring.derive_id("referral", found.message.sender, visit, *who)

    def _keep(self, batch: Batch, message: ReadMessage, reason: str, detail: str, *, now: datetime) -> NewQuarantined:
        return NewQuarantined(
            partition=batch.partition,
            log_id=batch.log_id,
            offset=message.record.offset,
            reason=reason,
            detail=detail,
            body=message.body,
            kept_at=now,
            due_by=now + self._quarantined,
            sender=message.sender,
        )

    async def _settle(
        self,
        connection: AsyncConnection,
        batch: Batch,
        acts: list[Act],
        aside: list[NewQuarantined],
        *,
        now: datetime,
    ) -> None:
        """Move the offset or be fenced, keep what could not be handled; audit last."""
        await batch.move_offset(connection, now)
        if aside:
            await ensure_owners(connection, [(BROKER_OWNER, "Operators of the broker")])
            await quarantine.save_quarantined(connection, self._keyring, aside)
        kept = [
            Act(owner=BROKER_OWNER, actor="broker", action="message.quarantined", subject=f"{batch.partition.topic}")
            for _ in aside
        ]
        await audit.record_acts(connection, [*acts, *kept], now)
        for each in aside:
            log(
                LogEvent.QUARANTINED,
                topic=each.partition.topic,
                partition=each.partition.number,
                offset=each.offset,
                reason=each.reason,
            )


def _find(keyring: Keyring, record: LogRecord) -> _Found | None:
    """The attendance of a child that carries a code; None for everything else, of which nothing is kept."""
    codes = find_domestic_abuse(leave_unread(keyring, record, "not_read").body)
    if not codes:
        return None
    message = read_record(keyring, record)
    said = message.said
    if said is None:
        return None  # heart 1 sets it aside, or takes it apart: then its parts come by themselves
    attended_at = said.arrived_at or said.event_at or said.message_at or record.appended_at
    if said.birth_date is not None and age_on(said.birth_date, london_day(attended_at)) >= ADULT_YEARS:
        return None
    return _Found(message=message, said=said, codes=codes, attended_at=attended_at)


def _child(said: Attendance, hub: OwnerId | None) -> IncidentChild:
    """Who it is, as far as a school must know; a child without a name is still held."""
    name = said.names[0] if said.names else PersonName(family="Not known")
    return IncidentChild(
        child_id=_CHILD,
        family_name=name.family[:_NAME_LETTERS_MAX] or "Not known",
        given_name=name.given[:_NAME_LETTERS_MAX],
        birth_date=said.birth_date,
        postcode=said.postcode,
        authority=authority_of(hub) if hub is not None else None,
    )
