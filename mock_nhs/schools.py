"""Schools that are told by the police: some read before the bell, some late, some never.

``python -m mock_nhs.schools write`` writes the CSV files of a force, its schools and their people, which the product
imports. ``python -m mock_nhs.schools read`` has the safeguarding leads of one habit sign in to the pages and
acknowledge what waits there, as they would on a telephone at ten to eight. Everybody is invented.
"""

from __future__ import annotations

import argparse
import csv
import http.client
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlencode, urlsplit
from zoneinfo import ZoneInfo

from mock_nhs.journal import Journal
from mock_nhs.police import School

FORCE: Final = "ZF1"
FORCE_CREDENTIAL: Final = "demo-credential-of-the-force"
HABITS: Final = ("on_time", "late", "never")
_LONDON: Final = ZoneInfo("Europe/London")
_MARGIN: Final = timedelta(minutes=15)
_NAMES: Final = (
    "Mill Lane Primary School",
    "Hill Top School",
    "Old Mill Academy",
    "Riverside School",
    "St Oak's School",
)
_LEADS: Final = ("Robin Reed", "Cam Miller", "Alex Porter", "Bo Turner", "Chris Page")
_PASSWORD: Final = "demo-password"  # noqa: S105 - of invented people, in a demonstration
_TOKEN: Final = re.compile(r'name="form_token" value="([0-9a-f]{64})"')
_WAITING: Final = re.compile(
    r'action="(/school/notices/[0-9a-f]{32}/acknowledge)">.*?name="version" value="([0-9]+)"', re.DOTALL
)


@dataclass(frozen=True, kw_only=True)
class Lead:
    """Who reads at a school, and when."""

    school: School
    habit: str

    @property
    def login(self) -> str:
        """How they sign in."""
        return f"lead@{self.school.urn}.example.org"


def invent_schools(authorities: Sequence[str]) -> tuple[Lead, ...]:
    """Five schools, in turn of each authority and each habit."""
    return tuple(
        Lead(
            school=School(
                urn=f"90000{number}", name=name, authority=authorities[number % len(authorities)], lead_name=lead
            ),
            habit=HABITS[number % len(HABITS)],
        )
        for number, (name, lead) in enumerate(zip(_NAMES, _LEADS, strict=True), start=1)
    )


def write_schools(leads: Sequence[Lead], directory: Path, bell_at: datetime) -> None:
    """The files of the force, its schools and their people. For those who read late or never the bell is ``bell_at``;
    the others are closed that day and have until the next bell after today."""
    start = (bell_at + _MARGIN).astimezone(_LONDON)
    bell_day, today = start.date(), datetime.now(_LONDON).date()
    confirmed = f"{bell_day - timedelta(days=30)}"
    read_in_time = (("closure", (bell_day - timedelta(days=1), today)), ("open", (today + timedelta(days=1),) * 2))
    others = (("open", (bell_day, bell_day)),)
    _write(
        directory / "forces.csv",
        "code,name,statement,withdrawn_statement,release,profile,credential",
        [
            (
                *(FORCE, "Sampleshire Police", "For your information. Do not speak to the parents about this notice."),
                *("An earlier notice does not stand any more.", "automatic", "standard", FORCE_CREDENTIAL),
            )
        ],
    )
    _write(
        directory / "schools.csv",
        "urn,name,kind,authority,starts_at,office_telephone",
        [
            (
                *(lead.school.urn, lead.school.name, "school", lead.school.authority),
                f"{start:%H:%M}",
                f"01632 9604{number:02}",
            )
            for number, lead in enumerate(leads, start=1)
        ],
    )
    _write(
        directory / "safeguarding-contacts.csv",
        "urn,contact_id,role,name,mailbox,confirmed_date,trained_date",
        [
            (urn, role, role, name, f"{mailbox}@{urn}.example.org", confirmed, confirmed)
            for lead in leads
            for urn in (lead.school.urn,)
            for role, name, mailbox in (
                ("lead", lead.school.lead_name, "safeguarding"),
                ("deputy", "Sam Second", "deputy"),
            )
        ],
    )
    _write(
        directory / "term-dates.csv",
        "authority,urn,kind,first_date,last_date",
        [
            (lead.school.authority, lead.school.urn, kind, *days)
            for lead in leads
            for kind, days in (read_in_time if lead.habit == "on_time" else others)
        ],
    )
    _write(
        directory / "encompass-people.csv",
        "login,name,role,at,contact_id,password",
        [
            *(
                (lead.login, lead.school.lead_name, "safeguarding_lead", lead.school.urn, "lead", _PASSWORD)
                for lead in leads
            ),
            *(
                (
                    f"deputy@{lead.school.urn}.example.org",
                    "Sam Second",
                    "safeguarding_lead",
                    *(lead.school.urn, "deputy", _PASSWORD),
                )
                for lead in leads
            ),
            *(
                (f"hub@{code}.example.org", "Hal Hubber", "encompass_hub", code, "", _PASSWORD)
                for code in sorted({lead.school.authority for lead in leads})
            ),
            ("coordinator@zf1.example.org", "Cora Coordinator", "encompass_coordinator", FORCE, "", _PASSWORD),
        ],
    )


def read_schools(directory: Path) -> tuple[School, ...]:
    """The schools of a directory as officers know them."""
    leads = {row["urn"]: row["name"] for row in _read(directory / "safeguarding-contacts.csv") if row["role"] == "lead"}
    return tuple(
        School(urn=row["urn"], name=row["name"], authority=row["authority"], lead_name=leads[row["urn"]])
        for row in _read(directory / "schools.csv")
    )


class Reader:
    """A lead at the pages of the broker: a browser without scripts that keeps one cookie a name."""

    def __init__(self, base: str) -> None:
        address = urlsplit(base)
        assert address.hostname is not None, "an address without a host"
        self._connection = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
        self._cookies: dict[str, str] = {}

    def read_notices(self, login: str) -> int:
        """Sign in, read, acknowledge all that waits; returns how many."""
        token = _TOKEN.search(self._ask("GET", "/sign-in"))
        assert token is not None, "no form to sign in"
        self._ask("POST", "/sign-in", {"login": login, "password": _PASSWORD, "form_token": token[1]})
        page = self._ask("GET", "/school")
        waiting = _WAITING.findall(page)
        for path, version in waiting:
            form_token = _TOKEN.search(page)
            assert form_token is not None, "a page without a form"
            self._ask("POST", path, {"version": version, "form_token": form_token[1]})
        self._connection.close()
        return len(waiting)

    def _ask(self, method: str, path: str, form: dict[str, str] | None = None) -> str:
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self._cookies.items())}
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        self._connection.request(method, path, urlencode(form) if form is not None else None, headers)
        answer = self._connection.getresponse()
        for cookie in answer.headers.get_all("Set-Cookie") or []:
            name, _, value = cookie.partition(";")[0].partition("=")
            self._cookies[name] = value
        body = answer.read().decode()
        if answer.status >= 400:
            raise SystemExit(f"{method} was answered {answer.status}")
        return body


def _write(path: Path, columns: str, rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        written = csv.writer(file)
        written.writerow(columns.split(","))
        written.writerows(rows)


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the schools' files, or have those of one habit read."""
    parser = argparse.ArgumentParser(prog="mock_nhs.schools", description="Invented schools, and who reads there.")
    parser.add_argument("do", choices=("write", "read"))
    parser.add_argument("--dir", type=Path, required=True, metavar="DIR", help="where the files are")
    parser.add_argument("--bell", type=datetime.fromisoformat, default=datetime.now(UTC), metavar="INSTANT")
    parser.add_argument("--base", default="http://127.0.0.1:8000", metavar="URL")
    parser.add_argument("--habit", choices=HABITS[:2], default=HABITS[0])
    parser.add_argument("--record", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    authorities = [row["code"] for row in _read(given.dir / "authorities.csv")]
    leads = invent_schools(authorities)
    if given.do == "write":
        write_schools(leads, given.dir, given.bell)
        return
    journal = Journal(given.record or given.dir / "schools.jsonl")
    for lead in leads:
        if lead.habit == given.habit:
            count = Reader(given.base).read_notices(lead.login)
            journal.write("read", urn=lead.school.urn, name=lead.school.name, habit=lead.habit, count=count)
    journal.close()


if __name__ == "__main__":
    main()
