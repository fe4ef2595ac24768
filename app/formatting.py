"""Numbers as people read them, with their units."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

NONE = "–"

#: A character without width, at which no line is broken.
JOINER = "\N{WORD JOINER}"

_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


#: What figures are called that a run may have to withhold: fields of ``Significance``.
_FIGURES = {
    "n_signal": "s", "n_background": "b", "sigma_b": "σ_b", "n_data": "n", "asimov": "expected (Asimov)",
    "observed": "observed", "notebook": "notebook", "s_over_sqrt_b": "s/√b", "asimov_sigma": "Asimov with σ_b",
    "asimov_notebook": "Asimov with the notebooks' σ_b",
}  # fmt: skip


def withheld(reasons: Mapping[str, str]) -> list[str]:
    """Write in one line each why figures are withheld: each figure once, those of one reason together.

    What lacks several things is said to be withheld as those are that lack one of them each.
    """
    together: dict[str, list[str]] = {}
    for field, name in _FIGURES.items():
        if field in reasons:
            together.setdefault(reasons[field], []).append(name)
    lines = []
    for reason, names in together.items():
        parts = reason.split("; ")
        known = [together[part][0] for part in parts if part != reason and part in together]
        why = f"as {' and '.join(known)}" if len(known) == len(parts) else reason
        lines.append(f"{', '.join(names)}: {why}")
    return lines


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


def short(text: str, most: int = 200) -> str:
    """Write somebody's text in one line of at most so many characters, without any that aren't seen."""
    seen = " ".join("".join(letter if letter.isprintable() else " " for letter in text[: 4 * most]).split())
    return seen if len(seen) <= most and len(text) <= 4 * most else f"{seen[: most - 1]}…"


def plain(text: str, most: int = 400) -> str:
    """Keep Markdown from reading somebody's text as anything but text: no markup, icons, formulas or links."""
    escaped = re.sub(r"([\\`*_{}\[\]<>#$:~|&])", r"\\\1", short(text, most))
    escaped = re.sub(r"^([-+=]|\d+(?=[.)]))", lambda start: _inert(start[1]), escaped)
    # Addresses become links whatever is escaped of them, unless something that nobody sees is within.
    return re.sub(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?=@)", JOINER, escaped, flags=re.IGNORECASE)


_LETTERS = {"ell": "ℓ", "eta": "η", "phi": "φ", "gamma": "γ", "mu": "µ", "tau": "τ", "Delta": "Δ", "rightarrow": "→"}
_SUBSCRIPTS = str.maketrans("0123456789+-ℓT", "₀₁₂₃₄₅₆₇₈₉₊₋ℓT")


def label(tex: str, most: int = 100) -> str:
    """Write an axis' label, LaTeX for matplotlib, in plain letters: m₄ℓ, pT(ℓ₁), ΔR."""
    text = re.sub(r"\\([A-Za-z]+) ?", lambda found: _LETTERS.get(found[1], found[1]), tex.replace("$", ""))
    text = re.sub(r"_(?:\{([^{}]*)\}|(.))", lambda found: (found[1] or found[2]).translate(_SUBSCRIPTS), text)
    text = re.sub(r"\^(?:\{([^{}]*)\}|(.))", lambda found: f"({found[1] or found[2]})".replace("(*)", "*"), text)
    return short(text.replace("{", "").replace("}", ""), most)


def axis(name: str, tex: str, unit: str) -> str:
    """Write what an axis shows, with its unit."""
    shown = label(tex) or short(name)
    return f"{shown} [{short(unit, 20)}]" if unit else shown


def _inert(start: str) -> str:
    """Keep a line from beginning a list or a heading."""
    return f"{start}{JOINER}" if start.isdecimal() else f"\\{start}"


def _figures(value: float) -> str:
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value)) + 1e-9))
    text = f"{value:.{min(digits, 3)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
