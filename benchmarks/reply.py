"""Accept-to-reply: a department sends at a steady rate; how long until the reply of a listed child is in its hands.

The broker runs as it is served, one process per part; the floor and the naive build are one process each. All three
stand ready all the time and take turns. Four messages in five are updates, as in life; every visit is a listed child's,
so every registration also raises an alert that goes to a case system.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from benchmarks.door import percentile_ms, until_listening
from benchmarks.figures import Figure, Subject
from benchmarks.installation import (
    SITE,
    Installation,
    Scale,
    close_first_look_backs,
    peak_memory_mib,
    shared_memory_mib,
)
from mock_nhs.case_system import CaseOptions, CaseSystem
from mock_nhs.department import Department, Identity
from mock_nhs.ed_system import EdOptions, EdSystem
from mock_nhs.mllp_link import LinkOptions
from mock_nhs.reply_book import Reply
from mock_nhs.reply_listener import ReplyListenerOptions
from mock_nhs.town import read_secret
from tests.engines import free_port

MESSAGES_A_SECOND = 50
CONNECTIONS = 4
PARTS = ("intake", "attendances", "dispatch", "jobs", "web")
WARM_UP_S = 3.0
LAST_REPLY_S = 60.0


class Watch:
    """When each visit was registered, and how long its reply took."""

    def __init__(self) -> None:
        self.awaited: dict[str, float] = {}
        self.times_s: list[float] = []
        self._settled = asyncio.Event()

    def note_sent(self, visit_number: str) -> None:
        """A visit's A04 is on its way."""
        self.awaited[visit_number] = time.perf_counter()
        self._settled.clear()

    def note_reply(self, reply: Reply) -> None:
        """A reply is in the department's hands; a visit's first counts."""
        sent_at = self.awaited.pop(reply.visit_number, None)
        if sent_at is not None:
            self.times_s.append(time.perf_counter() - sent_at)
        if not self.awaited:
            self._settled.set()

    async def wait(self, limit_s: float) -> None:
        """Until every reply is in hand. Raises TimeoutError."""
        async with asyncio.timeout(limit_s):
            await self._settled.wait()


async def measure_replies(installation: Installation, scale: Scale, say: Callable[[str], None]) -> list[Figure]:
    """The time from sending an A04 to its reply, p50 and p99, and the peak memory of every process."""
    await close_first_look_backs(installation.settings)
    ports = {Subject.PRODUCT: installation.mllp_port, Subject.FLOOR: free_port(), Subject.NAIVE: free_port()}
    secrets = {each.code: read_secret(each.webhook_secret) for each in installation.town.town.authorities}
    case_system = CaseSystem(
        CaseOptions(secrets=secrets, port=installation.place.case_port),
        installation.engines.directory / "case-system.jsonl",
    )
    await case_system.start()
    try:
        installation.start(*PARTS)
        for peer in (Subject.FLOOR, Subject.NAIVE):
            addresses = (str(ports[peer]), str(installation.place.reply_port))
            installation.run(peer, "benchmarks.peers", peer, *addresses, CPIS_KAFKA_PREFIX=f"{peer}.")
        for port in ports.values():
            await until_listening(port)
        figures = await _take_turns(installation, ports, scale, say)
        return figures + _measure_memory(installation)
    except (TimeoutError, AssertionError) as error:
        raise AssertionError(f"{error}\n{installation.last_words()}") from error
    finally:
        await installation.stop()
        await case_system.stop()


async def _take_turns(
    installation: Installation, ports: Mapping[Subject, int], scale: Scale, say: Callable[[str], None]
) -> list[Figure]:
    """Round after round; the first warms up and does not count."""
    found: dict[tuple[int, Subject], list[float]] = {
        (percent, subject): [] for percent in (50, 99) for subject in ports
    }
    for number in range(scale.reply_rounds + 1):
        order = list(ports)
        for subject in order[number % 3 :] + order[: number % 3]:
            seconds = scale.reply_s if number else WARM_UP_S
            times_s = await _play(installation, ports[subject], subject, number, seconds)
            p50_ms, p99_ms = percentile_ms(times_s, 50), percentile_ms(times_s, 99)
            if number:
                found[50, subject].append(p50_ms)
                found[99, subject].append(p99_ms)
                replies = f"{len(times_s)} replies  p50 {p50_ms:,.1f} ms  p99 {p99_ms:,.1f} ms"
                say(f"  round {number}  {subject:<8} {replies}")
    return [
        Figure(
            what=f"A04 to reply at {MESSAGES_A_SECOND}/s, p{percent}",
            engines=installation.engines.name,
            subject=subject,
            unit="ms",
            rounds=tuple(rounds),
        )
        for (percent, subject), rounds in found.items()
    ]


async def _play(installation: Installation, port: int, subject: Subject, number: int, seconds: float) -> list[float]:
    """Send for so long at the rate, then wait for the last reply."""
    watch = Watch()
    department = Department(
        site=SITE,
        credential=installation.town.credential,
        people=installation.town.listed_children,
        seed=100 * (list(Subject).index(subject) + 1) + number,
        identities={Identity.TRACED: 1.0},
    )
    system = EdSystem(
        EdOptions(
            link=LinkOptions(host="127.0.0.1", port=port),
            replies=ReplyListenerOptions(site=SITE, port=installation.place.reply_port),
            connections=CONNECTIONS,
        ),
        installation.engines.directory / f"department-{subject}-{number}.jsonl",
        on_reply=watch.note_reply,
    )
    await system.start()
    try:
        began_at = time.perf_counter()
        for turn in range(int(seconds * MESSAGES_A_SECOND)):
            await asyncio.sleep(max(0.0, began_at + turn / MESSAGES_A_SECOND - time.perf_counter()))
            message = department.next_message()
            if message.event == "A04":
                watch.note_sent(message.visit_number)
            await system.offer(message)
        try:
            await watch.wait(LAST_REPLY_S)
        except TimeoutError:
            missing = f"{len(watch.awaited)} replies of {subject} did not come in {LAST_REPLY_S:.0f} s"
            raise AssertionError(f"{missing}; answers {dict(system.answers)}") from None
    finally:
        await system.stop()
    return watch.times_s


def _measure_memory(installation: Installation) -> list[Figure]:
    """Peak resident memory: every part, the broker's parts together beside the peers' one process, the servers."""
    peaks_mib = {name: peak_memory_mib(process.pid) for name, process in installation.parts.items()}
    whole = {Subject.PRODUCT: sum(peaks_mib[part] for part in PARTS)}
    whole |= {peer: peaks_mib[peer] for peer in (Subject.FLOOR, Subject.NAIVE)}
    shown = [("whole line", subject, mib) for subject, mib in whole.items()]
    shown += [(part, Subject.PRODUCT, peaks_mib[part]) for part in PARTS]
    shown += [(name, Subject.PRODUCT, shared_memory_mib(pid)) for name, pid in installation.engines.servers.items()]
    return [
        Figure(what=f"memory, {name}", engines=installation.engines.name, subject=subject, unit="MiB", rounds=(mib,))
        for name, subject, mib in shown
    ]
