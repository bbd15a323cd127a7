"""Faults fire exactly as often as they were armed, and only those of the catalogue exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mock_nhs
from mock_nhs.faults import CATALOGUE, Faults, UnknownFault, read_faults


def test_a_fault_that_is_not_armed_never_fires() -> None:
    faults = Faults()
    assert not any(faults.fires("case.refuse_503") for _ in range(100))


def test_a_fault_armed_for_three_times_fires_at_its_next_three_chances() -> None:
    faults = read_faults(["case.refuse_503:3"])
    assert [faults.fires("case.refuse_503") for _ in range(5)] == [True, True, True, False, False]
    assert faults.fired["case.refuse_503"] == 3


def test_a_share_is_drawn_by_the_seed_and_undisturbed_by_other_points() -> None:
    one, other = (read_faults(["ed.reply.close:0.3", "ed.reply.slow:0.5"], seed=9) for _ in range(2))
    drawn = [one.fires("ed.reply.close") for _ in range(1_000)]
    with_others = [(other.fires("ed.reply.slow"), other.fires("ed.reply.close"))[1] for _ in range(1_000)]
    assert drawn == with_others
    assert 250 < sum(drawn) < 350
    assert [Faults(8).fires("ed.reply.close")] == [False]


def test_a_disarmed_fault_fires_no_more() -> None:
    faults = Faults()
    faults.arm_times("ed.send.twice", 5)
    faults.fires("ed.send.twice")
    faults.disarm("ed.send.twice")
    assert not faults.fires("ed.send.twice")


@pytest.mark.parametrize("text", ["case.explode:1", "case.refuse_503", "case.refuse_503:often", "case.refuse_503:"])
def test_a_fault_outside_the_catalogue_or_without_a_count_is_refused(text: str) -> None:
    with pytest.raises(UnknownFault):
        read_faults([text])


def test_every_fault_of_the_catalogue_is_a_point_in_the_code_and_the_other_way_round() -> None:
    code = {
        path: path.read_text(encoding="utf-8")
        for path in Path(mock_nhs.__path__[0]).glob("*.py")
        if path.name != "faults.py"
    }
    pattern = re.compile(r'"((?:ed|case|pds|notify)\.[a-z0-9_.]+)"')
    named = {name for text in code.values() for name in pattern.findall(text)}
    assert named == CATALOGUE
    assert len(CATALOGUE) == 54
