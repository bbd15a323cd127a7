"""A force's invented nights are what the broker reads, the same for the same seed, and sent until they are answered."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, date, datetime, timedelta

import pytest

from adapters.incident_json import read_incident
from mock_nhs.http_listener import Answer, read_request
from mock_nhs.police import (
    Dispatch,
    ForceOptions,
    NightOptions,
    NotAnswered,
    PoliceForce,
    School,
    invent_night,
    squeeze_night,
)
from schemas.encompass import Change, IncidentWithdrawal, PoliceIncident, SuppressedScope

SATURDAY = date(2026, 11, 21)
SCHOOLS = tuple(
    School(
        urn=f"90000{number}", name=f"School {number}", authority="706" if number < 4 else "801", lead_name="Jane Carter"
    )
    for number in range(1, 6)
)
OPTIONS = NightOptions(incidents=40)


@pytest.fixture(scope="module")
def night() -> tuple[Dispatch, ...]:
    return invent_night(7, SATURDAY, SCHOOLS, OPTIONS)


def test_the_same_seed_gives_the_same_night(night: tuple[Dispatch, ...]) -> None:
    assert [each.body for each in night] == [each.body for each in invent_night(7, SATURDAY, SCHOOLS, OPTIONS)]
    assert [each.body for each in night] != [each.body for each in invent_night(8, SATURDAY, SCHOOLS, OPTIONS)]


def test_every_message_is_one_that_the_product_reads(night: tuple[Dispatch, ...]) -> None:
    messages = [read_incident(each.body, received_at=each.at) for each in night]
    incidents = [each for each in messages if isinstance(each, PoliceIncident)]
    children = [child for each in incidents for child in each.children]
    assert any(isinstance(each, IncidentWithdrawal) for each in messages)
    assert {each.change for each in incidents} == {None, *Change}
    assert {each.suppress.scope for each in incidents if each.suppress} == {*SuppressedScope}
    assert any(each.excluded_recipients for each in incidents)
    assert any(len({child.establishments for child in each.children}) > 1 for each in incidents)
    assert any(child.home_educated for child in children)
    assert any(not child.establishments and not child.home_educated for child in children)
    assert any(named.urn is None for child in children for named in child.establishments)
    assert {child.authority for child in children} == {"706", "801"}
    assert {child.present for child in children} == {True, False, None}


def test_later_versions_carry_the_same_id_and_come_later(night: tuple[Dispatch, ...]) -> None:
    assert [each.at for each in night] == sorted(each.at for each in night)
    versions: dict[str, list[int]] = {}
    for each in night:
        versions.setdefault(each.content["incident_id"], []).append(each.content["version"])
    assert len(versions) == OPTIONS.incidents
    assert all(found == sorted(found) for found in versions.values())
    assert {tuple(found) for found in versions.values()} >= {(1,), (1, 1), (1, 2)}
    assert night[-1].at - night[0].at < timedelta(days=2)


async def test_a_message_is_sent_with_the_same_bytes_until_it_is_answered() -> None:
    statuses = iter([503, 0, 429, 202, 400])
    bodies: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_request(reader)
        assert request is not None and (request.method, request.path) == ("POST", "/incidents")
        assert request.headers["authorization"].startswith("Basic ")
        bodies.append(request.body)
        status = next(statuses)
        if status:
            writer.write(Answer(status=status).as_bytes())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    force = PoliceForce(ForceOptions(base=base, user="ZF1", password="secret", pause_s=0.001))
    dispatches = [Dispatch(at=datetime.fromisoformat("2026-11-21T23:00:00Z"), content={"n": n}) for n in (1, 2)]
    await force.send_all(dispatches)
    server.close()
    await server.wait_closed()
    assert force.answers == {202: 1, 400: 1}
    assert Counter(bodies) == {dispatches[0].body: 4, dispatches[1].body: 1}
    gone = PoliceForce(ForceOptions(base=base, user="ZF1", password="secret", pause_s=0.001, attempts_max=2))
    with pytest.raises(NotAnswered):
        await gone.send(dispatches[0])


def test_a_squeezed_night_keeps_its_order_and_its_words() -> None:
    night = invent_night(3, SATURDAY, SCHOOLS, NightOptions(incidents=12))
    first, last = datetime(2026, 11, 22, 18, tzinfo=UTC), datetime(2026, 11, 23, 6, tzinfo=UTC)
    squeezed = squeeze_night(night, first, last)
    assert [each.content["incident_id"] for each in squeezed] == [each.content["incident_id"] for each in night]
    assert all(first <= each.at <= last for each in squeezed)
    for each in squeezed:
        if each.content["message"] == "incident":
            assert each.content["occurred_at"] <= each.content["reported_at"] <= each.at.isoformat()
