"""An emergency department's computer system: sends ADT messages over MLLP, or FHIR Bundles, and takes the replies.

As a library: ``EdSystem`` with ``offer``, ``settle`` and ``replies``. As a program it plays a day:
``python -m mock_nhs.ed_system --host 127.0.0.1 --port 2575 --site RZ1 --people DIR --messages 200 --record FILE``.
It prints ``listening HOST PORT`` once replies are taken, ``settled`` once all is answered, and a summary at the end.
Its journal tells what the department believes: ``offered`` before a message is first sent, ``answered`` for every
AA, AE or AR (and every status of FHIR) with the number of attempts, ``reply`` and ``reply_repeated`` for what came
back. With ``--fhir 0.5 --fhir-base http://127.0.0.1:8000`` half of the visits go by FHIR.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import signal
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

from mock_nhs.department import AdtMessage, Department, Identity
from mock_nhs.faults import Faults, add_fault_argument, read_faults
from mock_nhs.fhir_bundle import FHIR_JSON
from mock_nhs.fhir_link import FhirLink, FhirLinkOptions
from mock_nhs.fhir_listener import FhirListener, FhirListenerOptions
from mock_nhs.journal import Journal, read_journal
from mock_nhs.mllp_link import LinkOptions, MllpLink
from mock_nhs.people import Person, read_people
from mock_nhs.reply_book import Reply, ReplyBook
from mock_nhs.reply_listener import ReplyListener, ReplyListenerOptions


@dataclass(frozen=True, kw_only=True)
class EdOptions:
    """How the system is set up."""

    link: LinkOptions
    replies: ReplyListenerOptions
    connections: int = 1
    listens: bool = True
    """Whether it takes replies."""
    fhir: FhirLinkOptions | None = None
    """Where messages of FHIR go; without it none can be offered."""
    fhir_replies: FhirListenerOptions | None = None
    """Its own FHIR server for replies."""


class EdSystem:
    """The department's system: messages out over several connections, replies in.

    The messages of one patient use one connection, so they stay in order while nothing has to be sent again.
    """

    def __init__(
        self,
        options: EdOptions,
        record: Path,
        faults: Faults | None = None,
        on_reply: Callable[[Reply], None] = lambda reply: None,
    ) -> None:
        """``record`` is the journal's file; a system that starts again goes on with it."""
        self._options = options
        self._faults = faults or Faults()
        self._journal = Journal(record)
        self._visits = {
            line["visit_number"]: line["local_patient_id"] for line in read_journal(record) if line["what"] == "offered"
        }
        self._links = [MllpLink(options.link, self._faults, self._note_answer) for _ in range(options.connections)]
        self._fhir_link = FhirLink(options.fhir, self._faults, self._note_answer) if options.fhir else None
        self._book = ReplyBook(self._journal, self._take_reply)
        self._listener = ReplyListener(options.replies, self._faults, self._book, self._visits)
        self._fhir_listener = (
            FhirListener(options.fhir_replies, self._faults, self._journal, self._book, self._visits)
            if options.fhir_replies
            else None
        )
        self._on_reply = on_reply
        self._awaited: dict[str, list[asyncio.Future[Reply]]] = {}
        self.answers: Counter[str] = Counter()
        """How many answers came, by code; a message that was answered AE and then AA counts in both."""
        self.offered = 0
        self.reply_port = 0
        """Where replies are taken, after ``start``."""

    @property
    def replies(self) -> list[Reply]:
        """The replies that came since the start, each once."""
        return self._book.replies

    @property
    def reply_url(self) -> str:
        """Where replies by FHIR are taken, after ``start``; empty when they are not."""
        return self._fhir_listener.url if self._fhir_listener else ""

    async def start(self) -> None:
        """Listen for replies and begin to send."""
        if self._options.listens:
            self.reply_port = await self._listener.start()
        if self._fhir_listener is not None:
            await self._fhir_listener.start()
        for link in self._every_link():
            link.start()

    async def stop(self) -> None:
        """Close every connection. What is unanswered stays unanswered in the journal."""
        for link in self._every_link():
            await link.stop()
        await self._listener.stop()
        if self._fhir_listener is not None:
            await self._fhir_listener.stop()
        self._journal.close()

    async def offer(self, message: AdtMessage) -> None:
        """Write the message down as offered and send it until it is answered; waits while too many are not."""
        self._visits[message.visit_number] = message.local_patient_id
        self._journal.write("offered", at=datetime.now(UTC).isoformat(), **message.facts())
        self.offered += 1
        if message.content_type == FHIR_JSON:
            assert self._fhir_link is not None, "the system is not set up for FHIR"
            await self._fhir_link.offer(message)
            return
        await self._links[crc32(message.local_patient_id.encode()) % len(self._links)].offer(message)

    async def settle(self, *, timeout_s: float) -> bool:
        """Wait until every message is answered for good; False when that took too long."""
        try:
            async with asyncio.timeout(timeout_s):
                for link in self._every_link():
                    await link.settle()
        except TimeoutError:
            return False
        return True

    async def wait_for_reply(self, visit_number: str, *, timeout_s: float) -> Reply:
        """The first reply for a visit. Raises TimeoutError when none comes."""
        for reply in self.replies:
            if reply.visit_number == visit_number:
                return reply
        awaited: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._awaited.setdefault(visit_number, []).append(awaited)
        async with asyncio.timeout(timeout_s):
            return await awaited

    def _every_link(self) -> list[MllpLink | FhirLink]:
        return [*self._links, *([self._fhir_link] if self._fhir_link else [])]

    def _note_answer(self, message: AdtMessage, code: str, attempts: int) -> None:
        self.answers[code] += 1
        self._journal.write(
            "answered",
            at=datetime.now(UTC).isoformat(),
            control_id=message.control_id,
            visit_number=message.visit_number,
            code=code,
            attempts=attempts,
        )

    def _take_reply(self, reply: Reply) -> None:
        self._on_reply(reply)
        for awaited in self._awaited.pop(reply.visit_number, []):
            if not awaited.done():
                awaited.set_result(reply)


async def obey(system: EdSystem, department: Department, people: Sequence[Person]) -> None:
    """Do what the lines of standard input say, one JSON document each, until it ends; print what visit it was.

    ``{"do": "register", "nhs_number": ..., "identity": ..., "by_fhir": ..., "concern": ...}``,
    ``{"do": "newborn", "mother": ...}``, ``{"do": "unreadable"}``,
    ``{"do": "update", "visit": ..., "event": ..., "times": ...}`` and
    ``{"do": "day", "messages": ..., "per_second": ...}``.
    """
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    known: dict[str, Person] = {person.nhs_number: person for person in people}
    while line := await reader.readline():
        wish = json.loads(line)
        messages = _write_wished(department, known, wish)
        for message in messages:
            await system.offer(message)
        if wish["do"] == "day":
            await play_day(system, department, messages=wish["messages"], per_second=wish.get("per_second"))
        print(json.dumps({"visit": messages[0].visit_number if messages else ""}), flush=True)


def _write_wished(department: Department, known: Mapping[str, Person], wish: dict[str, Any]) -> list[AdtMessage]:
    if wish["do"] == "register":
        return [
            department.register(
                known[wish["nhs_number"]],
                Identity(wish.get("identity", "traced")),
                by_fhir=wish.get("by_fhir", False),
                concern=wish.get("concern", ""),
            )
        ]
    if wish["do"] == "newborn":
        return [department.register_newborn(known[wish["mother"]])]
    if wish["do"] == "unreadable":
        return [department.register(next(iter(known.values())), by_fhir=False, readable=False)]
    if wish["do"] == "update":
        return [department.update(wish["visit"], wish.get("event", "A08")) for _ in range(wish.get("times", 1))]
    return []


async def play_day(system: EdSystem, department: Department, *, messages: int, per_second: float | None = None) -> None:
    """Offer so many messages, at that rate or as fast as they are taken."""
    now_s = asyncio.get_running_loop().time
    started_at_s = now_s()
    for number in range(messages):
        if per_second is not None:
            await asyncio.sleep(max(0.0, started_at_s + number / per_second - now_s()))
        await system.offer(department.next_message())


def describe_reply(reply: Reply) -> str:
    """A reply as the department's screen shows it."""
    head = f"{reply.visit_number} {reply.local_patient_id}: {reply.outcome.replace('_', ' ')}"
    return "\n    ".join([head, *reply.wording.splitlines(), *map(str, reply.observations)])


def read_credential(people: Path, site: str) -> str:
    """The site's credential from ``sites.csv``. Raises KeyError for a site that is not there."""
    with (people / "sites.csv").open(newline="", encoding="utf-8") as file:
        return {row["code"]: row["credential"] for row in csv.DictReader(file)}[site]


def main(arguments: Sequence[str] | None = None) -> int:
    """Play a day; 0 when every message was answered AA or AR, else 1."""
    return asyncio.run(_run(_read_arguments(arguments)))


async def _run(given: argparse.Namespace) -> int:
    faults = read_faults(given.fault, seed=given.seed)
    credential = given.credential or read_credential(given.people, given.site)
    system = EdSystem(
        EdOptions(
            link=LinkOptions(host=given.host, port=given.port, window=given.window, ack_timeout_s=given.ack_timeout_s),
            replies=ReplyListenerOptions(site=given.site, host=given.reply_host, port=given.reply_port or 0),
            connections=given.connections,
            listens=given.reply_port is not None,
            fhir=_read_fhir(given, credential),
            fhir_replies=(
                None
                if given.fhir_reply_port is None
                else FhirListenerOptions(
                    host=given.reply_host, port=given.fhir_reply_port, token=given.fhir_reply_token
                )
            ),
        ),
        given.record,
        faults,
        on_reply=lambda reply: print(describe_reply(reply), flush=True) if given.show else None,
    )
    department = Department(
        site=given.site,
        credential=credential,
        people=read_people(given.people / "people.csv"),
        seed=given.seed,
        faults=faults,
        fhir=given.fhir,
    )
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    await system.start()
    print(f"listening {given.reply_host} {system.reply_port}", flush=True)
    if system.reply_url:
        print(f"replies by FHIR {system.reply_url}", flush=True)
    day = asyncio.create_task(_play(system, department, given, stopping))
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait((day, stop), return_when=asyncio.FIRST_COMPLETED)
    for task in (day, stop):
        task.cancel()
    ends = await asyncio.gather(day, stop, return_exceptions=True)
    await system.stop()
    summary = {"offered": system.offered, "answers": dict(system.answers), "replies": len(system.replies)}
    print(json.dumps(summary | {"faults": +faults.fired}), flush=True)
    return 0 if ends[0] is True else 1


async def _play(system: EdSystem, department: Department, given: argparse.Namespace, stopping: asyncio.Event) -> bool:
    if given.obey:
        await obey(system, department, read_people(given.people / "people.csv"))
    else:
        await play_day(system, department, messages=given.messages, per_second=given.per_second)
    settled = await system.settle(timeout_s=given.patience_s)
    print("settled" if settled else "not settled", flush=True)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(given.linger_s):
            await stopping.wait()
    return settled


def _read_fhir(given: argparse.Namespace, credential: str) -> FhirLinkOptions | None:
    if not given.fhir:
        return None
    return FhirLinkOptions(base=given.fhir_base, user=given.site, password=credential)


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mock_nhs.ed_system", description="An emergency department's system.")
    parser.add_argument("--host", default="127.0.0.1", help="where the broker listens")
    parser.add_argument("--port", type=int, default=2575)
    parser.add_argument("--site", required=True, metavar="ODS", help="the department's code, in MSH-4")
    parser.add_argument("--credential", help="stands in MSH-8; by default the site's own from sites.csv")
    parser.add_argument("--people", type=Path, required=True, metavar="DIR", help="what mock_nhs.town wrote")
    parser.add_argument("--messages", type=int, default=100)
    parser.add_argument("--obey", action="store_true", help="play no day: do what the lines of standard input say")
    parser.add_argument("--per-second", type=float, help="messages a second; as fast as they are taken if left out")
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--window", type=int, default=8, help="unanswered messages on a connection at once")
    parser.add_argument("--ack-timeout-s", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1, help="part of every id: another day needs another seed")
    parser.add_argument("--record", type=Path, required=True, metavar="FILE", help="the journal, JSON lines")
    parser.add_argument("--reply-host", default="127.0.0.1")
    parser.add_argument("--reply-port", type=int, help="where replies are taken; none are if left out")
    parser.add_argument("--fhir", type=float, default=0.0, metavar="SHARE", help="the share of visits sent by FHIR")
    parser.add_argument("--fhir-base", default="http://127.0.0.1:8000", help="where the broker's doors are")
    parser.add_argument("--fhir-reply-port", type=int, help="where replies by FHIR are taken; none are if left out")
    parser.add_argument("--fhir-reply-token", default="", help="the bearer token to ask for")
    parser.add_argument("--patience-s", type=float, default=120.0, help="for the last answers")
    parser.add_argument("--linger-s", type=float, default=0.0, help="for replies once all is answered; SIGTERM ends it")
    parser.add_argument("--show", action="store_true", help="print every reply")
    add_fault_argument(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
