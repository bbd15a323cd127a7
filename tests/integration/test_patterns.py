"""Patterns named in alerts: only what an authority worded, tried and switched on."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import msgspec
import pytest
from sqlalchemy import select, update

from broker.domain.patterns import PatternKind, PatternRule
from broker.patterns import NotPreviewed, Preview, preview_rule, switch_pattern, word_pattern
from broker.storage import child_lists, patterns, restrictions
from broker.storage.tables import ListEntry, PatternState, table
from tests.integration.test_fhir_api import counted_statements
from tests.integration.test_visits import with_disposition
from tests.pages import ASH, DEE, LIZ, NORTHFOLD, Pages
from tests.world import CASEY, World, hl7

OTHER = "L2,9990000026,Other,Robin,2016-03-02,ZZ99 1AA,child_protection_plan,2026-01-10,,W1,North"
WORDS = {
    PatternKind.VISITS: (3, 60 * 24, "Third visit in two months."),
    PatternKind.SITES: (2, 24, "Two sites within a day."),
    PatternKind.LEFT_BEFORE_TREATMENT: (2, 60 * 24, "Left twice before treatment."),
    PatternKind.SIBLING_VISITS: (1, 24, "Another child of the household came within a day."),
}


async def word(world: World, kind: PatternKind, authority: str = "706", **changes: object) -> PatternRule:
    count, hours, words = WORDS[kind]
    told = {"count_min": count, "window_h": hours, "words": words} | changes
    async with world.database.writing() as connection:
        rule = PatternRule(authority=authority, kind=kind, version=0, **told)  # type: ignore[arg-type]  # by name
        return await word_pattern(connection, rule, by="liz", now=world.clock.now())


async def preview(world: World, rule: PatternRule) -> Preview:
    return await preview_rule(world.database, world.keyring, rule, 90, world.clock.now(), by="liz")


def rule_of(rule: PatternRule, authority: str) -> PatternRule:
    return msgspec.structs.replace(rule, authority=authority)


def local(world: World) -> datetime:
    """Now, as HL7 v2 writes it."""
    return world.clock.now().replace(tzinfo=None)


def of_robin(event: str = "A04", **changes: object) -> bytes:
    return hl7(event, **ROBIN | changes)  # type: ignore[arg-type]  # by name


async def restrict(world: World, nhs_number: str) -> None:
    """What follows when PDS says that a number is restricted."""
    index = child_lists.index_nhs_number(world.keyring, nhs_number)
    async with world.database.writing() as connection:
        entries = select(table(ListEntry).c.id).where(table(ListEntry).c.nhs_index == index)
        for entry_id in (await connection.execute(entries)).scalars().all():
            await restrictions.note_restriction(connection, world.keyring, entry_id, is_restricted=True)


async def switch(world: World, rule: PatternRule, state: PatternState = PatternState.ON) -> None:
    async with world.database.writing() as connection:
        await switch_pattern(connection, rule, state, by="liz", now=world.clock.now())
    world.clock.advance(timedelta(seconds=2))  # the consumer keeps its directory for a moment


async def visit(world: World, number: int, **changes: object) -> str:
    """One more visit, half a day after the one before; returns why the alert came."""
    world.clock.advance(timedelta(hours=12))
    at = world.clock.now().replace(tzinfo=None)
    said = {"visit": f"P{number}", "at": at, **changes}
    await world.receive(hl7(**said))  # type: ignore[arg-type]  # by name
    newest = max(await world.alerts(), key=lambda each: each.raised_at)
    return newest.alert.reason


async def test_nothing_is_named_and_nothing_is_asked_until_a_rule_is_tried_and_on(world: World) -> None:
    await world.list_children(CASEY, OTHER)
    rule = await word(world, PatternKind.VISITS)
    with pytest.raises(NotPreviewed):
        await switch(world, rule)
    with counted_statements(world.database) as statements:
        reasons = [await visit(world, number) for number in range(4)]
    assert not any("Third visit" in reason for reason in reasons)
    assert not any("FROM accesses" in each and "author_index" not in each for each in statements)
    assert await preview(world, rule) == Preview(alerts=4, named=2)
    await switch(world, rule)
    assert (await visit(world, 5)).endswith(" Third visit in two months. (your rule visits, version 1)")
    assert "Third visit" not in await visit(world, 6, nhs_number="9990000026", family="OTHER", given="ROBIN")
    anew = await word(world, PatternKind.VISITS, count_min=9)
    await preview(world, anew)
    await switch(world, anew)
    assert "Third visit" not in await visit(world, 7)
    async with world.database.reading() as connection:
        states = [(each.rule.version, each.state) for each in await patterns.list_rules(connection)]
    assert states == [(2, PatternState.ON), (1, PatternState.OFF)]


async def test_a_rule_tried_on_history_names_what_it_would_have_named_however_late_the_message_came(
    world: World,
) -> None:
    await world.list_children(CASEY)
    rule = await word(world, PatternKind.VISITS, count_min=2, window_h=24)
    await preview(world, rule)
    await switch(world, rule)
    named = 0
    for number, (hours, late_h) in enumerate(((12, 0), (24, 2), (30, 0), (25, 20))):
        world.clock.advance(timedelta(hours=hours))
        at = local(world) - timedelta(hours=late_h)
        await world.receive(hl7(visit=f"L{number}", at=at))
        newest = max(await world.alerts(), key=lambda each: each.raised_at)
        named += "Third visit" in newest.alert.reason
    assert named == 2
    assert await preview(world, rule) == Preview(alerts=4, named=named)


async def test_sites_are_counted_across_departments_and_only_for_the_authority_that_asked(world: World) -> None:
    await world.list_children(CASEY)
    await world.list_children("E5," + CASEY.partition(",")[2], authority="707")
    rule = await word(world, PatternKind.SITES)
    await preview(world, rule)
    await switch(world, rule)
    assert "Two sites" not in await visit(world, 1)
    elsewhere = {"sender": "RZ2", "credential": "rz2-credential", "patient": "O1"}
    assert "Two sites within a day." in await visit(world, 2, **elsewhere)
    assert not any("Two sites" in each.alert.reason for each in await world.alerts("707"))
    async with world.database.writing() as connection:
        await connection.execute(update(table(ListEntry)).values(is_restricted=True))
    assert "Two sites" not in await visit(world, 9), "of a restricted person nothing is counted by site"
    world.clock.advance(timedelta(days=2))
    assert "Two sites" not in await visit(world, 3)


async def test_a_visit_that_was_somebody_elses_or_is_another_already_is_not_counted(world: World) -> None:
    await world.list_children(CASEY, OTHER)
    rule = await word(world, PatternKind.VISITS, count_min=2)
    await preview(world, rule)
    await switch(world, rule)
    await visit(world, 1, patient="O2")
    await world.receive(of_robin("A08", visit="P1", at=local(world) + timedelta(minutes=1)))
    assert "Third visit" not in await visit(world, 2), "the first was Robin's"
    await visit(world, 3, patient="O9", nhs_number="")
    assert "Third visit" in await visit(world, 4)
    assert await preview(world, rule) == Preview(alerts=4, named=1)


async def test_look_back_names_them_too_and_what_is_sent_is_what_is_shown(world: World) -> None:
    await world.list_children(CASEY)
    rule = await word(world, PatternKind.VISITS, count_min=2)
    await preview(world, rule)
    await switch(world, rule)
    await visit(world, 1)
    world.clock.advance(timedelta(hours=6))
    wrong = datetime(2026, 2, 14, 20, 0)  # noqa: DTZ001 - HL7 v2 writes local time
    await world.receive(hl7(visit="P2", at=wrong, nhs_number="9990000042"))
    assert len(await world.alerts()) == 1
    await world.receive(hl7("A08", visit="P2", at=wrong + timedelta(minutes=1)))
    newest = max(await world.alerts(), key=lambda each: each.raised_at)
    assert "Third visit" in newest.alert.reason


async def test_who_left_before_treatment_twice_is_named_at_the_next_visit(world: World) -> None:
    await world.list_children(CASEY)
    rule = await word(world, PatternKind.LEFT_BEFORE_TREATMENT)
    await preview(world, rule)
    await switch(world, rule)
    for number in (1, 2):
        assert "Left twice" not in await visit(world, number)
        at = world.clock.now().replace(tzinfo=None) + timedelta(minutes=5)
        await world.receive(with_disposition(hl7("A03", visit=f"P{number}", at=at), "12"))
    assert "Left twice before treatment." in await visit(world, 3)
    assert await preview(world, rule) == Preview(alerts=3, named=1)


ROBIN = {"nhs_number": "9990000026", "family": "OTHER", "given": "ROBIN", "patient": "O2"}
ALEX = {"nhs_number": "9990000034", "family": "ELSE", "given": "ALEX", "patient": "O3"}
NOT_LISTED = "9990000042"
MOTHER = f"L3,{NOT_LISTED},Tester,Jo,1990-03-02,ZZ99 1AA,unborn_child_protection_plan,2026-01-10,,W1,North,,F-17"
TWICE = CASEY.replace("child_protection_plan", "looked_after_child")
CAME = "Another child of the household"


async def test_a_sibling_is_who_the_authority_itself_recorded_as_of_the_same_household(world: World) -> None:
    await world.list_children(f"{CASEY},,F-17", f"{TWICE},,F-17", f"{OTHER},,F-17", MOTHER)
    alex = "E9,9990000034,Else,Alex,2016-03-02,ZZ99 1AA,child_protection_plan,2026-01-10,,W7,East,,F-17"
    await world.list_children(alex, authority="707")
    for authority in ("706", "707"):
        rule = await word(world, PatternKind.SIBLING_VISITS, authority)
        await preview(world, rule)
        await switch(world, rule)
    mother = {"nhs_number": NOT_LISTED, "given": "JO", "birth_date": date(1990, 3, 2), "patient": "O4"}
    assert CAME not in await visit(world, 1, **mother), "nobody of the household had come"
    assert CAME not in await visit(world, 2), "the mother of an unborn child is no child of the household"
    await visit(world, 3, **ALEX)
    assert CAME not in await visit(world, 4), "a child is no sibling of its own, by whichever entry"
    assert not any(CAME in each.alert.reason for each in await world.alerts("707")), "another's reference is another's"
    reason = await visit(world, 5, **ROBIN)
    assert reason.endswith(" Another child of the household came within a day. (your rule sibling visits, version 1)")
    [newest, *_] = sorted(await world.alerts(), key=lambda each: each.raised_at, reverse=True)
    assert b"F-17" not in msgspec.json.encode(newest.alert), "the reference stays with the list"
    world.clock.advance(timedelta(days=1))
    assert CAME not in await visit(world, 6, **ROBIN), "a day and a half later"
    world.clock.advance(timedelta(days=2))
    together = [hl7(visit="T1", at=local(world)), of_robin(visit="T2", at=local(world))]
    await world.receive(*together)
    named = [each.alert.reason for each in await world.alerts() if each.raised_at == world.clock.now()]
    assert [CAME in each for each in named] == [True, True], "they came together: either alert names the other"
    assert await preview(world, rule_of(rule, "706")) == Preview(alerts=7, named=3)


async def test_a_siblings_visit_is_named_only_as_far_as_it_stands_and_shows_no_place(world: World) -> None:
    await world.list_children(f"{CASEY},,F-17", f"{OTHER},,F-17")
    rule = await word(world, PatternKind.SIBLING_VISITS)
    await preview(world, rule)
    await switch(world, rule)
    await visit(world, 1, **ROBIN)
    at = local(world) + timedelta(minutes=5)
    await world.receive(of_robin("A08", visit="P1", at=at, nhs_number=NOT_LISTED, given="JO"))
    assert CAME not in await visit(world, 2), "the department corrected who had come"
    await restrict(world, "9990000026")
    assert CAME not in await visit(world, 3, **ROBIN), "of an open visit a restricted child's alert says nothing"
    assert CAME not in await visit(world, 4), "this alert's place would show where the restricted child was"
    await restrict(world, "9990000018")
    assert CAME in await visit(world, 5, **ROBIN), "neither alert says where"
    async with world.database.reading() as connection:
        [entry, *_] = await child_lists.load_list(connection, world.keyring, "706")
        household = await child_lists.find_household(connection, world.keyring, [entry.entry_id], rows_max=2)
        assert len(household) == 2
        assert not await child_lists.find_household(connection, world.keyring, [entry.entry_id], rows_max=1)
    await world.list_children(CASEY, OTHER)
    assert CAME not in await visit(world, 6, **ROBIN), "the list has no household any more"


async def test_an_authority_words_tries_and_switches_its_own_rules_on_a_page(pages: Pages) -> None:
    told = {"kind": "visits", "count": "2", "hours": "48", "words": "Second visit <in> two days."}
    async with pages.signed_in(LIZ) as liz:
        for wrong in ({"kind": "score"}, {"count": "0"}, {"count": "-1"}, {"hours": "9999999"}, {"words": " \u200b"}):
            refused = await liz.send_form("/patterns", **told | wrong)
            assert (refused.status_code, "The rule was not kept" in refused.text) == (400, True), wrong
        assert "You have no rule" in (await liz.get("/patterns")).text
        assert (await liz.post("/patterns", data=told)).status_code == 400
        assert (await liz.send_form("/patterns", **told)).status_code == 303
        assert (await liz.send_form("/patterns/visits/1/on")).status_code == 400
        tried = await liz.send_form("/patterns/visits/1/preview")
        assert "named in 0 of 1 alerts of the last 90 days" in tried.text
        assert "Second visit &lt;in&gt; two days." in tried.text
        for path in ("visits/2/on", "visits/1/delete", "score/1/on", "visits/x/off", "visits/99999999999999999999/on"):
            assert (await liz.send_form(f"/patterns/{path}")).status_code == 404, path
        await word(pages.world, PatternKind.SITES, authority="707")
        assert "Two sites within a day." not in (await liz.get("/patterns")).text
        assert (await liz.send_form("/patterns/sites/1/preview")).status_code == 404
    async with pages.signed_in(DEE) as dee:
        assert (await dee.send_form("/patterns/visits/1/on")).status_code == 303
    async with pages.world.database.reading() as connection:
        [rule] = (await patterns.load_rules_on(connection))["706"]
    assert (rule.words, rule.count_min, rule.window_h) == ("Second visit <in> two days.", 2, 48)
    acts = [each for each in await pages.acts(NORTHFOLD) if each[1].startswith("pattern.")]
    assert acts == [
        (LIZ, "pattern.worded", "visits/1"),
        (LIZ, "pattern.previewed", "visits/1"),
        (DEE, "pattern.on", "visits/1"),
    ]
    async with pages.signed_in(ASH) as ash:
        assert (await ash.get("/patterns")).status_code == 403
