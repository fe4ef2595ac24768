"""Columns in, histogram out: measure, judge and fill, block after block, for one selection on one axis."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.analysis import Template, lay_out
from hzzray.physics.candidates import make_room
from hzzray.physics.columns import Columns
from hzzray.physics.fill import CELL, COUNT, SUMW, SUMW2, Sums, Weights, judge_and_fill, make_scratch
from hzzray.physics.h4l import H4L
from hzzray.physics.h4l import Parameters as BestOf
from hzzray.physics.histogram import LIMBS, MAX_WEIGHT, Axis, ExactSums, Histogram
from hzzray.physics.jit import without_extensions
from hzzray.physics.notebook import NOTEBOOK
from hzzray.physics.notebook import Parameters as FirstFour
from hzzray.physics.selection import Selection


class WeightError(ValueError):
    """Events that weigh more than exact sums can hold: they are normalised to something else than they should be."""


class Filler:
    """Fills histograms of m4l with events that pass a selection; ``gev`` is GeV a unit of pt and energy.

    It works in memory of its own, the same for every call: one thread at a time.
    """

    def __init__(self, selection: Selection, gev: float, axis: Axis) -> None:
        best = selection.leptons == "best"
        self._analysis = H4L if best else NOTEBOOK
        self._parameters = _parameters_of_best(selection, gev) if best else FirstFour(gev)
        self._absolute = selection.absolute_weights
        self._rows = len(selection.cuts)
        self._layout = lay_out(self._analysis, selection.rows, [Template("m4l", axis)])
        self._candidates = make_room(self._layout.rows)
        self._scratch = make_scratch()

    def fill(self, steps: Iterable[Columns], norm: float) -> Histogram:
        """Fill a histogram with a series of columns, whose events weigh ``norm`` times their factors.

        Raises WeightError where weights of MAX_WEIGHT or more come out of finite factors.
        """
        sums = self._nothing()
        entries = 0
        for columns in steps:
            weights = Weights(columns.factors, columns.divisor, norm, self._absolute)
            events = len(columns.offsets) - 1
            start = 0
            while start < events:
                start += self._run(start, events, columns, weights, sums)
            entries += events
            if sums.invalid[2]:
                raise WeightError(f"{sums.invalid[2]} of {events} events weigh {MAX_WEIGHT:.3g} or more, too large")
        cells = sums.cells.reshape(len(self._analysis.regions), -1, CELL)
        stopped = sums.stopped.reshape(-1, CELL)
        return Histogram(
            cells[..., COUNT].copy(),
            _sums(cells, SUMW),
            _sums(cells, SUMW2),
            stopped[:, COUNT].copy(),
            _sums(stopped, SUMW),
            sums.invalid[:2].copy(),
            entries,
        )

    def _nothing(self) -> Sums:
        """Make sums of nothing."""
        cells, rows = self._layout.cells * CELL, self._rows * CELL
        return Sums(np.zeros(cells, np.int64), np.zeros(rows, np.int64), np.zeros(3, np.int64))

    def _run(self, start: int, stop: int, columns: Columns, weights: Weights, sums: Sums) -> int:
        """Measure, judge and fill a block of events; returns how many there were."""
        layout, candidates = self._layout, self._candidates
        measured = self._analysis.measure(start, stop, columns, self._parameters, layout.slots, candidates)
        judge_and_fill(start, measured, candidates, weights, layout, self._scratch, sums)
        return measured

    @without_extensions()
    def warm_up(self) -> None:
        """Compile what runs, or load it from numba's cache, by running it over no events."""
        f4, i4, u1 = np.empty(0, np.float32), np.empty(0, np.int32), np.empty(0, np.uint8)
        nothing = Columns(np.zeros(1, np.int64), f4, f4, f4, f4, i4, i4, u1, u1, u1, u1, np.empty((0, 0)), np.empty(0))
        self._run(0, 0, nothing, Weights(nothing.factors, nothing.divisor, 1.0, self._absolute), self._nothing())


def _parameters_of_best(selection: Selection, gev: float) -> BestOf:
    m34, m4l = selection.z2_min, selection.z2_min_from
    return BestOf(
        gev,
        selection.electron_pt_min / gev,
        selection.muon_pt_min / gev,
        selection.identified or selection.isolated,
        float(m34[0]),
        float(m34[1]),
        float(m4l[0]),
        float(m4l[1]),
    )


def _sums(cells: NDArray[np.int64], first: int) -> ExactSums:
    return ExactSums(cells[..., first : first + LIMBS].copy()).settled()
