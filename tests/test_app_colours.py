"""Whether the app's colours can be told from what is behind them: by WCAG 2.2, level AA at the least."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from app.charts import COLOURS

THEMES = tomllib.loads((Path(__file__).parents[1] / ".streamlit" / "config.toml").read_text())["theme"]
TEXT, GRAPHICS = 4.5, 3.0


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour, #rrggbb."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_the_formula_is_that_of_the_guidelines():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("behind", ["backgroundColor", "secondaryBackgroundColor", "grayBackgroundColor"])
def test_text_can_be_read(theme, behind):
    colours = THEMES[theme]
    for name in ("textColor", "grayTextColor", "linkColor"):
        assert contrast(colours[name], colours[behind]) >= TEXT, (name, behind)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("behind", ["backgroundColor", "secondaryBackgroundColor", "grayBackgroundColor"])
def test_captions_can_be_read(theme, behind):
    """Streamlit draws them in the text's colour, at 60 % of its strength."""
    colours = THEMES[theme]
    assert contrast(mixed(colours["textColor"], colours[behind], 0.6), colours[behind]) >= TEXT


def mixed(colour: str, behind: str, strength: float) -> str:
    """What is seen of a colour that lets some of what is behind it through."""
    pairs = ((int(colour[i : i + 2], 16), int(behind[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(strength * over + (1 - strength) * under):02x}" for over, under in pairs)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_is_pressed_and_moved_can_be_seen_and_its_label_read(theme):
    colours = THEMES[theme]
    assert contrast("#ffffff", colours["primaryColor"]) >= TEXT
    for behind in ("backgroundColor", "secondaryBackgroundColor", "grayBackgroundColor"):
        assert contrast(colours["primaryColor"], colours[behind]) >= GRAPHICS, behind


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("behind", ["backgroundColor", "secondaryBackgroundColor"])
def test_what_charts_draw_can_be_seen(theme, behind):
    assert tuple(THEMES[theme]["chartCategoricalColors"]) == COLOURS
    for colour in COLOURS:
        assert contrast(colour, THEMES[theme][behind]) >= GRAPHICS, colour
