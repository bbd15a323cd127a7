"""Attendances that others put on Kafka: plain bytes, with or without our headers, however they are compressed."""

from __future__ import annotations

import asyncio
from pathlib import Path

from mock_nhs.department import AdtMessage, Department
from mock_nhs.journal import read_journal
from tests import ledger
from tests.conftest import Kafka
from tests.engines import ForeignRecord, produce_with_java_client
from tests.system import SITE, WITHOUT_PAGES, System, open_system, until

HL7V2 = {"content-type": "application/hl7-v2+er7"}
FHIR = {"content-type": "application/fhir+json"}


def _register(system: System, *, count: int, fhir: bool, seed: int) -> list[AdtMessage]:
    """Children who are on a list, each come once: by HL7 v2 or by FHIR."""
    listed = [person for person in system.town.people if system.town.authorities_listing(person.nhs_number)]
    department = Department(
        site=SITE,
        credential="",  # whoever writes to the topic needs none
        people=system.town.people,
        seed=seed,
        fhir=1.0 if fhir else 0.0,
    )
    return [department.register(person) for person in listed[(seed - 2) * 5 :][:count]]


async def test_whatever_foreign_clients_write_reaches_worker_and_department(
    kafka_server: Kafka, postgres_url: str, tmp_path: Path
) -> None:
    async with open_system(tmp_path, database_url=postgres_url, kafka=kafka_server.bootstrap_servers) as system:
        system.start(*WITHOUT_PAGES)
        plain, mistaken, sourced, first, second = _register(system, count=5, fhir=False, seed=2)
        bare, mislabelled, labelled = _register(system, count=3, fhir=True, seed=3)
        batch = b"".join((b"FHS|^~\\&|ED\r", b"BHS|^~\\&|ED\r", first.body, second.body, b"BTS|2\r", b"FTS|1\r"))
        produced = (
            ForeignRecord(value=plain.body),
            ForeignRecord(value=mistaken.body, headers=FHIR, compression="gzip"),
            ForeignRecord(value=sourced.body, headers={**HL7V2, "ce_source": SITE}, compression="snappy"),
            ForeignRecord(value=bare.body, compression="zstd"),
            ForeignRecord(value=mislabelled.body, headers=HL7V2, compression="lz4"),
            ForeignRecord(value=labelled.body, headers={**FHIR, "ce_source": SITE}),
            ForeignRecord(value=batch, compression="gzip"),
        )
        await asyncio.to_thread(produce_with_java_client, kafka_server.bootstrap_servers, system.topic, produced)
        sent = (plain, mistaken, sourced, first, second, bare, mislabelled, labelled)
        visits = {message.visit_number for message in sent}
        await until(
            lambda: {reply.visit_number for reply in system.ed.replies} == visits, limit_s=30, what="every reply"
        )
        assert {reply.outcome for reply in system.ed.replies} == {"match"}
        alerts = sum(len(system.town.authorities_listing(message.person.nhs_number)) for message in sent)
        await until(
            lambda: sum(line["what"] == "alert" for line in read_journal(tmp_path / "case-system.jsonl")) == alerts,
            limit_s=30,
            what="every alert",
        )
        books = await ledger.reckon(system.sources(extra_appends=len(sent) + 1))
        assert books.handled == {"alerted": len(sent), "ignored": 1}
        assert books.reasons == {"taken_apart": 1}
        # All that is wrong: the department's own link did not send these visits.
        assert books.problems == [f"the department finds fault with replies: {{'visit_unknown': {len(sent)}}}"]
