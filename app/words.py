"""Numbers as people read them, with their units."""

from __future__ import annotations

import math
import re

NONE = "–"

_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(value: float | None) -> str:
    """Write three figures with a prefix: 1.23 M."""
    if value is None or not math.isfinite(value):
        return NONE
    for limit, prefix in _STEPS:
        if abs(value) >= 0.9995 * limit:
            return f"{_figures(value / limit)} {prefix}"
    return f"{_figures(value)}"


def quantity(value: float | None, unit: str) -> str:
    """Write three figures with a prefix and a unit: 1.23 MB/s."""
    text = count(value)
    if text == NONE:
        return NONE
    return f"{text}{'' if text[-1] in 'TGMk' else ' '}{unit}"


def seconds(value: float | None) -> str:
    """Write a span of time: 4.2 s, 3 min 05 s, 2 h 07 min."""
    if value is None or not math.isfinite(value):
        return NONE
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def sigma(value: float | None) -> str:
    """Write a significance."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.2f} σ"


def percent(share: float) -> str:
    """Write a share; 100 % is said of nothing less."""
    return f"{math.floor(1000 * share + 1e-9) / 10:.1f} %" if share < 1 else "100 %"


def number(value: float) -> str:
    """Write a whole number with its thousands apart."""
    return f"{round(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def plain(text: str) -> str:
    """Keep Markdown from reading a text as markup."""
    return re.sub(r"([\\`*_{}\[\]<>#$:~|])", r"\\\1", text)


def _figures(value: float) -> str:
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value)) + 1e-9))
    text = f"{value:.{min(digits, 3)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
