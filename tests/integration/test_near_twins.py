"""Nobody listed is missed by number, and nobody who is only like somebody listed alerts (threat row 4)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import date, timedelta

from broker.storage import reviews
from schemas.identifiers import authority_owner
from schemas.record import PositionOutcome as Outcome
from tests.world import World, hl7

PEOPLE, LISTED, TWINS, BATCH = 10_000, 400, 300, 500
SURNAMES = ("Smith", "Jones", "Taylor", "Khan", "Patel", "Evans", "Murphy", "Begum", "Hussain", "Singh", "Lewis")
GIVEN = ("Ava", "Leo", "Mia", "Noah", "Zara", "Amir", "Ella", "Finn", "Omar", "Ruby", "Seth", "Yusuf", "Zoe")


def nhs_numbers() -> Iterator[str]:
    """Valid numbers of the 999 range, one after the other."""
    for body in range(999_000_000, 1_000_000_000):
        check = (11 - sum(int(digit) * (10 - place) for place, digit in enumerate(str(body))) % 11) % 11
        if check != 10:
            yield f"{body}{check}"


async def test_of_10_000_people_no_listed_one_is_missed_and_no_near_twin_alerts_by_itself(world: World) -> None:
    """Everybody comes once: the listed by number, half of the near-twins without one, and everybody else.

    Of the listed a third come under another surname, and a third with another date of birth.
    """
    chance, numbers = random.Random(4), nhs_numbers()
    rows, messages, expected = [], [], {}
    for person in range(PEOPLE):
        number = next(numbers)
        family, given = chance.choice(SURNAMES), chance.choice(GIVEN)
        born = date(2009, 1, 1) + timedelta(days=chance.randrange(6200))
        if person < LISTED:
            rows.append(
                f"L{person},{number},{family},{given},{born},ZZ99 1AA,child_protection_plan,2026-01-10,,W1,North"
            )
            # The number is enough where one other thing agrees: a surname that changed, a day that was mistyped.
            said = [(family, born), (chance.choice(SURNAMES), born), (family, born + timedelta(days=1))][person % 3]
            messages.append(come(person, number, said[0], given, said[1]))
            expected[f"V{person}"] = {Outcome.ALERTED}
            if person < TWINS:
                twin = chance.choice([name for name in GIVEN if name != given])
                has_number = person % 2 == 0
                visit = PEOPLE + person
                messages.append(come(visit, next(numbers) if has_number else "", family, twin, born))
                expected[f"V{visit}"] = {Outcome.NO_RECORD} if has_number else {Outcome.UNDER_REVIEW}
        elif person < PEOPLE - TWINS:
            messages.append(come(person, number, family, given, born))
            expected[f"V{person}"] = {Outcome.NO_RECORD}
    await world.list_children(*rows)
    shuffled = list(zip(messages, expected, strict=True))
    chance.shuffle(shuffled)
    for start in range(0, len(shuffled), BATCH):
        part = shuffled[start : start + BATCH]
        outcomes = await world.receive(*(message for message, _ in part))
        wrong = [visit for (_, visit), outcome in zip(part, outcomes, strict=True) if outcome not in expected[visit]]
        assert wrong == []
    raised = await world.alerts()
    assert sorted(each.alert.child.local_id for each in raised) == sorted(f"L{person}" for person in range(LISTED))
    async with world.database.reading() as connection:
        found = await reviews.list_open_reviews(connection, world.keyring, authority_owner("706"), rows_max=PEOPLE)
    assert len({review.visit_id for review in found}) == TWINS // 2
    assert all(review.content.reasons_for for review in found)


def come(visit: int, number: str, family: str, given: str, born: date) -> bytes:
    return hl7(
        nhs_number=number,
        family=family.upper(),
        given=given.upper(),
        birth_date=born,
        visit=f"V{visit}",
        patient=f"K{visit}",
    )
