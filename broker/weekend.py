"""From Saturday night to Monday morning, as the demonstration tells it: a police force, its schools, and the bell.

What takes a weekend is squeezed into the night before the last bell: for the schools that read late or never it was
rung already when the force tells, and the others are closed until tomorrow. All else is as it would be: the force posts
its incidents to the door, the schools' leads sign in to the pages, and what is told here was read from the force's and
the schools' journals and from the database.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Final

import httpx
from sqlalchemy import func, select

from broker import bootstrap
from broker.clock import SystemClock
from broker.directory_upload import DirectoryUpload
from broker.domain.visits import LONDON
from broker.settings import Settings
from broker.storage.tables import EncompassTask, HandledPosition, ItemState, NoticeRow, table
from broker.story import DemoFailed, Evening, find_text, read_csv
from broker.topics import INCIDENTS
from schemas.encompass import LawfulGateway, NoticeState, TaskKind

_BELL: Final = time(8, 35)
"""A quarter of an hour before the day begins at ten to nine."""
_NIGHT_BEGAN, _NIGHT_ENDED = timedelta(hours=14), timedelta(hours=2)
_LATER: Final = {
    "correction": ("correction", "corrections"),
    "update": ("update", "updates"),
    "withdrawal": ("withdrawal", "withdrawals"),
    "again": ("message sent twice", "messages sent twice"),
}
_READS_IN_TIME: Final = "900003"
_CONCERN: Final = "697950003"
"""Suspected victim of domestic abuse (SNOMED CT)."""
_SCHOOL_AGE_DAYS: Final = (6 * 366, 15 * 365)
_FORM: Final = r'name="form_token" value="([^"]+)"'
_RELEASE: Final = r'action="(/hub/tasks/[0-9a-f]+/release)"'
_TASKS: Final = {
    TaskKind.LOOK_UP.value: "to find a child's school",
    TaskKind.TELL_OFFICER.value: "to see to a child without a school",
    TaskKind.NO_ROUTE.value: "to ring a school where nobody may be told by the broker",
    TaskKind.RING_SCHOOL.value: "to ring a school where nobody has acknowledged",
    TaskKind.RELEASE.value: "to release an incident",
    TaskKind.CONFLICT.value: "to look at a surname that a school's lead shares with an adult of the incident",
}


def last_bell(now: datetime) -> datetime:
    """The newest bell that has rung, whatever day it is: it is Monday for those of the story."""
    today = now.astimezone(LONDON)
    bell_at = datetime.combine(today.date(), _BELL, LONDON)
    return bell_at if bell_at < now else datetime.combine(today.date() - timedelta(days=1), _BELL, LONDON)


def play_weekend(evening: Evening) -> None:
    """Tell all of it."""
    accepted = _tell_police(evening)
    _wait_until_handled(evening, accepted)
    read = _read_in_time(evening)
    _ring_at_the_bell(evening)
    _read_late(evening, read)
    _tell_hub(evening)


def _tell_police(evening: Evening) -> int:
    evening.open_chapter(
        "Saturday night: the police",
        "Operation Encompass: a school has to know before the first bell. A force posts its night: children at several "
        "schools, at home, of no known school; corrections; a refuge; a covert investigation.",
    )
    first, last = evening.bell_at - _NIGHT_BEGAN, evening.bell_at - _NIGHT_ENDED
    journal = evening.directory / "force.jsonl"
    seed = ("--seed", str(evening.seed), "--first", first.isoformat(), "--last", last.isoformat())
    _call(evening, "mock_nhs.police", *seed, "--record", str(journal))
    told = {line["kind"]: line["count"] for line in evening.journal("force") if line["what"] == "told"}
    [answered] = [line for line in evening.journal("force") if line["what"] == "answered"]
    if answered["accepted"] != answered["all"]:
        raise DemoFailed(f"not every message of the force was accepted; see {journal}")
    words = [f"{told['incident']} incidents"]
    words += [f"{count} {_LATER[kind][count > 1]}" for kind, count in told.items() if kind in _LATER and count]
    evening.tell(f"{', '.join(words)}: all answered 202, kept and not yet handled.")
    return int(answered["accepted"])


def _wait_until_handled(evening: Evening, count: int) -> None:
    evening.wait_for("the handling of the night", lambda: _ask(evening.settings, _count_handled) >= count)
    evening.wait_for(
        "the sending of the notices", lambda: not _ask(evening.settings, _count_notices)[NoticeState.WAITING.value]
    )
    counted = _ask(evening.settings, _count_notices)
    evening.tell(
        f"{counted.total()} notices, one for each school of each incident, of its own children only; "
        f"{counted[NoticeState.HELD.value]} held back, {counted[NoticeState.WITHDRAWN.value]} taken back."
    )
    for kind, number in sorted(_ask(evening.settings, _count_tasks).items()):
        if kind in _TASKS and kind != TaskKind.RING_SCHOOL.value:
            evening.tell(f"A person is asked {_TASKS[kind]}: {'once' if number == 1 else f'{number} times'}.")


def _read_in_time(evening: Evening) -> int:
    evening.open_chapter(
        "Ten to eight: the schools that read in time", "Their safeguarding leads sign in and acknowledge what waits."
    )
    return _read(evening, "on_time")


def _ring_at_the_bell(evening: Evening) -> None:
    evening.open_chapter("The bell", "Some schools have not read. The authority's officer gets their office's number.")
    rung = evening.wait_for(
        "a task to ring a school",
        lambda: _ask(evening.settings, _count_tasks).get(TaskKind.RING_SCHOOL.value),
    )
    evening.tell(f"[bold]{rung} calls to make[/bold]: nobody at those schools had acknowledged by the bell.")


def _read_late(evening: Evening, read: int) -> None:
    evening.open_chapter("After the bell", "One school reads late. Another never does.")
    read += _read(evening, "late")
    evening.wait_for(
        "the end of a call", lambda: _ask(evening.settings, _count_notices)[NoticeState.ACKNOWLEDGED.value] >= read
    )
    left = _ask(evening.settings, _count_tasks).get(TaskKind.RING_SCHOOL.value, 0)
    evening.tell(f"{left} calls are left: only a person who acknowledges, or one who rang, ends them.")


def _tell_hub(evening: Evening) -> None:
    """A department's code makes an item that is held: a named person of the hub sees it, and lets the school know."""
    child = _find_unlisted(evening)
    school = next(row for row in read_csv(evening.directory / "town" / "schools.csv") if row["urn"] == _READS_IN_TIME)
    name = f"{child['given_name']} {child['family_name']}"
    evening.open_chapter(
        "Monday: the authority's hub",
        f"{name} attends, and the department writes that there is domestic abuse at home. No school is told of it "
        "unless a named person of the authority lets it go.",
    )
    columns = ("family_name", "given_name", "birth_date")
    values = ",".join(child[column] for column in columns)
    pupil = f"authority,pupil_id,{','.join(columns)},urns\n{school['authority']},P1,{values},{school['urn']}\n"
    asyncio.run(_load_pupil(evening.settings, pupil.encode()))
    before = _ask(evening.settings, _count_notices)
    evening.wish("register", nhs_number=child["nhs_number"], concern=_CONCERN)
    held = _ask_until(evening, "the item for the hub", NoticeState.HELD, before)
    if held[NoticeState.SENT.value] != before[NoticeState.SENT.value]:
        raise DemoFailed("a school was told of an attendance that nobody had released")
    evening.tell(f"Held for the hub of authority {school['authority']}; {school['name']} is told nothing.")
    _release(evening, f"hub@{school['authority']}.example.org")
    _ask_until(evening, "the notice that was released", NoticeState.SENT, before)
    evening.tell(
        "Released by a person, with a reason and what in law allows it. The school learns the child's name only."
    )
    _read(evening, "on_time")


def _ask_until(evening: Evening, what: str, state: NoticeState, before: Counter[str]) -> Counter[str]:
    """The notices by state, once there is one more in this state than before."""

    def find() -> Counter[str] | None:
        counted: Counter[str] = _ask(evening.settings, _count_notices)
        return counted if counted[state.value] > before[state.value] else None

    counted: Counter[str] = evening.wait_for(what, find)
    return counted


def _find_unlisted(evening: Evening) -> Mapping[str, str]:
    """A child of school age who is on no list."""
    listed, today = {row["nhs_number"] for row in evening.listings}, SystemClock().now().date()
    return next(
        row
        for number, row in reversed(evening.people.items())
        if number not in listed
        and not row["resembles"]
        and _SCHOOL_AGE_DAYS[0] < (today - date.fromisoformat(row["birth_date"])).days < _SCHOOL_AGE_DAYS[1]
    )


async def _load_pupil(settings: Settings, file: bytes) -> None:
    database = bootstrap.open_database(settings)
    try:
        keyring = bootstrap.load_keyring(settings)
        upload = DirectoryUpload(database, keyring, SystemClock(), demo_passwords=True, actor="demo", dry_run=False)
        if (await upload.load_pupils(file)).refused:
            raise DemoFailed("the list of pupils was refused")
    finally:
        await database.close()


def _release(evening: Evening, login: str) -> None:
    """The hub's officer signs in as anybody would, and lets the first one go."""
    with httpx.Client(base_url=evening.url, follow_redirects=True, timeout=10) as browser:
        token = find_text(_FORM, browser.get("/sign-in").text)
        [password] = {row["password"] for row in _people(evening) if row["login"] == login}
        browser.post("/sign-in", data={"login": login, "password": password, "form_token": token})
        page = browser.get("/hub").text
        path, token = find_text(_RELEASE, page), find_text(_FORM, page)
        answer = {
            "form_token": token,
            "gateway": LawfulGateway.SAFEGUARDING_DUTY.value,
            "reason": "To watch over them.",
        }
        browser.post(path, data=answer).raise_for_status()


def _people(evening: Evening) -> list[dict[str, str]]:
    return read_csv(evening.directory / "town" / "encompass-people.csv")


def _read(evening: Evening, habit: str) -> int:
    before = len(evening.journal("schools"))
    record = str(evening.directory / "schools.jsonl")
    _call(evening, "mock_nhs.schools", "read", "--habit", habit, "--record", record)
    lines = evening.journal("schools")[before:]
    for line in lines:
        evening.tell(f"{line['name']} acknowledges {_say(line['count'])}.")
    return sum(line["count"] for line in lines)


def _say(count: int) -> str:
    return "one notice" if count == 1 else f"{count} notices" if count else "nothing: it was told nothing"


def _call(evening: Evening, module: str, *arguments: str) -> None:
    town: Path = evening.directory / "town"
    command = [sys.executable, "-m", module, *arguments, "--dir", str(town), "--base", evening.url]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own programs
    if result.returncode != 0:
        raise DemoFailed(f"{module} ended with {result.returncode}: {result.stderr.strip()[-500:]}")


def _ask(settings: Settings, question: Any) -> Any:
    async def ask() -> Any:
        database = bootstrap.open_database(settings)
        try:
            async with database.reading() as connection:
                return await question(connection, settings)
        finally:
            await database.close()

    return asyncio.run(ask())


async def _count_handled(connection: Any, settings: Settings) -> int:
    positions = table(HandledPosition)
    topic = positions.c.topic == settings.name_on_log(INCIDENTS)
    return int((await connection.execute(select(func.count()).select_from(positions).where(topic))).scalar_one())


async def _count_notices(connection: Any, _: Settings) -> Counter[str]:
    notices = table(NoticeRow).c
    rows = await connection.execute(select(notices.state, func.count()).group_by(notices.state))
    return Counter(dict(rows.all()))


async def _count_tasks(connection: Any, _: Settings) -> Counter[str]:
    tasks = table(EncompassTask).c
    is_open = tasks.state == ItemState.OPEN.value
    rows = await connection.execute(select(tasks.kind, func.count()).where(is_open).group_by(tasks.kind))
    return Counter(dict(rows.all()))
