"""The audit on both databases: whatever is changed behind the broker's back is found."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.storage import audit
from broker.storage.audit import Act, record_acts
from tests.world import World, open_world

OWNER, OTHER = "authority:706", "authority:707"
RECORDS = 12
TAMPERINGS_AT_RANDOM = 40


def act(owner: str = OWNER, subject: str = "00", actor: str = "ash@706.example.org") -> Act:
    return Act(owner=owner, actor=actor, action="alert.opened", subject=subject, reason="on duty")


async def record(world: World, *acts: Act) -> None:
    async with world.database.writing() as connection:
        await record_acts(connection, acts, world.clock.now())
    world.clock.advance(timedelta(milliseconds=1))


async def fill(world: World) -> None:
    """Twelve records of each of two owners, some alone, some together."""
    for number in range(0, RECORDS, 2):
        await record(world, act(subject=f"{number}"))
        await record(world, act(subject=f"{number + 1}"), act(OTHER, f"{number}"), act(OTHER, f"{number + 1}"))


async def problems(world: World) -> dict[str, str]:
    async with world.database.reading() as connection:
        return await problems_in(connection)


async def problems_in(connection: AsyncConnection) -> dict[str, str]:
    owners = await audit.list_chains(connection)
    found = {owner: await audit.verify_chain(connection, owner) for owner in owners}
    return {owner: problem for owner, problem in found.items() if problem is not None}


async def run(world: World, *statements: str, **values: object) -> None:
    """What somebody with every right to the database could do."""
    async with world.database.writing() as connection:
        for statement in statements:
            await connection.execute(text(statement), {"owner": OWNER, **values})


ROW = "owner = :owner AND sequence = :n"


async def test_an_untouched_chain_is_whole(world: World) -> None:
    await fill(world)
    assert await problems(world) == {}


TAMPERINGS_BY_HAND: list[tuple[list[str], str]] = [
    ([f"UPDATE audit SET actor = 'kit@707.example.org' WHERE {ROW}"], "record 5 was changed"),
    ([f"UPDATE audit SET action = 'alert.listed' WHERE {ROW}"], "record 5 was changed"),
    ([f"UPDATE audit SET subject = 'ff' WHERE {ROW}"], "record 5 was changed"),
    ([f"UPDATE audit SET reason = '' WHERE {ROW}"], "record 5 was changed"),
    ([f"UPDATE audit SET reason = reason || ' ' WHERE {ROW}"], "record 5 was changed"),
    (
        ["UPDATE audit SET at = (SELECT at FROM audit WHERE owner = :owner AND sequence = 4) WHERE " + ROW],
        "record 5 was changed",
    ),
    (
        [f"UPDATE audit SET hash = (SELECT hash FROM audit WHERE owner = :owner AND sequence = 4) WHERE {ROW}"],
        "record 5 was changed",
    ),
    ([f"UPDATE audit SET owner = 'authority:707', sequence = 99 WHERE {ROW}"], "record 5 is missing"),
    ([f"DELETE FROM audit WHERE {ROW}"], "record 5 is missing"),
    (["DELETE FROM audit WHERE owner = :owner AND sequence = 1"], "record 1 is missing"),
    (["DELETE FROM audit WHERE owner = :owner AND sequence = 12"], "the end of the chain is missing"),
    (["DELETE FROM audit WHERE owner = :owner AND sequence > :n"], "the end of the chain is missing"),
    (["DELETE FROM audit WHERE owner = :owner"], "the end of the chain is missing"),
    (["DELETE FROM audit_heads WHERE owner = :owner"], "the end of the chain is missing"),
    (["UPDATE audit_heads SET sequence = sequence + 1 WHERE owner = :owner"], "the end of the chain is missing"),
    (["UPDATE audit_heads SET sequence = sequence - 1 WHERE owner = :owner"], "the end of the chain is missing"),
    (
        [
            f"DELETE FROM audit WHERE {ROW}",
            "UPDATE audit SET sequence = sequence - 1 WHERE owner = :owner AND sequence = 6",
        ],
        "record 5 was changed",
    ),
    (
        [
            f"UPDATE audit SET sequence = 99 WHERE {ROW}",
            "UPDATE audit SET sequence = 5 WHERE owner = :owner AND sequence = 6",
            "UPDATE audit SET sequence = 6 WHERE owner = :owner AND sequence = 99",
        ],
        "record 5 was changed",
    ),
    (
        [
            "INSERT INTO audit (owner, sequence, at, actor, action, subject, reason, hash) SELECT owner, 13, at, "
            f"actor, action, subject, reason, hash FROM audit WHERE {ROW}"
        ],
        "record 13 was changed",
    ),
]


async def test_each_kind_of_tampering_is_found_in_its_own_chain(world: World) -> None:
    await fill(world)
    for statements, problem in TAMPERINGS_BY_HAND:
        async with world.database.writing() as connection:
            for statement in statements:
                await connection.execute(text(statement), {"owner": OWNER, "n": 5})
            found = await problems_in(connection)
            await connection.rollback()
        assert found.pop(OWNER) == problem, statements
        # A record that was moved to another owner breaks that owner's chain as well.
        assert set(found) == ({OTHER} if "SET owner" in statements[0] else set()), statements
    assert await problems(world) == {}


async def test_a_chain_that_was_taken_whole_from_its_head_is_still_looked_at(world: World) -> None:
    await fill(world)
    await run(world, "DELETE FROM audit_heads")
    assert OWNER in await problems(world)
    assert OTHER in await problems(world)


async def tamper(connection: AsyncConnection, chance: random.Random) -> str:
    """One change at random that leaves another database than before."""
    n, m = chance.sample(range(1, RECORDS + 1), 2)
    column = chance.choice(["actor", "action", "subject", "reason"])
    statements = chance.choice(
        [
            [f"UPDATE audit SET {column} = {column} || 'x' WHERE {ROW}"],
            [f"UPDATE audit SET {column} = substr({column}, 2) WHERE {ROW}"],
            [f"DELETE FROM audit WHERE {ROW}"],
            ["DELETE FROM audit WHERE owner = :owner AND sequence >= :n"],
            [
                f"UPDATE audit SET sequence = 1000 WHERE {ROW}",
                "UPDATE audit SET sequence = :n WHERE owner = :owner AND sequence = :m",
                "UPDATE audit SET sequence = :m WHERE owner = :owner AND sequence = 1000",
            ],
            [
                "UPDATE audit SET hash = (SELECT hash FROM audit WHERE owner = :owner AND sequence = :m) WHERE " + ROW,
            ],
            [
                "UPDATE audit SET subject = (SELECT subject || '-' FROM audit WHERE owner = :owner AND sequence = :m), "
                "hash = (SELECT hash FROM audit WHERE owner = :owner AND sequence = :m) WHERE " + ROW,
            ],
        ]
    )
    for statement in statements:
        await connection.execute(text(statement), {"owner": OWNER, "n": n, "m": m})
    return f"{statements} n={n} m={m}"


async def test_tampering_at_random_is_always_found(world: World) -> None:
    await fill(world)
    chance = random.Random(706)
    for _ in range(TAMPERINGS_AT_RANDOM):
        async with world.database.writing() as connection:
            done = await tamper(connection, chance)
            assert await audit.verify_chain(connection, OWNER) is not None, done
            assert await audit.verify_chain(connection, OTHER) is None, done
            await connection.rollback()
    assert await problems(world) == {}


async def test_a_transaction_that_fails_leaves_the_chain_as_it_was(world: World) -> None:
    await fill(world)
    with pytest.raises(RuntimeError):
        async with world.database.writing() as connection:
            await record_acts(connection, [act(), act(OTHER)], world.clock.now())
            raise RuntimeError
    assert await problems(world) == {}
    await record(world, act())
    assert await problems(world) == {}


async def test_an_act_that_cannot_be_audited_does_not_happen(world: World) -> None:
    async with world.database.reading() as connection:
        before = await audit.list_chains(connection)
    with pytest.raises(Exception, match=r"(?i)foreign key"):
        async with world.database.writing() as connection:
            await connection.execute(text("INSERT INTO owners (id, name) VALUES ('authority:790', 'Kept nowhere')"))
            await record_acts(connection, [act("authority:799")], world.clock.now())
    async with world.database.reading() as connection:
        assert await audit.list_chains(connection) == before
        assert (await connection.execute(text("SELECT 1 FROM owners WHERE id = 'authority:790'"))).first() is None


async def test_nothing_to_audit_writes_nothing(world: World) -> None:
    async with world.database.writing() as connection:
        before = await audit.list_chains(connection)
        await record_acts(connection, [], world.clock.now())
        assert await audit.list_chains(connection) == before


async def test_concurrent_appends_to_one_owner_keep_the_chain_whole(world: World) -> None:
    await asyncio.gather(*(record(world, act(subject=f"{number}")) for number in range(30)))
    assert await problems(world) == {}
    async with world.database.reading() as connection:
        kept = await connection.execute(text("SELECT count(*) FROM audit WHERE subject <> '' AND actor LIKE 'ash@%'"))
        assert kept.scalar_one() == 30


async def test_concurrent_appends_to_several_owners_in_any_order_do_not_deadlock(
    postgres_url: str, tmp_path: Path
) -> None:
    owners = [OWNER, OTHER, "organisation:RZ1", "organisation:RZ2", "broker:operations"]
    async with open_world(postgres_url, tmp_path) as world:
        chance = random.Random(707)

        async def append(number: int) -> None:
            chosen = chance.sample(owners, chance.randint(1, len(owners)))
            async with world.database.writing() as connection:
                await record_acts(
                    connection,
                    [act(owner, f"{number}-{turn}") for turn in range(2) for owner in chosen],
                    world.clock.now(),
                )
                # Held a little, so that the others really meet these locks.
                await connection.execute(text("SELECT pg_sleep(0.002)"))

        async with asyncio.timeout(30):
            await asyncio.gather(*(append(number) for number in range(60)))
        assert await problems(world) == {}
        async with world.database.reading() as connection:
            assert set(owners) <= set(await audit.list_chains(connection))


async def test_what_was_done_lately_is_found_by_who_and_what(world: World) -> None:
    began = world.clock.now()
    await record(world, act(subject="a"), act(subject="b"), act(subject="c", actor="dee@706.example.org"))
    async with world.database.reading() as connection:
        wanted = ["a", "b", "c", "d"]
        assert await audit.list_recorded(connection, act(), wanted, began) == {"a", "b"}
        assert await audit.list_recorded(connection, act(), ["a"], began + timedelta(seconds=1)) == set()
        assert await audit.list_recorded(connection, act(OTHER), wanted, began) == set()
