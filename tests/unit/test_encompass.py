"""Operation Encompass as a pure rule: who hears of an incident, what of it, and what a correction changes."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.domain.encompass import (
    EncompassDirectory,
    Fate,
    Hold,
    IncidentPlan,
    LookUpReason,
    Reception,
    is_school_age,
    plan_incident,
    receive_version,
    route_incident,
)
from broker.domain.safeguarding import Recipients, SkipReason, choose_recipients, find_disclosed, suggest_conflicts
from broker.domain.school_calendar import SchoolCalendar
from broker.domain.school_notices import (
    Composed,
    SentNotice,
    Slip,
    Step,
    WithheldReason,
    compose_notice,
    plan_amendments,
)
from broker.domain.visits import LONDON
from schemas.encompass import (
    AdultRelation,
    CalendarDays,
    Change,
    ContactRole,
    ContentProfile,
    DayKind,
    EncompassPolicy,
    Establishment,
    EstablishmentKind,
    EstablishmentStatus,
    ExcludedRecipient,
    FullNotice,
    IncidentAdult,
    IncidentChild,
    IncidentWithdrawal,
    MinimalNotice,
    NamedEstablishment,
    PoliceIncident,
    Release,
    SafeguardingContact,
    SchoolNotice,
    SchoolNoticeWithdrawn,
    SchoolSource,
    StandardNotice,
    SuppressedScope,
    Suppression,
    SuppressionReason,
    UnderSchoolAge,
)
from schemas.identifiers import SchoolUrn
from tests.house.test_schemas import differences, schema_named

MILL, HIGH, OLD, MERGED = (SchoolUrn(urn) for urn in ("900001", "900002", "900003", "900004"))
SATURDAY = datetime(2026, 10, 24, 22, 40, tzinfo=LONDON)
"""Of half-term in the one authority; the other's was the week before."""
SUNDAY = datetime(2026, 10, 25, 11, 0, tzinfo=UTC)
POLICY = EncompassPolicy(force="ZF1", statement="For information only.", withdrawn_statement="Please disregard it.")


def establishment(urn: SchoolUrn, authority: str = "706", **changes: Any) -> Establishment:
    school = Establishment(urn=urn, name=f"School {urn}", kind=EstablishmentKind.SCHOOL, authority=authority)
    return msgspec.structs.replace(school, **changes)


def contact(urn: SchoolUrn, role: ContactRole, name: str, **changes: Any) -> SafeguardingContact:
    found = SafeguardingContact(
        contact_id=f"{urn}/{name}",
        urn=urn,
        role=role,
        name=name,
        mailbox=f"{role.value}@{urn}.example.org",
        confirmed_on=date(2026, 9, 1),
        trained_on=date(2025, 6, 1),
    )
    return msgspec.structs.replace(found, **changes)


def term(authority: str, first: date, last: date, half: date) -> SchoolCalendar:
    spans = [(DayKind.TERM, first, last), (DayKind.HOLIDAY, half, half + timedelta(days=4))]
    return SchoolCalendar(
        [CalendarDays(authority=authority, kind=kind, first_on=one, last_on=other) for kind, one, other in spans], ()
    )


ESTABLISHMENTS = {
    MILL: establishment(MILL),
    HIGH: establishment(HIGH, "801", kind=EstablishmentKind.INDEPENDENT, starts_at_local=time(8, 50)),
    OLD: establishment(OLD, status=EstablishmentStatus.CLOSED),
    MERGED: establishment(MERGED, status=EstablishmentStatus.MERGED, merged_into=MILL),
}
SISTER = contact(MILL, ContactRole.LEAD, "Jane Carter")
DEPUTY = contact(MILL, ContactRole.DEPUTY, "Ola Ade")
OTHER_LEAD = contact(HIGH, ContactRole.LEAD, "Sam Reed")
DIRECTORY = EncompassDirectory(
    establishments=ESTABLISHMENTS,
    contacts={MILL: (SISTER, DEPUTY), HIGH: (OTHER_LEAD,)},
    calendars={
        MILL: term("706", date(2026, 9, 2), date(2026, 12, 18), date(2026, 10, 26)),
        HIGH: term("801", date(2026, 9, 2), date(2026, 12, 18), date(2026, 10, 19)),
    },
)


def child(child_id: str, *urns: SchoolUrn, **changes: Any) -> IncidentChild:
    named = tuple(NamedEstablishment(urn=urn, source=SchoolSource.OFFICER) for urn in urns)
    found = IncidentChild(
        child_id=child_id,
        family_name="Tester",
        given_name=child_id.title(),
        birth_date=date(2016, 3, 2),
        postcode="ZZ99 1AA",
        nhs_number=None,
        establishments=named,
        authority="706",
        present=True,
        where="on the stairs",
        spoken_to=True,
        spoken_alone=True,
        childs_words=f"Words of {child_id}.",
        welfare_check=True,
    )
    return msgspec.structs.replace(found, **changes)


EXCLUSION = ExcludedRecipient(
    name="Ms J. Carter", urn=MILL, reason="Sister of the suspect.", authoriser="Insp 4471", mailbox=None
)
INCIDENT = PoliceIncident(
    incident_id="ZF1/2026/1042",
    force="ZF1",
    occurred_at=SATURDAY,
    reported_at=SATURDAY + timedelta(minutes=12),
    location="12 Mill Lane, Northfold, ZZ99 1AA",
    attended=True,
    circumstances="An argument was heard by neighbours.",
    children=(child("casey", MILL), child("robin", HIGH), child("kit", home_educated=True)),
    adults=(IncidentAdult(relation=AdultRelation.PARENT, family_name="Carter"),),
    excluded_recipients=(EXCLUSION,),
)


def changed(**changes: Any) -> PoliceIncident:
    return msgspec.structs.replace(INCIDENT, **changes)


def plan(incident: PoliceIncident = INCIDENT, policy: EncompassPolicy = POLICY, **said: Any) -> IncidentPlan:
    return plan_incident(incident, DIRECTORY, policy, at=SATURDAY, **said)


def compose(incident: PoliceIncident, urn: SchoolUrn, profile: ContentProfile = ContentProfile.STANDARD) -> Composed:
    ids = next((one.child_ids for one in plan(incident).establishments if one.urn == urn), ())
    slip = Slip(notice_id=f"notice-{urn}", issued_at=SATURDAY)
    return compose_notice(incident, ESTABLISHMENTS[urn], ids, msgspec.structs.replace(POLICY, profile=profile), slip)


def notices(incident: PoliceIncident) -> dict[SchoolUrn, SchoolNotice]:
    return {one.urn: compose(incident, one.urn).notice for one in plan(incident).establishments}


def amend(sent: dict[SchoolUrn, SentNotice], wanted: dict[SchoolUrn, SchoolNotice]) -> list[tuple[SchoolUrn, Step]]:
    steps = plan_amendments(
        sent, wanted, change=Change.CORRECTION, at=SUNDAY, withdrawn_statement=POLICY.withdrawn_statement
    )
    return [(each.urn, each.step) for each in steps]


def as_sent(found: dict[SchoolUrn, SchoolNotice]) -> dict[SchoolUrn, SentNotice]:
    return {urn: SentNotice(notice=notice, version=notice.version) for urn, notice in found.items()}


# Scenario K


def test_scenario_k_each_school_hears_of_its_own_child_before_its_own_bell() -> None:
    mill, high = plan().establishments
    assert (mill.urn, mill.child_ids, high.urn, high.child_ids) == (MILL, ("casey",), HIGH, ("robin",))
    assert mill.timing.due_by == datetime(2026, 11, 2, 8, 15, tzinfo=LONDON)
    assert mill.timing.remind_at == datetime(2026, 11, 2, 7, 30, tzinfo=LONDON)
    assert high.timing.due_by == datetime(2026, 10, 26, 8, 35, tzinfo=LONDON)
    assert high.timing.remind_at is None
    assert {mill.timing.send_at, high.timing.send_at} == {INCIDENT.reported_at}
    for urn, own, other in ((MILL, "Casey", "Robin"), (HIGH, "Robin", "Casey")):
        told = msgspec.json.encode(compose(INCIDENT, urn, ContentProfile.FULL).notice).decode()
        assert own in told
        assert other not in told and other.lower() not in told and "Kit" not in told


def test_scenario_k_the_authority_hears_of_the_home_educated_child() -> None:
    [kit] = [destination for destination in plan().destinations if destination.child_id == "kit"]
    assert (kit.fate, kit.authority) == (Fate.AUTHORITY_OFFICER, "706")
    assert plan().clock.due_by == datetime(2026, 10, 26, 8, 15, tzinfo=LONDON)


def test_scenario_k_the_sister_is_skipped_the_deputy_told_and_the_school_sees_nothing_of_it() -> None:
    mill, high = plan().establishments
    assert mill.recipients.told == (DEPUTY.contact_id,)
    [skipped] = mill.recipients.skipped
    assert (skipped.contact_id, skipped.reason) == (SISTER.contact_id, SkipReason.EXCLUDED)
    assert skipped.exclusion == EXCLUSION
    assert (mill.hold, high.hold) == (None, None)
    for profile in ContentProfile:
        told = msgspec.json.encode(compose(INCIDENT, MILL, profile).notice).decode()
        assert not any(word in told for word in ("Carter", "Sister", "4471", "suspect"))


def test_scenario_k_the_correction_amends_one_notice_and_no_other() -> None:
    sent = as_sent(notices(INCIDENT))
    corrected = changed(
        version=2,
        change=Change.CORRECTION,
        children=(child("casey", MILL, present=False), *INCIDENT.children[1:]),
    )
    assert receive_version(INCIDENT, corrected) is Reception.AMENDS
    [step] = plan_amendments(
        sent, notices(corrected), change=Change.CORRECTION, at=SUNDAY, withdrawn_statement="Please disregard it."
    )
    assert (step.urn, step.step) == (MILL, Step.AMEND)
    assert isinstance(step.notice, StandardNotice)
    assert (step.notice.notice_id, step.notice.version) == (sent[MILL].notice.notice_id, 2)
    assert (step.notice.change, step.notice.children[0].present) == (Change.CORRECTION, False)


# Versions


def test_a_message_is_judged_by_its_version_and_not_by_when_it_comes() -> None:
    second = changed(version=2, change=Change.UPDATE)
    withdrawal = IncidentWithdrawal(
        incident_id=INCIDENT.incident_id, force="ZF1", version=3, withdrawn_at=SUNDAY, reason="Recorded twice."
    )
    assert receive_version(None, INCIDENT) is Reception.FIRST
    assert receive_version(INCIDENT, INCIDENT) is Reception.REPEAT
    assert receive_version(second, INCIDENT) is Reception.OLDER
    assert receive_version(INCIDENT, changed(attended=False)) is Reception.CONTRADICTS
    assert receive_version(second, withdrawal) is Reception.AMENDS
    assert receive_version(withdrawal, second) is Reception.OLDER


# Where each child is heard of


@pytest.mark.parametrize(
    ("named", "reason", "suggested"),
    [
        ((), LookUpReason.NOT_GIVEN, None),
        ((NamedEstablishment(source=SchoolSource.CHILD),), LookUpReason.NOT_GIVEN, None),
        ((NamedEstablishment(source=SchoolSource.CHILD, name="Mill School"),), LookUpReason.NAME_ONLY, None),
        (
            (NamedEstablishment(source=SchoolSource.OFFICER, urn=SchoolUrn("900099")),),
            LookUpReason.UNKNOWN,
            None,
        ),
        ((NamedEstablishment(source=SchoolSource.OFFICER, urn=OLD),), LookUpReason.CLOSED, None),
        ((NamedEstablishment(source=SchoolSource.AUTHORITY, urn=MERGED),), LookUpReason.MERGED, MILL),
    ],
)
def test_a_school_that_cannot_be_told_goes_to_a_person_with_the_clock_running(
    named: tuple[NamedEstablishment, ...], reason: LookUpReason, suggested: SchoolUrn | None
) -> None:
    found = plan(changed(children=(child("casey", establishments=named),)))
    [destination] = found.destinations
    assert (destination.fate, destination.reason, destination.suggested) == (Fate.LOOK_UP, reason, suggested)
    assert found.establishments == ()
    assert found.clock.calendar_is_assumed and found.clock.due_by > INCIDENT.reported_at


def test_a_child_at_several_establishments_is_told_to_each_once_with_who_said_so() -> None:
    named = (
        NamedEstablishment(source=SchoolSource.OFFICER, urn=MILL),
        NamedEstablishment(source=SchoolSource.AUTHORITY, urn=MILL),
        NamedEstablishment(source=SchoolSource.CHILD, urn=HIGH),
        NamedEstablishment(source=SchoolSource.CHILD, name="The unit"),
    )
    found = route_incident(changed(children=(child("casey", establishments=named),)), ESTABLISHMENTS, POLICY)
    assert [(each.fate, each.urn, each.source) for each in found] == [
        (Fate.NOTICE, MILL, SchoolSource.OFFICER),
        (Fate.NOTICE, HIGH, SchoolSource.CHILD),
        (Fate.LOOK_UP, None, SchoolSource.CHILD),
    ]


def test_a_child_who_was_not_present_is_heard_of_all_the_same() -> None:
    absent = changed(children=(child("casey", MILL, present=False),))
    assert [each.fate for each in plan(absent).destinations] == [Fate.NOTICE]


def test_eighteen_is_counted_on_the_london_day_of_the_incident() -> None:
    tonight = datetime(2026, 6, 10, 23, 30, tzinfo=LONDON)
    for at, fate in ((tonight, Fate.NOTICE), (tonight + timedelta(hours=1), Fate.ADULT)):
        incident = changed(occurred_at=at, children=(child("casey", MILL, birth_date=date(2008, 6, 11)),))
        assert [each.fate for each in route_incident(incident, ESTABLISHMENTS, POLICY)] == [fate]
    unknown = changed(children=(child("casey", MILL, birth_date=None),))
    assert [each.fate for each in route_incident(unknown, ESTABLISHMENTS, POLICY)] == [Fate.NOTICE]


def test_under_school_age_goes_by_local_option_unless_an_establishment_is_named() -> None:
    small = changed(children=(child("casey", birth_date=date(2023, 5, 1)),))
    officer = msgspec.structs.replace(POLICY, under_school_age=UnderSchoolAge.AUTHORITY_OFFICER)
    nursery_class = changed(children=(child("casey", MILL, birth_date=date(2023, 5, 1)),))
    fates = [
        [each.fate for each in route_incident(incident, ESTABLISHMENTS, policy)]
        for incident, policy in ((small, POLICY), (small, officer), (nursery_class, POLICY))
    ]
    assert fates == [[Fate.UNDER_SCHOOL_AGE], [Fate.AUTHORITY_OFFICER], [Fate.NOTICE]]


@pytest.mark.parametrize(
    ("born", "begins"),
    [
        (date(2021, 8, 31), date(2025, 9, 1)),
        (date(2021, 9, 1), date(2026, 9, 1)),
        (date(2021, 12, 31), date(2026, 9, 1)),
    ],
)
def test_reception_begins_in_the_september_after_the_fourth_birthday(born: date, begins: date) -> None:
    assert is_school_age(born, begins) and not is_school_age(born, begins - timedelta(days=1))


def test_a_home_educated_child_of_no_known_authority_is_looked_up() -> None:
    incident = changed(children=(child("kit", home_educated=True, authority=None),))
    [destination] = route_incident(incident, ESTABLISHMENTS, POLICY)
    assert (destination.fate, destination.reason) == (Fate.LOOK_UP, LookUpReason.AUTHORITY_NOT_GIVEN)


# To whom


def chosen(*contacts: SafeguardingContact, exclusions: tuple[ExcludedRecipient, ...] = ()) -> Recipients:
    return choose_recipients(contacts, exclusions, SATURDAY.date(), POLICY)


def test_lead_and_deputies_are_told_the_lead_first_and_the_office_never() -> None:
    office = contact(MILL, ContactRole.OFFICE, "Office")
    assert chosen(office, DEPUTY, SISTER).told == (SISTER.contact_id, DEPUTY.contact_id)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"confirmed_on": None}, SkipReason.NOT_CONFIRMED),
        ({"confirmed_on": date(2025, 9, 1)}, SkipReason.NOT_CONFIRMED),
        ({"confirmed_on": date(2027, 1, 1)}, SkipReason.NOT_CONFIRMED),
        ({"trained_on": None}, SkipReason.NOT_TRAINED),
        ({"trained_on": date(2027, 1, 1)}, SkipReason.NOT_TRAINED),
    ],
)
def test_nobody_is_told_by_a_stale_entry(changes: dict[str, Any], reason: SkipReason) -> None:
    found = chosen(msgspec.structs.replace(SISTER, **changes))
    assert found.told == ()
    assert [skipped.reason for skipped in found.skipped] == [reason]


def test_whoever_shares_the_mailbox_of_somebody_excluded_is_not_told_either() -> None:
    shared = msgspec.structs.replace(DEPUTY, mailbox=SISTER.mailbox.upper())
    found = chosen(SISTER, shared, exclusions=(EXCLUSION,))
    assert found.told == ()
    assert [skipped.reason for skipped in found.skipped] == [SkipReason.EXCLUDED, SkipReason.SHARES_MAILBOX]


@pytest.mark.parametrize(
    ("written", "is_excluded"),
    [
        ("Jane Carter", True),
        ("Ms J Carter", True),
        ("Mrs Carter", True),
        ("JANE  CARTER", True),
        ("Jayne Carter", True),
        ("Jane Elizabeth Carter", True),
        ("John Carter", False),
        ("Jane Porter", False),
        ("Ola Ade", False),
        ("Ms", False),
        ("", False),
    ],
)
def test_an_excluded_person_is_known_by_the_name_as_people_write_it(written: str, is_excluded: bool) -> None:
    exclusion = msgspec.structs.replace(EXCLUSION, name=written)
    assert bool(chosen(SISTER, exclusions=(exclusion,)).skipped) == is_excluded


def test_an_exclusion_by_mailbox_holds_at_every_school() -> None:
    exclusion = msgspec.structs.replace(EXCLUSION, name="Somebody", urn=MILL, mailbox="LEAD@900002.example.org")
    assert chosen(OTHER_LEAD, exclusions=(exclusion,)).told == ()


def test_an_exclusion_of_somebody_nobody_knows_holds_the_notice_until_a_person_releases_it() -> None:
    unknown = changed(excluded_recipients=(msgspec.structs.replace(EXCLUSION, name="Ann Other"),))
    holds = [[each.hold for each in plan(unknown, is_released=done).establishments] for done in (False, True)]
    assert holds == [[Hold.EXCLUSION_NOT_RECOGNISED, None], [None, None]]
    anywhere = changed(excluded_recipients=(msgspec.structs.replace(EXCLUSION, name="Ann Other", urn=None),))
    assert {each.hold for each in plan(anywhere).establishments} == {Hold.EXCLUSION_NOT_RECOGNISED}


def test_a_school_without_anybody_to_tell_has_no_route_and_keeps_its_deadline() -> None:
    excluded = changed(
        excluded_recipients=(EXCLUSION, msgspec.structs.replace(EXCLUSION, name="Ola Ade")),
        children=(child("c", MILL),),
    )
    [mill] = plan(excluded).establishments
    assert not mill.has_route
    assert mill.timing.due_by == datetime(2026, 11, 2, 8, 15, tzinfo=LONDON)


def test_a_conflict_is_suggested_and_changes_nothing() -> None:
    unmarked = changed(excluded_recipients=())
    found = plan(unmarked)
    assert [suggestion.contact_id for suggestion in found.conflicts] == [SISTER.contact_id]
    assert found.establishments[0].recipients.told == (SISTER.contact_id, DEPUTY.contact_id)
    assert found.establishments[0].hold is None
    double = contact(MILL, ContactRole.DEPUTY, "Ffion Lloyd Jones")
    adults = (IncidentAdult(relation=AdultRelation.OTHER, family_name="Lloyd-Jones"),)
    assert suggest_conflicts(changed(adults=adults), [double, DEPUTY])[0].contact_id == double.contact_id


def test_who_was_told_and_is_excluded_since_is_named_to_the_force() -> None:
    told_before = (SISTER.contact_id, DEPUTY.contact_id)
    assert find_disclosed(told_before, plan().establishments[0].recipients) == (SISTER.contact_id,)


# Release


def test_what_is_suppressed_is_held_whatever_anybody_releases() -> None:
    suppress = Suppression(
        scope=SuppressedScope.NOTICE, reason=SuppressionReason.COVERT_INVESTIGATION, authoriser="DCI 12"
    )
    found = plan(changed(suppress=suppress), is_released=True)
    assert found.hold is Hold.SUPPRESSED
    assert {each.hold for each in found.establishments} == {Hold.SUPPRESSED}
    assert all(each.timing.due_by for each in found.establishments)


def test_a_coordinator_releases_where_the_force_wishes_it() -> None:
    policy = msgspec.structs.replace(POLICY, release=Release.COORDINATOR)
    assert plan(policy=policy).hold is Hold.AWAITS_COORDINATOR
    released = plan(policy=policy, is_released=True)
    assert released.hold is None and {each.hold for each in released.establishments} == {None}


# What


@pytest.mark.parametrize("profile", ContentProfile)
def test_a_notice_as_it_is_sent_fits_its_schema(profile: ContentProfile) -> None:
    schema = schema_named(f"school-notice-{profile.value}.json")
    for incident in (INCIDENT, changed(children=(child("x", MILL, birth_date=None, childs_words=None, present=None),))):
        sent = json.loads(msgspec.json.encode(compose(incident, MILL, profile).notice))
        assert differences(schema, schema, sent) == []
        assert sent["profile"] == f"{profile.value}.v1"
        assert differences(schema, schema, sent | {"address": "12 Mill Lane"})


def test_a_profile_tells_what_it_says_and_no_more() -> None:
    minimal, standard, full = (compose(INCIDENT, MILL, profile).notice for profile in ContentProfile)
    assert isinstance(minimal, MinimalNotice) and isinstance(standard, StandardNotice) and isinstance(full, FullNotice)
    said = [msgspec.json.encode(notice).decode() for notice in (minimal, standard, full)]
    assert ["Words of casey." in text for text in said] == [False, True, True]
    assert ["ZF1/2026/1042" in text for text in said] == [False, True, True]
    assert ["12 Mill Lane" in text for text in said] == [False, False, True]
    assert ["neighbours" in text for text in said] == [False, False, True]


@pytest.mark.parametrize(
    "text", ["We live at 12 Mill Lane now.", "in mill  LANE", "Dad said zz991aa.", "at ZZ99 1AA, upstairs"]
)
def test_a_text_that_tells_where_is_left_out_whole_and_on_record(text: str) -> None:
    composed = compose(changed(children=(child("casey", MILL, childs_words=text),)), MILL)
    assert isinstance(composed.notice, StandardNotice)
    assert composed.notice.children[0].childs_words is None
    assert [(each.field, each.child_id, each.reason) for each in composed.withheld] == [
        ("childs_words", "casey", WithheldReason.HOLDS_AN_ADDRESS)
    ]


def test_at_home_is_not_an_address() -> None:
    composed = compose(changed(location="Home", children=(child("casey", MILL, where="at home"),)), MILL)
    assert composed.withheld == ()


def test_a_hidden_place_hides_every_free_text_in_every_profile() -> None:
    suppress = Suppression(scope=SuppressedScope.LOCATION, reason=SuppressionReason.REFUGE, authoriser="DI 7")
    composed = compose(changed(suppress=suppress), MILL, ContentProfile.FULL)
    notice = composed.notice
    assert isinstance(notice, FullNotice)
    texts = (notice.location, notice.circumstances, notice.children[0].where, notice.children[0].childs_words)
    assert set(texts) == {None}
    assert {each.field for each in composed.withheld} == {"location", "circumstances", "where", "childs_words"}
    assert notice.children[0].present is True
    assert "refuge" not in msgspec.json.encode(notice).decode()


# What a later version changes


def test_what_a_school_does_not_see_sends_it_nothing() -> None:
    sent = as_sent(notices(INCIDENT))
    unseen = changed(version=2, location="Elsewhere Road", excluded_recipients=(), risk_grade=None, adults=())
    assert amend(sent, notices(unseen)) == []


def test_a_child_moved_to_another_school_withdraws_here_and_sends_there() -> None:
    only_mill = changed(children=(child("casey", MILL),))
    moved = changed(version=2, children=(child("casey", HIGH),))
    assert amend(as_sent(notices(only_mill)), notices(moved)) == [(MILL, Step.WITHDRAW), (HIGH, Step.SEND)]


def test_a_withdrawal_takes_every_notice_back_once_and_a_return_amends_it() -> None:
    first = as_sent(notices(INCIDENT))
    steps = plan_amendments(
        first, {}, change=Change.CORRECTION, at=SUNDAY, withdrawn_statement=POLICY.withdrawn_statement
    )
    assert [(each.urn, each.step) for each in steps] == [(MILL, Step.WITHDRAW), (HIGH, Step.WITHDRAW)]
    taken_back = steps[0].notice
    assert isinstance(taken_back, SchoolNoticeWithdrawn)
    assert (taken_back.notice_id, taken_back.version) == (first[MILL].notice.notice_id, 2)
    schema = schema_named("school-notice-withdrawn.json")
    assert differences(schema, schema, json.loads(msgspec.json.encode(taken_back))) == []
    withdrawn = {urn: msgspec.structs.replace(one, is_withdrawn=True, version=2) for urn, one in first.items()}
    assert amend(withdrawn, {}) == []
    [again, _] = plan_amendments(
        withdrawn, notices(INCIDENT), change=Change.CORRECTION, at=SUNDAY, withdrawn_statement=""
    )
    assert (again.step, again.notice.version, again.notice.notice_id) == (Step.AMEND, 3, taken_back.notice_id)


# Whatever the police send

children = st.builds(
    IncidentChild,
    child_id=st.sampled_from(["a", "b", "c"]),
    family_name=st.sampled_from(["Tester", "Ó Néill", "\x00", " "]),
    birth_date=st.none() | st.dates(date(2000, 1, 1), date(2027, 1, 1)),
    establishments=st.lists(
        st.builds(
            NamedEstablishment,
            source=st.sampled_from(SchoolSource),
            urn=st.none() | st.sampled_from([MILL, HIGH, OLD, MERGED, SchoolUrn("900099")]),
            name=st.none() | st.just("A school"),
        ),
        max_size=4,
    ).map(tuple),
    home_educated=st.booleans(),
    authority=st.none() | st.just("706"),
    childs_words=st.none() | st.text(max_size=30),
)
instants = st.integers(0, 315_000_000).map(
    lambda after_s: datetime(2020, 1, 1, tzinfo=UTC) + timedelta(seconds=after_s)
)
incidents = st.builds(
    PoliceIncident,
    incident_id=st.just("ZF1/1"),
    force=st.just("ZF1"),
    occurred_at=instants,
    reported_at=instants,
    location=st.none() | st.text(max_size=30),
    children=st.lists(children, min_size=1, max_size=3, unique_by=lambda each: each.child_id).map(tuple),
    adults=st.lists(
        st.builds(IncidentAdult, relation=st.sampled_from(AdultRelation), family_name=st.none() | st.text(max_size=9)),
        max_size=2,
    ).map(tuple),
    excluded_recipients=st.lists(
        st.builds(
            ExcludedRecipient,
            name=st.text(max_size=12) | st.sampled_from(["Jane Carter", "O. Ade"]),
            reason=st.just("r"),
            authoriser=st.just("a"),
            urn=st.none() | st.sampled_from([MILL, HIGH]),
            mailbox=st.none() | st.sampled_from([SISTER.mailbox, DEPUTY.mailbox]),
        ),
        max_size=2,
    ).map(tuple),
)


@settings(max_examples=300, deadline=None)
@given(incident=incidents, profile=st.sampled_from(ContentProfile), under=st.sampled_from(UnderSchoolAge))
def test_no_child_is_forgotten_and_nobody_excluded_is_told(
    incident: PoliceIncident, profile: ContentProfile, under: UnderSchoolAge
) -> None:
    policy = msgspec.structs.replace(POLICY, profile=profile, under_school_age=under)
    found = plan_incident(incident, DIRECTORY, policy, at=SATURDAY)
    assert {each.child_id for each in found.destinations} == {each.child_id for each in incident.children}
    routed = {(each.child_id, each.urn) for each in found.destinations if each.fate is Fate.NOTICE}
    assert routed == {(child_id, each.urn) for each in found.establishments for child_id in each.child_ids}
    mailboxes = {each.mailbox for each in incident.excluded_recipients}
    contacts = {each.contact_id: each for each in (SISTER, DEPUTY, OTHER_LEAD)}
    for each in found.establishments:
        assert each.timing.due_by > incident.reported_at
        assert not {contacts[told].mailbox for told in each.recipients.told} & mailboxes
        assert len(each.recipients.told) + len(each.recipients.skipped) == len(DIRECTORY.contacts[each.urn])
        slip = Slip(notice_id="n", issued_at=SATURDAY)
        composed = compose_notice(incident, ESTABLISHMENTS[each.urn], each.child_ids, policy, slip)
        assert len(composed.notice.children) == len(each.child_ids)
        same = as_sent({each.urn: composed.notice})
        assert amend(same, {each.urn: composed.notice}) == []
