"""How people are told, by the settings."""

from __future__ import annotations

from datetime import timedelta

from broker.announcement import Rules
from broker.domain.course import Quiet
from broker.domain.coverage import CoverageRules
from broker.domain.visibility import Windows
from broker.notices import NoticeRules
from broker.nudges import NudgeRules
from broker.settings import Settings


def rules_of(settings: Settings) -> Rules:
    """How people are told, by the settings."""
    return Rules(
        escalation=timedelta(minutes=settings.escalation_minutes),
        look_back=timedelta(hours=settings.look_back_hours),
        list_stale=timedelta(hours=settings.list_stale_hours),
        windows=Windows(plan_days=settings.plan_shown_days, unborn_days=settings.unborn_plan_shown_days),
        coverage=CoverageRules(
            unverified=timedelta(days=settings.coverage_unverified_days),
            limit=timedelta(hours=settings.coverage_escalation_hours),
            habit_factor=settings.list_habit_factor,
            every=timedelta(minutes=settings.coverage_count_minutes),
            is_tracing=bool(settings.pds_base_url),
        ),
        look_up_escalation=timedelta(hours=settings.look_up_escalation_hours),
        proclaimed_days=settings.proclaimed_days,
        topics_enabled=bool(settings.kafka_bootstrap_servers),
        review_bits_min=settings.review_weight_bits_min,
        quiet=Quiet(
            visit=timedelta(hours=settings.visit_stale_hours),
            admission=timedelta(days=settings.visit_admitted_stale_days),
        ),
    )


def nudge_rules_of(settings: Settings) -> NudgeRules:
    """How people are told to sign in. The front page leads each to what is theirs."""
    return NudgeRules(
        page=f"{settings.public_url.rstrip('/')}/",
        topics_enabled=bool(settings.kafka_bootstrap_servers),
        emails_enabled=settings.emails_enabled,
        texts_enabled=settings.texts_enabled,
    )


def notice_rules_of(settings: Settings) -> NoticeRules:
    """How establishments are told of police incidents."""
    return NoticeRules(
        nudges=nudge_rules_of(settings),
        try_again=timedelta(minutes=settings.escalation_minutes),
        pupil_bits_min=settings.review_weight_bits_min,
    )
