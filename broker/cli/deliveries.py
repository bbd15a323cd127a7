"""What did not reach its recipient: seen, and sent again once the cause is mended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from broker.cli.screen import ByOption, JsonOption, WhyOption, console, fail, print_json
from broker.cli.work import person, run
from broker.exits import EXIT_NOT_WELL

if TYPE_CHECKING:
    from broker.settings import Settings
    from broker.storage.database import Database
    from broker.storage.outbox import Unreached

LANES_MAX: Final = 1000


def list_deliveries(as_json: JsonOption = False) -> None:
    """Recipients that were not reached, and why: refused, given up, or tried in vain so far. Nothing about anybody."""
    from broker.clock import SystemClock
    from broker.storage import outbox
    from broker.terminal import show_age

    async def load(_: Settings, database: Database) -> list[Unreached]:
        async with database.reading() as connection:
            return await outbox.list_unreached(connection, rows_max=LANES_MAX)

    found = run(load)
    if as_json:
        print_json(found)
        return
    now = SystemClock().now()
    for each in found:
        ended, age = each.state.value.replace("_", " "), show_age(now - each.oldest_at)
        console.print(
            f"{each.lane}: {each.deliveries} {ended}, {each.code}, the oldest from {age} ago",
            soft_wrap=True,
            markup=False,
        )
    console.print(
        "cpis-broker deliveries resend RECIPIENT --by NAME sends what was refused or given up again"
        if found
        else "every delivery that was tried has reached its recipient",
        soft_wrap=True,
    )


def resend_deliveries(
    recipient: Annotated[str, typer.Argument(metavar="RECIPIENT", help="As deliveries list shows it.")],
    by: ByOption = "",
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Send again what a recipient refused, or what was given up, once the cause is mended. Who asked is audited.

    The ids stay the same, so that a recipient that has one of them takes it once.
    """
    from broker.clock import SystemClock
    from broker.storage import audit, outbox
    from broker.storage.audit import Act
    from schemas.identifiers import BROKER_OWNER

    who = person(by, "sending again is audited")

    async def resend(_: Settings, database: Database) -> tuple[int, int]:
        now = SystemClock().now()
        async with database.writing() as connection:
            again, left = await outbox.resend_deliveries(connection, recipient, now)
            if again:
                act = Act(owner=BROKER_OWNER, actor=who, action="deliveries.resent", subject=recipient, reason=why)
                await audit.record_acts(connection, [act], now)
            return again, left

    again, left = run(resend)
    if as_json:
        print_json({"recipient": recipient, "again": again, "left": left})
    elif again or left:
        overtaken = (
            f"; {left} stay: something newer about the same was sent, or they are not kept any more" if left else ""
        )
        console.print(f"{recipient}: {again} will be sent again{overtaken}", soft_wrap=True, markup=False)
    if not (again or left):
        fail(f"nothing to {recipient!a} was refused or given up: see cpis-broker deliveries list", EXIT_NOT_WELL)
