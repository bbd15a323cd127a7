"""Child lists that authorities send by MESH: taken, loaded, acknowledged, answered.

MESH is told that a message is safe only once what became of it is committed. A process that dies before takes the same
message again, and the upload knows the file. What is no list, or is one that nobody can read, is kept with its bytes
and waits for a person. An answer goes out at least once, with the id of the message it answers (Mex-LocalID).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from hashlib import sha256

import msgspec

from adapters.errors import MailboxUnavailable
from broker.domain.retry import next_try_at
from broker.keyring import Keyring
from broker.ports import Clock, Mailbox
from broker.storage import audit, mesh_files
from broker.storage.audit import Act
from broker.storage.database import Database, is_database_outage
from broker.storage.mesh_files import TOO_LARGE, ClaimedFile, DueAnswer, HandledFile
from broker.telemetry import LogEvent, log
from schemas.delivery import OutcomeClass
from schemas.identifiers import BROKER_OWNER, authority_owner
from schemas.mesh import ListAnswer, MeshMessage, ReceivedList, ReportMessage

LoadList = Callable[[ReceivedList], Awaitable[ListAnswer]]
"""Loads a list and says what became of it. What it raises is a fault of ours, and the message stays where it is."""


class MeshInboxOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Whose mailbox is whose, and the limits."""

    upload_workflow: str
    report_workflow: str
    authorities: Mapping[str, str]
    """Mailbox id to the authority whose lists come from it."""
    poll_s: float = 60.0
    lease: timedelta = timedelta(minutes=15)
    """A list of 150,000 rows is loaded in a part of this."""
    limit: timedelta = timedelta(minutes=15)
    """What is not settled by then goes to the operators, again and again."""
    attempts_max: int = 3
    """So often a message may fail for a reason that nobody expected, before it is kept for a person."""
    answers_max: int = 20


class MeshInbox:
    """One mailbox. Several may work on it at the same time: each message is claimed."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        clock: Clock,
        *,
        mailbox: Mailbox,
        load: LoadList,
        options: MeshInboxOptions,
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._clock = clock
        self._mailbox = mailbox
        self._load = load
        self._options = options

    async def run(self) -> None:
        """Look into the mailbox again and again, until cancelled; whatever fails is said and tried again."""
        while True:
            await self.run_once()
            await asyncio.sleep(self._options.poll_s)

    async def run_once(self) -> int:
        """One round; returns how many messages were taken up and answered."""
        done = 0
        for kind, work in (("mesh_inbox", self._take_waiting), ("mesh_answers", self._send_answers)):
            try:
                done += await work()
            except MailboxUnavailable as error:
                log(LogEvent.MESH_UNAVAILABLE, error=error.code)
            except Exception as error:
                log(LogEvent.JOB_FAILED, kind=kind, error=type(error).__name__)
        return done

    async def _take_waiting(self) -> int:
        taken = 0
        for message_id in await self._mailbox.list_waiting():
            async with self._database.writing() as connection:
                claimed = await mesh_files.claim_file(
                    connection,
                    message_id,
                    now=self._clock.now(),
                    lease=self._options.lease,
                    limit=self._options.limit,
                )
            if claimed is not None:
                taken += await self._take_claimed(claimed)
        return taken

    async def _take_claimed(self, claimed: ClaimedFile) -> int:
        stays = claimed.stays
        try:
            if not claimed.is_handled:
                message = await self._mailbox.take(claimed.id)
                handled = await self._handle(message, claimed)
                await self._save(handled)
                stays = handled.reason == TOO_LARGE
            if not stays:
                await self._mailbox.acknowledge(claimed.id)
        except Exception as error:
            await self._release(claimed)
            # An outage ends the round: the next message would meet it too. What the database refuses is no outage.
            if isinstance(error, MailboxUnavailable) or is_database_outage(error):
                raise
            log(LogEvent.JOB_FAILED, kind="mesh_file", error=type(error).__name__)
            return 0
        if stays:
            await self._release(claimed)
            return 0
        async with self._database.writing() as connection:
            await mesh_files.note_acknowledged(connection, claimed.id, self._clock.now())
        return 1

    async def _release(self, claimed: ClaimedFile) -> None:
        async with self._database.writing() as connection:
            await mesh_files.release_file(connection, claimed.id)

    async def _handle(self, message: MeshMessage, claimed: ClaimedFile) -> HandledFile:
        authority = self._options.authorities.get(message.sender)
        owner = authority_owner(authority) if authority else BROKER_OWNER
        handled = HandledFile(id=message.id, owner=owner, sender=message.sender, body=message.body)
        if message.is_report:
            return msgspec.structs.replace(handled, reason="report_of_mesh")
        if message.workflow != self._options.upload_workflow:
            return msgspec.structs.replace(handled, reason="other_workflow")
        if authority is None:
            return msgspec.structs.replace(handled, reason="unknown_sender")
        if message.body is None:
            return msgspec.structs.replace(handled, reason=TOO_LARGE)
        try:
            received = ReceivedList(
                authority=authority,
                body=message.body,
                uploaded_by=f"mesh:{message.sender}",
                waits_since=claimed.waits_since,
            )
            answer = await self._load(received)
        except Exception as error:
            if is_database_outage(error) or claimed.attempts < self._options.attempts_max:
                raise
            return msgspec.structs.replace(handled, reason="failed", detail=type(error).__name__)
        return msgspec.structs.replace(
            handled,
            body=None if answer.is_readable else message.body,
            reason="" if answer.is_readable else "unreadable",
            detail="" if answer.is_readable else answer.problem,
            answer=_write_report(message.id, received, answer),
        )

    async def _save(self, handled: HandledFile) -> None:
        now = self._clock.now()
        action = "mesh.kept" if handled.reason else "mesh.loaded"
        act = Act(owner=handled.owner, actor="broker", action=action, subject=handled.id, reason=handled.reason)
        async with self._database.writing() as connection:
            await mesh_files.save_handled(connection, self._keyring, handled, now)
            await audit.record_acts(connection, [act], now)
        if handled.reason:
            log(LogEvent.MESH_KEPT, owner=handled.owner, reason=handled.reason)

    async def _send_answers(self) -> int:
        async with self._database.writing() as connection:
            due = await mesh_files.claim_answers(
                connection,
                self._keyring,
                answers_max=self._options.answers_max,
                lease=self._options.lease,
                now=self._clock.now(),
            )
        for answer in due:
            await self._send_answer(answer)
        return len(due)

    async def _send_answer(self, due: DueAnswer) -> None:
        outcome = await self._mailbox.send(
            due.sender, due.answer, workflow=self._options.report_workflow, local_id=due.id
        )
        now: datetime = self._clock.now()
        if outcome.outcome is not OutcomeClass.SENT:
            log(LogEvent.MESH_NOT_ANSWERED, code=outcome.code)
        async with self._database.writing() as connection:
            if outcome.outcome is OutcomeClass.SENT:
                await mesh_files.note_answered(connection, due.id, now)
            elif outcome.outcome is OutcomeClass.PERMANENT:
                await mesh_files.give_up_answer(connection, due.id, outcome.code)
            else:
                until = next_try_at(outcome, failures=due.attempts, now=now)
                await mesh_files.put_off_answer(connection, due.id, until)


def _write_report(message_id: str, received: ReceivedList, answer: ListAnswer) -> bytes:
    return msgspec.json.encode(
        ReportMessage(
            in_reply_to=message_id,
            file_sha256=sha256(received.body).hexdigest(),
            authority=received.authority,
            file_code=answer.file_code,
            problem=answer.problem,
            report=answer.report,
        )
    )
