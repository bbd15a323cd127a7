"""The style sheet's colours can be told apart by people who see little (WCAG 2.2, success criterion 1.4.3, AA)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from broker.web import pages

STYLE = (Path(pages.__file__).parent / "static" / "style.css").read_text(encoding="utf-8")
NAMED = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", STYLE))
RULES = re.findall(r"([^{}]+)\{([^{}]*)\}", re.sub(r"/\*.*?\*/", "", STYLE, flags=re.DOTALL))
CONTRAST_MIN = 4.5


def luminance(colour: str) -> float:
    channels = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def find_colour(name: str, declarations: str) -> str | None:
    found = re.search(rf"(?:^|;)\s*{name}: (?:var\(--([\w-]+)\)|(#[0-9a-f]{{6}}))", declarations)
    return None if found is None else found[2] or NAMED[found[1]]


def own_pairs() -> list[tuple[str, str, str]]:
    pairs = []
    for selector, declarations in RULES:
        text, ground = find_colour("color", declarations), find_colour("background", declarations)
        if text and ground:
            pairs.append((selector.strip(), text, ground))
    return pairs


@pytest.mark.parametrize(("selector", "text", "ground"), own_pairs(), ids=lambda value: str(value)[:30])
def test_a_rule_that_sets_both_colours_can_be_read(selector: str, text: str, ground: str) -> None:
    assert contrast(text, ground) >= CONTRAST_MIN, selector


@pytest.mark.parametrize("ground", ["ground", "shade", "urgent-shade"])
@pytest.mark.parametrize("text", ["text", "quiet", "link", "link-hover", "urgent"])
def test_every_text_can_be_read_on_every_ground(text: str, ground: str) -> None:
    assert contrast(NAMED[text], NAMED[ground]) >= CONTRAST_MIN


def test_the_measure_is_the_standards() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)
    assert len(own_pairs()) >= 10
