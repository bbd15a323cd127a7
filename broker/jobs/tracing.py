"""Tracing: list entries are compared with the Personal Demographics Service, at its pace. Never in the heart.

A trace is claimed, asked outside any transaction, and settled; of an entry that changed meanwhile nothing is kept. When
the service says nothing useful, everything rests for a while and not only the one entry.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.decision import Candidate
from broker.domain.tracing import trace_next
from broker.keyring import Keyring
from broker.ports import Clock, Tracer
from broker.storage import aliases, audit, child_lists, jobs, traces
from broker.storage.audit import act_of_broker
from broker.storage.database import Database
from broker.storage.jobs import COVERAGE, LOOK_BACK, TRACE, ClaimedJob, derive_job_id
from broker.storage.traces import StoredTrace, retry_at
from broker.telemetry import LogEvent, log
from schemas.identifiers import NhsNumber, authority_owner
from schemas.trace import (
    Answer,
    ByDetails,
    ByNumber,
    Finding,
    Invalidated,
    Mismatch,
    Refused,
    Restricted,
    Superseded,
    Traceable,
    Unavailable,
    Verified,
)


class TracingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How often the service is asked."""

    traces_per_s: float = 5.0
    """Of one process; each trace asks up to seven questions."""
    verified_again: timedelta = timedelta(days=30)
    others_again: timedelta = timedelta(days=1)
    """What is not verified is looked at again, in case the national record was mended."""
    retry_max: timedelta = timedelta(hours=1)
    pause_max: timedelta = timedelta(minutes=5)
    """The longest rest of all after answers in vain, unless the service wishes a longer one."""
    lease: timedelta = timedelta(seconds=120)
    jobs_max: int = 10
    poll_s: float = 1.0
    count_after: timedelta = timedelta(seconds=10)
    """After findings the list's coverage is counted anew, once for all of so long a time."""


async def trace_person(tracer: Tracer, listed: Traceable) -> Finding:
    """Ask until it is known what is wrong with an entry's identity, or that nothing is. Opens no transaction."""
    answers: list[Answer] = []
    while True:
        step = trace_next(listed, answers)
        if not isinstance(step, ByNumber | ByDetails):
            return step
        answers.append(await tracer.ask(step))


class Tracing:
    """Traces entries until stopped."""

    def __init__(
        self, database: Database, keyring: Keyring, clock: Clock, tracer: Tracer, options: TracingOptions
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._clock = clock
        self._tracer = tracer
        self._options = options
        self._in_vain = 0
        self._rests_until: datetime | None = None

    async def run(self, stopping: asyncio.Event) -> None:
        """Work until ``stopping``; whatever fails is said and tried again."""
        while not stopping.is_set():
            try:
                found = await self.run_once()
            except Exception as error:
                found = 0
                log(LogEvent.JOB_FAILED, kind=TRACE, error=type(error).__name__)
            wait_s = 1 / self._options.traces_per_s if found else self._options.poll_s
            try:
                await asyncio.wait_for(stopping.wait(), wait_s)
            except TimeoutError:
                continue

    async def close(self) -> None:
        """Let go of connections."""
        await self._tracer.close()

    async def run_once(self) -> int:
        """One round at the pace of the options; returns how many entries were asked for."""
        now = self._clock.now()
        if self._rests_until is not None and now < self._rests_until:
            return 0
        async with self._database.reading() as connection:
            if not await jobs.find_due(connection, [TRACE], now):
                return 0
        async with self._database.writing() as connection:
            claimed = await jobs.claim_jobs(
                connection, jobs_max=self._options.jobs_max, lease=self._options.lease, now=now, kind=TRACE
            )
        for number, job in enumerate(claimed):
            if number:
                await asyncio.sleep(1 / self._options.traces_per_s)
            if not await self._take_up(job):
                await self._put_off(claimed[number + 1 :])
                return number + 1
        return len(claimed)

    async def _take_up(self, job: ClaimedJob) -> bool:
        """Trace one entry; False when the service said nothing useful, and all should rest."""
        async with self._database.reading() as connection:
            found = await child_lists.load_entries(connection, self._keyring, [job.subject])
            known = await traces.load_traces(connection, self._keyring, [job.subject])
        trace = known.get(job.subject)
        if not found or trace is None or found[0].entry.deleted_on is not None:
            async with self._database.writing() as connection:
                await jobs.finish_job(connection, job, self._clock.now())
            return True
        entry = found[0].entry
        listed = Traceable(
            nhs_number=entry.nhs_number, name=entry.name, birth_date=entry.birth_date, postcode=entry.postcode
        )
        finding = await trace_person(self._tracer, listed)
        await self._settle(job, found[0], trace, finding)
        return self._note_answer(finding)

    async def _settle(self, job: ClaimedJob, candidate: Candidate, trace: StoredTrace, finding: Finding) -> None:
        now = self._clock.now()
        next_at = self._next_at(finding, trace, now)
        owner = authority_owner(candidate.authority)
        async with self._database.writing() as connection:
            if not await jobs.put_off_job(connection, job, next_at):
                return  # the entry changed, or another process traces it
            await traces.settle_trace(connection, self._keyring, job.subject, finding, next_at=next_at, now=now)
            acts = [act_of_broker(owner, "entry.traced", job.subject, traces.state_of(finding))]
            if isinstance(finding, Unavailable | Refused):
                acts = [act_of_broker(owner, "entry.trace_failed", job.subject, finding.code)]
            replacement = _replacement(finding)
            if replacement is not None and await aliases.add_alias(
                connection, self._keyring, owner, old=candidate.entry.nhs_number, new=replacement, now=now
            ):
                acts.append(act_of_broker(owner, "alias.made", job.subject))
                await self._look_back(connection, owner, job.subject, now)
            elif _stands_alone(finding) and await aliases.part_revived(
                connection, self._keyring, owner, candidate.entry.nhs_number, now=now
            ):
                acts.append(act_of_broker(owner, "alias.undone", job.subject))
                await self._look_back_for_person(connection, candidate, now)
            elif candidate.is_dead and not isinstance(finding, Unavailable | Refused | Invalidated):
                await self._look_back(connection, owner, job.subject, now)
            counting = derive_job_id(self._keyring, COVERAGE, candidate.authority)
            await jobs.bring_forward(connection, counting, now + self._options.count_after)
            await audit.record_acts(connection, acts, now)

    async def _look_back(self, connection: AsyncConnection, owner: str, entry_id: str, now: datetime) -> None:
        job_id = derive_job_id(self._keyring, LOOK_BACK, entry_id)
        await jobs.add_jobs(connection, LOOK_BACK, [(job_id, owner, entry_id)], now)

    async def _look_back_for_person(self, connection: AsyncConnection, candidate: Candidate, now: datetime) -> None:
        """For every plan of the person: an alert may rest on any of them."""
        index = child_lists.index_nhs_number(self._keyring, candidate.entry.nhs_number)
        found = (await child_lists.find_by_nhs_number(connection, self._keyring, [index])).get(index, [])
        own = {each.entry_id for each in found if each.authority == candidate.authority}
        for entry_id in sorted({*own, candidate.entry_id}):
            await self._look_back(connection, authority_owner(candidate.authority), entry_id, now)

    async def _put_off(self, rest: list[ClaimedJob]) -> None:
        due_at = self._rests_until or self._clock.now()
        async with self._database.writing() as connection:
            for job in rest:
                await jobs.put_off_job(connection, job, due_at)

    def _next_at(self, finding: Finding, trace: StoredTrace, now: datetime) -> datetime:
        if isinstance(finding, Unavailable | Refused):
            asked_s = finding.retry_after_s if isinstance(finding, Unavailable) else None
            return retry_at(trace.attempts, asked_s, self._options.retry_max, now)
        is_verified = isinstance(finding, Verified)
        return now + (self._options.verified_again if is_verified else self._options.others_again)

    def _note_answer(self, finding: Finding) -> bool:
        if not isinstance(finding, Unavailable | Refused):
            self._in_vain, self._rests_until = 0, None
            return True
        now = self._clock.now()
        pause = min(timedelta(seconds=2 ** min(self._in_vain, 20)), self._options.pause_max)
        asked_s = finding.retry_after_s if isinstance(finding, Unavailable) else None
        self._rests_until = now + max(pause, timedelta(seconds=asked_s or 0))
        self._in_vain += 1
        seconds = round((self._rests_until - now).total_seconds())
        log(LogEvent.TRACING_RESTS, code=finding.code, seconds=seconds)
        return False


def _replacement(finding: Finding) -> NhsNumber | None:
    """The number to follow: PDS links it, and the details are those of the list. Anything else is for a person."""
    if isinstance(finding, Superseded | Restricted) and not finding.differs:
        return finding.replacement
    return None


def _stands_alone(finding: Finding) -> bool:
    """Whether PDS has answered with a record of this very number, superseded by nothing."""
    if isinstance(finding, Restricted):
        return finding.replacement is None
    return isinstance(finding, Verified | Mismatch)
