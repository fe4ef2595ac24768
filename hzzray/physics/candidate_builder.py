"""Steps of events in, hot candidates out: measured once, to be judged and filled as often as anybody asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.analysis import Analysis
from hzzray.physics.candidates import BAD_INPUT, BAD_WEIGHT, BLOCK, TOO_LARGE, Candidates, make_room
from hzzray.physics.columns import Step
from hzzray.physics.fast_sums import LARGEST, LEAST, OCTAVES
from hzzray.physics.fill import Sums, Weights, weigh
from hzzray.physics.filler import refuse_misplaced, refuse_too_large, run_measure
from hzzray.physics.histogram import LIMBS
from hzzray.physics.hot_candidates import PART, Column, Hot, Part, shrink
from hzzray.physics.hot_weights import NOTHING, ExtraWeights
from hzzray.physics.jit import entry, kernel, one_at_a_time, without_extensions
from hzzray.physics.limbs import CELL, COUNT, SUMW, Split, add_one, make_split, split_weight
from hzzray.physics.selection import Selection, parameters_of


@entry
def _weigh(start: int, events: int, weights: Weights, regions: int, c: Candidates) -> int:
    became: int = weigh(start, events, weights, regions, c)
    return became


@entry
def _sum_up(w: NDArray[np.float64], which: NDArray[np.int64], split: Split, sums: NDArray[np.int64]) -> None:
    """Add weights to the cells that they are of, each with its count."""
    _add_up(w, which, split, sums)


@kernel
def _add_up(w: NDArray[np.float64], which: NDArray[np.int64], split: Split, sums: NDArray[np.int64]) -> None:
    for i in range(w.size):
        split_weight(w[i], split, 0, 0, SUMW)
        add_one(sums, which[i], split, 0)


class _Kept(NamedTuple):
    """What is kept of a block: values (float64, shape (variables, candidates)) and the rest, as Part has it.

    ``beside`` is float64, shape (names, events).
    """

    values: NDArray[np.float64]
    region: NDArray[np.int64]
    weight: NDArray[np.float64]
    entry: NDArray[np.int64]
    number: NDArray[np.int64]
    rank: NDArray[np.float64]
    beside: NDArray[np.float64]


class CandidateBuilder:
    """Measures events and keeps what is needed to judge and fill them by whatever cuts and templates.

    ``variables`` are the numbers of those that are measured; what ``beside`` says is kept of simulation for variations
    of its weights. Works in memory of its own: one thread at a time. Raises ValueError for parameters that the analysis
    doesn't know.
    """

    def __init__(
        self,
        analysis: Analysis,
        selection: Selection,
        variables: Sequence[int],
        gev: float,
        beside: ExtraWeights = NOTHING,
    ) -> None:
        self._measure = analysis.compiled()
        self._parameters = parameters_of(analysis, selection, gev)
        self._absolute = selection.absolute_weights
        self._regions = len(analysis.regions)
        self._variables = tuple(variables)
        self._slots = np.full(len(analysis.variables), -1, np.int64)
        self._slots[list(self._variables)] = range(len(self._variables))
        self._candidates = make_room(len(self._variables))
        self._split = make_split(1)
        self._beside = beside
        #: What is kept beside weights.
        self.beside = frozenset(beside.names)

    def keep(self, steps: Iterable[Step], norm: float, *, vary: bool = True) -> Hot:
        """Keep what a series of steps holds, whose events weigh ``norm`` times their factors.

        Where they don't ``vary``, nothing is kept beside. Raises WeightError and MeasureError as ``Filler.fill`` does.
        """
        beside = self._beside if vary else NOTHING
        made = _Making(self._slots, self._split, beside.names)
        for step in steps:
            weights = Weights(step.factors, step.divisor, norm, self._absolute)
            start, invalid = 0, Sums(np.empty(0, np.int64), np.empty(0, np.int64), np.zeros(3, np.int64))
            while start < step.events:
                measured = self._run(start, min(start + BLOCK, step.events), step.columns, weights)
                flags = self._candidates.invalid[:measured]
                for i, flag in enumerate((BAD_INPUT, BAD_WEIGHT, TOO_LARGE)):
                    invalid.invalid[i] += np.count_nonzero(flags & flag)
                made.take(self._candidates, measured, beside.of(step, weights, start, measured))
                start += measured
            refuse_too_large(invalid, step.events)
            made.invalid += invalid.invalid[:2]
        return made.whole(frozenset(self._variables))

    def _run(self, start: int, stop: int, columns: object, weights: Weights) -> int:
        c = self._candidates
        measured = run_measure(self._measure, start, stop, columns, self._parameters, self._slots, c)
        refuse_misplaced(_weigh(start, measured, weights, self._regions, c), c, measured, self._regions)
        return measured

    @without_extensions()
    def warm_up(self, nothing: Step) -> None:
        """Compile what runs, or load it from numba's cache."""
        with one_at_a_time(f"hot {self._measure.__module__} {self._measure.__name__}"):
            self._run(0, 0, nothing.columns, Weights(nothing.factors, nothing.divisor, 1.0, self._absolute))
            _sum_up(np.empty(0), np.empty(0, np.int64), self._split, np.empty(0, np.int64))


# Odd numbers to tell rows of values apart by; what is told apart wrongly is noticed.
_ODD = np.random.default_rng(0).integers(2**62, size=1024, dtype=np.int64) * 2 + 1


class _Making:
    """A range's hot candidates while they are gathered."""

    def __init__(self, slots: NDArray[np.int64], split: Split, beside: tuple[str, ...]) -> None:
        self._slots = slots
        self._split = split
        self._beside = beside
        self._parts: list[Part] = []
        self._single: list[_Kept] = []
        self._multiple: list[_Kept] = []
        self._rare: list[_Kept] = []
        self._classes: dict[bytes, NDArray[np.int64]] = {}
        self._invalid_sums = np.zeros(CELL, np.int64)
        self.invalid = np.zeros(2, np.int64)
        self.entries = 0

    def take(self, c: Candidates, events: int, beside: NDArray[np.float64]) -> None:
        """Take the next events of a block, and what is kept beside their weights."""
        first, number = c.first[:events], np.diff(c.first[: events + 1])
        sound, single = c.invalid[:events] == 0, number == 1
        region = c.region[first]
        if not sound.all():
            w = c.weight[:events][~sound]
            _sum_up(w, np.zeros(w.size, np.int64), self._split, self._invalid_sums)
        no_region = np.flatnonzero(sound & single & (region < 0))
        if no_region.size:
            self._put(self._rare, c, self._count(c, no_region), beside)
        self._put(self._single, c, np.flatnonzero(sound & single & (region >= 0)), beside)
        if sum(one.entry.size for one in self._single) >= PART:
            self._seal()
        several = sound & ~single
        if several.any():
            at = np.flatnonzero(several)
            k = np.flatnonzero(np.repeat(several, number))
            self._multiple.append(
                _Kept(
                    c.values[:, k],
                    c.region[k],
                    c.weight[at],
                    at + self.entries,
                    number[at],
                    c.rank[:, k],
                    beside[:, at],
                )
            )
            if sum(one.region.size for one in self._multiple) >= PART:
                self._part(self._multiple, several=True)
        self.entries += events

    def _put(self, where: list[_Kept], c: Candidates, events: NDArray[np.int64], beside: NDArray[np.float64]) -> None:
        """Put events of one candidate each somewhere."""
        if events.size:
            k = c.first[events]
            one_each = np.ones(events.size, np.int64)
            where.append(
                _Kept(
                    c.values[:, k],
                    c.region[k],
                    c.weight[events],
                    events + self.entries,
                    one_each,
                    np.empty((2, 0)),
                    beside[:, events],
                )
            )

    def _count(self, c: Candidates, events: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count events that are alike, as far as cuts can tell; returns those that are like no other one."""
        bits = np.ascontiguousarray(c.values[:, c.first[events]]).view(np.int64)
        marks = np.zeros(events.size, np.int64)
        for row, odd in zip(bits, _ODD, strict=False):
            marks = (marks ^ row ^ (marks >> 29)) * odd
        _, example, which, count = np.unique(marks, return_index=True, return_inverse=True, return_counts=True)
        alike = (bits == bits[:, example[which]]).all(axis=0) & (count[which] > 1)
        sums = np.zeros((example.size, CELL), np.int64)
        _sum_up(c.weight[events[alike]], which[alike], self._split, sums.reshape(-1))
        for i in np.flatnonzero(sums[:, COUNT]):
            key = bits[:, example[i]].tobytes()
            self._classes[key] = self._classes[key] + sums[i] if key in self._classes else sums[i]
        rare: NDArray[np.int64] = events[~alike]
        return rare

    def _seal(self) -> None:
        """Make a part of what has gathered, but for events that weigh much more or less than most."""
        if not self._single:
            return
        whole = _together(self._single)
        self._single.clear()
        octave, alike = _octave(whole.weight)
        if octave is not None and not alike.all():
            self._rare.append(_some(whole, ~alike))
            whole = _some(whole, alike)
        self._parts.append(self._made(whole, several=False))

    def _part(self, kept: list[_Kept], *, several: bool) -> None:
        if kept:
            self._parts.append(self._made(_together(kept), several=several))
            kept.clear()

    def _made(self, kept: _Kept, *, several: bool) -> Part:
        octave, alike = _octave(kept.weight)
        values = np.ascontiguousarray(kept.values)
        return Part(
            tuple(shrink(values[slot]) if slot >= 0 else None for slot in self._slots.tolist()),
            kept.region.astype(np.int8),
            _weights(kept.weight),
            kept.entry.astype(np.uint32),
            np.concatenate([[0], np.cumsum(kept.number)]).astype(np.int32) if several else None,
            kept.rank,
            octave if alike.all() else None,
            tuple(shrink(row) for row in np.ascontiguousarray(kept.beside)),
        )

    def whole(self, measured: frozenset[int]) -> Hot:
        """Return all that was gathered."""
        self._seal()
        self._part(self._rare, several=False)
        self._part(self._multiple, several=True)
        rows = np.frombuffer(b"".join(self._classes), np.float64).reshape(
            len(self._classes), int((self._slots >= 0).sum())
        )
        classes = np.full((self._slots.size, len(rows)), np.nan)
        for variable, slot in enumerate(self._slots.tolist()):
            if slot >= 0 and len(rows):
                classes[variable] = rows[:, slot]
        used = [COUNT, *range(SUMW, SUMW + LIMBS)]
        sums = np.array(list(self._classes.values()), np.int64).reshape(-1, CELL)[:, used]
        return Hot(
            self.entries, tuple(self._parts), classes, sums, self.invalid, self._invalid_sums[used], measured,
            self._beside,
        )  # fmt: skip


def _together(kept: Sequence[_Kept]) -> _Kept:
    return _Kept(*(np.concatenate(arrays, axis=-1) for arrays in zip(*kept, strict=True)))


def _some(kept: _Kept, wanted: NDArray[np.bool_]) -> _Kept:
    """Take some of events that have one candidate each."""
    return _Kept(
        kept.values[:, wanted], kept.region[wanted], kept.weight[wanted], kept.entry[wanted], kept.number[wanted],
        kept.rank, kept.beside[:, wanted],
    )  # fmt: skip


def _weights(weight: NDArray[np.float64]) -> Column:
    """Keep weights: one where all are the same."""
    alike = bool((weight == weight[0]).all())
    return Column(weight[:1].copy() if alike else weight, float(weight.min()), float(weight.max()), holes=False)


def _octave(weight: NDArray[np.float64]) -> tuple[int | None, NDArray[np.bool_]]:
    """Find where most weights lie: the least power of two, if it isn't too small, and which of them lie there."""
    _, exponent = np.frexp(weight)
    low, number = np.unique(exponent[weight != 0] - 1, return_counts=True)
    best, most = None, 0
    for first in low.tolist():
        inside = int(number[(low >= first) & (low < first + OCTAVES)].sum())
        if LEAST <= first <= LARGEST and inside > most:
            best, most = first, inside
    if best is None:
        return None, np.ones(weight.size, bool)
    return best, (weight != 0) & (exponent - 1 >= best) & (exponent - 1 < best + OCTAVES)
