"""Tracing one listed person: questions to the Personal Demographics Service until something is found."""

from __future__ import annotations

from broker.domain.tracing import trace_next
from broker.ports import Tracer
from schemas.trace import Answer, ByDetails, ByNumber, Finding, Traceable


async def trace_person(tracer: Tracer, listed: Traceable) -> Finding:
    """Ask until it is known what is wrong with an entry's identity, or that nothing is. Opens no transaction."""
    answers: list[Answer] = []
    while True:
        step = trace_next(listed, answers)
        if not isinstance(step, ByNumber | ByDetails):
            return step
        answers.append(await tracer.ask(step))
