"""Columns in, exact blocks out: measure, judge and fill, a block of events after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from hzzray.physics.analysis import Analysis, Layout, Template, Variation, lay_out, shape_of
from hzzray.physics.candidates import BLOCK, Candidates, make_room
from hzzray.physics.columns import Reads, Step
from hzzray.physics.fill import NOWHERE, UNEVEN, Sums, Weights, forget, judge_and_fill, make_scratch, settle
from hzzray.physics.histogram import LIMBS, MAX_WEIGHT, Blocks, Shape, Touched
from hzzray.physics.jit import calling, one_at_a_time, without_extensions
from hzzray.physics.limbs import CELL, move_settled
from hzzray.physics.selection import Selection, parameters_of
from hzzray.physics.variations import Varied
from hzzray.user_code import error_summary

#: What a block's candidates may take: half of a second-level cache, which cells and columns share [bytes].
_CACHED_BYTES = 256 * 1024


class WeightError(ValueError):
    """Events that weigh more than exact sums can hold: they are normalised to something else than they should be."""


class MeasureError(ValueError):
    """An analysis' own function that doesn't do what it should."""


class Filler:
    """Fills templates with events that pass a selection; ``gev`` is GeV a unit of the files' energies.

    With ``variations`` it fills the first ``varied`` templates for each of their directions too, out of steps of what
    ``reads`` says. It works in memory of its own, the same for every call: one thread at a time. Raises ValueError for
    a cut, template, parameter or variation that the analysis doesn't know.
    """

    def __init__(
        self,
        analysis: Analysis,
        selection: Selection,
        templates: Sequence[Template],
        gev: float,
        variations: Sequence[Variation] = (),
        varied: int = 1,
        reads: Reads | None = None,
    ) -> None:
        self._analysis = analysis
        self._measure = analysis.compiled()
        self._parameters = parameters_of(analysis, selection, gev)
        self._absolute = selection.absolute_weights
        #: The form of what is filled.
        self.shape = shape_of(analysis.regions, selection.cuts, templates, variations, varied)
        also = [variation.each for variation in variations if variation.each]
        self._layout = lay_out(analysis, selection.cuts, templates, also)
        self._varied = None
        if variations and reads is not None:
            self._varied = Varied(analysis, variations, self._layout, self.shape, reads)
        # Events at a time: what is measured is filled while it lies in the second-level cache.
        self._block = max(BLOCK // 8, min(BLOCK, _CACHED_BYTES // (8 * self._layout.rows)))
        self._candidates = make_room(self._layout.rows)
        self._scratch = make_scratch(self.shape)
        self._sums: Sums | None = None
        self._rows = make_rows(self.shape.cells)

    def fill(self, steps: Iterable[Step], norm: float, *, vary: bool = True) -> Blocks:
        """Fill blocks with a series of steps, whose events weigh ``norm`` times their factors.

        Where they don't ``vary``, variations stay empty: those of data. Raises WeightError where weights of MAX_WEIGHT
        or more come out of finite factors, MeasureError where measuring fails.
        """
        return self._touched(steps, norm, vary=vary).blocks()

    def pack(self, steps: Iterable[Step], norm: float, *, vary: bool = True) -> bytes:
        """Fill, and pack: what ``Blocks.pack`` makes of what ``fill`` does, without cells that nothing fell into."""
        return self._touched(steps, norm, vary=vary).pack()

    def _touched(self, steps: Iterable[Step], norm: float, *, vary: bool) -> Touched:
        sums, self._sums = self._sums or no_sums(self.shape), None  # what comes to nothing leaves something there
        entries = 0
        forget(self._scratch)
        varied = self._varied if vary else None
        if varied is not None:
            varied.begin()
        for step in steps:
            self._fill(step, norm, sums, varied)
            entries += step.events
            refuse_too_large(sums, step.events)
        settle(self._scratch, sums)
        if varied is not None:
            varied.end(sums)
        touched = touched_of(self.shape, sums, entries, self._rows)
        self._sums = sums
        return touched

    def _fill(self, step: Step, norm: float, sums: Sums, varied: Varied | None) -> None:
        weights = Weights(step.factors, step.divisor, norm, self._absolute)
        for start in self._blocks(step.events, step.columns, weights, self._layout, sums):
            if varied is not None:
                varied.weigh(start, self._candidates, self._scratch, step, weights, sums)
        if varied is not None:
            varied.fill(step, weights, sums)
            settle(self._scratch, sums)  # folds are of one direction at a time
            for one in varied.shifted:
                own = one.sums(sums)
                for _ in self._blocks(step.events, one.columns_of(step), weights, varied.layout, own):
                    pass
                settle(self._scratch, own)

    def _blocks(self, events: int, columns: object, weights: Weights, layout: Layout, sums: Sums) -> Iterator[int]:
        """Measure, judge and fill events, a block of them after the other; gives where each one started."""
        start = 0
        while start < events:
            measured = self._run(start, min(start + self._block, events), columns, weights, layout, sums)
            yield start
            start += measured

    def _run(self, start: int, stop: int, columns: object, weights: Weights, layout: Layout, sums: Sums) -> int:
        """Measure, judge and fill a block of events; returns how many there were."""
        candidates = self._candidates
        measured = run_measure(self._measure, start, stop, columns, self._parameters, layout.slots, candidates)
        became = judge_and_fill(start, measured, candidates, weights, layout, self._scratch, sums)
        refuse_misplaced(became, candidates, measured, layout.regions)
        return measured

    @without_extensions()
    def warm_up(self, nothing: Step) -> None:
        """Compile what runs, or load it from numba's cache, by running it over a step of no events."""
        weights = Weights(nothing.factors, nothing.divisor, 1.0, self._absolute)
        with one_at_a_time(f"{self._measure.__module__} {self._measure.__name__}"):
            sums = no_sums(self.shape)
            self._run(0, 0, nothing.columns, weights, self._layout, sums)
            settle(self._scratch, sums)
            touched_of(self.shape, sums, 0, self._rows)
        if self._varied is not None:
            with one_at_a_time("variations"):
                self._varied.weigh(0, self._candidates, self._scratch, nothing, weights, sums)
                self._fill(nothing, 1.0, sums, self._varied)
                self._varied.end(sums)


def no_sums(shape: Shape) -> Sums:
    """Make sums of nothing."""
    return Sums(
        np.zeros(shape.cells * CELL, np.int64), np.zeros(shape.rows * CELL, np.int64), np.zeros(3, np.int64)
    )  # fmt: skip


class Rows(NamedTuple):
    """Room for the settled rows (int64) of so many cells, and for these cells' numbers (int64)."""

    rows: NDArray[np.int64]
    at: NDArray[np.int64]


def make_rows(cells: int) -> Rows:
    """Make room for the rows of so many cells."""
    return Rows(np.empty((cells, 1 + 2 * LIMBS), np.int64), np.empty(cells, np.int64))


def touched_of(shape: Shape, sums: Sums, entries: int, room: Rows) -> Touched:
    """Find what sums of so many entries are, which leaves nothing there; it is in ``room`` and good until the next."""
    stopped = np.zeros((shape.rows, 1 + LIMBS), np.int64)
    few = make_rows(shape.rows)
    n = move_settled(sums.stopped, *few)
    stopped[few.at[:n]] = few.rows[:n, : 1 + LIMBS]
    invalid = sums.invalid[:2].copy()
    sums.invalid[:] = 0
    n = move_settled(sums.cells, *room)
    return Touched(shape, room.at[:n], room.rows[:n], stopped, invalid, entries)


def exact(shape: Shape, sums: Sums, entries: int) -> Blocks:
    """Make the blocks that sums of so many entries are, which leaves nothing there."""
    return touched_of(shape, sums, entries, make_rows(shape.cells)).blocks()


def refuse_too_large(sums: Sums, events: int) -> None:
    """Raise WeightError where weights, of so many events, are too large for exact sums."""
    if sums.invalid[2]:
        raise WeightError(f"{sums.invalid[2]} of {events} events weigh {MAX_WEIGHT:.3g} or more, too large")


def run_measure(
    measure: Callable[..., int], start: int, stop: int, columns: object, parameters: object, slots: NDArray[np.int64],
    candidates: Candidates,
) -> int:  # fmt: skip
    """Measure events from start on; returns how many there were. Raises MeasureError where that fails."""
    arguments = start, stop, columns, parameters, slots, candidates
    try:
        measured = measure(*arguments)
    except Exception as error:  # somebody's own function may raise what it likes
        file = measure.__code__.co_filename
        raise MeasureError(f"measure: {error_summary(_nearest(error, measure, arguments), file)}") from error
    if type(measured) is not int or not min(1, stop - start) <= measured <= stop - start:
        raise MeasureError(
            f"measure returned {measured!r} for events {start} to {stop}: it must return how many it measured"
        )
    return measured


def _nearest(error: Exception, measure: Any, arguments: tuple[object, ...]) -> Exception:  # noqa: ANN401
    """Of what can't be compiled in a helper, find what says so of the line of ``measure`` that calls it."""
    if isinstance(error, nb.TypingError) and Path(measure.__code__.co_filename).name not in str(error):
        try:
            calling(measure).compile(tuple(map(nb.typeof, arguments)))
        except nb.TypingError as nearest:
            return nearest
    return error


def refuse_misplaced(became: int, candidates: Candidates, measured: int, regions: int) -> None:
    """Raise MeasureError where candidates, or their regions, aren't what an analysis may measure."""
    if became == NOWHERE:
        found = candidates.region[: candidates.first[measured]]
        other = next(region for region in found.tolist() if not -1 <= region < regions)
        raise MeasureError(f"measure gave a candidate region {other}: there are 0 to {regions - 1}, and -1 for none")
    if became == UNEVEN:
        raise MeasureError(
            "measure left an event without a candidate, or more "
            "candidates than there is room for: candidates.first must rise from 0"
        )
