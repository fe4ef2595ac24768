"""A fit in words, the same on the command line and in a report."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hzzray.statistics.fit_result import FitResult, Quantity

# A goodness of fit below this is worth a word.
_UNLIKELY = 0.05

# What figures of a fit are called where they are withheld.
_NAMES = {
    "mu": "µ̂",
    "mu_error": "error of µ̂",
    "mu_up": "upper error of µ̂",
    "mu_down": "lower error of µ̂",
    "mu_stat": "its statistics",
    "mu_syst": "its systematics",
    "z_expected": "expected significance",
    "z_observed": "observed significance",
    "limit_observed": "observed limit",
    "gof_q": "goodness of fit",
    "gof_p": "goodness of fit",
    "mass": "m_H",
    "mass_error": "error of m_H",
    "mass_up": "upper error of m_H",
    "mass_down": "lower error of m_H",
    "mass_scale": "error of m_H by lepton energies",
}


def title(fitted: FitResult) -> str:
    """Say what a fit is of."""
    of = "data" if fitted.observed else f"expected events alone: {fitted.no_data}"
    return f"fit of run {fitted.run_id}, {fitted.observable}, {of}"


def lines(fitted: FitResult) -> list[str]:
    """Say a fit's figures in a line each."""
    return [f"{name:<16} {text}" for name, text in rows(fitted)]


def rows(fitted: FitResult) -> list[tuple[str, str]]:
    """Name a fit's figures and say them in words; what is withheld is left out of these, and told last with its why."""

    def text(name: str, digits: str = ".2f") -> str:
        value = fitted.value(name)
        return "–" if value is None else f"{value:{digits}}"

    sides = _sides(fitted.value("mu_up"), fitted.value("mu_down"), split(fitted))
    more = f" ({sides})" if fitted.value("mu_error") is not None and sides else ""
    said = [("signal strength", f"µ̂ = {strength(fitted)}{more}")]
    found = [f"{text(f'z_{kind}')} σ {kind}" for kind in ("expected", "observed") if _has(fitted.figures, f"z_{kind}")]
    said.append(("significance", ", ".join(found) or "none"))
    if "z_toys" in fitted.figures:
        bound = fitted.figures["z_toys"].withheld
        toys = f"{text('z_toys')} σ observed, p = {text('p_toys', '.2g')}"
        said.append(("by toys", f"{toys}; {bound}" if bound else toys))
    if "limit_expected" in fitted.figures:
        said.append(("95 % CLs limit", _limits(fitted)))
    if _has(fitted.figures, "gof_p"):
        said.append(("goodness of fit", ": ".join(filter(None, (f"p = {text('gof_p', '.2g')}", doubt(fitted))))))
    if fitted.mass is not None:
        said.append(("mass", _mass(fitted.mass.figures)))
    withheld: dict[str, list[str]] = {}
    for name, figure in (fitted.figures | (fitted.mass.figures if fitted.mass else {})).items():
        if figure.value is None:
            withheld.setdefault(figure.withheld or "not defined", []).append(_name(name))
    said += [("withheld", f"{', '.join(dict.fromkeys(names))}: {why}") for why, names in withheld.items()]
    return said


def strength(fitted: FitResult) -> str:
    """Write µ̂ with its error; at its bound of 0, how far up it may be."""
    mu, error, up = map(fitted.value, ("mu", "mu_error", "mu_up"))
    if mu is None:
        return "–"
    if error is not None:
        return f"{mu:.2f} ± {error:.2f}"
    return f"{mu:.2f}" if up is None else f"{mu:.2f} +{up:.2f}"


def split(fitted: FitResult) -> str:
    """Say what of µ̂'s error is statistics; nothing where that isn't known."""
    parts = {"statistics": fitted.value("mu_stat"), "systematics": fitted.value("mu_syst")}
    return ", ".join(f"{value:.2f} {name}" for name, value in parts.items() if value is not None)


def _has(figures: Mapping[str, Quantity], name: str) -> bool:
    return name in figures and figures[name].value is not None


def _name(name: str) -> str:
    if name.startswith("limit_expected"):
        return "expected limit"
    return _NAMES.get(name, name.replace("_", " "))


def _sides(up: float | None, down: float | None, *more: str) -> str:
    """Write an error's two sides, of which one that isn't there is left out, and what else is said of it."""
    sides = [f"{sign}{value:.2f}" for sign, value in (("+", up), ("−", down)) if value is not None]
    return "; ".join(part for part in (" ".join(sides), *more) if part)


def doubt(fitted: FitResult) -> str:
    """Say that data and model differ by more than is likely, and where; nothing where they don't."""
    p = fitted.value("gof_p")
    if p is None or p >= _UNLIKELY:
        return ""
    pulls = {
        row.region: (row.data - row.after) / math.sqrt(row.after + row.after_error**2)
        for row in fitted.yields
        if row.process == "total" and row.data is not None and row.after > 0
    }
    worst = max(pulls, key=lambda region: abs(pulls[region]), default=None)
    where = "" if worst is None else f", most in {worst} ({pulls[worst]:+.1f} σ in all of it)"
    return f"data and model differ by more than chance explains{where}"


def _limits(fitted: FitResult) -> str:
    names = ("limit_observed", "limit_expected")
    low1, high1, low2, high2 = (
        fitted.value(f"limit_expected_{one}") for one in ("minus_1", "plus_1", "minus_2", "plus_2")
    )
    observed, expected = map(fitted.value, names)
    bands = "; ".join(
        f"{n} σ: {low:.2f} to {high:.2f}"
        for n, low, high in ((1, low1, high1), (2, low2, high2))
        if low is not None and high is not None
    )
    said = [] if observed is None else [f"µ < {observed:.2f} observed"]
    if expected is not None:
        said.append(f"{expected:.2f} expected without signal" + (f" ({bands})" if bands else ""))
    return ", ".join(said) or "none"


def _mass(figures: Mapping[str, Quantity]) -> str:
    values = {name: figure.value for name, figure in figures.items()}
    said = []
    if values.get("mass") is not None:
        error = "" if values.get("mass_error") is None else f" ± {values['mass_error']:.2f}"
        sides = _sides(values.get("mass_up"), values.get("mass_down"))
        how = "; by pseudo-experiments" if "mass_height" in values else ""
        said.append(f"m_H = {values['mass']:.2f}{error} GeV" + (f" ({sides}{how})" if sides else ""))
    if values.get("mass_error_expected") is not None:
        said.append(f"± {values['mass_error_expected']:.2f} GeV expected")
    return "; ".join(said) or "none"


def notes(fitted: FitResult) -> tuple[str, ...]:
    """Tell what there is to know of a fit beside its figures."""
    return (*fitted.notes, *(fitted.mass.notes if fitted.mass else ()))


def events(fitted: FitResult) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Lay out each region's events: titles, and rows."""
    found: list[tuple[str, ...]] = [
        (
            row.region,
            f"{row.before:.2f} ± {row.before_error:.2f}",
            f"{row.after:.2f} ± {row.after_error:.2f}",
            "–" if row.data is None else f"{row.data:.0f}",
        )
        for row in fitted.yields
        if row.process == "total"
    ]
    return ("region", "before the fit", "after the fit", "data"), found
