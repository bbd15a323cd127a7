"""Files that came by MESH and that nobody could load: seen, settled, taken once more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from broker.cli.quarantine import write_private
from broker.cli.screen import ByOption, JsonOption, WhyOption, console, fail, print_json
from broker.cli.work import person, run
from broker.exits import EXIT_NOT_WELL

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from broker.keyring import Keyring
    from broker.settings import Settings
    from broker.storage.database import Database
    from broker.storage.mesh_files import StoredFile

    Found = tuple[StoredFile, bytes | None] | None

FILE_ROWS_MAX: Final = 1000
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As mesh list shows it.")]


def list_files(
    everything: Annotated[bool, typer.Option("--all", help="Also those that are settled.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Messages of the MESH mailbox that are not settled, oldest first, without their contents."""
    from broker.clock import SystemClock
    from broker.storage import mesh_files
    from broker.terminal import show_age

    async def load(_: Settings, database: Database) -> list[StoredFile]:
        async with database.reading() as connection:
            return await mesh_files.list_files(connection, everything=everything, rows_max=FILE_ROWS_MAX)

    files = run(load)
    if as_json:
        print_json(files)
        return
    now = SystemClock().now()
    for file in files:
        state = file.decision or file.state.value
        kept = "its bytes are here" if file.is_kept else "its bytes are not here"
        for line in (
            f"{file.id}  {state}, with {file.held_by}",
            f"  {file.reason or 'in hand'}{f': {file.detail}' if file.detail else ''}",
            f"  from {file.sender or 'nobody known'}, for {file.owner}, {show_age(now - file.kept_at)} ago; {kept}",
        ):
            console.print(line, soft_wrap=True, markup=False)
    console.print(
        "cpis-broker mesh show ID --by NAME writes its bytes" if files else "nothing of MESH waits for a person"
    )


def show_file(
    item_id: IdArgument,
    raw: Annotated[Path, typer.Option(help="Write the exact bytes here.")],
    by: ByOption = "",
) -> None:
    """Write the bytes of a file that could not be loaded to a new file. That you looked is audited."""
    from broker.storage import mesh_files

    who = person(by, "a list is about children")

    async def load(connection: AsyncConnection, keyring: Keyring) -> Found:
        return await mesh_files.load_file(connection, keyring, item_id)

    found = run(_audited(load, "mesh.shown", who, ""))
    if found is None:
        fail(f"there is no message {item_id!a}: cpis-broker mesh list shows their ids", EXIT_NOT_WELL)
    if found[1] is None:
        fail("its bytes are not here, or the key they are kept under is not in CPIS_FIELD_KEYS", EXIT_NOT_WELL)
    write_private(raw, found[1])
    console.print(f"{len(found[1])} bytes written to {raw}, readable only by you", soft_wrap=True, markup=False)


def settle_file(item_id: IdArgument, by: ByOption = "", why: WhyOption = "") -> None:
    """Say that a message is dealt with: it waits no longer, and its bytes are removed."""
    from broker.clock import SystemClock
    from broker.storage import mesh_files

    who = person(by, "a decision is audited")

    async def settle(connection: AsyncConnection, _: Keyring) -> Found:
        now = SystemClock().now()
        file = await mesh_files.settle_file(connection, item_id, decision="settled", by=who, now=now)
        return (file, None) if file is not None else None

    if run(_audited(settle, "mesh.settled", who, why)) is None:
        fail(f"message {item_id!a} does not wait for a person: see cpis-broker mesh list", EXIT_NOT_WELL)
    console.print("settled; its bytes are removed")


def take_again(item_id: IdArgument, by: ByOption = "", why: WhyOption = "") -> None:
    """Take a message once more that was too large: set CPIS_MESH_MESSAGE_BYTES_MAX higher before."""
    from broker.storage import mesh_files

    who = person(by, "a decision is audited")

    async def again(connection: AsyncConnection, _: Keyring) -> Found:
        file = await mesh_files.ask_again(connection, item_id)
        return (file, None) if file is not None else None

    if run(_audited(again, "mesh.asked_again", who, why)) is None:
        fail(f"message {item_id!a} is not one that stayed in the mailbox: see cpis-broker mesh list", EXIT_NOT_WELL)
    console.print("it is taken with the next round of the part jobs")


def _audited(
    work: Callable[[AsyncConnection, Keyring], Awaitable[Found]], action: str, who: str, why: str
) -> Callable[[Settings, Database], Awaitable[Found]]:
    """Work on one file, audited under its owner in the same transaction where there was such a file."""

    async def do(settings: Settings, database: Database) -> Found:
        from broker import bootstrap
        from broker.clock import SystemClock
        from broker.storage import audit
        from broker.storage.audit import Act

        async with database.writing() as connection:
            found = await work(connection, bootstrap.load_keyring(settings))
            if found is not None:
                act = Act(owner=found[0].owner, actor=who, action=action, subject=found[0].id, reason=why)
                await audit.record_acts(connection, [act], SystemClock().now())
            return found

    return do
