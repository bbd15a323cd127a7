"""Who is told of scheduled care, and who sees that a site has not been classified."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import select

from broker.directory_upload import DirectoryUpload
from broker.storage.tables import HandledPosition, table
from schemas.record import PositionOutcome
from tests.pages import PAT, Pages
from tests.world import CASEY, SITES, World, hl7


async def classify(world: World, setting: str, *, suppressed: str = "no") -> None:
    """Give every site of the world this care setting."""
    upload = DirectoryUpload(
        world.database, world.keyring, world.clock, demo_passwords=True, actor="test", dry_run=False
    )
    header, *rows = SITES.splitlines()
    lines = [f"{header},care_setting,notices_suppressed", *(f"{row},{setting},{suppressed}" for row in rows)]
    report = await upload.load_sites("\n".join(lines).encode(), world.directory / "senders.json")
    assert not report.refused


async def reasons(world: World) -> list[str]:
    async with world.database.reading() as connection:
        positions = table(HandledPosition)
        rows = await connection.execute(select(positions.c.reason).order_by(positions.c.position))
        return [row.reason for row in rows]


async def test_the_rule_of_every_decision_is_on_record(world: World) -> None:
    await world.list_children(CASEY)
    assert await world.receive(hl7(visit="V1")) == [PositionOutcome.ALERTED]
    await classify(world, "emergency_department")
    world.consumer._directory = None
    assert await world.receive(hl7(visit="V2")) == [PositionOutcome.ALERTED]
    await classify(world, "camhs")
    world.consumer._directory = None
    assert await world.receive(hl7(visit="V3")) == [PositionOutcome.SILENT_BY_RULE]
    await classify(world, "sexual_health", suppressed="yes")
    world.consumer._directory = None
    assert await world.receive(hl7(visit="V4")) == [PositionOutcome.SILENT_BY_RULE]
    assert await reasons(world) == [
        "care_setting_not_classified",
        "unscheduled_care",
        "scheduled_care",
        "suppressed_by_local_rule",
    ]
    assert len(await world.alerts()) == 2
    told = {reply.visit_number: "Social care is told." in reply.wording for reply in await world.replies()}
    assert told == {"V1": True, "V2": True, "V3": False, "V4": False}


async def test_a_child_who_was_not_brought_to_scheduled_care_is_alerted_and_looking_back_stays_silent(
    world: World,
) -> None:
    await classify(world, "community_paediatrics")
    await world.receive(hl7(visit="V1"), hl7(visit="V2") + b"ZU3|||3\r")
    await world.list_children(CASEY)
    await world.run_jobs()
    [alert] = await world.alerts()
    assert "was not brought" in alert.alert.reason
    assert alert.alert.kind.value == "was_not_brought"


async def test_a_feed_in_earnest_that_is_marked_as_a_test_loses_nobody_and_operators_see_it(pages: Pages) -> None:
    world, alma = pages.world, {"visit": "V9", "patient": "K9", "nhs_number": "9990000026", "given": "ALMA"}
    await world.list_children(CASEY.replace("L1,9990000018,Tester,Casey", "L2,9990000026,Tester,Alma"))
    async with pages.signed_in(PAT) as operator:
        assert "None in the last two weeks." in (await operator.get("/operations")).text
        message = hl7(**alma).replace(b"|P|2.4", b"|T|2.4")  # type: ignore[arg-type]
        assert await world.receive(message) == [PositionOutcome.ALERTED]
        [alert] = [each.alert for each in await world.alerts() if each.alert.child.given == "Alma"]
        assert "marks this message as a test" in alert.reason
        text = (await operator.get("/operations")).text
        assert "Feeds that mark messages as tests" in text and "Fenwick General Hospital (RZ1): last on" in text
    world.clock.advance(timedelta(days=15))
    await world.run_jobs()
    async with pages.signed_in(PAT) as operator:
        assert "None in the last two weeks." in (await operator.get("/operations")).text


async def test_a_sender_that_is_not_in_the_directory_stands_on_the_list_to_classify(pages: Pages) -> None:
    assert await pages.world.receive(hl7(sender="RZ9", visit="V9")) == [PositionOutcome.ALERTED]
    async with pages.signed_in(PAT) as operator:
        assert "Not in the directory (RZ9)" in (await operator.get("/operations")).text


async def test_operators_see_the_sites_that_nobody_has_classified(pages: Pages) -> None:
    async with pages.signed_in(PAT) as operator:
        text = (await operator.get("/operations")).text
        assert "Sites to classify" in text and "Fenwick General Hospital (RZ1)" in text
        await classify(pages.world, "emergency_department")
        assert "Every site has a care setting." in (await operator.get("/operations")).text
