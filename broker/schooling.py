"""At which establishments the children of an incident are: as the police say, an authority's list, and people.

The list of pupils is asked only about children of whom nobody said a school; the last word is a person's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.domain.pupils import LikelyPupil, PupilFinding, child_blocks, find_pupil
from broker.keyring import Keyring
from broker.storage import establishments
from broker.storage.incidents import Candidate, Found
from schemas.encompass import (
    Establishment,
    EstablishmentStatus,
    IncidentChild,
    NamedEstablishment,
    Pupil,
    SchoolSource,
)
from schemas.identifiers import SchoolUrn


async def place_children(
    connection: AsyncConnection,
    children: Sequence[IncidentChild],
    findings: Mapping[str, PupilFinding],
    found: Sequence[Found],
) -> tuple[IncidentChild, ...]:
    """The children with the establishments that count; ``found`` is what people said, the last word last."""
    named = {each.urn for child in children for each in child.establishments if each.urn is not None}
    named |= {each.urn for each in found if each.urn is not None}
    known = await establishments.find_establishments(connection, named)
    pupils = {child_id: finding.sure for child_id, finding in findings.items()}
    return tuple(_place(child, pupils.get(child.child_id), found, known) for child in children)


async def weigh_pupils(
    connection: AsyncConnection,
    keyring: Keyring,
    children: Iterable[IncidentChild],
    *,
    bits_min: float,
    pupils_max: int,
) -> dict[str, PupilFinding]:
    """Which pupil each child is, or may be, of whom nobody said at which establishment.

    Who weighs ``bits_min`` may be the child; at most ``pupils_max`` are compared with the children of one incident.
    """
    blocks = {
        child.child_id: (child, child_blocks(child))
        for child in children
        if not child.establishments and not child.home_educated
    }
    wanted = {block for _, own in blocks.values() for block in own}
    if not wanted:
        return {}
    found = await establishments.find_pupils(connection, keyring, wanted, rows_max=pupils_max)
    findings = {}
    for child_id, (child, own) in blocks.items():
        pupils = {(each.authority, each.pupil_id): each for block in own for each in found.get(block, ())}
        findings[child_id] = find_pupil(child, list(pupils.values()), bits_min)
    return findings


def describe_candidate(likely: LikelyPupil) -> Candidate:
    """A pupil who may be the child, for whoever decides it."""
    pupil, likeness = likely.pupil, likely.likeness
    return Candidate(
        family_name=pupil.family_name,
        given_name=pupil.given_name,
        birth_date=pupil.birth_date,
        authority=pupil.authority,
        urns=pupil.urns,
        home_educated=pupil.home_educated,
        weight=likeness.weight,
        reasons_for=tuple(reason.wording for reason in likeness.reasons_for),
        reasons_against=tuple(reason.wording for reason in likeness.reasons_against),
    )


def _place(
    child: IncidentChild,
    pupil: Pupil | None,
    found: Sequence[Found],
    known: Mapping[SchoolUrn, Establishment],
) -> IncidentChild:
    """The child with the establishments that count: the authority's list, then what people said, the last word last."""
    if pupil is not None:
        listed = tuple(NamedEstablishment(source=SchoolSource.AUTHORITY, urn=urn) for urn in pupil.urns)
        authority = child.authority or pupil.authority
        child = msgspec.structs.replace(
            child, establishments=listed, home_educated=pupil.home_educated, authority=authority
        )
    own = [each for each in found if each.child_id == child.child_id]
    if own and own[-1].home_educated_in is not None:
        return msgspec.structs.replace(child, establishments=(), home_educated=True, authority=own[-1].home_educated_in)
    last = {each.urn: each.is_there for each in own if each.urn is not None}
    if not last:
        return child
    there = [urn for urn, is_there in last.items() if is_there]
    named = [
        msgspec.structs.replace(each, urn=None) if each.urn is not None and last.get(each.urn) is False else each
        for each in child.establishments
    ]
    if there:
        # Somebody looked: what could not be told is answered by what was found.
        named = [each for each in named if each.urn is not None and _is_open(known.get(each.urn))]
    elif not child.establishments:
        named = [NamedEstablishment(source=SchoolSource.OFFICER)]
    added = [NamedEstablishment(source=SchoolSource.OFFICER, urn=urn) for urn in there]
    return msgspec.structs.replace(child, establishments=(*named, *added))


def _is_open(establishment: Establishment | None) -> bool:
    return establishment is not None and establishment.status is EstablishmentStatus.OPEN
