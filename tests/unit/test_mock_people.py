"""The invented town: nobody real in it, the same for the same seed, and written as the product imports it."""

from __future__ import annotations

import csv
import importlib
import random
import re
from collections import Counter
from datetime import date
from pathlib import Path

import pytest

from mock_nhs.people import Kin, Numbers, Person, read_people, write_people
from mock_nhs.town import (
    CHILD_PROTECTION,
    LOOKED_AFTER,
    SECRET_BYTES,
    UNBORN,
    Town,
    build_town,
    main,
    read_secret,
    write_csv,
)
from schemas.child_list import PlanType
from schemas.directory import Role
from schemas.identifiers import parse_nhs_number

ON = date(2026, 11, 23)
second_opinion = importlib.import_module("nhs_number")

COLUMNS = {
    "authorities.csv": "code,name,office_telephone,emergency_telephone,webhook_url,webhook_secret,topic_secret",
    "workers.csv": "code,authority,name,team,login,role,password",
    "sites.csv": "code,name,telephone,authorities,reply_host,reply_port,replies_for_adults,peers,credential,"
    "topic_secret,reply_url,reply_credential",
    "clinicians.csv": "login,name,organisation,password",
    "children-706.csv": "local_id,nhs_number,family_name,given_name,birth_date,postcode,plan_type,start_date,"
    "end_date,worker,team",
    "children-707.csv": "local_id,nhs_number,family_name,given_name,birth_date,postcode,plan_type,start_date,"
    "end_date,worker,team",
}


@pytest.fixture(scope="module")
def town() -> Town:
    return build_town(7, on=ON, people=1_000, listed=100, near_twins=30, sites=3)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def by_number(town: Town) -> dict[str, Person]:
    return {person.nhs_number: person for person in town.people}


def test_every_nhs_number_is_valid_unique_and_of_the_999_range(town: Town) -> None:
    numbers = [person.nhs_number for person in town.people]
    assert len(set(numbers)) == len(town.people) == 1_000
    assert all(number.startswith("999") and parse_nhs_number(number) == number for number in numbers)
    assert all(second_opinion.is_valid(number) for number in numbers)


def test_no_number_is_handed_out_twice() -> None:
    numbers = Numbers(random.Random(1))
    handed_out = [numbers.next() for _ in range(10_000)]
    handed_out += [numbers.next_near(number) for number in handed_out]
    assert len(set(handed_out)) == 20_000


def test_nobody_can_be_reached(town: Town) -> None:
    assert all(re.fullmatch(r"ZZ99 [0-9][A-Z]{2}", person.postcode) for person in town.people)
    telephones = [site.telephone for site in town.sites]
    telephones += [number for a in town.authorities for number in (a.office_telephone, a.emergency_telephone)]
    assert all(re.fullmatch(r"01632 960[0-9]{3}", telephone) for telephone in telephones)


def test_the_same_seed_and_day_give_the_same_town_and_another_seed_another() -> None:
    assert build_town(3, on=ON, people=200) == build_town(3, on=ON, people=200)
    one, other = build_town(3, on=ON, people=200), build_town(4, on=ON, people=200)
    assert one.people != other.people
    assert one.sites[0].credential != other.sites[0].credential
    assert one.authorities[0].webhook_secret != other.authorities[0].webhook_secret


def test_households_have_a_mother_and_children_of_their_own_names(town: Town) -> None:
    assert Counter(person.kin for person in town.people)[Kin.CHILD] > 400
    children = [p for p in town.people if p.kin is Kin.CHILD and not p.resembles]
    assert all(child.is_child(ON) and child.birth_date < ON for child in children)
    households: dict[int, list[Person]] = {}
    for person in town.people:
        if not person.resembles:
            households.setdefault(person.household, []).append(person)
    for members in households.values():
        mother = next(member for member in members if member.kin is Kin.MOTHER)
        siblings = [member for member in members if member.kin is Kin.CHILD]
        assert all(mother.age_on(ON) - child.age_on(ON) >= 15 for child in siblings)
        assert len({member.address for member in members}) == 1
    assert max(len(members) for members in households.values()) >= 5


def test_there_are_twins_and_names_beyond_ascii(town: Town) -> None:
    children = [person for person in town.people if person.kin is Kin.CHILD and not person.resembles]
    births = Counter((child.household, child.birth_date) for child in children)
    assert max(births.values()) >= 2
    names = "".join(person.family_name + person.given_name for person in town.people).lower()
    assert {"ś", "ó", "ș", "ı", "'", "-", " "} <= set(names)


def test_near_twins_resemble_a_listed_child_and_are_on_no_list(town: Town) -> None:
    everybody = by_number(town)
    twins = [person for person in town.people if person.resembles]
    assert len(twins) == 30
    for twin in twins:
        original = everybody[twin.resembles]
        assert town.authorities_listing(original.nhs_number)
        assert not town.authorities_listing(twin.nhs_number)
        assert twin.nhs_number != original.nhs_number
        assert twin.family_name == original.family_name
    for seed in range(10):
        crowded = build_town(seed, on=ON, people=100, listed=40, near_twins=9)
        assert not any(listing.person.resembles for listing in crowded.listings)
    same_day = [twin for twin in twins if twin.birth_date == everybody[twin.resembles].birth_date]
    assert len(same_day) == 20
    near = [
        twin
        for twin in twins
        if sum(a != b for a, b in zip(twin.nhs_number, twin.resembles, strict=True)) <= 2 and twin not in same_day
    ]
    assert len(near) == 10


def test_lists_hold_every_kind_of_plan_for_the_persons_it_fits(town: Town) -> None:
    assert {CHILD_PROTECTION, LOOKED_AFTER, UNBORN} == {str(kind) for kind in PlanType}
    current = {listing.person.nhs_number for listing in town.listings if listing.is_current(ON)}
    ended = [listing for listing in town.listings if not listing.is_current(ON)]
    assert len(current) == 100
    assert len(ended) == 4
    assert not {listing.person.nhs_number for listing in ended} & current
    for listing in town.listings:
        assert (listing.person.kin is Kin.MOTHER) == (listing.plan_type == UNBORN)
        assert listing.person.birth_date <= listing.start_date <= ON
        assert listing.end_date is None or listing.start_date < listing.end_date
    assert {listing.plan_type for listing in town.listings} == {CHILD_PROTECTION, LOOKED_AFTER, UNBORN}
    assert any(len(town.authorities_listing(number)) == 2 for number in current)
    assert any(not listing.worker for listing in town.listings)


def test_the_files_have_the_agreed_columns(town: Town, tmp_path: Path) -> None:
    write_csv(town, tmp_path)
    for name, columns in COLUMNS.items():
        with (tmp_path / name).open(encoding="utf-8") as file:
            assert file.readline().rstrip("\n") == columns, name
        assert rows(tmp_path / name), name


def test_every_reference_in_the_files_has_its_row(town: Town, tmp_path: Path) -> None:
    write_csv(town, tmp_path)
    authorities = {row["code"] for row in rows(tmp_path / "authorities.csv")}
    workers = {row["code"]: row for row in rows(tmp_path / "workers.csv")}
    sites = rows(tmp_path / "sites.csv")
    assert {row["authority"] for row in workers.values()} == authorities == {"706", "707"}
    assert {row["role"] for row in workers.values()} == {Role.SOCIAL_WORKER, Role.DUTY_WORKER, Role.LIST_OFFICER}
    assert all(set(row["authorities"].split()) <= authorities for row in sites)
    assert {row["organisation"] for row in rows(tmp_path / "clinicians.csv")} == {row["code"] for row in sites}
    logins = [row["login"] for row in [*workers.values(), *rows(tmp_path / "clinicians.csv")]]
    assert len(set(logins)) == len(logins)
    for code in authorities:
        children = rows(tmp_path / f"children-{code}.csv")
        plans = [(row["local_id"], row["plan_type"]) for row in children]
        assert len(set(plans)) == len(plans)
        for row in children:
            assert not row["worker"] or workers[row["worker"]]["authority"] == code
            assert date.fromisoformat(row["birth_date"]) <= date.fromisoformat(row["start_date"])


def test_secrets_have_their_length_and_credentials_fit_their_field(town: Town) -> None:
    secrets = [secret for a in town.authorities for secret in (a.webhook_secret, a.topic_secret)]
    secrets += [site.topic_secret for site in town.sites]
    assert all(len(read_secret(secret)) == SECRET_BYTES for secret in secrets)
    assert len(set(secrets)) == len(secrets)
    assert all(re.fullmatch(r"[0-9a-f]{40}", site.credential) for site in town.sites)


def test_addresses_of_the_other_side_are_written_where_they_are_given(town: Town, tmp_path: Path) -> None:
    write_csv(town, tmp_path, case_system_url="http://127.0.0.1:9", replies={"RZ1": ("127.0.0.1", 2600)})
    urls = [row["webhook_url"] for row in rows(tmp_path / "authorities.csv")]
    assert urls == ["http://127.0.0.1:9/alerts/706", "http://127.0.0.1:9/alerts/707"]
    replies = {row["code"]: (row["reply_host"], row["reply_port"]) for row in rows(tmp_path / "sites.csv")}
    assert replies == {"RZ1": ("127.0.0.1", "2600"), "RZ2": ("", ""), "RZ3": ("", "")}


def test_a_site_with_a_fhir_server_has_its_address_and_its_token_and_no_other_site_has_one(
    town: Town, tmp_path: Path
) -> None:
    url = "http://127.0.0.1:9/FHIR/R4/$process-message"
    write_csv(town, tmp_path, fhir_replies={"RZ2": url})
    written = {row["code"]: (row["reply_url"], row["reply_credential"]) for row in rows(tmp_path / "sites.csv")}
    assert written == {"RZ1": ("", ""), "RZ2": (url, town.sites[1].reply_token), "RZ3": ("", "")}


def test_people_written_are_read_back_the_same(town: Town, tmp_path: Path) -> None:
    write_people(town.people, tmp_path / "people.csv")
    assert read_people(tmp_path / "people.csv") == town.people


def test_the_program_writes_a_town(tmp_path: Path) -> None:
    main(["--seed", "5", "--out", str(tmp_path), "--on", "2026-11-23", "--people", "120", "--reply", "RZ1=::1:26"])
    assert len(read_people(tmp_path / "people.csv")) == 120
    assert rows(tmp_path / "sites.csv")[0]["reply_host"] == "::1"
