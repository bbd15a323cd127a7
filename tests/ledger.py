"""The independent ledger: counts on every side of the wire and shares no code with the product.

Run it as a program (``python -m tests.ledger DIRECTORY``) or call ``reckon``. It reads the database with a plain
driver, the log through its own client, and the journals of the other side, and says every law that does not hold.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiokafka
import asyncpg

OUTCOMES = {"alerted", "no_record", "updated", "under_review", "silent_by_rule", "ignored", "quarantined"}


@dataclass
class Books:
    """What was counted, and which laws do not hold."""

    log_records: int = 0
    handled: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    alerts: Counter[str] = field(default_factory=Counter)
    acknowledged_by_sender: int = 0
    alerts_received: int = 0
    alerts_repeated: int = 0
    replies_received: int = 0
    replies_repeated: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sources:
    """Where to count."""

    database_url: str
    log: str
    """Path of the embedded log, or ``host:port`` of Kafka."""
    topic: str
    department: Path
    case_system: Path | None = None
    extra_appends: int = 0
    """Records that somebody else than the department put on the log."""


async def reckon(sources: Sources, *, settled: bool = True) -> Books:
    """Count everything. With ``settled`` nothing may wait any more, and everything sent must have arrived."""
    books = Books()
    rows = await _read_database(sources.database_url)
    books.log_records = await _count_log(sources)
    department = _read_journal(sources.department)
    _count_positions(books, rows, settled)
    _count_alerts(books, rows)
    _count_department(books, rows, department, sources)
    _count_replies(books, rows, department, settled)
    if sources.case_system is not None:
        _count_case_system(books, rows, _read_journal(sources.case_system), settled)
    return books


def _count_positions(books: Books, rows: dict[str, list[Any]], settled: bool) -> None:
    """First law: every position of the log has exactly one outcome."""
    seen = Counter((row["topic"], row["log_id"], row["partition"], row["position"]) for row in rows["positions"])
    books.handled.update(row["outcome"] for row in rows["positions"])
    books.reasons.update(row["reason"] for row in rows["positions"] if row["outcome"] == "ignored")
    if any(count > 1 for count in seen.values()):
        books.problems.append("a position was settled twice")
    if set(books.handled) - OUTCOMES:
        books.problems.append("an outcome nobody knows")
    waiting = books.log_records - sum(books.handled.values())
    if waiting < 0:
        books.problems.append(f"{-waiting} more positions settled than the log holds")
    if settled and waiting:
        books.problems.append(f"{waiting} positions still wait")
    # A message counts once, and once more for every time that a person asked for it to be handled again.
    markers = Counter((row["marker"], row["replay_id"]) for row in rows["positions"] if row["reason"] != "repeated")
    twice = [marker for marker, count in markers.items() if count > 1]
    if twice:
        books.problems.append(f"{len(twice)} messages counted twice")


def _count_alerts(books: Books, rows: dict[str, list[Any]]) -> None:
    """Second law: every alert is acknowledged, open with an owner, or closed by a named rule."""
    for row in rows["alerts"]:
        books.alerts[row["state"]] += 1
        if row["state"] == "open" and not row["held_by"]:
            books.problems.append("an open alert without an owner")
        if row["state"] == "closed" and not row["closed_rule"]:
            books.problems.append("an alert closed without a rule")
        if row["state"] == "acknowledged" and not row["acknowledged_by"]:
            books.problems.append("an alert acknowledged by nobody")
    pairs = Counter((row["visit_id"], row["authority"], row["role"]) for row in rows["alerts"])
    if any(count > 1 for count in pairs.values()):
        books.problems.append("a visit alerted an authority twice")
    visits_alerted = {row["visit_id"] for row in rows["positions"] if row["outcome"] == "alerted"}
    phantom = {row["visit_id"] for row in rows["alerts"]} - {row["visit_id"] for row in rows["positions"]}
    if phantom:
        books.problems.append(f"{len(phantom)} alerts for visits nobody sent")
    if visits_alerted - {row["visit_id"] for row in rows["alerts"]}:
        books.problems.append("a position says alerted and there is no alert")


def _count_department(books: Books, rows: dict[str, list[Any]], department: list[Any], sources: Sources) -> None:
    """What the department was told is kept must be on the log: as often as acknowledged, or more by resending."""
    accepted = [line for line in department if line["what"] == "answered" and line["code"] in ("AA", "202")]
    books.acknowledged_by_sender = len(accepted)
    distinct = {row["marker"] for row in rows["positions"]}
    if len(accepted) > books.log_records:
        books.problems.append(f"{len(accepted)} acknowledged, only {books.log_records} on the log: LOST")
    if len(accepted) + sources.extra_appends > len(distinct) + (books.log_records - sum(books.handled.values())):
        books.problems.append(f"{len(accepted)} acknowledged, only {len(distinct)} different ones handled: LOST")


def _count_replies(books: Books, rows: dict[str, list[Any]], department: list[Any], settled: bool) -> None:
    received = [line for line in department if line["what"] == "reply"]
    repeated = [line for line in department if line["what"] == "reply_repeated"]
    books.replies_received, books.replies_repeated = len(received), len(repeated)
    problems = Counter(problem for line in (*received, *repeated) for problem in line.get("problems", ()))
    if problems:
        books.problems.append(f"the department finds fault with replies: {dict(problems)}")
    due = [row for row in rows["deliveries"] if row["lane"].startswith(("hl7v2_reply:", "fhir_reply:"))]
    if settled and len(due) != len(received):
        books.problems.append(f"{len(due)} replies due at the department, {len(received)} received")


def _count_case_system(books: Books, rows: dict[str, list[Any]], journal: list[Any], settled: bool) -> None:
    received = [line for line in journal if line["what"] == "alert"]
    repeated = [line for line in journal if line["what"] == "alert_repeated"]
    books.alerts_received, books.alerts_repeated = len(received), len(repeated)
    alert_ids = Counter(line["alert_id"] for line in received)
    if any(count > 1 for count in alert_ids.values()):
        books.problems.append("an alert came twice under different idempotency keys")
    if any(line.get("repeat_differs") for line in repeated):
        books.problems.append("a repeated alert differs from the first")
    # What is said of a list is of no alert.
    pushed = [row for row in rows["deliveries"] if row["lane"].startswith("webhook:") and row["alert_id"]]
    due = {row["alert_id"] for row in pushed}
    if set(alert_ids) - {row["id"] for row in rows["alerts"]}:
        books.problems.append("the case system holds an alert the broker does not know: PHANTOM")
    if settled and due - set(alert_ids):
        books.problems.append(f"{len(due - set(alert_ids))} alerts never reached the case system: LOST")
    said = {row["alert_id"] for row in pushed if row["state"] == "sent"}
    if said - set(alert_ids):
        books.problems.append(f"{len(said - set(alert_ids))} alerts marked sent that nobody received: LOST")


async def _read_database(url: str) -> dict[str, list[Any]]:
    queries = {
        "positions": "SELECT * FROM handled_positions",
        "alerts": "SELECT id, visit_id, authority, role, state, held_by, closed_rule, acknowledged_by FROM alerts",
        "deliveries": "SELECT id, lane, alert_id, reply_id, state FROM deliveries",
    }
    if url.startswith("sqlite"):
        with sqlite3.connect(f"file:{urlsplit(url).path[1:]}?mode=ro", uri=True) as connection:
            connection.row_factory = sqlite3.Row
            found = {name: [dict(row) for row in connection.execute(query)] for name, query in queries.items()}
        connection.close()
        return found
    pg = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        return {name: [dict(row) for row in await pg.fetch(query)] for name, query in queries.items()}
    finally:
        await pg.close()


async def _count_log(sources: Sources) -> int:
    if Path(sources.log).exists():
        connection = sqlite3.connect(f"file:{sources.log}?mode=ro", uri=True)
        try:
            [(count,)] = connection.execute("SELECT count(*) FROM record").fetchall()
            return int(count)
        finally:
            connection.close()
    consumer = aiokafka.AIOKafkaConsumer(sources.topic, bootstrap_servers=sources.log, enable_auto_commit=False)
    await consumer.start()
    try:
        parts = sorted(consumer.assignment())
        first, end = await consumer.beginning_offsets(parts), await consumer.end_offsets(parts)
        return sum(end[part] - first[part] for part in parts)
    finally:
        await consumer.stop()


def _read_journal(path: Path) -> list[Any]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def main() -> None:
    """Reckon an embedded installation whose demonstration ran in DIRECTORY."""
    directory = Path(sys.argv[1])
    sources = Sources(
        database_url=f"sqlite:///{directory.absolute() / 'broker' / 'broker.sqlite'}",
        log=str(directory / "broker" / "log.sqlite"),
        topic="attendances",
        department=directory / "department.jsonl",
        case_system=directory / "case-system.jsonl",
    )
    books = asyncio.run(reckon(sources))
    print(books)
    sys.exit(1 if books.problems else 0)


if __name__ == "__main__":
    main()
