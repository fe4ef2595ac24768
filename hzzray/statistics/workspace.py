"""Templates → a HistFactory workspace in pyhf's JSON form (CERN-OPEN-2012-016; pyhf's schema 1.0.0). Pure.

The rules, which docs/statistics.md states, are numbers in ``Rules``:

1. In each region, neighbouring bins are merged until each holds enough expected events, and background that simulation
   knows well enough. Bins in which the signal is at least ``rich`` of all, in all regions together, and the others are
   merged among themselves: a peak keeps its shape, and beside it few wide bins tell how much background there is.
2. What is left of a process below 0 in a bin is taken as 0, and its other bins are scaled so that its yield in the
   region stays. A process without a positive yield in a region has no part in it.
3. The smallest backgrounds are left out, as long as all that is left out stays below ``prune`` of the background, in
   each region and each bin.
4. Each variation is split: the ratio of its yield in a region is a ``normsys``, what is left of its shape a
   ``histosys`` of the same nuisance parameter. Either is left out where it is smaller than ``least_effect``. A
   variation of one direction is mirrored. A shape needs ``least_shape`` effective simulated events, (Σw)²/Σw², in the
   region: of fewer it would be single events that cross from one bin to the next. Where none is simulated, none moves.
5. The simulation's statistics are one ``staterror`` a region, of all processes together (Barlow and Beeston's light
   form). Bins whose error is below ``least_statistics`` of the data's Poisson error have none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzzray.data.catalogue import LUMINOSITY, Uncertainty
from hzzray.errors import HzzrayError
from hzzray.statistics.model_inputs import ModelInputs, Process

#: The parameter of interest: the signal's strength, 1 as simulated.
MU = "mu"

Document = dict[str, Any]


class ModelError(HzzrayError):
    """Counts that no model can be made of."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How templates become a model.

    ``least_events`` are expected in a bin that is rich in signal, ``least_beside`` in others; the rest are relative.
    """

    least_events: float = 0.5
    least_beside: float = 10.0
    rich: float = 0.05
    most_error: float = 0.5
    prune: float = 0.005
    least_effect: float = 1e-3
    least_shape: float = 100.0
    least_statistics: float = 0.2


@dataclass(frozen=True, eq=False, slots=True)
class Workspace:
    """A workspace as pyhf reads it, ``edges`` of each region's bins, and ``notes`` of what became of the templates."""

    document: Document
    edges: dict[str, tuple[float, ...]]
    groups: dict[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False, slots=True)
class _Part:
    """A process in one region, after merging: shape (bins,)."""

    process: Process
    sumw: NDArray[np.float64]
    sumw2: NDArray[np.float64]
    variations: dict[str, NDArray[np.float64]]


def make(inputs: ModelInputs, rules: Rules = Rules()) -> Workspace:
    """Make the workspace; without data its observations are those expected of µ = 1.

    Raises ModelError where there is no signal or no background to fit, or no bin that could hold it.
    """
    for role in ("signal", "background"):
        if not any(process.role == role for process in inputs.processes):
            raise ModelError(f"no {role} to fit")
    notes: list[str] = []
    kept = _pruned(inputs, rules, notes)
    s, b = (inputs.total(role).sum(axis=0) for role in ("signal", "background"))
    rich = s >= rules.rich * (s + np.maximum(b, 0.0))
    rich &= s > 0
    channels, observations, edges, with_signal = [], [], {}, False
    for i, region in enumerate(inputs.regions):
        groups = merging(inputs.total("signal")[i], *_background(inputs, i), rich, rules)
        if not groups:
            notes.append(f"{region}: left out, it expects less than {rules.least_events:g} events")
            continue
        parts = list(_parts(kept, i, groups, region, notes))
        if not any(part.process.role == "background" for part in parts):
            notes.append(f"{region}: left out, no background in it")
            continue
        with_signal |= any(part.process.role == "signal" for part in parts)
        lows = [int(group[0]) for group in groups]
        edges[region] = (*inputs.edges[lows].tolist(), float(inputs.edges[-1]))
        channels.append({"name": region, "samples": _samples(region, parts, rules, notes)})
        data = sum(part.sumw for part in parts) if inputs.data is None else _merged(inputs.data[i], groups)
        observations.append({"name": region, "data": np.asarray(data, float).tolist()})
    if not with_signal:
        raise ModelError("no region has signal and background that could be fitted")
    document = {
        "channels": channels,
        "observations": observations,
        "measurements": [{"name": "signal strength", "config": {"poi": MU, "parameters": _parameters(inputs)}}],
        "version": "1.0.0",
    }
    groups_of = {process.name: process.group for process in kept}
    return Workspace(document, edges, groups_of, tuple(dict.fromkeys(notes)))


def _background(inputs: ModelInputs, region: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    found = [process for process in inputs.processes if process.role == "background"]
    return sum((one.sumw[region] for one in found), np.zeros(1)), sum((one.sumw2[region] for one in found), np.zeros(1))


def merging(
    signal: NDArray[np.float64],
    background: NDArray[np.float64],
    background2: NDArray[np.float64],
    rich: NDArray[np.bool_],
    rules: Rules,
) -> list[NDArray[np.intp]]:
    """Say which bins of a region are merged (rule 1): indices of each group; none where all together aren't enough.

    Parameters
    ----------
    signal, background, background2
        Expected events, and the square of the background's statistical error, shape (bins,).
    rich
        Which bins are rich in signal, shape (bins,).
    """

    def enough(bins: list[int], least: float) -> bool:
        b, error = background[bins].sum(), np.sqrt(max(background2[bins].sum(), 0.0))
        return bool(b > 0 and signal[bins].sum() + b >= least and error <= rules.most_error * b)

    groups: list[list[int]] = []
    left: list[int] = []  # at the lower end, not enough for a bin of their own
    borders = np.flatnonzero(np.diff(rich)) + 1
    for stretch in np.split(np.arange(len(rich)), borders):
        found = _greedy(stretch.tolist(), enough, rules.least_events if rich[stretch[0]] else rules.least_beside)
        if not enough(found[0], rules.least_events):  # all of the stretch
            (groups[-1] if groups else left).extend(found[0])
            continue
        groups += found
        groups[-len(found)][:0], left = left, []
    return [np.array(group) for group in groups]


def _greedy(bins: list[int], enough: Callable[[list[int], float], bool], least: float) -> list[list[int]]:
    """Merge neighbours until they are enough; what is left in the end joins the last."""
    groups: list[list[int]] = [[]]
    for i in bins:
        if enough(groups[-1], least):
            groups.append([])
        groups[-1].append(i)
    if len(groups) > 1 and not enough(groups[-1], least):
        last = groups.pop()
        groups[-1] += last
    return groups


def _merged(values: NDArray[np.float64], groups: list[NDArray[np.intp]]) -> NDArray[np.float64]:
    return np.array([values[group].sum() for group in groups])


def _pruned(inputs: ModelInputs, rules: Rules, notes: list[str]) -> list[Process]:
    """Leave out the smallest backgrounds (rule 3)."""
    total = inputs.total("background")
    allowed = rules.prune * np.maximum(np.column_stack((total, total.sum(axis=1))), 0.0)
    left = np.zeros_like(allowed)
    small: dict[str, float] = {}
    backgrounds = [process for process in inputs.processes if process.role == "background"]
    for process in sorted(backgrounds, key=lambda one: abs(one.sumw).sum()):
        size = abs(np.column_stack((process.sumw, process.sumw.sum(axis=1))))
        if (left + size > allowed).any():
            break
        left = left + size
        small[process.name] = float(process.sumw.sum())
    if small:
        notes.append(f"left out, {sum(small.values()):.3g} events in all: {', '.join(small)}")
    return [process for process in inputs.processes if process.role != "data" and process.name not in small]


def _parts(
    processes: list[Process], region: int, groups: list[NDArray[np.intp]], name: str, notes: list[str]
) -> Iterator[_Part]:
    """Merge the bins of each process; nothing of it stays below 0 (rule 2)."""
    for process in processes:
        sumw = _merged(process.sumw[region], groups)
        sumw2 = _merged(process.sumw2[region], groups)
        variations = {key: _merged(value[region], groups) for key, value in process.variations.items()}
        if sumw.sum() <= 0:
            if sumw.any():
                notes.append(f"{name}: {process.name} left out, its yield is {sumw.sum():.3g}")
            continue
        if (sumw < 0).any():
            where = f"{(sumw < 0).sum()} of {len(sumw)} bins"
            notes.append(f"{name}: {process.name} was below 0 in {where}: taken as 0 there")
        yield _Part(process, _positive(sumw), sumw2, {key: _positive(value) for key, value in variations.items()})


def _positive(sumw: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take what is below 0 as 0, and keep the sum."""
    clipped = np.maximum(sumw, 0.0)
    return clipped * max(sumw.sum(), 0.0) / clipped.sum() if clipped.any() else clipped


def _samples(region: str, parts: list[_Part], rules: Rules, notes: list[str]) -> list[Document]:
    total = sum((part.sumw for part in parts), np.zeros(1))
    error = np.sqrt(sum((part.sumw2 for part in parts), np.zeros(1)))
    counted = error >= rules.least_statistics * np.sqrt(total)
    if not counted.all():
        notes.append(
            f"{region}: simulation's statistics left out in {(~counted).sum()} of {len(total)} bins, where they are "
            f"below {100 * rules.least_statistics:g} % of the data's"
        )
    samples = []
    for part in parts:
        # The signal's own parameter first, then what all have.
        modifiers: list[Document] = []
        if part.process.role == "signal":
            modifiers.append({"name": MU, "type": "normfactor", "data": None})
        if counted.any():
            values = np.where(counted, np.sqrt(part.sumw2), 0.0)
            modifiers.append({"name": f"staterror_{region}", "type": "staterror", "data": values.tolist()})
        modifiers += [_normalisation(one) for one in part.process.uncertainties]
        modifiers += _shapes(part, rules)
        samples.append({"name": part.process.name, "data": part.sumw.tolist(), "modifiers": modifiers})
    return samples


def _normalisation(uncertainty: Uncertainty) -> Document:
    if uncertainty.name == LUMINOSITY:
        return {"name": LUMINOSITY, "type": "lumi", "data": None}
    factors = {"hi": 1.0 + uncertainty.up, "lo": 1.0 - uncertainty.down}
    return {"name": uncertainty.name, "type": "normsys", "data": factors}


def _shapes(part: _Part, rules: Rules) -> Iterator[Document]:
    """Split each variation into a factor and a shape (rule 4)."""
    nominal, total = part.sumw, part.sumw.sum()
    for name, (up, down) in directions(part.variations, nominal).items():
        high, low = up.sum() / total, down.sum() / total
        if high > 0 and low > 0 and max(abs(high - 1), abs(low - 1)) >= rules.least_effect:
            yield {"name": name, "type": "normsys", "data": {"hi": float(high), "lo": float(low)}}
        if total**2 < rules.least_shape * part.sumw2.sum():
            continue
        filled = nominal > 0
        shapes = [_alike(np.where(filled, shape, 0.0), nominal) for shape in (up, down)]
        effect = max(float(abs(shape[filled] / nominal[filled] - 1).max(initial=0.0)) for shape in shapes)
        if effect >= rules.least_effect and len(nominal) > 1:
            data = {"hi_data": shapes[0].tolist(), "lo_data": shapes[1].tolist()}
            yield {"name": name, "type": "histosys", "data": data}


def _alike(shape: NDArray[np.float64], nominal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale a shape to the nominal yield; one of nothing is the nominal one."""
    total = shape.sum()
    return shape * nominal.sum() / total if total > 0 else nominal


def directions(
    variations: Mapping[str, NDArray[np.float64]], nominal: NDArray[np.float64]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Pair variations by name, up and down; one that has a single direction is mirrored at the nominal."""
    names = dict.fromkeys(re.sub("_(up|down)$", "", name) for name in variations)
    found = {}
    for name in names:
        up, down = variations.get(f"{name}_up"), variations.get(f"{name}_down")
        if up is None and down is None:  # without a direction: it is taken for up
            up = variations[name]
        if up is None:
            up = np.maximum(2 * nominal - down, 0.0) if down is not None else nominal
        if down is None:
            down = np.maximum(2 * nominal - up, 0.0)
        found[name] = (up, down)
    return found


def _parameters(inputs: ModelInputs) -> list[Document]:
    """Say what pyhf doesn't know by itself: how far µ may go, and how well the luminosity is known."""
    s, b = inputs.total("signal").sum(), inputs.total("background").sum()
    most = float(np.ceil(max(10.0, 10.0 * np.sqrt(max(b, 0.0)) / s))) if s > 0 else 10.0
    parameters: list[Document] = [{"name": MU, "bounds": [[0.0, min(most, 1e4)]], "inits": [1.0]}]
    stated = {one for process in inputs.processes for one in process.uncertainties if one.name == LUMINOSITY}
    for one in stated:
        limits = [max(1.0 - 5 * one.relative, 0.0), 1.0 + 5 * one.relative]
        parameters.append(
            {"name": LUMINOSITY, "auxdata": [1.0], "sigmas": [one.relative], "bounds": [limits], "inits": [1.0]}
        )
    return parameters
