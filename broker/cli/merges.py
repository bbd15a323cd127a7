"""Records that departments joined: seen, and parted again by a person."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from broker.cli.screen import ByOption, JsonOption, WhyOption, console, fail, print_json
from broker.cli.work import person, run
from broker.exits import EXIT_CONFIGURATION, EXIT_NOT_WELL

if TYPE_CHECKING:
    from broker.settings import Settings
    from broker.storage.database import Database
    from broker.storage.persons import StoredMerge

MERGES_ROWS_MAX: Final = 200
_MERGE_ID: Final = re.compile(r"([0-9a-f]{2}){16,32}", re.ASCII)


def list_merges(
    alert: Annotated[str, typer.Option(help="Only those that concern the visit of this alert.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Records that departments joined, the latest first, without saying of whom."""
    from broker.bootstrap.safety import load_keyring
    from broker.storage import persons

    async def load(settings: Settings, database: Database) -> list[StoredMerge]:
        async with database.reading() as connection:
            return await persons.list_merges(
                connection, load_keyring(settings), alert_id=alert or None, rows_max=MERGES_ROWS_MAX
            )

    found = run(load)
    if as_json:
        print_json([msgspec.to_builtins(each) for each in found])
        return
    for each in found:
        state = "taken back by a person" if each.is_undone else "stands, unless A37 parted them"
        console.print(f"{each.id}  {state}", soft_wrap=True, markup=False)
        console.print(f"  {each.event} of {each.sender}, received {each.received_at:%Y-%m-%d %H:%M:%S} UTC")
    console.print("cpis-broker merges undo ID --by NAME parts two records again" if found else "there is no merge")


def undo_merge(
    merge_id: Annotated[str, typer.Argument(metavar="ID", help="As merges list shows it.")],
    by: ByOption = "",
    why: WhyOption = "",
) -> None:
    """Part two records that a department joined in error, as its A37 would: what rested on it is withdrawn."""
    from broker.bootstrap.merges import open_consumer

    who = person(by, "taking a merge back is audited")
    if not _MERGE_ID.fullmatch(merge_id):
        fail("the id is the long word that merges list shows", EXIT_CONFIGURATION)

    async def undo(settings: Settings, database: Database) -> bool:
        async with open_consumer(settings, database) as consumer:
            return await consumer.undo_merge(bytes.fromhex(merge_id), by=who, reason=why)

    if not run(undo):
        fail("there is no such merge, or it was taken back before", EXIT_NOT_WELL)
    console.print("The two records are two people again. What was told in error is being withdrawn.")
