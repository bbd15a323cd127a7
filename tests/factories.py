"""Synthetic nouns, and ways to put them where the product keeps them. What is not said is made up plausibly."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import uvicorn
from argon2 import PasswordHasher
from starlette.types import ASGIApp

from broker.domain.alerts import DUTY_DESK, compose_alert, describe_attendance
from broker.domain.matching import Match, Unsure, match_child
from broker.domain.replies import summarise_lists, word_reply
from broker.keyring import Keyring, generate_key
from broker.settings import Environment, Settings
from broker.storage import alerts, logins, replies, reviews, visits
from broker.storage.alerts import NewAlert, alert_role, derive_alert_id
from broker.storage.database import Database
from broker.storage.replies import NewReply, derive_reply_id
from broker.storage.reviews import NewReview, ReviewContent, derive_review_id
from broker.storage.visits import derive_visit_id
from schemas.alert import ClinicianReply, ListedChild, PlanShown, ReplyOutcome, SocialCareAlert
from schemas.attendance import Attendance, Event, PersonName
from schemas.child_list import ChildListEntry, PlanType
from schemas.directory import Person, Role, Site
from schemas.identifiers import NhsNumber, OwnerId

NIGHT = datetime(2026, 2, 14, 3, 12, tzinfo=UTC)
"""A Saturday, in winter: London's time is UTC."""
PASSWORD = "synthetic-password"
CHEAP_HASHER = PasswordHasher(time_cost=1, memory_cost=8192)
"""As dear as the hashes of a demonstration."""


def make_nhs_number(serial: int) -> NhsNumber:
    """The ``serial``-th valid number of the 999 range, which is issued to nobody; at most about 900,000 of them."""
    base = 999_000_000 + serial + serial // 10
    for candidate in range(base, base + 10):
        digits = f"{candidate:09d}"
        check = (
            11 - sum(int(digit) * weight for digit, weight in zip(digits, range(10, 1, -1), strict=True)) % 11
        ) % 11
        if check < 10:
            return NhsNumber(f"{digits}{check}")
    raise AssertionError("ten numbers in a row without a check digit")


def make_settings(data_dir: Path, **changes: object) -> Settings:
    """Settings for a test: development, keys of its own, no ``.env`` read."""
    values: dict[str, object] = {
        "environment": Environment.DEVELOPMENT,
        "data_dir": data_dir,
        "field_keys": f"test:{generate_key()}",
        "index_key": generate_key(),
    }
    return Settings(_env_file=None, **(values | changes))  # type: ignore[call-arg,arg-type]


def make_attendance(**changes: object) -> Attendance:
    """An arrival at an emergency department at night."""
    values: dict[str, object] = {
        "sender": "RZ1",
        "control_id": "C1",
        "event": Event.REGISTERED,
        "message_at": NIGHT - timedelta(minutes=4),
        "event_at": NIGHT - timedelta(minutes=5),
        "nhs_number": make_nhs_number(1),
        "nhs_number_status": "01",
        "local_patient_id": "K12345",
        "names": (PersonName(family="TESTER", given="CASEY"),),
        "birth_date": date(2015, 3, 2),
        "visit_number": "V1",
        "department": "ED",
        "arrived_at": NIGHT - timedelta(minutes=5),
        "arrival_mode": "A",
        "complaint": "Fall from height",
    }
    return Attendance(**(values | changes))  # type: ignore[arg-type]


def make_entry(**changes: object) -> ChildListEntry:
    """A child protection plan of the child that ``make_attendance`` brings."""
    values: dict[str, object] = {
        "local_id": "L1",
        "nhs_number": make_nhs_number(1),
        "name": PersonName(family="Tester", given="Casey"),
        "birth_date": date(2015, 3, 2),
        "plan_type": PlanType.CHILD_PROTECTION,
        "start_on": date(2026, 1, 10),
        "allocated_worker": "W1",
    }
    return ChildListEntry(**(values | changes))  # type: ignore[arg-type]


def make_alert(
    facts: Attendance,
    entries: Sequence[ChildListEntry],
    *,
    alert_id: str = "0" * 32,
    authority: str = "706",
    site: Site | None = None,
    now: datetime = NIGHT,
    late: bool = False,
) -> SocialCareAlert:
    """The alert that the domain composes when every entry matches."""
    matched = []
    for entry in entries:
        judgement = match_child(facts, entry)
        assert isinstance(judgement, Match), "the entry does not match the attendance"
        matched.append((entry, judgement))
    return compose_alert(
        alert_id=alert_id, authority=authority, facts=facts, site=site, matched=matched, now=now, late=late
    )


def make_reply(
    facts: Attendance,
    outcome: ReplyOutcome,
    *,
    reply_id: str = "0" * 32,
    plans: tuple[PlanShown, ...] = (),
    authorities_told: tuple[str, ...] = (),
    now: datetime = NIGHT,
) -> ClinicianReply:
    """The reply to an attendance, in the domain's own words, when no list was ever uploaded."""
    lists = summarise_lists([], None, now, timedelta(hours=72))
    return ClinicianReply(
        reply_id=reply_id,
        organisation=facts.sender,
        in_answer_to=facts.control_id,
        visit_number=facts.visit_number,
        local_patient_id=facts.local_patient_id,
        replied_at=now,
        outcome=outcome,
        wording=word_reply(outcome, lists, now),
        plans=plans,
        authorities_told=authorities_told,
        lists=lists,
    )


def make_review_content(facts: Attendance, entry: ChildListEntry, *, site: Site | None = None) -> ReviewContent:
    """What is shown of a doubt that the domain has."""
    judgement = match_child(facts, entry)
    assert isinstance(judgement, Unsure), "the domain has no doubt"
    return ReviewContent(
        reason=judgement.reason,
        agrees=judgement.agrees,
        differs=judgement.differs,
        listed=ListedChild(
            local_id=entry.local_id,
            nhs_number=entry.nhs_number,
            family=entry.name.family,
            given=entry.name.given,
            birth_date=entry.birth_date,
        ),
        attendance=describe_attendance(facts, site),
        shown_names=tuple(f"{name.given} {name.family}".strip() for name in facts.names),
        shown_birth_date=facts.birth_date.isoformat() if facts.birth_date else None,
    )


async def store_visit(database: Database, keyring: Keyring, *said: Attendance, received_at: datetime = NIGHT) -> str:
    """Keep the messages of one visit; returns its id. The sender must be in the directory."""
    marked = [(keyring.marker(each.sender, each.control_id, b"synthetic"), each) for each in said]
    visit_id = derive_visit_id(keyring, said[0], marked[0][0])
    async with database.writing() as connection:
        threads = await visits.load_threads(connection, keyring, {visit_id: said[0]}, received_at)
        for marker, each in marked:
            threads[visit_id].add(marker, each)
        await visits.save_threads(connection, keyring, list(threads.values()), received_at)
    return visit_id


async def store_alert(
    database: Database,
    keyring: Keyring,
    facts: Attendance,
    *entries: ChildListEntry,
    authority: str = "706",
    site: Site | None = None,
    held_by: str = DUTY_DESK,
    now: datetime = NIGHT,
    due_in: timedelta = timedelta(minutes=15),
    late: bool = False,
) -> SocialCareAlert:
    """Keep a visit of one message and the alert it raises. Authority and sender must be in the directory."""
    visit_id = await store_visit(database, keyring, facts, received_at=now)
    alert_id = derive_alert_id(keyring, visit_id, authority)
    alert = make_alert(facts, entries, alert_id=alert_id, authority=authority, site=site, now=now, late=late)
    rests_on = tuple((f"{alert_id}-{number}", entry.allocated_worker) for number, entry in enumerate(entries))
    new = NewAlert(
        alert=alert,
        visit_id=visit_id,
        role=alert_role(0),
        held_by=held_by,
        due_by=now + due_in,
        entries=rests_on,
    )
    async with database.writing() as connection:
        await alerts.save_alerts(connection, keyring, [new])
    return alert


async def store_reply(
    database: Database,
    keyring: Keyring,
    facts: Attendance,
    outcome: ReplyOutcome,
    *,
    visit_id: str,
    plans: tuple[PlanShown, ...] = (),
    now: datetime = NIGHT,
) -> ClinicianReply:
    """Keep a reply to a visit that is kept already."""
    reply = make_reply(facts, outcome, reply_id=derive_reply_id(keyring, visit_id, outcome), plans=plans, now=now)
    async with database.writing() as connection:
        await replies.save_replies(connection, keyring, [NewReply(reply=reply, visit_id=visit_id)])
    return reply


async def store_review(
    database: Database,
    keyring: Keyring,
    facts: Attendance,
    entry: ChildListEntry,
    *,
    authority: str = "706",
    site: Site | None = None,
    held_by: str = DUTY_DESK,
    now: datetime = NIGHT,
) -> NewReview:
    """Keep a visit of one message and the doubt it leaves."""
    visit_id = await store_visit(database, keyring, facts, received_at=now)
    review = NewReview(
        id=derive_review_id(keyring, visit_id, entry.local_id),
        authority=authority,
        visit_id=visit_id,
        entry_id=entry.local_id,
        held_by=held_by,
        content=make_review_content(facts, entry, site=site),
        opened_at=now,
        due_by=now + timedelta(minutes=15),
    )
    async with database.writing() as connection:
        await reviews.save_reviews(connection, keyring, [review])
    return review


async def store_login(
    database: Database,
    keyring: Keyring,
    login: str,
    role: Role,
    owner: OwnerId,
    *,
    name: str = "",
    worker: str | None = None,
) -> Person:
    """Keep a login with PASSWORD. The owner must be in the directory."""
    person = Person(login=login, name=name or login.partition("@")[0].title(), role=role, owner=owner, worker=worker)
    async with database.writing() as connection:
        await logins.save_login(connection, keyring, person, CHEAP_HASHER.hash(PASSWORD))
    return person


@asynccontextmanager
async def serve_app(app: ASGIApp) -> AsyncIterator[str]:
    """Serve an application by uvicorn on loopback; gives its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # Whoever connects from now on waits for the server, so nothing need be polled.
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_config=None, server_header=False))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
