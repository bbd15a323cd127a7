"""Messages published by others go through the real doors to the end of the line; each ends as the index says.

Each file comes from a department of its own, for the patients and visits of different publishers have nothing to do
with each other: MSH-4 and MSH-8 are that department's code and credential, every other byte is as published. (A
sender without a credential is refused, whatever it sends; most published messages have none, many no ODS code.)
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from adapters.errors import Unreadable
from adapters.hl7v2 import read_attendance, read_header
from adapters.hl7v2_batch import split_batch
from broker import bootstrap
from broker.clock import SystemClock
from broker.domain.visits import opens_visit
from broker.list_upload import upload_children
from broker.storage import alerts, visits
from mock_nhs.people import Person
from mock_nhs.town import Town, build_town, write_csv
from schemas.attendance import Attendance, PersonName
from schemas.identifiers import authority_owner
from tests import ledger
from tests.corpus import Seat, differing_fields, read_bytes, register, seat_child, seat_sender, seats
from tests.doors import Journal, MllpLine, open_fhir_door, post_bundle
from tests.e2e.scenes import query, until_ready
from tests.system import ALL_PARTS, System, open_system, until
from tests.unit import test_fhir_corpus as fhir
from tests.unit import test_hl7v2_corpus as hl7v2
from tests.world import hl7

_NO_TYPE = "MSH-9 is empty, so nothing says that it is no ADT (one has an EVN and a PID): a person looks at it"
_NO_MESSAGE = "headers and trailers of a batch or file without a message in it: nothing to keep, and AR says so"
EXPLAINED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "hl7v2/145-cosyte-hl7-ADT_A01_ADT_.hl7": (
        ("handled", "quarantined: no_event", "handled"),
        "the second of three messages is cut off after MSH|^~: it goes to a person, its neighbours are handled",
    ),
    "hl7v2/213-cosyte-hl7-ADT_A01_ADT_.hl7": (
        ("quarantined: no_pid", "handled"),
        "the first of two messages has an MSH and nothing else",
    ),
    "hl7v2/217-cosyte-hl7-X.hl7": (("quarantined: no_event",), _NO_TYPE),
    "hl7v2/247-rethinkhealt-hl7v2-ADT_A01.hl7": (
        ("quarantined: no_pid",),
        "its segment is called PIDX; a segment's name has three characters (v2.4, 2.7), so there is no PID",
    ),
    "hl7v2/417-johnpaulett-python-hl7-none.hl7": (("refused",), _NO_MESSAGE),
    "hl7v2/426-johnpaulett-python-hl7-none.hl7": (("refused",), _NO_MESSAGE),
    "hl7v2/429-johnpaulett-python-hl7-none.hl7": (("refused",), _NO_MESSAGE),
    "hl7v2/431-johnpaulett-python-hl7-X.hl7": (("quarantined: no_event",), _NO_TYPE),
    "hl7v2/446-crs4-hl7apy-X.hl7": (("quarantined: no_event",), _NO_TYPE),
    "hl7v2/534-google-simhospital-ADT_A01.hl7": (
        ("handled",),
        "only the last CR of its MLLP frame is missing; that is no reason to lose a child, so it is read as usual",
    ),
}
"""Files that do not end as their column says: how their messages end, and why."""
HANDLED = {"alerted", "no_record", "updated", "silent_by_rule", "under_review"}
EXTRACTED = [row for row in hl7v2.ROWS if row["expect"].startswith("extract identity")]


@dataclass
class Planted:
    """A child of the town in somebody's message."""

    row: str
    child: Person
    local_id: str
    seat: Seat
    message: bytes
    opens: bool
    visit_number: str | None
    end: str = ""
    alerts_before_arrival: int = 0


@dataclass(frozen=True)
class Played:
    """What became of everything."""

    hl7v2_ends: Mapping[str, Sequence[str]]
    hl7v2_codes: Mapping[str, tuple[str, ...]]
    fhir_ends: Mapping[str, str]
    alerts_of_the_corpus: int
    stored: Mapping[str, Attendance]
    """What the product keeps of those messages that stand in a visit, by file."""
    planted: Sequence[Planted]
    alerts: Mapping[str, int]
    """How often each planted child's authority was alerted, by NHS number."""
    books: ledger.Books
    acknowledged: int


# Playing


async def play(directory: Path) -> Played:
    """Send everything to one installation and look where it ended."""
    async with open_system(directory) as system:
        journal = Journal(directory / "publishers.jsonl")
        sites = seats("K", len(hl7v2.ROWS))
        planted_sites = seats("P", len(hl7v2.ATTENDANCES))
        fhir_sites = seats("F", len(fhir.ROWS))
        await register(system, [*sites, *planted_sites, *fhir_sites])
        planted = _plant(await _list_children(system), planted_sites)
        system.start(*ALL_PARTS)
        await until_ready(system, *ALL_PARTS)

        frames = {row["file"]: seat_sender(read_bytes(row), seat) for row, seat in zip(hl7v2.ROWS, sites, strict=True)}
        codes = await _send_frames(system, journal, frames)
        kept = await _send_bundles(system, journal, fhir_sites)
        sources = replace(system.sources(), department=journal.path)
        await _until_settled(sources)
        ends = await _read_ends(system)
        [(alerts_of_the_corpus,)] = await query(system, "SELECT count(*) FROM alerts")
        hl7v2_ends = {
            file: [ends.get(_marker(system, message), "refused") for message in _messages_in(frame)]
            for file, frame in frames.items()
        }
        stored = await _read_stored(system, frames)
        fhir_ends = {name: ends.get(end, end) for name, end in kept.items()}

        await _send_planted(system, journal, planted, sources)
        books = await _until_settled(sources)
        return Played(
            hl7v2_ends=hl7v2_ends,
            hl7v2_codes=codes,
            fhir_ends=fhir_ends,
            alerts_of_the_corpus=alerts_of_the_corpus,
            stored=stored,
            planted=planted,
            alerts=await _count_alerts(system),
            books=books,
            acknowledged=journal.kept,
        )


async def _list_children(system: System) -> list[Person]:
    """Upload longer lists of the town's authorities; returns the children with one plan, on one list."""
    town = build_town(system.town.seed, on=system.town.on, people=1_600, listed=300, near_twins=0)
    # Without those who are listed: they would be listed again under other ids, and the file held for it.
    new = tuple(one for one in town.listings if not system.town.authorities_listing(one.person.nhs_number))
    town = replace(town, listings=new)
    directory = system.directory / "longer"
    write_csv(town, directory)
    database, keyring = bootstrap.open_database(system.settings), bootstrap.load_keyring(system.settings)
    try:
        for authority in town.authorities:
            file = (directory / f"children-{authority.code}.csv").read_bytes()
            report = await upload_children(
                database, keyring, SystemClock(), authority=authority.code, file=file, uploaded_by="test"
            )
            assert not report.refused
    finally:
        await database.close()
    # A list that is uploaded adds to the one before it.
    return [
        person
        for person in town.people
        if _has_one_plan(town, person) and not system.town.authorities_listing(person.nhs_number)
    ]


def _has_one_plan(town: Town, person: Person) -> bool:
    plans = [listing for listing in town.listings if listing.person.nhs_number == person.nhs_number]
    return len(plans) == 1 and plans[0].is_current(town.on) and person.is_child(town.on)


def _plant(children: Sequence[Person], sites: Sequence[Seat]) -> list[Planted]:
    """Each attendance of the corpus with a listed child of its own; the NHS number first in every other one."""
    planted = []
    for number, (row, seat) in enumerate(zip(hl7v2.ATTENDANCES, sites, strict=True)):
        published = read_bytes(row)
        message = seat_child(
            seat_sender(published, seat),
            children[number],
            local_id=f"H{number:04d}",
            site=seat.code,
            number_first=number % 2 == 0,
        )
        assert differing_fields(published, message) <= {"MSH-4", "MSH-8", "PID-3", "PID-5", "PID-7"}
        said = read_attendance(published)
        planted.append(
            Planted(
                row=row["file"],
                child=children[number],
                local_id=f"H{number:04d}",
                seat=seat,
                message=message,
                opens=opens_visit(said.event),
                visit_number=said.visit_number,
            )
        )
    return planted


async def _send_frames(system: System, journal: Journal, frames: Mapping[str, bytes]) -> dict[str, tuple[str, ...]]:
    codes = {}
    async with MllpLine(system.mllp_port) as line:
        for file, frame in frames.items():
            # One file has its own frame, of which the last byte is missing: it goes over the wire as it is.
            answer = await (line.exchange(frame) if frame.startswith(b"\x0b") else line.ask(frame))
            journal.note(_messages_in(frame), answer.codes, answer.seconds)
            codes[file] = answer.codes
    return codes


async def _send_bundles(system: System, journal: Journal, sites: Sequence[Seat]) -> dict[str, str]:
    """The message id of what was kept, by file; of what was not the status and what the OperationOutcome says."""
    kept = {}
    for row, seat in zip(fhir.ROWS, sites, strict=True):
        body = read_bytes(row)
        async with open_fhir_door(system.http_port, seat.code, seat.credential) as door:
            answer, outcome = await post_bundle(door, body)
        [status] = answer.codes
        said = outcome["issue"][0]["diagnostics"]
        journal.note([body], answer.codes, answer.seconds)
        kept[row["file"]] = said.removeprefix("Kept as message ").rstrip(".") if status == "202" else status
    return kept


def _messages_in(frame: bytes) -> Sequence[bytes]:
    """The messages that the door finds in a frame."""
    return split_batch(frame.removeprefix(b"\x0b").removesuffix(b"\x1c"))


async def _send_planted(system: System, journal: Journal, planted: Sequence[Planted], sources: ledger.Sources) -> None:
    """Send the children; then let those arrive whose messages told of no visit."""
    async with MllpLine(system.mllp_port) as line:
        for each in planted:
            answer = await line.ask(each.message)
            journal.note(_messages_in(each.message), answer.codes, answer.seconds)
        await _until_settled(sources)
        ends, raised = await _read_ends(system), await _count_alerts(system)
        for each in planted:
            [message] = _messages_in(each.message)
            each.end = ends[_marker(system, message)]
            each.alerts_before_arrival = raised.get(each.child.nhs_number, 0)
            if not each.opens:
                arrival = hl7(
                    "A04",
                    nhs_number=each.child.nhs_number,
                    family=each.child.family_name,
                    given=each.child.given_name,
                    birth_date=each.child.birth_date,
                    visit=each.visit_number or f"V-{each.local_id}",
                    patient=each.local_id,
                    sender=each.seat.code,
                    credential=each.seat.credential,
                )
                answer = await line.ask(arrival)
                journal.note([arrival], answer.codes, answer.seconds)


# Looking


async def _until_settled(sources: ledger.Sources) -> ledger.Books:
    books = ledger.Books()

    async def is_settled() -> bool:
        nonlocal books
        books = await ledger.reckon(sources)
        return not books.problems

    try:
        await until(is_settled, limit_s=60, what="a ledger that balances", every_s=0.2)
    except AssertionError:
        raise AssertionError(books) from None
    return books


async def _read_ends(system: System) -> dict[str, str]:
    """What became of each message, by its marker: the outcome, or outcome and reason if it was not handled."""
    rows = await query(
        system, "SELECT marker, outcome, reason FROM handled_positions ORDER BY reason = 'repeated' DESC"
    )
    return {
        bytes(marker).hex(): "handled" if outcome in HANDLED else f"{outcome}: {reason}"
        for marker, outcome, reason in rows
    }


def _marker(system: System, message: bytes) -> str:
    try:
        header = read_header(message)
    except Unreadable:
        return ""
    return bootstrap.load_keyring(system.settings).marker(header.sender, header.control_id, message).hex()


async def _read_stored(system: System, frames: Mapping[str, bytes]) -> dict[str, Attendance]:
    """What the product keeps of each message that stands in a visit."""
    rows = await query(system, "SELECT marker, visit_id FROM handled_positions WHERE visit_id IS NOT NULL")
    visit_of = {bytes(marker).hex(): visit_id for marker, visit_id in rows}
    keyring, database = bootstrap.load_keyring(system.settings), bootstrap.open_database(system.settings)
    stored = {}
    try:
        async with database.reading() as connection:
            for row in hl7v2.ATTENDANCES:
                [message] = _messages_in(frames[row["file"]])
                visit_id = visit_of.get(_marker(system, message))
                if visit_id is not None:
                    [(_, stored[row["file"]])] = await visits.load_messages(connection, keyring, visit_id)
    finally:
        await database.close()
    return stored


async def _count_alerts(system: System) -> Counter[str]:
    """How many alerts there are of each child, by NHS number."""
    found: Counter[str] = Counter()
    keyring, database = bootstrap.load_keyring(system.settings), bootstrap.open_database(system.settings)
    try:
        async with database.reading() as connection:
            for authority in system.town.authorities:
                raised = await alerts.list_alerts(
                    connection, keyring, authority_owner(authority.code), worker=None, rows_max=10_000
                )
                found.update(each.alert.child.nhs_number for each in raised)
    finally:
        await database.close()
    return found


# What it must be


def _expected_ends(row: Mapping[str, str]) -> list[str]:
    """How the messages of a file end, by its column ``expect``; those about no visit are recorded as that."""
    expect = row["expect"]
    if row["file"] in EXPLAINED:
        return list(EXPLAINED[row["file"]][0])
    if expect.startswith("split into"):
        return ["handled"] * int(row["messages"])
    if expect.startswith("not ADT"):
        return ["ignored: not_an_attendance"]
    if expect.startswith("ADT without usable identity"):
        return ["quarantined: no_pid", "quarantined: no_identity", "quarantined: no_event"]
    return ["handled" if opens_visit(read_attendance(read_bytes(row)).event) else "ignored: person_without_visit"]


if hl7v2.ROWS:

    @pytest.fixture(scope="module")
    def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
        """Played once for all tests of this module."""
        return asyncio.run(play(tmp_path_factory.mktemp("corpus")))

    def test_every_hl7v2_file_ends_as_its_column_says(played: Played) -> None:
        assert (len(hl7v2.ROWS), len(EXTRACTED)) == (210, 140)
        wrong = {}
        for row in hl7v2.ROWS:
            found, expected = list(played.hl7v2_ends[row["file"]]), _expected_ends(row)
            is_right = found[0] in expected if row in hl7v2.UNIDENTIFIED else found == expected
            if not is_right:
                wrong[row["file"]] = (found, expected)
        assert wrong == {}
        print(Counter(end for ends in played.hl7v2_ends.values() for end in ends))

    def test_every_hl7v2_message_is_answered_on_its_own(played: Played) -> None:
        refused = {file for file, (end, _) in EXPLAINED.items() if end == ("refused",)}
        for row in hl7v2.ROWS:
            codes = ("AR",) if row["file"] in refused else ("AA",) * max(1, int(row["messages"]))
            assert played.hl7v2_codes[row["file"]] == codes, row["file"]

    def test_nobody_published_is_on_a_list(played: Played) -> None:
        assert played.alerts_of_the_corpus == 0

    def test_every_fhir_file_ends_as_its_column_says(played: Played) -> None:
        assert len(fhir.ROWS) == 154
        expected = {row["file"]: {"handled"} for row in fhir.EXTRACTED}
        expected |= {row["file"]: {"ignored: not_an_attendance"} for row in fhir.IGNORED}
        expected |= {row["file"]: {"400"} for row in fhir.BARE_ENCOUNTERS}
        expected |= {row["file"]: {"ignored: not_an_attendance", "422"} for row in fhir.NONE}
        expected |= {row["file"]: {"422"} for row in fhir.OTHER_VERSIONS}
        found = played.fhir_ends
        assert {file: end for file, end in found.items() if end not in expected[file]} == {}
        print(Counter(found.values()))

    def test_who_the_patient_is_comes_out_in_figures(played: Played) -> None:
        right: Counter[str] = Counter()
        of: Counter[str] = Counter()
        for row in hl7v2.ATTENDANCES:
            said = read_attendance(read_bytes(row))
            if row["file"] in played.stored:
                stored = played.stored[row["file"]]
                assert (stored.nhs_number, stored.names, stored.birth_date) == (
                    said.nhs_number,
                    said.names,
                    said.birth_date,
                )
                of["stored"] += 1
            if row["o_nhs"]:
                of["nhs"] += 1
                right["nhs"] += said.nhs_number in row["o_nhs"].split()
        for row in EXTRACTED:
            of["name"] += 1
            of["birth_date"] += 1
            if row in hl7v2.ATTENDANCES:
                said = read_attendance(read_bytes(row))
                name = hl7v2._name_of(row)
                read = said.names[0] if said.names else None
                is_same = read is None if name is None else read is not None and _same_name(read, name)
                right["name"] += is_same
                right["birth_date"] += (f"{said.birth_date:%Y%m%d}" if said.birth_date else "") == row["o_dob"][:8]
        print(right, of)
        assert of["nhs"] >= 24
        assert right["nhs"] == of["nhs"]
        assert right["name"] >= 0.99 * of["name"]
        assert right["birth_date"] >= 0.99 * of["birth_date"]
        assert of["stored"] >= 100

    def test_a_child_planted_in_any_message_is_found(played: Played) -> None:
        assert len(played.planted) == 139
        opening = [each for each in played.planted if each.opens]
        others = [each for each in played.planted if not each.opens]
        assert {each.row: each.end for each in opening if each.end != "handled"} == {}
        assert {each.row for each in opening if each.alerts_before_arrival != 1} == set()
        assert {each.row: each.end for each in others if each.end != "ignored: person_without_visit"} == {}
        assert {each.row for each in others if each.alerts_before_arrival} == set()
        found = [each for each in played.planted if played.alerts[each.child.nhs_number] == 1]
        print(f"{len(opening)} open a visit, {len(others)} do not, found {len(found)} of {len(played.planted)}")
        assert len(found) == len(played.planted)
        assert sum(played.alerts.values()) == len(played.planted)

    def test_the_ledger_balances(played: Played) -> None:
        assert played.books.problems == []
        assert played.books.acknowledged_by_sender == played.acknowledged
        assert played.books.log_records == sum(played.books.handled.values()) >= played.acknowledged
        assert played.books.alerts_received == len(played.planted)
        print(played.books)


def _same_name(read: PersonName, name: tuple[str, str]) -> bool:
    return (read.family, read.given[: len(name[1])]) == name
