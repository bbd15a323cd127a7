"""The jobs part: looks for what is due, every second, and does it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import timedelta

import msgspec

from broker.announcement import Rules
from broker.jobs.look_back import look_back
from broker.keyring import Keyring
from broker.ports import Clock
from broker.storage import audit, child_lists, deadlines, jobs
from broker.storage.audit import Act
from broker.storage.database import Database
from broker.telemetry import LogEvent, log


class JobOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the jobs part."""

    poll_s: float = 1.0
    lease: timedelta = timedelta(seconds=120)
    jobs_max: int = 20
    overdue_max: int = 200
    blocked_max: int = 500


class JobRunner:
    """Runs look-backs and hands over what is overdue, until stopped."""

    def __init__(self, database: Database, keyring: Keyring, clock: Clock, rules: Rules, options: JobOptions) -> None:
        self._database = database
        self._keyring = keyring
        self._clock = clock
        self._rules = rules
        self._options = options
        self._stopping = asyncio.Event()
        self._is_blocked = False
        self.alive_at = self.worked_at = time.monotonic()
        """When the part last looked for work, and when it last could (monotonic seconds)."""

    def stop(self) -> None:
        """End ``run`` after what is in hand."""
        self._stopping.set()

    async def run(self) -> None:
        """Work until stopped; whatever fails is said and tried again."""
        while not self._stopping.is_set():
            found = await self.run_once()
            if not found:
                await self._pause()

    async def run_once(self) -> int:
        """One round; returns how much was done."""
        done, failed = 0, False
        # One kind of work that fails must not keep the other from being done: what is overdue first.
        works = (
            ("overdue", self._hand_over_overdue),
            ("look_backs", self._run_look_backs),
            ("blocks", self._block_anew),
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

    async def _run_look_backs(self) -> int:
        async with self._database.writing() as connection:
            await jobs.set_barriers(connection, self._clock.now())
        async with self._database.writing() as connection:
            claimed = await jobs.claim_jobs(
                connection, jobs_max=self._options.jobs_max, lease=self._options.lease, now=self._clock.now()
            )
        for job in claimed:
            try:
                await look_back(self._database, self._keyring, self._rules, job, self._clock.now())
            except Exception as error:
                # The lease runs out and the job is claimed again.
                log(LogEvent.JOB_FAILED, kind=job.kind, error=type(error).__name__)
            self.alive_at = time.monotonic()
        return len(claimed)

    async def _hand_over_overdue(self) -> int:
        now = self._clock.now()
        async with self._database.writing() as connection:
            moved = []
            for kind in deadlines.HELD_AFTERWARDS:
                moved += await deadlines.hand_over_overdue(
                    connection, kind, now=now, limit=self._rules.escalation, rows_max=self._options.overdue_max
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

    async def _pause(self) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), self._options.poll_s)
        except TimeoutError:
            return
