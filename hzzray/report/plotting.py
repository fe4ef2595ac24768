"""The figure of a result: stacked simulation, data, their ratio. The command line and the app draw the same.

Importing this loads matplotlib and mplhep: import it where a figure is drawn. No pyplot state is used, so
nothing needs a display and several threads may draw at once (see ``hzzray.report.style``).
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any

import matplotlib as mpl
import mplhep
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import is_color_like
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from matplotlib.ticker import FixedLocator
from mplhep.label import append_text
from numpy.typing import NDArray

from hzzray.errors import UsageError
from hzzray.messages import AnalysisRef
from hzzray.physics.analysis import Template
from hzzray.report.run_tables import counted
from hzzray.report.stack import Contents, contents
from hzzray.report.style import StyledFigure, plain, save_figure, style
from hzzray.runs.result import Result
from hzzray.statistics.significance import poisson_interval

#: The ratio panel's range; what lies above is shown by an arrow.
RATIO_MAX = 2.0

_TEXT_SIZE = 13
_MARGINS = {"left": 0.12, "right": 0.965, "bottom": 0.115, "top": 0.975, "hspace": 0.05}
_GAP = 0.03  # of the panel's height, kept free below text and legend
_REGION_TEX = {"mumu": r"$\mu\mu$", "emu": r"$e\mu$", "tautau": r"$\tau\tau$", "ee": "$ee$"}
_LEPTONS = re.compile(r"(\d?(e|mu|tau))+$")
_NAME_TEX = {
    "ZZ*": r"$ZZ^{*}$",
    "ttbar": r"$t\bar{t}$",
    "mH": r"$m_{H}$",
    "VVV": "$VVV$",
    "V": "$V$",
    "Z": "$Z$",
}
_NAME = re.compile("|".join(rf"(?<![A-Za-z]){re.escape(name)}(?![A-Za-z])" for name in _NAME_TEX))

# The user's matplotlibrc may be set for other work: what would change this figure is put back first.
STYLE: dict[Any, Any] = {
    **{key: mpl.rcParamsDefault[key] for key in ("text.usetex", "savefig.bbox", "savefig.facecolor", "pdf.fonttype")},
    **mplhep.style.ATLAS,
    "axes.formatter.limits": (-4, 6),
    "axes.labelpad": 6,
    "axes.labelsize": 18,
    "hatch.linewidth": 0.6,
}


def figure(
    result: Result,
    *,
    channel: str | None = None,
    log: bool = False,
    systematic: NDArray[np.float64] | None = None,
) -> Figure:
    """Draw a result: the stack by group with its statistical uncertainty, the data, and below their ratio.

    Data have central 68.27 % Poisson intervals (Garwood). Bins without data events show no point, as is usual
    at ATLAS. The band is √Σw² of the simulation. The window that the significance is counted in is shaded.

    Parameters
    ----------
    result
        A run's numbers, finished or not.
    channel
        Draw this region of the analysis (``4e``, ``4mu``, ``2e2mu``); all together by default.
    log
        Draw events on a logarithmic scale.
    systematic
        The simulation's systematic uncertainty, events in each bin, shape (bins,): in quadrature in the band.

    Returns
    -------
    Figure
        It belongs to no window and to no pyplot state; drop it when done.

    Raises
    ------
    UsageError
        If the result has no such channel, or a group's colour is none.
    """
    content = replace(contents(result, channel), systematic=systematic)
    for layer in content.simulation:
        if not is_color_like(layer.colour):
            raise UsageError(f"group {layer.name}: {layer.colour!r} is not a colour")
    with style(STYLE):
        fig = StyledFigure(STYLE, figsize=(8.0, 7.2))
        main, ratio = fig.subplots(2, 1, sharex=True, height_ratios=(3.2, 1))
        fig.subplots_adjust(**_MARGINS)
        window = result.significance.window if result.is_first else None
        if window is not None:
            for axes in (main, ratio):
                axes.axvspan(*window, color="0.94", linewidth=0, zorder=0)
        template = result.observable
        handles = _draw_events(main, content, template.unit)
        _draw_ratio(ratio, content)
        ratio.set_xlabel(axis_label(template))
        _make_room(fig, ratio)
        legend = main.legend(handles=handles, loc="upper right", fontsize=_TEXT_SIZE, borderaxespad=0.2)
        _set_range(main, content, [*_write_labels(main, result, channel), legend], log=log)
        fig.align_ylabels()
    return fig


def save(
    result: Result,
    folder: Path,
    *,
    channel: str | None = None,
    log: bool = False,
    systematic: NDArray[np.float64] | None = None,
) -> tuple[Path, ...]:
    """Write ``plot.png`` (150 dpi) and ``plot.pdf``, each whole or not at all; equal results give equal bytes.

    Another observable than the first, a channel alone, or a logarithmic scale has a file of its own:
    ``plot-m12-4e-log.png``. Raises OutputError where the
    folder can't be written to.
    """
    fig = figure(result, channel=channel, log=log, systematic=systematic)
    other = [] if result.is_first else [result.observable.observable]
    name = "-".join(["plot", *other, *([channel] if channel else []), *(["log"] if log else [])])
    return save_figure(fig, folder / name, result.run_id)


def _make_room(fig: Figure, lowest: Axes) -> None:
    """Raise the bottom margin where a label, one with fractions say, is taller than that."""
    box = lowest.get_tightbbox()
    if box is not None and box.y0 < 0:
        fig.subplots_adjust(bottom=_MARGINS["bottom"] + 0.01 - box.y0 / fig.bbox.height)


def _draw_events(axes: Axes, content: Contents, unit: str) -> list[Artist | ErrorbarContainer]:
    """Draw stack, band and points; return what the legend lists, from its top down."""
    handles: list[Artist | ErrorbarContainer] = []
    below = np.zeros_like(content.total)
    for layer in content.simulation:
        top = below + layer.sumw
        step = axes.stairs(top, content.edges, baseline=below, fill=True, label=tex(layer.name))
        step.set(facecolor=layer.colour, edgecolor="black", linewidth=0.8)
        handles.insert(0, step)
        below = top
    if content.simulation:
        handles.append(_draw_band(axes, content))
    if content.data is not None:
        handles.insert(0, _draw_points(axes, content, np.ones_like(content.data)))
    axes.set_ylabel(f"Events / {content.width:g} {unit}".rstrip())
    return handles


def _draw_ratio(axes: Axes, content: Contents) -> None:
    predicted = content.total > 0
    unit = np.where(predicted, content.total, np.nan)
    _draw_band(axes, content, unit)
    axes.axhline(1.0, color="black", linewidth=0.8, zorder=1.5)
    if content.data is not None and content.divisible:
        _draw_points(axes, content, unit, most=RATIO_MAX)
        above = content.data / unit > RATIO_MAX
        axes.plot(content.centres[above], np.full(above.sum(), 0.95 * RATIO_MAX), "k^", markersize=5)
    axes.set(xlim=content.edges[[0, -1]], ylim=(0.0, RATIO_MAX))
    axes.yaxis.set_major_locator(FixedLocator([0.5, 1.0, 1.5]))
    axes.set_ylabel("Data / Pred.", loc="center", fontsize=15)


def _draw_band(axes: Axes, content: Contents, unit: NDArray[np.float64] | float = 1.0) -> StepPatch:
    middle, error = content.total / unit, content.error / unit
    label = "Stat. uncertainty" if content.systematic is None else r"Stat. $\oplus$ syst."
    band = axes.stairs(middle + error, content.edges, baseline=middle - error, fill=True, label=label)
    band.set(facecolor="none", edgecolor="0.25", linewidth=0, hatch="//////", zorder=2)
    return band


def _draw_points(axes: Axes, content: Contents, unit: NDArray[np.float64], most: float = math.inf) -> ErrorbarContainer:
    """Draw the data in units of ``unit``, shape (bins,). No event or a unit of nan: no point; above ``most`` no dot."""
    data = content.data if content.data is not None else np.zeros_like(unit)
    shown = (data > 0) & np.isfinite(unit)
    counts, unit = data[shown], unit[shown]
    low, high = poisson_interval(counts)
    bars = np.stack((counts - low, high - counts)) / unit
    points = axes.errorbar(
        content.centres[shown],
        counts / unit,
        bars,
        fmt="ko",
        markersize=5,
        elinewidth=1.2,
        capsize=0,
        label="Data",
    )
    if points.lines[0] is not None:
        points.lines[0].set_markevery(np.flatnonzero(counts / unit <= most).tolist())
    return points


def _write_labels(axes: Axes, result: Result, channel: str | None) -> list[Artist]:
    """Write what the figure shows, from the upper left corner down."""
    release, found = result.spec.release, result.significance
    experiment, _, title = plain(release.title).partition(" ")
    labels = mplhep.atlas.label(
        exp=experiment,
        text=title,
        data=True,
        rlabel=rf"$\sqrt{{s}}$ = {plain(release.sqrt_s)}, {result.luminosity.simulation:.4g} fb$^{{-1}}$",
        loc=4,
        fontsize=(18, 17, _TEXT_SIZE, _TEXT_SIZE),
        fontstyle=("italic", "normal", "normal", "normal"),
        math_fontfamily="stixsans",  # the style's own font has no root sign
        ax=axes,
    )
    texts = [text for text in labels if text is not None]
    lines = [f"{_title(result.spec.analysis, channel)}, {plain(result.spec.selection.name)}"]
    if channel is None and result.is_first and found.window is not None and found.asimov is not None:
        low, high = found.window
        unit = f" {result.observable.unit}".rstrip()
        lines.append(rf"{low:g}–{high:g}{unit}: {found.asimov:.1f}$\sigma$ expected")
        if found.observed is not None:
            lines.append(rf"{found.observed:.1f}$\sigma$ observed")
        both = (found.asimov_sigma, found.observed_sigma)
        if with_error := ", ".join(rf"{one:.1f}$\sigma$" for one in both if one is not None):
            lines.append(f"{with_error} with the error of $b$")
    for line in lines + _state(result):
        texts.append(append_text(line, texts[-1], loc="below", pad=1.2, fontsize=_TEXT_SIZE, ax=axes))
    return texts


def axis_label(template: Template) -> str:
    """Write what an axis shows, with its unit; LaTeX between dollars."""
    label = template.label or plain(template.observable)
    return f"{label} [{template.unit}]" if template.unit else label


def region_label(region: str) -> str:
    """Write a region's leptons in TeX, where they are known."""
    return (
        _REGION_TEX.get(region) or f"${plain(region)}$".replace("mu", r"\mu ")
        if _LEPTONS.match(region)
        else plain(region)
    )


def _title(analysis: AnalysisRef, region: str | None) -> str:
    """Write what an analysis is of; of one region alone, that in place of all final states, or after it."""
    title = analysis.title or plain(analysis.name)
    if region is None:
        return title
    if r"4\ell" in title:
        return title.replace(r"4\ell", plain(region).replace("mu", r"\mu "))
    return f"{title}, {_REGION_TEX.get(region, plain(region))}"


def _state(result: Result) -> list[str]:
    """Say what the figure lacks, and what it stands for; nothing for a complete run over everything."""
    lines = []
    luminosity, fraction = result.luminosity, result.spec.fraction
    if luminosity.data is not None and not luminosity.compared:
        lines.append(rf"not shown: data ({luminosity.data:.4g} fb$^{{-1}}$)")
    elif luminosity.compared and luminosity.simulation < luminosity.asked:
        lines.append(rf"the data read of {luminosity.asked:.4g} fb$^{{-1}}$, simulation scaled")
    if fraction < 1 and result.status != "running":
        lines.append(f"{100 * fraction:.3g}% of each file: {_percent(result.fraction)} of the events read")
    elif result.fraction < 1:
        # Rounded down: 100% is said of nothing less.
        percent = math.floor(100 * result.fraction + 1e-9)
        lines.append(f"{percent or '<1'}% of the events read")
    unread = [
        name for name in ("n_background", "n_signal") if not result.is_whole and name in result.significance.unread
    ]
    lines += dict.fromkeys(plain(shorten(result.significance.withheld[name], 50, placeholder="…")) for name in unread)
    lacking = [
        f"{counted(number, what)} {verb}"
        for number, what, verb in (
            (result.tasks.failed, "task", "failed"),
            (len(result.missing), "sample", "missing"),
        )
        if number
    ]
    if result.status == "partial":
        lines.append(f"partial: {', '.join(lacking)}" if lacking else "partial")
    return lines


def _percent(share: float) -> str:
    """Write a share with three digits; 100% is said of nothing less."""
    return f"{min(100 * share, 99.9):.3g}%" if share < 1 else "100%"


def _set_range(axes: Axes, content: Contents, boxes: list[Artist], *, log: bool) -> None:
    """Set the range of the event axis so that every bin ends below the text and the legend over it."""
    edges, highest = content.edges, content.highest
    if log:
        seen = highest[highest > 0]
        bottom = float(np.clip(seen.min(initial=1.0) / 2, 1e-4 * seen.max(initial=1.0), 0.5))
    else:
        layers = np.cumsum([layer.sumw for layer in content.simulation], axis=0)
        bottom = 1.1 * float(np.min(layers, initial=0.0))
    # Before the scale: else matplotlib looks for a range that suits a logarithm, and warns if there is none.
    axes.set_ylim(bottom, bottom + 1.0)
    axes.set_yscale("log" if log else "linear")
    to_axis, from_axis = axes.yaxis.get_transform(), axes.yaxis.get_transform().inverted()
    low = to_axis.transform(bottom)
    levels = to_axis.transform(np.maximum(highest, bottom)) - low
    needed = 1.08 * levels.max() or 1.0
    for box in boxes:
        extent = box.get_window_extent().transformed(axes.transAxes.inverted())
        left, right = edges[0] + (edges[-1] - edges[0]) * np.array([extent.x0, extent.x1])
        under = levels[(edges[1:] > left) & (edges[:-1] < right)]
        needed = max(needed, under.max(initial=0.0) / (extent.y0 - _GAP))
    axes.set_ylim(bottom, float(from_axis.transform(low + needed)))


def tex(name: str) -> str:
    """Write the particles of a group's name (``ZZ*``, ``ttbar``, ``mH``) in TeX."""
    return _NAME.sub(lambda match: _NAME_TEX[match[0]], plain(name).replace(",", ", "))
