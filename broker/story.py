"""An evening in an emergency department, chapter by chapter, as the demonstration tells it.

The people are invented; everything else is real: the department is told what to send and sends it over its own links,
and what is told here was read from the journals of the department and of the authorities' case system.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import IO, Any, Final

import httpx
import msgspec
from rich.console import Console
from rich.padding import Padding

from broker import bootstrap
from broker.clock import SystemClock
from broker.list_upload import upload_children
from broker.liveness import read_statuses
from broker.settings import Settings

BACKGROUND_MESSAGES: Final = 120
ACKNOWLEDGED: Final = 3
ARRIVES_S: Final = 45.0
PLANS: Final = {
    "child_protection_plan": "is on a child protection plan",
    "looked_after_child": "is a looked-after child",
    "unborn_child_protection_plan": "is pregnant; her unborn child has a protection plan",
}


class DemoFailed(Exception):
    """Something did not happen; the text says what and where to look."""


class Evening(msgspec.Struct, frozen=True, kw_only=True):
    """What the story is told with."""

    directory: Path
    settings: Settings
    url: str
    console: Console
    wishes: IO[bytes]
    """What the department shall do."""
    done: IO[bytes]
    """What it says it did."""
    pause_s: float
    seed: int
    bell_at: datetime
    """When the first bell rings at the schools that do not read in time."""

    @property
    def people(self) -> dict[str, dict[str, str]]:
        """Everybody in the town, by NHS number."""
        return {row["nhs_number"]: row for row in read_csv(self.directory / "town" / "people.csv")}

    @property
    def listings(self) -> list[dict[str, str]]:
        """Every entry of every authority's list, with its authority."""
        return [
            {**row, "authority": path.stem.removeprefix("children-")}
            for path in sorted((self.directory / "town").glob("children-*.csv"))
            for row in read_csv(path)
        ]

    def open_chapter(self, title: str, *sentences: str) -> None:
        """A heading, what it is about, and a moment to read it."""
        self.console.print()
        self.console.rule(f"[bold]{title}", align="left")
        for sentence in sentences:
            self.console.print(sentence)
        time.sleep(self.pause_s)

    def tell(self, sentence: str) -> None:
        """Something that happened."""
        self.console.print(Padding(sentence, (0, 0, 0, 4)), soft_wrap=False)  # else the line is cut at the edge
        time.sleep(self.pause_s / 4)

    def wish(self, do: str, **facts: Any) -> str:
        """Have the department do something; returns the visit it belongs to."""
        self.wishes.write(json.dumps({"do": do, **facts}).encode() + b"\n")
        self.wishes.flush()
        answer = self.done.readline()
        while answer and not answer.startswith(b"{"):
            answer = self.done.readline()
        if not answer:
            raise DemoFailed(f"the department has ended; see {self.directory / 'department.log'}")
        return str(json.loads(answer)["visit"])

    def journal(self, name: str) -> list[Any]:
        """What the other side wrote down."""
        return read_journal(self.directory / f"{name}.jsonl")

    def wait_for(self, what: str, find: Callable[[], Any]) -> Any:
        """Wait until ``find`` finds something. Raises DemoFailed."""
        deadline = time.monotonic() + ARRIVES_S
        while time.monotonic() < deadline:
            if found := find():
                return found
            time.sleep(0.02)
        raise DemoFailed(f"{what} did not come within {ARRIVES_S:.0f} s; see the logs in {self.directory}")

    def find_reply(self, visit: str, outcome: str) -> Any:
        """The department's reply for a visit."""
        return self.wait_for(
            f"the reply for visit {visit}",
            lambda: next(
                (
                    line
                    for line in self.journal("department")
                    if line["what"] == "reply" and line["visit_number"] == visit and line["outcome"] == outcome
                ),
                None,
            ),
        )

    def wait_for_alerts(self, local_ids: Sequence[tuple[str, str]], already: int) -> float:
        """Until every (authority, local id) has one alert more than ``already``; when, in seconds since the epoch."""
        self.wait_for("an alert", lambda: self.count_alerts(local_ids) >= already + len(local_ids))
        return time.time()

    def count_alerts(self, local_ids: Sequence[tuple[str, str]]) -> int:
        """Alerts in the authorities' case system for these people."""
        wanted = set(local_ids)
        return sum(
            line["what"] == "alert" and (line["authority"], line["local_id"]) in wanted
            for line in self.journal("case-system")
        )


def play_evening(evening: Evening) -> None:
    """Tell all of it."""
    listed = _Cast(evening)
    _arrive(evening, listed.take("child_protection_plan"), by_fhir=False)
    visit = _arrive(evening, listed.take("looked_after_child"), by_fhir=True)
    _save_often(evening, visit)
    _arrive_pregnant(evening, listed.take("unborn_child_protection_plan"))
    _arrive_without_number(evening, listed.take("child_protection_plan"))
    _send_nonsense(evening)
    _kill_dispatcher(evening, listed.take("looked_after_child"))
    _list_later(evening)
    _acknowledge(evening)
    evening.open_chapter("The rest of the evening", f"{BACKGROUND_MESSAGES} more messages, a third of them by FHIR.")
    evening.wish("day", messages=BACKGROUND_MESSAGES)


class _Cast:
    """Who plays: listed people, each taken once."""

    def __init__(self, evening: Evening) -> None:
        today = SystemClock().now().date()
        self._people = evening.people
        self._free = [
            row for row in evening.listings if not row["end_date"] or date.fromisoformat(row["end_date"]) > today
        ]

    def take(self, plan_type: str) -> list[dict[str, str]]:
        """All entries of somebody whose first entry is such a plan."""
        first = next(row for row in self._free if row["plan_type"] == plan_type)
        entries = [row for row in self._free if row["nhs_number"] == first["nhs_number"]]
        self._free = [row for row in self._free if row["nhs_number"] != first["nhs_number"]]
        return entries


def _arrive(evening: Evening, entries: Sequence[Mapping[str, str]], *, by_fhir: bool) -> str:
    """A listed child comes: both are told."""
    child = entries[0]
    way = "a FHIR message to the broker's door" if by_fhir else "HL7 v2 over MLLP"
    name = f"{child['given_name']} {child['family_name']}"
    evening.open_chapter(
        f"{name} is brought in",
        f"{name} {PLANS[child['plan_type']]}. The registrar types the name; the department's system sends {way}.",
    )
    ids = _local_ids(entries)
    already, began = evening.count_alerts(ids), time.time()
    visit = evening.wish("register", nhs_number=child["nhs_number"], by_fhir=by_fhir)
    reply = evening.find_reply(visit, "match")
    evening.tell(f"[bold]after {_milliseconds(time.time() - began)} the clinician reads:[/bold] {reply['wording']}")
    told_at = evening.wait_for_alerts(ids, already)
    for authority, _ in ids:
        evening.tell(f"[bold]after {_milliseconds(told_at - began)} authority {authority} has the alert[/bold]")
    return visit


def _save_often(evening: Evening, visit: str) -> None:
    evening.open_chapter("The registrar saves twenty times", "Twenty updates of the same visit. Nobody is woken twice.")
    before = len(evening.journal("department"))
    evening.wish("update", visit=visit, times=20)
    evening.wait_for(
        "twenty answers",
        lambda: sum(line["what"] == "answered" for line in evening.journal("department")[before:]) >= 20,
    )
    evening.tell("Twenty answers, no further alert, no further reply.")


def _arrive_pregnant(evening: Evening, entries: Sequence[Mapping[str, str]]) -> None:
    mother = entries[0]
    _arrive(evening, entries, by_fhir=False)
    evening.open_chapter(
        "... and her baby is born",
        "The baby has no NHS number and is on no list. The department's message names the mother (PID-21).",
    )
    ids = _local_ids(entries)
    already, began = evening.count_alerts(ids), time.time()
    visit = evening.wish("newborn", mother=mother["nhs_number"])
    reply = evening.find_reply(visit, "match")
    evening.tell(f"[bold]the clinician reads:[/bold] {reply['wording']}")
    told_at = evening.wait_for_alerts(ids, already)
    evening.tell(f"[bold]after {_milliseconds(told_at - began)} the authority has an alert about the newborn[/bold]")


def _arrive_without_number(evening: Evening, entries: Sequence[Mapping[str, str]]) -> None:
    child = entries[0]
    evening.open_chapter(
        "Somebody without an NHS number",
        f"The name and the date of birth are those of {child['given_name']} {child['family_name']}, who is listed.",
    )
    already = evening.count_alerts(_local_ids(entries))
    visit = evening.wish("register", nhs_number=child["nhs_number"], identity="absent")
    reply = evening.find_reply(visit, "identity_to_be_checked")
    evening.tell(f"[bold]the clinician reads:[/bold] {reply['wording']}")
    assert evening.count_alerts(_local_ids(entries)) == already
    evening.tell("No alert: the authority's duty desk has a review with the reasons, and a time limit.")


def _send_nonsense(evening: Evening) -> None:
    evening.open_chapter("A message nobody can read", "It does not say who came (no PID segment).")
    visit = evening.wish("unreadable")
    answer = evening.wait_for(
        "an answer",
        lambda: next(
            (
                line
                for line in evening.journal("department")
                if line["what"] == "answered" and line["visit_number"] == visit
            ),
            None,
        ),
    )
    evening.tell(f"Answered {answer['code']}: it is kept, it is in quarantine, a person is told, and the feed goes on.")


def _kill_dispatcher(evening: Evening, entries: Sequence[Mapping[str, str]]) -> None:
    child = entries[0]
    name = f"{child['given_name']} {child['family_name']}"
    evening.open_chapter("The dispatcher is killed", f"kill -9, and in the same moment {name} walks in.")
    ids = _local_ids(entries)
    already, began = evening.count_alerts(ids), time.time()
    for status in read_statuses(evening.settings.data_dir):
        if status.part == "dispatch" and status.state != "stopped":
            os.kill(status.pid, signal.SIGKILL)
    evening.wish("register", nhs_number=child["nhs_number"])
    told_at = evening.wait_for_alerts(ids, already)
    evening.tell(f"[bold]after {told_at - began:.1f} s the alert is there[/bold]: another dispatcher took over.")


def _list_later(evening: Evening) -> None:
    """A visit first, the list afterwards: the look-back finds it."""
    listed = {row["nhs_number"] for row in evening.listings}
    today = SystemClock().now().date()
    child = next(
        row
        for number, row in evening.people.items()
        if number not in listed and not row["resembles"] and (today - date.fromisoformat(row["birth_date"])).days < 6000
    )
    name = f"{child['given_name']} {child['family_name']}"
    evening.open_chapter("A list changes", f"{name} comes, and is on no list. Later this evening that changes.")
    visit = evening.wish("register", nhs_number=child["nhs_number"])
    reply = evening.find_reply(visit, "no_record_found")
    evening.tell(f"[bold]the clinician reads:[/bold] {reply['wording']}")
    authority = evening.listings[0]["authority"]
    columns = "local_id,nhs_number,family_name,given_name,birth_date,postcode,plan_type,start_date"
    values = [child[column] for column in columns.split(",")[1:6]]
    file = f"{columns}\nLATE1,{','.join(values)},child_protection_plan,{today.isoformat()}\n"
    began = time.time()
    asyncio.run(_upload(evening.settings, authority, file.encode()))
    told_at = evening.wait_for_alerts([(authority, "LATE1")], 0)
    evening.find_reply(visit, "match")
    evening.tell(
        f"[bold]{told_at - began:.1f} s after the upload authority {authority} has a late alert[/bold], "
        "and the department a second reply."
    )


async def _upload(settings: Settings, authority: str, file: bytes) -> None:
    database = bootstrap.open_database(settings)
    try:
        await upload_children(
            database,
            bootstrap.load_keyring(settings),
            SystemClock(),
            authority=authority,
            file=file,
            uploaded_by="demo",
        )
    finally:
        await database.close()


def _acknowledge(evening: Evening) -> None:
    """A duty worker signs in as anybody would, opens the most urgent alerts and acknowledges them."""
    login, password = find_login(evening.directory, "duty_worker")
    evening.open_chapter("The duty desk", f"{login} signs in.")
    with httpx.Client(base_url=evening.url, follow_redirects=True, timeout=10) as browser:
        token = find_text(r'name="form_token" value="([^"]+)"', browser.get("/sign-in").text)
        browser.post("/sign-in", data={"login": login, "password": password, "form_token": token})
        paths = list(dict.fromkeys(re.findall(r'href="(/alerts/[0-9a-f]+)"', browser.get("/inbox").text)))
        for path in paths[:ACKNOWLEDGED]:
            token = find_text(r'name="form_token" value="([^"]+)"', browser.get(path).text)
            browser.post(f"{path}/acknowledge", data={"form_token": token}).raise_for_status()
    evening.tell(f"{len(paths[:ACKNOWLEDGED])} alerts acknowledged by a person: only that is the end of an alert.")


def find_login(directory: Path, role: str) -> tuple[str, str]:
    """A login of the town's workers and its password."""
    rows = read_csv(directory / "town" / "workers.csv")
    found = next(row for row in rows if row["role"] == role and row["login"])
    return found["login"], found["password"]


def read_journal(path: Path) -> list[Any]:
    """The other side's journal: one JSON document per line, the last of which may still be being written."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def read_csv(path: Path) -> list[dict[str, str]]:
    """A CSV file's rows."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _local_ids(entries: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["authority"], row["local_id"]) for row in entries))


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def find_text(pattern: str, page: str) -> str:
    """What the pattern's group finds first on a page. Raises DemoFailed."""
    found = re.search(pattern, page)
    if found is None:
        raise DemoFailed("a page did not look as expected")
    return found.group(1)
