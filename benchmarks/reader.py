"""The readers alone, in one process: ours beside the libraries of the field and a hand split that does no more.

The messages are a department's own, four in five of them updates; the Bundles are the same department's by FHIR.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

import hl7
from fhir.resources.R4B.bundle import Bundle
from hl7apy.parser import parse_message

from adapters.fhir import read_bundle
from adapters.hl7v2 import read_attendance
from benchmarks.figures import Figure, Subject
from benchmarks.installation import SITE, Scale
from mock_nhs.department import TYPICAL, Department
from mock_nhs.town import Town

Read = Callable[[bytes], object]
MESSAGES = 500
HL7V2 = "HL7 v2 messages read"
HL7V2_OTHER = "HL7 v2 messages read, beside python-hl7"
FHIR = "FHIR Bundles read"


def measure_readers(town: Town, scale: Scale, say: Callable[[str], None]) -> list[Figure]:
    """Each reader in turn on the same messages, round after round."""
    messages, bundles = _write(town, fhir=0.0), _write(town, fhir=1.0)
    races: tuple[tuple[str, Sequence[bytes], dict[Subject, Read]], ...] = (
        (
            HL7V2,
            messages,
            {Subject.PRODUCT: read_attendance, Subject.FLOOR: split_by_hand, Subject.NAIVE: read_with_hl7apy},
        ),
        (HL7V2_OTHER, messages, {Subject.PRODUCT: read_attendance, Subject.NAIVE: read_with_python_hl7}),
        (FHIR, bundles, {Subject.PRODUCT: read_bundle, Subject.FLOOR: json.loads, Subject.NAIVE: read_with_models}),
    )
    figures = []
    for what, bodies, readers in races:
        rounds: dict[Subject, list[float]] = {subject: [] for subject in readers}
        for _ in range(scale.rounds):
            for subject, read in readers.items():
                rounds[subject].append(_time(read, bodies, scale.reader_s))
        for subject, found in rounds.items():
            figures.append(Figure(what=what, engines="none", subject=subject, unit="messages/s", rounds=tuple(found)))
            say(f"  {what}, {subject}: {max(found):,.0f} messages/s")
    return figures


def split_by_hand(message: bytes) -> list[str]:
    """The NHS number, the names and the date of birth of the messages that this department writes, and of no other."""
    segments = {line[:3]: line.split("|") for line in message.decode().split("\r")}
    pid, pv1 = segments["PID"], segments["PV1"]
    numbers = [identifier.split("^")[0] for identifier in pid[3].split("~")]
    return [*numbers, *pid[5].split("^")[:2], pid[7], pv1[2], segments["MSH"][9]]


def read_with_hl7apy(message: bytes) -> list[str]:
    """The same with hl7apy, as its documentation shows."""
    read = parse_message(message.decode(), find_groups=False)
    numbers = [identifier.to_er7() for identifier in read.pid.pid_3]
    return [*numbers, read.pid.pid_5.to_er7(), read.pid.pid_7.to_er7(), read.pv1.pv1_2.to_er7()]


def read_with_python_hl7(message: bytes) -> list[str]:
    """The same with python-hl7."""
    read = hl7.parse(message.decode())
    pid = read.segment("PID")
    return [str(pid[3]), str(pid[5]), str(pid[7]), str(read.segment("PV1")[2])]


def read_with_models(body: bytes) -> str | None:
    """A Bundle validated by fhir.resources alone; nothing is found in it yet."""
    return Bundle.model_validate_json(body).id


def _write(town: Town, *, fhir: float) -> list[bytes]:
    """Registrations and updates of everybody in turn. An update of the person alone (A31) says nothing of a visit."""
    credential = next(site.credential for site in town.sites if site.code == SITE)
    department = Department(site=SITE, credential=credential, people=town.people[:1000], identities=TYPICAL, fhir=fhir)
    written = (department.next_message() for _ in range(10 * MESSAGES))
    return [message.body for message in written if message.event != "A31"][:MESSAGES]


def _time(read: Read, bodies: Sequence[bytes], seconds: float) -> float:
    done, began_at = 0, time.perf_counter()
    ends_at = began_at + seconds
    while (now := time.perf_counter()) < ends_at:
        read(bodies[done % len(bodies)])
        done += 1
    return done / (now - began_at)
