"""Figures of runs over time: CPU of each actor, actors, nodes and queue. See ``hzzray.runs.compare`` for the numbers.

Importing this loads matplotlib: import it where a figure is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import library as styles
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from hzzray.engine.monitor import is_actor
from hzzray.report.style import StyledFigure, plain, save_figure, style
from hzzray.runs.compare import LoadedRun
from hzzray.runs.tables import CpuUse, cpu_percent

#: Actors that have a colour and a place in the legend of their own; with more, only their sum is drawn.
NAMED_ACTORS = 10

# matplotlib's own defaults, whatever the user's matplotlibrc says, in colours that all eyes tell apart
# (M. A. Petroff, arXiv:2107.02270).
_STYLE: dict[Any, Any] = {
    **{key: value for key, value in mpl.rcParamsDefault.items() if not key.startswith("backend")},
    **styles["petroff10"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "pdf.fonttype": 42,
}
_WIDTH = 8.0


def comparison_figure(runs: Sequence[LoadedRun]) -> Figure:
    """Draw CPU over time of each run's actors, stacked, one panel a run; below, all runs' actors and nodes.

    All panels have one time axis, those of CPU one scale. An actor's height is per cent of one core.
    """
    with style(_STYLE):
        fig = StyledFigure(_STYLE, figsize=(_WIDTH, 2.2 * len(runs) + 2.4))
        panels = list(fig.subplots(len(runs) + 1, 1, sharex=True, squeeze=False)[:, 0])
        for axes, run in zip(panels, runs, strict=False):
            _draw_cpu(axes, run)
            axes.sharey(panels[0])
        _draw_scales(panels[-1], runs)
        panels[0].set_ylim(bottom=0)
        _time_axis(panels[-1], runs)
        fig.align_ylabels()
    return fig


def scale_figure(run: LoadedRun) -> Figure:
    """Draw a run's actors and nodes over time and, below, its tasks that wait or are in flight."""
    with style(_STYLE):
        fig = StyledFigure(_STYLE, figsize=(_WIDTH, 5.0))
        fig.suptitle(plain(run.label), fontsize="large")
        scale, queue = fig.subplots(2, 1, sharex=True)
        for axes, rows in (
            (scale, {"actors": "actors", "pending": "pending actors", "nodes": "nodes"}),
            (queue, {"waiting": "waiting", "in_flight": "in flight"}),
        ):
            for field, label in rows.items():
                _draw_steps(axes, run, field, label=label)
            _count_axis(axes)
        scale.set_ylabel("Actors, nodes")
        queue.set_ylabel("Tasks")
        _time_axis(queue, [run])
        fig.align_ylabels()
    return fig


def save_comparison(runs: Sequence[LoadedRun], folder: Path) -> tuple[Path, ...]:
    """Write ``compare.png`` and ``compare.pdf``; raises OutputError where they can't be written."""
    title = ", ".join(run.result.run_id for run in runs)
    return save_figure(comparison_figure(runs), folder / "compare", title)


def save_scale(run: LoadedRun, folder: Path) -> tuple[Path, ...]:
    """Write ``scale.png`` and ``scale.pdf``; raises OutputError where they can't be written."""
    return save_figure(scale_figure(run), folder / "scale", run.result.run_id)


def _draw_cpu(axes: Axes, run: LoadedRun) -> None:
    axes.set_title(plain(run.label), loc="left", fontsize="medium")
    axes.set_ylabel("CPU [% of one core]")
    uses = {actor: use for actor, use in cpu_percent(run.usage).items() if is_actor(actor)}
    if not uses:
        axes.text(0.5, 0.5, "no CPU recorded", transform=axes.transAxes, ha="center", va="center", color="0.4")
        return
    edges, heights = stacked(list(uses.values()))
    names = sorted(uses, key=lambda name: (len(name), name))  # worker-10 after worker-9
    order = [list(uses).index(name) for name in names]
    colours = [f"C{i}" for i in range(len(names))]
    if len(names) > NAMED_ACTORS:
        names, heights, colours = [f"{len(names)} actors"], heights.sum(axis=0, keepdims=True), ["0.6"]
    else:
        heights = heights[order]
    below = np.zeros(len(edges) - 1)
    for name, height, colour in zip(names, heights, colours, strict=True):
        axes.stairs(below + height, edges, baseline=below, fill=True, color=colour, label=plain(name))
        below = below + height
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=True, fontsize="small")


def stacked(uses: Sequence[CpuUse]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bring step functions onto the union of their edges, shape (n + 1,): heights of shape (uses, n), 0 outside."""
    edges = np.unique(np.concatenate([use.edges for use in uses]))
    middles = (edges[1:] + edges[:-1]) / 2
    return edges, np.array([np.pad(use.percent, 1)[np.searchsorted(use.edges, middles)] for use in uses])


def _draw_scales(axes: Axes, runs: Sequence[LoadedRun]) -> None:
    widths = np.linspace(4.0, 1.5, len(runs)) if len(runs) > 1 else [1.5]  # where lines meet, all are seen
    for i, (run, width) in enumerate(zip(runs, widths, strict=True)):
        name, how = run.result.run_id, {"color": f"C{i}", "linewidth": width}
        _draw_steps(axes, run, "actors", label=f"actors, {name}", **how)
        _draw_steps(axes, run, "nodes", label=f"nodes, {name}", linestyle="--", **how)
    axes.set_ylabel("Actors, nodes")
    axes.set_title("Actors and nodes", loc="left", fontsize="medium")
    _count_axis(axes)


def _draw_steps(axes: Axes, run: LoadedRun, field: str, *, label: str, **how: Any) -> None:  # noqa: ANN401 (matplotlib's)
    """Draw a number over time: each sample holds until the next, the last until the run's end."""
    if not len(run.scale):
        return
    times, values = run.scale["time_s"], run.scale[field]
    end = max(run.result.cost.wall_s, times[-1])
    axes.step(np.append(times, end), np.append(values, values[-1]), where="post", label=plain(label), **how)


def _count_axis(axes: Axes) -> None:
    axes.set_ylim(-0.03 * axes.get_ylim()[1])  # a line at 0 is seen whole
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if axes.lines:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small")
    else:
        axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", va="center", color="0.4")


def _time_axis(axes: Axes, runs: Sequence[LoadedRun]) -> None:
    ends = [
        max(run.result.cost.wall_s, *(rows["time_s"].max(initial=0.0) for rows in (run.usage, run.scale)))
        for run in runs
    ]
    axes.set_xlim(0, max(ends) or 1.0)
    axes.set_xlabel("Time since the run's start [s]")
