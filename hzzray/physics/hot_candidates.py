"""Hot candidates: what was measured of events, kept compact, to be judged and filled again by other cuts and templates.

What is filled of them is what ``Filler`` fills of the same events, to the last bit. Sums don't depend on an order, so
candidates are kept as it suits: column by column, each in the smallest type that holds all of its numbers exactly.
Events that no cuts could ever fill, of no region, are only counted, by what cuts can tell of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hzzray.physics.analysis import Analysis, Cut, Template, Variation, shape_of
from hzzray.physics.candidates import BAD_INPUT, BAD_WEIGHT, BLOCK, TOO_LARGE, Candidates, make_room
from hzzray.physics.columns import Step
from hzzray.physics.fast_sums import FOLDS, LARGEST, LEAST, OCTAVES, halve, halver, unfold
from hzzray.physics.fill import LOT, Sums, Weights, find_bins, weigh
from hzzray.physics.filler import exact, no_sums, refuse_misplaced, refuse_too_large, run_measure
from hzzray.physics.histogram import LIMBS, Blocks, Shape
from hzzray.physics.hot_weights import NOTHING, ExtraWeights, Reweigher
from hzzray.physics.hot_weights import warm_up as warm_up_weights
from hzzray.physics.jit import entry, inlined, kernel, one_at_a_time, without_extensions
from hzzray.physics.judge import choose
from hzzray.physics.limbs import CELL, COUNT, SUMW, SUMW2, Split, add_one, add_whole, make_split, split_weight
from hzzray.physics.selection import Selection, parameters_of

#: Candidates of a part at the most, about: their columns go through the second-level cache together.
PART = 32_768

#: Events of a part at the most.
MOST = PART + BLOCK

_NUMBERS = np.arange(MOST, dtype=np.uint32)

# Values that a column is tried by first: most that need a larger type show it here.
_TRIED = 64


class Column(NamedTuple):
    """One variable of some candidates: one value where all have the same. And between what its values lie.

    ``values`` is int8, float32 or float64, each of which turns into the very double that was measured. ``holes`` tells
    whether there is nan among them, which ``least`` and ``most`` leave out.
    """

    values: NDArray[Any]
    least: float
    most: float
    holes: bool

    @property
    def step(self) -> int:
        """How far a value is from the next: 0 where there is one."""
        return int(self.values.size > 1)

    def passes(self, low: float, high: float) -> bool:
        """Tell whether all lie between two bounds."""
        return not self.holes and (self.least > low or low == -math.inf) and (self.most < high or high == math.inf)

    @property
    def finite(self) -> bool:
        """Whether all are finite."""
        return not self.holes and -math.inf < self.least and self.most < math.inf


class Part(NamedTuple):
    """Some candidates: ``columns``, one a variable (None where it was not measured), and ``region`` (int8).

    Each belongs to an event of its own, or, where there is a ``first`` (int32, one more than events), those of an event
    are together, with their ``rank`` (float64, shape (2, candidates)). Events have a ``weight`` and their ``entry``,
    counted from where the range starts (uint32); ``beside`` is what was kept of an event for its variations. Weights
    are 2**octave or more and less than that times 2**OCTAVES, whatever their sign; None where there is no such power of
    two.
    """

    columns: tuple[Column | None, ...]
    region: NDArray[np.int8]
    weight: Column
    entry: NDArray[np.uint32]
    first: NDArray[np.int32] | None
    rank: NDArray[np.float64]
    octave: int | None
    beside: tuple[Column, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        arrays = [column.values for column in (*self.columns, self.weight, *self.beside) if column is not None]
        arrays += [self.region, self.entry, self.rank, *([] if self.first is None else [self.first])]
        return sum(array.nbytes for array in arrays)


@dataclass(frozen=True, eq=False, slots=True)
class Hot:
    """All that is kept of a range of events.

    ``counted`` events can't be filled whatever the cuts: ``classes`` (float64, shape (variables, classes)) has what
    cuts can tell of them, ``sums`` (int64, shape (classes, 1 + LIMBS)) how many there are of each, and the limbs of
    what they weigh. Of those that are ``invalid`` there are so many, likewise: they stop at the first cut. ``beside``
    names what was kept beside weights.
    """

    entries: int
    parts: tuple[Part, ...]
    classes: NDArray[np.float64]
    sums: NDArray[np.int64]
    invalid: NDArray[np.int64]
    invalid_sums: NDArray[np.int64]
    measured: frozenset[int]
    beside: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(part.nbytes for part in self.parts) + self.classes.nbytes + self.sums.nbytes

    @property
    def candidates(self) -> int:
        """Candidates that are kept."""
        return sum(part.region.size for part in self.parts)


def shrink(values: NDArray[np.float64]) -> Column:
    """Keep values in the smallest type that has room for each of them to the last bit."""
    if not values.size:
        return Column(values, math.inf, -math.inf, holes=False)
    # Signs of zeros, and bits of nan, are kept too.
    bits = values.view(np.int64)
    kept: NDArray[Any] = values
    if (bits[:_TRIED] == bits[0]).all() and (bits == bits[0]).all():
        kept = values[:1].copy()
    else:
        with np.errstate(invalid="ignore", over="ignore"):
            for dtype in (np.int8, np.float32):
                if _holds(values[:_TRIED], dtype) and _holds(values, dtype):
                    kept = values.astype(dtype)
                    break
            else:
                kept = values.copy()  # of its own, lest it keeps alive what it is a part of
    least, most = float(kept.min()), float(kept.max())
    holes = math.isnan(least)
    if holes:
        sound = kept[~np.isnan(kept)]
        least, most = (float(sound.min()), float(sound.max())) if sound.size else (math.inf, -math.inf)
    return Column(kept, least, most, holes)


def _holds(values: NDArray[np.float64], dtype: type[np.int8 | np.float32]) -> bool:
    return bool((values.astype(dtype).astype(np.float64).view(np.int64) == values.view(np.int64)).all())


# --- keeping ---


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


# --- judging and filling ---


class _Scratch(NamedTuple):
    """What judging and filling a part needs.

    ``folds`` (float64, four an event) are weights and their squares, each cut in two; ``rows`` and ``cells`` (float64,
    ``FOLDS`` each) are sums of them, with a count: of rows of the cutflow, two for each, in turn, and of cells.
    """

    alive: NDArray[np.uint8]
    passed: NDArray[np.int16]
    chosen: NDArray[np.uint32]
    region: NDArray[np.int32]
    cell: NDArray[np.int32]
    x: NDArray[np.float64]
    split: Split
    folds: NDArray[np.float64]
    rows: NDArray[np.float64]
    cells: NDArray[np.float64]


def _make_scratch(room: int, shape: Shape) -> _Scratch:
    return _Scratch(
        np.zeros(room, np.uint8), np.zeros(room, np.int16), np.zeros(room, np.uint32), np.zeros(room, np.int32),
        np.zeros(LOT, np.int32), np.zeros(LOT), make_split(BLOCK), np.zeros(room * 4),
        np.zeros(2 * (shape.rows + 1) * FOLDS), np.zeros(shape.nominal * FOLDS),
    )  # fmt: skip


@entry
def _narrow(x: NDArray[Any], low: float, high: float, alive: NDArray[np.uint8]) -> None:
    """Let those live on whose value lies between two bounds."""
    _between(x.size, x, low, high, alive)


@kernel
def _between(n: int, x: NDArray[Any], low: float, high: float, alive: NDArray[np.uint8]) -> None:
    if high == math.inf and low > -math.inf:  # one end alone takes less time, and nan isn't beyond it
        for k in range(n):
            alive[k] &= np.uint8(np.float64(x[k]) > low)
    elif low == -math.inf and high < math.inf:
        for k in range(n):
            alive[k] &= np.uint8(np.float64(x[k]) < high)
    elif high < math.inf:
        for k in range(n):
            alive[k] &= np.uint8((np.float64(x[k]) > low) & (np.float64(x[k]) < high))
    else:
        for k in range(n):
            alive[k] &= np.uint8(not np.isnan(x[k]))


@entry
def _narrow_whole(x: NDArray[np.int8], low: int, high: int, alive: NDArray[np.uint8]) -> None:
    """Likewise, of whole numbers: from ``low`` to ``high``."""
    _between_whole(x.size, x, low, high, alive)


@kernel
def _between_whole(n: int, x: NDArray[np.int8], low: int, high: int, alive: NDArray[np.uint8]) -> None:
    least, most = np.int8(low), np.int8(high)
    for k in range(n):
        alive[k] &= np.uint8((x[k] >= least) & (x[k] <= most))


@entry
def _advance(n: int, cuts: int, alive: NDArray[np.uint8], passed: NDArray[np.int16]) -> None:
    """Count so many more cuts for those that live."""
    _count_on(n, cuts, alive, passed)


@kernel
def _count_on(n: int, cuts: int, alive: NDArray[np.uint8], passed: NDArray[np.int16]) -> None:
    times = np.int16(cuts)
    for k in range(n):
        passed[k] += np.int16(alive[k]) * times


@entry
def _choose(
    first: NDArray[np.int32], rank: NDArray[np.float64], passed: NDArray[np.int16], out: NDArray[np.uint32]
) -> None:
    """Choose for each event the candidate that counts."""
    choose(first.size - 1, first, rank, passed, out)


# Unsigned numbers index without a look at whether they are negative.
_1, _2, _3, _4, _FOLD, _FOLDS = (np.uint64(number) for number in (1, 2, 3, 4, 4, FOLDS))


@inlined
def _row_of(k: Any, s: _Scratch, region: NDArray[np.int8], fit: NDArray[np.bool_], last: int, t: Sums) -> int:  # noqa: ANN401
    """Find the row of the cutflow where an event stops whose candidate counts; more than the last for none."""
    row: int = s.passed[k] + 1
    row = last if (row > last) & (region[k] < 0) else row
    if fit.size and row > last and not fit[k]:
        t.invalid[0] += 1
        row = 1
    return row


@entry
def _settle(
    events: int, region: NDArray[np.int8], weight: NDArray[np.float64], fit: NDArray[np.bool_], octave: int,
    s: _Scratch, t: Sums,
) -> int:  # fmt: skip
    """Add up the events that a cut stops; moves the others to the front, and returns how many they are.

    ``fit`` tells which candidates have a finite first observable; empty for all. Weights lie within ``OCTAVES`` from
    ``octave`` on, and so do their squares: cut in two at a fixed place, each half of ``MOST`` of them adds up in a
    double without rounding. A half is what is left when a number that is large enough was added and taken away again.
    """
    large, larger = halver(octave)
    m: int = _settle_all(events, region, weight, fit, large, larger, s, t)
    s.rows[2 * FOLDS * (t.stopped.size // CELL) :] = 0.0
    unfold(s.rows, 1, t.stopped, s.split, False)  # noqa: FBT003
    return m


@kernel
def _settle_all(
    events: int, region: NDArray[np.int8], weight: NDArray[np.float64], fit: NDArray[np.bool_], large: float,
    larger: float, s: _Scratch, t: Sums,
) -> int:  # fmt: skip
    last = t.stopped.size // CELL - 1
    step = np.uint64(weight.size > 1)
    m = np.uint64(0)
    for i in range(events):
        e = np.uint64(i)
        k = np.uint64(s.chosen[e])
        row = _row_of(k, s, region, fit, last, t)
        w = weight[e * step]
        high, low = halve(w, large)
        higher, lower = halve(w * w, larger)
        # Without a branch, which processors guess wrongly half of the time: those that pass have a row that nobody
        # collects, and those that stop leave their folds where the next one's go.
        to = np.uint64(2 * row + (i & 1)) * _FOLDS
        s.rows[to] += high
        s.rows[to + _1] += low
        s.rows[to + _4] += 1.0
        at = m * _FOLD
        s.folds[at] = high
        s.folds[at + _1] = low
        s.folds[at + _2] = higher
        s.folds[at + _3] = lower
        s.chosen[m] = s.chosen[e]
        s.region[m] = region[k]
        m += np.uint64(row > last)
    return int(m)


@entry
def _fill(x: NDArray[Any], m: int, axis: NDArray[np.float64], first: int, s: _Scratch) -> None:
    """Fill a template with m chosen candidates."""
    _fill_all(x, m, axis, first, s)


@kernel
def _fill_all(x: NDArray[Any], m: int, axis: NDArray[np.float64], first: int, s: _Scratch) -> None:
    step = np.uint64(x.size > 1)
    for at in range(0, m, LOT):
        n = min(LOT, m - at)
        chosen = s.chosen[at : at + n]
        for i in range(n):
            s.x[i] = x[np.uint64(chosen[i]) * step]
        find_bins(n, s.x, axis, s.region[at:], first, s.cell)
        _add_folds(n, s.cells, s.cell, s.folds[at * 4 :])


@kernel
def _add_folds(n: int, cells: NDArray[np.float64], cell: NDArray[np.int32], folds: NDArray[np.float64]) -> None:
    """Add as ``fill`` does, but each event counts: with a number for that beside its folds all took a tenth longer."""
    for i in range(n):
        e = np.uint64(i)
        to, of = np.uint64(cell[e]) * _FOLDS, e * _FOLD
        # All are read before one is written, so that they can be added together.
        one, two, three, four = cells[to], cells[to + _1], cells[to + _2], cells[to + _3]
        one += folds[of]
        two += folds[of + _1]
        three += folds[of + _2]
        four += folds[of + _3]
        cells[to] = one
        cells[to + _1] = two
        cells[to + _2] = three
        cells[to + _3] = four
        cells[to + _4] += 1.0


@entry
def _collect(s: _Scratch, t: Sums) -> None:
    """Move what was filled of a part to where all is summed up."""
    unfold(s.cells, 0, t.cells, s.split, True)  # noqa: FBT003


@entry
def _settle_any(
    begin: int, end: int, region: NDArray[np.int8], weight: NDArray[np.float64], fit: NDArray[np.bool_], s: _Scratch,
    t: Sums,
) -> int:  # fmt: skip
    """Likewise of some events, whatever their weights: these are cut at limb borders one by one."""
    m: int = _settle_each(begin, end, region, weight, fit, s, t)
    return m


@kernel
def _settle_each(
    begin: int, end: int, region: NDArray[np.int8], weight: NDArray[np.float64], fit: NDArray[np.bool_], s: _Scratch,
    t: Sums,
) -> int:  # fmt: skip
    last = t.stopped.size // CELL - 1
    step = np.int64(weight.size > 1)
    m = 0
    for e in range(begin, end):
        k = s.chosen[e]
        row = _row_of(k, s, region, fit, last, t)
        w = weight[e * step]
        split_weight(w, s.split, m, 0, SUMW)
        split_weight(w * w, s.split, m, 1, SUMW2)
        if row <= last:
            add_one(t.stopped, row, s.split, m)
        else:
            s.chosen[begin + m] = k
            s.region[m] = region[k]
            m += 1
    return m


@entry
def _fill_any(
    x: NDArray[Any], begin: int, m: int, axis: NDArray[np.float64], first: int, s: _Scratch, cells: NDArray[np.int64]
) -> None:
    """Fill a template with m chosen candidates, those from ``begin`` on."""
    _fill_each(x, begin, m, axis, first, s, cells)


@kernel
def _fill_each(
    x: NDArray[Any], begin: int, m: int, axis: NDArray[np.float64], first: int, s: _Scratch, cells: NDArray[np.int64]
) -> None:
    step = np.int64(x.size > 1)
    for at in range(0, m, LOT):
        n = min(LOT, m - at)
        for i in range(n):
            s.x[i] = x[s.chosen[begin + at + i] * step]
        find_bins(n, s.x, axis, s.region[at:], first, s.cell)
        for i in range(n):
            add_whole(cells, s.cell[i], s.split, at + i)


@without_extensions()
def warm_up() -> None:
    """Compile what judges and fills, for each type that a column may have, or load it from numba's cache."""
    shape = Shape(1, (1,), 2)
    s, t = _make_scratch(1, shape), no_sums(shape)
    axis, none, flags = np.array([0.0, 1.0, 1.0, 1.0]), np.empty(0, np.int8), np.empty(0, np.bool_)
    with one_at_a_time("judging and filling of hot candidates"):
        for dtype in (np.int8, np.float32, np.float64):
            x = np.empty(0, dtype)
            _fill(x, 0, axis, 0, s)
            _fill_any(x, 0, 0, axis, 0, s, t.cells)
        _settle(0, none, np.empty(0), flags, 0, s, t)
        _settle_any(0, 0, none, np.empty(0), flags, s, t)
        for values in (np.empty(0, np.float32), np.empty(0)):
            _narrow(values, 0.0, 1.0, s.alive)
        _narrow_whole(none, 0, 1, s.alive)
        _advance(0, 1, s.alive, s.passed)
        _choose(np.zeros(1, np.int32), np.empty((2, 0)), s.passed, s.chosen)
        _collect(s, t)
        warm_up_weights()


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
        self._s = _make_scratch(MOST, self.shape)

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
            m = _settle(events, part.region, weight, fit, part.octave, s, sums)
            for x, axis, first in columns:
                _fill(x, m, axis, first, s)
            _collect(s, sums)
            yield 0, m
            return
        for begin in range(0, events, BLOCK):
            m = _settle_any(begin, min(begin + BLOCK, events), part.region, weight, fit, s, sums)
            for x, axis, first in columns:
                _fill_any(x, begin, m, axis, first, s, sums.cells)
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
            self._s = _make_scratch(n, self.shape)
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
                    _advance(n, due, alive, passed)
                    due = 0
                _narrow_by(column, low, high, alive)
            due += 1
        _advance(n, due, alive, passed)
        if part.first is None:
            s.chosen[:n] = _NUMBERS[:n] if n <= MOST else np.arange(n, dtype=np.uint32)
        else:
            _choose(part.first, part.rank, passed, s.chosen)
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
            _narrow_whole(column.values, least, most, alive)
    else:
        _narrow(column.values, low, high, alive)
