"""Who at an establishment is told of an incident, who is skipped and why.

Designated safeguarding lead and deputies come from a verified directory, never from the message. The force may name
people who must not be told; the broker may suggest a conflict of interest and never infers one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from enum import StrEnum
from typing import Final

import msgspec

from broker.domain.given_names import are_forms_of_one_name
from broker.domain.names import fold_name, surnames_agree
from schemas.attendance import PersonName
from schemas.encompass import ContactRole, EncompassPolicy, ExcludedRecipient, PoliceIncident, SafeguardingContact
from schemas.identifiers import SchoolUrn

_TITLES: Final = frozenset({"mr", "mrs", "ms", "miss", "mx", "dr", "prof", "sir", "dame", "rev", "revd", "sister"})


class SkipReason(StrEnum):
    """Why somebody in the directory is not told."""

    EXCLUDED = "excluded"
    SHARES_MAILBOX = "shares_mailbox"
    """Whoever is excluded would read it."""
    NOT_CONFIRMED = "not_confirmed"
    """Nobody has confirmed the entry for too long, or ever: it may be somebody else's by now."""
    NOT_TRAINED = "not_trained"


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who is not told, for the record of the force. Hidden from the school."""

    contact_id: str
    reason: SkipReason
    exclusion: ExcludedRecipient | None = None
    """With the reason and who authorised it."""


class Recipients(msgspec.Struct, frozen=True, kw_only=True):
    """Who is told at one establishment. Nobody in ``told`` is no route: an alarm, and a task for a person."""

    told: tuple[str, ...]
    """Contact ids: the lead first, then the deputies; one message each."""
    skipped: tuple[Skipped, ...]


def choose_recipients(
    contacts: Sequence[SafeguardingContact],
    exclusions: Sequence[ExcludedRecipient],
    on: date,
    policy: EncompassPolicy,
) -> Recipients:
    """Lead and deputies of one establishment without those who must not or cannot be told.

    A contact is excluded by name or by mailbox; in doubt it is excluded. The office is never told: its telephone is
    for a person to ring.
    """
    excluded = {contact.contact_id: _find_exclusion(contact, exclusions) for contact in contacts}
    closed_mailboxes = {_fold_mailbox(contact.mailbox) for contact in contacts if excluded[contact.contact_id]}
    told: list[SafeguardingContact] = []
    skipped: list[Skipped] = []
    for contact in contacts:
        reason = None
        if excluded[contact.contact_id] is not None:
            reason = SkipReason.EXCLUDED
        elif _fold_mailbox(contact.mailbox) in closed_mailboxes:
            reason = SkipReason.SHARES_MAILBOX
        elif contact.role is ContactRole.OFFICE:
            continue
        elif not _is_confirmed(contact, on, policy):
            reason = SkipReason.NOT_CONFIRMED
        elif policy.training_required and (contact.trained_on is None or contact.trained_on > on):
            reason = SkipReason.NOT_TRAINED
        if reason is None:
            told.append(contact)
        else:
            skipped.append(
                Skipped(contact_id=contact.contact_id, reason=reason, exclusion=excluded[contact.contact_id])
            )
    told.sort(key=lambda contact: (contact.role is not ContactRole.LEAD, contact.contact_id))
    return Recipients(told=tuple(contact.contact_id for contact in told), skipped=tuple(skipped))


def _is_confirmed(contact: SafeguardingContact, on: date, policy: EncompassPolicy) -> bool:
    confirmed = contact.confirmed_on
    return confirmed is not None and timedelta(0) <= on - confirmed <= timedelta(days=policy.confirmed_days_max)


def find_unrecognised(
    exclusions: Sequence[ExcludedRecipient], contacts: Sequence[SafeguardingContact]
) -> tuple[ExcludedRecipient, ...]:
    """Exclusions of somebody whom the directory does not have."""
    return tuple(
        exclusion for exclusion in exclusions if not any(_is_excluded(contact, exclusion) for contact in contacts)
    )


def _find_exclusion(contact: SafeguardingContact, exclusions: Sequence[ExcludedRecipient]) -> ExcludedRecipient | None:
    return next((exclusion for exclusion in exclusions if _is_excluded(contact, exclusion)), None)


def _is_excluded(contact: SafeguardingContact, exclusion: ExcludedRecipient) -> bool:
    if exclusion.mailbox is not None and _fold_mailbox(exclusion.mailbox) == _fold_mailbox(contact.mailbox):
        return True
    is_there = exclusion.urn is None or exclusion.urn == contact.urn
    return is_there and _may_be_one_person(exclusion.name, contact.name)


def _may_be_one_person(one: str, other: str) -> bool:
    """Surnames alike, and given names alike, forms of one name, an initial, or missing on one side."""
    first, second = _split_name(one), _split_name(other)
    if not first.family or not second.family:
        return False
    if not surnames_agree((first,), second):
        return False
    given, listed = first.given.split(" ")[0], second.given.split(" ")[0]
    if not given or not listed or given == listed:
        return True
    is_initial = min(len(given), len(listed)) == 1 and given[0] == listed[0]
    return (
        is_initial or surnames_agree((PersonName(given),), PersonName(listed)) or are_forms_of_one_name(given, listed)
    )


def _split_name(text: str) -> PersonName:
    """A name as people write it: the last word is the surname, titles do not count."""
    words = [word for word in fold_name(text).split() if word not in _TITLES]
    return PersonName(words[-1] if words else "", " ".join(words[:-1]))


def _fold_mailbox(text: str) -> str:
    return text.strip().casefold()


def find_disclosed(told_before: Iterable[str], recipients: Recipients) -> tuple[str, ...]:
    """Contacts who were told of an earlier version and are excluded now: the force must know at once."""
    excluded = {
        skipped.contact_id
        for skipped in recipients.skipped
        if skipped.reason in (SkipReason.EXCLUDED, SkipReason.SHARES_MAILBOX)
    }
    return tuple(sorted(excluded.intersection(told_before)))


class ConflictSuggestion(msgspec.Struct, frozen=True, kw_only=True):
    """For the coordinator: this contact has the surname of an adult of the incident. Changes nothing by itself."""

    urn: SchoolUrn
    contact_id: str


def suggest_conflicts(
    incident: PoliceIncident, contacts: Iterable[SafeguardingContact]
) -> tuple[ConflictSuggestion, ...]:
    """Contacts whom a person of the force might want to exclude."""
    adults = [PersonName(adult.family_name) for adult in incident.adults if adult.family_name]
    return tuple(
        ConflictSuggestion(urn=contact.urn, contact_id=contact.contact_id)
        for contact in contacts
        if any(surnames_agree(adults, PersonName(surname)) for surname in _surnames(contact.name))
    )


def _surnames(name: str) -> list[str]:
    """The last word, and the last two: Lloyd Jones may be written without its hyphen."""
    words = fold_name(name).split()
    return [" ".join(words[-count:]) for count in (1, 2) if len(words) >= count]
