"""The jobs part: looks for what is due, every second, and does it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import date, datetime, timedelta

import msgspec

from broker.announcement import Rules
from broker.domain.visits import LONDON, london_day
from broker.jobs.coverage import count_coverage
from broker.jobs.look_back import look_back
from broker.jobs.missed import find_missed
from broker.jobs.notices import tell_schools
from broker.jobs.nudges import nudge_people
from broker.jobs.referrals import ask_about_taken_back
from broker.jobs.retention import RetentionRules, drop_incidents, drop_replies, reduce_visits, trim_log
from broker.jobs.tracing import Tracing
from broker.keyring import Keyring
from broker.list_comparison import UploadOptions
from broker.list_upload import resume_landings
from broker.notices import NoticeRules
from broker.ports import Clock, TrimmedLog
from broker.storage import audit, child_lists, deadlines, directory, jobs, persons, test_feeds, visits
from broker.storage.audit import Act
from broker.storage.database import Database
from broker.storage.jobs import COVERAGE, ClaimedJob
from broker.storage.tables import CoverageItem, HeldUpload, ListDifference
from broker.telemetry import LogEvent, log
from schemas.identifiers import BROKER_OWNER


class JobOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the jobs part."""

    poll_s: float = 1.0
    lease: timedelta = timedelta(seconds=120)
    jobs_max: int = 20
    overdue_max: int = 200
    blocked_max: int = 500
    night_begins: timedelta = timedelta(hours=2)
    """After midnight in London: then the visits of the day are matched again."""
    night_lease: timedelta = timedelta(hours=1)
    counts_max: int = 4
    """Lists counted in one round."""
    hold_limit: timedelta = timedelta(hours=4)
    """How long a held child list waits before it is handed over again."""
    difference_limit: timedelta = timedelta(days=5)
    """... and an entry that a full list left out."""
    forgotten_max: int = 2000
    forget_every: timedelta = timedelta(minutes=10)
    closed_max: int = 2000
    close_every: timedelta = timedelta(minutes=10)
    released_max: int = 200
    released_watched: timedelta = timedelta(days=7)
    """How long after its release an attendance is looked at again."""
    ask_every: timedelta = timedelta(seconds=60)
    taken_back_limit: timedelta = timedelta(hours=1)
    """How long the hub has to say whether a notice stands."""
    nudges_max: int = 500
    nudge_every: timedelta = timedelta(seconds=5)
    incidents_max: int = 50
    """Police incidents seen to in one round."""


class JobRunner:
    """Runs look-backs, counts coverage and hands over what is overdue, until stopped."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        clock: Clock,
        rules: Rules,
        options: JobOptions,
        *,
        retention: RetentionRules | None = None,
        log: TrimmedLog | None = None,
        tracing: Tracing | None = None,
        notices: NoticeRules | None = None,
        uploads: UploadOptions | None = None,
    ) -> None:
        """``log`` is the embedded one, which drops nothing by itself.

        ``tracing`` runs beside all else: however slowly PDS answers, nothing waits for it.
        """
        self._database = database
        self._keyring = keyring
        self._clock = clock
        self._rules = rules
        self._options = options
        self._tracing = tracing
        self._notices = notices
        self._uploads = uploads or UploadOptions()
        self._stopping = asyncio.Event()
        self._retention = retention or RetentionRules()
        self._log = log
        self._is_blocked = False
        self._sweep: tuple[ClaimedJob, str] | None = None
        """The night's job, and the last visit that was matched again."""
        self._swept: date | None = None
        self._dropped_at: datetime | None = None
        self._has_seeded = False
        self._forgot_at: datetime | None = None
        self._closed_at: datetime | None = None
        self._nudged_at: datetime | None = None
        self._asked_at: datetime | None = None
        self.alive_at = self.worked_at = time.monotonic()
        """When the part last looked for work, and when it last could (monotonic seconds)."""

    def stop(self) -> None:
        """End ``run`` after what is in hand."""
        self._stopping.set()

    async def run(self) -> None:
        """Work until stopped; whatever fails is said and tried again."""
        async with asyncio.TaskGroup() as beside:
            if self._tracing is not None:
                beside.create_task(self._tracing.run(self._stopping))
            landing = beside.create_task(self._resume_landings())
            while not self._stopping.is_set():
                found = await self.run_once()
                if not found:
                    await self._pause()
            landing.cancel()  # what has not landed is resumed after the next start

    async def run_once(self) -> int:
        """One round; returns how much was done."""
        done, failed = 0, False
        # One kind of work that fails must not keep the other from being done: what is overdue first.
        works = (
            ("overdue", self._hand_over_overdue),
            ("encompass_due", self._tell_schools),
            ("taken_back", self._ask_about_taken_back),
            ("nudges", self._nudge_people),
            ("look_backs", self._run_look_backs),
            ("blocks", self._block_anew),
            ("missed", self._find_missed),
            ("retention", self._drop_old),
            ("coverage", self._count_coverage),
            ("persons", self._forget_news),
            ("visits", self._close_quiet),
        )
        for kind, work in works:
            try:
                done += await work()
            except Exception as error:
                failed = True
                log(LogEvent.JOB_FAILED, kind=kind, error=type(error).__name__)
            self.alive_at = time.monotonic()
        if not failed:
            self.worked_at = time.monotonic()
        return done

    async def _resume_landings(self) -> None:
        """Long lists whose loading was broken off. Beside all else: alerts and look-backs do not wait for it."""
        while not self._stopping.is_set():
            try:
                await resume_landings(self._database, self._keyring, self._clock, self._uploads)
            except Exception as error:
                log(LogEvent.JOB_FAILED, kind="landings", error=type(error).__name__)
            await self._pause()

    async def _run_look_backs(self) -> int:
        async with self._database.reading() as connection:
            if not await jobs.find_due(connection, [jobs.LOOK_BACK], self._clock.now()):
                return 0
        async with self._database.writing() as connection:
            await jobs.set_barriers(connection, self._clock.now())
        async with self._database.writing() as connection:
            claimed = await jobs.claim_jobs(
                connection, jobs_max=self._options.jobs_max, lease=self._options.lease, now=self._clock.now()
            )
            if not claimed:
                return 0
            known = await directory.load_directory(connection)
        for job in claimed:
            try:
                await look_back(self._database, self._keyring, self._rules, job, self._clock.now(), known=known)
            except Exception as error:
                # The lease runs out and the job is claimed again.
                log(LogEvent.JOB_FAILED, kind=job.kind, error=type(error).__name__)
            self.alive_at = time.monotonic()
        return len(claimed)

    async def _tell_schools(self) -> int:
        """Notices of police incidents whose instant has come."""
        if self._notices is None:
            return 0
        return await tell_schools(
            self._database, self._keyring, self._notices, self._clock.now(), incidents_max=self._options.incidents_max
        )

    async def _ask_about_taken_back(self) -> int:
        """What a hub released and the department has taken back. Looked for once in a while."""
        now = self._clock.now()
        if self._asked_at is not None and now - self._asked_at < self._options.ask_every:
            return 0
        self._asked_at = now
        return await ask_about_taken_back(
            self._database,
            self._keyring,
            now,
            released_since=now - self._options.released_watched,
            limit=self._options.taken_back_limit,
            rows_max=self._options.released_max,
        )

    async def _nudge_people(self) -> int:
        """Whoever holds something that is open, and was not told. Looked for once in a while."""
        now = self._clock.now()
        if self._notices is None or not self._notices.nudges.reach_people:
            return 0
        if self._nudged_at is not None and now - self._nudged_at < self._options.nudge_every:
            return 0
        found = await nudge_people(
            self._database,
            self._keyring,
            self._notices.nudges,
            now,
            proclaimed=self._rules.proclaimed_days,
            rows_max=self._options.nudges_max,
        )
        self._nudged_at = now
        return found

    async def _count_coverage(self) -> int:
        now = self._clock.now()
        async with self._database.reading() as connection:
            if self._has_seeded and not await jobs.find_due(connection, [COVERAGE], now):
                return 0
        async with self._database.writing() as connection:
            if not self._has_seeded:
                # Lists that were loaded before anybody counted them.
                await jobs.seed_counts(connection, self._keyring, now)
            claimed = await jobs.claim_jobs(
                connection, jobs_max=self._options.counts_max, lease=self._options.lease, now=now, kind=COVERAGE
            )
        self._has_seeded = True
        for job in claimed:
            await count_coverage(self._database, self._keyring, self._rules, job, now)
            self.alive_at = time.monotonic()
        return 0

    async def _hand_over_overdue(self) -> int:
        now, rows_max = self._clock.now(), self._options.overdue_max
        limits = {
            CoverageItem: self._rules.coverage.limit,
            HeldUpload: self._options.hold_limit,
            ListDifference: self._options.difference_limit,
        }
        async with self._database.reading() as connection:
            overdue = await deadlines.find_overdue(connection, now)
        if not overdue:
            return 0
        async with self._database.writing() as connection:
            moved = []
            for kind in overdue:
                moved += await deadlines.hand_over_overdue(
                    connection, kind, now=now, limit=limits.get(kind, self._rules.escalation), rows_max=rows_max
                )
            acts = [
                Act(
                    owner=item.owner,
                    actor="broker",
                    action=f"{item.kind}.escalated",
                    subject=item.id,
                    reason=f"level {item.level}",
                )
                for item in moved
            ]
            await audit.record_acts(connection, acts, now)
        for owner, count in sorted(Counter(item.owner for item in moved).items()):
            log(LogEvent.ESCALATED, owner=owner, count=count)
        return 0

    async def _block_anew(self) -> int:
        """After an update that brings new blocks, what was listed before is stored under them."""
        if self._is_blocked:
            return 0
        async with self._database.writing() as connection:
            found = await child_lists.block_anew(connection, self._keyring, rows_max=self._options.blocked_max)
        self._is_blocked = found == 0
        return found

    async def _find_missed(self) -> int:
        """Once a night, some visits each round: alerts that were missed."""
        now = self._clock.now()
        night = (now.astimezone(LONDON) - self._options.night_begins).date()
        if self._sweep is None and night != self._swept:
            await self._claim_night(night, now)
        if self._sweep is None:
            return 0
        job, after = self._sweep
        self._sweep = None  # whatever fails begins anew when the lease has run out
        last, _ = await find_missed(self._database, self._keyring, self._rules, after, now)
        if last is not None:
            self._sweep = (job, last)
            return 1
        async with self._database.writing() as connection:
            await jobs.finish_job(connection, job, now)
        return 0

    async def _claim_night(self, night: date, now: datetime) -> None:
        job_id = self._keyring.derive_id("job", jobs.FIND_MISSED, night.isoformat())
        async with self._database.writing() as connection:
            await directory.ensure_owners(connection, [(BROKER_OWNER, "Operators of the broker")])
            work = [(job_id, BROKER_OWNER, night.isoformat())]
            await jobs.add_jobs(connection, jobs.FIND_MISSED, work, now, opens_again=False)
        async with self._database.writing() as connection:
            await jobs.set_barriers(connection, now)
        async with self._database.writing() as connection:
            claimed = await jobs.claim_jobs(
                connection, jobs_max=1, lease=self._options.night_lease, now=now, kind=jobs.FIND_MISSED
            )
            waiting = await jobs.list_waiting(connection, jobs.FIND_MISSED)
        if claimed:
            self._sweep = (claimed[0], "")
        elif not waiting:
            self._swept = night

    async def _drop_old(self) -> int:
        """Once in a while: what is not kept any longer."""
        now = self._clock.now()
        if self._dropped_at is not None and now - self._dropped_at < self._retention.interval:
            return 0
        done = await reduce_visits(self._database, self._retention, self._rules.look_back, now)
        done += await drop_replies(self._database, self._retention, now)
        done += await drop_incidents(self._database, self._retention, now)
        if not done:
            if self._log is not None:
                await trim_log(self._database, self._log, self._retention, now)
            self._dropped_at = now
        return done

    async def _forget_news(self) -> int:
        """News of persons that no visit will take in any more. Looked for once in a while, and in small steps."""
        now = self._clock.now()
        if self._forgot_at is not None and now - self._forgot_at < self._options.forget_every:
            return 0
        async with self._database.writing() as connection:
            before = now - self._rules.look_back
            found = await persons.forget_news(connection, before, self._options.forgotten_max)
            await test_feeds.forget_test_feeds(connection, london_day(now) - timedelta(days=test_feeds.SHOWN_DAYS))
        self._forgot_at = now if found < self._options.forgotten_max else None
        return found

    async def _close_quiet(self) -> int:
        """Visits of which nothing is heard any more come to rest. Looked for once in a while, and in small steps."""
        now = self._clock.now()
        if self._closed_at is not None and now - self._closed_at < self._options.close_every:
            return 0
        async with self._database.writing() as connection:
            found = await visits.close_quiet(connection, self._rules.quiet, now=now, rows_max=self._options.closed_max)
        self._closed_at = now if found < self._options.closed_max else None
        if found:
            log(LogEvent.VISITS_CLOSED, count=found)
        return found

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), self._options.poll_s)
        except TimeoutError:
            return
