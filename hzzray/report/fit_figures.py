"""Pictures of a fit: regions before and after it, pulls and impacts, correlations, limits, the mass.

Importing this loads matplotlib and mplhep, as ``hzzray.report.plotting`` does; the rules of that module hold here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from hzzray.report import fit_text
from hzzray.report.plotting import STYLE, axis_label, region_label, tex
from hzzray.report.style import StyledFigure, plain, save_figure, style
from hzzray.runs.result import Result
from hzzray.statistics.fit_result import BinResult, FitResult
from hzzray.statistics.significance import poisson_interval

#: Nuisance parameters that a picture has room for: those that move µ̂ most.
MOST = 25

#: Up to where −2 ln λ is drawn, and how much higher the picture is: room for the mass in numbers.
_HIGHEST, _ROOM = 9.0, 1.2

_BLUE, _RED, _GREEN, _YELLOW = "#3f90da", "#bd1f01", "#34a853", "#ffd24d"


def figures(fitted: FitResult, result: Result) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """Name all pictures that there is something to draw of, and how each is drawn."""
    pictures: list[tuple[str, Callable[[FitResult, Result], Figure]]] = [("regions", regions), ("yields", yields)]
    if fitted.parameters:
        pictures += [("impacts", impacts), ("correlations", correlations)]
    if fitted.value("limit_expected") is not None:
        pictures.append(("limit", limit))
    if fitted.mass is not None:
        pictures.append(("mass", mass))
    for name, draw in pictures:
        yield name, partial(draw, fitted, result)


def save_all(fitted: FitResult, result: Result, folder: Path) -> list[Path]:
    """Write all pictures, each as PNG and PDF, in the place of an earlier fit's; returns their paths."""
    for name in ("impacts", "correlations", "limit", "mass"):  # which not every fit has
        for ending in ("png", "pdf"):
            (folder / f"fit-{name}.{ending}").unlink(missing_ok=True)
    paths: list[Path] = []
    for name, draw in figures(fitted, result):
        paths += save_figure(draw(), folder / f"fit-{name}", result.run_id)
    return paths


def regions(fitted: FitResult, result: Result) -> Figure:
    """Draw each region's bins before the fit (above) and after it (below), divided by the bins' widths."""
    colours = {name: group.colour for name, group in result.groups.items()}
    template = next(one for one in result.spec.templates if one.observable == fitted.observable)
    with style(STYLE):
        fig = StyledFigure(STYLE, figsize=(4.4 * len(fitted.bins) + 0.6, 8.4))
        grid = fig.subplots(2, len(fitted.bins), sharex="col", squeeze=False)
        fig.subplots_adjust(left=0.07, right=0.985, bottom=0.085, top=0.9, hspace=0.08, wspace=0.22)
        for column, row in zip(grid.T, fitted.bins, strict=True):
            tops = [_stack(axes, row, colours, after=after) for axes, after in zip(column, (False, True), strict=True)]
            for axes, when in zip(column, ("before the fit", "after the fit"), strict=True):
                axes.set(xlim=(row.edges[0], row.edges[-1]), ylim=(0, 1.35 * max(tops)))
                label = f"{region_label(row.region)}, {when}"
                axes.text(0.96, 0.95, label, ha="right", va="top", fontsize=13, transform=axes.transAxes)
            column[1].set_xlabel(axis_label(template), fontsize=15)
        for axes in grid[:, 0]:
            axes.set_ylabel(f"Events / {fitted.unit}".rstrip(" /"), fontsize=15)
        shown = [name for name in colours if name in fitted.bins[0].before]
        handles: list[Any] = [Patch(facecolor=colours[name], edgecolor="black", label=tex(name)) for name in shown]
        handles.append(Patch(facecolor="none", edgecolor="0.25", hatch="//////", linewidth=0, label="Uncertainty"))
        if fitted.observed:
            handles.append(Line2D([], [], color="black", marker="o", markersize=5, linestyle="none", label="Data"))
        fig.legend(handles=handles, loc="upper right", ncols=len(handles), fontsize=12, bbox_to_anchor=(0.985, 0.96))
        _title(fig, fitted, result)
    return fig


def _stack(axes: Axes, row: BinResult, colours: dict[str, str], *, after: bool) -> float:
    """Draw a region; returns how high it is."""
    edges = np.array(row.edges)
    widths = np.diff(edges)
    below = np.zeros(len(widths))
    for name, values in (row.after if after else row.before).items():
        top = below + np.array(values) / widths
        step = axes.stairs(top, edges, baseline=below, fill=True)
        step.set(facecolor=colours[name], edgecolor="black", linewidth=0.6)
        below = top
    error = np.array(row.after_error if after else row.before_error) / widths
    band = axes.stairs(below + error, edges, baseline=below - error, fill=True)
    band.set(facecolor="none", edgecolor="0.25", linewidth=0, hatch="//////", zorder=2)
    highest = float((below + error).max())
    if row.data is not None:
        data = np.array(row.data)
        low, high = poisson_interval(data)
        bars = np.stack((data - low, high - data)) / widths
        axes.errorbar(
            (edges[1:] + edges[:-1]) / 2, data / widths, bars, fmt="ko", markersize=4, elinewidth=1, capsize=0
        )
        highest = max(highest, float((high / widths).max()))
    return highest


def yields(fitted: FitResult, result: Result) -> Figure:  # noqa: ARG001 (all pictures are asked for alike)
    """Draw each region's events before and after the fit beside its data."""
    totals = [row for row in fitted.yields if row.process == "total"]
    with style(STYLE):
        fig = StyledFigure(STYLE, figsize=(6.4, 4.6))
        axes = fig.subplots()
        fig.subplots_adjust(left=0.13, right=0.97, bottom=0.12, top=0.88)
        at = np.arange(len(totals))
        for shift, colour, label, kind in (
            (-0.2, "0.6", "before the fit", "before"),
            (0.0, _BLUE, "after the fit", "after"),
        ):
            values = [getattr(row, kind) for row in totals]
            errors = [getattr(row, f"{kind}_error") for row in totals]
            axes.errorbar(at + shift, values, errors, fmt="s", color=colour, markersize=7, elinewidth=2, label=label)
        if fitted.observed:
            data = np.array([row.data or 0.0 for row in totals])
            bars = np.abs(poisson_interval(data) - data)
            axes.errorbar(at + 0.2, data, bars, fmt="ko", markersize=6, label="Data")
        axes.set_xticks(at, [region_label(row.region) for row in totals])
        axes.tick_params(axis="x", which="minor", bottom=False, top=False)
        axes.set(xlim=(-0.6, len(totals) - 0.4), ylim=(0, None), ylabel="Events")
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, fontsize=12)
    return fig


def impacts(fitted: FitResult, result: Result) -> Figure:  # noqa: ARG001
    """Draw the nuisance parameters that move µ̂ most: what each does to it (above), and its pull (below)."""
    rows = fitted.parameters[:MOST][::-1]
    at = np.arange(len(rows))
    with style(STYLE):
        fig = StyledFigure(STYLE, figsize=(8.2, 2.2 + 0.3 * len(rows)))
        axes = fig.subplots()
        fig.subplots_adjust(
            left=0.28, right=0.96, bottom=0.9 / (2.2 + 0.3 * len(rows)), top=1 - 1.0 / (2.2 + 0.3 * len(rows))
        )
        above = axes.twiny()
        largest = 1e-6
        for kind, after in (("_before", False), ("", True)):
            for direction, colour in (("up", _BLUE), ("down", _RED)):
                values = np.array([getattr(row, f"impact_{direction}{kind}") or 0.0 for row in rows])
                look = {"color": colour, "alpha": 0.75} if after else {"facecolor": "none", "edgecolor": colour}
                above.barh(at, values, height=0.7, **look)
                largest = max(largest, float(abs(values).max(initial=0.0)))
        above.set_xlim(-1.3 * largest, 1.3 * largest)
        above.set_xlabel(r"$\Delta\hat{\mu}$", fontsize=15)
        axes.set_zorder(above.get_zorder() + 1)
        axes.patch.set_visible(False)
        axes.errorbar([r.pull for r in rows], at, xerr=[r.constraint for r in rows], fmt="ko", markersize=5, capsize=2)
        widest = max(2.4, *(1.1 * (abs(row.pull) + row.constraint) for row in rows))
        for where in (-1, 0, 1):
            axes.axvline(where, color="0.4", linewidth=0.8, linestyle="--" if where else "-")
        axes.set(xlim=(-widest, widest), ylim=(-0.7, len(rows) - 0.3))
        axes.set_xlabel(r"$(\hat{\theta}-\theta_0)/\Delta\theta$", fontsize=15)
        axes.set_yticks(at, [plain(row.name) for row in rows], fontsize=11)
        axes.tick_params(axis="y", which="both", left=False, right=False)
        axes.tick_params(axis="x", which="both", top=False)
        above.tick_params(axis="x", which="both", bottom=False)
        handles: list[Any] = [
            Patch(color=_BLUE, alpha=0.75, label=r"$+1\sigma$ after the fit"),
            Patch(color=_RED, alpha=0.75, label=r"$-1\sigma$ after"),
            Patch(facecolor="none", edgecolor="0.3", label="before"),
        ]
        fig.legend(handles=handles, loc="upper left", fontsize=10, bbox_to_anchor=(0.0, 1.0))
    return fig


def correlations(fitted: FitResult, result: Result) -> Figure:  # noqa: ARG001
    """Draw the correlations of µ and the nuisance parameters that move it most."""
    chosen = ["mu", *(row.name for row in fitted.parameters[: MOST - 1])]
    index = [fitted.names.index(name) for name in chosen]
    matrix = np.array(fitted.correlations)[np.ix_(index, index)]
    with style(STYLE):
        side = 3.4 + 0.32 * len(chosen)
        fig = StyledFigure(STYLE, figsize=(side + 0.6, side))
        axes = fig.subplots()
        fig.subplots_adjust(left=2.2 / (side + 0.6), right=0.9, bottom=2.0 / side, top=0.97)
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        for i, j in np.argwhere(abs(matrix) >= 0.05):
            colour = "white" if abs(matrix[i, j]) > 0.6 else "black"
            axes.text(j, i, f"{100 * matrix[i, j]:.0f}", ha="center", va="center", fontsize=7, color=colour)
        names = [r"$\mu$", *map(plain, chosen[1:])]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=10)
        axes.set_yticks(range(len(names)), names, fontsize=10)
        axes.tick_params(which="both", length=0)
        axes.tick_params(which="minor", bottom=False, top=False, left=False, right=False)
        fig.colorbar(image, ax=axes, fraction=0.046, pad=0.03, label="correlation (numbers: %)")
    return fig


def limit(fitted: FitResult, result: Result) -> Figure:  # noqa: ARG001
    """Draw the upper limit: expected without signal, with its bands, and observed; and µ̂."""
    names = ("minus_2", "minus_1", "", "plus_1", "plus_2")
    values = [fitted.value(f"limit_expected_{name}".rstrip("_")) for name in names]
    low2, low1, median, high1, high2 = (np.nan if value is None else value for value in values)
    observed, mu, (low, high) = fitted.value("limit_observed"), fitted.value("mu") or 0.0, fitted.reach
    with style(STYLE):
        fig = StyledFigure(STYLE, figsize=(7.6, 3.2))
        axes = fig.subplots()
        fig.subplots_adjust(left=0.04, right=0.97, bottom=0.24, top=0.8)
        axes.fill_betweenx((0.5, 1.5), low2, high2, color=_YELLOW, label=r"expected $\pm2\sigma$", linewidth=0)
        axes.fill_betweenx((0.5, 1.5), low1, high1, color=_GREEN, label=r"expected $\pm1\sigma$", linewidth=0)
        axes.plot((median, median), (0.5, 1.5), "k--", label="expected without signal")
        if observed is not None:
            axes.plot((observed, observed), (0.5, 1.5), "k-", linewidth=2, label="observed")
        what = r"$\hat{\mu}$ of the data" if fitted.observed else r"$\hat{\mu}$ expected"
        axes.errorbar([mu], [0.2], xerr=[[mu - low], [high - mu]], fmt="o", color=_BLUE, label=what)
        most = np.nanmax([high2, median, observed or 0.0, high])
        axes.set(xlim=(min(0.0, low), 1.1 * most), ylim=(-0.1, 1.7), yticks=[])
        axes.tick_params(axis="y", which="both", left=False, right=False)
        axes.set_xlabel(r"upper limit on $\mu$, 95 % CL$_s$", fontsize=14)
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, fontsize=10)
    return fig


def mass(fitted: FitResult, result: Result) -> Figure:  # noqa: ARG001
    """Draw −2 ln λ along m_H, with what lies within one and two standard deviations."""
    found = fitted.mass
    if found is None:
        raise ValueError("no mass was fitted")
    best = found.figures["mass"].value
    with style(STYLE):
        fig = StyledFigure(STYLE, figsize=(7.0, 5.2))
        axes = fig.subplots()
        fig.subplots_adjust(left=0.12, right=0.97, bottom=0.14, top=0.96)
        masses, heights = np.array(found.scan.mass), np.array(found.scan.twice_delta_nll)
        highest = min(_HIGHEST, float(heights.max()))
        (curve,) = axes.plot(masses, heights, color=_BLUE, linewidth=2)
        curve.set_clip_path(Rectangle((0.0, 0.0), 1.0, 1.0 / _ROOM, transform=axes.transAxes))
        beside = axes.get_yaxis_transform()
        by_toys = found.figures.get("mass_height")
        usual = ((1.0, r"1$\sigma$"), (4.0, r"2$\sigma$"))
        lines = usual if by_toys is None or by_toys.value is None else ((by_toys.value, "68 %, by toys"),)
        for height, name in lines:
            axes.axhline(height, color="0.5", linewidth=0.8, linestyle="--")
            if height < highest:
                axes.text(0.955, height, name, ha="right", va="bottom", fontsize=12, color="0.4", transform=beside)
        if best is not None:
            up, down = (found.figures[name].value for name in ("mass_up", "mass_down"))
            errors = "" if up is None or down is None else rf"$^{{+{up:.2f}}}_{{-{down:.2f}}}$"
            axes.plot((best, best), (0.0, highest), color="0.3", linewidth=0.8)
            said = rf"$m_{{H}}$ = {best:.2f}{errors} GeV"
            axes.text(0.955, 0.955, said, ha="right", va="top", fontsize=15, transform=axes.transAxes)
        axes.set(xlim=masses[[0, -1]], ylim=(0, _ROOM * highest))
        axes.set_xlabel(r"$m_{H}$ [GeV]")
        axes.set_ylabel(r"$-2\ln\lambda$")
    return fig


def _title(fig: Figure, fitted: FitResult, result: Result) -> None:
    """Say whose picture it is, and what came out."""
    said: Sequence[str] = (
        plain(result.spec.release.title),
        f"{fitted.luminosity:.4g} fb$^{{-1}}$" if fitted.luminosity else "",
        rf"$\hat{{\mu}}$ = {fit_text.strength(fitted)}" if fitted.value("mu") is not None else "",
        "" if fitted.observed else "expected events alone",
    )
    fig.text(0.07, 0.975, ", ".join(text for text in said if text), fontsize=14, va="center")
