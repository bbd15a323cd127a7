"""Messages that could not be handled: seen and handled again."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final

import msgspec
import typer

from broker.cli.screen import ByOption, JsonOption, WhyOption, console, errors, fail, print_json
from broker.cli.work import person, run
from broker.exits import EXIT_CONFIGURATION, EXIT_NOT_WELL

if TYPE_CHECKING:
    from broker.replay import ItemReport
    from broker.settings import Settings
    from broker.storage.database import Database
    from broker.storage.quarantine import KeptMessage, StoredQuarantined

QUARANTINE_ROWS_MAX: Final = 1000


def list_quarantine(
    everything: Annotated[bool, typer.Option("--all", help="Also those that are settled.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Messages that could not be handled and wait for a person, oldest first, without their contents."""
    from broker.clock import SystemClock
    from broker.storage import quarantine
    from broker.terminal import show_age

    async def load(_: Settings, database: Database) -> list[StoredQuarantined]:
        choose = quarantine.list_all if everything else quarantine.list_open
        async with database.reading() as connection:
            return await choose(connection, rows_max=QUARANTINE_ROWS_MAX)

    items = run(load)
    now = SystemClock().now()
    if as_json:
        print_json(
            [
                msgspec.to_builtins(item)
                | {"age_s": int((now - item.kept_at).total_seconds()), "is_overdue": _is_overdue(item, now)}
                for item in items
            ]
        )
        return
    for item in items:
        state = (item.decision or item.state.value) + (", overdue" if _is_overdue(item, now) else "")
        replays = f", replayed {item.attempts} times" if item.attempts else ""
        for line in (
            f"{item.id}  {state}, with {item.held_by}",
            f"  {item.reason}: {item.detail}",
            f"  from {item.sender or 'nobody known'}, {item.topic} {item.partition}/{item.offset}, "
            f"kept {item.kept_at:%Y-%m-%d %H:%M:%S} UTC, {show_age(now - item.kept_at)} ago{replays}",
        ):
            console.print(line, soft_wrap=True, markup=False)
    console.print(
        "cpis-broker quarantine show ID --by NAME says what is in one" if items else "nothing is in quarantine"
    )


def show_quarantined(
    item_id: Annotated[str, typer.Argument(metavar="ID", help="As quarantine list shows it.")],
    by: ByOption = "",
    raw: Annotated[Path | None, typer.Option(help="Write the exact bytes here instead of showing them.")] = None,
) -> None:
    """Show the contents of one message that could not be handled, and why. That you looked is audited."""
    from broker import bootstrap
    from broker.clock import SystemClock
    from broker.storage import audit, quarantine
    from broker.storage.audit import Act
    from schemas.identifiers import BROKER_OWNER

    who = person(by, "showing a message is reading about a person")

    async def load(settings: Settings, database: Database) -> KeptMessage | None:
        async with database.writing() as connection:
            keyring = bootstrap.load_keyring(settings)
            kept = (await quarantine.load_kept(connection, keyring, [item_id])).get(item_id)
            if kept is not None:
                act = Act(owner=BROKER_OWNER, actor=who, action="quarantine.shown", subject=item_id)
                await audit.record_acts(connection, [act], SystemClock().now())
            return kept

    kept = run(load)
    if kept is None:
        fail(f"there is no item {item_id!a}: cpis-broker quarantine list shows their ids", EXIT_NOT_WELL)
    if kept.body is None:
        fail("its bytes do not open: the key they are kept under is not in CPIS_FIELD_KEYS", EXIT_NOT_WELL)
    if raw is not None:
        write_private(raw, kept.body)
        console.print(f"{len(kept.body)} bytes written to {raw}, readable only by you", soft_wrap=True, markup=False)
        return
    _print_kept(kept.item, kept.body)


def replay_quarantined(
    *,
    item_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Items to replay.")] = None,
    by: ByOption = "",
    why: WhyOption = "",
    reason: Annotated[str, typer.Option(help="Every open item with this reason.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Every open item.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Have messages handled again that could not be handled. Who asked is audited; nobody is alerted twice."""
    from broker.bootstrap.replays import open_replayers
    from broker.replay import replay_item
    from broker.storage import quarantine
    from broker.terminal import showing_progress

    who = person(by, "a replay is audited")
    if sum((bool(item_ids), bool(reason), everything)) != 1:
        fail("choose the items: their ids, or --reason WORD, or --all", EXIT_CONFIGURATION)

    async def replay(settings: Settings, database: Database) -> list[ItemReport]:
        wanted = list(dict.fromkeys(item_ids or []))
        if not wanted:
            async with database.reading() as connection:
                found = await quarantine.list_open(connection, rows_max=QUARANTINE_ROWS_MAX)
            wanted = [item.id for item in found if everything or item.reason == reason]
        reports = []
        with showing_progress(errors, "replaying") as advance:
            async with open_replayers(settings, database) as replayers:
                for done, item_id in enumerate(wanted, start=1):
                    reports.append(await replay_item(replayers.values(), item_id, by=who, reason=why))
                    advance(done, len(wanted))
        return reports

    reports = run(replay)
    if as_json:
        print_json(reports)
    else:
        for report in reports:
            console.print(f"{report.id}: {report.result}", markup=False, soft_wrap=True)
        asked = sum(report.is_asked for report in reports)
        console.print(
            f"{asked} of {len(reports)} asked for; the parts attendances and encompass handle them, "
            "then cpis-broker quarantine list shows what is left",
            soft_wrap=True,
        )
    if not all(report.is_asked for report in reports):
        raise typer.Exit(EXIT_NOT_WELL)


def _is_overdue(item: StoredQuarantined, now: datetime) -> bool:
    from broker.storage.tables import ItemState

    return item.state is ItemState.OPEN and (item.due_by <= now or item.level > 0)


def _print_kept(item: StoredQuarantined, body: bytes) -> None:
    from adapters.content import sniff_content
    from adapters.hl7v2_conformance import find_conformance_issues
    from broker.terminal import show_message

    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    facts = {
        "reason": item.reason,
        "detail": item.detail,
        "sender": item.sender or "not known",
        "kept at": f"{item.kept_at:%Y-%m-%d %H:%M:%S} UTC",
        "position": f"{item.topic} {item.partition}/{item.offset}",
        "replays": f"{item.attempts}, the last at {item.last_attempt_at:%Y-%m-%d %H:%M:%S} UTC"
        if item.last_attempt_at
        else "none",
        "state": f"{item.decision} by {item.decided_by}" if item.decision else item.state.value,
    }
    for name, fact in facts.items():
        console.print(f"{name}: {fact}", markup=False, soft_wrap=True)
    if sniff_content(body) == "hl7v2":
        for finding in find_conformance_issues(body):
            console.print(f"HL7 v2: {finding}", markup=False, soft_wrap=True)
    console.print(f"\n{show_message(body, encoding=encoding)}", markup=False, soft_wrap=True)


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that only its owner can read; end with a sentence where that cannot be."""
    with opening_private(path) as file:
        file.write(content)


@contextmanager
def opening_private(path: Path) -> Iterator[BinaryIO]:
    """As ``write_private``, for what is written bit by bit."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            yield file
    except OSError as error:
        fail(f"{path} cannot be written ({type(error).__name__}); it must not exist yet", EXIT_NOT_WELL)
