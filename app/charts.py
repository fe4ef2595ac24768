"""What the charts draw: tables and Vega-Lite specifications, from runs. No Streamlit here.

A chart whose specification stays the same is given new numbers in place: nothing flickers, and the reader's zoom stays.
So what changes from second to second is in the table, and what the reader chooses in the specification.

``currentColor`` is the page's text colour, in whichever theme.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from app import formatting
from hzzray.engine.monitor import is_actor
from hzzray.physics.analysis import Template
from hzzray.report.stack import Contents, Layer, contents
from hzzray.runs.compare import LoadedRun, RunSummary
from hzzray.runs.result import Result, moment
from hzzray.runs.tables import CpuUse, Rows, cpu_percent
from hzzray.statistics.fit_result import FitPoint
from hzzray.statistics.significance import poisson_interval

Spec = dict[str, Any]

#: Colours that all eyes tell apart (M. A. Petroff, arXiv:2107.02270), those of ``hzzray.report.timelines``: six of them
#: as much darker or lighter as it takes to be seen on both themes (WCAG 2.2: 3 to 1).
COLOURS = (
    "#3f90da", "#c67f00", "#ce2201", "#7f9290", "#983bcf", "#a96b59", "#e76300", "#9c8e4c", "#717581", "#329ca1",
)  # fmt: skip

#: Names of the groups in the mass plot's legend that aren't the catalogue's.
BAND, DATA = "Stat. uncertainty", "Data"

#: The parameter by which a reader moves and stretches the mass axis.
ZOOM = "zoom"

#: The significances that are shown, by their fields.
SIGNIFICANCES = {
    "notebook": "notebook (s+b)/√(b+0.3b²)",
    "s_over_sqrt_b": "s/√b",
    "asimov": "Asimov",
    "asimov_sigma": "Asimov with σ_b",
}

_INK = "currentColor"
_FROM_0 = {"unionWith": [0, 1]}  # an axis from 0 that has a length even where there is nothing yet
_PAD = 8  # pixels beyond what is drawn, so that no point is cut in two
_TICKS = "width < 480 ? 5 : 10"  # along an axis
_GREY = "#8a93a3"
_RATIO_MAX = 2.0
_UPPER, _LOWER = 0.76, 0.81  # where the panels of the mass plot end and begin, as parts of its height
_WIDEST = 4.0  # errors of a fit that are drawn beside the last one's, as parts of that
_STEPS = 240  # along a time axis, at the most


@dataclass(frozen=True, eq=False)
class Chart:
    """A table and the Vega-Lite specification that draws it."""

    rows: pd.DataFrame
    spec: Spec

    @cached_property
    def table(self) -> pa.Table:
        """The rows as they are sent: made once for all viewers."""
        return pa.Table.from_pandas(self.rows)


# The mass spectrum.


def mass(
    result: Result,
    *,
    channel: str | None = None,
    hidden: Sequence[str] = (),
    log: bool = False,
    span: tuple[float, float] | None = None,
    scaled: bool = True,
) -> Chart:
    """Draw the stack with its statistical uncertainty, the data, and below their ratio, where there can be one.

    ``hidden`` groups are left out, of the sum too; not ``scaled`` to the data that were read, simulation is that of the
    luminosity asked for, and there is no ratio. ``span`` is what is shown of the axis. Hovering tells a bin's
    contents. Dragging moves the axis, the wheel with Ctrl (or two fingers) stretches it, a double click puts it back.
    """
    whole = contents(result, channel, scaled=scaled)
    shown = replace(
        whole,
        simulation=[layer for layer in whole.simulation if layer.name not in hidden],
        data=None if DATA in hidden else whole.data,
    )
    low, high = span or (float(whole.edges[0]), float(whole.edges[-1]))
    inside = (whole.edges[1:] > low) & (whole.edges[:-1] < high)
    floor = _floor(shown.highest[inside]) if log else 0.0
    ends = np.empty((2, 0)) if shown.data is None else poisson_interval(shown.data)  # what takes longest of all
    tables = [
        _window(result),
        *_stack(shown, floor),
        _band(shown, floor),
        _points(shown, floor, ends),
        _ratio_band(shown),
        _ratio(shown, ends),
        _hover(shown, result.observable.unit, ends),
    ]
    return Chart(_together(tables, low, high), _mass_spec(whole, result.observable, (low, high), log=log, floor=floor))


def _floor(highest: NDArray[np.float64]) -> float:
    """Where a logarithmic axis begins: a power of ten, so that it seldom changes."""
    seen = highest[highest > 0]
    least = float(np.clip(seen.min(initial=1.0) / 2, 1e-4 * seen.max(initial=1.0), 0.5))
    return float(10.0 ** math.floor(math.log10(least)))


_Columns = dict[str, NDArray[Any]]


def _table(kind: str, content: Contents, where: Any = slice(None), **columns: Any) -> _Columns:  # noqa: ANN401
    """Make columns of a row a bin, of the bins ``where`` something is so: of arrays, texts, or one text for all."""
    made = {"kind": kind, "lo": content.edges[:-1], "hi": content.edges[1:], **columns}
    bins = len(content.edges) - 1
    return {
        name: (np.full(bins, one, object) if isinstance(one, str) else np.asarray(one, _kind_of(one)))[where]
        for name, one in made.items()
    }


def _kind_of(column: Any) -> type:  # noqa: ANN401 (an array or texts)
    return object if isinstance(column, list) else float


def _together(tables: Iterable[_Columns], low: float, high: float) -> pd.DataFrame:
    """Lay tables one below the other, those rows that lie in a span: many small frames would take far longer."""
    some = [table for table in tables if table]
    texts = {name: column.dtype == object for table in some for name, column in table.items()}
    columns = {
        name: np.concatenate(
            [table[name] if name in table else np.full(len(table["lo"]), None if is_text else np.nan) for table in some]
        )
        for name, is_text in texts.items()
    }
    shown = (columns["hi"] > low) & (columns["lo"] < high)
    return pd.DataFrame({name: column[shown] for name, column in columns.items()})


def _window(result: Result) -> _Columns:
    if result.significance.window is None or not result.is_first:
        return {}
    low, high = result.significance.window
    return {"kind": np.array(["window"], object), "lo": np.array([low]), "hi": np.array([high])}


def _stack(content: Contents, floor: float) -> list[_Columns]:
    below = np.zeros(len(content.edges) - 1)
    tables = []
    for layer in content.simulation:
        top = below + layer.sumw
        low, high = np.maximum(below, floor), np.maximum(top, floor)  # few events of negative weights are below 0
        tables.append(_table("stack", content, group=layer.name, y0=low, y1=high))
        below = top
    return tables


def _band(content: Contents, floor: float) -> _Columns:
    low, high = content.total - content.error, content.total + content.error
    if not content.simulation:
        return {}
    return _table("band", content, group=BAND, y0=np.maximum(low, floor), y1=np.maximum(high, floor))


def _points(content: Contents, floor: float, ends: NDArray[np.float64]) -> _Columns:
    if content.data is None:
        return {}
    low, high = ends
    y0 = np.maximum(low, floor)
    some = content.data > 0
    return _table("data", content, some, group=DATA, middle=content.centres, y=content.data, y0=y0, y1=high)


def _ratio_band(content: Contents) -> _Columns:
    if not content.simulation:
        return {}
    some = content.total > 0
    error = content.error / np.where(some, content.total, np.nan)
    some &= np.isfinite(error)
    return _table("ratio band", content, some, y0=np.clip(1 - error, 0, 1), y1=np.clip(1 + error, 1, _RATIO_MAX))


def _ratio(content: Contents, ends: NDArray[np.float64]) -> _Columns:
    if content.data is None or not content.simulation or not content.divisible:
        return {}
    some = (content.total > 0) & (content.data > 0)
    unit = np.where(some, content.total, np.nan)
    low, high = np.minimum(ends / unit, _RATIO_MAX)
    y = content.data / unit
    above = y > _RATIO_MAX  # there an arrow is, as in hzzray.report.plotting
    heights = {"y": np.where(above, np.nan, y), "up": np.where(above, 0.95 * _RATIO_MAX, np.nan)}
    return _table("ratio", content, some, middle=content.centres, y0=low, y1=high, **heights)


def _hover(content: Contents, unit: str, ends: NDArray[np.float64]) -> _Columns:
    """Tell each bin's contents in words."""
    told: dict[str, list[str]] = {
        "range": [
            f"{low:g}–{high:g} {unit}".rstrip() for low, high in zip(content.edges, content.edges[1:], strict=False)
        ]
    }
    for layer in content.simulation:
        told[layer.name] = _with_error(layer)
    told["simulation"] = [
        f"{total:.3g} ± {error:.2g}" for total, error in zip(content.total, content.error, strict=True)
    ]
    if content.data is not None:
        low, high = ends
        told["data"] = [
            f"{n:.0f} (+{up - n:.1f} −{n - down:.1f})"
            for n, down, up in zip(content.data, low, high, strict=True)
        ]  # fmt: skip
    return _table("bin", content, **{f"w{i}": text for i, text in enumerate(told.values())})


def _with_error(layer: Layer) -> list[str]:
    return [f"{w:.3g} ± {error:.2g}" for w, error in zip(layer.sumw, np.sqrt(layer.sumw2), strict=True)]


def _of(kind: str) -> list[Spec]:
    return [{"filter": f"datum.kind === '{kind}'"}]


def _bar(kind: str, mark: Spec, **encoding: Spec | list[Spec]) -> Spec:
    """Draw rectangles that cover bins."""
    across = {"x": {"field": "lo", "type": "quantitative"}, "x2": {"field": "hi"}}
    return {"transform": _of(kind), "mark": {"type": "rect", "clip": True, **mark}, "encoding": {**across, **encoding}}


def _point(kind: str, mark: Spec, **encoding: Spec) -> Spec:
    """Draw something at the middle of bins."""
    across = {"x": {"field": "middle", "type": "quantitative"}}
    there = {"filter": f"isValid(datum.{encoding['y']['field']})"}
    return {"transform": [*_of(kind), there], "mark": {"clip": True, **mark}, "encoding": {**across, **encoding}}


def _y(field: str = "y0", **more: Any) -> Spec:  # noqa: ANN401 (whatever Vega-Lite knows)
    return {"field": field, "type": "quantitative", **more}


_Y2 = {"field": "y1"}
_ARROW = {"size": 60, "opacity": 1, "color": _INK}


def _mass_spec(content: Contents, template: Template, span: tuple[float, float], *, log: bool, floor: float) -> Spec:
    """Lay out both panels as one view, each with its own part of the height: so they share the axis and the zoom."""
    names = [layer.name for layer in reversed(content.simulation)]
    colours = [layer.colour for layer in reversed(content.simulation)]
    colour = {
        "field": "group",
        "type": "nominal",
        "title": None,
        "scale": {"domain": [DATA, *names, BAND], "range": [_INK, *colours, _GREY]},
        "legend": {"orient": "top", "columns": {"expr": "width < 480 ? 2 : width < 720 ? 3 : 5"}, "labelLimit": 220},
    }
    kind = {"type": "log", "domainMin": floor, "nice": False} if log else {"type": "linear", "domain": _FROM_0}
    events = _y(
        title=f"Events / {content.width:g} {formatting.short(template.unit, 20)}".rstrip(),
        scale={**kind, "range": [{"expr": f"{_UPPER} * height"}, 0], "clamp": True},
        axis={"orient": "left", "tickCount": 6, "titleY": {"expr": f"{_UPPER} * height / 2"}},
    )
    ratio = _y(
        title="Data / Pred.",
        scale={"domain": [0, _RATIO_MAX], "range": [{"expr": "height"}, {"expr": f"{_LOWER} * height"}], "clamp": True},
        axis={"orient": "left", "values": [0.5, 1, 1.5], "titleY": {"expr": f"{(1 + _LOWER) / 2} * height"}},
    )
    # A tooltip takes the titles "title" and "image" for more than names: so none is one.
    tips = [
        (formatting.label(template.label) or formatting.short(template.observable), 0),
        *((f"{layer.name} ", i) for i, layer in enumerate(content.simulation, 1)),
    ]
    tips += [("Simulation", len(tips)), (DATA, len(tips) + 1)]
    reach = {
        key: kind[key] for key in ("domain", "domainMin") if key in kind
    }  # of all that is drawn, not of the stack alone
    upper = [
        _bar("window", {"color": _INK, "opacity": 0.07}, y={"value": 0}, y2={"value": {"expr": f"{_UPPER} * height"}}),
        _bar("stack", {"stroke": _INK, "strokeWidth": 0.5, "strokeOpacity": 0.6}, y=events, y2=_Y2, color=colour),
        _bar("band", {"opacity": 0.45}, y=_y(scale=reach), y2=_Y2, color=colour),
        _point("data", {"type": "rule", "strokeWidth": 1.6}, y=_y(scale=reach), y2=_Y2, color=colour),
        _point("data", {"type": "circle", "size": 44, "opacity": 1}, y=_y("y", scale=reach), color=colour),
    ]
    lower = [
        _bar("ratio band", {"opacity": 0.4, "color": _GREY}, y=ratio, y2=_Y2),
        {"transform": _of("window"), "mark": {"type": "rule", "color": _INK}, "encoding": {"y": {"datum": 1}}},
        _point("ratio", {"type": "rule", "strokeWidth": 1.6, "color": _INK}, y=_y(), y2=_Y2),
        _point("ratio", {"type": "circle", "size": 44, "opacity": 1, "color": _INK}, y=_y("y")),
        _point("ratio", {"type": "point", "shape": "triangle-up", "filled": True, **_ARROW}, y=_y("up")),
    ]
    hover = _bar(
        "bin",
        {"opacity": 0},
        y={"value": 0},
        y2={"value": {"expr": "height"}},
        tooltip=[{"field": f"w{i}", "title": title} for title, i in tips],
    )
    hover["name"] = "hover"
    zoom = {
        "name": ZOOM,
        "select": {
            "type": "interval",
            "encodings": ["x"],
            "translate": "[mousedown, window:mouseup] > window:mousemove!",
            "zoom": "wheel![event.ctrlKey]",
        },
        "bind": "scales",
        "views": ["hover"],
    }
    hover["encoding"]["x"] |= {
        "title": formatting.axis(template.observable, template.label, template.unit),
        "scale": {"domain": list(span), "nice": False, "zero": False},
        "axis": {"tickCount": 9},
    }
    return {
        "height": 520,
        "layer": [{"layer": upper}, {"layer": lower}, hover],
        "params": [zoom],
        "resolve": {"scale": {"y": "independent"}},
        "config": {"axis": {"gridOpacity": 0.35}, "view": {"stroke": None}},
    }


# Over time.


def history(rows: Rows, result: Result, shown: dict[str, str] = SIGNIFICANCES) -> Chart:
    """Draw how significances grew with the time that the run took, up to the result, which may be newer.

    ``shown`` are fields of ``Moment`` and what they are called.
    """
    now = moment(result)
    if not len(rows):
        times = np.array([result.cost.wall_s])
    elif rows["events"][-1] != now.events:
        times = np.append(rows["time_s"], rows["time_s"][-1] + 1)
    else:
        times = rows["time_s"]
    newer = range(len(times) - len(rows))
    found = [
        pd.DataFrame(
            {
                "t": times,
                "z": np.append(rows[field], [getattr(now, field) for _ in newer]),
                "share": np.append(rows["share"], [now.share for _ in newer]),
                "which": title,
            }
        )
        for field, title in shown.items()
    ]
    table = pd.concat(found, ignore_index=True).dropna()
    return Chart(
        table,
        {
            "height": 300,
            "mark": {"type": "line", "interpolate": "monotone", "strokeWidth": 2, "point": {"size": 14}},
            "encoding": {
                "x": _time(),
                "y": _y("z", title="significance [σ]", scale={"domain": _FROM_0, "padding": _PAD}),
                "color": _series("which", list(shown.values())),
                "tooltip": [
                    {"field": "which", "title": "definition"},
                    {"field": "z", "title": "σ", "format": ".2f"},
                    {"field": "share", "title": "events read", "format": ".0%"},
                    {"field": "t", "title": "after [s]", "format": ".1f"},
                ],
            },
        },
    )


def strength(points: Sequence[FitPoint]) -> Chart:
    """Draw how the signal's strength came about, with its error, as events were read; 1 is what is simulated.

    Points with errors beside which the last one's couldn't be seen are left out.
    """
    last = points[-1]
    shown = [point for point in points if point.high - point.low <= _WIDEST * (last.high - last.low)]
    table = pd.DataFrame(
        {
            "share": [point.fraction for point in shown],
            "mu": [point.mu for point in shown],
            "low": [point.low for point in shown],
            "high": [point.high for point in shown],
            "told": [f"{point.mu:.2f} ({point.low:.2f} to {point.high:.2f})" for point in shown],
            "z": [formatting.sigma(point.z_observed) for point in shown],
            "expected": [formatting.sigma(point.z_expected) for point in shown],
        }
    )
    x = _y("share", title="events read", scale={"domain": [0, 1], "padding": _PAD}, axis={"format": "%"})
    y = {"title": "signal strength µ̂", "scale": {"domain": _FROM_0, "padding": _PAD}}
    tooltip = [
        {"field": "share", "title": "events read", "format": ".0%"},
        {"field": "told", "title": "µ̂"},
        {"field": "z", "title": "significance"},
        {"field": "expected", "title": "expected"},
    ]
    blue = COLOURS[0]
    return Chart(
        table,
        {
            "height": 280,
            "layer": [
                {"mark": {"type": "rule", "strokeDash": [4, 4], "color": _GREY}, "encoding": {"y": {"datum": 1}}},
                {
                    "mark": {"type": "rule", "color": blue},
                    "encoding": {"x": x, "y": _y("low", **y), "y2": {"field": "high"}},
                },
                {
                    "mark": {"type": "line", "color": blue, "strokeWidth": 2, "point": {"size": 30, "color": blue}},
                    "encoding": {"x": x, "y": _y("mu", **y), "tooltip": tooltip},
                },
            ],
        },
    )


def _series(field: str, names: Sequence[str], *, columns: int = 2) -> Spec:
    return {
        "field": field,
        "type": "nominal",
        "title": None,
        "scale": {"domain": list(names), "range": list(COLOURS[: len(names)])},
        "legend": {"orient": "top", "columns": columns, "labelLimit": 260},
    }


def _time() -> Spec:
    """Lay out an axis of time, from the run's start on as all that is told of a run's time."""
    scale = {"nice": False, "domain": _FROM_0, "padding": _PAD}
    return _y("t", title="time since the run's start [s]", scale=scale, axis={"tickCount": {"expr": _TICKS}})


def _grid(end: float) -> NDArray[np.float64]:
    """Lay at most ``_STEPS`` steps of a second or more over a run."""
    return np.linspace(0.0, max(end, 1.0), min(_STEPS, max(2, math.ceil(end))) + 1)


def binned(use: CpuUse, grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average an actor's CPU use over the bins of a grid of seconds, shape (n + 1,): per cent, shape (n,)."""
    used = np.concatenate([[0.0], np.cumsum(use.percent * np.diff(use.edges))])
    averages: NDArray[np.float64] = np.diff(np.interp(grid, use.edges, used)) / np.diff(grid)
    return averages


def in_order(names: Iterable[str]) -> list[str]:
    """Sort names so that worker-10 comes after worker-9."""
    parts = {name: re.split(r"(\d+)", name) for name in names}
    return sorted(parts, key=lambda name: [int(part) if part.isdecimal() else part for part in parts[name]])


def cpu(uses: dict[str, CpuUse]) -> Chart:
    """Draw CPU over time, stacked by actor; more than ten are one."""
    names = in_order(filter(is_actor, uses))
    grid = _grid(max((uses[name].edges[-1] for name in names), default=0.0))
    heights = {name: binned(uses[name], grid) for name in names}
    if len(names) > len(COLOURS):
        heights = {f"{len(names)} actors": np.sum(list(heights.values()), axis=0)}
    below = np.zeros(len(grid) - 1)
    tables = []
    for name, height in heights.items():
        steps = {"t": grid[:-1], "t1": grid[1:], "y0": below, "y1": below + height}
        tables.append(pd.DataFrame({"actor": name, "percent": height, **steps}))
        below = below + height
    across = {"x": _time(), "x2": {"field": "t1"}}
    return Chart(
        pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(),
        {
            "height": 320,
            "mark": {"type": "rect"},
            "encoding": {
                **across,
                "y": _y(title="CPU [% of one core]"),
                "y2": _Y2,
                "color": _series("actor", list(heights), columns=5),
                "tooltip": [
                    {"field": "actor"},
                    {"field": "percent", "title": "CPU [%]", "format": ".0f"},
                    {"field": "t", "title": "after [s]", "format": ".0f"},
                ],
            },
        },
    )


def steps(rows: Rows, fields: dict[str, str], title: str) -> Chart:
    """Draw numbers of ``scale.csv`` over time; ``fields`` are their names and what they are called."""
    few = rows[_thinned(len(rows))]
    tables = [pd.DataFrame({"t": few["time_s"], "n": few[name], "what": called}) for name, called in fields.items()]
    return Chart(
        pd.concat(tables, ignore_index=True),
        {
            "height": 250,
            "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2},
            "encoding": {
                "x": _time(),
                "y": _y("n", title=title, axis={"tickMinStep": 1, "format": "d"}),
                "color": _series("what", list(fields.values()), columns=4),
                "tooltip": [
                    {"field": "what", "title": " "},
                    {"field": "n", "title": "number"},
                    {"field": "t", "title": "after [s]", "format": ".0f"},
                ],
            },
        },
    )


def _thinned(length: int) -> NDArray[np.int64]:
    """Choose rows to draw: all of them, or as many as can be told apart, the last one included."""
    return np.unique(np.linspace(0, max(0, length - 1), min(length, _STEPS)).round().astype(np.int64))


# Runs side by side.


def bars(summaries: Sequence[RunSummary], field: str, title: str, form: str) -> Chart:
    """Draw one number of each run as bars, in the colours of the runs; ``form`` is how d3 is to write it."""
    names = [row.run_id for row in summaries]
    table = pd.DataFrame({"run": names, "value": [getattr(row, field) for row in summaries]}).dropna()
    table["environment"] = [row.environment for row in summaries if getattr(row, field) is not None]
    return Chart(
        table,
        {
            "height": {"step": 30},
            "mark": {"type": "bar", "cornerRadiusEnd": 4},
            "encoding": {
                "y": {"field": "run", "type": "nominal", "title": None, "sort": names, "axis": {"labelLimit": 160}},
                "x": {
                    "field": "value",
                    "type": "quantitative",
                    "title": title,
                    "axis": {"format": form, "tickCount": 4},
                },
                "color": {**_series("run", names), "legend": None},
                "tooltip": [
                    {"field": "run"},
                    {"field": "environment"},
                    {"field": "value", "title": title, "format": ".4~g"},
                ],
            },
        },
    )


def cpu_of_runs(runs: Sequence[LoadedRun]) -> Chart:
    """Draw all actors' CPU together over time, one line a run."""
    names = [run.result.run_id for run in runs]
    tables = []
    for run in runs:
        uses = [use for name, use in cpu_percent(run.usage).items() if is_actor(name)]
        grid = _grid(max((use.edges[-1] for use in uses), default=0.0))
        total = np.sum([np.zeros(len(grid) - 1), *(binned(use, grid) for use in uses)], axis=0)
        tables.append(pd.DataFrame({"t": grid[:-1], "percent": total, "run": run.result.run_id}))
    return Chart(
        pd.concat(tables, ignore_index=True),
        {
            "height": 330,
            "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2},
            "encoding": {
                "x": _time(),
                "y": _y("percent", title="CPU of all actors [% of one core]"),
                "color": _series("run", names, columns=3),
                "tooltip": [
                    {"field": "run"},
                    {"field": "percent", "title": "CPU [%]", "format": ".0f"},
                    {"field": "t", "title": "after [s]", "format": ".0f"},
                ],
            },
        },
    )
