"""What the explore page shows, of what a session answers: sliders, cuts that move, scans, plots. No Streamlit here."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from app import formatting
from app.charts import COLOURS, Chart, Spec
from app.explore_process import About, Question, RecutResult
from hzzray.engine.explore_messages import Candidate, Lepton
from hzzray.physics.analysis import Bound, Cut, Template
from hzzray.report.stack import contents
from hzzray.runs.result import Result, Significance, significance
from hzzray.statistics.significance import asimov

Ask = Callable[[Question], RecutResult]

#: What the chart of the spectrum calls the run's own cuts.
BEFORE = "the run's own cuts"

#: Thresholds of a scan.
THRESHOLDS = 25

_BINS = 60  # of a histogram behind a slider
_STEPS = 160  # of a slider, about
_PROBES = 100  # bins with which a range is looked for
_TRIES = 6
_TAIL = 0.002  # of the events that a range may leave out at either end
_FAR = 1e7  # no variable is beyond, in its unit
_INTEGERS = 40.0  # a range of counts is no longer
_INK, _GREY = "currentColor", "#8a93a3"
_SIGNAL = COLOURS[2]


@dataclass(frozen=True, eq=False, slots=True)
class Slider:
    """A variable that is cut on, its range, and its histogram there by every cut of the run but its own.

    At an end of the range a slider is no bound. ``counts`` are whole numbers: ends belong to what is kept.
    """

    variable: str
    title: str
    low: float
    high: float
    step: float
    counts: bool
    signal: NDArray[np.float64]
    background: NDArray[np.float64]

    @property
    def half(self) -> float:
        """How far bins and bounds are beyond the thumbs: half a whole number, which is kept, or nothing."""
        return 0.5 if self.counts else 0.0

    def ends(self, bound: Bound | None) -> tuple[float, float]:
        """Tell where the thumbs are for a bound."""
        low = self.low if bound is None or bound.low is None else bound.low + self.half
        high = self.high if bound is None or bound.high is None else bound.high - self.half
        low, high = (min(max(end, self.low), self.high) for end in (low, high))
        return (low, high) if low <= high else (high, low)

    def bound(self, ends: tuple[float, float]) -> Bound:
        """Tell what the thumbs ask for."""
        low, high = (round(end, 9) for end in ends)
        if low == high and not self.counts:  # nothing lies between: the smallest step does
            low, high = (low - self.step, high) if high >= self.high else (low, high + self.step)
        return Bound(
            self.variable,
            None if low <= self.low else round(low - self.half, 9),
            None if high >= self.high else round(high + self.half, 9),
        )

    @property
    def form(self) -> str:
        """How its numbers are written, as ``printf`` has it."""
        return f"%.{max(0, -math.floor(math.log10(self.step) + 1e-9))}f"

    def says(self, bound: Bound | None) -> str:
        """Say in short what a bound asks for."""
        if bound is None or (bound.low, bound.high) == (None, None):
            return "no cut"
        low = None if bound.low is None else f"{bound.low + self.half:g}"
        high = None if bound.high is None else f"{bound.high - self.half:g}"
        if low is None:
            return f"{'≤' if self.counts else '<'} {high}"
        if high is None:
            return f"{'≥' if self.counts else '>'} {low}"
        return low if low == high else f"{low} – {high}"


def bounds(cuts: Iterable[Cut]) -> dict[str, Bound]:
    """List the bounds of cuts by variable."""
    return {bound.variable: bound for cut in cuts for bound in cut.bounds}


class _Range(NamedTuple):
    low: float
    high: float
    counts: bool


def sliders(about: About, ask: Ask) -> dict[str, Slider]:
    """Make a slider of each variable: first where it lies, then how it is distributed there."""
    ranges = _ranges(about, ask)
    own = bounds(about.spec.selection.cuts)
    axes, made = {}, {}
    for variable in about.variables:
        found = ranges[variable.name]
        bound = own.get(variable.name, Bound(variable.name))
        low, high, step = _laid_out(found, bound)
        bins = max(1, round(high - low)) + 1 if found.counts else _BINS
        edges = (low - 0.5, high + 0.5) if found.counts else (low, high)
        axes[variable.name] = f"{variable.name}={edges[0]!r}:{edges[1]!r}:{bins}"
        title = formatting.axis(variable.name, variable.label, variable.unit)
        nothing = np.zeros(bins)
        made[variable.name] = Slider(variable.name, title, low, high, step, found.counts, nothing, nothing)
    first = about.spec.templates[0].observable
    apart = [name for name in made if name in own or name == first]
    together = [name for name in made if name not in apart]
    for names in (*([name] for name in apart), *([together] if together else [])):
        without = tuple(Bound(name) for name in names if name in own)
        axis = axes[first] if names == [first] else None
        question = (
            Question(without, (axis,), window=_window(axis))
            if axis
            else Question(without, (first, *(axes[name] for name in names)))
        )
        results = ask(question).results
        for name in names:
            signal, background = _by_role(results[name])
            made[name] = replace(made[name], signal=signal, background=background)
    return made


def _window(axis: str) -> str:
    """Take a whole axis for a window: for a question of which the significance doesn't matter."""
    return ":".join(axis.partition("=")[2].split(":")[:2])


def _ranges(about: About, ask: Ask) -> dict[str, _Range]:
    """Tell where variables lie: as the analysis' axes say, else where the events are that pass the basic cuts."""
    found = {one.observable: _Range(one.axis.start, one.axis.stop, counts=False) for one in about.templates}
    rest = [variable.name for variable in about.variables if variable.name not in found]
    cuts = about.spec.selection.cuts
    kept = [cut for cut in cuts if cut.basic] or cuts[:1]
    loose = tuple(Bound(name) for name in bounds(cuts).keys() - bounds(kept).keys())
    looked = dict.fromkeys(rest, (-_FAR, _FAR))
    for _ in range(_TRIES):
        if not looked:
            break
        axes = (f"{name}={low!r}:{high!r}:{_PROBES}" for name, (low, high) in looked.items())
        results = ask(Question(loose, (about.spec.templates[0].observable, *axes))).results
        for name, (low, high) in list(looked.items()):
            closer = _closer(results[name])
            if closer is None or closer[1] - closer[0] > 0.4 * (high - low):
                found[name] = _Range(*(closer or (0.0, 1.0)), counts=False)
                del looked[name]
            else:
                looked[name] = closer
    found |= {name: _Range(*ends, counts=False) for name, ends in looked.items()}
    first = about.spec.templates[0].observable
    return found | _counted({name: one for name, one in found.items() if name != first}, about, loose, ask)


def _closer(result: Result) -> tuple[float, float] | None:
    """Tell in which bins nearly all events are; None without any."""
    n = np.sum([np.array(group.sumw2) for group in result.groups.values()], axis=0)
    if not n.sum() > 0:
        return None
    share = np.cumsum(n) / n.sum()
    first, last = int(np.argmax(share > _TAIL)), int(np.argmax(share >= 1 - _TAIL))
    return result.edges[first], result.edges[last + 1]


def _counted(ranges: dict[str, _Range], about: About, loose: tuple[Bound, ...], ask: Ask) -> dict[str, _Range]:
    """Find those variables that are whole numbers: all events lie about them."""
    short = {name: one for name, one in ranges.items() if one.high - one.low < _INTEGERS}
    if not short:
        return {}
    axes = []
    for name, one in short.items():
        start, stop = math.floor(one.low) - 1, math.ceil(one.high) + 1
        axes.append(f"{name}={start - 0.05!r}:{stop - 0.05!r}:{10 * (stop - start)}")
    results = ask(Question(loose, (about.spec.templates[0].observable, *axes))).results
    found = {}
    for name in short:
        n = np.sum([np.array(group.sumw2) for group in results[name].groups.values()], axis=0)
        where = np.flatnonzero(n)
        if where.size and not (where % 10).any():
            edges = np.array(results[name].edges)
            low, high = (float(round(edges[i] + 0.05)) for i in (where[0], where[-1]))
            found[name] = _Range(low, high, counts=True)
    return found


def _laid_out(found: _Range, bound: Bound) -> tuple[float, float, float]:
    """Lay out a slider: its ends on whole steps, with room on the outer side of what is cut on."""
    if found.counts:
        low = found.low if bound.low is None else min(found.low, bound.low - 0.5)
        high = found.high if bound.high is None else max(found.high, bound.high + 0.5)
        return float(math.floor(low)), max(float(math.ceil(high)), math.floor(low) + 1.0), 1.0
    step = _nice((found.high - found.low) / _STEPS)
    low = found.low if bound.low is None else min(found.low, bound.low - 5 * step)
    high = found.high if bound.high is None else max(found.high, bound.high + 5 * step)
    return round(math.floor(low / step + 1e-6) * step, 9), round(math.ceil(high / step - 1e-6) * step, 9), step


def _nice(step: float) -> float:
    """Round a step up to 1, 2 or 5 times a power of ten."""
    size = 10.0 ** math.floor(math.log10(step))
    return float(round(size * next(n for n in (1, 2, 5, 10) if n * size >= step * (1 - 1e-9)), 12))


def _by_role(result: Result) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum a result's signal and its background by bin."""
    nothing = np.zeros(len(result.edges) - 1)
    signal, background = (
        sum((np.array(group.sumw) for group in result.groups.values() if group.role == role), nothing)
        for role in ("signal", "background")
    )
    return signal, background


def silhouette(values: NDArray[np.float64], *, log: bool = False) -> str:
    """Outline a histogram as a polygon of CSS: as high as its highest bin."""
    top = float(values.max(initial=0.0))
    if not top > 0:
        return "polygon(0 100%, 100% 100%)"
    part = np.clip(values / top, 0.0, 1.0)
    if log:
        part = np.clip(1.0 + np.log10(np.maximum(part, 1e-12)) / 4.0, 0.0, 1.0)
    points = ["0% 100%"]
    for i, height in enumerate(part):
        points += [f"{100 * at / part.size:.2f}% {100 * (1 - height):.1f}%" for at in (i, i + 1)]
    return f"polygon({', '.join([*points, '100% 100%'])})"


def is_steep(slider: Slider) -> bool:
    """Tell whether a histogram is seen with a logarithmic scale alone."""
    total = slider.signal + slider.background
    filled = np.sort(total[total > 0])
    return bool(filled.size and filled[-1] > 50 * filled[filled.size // 2])


def behind(slider: Slider, bound: Bound | None) -> str:
    """Draw what lies behind a slider in HTML: background and signal, each as high as it gets, and what is cut away."""
    low, high = slider.ends(bound)
    # Bins of whole numbers lie about the thumbs: half of the first one and of the last one are beyond the track.
    half = slider.half
    wide = slider.high - slider.low
    left = 100 * max(0.0, low - half - slider.low) / wide
    right = 100 * max(0.0, slider.high - high - half) / wide
    log = is_steep(slider)
    layers = "".join(
        f'<div class="{name}" style="clip-path:{silhouette(_on_track(slider, values), log=log)}"></div>'
        for name, values in (("background", slider.background), ("signal", slider.signal))
    )
    away = "".join(
        f'<div class="away" style="{side}:0;width:{share:.2f}%"></div>'
        for side, share in (("left", left), ("right", right))
        if share > 0.005
    )
    return f'<div class="behind">{layers}{away}</div>'


def _on_track(slider: Slider, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Leave out of bins what is beyond the slider's track."""
    return np.repeat(values, 2)[1:-1] if slider.counts else values


# What moves.


@dataclass(frozen=True, slots=True)
class Move:
    """Cuts as they were, and which one was moved from there, when [s]."""

    cuts: tuple[Bound, ...]
    moved: str
    at: float


@dataclass(frozen=True, slots=True)
class Tuning:
    """Changes of a run's cuts, by variable, and how they came about. A bound without ends is a cut taken away."""

    cuts: tuple[Bound, ...] = ()
    past: tuple[Move, ...] = ()

    #: Moves of one slider within so long are one step [s].
    TOGETHER_S: ClassVar[float] = 2.0

    def bound(self, variable: str, own: dict[str, Bound]) -> Bound | None:
        """Tell a variable's bound now; None where there is none."""
        found = next((bound for bound in self.cuts if bound.variable == variable), own.get(variable))
        return None if found is None or (found.low, found.high) == (None, None) else found

    def move(self, bound: Bound, own: dict[str, Bound], now: float) -> Tuning:
        """Move a cut; one that is back where the run has it is no change."""
        rest = tuple(old for old in self.cuts if old.variable != bound.variable)
        unchanged = bound == own.get(bound.variable, Bound(bound.variable))
        cuts = rest if unchanged else (*rest, bound)
        if cuts == self.cuts:
            return self
        last = self.past[-1] if self.past else None
        if last is not None and last.moved == bound.variable and now - last.at < self.TOGETHER_S:
            return Tuning(cuts, (*self.past[:-1], replace(last, at=now)))
        return Tuning(cuts, (*self.past, Move(self.cuts, bound.variable, now))[-100:])

    def undo(self) -> Tuning:
        """Go back one step."""
        return Tuning(self.past[-1].cuts, self.past[:-1]) if self.past else self

    def put(self, cuts: tuple[Bound, ...], now: float) -> Tuning:
        """Take other changes in the place of all: none, for the run's own cuts. That can be undone, too."""
        return self if cuts == self.cuts else Tuning(cuts, (*self.past, Move(self.cuts, "", now))[-100:])


# What is hidden, and what is compared.


def counts(result: Result, region: str | None = None) -> Significance:
    """Count in the window, in one region or in all: what is lacking of all is lacking of each."""
    found = result.significance
    if region is None or found.window is None:
        return found
    groups = [(group.role, group.channels[region]) for group in result.groups.values()]
    own = significance(result.spec.axis, found.window, groups, stated=lambda inside: _stated(result, region, inside))
    kept = {name: None for name in found.unread if name in Significance.model_fields}
    return own.model_copy(update={**kept, "withheld": {**own.withheld, **found.unread}})


def _stated(result: Result, region: str, inside: slice) -> float:
    """Tell how well the background of a region is known, from what the release states."""
    yields = {
        name: result.side_by_side(sample) * math.fsum(sample.channels[region].sumw[inside])
        for name, sample in result.samples.items()
        if result.groups[sample.group].role == "background" and sample.luminosity is not None
    }
    return result.spec.release.stated_error(yields)


def blinded(chart: Chart, result: Result, window: tuple[float, float] | None) -> Chart:
    """Take the data out of a chart of the spectrum: those in the window; all, where the axis is another's."""
    low, high = window if window is not None and result.is_first else (-math.inf, math.inf)
    rows = chart.rows
    inside = (rows["lo"] < high - 1e-9) & (rows["hi"] > low + 1e-9)
    rows = rows[~(rows["kind"].isin(["data", "ratio"]) & inside)].copy()
    told = sorted((name for name in rows.columns if name[0] == "w" and name[1:].isdecimal()), key=lambda n: int(n[1:]))
    if told and contents(result).data is not None:
        rows.loc[(rows["kind"] == "bin") & inside, told[-1]] = "hidden"
    return Chart(rows, chart.spec)


def overlaid(chart: Chart, before: Result, region: str | None = None) -> Chart:
    """Lay a line over a chart of the spectrum: what simulation is with the run's own cuts."""
    content = contents(before, region)
    total = content.total
    line = pd.DataFrame({"kind": "before", "lo": content.edges[:-1], "hi": content.edges[1:], "y0": total})
    upper, lower, hover = chart.spec["layer"]
    mark = {
        "transform": [{"filter": "datum.kind === 'before'"}],
        "mark": {"type": "rule", "strokeWidth": 1.6, "strokeDash": [4, 2], "color": _INK, "clip": True},
        "encoding": {
            "x": {"field": "lo", "type": "quantitative"},
            "x2": {"field": "hi"},
            "y": {"field": "y0", "type": "quantitative"},
        },
    }
    spec = {**chart.spec, "layer": [{"layer": [*upper["layer"], mark]}, lower, hover]}
    return Chart(pd.concat([chart.rows, line], ignore_index=True), spec)


class Yield(NamedTuple):
    """A group in the window: events now and with the run's own cuts; None where there are none to tell."""

    group: str
    now: float | None
    error: float | None
    before: float | None


def yields(now: Result, before: Result, region: str | None, *, blind: bool) -> list[Yield]:
    """Count each group in the window, now and before; data in it are not told while ``blind``."""
    rows = []
    for name, group in now.groups.items():
        hidden = group.role == "data" and blind
        after, error = _in_window(now, name, region)
        rows.append(
            Yield(name, None if hidden else after, None if hidden else error, _in_window(before, name, region)[0])
        )
    return rows


def _in_window(result: Result, name: str, region: str | None) -> tuple[float, float]:
    group = result.groups[name]
    bins = group if region is None else group.channels[region]
    window = result.significance.window
    inside = slice(None) if window is None else result.spec.axis.window(*window)
    return float(np.sum(bins.sumw[inside])), float(np.sqrt(np.sum(bins.sumw2[inside])))


def _of(kind: str, mark: Spec, **encoding: Spec) -> Spec:
    """Draw the rows of one kind."""
    return {"transform": [{"filter": f"datum.kind === '{kind}'"}], "mark": mark, "encoding": encoding}


# The best cut.


class Point(NamedTuple):
    """What a threshold gives: expected significance, its statistical error, signal and background."""

    threshold: float
    asimov: float | None
    error: float | None
    signal: float | None
    background: float | None


def thresholds(slider: Slider) -> list[float]:
    """Choose thresholds over a slider's range, on its steps."""
    steps = round((slider.high - slider.low) / slider.step)
    every = max(1, math.ceil(steps / (THRESHOLDS - 1)))
    return [round(slider.low + i * slider.step, 9) for i in range(0, steps + 1, every)]


def with_threshold(slider: Slider, bound: Bound | None, threshold: float, *, above: bool) -> Bound:
    """Put a threshold in the place of a bound's lower end, or of its upper one; the other stays."""
    low, high = slider.ends(bound)
    return slider.bound((threshold, max(high, threshold)) if above else (min(low, threshold), threshold))


def point(threshold: float, result: Result, region: str | None = None) -> Point:
    """Tell what a threshold gives. The error is that of the simulation's statistics, carried on through the formula."""
    found = counts(result, region)
    s, b = found.n_signal, found.n_background
    if found.asimov is None or s is None or b is None:
        return Point(threshold, found.asimov, None, s, b)
    s_error = math.sqrt(
        sum(_in_window(result, name, region)[1] ** 2 for name, group in result.groups.items() if group.role == "signal")
    )
    b_error = found.n_background_error or 0.0
    by_s = _slope(lambda x: asimov(x, b), s)
    by_b = _slope(lambda x: asimov(s, x), b)
    return Point(threshold, found.asimov, math.hypot(by_s * s_error, by_b * b_error), s, b)


def _slope(function: Callable[[float], float | None], x: float) -> float:
    """Differentiate numerically, on the side above where there is nothing below."""
    h = max(1e-4 * abs(x), 1e-9)
    low, high = function(max(x - h, 0.0)), function(x + h)
    return 0.0 if low is None or high is None else (high - low) / (x + h - max(x - h, 0.0))


def best(points: Sequence[Point]) -> Point | None:
    """Find the threshold of the highest significance."""
    return max((point for point in points if point.asimov is not None), key=lambda p: p.asimov or 0.0, default=None)


def scan_chart(points: Sequence[Point], slider: Slider, now: float | None, *, above: bool) -> Chart:
    """Draw significance against threshold, with its error, where the cut is now, and the best."""
    rows = pd.DataFrame([p._asdict() for p in points]).dropna(subset=["asimov"])
    rows["kind"] = "scan"
    rows["low"], rows["high"] = rows["asimov"] - rows["error"].fillna(0), rows["asimov"] + rows["error"].fillna(0)
    top = best(points)
    marks = [pd.DataFrame({"kind": ["now"], "threshold": [now]})] if now is not None else []
    if top is not None:
        marks.append(pd.DataFrame({"kind": ["best"], "threshold": [top.threshold], "asimov": [top.asimov]}))
    x = {
        "field": "threshold",
        "type": "quantitative",
        "title": f"{slider.title}, {'at least' if above else 'at most'}",
        "scale": {"zero": False, "nice": False},
    }
    y = {"field": "asimov", "type": "quantitative", "title": "expected significance [σ]", "scale": {"zero": False}}

    tips = [
        {"field": "threshold", "title": "threshold", "format": ".4~g"},
        {"field": "asimov", "title": "σ", "format": ".3f"},
        {"field": "error", "title": "±", "format": ".3f"},
        {"field": "signal", "title": "signal", "format": ".2f"},
        {"field": "background", "title": "background", "format": ".2f"},
    ]
    colour = COLOURS[0]
    return Chart(
        pd.concat([rows, *marks], ignore_index=True),
        {
            "height": 300,
            "layer": [
                _of("scan", {"type": "area", "opacity": 0.25, "color": colour},
                   x=x, y={**y, "field": "low"}, y2={"field": "high"}),
                _of("scan", {"type": "line", "color": colour, "strokeWidth": 2, "point": {"color": colour, "size": 26}},
                   x=x, y=y, tooltip=tips),  # type: ignore[arg-type]
                _of("now", {"type": "rule", "color": _INK, "strokeDash": [4, 3]}, x=x),
                _of("best", {"type": "point", "shape": "diamond", "size": 140, "filled": True, "color": _SIGNAL},
                   x=x, y=y),
            ],
        },
    )  # fmt: skip


# Every cut but one.


def all_but_one(
    chosen: Iterable[str], known: Mapping[str, Slider], cuts: tuple[Bound, ...], first: Template
) -> dict[str, Question]:
    """Ask for each variable by every cut but its own, on its slider's range."""
    found = {}
    for name in chosen:
        slider = known[name]
        half, bins = slider.half, slider.signal.size
        axis = f"{name}={slider.low - half!r}:{slider.high + half!r}:{bins if slider.counts else min(bins, 40)}"
        without = (*(bound for bound in cuts if bound.variable != name), Bound(name))
        if name == first.observable:
            found[name] = Question(without, (axis,), window=_window(axis))
        else:
            found[name] = Question(without, (first.observable, axis))
    return found


def but_one_chart(result: Result, slider: Slider, bound: Bound | None, *, data: bool) -> Chart:
    """Draw a variable by every cut but its own: the stack, the data, and what its own cut takes away."""
    content = contents(result)
    below = np.zeros(len(content.edges) - 1)
    tables = []
    for layer in content.simulation:
        tables.append(pd.DataFrame({
            "kind": "stack", "group": layer.name, "lo": content.edges[:-1], "hi": content.edges[1:],
            "y0": below, "y1": below + layer.sumw,
        }))  # fmt: skip
        below = below + layer.sumw
    if data and content.data is not None:
        some = content.data > 0
        tables.append(pd.DataFrame({"kind": "data", "middle": content.centres[some], "y": content.data[some]}))
    edges = content.edges
    low, high = (None, None) if bound is None else (bound.low, bound.high)
    spans = [(edges[0], low) if low is not None else None, (high, edges[-1]) if high is not None else None]
    away = [span for span in spans if span is not None and span[0] < span[1]]
    if away:
        tables.append(pd.DataFrame({"kind": "away", "lo": [a for a, _ in away], "hi": [b for _, b in away]}))
    names = [layer.name for layer in content.simulation]
    colours = [layer.colour for layer in content.simulation]
    x = {"field": "lo", "type": "quantitative", "title": slider.title,
         "scale": {"domain": [float(edges[0]), float(edges[-1])], "nice": False, "zero": False}}  # fmt: skip
    y = {"field": "y0", "type": "quantitative", "title": "events"}

    colour = {"field": "group", "type": "nominal", "scale": {"domain": names, "range": colours}, "legend": None}
    return Chart(
        pd.concat(tables, ignore_index=True),
        {
            "height": 190,
            "layer": [
                _of("stack", {"type": "rect", "clip": True}, x=x, x2={"field": "hi"}, y=y, y2={"field": "y1"},
                   color=colour, tooltip={"field": "group"}),
                _of("data", {"type": "circle", "color": _INK, "size": 26, "opacity": 1},
                   x={**x, "field": "middle"}, y={**y, "field": "y"}),
                _of("away", {"type": "rect", "color": _GREY, "opacity": 0.3, "clip": True}, x=x, x2={"field": "hi"}),
            ],
        },
    )  # fmt: skip


# Events.

_FLAVOURS = {11: "e", 13: "µ"}
_ELECTRON, _MUON = COLOURS[0], COLOURS[1]


def draws_leptons(variables: Collection[str]) -> bool:
    """Tell whether an analysis measures what four leptons are known again by: of any other, none are drawn."""
    return all(f"{name}{i}" in variables for name in ("pt", "eta") for i in range(1, 5))


def listed(candidates: Sequence[Candidate], variables: Sequence[str]) -> pd.DataFrame:
    """Lay candidates out as a table: run, event, region, masses, leptons where there are; then where they are from."""
    leptons = any(one.leptons for one in candidates)
    rows = []
    for one in candidates:
        masses = {name: one.values[name] for name in variables if name in one.values}
        rows.append(
            {
                "run": one.run,
                "event": one.event,
                "region": one.region.replace("mu", "µ"),
                **masses,
                **({"leptons": _said(one.leptons)} if leptons else {}),
                "sample": formatting.short(one.sample),
                "weight": one.weight,
                "entry": one.entry,
                "file": formatting.short(one.file),
            }
        )
    return pd.DataFrame(rows)


def _said(leptons: Iterable[Lepton]) -> str:
    return ", ".join(
        f"{_FLAVOURS.get(lepton.flavour, '?')}{'⁺' if lepton.charge > 0 else '⁻'} {lepton.pt:.1f}" for lepton in leptons
    )


def as_csv(candidates: Sequence[Candidate]) -> str:
    """Write candidates with all that is known of them."""
    rows = []
    for one in candidates:
        row: dict[str, object] = {"run": one.run, "event": one.event, "region": one.region, "sample": one.sample}
        row |= {"weight": one.weight, "file": one.file, "entry": one.entry, **one.values}
        for i, lepton in enumerate(one.leptons, 1):
            row |= {f"lepton{i}_{name}": value for name, value in lepton._asdict().items()}
        rows.append(row)
    return pd.DataFrame(rows).to_csv(index=False)


def display(candidate: Candidate, view: str) -> Chart:
    """Draw a candidate's leptons across the beam (``r-phi``) or along it (``r-z``).

    Directions are the true ones, pt is a line's length. Along the beam, up is the half of φ from 0 to π.
    """
    reach = 1.25 * max((lepton.pt for lepton in candidate.leptons), default=1.0)
    rows = []
    for lepton in candidate.leptons:
        if view == "r-phi":
            across, up = math.cos(lepton.phi), math.sin(lepton.phi)
        else:
            theta = 2 * math.atan(math.exp(-lepton.eta))
            across, up = math.cos(theta), math.copysign(math.sin(theta), math.sin(lepton.phi))
        name = _FLAVOURS.get(lepton.flavour, "?")
        rows.append(
            {
                "x0": 0.0, "y0": 0.0, "x": lepton.pt * across, "y": lepton.pt * up, "flavour": name,
                "xt": (lepton.pt + 0.1 * reach) * across, "yt": (lepton.pt + 0.1 * reach) * up,
                "says": f"{name}{'⁺' if lepton.charge > 0 else '⁻'} {lepton.pt:.0f}",
                "eta": lepton.eta, "phi": lepton.phi, "pt": lepton.pt,
            }
        )  # fmt: skip
    titles = ("x: pT [GeV]", "y") if view == "r-phi" else ("z (beam)", "r")
    scale = {"domain": [-reach, reach], "nice": False}
    x = {"field": "x", "type": "quantitative", "scale": scale, "title": titles[0], "axis": {"grid": False}}
    y = {"field": "y", "type": "quantitative", "scale": scale, "title": titles[1], "axis": {"grid": False}}
    colour = {
        "field": "flavour",
        "type": "nominal",
        "title": None,
        "scale": {"domain": ["e", "µ"], "range": [_ELECTRON, _MUON]},
        "legend": None,
    }
    tips = [{"field": "says", "title": "lepton"}] + [
        {"field": name, "type": "quantitative", "format": ".2f"} for name in ("pt", "eta", "phi")
    ]
    circle: list[Spec] = []
    if view == "r-phi":
        angles = np.linspace(0, 2 * math.pi, 73)
        ring = [
            {"cx": 0.98 * reach * math.cos(a), "cy": 0.98 * reach * math.sin(a), "n": i} for i, a in enumerate(angles)
        ]
        circle = [{
            "data": {"values": ring},
            "mark": {"type": "line", "color": _GREY, "opacity": 0.6, "strokeWidth": 1},
            "encoding": {"x": {"field": "cx", "type": "quantitative"}, "y": {"field": "cy", "type": "quantitative"},
                         "order": {"field": "n"}},
        }]  # fmt: skip
    else:
        circle = [{
            "data": {"values": [{"a": -0.98 * reach, "b": 0.98 * reach}]},
            "mark": {"type": "rule", "color": _GREY, "strokeDash": [6, 4]},
            "encoding": {"x": {"field": "a", "type": "quantitative"}, "x2": {"field": "b"}, "y": {"datum": 0}},
        }]  # fmt: skip
    return Chart(
        pd.DataFrame(rows),
        {
            "height": 320,
            "width": 320,
            "layer": [
                *circle,
                {
                    "mark": {"type": "rule", "strokeWidth": 4, "strokeCap": "round"},
                    "encoding": {"x": {**x, "field": "x0"}, "y": {**y, "field": "y0"}, "x2": {"field": "x"},
                                 "y2": {"field": "y"}, "color": colour, "tooltip": tips},
                },
                {
                    "mark": {"type": "text", "fontSize": 12, "fontWeight": 600, "color": _INK},
                    "encoding": {"x": {**x, "field": "xt"}, "y": {**y, "field": "yt"}, "text": {"field": "says"}},
                },
            ],
        },
    )  # fmt: skip
