"""Which visit a message is of: by its visit number, or without one by the course of the visits of its patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection

from broker.consumers.reading import ReadMessage, said_by
from broker.domain.course import Quiet, begins_day, choose_visit, goes_on
from broker.domain.kinship import Kinship, Patient, former_of, patient_of
from broker.domain.visits import message_order, moves_visit, visit_slot
from broker.keyring import Keyring
from broker.storage import visits
from broker.storage.directory import Directory
from broker.storage.visits import derive_former_visit_id, derive_next_visit_id, derive_visit_id
from schemas.attendance import Attendance, Event


async def place_messages(
    connection: AsyncConnection,
    keyring: Keyring,
    messages: Sequence[ReadMessage],
    kinship: Kinship,
    known: Directory,
    *,
    quiet: Quiet,
) -> None:
    """Give every message its visit, and one that moves a visit also the other; what is replayed keeps its own."""
    unnumbered = [each for each in messages if each.visit_id is None and _is_unnumbered(said_by(each))]
    await _assign_visits(connection, keyring, messages, kinship)
    await _place_unnumbered(connection, keyring, unnumbered, kinship, known, quiet=quiet)


async def _assign_visits(
    connection: AsyncConnection, keyring: Keyring, messages: Sequence[ReadMessage], kinship: Kinship
) -> None:
    """Give every message its visit. Under whichever number of one patient a visit is spoken of, it is the same."""
    several: list[tuple[ReadMessage, set[Patient]]] = []
    for message in messages:
        if message.visit_id is not None:
            continue  # a replay stays in the visit that it was of
        said, patient = said_by(message), patient_of(said_by(message))
        family = kinship.family(patient) if patient is not None else set()
        if len(family) > 1:
            several.append((message, family))
        else:
            message.visit_id = derive_visit_id(keyring, said, message.marker)
        if moves_visit(said):
            await _find_moved(connection, keyring, message, kinship)
    if not several:
        return
    ids = {
        derive_visit_id(keyring, said_by(message), message.marker, one)
        for message, family in several
        for _, one in family
    }
    standing = await visits.find_standing(connection, ids)
    for message, family in several:
        root = kinship.root(min(family))
        own = {derive_visit_id(keyring, said_by(message), message.marker, one) for _, one in family}
        first = derive_visit_id(keyring, said_by(message), message.marker, root[1])
        message.visit_id = next((now_ for id_, now_ in standing.items() if id_ in own), first)


async def _place_unnumbered(
    connection: AsyncConnection,
    keyring: Keyring,
    messages: Sequence[ReadMessage],
    kinship: Kinship,
    known: Directory,
    *,
    quiet: Quiet,
) -> None:
    """Give what goes on without a visit number the visit in whose course it falls, in whatever order they come.

    What was heard before its visit was registered stands by its own day: the registration moves it.
    """
    if not messages:
        return
    of_patient: dict[Patient, list[ReadMessage]] = {}
    for message in messages:
        of_patient.setdefault(kinship.root(_patient_of(message)), []).append(message)
    for patient, own in of_patient.items():
        site = known.sites.get(patient[0])
        registers_by = site.registers_by if site is not None else ()
        numbers = [number for _, number in kinship.family(patient)]
        ids = set[str]()
        for message in own:
            is_later = goes_on(said_by(message), registers_by)
            days = range(-quiet.admission.days, 1) if is_later else range(quiet.visit.days + 1)
            ids |= visits.derive_day_visit_ids(keyring, said_by(message), numbers, days)
        standing = await visits.find_standing(connection, ids)
        heard = await visits.load_said(connection, keyring, set(standing.values()))
        for message in own:
            message.visit_id = standing.get(message.visit_id or "", message.visit_id)
        _choose_visits(keyring, quiet, own, heard, registers_by)


def _choose_visits(
    keyring: Keyring,
    quiet: Quiet,
    messages: Sequence[ReadMessage],
    heard: dict[str, list[Attendance]],
    registers_by: Sequence[Event],
) -> None:
    begun = [each for each in messages if begins_day(said_by(each), registers_by)]
    waiting = {
        visit_id: said for visit_id, said in heard.items() if said and all(goes_on(each, registers_by) for each in said)
    }
    for message in begun:
        message.visit_id = _choose_day(keyring, message, heard, registers_by)
        heard.setdefault(message.visit_id, []).append(said_by(message))
    going_on = [each for each in messages if goes_on(said_by(each), registers_by)]
    for message in sorted(going_on, key=lambda each: message_order((each.marker, said_by(each)))):
        chosen = choose_visit(said_by(message), heard, registers_by, quiet)
        if chosen is not None:
            message.visit_id = chosen
            heard[chosen].append(said_by(message))
    for message in begun:
        for visit_id, said in sorted(waiting.items()):
            chosen_of = {choose_visit(each, heard, registers_by, quiet) for each in said}
            if chosen_of == {message.visit_id} and visit_id != message.visit_id:
                message.former_visit_id = visit_id


def _choose_day(
    keyring: Keyring, message: ReadMessage, heard: Mapping[str, Sequence[Attendance]], registers_by: Sequence[Event]
) -> str:
    """The visit that began on the day of a registration; another where what is there began on a day before."""
    assert message.visit_id is not None
    day, own = visit_slot(said_by(message)), message.visit_id
    days = {
        visit_id: {visit_slot(each) for each in said if begins_day(each, registers_by)}
        for visit_id, said in heard.items()
    }
    same = sorted(visit_id for visit_id, begun in days.items() if day in begun)
    if same:
        return own if own in same else same[0]
    return derive_next_visit_id(keyring, own) if days.get(own) else own


async def _find_moved(connection: AsyncConnection, keyring: Keyring, message: ReadMessage, kinship: Kinship) -> None:
    """Which visit a message moves into its own: the one that was heard of, under any number of its patient."""
    said = said_by(message)
    former = former_of(said) or patient_of(said)
    family = sorted(kinship.family(former), key=lambda one: one != former) if former is not None else []
    ids = [derive_former_visit_id(keyring, said, message.marker, one) for _, one in family]
    ids = ids or [derive_former_visit_id(keyring, said, message.marker)]
    standing = await visits.find_standing(connection, ids)
    message.former_visit_id = next((visit_id for visit_id in ids if visit_id in standing), ids[0])


def _is_unnumbered(said: Attendance) -> bool:
    return not said.visit_number and patient_of(said) is not None


def _patient_of(message: ReadMessage) -> Patient:
    patient = patient_of(said_by(message))
    assert patient is not None
    return patient
