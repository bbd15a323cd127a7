"""docs/reference/what-raises-a-message.md, played row by row: exactly these messages to exactly these recipients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from broker.deliveries import ALERT_UPDATED
from broker.domain.alerts import DUTY_DESK
from broker.domain.course import VisitState
from broker.domain.notices import ALIVE, LEFT_AFTER_ALL, RULES, STILL_HERE
from broker.storage import alerts, outbox
from broker.storage.tables import Delivery, table
from schemas.identifiers import authority_owner
from tests.bundles import (
    MOTHERS_NUMBER,
    NHS_NUMBER,
    V2_EVENTS,
    Element,
    encode,
    make_bundle,
    make_encounter,
    make_header,
    make_identifier,
    make_organisation,
    make_patient,
)
from tests.house.reference import read_code, read_rows
from tests.world import CASEY, World, hl7, open_world

PAGE = "docs/reference/what-raises-a-message.md"
NIGHT = datetime(2026, 2, 14, 3, 7)  # noqa: DTZ001 - HL7 v2 writes local time
CHILD = CASEY.replace("9990000018", NHS_NUMBER)
ALMA = f"L2,{MOTHERS_NUMBER},Tester,Alma,2014-05-06,ZZ99 1AA,child_protection_plan,2026-01-10,,W7,East"

BOTH_AUTHORITIES = ("topic:authority:706", "topic:authority:707", "webhook:authority:706")
"""Both list the child, and 707 has no webhook."""
THE_WRONG_ONE = ("topic:authority:706", "webhook:authority:706")
THE_RIGHT_ONE = ("topic:authority:707",)
THE_DEPARTMENT = ("hl7v2_reply:organisation:RZ1", "topic:organisation:RZ1")

Sent = list[tuple[str, str]]
"""Lane and kind of each thing put in the outbox, sorted."""


def v2(event: str, minute: float, *, disposition: str = "", site: str = "", more: str = "", **person: Any) -> bytes:
    """One HL7 v2 message of the visit, ``minute`` after the child came."""
    message = hl7(event, at=NIGHT + timedelta(minutes=minute), **{"nhs_number": NHS_NUMBER, **person})
    lines = message.decode().rstrip("\r").split("\r")
    for number, line in enumerate(lines):
        fields = line.split("|")
        if fields[0] == "PV1":
            fields[36] = disposition
            fields[3] = f"ED^^^{site}" if site else fields[3]
            lines[number] = "|".join(fields)
    return "\r".join([*lines, *([more] if more else [])]).encode() + b"\r"


def dead(event: str, minute: float, word: str = "Y") -> bytes:
    """The same with PID-30, which says whether the person has died."""
    lines = v2(event, minute).decode().split("\r")
    fields = lines[2].split("|")
    fields[30] = word
    lines[2] = "|".join(fields)
    return "\r".join(lines).encode()


def fhir(
    minute: int,
    status: str,
    *,
    event: str = "",
    disposition: str = "",
    site: str = "",
    patient: Element | None = None,
    class_: str = "EMER",
) -> bytes:
    """One FHIR message of the visit."""
    coding = {"system": V2_EVENTS, "code": event} if event else None
    header = make_header(id=f"m{minute}-{status}", eventCoding=coding)
    encounter: Element = {"class": {"code": class_}}
    if disposition:
        encounter["hospitalization"] = {"dischargeDisposition": {"coding": [{"code": disposition}]}}
    if site:
        ods = {"system": "https://fhir.nhs.uk/Id/ods-site-code", "value": site}
        encounter["location"] = [{"location": {"identifier": ods, "display": "ED"}, "status": "active"}]
    visit = make_encounter(status=status, **encounter)
    message = make_bundle(header, visit, make_patient(**(patient or {})), make_organisation())
    return encode({**message, "timestamp": f"2026-02-14T03:{7 + minute:02}:00+00:00"})


CAME: dict[str, bytes] = {
    "hl7": v2("A04", 0, site="RZ101"),
    "fhir": fhir(0, "arrived", site="RZ101"),
}


@dataclass(frozen=True)
class Turn:
    """Messages that come after the alert, and what of them is told."""

    name: str
    came: str
    """By which standard, of ``CAME``."""
    messages: Sequence[bytes]
    told: Sequence[VisitState] = ()
    """The rows of the table that are raised, in order."""


LEFT, ADMITTED, TRANSFERRED = VisitState.LEFT_BEFORE_TREATMENT, VisitState.ADMITTED, VisitState.TRANSFERRED
DIED, CANCELLED, HERE = VisitState.DIED, VisitState.CANCELLED, VisitState.HERE
LEFT_AFTER = VisitState.LEFT

TURNS = [
    Turn("left A03", "hl7", [v2("A03", 9, disposition="12")], [LEFT]),
    Turn("left FHIR", "fhir", [fhir(9, "finished", disposition="aadvice")], [LEFT]),
    Turn(
        "was treated FHIR",
        "fhir",
        [fhir(9, "finished", disposition="aadvice"), fhir(12, "finished", disposition="home")],
        [LEFT, LEFT_AFTER],
    ),
    Turn(
        "ward entered in error FHIR",
        "fhir",
        [fhir(9, "in-progress", class_="IMP"), fhir(12, "entered-in-error", class_="IMP")],
        [ADMITTED, CANCELLED],
    ),
    Turn(
        "not admitted FHIR",
        "fhir",
        [fhir(9, "in-progress", class_="IMP"), fhir(12, "in-progress", event="A11")],
        [ADMITTED, HERE],
    ),
    Turn("cancelled twice", "hl7", [v2("A06", 9), v2("A11", 12), v2("A11", 12)], [ADMITTED, HERE]),
    Turn("admitted A06", "hl7", [v2("A06", 9)], [ADMITTED]),
    Turn("admitted A03", "hl7", [v2("A03", 9, disposition="1")], [ADMITTED]),
    Turn("admitted FHIR", "fhir", [fhir(9, "in-progress", class_="IMP")], [ADMITTED]),
    Turn("transferred A02", "hl7", [v2("A02", 9, site="RZ102")], [TRANSFERRED]),
    Turn("transferred A03", "hl7", [v2("A03", 9, disposition="7")], [TRANSFERRED]),
    Turn("transferred FHIR", "fhir", [fhir(9, "finished", disposition="other-hcf")], [TRANSFERRED]),
    Turn("moved FHIR", "fhir", [fhir(9, "in-progress", event="A02", site="RZ102")], [TRANSFERRED]),
    Turn("died A08", "hl7", [dead("A08", 9)], [DIED]),
    Turn("died A03", "hl7", [v2("A03", 9, disposition="10")], [DIED]),
    Turn("died FHIR", "fhir", [fhir(9, "finished", patient={"deceasedBoolean": True})], [DIED]),
    Turn("cancelled A11", "hl7", [v2("A11", 9)], [CANCELLED]),
    Turn("cancelled FHIR", "fhir", [fhir(9, "entered-in-error")], [CANCELLED]),
    Turn("back A13", "hl7", [v2("A03", 9, disposition="12"), v2("A13", 12)], [LEFT, HERE]),
    Turn("back A04", "hl7", [v2("A03", 9, disposition="12"), v2("A04", 12)], [LEFT, HERE]),
    Turn("back A12", "hl7", [v2("A02", 9, site="RZ102"), v2("A12", 12)], [TRANSFERRED, HERE]),
    Turn("alive", "hl7", [dead("A08", 9), dead("A08", 12, "N")], [DIED, HERE]),
    Turn("alive and gone", "hl7", [v2("A03", 5), dead("A08", 9), dead("A08", 12, "N")], [DIED, LEFT_AFTER]),
    Turn("alive on a ward", "hl7", [v2("A06", 5), dead("A08", 9), dead("A08", 12, "N")], [ADMITTED, DIED, ADMITTED]),
    Turn("was treated", "hl7", [v2("A03", 9, disposition="12"), v2("A08", 12, disposition="3")], [LEFT, LEFT_AFTER]),
    Turn("cancelled, and left", "hl7", [v2("A11", 9), v2("A03", 12)], [CANCELLED, LEFT_AFTER]),
    Turn("not admitted", "hl7", [v2("A06", 9), v2("A11", 12), v2("A03", 15)], [ADMITTED, HERE]),
    Turn("not cancelled", "hl7", [v2("A11", 9), v2("A04", 12)], [CANCELLED, HERE]),
    Turn(
        "back FHIR",
        "fhir",
        [fhir(9, "finished", disposition="aadvice"), fhir(12, "in-progress", event="A13")],
        [LEFT, HERE],
    ),
    Turn("returned FHIR", "fhir", [fhir(9, "finished", disposition="aadvice"), fhir(12, "arrived")], [LEFT, HERE]),
    # Told once, and each turn for itself.
    Turn("left twice", "hl7", [v2("A03", 9, disposition="12"), v2("A08", 12, disposition="13")], [LEFT]),
    Turn("admitted, then died", "hl7", [v2("A06", 9), dead("A03", 12)], [ADMITTED, DIED]),
    # Quiet: it stands in the thread, and nobody is sent anything.
    Turn("updated", "hl7", [v2("A08", 9, complaint="Fracture"), v2("A31", 10, visit="")]),
    Turn("updated FHIR", "fhir", [fhir(9, "in-progress"), fhir(10, "onleave")]),
    Turn("discharged", "hl7", [v2("A03", 9)]),
    Turn("discharged FHIR", "fhir", [fhir(9, "finished", disposition="home")]),
    Turn("discharge undone", "hl7", [v2("A03", 9), v2("A13", 12)]),
    Turn("moved within the site", "hl7", [v2("A02", 9, site="RZ101")]),
    Turn("planned", "hl7", [v2("A16", 9), v2("A25", 10), v2("A15", 11), v2("A26", 12)]),
    Turn("on leave", "hl7", [v2("A21", 9), v2("A22", 12)]),
]


@pytest.mark.parametrize("came", CAME)
async def test_a_turn_of_the_visit_tells_every_authority_that_was_alerted_and_nobody_else(
    sqlite_url: str, tmp_path: Path, came: str
) -> None:
    async with open_world(sqlite_url, tmp_path, topics_enabled=True, inline=True) as world:
        await list_with_both(world)
        for turn in TURNS:
            if turn.came == came:
                await play_turn(world, turn)


def test_every_row_of_the_table_is_played_from_both_standards() -> None:
    listed = {read_code(row[0])[0] for row in read_rows(PAGE, "The visit takes a turn")}
    for came in CAME:
        assert {state.value for turn in TURNS if turn.came == came for state in turn.told} == listed
    corrections = {row[0].split("(")[0].strip() for row in read_rows(PAGE, "Somebody turns out to be another")}
    assert {correction.row for correction in CORRECTIONS} == corrections


async def play_turn(world: World, turn: Turn) -> None:
    """The child, whom both authorities list, comes as a patient of its own number; then the turn."""
    arrival, *messages = of_patient(TURNS.index(turn), CAME[turn.came], *turn.messages)
    known = {each.alert.alert_id for code in ("706", "707") for each in await world.alerts(code)}
    await world.receive(arrival)
    before, replied = await outbox_ids(world), len(await world.replies())
    for message in messages:
        world.clock.advance(timedelta(seconds=1))
        await world.receive(message)

    sent = sorted((lane, "alert.updated") for lane in BOTH_AUTHORITIES for _ in turn.told)
    assert await put_since(world, before) == sent, turn.name
    assert len(await world.replies()) == replied, "the department is told nothing of its own turns"
    rules = [RULES.get(state, LEFT_AFTER_ALL if state is LEFT_AFTER else STILL_HERE) for state in turn.told]
    after_death = {after for before, after in pairwise(turn.told) if before is DIED}
    words = {
        (rule.kind, ALIVE + rule.words if state in after_death else rule.words)
        for state, rule in zip(turn.told, rules, strict=True)
    }
    if ADMITTED in after_death:
        words.add((RULES[ADMITTED].kind, RULES[ADMITTED].words))  # told before and after
    for authority in ("706", "707"):
        [alert] = [each for each in await world.alerts(authority) if each.alert.alert_id not in known]
        async with world.database.reading() as connection:
            told = await alerts.load_notices(connection, alert.alert.alert_id)
            unsent = await outbox.list_unsent(connection, world.keyring, [alert.alert.alert_id])
        assert sorted((notice.kind, notice.is_urgent) for notice in told) == sorted(
            (rule.kind, rule.is_urgent) for rule in rules
        ), turn.name
        said = [json.loads(each.content) for each in unsent if each.event_type == ALERT_UPDATED]
        assert {(each["kind"], each["words"]) for each in said} == words
        assert {(each["authority"], each["alert_id"]) for each in said} <= {(authority, alert.alert.alert_id)}
        assert (alert.held_by == DUTY_DESK) == any(rule.is_urgent for rule in rules), turn.name


def of_patient(number: int, *messages: bytes) -> list[bytes]:
    """The messages under another number of the patient and of the visit."""
    visit, patient = f"V{number + 100}".encode(), f"K{number + 100}".encode()
    return [
        each.replace(b"K12345", patient).replace(b"|V1^", b"|" + visit + b"^").replace(b"V778812", visit)
        for each in messages
    ]


@pytest.mark.parametrize("world_url", ["postgres"], indirect=True)
async def test_a_turn_on_postgres_too(world_url: str, tmp_path: Path) -> None:
    async with open_world(world_url, tmp_path, topics_enabled=True) as world:
        await list_with_both(world)
        await play_turn(world, next(turn for turn in TURNS if turn.name == "back A13"))


async def test_what_somebody_has_acknowledged_is_told_without_urgency(sqlite_url: str, tmp_path: Path) -> None:
    async with open_world(sqlite_url, tmp_path, inline=True) as world:
        await list_with_both(world)
        await world.receive(CAME["hl7"])
        [alert] = await world.alerts()
        async with world.database.writing() as connection:
            owner, by = authority_owner("706"), "ash@706.example.org"
            await alerts.acknowledge_alert(connection, owner, alert.alert.alert_id, by=by, now=world.clock.now())
        await world.receive(v2("A03", 9, disposition="12"))
        urgent = {}
        for authority in ("706", "707"):
            [alert] = await world.alerts(authority)
            async with world.database.reading() as connection:
                [notice] = await alerts.load_notices(connection, alert.alert.alert_id)
            urgent[authority] = (notice.is_urgent, alert.held_by == DUTY_DESK)
        assert urgent == {"706": (False, False), "707": (True, True)}


@pytest.mark.parametrize("state", RULES, ids=lambda state: state.value)
async def test_an_alert_raised_after_the_turn_says_so_in_its_reason_instead(
    sqlite_url: str, tmp_path: Path, state: VisitState
) -> None:
    turn = next(turn for turn in TURNS if turn.came == "hl7" and list(turn.told) == [state])
    async with open_world(sqlite_url, tmp_path, topics_enabled=True, inline=True) as world:
        await world.receive(CAME["hl7"], *turn.messages)
        before = await outbox_ids(world)
        await world.list_children(CHILD)
        await world.run_jobs()
        sent = [each for each in await put_since(world, before) if each[1].startswith("alert")]
        assert sent == [(lane, "alert.raised") for lane in THE_WRONG_ONE]
        [alert] = await world.alerts()
        assert RULES[state].words in alert.alert.reason
        assert alert.alert.late


@dataclass(frozen=True)
class Correction:
    """Messages by which somebody turns out to be another, and all that follows."""

    name: str
    row: str
    """The row of the table, up to a bracket."""
    came: Sequence[bytes]
    messages: Sequence[bytes]
    sent: Sent
    rule: str | None = None
    """By which the first alert is withdrawn."""
    reply: str = ""
    """How the newest reply begins."""
    reviews: int = 0


UNKNOWN: dict[str, Any] = {"nhs_number": "", "family": "UNKNOWN", "given": "FEMALE", "birth_date": None}
ALMA_SAYS: dict[str, Any] = {"nhs_number": MOTHERS_NUMBER, "given": "ALMA", "birth_date": date(2014, 5, 6)}
NAMELESS: Element = {"name": None, "birthDate": None}
FOUND = sorted([(lane, "alert.raised") for lane in THE_WRONG_ONE] + [(lane, "reply.given") for lane in THE_DEPARTMENT])
GONE = sorted(
    [(lane, "alert.withdrawn") for lane in THE_WRONG_ONE] + [(lane, "reply.given") for lane in THE_DEPARTMENT]
)
ANOTHER = sorted([*GONE, *[(lane, "alert.raised") for lane in THE_RIGHT_ONE]])
SECOND = [(lane, "alert.withdrawn") for lane in THE_WRONG_ONE]


def local(value: str) -> Element:
    """An identifier of the department's own."""
    return {"system": "https://rz1.example.org/mrn", "value": value, "type": {"coding": [{"code": "MR"}]}}


def numbered(number: str) -> list[Element]:
    """The identifiers of the child under another NHS number."""
    return [make_identifier(number), local("K12345")]


FOUND_ROW, OTHER_ROW = "a number, or a merge, finds a listed child", "another number than the alert rested on"
JOINED_ROW, NAMES_ROW = "two visits are one", "other names or another birthday under the same number"
ALMA_FHIR: Element = {
    "identifier": numbered(MOTHERS_NUMBER),
    "name": [{"family": "Tester", "given": ["Alma"]}],
    "birthDate": "2014-05-06",
}
WENDY: Element = {"name": [{"family": "Wholly", "given": ["Wendy"]}], "birthDate": "2012-11-30"}
MERGED = v2("A40", 9, visit="", more="MRG|U77^^^RZ1^MR")

CORRECTIONS = [
    Correction(
        "number A08", FOUND_ROW, [v2("A04", 0, **UNKNOWN)], [v2("A08", 9)], FOUND, reply="Identity corrected at 03:16"
    ),
    Correction(
        "number A31",
        FOUND_ROW,
        [v2("A04", 0, **UNKNOWN)],
        [v2("A31", 9, visit="")],
        FOUND,
        reply="Identity corrected at 03:16",
    ),
    Correction(
        "number FHIR",
        FOUND_ROW,
        [fhir(0, "arrived", patient={"identifier": [local("K12345")], **NAMELESS})],
        [fhir(9, "in-progress")],
        FOUND,
        reply="Identity corrected at 03:16",
    ),
    Correction(
        "merge A40",
        FOUND_ROW,
        [v2("A04", 0, patient="U77", **UNKNOWN)],
        [MERGED],
        FOUND,
        reply="Identity corrected at 03:16",
    ),
    Correction(
        "merge FHIR",
        FOUND_ROW,
        [fhir(0, "arrived", patient={"identifier": [local("U77")], **NAMELESS})],
        [fhir(9, "in-progress", patient={"link": [{"other": {"identifier": local("U77")}, "type": "replaces"}]})],
        FOUND,
        reply="Identity corrected at 03:16",
    ),
    Correction(
        "other number A08",
        OTHER_ROW,
        [v2("A04", 0)],
        [v2("A08", 9, **ALMA_SAYS)],
        ANOTHER,
        "identity_corrected",
        "Correction",
    ),
    Correction(
        "other number FHIR",
        OTHER_ROW,
        [fhir(0, "arrived")],
        [fhir(9, "in-progress", patient=ALMA_FHIR)],
        ANOTHER,
        "identity_corrected",
        "Correction",
    ),
    Correction(
        "merge undone A37",
        "a merge is undone",
        [v2("A04", 0, patient="U77", **UNKNOWN), MERGED],
        [v2("A37", 19, visit="", more="PID|2||U77^^^RZ1^MR||UNKNOWN^FEMALE")],
        GONE,
        "identity_corrected",
        "Correction",
    ),
    Correction(
        "another's visit A45",
        "a visit was another patient's",
        [v2("A04", 0)],
        [v2("A45", 9, patient="K2", more="MRG|K12345^^^RZ1^MR||||V1^^^VISITID", **ALMA_SAYS)],
        ANOTHER,
        "identity_corrected",
        "Correction",
    ),
    *(
        Correction(
            f"joined {event}",
            JOINED_ROW,
            [v2("A04", 0), v2("A04", 1, visit="V2")],
            [v2(event, 9, more=f"MRG|K12345^^^RZ1^MR||||{former}^^^VISITID")],
            SECOND,
            "visits_joined",
        )
        for event, former in (("A42", "V2"), ("A50", "V2"), ("A45", "V2"))
    ),
    Correction(
        "joined A40", JOINED_ROW, [v2("A04", 0), v2("A04", 1, patient="U77")], [MERGED], SECOND, "visits_joined"
    ),
    Correction(
        "other names A08",
        NAMES_ROW,
        [v2("A04", 0)],
        [v2("A08", 9, family="WHOLLY", given="WENDY", birth_date=date(2012, 11, 30))],
        [],
        reviews=1,
    ),
    Correction(
        "other names FHIR", NAMES_ROW, [fhir(0, "arrived")], [fhir(9, "in-progress", patient=WENDY)], [], reviews=1
    ),
]


@pytest.mark.parametrize("correction", CORRECTIONS, ids=lambda correction: correction.name)
async def test_who_turns_out_to_be_another_is_told_to_whom_it_concerns(
    sqlite_url: str, tmp_path: Path, correction: Correction
) -> None:
    async with open_world(sqlite_url, tmp_path, topics_enabled=True, inline=True) as world:
        await play_correction(world, correction)


@pytest.mark.parametrize("world_url", ["postgres"], indirect=True)
async def test_a_corrected_number_on_postgres_too(world_url: str, tmp_path: Path) -> None:
    async with open_world(world_url, tmp_path, topics_enabled=True) as world:
        await play_correction(world, next(each for each in CORRECTIONS if each.rule == "identity_corrected"))


async def play_correction(world: World, correction: Correction) -> None:
    """706 lists Casey, 707 lists Alma; somebody comes, and turns out to be another."""
    await world.list_children(CHILD)
    await world.list_children(ALMA, authority="707")
    for message in correction.came:
        await world.receive(message)
    before, replied = await outbox_ids(world), len(await world.replies())
    world.clock.advance(timedelta(minutes=9))
    for message in correction.messages:
        await world.receive(message)

    assert await put_since(world, before) == sorted(correction.sent)
    rules = {each.withdrawn_rule for each in await world.alerts() if each.withdrawn_rule}
    assert rules == ({correction.rule} if correction.rule else set())
    newest = (await world.replies())[: len(await world.replies()) - replied]
    assert [reply.wording.startswith(correction.reply) for reply in newest] == ([True] if correction.reply else [])
    assert len(await world.reviews()) == correction.reviews
    if "alert.raised" in {kind for _, kind in correction.sent}:
        raised = [each for code in ("706", "707") for each in await world.alerts(code) if each.withdrawn_at is None]
        [alert] = raised
        assert alert.alert.late
        assert alert.alert.identity_corrected_at == datetime(2026, 2, 14, 3, 16, tzinfo=UTC)
        assert "Identity corrected at 03:16" in alert.alert.reason


async def list_with_both(world: World) -> None:
    """The child is on both authorities' lists."""
    await world.list_children(CHILD)
    await world.list_children(CHILD.replace(",W1,North", ",W7,East"), authority="707")


async def outbox_ids(world: World) -> set[str]:
    """What is in the outbox."""
    async with world.database.reading() as connection:
        return set((await connection.execute(select(table(Delivery).c.id))).scalars())


async def put_since(world: World, before: set[str]) -> Sent:
    """What was put in the outbox since."""
    columns = table(Delivery).c
    async with world.database.reading() as connection:
        rows = (await connection.execute(select(columns.id, columns.lane, columns.event_type))).all()
    return sorted(
        (row.lane, row.event_type.removeprefix("uk.cpis-broker.").removesuffix(".v1"))
        for row in rows
        if row.id not in before
    )
