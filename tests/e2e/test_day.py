"""A day goes round by HL7 v2 and FHIR, the ledger balances, and nothing personal lies anywhere in the clear."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import aiokafka
import asyncpg
import httpx

from broker import bootstrap
from broker.clock import SystemClock
from broker.directory_upload import make_operator
from tests.e2e.conftest import Pair
from tests.system import ALL_PARTS, SITE, System, open_system

PLANTED_MIN = 2_000


def planted_values(system: System) -> set[bytes]:
    """Every personal value the product was given: of lists, messages and people who sign in."""
    found: set[str] = set()
    for person in system.town.people:
        found |= {person.nhs_number, f"{person.nhs_number[:3]} {person.nhs_number[3:6]} {person.nhs_number[6:]}"}
        found |= {person.family_name, person.family_name.upper(), f"{person.given_name} {person.family_name}"}
        found |= {f"{person.family_name}^{person.given_name}", f"{person.family_name}^{person.given_name}".upper()}
        found |= {person.birth_date.strftime("%Y%m%d") + "|", person.birth_date.isoformat() + '"'}
    for line in (system.directory / "department.jsonl").read_text().splitlines():
        for name in ('"visit_number":"', '"local_patient_id":"'):
            if name in line:
                found.add(line.split(name)[1].split('"')[0])
    found |= {worker.password for worker in system.town.workers if worker.password}
    found |= {site.credential for site in system.town.sites}
    found |= {authority.webhook_secret for authority in system.town.authorities}
    # A shorter one turns up by chance among megabytes of ciphertext once in ten thousand runs.
    return {value.encode() for value in found if len(value) > 5}


def find_planted(values: set[bytes], haystacks: Mapping[str, bytes]) -> dict[str, list[bytes]]:
    """The values that lie somewhere, by the place.

    They are looked for in those stretches only that consist of bytes of which values consist, and are long enough for
    one: most of what is kept is ciphertext, which going through two thousand times takes seconds.
    """
    alphabet, shortest = re.escape(bytes(sorted(set(b"".join(values))))), min(map(len, values))
    stretch = re.compile(b"[%b]{%d,}" % (alphabet, shortest))
    found = {}
    for place, content in haystacks.items():
        stretches = b"\0".join(stretch.findall(content))
        found[place] = [value for value in values if value in stretches]
    return {place: values for place, values in found.items() if values}


def test_planted_values_are_found_among_ciphertext() -> None:
    values = {b"9990000018", b"999 000 0018", "Zoë^O'Neil-Day".encode(), b'2015-03-02"', b"20150302|"}
    noise = bytes(range(256)) * 40
    haystacks = {str(number): noise + value + noise for number, value in enumerate(sorted(values))}
    found = find_planted(values, haystacks | {"nothing": noise, "in parts": b"99900\xff00018"})
    assert found == {str(number): [value] for number, value in enumerate(sorted(values))}


async def test_a_day_goes_round_the_ledger_balances_and_planted_values_are_nowhere(pair: Pair, tmp_path: Path) -> None:
    async with open_system(tmp_path, database_url=pair.database_url, kafka=pair.kafka, fhir=0.3) as system:
        system.start(*ALL_PARTS)
        await system.until_listening()
        await system.until_pages()
        await system.send_day(400)
        books = await system.until_settled()
        assert books.log_records == 400
        assert books.alerts_received == sum(books.alerts.values()) > 0
        assert books.replies_received > 0
        assert system.ed.answers["AA"] > 100 and system.ed.answers["202"] > 50
        topic, alerts = await system.count()
        assert (topic.balances, topic.waiting, topic.offered, alerts.balances) == (True, 0, 400, True)
        await _misbehave(system)
        await system.until_settled()
        planted = planted_values(system)
        assert len(planted) >= PLANTED_MIN
        metrics = await _read_metrics(system)
        haystacks = {"metrics": metrics} | _read_files(system)
        if pair.kafka:
            haystacks |= await _read_database(system) | await _read_topics(system)
    assert find_planted(planted, haystacks) == {}
    assert sum(len(content) for content in haystacks.values()) > 100_000


async def _misbehave(system: System) -> None:
    """What goes wrong must not talk: messages nobody understands, wrong credentials, odd requests."""
    person = system.town.people[0]
    [credential] = [site.credential for site in system.town.sites if site.code == SITE]
    good = system.department.register(person, by_fhir=False)
    bodies = [
        good.body.replace(b"PID|", b"PIX|"),
        good.body.replace(credential.encode(), person.family_name.encode()),
        good.body.replace(b"ADT^", b"ADT^^" + person.family_name.encode()),
        b"MSH|^~\\&|" + person.nhs_number.encode(),
        good.body.replace(b"\r", b"\x00"),
    ]
    for number, body in enumerate(bodies):
        await system.ed.offer(replace(good, body=body, control_id=f"{good.control_id}x{number}"))
    bundle = system.department.register(person, by_fhir=True)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{system.http_port}") as browser:
        for body in (bundle.body[:-9], bundle.body.replace(b'"Bundle"', b'"Bndle"'), bundle.body.replace(b'"1"', b"1")):
            for secret in (credential, person.family_name):
                door, headers = "/FHIR/R4/$process-message", {"content-type": "application/fhir+json"}
                await browser.post(door, content=body, headers=headers, auth=(SITE, secret.encode()))
        for path in (f"/{person.nhs_number}", f"/alerts/{person.nhs_number}?name={person.family_name}", "/inbox?%00"):
            await browser.get(path)
        await browser.post("/sign-in", data={"login": person.family_name, "password": person.nhs_number})


async def _read_metrics(system: System) -> bytes:
    settings = system.settings
    database, keyring = bootstrap.open_database(settings), bootstrap.load_keyring(settings)
    try:
        password = await make_operator(
            database, keyring, SystemClock(), login="operator", name="Operator", actor="test"
        )
    finally:
        await database.close()
    content = b""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{system.http_port}", timeout=20) as browser:
        for path in ("/metrics", "/_status"):
            answer = await browser.get(path, auth=("operator", password))
            assert answer.status_code == 200, path
            content += answer.content
    return content


def _read_files(system: System) -> dict[str, bytes]:
    """Everything in the data directory and everything any part printed."""
    files = [path for path in (system.directory / "broker").rglob("*") if path.is_file()]
    files += sorted(system.directory.glob("*-*.log"))
    return {str(path.relative_to(system.directory)): path.read_bytes() for path in files}


async def _read_database(system: System) -> dict[str, bytes]:
    connection = await asyncpg.connect(system.database_url.replace("+asyncpg", ""))
    try:
        names = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        tables = [record["tablename"] for record in names]
        assert len(tables) > 20
        return {
            name: b"\n".join(
                value if isinstance(value, bytes) else str(value).encode()
                for row in await connection.fetch(f'SELECT * FROM "{name}"')
                for value in row.values()
            )
            for name in tables
        }
    finally:
        await connection.close()


async def _read_topics(system: System) -> dict[str, bytes]:
    prefix = system.topic.removesuffix("attendances")
    found = {}
    for name in ("attendances", "social-care-alerts", "clinician-replies"):
        consumer = aiokafka.AIOKafkaConsumer(
            f"{prefix}{name}", bootstrap_servers=system.log_address, auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            ends = await consumer.end_offsets(sorted(consumer.assignment()))
            expected, parts, count = sum(ends.values()), [], 0
            assert expected > 0, name
            while count < expected:
                for records in (await consumer.getmany(timeout_ms=1000)).values():
                    count += len(records)
                    for record in records:
                        parts += [record.key or b"", record.value, *(part for _, part in record.headers)]
            found[name] = b"\n".join(parts)
        finally:
            await consumer.stop()
    return found
