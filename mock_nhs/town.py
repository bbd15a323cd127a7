"""A town: its people, the authorities that list some of them, their workers, and the departments people go to.

``python -m mock_nhs.town --seed 1 --out DIR`` writes the CSV files that the product imports, and ``people.csv``
for the departments of this side. Everything in them is invented; the secrets are seeded and protect nothing.
"""

from __future__ import annotations

import argparse
import base64
import csv
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

from mock_nhs.names import CULTURES, write_name
from mock_nhs.people import Kin, Person, invent_people, write_people

CHILD_PROTECTION: Final = "child_protection_plan"
LOOKED_AFTER: Final = "looked_after_child"
UNBORN: Final = "unborn_child_protection_plan"

SECRET_BYTES: Final = 32
_FIRST_AUTHORITY_CODE: Final = 706
_PLACES: Final = (
    *("Northfold", "Westmere", "Ashbourne Vale", "Kingsholt", "Eastwick", "Saltmarsh", "Harrowdene"),
    *("Millbrook", "Thornley", "Dunmoor", "Fairhaven", "Oakhampton", "Redcliffe Bay", "Stonebridge"),
    *("Wexborough", "Larkfield", "Penhallow", "Quarrington", "Underhill", "Vale of Arden"),
)
_TEAMS: Final = ("Team East", "Team West", "Children Looked After")


@dataclass(frozen=True, kw_only=True)
class Authority:
    """A local authority's children's services."""

    code: str
    name: str
    office_telephone: str
    emergency_telephone: str
    webhook_secret: str
    """Base64 of 32 bytes; so are the topics' secrets."""
    topic_secret: str


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Someone who works for an authority. ``role`` is ``social_worker``, ``duty_worker`` or ``list_officer``."""

    code: str
    authority: str
    name: str
    team: str
    login: str
    role: str
    password: str


@dataclass(frozen=True, kw_only=True)
class Site:
    """An emergency department's organisation."""

    code: str
    name: str
    telephone: str
    authorities: tuple[str, ...]
    replies_for_adults: bool
    credential: str
    """Forty hexadecimal digits: what MSH-8 holds in HL7 v2.4."""
    topic_secret: str
    reply_token: str
    """The bearer token that its own FHIR server asks for."""


@dataclass(frozen=True, kw_only=True)
class Clinician:
    """Someone who reads a department's replies on the page."""

    login: str
    name: str
    organisation: str
    password: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """One plan of one person on one authority's list."""

    authority: str
    local_id: str
    person: Person
    plan_type: str
    start_date: date
    end_date: date | None
    worker: str
    """The allocated worker's code; empty when nobody is allocated."""
    team: str

    def is_current(self, on: date) -> bool:
        """Whether the plan runs on that day."""
        return self.start_date <= on and (self.end_date is None or on < self.end_date)

    def is_shown(self, on: date) -> bool:
        """Whether the plan is shown on that day, as current or as ended: CP-IS shows it for a while after its end.

        A person's own plan is shown up to the eighteenth birthday.
        """
        if self.plan_type != UNBORN and not self.person.is_child(on):
            return False
        days = 28 if self.plan_type == UNBORN else 365
        return self.is_current(on) or (self.end_date is not None and 0 <= (on - self.end_date).days <= days)


@dataclass(frozen=True, kw_only=True)
class Town:
    """All of it."""

    seed: int
    on: date
    people: tuple[Person, ...]
    authorities: tuple[Authority, ...]
    workers: tuple[Worker, ...]
    sites: tuple[Site, ...]
    clinicians: tuple[Clinician, ...]
    listings: tuple[Listing, ...]

    def authorities_listing(self, nhs_number: str) -> frozenset[str]:
        """The codes of the authorities on whose list the person has a plan that is shown."""
        return frozenset(
            listing.authority
            for listing in self.listings
            if listing.person.nhs_number == nhs_number and listing.is_shown(self.on)
        )


@dataclass
class _Registrar:
    """Puts people on lists: draws the authority, the plan, the worker."""

    draws: random.Random
    on: date
    authorities: Sequence[Authority]
    workers: Sequence[Worker]
    listings: list[Listing] = field(default_factory=list)
    local_ids: dict[tuple[str, str], str] = field(default_factory=dict)

    def list_person(self, person: Person) -> None:
        """Put a person on a list with a current plan; some on two lists, some with two plans on one."""
        authority = self.draws.choice(self.authorities).code
        if person.kin is Kin.MOTHER:
            self._add(authority, person, UNBORN, ends_in_days=self.draws.randint(20, 200))
            return
        chance = self.draws.random()
        self._add(authority, person, CHILD_PROTECTION if chance < 0.4 else LOOKED_AFTER)
        if chance < 0.03:
            self._add(authority, person, LOOKED_AFTER)
        elif chance > 0.95 and len(self.authorities) > 1:
            others = [other.code for other in self.authorities if other.code != authority]
            self._add(self.draws.choice(others), person, CHILD_PROTECTION)

    def list_ended(self, person: Person) -> None:
        """Put a person on a list whose only plan has ended."""
        authority = self.draws.choice(self.authorities).code
        days_old = (self.on - person.birth_date).days
        self._add(authority, person, CHILD_PROTECTION, ends_in_days=-self.draws.randrange(min(days_old, 500)))

    def _add(self, authority: str, person: Person, plan_type: str, ends_in_days: int | None = None) -> None:
        end_date = None if ends_in_days is None else self.on + timedelta(days=ends_in_days)
        start_date = min(self.on, end_date or self.on) - timedelta(days=self.draws.randint(1, 250))
        social_workers = [
            worker for worker in self.workers if worker.authority == authority and worker.role == "social_worker"
        ]
        allocated = self.draws.choice(social_workers)
        local_id = f"C{authority}{len(self.local_ids) + 1:05d}"
        self.listings.append(
            Listing(
                authority=authority,
                local_id=self.local_ids.setdefault((authority, person.nhs_number), local_id),
                person=person,
                plan_type=plan_type,
                start_date=max(start_date, person.birth_date),
                end_date=end_date,
                worker="" if self.draws.random() < 0.08 else allocated.code,
                team=allocated.team,
            )
        )


def build_town(
    seed: int,
    *,
    on: date,
    people: int = 300,
    listed: int = 40,
    near_twins: int = 9,
    authorities: int = 2,
    sites: int = 1,
) -> Town:
    """A town as of the day ``on``. ``listed`` persons have a current plan, one in 25 as many more only an ended one.

    No near-twin is listed, and every child that a near-twin resembles is.
    """
    assert near_twins <= listed, "every child that is resembled is listed"
    draws = random.Random(f"{seed}:town")
    population = invent_people(seed, people=people, near_twins=near_twins, on=on)
    councils = tuple(_invent_authority(seed, number) for number in range(authorities))
    workers = tuple(worker for council in councils for worker in _invent_workers(seed, council.code))
    departments = tuple(_invent_site(seed, number, councils) for number in range(sites))
    registrar = _Registrar(draws, on, councils, workers)
    ended = listed // 25
    chosen = _choose_listed(draws, population, listed + ended, on)
    for person in chosen[:listed]:
        registrar.list_person(person)
    for person in chosen[listed:]:
        registrar.list_ended(person)
    return Town(
        seed=seed,
        on=on,
        people=population,
        authorities=councils,
        workers=workers,
        sites=departments,
        clinicians=tuple(clinician for site in departments for clinician in _invent_clinicians(seed, site)),
        listings=tuple(registrar.listings),
    )


def write_csv(
    town: Town,
    directory: Path,
    *,
    case_system_url: str = "",
    replies: Mapping[str, tuple[str, int]] | None = None,
    fhir_replies: Mapping[str, str] | None = None,
) -> None:
    """Write every CSV file. ``replies`` is, by site code, the host and port where its system takes ORU^R01,
    ``fhir_replies`` the URL where it takes message Bundles;
    an authority's webhook is its code under ``case_system_url``, for which see ``mock_nhs.case_system``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_people(town.people, directory / "people.csv")
    _write(
        directory / "authorities.csv",
        "code name office_telephone emergency_telephone webhook_url webhook_secret topic_secret",
        (_authority_row(authority, case_system_url) for authority in town.authorities),
    )
    _write(
        directory / "workers.csv",
        "code authority name team login role password",
        ((w.code, w.authority, w.name, w.team, w.login, w.role, w.password) for w in town.workers),
    )
    _write(
        directory / "sites.csv",
        "code name telephone authorities reply_host reply_port replies_for_adults peers credential topic_secret "
        "reply_url reply_credential",
        (_site_row(site, (replies or {}).get(site.code), (fhir_replies or {}).get(site.code)) for site in town.sites),
    )
    _write(
        directory / "clinicians.csv",
        "login name organisation password",
        ((c.login, c.name, c.organisation, c.password) for c in town.clinicians),
    )
    for authority in town.authorities:
        write_children(
            directory / f"children-{authority.code}.csv",
            (listing for listing in town.listings if listing.authority == authority.code),
        )


def write_children(path: Path, listings: Iterable[Listing]) -> None:
    """Write one authority's child list as CSV."""
    _write(
        path,
        "local_id nhs_number family_name given_name birth_date postcode plan_type start_date end_date worker team",
        (_listing_row(listing) for listing in listings),
    )


def read_secret(text: str) -> bytes:
    """A secret from its CSV field."""
    return base64.b64decode(text, validate=True)


def _authority_row(authority: Authority, case_system_url: str) -> tuple[str, ...]:
    return (
        authority.code,
        authority.name,
        authority.office_telephone,
        authority.emergency_telephone,
        f"{case_system_url}/alerts/{authority.code}" if case_system_url else "",
        authority.webhook_secret,
        authority.topic_secret,
    )


def _site_row(site: Site, reply: tuple[str, int] | None, reply_url: str | None) -> tuple[str, ...]:
    host, port = (reply[0], str(reply[1])) if reply else ("", "")
    return (
        site.code,
        site.name,
        site.telephone,
        " ".join(site.authorities),
        host,
        port,
        "true" if site.replies_for_adults else "false",
        "127.0.0.0/8",
        site.credential,
        site.topic_secret,
        reply_url or "",
        site.reply_token if reply_url else "",
    )


def _listing_row(listing: Listing) -> tuple[str, ...]:
    person = listing.person
    return (
        listing.local_id,
        person.nhs_number,
        person.family_name,
        person.given_name,
        person.birth_date.isoformat(),
        person.postcode,
        listing.plan_type,
        listing.start_date.isoformat(),
        listing.end_date.isoformat() if listing.end_date else "",
        listing.worker,
        listing.team,
    )


def _write(path: Path, columns: str, rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        written = csv.writer(file)
        written.writerow(columns.split())
        written.writerows(rows)


def _choose_listed(draws: random.Random, population: Sequence[Person], count: int, on: date) -> list[Person]:
    """Those who are resembled first, then young mothers (one in twenty) and whole families of children."""
    resembled = {person.resembles for person in population if person.resembles}
    own = [person for person in population if not person.resembles]
    first = [person for person in own if person.nhs_number in resembled]
    mothers = [person for person in own if person.kin is Kin.MOTHER and person.age_on(on) < 45]
    others = [p for p in own if p.kin is Kin.CHILD and p.nhs_number not in resembled]
    order = {household: draws.random() for household in sorted({person.household for person in own})}
    others.sort(key=lambda person: order[person.household])
    chosen = [*first, *draws.sample(mothers, min(count // 20, len(mothers))), *others][:count]
    assert len(chosen) == count, "the town has too few children for so many on lists"
    return chosen


def _invent_authority(seed: int, number: int) -> Authority:
    code = str(_FIRST_AUTHORITY_CODE + number)
    place = _PLACES[number % len(_PLACES)]
    return Authority(
        code=code,
        name=f"{place} {('Borough', 'City', 'County')[number % 3]} Council",
        office_telephone=f"01632 960{(2 * number) % 1000:03d}",
        emergency_telephone=f"01632 960{(2 * number + 1) % 1000:03d}",
        webhook_secret=_invent_secret(seed, f"{code}:webhook"),
        topic_secret=_invent_secret(seed, f"{code}:topic"),
    )


def _invent_workers(seed: int, authority: str) -> list[Worker]:
    """Four social workers, two who answer for everybody and one who keeps the list."""
    draws = random.Random(f"{seed}:{authority}:workers")
    roles = [("sw", "social_worker", _TEAMS[number % len(_TEAMS)]) for number in range(4)]
    roles += [("duty", "duty_worker", "Duty desk") for _ in range(2)]
    roles.append(("list", "list_officer", "Child lists"))
    return [
        Worker(
            code=f"W{authority}{number:02d}",
            authority=authority,
            name=_invent_name(draws),
            team=team,
            login=f"{kind}{number}.{authority}",
            role=role,
            password=_invent_password(draws),
        )
        for number, (kind, role, team) in enumerate(roles, start=1)
    ]


def _invent_site(seed: int, number: int, authorities: Sequence[Authority]) -> Site:
    code = f"RZ{number + 1}"
    near = sorted({authorities[number % len(authorities)].code, authorities[(number + 1) % len(authorities)].code})
    return Site(
        code=code,
        name=f"{_PLACES[-1 - number % len(_PLACES)]} Hospital",
        telephone=f"01632 960{500 + number % 500:03d}",
        authorities=tuple(near),
        replies_for_adults=number % 2 == 1,
        credential=random.Random(f"{seed}:{code}:credential").randbytes(20).hex(),
        topic_secret=_invent_secret(seed, f"{code}:topic"),
        reply_token=random.Random(f"{seed}:{code}:reply").randbytes(20).hex(),
    )


def _invent_clinicians(seed: int, site: Site) -> list[Clinician]:
    draws = random.Random(f"{seed}:{site.code}:clinicians")
    return [
        Clinician(
            login=f"ed{number}.{site.code.lower()}",
            name=_invent_name(draws),
            organisation=site.code,
            password=_invent_password(draws),
        )
        for number in (1, 2)
    ]


def _invent_name(draws: random.Random) -> str:
    culture = draws.choice(CULTURES)
    female = draws.random() < 0.7
    given = draws.choice(culture.girls if female else culture.boys)
    return f"{write_name(given, female=female)} {write_name(draws.choice(culture.families), female=female)}"


def _invent_secret(seed: int, purpose: str) -> str:
    return base64.b64encode(random.Random(f"{seed}:{purpose}").randbytes(SECRET_BYTES)).decode()


def _invent_password(draws: random.Random) -> str:
    return "-".join("".join(draws.choices("abcdefghjkmnpqrstuvwxyz23456789", k=4)) for _ in range(4))


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a town's files."""
    parser = argparse.ArgumentParser(prog="mock_nhs.town", description="Write an invented town as CSV files.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--on", type=date.fromisoformat, default=datetime.now(UTC).date(), metavar="DATE")
    parser.add_argument("--people", type=int, default=300)
    parser.add_argument("--listed", type=int, default=40)
    parser.add_argument("--near-twins", type=int, default=9)
    parser.add_argument("--authorities", type=int, default=2)
    parser.add_argument("--sites", type=int, default=1)
    parser.add_argument("--case-system-url", default="", metavar="URL")
    parser.add_argument("--reply", action="append", default=[], metavar="SITE=HOST:PORT")
    parser.add_argument("--fhir-reply", action="append", default=[], metavar="SITE=URL")
    given = parser.parse_args(arguments)
    town = build_town(
        given.seed,
        on=given.on,
        people=given.people,
        listed=given.listed,
        near_twins=given.near_twins,
        authorities=given.authorities,
        sites=given.sites,
    )
    replies = {}
    for text in given.reply:
        site, _, address = text.partition("=")
        host, _, port = address.rpartition(":")
        replies[site] = (host, int(port))
    fhir_replies = dict(text.split("=", 1) for text in given.fhir_reply)
    write_csv(town, given.out, case_system_url=given.case_system_url, replies=replies, fhir_replies=fhir_replies)
    print(f"{len(town.people)} people, {len(town.listings)} listings, {given.out}")


if __name__ == "__main__":
    main()
