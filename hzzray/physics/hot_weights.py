"""Variations of the weight, filled of hot candidates: exactly what is filled of them as events are read.

What a weight is without one of its factors, and what may stand in its place, is kept beside hot candidates where the
run that reads them has such variations. Others multiply the weight, and need nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.analysis import Analysis, Variation
from hzzray.physics.columns import Reads, Scalar, Step
from hzzray.physics.fill import Sums, Weights, find_bins
from hzzray.physics.histogram import MAX_WEIGHT, Shape
from hzzray.physics.jit import entry, kernel, without_extensions
from hzzray.physics.limbs import SUMW, SUMW2, Split, add_whole, make_split, split_weight
from hzzray.physics.variations import Direction, directions_of, factor_of, powers_of, rows_of


def without(factor: str) -> str:
    """Name what a weight is without one of its factors."""
    return f"weight without {factor}"


class ExtraWeights(NamedTuple):
    """What is kept of an event beside its weight: ``factors`` and branches, by their numbers in what is read."""

    factors: tuple[int, ...] = ()
    scalars: tuple[int, ...] = ()
    names: tuple[str, ...] = ()

    def of(self, step: Step, weights: Weights, start: int, events: int) -> NDArray[np.float64]:
        """Make it of some events of a step: float64, shape (names, events), in the order that weights are made in."""
        found = np.empty((len(self.names), events))
        if not self.names:
            return found
        here = slice(start, start + events)
        factors, divisor = step.factors[:, here], step.divisor[here]
        if weights.absolute:
            factors, divisor = np.abs(factors), np.abs(divisor)
        for row, factor in enumerate(self.factors):
            found[row] = weights.norm
            for other in range(len(factors)):
                if other != factor:
                    found[row] *= factors[other]
            if divisor.size:
                found[row] /= divisor
        own = [factors[factor] for factor in self.factors]
        more = [step.more[scalar][here] for scalar in self.scalars]
        for row, values in enumerate([*own, *(np.abs(one) if weights.absolute else one for one in more)]):
            found[len(self.factors) + row] = values
        return found


#: Where nothing is kept.
NOTHING = ExtraWeights()


def extra_weights(variations: Iterable[Variation], reads: Reads) -> ExtraWeights:
    """Say what is kept for some variations of what is read, other branches too.

    Raises ValueError where a factor isn't read.
    """
    weighed = [one for one in variations if not one.kinematic]
    factors = {one.factor: factor_of(one, reads) for one in weighed if one.factor}
    number = {read.branch: i for i, read in enumerate(reads.more) if isinstance(read, Scalar)}
    branches = list(dict.fromkeys(branch for one in weighed for branch in one.branches))
    return ExtraWeights(
        tuple(factors.values()),
        tuple(number[branch] for branch in branches),
        (*map(without, factors), *factors, *branches),
    )


def needs(variations: Iterable[Variation]) -> frozenset[str]:
    """Name what variations need beside the weight: of those in which all is measured again, what is never kept."""
    found: set[str] = set()
    for one in variations:
        if one.kinematic:
            found.add(f"leptons of variation {one.name}")
        elif one.factor:
            found |= {without(one.factor), one.factor, *one.branches}
    return frozenset(found)


@entry
def _find(
    x: NDArray[np.float64], region: NDArray[np.int32], axis: NDArray[np.float64], first: int, cell: NDArray[np.int32]
) -> None:
    find_bins(x.size, x, axis, region, first, cell)


@entry
def _add(x: NDArray[np.float64], cell: NDArray[np.int32], first: int, split: Split, t: Sums) -> None:
    """Add weights to the cells of a direction, from ``first`` on, each with its count."""
    _add_all(x, cell, first, split, t)


@kernel
def _add_all(x: NDArray[np.float64], cell: NDArray[np.int32], first: int, split: Split, t: Sums) -> None:
    for i in range(x.size):
        w = x[i]
        if not abs(w) < MAX_WEIGHT:
            t.invalid[2] += 1
            continue
        split_weight(w, split, 0, 0, SUMW)
        split_weight(w * w, split, 0, 1, SUMW2)
        add_whole(t.cells, first + cell[i], split, 0)


#: A template as it is filled: its variable, its axis (as ``find_bins`` has it), its first cell.
Observable = tuple[int, NDArray[np.float64], int]


class Reweigher:
    """Fills the first observables of what passed for each direction in which events weigh otherwise.

    Raises ValueError for variables that the analysis doesn't have.
    """

    def __init__(
        self, analysis: Analysis, observables: Sequence[Observable], variations: Sequence[Variation], shape: Shape
    ) -> None:
        self._directions = directions_of(variations, shape)
        kinds, self._power = powers_of(self._directions)
        self._kinds = [analysis.index(kind) for kind in kinds]
        self._observables = observables[: shape.varied]
        #: The variables that events weigh by.
        self.variables = frozenset(self._kinds)
        #: What must have been kept of each event beside its weight.
        self.needs = needs(variations)
        self._split = make_split(1)

    def add(
        self,
        weight: NDArray[np.float64],
        beside: Mapping[str, NDArray[np.float64]],
        region: NDArray[np.int32],
        values: Callable[[int], NDArray[np.float64]],
        sums: Sums,
    ) -> None:
        """Add events that passed: what they weigh, what was kept beside, their candidates' region and variables."""
        row = rows_of([values(kind) for kind in self._kinds], weight.size)
        cells = []
        for variable, axis, first in self._observables:
            cells.append(np.empty(weight.size, np.int32))
            _find(values(variable), region, axis, first, cells[-1])
        for at, direction in enumerate(self._directions):
            x = _weigh(direction, weight, self._power[row, at], beside)
            for cell in cells:
                _add(x, cell, direction.cell, self._split, sums)


def _weigh(
    its: Direction, weight: NDArray[np.float64], power: NDArray[np.float64], beside: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.float64]:
    """Tell what events weigh in a direction: the same operations as ``variations`` does, in the same order."""
    if not its.factor:
        return weight * power
    rest, own = beside[without(its.factor)], beside[its.factor]
    if not its.branch:
        return rest * (1.0 + (own - 1.0) * its.spread)
    found = beside[its.branch]
    return rest * np.where(np.isfinite(found), found, own)


@without_extensions()
def warm_up() -> None:
    """Compile what adds weights, or load it from numba's cache."""
    none, cell = np.empty(0), np.empty(0, np.int32)
    sums = Sums(np.empty(0, np.int64), np.empty(0, np.int64), np.zeros(3, np.int64))
    _find(none, cell, np.array([0.0, 1.0, 1.0, 1.0]), 0, cell)
    _add(none, cell, 0, make_split(1), sums)
