"""Hot candidates judged and filled by some cuts and templates.

What is filled of them is what ``Filler`` fills of the same events, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.analysis import Analysis, Cut, Template, Variation, shape_of
from hzzray.physics.candidates import BLOCK
from hzzray.physics.fill import Sums
from hzzray.physics.filler import exact, no_sums, refuse_too_large
from hzzray.physics.histogram import LIMBS, Blocks
from hzzray.physics.hot_candidates import MOST, Column, Hot, Part
from hzzray.physics.hot_kernels import (
    advance,
    choose_candidates,
    collect,
    fill,
    fill_any,
    make_scratch,
    narrow,
    narrow_whole,
    settle,
    settle_any,
)
from hzzray.physics.hot_weights import Reweigher
from hzzray.physics.limbs import CELL, COUNT, SUMW

_NUMBERS = np.arange(MOST, dtype=np.uint32)


class UnmeasuredError(ValueError):
    """A variable that hot candidates lack: their file has nothing to measure it of."""


class Picked(NamedTuple):
    """Some candidates, each of an event of its own.

    ``entry`` (int64) counts from where the range starts; ``region`` is int64, ``weight`` float64. ``values`` (float64)
    has shape (variables, candidates), nan where a variable was not measured.
    """

    entry: NDArray[np.int64]
    region: NDArray[np.int64]
    weight: NDArray[np.float64]
    values: NDArray[np.float64]


class CachedFiller:
    """Judges and fills hot candidates by some cuts and templates: what is filled is exactly what ``Filler`` fills.

    With ``variations``, of the weight alone, it fills the first ``varied`` templates for each of their directions too.
    Works in memory of its own: one thread at a time. Raises ValueError for variables that the analysis doesn't have.
    """

    def __init__(
        self,
        analysis: Analysis,
        cuts: Sequence[Cut],
        templates: Sequence[Template],
        variations: Sequence[Variation] = (),
        varied: int = 1,
    ) -> None:
        #: The form of what is filled.
        self.shape = shape_of(analysis.regions, cuts, templates, variations, varied)
        self._cuts = [
            [
                (
                    analysis.index(bound.variable),
                    -math.inf if bound.low is None else bound.low,
                    math.inf if bound.high is None else bound.high,
                )
                for bound in cut.bounds
            ]
            for cut in cuts
        ]
        self._observables = [
            (
                analysis.index(template.observable),
                np.array([template.axis.start, template.axis.stop, template.axis.bins, template.axis.width]),
                self.shape.slice(i).start,
            )
            for i, template in enumerate(templates)
        ]
        self._reweigher = Reweigher(analysis, self._observables, variations, self.shape) if variations else None
        wanted = {variable for cut in self._cuts for variable, _, _ in cut} | {row[0] for row in self._observables}
        wanted |= self._reweigher.variables if self._reweigher else set()
        self._wanted = {variable: analysis.variables[variable].name for variable in wanted}
        self._s = make_scratch(MOST, self.shape)

    def fill(self, hot: Iterable[Hot]) -> Blocks:
        """Fill blocks with what is hot; raises UnmeasuredError where a variable is lacking."""
        sums = self.begin()
        return self.end(sums, sum(self.add(one, sums) for one in hot))

    def begin(self) -> Sums:
        """Begin with sums of nothing."""
        return no_sums(self.shape)

    def add(self, hot: Hot, sums: Sums, *, vary: bool = True) -> int:
        """Add what is hot, and return how many events that is.

        Where they don't ``vary``, variations stay empty: those of data. Raises UnmeasuredError, with nothing added, and
        WeightError as ``Filler.fill`` does.
        """
        self._require(hot)
        reweigher = self._reweigher if vary else None
        lacking = sorted(reweigher.needs - set(hot.beside)) if reweigher else []
        if lacking:
            raise UnmeasuredError(", ".join(lacking))
        for part in hot.parts:
            for begin, m in self._fill(part, sums):
                if reweigher and m:
                    self._reweigh(reweigher, hot.beside, part, begin, m, sums)
        self._add_counted(hot, sums)
        refuse_too_large(sums, hot.entries)
        return hot.entries

    def end(self, sums: Sums, entries: int) -> Blocks:
        """Make blocks of what was added."""
        return exact(self.shape, sums, entries)

    def pick(self, hot: Hot, low: float = -math.inf, high: float = math.inf, limit: int | None = None) -> Picked:
        """Pick the candidates that are filled, the first observable's value from ``low`` on and below ``high``.

        ``limit`` is how many at the most, in no order; raises UnmeasuredError where a variable is lacking.
        """
        self._require(hot)
        first = self._observables[0][0]
        found = [Picked(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty((len(hot.classes), 0)))]
        left = limit
        for part in hot.parts:
            chosen, passed = self.judge(part)
            x = np.broadcast_to(_column(part, first).values.astype(np.float64), part.region.shape)[chosen]
            fits = (passed[chosen] == len(self._cuts)) & (part.region[chosen] >= 0) & np.isfinite(x)
            events = np.flatnonzero(fits & (x >= low) & (x < high))[:left]
            found.append(_picked(part, events, chosen[events]))
            if left is not None:
                left -= events.size
        return Picked(*(np.concatenate(arrays, axis=-1) for arrays in zip(*found, strict=True)))

    def _require(self, hot: Hot) -> None:
        lacking = [name for variable, name in self._wanted.items() if variable not in hot.measured]
        if lacking:
            raise UnmeasuredError(", ".join(lacking))

    def _fill(self, part: Part, sums: Sums) -> Iterator[tuple[int, int]]:
        """Judge and fill; gives where those that passed stand among the chosen, and how many they are, as it goes."""
        events, weight = part.entry.size, part.weight.values
        self.judge(part)
        s = self._s
        columns = [(_column(part, variable).values, axis, first) for variable, axis, first in self._observables]
        fit = np.empty(0, np.bool_)
        if not _column(part, self._observables[0][0]).finite:
            fit = np.broadcast_to(np.isfinite(columns[0][0]), part.region.shape).copy()
        if part.octave is not None and events <= MOST:
            m = settle(events, part.region, weight, fit, part.octave, s, sums)
            for x, axis, first in columns:
                fill(x, m, axis, first, s)
            collect(s, sums)
            yield 0, m
            return
        for begin in range(0, events, BLOCK):
            m = settle_any(begin, min(begin + BLOCK, events), part.region, weight, fit, s, sums)
            for x, axis, first in columns:
                fill_any(x, begin, m, axis, first, s, sums.cells)
            yield begin, m

    def _reweigh(
        self, reweigher: Reweigher, names: Sequence[str], part: Part, begin: int, m: int, sums: Sums
    ) -> None:  # fmt: skip
        """Fill variations with those that passed."""
        chosen = self._s.chosen[begin : begin + m]
        event = chosen if part.first is None else np.searchsorted(part.first, chosen, side="right") - 1
        reweigher.add(
            _values(part.weight, event),
            {name: _values(column, event) for name, column in zip(names, part.beside, strict=True)},
            self._s.region[:m],
            lambda variable: _values(_column(part, variable), chosen),
            sums,
        )

    def judge(self, part: Part) -> tuple[NDArray[np.uint32], NDArray[np.int16]]:
        """Tell which candidate of each event counts, and how many cuts each candidate passes before one that stops it.

        Both live until the next call.
        """
        n = part.region.size
        if n > self._s.alive.size:
            self._s = make_scratch(n, self.shape)
        s = self._s
        alive, passed = s.alive[:n], s.passed[:n]
        alive[:] = 1
        passed[:] = 0
        due = 0
        for cut in self._cuts:
            for variable, low, high in cut:
                column = _column(part, variable)
                if column.passes(low, high):
                    continue
                if due:
                    advance(n, due, alive, passed)
                    due = 0
                _narrow_by(column, low, high, alive)
            due += 1
        advance(n, due, alive, passed)
        if part.first is None:
            s.chosen[:n] = _NUMBERS[:n] if n <= MOST else np.arange(n, dtype=np.uint32)
        else:
            choose_candidates(part.first, part.rank, passed, s.chosen)
        return s.chosen[: part.entry.size], passed

    def _add_counted(self, hot: Hot, sums: Sums) -> None:
        """Add what is only counted: it stops at the first cut that it fails, or at the last one."""
        stopped = sums.stopped.reshape(-1, CELL)[:, COUNT : SUMW + LIMBS]
        alive, passed = np.ones(len(hot.sums), bool), np.zeros(len(hot.sums), np.int64)
        for cut in self._cuts:
            for variable, low, high in cut:
                x = hot.classes[variable]
                alive &= ~np.isnan(x) & ((x > low) | (low == -math.inf)) & ((x < high) | (high == math.inf))
            passed += alive
        np.add.at(stopped, np.minimum(passed + 1, len(self._cuts)), hot.sums)
        stopped[1] += hot.invalid_sums
        sums.invalid[:2] += hot.invalid


def _picked(part: Part, events: NDArray[np.int64], chosen: NDArray[np.uint32]) -> Picked:
    rows = [np.full(events.size, np.nan) if column is None else _values(column, chosen) for column in part.columns]
    return Picked(
        part.entry[events].astype(np.int64),
        part.region[chosen].astype(np.int64),
        _values(part.weight, events),
        np.array(rows),
    )


def _values(column: Column, at: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Take some values of a column, as the doubles that were measured."""
    found: NDArray[np.float64] = column.values[at * column.step].astype(np.float64)
    return found


def _column(part: Part, variable: int) -> Column:
    column = part.columns[variable]
    if column is None:
        raise UnmeasuredError(f"variable {variable}")
    return column


def _narrow_by(column: Column, low: float, high: float, alive: NDArray[np.uint8]) -> None:
    if not column.step:
        alive[:] = 0  # all have the same value, which doesn't pass
    elif column.values.dtype == np.int8:
        least = max(math.floor(max(low, -129.0)) + 1, -128)
        most = min(math.ceil(min(high, 128.0)) - 1, 127)
        if least > 127 or most < -128:
            alive[:] = 0
        else:
            narrow_whole(column.values, least, most, alive)
    else:
        narrow(column.values, low, high, alive)
