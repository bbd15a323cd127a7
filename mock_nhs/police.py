"""A police force: its Saturday nights, told to the broker over HTTP, with corrections, updates and withdrawals.

Everybody is invented by the seed. A night holds what real ones hold: children at several schools and across the county
border, home-educated, absent, too young; schools that nobody wrote down; a refuge, a covert investigation, a
safeguarding lead who is family. Each message is sent until it is answered: again, with the same bytes, after a
connection that broke and after 408, 425, 429 and 5xx.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from mock_nhs.http_listener import HEAD_BYTES_MAX, BadResponse, read_response
from mock_nhs.journal import Journal
from mock_nhs.people import Kin, Person, invent_people

PATH: Final = "/incidents"
_LONDON: Final = ZoneInfo("Europe/London")
_TRY_AGAIN: Final = frozenset({408, 425, 429})
_WORDS: Final = (
    "They were shouting and I hid under my bed.",
    "I heard a bang. Mum was crying.",
    "I don't want to talk about it.",
    "I took my brother to our room and we put music on.",
)
_CIRCUMSTANCES: Final = (
    "A neighbour reported shouting. Both parties spoken to; one left the address.",
    "A call was made from inside and ended. Officers attended; one arrest.",
    "Reported by a relative on the following morning.",
)
_TURNS: Final = (
    "plain",
    "siblings_apart",
    "home_educated",
    "unknown_school",
    "no_school",
    "excluded",
    "refuge",
    "covert",
)


@dataclass(frozen=True, kw_only=True)
class School:
    """A school as officers know it."""

    urn: str
    name: str
    authority: str
    lead_name: str = ""
    """Whom an incident may have to exclude."""


@dataclass(frozen=True, kw_only=True)
class Dispatch:
    """One message of the force and when it is sent."""

    at: datetime
    content: dict[str, Any]

    @property
    def body(self) -> bytes:
        """The message as it is sent, each time the same."""
        return json.dumps(self.content, ensure_ascii=False, sort_keys=True).encode()


@dataclass(frozen=True, kw_only=True)
class NightOptions:
    """What a night is made of."""

    force: str = "ZF1"
    incidents: int = 30
    corrected_share: float = 0.15
    updated_share: float = 0.1
    withdrawn_share: float = 0.05
    repeated_share: float = 0.1


def invent_night(seed: int, saturday: date, schools: Sequence[School], options: NightOptions) -> tuple[Dispatch, ...]:
    """The messages of one night from Saturday 18:00 to Sunday, in the order in which they are sent.

    Incidents take turns with what is special about them, so that a night of eight or more has each of it.
    """
    assert len(schools) >= 2, "siblings go to different schools"
    draws = random.Random(f"{seed}:night:{saturday}")
    people = invent_people(seed, people=options.incidents * 8, near_twins=0, on=saturday)
    households: dict[int, list[Person]] = {}
    for person in people:
        households.setdefault(person.household, []).append(person)
    families = [family for family in households.values() if sum(each.kin is Kin.CHILD for each in family) > 1]
    families += [family for family in households.values() if family not in families]
    found: list[Dispatch] = []
    for number in range(options.incidents):
        family = families[number % len(families)]
        first = _invent_incident(draws, number, family, schools, (saturday, options.force))
        found += _tell_over_time(draws, first, options)
    return tuple(sorted(found, key=lambda each: each.at))


def _invent_incident(
    draws: random.Random, number: int, family: Sequence[Person], schools: Sequence[School], of: tuple[date, str]
) -> Dispatch:
    saturday, force = of
    turn = _TURNS[number % len(_TURNS)]
    occurred_at = datetime.combine(saturday, time(18), _LONDON).astimezone(UTC) + timedelta(
        minutes=draws.randrange(600)
    )
    reported_at = occurred_at + timedelta(minutes=draws.randrange(1, 180))
    home, *others = draws.sample(list(schools), min(len(schools), 3))
    children = [person for person in family if person.kin is Kin.CHILD]
    adults = [person for person in family if person.kin is not Kin.CHILD]
    content: dict[str, Any] = {
        "message": "incident",
        "incident_id": f"{force}/{saturday:%Y%m%d}/{number:04d}",
        "force": force,
        "version": 1,
        "occurred_at": _write(occurred_at),
        "reported_at": _write(reported_at),
        "location": f"{family[0].address}, {family[0].postcode}",
        "attended": draws.random() < 0.9,
        "circumstances": draws.choice(_CIRCUMSTANCES),
        "risk_grade": draws.choice(("standard", "medium", "high")),
        "children": [
            _describe_child(draws, child, (others[0] if turn == "siblings_apart" and place else home), turn)
            for place, child in enumerate(children)
        ],
        "adults": [
            {
                "relation": "parent" if adult.kin is Kin.MOTHER else "partner_of_parent",
                "family_name": adult.family_name,
            }
            for adult in adults
        ],
    }
    return Dispatch(
        at=reported_at + timedelta(minutes=draws.randrange(5, 90)), content=content | _hold_back(turn, home)
    )


def _hold_back(turn: str, home: School) -> dict[str, Any]:
    if turn == "excluded" and home.lead_name:
        reason = {"reason": "Sister of the suspect.", "authoriser": "Insp 4471"}
        return {"excluded_recipients": [{"name": home.lead_name, "urn": home.urn, **reason}]}
    if turn == "refuge":
        return {"suppress": {"scope": "location", "reason": "refuge", "authoriser": "DI 0702"}}
    if turn == "covert":
        return {"suppress": {"scope": "notice", "reason": "covert_investigation", "authoriser": "DCI 0311"}}
    return {}


def _describe_child(draws: random.Random, child: Person, school: School, turn: str) -> dict[str, Any]:
    is_spoken_to = draws.random() < 0.6
    described: dict[str, Any] = {
        "child_id": f"C{child.nhs_number[-5:]}",
        "family_name": child.family_name,
        "given_name": child.given_name,
        "birth_date": child.birth_date.isoformat() if draws.random() < 0.95 else None,
        "sex": child.sex,
        "postcode": child.postcode,
        "authority": school.authority,
        "present": draws.choice((True, True, True, False, None)),
        "where": draws.choice(("upstairs", "in the kitchen", None)),
        "spoken_to": is_spoken_to,
        "spoken_alone": is_spoken_to and draws.random() < 0.7,
        "childs_words": draws.choice(_WORDS) if is_spoken_to else None,
        "welfare_check": draws.random() < 0.9,
    }
    if turn == "home_educated":
        return described | {"home_educated": True}
    if turn == "no_school":
        return described
    named = {"source": draws.choice(("officer", "child")), "urn": school.urn, "name": school.name}
    if turn == "unknown_school":
        named = {"source": "child", "name": "the one by the park"}
    return described | {"establishments": [named]}


def _tell_over_time(draws: random.Random, first: Dispatch, options: NightOptions) -> Iterator[Dispatch]:
    """The first version, perhaps twice, and what came after it on Sunday."""
    yield first
    if draws.random() < options.repeated_share:
        yield Dispatch(at=first.at + timedelta(minutes=1), content=first.content)
    later, chance = first.at + timedelta(hours=draws.randrange(2, 14)), draws.random()
    if chance < options.withdrawn_share:
        content = {name: first.content[name] for name in ("incident_id", "force")}
        said = {"version": 2, "withdrawn_at": _write(later), "reason": "Recorded twice."}
        yield Dispatch(at=later, content={"message": "withdrawal", **content, **said})
    elif chance < options.withdrawn_share + options.corrected_share:
        children = [child | {"present": not child["present"]} for child in first.content["children"]]
        yield Dispatch(at=later, content=first.content | {"version": 2, "change": "correction", "children": children})
    elif chance < options.withdrawn_share + options.corrected_share + options.updated_share:
        words = {"other_safeguarding": "A child told a neighbour that it happens often."}
        yield Dispatch(at=later, content=first.content | {"version": 2, "change": "update", **words})


def squeeze_night(dispatches: Sequence[Dispatch], first_at: datetime, last_at: datetime) -> tuple[Dispatch, ...]:
    """The same night between two instants, for those who cannot wait until Monday: every instant in its proportion."""
    began = min(datetime.fromisoformat(each.content.get("occurred_at", _write(each.at))) for each in dispatches)
    lasted = max(each.at for each in dispatches) - began

    def squeeze(instant: datetime) -> datetime:
        return first_at + (last_at - first_at) * ((instant - began) / lasted)

    return tuple(
        Dispatch(
            at=squeeze(each.at),
            content=each.content
            | {
                name: _write(squeeze(datetime.fromisoformat(each.content[name])))
                for name in ("occurred_at", "reported_at", "withdrawn_at")
                if name in each.content
            },
        )
        for each in dispatches
    )


def _write(instant: datetime) -> str:
    return instant.isoformat().replace("+00:00", "Z")


# Sending


@dataclass(frozen=True, kw_only=True)
class ForceOptions:
    """How the force reaches the broker."""

    base: str
    """Where the broker's doors are: ``http://127.0.0.1:8000``."""
    user: str
    """The force's code, for HTTP Basic."""
    password: str
    answer_timeout_s: float = 10.0
    connect_timeout_s: float = 5.0
    attempts_max: int = 20
    pause_s: float = 0.05
    """Before a message is sent again; it doubles each time."""
    pause_s_max: float = 1.0


class NotAnswered(Exception):
    """A message was sent as often as allowed, and never answered for good."""


@dataclass
class PoliceForce:
    """Sends messages one after the other, each until it is answered for good."""

    options: ForceOptions
    answers: Counter[int] = field(default_factory=Counter)
    """How many messages ended with each status."""

    async def send_all(self, dispatches: Sequence[Dispatch]) -> None:
        """Send in order, without waiting for the hours between. Raises NotAnswered."""
        for dispatch in dispatches:
            self.answers[await self.send(dispatch)] += 1

    async def send(self, dispatch: Dispatch) -> int:
        """The status that ends it. Raises NotAnswered."""
        pause_s = self.options.pause_s
        for _ in range(self.options.attempts_max):
            with contextlib.suppress(OSError, BadResponse, TimeoutError):
                status = await self._post(dispatch.body)
                if status not in _TRY_AGAIN and status < HTTPStatus.INTERNAL_SERVER_ERROR:
                    return status
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self.options.pause_s_max)
        raise NotAnswered

    async def _post(self, body: bytes) -> int:
        address = urlsplit(self.options.base)
        async with asyncio.timeout(self.options.connect_timeout_s):
            reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=HEAD_BYTES_MAX)
        try:
            writer.write(self._head(body, address.netloc) + body)
            await writer.drain()
            async with asyncio.timeout(self.options.answer_timeout_s):
                return (await read_response(reader)).status
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _head(self, body: bytes, host: str) -> bytes:
        basic = base64.b64encode(f"{self.options.user}:{self.options.password}".encode()).decode()
        lines = (
            f"POST {PATH} HTTP/1.1",
            f"Host: {host}",
            f"Authorization: Basic {basic}",
            "Content-Type: application/json",
            "Connection: close",
            f"Content-Length: {len(body)}",
        )
        return "\r\n".join([*lines, "", ""]).encode("ascii")


def main(arguments: Sequence[str] | None = None) -> None:
    """Tell the broker of a Saturday night that ends now."""
    from mock_nhs.schools import FORCE, FORCE_CREDENTIAL, read_schools

    parser = argparse.ArgumentParser(prog="mock_nhs.police", description="A force tells of its Saturday night.")
    parser.add_argument("--base", default="http://127.0.0.1:8000", metavar="URL")
    parser.add_argument("--dir", type=Path, required=True, metavar="DIR", help="where schools.csv is")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--incidents", type=int, default=16)
    parser.add_argument("--first", type=datetime.fromisoformat, required=True, metavar="INSTANT")
    parser.add_argument("--last", type=datetime.fromisoformat, required=True, metavar="INSTANT")
    parser.add_argument("--record", type=Path, required=True, metavar="FILE")
    given = parser.parse_args(arguments)
    options = NightOptions(force=FORCE, incidents=given.incidents, corrected_share=0.3)
    night = invent_night(given.seed, given.first.date(), read_schools(given.dir), options)
    force = PoliceForce(ForceOptions(base=given.base, user=FORCE, password=FORCE_CREDENTIAL))
    asyncio.run(force.send_all(squeeze_night(night, given.first, given.last)))
    journal = Journal(given.record)
    for change in (None, "correction", "update", "withdrawal", "again"):
        seen: set[bytes] = set()
        count = 0
        for each in night:
            said = "again" if each.body in seen else each.content.get("change")
            said = "withdrawal" if each.content["message"] == "withdrawal" and said is None else said
            seen.add(each.body)
            count += said == change
        journal.write("told", kind=change or "incident", count=count)
    journal.write("answered", accepted=force.answers[HTTPStatus.ACCEPTED], all=force.answers.total())
    journal.close()


if __name__ == "__main__":
    main()
